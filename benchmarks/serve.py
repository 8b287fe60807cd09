"""Does the server answer rightly under load, stop without a loss, and bear malformed requests?

    python benchmarks/serve.py --seconds 60 --clients 64 --output-dir runs/serve

starts `ptune serve` on a free port of this machine, over tasks made for it (untrained prompts and
random heads on MiniLM), and writes `serve.json` and a table. Three parts (`--parts`):

load     So many clients ask for single texts, pairs and batches of any task, while tasks are
         removed, added and replaced by one with other labels. Every answer is compared with what
         `ptune.load` says of the same text: all scores within 1e-5 (float32).
hostile  Malformed requests, handwritten and from schemathesis on the server's own OpenAPI: each
         must be answered with 4xx, and the server's memory stay as it is.
stop     SIGTERM under the load of the first part. Every request that the server took must be
         answered, and every other one refused in words, or the connection with it.

The exit code is 1 if any of this does not hold. Clients run in this process, beside the server on
the same cores; seconds say little where other work runs.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import http.client
import json
import os
import random
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import torch
from common import versions

import ptune
from ptune import PromptModel
from ptune.backbones.loading import load_backbone
from ptune.data.dataset import TEXT
from ptune.data.tables import read_table
from ptune.peft import PromptEncoderConfig

ADMIN = "admin-of-the-benchmark"
TOLERANCE = 1e-5  # of a score
MEMORY_BOUND = 32e6  # bytes that the server may grow by
JSON = {"Content-Type": "application/json"}
WORDS = ["red", "green", "blue", "grey", "pink", "black"]
Sent = str | list[str]
# What the numbers depend on.
LIBRARIES = ("ptune", "torch", "transformers", "fastapi", "uvicorn", "aiohttp", "schemathesis")


# Tasks.


def make_task(folder: Path, seed: int, model: str) -> None:
    """An untrained adapter, with a head that tells texts apart."""
    kinds = ["single_label_classification"] * 3 + ["multi_label_classification", "regression"]
    problem_type = kinds[seed % 5]
    labels = ["score"] if problem_type == "regression" else WORDS[: 2 + seed % 5]
    config = PromptEncoderConfig(
        num_virtual_tokens=4 + seed % 5,
        encoder_reparameterization_type="NONE",
        depth="deep" if seed % 2 else "input",
    )
    torch.manual_seed(seed)
    backbone = load_backbone(model, labels=labels, problem_type=problem_type, dtype="float32")
    prompt_model = PromptModel(backbone, config)
    with torch.no_grad():
        for _, parameter in prompt_model.head_parameters():
            parameter.normal_(std=0.3)
    prompt_model.to_adapter().save(folder)


def texts_to_send(count: int) -> list[Sent]:
    """Support mail, every third one a pair."""
    rows = read_table(Path(ptune.__file__).parent / "demo" / "test.csv")[TEXT][: 2 * count]
    return [[rows[i], rows[i + count]] if i % 3 == 0 else rows[i] for i in range(count)]


def expected(folder: Path, texts: list[Sent]) -> list[dict[str, float]]:
    """What `ptune.load` says of every text: scores by label."""
    classifier = ptune.load(folder, dtype="float32")
    return [
        classifier(text if isinstance(text, str) else tuple(text)).probabilities for text in texts
    ]


# The server.


class Server:
    """`ptune serve` on a free port."""

    def __init__(self, folder: Path, *flags: Any) -> None:
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
            words, stdout=subprocess.PIPE, stderr=self.log, text=True, env=environment
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()  # "Serving 3 tasks at http://127.0.0.1:1234 (…)"
        found = re.search(r"http://([\d.]+):(\d+)", line)
        if found is None:
            self.process.wait(60)
            raise SystemExit(f"The server did not start:\n{self.said()}")
        self.url, self.host, self.port = found[0], found[1], int(found[2])

    def said(self) -> str:
        """What it wrote to standard error."""
        self.log.seek(0)
        return self.log.read()

    def records(self) -> list[dict[str, Any]]:
        """Its log."""
        return [json.loads(line) for line in self.said().splitlines() if line.startswith("{")]

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.log.close()

    def memory(self) -> float:
        """Bytes it occupies, by its own `/metrics`."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        connection.request("GET", "/metrics")
        shown = connection.getresponse().read().decode()
        connection.close()
        (line,) = re.findall(r"^process_resident_memory_bytes (\S+)$", shown, re.MULTILINE)
        return float(line)


