"""Where virtual tokens stand in a batch.

Rows of a batch arrive padded on either side, with holes perhaps. One permutation puts every row's
tokens in order, the prompt among them, and the padding behind (or before) them: then the backbone
counts its own positions, finds its own padding and pools as it always does, and what stands
around a text cannot change its prediction. Pure tensor functions; nothing here knows a model, and
exporters can trace them for any batch.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ptune.config import Placement

# How many of a row's own tokens stand before the prompt.
TOKENS_BEFORE: dict[Placement, int] = {"prefix": 0, "after_first": 1}


Side = Literal["left", "right"]


def prompt_order(
    attention_mask: Tensor, num_virtual_tokens: int, before: int, padding: Side = "right"
) -> Tensor:
    """The order that puts prompt and text where they belong.

    Args:
        attention_mask: ``[batch, seq]``, nonzero where there is a token.
        num_virtual_tokens: k, the length of the prompt.
        before: How many tokens of the text stand before the prompt.
        padding: Where the padding goes.

    Returns:
        ``[batch, k + seq]``: indices into "k virtual tokens, then the row as it came".

    Example:
        >>> prompt_order(torch.tensor([[0, 1, 1]]), num_virtual_tokens=2, before=1).tolist()
        [[3, 0, 1, 4, 2]]
    """
    real = attention_mask != 0  # [batch, seq]
    batch, seq = real.shape
    k = num_virtual_tokens
    tokens = real.sum(dim=1, keepdim=True)  # [batch, 1]
    # Where each column of "virtual tokens, row as it came" goes; no two go to the same place.
    rank = real.long().cumsum(dim=1) - 1  # [batch, seq], of a token among its row's tokens
    text = rank + k * (rank >= before)
    prompt = tokens.clamp_max(before) + torch.arange(k, device=real.device)  # [batch, k]
    pad = (~real).long().cumsum(dim=1) - 1  # [batch, seq], likewise of padding
    if padding == "left":
        text, prompt = text + seq - tokens, prompt + seq - tokens
    else:
        pad = pad + k + tokens
    places = torch.cat([prompt, torch.where(real, text, pad)], dim=1)  # [batch, k + seq]
    columns = torch.arange(k + seq, device=real.device).expand(batch, -1)
    return torch.empty_like(places).scatter(1, places, columns)


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
        >>> order = prompt_order(torch.tensor([[0, 1, 1]]), num_virtual_tokens=2, before=0)
        >>> place(torch.tensor([[9, 5, 6]]), torch.tensor([100, 101]), order).tolist()
        [[100, 101, 5, 6, 9]]
    """
    virtual = virtual.to(text.dtype).expand(text.shape[0], -1)  # [batch, k]
    return torch.cat([virtual, text], dim=1).gather(1, order)


def place_positions(
    position_ids: Tensor,
    attention_mask: Tensor,
    num_virtual_tokens: int,
    before: int,
    order: Tensor,
) -> Tensor:
    """A caller's own position ids, moved up to make room for the prompt.

    Args:
        position_ids: ``[batch, seq]``, counted for the text alone.
        attention_mask, num_virtual_tokens, before: As for `prompt_order`.
        order: From `prompt_order`.

    Returns:
        ``[batch, k + seq]``: the prompt takes the k positions at its place, and the text behind
        it moves up by k.

    Example:
        >>> mask = torch.tensor([[0, 1, 1]])
        >>> order = prompt_order(mask, num_virtual_tokens=2, before=1)
        >>> place_positions(torch.tensor([[0, 0, 1]]), mask, 2, 1, order).tolist()
        [[0, 1, 2, 3, 0]]
    """
    real = attention_mask != 0  # [batch, seq]
    first = position_ids.gather(1, real.int().argmax(dim=1, keepdim=True))  # [batch, 1]
    prompt = first + before + torch.arange(num_virtual_tokens, device=first.device)  # [batch, k]
    behind = real & (real.cumsum(dim=1) > before)  # [batch, seq]
    return place(position_ids + num_virtual_tokens * behind, prompt, order)
