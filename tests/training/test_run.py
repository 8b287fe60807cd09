"""Whole runs: data in, a run folder out."""

import dataclasses
import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import build, refused, write_mail
from transformers import TrainerCallback

import ptune
from ptune import PromptModel, PtuneError
from ptune.adapters.adapter import Adapter
from ptune.files import read_metrics, staged
from ptune.peft import PromptEncoderConfig
from ptune.training import folder as run_folder
from ptune.training import report, start
from ptune.training import run as training
from ptune.training.trainer import training_arguments


@pytest.fixture(scope="module")
def table(tmp_path_factory, texts):
    return write_mail(tmp_path_factory.mktemp("data") / "mail.csv", texts, copies=6)


def settings(bert_folder, table, **options):
    chosen = {"epochs": 3, "batch_size": 8, "num_virtual_tokens": 4, "dtype": "float32", **options}
    return ptune.TrainSettings(model=str(bert_folder), train_file=str(table), **chosen)


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(tmp_path):
    (tmp_path / "notes").touch()
    with refused(f"{tmp_path}/notes is a file. Name a folder to write to."):
        training.train_run(ptune.TrainSettings(train_file="none.csv"), tmp_path / "notes" / "run")
    with refused("There is no file none.csv. …"):
        training.train_run(ptune.TrainSettings(train_file="none.csv"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


class AtStep(TrainerCallback):
    """Does something after each step."""

    def __init__(self, work):
        self.work = work

    def on_step_end(self, *args, **kwargs):
        self.work()


def test_a_checkpoint_that_does_not_fit_on_the_disk_is_reported(bert_folder, table, tmp_path):
    """A limit on the size of files, like a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    fill = AtStep(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, limits[1])))
    # The prompt fits, and neither the tokenizer nor the optimizer's numbers do.
    short = settings(bert_folder, table, epochs=1, num_virtual_tokens=20, head="linear")
    try:
        with refused(
            f"A checkpoint in {tmp_path} could not be written (…). Make room and continue with "
            "--resume, or name another folder."
        ):
            training.train_run(short, tmp_path, progress=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_another_error_in_training_is_not_called_a_checkpoint(bert_folder, table, tmp_path):
    def fail():
        raise OSError("the disk with the data is gone")

    short = settings(bert_folder, table, epochs=1, head="linear")
    with pytest.raises(OSError, match="the disk with the data is gone"):
        training.train_run(short, tmp_path, progress=AtStep(fail))


ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json", "ptune.json")


@pytest.mark.slow
def test_a_killed_run_resumes_and_writes_the_same_bytes(bert_folder, table, tmp_path):
    flags = ["--model", str(bert_folder), "--train-file", str(table), "--num-virtual-tokens", "4"]
    flags += ["--epochs", "15", "--batch-size", "2", "--dtype", "float32", "--encoder", "MLP"]
    command = [str(Path(sys.executable).with_name("ptune")), "train", *flags, "--output-dir"]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)

    process = subprocess.Popen([*command, str(tmp_path / "killed")], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "killed").glob("checkpoints/checkpoint-*/trainer_state.json")):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / "metrics.json").exists()

    resumed = subprocess.run(
        [command[0], "train", "--resume", "--output-dir", str(tmp_path / "killed")],
        check=True,
        capture_output=True,
        text=True,
    )
    assert "epoch  1.0/" not in resumed.stdout, "it started from scratch"
    for file in ADAPTER_FILES:
        whole, killed = (tmp_path / run / file for run in ("whole", "killed"))
        assert whole.read_bytes() == killed.read_bytes(), file


@pytest.mark.parametrize("own", [{"head": "linear"}, {"loss": "pairs", "head": "features"}])
def test_a_run_that_ctrl_c_stopped_within_an_epoch_ends_as_it_would_have(
    bert_folder, table, tmp_path, own
):
    """The rest of the epoch has the examples that were left, and later epochs have their order."""
    own = settings(bert_folder, table, epochs=3, batch_size=4, **own)
    ptune.train_run(own, tmp_path / "whole")
    steps = itertools.count(1)
    stopping = AtStep(lambda: next(steps) == 5 and os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        ptune.train_run(own, tmp_path / "stopped", progress=stopping)
    ptune.train_run(own, tmp_path / "stopped", resume=True)
    for file in ADAPTER_FILES:
        whole, stopped = (tmp_path / run / file for run in ("whole", "stopped"))
        assert whole.read_bytes() == stopped.read_bytes(), file
    whole, stopped = (read_metrics(tmp_path / run / "metrics.json") for run in ("whole", "stopped"))
    assert [e["epoch"] for e in stopped["epochs"]] == [e["epoch"] for e in whole["epochs"]]


@pytest.mark.slow
def test_ctrl_c_leaves_a_checkpoint_and_exit_code_130(bert_folder, table, tmp_path):
    flags = ["--model", str(bert_folder), "--train-file", str(table), "--num-virtual-tokens", "4"]
    flags += ["--epochs", "400", "--batch-size", "2", "--output-dir", str(tmp_path / "run")]
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("ptune")), "train", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while "epoch" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume" in err
    assert "Traceback" not in err
    assert run_folder.last_checkpoint(tmp_path / "run" / "checkpoints") is not None


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": None, "examples_per_label": 4},
        {"prompt": "input", "encoder": "MLP", "prompt_init_text": "what is it about?"},
        {"training_arguments": {"weight_decay": 0.5, "eval_strategy": "steps", "eval_steps": 5}},
    ],
)
def test_the_settings_of_a_run_repeat_it_to_the_byte(bert_folder, table, tmp_path, options):
    ptune.train_run(settings(bert_folder, table, **options), tmp_path / "run")
    again = ptune.TrainSettings.read(tmp_path / "run" / "settings.json")
    ptune.train_run(again, tmp_path / "again")
    for file in (*ADAPTER_FILES, "settings.json"):
        assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
    one, two = (json.loads((tmp_path / r / "metrics.json").read_text()) for r in ("run", "again"))
    assert one["epochs"] == two["epochs"]


def test_settings_json_has_the_values_of_the_run_and_no_others(bert_folder, table, tmp_path):
    chosen = settings(bert_folder, table, epochs=None, examples_per_label=4, dtype="auto")
    ptune.train_run(chosen, tmp_path / "run")
    written = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert written["dtype"] in ("float32", "bfloat16")
    resolved = {
        "prompt_learning_rate": 0.03,
        "learning_rate": 1e-3,
        "loss": "pairs",
        "head": "features",
        "prompt_init": "random",
        "prompt_init_scale": 0.5,
        "pooling": "architecture",
        "problem_type": "single_label_classification",
        "label_names": True,
        "epochs": 24.0,  # 8 texts and 2 names of labels are two batches, and 48 steps are taken
    }
    assert {k: written[k] for k in resolved} == resolved
    assert not written.keys() & {"encoder_hidden_size", "task", "prompt_init_text", "revision"}


def test_a_run_is_not_resumed_with_the_default_of_a_setting_that_it_changed(
    bert_folder, table, tmp_path
):
    ptune.train_run(settings(bert_folder, table, prompt_learning_rate=0.5), tmp_path / "run")
    with pytest.raises(PtuneError, match=r"prompt_learning_rate was 0.5 and is 0.03"):
        ptune.train_run(settings(bert_folder, table), tmp_path / "run", resume=True)


def test_a_run_that_was_killed_after_its_last_step_takes_no_other(bert_folder, table, tmp_path):
    """The last step is within an epoch."""
    own = settings(bert_folder, table, epochs=3, batch_size=4)
    own.training_arguments = {"max_steps": 3, "lr_scheduler_type": "constant"}
    whole = ptune.train_run(own, tmp_path / "run").metrics
    weights = (tmp_path / "run" / ADAPTER_FILES[0]).read_bytes()
    for file in (*ADAPTER_FILES, "metrics.json"):
        (tmp_path / "run" / file).unlink()
    again = ptune.train_run(own, tmp_path / "run", resume=True).metrics
    assert (tmp_path / "run" / ADAPTER_FILES[0]).read_bytes() == weights
    assert again["adapter_step"] == whole["adapter_step"] == 3
    assert [at["step"] for at in again["epochs"]] == [at["step"] for at in whole["epochs"]]


def test_a_finished_run_resumes_with_the_settings_of_the_first_version(
    bert_folder, table, tmp_path
):
    """The first version wrote every setting, and null for those that were left open."""
    own = settings(bert_folder, table)
    ptune.train_run(own, tmp_path / "run")
    old = {**vars(own), "first_layer": 0, "keep_layers": True, "learning_rate": None}
    old |= {"label_separator": "|", "problem_type": None}
    (tmp_path / "run" / "settings.json").write_text(json.dumps(old))
    ptune.train_run(own, tmp_path / "run", resume=True)


def test_an_incomplete_checkpoint_is_skipped(tmp_path):
    for step, state in ((5, '{"global_step": 5}'), (10, '{"global'), (15, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    assert run_folder.last_checkpoint(tmp_path).name == "checkpoint-5"
    assert run_folder.last_checkpoint(tmp_path / "checkpoint-5") is None


def test_the_seed_determines_the_adapter(bert_folder, table, tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        ptune.train_run(settings(bert_folder, table, seed=seed, epochs=1), tmp_path / name)
    a, b, c = (
        (tmp_path / run / "adapter_model.safetensors").read_bytes() for run in ("a", "b", "c")
    )
    assert a == b
    assert a != c


@pytest.mark.parametrize(
    ("prompt", "loss", "every"),
    [("input", "labels", 25), ("deep", "labels", 6), ("deep", "pairs", 6)],
)
def test_a_small_dataset_is_trained_for_200_steps_or_48_if_that_is_enough(
    prompt, loss, every, bert_folder, table, tmp_path
):
    small = {"epochs": None, "examples_per_label": 4, "batch_size": 8, "loss": loss}
    small["prompt"] = prompt
    run = ptune.train_run(settings(bert_folder, table, **small), tmp_path / "run")
    assert [e["step"] for e in run.metrics["epochs"]] == [every * n for n in range(1, 9)]


def test_a_large_dataset_is_trained_for_8_epochs():
    chosen = training_arguments(ptune.TrainSettings(batch_size=10), "unused", examples=1000)
    assert (chosen.num_train_epochs, chosen.eval_strategy) == (8, "epoch")


def test_a_run_learns_and_reports_the_metrics_of_its_adapter(bert_folder, table, tmp_path):
    options = {"learning_rate": 0.05, "prompt_learning_rate": 0.05, "epochs": 20}
    run = ptune.train_run(settings(bert_folder, table, **options), tmp_path / "run")
    written = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert written == run.metrics
    assert [e["epoch"] for e in written["epochs"]] == list(range(1, 21))
    assert written["eval"]["accuracy"] > written["majority"]["accuracy"]
    counts = np.array(written["confusion_matrix"]["eval"])
    assert counts.trace() / counts.sum() == written["eval"]["accuracy"]
    assert written["best"]["accuracy"] == max(e["accuracy"] for e in written["epochs"])
    classifier = ptune.load(tmp_path / "run", dtype="float32")
    dataset = start.load_dataset(settings(bert_folder, table))
    examples = dataset.evaluation[""]
    labels = [dataset.labels.names[i] for i in examples["label"]]
    scores = classifier.evaluate(list(examples["text"]), labels)
    assert scores["accuracy"] == written["eval"]["accuracy"]


@pytest.mark.parametrize(
    "kept",
    [
        {"load_best_model_at_end": True, "metric_for_best_model": "accuracy"},
        {"load_best_model_at_end": True},  # by the loss
        {"eval_strategy": "no"},
    ],
)
def test_scores_are_those_of_the_adapter_that_is_saved(bert_folder, table, tmp_path, kept):
    rates = {"learning_rate": 0.5, "prompt_learning_rate": 0.5, "head": "linear", "epochs": 6}
    own = settings(bert_folder, table, **rates, training_arguments=kept)
    metrics = ptune.train_run(own, tmp_path).metrics
    dataset = start.load_dataset(own)
    examples = dataset.evaluation[""]
    labels = [dataset.labels.names[i] for i in examples["label"]]
    found = ptune.load(tmp_path, dtype="float32").evaluate(list(examples["text"]), labels)
    assert metrics["eval"]["accuracy"] == found["accuracy"]
    if "eval_strategy" not in kept:
        by = kept.get("metric_for_best_model", "loss")
        best = (max if by == "accuracy" else min)(e[by] for e in metrics["epochs"])
        assert metrics["eval"][by] == pytest.approx(best, rel=1e-5)
        shown = report.selected(metrics)
        (record,) = [e for e in metrics["epochs"] if e["epoch"] == shown]
        assert record[by] == best


def test_a_run_is_not_resumed_with_other_examples(bert_folder, table, tmp_path, texts):
    """A file was changed while a run was interrupted."""
    own = write_mail(tmp_path / "mail.csv", texts, copies=6)
    stopping = AtStep(lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        ptune.train_run(settings(bert_folder, own), tmp_path / "run", progress=stopping)
    before = own.read_text()
    own.write_text(before.replace("money", "MONEY", 1))
    with refused(
        f"The run in {tmp_path}/run was started with other examples: a file has changed …"
    ):
        ptune.train_run(settings(bert_folder, own), tmp_path / "run", resume=True)
    own.write_text(before)
    assert ptune.train_run(settings(bert_folder, own), tmp_path / "run", resume=True).metrics[
        "eval"
    ]
    # Its new evaluation set would hold examples that it was trained on.
    own.write_text(before.replace("money", "MONEY", 1))
    scores = (tmp_path / "run/metrics.json").read_bytes()
    with refused("The run in … was started with other examples: …"):
        ptune.train_run(settings(bert_folder, own), tmp_path / "run", resume=True)
    assert (tmp_path / "run/metrics.json").read_bytes() == scores


def test_a_replaced_run_leaves_no_adapter_of_other_labels(bert_folder, table, tmp_path):
    """Killed while it trains: what was replaced neither answers nor is listed."""
    ptune.train_run(settings(bert_folder, table, epochs=1), tmp_path)
    stopping = AtStep(lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        ptune.train_run(settings(bert_folder, table), tmp_path, overwrite=True, progress=stopping)
    with pytest.raises(PtuneError, match=r"has no adapter_config\.json"):
        ptune.load(tmp_path)
    assert ptune.train_run(settings(bert_folder, table), tmp_path, resume=True).metrics["eval"]


def test_what_is_a_setting_of_its_own_is_no_training_argument():
    with refused("training_arguments names num_train_epochs, … Use epochs instead."):
        ptune.TrainSettings(training_arguments={"num_train_epochs": 1})


def test_a_run_starts_from_a_head_that_fits_the_features(bert_folder, table, tmp_path):
    """Before the first step, the classifier is better than the majority."""
    still = {"learning_rate": 0.0, "prompt_learning_rate": 0.0, "epochs": 1, "head": "features"}
    run = ptune.train_run(settings(bert_folder, table, **still), tmp_path / "run")
    assert run.metrics["eval"]["accuracy"] > run.metrics["majority"]["accuracy"]


def test_a_head_from_a_checkpoint_is_kept(tokenizer, table, tmp_path):
    backbone = build("bert")
    backbone.save_pretrained(tmp_path / "fine-tuned")
    tokenizer.save_pretrained(tmp_path / "fine-tuned")
    still = {"learning_rate": 0.0, "prompt_learning_rate": 0.0, "epochs": 1, "head": "features"}
    run = ptune.train_run(settings(tmp_path / "fine-tuned", table, **still), tmp_path / "run")
    head = dict(run.model.head_parameters())
    assert torch.equal(head["classifier.weight"], backbone.classifier.weight)


def test_balanced_class_weights_are_those_of_fit(bert_folder, table, tmp_path):
    own = settings(bert_folder, table, epochs=1, class_weight="balanced")
    data = start.load_dataset(own)
    weights, labels = np.array(data.train["weight"]), np.array(data.train["label"])
    totals = [weights[labels == label].sum() for label in (0, 1)]
    assert totals[0] == pytest.approx(totals[1])
    assert "weight" not in data.evaluation[""].column_names
    assert ptune.train_run(own, tmp_path / "run").metrics["eval"]


@pytest.mark.parametrize("pooling", ["prompt", "layers"])
def test_a_reader_reads_each_text_once_and_learns_the_same(bert_folder, table, tmp_path, pooling):
    """Whether texts are kept changes no number of the adapter beyond rounding."""
    options = {"prompt": "reader", "reader_rank": 2, "pooling": pooling}
    folder = {"keep_texts_in": str(tmp_path / "texts")}
    ways = {
        "memory": {"keep_texts": 1.0, **folder},
        "none": {"keep_texts": 0.0},
        "folder": {"keep_texts": 0.0, **folder},
    }
    loaded, found = {}, {}
    for name, how in ways.items():
        run = training.train_run(settings(bert_folder, table, **how, **options), tmp_path / name)
        assert run.model.kept_texts.nbytes == 0
        loaded[name], found[name] = run.model.to_adapter(), run.metrics["kept_texts"]
    texts = len(set(table.read_text().splitlines())) - 1
    kept = found["memory"]
    assert kept["texts"] == kept["read"] == texts
    assert kept["reused"] > texts
    # Two layers with keys and values of 32 numbers in float32, for each token.
    assert kept["bytes_per_text"] > 2 * 2 * 32 * 4
    assert set(found["none"].values()) == {0}
    assert (found["folder"]["bytes"], found["folder"]["read"] < texts) == (0, True)
    assert found["folder"]["from_folder"] == found["folder"]["reused"] > texts
    one, *others = (adapter.prompt_embeddings for adapter in loaded.values())
    for other in others:
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


def test_seeds_of_a_reader_share_the_texts_that_were_read(bert_folder, table, tmp_path):
    own = settings(bert_folder, table, prompt="reader", reader_rank=2, epochs=2)
    training.train_seeds(own, tmp_path / "seeds", [3, 4])
    first, second = (
        json.loads((tmp_path / f"seeds/seed-{seed}/metrics.json").read_text()) for seed in (3, 4)
    )
    texts = len(set(table.read_text().splitlines())) - 1
    assert first["kept_texts"]["read"] == texts
    assert second["kept_texts"]["read"] == 0
    assert second["kept_texts"]["reused"] >= 2 * texts
    own = dataclasses.replace(own, seed=4)
    with training.trained_in_memory(own, start.load_dataset(own)) as trainer:
        assert trainer.model.kept_texts.read > 0
        alone = trainer.model.to_adapter()
    found = Adapter.read(tmp_path / "seeds/seed-4")
    torch.testing.assert_close(
        found.prompt_embeddings, alone.prompt_embeddings, atol=1e-4, rtol=1e-3
    )


class Meet(TrainerCallback):
    """Waits for another process after the first step; one of the two dies after the third."""

    def __init__(self, folder, name, other, *, dies):
        self.own, self.other, self.dies = folder / name, folder / other, dies

    def on_step_end(self, args, state, control, **kwargs):
        self.own.touch()
        deadline = time.monotonic() + 60
        while state.global_step == 1 and not self.other.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        if self.dies and state.global_step == 3:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(
    not hasattr(os, "fork") or torch.accelerator.is_available(), reason="needs fork on a CPU"
)
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_processes_share_a_folder_of_texts_and_one_of_them_may_be_killed(
    bert_folder, table, tmp_path
):
    own = settings(bert_folder, table, prompt="reader", reader_rank=2, epochs=2)
    folder = tmp_path / "texts"
    shared = dataclasses.replace(own, keep_texts=0.0, keep_texts_in=str(folder))

    def train(settings, name, callbacks=()):
        data = start.load_dataset(settings)
        with training.trained_in_memory(settings, data, callbacks=callbacks) as trainer:
            trainer.model.to_adapter().save(tmp_path / name)
            return trainer.model.kept_texts

    def process(name, other, *, dies):
        if child := os.fork():
            return child
        try:
            train(
                shared, name, [Meet(tmp_path, f"{name} is there", f"{other} is there", dies=dies)]
            )
            os._exit(0)
        except BaseException:
            os._exit(1)

    train(own, "without folder")
    survivor = process("survivor", "victim", dies=False)
    victim = process("victim", "survivor", dies=True)
    assert os.waitstatus_to_exitcode(os.waitpid(victim, 0)[1]) == -signal.SIGKILL
    assert os.waitpid(survivor, 0)[1] == 0
    assert not (tmp_path / "victim").exists()
    assert train(shared, "later").from_folder > 0
    (file,) = folder.iterdir()
    assert file.suffix == ".texts"
    expected = Adapter.read(tmp_path / "without folder")
    for name in ("survivor", "later"):
        found = Adapter.read(tmp_path / name)
        torch.testing.assert_close(
            found.prompt_embeddings, expected.prompt_embeddings, atol=1e-4, rtol=1e-3
        )
        torch.testing.assert_close(found.head, expected.head, atol=1e-4, rtol=1e-3)


def test_long_texts_are_truncated_and_counted(bert_folder, tmp_path, texts):
    file = tmp_path / "long.csv"
    long = " ".join(texts * 4)
    rows = [f'"{long if i % 3 == 0 else "short"} {i}",{i % 2}' for i in range(30)]
    file.write_text("text,label\n" + "\n".join(rows))
    run = ptune.train_run(settings(bert_folder, file, epochs=1), tmp_path / "run")
    assert sum(run.metrics["truncated_texts"].values()) == 10


def test_a_run_that_is_stopped_while_it_reads_texts_can_be_started_again(
    bert_folder, table, tmp_path, monkeypatch
):
    def stop(*_, **__):
        raise KeyboardInterrupt

    short = settings(bert_folder, table, epochs=1)
    with monkeypatch.context() as patch:
        patch.setattr("ptune.training.trainer.scale_steps_and_fit_head", stop)
        with pytest.raises(KeyboardInterrupt):
            ptune.train_run(short, tmp_path / "run")
    ptune.train_run(short, tmp_path / "run")


def test_a_diverging_run_stops_with_the_step_and_the_learning_rate(bert_folder, table, tmp_path):
    wild = settings(bert_folder, table, learning_rate=1e38, prompt_learning_rate=1e38)
    with pytest.raises(PtuneError, match=r"NaN or infinite in step \d+.*learning rate"):
        ptune.train_run(wild, tmp_path / "run")


def test_a_folder_with_other_files_is_left_alone(bert_folder, table, tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    for flags in ({}, {"overwrite": True}):
        with refused(f"The folder {tmp_path} holds files that are not from a ptune run, …"):
            ptune.train_run(settings(bert_folder, table), tmp_path, **flags)
    with refused(f"--resume continues the run in {tmp_path}, and --overwrite replaces it. …"):
        ptune.train_run(settings(bert_folder, table), tmp_path, resume=True, overwrite=True)
    with refused(f"{tmp_path} holds no run to resume. Leave out --resume to start one."):
        ptune.train_run(settings(bert_folder, table), tmp_path, resume=True)
    assert [f.name for f in tmp_path.iterdir()] == ["precious.txt"]


def test_what_a_killed_process_left_unfinished_keeps_no_run_out(bert_folder, table, tmp_path):
    with staged(tmp_path / "run") as stage:
        (stage / "settings.json").write_text("{")
        shutil.copytree(stage, tmp_path / "run" / ".writing-killed")
        (stage / "settings.json").unlink()
    ptune.train_run(settings(bert_folder, table, epochs=0.1), tmp_path / "run")
    assert not list((tmp_path / "run").glob(".writing-*"))
    with refused("metric_for_best_model is 'f1'; expected one of loss, accuracy, f1_macro."):
        wrong = {"metric_for_best_model": "f1"}
        ptune.train_run(settings(bert_folder, table, training_arguments=wrong), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_run_is_replaced_only_on_request_and_resumed_only_with_its_settings(
    bert_folder, table, tmp_path
):
    first = settings(bert_folder, table, epochs=1)
    ptune.train_run(first, tmp_path / "run")
    with pytest.raises(PtuneError, match="--overwrite"):
        ptune.train_run(first, tmp_path / "run")
    with pytest.raises(PtuneError, match="seed was 0 and is 9"):
        ptune.train_run(
            settings(bert_folder, table, epochs=1, seed=9), tmp_path / "run", resume=True
        )
    other = settings(bert_folder, table, epochs=1, seed=9)
    ptune.train_run(other, tmp_path / "run", overwrite=True)
    assert ptune.TrainSettings.read(tmp_path / "run").seed == 9


def test_a_run_killed_while_it_replaces_another_never_continues_that_one(
    bert_folder, table, tmp_path, monkeypatch
):
    """Its settings would stand next to the checkpoints and the scores of the other one."""
    first, other = (settings(bert_folder, table, epochs=1, learning_rate=r) for r in (0.1, 0.2))
    ptune.train_run(first, tmp_path)
    remove = shutil.rmtree

    def stop(folder, **how):
        if Path(folder).name == "checkpoints":
            raise KeyboardInterrupt
        remove(folder, **how)

    monkeypatch.setattr(shutil, "rmtree", stop)
    with pytest.raises(KeyboardInterrupt):
        ptune.train_run(other, tmp_path, overwrite=True)
    monkeypatch.setattr(shutil, "rmtree", remove)
    with pytest.raises(PtuneError, match="learning_rate was"):
        ptune.train_run(other, tmp_path, resume=True)
    ptune.train_run(other, tmp_path, overwrite=True)
    assert ptune.TrainSettings.read(tmp_path).learning_rate == 0.2


def test_a_run_that_was_killed_before_its_data_were_noted_notes_them(bert_folder, table, tmp_path):
    own, noted = settings(bert_folder, table, epochs=0.2), tmp_path / "checkpoints/data.json"
    ptune.train_run(own, tmp_path)
    before = noted.read_bytes()
    shutil.rmtree(tmp_path / "checkpoints")
    ptune.train_run(own, tmp_path, resume=True)
    assert noted.read_bytes() == before


def test_two_runs_never_write_to_one_folder(bert_folder, table, tmp_path, monkeypatch):
    folder, own = tmp_path / "run", settings(bert_folder, table, epochs=0.2)
    prepare, met = training.prepare, []

    def start_another():
        with refused(f"Another run is writing to {folder}. Wait until it has ended, or …"):
            ptune.train_run(own, folder, overwrite=True)
        met.append("during")

    def be_second(*arguments):
        """Another run starts and ends after this one has found that the folder is free."""
        monkeypatch.setattr(training, "prepare", prepare)
        ptune.train_run(own, folder, progress=AtStep(start_another))
        return prepare(*arguments)

    monkeypatch.setattr(training, "prepare", be_second)
    with refused(f"The folder {folder} already holds a run. …"):
        ptune.train_run(settings(bert_folder, table, epochs=0.3), folder)
    assert met
    assert ptune.TrainSettings.read(folder).epochs == 0.2


def test_the_prompt_follows_the_first_token_only_if_that_is_special(tokenizer):
    from conftest import train_tokenizer

    config = PromptEncoderConfig(placement="after_first")
    assert start.fit_to_tokenizer(config, tokenizer).placement == "after_first"
    without = train_tokenizer()
    assert start.fit_to_tokenizer(config, without).placement == "prefix"


def test_an_input_prompt_starts_from_the_given_words_with_a_zero_head(bert_folder, table, tmp_path):
    """Before training, every text has the same answer: the shares of the labels."""
    question = "what is it about?"
    options = {"prompt": "input", "learning_rate": 0.0, "prompt_learning_rate": 0.0, "epochs": 1}
    own = settings(bert_folder, table, prompt_init_text=question, head="linear", **options)
    run = ptune.train_run(own, tmp_path / "run")
    config = run.model.prompt_config
    assert (config.prompt_init, config.prompt_init_text) == ("text", question)
    assert not any(p.any() for _, p in run.model.head_parameters() if p.ndim == 2 and len(p) == 2)
    _, logits = run.answers[""]
    bias = dict(run.model.head_parameters())["classifier.bias"].detach()
    np.testing.assert_allclose(logits, np.tile(bias, (len(logits), 1)), rtol=1e-6)
    again = ptune.load(tmp_path / "run")
    assert (again.prompt_init, again.prompt_init_text) == ("text", question)


@pytest.mark.parametrize(
    ("options", "init", "scale"),
    [
        ({"prompt": "input"}, ("text", "is it so?"), 1.0),
        ({"prompt": "input", "prompt_init": "vocab"}, ("vocab", None), 1.0),
        ({"prompt": "input", "prompt_init_text": "mine"}, ("text", "mine"), 1.0),
        ({"prompt": "deep"}, ("random", None), 0.5),
        ({"prompt": "deep", "prompt_init": "text"}, ("text", "is it so?"), 1.0),
    ],
)
def test_the_initial_words_come_from_the_user_or_the_task(options, init, scale):
    config = start.prompt_config(ptune.TrainSettings(task="mrpc", **options), "is it so?")
    assert (config.prompt_init, config.prompt_init_text) == init
    assert config.prompt_init_scale == scale
    without = start.prompt_config(ptune.TrainSettings(task="mrpc", prompt="input"))
    assert (without.prompt_init, without.prompt_init_text) == ("vocab", None)


def test_the_head_of_a_sentence_encoder_reads_an_input_prompt_for_pairs():
    def pooling(pairs=True, **options):
        settings = ptune.TrainSettings(task="mrpc", **options)
        return start.prompt_config(settings, pairs=pairs).pooling

    assert pooling(prompt="input") == "prompt"
    assert pooling(prompt="input", pairs=False) == "mean"
    assert pooling() == "mean"
    assert pooling(prompt="input", pooling="architecture") == "architecture"


def test_a_trained_prompt_can_be_trained_further_without_a_tokenizer(bert_folder, table, tmp_path):
    own = settings(bert_folder, table, prompt="input", prompt_init_text="the lamp", epochs=1)
    run = ptune.train_run(own, tmp_path / "run")
    backbone = build("bert")
    model = PromptModel.from_pretrained(backbone, tmp_path / "run", is_trainable=True)
    assert model.prompt_config.prompt_init_text == "the lamp"
    torch.testing.assert_close(model.prompt_embeddings(), run.model.prompt_embeddings())
