"""A training run: settings in, a run folder out.

`torchrun` and `accelerate launch` run all of this in several processes. Only the first one writes
files.
"""

from __future__ import annotations

import logging
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset
from transformers import TrainerCallback, TrainingArguments

from ptune import __version__, compat
from ptune.adapters.adapter import Adapter
from ptune.backbones.cpu import forget_shapes
from ptune.backbones.loading import full_name
from ptune.data.dataset import TaskData, dataset_of
from ptune.files import (
    CHECKPOINTS,
    METRICS_NAME,
    SEEDS_NAME,
    folder_of,
    read_metrics,
    staged,
    write_json,
)
from ptune.labels import Labels, confusion, mean_and_std, per_label
from ptune.model import PromptModel
from ptune.postprocessing import RAW, Goal, Postprocessing
from ptune.training import calibration, overconfidence, report
from ptune.training.features import LABELS, SOME_TEXTS, Features, keep_features
from ptune.training.folder import (
    check_folder,
    check_unchanged,
    is_begun,
    last_checkpoint,
    only_run,
)
from ptune.training.settings import TrainSettings, is_first
from ptune.training.start import (
    forget_texts,
    learned,
    model_for,
    prepare,
    sharing_texts,
    undisturbed,
)
from ptune.training.summary import Summary
from ptune.training.trainer import (
    SharingTrainer,
    StopAndSave,
    answers_of,
    build_trainer,
    scores_of,
    tokenize,
    training_arguments,
)

logger = logging.getLogger(__name__)

# True labels and logits of each evaluation set.
Answers = dict[str, tuple[np.ndarray, np.ndarray]]


@dataclass
class Run:
    """A finished run.

    Attributes:
        folder: The run folder.
        model: The trained model.
        metrics: The content of `metrics.json`.
        data: The examples that it was trained and evaluated on.
        postprocessing: Calibration and thresholds, fitted on the evaluation sets; calibration on
            the training set, if they have too few texts.
        answers: True labels and logits of each evaluation set.
    """

    folder: Path
    model: PromptModel
    metrics: dict[str, Any]
    data: TaskData
    postprocessing: Postprocessing = RAW
    answers: Answers = field(default_factory=dict)


@undisturbed()
def train_run(
    settings: TrainSettings,
    output_dir: str | Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    progress: TrainerCallback | None = None,
    dataset: TaskData | None = None,
    show: Callable[[Summary], None] | None = None,
) -> Run:
    """Train a classifier and write everything about it to one folder.

    Args:
        settings: What to train, on which data.
        output_dir: The run folder. It gets the adapter, `metrics.json`, `settings.json`,
            pictures and `checkpoints`.
        overwrite: Replace the run in this folder.
        resume: Continue an interrupted run from its last checkpoint.
        progress: Callback that shows the progress.
        dataset: The dataset, if the settings name none.
        show: Gets a summary of the data before anything is written.

    Raises:
        PtuneError: The settings or the data are wrong. Nothing was overwritten.
        KeyboardInterrupt: Ctrl-C was pressed. A checkpoint was written.
    """
    folder = folder_of(output_dir)
    check_folder(folder, overwrite=overwrite, resume=resume)
    forget_shapes()
    given = settings
    settings, dataset, tokenizer = prepare(given, dataset)
    if resume:
        check_unchanged(folder, settings, dataset)
    settings, model = model_for(given, settings, dataset, tokenizer)
    data = learned(settings, dataset)
    with compat.own_accelerate_state(), ExitStack() as held:
        stop = StopAndSave()
        trainer, truncated = build_trainer(
            model,
            tokenizer,
            data,
            training_arguments(settings, folder / CHECKPOINTS, len(data.train)),
            settings,
            callbacks=[stop, *([progress] if progress else [])],
            show=lambda train, cut: (
                show(Summary.of(settings, dataset, train, cut)) if show and is_first() else None
            ),
        )
        # The folder changes only now: from here on, wrong settings cannot end the run.
        held.enter_context(only_run(folder, settings, dataset, overwrite=overwrite, resume=resume))
        checkpoint = last_checkpoint(folder / CHECKPOINTS) if resume else None
        started = time.perf_counter()
        with stop.listening():
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if stop.asked:
            raise KeyboardInterrupt
        seconds = time.perf_counter() - started
        answers = all_answers(trainer)
        values, quality = _fitted(trainer, tokenizer, settings, dataset, answers)
        sizes = model.get_nb_trainable_parameters()
        state, args = trainer.state, trainer.args
        step = state.best_global_step if args.load_best_model_at_end else None
        results = results_of(settings, dataset, answers, state.log_history, args, sizes, step)
        results |= {"truncated_texts": truncated, "seconds": round(seconds, 1), "quality": quality}
        if settings.prompt == "reader":
            results["kept_texts"] = model.kept_texts.summary
            forget_texts(model)
        run = Run(folder, model, results, dataset, values, answers)
        if is_first():
            write_adapter(folder, model.to_adapter(), settings, dataset, values)
            _write_results(run, dataset)
            if settings.keep_features:
                _keep_features(trainer, folder)
        return run


