"""GLUE's original files, the user's own files, and what is wrong with either."""

import datetime
import json
import warnings
from collections import Counter
from contextlib import contextmanager

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from ptune import PtuneError
from ptune import labels as metrics
from ptune.data.dataset import LABEL, TaskData, labelled_texts, load_files
from ptune.data.glue import GLUE, evaluation_sets, load_glue
from ptune.data.tables import Columns, find_columns, read_batches
from ptune.labels import Labels, edits


def rows_of(batch):
    return batch.to_pylist() if isinstance(batch, pyarrow.RecordBatch) else batch


def texts_in(path):
    return [row["text"] for batch in read_batches(path, 2) for row in rows_of(batch)]


# GLUE, as its zip files have it. Each task: file → lines.

MRPC_HEADER = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String"
STSB_HEADER = (
    "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore"
)
MNLI_HEADER = (
    "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\t"
    "sentence1_parse\tsentence2_parse\tsentence1\tsentence2\tlabel1"
)
MNLI_DEV = MNLI_HEADER + "\tlabel2\tlabel3\tlabel4\tlabel5\tgold_label"
PARSES = "( p )\t( q )\t(ROOT p)\t(ROOT q)"


def mnli_dev(gold):
    votes = f"{gold}\t{gold}\tneutral\t{gold}\t{gold}\t{gold}"
    return [MNLI_DEV, f"0\t1n\t1nn\tslate\t{PARSES}\tIt rains.\tWater falls.\t{votes}"]


def nli(first, second, label):
    header = f"index\t{first}\t{second}\tlabel"
    return {
        "train": [header, f"0\tOne?\tTwo.\t{label[0]}", f"1\tThree?\tFour.\t{label[1]}"],
        "dev": [header, f"0\tFive?\tSix.\t{label[1]}"],
        "test": [f"index\t{first}\t{second}", "0\tSeven?\tEight."],
    }


ENTAILS = ("not_entailment", "entailment")
FILES = {
    "cola": {
        "train": ["gj04\t1\t\tThe sailors rode the breeze.", "gj04\t0\t*\tThem are sailing."],
        "dev": ["gj04\t1\t\tThe weights made the rope stretch."],
        "test": ["index\tsentence", "0\tBill sang himself to sleep."],
    },
    "sst2": {
        "train": ["sentence\tlabel", "hide new secretions \t0", "a smart , sweet film \t1"],
        "dev": ["sentence\tlabel", "it 's a charming journey . \t1"],
        "test": ["index\tsentence", "0\tuneasy mishmash ."],
    },
    "mrpc": {
        "train": [
            MRPC_HEADER,
            '1\t702876\t702977\tHe said " yes .\tHe agreed .',
            '0\t12\t13\t" Never , she said .\tShe agreed .',
        ],
        "dev": [MRPC_HEADER, "1\t13\t14\tThree .\tThird ."],
        "test": ["index\t#1 ID\t#2 ID\t#1 String\t#2 String", "0\t15\t16\tFour .\tFourth ."],
    },
    "stsb": {
        "train": [
            STSB_HEADER,
            "0\tmain-captions\tMSRvid\t2012test\t0001\tnone\tnone\tA plane.\tA jet.\t5.000",
            "1\tmain-captions\tMSRvid\t2012test\t0004\tnone\tnone\tA flute.\tA man.\t3.800",
        ],
        "dev": [
            STSB_HEADER,
            "0\tmain-captions\tMSRvid\t2012test\t0000\tnone\tnone\tA hat.\tA cap.\t2.500",
        ],
        "test": [
            STSB_HEADER.removesuffix("\tscore"),
            "0\tmain-captions\tMSRvid\t2012test\t0024\tnone\tnone\tA girl.\tA hair.",
        ],
    },
    "qqp": {
        "train": [
            "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
            "0\t1\t2\tHow far?\tHow long?\t0",
            "1\t3\t4\tHow do I",
            "2\t5\t6\tWhy me?\tWhy is it me?\t1",
        ],
        "dev": [
            "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
            "3\t7\t8\tWho?\tWhom?\t1",
        ],
        "test": ["id\tquestion1\tquestion2", "0\tWhere?\tWhither?"],
    },
    "mnli": {
        "train": [
            MNLI_HEADER + "\tgold_label",
            f"0\t3n\t3nn\tfiction\t{PARSES}\tHe ran.\tHe moved.\tentailment\tentailment",
            f"1\t4n\t4nn\tfiction\t{PARSES}\tHe ran.\tHe sat.\tcontradiction\tcontradiction",
        ],
        "dev_matched": mnli_dev("neutral"),
        "dev_mismatched": mnli_dev("contradiction"),
        "test_matched": [
            MNLI_HEADER.removesuffix("\tlabel1"),
            f"0\t5n\t5nn\ttravel\t{PARSES}\tYes.\tNo.",
        ],
        "test_mismatched": [
            MNLI_HEADER.removesuffix("\tlabel1"),
            f"0\t6n\t6nn\toup\t{PARSES}\tUp.\tDown.",
        ],
    },
    "qnli": nli("question", "sentence", ENTAILS),
    "rte": nli("sentence1", "sentence2", ENTAILS),
    "wnli": nli("sentence1", "sentence2", ("0", "1")),
    "ax": {"diagnostic": ["index\tsentence1\tsentence2", "0\tThe cat sat.\tThe cat did not sit."]},
}

