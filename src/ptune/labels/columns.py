"""Label columns: the forms in which people hold the labels of their examples.

scikit-learn's rules apply: a column vector is one label per example, a matrix of zeros and ones is
several labels per example, and a list of lists, tuples or sets of names is the same.
"""

from __future__ import annotations

import enum
import math
import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import DataConversionWarning

from ptune.errors import Origin, PtuneError, cut

SINGLE, MULTI = "single_label_classification", "multi_label_classification"
REGRESSION = "regression"
# As in Transformers' configurations.
PROBLEM_TYPES = (SINGLE, MULTI, REGRESSION)

# Names of columns that hold labels, in order of preference.
LABEL_NAMES = (
    "label",
    "labels",
    "category",
    "class",
    "intent",
    "target",
    "sentiment",
    "score",
    "y",
)

# In Python.
LABELS = Origin("the labels")

# Types of label values that ptune stores with a classifier.
SCALARS = (str, bool, int, float, enum.Enum)


@dataclass(frozen=True)
class LabelColumn:
    """The labels of examples, read but not yet numbered.

    Attributes:
        kind: `one`: one label per example; `several`: a list of labels per example; `indicators`:
            a row of zeros and ones per example.
        values: One entry per example. Indicators are floats ``[n, num_labels]``; NaN: unknown.
        names: The labels of the columns of indicators.
        dtype: NumPy's type of the values, if they were an array of numbers.
        origin: Where they come from.
        votes: How many annotators chose each label, or their share, for each example, if several
            people labelled them. `values` has the label with the most.
    """

    kind: Literal["one", "several", "indicators"]
    values: Any
    names: tuple[Any, ...] | None = None
    dtype: np.dtype[Any] | None = None
    origin: Origin = LABELS
    votes: Sequence[Mapping[Any, float]] | None = None

    def __len__(self) -> int:
        return len(self.values)

    def without(self, left_out: Sequence[int]) -> LabelColumn:
        """The column without the examples at some positions."""
        gone = set(left_out)
        kept = [i for i in range(len(self)) if i not in gone]
        values = self.values[kept] if self.kind == "indicators" else [self.values[i] for i in kept]
        votes = None if self.votes is None else [self.votes[i] for i in kept]
        return replace(self, values=values, votes=votes)

    def missing(self) -> list[int]:
        """Positions of the examples that have no label.

        An empty list is a label column's way to say that a text has none of the labels.
        """
        if self.kind == "indicators":
            return np.flatnonzero(np.isnan(self.values).all(axis=1)).tolist()
        if self.kind == "several":
            return [i for i, v in enumerate(self.values) if v is None or any(map(is_missing, v))]
        if not any(map(is_missing, _different(self.values))):
            return []
        return [i for i, v in enumerate(self.values) if is_missing(v)]

    def wrong(self) -> list[int]:
        """Positions of the examples that have something that cannot be a label."""
        if self.kind == "indicators":
            return []
        if self.kind == "several":
            return [i for i, v in enumerate(self.values) if not all(map(_is_label, v or ()))]
        if all(map(_is_label, _different(self.values))):
            return []
        return [i for i, v in enumerate(self.values) if not _is_label(v)]

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
                f"The problem type {problem_type} needs one label per text, but {self.origin} "
                f"are lists or a matrix, at {self.origin.at(wrong or [0])}. Leave out the problem "
                f"type, or use {MULTI}."
            )
        return replace(self, kind="one", values=values, names=None)

    def numbers(self) -> list[float]:
        """The labels as numbers.

        Raises:
            PtuneError: One of them is not a finite number.
        """
        return as_numbers(self.values, self.origin)

    def check(self) -> LabelColumn:
        """Return the column itself.

        Raises:
            PtuneError: A label is missing or of a type that cannot be a label.
        """
        if missing := self.missing():
            option = " (--skip-unlabelled)" if self.origin.in_file else ""
            raise PtuneError(
                f"{len(missing)} of {len(self)} labels are missing ({self.origin}), at "
                f"{self.origin.at(missing)}. Fill them in or leave those examples out{option}."
            )
        for name in self.names or ():
            if not _is_label(name):
                _refuse(name, f"the name of a column of {self.origin}", self.origin)
        for i in self.wrong()[:1]:
            own = self.values[i] if self.kind == "several" else [self.values[i]]
            label = next(label for label in own if not _is_label(label))
            _refuse(label, f"{self.origin}, {self.origin.at([i])}", self.origin)
        return self


