"""Any number of tasks on one backbone: one forward pass serves a batch that mixes them.

Token ids select the task of a text: the prompts of a batch's tasks are further rows of the
embedding weight, and each text has the ids of its own task. The head is chosen text by text. A
task is a few tensors and no module, so a thousand tasks cost what their numbers take.
"""

from __future__ import annotations

import itertools
import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from ptune.adapters import adapter
from ptune.adapters.adapter import Adapter
from ptune.adapters.download import AdapterFiles
from ptune.adapters.fit import check_fits
from ptune.backbones.architectures import check_supported
from ptune.backbones.loading import (
    chosen_device,
    full_name,
    load_backbone,
    load_tokenizer,
    loading,
    share_weights,
    smallest,
)
from ptune.compat import commit_of
from ptune.errors import Origin, PtuneError, listed
from ptune.files import METRICS_NAME, at_home, name_of, near_path, read_json
from ptune.inference.tasks import Task, TaskInfo, TaskTable, Weights, named_in_errors, stamp_of
from ptune.inference.text_classifier import WINDOW, Found, TextClassifier
from ptune.labels import Prediction, columns_of
from ptune.prompts.batch import takes_turns
from ptune.prompts.heads import HeadPerText
from ptune.prompts.host import Given, Host
from ptune.prompts.mechanisms import Prompt
from ptune.prompts.readers import TextStates
from ptune.texts import (
    TOKENS_PER_TEXT,
    Reading,
    Text,
    as_columns,
    batches,
    most_padding,
    padded,
    pooled,
    rows,
)

if TYPE_CHECKING:
    import transformers


class Answer(NamedTuple):
    """A task's answer to a text.

    Attributes:
        task: The task as it was when the call started.
        logits: Its logits, ``[num_labels]``.
        prediction: The logits as labels and probabilities.
    """

    task: TaskInfo
    logits: np.ndarray
    prediction: Prediction


