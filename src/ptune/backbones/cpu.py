"""Faster kernels for a frozen backbone on a CPU that multiplies bfloat16 fast.

PyTorch and Transformers lose time there in three places:

- A linear layer reorders its weight for the processor's matrix unit in every call. Here, frozen
  weights are reordered once.
- Eager attention passes over its scores more often than necessary. Here, it takes fewer passes.
- The memory of activations is returned to the system after every step and comes back page by
  page. Here, the process keeps it.

Linear layers give bit-identical results; attention is equal up to bfloat16 rounding. Other layers,
devices and number formats are not affected.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ptune import compat

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of `mallopt`; see malloc.h of glibc


def keep_memory() -> None:
    """Keep up to 2 GB of freed memory in the process, and put large tensors in large pages.

    Call this before the first tensor is created. It does nothing if the C library does not support
    it.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # PyTorch reads it
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_MMAP_THRESHOLD, 2**25)  # the largest value that glibc accepts
    mallopt(_TRIM_THRESHOLD, 2 * 10**9)


def forget_shapes() -> None:
    """Make oneDNN cache code and buffers for a few dozen shapes instead of a thousand.

    In training, every batch length has its own code and buffers of several megabytes, and few
    lengths repeat soon. For single texts, the default is better. Call this before the first tensor
    is created.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    os.environ.setdefault("LRU_CACHE_CAPACITY", "32")  # of ideep, PyTorch's interface to oneDNN


def cpu_has(*features: str) -> bool:
    """True if the processor has one of these features, which are named as in PyTorch."""
    has = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(has.get(feature) for feature in features)


def is_traced() -> bool:
    """True if this thread's operations are being traced, so that values cannot be inspected."""
    if torch.compiler.is_dynamo_compiling() or torch.jit.is_tracing():
        return True
    # `is_compiling` is true in every thread while one of them exports.
    return torch.compiler.is_compiling() and compat.has_dispatch_mode()


# Packed weights are kept in addition to the plain ones, one copy per direction.
MOST_PACKED = 10**9  # parameters
FEW_PASSES = "few_passes"


class CpuKernels:
    """Replaces the kernels of a backbone's frozen layers until `remove`."""

    def __init__(self, backbone: PreTrainedModel) -> None:
        self.backbone = backbone
        self.attention = compat.attention_of(backbone)
        # Architectures that support PyTorch's own attention add nothing to the scores.
        plain = compat.supports_sdpa(backbone) and compat.has_attention_interface(backbone)
        if self.attention == "eager" and plain:
            backbone.set_attn_implementation(FEW_PASSES)
        # Quantised layers have their own type, or their weights do.
        self.layers = [
            m for m in backbone.modules() if type(m) is nn.Linear and type(m.weight) is nn.Parameter
        ]
        if sum(layer.weight.numel() for layer in self.layers) > MOST_PACKED:
            self.layers = []
        for layer in self.layers:
            # `torch.nn.utils.parametrize` does the same. The parameters are not changed.
            layer.__class__ = PackedLinear
            layer.packed = Packed()  # type: ignore[assignment]

    @staticmethod
    def are_faster(backbone: PreTrainedModel) -> bool:
        """True for bfloat16 on a CPU, if PyTorch was built with oneDNN."""
        return (
            backbone.device.type == "cpu"
            and backbone.dtype == torch.bfloat16
            and compat.has_packed_linear()
        )

    def remove(self) -> None:
        """Restore the layers' own kernels."""
        for layer in self.layers:
            del layer.packed
            layer.__class__ = nn.Linear
        if compat.attention_of(self.backbone) != self.attention:
            self.backbone.set_attn_implementation(self.attention)


class Packed:
    """A weight in oneDNN's own layout, packed on first use and again after it has changed.

    Several threads can use it at once, because each attribute is replaced as a whole.
    """

    def __init__(self) -> None:
        self.plain: tuple[Any, Tensor] | None = None
        self.transposed: tuple[Any, Tensor] | None = None

    def of(self, weight: Tensor) -> Tensor:
        """The weight ``[out, in]``, packed."""
        known, now = self.plain, _version(weight)
        if known is None or known[0] != now:
            self.plain = known = (now, _packed(weight.detach()))
        return known[1]

    def transposed_of(self, weight: Tensor) -> Tensor:
        """The transposed weight ``[in, out]``, packed, for the gradient of the input."""
        known, now = self.transposed, _version(weight)
        if known is None or known[0] != now:
            self.transposed = known = (now, _packed(weight.detach().T.contiguous()))
        return known[1]

    def __reduce__(self) -> tuple[type[Packed], tuple[()]]:
        return Packed, ()  # a copy of a layer packs its own weight


def _version(weight: Tensor) -> tuple[Any, ...]:
    return weight.data_ptr(), compat.version_of(weight)


def _packed(weight: Tensor) -> Tensor:
    return compat.pack_linear(weight, rows=1024)  # a hint; other numbers are equally fast