def as_numbers(values: Iterable[Any], origin: Origin) -> list[float]:
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
            comma = re.fullmatch(r"\s*[+-]?\d+,\d+\s*", str(value))
            fix = "Write a point for the comma" if comma else "Correct it or leave that example out"
            raise PtuneError(
                f"A regression needs numbers as labels ({origin}). Found {value!r} at "
                f"{origin.at([i])}. {fix}."
            )
    return numbers


def weights_of(weights: Any, count: int) -> NDArray[np.float64]:
    """A weight for each text, 1 on average, from whatever holds them.

    Raises:
        PtuneError: They are not `count` finite numbers of at least 0, or all are zero.
    """
    try:
        found = np.asarray(_dense(weights), dtype=np.float64)
    except (TypeError, ValueError):
        found = np.empty(0)
    if found.shape != (count,) or not (np.isfinite(found) & (found >= 0)).all() or not found.any():
        raise PtuneError(
            f"sample_weight must be {count} numbers of at least 0, one for each text, and not all "
            "of them zero."
        )
    found = found / found.max()  # the sum of large numbers is infinite
    return found / found.mean()


def is_missing(value: Any) -> bool:
    """True for ``None``, NaN, pandas' NA and NaT, masked cells and blank strings."""
    if isinstance(value, str):
        return not value.strip()
    if value is None or type(value).__name__ in ("NAType", "NaTType", "MaskedConstant"):
        return True
    return isinstance(value, float | np.floating | np.datetime64) and value != value


def _different(values: Sequence[Any]) -> Iterable[Any]:
    """The values without repetitions, if all are strings: a file repeats them a million times."""
    return set(values) if set(map(type, values)) == {str} else values


def _is_label(label: Any) -> bool:
    if isinstance(label, enum.Enum):
        return label.name in type(label).__members__
    if isinstance(label, str):
        return is_unicode(label)
    return isinstance(label, SCALARS) and (not isinstance(label, float) or math.isfinite(label))


