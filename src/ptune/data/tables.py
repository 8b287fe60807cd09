"""Files of examples: reading them, and finding the columns of texts and labels."""

from __future__ import annotations

import csv
import datetime
import io
import itertools
import json
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow
from pyarrow import feather, parquet

from ptune.data.opening import (
    DELIMITERS,
    FOUND,
    OLD_EXCEL,
    Dialect,
    delimiter_of,
    format_of,
    lines,
    opened,
)
from ptune.data.quotes import warn_of_joined
from ptune.data.sheets import SHEETS, sheet_rows
from ptune.errors import Origin, PtuneError, counted, cut, first_line, listed, near
from ptune.files import SETTINGS_NAME, read_if_there
from ptune.labels import LABEL_NAMES, NO_LABEL

# Names of columns that hold texts, in order of preference.
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

_JSON = (".json", ".jsonl", ".ndjson")
FORMATS = (".csv", ".tsv", *_JSON, ".parquet", ".arrow", ".feather", *SHEETS)

# Columns of a file, by name. Not a 🤗 dataset: Arrow would turn texts that look like dates into
# dates, and reject a column of both names and numbers.
Table = dict[str, list[Any]]


@dataclass(frozen=True)
class Columns:
    """Which columns hold the texts and the label; ``None``: found by name.

    Attributes:
        text, text_pair, label: Names of columns.
        indicators: Names of columns of zeros and ones, one for each label, in place of `label`.
        trained: Names of columns that were named for training. If none is named now, they hold the
            texts of a file that has them.
        trained_labels: The column with the label that was named for training, or the columns of
            zeros and ones. They are used in the same way.
        trained_separator: What separated the labels of a text in training. If none is named now,
            it separates those of cells that have it.
    """

    text: str | None = None
    text_pair: str | None = None
    label: str | None = None
    indicators: tuple[str, ...] | None = None
    trained: tuple[str, ...] = field(default=(), compare=False)
    trained_labels: str | tuple[str, ...] = field(default=(), compare=False)
    trained_separator: str | None = field(default=None, compare=False)

    @property
    def texts(self) -> list[str]:
        """The columns with the texts, one or two."""
        return [name for name in (self.text, self.text_pair) if name is not None]

    @property
    def labels(self) -> list[str]:
        """The column with the label, or those of zeros and ones."""
        return list(self.indicators or ([] if self.label is None else [self.label]))

    def as_in_run(self, folder: str | Path) -> Columns:
        """With what was named for the labels of a run; as they are if this is no run's folder."""
        written: dict[str, Any] = {}
        with suppress(PtuneError):  # of a file that is damaged, or no run's
            written = read_if_there(Path(folder) / SETTINGS_NAME)
        one, several = written.get("label_column"), written.get("indicator_column")
        names = tuple(map(str, several)) if isinstance(several, list) else ()
        separator = written.get("label_separator")
        return replace(
            self,
            trained_labels=one if isinstance(one, str) else names,
            trained_separator=separator if isinstance(separator, str) else None,
        )


BY_NAME = Columns()


def read_text(file: Path) -> str:
    """A UTF-8 file, with or without a byte-order mark.

    Raises:
        PtuneError: It is not there, is empty, or is not UTF-8.
    """
    text = "".join(lines(file, newline=""))
    if not text.strip():
        raise PtuneError(f"{file} is empty. Expected a header and examples.")
    return text


# The line of a row, and its cells.
Ragged: TypeAlias = tuple[int, list[str]]

_CARE = (
    'A text with a separator, a quote or a line break belongs in quotes ("), and a quote inside is '
    'doubled (""). If quotes are part of the texts, use --no-quotes. JSON lines (.jsonl) need no '
    "such care."
)

# Some rows of a file, or one batch of a Parquet file, which keeps its types.
Batch: TypeAlias = list[dict[str, Any]] | pyarrow.RecordBatch