# Load.


class Load:
    """Clients that ask and compare, and what they met."""

    def __init__(self, url: str, answers: dict[str, list[list[dict[str, float]]]], texts: Any):
        self.url, self.answers, self.texts = url, answers, texts
        self.seconds: list[float] = []
        self.met: collections.Counter[str] = collections.Counter()
        self.wrong: list[str] = []
        self.asked_texts = 0
        self.largest = 0.0

    def differs(self, task: str, number: int, answer: Any) -> str | None:
        """How an answer differs from every one that the task may give now."""
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
        """Ask until it is time, or until the server stops."""
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
                name = "task away"
            self.met[name or f"status {status}"] += 1
            if name == "stopping":
                return

    async def run(self, clients: int, seconds: float, *others: Any) -> None:
        """All clients at once."""
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
    """Removes, adds and replaces the moving tasks while they are asked for."""

    def __init__(self, url: str, served: Path, variants: dict[str, list[Path]]) -> None:
        self.url, self.served, self.variants = url, served, variants
        self.moves: collections.Counter[str] = collections.Counter()

    async def __call__(self, session: aiohttp.ClientSession, until: float) -> None:
        """Move until it is time."""
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
    """Put another adapter in a task's place."""
    fresh, old = place.with_name(f".{place.name}-new"), place.with_name(f".{place.name}-old")
    shutil.copytree(source, fresh)
    if place.exists():
        place.rename(old)
    fresh.rename(place)
    shutil.rmtree(old, ignore_errors=True)


class Stage:
    """The folder to serve, and what is right."""

    def __init__(self, folder: Path, model: str, tasks: int, texts: int) -> None:
        self.served, self.texts = folder / "served", texts_to_send(texts)
        self.answers: dict[str, list[list[dict[str, float]]]] = {}
        self.variants: dict[str, list[Path]] = {}
        for i in range(tasks):
            make_task(self.served / f"task{i}", i, model)
            self.answers[f"task{i}"] = [expected(self.served / f"task{i}", self.texts)]
        for i in range(2):
            # Two adapters with different labels take turns.
            both = [folder / f"moving{i}-{k}" for k in range(2)]
            for k, variant in enumerate(both):
                make_task(variant, 100 + 10 * i + k, model)
            shutil.copytree(both[0], self.served / f"moving{i}")
            self.variants[f"moving{i}"] = both
            self.answers[f"moving{i}"] = [expected(variant, self.texts) for variant in both]


def quantile(values: list[float], share: float) -> float:
    """Of sorted values; 0 where there are none."""
    return values[min(len(values) - 1, int(share * len(values)))] if values else 0.0


def measure_load(server: Server, stage: Stage, clients: int, seconds: float) -> dict[str, Any]:
    """Part one."""
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
        and set(load.met) <= {"answered", "task away", "overloaded"}
        and load.met["answered"] > 0
        and set(mover.moves) <= {"removed: 204", "added: 201", "replaced: 200"},
    }


def measure_stop(server: Server, stage: Stage, clients: int, seconds: float) -> dict[str, Any]:
    """Part three; the server is gone afterwards."""
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


# Malformed requests.


