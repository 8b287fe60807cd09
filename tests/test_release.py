"""`unload` gives the backbone back exactly as it was; so does a construction that fails."""

import copy
from functools import partial

import pytest
import torch
import transformers
from subjects import (
    PLAIN,
    SENTENCES,
    Subject,
    config_of,
    in_threads,
    inputs_of,
    read_backbone,
    shake,
)
from transformers import AutoModelForSequenceClassification

import ptune.peft
from ptune import PromptBank, PromptEncoderConfig, PromptModel, PtuneError


def snapshot(backbone):
    """Everything of a backbone that ptune could leave changed, each thing by its name."""
    config, found = backbone.config, {}
    for name, one in {"config": config, "text config": config.get_text_config()}.items():
        found |= {f"{name}.{k}": copy.deepcopy(v) for k, v in vars(one).items()}
        found |= {f"{name}.to_dict(): {k}": v for k, v in copy.deepcopy(one.to_dict()).items()}
        found[f"{name}._attn_implementation"] = one._attn_implementation
    found["names in the state dict"] = list(backbone.state_dict())
    for name, tensor in [*backbone.named_parameters(), *backbone.named_buffers()]:
        numbers = (tensor.dtype, tensor.device, tensor.shape, as_bytes(tensor))
        found[f"{name}, its numbers"] = Hidden(numbers)
        found[f"{name}.requires_grad"] = tensor.requires_grad
        found[f"{name}.grad is None"] = tensor.grad is None
    for name, module in backbone.named_modules():
        found[f"{name}.__class__"] = type(module)
        for k, v in vars(module).items():
            found[f"{name}.{k}"] = content(k, v)
    return found


class Hidden(tuple):
    """A tuple that is compared, but not shown."""

    def __repr__(self):
        return "…"


def content(name, value):
    """What is compared of an attribute of a module."""
    if isinstance(value, bool | int | float | str | type(None) | tuple):
        return value
    if "hook" in name and isinstance(value, dict):
        return {key: id(hook) for key, hook in value.items()}
    if callable(value) and not isinstance(value, torch.nn.Module):
        return id(value)
    return type(value)


def as_bytes(tensor):
    return tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()


def assert_unchanged(backbone, before):
    assert_same(snapshot(backbone), before)


def assert_same(after, before):
    absent = object()
    names = before.keys() | after.keys()
    changed = {k: (before.get(k, absent), after.get(k, absent)) for k in names}
    changed = {k: (old, new) for k, (old, new) in changed.items() if old != new}
    shown = [f"{k}: {old} became {new}" for k, (old, new) in sorted(changed.items())]
    assert not changed, f"{len(changed)} things changed, among them {shown[:5]}"


def as_a_user_has_it(backbone):
    """With hooks of its own, some parameters frozen, parts in training mode, and ids unset."""
    if hasattr(backbone.config, "eos_token_id"):
        backbone.config.eos_token_id = 50256
    if backbone.config.model_type == "gpt2":
        backbone.config.pad_token_id = None
    for i, parameter in enumerate(backbone.parameters()):
        parameter.requires_grad_(i % 3 > 0)
    backbone.train()
    next(backbone.base_model.children()).eval()
    backbone.register_forward_hook(lambda *_: None)
    backbone.base_model.register_forward_pre_hook(lambda *_: None)
    return backbone


@pytest.fixture
def folder(folder_of, subject):
    return folder_of(subject)


@pytest.fixture
def backbone(folder, subject):
    return as_a_user_has_it(read_backbone(subject, folder / "backbone"))


def each_subject(subjects=PLAIN):
    return pytest.mark.parametrize("subject", subjects, ids=str)


# Given back.


@each_subject()
def test_a_backbone_comes_back_as_it_was(subject, backbone):
    before = snapshot(backbone)
    assert PromptModel(backbone, config_of(subject)).unload() is backbone
    assert_unchanged(backbone, before)


