"""The 🤗 `Trainer` of a run: its arguments, callbacks, batches and metrics.

`SharingTrainer` differs from `Trainer` only if several processes train together. `PromptModel`
also trains with an unmodified `Trainer`.
"""

from __future__ import annotations

import logging
import math
import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from numbers import Real
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import numpy as np
import torch
import transformers
from datasets import Dataset
from torch import distributed
from torch.utils.data import DataLoader, Sampler
from transformers import (
    DataCollatorWithPadding,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from ptune import compat
from ptune.data.dataset import LABEL, PAIR, TEXT, TEXT_NUMBER, WEIGHT, TaskData, quiet
from ptune.errors import PtuneError, first_line
from ptune.labels import Labels
from ptune.model import PromptModel
from ptune.texts import Reading, pooled
from ptune.texts.tokens import spelled_share, unknown_share
from ptune.training.defaults import (
    HEAD_RATE,
    SCHEDULED,
    are_many,
    steps_per_epoch,
    with_schedule,
)
from ptune.training.features import (
    LABELS,
    MOST_TEXTS,
    SOME_TEXTS,
    Features,
    HeadInput,
    last_layer,
)
from ptune.training.fitting import fit_head, scale_and_shift, start_at_shares
from ptune.training.order import EpochOrder, saved_order
from ptune.training.pairs import TrainingInPairs
from ptune.training.settings import TrainSettings, is_first
from ptune.training.steps import ScaledSteps, prompt_scales

logger = logging.getLogger(__name__)
# From this share on, tokens that the model does not know are pointed out.
MOST_UNKNOWN = 0.2
# The same for words that it reads letter by letter.
MOST_SPELLED = 0.5

compat.warn_if_untested(training=True)

# The most tokens that a device trains on at once if texts are read in windows.
MOST_TOKENS = 16384


def training_arguments(
    settings: TrainSettings, output_dir: str | Path, examples: int
) -> TrainingArguments:
    """Translate settings into 🤗 `TrainingArguments`.

    Args:
        settings: The settings of the run.
        output_dir: Folder for checkpoints.
        examples: Number of training examples.

    Raises:
        PtuneError: `TrainingArguments` refuses a value, or the processes cannot see each other.
    """
    _check_numbers(settings.training_arguments)
    settings = with_schedule(settings, examples)
    assert settings.epochs is not None
    steps = settings.training_arguments.get("max_steps", -1)
    if steps < 1:
        steps = math.ceil(settings.epochs * steps_per_epoch(settings, examples) - 1e-6)
    chosen: dict[str, Any] = {
        "num_train_epochs": settings.epochs,
        "per_device_train_batch_size": settings.batch_size,
        "per_device_eval_batch_size": 2 * settings.batch_size,
        "learning_rate": HEAD_RATE if settings.learning_rate is None else settings.learning_rate,
        "weight_decay": 0.01,
        # The first step of a warm-up has the rate 0, so a single step has none.
        "warmup_steps": min(math.ceil(0.06 * steps), steps - 1),
        **{f"{what}_strategy": "epoch" for what in SCHEDULED},
        "save_total_limit": 2,
        "train_sampling_strategy": "group_by_length",
        "dataloader_pin_memory": torch.cuda.is_available(),
        # Accelerate needs this to recognise several processes on CPUs.
        "use_cpu": not torch.accelerator.is_available(),
        "ddp_find_unused_parameters": False,  # every trained parameter has a gradient
        "ddp_broadcast_buffers": False,  # all buffers belong to the frozen backbone
        "report_to": "none",
        "disable_tqdm": True,
        "seed": settings.seed,
    }
    try:
        args = TrainingArguments(
            output_dir=str(output_dir), **{**chosen, **settings.training_arguments}
        )
    except (TypeError, ValueError) as error:
        raise PtuneError(f"TrainingArguments refused these settings: {error}") from error
    if args.neftune_noise_alpha is not None:
        raise PtuneError(
            "neftune_noise_alpha adds noise to token embeddings that are trained, and here they "
            "are frozen. Leave it out."
        )
    if args.world_size != settings.processes:
        raise PtuneError(
            f"{settings.processes} processes were started together, but {args.world_size} found "
            "each other. Start them with torchrun or `accelerate launch`."
        )
    return args


def _check_numbers(given: dict[str, Any]) -> None:
    """`TrainingArguments` takes words for numbers, which fail after the first step."""
    hints = get_type_hints(TrainingArguments)
    for name, value in given.items():
        hint = hints.get(name, Any)
        kinds = set(get_args(hint) or [hint])
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        allowed = value is None and NoneType in kinds
        if kinds <= {int, float, NoneType} and not (is_number or allowed):
            raise PtuneError(f"{name} is {value!r}; expected a number.")


def check_metric(args: TrainingArguments, dataset: TaskData) -> None:
    """Refuse a metric for the best checkpoint that evaluation does not have.

    Raises:
        PtuneError: Evaluation gives no such score.
    """
    names = [
        "_".join(filter(None, [evaluated, name]))
        for evaluated in dataset.evaluation
        for name in ("loss", *dataset.metrics)
    ]
    asked = (args.metric_for_best_model or "").removeprefix("eval_")
    if asked and names and asked not in names:
        raise PtuneError(f"metric_for_best_model is {asked!r}; expected one of {', '.join(names)}.")


class NotFinite(TrainerCallback):
    """Stops at the first step with a NaN or infinite gradient, before it reaches the weights."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check the gradients of all trained parameters."""
        gradients = [p.grad for p in kwargs["model"].parameters() if p.grad is not None]
        if gradients and not torch.stack([g.isfinite().all() for g in gradients]).all():
            raise PtuneError(not_finite(state.global_step + 1, kwargs["optimizer"]))


def not_finite(step: int, optimizer: Any) -> str:
    """What to do about a step with a NaN or infinite gradient."""
    rate = max(group.get("initial_lr", group["lr"]) for group in optimizer.param_groups)
    return (
        f"The loss became NaN or infinite in step {step} (learning rate {rate:g}). The learning "
        "rate is probably too high: try a tenth of --learning-rate and --prompt-learning-rate, or "
        "--dtype float32 if the backbone runs in float16."
    )


class StopAndSave(TrainerCallback):
    """On Ctrl-C: finish the step, write a checkpoint and stop. A second Ctrl-C stops at once.

    If several processes train together, all stop after the same step.
    """

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle SIGINT within the block. Only the main thread can; others do nothing here."""
        try:
            before = signal.signal(signal.SIGINT, self._ask)
        except ValueError:
            yield
            return
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _ask(self, signum: int, frame: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        logger.warning("Stopping after a last checkpoint. Press Ctrl-C again to stop at once.")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Have `Trainer` save a checkpoint and stop, if asked to."""
        if args.world_size > 1:
            asked = torch.tensor(float(self.asked), device=args.device)
            distributed.all_reduce(asked, distributed.ReduceOp.MAX)
            self.asked = bool(asked)
        if self.asked:
            control.should_save = control.should_training_stop = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave out the work at the end of an epoch that has not ended: the run continues in it."""
        if self.asked and state.epoch % 1:
            control.should_log = control.should_evaluate = control.should_save = False


class Shares(Sampler[list[int]]):
    """The batches of one process: its share of each step's examples.

    A step takes the same examples, in the same order, as it would in a single process. Each example
    goes to one process, except in a step with fewer examples than processes: there every process
    takes all of them.

    Args:
        order: Yields the numbers of the examples.
        batch_size: Batch size of one process. The batches of the last step may be smaller.
        accumulated: Batches per step.
        process: Number of this process.
        processes: Number of processes.
        drop_last: Leave out the examples at the end that do not fill a batch in every process.
    """

    def __init__(
        self,
        order: Sampler[int],
        *,
        batch_size: int,
        accumulated: int,
        process: int,
        processes: int,
        drop_last: bool = False,
    ) -> None:
        self.order, self.process, self.processes = order, process, processes
        self.together = batch_size * processes
        self.step = self.together * accumulated
        self.examples = len(order) - (len(order) % self.together if drop_last else 0)  # type: ignore[arg-type]

    def _batches(self, examples: int) -> int:
        """Batches per process in a step with N examples: equal in every process, none empty."""
        return max(1, min(math.ceil(examples / self.together), examples // self.processes))

    def __len__(self) -> int:
        steps = range(0, self.examples, self.step)
        return sum(self._batches(min(self.step, self.examples - first)) for first in steps)

    def __iter__(self) -> Iterator[list[int]]:
        # Dropout has advanced the random generators of the processes differently.
        compat.synchronize_torch_generators()
        order = list(self.order)[: self.examples]
        for first in range(0, len(order), self.step):
            step = order[first : first + self.step]
            own = step[self.process :: self.processes] if len(step) >= self.processes else step
            n = self._batches(len(step))
            for i in range(n):
                yield own[len(own) * i // n : len(own) * (i + 1) // n]


class SharingTrainer(compat.TrainerOverrides, Trainer):
    """A `Trainer` whose processes together do what one process does with a larger batch.

    `Trainer` groups texts by length in each process separately, and repeats examples from the start
    to fill the last batches. A checkpoint that cannot be written is reported with what to do.

    Attributes:
        labels: Given if examples have weights, unknown labels or windows, which no Transformers
            loss knows.
        pairs: Given if the prompt learns from pairs of texts.
        start: What the head read of training texts before training, if it was fitted to that.
    """

    labels: Labels | None = None
    start: Features | None = None
    pairs: TrainingInPairs | None = None
    _resumed: Path | None = None
    _order: EpochOrder | None = None

    def train(self, resume_from_checkpoint: Any = None, **how: Any) -> Any:
        """Train as `Trainer` does; an epoch that was interrupted keeps its order of examples."""
        self._resumed = Path(resume_from_checkpoint) if resume_from_checkpoint else None
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **how)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The loss of a batch: of its pairs, or with weights, unknown labels and windows."""
        if self.pairs is not None and model.training:
            return self.pairs.loss(inputs)
        if self.labels is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        weights, targets = inputs.pop(WEIGHT, None), inputs.pop("labels")
        text_of = inputs.pop(TEXT_NUMBER, None)
        output = model(**inputs)
        if text_of is not None:
            own: Any = self.model  # `model` may be wrapped
            means, weighted = self.labels.is_regression, own.state.reading.window_weights
            output.logits = pooled(output.logits.float(), text_of.tolist(), means, weighted)
        losses = self.labels.losses(output.logits.float(), targets, weights)
        loss = losses.sum() / (losses.numel() if num_items_in_batch is None else num_items_in_batch)
        return (loss, output) if return_outputs else loss

    def get_train_dataloader(self) -> DataLoader:
        """The batches of this process."""
        args, dataset = self.args, self.train_dataset
        if args.train_sampling_strategy != "group_by_length":
            return super().get_train_dataloader()
        again = saved_order(self._resumed) if self._resumed else None
        if args.world_size == 1:
            loader = super().get_train_dataloader()
            batches: Any = loader.batch_sampler
            batches.sampler = self._order = EpochOrder(batches.sampler, again)
            return loader
        size, accumulated = args.train_batch_size, args.gradient_accumulation_steps
        together = size * accumulated * args.world_size
        self._order = EpochOrder(compat.length_grouped_sampler(together, dataset), again)
        shares = Shares(
            self._order,
            batch_size=size,
            accumulated=accumulated,
            process=args.process_index,
            processes=args.world_size,
            drop_last=args.dataloader_drop_last,
        )
        return DataLoader(
            dataset,
            batch_sampler=shares,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
        )

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Save the order of the epoch, too, and say what to do if a checkpoint cannot be written.

        Raises:
            PtuneError: It cannot, such as on a full disk.
        """
        try:
            # First, because a checkpoint counts as complete with the last file of `Trainer`.
            if self._order is not None and (self.state.epoch or 0) % 1 and is_first():
                step = self.state.global_step
                self._order.save(Path(self.args.output_dir) / f"checkpoint-{step}")
            yield
        except PtuneError:
            raise
        except Exception as error:  # Each library raises its own if a file cannot be written.
            reason = getattr(error, "strerror", None) or f"{first_line(error)}; is the disk full?"
            raise PtuneError(
                f"A checkpoint in {Path(self.args.output_dir).parent} could not be written "
                f"({reason}). Make room and continue with --resume, or name another folder."
            ) from error

    @property
    def evaluation_sets(self) -> dict[str, Dataset]:
        """Evaluation sets by name. A single one has an empty name."""
        sets: Any = self.eval_dataset
        return sets if isinstance(sets, dict) else {} if sets is None else {"": sets}


def tokenize(
    tokenizer: transformers.PreTrainedTokenizerBase,
    dataset: Dataset,
    reading: Reading,
) -> tuple[Dataset, int]:
    """Tokenize a dataset with the columns of `ptune.data.dataset`.

    Args:
        tokenizer: The backbone's tokenizer.
        dataset: Texts and labels.
        reading: How texts are read. If in windows, the tokenizer's columns have a list
            of windows for each text; see `WindowCollator`.

    Returns:
        The dataset with the tokenizer's columns and `labels`, and the number of truncated texts.
    """
    columns = [c for c in (TEXT, PAIR) if c in dataset.column_names]
    truncated = 0

    def encode_batch(batch: dict[str, list[Any]]) -> dict[str, Any]:
        nonlocal truncated
        texts = [batch[c] for c in columns]
        rows = reading.rows(tokenizer, texts)
        truncated += len(rows.cut)
        if not reading.in_windows:
            return rows.encoded
        found: dict[str, Any] = {name: [[] for _ in texts[0]] for name in rows.encoded}
        for name, values in rows.encoded.items():
            for i, value in zip(rows.text_of, values, strict=True):
                found[name][i].append(value)
        return found

    with quiet():
        encoded = dataset.map(
            encode_batch,
            batched=True,
            remove_columns=columns,
            load_from_cache_file=False,
            new_fingerprint=uuid.uuid4().hex,  # the hash of a tokenizer takes a second
        )
    if LABEL in encoded.column_names:
        encoded = encoded.rename_column(LABEL, "labels")
    return encoded, truncated


class WindowCollator:
    """Makes a batch of texts in windows: a row for each window, and the number of its text.

    Args:
        tokenizer: The backbone's tokenizer.
    """

    def __init__(self, tokenizer: transformers.PreTrainedTokenizerBase) -> None:
        self.pad = DataCollatorWithPadding(tokenizer)

    def __call__(self, texts: list[dict[str, Any]]) -> Any:
        """The batch of some rows of a dataset that `tokenize` returned."""
        given = [name for name in (LABELS, WEIGHT) if name in texts[0]]
        names = [name for name in texts[0] if name not in given]
        rows = [
            dict(zip(names, window, strict=True))
            for text in texts
            for window in zip(*(text[name] for name in names), strict=True)
        ]
        batch = self.pad(rows)
        for name in given:
            batch[name] = torch.tensor([text[name] for text in texts])
        counts = torch.tensor([len(text["input_ids"]) for text in texts])
        batch[TEXT_NUMBER] = torch.arange(len(texts)).repeat_interleave(counts)
        return batch


def limit_tokens(args: TrainingArguments, train: Dataset) -> None:
    """Divide the batches of a step where texts have many windows. The step stays the same."""
    size = args.per_device_train_batch_size
    longest = max(sum(map(len, windows)) for windows in train["input_ids"])
    parts = next(
        n
        for n in range(1, size + 1)
        if size % n == 0 and (size // n * longest <= MOST_TOKENS or n == size)
    )
    args.per_device_train_batch_size //= parts
    args.per_device_eval_batch_size = max(1, args.per_device_eval_batch_size // parts)
    args.gradient_accumulation_steps *= parts


def metric_function(dataset: TaskData) -> Callable[[Any], dict[str, float]]:
    """The `compute_metrics` function for `Trainer`."""

    def compute(prediction: Any) -> dict[str, float]:
        return scores_of(dataset, *answers_of(prediction))

    return compute


def scores_of(dataset: TaskData, targets: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """The loss and the metrics of a dataset, for logits."""
    # `Trainer`'s own loss counts the examples that fill up the last batch of each process.
    known = torch.tensor(targets)
    losses = dataset.labels.losses(torch.tensor(logits), known)
    loss = losses.sum() / (losses.numel() - known.isnan().sum())
    predicted = dataset.labels.decide(logits)
    return {"loss": float(loss), **dataset.labels.scores(dataset.metrics, targets, predicted)}


def answers_of(collected: Any) -> tuple[np.ndarray, np.ndarray]:
    """The targets and the logits of the texts that `Trainer` has collected.

    Args:
        collected: `Trainer`'s predictions. It may have put the texts into another order.
    """
    outputs = collected.predictions
    return np.asarray(collected.label_ids), outputs[0] if isinstance(outputs, tuple) else outputs


def build_trainer(
    model: PromptModel,
    tokenizer: transformers.PreTrainedTokenizerBase,
    dataset: TaskData,
    args: TrainingArguments,
    settings: TrainSettings,
    *,
    callbacks: list[TrainerCallback],
    show: Callable[[Dataset, dict[str, int]], None] | None = None,
) -> tuple[SharingTrainer, dict[str, int]]:
    """Tokenize the data, build a `Trainer` for a prompt and start the head.

    Args:
        model, tokenizer, dataset: What is trained, on which data.
        args, settings: How.
        callbacks: For the `Trainer`.
        show: Gets the tokenized training set and the number of truncated texts in each set, before
            texts are read to start the head.

    Returns:
        The `Trainer`, and the number of truncated texts in each set.

    Raises:
        PtuneError: The prompt leaves no positions for a text, or `Trainer` refuses a setting.
    """
    check_metric(args, dataset)
    train, evaluation, truncated = tokenized(model, tokenizer, dataset)
    groups = model.parameter_groups(
        args.learning_rate,
        prompt_learning_rate=settings.prompt_learning_rate,
        weight_decay=args.weight_decay,
    )
    windows = model.state.reading.in_windows
    if windows:
        limit_tokens(args, train)
    needs_own_loss = windows or WEIGHT in train.column_names or dataset.has_unknown
    # `Trainer` removes columns that the model does not take.
    args.remove_unused_columns = not needs_own_loss
    try:
        optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
        trainer = SharingTrainer(
            model=model,
            args=args,
            train_dataset=train,
            eval_dataset=evaluation[""] if list(evaluation) == [""] else (evaluation or None),
            processing_class=tokenizer,
            data_collator=(WindowCollator if windows else DataCollatorWithPadding)(tokenizer),
            compute_metrics=metric_function(dataset),
            optimizers=(optimizer_class(groups, **options), None),
            callbacks=[NotFinite(), *callbacks],
        )
    except (ValueError, RuntimeError, ImportError) as error:
        raise PtuneError(f"Trainer refused these settings: {error}") from error
    trainer.labels = dataset.labels if needs_own_loss else None
    if show:
        show(train, truncated)
    scale_steps_and_fit_head(trainer, dataset.labels, settings)
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    return trainer, truncated


def scale_steps_and_fit_head(
    trainer: SharingTrainer, labels: Labels, settings: TrainSettings
) -> None:
    """Make steps relative to the scale of what they change, and fit the head if `features`.

    A head that a checkpoint brought stays as it is.
    """
    model: Any = trainer.model
    train, fits = trainer.train_dataset, settings.head == "features"
    features = start_at_labels(model, labels, train, trainer.data_collator, settings)
    if settings.prompt == "reader" and not fits:
        return
    features = features or Features.of(
        model, train, trainer.data_collator, settings.seed, MOST_TEXTS if fits else SOME_TEXTS
    )
    own = model.host.heads.original.parameters
    if features is not None and fits and not compat.was_loaded(own[features.name]):
        weights = fit_head(features, labels, train)
        model.state.reading = replace(model.state.reading, window_weights=weights)
        trainer.start = replace(features, windows=())
        if settings.loss == "pairs":
            learn_in_pairs(trainer, labels, settings)
    if settings.prompt == "reader":
        return
    assert trainer.optimizer is not None
    ScaledSteps(trainer.optimizer, prompt_scales(model), features)


def start_at_labels(
    model: PromptModel, labels: Labels, train: Dataset, collate: Any, settings: TrainSettings
) -> Features | None:
    """Start a head that is not fitted to features at what the training labels say.

    A linear head starts at their shares. One of label words is scaled and shifted, if there are
    many examples of each label: fewer say less than the language model.

    Args:
        model: The model. Its head changes in place.
        labels: The labels.
        train: The tokenised training set.
        collate: Makes a batch of examples.
        settings: Those of the run.

    Returns:
        The features, if they were read.
    """
    if settings.head == "linear":
        start_at_shares(model, labels, train)
    is_fitted = settings.head == "words" and are_many(len(train), len(labels))
    if not is_fitted or model.state.reading.in_windows:
        return None
    features = Features.of(model, train, collate, settings.seed, SOME_TEXTS)
    if features is not None:
        scale_and_shift(features, labels, train)
    return features


def learn_in_pairs(trainer: SharingTrainer, labels: Labels, settings: TrainSettings) -> None:
    """Have the prompt learn from pairs of texts, and the head be fitted to what it gives."""
    model: Any = trainer.model
    train, collate = trainer.train_dataset, trainer.data_collator
    layer = last_layer(model)
    assert layer is not None, "its features were read"

    def fit() -> None:
        if found := Features.of(model, train, collate, settings.seed):
            fit_head(found, labels, train)

    trainer.pairs = TrainingInPairs(HeadInput(model, *layer), fit)
    trainer.add_callback(trainer.pairs)


def tokenized(
    model: PromptModel, tokenizer: transformers.PreTrainedTokenizerBase, dataset: TaskData
) -> tuple[Dataset, dict[str, Dataset], dict[str, int]]:
    """Training set, evaluation sets, and the number of truncated texts in each.

    Raises:
        PtuneError: The prompt leaves no positions for a text.
    """
    reading = model.reading(tokenizer)
    limit = reading.max_text_tokens
    special = tokenizer.num_special_tokens_to_add(pair=dataset.pairs)
    if limit is not None and limit <= special:
        raise PtuneError(
            f"{model.prompt_config.num_virtual_tokens} virtual tokens do not fit: of "
            f"{model.architecture.max_positions} positions they leave {limit} for a text, and its "
            f"special tokens alone take {special}. Use a smaller num_virtual_tokens or a larger "
            "max_length."
        )
    train, cut = tokenize(tokenizer, dataset.train, reading)
    truncated = {"train": cut}
    evaluation = {}
    for name, examples in dataset.evaluation.items():
        evaluation[name], cut = tokenize(tokenizer, examples, reading)
        truncated[name or "eval"] = cut
    for name, cut in truncated.items():
        if cut:
            logger.warning("%d texts of %s were cut to %s tokens to fit.", cut, name, limit)
    share = unknown_share(tokenizer, train[: min(len(train), 1000)]["input_ids"])
    if share >= MOST_UNKNOWN:
        logger.warning(
            "The model does not know %.0f%% of the tokens of the training texts, and reads them as "
            "one and the same: their script or emoji are not in its vocabulary. Choose a model for "
            "these texts (--model).",
            100 * share,
        )
    elif (share := spelled_share(tokenizer, dataset.train[:200][TEXT])) >= MOST_SPELLED:
        logger.warning(
            "The model reads %.0f%% of the words of the training texts letter by letter: words of "
            "their script or language are not in its vocabulary. Choose a model for these texts "
            "(--model).",
            100 * share,
        )
    return train, evaluation, truncated
