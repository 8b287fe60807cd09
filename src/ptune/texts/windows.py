"""Long texts: how a text beyond the limit is read, in one row of tokens or several."""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from scipy.special import logsumexp
from transformers import PreTrainedTokenizerBase

from ptune.texts.templates import Template, with_places
from ptune.texts.tokens import Encoded, encode, lock_of

# How much windows count in equal parts of a text, from its start to its end.
Weights = tuple[float, ...]
# The share of a window that the next one reads again.
OVERLAP = 0.25
# Values of `long_texts` with which a long text has several rows.
IN_WINDOWS = ("windows", "passages")
# Where a paragraph ends; and where a line or sentence does, also a Chinese or Japanese one.
_PARAGRAPH = re.compile(r"\n\s*\n")
_SENTENCE = re.compile(r"""[.!?\u2026]["'\u201d\u2019)\]]*\s+|[\u3002\uff01\uff1f]|\n""")
# Tokens of a window that stay free: words that were cut apart may become more tokens.
SPARE = 2


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


@dataclass(frozen=True)
class Reading:
    """How a classifier reads texts.

    Attributes:
        max_text_tokens: The longest text in tokens; ``None``: no limit.
        long_texts: What is read of a longer text: its start (`truncate`), its start and end
            (`head_tail`), or everything: in windows that overlap (`windows`), or in paragraphs
            and, of a longer one, sentences (`passages`).
        template: The words around each text; ``None``: the text alone.
        window_weights: How much windows count by their place in a text, as for `pooled`.
        pairs: Whether it was trained on pairs of texts; ``None``: unknown.
    """

    max_text_tokens: int | None = None
    long_texts: str = "truncate"
    template: Template | None = None
    window_weights: Weights = ()
    pairs: bool | None = None

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Reading:
        """Read what `to_json` wrote.

        Raises:
            PtuneError: The template is malformed.
        """
        template, weights = content.get("template"), content.get("window_weights") or ()
        return cls(
            content.get("max_length"),
            content.get("long_texts", "truncate"),
            None if template is None else Template(template),
            tuple(weights),
            content.get("text_pairs"),
        )

    def to_json(self) -> dict[str, Any]:
        """Itself as fields of a JSON object."""
        return {
            "max_length": self.max_text_tokens,
            "long_texts": self.long_texts,
            **({"window_weights": self.window_weights} if self.window_weights else {}),
            "text_pairs": self.pairs,
            "template": self.template and self.template.pattern,
        }

    @property
    def in_windows(self) -> bool:
        """Whether a longer text becomes several rows that cover all of it."""
        return self.long_texts in IN_WINDOWS

    @property
    def at_mask(self) -> bool:
        """Whether the head reads at the mask token, so that a masked language model is needed."""
        return self.template is not None and self.template.has_mask

    def rows(
        self,
        tokenizer: PreTrainedTokenizerBase,
        columns: Sequence[Sequence[str]],
        truncation_side: str | None = None,
    ) -> Rows:
        """Token ids of texts or pairs, as `encode` returns them, with the rows of long texts.

        Of a pair, the longer text is divided, and the other one is in every window. It is
        shortened if it takes more than half of a window.

        Args:
            tokenizer, columns, truncation_side: As for `encode`.

        Raises:
            PtuneError: A text has to be divided, and the tokenizer is a slow one.
        """
        count, limit = len(columns[0]), self.max_text_tokens
        if limit is None or self.long_texts == "truncate":
            encoded, cut = encode(tokenizer, columns, limit, truncation_side, self.template)
            return Rows(encoded, list(range(count)), cut)
        encoded, _ = encode(tokenizer, columns, None, None, self.template)
        sizes = [len(ids) for ids in encoded["input_ids"]]
        long = [i for i in range(count) if sizes[i] > limit]
        places = [_places(tokenizer, [column[i] for i in long]) for column in columns]
        parts: list[tuple[str, ...]] = []
        text_of, cut = list(range(count)), []
        for n, i in enumerate(long):
            own, spans = [column[i] for column in columns], [place[n] for place in places]
            free = limit - (sizes[i] - sum(map(len, spans))) - SPARE
            rows, is_cut = _divided(own, spans, max(2, free), self.long_texts)
            parts += rows
            text_of += [i] * len(rows)
            cut += [i] if is_cut else []
        if not parts:
            return Rows(encoded, text_of, cut)
        divided = text_of[count:]
        more, _ = encode(tokenizer, list(zip(*parts, strict=True)), limit, None, self.template)
        first = {i: divided.index(i) for i in long}
        rest = [n for n, i in enumerate(divided) if first[i] != n]
        for key, values in more.items():
            for i, n in first.items():
                encoded[key][i] = values[n]
            encoded[key] += [values[n] for n in rest]
        return Rows(encoded, [*range(count), *(divided[n] for n in rest)], cut)


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
    if not texts:
        return []
    how = {"add_special_tokens": False, "verbose": False}
    with lock_of(tokenizer):
        return with_places(tokenizer, texts, "long_texts='truncate'", **how)["offset_mapping"]


def _divided(
    texts: list[str], spans: list[list[tuple[int, int]]], free: int, long_texts: str
) -> tuple[list[tuple[str, ...]], bool]:
    """The parts of a text, or pair, that are read one by one; whether something is left out.

    Args:
        texts: The text, or the two of a pair.
        spans: Where their tokens are.
        free: Tokens that fit.
        long_texts: As for `Reading`.
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
