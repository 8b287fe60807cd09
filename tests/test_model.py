"""A `PromptModel`'s predictions do not depend on padding, and its backbone is not changed."""

import copy

import peft
import pytest
import torch
import transformers
from architectures import ARCHITECTURES, build_model, build_tokenizer
from conftest import KINDS, SENTENCES, build, each_problem_type, refused, same_backbone

from ptune import PromptModel, PtuneError
from ptune.backbones.loading import load_backbone
from ptune.peft import PromptEncoderConfig
from ptune.prompts.config import PromptEncoderConfig as OwnConfig

PLACEMENTS = ["prefix", "after_first"]


def prompt(backbone, **options):
    torch.manual_seed(1)
    config = PromptEncoderConfig(num_virtual_tokens=5, encoder_hidden_size=16, **options)
    return PromptModel(backbone, config).eval()


def ids(*lengths, start=10):
    return [torch.arange(start + i, start + i + n) for i, n in enumerate(lengths)]


def padded(rows, side, pad):
    width = max(len(r) for r in rows) + 3
    out = torch.full((len(rows), width), pad)
    mask = torch.zeros_like(out)
    for i, row in enumerate(rows):
        at = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        out[i, at], mask[i, at] = row, 1
    return out, mask


@pytest.fixture(params=PLACEMENTS)
def model(backbone, request):
    return prompt(backbone, placement=request.param)


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_logits_do_not_depend_on_the_batch_or_its_padding(model, side):
    rows = ids(3, 9, 6)
    pad = model.config.pad_token_id or 0
    batch, mask = padded(rows, side, pad)
    alone = torch.cat([model(row[None]).logits for row in rows])
    together = model(batch, attention_mask=mask).logits
    torch.testing.assert_close(together, alone, atol=1e-5 * alone.abs().max().item(), rtol=0)


@torch.no_grad()
def test_masked_tokens_inside_a_text_are_ignored(model):
    whole = ids(6)[0]
    mask = torch.tensor([[1, 1, 0, 1, 1, 0]])
    holed = model(whole[None], attention_mask=mask).logits
    torch.testing.assert_close(holed, model(whole[mask[0] != 0][None]).logits)


@torch.no_grad()
def test_a_pad_token_inside_a_text_is_not_padding(model):
    pad = model.config.pad_token_id or 0
    row = torch.tensor([[10, 11, pad]])
    with_pad = model(row, attention_mask=torch.ones_like(row)).logits
    without = model(row, attention_mask=torch.tensor([[1, 1, 0]])).logits
    assert not torch.allclose(with_pad, without)


@torch.no_grad()
def test_inputs_embeds_give_the_same_logits_as_input_ids(model):
    rows, mask = padded(ids(4, 7), "left", model.config.pad_token_id or 0)
    embeds = model.get_input_embeddings()(rows)
    torch.testing.assert_close(
        model(inputs_embeds=embeds, attention_mask=mask).logits,
        model(rows, attention_mask=mask).logits,
    )


@torch.no_grad()
def test_position_ids_are_counted_for_the_text_alone(model):
    rows = torch.stack(ids(6, 6))
    start = 2 if model.config.model_type == "roberta" else 0
    positions = torch.arange(start, start + 6)[None]
    torch.testing.assert_close(model(rows, position_ids=positions).logits, model(rows).logits)


@torch.no_grad()
def test_a_head_reads_the_means_of_several_layers():
    """As computed from the hidden states; the mean in the last layer comes first."""
    backbone = build("bert")
    hidden, texts = backbone.config.hidden_size, torch.stack(ids(6, 6))
    states = backbone.base_model(texts, output_hidden_states=True).hidden_states
    model = prompt(backbone, depth="none", encoder_reparameterization_type="NONE", pooling="layers")
    weight, bias = (parameter for _, parameter in model.head_parameters())
    assert weight.shape == (2, 2 * hidden)
    read = torch.cat([states[-1].mean(dim=1), states[-2].mean(dim=1)], dim=1)
    torch.testing.assert_close(model(texts).logits, read @ weight.T + bias)
    assert model.unload().classifier.weight.shape == (2, hidden)


