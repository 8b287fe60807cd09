"""Templates and label words: a classifier that starts as a language model's own answer."""

import json

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, build_model, build_tokenizer
from conftest import refused
from transformers import AutoModelForCausalLM

import ptune
from ptune import PromptBank, PromptClassifier
from ptune.export.onnx import export_onnx
from ptune.labels import Labels
from ptune.prompts.words import parse_words, token_of_each, words_from_examples
from ptune.texts import Template
from ptune.training.run import zero_shot_model
from ptune.training.settings import TrainSettings

CAUSAL = [
    "GPT-2", "GPT-Neo", "GPT-J", "GPT-NeoX", "OPT", "OPT (projected)", "BLOOM", "Falcon", "Llama",
    "Mistral", "Gemma", "Gemma 3", "Phi", "Qwen 2", "Qwen 3",
]  # fmt: skip
WITH_BOS = ["OPT", "Llama", "Gemma"]
LABELS = ["parcel", "money"]
TEXTS = ["where is my parcel", "please send my money back today", "parcel"]
ASKED = "{soft:is the text parcel or money} {text} the label is"


def language_model(name, folder):
    """A small language model with random weights, in a folder. Returns its tokenizer."""
    architecture = ARCHITECTURES[name]
    tokenizer = build_tokenizer(architecture, [*TEXTS, ASKED] * 20)
    config = build_model(architecture, tokenizer).config
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("decoder")
    language_model("Qwen 2", folder)
    return str(folder)


@pytest.fixture(scope="module")
def zero_shot(decoder):
    return PromptClassifier.zero_shot(
        LABELS, model=decoder, template=ASKED, dtype="float32", device="cpu", calibrate=False
    )


