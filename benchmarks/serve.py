"""Are the server's answers right under load, and does it stop without losing a request?

    python benchmarks/serve.py --seconds 60 --clients 64 --output-dir runs/serve

Starts `ptune serve` on a free port of this machine, with tasks made for it (untrained prompts and
random heads on MiniLM), and writes `serve.json` and a table. Two parts (`--parts`):

load  Clients ask for single texts, pairs and batches of any task, while tasks are removed, added
      and replaced by tasks with other labels. Every answer is compared with that of `ptune.load`:
      all scores must be equal within 1e-5 (float32).
stop  The server gets SIGTERM under that load. Every request that it accepted must be answered, and
      every other one refused with a message, or its connection refused.

The exit code is 1 if any of this fails. The clients run in this process, on the same cores as the
server.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import http.client
import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
import torch
from common import silence, versions

import ptune
from ptune import PromptModel
from ptune.backbones.loading import load_backbone
from ptune.data.dataset import TEXT
from ptune.data.tables import read_table
from ptune.peft import PromptEncoderConfig
from ptune.prompts.config import Depth

ADMIN = "admin-of-the-benchmark"
TOLERANCE = 1e-5  # of a score
WORDS = ["red", "green", "blue", "grey", "pink", "black"]
Sent = str | list[str]
# Versions to report.
LIBRARIES = ("ptune", "torch", "transformers", "fastapi", "uvicorn", "aiohttp")


# Tasks.


def make_task(folder: Path, seed: int, model: str, depth: Depth | None = None) -> None:
    """Save an untrained adapter whose head gives different texts different scores."""
    kinds = ["single_label_classification"] * 3 + ["multi_label_classification", "regression"]
    problem_type = kinds[seed % 5]
    labels = ["score"] if problem_type == "regression" else WORDS[: 2 + seed % 5]
    config = (ptune.PromptEncoderConfig if depth == "reader" else PromptEncoderConfig)(
        num_virtual_tokens=4 + seed % 5,
        encoder_reparameterization_type="NONE",
        depth=depth or ("deep" if seed % 2 else "input"),
    )
    torch.manual_seed(seed)
    backbone = load_backbone(model, labels=labels, problem_type=problem_type, dtype="float32")
    prompt_model = PromptModel(backbone, config)
    with torch.no_grad():
        for _, parameter in prompt_model.head_parameters():
            parameter.normal_(std=0.3)
    prompt_model.to_adapter().save(folder)


def texts_to_send(count: int) -> list[Sent]:
    """Support mail; every third text is a pair."""
    rows = read_table(Path(ptune.__file__).parent / "demo" / "test.csv")[TEXT][: 2 * count]
    return [[rows[i], rows[i + count]] if i % 3 == 0 else rows[i] for i in range(count)]


def expected(folder: Path, texts: list[Sent]) -> list[dict[str, float]]:
    """The scores by label that `ptune.load` gives for every text."""
    classifier = ptune.load(folder, dtype="float32")
    return [
        classifier(text if isinstance(text, str) else tuple(text)).probabilities for text in texts
    ]


# The server.


class Server:
    """`ptune serve` on a free port."""

    def __init__(self, folder: Path, *flags: Any, **process: Any) -> None:
        self.log = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 (closed at exit)
        words = [
            sys.executable,
            "-c",
            "from ptune.cli.app import main; main()",
            "serve",
            str(folder),
        ]
        words += ["--port", "0", "--dtype", "float32", *map(str, flags)]
        environment = os.environ | {"PTUNE_ADMIN_TOKEN": ADMIN}
        self.process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=self.log, text=True, env=environment, **process
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()  # "Serving 3 tasks at http://127.0.0.1:1234 (…)"
        found = re.search(r"http://([\d.]+):(\d+)", line)
        if found is None:
            self.process.wait(60)
            raise SystemExit(f"The server did not start:\n{self.log_text()}")
        self.url, self.host, self.port = found[0], found[1], int(found[2])

    def log_text(self) -> str:
        """Everything it wrote to standard error."""
        self.log.seek(0)
        return self.log.read()

    def records(self) -> list[dict[str, Any]]:
        """The records of its log."""
        return [json.loads(line) for line in self.log_text().splitlines() if line.startswith("{")]

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.log.close()

    def memory(self) -> float:
        """Bytes of memory that it occupies, from its `/metrics`."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        connection.request("GET", "/metrics")
        shown = connection.getresponse().read().decode()
        connection.close()
        (line,) = re.findall(r"^process_resident_memory_bytes (\S+)$", shown, re.MULTILINE)
        return float(line)


# Load.


