"""Every picture that ptune draws, as PNG and SVG, with a text for readers who cannot see it.

Colours can be told apart by colour-blind readers. Names of labels are drawn as they are: no part of
them is read as a formula.
"""

from __future__ import annotations

import base64
import functools
import html
import io
import struct
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

import numpy as np

from ptune.errors import cut

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The palette of Okabe and Ito.
BLUE, ORANGE, GREEN, PINK, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#666666"
COLOURS = (BLUE, ORANGE, GREEN, PINK)
STYLE = {
    "font.size": 9,
    "font.family": ["DejaVu Sans", "sans-serif"],
    "text.parse_math": False,
    "svg.fonttype": "none",  # text stays text: small, searchable, in the reader's fonts
    "svg.hashsalt": "ptune",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "legend.frameon": False,
}
# Characters of a label in a picture; labels in one column of bars; labels whose cells have numbers.
LONGEST, IN_COLUMN, WITH_NUMBERS = 32, 50, 30
DPI = 120
# Matplotlib is not thread-safe.
_drawing = threading.Lock()

Args = ParamSpec("Args")


@dataclass(frozen=True)
class Picture:
    """A drawn picture.

    Attributes:
        alt: What it shows, for readers who cannot see it.
        png: The picture.
        svg: The same, with text as text.
        width: In CSS pixels.
    """

    alt: str
    png: bytes
    svg: bytes
    width: int

    def save(self, file: Path) -> None:
        """Write it as `.png` and as `.svg`."""
        file.with_suffix(".png").write_bytes(self.png)
        file.with_suffix(".svg").write_bytes(self.svg)

    @property
    def url(self) -> str:
        """The picture as an address that a page can hold."""
        return f"data:image/svg+xml;base64,{base64.b64encode(self.svg).decode()}"


def _picture(draw: Callable[Args, tuple[Figure, str]]) -> Callable[Args, Picture]:
    """Turn a function that returns a figure and its description into one that returns a picture."""

    @functools.wraps(draw)
    def drawn(*args: Args.args, **kwargs: Args.kwargs) -> Picture:
        import matplotlib as mpl

        with _drawing, mpl.rc_context(STYLE), warnings.catch_warnings():  # type: ignore[arg-type]
            warnings.filterwarnings("ignore", "Glyph")  # no font here has it: a box is drawn
            figure, alt = draw(*args, **kwargs)
            png, svg = io.BytesIO(), io.BytesIO()
            how: dict[str, Any] = {"bbox_inches": "tight", "pad_inches": 0.1}
            figure.savefig(png, format="png", dpi=DPI, metadata={"Description": alt}, **how)
            about = {"Description": alt, "Date": None, "Creator": None}
            figure.savefig(svg, format="svg", metadata=about, **how)
        label = f'<svg role="img" aria-label="{html.escape(alt)}" '.encode()
        own = svg.getvalue().replace(b"<svg ", label, 1)
        width, _ = struct.unpack(">II", png.getvalue()[16:24])
        return Picture(alt, png.getvalue(), own, round(width * 96 / DPI))

    return drawn


