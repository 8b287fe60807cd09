"""The examples that a classifier is trained and evaluated on.

Whatever the source, the result is a `TaskData` whose 🤗 data sets have the columns `text`,
`text_pair` (pairs only) and `label`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import Dataset

from ptune import texts
from ptune.data.tables import BY_NAME, Columns, Table, find_columns, read_table
from ptune.errors import PtuneError
from ptune.labels import Labels

TEXT, PAIR, LABEL = "text", "text_pair", "label"


@dataclass
class TaskData:
    """Examples and their labels.

    Attributes:
        name: For titles and model cards.
        labels: The labels of the examples.
        metrics: Names from `ptune.labels`.
        train: Examples to learn from; ``None`` if there are none.
        evaluation: Examples to evaluate on, by name; ``""`` if there is only one set.
        test: Examples without public labels, by name.
        revision: The data set's commit, if it comes from the Hub.
        question: What is asked about a text, in words, if that is known.
    """

    name: str
    labels: Labels
    metrics: tuple[str, ...]
    train: Dataset | None = None
    evaluation: dict[str, Dataset] = field(default_factory=dict)
    test: dict[str, Dataset] = field(default_factory=dict)
    revision: str | None = None
    question: str | None = None

    @classmethod
    def from_lists(
        cls,
        columns: Sequence[Sequence[str]],
        values: Sequence[Any],
        *,
        where: str = "labels",
        problem_type: str | None = None,
        label_separator: str = "|",
    ) -> TaskData:
        """Texts and label values, without an evaluation set.

        Args:
            columns: A column of texts; or two, the first texts and the second texts.
            values: The label of each example.
            where: Where the labels come from, for messages.
            problem_type, label_separator: As for `load_files`.

        Raises:
            PtuneError: The numbers of texts and labels differ, or there is only one label.
        """
        if len(values) != len(columns[0]):
            raise PtuneError(f"There are {len(columns[0])} texts and {len(values)} labels.")
        how: dict[str, Any] = {"separator": label_separator, "where": where}
        labels = Labels.learn(values, problem_type=problem_type, **how)
        train = _dataset(columns, labels.encode(values, **how))
        return cls(name="texts", labels=labels, metrics=labels.metrics, train=train)

    @property
    def pairs(self) -> bool:
        """True if the training examples are pairs of texts."""
        return self.train is not None and PAIR in self.train.column_names

    def few_examples(self, per_label: int, seed: int) -> TaskData:
        """The same data with only `per_label` training examples of each label, drawn at random.

        A label that has fewer keeps all of them. The evaluation sets stay complete.

        Raises:
            PtuneError: A text has not exactly one label.
        """
        if not self.labels.is_single or self.train is None:
            raise PtuneError(
                "A number of examples per label can only be drawn if each text has one label; "
                f"{self.name} is {self.labels.problem_type}."
            )
        numbers = np.asarray(self.train[LABEL])
        order = np.random.default_rng(seed).permutation(len(numbers))
        chosen = [order[numbers[order] == label][:per_label] for label in np.unique(numbers)]
        rows = np.sort(np.concatenate(chosen)).tolist()
        return replace(self, train=self.train.select(rows))


def _dataset(columns: Sequence[Sequence[str]], targets: list[Any]) -> Dataset:
    named = dict(zip((TEXT, PAIR), columns, strict=False))
    return Dataset.from_dict({**named, LABEL: targets})


def load_files(
    train_file: str | Path,
    eval_file: str | Path | None = None,
    *,
    columns: Columns = BY_NAME,
    problem_type: str | None = None,
    label_separator: str = "|",
    seed: int = 0,
) -> TaskData:
    """The user's own CSV, TSV, JSON lines or Parquet files.

    Args:
        train_file: Examples to learn from.
        eval_file: Examples to evaluate on; ``None``: a fifth of `train_file`, with the same share
            of every label.
        columns: Which columns to read.
        problem_type: As in Transformers' configurations; ``None``: lists of labels are several
            labels per text, numbers with a fraction are a regression, all else is one label per
            text.
        label_separator: Between several labels in one string.
        seed: Random seed of the split.

    Raises:
        PtuneError: A file or column is missing or is not as expected; or a label of the
            evaluation file does not occur in training.
    """
    table = read_table(train_file)
    found = find_columns(table, columns, train_file)
    data = TaskData.from_lists(
        _texts(table, found, train_file),
        _label_values(table, found, train_file),
        where=f"column {found.label!r} of {train_file}",
        problem_type=problem_type,
        label_separator=label_separator,
    )
    data.name = Path(train_file).stem
    if eval_file is None:
        data.train, data.evaluation[""] = _hold_out(data, seed)
    else:
        data.evaluation[""] = labelled_texts(
            eval_file, data.labels, columns=found, label_separator=label_separator
        )
    return data


def labelled_texts(
    file: str | Path,
    labels: Labels,
    *,
    columns: Columns = BY_NAME,
    label_separator: str = "|",
) -> Dataset:
    """A labelled file, with the label numbers of an existing classifier.

    Raises:
        PtuneError: As for `load_files`.
    """
    table = read_table(file)
    found = find_columns(table, columns, file)
    targets = labels.encode(
        _label_values(table, found, file),
        separator=label_separator,
        where=f"column {found.label!r} of {file}",
    )
    return _dataset(_texts(table, found, file), targets)


def _texts(table: Table, columns: Columns, file: str | Path) -> list[list[str]]:
    names = [name for name in (columns.text, columns.text_pair) if name is not None]
    return [texts.check(table[name], f"column {name!r} of {file}") for name in names]


def _label_values(table: Table, columns: Columns, file: str | Path) -> list[Any]:
    assert columns.label is not None
    values = table[columns.label]
    missing = [
        i + 1
        for i, v in enumerate(values)
        if v is None or (isinstance(v, str) and not v.strip()) or v != v
    ]
    if missing:
        raise PtuneError(
            f"The column {columns.label!r} of {file} has no label in {len(missing)} example(s), "
            f"the first of them number {missing[0]}. Fill them in or leave those examples out."
        )
    return values


def _hold_out(data: TaskData, seed: int) -> tuple[Dataset, Dataset]:
    """Four fifths to train on and one fifth to evaluate on.

    A label that occurs only once is trained on.
    """
    dataset = data.train
    assert dataset is not None
    counts = Counter(dataset[LABEL]) if data.labels.is_single else Counter()
    once = [i for i, label in enumerate(dataset[LABEL]) if counts and counts[label] == 1]
    rest = dataset.select(sorted(set(range(len(dataset))) - set(once)))
    stratify = None
    if counts and len(rest) >= 5 * (len(counts) - len(once)) > 0:
        names = [str(i) for i in range(len(counts))]
        rest = rest.cast_column(LABEL, datasets.ClassLabel(names=names))
        stratify = LABEL
    train, held_out = rest, rest.select([])
    if len(rest) >= 2:
        parts = rest.train_test_split(test_size=0.2, seed=seed, stratify_by_column=stratify)
        train, held_out = parts["train"], parts["test"]
    if once:
        train = datasets.concatenate_datasets([train, dataset.select(once).cast(train.features)])
    if not len(held_out) or (counts and len(set(train[LABEL])) < len(counts)):
        labels = f" of {len(counts)} labels" if counts else ""
        raise PtuneError(
            f"{len(dataset)} examples{labels} are too few to hold some out for evaluation. Add "
            "examples, or name a file with --eval-file."
        )
    return train, held_out


@contextmanager
def quiet() -> Iterator[None]:
    """Hide the progress bars of 🤗 Datasets, because ptune shows its own."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
