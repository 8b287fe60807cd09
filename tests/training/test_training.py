"""An unmodified `Trainer` trains, checkpoints, reloads the best and resumes, exactly."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from conftest import build
from datasets import Dataset
from transformers import DataCollatorWithPadding, EarlyStoppingCallback, Trainer, TrainingArguments

import ptune
from ptune import PromptEncoderConfig, PromptModel, PtuneError
from ptune.training import run as training


@pytest.fixture(scope="module")
def examples(tokenizer, texts):
    """Two labels that the words tell apart, some of them wrong, so that the loss goes up again."""
    rows = [f"{t} {i % 7}" for i in range(6) for t in texts]
    labels = [(i % 8) % 2 for i in range(len(rows))]
    dataset = Dataset.from_dict({"text": rows, "labels": labels})
    return dataset.map(lambda r: tokenizer(r["text"]), remove_columns="text")


def make_trainer(kind, tokenizer, examples, folder, callbacks=(), seed=5, **options):
    transformers.set_seed(seed)
    model = PromptModel(
        build(kind), PromptEncoderConfig(num_virtual_tokens=4, encoder_hidden_size=16)
    )
    arguments = {
        "num_train_epochs": 4,
        "learning_rate": 0.03,
        "per_device_train_batch_size": 8,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "load_best_model_at_end": True,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        **options,
    }
    return Trainer(
        model=model,
        args=TrainingArguments(output_dir=str(folder), **arguments),
        train_dataset=examples,
        eval_dataset=examples.select(range(0, len(examples), 3)),
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=list(callbacks),
    )


def test_the_best_checkpoint_is_what_is_left_at_the_end(
    kind, tokenizer, examples, tmp_path, caplog
):
    trainer = make_trainer(kind, tokenizer, examples, tmp_path)
    trainer.train()
    recorded = [h["eval_loss"] for h in trainer.state.log_history if "eval_loss" in h]
    assert len(recorded) == 4
    assert recorded[0] != recorded[-1]
    assert trainer.state.best_metric == min(recorded)
    assert trainer.evaluate()["eval_loss"] == min(recorded)
    assert "missing keys" not in caplog.text
    assert "unexpected keys" not in caplog.text


def test_each_checkpoint_is_an_adapter_that_predicts_what_was_recorded(
    kind, tokenizer, examples, tmp_path
):
    trainer = make_trainer(kind, tokenizer, examples, tmp_path, load_best_model_at_end=False)
    trainer.train()
    recorded = {h["step"]: h["eval_loss"] for h in trainer.state.log_history if "eval_loss" in h}
    checkpoints = list(tmp_path.glob("checkpoint-*"))
    assert len(checkpoints) == 4
    for checkpoint in checkpoints:
        loaded = PromptModel.from_pretrained(build(kind), checkpoint)
        trainer.model = trainer.model_wrapped = loaded
        step = int(checkpoint.name.split("-")[1])
        assert trainer.evaluate()["eval_loss"] == recorded[step]


def test_a_resumed_run_ends_with_the_same_bytes(kind, tokenizer, examples, tmp_path):
    whole = make_trainer(kind, tokenizer, examples, tmp_path / "a", load_best_model_at_end=False)
    whole.train()
    again = make_trainer(
        kind, tokenizer, examples, tmp_path / "b", load_best_model_at_end=False, seed=77
    )
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-12"))
    for trainer in (whole, again):
        trainer.model.save_pretrained(Path(trainer.args.output_dir) / "end")
    for file in ("adapter_model.safetensors", "model.safetensors", "adapter_config.json"):
        assert (tmp_path / "a/end" / file).read_bytes() == (tmp_path / "b/end" / file).read_bytes()


def test_early_stopping_stops(tokenizer, examples, tmp_path):
    stop = EarlyStoppingCallback(early_stopping_patience=1, early_stopping_threshold=10.0)
    trainer = make_trainer("bert", tokenizer, examples, tmp_path, callbacks=[stop])
    trainer.train()
    assert trainer.state.epoch == 2


def test_gradient_accumulation_is_a_larger_batch(tokenizer, examples, tmp_path):
    ends = []
    for size, steps in ((8, 1), (4, 2)):
        trainer = make_trainer(
            "gpt2",
            tokenizer,
            examples,
            tmp_path / str(size),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            num_train_epochs=1,
            optim="sgd",
        )
        trainer.train()
        ends.append(trainer.model.prompt_rows())
    torch.testing.assert_close(*ends, atol=1e-4, rtol=0)


# Whole runs, as `ptune train` makes them.


@pytest.fixture(scope="module")
def table(tmp_path_factory, texts):
    file = tmp_path_factory.mktemp("data") / "mail.csv"
    rows = [
        f'"{t} {i}",{"money" if "money" in t or "parcel" in t else "other"}'
        for i in range(6)
        for t in texts
    ]
    file.write_text("text,label\n" + "\n".join(rows) + "\n")
    return file


def settings(bert_folder, table, **options):
    chosen = {"epochs": 3, "batch_size": 8, "num_virtual_tokens": 4, "dtype": "float32", **options}
    return ptune.TrainSettings(model=str(bert_folder), train_file=str(table), **chosen)


ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json", "ptune.json")


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bytes(bert_folder, table, tmp_path):
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
    assert "epoch  1.0/" not in resumed.stdout, "it started anew"
    for file in ADAPTER_FILES:
        whole, killed = (tmp_path / run / file for run in ("whole", "killed"))
        assert whole.read_bytes() == killed.read_bytes(), file


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
    assert training.last_checkpoint(tmp_path / "run" / "checkpoints") is not None


def test_a_checkpoint_cut_short_is_passed_over(tmp_path):
    for step, state in ((5, '{"global_step": 5}'), (10, '{"global'), (15, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    assert training.last_checkpoint(tmp_path).name == "checkpoint-5"
    assert training.last_checkpoint(tmp_path / "checkpoint-5") is None


def test_the_same_seed_gives_the_same_adapter_and_another_seed_another(
    bert_folder, table, tmp_path
):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        ptune.train_run(settings(bert_folder, table, seed=seed, epochs=1), tmp_path / name)
    a, b, c = (
        (tmp_path / run / "adapter_model.safetensors").read_bytes() for run in ("a", "b", "c")
    )
    assert a == b
    assert a != c


def test_little_data_is_trained_in_steps_and_evaluated_now_and_then(bert_folder, table, tmp_path):
    run = ptune.train_run(
        settings(bert_folder, table, epochs=None, examples_per_label=4, batch_size=8),
        tmp_path / "run",
    )
    steps = [e["step"] for e in run.metrics["epochs"]]
    assert steps == [25, 50, 75, 100, 125, 150, 175, 200]


def test_much_data_is_trained_in_epochs():
    chosen = ptune.TrainSettings(batch_size=10).arguments("unused", examples=1000)
    assert (chosen.num_train_epochs, chosen.eval_strategy) == (8, "epoch")


def test_each_kind_of_prompt_has_its_own_learning_rates():
    deep, shallow = (ptune.TrainSettings(prompt=kind).rates for kind in ("deep", "input"))
    assert deep != shallow
    assert ptune.TrainSettings(learning_rate=0.25).rates == (0.25, deep[1])
    assert ptune.TrainSettings(prompt_learning_rate=0.5).rates == (deep[0], 0.5)


def test_a_run_learns_and_its_metrics_are_those_of_its_adapter(bert_folder, table, tmp_path):
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
    corpus = settings(bert_folder, table).corpus()
    scores = classifier.evaluate(corpus.evaluation[""], ["accuracy", "f1_macro"])
    assert scores["accuracy"] == written["eval"]["accuracy"]


def test_long_texts_are_cut_and_counted(bert_folder, tmp_path, texts):
    file = tmp_path / "long.csv"
    long = " ".join(texts * 4)
    rows = [f'"{long if i % 3 == 0 else "short"} {i}",{i % 2}' for i in range(30)]
    file.write_text("text,label\n" + "\n".join(rows))
    run = ptune.train_run(settings(bert_folder, file, epochs=1), tmp_path / "run")
    assert sum(run.metrics["truncated_texts"].values()) == 10


def test_a_learning_rate_that_explodes_stops_with_the_step(bert_folder, table, tmp_path):
    wild = settings(bert_folder, table, learning_rate=1e38, prompt_learning_rate=1e38)
    with pytest.raises(PtuneError, match=r"NaN or infinite in step \d+.*learning rate"):
        ptune.train_run(wild, tmp_path / "run")


def test_an_existing_folder_is_left_alone(bert_folder, table, tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    for flags in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(PtuneError, match="holds"):
            ptune.train_run(settings(bert_folder, table), tmp_path, **flags)
    assert [f.name for f in tmp_path.iterdir()] == ["precious.txt"]


def test_a_run_is_replaced_only_when_asked_to_and_resumed_only_as_it_was(
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
    assert training.read_settings(tmp_path / "run") == other


def test_after_the_first_token_only_where_that_token_is_special(tokenizer):
    from conftest import train_tokenizer

    config = PromptEncoderConfig(placement="after_first")
    assert training.fit_to_tokenizer(config, tokenizer).placement == "after_first"
    without = train_tokenizer()
    assert training.fit_to_tokenizer(config, without).placement == "prefix"


def test_an_input_prompt_starts_from_the_question_and_a_head_of_zeros(bert_folder, table, tmp_path):
    """Before it has learned anything, every label is as likely as every other."""
    question = "what is it about?"
    options = {"prompt": "input", "learning_rate": 0.0, "prompt_learning_rate": 0.0, "epochs": 1}
    own = settings(bert_folder, table, prompt_init_text=question, **options)
    run = ptune.train_run(own, tmp_path / "run")
    config = run.model.prompt_config
    assert (config.prompt_init, config.prompt_init_text) == ("text", question)
    assert not any(p.any() for _, p in run.model.head_parameters() if p.ndim == 2 and len(p) == 2)
    labels = len(run.metrics["labels"])
    assert run.metrics["eval"]["loss"] == pytest.approx(np.log(labels))
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
def test_where_the_words_of_a_start_come_from(options, init, scale):
    """From the user, else from the task."""
    config = ptune.TrainSettings(task="mrpc", **options).prompt_config("is it so?")
    assert (config.prompt_init, config.prompt_init_text) == init
    assert config.prompt_init_scale == scale
    without = ptune.TrainSettings(task="mrpc", prompt="input").prompt_config()
    assert (without.prompt_init, without.prompt_init_text) == ("vocab", None)


def test_of_pairs_an_input_prompt_is_read():
    """By a sentence encoder's head, that is; and of single texts the text."""
    settings = ptune.TrainSettings(task="mrpc", prompt="input")
    assert settings.prompt_config(pairs=True).pooling == "prompt"
    assert settings.prompt_config(pairs=False).pooling == "mean"
    assert ptune.TrainSettings(task="mrpc").prompt_config(pairs=True).pooling == "mean"
    family = ptune.TrainSettings(task="mrpc", prompt="input", pooling="family")
    assert family.prompt_config(pairs=True).pooling == "family"


def test_training_goes_on_without_the_backbone_s_tokenizer(bert_folder, table, tmp_path):
    """What was trained does not start from words again."""
    own = settings(bert_folder, table, prompt="input", prompt_init_text="the lamp", epochs=1)
    run = ptune.train_run(own, tmp_path / "run")
    backbone = build("bert")
    model = PromptModel.from_pretrained(backbone, tmp_path / "run", is_trainable=True)
    assert model.prompt_config.prompt_init_text == "the lamp"
    torch.testing.assert_close(model.prompt_rows(), run.model.prompt_rows())
