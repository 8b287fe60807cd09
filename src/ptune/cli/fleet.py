"""`ptune train` for several tasks: progress, and a table at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer
from rich.table import Table

from ptune.cli.options import console, errors, first_score, print_json, say, typed
from ptune.training.settings import TrainSettings


def several_tasks(
    options: dict[str, Any],
    label_columns: list[str] | None,
    tasks_dir: Path | None,
    group_column: str | None,
) -> dict[str, Any]:
    """How several tasks are named, as for `tasks_of`; empty: there is one task.

    Args:
        options: The options of the command. They get the only label column.
        label_columns, tasks_dir, group_column: What the user gave.
    """
    if label_columns and len(label_columns) == 1:
        options["label_column"], label_columns = label_columns[0], None
    given = {"label_columns": label_columns, "tasks_dir": tasks_dir, "group_column": group_column}
    return {name: value for name, value in given.items() if value}


def train_tasks(
    settings: TrainSettings,
    named: dict[str, Any],
    output_dir: Path,
    as_json: bool,
    *,
    overwrite: bool,
    resume: bool,
) -> None:
    """Train several tasks, and print what became of them. Exit with code 2 if any was not trained.

    Args:
        settings: What the tasks have in common.
        named: As from `several_tasks`.
        output_dir: Holds the run folders.
        as_json: Print JSON instead of a table.
        overwrite, resume: As for `train_fleet`.
    """
    from ptune.training.fleet import tasks_of, train_fleet

    tasks, to = tasks_of(settings, **named), errors if as_json else console
    done = 0

    def show(name: str, metrics: dict[str, Any]) -> None:
        nonlocal done
        done += 1
        say(f"{done}/{len(tasks)} {name}: {' '.join(_score(metrics)[:2])}", to)

    say(f"Training {len(tasks)} tasks.", to)
    fleet = train_fleet(tasks, output_dir, overwrite=overwrite, resume=resume, show=show)
    if as_json:
        print_json({"tasks": fleet.metrics, "skipped": fleet.skipped, "refused": fleet.refused})
    elif fleet.metrics:
        table = Table("task", "examples", "labels", "metric", "score", "majority class")
        for name in tasks:
            if metrics := fleet.metrics.get(name):
                labels = str(len(metrics["labels"]))
                table.add_row(name, str(metrics["train_examples"]), labels, *_score(metrics))
        console.print(table)
        try_it = f"ptune serve {typed(output_dir)}"
        say(f"Saved in {output_dir}: a run for each task. Try it: {try_it}")
    if fleet.skipped:
        say(f"Skipped, because they were finished: {', '.join(fleet.skipped)}.", to)
    if fleet.refused:
        failed = "".join(f"\n{name}: {reason}" for name, reason in fleet.refused.items())
        say(f"{len(fleet.refused)} of {len(tasks)} tasks were not trained.{failed}", errors)
        say("Correct these, and repeat the command with --resume: it skips the others.", errors)
        raise typer.Exit(2)


def _score(metrics: dict[str, Any]) -> tuple[str, str, str]:
    """The first metric of a run but the loss, its value, and that of the majority class."""
    scores = metrics["eval"]
    key = first_score(scores) or ""
    own, base = (f"{v[key]:.4f}" if key in v else "" for v in (scores, metrics["majority"]))
    return key.replace("_", " "), own, base
