"""What a run understood from the data, before it trains; and whether it learned anything."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from scipy import stats

from ptune.data.dataset import LABEL, PAIR, TEXT, TaskData
from ptune.errors import on_one_line
from ptune.training.settings import TrainSettings

# A label with fewer training examples is pointed out.
FEW = 5
# A result that chance gives this often is no result.
CHANCE = 0.05


@dataclass(frozen=True)
class Summary:
    """What a run understood.

    Attributes:
        source: The name of the data.
        columns: Which columns are read, and how many rows were left out.
        problem_type: As in Transformers' configurations.
        examples: Number of examples in each set.
        repeated: Number of evaluation texts that are also training texts.
        labels: Number of training examples of each label, the most frequent first.
        tokens: Median and largest length of a training text in tokens, after truncation.
        truncated: Number of truncated texts in each set.
        shown: Three examples: texts and label.
        settings: What was chosen: epochs, learning rates and so on.
    """

    source: str
    columns: str
    problem_type: str
    examples: dict[str, int]
    repeated: int
    labels: dict[str, int]
    tokens: dict[str, int]
    truncated: dict[str, int]
    shown: list[tuple[str, str]]
    settings: dict[str, Any]

    @classmethod
    def of(
        cls, settings: TrainSettings, dataset: TaskData, encoded: Dataset, truncated: dict[str, int]
    ) -> Summary:
        """The summary of a dataset and its encoded training set."""
        train = dataset.train
        ids = encoded["input_ids"]  # of a text, or of each of its windows
        windows = isinstance(next(itertools.chain(*ids[:1]), 0), list)
        lengths = [sum(map(len, row)) if windows else len(row) for row in ids]
        names = dataset.labels.names
        learned = set(_texts(train))
        counts: Counter[str] = Counter()
        if dataset.labels.is_single:
            counts.update(dict.fromkeys(names, 0))
            counts.update(names[i] for i in train[LABEL])
        elif dataset.labels.is_multi:
            sums = np.nansum(np.asarray(train[LABEL], dtype=float), axis=0)
            counts.update({name: int(n) for name, n in zip(names, sums, strict=True)})
        chosen = ["model", "prompt", "epochs", "batch_size", "learning_rate"]
        chosen += [name for name in ("template", "label_words") if getattr(settings, name)]
        return cls(
            source=dataset.name,
            columns="; ".join(dataset.notes),
            problem_type=dataset.labels.kind,
            examples={"train": len(train)}
            | {name or "evaluation": len(d) for name, d in dataset.evaluation.items()},
            repeated=sum(t in learned for d in dataset.evaluation.values() for t in _texts(d)),
            labels=dict(counts.most_common()),
            tokens={"median": int(np.median(lengths)), "longest": max(lengths)},
            truncated=truncated,
            shown=[_example(dataset, row) for row in train.select(range(min(3, len(train))))],
            settings={k: getattr(settings, k) for k in (*chosen, "prompt_learning_rate")},
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def lines(self) -> dict[str, str]:
        """The summary for people: a title and a sentence for each line."""
        counts = ", ".join(f"{n:,} {name}" for name, n in self.examples.items())
        lines = {"data": f"{self.source}: {counts}" + (f"; {self.columns}" if self.columns else "")}
        if self.repeated:
            lines["data"] += f". {self.repeated:,} evaluation texts are also training texts"
        lines["labels"] = self._labels()
        cut = sum(self.truncated.values())
        half, longest = self.tokens["median"], self.tokens["longest"]
        of = f"{cut:,} of {sum(self.examples.values()):,}"
        lines["texts"] = (
            f"{of} have more than {longest} tokens and are truncated"
            + (f"; half have at most {half}" if half < longest else "")
            if cut
            else f"half have at most {half} tokens, the longest has {longest}; {of} are truncated"
        )
        if template := self.settings.get("template"):
            lines["template"] = template.replace("\n", "\\n")
        if words := self.settings.get("label_words"):
            lines["words"] = words
        for i, (text, label) in enumerate(self.shown):
            lines["examples" if i == 0 else " " * i] = f"{text} → {label}"
        return lines

    def _labels(self) -> str:
        total = self.examples["train"]
        if not self.labels:
            return "a number (regression)"
        names = [on_one_line(name, 40) for name in self.labels]
        counts = list(self.labels.values())
        shown = [f"{name} {n:,} ({n / total:.0%})" for name, n in zip(names, counts, strict=True)]
        several = "any number of them" if self.problem_type.startswith("multi") else "one"
        text = f"{len(shown)}, {several} per text: {', '.join(shown[:6])}"
        if len(shown) > 7:
            text += ", …"
        if len(shown) > 6:
            text += f", {shown[-1]}"
        if few := [name for name, n in zip(names, counts, strict=True) if n < FEW]:
            text += f". Fewer than {FEW} examples: {', '.join(few[:6])}"
        return text


def _texts(examples: Dataset) -> Iterator[tuple[str, ...]]:
    """Each text, or pair of texts."""
    return zip(*(examples[c] for c in (TEXT, PAIR) if c in examples.column_names), strict=True)


def _example(dataset: TaskData, row: dict[str, Any]) -> tuple[str, str]:
    labels, target = dataset.labels, row[LABEL]
    text = " | ".join(on_one_line(row[c]) for c in (TEXT, PAIR) if c in row)
    if labels.is_single:
        return text, on_one_line(labels.names[target])
    if labels.is_regression:
        return text, f"{target:g}"
    names = [name for name, one in zip(labels.names, target, strict=True) if one == 1]
    return text, on_one_line(", ".join(names)) or "(none)"


def verdict(metrics: dict[str, Any]) -> str | None:
    """A warning if a classifier is not better than its majority class by more than chance.

    Args:
        metrics: The content of `metrics.json`.
    """
    for name, n in (metrics.get("eval_examples") or {}).items():
        key = "accuracy" if name == "eval" else f"{name}_accuracy"
        score, base = metrics["eval"].get(key), (metrics.get("majority") or {}).get(key)
        if score is None or base is None:
            continue
        chance = stats.binomtest(round(score * n), n, min(base, 1.0), alternative="greater").pvalue
        if chance > CHANCE:
            return (
                f"The classifier is not better than always answering the most frequent label: it "
                f"is right for {round(score * n)} of {n} texts, that label for {round(base * n)}. "
                "Check columns and labels in the summary. Then try more examples, --preset best, "
                "another --prompt, a larger --model, or --seeds 5."
            )
    return None
