"""Label columns: the forms in which people hold the labels of their examples.

scikit-learn's rules apply: a column vector is one label per example, a matrix of zeros and ones is
several labels per example, and a list of lists, tuples or sets of names is the same.
"""

from __future__ import annotations

import enum
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import DataConversionWarning

from ptune.errors import PtuneError, positions

SINGLE, MULTI = "single_label_classification", "multi_label_classification"
REGRESSION = "regression"
# As in Transformers' configurations.
PROBLEM_TYPES = (SINGLE, MULTI, REGRESSION)

# Types of label values that ptune stores with a classifier.
SCALARS = (str, bool, int, float, enum.Enum)
_CONTAINERS = (list, tuple, set, frozenset, np.ndarray)


@dataclass(frozen=True)
class LabelColumn:
    """The labels of examples, read but not yet numbered.

    Attributes:
        kind: `one`: one label per example; `several`: a list of labels per example; `indicators`:
            a row of zeros and ones per example.
        values: One entry per example. Indicators are floats ``[n, num_labels]``; NaN: unknown.
        names: The labels of the columns of indicators.
        dtype: NumPy's type of the values, if they were an array of numbers.
        where: Where they come from, for messages.
        first: The number of the first example, for messages: 0 in Python, 1 in files.
    """

    kind: Literal["one", "several", "indicators"]
    values: Any
    names: tuple[Any, ...] | None = None
    dtype: np.dtype[Any] | None = None
    where: str = "the labels"
    first: int = 0

    def __len__(self) -> int:
        return len(self.values)

    def without(self, left_out: Sequence[int]) -> LabelColumn:
        """The column without the examples at some positions."""
        gone = set(left_out)
        kept = [i for i in range(len(self)) if i not in gone]
        values = self.values[kept] if self.kind == "indicators" else [self.values[i] for i in kept]
        return replace(self, values=values)

    def missing(self) -> list[int]:
        """Positions of the examples that have no label.

        An empty list is a label column's way to say that a text has none of the labels.
        """
        if self.kind == "indicators":
            return np.flatnonzero(np.isnan(self.values).all(axis=1)).tolist()
        if self.kind == "several":
            return [i for i, v in enumerate(self.values) if v is None or any(map(is_missing, v))]
        return [i for i, v in enumerate(self.values) if is_missing(v)]

    @property
    def problem_type(self) -> str:
        """The problem type that scikit-learn's `type_of_target` would choose."""
        if self.kind != "one":
            return MULTI
        numeric = all(isinstance(v, int | float) for v in self.values)
        whole = not numeric or all(v == v // 1 for v in self.values if math.isfinite(v))
        return SINGLE if whole else REGRESSION

    def for_problem(self, problem_type: str) -> LabelColumn:
        """The column in the form that a problem type needs.

        Raises:
            PtuneError: A text has several labels, or none, and the problem type needs one.
        """
        if problem_type == MULTI and self.kind == "one":
            return replace(self, kind="several", values=[[v] for v in self.values])
        if problem_type == MULTI or self.kind == "one":
            return self
        if self.kind == "several":
            wrong = [i for i, v in enumerate(self.values) if len(v) != 1]
            values = [v[0] for v in self.values if v]
        else:
            wrong = np.flatnonzero(self.values.sum(axis=1) != 1).tolist()
            names = self.names or range(self.values.shape[1])
            values = [names[i] for i in self.values.argmax(axis=1).tolist()]
        if wrong or problem_type == REGRESSION:
            raise PtuneError(
                f"The problem type {problem_type} needs one label per text. {self.where} are lists "
                f"or a matrix, at {positions(wrong or [0], self.first)}. Leave out the problem "
                f"type, or use {MULTI}."
            )
        return replace(self, kind="one", values=values, names=None)

    def numbers(self) -> list[float]:
        """The labels as numbers.

        Raises:
            PtuneError: One of them is not a finite number.
        """
        return finite(self.values, self.where, self.first)

    def check(self) -> LabelColumn:
        """Return the column itself.

        Raises:
            PtuneError: A label is missing or of a type that cannot be a label.
        """
        if missing := self.missing():
            raise PtuneError(
                f"{len(missing)} of {len(self)} labels are missing ({self.where}), at "
                f"{positions(missing, self.first)}. Fill them in or leave those examples out."
            )
        for i, value in enumerate([] if self.kind == "indicators" else self.values):
            for label in value if self.kind == "several" else [value]:
                _check_scalar(label, f"{self.where}, {positions([i], self.first)}")
        return self


def finite(values: Iterable[Any], where: str, first: int) -> list[float]:
    """Values as numbers.

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
                f"A regression needs numbers as labels ({where}). Found {value!r} at "
                f"{positions([i], first)}. Correct it or leave that example out."
            )
    return numbers


def is_missing(value: Any) -> bool:
    """True for ``None``, NaN, pandas' NA and NaT, and blank strings."""
    if isinstance(value, str):
        return not value.strip()
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, float | np.floating | np.datetime64) and value != value


