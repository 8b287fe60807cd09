"""Deep prompts, PEFT's prefix tuning, and shared input prompts."""

import warnings

import peft
import pytest
import torch
from architectures import ARCHITECTURES, build_model, tokenizer_that_pads
from conftest import SENTENCES, build, use_prompt

import ptune
from ptune import PromptModel, PtuneError
from ptune.peft import PeftModel, PromptEncoderConfig

K = 5


def deep(**options):
    return PromptEncoderConfig(
        num_virtual_tokens=K, depth="deep", **{"encoder_reparameterization_type": "NONE", **options}
    )


def made(name):
    architecture = ARCHITECTURES[name]
    tokenizer = tokenizer_that_pads(architecture, SENTENCES)
    return lambda: build_model(architecture, tokenizer), tokenizer


# Every architecture has one of the two mechanisms; both must occur.
@pytest.mark.parametrize(
    ("name", "mechanism"),
    [("BERT", "prefix"), ("BLOOM", "layers"), ("DeBERTa-v2", "layers")],
)
def test_the_mechanism_depends_on_the_architecture(name, mechanism):
    backbone, _ = made(name)
    assert PromptModel(backbone(), deep()).state.mechanism.name == mechanism


@torch.no_grad()
@pytest.mark.parametrize("name", ["GPT-2", "Llama", "OPT", "BLOOM", "GPT-Neo", "Falcon"])
def test_a_prompt_from_words_equals_those_words_before_the_text(name):
    """In a causal model, what comes before a text cannot depend on it, so the two must agree."""
    backbone, tokenizer = made(name)
    model = PromptModel(backbone(), deep(shift_positions=True)).eval()
    words = torch.tensor(tokenizer("my money back and that at once please")["input_ids"][:K])
    use_prompt(model, model.state.mechanism.from_words(words))
    text = tokenizer(SENTENCES[:3], padding=True, return_tensors="pt")
    inputs = {
        "input_ids": torch.cat([words.expand(3, -1), text["input_ids"]], dim=1),
        "attention_mask": torch.cat([torch.ones(3, K), text["attention_mask"]], dim=1).long(),
    }
    plain = backbone().eval()
    plain.config.pad_token_id = tokenizer.pad_token_id
    alone = [
        plain(input_ids=ids[mask != 0][None]).logits
        for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
    ]
    torch.testing.assert_close(model(**text).logits, torch.cat(alone), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("projection", [False, True])
@pytest.mark.parametrize("name", ["BERT", "RoBERTa", "XLM-R", "GPT-2", "OPT", "Llama", "Qwen 2"])
def test_peft_s_prefix_tuning_loads_with_the_same_logits(name, projection, tmp_path):
    backbone, tokenizer = made(name)
    config = peft.PrefixTuningConfig(
        task_type="SEQ_CLS",
        num_virtual_tokens=K,
        prefix_projection=projection,
        encoder_hidden_size=16,
    )
    torch.manual_seed(3)
    theirs = peft.get_peft_model(backbone(), config).eval()
    theirs.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = PeftModel.from_pretrained(backbone(), tmp_path)
    assert ours.prompt_config.depth == "deep"
    for text in SENTENCES[:3]:  # one by one, because PEFT's decoders read padding
        inputs = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            expected = theirs(**inputs).logits
            torch.testing.assert_close(ours(**inputs).logits, expected, atol=1e-5, rtol=1e-4)


def test_a_deep_prompt_takes_no_positions(kind):
    model = PromptModel(build(kind), deep())
    assert model.max_text_tokens() == model.architecture.max_positions
    assert PromptModel(build(kind), deep(shift_positions=True)).max_text_tokens() == (
        model.architecture.max_positions - K
    )


@pytest.mark.parametrize("encoder", ["NONE", "MLP"])
def test_the_prompt_of_every_layer_gets_a_gradient(kind, encoder, tokenizer, texts):
    model = PromptModel(
        build(kind), deep(encoder_reparameterization_type=encoder, encoder_hidden_size=16)
    ).train()
    inputs = tokenizer(texts[:4], padding=True, return_tensors="pt")
    prompt = model.prompt_encoder()
    prompt.retain_grad()
    model.prompt_encoder.forward = lambda: prompt
    model(**inputs, labels=torch.tensor([0, 1, 0, 1])).loss.backward()
    # [k, layers, keys or values, numbers]. The last layer of a decoder is read at one token
    # only, which still attends to every key and value.
    parts = prompt.grad.view(K, 2, 2, -1).abs().amax(dim=-1)
    assert (parts > 0).all()
    assert all(p.grad is not None for p in model.prompt_encoder.parameters())


def test_a_prompt_of_vocabulary_words_starts_at_their_keys_and_values(kind):
    model = PromptModel(build(kind), deep(prompt_init="vocab"))
    drawn = model.prompt_encoder().detach()
    torch.manual_seed(0)
    random = PromptModel(build(kind), deep()).prompt_encoder().detach()
    assert drawn.shape == random.shape
    assert drawn.std() < 3 * random.std()
    assert not torch.equal(drawn, random)


def test_a_deep_prompt_cannot_have_an_lstm():
    with pytest.raises(PtuneError, match="'MLP' or 'NONE'"):
        deep(encoder_reparameterization_type="LSTM")


def test_a_deep_prompt_of_another_shape_is_refused(tmp_path):
    architecture = ARCHITECTURES["BERT"]
    backbone, tokenizer = made("BERT")
    PromptModel(backbone(), deep()).save_pretrained(tmp_path)
    (tmp_path / "ptune.json").unlink()  # it records the number of layers
    with pytest.raises(PtuneError, match=r"shape \[5, 128\].*\[5, 192\]"):
        PromptModel.from_pretrained(
            build_model(architecture, tokenizer, num_hidden_layers=3), tmp_path
        )


def test_unload_restores_the_attention_function(kind):
    backbone = build(kind)
    before = backbone.config._attn_implementation
    model = PromptModel(backbone, deep())
    assert backbone.config._attn_implementation != before
    assert model.unload().config._attn_implementation == before


@torch.no_grad()
@pytest.mark.parametrize("depth", ["deep", "reader", "none"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_prompt_acts_after_the_attention_was_changed(kind, depth, attention):
    model = PromptModel(build(kind), ptune.PromptEncoderConfig(num_virtual_tokens=K, depth=depth))
    model.eval()
    ids, mask = torch.arange(10, 24).view(2, 7), torch.tensor([[1] * 7, [1] * 3 + [0] * 4])
    expected = model(ids, attention_mask=mask).logits
    model.set_attn_implementation(attention)
    torch.testing.assert_close(model(ids, attention_mask=mask).logits, expected)
    assert model.unload().config._attn_implementation == attention


@torch.no_grad()
def test_an_input_prompt_and_a_deep_prompt_can_share_a_backbone(kind, tokenizer, texts):
    inputs = tokenizer(texts[:3], padding=True, return_tensors="pt")
    alone = {}
    shallow = PromptEncoderConfig(num_virtual_tokens=K)
    for name, config in {"input": shallow, "deep": deep()}.items():
        torch.manual_seed(4)
        alone[name] = PromptModel(build(kind), config).eval()
    model = PromptModel(build(kind), shallow).eval()
    model.add_adapter("deep", deep())
    for name, active in {"input": "default", "deep": "deep"}.items():
        model.set_adapter(active)
        use_prompt(model, alone[name].prompt_embeddings())
        for (_, p), (_, q) in zip(
            model.head_parameters(), alone[name].head_parameters(), strict=True
        ):
            p.copy_(q)
    for _ in range(2):
        for name, active in {"input": "default", "deep": "deep"}.items():
            model.set_adapter(active)
            expected = alone[name](**inputs).logits
            torch.testing.assert_close(model(**inputs).logits, expected, atol=1e-6, rtol=1e-5)


# On a causal backbone, an input prompt is computed once for the whole batch.

CAUSAL = [
    "GPT-2",
    "GPT-NeoX",
    "OPT",
    "OPT (projected)",
    "Llama",
    "Gemma",
    "Phi",
    "Qwen 2",
    "Qwen 3",
]


@pytest.mark.parametrize("name", CAUSAL)
def test_a_shared_prompt_gives_the_same_logits_and_gradients(name):
    backbone, tokenizer = made(name)
    inputs = tokenizer(SENTENCES[:4], padding=True, return_tensors="pt")
    results = []
    for shared in (True, False):
        torch.manual_seed(2)
        model = PromptModel(
            backbone(), PromptEncoderConfig(num_virtual_tokens=K, encoder_hidden_size=16)
        ).train()
        assert model.host.can_share(model.prompt_config)
        shapes = []
        model.get_input_embeddings().register_forward_hook(
            lambda _, args, out, shapes=shapes: shapes.append(tuple(args[0].shape))
        )
        model.share_prompt = shared
        output = model(**inputs, labels=torch.tensor([0, 1, 1, 0]))
        output.loss.backward()
        gradients = [p.grad for p in model.parameters() if p.requires_grad]
        results.append((output.logits, *gradients))
        width = inputs["input_ids"].shape[1]
        assert shapes == ([(1, K), (4, width)] if shared else [(4, K + width)])
    for one, other in zip(*results, strict=True):
        scale = max(1.0, other.abs().max().item())
        torch.testing.assert_close(one, other, atol=1e-5 * scale, rtol=1e-4)


@pytest.mark.parametrize("name", ["BERT", "EuroBERT", "Mistral", "Gemma 3", "BART", "T5", "BLOOM"])
def test_a_prompt_is_not_shared_unless_attention_is_causal_and_unlimited(name):
    backbone, _ = made(name)
    before = backbone().config._attn_implementation
    model = PromptModel(backbone(), PromptEncoderConfig(num_virtual_tokens=K))
    assert not model.host.can_share(model.prompt_config)
    assert model.backbone.config._attn_implementation == before


@torch.no_grad()
def test_a_shared_prompt_is_computed_once_for_inference():
    backbone, tokenizer = made("Llama")
    torch.manual_seed(2)
    model = PromptModel(backbone(), PromptEncoderConfig(num_virtual_tokens=K)).eval()
    use_prompt(model, model.prompt_embeddings())
    inputs = tokenizer(SENTENCES[:4], padding=True, return_tensors="pt")
    batch_sizes = []
    model.get_input_embeddings().register_forward_hook(
        lambda _, args, out: batch_sizes.append(len(args[0]))
    )
    first = model(**inputs).logits
    assert torch.equal(model(**inputs).logits, first)
    assert batch_sizes == [1, 4, 4]
    with model.disable_adapter():
        assert not torch.allclose(model(**inputs).logits, first)
    assert torch.equal(model(**inputs).logits, first)
    model.prompt_encoder.embedding.weight.add_(0.5)  # a changed prompt is computed again
    assert not torch.allclose(model(**inputs).logits, first)
