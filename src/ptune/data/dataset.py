"""Tasks, files and hub data sets → examples.

Whatever the source, the result is a `Corpus` whose 🤗 data sets have the columns `text`,
`text_pair` (pairs only) and `label`.
"""

from __future__ import annotations

import csv
import difflib
import itertools
import json
import logging
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import numpy as np
import pyarrow
from datasets import Dataset, load_dataset
from pyarrow import parquet

from ptune import compat
from ptune.errors import PtuneError, first_line
from ptune.labels import DEFAULT_METRICS

logger = logging.getLogger(__name__)

TEXT, PAIR, LABEL = "text", "text_pair", "label"
GLUE_ON_THE_HUB = "nyu-mll/glue"


@dataclass(frozen=True)
class GlueTask:
    """A GLUE task: its names on the Hub and in the original TSV folders, and its metrics."""

    folder: str
    question: str  # what is asked, in words
    columns: tuple[str, ...]  # of the text, or of the two texts, on the Hub
    labels: tuple[str, ...]  # in the Hub's order; none: regression
    metrics: tuple[str, ...]
    tsv_columns: tuple[str, ...]  # the same in the TSV files
    tsv_label: str
    # How the TSV file spells the labels, where it does not spell their names.
    tsv_spelling: tuple[str, ...] | None = ("0", "1")
    tsv_header: tuple[str, ...] | None = None  # of files that have no header line
    evaluation: dict[str, str] = field(default_factory=lambda: {"validation": "dev"})
    test: dict[str, str] = field(default_factory=lambda: {"test": "test"})


_FOLLOWS = "does the second sentence follow from the first?"
_MNLI_LABELS = ("entailment", "neutral", "contradiction")
_PAIR = ("sentence1", "sentence2")
GLUE: dict[str, GlueTask] = {
    "cola": GlueTask(
        "CoLA",
        "is the sentence acceptable grammar?",
        ("sentence",),
        ("unacceptable", "acceptable"),
        ("matthews_correlation",),
        ("sentence",),
        "label",
        tsv_header=("source", "label", "mark", "sentence"),
    ),
    "sst2": GlueTask(
        "SST-2",
        "is the review positive or negative?",
        ("sentence",),
        ("negative", "positive"),
        ("accuracy",),
        ("sentence",),
        "label",
    ),
    "mrpc": GlueTask(
        "MRPC",
        "does the second sentence say the same as the first?",
        _PAIR,
        ("not_equivalent", "equivalent"),
        ("accuracy", "f1"),
        ("#1 String", "#2 String"),
        "Quality",
    ),
    "stsb": GlueTask(
        "STS-B",
        "how similar are the two sentences?",
        _PAIR,
        (),
        ("pearson", "spearman"),
        _PAIR,
        "score",
        None,
    ),
    "qqp": GlueTask(
        "QQP",
        "do the two questions ask the same?",
        ("question1", "question2"),
        ("not_duplicate", "duplicate"),
        ("accuracy", "f1"),
        ("question1", "question2"),
        "is_duplicate",
    ),
    "mnli": GlueTask(
        "MNLI",
        _FOLLOWS,
        ("premise", "hypothesis"),
        _MNLI_LABELS,
        ("accuracy",),
        _PAIR,
        "gold_label",
        None,
        evaluation={
            "validation_matched": "dev_matched",
            "validation_mismatched": "dev_mismatched",
        },
        test={"test_matched": "test_matched", "test_mismatched": "test_mismatched"},
    ),
    "qnli": GlueTask(
        "QNLI",
        "does the second sentence answer the question?",
        ("question", "sentence"),
        ("entailment", "not_entailment"),
        ("accuracy",),
        ("question", "sentence"),
        "label",
        None,
    ),
    "rte": GlueTask(
        "RTE",
        _FOLLOWS,
        _PAIR,
        ("entailment", "not_entailment"),
        ("accuracy",),
        _PAIR,
        "label",
        None,
    ),
    "wnli": GlueTask(
        "WNLI", _FOLLOWS, _PAIR, ("not_entailment", "entailment"), ("accuracy",), _PAIR, "label"
    ),
    # The diagnostic set: nothing to train on; a classifier trained on MNLI is tried on it.
    "ax": GlueTask(
        "AX",
        _FOLLOWS,
        ("premise", "hypothesis"),
        _MNLI_LABELS,
        ("matthews_correlation",),
        _PAIR,
        "label",
        None,
        evaluation={},
        test={"test": "diagnostic"},
    ),
}


