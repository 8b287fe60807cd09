"""What a run reports: scores, pictures, a progress bar."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback

from ptune import labels as metrics
from ptune.data.dataset import LABEL
from ptune.files import CONFUSION_NAME, CURVE_NAME, LABELS_NAME, VALUES_NAME
from ptune.training import pictures as draw
from ptune.training.pictures import Picture

if TYPE_CHECKING:
    from ptune.data.dataset import TaskData
    from ptune.prompts.config import PromptEncoderConfig

# Steps after which the duration of a run is estimated.
STEPS_TO_ESTIMATE = 5


def history(log_history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`Trainer`'s log as one record per evaluation, with the training loss up to it."""
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


def best(epochs: list[dict[str, Any]], dataset: TaskData) -> dict[str, Any]:
    """The record with the best value of the first metric."""
    keys = [k for k in (epochs[-1] if epochs else {}) if k.endswith(dataset.metrics[0])]
    if not keys:
        return {}
    key = keys[0]
    scored = [e for e in epochs if key in e and not math.isnan(e[key])]
    return max(scored, key=lambda e: e[key]) if scored else {}


def selected(results: dict[str, Any]) -> float | None:
    """The epoch that the adapter is from.

    Args:
        results: The content of `metrics.json`.
    """
    at = {record["step"]: record["epoch"] for record in results["epochs"]}
    return at.get(results.get("adapter_step"), next(reversed(at.values()), None))


def majority(dataset: TaskData) -> tuple[dict[str, float], bool]:
    """The scores of always predicting the most frequent label of the training set.

    Returns:
        The scores, and whether other labels are as frequent.
    """
    if not dataset.labels.is_single:
        return {}, False
    label, tie = metrics.majority(dataset.train[LABEL])
    scores = {
        (f"{name}_" if name else "") + key: value
        for name, examples in dataset.evaluation.items()
        for key, value in metrics.compute(
            dataset.metrics, np.asarray(examples[LABEL]), np.full(len(examples), label)
        ).items()
    }
    return scores, tie


def training_curve(results: dict[str, Any]) -> Picture | None:
    """The losses and scores of a run; ``None``: it was not evaluated.

    Args:
        results: The content of `metrics.json`.
    """
    if not any("loss" in e for e in results["epochs"]):
        return None
    how: dict[str, Any] = {"selected": selected(results), "majority": results["majority"]}
    return draw.training_curve(results["epochs"], results["task"], **how)


def pictures(
    dataset: TaskData,
    results: dict[str, Any],
    answers: Mapping[str, tuple[np.ndarray, np.ndarray]],
) -> dict[str, Picture]:
    """The pictures of a run, by the names of their files.

    Args:
        dataset: The data of the run.
        results: The content of `metrics.json`.
        answers: True labels and logits of each evaluation set.
    """
    drawn, labels = {}, dataset.labels
    if curve := training_curve(results):
        drawn[CURVE_NAME] = curve
    for part, (truth, logits) in answers.items():
        predicted, title = labels.decide(logits), " ".join(filter(None, [dataset.name, part]))
        own = {}
        if labels.is_regression:
            own[VALUES_NAME] = draw.values(truth, predicted, title)
        else:
            rows = results["label_scores"][part or "eval"]
            own[LABELS_NAME] = draw.label_scores(rows, title)
        if labels.is_single:
            matrix = metrics.confusion(truth, predicted, len(labels))
            own[CONFUSION_NAME] = draw.confusion(matrix, labels.names, title)
        ending = f"_{part}.png" if part else ".png"
        drawn |= {name.replace(".png", ending): picture for name, picture in own.items()}
    return drawn


def _start(config: PromptEncoderConfig) -> str:
    """What a prompt starts from, and what the head reads."""
    words = {
        "random": f"random numbers x {config.prompt_init_scale:g}",
        "vocab": "random words",
        "text": f'"{config.prompt_init_text}"'.replace("\n", "\\n"),
    }
    start = f"{config.depth.capitalize()} prompt from {words[config.prompt_init or 'random']}"
    return f"{start if config.depth != 'none' else 'No prompt'}; pooling: {config.pooling}"


class TrainingProgress(TrainerCallback):
    """A progress bar, and a line for each evaluation."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("step {task.completed}/{task.total}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._loss: float | None = None
        self._first: tuple[int, float] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Print what was chosen, and show the bar."""
        groups = kwargs["optimizer"].param_groups  # the prompt's come first
        rates = " and ".join(f"{groups[i]['initial_lr']:g}" for i in (0, -1))
        self.console.print(
            f"{_start(kwargs['model'].prompt_config)}; epochs: {_epochs(args, state)}; "
            f"steps: {state.max_steps}; learning rates of prompt and head: {rates}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        self._first = None
        self.bar.start()
        self.task = self.bar.add_task(
            "training", total=state.max_steps, completed=state.global_step
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Advance the bar. After a few steps, print how long the rest will take."""
        self.bar.update(self.task, completed=state.global_step)
        now = time.monotonic()
        step, started = self._first = self._first or (state.global_step, now)
        if state.global_step == step + STEPS_TO_ESTIMATE:
            left = (now - started) / STEPS_TO_ESTIMATE * (state.max_steps - state.global_step)
            shown = f"{left:.0f} seconds" if left < 100 else f"{left / 60:.0f} minutes"
            say = (
                f"time      about {shown} for the other {state.max_steps - state.global_step} steps"
            )
            self.console.print(say, highlight=False)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remember the training loss for the next line."""
        self._loss = kwargs["logs"].get("loss", self._loss)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Print the scores."""
        shown = {
            k.removeprefix("eval_"): v
            for k, v in kwargs["metrics"].items()
            if isinstance(v, float) and not k.endswith(("_second", "_runtime", "epoch"))
        }
        loss = "" if self._loss is None else f"  train loss {self._loss:.3f}"
        scores = "".join(f"  {k.replace('_', ' ')} {v:.3f}" for k, v in shown.items())
        self.console.print(f"epoch {state.epoch:4.1f}/{_epochs(args, state)}{loss}{scores}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remove the bar."""
        self.bar.stop()


def _epochs(args: Any, state: Any) -> str:
    """How many epochs a run has; `--max-steps` overrides the setting."""
    epochs = args.num_train_epochs if args.max_steps < 0 else state.num_train_epochs
    return f"{epochs:.1f}".removesuffix(".0")