def read_batches(file: str | Path, size: int, dialect: Dialect = FOUND) -> Iterator[Batch]:
    """A file of any of `FORMATS` as it is, `size` rows at a time.

    Memory stays flat.

    Only a JSON file that is one list is read as a whole. Cells of CSV and TSV files are strings.

    Raises:
        PtuneError: As for `read_table`, but that a file with a header and no rows gives one empty
            Arrow batch, with the names of the columns.
    """
    file = Path(file)
    kind = _kind(file)
    if kind in _ARROW:
        yield from _typed_batches(file, size)
        return
    if kind in _JSON:
        records = _records(file, dialect)
        while batch := list(itertools.islice(records, size)):
            yield batch
        return
    separator = None if kind in SHEETS else delimiter_of(file, dialect)
    rows = _cells(file, dialect, separator)
    names, any_rows, before = next(rows, []), False, 0
    # `strict` would take a tenth of the time; every row is as long as the header.
    while batch := [dict(zip(names, row)) for row in itertools.islice(rows, size)]:  # noqa: B905
        any_rows = True
        if separator and warn_of_joined(
            {name: [row[name] for row in batch] for name in names}, file, separator, before
        ):
            separator = None  # a warning is enough
        yield batch
        before += len(batch)
    if names and not any_rows:
        schema = pyarrow.schema([(name, pyarrow.string()) for name in names])
        yield pyarrow.RecordBatch.from_pylist([], schema=schema)


def read_table(file: str | Path, dialect: Dialect = FOUND, *, as_it_is: bool = False) -> Table:
    """A file of any of `FORMATS`.

    Args:
        file: The file.
        dialect: How it is written.
        as_it_is: Keep rows that repeat the header. Otherwise, a warning names them.

    Raises:
        PtuneError: It is not there, empty, damaged, or of another format.
    """
    file = Path(file)
    kind = _kind(file)
    is_text = kind not in (*_ARROW, *SHEETS)
    if is_text and not any(line.strip() for line in lines(file, dialect)):
        raise PtuneError(f"{file} is empty. Expected a header and examples.")
    if kind in _ARROW:
        batches = [batch.to_pylist() for batch in _typed_batches(file, 2**16)]
        table = _table(row for batch in batches for row in batch)
    elif kind in _JSON:
        table = _table(_records(file, dialect))
        _check_rows(table, file)
    else:
        ragged: list[Ragged] = []
        separator = delimiter_of(file, dialect) if is_text else None
        rows = _cells(file, dialect, separator, ragged)
        table = {name: [] for name in next(rows, [])}
        while some := list(itertools.islice(rows, 2**8)):  # many lists are slow to collect
            for column, cells in zip(table.values(), zip(*some, strict=True), strict=True):
                column.extend(cells)
        if ragged:  # not in a sheet
            _check_repaired(table, ragged, file)
        if separator:
            warn_of_joined(table, file, separator)
    if not any(table.values()):
        raise PtuneError(f"{file} holds no examples. Add some, or name another file.")
    return table if as_it_is else without_headers(table, header_rows(table), file)


def _check_rows(table: Table, file: Path) -> None:
    """Refuse a JSON file that is one object with the columns, or with the list of examples."""
    if table and all(
        len(cells) == 1 and isinstance(cells[0], list | dict) for cells in table.values()
    ):
        raise PtuneError(
            f"{file} is one object ({listed(list(table))}); expected one object per line, or a "
            'list of objects, such as {"text": "…", "label": "…"}. pandas writes lines with '
            'to_json(orient="records", lines=True).'
        )


def header_rows(table: Table) -> list[int]:
    """Positions of the rows that repeat the header, as in files that were joined."""
    names = list(table)
    if len(names) < 2 or names == _numbered(names) or names[0] not in table[names[0]]:
        return []
    rows = zip(*table.values(), strict=True)
    return [i for i, row in enumerate(rows) if [str(cell).strip() for cell in row] == names]


def without_headers(table: Table, found: list[int], file: str | Path) -> Table:
    """A table without what `header_rows` has found in it; a warning names these rows."""
    if not found:
        return table
    repeat = counted(len(found), f"row of {file} repeats", f"rows of {file} repeat")
    gone, them = ("It is", "it") if len(found) == 1 else ("They are", "them")
    warnings.warn(
        f"{repeat} its header, at {Origin(str(file), in_file=True).at(found)}. {gone} left out, "
        f"and further messages count the rows without {them}.",
        stacklevel=3,
    )
    headers = set(found)
    return {name: [c for i, c in enumerate(own) if i not in headers] for name, own in table.items()}


def is_typed(file: str | Path) -> bool:
    """True if a file's format has types; CSV, TSV and sheets have only text."""
    return format_of(file) not in (".csv", ".tsv", *SHEETS)


