"""GLUE tasks, from the Hub or from a folder of the original TSV files."""

from __future__ import annotations

import logging
import re
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset

from ptune import compat
from ptune.data.dataset import (
    LABEL,
    PAIR,
    TEXT,
    Examples,
    TaskData,
    text_columns,
    texts_to_evaluate,
    that_count,
)
from ptune.data.opening import FOUND, Dialect
from ptune.data.splits import evaluation_split
from ptune.data.tables import read_text
from ptune.errors import Origin, PtuneError, first_line, near
from ptune.files import near_path
from ptune.labels import REGRESSION, Labels, as_numbers, known_names, read

logger = logging.getLogger(__name__)

GLUE_ON_THE_HUB = "nyu-mll/glue"


_FOLLOWS = "does the second sentence follow from the first?"
_MNLI_LABELS = ("entailment", "neutral", "contradiction")
_PAIR = ("sentence1", "sentence2")


@dataclass(frozen=True)
class GlueTask:
    """A GLUE task: its names on the Hub and in the original TSV folders, and its metrics.

    Attributes:
        folder: Its folder in GLUE's zip files.
        question: What is asked about a text, in words.
        labels: Label names in the Hub's order; none for a regression.
        columns: Column of the text, or of the two texts, on the Hub.
        metrics: Names from `ptune.labels`.
        tsv_columns: Like `columns`, but in the TSV files; ``None``: the same.
        tsv_label: The label's column in the TSV files.
        tsv_spelling: The labels in the TSV files; ``None``: their names.
        tsv_header: Column names of TSV files that have no header line.
        evaluation: Evaluation splits on the Hub, with the names of their TSV files.
        test: Test splits on the Hub, with the names of their TSV files.
    """

    folder: str
    question: str
    labels: tuple[str, ...]
    columns: tuple[str, ...] = _PAIR
    metrics: tuple[str, ...] = ("accuracy",)
    _: KW_ONLY
    tsv_columns: tuple[str, ...] | None = None
    tsv_label: str = "label"
    tsv_spelling: tuple[str, ...] | None = ("0", "1")
    tsv_header: tuple[str, ...] | None = None
    evaluation: dict[str, str] = field(default_factory=lambda: {"validation": "dev"})
    test: dict[str, str] = field(default_factory=lambda: {"test": "test"})


GLUE: dict[str, GlueTask] = {
    "cola": GlueTask(
        "CoLA",
        "is the sentence acceptable grammar?",
        ("unacceptable", "acceptable"),
        ("sentence",),
        ("matthews_correlation",),
        tsv_header=("source", "label", "mark", "sentence"),
    ),
    "sst2": GlueTask(
        "SST-2", "is the review positive or negative?", ("negative", "positive"), ("sentence",)
    ),
    "mrpc": GlueTask(
        "MRPC",
        "does the second sentence say the same as the first?",
        ("not_equivalent", "equivalent"),
        metrics=("accuracy", "f1"),
        tsv_columns=("#1 String", "#2 String"),
        tsv_label="Quality",
    ),
    "stsb": GlueTask(
        "STS-B",
        "how similar are the two sentences?",
        (),
        metrics=("pearson", "spearman"),
        tsv_label="score",
    ),
    "qqp": GlueTask(
        "QQP",
        "do the two questions ask the same?",
        ("not_duplicate", "duplicate"),
        ("question1", "question2"),
        ("accuracy", "f1"),
        tsv_label="is_duplicate",
    ),
    "mnli": GlueTask(
        "MNLI",
        _FOLLOWS,
        _MNLI_LABELS,
        ("premise", "hypothesis"),
        tsv_columns=_PAIR,
        tsv_label="gold_label",
        tsv_spelling=None,
        evaluation={
            "validation_matched": "dev_matched",
            "validation_mismatched": "dev_mismatched",
        },
        test={"test_matched": "test_matched", "test_mismatched": "test_mismatched"},
    ),
    "qnli": GlueTask(
        "QNLI",
        "does the second sentence answer the question?",
        ("entailment", "not_entailment"),
        ("question", "sentence"),
        tsv_spelling=None,
    ),
    "rte": GlueTask("RTE", _FOLLOWS, ("entailment", "not_entailment"), tsv_spelling=None),
    "wnli": GlueTask("WNLI", _FOLLOWS, ("not_entailment", "entailment")),
    # The diagnostic set has nothing to train on. It is for classifiers trained on MNLI.
    "ax": GlueTask(
        "AX",
        _FOLLOWS,
        _MNLI_LABELS,
        ("premise", "hypothesis"),
        ("matthews_correlation",),
        tsv_columns=_PAIR,
        tsv_spelling=None,
        evaluation={},
        test={"test": "diagnostic"},
    ),
}


