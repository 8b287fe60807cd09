"""Folders of files become folders of predictions, whatever is killed meanwhile."""

import csv
import datetime
import decimal
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

import ptune
from ptune import PromptEncoderConfig, PromptModel, PtuneError
from ptune.adapters import adapter
from ptune.backbones.loading import load_backbone
from ptune.inference import files as scoring

ROWS = 40


def untrained(model, folder, labels=("no", "yes"), problem_type="single_label_classification"):
    backbone = load_backbone(str(model), labels=labels, problem_type=problem_type, dtype="float32")
    config = PromptEncoderConfig(num_virtual_tokens=4, encoder_reparameterization_type="NONE")
    adapter.save(PromptModel(backbone, config), folder, trained_state=False)
    return folder


@pytest.fixture(scope="module")
def classifier(bert_folder, tmp_path_factory):
    return untrained(bert_folder, tmp_path_factory.mktemp("adapters") / "one")


@pytest.fixture
def rows(texts):
    return [{"id": i, "text": f"{texts[i % 8]} {i}"} for i in range(ROWS)]


@pytest.fixture
def folder(tmp_path, rows):
    """Ten rows in each of four formats, one of them further down."""
    (tmp_path / "in/deep/er").mkdir(parents=True)
    parts = [rows[i : i + 10] for i in range(0, ROWS, 10)]
    parquet.write_table(pyarrow.Table.from_pylist(parts[0]), tmp_path / "in/a.parquet")
    (tmp_path / "in/b.jsonl").write_text("".join(json.dumps(r) + "\n" for r in parts[1]))
    for name, mark, part in (("c.csv", ",", parts[2]), ("deep/er/d.tsv", "\t", parts[3])):
        with (tmp_path / "in" / name).open("w", newline="") as f:
            writer = csv.DictWriter(f, ["id", "text"], delimiter=mark)
            writer.writeheader()
            writer.writerows(part)
    (tmp_path / "in/_SUCCESS.csv").write_text("not for us")
    (tmp_path / "in/README.txt").write_text("nor this")
    return tmp_path / "in"


def read(file):
    if file.suffix == ".parquet":
        return parquet.read_table(file).to_pylist()
    if file.suffix == ".jsonl":
        return [json.loads(line) for line in file.read_text().splitlines()]
    with file.open(newline="") as f:
        return list(csv.DictReader(f, delimiter="," if file.suffix == ".csv" else "\t"))


def predict(folder, target, source, **options):
    """What `ptune predict` does; the rows it classified."""
    recipe = scoring.Recipe(str(source), dtype="float32", **options)
    todo = [job for job in scoring.jobs(folder, target, recipe) if not job.is_done()]
    return scoring.do(todo, recipe)


def times(folder):
    return {p.name: p.stat().st_mtime_ns for p in folder.rglob("*") if p.suffix in NAMES}


NAMES = {".parquet", ".jsonl", ".csv", ".tsv"}


def being_written(out, name):
    return any((stage / name).exists() for stage in out.glob(".writing-*"))


def test_every_file_comes_out_with_its_rows_columns_and_predictions(
    classifier, folder, rows, tmp_path
):
    assert predict(folder, tmp_path / "out", classifier) == ROWS
    names = ["a.parquet", "b.jsonl", "c.csv", "deep/er/d.tsv"]
    files = sorted(p for p in (tmp_path / "out").rglob("*") if p.suffix in NAMES)
    assert files == [tmp_path / "out" / n for n in names]
    found = [row for file in files for row in read(file)]
    assert [(int(r["id"]), r["text"]) for r in found] == [(r["id"], r["text"]) for r in rows]
    wanted = ptune.load(classifier, dtype="float32")([r["text"] for r in rows])
    assert [r["label"] for r in found] == [p.label for p in wanted]
    assert [float(r["score"]) for r in found] == pytest.approx([p.score for p in wanted], abs=2e-6)
    assert found[0]["probabilities"] == pytest.approx(wanted[0].probabilities, abs=1e-6)
    assert found[10]["probabilities"] == pytest.approx(wanted[10].probabilities, abs=2e-6)
    assert float(found[20]["yes"]) == pytest.approx(wanted[20].probabilities["yes"], abs=2e-6)