def _kind(file: Path) -> str:
    """A file's ending.

    Raises:
        PtuneError: It is not one that ptune reads.
    """
    kind = format_of(file)
    if str(file) == "-":
        raise PtuneError(
            "Standard input is not read as a table. Write it to a file and name that, or give "
            "`ptune predict` the texts as lines, without --file."
        )
    if kind not in FORMATS:
        met = f"ends in {file.suffix!r}" if file.suffix else "has no ending that says what it is"
        met = "is a folder" if file.is_dir() else met
        fix = f" For a text in each line: `ptune predict … < {file}`." if kind == ".txt" else ""
        if kind == ".xls" and file.is_file():
            met, fix = f"is {OLD_EXCEL}", " Save it as .xlsx."
        raise PtuneError(f"{file} {met}; ptune reads {', '.join(FORMATS)}.{fix}")
    if file.is_file():
        with file.open("rb") as stream:
            start = stream.read(64).lstrip().lower()
        for magic, what in _NO_DATA.items():
            if start.startswith(magic):
                raise PtuneError(f"{file} is {what}.")
    return kind


# What downloads write in place of the file that was meant.
_WEB_PAGE = "a web page. Download the file itself (on GitHub: Raw, on the Hub: download)"
_NO_DATA = {
    b"<!doctype html": _WEB_PAGE,
    b"<html": _WEB_PAGE,
    b"version https://git-lfs": "a pointer of Git LFS. Fetch the file with `git lfs pull`",
}


def _table(rows: Iterable[dict[str, Any]]) -> Table:
    """Turn rows into columns. A missing key becomes ``None``."""
    rows = list(rows)
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _cells(
    file: Path, dialect: Dialect, separator: str | None, ragged: list[Ragged] | None = None
) -> Iterator[list[str]]:
    """The names of the columns, then the rows: a sheet, or CSV (RFC 4180) with any delimiter.

    Args:
        file: The file.
        dialect: How it is written.
        separator: Between the cells; ``None``: it is a sheet.
        ragged: Gets rows with more cells than the header, if the file has texts and then labels:
            all but the last cell are yielded as the text. ``None``: they are refused.
    """
    if separator is None:
        for i, row in enumerate(sheet_rows(file, dialect.sheet)):
            if not i:
                yield _header(row, file) if dialect.header else _numbered(row)
            if i or not dialect.header:
                yield row
        return
    csv.field_size_limit(2**31 - 1)  # as long as a text may be; the default is 128 KiB
    text = lines(file, dialect, newline="")
    reader = csv.reader(text, delimiter=separator, quoting=dialect.quoting, strict=True)
    names: list[str] = []
    started = 1
    try:
        for row in reader:
            if row and len(row) == len(names):
                yield row
            elif row and names:
                if ragged is None or len(row) < len(names) or not _ends_with_label(names, dialect):
                    raise _wrong_length(file, names, (started, row))
                ragged.append((started, row))
                yield [separator.join(row[:-1]), row[-1]]
            elif row and not _names_delimiter(row):
                names = _header(row, file) if dialect.header else _numbered(row)
                yield names
                if not dialect.header:
                    yield row
            started = reader.line_num + 1
    except csv.Error as error:
        raise PtuneError(
            f"{file} could not be read as {format_of(file)[1:]}: the quoting in line {started} is "
            f"broken ({error}). {_CARE}"
        ) from error


def _wrong_length(file: Path, names: list[str], row: Ragged) -> PtuneError:
    line, cells = row
    hint = "Remove what is above the header, if anything is. " if len(names) == 1 else ""
    if len(cells) == 1 < len(names):
        mixed = [mark for mark in DELIMITERS if len(cells[0].split(mark)) == len(names)]
        hint = f"Separate all lines alike: this one has {mixed[0]!r}. " if mixed else ""
    return PtuneError(
        f"Line {line} of {file} has {len(cells)} cell(s), and the header has {len(names)}. "
        f"{hint}{_CARE}"
    )


def _ends_with_label(names: list[str], dialect: Dialect) -> bool:
    """True for a column of texts and one of labels, in this order."""
    if len(names) != 2:
        return False
    first, last = (called(LABEL_NAMES, [name]) is not None for name in names)
    return not dialect.header or (last and not first)


