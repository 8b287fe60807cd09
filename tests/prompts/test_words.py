"""Templates and label words: a classifier that starts as a language model's own answer."""

import itertools
import json
from functools import wraps

import numpy as np
import pytest
import torch
import transformers
from architectures import ARCHITECTURES, build_model, build_tokenizer
from conftest import refused
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

import ptune
from ptune import PromptBank, PromptClassifier, PromptEncoderConfig, PromptModel
from ptune.adapters.card import model_card
from ptune.backbones.loading import load_backbone, load_tokenizer
from ptune.data.glue import GLUE
from ptune.export.onnx import export_onnx
from ptune.labels import Labels
from ptune.prompts.questions import default_question
from ptune.prompts.words import Asked, parse_words, token_of_each
from ptune.texts import Template
from ptune.training.run import train_run
from ptune.training.settings import TrainSettings
from ptune.training.start import zero_shot_model

CAUSAL = [
    "GPT-2", "GPT-Neo", "GPT-J", "GPT-NeoX", "OPT", "OPT (projected)", "BLOOM", "Falcon", "Llama",
    "Mistral", "Gemma", "Gemma 3", "Phi", "Qwen 2", "Qwen 3",
]  # fmt: skip
WITH_BOS = ["OPT", "Llama", "Gemma"]
MASKED = [
    "BERT", "RoBERTa", "XLM-R", "ELECTRA", "ALBERT", "DistilBERT", "DeBERTa-v2", "ModernBERT",
    "MPNet", "EuroBERT",
]  # fmt: skip
LABELS = ["parcel", "money"]
TEXTS = ["where is my parcel", "please send my money back today", "parcel"]
ASKED = "{soft:is the text parcel or money} {text} the label is"


GAP = "{text} and it is about {mask}."


def language_model(name, folder, *, padding=0, **changes):
    """A small language model with random weights, in a folder. Returns its tokenizer.

    Args:
        name: From `ARCHITECTURES`.
        folder: The folder.
        padding: Rows of the vocabulary that are no token.
        changes: Changes to the configuration.
    """
    architecture = ARCHITECTURES[name]
    tokenizer = build_tokenizer(architecture, [*TEXTS, ASKED, GAP] * 20)
    config = build_model(architecture, tokenizer).config
    config.update({**changes, "vocab_size": config.vocab_size + padding})
    torch.manual_seed(0)
    if name in MASKED:
        mask = "<mask>" if "<s>" in tokenizer.all_special_tokens else "[MASK]"
        tokenizer.add_special_tokens({"mask_token": mask})
        config.vocab_size = max(config.vocab_size, len(tokenizer) + 3)  # with padding
        model = AutoModelForMaskedLM.from_config(config)
        for parameter in model.parameters():
            if parameter.ndim == 1:  # biases are otherwise zero
                nn.init.normal_(parameter, std=0.3)
    else:
        model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


@pytest.fixture(scope="module", params=["Qwen 2", "RoBERTa"])
def asked(request, tmp_path_factory):
    """The folder of a causal or a masked language model, and a template for it."""
    folder = tmp_path_factory.mktemp("asked")
    language_model(request.param, folder)
    return str(folder), GAP if request.param in MASKED else ASKED


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("decoder")
    language_model("Qwen 2", folder)
    return str(folder)


@pytest.fixture
def zero_shot(asked):
    folder, template = asked
    return PromptClassifier.zero_shot(
        LABELS, model=folder, template=template, dtype="float32", device="cpu", calibrate=False
    )


def own_scores(folder, texts, template=ASKED):
    """The language model's scores of the label words after each text, one text at a time."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = load_tokenizer(str(folder))
    words, filled = tokens_of_labels(tokenizer), Template(template).fill([texts])
    with torch.no_grad():
        ids = [torch.tensor([tokenizer(text)["input_ids"]]) for text in filled]
        return torch.stack([model(input_ids=i).logits[0, -1, words] for i in ids]).numpy()


def tokens_of_labels(tokenizer):
    """The first token of each label."""
    return [tokenizer(f" {label}", add_special_tokens=False)["input_ids"][0] for label in LABELS]


@pytest.mark.parametrize("name", CAUSAL)
def test_logits_without_training_are_the_language_models(name, tmp_path):
    language_model(name, tmp_path)
    classifier = PromptClassifier.zero_shot(
        LABELS, model=str(tmp_path), template=ASKED, dtype="float32", device="cpu", calibrate=False
    )
    found = np.stack(list(classifier.logits(TEXTS)))
    expected = own_scores(tmp_path, TEXTS)
    assert found == pytest.approx(expected, abs=1e-5 * max(1.0, float(np.abs(expected).max())))


@pytest.mark.parametrize("kind", ["tied", "padded vocabulary", "int8"])
def test_a_head_of_label_words_of_special_language_models(kind, tmp_path):
    """Before training, its scores are the language model's. Training leaves the model alone."""
    folder = tmp_path / "model"
    padding = 61 if kind == "padded vocabulary" else 0
    tokenizer = language_model(
        "Qwen 2", folder, padding=padding, tie_word_embeddings=kind == "tied"
    )
    if kind == "int8":
        torchao = pytest.importorskip("torchao.quantization")
        int8 = transformers.TorchAoConfig(torchao.Int8WeightOnlyConfig())
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, quantization_config=int8
        )
        for part in (model, tokenizer):
            part.save_pretrained(folder)
    expected = own_scores(folder, TEXTS)
    near = 1e-5 * max(1.0, float(np.abs(expected).max()))
    how = {"template": ASKED, "dtype": "float32", "device": "cpu"}
    asked = PromptClassifier.zero_shot(iter(LABELS), model=str(folder), calibrate=False, **how)
    assert np.stack(list(asked.logits(TEXTS))) == pytest.approx(expected, abs=near)
    embeddings = asked.prompt_model_.backbone.get_input_embeddings().weight.clone()
    assert embeddings.shape[0] >= len(tokenizer) + padding
    rows = dict(asked.prompt_model_.to_adapter().head)
    asked.set_params(epochs=1, batch_size=2).fit(TEXTS, ["parcel", "money", "parcel"])
    model = asked.prompt_model_
    assert torch.equal(model.backbone.get_input_embeddings().weight[: len(embeddings)], embeddings)
    trained = model.to_adapter().head
    assert any(not torch.equal(trained[name], start) for name, start in rows.items())


