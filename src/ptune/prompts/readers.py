"""Readers: virtual tokens that attend to the text, while the text does not attend to them.

The backbone reads the text alone, and the keys and values of all its attentions are kept
(`TextStates`). The virtual tokens then pass through the same layers and attend to these keys and
values, and to each other. What the backbone computes for the text does not depend on the prompt, so
it serves any number of prompts, and in training every epoch (`KeptTexts`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ptune import compat
from ptune.backbones.architectures import Architecture
from ptune.prompts.config import Pooling
from ptune.prompts.heads import stacked
from ptune.prompts.hooks import ReaderStates, VirtualTokens
from ptune.prompts.kept import KeptTexts, StatesShape
from ptune.prompts.keys import AddedKeys, KeyValue
from ptune.prompts.mechanisms import Mechanism
from ptune.prompts.passes import Pass


@dataclass(frozen=True)
class TextStates:
    """What readers see of a batch of texts.

    Attributes:
        key_values: Keys and values of every attention, ``[batch, heads, seq, head_dim]``.
        mask: ``[batch, seq]``, true at tokens. Padding is on the right.
        means: The means over each text in the last layers, the last one first,
            ``[batch, width]``; without numbers where no head can read them.
    """

    key_values: list[KeyValue]
    mask: Tensor
    means: Tensor

    @property
    def lengths(self) -> Tensor:
        """Tokens of each text, ``[batch, 1]``."""
        return self.mask.sum(dim=1, keepdim=True)

    @property
    def shape(self) -> StatesShape:
        """What `of_joined` and `of_rows` need to know."""
        heads = [(t.shape[1], t.shape[3]) for pair in self.key_values for t in pair]
        return StatesShape(heads, self.means.shape[1])

    def joined(self) -> Tensor:
        """All keys and values in one tensor, ``[batch, seq, width]``."""
        parts = [t.transpose(1, 2).flatten(2) for pair in self.key_values for t in pair]
        return torch.cat(parts, dim=2)

    @classmethod
    def of_joined(
        cls, joined: Tensor, mask: Tensor, means: Tensor, shape: StatesShape
    ) -> TextStates:
        """Undo `joined`."""
        sizes = [heads * dim for heads, dim in shape.heads]
        parts = [
            part.unflatten(2, own).transpose(1, 2)  # [batch, heads, seq, head_dim]
            for part, own in zip(joined.split(sizes, dim=2), shape.heads, strict=True)
        ]
        return cls(list(zip(parts[::2], parts[1::2], strict=True)), mask, means)

    def rows(self) -> list[Tensor]:
        """For each text, a copy of its keys, values and means in one tensor ``[numbers]``."""
        lengths = self.lengths[:, 0].tolist()
        return [
            torch.cat([row[:n].flatten(), mean.to(row.dtype)])
            for row, n, mean in zip(self.joined(), lengths, self.means, strict=True)
        ]

    @classmethod
    def of_rows(cls, rows: Sequence[Tensor], shape: StatesShape) -> TextStates:
        """Undo `rows`."""
        parts = [row.tensor_split([len(row) - shape.means]) for row in rows]
        texts = [tokens.view(-1, shape.width) for tokens, _ in parts]
        joined = stacked(texts)  # [batch, seq, width]
        lengths = torch.tensor([[len(text)] for text in texts], device=joined.device)
        columns = torch.arange(joined.shape[1], device=joined.device)
        means = torch.stack([mean for _, mean in parts])
        return cls.of_joined(joined, columns < lengths, means, shape)

    def as_cache(self, times: int) -> tuple[Any, Tensor]:
        """A cache of Transformers with every text `times` times, and its mask.

        Texts are moved to the right, so that what comes after them comes right after.
        """
        seq = self.mask.shape[1]
        columns = torch.arange(seq, device=self.mask.device)
        order = (columns + self.lengths) % max(1, seq)  # [batch, seq]
        pairs = []
        for pair in self.key_values:
            key, value = (
                t.gather(2, order[:, None, :, None].expand_as(t)).repeat_interleave(times, dim=0)
                for t in pair
            )
            pairs.append((key, value))
        mask = self.mask.gather(1, order).repeat_interleave(times, dim=0)
        return compat.cache_of(pairs), mask


class Readers(Mechanism):
    """k virtual tokens after the text, each with a vector that is added before every later layer.

    A virtual token consists of its input embedding and one vector for each layer but the first:
    ``[token_dim + (layers - 1) * hidden]``. Where the layers are out of reach, it is the embedding
    alone.

    With `Prompt.low_rank`, the virtual tokens also pass through a layer of low rank before every
    layer but the first. It has two matrices per layer, ``[rank, hidden]`` each, in rows that
    follow those of the virtual tokens.

    With `Prompt.added_keys`, virtual tokens see other keys of the text in every layer but the
    first (`AddedKeys`): two more matrices per layer, ``[rank, hidden]`` each, in the last rows.

    Attributes:
        by_cache: Whether the keys and values of a text enter as a cache of Transformers, because
            its attention does not use `AttentionInterface`.
        continues: Whether positions continue after the text. Otherwise they start at 0, and the
            text has all of the backbone's positions.
        of_text: The pooling with all that heads can read of a text; ``"architecture"``: nothing.
        kept: Texts that were read before.
    """

    name = "reader"
    of_text: Pooling = "architecture"

    def __init__(self, backbone: PreTrainedModel, own: Architecture, tokens: VirtualTokens) -> None:
        super().__init__(backbone, tokens, own.input_widths)
        self.by_cache = not own.attentions
        self.continues = self.takes_positions = own.takes_position_ids and (
            own.takes_use_cache or not _has_learned_positions(backbone)
        )
        self.kept = KeptTexts()
        self._hook = ReaderStates(backbone, own.layers, tokens.passes)

    def enter(  # noqa: D102
        self, current: Pass, prompts: list[Tensor], which: Sequence[int] | None, start: int
    ) -> list[Tensor]:
        current.reader_vectors = torch.cat(prompts).split(self.sizes, dim=1)[1:]
        return [p[:, : self.sizes[0]] for p in prompts]

    def enter_low_rank(
        self, current: Pass, low_rank: Sequence[Tensor], which: Sequence[int] | None
    ) -> None:
        """Put low-rank layers into a forward pass.

        Args:
            current: The pass.
            low_rank: ``[2 * rank, width]`` for each prompt.
            which: As for `enter`; ``None``: the prompts take turns.
        """
        current.reader_low_rank = self._by_layer(low_rank, which)

    def enter_added_keys(
        self, current: Pass, added: Sequence[Tensor], which: Sequence[int] | None
    ) -> None:
        """Add to the keys of the texts in a forward pass.

        Args:
            current: The pass, after `enter_texts`.
            added: ``[2 * rank, width]`` for each prompt.
            which: As for `enter_low_rank`.
        """
        pairs, times = current.key_values[1:], current.prompts_per_text
        if parts := self._by_layer(added, which):
            found = (AddedKeys.of(p, *own, times) for p, own in zip(pairs, parts, strict=True))
            current.added_keys = [None, *found]

    def enter_texts(self, current: Pass, texts: TextStates, k: int, times: int) -> None:
        """Let the virtual tokens of a forward pass attend to texts.

        Args:
            current: The pass.
            texts: The texts.
            k: Length of the longest prompt.
            times: How many prompts read each text.
        """
        current.key_values, current.key_mask = texts.key_values, texts.mask
        if self.continues:
            own = torch.arange(k, device=texts.mask.device).repeat(times)
            place = texts.mask.cumsum(dim=1) - 1  # [batch, seq]
            # [batch, times * k, seq]
            current.key_distances = (texts.lengths + own)[..., None] - place[:, None]

    def _by_layer(
        self, low_rank: Sequence[Tensor], which: Sequence[int] | None
    ) -> list[tuple[Tensor, Tensor]]:
        """Two matrices of low rank for each layer but the first; none if no prompt has them.

        Args:
            low_rank: ``[2 * rank, width]`` for each prompt.
            which: As for `enter_low_rank`.

        Returns:
            ``[prompts or batch, rank, hidden]`` each.
        """
        if not any(map(len, low_rank)):
            return []
        down, up = (stacked([t.chunk(2)[i] if len(t) else t for t in low_rank]) for i in range(2))
        if which is not None:
            index = torch.tensor(which, device=down.device)
            down, up = down[index], up[index]
        return list(zip(*(t.split(self.sizes, dim=2)[1:] for t in (down, up)), strict=True))

    def from_words(self, ids: Tensor) -> Tensor:  # noqa: D102
        start = self.tokens.weight.new_zeros(len(ids), self.width, dtype=torch.float32)
        start[:, : self.sizes[0]] = self.tokens.of_words(ids)
        return start

    def start(self, tokens: Tensor, parts: Sequence[int]) -> Tensor:
        """Initial rows from those of virtual tokens: nothing is changed in later layers yet.

        Args:
            tokens: ``[k, width]``, of which the input embeddings are kept.
            parts: `PromptEncoderConfig.parts`.

        Returns:
            ``[rows, width]``.
        """
        start = tokens.new_zeros(sum(parts), self.width)
        k, *low_rank = start.split(parts)
        k[:, : self.sizes[0]] = tokens[:, : self.sizes[0]]
        for rows in low_rank:
            down = rows[: len(rows) // 2, self.sizes[0] :]
            down.normal_(std=self.sizes[-1] ** -0.5)
        return start

    def remove(self) -> None:  # noqa: D102
        self._hook.remove()
        self.kept.forget()


def _has_learned_positions(backbone: PreTrainedModel) -> bool:
    """True if there is an embedding of positions."""
    return any(
        "position" in name.rpartition(".")[2]
        and isinstance(getattr(module, "weight", None), Tensor)
        for name, module in backbone.named_modules()
    )
