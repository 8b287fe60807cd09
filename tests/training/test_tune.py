"""Searching settings: many short trainings, one classifier."""

import csv
import json

import pytest
from conftest import call, refused, write_mail

import ptune
from ptune.training import tune as search
from ptune.training.start import prepare


@pytest.fixture(scope="module")
def table(tmp_path_factory, texts):
    return write_mail(tmp_path_factory.mktemp("data") / "mail.csv", texts, copies=5)


@pytest.fixture(scope="module")
def how(bert_folder, table):
    return {"model": str(bert_folder), "train_file": str(table), "dtype": "float32"}


def rows_of(folder):
    with (folder / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_search_ends_with_the_best_classifier_and_a_table(how, tmp_path, capsys, caplog):
    folder = tmp_path / "run"
    flags = [w for k, v in how.items() for w in (f"--{k.replace('_', '-')}", v)]
    flags += ["--prompt", "input", "--epochs", "1", "--trials", "3", "--folds", "2", "--json"]
    code = call("tune", *flags, "--output-dir", str(folder))
    printed = json.loads(capsys.readouterr().out)
    assert code == 0
    started = "3 trials of num_virtual_tokens, prompt_learning_rate, learning_rate. Each trains on "
    assert started in caplog.text
    rows, written = rows_of(folder), json.loads((folder / "tune.json").read_text())
    assert (
        [int(row["trial"]) for row in rows] == [0, 1, 2] == [t["trial"] for t in printed["trials"]]
    )
    # What was given is not searched.
    searched = ["num_virtual_tokens", "prompt_learning_rate", "learning_rate"]
    assert list(rows[0])[4:] == searched == list(printed["settings"]) == written["search"]
    assert int(rows[0]["num_virtual_tokens"]) == 20, "the first trial has the default settings"
    scores = [float(row["accuracy"]) for row in rows if row["state"] == "complete"]
    assert written["score"] == printed["score"] == max(scores)
    assert written["default_score"] == float(rows[0]["accuracy"])
    settings = ptune.TrainSettings.read(folder)
    assert {name: getattr(settings, name) for name in searched} == printed["settings"]
    assert settings.prompt == "input"
    assert settings.epochs == 1
    classifier = ptune.load(folder)
    assert classifier.prompt_model_.prompt_config.num_virtual_tokens == settings.num_virtual_tokens
    assert set(classifier.labels) == {"money", "other"}


def test_an_interrupted_search_keeps_its_trials_and_resumes(how, tmp_path):
    settings, seen = ptune.TrainSettings(**how, num_virtual_tokens=3, prompt="input"), []

    short = {"search": ["learning_rate"], "folds": 1}
    settings.epochs = 1.0

    def interrupt(trial):
        seen.append(trial)
        if len(seen) == 2:
            with refused(f"Another run is writing to {tmp_path / 'run'}. …"):
                ptune.tune(settings, tmp_path / "run", trials=3, **short, resume=True)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ptune.tune(settings, tmp_path / "run", trials=3, **short, show_trial=interrupt)
    before = rows_of(tmp_path / "run")
    assert [row["trial"] for row in before] == ["0", "1"]
    assert not (tmp_path / "run" / "metrics.json").exists()

    other = ptune.TrainSettings(**how, num_virtual_tokens=4, prompt="input", epochs=1)
    with refused("…started with other settings: num_virtual_tokens was 3 and is 4. Resume it …"):
        ptune.tune(other, tmp_path / "run", trials=3, **short, resume=True)
    with refused("…already holds something…"):
        ptune.tune(settings, tmp_path / "run", trials=3, **short)

    found = ptune.tune(settings, tmp_path / "run", trials=3, **short, resume=True)
    after = rows_of(tmp_path / "run")
    assert after[:2] == before
    assert len({row["learning_rate"] for row in after}) == len(after) == 3
    assert found.run.metrics["eval"]["accuracy"] <= 1
    assert (tmp_path / "run" / "adapter_model.safetensors").is_file()


def test_trials_never_see_the_evaluation_set(how, table):
    settings = ptune.TrainSettings(**how)
    _, dataset, _ = prepare(settings)
    held_out, known = set(dataset.evaluation[""]["text"]), set(dataset.train["text"])
    for folds in (None, 1):
        parts = search._folds(dataset, folds, 0)
        assert len(parts) == (folds or 3)
        for part in parts:
            train, rest = set(part.train["text"]), set(part.evaluation[""]["text"])
            assert train | rest == known
            assert not train & rest
            assert not held_out & (train | rest)


def test_what_cannot_be_searched_is_refused(how, tmp_path):
    settings = ptune.TrainSettings(**how)
    with refused("'dtype' cannot be searched; expected some of prompt, num_virtual_tokens, …"):
        ptune.tune(settings, tmp_path, search=["dtype"])
    with refused("Every setting is given, so there is nothing to search. Leave out one of …"):
        ptune.tune(settings, tmp_path, search=[])
    with refused("trials is 0; expected a whole number of at least 1."):
        ptune.tune(settings, tmp_path, trials=0)
    (tmp_path / "settings.json").write_text("{}")
    with refused("…holds no search to resume. Leave out --resume to start one."):
        ptune.tune(settings, tmp_path, resume=True)
