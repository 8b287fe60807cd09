"""What a frozen backbone computes with on a CPU that multiplies bfloat16 fast.

Three things are slow there as PyTorch and Transformers leave them, and none has to do with what
is computed. A linear layer brings its weights into the order that the processor's matrix unit
reads in every call: frozen weights are brought into it once. Eager attention passes over its
scores more often than it has to: it is written with fewer passes. The memory of activations goes
back to the system after every step and comes anew, page by page: the process keeps it.

The numbers are those of the layers as they came, bit for bit for the linear ones, to bfloat16's
rounding for attention. Everything else, and every other device or number format, is computed as
it was.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.masking_utils import AttentionMaskInterface, eager_mask

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of `mallopt`; see malloc.h of glibc


def keep_memory() -> None:
    """Have the process keep up to 2 GB that it frees, and take large tensors in large pages.

    Call it before the first tensor is made. Where the C library has no such setting, nothing
    happens.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # PyTorch reads it
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_MMAP_THRESHOLD, 2**25)  # the most that glibc takes
    mallopt(_TRIM_THRESHOLD, 2 * 10**9)


def forget_shapes() -> None:
    """Have oneDNN keep the code and buffers of some dozens of shapes, and not of a thousand.

    In training every length of a batch has its own, megabytes each, and few come twice in a row.
    For single texts it is better to keep them. Call it before the first tensor is made.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    os.environ.setdefault("LRU_CACHE_CAPACITY", "32")  # of ideep, PyTorch's way to oneDNN


def cpu_has(*features: str) -> bool:
    """Whether the processor has one of these, as PyTorch names them."""
    has = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(has.get(feature) for feature in features)


def is_traced() -> bool:
    """Whether operations are being written down for later, and numbers cannot be looked at."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


# Packed weights lie in memory beside the plain ones, one copy for each direction.
MOST_PACKED = 10**9  # parameters
FEW_PASSES = "few_passes"


class CpuKernels:
    """Hung on a backbone's frozen layers, and taken off again."""

    def __init__(self, backbone: PreTrainedModel) -> None:
        self.backbone = backbone
        self.attention = backbone.config._attn_implementation
        # Families that PyTorch's own attention serves add nothing of theirs to the scores.
        plain = backbone._supports_sdpa and backbone._can_set_attn_implementation()
        if self.attention == "eager" and plain:
            backbone.set_attn_implementation(FEW_PASSES)
        # Quantized layers have a type of their own, or their weights do.
        self.layers = [
            m for m in backbone.modules() if type(m) is nn.Linear and type(m.weight) is nn.Parameter
        ]
        if sum(layer.weight.numel() for layer in self.layers) > MOST_PACKED:
            self.layers = []
        for layer in self.layers:
            # As `torch.nn.utils.parametrize` does it; the parameters stay what they are.
            layer.__class__ = PackedLinear
            layer.packed = Packed()  # type: ignore[assignment]

    @staticmethod
    def pay(backbone: PreTrainedModel) -> bool:
        """Whether they are of use: bfloat16 on a CPU, and PyTorch was built with oneDNN."""
        return (
            backbone.device.type == "cpu"
            and backbone.dtype == torch.bfloat16
            and torch.backends.mkldnn.is_available()
            and hasattr(torch.ops.mkldnn, "_linear_pointwise")
            and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
        )

    def remove(self) -> None:
        """Leave the backbone as it was."""
        for layer in self.layers:
            del layer.packed
            layer.__class__ = nn.Linear
        if self.backbone.config._attn_implementation != self.attention:
            self.backbone.set_attn_implementation(self.attention)


class Packed:
    """A weight in oneDNN's own order, made when first needed and again when it has changed."""

    def __init__(self) -> None:
        self.known: tuple[int, int] | None = None
        self.weight: Tensor | None = None
        self.transposed: Tensor | None = None

    def of(self, weight: Tensor) -> Tensor:
        """The weight ``[out, in]``, packed."""
        self._forget_unless(weight)
        if self.weight is None:
            self.weight = _packed(weight.detach())
        return self.weight

    def transposed_of(self, weight: Tensor) -> Tensor:
        """``[in, out]``, packed: for the gradient of what goes in."""
        self._forget_unless(weight)
        if self.transposed is None:
            self.transposed = _packed(weight.detach().T.contiguous())
        return self.transposed

    def _forget_unless(self, weight: Tensor) -> None:
        now = (weight.data_ptr(), weight._version)
        if self.known != now:
            self.known, self.weight, self.transposed = now, None, None

    def __reduce__(self) -> tuple[type[Packed], tuple[()]]:
        return Packed, ()  # a copy of a layer packs for itself


def _packed(weight: Tensor) -> Tensor:
    rows = 1024  # of the input: a hint; other numbers are as fast
    return torch.ops.mkldnn._reorder_linear_weight(weight, rows)


