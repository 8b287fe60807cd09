"""Kernels of a frozen bfloat16 backbone on a CPU."""

from __future__ import annotations

import copy
import ctypes
import os
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForSequenceClassification
from transformers.models.bert.modeling_bert import eager_attention_forward

from ptune import PromptModel
from ptune.backbones import cpu as kernels
from ptune.backbones.cpu import (
    CpuKernels,
    Packed,
    PackedLinear,
    few_passes,
    forget_shapes,
    keep_memory,
)
from ptune.backbones.loading import load_backbone
from ptune.peft import PromptEncoderConfig

BF16 = torch.bfloat16
here = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="no bfloat16 in oneDNN here"
)


def packed(layer: nn.Linear) -> PackedLinear:
    """The same layer, packed."""
    twin = copy.deepcopy(layer)
    twin.__class__ = PackedLinear
    twin.packed = Packed()  # type: ignore[assignment]
    assert isinstance(twin, PackedLinear)
    return twin


def frozen(*sizes: int, bias: bool = True) -> nn.Linear:
    """A frozen linear layer in bfloat16."""
    torch.manual_seed(0)
    return nn.Linear(*sizes, bias=bias).to(BF16).requires_grad_(False)


@here
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 48), (7, 48), (3, 5, 48)])
def test_a_packed_layer_equals_the_original_layer(shape: tuple[int, ...], bias: bool) -> None:
    """Both the output and the gradient of the input, for any shape."""
    layer = frozen(48, 80, bias=bias)
    ours = packed(layer)
    results = []
    for each in (layer, ours):
        torch.manual_seed(1)
        x = torch.randn(shape, dtype=BF16).requires_grad_()
        out = each(x)
        out.backward(torch.randn(out.shape, dtype=BF16))
        results.append((out.detach(), x.grad, each(x.detach())))
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=2**-7, atol=2**-7)
    assert ours.packed.plain is not None


@here
@pytest.mark.parametrize("amx", [True, False])
def test_gradients_from_transposed_heads(monkeypatch: Any, amx: bool) -> None:
    """These gradients are not contiguous. With and without weights packed for them."""
    monkeypatch.setattr(kernels, "cpu_has", lambda *features: amx)
    layer = frozen(32, 32)
    grads = []
    for each in (layer, packed(layer)):
        torch.manual_seed(1)
        x = torch.randn(4, 6, 32, dtype=BF16).requires_grad_()
        out = each(x).view(4, 6, 2, 16).transpose(1, 2)
        out.backward(torch.randn(4, 2, 6, 16, dtype=BF16))
        grads.append(x.grad)
    torch.testing.assert_close(grads[1], grads[0], rtol=2**-7, atol=2**-7)


@here
def test_a_changed_weight_is_packed_again() -> None:
    """Whether it changes in place or is replaced by another tensor."""
    layer = packed(frozen(16, 16))
    x = torch.randn(2, 16, dtype=BF16)
    first = layer(x)
    assert layer.packed.transposed is None  # no gradient was computed yet
    layer.weight.mul_(2)
    torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
    layer.weight.data = torch.zeros(16, 16, dtype=BF16)
    assert torch.equal(layer(x), layer.bias.expand(2, -1))
    assert not torch.equal(layer(x), first)


@here
def test_layers_that_train_or_are_not_bfloat16_are_not_packed() -> None:
    trained = packed(frozen(16, 16)).requires_grad_(True)
    trained(torch.randn(2, 16, dtype=BF16)).sum().backward()
    assert trained.weight.grad is not None
    assert trained.packed.plain is None
    wide = packed(frozen(16, 16)).float()
    assert wide(torch.randn(2, 16)).dtype == torch.float32
    assert wide.packed.plain is None


@here
def test_a_copy_of_a_packed_layer_packs_its_own_weight() -> None:
    """Packed weights cannot be copied."""
    layer = packed(frozen(16, 16))
    x = torch.randn(2, 16, dtype=BF16)
    layer(x)
    twin = copy.deepcopy(layer)
    assert twin.packed.plain is None
    assert torch.equal(twin(x), layer(x))


class _Attention(nn.Module):
    num_key_value_groups = 1


def mask_of(texts: int) -> Tensor:
    mask = torch.zeros(texts, 1, 5, 5, dtype=BF16)
    mask[0, ..., 3:] = torch.finfo(BF16).min
    return mask


@pytest.mark.parametrize("mask", [None, mask_of(3), mask_of(1)], ids=["none", "each", "one"])
@pytest.mark.parametrize("used", ["output", "weights", "output and weights"])
def test_attention_with_fewer_passes(mask: Tensor | None, used: str) -> None:
    """It equals Transformers' eager attention up to bfloat16 rounding, including gradients."""
    module = _Attention().eval()
    found = []
    for attend in (eager_attention_forward, few_passes):
        torch.manual_seed(0)
        q, k, v = (torch.randn(3, 4, 5, 8, dtype=BF16).requires_grad_() for _ in range(3))
        out, weights = attend(module, q, k, v, mask, scaling=8**-0.5)
        loss = torch.zeros(())
        for name, tensor in (("output", out), ("weights", weights)):
            if name in used:
                loss = loss + (tensor * torch.randn(tensor.shape)).sum()
        loss.backward()
        grads = [torch.zeros_like(t) if t.grad is None else t.grad for t in (q, k, v)]
        found.append((out.detach(), weights.detach(), *grads))
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=0.03, atol=0.03)
    if mask is not None:
        assert not found[1][1][0, ..., 3:].any()


