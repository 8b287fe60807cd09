"""A folder of files becomes a folder of predictions, also when processes are killed."""

import csv
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pyarrow
import pytest
import torch
from pyarrow import parquet
from safetensors.torch import load_file
from test_files import read, save_untrained

import ptune
from ptune import PtuneError
from ptune.files import NEW_SECONDS, locked, replaced, staged_file
from ptune.inference.jobs import Recipe, find_jobs, run_jobs

ROWS = 40


@pytest.fixture(scope="module")
def classifier(bert_folder, tmp_path_factory):
    return save_untrained(bert_folder, tmp_path_factory.mktemp("adapters") / "one")


@pytest.fixture
def rows(texts):
    return [{"id": i, "text": f"{texts[i % 8]} {i}"} for i in range(ROWS)]


@pytest.fixture
def folder(tmp_path, rows):
    """Ten rows in each of four formats, one of them in a subfolder."""
    (tmp_path / "in/deep/er").mkdir(parents=True)
    parts = [rows[i : i + 10] for i in range(0, ROWS, 10)]
    parquet.write_table(pyarrow.Table.from_pylist(parts[0]), tmp_path / "in/a.parquet")
    (tmp_path / "in/b.jsonl").write_text("".join(json.dumps(r) + "\n" for r in parts[1]))
    for name, mark, part in (("c.csv", ",", parts[2]), ("deep/er/d.tsv", "\t", parts[3])):
        with (tmp_path / "in" / name).open("w", newline="") as f:
            writer = csv.DictWriter(f, ["id", "text"], delimiter=mark)
            writer.writeheader()
            writer.writerows(part)
    (tmp_path / "in/_SUCCESS.csv").write_text("a hidden file")
    (tmp_path / "in/README.txt").write_text("not a table")
    return tmp_path / "in"


def predict(folder, target, source, **options):
    """Classify as `ptune predict` does; the number of rows."""
    recipe = Recipe(str(source), dtype="float32", **options)
    jobs = [job for job in find_jobs(folder, target, recipe) if not job.is_done()]
    rows, _ = run_jobs(jobs, recipe)
    return rows


def times(folder):
    return {p.name: p.stat().st_mtime_ns for p in folder.rglob("*") if p.suffix in NAMES}


NAMES = {".parquet", ".jsonl", ".csv", ".tsv"}


def being_written(out, name):
    return any((stage / name).exists() for stage in out.glob(".writing-*"))


def test_every_file_is_written_with_its_rows_columns_and_predictions(
    classifier, folder, rows, tmp_path
):
    assert predict(folder, tmp_path / "out", classifier) == ROWS
    names = ["a.parquet", "b.jsonl", "c.csv", "deep/er/d.tsv"]
    files = sorted(p for p in (tmp_path / "out").rglob("*") if p.suffix in NAMES)
    assert files == [tmp_path / "out" / n for n in names]
    found = [row for file in files for row in read(file)]
    assert [(int(r["id"]), r["text"]) for r in found] == [(r["id"], r["text"]) for r in rows]
    expected = ptune.load(classifier, dtype="float32")([r["text"] for r in rows])
    assert [r["label"] for r in found] == [p.label for p in expected]
    assert [float(r["score"]) for r in found] == pytest.approx(
        [p.score for p in expected], abs=2e-6
    )
    assert found[0]["probabilities"] == pytest.approx(expected[0].probabilities, abs=1e-6)
    assert found[10]["probabilities"] == pytest.approx(expected[10].probabilities, abs=2e-6)
    assert float(found[20]["yes"]) == pytest.approx(expected[20].probabilities["yes"], abs=2e-6)


