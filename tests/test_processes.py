"""Several processes train what one does with a larger batch."""

import json
import subprocess
import sys

import pytest
import torch
from conftest import build
from safetensors.torch import load_file

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def flags(tmp_path_factory, tokenizer, texts):
    """What every run is trained with: 41 examples, on a backbone whose head drops nothing out.

    What is dropped out is drawn in each process; without, the runs are the same to the last step.
    """
    folder = tmp_path_factory.mktemp("backbones")
    build("bert", classifier_dropout=0.0).bert.save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    file = folder / "mail.csv"
    rows = [f"{t} {t[:i]},{'abc'[(i + n) % 3]}" for i in range(6) for n, t in enumerate(texts)]
    file.write_text("text,label\n" + "\n".join(rows[:41]) + "\n")
    words = ["-m", "ptune", "train", "--model", folder / "bert", "--num-virtual-tokens", 4]
    words += ["--train-file", file, "--eval-file", file, "--dtype", "float32", "--use-cpu"]
    return [*map(str, words), "--learning-rate", "1e-3", "--prompt-learning-rate", "1e-2"]


def run(*words):
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batch", "more"),
    # The last of the batches of 8 holds one example, and two processes cannot share it.
    [(4, []), (5, ["--gradient-accumulation-steps", "2"])],
)
def test_two_processes_train_the_adapter_of_one_with_the_doubled_batch(
    flags, tmp_path, batch, more
):
    flags = [*flags, *more, "--epochs", 3]
    both = run(*TORCHRUN, *flags, "--batch-size", batch, "--output-dir", tmp_path / "two")
    run(sys.executable, *flags, "--batch-size", 2 * batch, "--output-dir", tmp_path / "one")
    one, two = (load_file(tmp_path / n / "adapter_model.safetensors") for n in ("one", "two"))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-5, rtol=0, msg=name)
    scores = [json.loads((tmp_path / n / "metrics.json").read_text()) for n in ("one", "two")]
    assert [e["step"] for e in scores[0]["epochs"]] == [e["step"] for e in scores[1]["epochs"]]
    for a, b in zip(*(s["epochs"] for s in scores), strict=True):
        assert a == pytest.approx(b, abs=1e-5)
    assert scores[0]["confusion_matrix"] == scores[1]["confusion_matrix"]
    assert sum(map(sum, scores[1]["confusion_matrix"]["eval"])) == 41
    # One of them speaks.
    assert both.stdout.count("epoch  1.0/3") == 1
    assert both.stdout.count("majority class") == 1