@dataclass
class Corpus:
    """Examples, and what they are to be learned as.

    Attributes:
        name: For titles and model cards.
        labels: Names in the order of the label numbers; for regression one name.
        problem_type: As in Transformers' configurations.
        metrics: Names from `ptune.labels`.
        train: Examples to learn from; `None` where there are none.
        evaluation: Examples to measure on, by name; the name is ``""`` where there is one set.
        test: Examples without public labels, by name.
        revision: The commit of the data set on the Hub, where it comes from there.
        question: What is asked about a text, in words, where that is known.
    """

    name: str
    labels: list[str]
    problem_type: str
    metrics: tuple[str, ...]
    train: Dataset | None = None
    evaluation: dict[str, Dataset] = field(default_factory=dict)
    test: dict[str, Dataset] = field(default_factory=dict)
    revision: str | None = None
    question: str | None = None

    @property
    def pairs(self) -> bool:
        """Whether the examples to learn from are pairs of texts."""
        return self.train is not None and PAIR in self.train.column_names


# GLUE.


def load_glue(task: str, data_dir: str | Path | None = None) -> Corpus:
    """A GLUE task, from the Hub or from a folder in the original TSV layout.

    Args:
        task: One of `GLUE`.
        data_dir: The folder of the task (with `train.tsv`), or the one above it. ``None``: the
            Hub's `nyu-mll/glue`.

    Raises:
        PtuneError: No such task or file, or the Hub cannot be reached.
    """
    if task not in GLUE:
        raise PtuneError(f"There is no GLUE task {task!r}; {_near(task, GLUE)}.")
    spec = GLUE[task]
    names = {"train": "train", **spec.evaluation, **spec.test}
    if task == "ax":
        del names["train"]
    if data_dir is None:
        try:
            raw = {split: load_dataset(GLUE_ON_THE_HUB, task, split=split) for split in names}
        except (OSError, ValueError) as error:
            reason = first_line(error).rstrip(".")
            raise PtuneError(
                f"GLUE's {task} could not be fetched from the Hub ({reason}). Check "
                "the network, or name a folder of the original files with --data-dir."
            ) from error
        columns, label = spec.columns, "label"
    else:
        folder = _task_folder(Path(data_dir), spec.folder)
        raw = {}
        for split, stem in names.items():
            file = folder / f"{stem}.tsv"
            if file.is_file() or split not in spec.test:
                raw[split] = _read_glue_file(file, spec, labelled=split not in spec.test)
        columns, label = spec.tsv_columns, spec.tsv_label

    def examples(split: str) -> Dataset:
        return _glue_examples(raw[split], f"{task} {split}", spec, columns, label)

    evaluation = {s: s.removeprefix("validation").strip("_") for s in spec.evaluation}
    return Corpus(
        name=f"GLUE {task.upper()}",
        labels=list(spec.labels) or ["score"],
        problem_type="single_label_classification" if spec.labels else "regression",
        metrics=spec.metrics,
        train=examples("train") if "train" in names else None,
        evaluation={short: examples(split) for split, short in evaluation.items()},
        test={
            split.removeprefix("test").strip("_"): examples(split)
            for split in spec.test
            if split in raw
        },
        revision=compat.dataset_commit(next(iter(raw.values())), GLUE_ON_THE_HUB),
        question=spec.question,
    )


