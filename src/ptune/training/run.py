"""Training with 🤗 `Trainer`.

`train_run` is `ptune train`: settings in, a run folder out. The parts it is made of serve whoever
brings their own `Trainer`, unmodified. `torchrun` and `accelerate launch` start it in several
processes, each of which runs all of this; what is one's alone (files, questions) is the first's.
"""

from __future__ import annotations

import logging
import math
import os
import platform
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset
from torch import distributed
from torch.nn import functional
from torch.utils.data import DataLoader, Sampler
from transformers import (
    DataCollatorWithPadding,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from ptune import __version__, compat
from ptune import labels as metrics
from ptune.adapters.adapter import save
from ptune.backbones.cpu import forget_shapes
from ptune.backbones.loading import (
    encode,
    is_mean_pooled,
    load_backbone,
    load_tokenizer,
    names_of_head,
)
from ptune.data import dataset as data
from ptune.data.dataset import Columns, Corpus
from ptune.errors import PtuneError
from ptune.files import (
    CONFUSION_NAME,
    CURVE_NAME,
    METRICS_NAME,
    SEEDS_NAME,
    SETTINGS_NAME,
    read_json,
    staged,
    write_json,
)
from ptune.model import PromptModel
from ptune.prompts.config import PromptEncoderConfig
from ptune.training import report

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"

# Small data sets want steps, not epochs: at least so many. However long a run is, it is evaluated
# about as often as it would be in EPOCHS epochs.
MIN_STEPS = 200
EPOCHS = 8


def processes() -> int:
    """How many processes train together, as `torchrun` and `accelerate launch` say."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this is the process that writes files, of those that train together."""
    return os.environ.get("RANK", "0") == "0"


@dataclass(frozen=True)
class Defaults:
    """What suits a kind of prompt; measured on MRPC and the demo's mail (docs/which.md)."""

    learning_rate: float
    prompt_learning_rate: float
    prompt_init: str
    prompt_init_scale: float
    pooling_of_pairs: str  # of a sentence encoder; it reads the mean over a single text
    zero_head: bool  # whether the layer that gives the logits starts at zero


DEFAULTS = {
    "input": Defaults(5e-3, 5e-3, "vocab", 1.0, "prompt", zero_head=True),
    "deep": Defaults(5e-3, 6e-2, "random", 0.5, "mean", zero_head=False),
}


@dataclass
class TrainSettings:
    """Everything that decides a run; written to `settings.json` and enough to repeat it.

    Attributes:
        model: A backbone: short name, Hub id or folder.
        revision: Its revision on the Hub.
        task: A GLUE task; or
        train_file, eval_file: the user's own files.
        data_dir: Where GLUE's original TSV files are; `None`: the Hub.
        text_column, text_pair_column, label_column: `None`: found by name.
        problem_type: `None`: told from the labels.
        label_separator: Between several labels in one string.
        examples_per_label: Train on so many examples of each label only; `None`: on all.
        prompt: `input`: virtual tokens are read with the text; `deep`: they are in every layer.
        num_virtual_tokens: Length of the prompt, in tokens.
        encoder: `MLP`, `LSTM` or `NONE`.
        encoder_hidden_size: Width of the prompt encoder.
        placement: `after_first`, or `prefix` as in the reference.
        pooling: What the head reads: `family`, the `mean` over the text or over the `prompt`, or
            `auto`: of a sentence encoder the mean over the text, but for pairs with an input
            prompt that over the prompt; else what its family reads.
        prompt_init: `vocab`, `text` or `random`; `None`: what suits the kind of prompt.
        prompt_init_text: What the prompt starts as, in words: what is asked about a text.
            `None`: an input prompt starts as the question of its GLUE task.
        prompt_init_scale: By what the initial vectors are multiplied; likewise.
        backbone_dropout: Train with the frozen backbone's dropout.
        learning_rate: Of the head; `None`: what suits the kind of prompt.
        prompt_learning_rate: Of the prompt; likewise.
        epochs: Passes over the data; `None`: 8, and at least 200 steps.
        batch_size: Examples a step, of each process.
        max_length: Longest text in tokens, without the prompt; `None`: what the backbone allows.
        dtype: Of the frozen backbone.
        seed: Of everything random.
        processes: How many train together.
        training_arguments: Any other field of 🤗 `TrainingArguments`.
    """

    model: str = "minilm"
    revision: str | None = None
    task: str | None = None
    data_dir: str | None = None
    train_file: str | None = None
    eval_file: str | None = None
    text_column: str | None = None
    text_pair_column: str | None = None
    label_column: str | None = None
    problem_type: str | None = None
    label_separator: str = "|"
    examples_per_label: int | None = None
    prompt: str = "deep"
    num_virtual_tokens: int = 20
    encoder: str = "NONE"
    encoder_hidden_size: int = 128
    placement: str = "after_first"
    pooling: str = "auto"
    prompt_init: str | None = None
    prompt_init_text: str | None = None
    prompt_init_scale: float | None = None
    backbone_dropout: bool = False
    learning_rate: float | None = None
    prompt_learning_rate: float | None = None
    epochs: float | None = None
    batch_size: int = 32
    max_length: int | None = None
    dtype: str = "auto"
    seed: int = 0
    processes: int = field(default_factory=processes)
    training_arguments: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        least_of = {"seed": 0} | dict.fromkeys(
            ("batch_size", "max_length", "num_virtual_tokens", "examples_per_label"), 1
        )
        for name, least in least_of.items():
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < least):
                wanted = f"a whole number of at least {least}"
                raise PtuneError(f"{name} is {value!r}; it must be {wanted}.")
        if self.prompt not in DEFAULTS:
            raise PtuneError(f"prompt is {self.prompt!r}; it must be 'input' or 'deep'.")
        for name in ("learning_rate", "prompt_learning_rate", "epochs"):
            value = getattr(self, name)
            least_rate = 0.0 if name != "epochs" else 1e-9
            if value is not None and not (math.isfinite(value) and value >= least_rate):
                wanted = "a number above 0" if name == "epochs" else "a number of at least 0"
                raise PtuneError(f"{name} is {value!r}; it must be {wanted}.")

    @property
    def rates(self) -> tuple[float, float]:
        """Learning rates of head and prompt."""
        suits, head, prompt = DEFAULTS[self.prompt], self.learning_rate, self.prompt_learning_rate
        return (
            suits.learning_rate if head is None else head,
            suits.prompt_learning_rate if prompt is None else prompt,
        )

    def prompt_config(
        self, question: str | None = None, *, pairs: bool = False
    ) -> PromptEncoderConfig:
        """The prompt that these settings describe.

        Args:
            question: What is asked about a text, in words, where the data say it.
            pairs: Whether texts come in pairs.
        """
        start, text = DEFAULTS[self.prompt], self.prompt_init_text
        asked_for = self.prompt_init or ("text" if text else None)
        scale = self.prompt_init_scale
        if scale is None:  # a start that was asked for is taken as it is
            scale = start.prompt_init_scale if asked_for is None else 1.0
        init = asked_for or start.prompt_init
        if init == "text" or (asked_for is None and init == "vocab"):
            text = text or question
            init = "text" if text else init
        return PromptEncoderConfig(
            depth=self.prompt,  # type: ignore[arg-type]
            num_virtual_tokens=self.num_virtual_tokens,
            encoder_reparameterization_type=self.encoder,  # type: ignore[arg-type]
            encoder_hidden_size=self.encoder_hidden_size,
            placement=self.placement,  # type: ignore[arg-type]
            pooling=self._pooling(pairs=pairs),
            prompt_init=init,  # type: ignore[arg-type]
            prompt_init_text=text,
            prompt_init_scale=scale,
            backbone_dropout=self.backbone_dropout,
            revision=self.revision,
        )

    def _pooling(self, *, pairs: bool) -> Any:
        if self.pooling != "auto":
            return self.pooling
        if not is_mean_pooled(self.model, revision=self.revision):
            return "family"
        return DEFAULTS[self.prompt].pooling_of_pairs if pairs else "mean"

    def columns(self) -> Columns:
        """Which columns of the user's files to read."""
        return Columns(self.text_column, self.text_pair_column, self.label_column)

    def corpus(self) -> Corpus:
        """The examples that these settings name.

        Raises:
            PtuneError: There are none, or too much is named.
        """
        corpus = self._whole_corpus()
        if self.examples_per_label is not None:
            corpus = data.few_examples(corpus, self.examples_per_label, self.seed)
        return corpus

    def _whole_corpus(self) -> Corpus:
        if (self.task is None) == (self.train_file is None):
            raise PtuneError(
                "Name what to learn: either a GLUE task (--task mrpc) or a file "
                "(--train-file a.csv)" + ("." if self.task is None else ", not both.")
            )
        if self.task is not None:
            corpus = data.load_glue(self.task, self.data_dir)
            if corpus.train is None:
                raise PtuneError(f"GLUE's {self.task} has no training data: train on mnli.")
            return corpus
        assert self.train_file is not None
        return data.load_files(
            self.train_file,
            self.eval_file,
            columns=self.columns(),
            problem_type=self.problem_type,
            label_separator=self.label_separator,
            seed=self.seed,
        )

    def arguments(self, output_dir: Path, examples: int) -> TrainingArguments:
        """These settings as 🤗 `TrainingArguments`.

        Args:
            output_dir: Where checkpoints go.
            examples: How many there are to train on.
        """
        accumulated = self.training_arguments.get("gradient_accumulation_steps", 1)
        examples_a_step = self.batch_size * accumulated * self.processes
        steps_an_epoch = math.ceil(examples / examples_a_step)
        steps = math.ceil((self.epochs or EPOCHS) * steps_an_epoch)
        few = self.epochs is None and steps < MIN_STEPS
        if few:
            steps = MIN_STEPS
        every: dict[str, Any] = {}
        for what in ("eval", "save", "logging"):
            every[f"{what}_strategy"] = "steps" if few else "epoch"
            if few:
                every[f"{what}_steps"] = MIN_STEPS // EPOCHS
        chosen: dict[str, Any] = {
            "num_train_epochs": steps / steps_an_epoch if few else self.epochs or EPOCHS,
            "per_device_train_batch_size": self.batch_size,
            "per_device_eval_batch_size": 2 * self.batch_size,
            "learning_rate": self.rates[0],
            "weight_decay": 0.01,
            "warmup_steps": math.ceil(0.06 * steps),
            **every,
            "save_total_limit": 2,
            "train_sampling_strategy": "group_by_length",
            "dataloader_pin_memory": torch.cuda.is_available(),
            # Said, because processes on CPUs are not told from one that is alone.
            "use_cpu": not torch.accelerator.is_available(),
            "ddp_find_unused_parameters": False,  # all that trains has a gradient
            "ddp_broadcast_buffers": False,  # they belong to the frozen part
            "report_to": "none",
            "disable_tqdm": True,
            "seed": self.seed,
        }
        try:
            args = TrainingArguments(
                output_dir=str(output_dir), **{**chosen, **self.training_arguments}
            )
        except (TypeError, ValueError) as error:
            raise PtuneError(f"TrainingArguments refused these settings: {error}") from error
        if args.world_size != self.processes:
            raise PtuneError(
                f"{self.processes} process(es) were started together, and {args.world_size} found "
                "each other. Start them with torchrun or `accelerate launch`."
            )
        return args


