"""Keys and values of a prompt, before those of the text, in every attention.

Transformers looks attention functions up by name (`AttentionInterface`). ptune's functions prepend
the keys and values of the current `Pass` and call the kernel that the backbone would use.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ptune import compat
from ptune.backbones.architectures import Architecture
from ptune.backbones.cpu import FEW_PASSES, is_unusual, scaled_product
from ptune.prompts.keys import AddedKeys, KeyValue
from ptune.prompts.layout import OneRow
from ptune.prompts.passes import Pass, Passes

_PREFIX = "ptune_"
_KERNELS = {"eager": "eager", FEW_PASSES: "eager", "sdpa": "sdpa"}  # kernel: format of its masks


@dataclass(frozen=True)
class _Site:
    """The attentions of the forward pass that a module computes, in order."""

    passes: Passes
    numbers: tuple[int, ...]

    def key_values(
        self, current: Pass, module: nn.Module
    ) -> tuple[KeyValue | None, AddedKeys | None]:
        if not current.key_values:
            return None, None
        number = self.numbers[0]
        if len(self.numbers) > 1:
            call = current.calls.get(module, 0)
            current.calls[module] = call + 1
            number = self.numbers[call % len(self.numbers)]
        added = current.added_keys[number] if current.added_keys else None
        return current.key_values[number], added


class Attentions:
    """Routes every attention of a backbone through ptune's functions.

    Only for architectures with `Architecture.attentions`.
    """

    def __init__(
        self, backbone: PreTrainedModel, architecture: Architecture, passes: Passes
    ) -> None:
        self.backbone = backbone
        numbers: dict[str, list[int]] = {}
        for i, attention in enumerate(architecture.attentions):
            numbers.setdefault(attention.path, []).append(i)
        self.modules = {backbone.get_submodule(path): own for path, own in numbers.items()}
        self.use_chosen()
        for module, own in self.modules.items():
            module.ptune_site = _Site(passes, tuple(own))

    def use_chosen(self) -> None:
        """Route the attention that the backbone has, also after a user has chosen another one."""
        chosen = compat.attention_of(self.backbone)
        if chosen.startswith(_PREFIX):
            return
        kernel = chosen if chosen in _KERNELS else "sdpa"
        if kernel == "sdpa" and not compat.supports_sdpa(self.backbone):
            kernel = "eager"
        self.before = chosen
        self.backbone.set_attn_implementation(f"{_PREFIX}{kernel}")

    def remove(self) -> None:
        """Restore the backbone's own attention function."""
        for module in self.modules:
            del module.ptune_site
        self.backbone.set_attn_implementation(self.before)


def use_eager_attention(backbone: PreTrainedModel) -> None:
    """Use unfused attention, which exporters recognise."""
    before = compat.attention_of(backbone)
    if before.removeprefix(_PREFIX) == "sdpa":
        backbone.set_attn_implementation(before.replace("sdpa", "eager"))


def _with_prompt(kernel: str) -> Callable[..., Any]:
    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **kwargs: Any,
    ) -> Any:
        site: _Site | None = getattr(module, "ptune_site", None)
        current = None if site is None else site.passes.current
        if site is not None and current is not None:
            if current.captured_key_values is not None:
                row = current.row
                own = (key, value) if row is None else (row.apart(key), row.apart(value))
                current.captured_key_values.append(own)
            pair, added = site.key_values(current, module)
            if current.row is not None:
                kernel_of = partial(compat.attention_function(kernel, module), module, **kwargs)
                return _of_row(kernel_of, (query, key, value), pair, current.row), None
            if pair is not None:
                times, k = current.prompts_per_text, pair[0].shape[2]
                shares = times > 1 and not is_unusual(kwargs)
                window = kwargs.get("sliding_window")
                attention_mask = _mask(current, attention_mask, window, key, k, shares=shares)
                scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
                if shares:
                    found = _of_many(query, key, value, pair, added, attention_mask, scaling)
                    return found, None
                if times > 1:
                    pair = pair[0].repeat_interleave(times, 0), pair[1].repeat_interleave(times, 0)
                if added is not None and is_unusual(kwargs):  # scores are not just summed up
                    pair = pair[0] + added.keys(), pair[1]
                elif added is not None:
                    more = added.scores(query, scaling)
                    attention_mask = _with_scores(attention_mask, more, key.shape[2])
                key, value = _after(pair[0], key), _after(pair[1], value)
                if kwargs.get("position_bias") is not None:
                    kwargs["position_bias"] = nn.functional.pad(kwargs["position_bias"], (k, 0))
        function = compat.attention_function(kernel, module)
        return function(module, query, key, value, attention_mask, **kwargs)

    return attend