def _task_folder(data_dir: Path, folder: str) -> Path:
    if not data_dir.is_dir():
        raise PtuneError(f"There is no folder {data_dir}. {_near_path(data_dir)}".rstrip())
    inner = data_dir / folder
    return inner if inner.is_dir() else data_dir


def _read_glue_file(file: Path, spec: GlueTask, *, labelled: bool) -> Dataset:
    """A TSV file without quoting, with or without a header; lines cut short are left out."""
    rows = [line.split("\t") for line in read_text(file).rstrip("\n").split("\n")]
    first = [cell.strip() for cell in rows[0]]
    wanted = spec.tsv_columns
    if spec.tsv_header and not set(wanted) <= set(first):
        header = list(spec.tsv_header)
    else:
        header, rows = first, rows[1:]
    needed = [*wanted, spec.tsv_label] if labelled else wanted
    if missing := [c for c in needed if c not in header]:
        raise PtuneError(
            f"{file} has the columns {', '.join(header)}; wanted is {missing[0]!r}. Is it the "
            f"original {spec.folder} file of GLUE?"
        )
    kept = [row for row in rows if len(row) >= len(header)]
    if cut := len(rows) - len(kept):
        logger.warning("%s: left out %d of %d lines, which are cut short.", file, cut, len(rows))
    if not kept:
        raise PtuneError(f"{file} holds no examples, only a header. Fetch it again.")
    columns = [c for c in (*wanted, spec.tsv_label) if c in header]
    return Dataset.from_dict(
        {c: [row[header.index(c)].rstrip("\r") for row in kept] for c in columns}
    )


def _glue_examples(
    raw: Dataset, where: str, spec: GlueTask, columns: tuple[str, ...], label: str
) -> Dataset:
    result = {key: list(raw[c]) for key, c in zip((TEXT, PAIR), columns, strict=False)}
    if label in raw.column_names:
        values = list(raw[label])
        if not spec.labels:
            result[LABEL] = _finite(values, where)
        elif all(isinstance(v, int) for v in values):  # the Hub's; -1: not public
            result[LABEL] = values
        else:
            spelling = {s: i for i, s in enumerate(spec.tsv_spelling or spec.labels)}
            if unknown := sorted({str(v) for v in values} - spelling.keys()):
                raise PtuneError(
                    f"{where} has the label {unknown[0]!r}; wanted is one of "
                    f"{', '.join(spelling)}. Is it the original file of GLUE?"
                )
            result[LABEL] = [spelling[v] for v in values]
        if result[LABEL] and set(result[LABEL]) == {-1}:
            del result[LABEL]
    return Dataset.from_dict(result)


# The user's own files.

