"""Texts that are longer than a classifier reads."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import build, client_of, edit_json, refused
from datasets import Dataset
from subjects import SENTENCES, Subject, answers
from transformers import AutoTokenizer, TrainingArguments

import ptune
from ptune import PromptBank, PromptEncoderConfig, PromptModel, PtuneError, texts
from ptune.adapters import schema
from ptune.adapters.adapter import Adapter
from ptune.export.loading import graph_of
from ptune.inference import files
from ptune.labels import Labels
from ptune.training import trainer
from ptune.training.features import Features
from ptune.training.settings import TrainSettings
from ptune.training.trainer import SharingTrainer, WindowCollator, tokenize

LONG = " ".join(SENTENCES * 3)
# The last word of a long text is changed, and another one.
ENDS_OTHERWISE = LONG + " invoice invoice invoice"
PARAGRAPHS = "\n\n".join(SENTENCES)
LIMIT = 20
# The end of a text counts more than its start.
WEIGHTS = (0.2, 1.0, 3.0)


@pytest.fixture(params=["input", "reader"])
def adapter_of(request, folder_of, tmp_path):
    """Writes the adapter of a mechanism for a setting of `long_texts`."""

    def write(long_texts, window_weights=()):
        place = tmp_path / long_texts
        if not place.is_dir():
            shutil.copytree(folder_of(Subject(request.param)) / "adapter", place)
            reading = texts.Reading(LIMIT, long_texts, window_weights=window_weights)
            replace(Adapter.read(place), reading=reading).save(place)
        return place

    return write


def load(folder):
    return ptune.load(folder, dtype="float32", device="cpu")


def test_only_windows_see_a_word_beyond_the_limit(adapter_of):
    truncate, windows = load(adapter_of("truncate")), load(adapter_of("windows"))
    both = [LONG, ENDS_OTHERWISE]
    cut, whole = answers(truncate, both), answers(windows, both)
    np.testing.assert_allclose(cut[0], cut[1], atol=1e-5)
    assert np.abs(whole[0] - whole[1]).max() > 1e-3
    np.testing.assert_allclose(answers(windows, SENTENCES), answers(truncate, SENTENCES), atol=1e-6)
    assert [p.truncated for p in truncate([*both, "short"])] == [True, True, False]
    assert [p.truncated for p in windows([*both, "short"])] == [False, False, False]


def test_head_and_tail_see_the_end_and_not_the_middle(adapter_of):
    both_ends = load(adapter_of("head_tail"))
    middle = LONG.replace("headphones", "invoice")
    found = answers(both_ends, [LONG, ENDS_OTHERWISE, middle])
    assert np.abs(found[0] - found[1]).max() > 1e-3
    np.testing.assert_allclose(found[0], found[2], atol=1e-5)
    assert both_ends(LONG).truncated


def log_of_mean(logits):
    """What a text's windows say together: windows with large logits count more."""
    return torch.logsumexp(torch.as_tensor(logits), 0) - np.log(len(logits))


def test_windows_with_large_logits_decide_the_logits_of_a_long_text(adapter_of):
    windows = load(adapter_of("windows"))
    rows = texts.Reading(LIMIT, "windows").rows(windows.tokenizer_, [[LONG]])
    assert all(len(ids) <= LIMIT for ids in rows.encoded["input_ids"])
    parts = [
        windows.tokenizer_.decode(ids, skip_special_tokens=True)
        for ids in rows.encoded["input_ids"]
    ]
    assert len(parts) > 3
    expected = log_of_mean(answers(windows, parts))
    np.testing.assert_allclose(answers(windows, [LONG])[0], expected, atol=1e-4)


def test_one_window_of_many_is_enough_and_a_regression_takes_the_mean():
    rows = np.zeros((21, 2), dtype=np.float32)
    rows[7] = [9.0, -9.0]
    text_of = [0, 1] + [0] * 19
    for pool in (np.array, torch.tensor, list):
        found = np.stack([np.asarray(v) for v in texts.pooled(pool(rows), text_of)])
        np.testing.assert_allclose(found[0], log_of_mean(np.delete(rows, 1, axis=0)), rtol=1e-5)
        assert found[0][0] > 5
        np.testing.assert_array_equal(found[1], rows[1])
        if pool is not torch.tensor:
            found = np.stack(texts.pooled(pool(rows.copy()), text_of, [True, False]))
            np.testing.assert_allclose(found[0], [0.45, -0.45], rtol=1e-5)
    found = texts.pooled(torch.tensor(rows), text_of, True)
    np.testing.assert_allclose(found[0], [0.45, -0.45], rtol=1e-5)
    huge = torch.tensor([[300.0], [200.0]], requires_grad=True)
    texts.pooled(huge, [0, 0]).sum().backward()
    torch.testing.assert_close(huge.grad, torch.tensor([[1.0], [0.0]]))