def _after(before: Tensor, states: Tensor) -> Tensor:
    """Keys or values with those of a prompt before them, ``[batch, heads, k + seq, head_dim]``."""
    return torch.cat([before.to(states).expand(states.shape[0], -1, -1, -1), states], dim=2)


def _with_scores(mask: Tensor | None, more: Tensor, own: int) -> Tensor:
    """A mask with what is added to the scores of the text.

    Args:
        mask: Numbers, ``[1 or rows, 1, queries, seq + own]``; ``None``: all see all.
        more: ``[rows, heads, queries, seq]``.
        own: How many keys follow those of the text.
    """
    more = nn.functional.pad(more, (0, own))
    return more if mask is None else mask + more


def _of_row(
    function: Callable[..., Any],
    states: tuple[Tensor, Tensor, Tensor],
    pair: KeyValue | None,
    row: OneRow,
) -> Tensor:
    """Attention of a row of texts, each to itself and to its prompt: ``[1, tokens, heads, dim]``.

    Args:
        function: The kernel.
        states: Query, key and value of the row, ``[1, heads, tokens, dim]``.
        pair: Keys and values of the prompts, ``[1 or batch, heads, k, dim]``.
        row: The texts.
    """
    parts = []
    for alike in row.alike:
        query, key, value = map(alike.of, states)
        if pair is not None:
            own = (t if len(t) == 1 else t[alike.texts] for t in pair)
            key, value = map(_after, own, (key, value))
        parts.append(function(query, key, value, alike.mask)[0])
    return row.join_alike(parts)