def in_one_row(forward):
    """A language model's `forward` with its scores ``[batch, seq, vocab]`` as one row per text."""

    @wraps(forward)
    def changed(**inputs):
        output = forward(**inputs)
        output.logits = output.logits.flatten(1)
        return output

    return changed


@pytest.mark.parametrize("name", MASKED)
def test_logits_at_the_mask_are_the_masked_language_models(name, tmp_path):
    """Without a prompt, with an input prompt and with a deep one; padded on either side."""
    tokenizer = language_model(name, tmp_path)
    folder, words = str(tmp_path), tokens_of_labels(tokenizer)
    reference = AutoModelForMaskedLM.from_pretrained(folder).eval()
    embed = reference.get_input_embeddings()
    filled = Template(GAP).fill([TEXTS], tokenizer.mask_token)
    configs = {
        "none": PromptEncoderConfig(depth="none"),
        "input": PromptEncoderConfig(depth="input", num_virtual_tokens=3),
        "deep": PromptEncoderConfig(depth="deep", num_virtual_tokens=3),
    }
    for depth, config in configs.items():
        settings = TrainSettings(
            model=folder, template=GAP, head="words", prompt="none", dtype="float32"
        )
        model, *_ = zero_shot_model(settings, Labels(tuple(LABELS)), pairs=False, calibrate=False)
        adapter = model.to_adapter()
        model = PromptModel(model.unload(), config)
        with torch.no_grad():
            for own, start in model.head_parameters():
                start.copy_(adapter.head[own])
            model.prompt_encoder.embedding.weight.normal_(std=0.5)
        if depth == "deep":  # the whole language model, with the same prompt in every layer
            prompt = model.prompt_embeddings()
            untied = AutoModelForMaskedLM.from_pretrained(folder)
            head = untied.get_output_embeddings()
            head.weight = nn.Parameter(head.weight.detach().clone())
            untied.forward = in_one_row(untied.forward)
            whole = PromptModel(untied, config, prompt_embeddings=prompt).eval()
        expected = []
        for text in filled:
            ids = torch.tensor([tokenizer(text)["input_ids"]])
            at = int((ids[0] == tokenizer.mask_token_id).nonzero()[0, 0])
            with torch.no_grad():
                if depth == "none":
                    scores = reference(input_ids=ids).logits
                elif depth == "input":
                    text_embeds, own = embed(ids), model.prompt_embeddings()[None]
                    parts = [text_embeds[:, :1], own, text_embeds[:, 1:]]
                    scores = reference(inputs_embeds=torch.cat(parts, dim=1)).logits[:, 3:]
                else:
                    scores = whole(input_ids=ids).logits.view(1, -1, len(head.weight))
                    scores = scores[:, scores.shape[1] - ids.shape[1] :]
            expected.append(scores[0, at, words])
        expected = torch.stack(expected)
        near = 1e-5 * max(1.0, float(expected.abs().max()))
        for side in ("left", "right"):
            tokenizer.padding_side = side
            batch = tokenizer(filled, padding=True, return_tensors="pt")
            with torch.no_grad():
                found = model.eval()(**batch).logits
            assert (found - expected).abs().max() <= near, (depth, side)


@pytest.mark.parametrize(
    "pattern",
    [
        "{soft:where is the text} {text} and it is about {mask}.",
        "{soft:where is} the text {text} {soft:and it} is {soft:about} {mask}.",
    ],
)
@pytest.mark.parametrize("name", ["BERT", "RoBERTa"])
def test_an_input_prompt_of_a_masked_model_starts_as_the_soft_words(tmp_path, name, pattern):
    tokenizer = language_model(name, tmp_path)
    settings = TrainSettings(
        model=str(tmp_path), template=pattern, head="words", prompt="input", dtype="float32"
    )
    model, *_ = zero_shot_model(settings, Labels(tuple(LABELS)), pairs=False, calibrate=False)
    model.to_adapter().save(tmp_path / "adapter")
    found = ptune.load(tmp_path / "adapter", dtype="float32", device="cpu").logits(TEXTS)
    reference = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    expected = []
    for text in Template(pattern).fill([TEXTS], tokenizer.mask_token):
        ids = tokenizer(text)["input_ids"]
        with torch.no_grad():
            scores = reference(input_ids=torch.tensor([ids])).logits
        at = ids.index(tokenizer.mask_token_id)
        expected.append(scores[0, at, tokens_of_labels(tokenizer)].numpy())
    near = 1e-5 * max(1.0, float(np.abs(expected).max()))
    assert np.stack(list(found)) == pytest.approx(np.stack(expected), abs=near)