def handwritten(rng: random.Random) -> Iterator[tuple[str, bytes]]:
    """What each is, and its bytes, without end; each wants 4xx."""
    target = "/tasks/task0/predict"
    admin = f"Authorization: Bearer {ADMIN}"

    def raw(method: str, path: str, body: bytes = b"", *headers: str) -> bytes:
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close", *headers]
        if not any(h.lower().startswith(("content-length", "transfer-encoding")) for h in headers):
            lines.append(f"Content-Length: {len(body)}")
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + body

    def post(body: bytes | str, *headers: str) -> bytes:
        data = body if isinstance(body, bytes) else body.encode()
        return raw("POST", target, data, *(headers or ("Content-Type: application/json",)))

    def chunked(size: int, count: int) -> bytes:
        body = (f"{size:x}\r\n".encode() + b"a" * size + b"\r\n") * count + b"0\r\n\r\n"
        return post(body, "Transfer-Encoding: chunked", "Content-Type: application/json")

    deep = 10 ** rng.randint(2, 5)
    names = [
        "..%2f..%2fetc%2fpasswd", "%2e%2e", "..%5c..%5cwindows", "a%00b", "%00", "-x", ".hidden",
        "a" * 129, "a" * 5000, "%ff%fe", "task0%2f..%2ftask1", "%F0%9F%92%A9", "task0%20", "link",
        "linked", "none", "..;", "%252e%252e%252f", "con:", "task0%0d%0aX:%20y", "~root",
    ]  # fmt: skip
    for name in names:
        yield f"PUT {name[:20]}", raw("PUT", f"/tasks/{name}", b"", admin)
        yield f"DELETE {name[:20]}", raw("DELETE", f"/tasks/{name}", b"", admin)
        yield f"GET {name[:20]}", raw("GET", f"/tasks/{name}")
        yield (
            f"POST {name[:20]}",
            raw("POST", f"/tasks/{name}/predict", b'{"inputs":"a"}', JSON_HEADER),
        )
    bodies: list[tuple[str, bytes | str]] = [
        ("nothing", ""), ("no JSON", "{"), ("a word", "inputs"), ("null", "null"), ("[]", "[]"),
        ("true", "true"), ("a text", '"a"'), ("no inputs", "{}"), ("NaN", '{"inputs":NaN}'),
        ("Infinity", '{"inputs":-Infinity}'), ("null inputs", '{"inputs":null}'),
        ("a number", '{"inputs":1e999}'), ("an object", '{"inputs":{"a":"b"}}'),
        ("an empty text", '{"inputs":""}'), ("spaces", '{"inputs":" \\t\\n\\u2003"}'),
        ("no texts", '{"inputs":[]}'), ("a batch of none", '{"inputs":[[]]}'),
        ("two texts or a pair", '{"inputs":["a","b"]}'),
        ("a row of three", '{"inputs":[["a","b","c"]]}'),
        ("a null in a pair", '{"inputs":["a",null]}'), ("mixed", '{"inputs":[["a"],"b"]}'),
        ("an empty half", '{"inputs":[["a",""]]}'), ("numbers", '{"inputs":[[1,2]]}'),
        ("an unknown field", '{"inputs":"a","parameter":{}}'),
        ("a wrong flag", '{"inputs":"a","raw_scores":"yes"}'),
        ("a wrong flag", '{"inputs":"a","truncate":1}'),
        ("a surrogate", '{"inputs":"\\ud800"}'), ("two surrogates", '{"inputs":"\\udc00\\ud800"}'),
        ("a surrogate as bytes", b'{"inputs":"\xed\xa0\x80"}'),
        ("no UTF-8", b'{"inputs":"\xff\xfe"}'), ("Latin-1", '{"inputs":"é"}'.encode("latin-1")),
        ("UTF-16", '{"inputs":"a"}'.encode("utf-16")),
        ("UTF-32", '{"inputs":"a"}'.encode("utf-32")),
        ("a byte order mark", b'\xef\xbb\xbf{"inputs":"a"}'),
        ("a raw control", b'{"inputs":"\x01"}'),
        ("zeros", b"\x00" * 100), ("two values", '{"inputs":"a"}{"inputs":"b"}'),
        ("a comma too many", '{"inputs":"a",}'), ("single quotes", "{'inputs':'a'}"),
        ("deep lists", '{"inputs":' + "[" * deep + "]" * deep + "}"),
        ("deep objects", '{"inputs":' + '{"a":' * deep + "1" + "}" * deep + "}"),
        ("only brackets", "[" * deep), ("a long number", '{"inputs":' + "9" * deep + "}"),
        ("many texts", json.dumps({"inputs": [["a"]] * rng.randint(65, 2000)})),
        ("a long text", json.dumps({"inputs": "a" * rng.randint(20_001, 900_000)})),
        ("a long pair", json.dumps({"inputs": [["a" * 15_000, "b" * 15_000]]})),
        ("many fields", json.dumps({f"f{i}": i for i in range(2000)})),
        ("a long field", json.dumps({"f" * 100_000: 1})),
        ("a large body", b'{"inputs":"' + b"a" * rng.randint(1_000_001, 3_000_000) + b'"}'),
        ("random bytes", rng.randbytes(rng.randint(1, 5000))),
    ]  # fmt: skip
    for what, body in bodies:
        yield what, post(body)
    good = b'{"inputs":"a"}'
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "x", ""):
        yield f"Content-Type {kind}", post(good, f"Content-Type: {kind}")
    yield "no Content-Type", raw("POST", target, good)
    yield "chunks beyond the limit", chunked(50_000, rng.randint(25, 60))
    yield "a gzipped body", post(b"\x1f\x8b\x08", JSON_HEADER, "Content-Encoding: gzip")
    yield "a length too large", post(good, JSON_HEADER, "Content-Length: 99999999999")
    for method in ("GET", "HEAD", "OPTIONS", "PATCH", "DELETE", "TRACE", "PUT", "FOO", "CONNECT"):
        yield f"{method} predict", raw(method, target)
    for method in ("HEAD", "OPTIONS", "POST", "PATCH"):
        yield f"{method} a task", raw(method, "/tasks/task0")
        yield f"{method} tasks", raw(method, "/tasks")
        yield f"{method} the page", raw(method, "/")
    for path in ("/../../etc/passwd", "/web/..%2f..%2fserver.py", "/web/%00", "/web/" + "a" * 3000,
                 "/static-offline-docs/..%2fcore.py", "//tasks", "/tasks/", "/tasks//predict",
                 "/tasks/task0/predict/", "/%",
                 "/" + "%2e%2e%2f" * 50, "/" + "a/" * 500):  # fmt: skip
        yield f"GET {path[:30]}", raw("GET", path)
    yield "PUT without a token", raw("PUT", "/tasks/task0")
    for shown in (
        "Bearer wrong",
        "Bearer",
        "Basic YTpi",
        "Bearer \xff\xfe",
        "Bearer " + "a" * 9000,
    ):
        yield "a wrong token", raw("PUT", "/tasks/task0", b"", f"Authorization: {shown}")
        yield "a wrong token", raw("DELETE", "/tasks/task0", b"", f"Authorization: {shown}")
    # No HTTP at all.
    yield "no HTTP", b"hello\r\n\r\n"
    yield "no HTTP", rng.randbytes(200) + b"\r\n\r\n"
    yield "a TLS greeting", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40)
    yield "a bad header", b"GET / HTTP/1.1\r\nHost x\r\n\r\n"
    yield "a header too large", raw("GET", "/tasks/x", b"", "X: " + "a" * 70_000)
    yield (
        "headers too many",
        raw("GET", "/tasks/x", b"", *[f"X{i}: {'a' * 90}" for i in range(900)]),
    )
    yield "a bad length", post(good, JSON_HEADER, "Content-Length: -1")
    yield "two lengths", post(good, JSON_HEADER, "Content-Length: 5", "Content-Length: 14")
    yield "a bad chunk", post(b"zz\r\n", JSON_HEADER, "Transfer-Encoding: chunked")
    yield "an unknown encoding", post(good, JSON_HEADER, "Transfer-Encoding: gzip")
    yield from handwritten(rng)


