"""Is the server as fast as the library?

    python benchmarks/serve_speed.py --rounds 5 --output runs/serve_speed.json

Compares `ptune serve` with `predict` in one process on the same texts, in alternating rounds. The
unit is texts per CPU second (user and system time of a process), because other programs on the
machine change the elapsed time but hardly the processor time. The server, the clients and `predict`
are processes of their own. Adapters are untrained, and texts are those of the demo.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import write_result
from growth import folder_of_tasks, make_backbone
from serve import ADMIN, Server, make_task

import ptune
from ptune.data.dataset import TEXT
from ptune.data.tables import read_table

# The server is allowed to be slow, on a machine that others use as well.
SERVER = ("--dtype", "auto", "--timeout", 600)
# Name of a measurement, and its clients and texts per request.
ASKED = {
    "1 client, 1 text": (1, 1),
    "8 clients, 1 text": (8, 1),
    "64 clients, 1 text": (64, 1),
    "512 clients, 1 text": (512, 1),
    "16 clients, 32 texts": (16, 32),
}


def demo_texts() -> list[str]:
    """The texts of the demo's test set."""
    return list(read_table(Path(ptune.__file__).parent / "demo" / "test.csv")[TEXT])


# `predict`, in a process of its own.


def predict(folder: Path, count: int) -> None:
    """Classify `count` texts for each line on standard input."""
    classifier = ptune.load(folder)
    texts, rng = demo_texts(), random.Random(0)
    chosen = [rng.choice(texts) for _ in range(count)]
    classifier.predict(chosen)
    for _ in sys.stdin:
        cpu, started = time.process_time(), time.perf_counter()
        classifier.predict(chosen)
        row = {"cpu": time.process_time() - cpu, "seconds": time.perf_counter() - started}
        print(json.dumps(row | {"texts": count}), flush=True)


# Measuring.


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def asked(server: Server, name: str, count: int, tasks: int) -> dict[str, Any]:
    """One round of clients, with the processor time of the server."""
    clients, size = ASKED[name]
    before = cpu_seconds(server.process.pid)
    words = [Path(__file__).with_name("clients.py"), server.port, clients, size, count, tasks]
    row = json.loads(
        subprocess.run(
            [sys.executable, *map(str, words)],
            check=True,
            input=json.dumps(demo_texts()),
            stdout=subprocess.PIPE,
            text=True,
        ).stdout
    )
    return row | {"cpu": cpu_seconds(server.process.pid) - before}