def _check_repaired(table: Table, ragged: list[Ragged], file: Path) -> None:
    """Warn of rows whose texts have separators and no quotes, in a table of texts and labels.

    Raises:
        PtuneError: Their last cells do not look like labels, which occur several times.
    """
    _, labels = table.values()
    counts = Counter(labels)
    if len(counts) < 2 or any(counts[row[-1]] < 2 or not row[-1].strip() for _, row in ragged):
        raise _wrong_length(file, list(table), ragged[0])
    warnings.warn(
        f"{len(ragged)} rows of {file} have more cells than the header, the first in line "
        f"{ragged[0][0]}. The separators were taken as part of the texts. Put texts in quotes "
        'to be sure (").',
        stacklevel=2,
    )


def _names_delimiter(row: list[str]) -> bool:
    """True for `sep=;`, which Excel writes before the header."""
    return row[0].startswith("sep=") and len("".join(row)) <= len("sep=;")


def _header(row: list[str], file: Path) -> list[str]:
    names = [name.strip() for name in row]
    if len(set(names) - {""}) < len(set(row) - {""}):
        names = row  # the space around them tells them apart
    _check_doubled(filter(None, names), file)
    # Two unnamed columns must not be merged.
    return [name or f"column {i}" if names.count("") > 1 else name for i, name in enumerate(names)]


def _check_doubled(names: Iterable[str], file: Path) -> None:
    if doubled := [name for name, n in Counter(names).items() if n > 1]:
        raise PtuneError(f"{file} has two columns named {doubled[0]!r}. Rename one.")


def _numbered(row: list[str]) -> list[str]:
    return [str(i) for i in range(1, len(row) + 1)]


def _records(file: Path, dialect: Dialect) -> Iterator[dict[str, Any]]:
    """The objects of JSON lines, or of one JSON list."""
    parts = lines(file, dialect)
    count = 0
    for number, part in enumerate(parts, 1):
        whole = not count and part.lstrip().startswith("[")
        if whole:
            part += "".join(parts)
        if not part.strip():
            continue
        try:
            found = json.loads(part if whole else part.rstrip())
        except (ValueError, RecursionError) as error:
            raise _broken_json(file, error, number) from error
        for record in found if whole else [found]:
            count += 1
            if not isinstance(record, dict):
                raise PtuneError(
                    f"Example {count} of {file} is {str(record)[:50]!r}. Expected an object such "
                    'as {"text": "…", "label": "…"}.'
                )
            yield record


def _broken_json(file: Path, error: Exception, number: int) -> PtuneError:
    """What is wrong with a part of a JSON file that starts in line `number`."""
    if isinstance(error, ValueError) and not isinstance(error, json.JSONDecodeError):
        return PtuneError(
            f"{file} could not be read as json: a number in or after line {number} has more than "
            f"{sys.get_int_max_str_digits():,} digits. Write it as a string, in quotes."
        )
    line, reason = getattr(error, "lineno", 1), getattr(error, "msg", "nested too deeply")
    if reason == "Extra data" and line > 1:
        return PtuneError(
            f"{file} does not end after its first list: there is more in line {number + line - 1}. "
            "Expected one list of objects, or one object per line, such as "
            '{"text": "…", "label": "…"}.'
        )
    return PtuneError(
        f"{file} could not be read as json: line {number + line - 1} is broken or cut short "
        f"({reason}). Expected one object per line, or a list of objects, such as "
        '{"text": "…", "label": "…"}.'
    )


@contextmanager
def _explained(file: Path) -> Iterator[None]:
    """Turn Arrow's errors into one that names the file."""
    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        reason = first_line(error).rstrip(".")
        raise PtuneError(
            f"{file} could not be read as {format_of(file)[1:]}: {reason}. Is it complete, and is "
            "it what its name says?"
        ) from error


@contextmanager
def _seekable(file: Path) -> Iterator[Any]:
    """A file for Arrow, decompressed into memory if necessary."""
    if file.is_file() and not file.stat().st_size:
        raise PtuneError(f"{file} is empty. Write or download it again.")
    with opened(file) as stream:
        yield file if format_of(file) == file.suffix.lower() else io.BytesIO(stream.read())


def _parquet_batches(file: Path, size: int) -> Iterator[pyarrow.RecordBatch]:
    """Batches of a Parquet file; at least one, so that its columns are known."""
    # A buffer would keep everything that has been read until the end.
    with (
        _explained(file),
        _seekable(file) as source,
        parquet.ParquetFile(source, pre_buffer=False) as f,
    ):
        _check_doubled(f.schema_arrow.names, file)
        if not f.metadata.num_rows:
            yield pyarrow.RecordBatch.from_pylist([], schema=f.schema_arrow)
        yield from f.iter_batches(size)


