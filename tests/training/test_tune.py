"""Searching settings: many short trainings, one classifier."""

import csv
import json
import shutil
from dataclasses import replace

import pytest
from conftest import call, refused, write_mail
from transformers import TrainerCallback

import ptune
from ptune.training import tune as search
from ptune.training.start import prepare

FILES = ("train_file", "eval_file")


@pytest.fixture(scope="module")
def table(tmp_path_factory, texts):
    return write_mail(tmp_path_factory.mktemp("data") / "mail.csv", texts, copies=5)


@pytest.fixture(scope="module")
def how(bert_folder, table):
    return {"model": str(bert_folder), "train_file": str(table), "dtype": "float32"}


class Steps(TrainerCallback):
    """Counts the steps of a training."""

    seen = 0

    def on_step_end(self, *args, **kwargs):
        self.seen += 1


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


def test_an_interrupted_search_keeps_its_trials_and_resumes(how, texts, tmp_path):
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
    with refused("…already holds a run…"):
        ptune.tune(settings, tmp_path / "run", trials=3, **short)

    found = ptune.tune(settings, tmp_path / "run", trials=3, **short, resume=True)
    after = rows_of(tmp_path / "run")
    assert after[:2] == before
    assert len({row["learning_rate"] for row in after}) == len(after) == 3
    assert found.run.metrics["eval"]["accuracy"] <= 1
    assert (tmp_path / "run" / "adapter_model.safetensors").is_file()

    steps = Steps()
    again = ptune.tune(settings, tmp_path / "run", trials=3, **short, resume=True, progress=steps)
    assert steps.seen == 0, "a finished search does not train its classifier again"
    assert again.run.metrics["eval"] == found.run.metrics["eval"]
    assert ptune.load(tmp_path / "run")("How much did I pay?").label in ("money", "other")
    fewer = write_mail(tmp_path / "fewer.csv", texts, copies=4)
    with refused("The search in … was started with other examples: a file has changed since, …"):
        ptune.tune(
            settings,
            tmp_path / "run",
            trials=3,
            **short,
            resume=True,
            dataset=prepare(replace(settings, train_file=str(fewer)))[1],
        )


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
    with refused("trials is '5'; expected a whole number of at least 1."):
        ptune.tune(settings, tmp_path, trials="5")
    with refused("Expected TrainSettings(train_file=…) and an output folder, …; found a dict. …"):
        ptune.tune({"train_file": "a.csv"}, tmp_path)
    with refused("trials is 0; expected a whole number of at least 1."):
        ptune.tune(settings, tmp_path, trials=0)
    (tmp_path / "settings.json").write_text("{}")
    with refused("…holds no search to resume. Leave out --resume to start one."):
        ptune.tune(settings, tmp_path, resume=True)


def test_what_a_search_cannot_use_is_refused_before_it_starts(how, tmp_path):
    settings = ptune.TrainSettings(**how)
    for folds in (0, -1):
        with refused(f"folds is {folds}; expected a whole number of at least 1."):
            ptune.tune(settings, tmp_path / "run", folds=folds)
    with refused("… too few to search on; expected at least 160. Lower --folds, or use ptune …"):
        ptune.tune(settings, tmp_path / "run", folds=80)
    wrong = ptune.TrainSettings(**how, training_arguments={"metric_for_best_model": "f1"})
    with refused("metric_for_best_model is 'f1'; expected one of loss, accuracy, f1_macro."):
        ptune.tune(wrong, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_epochs_are_not_searched_where_the_number_of_steps_is_given(how):
    given = ptune.TrainSettings(**how, training_arguments={"max_steps": 3})
    resolved, *_ = prepare(given)
    expected = ["prompt", "num_virtual_tokens", "prompt_learning_rate", "learning_rate"]
    assert search.searched(given, resolved) == expected


def test_labels_with_fewer_examples_than_parts_are_divided_among_them(how, tmp_path):
    file = tmp_path / "pairs.csv"
    file.write_text("text,label\n" + "".join(f"text {i},label {i // 2}\n" for i in range(24)))
    _, dataset, _ = prepare(ptune.TrainSettings(**how | dict.fromkeys(FILES, str(file))))
    parts = search._folds(dataset, 3, 0)
    held_out = [text for part in parts for text in part.evaluation[""]["text"]]
    assert sorted(held_out) == sorted(dataset.train["text"])


@pytest.fixture(scope="module")
def interrupted(how, tmp_path_factory):
    """A search by two trials on a fifth of the data, which was interrupted after the first."""
    folder = tmp_path_factory.mktemp("interrupted") / "run"

    def interrupt(trial):
        raise KeyboardInterrupt

    settings = ptune.TrainSettings(**how, training_arguments={"max_steps": 2})
    with pytest.raises(KeyboardInterrupt):
        ptune.tune(settings, folder, trials=2, folds=1, show_trial=interrupt)
    return folder


def test_a_resumed_search_has_the_trials_and_parts_that_it_was_started_with(
    interrupted, tmp_path, capsys
):
    folder = shutil.copytree(interrupted, tmp_path / "run")
    with (folder / search.STUDY_NAME).open("a") as file:
        file.write('{"op_code":4,"work')  # the process was killed while it wrote this line
    resume = ("tune", "--resume", "--output-dir", folder)
    for words, differs in (("--folds 3", "folds was 1 and is 3"), ("--prompt deep", "search was")):
        assert call(*resume, *words.split()) == 2
        assert differs in capsys.readouterr().err
    assert call(*resume) == 0
    assert [row["trial"] for row in rows_of(folder)] == ["0", "1"]
    assert json.loads((folder / "tune.json").read_text())["folds"] == 1
    assert str(folder / "trials.csv") in capsys.readouterr().out


def test_a_damaged_search_is_refused_by_name(interrupted, tmp_path, how):
    folder = shutil.copytree(interrupted, tmp_path / "run")
    with (folder / search.STUDY_NAME).open("a") as file:
        file.write("not a log\n")
    with refused(f"{folder / 'trials.log'} is damaged (…), so the search cannot be resumed. …"):
        settings = ptune.TrainSettings(**how, training_arguments={"max_steps": 2})
        searched = json.loads((folder / "tune.json").read_text())["search"]
        ptune.tune(settings, folder, resume=True, search=searched)