@pytest.mark.parametrize("name", ["Qwen 2", "Llama"])
def test_an_input_prompt_has_any_number_of_places(name, tmp_path):
    """It starts as the soft words there, and answers the same in a bank with other tasks."""
    language_model(name, tmp_path)
    template = "I ask {soft:you} {text} {soft:the} label {soft:is}"
    how = {"dtype": "float32", "device": "cpu"}
    settings = TrainSettings(
        model=str(tmp_path), template=template, head="words", prompt="input", dtype="float32"
    )
    model, *_ = zero_shot_model(settings, Labels(tuple(LABELS)), pairs=False, calibrate=False)
    assert model.prompt_config.placement == "template"
    model.to_adapter().save(tmp_path / "places")
    plain = PromptClassifier.zero_shot(LABELS, model=str(tmp_path), template=ASKED, **how)
    plain.save(tmp_path / "plain")
    bank = PromptBank(str(tmp_path), **how)
    for task in ("places", "plain"):
        bank.add(task, tmp_path / task)
    expected = own_scores(tmp_path, TEXTS, template)
    near = pytest.approx(expected, abs=1e-4 * max(1.0, float(np.abs(expected).max())))
    assert np.stack(list(ptune.load(tmp_path / "places", **how).logits(TEXTS))) == near
    mixed = bank.logits([(task, text) for text in TEXTS for task in ("plain", "places")])
    assert np.stack(list(mixed)[1::2]) == near


def test_places_share_the_virtual_tokens_and_train(asked, tmp_path):
    folder, template = asked
    template = "{prompt} {text} {prompt:2} and {prompt}" + template.partition("{text}")[2]
    texts, labels = TEXTS * 4, [*LABELS, LABELS[0]] * 4
    how = {"dtype": "float32", "epochs": 2, "num_virtual_tokens": 7}
    classifier = PromptClassifier(folder, template=template, prompt="input", head="words", **how)
    classifier.fit(texts, labels)
    model = classifier.prompt_model_
    assert model.state.reading.template.pattern.startswith(
        "{prompt:3} {text} {prompt:2} and {prompt:2}"
    )
    encoded, _ = ptune.texts.encode(
        classifier.tokenizer_,
        [["parcel \ue000 phone"]],
        None,
        template=model.state.reading.template,
    )
    ids = encoded["input_ids"][0]
    runs = [len(list(own)) for id_, own in itertools.groupby(ids) if id_ == ptune.texts.VIRTUAL]
    assert runs == [3, 2, 2]
    prompt = model.prompt_embeddings()
    assert len(prompt) == 7
    assert len(torch.unique(prompt, dim=0)) == 7
    classifier.save(tmp_path / "run")
    again = ptune.load(tmp_path / "run", dtype="float32", device="cpu")
    assert np.stack(list(again.logits(texts))) == pytest.approx(
        np.stack(list(classifier.logits(texts))), abs=1e-5
    )


def test_a_template_with_places_is_cut_like_others_and_asks_in_a_chat(decoder):
    tokenizer = load_tokenizer(decoder)
    tokenizer.chat_template = "<{% for m in messages %}{{ m['content'] }}{% endfor %}> I"
    template = Template("chat:read {prompt:4} {text} {prompt:1}the label")
    encoded, cut = ptune.texts.encode(tokenizer, [["parcel " * 50]], 20, template=template)
    ids = encoded["input_ids"][0]
    assert cut == [0]
    assert len(ids) <= 20
    around = tokenizer.decode([id_ for id_ in ids if id_ != ptune.texts.VIRTUAL])
    assert "read parcel" in " ".join(around.split())
    assert ids.count(ptune.texts.VIRTUAL) == 5


def test_places_and_prompts_belong_together(decoder):
    """Without the prompt, its places are no tokens."""
    tokenizer, how = load_tokenizer(decoder), {"dtype": "float32", "device": "cpu"}
    template = Template("read {prompt:1} {text} {prompt:2}")
    encoded, _ = ptune.texts.encode(tokenizer, [TEXTS], None, template=template)
    batch = tokenizer.pad(encoded, return_tensors="pt")
    zero_shot = PromptClassifier.zero_shot(LABELS, model=decoder, template="read {text} so", **how)
    model = zero_shot.prompt_model_
    plain = tokenizer(["read " + text for text in TEXTS], padding=True, return_tensors="pt")
    with torch.no_grad():
        assert torch.allclose(model(**batch).logits, model(**plain).logits, atol=1e-6)
    prompt = PromptEncoderConfig(depth="input", placement="template", num_virtual_tokens=5)
    model.add_adapter("places", prompt)
    model.set_adapter("places")
    with refused(
        "A text has 3 places for virtual tokens (ids below 0), and its prompt has 5. Tokenise "
        "texts with the classifier's template (ptune.texts.encode)."
    ):
        model(**batch)
    with refused(
        "placement is 'template', but no template has a place for the prompt. Add one, such as "
        "'{prompt:3} {text} {prompt:3}', or leave placement out."
    ):
        PromptClassifier(decoder, placement="template", prompt="input", head="linear").fit(
            ["a", "b"], LABELS
        )
    with refused("placement is 'template' and depth is 'deep'; only an input prompt has …"):
        PromptEncoderConfig(placement="template")


