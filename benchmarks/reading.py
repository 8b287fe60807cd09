"""Speed and memory of reading a CSV file, compared with another checkout of ptune.

    python benchmarks/reading.py --before ../old-checkout --output-dir runs/reading

Each round reads the same file with both checkouts, in alternating order, each in a process of its
own: all rows as `ptune predict` reads them, and all texts and labels as `ptune train` does. Ratios
are of CPU seconds within a round; above 1, this checkout is faster. Memory is the highest of a
process beyond what it had before it read. `reading.json` has the numbers of every round.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import versions

SENTENCE = "the parcel never came and nobody answers the phone so please send my money back"
WORDS = SENTENCE.split(" ")
# Runs in both checkouts; the first releases had other modules.
READER = """
import datasets, resource, sys, time  # imported by some releases only when needed
from pathlib import Path
try:
    from ptune.data.dataset import load_files
    from ptune.data.tables import Columns
    from ptune.inference.files import Source
except ImportError:
    from ptune.data import Columns, load_files
    from ptune.scoring import Source
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
file, part = Path(sys.argv[1]), sys.argv[2]
before, start = peak(), time.process_time()
if part == "predict":
    count = sum(len(texts) for _, texts in Source.of_file(file, Columns()).read())
else:
    count = len(load_files(file, file).train)
print(count, time.process_time() - start, peak() - before)
"""


def write_file(file: Path, rows: int) -> None:
    """Texts of 3 to 40 words with a number and a label; a tenth of them in quotes."""
    with file.open("w", encoding="utf-8") as out:
        out.write("id,text,label\n")
        for i in range(rows):
            text = " ".join(WORDS[(i + j) % len(WORDS)] for j in range(3 + i % 38))
            out.write(f'{i},"{text}, ""really""",late\n' if i % 10 == 0 else f"{i},{text},lost\n")


def read(checkout: Path, file: Path, part: str) -> dict[str, Any]:
    """Read a file with one checkout, in a new process."""
    command = [sys.executable, "-c", READER, str(file), part]
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src")}
    found = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    rows, seconds, memory = map(float, found.stdout.split())
    return {"rows": int(rows), "seconds": seconds, "memory_mb": memory}


def main() -> None:
    """Measure, write `reading.json` and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--before", type=Path, help="another checkout to compare with")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output-dir", type=Path, required=True)
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    checkouts = {"now": Path(__file__).parents[1]}
    if options.before:
        checkouts["before"] = options.before
    runs: list[dict[str, Any]] = []
    about = {"rows": options.rows, "cpu": platform.processor(), "versions": versions("pyarrow")}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "mail.csv")
        write_file(file, options.rows)
        for number in range(options.rounds):
            order = list(checkouts) if number % 2 else list(reversed(checkouts))
            for part in ("predict", "train"):
                found = {name: read(checkouts[name], file, part) for name in order}
                assert all(one["rows"] == options.rows for one in found.values())
                runs.append({"part": part, **found})
            result = json.dumps({**about, "runs": runs}, indent=2)
            (options.output_dir / "reading.json").write_text(result + "\n")
    print("| reading | CPU seconds | memory | speed-up |\n| --- | --- | --- | --- |")
    for part in ("predict", "train"):
        own = [run for run in runs if run["part"] == part]
        seconds = statistics.median(run["now"]["seconds"] for run in own)
        memory = max(run["now"]["memory_mb"] for run in own)
        ratios = [
            run["before"]["seconds"] / run["now"]["seconds"] for run in own if "before" in run
        ]
        faster = f"{statistics.median(ratios):.2f}" if ratios else ""
        print(f"| as `ptune {part}` | {seconds:.2f} | {memory:.0f} MB | {faster} |")


if __name__ == "__main__":
    main()
