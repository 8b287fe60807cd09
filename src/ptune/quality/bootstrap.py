"""Confidence intervals of scores, by resampling texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptune.labels import compute

Array = NDArray[Any]
SAMPLES = 1000
# For metrics without a fast form.
SLOW_SAMPLES = 200
LEVEL = 0.95


def counts(strata: Array, samples: int = SAMPLES, seed: int = 0) -> Array:
    """How often each text is in each resample, ``[samples, n]``.

    Each stratum (such as a label) keeps its number of texts.
    """
    rng = np.random.default_rng(seed)
    found = np.zeros((samples, len(strata)), dtype=np.float32)
    for value in np.unique(strata):
        inside = np.flatnonzero(strata == value)
        share = np.full(len(inside), 1 / len(inside))
        found[:, inside] = rng.multinomial(len(inside), share, size=samples)
    return found


def interval(values: Array) -> tuple[float, float]:
    """The central interval of a score over resamples.

    It is for texts with the strata's shares in the sample. If these shares vary from sample to
    sample, it is slightly too narrow.
    """
    if np.isnan(values).all():  # a correlation with equal numbers
        return np.nan, np.nan
    low, high = np.nanquantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def resampled(
    names: Sequence[str], targets: Array, predicted: Array, labels: int, weights: Array
) -> dict[str, Array]:
    """Each metric in each resample, ``[samples]``.

    Args:
        names: Names of metrics of `ptune.labels`.
        targets, predicted: As `Labels.decide` returns them.
        labels: How many labels there are.
        weights: From `counts`.
    """
    single, (t, p) = targets.ndim == 1, _indicators(targets, predicted, labels)
    fast = {
        "accuracy": lambda: _sums(weights, (t == p).all(axis=1)) / weights.sum(axis=1, dtype=float),
        "f1": lambda: _f1(t, p, weights)[:, 1],
        "f1_macro": lambda: _macro(t, p, weights, only_present=single),
        "f1_micro": lambda: _f1(t, p, weights, together=True)[:, 0],
    }
    return {
        name: fast[name]()
        if name in fast
        else np.array([_loop(name, targets, predicted, row) for row in weights[:SLOW_SAMPLES]])
        for name in names
    }


def _indicators(targets: Array, predicted: Array, labels: int) -> tuple[Array, Array]:
    """Targets and predictions as zeros and ones, ``[n, num_labels]``."""
    if targets.ndim == 2 or targets.dtype.kind == "f":
        return targets.astype(np.float32), predicted.astype(np.float32)
    size = max(labels, int(targets.max(initial=0)) + 1)
    return np.eye(size, dtype=np.float32)[targets], np.eye(size, dtype=np.float32)[predicted]


def _sums(weights: Array, values: Array) -> Array:
    """Sums of zeros, ones and twos over each resample, in float64.

    They are exact in float32, but quotients are not: rounding would put a true score that equals
    an end of its interval outside.
    """
    return (weights @ values.astype(np.float32)).astype(np.float64)


def _f1(t: Array, p: Array, weights: Array, *, together: bool = False) -> Array:
    """F1 of each label, or of all together, in each resample: ``[samples, num_labels or 1]``."""
    hits, size = _sums(weights, t * p), _sums(weights, t + p)
    if together:
        hits, size = hits.sum(axis=1, keepdims=True), size.sum(axis=1, keepdims=True)
    return 2 * hits / np.maximum(size, 1e-9)


def _macro(t: Array, p: Array, weights: Array, *, only_present: bool) -> Array:
    """Macro F1. As in scikit-learn, labels that do not occur count only if texts have several."""
    f1 = _f1(t, p, weights)
    present = _sums(weights, t + p) > 0 if only_present else np.ones_like(f1)
    return (f1 * present).sum(axis=1) / present.sum(axis=1)


def _loop(name: str, targets: Array, predicted: Array, row: Array) -> float:
    chosen = np.repeat(np.arange(len(row)), row.astype(int))
    return compute([name], targets[chosen], predicted[chosen])[name]