def _arrow_batches(file: Path, size: int) -> Iterator[pyarrow.RecordBatch]:
    """Batches of an Arrow file, an Arrow stream or a Feather file; at least one."""
    with _explained(file), _seekable(file) as source:
        content = pyarrow.OSFile(str(source)) if isinstance(source, Path) else source
        batches: Iterator[pyarrow.RecordBatch]
        try:
            reader: Any = pyarrow.ipc.open_file(content)
            batches = map(reader.get_batch, range(reader.num_record_batches))
        except pyarrow.ArrowInvalid:
            content.seek(0)
            try:
                reader = pyarrow.ipc.open_stream(content)
                batches = iter(reader)
            except pyarrow.ArrowInvalid:
                content.seek(0)
                reader = feather.read_table(content)
                batches = iter(reader.to_batches())
        _check_doubled(reader.schema.names, file)
        some = False
        for batch in batches:
            for start in range(0, max(1, batch.num_rows), size):
                some = True
                yield batch.slice(start, size)
        if not some:
            yield pyarrow.RecordBatch.from_pylist([], schema=reader.schema)


_ARROW = {".parquet": _parquet_batches, ".arrow": _arrow_batches, ".feather": _arrow_batches}


def _typed_batches(file: Path, size: int) -> Iterator[pyarrow.RecordBatch]:
    """Batches of a file with types. Columns of bytes that are UTF-8 are text.

    Some programs write text without saying so, as Parquet allows.
    """
    kinds = (pyarrow.binary(), pyarrow.large_binary(), pyarrow.binary_view())
    found: list[int] | None = None
    with _explained(file):
        for batch in _ARROW[format_of(file)](file, size):
            if found is None:
                found = [i for i, c in enumerate(batch.columns) if c.type in kinds and _is_utf8(c)]
            for i in found:
                text = batch.column(i).cast(pyarrow.string())
                batch = batch.set_column(i, batch.schema.names[i], text)
            yield batch


def _is_utf8(column: pyarrow.Array) -> bool:
    try:
        column.cast(pyarrow.string())
    except pyarrow.ArrowInvalid:
        return False
    return True


def rows_where(table: Table, where: str, file: str | Path) -> Table:
    """The rows of a table in which a column has a value.

    Args:
        table: Columns by name.
        where: ``column=value``.
        file: For messages.

    Raises:
        PtuneError: There is no such column or row.
    """
    column, sign, value = where.partition("=")
    if not sign:
        raise PtuneError(f"where is {where!r}; expected a column and a value, as customer=acme.")
    if column not in table:
        raise PtuneError(f"{file} has no column {column!r}; {near(column, table)}.")
    chosen = [value in _spellings(cell) for cell in table[column]]
    if not any(chosen):
        values = dict.fromkeys(cut(_spellings(cell)[0], 50) for cell in table[column])
        raise PtuneError(
            f"No row of {file} has {value!r} in column {column!r}; {near(value, values)}."
        )
    return {name: list(itertools.compress(cells, chosen)) for name, cells in table.items()}


def _spellings(cell: Any) -> list[str]:
    """How a value is written in a file without types: first as in JSON."""
    if isinstance(cell, bool):
        return [str(cell).lower(), str(cell)]
    if isinstance(cell, float) and cell.is_integer():
        return [str(int(cell)), str(cell)]
    if isinstance(cell, datetime.datetime) and cell.time() == datetime.time():
        return [str(cell.date()), str(cell)]
    return ["" if cell is None else str(cell)]