# The first training example and all label numbers, as `nyu-mll/glue` numbers them.
TRAIN = {
    "cola": ({"text": "The sailors rode the breeze."}, [1, 0]),
    "sst2": ({"text": "hide new secretions "}, [0, 1]),
    "mrpc": ({"text": 'He said " yes .', "text_pair": "He agreed ."}, [1, 0]),
    "stsb": ({"text": "A plane.", "text_pair": "A jet."}, [5.0, 3.8]),
    "qqp": ({"text": "How far?", "text_pair": "How long?"}, [0, 1]),
    "mnli": ({"text": "He ran.", "text_pair": "He moved."}, [0, 2]),
    "qnli": ({"text": "One?", "text_pair": "Two."}, [1, 0]),
    "rte": ({"text": "One?", "text_pair": "Two."}, [1, 0]),
    "wnli": ({"text": "One?", "text_pair": "Two."}, [0, 1]),
}
EVALUATION = {
    **{task: {"": [1]} for task in ("cola", "sst2", "mrpc", "qqp", "wnli")},
    **{task: {"": [0]} for task in ("qnli", "rte")},
    "stsb": {"": [2.5]},
    "mnli": {"matched": [1], "mismatched": [2]},
    "ax": {},
}


@pytest.fixture
def glue(tmp_path):
    """Writes a task's files into the root folder, with replacements; returns the root."""

    def write(task, newline="\n", **changed):
        folder = tmp_path / "glue" / GLUE[task].folder
        folder.mkdir(parents=True)
        for stem, lines in {**FILES[task], **changed}.items():
            if lines is not None:
                content = newline.join(lines) + newline
                (folder / f"{stem}.tsv").write_bytes(content.encode())
        return tmp_path / "glue"

    return write


@pytest.mark.parametrize("task", TRAIN)
def test_glue_training_files_have_the_hubs_texts_and_label_numbers(glue, task):
    train = load_glue(task, glue(task)).train
    texts, labels = TRAIN[task]
    assert {k: v for k, v in train[0].items() if k != "label"} == texts
    assert list(train["label"]) == labels


@pytest.mark.parametrize("task", FILES)
def test_glue_evaluation_sets_carry_their_names_and_labels(glue, task):
    data = load_glue(task, glue(task))
    assert {k: list(d["label"]) for k, d in data.evaluation.items()} == EVALUATION[task]


@pytest.mark.parametrize("task", FILES)
def test_glue_test_files_have_texts_and_no_labels(glue, task):
    data = load_glue(task, glue(task))
    assert list(data.test) == (["matched", "mismatched"] if task == "mnli" else [""])
    for dataset in data.test.values():
        assert len(dataset) == 1
        columns = ["text", "text_pair"] if task not in ("cola", "sst2") else ["text"]
        assert dataset.column_names == columns


@pytest.mark.parametrize("task", FILES)
def test_glue_is_found_from_the_tasks_own_folder_too(glue, task):
    root = glue(task)
    from_root = load_glue(task, root)
    from_folder = load_glue(task, root / GLUE[task].folder)
    for split in ("evaluation", "test"):
        a, b = getattr(from_root, split), getattr(from_folder, split)
        assert {k: d.to_dict() for k, d in a.items()} == {k: d.to_dict() for k, d in b.items()}


@pytest.mark.parametrize(
    ("task", "labels"),
    [
        ("cola", ["unacceptable", "acceptable"]),
        ("sst2", ["negative", "positive"]),
        ("mrpc", ["not_equivalent", "equivalent"]),
        ("stsb", ["score"]),
        ("qqp", ["not_duplicate", "duplicate"]),
        ("mnli", ["entailment", "neutral", "contradiction"]),
        ("qnli", ["entailment", "not_entailment"]),
        ("rte", ["entailment", "not_entailment"]),
        ("wnli", ["not_entailment", "entailment"]),
        ("ax", ["entailment", "neutral", "contradiction"]),
    ],
)
def test_glue_labels_are_named_in_the_hubs_order(glue, task, labels):
    assert list(load_glue(task, glue(task)).labels.names) == labels


def test_stsb_is_a_regression_and_the_rest_are_not(glue):
    kinds = {task: load_glue(task, glue(task)).labels.problem_type for task in FILES}
    assert kinds.pop("stsb") == "regression"
    assert set(kinds.values()) == {"single_label_classification"}


def test_the_diagnostic_set_has_nothing_to_train_on(glue):
    assert len(load_glue("ax", glue("ax")).train) == 0


def test_glue_works_without_the_test_file(glue):
    assert load_glue("rte", glue("rte", test=None)).test == {}


def test_a_lone_quote_in_glue_is_text_and_swallows_nothing(glue):
    train = load_glue("mrpc", glue("mrpc")).train
    assert list(train["text"]) == ['He said " yes .', '" Never , she said .']


def test_glue_lines_that_are_cut_short_are_left_out_and_counted(glue, caplog):
    train = load_glue("qqp", glue("qqp")).train
    assert list(train["text"]) == ["How far?", "Why me?"]
    assert "left out 1 of 3 lines" in caplog.text


@pytest.mark.parametrize("task", ["cola", "mrpc", "mnli"])
def test_glue_files_with_windows_line_ends_read_the_same(glue, tmp_path, task):
    root = glue(task, newline="\r\n")
    train = load_glue(task, root).train
    texts, labels = TRAIN[task]
    assert {k: v for k, v in train[0].items() if k != "label"} == texts
    assert list(train["label"]) == labels


