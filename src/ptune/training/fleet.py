"""A fleet: any number of tasks, each with a run folder. Readers train together.

All readers of a backbone share the texts that were read (`KeptTexts`), and steps of several tasks
run in one batch (`ptune.training.together`). Other prompts, and settings that only `Trainer` knows,
train one task after another.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ptune import compat
from ptune.backbones.cpu import forget_shapes
from ptune.data.dataset import TaskData
from ptune.data.opening import Dialect, format_of
from ptune.data.tables import FORMATS, read_table
from ptune.errors import PtuneError, cut, near
from ptune.files import (
    CHECKPOINTS,
    METRICS_NAME,
    folder_of,
    is_below,
    read_metrics,
    staged,
    write_json,
)
from ptune.prompts.words import NoWords
from ptune.texts import IN_WINDOWS
from ptune.training import folder as run_folder
from ptune.training import run as runs
from ptune.training.defaults import virtual_tokens
from ptune.training.settings import TrainSettings
from ptune.training.start import prepare, undisturbed
from ptune.training.together import PART, STATE_NAME, Member, Stack

# The most virtual tokens in a forward pass. More take more memory, and as much time per token.
MOST_TOKENS = 1024
# Bytes that the name of a run folder may have, and those that stay of a longer one.
LONGEST_NAME, CUT_NAME = 200, 100
# The fields of `TrainingArguments` that tasks follow when they train together.
FOLLOWED = {
    *(f"{what}_{how}" for what in ("eval", "save", "logging") for how in ("strategy", "steps")),
    *("max_grad_norm", "max_steps", "weight_decay", "warmup_steps", "warmup_ratio"),
    *("lr_scheduler_type", "optim", "adam_beta1", "adam_beta2", "adam_epsilon"),
    *("load_best_model_at_end", "metric_for_best_model", "greater_is_better", "save_total_limit"),
}

Show = Callable[[str, dict[str, Any]], None]


@dataclass
class Fleet:
    """What became of the tasks of a fleet.

    Attributes:
        metrics: The content of each task's `metrics.json`, by the tasks' names.
        skipped: Tasks that had been trained before.
        refused: Why tasks were not trained, by their names.
    """

    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


@dataclass
class _Task:
    """A task whose data have been read, with its settings as given and as resolved."""

    name: str
    folder: Path
    begun: bool
    given: TrainSettings
    settings: TrainSettings
    dataset: TaskData
    tokenizer: PreTrainedTokenizerBase

    @property
    def was_together(self) -> bool:
        """Whether it was interrupted while it trained with others."""
        return self.begun and (self.folder / CHECKPOINTS / STATE_NAME).is_file()

    @property
    def kind(self) -> tuple[Any, ...]:
        """Equal for tasks that can train together; empty: it trains alone."""
        own = self.settings
        alone = (
            own.prompt != "reader"
            or own.head not in ("linear", "words")
            or own.processes > 1
            or own.backbone_dropout
            or own.long_texts in IN_WINDOWS  # several rows are one example
            or own.keep_features
            or not own.training_arguments.keys() <= FOLLOWED
        )
        size = own.num_virtual_tokens, own.reader_rank, own.reader_key_rank, own.batch_size
        kept = own.keep_texts, own.keep_texts_in, own.keep_texts_on_disk
        return () if alone else (own.model, own.revision, own.dtype, *size, *kept)


@undisturbed()
def train_fleet(
    tasks: Mapping[str, TrainSettings],
    output_dir: str | Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    show: Show | None = None,
) -> Fleet:
    """Train any number of tasks, readers together. Each task gets a run folder in `output_dir`.

    A task that cannot be trained does not stop the others.

    Args:
        tasks: The settings of each task, by its name.
        output_dir: Holds the run folders, which are called as the tasks.
        overwrite: Replace the runs in these folders.
        resume: Skip the tasks that are finished, and continue the others from their last
            evaluation.
        show: Gets the name and the metrics of each task as soon as it is finished.

    Raises:
        PtuneError: A folder must not be written to, holds a run with other settings, or another
            fleet is writing to `output_dir`. Nothing was overwritten.

    Example:
        ``train_fleet({"mail": TrainSettings(train_file="mail.csv", prompt="reader")}, "runs")``
    """
    _check_names(tasks)
    forget_shapes()
    show = show or (lambda name, metrics: None)
    fleet, kinds = Fleet(), defaultdict[tuple[Any, ...], list[_Task]](list)
    folder = folder_of(output_dir)
    for task in _prepared(tasks, folder, fleet, overwrite=overwrite, resume=resume):
        if task.begun and (task.folder / METRICS_NAME).is_file():
            fleet.skipped.append(task.name)
            fleet.metrics[task.name] = read_metrics(task.folder / METRICS_NAME)
        else:
            kinds[task.kind].append(task)
    if kinds:
        with run_folder.alone_in(folder):
            for kind, some in kinds.items():
                if len(kind) and (len(some) > 1 or some[0].was_together):
                    some = _train_together(some, fleet, show)
                for task in some:
                    _train_alone(task, fleet, show, overwrite=overwrite)
    return fleet


def tasks_of(
    settings: TrainSettings,
    *,
    label_columns: Sequence[str] = (),
    tasks_dir: str | Path | None = None,
    group_column: str | None = None,
) -> dict[str, TrainSettings]:
    """The settings of each task, by its name.

    Args:
        settings: What the tasks have in common.
        label_columns: Each is a task on the texts of `settings.train_file`.
        tasks_dir: Each file in this folder is a task.
        group_column: Each value in this column of `settings.train_file` is a task.

    Raises:
        PtuneError: More than one of these, or none, is given; something else chooses the file or
            its rows too; or there are no tasks.
    """
    if sum(map(bool, (label_columns, tasks_dir, group_column))) != 1:
        raise PtuneError(
            "Name several tasks in one way: by --label-column, by --tasks-dir or by --group-column."
        )
    if tasks_dir is not None and settings.train_file is not None:
        raise PtuneError(
            f"Each file in {tasks_dir} is the training file of a task, and {settings.train_file} "
            "would not be read. Leave out --train-file or --tasks-dir."
        )
    if group_column is not None and settings.where is not None:
        raise PtuneError(
            f"A task for each value of {group_column!r} chooses its own rows, and --where "
            f"{settings.where} would be dropped. Leave out --where or --group-column."
        )
    if tasks_dir is not None:
        files = [f for f in sorted(Path(tasks_dir).glob("[!.]*")) if format_of(f) in FORMATS]
        files = [f for f in files if not f.is_dir()]
        if not files:
            raise PtuneError(f"There is no file with examples in {tasks_dir}. Check the path.")
        stems = [f.name[: f.name.lower().rindex(format_of(f))] for f in files]
        found = [{"train_file": str(file)} for file in files]
        return _by_folder(settings, stems, found)
    if settings.train_file is None:
        raise PtuneError("Several tasks come from one file. Name it with --train-file.")
    if label_columns:
        return _by_folder(settings, label_columns, [{"label_column": n} for n in label_columns])
    table = read_table(settings.train_file, Dialect.of(vars(settings)))
    if group_column not in table:
        known = near(group_column, table)
        raise PtuneError(f"{settings.train_file} has no column {group_column!r}; {known}.")
    values = list(dict.fromkeys(str(c) for c in table[group_column] if c not in (None, "")))
    return _by_folder(settings, values, [{"where": f"{group_column}={v}"} for v in values])


def _by_folder(
    settings: TrainSettings, names: Sequence[str], own: Sequence[dict[str, Any]]
) -> dict[str, TrainSettings]:
    """Tasks by names that folders can have.

    Raises:
        PtuneError: Two of them would have one name.
    """
    tasks: dict[str, TrainSettings] = {}
    made: dict[str, dict[str, Any]] = {}
    for name, what in zip(names, own, strict=True):
        folder = _short(re.sub(r"[^\w.-]+", "_", name).lstrip(".") or "_", name)
        if folder in tasks:
            shown = " and ".join(str(next(iter(of.values()))) for of in (made[folder], what))
            raise PtuneError(f"Two tasks would get the folder {folder!r}: {shown}. Rename one.")
        made[folder] = what
        tasks[folder] = replace(settings, **what)
    return tasks


def _short(folder: str, name: str) -> str:
    """A name of a folder, cut if file systems would refuse it. Most allow 255 bytes."""
    if len(folder.encode()) <= LONGEST_NAME:
        return folder
    start = folder.encode()[:CUT_NAME].decode(errors="ignore")
    return f"{start}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _check_names(tasks: Any) -> None:
    """Refuse tasks without names, and names that are no folder in the output folder."""
    if not isinstance(tasks, Mapping) or not tasks:
        found = "nothing" if tasks == {} else f"a {type(tasks).__name__}"
        raise PtuneError(
            "Expected the settings of each task by its name, such as {'mail': TrainSettings("
            f"train_file='mail.csv')}}; found {found}."
        )
    for name in tasks:
        if not isinstance(name, str) or not is_below(name):
            raise PtuneError(
                f"A task cannot be called {cut(repr(name), 80)}: its run folder, in the output "
                "folder, has its name. Choose a short name that is no absolute path."
            )


def _prepared(
    tasks: Mapping[str, TrainSettings],
    output_dir: Path,
    fleet: Fleet,
    *,
    overwrite: bool,
    resume: bool,
) -> list[_Task]:
    """The tasks whose data can be read. The fleet gets the reasons for the others."""
    prepared = []
    for name, given in tasks.items():
        folder = output_dir / name
        begun = resume and run_folder.is_begun(folder)
        replaces = overwrite or (resume and not begun)
        run_folder.check_folder(folder, overwrite=replaces, resume=begun)
        try:
            settings, dataset, tokenizer = prepare(given)
        except PtuneError as error:
            fleet.refused[name] = str(error)
            continue
        if begun:
            run_folder.check_unchanged(folder, settings, dataset, skips=True)
        prepared.append(_Task(name, folder, begun, given, settings, dataset, tokenizer))
    return prepared


def _train_together(tasks: list[_Task], fleet: Fleet, show: Show) -> list[_Task]:
    """Train tasks with prompts of one size, as many at a time as `MOST_TOKENS` allows.

    Returns:
        Tasks that have to train alone, because their head cannot start as label words.
    """
    # Tasks of the same size have batches of the same size.
    tasks = sorted(tasks, key=lambda task: len(task.dataset.train))
    first = tasks[0]
    of_pass = min(PART, first.settings.batch_size) * virtual_tokens(first.settings)
    at_once = max(1, MOST_TOKENS // of_pass)
    alone = []
    with compat.own_accelerate_state():
        stack = Stack(first.settings, first.dataset, first.tokenizer)
        for start in range(0, len(tasks), at_once):
            members: dict[Member, _Task] = {}
            for task in tasks[start : start + at_once]:
                try:
                    member = Member(task.settings, task.dataset, stack)
                except NoWords:
                    alone.append(task)
                    continue
                except PtuneError as error:
                    fleet.refused[task.name] = str(error)
                    continue
                members[member] = task
                run_folder.prepare_folder(task.folder, task.settings, task.dataset, keep=task.begun)
                member.load(task.folder / CHECKPOINTS)

            def keep(member: Member, members: dict[Member, _Task] = members) -> None:
                member.save(members[member].folder / CHECKPOINTS)

            for member in stack.train(list(members), keep):
                task = members[member]
                if member.refused:
                    fleet.refused[task.name] = member.refused
                else:
                    fleet.metrics[task.name] = _written(task, member, stack)
                    show(task.name, fleet.metrics[task.name])
                stack.remove(member.adapter)
    stack.model.kept_texts.close()
    return alone


def _train_alone(task: _Task, fleet: Fleet, show: Show, *, overwrite: bool) -> None:
    """Train a task by itself. The fleet gets its metrics, or the reason why it has none."""
    how: dict[str, Any] = {"overwrite": overwrite, "resume": task.begun}
    try:
        run = runs.train_run(task.given, task.folder, dataset=task.dataset, **how)
    except PtuneError as error:
        fleet.refused[task.name] = str(error)
    else:
        fleet.metrics[task.name] = run.metrics
        show(task.name, run.metrics)


def _written(task: _Task, member: Member, stack: Stack) -> dict[str, Any]:
    """Write the run folder of a task; returns the content of its `metrics.json`."""
    settings, dataset, answers = task.settings, task.dataset, member.answers
    step = member.best.step if member.best else None
    how = member.log, member.args, member.sizes, step
    results = runs.results_of(settings, dataset, answers, *how)
    results |= {"truncated_texts": member.truncated, "seconds": round(member.seconds, 1)}
    results["kept_texts"] = stack.model.kept_texts.summary
    held_out = sum(map(len, member.evaluation.values()))
    known = runs.known_texts(settings, dataset.labels, member.train.targets.tolist(), held_out)
    further = [
        stack.predict({member: rows})[member].numpy() if rows else None
        for rows in ([member.train.rows[i] for i in known], member.out_of_scope)
    ]
    values, results["quality"] = runs.calibrated(settings, dataset.labels, answers, *further)
    adapter = stack.model.to_adapter(member.adapter)
    runs.write_adapter(task.folder, adapter, settings, dataset, values)
    with staged(task.folder) as stage:
        write_json(stage / METRICS_NAME, results)
    (task.folder / CHECKPOINTS / STATE_NAME).unlink(missing_ok=True)
    return results