class PromptBank:
    """One backbone in memory and any number of adapters; a batch mixes any of them.

    Answers are those of each adapter's own classifier (`ptune.load`), whatever else is in the
    batch. Other threads may add, replace and remove adapters while texts are classified: a call
    of `logits` or `predict` finishes with the adapters it started with.

    Args:
        model: The backbone: short name, Hub id or folder; or a sequence classifier of 🤗
            Transformers, which is changed in place.
        tokenizer: `None`: the backbone's own.
        dtype: Number format of a backbone that is loaded; ``"auto"``: bfloat16 where it is fast,
            else float32.
        device: `None`: a GPU if there is one; a given model stays where it is.
        memory_budget: Bytes of adapters to keep in memory. The others stay on disk, least
            recently used first. `None`: all are kept. A running batch holds its own adapters.
        allow_other_backbone: As for `PromptModel.from_adapter`, for every adapter.

    Attributes:
        refused: Why an adapter of the folder (`from_folder`) was refused, by name.

    Raises:
        PtuneError: The backbone cannot be loaded, or its head cannot be chosen text by text.

    Example:
        ``PromptBank("minilm").add("mail", "runs/mail")``
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | PreTrainedModel,
        *,
        tokenizer: transformers.PreTrainedTokenizerBase | None = None,
        dtype: str = "auto",
        device: str | torch.device | None = None,
        memory_budget: int | None = None,
        allow_other_backbone: bool = False,
    ) -> None:
        if memory_budget is not None and not (
            isinstance(memory_budget, int) and memory_budget >= 0
        ):
            raise PtuneError(f"memory_budget is {memory_budget!r}; it must be at least 0 bytes.")
        if isinstance(model, str | os.PathLike):
            device = chosen_device(device)
            model = load_backbone(
                os.fspath(model),
                dtype=dtype,  # type: ignore[arg-type]
                device=device,
            )
        check_supported(model)
        if tokenizer is None:
            if not model.name_or_path:
                raise PtuneError(
                    "The backbone has no name to find its tokenizer by. Pass tokenizer=."
                )
            tokenizer = load_tokenizer(model.name_or_path)
        self._host = _host_of(model)
        self._mask_host: Host | None = None  # for tasks that read at the mask token
        self.backbone = model.eval().to(device or model.device)
        self.tokenizer = tokenizer
        self.refused: dict[str, str] = {}
        self._tasks = TaskTable(memory_budget, self._weights)
        self._allow_other = allow_other_backbone
        # What the last adapter recorded about its backbone. Most others record the same.
        self._recognised: tuple[Any, ...] = ()

    @classmethod
    def from_folder(
        cls,
        folder: str | os.PathLike[str],
        *,
        model: str | None = None,
        dtype: str = "auto",
        device: str | torch.device | None = None,
        memory_budget: int | None = None,
        allow_other_backbone: bool = False,
    ) -> PromptBank:
        """A bank of every sub-folder that holds an adapter. The folders' names are the tasks'.

        Adapters that are damaged, or were trained on another backbone than the others, are left
        out, with the reason in `refused`.

        Args:
            folder: The folder.
            model: The backbone; `None`: the one that most adapters name.
            dtype, device, memory_budget, allow_other_backbone: As for the bank.

        Raises:
            PtuneError: There is no such folder; or no backbone was given, and no adapter names one.
        """
        root, device = Path(at_home(folder)), chosen_device(device)
        if not root.is_dir():
            raise PtuneError(f"There is no folder {root}. {near_path(root)}")
        places = {
            place.name: place
            for place in sorted(root.iterdir())
            if not place.name.startswith(".")
            and any((place / n).is_file() for n in adapter.PREDICTING)
        }
        revision, refused = None, dict[str, str]()
        if model is None:
            model, revision, refused = _common_backbone(root, places)
        how: dict[str, Any] = {"dtype": dtype, "device": device, "revision": revision}
        bank = cls(
            load_backbone(model, **how),
            tokenizer=load_tokenizer(model, revision=revision),
            device=device,
            memory_budget=memory_budget,
            allow_other_backbone=allow_other_backbone,
        )
        for task, place in places.items():
            if task not in refused:
                try:
                    bank.add(task, place)
                except PtuneError as error:
                    refused[task] = str(error)
        bank.refused = refused
        return bank

    # Which tasks there are.

    def add(self, task: str, source: str | os.PathLike[str], *, replace: bool = False) -> None:
        """Add an adapter as a task.

        Args:
            task: Its name.
            source: Its folder, which must not change while there is a `memory_budget`; or a
                repository on the Hub.
            replace: Replace a task of that name, if there is one.

        Raises:
            PtuneError: It is damaged or belongs to another backbone, or there is a task of that
                name. The bank is unchanged.
        """
        if not isinstance(task, str) or not task:
            raise PtuneError(f"A task cannot be called {task!r}; expected a non-empty string.")
        self._tasks.check_free(task, replace=replace)
        with named_in_errors(task):
            added = self._read(task, source)
        self._tasks.add(added, replace=replace)

    def remove(self, task: str) -> None:
        """Remove a task.

        Raises:
            PtuneError: There is no task with this name.
        """
        self._tasks.remove(task)

    def unload(self) -> PreTrainedModel:
        """Restore the backbone bit for bit and return it. The bank cannot be used afterwards."""
        if self._mask_host is not None:
            self._mask_host.release()
        return self._host.release()

    def task(self, name: str) -> TaskInfo:
        """Information about a task.

        Raises:
            PtuneError: There is no task with this name.
        """
        (found,) = self._tasks.of([name])
        return found.info

    def __contains__(self, task: object) -> bool:
        return task in self._tasks

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tasks)

    @property
    def memory_used(self) -> int:
        """Bytes of the adapters in memory."""
        return self._tasks.used

    # Adapters in memory and on disk.

    def _read(self, name: str, source: str | os.PathLike[str]) -> Task:
        """Read a task from its files."""
        folder = Path(name_of(source))
        if not folder.is_dir():
            files = AdapterFiles(source)
            Adapter.read(files, own_backbone=True)
            folder = files.folder
        stamp = stamp_of(folder)
        found = Adapter.read(folder, own_backbone=True)
        if stamp_of(folder) != stamp:
            raise PtuneError(f"{folder} changed while it was read. Add it again.")
        pairs, scores = found.reading.pairs, folder / METRICS_NAME
        if pairs is None and scores.is_file():  # adapters of the first version
            pairs = read_json(scores).get("text_pairs")
        weights = self._weights(found)
        bound = self._host_for(at_mask=found.reading.at_mask).architecture.max_positions
        if bound is not None:
            bound -= weights.prompt.positions
        longest = found.reading.max_text_tokens
        longest = smallest(bound, longest, self.tokenizer.model_max_length)
        special = self.tokenizer.num_special_tokens_to_add(pair=True)
        if longest is not None and longest <= special:
            raise PtuneError(
                f"{folder} leaves {longest} tokens for a text, and its special tokens alone take "
                f"{special}. Train it with a shorter prompt or a larger max_length."
            )
        info = TaskInfo(
            name,
            found.labels,
            found.postprocessing,
            pairs if isinstance(pairs, bool) else None,
            found.config.num_virtual_tokens,
            found.config.depth,
        )
        reading = replace(found.reading, max_text_tokens=longest, pairs=info.pairs)
        columns = tuple(found.text_columns or ())
        return Task(info, str(folder.absolute()), stamp, reading, weights, columns)

    def _host_for(self, *, at_mask: bool) -> Host:
        """The backbone of tasks that read at the mask token, or of all others.

        Both have the same weights, and take the memory of one.
        """
        if not at_mask or self._host.architecture.mask_token is not None:
            return self._host
        if self._mask_host is not None:  # a table of tasks may not wait for a backbone
            return self._mask_host
        with loading():
            if self._mask_host is None:
                own = self.backbone
                if not own.name_or_path:
                    raise PtuneError(
                        "Its head reads at the mask token, and the bank's backbone has no name to "
                        "find its masked language model by. Build the bank from a name."
                    )
                commit = commit_of(own)
                model = load_backbone(
                    own.name_or_path, dtype=own.dtype, revision=commit, at_mask=True
                )
                share_weights(model.to(own.device).base_model, own.base_model)
                self._mask_host = _host_of(model)
        return self._mask_host

    def _weights(self, found: Adapter) -> Weights:
        """Move an adapter's tensors to the backbone's device, after checking that they fit."""
        host = self._host_for(at_mask=found.reading.at_mask)
        recorded = (host, found.config.base_model_name_or_path, found.backbone)
        known = recorded == self._recognised
        check_fits(found, host, allow_other_backbone=self._allow_other or known)
        self._recognised = recorded
        config = host.fitted(found.config)
        width = found.prompt_embeddings.shape[1]
        mechanism = host.mechanism_for(config, found.mechanism, width)
        host.check_shape(found.prompt_embeddings, config, mechanism)
        # Copies: the tensors as read are the file itself, mapped into memory.
        weight = host.tokens.weight
        embeddings = found.prompt_embeddings.to(weight.device, weight.dtype, copy=True)
        head = {
            name: t.to(weight.device, torch.float32, copy=True) for name, t in found.head.items()
        }
        for name, tensor in {"prompt": embeddings, **head}.items():
            if not tensor.isfinite().all():
                raise PtuneError(
                    f"{found.source} is damaged: {name} holds numbers that are not finite in "
                    f"{str(tensor.dtype).removeprefix('torch.')}. Train it again."
                )
        return Weights(Prompt.of(config, mechanism, embeddings), head)

    # Answers.

    def logits(
        self, requests: Iterable[tuple[str, Text]], *, batch_size: int = 32
    ) -> list[np.ndarray]:
        """Logits ``[num_labels]`` of each request, in order.

        Args:
            requests: Each a task and a text, or a pair of texts, for it; or a table with columns
                of tasks and texts.
            batch_size: At most this many times 128 tokens are classified at a time.

        Raises:
            PtuneError: A request is malformed, its text is empty, there is no such task, or an
                adapter that is not in memory has changed on disk. The message names the task.
        """
        windows = self._windows(requests, batch_size, None)
        return [logits for _, found, _ in windows for logits in found]

    def predict(self, requests: Iterable[tuple[str, Text]]) -> list[Any]:
        """What each task's classifier would predict, in order. Raises as `logits` does.

        A label; if a text can have several, a row of zeros and ones ``[num_labels]``; a number for
        a regression. To predict for one task only, in an array, use ``bank[task].predict(texts)``.
        """
        found = []
        for tasks, answered, _ in self._windows(requests, 32, None):
            for task, logits in zip(tasks, answered, strict=True):
                margins = task.info.postprocessing.margins(logits[None])
                found.append(task.info.labels_.decode(margins)[0])
        return found

    def __call__(self, requests: Iterable[tuple[str, Text]]) -> Prediction | list[Prediction]:
        """A `Prediction` for one request, a list for several. Raises as `logits` does."""
        predictions = [found.prediction for found in self.answers(requests)]
        one = isinstance(requests, tuple) and _is_request(requests)
        return predictions[0] if one else predictions

    def __getitem__(self, task: str) -> TextClassifier:
        """A task as a classifier, as it is now: with `predict`, `predict_proba`, `score` and so on.

        Raises:
            PtuneError: There is no task with this name.
        """
        (found,) = self._tasks.of([task])
        return _TaskClassifier(self, found)

    def answers(
        self,
        requests: Iterable[tuple[str, Text]],
        *,
        batch_size: int = 32,
        truncation_side: str | None = None,
    ) -> Iterator[Answer]:
        """As `logits`, each with its task and the prediction."""
        for tasks, found, cut in self._windows(requests, batch_size, truncation_side):
            rows_of: dict[Task, list[int]] = defaultdict(list)
            for i, task in enumerate(tasks):
                rows_of[task].append(i)
            predictions: dict[int, Prediction] = {}
            for task, own in rows_of.items():
                values, logits = task.info.postprocessing, np.stack([found[i] for i in own])
                truncated = [cut[i] for i in own]
                with np.errstate(invalid="ignore"):  # a damaged adapter's logits are not finite
                    some = values.predictions(task.info.labels_, logits, truncated=truncated)
                predictions |= zip(own, some, strict=True)
            for i, task in enumerate(tasks):
                yield Answer(task.info, found[i], predictions[i])

    def predict_all(
        self, texts: Iterable[Text], tasks: Iterable[str] | None = None
    ) -> list[dict[str, Prediction]]:
        """The predictions of several tasks for each text, by the tasks' names.

        Each text is read once for all readers among the tasks. Every other prompt reads it again.

        Args:
            texts: Texts or pairs. Of a table, each task reads the columns it was trained on.
            tasks: Names of the tasks; ``None``: all of them.

        Raises:
            PtuneError: As for `logits`.
        """
        tasks = [tasks] if isinstance(tasks, str) else tasks
        names = list(self if tasks is None else tasks)
        wanted: list[tuple[tuple[str, ...], bool | None]] = [((), None)] * len(names)
        if columns_of(texts) is not None:
            wanted = [(task.columns, task.info.pairs) for task in self._tasks.of(names)]
        read = {own: list(rows(texts, *own)) for own in dict.fromkeys(wanted or [((), None)])}
        count = len(next(iter(read.values()), ()))
        asked = list(zip(names, (read[own] for own in wanted), strict=True))
        answers = self.answers([(name, own[i]) for i in range(count) for name, own in asked])
        return [{name: next(answers).prediction for name in names} for _ in range(count)]

    def excess(self, requests: Iterable[tuple[str, Text]]) -> list[int]:
        """How many tokens of each text are cut off. Raises as `logits` does."""
        found = self._tasks_and_texts(requests)
        whole, _, _ = self._encode(found, cut=False)

        def left_out(reading: Reading, tokens: int) -> int:
            limit = None if reading.in_windows else reading.max_text_tokens
            return 0 if limit is None else max(0, tokens - limit)

        return [
            left_out(task.reading, len(text["input_ids"]))
            for (task, _), text in zip(found, whole, strict=True)
        ]

    def _tasks_and_texts(
        self, requests: Iterable[tuple[str, Text]]
    ) -> list[tuple[Task, tuple[str, ...]]]:
        rows_of = [requests] if isinstance(requests, tuple) and _is_request(requests) else requests
        checked = [_checked(row, i) for i, row in enumerate(rows(rows_of))]
        tasks = self._tasks.of(name for name, _ in checked)
        return list(zip(tasks, (texts for _, texts in checked), strict=True))

    def _windows(
        self, requests: Iterable[tuple[str, Text]], batch_size: int, side: str | None
    ) -> Iterator[tuple[list[Task], list[np.ndarray], list[bool]]]:
        """Tasks, logits, and whether each text was cut, for some requests at a time."""
        found = self._tasks_and_texts(requests)
        _warn_of_form(found)
        rest = iter(found)
        while window := list(itertools.islice(rest, WINDOW)):
            yield [task for task, _ in window], *self._window(window, batch_size, side)

    def _window(
        self, window: list[tuple[Task, tuple[str, ...]]], batch_size: int, side: str | None
    ) -> tuple[list[np.ndarray], list[bool]]:
        """The logits of each request, and whether its text was cut."""
        if self.backbone.training:  # the user's own loop left it so
            self.backbone.eval()
        encoded, request_of, cut = self._encode(window, side=side)
        tasks = [window[i][0] for i in request_of]
        answers = [np.empty(0, dtype=np.float32)] * len(tasks)

        def answer(chosen: list[int], texts: Given | TextStates) -> None:
            found = self._forward([tasks[i] for i in chosen], texts)
            for i, row in zip(chosen, found, strict=True):
                answers[i] = row[: len(tasks[i].info.labels_.output_names)]

        with_text = [i for i, task in enumerate(tasks) if task.info.depth != "reader"]
        for at_mask in (False, True):
            own = [i for i in with_text if tasks[i].reading.at_mask is at_mask]
            lengths = [len(encoded[i]["input_ids"]) for i in own]
            one_row = bool(own) and self._host_for(at_mask=at_mask).takes_one_row
            padding = most_padding(self.backbone.device, one_row=one_row)
            for some in batches(lengths, batch_size, padding):
                chosen = [own[j] for j in some]
                answer(chosen, self._padded([encoded[i] for i in chosen]))
        after_text = [i for i, task in enumerate(tasks) if task.info.depth == "reader"]
        longest = max((tasks[i].info.num_virtual_tokens for i in after_text), default=0)
        for states, chosen in self._read_once(after_text, encoded, longest, batch_size):
            answer(chosen, states)
        means = [task.info.labels_.is_regression for task, _ in window]
        weights = [task.reading.window_weights for task, _ in window]
        return pooled(answers, request_of, means, weights), cut

    def _read_once(
        self, requests: list[int], encoded: list[dict[str, list[int]]], k: int, batch_size: int
    ) -> Iterator[tuple[TextStates, list[int]]]:
        """Read each text once, for all requests about it.

        Args:
            requests: Numbers of rows, all for readers.
            encoded: The text of each row; those about the same text share an object.
            k: Length of the longest reader.
            batch_size: As for `logits`.

        Yields:
            Texts, and the rows that a forward pass answers: the same number for each text, those of
            the first text first.
        """
        of_text: dict[int, list[int]] = defaultdict(list)
        for i in requests:
            of_text[id(encoded[i])].append(i)
        alike: dict[int, list[list[int]]] = defaultdict(list)
        for some in of_text.values():
            alike[len(some)].append(some)
        for count, groups in alike.items():
            lengths = [len(encoded[some[0]]["input_ids"]) for some in groups]
            for chosen in batches(lengths, batch_size, most_padding(self.backbone.device)):
                texts = [encoded[groups[i][0]] for i in chosen]
                states = self._host.read_texts(self._padded(texts))
                step = max(1, TOKENS_PER_TEXT * batch_size // len(chosen) // k)
                for start in range(0, count, step):
                    yield states, [i for j in chosen for i in groups[j][start : start + step]]

    def _encode(
        self,
        window: list[tuple[Task, tuple[str, ...]]],
        *,
        cut: bool = True,
        side: str | None = None,
    ) -> tuple[list[dict[str, list[int]]], list[int], list[bool]]:
        """The tokenizer's output for each text or pair, the same object for equal ones.

        Returns:
            A row for each request, then the further windows of long texts; the request that each
            row belongs to; and whether the text of each request was cut.
        """
        # Tasks that differ in nothing else read a text alike.
        same: dict[str, Any] = {"window_weights": (), "pairs": None}
        same |= {} if cut else {"max_text_tokens": None}
        readings = {task: replace(task.reading, **same) for task, _ in window}
        asked = [(texts, readings[task]) for task, texts in window]
        encoded: dict[Any, list[dict[str, list[int]]]] = {text: [] for text in asked}
        alike: dict[tuple[int, Reading], list[Any]] = {}
        for text in encoded:
            alike.setdefault((len(text[0]), text[1]), []).append(text)
        was_cut = set()
        for (columns, reading), some in alike.items():
            lists = [[texts[c] for texts, _ in some] for c in range(columns)]
            found = reading.rows(self.tokenizer, lists, side)
            for i, number in enumerate(found.text_of):
                row = {key: values[i] for key, values in found.encoded.items()}
                encoded[some[number]].append(row)
            was_cut |= {some[i] for i in found.cut}
        rest = [(row, i) for i, text in enumerate(asked) for row in encoded[text][1:]]
        return (
            [*(encoded[text][0] for text in asked), *(row for row, _ in rest)],
            [*range(len(asked)), *(i for _, i in rest)],
            [text in was_cut for text in asked],
        )

    def _padded(self, texts: list[dict[str, list[int]]]) -> Given:
        """A batch of texts on the backbone's device."""
        return Given(**padded(self.tokenizer, texts).to(self.backbone.device))

    @torch.inference_mode()
    def _forward(self, tasks: list[Task], texts: Given | TextStates) -> np.ndarray:
        """Logits ``[batch, most labels]`` of a batch, in one forward pass of the backbone."""
        weights = self._tasks.take(dict.fromkeys(tasks))
        number = {task: i for i, task in enumerate(weights)}
        which = [number[task] for task in tasks]
        one = len(weights) == 1 and (isinstance(texts, Given) or len(texts.mask) == len(tasks))
        host = self._host_for(at_mask=tasks[0].reading.at_mask)
        output = host.run(
            [w.prompt for w in weights.values()],
            texts,
            None if one else which,
            heads=[
                weights[task].head
                for task in (weights if takes_turns(which, len(weights)) else tasks)
            ],
        )
        return output.logits.float().cpu().numpy()


