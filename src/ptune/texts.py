"""Texts: what counts as one, as a pair and as a collection, and how they become batches of tokens.

A string is one text. A tuple of two strings is one pair. Anything else iterable is a collection.
"""

from __future__ import annotations

import bisect
import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from scipy.special import logsumexp
from transformers import PreTrainedTokenizerBase

from ptune.compat import ForkLock
from ptune.errors import PtuneError, positions
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
# How much windows count in equal parts of a text, from its start to its end.
Weights = tuple[float, ...]
# For each text a list of token ids, and so on: what a tokenizer returns.
Encoded = dict[str, list[list[int]]]

# Tokens per text of `batch_size` in a batch for prediction, padding included.
TOKENS_PER_TEXT = 128
# Tokens of padding that a CPU computes in the time that another batch would take. A GPU computes
# thousands.
PADDING = 128
# Positions that a message lists before it stops.
SHOWN = 5
# What to do about values that are not texts.
FIX = "Correct them or leave them out."
# The share of a window that the next one reads again.
OVERLAP = 0.25
# Values of `long_texts` with which a long text has several rows.
IN_WINDOWS = ("windows", "passages")
# Where a paragraph ends; and where a line or sentence does, also a Chinese or Japanese one.
_PARAGRAPH = re.compile(r"\n\s*\n")
_SENTENCE = re.compile(r"""[.!?\u2026]["'\u201d\u2019)\]]*\s+|[\u3002\uff01\uff1f]|\n""")
# Tokens of a window that stay free: words that were cut apart may become more tokens.
SPARE = 2


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
    no_rows = isinstance(X, Mapping | bytes | bytearray | memoryview | type)
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
    X: Iterable[Any], before: int = 0, pairs: bool | None = None, first: int = 0
) -> list[list[str]]:
    """One column of texts; or two for pairs, the first texts and the second texts.

    Args:
        X: Texts or pairs, as `rows` returns them.
        before: Number of texts that came before these, for messages.
        pairs: Whether they must be pairs; ``None``: if the first one is.
        first: The number of the very first one, for messages: 0 in Python, 1 in files.

    Raises:
        PtuneError: There are none, they mix texts and pairs, or one of them is not a text.
    """
    found = list(X)
    if not found:
        raise PtuneError("There are no texts.")
    if not (_is_pair(found[0]) if pairs is None else pairs):
        return [check(found, "the texts", before, first)]
    if wrong := [i for i, row in enumerate(found) if not _is_pair(row)]:
        _refuse(found, wrong, "the pairs of texts", before, first)
    columns = zip(("first", "second"), zip(*found, strict=True), strict=True)
    return [check(c, f"the {name} texts of the pairs", before, first) for name, c in columns]


def as_rows(columns: Sequence[Sequence[str]]) -> list[Any]:
    """The inverse of `as_columns`: texts, or pairs as tuples."""
    return list(columns[0]) if len(columns) == 1 else list(zip(*columns, strict=True))


def _is_pair(row: Any) -> bool:
    unordered = isinstance(row, set | frozenset | bytearray | memoryview)
    return not unordered and is_container(row) and len(row) == 2


def check(
    values: Iterable[Any],
    where: str,
    before: int = 0,
    first: int = 0,
    fix: str = FIX,
) -> list[str]:
    """Return the values as a list of texts, none of which is missing, empty or a number.

    Args:
        values: The texts.
        where: What they are, for messages.
        before: Number of texts that came before these, for messages.
        first: The number of the very first one, for messages: 0 in Python, 1 in files.
        fix: What to do about values that are not texts, for messages.

    Raises:
        PtuneError: One of them is not a text; the message gives its position.
    """
    values = list(values)
    plain = set(map(type, values)) <= {str} and all(map(str.strip, values))
    if plain and (all(map(str.isascii, values)) or all(map(is_unicode, values))):
        return values
    numbers = [v for v in values if isinstance(v, int | float | np.number) and v == v]
    if len(numbers) > 1 and len(numbers) == len(values):
        another = "Name another with --text-column." if first else "Convert numbers with str()."
        raise PtuneError(
            f"Found numbers such as {numbers[0]} in {where}, at {positions([before], first)}; "
            f"expected texts. Is it the right column? {another}"
        )
    if wrong := [i for i, value in enumerate(values) if not _is_text(value)]:
        _refuse(values, wrong, where, before, first, fix)
    # The string of an enum member is its value, and str() would give its name.
    return [value if type(value) is str else str.__str__(value) for value in values]