def load_glue(task: str, data_dir: str | Path | None = None) -> TaskData:
    """A GLUE task, from the Hub or from a folder in the original TSV layout.

    Args:
        task: One of `GLUE`.
        data_dir: The folder of the task (with `train.tsv`), or its parent. ``None``: the Hub's
            `nyu-mll/glue`.

    Raises:
        PtuneError: There is no such task or file, or the Hub cannot be reached.
    """
    if task not in GLUE:
        raise PtuneError(f"There is no GLUE task {task!r}; {near(task, GLUE)}.")
    spec = GLUE[task]
    raw = _from_hub(task, spec) if data_dir is None else _from_folder(task, spec, Path(data_dir))
    on_hub = data_dir is None
    columns, label = (spec.columns, "label") if on_hub else _in_files(spec)

    def examples(split: str) -> Dataset:
        return _examples(raw[split], f"{task} {split}", spec, columns, label)

    nothing: dict[str, Any] = {TEXT: [], PAIR: [], LABEL: []}
    return TaskData(
        name=f"GLUE {task.upper()}",
        labels=Labels(spec.labels) if spec.labels else Labels(("score",), REGRESSION),
        metrics=spec.metrics,
        train=examples("train") if "train" in raw else Dataset.from_dict(nothing),
        evaluation={_short(s, "validation"): examples(s) for s in spec.evaluation},
        test={_short(s, "test"): examples(s) for s in spec.test if s in raw},
        revision=compat.dataset_commit(next(iter(raw.values())), GLUE_ON_THE_HUB),
        question=spec.question,
    )


def _short(split: str, kind: str) -> str:
    return split.removeprefix(kind).strip("_")


def _in_files(spec: GlueTask) -> tuple[tuple[str, ...], str]:
    """The columns of the texts and of the label in the TSV files."""
    return spec.tsv_columns or spec.columns, spec.tsv_label


def _splits(task: str, spec: GlueTask) -> dict[str, str]:
    """The splits of a task, with the names of their TSV files."""
    train = {} if task == "ax" else {"train": "train"}
    return {**train, **spec.evaluation, **spec.test}


def _from_hub(task: str, spec: GlueTask) -> dict[str, Dataset]:
    try:
        return {
            split: load_dataset(GLUE_ON_THE_HUB, task, split=split) for split in _splits(task, spec)
        }
    except (OSError, ValueError) as error:
        reason = first_line(error).rstrip(".")
        raise PtuneError(
            f"GLUE's {task} could not be downloaded from the Hub ({reason}). Check the network, or "
            "name a folder of the original files with --data-dir."
        ) from error


def _from_folder(task: str, spec: GlueTask, data_dir: Path) -> dict[str, Dataset]:
    if not data_dir.is_dir():
        raise PtuneError(f"There is no folder {data_dir}. {near_path(data_dir)}".rstrip())
    inner = data_dir / spec.folder
    folder = inner if inner.is_dir() else data_dir
    raw = {}
    for split, stem in _splits(task, spec).items():
        file = folder / f"{stem}.tsv"
        if file.is_file() or split not in spec.test:
            raw[split] = _read_file(file, spec, labelled=split not in spec.test)
    return raw


def _read_file(file: Path, spec: GlueTask, *, labelled: bool) -> Dataset:
    """A TSV file without quoting, with or without a header. Truncated lines are left out."""
    rows = [line.split("\t") for line in read_text(file).rstrip("\n").split("\n")]
    first = [cell.strip() for cell in rows[0]]
    texts, label = _in_files(spec)
    if spec.tsv_header and not set(texts) <= set(first):
        header = list(spec.tsv_header)
    else:
        header, rows = first, rows[1:]
    needed = [*texts, label] if labelled else texts
    if missing := [c for c in needed if c not in header]:
        raise PtuneError(
            f"{file} has the columns {', '.join(header)}, but not {missing[0]!r}. Is it the "
            f"original {spec.folder} file of GLUE?"
        )
    kept = [row for row in rows if len(row) >= len(header)]
    if cut := len(rows) - len(kept):
        logger.warning("%s: left out %d of %d lines, which are truncated.", file, cut, len(rows))
    if not kept:
        raise PtuneError(f"{file} holds no examples, only a header. Download it again.")
    columns = [c for c in (*texts, label) if c in header]
    return Dataset.from_dict(
        {c: [row[header.index(c)].rstrip("\r") for row in kept] for c in columns}
    )


