"""Predictions are written with the rows and columns of the input, in every format."""

import csv
import datetime
import decimal
import io
import json

import numpy as np
import pyarrow
import pytest
from conftest import edit_json, refused
from pyarrow import parquet

import ptune
from ptune import PromptModel, PtuneError
from ptune.backbones.loading import load_backbone
from ptune.data.cells import label_column
from ptune.data.glue import evaluation_sets
from ptune.data.opening import Dialect
from ptune.data.tables import Columns
from ptune.inference.files import (
    Source,
    format_of,
    joined,
    text_writer,
    write,
    write_all,
    writer,
)
from ptune.peft import PromptEncoderConfig
from ptune.texts import as_rows


def save_untrained(model, folder, labels=("no", "yes"), problem_type="single_label_classification"):
    backbone = load_backbone(str(model), labels=labels, problem_type=problem_type, dtype="float32")
    config = PromptEncoderConfig(num_virtual_tokens=4, encoder_reparameterization_type="NONE")
    PromptModel(backbone, config).to_adapter().save(folder)
    return folder


@pytest.fixture(scope="module")
def classifier(bert_folder, tmp_path_factory):
    folder = save_untrained(bert_folder, tmp_path_factory.mktemp("adapters") / "one")
    return ptune.load(folder, dtype="float32")


def read(file):
    if file.suffix == ".parquet":
        return parquet.read_table(file).to_pylist()
    if file.suffix == ".jsonl":
        return [json.loads(line) for line in file.read_text().splitlines()]
    with file.open(newline="") as f:
        return list(csv.DictReader(f, delimiter="," if file.suffix == ".csv" else "\t"))


def classify(classifier, source, target, columns=None):
    """Write the predictions of `source` into `target`; the number of texts."""
    rows = Source.of_file(source, columns or Columns())
    with writer(target, format_of(target), classifier) as out:
        return write(classifier, rows, out)[0]


def test_existing_columns_keep_their_names_and_values(classifier, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "hello", "label": "gold", "score": 5}\n')
    classify(classifier, tmp_path / "a.jsonl", tmp_path / "once.jsonl")
    classify(classifier, tmp_path / "once.jsonl", tmp_path / "twice.jsonl")
    (row,) = read(tmp_path / "once.jsonl")
    assert (row["label"], row["score"]) == ("gold", 5)
    assert row["predicted_label"] in ("no", "yes")
    (again,) = read(tmp_path / "twice.jsonl")
    assert again == {
        **row, **{f"predicted_{k}": v for k, v in row.items() if k.startswith("predicted_")}
    }  # fmt: skip


def test_numbers_that_json_lacks_are_null(classifier, tmp_path):
    numbers = pyarrow.array([float("nan"), float("inf"), 1.5])
    table = pyarrow.table({"text": ["a", "b", "c"], "x": numbers})
    parquet.write_table(table, tmp_path / "a.parquet")
    classify(classifier, tmp_path / "a.parquet", tmp_path / "out.jsonl")
    assert [row["x"] for row in read(tmp_path / "out.jsonl")] == [None, None, 1.5]