def find_columns(
    names: Iterable[str], asked: Columns, file: str | Path, *, labelled: bool = True
) -> Columns:
    """Which columns to read: those asked for, else those whose names say so.

    Raises:
        PtuneError: One that was asked for is missing, or none can be told from its name.
    """
    names = list(names)
    if asked.trained and not asked.texts and set(asked.trained) <= set(names):
        second = asked.trained[1] if len(asked.trained) > 1 else None
        asked = replace(asked, text=asked.trained[0], text_pair=second)
    if labelled and not asked.labels:
        asked = _with_trained_labels(names, asked)
    if names == _numbered(names) and asked == BY_NAME and labelled and len(names) in (2, 3):
        # A file without a header: the label comes last.
        pair = names[1] if len(names) == 3 else None
        return replace(asked, text=names[0], text_pair=pair, label=names[-1])
    if asked.label and asked.indicators:
        raise PtuneError("Name the labels with --label-column or --indicator-column, not both.")
    _check_asked(names, [*asked.texts, *(asked.labels if labelled else ())], file)
    text, pair, label = asked.text, asked.text_pair, asked.label
    if labelled and label is None and not asked.indicators:
        label = _find_label([n for n in names if n not in (text, pair)], file)
        if label is None:
            besides = f" but {' and '.join(asked.texts)}" if asked.texts else ""
            raise PtuneError(
                f"No column of {file}{besides} is called like a label ({', '.join(LABEL_NAMES)}); "
                f"it has {listed(names)}. Name it with --label-column, or each column of 0 and 1 "
                f"with --indicator-column{_no_header(file, names)}."
            )
    if text is None:
        free = [n for n in names if n not in (label, pair, *(asked.indicators or ()))]
        for first, second in PAIR_NAMES:
            found = called((first,), free), called((second,), [pair] if pair else free)
            if text is None and None not in found:
                text, pair = found
    if text is None:
        others = [n for n in _without_predictions(names) if n in free]
        others = [n for n in others if not called(LABEL_NAMES, [n])]
        text = called(TEXT_NAMES, free) or (others[0] if len(others) == 1 else None)
        if text and (len(text.split()) > 2 or text.endswith((".", "?", "!"))):
            warnings.warn(
                f"The first line of {file}, {text[:50]!r}, was read as the header. If it is a "
                "text, use --no-header.",
                stacklevel=2,
            )
    if text is None:
        raise PtuneError(
            f"No column of {file} is called like a text ({', '.join(TEXT_NAMES)}); it has "
            f"{listed(names)}. Name it with --text-column{_no_header(file, names)}."
        )
    return replace(asked, text=text, text_pair=pair, label=label if labelled else None)


def _with_trained_labels(names: list[str], asked: Columns) -> Columns:
    trained = asked.trained_labels
    if isinstance(trained, str):
        return replace(asked, label=trained) if trained in names else asked
    return replace(asked, indicators=trained) if trained and set(trained) <= set(names) else asked


def _find_label(names: list[str], file: str | Path) -> str | None:
    """The column of labels, by its name; rather not one that `ptune predict` added."""
    label, first = called(LABEL_NAMES, _without_predictions(names)), called(LABEL_NAMES, names)
    if label is None or first == label:
        return first
    warnings.warn(
        f"The labels of {file} are read from column {label!r}, because {first!r} looks like a "
        f"prediction of ptune. To read that one, use --label-column {first}.",
        stacklevel=3,
    )
    return label


def is_prediction(label: str, table: Table) -> bool:
    """True if `ptune predict` added the column, and those of probabilities after it."""
    names = list(table)
    before = _without_predictions(names)
    if label in before or label != names[len(before)]:
        return False
    added = names[len(before) + 2 :]
    labels = {part for value in table[label] for part in str(value).split("|") if part}
    return added[:1] == ["probabilities"] or (len(added) > 1 and labels <= {NO_LABEL, *added})


def _check_asked(names: list[str], asked: list[str], file: str | Path) -> None:
    for name, count in Counter(asked).items():
        if name not in names:
            raise PtuneError(f"{file} has no column {name!r}; {near(name, names)}.")
        if count > 1:
            raise PtuneError(
                f"The column {name!r} of {file} is named {count} times. Name a column of its own "
                "for each text (--text-column, --text-pair-column) and for the labels "
                "(--label-column, --indicator-column)."
            )


def _no_header(file: str | Path, names: list[str]) -> str:
    if format_of(file) in (*_JSON, *_ARROW) or names == _numbered(names):
        return ""
    return ", or use --no-header if the first line is an example"


def called(known: Iterable[str], names: Sequence[str]) -> str | None:
    """The column with the first of several known names, in capitals or not."""
    return next((n for k in known for n in names if n == k or n.lower() == k), None)


def _without_predictions(names: list[str]) -> list[str]:
    """The columns of a file before those that `ptune predict` added, if it did."""
    for i, name in enumerate(names[1:], 1):
        if name.endswith("label") and names[i + 1 : i + 2] == [name[: -len("label")] + "score"]:
            return names[:i]
    return names