@torch.no_grad()
def test_a_head_reads_how_much_the_texts_of_a_pair_differ():
    """In several layers, after the means; the same in a batch with padding."""
    backbone = build("bert")
    texts = torch.stack(ids(6, 6))
    types = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 1, 1]])
    states = backbone.base_model(
        texts, token_type_ids=types, output_hidden_states=True
    ).hidden_states
    model = prompt(backbone, depth="none", encoder_reparameterization_type="NONE", pooling="pairs")
    weight, bias = (parameter.normal_() for _, parameter in model.head_parameters())
    last = states[:-3:-1]
    means = [layer.mean(dim=1) for layer in last]
    for layer in last:
        one, other = (
            torch.stack([row[own].mean(dim=0) for row, own in zip(layer, chosen, strict=True)])
            for chosen in (types == 0, types == 1)
        )
        means.append((one - other).abs())
    expected = torch.cat(means, dim=1) @ weight.T + bias
    torch.testing.assert_close(model(texts, token_type_ids=types).logits, expected)
    padded = {"input_ids": texts, "token_type_ids": types}
    padded["attention_mask"] = torch.ones_like(texts)
    padded = {name: torch.nn.functional.pad(own, (0, 3)) for name, own in padded.items()}
    torch.testing.assert_close(model(**padded).logits, expected)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("T5", {"pooling": "layers"}, r"pooling is 'layers', but .* Use 'mean'"),
        ("DistilBERT", {"pooling": "pairs"}, r"pooling is 'pairs', but .* no token types"),
        ("Llama", {"depth": "reader", "pooling": "layers"}, "head of a reader on .* cannot read"),
    ],
)
def test_layers_are_refused_where_the_head_cannot_read_them(name, options, message):
    architecture = ARCHITECTURES[name]
    backbone = build_model(architecture, build_tokenizer(architecture, SENTENCES))
    with pytest.raises(PtuneError, match=message):
        PromptModel(backbone, OwnConfig(**options))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pooling", ["mean", "prompt"])
@torch.no_grad()
def test_mean_and_prompt_pooling(kind, side, pooling):
    """The head reads the mean over the text's tokens or the prompt's, on any padding side."""
    if pooling == "prompt" and kind == "gpt2":
        with pytest.raises(PtuneError, match="this backbone is causal"):
            prompt(build(kind), pooling="prompt")
        return
    model = prompt(build(kind), pooling=pooling, placement="after_first")
    rows = ids(3, 9, 6)
    batch, mask = padded(rows, side, model.config.pad_token_id)
    captured = {}
    head = next(m for n, m in model.backbone.named_modules() if n in ("classifier", "score"))
    head.register_forward_pre_hook(lambda _, args: captured.update(read=args[0]))
    output = model(batch, attention_mask=mask, output_hidden_states=True)
    states = output.hidden_states[-1]
    for i, row in enumerate(rows):
        text = [0, *range(6, 5 + len(row))]  # the first token, then those after the prompt
        if pooling == "prompt":
            text = list(range(1, 6))
        read = captured["read"][i] if captured["read"].ndim == 2 else captured["read"][i, -1]
        torch.testing.assert_close(read, states[i, text].mean(dim=0))
    alone = torch.cat([model(row[None]).logits for row in rows])
    torch.testing.assert_close(output.logits, alone)


@pytest.mark.parametrize("kind", ["bert", "roberta"], indirect=True)
@torch.no_grad()
def test_logits_equal_peft_s_with_the_same_weights(backbone):
    peft_model = peft.get_peft_model(
        copy.deepcopy(backbone),
        peft.PromptEncoderConfig(task_type="SEQ_CLS", num_virtual_tokens=5, encoder_hidden_size=16),
    ).eval()
    model = prompt(backbone)
    model.prompt_encoder.load_state_dict(peft_model.prompt_encoder["default"].state_dict())
    rows, mask = padded(ids(4, 7), "right", backbone.config.pad_token_id)
    torch.testing.assert_close(
        model(rows, attention_mask=mask).logits, peft_model(rows, attention_mask=mask).logits
    )


@torch.no_grad()
def test_the_longest_text_runs_and_one_token_more_is_an_error(model):
    longest = model.max_text_tokens()
    assert longest == 64 - 5
    assert model(torch.randint(5, 300, (2, longest))).logits.isfinite().all()
    with pytest.raises(PtuneError, match=f"{longest + 1} tokens is too long.*at most {longest}"):
        model(torch.randint(5, 300, (2, longest + 1)))


@torch.no_grad()
def test_a_token_id_outside_the_embedding_weight_is_refused(model):
    size = model.get_input_embeddings().weight.shape[0]
    rows, mask = padded(ids(4, 7), "right", size)  # a pad token that the backbone does not know
    usual = model(rows, attention_mask=mask).logits
    rows[mask == 0] = 0
    torch.testing.assert_close(model(rows, attention_mask=mask).logits, usual)
    rows[0, 2] = size
    with pytest.raises(PtuneError, match=rf"token id {size}.*rows 0 to {size - 1}.*resize_token"):
        model(rows, attention_mask=mask)


