"""Texts from files, and predictions to files.

Rows keep their order and their columns; predictions are added as new columns.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import pyarrow
from pyarrow import parquet

from ptune.data import opening, tables
from ptune.data.dataset import PAIR, TEXT
from ptune.data.opening import FOUND, Dialect
from ptune.data.sheets import SHEETS
from ptune.data.tables import Batch, Columns
from ptune.errors import Origin, PtuneError
from ptune.files import json_line
from ptune.inference.bank import PromptBank
from ptune.inference.text_classifier import WINDOW, TextClassifier
from ptune.labels import Prediction
from ptune.texts import Text, as_columns, as_rows, check

# Extensions of files that are written as JSON lines.
JSON_LINES = ("", ".jsonl", ".ndjson", ".json", ".txt")
# Formats with types, rows of a file in memory at a time, and of such a file.
TYPED = ("parquet", "arrow", "feather")
SEPARATORS = {"csv": ",", "tsv": "\t"}
ROWS, TYPED_ROWS = WINDOW, 8 * WINDOW


# Where texts come from.


@dataclass
class Source:
    """Rows with texts to classify.

    Attributes:
        batches: The rows.
        columns: The columns that hold the texts.
        name: Where they come from, for messages.
        names: The columns of a file. ``None``: the texts are from none, or it has no rows.
        asked: The columns that were asked for in that file.
    """

    batches: Iterator[Batch]
    columns: Columns
    name: str
    names: list[str] | None = None
    asked: Columns = field(default_factory=Columns)

    @classmethod
    def of_file(cls, file: Path, columns: Columns, dialect: Dialect = FOUND) -> Source:
        """The rows of a file of any of the formats that `ptune.data.tables` reads.

        Raises:
            PtuneError: The file is damaged (possibly found only when it is read), or the columns
                with the texts cannot be found by their names.
        """
        size = TYPED_ROWS if opening.format_of(file)[1:] in TYPED else ROWS
        batches = tables.read_batches(file, size, dialect)
        first, names, asked = list(itertools.islice(batches, 1)), None, columns
        if first:
            names = _names(first[0])
            columns = tables.find_columns(names, columns, file, labelled=False)
        return cls(itertools.chain(first, batches), columns, str(file), names, asked)

    @classmethod
    def of_texts(cls, texts: Iterable[Text]) -> Source:
        """Texts, or pairs as tuples, as rows. The first rows are read at once.

        Raises:
            PtuneError: Texts and pairs are mixed, or one of them is not a text.
        """
        rest = iter(texts)

        def batches() -> Iterator[Batch]:
            before, pairs = 0, None
            while some := list(itertools.islice(rest, ROWS)):
                origin = Origin("the texts", in_file=True, before=before)
                columns = as_columns(some, pairs, origin)
                pairs = len(columns) == 2
                names = (TEXT, PAIR)[: len(columns)]
                rows = zip(*columns, strict=True)
                yield [dict(zip(names, row, strict=True)) for row in rows]
                before += len(some)

        read = batches()
        first = list(itertools.islice(read, 1))
        pair = PAIR if first and PAIR in first[0][0] else None
        return cls(itertools.chain(first, read), Columns(TEXT, pair), "the texts")

    def read(self) -> Iterator[tuple[Batch, list[Text]]]:
        """Yield rows and their texts, batch by batch.

        Raises:
            PtuneError: A text is empty or missing. The message names the row.
        """
        for batch, (texts,) in self.read_each([self.columns]):
            yield batch, texts

    def read_each(self, each: Sequence[Columns]) -> Iterator[tuple[Batch, list[list[Text]]]]:
        """As `read`, with the texts that several tasks read of the same rows.

        Args:
            each: The columns that hold them.
        """
        before = 0
        for batch in self.batches:
            texts = []
            for columns in each:
                origins = [Origin.column(n, self.name, before=before) for n in columns.texts]
                found = zip(columns.texts, origins, strict=True)
                texts.append(as_rows([check(_column(batch, n), origin) for n, origin in found]))
            yield batch, texts
            before += len(texts[0])

    def columns_for(self, trained: tuple[str, ...]) -> Columns:
        """The columns that hold the texts for a classifier.

        Args:
            trained: The columns that were named for its training.

        Raises:
            PtuneError: They cannot be found by their names.
        """
        if self.names is None:
            return self.columns
        asked = replace(self.asked, trained=trained)
        return tables.find_columns(self.names, asked, self.name, labelled=False)


def example_of(columns: Columns) -> list[Text]:
    """One text or pair: its prediction has the columns of all, if there are no rows."""
    return as_rows([["."] for _ in columns.texts])


def _names(batch: Batch) -> list[str]:
    if isinstance(batch, pyarrow.RecordBatch):
        return list(batch.schema.names)
    return list(dict.fromkeys(name for row in batch for name in row))


def _column(batch: Batch, name: str) -> list[Any]:
    if isinstance(batch, pyarrow.RecordBatch):
        return list(batch.column(name).to_pylist())
    return [row.get(name) for row in batch]


def predictions(
    classifier: TextClassifier, source: Source, min_confidence: float | None = None
) -> Iterator[tuple[Batch, list[Text], list[Prediction]]]:
    """Yield rows, their texts and their predictions, batch by batch.

    Args:
        classifier: The classifier.
        source: The rows.
        min_confidence: As for `TextClassifier.predict`; the label is then `(none)`.

    Raises:
        PtuneError: A text is empty or missing. The message names the row.
    """
    for batch, texts in source.read():
        found = classifier.stream(texts, min_confidence=min_confidence) if texts else []
        yield batch, texts, [classifier.labels_.by_name(prediction) for prediction in found]


# Where predictions go.


class Writer:
    """Writes rows with their predictions.

    The columns of the input are followed by `label`, `score`, `probabilities` and, if the
    classifier knows it, `unfamiliar`. If the input has one of these columns, the new ones are
    called `predicted_label` and so on.

    Attributes:
        mark_truncated: Add a column `truncated`.
    """

    mark_truncated: bool = False
    _prefix: str | None = None

    @property
    def new(self) -> list[str]:
        """The columns that a prediction may get, without a prefix."""
        names = ["label", "score", "probabilities", "unfamiliar"]
        return [*names, *(["truncated"] if self.mark_truncated else [])]

    def write(self, batch: Batch, predicted: list[Prediction]) -> None:
        """Append rows and their predictions."""
        raise NotImplementedError

    def start(self, names: list[str], prediction: Prediction) -> None:
        """Write what comes before the first row.

        Args:
            names: The columns of the input.
            prediction: One like those that would follow.
        """

    def prefix(self, names: Iterable[str], new: Iterable[str]) -> str:
        """The prefix of the new columns, chosen with the first rows.

        Args:
            names: The columns of the input.
            new: The new columns, without a prefix.

        Raises:
            PtuneError: Later rows have a column of that name.
        """
        names, new = set(names), list(new)
        if self._prefix is None:
            self._prefix = ""
            while any(self._prefix + name in names for name in new):
                self._prefix += "predicted_"
        if taken := [name for name in new if self._prefix + name in names]:
            raise PtuneError(
                f"Some rows have a column {self._prefix + taken[0]!r} and the first rows do "
                "not, so it clashes with the predictions. Rename it, or add it to every row."
            )
        return self._prefix


def _rows(batch: Batch) -> list[dict[str, Any]]:
    return batch.to_pylist() if isinstance(batch, pyarrow.RecordBatch) else batch


class Rows(Writer):
    """Writes rows as text."""

    def write(self, batch: Batch, predicted: list[Prediction]) -> None:
        """Append rows and their predictions."""
        p = self.prefix(_names(batch), self.new)
        for row, prediction in zip(_rows(batch), predicted, strict=True):
            self.put(self.added(row, prediction, p))

    def added(self, row: dict[str, Any], prediction: Prediction, prefix: str) -> dict[str, Any]:
        """A row with its prediction."""
        return {**row, **{prefix + name: v for name, v in self.fields(prediction).items()}}

    def put(self, row: dict[str, Any]) -> None:
        """Append a row."""
        raise NotImplementedError

    def header(self, row: dict[str, Any]) -> None:
        """Write what comes before the first row, which has the names of this one."""

    def start(self, names: list[str], prediction: Prediction) -> None:
        """Write what comes before the first row."""
        p = self.prefix(names, self.new)
        self.header(self.added(dict.fromkeys(names), prediction, p))

    def with_tasks(
        self, row: dict[str, Any], predicted: dict[str, Prediction], names: list[str]
    ) -> dict[str, Any]:
        """A row with the predictions of several tasks.

        Args:
            row, predicted: The row, and its predictions by task.
            names: The columns of the rows around it.

        Raises:
            PtuneError: As for `prefix`; or columns of two tasks have the same name.
        """
        new: dict[str, Any] = {}
        for task, prediction in predicted.items():
            own = self.columns(task, prediction)
            if shared := [name for name in own if name in new]:
                raise PtuneError(
                    f"Two tasks have a column {shared[0]!r}. Rename the folder {task!r}, or write "
                    "JSON lines instead (a .jsonl file)."
                )
            new |= own
        p = self.prefix(names, new)
        return {**row, **{p + name: value for name, value in new.items()}}

    def columns(self, task: str, prediction: Prediction) -> dict[str, Any]:
        """The columns of a task's prediction."""
        raise NotImplementedError

    def fields(self, prediction: Prediction) -> dict[str, Any]:
        """The fields of a prediction that are written."""
        found: dict[str, Any] = {
            "label": prediction.label,
            "score": round(prediction.score, 6),
            "probabilities": {k: round(v, 6) for k, v in prediction.probabilities.items()},
        }
        if prediction.unfamiliar is not None:
            found["unfamiliar"] = round(prediction.unfamiliar, 4)
        if self.mark_truncated:
            found["truncated"] = prediction.truncated
        return found


