"""GLUE's metrics by name, from scikit-learn and SciPy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn import metrics as sk

from ptune.errors import PtuneError, near

Array = NDArray[Any]


def _correlation(function: Callable[..., tuple[float, float]]) -> Callable[[Array, Array], float]:
    def correlation(labels: Array, predictions: Array) -> float:
        # A constant has no correlation; SciPy returns NaN and warns.
        if np.ptp(labels) == 0 or np.ptp(predictions) == 0:
            return math.nan
        return float(function(labels, predictions)[0])

    return correlation


def _f1(average: str) -> Callable[[Array, Array], float]:
    def f1(labels: Array, predictions: Array) -> float:
        # For scikit-learn, a single column holds the classes 0 and 1. Here it is one label.
        only = [1] if labels.ndim == 2 and labels.shape[1] == 1 else None
        return sk.f1_score(labels, predictions, labels=only, average=average, zero_division=0.0)

    return f1


METRICS: dict[str, Callable[[Array, Array], float]] = {
    "accuracy": sk.accuracy_score,
    # Of the label with the number 1, also if the data has labels that training never saw.
    "f1": lambda y, p: sk.f1_score(y, p, labels=[1], average="macro", zero_division=0.0),
    "f1_macro": _f1("macro"),
    "f1_micro": _f1("micro"),
    "matthews_correlation": sk.matthews_corrcoef,
    "pearson": _correlation(stats.pearsonr),
    "spearman": _correlation(stats.spearmanr),
}


def known_metrics(names: Iterable[str]) -> list[str]:
    """Names of metrics, or one name, as a list.

    Raises:
        PtuneError: There is no metric of that name.
    """
    if not isinstance(names, Iterable):
        raise PtuneError(f"metrics is {names!r}; {near(names, METRICS)}.")
    names = [names] if isinstance(names, str) else list(names)
    if unknown := [name for name in names if name not in METRICS]:
        raise PtuneError(f"There is no metric {unknown[0]!r}; {near(unknown[0], METRICS)}.")
    return names


def compute(names: Iterable[str], labels: Array, predictions: Array) -> dict[str, float]:
    """Each of the named metrics, as a plain float.

    Raises:
        PtuneError: There is no metric of that name.

    Example:
        >>> compute(["accuracy"], np.array([1, 0, 1, 1]), np.array([1, 0, 0, 1]))
        {'accuracy': 0.75}
    """
    return {name: float(METRICS[name](labels, predictions)) for name in known_metrics(names)}


def confusion(targets: Array, predictions: Array, labels: int) -> NDArray[np.int64]:
    """Counts ``[labels, labels]`` of one label per text: true labels in rows."""
    return sk.confusion_matrix(targets, predictions, labels=range(labels))


def majority(targets: Sequence[int] | Array) -> tuple[int, bool]:
    """The most frequent label number, and whether others are as frequent.

    Of equally frequent labels it is the first in the order of the labels.
    """
    counts = np.bincount(targets)
    return int(counts.argmax()), int((counts == counts.max()).sum()) > 1


def per_label(targets: Array, predictions: Array, names: Sequence[str]) -> list[dict[str, Any]]:
    """Precision, recall, F1 and counts of each label.

    Args:
        targets: Numbers of labels, ``[n]``; or zeros and ones, ``[n, labels]``, where NaN is
            unknown and counts neither way.
        predictions: In the same form.
        names: Names of the labels.

    Example:
        >>> rows = per_label(np.array([0, 0, 1]), np.array([0, 1, 1]), ["no", "yes"])
        >>> [(row["label"], row["precision"], row["examples"]) for row in rows]
        [('no', 1.0, 2), ('yes', 0.5, 1)]
    """
    if targets.ndim == 1:
        targets, predictions = (np.eye(len(names))[part] for part in (targets, predictions))
    has, says = (np.where(np.isnan(targets), 0, part) for part in (targets, predictions))
    counts = [part.sum(axis=0) for part in (has * says, has, says)]
    return [
        {
            "label": name,
            "precision": right / max(predicted, 1),
            "recall": right / max(examples, 1),
            "f1": 2 * right / max(predicted + examples, 1),
            "examples": int(examples),
            "predicted": int(predicted),
        }
        for name, right, examples, predicted in zip(
            names, *(part.tolist() for part in counts), strict=True
        )
    ]


def mean_and_std(values: Sequence[float]) -> dict[str, float]:
    """Mean and standard deviation of a score over several runs (of a sample; 0 for one run).

    Example:
        >>> mean_and_std([0.5, 0.75, 1.0])
        {'mean': 0.75, 'std': 0.25}
    """
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {"mean": float(np.mean(values)), "std": spread}