@contextmanager
def refused(*parts):
    """Expects a `PtuneError` whose message names all of `parts`."""
    with pytest.raises(PtuneError) as info:
        yield
    message = str(info.value)
    assert [part for part in parts if str(part) not in message] == [], message


def test_an_unknown_glue_task_suggests_the_near_one():
    with refused("'mprc'", "did you mean 'mrpc'", "cola, sst2"):
        load_glue("mprc")


def test_a_glue_folder_that_is_not_there_suggests_the_near_one(glue):
    root = glue("rte")
    with refused("There is no folder", "gleu", f"Did you mean {root}?"):
        load_glue("rte", root.with_name("gleu"))


def test_a_missing_glue_file_is_named(glue):
    with refused("There is no file", "RTE/dev.tsv"):
        load_glue("rte", glue("rte", dev=None))


def test_another_tasks_file_is_not_taken_for_this_ones(glue):
    with refused("RTE/train.tsv", "sentence, label", "'sentence1'", "original RTE file"):
        load_glue("rte", glue("rte", train=FILES["sst2"]["train"]))


def test_a_glue_training_file_without_labels_is_refused(glue):
    with refused("MRPC/train.tsv", "index", "'Quality'", "original MRPC file"):
        load_glue("mrpc", glue("mrpc", train=FILES["mrpc"]["test"]))


def test_a_label_that_glue_does_not_have_is_named(glue):
    lines = [FILES["rte"]["dev"][0], "0\tA.\tB.\tmaybe"]
    with refused("rte validation", "'maybe'", "entailment, not_entailment"):
        load_glue("rte", glue("rte", dev=lines))


def test_a_score_that_is_no_number_is_named(glue):
    lines = [line.replace("2.500", "high") for line in FILES["stsb"]["dev"]]
    with refused("stsb validation", "row 1 ", "'high'", "needs numbers"):
        load_glue("stsb", glue("stsb", dev=lines))


def test_a_glue_file_with_only_a_header_is_refused(glue):
    with refused("RTE/dev.tsv", "no examples", "Download it again"):
        load_glue("rte", glue("rte", dev=FILES["rte"]["dev"][:1]))


