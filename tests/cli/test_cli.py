"""The `ptune` command: exit codes, files, and one line for each error."""

import csv
import gzip
import io
import json
import os
import shutil
import statistics
import struct
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
import typer
from conftest import call, cut_short, edit_json, edit_tensors
from safetensors.torch import load_file, save_file
from typer.main import get_command

import ptune
from ptune.cli.app import app
from ptune.cli.train import interruptible
from ptune.training.declaration import settings_of

COMMAND = str(Path(sys.executable).with_name("ptune"))


@pytest.fixture
def run_ptune(capsys, monkeypatch):
    """Runs `ptune`, with standard input; returns exit code, output and errors."""

    def run(*words, stdin=None):
        if stdin is not None:
            wrong = "surrogateescape"  # as Python reads standard input without a locale
            content = io.BytesIO(stdin.encode(errors=wrong))
            stream = io.TextIOWrapper(content, encoding="utf-8", errors=wrong)
            monkeypatch.setattr(sys, "stdin", stream)
        capsys.readouterr()
        code = call(*words)
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return run


@pytest.fixture
def refused(run_ptune):
    """Runs `ptune`, which must refuse: exit code 2 and one line with all of `parts`."""

    def refuse(words, *parts):
        done = run_ptune(*words)
        assert done.code == 2, done
        assert done.out == ""
        assert "Traceback" not in done.err
        assert done.err.startswith("Error: ")
        assert done.err.count("\n") == 1
        assert [p for p in parts if str(p) not in done.err] == [], done.err

    return refuse


@pytest.fixture(scope="module")
def mail(tmp_path_factory, texts):
    file = tmp_path_factory.mktemp("mail") / "mail.csv"
    with file.open("w", newline="") as f:
        csv.writer(f).writerows(
            [("text", "label"), *((f"{t} {i}", "ab"[i % 2]) for i, t in enumerate(texts * 2))]
        )
    return file


@pytest.fixture(scope="module")
def flags(bert_folder, mail):
    """Options for tiny runs. Later options override them."""
    chosen = ["train", "--model", bert_folder, "--train-file", mail, "--num-virtual-tokens", 4]
    return [*chosen, "--epochs", 1, "--batch-size", 8, "--dtype", "float32"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, flags):
    """A run folder after two epochs."""
    folder = tmp_path_factory.mktemp("runs") / "mail"
    assert call(*flags, "--epochs", 2, "--output-dir", folder) == 0
    return folder


@pytest.fixture
def damaged(trained, tmp_path):
    """A copy of the run that may be damaged."""
    return Path(shutil.copytree(trained, tmp_path / "damaged"))


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def json_lines(text):
    return [json.loads(line) for line in text.splitlines()]


# Training.

PICTURES = ("training_curve", "confusion_matrix", "label_scores")


def test_a_run_folder_has_an_adapter_scores_settings_and_pictures(trained):
    names = {p.name for p in trained.iterdir()}
    assert names == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "ptune.json",
        "metrics.json",
        "settings.json",
        *(f"{name}.{kind}" for name in PICTURES for kind in ("png", "svg")),
        "report.html",
        "report.json",
        "mistakes.csv",
        "checkpoints",
    }


def test_metrics_json_has_the_last_the_best_and_every_epoch(trained):
    metrics = json.loads((trained / "metrics.json").read_text())
    assert [e["epoch"] for e in metrics["epochs"]] == [1, 2]
    last = metrics["epochs"][-1]
    assert metrics["eval"] == {k: last[k] for k in ("loss", "accuracy", "f1_macro")}
    assert metrics["best"]["accuracy"] == max(e["accuracy"] for e in metrics["epochs"])


def test_settings_json_has_the_options(trained, bert_folder, mail):
    settings = json.loads((trained / "settings.json").read_text())
    typed = {"epochs": 2, "batch_size": 8, "num_virtual_tokens": 4, "dtype": "float32"}
    typed |= {"model": str(bert_folder), "train_file": str(mail)}
    assert {k: settings[k] for k in typed} == typed


def test_config_repeats_a_run_to_the_byte(trained, tmp_path):
    words = ["train", "--config", trained / "settings.json", "--output-dir", tmp_path / "again"]
    assert call(*words) == 0
    for file in ("adapter_model.safetensors", "adapter_config.json", "ptune.json", "settings.json"):
        assert (tmp_path / "again" / file).read_bytes() == (trained / file).read_bytes()


def test_options_override_the_config(trained, tmp_path):
    words = ["--epochs", 1, "--weight-decay", 0.5, "--output-dir", tmp_path / "run"]
    assert call("train", "--config", trained / "settings.json", *words) == 0
    before = json.loads((trained / "settings.json").read_text())
    after = json.loads((tmp_path / "run" / "settings.json").read_text())
    changed = {"epochs": 1.0, "training_arguments": {"weight_decay": 0.5}}
    assert after == {**before, **changed}


def test_a_config_that_is_not_there_is_refused(refused, tmp_path):
    words = ["train", "--config", tmp_path / "settings.json", "--output-dir", tmp_path / "run"]
    refused(words, tmp_path / "settings.json", "settings.json of a run")


def test_a_config_for_several_processes_is_refused_in_one(refused, trained, tmp_path):
    settings = json.loads((trained / "settings.json").read_text())
    (tmp_path / "two.json").write_text(json.dumps({**settings, "processes": 2, "loss": "labels"}))
    words = ["train", "--config", tmp_path / "two.json", "--output-dir", tmp_path / "run"]
    refused(words, "2 processes", "1", "torchrun")


@pytest.mark.parametrize("name", PICTURES)
def test_the_pictures_are_valid_png_files(trained, name):
    data = (trained / f"{name}.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert data[-8:-4] == b"IEND"
    width, height = struct.unpack(">II", data[16:24])
    assert min(width, height) > 200


def test_training_prints_epochs_majority_class_and_the_next_step(run_ptune, flags, tmp_path):
    done = run_ptune(*flags, "--output-dir", tmp_path / "run")
    assert done.code == 0
    assert "epoch  1.0/1" in done.out
    assert "majority class" in done.out
    assert f"ptune predict {tmp_path / 'run'}" in done.out


def test_training_prints_the_problem_type_and_how_to_change_it(run_ptune, flags, tmp_path):
    done = run_ptune(*flags, "--output-dir", tmp_path / "run")
    printed = " ".join(done.out.split())
    assert "Trained as single_label_classification with 2 labels: " in printed
    assert "To change that, use --problem-type." in printed


@pytest.mark.parametrize(("labels", "title"), [("abab", "majority class (tie)"), ("aaab", None)])
def test_the_table_says_if_several_labels_are_equally_frequent(
    run_ptune, flags, tmp_path, labels, title
):
    for name in ("train", "eval"):
        rows = [f"text {i},{labels[i % 4]}" for i in range(8)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["text,label", *rows]))
    files = ["--train-file", tmp_path / "train.csv", "--eval-file", tmp_path / "eval.csv"]
    done = run_ptune(*flags, *files, "--output-dir", tmp_path / "run")
    row = next(line for line in done.out.splitlines() if "majority class" in line)
    assert (title or "majority class") in row
    assert ("tie" in row) == (title is not None)
    # Of equally frequent labels the first one, a.
    assert f"{labels.count('a') / 4:.4f}" in row


