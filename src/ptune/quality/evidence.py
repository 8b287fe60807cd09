"""A labelled set, and a classifier's answers to it: what a report is made from."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptune import texts
from ptune.data.dataset import LABEL, TaskData, text_columns, texts_to_evaluate
from ptune.data.opening import FOUND, Dialect
from ptune.data.tables import Columns, find_columns, read_table
from ptune.errors import Origin, PtuneError, cut, near
from ptune.inference.text_classifier import TextClassifier
from ptune.labels import NO_LABEL, Labels, comparable
from ptune.postprocessing import Goal, Postprocessing
from ptune.training import calibration
from ptune.training.start import dataset_of_run

Array = NDArray[Any]
# Characters of a text on a page.
SHOWN = 300
# Fewer texts are too few to compare with.
MIN_REFERENCE = 100
TEST, EVALUATION, CROSS_FITTED = "test", "evaluation", "evaluation, cross-fitted"
# A larger share of training texts in a file is pointed out.
MOST_KNOWN = 0.1


@dataclass
class Evidence:
    """A labelled set, and a classifier's answers to it.

    Attributes:
        name: What the set is called.
        measured_on: `TEST`: nothing was chosen on it. `EVALUATION`: the run was evaluated on it.
            `CROSS_FITTED`: calibration and thresholds were chosen on it too, so those of each text
            come from a fit without it.
        labels: The classifier's labels.
        columns: The texts, in one column or two.
        targets: As `Labels.encode` returns them.
        logits: As the model computes them, ``[n, num_labels]``.
        calibrated, margins: As `Postprocessing` makes them.
        calibration: How calibration was fitted; ``None``: there is none.
        lengths: Tokens of each text.
        cut: Whether each text is longer than the classifier reads.
        slices: Columns of the file by whose values scores are split.
        train: Texts and targets of the training set, if they are available.
        metrics: Names of the metrics.
        rows: The number of each text's row in its file, from 1; ``None``: it is a run's own set,
            whose rows are not numbered.
    """

    name: str
    measured_on: str
    labels: Labels
    columns: list[list[str]]
    targets: Array
    logits: Array
    calibrated: Array
    margins: Array
    lengths: list[int]
    cut: Array
    calibration: str | None = None
    slices: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    train: tuple[list[list[str]], Array] | None = None
    metrics: tuple[str, ...] = ()
    rows: Sequence[int] | None = None

    @classmethod
    def collect(
        cls,
        classifier: TextClassifier,
        columns: list[list[str]],
        targets: Any,
        name: str,
        *,
        chosen_on: bool,
        **more: Any,
    ) -> Evidence:
        """Classify the texts.

        Args:
            classifier: The classifier.
            columns, targets, name: As for the attributes.
            chosen_on: Calibration and thresholds were fitted on these very texts.
            **more: `slices`, `train`, `metrics` and `rows`.

        Raises:
            PtuneError: A label is unknown to the classifier.
        """
        labels, values = classifier.labels_, classifier.postprocessing_
        logits, cut = classifier._all(texts.as_rows(columns))
        logits = logits.astype(np.float64)
        targets = np.asarray(targets)
        if labels.is_multi:
            targets = targets.astype(float)
        calibrated, margins = values.calibrated(logits), values.margins(logits)
        measured_on = EVALUATION if chosen_on else TEST
        # Merged labels are no longer those that the values were fitted to, and other values were
        # fitted to training texts.
        chosen_on = chosen_on and labels.outputs is None and "fitted_on" not in values.facts
        if chosen_on and values.tensors:
            calibrated, margins = _cross_fitted(labels, values, logits, targets)
            measured_on = CROSS_FITTED
        return cls(
            name,
            measured_on,
            labels,
            columns,
            targets,
            logits,
            calibrated,
            margins,
            classifier._lengths(columns),
            cut,
            **{"metrics": labels.metrics, "calibration": values.calibration, **more},
        )

    @property
    def predicted(self) -> Array:
        """Predictions, comparable with the targets."""
        return self.labels.decide(self.margins)

    @property
    def comparable(self) -> tuple[Array, Array]:
        """Targets and predictions; unknown labels (NaN) as if both said no."""
        targets, predicted, _ = comparable(self.labels, self.targets, self.predicted)
        return targets, predicted

    @property
    def right(self) -> Array:
        """Whether each prediction is right; a text's labels only together."""
        targets, predicted = self.comparable
        return targets == predicted if targets.ndim == 1 else (targets == predicted).all(axis=1)

    def text(self, i: int) -> str:
        """A text for people, shortened."""
        return cut(" ⏎ ".join(column[i] for column in self.columns), SHOWN)