def test_glue_without_a_network_points_at_data_dir(monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    with refused("rte", "Hub", "--data-dir"):
        load_glue("rte")


# Measuring a classifier on a task.


def measured(task, root, labels, file=None):
    return evaluation_sets(Labels(tuple(labels)), task=task, data_dir=root, file=file)


def test_a_tasks_labels_are_renumbered_to_the_classifiers_order(glue):
    labels = Labels(("not_entailment", "entailment"))
    sets, names = measured("qnli", glue("qnli"), labels.names)
    assert labels.encode(sets[""][1]) == [1]
    assert names == ("accuracy",)


def test_a_classifier_with_numbered_labels_is_measured_in_the_tasks_order(glue):
    labels = Labels(("LABEL_0", "LABEL_1"))
    sets, _ = measured("qnli", glue("qnli"), labels.names)
    assert labels.encode(sets[""][1]) == [0]


@pytest.mark.parametrize(
    "labels", [["negative", "positive"], ["a", "b", "c"], ["LABEL_0", "LABEL_1", "LABEL_2"]]
)
def test_a_classifier_of_other_labels_is_not_measured(glue, labels):
    with refused(", ".join(labels), "entailment, not_entailment", "another task"):
        measured("rte", glue("rte"), labels)


def test_a_task_without_public_labels_is_not_measured(glue):
    with refused("ax", "no public labels", "ptune predict"):
        measured("ax", glue("ax"), ["entailment", "neutral", "contradiction"])


@pytest.mark.parametrize(("task", "file"), [(None, None), ("rte", "b.csv")])
def test_either_a_task_or_a_file_is_measured(task, file):
    with refused("--task", "--file"):
        measured(task, None, ["a", "b"], file)


# The user's own files.

MAIL = [("where is my parcel", "delivery"), ("my money please", "refund")]
ROWS = [(f"{text} {i}", label) for i in range(10) for text, label in MAIL]


def as_csv(rows, header="text,label", separator=","):
    return "\n".join([header, *(separator.join(r) for r in rows)]) + "\n"


@pytest.fixture
def file(tmp_path):
    """Writes a file and returns its path."""

    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def all_of(data):
    """Texts and label names of both parts."""
    found = []
    for part in (data.train, data.evaluation[""]):
        found += zip(part["text"], (data.labels.names[i] for i in part["label"]), strict=True)
    return sorted(found)


def write_parquet(path, rows):
    parquet.write_table(
        pyarrow.table({"text": [r[0] for r in rows], "label": [r[1] for r in rows]}), path
    )


def test_bytes_that_are_text_are_read_as_text(tmp_path):
    file = tmp_path / "mail.parquet"
    images = pyarrow.array([b"\xff\xd8"] * len(ROWS))
    for kind in (pyarrow.binary(), pyarrow.large_binary()):
        text, label = (pyarrow.array([row[i].encode() for row in ROWS], kind) for i in (0, 1))
        parquet.write_table(pyarrow.table({"text": text, "label": label, "image": images}), file)
        assert all_of(load_files(file)) == sorted(ROWS)
        (batch,) = read_batches(file, 100)
        assert batch.column("image") == images, "other bytes stay as they are"


def as_json_lines(rows):
    return "".join(json.dumps({"text": t, "label": label}) + "\n" for t, label in rows)


@pytest.mark.parametrize(
    "ending", ["csv", "tsv", "jsonl", "ndjson", "json", "list.json", "parquet"]
)
def test_every_format_gives_the_same_examples(tmp_path, ending):
    path = tmp_path / f"mail.{ending}"
    if ending == "parquet":
        write_parquet(path, ROWS)
    else:
        content = {
            "csv": as_csv(ROWS),
            "tsv": as_csv(ROWS, "text\tlabel", "\t"),
            "list.json": json.dumps([{"text": t, "label": label} for t, label in ROWS], indent=1),
        }.get(ending, as_json_lines(ROWS))
        path.write_text(content)
    data = load_files(path)
    assert list(data.labels.names) == ["delivery", "refund"]
    assert data.labels.problem_type == "single_label_classification"
    assert all_of(data) == sorted(ROWS)


@pytest.mark.parametrize(
    ("header", "columns"),
    [
        ("text,label", Columns()),
        ("review,sentiment", Columns()),
        ("Betreff,category", Columns()),
        ("Betreff,Art", Columns(text="Betreff", label="Art")),
        ("label,text", Columns(text="label", label="text")),
        ("text,sentence", Columns(label="sentence")),
    ],
)
def test_columns_are_found_by_name_or_by_flag(file, header, columns):
    assert all_of(load_files(file("a.csv", as_csv(ROWS, header)), columns=columns)) == sorted(ROWS)


@pytest.mark.parametrize(
    ("header", "columns"),
    [
        ("premise,hypothesis,label", Columns()),
        ("sentence1,sentence2,label", Columns()),
        ("left,right,label", Columns(text="left", text_pair="right")),
        ("premise,hypothesis,label", Columns(text_pair="hypothesis")),
        ("left,right,label", Columns(text_pair="right")),
    ],
)
def test_pairs_are_found_by_name_or_by_flag(file, header, columns):
    rows = [(f"first {i}", f"second {i}", "ab"[i % 2]) for i in range(10)]
    train = load_files(file("a.csv", as_csv(rows, header)), columns=columns).train
    assert set(zip(train["text"], train["text_pair"], strict=True)) < {r[:2] for r in rows}


@pytest.mark.parametrize(
    ("header", "trained", "read"),
    [
        ("text,label,tone", "tone", ["tone"]),
        ("text,label,other", "tone", ["label"]),
        ("text,label,rude", ("rude",), ["rude"]),
        ("text,label,rude", ("rude", "urgent"), ["label"]),
    ],
)
def test_labels_are_read_from_the_columns_of_the_training_if_they_are_there(header, trained, read):
    asked = Columns(trained_labels=trained)
    assert find_columns(header.split(","), asked, "a.csv").labels == read
    named = Columns(label="label", trained_labels=trained)
    assert find_columns(header.split(","), named, "a.csv").labels == ["label"]


@pytest.mark.parametrize(
    ("cell", "asked", "read"),
    [("a;b", None, {"a", "b"}), ("a|b", None, {"a", "b"}), ("a|b;c", "|", {"a", "b;c"})],
)
def test_labels_are_separated_as_in_training_if_cells_are(file, cell, asked, read):
    path = file("a.csv", f"text,label\none,{cell}\ntwo,a\n")
    how = {"columns": Columns(trained_separator=";"), "label_separator": asked}
    _, column = labelled_texts(path, problem_type="multi_label_classification", **how)
    assert set(column.values[0]) == read


def test_naming_the_text_alone_leaves_a_pair_column_out(file):
    rows = [(f"first {i}", f"second {i}", "ab"[i % 2]) for i in range(10)]
    path = file("a.csv", as_csv(rows, "premise,hypothesis,label"))
    data = load_files(path, columns=Columns(text="hypothesis"))
    assert data.train.column_names == ["text", "label"]
    assert data.train[0]["text"].startswith("second")


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        (["10", "9", "-1"], ["-1", "9", "10"]),
        (["1.0", "2.0"], ["1.0", "2.0"]),
        (["1.1", "1.10", "1.2"], ["1.1", "1.10", "1.2"]),
        (["100", "1e2", "0100"], ["0100", "100", "1e2"]),
        (["007", "7"], ["007", "7"]),
        (["true", "false"], ["false", "true"]),
        (["null", "NA", "nan"], ["NA", "nan", "null"]),
        ([" a", "b "], ["a", "b"]),
        (["a", "7"], ["7", "a"]),
    ],
)
def test_labels_are_names_or_numbers_just_as_they_are_written(file, values, labels):
    rows = [(f"text {i}", values[i % len(values)]) for i in range(30)]
    assert sorted(load_files(file("a.csv", as_csv(rows))).labels.names) == sorted(labels)


def test_number_labels_are_ordered_as_numbers(file):
    rows = [(f"text {i}", str(i % 12)) for i in range(60)]
    assert load_files(file("a.csv", as_csv(rows))).labels.names == tuple(str(i) for i in range(12))


def test_json_may_mix_names_and_numbers_as_labels(file):
    rows = [(f"text {i}", [3, "b"][i % 2]) for i in range(10)]
    assert load_files(file("a.jsonl", as_json_lines(rows))).labels.names == ("3", "b")