class JsonLines(Rows):
    """Writes one JSON object per line."""

    def __init__(self, out: IO[str]) -> None:
        self.out = out

    def put(self, row: dict[str, Any]) -> None:
        """Append a row."""
        self.out.write(json_line(row) + "\n")

    def columns(self, task: str, prediction: Prediction) -> dict[str, Any]:
        """One column per task, with an object."""
        return {task: self.fields(prediction)}


class Delimited(Rows):
    """Writes CSV or TSV, with one column per label for its probability."""

    def __init__(self, out: IO[str], separator: str) -> None:
        self.out, self.separator = out, separator
        self._writer: csv.DictWriter | None = None

    def added(self, row: dict[str, Any], prediction: Prediction, prefix: str) -> dict[str, Any]:
        """A row with its prediction, and a column for each label."""
        fields = self.fields(prediction)
        probabilities = fields.pop("probabilities")
        row = {**row, **{prefix + name: value for name, value in fields.items()}}
        for name, probability in probabilities.items():
            if isinstance(prediction.label, float):
                break
            while name in row:  # a label may have the name of a column
                name += " (label)"
            row[name] = probability
        return row

    def header(self, row: dict[str, Any]) -> None:
        """Write the names of the columns."""
        self._writer = csv.DictWriter(self.out, list(row), delimiter=self.separator)
        self._writer.writerow({name: in_cell(name) for name in row})

    def put(self, row: dict[str, Any]) -> None:
        """Append a row, with a header before the first one."""
        if self._writer is None:
            self.header(row)
        assert self._writer is not None
        if unknown := [name for name in row if name not in self._writer.fieldnames]:
            raise PtuneError(
                f"Some rows have a column {unknown[0]!r} and the first row does not, so they "
                "do not form a table. Write JSON lines instead (a .jsonl file)."
            )
        self._writer.writerow({name: in_cell(value) for name, value in row.items()})

    def columns(self, task: str, prediction: Prediction) -> dict[str, Any]:
        """The label, the score and so on, each with the name of the task."""
        fields = self.fields(prediction)
        del fields["probabilities"]
        return {task: fields.pop("label"), **{f"{task} {k}": v for k, v in fields.items()}}

    def fields(self, prediction: Prediction) -> dict[str, Any]:
        """What fits in a cell."""
        found = super().fields(prediction)
        if isinstance(found["label"], list):
            found["label"] = joined(found["label"])
        if self.mark_truncated:
            found["truncated"] = str(prediction.truncated).lower()
        return found


