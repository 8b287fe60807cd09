"""ptune's guarantees, tested on every architecture."""

import copy
from dataclasses import replace

import pytest
import torch
from architectures import ARCHITECTURES, build_model, tokenizer_that_pads
from conftest import SENTENCES, each_problem_type, same_backbone
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from ptune import PromptModel, PtuneError
from ptune.backbones.architectures import Architecture
from ptune.peft import PromptEncoderConfig
from ptune.texts import VIRTUAL

K = 5


@pytest.fixture(scope="module", params=list(ARCHITECTURES))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def architecture(name):
    return ARCHITECTURES[name]


@pytest.fixture(scope="module")
def tokenizer(architecture):
    return tokenizer_that_pads(architecture, SENTENCES)


@pytest.fixture
def backbone(architecture, tokenizer):
    return build_model(architecture, tokenizer)


def prompt(backbone, seed=1, **options):
    torch.manual_seed(seed)
    options = {"num_virtual_tokens": K, "encoder_hidden_size": 16, **options}
    return PromptModel(backbone, PromptEncoderConfig(**options)).eval()


KINDS = {
    "prefix": {"placement": "prefix"},
    "after_first": {"placement": "after_first"},
    "deep": {"depth": "deep", "encoder_reparameterization_type": "NONE"},
}


@pytest.fixture(params=list(KINDS))
def model(backbone, request):
    return prompt(backbone, **KINDS[request.param])


@pytest.fixture(params=["prefix", "deep"])
def options(request):
    return KINDS[request.param]


def batch(tokenizer, *texts, **options):
    return tokenizer(*texts, return_tensors="pt", **options)


def assert_same(one, two):
    """Within 1e-5 of the logits' scale."""
    scale = two.abs().max().item()
    torch.testing.assert_close(one, two, atol=1e-5 * scale, rtol=0)


def of_length(tokenizer, length):
    """Ids of a text with exactly `length` tokens, including the tokenizer's special tokens."""
    frame = batch(tokenizer, "the")["input_ids"]
    middle = tokenizer.convert_tokens_to_ids(tokenizer.tokenize("phone"))
    at = frame.shape[1] // 2
    filling = torch.tensor(middle * length)[None, : length - frame.shape[1]]
    return torch.cat([frame[:, :at], filling, frame[:, at:]], dim=1)


@torch.no_grad()
def test_logits_do_not_depend_on_the_batch(model, tokenizer):
    texts = [*SENTENCES[:4], "the"]
    alone = torch.cat([model(**batch(tokenizer, t)).logits for t in texts])
    for side in ("left", "right"):
        together = batch(tokenizer, texts, padding=True, padding_side=side)
        assert_same(model(**together).logits, alone)
    backwards = batch(tokenizer, texts[::-1], padding="max_length", max_length=40)
    assert_same(model(**backwards).logits.flip(0), alone)


@torch.no_grad()
def test_logits_of_pairs_do_not_depend_on_the_batch(model, tokenizer):
    pairs = [(SENTENCES[0], SENTENCES[1]), ("the", SENTENCES[2])]
    alone = torch.cat([model(**batch(tokenizer, *[[t] for t in p])).logits for p in pairs])
    first, second = map(list, zip(*pairs, strict=True))
    together = batch(tokenizer, first, second, padding=True)
    assert_same(model(**together).logits, alone)


@torch.no_grad()
def test_a_prompt_may_have_places_among_the_words(backbone, tokenizer):
    """In front they are the same as a prompt there, and anywhere they do not depend on padding."""
    texts = batch(tokenizer, SENTENCES[:3], padding=True, padding_side="right")
    ids, mask = texts["input_ids"], texts["attention_mask"]
    in_front = prompt(backbone, placement="prefix")
    expected = in_front(ids, attention_mask=mask).logits
    model = prompt(in_front.unload(), placement="template")
    virtual, ones = torch.full((3, K), VIRTUAL), torch.ones(3, K, dtype=torch.long)
    mask = torch.cat([ones, mask], dim=1)
    assert_same(model(torch.cat([virtual, ids], dim=1), attention_mask=mask).logits, expected)
    among = torch.cat([ids[:, :1], virtual[:, :2], ids[:, 1:3], virtual[:, 2:], ids[:, 3:]], dim=1)
    lengths = mask.sum(dim=1)
    alone = torch.cat([model(row[None, :n]).logits for row, n in zip(among, lengths, strict=True)])
    assert_same(model(among, attention_mask=mask).logits, alone)
    assert not torch.allclose(alone, expected)


