"""Measure ptune on a GPU in a few minutes, section by section (started by `gpu.sh`).

    python benchmarks/gpu.py --data-dir data/glue --output runs/gpu/gpu.jsonl

Every measurement adds a line to the output file at once. A section that fails prints its error, and
the next one starts. `--minutes` bounds the total time: later sections are left out with a message.
`--tiny` rehearses on a CPU with tiny backbones.

| section | measures |
| --- | --- |
| machine | memory bandwidth, matrix products in bfloat16 and float32 |
| steps | training steps of `speed.py`'s contenders: time and memory, several batch sizes |
| graphs | a training step of the deep prompt, eager and as a CUDA graph |
| trainer | an epoch of `ptune train` on MRPC, with everything around the steps |
| prediction | texts per second and latency of one text, including tokenisation |
| bank | one text for each of 50 tasks, compared with one task |
| server | requests per second from 64 clients on the same machine |
| compile | the step of `graphs` with compiled layers, and how long they take to compile |

Epochs have 3,667 pairs of MRPC. RoBERTa-large has random weights, which do not affect speed.
"""

from __future__ import annotations

import argparse
import gc
import os
import signal
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bank
import speed
import torch
from common import (
    append_row,
    device_peak_memory_mb,
    hardware,
    machine,
    reset_peak_memory,
    versions,
)
from speed import DEVICE, Batch, Step, timed

import ptune
from ptune import TrainSettings, train_run
from ptune.backbones.loading import fast_dtype, load_backbone
from ptune.data import dataset as data
from ptune.data.glue import load_glue

EXAMPLES = 3667  # of MRPC, for the time of an epoch