@pytest.mark.parametrize("head", ["linear", "features", None])
def test_other_heads_read_at_the_mask_too(tmp_path, head):
    language_model("BERT", tmp_path)
    classifier = PromptClassifier(
        str(tmp_path), template=GAP, head=head, dtype="float32", epochs=1, batch_size=2
    ).fit(TEXTS, ["parcel", "money", "parcel"])
    classifier.save(tmp_path / "adapter")
    again = ptune.load(tmp_path / "adapter", dtype="float32")
    assert again.prompt_model_.architecture.mask_token is not None
    found, expected = (np.stack(list(c.logits(TEXTS))) for c in (again, classifier))
    assert found == pytest.approx(expected, abs=1e-5)


def test_a_masked_classifier_never_computes_the_vocabulary(tmp_path):
    tokenizer = language_model("BERT", tmp_path)
    classifier = PromptClassifier.zero_shot(
        LABELS, model=str(tmp_path), template=GAP, dtype="float32", device="cpu"
    )
    model = classifier.prompt_model_
    largest = []
    for module in model.backbone.modules():
        module.register_forward_hook(
            lambda module, _, output: largest.extend(
                o.shape[-1] for o in [output] if isinstance(o, torch.Tensor)
            )
        )
    classifier.predict(TEXTS)
    assert largest[-1] == len(LABELS)
    assert max(largest) < len(tokenizer)
    stored = model.to_adapter().tensors()
    assert max(max(t.shape) for t in stored.values()) < len(tokenizer)


def test_the_model_card_does_not_offer_it_to_peft(zero_shot, tmp_path):
    zero_shot.save(tmp_path)
    assert "peft" not in str(model_card(tmp_path, "someone/mood")).lower()


def test_a_bank_mixes_tasks_at_the_mask_and_others(tmp_path):
    language_model("BERT", tmp_path / "backbone")
    folder = str(tmp_path / "backbone")
    how = {"dtype": "float32", "device": "cpu"}
    gap = PromptClassifier.zero_shot(LABELS, model=folder, template=GAP, **how)
    gap.save(tmp_path / "tasks" / "gap")
    torch.manual_seed(1)
    linear = PromptModel(load_backbone(folder, labels=["a", "b", "c"], dtype="float32"))
    linear.save_pretrained(tmp_path / "tasks" / "linear")
    bank = PromptBank.from_folder(tmp_path / "tasks", **how)
    assert not bank.refused
    requests = [(task, text) for text in TEXTS for task in ("gap", "linear")]
    found = bank.logits(requests)
    for task in ("gap", "linear"):
        own = ptune.load(tmp_path / "tasks" / task, **how)
        expected = np.stack(list(own.logits(TEXTS)))
        mine = [f for f, (name, _) in zip(found, requests, strict=True) if name == task]
        assert np.stack(mine) == pytest.approx(expected, abs=1e-5)
    weights = {p.data_ptr() for p in bank._mask_host.backbone.base_model.parameters()}
    shared = {p.data_ptr() for p in bank.backbone.base_model.parameters()}
    assert weights <= shared, "both backbones should use the same memory"


@pytest.mark.parametrize("prompt", ["deep", "input"])
@pytest.mark.parametrize("name", ["Qwen 2", *WITH_BOS])
def test_a_prompt_starts_as_the_soft_words(tmp_path, name, prompt):
    language_model(name, tmp_path)
    settings = TrainSettings(
        model=str(tmp_path), template=ASKED, head="words", prompt=prompt, dtype="float32"
    )
    model, *_ = zero_shot_model(settings, Labels(tuple(LABELS)), pairs=False, calibrate=False)
    assert model.prompt_config.num_virtual_tokens > 3
    rest = " {text} the label is"
    replaced = "{prompt}" if prompt == "deep" and name in WITH_BOS else ""
    assert model.state.reading.template == Template(replaced + rest)
    model.to_adapter().save(tmp_path / "adapter")
    started = ptune.load(tmp_path / "adapter", dtype="float32", device="cpu")
    bank = PromptBank(str(tmp_path), dtype="float32", device="cpu")
    bank.add("a", tmp_path / "adapter")
    expected = own_scores(tmp_path, TEXTS)
    for found in (started.logits(TEXTS), bank.logits([("a", text) for text in TEXTS])):
        near = pytest.approx(expected, abs=1e-4 * max(1.0, float(np.abs(expected).max())))
        assert np.stack(list(found)) == near


@pytest.mark.parametrize(("name", "before"), [("Qwen 2", ""), ("Falcon", ""), ("Llama", "I ask: ")])
def test_a_reader_starts_as_the_soft_words_after_the_text(tmp_path, name, before):
    """With nothing before the text, it is read as for tasks without a template."""
    language_model(name, tmp_path)
    template = before + "{text}{soft: the label is}"
    settings = TrainSettings(
        model=str(tmp_path), template=template, head="words", prompt="reader", dtype="float32"
    )
    model, *_ = zero_shot_model(settings, Labels(tuple(LABELS)), pairs=False, calibrate=False)
    assert model.state.reading.template == (Template(before + "{text}") if before else None)
    model.to_adapter().save(tmp_path / "adapter")
    started = ptune.load(tmp_path / "adapter", dtype="float32", device="cpu")
    expected = own_scores(tmp_path, TEXTS, template)
    near = pytest.approx(expected, abs=1e-4 * max(1.0, float(np.abs(expected).max())))
    assert np.stack(list(started.logits(TEXTS))) == near


