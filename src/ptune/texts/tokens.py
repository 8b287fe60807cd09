"""Token ids of texts, and batches of texts of similar length."""

from __future__ import annotations

import bisect
import itertools
import numbers
import re
from collections.abc import Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import BatchEncoding, PreTrainedTokenizerBase

from ptune.compat import ForkLock
from ptune.errors import PtuneError
from ptune.texts.templates import Template

# For each text a list of token ids, and so on: what a tokenizer returns.
Encoded = dict[str, list[list[int]]]
# Tokens per text of `batch_size` in a batch for prediction, padding included.
TOKENS_PER_TEXT = 128
# Tokens of padding that a CPU computes in the time that another batch would take. A GPU computes
# thousands.
PADDING = 128
# The first characters of East Asian scripts.
_IDEOGRAPHS = "\u2e80"
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


def padded(
    tokenizer: PreTrainedTokenizerBase,
    texts: Encoded | list[dict[str, list[int]]],
    tensors: str = "pt",
) -> BatchEncoding:
    """Encoded texts as one batch of PyTorch's tensors, or NumPy's (`np`)."""
    with lock_of(tokenizer):
        return tokenizer.pad(texts, return_tensors=tensors)


def encode(
    tokenizer: PreTrainedTokenizerBase,
    columns: Sequence[Sequence[str]],
    max_text_tokens: int | None,
    truncation_side: str | None = None,
    template: Template | None = None,
) -> tuple[Encoded, list[int]]:
    """Token ids of texts or pairs. Several threads may call it with one tokenizer.

    Args:
        tokenizer: The backbone's.
        columns: One column of texts; or two, the first texts and the second texts.
        max_text_tokens: The longest text in tokens; longer texts are cut. ``None``: no limit.
        truncation_side: Where they are cut: `left` or `right`. ``None``: the tokenizer's own side.
        template: The words around each text.

    Returns:
        `input_ids` and so on, one list per text, and the positions of the texts that were cut.
    """
    lists = [list(column) for column in columns]
    with lock_of(tokenizer):
        own_side = tokenizer.truncation_side
        try:
            tokenizer.truncation_side = truncation_side or own_side
            if template is not None:
                return template.encode(tokenizer, lists, max_text_tokens)
            return _encode(tokenizer, lists, max_text_tokens)
        finally:
            tokenizer.truncation_side = own_side


def _encode(
    tokenizer: PreTrainedTokenizerBase, lists: list[list[str]], limit: int | None
) -> tuple[Encoded, list[int]]:
    encoded = dict(tokenizer(*lists, verbose=False))
    cut = [i for i, ids in enumerate(encoded["input_ids"]) if limit and len(ids) > limit]
    if cut:
        part = [[column[i] for i in cut] for column in lists]
        for key, values in tokenizer(*part, truncation=True, max_length=limit).items():
            for i, value in zip(cut, values, strict=True):
                encoded[key][i] = value
    return encoded, cut


def unknown_share(tokenizer: PreTrainedTokenizerBase, ids: Sequence[Sequence[Any]]) -> float:
    """The share of tokens that stand for whatever the vocabulary lacks, of texts or windows."""
    unknown = tokenizer.unk_token_id
    special = set(tokenizer.all_special_ids)
    if unknown is None or unknown in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        return 0.0  # it marks the end of a text, too: bytes of any text are in the vocabulary
    flat = [
        i for text in ids for part in text for i in (part if isinstance(part, list) else [part])
    ]
    own = [i for i in flat if i == unknown or i not in special]
    return own.count(unknown) / max(1, len(own))


def spelled_share(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> float:
    """The share of words of which a model reads each letter by itself.

    A vocabulary without the words of a script may have its letters. Words have at least three, and
    no ideographs, kana or hangul, which models of these scripts read one by one.
    """
    if not tokenizer.is_fast or not texts:
        return 0.0
    with lock_of(tokenizer):
        how: dict[str, Any] = {"add_special_tokens": False, "return_offsets_mapping": True}
        offsets = tokenizer(list(texts), **how, verbose=False)["offset_mapping"]
    words = spelled = 0
    for text, places in zip(texts, offsets, strict=True):
        # A token's place may begin with the space before it, and several may share a letter.
        firsts = [(start, re.search(r"[^\W\d_]", text[start:end])) for start, end in places]
        starts = sorted({start + found.start() for start, found in firsts if found})
        for word in re.finditer(r"[^\s\d]+", text):
            letters = sum(map(str.isalpha, word[0]))
            if letters >= 3 and max(word[0]) < _IDEOGRAPHS:
                first, last = (bisect.bisect_left(starts, place) for place in word.span())
                words, spelled = words + 1, spelled + (last - first >= letters)
    return spelled / max(1, words)


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

    Raises:
        PtuneError: `batch_size` is not a number of texts.
    """
    if not isinstance(batch_size, numbers.Integral) or batch_size < 1:
        raise PtuneError(f"batch_size is {batch_size!r}; expected a whole number of at least 1.")
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