def test_windows_count_by_their_place_in_a_text():
    """With two parts, the second of three windows is half in each."""
    rows = np.array([[0.0], [7.0], [1.0], [2.0]], dtype=np.float32)
    expected = [np.log((1 + 2 * np.e + 3 * np.e**2) / 6), 7]
    for pool in (np.array, torch.tensor, list):
        found = texts.pooled(pool(rows), [0, 1, 0, 0], weights=(1.0, 3.0))
        np.testing.assert_allclose(np.ravel(found), expected, rtol=1e-6)
    found = texts.pooled(list(rows[[0, 0, 2, 3, 2, 3]]), [0, 1, 0, 0, 1, 1], weights=[(), (1, 3)])
    evenly = np.log((1 + np.e + np.e**2) / 3)
    np.testing.assert_allclose(np.ravel(found), [evenly, expected[0]], rtol=1e-6)


@pytest.mark.parametrize("long_texts", ["head_tail", "windows", "passages"])
def test_a_bank_and_a_server_answer_long_texts_as_the_classifier_does(adapter_of, long_texts):
    folder = adapter_of(long_texts, WEIGHTS)
    classifier = load(folder)
    bank = PromptBank(classifier.model, dtype="float32", device="cpu")
    bank.add("long", folder)
    bank.add("cut", adapter_of("truncate"))
    some = [LONG, SENTENCES[0], ENDS_OTHERWISE, PARAGRAPHS]
    found = bank([(task, text) for text in some for task in ("long", "cut")])
    for mine, its in zip(classifier(some), found[::2], strict=True):
        assert mine.label == its.label
        assert mine.truncated == its.truncated
        assert mine.probabilities == pytest.approx(its.probabilities, abs=1e-5)
    assert [p.truncated for p in found[1::2]] == [True, False, True, True]
    np.testing.assert_allclose(
        bank["long"].predict_proba(some), classifier.predict_proba(some), atol=1e-5
    )
    windows = long_texts != "head_tail"
    assert [n > 0 for n in bank.excess([("long", LONG), ("cut", LONG)])] == [not windows, True]
    with client_of(bank) as client:
        for text, expected in zip(some, classifier(some), strict=True):
            asked = {"inputs": text, "truncate": False if windows else None}
            rows = client.post("/tasks/long/predict", json=asked).json()
            assert {row["label"]: row["score"] for row in rows} == pytest.approx(
                expected.probabilities, abs=1e-5
            )


def test_of_a_pair_the_longer_text_is_divided(adapter_of):
    windows = load(adapter_of("windows"))
    tokenizer = windows.tokenizer_
    for pair in [("red lamp", LONG), (LONG, "red lamp")]:
        rows = texts.Reading(LIMIT, "windows").rows(tokenizer, [[part] for part in pair])
        shown = [tokenizer.decode(ids) for ids in rows.encoded["input_ids"]]
        assert len(shown) > 3
        assert all("red lamp" in row for row in shown)
        assert not rows.cut
        assert all(len(ids) <= LIMIT for ids in rows.encoded["input_ids"])
    assert not windows(("red lamp", LONG)).truncated
    assert windows((LONG, LONG)).truncated  # one of them has to be shortened


def test_a_passage_is_a_paragraph_or_the_sentences_of_one_that_fit(adapter_of):
    tokenizer = load(adapter_of("passages")).tokenizer_

    def decoded(rows):
        return [tokenizer.decode(ids, skip_special_tokens=True) for ids in rows]

    def shown(text):
        rows = texts.Reading(LIMIT, "passages").rows(tokenizer, [[text]])
        assert all(len(ids) <= LIMIT for ids in rows.encoded["input_ids"])
        assert not rows.cut
        return decoded(rows.encoded["input_ids"])

    short, whole = "red lamp", decoded(tokenizer(SENTENCES)["input_ids"])
    assert shown("\n\n".join([short, *SENTENCES, short])) == [short, *whole, short]
    assert shown(f"{short}\n\n{short}") == [f"{short} {short}"]  # not a long text
    sizes = [len(row.split()) for row in shown("red lamp again. Send more now. " * 6)]
    assert sum(sizes) == 36
    assert all(size % 3 == 0 and size > 3 for size in sizes)
    assert " ".join(shown("red lamp " * 40)).split() == ["red", "lamp"] * 40