class Load:
    """Clients that ask and compare, and a count of what happened to them."""

    def __init__(self, url: str, answers: dict[str, list[list[dict[str, float]]]], texts: Any):
        self.url, self.answers, self.texts = url, answers, texts
        self.seconds: list[float] = []
        self.met: collections.Counter[str] = collections.Counter()
        self.wrong: list[str] = []
        self.asked_texts = 0
        self.largest = 0.0

    def differs(self, task: str, number: int, answer: Any) -> str | None:
        """How an answer differs from all right ones; ``None`` if it is right."""
        scores = {row["label"]: row["score"] for row in answer}
        gaps = []
        for rows in self.answers[task]:
            if rows[number].keys() == scores.keys():
                gaps.append(max(abs(scores[k] - v) for k, v in rows[number].items()))
        if gaps:
            self.largest = max(self.largest, min(gaps) if min(gaps) <= TOLERANCE else 0.0)
        if gaps and min(gaps) <= TOLERANCE:
            return None
        return f"{task}, text {number}: {scores}"

    async def client(self, session: aiohttp.ClientSession, seed: int, until: float) -> None:
        """Ask until the time is over or the server stops."""
        rng = random.Random(seed)
        while time.perf_counter() < until:
            task = rng.choice(list(self.answers))
            count = rng.choice([1, 1, 1, rng.randint(2, 8)])
            numbers = [rng.randrange(len(self.texts)) for _ in range(count)]
            rows = [self.texts[n] for n in numbers]
            single = count == 1 and isinstance(rows[0], str)
            inputs = rows[0] if single else [[r] if isinstance(r, str) else r for r in rows]
            started = time.perf_counter()
            try:
                async with session.post(
                    f"{self.url}/tasks/{task}/predict", json={"inputs": inputs}
                ) as response:
                    status, answer = response.status, await response.json()
            except aiohttp.ClientConnectorError:
                self.met["connection refused"] += 1
                return
            except (aiohttp.ClientError, OSError, ValueError) as error:
                self.met["lost"] += 1
                self.wrong.append(f"{task}: {type(error).__name__} {error}")
                continue
            if status == 200:
                self.seconds.append(time.perf_counter() - started)
                self.asked_texts += count
                answers = [answer] if isinstance(inputs, str) else answer
                for number, row in zip(numbers, answers, strict=True):
                    if differs := self.differs(task, number, row):
                        self.wrong.append(differs)
                        self.met["wrong"] += 1
            name = {200: "answered", 429: "overloaded", 503: answer_type(answer)}.get(status)
            if status == 404 and task.startswith("moving"):
                name = "task removed"
            self.met[name or f"status {status}"] += 1
            if name == "stopping":
                return

    async def run(self, clients: int, seconds: float, *others: Any) -> None:
        """Run all clients at once."""
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=120)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            until = time.perf_counter() + seconds
            asking = [self.client(session, seed, until) for seed in range(clients)]
            await asyncio.gather(*asking, *[other(session, until) for other in others])


def answer_type(answer: Any) -> str:
    """The `error_type` of a refusal."""
    return answer["error_type"] if isinstance(answer, dict) else "status 503"


