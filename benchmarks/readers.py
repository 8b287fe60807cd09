"""Compare readers with deep prompts: many tasks for each text, and training on texts that are kept.

    python benchmarks/readers.py --output runs/readers.json

The numbers are processor time in one thread, so that other programs on the machine hardly matter.
Everything uses the demo's mail and MiniLM in ptune's number format, or the backbone of --model for
training. With --data-dir, many tasks read longer texts: the two sentences of MRPC's pairs, joined.
Adapters are new ones, because their values do not change the time.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import multiprocessing
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import ptune
from ptune import PromptBank, PromptEncoderConfig, PromptModel, TrainSettings
from ptune.backbones.loading import fast_dtype, is_decoder, load_backbone, load_tokenizer
from ptune.data.dataset import PAIR, TEXT
from ptune.data.glue import load_glue
from ptune.data.tables import read_table
from ptune.training.defaults import READER_KEY_RANK, READER_RANK

DEMO = Path(ptune.__file__).parent / "demo"
LABELS = [str(i) for i in range(12)]
DEEP = {"depth": "deep", "num_virtual_tokens": 20}
LENGTHS = [1, 2, 4, 8]


def seconds(work: Callable[[], Any]) -> float:
    """Processor time of some work."""
    started = time.process_time()
    work()
    return time.process_time() - started


def new_model(options: dict[str, Any], name: str = "minilm") -> PromptModel:
    """A new prompt on a backbone."""
    dtype: Any = str(fast_dtype()).removeprefix("torch.")
    backbone = load_backbone(name, labels=LABELS, dtype=dtype)
    return PromptModel(backbone, PromptEncoderConfig(**options))


def many_tasks(
    texts: list[str], counts: list[int], lengths: list[int]
) -> dict[str, dict[str, str]]:
    """How many times as fast some tasks for each text are as deep prompts: median of 3 rounds."""
    rows: dict[str, dict[str, str]] = {}
    bank = PromptBank("minilm")
    with tempfile.TemporaryDirectory() as folder:

        def taken(options: dict[str, Any], count: int) -> float:
            place = Path(folder) / str(options)
            if not place.exists():
                new_model(options).to_adapter().save(place)
            names = [f"{options} {i}" for i in range(count)]
            for name in names:
                bank.add(name, place, replace=True)
            bank.predict_all(texts[:2], names)
            return seconds(lambda: bank.predict_all(texts, names))

        for title, options in readers(lengths, "encoder").items():
            rounds = [
                # Passes of one deep prompt take as long as those of others.
                (
                    statistics.mean(taken(DEEP, 1) for _ in range(4)),
                    [taken(options, n) for n in counts],
                )
                for _ in range(3)
            ]
            rows[title] = {
                f"{n} tasks": f"{statistics.median(n * deep / own[i] for deep, own in rounds):.1f}"
                " times as fast"
                for i, n in enumerate(counts)
            }
            print(title, rows[title], flush=True)
    return rows


def readers(lengths: list[int], kind: str) -> dict[str, dict[str, Any]]:
    """The options of readers by title, with the ranks of an encoder or a decoder."""
    return {
        f"reader, {n} token{'s' * (n > 1)}": {
            "depth": "reader",
            "num_virtual_tokens": n,
            # The defaults on MiniLM and on SmolLM2.
            "reader_rank": READER_RANK[kind],
            "reader_key_rank": READER_KEY_RANK[kind],
            "pooling": "layers" if kind == "encoder" else "auto",
        }
        for n in lengths
    }


def training(texts: list[str], name: str, lengths: list[int]) -> dict[str, dict[str, str]]:
    """Processor time of the first and the second epoch, and how many times as fast readers are."""
    tokenizer = load_tokenizer(name)
    kind = "decoder" if is_decoder(name) else "encoder"
    order = sorted(texts, key=len)
    batches = [
        tokenizer(order[i : i + 32], padding=True, return_tensors="pt")
        for i in range(0, len(order), 32)
    ]
    rows: dict[str, dict[str, str]] = {}
    deep: tuple[float, float] | None = None
    for title, options in {"deep prompt, 20 tokens": DEEP, **readers(lengths, kind)}.items():
        model = new_model(options, name).train()
        if options["depth"] == "reader":
            model.kept_texts.limit = 4 * 10**9
        optimizer = torch.optim.AdamW(model.parameter_groups(1e-3))

        def epoch(model: Any = model, optimizer: Any = optimizer) -> None:
            for batch in batches:
                targets = torch.zeros(len(batch["input_ids"]), dtype=torch.long)
                model(**batch, labels=targets).loss.backward()
                optimizer.step()
                optimizer.zero_grad()

        taken = seconds(epoch), seconds(epoch)
        rows[title] = {}
        for number, own, base in zip(("first", "second"), taken, deep or taken, strict=True):
            faster = f", {base / own:.1f} times as fast" if deep else ""
            rows[title][f"{number} epoch"] = f"{own:.1f} s{faster}"
        deep = deep or taken
        print(title, rows[title], flush=True)
    return rows


def label_pairs(folder: Path, count: int) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Small tasks: two labels of the support mail, 30 examples each; and the test messages."""
    columns = [read_table(DEMO / name) for name in ("train.csv", "test.csv")]
    train, test = (list(zip(c[TEXT], c["label"], strict=True)) for c in columns)
    pairs = list(itertools.combinations(sorted(set(columns[0]["label"])), 2))
    for i in range(count):
        # Spread over the pairs, and other examples when they are used up.
        pair, sample = pairs[i * 7 % len(pairs)], random.Random(i)
        own = [sample.sample([row for row in train if row[1] == name], 30) for name in pair]
        file = folder / f"{i:03d}.csv"
        with file.open("w", newline="") as stream:
            csv.writer(stream).writerows([(TEXT, "label"), *own[0], *own[1]])
        asked = [row for row in test if row[1] in pair]
        yield file, [text for text, _ in asked], [label for _, label in asked]