class Report:
    """Adds rows to the output file and prints them."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.common = {"machine": machine(), "dtype": str(fast_dtype(DEVICE))}

    def add(self, section: str, what: str, **numbers: Any) -> None:
        """Record a measurement."""
        append_row(self.file, {"section": section, "what": what, **numbers, **self.common})
        shown = (f"{k} {v:,.4g}" if isinstance(v, float) else f"{k} {v}"
                 for k, v in numbers.items())  # fmt: skip
        print(f"| {section} | {what} | {', '.join(shown)} |", flush=True)

    def attempt(self, section: str, what: str, work: Callable[[], None]) -> None:
        """Do a part of a section. If it fails, record why."""
        try:
            work()
        except Exception as error:
            self.add(section, what, error=f"{type(error).__name__}: {error}"[:300])
        finally:
            gc.collect()
            if DEVICE == "cuda":
                torch.cuda.empty_cache()


def seconds_of(work: Callable[[], Any], at_least: float) -> float:
    """Median seconds of a piece of work that is repeated for some time."""
    timed(work)  # warm up
    times: list[float] = []
    while not times or sum(times) < at_least:
        times.append(timed(work))
    return statistics.median(times)


class Sections:
    """The sections, each a method.

    Args:
        report: Where measurements go.
        data_dir: GLUE's folder.
        tiny: Rehearse on a CPU.
    """

    def __init__(self, report: Report, data_dir: str, tiny: bool) -> None:
        self.report, self.tiny = report, tiny
        self.task = load_glue("mrpc", data_dir)
        self.examples = self.task.train.select(range(64)) if tiny else self.task.train
        self.backbones = ("minilm",) if tiny else ("roberta-large", "smollm2", "minilm")
        self.sizes = (4,) if tiny else (32, 128, 512, 16)
        self.time = 0.01 if tiny else 0.4

    def machine(self) -> None:
        """How fast the hardware is."""
        self.report.add("machine", "speed", **hardware(256 if self.tiny else 8192))
        self.report.add("machine", "versions", **versions("torch", "transformers", "peft", "ptune"))

    def steps(self) -> None:
        """Training steps side by side."""
        contenders: dict[str, tuple[Callable[[str], Step], bool]] = {
            "PEFT, float32": speed.CONTENDERS["PEFT, float32"],
            "PEFT, autocast": speed.CONTENDERS["PEFT, autocast"],
            "PEFT LoRA, autocast": (lambda n: speed.peft_step(n, "lora", autocast=True), False),
            "ptune input": speed.CONTENDERS["ptune input"],
            "ptune deep": speed.CONTENDERS["ptune deep"],
            "floor of deep": speed.CONTENDERS["floor of deep"],
        }
        for name in self.backbones:
            for kind, (make, by_length) in contenders.items():
                what = f"{name}, {kind}"
                self.report.attempt(
                    "steps", what, lambda: self._sizes(name, what, make, by_length)  # noqa: B023
                )  # fmt: skip

    def _sizes(self, name: str, what: str, make: Callable[[str], Step], by_length: bool) -> None:
        step = make(name)
        for size in self.sizes:
            (batches,) = speed.batches(
                self.examples,
                name,
                2 if self.tiny or size > 128 else 6,
                by_length=by_length,
                size=size,
            )
            reset_peak_memory()
            if isinstance(step, speed.Floor):
                for batch in batches:
                    step.prepare(batch)
            try:
                seconds = seconds_of(lambda: [step(b) for b in batches], self.time)  # noqa: B023
            except torch.OutOfMemoryError:
                self.report.add("steps", f"{what}, batch {size}", error="out of memory")
                continue
            seconds /= len(batches)
            self.report.add(
                "steps",
                f"{what}, batch {size}",
                ms=1000 * seconds,
                epoch_seconds=seconds * EXAMPLES / size,
                peak_mb=round(device_peak_memory_mb()),
            )

    def graphs(self) -> None:
        """The same step on one batch: eager, and as a CUDA graph."""
        self._one_batch({"eager": eager, "CUDA graph": captured})

    def compile(self) -> None:
        """The same step with compiled layers."""
        self._one_batch({"compiled layers": compiled})

    def _one_batch(self, made: dict[str, Callable[[Any, Batch], Callable[[], None]]]) -> None:
        for name in self.backbones:
            (batches,) = speed.batches(self.examples, name, 3, by_length=True, size=self.sizes[0])
            for kind, make in made.items():

                def measure(name: str = name, make: Any = make, kind: str = kind,
                            batch: Batch = batches[1]) -> None:  # fmt: skip
                    started = time.perf_counter()
                    step = make(speed.classifier(name, "deep"), batch)
                    timed(step)
                    ready = time.perf_counter() - started
                    self.report.add(
                        "graphs",
                        f"{name}, {kind}, {tuple(batch['input_ids'].shape)}",
                        ms=1000 * seconds_of(step, self.time),
                        seconds_until_ready=ready,
                    )

                self.report.attempt("graphs", f"{name}, {kind}", measure)

    def trainer(self) -> None:
        """An epoch as users run it."""
        for name in ("minilm", *(n for n in self.backbones if n == "smollm2")):

            def epoch(name: str = name) -> None:
                from dataclasses import replace

                settings = TrainSettings(model=name, epochs=1)
                off = {"save_strategy": "no", "eval_strategy": "no", "logging_strategy": "no"}
                settings.training_arguments = off
                small = replace(
                    self.task, train=self.examples, evaluation={"": self.examples.select(range(8))}
                )
                with tempfile.TemporaryDirectory() as folder:
                    run = train_run(settings, folder, overwrite=True, dataset=small)
                self.report.add("trainer", f"{name}, an epoch", seconds=run.metrics["seconds"])

            self.report.attempt("trainer", name, epoch)

    def prediction(self) -> None:
        """Texts per second and latency."""
        rows = self.examples.select(range(min(len(self.examples), 2048)))
        texts = [(row[data.TEXT], row[data.PAIR]) for row in rows]
        for name in ("minilm", *(n for n in self.backbones if n == "smollm2")):
            with speed.adapters(name) as (theirs, shallow, deep):
                contenders = {
                    "PEFT, float32": lambda n=name, f=theirs: peft_predictor(n, f, torch.float32),
                    "PEFT, bfloat16": lambda n=name, f=theirs: peft_predictor(n, f, torch.bfloat16),
                    "backbone alone": lambda n=name: peft_predictor(n, None, torch.bfloat16),
                    "ptune input": lambda f=shallow: ptune_predictor(f),
                    "ptune deep": lambda f=deep: ptune_predictor(f),
                }
                for kind, make in contenders.items():
                    self.report.attempt(
                        "prediction",
                        f"{name}, {kind}",
                        lambda make=make, what=f"{name}, {kind}": self._predict(what, make, texts),
                    )

    def _predict(self, what: str, make: Callable[[], Any], texts: list[Any]) -> None:
        answer = make()
        for size in (32, 256):
            reset_peak_memory()
            seconds = seconds_of(lambda: answer(texts, size), self.time)  # noqa: B023
            self.report.add(
                "prediction",
                f"{what}, batch {size}",
                texts_per_second=len(texts) / seconds,
                peak_mb=round(device_peak_memory_mb()),
            )
        one = seconds_of(lambda: answer(texts[:1], 1), self.time / 2)
        self.report.add("prediction", f"{what}, one text", ms=1000 * one)

    def bank(self) -> None:
        """Many tasks in one batch."""
        tasks = 4 if self.tiny else 50
        texts = [(row[data.TEXT], row[data.PAIR]) for row in self.examples.select(range(tasks))]
        for depth in ("deep", "input"):

            def measure(depth: str = depth) -> None:
                with bank.adapters(tasks, depth, 20) as folder:
                    found = bank.throughput(folder, texts, "auto", 2 if self.tiny else 20)
                for kind, rate in found["texts_per_second"].items():
                    self.report.add("bank", f"{depth}, {kind}", texts_per_second=rate)
                difference = found["largest_difference"]
                self.report.add("bank", f"{depth}, difference of logits", largest=difference)

            self.report.attempt("bank", depth, measure)

    def server(self) -> None:
        """Requests from many clients."""
        import serve  # needs aiohttp

        with tempfile.TemporaryDirectory() as folder:
            stage = serve.Stage(Path(folder), "minilm", 3 if self.tiny else 6, 12)
            with serve.Server(stage.served) as server:
                clients, seconds = (4, 1.0) if self.tiny else (64, 8.0)
                found = serve.measure_load(server, stage, clients, seconds)
        kept = ("requests_per_second", "texts_per_second", "median_ms", "p99_ms", "met")
        self.report.add("server", f"{clients} clients", **{k: found[k] for k in kept})


def optimised(model: Any, capturable: bool) -> Any:
    """The optimizer of the steps."""
    rates = model.train().parameter_groups(1e-3)
    return torch.optim.AdamW(rates, lr=1e-3, capturable=capturable)


def eager(model: Any, batch: Batch) -> Callable[[], None]:
    """A training step, operation by operation."""
    optimizer = optimised(model, capturable=False)

    def step() -> None:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def compiled(model: Any, batch: Batch) -> Callable[[], None]:
    """A training step whose layers are compiled, each with the same code."""
    layers = [m for m in model.backbone.modules() if type(m).__name__.endswith("Layer")]
    outer = [
        m for m in layers if not any(m in other.modules() for other in layers if other is not m)
    ]
    for layer in outer:
        layer.compile()
    return eager(model, batch)


def captured(model: Any, batch: Batch) -> Callable[[], None]:
    """A training step as one CUDA graph: the kernels are launched together."""
    optimizer = optimised(model, capturable=True)

    def step() -> None:
        model(**batch).loss.backward()
        optimizer.step()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            optimizer.zero_grad(set_to_none=True)
            step()
    torch.cuda.current_stream().wait_stream(side)
    optimizer.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return lambda keep=(model, optimizer, batch): graph.replay()  # type: ignore[misc]


Answer = Callable[[list[Any], int], Any]


def ptune_predictor(folder: Path) -> Answer:
    """Prediction by ptune."""
    classifier = ptune.load(folder)

    def answer(texts: list[Any], size: int) -> None:
        classifier.batch_size = size
        list(classifier.logits(texts))

    return answer


def peft_predictor(name: str, folder: Path | None, dtype: torch.dtype) -> Answer:
    """Prediction by PEFT's p-tuning, or by the backbone alone."""
    import peft

    model: Any = load_backbone(name, dtype=dtype).to(DEVICE)
    if folder is not None:
        model = peft.PeftModel.from_pretrained(model, folder)
    return speed.peft_predictor(model.to(dtype).eval(), name, max_length=480)