@contextmanager
def trained_in_memory(
    settings: TrainSettings,
    dataset: TaskData,
    *,
    callbacks: Sequence[TrainerCallback] = (),
    **arguments: Any,
) -> Iterator[SharingTrainer]:
    """Train without writing anything; the trainer, which has the model and the evaluation sets.

    Args:
        settings, dataset: As for `train_run`.
        callbacks: For the `Trainer`.
        **arguments: Fields of `TrainingArguments`, in place of those of the settings.

    Raises:
        PtuneError: The settings or the data are wrong.
    """
    given = settings
    with (
        undisturbed(),
        compat.own_accelerate_state(),
        tempfile.TemporaryDirectory(prefix="ptune-") as folder,
    ):
        settings, dataset, tokenizer = prepare(given, dataset)
        settings, model = model_for(given, settings, dataset, tokenizer)
        quiet: dict[str, Any] = {
            "save_strategy": "no",
            "logging_strategy": "no",
            "load_best_model_at_end": False,
            "metric_for_best_model": None,
        }
        own = replace(
            settings, training_arguments={**settings.training_arguments, **quiet, **arguments}
        )
        data = learned(settings, dataset)
        how = training_arguments(own, folder, len(data.train))
        trainer, _ = build_trainer(model, tokenizer, data, how, own, callbacks=list(callbacks))
        trainer.train()
        yield trainer


def train_seeds(
    settings: TrainSettings,
    output_dir: str | Path,
    seeds: Sequence[int],
    *,
    overwrite: bool = False,
    resume: bool = False,
    progress: TrainerCallback | None = None,
    dataset: TaskData | None = None,
    show: Callable[[Summary], None] | None = None,
) -> dict[str, dict[str, float]]:
    """Train once with each seed. Each run gets its own folder `seed-N` in `output_dir`.

    Readers share the texts that were read.

    Args:
        settings, overwrite, progress, dataset, show: As for `train_run`.
        resume: Continue an interrupted run, and skip the runs that are finished.
        output_dir: Also gets `seeds.json`: the returned values and the scores of each run.
        seeds: The seeds, all different.

    Returns:
        The `mean` of each evaluation score and its standard deviation over the seeds, `std`.

    Raises:
        PtuneError: As for `train_run`.
    """
    folder = folder_of(output_dir)
    runs = [(replace(settings, seed=seed), folder / f"seed-{seed}") for seed in seeds]
    begun = {here: resume and is_begun(here) for _, here in runs}
    for own, here in runs:
        check_folder(here, overwrite=overwrite, resume=begun[here])
        if begun[here]:
            check_unchanged(here, *prepare(own, dataset)[:2], skips=True)
    scores: dict[int, dict[str, float]] = {}
    with sharing_texts():
        for own, here in runs:
            if begun[here] and (here / METRICS_NAME).is_file():
                scores[own.seed] = read_metrics(here / METRICS_NAME)["eval"]
                continue
            how: dict[str, Any] = {"overwrite": overwrite, "resume": begun[here]}
            run = train_run(own, here, **how, progress=progress, dataset=dataset, show=show)
            scores[own.seed] = run.metrics["eval"]
    spread = {
        name: mean_and_std([found[name] for found in scores.values()]) for name in scores[seeds[0]]
    }
    if is_first():
        with staged(folder) as stage:
            by_seed = {str(k): v for k, v in scores.items()}
            write_json(stage / SEEDS_NAME, {"scores": by_seed, **spread})
    return spread


