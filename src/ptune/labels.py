"""GLUE's metrics, by name, from scikit-learn and SciPy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn import metrics as sk

Array = NDArray[np.generic]


def _correlation(function: Callable[..., tuple[float, float]]) -> Callable[[Array, Array], float]:
    def correlation(labels: Array, predictions: Array) -> float:
        # A constant has no correlation; SciPy says NaN and warns.
        if np.ptp(labels) == 0 or np.ptp(predictions) == 0:
            return math.nan
        return float(function(labels, predictions)[0])

    return correlation


METRICS: dict[str, Callable[[Array, Array], float]] = {
    "accuracy": sk.accuracy_score,
    "f1": lambda y, p: sk.f1_score(y, p, zero_division=0.0),
    "f1_macro": lambda y, p: sk.f1_score(y, p, average="macro", zero_division=0.0),
    "f1_micro": lambda y, p: sk.f1_score(y, p, average="micro", zero_division=0.0),
    "matthews_correlation": sk.matthews_corrcoef,
    "pearson": _correlation(stats.pearsonr),
    "spearman": _correlation(stats.spearmanr),
}


def confusion_matrix(labels: Array, predictions: Array, num_labels: int) -> NDArray[np.int64]:
    """Counts ``[num_labels, num_labels]``: true labels down, predicted ones across."""
    return sk.confusion_matrix(labels, predictions, labels=range(num_labels))


# What a user's own data is measured by.
DEFAULT_METRICS: dict[str, tuple[str, ...]] = {
    "single_label_classification": ("accuracy", "f1_macro"),
    "multi_label_classification": ("accuracy", "f1_micro", "f1_macro"),
    "regression": ("pearson", "spearman"),
}


def decide(logits: Array, problem_type: str) -> Array:
    """Predictions from logits ``[n, num_labels]``.

    Returns:
        ``[n]`` label numbers, ``[n, num_labels]`` zeros and ones for several labels a text, or
        ``[n]`` numbers for regression.
    """
    values: NDArray[np.float64] = np.asarray(logits, dtype=float)
    if problem_type == "regression":
        return values.reshape(len(values), -1)[:, 0]
    if problem_type == "multi_label_classification":
        return (values > 0).astype(int)
    return values.argmax(axis=-1)


def compute(names: Iterable[str], labels: Array, predictions: Array) -> dict[str, float]:
    """Each metric of `names`, as a plain float.

    Example:
        >>> compute(["accuracy"], np.array([1, 0, 1, 1]), np.array([1, 0, 0, 1]))
        {'accuracy': 0.75}
    """
    return {name: float(METRICS[name](labels, predictions)) for name in names}


def mean_and_std(values: Sequence[float]) -> dict[str, float]:
    """`mean` and `std` of one score over several runs; the deviation of a sample, 0 for one run.

    Example:
        >>> mean_and_std([0.5, 0.75, 1.0])
        {'mean': 0.75, 'std': 0.25}
    """
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {"mean": float(np.mean(values)), "std": spread}