class Mover:
    """Removes, adds and replaces the moving tasks while clients use them."""

    def __init__(self, url: str, served: Path, variants: dict[str, list[Path]]) -> None:
        self.url, self.served, self.variants = url, served, variants
        self.moves: collections.Counter[str] = collections.Counter()

    async def __call__(self, session: aiohttp.ClientSession, until: float) -> None:
        """Move tasks until the time is over."""
        headers = {"Authorization": f"Bearer {ADMIN}"}
        turn = 0
        while time.perf_counter() < until:
            for task, folders in self.variants.items():
                turn += 1
                if turn % 2:
                    async with session.delete(f"{self.url}/tasks/{task}", headers=headers) as r:
                        self.moves[f"removed: {r.status}"] += 1
                    await asyncio.sleep(0.05)
                swap(self.served / task, folders[turn // 2 % 2])
                async with session.put(f"{self.url}/tasks/{task}", headers=headers) as r:
                    self.moves[f"{'added' if turn % 2 else 'replaced'}: {r.status}"] += 1
                await asyncio.sleep(0.1)


def swap(place: Path, source: Path) -> None:
    """Put another adapter in the place of a task's."""
    fresh, old = place.with_name(f".{place.name}-new"), place.with_name(f".{place.name}-old")
    shutil.copytree(source, fresh)
    if place.exists():
        place.rename(old)
    fresh.rename(place)
    shutil.rmtree(old, ignore_errors=True)


class Stage:
    """The folder to serve, and the right answers."""

    def __init__(self, folder: Path, model: str, tasks: int, texts: int) -> None:
        self.model = model
        self.served, self.texts = folder / "served", texts_to_send(texts)
        self.answers: dict[str, list[list[dict[str, float]]]] = {}
        self.variants: dict[str, list[Path]] = {}
        for i in range(tasks):
            make_task(self.served / f"task{i}", i, model)
            self.answers[f"task{i}"] = [expected(self.served / f"task{i}", self.texts)]
        for i in range(2):
            # Two adapters with different labels alternate.
            both = [folder / f"moving{i}-{k}" for k in range(2)]
            for k, variant in enumerate(both):
                make_task(variant, 100 + 10 * i + k, model)
            shutil.copytree(both[0], self.served / f"moving{i}")
            self.variants[f"moving{i}"] = both
            self.answers[f"moving{i}"] = [expected(variant, self.texts) for variant in both]


def quantile(values: list[float], share: float) -> float:
    """A quantile of sorted values; 0 if there are none."""
    return values[min(len(values) - 1, int(share * len(values)))] if values else 0.0


def measure_load(server: Server, stage: Stage, clients: int, seconds: float) -> dict[str, Any]:
    """Run the part load."""
    load = Load(server.url, stage.answers, stage.texts)
    mover = Mover(server.url, stage.served, stage.variants)
    before, started = server.memory(), time.perf_counter()
    asyncio.run(load.run(clients, seconds, mover))
    took, after = time.perf_counter() - started, server.memory()
    times = sorted(load.seconds)
    return {
        "clients": clients,
        "seconds": took,
        "tasks": len(stage.answers),
        "requests_answered": load.met["answered"],
        "requests_per_second": load.met["answered"] / took,
        "texts_per_second": load.asked_texts / took,
        "median_ms": 1000 * statistics.median(times) if times else 0.0,
        "p99_ms": 1000 * quantile(times, 0.99),
        "largest_ms": 1000 * quantile(times, 1.0),
        "largest_difference": load.largest,
        "met": dict(load.met),
        "moves": dict(mover.moves),
        "memory_grew_mb": (after - before) / 1e6,
        "examples_of_wrong": load.wrong[:5],
        "holds": not load.wrong
        and set(load.met) <= {"answered", "task removed", "overloaded"}
        and load.met["answered"] > 0
        and set(mover.moves) <= {"removed: 204", "added: 201", "replaced: 200"},
    }


def measure_stop(server: Server, stage: Stage, clients: int, seconds: float) -> dict[str, Any]:
    """Run the part stop. The server has exited afterwards."""
    steady = {task: a for task, a in stage.answers.items() if task.startswith("task")}
    load = Load(server.url, steady, stage.texts)
    earlier = len(server.records())

    async def terminate(*_: object) -> None:
        await asyncio.sleep(seconds)
        server.process.send_signal(signal.SIGTERM)

    asyncio.run(load.run(clients, seconds + 60, terminate))
    code = server.process.wait(60)
    answered = sum(
        r["status"] == 200 and r["route"].endswith("/predict")
        for r in server.records()[earlier:]
        if r["message"] == "request"
    )
    return {
        "clients": clients,
        "met": dict(load.met),
        "answered_by_server": answered,
        "answers_received": load.met["answered"],
        "exit_code": code,
        "examples_of_wrong": load.wrong[:5],
        "holds": not load.wrong
        and set(load.met) <= {"answered", "stopping", "connection refused"}
        and answered == load.met["answered"] > 0
        and code == 0,
    }


def table(results: dict[str, Any]) -> str:
    """The results in Markdown."""
    lines = ["| part | what | result | passed |", "| --- | --- | --- | --- |"]
    shown = {
        "load": ("requests_answered", "requests_per_second", "texts_per_second", "median_ms",
                 "p99_ms", "largest_ms", "largest_difference", "met", "moves"),
        "stop": ("met", "answered_by_server", "answers_received", "exit_code"),
    }  # fmt: skip
    for part, keys in shown.items():
        for key in keys if part in results else ():
            value = results[part][key]
            if isinstance(value, dict):
                value = ", ".join(f"{k} {number(v)}" for k, v in value.items())
            holds = "yes" if results[part]["holds"] else "**no**"
            lines.append(f"| {part} | {key.replace('_', ' ')} | {number(value)} | {holds} |")
    return "\n".join(lines)


def number(value: Any) -> str:
    """A number, formatted for reading."""
    if isinstance(value, float):
        return f"{value:.1e}" if 0 < value < 0.01 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def main() -> None:
    """Measure, print the table and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = ["load", "stop"]
    parser.add_argument("--parts", nargs="+", default=parts, choices=parts)
    parser.add_argument("--model", default="minilm", help="the backbone (minilm)")
    parser.add_argument("--tasks", type=int, default=20, help="tasks that stay (20)")
    parser.add_argument("--texts", type=int, default=30, help="different texts (30)")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60.0, help="of the part load (60)")
    parser.add_argument("--stop-after", type=float, default=5.0, help="seconds of load (5)")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/serve"))
    given = parser.parse_args()
    silence()
    results: dict[str, Any] = {"versions": versions(*LIBRARIES), "cores": os.cpu_count()}
    with tempfile.TemporaryDirectory(prefix="ptune-serve-") as folder:
        stage = Stage(Path(folder), given.model, given.tasks, given.texts)
        with Server(stage.served) as server:
            if "load" in given.parts:
                results["load"] = measure_load(server, stage, given.clients, given.seconds)
            if "stop" in given.parts:
                results["stop"] = measure_stop(server, stage, given.clients, given.stop_after)
    given.output_dir.mkdir(parents=True, exist_ok=True)
    (given.output_dir / "serve.json").write_text(json.dumps(results, indent=2) + "\n")
    print(table(results))
    bad = [part for part in given.parts if not results[part]["holds"]]
    for part in bad:
        print(f"{part} failed: {json.dumps(results[part])}", file=sys.stderr)
    raise SystemExit(1 if bad else 0)


if __name__ == "__main__":
    main()
