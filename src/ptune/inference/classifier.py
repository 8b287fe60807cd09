"""Text in, label and probability out."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.progress import track
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.utils.validation import check_is_fitted

from ptune import labels as metrics
from ptune.adapters import adapter
from ptune.adapters.adapter import Adapter
from ptune.backbones.loading import default_device, encode, load_backbone, load_tokenizer
from ptune.data import dataset as data
from ptune.errors import PtuneError
from ptune.model import PromptModel

if TYPE_CHECKING:
    import transformers

# A text, or a pair of texts.
Text = str | Sequence[str]
# Which texts of a window, and their `input_ids` and so on, a list a text.
Batch = tuple[list[int], dict[str, list[list[int]]]]

# So many texts are read ahead and sorted by length.
WINDOW = 2048
# A batch for prediction has so many tokens, padding included, for each text of `batch_size`.
TOKENS_A_TEXT = 128
# Work that is likely to take longer than a few seconds shows a bar.
LONG_WORK = 500


@dataclass(frozen=True)
class Prediction:
    """What a classifier says of one text.

    Attributes:
        label: The likeliest label; a list of those at least as likely as not where a text can
            have several; the number for regression.
        score: Its probability; the largest of them; the number itself.
        probabilities: Of every label, by name.
    """

    label: str | list[str] | float
    score: float
    probabilities: dict[str, float]


class TextClassifier:
    """Texts in, labels and probabilities out, whatever runs the backbone.

    Texts are strings; pairs are tuples or lists of two strings.

    Attributes:
        classes_: Label values, in the order of the probabilities.
        problem_type_: As in Transformers' configurations.
        tokenizer_: The backbone's tokenizer.
        batch_size: So many times 128 tokens are classified at a time.
    """

    classes_: np.ndarray
    problem_type_: str
    tokenizer_: transformers.PreTrainedTokenizerBase
    batch_size: int

    def _text_room(self) -> int | None:
        """The longest text in tokens; longer ones are cut. ``None``: no bound."""
        raise NotImplementedError

    def _run(self, batches: Iterable[Batch]) -> Iterable[tuple[list[int], np.ndarray]]:
        """Logits ``[n, num_labels]`` of each batch, in any order of the batches."""
        raise NotImplementedError

    @property
    def labels(self) -> list[str]:
        """Label names, in the order of the probabilities."""
        return [str(c) for c in self.classes_]

    # Prediction.

    def logits(self, X: Text | Iterable[Text]) -> Iterator[np.ndarray]:
        """Logits ``[num_labels]`` of each text, in the order in which they came.

        Texts are read ahead by the window, so an endless iterator is welcome and memory stays
        flat. Within a window, batches are made of texts of like length.
        """
        texts: Iterator[Any] = iter([X] if _is_one_text(X) else X)
        started = 0
        while window := list(itertools.islice(texts, WINDOW)):
            yield from self._window(window, started)
            started += len(window)

    def _window(self, window: list[Text], started: int) -> np.ndarray:
        columns = list(_columns(window, started).values())
        encoded, _ = encode(self.tokenizer_, columns, self._text_room())
        logits = np.empty((len(window), len(self.classes_)), dtype=np.float32)
        for chosen, found in self._run(self._batches(encoded)):
            logits[chosen] = found
        return logits

    def _batches(self, encoded: dict[str, list[list[int]]]) -> Iterator[Batch]:
        for chosen in batches([len(ids) for ids in encoded["input_ids"]], self.batch_size):
            yield chosen, {key: [values[i] for i in chosen] for key, values in encoded.items()}

    def stream(self, X: Text | Iterable[Text]) -> Iterator[Prediction]:
        """A `Prediction` for each text, as they come; for streams of any length."""
        for logits in self.logits(X):
            yield prediction_of(logits, self.labels, self.problem_type_)

    def __call__(self, X: Text | Iterable[Text]) -> Prediction | list[Prediction]:
        """One `Prediction` for one text (or one pair, as a tuple), a list for several."""
        if _is_one_text(X):
            return next(self.stream(X))
        return list(self._with_bar(self.stream(X), X))

    def predict_proba(self, X: Text | Iterable[Text]) -> np.ndarray:
        """Probabilities, ``[n, num_labels]``, in the order of `classes_`."""
        if self.problem_type_ == "regression":
            raise PtuneError("A regression has no probabilities; use predict.")
        logits = list(self._with_bar(self.logits(X), X))
        return probabilities_of(
            np.asarray(logits).reshape(-1, len(self.classes_)), self.problem_type_
        )

    def predict(self, X: Text | Iterable[Text]) -> np.ndarray:
        """Labels ``[n]``; for several labels a text ``[n, num_labels]`` zeros and ones."""
        logits = np.asarray(list(self._with_bar(self.logits(X), X)))
        logits = logits.reshape(-1, len(self.classes_))
        decided = metrics.decide(logits, self.problem_type_)
        single = self.problem_type_ == "single_label_classification"
        return self.classes_[decided] if single else decided

    def score(self, X: Iterable[Text], y: Sequence[Any], sample_weight: Any = None) -> float:
        """Accuracy; for regression Pearson's correlation."""
        predicted = self.predict(X)
        if self.problem_type_ == "regression":
            return metrics.compute(["pearson"], np.asarray(y, dtype=float), predicted)["pearson"]
        return float(accuracy_score(y, predicted, sample_weight=sample_weight))

    def evaluate(self, dataset: data.Dataset, names: Iterable[str]) -> dict[str, float]:
        """Metrics of `names` on a data set with the columns of `ptune.data.dataset`."""
        pairs = data.PAIR in dataset.column_names
        texts = [(r[data.TEXT], r[data.PAIR]) if pairs else r[data.TEXT] for r in dataset]
        logits = np.asarray(list(self._with_bar(self.logits(texts), texts)))
        decided = metrics.decide(logits, self.problem_type_)
        return metrics.compute(names, np.asarray(dataset[data.LABEL]), decided)

    def _with_bar(self, results: Iterator[Any], X: Any) -> Iterable[Any]:
        total = len(X) if hasattr(X, "__len__") and not _is_one_text(X) else None
        if total is None or total < LONG_WORK:
            return results
        return track(results, description="classifying", total=total, transient=True)


