"""Keys and values of a prompt, before those of the text, in every attention.

Transformers looks attention functions up by name (`AttentionInterface`). ptune's functions prepend
the keys and values of the current `Pass` and call the kernel that the backbone would use.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ptune import compat
from ptune.backbones.architectures import Architecture
from ptune.backbones.cpu import FEW_PASSES
from ptune.prompts.passes import KeyValue, Pass, Passes

_PREFIX = "ptune_"
_KERNELS = {"eager": "eager", FEW_PASSES: "eager", "sdpa": "sdpa"}  # kernel: format of its masks


@dataclass(frozen=True)
class _Site:
    """The attentions of the forward pass that a module computes, in order."""

    passes: Passes
    numbers: tuple[int, ...]

    def key_values(self, current: Pass, module: nn.Module) -> KeyValue | None:
        if not current.key_values:
            return None
        if len(self.numbers) == 1:
            return current.key_values[self.numbers[0]]
        call = current.calls.get(module, 0)  # gradient checkpointing calls it again, in order
        current.calls[module] = call + 1
        return current.key_values[self.numbers[call % len(self.numbers)]]


class Attentions:
    """Routes every attention of a backbone through ptune's functions.

    Only for architectures with `Architecture.attentions`.
    """

    def __init__(
        self, backbone: PreTrainedModel, architecture: Architecture, passes: Passes
    ) -> None:
        self.backbone = backbone
        self.before = compat.attention_of(backbone)
        kernel = self.before if self.before in _KERNELS else "sdpa"
        if kernel == "sdpa" and not compat.supports_sdpa(backbone):
            kernel = "eager"
        numbers: dict[str, list[int]] = {}
        for i, attention in enumerate(architecture.attentions):
            numbers.setdefault(attention.path, []).append(i)
        self.modules = {backbone.get_submodule(path): own for path, own in numbers.items()}
        backbone.set_attn_implementation(f"{_PREFIX}{kernel}")
        for module, own in self.modules.items():
            module.ptune_site = _Site(passes, tuple(own))

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
        times = 1
        site: _Site | None = getattr(module, "ptune_site", None)
        current = None if site is None else site.passes.current
        if site is not None and current is not None:
            if current.captured_key_values is not None:
                current.captured_key_values.append((key, value))
            if (pair := site.key_values(current, module)) is not None:
                times = current.prompts_per_text
                if times > 1:
                    query, key, value, attention_mask = _together(
                        times, query, key, value, attention_mask
                    )
                batch, k = key.shape[0], pair[0].shape[2]
                key_mask = _visible(current, kwargs.get("sliding_window"))
                keys, values = (t.to(key).expand(batch, -1, -1, -1) for t in pair)
                if key_mask is not None and attention_mask is None:
                    attention_mask = key.new_zeros(batch, 1, 1, key.shape[2])
                key = torch.cat([keys, key], dim=2)  # [batch, heads, k + seq, head_dim]
                value = torch.cat([values, value], dim=2)
                if attention_mask is not None:
                    attention_mask = _with_keys(attention_mask, k, key_mask)
                if kwargs.get("position_bias") is not None:
                    kwargs["position_bias"] = nn.functional.pad(kwargs["position_bias"], (k, 0))
        function = compat.attention_function(kernel, module)
        output, weights = function(module, query, key, value, attention_mask, **kwargs)
        if times > 1:
            # [texts, times * k, heads, head_dim] to [texts * times, k, heads, head_dim]
            return output.unflatten(1, (times, -1)).flatten(0, 1), None
        return output, weights

    return attend


def _with_keys(mask: Tensor, k: int, key_mask: Tensor | None) -> Tensor:
    """Extend a mask ``[batch, 1, queries, seq]`` by k keys before those of the text.

    Every token attends to the keys in `key_mask`, ``[batch, k]``, or ``[batch, queries, k]`` if
    this differs between tokens; ``None``: to all of them.
    """
    if key_mask is None:
        return nn.functional.pad(mask, (k, 0), value=mask.dtype == torch.bool)
    visible = key_mask.reshape(key_mask.shape[0], 1, -1, k)  # [batch, 1, 1 or queries, k]
    if mask.dtype != torch.bool:
        visible = torch.where(visible, 0.0, torch.finfo(mask.dtype).min).to(mask.dtype)
    shape = torch.broadcast_shapes(mask.shape[:-1], visible.shape[:-1])
    return torch.cat([visible.expand(*shape, -1), mask.expand(*shape, -1)], dim=-1)


def _visible(current: Pass, window: int | None) -> Tensor | None:
    """Which keys of the pass an attention may use; `window` is its limit on their distance."""
    if current.key_mask is None or current.key_distances is None or window is None:
        return current.key_mask
    return current.key_mask[:, None] & (current.key_distances < window)  # [batch, queries, k]


def _together(
    times: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Put the readers of a text into one row, so that they share its keys and values.

    Args:
        times: Readers per text.
        query, key, value: ``[texts * times, heads, k, head_dim]``.
        mask: ``[1 or texts * times, 1, k, k]``; ``None``: each reader attends to all of itself.

    Returns:
        ``[texts, heads, times * k, head_dim]`` each, and a mask ``[texts, 1, times * k,
        times * k]`` by which no reader attends to another one.
    """
    rows, k = query.shape[0], query.shape[2]
    if mask is None:
        mask = query.new_zeros(1, 1, k, k)
    hidden = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    own = mask.expand(rows, 1, k, k).unflatten(0, (-1, times)).transpose(1, 2)
    same = torch.eye(times, dtype=torch.bool, device=mask.device)[:, None, :, None]
    # [texts, 1, times, k, times, k]
    blocks = torch.where(same, own[:, :, :, :, None], torch.full_like(mask[:1, :1, :1, :1], hidden))
    query, key, value = (
        t.unflatten(0, (-1, times)).transpose(1, 2).flatten(2, 3) for t in (query, key, value)
    )
    return query, key, value, blocks.flatten(4, 5).flatten(2, 3)


for _kernel, _masks in _KERNELS.items():
    compat.register_attention(_PREFIX + _kernel, _with_prompt(_kernel), _masks)