@dataclass
class Run:
    """A finished run.

    Attributes:
        folder: Where everything is.
        model: As trained.
        metrics: The content of `metrics.json`.
    """

    folder: Path
    model: PromptModel
    metrics: dict[str, Any]


class NotFinite(TrainerCallback):
    """Stops at the first step whose gradients are not numbers, before they reach the weights."""

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any
    ) -> None:
        """Check the gradients of everything that trains."""
        gradients = [p.grad for p in kwargs["model"].parameters() if p.grad is not None]
        if gradients and not torch.stack([g.isfinite().all() for g in gradients]).all():
            raise PtuneError(
                f"The loss became NaN or infinite in step {state.global_step + 1} (learning rate "
                f"{_largest_rate(kwargs['optimizer']):g}). The likely cause is a learning rate "
                "that is too high: try a tenth of --learning-rate and --prompt-learning-rate, or "
                "--dtype float32 if the backbone runs in float16."
            )


def _largest_rate(optimizer: Any) -> float:
    return max(group.get("initial_lr", group["lr"]) for group in optimizer.param_groups)


class StopAndSave(TrainerCallback):
    """On Ctrl-C: finish the step, write a checkpoint, stop. A second Ctrl-C stops at once.

    Of several processes, all stop behind the same step, whichever was told.
    """

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGINT for the duration, where signals can be taken (the main thread)."""
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
        logger.warning("Stopping after a last checkpoint; press Ctrl-C again to stop at once.")

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask `Trainer` for a checkpoint and the end."""
        if args.world_size > 1:
            told = torch.tensor(float(self.asked), device=args.device)
            distributed.all_reduce(told, distributed.ReduceOp.MAX)
            self.asked = bool(told)
        if self.asked:
            control.should_save = control.should_training_stop = True


