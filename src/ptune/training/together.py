"""Reader tasks that train together: one forward pass takes a step of each.

A batch has a row for each example of each task, and the tasks take turns. Their losses are added
up. Because no number belongs to two tasks, each prompt and head gets the gradient that it would get
alone. Everything else is a task's own: the order of its examples, its optimizer and schedule, its
evaluation and its end.

A step has several forward passes: the first one for the shortest `PART` examples of each task, and
so on. Otherwise every text would be padded to the longest one of all tasks.
"""

from __future__ import annotations

import io
import itertools
import logging
import math
import pickle
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from datasets import Dataset
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
)

from ptune.backbones.architectures import names_of_head
from ptune.backbones.loading import default_device
from ptune.data.dataset import WEIGHT, TaskData
from ptune.errors import PtuneError
from ptune.files import CHECKPOINTS, staged
from ptune.prompts.heads import Head, HeadPerText
from ptune.prompts.host import Given
from ptune.prompts.mechanisms import Prompt
from ptune.training.asking import own_language_model, start_with_words
from ptune.training.run import Answers, all_scores, tokenized_texts
from ptune.training.settings import TrainSettings
from ptune.training.start import (
    fitted_prompt,
    learned,
    new_model,
    own_backbone,
)
from ptune.training.trainer import (
    check_metric,
    not_finite,
    start_at_labels,
    tokenized,
    training_arguments,
)

logger = logging.getLogger(__name__)

# A task ends early once its mean training loss is below this, over this number of steps and at
# least an epoch. Its learning rate is high then, so it keeps the mean of about its last STEADY
# states, which is as good as the end of the schedule.
LEARNED, STEADY = 0.01, 10
# The examples of a task in a forward pass at most.
PART = 8
# The state of a task that can be continued, in its folder of checkpoints, and what of it is plain.
STATE_NAME = "fleet.pt"
_PLAIN = ("step", "order", "log", "losses")
# The tokenizer's columns of examples, ``[tokens]`` each.
Rows = Sequence[dict[str, Tensor]]


@dataclass(frozen=True)
class Examples:
    """The tokenised examples of a dataset.

    Attributes:
        rows: The tokenizer's columns of each.
        targets: Their true labels.
        weights: How much each of them counts; ``None``: all count the same.
    """

    rows: Rows
    targets: Tensor
    weights: Tensor | None

    @classmethod
    def of(cls, examples: Dataset) -> Examples:
        """The examples of a dataset from `tokenized`."""
        columns = dict(examples[:])
        targets, weights = torch.tensor(columns.pop("labels")), columns.pop(WEIGHT, None)
        rows = [
            {name: torch.tensor(own) for name, own in zip(columns, row, strict=True)}
            for row in zip(*columns.values(), strict=True)
        ]
        return cls(rows, targets, None if weights is None else torch.tensor(weights))

    def __len__(self) -> int:
        return len(self.rows)


def by_length(rows: Rows) -> list[int]:
    """The numbers of examples, the shortest one first."""
    return sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))


class Best(NamedTuple):
    """The best state of a task so far.

    Attributes:
        score: The larger, the better.
        step: After which step it was.
        values: Its parameters.
        answers: Its answers to the evaluation sets.
    """

    score: float
    step: int
    values: list[Tensor]
    answers: Answers