def test_what_is_done_is_not_done_again_and_what_changed_is(
    classifier, folder, bert_folder, tmp_path
):
    out = tmp_path / "out"
    predict(folder, out, classifier)
    first = times(out)
    assert predict(folder, out, classifier) == 0
    assert times(out) == first

    with (folder / "b.jsonl").open("a") as f:
        f.write('{"id": 99, "text": "one more"}\n')
    (out / "c.csv").write_text("cut sh")
    (out / "a.parquet").unlink()
    assert predict(folder, out, classifier) == 11 + 10 + 10
    assert {n for n, t in times(out).items() if t == first[n]} == {"d.tsv"}
    assert len(read(out / "b.jsonl")) == 11

    other = Path(shutil.copytree(classifier, tmp_path / "other"))
    assert predict(folder, out, other) == 0  # the same adapter, elsewhere
    shutil.rmtree(other)
    untrained(bert_folder, other, labels=("x", "y"))
    assert predict(folder, out, other) == 41
    assert {r["label"] for r in read(out / "c.csv")} <= {"x", "y"}


def test_a_broken_file_is_named_and_the_others_are_done(classifier, folder, rows, tmp_path):
    lines = [json.dumps(r) for r in rows * 100]
    lines[3_999] = '{"text": ""}'
    (folder / "b.jsonl").write_text("\n".join(lines))
    with pytest.raises(PtuneError, match=r"1 of 4 files .*b.jsonl has 1 empty.* example 4000 of"):
        predict(folder, tmp_path / "out", classifier)
    assert set(times(tmp_path / "out")) == {"a.parquet", "c.csv", "d.tsv"}
    (folder / "b.jsonl").write_text("\n".join(lines[:50]))
    assert predict(folder, tmp_path / "out", classifier) == 50
    assert not list((tmp_path / "out").rglob(".writing-*"))


def test_names_that_are_taken_are_left_to_the_input(classifier, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "hello", "label": "gold", "score": 5}\n')
    for name in ("once", "twice"):
        source = {"once": tmp_path / "a.jsonl", "twice": tmp_path / "once/a.jsonl"}[name]
        predict(source, tmp_path / name, classifier)
    (row,) = read(tmp_path / "once/a.jsonl")
    assert (row["label"], row["score"]) == ("gold", 5)
    assert row["predicted_label"] in ("no", "yes")
    (again,) = read(tmp_path / "twice/a.jsonl")
    assert again == {
        **row, **{f"predicted_{k}": v for k, v in row.items() if k.startswith("predicted_")}
    }  # fmt: skip


def test_a_name_that_only_later_rows_take_is_refused(classifier, rows, tmp_path):
    lines = [json.dumps({**r, **({"label": 1} if i > 3000 else {})}) for i, r in
             enumerate(rows * 100)]  # fmt: skip
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    with pytest.raises(PtuneError, match="Some rows have a 'label'"):
        predict(tmp_path / "a.jsonl", tmp_path / "out", classifier)


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
    (tmp_path / "in").mkdir()
    parquet.write_table(table, tmp_path / "in/a.parquet")
    parquet.write_table(table.slice(0, 0), tmp_path / "in/none.parquet")
    assert predict(tmp_path / "in", tmp_path / "out", classifier) == 2
    found, none = (parquet.read_table(tmp_path / "out" / n) for n in ("a.parquet", "none.parquet"))
    assert found.select(table.column_names).equals(table)
    assert none.schema == found.schema
    assert len(none) == 0
    # And as text, where a name stands for what JSON has not.
    jobs = scoring.jobs(tmp_path / "in/a.parquet", tmp_path / "a.jsonl", recipe(classifier))
    scoring.do(jobs, recipe(classifier))
    assert read(tmp_path / "a.jsonl")[0]["price"] == "1.10"
    assert str(datetime.date(1970, 1, 1)) in read(tmp_path / "a.jsonl")[0]["at"]


def recipe(source):
    return scoring.Recipe(str(source))