def _figure(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    # pyplot would keep global state and may need a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def short(name: str, most: int = LONGEST) -> str:
    """A name on one line, without invisible characters, shortened to at most `most`."""
    name = "".join(c if c.isprintable() else "\ufffd" for c in " ".join(name.split()))
    return cut(name, most)


@_picture
def training_curve(
    epochs: Sequence[Mapping[str, Any]],
    title: str,
    *,
    selected: float | None = None,
    majority: Mapping[str, float] | None = None,
) -> tuple[Figure, str]:
    """Losses and scores over the epochs.

    Args:
        epochs: A record of each evaluation: `epoch`, `step`, losses and scores.
        title: Name of the data.
        selected: Epoch of the checkpoint that was kept.
        majority: Scores of always answering the most frequent label.
    """
    from matplotlib.ticker import MaxNLocator

    figure, (losses, scores) = _figure(9, 3.6, columns=2)
    x = [e["epoch"] for e in epochs]
    keys = [key for key in epochs[-1] if key not in ("epoch", "step")]
    parts = [key for key in keys if not key.endswith("loss")]
    for ax, own in ((losses, [key for key in keys if key not in parts]), (scores, parts)):
        for i, key in enumerate(own):
            y = np.array([e.get(key, np.nan) for e in epochs], dtype=float)
            name = {"train_loss": "training", "loss": "evaluation"}.get(key, key)
            marks: dict[str, Any] = {"marker": "osD^"[i % 4], "ms": 4, "color": COLOURS[i % 4]}
            ax.plot(x, y, label=name.replace("_", " "), **marks)
            if key in (majority or {}):
                ax.axhline(majority[key], color=COLOURS[i % 4], ls=":", lw=1)  # type: ignore[index]
        if ax is scores and majority:
            ax.plot([], [], color=GREY, ls=":", lw=1, label="majority class")
        if selected is not None:
            ax.axvline(selected, color=GREY, lw=6, alpha=0.25, label=f"kept: epoch {selected:.4g}")
        ax.set(xlabel="epoch", title="Loss" if ax is losses else "Score on the evaluation set")
        ax.legend()
        ax.grid(axis="y", alpha=0.25)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(x) == 1:
            ax.set_xlim(0, 2 * x[0])
    figure.suptitle(short(title))
    kept = next((e for e in epochs if e["epoch"] == selected), epochs[-1])
    said = ", ".join(f"{k.replace('_', ' ')} {kept[k]:.3f}" for k in parts if k in kept)
    return figure, (
        f"Training curve of {short(title)}: loss and scores over {x[-1]:.4g} epochs. "
        f"The checkpoint of epoch {kept['epoch']:.4g} was kept: {said}."
    )


def order_by_confusion(counts: np.ndarray) -> list[int]:
    """Labels in an order that shows confusions: the worst first, each next to its partners.

    Args:
        counts: ``[labels, labels]``, true labels in rows.
    """
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    np.fill_diagonal(shares, 0)
    mutual, errors = shares + shares.T, shares.sum(axis=1)
    order: list[int] = []
    left = set(range(len(counts)))
    while left:
        near = max(left, key=lambda j: (mutual[order[-1], j] if order else 0, errors[j], -j))
        order.append(near)
        left.remove(near)
    return order


@_picture
def confusion(counts: np.ndarray, names: Sequence[str], title: str) -> tuple[Figure, str]:
    """The share of each true label that was predicted as each label.

    Args:
        counts: ``[labels, labels]``, true labels in rows.
        names: Names of the labels.
        title: Name of the data.
    """
    from matplotlib.colors import PowerNorm

    n, order = len(names), order_by_confusion(counts)
    counts = counts[np.ix_(order, order)]
    totals = counts.sum(axis=1)
    shares = np.where(totals[:, None] > 0, counts / np.maximum(totals[:, None], 1), np.nan)
    cell = 0.8 if n <= 4 else 0.5 if n <= 12 else 0.34 if n <= WITH_NUMBERS else 0.15
    points = min(9.0, 45 * cell)  # of the names: smaller than a cell
    shown = [short(names[i]) for i in order]
    longest = max(map(len, shown)) * points / 110
    width = cell * n + longest + 1.8
    figure, (ax,) = _figure(max(5.0, width), max(4.2, width - 1))
    large = max(9.0, width)  # points of titles
    # The root makes small shares visible.
    image = ax.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="none")
    ax.set_facecolor("#dddddd")  # labels without examples
    if n <= WITH_NUMBERS:
        for i, j in np.argwhere(counts).tolist():
            colour, size = "white" if shares[i, j] > 0.35 else "black", min(9.0, 24 * cell)
            share = f"{100 * shares[i, j]:.0f}"
            ax.text(j, i, share, ha="center", va="center", color=colour, fontsize=size)
    upright: dict[str, Any] = {"rotation": 90} if n > 12 else {"rotation": 40, "ha": "right"}
    ax.set_xticks(range(n), shown, rotation_mode="anchor" if n <= 12 else None, **upright)
    ax.set_yticks(range(n), [f"{s} ({t})" for s, t in zip(shown, totals, strict=True)])
    ax.tick_params(labelsize=points, length=0)
    if n > WITH_NUMBERS:  # lines that lead from a cell to its names
        ax.set_xticks(np.arange(-0.5, n, 5), minor=True)
        ax.set_yticks(np.arange(-0.5, n, 5), minor=True)
        ax.grid(which="minor", color="#bbbbbb", lw=0.4)
        ax.tick_params(which="minor", length=0)
    ax.spines[:].set_visible(False)
    ax.set_xlabel("predicted", fontsize=large)
    ax.set_ylabel("true label (number of texts)", fontsize=large)
    bar = figure.colorbar(image, ax=ax, shrink=min(1.0, 0.5 + 1 / n), ticks=[0, 0.05, 0.25, 0.5, 1])
    bar.ax.set_yticklabels(["0", "5", "25", "50", "100"], fontsize=large)
    bar.set_label("% of the texts with the true label", fontsize=large)
    bar.outline.set_visible(False)
    right, all_texts = int(counts.trace()), int(totals.sum())
    figure.suptitle(f"{short(title)}: {right:,} of {all_texts:,} right", fontsize=large + 2)
    return figure, (
        f"Confusion matrix of {short(title)}, {n} labels: {right:,} of {all_texts:,} right."
        + _worst(counts, shown)
    )