class Shares(Sampler[list[int]]):
    """The batches of one process: its share of what all take together in a step.

    What is taken in a step, and the order, is what one process would take. A step that has fewer
    examples than there are processes is everybody's; in every other each example is somebody's.

    Args:
        order: Gives the examples.
        batch_size: Of one process; the last step's batches may be smaller.
        accumulated: Batches a step.
        process: Which of the processes this is.
        processes: How many there are.
        drop_last: Leave out what fills no batch of all processes.
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
        """How many a process makes of a step's examples: as many as every other, none empty."""
        return max(1, min(math.ceil(examples / self.together), examples // self.processes))

    def __len__(self) -> int:
        steps = range(0, self.examples, self.step)
        return sum(self._batches(min(self.step, self.examples - first)) for first in steps)

    def __iter__(self) -> Iterator[list[int]]:
        # Processes drop out different texts, so that their generators have come apart.
        compat.synchronize_torch_generators()
        order = list(self.order)[: self.examples]
        for first in range(0, len(order), self.step):
            step = order[first : first + self.step]
            own = step[self.process :: self.processes] if len(step) >= self.processes else step
            n = self._batches(len(step))
            for i in range(n):
                yield own[len(own) * i // n : len(own) * (i + 1) // n]


class SharingTrainer(Trainer):
    """A `Trainer` whose processes do together what one of them would do with a larger batch.

    `Trainer` itself gives every process a batch of its own and fills the last ones up with examples
    from the start.
    """

    def get_train_dataloader(self) -> DataLoader:
        """The batches of this process."""
        args, dataset = self.args, self.train_dataset
        if args.world_size == 1 or args.train_sampling_strategy != "group_by_length":
            return super().get_train_dataloader()
        size, accumulated = args.train_batch_size, args.gradient_accumulation_steps
        together = size * accumulated * args.world_size
        shares = Shares(
            compat.length_grouped_sampler(together, dataset),
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


def tokenize(
    tokenizer: transformers.PreTrainedTokenizerBase, dataset: Dataset, room: int | None
) -> tuple[Dataset, int]:
    """Token ids of a data set's texts.

    Args:
        tokenizer: The backbone's.
        dataset: With the columns of `ptune.data.dataset`.
        room: The longest text in tokens; from `PromptModel.text_room`.

    Returns:
        The data set with `input_ids` and so on and `labels`, and how many texts were cut.
    """
    columns = [c for c in (data.TEXT, data.PAIR) if c in dataset.column_names]
    truncated = 0

    def encode_batch(batch: dict[str, list[str]]) -> dict[str, Any]:
        nonlocal truncated
        encoded, cut = encode(tokenizer, [batch[c] for c in columns], room)
        truncated += cut
        return encoded

    with data.quiet():
        encoded = dataset.map(
            encode_batch, batched=True, remove_columns=columns, load_from_cache_file=False
        )
    if data.LABEL in encoded.column_names:
        encoded = encoded.rename_column(data.LABEL, "labels")
    return encoded, truncated


# What the heads of Transformers compute, as means over all examples.
LOSSES: dict[str, Callable[..., torch.Tensor]] = {
    "single_label_classification": functional.cross_entropy,
    "multi_label_classification": functional.binary_cross_entropy_with_logits,
    "regression": lambda logits, labels: functional.mse_loss(logits[:, 0], labels),
}


def metric_function(corpus: Corpus) -> Callable[[Any], dict[str, float]]:
    """`compute_metrics` for `Trainer`."""

    def compute(prediction: Any) -> dict[str, float]:
        logits, labels = _logits(prediction.predictions), np.asarray(prediction.label_ids)
        # `Trainer`'s own is wrong where a last batch was filled up for the sake of all processes.
        loss = LOSSES[corpus.problem_type](torch.tensor(logits), torch.tensor(labels))
        predicted = metrics.decide(logits, corpus.problem_type)
        return {"loss": float(loss), **metrics.compute(corpus.metrics, labels, predicted)}

    return compute


def _logits(predictions: Any) -> np.ndarray:
    return predictions[0] if isinstance(predictions, tuple) else predictions


def build_trainer(
    model: PromptModel,
    tokenizer: transformers.PreTrainedTokenizerBase,
    corpus: Corpus,
    args: TrainingArguments,
    *,
    prompt_learning_rate: float | None,
    callbacks: list[TrainerCallback],
) -> tuple[Trainer, dict[str, int]]:
    """A `Trainer` for a prompt, and how many texts of which set were cut."""
    room = model.text_room(tokenizer)
    assert corpus.train is not None
    frame = tokenizer.num_special_tokens_to_add(pair=corpus.pairs)
    if room is not None and room <= frame:
        raise PtuneError(
            f"{model.prompt_config.num_virtual_tokens} virtual tokens do not fit: of "
            f"{model.max_positions} positions they leave {room} for a text, and its special tokens "
            f"alone take {frame}. Use a smaller num_virtual_tokens or a larger max_length."
        )
    train, cut = tokenize(tokenizer, corpus.train, room)
    truncated = {"train": cut}
    evaluation = {}
    for name, dataset in corpus.evaluation.items():
        evaluation[name], truncated[name or "eval"] = tokenize(tokenizer, dataset, room)
    for name, cut in truncated.items():
        if cut:
            logger.warning("%d texts of %s were cut to %s tokens to fit.", cut, name, room)
    groups = model.parameter_groups(
        args.learning_rate,
        prompt_learning_rate=prompt_learning_rate,
        weight_decay=args.weight_decay,
    )
    try:
        optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
        trainer = SharingTrainer(
            model=model,
            args=args,
            train_dataset=train,
            eval_dataset=evaluation[""] if list(evaluation) == [""] else (evaluation or None),
            processing_class=tokenizer,
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=metric_function(corpus),
            optimizers=(optimizer_class(groups, **options), None),
            callbacks=[NotFinite(), *callbacks],
        )
    except (ValueError, RuntimeError, ImportError) as error:
        raise PtuneError(f"Trainer refused these settings: {error}") from error
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    return trainer, truncated


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that is complete: `Trainer` writes its state file last."""
    found = []
    for checkpoint in folder.glob("checkpoint-*"):
        step = checkpoint.name.removeprefix("checkpoint-")
        if step.isdigit():
            try:
                read_json(checkpoint / "trainer_state.json")
            except PtuneError:
                logger.warning("%s is incomplete and is passed over.", checkpoint)
            else:
                found.append((int(step), checkpoint))
    return max(found)[1] if found else None


def history(log_history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`Trainer`'s log as one record an evaluation, with the training loss up to it."""
    records: dict[float, dict[str, Any]] = {}
    for entry in log_history:
        if "epoch" not in entry:
            continue
        record = records.setdefault(
            entry["epoch"], {"epoch": entry["epoch"], "step": entry["step"]}
        )
        for key, value in entry.items():
            if key == "loss":
                record["train_loss"] = value
            elif key.startswith("eval_") and not key.endswith(("_second", "_runtime")):
                record[key.removeprefix("eval_")] = value
    return list(records.values())


def check_folder(folder: Path, settings: TrainSettings, *, overwrite: bool, resume: bool) -> None:
    """Refuse, before any work is done, to touch a folder that holds something.

    Of several processes the first one looks; the others may come when it has begun to write.

    Raises:
        PtuneError: It holds something and neither flag was given; or there is nothing to resume,
            or what is there was made with other settings.
    """
    if not is_first():
        return
    settings_file = folder / SETTINGS_NAME
    if folder.exists() and not folder.is_dir():
        raise PtuneError(f"{folder} is a file; wanted is a folder for the results.")
    if resume:
        if not settings_file.is_file():
            raise PtuneError(f"{folder} holds no run to resume. Leave out --resume to start one.")
        before, now = asdict(read_settings(folder)), asdict(settings)
        if differing := [k for k in now if now[k] != before[k]]:
            listed = ", ".join(f"{k} was {before[k]!r} and is {now[k]!r}" for k in differing)
            raise PtuneError(
                f"The run in {folder} was started with other settings: {listed}. Resume it with "
                "its own, or start another folder."
            )
    elif folder.is_dir() and any(folder.iterdir()):
        if not overwrite:
            raise PtuneError(
                f"The folder {folder} holds something already. Name another one, or go on with an "
                "interrupted run (--resume), or replace the run that is in it (--overwrite)."
            )
        if not settings_file.is_file():
            raise PtuneError(
                f"The folder {folder} holds something that ptune did not write, and is left alone. "
                "Name another one."
            )


def prepare_folder(folder: Path, settings: TrainSettings, *, keep: bool) -> None:
    """Make the run folder and write the settings; a former run's files go, unless kept.

    Raises:
        PtuneError: It cannot be written.
    """
    if keep or not is_first():
        return
    with staged(folder) as stage:
        write_json(stage / SETTINGS_NAME, asdict(settings))
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    for name in (METRICS_NAME, CURVE_NAME, CONFUSION_NAME):
        (folder / name).unlink(missing_ok=True)


def is_begun(folder: Path) -> bool:
    """Whether there is a run in the folder, finished or not."""
    return (folder / SETTINGS_NAME).is_file()


def read_settings(folder: Path) -> TrainSettings:
    """The settings of a run.

    Raises:
        PtuneError: There are none, or they are of another version.
    """
    file = folder / SETTINGS_NAME
    if not is_begun(folder):
        raise PtuneError(f"{folder} holds no run ({SETTINGS_NAME}).")
    content = read_json(file)
    known = {f.name for f in fields(TrainSettings)}
    if unknown := content.keys() - known:
        raise PtuneError(f"{file} has the unknown setting {sorted(unknown)[0]!r}: upgrade ptune.")
    return TrainSettings(**content)


def train_run(
    settings: TrainSettings,
    output_dir: str | Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    progress: TrainerCallback | None = None,
    corpus: Corpus | None = None,
) -> Run:
    """Train a classifier and leave everything about it in one folder.

    Args:
        settings: What to train on what.
        output_dir: The run folder. The adapter, `metrics.json`, `settings.json`, the learning
            curve and the confusion matrix go there, checkpoints into its `checkpoints`.
        overwrite: Replace a run that is there.
        resume: Go on with an interrupted run from its last checkpoint.
        progress: Told of every step, to show it.
        corpus: The examples, where the settings name none.

    Raises:
        PtuneError: The settings or the data are not right; nothing was overwritten.
        KeyboardInterrupt: Ctrl-C was pressed; a checkpoint was written.
    """
    folder = Path(output_dir)
    check_folder(folder, settings, overwrite=overwrite, resume=resume)
    forget_shapes()
    corpus = corpus or settings.corpus()
    tokenizer = load_tokenizer(settings.model, revision=settings.revision)
    transformers.set_seed(settings.seed)
    backbone = load_backbone(
        settings.model,
        labels=corpus.labels,
        problem_type=corpus.problem_type,
        dtype=settings.dtype,  # type: ignore[arg-type]
        revision=settings.revision,
    )
    if DEFAULTS[settings.prompt].zero_head:
        start_head_at_zero(backbone)
    assert corpus.train is not None
    config = settings.prompt_config(corpus.question, pairs=corpus.pairs)
    model = PromptModel(backbone, fit_to_tokenizer(config, tokenizer))
    model.max_length = settings.max_length
    args = settings.arguments(folder / CHECKPOINTS, len(corpus.train))
    stop = StopAndSave()
    trainer, truncated = build_trainer(
        model,
        tokenizer,
        corpus,
        args,
        prompt_learning_rate=settings.rates[1],
        callbacks=[stop, *([progress] if progress else [])],
    )
    # Only now, when nothing but training itself can go wrong.
    prepare_folder(folder, settings, keep=resume)
    checkpoint = last_checkpoint(folder / CHECKPOINTS) if resume else None
    started = time.perf_counter()
    with stop.listening():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if stop.asked:
        raise KeyboardInterrupt
    seconds = time.perf_counter() - started

    epochs = history(trainer.state.log_history)
    answers = {}
    for name, dataset in _evaluation_sets(trainer).items():
        # `Trainer` may take the examples in another order; its labels have the same.
        output = trainer.predict(dataset)
        predicted = metrics.decide(_logits(output.predictions), corpus.problem_type)
        answers[name] = np.asarray(output.label_ids), predicted
    trainable, total = model.get_nb_trainable_parameters()
    results: dict[str, Any] = {
        "task": corpus.name,
        "dataset_revision": corpus.revision,
        "text_pairs": corpus.pairs,
        "model": model.prompt_config.base_model_name_or_path,
        "eval": _scores(epochs[-1]) if epochs else {},
        "best": _best(epochs, corpus),
        "adapter": "best" if args.load_best_model_at_end else "last",
        "epochs": epochs,
        "majority": majority(corpus),
        "labels": corpus.labels,
        "confusion_matrix": {
            name or "eval": metrics.confusion_matrix(*pair, len(corpus.labels)).tolist()
            for name, pair in answers.items()
            if corpus.problem_type == "single_label_classification"
        },
        "train_examples": len(corpus.train),
        "eval_examples": {n or "eval": len(d) for n, d in corpus.evaluation.items()},
        "truncated_texts": truncated,
        "processes": settings.processes,
        "trainable_parameters": trainable,
        "all_parameters": total,
        "seconds": round(seconds, 1),
        "versions": {
            "ptune": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
    }
    run = Run(folder, model, results)
    if is_first():
        _write_results(run, corpus, answers)
    return run


def _write_results(
    run: Run, corpus: Corpus, answers: dict[str, tuple[np.ndarray, np.ndarray]]
) -> None:
    """Adapter, scores and pictures; `answers` are true labels and predictions of every set."""
    folder, results, epochs = run.folder, run.metrics, run.metrics["epochs"]
    save(run.model, folder, trained_state=False)
    with staged(folder) as stage:
        write_json(stage / METRICS_NAME, results)
        if any("loss" in e for e in epochs):
            report.learning_curve(epochs, corpus, results["majority"], stage / CURVE_NAME)
        for name, (truth, predicted) in answers.items():
            picture = CONFUSION_NAME.replace(".png", f"_{name}.png") if name else CONFUSION_NAME
            report.confusion(truth, predicted, corpus, stage / picture)


def train_seeds(
    settings: TrainSettings,
    output_dir: str | Path,
    seeds: Sequence[int],
    *,
    overwrite: bool = False,
    resume: bool = False,
    progress: TrainerCallback | None = None,
    corpus: Corpus | None = None,
) -> dict[str, dict[str, float]]:
    """Train once with each seed, each run in its own folder `seed-N` of `output_dir`.

    Args:
        settings, overwrite, resume, progress, corpus: As for `train_run`. Runs that are finished
            are not done again when resuming.
        output_dir: Also gets `seeds.json`, with what is returned and every run's scores.
        seeds: Different from one another.

    Returns:
        For each score of the evaluation sets `mean` and `std`, the standard deviation over the
        seeds.

    Raises:
        PtuneError: As for `train_run`.
    """
    folder = Path(output_dir)
    runs = [(replace(settings, seed=seed), folder / f"seed-{seed}") for seed in seeds]
    begun = {here: resume and is_begun(here) for _, here in runs}
    for own, here in runs:
        check_folder(here, own, overwrite=overwrite, resume=begun[here])
    scores: dict[int, dict[str, float]] = {}
    for own, here in runs:
        if begun[here] and (here / METRICS_NAME).is_file():
            scores[own.seed] = read_json(here / METRICS_NAME)["eval"]
            continue
        how: dict[str, Any] = {"overwrite": overwrite, "resume": begun[here]}
        run = train_run(own, here, **how, progress=progress, corpus=corpus)
        scores[own.seed] = run.metrics["eval"]
    spread = {
        name: metrics.mean_and_std([found[name] for found in scores.values()])
        for name in scores[seeds[0]]
    }
    if is_first():
        with staged(folder) as stage:
            by_seed = {str(k): v for k, v in scores.items()}
            write_json(stage / SEEDS_NAME, {"scores": by_seed, **spread})
    return spread


def _evaluation_sets(trainer: Trainer) -> dict[str, Dataset]:
    sets: Any = trainer.eval_dataset
    return sets if isinstance(sets, dict) else {} if sets is None else {"": sets}


def fit_to_tokenizer(
    config: PromptEncoderConfig, tokenizer: transformers.PreTrainedTokenizerBase
) -> PromptEncoderConfig:
    """Behind the first *special* token, if the tokenizer begins a text with one; else in front."""
    ids = tokenizer("a")["input_ids"]
    if config.placement == "after_first" and (not ids or ids[0] not in tokenizer.all_special_ids):
        config.placement = "prefix"
    return config


def start_head_at_zero(backbone: transformers.PreTrainedModel) -> None:
    """Zero the layer that gives the logits, where no checkpoint brought it.

    Then every seed starts from the same predictions.
    """
    named = dict(backbone.named_parameters())
    for name in names_of_head(backbone):
        parameter = named[name]
        gives_logits = parameter.shape[0] == backbone.config.num_labels
        if gives_logits and not compat.was_loaded(parameter):
            parameter.data.zero_()


def majority(corpus: Corpus) -> dict[str, float]:
    """The scores of always answering the commonest label of the training set."""
    if corpus.train is None or corpus.problem_type != "single_label_classification":
        return {}
    commonest = int(np.bincount(corpus.train[data.LABEL]).argmax())
    return {
        (f"{name}_" if name else "") + key: value
        for name, dataset in corpus.evaluation.items()
        for key, value in metrics.compute(
            corpus.metrics,
            np.asarray(dataset[data.LABEL]),
            np.full(len(dataset), commonest),
        ).items()
    }


def _scores(record: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in record.items() if k not in ("epoch", "step", "train_loss")}


def _best(epochs: list[dict[str, Any]], corpus: Corpus) -> dict[str, Any]:
    """The evaluation with the best first metric."""
    keys = [k for k in (epochs[-1] if epochs else {}) if k.endswith(corpus.metrics[0])]
    if not keys:
        return {}
    key = keys[0]
    scored = [e for e in epochs if key in e and not math.isnan(e[key])]
    return max(scored, key=lambda e: e[key]) if scored else {}