class Typed(Writer):
    """Writes a Parquet, Arrow or Feather file. The columns of the input keep their types."""

    def __init__(self, out: IO[bytes], format: str, classifier: TextClassifier) -> None:
        self.out, self.format = out, format
        labels = classifier.labels_
        kind = pyarrow.list_(pyarrow.string()) if labels.is_multi else pyarrow.string()
        self.types = {
            "label": pyarrow.float64() if labels.is_regression else kind,
            "score": pyarrow.float64(),
            "probabilities": pyarrow.struct([(n, pyarrow.float64()) for n in labels.names]),
        }
        if classifier.postprocessing_.unfamiliar is not None:
            self.types["unfamiliar"] = pyarrow.float64()
        self._writer: Any = None

    def write(self, batch: Batch, predicted: list[Prediction]) -> None:
        """Append rows and their predictions as a row group or record batch."""
        assert isinstance(batch, pyarrow.RecordBatch)  # as `check_typed` says
        p = self.prefix(_names(batch), self.new)
        types = self.types | ({"truncated": pyarrow.bool_()} if self.mark_truncated else {})
        for name, kind in types.items():
            column = pyarrow.array([getattr(x, name) for x in predicted], kind)
            batch = batch.append_column(f"{p}{name}", column)
        if self._writer is None:
            kind = parquet.ParquetWriter if self.format == "parquet" else pyarrow.ipc.new_file
            self._writer = kind(self.out, batch.schema)
        self._writer.write_batch(batch)

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.close()