def test_lists_objects_and_lone_surrogates_are_written_in_every_format(classifier, tmp_path):
    row = {"text": "hello", "tags": ["x", "y"], "more": {"k": None}, "half": "a\ud800"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    classify(classifier, tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    (found,) = read(tmp_path / "b.jsonl")
    assert {name: found[name] for name in row} == row
    classify(classifier, tmp_path / "a.jsonl", tmp_path / "b.csv")
    (found,) = read(tmp_path / "b.csv")
    assert (found["tags"], found["more"]) == ('["x", "y"]', '{"k": null}')
    assert found["half"] == "a?"


def test_a_clashing_column_in_later_rows_is_refused(classifier, texts, tmp_path):
    rows = [
        {"id": i, "text": texts[i % 8]} | ({"label": 1} if i > 3000 else {}) for i in range(4000)
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(PtuneError, match="Some rows have a column 'label'"):
        classify(classifier, tmp_path / "a.jsonl", tmp_path / "out.jsonl")


def test_parquet_columns_keep_their_types(classifier, tmp_path):
    table = pyarrow.table(
        {
            "text": ["hello", "good bye"],
            "at": pyarrow.array([1, None], pyarrow.timestamp("ns", "UTC")),
            "price": [decimal.Decimal("1.10"), decimal.Decimal("2.20")],
            "words": [["a"], []],
            "kind": pyarrow.array(["x", "y"]).dictionary_encode(),
        }
    )
    parquet.write_table(table, tmp_path / "a.parquet")
    parquet.write_table(table.slice(0, 0), tmp_path / "none.parquet")
    assert classify(classifier, tmp_path / "a.parquet", tmp_path / "a-out.parquet") == 2
    assert classify(classifier, tmp_path / "none.parquet", tmp_path / "none-out.parquet") == 0
    found, none = (parquet.read_table(tmp_path / f"{n}-out.parquet") for n in ("a", "none"))
    assert found.select(table.column_names).equals(table)
    assert none.schema == found.schema
    assert len(none) == 0
    # JSON lacks these types, so they become strings.
    classify(classifier, tmp_path / "a.parquet", tmp_path / "a.jsonl")
    assert read(tmp_path / "a.jsonl")[0]["price"] == "1.10"
    assert str(datetime.date(1970, 1, 1)) in read(tmp_path / "a.jsonl")[0]["at"]


@pytest.mark.parametrize(
    ("problem_type", "kind"),
    [("multi_label_classification", "list"), ("regression", "double")],
)
def test_label_sets_and_numbers_have_their_own_parquet_types(
    bert_folder, tmp_path, problem_type, kind
):
    labels = ("late", "broken") if kind == "list" else ("stars",)
    folder = save_untrained(bert_folder, tmp_path / "adapter", labels, problem_type)
    classifier = ptune.load(folder, dtype="float32")
    table = pyarrow.table({"first": ["hello"] * 3, "second": ["x", "y", "z"]})
    parquet.write_table(table, tmp_path / "a.parquet")
    columns = Columns("first", "second")
    classify(classifier, tmp_path / "a.parquet", tmp_path / "out.parquet", columns)
    found = parquet.read_table(tmp_path / "out.parquet")
    assert str(found.schema.field("label").type).startswith(kind)
    expected = classifier([("hello", s) for s in "xyz"])
    assert [r["score"] for r in found.to_pylist()] == pytest.approx([p.score for p in expected])
    assert [r["label"] for r in found.to_pylist()] == [
        pytest.approx(p.label) if kind == "double" else p.label for p in expected
    ]


# What `ptune predict` writes is what `ptune evaluate` reads.

ODD = ["a|b", ' "quoted", ', "two\nlines", "[x]", "semi;colon\ttab", "text", "label", "007", "7"]
WORDS = [
    "hello",
    'a "b", c;d\te',
    "two\nlines\r\nthree",
    " spaces ",
    "NA",
    "=1+1",
    "5",
    "|",
    "Größe",
]


@pytest.fixture(scope="module", params=["single", "multi", "regression"])
def odd_classifier(request, bert_folder, tmp_path_factory):
    """A classifier whose labels have separators, quotes, line breaks and names of columns."""
    problem_type = {
        "single": "single_label_classification",
        "multi": "multi_label_classification",
        "regression": "regression",
    }[request.param]
    labels = ["stars"] if request.param == "regression" else ODD
    folder = tmp_path_factory.mktemp("odd") / request.param
    save_untrained(bert_folder, folder, labels, problem_type)
    return ptune.load(folder, dtype="float32")


def table_of(pairs):
    table = {"text": WORDS * 3, "id": list(range(27))}
    return table | ({"text_pair": WORDS[::-1] * 3} if pairs else {})


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("ending", ["csv", "tsv.gz", "jsonl.xz", "parquet", "arrow", "feather.zst"])
def test_predictions_are_read_back_as_labels(odd_classifier, tmp_path, ending, pairs):
    source = tmp_path / "in.parquet"
    parquet.write_table(pyarrow.table(table_of(pairs)), source)
    target = tmp_path / f"out.{ending}"
    assert classify(odd_classifier, source, target) == 27
    labels = odd_classifier.labels_
    ((texts, column),) = evaluation_sets(labels, file=target)[0].values()
    assert texts[0] == table_of(pairs)["text"]
    assert texts[1:] == ([table_of(pairs)["text_pair"]] if pairs else [])
    logits = np.array(list(odd_classifier.logits(as_rows(texts))))
    expected = labels.decide(logits)
    assert np.asarray(labels.encode(column)) == pytest.approx(expected, abs=1e-5)


def test_all_labels_of_a_text_are_read_back_from_one_cell():
    for several in (ODD, ODD[:1], ODD[3:4], [], ["late", "lost"]):
        column = label_column([joined(several)], "here", problem_type="multi_label_classification")
        assert column.values == [several]


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_text_column_of_any_name_is_found_among_the_predictions(classifier, tmp_path, ending):
    (tmp_path / "in.csv").write_text("Betreff\nhello\ngood bye\n")
    target = tmp_path / f"out.{ending}"
    classify(classifier, tmp_path / "in.csv", target)
    ((texts, column),) = evaluation_sets(classifier.labels_, file=target)[0].values()
    assert texts == [["hello", "good bye"]]
    assert set(column.values) <= {"no", "yes"}


def test_predict_takes_the_options_that_say_how_a_file_is_written(classifier, tmp_path):
    (tmp_path / "in.csv").write_bytes("1#Größe, M\n2#hello\n".encode("cp1252"))
    dialect = Dialect("#", "cp1252", header=False)
    rows = Source.of_file(tmp_path / "in.csv", Columns("2"), dialect)
    with writer(tmp_path / "out.csv", "csv", classifier) as out:
        assert write(classifier, rows, out) == (2, 0)
    assert [row["2"] for row in read(tmp_path / "out.csv")] == ["Größe, M", "hello"]


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("out.ods", "Name a .csv file; spreadsheets open it."),
        ("out.pdf", "Name a .csv, .jsonl or .parquet file."),
    ],
)
def test_predictions_are_not_written_in_other_formats(tmp_path, name, instead):
    with refused(f"Predictions are not written as {name[3:]}. {instead}"):
        format_of(tmp_path / name)


@pytest.mark.parametrize("name", ["out", "out.jsonl", "out.ndjson", "out.json.gz", "out.txt"])
def test_json_lines_have_several_extensions(tmp_path, name):
    assert format_of(tmp_path / name) == "jsonl"


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
def test_a_file_without_rows_gives_a_header(classifier, tmp_path, kind):
    source, full = tmp_path / f"none.{kind}", tmp_path / f"one.{kind}"
    if kind == "parquet":
        for file, texts in ((source, []), (full, ["hello"])):
            parquet.write_table(pyarrow.table({"id": texts, "text": texts}), file)
    else:
        comma = "," if kind == "csv" else "\t"
        source.write_text(f"id{comma}text\n")
        full.write_text(f"id{comma}text\n1{comma}hello\n")
    for target in ("csv", "tsv"):
        none, one = (tmp_path / f"{n}-out.{target}" for n in ("none", "one"))
        assert (classify(classifier, source, none), classify(classifier, full, one)) == (0, 1)
        assert none.read_text().splitlines() == one.read_text().splitlines()[:1]
    assert classify(classifier, source, tmp_path / "none.jsonl") == 0
    assert (tmp_path / "none.jsonl").read_text() == ""


def test_a_file_without_rows_and_without_a_text_column_is_refused(classifier, tmp_path):
    (tmp_path / "a.csv").write_text("where is my parcel,and my lamp\n")
    with pytest.raises(PtuneError, match="--no-header"):
        classify(classifier, tmp_path / "a.csv", tmp_path / "out.csv")
    (tmp_path / "empty.csv").write_text("")
    assert classify(classifier, tmp_path / "empty.csv", tmp_path / "out.csv") == 0


def test_a_file_without_rows_gives_a_header_of_several_tasks(bert_folder, tmp_path):
    for name in ("a", "b"):
        save_untrained(bert_folder, tmp_path / "tasks" / name)
    bank = ptune.PromptBank.from_folder(tmp_path / "tasks", dtype="float32")
    headers = []
    for name, rows in (("none", ""), ("one", "1,hello\n")):
        (tmp_path / f"{name}.csv").write_text("id,text\n" + rows)
        with (tmp_path / f"{name}-out.csv").open("w+") as out:
            source = Source.of_file(tmp_path / f"{name}.csv", Columns())
            assert write_all(bank, source, text_writer(out, "csv")) == (len(rows.splitlines()), 0)
            out.seek(0)
            headers.append(out.readline())
    assert headers[0] == headers[1] == "id,text,a,a score,b,b score\n"


def test_each_of_several_tasks_reads_the_columns_of_its_training(bert_folder, tmp_path):
    """As its own classifier does (`ptune predict runs/b --file …`)."""
    for name, columns in (("a", ["title"]), ("b", ["body"]), ("c", [])):
        save_untrained(bert_folder, tmp_path / "tasks" / name)
        edit_json(tmp_path / "tasks" / name / "ptune.json", text_columns=columns)
    file = tmp_path / "new.csv"
    file.write_text("title,body,text\nhello,where is my parcel,thanks\na,b c d,e f\n")
    bank = ptune.PromptBank.from_folder(tmp_path / "tasks", dtype="float32")
    first, other = (bank["a"](text).score for text in ("hello", "thanks"))
    assert first != pytest.approx(other, abs=1e-5)

    def answers(asked):
        out = io.StringIO()
        assert write_all(bank, Source.of_file(file, asked), text_writer(out, "jsonl")) == (2, 0)
        return [json.loads(line) for line in out.getvalue().splitlines()]

    for asked, read in ((Columns(), ("title", "body", "text")), (Columns("body"), ("body",) * 3)):
        for row in answers(asked):
            for task, column in zip("abc", read, strict=True):
                expected = bank[task](row[column]).probabilities
                assert row[task]["probabilities"] == pytest.approx(expected, abs=1e-5)