def test_a_template_is_around_every_window(adapter_of):
    tokenizer = load(adapter_of("windows")).tokenizer_
    template = texts.Template("send {text} today")
    rows = texts.Reading(LIMIT, "windows", template).rows(tokenizer, [[LONG]])
    shown = [tokenizer.decode(ids, skip_special_tokens=True) for ids in rows.encoded["input_ids"]]
    assert len(shown) > 3
    assert all(row.startswith("send") and row.endswith("today") for row in shown)
    assert set(LONG.lower().split()) <= set(" ".join(shown).lower().split())


def test_an_older_version_refuses_windows(adapter_of, monkeypatch):
    folder = adapter_of("windows")
    known = schema.FEATURES - {schema.LONG_TEXTS, schema.WINDOW_WEIGHTS}
    monkeypatch.setattr(schema, "FEATURES", known)
    with pytest.raises(PtuneError, match="requires long_texts"):
        Adapter.read(folder)
    with pytest.raises(PtuneError, match="requires long_texts, window_weights"):
        Adapter.read(adapter_of("passages", WEIGHTS))
    Adapter.read(adapter_of("truncate"))


def test_an_export_reads_long_texts_as_the_classifier_does(folder_of, tmp_path):
    pytest.importorskip("onnxruntime")
    adapter = Adapter.read(folder_of(Subject("input")) / "adapter")
    some = [LONG, ENDS_OTHERWISE, SENTENCES[0], PARAGRAPHS]
    for long_texts in ("passages", "windows", "head_tail"):
        source = tmp_path / long_texts
        reading = texts.Reading(LIMIT, long_texts, window_weights=WEIGHTS)
        replace(adapter, reading=reading).save(source)
        if long_texts == "passages":
            graph = graph_of(source, cache_dir=tmp_path)
        # The others: as if they had been exported now, which takes long.
        edit_json(graph / "ptune_export.json", long_texts=long_texts)
        expected = load(source).predict_proba(some)
        for engine in ("onnx", "openvino"):
            found = ptune.load_exported(graph, engine, dtype="float32").predict_proba(some)
            np.testing.assert_allclose(found, expected, atol=1e-5)
        with refused(
            f"The classifier {source} reads long texts in its own way "
            f"(long_texts={long_texts!r}), which no ordinary checkpoint does. Export it with "
            "`--to onnx`.",
        ):
            ptune.export_transformers(source, tmp_path / "checkpoint")


@pytest.mark.parametrize("labels", [["a", "b"], ["a|b", "a"]], ids=["one label", "several"])
def test_training_reads_every_window(bert_folder, tmp_path, labels):
    """The word that decides the label is beyond the limit."""
    starts, ends = [" ".join([sentence] * 3) for sentence in SENTENCES], ["parcel", "invoice"]
    rows = [f"{starts[i // 2 % 8]} {(ends[i % 2] + ' ') * 4},{labels[i % 2]}" for i in range(64)]
    (tmp_path / "train.csv").write_text("text,label\n" + "\n".join(rows))
    scores = {}
    for long_texts in ("truncate", "windows"):
        settings = TrainSettings(
            model=str(bert_folder),
            train_file=str(tmp_path / "train.csv"),
            eval_file=str(tmp_path / "train.csv"),
            long_texts=long_texts,
            max_length=LIMIT,
            epochs=8,
            pooling="mean",
            prompt="none",
            num_virtual_tokens=4,
            dtype="float32",
            learning_rate=1e-2,
        )
        run = ptune.train_run(settings, tmp_path / long_texts)
        scores[long_texts] = run.metrics["eval"]["accuracy"]
        assert run.metrics["eval_examples"] == {"eval": 64}
    given = [row.split(",")[0] for row in rows]
    found, (targets, logits) = answers(load(tmp_path / "windows"), given), run.answers[""]
    # The evaluation has another order, so the texts of each label are compared as they are sorted.
    second = np.arange(64) % 2 if labels == ["a", "b"] else 1 - np.arange(64) % 2
    its = targets if targets.ndim == 1 else targets[:, 1]
    for label in (0, 1):
        mine, same = np.sort(found[second == label], axis=0), np.sort(logits[its == label], axis=0)
        np.testing.assert_allclose(mine, same, atol=1e-4)
    assert run.metrics["truncated_texts"] == {"train": 0, "eval": 0}
    weights = Adapter.read(tmp_path / "windows").reading.window_weights
    assert (weights[-1] > 2 * weights[0]) if labels == ["a", "b"] else not weights
    assert scores["windows"] > scores["truncate"] + 0.2