def command(*arguments: str) -> float:
    """Processor time of a command of ptune, on one thread."""

    def taken() -> float:
        own = resource.getrusage(resource.RUSAGE_CHILDREN)
        return own.ru_utime + own.ru_stime

    started, environment = taken(), {**os.environ, "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "ptune", *arguments]
    subprocess.run(line, check=True, env=environment, stdout=subprocess.DEVNULL)
    return taken() - started


def fleet(count: int, alone: int, tokens: int) -> dict[str, dict[str, str]]:
    """Processor time per task and accuracy of small tasks, together and by a run for each."""
    with tempfile.TemporaryDirectory() as name:
        folder, data = Path(name), Path(name) / "data"
        data.mkdir()
        tasks = list(label_pairs(data, count))
        options = ["--prompt", "reader", "--num-virtual-tokens", str(tokens)]

        def by_command(*own: str) -> float:
            return command("train", *options, *own)

        def in_process(file: Path) -> None:
            settings = TrainSettings(
                train_file=str(file), prompt="reader", num_virtual_tokens=tokens
            )
            ptune.train_run(settings, folder / "process" / file.stem)

        files = [file for file, _, _ in tasks[:alone]]
        together = by_command("--tasks-dir", str(data), "--output-dir", str(folder / "together"))
        taken = {
            f"{alone} tasks, a command for each": sum(
                by_command("--train-file", str(f), "--output-dir", str(folder / "command" / f.stem))
                for f in files
            )
            / alone,
            f"{alone} tasks, a run for each in one process": sum(
                seconds(lambda file=file: in_process(file)) for file in files
            )
            / alone,
            f"{count} tasks together": together / count,
        }
        rows = {}
        for how, title in zip(("command", "process", "together"), taken, strict=True):
            bank = PromptBank.from_folder(folder / how)
            hits = [
                sum(map(str.__eq__, bank[file.stem].predict(texts).tolist(), labels)) / len(labels)
                for file, texts, labels in tasks
                if file.stem in bank
            ]
            print(how, hits, flush=True)
            rows[title] = {
                "processor time per task": f"{taken[title]:.1f} s",
                f"accuracy of the first {alone}": f"{sum(hits[:alone]) / alone:.3f}",
                "accuracy of all": f"{sum(hits) / len(hits):.3f}",
            }
        return rows


def memory(limits: list[float]) -> dict[str, dict[str, str]]:
    """The most memory of a training process that keeps texts, by the limit that is set."""
    own = TrainSettings(train_file=str(DEMO / "train.csv"), prompt="reader", epochs=2)
    rows, without = {}, 0.0
    for limit in (0.0, *limits):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            most, kept = pool.apply(peak, (replace(own, keep_texts=limit),))
        without = without or most
        rows[f"--keep-texts {limit:g}"] = {
            "texts kept": f"{kept['texts']}",
            "kept": f"{kept['bytes'] / 1e6:.0f} MB",
            "peak memory": f"{most / 1e6:.0f} MB",
            "more than without": f"{(most - without) / 1e6:.0f} MB",
        }
    return rows


def peak(settings: TrainSettings) -> tuple[float, dict[str, int]]:
    """The most bytes that this process has had at once while it trained, and what it kept."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        kept = ptune.train_run(settings, Path(folder) / "run").metrics["kept_texts"]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, kept


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--texts", type=int, default=64, help="Texts for many tasks.")
    parser.add_argument("--data-dir", help="GLUE's folder: only measure many tasks, on MRPC.")
    parser.add_argument("--train-texts", type=int, default=320, help="Texts for training.")
    parser.add_argument("--tasks", type=int, nargs="+", default=[10, 50])
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=LENGTHS, help="Virtual tokens of a reader."
    )
    parser.add_argument("--model", help="Only measure training, on this backbone.")
    parser.add_argument("--memory", type=float, nargs="+", help="Only measure memory, in GB.")
    parser.add_argument("--fleet", type=int, help="Only compare N small tasks, together and alone.")
    parser.add_argument("--alone", type=int, default=5, help="How many of them are trained alone.")
    parser.add_argument("--tokens", type=int, default=8, help="Virtual tokens of each of them.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.fleet:
        results: dict[str, Any] = {
            "fleet": fleet(arguments.fleet, arguments.alone, arguments.tokens)
        }
    elif arguments.memory:
        results = {"memory": memory(arguments.memory)}
    elif arguments.model:
        results = {"training": training(train_texts(arguments), arguments.model, arguments.lengths)}
    elif arguments.data_dir:
        dev = load_glue("mrpc", arguments.data_dir).evaluation[""]
        joined = list(map(" ".join, zip(dev[TEXT], dev[PAIR], strict=True)))
        results = {"tasks": tasks(arguments, joined)}
    else:
        results = {
            "training": training(train_texts(arguments), "minilm", arguments.lengths),
            "tasks": tasks(arguments, read_table(DEMO / "test.csv")[TEXT]),
        }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


def train_texts(arguments: argparse.Namespace) -> list[str]:
    """Texts to train on."""
    return read_table(DEMO / "train.csv")[TEXT][: arguments.train_texts]


def tasks(arguments: argparse.Namespace, texts: list[str]) -> dict[str, dict[str, str]]:
    """Many tasks for each of the first texts."""
    return many_tasks(texts[: arguments.texts], arguments.tasks, arguments.lengths)


if __name__ == "__main__":
    main()