# Column names that are taken without being asked for, most telling first.
TEXT_NAMES = ("text", "sentence", "message", "content", "body", "review", "utterance", "comment")
PAIR_NAMES = (
    ("text", "text_pair"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("query", "passage"),
)
LABEL_NAMES = (
    "label",
    "labels",
    "category",
    "class",
    "intent",
    "target",
    "sentiment",
    "score",
    "y",
)

FORMATS = (".csv", ".tsv", ".json", ".jsonl", ".parquet")

# Columns of a file, by name. Not a 🤗 data set: Arrow would turn texts that look like dates into
# dates, and refuse a column of both names and numbers.
Table = dict[str, list[Any]]

# A cell that is a number. Not "007", "nan" or "1_000": those are names.
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")


@dataclass(frozen=True)
class Columns:
    """Which columns hold the texts and the label; ``None``: found by name."""

    text: str | None = None
    text_pair: str | None = None
    label: str | None = None


def load_files(
    train_file: str | Path,
    eval_file: str | Path | None = None,
    *,
    columns: Columns = Columns(),
    problem_type: str | None = None,
    label_separator: str = "|",
    seed: int = 0,
) -> Corpus:
    """The user's own CSV, TSV, JSON lines or Parquet files.

    Args:
        train_file: Examples to learn from.
        eval_file: Examples to measure on; ``None``: a fifth of the former, with the same share
            of every label.
        columns: Which columns to read.
        problem_type: As in Transformers' configurations; ``None``: lists of labels are several
            labels a text, numbers with a fraction are regression, all else is one label a text.
        label_separator: Between the labels of one text, where they are one string.
        seed: Of the split.

    Raises:
        PtuneError: A file or column is missing or is not what it should be; or a label of the
            evaluation file never occurs in training.
    """
    raw = read_table(train_file)
    found = find_columns(raw, columns, train_file)
    corpus = corpus_from_lists(
        _texts(raw, found, train_file),
        _values(raw, found, train_file),
        where=f"column {found.label!r} of {train_file}",
        problem_type=problem_type,
        label_separator=label_separator,
    )
    corpus.name = Path(train_file).stem
    if eval_file is None:
        assert corpus.train is not None
        corpus.train, corpus.evaluation[""] = _hold_out(corpus.train, corpus.problem_type, seed)
    else:
        corpus.evaluation[""] = labelled_texts(
            eval_file,
            corpus.labels,
            corpus.problem_type,
            columns=found,
            label_separator=label_separator,
        )
    return corpus


def corpus_from_lists(
    examples: dict[str, list[str]],
    values: list[Any],
    *,
    where: str = "labels",
    problem_type: str | None = None,
    label_separator: str = "|",
) -> Corpus:
    """Texts and label values as a corpus without an evaluation set.

    Args:
        examples: Columns `text` and, for pairs, `text_pair`.
        values: A label value for each.
        where: Where the values come from, for messages.
        problem_type, label_separator: As for `load_files`.

    Raises:
        PtuneError: There are not as many values as texts, or only one label.
    """
    if len(values) != len(examples[TEXT]):
        raise PtuneError(f"There are {len(examples[TEXT])} texts and {len(values)} labels.")
    problem_type = problem_type or _guess_problem_type(values)
    split = _Splitter(label_separator, problem_type)
    values = [split(v) for v in values]
    labels = _label_names(values, problem_type, where)
    numbers = _numbers(values, labels, problem_type, where)
    return Corpus(
        name="texts",
        labels=labels,
        problem_type=problem_type,
        metrics=DEFAULT_METRICS[problem_type],
        train=Dataset.from_dict({**examples, LABEL: numbers}),
    )


def labelled_texts(
    file: str | Path,
    labels: Sequence[str],
    problem_type: str,
    *,
    columns: Columns = Columns(),
    label_separator: str = "|",
) -> Dataset:
    """A labelled file for a classifier that exists, with its label numbers.

    Raises:
        PtuneError: As for `load_files`.
    """
    raw = read_table(file)
    found = find_columns(raw, columns, file)
    examples = _texts(raw, found, file)
    split = _Splitter(label_separator, problem_type)
    values = [split(v) for v in _values(raw, found, file)]
    where = f"column {found.label!r} of {file}"
    examples[LABEL] = _numbers(values, list(labels), problem_type, where)
    return Dataset.from_dict(examples)


def evaluation_sets(
    *,
    task: str | None,
    data_dir: str | Path | None,
    file: str | Path | None,
    columns: Columns,
    labels: Sequence[str],
    problem_type: str,
) -> tuple[dict[str, Dataset], tuple[str, ...]]:
    """What to measure a classifier on: a GLUE task's evaluation sets or a labelled file.

    Returns:
        Data sets by name (``""`` where there is one), and the names of the metrics.

    Raises:
        PtuneError: Neither or both are named, or the labels are not the classifier's.
    """
    if (task is None) == (file is None):
        raise PtuneError("Name what to measure on: either --task or --file.")
    if file is not None:
        dataset = labelled_texts(file, labels, problem_type, columns=columns)
        return {"": dataset}, DEFAULT_METRICS[problem_type]
    assert task is not None
    corpus = load_glue(task, data_dir)
    if not corpus.evaluation:
        raise PtuneError(f"GLUE's {task} has no public labels to measure on; use `ptune predict`.")
    # An adapter of PEFT's, or one trained on label numbers, has no names to compare.
    numbered = all(re.fullmatch(r"(LABEL_)?\d+", name) for name in labels)
    alike = len(corpus.labels) == len(labels) if numbered else set(corpus.labels) == set(labels)
    if corpus.problem_type != problem_type or not alike:
        raise PtuneError(
            f"The classifier knows the labels {', '.join(labels)}, and {task} has "
            f"{', '.join(corpus.labels)}: it was trained on another task."
        )
    if not numbered and corpus.labels != list(labels):
        order = [list(labels).index(name) for name in corpus.labels]
        for name, dataset in corpus.evaluation.items():
            numbers = [order[i] for i in dataset[LABEL]]
            corpus.evaluation[name] = dataset.remove_columns(LABEL).add_column(LABEL, numbers)
    return corpus.evaluation, corpus.metrics


def lines(file: Path, newline: str = "\n") -> Iterator[str]:
    """The lines of a UTF-8 file, with or without a byte-order mark, as they are read.

    Raises:
        PtuneError: It is not there, or is not UTF-8.
    """
    _check_there(file)
    try:
        with file.open(encoding="utf-8-sig", newline=newline) as f:
            yield from f
    except UnicodeDecodeError as error:
        raise PtuneError(_not_utf8(file)) from error


def _check_there(file: Path) -> None:
    if not file.is_file():
        raise PtuneError(f"There is no file {file}. {_near_path(file)}".rstrip())


def _not_utf8(file: Path) -> str:
    with file.open("rb") as f:
        for number, line in enumerate(f, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return (
                    f"{file} is not UTF-8: byte 0x{line[error.start]:02x} in line {number}. "
                    "Convert it, for example with "
                    f"`iconv -f latin1 -t utf-8 {file.name} > utf8-{file.name}`."
                )
    return f"{file} was changed while it was read. Try again."


def read_text(file: Path) -> str:
    """A UTF-8 file, with or without a byte-order mark.

    Raises:
        PtuneError: It is not there, is empty, or is not UTF-8.
    """
    text = "".join(lines(file, newline=""))
    if not text.strip():
        raise PtuneError(f"{file} is empty; wanted are a header and examples.")
    return text


# So many rows of a file at a time, or one batch of a Parquet file, which keeps its types.
Batch: TypeAlias = list[dict[str, Any]] | pyarrow.RecordBatch


def read_batches(file: str | Path, size: int) -> Iterator[Batch]:
    """A CSV, TSV, JSON lines or Parquet file as it is, `size` rows at a time, in flat memory.

    Only a JSON file that is one list is read as a whole. Cells of CSV and TSV files are strings.

    Raises:
        PtuneError: As for `read_table`, but that a file without rows gives none.
    """
    file = Path(file)
    kind = _kind(file)
    if kind == ".parquet":
        yield from _parquet_batches(file, size)
        return
    rows = _records(file) if kind in (".json", ".jsonl") else _named_rows(file)
    while batch := list(itertools.islice(rows, size)):
        yield batch


def read_table(file: str | Path) -> Table:
    """A CSV, TSV, JSON lines or Parquet file as it is.

    Raises:
        PtuneError: It is not there, empty, damaged, or of another format.
    """
    file = Path(file)
    kind = _kind(file)
    if kind != ".parquet" and not any(line.strip() for line in lines(file)):
        raise PtuneError(f"{file} is empty; wanted are a header and examples.")
    if kind == ".parquet":
        batches = [batch.to_pylist() for batch in _parquet_batches(file, 2**16)]
        table = _table(row for batch in batches for row in batch)
    elif kind in (".json", ".jsonl"):
        table = _table(_records(file))
    else:
        table = {name: _typed(cells) for name, cells in _table(_named_rows(file)).items()}
    if not any(table.values()):
        raise PtuneError(f"{file} holds no examples. Add some, or name another file.")
    return table


def _kind(file: Path) -> str:
    """A file's ending.

    Raises:
        PtuneError: It is not one that ptune reads.
    """
    kind = file.suffix.lower()
    if kind not in FORMATS:
        met = f"ends in {file.suffix!r}" if file.suffix else "has no ending that says what it is"
        raise PtuneError(f"{file} {met}; ptune reads {', '.join(FORMATS)}.")
    return kind


def _table(rows: Iterable[dict[str, Any]]) -> Table:
    """Rows as columns; a key that a row has not is ``None`` there."""
    rows = list(rows)
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _named_rows(file: Path) -> Iterator[dict[str, str]]:
    """Rows of CSV (RFC 4180), or of the same with tabs."""
    csv.field_size_limit(2**31 - 1)  # as long as a text may be; the default is 128 KiB
    separator = "," if file.suffix.lower() == ".csv" else "\t"
    reader = csv.reader(lines(file, newline=""), delimiter=separator, strict=True)
    care = (
        'A text with a separator, a quote or a line break belongs in quotes ("), and a quote '
        'inside is doubled (""). JSON lines (.jsonl) need no such care.'
    )
    names: list[str] = []
    started = 1
    try:
        for row in reader:
            if not names:
                names = [name.strip() for name in row]
                if doubled := [name for name, n in Counter(names).items() if n > 1 and name]:
                    raise PtuneError(f"{file} has two columns named {doubled[0]!r}. Rename one.")
            elif row and len(row) != len(names):
                raise PtuneError(
                    f"Line {started} of {file} has {len(row)} cell(s), and the header has "
                    f"{len(names)}. {care}"
                )
            elif row:
                yield dict(zip(names, row, strict=True))
            started = reader.line_num + 1
    except csv.Error as error:
        raise PtuneError(
            f"{file} could not be read as {file.suffix[1:]}: the quoting in line {started} is "
            f"broken ({error}). {care}"
        ) from error


def _typed(cells: list[str]) -> list[Any]:
    """Numbers, where every cell is one; else the cells as they are."""
    if not all(_NUMBER.fullmatch(cell.strip()) for cell in cells):
        return list(cells)
    return [json.loads(cell) for cell in cells]


def _records(file: Path) -> Iterator[dict[str, Any]]:
    """The objects of JSON lines, or of one JSON list."""
    parts = lines(file)
    count = 0
    for number, part in enumerate(parts, 1):
        whole = not count and part.lstrip().startswith("[")
        if whole:
            part += "".join(parts)
        if not part.strip():
            continue
        try:
            found = json.loads(part)
        except json.JSONDecodeError as error:
            raise PtuneError(
                f"{file} could not be read as json: line {number + error.lineno - 1} is broken or "
                f'cut short ({error.msg}). Wanted is an object a line, such as {{"text": "…", '
                '"label": "…"}.'
            ) from error
        for record in found if whole else [found]:
            count += 1
            if not isinstance(record, dict):
                raise PtuneError(
                    f"Example {count} of {file} is {str(record)[:50]!r}; wanted is an object such "
                    'as {"text": "…", "label": "…"}.'
                )
            yield record


def _parquet_batches(file: Path, size: int) -> Iterator[pyarrow.RecordBatch]:
    """At least one batch, which says what columns there are."""
    _check_there(file)
    if not file.stat().st_size:
        raise PtuneError(f"{file} is empty. Write or fetch it again.")
    try:
        # A buffer would hold what has been read until the end.
        with parquet.ParquetFile(file, pre_buffer=False) as f:
            if not f.metadata.num_rows:
                yield pyarrow.RecordBatch.from_pylist([], schema=f.schema_arrow)
            yield from f.iter_batches(size)
    except (pyarrow.ArrowException, OSError) as error:
        reason = first_line(error).rstrip(".")
        raise PtuneError(
            f"{file} could not be read as parquet: {reason}. Is it complete, and is "
            "it what its name says?"
        ) from error


def find_columns(
    names: Iterable[str], asked: Columns, file: str | Path, *, labelled: bool = True
) -> Columns:
    """Which columns to read: those asked for, else those whose names say so.

    Raises:
        PtuneError: One that was asked for is missing, or none can be told from its name.
    """
    names = list(names)
    for name in (asked.text, asked.text_pair, asked.label if labelled else None):
        if name is not None and name not in names:
            raise PtuneError(f"{file} has no column {name!r}; {_near(name, names)}.")
    text, pair, label = asked.text, asked.text_pair, asked.label
    if labelled and label is None:
        label = next((n for n in LABEL_NAMES if n in names and n not in (text, pair)), None)
        if label is None:
            raise PtuneError(
                f"No column of {file} is called like a label ({', '.join(LABEL_NAMES)}); it has "
                f"{', '.join(names)}. Name it with --label-column."
            )
    if text is None:
        free = [n for n in names if n not in (label, pair)]
        text, pair = next(
            ((a, b) for a, b in PAIR_NAMES if a in free and (b == pair if pair else b in free)),
            (None, pair),
        )
    if text is None:
        others = [n for n in free if n not in LABEL_NAMES]
        text = next((n for n in TEXT_NAMES if n in free), others[0] if len(others) == 1 else None)
    if text is None:
        raise PtuneError(
            f"No column of {file} is called like a text ({', '.join(TEXT_NAMES)}); it has "
            f"{', '.join(names)}. Name it with --text-column."
        )
    return Columns(text, pair, label if labelled else None)


def _texts(table: Table, columns: Columns, file: str | Path) -> dict[str, list[Any]]:
    result = {}
    for key, column in ((TEXT, columns.text), (PAIR, columns.text_pair)):
        if column is not None:
            result[key] = check_texts(table[column], f"column {column!r} of {file}")
    return result


def check_texts(values: Iterable[Any], where: str, before: int = 0) -> list[str]:
    """A list of texts, none of them missing, empty or a number.

    Args:
        values: The texts.
        where: What they are, for messages.
        before: How many came before them.

    Raises:
        PtuneError: One is; the message says which.
    """
    values = list(values)
    numbers = [v for v in values if isinstance(v, int | float)]
    if numbers and len(numbers) == sum(v is not None for v in values):
        raise PtuneError(
            f"The {where} holds numbers such as {numbers[0]}; wanted is text. Is it the right "
            "column? Name another with --text-column."
        )
    if wrong := [i for i, v in enumerate(values) if not isinstance(v, str) or not v.strip()]:
        shown = ", ".join(str(before + i + 1) for i in wrong[:5])
        shown += ", …" if len(wrong) > 5 else ""
        raise PtuneError(
            f"The {where} has {len(wrong)} empty, missing or non-text value(s), in example {shown} "
            f"of {before + len(values)}. Fill them in or leave those examples out."
        )
    return values


def _values(table: Table, columns: Columns, file: str | Path) -> list[Any]:
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


def _guess_problem_type(values: list[Any]) -> str:
    if any(isinstance(v, list) for v in values):
        return "multi_label_classification"
    numeric = all(isinstance(v, int | float) for v in values)
    if numeric and not all(float(v).is_integer() for v in values):
        return "regression"
    return "single_label_classification"


class _Splitter:
    """One label value as the problem type wants it: a list, a number or a name."""

    def __init__(self, separator: str, problem_type: str) -> None:
        self.separator = separator
        self.problem_type = problem_type

    def __call__(self, value: Any) -> Any:
        if self.problem_type == "multi_label_classification":
            parts = value.split(self.separator) if isinstance(value, str) else value
            parts = parts if isinstance(parts, list) else [parts]
            return [str(p).strip() for p in parts if str(p).strip()]
        if self.problem_type == "regression":
            return value
        return label_name(value)


def label_name(value: Any) -> str:
    """A label value as a name: ``1.0`` and ``1`` are one label."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


@contextmanager
def quiet() -> Iterator[None]:
    """Without 🤗 Datasets' bars: ptune shows its own."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _label_names(values: list[Any], problem_type: str, where: str) -> list[str]:
    if problem_type == "regression":
        return ["score"]
    several = problem_type == "multi_label_classification"
    names = {n for v in values for n in v} if several else set(values)
    if len(names) < 2:
        raise PtuneError(
            f"Every example has the label {next(iter(names), '(none)')!r} ({where}). A classifier "
            "needs at least two. Is it the right column (--label-column)?"
        )
    if len(names) > max(100, len(values) // 2):
        raise PtuneError(
            f"There are {len(names)} different labels in {len(values)} examples ({where}). Is it "
            "the right column (--label-column)? Numbers to be predicted as numbers want "
            "--problem-type regression."
        )
    numeric = all(n.lstrip("-").isdigit() for n in names)
    return sorted(names, key=int) if numeric else sorted(names)


def _numbers(values: list[Any], labels: list[str], problem_type: str, where: str) -> list[Any]:
    if problem_type == "regression":
        return _finite(values, where)
    number = {name: i for i, name in enumerate(labels)}
    several = problem_type == "multi_label_classification"
    names = Counter(n for v in values for n in (v if several else [v]))
    if unknown := sorted(names.keys() - number.keys()):
        raise PtuneError(
            f"The label {unknown[0]!r} occurs {names[unknown[0]]} time(s) ({where}), and training "
            f"never saw it; {_near(unknown[0], labels)}."
        )
    if several:
        return [[float(name in v) for name in labels] for v in values]
    return [number[v] for v in values]


def _finite(values: list[Any], where: str) -> list[float]:
    numbers = []
    for i, value in enumerate(values):
        try:
            numbers.append(float(value))
        except (TypeError, ValueError):
            numbers.append(math.nan)
        if not math.isfinite(numbers[-1]):
            raise PtuneError(
                f"Regression wants numbers as labels ({where}); example {i + 1} has {value!r}. "
                "Correct it or leave that example out."
            )
    return numbers


def _hold_out(dataset: Dataset, problem_type: str, seed: int) -> tuple[Dataset, Dataset]:
    """Four fifths to train on, one fifth to measure on; a label that occurs once is trained on."""
    counts = Counter(dataset[LABEL]) if problem_type == "single_label_classification" else Counter()
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


def few_examples(corpus: Corpus, per_label: int, seed: int) -> Corpus:
    """The corpus with only so many training examples of each label, drawn at random.

    A label that has fewer keeps what it has. The evaluation sets stay whole.

    Raises:
        PtuneError: It is not one label a text, so that there are no examples "of a label".
    """
    if corpus.problem_type != "single_label_classification" or corpus.train is None:
        raise PtuneError(
            f"So many examples of each label can only be drawn where a text has one label; "
            f"{corpus.name} is {corpus.problem_type}."
        )
    labels = np.asarray(corpus.train[LABEL])
    order = np.random.default_rng(seed).permutation(len(labels))
    chosen = [order[labels[order] == label][:per_label] for label in np.unique(labels)]
    rows = np.sort(np.concatenate(chosen)).tolist()
    return replace(corpus, train=corpus.train.select(rows))


def _near(name: str, known: Iterable[str]) -> str:
    """The start of a next step for a name that is not there."""
    known = list(known)
    close = difflib.get_close_matches(name.lower(), [k.lower() for k in known], n=1, cutoff=0.6)
    guess = next((k for k in known if close and k.lower() == close[0]), None)
    listed = ", ".join(known[:20]) + (", …" if len(known) > 20 else "")
    return f"did you mean {guess!r}? There are: {listed}" if guess else f"there are: {listed}"


def _near_path(path: Path) -> str:
    parent = path.parent
    if not parent.is_dir():
        return f"There is no folder {parent} either."
    close = difflib.get_close_matches(path.name, [p.name for p in parent.iterdir()], n=1)
    return f"Did you mean {parent / close[0]}?" if close else "Check the path."