class PromptClassifier(TextClassifier, ClassifierMixin, BaseEstimator):
    """A p-tuned text classifier with scikit-learn's verbs.

    `ptune.load` gives a trained one. A new one is trained with `fit` and can be handed to
    whatever takes an estimator, `cross_val_score` for example.

    Args:
        model: The backbone: short name, Hub id or folder.
        prompt: `deep`: virtual tokens in every layer; `input`: read with the text.
        num_virtual_tokens: Length of the prompt, in tokens.
        encoder: `MLP`, `LSTM` or `NONE`.
        encoder_hidden_size: Width of the prompt encoder.
        placement: `after_first`, or `prefix` as in the reference.
        pooling: What the head reads: `architecture`, `mean` (over the text), `prompt` or `auto`.
        prompt_init: `vocab`, `text` or `random`; `None`: what suits the kind of prompt.
        prompt_init_text: What the prompt starts as, in words: what is asked about a text.
        prompt_init_scale: By what the initial vectors are multiplied; likewise.
        learning_rate: Of the head; `None`: what suits the kind of prompt.
        prompt_learning_rate: Of the prompt; likewise.
        epochs: Passes over the data; `None`: 8, and at least 200 steps.
        batch_size: Examples a step. Prediction takes texts of 128 times as many tokens at a time.
        max_length: Longest text in tokens; `None`: what the backbone allows.
        dtype: Of the frozen backbone; `auto`: bfloat16 where it is fast.
        seed: Of everything random.

    Attributes:
        classes_: Label values, in the order of the probabilities.
        prompt_model_: The `PromptModel`.
        tokenizer_: The backbone's tokenizer.

    Texts are strings; pairs are tuples or lists of two strings.
    """

    def __init__(
        self,
        model: str = "minilm",
        *,
        prompt: str = "deep",
        num_virtual_tokens: int = 20,
        encoder: str = "NONE",
        encoder_hidden_size: int = 128,
        placement: str = "after_first",
        pooling: str = "auto",
        prompt_init: str | None = None,
        prompt_init_text: str | None = None,
        prompt_init_scale: float | None = None,
        learning_rate: float | None = None,
        prompt_learning_rate: float | None = None,
        epochs: float | None = None,
        batch_size: int = 32,
        max_length: int | None = None,
        dtype: str = "auto",
        seed: int = 0,
    ) -> None:
        self.model = model
        self.prompt = prompt
        self.num_virtual_tokens = num_virtual_tokens
        self.encoder = encoder
        self.encoder_hidden_size = encoder_hidden_size
        self.placement = placement
        self.pooling = pooling
        self.prompt_init = prompt_init
        self.prompt_init_text = prompt_init_text
        self.prompt_init_scale = prompt_init_scale
        self.learning_rate = learning_rate
        self.prompt_learning_rate = prompt_learning_rate
        self.epochs = epochs
        self.batch_size = batch_size
        self.max_length = max_length
        self.dtype = dtype
        self.seed = seed

    # Training.

    def fit(self, X: Iterable[Text], y: Sequence[Any]) -> PromptClassifier:
        """Train on texts or pairs `X` and their labels `y`.

        `y` holds label names or numbers; numbers with a fraction make a regression, lists of
        names several labels a text.

        Raises:
            PtuneError: A text is empty, or there is only one label.
        """
        from ptune.training.run import train_run
        from ptune.training.settings import TrainSettings

        examples = _columns(X)
        values = [v.item() if isinstance(v, np.generic) else v for v in y]
        corpus = data.corpus_from_lists(examples, values)
        settings = TrainSettings(**self.get_params())
        with tempfile.TemporaryDirectory(prefix="ptune-") as folder:
            settings.training_arguments = {"save_strategy": "no", "eval_strategy": "no"}
            model = train_run(settings, folder, overwrite=True, corpus=corpus).model
        model.freeze()
        self._set(model.eval(), load_tokenizer(self.model), corpus.labels, corpus.problem_type)
        if corpus.problem_type == "single_label_classification":
            originals = {data.label_name(v): v for v in values}
            self.classes_ = np.asarray([originals[name] for name in corpus.labels])
        return self

    def _set(
        self,
        model: PromptModel,
        tokenizer: transformers.PreTrainedTokenizerBase,
        labels: Sequence[str],
        problem_type: str,
    ) -> None:
        self.prompt_model_ = model
        self.tokenizer_ = tokenizer
        self.classes_ = np.asarray(labels)
        self.problem_type_ = problem_type

    # Prediction.

    def logits(self, X: Text | Iterable[Text]) -> Iterator[np.ndarray]:  # noqa: D102
        check_is_fitted(self)
        return super().logits(X)

    def _text_room(self) -> int | None:
        return self.prompt_model_.text_room(self.tokenizer_)

    def _run(self, batches: Iterable[Batch]) -> Iterator[tuple[list[int], np.ndarray]]:
        for chosen, rows in batches:
            batch = self.tokenizer_.pad(rows, return_tensors="pt")
            with torch.inference_mode():
                output = self.prompt_model_(**batch.to(self.prompt_model_.device))
            yield chosen, output.logits.float().cpu().numpy()

    # Files.

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the adapter; `ptune.load` reads it again.

        Raises:
            PtuneError: The folder cannot be written; what was there is whole.
        """
        check_is_fitted(self)
        adapter.save(self.prompt_model_, folder, trained_state=False)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Publish the adapter with a model card; see `ptune.adapters.push.push`.

        `ptune push` publishes a run folder, scores and pictures included.

        Raises:
            PtuneError: The Hub refuses, or cannot be reached.
        """
        check_is_fitted(self)
        return self.prompt_model_.push_to_hub(repo_id, **kwargs)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "prompt_model_")