@torch.no_grad()
def test_padding_alone_never_makes_a_batch_too_long(model):
    row = ids(4)[0]
    wide = torch.full((1, 64), model.config.pad_token_id or 0)
    wide[0, -4:] = row
    mask = (torch.arange(64) >= 60).long()[None]
    torch.testing.assert_close(model(wide, attention_mask=mask).logits, model(row[None]).logits)


def test_more_virtual_tokens_than_positions_is_refused(backbone):
    with pytest.raises(PtuneError, match=r"64 virtual tokens do not fit.*64 positions"):
        PromptModel(backbone, PromptEncoderConfig(num_virtual_tokens=64))
    for options in ({"prompt_init": "vocab"}, {"shift_positions": True}):
        config = OwnConfig(num_virtual_tokens=64, depth="deep", **options)
        with pytest.raises(PtuneError, match=r"64 virtual tokens (cannot start|do not fit).*64"):
            PromptModel(backbone, config)


def test_only_prompt_and_head_get_gradients(model):
    model.train()
    model(torch.stack(ids(4, 4)), labels=torch.tensor([0, 1])).loss.backward()
    base = dict(model.backbone.base_model.named_parameters())
    assert all(p.grad is None for p in base.values())
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)
    assert sum(p.numel() for p in trained) == sum(p.numel() for p in model.parameters()) - sum(
        p.numel() for p in base.values()
    )


def test_the_backbone_uses_dropout_only_with_backbone_dropout(kind):
    drop = {"gpt2": "resid_pdrop"}.get(kind, "hidden_dropout_prob")
    head = {} if kind == "gpt2" else {"classifier_dropout": 0.0}
    rows = torch.stack(ids(6, 6))
    for asked in (False, True):
        model = prompt(build(kind, **{drop: 0.5}, **head), backbone_dropout=asked).train()
        same = torch.equal(model(rows).logits, model(rows).logits)
        assert same is not asked


@each_problem_type
def test_the_loss_of_each_problem_type(kind, problem_type, num_labels, labels):
    model = prompt(build(kind, num_labels=num_labels, problem_type=problem_type))
    output = model(torch.stack(ids(5, 5)), labels=labels)
    functions = {
        "single_label_classification": torch.nn.functional.cross_entropy,
        "multi_label_classification": torch.nn.functional.binary_cross_entropy_with_logits,
        "regression": lambda p, y: torch.nn.functional.mse_loss(p.squeeze(), y),
    }
    torch.testing.assert_close(output.loss, functions[problem_type](output.logits, labels))


@torch.no_grad()
def test_losses_of_a_step_add_up_to_its_mean_without_unknown_labels():
    model, rows = prompt(build("bert")), torch.stack(ids(6, 6, 6))
    labels, known = torch.tensor([0, -100, 1]), 5  # of all batches of the step
    output = model(rows, labels=labels, num_items_in_batch=known)
    rest = torch.nn.functional.cross_entropy(output.logits[::2], labels[::2], reduction="sum")
    torch.testing.assert_close(output.loss, rest / known)
    loss, logits = model(rows, labels=labels, num_items_in_batch=known, return_dict=False)
    assert torch.equal(loss, output.loss)
    assert torch.equal(logits, output.logits)


@torch.no_grad()
@pytest.mark.parametrize("depth", ["deep", "reader"])
def test_a_mask_of_fractions_is_a_mask(kind, depth):
    config = OwnConfig(num_virtual_tokens=3, depth=depth)
    model = PromptModel(build(kind), config).eval()
    rows, mask = padded(ids(4, 7), "right", 0)
    expected = model(rows, attention_mask=mask).logits
    torch.testing.assert_close(model(rows, attention_mask=mask.float()).logits, expected)


@torch.no_grad()
def test_unload_restores_the_backbone(backbone):
    backbone.train()
    before = copy.deepcopy(backbone)
    rows = torch.stack(ids(6, 6))
    model = prompt(backbone)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(1.0)
    after = model.unload()
    assert after is backbone
    assert after.training
    assert same_backbone(after, before)
    assert torch.equal(after.eval()(rows[:1]).logits, before.eval()(rows[:1]).logits)


def test_a_deep_copy_is_independent(model):
    twin = copy.deepcopy(model)
    rows = torch.stack(ids(6, 6))
    before = model(rows).logits
    with torch.no_grad():
        for p in twin.parameters():
            if p.requires_grad:
                p.add_(0.5)
    assert torch.equal(model(rows).logits, before)
    assert not torch.allclose(twin(rows).logits, before)


def test_a_half_precision_backbone_keeps_trained_parts_in_float32(kind):
    model = prompt(build(kind).to(torch.bfloat16)).train()
    output = model(torch.stack(ids(6, 6)), labels=torch.tensor([0, 1]))
    output.loss.backward()
    assert output.logits.dtype == torch.float32
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    assert all(p.grad.isfinite().all() for p in trained)


