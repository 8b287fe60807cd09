"""What a run reports: scores, a learning curve, a confusion matrix, a progress bar."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainingArguments

from ptune import labels as metrics
from ptune.data.dataset import LABEL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ptune.data.dataset import TaskData
    from ptune.prompts.config import PromptEncoderConfig

# Colours that colour-blind readers can tell apart (Okabe and Ito).
BLUE, ORANGE, GREEN, PINK, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#666666"
# Steps after which the duration of a run is estimated.
STEPS_TO_ESTIMATE = 5
# Matplotlib is not thread-safe.
_drawing = threading.Lock()


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


def scores(record: dict[str, Any]) -> dict[str, Any]:
    """The evaluation scores of a record."""
    return {k: v for k, v in record.items() if k not in ("epoch", "step", "train_loss")}


def best(epochs: list[dict[str, Any]], dataset: TaskData) -> dict[str, Any]:
    """The record with the best value of the first metric."""
    keys = [k for k in (epochs[-1] if epochs else {}) if k.endswith(dataset.metrics[0])]
    if not keys:
        return {}
    key = keys[0]
    scored = [e for e in epochs if key in e and not math.isnan(e[key])]
    return max(scored, key=lambda e: e[key]) if scored else {}


def majority(dataset: TaskData) -> tuple[dict[str, float], bool]:
    """The scores of always predicting the most frequent label of the training set.

    Returns:
        The scores, and whether other labels are as frequent.
    """
    if dataset.train is None or not dataset.labels.is_single:
        return {}, False
    majority, tie = dataset.labels.majority(dataset.train[LABEL])
    scores = {
        (f"{name}_" if name else "") + key: value
        for name, examples in dataset.evaluation.items()
        for key, value in metrics.compute(
            dataset.metrics, np.asarray(examples[LABEL]), np.full(len(examples), majority)
        ).items()
    }
    return scores, tie


def _figure(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    # pyplot would keep global state and may need a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    return figure, list(axes)


def learning_curve(
    epochs: list[dict[str, Any]], dataset: TaskData, majority: dict[str, float], file: Path
) -> None:
    """Plot losses and scores over the epochs."""
    from matplotlib.ticker import MaxNLocator

    with _drawing:
        figure, (losses, scores) = _figure(10, 4, columns=2)
        x = [e["epoch"] for e in epochs]
        colours = [BLUE, ORANGE, GREEN, PINK]
        keys = [k for k in (epochs[-1] if epochs else {}) if k not in ("epoch", "step")]
        for colour, key in zip(colours, [k for k in keys if k.endswith("loss")], strict=False):
            label = {"train_loss": "training", "loss": "evaluation"}.get(key, key)
            losses.plot(x, _column(epochs, key), marker="o", ms=4, color=colour, label=label)
        losses.set_title("Loss", loc="left")
        for i, key in enumerate([k for k in keys if not k.endswith("loss")]):
            colour, label = colours[i % len(colours)], key.replace("_", " ")
            scores.plot(x, _column(epochs, key), marker="o", ms=4, color=colour, label=label)
            if key in majority:
                _mark_majority(scores, x[-1], majority[key], colour)
        scores.set_title("Score on the evaluation set", loc="left")
        for ax in (losses, scores):
            ax.set_xlabel("epoch")
            ax.legend(frameon=False)
            ax.grid(axis="y", alpha=0.25)
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.suptitle(dataset.name)
        figure.savefig(file, dpi=120)


def examples_curve(points: Sequence[tuple[str, dict[str, float]]], title: str, file: Path) -> None:
    """Plot the accuracy and macro F1 of classifiers, by how many examples each has learned from."""
    with _drawing:
        figure, (scores,) = _figure(6, 4)
        for colour, key in ((BLUE, "accuracy"), (ORANGE, "f1_macro")):
            x, y = [name for name, _ in points], [found[key] for _, found in points]
            scores.plot(x, y, marker="o", ms=5, color=colour, label=key.replace("_", " "))
        scores.set_ylim(0, 1)
        scores.grid(axis="y", alpha=0.25)
        scores.legend(frameon=False, loc="lower right")
        figure.suptitle(title)
        figure.savefig(file, dpi=120)


def _mark_majority(scores: Axes, right: float, score: float, colour: str) -> None:
    scores.axhline(score, color=colour, ls=":", lw=1)
    scores.annotate(
        "majority class",
        (right, score),
        xytext=(0, 3),
        textcoords="offset points",
        ha="right",
        fontsize=8,
        color=colour,
    )


def _column(epochs: list[dict[str, Any]], key: str) -> np.ndarray:
    return np.array([e.get(key, np.nan) for e in epochs], dtype=float)


def confusion(truth: np.ndarray, predicted: np.ndarray, dataset: TaskData, file: Path) -> None:
    """Plot predictions against true labels.

    A confusion matrix for one label per text, a scatter plot for regression. With several labels
    per text, a bar for each label: the share of texts for which it was predicted correctly.
    """
    right, labels = "", dataset.labels
    with _drawing:
        if labels.is_regression:
            figure = _scatter(truth, predicted)
        elif labels.is_multi:
            known = ~np.isnan(truth)
            right_ones = ((truth == predicted) & known).sum(axis=0)
            figure = _bars(right_ones / np.maximum(known.sum(axis=0), 1), labels.names)
        else:
            figure = _matrix(labels.confusion(truth, predicted), labels.names)
            right = f": {int((truth == predicted).sum())} of {len(truth)} correct"
        figure.suptitle(dataset.name + right)
        figure.savefig(file, dpi=120)


def _scatter(truth: np.ndarray, predicted: np.ndarray) -> Figure:
    figure, (ax,) = _figure(5, 5)
    ax.scatter(truth, predicted, s=12, alpha=0.5, color=BLUE)
    ends = [float(min(truth.min(), predicted.min())), float(max(truth.max(), predicted.max()))]
    ax.plot(ends, ends, color=GREY, ls=":")
    ax.set(xlabel="true value", ylabel="prediction")
    return figure


def _bars(shares: np.ndarray, labels: Sequence[str]) -> Figure:
    figure, (ax,) = _figure(6, 1.5 + 0.35 * len(labels))
    ax.barh(labels, shares, color=BLUE)
    ax.set(xlim=(0, 1), xlabel="share of texts with a correct prediction")
    ax.invert_yaxis()
    return figure


def _matrix(counts: np.ndarray, labels: Sequence[str]) -> Figure:
    """Counts ``[num_labels, num_labels]``, true labels in rows."""
    n = len(labels)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = 3.2 + 0.45 * n
    figure, (ax,) = _figure(size + 0.8, size)
    image = ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if n <= 40:
        for i, j in np.ndindex(counts.shape):
            if counts[i, j]:
                colour = "white" if shares[i, j] > 0.5 else "black"
                ax.text(j, i, str(counts[i, j]), ha="center", va="center", color=colour)
    names = [label.replace("_", " ") for label in labels]
    ax.set_xticks(range(n), names, rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(n), names)
    ax.spines[:].set_visible(False)
    ax.set(xlabel="predicted", ylabel="true")
    figure.colorbar(image, ax=ax, shrink=0.8, label="share of the true label")
    return figure


def _start(config: PromptEncoderConfig) -> str:
    """What a prompt starts from, and what the head reads."""
    words = {
        "random": f"random numbers x {config.prompt_init_scale:g}",
        "vocab": "random words",
        "text": f'"{config.prompt_init_text}"',
    }
    what = words[config.prompt_init or "random"]
    return f"{config.depth.capitalize()} prompt from {what}; pooling: {config.pooling}"


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

    def on_train_begin(
        self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any
    ) -> None:
        """Print what was chosen, and show the bar."""
        groups = kwargs["optimizer"].param_groups  # the prompt's come first
        rates = " and ".join(f"{groups[i]['initial_lr']:g}" for i in (0, -1))
        self.console.print(
            f"{_start(kwargs['model'].prompt_config)}; {args.num_train_epochs:g} epochs, "
            f"{state.max_steps} steps; learning rates of prompt and head {rates}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        self._first = None
        self.bar.start()
        self.task = self.bar.add_task(
            "training", total=state.max_steps, completed=state.global_step
        )

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
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

    def on_log(
        self, args: TrainingArguments, state: Any, control: Any, logs: dict, **kwargs: Any
    ) -> None:
        """Remember the training loss for the next line."""
        self._loss = logs.get("loss", self._loss)

    def on_evaluate(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Print the scores."""
        shown = {
            k.removeprefix("eval_"): v
            for k, v in kwargs["metrics"].items()
            if isinstance(v, float) and not k.endswith(("_second", "_runtime", "epoch"))
        }
        loss = "" if self._loss is None else f"  train loss {self._loss:.3f}"
        scores = "".join(f"  {k.replace('_', ' ')} {v:.3f}" for k, v in shown.items())
        self.console.print(f"epoch {state.epoch:4.1f}/{args.num_train_epochs:g}{loss}{scores}")

    def on_train_end(
        self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any
    ) -> None:
        """Remove the bar."""
        self.bar.stop()