@pytest.mark.parametrize(
    ("prompt", "template", "place", "where"),
    [
        ("deep", "{text}{soft: so}", "{soft: so}", "at the start: {soft:words} or {prompt}"),
        ("deep", "{text} {prompt:5}", "{prompt:5}", "at the start: {soft:words} or {prompt}"),
        ("deep", "{soft:so} {text} {prompt}", "{prompt}", "at the start: {soft:words} or …"),
        ("reader", "{prompt} {text}", "{prompt}", "at the end: {soft:words}"),
    ],
)
def test_a_deep_prompt_and_a_reader_have_one_place(tmp_path, prompt, template, place, where):
    language_model("Qwen 2", tmp_path)
    classifier = PromptClassifier(str(tmp_path), template=template, head="words", prompt=prompt)
    with refused(
        f"The template {template!r} has {place}, and the only place of a {prompt} prompt is "
        f"{where}. Use prompt='input', or plain words."
    ):
        classifier.fit(TEXTS, [*LABELS, LABELS[0]])


def test_calibration_gives_texts_without_content_equal_scores(asked, zero_shot):
    folder, template = asked
    classifier = PromptClassifier.zero_shot(
        LABELS, model=folder, template=template, dtype="float32", device="cpu"
    )
    empty = ["N/A", "…", "This is a text.", "Hello.", "It is what it is."]
    gaps = [np.ptp(np.stack(list(c.logits(empty))).mean(0)) for c in (classifier, zero_shot)]
    assert gaps[0] < 0.3 * gaps[1]


def test_it_is_the_same_after_saving_in_a_bank_and_as_onnx(zero_shot, tmp_path):
    expected = np.stack(list(zero_shot.logits(TEXTS)))
    zero_shot.save(tmp_path / "adapter")
    info = json.loads((tmp_path / "adapter" / "ptune.json").read_text())
    mask = ["mask"] if zero_shot.template == GAP else []
    assert (info["mechanism"], info["requires"]) == ("none", ["template", "no_prompt", *mask])
    loaded = ptune.load(tmp_path / "adapter", dtype="float32", device="cpu")
    assert np.stack(list(loaded.logits(TEXTS))) == pytest.approx(expected, abs=1e-5)
    bank = PromptBank(zero_shot.model, dtype="float32", device="cpu")
    bank.add("a", tmp_path / "adapter")
    found = bank.logits([("a", text) for text in TEXTS])
    assert np.stack(found) == pytest.approx(expected, abs=1e-5)
    export_onnx(tmp_path / "adapter", tmp_path / "onnx")
    exported = ptune.load_exported(tmp_path / "onnx")
    assert np.stack(list(exported.logits(TEXTS))) == pytest.approx(expected, abs=1e-4)


def test_fit_continues_from_the_question(zero_shot):
    classifier = zero_shot.set_params(epochs=1, batch_size=2)
    labels = ["parcel", "money", "parcel"]
    classifier.fit(TEXTS, labels)
    assert classifier.prompt_model_.prompt_config.depth == "deep"
    assert classifier.template in (ASKED, GAP)
    assert list(classifier.predict(TEXTS[:1])) <= LABELS


def test_a_loaded_classifier_is_trained_with_its_template(zero_shot, tmp_path):
    """`fit` after `load` asks as before: also where nothing was trained yet."""
    labels = ["parcel", "money", "parcel"]
    for place in (tmp_path / "zero-shot", tmp_path / "trained"):
        zero_shot.save(place)
        loaded = ptune.load(place, dtype="float32", device="cpu")
        expected = zero_shot.prompt_model_.state.reading.template
        loaded.set_params(epochs=1, batch_size=2).fit(TEXTS, labels)
        assert loaded.prompt_model_.state.reading.template == expected
        depth = zero_shot.prompt_model_.prompt_config.depth
        assert loaded.prompt_model_.prompt_config.depth == depth
        zero_shot.set_params(epochs=1, batch_size=2).fit(TEXTS, labels)


def test_a_template_without_its_prompt_or_with_nothing_around_the_text(asked):
    """Without a prompt, its places are no tokens; and an empty text can be no token at all."""
    folder, template = asked
    how = {"model": folder, "dtype": "float32", "device": "cpu"}
    template = template.removeprefix("{soft:is the text parcel or money} ")
    found = PromptClassifier.zero_shot(LABELS, template="{prompt:3} " + template, **how)
    expected = PromptClassifier.zero_shot(LABELS, template=template, **how)
    np.testing.assert_array_equal(found.predict_proba(TEXTS), expected.predict_proba(TEXTS))
    if template != GAP:
        bare = PromptClassifier.zero_shot(LABELS, template="{text}", **how)
        assert bare.predict_proba(TEXTS).shape == (3, 2)


