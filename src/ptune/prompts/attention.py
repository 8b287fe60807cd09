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
        site: _Site | None = getattr(module, "ptune_site", None)
        current = None if site is None else site.passes.current
        if site is not None and current is not None:
            if current.captured_key_values is not None:
                current.captured_key_values.append((key, value))
            if (pair := site.key_values(current, module)) is not None:
                batch, k = key.shape[0], pair[0].shape[2]
                keys, values = (t.to(key).expand(batch, -1, -1, -1) for t in pair)
                if current.key_mask is not None and attention_mask is None:
                    attention_mask = key.new_zeros(batch, 1, 1, key.shape[2])
                key = torch.cat([keys, key], dim=2)  # [batch, heads, k + seq, head_dim]
                value = torch.cat([values, value], dim=2)
                if attention_mask is not None:
                    attention_mask = _with_keys(attention_mask, k, current.key_mask)
                if kwargs.get("position_bias") is not None:
                    kwargs["position_bias"] = nn.functional.pad(kwargs["position_bias"], (k, 0))
        function = compat.attention_function(kernel, module)
        return function(module, query, key, value, attention_mask, **kwargs)

    return attend


def _with_keys(mask: Tensor, k: int, key_mask: Tensor | None) -> Tensor:
    """Extend a mask ``[batch, 1, queries, seq]`` by k keys before those of the text.

    Every token attends to the keys in `key_mask`, ``[batch, k]``; ``None``: to all of them.
    """
    if key_mask is None:
        return nn.functional.pad(mask, (k, 0), value=mask.dtype == torch.bool)
    visible = key_mask[:, None, None]  # [batch, 1, 1, k]
    if mask.dtype != torch.bool:
        visible = torch.where(visible, 0.0, torch.finfo(mask.dtype).min).to(mask.dtype)
    shape = torch.broadcast_shapes(mask.shape[:-1], visible.shape[:-1])
    return torch.cat([visible.expand(*shape, -1), mask.expand(*shape, -1)], dim=-1)


for _kernel, _masks in _KERNELS.items():
    compat.register_attention(_PREFIX + _kernel, _with_prompt(_kernel), _masks)
