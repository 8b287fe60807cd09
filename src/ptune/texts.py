"""Texts: what counts as one, as a pair and as a collection, and how they become batches of tokens.

A string is one text. A tuple of two strings is one pair. Anything else iterable is a collection.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase

from ptune.compat import ForkLock
from ptune.errors import PtuneError

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


def as_columns(X: Text | Iterable[Text], before: int = 0) -> list[list[str]]:
    """One column of texts; or two for pairs, the first texts and the second texts.

    Args:
        X: A text, a pair or a collection.
        before: Number of texts that came before these, for messages.

    Raises:
        PtuneError: There are none, they mix texts and pairs, or one of them is not a text.
    """
    rows: list[Any] = [X] if is_one(X) else list(X)
    if not rows:
        raise PtuneError("There are no texts.")
    pairs = not isinstance(rows[0], str)
    for i, row in enumerate(rows, start=before + 1):
        is_pair = isinstance(row, list | tuple) and len(row) == 2
        if not (is_pair if pairs else isinstance(row, str)):
            raise PtuneError(
                f"Text {i} is {row!r}. Expected strings or pairs of strings, not a mixture."
            )
    if not pairs:
        return [check(rows, "list of texts", before)]
    first, second = zip(*rows, strict=True)
    return [
        check(first, "list of first texts", before),
        check(second, "list of second texts", before),
    ]


def check(values: Iterable[Any], where: str, before: int = 0) -> list[str]:
    """Return the values as a list of texts, none of which is missing, empty or a number.

    Args:
        values: The texts.
        where: What they are, for messages.
        before: Number of texts that came before these, for messages.

    Raises:
        PtuneError: One of them is not a text; the message gives its position.
    """
    values = list(values)
    numbers = [v for v in values if isinstance(v, int | float)]
    if numbers and len(numbers) == sum(v is not None for v in values):
        raise PtuneError(
            f"The {where} holds numbers such as {numbers[0]}, not texts. Is it the right "
            "column? Name another with --text-column."
        )
    if wrong := [i for i, v in enumerate(values) if not isinstance(v, str) or not v.strip()]:
        shown = ", ".join(str(before + i + 1) for i in wrong[:SHOWN])
        shown += ", …" if len(wrong) > SHOWN else ""
        raise PtuneError(
            f"The {where} has {len(wrong)} empty, missing or non-text value(s), in example {shown} "
            f"of {before + len(values)}. Fill them in or leave those examples out."
        )
    return values


# Tokens.


# A fast tokenizer fails when two threads use it at once. A copy of one has its own lock.
_locks: WeakKeyDictionary[PreTrainedTokenizerBase, ForkLock] = WeakKeyDictionary()
_registry = ForkLock(level=4)


def lock_of(tokenizer: PreTrainedTokenizerBase) -> ForkLock:
    """The lock to hold while a tokenizer works."""
    with _registry:
        return _locks.setdefault(tokenizer, ForkLock(level=3))


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