class PackedLinear(nn.Linear):
    """A linear layer that keeps a packed copy of its weight while that is frozen."""

    packed: Packed

    def forward(self, input: Tensor) -> Tensor:  # noqa: D102
        weight = self.weight
        if (
            input.dtype != torch.bfloat16
            or weight.dtype != torch.bfloat16
            or weight.requires_grad
            or type(weight) is not nn.Parameter
            or weight.device.type != "cpu"
            or is_traced()
        ):
            return super().forward(input)
        if input.requires_grad and torch.is_grad_enabled():
            return _PackedProduct.apply(input, weight, self.bias, self.packed)
        return _product(input, weight, self.bias, self.packed)


def _product(input: Tensor, weight: Tensor, bias: Tensor | None, packed: Packed) -> Tensor:
    # What `torch.compile` makes of a frozen linear layer.
    return _times(input, packed.of(weight), bias)


def _times(input: Tensor, packed: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(input, packed, bias, "none", [], "none")


class _PackedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Any, packed: Packed) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.packed = packed
        return _product(input, weight, bias, packed)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors
        # Flat: what comes from transposed heads would be multiplied text by text.
        flat = grad.reshape(-1, grad.shape[-1])
        # With AMX this product gains nothing from packed weights.
        flat = (
            flat @ weight if cpu_has("amx_bf16") else _times(flat, ctx.packed.transposed_of(weight))
        )
        return flat.view(*grad.shape[:-1], -1), None, None, None


class _Attention(torch.autograd.Function):
    """Softmax attention in bfloat16, with few passes over its scores both ways.

    They are scaled as they are computed, and so are the gradients of queries and keys. Softmax
    goes through float32: PyTorch's own for bfloat16 takes up to three times as long where a row is
    no multiple of 32 numbers. The weights are kept in bfloat16 only, and scores not at all.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float
    ) -> tuple[Tensor, Tensor]:
        heads = query.shape[:2]  # [batch, heads]; one dimension from here on
        query, key, value = (t.reshape(-1, *t.shape[2:]) for t in (query, key, value))
        scores = _scaled(query, key.mT, scaling).float()
        if mask is not None:
            scores.unflatten(0, heads).add_(mask)
        weights = scores.softmax(dim=-1).to(query.dtype)
        ctx.save_for_backward(query, key, value, weights)
        ctx.heads, ctx.scaling = heads, scaling
        ctx.set_materialize_grads(False)
        return (weights @ value).unflatten(0, heads), weights.unflatten(0, heads)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_weights: Tensor | None) -> tuple[Any, ...]:
        query, key, value, weights = ctx.saved_tensors
        for_query, for_key, for_value, *_ = ctx.needs_input_grad
        if grad is None:  # only the weights are used
            grad = query.new_zeros(*query.shape[:2], value.shape[2])
        grad = grad.reshape(-1, *grad.shape[-2:])
        grads = grad @ value.mT
        if grad_weights is not None:
            grads += grad_weights.flatten(0, 1)
        grads = torch.ops.aten._softmax_backward_data(grads, weights, -1, weights.dtype)
        found = (
            _scaled(grads, key, ctx.scaling) if for_query else None,
            _scaled(grads.mT, query, ctx.scaling) if for_key else None,
            weights.mT @ grad if for_value else None,
        )
        return *(None if t is None else t.unflatten(0, ctx.heads) for t in found), None, None


def _scaled(one: Tensor, other: Tensor, scaling: float) -> Tensor:
    # A product that is scaled before it is rounded; with `beta=0` nothing is added to it.
    return torch.baddbmm(one.new_empty(()), one, other, beta=0, alpha=scaling)


def eager_attention(module: nn.Module) -> Callable[..., Any]:
    """The attention function of the module's own family, written out."""
    return sys.modules[type(module).__module__].eager_attention_forward


# What changes the scores otherwise than by scale and mask, in one family or another.
_UNUSUAL = ("softcap", "s_aux", "position_bias", "head_mask")


def few_passes(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Eager attention; Transformers looks it up by name.

    Args:
        module: The attention layer.
        query: ``[batch, heads, queries, dim]``.
        key, value: ``[batch, heads or fewer, seq, dim]``.
        attention_mask: ``[batch, 1, queries, seq]``, added to the scores; ``None``: nothing is.

    Returns:
        ``[batch, queries, heads, dim]`` and the weights ``[batch, heads, queries, seq]``.
    """
    unusual = any(kwargs.get(name) is not None for name in _UNUSUAL)
    learned = attention_mask is not None and attention_mask.requires_grad
    if query.dtype != torch.bfloat16 or unusual or learned or (dropout and module.training):
        return eager_attention(module)(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    result, weights = _Attention.apply(query, key, value, attention_mask, scaling)
    return result.transpose(1, 2).contiguous(), weights


AttentionInterface.register(FEW_PASSES, few_passes)
AttentionMaskInterface.register(FEW_PASSES, eager_mask)
