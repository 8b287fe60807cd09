"""The benchmarks run, and their tables agree with their files."""

import collections
import json
import math
import re
import subprocess
import sys
import time
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


def suite_words(backbone, results):
    words = ["suite.py", "--backbones", backbone, "--tasks", "mail", "--device", "cpu", "--tiny"]
    return [*words, "--results", results, "--seeds"]


@pytest.mark.slow
def test_the_suite_resumes_after_a_kill_and_reports(bert_folder, tmp_path):
    results = tmp_path / "suite.jsonl"
    words = [*suite_words(bert_folder, results), 0, 1]
    methods = ["--methods", "ptune deep", "majority", "PEFT p-tuning", "SetFit"]
    command = [sys.executable, str(FOLDER / words[0]), *map(str, [*words[1:], *methods])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while process.poll() is None and not (results.exists() and results.read_text().count("\n")):
        time.sleep(0.05)
    process.kill()
    process.wait()
    process.stdout.close()
    before = results.read_text().splitlines()
    results.write_text("\n".join([*before, before[0][:50]]))  # a line that was cut off
    done = run(*words, *methods)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert rows[: len(before)] == [json.loads(line) for line in before]
    made = collections.Counter((r["method"], r["part"], r["seed"]) for r in rows)
    # Learning rates on a part of the training data, then the best one with each seed. There are
    # three, and more while the best is the first or the last.
    search = {r["rate"]: r["score"] for r in rows if r["part"] == "search"}
    searched = made.pop(("PEFT p-tuning", "search", 0))
    assert searched == len(search)
    assert {1e-3, 3e-3, 1e-2} <= search.keys()
    assert made == {
        ("ptune deep", "final", 0): 1, ("ptune deep", "final", 1): 1, ("majority", "final", 0): 1,
        ("PEFT p-tuning", "final", 0): 1, ("PEFT p-tuning", "final", 1): 1,
        ("SetFit", "final", 0): 1, ("SetFit", "final", 1): 1,
    }  # fmt: skip
    finals = [r for r in rows if r["method"] == "PEFT p-tuning" and r["part"] == "final"]
    assert all(search[r["rate"]] == max(search.values()) for r in finals)
    assert searched == 5 or finals[0]["rate"] not in (min(search), max(search))
    assert {r["train_examples"] for r in rows if "score" in r} == {48, 38}
    (refused, _) = (r for r in rows if r["method"] == "SetFit")
    assert refused["reason"] == "SetFit is for few examples (--shots)"
    shown = run("suite.py", "--report", results).stdout
    (line,) = [r for r in shown.splitlines() if r.startswith("| ptune deep | 0")]
    scores = [r["score"] for r in rows if r["method"] == "ptune deep"]
    assert f"| {sum(scores) / 2:.3f} ± {abs(scores[0] - scores[1]) / 2:.3f} |" in line
    differences = [a - b["score"] for a, b in zip(scores, finals, strict=True)]
    (line,) = [r for r in shown.splitlines() if re.match(r"\| PEFT p-tuning \| [+-]", r)]
    assert f"| {sum(differences) / 2:+.4f} |" in line


@pytest.mark.slow
def test_the_suite_tries_settings_under_names(bert_folder, tmp_path):
    results = tmp_path / "suite.jsonl"
    words = [*suite_words(bert_folder, results), 0, "--name", "slow", "--set"]
    assert run(*words, "prompt_learning_rate=1e-4", "prompt=input").returncode == 0
    (row,) = [json.loads(line) for line in results.read_text().splitlines()]
    assert (row["method"], row["settings"]["prompt_learning_rate"]) == ("slow", 1e-4)
    assert row["settings"]["prompt"] == "input"
    done = run(*words, "prompt_learning_rate=1e-3")
    assert done.returncode == 2
    assert "choose another --name" in done.stderr


def glue_folder_with(folder, texts, times):
    """MRPC's files with every text several times."""
    (folder / "MRPC").mkdir()
    lines = [f"1\t1\t2\t{t} {i}\t{t}" for i in range(times) for t in texts]
    for name in ("train", "dev", "test"):
        header = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"
        (folder / "MRPC" / f"{name}.tsv").write_text("\n".join([header, *lines]) + "\n")
    return folder


@pytest.fixture(scope="module")
def glue(tmp_path_factory, texts):
    return glue_folder_with(tmp_path_factory.mktemp("glue"), texts, 2)


@pytest.mark.slow
def test_speed_keeps_its_rounds_and_compares_two_files(texts, tmp_path):
    glue = glue_folder_with(tmp_path, texts, -(-32 // len(texts)))  # a batch
    words = ["speed.py", "--data-dir", glue, "--backbones", "minilm", "--parts", "training"]
    words += ["--contenders", "ptune deep", "ptune input", "--steps", 1, "--rounds", 1]
    saved = tmp_path / "saved.json"
    first = run(*words, "--output-dir", tmp_path, "--save", saved)
    assert first.returncode == 0, first.stderr
    file = tmp_path / "speed.jsonl"
    lines = file.read_text()
    (seconds,) = [r["seconds"] for r in map(json.loads, lines.splitlines()) if "seconds" in r]
    ratio = f"{seconds['ptune input'] / seconds['ptune deep']:.2f}"
    assert f"| {ratio} |  | 1 |" in first.stdout
    rows = json.loads(saved.read_text())["rows"]
    assert rows["training, minilm, ptune input : ptune deep"]["median"] == ratio
    file.write_text(lines + '{"part": "training, mi')  # killed while it wrote a round
    again = run(*words, "--output-dir", tmp_path)
    assert again.returncode == 0, again.stderr
    assert (file.read_text(), again.stdout, again.stderr) == (lines, first.stdout, "")
    other = tmp_path / "other.jsonl"
    halved = {**seconds, "ptune deep": seconds["ptune deep"] / 2}
    other.write_text(lines.replace(json.dumps(seconds), json.dumps(halved)))
    compared = run("speed.py", "--compare", file, other)
    assert compared.stdout.endswith("| 2.000 | 2.000 … 2.000 |\n"), compared.stderr


@pytest.mark.slow
def test_growth_is_rehearsed_and_fits_an_exponent(tmp_path):
    only = ["--only", "predict, by tokens per text", "asking a bank, by tasks"]
    done = run("growth.py", "--tiny", *only, "--output", tmp_path / "growth.json")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "growth.json").read_text())
    assert list(found["rows"]) == only[1:]
    assert found["rows"]["predict, by tokens per text"]["sizes"] == "4, 8, 16"
    (x1, y1), *_, (x2, y2) = [
        (math.log(p["size"]), math.log(p["cpu_seconds"]))
        for p in found["points"]["asking a bank, by tasks"]
    ]
    # Three points at equal distances: the slope is that of the line through the first and last.
    shown = float(found["rows"]["asking a bank, by tasks"]["exponent"])
    assert shown == pytest.approx((y2 - y1) / (x2 - x1), abs=0.006)


@pytest.mark.slow
def test_the_server_is_compared_with_predict(bert_folder, tmp_path):
    words = ["--model", bert_folder, "--texts", 32, "--rounds", 1, "--measure", "8 clients, 1 text"]
    done = run("serve_speed.py", *words, "--output", tmp_path / "serve.json")
    assert done.returncode == 0, done.stderr
    rounds = json.loads((tmp_path / "serve.json").read_text())["rounds"]
    assert [row["texts"] for (row,) in rounds.values()] == [32, 32]
    assert all(row["cpu"] > 0 and row["seconds"] > 0 for (row,) in rounds.values())


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
    words = ["--data-dir", glue, "--rounds", 2, "--only", "predict deep"]
    done = run("versions.py", root, root, *words, "--output-dir", tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "versions.json").read_text())["results"]["predict deep"]
    before, after = result["seconds"]
    assert len(before) == len(after) == 2
    low, high = result["interval"]
    assert low <= result["median"] <= high
    assert f"| predict deep | {result['median']:.3f} |" in done.stdout
