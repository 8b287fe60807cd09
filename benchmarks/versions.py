"""Compare the speed of two checkouts of ptune on the same machine, in alternating rounds.

    git worktree add ../before v0.1.0
    python benchmarks/versions.py ../before . --data-dir glue --rounds 15

Each checkout trains and predicts with MiniLM on MRPC, with an input and a deep prompt. Each of
these has its own process, which is idle while the others run. A round runs both checkouts one
after the other, and the next round in the opposite order. The ratio is the time of the first
checkout divided by that of the second: above 1, the second one is faster. The interval is a
bootstrap of the median.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

VIRTUAL_TOKENS, BATCH, STEPS, TEXTS = 20, 32, 8, 512
WORK = ("train input", "train deep", "predict input", "predict deep")


# The side that runs in a checkout. It uses what both have, and the names that moved.


def find(name: str, *modules: str) -> Any:
    """A name from the first of several modules that exists."""
    for module in modules:
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            continue
    raise SystemExit(f"{name} is in none of {', '.join(modules)}")


def build_model(depth: str) -> Any:
    """An untrained model on MiniLM, in the fast number format."""
    import torch

    from ptune import PromptModel
    from ptune.peft import PromptEncoderConfig

    load_backbone = find("load_backbone", "ptune.backbones.loading", "ptune.backbone")
    torch.manual_seed(0)
    config = PromptEncoderConfig(
        depth=depth,  # type: ignore[arg-type]
        num_virtual_tokens=VIRTUAL_TOKENS,
        encoder_reparameterization_type="NONE",
        placement="after_first",
        pooling="prompt" if depth == "input" else "mean",
        prompt_init="random",
        prompt_init_scale=0.5,
        prompt_init_text=None,
    )
    return PromptModel(load_backbone("minilm"), config)


def training(depth: str, pairs: list[tuple[str, str]]) -> Callable[[], None]:
    """Some training steps on batches of similar length."""
    import torch

    load_tokenizer = find("load_tokenizer", "ptune.backbones.loading", "ptune.backbone")
    find("forget_shapes", "ptune.backbones.cpu", "ptune.kernels")()
    model = build_model(depth).train()
    optimizer = torch.optim.AdamW(model.parameter_groups(1e-3))
    tokenizer = load_tokenizer("minilm")
    chosen = sorted(pairs[: BATCH * STEPS], key=lambda pair: -sum(map(len, pair)))
    groups = [chosen[i : i + BATCH] for i in range(0, len(chosen), BATCH)]
    batches = [
        {
            **tokenizer(*map(list, zip(*g, strict=True)), padding=True, return_tensors="pt"),
            "labels": torch.arange(len(g)) % 2,
        }
        for g in groups
    ]

    def turn() -> None:
        for batch in batches:
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return turn


def prediction(folder: Path, pairs: list[tuple[str, str]]) -> Callable[[], None]:
    """Classify all pairs."""
    import ptune

    classifier = ptune.load(folder)

    def turn() -> None:
        classifier.predict(pairs)

    return turn


def serve_turns(work: str, folder: Path) -> None:
    """Run one turn for each line of standard input, and print its seconds."""
    pairs = [tuple(pair) for pair in json.loads((folder / "pairs.json").read_text("utf-8"))]
    kind, depth = work.split()
    if kind == "save":
        build_model(depth).save_pretrained(folder / depth)
        return
    turn = training(depth, pairs) if kind == "train" else prediction(folder / depth, pairs)
    turn()  # warm up
    print("TURN 0", flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        turn()
        print(f"TURN {time.perf_counter() - started}", flush=True)


# The side that compares.


def start(checkout: Path, work: str, folder: Path) -> subprocess.Popen[str]:
    """A process that works in a checkout."""
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, __file__, "--work", work, "--folder", str(folder)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen(command, env=environment, text=True, **pipes)


def wait_for_turn(process: subprocess.Popen[str]) -> float:
    """Seconds of a turn, once it is over. Libraries may print other lines."""
    assert process.stdout
    for line in process.stdout:
        if line.startswith("TURN "):
            return float(line.removeprefix("TURN "))
    raise SystemExit(f"A process ended with exit code {process.wait()}; its error is above.")


def seconds_of_turn(process: subprocess.Popen[str]) -> float:
    """Let a process work for one turn."""
    assert process.stdin
    process.stdin.write("\n")
    process.stdin.flush()
    return wait_for_turn(process)


def compare(checkouts: list[Path], work: str, folder: Path, rounds: int) -> dict[str, Any]:
    """Seconds of both checkouts in each round, and the ratio."""
    both = [start(checkout, work, folder) for checkout in checkouts]
    try:
        for process in both:
            wait_for_turn(process)
        seconds: list[list[float]] = [[], []]
        for number in range(rounds):
            for side in (0, 1) if number % 2 == 0 else (1, 0):
                seconds[side].append(seconds_of_turn(both[side]))
    finally:
        for process in both:
            process.kill()
            process.wait()
    ratios = [before / after for before, after in zip(*seconds, strict=True)]
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(ratios, k=rounds)) for _ in range(10_000))
    return {
        "median": statistics.median(ratios),
        "interval": [medians[250], medians[-251]],
        "seconds": seconds,
    }


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkouts", nargs="*", type=Path, metavar="CHECKOUT", help="two folders")
    parser.add_argument("--data-dir", help="folder of GLUE's TSV files; default: download")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", nargs="+", choices=WORK, default=list(WORK))
    parser.add_argument("--output-dir", type=Path, default=Path("runs/versions"))
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        serve_turns(args.work, args.folder)
        return
    if len(args.checkouts) != 2:
        parser.error("name two checkouts: the one before, and the one to compare")
    load_glue = find("load_glue", "ptune.data.glue", "ptune.data.dataset", "ptune.data")
    found: dict[str, Any] = {}
    print("| work | ratio | 95% interval |\n| --- | --- | --- |")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        columns = load_glue("mrpc", args.data_dir).train
        pairs = list(zip(columns["text"], columns["text_pair"], strict=True))
        (folder / "pairs.json").write_text(json.dumps(pairs[:TEXTS]), "utf-8")
        for depth in ("input", "deep"):  # both checkouts load what the first one saves
            if start(args.checkouts[0], f"save {depth}", folder).wait():
                raise SystemExit("saving an adapter failed; the error is above")
        for work in args.only:
            found[work] = ratio = compare(args.checkouts, work, folder, args.rounds)
            low, high = ratio["interval"]
            print(f"| {work} | {ratio['median']:.3f} | {low:.3f} to {high:.3f} |", flush=True)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    machine = {"processor": platform.processor(), "cores": os.cpu_count()}
    results = {"rounds": args.rounds, **machine, "results": found}
    (args.output_dir / "versions.json").write_text(json.dumps(results, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