class Member:
    """A task while it trains: its examples, its optimizer and its log.

    Args:
        settings: Resolved settings.
        dataset: The data.
        stack: Gets the task's prompt and head.

    Attributes:
        adapter: The name of its adapter on the stack's model.
        answers: True labels and logits of each evaluation set.
        args: Its `TrainingArguments`.
        log: As `Trainer`'s.
        out_of_scope: Texts that belong to no label.
        refused: Why its training failed; empty: it did not.
        sizes: Its trained parameters, and these with the backbone's.
        truncated: Truncated texts in each set.

    Raises:
        PtuneError: The prompt leaves no positions for a text, or a setting is wrong.
    """

    def __init__(self, settings: TrainSettings, dataset: TaskData, stack: Stack) -> None:
        self.settings, self.dataset = settings, dataset
        data = learned(settings, dataset)
        self.args = training_arguments(settings, CHECKPOINTS, len(data.train))
        check_metric(self.args, dataset)
        self.adapter = stack.add(settings, dataset)
        train, evaluation, self.truncated = tokenized(stack.model, stack.tokenizer, data)
        collate = DataCollatorWithPadding(stack.tokenizer)
        start_at_labels(stack.model, dataset.labels, train, collate, settings)
        self.train = Examples.of(train)
        self.evaluation = {name: Examples.of(own) for name, own in evaluation.items()}
        others = tokenized_texts(stack.model, stack.tokenizer, dataset.out_of_scope)
        self.out_of_scope: Rows = () if others is None else Examples.of(others).rows
        self.truth = {name: own.targets.numpy() for name, own in self.evaluation.items()}
        groups = stack.model.parameter_groups(
            self.args.learning_rate,
            prompt_learning_rate=settings.prompt_learning_rate,
            weight_decay=self.args.weight_decay,
        )
        self.parameters = [p for group in groups for p in group["params"]]
        self.mean = [p.detach().clone() for p in self.parameters]
        own, frozen = (
            sum(p.numel() for p in some)
            for some in (self.parameters, stack.model.backbone.base_model.parameters())
        )
        self.sizes = own, own + frozen
        optimizer, options = Trainer.get_optimizer_cls_and_kwargs(self.args, stack.model)
        self.optimizer = optimizer(groups, **options)
        self.per_epoch = math.ceil(len(train) / settings.batch_size)
        steps = math.ceil(self.args.num_train_epochs * self.per_epoch - 1e-6)
        self.steps = self.args.max_steps if self.args.max_steps > 0 else steps
        warmup = self.args.get_warmup_steps(self.steps)
        kind = self.args.lr_scheduler_type
        self.schedule = transformers.get_scheduler(kind, self.optimizer, warmup, self.steps)
        self.random = np.random.default_rng(settings.seed)
        self.order: list[int] = []
        self.step, self.started = 0, time.perf_counter()
        self.log: list[dict[str, Any]] = []
        self.losses: list[float] = []  # since the last evaluation
        self.latest = deque[float](maxlen=max(STEADY, self.per_epoch))
        self.answers: Answers = {}
        self.best: Best | None = None
        self.refused = ""

    @property
    def seconds(self) -> float:
        """How long it has trained."""
        return time.perf_counter() - self.started

    @property
    def has_learned(self) -> bool:
        """Whether the training loss is so small that nothing changes any more."""
        is_full = len(self.latest) == self.latest.maxlen
        return is_full and float(np.mean(self.latest)) < LEARNED

    @property
    def has_ended(self) -> bool:
        """Whether there is nothing more to do."""
        return bool(self.refused) or self.step >= self.steps or self.has_learned

    @property
    def is_due(self) -> bool:
        """Whether to evaluate after this step."""
        by_steps = self.args.eval_strategy == "steps"
        every = int(self.args.eval_steps or self.steps) if by_steps else self.per_epoch
        return not self.refused and (self.has_ended or self.step % every == 0)

    def next_batch(self) -> list[int]:
        """The numbers of the examples of a step, the shortest one first."""
        if not self.order:
            self.order = self.random.permutation(len(self.train)).tolist()
        size = self.settings.batch_size
        batch, self.order = self.order[:size], self.order[size:]
        return [batch[i] for i in by_length([self.train.rows[i] for i in batch])]

    def loss(self, logits: Tensor, batch: list[int]) -> Tensor:
        """The mean loss of some examples."""
        device, weights = logits.device, self.train.weights
        weights = None if weights is None else weights[batch].to(device)
        targets = self.train.targets[batch].to(device)
        return self.dataset.labels.losses(logits, targets, weights).mean()

    def take_step(self, loss: float) -> None:
        """Change the prompt and the head by their gradients."""
        limit = self.args.max_grad_norm or math.inf
        norm = nn.utils.clip_grad_norm_(self.parameters, limit)
        self.step += 1
        if norm.isfinite():
            self.optimizer.step()
            self.schedule.step()
        else:
            self.refused = not_finite(self.step, self.optimizer)
        self.optimizer.zero_grad()
        self.losses.append(loss)
        self.latest.append(loss)
        for mean, parameter in zip(self.mean, self.parameters, strict=True):
            mean.lerp_(parameter.detach(), 1 / min(self.step, STEADY))
        if self.has_learned and self.step < self.steps:
            self._set(self.mean)

    def evaluated(self, logits: dict[str, np.ndarray]) -> None:
        """Take the logits of the evaluation sets after a step."""
        at = {"epoch": self.step / self.per_epoch, "step": self.step}
        loss = float(np.mean(self.losses))
        self.losses = []
        self.answers = {name: (self.truth[name], own) for name, own in logits.items()}
        found = all_scores(self.dataset, self.answers)
        scores = {f"eval_{name}": value for name, value in found.items()}
        self.log += [{"loss": loss, **at}, {**scores, **at}]
        if self.args.load_best_model_at_end:
            self._keep_best(scores)

    @torch.no_grad()
    def _keep_best(self, scores: dict[str, float]) -> None:
        metric = f"eval_{self.args.metric_for_best_model.removeprefix('eval_')}"
        score = scores[metric] if self.args.greater_is_better else -scores[metric]
        if self.best is None or score > self.best.score:
            values = [p.clone() for p in self.parameters]
            self.best = Best(score, self.step, values, self.answers)
        if self.has_ended:
            self.answers = self.best.answers
            self._set(self.best.values)

    @torch.no_grad()
    def _set(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)

    def save(self, folder: Path) -> None:
        """Write what `load` needs to continue from here."""
        state = {name: getattr(self, name) for name in _PLAIN}
        state |= {
            "examples": len(self.train),
            "values": [p.detach() for p in self.parameters],
            "mean": self.mean,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "random": self.random.bit_generator.state,
            "latest": list(self.latest),
        }
        if self.best is not None:
            score, step, values, answers = self.best
            logits = {name: torch.from_numpy(own) for name, (_, own) in answers.items()}
            state["best"] = score, step, values, logits
        content = io.BytesIO()  # a full disk is an `OSError` then, and no error of torch's
        torch.save(state, content)
        with staged(folder) as stage:
            (stage / STATE_NAME).write_bytes(content.getbuffer())

    def load(self, folder: Path) -> None:
        """Continue from what `save` wrote for the same data, if there is anything."""
        if not (file := folder / STATE_NAME).is_file():
            return
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except (RuntimeError, OSError, EOFError, pickle.UnpicklingError):
            logger.warning("%s is damaged, so its task starts again.", file)
            return
        if state["examples"] != len(self.train):
            return
        for name in _PLAIN:
            setattr(self, name, state[name])
        self._set(state["values"])
        self.mean = [v.to(self.parameters[0].device) for v in state["mean"]]
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.random.bit_generator.state = state["random"]
        self.latest.extend(state["latest"])
        if "best" in state:
            score, step, values, logits = state["best"]
            answers = {name: (self.truth[name], own.numpy()) for name, own in logits.items()}
            values = [v.to(self.parameters[0].device) for v in values]
            self.best = Best(score, step, values, answers)