def test_only_missing_and_changed_files_are_classified_again(
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
    assert predict(folder, out, other) == 0  # the same adapter in another folder
    shutil.rmtree(other)
    save_untrained(bert_folder, other, labels=("x", "y"))
    assert predict(folder, out, other) == 41
    assert {r["label"] for r in read(out / "c.csv")} <= {"x", "y"}


def test_weights_in_peft_s_older_format_belong_to_what_predictions_are_made_from(
    classifier, folder, tmp_path
):
    old = Path(shutil.copytree(classifier, tmp_path / "old"))
    tensors = load_file(old / "adapter_model.safetensors")
    (old / "adapter_model.safetensors").unlink()
    for _ in range(2):
        torch.save(tensors, old / "adapter_model.bin")
        assert predict(folder, tmp_path / "out", old) == ROWS
        assert predict(folder, tmp_path / "out", old) == 0
        tensors = {name: -tensor for name, tensor in tensors.items()}


def test_a_damaged_file_is_named_and_the_others_are_classified(classifier, folder, rows, tmp_path):
    lines = [json.dumps(r) for r in rows * 100]
    lines[3_999] = '{"text": ""}'
    (folder / "b.jsonl").write_text("\n".join(lines))
    with pytest.raises(PtuneError, match=r"1 of 4 files .*empty text .*b.jsonl, at row 4000 "):
        predict(folder, tmp_path / "out", classifier)
    assert set(times(tmp_path / "out")) == {"a.parquet", "c.csv", "d.tsv"}
    (folder / "b.jsonl").write_text("\n".join(lines[:50]))
    assert predict(folder, tmp_path / "out", classifier) == 50
    assert not list((tmp_path / "out").rglob(".writing-*"))


@pytest.mark.parametrize(
    ("source", "target", "part"),
    [
        ("in", "in/out", "is the folder of the input"),
        ("in", "in", "is the folder of the input"),
        ("in/c.csv", "in", "is the folder of the input"),
        ("nowhere", "out", "no file or folder"),
        ("in/deep/empty", "out", "contains no .csv"),
        ("in/c.csv", "out.parquet", "only be written from a Parquet, Arrow or Feather file"),
    ],
)
def test_impossible_jobs_are_refused_and_leave_the_input_unchanged(
    classifier, folder, tmp_path, source, target, part
):
    (folder / "deep/empty").mkdir()
    before = times(folder)
    with pytest.raises(PtuneError, match=part):
        predict(tmp_path / source, tmp_path / target, classifier)
    assert times(folder) == before


def test_predictions_are_not_mixed_with_a_classifier(classifier, folder):
    before = times(classifier)
    with pytest.raises(PtuneError, match="is the folder of a classifier"):
        predict(folder, classifier, classifier)
    assert times(classifier) == before


def test_files_that_ptune_did_not_write_are_never_replaced(classifier, folder, tmp_path):
    own = tmp_path / "backup/deep/er/d.tsv"
    own.parent.mkdir(parents=True)
    own.write_text("mine")
    with pytest.raises(PtuneError, match=r"backup/deep/er/d\.tsv exists, .* Name another folder"):
        predict(folder, tmp_path / "backup", classifier)
    assert (own.read_text(), times(tmp_path / "backup").keys()) == ("mine", {"d.tsv"})


def test_a_folder_does_not_become_a_file(classifier, folder, tmp_path):
    with pytest.raises(PtuneError, match=r"all\.csv names a file, and .* is a folder"):
        predict(folder, tmp_path / "all.csv", classifier)


def test_two_files_that_would_become_one_are_refused(classifier, tmp_path):
    (tmp_path / "a.xlsx").write_bytes(b"a workbook")
    (tmp_path / "a.xlsx.csv").write_text("text\none\n")
    with pytest.raises(PtuneError, match=r"a\.xlsx and .*a\.xlsx\.csv would both become .*out/a"):
        find_jobs(tmp_path, tmp_path.parent / "out", Recipe(str(classifier)))


def test_a_missing_backbone_is_reported_once(classifier, folder, tmp_path):
    shutil.copytree(classifier, tmp_path / "gone")
    config = tmp_path / "gone/adapter_config.json"
    named = json.loads(config.read_text()) | {"base_model_name_or_path": "/gone/away"}
    config.write_text(json.dumps(named))
    with pytest.raises(PtuneError) as refused:
        predict(folder, tmp_path / "out", tmp_path / "gone")
    assert str(refused.value) == "There is no backbone folder /gone/away. Check the path."


def test_the_message_says_how_to_install_ray(classifier, folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    recipe = Recipe(str(classifier))
    jobs = find_jobs(folder, tmp_path / "out", recipe)
    with pytest.raises(PtuneError, match=r"pip install 'ptune\[ray\]'"):
        run_jobs(jobs, recipe, ray=True)


def test_only_unfinished_files_that_nobody_is_writing_are_removed(classifier, folder, tmp_path):
    stages = [tmp_path / "out" / f".writing-{name}" for name in ("now", "left")]
    stages += [tmp_path / "out/.ptune/.writing-now"]
    for stage in stages:
        stage.mkdir(parents=True)
        (stage / "x.csv").write_text("text,la")
    time.sleep(1)
    with locked(stages[0]), locked(stages[2]):
        assert predict(folder, tmp_path / "out", classifier) == ROWS
    assert [stage.is_dir() for stage in stages] == [True, False, True]


def test_what_a_killed_process_left_of_a_file_is_removed_with_the_next_one(tmp_path):
    code = "import os, pathlib, sys; from ptune.files import staged_file\n"
    code += "with staged_file(pathlib.Path(sys.argv[1])) as file: file.touch(); os._exit(9)"
    for name in ("out.csv", "other.csv"):
        subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], check=False)
    assert len(list(tmp_path.iterdir())) == 2
    time.sleep(2 * NEW_SECONDS)
    with staged_file(tmp_path / "out.csv") as file:
        file.write_text("text")
        with staged_file(tmp_path / "out.csv") as again:  # by another process at once
            again.write_text("more")
        assert file.exists()
    left = [file for file in tmp_path.iterdir() if file.is_dir()]
    assert [[f.name for f in stage.iterdir()] for stage in left] == [["other.csv"]]


