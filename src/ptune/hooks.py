"""What is hung on a frozen backbone, and taken off again.

Forward hooks only: no class or method of the backbone is replaced.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import ModelOutput

from ptune.backbone import weight_of
from ptune.errors import PtuneError


class ExtraRows:
    """Extra rows of an embedding table of V rows: id V + i reads `rows[i]`.

    The id one past the last extra row reads the frozen table's own row `fallback`. It stands for a
    pad token that belongs to a text, so that the backbone does not take it for padding.
    """

    def __init__(self, backbone: PreTrainedModel) -> None:
        self.weight = weight = weight_of(backbone.get_input_embeddings())  # [V, token_dim]
        self.size = weight.shape[0]  # V
        self.rows: Tensor | None = None  # [extra, token_dim] while the backbone runs
        self.fallback = 0
        self._ids: Tensor | None = None
        # Of the last forward pass: which extra row stands where, below zero where none does.
        self.index: Tensor | None = None  # [batch, seq]
        # Encoder and decoder may have a module each for one table.
        tables = [m for m in backbone.modules() if getattr(m, "weight", None) is weight]
        self._hooks = [
            *(table.register_forward_pre_hook(self._before) for table in tables),
            *(table.register_forward_hook(self._after) for table in tables),
        ]

    def remove(self) -> None:
        """Take the rows off the table again."""
        for hook in self._hooks:
            hook.remove()

    def _before(self, table: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if self.rows is None:
            return None
        self._ids, *rest = args
        return torch.where(self._ids < self.size, self._ids, self.fallback), *rest

    def _after(self, table: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        if self.rows is None or self._ids is None:
            return None
        if not isinstance(output, Tensor):
            raise PtuneError(
                f"The token embedding {type(table).__name__} gives a {type(output).__name__} and "
                "not a tensor, so that this backbone cannot be p-tuned. Choose another one."
            )
        self.index = index = self._ids - self.size
        self._ids = None
        if not len(self.rows):
            return None
        extra = (index >= 0) & (index < self.rows.shape[0])
        rows = F.embedding(index.clamp(0, self.rows.shape[0] - 1), self.rows)
        return torch.where(extra[..., None], rows.to(output.dtype), output)  # [batch, seq, dim]


class MeanOverText:
    """Lets the head read the mean of the text's last hidden states, whichever one it reads.

    That is what sentence encoders were trained for. The mean stands at every position, and in
    place of the base model's own pooled vector.
    """

    def __init__(self, base_model: nn.Module) -> None:
        self.mask: Tensor | None = None  # [batch, seq], true at the text's own tokens
        self._hook = base_model.register_forward_hook(self._after)

    def remove(self) -> None:
        """Let the head read what it used to."""
        self._hook.remove()

    def _after(self, base_model: nn.Module, args: Any, output: ModelOutput) -> ModelOutput | None:
        if self.mask is None:
            return None
        states = output.last_hidden_state  # [batch, seq, hidden]
        weights = self.mask[..., None].to(states.dtype)
        self.mask = None
        mean = (states * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1)  # [batch, hidden]
        output.last_hidden_state = mean[:, None].expand_as(states)
        if "pooler_output" in output:
            output.pooler_output = mean
        return output


class WithoutDropout:
    """Checkpointing for a layer that is frozen: it has to be called in training, but not train.

    Transformers checkpoints a layer only where `layer.training` is set, and that flag would turn
    the layer's own dropout on.
    """

    def __init__(self, checkpoint: Callable[..., Any], *, drops_out: bool) -> None:
        self.checkpoint = checkpoint
        self.drops_out = drops_out

    def __call__(self, function: partial[Any], *args: Any) -> Any:
        """Checkpoint `function`, the layer's forward pass bound to the layer."""
        layer = function.args[0]

        def run(*inputs: Any) -> Any:
            layer.training = self.drops_out
            try:
                return function(*inputs)
            finally:
                layer.training = True

        return self.checkpoint(run, *args)


def checkpointed_layers(backbone: PreTrainedModel) -> list[Any]:
    """The layers that gradient checkpointing is switched on for."""
    layers = [m for m in backbone.modules() if isinstance(m, GradientCheckpointingLayer)]
    return [layer for layer in layers if layer.gradient_checkpointing]


def in_own_dtype(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Forward pre-hook: a float32 layer of the head behind a backbone in half precision."""
    dtype = next(module.parameters(recurse=False)).dtype
    return tuple(
        a.to(dtype) if isinstance(a, Tensor) and a.is_floating_point() else a for a in args
    )