def test_labels_of_the_evaluation_file_get_the_numbers_of_training(file):
    train = file(
        "a.csv", as_csv([(f"x {i}", ["true", "false", "unsure"][i % 3]) for i in range(9)])
    )
    data = load_files(train, file("b.csv", as_csv([("y", "true"), ("z", "true")])))
    assert [data.labels.names[i] for i in data.evaluation[""]["label"]] == ["true", "true"]
    assert len(data.train) == 9


SEVERAL = [["late"], ["late", "broken"], [], ["broken"]] * 5


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_a_text_can_have_several_labels(file, ending):
    if ending == "jsonl":
        rows = [(f"text {i}", labels) for i, labels in enumerate(SEVERAL)]
        data = load_files(file("a.jsonl", as_json_lines(rows)))
    else:
        rows = [(f"text {i}", " ; ".join(v)) for i, v in enumerate(SEVERAL) if v]
        data = load_files(
            file("a.csv", as_csv(rows)),
            problem_type="multi_label_classification",
            label_separator=";",
        )
    assert data.labels.problem_type == "multi_label_classification"
    assert list(data.labels.names) == ["broken", "late"]
    number = {row["text"]: row["label"] for row in data.train}
    number |= {row["text"]: row["label"] for row in data.evaluation[""]}
    wanted = {f"text {i}": v for i, v in enumerate(SEVERAL) if v or ending == "jsonl"}
    assert number == {t: [float("broken" in v), float("late" in v)] for t, v in wanted.items()}


@pytest.mark.parametrize(
    ("values", "problem_type"),
    [([f"{i / 4}" for i in range(10)], None), (["1", "2"], "regression"), (["0.5"], "regression")],
)
def test_numbers_to_be_predicted_make_a_regression(file, values, problem_type):
    rows = [(f"text {i}", values[i % len(values)]) for i in range(10)]
    data = load_files(file("a.csv", as_csv(rows)), problem_type=problem_type)
    assert data.labels.problem_type == "regression"
    assert data.metrics == ("pearson", "spearman")
    assert {*data.train["label"], *data.evaluation[""]["label"]} == {float(v) for v in values}


@pytest.mark.parametrize("text", ["null", "NA", "nan", "None", "1,5", "2024-01-31", "#N/A", "'"])
@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_words_that_programs_take_for_nothing_or_dates_are_texts(file, text, ending):
    rows = [(text, "ab"[i % 2]) for i in range(10)]
    content = as_csv([(f'"{t}"', v) for t, v in rows]) if ending == "csv" else as_json_lines(rows)
    assert set(texts_in(file(f"a.{ending}", content))) == {text}


def test_quoted_texts_keep_commas_quotes_and_line_breaks(file):
    rows = [(f'"one, ""two""\nthree {i}"', "ab"[i % 2]) for i in range(10)]
    texts = texts_in(file("a.csv", as_csv(rows)))
    assert texts == [f'one, "two"\nthree {i}' for i in range(10)]


def test_a_quote_inside_a_text_is_text(file):
    path = file("a.tsv", 'text\tlabel\nhe said "hi" there\ta\nfoo\tb\n')
    assert texts_in(path) == ['he said "hi" there', "foo"]


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "json", "parquet"])
def test_a_file_is_read_so_many_rows_at_a_time(file, tmp_path, ending, size):
    path = tmp_path / f"a.{ending}"
    rows = [{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(7)]
    if ending == "parquet":
        write_parquet(path, [tuple(row.values()) for row in rows])
    elif ending == "json":
        path.write_text(json.dumps(rows))
    elif ending == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        mark = {"csv": ",", "tsv": "\t"}[ending]
        path.write_text("\n".join([f"text{mark}label", *(mark.join(r.values()) for r in rows)]))
    batches = list(read_batches(path, size))
    assert [len(b) for b in batches] == [len(rows[i : i + size]) for i in range(0, 7, size)]
    assert [row for batch in batches for row in rows_of(batch)] == rows


def test_windows_files_read_like_any_other(file):
    content = "\ufeff" + as_csv(ROWS).replace("\n", "\r\n")
    assert all_of(load_files(file("a.csv", content))) == sorted(ROWS)


def test_blank_lines_are_nothing(file):
    content = as_csv(ROWS).replace("\n", "\n\n")
    assert all_of(load_files(file("a.csv", content))) == sorted(ROWS)


def test_a_file_that_changed_is_read_anew(file):
    assert texts_in(file("a.csv", "text\nold text\n")) == ["old text"]
    assert texts_in(file("a.csv", "text\nnew text\n")) == ["new text"]


def test_a_very_long_text_is_read_whole(file):
    long = "word " * 50_000
    assert texts_in(file("a.csv", f"text\n{long}\n")) == [long]


# The fifth that is held out.


def held_out(path, seed=0):
    data = load_files(path, seed=seed)
    return data, [set(part["text"]) for part in (data.train, data.evaluation[""])]


UNEVEN = [(f"text {i}", "rare" if i % 5 == 0 else "common") for i in range(50)]


def test_a_fifth_is_held_out_with_the_same_share_of_every_label(file):
    data, _ = held_out(file("a.csv", as_csv(UNEVEN)))
    common, rare = (data.labels.names.index(n) for n in ("common", "rare"))
    assert Counter(data.train["label"]) == {common: 32, rare: 8}
    assert Counter(data.evaluation[""]["label"]) == {common: 8, rare: 2}


def test_what_is_held_out_is_not_trained_on(file):
    _, (train, evaluation) = held_out(file("a.csv", as_csv(UNEVEN)))
    assert not train & evaluation
    assert train | evaluation == {t for t, _ in UNEVEN}


def test_the_seed_decides_what_is_held_out(file):
    path = file("a.csv", as_csv(UNEVEN))
    first, again, other = (held_out(path, seed)[1][1] for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_a_label_that_occurs_once_is_trained_on_and_the_rest_stays_stratified(file):
    data, _ = held_out(file("a.csv", as_csv([*UNEVEN, ("only this one", "single")])))
    assert "only this one" in data.train["text"]
    rare = data.labels.names.index("rare")
    assert Counter(data.evaluation[""]["label"])[rare] == 2


@pytest.mark.parametrize("rows", [[("x", "a"), ("y", "b")], [("x", "0.5")]])
def test_too_few_to_hold_out_says_so(file, rows):
    with refused(f"{len(rows)} examples", "too few", "--eval-file"):
        load_files(file("a.csv", as_csv(rows)))


# What is wrong with a file: what was met, what was wanted, what to do.


def test_a_missing_file_suggests_the_near_one(file):
    near = file("training.csv", as_csv(ROWS))
    with refused("There is no file", "trainig.csv", f"Did you mean {near}?"):
        load_files(near.with_name("trainig.csv"))


def test_a_file_in_a_missing_folder_names_the_folder(tmp_path):
    with refused("There is no file", "a.csv", f"no folder {tmp_path / 'nowhere'}"):
        load_files(tmp_path / "nowhere" / "a.csv")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", ""),
        ("a.csv", " \n\n"),
        ("a.csv", "\ufeff"),
        ("a.tsv", ""),
        ("a.jsonl", ""),
        ("a.jsonl", "\n"),
        ("a.parquet", ""),
    ],
)
def test_an_empty_file_is_refused(file, name, content):
    path = file(name, content)
    with refused(path, "is empty"):
        load_files(path)


