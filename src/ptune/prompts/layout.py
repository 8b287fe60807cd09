"""Where virtual tokens stand in a batch.

Rows of a batch arrive padded on either side, with holes perhaps, and each may have a prompt of its
own length. Every row's tokens are put in order, the prompt among them, and the padding behind (or
before) them: then the backbone counts its own positions, finds its own padding and pools as it
always does, and what stands around a text cannot change its prediction. Pure tensor functions that
exporters can trace for any batch; nothing here knows a model.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ptune.backbones.architectures import Side
from ptune.prompts.config import Placement

# How many of a row's own tokens stand before the prompt.
TOKENS_BEFORE: dict[Placement, int] = {"prefix": 0, "after_first": 1}


def prompt_order(
    attention_mask: Tensor, virtual_mask: Tensor, before: int | Tensor, padding: Side = "right"
) -> Tensor:
    """The order that puts prompt and text where they belong.

    Args:
        attention_mask: ``[batch, seq]``, nonzero where there is a token.
        virtual_mask: ``[k]`` or ``[batch, k]``, the same for the virtual tokens: those of a row
            are its first ones, and the others go where the padding goes.
        before: How many tokens of the text stand before the prompt; ``[batch, 1]`` if each row
            has its own number.
        padding: Where the padding goes.

    Returns:
        ``[batch, k + seq]``: indices into "k virtual tokens, then the row as it came".

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
    own = prompt.sum(dim=1, keepdim=True)  # [batch, 1], virtual ones
    # Where each column goes; no two go to the same place.
    rank = text.long().cumsum(dim=1) - 1  # [batch, seq], of a token among its row's tokens
    behind = rank + own * (rank >= before)
    virtual = tokens.clamp_max(before) + torch.arange(k, device=tokens.device)  # [batch, k]
    real = torch.cat([prompt, text], dim=1)  # [batch, k + seq]
    pad = (~real).long().cumsum(dim=1) - 1  # likewise of padding
    there = torch.cat([virtual, behind], dim=1)
    if padding == "left":
        there = there + k + seq - own - tokens
    else:
        pad = pad + own + tokens
    places = torch.where(real, there, pad)
    columns = torch.arange(k + seq, device=places.device).expand(batch, -1)
    return torch.empty_like(places).scatter(1, places, columns)  # [batch, k + seq]


def trim(order: Tensor, width: int, padding: Side = "right") -> Tensor:
    """The `width` columns of an order ``[batch, k + seq]`` that are farthest from the padding."""
    return order[:, :width] if padding == "right" else order[:, order.shape[1] - width :]


def place(text: Tensor, virtual: Tensor, order: Tensor) -> Tensor:
    """Put `virtual` and `text` into `order`.

    Args:
        text: ``[batch, seq]``, one number a token of the row as it came.
        virtual: ``[k]`` or ``[batch, k]``, the same for the virtual tokens.
        order: From `prompt_order`; cut short, it leaves out the padding at the end.

    Returns:
        As wide as `order`.

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
    """A caller's own position ids, moved up to make room for the prompt.

    Args:
        position_ids: ``[batch, seq]``, counted for the text alone.
        attention_mask, virtual_mask, before: As for `prompt_order`.
        order: From `prompt_order`.

    Returns:
        ``[batch, k + seq]``: the prompt takes the k positions at its place, and the text behind
        it moves up by k.

    Example:
        >>> mask = torch.tensor([[0, 1, 1]])
        >>> prompt = torch.ones(2)
        >>> order = prompt_order(mask, prompt, before=1)
        >>> place_positions(torch.tensor([[0, 0, 1]]), mask, prompt, 1, order).tolist()
        [[0, 1, 2, 3, 0]]
    """
    real = attention_mask != 0  # [batch, seq]
    first = position_ids.gather(1, real.int().argmax(dim=1, keepdim=True))  # [batch, 1]
    own = (virtual_mask != 0).expand(len(real), -1)  # [batch, k]
    prompt = first + before + own.long().cumsum(dim=1) - 1  # [batch, k]
    behind = real & (real.cumsum(dim=1) > before)  # [batch, seq]
    return place(position_ids + own.sum(dim=1, keepdim=True) * behind, prompt, order)