def test_a_label_with_a_single_example_is_named(run_ptune, flags, tmp_path, caplog):
    rows = [f"text {i},{'ab'[i % 2]}" for i in range(12)] + ["text 12,rare"]
    (tmp_path / "a.csv").write_text("\n".join(["text,label", *rows]))
    done = run_ptune(*flags, "--train-file", tmp_path / "a.csv", "--output-dir", tmp_path / "run")
    assert done.code == 0
    assert "1 label(s) have a single example, such as rare." in caplog.text


def test_columns_of_zeros_and_ones_are_trained_and_evaluated(run_ptune, flags, tmp_path):
    """An empty cell is unknown: it counts neither way, in training and in the scores."""
    rows = [f"text {i},{i % 2},{'' if i % 3 else 1 - i % 2}" for i in range(12)]
    (tmp_path / "a.csv").write_text("\n".join(["text,late,rude", *rows]))
    columns = ["--indicator-column", "late", "--indicator-column", "rude"]
    done = run_ptune(
        *flags, "--train-file", tmp_path / "a.csv", *columns, "--output-dir", tmp_path / "run"
    )
    assert done.code == 0, done
    assert "multi_label_classification with 2 labels: late, rude" in " ".join(done.out.split())
    done = run_ptune("evaluate", tmp_path / "run", "--file", tmp_path / "a.csv", *columns)
    classifier = ptune.load(tmp_path / "run")
    known = classifier.predict([f"text {i}" for i in range(12)]) == [
        [i % 2, -1 if i % 3 else 1 - i % 2] for i in range(12)
    ]
    right = [known[i, 0] and (i % 3 != 0 or known[i, 1]) for i in range(12)]
    assert json.loads(done.out)["accuracy"] == pytest.approx(np.mean(right))


def test_columns_of_zeros_and_ones_and_a_label_column_are_refused_together(refused, mail, trained):
    words = ["evaluate", trained, "--file", mail, "--label-column", "label"]
    refused([*words, "--indicator-column", "late"], "--label-column or --indicator-column")
    refused([*words[:4], "--indicator-column", "late"], "has no column 'late'")


def test_every_field_of_training_arguments_is_an_option(flags, tmp_path):
    more = ["--weight-decay", "0.5", "--load-best-model-at-end", "--gradient-accumulation-steps=2"]
    assert call(*flags, *more, "--output-dir", tmp_path / "run") == 0
    settings = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert settings["training_arguments"] == {
        "weight_decay": 0.5,
        "load_best_model_at_end": True,
        "gradient_accumulation_steps": 2,
    }
    args = torch.load(
        next((tmp_path / "run" / "checkpoints").glob("*/training_args.bin")), weights_only=False
    )
    assert (args.weight_decay, args.gradient_accumulation_steps) == (0.5, 2)
    assert args.load_best_model_at_end is True


def test_a_glue_task_is_trained_from_its_folder(flags, tmp_path, texts):
    folder = tmp_path / "glue" / "CoLA"
    folder.mkdir(parents=True)
    for name in ("train", "dev"):
        lines = [f"gj04\t{i % 2}\t\t{t}" for i, t in enumerate(texts)]
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    at = flags.index("--train-file")
    words = [*flags[:at], *flags[at + 2 :], "--task", "cola", "--data-dir", tmp_path / "glue"]
    assert call(*words, "--output-dir", tmp_path / "run") == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["eval"].keys() == {"loss", "matthews_correlation"}
    assert ptune.load(tmp_path / "run").labels == ["unacceptable", "acceptable"]


def test_overwrite_replaces_a_run(damaged, flags):
    assert call(*flags, "--overwrite", "--output-dir", damaged) == 0
    assert len(json.loads((damaged / "metrics.json").read_text())["epochs"]) == 1


# Predicting.


def test_typed_texts_become_json_lines(run_ptune, trained):
    records = json_lines(run_ptune("predict", trained, "where is it", "thank you").out)
    assert [r["text"] for r in records] == ["where is it", "thank you"]
    for record in records:
        assert record["probabilities"].keys() == {"a", "b"}
        assert record["label"] == max(record["probabilities"], key=record["probabilities"].get)
        assert record["score"] == record["probabilities"][record["label"]]
        assert sum(record["probabilities"].values()) == pytest.approx(1, abs=1e-5)


def test_pair_gives_the_second_text_of_a_pair(run_ptune, trained):
    (record,) = json_lines(run_ptune("predict", trained, "It rains.", "--pair", "Rain.").out)
    (alone,) = json_lines(run_ptune("predict", trained, "It rains.").out)
    assert (record["text"], record["text_pair"]) == ("It rains.", "Rain.")
    assert record["probabilities"] != alone["probabilities"]


@pytest.mark.parametrize(("words", "mark"), [([], ""), (["-"], ""), ([], "\ufeff")])
def test_lines_of_standard_input_are_texts(run_ptune, trained, words, mark):
    done = run_ptune("predict", trained, *words, stdin=mark + "where is it\r\nthank you")
    assert [r["text"] for r in json_lines(done.out)] == ["where is it", "thank you"]


def test_the_name_of_a_file_is_a_text_with_a_note(run_ptune, trained, mail):
    done = run_ptune("predict", trained, mail)
    assert [r["text"] for r in json_lines(done.out)] == [str(mail)]
    assert f"use --file {mail}" in " ".join(done.err.split())


def test_a_text_that_was_read_as_the_header_is_noted(run_ptune, trained, tmp_path):
    (tmp_path / "a.csv").write_text("where is my parcel?\nno parcel yet\n")
    done = run_ptune("predict", trained, "--file", tmp_path / "a.csv")
    assert len(json_lines(done.out)) == 1
    assert "'where is my parcel?', was read as the header" in " ".join(done.err.split())
    done = run_ptune("predict", trained, "--file", tmp_path / "a.csv", "--no-header")
    assert len(json_lines(done.out)) == 2
    assert not done.err


def test_a_tab_in_standard_input_separates_a_pair(run_ptune, trained):
    (record,) = json_lines(run_ptune("predict", trained, stdin="It rains.\tRain falls.\n").out)
    assert (record["text"], record["text_pair"]) == ("It rains.", "Rain falls.")


def test_predictions_for_a_file_keep_its_order(run_ptune, trained, tmp_path, texts):
    # Mixed lengths: within a window, texts are sorted by length.
    mixed = [" ".join(texts[:3]), "hi", texts[0], "thank you", " ".join(texts[3:5])] * 2
    file = tmp_path / "new.csv"
    file.write_text("text\n" + "\n".join(mixed) + "\n")
    done = run_ptune("predict", trained, "--file", file, "--dtype", "float32")
    records = json_lines(done.out)
    assert [r["text"] for r in records] == mixed
    classifier = ptune.load(trained, dtype="float32", batch_size=1)
    for record in records:
        alone = classifier(record["text"]).probabilities
        assert record["probabilities"] == pytest.approx(alone, abs=1e-4)
    assert len({r["score"] for r in records}) > 1


