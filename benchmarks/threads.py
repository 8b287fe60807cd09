"""Throughput of one classifier that several threads call, compared with one thread.

    python benchmarks/threads.py --output-dir runs/threads

Each round classifies the same texts in one thread and in several, in alternating order. The ratio
is taken within a round, so that other work on the machine affects both sides. The table shows the
median with a 95% interval; `threads.json` has the seconds of every round and is written after each,
so that an interrupted run keeps its results.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import silence, versions

import ptune
from ptune import PromptClassifier, PromptEncoderConfig, PromptModel
from ptune.backbones.loading import fast_dtype, load_backbone

silence()
SENTENCE = "the parcel never came and nobody answers the phone so please send my money back"


def make_texts(count: int) -> list[str]:
    """Texts of 3 to 40 words."""
    words = SENTENCE.split(" ")
    return [" ".join(words[(i + j) % len(words)] for j in range(3 + i % 38)) for i in range(count)]


def make_classifier(prompt: str, dtype: str) -> PromptClassifier:
    """MiniLM with an untrained prompt: the numbers do not change the speed."""
    torch.manual_seed(0)
    config = PromptEncoderConfig(depth=prompt, encoder_reparameterization_type="NONE")  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        PromptModel(load_backbone("minilm"), config).save_pretrained(folder)
        return ptune.load(folder, dtype=dtype)


def seconds_of(classifier: PromptClassifier, calls: list[list[str]], threads: int) -> float:
    """How long `threads` threads take for all calls together."""
    start = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(lambda texts: list(classifier.logits(texts)), calls):
            pass
    return time.perf_counter() - start


def interval(values: list[float]) -> tuple[float, float]:
    """The 95% interval of a median, from the order of the values; their range if there are few."""
    ordered, n = sorted(values), len(values)
    below, outside = 0, 0.0
    while 2 * (outside + comb(n, below) / 2**n) <= 0.05:
        outside += comb(n, below) / 2**n
        below += 1
    lowest = max(0, below - 1)
    return ordered[lowest], ordered[n - 1 - lowest]


def show(results: dict[str, Any]) -> None:
    """Print the table."""
    threads = results["settings"]["threads"]
    print(f"| prompt | 1 thread, texts per second | {threads} threads | ratio | 95% interval |")
    print("| --- | --- | --- | --- | --- |")
    for prompt, rounds in results["seconds"].items():
        if rounds:
            count = results["settings"]["texts"]
            one, several = (count / statistics.median(r[i] for r in rounds) for i in (0, 1))
            ratios = [r[0] / r[1] for r in rounds]
            low, high = interval(ratios)
            print(
                f"| {prompt} | {one:.0f} | {several:.0f} | {statistics.median(ratios):.3f} "
                f"| {low:.3f} to {high:.3f} |"
            )


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--prompts", nargs="+", choices=("deep", "input"), default=["deep", "input"]
    )
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--texts", type=int, default=2048)
    parser.add_argument("--texts-per-call", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/threads"))
    args = parser.parse_args()
    texts = make_texts(args.texts)
    calls = [texts[i : i + args.texts_per_call] for i in range(0, len(texts), args.texts_per_call)]
    settings = {k: v for k, v in vars(args).items() if k not in ("output_dir", "rounds")}
    if args.dtype == "auto":
        settings["dtype"] = str(fast_dtype()).removeprefix("torch.")
    results: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": versions("torch", "transformers"),
        "settings": settings,
        # [one thread, several threads] of each round.
        "seconds": {prompt: [] for prompt in args.prompts},
    }
    args.output_dir.mkdir(parents=True, exist_ok=True)
    classifiers = {prompt: make_classifier(prompt, args.dtype) for prompt in args.prompts}
    for classifier in classifiers.values():
        wanted = np.asarray(list(classifier.logits(texts[:16])))
        for threads in (1, args.threads):
            seconds_of(classifier, calls, threads)  # memory and kernels are prepared
        assert np.allclose(list(classifier.logits(texts[:16])), wanted, atol=1e-5)
    try:
        for i in range(args.rounds):
            for prompt, classifier in classifiers.items():
                order = (1, args.threads) if i % 2 else (args.threads, 1)
                taken = {threads: seconds_of(classifier, calls, threads) for threads in order}
                results["seconds"][prompt].append([taken[1], taken[args.threads]])
                content = json.dumps(results, indent=2) + "\n"
                (args.output_dir / "threads.json").write_text(content, "utf-8")
    except KeyboardInterrupt:
        print("Interrupted; these are the rounds so far.")
    show(results)


if __name__ == "__main__":
    main()