def _is_text(value: Any) -> bool:
    if not isinstance(value, str) or not value or value.isspace():
        return False
    return is_unicode(value)


def _refuse(
    values: Sequence[Any],
    wrong: list[int],
    where: str,
    before: int,
    first: int,
    fix: str = FIX,
) -> NoReturn:
    places = positions([before + i for i in wrong], first, SHOWN)
    more = f" {len(wrong)} of {before + len(values)} are wrong." if len(wrong) > 1 else ""
    expected = "strings or pairs of strings, not a mixture"
    if first and is_missing(values[wrong[0]]):
        expected = "a text in every row"
    raise PtuneError(
        f"Found {_described(values[wrong[0]])} in {where}, at {places}. Expected {expected}.{more} "
        f"{fix}"
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
    if is_container(value) and not isinstance(value, type):
        kind = type(value).__name__
        article = "an" if kind[0] in "aeiouAEIOU" or kind == "ndarray" else "a"
        return f"{article} {kind} of {len(value)} ({str(value)[:50]})"
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
    template: Template | None = None,
) -> tuple[Encoded, list[int]]:
    """Token ids of texts or pairs. Several threads may call it with one tokenizer.

    Args:
        tokenizer: The backbone's.
        columns: One column of texts; or two, the first texts and the second texts.
        max_text_tokens: The longest text in tokens, for all of them or for each; longer texts are
            cut. ``None``: no limit.
        truncation_side: Where they are cut: `left` or `right`. ``None``: the tokenizer's own side.
        template: The words around each text.

    Returns:
        `input_ids` and so on, one list per text, and the positions of the texts that were cut.
    """
    lists = [list(column) for column in columns]
    limits = max_text_tokens
    if not isinstance(limits, Sequence):
        limits = [limits] * len(lists[0])
    with lock_of(tokenizer):
        own_side = tokenizer.truncation_side
        try:
            tokenizer.truncation_side = truncation_side or own_side
            if template is not None:
                return template.encode(tokenizer, lists, limits)
            return _encode(tokenizer, lists, limits)
        finally:
            tokenizer.truncation_side = own_side


def _encode(
    tokenizer: PreTrainedTokenizerBase, lists: list[list[str]], limits: Sequence[int | None]
) -> tuple[Encoded, list[int]]:
    encoded = dict(tokenizer(*lists, verbose=False))
    ids = encoded["input_ids"]
    too_long: dict[int, list[int]] = defaultdict(list)
    for i, limit in enumerate(limits):
        if limit and len(ids[i]) > limit:
            too_long[limit].append(i)
    for limit, some in too_long.items():
        part = [[column[i] for i in some] for column in lists]
        cut = tokenizer(*part, truncation=True, max_length=limit)
        for key, values in cut.items():
            for i, value in zip(some, values, strict=True):
                encoded[key][i] = value
    return encoded, sorted(i for some in too_long.values() for i in some)