def test_all_tasks_of_a_folder_answer_for_each_text(run_ptune, refused, trained, flags, tmp_path):
    runs = tmp_path / "runs"
    shutil.copytree(trained, runs / "mail")
    assert call(*flags, "--prompt", "reader", "--output-dir", runs / "reader") == 0
    (tmp_path / "new.csv").write_text("id,text\n1,where is it\n2,please send my money\n")
    asked = ["predict", runs, "--file", tmp_path / "new.csv", "--dtype", "float32", "--all-tasks"]
    records = json_lines(run_ptune(*asked).out)
    assert [list(r) for r in records] == [["id", "text", "mail", "reader"]] * 2
    for name in ("mail", "reader"):
        classifier = ptune.load(runs / name, dtype="float32")
        for record in records:
            expected = classifier(record["text"])
            assert record[name]["label"] == expected.label
            assert record[name]["probabilities"] == pytest.approx(expected.probabilities, abs=1e-4)
    done = run_ptune(*asked, "--output", tmp_path / "labels.csv")
    assert "2 texts with the predictions of 2 tasks" in done.err
    with (tmp_path / "labels.csv").open(newline="") as f:
        rows = list(csv.DictReader(f))
    names = ["id", "text", "mail", "mail score", "reader", "reader score"]
    assert [list(row) for row in rows] == [names] * 2
    assert [row["reader"] for row in rows] == [r["reader"]["label"] for r in records]
    refused(
        [*asked, "--abstain", 0.5],
        "--all-tasks does not work with --ray, --revision, --abstain, --mark-truncated, "
        "--runtime and --format table",
    )
    (tmp_path / "new.csv").write_text(f"text,mail\nwhere is it {'now ' * 600},x\n")
    done = run_ptune(*asked)
    assert "A part of 1 text was not read: it is too long." in done.err
    (record,) = json_lines(done.out)
    assert record["mail"] == "x"
    assert list(record) == ["text", "mail", "predicted_mail", "predicted_reader"]


def test_a_format_that_cannot_be_written_is_refused_before_anything_is_loaded(refused, tmp_path):
    (tmp_path / "new.csv").write_text("text\nwhere is it\n")
    file, output = ("--file", tmp_path / "new.csv"), ("--output", tmp_path / "x.parquet")
    reason = "A .parquet file can only be written from a Parquet, Arrow or Feather file"
    refused(["predict", "nowhere", "a text", *output], reason)
    refused(["predict", "nowhere", *file, *output], reason)
    refused(["classify", *file, "--labels", "a,b", "--model", "nowhere", *output], reason)
    refused(["predict", "nowhere", *file, *output, "--all-tasks"], "--all-tasks does not write")


@pytest.mark.parametrize("how", ["--format", "--output"])
def test_predictions_in_csv_format_are_valid_csv(run_ptune, trained, tmp_path, how):
    file = tmp_path / "new.jsonl"
    texts = ['one, "two"\nthree', "Grüße aus Köln"]
    file.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    target = tmp_path / "labels.csv"
    words = ["--format", "csv"] if how == "--format" else ["--output", target]
    done = run_ptune("predict", trained, "--file", file, *words)
    assert done.code == 0
    content = done.out if how == "--format" else target.read_bytes().decode()
    rows = list(csv.DictReader(io.StringIO(content, newline="")))
    assert [r["text"] for r in rows] == texts
    assert list(rows[0]) == ["text", "label", "score", "a", "b"]
    assert all(float(r["score"]) == max(float(r["a"]), float(r["b"])) for r in rows)


def test_a_label_with_the_name_of_a_column_does_not_overwrite_it(run_ptune, flags, tmp_path, texts):
    file = tmp_path / "a.csv"
    rows = [f"{t} {i},{['text', 'score'][i % 2]}" for i, t in enumerate(texts * 2)]
    file.write_text("text,label\n" + "\n".join(rows) + "\n")
    words = ["--train-file", file, "--output-dir", tmp_path / "run"]
    assert run_ptune(*flags, *words).code == 0
    done = run_ptune("predict", tmp_path / "run", "hello", "--format", "csv")
    (row,) = csv.DictReader(io.StringIO(done.out))
    assert row["text"] == "hello"
    assert float(row["score"]) == max(float(row["text (label)"]), float(row["score (label)"]))


def test_a_table_shows_label_and_probability(run_ptune, trained):
    done = run_ptune("predict", trained, "hello", "--format", "table")
    assert "hello" in done.out
    assert "%" in done.out


def test_texts_and_names_are_shown_as_they_are(run_ptune, trained, tmp_path):
    text = "a [/b] text [red]and[x] :smile:"
    for words in ([], ["--format", "jsonl"]):
        assert text in run_ptune("predict", trained, text, "--format", "table", *words).out
    shutil.copytree(trained, tmp_path / "runs/run[a]")
    edit_json(tmp_path / "runs/run[a]/metrics.json", task="my[red]d")
    listed = run_ptune("list", tmp_path / "runs").out
    assert "run[a]" in listed
    assert "my[red]d" in listed