@torch.no_grad()
def test_the_longest_text_runs_and_one_token_more_is_an_error(model, tokenizer):
    longest = model.max_text_tokens()
    if longest is None:
        assert model(of_length(tokenizer, 200)).logits.isfinite().all()
        return
    assert model(of_length(tokenizer, longest)).logits.isfinite().all()
    with pytest.raises(PtuneError, match=f"at most {longest} tokens"):
        model(of_length(tokenizer, longest + 1))


@torch.no_grad()
def test_a_text_can_end_with_the_padding_token(model, tokenizer):
    """This is common if the end token is also the padding token."""
    text = batch(tokenizer, SENTENCES[0])["input_ids"][0]
    pad = tokenizer.pad_token_id
    ending = torch.cat([text[:-1], torch.tensor([pad]), text[-1:], torch.tensor([pad])])
    if model.config.is_encoder_decoder:  # these read the end token, which has to stay last
        ending = ending[:-1]
    alone = model(ending[None], attention_mask=torch.ones_like(ending)[None]).logits
    padded = torch.cat([ending, torch.full((4,), pad)])[None]
    mask = (torch.arange(len(ending) + 4) < len(ending)).long()[None]
    assert_same(model(padded, attention_mask=mask).logits, alone)
    without = model(text[None]).logits
    assert not torch.allclose(alone, without, atol=1e-4 * without.abs().max().item())


@torch.no_grad()
def test_masked_tokens_inside_a_text_are_left_out(model, tokenizer):
    text = batch(tokenizer, SENTENCES[0])["input_ids"]
    mask = torch.ones_like(text)
    mask[0, 2:4] = 0
    assert_same(model(text, attention_mask=mask).logits, model(text[mask != 0][None]).logits)


@torch.no_grad()
def test_embeddings_instead_of_ids(model, tokenizer):
    inputs = batch(tokenizer, SENTENCES[:3], padding=True)
    logits = model(**inputs).logits
    ids = inputs.pop("input_ids")
    if model.config.is_encoder_decoder:
        with pytest.raises(PtuneError, match=r"end token.*input_ids"):
            model(inputs_embeds=model.get_input_embeddings()(ids), **inputs)
        return
    assert_same(model(inputs_embeds=model.get_input_embeddings()(ids), **inputs).logits, logits)


@torch.no_grad()
def test_position_ids_of_the_caller(model, tokenizer):
    inputs = batch(tokenizer, SENTENCES[0])
    seq = inputs["input_ids"].shape[1]
    start = model.config.pad_token_id + 1 if counts_from_the_padding(model) else 0
    positions = torch.arange(start, start + seq)[None]
    if not model.architecture.takes_position_ids:
        with pytest.raises(PtuneError, match="position_ids"):
            model(**inputs, position_ids=positions)
        return
    assert_same(model(**inputs, position_ids=positions).logits, model(**inputs).logits)


def counts_from_the_padding(model):
    return any(
        n.endswith("position_embeddings") and getattr(m, "padding_idx", None) is not None
        for n, m in model.backbone.named_modules()
    )


@each_problem_type
def test_the_three_problem_types_train(architecture, tokenizer, problem_type, num_labels, labels):
    backbone = build_model(
        architecture, tokenizer, num_labels=num_labels, problem_type=problem_type
    )
    model = prompt(backbone).train()
    assert learns(model, batch(tokenizer, SENTENCES[:2], padding=True), labels)
    assert all(p.grad is None for p in frozen(model))