def _common_backbone(root: Path, places: dict[str, Path]) -> tuple[str, str | None, dict[str, str]]:
    """The backbone that most adapters of a folder name, its revision, and why others are refused.

    Raises:
        PtuneError: None of them names one.
    """
    named: dict[str, tuple[str, str | None]] = {}
    refused: dict[str, str] = {}
    for task, place in places.items():
        try:
            with named_in_errors(task):
                config = adapter.read_config(place)
                if name := config.base_model_name_or_path:
                    named[task] = full_name(name), config.revision
        except PtuneError as error:
            refused[task] = str(error)
    if not named:
        reasons = "".join(f"\n{reason}" for reason in refused.values())
        raise PtuneError(
            f"No folder in {root} holds an adapter that names its backbone. Name the folder above "
            "the adapters' own, or the backbone (model=, or --model on the command line)."
            f"{reasons}"
        )
    ((model, revision), _), *_ = Counter(named.values()).most_common(1)
    for task, other in named.items():
        if other != (model, revision):
            refused[task] = (
                f"The adapter of the task {task!r} was trained on {_shown(*other)}, and most of "
                f"{root} on {_shown(model, revision)}. Put it into another folder."
            )
    return model, revision, refused


def _host_of(model: PreTrainedModel) -> Host:
    """A host for texts with heads of their own."""
    with loading():
        host = Host(model)
        host.heads.install(host.heads.new())  # in float32, as the heads of the tasks
        try:
            host.attach(HeadPerText(model, host.architecture.head_names, host.passes))
        except PtuneError:
            host.release()
            raise
    return host