JSON_HEADER = "Content-Type: application/json"


def ask_raw(server: Server, data: bytes) -> int:
    """The status of the answer to these bytes; 0: none came."""
    with socket.create_connection((server.host, server.port), timeout=30) as connection:
        with contextlib.suppress(OSError):  # it may have answered and closed before it read all
            connection.sendall(data)
        answer = b""
        with contextlib.suppress(OSError):
            while b"\r\n" not in answer and (more := connection.recv(4096)):
                answer += more
    found = re.match(rb"HTTP/1\.1 (\d{3}) ", answer)
    return int(found[1]) if found else 0


def generated(server: Server, examples: int) -> tuple[collections.Counter[int], list[str]]:
    """Statuses of malformed requests that schemathesis makes of the server's own OpenAPI."""
    import hypothesis
    import schemathesis

    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    statuses: collections.Counter[int] = collections.Counter()
    failures: list[str] = []
    how = hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )

    def ask_all(operation: Any, *, known_task: bool) -> None:
        @how
        @hypothesis.given(
            operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE)
        )
        def ask(case: Any) -> None:
            if known_task:
                case.path_parameters["task"] = "task0"
            status = case.call(headers={"Authorization": f"Bearer {ADMIN}"}).status_code
            if known_task and status == 200:
                return  # the name alone was malformed
            statuses[status] += 1
            if not 400 <= status < 500:
                failures.append(f"{operation.label} {case.path_parameters}: {status}")

        ask()

    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.path_parameters:  # else there is nothing to get wrong
            ask_all(operation, known_task=False)
        if operation.body:
            ask_all(operation, known_task=True)
    return statuses, failures