class OutOfTime(BaseException):
    """The time of the command is over. Not an `Exception`, so that no library handles it."""


def _out_of_time(signum: int, frame: Any) -> None:
    raise OutOfTime("see --minutes")


def main() -> None:
    """Run the sections in order of importance."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = ["machine", "graphs", "steps", "prediction", "trainer", "bank", "server", "compile"]
    parser.add_argument("--sections", nargs="+", choices=names, default=names, metavar="SECTION")
    parser.add_argument("--backbones", nargs="+", choices=speed.BACKBONES, metavar="BACKBONE")
    first = os.environ.get("PTUNE_DATA", "data").split(os.pathsep)[0]
    parser.add_argument("--data-dir", default=f"{first}/glue", help="folder of GLUE's TSV files")
    parser.add_argument("--output", type=Path, default=Path("runs/gpu/gpu.jsonl"))
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    end = time.monotonic() + 60 * args.minutes
    report = Report(args.output)
    sections = Sections(report, args.data_dir, args.tiny)
    sections.backbones = args.backbones or sections.backbones
    print("| section | what | result |\n| --- | --- | --- |")
    signal.signal(signal.SIGALRM, _out_of_time)
    for name in args.sections:
        started = time.monotonic()
        if end - started < 5:
            report.add(name, "section", left_out="no time left")
            continue
        signal.alarm(int(end - started))
        try:
            getattr(sections, name)()
        except (Exception, SystemExit, OutOfTime) as error:  # the next section may still work
            report.add(name, "section", error=f"{type(error).__name__}: {error}"[:300])
            traceback.print_exc()
        finally:
            signal.alarm(0)
        report.add(name, "section", seconds=time.monotonic() - started)


if __name__ == "__main__":
    main()