@pytest.mark.parametrize(("name", "content"), [("a.csv", "text,label\n"), ("a.json", "[]")])
def test_a_file_without_examples_is_refused(file, name, content):
    path = file(name, content)
    with refused(path, "no examples"):
        load_files(path)


def test_a_parquet_file_without_examples_is_refused(tmp_path):
    write_parquet(tmp_path / "a.parquet", [])
    with refused("a.parquet", "no examples"):
        load_files(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("columns", "near"),
    [
        (Columns(text="txet"), "text"),
        (Columns(label="Lable"), "label"),
        (Columns(text="text", text_pair="labels"), "label"),
    ],
)
def test_a_misspelled_column_suggests_the_near_one(file, columns, near):
    asked = next(n for n in (columns.text_pair, columns.label, columns.text) if n)
    path = file("a.csv", as_csv(ROWS))
    with refused(path, f"no column '{asked}'", f"did you mean '{near}'", "text, label"):
        load_files(path, columns=columns)


def test_a_column_unlike_any_other_lists_those_there_are(file):
    with refused("no column 'xyz'", "there are: text, label"):
        load_files(file("a.csv", as_csv(ROWS)), columns=Columns(text="xyz"))


def test_a_label_column_that_cannot_be_told_is_asked_for(file):
    with refused("label", "it has text, kind", "--label-column"):
        load_files(file("a.csv", as_csv(ROWS, "text,kind")))


PREDICTED = {
    "csv": ("label,score,no,yes", "yes,0.9,0.1,0.9"),
    "unsure.csv": ("label,score,no,yes", "(none),0.5,0.5,0.5"),
    "several.csv": ("label,score,no,yes", "no|yes,0.9,0.8,0.9"),
    "jsonl": ("label,score,probabilities", "yes,0.9,"),
}


@pytest.mark.parametrize("ending", PREDICTED)
def test_the_true_labels_of_a_file_are_read_and_not_those_that_ptune_predicted(file, ending):
    header, cells = PREDICTED[ending]
    rows = [{"text": f"text {i}", "intent": "ab"[i % 2]} for i in range(10)]
    added = dict(zip(header.split(","), cells.split(","), strict=True))
    content = "".join(json.dumps(row | added) + "\n" for row in rows)
    if ending != "jsonl":
        content = as_csv([(r["text"], r["intent"], cells) for r in rows], f"text,intent,{header}")
    with pytest.warns(UserWarning, match="from column 'intent', because 'label' looks like a pred"):
        _, labels = labelled_texts(file(f"a.{ending}", content))
    assert labels.values == ["a", "b"] * 5


@pytest.mark.parametrize("ending", PREDICTED)
def test_labels_that_ptune_predicted_are_named_as_such(file, ending):
    header, cells = PREDICTED[ending]
    added = dict(zip(header.split(","), cells.split(","), strict=True))
    content = json.dumps({"text": "one"} | added)
    if ending != "jsonl":
        content = as_csv([("one", cells)], f"text,{header}")
    with pytest.warns(UserWarning, match="'label' of .* looks like a prediction of ptune"):
        labelled_texts(file(f"a.{ending}", content))


