"""Where virtual tokens are placed in a batch.

The texts of a batch may be padded on either side, even in the middle, and each may have a prompt of
its own length. `prompt_order` moves each text's tokens together, with the prompt among them, and
all padding to one end. The backbone can then count its positions, find its padding and pool as it
always does, and a text's prediction does not depend on its padding.

These are pure tensor functions that can be traced for any batch. They know nothing about models.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ptune.backbones.architectures import Side, flat
from ptune.prompts.config import Placement
from ptune.texts import batches

# How many of the text's tokens come before the prompt, unless it is among them.
TOKENS_BEFORE: dict[Placement, int] = {"prefix": 0, "after_first": 1, "template": 0}


def prompt_order(
    attention_mask: Tensor, virtual_mask: Tensor, before: int | Tensor, padding: Side = "right"
) -> Tensor:
    """The order in which virtual tokens, text and padding are arranged.

    Args:
        attention_mask: ``[batch, seq]``, nonzero where there is a token.
        virtual_mask: ``[k]`` or ``[batch, k]``, nonzero where there is a virtual token. A text
            with a shorter prompt uses the first ones; the others are treated as padding.
        before: How many tokens of the text come before the prompt; ``[batch, 1]`` if this differs
            between texts.
        padding: The side where the padding goes.

    Returns:
        ``[batch, k + seq]``: indices into the k virtual tokens followed by the text as given.

    Example:
        >>> prompt_order(torch.tensor([[0, 1, 1]]), torch.tensor([1, 1]), before=1).tolist()
        [[3, 0, 1, 4, 2]]
        >>> prompt_order(torch.tensor([[0, 1, 1]]), torch.tensor([1, 0]), before=1).tolist()
        [[3, 0, 4, 1, 2]]
    """
    text = attention_mask != 0  # [batch, seq]
    batch, seq = text.shape
    prompt = (virtual_mask != 0).expand(batch, -1)  # [batch, k]
    k = prompt.shape[1]
    tokens = text.sum(dim=1, keepdim=True)  # [batch, 1]
    virtual_tokens = prompt.sum(dim=1, keepdim=True)  # [batch, 1]
    # The destination of each column; no two columns have the same one.
    rank = text.long().cumsum(dim=1) - 1  # [batch, seq], of a token within its text
    of_text = rank + virtual_tokens * (rank >= before)
    of_prompt = tokens.clamp_max(before) + torch.arange(k, device=tokens.device)  # [batch, k]
    of_tokens = torch.cat([of_prompt, of_text], dim=1)  # [batch, k + seq]
    is_token = torch.cat([prompt, text], dim=1)
    of_padding = (~is_token).long().cumsum(dim=1) - 1
    if padding == "left":
        of_tokens = of_tokens + k + seq - virtual_tokens - tokens
    else:
        of_padding = of_padding + virtual_tokens + tokens
    destinations = torch.where(is_token, of_tokens, of_padding)
    columns = torch.arange(k + seq, device=destinations.device).expand(batch, -1)
    return torch.empty_like(destinations).scatter(1, destinations, columns)  # [batch, k + seq]


def trim(order: Tensor, width: int, padding: Side = "right") -> Tensor:
    """The `width` columns of an order ``[batch, k + seq]`` that are farthest from the padding."""
    return order[:, :width] if padding == "right" else order[:, order.shape[1] - width :]


def place(text: Tensor, virtual: Tensor, order: Tensor) -> Tensor:
    """Arrange `virtual` and `text` in `order`.

    Args:
        text: ``[batch, seq]``: one number per token of the text as given.
        virtual: ``[k]`` or ``[batch, k]``: one number per virtual token.
        order: From `prompt_order`; may be shortened by `trim`.

    Returns:
        The shape of `order`.

    Example:
        >>> order = prompt_order(torch.tensor([[0, 1, 1]]), torch.ones(2), before=0)
        >>> place(torch.tensor([[9, 5, 6]]), torch.tensor([100, 101]), order).tolist()
        [[100, 101, 5, 6, 9]]
    """
    virtual = virtual.to(text.dtype).expand(text.shape[0], -1)  # [batch, k]
    return torch.cat([virtual, text], dim=1).gather(1, order)


def place_positions(
    position_ids: Tensor,
    attention_mask: Tensor,
    virtual_mask: Tensor,
    before: int | Tensor,
    order: Tensor,
) -> Tensor:
    """The caller's position ids, shifted to leave positions for the prompt.

    Args:
        position_ids: ``[batch, seq]``, counted for the text alone.
        attention_mask, virtual_mask, before: As for `prompt_order`.
        order: From `prompt_order`.

    Returns:
        ``[batch, k + seq]``: the prompt takes k positions where it is placed, and the text after
        it moves up by k.

    Example:
        >>> mask = torch.tensor([[0, 1, 1]])
        >>> prompt = torch.ones(2)
        >>> order = prompt_order(mask, prompt, before=1)
        >>> place_positions(torch.tensor([[0, 0, 1]]), mask, prompt, 1, order).tolist()
        [[0, 1, 2, 3, 0]]
    """
    is_token = attention_mask != 0  # [batch, seq]
    first = position_ids.gather(1, is_token.int().argmax(dim=1, keepdim=True))  # [batch, 1]
    is_virtual = (virtual_mask != 0).expand(len(is_token), -1)  # [batch, k]
    prompt = first + before + is_virtual.long().cumsum(dim=1) - 1  # [batch, k]
    is_after = is_token & (is_token.cumsum(dim=1) > before)  # [batch, seq], after the prompt
    k = is_virtual.sum(dim=1, keepdim=True)  # [batch, 1]
    return place(position_ids + k * is_after, prompt, order)


@dataclass(frozen=True)
class Alike:
    """Texts of similar length within a row of tokens.

    Attributes:
        texts: ``[n]``, their numbers in the batch.
        tokens: ``[n, seq]``, the token of the row at each position; for padding, the text's last.
        mask: ``[n, 1, 1, k + seq]``, added to the scores of an attention with k keys of a prompt.
    """

    texts: Tensor
    tokens: Tensor
    mask: Tensor

    def of(self, values: Tensor) -> Tensor:
        """The part ``[n, heads, seq, dim]`` of a row's ``[1, heads, tokens, dim]``."""
        some = values[0].transpose(0, 1).index_select(0, self.tokens.flatten())
        return some.unflatten(0, self.tokens.shape).transpose(1, 2)


