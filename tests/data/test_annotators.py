"""Labels by several annotators, and texts that belong to no label."""

import numpy as np
import pytest
from conftest import refused

from ptune import PtuneError
from ptune.data.dataset import LABEL, TEXT, WEIGHT, load_files
from ptune.data.glue import evaluation_sets
from ptune.data.tables import Columns

COLUMNS = Columns(indicators=("angry", "calm", "sad"))
HOW = {"columns": COLUMNS, "problem_type": "single_label_classification"}


def write(file, header, rows):
    file.write_text("\n".join([header, *rows]))
    return file


def shares_of(train):
    """The weight of each label of each text, which together are one."""
    weights = train[WEIGHT] if WEIGHT in train.column_names else [1.0] * len(train)
    found = {}
    for text, label, weight in zip(train[TEXT], train[LABEL], weights, strict=True):
        found.setdefault(text, {})[label] = weight
    return {
        text: {label: weight / sum(own.values()) for label, weight in own.items()}
        for text, own in found.items()
    }


def test_columns_of_votes_and_rows_of_annotators_are_the_same(tmp_path):
    votes = write(
        tmp_path / "votes.csv",
        "text,angry,calm,sad",
        ["never came,3,1,0", "thanks,0,2,", "why me,0.5,0.1,0.4"],
    )
    rows = ["never came,angry"] * 3 + ["never came,calm"] + ["thanks,calm"] * 2
    rows += ["why me,angry"] * 5 + ["why me,sad"] * 4 + ["why me,calm"]
    repeated = write(tmp_path / "rows.csv", "text,label", rows)
    evaluation = write(tmp_path / "eval.csv", "text,angry,calm,sad", ["oh,1,2,0", "no,0,0,1"])
    one_each = write(tmp_path / "eval_rows.csv", "text,label", ["oh,calm", "oh,calm", "no,sad"])
    for data in (
        load_files(votes, evaluation, **HOW),
        load_files(repeated, one_each, annotators=True),
    ):
        assert data.labels.names == ("angry", "calm", "sad")
        assert shares_of(data.train) == {
            "never came": {0: 0.75, 1: 0.25},
            "thanks": {1: 1.0},
            "why me": {0: pytest.approx(0.5), 1: pytest.approx(0.1), 2: pytest.approx(0.4)},
        }
        assert np.mean(data.train[WEIGHT]) == pytest.approx(1)
        # Evaluation expects the label with the most votes.
        assert dict(zip(*(data.evaluation[""][name] for name in (TEXT, LABEL)), strict=True)) == {
            "oh": 1,
            "no": 2,
        }


def test_a_text_is_held_out_with_the_labels_of_all_annotators(tmp_path):
    rows = [f"text {i},{label}" for i in range(20) for label in ("ab", "aab")[i % 2]]
    data = load_files(write(tmp_path / "a.csv", "text,label", rows), annotators=True)
    held_out = data.evaluation[""][TEXT]
    assert len(held_out) == 4
    assert not set(held_out) & set(data.train[TEXT])
    assert len(data.train) == 32
    weighted = data.weighted(class_weight="balanced")
    sums = np.bincount(weighted.train[LABEL], weights=weighted.train[WEIGHT])
    assert sums[0] > 0
    assert sums[1] > 0


def test_texts_of_no_label_are_not_learned(tmp_path):
    rows = [f"text {i},{'abc'[i % 3]}" for i in range(30)]
    train = write(tmp_path / "train.csv", "text,label", rows)
    data = load_files(train, other_label="c")
    assert data.labels.names == ("a", "b")
    assert len(data.train) + len(data.evaluation[""]) == 20
    assert data.out_of_scope == [[f"text {i}" for i in range(2, 30, 3)]]
    # Nor are they in the way when the classifier is evaluated on such a file.
    ((texts, column),) = evaluation_sets(data.labels, file=train)[0].values()
    assert column.values == list("ab" * 10)
    assert texts == [[f"text {i}" for i in range(30) if i % 3 < 2]]
    data = load_files(train, train, other_label="c")
    assert len(data.out_of_scope[0]) == 20
    assert len(data.train) == len(data.evaluation[""]) == 20
    with refused(
        "No example has the label 'd'. Name the label of texts that belong to none of the others, "
        "or leave out --other-label."
    ):
        load_files(train, other_label="d")
    several = write(tmp_path / "several.csv", "text,label", ["x,a|b", "y,a", "z,b"])
    with refused("--other-label requires one label per text."):
        load_files(several, several, other_label="a")


def test_votes_that_are_no_numbers_are_refused(tmp_path):
    file = write(tmp_path / "a.csv", "text,angry,calm,sad", ["never came,3,-1,0"])
    with refused(
        f"Expected how many annotators chose the label in column 'calm' of {file}. Found '-1' in "
        "row 1. Correct it, or leave out --problem-type if a text can have several labels."
    ):
        load_files(file, file, **HOW)
    file = write(tmp_path / "b.csv", "text,angry,calm,sad", ["never came,3,1,0", "oh,0,0,0"])
    with pytest.raises(PtuneError, match="1 of 2 labels are missing"):
        load_files(file, file, **HOW)
    file = write(tmp_path / "c.csv", "text,label", ["a,0.25", "b,0.5", "c,0.75"])
    with pytest.raises(PtuneError, match="--annotators requires one label per row"):
        load_files(file, file, annotators=True)