def _mask(
    current: Pass, given: Tensor | None, window: int | None, key: Tensor, k: int, *, shares: bool
) -> Tensor | None:
    """The mask of an attention with k more keys. Layers with the same one share it.

    Args:
        current: The pass.
        given: The backbone's mask, ``[1 or batch, 1, queries, seq]``; ``None``: all see all.
        window: Limit on the distance of keys; ``None``: no limit.
        key: Keys of the backbone itself, ``[batch, heads, seq, head_dim]``.
        k: Number of keys before them.
        shares: Whether it is for `_of_many`.
    """
    rows, seq, times = key.shape[0], key.shape[2], current.prompts_per_text
    known = current.mask
    if known is not None and known[0] is given and known[1:3] == (window, seq):
        return known[3]
    mask, visible = given, _visible(current, window)
    if mask is None and visible is not None:
        mask = key.new_zeros(rows, 1, seq if shares else 1, seq)
    if mask is not None and shares:
        mask = _joined(mask.expand(rows, -1, -1, -1), rows // times)
    elif times > 1 and visible is not None:  # each reader has a row of its own
        if visible.dim() == 2:
            visible = visible[:, None].expand(-1, times * seq, -1)
        visible = visible.unflatten(1, (times, -1)).flatten(0, 1)
    if mask is not None:
        mask = _with_keys(mask, k, visible)
        if (shares or current.added_keys) and mask.dtype == torch.bool:  # it is added to
            mask = torch.where(mask, key.new_zeros(()), torch.finfo(key.dtype).min)
    current.mask = given, window, seq, mask
    return mask


def _with_keys(mask: Tensor, k: int, key_mask: Tensor | None) -> Tensor:
    """Extend a mask ``[batch, 1, queries, seq]`` by k keys before those of the text.

    Every token attends to the keys in `key_mask`, ``[batch, k]``, or ``[batch, queries, k]`` if
    this differs between tokens; ``None``: to all of them.
    """
    if key_mask is None:
        return nn.functional.pad(mask, (k, 0), value=mask.dtype == torch.bool)
    visible = key_mask.reshape(key_mask.shape[0], 1, -1, k)  # [batch, 1, 1 or queries, k]
    if mask.dtype != torch.bool:
        visible = torch.where(visible, mask.new_zeros(()), torch.finfo(mask.dtype).min)
    shape = torch.broadcast_shapes(mask.shape[:-1], visible.shape[:-1])
    return torch.cat([visible.expand(*shape, -1), mask.expand(*shape, -1)], dim=-1)


def _visible(current: Pass, window: int | None) -> Tensor | None:
    """Which keys of the pass an attention may use; `window` is its limit on their distance."""
    if current.key_mask is None or current.key_distances is None or window is None:
        return current.key_mask
    return current.key_mask[:, None] & (current.key_distances < window)  # [batch, queries, k]


def _joined(t: Tensor, texts: int) -> Tensor:
    """``[texts * readers, heads, k, …]`` to ``[texts, heads, readers * k, …]``."""
    return t.unflatten(0, (texts, -1)).transpose(1, 2).flatten(2, 3)


def _of_many(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pair: KeyValue,
    added: AddedKeys | None,
    mask: Tensor | None,
    scaling: float,
) -> Tensor:
    """Attention of several readers to a text that they share, and of each to itself.

    Scores between two readers are not computed.

    Args:
        query: ``[texts * readers, heads, k, dim]``.
        key, value: ``[texts * readers, heads or fewer, k, dim]``.
        pair: Keys and values of the texts, ``[texts, heads or fewer, seq, dim]``.
        added: What readers add to the keys; ``None``: nothing.
        mask: ``[texts, 1, readers * k, seq + k]``, added to the scores; ``None``: no mask.
        scaling: Factor of the scores.

    Returns:
        ``[texts * readers, k, heads, dim]``.
    """
    (rows, heads, k, dim), (texts, _, seq, _) = query.shape, pair[0].shape
    key, value, text_key, text_value = (t.to(key).flatten(0, 1) for t in (key, value, *pair))
    # Adjacent query heads that share a key-value head are further queries of it.
    to_own = scaled_product(query.reshape(len(key), -1, dim), key.mT, scaling)
    joined = _joined(query, texts).reshape(len(text_key), -1, dim)
    to_text = scaled_product(joined, text_key.mT, scaling).view(texts, heads, -1, seq)
    if added is not None:
        to_text = to_text + _joined(added.scores(query, scaling), texts)
    to_own = _joined(to_own.view(rows, heads, k, k), texts)
    scores = torch.cat([to_text, to_own], dim=3).float()
    if mask is not None:
        scores += mask
    weights = scores.softmax(dim=-1).to(value.dtype)
    of_text = weights[..., :seq].reshape(len(text_key), -1, seq) @ text_value

    def apart(t: Tensor) -> Tensor:  # [texts * readers, heads, k, …]
        return t.unflatten(2, (-1, k)).transpose(1, 2).flatten(0, 1)

    of_own = apart(weights[..., seq:]).reshape(len(key), -1, k) @ value
    result = apart(of_text.view(texts, heads, -1, dim)) + of_own.view(rows, heads, k, dim)
    return result.transpose(1, 2).contiguous()


for _kernel, _masks in _KERNELS.items():
    compat.register_attention(_PREFIX + _kernel, _with_prompt(_kernel), _masks)
