"""Compiling, pickling, and several adapters on one backbone."""

import copy
import pickle

import pytest
import torch
from conftest import build, randomised, same_backbone

from ptune import PromptModel, PtuneError
from ptune.peft import PromptEncoderConfig

IDS = torch.arange(10, 24).view(2, 7)
MASK = torch.tensor([[1] * 7, [0, 0, 1, 1, 1, 1, 1]])


def config(**options):
    return PromptEncoderConfig(**{"num_virtual_tokens": 5, "encoder_hidden_size": 16, **options})


@pytest.fixture
def model(kind):
    torch.manual_seed(1)
    return randomised(PromptModel(build(kind), config()), 2)


@pytest.mark.parametrize("placement", ["prefix", "after_first"])
@pytest.mark.parametrize("pooling", ["architecture", "mean", "prompt"])
def test_it_compiles_as_one_graph(kind, placement, pooling):
    if pooling == "prompt" and kind == "gpt2":
        pytest.skip("a prompt before the text cannot attend to it in a causal backbone")
    torch._dynamo.reset()
    model = randomised(PromptModel(build(kind), config(placement=placement, pooling=pooling)), 2)
    labels = torch.tensor([0, 1])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    output = compiled(IDS, attention_mask=MASK, labels=labels)
    expected = model(IDS, attention_mask=MASK, labels=labels)
    torch.testing.assert_close(output.logits, expected.logits)
    output.loss.backward()
    got = model.prompt_encoder.embedding.weight.grad.clone()
    model.zero_grad()
    expected.loss.backward()
    torch.testing.assert_close(got, model.prompt_encoder.embedding.weight.grad)


def test_a_configuration_survives_pickling():
    one = config(placement="after_first", pooling="mean")
    assert pickle.loads(pickle.dumps(one)) == one
    assert copy.deepcopy(one) == one


# Several adapters on one backbone.


@torch.no_grad()
def test_switching_adapters_does_not_change_them(kind, model):
    first = model(IDS, attention_mask=MASK).logits
    model.add_adapter("second", config(num_virtual_tokens=3, placement="after_first"))
    assert torch.equal(model(IDS, attention_mask=MASK).logits, first)
    model.set_adapter("second")
    randomised(model, 9)
    second = model(IDS, attention_mask=MASK).logits
    assert not torch.allclose(second, first)
    model.set_adapter("default")
    assert torch.equal(model(IDS, attention_mask=MASK).logits, first)
    model.set_adapter("second")
    assert torch.equal(model(IDS, attention_mask=MASK).logits, second)


@torch.no_grad()
@pytest.mark.parametrize("active", ["default", "second"])
def test_a_state_dictionary_holds_the_heads_of_all_adapters(kind, model, active):
    model.add_adapter("second", config(num_virtual_tokens=3))
    expected = {}
    for name in ("default", "second"):
        model.set_adapter(name)
        expected[name] = randomised(model, 3)(IDS).logits
    model.set_adapter(active)
    other = PromptModel(build(kind), config()).eval()
    other.add_adapter("second", config(num_virtual_tokens=3))
    other.load_state_dict(model.state_dict())
    for name, logits in expected.items():
        other.set_adapter(name)
        assert torch.equal(other(IDS).logits, logits)
    alone = model.state_dict()
    alone.pop(next(name for name in alone if name.startswith("heads.")))
    with pytest.raises(RuntimeError, match=r"Missing key.*heads\."):
        other.load_state_dict(alone)


@torch.no_grad()
def test_a_second_adapter_can_have_other_labels(kind, model, tmp_path):
    other = build(kind, num_labels=3)
    other.config.id2label = {0: "low", 1: "middle", 2: "high"}
    saved = randomised(PromptModel(other, config()), 5)
    saved.save_pretrained(tmp_path)
    expected = saved(IDS, attention_mask=MASK).logits
    before = model(IDS, attention_mask=MASK).logits
    model.load_adapter(tmp_path, "three")
    assert torch.equal(model(IDS, attention_mask=MASK).logits, before)
    model.set_adapter("three")
    assert torch.equal(model(IDS, attention_mask=MASK).logits, expected)
    assert model.config.id2label[2] == "high"
    assert model(IDS, attention_mask=MASK, labels=torch.tensor([2, 0])).loss.isfinite()
    model.set_adapter("default")
    assert model.config.num_labels == 2
    assert torch.equal(model(IDS, attention_mask=MASK).logits, before)


def test_only_the_active_adapter_trains(model):
    model.add_adapter("second", config())
    model.set_adapter("second")
    model.train()
    model(IDS, labels=torch.tensor([0, 1])).loss.backward()
    for name, p in model.prompt_encoders.named_parameters():
        assert (p.grad is not None) is name.startswith("second."), name


@torch.no_grad()
def test_adapters_can_be_renamed_and_deleted(model):
    before = model(IDS).logits
    model.rename_adapter("default", "mail")
    assert model.active_adapter == "mail"
    assert torch.equal(model(IDS).logits, before)
    model.add_adapter("other", config())
    model.delete_adapter("other")
    assert list(model.adapters) == ["mail"]
    assert not any("other" in name for name, _ in model.named_parameters())


@torch.no_grad()
def test_selected_adapters_are_saved_in_the_folders_that_peft_uses(kind, model, tmp_path):
    model.add_adapter("other", config(num_virtual_tokens=3))
    model.save_pretrained(tmp_path, selected_adapters=["default", "other"])
    assert model.active_adapter == "default"
    logits = {"default": model(IDS).logits}
    model.set_adapter("other")
    logits["other"] = model(IDS).logits
    for name, folder in (("default", tmp_path), ("other", tmp_path / "other")):
        assert torch.equal(
            PromptModel.from_pretrained(build(kind), folder)(IDS).logits, logits[name]
        )


@torch.no_grad()
def test_disable_adapter_gives_the_backbone_s_own_logits(kind, model):
    expected = torch.cat([build(kind)(row[None]).logits for row in IDS])
    before = model(IDS).logits
    with model.disable_adapter():
        torch.testing.assert_close(model(IDS).logits, expected)
    assert torch.equal(model(IDS).logits, before)


def test_mistakes_with_adapter_names_are_explained(model):
    with pytest.raises(PtuneError, match=r"no adapter 'nobody'\. The adapters are: default"):
        model.set_adapter("nobody")
    with pytest.raises(PtuneError, match="already an adapter 'default'"):
        model.add_adapter("default", config())
    with pytest.raises(PtuneError, match="'default' is active"):
        model.delete_adapter("default")
    for name in ("a.b", "", "train", "keys", 3):
        with pytest.raises(PtuneError, match="no dots"):
            model.rename_adapter("default", name)


@torch.no_grad()
def test_unload_restores_the_backbone_after_two_adapters(kind, tmp_path):
    backbone = build(kind)
    before = copy.deepcopy(backbone)
    three = randomised(PromptModel(build(kind, num_labels=3), config()), 5)
    three.save_pretrained(tmp_path)
    model = randomised(PromptModel(backbone, config()), 2)
    model.load_adapter(tmp_path, "three")
    model.set_adapter("three")
    after = model.unload()
    assert same_backbone(after, before)
    assert torch.equal(after(IDS[:1]).logits, before(IDS[:1]).logits)
    for use in (
        lambda: model.set_adapter("default"),
        lambda: model.add_adapter("four", config()),
        lambda: model.load_adapter(tmp_path, "four"),
    ):
        with pytest.raises(PtuneError, match=r"was given back \(unload\)"):
            use()
    assert same_backbone(after, before)
