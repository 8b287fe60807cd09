"""What is chosen if the settings leave it open."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES, build_model, build_tokenizer
from conftest import SENTENCES, build, call, refused, train_tokenizer
from transformers import AutoModelForCausalLM

import ptune
from ptune import TrainSettings
from ptune.adapters.adapter import Adapter
from ptune.data.dataset import TaskData
from ptune.training.defaults import PROMPT_RATES, Situation, choose, question
from ptune.training.run import trained_in_memory
from ptune.training.start import resolve


@pytest.mark.parametrize(
    ("texts", "y", "expected"),
    [
        ([["a", "b"]], ["good", "very_bad"], "Classify the text. Is it good or very bad? Answer:"),
        ([["a", "b"], ["c", "d"]], ["x", "y"], "Classify the texts. Is it x or y? Answer:"),
        ([["a", "b", "c"]], [0, 1, 2], "Classify the text. Answer:"),
        ([["a", "b"]], [0.5, 1.5], "Rate the text with a number. Answer:"),
        ([["a", "b", "c"]], ["p", "q", "r"], "Classify the text. Is it p, q or r? Answer:"),
    ],
    ids=["labels", "pairs", "numbers", "regression", "three"],
)
def test_the_question_has_the_label_names(texts, y, expected):
    assert question(TaskData.from_lists(texts, y)) == expected


@pytest.mark.parametrize("preset", ["fast", "default", "best"])
def test_a_preset_is_the_length_of_a_run(preset):
    chosen = choose(TrainSettings(preset=preset), Situation("encoder", "deep", 3200))
    assert chosen.epochs == {"fast": 4, "default": 8, "best": 20}[preset]
    few = choose(TrainSettings(preset=preset), Situation("encoder", "deep", 32))
    assert few.epochs == {"fast": 100, "default": 200, "best": 500}[preset]
    own = choose(TrainSettings(preset=preset, epochs=3), Situation("encoder", "deep", 32))
    assert own.epochs == 3


@pytest.mark.parametrize("preset", ["fast", "default", "best"])
@pytest.mark.parametrize(
    ("own", "of", "shorter"),
    [
        ({}, {}, True),
        ({"head": "linear"}, {}, False),
        ({"prompt": "input"}, {}, False),
        ({}, {"pairs": True}, False),
        ({}, {"single": False}, False),
        ({"prompt": "reader", "pooling": "layers"}, {}, True),
        ({"prompt": "reader"}, {}, False),
        ({"prompt": "reader", "pooling": "pairs"}, {"pairs": True}, False),
    ],
)
def test_a_prompt_with_a_head_that_knows_single_texts_learns_in_half_the_passes(
    own, of, shorter, preset
):
    own, of = TrainSettings(preset=preset, **own), {"single": True, **of}
    chosen = choose(own, Situation("encoder", own.prompt, 3200, **of))
    few = choose(own, Situation("encoder", own.prompt, 32, **of))
    usual = {"fast": (4, 100), "default": (8, 200), "best": (20, 500)}
    half = {"fast": (2, 24), "default": (4, 48), "best": (10, 96)}
    assert (chosen.epochs, few.epochs) == (half if shorter else usual)[preset]


@pytest.mark.parametrize(
    ("labels", "examples", "steps", "share"),
    [(2, 32, 48, 1 / 36), (2, 96, 48, 1 / 4), (4, 48, 48, 1 / 4), (8, 64, 48, 1), (2, 800, 200, 1)],
)
def test_few_examples_move_a_head_of_label_words_little(labels, examples, steps, share):
    situation = Situation("decoder", "deep", examples, words=True, labels=labels)
    chosen = choose(TrainSettings(), situation)
    assert chosen.head == "words"
    assert chosen.epochs == steps / math.ceil(examples / 32)
    rates = chosen.prompt_learning_rate, chosen.learning_rate
    assert rates == pytest.approx((0.02 * share, 1e-3 * share))
    given = choose(TrainSettings(learning_rate=0.5), situation)
    assert given.learning_rate == 0.5
    assert choose(TrainSettings(epochs=2), situation).prompt_learning_rate == 0.02


@pytest.mark.parametrize(
    ("backbone", "rank", "rate", "tokens"), [("encoder", 32, 5e-3, 2), ("decoder", 0, 1e-4, 8)]
)
def test_a_reader_has_rates_and_a_rank_of_its_own(backbone, rank, rate, tokens):
    chosen = choose(TrainSettings(prompt="reader"), Situation(backbone, "reader", 3200))
    assert (chosen.reader_rank, chosen.learning_rate, chosen.head) == (rank, rate, "linear")
    assert chosen.prompt_learning_rate == 1e-3
    assert (chosen.num_virtual_tokens, chosen.reader_key_rank) == (tokens, rank)
    few = choose(TrainSettings(prompt="reader"), Situation(backbone, "reader", 127))
    assert (few.num_virtual_tokens, few.reader_key_rank) == (tokens, 0)
    pairs = choose(TrainSettings(prompt="reader"), Situation(backbone, "reader", 3200, pairs=True))
    assert (pairs.num_virtual_tokens, pairs.reader_key_rank) == (8, 0)
    differences = TrainSettings(prompt="reader", pooling="pairs")
    assert choose(differences, Situation("encoder", "reader", 3200)).learning_rate == 2e-3
    no_rank = TrainSettings(prompt="reader", reader_rank=0)
    without = choose(no_rank, Situation(backbone, "reader", 3200))
    assert (without.num_virtual_tokens, without.reader_key_rank) == (8, 0)
    deep = choose(TrainSettings(), Situation(backbone, "deep", 3200))
    assert (deep.reader_rank, deep.reader_key_rank, deep.num_virtual_tokens) == (0, 0, 20)


def test_a_decoder_with_low_rank_layers_adds_no_keys():
    """Not all decoders can."""
    chosen = choose(
        TrainSettings(prompt="reader", reader_rank=4), Situation("decoder", "reader", 3200)
    )
    assert (chosen.num_virtual_tokens, chosen.reader_key_rank) == (2, 0)


def test_a_reader_of_a_decoder_shows_the_words_that_it_starts_as(
    decoder_folder, mail, tmp_path, capsys
):
    words = ["--train-file", mail, "--model", decoder_folder, "--prompt", "reader"]
    assert call("train", *words, "--epochs", "1", "--output-dir", tmp_path / "run") == 0
    lines = capsys.readouterr().out.splitlines()
    (found,) = [line for line in lines if line.startswith("Reader prompt from")]
    assert found.startswith('Reader prompt from "\\nThis text is about"; pooling: architecture')


def test_training_without_a_prompt_says_so(bert_folder, mail, tmp_path, capsys):
    words = ["--train-file", mail, "--model", bert_folder, "--prompt", "none"]
    assert call("train", *words, "--epochs", "1", "--output-dir", tmp_path / "run") == 0
    assert "No prompt; pooling: " in capsys.readouterr().out


MANY = ["yes", "no"] * 100


@pytest.mark.parametrize(
    ("y", "columns", "options", "pooling"),
    [
        (MANY, 1, {}, "layers"),
        (MANY, 1, {"prompt": "none"}, "layers"),
        (MANY, 1, {"pooling": "mean"}, "mean"),
        (MANY, 1, {"prompt": "input"}, "mean"),
        (MANY, 1, {"prompt": "reader"}, "layers"),
        (MANY, 2, {"prompt": "reader"}, "pairs"),
        (MANY, 1, {"prompt": "reader", "long_texts": "windows"}, "prompt"),
        (MANY, 1, {"long_texts": "windows"}, "mean"),
        (MANY, 1, {"loss": "pairs"}, "mean"),
        (MANY, 2, {}, "mean"),
        (MANY[:198], 1, {}, "mean"),
        ([0.5, 1.5] * 100, 1, {}, "mean"),
        ([0.5, 1.5] * 100, 1, {"prompt": "reader"}, "prompt"),
        ([["a"], ["a", "b"]] * 100, 1, {}, "mean"),
    ],
)
def test_what_the_head_reads_of_the_text_if_the_settings_leave_it_open(
    y, columns, options, pooling
):
    texts = [f"text {i}" for i in range(len(y))]
    chosen = resolve(TrainSettings(**options), TaskData.from_lists([texts] * columns, y))
    assert chosen.pooling == pooling
    if chosen.prompt != "reader":
        rate = 1e-3 / 3 if pooling == "layers" else 1e-3
        assert chosen.learning_rate == pytest.approx(rate)


def test_a_reader_that_starts_as_words_takes_larger_steps():
    situation = Situation("decoder", "reader", 3200, words=True)
    chosen = choose(TrainSettings(prompt="reader"), situation)
    assert (chosen.head, chosen.prompt_learning_rate, chosen.learning_rate) == ("words", 1e-2, 1e-3)


def test_the_page_has_the_learning_rates():
    page = (
        (Path(__file__).parents[2] / "docs" / "reference" / "defaults.md")
        .read_text("utf-8")
        .replace("<!--not-measured-->", "")
    )
    for kind in ("deep", "input"):
        encoder, decoder = (f"{PROMPT_RATES[b, kind]:g}" for b in ("encoder", "decoder"))
        a = "an" if kind == "input" else "a"
        assert f"| learning rate of {a} {kind} prompt | {encoder} | {decoder} | {decoder} |" in page


def test_what_is_given_is_not_chosen():
    given = {"learning_rate": 0.0, "prompt_learning_rate": 0.25, "head": "linear"}
    chosen = choose(TrainSettings(**given), Situation("decoder", "input", 100))
    assert {name: getattr(chosen, name) for name in given} == given


@pytest.fixture(scope="module")
def decoder_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbones") / "tiny-gpt2"
    build("gpt2").transformer.save_pretrained(folder)
    train_tokenizer(eos="[SEP]").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def mail(tmp_path_factory, texts):
    file = tmp_path_factory.mktemp("data") / "mail.csv"
    rows = [f'"{t} {i}",{"cats" if i % 2 else "dogs"}' for i, t in enumerate(texts * 2)]
    file.write_text("text,label\n" + "\n".join(rows) + "\n")
    return file


def test_a_decoder_reads_the_question_before_a_text(decoder_folder, mail, tmp_path, texts):
    """The keys and values of the question are those of its words."""
    settings = TrainSettings(
        model=str(decoder_folder),
        train_file=str(mail),
        num_virtual_tokens=12,
        epochs=1,
        learning_rate=0.0,
        prompt_learning_rate=0.0,
        head="linear",
        dtype="float32",
    )
    run = ptune.train_run(settings, tmp_path / "run")
    written = json.loads((tmp_path / "run" / "settings.json").read_text())
    asked = "Classify the text. Is it cats or dogs? Answer:"
    assert (written["prompt_init"], written["prompt_init_text"]) == ("text", asked)
    tokenizer = train_tokenizer(eos="[SEP]")
    words = tokenizer(asked)["input_ids"]
    words = torch.tensor([(words * 12)[:12]])
    text = torch.tensor([tokenizer(texts[0])["input_ids"]])
    model = run.model.eval()
    with torch.no_grad():
        found = model(text).logits
        plain = model.unload()  # with its own head
        states = plain.transformer(torch.cat([words, text], dim=1)).last_hidden_state[:, -1]
        head = Adapter.read(tmp_path / "run").head["score.weight"]
    torch.testing.assert_close(found, states @ head.T, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("backbone", "words", "options", "head"),
    [
        ("decoder", True, {}, "words"),
        ("decoder", True, {"prompt": "input"}, "words"),
        ("decoder", True, {"prompt": "none"}, "words"),
        ("decoder", True, {"prompt": "reader"}, "words"),
        ("decoder", True, {"pooling": "mean"}, "linear"),
        ("decoder", False, {}, "linear"),
        ("encoder", True, {}, "features"),
        ("encoder", True, {"prompt": "reader"}, "linear"),
        ("decoder", True, {"head": "features"}, "features"),
    ],
)
def test_the_head_starts_as_words_where_a_language_model_knows_them(backbone, words, options, head):
    own = TrainSettings(**options)
    assert choose(own, Situation(backbone, own.prompt, 100, words)).head == head


@pytest.mark.parametrize(
    ("y", "words"),
    [
        (["good", "bad"], True),
        ([0, 1], False),
        (["LABEL_0", "LABEL_1"], False),
        ([["good"], ["good", "bad"]], False),
        ([0.5, 1.5], False),
    ],
    ids=["words", "numbers", "numbered", "several", "regression"],
)
def test_labels_that_are_words_are_recognised(bert_folder, y, words):
    data = TaskData.from_lists([["a", "b"]], y)
    assert Situation.of(TrainSettings(model=str(bert_folder)), data).words == words


@pytest.mark.parametrize(
    ("y", "options", "learned"),
    [
        (["good", "bad"], {}, True),
        (["good", "bad"] * 40, {}, False),
        (["good", "bad"] * 40, {"label_names": True}, True),
        (["good", "bad"], {"label_names": False}, False),
        (["c1", "c2"], {}, False),
        ([["good"], ["good", "bad"]], {}, False),
        (["good", "bad"], {"prompt": "reader"}, False),
        (["good", "bad"], {"head": "linear"}, False),
    ],
)
def test_names_of_labels_are_learned_with_few_examples(bert_folder, y, options, learned):
    data = TaskData.from_lists([["a"] * len(y)], y)
    settings = TrainSettings(model=str(bert_folder), **options)
    assert choose(settings, Situation.of(settings, data)).label_names == learned


def test_the_name_of_a_label_is_a_text_of_it(bert_folder):
    data = TaskData.from_lists([["how long", "give me money"]], ["lost_card", "refund"])
    own = TrainSettings(model=str(bert_folder), epochs=1)
    with trained_in_memory(own, data, eval_strategy="no") as trainer:
        rows = trainer.train_dataset
        decode = trainer.processing_class.decode
        texts = [decode(ids, skip_special_tokens=True).strip() for ids in rows["input_ids"]]
        assert texts == ["how long", "give me money", "lost card", "refund"]
        assert rows["labels"] == [0, 1, 0, 1]
    assert len(data.train) == 2
    for column, y, what in [
        ([["a", "b"], ["c", "d"]], ["good", "bad"], "pairs."),
        ([["a", "b"]], [0.5, 1.5], "several labels per text or numbers."),
    ]:
        message = f"label_names requires single texts with one label each. Leave it out for {what}"
        with refused(message):
            TaskData.from_lists(column, y).with_label_names()


def test_a_language_model_that_scales_its_scores_gets_a_linear_head(mail, tmp_path, caplog):
    """Phi's head has a bias, so its rows are not its scores."""
    tokenizer = build_tokenizer(ARCHITECTURES["Phi"], SENTENCES)
    config = build_model(ARCHITECTURES["Phi"], tokenizer).config
    model = AutoModelForCausalLM.from_config(config)
    torch.nn.init.normal_(model.lm_head.bias)
    model.save_pretrained(tmp_path / "phi")
    tokenizer.save_pretrained(tmp_path / "phi")
    options = {"train_file": str(mail), "epochs": 1, "dtype": "float32", "num_virtual_tokens": 4}
    own = TrainSettings(model=str(tmp_path / "phi"), **options)
    ptune.train_run(own, tmp_path / "run")
    assert "so its rows cannot start a head. It starts with head='linear'." in caplog.text
    assert TrainSettings.read(tmp_path / "run").head == "linear"
    with pytest.raises(ptune.PtuneError, match="Use head='linear'"):
        ptune.train_run(replace(own, head="words"), tmp_path / "other")
