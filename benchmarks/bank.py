"""Compare a bank of many tasks with a single task, and with PEFT switching adapters.

    pip install -c constraints.txt -e ".[benchmarks]"
    python benchmarks/bank.py --data-dir glue --output-dir runs/bank

| part | compares |
| --- | --- |
| throughput | one text for each task, with the same texts for a single task (`ptune.load`) |
| switching | requests for random tasks in batches of 64, with PEFT |
| memory | growth of the process per further task |

In `switching`, PEFT has the same input adapters loaded and answers a batch task by task
(`set_adapter`), in float32 and under autocast.

All parts use MiniLM and random adapters with two labels. Contenders run in turn on the same texts,
after their answers were compared. The results go to `bank.json` in the output folder.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from speed import DEVICE, in_turn, ratio, timed

import ptune
from ptune import PromptBank, PromptModel
from ptune.adapters import adapter, schema
from ptune.backbones.loading import load_backbone, load_tokenizer
from ptune.data import dataset as data
from ptune.data.glue import load_glue
from ptune.peft import PromptEncoderConfig

Pair = tuple[str, str]
Request = tuple[str, Pair]


@contextmanager
def adapters(tasks: int, depth: str, virtual_tokens: int) -> Iterator[Path]:
    """A folder with random adapters, each in its own subfolder; PEFT can read input prompts."""
    with tempfile.TemporaryDirectory() as folder:
        config = PromptEncoderConfig(
            depth=depth,  # type: ignore[arg-type]
            num_virtual_tokens=virtual_tokens,
            encoder_reparameterization_type="NONE",
        )
        first = Path(folder) / "task 0"
        PromptModel(load_backbone("minilm"), config).save_pretrained(first)
        shapes = {n: t.shape for n, t in load_file(first / adapter.WEIGHTS_NAME).items()}
        torch.manual_seed(0)
        for i in range(tasks):
            place = Path(folder) / f"task {i}"
            place.mkdir(exist_ok=True)
            for name in (schema.CONFIG_NAME, schema.INFO_NAME):
                (place / name).write_bytes((first / name).read_bytes())
            tensors = {n: torch.randn(shape) * 0.1 for n, shape in shapes.items()}
            save_file(tensors, place / adapter.WEIGHTS_NAME, metadata={"format": "pt"})
        yield Path(folder)


def throughput(folder: Path, texts: list[Pair], dtype: str, rounds: int) -> dict[str, Any]:
    """Each text for another task, compared with one task and its own classifier."""
    bank = PromptBank.from_folder(folder, dtype=dtype)
    names = list(bank)
    requests = list(zip(names, texts, strict=False))
    classifier = ptune.load(folder / names[0], dtype=dtype)
    one = [(names[0], text) for _, text in requests]
    some = [text for _, text in requests]
    found, expected = bank.logits(one[:16]), list(classifier.logits(some[:16]))
    contenders: dict[str, Callable[[], Any]] = {
        "one task (ptune.load)": lambda: list(classifier.logits(some)),
        "bank, each text for another task": lambda: bank.logits(requests),
        "bank, one task": lambda: bank.logits(one),
    }
    seconds = in_turn(contenders, rounds)
    return {
        "tasks": len(bank),
        "largest_difference": float(np.abs(np.asarray(found) - np.asarray(expected)).max()),
        "texts_per_second": {k: len(some) / statistics.median(v) for k, v in seconds.items()},
        "ratios": {
            "throughput, each text for another task : one task": ratio(
                seconds, "one task (ptune.load)", "bank, each text for another task"
            ),
            "throughput, bank with one task : one task": ratio(
                seconds, "one task (ptune.load)", "bank, one task"
            ),
        },
    }


def peft_switching(folder: Path, names: list[str], dtype: str) -> tuple[Any, float]:
    """PEFT with every adapter loaded, and the seconds it took to load them.

    A batch is answered task by task: in float32 as PEFT's guide loads the backbone, or in bfloat16
    under autocast.
    """
    import peft

    backbone = load_backbone("minilm", dtype=dtype).to(DEVICE)  # type: ignore[arg-type]
    tokenizer = load_tokenizer("minilm")
    numbers = {name: f"task_{i}" for i, name in enumerate(names)}
    model: Any = None

    def load() -> None:
        nonlocal model
        for name in names:
            if model is None:
                model = peft.PeftModel.from_pretrained(
                    backbone, folder / name, adapter_name=numbers[name]
                )
            else:
                model.load_adapter(folder / name, adapter_name=numbers[name])

    seconds = timed(load)
    model.eval()
    on = DEVICE if dtype == "bfloat16" else None

    @torch.inference_mode()
    def answer(batch: list[Request]) -> list[np.ndarray]:
        by_task: dict[str, list[int]] = {}
        for i, (task, _) in enumerate(batch):
            by_task.setdefault(task, []).append(i)
        answers = [np.empty(0)] * len(batch)
        for task, rows in by_task.items():
            model.set_adapter(numbers[task])
            first, second = map(list, zip(*(batch[i][1] for i in rows), strict=True))
            inputs = tokenizer(first, second, truncation=True, padding=True, return_tensors="pt")
            with torch.autocast(DEVICE, torch.bfloat16, enabled=on is not None):
                logits = model(**inputs.to(DEVICE)).logits.float().cpu().numpy()
            for i, row in zip(rows, logits, strict=True):
                answers[i] = row
        return answers

    return answer, seconds


def switching(
    folders: dict[str, Path], texts: list[Pair], dtype: str, rounds: int, requests: int
) -> dict[str, Any]:
    """Requests for random tasks, 64 at a time, on banks and on PEFT.

    PEFT has no deep prompts of this kind, so it gets the input prompts.
    """
    banks = {d: PromptBank.from_folder(folder, dtype=dtype) for d, folder in folders.items()}
    names = list(banks["input"])
    chosen = random.Random(0)
    stream = [(chosen.choice(names), texts[i % len(texts)]) for i in range(requests)]
    batches = [stream[i : i + 64] for i in range(0, len(stream), 64)]
    formats = {"PEFT, float32": "float32"}
    if dtype == "bfloat16":
        formats["PEFT, autocast"] = dtype
    others = {k: peft_switching(folders["input"], names, f) for k, f in formats.items()}
    contenders: dict[str, Callable[[], Any]] = {
        **{k: lambda r=answer: [r(b) for b in batches] for k, (answer, _) in others.items()},
        **{f"{d} bank": lambda k=bank: [k.logits(b) for b in batches] for d, bank in banks.items()},
    }
    alike, _ = list(others.values())[-1]  # in the bank's number format
    found = np.asarray(banks["input"].logits(batches[0]))
    expected = np.asarray(alike(batches[0]))
    seconds = in_turn(contenders, rounds)
    return {
        "tasks": len(names),
        "largest_difference": float(np.abs(found - expected).max()),
        "largest_logit": float(np.abs(expected).max()),
        "seconds_to_load": {k: loading for k, (_, loading) in others.items()},
        "requests_per_second": {k: len(stream) / statistics.median(v) for k, v in seconds.items()},
        "ratios": {
            f"requests per second, {d} bank : {k}": ratio(seconds, k, f"{d} bank")
            for d in banks
            for k in others
        },
    }


def resident() -> int:
    """Resident memory of this process in bytes."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def grow(folder: str, dtype: str, text: Pair) -> None:
    """Print how much memory each task takes. Runs in its own process."""
    places = sorted(Path(folder).iterdir())
    bank = PromptBank("minilm", dtype=dtype)
    # Exclude what is allocated once, for the first tasks and answers.
    for place in places[:10]:
        bank.add(place.name, place)
    bank.logits([(name, text) for name in bank])
    before, used = resident(), bank.memory_used
    for place in places[10:]:
        bank.add(place.name, place)
    after = resident()
    further = len(places) - 10
    print(
        json.dumps(
            {
                "tasks": further,
                "kilobytes_per_task": (after - before) / further / 1000,
                "of_which_numbers": (bank.memory_used - used) / further / 1000,
            }
        )
    )