def own_scores(folder, texts):
    """The language model's scores of the label words after each text, one text at a time."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = ptune.backbones.loading.load_tokenizer(str(folder))
    words = [tokenizer(f" {label}", add_special_tokens=False)["input_ids"][0] for label in LABELS]
    filled = Template(ASKED).fill([texts])
    with torch.no_grad():
        ids = [torch.tensor([tokenizer(text)["input_ids"]]) for text in filled]
        return torch.stack([model(input_ids=i).logits[0, -1, words] for i in ids]).numpy()


@pytest.mark.parametrize("name", CAUSAL)
def test_logits_without_training_are_the_language_models(name, tmp_path):
    language_model(name, tmp_path)
    classifier = PromptClassifier.zero_shot(
        LABELS, model=str(tmp_path), template=ASKED, dtype="float32", device="cpu", calibrate=False
    )
    found = np.stack(list(classifier.logits(TEXTS)))
    expected = own_scores(tmp_path, TEXTS)
    assert found == pytest.approx(expected, abs=1e-5 * max(1.0, float(np.abs(expected).max())))


@pytest.mark.parametrize("prompt", ["deep", "input"])
@pytest.mark.parametrize("name", ["Qwen 2", *WITH_BOS])
def test_a_prompt_starts_as_the_soft_words(tmp_path, name, prompt):
    language_model(name, tmp_path)
    settings = TrainSettings(
        model=str(tmp_path), template=ASKED, head="words", prompt=prompt, dtype="float32"
    )
    model, _ = zero_shot_model(settings, Labels(tuple(LABELS)), pairs=False, calibrate=False)
    assert model.prompt_config.num_virtual_tokens > 3
    rest = " {text} the label is"
    replaced = "{prompt}" if prompt == "deep" and name in WITH_BOS else ""
    assert model.state.template == Template(replaced + rest)
    model.to_adapter().save(tmp_path / "adapter")
    started = ptune.load(tmp_path / "adapter", dtype="float32", device="cpu")
    bank = PromptBank(str(tmp_path), dtype="float32", device="cpu")
    bank.add("a", tmp_path / "adapter")
    expected = own_scores(tmp_path, TEXTS)
    for found in (started.logits(TEXTS), bank.logits([("a", text) for text in TEXTS])):
        near = pytest.approx(expected, abs=1e-4 * max(1.0, float(np.abs(expected).max())))
        assert np.stack(list(found)) == near


def test_calibration_gives_texts_without_content_equal_scores(decoder):
    classifier = PromptClassifier.zero_shot(
        LABELS, model=decoder, template=ASKED, dtype="float32", device="cpu"
    )
    raw = PromptClassifier.zero_shot(
        LABELS, model=decoder, template=ASKED, dtype="float32", device="cpu", calibrate=False
    )
    empty = ["N/A", "[MASK]", "…"]
    gaps = [np.ptp(np.stack(list(c.logits(empty))).mean(0)) for c in (classifier, raw)]
    assert gaps[0] < 0.3 * gaps[1]


def test_it_is_the_same_after_saving_in_a_bank_and_as_onnx(zero_shot, tmp_path):
    expected = np.stack(list(zero_shot.logits(TEXTS)))
    zero_shot.save(tmp_path / "adapter")
    info = json.loads((tmp_path / "adapter" / "ptune.json").read_text())
    assert (info["mechanism"], info["requires"]) == ("none", ["template", "no_prompt"])
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
    assert classifier.template == ASKED
    assert list(classifier.predict(TEXTS[:1])) <= LABELS


def test_a_frozen_head_stays_the_language_models_rows(decoder):
    classifier = PromptClassifier(
        decoder, head="words-frozen", template=ASKED, dtype="float32", epochs=2, batch_size=1
    ).fit(TEXTS, ["parcel", "money", "parcel"])
    model = classifier.prompt_model_
    [(_, rows)] = model.head_parameters()
    again, _ = zero_shot_model(
        TrainSettings(model=decoder, template=ASKED, head="words", dtype="float32"),
        classifier.labels_,
        pairs=False,
    )
    [(_, expected)] = again.head_parameters()
    assert torch.equal(rows, expected)
    assert not torch.equal(model.prompt_encoder(), again.prompt_encoder())
    with refused(
        "head is 'words-frozen' and prompt is 'none', so nothing would train. Use head='words', or "
        "another prompt."
    ):
        PromptClassifier(decoder, head="words-frozen", prompt="none").fit(
            TEXTS, LABELS + LABELS[:1]
        )


def test_a_template_cuts_the_text_and_never_itself(decoder):
    tokenizer = ptune.backbones.loading.load_tokenizer(decoder)
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
        ("{text} {soft:a}", "The template … has {soft:…} after its start; …"),
        ("{soft:a}{soft:b} {text}", "The template … has {soft:…} after its start; …"),
        (
            "{text} {prompt}",
            "The template … has {prompt} after its start; a prompt comes before the text.",
        ),
    ],
)
def test_a_malformed_template_is_refused(pattern, message):
    with refused(message):
        Template(pattern)


def test_words_may_be_given_in_three_ways(tmp_path):
    expected = {"a": ["good", "great"], "b": ["b"]}
    file = tmp_path / "words.json"
    file.write_text(json.dumps({"a": ["good", "great"]}))
    for given in ({"a": ["good", "great"]}, "a=good|great", str(file)):
        assert parse_words(given, ["a", "b"]) == expected
    with refused("There are words for the label 'c', but the labels are a, b."):
        parse_words({"c": "x"}, ["a", "b"])


def test_the_first_token_that_tells_the_labels_apart_stands_for_a_label(decoder):
    tokenizer = ptune.backbones.loading.load_tokenizer(decoder)
    words = {"a": ["the parcel"], "b": ["the money"]}
    found = token_of_each(tokenizer, words, spaced=True)
    spelled = [tokenizer.decode(own[0]).strip() for own in found]
    assert spelled[0] != spelled[1]


def test_words_that_examples_find_are_likelier_after_texts_of_their_label(decoder):
    texts = [*TEXTS, "money today", "where is it", "send it back"]
    labels = [0, 1, 0, 1, 0, 1]
    model = AutoModelForCausalLM.from_pretrained(decoder).eval()
    tokenizer = ptune.backbones.loading.load_tokenizer(decoder)
    found = words_from_examples(model, tokenizer, Template(ASKED), [texts], labels, LABELS)
    assert list(found) == LABELS
    assert not set(found["parcel"]) & set(found["money"])
    for label, own in enumerate(found.values()):
        assert 1 <= len(own) <= 3
        for word in own:
            [token] = tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
            after = [[], []]
            for text, which in zip(Template(ASKED).fill([texts]), labels, strict=True):
                ids = torch.tensor([tokenizer(text)["input_ids"]])
                with torch.no_grad():
                    scores = model(input_ids=ids).logits[0, -1].log_softmax(0)
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


@pytest.mark.parametrize("name", ["BERT", "ModernBERT", "T5"])
def test_backbones_that_do_not_continue_texts_are_refused(tmp_path, name):
    folder = str(tmp_path / "backbone")
    tokenizer = build_tokenizer(ARCHITECTURES[name], TEXTS * 20)
    for part in (tokenizer, build_model(ARCHITECTURES[name], tokenizer)):
        part.save_pretrained(folder)
    with refused(
        "… was not trained to continue texts, so it cannot be asked for a label. Use a causal "
        "language model, such as smollm2 or gpt2, or head='linear'."
    ):
        PromptClassifier.zero_shot(LABELS, model=folder)


def test_backbones_whose_scores_are_not_rows_of_the_head_are_refused(tmp_path):
    language_model("Gemma 2", tmp_path)
    with refused(
        "The scores of Gemma2ForCausalLM are not those of its head alone (it has a bias, or scales "
        "or caps them), so its rows cannot start a head. Use head='linear'."
    ):
        PromptClassifier.zero_shot(LABELS, model=str(tmp_path), dtype="float32")
