"""Several processes train what one process trains with a larger batch."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from conftest import build
from safetensors.torch import load_file

import ptune
from ptune import PtuneError, compat
from ptune.training import run, trainer

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "ptune"]
EXAMPLES = 41


@pytest.fixture(scope="module")
def settings(tmp_path_factory, tokenizer, texts):
    """Settings for all runs, with a backbone whose head has no dropout.

    Dropout is random in each process. Without it, the runs are identical.
    """
    folder = tmp_path_factory.mktemp("backbones")
    build("bert", classifier_dropout=0.0).bert.save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    file = folder / "mail.csv"
    rows = [f"{t} {t[:i]},{'abc'[(i + n) % 3]}" for i in range(6) for n, t in enumerate(texts)]
    file.write_text("text,label\n" + "\n".join(rows[:EXAMPLES]) + "\n")
    names = {"model": folder / "bert", "train_file": file, "eval_file": file}
    return {
        **{k: str(v) for k, v in names.items()},
        "num_virtual_tokens": 4,
        "dtype": "float32",
        "learning_rate": 1e-3,
        "prompt_learning_rate": 1e-2,
    }


def command(settings, *words):
    flags = [w for k, v in settings.items() for w in (f"--{k.replace('_', '-')}", str(v))]
    return [*TORCHRUN, "train", *flags, *map(str, words)]


@pytest.mark.slow
def test_two_processes_train_the_same_adapter_as_one_with_twice_the_batch(settings, tmp_path):
    # The last step of an epoch has nine examples: a batch of 8, and one that cannot be split.
    words = ["--batch-size", 4, "--gradient-accumulation-steps", 2]
    words += ["--epochs", 3, "--output-dir", tmp_path / "two"]
    done = subprocess.run(command(settings, *words), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    one = ptune.TrainSettings(
        **settings,
        epochs=3,
        batch_size=8,
        loss="labels",  # several processes do not train in pairs
        training_arguments={"gradient_accumulation_steps": 2},
    )
    ptune.train_run(one, tmp_path / "one")

    one, two = (load_file(tmp_path / n / "adapter_model.safetensors") for n in ("one", "two"))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-4, rtol=0, msg=name)
    one, two = (json.loads((tmp_path / n / "metrics.json").read_text()) for n in ("one", "two"))
    for a, b in zip(one["epochs"], two["epochs"], strict=True):
        assert a == pytest.approx(b, abs=1e-4)
    assert one["confusion_matrix"] == two["confusion_matrix"]
    assert sum(map(sum, two["confusion_matrix"]["eval"])) == EXAMPLES
    assert two["processes"] == 2
    # Only one process prints.
    assert done.stdout.count("epoch  1.0/3") == 1
    assert done.stdout.count("majority class") == 1


@pytest.mark.slow
def test_ctrl_c_stops_all_processes_after_the_same_step_with_a_checkpoint(settings, tmp_path):
    words = ["--batch-size", 2, "--epochs", 400, "--output-dir", tmp_path / "run"]
    process = subprocess.Popen(
        command(settings, *words),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while "epoch" not in process.stdout.readline():
        assert process.poll() is None, process.stderr.read()
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, err = process.communicate(timeout=120)
    assert err.count("ptune train --resume") == 1
    last = run.last_checkpoint(tmp_path / "run" / "checkpoints")
    assert {f"rng_state_{i}.pth" for i in range(2)} < {p.name for p in last.iterdir()}
    # A run must be resumed with the number of processes it was started with.
    with pytest.raises(PtuneError, match="processes was 2 and is 1"):
        ptune.train_run(
            ptune.TrainSettings(**settings, batch_size=2, epochs=400),
            tmp_path / "run",
            resume=True,
        )


@pytest.mark.parametrize("processes", [2, 3, 8])
@pytest.mark.parametrize("examples", [1, 5, 41, 48, 49])
@pytest.mark.parametrize(("size", "accumulated"), [(1, 1), (1, 3), (4, 1), (4, 2)])
@pytest.mark.parametrize("drop_last", [False, True])
def test_all_examples_of_a_step_have_equal_weight(
    monkeypatch, processes, examples, size, accumulated, drop_last
):
    monkeypatch.setattr(compat, "synchronize_torch_generators", lambda: None)
    shares = [
        trainer.Shares(
            range(examples),
            batch_size=size,
            accumulated=accumulated,
            process=i,
            processes=processes,
            drop_last=drop_last,
        )
        for i in range(processes)
    ]
    batches = [list(share) for share in shares]
    # Unequal numbers of batches would deadlock. `len` must agree.
    assert {len(b) for b in batches} == {len(share) for share in shares} == {len(batches[0])}
    assert all(batch for own in batches for batch in own)
    # `Trainer` takes them step by step.
    step = size * accumulated * processes
    kept = examples - (examples % (size * processes) if drop_last else 0)
    for i, first in enumerate(range(0, kept, step)):
        expected = list(range(first, min(first + step, kept)))
        taken = [
            example
            for own in batches
            for batch in own[i * accumulated : (i + 1) * accumulated]
            for example in batch
        ]
        assert sorted(taken) in (expected, sorted(expected * processes))
        assert len(taken) == len(expected) or len(expected) < processes


def test_steps_count_all_processes_and_accumulated_batches(settings, tmp_path):
    def arguments(**options):
        own = ptune.TrainSettings(**settings, **options)
        return trainer.training_arguments(own, tmp_path, 3200)

    one = arguments(batch_size=64)
    parts = arguments(batch_size=16, training_arguments={"gradient_accumulation_steps": 4})
    assert one.warmup_steps == parts.warmup_steps == 24
    limited = arguments(batch_size=64, training_arguments={"max_steps": 50})
    assert limited.warmup_steps == 3
    assert arguments(training_arguments={"max_steps": 1}).warmup_steps == 0
    with pytest.raises(PtuneError, match="torchrun"):
        arguments(processes=2)