# Results.


def all_answers(trainer: SharingTrainer) -> Answers:
    """True labels and logits of each evaluation set."""
    found = {}
    for name, examples in trainer.evaluation_sets.items():
        # `Trainer` may reorder the examples. Its labels have the same order as its predictions.
        output = trainer.predict(examples)
        found[name] = answers_of(output)
    return found


def all_scores(dataset: TaskData, answers: Answers) -> dict[str, float]:
    """The loss and the metrics of each evaluation set, such as `matched_loss`."""
    return {
        "_".join(filter(None, [name, key])): value
        for name, (truth, logits) in answers.items()
        for key, value in scores_of(dataset, truth, logits).items()
    }


def joined(answers: Answers) -> tuple[np.ndarray, np.ndarray]:
    """True labels and logits of all evaluation sets together."""
    truth, logits = zip(*answers.values(), strict=True)
    return np.concatenate(truth), np.concatenate(logits)


def known_texts(
    settings: TrainSettings, labels: Labels, targets: Sequence[int], held_out: int
) -> list[int]:
    """A few training texts of each label, if their logits serve to tell unfamiliar texts.

    Args:
        settings, labels: Those of a run.
        targets: The labels of the training texts.
        held_out: Number of texts to evaluate on.
    """
    if (
        not (labels.is_single and settings.calibrate)
        or held_out < calibration.MIN_FAMILIAR
        or len(labels) > calibration.MAX_FAMILIAR
    ):
        return []
    return calibration.some_of_each(np.asarray(targets), len(labels)).tolist()


def tokenized_texts(model: PromptModel, tokenizer: Any, columns: list[list[str]]) -> Dataset | None:
    """Texts without labels as a model reads them; ``None``: there are none."""
    if not columns or not columns[0]:
        return None
    texts = dataset_of(columns, [0] * len(columns[0]))
    return tokenize(tokenizer, texts, model.reading(tokenizer))[0]


def _further_logits(
    trainer: SharingTrainer, tokenizer: Any, settings: TrainSettings, dataset: TaskData
) -> Iterator[np.ndarray | None]:
    """Logits of known texts, and of texts that belong to no label."""
    train: Any = trainer.train_dataset
    model: Any = trainer.model
    held_out = sum(map(len, trainer.evaluation_sets.values()))
    rows = known_texts(settings, dataset.labels, train["labels"], held_out)
    known = train.select(rows) if rows else None
    for texts in (known, tokenized_texts(model, tokenizer, dataset.out_of_scope)):
        yield None if texts is None else answers_of(trainer.predict(texts))[1]


def calibrated(
    settings: TrainSettings,
    labels: Labels,
    answers: Answers,
    known: np.ndarray | None = None,
    out_of_scope: np.ndarray | None = None,
) -> tuple[Postprocessing, dict[str, Any]]:
    """Calibration and thresholds from all evaluation sets together, and their measurements.

    Args:
        settings, labels, answers: Those of a run.
        known, out_of_scope: Logits of other texts; see `calibration.fit_unfamiliar`.
    """
    if not settings.calibrate or not answers:
        return RAW, {}
    truth, logits = joined(answers)
    goal = Goal.parse(settings.threshold_for or "f1")
    return calibration.fit(labels, logits, truth, goal, known, out_of_scope)