@each_subject([*PLAIN, Subject("input", head="pooler"), Subject("input", head="multi-label")])
def test_a_backbone_comes_back_after_everything_was_done_with_it(
    subject, backbone, folder, tmp_path
):
    inputs = inputs_of(subject, folder / "backbone")
    before = snapshot(backbone)
    expected = plain_logits(backbone, inputs)
    model = PromptModel(backbone, config_of(subject))
    model.save_pretrained(tmp_path)
    labels = torch.zeros(3, dtype=torch.long)
    if subject.head == "multi-label":
        labels = torch.zeros(3, 4)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        model.train()(**inputs, labels=labels).loss.backward()
        optimizer.step()
    shake(model, seed=5)
    in_threads(*(partial(model, **inputs) for _ in range(2)))
    other = {"depth": "input"} if subject.mechanism != "input" else {"depth": "deep"}
    common = {"num_virtual_tokens": 3, "encoder_reparameterization_type": "NONE"}
    model.add_adapter("other kind", PromptEncoderConfig(**common, **other))
    model.load_adapter(tmp_path, "loaded")
    for name in ("other kind", "loaded"):
        model.set_adapter(name)
        model.eval()(**inputs)
    with model.disable_adapter():
        model(**inputs)
    model.config.id2label = {0: "changed", 1: "by", 2: "somebody"}
    assert model.unload() is backbone
    assert_unchanged(backbone, before)
    assert torch.equal(plain_logits(backbone, inputs), expected)


@each_subject([Subject(), Subject("input"), Subject("shared")])
def test_checkpointing_ends_with_the_model(subject, backbone, folder):
    before = snapshot(backbone)
    model = PromptModel(backbone, config_of(subject))
    model.gradient_checkpointing_enable()
    model.train()(
        **inputs_of(subject, folder / "backbone"), labels=torch.zeros(3, dtype=torch.long)
    ).loss.backward()
    model.unload()
    # Transformers itself leaves a function in each layer, and says of each that it is off.
    after = {
        name: value
        for name, value in snapshot(backbone).items()
        if not name.endswith("._gradient_checkpointing_func")
        and not (name.endswith(".gradient_checkpointing") and value is False)
    }
    off = {k: v for k, v in before.items() if not k.endswith(".gradient_checkpointing")}
    assert_same(after, off)


@torch.no_grad()
def plain_logits(backbone, inputs):
    """Of one text: a backbone without a pad token reads no batches, and no virtual tokens."""
    words = inputs["input_ids"][0] >= 0
    modes = {module: module.training for module in backbone.modules()}
    logits = backbone.eval()(**{k: v[:1, words] for k, v in inputs.items()}).logits
    for module, mode in modes.items():
        module.training = mode
    return logits


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@each_subject([Subject(), Subject("layers")])
def test_a_backbone_in_half_precision_comes_back_as_it_was(subject, backbone, folder, dtype):
    backbone.to(dtype)
    before = snapshot(backbone)
    model = PromptModel(backbone, config_of(subject))
    if dtype == torch.bfloat16:
        model(**inputs_of(subject, folder / "backbone"))
    model.unload()
    assert_unchanged(backbone, before)


@each_subject()
def test_a_backbone_that_came_back_takes_another_prompt(subject, backbone, folder):
    inputs = inputs_of(subject, folder / "backbone")
    before = snapshot(backbone)
    logits = []
    for _ in range(3):
        torch.manual_seed(4)
        model = PromptModel(backbone, config_of(subject)).eval()
        with torch.no_grad():
            logits.append(model(**inputs).logits)
        model.unload()
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])
    assert_unchanged(backbone, before)


@each_subject([Subject(), Subject("shared")])
def test_an_exception_does_not_keep_a_backbone_from_coming_back(subject, backbone, folder):
    before = snapshot(backbone)
    model = PromptModel(backbone, config_of(subject))
    layer = [m for m in backbone.modules() if isinstance(m, torch.nn.Linear)][-1]
    hook = layer.register_forward_hook(raises)
    with pytest.raises(MemoryError):
        model(**inputs_of(subject, folder / "backbone"))
    hook.remove()
    model.unload()
    assert_unchanged(backbone, before)