def test_a_column_of_labels_next_to_other_scores_is_not_taken_for_a_prediction(file):
    content = as_csv(
        [("one", "yes,1,ann,2024"), ("two", "no,2,tom,2024")], "text,label,score,by,at"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, labels = labelled_texts(file("a.csv", content))
    assert labels.values == ["yes", "no"]


def test_a_text_column_that_cannot_be_told_is_asked_for(file):
    rows = [("x", "y", "a"), ("z", "w", "b")]
    with refused("text", "it has left, right, label", "--text-column"):
        load_files(file("a.csv", as_csv(rows, "left,right,label")))


def test_a_pair_column_that_is_named_is_not_traded_for_another(file):
    rows = [("x", "y", "z", "a"), ("u", "v", "w", "b")]
    path = file("a.csv", as_csv(rows, "premise,hypothesis,translation,label"))
    with refused(path, "--text-column"):
        load_files(path, columns=Columns(text_pair="translation"))


def test_two_columns_of_one_name_are_refused(file):
    with refused("two columns named 'text'", "Rename one"):
        load_files(file("a.csv", as_csv([("x", "y", "a")], "text,text,label")))


def test_one_label_for_all_is_refused(file):
    path = file("a.csv", as_csv([(f"x {i}", "same") for i in range(9)]))
    with refused("'same'", path, "at least two", "--label-column"):
        load_files(path)


def test_a_label_for_every_text_is_taken_for_the_wrong_column(file):
    path = file("a.csv", as_csv([(f"x {i}", f"id {i}") for i in range(150)]))
    with refused("150 different labels in 150 examples", path, "--label-column"):
        load_files(path)


def test_a_label_that_training_never_saw_suggests_the_near_one(file):
    train = file("a.csv", as_csv(ROWS))
    dev = file("b.csv", as_csv([("x", "refnud"), ("y", "refnud")]))
    with refused("'refnud'", "2 time(s)", dev, "never saw", "did you mean 'refund'"):
        load_files(train, dev)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "text,label\nx,a\n ,b\n"),
        ("a.csv", 'text,label\nx,a\n"",b\n'),
        ("a.jsonl", '{"text": "x", "label": "a"}\n{"label": "b"}\n'),
        ("a.jsonl", '{"text": "x", "label": "a"}\n{"text": null, "label": "b"}\n'),
        ("a.jsonl", '{"text": "x", "label": "a"}\n{"text": ["y"], "label": "b"}\n'),
    ],
)
def test_an_empty_or_missing_text_is_counted_and_numbered(file, name, content):
    path = file(name, content)
    with refused("'text'", path, "row 2 (counting from 1)", "Expected ", "--skip-empty"):
        load_files(path)


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_missing_label_is_numbered(file, ending):
    content = {
        "csv": "text,label\nx,a\ny,\n",
        "jsonl": '{"text": "x", "label": "a"}\n{"text": "y", "label": null}\n',
    }[ending]
    path = file(f"a.{ending}", content)
    with refused("'label'", path, "1 of 2 labels", "row 2 (counting from 1)", "Fill them in"):
        load_files(path)


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_numbers_where_text_belongs_are_refused(file, ending):
    rows = [(5 + i, "ab"[i % 2]) for i in range(4)]
    content = as_json_lines(rows) if ending == "jsonl" else as_csv([(str(t), v) for t, v in rows])
    with refused("'text'", "numbers such as 5", "expected texts", "--text-column"):
        load_files(file(f"a.{ending}", content))


@pytest.mark.parametrize("label", ["high", "nan", "inf"])
def test_a_regression_label_that_is_no_number_is_named(file, label):
    path = file("a.csv", as_csv([("x", "1"), ("y", label)]))
    with refused("needs numbers", path, "row 2 ", repr(label)):
        load_files(path, problem_type="regression")


def test_json_infinity_is_no_label(file):
    content = '{"text": "x", "label": 0.5}\n{"text": "y", "label": Infinity}\n'
    with refused("The label inf is not a finite number", "row 2 "):
        load_files(file("a.jsonl", content))


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_file_that_is_not_utf8_names_byte_and_line_and_the_way_out(file, ending):
    content = b"text,label\nx,a\ncaf\xe9,b\n"
    path = file(f"a.{ending}", content)
    with refused(path, "not UTF-8", "0xe9", "line 3", "iconv"):
        load_files(path)


@pytest.mark.parametrize(
    ("lines", "number"),
    [
        (["one, two,a", "three,b"], 2),
        (["x,a", "one, two,b"], 3),
        (["x,a", "cut short"], 3),
        (['"two\nlines",a', "y,b,c"], 4),
        (["one, two,a"] * 3, 2),
    ],
)
def test_an_unquoted_comma_is_refused_with_its_line_and_shifts_nothing(file, lines, number):
    path = file("a.csv", "\n".join(["text,label", *lines]))
    with refused(f"Line {number} of {path}", "cell(s)", "header has 2", "quotes", ".jsonl"):
        load_files(path)


@pytest.mark.parametrize("lines", [['"open,a', "y,b"], ['"closed" late,a', "y,b"]])
def test_broken_quoting_is_refused_with_its_line(file, lines):
    path = file("a.csv", "\n".join(["text,label", "x,b", *lines]) + "\n")
    with refused(path, "could not be read as csv", "line 3", "doubled", ".jsonl"):
        load_files(path)


@pytest.mark.parametrize(("name", "met"), [("a.txt", "'.txt'"), ("a", "no ending")])
def test_an_unknown_ending_lists_the_known_ones(file, name, met):
    with refused(name, met, ".csv, .tsv, .json, .jsonl, .ndjson, .parquet"):
        load_files(file(name, as_csv(ROWS)))


