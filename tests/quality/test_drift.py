"""`ptune drift` tells new texts from those that a classifier was made for."""

import csv
import json

import numpy as np
import pytest
from conftest import call
from subjects import Subject

from ptune.demo import FOLDER
from ptune.quality.drift import drift


@pytest.fixture(scope="module")
def mails():
    with (FOLDER / "train.csv").open(encoding="utf-8", newline="") as opened:
        rows = [row["text"] for row in csv.DictReader(opened)]
    order = np.random.default_rng(0).permutation(len(rows))
    return [rows[i] for i in order]


@pytest.fixture(scope="module")
def classifier(folder_of):
    return Subject("shared").load(folder_of(Subject("shared")))


def shifted(found):
    return {shift.name for shift in found if shift.is_shift}


def test_texts_from_the_same_source_have_not_shifted(classifier, folder_of, mails):
    backbone = str(folder_of(Subject()) / "backbone")
    found = drift(classifier, [mails[:200]], [mails[200:400]], model=backbone)
    names = ["tokens per text", "predicted labels", "confidence", "features"]
    assert [shift.name for shift in found] == names
    assert shifted(found) == set()


def test_other_texts_have_shifted(classifier, folder_of, mails):
    backbone = str(folder_of(Subject()) / "backbone")
    others = [" ".join(sorted(text.split()[:3])) for text in mails[200:400]]
    found = drift(classifier, [mails[:200]], [others], model=backbone)
    assert {"tokens per text", "features"} <= shifted(found)


def test_a_shift_of_the_predicted_labels_is_found(classifier, mails):
    labels = classifier.predict(mails[:400])
    usual = labels == max(classifier.labels, key=list(labels).count)
    some = [t for t, same in zip(mails[:400], usual, strict=True) if same]
    (found,) = (s for s in drift(classifier, [mails[400:800]], [some]) if "labels" in s.name)
    assert found.is_shift
    assert "100.0%" in found.new


@pytest.mark.filterwarnings("error")
def test_equal_features_have_not_shifted(classifier, monkeypatch):
    monkeypatch.setattr(
        "ptune.quality.drift.features",
        lambda columns, *_, **__: (np.full((len(columns[0]), 3), 0.1), []),
    )
    texts = ["the same text"] * 8
    *_, found = drift(classifier, [texts], [texts[:5]], model="any")
    assert (found.size, found.p_value, found.is_shift) == (0, 1, False)
    assert (found.reference, found.new) == ("8 texts", "5 texts")


def test_the_command_compares_files(folder_of, mails, tmp_path, capsys):
    for name, some in {"old": mails[:150], "new": [t * 3 for t in mails[150:250]]}.items():
        with (tmp_path / f"{name}.csv").open("w", encoding="utf-8", newline="") as out:
            csv.writer(out).writerows([["text"], *([text] for text in some)])
    adapter = folder_of(Subject()) / "adapter"
    files = ("--reference", tmp_path / "old.csv", "--file", tmp_path / "new.csv")
    assert call("drift", adapter, *files, "--fast", "--json", "--dtype", "float32") == 0
    found = json.loads(capsys.readouterr().out)
    assert [s["name"] for s in found] == ["tokens per text", "predicted labels", "confidence"]
    assert found[0]["is_shift"]
    assert call("drift", adapter, *files, "--fast", "--strict") == 1
    assert call("drift", adapter, "--file", tmp_path / "new.csv") == 2
    assert "Name texts to compare with (--reference)." in capsys.readouterr().err
