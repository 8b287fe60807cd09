"""Whether new texts are like those of the training: `ptune drift`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ptune import texts
from ptune.inference.text_classifier import TextClassifier
from ptune.quality.features import Show, features

Array = NDArray[Any]
# A difference is called a shift if chance alone makes one as large less often than this.
SIGNIFICANT = 0.01
PERMUTATIONS = 1000
# Texts that are compared, at most, of each of the two.
MOST_TEXTS = 2000


@dataclass(frozen=True)
class Shift:
    """One comparison of reference texts and new texts.

    Attributes:
        name: What is compared.
        reference, new: Its value in words.
        size: How large the difference is: 0 for none, 1 for the largest possible, or in standard
            deviations.
        p_value: How often chance alone makes it as large.
    """

    name: str
    reference: str
    new: str
    size: float
    p_value: float

    @property
    def is_shift(self) -> bool:
        """True if chance alone hardly explains it."""
        return self.p_value < SIGNIFICANT


def drift(
    classifier: TextClassifier,
    reference: list[list[str]],
    new: list[list[str]],
    *,
    model: str | None = None,
    show: Show = lambda batches, total: batches,
) -> list[Shift]:
    """Compare new texts with texts that the classifier was made for.

    Args:
        classifier: The classifier.
        reference, new: Texts, in one column or two each. At most `MOST_TEXTS` drawn at random of
            each are compared.
        model: The backbone whose features are compared; ``None``: features are not compared.
        show: Shows progress: takes batches and their number.

    Raises:
        PtuneError: The backbone cannot be loaded.
    """
    both = [_drawn(reference), _drawn(new)]
    logits = [np.stack(list(classifier.logits(texts.as_rows(columns)))) for columns in both]
    found = [_lengths(classifier, both)]
    labels, values = classifier.labels_, classifier.postprocessing_
    if labels.is_regression:
        found.append(_numbers("predicted number", [labels.decide(z) for z in logits], "{:.2f}"))
    else:
        decided = [labels.decide(values.margins(z)) for z in logits]
        found.append(_labels(list(labels.names), decided))
        p = [labels.probabilities(values.calibrated(z)).max(axis=1) for z in logits]
        found.append(_numbers("confidence", p, "{:.1%}"))
    if model is not None:
        found.append(_features([features(columns, model, show=show)[0] for columns in both]))
    return found


def _drawn(columns: list[list[str]]) -> list[list[str]]:
    count = len(columns[0])
    if count <= MOST_TEXTS:
        return columns
    chosen = np.random.default_rng(0).permutation(count)[:MOST_TEXTS]
    return [[column[i] for i in chosen] for column in columns]


def _numbers(name: str, both: list[Array], form: str) -> Shift:
    """Two samples of numbers, by the Kolmogorov-Smirnov test."""
    test = stats.ks_2samp(*both)
    old, new = (f"{form.format(np.mean(v))} on average" for v in both)
    return Shift(name, old, new, float(test.statistic), float(test.pvalue))


def _lengths(classifier: TextClassifier, both: list[list[list[str]]]) -> Shift:
    each = [np.array(classifier._lengths(columns), dtype=float) for columns in both]
    return _numbers("tokens per text", each, "{:.1f}")


def _labels(names: list[str], decided: list[Array]) -> Shift:
    """Predicted labels: half the sum of the differences of their shares."""
    size = len(names)
    rows = [np.eye(size, dtype=int)[d] if d.ndim == 1 else d for d in decided]
    shares = [part.mean(axis=0) for part in rows]

    def distance(a: Array, b: Array) -> float:
        return float(0.5 * np.abs(a - b).sum())

    moved = int(np.abs(shares[1] - shares[0]).argmax())
    old, new = (f"{names[moved]} {share[moved]:.1%}" for share in shares)
    found, together = distance(*shares), np.concatenate(rows).astype(float)
    p_value = _permuted(together, len(rows[0]), distance, found)
    return Shift("predicted labels", old, new, found, p_value)


def _features(both: list[Array]) -> Shift:
    """The mean feature: the distance of the two means, in units of the features' spread."""
    together = np.concatenate(both)
    old, new = (f"{len(part):,} texts" for part in both)
    if (together == together[0]).all():  # of texts that are all the same, or features of zeros
        return Shift("features", old, new, 0.0, 1.0)
    spread = float(np.sqrt(together.var(axis=0).sum()))

    def distance(a: Array, b: Array) -> float:
        return float(np.linalg.norm(a - b)) / spread

    size = distance(both[0].mean(axis=0), both[1].mean(axis=0))
    p_value = _permuted(together, len(both[0]), distance, size)
    return Shift("features", old, new, size, p_value)


def _permuted(
    rows: Array, first: int, distance: Callable[[Array, Array], float], found: float
) -> float:
    """How often a random division of the rows has means as far apart as those found."""
    rng = np.random.default_rng(0)
    total, as_far = rows.sum(axis=0), 1
    for _ in range(PERMUTATIONS):
        part = rows[rng.permutation(len(rows))[:first]].sum(axis=0)
        as_far += distance(part / first, (total - part) / (len(rows) - first)) >= found
    return as_far / (PERMUTATIONS + 1)