@pytest.mark.parametrize("keep", [100, -20])
def test_a_damaged_parquet_file_is_refused(tmp_path, keep):
    path = tmp_path / "a.parquet"
    write_parquet(path, ROWS)
    path.write_bytes(path.read_bytes()[:keep])
    with refused(path, "could not be read as parquet", "Is it complete"):
        load_files(path)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (as_json_lines(ROWS) + '{"text": "x", "la', 21),
        ('{"text": "x", "label": "a"}\n\ntext,label\n', 3),
        ('[{"text": "x",\n"label": "a"},\n{"text": ]', 3),
    ],
)
def test_a_broken_json_line_is_named(file, content, line):
    path = file("a.jsonl", content)
    with refused(path, f"line {line} is broken", "one object per line"):
        load_files(path)


def test_json_that_is_no_object_is_refused(file):
    path = file("a.jsonl", '{"text": "x", "label": "a"}\n"just a text"\n')
    with refused(f"Example 2 of {path}", "just a text", "Expected an object"):
        load_files(path)


def test_as_many_labels_as_texts_are_wanted():
    with refused("2 texts and 3 labels"):
        TaskData.from_lists([["x", "y"]], ["a", "b", "c"])


def test_an_evaluation_file_for_a_trained_classifier_gets_its_numbers(file):
    path = file("b.csv", as_csv(ROWS[:2]))
    _, column = labelled_texts(path)
    assert Labels(("refund", "delivery")).encode(column) == [1, 0]


# The real thing.


@pytest.mark.data
@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_every_line_of_the_real_mrpc_is_an_example(glue_folder, split):
    lines = (glue_folder / "MRPC" / f"{split}.tsv").read_bytes().count(b"\n")
    data = load_glue("mrpc", glue_folder)
    found = {"train": data.train, "dev": data.evaluation[""], "test": data.test[""]}
    assert len(found[split]) == lines - 1  # the header


@pytest.mark.data
def test_the_real_mrpc_has_its_rows_and_its_majority(glue_folder):
    data = load_glue("mrpc", glue_folder)
    dev = data.evaluation[""]
    assert len(dev) == 408
    majority = int(np.bincount(data.train["label"]).argmax())
    scores = metrics.compute(data.metrics, np.array(dev["label"]), np.full(len(dev), majority))
    assert scores == {
        "accuracy": pytest.approx(0.6838, abs=5e-5),
        "f1": pytest.approx(0.8122, abs=5e-5),
    }


def test_few_examples_are_so_many_of_each_label_and_depend_on_the_seed():
    texts = [f"text {i}" for i in range(60)]
    data = TaskData.from_lists([texts], ["abc"[min(i % 5, 2)] for i in range(60)])
    few = data.few_examples(4, seed=0)
    assert Counter(few.train["label"]) == {0: 4, 1: 4, 2: 4}
    assert few.train["text"] == data.few_examples(4, seed=0).train["text"]
    assert few.train["text"] != data.few_examples(4, seed=1).train["text"]
    assert len(data.few_examples(1000, seed=0).train) == 60
    assert len(data.train) == 60


def test_few_examples_of_each_label_need_one_label_a_text():
    data = TaskData.from_lists([["a", "b"]], [0.5, 1.25])
    with pytest.raises(PtuneError, match="regression"):
        data.few_examples(4, seed=0)


def test_every_glue_task_asks_something():
    """An input prompt starts as these words."""
    assert all(len(spec.question.split()) > 3 for spec in GLUE.values())


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda labels: edits.rename(labels, "a", "z"), (["z", "b", "c"], [0, 1, 2, 0])),
        (lambda labels: edits.merge(labels, ["a", "c"], "x"), (["x", "b"], [0, 1, 0, 0])),
        (lambda labels: edits.drop(labels, "a"), (["b", "c"], [0, 1])),
    ],
)
def test_the_data_of_a_run_follows_its_labels(change, expected, several):
    y = ["a", "b", "c", "a"]
    data = TaskData.from_lists(
        [["one", "two", "three", "four"]], [[v] for v in y] if several else y
    )
    data.evaluation[""] = data.train
    found = data.for_labels(change(data.labels))
    names, targets = expected
    assert list(found.labels.names) == names
    for examples in (found.train, found.evaluation[""]):
        if several:
            rows = np.asarray(examples[LABEL])
            assert rows.shape == (4, len(names))
            assert rows[rows.any(axis=1)].argmax(axis=1).tolist() == targets
        else:
            assert examples[LABEL] == targets
    other = TaskData.from_lists([["one", "two", "three"]], ["b", "c", "d"])
    assert other.for_labels(change(data.labels)) is None


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("where", ["n=1", "n=1.0", "b=true", "d=2024-01-01", "none="])
def test_rows_are_chosen_by_values_as_files_without_types_write_them(tmp_path, ending, where):
    row = {"text": "one", "label": "a", "n": 1.0, "b": True, "none": None}
    row["d"] = "2024-01-01" if ending == "jsonl" else datetime.datetime(2024, 1, 1)
    file = tmp_path / f"a.{ending}"
    if ending == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist([row]), file)
    elif ending == "jsonl":
        file.write_text(json.dumps(row))
    else:
        file.write_text("text,label,n,b,none,d\none,a,1,true,,2024-01-01\n")
    if ending == "csv" and where == "n=1.0":
        with refused(f"No row of {file} has '1.0' in column 'n'; there are: 1."):
            labelled_texts(file, where=where)
    else:
        assert labelled_texts(file, where=where)[0] == [["one"]]