class Stack:
    """A backbone with the prompts and heads of several tasks.

    Args:
        settings, dataset: Those of one of the tasks.
        tokenizer: The backbone's tokenizer.

    Attributes:
        model: Has an adapter for each task.

    Raises:
        PtuneError: The backbone has no readers, or its head cannot be chosen text by text.
    """

    def __init__(
        self, settings: TrainSettings, dataset: TaskData, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        self.tokenizer, self.settings = tokenizer, settings
        # Members bring heads of their own.
        self.model = new_model(replace(settings, head="linear"), dataset, tokenizer)
        self.model.to(default_device())
        self._language_model: PreTrainedModel | None = None
        host = self.model.host
        host.attach(HeadPerText(host.backbone, host.architecture.head_names, host.passes))
        # By number of labels and seed.
        self._starts: dict[tuple[int, int], tuple[dict[str, Tensor], Tensor]] = {}
        self._numbers = itertools.count()

    def add(self, settings: TrainSettings, dataset: TaskData) -> str:
        """Add the prompt and the head that a task would start with alone, and activate them.

        Returns:
            The name of the adapter.

        Raises:
            NoWords: The head cannot start as label words.
            PtuneError: The label words are wrong.
        """
        key = len(dataset.labels), settings.seed
        if key not in self._starts:
            self._starts[key] = _start(settings, dataset)
        start, random = self._starts[key]
        prompt = fitted_prompt(settings, dataset, self.tokenizer)
        host = self.model.host
        head = Head.of(start, dataset.labels, self.model.device)
        head = host.heads.widened(head, host.means_read(prompt.config))
        name = f"task-{next(self._numbers)}"
        torch.set_rng_state(random)
        self.model._put(name, prompt.config, head=head)
        self.model.set_adapter(name)
        self.model.state.reading = prompt.reading
        if settings.asks_words:
            try:
                dtype = self.model.get_base_model().dtype
                own = self._language_model or own_language_model(settings, dtype)
                self._language_model = own
                start_with_words(self.model, settings, dataset, self.tokenizer, own)
            except PtuneError:
                self.remove(name)
                raise
        return name

    def remove(self, adapter: str) -> None:
        """Remove a task's prompt and head."""
        self.model.set_adapter("default")
        self.model.delete_adapter(adapter)

    def logits(self, batches: Mapping[Member, Rows]) -> list[Tensor]:
        """The logits ``[examples, num_labels]`` of some examples of each task."""
        n, longest = len(batches), max(map(len, batches.values()))
        # Tasks with fewer examples repeat them.
        rows = [some[i % len(some)] for i in range(longest) for some in batches.values()]
        prompts: list[Prompt] = []
        heads: list[Mapping[str, Tensor]] = []
        for member in batches:
            own = self.model.adapters[member.adapter]
            embeddings = self.model.prompt_encoders[member.adapter]()
            prompts.append(Prompt.of(own.config, own.mechanism, embeddings))
            heads.append(own.head.parameters)
        host = self.model.host
        batch = {
            column: pad_sequence([row[column] for row in rows], batch_first=True)
            for column in rows[0]
        }
        given = Given(**{column: t.to(self.model.device) for column, t in batch.items()})
        texts = host.read_texts(given)
        output = host.run(prompts, texts, list(range(n)) * longest, heads=heads)
        found = output.logits.float().unflatten(0, (longest, n))  # [longest, n, most labels]
        return [
            found[: len(some), i, : len(member.dataset.labels)]
            for i, (member, some) in enumerate(batches.items())
        ]

    def train(
        self, members: list[Member], keep: Callable[[Member], None] | None = None
    ) -> Iterator[Member]:
        """Train tasks together, and yield each as soon as it has ended.

        Args:
            members: The tasks.
            keep: Called with a task after each evaluation but the last.
        """
        while members:
            self._take_step(members)
            due = [member for member in members if member.is_due]
            self.evaluate(due)
            for member in due:
                if keep is not None and not member.has_ended:
                    keep(member)
            yield from (member for member in members if member.has_ended)
            members = [member for member in members if not member.has_ended]

    def _take_step(self, members: list[Member]) -> None:
        """Take a step of each task."""
        self.model.prompt_encoders.requires_grad_(True)  # those of all tasks, not of one
        self.model.train()
        batches = {member: member.next_batch() for member in members}
        losses = dict.fromkeys(members, 0.0)
        for start in range(0, max(map(len, batches.values())), PART):
            now = {m: batch[start : start + PART] for m, batch in batches.items()}
            now = {m: part for m, part in now.items() if part}
            logits = self.logits({m: [m.train.rows[i] for i in part] for m, part in now.items()})
            shares = torch.stack(
                [
                    m.loss(own, part) * (len(part) / len(batches[m]))
                    for (m, part), own in zip(now.items(), logits, strict=True)
                ]
            )
            shares.sum().backward()
            for member, share in zip(now, shares.tolist(), strict=True):
                losses[member] += share
        for member, loss in losses.items():
            member.take_step(loss)

    def evaluate(self, members: list[Member]) -> None:
        """Evaluate tasks on all of their evaluation sets, together."""
        rows = {m: [row for own in m.evaluation.values() for row in own.rows] for m in members}
        found = self.predict({member: own for member, own in rows.items() if own})
        for member in members:
            sizes = [len(own) for own in member.evaluation.values()]
            parts = found[member].split(sizes) if member in found else ()
            names = member.evaluation
            member.evaluated({n: own.numpy() for n, own in zip(names, parts, strict=True)})

    @torch.no_grad()
    def predict(self, rows: Mapping[Member, Rows]) -> dict[Member, Tensor]:
        """The logits ``[examples, num_labels]`` of any number of examples of each task."""
        self.model.eval()
        orders = {member: by_length(own) for member, own in rows.items()}
        found: dict[Member, list[Tensor]] = {member: [] for member in rows}
        size = 2 * PART
        for start in range(0, max(map(len, orders.values()), default=0), size):
            now = {
                member: [rows[member][i] for i in order[start : start + size]]
                for member, order in orders.items()
                if len(order) > start
            }
            for member, logits in zip(now, self.logits(now), strict=True):
                found[member].append(logits.cpu())
        return {
            member: torch.cat(parts)[torch.tensor(orders[member]).argsort()]
            for member, parts in found.items()
        }


def _start(settings: TrainSettings, dataset: TaskData) -> tuple[dict[str, Tensor], Tensor]:
    """A new head, and the state of torch's random generator after that."""
    transformers.set_seed(settings.seed)
    backbone = own_backbone(settings, dataset.labels)
    state = torch.get_rng_state()
    named = {name: backbone.get_parameter(name) for name in names_of_head(backbone)}
    return {name: p.detach() for name, p in named.items()}, state