def test_settings_of_a_zero_shot_classifier_are_those_of_its_training(asked):
    folder, template = asked
    classifier = PromptClassifier.zero_shot(
        LABELS, model=folder, template=template, head="words-frozen", prompt="input"
    )
    assert (classifier.head, classifier.prompt) == ("words-frozen", "input")
    with refused("labels is None; pass a list of labels."):
        PromptClassifier.zero_shot(None)
    with refused(
        "label_words is ['great']; pass words by label, such as {'positive': ['good', 'great']}."
    ):
        PromptClassifier.zero_shot(LABELS, label_words=["great"])


def test_a_frozen_head_stays_the_language_models_rows(asked):
    folder, template = asked
    classifier = PromptClassifier(
        folder, head="words-frozen", template=template, dtype="float32", epochs=2, batch_size=1
    ).fit(TEXTS, ["parcel", "money", "parcel"])
    model = classifier.prompt_model_
    again, *_ = zero_shot_model(
        TrainSettings(model=folder, template=template, head="words", dtype="float32"),
        classifier.labels_,
        pairs=False,
    )
    expected = dict(again.head_parameters())
    assert all(torch.equal(own, expected[name]) for name, own in model.head_parameters())
    assert not torch.equal(model.prompt_encoder(), again.prompt_encoder())
    with refused(
        "head is 'words-frozen' and prompt is 'none', so nothing would train. Use head='words', or "
        "another prompt."
    ):
        PromptClassifier(folder, head="words-frozen", prompt="none").fit(TEXTS, LABELS + LABELS[:1])


def test_a_template_cuts_the_text_and_never_itself(decoder):
    tokenizer = load_tokenizer(decoder)
    template = Template("read {text} the label is")
    whole, _ = ptune.texts.encode(tokenizer, [["parcel " * 50]], None, template=template)
    encoded, cut = ptune.texts.encode(tokenizer, [["parcel " * 50]], 20, template=template)
    ids = encoded["input_ids"][0]
    assert cut == [0]
    assert 10 < len(ids) <= 20
    end = tokenizer(" the label is", add_special_tokens=False)["input_ids"]
    assert ids[-len(end) :] == whole["input_ids"][0][-len(end) :]
    with refused(
        "The template 'read {text} the label is' alone has … tokens, and only 3 fit. Shorten it, "
        "or raise max_length."
    ):
        ptune.texts.encode(tokenizer, [["parcel"]], 3, template=template)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("no place", "The template 'no place' has {text} 0 times; expected once."),
        ("{text} {text}", "The template '{text} {text}' has {text} 2 times; expected once."),
        (
            "{text} {label}",
            "The template has the place '{label}'; expected {text}, …",
        ),
        (
            "{prompt:0} {text}",
            "The template has the place '{prompt:0}'; expected {text}, …",
        ),
    ],
)
def test_a_malformed_template_is_refused(pattern, message):
    with refused(message):
        Template(pattern)


@pytest.mark.parametrize(
    ("labels", "pairs", "masked", "template", "words"),
    [
        (
            ["negative", "positive"],
            False,
            False,
            "{soft:Is the text positive or negative?\nText:} {text} Sentiment:",
            None,
        ),
        (
            ["negative", "positive"],
            False,
            True,
            "{text} It was {mask}.",
            {"negative": "terrible", "positive": "great"},
        ),
        (
            ["entailment", "neutral", "contradiction"],
            True,
            True,
            "{text} ? {mask}, {text_pair}",
            {"entailment": "Yes", "neutral": "Maybe", "contradiction": "No"},
        ),
        (
            ["not_entailment", "entailment"],
            True,
            False,
            "{soft:Does the second text follow from the first? Answer No or Yes.\nFirst text:} "
            "{text}\nSecond text: {text_pair}\nAnswer:",
            {"not_entailment": "No", "entailment": "Yes"},
        ),
        (
            ["1 star", "5 stars"],
            False,
            False,
            "{soft:Is the review terrible or great?\nReview:} {text}\nRating:",
            {"1 star": "terrible", "5 stars": "great"},
        ),
        (["refund", "delivery"], False, True, "{text} It is about {mask}.", None),
        (
            ["refund", "delivery"],
            False,
            False,
            "{soft:Classify the text as refund or delivery.\nText:} {text}\nLabel:",
            None,
        ),
        # Two labels with one word: nothing could tell them apart.
        (["no", "false"], False, True, "{text} It is about {mask}.", None),
    ],
)
def test_common_labels_bring_a_template_and_words(labels, pairs, masked, template, words):
    asked = default_question(labels, pairs=pairs, place="gap" if masked else "before")
    assert (asked.template, asked.words) == (template, words)
    assert Template(asked.template).takes_pairs is pairs


@pytest.mark.parametrize(
    ("labels", "pairs", "template"),
    [
        (["negative", "positive"], False, "{text}{soft: Sentiment:}"),
        (["yes", "no"], False, "{text}{soft:\nIs this true? Answer:}"),
        (["1", "2", "3", "4", "5"], False, "{text}{soft:\nRating:}"),
        (["refund", "delivery"], False, "{text}{soft:\nThis text is about}"),
        (
            ["refund", "delivery"],
            True,
            "First text: {text}\nSecond text: {text_pair}{soft:\nLabel:}",
        ),
    ],
)
def test_a_reader_is_asked_after_the_text(labels, pairs, template):
    asked = default_question(labels, pairs=pairs, place="after")
    assert asked.template == template
    assert Template(template).soft_at_end
    assert asked.words == default_question(labels, pairs=pairs).words