def raises(*_, **__):
    raise MemoryError("no memory left")


raises.from_pretrained = raises  # a layer's other constructor


@each_subject()
def test_a_bank_gives_its_backbone_back(subject, backbone, folder):
    inputs = inputs_of(subject, folder / "backbone")
    before, logits = snapshot(backbone), plain_logits(backbone, inputs)
    for _ in range(2):
        bank = PromptBank(backbone, device="cpu")
        bank.add("one", folder / "adapter")
        bank.add("two", folder / "adapter")
        bank.predict([("one", SENTENCES[0]), ("two", SENTENCES[1])])
        assert bank.unload() is backbone
        assert_unchanged(backbone, before)
    assert torch.equal(plain_logits(backbone, inputs), logits)


def test_a_copy_s_backbone_comes_back_too(folder_of):
    subject = Subject()
    backbone = read_backbone(subject, folder_of(subject) / "backbone")
    before = snapshot(backbone)
    model = PromptModel(backbone, config_of(subject))
    twin = copy.deepcopy(model)
    inputs = inputs_of(subject, folder_of(subject) / "backbone")
    given_back = twin.unload()
    assert given_back is not backbone
    assert type(given_back) is type(backbone)
    # The original still works, and comes back by itself.
    model(**inputs)
    model.unload()
    assert_unchanged(backbone, before)
    assert_unchanged(given_back, before)


# Constructions that fail.

K = {"depth": "input", "num_virtual_tokens": 5, "encoder_reparameterization_type": "NONE"}
DEEP = {**K, "depth": "deep"}
# What is wrong with a prompt; on which mechanism's backbone.
MISFITS = {
    "wrong width": ("input", {**K, "token_dim": 7}, "7 wide"),
    "deep, wrong width": ("prefix", {**DEEP, "token_dim": 7}, "7 wide"),
    "too many virtual tokens": ("input", {**K, "num_virtual_tokens": 64}, "do not fit"),
    "a prompt that has not read the text": ("shared", {**K, "pooling": "prompt"}, "is causal"),
    "words without a tokenizer": (
        "input",
        {**K, "prompt_init": "text", "prompt_init_text": "the lamp"},
        "",
    ),
    "deep, words without a tokenizer": (
        "layers",
        {**DEEP, "prompt_init": "text", "prompt_init_text": "the lamp"},
        "",
    ),
}


@pytest.mark.parametrize("misfit", list(MISFITS))
def test_a_prompt_that_does_not_fit_leaves_the_backbone(misfit, folder_of):
    mechanism, options, reason = MISFITS[misfit]
    folder = folder_of(Subject(mechanism)) / "backbone"
    backbone = as_a_user_has_it(read_backbone(Subject(mechanism), folder))
    backbone.name_or_path = ""
    before = snapshot(backbone)
    for make in (PromptModel, ptune.peft.get_peft_model):
        with pytest.raises(PtuneError, match=reason):
            make(backbone, PromptEncoderConfig(**options))
        assert_unchanged(backbone, before)


def tiny(config):
    torch.manual_seed(0)
    return as_a_user_has_it(AutoModelForSequenceClassification.from_config(config))


SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def funnel(block_sizes):
    sizes = {"d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 16}
    return tiny(transformers.FunnelConfig(vocab_size=99, block_sizes=block_sizes, **sizes))


UNFIT = {
    "no token embeddings": (
        lambda: tiny(transformers.CanineConfig(**SMALL, intermediate_size=32)),
        K,
        "embedding",
    ),
    "mixes padding in": (
        lambda: tiny(transformers.FNetConfig(hidden_size=16, num_hidden_layers=1)),
        K,
        "padding",
    ),
    "no head": (
        lambda: tiny(transformers.BertConfig(**SMALL, vocab_size=99)).base_model,
        K,
        "head",
    ),
    "no deep prompt is possible": (lambda: funnel([2, 2]), DEEP, "deep prompt"),
    "no deep prompt in as many blocks as layers": (lambda: funnel([1, 1]), DEEP, "deep prompt"),
}


@pytest.mark.parametrize("unfit", list(UNFIT))
def test_a_backbone_that_cannot_be_p_tuned_is_left_as_it_is(unfit):
    make, options, reason = UNFIT[unfit]
    backbone = make()

    def state():
        """Without what Funnel itself notes about the last text that it read."""
        return {k: v for k, v in snapshot(backbone).items() if ".attention_structure." not in k}

    before = state()
    for _ in range(2):
        with pytest.raises(PtuneError, match=reason):
            PromptModel(backbone, PromptEncoderConfig(**options))
        assert_same(state(), before)


@each_subject()
def test_an_exception_in_the_prompt_encoder_leaves_the_backbone(subject, backbone, monkeypatch):
    config, layers = config_of(subject), ["Embedding"]
    if config.depth not in ("reader", "none"):  # these have no MLP
        config.encoder_reparameterization_type = "MLP"
        layers.append("Linear")
    before = snapshot(backbone)
    for layer in layers:
        with monkeypatch.context() as patched:
            patched.setattr(torch.nn, layer, raises)
            with pytest.raises(MemoryError):
                PromptModel(backbone, config)
        assert_unchanged(backbone, before)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@each_subject()
def test_an_exception_while_the_backbone_is_looked_at_leaves_it(subject, folder, error):
    """In each of the forward passes that tell how the backbone works."""
    backbone = read_backbone(subject, folder / "backbone")
    passes, stops_at = 0, 0

    def count(*_):
        nonlocal passes
        passes += 1
        if passes == stops_at:
            raise error("stop")

    backbone.base_model.register_forward_hook(count)
    as_a_user_has_it(backbone)
    before = snapshot(backbone)
    raised = 0
    for stops_at in range(1, 12):
        passes = 0
        try:
            PromptModel(backbone, config_of(subject)).unload()
        except (error, PtuneError):
            raised += 1
        assert_unchanged(backbone, before)
        if passes < stops_at:
            break
    assert passes < stops_at, "more forward passes than this test expects"
    assert raised or error is RuntimeError or stops_at == 1


@each_subject([Subject(), Subject("layers")])
def test_an_adapter_of_another_backbone_leaves_it(subject, backbone, folder_of):
    before = snapshot(backbone)
    for other in (Subject("shared"), Subject("input")):
        with pytest.raises(PtuneError, match="backbone"):
            PromptModel.from_pretrained(backbone, folder_of(other) / "adapter")
        assert_unchanged(backbone, before)


@each_subject()
def test_an_adapter_that_does_not_fit_leaves_the_others(subject, backbone, folder, folder_of):
    before, inputs = snapshot(backbone), inputs_of(subject, folder / "backbone")
    model = PromptModel(backbone, config_of(subject)).eval()
    with torch.no_grad():
        wanted = model(**inputs).logits
    other = Subject("prefix" if subject.mechanism != "prefix" else "input")
    with pytest.raises(PtuneError):
        model.load_adapter(folder_of(other) / "adapter", "other")
    with pytest.raises(PtuneError, match="7 wide"):
        model.add_adapter("wide", PromptEncoderConfig(**K, token_dim=7))
    with pytest.raises(PtuneError):
        model.add_adapter("long", PromptEncoderConfig(**{**K, "num_virtual_tokens": 2000}))
    assert list(model.adapters) == ["default"]
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, wanted)
    model.unload()
    assert_unchanged(backbone, before)


def test_a_bank_that_is_refused_leaves_the_backbone(folder_of):
    subject = Subject("input")
    backbone = read_backbone(subject, folder_of(subject) / "backbone")
    backbone.classifier = torch.nn.Sequential(torch.nn.Linear(32, 2), torch.nn.PReLU())
    as_a_user_has_it(backbone)
    before = snapshot(backbone)
    with pytest.raises(PtuneError, match="PReLU"):
        PromptBank(backbone)
    assert_unchanged(backbone, before)
