"""A backbone has at most one host, which inspects it, attaches hooks and detaches them again."""

import pytest
import torch
from conftest import SENTENCES, build

from ptune import PromptBank, PromptModel, PtuneError
from ptune.backbones.architectures import Architecture
from ptune.peft import PromptEncoderConfig
from ptune.prompts import layout
from ptune.prompts.host import Host

IDS = torch.arange(10, 24).view(2, 7)


def test_architectures_are_equal_for_equal_configurations(kind):
    """Inspecting a backbone does not change it."""
    backbone = build(kind)
    before = {name: p.clone() for name, p in backbone.named_parameters()}
    config = backbone.config.to_dict()
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in backbone.modules()]
    assert Architecture.of(backbone) == Architecture.of(build(kind, seed=3))
    assert hash(Architecture.of(backbone))
    assert all(torch.equal(p, before[name]) for name, p in backbone.named_parameters())
    assert backbone.config.to_dict() == config
    after = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in backbone.modules()]
    assert after == hooks


@pytest.mark.parametrize(
    ("kind", "reads", "is_causal"),
    [("bert", "first", False), ("roberta", "first", False), ("gpt2", "last", True)],
)
def test_an_architecture_knows_what_the_head_reads(kind, reads, is_causal):
    own = Architecture.of(build(kind))
    assert own.last_layer_end.reads == reads
    assert own.is_causal is is_causal
    assert len(own.attentions) == len(own.layers) == own.num_layers == 2
    assert own.first_position == (2 if kind == "roberta" else 0)
    assert own.max_positions == 64


def test_a_backbone_has_one_host(kind):
    backbone = build(kind)
    model = PromptModel(backbone)
    for second in (Host, PromptModel, lambda b: PromptBank(b, tokenizer=object())):
        with pytest.raises(PtuneError, match=r"already carries a prompt.*add_adapter.*unload"):
            second(backbone)
    assert Host(model.unload()).backbone is backbone


def test_a_model_cannot_be_used_after_unload(kind):
    model = PromptModel(build(kind))
    model.unload()
    with pytest.raises(PtuneError, match=r"was given back \(unload\)"):
        model(IDS)


@torch.no_grad()
def test_unload_of_a_bank_restores_the_backbone(kind, tokenizer):
    backbone = build(kind)
    backbone.config.pad_token_id = tokenizer.pad_token_id
    inputs = tokenizer(SENTENCES[:2], padding=True, return_tensors="pt")
    before = backbone(**inputs).logits
    bank = PromptBank(backbone, tokenizer=tokenizer)
    assert bank.unload() is backbone
    assert torch.equal(backbone(**inputs).logits, before)
    assert all(p.requires_grad for p in backbone.parameters())


@torch.no_grad()
@pytest.mark.parametrize("depth", ["input", "deep"])
@pytest.mark.parametrize("pooling", ["architecture", "mean"])
def test_an_encoder_computes_no_padding(tokenizer, depth, pooling):
    backbone = build("roberta")
    model = PromptModel(backbone, PromptEncoderConfig(depth=depth, pooling=pooling)).eval()
    texts = [SENTENCES[0], "rain", " ".join(SENTENCES[:3])]
    model(**tokenizer(texts, padding=True, return_tensors="pt"))  # tries both ways
    rows = []
    layer = backbone.roberta.encoder.layer[0].intermediate.dense
    layer.register_forward_hook(lambda _, args, __: rows.append(args[0].shape[:-1].numel()))
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    together = model(**batch).logits
    k = model.prompt_config.num_virtual_tokens if depth == "input" else 0
    assert rows == [int(batch["attention_mask"].sum()) + 3 * k]
    alone = torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in texts])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    whole = model(**batch, output_hidden_states=True)  # as Transformers returns them
    assert whole.hidden_states[-1].shape[:2] == (3, batch["input_ids"].shape[1] + k)
    torch.testing.assert_close(whole.logits, together, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_an_attention_that_depends_on_the_padding_keeps_it(monkeypatch):
    """Whether a backbone can do without is tried out."""
    host = Host(build("bert"))
    usual = layout.Alike.of
    monkeypatch.setattr(layout.Alike, "of", lambda self, t: usual(self, t).flip(0))
    assert host.architecture.takes_one_row
    assert not host.takes_one_row
