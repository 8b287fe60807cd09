"""Are predictions complete when workers are killed?

    python benchmarks/scoring.py --data-dir glue --rows 100000 --output-dir runs/scoring

Makes Parquet files of short texts from MRPC and classifies them in three ways (`--parts`):

worker  `ptune predict --ray`; one worker gets SIGKILL when half of the files are done
all     the same, but all processes get SIGKILL, and the command is run again
alone   without Ray

Each time, every row must come out once, in order and with its columns, and all ways must give the
same predictions. Prints the duration and the memory of the largest worker, and writes
`scoring.json`. The adapter is `--adapter`, or an untrained one on `--model`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow
import torch
from pyarrow import parquet

import ptune
from ptune import PromptModel
from ptune.backbones.loading import load_backbone
from ptune.data import dataset as data
from ptune.data.glue import load_glue
from ptune.peft import PromptEncoderConfig


def untrained(model: str, folder: Path) -> Path:
    """Save an untrained adapter."""
    torch.manual_seed(0)
    backbone = load_backbone(model, labels=["no", "yes"], dtype="float32")
    config = PromptEncoderConfig(
        depth="deep", encoder_reparameterization_type="NONE", prompt_init_scale=0.5
    )
    PromptModel(backbone, config).to_adapter().save(folder)
    return folder


def texts(options: argparse.Namespace) -> Iterator[str]:
    """Yield short texts without end, each of them different."""
    if options.train_file:
        dataset = data.load_files(options.train_file)
    else:
        dataset = load_glue("mrpc", options.data_dir)
    short = [" ".join(text.split()[:12]) for text in dataset.train[data.TEXT]]
    number = 0
    while True:
        for text in short:
            yield f"{number} {text}"
            number += 1


def make_files(folder: Path, options: argparse.Namespace) -> None:
    """Write the input: `rows` rows in `files` files."""
    folder.mkdir()
    source, first = texts(options), 0
    for i in range(options.files):
        last = options.rows * (i + 1) // options.files
        rows = {"id": list(range(first, last)), "text": [next(source) for _ in range(first, last)]}
        parquet.write_table(pyarrow.table(rows), folder / f"part-{i:04}.parquet")
        first = last


def finished(folder: Path) -> list[Path]:
    """The files that exist."""
    return sorted(folder.glob("*.parquet"))


def workers(process: psutil.Process) -> dict[int, psutil.Process]:
    """Ray's actors with a classifier among the children of a process."""
    found = {}
    for child in process.children(recursive=True):
        try:
            if child.cmdline()[0].startswith("ray::MapWorker"):
                found[child.pid] = child
        except (psutil.Error, IndexError):
            continue
    return found


def classify(
    source: Path, target: Path, options: argparse.Namespace, *, ray: bool = True, kill: str = ""
) -> dict[str, Any]:
    """Run the command. When half of the files are done, kill a `worker` or `all` processes."""
    words = [sys.executable, "-m", "ptune", "predict", str(options.adapter), "--file", str(source)]
    words += ["--output", str(target), "--dtype", options.dtype]
    if ray:
        words += ["--ray", *(["--workers", str(options.workers)] if options.workers else [])]
    started, killed, seen, memory = time.perf_counter(), 0, set(), 0
    log = options.output_dir / "log.txt"
    with log.open("w") as f:
        process = psutil.Popen(words, stdout=f, stderr=subprocess.STDOUT)
    at_work = None
    while process.poll() is None:
        mine = workers(process) if ray else {process.pid: process}
        seen |= mine.keys()
        for one in mine.values():
            try:
                memory = max(memory, one.memory_info().rss)
            except psutil.Error:
                continue
        done = len(finished(target))
        if kill and not killed and done >= options.files // 2:
            assert done < options.files, "everything was done before anything could be killed"
            at_work = done
            if kill == "worker":
                victim = max(mine.values(), key=lambda p: p.cpu_times().user)
                victim.kill()
            else:
                below = process.children(recursive=True)
                process.kill()
                psutil.wait_procs(below, timeout=60)
            killed += 1
        time.sleep(0.05)
    if process.returncode and kill != "all":
        sys.exit(f"ptune exited with {process.returncode}:\n{log.read_text()}")
    return {
        "seconds": round(time.perf_counter() - started, 1),
        "killed": killed,
        "files done when killed": at_work,
        "workers seen": len(seen),
        "largest worker, MB": round(memory / 2**20),
    }


def check(source: Path, target: Path) -> int:
    """Check that every row comes out once, in order and unchanged; the number of rows."""
    inputs, outputs = finished(source), finished(target)
    assert [p.name for p in inputs] == [p.name for p in outputs], "files are missing"
    rows = 0
    for before, after in zip(inputs, outputs, strict=True):
        given, got = parquet.read_table(before), parquet.read_table(after)
        assert got.select(given.column_names).equals(given), f"{after}: rows differ"
        assert got.column_names == ["id", "text", "label", "score", "probabilities"]
        assert got.column("label").null_count == 0
        rows += len(got)
    assert not list(target.glob(".writing-*")), "unfinished files were left behind"
    return rows


def same(one: Path, other: Path) -> None:
    """Check that two outputs contain the same predictions."""
    for a, b in zip(finished(one), finished(other), strict=True):
        x, y = (parquet.read_table(p).column("score").to_numpy() for p in (a, b))
        assert abs(x - y).max() < 1e-5, f"{a} and {b} differ"


def main() -> None:
    """Run the parts and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--files", type=int, default=50)
    parser.add_argument("--workers", type=int)
    parts = ("worker", "all", "alone")
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--adapter", type=Path, help="default: an untrained one")
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--data-dir", help="folder with GLUE's original files")
    parser.add_argument("--train-file", help="take texts from this file instead of MRPC")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/scoring"))
    options = parser.parse_args()
    shutil.rmtree(options.output_dir, ignore_errors=True)
    options.output_dir.mkdir(parents=True)
    options.adapter = options.adapter or untrained(options.model, options.output_dir / "adapter")
    source, target = options.output_dir / "in", options.output_dir / "out"
    make_files(source, options)

    results: dict[str, Any] = {"rows": options.rows, "files": options.files}
    if "worker" in options.parts:
        results["a worker killed"] = classify(source, target / "worker", options, kill="worker")
        assert check(source, target / "worker") == options.rows
    if "all" in options.parts:
        results["all killed"] = classify(source, target / "all", options, kill="all")
        before = {p.name: p.stat().st_mtime_ns for p in finished(target / "all")}
        assert 0 < len(before) < options.files
        results["then resumed"] = classify(source, target / "all", options)
        assert check(source, target / "all") == options.rows
        again = [n for n, t in before.items() if (target / "all" / n).stat().st_mtime_ns != t]
        assert not again, f"classified twice: {again}"
    if "alone" in options.parts:
        results["without Ray"] = classify(source, target / "alone", options, ray=False)
        assert check(source, target / "alone") == options.rows
    for part in options.parts[1:]:
        same(target / options.parts[0], target / part)
    results["versions"] = {"ptune": ptune.__version__, "torch": torch.__version__}
    (options.output_dir / "scoring.json").write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))
    print(f"{options.rows} rows: none lost, none twice, in order, each with its prediction.")


if __name__ == "__main__":
    main()