@pytest.mark.parametrize("task", [name for name, spec in GLUE.items() if spec.labels])
def test_every_glue_task_has_a_question(task):
    spec = GLUE[task]
    for masked in (False, True):
        place = "gap" if masked else "before"
        asked = default_question(
            spec.labels, pairs=len(spec.columns) == 2, place=place, question=spec.question
        )
        assert Template(asked.template).has_mask is masked
        assert asked.words or task == "sst2"
        if not masked and asked.words:
            assert spec.question[1:] in asked.template


def test_the_default_question_is_kept_for_fit_and_shown_before_training(tmp_path):
    language_model("RoBERTa", tmp_path / "backbone")
    model, words = str(tmp_path / "backbone"), {"negative": "terrible", "positive": "great"}
    classifier = PromptClassifier.zero_shot(list(words), model=model, dtype="float32", device="cpu")
    assert classifier.template == "{text} It was {mask}."
    assert json.loads(classifier.label_words) == words
    file = tmp_path / "train.csv"
    file.write_text("text,label\n" + "fine,positive\nbad,negative\n" * 4)
    shown = []

    def show(summary):
        shown.append(summary.lines())
        raise InterruptedError

    with pytest.raises(InterruptedError):
        train_run(
            TrainSettings(model=model, train_file=str(file), head="words", dtype="float32"),
            tmp_path / "run",
            show=show,
        )
    assert shown[0]["template"] == "{text} It was {mask}."
    assert json.loads(shown[0]["words"]) == words


def test_words_may_be_given_in_three_ways(tmp_path):
    expected = {"a": ["good", "great"], "b": ["b"]}
    file = tmp_path / "words.json"
    file.write_text(json.dumps({"a": ["good", "great"]}))
    for given in ({"a": ["good", "great"]}, "a=good|great", str(file)):
        assert parse_words(given, ["a", "b"]) == expected
    with refused(
        "There are words for the label 'c', but the labels are a, b. Leave its words out "
        "(label_words)."
    ):
        parse_words({"c": "x"}, ["a", "b"])
    for words, wrong in ((3, 3), (None, None), (["x", 3], 3)):
        with refused(
            f"The label 'a' has the words {wrong}; expected a string or a list of strings."
        ):
            parse_words({"a": words}, ["a", "b"])


def test_a_label_that_is_named_twice_is_refused():
    with refused(
        "The label words name 'a' twice. Write all its words at once, as a=good|great|fine."
    ):
        parse_words("a=good|great, a=fine,b=bad", ["a", "b"])


def test_label_words_for_another_head_are_refused(decoder):
    how = {"label_words": "parcel=box", "dtype": "float32", "epochs": 1}
    message = (
        "There are label words, and the head starts as 'linear', which does not use them. Add "
        "head='words' (--head words) on a language model, or leave them out."
    )
    with refused(message):
        PromptClassifier(decoder, head="linear", **how).fit(TEXTS, ["parcel", "money", "parcel"])
    own = PromptClassifier.zero_shot(
        LABELS, model=decoder, head="linear", label_words=how["label_words"], dtype="float32"
    )
    assert own.label_words is None


def test_a_template_for_pairs_makes_a_classifier_of_pairs(decoder, recwarn):
    how = {"model": decoder, "dtype": "float32", "device": "cpu"}
    template = "{text} or {text_pair} so"
    classifier = PromptClassifier.zero_shot(LABELS, template=template, **how)
    assert classifier.prompt_model_.state.reading.pairs
    classifier.predict([("parcel", "money")])
    assert not [w for w in recwarn if "trained on single texts" in str(w.message)]
    with refused(
        "The template 'read {text} so' has {text} alone, but the texts are pairs. Add {text_pair} "
        "where the second text belongs."
    ):
        PromptClassifier.zero_shot(LABELS, template="read {text} so", pairs=True, **how)


def test_the_first_token_that_tells_the_labels_apart_stands_for_a_label(decoder):
    tokenizer = load_tokenizer(decoder)
    words = {"a": ["the parcel"], "b": ["the money"]}
    found = token_of_each(tokenizer, words, spaced=True)
    spelled = [tokenizer.decode(own[0]).strip() for own in found]
    assert spelled[0] != spelled[1]


def test_words_that_examples_find_are_likelier_after_texts_of_their_label(asked):
    texts = [*TEXTS, "money today", "where is it", "send it back"]
    labels = [0, 1, 0, 1, 0, 1]
    folder, pattern = asked
    template = Template(pattern)
    auto = AutoModelForMaskedLM if template.has_mask else AutoModelForCausalLM
    model, tokenizer = auto.from_pretrained(folder).eval(), load_tokenizer(folder)
    found = Asked(model, tokenizer, template).words_from_examples([texts], labels, LABELS)
    assert list(found) == LABELS
    assert not set(found["parcel"]) & set(found["money"])
    for label, own in enumerate(found.values()):
        assert 1 <= len(own) <= 3
        for word in own:
            [token] = tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
            after = [[], []]
            filled = template.fill([texts], tokenizer.mask_token or "")
            for text, which in zip(filled, labels, strict=True):
                ids = tokenizer(text)["input_ids"]
                at = ids.index(tokenizer.mask_token_id) if template.has_mask else -1
                with torch.no_grad():
                    logits = model(input_ids=torch.tensor([ids])).logits
                scores = logits[0, at].log_softmax(0)
                after[which].append(float(scores[token]))
            assert np.mean(after[label]) > np.mean(after[1 - label])