def learns(model, inputs, labels):
    """Whether the loss falls in a few steps of training."""
    optimizer = torch.optim.SGD(model.parameter_groups(0.01))
    losses = []
    for _ in range(6):
        torch.manual_seed(0)
        loss = model(**inputs, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[-1] < losses[0]


def frozen(model):
    return [p for p in model.backbone.parameters() if not p.requires_grad]


@torch.no_grad()
def test_hidden_states_include_the_prompt_s_positions(model, tokenizer):
    inputs = batch(tokenizer, SENTENCES[:2], padding=True)
    output = model(**inputs, output_hidden_states=True)
    states = output.get("encoder_hidden_states") or output.hidden_states
    assert_same(output.logits, model(**inputs).logits)
    width = inputs["input_ids"].shape[1] + (K if model.state.mechanism.takes_positions else 0)
    assert states[-1].shape[1] == width


@torch.no_grad()
def test_a_saved_adapter_reloads_bit_for_bit_under_another_seed(
    architecture, model, tokenizer, tmp_path
):
    for p in model.parameters():
        if p.requires_grad:
            p.add_(torch.randn_like(p) * 0.05)
    model.save_pretrained(tmp_path)
    other = build_model(architecture, tokenizer, seed=0)
    for p in prompt(other, seed=77).parameters():
        if p.requires_grad:
            p.normal_()
    fresh = build_model(architecture, tokenizer, seed=0)
    for name, p in fresh.named_parameters():
        if name in model.architecture.head_names:
            p.normal_()
    loaded = PromptModel.from_pretrained(fresh, tmp_path)
    inputs = batch(tokenizer, SENTENCES[:3], padding=True)
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_a_half_precision_backbone(architecture, tokenizer, dtype, options):
    model = prompt(build_model(architecture, tokenizer).to(dtype), **options).train()
    inputs = batch(tokenizer, SENTENCES[:2], padding=True)
    output = model(**inputs, labels=torch.tensor([0, 1]))
    output.loss.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)
    assert {p.dtype for p in frozen(model) if p.is_floating_point()} <= {dtype, torch.float32}
    whole = prompt(build_model(architecture, tokenizer), **options)
    with torch.no_grad():
        exact, rough = whole(**inputs).logits, model.eval()(**inputs).logits.float()
    assert (rough - exact).abs().max() < 0.1 * exact.abs().max() + 0.05


def use_plain_linear_layers(module):
    """Replace equivalent layers of GPT-2 and Falcon by `nn.Linear`, which torchao requires."""
    for name, child in module.named_children():
        if isinstance(child, Conv1D) or (
            isinstance(child, torch.nn.Linear) and type(child) is not torch.nn.Linear
        ):
            weight = child.weight.T if isinstance(child, Conv1D) else child.weight
            linear = torch.nn.Linear(*reversed(weight.shape), bias=child.bias is not None)
            linear.weight.data = weight.detach().contiguous()
            if child.bias is not None:
                linear.bias.data = child.bias.detach()
            setattr(module, name, linear)
        else:
            use_plain_linear_layers(child)


