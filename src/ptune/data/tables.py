"""Files of examples: reading them, and finding the columns of texts and labels."""

from __future__ import annotations

import csv
import difflib
import itertools
import json
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow
from pyarrow import parquet

from ptune.errors import PtuneError, first_line, near

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


@dataclass(frozen=True)
class Columns:
    """Which columns hold the texts and the label; ``None``: found by name."""

    text: str | None = None
    text_pair: str | None = None
    label: str | None = None


BY_NAME = Columns()


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
        raise PtuneError(f"There is no file {file}. {near_path(file)}".rstrip())


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
        raise PtuneError(f"{file} is empty. Expected a header and examples.")
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
        raise PtuneError(f"{file} is empty. Expected a header and examples.")
    if kind == ".parquet":
        batches = [batch.to_pylist() for batch in _parquet_batches(file, 2**16)]
        table = _table(row for batch in batches for row in batch)
    elif kind in (".json", ".jsonl"):
        table = _table(_records(file))
    else:
        table = _table(_named_rows(file, repair=True))
    if not any(table.values()):
        raise PtuneError(f"{file} holds no examples. Add some, or name another file.")
    return table


def is_typed(file: str | Path) -> bool:
    """True if a file's format has types; CSV and TSV have only text."""
    return Path(file).suffix.lower() not in (".csv", ".tsv")


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


def _named_rows(file: Path, *, repair: bool = False) -> Iterator[dict[str, str]]:
    """Rows of CSV (RFC 4180), or of the same with tabs.

    Args:
        file: The file.
        repair: In a file of texts and labels, put together a text that has separators and no
            quotes. This needs all rows, and yields those rows last.
    """
    csv.field_size_limit(2**31 - 1)  # as long as a text may be; the default is 128 KiB
    separator = "," if file.suffix.lower() == ".csv" else "\t"
    reader = csv.reader(lines(file, newline=""), delimiter=separator, strict=True)
    care = (
        'A text with a separator, a quote or a line break belongs in quotes ("), and a quote '
        'inside is doubled (""). JSON lines (.jsonl) need no such care.'
    )
    names: list[str] = []
    ragged: list[tuple[int, list[str]]] = []
    labels: Counter[str] = Counter()
    started = 1

    def wrong(line: int, row: list[str]) -> PtuneError:
        return PtuneError(
            f"Line {line} of {file} has {len(row)} cell(s), and the header has {len(names)}. {care}"
        )

    try:
        for row in reader:
            if not names:
                names = [name.strip() for name in row]
                if doubled := [name for name, n in Counter(names).items() if n > 1 and name]:
                    raise PtuneError(f"{file} has two columns named {doubled[0]!r}. Rename one.")
            elif repair and len(row) > len(names) == 2:
                ragged.append((started, row))
                labels[row[-1]] += 1
            elif row and len(row) != len(names):
                raise wrong(started, row)
            elif row:
                labels[row[-1]] += repair
                yield dict(zip(names, row, strict=True))
            started = reader.line_num + 1
    except csv.Error as error:
        raise PtuneError(
            f"{file} could not be read as {file.suffix[1:]}: the quoting in line {started} is "
            f"broken ({error}). {care}"
        ) from error
    if ragged and not (len(labels) > 1 and all(labels[row[-1]] > 1 for _, row in ragged)):
        raise wrong(*ragged[0])
    for _, row in ragged:
        yield dict(zip(names, (separator.join(row[:-1]), row[-1]), strict=True))
    if ragged:
        warnings.warn(
            f"{len(ragged)} rows of {file} have more cells than the header, the first in line "
            f"{ragged[0][0]}. The separators were taken as part of the texts. Put texts in quotes "
            'to be sure (").',
            stacklevel=2,
        )


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
                    f"Example {count} of {file} is {str(record)[:50]!r}. Expected an object such "
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
            raise PtuneError(f"{file} has no column {name!r}; {near(name, names)}.")
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


def near_path(path: Path) -> str:
    """A file of a similar name, as the end of a message."""
    parent = path.parent
    if not parent.is_dir():
        return f"There is no folder {parent} either."
    close = difflib.get_close_matches(path.name, [p.name for p in parent.iterdir()], n=1)
    return f"Did you mean {parent / close[0]}?" if close else "Check the path."