def memory(folder: Path, texts: list[Pair], dtype: str) -> dict[str, Any]:
    """Memory per further task."""
    options = json.dumps({"folder": str(folder), "dtype": dtype, "text": texts[0]})
    done = subprocess.run(
        [sys.executable, __file__, "--apart", options], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"memory failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def show(results: dict[str, Any]) -> None:
    """Print the results."""
    print("| part | ratio | median | least … most |\n| --- | --- | --- | --- |")
    for part, content in results["parts"].items():
        for what, n in content.get("ratios", {}).items():
            print(f"| {part} | {what} | {n['median']:.2f} | {n['least']:.2f} … {n['most']:.2f} |")
    for part, content in results["parts"].items():
        rest = {k: v for k, v in content.items() if k != "ratios"}
        print(f"\n{part}: {json.dumps(rest)}")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-dir", help="folder of GLUE's TSV files; default: download")
    parts = ("throughput", "switching", "memory")
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--prompts", nargs="+", choices=("input", "deep"), default=["input"])
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--requests", type=int, default=1024, help="requests for random tasks")
    parser.add_argument("--virtual-tokens", type=int, default=20)
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/bank"))
    parser.add_argument("--apart", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.apart:
        grow(**json.loads(args.apart))
        return
    if args.dtype == "auto":
        args.dtype = str(ptune.backbones.loading.fast_dtype(DEVICE)).removeprefix("torch.")
    dataset = load_glue("mrpc", args.data_dir)
    rows = dataset.train.select(range(min(args.tasks, len(dataset.train))))
    texts = [(r[data.TEXT], r[data.PAIR]) for r in rows]
    found: dict[str, Any] = {}
    with ExitStack() as stack:
        folders = {
            depth: stack.enter_context(adapters(args.tasks, depth, args.virtual_tokens))
            for depth in args.prompts
        }
        for depth, folder in folders.items():
            if "memory" in args.parts:
                found[f"memory, {depth}"] = memory(folder, texts, args.dtype)
            if "throughput" in args.parts:
                found[f"throughput, {depth}"] = throughput(folder, texts, args.dtype, args.rounds)
        if "switching" in args.parts and "input" in folders:
            found["switching"] = switching(folders, texts, args.dtype, args.rounds, args.requests)
    results = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {DEVICE}, {args.dtype}",
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "rounds": args.rounds,
        "parts": found,
    }
    args.output_dir.mkdir(parents=True, exist_ok=True)
    (args.output_dir / "bank.json").write_text(json.dumps(results, indent=2) + "\n", "utf-8")
    show(results)


if __name__ == "__main__":
    main()
