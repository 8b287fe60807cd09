"""Draw the charts of the documentation from `benchmarks/results`.

Run `python benchmarks/charts.py`.
"""

from __future__ import annotations

import json
from pathlib import Path

from ptune.training import pictures

ROOT = Path(__file__).parents[1]
RESULTS, IMAGES = ROOT / "benchmarks" / "results", ROOT / "docs" / "images"
BASELINE = "majority class"


def rows_of(results: str) -> dict[str, dict[str, str]]:
    """The rows of a table of results."""
    return json.loads((RESULTS / f"{results}.json").read_text("utf-8"))["rows"]


def accuracy_by_method(results: str) -> pictures.Picture:
    """The accuracy of each method in a table of results, with its standard deviation.

    Args:
        results: The table's name: `accuracy_mrpc`.
    """
    scores = {}
    for method, row in rows_of(results).items():
        mean, _, spread = row["accuracy"].partition(" ± ")
        low, high = float(mean) - float(spread or 0), float(mean) + float(spread or 0)
        scores[method] = (float(mean), low, high)
    start = (f"the {BASELINE}", scores.pop(BASELINE)[0])
    own = [method for method in scores if method.startswith("ptune")]
    metric = "accuracy, mean and standard deviation over three seeds"
    return pictures.methods(scores, start, metric, "MRPC with MiniLM, 4 epochs", own=own)


def accuracy_by_examples(results: str) -> pictures.Picture:
    """Accuracy and macro F1 by the number of training examples.

    Args:
        results: The table's name: `demo_decoder`.
    """
    points = [
        (name, {"accuracy": float(row["accuracy"]), "f1_macro": float(row["macro F1"])})
        for name, row in rows_of(results).items()
    ]
    return pictures.by_examples(points, "Support mail with SmolLM2")


if __name__ == "__main__":
    accuracy_by_method("accuracy_mrpc").save(IMAGES / "accuracy_mrpc_minilm.png")
    accuracy_by_examples("demo_decoder").save(IMAGES / "examples_smollm2.png")