def measure_hostile(server: Server, stage: Stage, count: int) -> dict[str, Any]:
    """Part two."""
    for name, aim in (("link", "/etc"), ("linked", stage.served.parent / "moving0-0")):
        with contextlib.suppress(FileExistsError):
            (stage.served / name).symlink_to(aim)
    steady = Load(server.url, {"task0": stage.answers["task0"]}, stage.texts)
    asyncio.run(steady.run(2, 0.5))
    stream = handwritten(random.Random(0))
    # Memory is compared with that after some of each kind: a first time takes some.
    for _, (_, data) in zip(range(count // 2), stream, strict=False):
        ask_raw(server, data)
    generated(server, 5)
    before = server.memory()
    statuses: collections.Counter[int] = collections.Counter()
    failures = []
    for _, (what, data) in zip(range(count), stream, strict=False):
        status = ask_raw(server, data)
        statuses[status] += 1
        if not 400 <= status < 500:
            failures.append(f"{what}: {status}")
    others, more = generated(server, max(5, count // 8))
    after = server.memory()
    asyncio.run(steady.run(2, 0.5))
    return {
        "handwritten": {str(k): v for k, v in sorted(statuses.items())},
        "schemathesis": {str(k): v for k, v in sorted(others.items())},
        "failures": [*failures, *more][:10],
        "memory_mb": {"before": before / 1e6, "after": after / 1e6},
        "still_right": not steady.wrong and set(steady.met) == {"answered"},
        "holds": not failures
        and not more
        and after - before < MEMORY_BOUND
        and not steady.wrong
        and set(steady.met) == {"answered"}
        and "Traceback" not in server.said(),
    }


def table(results: dict[str, Any]) -> str:
    """The results in Markdown."""
    lines = ["| part | what | seen | holds |", "| --- | --- | --- | --- |"]
    shown = {
        "load": ("requests_answered", "requests_per_second", "texts_per_second", "median_ms",
                 "p99_ms", "largest_ms", "largest_difference", "met", "moves"),
        "hostile": ("handwritten", "schemathesis", "memory_mb", "still_right"),
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
    """A number as people read it."""
    if isinstance(value, float):
        return f"{value:.1e}" if 0 < value < 0.01 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def main() -> None:
    """Measure, print the table, write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = ["load", "hostile", "stop"]
    parser.add_argument("--parts", nargs="+", default=parts, choices=parts)
    parser.add_argument("--model", default="minilm", help="the backbone (minilm)")
    parser.add_argument("--tasks", type=int, default=20, help="that stay (20)")
    parser.add_argument("--texts", type=int, default=30, help="different ones (30)")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60.0, help="of the part load (60)")
    parser.add_argument("--stop-after", type=float, default=5.0, help="seconds of load (5)")
    parser.add_argument("--malformed", type=int, default=1000, help="handwritten requests (1000)")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/serve"))
    given = parser.parse_args()
    results: dict[str, Any] = {"versions": versions(*LIBRARIES), "cores": os.cpu_count()}
    with tempfile.TemporaryDirectory(prefix="ptune-serve-") as folder:
        stage = Stage(Path(folder), given.model, given.tasks, given.texts)
        with Server(stage.served) as server:
            if "load" in given.parts:
                results["load"] = measure_load(server, stage, given.clients, given.seconds)
            if "hostile" in given.parts:
                results["hostile"] = measure_hostile(server, stage, given.malformed)
            if "stop" in given.parts:
                results["stop"] = measure_stop(server, stage, given.clients, given.stop_after)
    given.output_dir.mkdir(parents=True, exist_ok=True)
    (given.output_dir / "serve.json").write_text(json.dumps(results, indent=2) + "\n")
    print(table(results))
    bad = [part for part in given.parts if not results[part]["holds"]]
    for part in bad:
        print(f"{part} does not hold: {json.dumps(results[part])}", file=sys.stderr)
    raise SystemExit(1 if bad else 0)


if __name__ == "__main__":
    main()
