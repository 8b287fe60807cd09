"""Predictions are written with the rows and columns of the input, in every format."""

import csv
import datetime
import decimal
import json

import pyarrow
import pytest
from pyarrow import parquet

import ptune
from ptune import PromptModel, PtuneError
from ptune.backbones.loading import load_backbone
from ptune.data.tables import Columns
from ptune.inference.files import Source, format_of, write, writer
from ptune.peft import PromptEncoderConfig


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
        return write(classifier, rows, out)


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