def test_what_a_killed_process_left_is_removed_unless_it_is_the_only_copy(tmp_path):
    left = {name: tmp_path / f".writing-{name}-1" for name in ("a[1]", "a[1]-kept", "b")}
    for stage in left.values():
        (stage / "new").mkdir(parents=True)
    (left["a[1]-kept"] / "former").mkdir()
    time.sleep(1)
    with replaced(tmp_path / "a[1]") as stage:
        (stage / "file").write_text("new")
    found = {name for name, stage in left.items() if stage.is_dir()}
    assert found == {"a[1]-kept", "b"}
    assert sorted(tmp_path.glob("a*/*")) == [tmp_path / "a[1]/file"]


@pytest.mark.slow
def test_a_killed_process_resumes_where_it_stopped(classifier, texts, tmp_path):
    (tmp_path / "in").mkdir()
    for i in range(6):
        lines = [json.dumps({"id": n, "text": f"{texts[n % 8]} {i} {n}"}) for n in range(4000)]
        (tmp_path / f"in/{i}.jsonl").write_text("\n".join(lines))
    out = tmp_path / "out"
    words = [sys.executable, "-m", "ptune", "predict", classifier, "--file", tmp_path / "in"]
    words += ["--dtype", "float32", "--output", out]
    process = subprocess.Popen([*map(str, words)], stderr=subprocess.PIPE, text=True)
    # Kill it in the middle of the third file.
    while not (out / "1.jsonl").exists() or not being_written(out, "2.jsonl"):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)
    process.kill()
    process.communicate()
    before = {p.name: p.stat().st_mtime_ns for p in out.glob("*.jsonl")}
    assert 2 <= len(before) < 6
    assert being_written(out, f"{len(before)}.jsonl"), "the process was killed between two files"
    assert predict(tmp_path / "in", out, classifier) == 4000 * (6 - len(before))
    assert {n: t for n, t in times(out).items() if n in before} == before
    for i in range(6):
        assert [r["id"] for r in read(out / f"{i}.jsonl")] == list(range(4000))
    assert not list(out.glob(".writing-*"))
