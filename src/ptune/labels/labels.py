"""The labels of a classifier, as a value."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special
from sklearn import metrics as sk
from torch import Tensor
from torch.nn import functional

from ptune.errors import PtuneError, near
from ptune.labels.columns import (
    MULTI,
    PROBLEM_TYPES,
    REGRESSION,
    SINGLE,
    LabelColumn,
    read,
    weights_of,
)
from ptune.labels.metrics import Array, compute, known_metrics
from ptune.labels.values import (
    ValueType,
    as_array,
    check_names,
    distinct,
    keys,
    types_of_each,
    value_of,
)

# The label of a text for which no label is probable enough, in files.
NO_LABEL = "(none)"


@dataclass(frozen=True)
class Prediction:
    """What a classifier answers for one text.

    Labels are the values that training was given: strings, numbers, booleans or enum members.

    Attributes:
        label: The most probable label; ``None``, if its probability is below what the caller asked
            for. With several labels per text: a list of the labels with a probability above their
            threshold, one half by default. For regression: the number.
        score: The probability of that label; the largest probability; the number.
        probabilities: The probability of every label.
        unfamiliar: The share of held-out texts that are more like the others than this one: above
            0.95, it is less familiar than 95% of them. ``None``: not known.
        truncated: Whether the text is longer than the classifier reads, so that a part was left
            out.
    """

    label: Any
    score: float
    probabilities: dict[Any, float]
    unfamiliar: float | None = None
    truncated: bool = False


@dataclass(frozen=True)
class Labels:
    """The labels of a classifier.

    Attributes:
        names: Label names in the order of the logits. A regression has one: what its number is
            called.
        problem_type: As in Transformers' configurations; ``None``: not recorded, see `kind`.
        value_type: The type of the user's label values, see `ptune.labels.values`.
        outputs: The number of the label of each output of the head, -1 for none, after labels
            were merged or dropped. ``None``: one output for each label.
        aliases: Other names that labelled files may use, each with the number of its label, such as
            the name that a label had before it was renamed or merged. -1: texts with this name are
            left out of evaluation, because the label was dropped or marks texts without a label.
    """

    names: tuple[str, ...]
    problem_type: str | None = SINGLE
    value_type: ValueType = "str"
    outputs: tuple[int, ...] | None = None
    aliases: tuple[tuple[str, int], ...] = ()

    @classmethod
    def learn(cls, y: Any, problem_type: str | None = None) -> Labels:
        """The labels that occur in the training data.

        Args:
            y: The labels of the examples, in any form that `read` accepts.
            problem_type: ``None``: as scikit-learn's `type_of_target` decides. Numbers with a
                fraction are a regression; matrices of zeros and ones and lists of labels are
                several labels per text; all else is one label per text.

        Raises:
            PtuneError: Labels are missing, or there is only one, or nearly one per example.
        """
        column = read(y).check()
        if problem_type not in (None, *PROBLEM_TYPES):
            raise PtuneError(
                f"problem_type is {problem_type!r}; {near(problem_type, PROBLEM_TYPES)}."
            )
        column = column.for_problem(problem_type or column.problem_type)
        if (kind := problem_type or column.problem_type) == REGRESSION:
            column.numbers()
            return cls(("score",), REGRESSION)
        names, value_type = distinct(column)
        check_names(names, column)
        labels = cls(names, kind, value_type)
        seen: dict[Any, Any] = {}
        for value in labels.values:
            if (first := seen.setdefault(value, value)) is not value:
                raise PtuneError(
                    f"The labels {first!r} and {value!r} are equal in Python "
                    f"({column.origin}). Convert all labels to one type, for example with str()."
                )
        return labels

    # What kind of answer.

    def __len__(self) -> int:
        return len(self.names)

    @property
    def output_names(self) -> list[str]:
        """A name for each output of the head."""
        if self.outputs is None:
            return list(self.names)
        return [f"{self.names[n] if n >= 0 else ''} ({i})" for i, n in enumerate(self.outputs)]

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
    def values(self) -> list[Any]:
        """The user's own label values, in the order of the logits."""
        types = types_of_each(self.value_type, len(self))
        return [value_of(name, each) for name, each in zip(self.names, types, strict=True)]

    @property
    def classes(self) -> Array:
        """The user's own label values ``[num_labels]``, as an array of their type."""
        return as_array(self.values, self.value_type)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics for a user's own data."""
        return {
            SINGLE: ("accuracy", "f1_macro"),
            MULTI: ("accuracy", "f1_micro", "f1_macro"),
            REGRESSION: ("pearson", "spearman"),
        }[self.kind]

    # From labels to numbers.

    def encode(self, y: Any) -> list[Any]:
        """The training targets of labels.

        Returns:
            Per example a label number; a 0.0 or 1.0 for every label if a text can have several,
            NaN if it is unknown; or the number to predict.

        Raises:
            PtuneError: A label is missing or unknown, or not a number for a regression.
        """
        targets, unseen = self.targets(y)
        if unseen:
            name, count = unseen.most_common(1)[0]
            raise PtuneError(
                f"The label {name!r} occurs {count} time(s) ({read(y).origin}), and training never "
                f"saw it; {near(name, self.names)}."
            )
        return targets.tolist()

    def targets(self, y: Any) -> tuple[Array, Counter[str]]:
        """As `encode`, with further numbers or columns for labels that training never saw.

        Returns:
            The targets, and how often each unseen label occurs, by name.
        """
        column = read(y).check()
        if self.is_single and column.kind == "indicators" and column.names is None:
            column = replace(column, values=self._rearranged(column), names=tuple(self.values))
        column = column.for_problem(self.kind)
        if self.is_regression:
            return np.asarray(column.numbers()), Counter()
        if column.kind == "indicators":
            return self._rearranged(column), Counter()
        unseen: Counter[str] = Counter()
        numbers: dict[str, int] = {}
        several = column.kind == "several"
        flat = list(chain.from_iterable(column.values)) if several else column.values
        known = {key: self._number(key[1]) for key in set(zip(map(type, flat), flat, strict=True))}

        def number(value: Any) -> int:
            found = known[type(value), value]
            if found is not None:
                return found
            name = value.name if isinstance(value, enum.Enum) else str(value)
            unseen[name] += 1
            return len(self) + numbers.setdefault(name, len(numbers))

        if column.kind == "one":
            return np.array([number(v) for v in column.values], dtype=np.int64), unseen
        sets = [[number(v) for v in row] for row in column.values]
        rows: NDArray[np.float64] = np.zeros((len(sets), len(self) + len(numbers)))
        for i, chosen in enumerate(sets):
            rows[i, chosen] = 1.0
        return rows, unseen

    @cached_property
    def _numbers(self) -> dict[tuple[str, Any], int]:
        """Label numbers by the labels' own keys; an enum member is also known by its value."""
        numbers = {next(keys(value)): i for i, value in enumerate(self.values)}
        for i, value in enumerate(self.values):
            if isinstance(value, enum.Enum):
                numbers.setdefault(next(keys(value.value)), i)
        return numbers

    def _number(self, value: Any) -> int | None:
        for key in keys(value):
            if key in self._numbers:
                return self._numbers[key]
        alias = self._alias(value) if self.aliases else None
        return None if alias == -1 else alias

    @cached_property
    def _aliases(self) -> dict[tuple[str, Any], int]:
        return {key: number for name, number in self.aliases for key in keys(name)}

    def _alias(self, value: Any) -> int | None:
        return next((self._aliases[key] for key in keys(value) if key in self._aliases), None)

    def __contains__(self, value: Any) -> bool:
        """Whether a value is one of the labels, in any form that `encode` accepts."""
        return self._number(value) is not None

    def _rearranged(self, column: LabelColumn) -> Array:
        """Indicators with the columns in the order of the labels."""
        values = column.values
        if column.names is None:
            order = list(range(values.shape[1]))
        else:
            counted = [not leaves_out(self, name) for name in column.names]
            names = [name for name, counts in zip(column.names, counted, strict=True) if counts]
            order = [-1 if (known := self._number(name)) is None else known for name in names]
            values = values[:, counted]
        if sorted(set(order)) != list(range(len(self))):
            found = ", ".join(map(str, column.names or [f"{len(order)} columns without names"]))
            raise PtuneError(
                f"Expected a column for each of the labels {', '.join(self.names)}; "
                f"{column.origin} have {found}."
            )
        if len(order) > len(self):  # columns of labels that were merged
            return np.stack([_either(values[:, np.equal(order, i)]) for i in range(len(self))], 1)
        return values[:, np.argsort(order)]

    # From logits to answers.

    def merged(self, logits: Array) -> Array:
        """Logits ``[n, num_labels]`` of the labels, from those of the head's outputs.

        With one label per text, the probabilities of merged labels add up. If a text can have
        several, it has a merged label if it has one of the old ones, and the largest logit counts.
        """
        values = np.asarray(logits, dtype=float)
        if self.outputs is None or values.shape[-1] == len(self):
            return values
        pool = np.maximum if self.is_multi else np.logaddexp
        label_of = np.array(self.outputs)
        each = [pool.reduce(values[..., label_of == i], axis=-1) for i in range(len(self))]
        return np.stack(each, axis=-1)

    def decide(self, logits: Array) -> Array:
        """Predictions from logits ``[n, num_labels]``, comparable with targets.

        Returns:
            Label numbers ``[n]``; zeros and ones ``[n, num_labels]``, if a text can have several
            labels; or numbers ``[n]`` for a regression.
        """
        values = self.merged(logits)
        if self.is_regression:
            return values if values.ndim == 1 else values[:, 0]
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
        values = self.merged(logits)
        return special.expit(values) if self.is_multi else special.softmax(values, axis=-1)

    def predictions(self, logits: Array, decided: Array | None = None) -> list[Prediction]:
        """The answer for each text, from logits ``[n, num_labels]``.

        Args:
            logits: The probabilities follow from them.
            decided: As `decide` returns it; ``None``: it follows from the logits, too.
        """
        if self.is_regression:
            return [Prediction(v, v, {self.names[0]: v}) for v in self.decide(logits).tolist()]
        found, values = [], self.values
        decided = self.decide(logits) if decided is None else decided
        for row, chosen in zip(self.probabilities(logits).tolist(), decided.tolist(), strict=True):
            if self.is_multi:
                label: Any = [value for value, on in zip(values, chosen, strict=True) if on]
            else:
                label = values[chosen]
            found.append(Prediction(label, max(row), dict(zip(values, row, strict=True))))
        return found

    def by_name(self, prediction: Prediction) -> Prediction:
        """A prediction with names in place of label values, for files and servers.

        The name of a label that is ``None`` is `(none)`.
        """
        if prediction.label is None:
            prediction = replace(prediction, label=NO_LABEL)
        if self.is_regression or self.value_type == "str":
            return prediction
        names = dict(zip(self.values, self.names, strict=True))
        label = prediction.label
        label = [names[v] for v in label] if self.is_multi else names.get(label, NO_LABEL)
        probabilities = {names[v]: p for v, p in prediction.probabilities.items()}
        return replace(prediction, label=label, probabilities=probabilities)

    # Loss and scores.

    def losses(self, logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """The loss that the heads of Transformers compute, ``[n]`` or ``[n, num_labels]``.

        It is zero for unknown targets (NaN). Weights ``[n]`` are factors of the texts' losses.
        """
        if self.is_regression:
            losses = functional.mse_loss(logits[:, 0], targets, reduction="none")
        elif self.is_single:
            losses = functional.cross_entropy(logits, targets, reduction="none")
        else:
            losses = functional.binary_cross_entropy_with_logits(
                logits, targets.nan_to_num(), reduction="none"
            ).where(~targets.isnan(), 0.0)
        if weights is None:
            return losses
        return losses * (weights[:, None] if losses.ndim == 2 else weights)

    def scores(self, names: Sequence[str], targets: Array, predictions: Array) -> dict[str, float]:
        """The named metrics; unknown targets (NaN) count neither as right nor as wrong.

        Raises:
            PtuneError: There is no metric of that name, or it is for another kind of answer.
        """
        names = known_metrics(names)
        fitting = list(self.metrics)
        if self.is_single:
            # F1 is that of the second label.
            fitting += ["f1_micro", "matthews_correlation"] + ["f1"] * (len(self) == 2)
        if wrong := [name for name in names if name not in fitting]:
            several = " with more than two labels" if wrong[0] == "f1" and self.is_single else ""
            raise PtuneError(
                f"The metric {wrong[0]} is not for {self.kind}{several}. Use one of "
                f"{', '.join(fitting)}."
            )
        targets, predictions, known = comparable(self, targets, predictions)
        return compute(names, targets[known], predictions[known])

    def score(self, y: Any, logits: Array, sample_weight: Any = None) -> float:
        """scikit-learn's score: accuracy, or R² for a regression."""
        targets, predictions, known = comparable(self, self.targets(y)[0], self.decide(logits))
        targets, predictions = targets[known], predictions[known]
        weights = None if sample_weight is None else weights_of(sample_weight, len(known))[known]
        function = sk.r2_score if self.is_regression else sk.accuracy_score
        return float(function(targets, predictions, sample_weight=weights))


def known_names(labels: Labels) -> tuple[str, ...]:
    """All names that a labelled file may have."""
    return (*labels.names, *(name for name, _ in labels.aliases))


def leaves_out(labels: Labels, value: Any) -> bool:
    """Whether texts with this label are left out: it was dropped, or it means "none of these"."""
    return value not in labels and labels._alias(value) == -1


def comparable(labels: Labels, targets: Array, predictions: Array) -> tuple[Array, Array, Array]:
    """Targets and predictions of the same shape, to compare one by one.

    Where a label is unknown (NaN), both say no: that changes neither F1 nor accuracy.

    Args:
        labels: The labels of both.
        targets: From `Labels.targets`; there may be columns for labels that training never saw.
        predictions: From `Labels.decide`.

    Returns:
        The targets; the predictions; and a mask ``[n]`` of the examples with a known label.
        Leave the others out of scores.
    """
    targets, predictions = np.asarray(targets), np.asarray(predictions)
    if not labels.is_multi:
        return targets, predictions, np.full(len(targets), True)
    unseen = targets.shape[1] - predictions.shape[1]
    predictions = np.pad(predictions, ((0, 0), (0, unseen)))
    unknown = np.isnan(targets)
    known = np.asarray(~unknown.all(axis=1))
    return np.nan_to_num(targets).astype(int), np.where(unknown, 0, predictions), known


def _either(columns: Array) -> Array:
    """Whether a text has one of several labels ``[n, labels]``; NaN: unknown."""
    found: Array = columns.max(axis=1)  # unknown, if one of them is
    return np.where((columns == 1).any(axis=1), 1.0, found)