def test_an_int8_backbone_trains_and_reloads(architecture, tokenizer, tmp_path):
    torchao = pytest.importorskip("torchao.quantization")

    def quantised():
        backbone = build_model(architecture, tokenizer)
        use_plain_linear_layers(backbone.base_model)
        torchao.quantize_(backbone.base_model, torchao.Int8WeightOnlyConfig())
        return backbone

    model = prompt(quantised()).train()
    assert any("int8" in repr(p).lower() for p in model.backbone.base_model.parameters())
    inputs = batch(tokenizer, SENTENCES[:2], padding=True)
    assert learns(model, inputs, torch.tensor([0, 1]))
    model.eval().save_pretrained(tmp_path)
    loaded = PromptModel.from_pretrained(quantised(), tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


# Their heads read other positions, or their last layer mixes positions up to its end.
ALL_POSITIONS = {"ALBERT", "MPNet", "EuroBERT", "XLNet", "BART", "T5"}


@pytest.mark.parametrize(
    ("kind", "pooling"),
    [
        ("prefix", "architecture"),
        ("prefix", "mean"),
        ("prefix", "prompt"),
        ("deep", "architecture"),
        ("deep", "mean"),
    ],
)
def test_the_end_of_the_last_layer_computes_only_positions_that_are_read(
    name, architecture, tokenizer, kind, pooling
):
    """Logits and gradients are equal, and only the positions that are read are computed."""
    inputs = batch(tokenizer, SENTENCES[:3], padding=True)
    results, tokens = [], []
    for left_out in (True, False):
        made = build_model(architecture, tokenizer)
        if pooling == "prompt" and Architecture.of(made).is_causal:
            pooling = "mean"  # the prompt cannot attend to the text
        model = prompt(made, pooling=pooling, **KINDS[kind])
        end = model.architecture.last_layer_end
        if end is None:
            assert name in ALL_POSITIONS
            return
        if not left_out:
            model.host.architecture = replace(model.architecture, last_layer_end=None)
        last = [
            m
            for m in made.get_submodule(end.end).modules()
            if isinstance(m, torch.nn.Linear | Conv1D)
        ][-1]
        counts = []  # a shared prompt is computed first
        last.register_forward_hook(
            lambda m, args, _, counts=counts: counts.append(args[0][..., 0].numel())
        )
        output = model(**inputs, labels=torch.tensor([0, 1, 1]))
        output.loss.backward()
        tokens.append(counts[-1])
        results.append((output.logits.detach(), model.prompt_encoder.embedding.weight.grad))
    assert name not in ALL_POSITIONS
    (logits, gradient), (all_logits, all_gradient) = results
    assert_same(logits, all_logits)
    scale = all_gradient.abs().max().item()
    torch.testing.assert_close(gradient, all_gradient, atol=1e-5 * scale, rtol=0)
    of_text = int(inputs["attention_mask"].sum())
    assert tokens[0] == {"architecture": 3, "mean": of_text, "prompt": 3 * K}[pooling]
    assert tokens[1] >= inputs["input_ids"].numel()


def test_gradient_checkpointing_recomputes_and_changes_nothing(
    architecture, tokenizer, backbone, options
):
    layers = [m for m in backbone.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers or not backbone.supports_gradient_checkpointing:
        pytest.skip("Transformers has no checkpointed layers for this architecture")
    inputs = batch(tokenizer, SENTENCES[:2], padding=True)
    gradients, runs = [], []
    for checkpointing in (False, True):
        model = prompt(build_model(architecture, tokenizer), **options).train()
        model.share_prompt = False  # a shared prompt would be one more call
        if checkpointing:
            model.gradient_checkpointing_enable()
        layer = next(m for m in model.modules() if isinstance(m, GradientCheckpointingLayer))
        leaf = next(m for m in layer.modules() if m is not layer and not list(m.children()))
        counted = []
        leaf.register_forward_hook(lambda *_, counted=counted: counted.append(1))
        torch.manual_seed(0)
        model(**inputs, labels=torch.tensor([0, 1])).loss.backward()
        gradients.append(model.prompt_encoder.embedding.weight.grad)
        runs.append(len(counted))
    torch.testing.assert_close(*gradients)
    assert runs[1] == 2 * runs[0]


@torch.no_grad()
@pytest.mark.parametrize(  # of input prompts, test_modes.py compiles more
    "options", [pytest.param("prefix", marks=pytest.mark.slow), "deep"], indirect=True
)
def test_it_compiles_without_a_graph_break_in_ptune(backbone, tokenizer, options):
    model = prompt(backbone, **options)
    inputs = dict(batch(tokenizer, SENTENCES[:2], padding=True))
    whole = {"backend": "eager", "fullgraph": True}
    torch._dynamo.reset()
    try:
        output = torch.compile(model, **whole)(**inputs)
    except torch._dynamo.exc.Unsupported:
        # Only if the backbone's own code has a graph break (BART, DeBERTa).
        with pytest.raises(torch._dynamo.exc.Unsupported):
            torch.compile(model.backbone, **whole)(**inputs)
        output = torch.compile(model, backend="eager")(**inputs)
    assert_same(output.logits, model(**inputs).logits)
    torch._dynamo.reset()


@torch.no_grad()
def test_two_adapters_share_the_backbone(architecture, tokenizer, backbone, tmp_path, options):
    inputs = batch(tokenizer, SENTENCES[:2], padding=True)
    before = copy.deepcopy(backbone)
    three_labels = build_model(architecture, tokenizer, num_labels=3)
    three_labels.base_model.load_state_dict(backbone.base_model.state_dict())
    other = prompt(three_labels, seed=5, placement="after_first")
    other.save_pretrained(tmp_path)
    model = prompt(backbone, **options)
    first = model(**inputs).logits
    model.load_adapter(tmp_path, "other")
    model.set_adapter("other")
    assert torch.equal(model(**inputs).logits, other(**inputs).logits)
    model.rename_adapter("other", "three")
    model.set_adapter("default")
    model.delete_adapter("three")
    assert torch.equal(model(**inputs).logits, first)
    after = model.unload()
    for (name, p), (_, q) in zip(after.named_parameters(), before.named_parameters(), strict=True):
        assert torch.equal(p, q), name


@torch.no_grad()
def test_a_deep_copy_of_the_model_is_independent(model, tokenizer):
    inputs = batch(tokenizer, SENTENCES[:2], padding=True)
    twin = copy.deepcopy(model)
    before = model(**inputs).logits
    assert torch.equal(twin(**inputs).logits, before)
    twin.prompt_encoder.embedding.weight.normal_()
    assert not torch.equal(twin(**inputs).logits, before)
    assert torch.equal(model(**inputs).logits, before)


@torch.no_grad()
def test_unload_restores_the_backbone_bit_for_bit(backbone, tokenizer, options):
    before = copy.deepcopy(backbone)
    model = prompt(backbone, **options)
    for p in model.parameters():
        if p.requires_grad:
            p.normal_()
    after = model.unload()
    assert same_backbone(after, before)
    inputs = batch(tokenizer, SENTENCES[0])
    assert torch.equal(after(**inputs).logits, before(**inputs).logits)