def in_cell(value: Any) -> Any:
    """A value as a cell of a table: lists and objects as JSON, and no lone surrogates."""
    if isinstance(value, list | dict):
        return json_line(value)
    return value.encode(errors="replace").decode() if isinstance(value, str) else value


def joined(labels: Sequence[str]) -> str:
    """Several labels in one cell: `a|b`, or a JSON list if that could be misread."""
    plain = all(label == label.strip() and "|" not in label for label in labels)
    cell = "|".join(labels)
    return cell if plain and cell[:1] != "[" else json.dumps(labels, ensure_ascii=False)


def text_writer(out: IO[str], format: str) -> Rows:
    """A writer of the format `jsonl`, `csv` or `tsv`.

    Raises:
        PtuneError: It is another format.
    """
    if format == "jsonl":
        return JsonLines(out)
    if format not in SEPARATORS:
        expected = ", ".join(("jsonl", *SEPARATORS))
        raise PtuneError(f"There is no format {format!r} of predictions; expected {expected}.")
    return Delimited(out, SEPARATORS[format])


@contextmanager
def text_file(file: Path, format: str) -> Iterator[Rows]:
    """Open a file for rows as text, compressed if its name says so."""
    with (
        opening.created(file) as stream,
        io.TextIOWrapper(stream, encoding="utf-8", newline="") as out,
    ):
        yield text_writer(out, format)


def format_of(file: Path) -> str:
    """The format in which a file is written: from its extension, or JSON lines if it has none.

    Raises:
        PtuneError: The extension is that of another format.
    """
    ending = opening.format_of(file)
    if ending in JSON_LINES:
        return "jsonl"
    if ending[1:] in (*SEPARATORS, *TYPED):
        return ending[1:]
    instead = (
        "Name a .csv file; spreadsheets open it."
        if ending in SHEETS
        else "Name a .csv, .jsonl or .parquet file."
    )
    raise PtuneError(f"Predictions are not written as {ending}. {instead}")