@pytest.mark.parametrize(
    "file", [("--output", "out.csv"), ("--file", "a.csv", "--output", "b.csv")]
)
def test_a_file_is_never_written_as_a_table_for_people(
    refused, trained, tmp_path, file, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").write_text("text\nhello\n")
    words = [*(() if "--file" in file else ["hello"]), *file, "--format", "table"]
    refused(["predict", trained, *words], f"--format table is for the terminal, and {file[-1]}")
    assert [f.name for f in tmp_path.iterdir()] == ["a.csv"]


def test_the_files_of_a_folder_are_labelled_once(run_ptune, trained, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        (tmp_path / f"in/{name}.csv").write_text(f"id,text\n1,{name}\n2,hello\n")
    words = ["predict", trained, "--file", tmp_path / "in", "--output", tmp_path / "out"]
    first = run_ptune(*words)
    assert (first.code, first.out) == (0, "")
    assert "4 predictions" in first.err
    assert "2 files were done before" in run_ptune(*words).err
    with (tmp_path / "out/b.csv").open(newline="") as f:
        rows = list(csv.DictReader(f))
    assert [(r["id"], r["text"]) for r in rows] == [("1", "b"), ("2", "hello")]
    assert list(rows[0]) == ["id", "text", "label", "score", "a", "b"]


def test_texts_that_were_cut_are_counted_wherever_the_predictions_go(run_ptune, trained, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.csv").write_text(f"text\n{'long ' * 99}\nshort\n")
    words = ["predict", trained, "--file", tmp_path / "in/a.csv"]
    for output in ([], ["--output", tmp_path / "a.csv"], ["--output", tmp_path / "out/"]):
        said = run_ptune(*words, *output).err
        assert "A part of 1 text was not read: it is too long." in said, output


def test_a_folder_requires_an_output_folder(refused, trained, tmp_path):
    refused(["predict", trained, "--file", tmp_path], "--output")
    refused(["predict", trained, "hello", "--ray"], "--file", "--output")


def test_empty_standard_input_gives_no_prediction(run_ptune, trained):
    done = run_ptune("predict", trained, stdin="")
    assert (done.code, done.out) == (0, "")
    assert "There are no texts to classify." in done.err


# Evaluating, describing, helping.


def test_evaluate_prints_and_writes_the_scores(run_ptune, trained, mail, tmp_path):
    done = run_ptune("evaluate", trained, "--file", mail, "--output", tmp_path / "scores.json")
    scores = json.loads(done.out)
    assert json.loads((tmp_path / "scores.json").read_text()) == scores
    with mail.open(newline="") as f:
        rows = list(csv.DictReader(f))
    predicted = ptune.load(trained).predict([r["text"] for r in rows])
    right = sum(p == r["label"] for p, r in zip(predicted, rows, strict=True))
    assert scores["accuracy"] == right / len(rows)


@pytest.mark.parametrize(
    "asked",
    [
        "predict RUN --file DATA --output DATA",
        "predict RUN --all-tasks --file DATA --output DATA",
        "evaluate RUN --file DATA --output DATA",
        "report RUN --file DATA --output PAGE",
        "report RUN --train-file MISTAKES --file OTHER --output PAGE",
        "explain RUN text --train-file DATA --output DATA",
        "check DATA --output DATA",
        "check OTHER --eval-file DATA --output DATA",
        "check DATA --fix DATA",
        "classify --labels a,b --file DATA --output DATA",
    ],
)
def test_no_command_writes_over_the_file_it_reads(run_ptune, trained, mail, tmp_path, asked):
    """A link to the file is the file. A report has files next to its page."""
    data, link = tmp_path / "data.json", tmp_path / "link.json"
    shutil.copy(mail, data)
    link.symlink_to(data)
    places = {"RUN": trained, "DATA": data, "OTHER": mail, "PAGE": tmp_path / "link.html"}
    places["MISTAKES"] = shutil.copy(mail, tmp_path / "link-mistakes.csv")
    before = data.read_bytes()
    *words, last = [places.get(word, word) for word in asked.split()]
    done = run_ptune(*words, link if last == data else last)
    assert (done.code, data.read_bytes()) == (2, before)
    assert "is also what is read, and would be replaced." in " ".join(done.err.split())


def test_info_names_backbone_size_labels_and_scores(run_ptune, trained, bert_folder):
    printed = " ".join(run_ptune("info", trained).out.split())
    for part in ("tiny-bert", "4 virtual tokens x 128, in every layer", "a, b", "accuracy"):
        assert part in printed


def test_train_has_an_option_for_every_setting_and_shows_its_default(run_ptune, monkeypatch):
    monkeypatch.setenv("COLUMNS", "500")
    lines = run_ptune("train", "--help").out.splitlines()
    for setting in settings_of(ptune.TrainSettings).values():
        name = f"--{setting.name.replace('_', '-')} "
        parts = (name, setting.help, f"[default: {setting.shown_default}]")
        parts = parts if setting.shown_default else parts[:2]
        found = [line for line in lines if all(part in line for part in parts)]
        assert len(found) == bool(setting.section), setting


@pytest.mark.parametrize("command", ["train", "evaluate", "predict", "info", "export", "demo"])
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_every_subcommand_has_help(run_ptune, command, option):
    done = run_ptune(command, option)
    assert done.code == 0
    assert f"ptune {command}" in done.out
    assert "<bool>" not in done.out  # a flag takes no value


def test_without_a_subcommand_the_subcommands_are_listed(run_ptune):
    done = run_ptune()
    for command in ("train", "evaluate", "predict", "info", "demo"):
        assert command in done.out + done.err


def test_version_prints_the_version_of_the_package(run_ptune):
    assert run_ptune("--version").out.strip() == ptune.__version__


def test_several_seeds_give_several_runs_with_mean_and_deviation(run_ptune, flags, tmp_path):
    words = [*flags, "--seeds", 3, "--seed", 5, "--output-dir", tmp_path / "runs"]
    done = run_ptune(*words)
    assert done.code == 0, done
    runs = [json.loads((tmp_path / f"runs/seed-{s}/metrics.json").read_text()) for s in (5, 6, 7)]
    accuracies = [run["eval"]["accuracy"] for run in runs]
    spread = json.loads((tmp_path / "runs/seeds.json").read_text())["accuracy"]
    assert spread["mean"] == pytest.approx(statistics.mean(accuracies))
    assert spread["std"] == pytest.approx(statistics.stdev(accuracies))
    for part in ("3 seeds", "mean", "standard deviation", f"{spread['mean']:.4f}"):
        assert part in done.out
    # A finished run is kept. A missing one is trained.
    before = contents(tmp_path / "runs/seed-5")
    shutil.rmtree(tmp_path / "runs/seed-6")
    assert run_ptune(*words, "--resume").code == 0
    assert contents(tmp_path / "runs/seed-5") == before
    again = json.loads((tmp_path / "runs/seed-6/metrics.json").read_text())
    assert again["eval"] == runs[1]["eval"]


def test_if_the_folder_of_one_seed_is_taken_nothing_is_trained(refused, flags, tmp_path):
    (tmp_path / "runs/seed-1").mkdir(parents=True)
    (tmp_path / "runs/seed-1/mine.txt").write_text("mine")
    refused(
        [*flags, "--seeds", 2, "--output-dir", tmp_path / "runs"], "seed-1", "not from a ptune run"
    )
    assert not (tmp_path / "runs/seed-0").exists()


def test_examples_per_label_limits_the_training_set(flags, tmp_path):
    for seed in (0, 1):
        out = tmp_path / str(seed)
        words = ["--examples-per-label", 3, "--seed", seed, "--output-dir", out]
        assert call(*flags, *words) == 0
        assert json.loads((out / "metrics.json").read_text())["train_examples"] == 6


# Refused before training.


# An input prompt takes positions from the text.
INPUT = ("--prompt", "input")


@pytest.fixture(scope="module")
def no_classifier(tmp_path_factory, tokenizer):
    """A backbone without a sequence classification class."""
    folder = tmp_path_factory.mktemp("backbones") / "tiny-vit"
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    transformers.ViTModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--weigth-decay", "0.5"], ["no option --weigth-decay", "Did you mean --weight-decay?"]),
        (["--epoch", "3"], ["no option --epoch", "Did you mean --epochs?"]),
        (["--batchsize=3"], ["no option --batchsize", "Did you mean --batch-size?"]),
        (["--num-train-epochs", "3"], ["Use --epochs instead"]),
        (["--weight-decay", "much"], ["weight-decay", "'much'", "ptune train --help"]),
        (["--lr-scheduler-type", "linaer"], ["'linaer'", "'linear'", "ptune train --help"]),
        (["--num-epochs", "3"], ["no option --num-epochs", "Did you mean --epochs?"]),
        (["--lr", "1e-3"], ["no option --lr", "Did you mean --learning-rate?"]),
        (["--neftune-noise-alpha", "5"], ["neftune_noise_alpha", "frozen", "Leave it out"]),
        (["stray"], ["'stray'", "ptune train --help"]),
        ([__file__], ["was not expected", f"--train-file {__file__}"]),
        (["--task", "mrpc"], ["--task", "--train-file", "and one only"]),
        (["--text-column", "txet"], ["mail.csv", "'txet'", "did you mean 'text'"]),
        (["--eval-file", "nowhere.csv"], ["There is no file nowhere.csv"]),
        (["--num-virtual-tokens", "0"], ["num_virtual_tokens is 0", "at least 1"]),
        (["--num-virtual-tokens", "-3"], ["num_virtual_tokens is -3", "at least 1"]),
        (
            ["--prompt", "input", "--num-virtual-tokens", "64"],
            ["64 virtual tokens", "64 positions", "smaller"],
        ),
        (
            ["--prompt", "input", "--num-virtual-tokens", "1000"],
            ["1000 virtual tokens", "64 positions", "smaller"],
        ),
        (["--encoder", "MLP", "--encoder-hidden-size", "0"], ["encoder_hidden_size is 0"]),
        (["--model", "/nowhere/bert"], ["no backbone folder /nowhere/bert", "Check the path"]),
        (["--model", "no-such/backbone"], ["no-such/backbone", "--model minilm"]),
        (["--seeds", "0"], ["seeds is 0", "at least 1"]),
        (["--examples-per-label", "0"], ["examples_per_label is 0", "at least 1"]),
        (["--encoder", "LSTM"], ["'LSTM'", "deep prompt", "'MLP' or 'NONE'"]),
        (["--resume"], ["holds no run to resume", "Leave out --resume"]),
    ],
)
def test_wrong_options_are_refused_and_leave_no_folder(refused, flags, tmp_path, words, parts):
    refused([*flags, *words, "--output-dir", tmp_path / "run"], *parts)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flag", "value", "part"),
    [
        ("--batch-size", "0", "batch_size"),
        ("--batch-size", "-1", "batch_size"),
        ("--epochs", "0", "epochs"),
        ("--epochs", "-1", "epochs"),
        ("--max-length", "0", "max_length"),
        ("--max-length", "-5", "max_length"),
        ("--learning-rate", "-1", "learning_rate"),
        ("--learning-rate", "nan", "learning_rate"),
        ("--prompt-learning-rate", "-1", "learning_rate"),
        ("--seed", "-1", "seed"),
        ("--report-to", "nonsense", "nonsense"),
        ("--warmup-steps", "-1", "warmup_steps"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name_and_leaves_no_folder(
    refused, flags, tmp_path, flag, value, part
):
    refused([*flags, flag, value, "--output-dir", tmp_path / "run"], part)
    assert not (tmp_path / "run").exists()


def test_a_second_value_is_not_dropped_in_silence(run_ptune, flags, mail, tmp_path):
    words = [*flags, "--train-file", mail, "--dry-run", "--output-dir", tmp_path / "run"]
    words += ["--text-column", "subject", "--text-column", "text", "--dry-run"]
    said = run_ptune(*words).err
    for option, used in (("--train-file", mail), ("--text-column", "text")):
        assert f"{option} was given more than once, and takes one value: {used} is used." in said
    assert said.count("more than once") == 2


def test_a_run_on_pairs_says_how_to_ask_for_a_pair(run_ptune, flags, tmp_path):
    pairs = tmp_path / "pairs.csv"
    rows = [f"where is it {i},it is here {i},{'ab'[i % 2]}\n" for i in range(20)]
    pairs.write_text("".join(["text,text_pair,label\n", *rows]))
    words = ["--train-file", pairs, "--max-steps", 1, "--output-dir", tmp_path / "run #1"]
    said = run_ptune(*flags, *words).out
    assert f'Try it: ptune predict \'{tmp_path}/run #1\' "…" --pair "…"' in said


def test_several_runs_are_resumed_by_the_command_that_started_them(refused, mail, tmp_path):
    (tmp_path / "seed-0").mkdir()
    (tmp_path / "seed-0" / "settings.json").write_text("{}")
    words = ["train", "--resume", "--train-file", mail, "--output-dir", tmp_path]
    refused(words, "holds runs in folders of their own (seed-0). Resume them with the command")


@pytest.mark.parametrize(
    ("begun", "runs", "told"),
    [
        (True, 1, ". To continue: ptune train --resume --output-dir 'my runs'"),
        (True, 3, ". To continue: repeat the command with --resume"),
        (False, 1, " before the training began. Repeat the command to start again."),
    ],
)
def test_an_interrupted_command_says_how_to_continue(
    capsys, tmp_path, monkeypatch, begun, runs, told
):
    monkeypatch.chdir(tmp_path)
    if begun:
        Path("my runs").mkdir()
        Path("my runs/settings.json").write_text("{}")
    with pytest.raises(typer.Exit), interruptible(Path("my runs"), runs=runs):
        raise KeyboardInterrupt
    assert capsys.readouterr().err.strip() == f"Interrupted{told}"


def test_a_shell_completes_a_command_with_a_stray_file(mail):
    command = get_command(app).commands["evaluate"]
    assert command.make_context("evaluate", ["run", str(mail)], resilient_parsing=True)


def test_a_file_without_its_option_is_refused_with_the_option(run_ptune, mail, tmp_path):
    done = run_ptune("evaluate", tmp_path, mail)
    assert done.code == 2
    assert f"Name the file: --file {mail}" in " ".join(done.err.replace("│", "").split())


def test_a_prompt_that_leaves_no_positions_for_a_text_is_refused(refused, flags, tmp_path):
    # Each text has two special tokens, which need two of the 64 positions.
    words = ["--prompt", "input", "--num-virtual-tokens", 63, "--output-dir", tmp_path / "run"]
    refused([*flags, *words], "63 virtual tokens", "64 positions", "smaller")
    assert not (tmp_path / "run").exists()


def test_a_backbone_that_cannot_classify_is_refused(refused, flags, no_classifier, tmp_path):
    words = ["--model", no_classifier, "--output-dir", tmp_path / "run"]
    refused([*flags, *words], no_classifier, "no sequence-classification class", "roberta-large")


def test_a_missing_relative_folder_is_called_a_folder(refused, flags, tmp_path):
    words = ["--model", "./nowhere", "--output-dir", tmp_path / "run"]
    refused([*flags, *words], "no backbone folder", "nowhere", "Check the path")


def test_a_folder_with_a_run_is_not_changed(refused, flags, damaged):
    before = contents(damaged)
    refused([*flags, "--output-dir", damaged], damaged, "--resume", "--overwrite")
    assert contents(damaged) == before


@pytest.mark.parametrize("flag", [[], ["--overwrite"], ["--resume"]])
def test_a_folder_with_other_files_is_never_changed(refused, flags, tmp_path, flag):
    (tmp_path / "precious.txt").write_text("mine")
    refused([*flags, *flag, "--output-dir", tmp_path], tmp_path, "holds")
    assert contents(tmp_path) == {Path("precious.txt"): b"mine"}


def test_overwriting_with_wrong_settings_keeps_the_former_run(refused, flags, damaged):
    before = contents(damaged)
    words = ["--overwrite", "--warmup-steps", "-1", "--output-dir", damaged]
    refused([*flags, *words], "warmup_steps")
    assert contents(damaged) == before


def test_an_output_path_that_is_a_file_is_refused(refused, flags, mail):
    before = mail.read_bytes()
    refused([*flags, "--output-dir", mail], mail, "is a file. Name a folder to write to.")
    assert mail.read_bytes() == before


def test_a_loss_of_nan_stops_with_the_likely_cause(run_ptune, flags, tmp_path):
    words = ["--learning-rate", 1e38, "--batch-size", 2, "--loss", "labels"]
    done = run_ptune(*flags, *words, "--output-dir", tmp_path / "run")
    assert done.code == 2
    assert "NaN or infinite in step" in done.err
    assert "--learning-rate" in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "run" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("words", [["train", "--task", "mrpc"], ["predict"], ["nonsense"]])
def test_missing_and_unknown_words_give_exit_code_2(run_ptune, words):
    done = run_ptune(*words)
    assert done.code == 2
    assert "Usage" in done.err
    assert "Traceback" not in done.err


# Refused adapters.


def with_prompt(embeddings):
    return lambda folder: edit_tensors(folder, {"prompt_embeddings": embeddings})


def with_config(name="adapter_config.json", **changed):
    def change(folder):
        edit_json(folder / name, **changed)

    return change


DAMAGE = {
    "cut short": (cut_short, ["adapter_model.safetensors", "damaged or cut short"]),
    "of another length": (
        with_prompt(torch.zeros(3, 128)),
        ["prompt_embeddings", "[3, 128]", "expected [4"],
    ),
    "without a prompt": (with_prompt(None), ["'prompt_embeddings'", "not a p-tuning adapter"]),
    "without weights": (
        lambda f: (f / "adapter_model.safetensors").unlink(),
        ["no adapter_model.safetensors", "incomplete"],
    ),
    "without a configuration": (
        lambda f: (f / "adapter_config.json").unlink(),
        ["no adapter_config.json", "not an adapter", "checkpoints/checkpoint-"],
    ),
    "with a configuration that is no JSON": (
        lambda f: (f / "adapter_config.json").write_text("num_virtual_tokens: 4"),
        ["adapter_config.json", "damaged"],
    ),
    "with a configuration that is a list": (
        lambda f: (f / "adapter_config.json").write_text("[]"),
        ["adapter_config.json", "damaged"],
    ),
    "of another method": (with_config(peft_type="LORA"), ["'LORA'", "'P_TUNING'"]),
    "of the future": (with_config("ptune.json", requires=["rotary"]), ["rotary", "Upgrade ptune"]),
    "with labels that are no JSON": (
        lambda f: (f / "ptune.json").write_text("a, b"),
        ["ptune.json", "damaged"],
    ),
}


@pytest.mark.parametrize("command", ["predict", "info"])
@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_adapter_is_refused(refused, damaged, kind, command):
    damage, parts = DAMAGE[kind]
    damage(damaged)
    refused([command, damaged, *(["hello"] if command == "predict" else [])], *parts)


def test_an_unknown_field_of_an_adapter_is_warned_about(run_ptune, damaged):
    with_config(rotary=True)(damaged)
    done = run_ptune("predict", damaged, "hello")
    assert (done.code, len(json_lines(done.out))) == (0, 1)
    assert "rotary" in done.err


def test_an_adapter_with_a_head_of_another_size_is_refused(refused, damaged):
    edit_tensors(damaged, {"base_model.classifier.weight": torch.zeros(2, 7)})
    refused(["predict", damaged, "hello"], "classifier.weight", "[2, 7]", "[2, 32]")


def test_an_adapter_without_its_backbone_is_refused(refused, damaged):
    with_config(base_model_name_or_path="/gone/away")(damaged)
    refused(["predict", damaged, "hello"], "/gone/away", "Check the path")


@pytest.mark.parametrize("command", ["predict", "info", "evaluate"])
def test_a_missing_adapter_folder_is_refused(refused, tmp_path, command):
    refused([command, tmp_path / "nowhere"], tmp_path / "nowhere", "Check the path")


def test_a_file_instead_of_an_adapter_is_refused(refused, mail):
    refused(["info", mail], mail, "is a file", "adapter_config.json")


# Refused texts.


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_text_is_refused(refused, trained, text):
    refused(["predict", trained, "hello", text], "empty text", "row 2")


def test_an_empty_second_text_is_refused(refused, trained):
    refused(["predict", trained, "hello", "--pair", ""], "second texts", "empty text")


def test_standard_input_in_another_encoding_is_refused(run_ptune, trained):
    done = run_ptune("predict", trained, stdin="caf\udce9\n")
    assert done.code == 2
    assert "Error: Standard input is not UTF-8" in done.err


def test_streams_that_are_closed_do_not_stop_a_command(run_ptune, trained, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    assert "There are no texts" in run_ptune("predict", trained).err
    monkeypatch.setattr(sys, "stdout", None)
    assert call("predict", trained, "hello") == 0


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_letters_that_an_encoding_lacks_are_escaped(trained, monkeypatch, encoding):
    """As with PYTHONIOENCODING=ascii, or in a pipe on Windows."""
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", out)
    assert call("predict", trained, "grün 😀") == 0
    out.flush()
    assert json.loads(out.buffer.getvalue().decode(encoding))["text"] == "grün 😀"


def test_a_tilde_is_the_home_folder(refused, run_ptune, trained, flags, tmp_path, monkeypatch):
    """A shell leaves it in --output=~/x.csv, and others start ptune without a shell."""
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir(), here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    monkeypatch.chdir(here)
    shutil.copytree(trained, home / "run")
    assert call("predict", "~/run", "~/hello", "--output=~/out/x.csv") == 0
    assert "~/hello" in (home / "out" / "x.csv").read_text()
    (here / "c.yaml").write_text("train-file: ~/out/x.csv\nlabel-column: label\n")
    assert ptune.TrainSettings.read(here / "c.yaml").train_file == str(home / "out" / "x.csv")
    ptune.load("~/run").save("~/saved")
    assert (home / "saved" / "adapter_config.json").is_file()
    refused(["check", "~/out/y.csv"], home / "out" / "y.csv")
    assert [file.name for file in here.iterdir()] == ["c.yaml"]


def test_an_empty_line_of_standard_input_is_refused(run_ptune, trained):
    done = run_ptune("predict", trained, stdin="one\n\nthree\n")
    assert done.code == 2
    assert "empty text in the texts, at row 2 (counting from 1)" in done.err


def test_a_line_that_is_no_pair_among_pairs_is_refused(run_ptune, trained):
    done = run_ptune("predict", trained, stdin="one\ttwo\nthree\n")
    assert done.code == 2
    assert "the single text 'three' in the pairs of texts, at row 2 (counting from 1)" in done.err


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["hello", "--file", "{here}"], ["texts or --file, not both"]),
        (["one", "two", "--pair", "three"], ["--pair", "exactly one text"]),
        (["--file", "nowhere.csv"], ["There is no file or folder nowhere.csv"]),
        (["--file", "{here}"], ["'.txt'", ".csv"]),
        (["hello", "--workers", "3"], ["--workers", "Add --ray"]),
    ],
)
def test_wrong_options_of_predict_are_refused(refused, trained, tmp_path, words, parts):
    here = tmp_path / "a.txt"
    here.write_text("hello\n")
    refused(["predict", trained, *(word.format(here=here) for word in words)], *parts)


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (["train", "--train-file", "mial.csv", "--output-dir", "run"], "file"),
        (["evaluate", "anybody/adapter", "--file", "mial.csv"], "file"),
        (["predict", "anybody/adapter", "--file", "mial.csv"], "file or folder"),
    ],
)
def test_a_missing_file_is_named_before_anything_is_loaded(refused, mail, monkeypatch, words, kind):
    """Nothing of the adapter is asked of the Hub, and no heavy package is imported."""
    monkeypatch.chdir(mail.parent)
    refused(words, f"There is no {kind} mial.csv. Did you mean mail.csv?")