def measure(given: argparse.Namespace, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """All rounds of all measurements."""
    for seed in range(given.tasks):
        make_task(folder / f"task{seed}", 3 * seed + 1, given.model, "deep")
    words = [sys.executable, __file__, "--predict", str(folder / "task0"), str(given.texts)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    rounds: dict[str, list[dict[str, Any]]] = {"predict": [], **{name: [] for name in given.ask_}}
    with subprocess.Popen(words, **pipes) as alone, Server(folder, *SERVER) as server:
        assert alone.stdin is not None
        assert alone.stdout is not None
        for name in given.ask_:
            asked(server, name, given.texts // 4, given.tasks)  # warms up
        for _ in range(given.rounds):
            print(file=alone.stdin, flush=True)
            line = next(line for line in alone.stdout if line.startswith("{"))  # no progress bar
            rounds["predict"].append(json.loads(line))
            for name in given.ask_:
                few = given.texts // 4 if name.startswith("1 client,") else given.texts
                rounds[name].append(asked(server, name, few, given.tasks))
        alone.stdin.close()
    return rounds


def start(folder: Path, count: int) -> dict[str, dict[str, str]]:
    """The start of a server with many tasks on a small backbone, and adding another task."""
    make_backbone(folder / "backbone")
    tasks, started = folder_of_tasks(folder, folder / "backbone", count), time.perf_counter()
    with Server(tasks) as server:
        client = http.client.HTTPConnection(server.host, server.port, timeout=60)

        def request(method: str, path: str, body: str | None = None) -> None:
            headers = {"Content-Type": "application/json", "Authorization": f"Bearer {ADMIN}"}
            client.request(method, path, body, headers)
            answer = client.getresponse()
            if answer.status >= 400:
                raise SystemExit(answer.read().decode())
            answer.read()

        request("POST", f"/tasks/task{count - 1}/predict", '{"inputs": "a"}')
        first = time.perf_counter() - started, cpu_seconds(server.process.pid)
        added = []
        for i in range(20):
            shutil.copytree(tasks / "task0", tasks / f"new{i}")
            before = time.perf_counter(), cpu_seconds(server.process.pid)
            request("PUT", f"/tasks/new{i}")
            added.append(
                (time.perf_counter() - before[0], cpu_seconds(server.process.pid) - before[1])
            )
    seconds, cpu = (statistics.mean(column) for column in zip(*added, strict=True))
    return {
        f"start to first answer, {count:,} tasks": {
            "seconds": f"{first[0]:.1f}", "CPU seconds": f"{first[1]:.1f}"
        },
        "adding a task": {"seconds": f"{seconds:.3f}", "CPU seconds": f"{cpu:.3f}"},
    }  # fmt: skip


def summary(rounds: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, str]]:
    """A row per measurement: medians over the rounds."""
    rows = {}
    for name, found in rounds.items():

        def median(key: str, per: str = "", factor: float = 1, found: Any = found) -> float:
            return factor * statistics.median(r[key] / r.get(per, 1) for r in found)

        share = statistics.median(
            row["texts"] / row["cpu"] / (own["texts"] / own["cpu"])
            for row, own in zip(found, rounds["predict"], strict=True)
        )
        rows[name] = {
            "CPU per text": f"{median('cpu', 'texts', 1000):.2f} ms",
            "texts per CPU second, compared with `predict`": f"{share:.2f}",
            "texts per second": f"{median('texts', 'seconds'):,.0f}",
        }
        if "client_cpu" in found[0]:
            rows[name] |= {
                "CPU per text, clients": f"{median('client_cpu', 'texts', 1000):.2f} ms",
                "p50": f"{median('p50_ms'):,.0f} ms",
                "p99": f"{median('p99_ms'):,.0f} ms",
            }
    return rows


def main() -> None:
    """Measure, print the table and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="minilm", help="the backbone (minilm)")
    parser.add_argument("--tasks", type=int, default=1)
    parser.add_argument("--texts", type=int, default=2048, help="texts per round (2048)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--measure", dest="ask_", nargs="+", default=list(ASKED), choices=ASKED)
    parser.add_argument("--start", type=int, metavar="N", help="only start a server with N tasks")
    parser.add_argument("--note", default="", help="added to the machine, such as 'loaded'")
    parser.add_argument("--output", type=Path, default=Path("runs/serve_speed.json"))
    parser.add_argument("--predict", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.predict:
        predict(Path(given.predict[0]), int(given.predict[1]))
        return
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with tempfile.TemporaryDirectory(prefix="ptune-serve-") as folder:
        rounds = {} if given.start else measure(given, Path(folder))
        rows = start(Path(folder), given.start) if given.start else summary(rounds)
    shown = ["start"] if given.start else ["tasks", "texts", "rounds"]
    about = f"`ptune serve` and `predict`: {given.tasks} tasks on {given.model}, deep prompts"
    options = " ".join(f"--{name} {getattr(given, name)}" for name in shown)
    write_result(
        given.output,
        "`ptune serve` on a BERT of two layers" if given.start else about,
        f"python benchmarks/serve_speed.py {options}",
        "measurement",
        rows,
        note=given.note,
        threads=torch.get_num_threads(),
        rounds=rounds,
    )
    for name, row in rows.items():
        print(name, row)


if __name__ == "__main__":
    main()
