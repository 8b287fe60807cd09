"""How well a language model tells positive from negative without training, by template.

    python benchmarks/templates.py data/tweet/train.csv --output runs/templates.json

The file has the columns `text` and `label` (`benchmarks/tasks.py` writes it). Use a training part:
the default template was chosen on it.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
from pathlib import Path

import numpy as np
from common import silence, write_result

LABELS = ["negative", "positive"]
TEMPLATES = {
    "Is the text positive or negative? Text: … Sentiment: (the default)": (
        "{soft:Is the text positive or negative?\nText:} {text} Sentiment:"
    ),
    "the same, Sentiment: in a line of its own": (
        "{soft:Is the text positive or negative?\nText:} {text}\nSentiment:"
    ),
    "Is the review positive or negative? Review: … Sentiment:": (
        "{soft:Is the review positive or negative?\nReview:} {text} Sentiment:"
    ),
    "Review: … Sentiment:": "{soft:Review:} {text} Sentiment:",
    "Classify the text as negative or positive. Text: … Label:": (
        "{soft:Classify the text as negative or positive.\nText:} {text}\nLabel:"
    ),
}


def measure(model: str, template: str, texts: list[str], labels: np.ndarray) -> dict[str, str]:
    """Scores of one template, calibrated and not."""
    from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score

    from ptune import PromptClassifier

    found = {}
    for name, calibrate in (("calibrated", True), ("uncalibrated", False)):
        classifier = PromptClassifier.zero_shot(
            LABELS, model=model, template=template, calibrate=calibrate
        )
        logits = np.stack(list(classifier.logits(texts)))
        answers = np.array(LABELS)[logits.argmax(axis=1)]
        found[name] = f"{accuracy_score(labels, answers):.3f}"
        found[f"{name}, mean of both labels"] = f"{balanced_accuracy_score(labels, answers):.3f}"
    found["AUROC"] = f"{roc_auc_score(labels == LABELS[1], logits[:, 1] - logits[:, 0]):.3f}"
    return found


def main() -> None:
    """Measure every template and write a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--texts", type=int, default=240)
    parser.add_argument("--output", type=Path, default=Path("runs/templates.json"))
    args = parser.parse_args()
    silence()
    with args.file.open(encoding="utf-8", newline="") as file:
        examples = list(csv.DictReader(file))
    random.Random(5).shuffle(examples)
    texts = [row["text"] for row in examples[: args.texts]]
    labels = np.array([row["label"] for row in examples[: args.texts]])
    rows = {
        name: measure(args.model, template, texts, labels) for name, template in TEMPLATES.items()
    }
    negative = f"{np.mean(labels == LABELS[0]):.3f} of them negative"
    write_result(
        args.output,
        "Accuracy without training, by template",
        f"python benchmarks/templates.py {args.file.parent.name}/{args.file.name}",
        "template",
        rows,
        source=f"Output of the command: {args.model}, {len(texts)} texts, {negative}.",
    )
    print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