class _TaskClassifier(TextClassifier):
    """A task of a bank, with the interface of a classifier."""

    batch_size = 32

    def __init__(self, bank: PromptBank, task: Task) -> None:
        self._bank, self._task = bank, task
        self.labels_, self.postprocessing_ = task.info.labels_, task.info.postprocessing
        self.tokenizer_ = bank.tokenizer
        if task.columns:
            self.feature_names_in_ = np.array(task.columns, dtype=object)

    def _reading(self) -> Reading:
        return self._task.reading

    def _window(self, columns: list[list[str]]) -> Found:
        window = [(self._task, text) for text in zip(*columns, strict=True)]
        logits, cut = self._bank._window(window, self.batch_size, None)
        return np.stack(logits), np.array(cut)


def _is_request(request: Any) -> bool:
    """True for a task and a text, or a pair of texts: (task, text)."""
    return (
        isinstance(request, tuple | list | np.ndarray)
        and len(request) == 2
        and isinstance(request[0], str)
    )


def _checked(request: Any, position: int) -> tuple[str, tuple[str, ...]]:
    """The task and the text, or the two texts, of a request."""
    origin = Origin("the texts", before=position)
    if not _is_request(request):
        raise PtuneError(
            f"{request!r}, at {origin.at([0])}, is not a request; expected a task and a text: "
            "(task, text)."
        )
    task, text = request
    try:
        return str(task), tuple(column for (column,) in as_columns([text], origin=origin))
    except PtuneError as error:
        raise PtuneError(f"A text for the task {task!r} is refused. {error}") from error


def _warn_of_form(requests: list[tuple[Task, tuple[str, ...]]]) -> None:
    """Warn about pairs for tasks that were trained on single texts, and the reverse."""
    for trained, name, other in ((False, "single texts", "pairs"), (True, "pairs", "single texts")):
        wrong = {
            task.info.name: None
            for task, texts in requests
            if task.info.pairs is trained and (len(texts) == 2) is not trained
        }
        if wrong:
            warnings.warn(
                f"Trained on {name}, and asked about {other}: {listed(list(wrong))}. A pair is a "
                "tuple of two texts: (task, (first, second)).",
                stacklevel=4,
            )


def _shown(name: str, revision: str | None) -> str:
    return f"{name} @ {revision}" if revision else name