def batches(
    lengths: Sequence[int], batch_size: int, most_padding: int | None = PADDING
) -> Iterator[list[int]]:
    """Positions of the texts to classify together: texts of similar length, longest first.

    A batch has at most 128 tokens times `batch_size`, padding included: a few long texts or many
    short ones.

    Args:
        lengths: Length of each text, in tokens.
        batch_size: The setting.
        most_padding: Tokens of padding in a batch; ``None``: no limit.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    while order:
        longest = lengths[order[0]]
        size = max(1, TOKENS_PER_TEXT * batch_size // max(1, longest))
        if most_padding is not None:
            padding = itertools.accumulate(longest - lengths[i] for i in order[:size])
            size = bisect.bisect_right(list(padding), most_padding)
        yield order[:size]
        order = order[size:]


def most_padding(device: str | torch.device, *, one_row: bool = False) -> int | None:
    """The `most_padding` of `batches` that a device is fastest with.

    Args:
        device: The backbone's.
        one_row: Whether the backbone reads a batch without padding.
    """
    return None if one_row or torch.device(device).type != "cpu" else PADDING


def take(encoded: Encoded, chosen: Sequence[int]) -> Encoded:
    """The texts at the chosen positions, ready for `tokenizer.pad`."""
    return {key: [values[i] for i in chosen] for key, values in encoded.items()}


# Long texts.


@dataclass(frozen=True)
class Rows:
    """Texts as rows of tokens: one for each text, then the further windows of long ones.

    Attributes:
        encoded: `input_ids` and so on, one list per row.
        text_of: The text that each row belongs to.
        cut: The texts of which a part is not read.
    """

    encoded: Encoded
    text_of: list[int]
    cut: list[int]


def encode_rows(
    tokenizer: PreTrainedTokenizerBase,
    columns: Sequence[Sequence[str]],
    max_text_tokens: int | Sequence[int | None] | None,
    long_texts: str = "truncate",
    truncation_side: str | None = None,
    template: Template | None = None,
) -> Rows:
    """Token ids of texts or pairs, as `encode` returns them, with the rows of long texts.

    Of a pair, the longer text is divided, and the other one is in every window. It is shortened if
    it takes more than half of a window.

    Args:
        tokenizer, columns, max_text_tokens, truncation_side, template: As for `encode`.
        long_texts: What is read of a text that is longer than `max_text_tokens`: its start
            (`truncate`), its start and end (`head_tail`), or everything: in windows that overlap
            (`windows`), or in paragraphs and, of a longer one, sentences (`passages`).

    Raises:
        PtuneError: A text has to be divided, and the tokenizer is a slow one.
    """
    count, limits = len(columns[0]), max_text_tokens
    if long_texts == "truncate":
        encoded, cut = encode(tokenizer, columns, limits, truncation_side, template)
        return Rows(encoded, list(range(count)), cut)
    if not isinstance(limits, Sequence):
        limits = [limits] * count
    encoded, _ = encode(tokenizer, columns, None, None, template)
    sizes = [len(ids) for ids in encoded["input_ids"]]
    fits = [limit is None or n <= limit for n, limit in zip(sizes, limits, strict=True)]
    long = [i for i in range(count) if not fits[i]]
    places = [_places(tokenizer, [column[i] for i in long]) for column in columns]
    parts: list[tuple[str, ...]] = []
    text_of, cut = list(range(count)), []
    for n, i in enumerate(long):
        own, spans = [column[i] for column in columns], [place[n] for place in places]
        free = (limits[i] or 0) - (sizes[i] - sum(map(len, spans))) - SPARE
        rows, is_cut = _divided(own, spans, max(2, free), long_texts)
        parts += rows
        text_of += [i] * len(rows)
        cut += [i] if is_cut else []
    if not parts:
        return Rows(encoded, text_of, cut)
    divided = text_of[count:]
    bounds = [limits[i] for i in divided]
    more, _ = encode(tokenizer, list(zip(*parts, strict=True)), bounds, None, template)
    first = {i: divided.index(i) for i in long}
    rest = [n for n, i in enumerate(divided) if first[i] != n]
    for key, values in more.items():
        for i, n in first.items():
            encoded[key][i] = values[n]
        encoded[key] += [values[n] for n in rest]
    return Rows(encoded, [*range(count), *(divided[n] for n in rest)], cut)


@dataclass(frozen=True)
class Reading:
    """How a classifier reads texts.

    Attributes:
        max_text_tokens: The longest text in tokens; ``None``: no limit.
        long_texts: What is read of longer texts, as for `encode_rows`.
        template: The words around each text; ``None``: the text alone.
        window_weights: How much windows count by their place in a text, as for `pooled`.
    """

    max_text_tokens: int | None = None
    long_texts: str = "truncate"
    template: Template | None = None
    window_weights: Weights = ()

    @property
    def in_windows(self) -> bool:
        """Whether a longer text becomes several rows that cover all of it."""
        return self.long_texts in IN_WINDOWS

    def rows(self, tokenizer: PreTrainedTokenizerBase, columns: Sequence[Sequence[str]]) -> Rows:
        """Token ids of texts or pairs, as `encode_rows` returns them."""
        limit, how = self.max_text_tokens, self.long_texts
        return encode_rows(tokenizer, columns, limit, how, template=self.template)


_Logits = TypeVar("_Logits", np.ndarray, list[np.ndarray], torch.Tensor)


def in_parts(windows: int, parts: int) -> np.ndarray:
    """How much of each window is in each of N equal parts of a text, ``[windows, parts]``."""
    ends, edges = (np.linspace(0, 1, n + 1) for n in (windows, parts))
    starts, ends = ends[:-1, None], ends[1:, None]
    shared = np.minimum(ends, edges[1:]) - np.maximum(starts, edges[:-1])
    return shared.clip(0) * windows


def _log_shares(windows: int, weights: Weights) -> np.ndarray:
    """The logarithm of how much each window of a text counts, ``[windows]``; together 1."""
    own = np.array(weights or (1.0,))
    own = np.log(in_parts(windows, len(own)) @ own)
    return (own - logsumexp(own)).astype(np.float32)


def pooled(
    rows: _Logits,
    text_of: Sequence[int],
    means: bool | Sequence[bool] = False,
    weights: Weights | list[Weights] = (),
) -> _Logits:
    """The logits of each text, from those of its rows.

    Each logit is the logarithm of the weighted mean of its exponentials, so that windows with large
    logits count more: most windows of a long text tell nothing about its label.

    Args:
        rows: The logits of each row, which may change. Gradients pass through a tensor.
        text_of: As in `Rows`.
        means: Whether texts get the mean itself, as for a regression: all of them, or each.
        weights: How much windows count in equal parts of a text, from its start to its end;
            empty: all the same. Those of all texts, or a list with those of each.
    """
    counts = np.bincount(text_of)
    if isinstance(rows, torch.Tensor):
        numbers = torch.tensor(text_of, device=rows.device)
        sums = rows.new_zeros(len(counts), *rows.shape[1:])
        if means is True:
            return sums.index_add(0, numbers, rows) / rows.new_tensor(counts)[:, None]
        assert isinstance(weights, tuple)
        shares = np.empty(len(text_of), dtype=np.float32)
        shares[np.argsort(text_of, kind="stable")] = np.concatenate(
            [_log_shares(n, weights) for n in counts.tolist()]
        )
        rows = rows + rows.new_tensor(shares)[:, None]
        index = numbers[:, None].expand_as(rows)
        # Without the largest, exponentials could overflow.
        most = (sums - torch.inf).scatter_reduce(0, index, rows.detach(), "amax")
        return most + sums.index_add(0, numbers, (rows - most[numbers]).exp()).log()
    texts = rows[: len(counts)]
    order = np.argsort(text_of, kind="stable")
    ends = counts.cumsum()
    for text in np.flatnonzero(counts > 1).tolist():
        own = np.stack([rows[n] for n in order[ends[text] - counts[text] : ends[text]].tolist()])
        is_mean = means if isinstance(means, bool) else means[text]
        shares = _log_shares(len(own), weights[text] if isinstance(weights, list) else weights)
        texts[text] = own.mean(0) if is_mean else logsumexp(own + shares[:, None], 0)
    return texts


def _places(tokenizer: Any, texts: list[str]) -> list[list[tuple[int, int]]]:
    """Where each token of each text starts and ends, in characters."""
    if texts and not tokenizer.is_fast:
        raise PtuneError(
            f"The backbone's tokenizer, {type(tokenizer).__name__}, is written in Python and does "
            "not tell where its tokens are, so long texts can only be truncated "
            "(long_texts='truncate'). Or use a backbone that comes with a tokenizer.json."
        )
    with lock_of(tokenizer):
        how = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
        return tokenizer(texts, **how)["offset_mapping"] if texts else []


def _divided(
    texts: list[str], spans: list[list[tuple[int, int]]], free: int, long_texts: str
) -> tuple[list[tuple[str, ...]], bool]:
    """The parts of a text, or pair, that are read one by one; whether something is left out.

    Args:
        texts: The text, or the two of a pair.
        spans: Where their tokens are.
        free: Tokens that fit.
        long_texts: As for `encode_rows`.
    """

    def part(column: int, start: int, end: int) -> str:
        own = spans[column]
        return texts[column][own[start][0] : own[end - 1][1]] if start < end else ""

    def ends(column: int, size: int) -> str:
        length = len(spans[column])
        if size >= length:
            return texts[column]
        tail = size // 2
        return f"{part(column, 0, size - tail)} {part(column, length - tail, length)}"

    longer = max(range(len(texts)), key=lambda column: len(spans[column]))
    others = {c: min(len(spans[c]), free // 2) for c in range(len(texts)) if c != longer}
    size, length = free - sum(others.values()), len(spans[longer])
    shown = [ends(c, others.get(c, size)) for c in range(len(texts))]
    is_cut = any(n < len(spans[c]) for c, n in others.items())
    if long_texts == "head_tail":
        return [tuple(shown)], True
    ranges = _passages(texts[longer], spans[longer], size)
    if long_texts == "windows":
        steps = max(0, -(-(length - size) // max(1, size - int(OVERLAP * size))))
        starts = [round(k * (length - size) / steps) for k in range(steps + 1)] if steps else [0]
        ranges = [(start, min(start + size, length)) for start in starts]
    windows = [part(longer, start, end) for start, end in ranges]
    windows = [window for window in windows if window.strip()]
    return [
        tuple(w if c == longer else shown[c] for c in range(len(texts))) for w in windows
    ], is_cut


def _passages(text: str, spans: list[tuple[int, int]], size: int) -> list[tuple[int, int]]:
    """Where the paragraphs of a text start and end, in tokens.

    A paragraph of more than `size` tokens is divided after sentences or lines, and a sentence of
    more than that anywhere.
    """
    stops = [stop for _, stop in spans]  # a token may start with the space before it

    def ends(pattern: re.Pattern[str]) -> list[int]:
        places = {bisect.bisect_right(stops, found.end()) for found in pattern.finditer(text)}
        return sorted(places | {0, len(spans)})

    paragraphs, sentences, found = ends(_PARAGRAPH), ends(_SENTENCE), []
    for start, last in itertools.pairwise(paragraphs):
        while start < last:
            end = last
            if last - start > size:
                end = sentences[bisect.bisect_right(sentences, start + size) - 1]
                end = end if end > start else start + size
            found.append((start, end))
            start = end
    return found


# Templates.


_PLACES = re.compile(r"\{(text|text_pair|mask|prompt(?::[1-9]\d*)?|soft:[^{}]*)\}")
# A place of a prompt, and the space before it; and one with a number of virtual tokens.
_PROMPT_PLACE = re.compile(r"( ?)\{(?:prompt(?::([1-9]\d*))?|soft:([^{}]*))\}")
_NUMBERED = re.compile(r" ?\{prompt:([1-9]\d*)\}")
_PROMPT = "{prompt}"
_CHAT = "chat:"
# The id of a virtual token among those of a text, which no word has.
VIRTUAL = -1


class Placed(NamedTuple):
    """A template in which every place of a prompt has a number of virtual tokens.

    Attributes:
        template: The template.
        words: For each virtual token the token that it starts as; ``None``: any.
    """

    template: Template
    words: list[int | None]


@dataclass(frozen=True)
class Template:
    """The words around a text, such as ``{soft:Review:} {text} Sentiment:``.

    | place | becomes |
    | --- | --- |
    | `{text}` | the text |
    | `{text_pair}` | the second text of a pair |
    | `{mask}` | the gap that a masked language model fills; the head reads there |
    | `{soft:words}` | these words; a trained prompt starts as them and replaces them |
    | `{prompt:5}` | five virtual tokens of an input prompt |
    | `{prompt}` | an equal share of an input prompt's other virtual tokens |

    An input prompt may have any number of places (arXiv 2103.10385). A deep prompt has one, at the
    start: soft words; or `{prompt}`, in place of the special tokens before a text. A reader has
    one, at the end: soft words.

    After ``chat:``, the rest is what a user says, in the format that the model was tuned on.

    Args:
        pattern: Words and places.

    Raises:
        PtuneError: `{text}` is missing, or a place is unknown or occurs twice.

    Example:
        >>> Template("Review: {text} Sentiment:").fill([["fine"]])
        ['Review: fine Sentiment:']
    """

    pattern: str

    def __post_init__(self) -> None:
        body = self.pattern.removeprefix(_CHAT)
        places = _PLACES.findall(body)
        if rest := re.search(r"\{[^{}]*\}?", _PLACES.sub("", body)):
            raise PtuneError(
                f"The template has the place {rest[0]!r}; expected {{text}}, {{text_pair}}, "
                "{mask}, {prompt}, {prompt:5} or {soft:words}."
            )
        for name in ("text", "text_pair", "mask"):
            if (found := places.count(name)) != 1 and (name == "text" or found):
                raise PtuneError(
                    f"The template {self.pattern!r} has {{{name}}} {found} times; expected once."
                )

    @property
    def chats(self) -> bool:
        """Whether the model is asked in its chat format."""
        return self.pattern.startswith(_CHAT)

    @property
    def takes_pairs(self) -> bool:
        """Whether it has a place for a second text."""
        return "{text_pair}" in self.pattern

    @property
    def has_mask(self) -> bool:
        """Whether the head reads at the mask token."""
        return "{mask}" in self.pattern

    @property
    def is_spaced(self) -> bool:
        """Whether a space comes before the word that it asks for."""
        if self.has_mask:
            return self.pattern.partition("{mask}")[0].endswith(" ")
        end = self.soft_words if self.soft_at_end else self.pattern
        return not (self.chats or end.endswith((" ", "\n")))

    @property
    def soft_words(self) -> str:
        """The words that a trained prompt replaces; empty: there are none."""
        return self._soft[1]

    @property
    def soft_at_end(self) -> bool:
        """Whether these words come after the text, where a reader is."""
        return self._soft[0]

    @property
    def _soft(self) -> tuple[bool, str]:
        at_start = re.match(r"\{soft:([^{}]*)\}", self.pattern)
        at_end = re.search(r"\{soft:([^{}]*)\}$", self.pattern)
        if found := at_start or (None if self.chats else at_end):
            return not at_start, found[1]
        return False, ""

    @property
    def replaces_special(self) -> bool:
        """Whether a prompt replaces the special tokens before a text, such as Llama's BOS."""
        return self.pattern.startswith(_PROMPT)

    def without_soft_words(self, *, replaces_special: bool = False) -> Template:
        """The template that remains where a prompt replaces the soft words.

        Args:
            replaces_special: Whether it also replaces the special tokens before them.
        """
        if not (words := self.soft_words):
            return self
        place = f"{{soft:{words}}}"
        rest = self.pattern.removesuffix(place) if self.soft_at_end else self.pattern[len(place) :]
        return Template(_PROMPT + rest if replaces_special else rest)

    @property
    def prompt_places(self) -> list[str]:
        """The places of a prompt, as they are written."""
        return [found[0].lstrip() for found in _PROMPT_PLACE.finditer(self.pattern)]

    def without_prompt(self) -> Template:
        """The template without places for virtual tokens; soft words stay as words."""
        return Template(re.sub(r"^\{prompt(:\d+)?\} ?| ?\{prompt(:\d+)?\}", "", self.pattern))

    def placed(self, tokenizer: Any, k: int | None) -> Placed:
        """Divide a prompt among its places.

        Args:
            tokenizer: The backbone's.
            k: Virtual tokens, of which places without a number or words share the rest; ``None``:
                as many as the places name.

        Raises:
            PtuneError: There are too few for these places, or others than the places name.
        """
        found = list(_PROMPT_PLACE.finditer(self.pattern))
        own: list[list[int | None] | None] = []
        for space, number, words in (place.groups() for place in found):
            if words is None:
                own.append([None] * int(number) if number else None)
            else:
                said = words if not own and found[0].start() == 0 else space + words
                own.append(tokenizer(said, add_special_tokens=False)["input_ids"])
        shared, named = own.count(None), sum(map(len, filter(None, own)))
        k = named if k is None else k
        rest = k - named
        if rest < shared or (rest and not shared):
            raise PtuneError(
                f"The template {self.pattern!r} has places for {named} virtual tokens"
                + (f" and {shared} more of any size" if shared else "")
                + f", and the prompt has {k}. Set num_virtual_tokens (--num-virtual-tokens) to "
                + (f"at least {named + shared}." if shared else f"{named}, or leave it out.")
            )
        sizes = iter(rest // shared + (i < rest % shared) for i in range(shared))
        each = [[None] * next(sizes) if place is None else place for place in own]
        numbers = iter(map(len, each))
        pattern = _PROMPT_PLACE.sub(lambda m: f"{m[1]}{{prompt:{next(numbers)}}}", self.pattern)
        return Placed(Template(pattern), [word for place in each for word in place])

    def fill(
        self, columns: Sequence[Sequence[str]], mask: str = "[MASK]", mark: str = ""
    ) -> list[str]:
        """The template with each text, or pair of texts, in its places.

        Args:
            columns: One column of texts; or two, the first texts and the second texts.
            mask: The tokenizer's mask token. A template with a mask removes it from the texts.
            mark: What is written where a place has a number of virtual tokens.

        Raises:
            PtuneError: The template is for pairs and the texts are not, or the other way round.
        """
        if (len(columns) == 2) != self.takes_pairs:
            places, found = ("{text} and {text_pair}", "single texts")
            if not self.takes_pairs:
                places, found = ("{text} alone", "pairs")
            raise PtuneError(f"The template {self.pattern!r} has {places}, but these are {found}.")
        named = dict(zip(("text", "text_pair"), columns, strict=False))

        def one(i: int) -> str:
            def place(found: re.Match[str]) -> str:
                name = found[1]
                if name in ("prompt", "mask"):
                    return mask if name == "mask" else ""
                if name.startswith("prompt:"):
                    return mark
                if name.startswith("soft:"):
                    return name[len("soft:") :]
                return named[name][i].replace(mask, " ") if self.has_mask else named[name][i]

            return _PLACES.sub(place, body)

        body = _NUMBERED.sub(r"{prompt:\1}", self.pattern.removeprefix(_CHAT))
        return [one(i) for i in range(len(columns[0]))]

    def encode(
        self, tokenizer: Any, columns: Sequence[Sequence[str]], limits: Sequence[int | None]
    ) -> tuple[dict[str, list[list[int]]], list[int]]:
        """Token ids of the filled template. Too long texts are cut, never the template.

        Args:
            tokenizer: The backbone's; the caller holds its lock.
            columns: As for `fill`.
            limits: The largest number of tokens of each text with the template.

        Returns:
            `input_ids` and so on, and the positions of the texts that were cut.

        Raises:
            PtuneError: The template alone has too many tokens.
        """
        encoded = self._tokens(tokenizer, columns)
        ids, cut = encoded["input_ids"], []
        for i, limit in enumerate(limits):
            if limit is None or len(ids[i]) <= limit:
                continue
            parts = [column[i] for column in columns]
            cut.append(i)
            while True:
                short = self._tokens(tokenizer, [[part] for part in parts])
                if (excess := len(short["input_ids"][0]) - limit) <= 0:
                    break
                longest = max(range(len(parts)), key=lambda j: len(parts[j]))
                if not parts[longest]:
                    raise PtuneError(
                        f"The template {self.pattern!r} alone has {limit + excess} tokens, and "
                        f"only {limit} fit. Shorten it, or raise max_length."
                    )
                parts[longest] = _shortened(tokenizer, parts[longest], excess)
            for key, values in short.items():
                encoded[key][i] = values[0]
        return encoded, cut

    def _tokens(self, tokenizer: Any, columns: Sequence[Sequence[str]]) -> dict[str, Any]:
        numbers = [int(number) for number in _NUMBERED.findall(self.pattern)]
        mark = _unused(columns) if numbers else ""
        filled = self.fill(columns, tokenizer.mask_token if self.has_mask else "", mark)
        if self.chats:
            if not getattr(tokenizer, "chat_template", None):
                raise PtuneError(
                    f"The template {self.pattern!r} needs a chat format, and this tokenizer has "
                    "none. Leave out 'chat:'."
                )
            filled = [
                tokenizer.apply_chat_template(
                    [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
                )
                for text in filled
            ]
        how = {"add_special_tokens": not self.chats, "verbose": False}
        if numbers:
            return _with_virtual_tokens(tokenizer, [f.split(mark) for f in filled], numbers, how)
        encoded = dict(tokenizer(filled, **how))
        if self.replaces_special and (n := len(special_before(tokenizer))):
            return {key: [row[n:] for row in rows] for key, rows in encoded.items()}
        return encoded


def _unused(columns: Sequence[Sequence[str]]) -> str:
    """A character for private use that no text has."""
    used = set().union(*(text for column in columns for text in column))
    return next(c for c in map(chr, range(0xE000, 0xF900)) if c not in used)


def _with_virtual_tokens(
    tokenizer: Any, parts: list[list[str]], numbers: list[int], how: dict[str, Any]
) -> dict[str, Any]:
    """Tokens of texts in parts, with a number of virtual tokens between each two parts."""
    if not tokenizer.is_fast:
        raise PtuneError(
            f"The backbone's tokenizer, {type(tokenizer).__name__}, is written in Python and does "
            "not tell where its tokens are, so virtual tokens cannot be placed among them. Use a "
            "backbone that comes with a tokenizer.json, or a template without {prompt}."
        )
    encoded = dict(tokenizer(["".join(own) for own in parts], return_offsets_mapping=True, **how))
    ends = [[end for _, end in row] for row in encoded.pop("offset_mapping")]
    for i, own in enumerate(parts):
        last = max((n for n, end in enumerate(ends[i]) if end), default=0) + 1
        lengths = itertools.accumulate(map(len, own[:-1]))
        # From the end, so that places keep their numbers.
        for place, number in reversed(list(zip(lengths, numbers, strict=True))):
            at = next((n for n, end in enumerate(ends[i]) if end > place), last)
            for name, values in encoded.items():
                new = {"input_ids": VIRTUAL, "attention_mask": 1}.get(name, 0)
                values[i][at:at] = [new] * number
    return encoded


def special_before(tokenizer: Any) -> list[int]:
    """The special tokens that a tokenizer puts before a text, such as BOS."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    ids = tokenizer("a")["input_ids"]
    return next((ids[:i] for i in range(len(ids)) if ids[i : i + len(bare)] == bare), [])


def _shortened(tokenizer: Any, text: str, excess: int) -> str:
    """A text without its last tokens, on the side on which the tokenizer cuts."""
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    # In characters: a token's own characters are not known to every tokenizer.
    keep = min(len(text) - 1, len(text) * max(0, len(ids) - excess) // max(1, len(ids)))
    return text[len(text) - keep :] if tokenizer.truncation_side == "left" else text[:keep]