def test_failed_predictions_keep_the_former_output(refused, trained, tmp_path):
    output = tmp_path / "labels.csv"
    output.write_text("former")
    refused(["predict", trained, "one", "", "--output", output], "empty text")
    assert contents(tmp_path) == {Path("labels.csv"): b"former"}


def test_an_output_that_is_a_link_stays_one(run_ptune, trained, mail, tmp_path):
    (tmp_path / "link.csv.gz").symlink_to("other.gz")
    for how in (["one"], ["--file", mail]):
        run_ptune("predict", trained, *how, "--output", tmp_path / "link.csv.gz")
        assert (tmp_path / "link.csv.gz").is_symlink()
        assert {p.name for p in tmp_path.iterdir()} == {"link.csv.gz", "other.gz"}
        with gzip.open(tmp_path / "other.gz", "rt") as f:
            assert f.readline().startswith("text,label,")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("all_tasks", [False, True])
def test_a_pipe_gets_the_output_and_stays(run_ptune, trained, mail, tmp_path, all_tasks):
    pipe, got = tmp_path / "pipe", []
    os.mkfifo(pipe)
    adapter = [trained.parent, "--all-tasks"] if all_tasks else [trained]
    for how in (["one", "two"], ["--file", mail]):
        reader = threading.Thread(target=lambda: got.append(pipe.read_text()), daemon=True)
        reader.start()
        done = run_ptune("predict", *adapter, *how, "--output", pipe)
        reader.join(20)
        assert done.code == 0, done.err
        assert pipe.is_fifo()
        assert json.loads(got.pop().splitlines()[0])["text"]