def load(
    source: str | os.PathLike[str],
    *,
    model: str | None = None,
    dtype: str = "auto",
    device: str | torch.device | None = None,
    batch_size: int = 32,
    subfolder: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> PromptClassifier:
    """Load a classifier: an adapter, and the backbone it was trained on.

    Args:
        source: A folder, or a repository on the Hub, written by ptune or by 🤗 PEFT.
        model: The backbone, where it is not to be had under the name the adapter remembers.
        dtype: Of the backbone; ``"auto"``: bfloat16 where it is fast, else float32.
        device: ``None``: a GPU if there is one.
        batch_size: So many times 128 tokens are classified at a time.
        subfolder, revision, token, cache_dir, local_files_only: For the Hub.

    Raises:
        PtuneError: There is no such adapter or backbone, or they do not belong together.

    Example:
        ``ptune.load("runs/mrpc")(("A pair of texts.", "Two texts."))``
    """
    if (Path(source) / "model.onnx").is_file():
        raise PtuneError(
            f"{source} is an export to ONNX, and no adapter. Name its runtime (`--runtime onnx` or "
            "`openvino`; ptune.load_exported in Python)."
        )
    found = Adapter.read(
        source,
        own_backbone=model is not None,
        subfolder=subfolder,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
    )
    name = model or found.config.base_model_name_or_path
    if not name:
        raise PtuneError(
            f"The adapter {source} does not say which backbone it was trained on. Name it "
            "(`--model`, or model= in Python)."
        )
    names, problem_type = list(found.labels.names), found.labels.problem_type
    local = {"cache_dir": cache_dir, "local_files_only": local_files_only}
    # The adapter's revision is the backbone's.
    backbone = load_backbone(
        name,
        labels=names,
        problem_type=problem_type,
        dtype=dtype,  # type: ignore[arg-type]
        revision=found.config.revision,
        token=token,
        **local,
    )
    prompt_model = adapter.load(backbone, found)
    device = device or default_device()
    tokenizer = load_tokenizer(name, revision=found.config.revision, token=token, **local)
    classifier = PromptClassifier(
        name,
        prompt=found.config.depth,
        num_virtual_tokens=found.config.num_virtual_tokens,
        encoder=found.config.encoder_reparameterization_type,
        placement=found.config.placement,
        pooling=found.config.pooling,
        prompt_init=found.config.prompt_init,
        prompt_init_text=found.config.prompt_init_text,
        prompt_init_scale=found.config.prompt_init_scale,
        max_length=prompt_model.max_length,
        batch_size=batch_size,
        dtype=dtype,
    )
    classifier._set(prompt_model.to(device), tokenizer, names, problem_type)
    return classifier


def batches(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Which texts of `lengths`, in tokens, to classify together: those of like length.

    As many as have 128 tokens times `batch_size`: few long ones or many short ones.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    while order:
        size = max(1, TOKENS_A_TEXT * batch_size // max(1, lengths[order[0]]))
        yield order[:size]
        order = order[size:]


def prediction_of(logits: np.ndarray, labels: Sequence[str], problem_type: str) -> Prediction:
    """What the logits ``[num_labels]`` of a text say."""
    if problem_type == "regression":
        value = float(logits[0])
        return Prediction(value, value, {labels[0]: value})
    p = probabilities_of(logits[None], problem_type)[0]
    by_name = {name: float(v) for name, v in zip(labels, p, strict=True)}
    if problem_type == "multi_label_classification":
        chosen = [name for name, v in by_name.items() if v > 0.5]
        return Prediction(chosen, float(p.max()), by_name)
    best = int(p.argmax())
    return Prediction(labels[best], float(p[best]), by_name)


def _is_one_text(X: Any) -> bool:
    """A string; or a tuple of two strings, which is one pair (a *list* of two is two texts)."""
    return isinstance(X, str) or (
        isinstance(X, tuple) and len(X) == 2 and all(isinstance(t, str) for t in X)
    )


def _columns(X: Iterable[Text], started: int = 0) -> dict[str, list[str]]:
    """Texts or pairs as columns.

    Raises:
        PtuneError: They are neither, or are mixed.
    """
    rows: list[Any] = [X] if _is_one_text(X) else list(X)
    if not rows:
        raise PtuneError("There are no texts.")
    pairs = not isinstance(rows[0], str)
    for i, row in enumerate(rows, start=started + 1):
        is_pair = isinstance(row, list | tuple) and len(row) == 2
        if not (is_pair if pairs else isinstance(row, str)):
            raise PtuneError(
                f"Text {i} is {row!r}; wanted are strings, or pairs of strings, and not both at "
                "once."
            )
    if not pairs:
        return {data.TEXT: data.check_texts(rows, "list of texts")}
    return {
        data.TEXT: data.check_texts([p[0] for p in rows], "list of first texts"),
        data.PAIR: data.check_texts([p[1] for p in rows], "list of second texts"),
    }


def probabilities_of(logits: np.ndarray, problem_type: str) -> np.ndarray:
    """From logits ``[n, num_labels]``, in float64."""
    logits = logits.astype(np.float64)
    if problem_type == "multi_label_classification":
        return 1 / (1 + np.exp(-logits))
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)
