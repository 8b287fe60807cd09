"""The benchmarks run, and their tables agree with their files."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


def run(script, *words):
    command = [sys.executable, str(FOLDER / script), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def table(tmp_path_factory, texts):
    file = tmp_path_factory.mktemp("data") / "mail.csv"
    rows = [f"{t} {i},{'ab'[n % 2]}" for i in range(4) for n, t in enumerate(texts)]
    file.write_text("text,label\n" + "\n".join(rows) + "\n")
    return file


@pytest.mark.slow
def test_accuracy_compares_methods_and_resumes(bert_folder, table, tmp_path):
    words = ["--model", bert_folder, "--train-file", table, "--eval-file", table]
    words += ["--epochs", 1, "--output-dir", tmp_path, "--methods"]
    first = run("accuracy.py", *words, "majority class", "ptune deep prompt", "--seeds", 0)
    assert first.returncode == 0, first.stderr
    before = json.loads((tmp_path / "accuracy.json").read_text())["runs"]
    done = run(
        "accuracy.py", *words, "PEFT p-tuning", "ptune deep prompt", "logistic regression",
        "--seeds", 0, 1,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "accuracy.json").read_text())
    assert results["runs"]["ptune deep prompt"]["0"] == before["ptune deep prompt"]["0"]
    assert set(results["runs"]["PEFT p-tuning"]) == {"0", "1"}
    assert set(results["runs"]["logistic regression"]) == {"0"}
    assert "peft" in results["versions"]
    mean = sum(r["scores"]["accuracy"] for r in results["runs"]["PEFT p-tuning"].values()) / 2
    (line,) = [r for r in done.stdout.splitlines() if r.startswith("| PEFT p-tuning")]
    assert f"{mean:.4f} ±" in line
    # Keys and values of 20 virtual tokens in two layers of width 32, and a head of 32 x 2 + 2.
    (line,) = [r for r in done.stdout.splitlines() if r.startswith("| ptune deep prompt")]
    assert "2,626" in line
    assert (tmp_path / "accuracy.png").stat().st_size > 5_000


def test_accuracy_refuses_to_mix_results_of_different_benchmarks(tmp_path):
    (tmp_path / "accuracy.json").write_text(
        json.dumps({"model": "other", "task": "mrpc", "train_file": None, "epochs": 4.0,
                    "shots": None, "runs": {}})
    )  # fmt: skip
    done = run("accuracy.py", "--task", "mrpc", "--output-dir", tmp_path)
    assert done.returncode == 2
    assert "model differs" in done.stderr


@pytest.fixture(scope="module")
def glue(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("glue")
    (folder / "MRPC").mkdir()
    lines = [f"1\t1\t2\t{t} {i}\t{t}" for i in range(2) for t in texts]
    for name in ("train", "dev", "test"):
        header = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"
        (folder / "MRPC" / f"{name}.tsv").write_text("\n".join([header, *lines]) + "\n")
    return folder


@pytest.mark.slow
def test_bank_is_compared_with_a_single_task_and_with_switching(glue, tmp_path):
    done = run(
        "bank.py", "--data-dir", glue, "--tasks", 12, "--virtual-tokens", 3,
        "--requests", 70, "--rounds", 1, "--dtype", "float32", "--output-dir", tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    parts = json.loads((tmp_path / "bank.json").read_text())["parts"]
    assert parts["memory, input"]["of_which_numbers"] == pytest.approx((3 * 384 + 770) * 4 / 1000)
    # All contenders give the same answers.
    for part in ("throughput, input", "switching"):
        assert parts[part]["tasks"] == 12
        assert parts[part]["largest_difference"] < 1e-4
    what = "requests per second, input bank : PEFT, float32"
    (line,) = [r for r in done.stdout.splitlines() if what in r]
    ratio = parts["switching"]["ratios"][what]
    assert f"| {ratio['median']:.2f} |" in line


@pytest.mark.slow
@pytest.mark.timeout(600)  # Ray starts, and a worker twice
def test_scoring_is_complete_after_a_worker_of_ray_is_killed(bert_folder, table, tmp_path):
    words = ["--model", bert_folder, "--train-file", table, "--output-dir", tmp_path / "runs"]
    words += ["--rows", 6000, "--files", 6, "--dtype", "float32"]
    words += ["--parts", "worker", "--workers", 1]
    done = run("scoring.py", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "runs/scoring.json").read_text())["a worker killed"]
    assert found["killed"] == 1
    assert found["workers seen"] > 1
    assert 3 <= found["files done when killed"] < 6
    # The script fails if a row is missing, so its claim is checked.
    assert "6000 rows: none lost, none twice, in order" in done.stdout


@pytest.mark.slow
def test_two_checkouts_are_compared_in_alternating_rounds(glue, tmp_path):
    root = FOLDER.parent
    words = ["--data-dir", glue, "--rounds", 2, "--only", "train input", "predict deep"]
    done = run("versions.py", root, root, *words, "--output-dir", tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "versions.json").read_text())["results"]
    for work in ("train input", "predict deep"):
        before, after = results[work]["seconds"]
        assert len(before) == len(after) == 2
        low, high = results[work]["interval"]
        assert low <= results[work]["median"] <= high
        assert f"| {work} | {results[work]['median']:.3f} |" in done.stdout