def test_all_tasks_take_another_backbone_only_if_told_to(
    run_ptune, refused, trained, bert_folder, tmp_path
):
    other = tmp_path / "other"
    shutil.copytree(bert_folder, other)
    tensors = load_file(other / "model.safetensors")
    save_file({n: t + 1 for n, t in tensors.items()}, other / "model.safetensors", {"format": "pt"})
    shutil.copytree(trained, tmp_path / "runs/mail")
    words = ["predict", tmp_path / "runs", "hello", "--all-tasks", "--model", other]
    refused(words, "None of the tasks in", "mail", "--allow-other-backbone")
    (record,) = json_lines(run_ptune(*words, "--allow-other-backbone").out)
    assert list(record) == ["text", "mail"]


LONG = "where is my parcel? " * 30


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["predict", LONG, "runs/m"], "…' cannot be the name of a folder or of a repository"),
        (["list", LONG], "…: File name too long."),
        (["train", "--train-file", LONG], "…: File name too long."),
    ],
)
def test_a_name_that_the_system_refuses_is_an_error_in_one_line(refused, tmp_path, words, why):
    output = ["--output-dir", tmp_path / "run"] if words[0] == "train" else []
    refused([*words, *output], "where is my parcel? where", why)


def test_a_file_that_may_not_be_read_is_an_error_in_one_line(refused, mail, monkeypatch):
    from ptune.cli import quality

    def check(*args, **options):
        raise PermissionError(13, "Permission denied", str(mail))

    monkeypatch.setattr(quality, "check_output", check)
    refused(["check", mail], f"Error: {mail}: Permission denied.")


