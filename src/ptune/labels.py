"""Labels: what a classifier can answer, and everything that depends on the kind of answer.

`Labels` is the only place that knows the three problem types. It numbers the labels of examples,
turns logits into predictions, and chooses loss, metrics and the form of an answer.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats
from sklearn import metrics as sk
from torch import Tensor
from torch.nn import functional

from ptune.errors import PtuneError, near

Array = NDArray[Any]

SINGLE, MULTI = "single_label_classification", "multi_label_classification"
REGRESSION = "regression"
# As in Transformers' configurations.
PROBLEM_TYPES = (SINGLE, MULTI, REGRESSION)


@dataclass(frozen=True)
class Prediction:
    """What a classifier answers for one text.

    Attributes:
        label: The most probable label. With several labels per text: a list of the labels with a
            probability above one half. For regression: the number.
        score: The probability of that label; the largest probability; the number.
        probabilities: The probability of every label, by name.
    """

    label: str | list[str] | float
    score: float
    probabilities: dict[str, float]


@dataclass(frozen=True)
class Labels:
    """The labels of a classifier.

    Attributes:
        names: Label names in the order of the logits. A regression has one: what its number is
            called.
        problem_type: As in Transformers' configurations; ``None``: not recorded, see `kind`.
        values: The user's own label values, in the same order; ``None``: the names.
    """

    names: tuple[str, ...]
    problem_type: str | None = SINGLE
    values: tuple[Any, ...] | None = None

    @classmethod
    def numbered(cls, count: int, problem_type: str | None = None) -> Labels:
        """Labels without names: LABEL_0, LABEL_1 and so on."""
        return cls(tuple(f"LABEL_{i}" for i in range(count)), problem_type)

    @classmethod
    def learn(
        cls,
        values: Sequence[Any],
        *,
        problem_type: str | None = None,
        separator: str = "|",
        where: str = "labels",
    ) -> Labels:
        """The labels that occur in the training data.

        Args:
            values: The label of each example.
            problem_type: ``None``: lists of labels are several labels per text, numbers with a
                fraction are a regression, and all else is one label per text.
            separator: Between several labels in one string.
            where: Where the values come from, for messages.

        Raises:
            PtuneError: There is only one label, or nearly one per example.
        """
        problem_type = problem_type or _problem_type_of(values)
        if problem_type == REGRESSION:
            return cls(("score",), REGRESSION)
        empty = cls((), problem_type)
        found = empty._split(values, separator)
        names = {n for v in found for n in v} if empty.is_multi else set(found)
        if len(names) < 2:
            raise PtuneError(
                f"Every example has the label {next(iter(names), '(none)')!r} ({where}). A "
                "classifier needs at least two. Is it the right column (--label-column)?"
            )
        if len(names) > max(100, len(values) // 2):
            raise PtuneError(
                f"There are {len(names)} different labels in {len(values)} examples ({where}). Is "
                "it the right column (--label-column)? To predict numbers as numbers, use "
                "--problem-type regression."
            )
        numeric = all(n.lstrip("-").isdigit() for n in names)
        ordered = tuple(sorted(names, key=int) if numeric else sorted(names))
        if empty.is_multi:
            return cls(ordered, problem_type)
        own = {label_name(v): v for v in values}
        return cls(ordered, problem_type, tuple(own[name] for name in ordered))

    # In files and in Transformers' configurations.

    @classmethod
    def from_json(cls, content: Mapping[str, Any], where: str, count: int = 2) -> Labels:
        """Read what `to_json` wrote.

        Args:
            content: A JSON object; its other fields are ignored.
            where: The file, for messages.
            count: How many labels there are if the file does not name them.

        Raises:
            PtuneError: The labels or the problem type are not valid.
        """
        names, problem_type = content.get("labels"), content.get("problem_type")
        if problem_type not in (None, *PROBLEM_TYPES):
            raise PtuneError(
                f"{where} is damaged: problem_type is {problem_type!r}. Expected one of "
                f"{', '.join(PROBLEM_TYPES)}. Save or download it again."
            )
        if not names:
            return cls.numbered(count, problem_type)
        if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
            raise PtuneError(
                f"{where} is damaged: labels is {str(names)[:80]}. Expected a list of strings. "
                "Save or download it again."
            )
        return cls(tuple(names), problem_type)

    def to_json(self) -> dict[str, Any]:
        """The labels as fields of a JSON object."""
        return {"labels": list(self.names), "problem_type": self.problem_type}

    @classmethod
    def from_config(cls, config: Any) -> Labels:
        """The labels of a Transformers configuration."""
        names = tuple(config.id2label[i] for i in range(config.num_labels))
        return cls(names, config.problem_type)

    def to_config(self) -> dict[str, Any]:
        """The labels as fields of a Transformers configuration."""
        return {
            "num_labels": len(self),
            "id2label": dict(enumerate(self.names)),
            "label2id": {name: i for i, name in enumerate(self.names)},
            "problem_type": self.problem_type,
        }

    # What kind of answer.

    def __len__(self) -> int:
        return len(self.names)

    @property
    def kind(self) -> str:
        """The problem type. If it is not recorded, a single output is a regression's number."""
        return self.problem_type or (REGRESSION if len(self) == 1 else SINGLE)

    @property
    def is_single(self) -> bool:
        """True if a text has exactly one label."""
        return self.kind == SINGLE

    @property
    def is_multi(self) -> bool:
        """True if a text can have several labels, or none."""
        return self.kind == MULTI

    @property
    def is_regression(self) -> bool:
        """True if the answer is a number."""
        return self.kind == REGRESSION

    @property
    def classes(self) -> Array:
        """The user's own label values ``[num_labels]``, in the order of the logits."""
        return np.asarray(self.names if self.values is None else self.values)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics for a user's own data."""
        return {
            SINGLE: ("accuracy", "f1_macro"),
            MULTI: ("accuracy", "f1_micro", "f1_macro"),
            REGRESSION: ("pearson", "spearman"),
        }[self.kind]

    def order_in(self, other: Labels) -> list[int] | None:
        """The position of each label in another classifier's order of the same labels.

        An adapter written by PEFT, or trained on label numbers, has numbered labels. They are in
        this order if there are as many. ``None``: the labels are not the same.
        """
        if self.kind != other.kind or len(self) != len(other):
            return None
        if all(re.fullmatch(r"(LABEL_)?\d+", name) for name in other.names):
            return list(range(len(self)))
        if set(self.names) != set(other.names):
            return None
        return [other.names.index(name) for name in self.names]

    # From labels to numbers.

    def encode(
        self, values: Sequence[Any], *, separator: str = "|", where: str = "labels"
    ) -> list[Any]:
        """The training targets of label values.

        Returns:
            Per example a label number; a 0.0 or 1.0 for every label, if a text can have several;
            or the number to predict.

        Raises:
            PtuneError: A label is unknown, or not a number where a regression needs one.
        """
        if self.is_regression:
            return finite(values, where)
        found = self._split(values, separator)
        number = {name: i for i, name in enumerate(self.names)}
        counts = Counter(n for v in found for n in (v if self.is_multi else [v]))
        if unknown := sorted(counts.keys() - number.keys()):
            raise PtuneError(
                f"The label {unknown[0]!r} occurs {counts[unknown[0]]} time(s) ({where}), and "
                f"training never saw it; {near(unknown[0], self.names)}."
            )
        if self.is_multi:
            return [[float(name in v) for name in self.names] for v in found]
        return [number[v] for v in found]

    def _split(self, values: Iterable[Any], separator: str) -> list[Any]:
        """The name, or the list of names, of each label value."""
        if not self.is_multi:
            return [label_name(v) for v in values]
        found = []
        for value in values:
            parts = value.split(separator) if isinstance(value, str) else value
            parts = parts if isinstance(parts, list) else [parts]
            found.append([str(p).strip() for p in parts if str(p).strip()])
        return found

    # From logits to answers.

    def decide(self, logits: Array) -> Array:
        """Predictions from logits ``[n, num_labels]``, comparable with targets.

        Returns:
            Label numbers ``[n]``; zeros and ones ``[n, num_labels]``, if a text can have several
            labels; or numbers ``[n]`` for a regression.
        """
        values = np.asarray(logits, dtype=float)
        if self.is_regression:
            return values.reshape(len(values), -1)[:, 0]
        if self.is_multi:
            return (values > 0).astype(int)
        return values.argmax(axis=-1)

    def decode(self, logits: Array) -> Array:
        """As `decide`, with the user's own label values in place of label numbers."""
        decided = self.decide(logits)
        return self.classes[decided] if self.is_single else decided

    def probabilities(self, logits: Array) -> Array:
        """Probabilities ``[n, num_labels]`` from logits, in float64.

        Raises:
            PtuneError: A regression has none.
        """
        if self.is_regression:
            raise PtuneError("A regression has no probabilities; use predict.")
        values = np.asarray(logits, dtype=np.float64)
        return special.expit(values) if self.is_multi else special.softmax(values, axis=-1)

    def predictions(self, logits: Array) -> list[Prediction]:
        """The answer for each text, from logits ``[n, num_labels]``."""
        if self.is_regression:
            return [Prediction(v, v, {self.names[0]: v}) for v in self.decide(logits).tolist()]
        found = []
        for row in self.probabilities(logits).tolist():
            best = max(range(len(row)), key=row.__getitem__)
            label: str | list[str] = self.names[best]
            if self.is_multi:
                label = [name for name, p in zip(self.names, row, strict=True) if p > 0.5]
            found.append(Prediction(label, row[best], dict(zip(self.names, row, strict=True))))
        return found

    # Loss and scores.

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss that the heads of Transformers compute: a mean over all examples."""
        if self.is_regression:
            return functional.mse_loss(logits[:, 0], targets)
        if self.is_multi:
            return functional.binary_cross_entropy_with_logits(logits, targets)
        return functional.cross_entropy(logits, targets)

    def majority(self, targets: Sequence[int]) -> int:
        """The most frequent label number; of equally frequent ones the first."""
        return int(np.bincount(targets).argmax())

    def confusion(self, targets: Array, predictions: Array) -> NDArray[np.int64]:
        """Counts ``[num_labels, num_labels]`` of one label per text: true labels in rows."""
        return sk.confusion_matrix(targets, predictions, labels=range(len(self)))


def _problem_type_of(values: Sequence[Any]) -> str:
    if any(isinstance(v, list) for v in values):
        return MULTI
    numeric = all(isinstance(v, int | float) for v in values)
    if numeric and not all(float(v).is_integer() for v in values):
        return REGRESSION
    return SINGLE


def label_name(value: Any) -> str:
    """The name of a label value: ``1.0`` and ``1`` are one label."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


