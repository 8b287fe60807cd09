"""The demo's data matches its description, and its classifier is accurate."""

import csv
import os
from collections import Counter
from pathlib import Path

import pytest
from architectures import ARCHITECTURES, build_model, build_tokenizer
from transformers import AutoModelForCausalLM

from ptune import demo
from ptune.files import read_json
from ptune.training.settings import TrainSettings
from ptune.training.start import load_dataset


def rows(split):
    with (demo.FOLDER / f"{split}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_intent_has_enough_messages():
    train, test = (Counter(r["label"] for r in rows(s)) for s in ("train", "test"))
    assert len(train) >= 10
    assert set(test.values()) == {15}
    assert min(train[label] + test[label] for label in train) >= 60


def test_no_message_occurs_twice():
    texts = [r["text"].strip().lower() for s in ("train", "test") for r in rows(s)]
    assert len(set(texts)) == len(texts)


def test_no_two_messages_share_most_of_their_words():
    texts = [set(r["text"].lower().split()) for s in ("train", "test") for r in rows(s)]
    worst = max(
        len(a & b) / len(a | b) for i, a in enumerate(texts) for b in texts[:i] if len(a) > 3
    )
    assert worst < 0.6


@pytest.mark.slow
def test_the_demo_s_classifier_is_accurate(tmp_path):
    """It is trained here, unless PTUNE_DEMO_RUN names the folder of a run of `ptune demo`."""
    folder = Path(os.environ.get("PTUNE_DEMO_RUN", tmp_path / "run"))
    if "PTUNE_DEMO_RUN" not in os.environ:
        demo.run_demo(folder)
    metrics = read_json(folder / "metrics.json")
    assert metrics["eval"]["accuracy"] >= 0.85
    assert metrics["majority"]["accuracy"] == pytest.approx(1 / 12)
    data = load_dataset(TrainSettings(**demo.FILES))
    scores, _ = demo.logistic_regression(data.train, data.evaluation[""])
    assert scores["accuracy"] > 0.8
    for name in ("training_curve.png", "confusion_matrix.png", "accuracy_by_method.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_a_decoder_is_asked_untrained_and_trained_on_few_and_on_all_mails(tmp_path):
    qwen, folder = ARCHITECTURES["Qwen 2"], tmp_path / "run"
    tokenizer = build_tokenizer(qwen, [row["text"] for row in rows("train")])
    config = build_model(qwen, tokenizer, max_position_embeddings=512).config
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "qwen")
    tokenizer.save_pretrained(tmp_path / "qwen")
    run, table = demo.run_decoder_demo(folder, model=str(tmp_path / "qwen"), epochs=0.05)
    assert [name for name, _, _ in table] == [
        "without training",
        "16 examples per label",
        "all examples",
    ]
    assert [trained > 0 for _, _, trained in table] == [False, True, True]
    few = read_json(folder / "few" / "metrics.json")
    assert (few["train_examples"], run.metrics["train_examples"]) == (12 * 16, 924)
    for picture in ("examples_curve.png", "confusion_matrix.png"):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")
