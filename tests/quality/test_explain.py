"""`ptune explain`: the words that decide."""

import json

import numpy as np
import pytest
from conftest import call, refused
from subjects import SENTENCES, Subject

from ptune import PromptClassifier, PtuneError
from ptune.quality.explain import explain

HEADS = [Subject("shared"), *(Subject("input", head=h) for h in ("regression", "multi-label"))]


@pytest.mark.parametrize("subject", HEADS, ids=str)
def test_a_word_weighs_what_the_label_loses_without_it(folder_of, subject):
    classifier = subject.load(folder_of(subject))
    found = explain(classifier, SENTENCES[0])
    assert [word.text for word in found.words] == SENTENCES[0].split()
    assert [SENTENCES[0][w.start : w.end] for w in found.words] == SENTENCES[0].split()
    word = found.top(1)[0]
    if classifier.labels_.is_regression:
        values = classifier.predict([SENTENCES[0], found.without([word])])
        assert values[0] - values[1] == pytest.approx(word.weight, abs=1e-4)
    else:
        at = classifier.labels.index(found.label)
        p = classifier.predict_proba([SENTENCES[0], found.without([word])])[:, at]
        odds = np.log(p / (1 - p))
        assert p[0] == pytest.approx(found.score, abs=1e-5)
        assert odds[0] - odds[1] == pytest.approx(word.weight, abs=1e-3)


def test_leaving_out_the_top_words_costs_more_than_leaving_out_others(bert_folder):
    """On a task that single words decide."""
    rows = [f"{t} {i}" for i in range(4) for t in SENTENCES]
    labels = ["money" if "money" in r or "parcel" in r else "other" for r in rows]
    settings = {"num_virtual_tokens": 4, "dtype": "float32", "epochs": 12, "batch_size": 8}
    settings["loss"] = "labels"  # a backbone that knows no words needs many steps
    classifier = PromptClassifier(str(bert_folder), **settings).fit(rows, labels)
    rng, drops = np.random.default_rng(0), {"top": [], "random": []}
    for text in SENTENCES:
        found = explain(classifier, text)
        at = classifier.labels.index(found.label)
        for _ in range(5):
            others = [found.words[i] for i in rng.choice(len(found.words), 2, replace=False)]
            for name, words in {"top": found.top(2), "random": others}.items():
                left = classifier.predict_proba([found.without(words)])[0, at]
                drops[name].append(found.score - left)
    assert np.mean(drops["top"]) > np.mean(drops["random"]) + 0.02


def test_pairs_labels_and_long_texts(folder_of):
    classifier = Subject().load(folder_of(Subject()))
    pair = explain(classifier, (SENTENCES[0], "one"), "no")
    assert pair.label == "no"
    assert [w.column for w in pair.words] == [0] * len(SENTENCES[0].split()) + [1]
    assert pair.without([pair.words[-1]]) == (SENTENCES[0], "…")
    long = explain(classifier, " ".join(f"w{i}" for i in range(400)))
    assert len(long.words) <= 256
    assert " ".join(w.text for w in long.words).split() == [f"w{i}" for i in range(400)]
    with refused("The classifier has no label 'never'; …"):
        explain(classifier, "a text", "never")


def test_the_command_prints_and_writes(folder_of, tmp_path, capsys):
    adapter = folder_of(Subject()) / "adapter"
    text = "the <b>parcel</b> never came"
    page = tmp_path / "page.html"
    assert call("explain", adapter, text, "--output", page, "--dtype", "float32") == 0
    assert text in capsys.readouterr().out
    assert "&lt;b&gt;parcel&lt;/b&gt;" in page.read_text("utf-8")
    assert call("explain", adapter, text, "--json", "--label", "no", "--dtype", "float32") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["label"] == "no"
    assert [w["text"] for w in found["words"]] == text.split()


@pytest.mark.parametrize("text", [None, 3, [], ("a", None)])
def test_what_is_no_text_is_refused(folder_of, text):
    classifier = HEADS[0].load(folder_of(HEADS[0]))
    with pytest.raises(PtuneError, match="at position 0"):
        explain(classifier, text)
