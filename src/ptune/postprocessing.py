"""From logits to answers: what is fitted after training and stored with the adapter.

These are plain values. They hold no model, and the logits themselves never change.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from numbers import Real
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import special

from ptune.errors import PtuneError
from ptune.labels import Labels, Prediction

Array = NDArray[np.float64]

# A text is called unfamiliar above this. At least this share of the held-out texts are below.
UNFAMILIAR = 0.95


@dataclass(frozen=True)
class Goal:
    """What the thresholds of a classifier with several labels per text are chosen for.

    Attributes:
        metric: `f1`; or `precision` or `recall`, which must reach `floor`.
        floor: Between 0 and 1.

    Example:
        >>> Goal.parse("precision>=0.9")
        Goal(metric='precision', floor=0.9)
    """

    metric: str
    floor: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Goal | None:
        """Read a goal. `none`: every threshold stays at one half.

        Raises:
            PtuneError: It is not a goal.
        """
        found = re.fullmatch(r"\s*(none|f1|(precision|recall)\s*>=\s*(0?\.\d+|1|1\.0))\s*", text)
        if found is None:
            raise PtuneError(
                f"threshold_for is {text!r}; expected f1, none, precision>=X or recall>=X, with a "
                "number from 0 to 1."
            )
        if found[1] == "none":
            return None
        return cls(found[2], float(found[3])) if found[2] else cls("f1")


@dataclass(frozen=True, eq=False)
class Unfamiliar:
    """How unlike the held-out texts a text is, judged by its logits.

    The score is a weighted sum of five measures: the relative Mahalanobis distance
    (https://arxiv.org/abs/2106.09022), which is the squared distance to the nearest label's mean
    minus that to the mean of all texts; the distance to the nearest text whose logits are known
    (https://arxiv.org/abs/2204.06507); the same after logits are centred and have length one; the
    entropy of the probabilities; and the energy (https://arxiv.org/abs/2010.03759). Logits exist
    wherever a classifier runs, so the score costs next to nothing and is the same everywhere.

    Attributes:
        within: Makes the logits of one label spherical, ``[num_labels, num_labels]``.
        means: Mean of each label, made spherical, ``[num_labels, num_labels]``.
        overall: The same for all texts together, and in the last row their mean,
            ``[num_labels + 1, num_labels]``.
        scores: Scores of held-out texts, ascending; see `calibration.fit_unfamiliar`.
        known: Logits of training and held-out texts, ``[known, num_labels]``.
        weights: Of the measures, ``[5]``; earlier ``[4]``, without the energy.
    """

    within: Array
    means: Array
    overall: Array
    scores: Array
    known: Array | None = None
    weights: Array = field(default_factory=lambda: np.array([1.0, 0.0, 0.0, 0.0]))

    def parts(self, logits: Any, used: Array | None = None) -> Array:
        """The measures, ``[n, 5]``. Distances to known texts are 0 if there are none.

        Args:
            logits: Logits ``[n, num_labels]``.
            used: Weights of the measures: those with the weight 0 may stay 0.
        """
        used = np.ones(5) if used is None else used
        values = np.asarray(logits, dtype=np.float64)
        apart = (values @ self.within)[:, None] - self.means  # [n, num_labels, num_labels]
        relative = values @ self.overall[:-1] - self.overall[-1]
        distance = (apart**2).sum(axis=2).min(axis=1) - (relative**2).sum(axis=1)
        near = angle = np.zeros(len(values))
        if self.known is not None:
            known = np.asarray(self.known, dtype=np.float64)
            near = nearest(values, known)
            if used[2]:
                angle = nearest(_direction(values), _direction(known))
        entropy = special.entr(special.softmax(values, axis=1)).sum(axis=1)
        energy = -special.logsumexp(values, axis=1)
        return np.stack([distance, near, angle, entropy, energy], axis=1)

    def score(self, logits: Any) -> Array:
        """Scores ``[n]`` of logits ``[n, num_labels]``; higher is less familiar."""
        return self.parts(logits, self.weights)[:, : len(self.weights)] @ self.weights

    def share(self, logits: Any) -> Array:
        """The share of held-out texts that are more familiar than each text, ``[n]``.

        It is stretched so that the threshold is at `UNFAMILIAR`.
        """
        values = np.asarray(logits)
        parts = [self.score(values[i : i + 256]) for i in range(0, len(values), 256)]
        place = np.searchsorted(self.scores, np.concatenate([np.empty(0), *parts]))
        return place / len(self.scores)


def nearest(logits: Array, known: Array) -> Array:
    """Distances ``[n]`` of logits ``[n, num_labels]`` to the nearest of ``[known, num_labels]``."""
    found = ((known**2).sum(axis=1) - 2 * logits @ known.T).min(axis=1)
    return np.sqrt(((logits**2).sum(axis=1) + found).clip(0))


def _direction(logits: Array) -> Array:
    """Logits ``[n, num_labels]``, centred and of length one."""
    centred = logits - logits.mean(axis=1, keepdims=True)
    return centred / (np.linalg.norm(centred, axis=1, keepdims=True) + 1e-9)


@dataclass(frozen=True, eq=False)
class Postprocessing:
    """How a classifier turns logits into probabilities, labels and sets of labels.

    A part that is ``None`` was not fitted.

    Attributes:
        scale, shift: Calibration, ``[num_labels]`` each: the probabilities are those of
            ``scale * logits + shift``. With one label per text, the scale is one over the
            temperature, and the shift is zero.
        thresholds: The probability above which a text has a label, ``[num_labels]``, if it can
            have several.
        set_scores: For sets of labels: one minus the probability of the true label, of each
            held-out text, ascending.
        unfamiliar: Tells texts that are unlike the held-out ones.
        facts: How the values were fitted, for people.
    """

    scale: Array | None = None
    shift: Array | None = None
    thresholds: Array | None = None
    set_scores: Array | None = None
    unfamiliar: Unfamiliar | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    # Tensors of a file: the values that each may hold.
    LIMITS: ClassVar[dict[str, tuple[float, float]]] = {
        "scale": (1e-3, 1e3),
        "shift": (-1e3, 1e3),
        "thresholds": (0.0, 1.0),
        "set_scores": (0.0, 1.0),
        "unfamiliar.within": (-1e6, 1e6),
        "unfamiliar.means": (-1e6, 1e6),
        "unfamiliar.overall": (-1e6, 1e6),
        "unfamiliar.scores": (-1e6, 1e6),
        "unfamiliar.known": (-1e5, 1e5),
        "unfamiliar.weights": (0.0, 1e6),
        "unfamiliar.weight": (0.0, 1e6),  # earlier: of the distance to the nearest known text
    }

    @property
    def tensors(self) -> dict[str, Array]:
        """The values that were fitted, by name."""
        named = {f.name: getattr(self, f.name) for f in fields(self)[:4]}
        if self.unfamiliar is not None:
            own = fields(self.unfamiliar)
            named |= {f"unfamiliar.{f.name}": getattr(self.unfamiliar, f.name) for f in own}
        return {name: value for name, value in named.items() if value is not None}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Array], facts: Mapping[str, Any]) -> Postprocessing:
        """The inverse of `tensors`."""
        own = {n: v for n, v in tensors.items() if "." not in n}
        parts = {n.partition(".")[2]: v for n, v in tensors.items() if "." in n}
        if (weight := parts.pop("weight", None)) is not None:
            parts["weights"] = np.array([1.0, float(weight[0]), 0.0, 0.0])
        return cls(**own, unfamiliar=Unfamiliar(**parts) if parts else None, facts=facts)

    @property
    def calibration(self) -> str | None:
        """How probabilities were calibrated, for people; ``None``: they were not."""
        if self.scale is None:
            return None
        method = "temperature scaling" if self.shift is None else "Platt scaling"
        rows, where = self.facts.get("rows"), "fitted on held-out texts"
        if "fitted_on" in self.facts:
            where = "cross-fitted on training texts"
        return f"{method}, {where}" + (f" ({rows:,})" if rows else "")

    # From logits to answers.

    def calibrated(self, logits: Any) -> Array:
        """Logits ``[n, num_labels]`` whose probabilities can be believed, in float64."""
        values = np.asarray(logits, dtype=np.float64)
        if self.scale is None:
            return values
        return values * self.scale + (0.0 if self.shift is None else self.shift)

    def margins(self, logits: Any) -> Array:
        """Calibrated logits, relative to those of the thresholds: `Labels.decide` reads them."""
        values = self.calibrated(logits)
        return values if self.thresholds is None else values - special.logit(self.thresholds)

    def predictions(
        self,
        labels: Labels,
        logits: Any,
        min_confidence: float | None = None,
        truncated: Sequence[bool] | NDArray[np.bool_] = (),
    ) -> list[Prediction]:
        """The answer for each text, from logits ``[n, num_labels]``.

        Args:
            labels: The classifier's labels.
            logits: Logits as the model computes them.
            min_confidence: Below this probability, the label is ``None``.
            truncated: Whether each text was longer than the classifier reads.

        Raises:
            PtuneError: `min_confidence` is not a probability, or texts have not exactly one label.
        """
        found = labels.predictions(self.calibrated(logits), labels.decide(self.margins(logits)))
        if self.unfamiliar is not None:
            shares = self.unfamiliar.share(logits).tolist()
            found = [replace(p, unfamiliar=s) for p, s in zip(found, shares, strict=True)]
        for i in np.flatnonzero(truncated):
            found[i] = replace(found[i], truncated=True)
        if min_confidence is None:
            return found
        check_confidence(labels, min_confidence)
        return [p if p.score >= min_confidence else replace(p, label=None) for p in found]

    def label_sets(self, labels: Labels, logits: Any, coverage: float) -> NDArray[np.bool_]:
        """Which labels are in each text's prediction set, ``[n, num_labels]``.

        The set holds the true label with the probability `coverage`, for texts like the held-out
        ones (split conformal prediction, https://arxiv.org/abs/2107.07511). It may be empty: then
        no label is plausible.

        Raises:
            PtuneError: `coverage` is not between 0 and 1; texts have not exactly one label; or
                nothing was held out in training.
        """
        if not isinstance(coverage, Real) or not 0 < coverage < 1:
            raise PtuneError(f"coverage is {coverage!r}; expected a number between 0 and 1.")
        if not labels.is_single:
            raise PtuneError("Prediction sets require a classifier with one label per text.")
        if self.set_scores is None:
            raise PtuneError(
                "The classifier has no scores of held-out texts, which prediction sets require. "
                "Train it with an evaluation set (--eval-file, or eval_set= in Python) of at "
                "least 20 texts, and without --no-calibrate."
            )
        rank = math.ceil((len(self.set_scores) + 1) * coverage)
        bound = self.set_scores[rank - 1] if rank <= len(self.set_scores) else 1.0
        return 1.0 - labels.probabilities(self.calibrated(logits)) <= bound


# Nothing was fitted.
RAW = Postprocessing()


def check_confidence(labels: Labels, min_confidence: float) -> None:
    """Refuse to abstain where that has no meaning.

    Raises:
        PtuneError: `min_confidence` is not a probability, or texts have not exactly one label.
    """
    if not isinstance(min_confidence, Real) or not 0 <= min_confidence <= 1:
        raise PtuneError(f"min_confidence is {min_confidence!r}; expected a number from 0 to 1.")
    if not labels.is_single:
        raise PtuneError(
            "min_confidence requires a classifier with one label per text. With several, each "
            "label has its threshold (--threshold-for when it is trained)."
        )