def test_columns_of_two_tasks_never_replace_each_other(run_ptune, refused, trained, tmp_path):
    for name in ("mail", "mail score"):
        shutil.copytree(trained, tmp_path / "runs" / name)
    asked = ["predict", tmp_path / "runs", "--all-tasks", "one", "--format"]
    refused([*asked, "csv"], "Two tasks have a column 'mail score'")
    assert {"mail", "mail score"} < json.loads(run_ptune(*asked, "jsonl").out).keys()


@pytest.mark.parametrize(
    "asked",
    [
        "predict RUN one --output FOLDER",
        "predict RUN --all-tasks --file DATA --output FOLDER",
        "check DATA --fix FOLDER",
        "classify one --labels a,b --output FOLDER",
    ],
)
def test_an_output_that_is_a_folder_is_refused_before_any_work(
    refused, mail, tmp_path, asked, monkeypatch
):
    monkeypatch.setattr("ptune.quality.check.check", None)
    places = {"RUN": tmp_path / "not read", "DATA": mail, "FOLDER": tmp_path}
    refused([places.get(word, word) for word in asked.split()], "is a folder. Name a file.")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("--save DATA", "is a file. Name a folder to write to."),
        ("--text-column x", "--text-column is for a file or a data set, and this is typed texts"),
        ("--output a.csv.gz --format jsonl", "--format is jsonl, and the name of a.csv.gz"),
        ("--output a.xlsx --format csv", "Predictions are not written as .xlsx."),
    ],
)
def test_options_of_classify_that_contradict_each_other_are_refused_before_any_work(
    refused, mail, asked, message
):
    words = [mail if word == "DATA" else word for word in asked.split()]
    refused(["classify", "one", "--labels", "a,b", "--model", "nowhere", *words], message)


@pytest.fixture
def asked_without_training(monkeypatch):
    """The arguments of `zero_shot`, which does nothing."""
    asked = {}

    def zero_shot(labels, **how):
        asked.update(how)
        raise ptune.PtuneError("asked")

    monkeypatch.setattr(ptune.PromptClassifier, "zero_shot", zero_shot)
    return asked


def test_line_breaks_of_a_typed_template_are_read(run_ptune, asked_without_training):
    run_ptune("classify", "one", "--labels", "a,b", "--template", r"{text}\nSo:")
    assert asked_without_training["template"] == "{text}\nSo:"


def test_classify_takes_pairs(run_ptune, asked_without_training, tmp_path):
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("text,text_pair\na,b\n")
    for words, expected in ((["--file", pairs], True), (["one"], False)):
        run_ptune("classify", *words, "--labels", "a,b")
        assert asked_without_training["pairs"] == expected


def test_scores_that_are_not_numbers_are_null(run_ptune, bert_folder, tmp_path):
    numbers = tmp_path / "numbers.csv"
    numbers.write_text("text,label\n" + "".join(f"the money {i},{i / 7}\n" for i in range(16)))
    run = ["--train-file", numbers, "--output-dir", tmp_path / "run", "--num-virtual-tokens", 1]
    done = run_ptune("train", "--model", bert_folder, *run, "--epochs", 1, "--dtype", "float32")
    assert done.code == 0, done.err
    (tmp_path / "equal.csv").write_text("text,label\na,1\nb,1\nc,1\n")
    scores = {"pearson": None, "spearman": None}
    for how in ([], ["--json"]):
        output = tmp_path / "scores.json"
        on = ["--file", tmp_path / "equal.csv", "--output", output]
        assert json.loads(run_ptune("evaluate", tmp_path / "run", *on, *how).out) == scores
        assert json.loads(output.read_text()) == scores


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ([], ["--task", "--file"]),
        (["--task", "mprc"], ["'mprc'", "did you mean 'mrpc'"]),
        (["--file", "nowhere.csv"], ["There is no file nowhere.csv"]),
    ],
)
def test_wrong_options_of_evaluate_are_refused(refused, trained, words, parts):
    refused(["evaluate", trained, *words], *parts)


