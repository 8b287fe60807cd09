"""What is gained or lost if the best checkpoint on an evaluation set is kept, not the last state?

Trains with default settings and evaluates after each epoch on all test texts. Then, many times, a
random part of them plays the evaluation set that chooses the checkpoint, and the others measure it.
The table has the difference in accuracy to the last state, by the size of the evaluation set.

    python benchmarks/best_checkpoint.py --data-dir DATA --tasks mail tweet --output results.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import machine, silence
from tasks import FOLDERS, load_task
from transformers import TrainerCallback

from ptune import TrainSettings
from ptune.training.run import trained_in_memory

DRAWS = 2000


class RightAnswers(TrainerCallback):
    """Keeps which texts each evaluation answers right."""

    def __init__(self) -> None:
        self.epochs: list[np.ndarray] = []

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Answer all texts once more."""
        model, right = kwargs["model"], []
        with torch.no_grad():
            for batch in kwargs["eval_dataloader"]:
                labels = batch.pop("labels")
                right.append((model(**batch).logits.argmax(dim=-1) == labels).numpy())
        self.epochs.append(np.concatenate(right))


def difference(right: np.ndarray, size: int, rng: np.random.Generator) -> tuple[float, float]:
    """Accuracy of the chosen checkpoint less that of the last: its mean, and its spread.

    Args:
        right: Whether each evaluation answered each text right, ``[evaluations, texts]``.
        size: The number of texts that choose.
        rng: Draws them.
    """
    found = []
    for _ in range(DRAWS):
        order = rng.permutation(right.shape[1])
        choosing = right[:, order[:size]].mean(axis=1)
        measured = right[:, order[size:]].mean(axis=1)
        found.append(measured[choosing.argmax()] - measured[-1])  # the first of the best
    return float(np.mean(found)), float(np.std(found))


def main() -> None:
    """Train on each task, and compare both ways to choose."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-dir", nargs="+", default=FOLDERS)
    parser.add_argument("--tasks", nargs="+", default=["mail", "tweet", "mrpc"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[25, 50, 100, 200])
    parser.add_argument("--max-train", type=int, default=1000)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    silence()
    result: dict[str, Any] = {"machine": machine(), "draws": DRAWS, "runs": []}
    for task in args.tasks:
        for seed in args.seeds:
            data = load_task(task, args.data_dir, max_train=args.max_train)
            kept = RightAnswers()
            with trained_in_memory(TrainSettings(seed=seed), data, callbacks=[kept]):
                right = np.stack(kept.epochs)
            run: dict[str, Any] = {"task": task, "seed": seed, "texts": right.shape[1]}
            run["accuracy"] = right.mean(axis=1).round(4).tolist()
            rng = np.random.default_rng(seed)
            sizes = [size for size in args.sizes if size <= right.shape[1] // 2]
            run["best_less_last"] = {
                str(size): [round(x, 4) for x in difference(right, size, rng)] for size in sizes
            }
            result["runs"].append(run)
            print(json.dumps(run), flush=True)
            if args.output:
                args.output.write_text(json.dumps(result, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