class PackedLinear(nn.Linear):
    """A linear layer that keeps a packed copy of its weight while the weight is frozen."""

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
    # What `torch.compile` generates for a frozen linear layer.
    return compat.packed_linear(input, packed.of(weight), bias)


class _PackedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Any, packed: Packed) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.packed = packed
        return _product(input, weight, bias, packed)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors
        # Flatten, because gradients of transposed heads would be multiplied text by text.
        flat = grad.reshape(-1, grad.shape[-1])
        if cpu_has("amx_bf16"):  # packed weights are no faster here
            flat = flat @ weight
        else:
            flat = compat.packed_linear(flat, ctx.packed.transposed_of(weight), None)
        return flat.view(*grad.shape[:-1], -1), None, None, None


class _Attention(torch.autograd.Function):
    """Softmax attention in bfloat16 with few passes over its scores, forward and backward.

    Scores are scaled while they are computed, and so are the gradients of queries and keys. Softmax
    uses float32, because PyTorch's bfloat16 softmax takes up to three times as long if the row
    length is not a multiple of 32. Attention weights are kept in bfloat16; scores are not kept.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float
    ) -> tuple[Tensor, Tensor]:
        result, weights, saved = _attend(query, key, value, mask, scaling)
        ctx.save_for_backward(*saved)
        ctx.shape, ctx.scaling = query.shape[:3], scaling
        ctx.mask_shape = None if mask is None else mask.shape
        ctx.set_materialize_grads(False)
        return result, weights

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_weights: Tensor | None) -> tuple[Any, ...]:
        query, key, value, weights = ctx.saved_tensors
        for_query, for_key, for_value, for_mask, _ = ctx.needs_input_grad
        if grad is None:  # only the weights are used
            grad = query.new_zeros(*query.shape[:2], value.shape[2])
        grad = grad.reshape(-1, query.shape[1], value.shape[2])
        grads = grad @ value.mT
        if grad_weights is not None:
            grads += grad_weights.reshape(grads.shape)
        grads = compat.softmax_backward(grads, weights)
        found = (
            scaled_product(grads, key, ctx.scaling) if for_query else None,
            scaled_product(grads.mT, query, ctx.scaling) if for_key else None,
            weights.mT @ grad if for_value else None,
        )
        batch, heads, _ = ctx.shape
        key_heads = query.shape[0] // batch
        scores = grads.view(*ctx.shape, -1).sum_to_size(ctx.mask_shape) if for_mask else None
        return (
            *(
                None if t is None else t.view(batch, n, -1, t.shape[2])
                for t, n in zip(found, (heads, key_heads, key_heads), strict=True)
            ),
            scores,
            None,
        )


def _attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """The result and weights of an attention, and what its gradient needs."""
    shape = query.shape[:3]  # [batch, heads, queries]
    groups = shape[1] // key.shape[1]
    # Adjacent query heads that share a key-value head are further queries of it.
    query = query.reshape(-1, groups * shape[2], query.shape[3])
    key, value = (t.flatten(0, 1) for t in (key, value))
    scores = scaled_product(query, key.mT, scaling).float()
    if mask is not None:
        scores.view(*shape, key.shape[1]).add_(mask)
    weights = scores.softmax(dim=-1).to(query.dtype)
    result = (weights @ value).view(*shape, value.shape[2])
    return result, weights.view(*shape, key.shape[1]), (query, key, value, weights)


def scaled_product(one: Tensor, other: Tensor, scaling: float) -> Tensor:
    """``scaling * one @ other`` of batches of matrices, which is scaled before it is rounded."""
    # With `beta=0` nothing is added.
    return torch.baddbmm(one.new_empty(()), one, other, beta=0, alpha=scaling)


# Arguments by which some architectures change the scores beyond scale and mask.
_UNUSUAL = ("softcap", "s_aux", "position_bias", "head_mask")


def is_unusual(arguments: Mapping[str, Any]) -> bool:
    """Whether the arguments of an attention change its scores beyond scale and mask."""
    return any(arguments.get(name) is not None for name in _UNUSUAL)


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
    """Eager attention with fewer passes, which Transformers looks up by name.

    Args:
        module: The attention layer.
        query: ``[batch, heads, queries, dim]``.
        key, value: ``[batch, heads or fewer, seq, dim]``.
        attention_mask: ``[batch, 1 or heads, queries, seq]``, added to the scores; ``None``: no
            mask.

    Returns:
        ``[batch, queries, heads, dim]`` and the weights ``[batch, heads, queries, seq]``.
    """
    if query.dtype != torch.bfloat16 or is_unusual(kwargs) or (dropout and module.training):
        return compat.eager_attention(module)(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    # Calling it through autograd takes a twentieth of a short text's time.
    attend = _Attention.apply if torch.is_grad_enabled() else _attend
    result, weights, *_ = attend(query, key, value, attention_mask, scaling)
    return result.transpose(1, 2).contiguous(), weights


compat.register_attention(FEW_PASSES, few_passes, "eager")