def test_columns_that_were_named_for_training_are_read_again(run_ptune, flags, tmp_path):
    """Although other columns have names that say text and label, and the second comes first."""
    rows = [
        (f"second {i}", f"first {i}", f"another {i}", "ab"[i % 2], "xy"[i // 2 % 2])
        for i in range(40)
    ]
    table = tmp_path / "pairs.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([("s2", "s1", "text", "label", "tone"), *rows])
    named, run = ["--text-column", "s1", "--text-pair-column", "s2"], tmp_path / "run"
    tone = ["--label-column", "tone"]
    words = ["--train-file", table, *named, *tone, "--epochs", 1, "--output-dir", run]
    assert call(*flags, *words) == 0
    for command, more in (
        (["predict", run, "--file", table, "--format", "jsonl"], []),
        (["evaluate", run, "--file", table], tone),
        (["compare", run, run, "--file", table, "--json"], tone),
        (["report", run, "--file", table, "--fast", "--json"], tone),
        (["drift", run, "--file", table, "--fast", "--json"], []),
    ):
        given, found = run_ptune(*command, *named, *more), run_ptune(*command)
        assert (given.code, found.code) == (0, 0), found.err
        assert found.out == given.out
    once, again = tmp_path / "once.csv", tmp_path / "again.csv"
    for how, output in ((named, once), ([], again)):
        done = run_ptune("predict", run, "--file", table, "--output", output, *how)
        assert done.code == 0, done.err
    assert once.read_text() == again.read_text()
    other = run_ptune("predict", run, "--file", table, "--text-column", "s1", "--format", "jsonl")
    assert "trained on pairs" in other.err


@pytest.mark.parametrize(
    ("words", "wrong", "kind"),
    [
        (["train", "--dataset", "d", "--eval-file", "a.csv"], "--eval-file", "a data set"),
        (["train", "--dataset", "d", "--sheet", "e"], "--sheet", "a data set"),
        (["train", "--task", "mrpc", "--eval-file", "a.csv"], "--eval-file", "a GLUE task"),
        (["train", "--task", "mrpc", "--annotators"], "--annotators", "a GLUE task"),
        (["train", "--train-file", "a.csv", "--dataset-config", "c"], "--dataset-config", "a file"),
        (["train", "--train-file", "a.csv", "--data-dir", "d"], "--data-dir", "a file"),
        (["evaluate", "m", "--file", "a.csv", "--split", "s"], "--split", "a file"),
        (["evaluate", "m", "--dataset", "d", "--data-dir", "d"], "--data-dir", "a data set"),
        (["report", "m", "--slice-column", "c"], "--slice-column", "the data of the run"),
        (["report", "m", "--text-column", "c"], "--text-column", "the data of the run"),
        (["predict", "m", "hello", "--text-column", "c"], "--text-column", "typed texts"),
    ],
)
def test_options_for_other_data_are_refused(refused, trained, tmp_path, words, wrong, kind):
    here = tmp_path / "a.csv"
    here.write_text("text,label\nhello,a\n")
    words = [{"m": trained, "a.csv": here}.get(word, word) for word in words]
    output = ["--output-dir", tmp_path / "run"] if words[0] == "train" else []
    refused([*words, *output], f"{wrong} is for ", f"this is {kind}", "Leave it out")


def test_a_label_that_training_never_saw_counts_as_an_error_and_is_reported(
    run_ptune, trained, tmp_path
):
    (tmp_path / "b.csv").write_text("text,label\nhello,c\n")
    done = run_ptune("evaluate", trained, "--file", tmp_path / "b.csv")
    assert (done.code, json.loads(done.out)["accuracy"]) == (0, 0.0)
    assert "unknown to the classifier: 'c'" in done.err


# The real command.


def test_the_real_command_truncates_long_texts_and_prints_how_many(flags, tmp_path, texts):
    long, short = " ".join(texts), "short"
    rows = [f"{long if i < 10 else short} {i},{'ab'[i % 2]}" for i in range(20)]
    (tmp_path / "long.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    words = [*flags, "--prompt", "input"]
    words += ["--train-file", tmp_path / "long.csv", "--output-dir", tmp_path / "run"]
    done = subprocess.run([COMMAND, *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    cut = json.loads((tmp_path / "run" / "metrics.json").read_text())["truncated_texts"]
    assert sum(cut.values()) == 10
    for name, number in cut.items():
        if number:
            assert f"{number} texts of {name} were cut to 60 tokens" in done.stderr
    assert "Traceback" not in done.stderr


def own_lines(stderr):
    """The lines that ptune prints. torchao, installed for other tests, prints when imported."""
    foreign = ("Failed to load", "Warning: Detected no triton", "W1", "W0", "Skipping import")
    return [line for line in stderr.splitlines() if not line.startswith(foreign)]


def test_the_real_command_refuses_with_exit_code_2_and_one_line(tmp_path):
    words = [COMMAND, "predict", str(tmp_path), "hello"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = own_lines(done.stderr)
    assert line.startswith("Error: ")


def test_the_real_command_ends_quietly_when_its_reader_exits(trained, tmp_path):
    file = tmp_path / "many.csv"
    file.write_text("text\n" + "\n".join(f"message {i}" for i in range(3000)) + "\n")
    words = [COMMAND, "predict", str(trained), "--file", str(file)]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )
    assert json.loads(process.stdout.readline())["text"] == "message 0"
    process.stdout.close()
    assert own_lines(process.stderr.read()) == []
    assert process.wait(timeout=60) == 1  # like every command made with Click


def test_a_score_that_is_no_number_is_null_in_every_file(run_ptune, flags, texts, tmp_path):
    for name, numbers in (("train", range(8)), ("gold", [2] * 8)):
        rows = zip(texts, [n + 0.5 for n in numbers], strict=True)
        with (tmp_path / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *rows])
    folder, words = tmp_path / "runs", [*flags, "--train-file", tmp_path / "train.csv"]
    words += ["--eval-file", tmp_path / "gold.csv", "--seeds", 2, "--output-dir", folder]
    assert run_ptune(*words).code == 0
    (run, other), scores = sorted(folder.glob("seed-*")), tmp_path / "scores.json"
    gold = ("--file", tmp_path / "gold.csv")
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # NumPy's, of equal numbers
        assert run_ptune("report", run, *gold, "--fast").code == 0
    assert run_ptune("evaluate", run, *gold, "--output", scores).code == 0
    files = [run / "metrics.json", folder / "seeds.json", run / "reports" / "gold.json", scores]
    for file in files:
        json.loads(file.read_text(), parse_constant=pytest.fail)
    assert json.loads(scores.read_text())["pearson"] is None
    assert json.loads(files[0].read_text())["eval"]["pearson"] is None
    assert "pearson nan" in run_ptune("list", folder).out
    assert "pearson nan" in run_ptune("info", run).out
    shutil.rmtree(other)
    (folder / "seeds.json").unlink()
    assert run_ptune(*words, "--resume").code == 0  # reads the first seed's scores
    assert json.loads(files[1].read_text())["pearson"] == {"mean": None, "std": None}