def _examples(
    raw: Dataset, where: str, spec: GlueTask, columns: tuple[str, ...], label: str
) -> Dataset:
    result = {key: list(raw[c]) for key, c in zip((TEXT, PAIR), columns, strict=False)}
    if label in raw.column_names:
        values = list(raw[label])
        if not spec.labels:
            result[LABEL] = as_numbers(values, Origin(where, in_file=True))
        elif all(isinstance(v, int) for v in values):  # from the Hub
            result[LABEL] = values
        else:
            spelling = {s: i for i, s in enumerate(spec.tsv_spelling or spec.labels)}
            if unknown := sorted({str(v) for v in values} - spelling.keys()):
                raise PtuneError(
                    f"{where} has the label {unknown[0]!r}. Expected one of "
                    f"{', '.join(spelling)}. Is it the original file of GLUE?"
                )
            result[LABEL] = [spelling[v] for v in values]
        if result[LABEL] and set(result[LABEL]) == {-1}:  # the labels are not public
            del result[LABEL]
    return Dataset.from_dict(result)


def _order(own: Labels, other: Labels) -> list[int] | None:
    """The position of each label in another classifier's order of the same labels.

    An adapter written by PEFT, or trained on label numbers, has numbered labels. They are in
    this order if there are as many. ``None``: the labels are not the same.
    """
    if own.kind != other.kind or len(own) != len(other):
        return None
    if all(re.fullmatch(r"(LABEL_)?\d+", name) for name in other.names):
        return list(range(len(own)))
    if set(own.names) != set(other.names):
        return None
    return [other.names.index(name) for name in own.names]


def evaluation_sets(
    labels: Labels,
    *,
    task: str | None = None,
    data_dir: str | Path | None = None,
    file: str | Path | None = None,
    dialect: Dialect = FOUND,
    dataset: str | None = None,
    dataset_config: str | None = None,
    split: str | None = None,
    **how: Any,
) -> tuple[dict[str, Examples], tuple[str, ...]]:
    """What to evaluate a classifier on: a GLUE task, a labelled file or a split.

    Args:
        labels: The classifier's.
        task, data_dir: As for `load_glue`.
        file, dialect: As for `labelled_texts`.
        dataset, dataset_config, split: As for `evaluation_split`.
        **how: Other arguments of `examples_of`.

    Returns:
        Examples by name (``""`` if there is only one set), and the names of the metrics.

    Raises:
        PtuneError: None or two are named, or the labels are not the classifier's.
    """
    if sum(source is not None for source in (task, file, dataset)) != 1:
        raise PtuneError("Name what to evaluate on: --task, --file or --dataset, and one only.")
    if file is not None:
        return {"": texts_to_evaluate(file, labels, dialect=dialect, **how)[0]}, labels.metrics
    if dataset is not None:
        how |= {"problem_type": labels.kind, "known": known_names(labels)}
        examples = evaluation_split(dataset, dataset_config, split, **how)
        return {"": that_count(examples, labels)[0]}, labels.metrics
    assert task is not None
    data = load_glue(task, data_dir)
    if not data.evaluation:
        raise PtuneError(f"GLUE's {task} has no public labels to evaluate on; use `ptune predict`.")
    order = _order(data.labels, labels)
    if order is None:
        raise PtuneError(
            f"The classifier has the labels {', '.join(labels.names)}, and {task} has "
            f"{', '.join(data.labels.names)}: it was trained on another task."
        )
    sets = {}
    for name, examples in data.evaluation.items():
        targets = list(examples[LABEL])
        if not labels.is_regression:
            targets = [labels.values[order[i]] for i in targets]
        sets[name] = text_columns(examples), read(targets, Origin(f"the labels of {task}"))
    return sets, data.metrics