def output_format(file: Path | None, format: str | None) -> str:
    """The format of predictions: the one that is asked for, else the one of the file's name.

    Args:
        file: The file. ``None``: standard output, by default JSON lines.
        format: The format that the user asks for.

    Raises:
        PtuneError: A table is asked for in a file, or the file's name is that of another format.
    """
    if file is None:
        return format or "jsonl"
    if format == "table":
        raise PtuneError(
            f"--format table is for the terminal, and {file} is a file. Leave out --format: the "
            "ending of the name tells the format."
        )
    if format and opening.format_of(file) in tables.FORMATS and format_of(file) != format:
        raise PtuneError(
            f"--format is {format}, and the name of {file} says {format_of(file)}. Leave out "
            "--format, or name another file."
        )
    return format or format_of(file)


def check_typed(format: str, source: Path | None) -> None:
    """Refuse a format with types for texts from anything but a file that has them.

    Args:
        format: The format of the predictions.
        source: The file with the texts. ``None``: they are typed, or on standard input.

    Raises:
        PtuneError: The columns have no types.
    """
    if format in TYPED and (source is None or opening.format_of(source)[1:] not in TYPED):
        raise PtuneError(
            f"A .{format} file can only be written from a Parquet, Arrow or Feather file, whose "
            "columns have types. Name a .jsonl or .csv file."
        )


@contextmanager
def writer(
    file: Path, format: str, classifier: TextClassifier, *, mark_truncated: bool = False
) -> Iterator[Writer]:
    """Open a file for predictions of `classifier`, compressed if its name says so."""
    if format not in TYPED:
        with text_file(file, format) as rows:
            rows.mark_truncated = mark_truncated
            yield rows
        return
    with opening.created(file) as stream, closing(Typed(stream, format, classifier)) as table:
        table.mark_truncated = mark_truncated
        yield table


def write_all(bank: PromptBank, source: Source, out: Rows) -> tuple[int, int]:
    """Classify the texts of `source` with every task of a bank.

    Of a file, each task reads the columns that were named for its training, if none were asked for.

    Returns:
        How many texts there were, and how many at least one task did not read to the end.

    Raises:
        PtuneError: A text is empty or missing. The message names the row.
    """
    count, truncated, names = 0, 0, list[str]()
    labels = {task: bank.task(task).labels_ for task in bank}
    tasks_of: dict[Columns, list[str]] = {}
    for task in labels:
        tasks_of.setdefault(source.columns_for(bank[task].text_columns), []).append(task)

    def rows(batch: list[dict[str, Any]], each: list[list[Text]]) -> Iterator[dict[str, Any]]:
        nonlocal truncated
        answers = map(bank.predict_all, each, tasks_of.values())
        for row, *parts in zip(batch, *answers, strict=True):
            found = {task: p for part in parts for task, p in part.items()}
            truncated += any(prediction.truncated for prediction in found.values())
            named = {task: own.by_name(found[task]) for task, own in labels.items()}
            yield out.with_tasks(row, named, names)

    for batch, each in source.read_each(list(tasks_of)):
        names = _names(batch)
        for row in rows(_rows(batch), each):
            out.put(row)
        count += len(each[0])
    if names and not count:
        out.header(next(rows([dict.fromkeys(names)], list(map(example_of, tasks_of)))))
    return count, truncated


def write(
    classifier: TextClassifier, source: Source, out: Writer, min_confidence: float | None = None
) -> tuple[int, int]:
    """Classify the texts of `source`; return how many there were, and how many were truncated.

    Args:
        classifier, source, min_confidence: As for `predictions`.
        out: Writes the predictions.

    Raises:
        PtuneError: A text is empty or missing. The message names the row.
    """
    count, truncated, names = 0, 0, list[str]()
    for batch, texts, predicted in predictions(classifier, source, min_confidence):
        out.write(batch, predicted)
        names = _names(batch)
        count += len(texts)
        truncated += sum(prediction.truncated for prediction in predicted)
    if names and not count:
        (found,) = classifier.stream(example_of(source.columns))
        out.start(names, classifier.labels_.by_name(found))
    return count, truncated