def test_many_windows_are_divided_into_passes_of_one_step(bert_folder, tmp_path, monkeypatch):
    """Memory for few tokens changes the passes, not the steps or what is learned."""
    rows = [f"{' '.join(SENTENCES[i % 5 :] * (1 + i % 3))},{'ab'[i % 2]}" for i in range(20)]
    (tmp_path / "train.csv").write_text("text,label\n" + "\n".join(rows))
    settings = TrainSettings(
        model=str(bert_folder),
        train_file=str(tmp_path / "train.csv"),
        eval_file=str(tmp_path / "train.csv"),
        long_texts="windows",
        max_length=LIMIT,
        batch_size=8,
        epochs=2,
        num_virtual_tokens=4,
        dtype="float32",
        learning_rate=1e-2,
    )
    passes, logits = {}, {}
    compute_loss = SharingTrainer.compute_loss
    for limit in (trainer.MOST_TOKENS, 100):
        monkeypatch.setattr(trainer, "MOST_TOKENS", limit)
        sizes = passes[limit] = []

        def counted(self, model, inputs, *args, sizes=sizes, **more):
            if model.training:
                sizes.append(len(inputs["labels"]))
            return compute_loss(self, model, inputs, *args, **more)

        monkeypatch.setattr(SharingTrainer, "compute_loss", counted)
        ptune.train_run(settings, tmp_path / str(limit))
        logits[limit] = answers(load(tmp_path / str(limit)), [LONG, *SENTENCES])
    whole, divided = passes.values()
    assert sorted(whole) == [4, 4, 8, 8, 8, 8]
    assert max(divided) < 8
    assert sum(divided) == sum(whole)
    few, many = logits.values()
    np.testing.assert_allclose(few, many, atol=1e-3)


def test_the_loss_of_a_text_is_that_of_its_windows_together(bert_folder, tmp_path):
    model = PromptModel(build("bert"), PromptEncoderConfig(pooling="mean")).eval()
    tokenizer = AutoTokenizer.from_pretrained(bert_folder)
    rows = texts.Reading(LIMIT, "windows").rows(tokenizer, [[LONG, "red lamp"]])
    data = Dataset.from_dict({"text": [LONG, "red lamp"], "label": [1, 0]})
    encoded, _ = tokenize(tokenizer, data, texts.Reading(LIMIT, "windows"))
    assert list(encoded["labels"]) == [1, 0]
    with torch.no_grad():
        logits = torch.cat([model(torch.tensor([ids])).logits for ids in rows.encoded["input_ids"]])
    own = torch.tensor(rows.text_of) == 0
    assert own.sum() > 3
    together = torch.stack([log_of_mean(logits[own]), log_of_mean(logits[~own])])
    means = torch.stack([logits[own].mean(0), logits[~own].mean(0)])
    trainer = SharingTrainer(model, TrainingArguments(tmp_path, use_cpu=True, report_to="none"))
    trainer.labels = Labels(("a", "b"))
    batch = WindowCollator(tokenizer)(list(encoded))
    loss, output = trainer.compute_loss(model, batch, return_outputs=True)
    torch.testing.assert_close(output.logits, together, atol=1e-4, rtol=1e-4)
    expected = torch.nn.functional.cross_entropy(together, torch.tensor([1, 0]))
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-4)
    features = Features.of(model, encoded, WindowCollator(tokenizer), 0)
    found = torch.nn.functional.linear(features.values, features.weight, features.bias)
    torch.testing.assert_close(found, means[features.rows], atol=1e-4, rtol=1e-4)


def test_predictions_in_files_tell_which_texts_were_truncated(adapter_of, tmp_path):
    classifier = load(adapter_of("truncate"))
    for format, expected in {"jsonl": [True, False], "csv": ["true", "false"]}.items():
        file = tmp_path / f"out.{format}"
        source = files.Source.of_texts([LONG, "short"])
        with files.writer(file, format, classifier, mark_truncated=True) as out:
            assert files.write(classifier, source, out) == (2, 1)
        lines = file.read_text().splitlines()
        if format == "csv":
            column = lines[0].split(",").index("truncated")
            assert [line.split(",")[column] for line in lines[1:]] == expected
        else:
            assert [json.loads(line)["truncated"] for line in lines] == expected