def test_words_are_found_in_the_training_examples(decoder, caplog):
    how = {"head": "words", "label_words": "auto", "template": ASKED, "dtype": "float32"}
    classifier = PromptClassifier(decoder, epochs=1, batch_size=2, **how)
    classifier.fit(TEXTS, ["parcel", "money", "parcel"])
    assert set(classifier.predict(TEXTS)) <= set(LABELS)
    assert "The label words are money: " in caplog.text
    with refused(
        "label_words is 'auto', but there are no training examples. Name the words, or leave "
        "label_words out."
    ):
        PromptClassifier.zero_shot(LABELS, model=decoder, label_words="auto")


def test_models_that_cannot_be_asked_are_refused(tmp_path, decoder):
    for name in ("BERT", "T5"):
        tokenizer = build_tokenizer(ARCHITECTURES[name], TEXTS * 20)
        if name == "BERT":
            tokenizer.add_special_tokens({"mask_token": "[MASK]"})
        for part in (tokenizer, build_model(ARCHITECTURES[name], tokenizer)):
            part.save_pretrained(tmp_path / name)
    language_model("RoBERTa", tmp_path / "RoBERTa")

    def ask(name, **settings):
        PromptClassifier.zero_shot(LABELS, model=str(tmp_path / name), **settings)

    with refused(
        "… was trained neither to continue texts nor to fill gaps in them, so it cannot be asked "
        "for a label. Use a causal or masked language model, such as smollm2 or roberta-base, or "
        "head='linear'."
    ):
        ask("T5")
    with refused(
        "The checkpoint … has no masked-language-model head (cls.predictions.… is missing), so it "
        "cannot fill a gap. Choose a pretrained masked language model, such as roberta-base, or a "
        "template without {mask}."
    ):
        ask("BERT")
    with refused(
        "… fills gaps, and the template '{text} is' has no {mask}. Add it where the label word "
        "should be, such as '{text} It was {mask}.'."
    ):
        ask("RoBERTa", template="{text} is")
    with refused(
        "The template '{text} is {mask}' has {mask}, and … was not trained to fill gaps. End the "
        "template with the question instead."
    ):
        ask(decoder, template="{text} is {mask}")


def test_prompts_that_do_not_read_at_the_mask_are_refused(tmp_path):
    language_model("BERT", tmp_path)
    how = {"template": GAP, "head": "words", "dtype": "float32"}
    for prompt, message in (
        (
            {"prompt": "reader"},
            "The template has {mask}, where the head reads the text, and a reader reads after it. "
            "Use a deep or an input prompt, or a template without {mask}.",
        ),
        (
            {"pooling": "mean"},
            "The template has {mask}, where the head reads, and pooling is 'mean'. Use "
            "'architecture', or a template without {mask}.",
        ),
    ):
        with refused(message):
            PromptClassifier(str(tmp_path), **how, **prompt).fit(TEXTS, LABELS + LABELS[:1])
    model = PromptModel(load_backbone(str(tmp_path), dtype="float32", at_mask=True))
    ids = torch.tensor([[2, 5, 6, 3]])
    with refused(
        "A text has no mask token (id …), and this classifier answers there. Tokenise texts with "
        "its template (ptune.texts.encode)."
    ):
        model(input_ids=ids)
    with refused(
        "BertForMaskedLM looks for the id of the mask token. Give input_ids instead of "
        "inputs_embeds."
    ):
        model(inputs_embeds=torch.zeros(1, 4, 32))


def test_a_text_may_spell_the_mask_token(asked, zero_shot):
    if zero_shot.template == GAP:
        mask = zero_shot.tokenizer_.mask_token
        spelled, plain = (f"where is {mask} my parcel", "where is   my parcel")
        found = np.stack(list(zero_shot.logits([spelled, plain])))
        assert found[0] == pytest.approx(found[1], abs=1e-5)


def test_models_whose_scores_are_not_rows_of_the_head_are_refused(tmp_path):
    language_model("Gemma 2", tmp_path / "capped")
    with refused(
        "Gemma2ForCausalLM caps its scores (final_logit_softcapping is 30), and a head is linear, "
        "so its probabilities would not be the language model's. Use head='linear'."
    ):
        PromptClassifier.zero_shot(LABELS, model=str(tmp_path / "capped"), dtype="float32")
    language_model("GPT-J", tmp_path / "biased")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "biased")
    nn.init.normal_(model.get_output_embeddings().bias)
    model.save_pretrained(tmp_path / "biased")
    with refused(
        "The scores of GPTJForCausalLM are not those of its head alone (it has a bias, or scales "
        "them), so its rows cannot start a head. Use head='linear'."
    ):
        PromptClassifier.zero_shot(LABELS, model=str(tmp_path / "biased"), dtype="float32")


@pytest.mark.parametrize("given", ["a=fine|good,b=good|fine", "a=US,b=us", "a=😀,b=😞"])
def test_labels_whose_words_are_the_same_tokens_are_noted(given):
    words = parse_words(given, ["a", "b"])
    with pytest.warns(UserWarning, match="'a' and 'b' are the same tokens"):
        token_of_each(load_tokenizer("minilm"), words, spaced=False)