@dataclass(frozen=True)
class OneRow:
    """A batch of texts as one row of tokens without padding, of which only attention knows.

    Attributes:
        shape: ``[batch, seq]``, of the batch with padding.
        tokens: ``[tokens]``, indices of batch * seq.
        numbers: ``[batch, seq]``: the token of the row at each position.
        alike: The texts, by length.
        order: ``[tokens]``, where each token is in what attention returns for `alike`.
    """

    shape: torch.Size
    tokens: Tensor
    numbers: Tensor
    alike: tuple[Alike, ...]
    order: Tensor

    @classmethod
    def of(cls, attention_mask: Tensor, key_mask: Tensor, dtype: torch.dtype) -> OneRow:
        """Join the texts of a mask ``[batch, seq]``, whose padding is on the right.

        Args:
            attention_mask: Nonzero where there is a token.
            key_mask: ``[batch, k]``, nonzero where a text attends to a key of its prompt.
            dtype: That of the scores.
        """
        mask = attention_mask != 0
        numbers = (mask.flatten().cumsum(0) - 1).clamp_min(0).view(mask.shape)
        lengths, alike, is_token = mask.sum(dim=1).tolist(), [], []
        for some in batches(lengths, sum(lengths)):
            texts, seq = torch.tensor(some), max(1, lengths[some[0]])
            own = mask[texts, :seq]
            seen = torch.cat([key_mask[texts] != 0, own], dim=1)
            added = torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)
            alike.append(Alike(texts, numbers[texts, :seq], added[:, None, None]))
            is_token.append(own.flatten())
        places = torch.cat(is_token).nonzero()[:, 0]
        tokens = torch.cat([own.tokens.flatten() for own in alike])[places]
        return cls(mask.shape, flat(mask), numbers, tuple(alike), places[tokens.argsort()])

    def join(self, values: Tensor) -> Tensor:
        """``[batch, seq, …]`` to ``[1, tokens, …]``."""
        return values.flatten(0, 1).index_select(0, self.tokens)[None]

    def apart(self, states: Tensor) -> Tensor:
        """``[1, heads, tokens, dim]`` to ``[batch, heads, seq, dim]``, with any padding."""
        return states[0][:, self.numbers].transpose(0, 1)

    def join_alike(self, parts: list[Tensor]) -> Tensor:
        """``[n, seq, …]`` for each of `alike` to ``[1, tokens, …]``."""
        return torch.cat([part.flatten(0, 1) for part in parts]).index_select(0, self.order)[None]
