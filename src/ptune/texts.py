"""Texts: what counts as one, as a pair and as a collection, and how they become batches of tokens.

A string is one text. A tuple of two strings is one pair. Anything else iterable is a collection.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

import numpy as np
from transformers import PreTrainedTokenizerBase

from ptune.compat import ForkLock
from ptune.errors import PtuneError, positions
from ptune.labels import is_missing

# A text, or a pair of texts.
Text = str | Sequence[str]
# For each text a list of token ids, and so on: what a tokenizer returns.
Encoded = dict[str, list[list[int]]]

# Tokens per text of `batch_size` in a batch for prediction, padding included.
TOKENS_PER_TEXT = 128
# Positions that a message lists before it stops.
SHOWN = 5


def is_one(X: Any) -> bool:
    """True for a string and for a tuple of two strings, which is one pair.

    A *list* of two strings is two texts.
    """
    return isinstance(X, str) or (
        isinstance(X, tuple) and len(X) == 2 and all(isinstance(t, str) for t in X)
    )


def rows(X: Any, names: Sequence[str] = ()) -> Iterable[Any]:
    """The texts of a collection, one after another; pairs as tuples or lists.

    Args:
        X: A text, a pair, or a collection of them: a list, iterator, array, Series or Arrow column;
            or a DataFrame, Arrow table or 🤗 data set with a column of texts, or two for pairs.
        names: The columns to take if it has them.

    Raises:
        PtuneError: It is not such a collection.
    """
    if is_one(X):
        return [X]
    columns = getattr(X, "column_names", getattr(X, "columns", None))
    if isinstance(X, Mapping | bytes) or not hasattr(X, "__iter__"):
        raise PtuneError(
            f"Expected a text, a pair of texts or a collection of them; found {_described(X)}."
        )
    if columns is not None:
        columns = list(columns)
        if not (names and set(names) <= set(columns)):
            names = columns
        if len(names) not in (1, 2):
            listed = ", ".join(map(repr, columns[:10])) + (", …" if len(columns) > 10 else "")
            raise PtuneError(
                "Expected a table with one column of texts, or two for pairs; found the columns "
                f'{listed}. Select them, for example X[["text"]].'
            )
        chosen = [_values(X[name]) for name in names]
        return chosen[0] if len(chosen) == 1 else zip(*chosen, strict=True)
    if getattr(X, "ndim", 1) == 2 and X.shape[1] == 1:
        return X[:, 0]
    return _values(X)


def _values(X: Any) -> Iterable[Any]:
    return X.to_pylist() if hasattr(X, "to_pylist") else X  # Arrow's scalars are not strings


def as_columns(X: Iterable[Any], before: int = 0, where: str = "the texts") -> list[list[str]]:
    """One column of texts; or two for pairs, the first texts and the second texts.

    Args:
        X: Texts or pairs, as `rows` returns them.
        before: Number of texts that came before these, for messages.
        where: What they are, for messages.

    Raises:
        PtuneError: There are none, they mix texts and pairs, or one of them is not a text.
    """
    found = list(X)
    if not found:
        raise PtuneError("There are no texts.")
    if isinstance(found[0], str) or not _is_pair(found[0]):
        return [check(found, where, before)]
    if wrong := [i for i, row in enumerate(found) if not _is_pair(row)]:
        _refuse(found, wrong, where, before, 0)
    first, second = zip(*found, strict=True)
    return [
        check(first, f"the first texts of {where}", before),
        check(second, f"the second texts of {where}", before),
    ]


def as_rows(columns: Sequence[Sequence[str]]) -> list[Any]:
    """The inverse of `as_columns`: texts, or pairs as tuples."""
    return list(columns[0]) if len(columns) == 1 else list(zip(*columns, strict=True))


def _is_pair(row: Any) -> bool:
    return isinstance(row, list | tuple | np.ndarray) and len(row) == 2


def check(values: Iterable[Any], where: str, before: int = 0, first: int = 0) -> list[str]:
    """Return the values as a list of texts, none of which is missing, empty or a number.

    Args:
        values: The texts.
        where: What they are, for messages.
        before: Number of texts that came before these, for messages.
        first: The number of the very first one, for messages: 0 in Python, 1 in files.

    Raises:
        PtuneError: One of them is not a text; the message gives its position.
    """
    values = list(values)
    numbers = [v for v in values if isinstance(v, int | float) and v == v]
    if len(numbers) > 1 and len(numbers) == len(values):
        raise PtuneError(
            f"Found numbers such as {numbers[0]!r} in {where}; expected texts. Is it the right "
            "column? Name another with --text-column."
        )
    if wrong := [i for i, value in enumerate(values) if not _is_text(value)]:
        _refuse(values, wrong, where, before, first)
    return [value if type(value) is str else str(value) for value in values]


def _is_text(value: Any) -> bool:
    if not isinstance(value, str) or not value or value.isspace():
        return False
    return value.isascii() or _is_unicode(value)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse(
    values: Sequence[Any], wrong: list[int], where: str, before: int, first: int
) -> NoReturn:
    places = positions([before + i for i in wrong], first, SHOWN)
    more = f" {len(wrong)} of {before + len(values)} are wrong." if len(wrong) > 1 else ""
    raise PtuneError(
        f"Found {_described(values[wrong[0]])} in {where}, at {places}. Expected strings or pairs "
        f"of strings, not a mixture.{more} Correct them or leave them out."
    )


def _described(value: Any) -> str:
    """What a value is that is not a text, and what to do about it."""
    if isinstance(value, str):
        if not value.strip():
            return "an empty text"
        return f"{value[:50]!r}, which is not valid Unicode (it has a lone surrogate),"
    if is_missing(value):
        return f"a missing value ({value})"
    if isinstance(value, bytes):
        return f"bytes ({value[:20]!r}; call .decode() on them)"
    if isinstance(value, Mapping):
        return 'a dictionary (take the text out of it, for example row["text"])'
    if isinstance(value, list | tuple | set | np.ndarray):
        kind = type(value).__name__
        return f"a {kind} of {len(value)} ({str(value)[:50]})"
    return f"{str(value)[:50]!r} of type {type(value).__name__}"


# Tokens.


# A fast tokenizer fails when two threads use it at once. A copy of one has its own lock.
_locks: WeakKeyDictionary[PreTrainedTokenizerBase, ForkLock] = WeakKeyDictionary()
_registry = ForkLock(level=4)


def lock_of(tokenizer: PreTrainedTokenizerBase) -> ForkLock:
    """The lock to hold while a tokenizer works."""
    lock = _locks.get(tokenizer)
    if lock is None:
        # Created outside the registry's lock: a fork holds back new locks, and waits for that one.
        new = ForkLock(level=3)
        with _registry:
            lock = _locks.setdefault(tokenizer, new)
    return lock


def encode(
    tokenizer: PreTrainedTokenizerBase,
    columns: Sequence[Sequence[str]],
    max_text_tokens: int | Sequence[int | None] | None,
    truncation_side: str | None = None,
) -> tuple[Encoded, int]:
    """Token ids of texts or pairs. Several threads may call it with one tokenizer.

    Args:
        tokenizer: The backbone's.
        columns: One column of texts; or two, the first texts and the second texts.
        max_text_tokens: The longest text in tokens, for all of them or for each; longer texts are
            cut. ``None``: no limit.
        truncation_side: Where they are cut: `left` or `right`. ``None``: the tokenizer's own side.

    Returns:
        `input_ids` and so on, one list per text, and how many texts were cut.
    """
    lists = [list(column) for column in columns]
    with lock_of(tokenizer):
        encoded = dict(tokenizer(*lists, verbose=False))
        ids = encoded["input_ids"]
        limits = max_text_tokens
        if not isinstance(limits, Sequence):
            limits = [limits] * len(ids)
        too_long: dict[int, list[int]] = defaultdict(list)
        for i, limit in enumerate(limits):
            if limit and len(ids[i]) > limit:
                too_long[limit].append(i)
        own_side = tokenizer.truncation_side
        try:
            tokenizer.truncation_side = truncation_side or own_side
            for limit, some in too_long.items():
                part = [[column[i] for i in some] for column in lists]
                cut = tokenizer(*part, truncation=True, max_length=limit)
                for key, values in cut.items():
                    for i, value in zip(some, values, strict=True):
                        encoded[key][i] = value
        finally:
            tokenizer.truncation_side = own_side
    return encoded, sum(map(len, too_long.values()))


def batches(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Positions of the texts to classify together: texts of similar length, longest first.

    A batch has at most 128 tokens times `batch_size`, padding included: a few long texts or many
    short ones.

    Args:
        lengths: Length of each text, in tokens.
        batch_size: The setting.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    while order:
        size = max(1, TOKENS_PER_TEXT * batch_size // max(1, lengths[order[0]]))
        yield order[:size]
        order = order[size:]


def take(encoded: Encoded, chosen: Sequence[int]) -> Encoded:
    """The texts at the chosen positions, ready for `tokenizer.pad`."""
    return {key: [values[i] for i in chosen] for key, values in encoded.items()}