def is_unicode(text: str) -> bool:
    """True if a string can be encoded: it has no lone surrogate."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse(label: Any, where: str, origin: Origin) -> NoReturn:
    if isinstance(label, Mapping):
        raise PtuneError(
            f"Expected the name of a label. Found {cut(str(label), 50)} ({where}). "
            f"{_instead_of(label, origin)}"
        )
    if not isinstance(label, SCALARS):
        how = "float()" if hasattr(label, "__float__") else "str()"
        how = ".decode()" if isinstance(label, bytes) else how
        raise PtuneError(
            f"The label {str(label)[:50]!r} is of type {type(label).__name__} ({where}). Labels "
            "are strings, integers, floats, booleans or enum members. Convert it, for example "
            f"with {how}."
        )
    if isinstance(label, enum.Enum):
        raise PtuneError(
            f"The label {label!r} combines members of {type(label).__name__} ({where}). Pass a "
            "list of members for each text, for example list(label)."
        )
    if isinstance(label, float):
        raise PtuneError(f"The label {label} is not a finite number ({where}). Leave it out.")
    raise PtuneError(f"The label {label!r} is not valid Unicode ({where}).")


def _instead_of(label: Mapping[Any, Any], origin: Origin) -> str:
    """What to write in place of a mapping, such as shares or probabilities by label."""
    values = [plain(v) for v in label.values()]
    if not values or not all(isinstance(v, int | float) for v in values):
        return "Write only the name, or a list of names if a text can have several labels."
    if all(v in (0, 1) for v in values):
        return "Write the names of the labels that are 1, as a list if a text can have several."
    return f"Name the most likely label of each text, or {_as_shares(origin)}."


def _as_shares(origin: Origin) -> str:
    """How to give the shares of annotators who chose each label."""
    if origin.in_file:
        return (
            "write shares of annotators as a column for each label (--indicator-column, with "
            f"--problem-type {SINGLE})"
        )
    return "repeat a text for each of its labels, with the shares as sample_weight"


def read(y: Any, origin: Origin = LABELS) -> LabelColumn:
    """Read the labels of examples from whatever holds them.

    Args:
        y: A list, tuple, array, sparse matrix, Series, Categorical, DataFrame, Arrow table or
            column, or 🤗 data set.
        origin: As in `LabelColumn`.

    Raises:
        PtuneError: It holds no labels, or a matrix that is not of zeros and ones.
    """
    if isinstance(y, LabelColumn):
        return y
    columns = columns_of(y)
    y = y if columns is not None else _dense(y)
    dimensions = getattr(y, "ndim", 1)
    if (
        isinstance(y, str | bytes | Mapping | set | frozenset | type)
        or dimensions not in (1, 2)
        or (columns is None and not hasattr(y, "__iter__"))
    ):
        kind = type(y).__name__ + (f" with {dimensions} dimensions" if dimensions != 1 else "")
        raise PtuneError(
            f"Expected one label per example, and {origin} are of type {kind}. Pass a list, an "
            "array or a column of a DataFrame."
        )
    if columns is not None:
        return _table(y, columns, origin)
    if getattr(y, "ndim", 1) == 2:
        if y.shape[1] == 1:
            return read(_flattened(y[:, 0]), origin)
        if y.dtype.kind in "biuf" or _is_binary(y.tolist()):
            return indicators(y.tolist(), origin=origin)
    values = list(values_of(y))
    if any(is_container(v) for v in values):
        return _nested(values, origin)
    dtype = getattr(y, "dtype", None)
    if not isinstance(dtype, np.dtype):  # Arrow, Polars, pandas' own types, lists of scalars
        numpy = hasattr(y, "__array__") or (values and isinstance(values[0], np.generic))
        dtype = np.asarray(y if hasattr(y, "__array__") else values).dtype if numpy else None
    numbers = isinstance(dtype, np.dtype) and dtype.kind in "biuf"
    dtype = dtype if numbers else None
    return LabelColumn("one", list(map(plain, values)), dtype=dtype, origin=origin)


def _dense(y: Any) -> Any:
    """A sparse matrix or a tensor as an array, and anything else as `as_iterable` does."""
    if hasattr(y, "toarray"):
        return y.toarray()
    if hasattr(y, "detach"):
        y = y.detach().cpu().to_dense()
        return (y.float() if str(y.dtype) == "torch.bfloat16" else y).numpy()
    return as_iterable(y)


def columns_of(table: Any) -> list[Any] | None:
    """The names of the columns of a DataFrame, Arrow table or 🤗 data set; else ``None``."""
    names = getattr(table, "column_names", None)
    if names is None and hasattr(table, "__iter__"):
        names = getattr(table, "columns", None)
    return None if names is None else list(names)


def as_iterable(values: Any) -> Any:
    """What NumPy can turn into an array, and nothing else can be done with, as that array."""
    is_array = not isinstance(values, type) and hasattr(values, "__array__")
    return np.asarray(values) if is_array and not hasattr(values, "__iter__") else values


def values_of(column: Any) -> Iterable[Any]:
    """The values of a column, which Arrow would wrap."""
    return column.to_pylist() if hasattr(column, "to_pylist") else column


def _table(y: Any, columns: list[Any], origin: Origin) -> LabelColumn:
    """A column for each label, or only one column with the labels."""
    if twice := [name for name, count in Counter(columns).items() if count > 1]:
        raise PtuneError(f"Two columns of {origin} are named {twice[0]!r}. Rename one.")
    if not columns:
        raise PtuneError(f"The table of {origin} has no columns. Pass at least one.")
    if len(columns) == 1:
        return read(_flattened(y[columns[0]]), origin)
    rows = list(zip(*(values_of(y[name]) for name in columns), strict=True))
    return indicators(rows, names=tuple(map(plain, columns)), origin=origin)


def _flattened(column: Any) -> Any:
    warnings.warn(
        "A column vector y was passed when a 1d array was expected. It is flattened; a Series, a "
        "list or y.ravel() avoids this warning.",
        DataConversionWarning,
        stacklevel=4,
    )
    return column


def plain(value: Any) -> Any:
    """A scalar of NumPy or PyTorch as a Python value."""
    dimensions: int = getattr(value, "ndim", 1)
    if dimensions or isinstance(value, np.datetime64) or is_missing(value):
        return value
    value = value.item()
    return float(value) if isinstance(value, np.floating) else value  # longdouble


def is_container(value: Any) -> bool:
    """True for what holds several values: a list, set, array, Series and so on."""
    scalar = isinstance(value, str | bytes | Mapping | enum.Enum)
    return not scalar and isinstance(value, Collection) and getattr(value, "ndim", 1) != 0


def _is_binary(rows: Sequence[Any]) -> bool:
    """True for rows of the same length that hold only 0, 1, booleans and missing values."""
    return all(
        is_container(row) and not isinstance(row, set | frozenset) and len(row) == len(rows[0]) > 0
        for row in rows
    ) and all(
        not isinstance(v, str) and not is_container(v) and (is_missing(v) or v in (0, 1))
        for row in rows
        for v in row
    )


def _nested(rows: list[Any], origin: Origin) -> LabelColumn:
    """Rows that are lists, tuples or sets."""
    if _is_binary(rows):
        matrix = [list(row) for row in rows]
        if len(matrix[0]) == 1:
            return read(np.array(matrix), origin)
        return indicators(matrix, origin=origin)
    _refuse_shares(rows, origin)
    values: list[Any] = []
    for row in rows:
        if is_container(row):
            labels = [plain(v) for v in row]
            # A set has no order of its own, and the order of an error message must not change.
            values.append(sorted(labels, key=repr) if isinstance(row, set | frozenset) else labels)
        else:
            values.append(None if is_missing(row) else [plain(row)])
    digits = all(row and all(str(v) in ("0", "1") for v in row) for row in values)
    if digits and any(len(set(row)) < len(row) for row in values):
        if len(lengths := {len(row) for row in values}) > 1:
            raise PtuneError(
                "A matrix of labels has a column for each label. The rows of 0 and 1 in "
                f"{origin} have from {min(lengths)} to {max(lengths)} values."
            )
        raise PtuneError(
            f"Expected a matrix of the numbers 0 and 1; {origin} hold the strings '0' and "
            "'1'. Convert them, for example with np.array(y).astype(int)."
        )
    return LabelColumn("several", values, origin=origin)


def _refuse_shares(rows: list[Any], origin: Origin) -> None:
    """Refuse rows with a number for each label, such as shares or probabilities."""
    numbers = [[plain(v) for v in row] for row in rows if is_container(row)]
    flat = [v for row in numbers for v in row]
    if (
        len(numbers) == len(rows)
        and {len(row) for row in numbers} == {len(numbers[0])}
        and all(isinstance(v, int | float) for v in flat)
        and any(v % 1 for v in flat if math.isfinite(v))
    ):
        raise PtuneError(
            f"Expected the names of labels, or only 0 and 1 for each label. Found {numbers[0]} "
            f"({origin}, {origin.at([0])}). "
            + (
                "Numbers to predict are not in lists."
                if len(numbers[0]) == 1
                else f"Name the most likely label of each text, or {_as_shares(origin)}."
            )
        )


def annotated(votes: Sequence[Mapping[Any, float]], origin: Origin) -> LabelColumn:
    """One label per example, from how many annotators chose each; ``None`` if nobody did.

    Args:
        votes: Numbers or shares of annotators, by label.
        origin: As in `LabelColumn`.
    """
    most = [max(own, key=own.__getitem__) if any(own.values()) else None for own in votes]
    return LabelColumn("one", most, votes=votes, origin=origin)


def indicators(
    rows: list[Any], names: tuple[Any, ...] | None = None, *, origin: Origin
) -> LabelColumn:
    """A row of zeros and ones per example; missing values are unknown.

    Args:
        rows: The rows.
        names: The labels of the columns.
        origin: As in `LabelColumn`.

    Raises:
        PtuneError: A value is neither 0 nor 1. The message names its column and position.
    """
    found = [[np.nan if is_missing(v) else v for v in row] for row in rows]
    for i, row in enumerate(found):
        for j, value in enumerate(row):
            if value == value and (isinstance(value, str) or value not in (0, 1)):
                raise PtuneError(
                    "A matrix of labels has a column for each label and holds only 0 and 1. Found "
                    f"{rows[i][j]!r} in column {names[j] if names else j!r} of {origin}, at "
                    f"{origin.at([i])}. Write 1 where a text has the label and 0 where it does "
                    "not; an empty cell is unknown."
                )
    matrix: NDArray[np.float64] = np.array(found, dtype=float).reshape(len(rows), -1)
    return LabelColumn("indicators", matrix, names, origin=origin)