def _fitted(
    trainer: SharingTrainer,
    tokenizer: Any,
    settings: TrainSettings,
    dataset: TaskData,
    answers: Answers,
) -> tuple[Postprocessing, dict[str, Any]]:
    """What `calibrated` returns; from the training texts, if too few texts were held out."""
    labels, further = dataset.labels, _further_logits(trainer, tokenizer, settings, dataset)
    found = calibrated(settings, labels, answers, *further)
    if found[0].tensors or not settings.calibrate or labels.is_regression or trainer.start is None:
        return found
    train: Any = trainer.train_dataset
    some = train.select(trainer.start.rows[:SOME_TEXTS].tolist())
    targets, logits = answers_of(trainer.predict(some))
    loss = float(labels.losses(torch.tensor(logits).float(), torch.tensor(targets)).mean())
    return overconfidence.fit(labels, trainer.start, train[LABELS], loss)


def results_of(
    settings: TrainSettings,
    dataset: TaskData,
    answers: Answers,
    log: list[dict[str, Any]],
    args: TrainingArguments,
    sizes: tuple[int, int],
    best_step: int | None,
) -> dict[str, Any]:
    """The content of `metrics.json`, except what only the training itself knows.

    Args:
        settings, dataset, answers: As for a `Run`.
        log: `Trainer`'s log.
        args: `Trainer`'s arguments.
        sizes: Trained parameters, and all parameters.
        best_step: After which step the adapter was best, if that one is kept.
    """
    epochs, labels = report.history(log), dataset.labels
    majority, tie = report.majority(dataset)
    return {
        "task": dataset.name,
        "dataset_revision": dataset.revision,
        "text_pairs": dataset.pairs,
        "model": full_name(settings.model),
        "eval": all_scores(dataset, answers),
        "best": report.best(epochs, dataset),
        "adapter": "best" if args.load_best_model_at_end else "last",
        "adapter_step": best_step or (epochs[-1]["step"] if epochs else None),
        "epochs": epochs,
        "majority": majority,
        "majority_tie": tie,
        "labels": list(labels.names),
        "problem_type": labels.kind,
        "confusion_matrix": {
            name or "eval": confusion(truth, labels.decide(logits), len(labels)).tolist()
            for name, (truth, logits) in answers.items()
            if labels.is_single
        },
        "label_scores": {
            name or "eval": per_label(truth, labels.decide(logits), labels.names)
            for name, (truth, logits) in answers.items()
            if not labels.is_regression
        },
        "train_examples": len(dataset.train),
        "eval_examples": {n or "eval": len(d) for n, d in dataset.evaluation.items()},
        "processes": settings.processes,
        "trainable_parameters": sizes[0],
        "all_parameters": sizes[1],
        "versions": {
            "ptune": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
    }


def write_adapter(
    folder: Path,
    adapter: Adapter,
    settings: TrainSettings,
    dataset: TaskData,
    postprocessing: Postprocessing,
) -> None:
    """Write an adapter with the user's columns and labels, calibration and thresholds."""
    columns = (settings.text_column, settings.text_pair_column)[: 1 + dataset.pairs]
    named = [name for name in columns if name is not None]
    own: dict[str, Any] = {"labels": dataset.labels, "postprocessing": postprocessing}
    replace(adapter, text_columns=named if len(named) == len(columns) else None, **own).save(folder)


def _keep_features(trainer: SharingTrainer, folder: Path) -> None:
    """Write what the trained head reads of the training texts."""
    train: Any = trainer.train_dataset
    model: Any = trainer.model
    features = Features.of(model, train, trainer.data_collator, 0, len(train))
    if features is None:
        logger.warning("The head does not end in a linear layer, so no features are kept.")
        return
    with staged(folder) as stage:
        keep_features(features, train, stage)


def _write_results(run: Run, dataset: TaskData) -> None:
    """Write the scores and the pictures."""
    with staged(run.folder) as stage:
        write_json(stage / METRICS_NAME, run.metrics)
        for name, picture in report.pictures(dataset, run.metrics, run.answers).items():
            picture.save(stage / name)
