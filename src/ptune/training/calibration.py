"""Fit calibration and thresholds on held-out texts, and measure what they are worth.

Measured values are cross-fitted: those of each text come from a fit without it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import optimize, special
from sklearn.metrics import f1_score, roc_auc_score

from ptune.labels import Labels
from ptune.postprocessing import RAW, UNFAMILIAR, Goal, Postprocessing, Unfamiliar

Array = NDArray[Any]

# Fewer held-out texts calibrate nothing.
MIN_ROWS = 20
# Labels with fewer positive texts get the threshold of all labels together.
MIN_POSITIVES = 10
# Standard deviation of the log of a scale before any text is seen. It matters for few texts, or
# if all predictions are right, when the likelihood alone has no maximum.
PRIOR = 1.0
# Bins of the expected calibration error.
BINS = 15
FOLDS = 5
# Held-out scores that are kept, each for prediction sets and for unfamiliar texts.
MAX_SCORES = 2000
# Unfamiliar texts: texts that are needed, labels at most (the values grow with their square), and
# how far covariances are moved towards that of independent logits.
MIN_FAMILIAR, MAX_FAMILIAR, SHRINKAGE = 50, 256, 0.1
# Texts that belong to no label: those that are needed, and the factors they choose from.
MIN_OUT_OF_SCOPE, TIMES = 10, (1.0, 0.0, 0.5, 2.0, 4.0)
# Texts of each label whose logits are kept, of training and of held-out texts each, and numbers
# that are kept at most.
PER_LABEL, MAX_NUMBERS = 64, 1_000_000
# With this many labels, distances between logits count as much as the energy. With few labels,
# logits have too few dimensions for distances; with many, the energy tells less.
EVEN_LABELS = 12
# Held-out texts that may be called unfamiliar although their label is right, as a share of all.
MOST_LOST = 0.015


def fit(
    labels: Labels,
    logits: Array,
    targets: Array,
    goal: Goal | None = None,
    known: Array | None = None,
    out_of_scope: Array | None = None,
) -> tuple[Postprocessing, dict[str, Any]]:
    """Fit on held-out texts, and measure cross-fitted.

    Args:
        labels: The labels.
        logits: Logits of the held-out texts, ``[n, num_labels]``.
        targets: Their true labels, as `Labels.encode` returns them.
        goal: What thresholds are chosen for, if a text can have several labels.
        known: Logits of training texts; see `fit_unfamiliar`.
        out_of_scope: Logits of texts that belong to no label.

    Returns:
        The fitted values, and the measurements for `metrics.json`. Both are empty for a regression
        and for fewer than `MIN_ROWS` texts.
    """
    logits, targets = np.asarray(logits, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    counted = ~np.isnan(targets).all(axis=1) if labels.is_multi else np.full(len(targets), True)
    logits, targets = logits[counted], targets[counted]
    if labels.is_regression or len(logits) < MIN_ROWS:
        return RAW, {}
    fitted = fit_values(labels, logits, targets, goal)
    if labels.is_single:
        unfamiliar = fit_unfamiliar(logits, targets.astype(int), known, out_of_scope)
        fitted = replace(fitted, unfamiliar=unfamiliar)
    crossed = cross_fitted(lambda x, y: fit_values(labels, x, y, goal), logits, targets)
    measured: dict[str, Any] = {
        "measured_on": "evaluation, cross-fitted",
        "rows": len(logits),
        **before_and_after(labels, logits, crossed[0], targets),
    }
    if fitted.unfamiliar is not None and out_of_scope is not None:
        # Each half is judged by weights that the other one chose.
        halves = [(out_of_scope[i::2], out_of_scope[1 - i :: 2]) for i in range(2)]
        fits = [fit_unfamiliar(logits, targets.astype(int), known, a) for a, _ in halves]
        shares = [f.share(b) for f, (_, b) in zip(fits, halves, strict=True) if f is not None]
        marked = float(np.mean(np.concatenate(shares) > UNFAMILIAR))
        measured["out_of_scope"] = {"rows": len(out_of_scope), "marked": marked}
    if labels.is_single and fitted.scale is not None:
        measured["temperature"] = float(1 / fitted.scale[0])
    if fitted.thresholds is not None:
        unknown = np.isnan(targets)
        truth = np.nan_to_num(targets).astype(int)
        measured["f1_macro"] = {
            name: f1_score(
                truth, np.where(unknown, 0, values > 0), average="macro", zero_division=0.0
            )
            for name, values in (("before", logits), ("after", crossed[1]))
        }
    return fitted, measured


def fit_values(labels: Labels, logits: Array, targets: Array, goal: Goal | None) -> Postprocessing:
    """Calibration, and thresholds or scores of sets. The arguments are those of `fit`."""
    facts: dict[str, Any] = {"rows": len(logits)}
    if labels.is_single:
        scale = np.full(len(labels), fit_temperature(labels, logits, targets.astype(int)))
        found = Postprocessing(scale, facts={**facts, "calibration": "temperature"})
        p = labels.probabilities(found.calibrated(logits))
        scores = np.sort(1 - p[np.arange(len(p)), targets.astype(int)])
        return replace(found, set_scores=_thinned(scores, MAX_SCORES))
    scale, shift = fit_platt(logits, targets)
    found = Postprocessing(scale, shift, facts={**facts, "calibration": "platt"})
    if goal is None:
        return found
    p = labels.probabilities(found.calibrated(logits))
    shown = goal.metric + (f">={goal.floor:g}" if goal.floor else "")
    return replace(
        found,
        thresholds=fit_thresholds(p, targets, goal),
        facts={**found.facts, "threshold_for": shown},
    )


def folds(count: int) -> Iterator[Array]:
    """Which of N texts are left out of a fit, ``[n]``, for each of `FOLDS` fits; each text once."""
    fold = np.random.default_rng(0).permutation(count) % FOLDS
    return (fold == i for i in range(FOLDS))


def cross_fitted(
    fit: Callable[[Array, Array], Postprocessing], logits: Array, targets: Array
) -> tuple[Array, Array]:
    """Calibrated logits and margins ``[n, num_labels]`` of each text, from fits without it."""
    calibrated, margins = np.empty_like(logits), np.empty_like(logits)
    for out in folds(len(logits)):
        fitted = fit(logits[~out], targets[~out])
        calibrated[out] = fitted.calibrated(logits[out])
        margins[out] = fitted.margins(logits[out])
    return calibrated, margins


def _thinned(ascending: Array, most: int) -> Array:
    """At most `most` of the values. Each stands for those below it, so sets become no smaller."""
    if len(ascending) <= most:
        return ascending
    return ascending[np.ceil(np.arange(1, most + 1) * len(ascending) / most).astype(int) - 1]


# Calibration.


def fit_temperature(labels: Labels, logits: Array, targets: Array, prior: float = PRIOR) -> float:
    """The scale of all logits, one over the temperature, that makes the true labels most likely.

    Guo et al., https://arxiv.org/abs/1706.04599.
    """
    z, truth = torch.from_numpy(logits), torch.from_numpy(targets)

    def loss(log_scale: float) -> float:
        losses = labels.losses(z * float(np.exp(log_scale)), truth)
        return float(losses.sum()) + 0.5 * (log_scale / prior) ** 2

    return float(np.exp(optimize.minimize_scalar(loss, bounds=(-4, 4), method="bounded").x))


def fit_platt(logits: Array, targets: Array) -> tuple[Array, Array]:
    """Scale and shift of each label's logit, ``[num_labels]`` each.

    Labels with few texts stay close to scale and shift of all labels together. Unknown targets
    (NaN) do not count.
    """
    known, y = ~np.isnan(targets), np.nan_to_num(targets)

    def fit(center: Array, shared: bool) -> Array:
        def loss(flat: Array) -> tuple[float, Array]:
            log_scale, shift = values = flat.reshape(2, -1)  # [1 or num_labels] each
            z = np.exp(log_scale) * logits + shift
            losses = np.where(known, np.logaddexp(0, z) - y * z, 0.0)
            error = np.where(known, special.expit(z) - y, 0.0)
            gradient = np.stack([error * logits * np.exp(log_scale), error])
            gradient = gradient.sum(axis=(1, 2))[:, None] if shared else gradient.sum(axis=1)
            off = (values - center) / PRIOR
            return losses.sum() + 0.5 * (off**2).sum(), (gradient + off / PRIOR).ravel()

        bounds = [(-4.0, 4.0)] * center.shape[1] + [(-50.0, 50.0)] * center.shape[1]
        found = optimize.minimize(loss, center.ravel(), jac=True, method="L-BFGS-B", bounds=bounds)
        return found.x.reshape(2, -1)

    together = fit(np.zeros((2, 1)), True)
    log_scale, shift = fit(np.repeat(together, logits.shape[1], axis=1), False)
    return np.exp(log_scale), shift


# Unfamiliar texts.


def some_of_each(targets: Array, labels: int) -> Array:
    """Positions of a few texts of each label, drawn at random, whose logits are worth keeping."""
    count = min(PER_LABEL, MAX_NUMBERS // labels**2)
    order = np.random.default_rng(0).permutation(len(targets))
    return np.sort(np.concatenate([order[targets[order] == n][:count] for n in range(labels)]))


def fit_unfamiliar(
    logits: Array,
    targets: Array,
    known: Array | None = None,
    out_of_scope: Array | None = None,
) -> Unfamiliar | None:
    """What distinguishes unfamiliar texts; ``None``: too few texts, or too many labels.

    The scores that are kept are cross-fitted, because texts are close to themselves. The weights
    follow from the number of labels and from how much each measure varies over the held-out texts,
    or are chosen by texts that belong to no label.

    Args:
        logits: Logits of held-out texts, ``[n, num_labels]``.
        targets: Their labels, ``[n]``.
        known: Logits of training texts, ``[known, num_labels]``.
        out_of_scope: Logits of texts that belong to no label, ``[m, num_labels]``.
    """
    size = logits.shape[1]
    if len(logits) < MIN_FAMILIAR or size > MAX_FAMILIAR:
        return None
    known = np.empty((0, size)) if known is None else known
    parts = np.empty((len(logits), 5))
    for out in folds(len(logits)):
        parts[out] = _familiar(logits[~out], targets[~out], known).parts(logits[out])
    found, spread = _familiar(logits, targets, known), parts.std(axis=0)
    # A measure that is nearly always the same tells nothing, and would get a huge weight.
    varies = spread > np.maximum(1e-9, 1e-4 * spread[0])
    even = np.where(varies, spread[0] / np.maximum(spread, 1e-9), 0.0)
    distances = (size / EVEN_LABELS) ** 1.5 / 3
    weights = even * [distances, 2 * distances, 0.0, 0.0, 1.0]
    if out_of_scope is not None and len(out_of_scope) >= MIN_OUT_OF_SCOPE:
        both = np.concatenate([parts, found.parts(out_of_scope)])
        outside = np.arange(len(both)) >= len(parts)
        choices = [even * [1.0, *times] for times in itertools.product(TIMES, repeat=4)]
        weights = max([weights, *choices], key=lambda own: roc_auc_score(outside, both @ own))
    scores = _stretched(parts @ weights, logits.argmax(axis=1) == targets)
    return replace(found, scores=scores, weights=weights)


def _stretched(scores: Array, right: Array) -> Array:
    """Scores of held-out texts, ascending, of which a share of `UNFAMILIAR` is below the threshold.

    It is at least as high as the scores of that share of the texts, and higher if more than
    `MOST_LOST` of them would be marked although their label is right.
    """
    n, order = len(scores), np.argsort(-scores)
    allowed = right[order].cumsum() <= MOST_LOST * n
    marked = min(int(allowed.sum()), int((1 - UNFAMILIAR) * n + 1e-9))
    ranks = np.arange(1, min(n, MAX_SCORES) + 1) / min(n, MAX_SCORES)
    levels = np.interp(ranks, [0, UNFAMILIAR, 1], [0, 1 - marked / n, 1])
    return np.quantile(scores, levels)


def _familiar(logits: Array, targets: Array, known: Array) -> Unfamiliar:
    size, mean = logits.shape[1], logits.mean(axis=0)
    sums = np.zeros((size, size))
    np.add.at(sums, targets, logits)
    # A label with few texts is moved towards the mean of all.
    means = (sums + mean) / (np.bincount(targets, minlength=size) + 1)[:, None]
    within, all_together = _spherical(logits - means[targets]), _spherical(logits - mean)
    overall = np.vstack([all_together, mean @ all_together])
    known = np.concatenate([known, logits[some_of_each(targets, size)]]).astype(np.float16)
    return Unfamiliar(within, means @ within, overall, np.zeros(1), known)


def _spherical(rest: Array) -> Array:
    """The matrix that gives deviations ``[n, size]`` the same variance in every direction."""
    covariance = rest.T @ rest / len(rest)
    spread = np.trace(covariance) / len(covariance) + 1e-6
    covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * spread * np.eye(len(covariance))
    return np.linalg.cholesky(np.linalg.inv(covariance))


# Thresholds.


def fit_thresholds(probabilities: Array, targets: Array, goal: Goal) -> Array:
    """A threshold for each label, ``[num_labels]``. Unknown targets (NaN) do not count.

    A label that cannot reach the goal's floor gets 1, and is never predicted.
    """
    known = ~np.isnan(targets)
    together = _threshold(probabilities[known], targets[known], goal)
    thresholds = []
    for p, y, here in zip(probabilities.T, targets.T, known.T, strict=True):
        few = y[here].sum() < MIN_POSITIVES
        thresholds.append(together if few else _threshold(p[here], y[here], goal))
    return np.array(thresholds)


def _threshold(p: Array, y: Array, goal: Goal) -> float:
    """The threshold of one label, halfway between two of the probabilities ``[n]``."""
    order = np.argsort(-p, kind="stable")
    p, y = p[order], y[order]
    hits = y.cumsum()
    precision, recall = hits / np.arange(1, len(y) + 1), hits / max(1.0, hits[-1])
    cuts = np.append(p[1:] < p[:-1], True)  # only between different probabilities
    if goal.metric == "f1":
        value = 2 * hits / (np.arange(1, len(y) + 1) + hits[-1])
    elif goal.metric == "precision":
        value = np.where(precision >= goal.floor, recall, -1.0)
    else:
        value = np.where(recall >= goal.floor, precision, -1.0)
    value = np.where(cuts, value, -1.0)
    best = int(value.argmax())
    if value[best] < 0:
        return 1.0
    following = p[best + 1] if best + 1 < len(p) else 0.0
    return float((p[best] + following) / 2)


# How far probabilities can be believed.


def confidences(labels: Labels, probabilities: Array, targets: Array) -> tuple[Array, Array]:
    """What a classifier claimed and whether it was right, ``[n]`` each.

    With one label per text: the probability of the predicted label. With several: of each label.
    """
    if labels.is_single:
        return probabilities.max(axis=1), probabilities.argmax(axis=1) == targets
    known = ~np.isnan(targets)
    return probabilities[known], targets[known] == 1


def reliability(claimed: Array, right: Array) -> list[tuple[int, float, float]]:
    """For each bin with texts: their number, the mean probability, and the share that was right."""
    bins = np.minimum((claimed * BINS).astype(int), BINS - 1)
    inside = [here for i in range(BINS) if (here := bins == i).any()]
    return [(int(b.sum()), float(claimed[b].mean()), float(right[b].mean())) for b in inside]


def before_and_after(
    labels: Labels, logits: Array, calibrated: Array, targets: Array
) -> dict[str, dict[str, float]]:
    """The calibration error and the Brier score of logits, and of calibrated ones."""
    each = {
        name: labels.probabilities(z) for name, z in (("before", logits), ("after", calibrated))
    }
    return {
        measure.__name__: {name: measure(labels, p, targets) for name, p in each.items()}
        for measure in (ece, brier)
    }


def ece(labels: Labels, probabilities: Array, targets: Array) -> float:
    """The expected calibration error: the mean gap between claimed and right, over `BINS` bins."""
    rows = reliability(*confidences(labels, probabilities, targets))
    return sum(n * abs(claimed - right) for n, claimed, right in rows) / sum(n for n, _, _ in rows)


def brier(labels: Labels, probabilities: Array, targets: Array) -> float:
    """The Brier score: the mean squared distance between probabilities and truth.

    It is summed over the labels if a text has one, and averaged over them if it can have several.
    """
    if labels.is_single:
        truth = np.eye(len(labels))[np.asarray(targets, dtype=int)]
        return float(((probabilities - truth) ** 2).sum(axis=1).mean())
    return float(np.nanmean((probabilities - targets) ** 2))
