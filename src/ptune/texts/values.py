"""What is a text, a pair of texts, and a collection of them.

A string is one text. A tuple of two strings is one pair. Anything else iterable is a collection.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

import numpy as np

from ptune.errors import Origin, PtuneError
from ptune.labels import (
    LABEL_NAMES,
    as_iterable,
    columns_of,
    is_container,
    is_missing,
    is_unicode,
    values_of,
)

# A text, or a pair of texts.
Text = str | Sequence[str]
# In Python.
TEXTS = Origin("the texts")


def is_one(X: Any) -> bool:
    """True for a string and for a tuple of two strings, which is one pair.

    A *list* of two strings is two texts.
    """
    return isinstance(X, str) or (
        isinstance(X, tuple) and len(X) == 2 and all(isinstance(t, str) for t in X)
    )


def rows(X: Any, names: Sequence[str] = (), pairs: bool | None = None) -> Iterable[Any]:
    """The texts of a collection, one after another; pairs as tuples or lists.

    Args:
        X: A text, a pair, or a collection of them: a list, iterator, array, Series or Arrow column;
            or a DataFrame, Arrow table or 🤗 data set with a column of texts, or two for pairs.
        names: The columns to take if it has them.
        pairs: Whether a table must hold pairs; ``None``: if it has two columns.

    Raises:
        PtuneError: It is not such a collection.
    """
    if is_one(X):
        return [X]
    columns = columns_of(X)
    X = X if columns is not None else as_iterable(X)
    no_rows = isinstance(X, Mapping | set | frozenset | bytes | bytearray | memoryview | type)
    if no_rows or not getattr(X, "ndim", 1) or not (columns is not None or hasattr(X, "__iter__")):
        raise PtuneError(
            f"Expected a text, a pair of texts or a collection of them; found {_described(X)}."
        )
    if columns is not None:
        chosen = [values_of(X[name]) for name in columns_of_texts(columns, names, pairs)]
        return chosen[0] if len(chosen) == 1 else zip(*chosen, strict=True)
    if getattr(X, "ndim", 1) == 2 and X.shape[1] == 1:
        return X[:, 0]
    return values_of(X)


def columns_of_texts(
    columns: Sequence[Any], names: Sequence[str] = (), pairs: bool | None = None
) -> Sequence[Any]:
    """The columns of a table that hold the texts: those named, else all of them.

    Args:
        columns: All columns.
        names: The columns to take if the table has them.
        pairs: Whether there must be two; ``None``: one or two.

    Raises:
        PtuneError: Their number is wrong, two have the same name, or one of two is called like a
            label.
    """
    known = bool(names) and set(names) <= set(columns)
    chosen = names if known else columns
    right, expected = _COLUMNS[pairs]
    labels = [] if known else [name for name in columns if str(name).lower() in LABEL_NAMES]
    a_label = f", of which {labels[0]!r} is called like a label" if labels else ""
    repeated = any(columns.count(name) > 1 for name in chosen)
    if len(chosen) not in right or repeated or (labels and len(chosen) == 2):
        listed = ", ".join(map(repr, columns[:10])) + (", …" if len(columns) > 10 else "")
        raise PtuneError(
            f"Expected a table with {expected}; found the columns {listed or '(none)'}{a_label}. "
            'Select them, for example X[["text"]].'
        )
    return chosen


# How many columns of texts a table may have, by whether texts come in pairs.
_COLUMNS = {
    None: ((1, 2), "one column of texts, or two for pairs"),
    False: ((1,), "one column of texts"),
    True: ((2,), "two columns of texts, for pairs"),
}


def as_columns(
    X: Iterable[Any], pairs: bool | None = None, origin: Origin = TEXTS
) -> list[list[str]]:
    """One column of texts; or two for pairs, the first texts and the second texts.

    Args:
        X: Texts or pairs, as `rows` returns them.
        pairs: Whether they must be pairs; ``None``: if the first one is.
        origin: Where they come from.

    Raises:
        PtuneError: There are none, they mix texts and pairs, or one of them is not a text.
    """
    found = list(X)
    if not found:
        raise PtuneError("There are no texts.")
    if not (_is_pair(found[0]) if pairs is None else pairs):
        return [check(found, origin)]
    if wrong := [i for i, row in enumerate(found) if not _is_pair(row)]:
        _refuse(found, wrong, replace(origin, name="the pairs of texts"))
    names = [f"the {which} texts of the pairs" for which in ("first", "second")]
    columns = zip(*found, strict=True)
    return [check(c, replace(origin, name=n)) for c, n in zip(columns, names, strict=True)]


def as_rows(columns: Sequence[Sequence[str]]) -> list[Any]:
    """The inverse of `as_columns`: texts, or pairs as tuples."""
    return list(columns[0]) if len(columns) == 1 else list(zip(*columns, strict=True))


def _is_pair(row: Any) -> bool:
    unordered = isinstance(row, set | frozenset | bytearray | memoryview)
    return not unordered and is_container(row) and len(row) == 2


def check(values: Iterable[Any], origin: Origin) -> list[str]:
    """Return the values as a list of texts, none of which is missing, empty or a number.

    Raises:
        PtuneError: One of them is not a text; the message gives its position.
    """
    values = list(values)
    plain = set(map(type, values)) <= {str} and all(map(str.strip, values))
    if plain and (all(map(str.isascii, values)) or all(map(is_unicode, values))):
        return values
    numbers = [v for v in values if isinstance(v, int | float | np.number) and v == v]
    if len(numbers) > 1 and len(numbers) == len(values):
        in_python = "Convert numbers with str()."
        raise PtuneError(
            f"Found numbers such as {numbers[0]} in {origin}, at {origin.at([0])}; expected texts. "
            "Is it the right column? "
            + ("Name another with --text-column." if origin.in_file else in_python)
        )
    if wrong := [i for i, value in enumerate(values) if not _is_text(value)]:
        _refuse(values, wrong, origin)
    # The string of an enum member is its value, and str() would give its name.
    return [value if type(value) is str else str.__str__(value) for value in values]


def _is_text(value: Any) -> bool:
    if not isinstance(value, str) or not value or value.isspace():
        return False
    return is_unicode(value)


def _refuse(values: Sequence[Any], wrong: list[int], origin: Origin) -> NoReturn:
    count, first = origin.before + len(values), values[wrong[0]]
    more = f" {len(wrong)} of {count} are wrong." if len(wrong) > 1 else ""
    expected = "strings or pairs of strings, not a mixture"
    if is_missing(first):
        expected = "a text in every row" if origin.in_file else "a text at every position"
    raise PtuneError(
        f"Found {_described(first)} in {origin}, at {origin.at(wrong)}. Expected {expected}.{more} "
        f"{origin.fix}"
    )


def _described(value: Any) -> str:
    """What a value is that is not a text, and what to do about it."""
    if isinstance(value, str):
        if not value.strip():
            return "an empty text"
        if is_unicode(value):
            return f"the single text {value[:50]!r}"
        return f"{value[:50]!r}, which is not valid Unicode (it has a lone surrogate),"
    if is_missing(value):
        return f"a missing value ({value})"
    if isinstance(value, bytes | bytearray | memoryview):
        return f"bytes ({bytes(value[:20])!r}; call .decode() on them)"
    if isinstance(value, Mapping):
        return 'a dictionary (take the text out of it, for example row["text"])'
    if isinstance(value, set | frozenset):
        return "a set, which has no order (pass a list)"
    if is_container(value) and not isinstance(value, type):
        kind = type(value).__name__
        article = "an" if kind[0] in "aeiouAEIOU" or kind == "ndarray" else "a"
        return f"{article} {kind} of {len(value)} ({str(value)[:50]})"
    return f"{str(value)[:50]!r} of type {type(value).__name__}"
