"""Long texts: does a classifier find what a text says near its end?

A long text has `--tokens` tokens of comments from GoEmotions, which are about no order, and one
mail of ptune's demo in its last fifth. The mail decides the label. Training and test are built
alike, with blank lines between comments. It compares truncation, head and tail, windows and
passages with the mails alone.

    python benchmarks/long_texts.py --train 480 --test 180 --output results.json
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import time
from pathlib import Path

import ptune
from ptune.backbones.loading import load_tokenizer
from ptune.demo import __file__ as demo

ROOT = Path(__file__).resolve().parents[1]


def rows_of(file: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with file.open(newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


def long_texts(
    mails: list[str], comments: list[str], tokens: int, seed: int, between: str = "\n\n"
) -> list[str]:
    """Each mail among comments, starting in the last fifth of the text."""
    tokenizer, rng = load_tokenizer("minilm"), random.Random(seed)
    sizes = [len(tokenizer(comment, add_special_tokens=False)["input_ids"]) for comment in comments]
    found = []
    for mail in mails:
        own = len(tokenizer(mail, add_special_tokens=False)["input_ids"])
        start = round(tokens * rng.uniform(0.8, 0.95))
        parts, placed, used = [], False, 0
        while used < tokens - (0 if placed else own):
            if not placed and used >= start:
                parts.append(mail)
                placed, used = True, used + own
            i = rng.randrange(len(comments))
            parts.append(comments[i])
            used += sizes[i]
        found.append(between.join(parts if placed else [*parts, mail]))
    return found


def main() -> None:
    """Build the texts, train with each setting, and print the accuracy on the test texts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", type=int, default=480, help="number of training texts")
    parser.add_argument("--test", type=int, default=180, help="number of test texts")
    parser.add_argument("--tokens", type=int, default=2000, help="length of a text")
    parser.add_argument("--window", type=int, default=128, help="max_length")
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--prompt", default="none")
    parser.add_argument("--settings", default="short,truncate,head_tail,windows,passages")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    data = Path(os.environ.get("PTUNE_DATA", ROOT.parent / "shared" / "data"))
    rng = random.Random(0)
    sets = {}
    for name, size, noise in (("train", args.train, "train"), ("test", args.test, "test")):
        mails = rows_of(Path(demo).parent / f"{name}.csv")
        rng.shuffle(mails)
        mails = mails[:size]
        comments = [row["text"] for row in rows_of(data / "goemotions" / f"{noise}.csv")]
        short = [row["text"] for row in mails]
        seed = len(name)
        sets[name] = (
            short,
            long_texts(short, comments, args.tokens, seed),
            [row["label"] for row in mails],
        )
    results = {"arguments": {k: str(v) for k, v in vars(args).items()}, "accuracy": {}}
    for setting in args.settings.split(","):
        started, is_long = time.perf_counter(), setting != "short"
        classifier = ptune.PromptClassifier(
            prompt=args.prompt,
            head="features",
            epochs=args.epochs,
            max_length=args.window,
            long_texts=setting if is_long else "truncate",
        )
        short, long, labels = sets["train"]
        classifier.fit(long if is_long else short, labels, verbose=False)
        short, long, labels = sets["test"]
        accuracy = classifier.score(long if is_long else short, labels)
        results["accuracy"][setting] = round(accuracy, 4)
        seconds = time.perf_counter() - started
        print(f"{setting:10} accuracy {accuracy:.3f}, {seconds:.0f} s", flush=True)
    print(json.dumps(results))
    if args.output:
        args.output.write_text(json.dumps(results, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
