"""The examples that a classifier is trained and evaluated on.

Whatever the source, the result is a `TaskData` whose 🤗 data sets have the columns `text`,
`text_pair` (pairs only) and `label`.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ptune.data.cells import are_numbers, indicator_columns, label_column, vote_columns
from ptune.data.opening import FOUND, Dialect
from ptune.data.tables import (
    BY_NAME,
    Columns,
    Table,
    find_columns,
    header_rows,
    is_prediction,
    is_typed,
    read_table,
    rows_where,
    without_headers,
)
from ptune.errors import Origin, PtuneError, listed
from ptune.labels import (
    SINGLE,
    LabelColumn,
    Labels,
    annotated,
    in_words,
    known_names,
    leaves_out,
    read,
    weights_of,
)
from ptune.texts import check

if TYPE_CHECKING:  # 🤗 Datasets takes a second to import, and classifying needs none of it.
    from datasets import Dataset

logger = logging.getLogger(__name__)

# Texts in one column or two, and their labels.
Examples: TypeAlias = tuple[list[list[str]], LabelColumn]

TEXT, PAIR, LABEL, WEIGHT = "text", "text_pair", "label", "weight"
# The share of annotators who chose each label, until examples are held out.
_SHARES = "shares"
_FIX = "Correct them, or leave out rows without a text (--skip-empty)."
# The number of the text that a row is a window of, in a batch.
TEXT_NUMBER = "text_number"


@dataclass
class TaskData:
    """Examples and their labels.

    Attributes:
        name: For titles and model cards.
        labels: The labels of the examples.
        metrics: Names from `ptune.labels`.
        train: Examples to learn from.
        evaluation: Examples to evaluate on, by name; ``""`` if there is only one set.
        test: Examples without public labels, by name.
        revision: The data set's commit, if it comes from the Hub.
        question: What is asked about a text, in words, if that is known.
        notes: What was read: the columns, and how many rows were left out.
        out_of_scope: Texts that belong to no label, in one column or two.
    """

    name: str
    labels: Labels
    metrics: tuple[str, ...]
    train: Dataset
    evaluation: dict[str, Dataset] = field(default_factory=dict)
    test: dict[str, Dataset] = field(default_factory=dict)
    revision: str | None = None
    question: str | None = None
    notes: list[str] = field(default_factory=list)
    out_of_scope: list[list[str]] = field(default_factory=list)

    @property
    def digest(self) -> str:
        """Tells whether other data has the same examples in the same order."""
        found = hashlib.sha256()
        for name, examples in {"train": self.train, **self.evaluation}.items():
            for column in sorted(examples.column_names):
                found.update(repr((name, column, list(examples[column]))).encode())
        return found.hexdigest()

    @classmethod
    def from_lists(
        cls,
        columns: Sequence[Sequence[str]],
        y: Any,
        problem_type: str | None = None,
        *,
        sample_weight: Any = None,
        class_weight: Any = None,
    ) -> TaskData:
        """Texts and their labels, without an evaluation set.

        Args:
            columns: A column of texts; or two, the first texts and the second texts.
            y: Their labels, in any form that `ptune.labels.read` accepts.
            problem_type: As for `Labels.learn`.
            sample_weight, class_weight: As in scikit-learn.

        Raises:
            PtuneError: The numbers of texts and labels differ, or `Labels` refuses the labels.
        """
        column = read(y)
        check_lengths(columns, column)
        labels = Labels.learn(column, problem_type)
        different = len(set(zip(*columns, strict=True)))
        if labels.is_single and len(labels) > different:
            warnings.warn(
                f"There are {len(labels)} different labels, and only {different} different texts. "
                "Have texts and labels changed places?",
                stacklevel=3,
            )
        train = dataset_of(columns, labels.encode(column))
        if column.votes is not None:
            train = train.add_column(_SHARES, _shares(labels, column.votes))
        data = cls(name="texts", labels=labels, metrics=labels.metrics, train=train)
        return data.weighted(sample_weight=sample_weight, class_weight=class_weight)

    @property
    def pairs(self) -> bool:
        """True if the training examples are pairs of texts."""
        return PAIR in self.train.column_names

    @property
    def has_unknown(self) -> bool:
        """True if it is unknown whether some texts have some labels."""
        targets = self.train[LABEL] if self.labels.is_multi else []
        return bool(np.isnan(np.asarray(targets, dtype=float)).any())

    def weighted(self, *, sample_weight: Any = None, class_weight: Any = None) -> TaskData:
        """The same data with a weight for each training example, unless both arguments are `None`.

        Args:
            sample_weight, class_weight: As in scikit-learn.

        Raises:
            PtuneError: The weights do not fit the labels.
        """
        train = self.train
        if sample_weight is None and class_weight is None:
            return self
        if WEIGHT in train.column_names:
            sample_weight = np.asarray(train[WEIGHT]) * (
                1 if sample_weight is None else sample_weight
            )
            train = train.remove_columns(WEIGHT)
        weights = _weights(self.labels, list(train[LABEL]), sample_weight, class_weight)
        return replace(self, train=train.add_column(WEIGHT, weights))

    def for_labels(self, labels: Labels) -> TaskData | None:
        """The same data, with labels that were renamed, merged or dropped after training.

        Texts of dropped labels are left out. ``None``: the labels are others. Those that both have
        must be in the same places.

        Args:
            labels: The classifier's.
        """
        if self.labels.names == labels.names:
            return self
        places = np.array(labels.outputs or range(len(labels)))
        own = {name: number for number, name in enumerate(labels.names)}
        if (len(places), labels.kind) != (len(self.labels), self.labels.kind) or any(
            own.get(name, place) != place
            for name, place in zip(self.labels.names, places.tolist(), strict=True)
        ):
            return None

        def changed(examples: Dataset) -> Dataset:
            targets = np.asarray(examples[LABEL])
            if labels.is_single:
                rows = np.flatnonzero(places[targets] >= 0)
                examples, targets = examples.select(rows), places[targets[rows]]
            else:
                each = [targets[:, places == i].max(axis=1) for i in range(len(labels))]
                targets = np.stack(each, axis=1)
            return dataset_of(text_columns(examples), targets.tolist())

        evaluation = {name: changed(examples) for name, examples in self.evaluation.items()}
        return replace(self, labels=labels, train=changed(self.train), evaluation=evaluation)

    def with_label_names(self) -> TaskData:
        """The same data with the name of each label as a further training text of it.

        Raises:
            PtuneError: Texts come in pairs, or do not have one label each.
        """
        if self.pairs or not self.labels.is_single:
            raise PtuneError(
                "label_names requires single texts with one label each. Leave it out for "
                + ("pairs." if self.pairs else "several labels per text or numbers.")
            )
        from datasets import Dataset, concatenate_datasets

        rows: dict[str, Any] = {
            TEXT: [*map(in_words, self.labels.names)],
            LABEL: list(range(len(self.labels))),
        }
        if WEIGHT in self.train.column_names:
            rows[WEIGHT] = [1.0] * len(self.labels)
        names = Dataset.from_dict(rows, features=self.train.features)
        return replace(self, train=concatenate_datasets([self.train, names]))

    def few_examples(self, per_label: int, seed: int) -> TaskData:
        """The same data with only `per_label` training examples of each label, drawn at random.

        A label that has fewer keeps all of them. The evaluation sets stay complete.

        Raises:
            PtuneError: A text has not exactly one label.
        """
        if not self.labels.is_single:
            raise PtuneError(
                "A number of examples per label can only be drawn if each text has one label; "
                f"{self.name} is {self.labels.problem_type}."
            )
        numbers = np.asarray(self.train[LABEL])
        order = np.random.default_rng(seed).permutation(len(numbers))
        chosen = [order[numbers[order] == label][:per_label] for label in np.unique(numbers)]
        rows = np.sort(np.concatenate(chosen)).tolist()
        return replace(self, train=self.train.select(rows))


def _shares(labels: Labels, votes: Sequence[Mapping[Any, float]]) -> list[list[float]]:
    """The share of annotators who chose each label of each example."""
    chosen = [(i, label, n) for i, own in enumerate(votes) for label, n in own.items() if n]
    shares = np.zeros((len(votes), len(labels)))
    rows, names, counts = zip(*chosen, strict=True)
    shares[list(rows), labels.encode(list(names))] = counts
    found: list[list[float]] = (shares / shares.sum(axis=1, keepdims=True)).tolist()
    return found


def _with_shares(train: Dataset) -> Dataset:
    """An example for each label that annotators chose, with their share as its weight."""
    if _SHARES not in train.column_names:
        return train
    shares = np.asarray(train[_SHARES])
    rows, targets = np.nonzero(shares)
    weights = shares[rows, targets] * (len(rows) / len(shares))  # 1 on average
    spread = train.remove_columns([LABEL, _SHARES]).select(rows.tolist())
    spread = spread.add_column(LABEL, targets.tolist())
    return spread.add_column(WEIGHT, weights.tolist()) if len(rows) > len(shares) else spread


def _weights(
    labels: Labels, targets: list[Any], sample_weight: Any, class_weight: Any
) -> list[float]:
    """A weight for each example, 1 on average."""
    weights = np.ones(len(targets))
    if sample_weight is not None:
        weights = weights_of(sample_weight, len(targets))
    if class_weight is not None:
        if labels.is_regression:
            raise PtuneError("A regression has no classes, so class_weight cannot be used.")
        if np.isnan(np.asarray(targets, dtype=float)).any():
            raise PtuneError(
                "It is unknown whether some texts have some labels (NaN), so class_weight cannot "
                "be used. Use sample_weight."
            )
        decoded = labels.classes[targets] if labels.is_single else np.asarray(targets, dtype=int)
        from sklearn.utils.class_weight import compute_sample_weight

        try:
            of_classes = compute_sample_weight(class_weight, decoded)
        except ValueError as error:
            raise PtuneError(f"class_weight does not fit the labels: {error}") from error
        if not (np.isfinite(of_classes) & (of_classes >= 0)).all():
            raise PtuneError(f"class_weight is {class_weight}; expected numbers of at least 0.")
        weights = weights * of_classes
        if not weights.any():
            raise PtuneError("By class_weight, the weight of every text is zero. Give one more.")
    return weights_of(weights, len(targets)).tolist()


def check_lengths(columns: Sequence[Sequence[str]], column: LabelColumn) -> None:
    """Refuse labels that do not belong to the texts.

    Raises:
        PtuneError: There are more of one than of the other.
    """
    if len(column) != len(columns[0]):
        raise PtuneError(
            f"There are {len(columns[0])} texts and {len(column)} labels. Every text needs one "
            "label (or one list of labels)."
        )


def dataset_of(columns: Sequence[Sequence[str]], targets: list[Any]) -> Dataset:
    """Texts and targets as a data set with the columns of this module."""
    from datasets import Dataset

    named = dict(zip((TEXT, PAIR), columns, strict=False))
    return Dataset.from_dict({**named, LABEL: targets})


def text_columns(examples: Dataset) -> list[list[str]]:
    """The texts of a data set with the columns of this module, in one column or two."""
    return [list(examples[name]) for name in (TEXT, PAIR) if name in examples.column_names]


def load_files(
    train_file: str | Path,
    eval_file: str | Path | None = None,
    *,
    problem_type: str | None = None,
    seed: int = 0,
    other_label: str | None = None,
    **how: Any,
) -> TaskData:
    """The user's own files.

    Args:
        train_file: Examples to learn from.
        eval_file: Examples to evaluate on; ``None``: a fifth of `train_file`, with the same share
            of every label.
        problem_type: As in Transformers' configurations; ``None``: inferred from the labels.
        seed: Random seed of the split.
        other_label: The label of texts that belong to none; they are not learned.
        **how: Other arguments of `labelled_texts`.

    Raises:
        PtuneError: A file or column is missing or is not as expected; or a label of the
            evaluation file does not occur in training.
    """
    return task_data(
        Path(train_file).stem,
        labelled_texts(train_file, problem_type=problem_type, **how),
        None
        if eval_file is None
        else lambda labels: labelled_texts(
            eval_file, problem_type=labels.kind, known=known_names(labels), **how
        ),
        problem_type,
        seed,
        other_label,
    )


def task_data(
    name: str,
    train: Examples,
    evaluation: Callable[[Labels], Examples] | None,
    problem_type: str | None,
    seed: int,
    other_label: str | None = None,
) -> TaskData:
    """Examples to train on, and others to evaluate on, read once the labels are known.

    Without others, a fifth is held out, with the same share of every label.
    """
    (texts, column), out_of_scope = _without_other(train, other_label)
    data = TaskData.from_lists(texts, column, problem_type)
    data.name = name
    if evaluation is None:
        data.train, held_out = _hold_out(data, seed)
        data.evaluation[""] = held_out.select_columns(
            [c for c in held_out.column_names if c != _SHARES]
        )
    else:
        (texts, column), more = _without_other(evaluation(data.labels), other_label)
        data.evaluation[""] = dataset_of(texts, data.labels.encode(column))
        out_of_scope = [[*a, *b] for a, b in zip(out_of_scope, more, strict=True)]
    if other_label is not None and not out_of_scope[0]:
        raise PtuneError(
            f"No example has the label {other_label!r}. Name the label of texts that belong to "
            "none of the others, or leave out --other-label."
        )
    data.train, data.out_of_scope = _with_shares(data.train), out_of_scope
    if other_label is not None:
        data.labels = replace(data.labels, aliases=((other_label, -1),))
    return data


def _without_other(examples: Examples, label: str | None) -> tuple[Examples, list[list[str]]]:
    """The examples that belong to a label, and the texts that are labelled as out of scope."""
    texts, column = examples
    if label is None:
        return examples, [[] for _ in texts]
    if column.kind != "one":
        raise PtuneError("--other-label requires one label per text.")
    gone = {i for i, value in enumerate(column.values) if str(value) == label}
    out = [[t for i, t in enumerate(own) if i in gone] for own in texts]
    return _without(examples, gone), out


def _without(examples: Examples, gone: set[int]) -> Examples:
    """The examples without those at some positions."""
    texts, column = examples
    kept = [[t for i, t in enumerate(own) if i not in gone] for own in texts]
    return kept, column.without(sorted(gone))


def that_count(examples: Examples, labels: Labels) -> tuple[Examples, list[int]]:
    """The examples on which a classifier with these labels can be right, and their positions.

    Texts of labels that were dropped after training, and of `--other-label`, are left out with a
    note. If a text can have several labels, it is without the dropped ones.

    Raises:
        PtuneError: No example is left.
    """
    (texts, column), rows = examples, list(range(len(examples[1])))
    if not any(number == -1 for _, number in labels.aliases) or column.kind == "indicators":
        return examples, rows
    if column.kind == "several":
        own = [v and [x for x in v if not leaves_out(labels, x)] for v in column.values]
        return (texts, replace(column, values=own)), rows
    out = {value for value in set(column.values) if leaves_out(labels, value)}
    gone = {i for i, value in enumerate(column.values) if value in out} if out else set()
    if gone:
        names = listed(sorted(map(str, out)), 5)
        if len(gone) == len(rows):
            raise PtuneError(
                f"All {len(rows)} examples have a label that the classifier does not answer with "
                f"({names}; {column.origin}), so none is left."
            )
        logger.warning(
            "Left out %d of %d examples with a label that the classifier does not answer with: %s.",
            len(gone),
            len(rows),
            names,
        )
    return _without(examples, gone), [i for i in rows if i not in gone]


def texts_to_evaluate(file: str | Path, labels: Labels, **how: Any) -> tuple[Examples, list[int]]:
    """The texts of a labelled file on which a classifier is evaluated, and their positions.

    Args:
        file: The file.
        labels: The classifier's.
        **how: Other arguments of `labelled_texts`.

    Raises:
        PtuneError: As for `labelled_texts` and `that_count`.
    """
    known = known_names(labels)
    return that_count(labelled_texts(file, problem_type=labels.kind, known=known, **how), labels)


def labelled_texts(
    file: str | Path,
    *,
    dialect: Dialect = FOUND,
    where: str | None = None,
    numbers: list[int] | None = None,
    **how: Any,
) -> Examples:
    """The texts of a labelled file and their labels.

    Args:
        file: The file.
        dialect: How it is written.
        where: As for `rows_where`; ``None``: all rows.
        numbers: Gets the number of each example's row in the file, from 1. It cannot be combined
            with `where` or `annotators`.
        **how: Other arguments of `examples_of`.

    Raises:
        PtuneError: As for `load_files`.
    """
    whole, source, kept = read_table(file, dialect, as_it_is=True), str(file), list[int]()
    headers = header_rows(whole)
    table = without_headers(whole, headers, file)
    if where is not None:
        table, source = rows_where(table, where, file), f"{file} where {where}"
    examples = examples_of(table, source, typed=is_typed(file), kept=kept, **how)
    if numbers is not None:
        rows = range(len(next(iter(whole.values()))))
        places = sorted(set(rows) - set(headers))
        numbers += [places[i] + 1 for i in kept]
    return examples


def examples_of(
    table: Table,
    source: str,
    *,
    typed: bool,
    columns: Columns = BY_NAME,
    problem_type: str | None = None,
    label_separator: str | None = None,
    skip_unlabelled: bool = False,
    skip_empty: bool = False,
    annotators: bool = False,
    known: Sequence[str] = (),
    notes: list[str] | None = None,
    kept: list[int] | None = None,
) -> Examples:
    """The texts of a table, in one column or two, and their labels.

    Args:
        table: Columns by name.
        source: Where it comes from, for messages.
        typed: True if its values have types; text only, otherwise.
        columns: Which columns to read.
        problem_type: As in Transformers' configurations; ``None``: inferred from the labels.
        label_separator: Between several labels in one cell; ``None``: `|`, if parts of the cells
            also occur alone.
        skip_unlabelled: Leave out examples without a label.
        skip_empty: Leave out examples with an empty text.
        annotators: Rows with the same text are one example that several people labelled.
        known: Names of labels that exist.
        notes: Gets sentences about what was read.
        kept: Gets the positions of the rows that were not left out.

    Raises:
        PtuneError: A column is missing or is not as expected.
    """
    found = find_columns(table, columns, source)
    if columns.label is None and found.label is not None and is_prediction(found.label, table):
        warnings.warn(
            f"The column {found.label!r} of {source} looks like a prediction of ptune, and is read "
            "as the labels. Name the column of the true ones with --label-column.",
            stacklevel=2,
        )
    if label_separator is None and not found.indicators:
        label_separator = _as_in_training(columns.trained_separator, table[found.labels[0]])
    how: dict[str, Any] = {"problem_type": problem_type, "separator": label_separator}
    column = labels_in(table, found, source, typed=typed, known=known, **how)
    texts = [table[name] for name in found.texts]
    read = [*found.texts, *found.labels]
    unused = [name for name in table if name not in read]
    said = [f"columns {', '.join(map(repr, read))}"]
    said[0] += f" (not {listed(unused, 5)})" if unused else ""
    missing = column.missing() if skip_unlabelled else []
    empty = [i for i, row in enumerate(zip(*texts, strict=True)) if not all(map(_written, row))]
    for gone, what in ((missing, "a label"), (empty if skip_empty else [], "a text")):
        if gone:
            logger.warning("Left out %d of %d examples without %s.", len(gone), len(column), what)
            said.append(f"{len(gone)} of {len(column)} rows without {what} left out")
    out = {*missing, *(empty if skip_empty else [])}
    if kept is not None:
        kept += [i for i in range(len(column)) if i not in out]
    if out:
        if len(out) == len(column):
            raise no_complete_row(source)
        texts, column = _without((texts, column), out)
    if notes is not None:
        notes.append("; ".join(said))
    checked = [
        _checked(text, Origin.column(name, source, fix=_FIX), typed=typed)
        for text, name in zip(texts, found.texts, strict=True)
    ]
    if not annotators:
        return checked, column
    joined = _joined(checked, column)
    if len(joined[1]) == len(column) and not known:  # evaluation may have one label per text
        warnings.warn(
            f"annotators is not used: no two rows of {source} have the same text, so each text has "
            "the label of one annotator.",
            stacklevel=2,
        )
    return joined


def _as_in_training(separator: str | None, cells: Sequence[Any]) -> str | None:
    """What separated labels in training, if it is in one of the cells."""
    if separator and any(isinstance(cell, str) and separator in cell for cell in cells):
        return separator
    return None


def no_complete_row(source: str | Path) -> PtuneError:
    """The error of a table in which nothing can be used."""
    return PtuneError(f"No row of {source} has both a text and a label. Check the columns.")


def labels_in(
    table: Table, columns: Columns, source: str, *, problem_type: str | None = None, **how: Any
) -> LabelColumn:
    """The labels of a table, in one column or several.

    Args:
        table, source, problem_type: As for `examples_of`.
        columns: From `find_columns`.
        **how: Other arguments of `label_column`.
    """
    if columns.indicators:
        read_columns = vote_columns if problem_type == SINGLE else indicator_columns
        return read_columns({name: table[name] for name in columns.labels}, source)
    (name,) = columns.labels
    where = f"column {name!r} of {source}"
    return label_column(table[name], where, problem_type=problem_type, **how)


def _joined(texts: list[list[str]], column: LabelColumn) -> Examples:
    """Each text once, with how many annotators chose each label."""
    if column.check().kind != "one" or column.problem_type != SINGLE:
        raise PtuneError(
            f"--annotators requires one label per row. Found several, or numbers to predict, in "
            f"{column.origin}. Leave it out, or give one label per row."
        )
    votes: dict[tuple[str, ...], Counter[Any]] = {}
    each = column.votes or [{label: 1} for label in column.values]
    for text, own in zip(zip(*texts, strict=True), each, strict=True):
        votes.setdefault(text, Counter()).update(own)
    joined = annotated(list(votes.values()), column.origin)
    return [list(own) for own in zip(*votes, strict=True)], joined


def _written(cell: Any) -> bool:
    return cell is not None and (not isinstance(cell, str) or bool(cell.strip()))


def _checked(cells: list[Any], origin: Origin, *, typed: bool) -> list[str]:
    """Texts of a file; a column of numbers is more likely the wrong column.

    Raises:
        PtuneError: They are numbers, or one of them is not a text.
    """
    checked = check(cells, origin)
    if not typed and are_numbers(checked):
        check(list(map(float, checked)), origin)
    return checked


def _hold_out(data: TaskData, seed: int) -> tuple[Dataset, Dataset]:
    """Four fifths to train on and one fifth to evaluate on.

    A label that occurs only once is trained on.
    """
    import datasets

    dataset = data.train
    counts = Counter(dataset[LABEL]) if data.labels.is_single else Counter()
    once = [i for i, label in enumerate(dataset[LABEL]) if counts and counts[label] == 1]
    rest = dataset.select(sorted(set(range(len(dataset))) - set(once)))
    stratify = None
    if counts and len(rest) >= 5 * (len(counts) - len(once)) > 0:
        names = [str(i) for i in range(len(counts))]
        with quiet():
            rest = rest.cast_column(LABEL, datasets.ClassLabel(names=names))
        stratify = LABEL
    train, held_out = rest, rest.select([])
    if len(rest) >= 2:
        parts = rest.train_test_split(test_size=0.2, seed=seed, stratify_by_column=stratify)
        train, held_out = parts["train"], parts["test"]
    if once:
        names = [data.labels.names[dataset[LABEL][i]] for i in once[:5]]
        logger.warning(
            "%d label(s) have a single example, such as %s. They are learned and not evaluated.",
            len(once),
            ", ".join(names),
        )
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
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