def finite(values: Iterable[Any], where: str) -> list[float]:
    """Label values as numbers.

    Raises:
        PtuneError: One of them is not a finite number.
    """
    numbers = []
    for i, value in enumerate(values):
        try:
            numbers.append(float(value))
        except (TypeError, ValueError):
            numbers.append(math.nan)
        if not math.isfinite(numbers[-1]):
            raise PtuneError(
                f"A regression needs numbers as labels ({where}); example {i + 1} has {value!r}. "
                "Correct it or leave that example out."
            )
    return numbers


# Metrics.


def _correlation(function: Callable[..., tuple[float, float]]) -> Callable[[Array, Array], float]:
    def correlation(labels: Array, predictions: Array) -> float:
        # A constant has no correlation; SciPy returns NaN and warns.
        if np.ptp(labels) == 0 or np.ptp(predictions) == 0:
            return math.nan
        return float(function(labels, predictions)[0])

    return correlation


# GLUE's metrics, by name.
METRICS: dict[str, Callable[[Array, Array], float]] = {
    "accuracy": sk.accuracy_score,
    "f1": lambda y, p: sk.f1_score(y, p, zero_division=0.0),
    "f1_macro": lambda y, p: sk.f1_score(y, p, average="macro", zero_division=0.0),
    "f1_micro": lambda y, p: sk.f1_score(y, p, average="micro", zero_division=0.0),
    "matthews_correlation": sk.matthews_corrcoef,
    "pearson": _correlation(stats.pearsonr),
    "spearman": _correlation(stats.spearmanr),
}


def compute(names: Iterable[str], labels: Array, predictions: Array) -> dict[str, float]:
    """Each of the named metrics, as a plain float.

    Example:
        >>> compute(["accuracy"], np.array([1, 0, 1, 1]), np.array([1, 0, 0, 1]))
        {'accuracy': 0.75}
    """
    return {name: float(METRICS[name](labels, predictions)) for name in names}


def mean_and_std(values: Sequence[float]) -> dict[str, float]:
    """Mean and standard deviation of a score over several runs (of a sample; 0 for one run).

    Example:
        >>> mean_and_std([0.5, 0.75, 1.0])
        {'mean': 0.75, 'std': 0.25}
    """
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {"mean": float(np.mean(values)), "std": spread}