@pytest.mark.parametrize(
    ("problem_type", "kind"),
    [("multi_label_classification", "list"), ("regression", "double")],
)
def test_several_labels_and_numbers_are_columns_of_their_kind(
    bert_folder, tmp_path, problem_type, kind
):
    labels = ("late", "broken") if kind == "list" else ("stars",)
    source = untrained(bert_folder, tmp_path / "adapter", labels, problem_type)
    table = pyarrow.table({"first": ["hello"] * 3, "second": ["x", "y", "z"]})
    parquet.write_table(table, tmp_path / "a.parquet")
    columns = ptune.data.dataset.Columns("first", "second")
    predict(tmp_path / "a.parquet", tmp_path / "out", source, columns=columns)
    found = parquet.read_table(tmp_path / "out/a.parquet")
    assert str(found.schema.field("label").type).startswith(kind)
    wanted = ptune.load(source, dtype="float32")([("hello", s) for s in "xyz"])
    assert [r["score"] for r in found.to_pylist()] == pytest.approx([p.score for p in wanted])
    assert [r["label"] for r in found.to_pylist()] == [
        pytest.approx(p.label) if kind == "double" else p.label for p in wanted
    ]


@pytest.mark.parametrize(
    ("source", "target", "part"),
    [
        ("in", "in/out", "where the input is"),
        ("in", "in", "where the input is"),
        ("in/c.csv", "in", "where the input is"),
        ("nowhere", "out", "no file or folder"),
        ("in/deep/empty", "out", "holds no .csv"),
        ("in/c.csv", "out.parquet", "from a Parquet file only"),
    ],
)
def test_what_cannot_be_done_is_refused_and_leaves_the_input(
    classifier, folder, tmp_path, source, target, part
):
    (folder / "deep/empty").mkdir()
    before = times(folder)
    with pytest.raises(PtuneError, match=part):
        predict(tmp_path / source, tmp_path / target, classifier)
    assert times(folder) == before


def test_an_adapter_whose_backbone_is_gone_is_refused_once(classifier, folder, tmp_path):
    shutil.copytree(classifier, tmp_path / "gone")
    config = tmp_path / "gone/adapter_config.json"
    named = json.loads(config.read_text()) | {"base_model_name_or_path": "/gone/away"}
    config.write_text(json.dumps(named))
    with pytest.raises(PtuneError) as refused:
        predict(folder, tmp_path / "out", tmp_path / "gone")
    assert str(refused.value) == "There is no backbone folder /gone/away. Check the path."


def test_without_ray_it_says_how_to_get_it(classifier, folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    jobs = scoring.jobs(folder, tmp_path / "out", recipe(classifier))
    with pytest.raises(PtuneError, match=r"pip install 'ptune\[ray\]'"):
        scoring.do(jobs, recipe(classifier), ray=True)


@pytest.mark.slow
def test_a_process_that_is_killed_is_taken_up_where_it_was(classifier, texts, tmp_path):
    (tmp_path / "in").mkdir()
    for i in range(6):
        lines = [json.dumps({"id": n, "text": f"{texts[n % 8]} {i} {n}"}) for n in range(4000)]
        (tmp_path / f"in/{i}.jsonl").write_text("\n".join(lines))
    out = tmp_path / "out"
    words = [sys.executable, "-m", "ptune", "predict", classifier, "--file", tmp_path / "in"]
    words += ["--dtype", "float32", "--output", out]
    process = subprocess.Popen([*map(str, words)], stderr=subprocess.PIPE, text=True)
    # In the middle of the third file.
    while not (out / "1.jsonl").exists() or not being_written(out, "2.jsonl"):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)
    process.kill()
    process.communicate()
    before = {p.name: p.stat().st_mtime_ns for p in out.glob("*.jsonl")}
    assert 2 <= len(before) < 6
    assert being_written(out, f"{len(before)}.jsonl"), "it was killed between two files"
    assert predict(tmp_path / "in", out, classifier) == 4000 * (6 - len(before))
    assert {n: t for n, t in times(out).items() if n in before} == before
    for i in range(6):
        assert [r["id"] for r in read(out / f"{i}.jsonl")] == list(range(4000))
    assert not list(out.glob(".writing-*"))