def test_prompt_and_head_can_have_different_learning_rates(model):
    groups = model.parameter_groups(1e-3, prompt_learning_rate=3e-2, weight_decay=0.1)
    rates = {id(p): g["lr"] for g in groups for p in g["params"]}
    assert {rates[id(p)] for p in model.prompt_encoder.parameters()} == {3e-2}
    assert {rates[id(p)] for _, p in model.head_parameters()} == {1e-3}
    assert len(rates) == sum(p.requires_grad for p in model.parameters())
    decay = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    assert all(decay[id(p)] == (0.1 if p.ndim > 1 else 0.0) for _, p in model.head_parameters())


def test_a_prompt_can_start_as_words_of_the_vocabulary(backbone):
    model = prompt(backbone, prompt_init="vocab", encoder_reparameterization_type="NONE")
    weight = model.get_input_embeddings().weight
    for embedding in model.prompt_embeddings():
        assert (weight == embedding).all(dim=1).any()


@pytest.mark.parametrize("depth", ["input", "deep"])
def test_a_prompt_can_start_as_a_text(bert_folder, tokenizer, depth):
    """It repeats the text's tokens; a deep prompt starts as their keys and values."""
    words = tokenizer("the lamp", add_special_tokens=False)["input_ids"]
    assert len(words) < 5
    backbone = load_backbone(str(bert_folder), dtype="float32")
    options = {"depth": depth, "encoder_reparameterization_type": "NONE"}
    model = prompt(backbone, prompt_init="text", prompt_init_text="the lamp", **options)
    expected = model.state.mechanism.from_words(torch.tensor((words * 5)[:5]))
    torch.testing.assert_close(model.prompt_embeddings(), expected)


def test_an_initial_text_without_tokenizer_or_tokens_is_refused(backbone):
    with pytest.raises(PtuneError, match="has no name"):
        prompt(backbone, prompt_init="text", prompt_init_text="the lamp")
    with pytest.raises(PtuneError, match="has no tokens"):
        prompt(load_backbone("minilm"), prompt_init="text", prompt_init_text="\x00")


def test_a_model_without_a_head_is_refused():
    with pytest.raises(PtuneError, match="no classification head"):
        PromptModel(build("bert").bert, PromptEncoderConfig())


@pytest.mark.parametrize("kind", ["CausalLM", "TokenClassification", "QuestionAnswering"])
def test_a_model_with_another_head_is_refused_and_left_unchanged(kind):
    auto = getattr(transformers, f"AutoModelFor{kind}")
    model = auto.from_config(KINDS["gpt2"]())
    before = list(model.state_dict()), [p.requires_grad for p in model.parameters()]
    with refused(
        f"{type(model).__name__} does not give one row of logits for each text, so it does not "
        "classify texts. Load the backbone with AutoModelForSequenceClassification."
    ):
        PromptModel(model, PromptEncoderConfig())
    assert (list(model.state_dict()), [p.requires_grad for p in model.parameters()]) == before


def test_a_prompt_on_a_model_with_a_prompt_is_refused(model):
    with refused("This PromptModel already carries a prompt. Add another one to its PromptModel …"):
        PromptModel(model, PromptEncoderConfig())


@pytest.mark.parametrize("wrong", ["minilm", torch.nn.Linear(2, 2), None])
def test_what_is_no_model_of_transformers_is_refused(wrong):
    with pytest.raises(PtuneError, match=f"type {type(wrong).__name__}; .*PromptClassifier"):
        PromptModel(wrong)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (transformers.CanineConfig, "no embedding weight"),
        (transformers.FNetConfig, "mixes all positions, padding included"),
        (transformers.NystromformerConfig, "averages over segments of the padded length"),
        (transformers.YosoConfig, "hashes all positions, padding included"),
    ],
)
def test_unsupported_backbones_are_refused_with_the_reason(config, reason):
    with torch.device("meta"):
        backbone = transformers.AutoModelForSequenceClassification.from_config(config())
    with pytest.raises(PtuneError, match=reason):
        PromptModel(backbone, PromptEncoderConfig())


def test_an_embedding_that_does_not_return_a_tensor_is_refused():
    torch.manual_seed(0)
    config = transformers.IBertConfig(
        vocab_size=60,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    backbone = transformers.AutoModelForSequenceClassification.from_config(config)
    with pytest.raises(PtuneError, match="returns a tuple"):
        prompt(backbone)(torch.arange(10, 16)[None])


def test_neither_ids_nor_embeddings_is_an_error(model):
    with pytest.raises(PtuneError, match="input_ids or inputs_embeds"):
        model(attention_mask=torch.ones(1, 3))