@pytest.mark.parametrize("trains", ["q", "k", "v", "mask"])
def test_attention_with_one_trainable_input(trains: str) -> None:
    """Its gradient equals that of eager attention, and no other input has one."""
    found = []
    for attend in (eager_attention_forward, few_passes):
        torch.manual_seed(0)
        given = {name: torch.randn(3, 4, 5, 8, dtype=BF16) for name in "qkv"}
        given["mask"] = torch.randn(1, 4, 5, 5, dtype=BF16)  # for example a learned bias
        given[trains].requires_grad_()
        out, _ = attend(_Attention().eval(), *given.values(), scaling=8**-0.5)
        out.backward(torch.ones_like(out))
        found.append(given[trains].grad)
        assert all(t.grad is None for name, t in given.items() if name != trains)
    torch.testing.assert_close(*found, rtol=0.03, atol=0.03)


def test_attention_with_grouped_keys() -> None:
    """Each key-value head serves a group of adjacent query heads."""
    torch.manual_seed(0)
    q = torch.randn(2, 4, 5, 8, dtype=BF16)
    k, v = (torch.randn(2, 2, 5, 8, dtype=BF16) for _ in range(2))
    got, _ = few_passes(_Attention().eval(), q, k, v, None)
    k, v = (t.repeat_interleave(2, dim=1) for t in (k, v))
    expected, _ = few_passes(_Attention().eval(), q, k, v, None)
    assert torch.equal(got, expected)


@here
@pytest.mark.parametrize("depth", ["input", "deep"])
def test_predictions_do_not_depend_on_the_kernels(
    depth: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits and the prompt's gradient, on a real backbone, up to bfloat16 rounding."""
    found = []
    for used in (True, False):
        if not used:
            monkeypatch.setattr(CpuKernels, "are_faster", staticmethod(lambda backbone: False))
        torch.manual_seed(0)
        config = PromptEncoderConfig(depth=depth, num_virtual_tokens=4)  # type: ignore[arg-type]
        model = PromptModel(load_backbone("minilm", dtype=BF16), config)
        assert any(isinstance(m, PackedLinear) for m in model.modules()) == used
        ids = torch.arange(1000, 1012).view(2, 6)
        mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
        output = model(input_ids=ids, attention_mask=mask, labels=torch.tensor([0, 1]))
        output["loss"].backward()
        grad = next(iter(model.prompt_encoder.parameters())).grad
        assert grad is not None
        found.append((output["logits"].detach(), grad / grad.norm()))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0.03, atol=0.03)
    assert (found[0][1] * found[1][1]).sum() > 0.98  # the gradients' cosine


@here
def test_unload_removes_the_kernels() -> None:
    """The types of layers and the attention function are restored."""
    backbone = load_backbone("minilm", dtype=BF16)
    before = [type(m) for m in backbone.modules()], backbone.config._attn_implementation
    model = PromptModel(backbone, PromptEncoderConfig(num_virtual_tokens=4))
    assert backbone.config._attn_implementation != before[1]
    model.unload()
    assert ([type(m) for m in backbone.modules()], backbone.config._attn_implementation) == before


@here
def test_a_large_backbone_is_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed weights are copies."""
    monkeypatch.setattr(kernels, "MOST_PACKED", 1000)
    model = PromptModel(
        load_backbone("minilm", dtype=BF16), PromptEncoderConfig(num_virtual_tokens=4)
    )
    assert not any(isinstance(m, PackedLinear) for m in model.modules())


def test_float32_backbones_are_not_packed() -> None:
    model = PromptModel(
        load_backbone("minilm", dtype="float32"), PromptEncoderConfig(num_virtual_tokens=4)
    )
    assert not any(isinstance(m, PackedLinear) for m in model.modules())


@here
def test_a_causal_backbone_with_grouped_keys_trains() -> None:
    """The logits of a text do not depend on its batch."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=48, pad_token_id=0,
    )  # fmt: skip
    backbone = LlamaForSequenceClassification._from_config(
        config, attn_implementation="eager", dtype=BF16
    )
    ids = torch.randint(1, 64, (3, 7))
    for depth in ("input", "deep"):
        model = PromptModel(
            backbone,
            PromptEncoderConfig(depth=depth, num_virtual_tokens=3, placement="prefix"),  # type: ignore[arg-type]
        )
        out = model(input_ids=ids, labels=torch.tensor([0, 1, 1]))
        out["loss"].backward()
        alone = torch.cat([model(input_ids=row[None])["logits"] for row in ids])
        torch.testing.assert_close(out["logits"], alone, rtol=0.03, atol=0.03)
        backbone = model.unload()  # type: ignore[assignment]


def test_memory_settings_respect_the_user_and_the_c_library(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing happens if the C library lacks the function; the user's settings are kept."""
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    keep_memory()
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "0"

    monkeypatch.setenv("LRU_CACHE_CAPACITY", "7")
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "")  # so that monkeypatch restores it
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY")
    forget_shapes()
    assert os.environ["LRU_CACHE_CAPACITY"] == "7"
    assert int(os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"]) < 1024

    def none(name: object) -> object:
        return object()

    monkeypatch.setattr(ctypes, "CDLL", none)
    keep_memory()