def target_in_words(labels: Labels, row: Any) -> str:
    """A target or a prediction for people."""
    if labels.is_regression:
        return f"{float(row):.3f}"
    if labels.is_single:
        return labels.names[int(row)]
    each = zip(labels.names, row, strict=True)
    return ", ".join(name for name, on in each if on == 1) or NO_LABEL


def _cross_fitted(
    labels: Labels, values: Postprocessing, logits: Array, targets: Array
) -> tuple[Array, Array]:
    goal = values.facts.get("threshold_for")
    return calibration.cross_fitted(
        lambda x, y: calibration.fit_values(labels, x, y, Goal.parse(goal) if goal else None),
        logits,
        targets,
    )


def of_run(classifier: TextClassifier, data: TaskData) -> list[Evidence]:
    """A classifier's answers to the evaluation sets of its own run.

    Raises:
        PtuneError: The run's data has other labels.
    """
    own = data.for_labels(classifier.labels_)
    if own is None:
        raise PtuneError(
            f"{data.name} has the labels {', '.join(data.labels.names[:5])}, …, and the classifier "
            f"{', '.join(classifier.labels[:5])}, …: the training file has changed. Name a file "
            "with the classifier's labels (--file)."
        )
    data = own
    train = training_texts(data)
    return [
        Evidence.collect(
            classifier,
            text_columns(examples),
            examples[LABEL],
            " ".join(filter(None, [data.name, part])),
            chosen_on=True,
            train=train,
            metrics=data.metrics,
        )
        for part, examples in data.evaluation.items()
    ]


def of_file(
    classifier: TextClassifier,
    file: Path,
    *,
    dialect: Dialect = FOUND,
    slices: Sequence[str] = (),
    data: TaskData | None = None,
    **how: Any,
) -> Evidence:
    """A classifier's answers to a labelled file.

    Args:
        classifier: The classifier.
        file: The file.
        dialect: How it is written.
        slices: Columns by whose values scores are split.
        data: The data of the run. If it has other labels by now, it is not used.
        **how: `columns`, `label_separator` and `skip_unlabelled`, as for `examples_of`.

    Raises:
        PtuneError: The file cannot be read, or has a label that training never saw.
    """
    labels = classifier.labels_
    numbers: list[int] = []
    how |= {"dialect": dialect, "numbers": numbers}
    (found, column), places = texts_to_evaluate(file, labels, **how)
    rows = [numbers[i] for i in places]
    table = read_table(file, dialect, as_it_is=True) if slices else {}
    for name in slices:
        if name not in table:
            raise PtuneError(f"{file} has no column {name!r}; {near(name, table)}.")
    own = None if data is None else data.for_labels(labels)
    train = None if own is None else training_texts(own)
    evidence = Evidence.collect(
        classifier,
        found,
        labels.encode(column),
        file.stem,
        chosen_on=False,
        slices={name: [table[name][row - 1] for row in rows] for name in slices},
        train=train,
        rows=rows,
    )
    learned = set(zip(*train[0], strict=True)) if train else set()
    known = sum(row in learned for row in zip(*found, strict=True))
    if known > MOST_KNOWN * len(column):
        evidence.measured_on += f", but {known:,} of {len(column):,} texts are training texts"
    return evidence


def reference_texts(folder: Path, labels: Labels) -> list[list[str]]:
    """The texts of a run's evaluation sets; those of the training set, if there are few.

    Args:
        folder: The run folder.
        labels: The classifier's by now. Texts of labels that were dropped are left out.

    Raises:
        PtuneError: The run's data is not here.
    """
    data = dataset_of_run(folder)
    if data is None:
        raise PtuneError(
            f"The data of {folder} is not here. Name texts to compare with (--reference)."
        )
    data = data.for_labels(labels) or data
    sets = [text_columns(examples) for examples in data.evaluation.values()]
    if sum(len(columns[0]) for columns in sets) < MIN_REFERENCE:
        sets = [text_columns(data.train)]
    return [list(itertools.chain.from_iterable(parts)) for parts in zip(*sets, strict=True)]


def texts_of(file: Path, columns: Columns, dialect: Dialect) -> list[list[str]]:
    """The texts of a file, which needs no labels, in one column or two.

    Raises:
        PtuneError: It cannot be read, or a text is missing.
    """
    table = read_table(file, dialect)
    found = find_columns(table, columns, file, labelled=False)
    return [texts.check(table[n], Origin.column(n, file)) for n in found.texts]


def training_texts(data: TaskData) -> tuple[list[list[str]], Array]:
    """The texts of a training set, in one column or two, and their targets."""
    return text_columns(data.train), np.asarray(data.train[LABEL])