def _check_scalar(label: Any, where: str) -> None:
    if not isinstance(label, SCALARS):
        raise PtuneError(
            f"The label {str(label)[:50]!r} is of type {type(label).__name__} ({where}). Labels "
            "are strings, integers, floats, booleans or enum members. Convert it, for example "
            "with str()."
        )
    if isinstance(label, float) and not math.isfinite(label):
        raise PtuneError(f"The label {label} is not a finite number ({where}). Leave it out.")
    if isinstance(label, str):
        try:
            label.encode()
        except UnicodeEncodeError as error:
            raise PtuneError(f"The label {label!r} is not valid Unicode ({where}).") from error


def read(y: Any, where: str = "the labels", first: int = 0) -> LabelColumn:
    """Read the labels of examples from whatever holds them.

    Args:
        y: A list, tuple, array, sparse matrix, Series, Categorical, DataFrame or Arrow column.
        where, first: As in `LabelColumn`.

    Raises:
        PtuneError: It holds no labels, or a matrix that is not of zeros and ones.
    """
    if isinstance(y, LabelColumn):
        return y
    if isinstance(y, str | bytes | Mapping) or not hasattr(y, "__iter__"):
        raise PtuneError(
            f"Expected one label per example, and {where} are of type {type(y).__name__}. Pass a "
            "list, an array or a column of a DataFrame."
        )
    how: dict[str, Any] = {"where": where, "first": first}
    if hasattr(y, "toarray"):  # a sparse matrix
        y = y.toarray()
    elif hasattr(y, "detach"):  # a tensor
        y = y.detach().cpu().numpy()
    if hasattr(y, "columns"):  # a DataFrame of pandas or Polars
        names = [plain(name) for name in y.columns]
        if len(names) == 1:
            return read(_flattened(y[y.columns[0]]), **how)
        rows = zip(*(list(y[name]) for name in y.columns), strict=True)
        return _indicators(list(rows), names=tuple(names), **how)
    if hasattr(y, "to_pylist"):  # Arrow
        y = y.to_pylist()
    if getattr(y, "ndim", 1) == 2:
        if y.shape[1] == 1:
            return read(_flattened(y[:, 0]), **how)
        if y.dtype.kind in "biuf" or _is_binary(y.tolist()):
            return _indicators(y.tolist(), **how)
    dtype = getattr(y, "dtype", None)
    values = list(y)
    if any(isinstance(v, _CONTAINERS) for v in values):
        return _nested(values, **how)
    if not isinstance(dtype, np.dtype) and values and isinstance(values[0], np.generic):
        dtype = np.asarray(values).dtype
    numbers = isinstance(dtype, np.dtype) and dtype.kind in "biuf"
    return LabelColumn("one", list(map(plain, values)), dtype=dtype if numbers else None, **how)


def _flattened(column: Any) -> Any:
    warnings.warn(
        "A column vector y was passed when a 1d array was expected. It is flattened; a Series, a "
        "list or y.ravel() avoids this warning.",
        DataConversionWarning,
        stacklevel=4,
    )
    return column


def plain(value: Any) -> Any:
    """A NumPy scalar as a Python value, and a string without NumPy's subclass."""
    if isinstance(value, np.generic) and not isinstance(value, np.datetime64):
        return value.item()
    return value


def _is_binary(rows: Sequence[Any]) -> bool:
    """True for rows of the same length that hold only 0, 1, booleans and missing values."""
    return all(
        isinstance(row, list | tuple | np.ndarray) and len(row) == len(rows[0]) > 0 for row in rows
    ) and all(
        not isinstance(v, str) and (is_missing(v) or v in (0, 1)) for row in rows for v in row
    )


def _nested(rows: list[Any], **how: Any) -> LabelColumn:
    """Rows that are lists, tuples or sets."""
    if _is_binary(rows):
        matrix = [list(row) for row in rows]
        return read(np.array(matrix), **how) if len(matrix[0]) == 1 else _indicators(matrix, **how)
    values: list[Any] = []
    for row in rows:
        if isinstance(row, _CONTAINERS):
            labels = [plain(v) for v in row]
            # A set has no order of its own, and the order of an error message must not change.
            values.append(sorted(labels, key=repr) if isinstance(row, set | frozenset) else labels)
        else:
            values.append(None if is_missing(row) else [plain(row)])
    return LabelColumn("several", values, **how)


def _indicators(rows: list[Any], names: tuple[Any, ...] | None = None, **how: Any) -> LabelColumn:
    try:
        matrix: NDArray[np.float64] = np.array(
            [[np.nan if is_missing(v) else float(v) for v in row] for row in rows]
        ).reshape(len(rows), -1)
        wrong = ~np.isnan(matrix) & (matrix != 0) & (matrix != 1)
    except (TypeError, ValueError):
        wrong = np.array([[is_missing(v) or v not in (0, 1) for v in row] for row in rows])
    if wrong.any():
        i, j = np.argwhere(wrong)[0].tolist()
        raise PtuneError(
            "A matrix of labels has a column for each label and holds only 0 and 1. Found "
            f"{rows[i][j]!r} in column {names[j] if names else j!r} of {how['where']}, at "
            f"{positions([i], how['first'])}."
        )
    return LabelColumn("indicators", matrix, names, **how)