def _worst(counts: np.ndarray, names: Sequence[str]) -> str:
    """A sentence about the two labels that are confused most."""
    off = counts * (1 - np.eye(len(counts), dtype=int))
    i, j = divmod(int(off.argmax()), len(counts))
    if not off[i, j]:
        return " No label is confused with another."
    of = counts[i].sum()
    return f" Most often, {names[i]} is predicted as {names[j]}: {off[i, j]:,} of {of:,} texts."


@_picture
def label_scores(rows: Sequence[Mapping[str, Any]], title: str) -> tuple[Figure, str]:
    """Precision and recall of each label, the lowest F1 first.

    Every label takes the same room, so rare labels are as visible as frequent ones.

    Args:
        rows: From `ptune.labels.per_label`.
        title: Name of the data.
    """
    rows = sorted(rows, key=lambda row: (row["f1"], row["examples"]))
    columns = -(-len(rows) // IN_COLUMN)
    tall = -(-len(rows) // columns)
    figure, axes = _figure(0.5 + 5.5 * columns, 1.3 + 0.22 * max(tall, 3), columns)
    seen = [row for row in rows if row["examples"]]
    means = {n: np.mean([row[n] for row in seen] or [0]) for n in ("precision", "recall")}
    for column, ax in enumerate(axes):
        own = rows[column * tall : (column + 1) * tall]
        y = np.arange(len(own))
        for name, side, colour in (("precision", -0.2, BLUE), ("recall", 0.2, ORANGE)):
            label = f"{name} (mean {means[name]:.2f})" if column == 0 else None
            ax.barh(y + side, [row[name] for row in own], 0.36, color=colour, label=label)
        for i, row in enumerate(own):
            if not row["f1"]:
                ax.text(0.01, i, _why_zero(row), va="center", fontsize=7, color=GREY)
        ax.set_yticks(y, [f"{short(row['label'])} ({row['examples']})" for row in own])
        ax.tick_params(axis="y", length=0, labelsize=8)
        ax.set(xlim=(0, 1), ylim=(tall - 0.5, -0.5))
        ax.grid(axis="x", alpha=0.25)
    figure.legend(loc="outside lower center", ncols=2)
    figure.suptitle(f"{short(title)}: label (number of texts), lowest F1 first")
    lowest = ", ".join(f"{short(row['label'])} {row['f1']:.2f}" for row in rows[:3])
    return figure, (
        f"Precision and recall of the {len(rows)} labels of {short(title)}: mean precision "
        f"{means['precision']:.2f}, mean recall {means['recall']:.2f}. Lowest F1: {lowest}."
    )


def _why_zero(row: Mapping[str, Any]) -> str:
    if not row["examples"]:
        return "no examples"
    return "predicted, never rightly" if row["predicted"] else "never predicted"


@_picture
def values(true: np.ndarray, predicted: np.ndarray, title: str) -> tuple[Figure, str]:
    """Predicted against true numbers.

    Args:
        true: ``[n]``.
        predicted: ``[n]``.
        title: Name of the data.
    """
    figure, (ax,) = _figure(4.8, 4.8)
    ax.scatter(true, predicted, s=12, alpha=0.5, color=BLUE)
    ends = [float(min(true.min(), predicted.min())), float(max(true.max(), predicted.max()))]
    ax.plot(ends, ends, color=GREY, ls=":", label="right")
    ax.set(xlabel="true value", ylabel="prediction")
    ax.legend()
    figure.suptitle(short(title))
    error = float(np.abs(true - predicted).mean())
    return figure, (
        f"Predicted against true values of {short(title)}, {len(true):,} texts: they differ by "
        f"{error:.3f} on average."
    )


@_picture
def methods(
    scores: Mapping[str, tuple[float, float, float]],
    baseline: tuple[str, float],
    metric: str,
    title: str,
    own: Sequence[str] = (),
) -> tuple[Figure, str]:
    """Scores of several methods, as distances from a baseline.

    Args:
        scores: Of each method, the score and the ends of its interval.
        baseline: Name and score of the method that the bars start from.
        metric: What the score is.
        title: Name of the data.
        own: Methods to highlight.
    """
    name, start = baseline
    figure, (ax,) = _figure(7.5, 1.4 + 0.36 * len(scores))
    ends = [end for score in scores.values() for end in score]
    low, high = min([start, *ends]), max([start, *ends])
    room = (high - low) or 1.0
    for i, (method, (score, lower, upper)) in enumerate(scores.items()):
        colour = BLUE if method in own else "#999999"
        ax.barh(i, score - start, left=start, height=0.7, color=colour)
        if upper > lower:
            ax.plot([lower, upper], [i, i], color="black", lw=1.2, marker="|", ms=6)
        ax.text(max(score, upper, start) + 0.015 * room, i, f"{score:.3f}", va="center")
    ax.axvline(start, color="black", lw=1)
    ax.set_yticks(range(len(scores)), [short(m, 2 * LONGEST) for m in scores])
    ax.tick_params(axis="y", length=0)
    ax.set(xlim=(low - (0.03 * room if low < start else 0), high + 0.1 * room))
    ax.set_xlabel(f"{metric}; bars start at {name}, {start:.3f}")
    ax.invert_yaxis()
    figure.suptitle(short(title))
    listed = ", ".join(f"{short(m)} {score:.3f}" for m, (score, _, _) in scores.items())
    said = f"{metric[:1].upper()}{metric[1:]} on {short(title)}"
    return figure, f"{said}: {listed}; {name} {start:.3f}."


@_picture
def by_examples(
    points: Sequence[tuple[str, Mapping[str, float]]], title: str
) -> tuple[Figure, str]:
    """Accuracy and macro F1 of classifiers, by how many examples each has learned from.

    Args:
        points: Number of examples, in words, and scores.
        title: Name of the data.
    """
    figure, (ax,) = _figure(5.5, 3.8)
    x = [name for name, _ in points]
    for colour, mark, key in ((BLUE, "o", "accuracy"), (ORANGE, "s", "f1_macro")):
        y = [found[key] for _, found in points]
        ax.plot(x, y, marker=mark, ms=5, color=colour, label=key.replace("_", " "))
    ax.set_ylim(0, 1)
    ax.grid(axis="y", alpha=0.25)
    ax.legend(loc="lower right")
    figure.suptitle(short(title))
    listed = ", ".join(f"{name} {found['accuracy']:.3f}" for name, found in points)
    return figure, f"Accuracy on {short(title)} by number of examples: {listed}."


# Number of examples, score, and the ends of its interval.
Measured = Sequence[tuple[int, float, float, float]]


@_picture
def data_curve(
    measured: Measured,
    fitted: Sequence[tuple[int, float]],
    predicted: Measured,
    metric: str,
    title: str,
) -> tuple[Figure, str]:
    """Scores by the number of training examples, and what a fitted curve predicts for more.

    Args:
        measured: Measured scores.
        fitted: The curve at the same numbers of examples.
        predicted: The curve at larger numbers.
        metric: The name of the score.
        title: Name of the data.
    """
    from matplotlib.ticker import NullFormatter, NullLocator

    figure, (ax,) = _figure(5.5, 3.8)
    for points, colour, mark, label in (
        (measured, BLUE, "o", "measured"),
        (predicted, ORANGE, "s", "predicted by the curve"),
    ):
        if points:
            x, y, low, high = (np.array(column) for column in zip(*points, strict=True))
            around = np.stack([y - low, high - y]).clip(0)
            ax.errorbar(x, y, around, fmt=mark, ms=5, lw=1, capsize=3, color=colour, label=label)
    if fitted:
        curve = [*fitted, *[(n, score) for n, score, _, _ in predicted]]
        ax.plot(*zip(*curve, strict=True), ls=":", lw=1, color=GREY)
    ax.set_xscale("log")
    sizes = [n for n, *_ in (*measured, *predicted)]
    ax.set_xticks(sizes, [f"{n:,}" for n in sizes])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set(xlabel="training examples", ylabel=metric.replace("_", " "))
    ax.grid(axis="y", alpha=0.25)
    ax.legend(loc="lower right")
    figure.suptitle(short(title))
    parts = [f"{n:,} {score:.3f}" for n, score, _, _ in measured]
    parts += [f"{n:,} {score:.3f} (predicted)" for n, score, _, _ in predicted]
    return figure, f"{metric} on {short(title)} by number of training examples: {', '.join(parts)}."
