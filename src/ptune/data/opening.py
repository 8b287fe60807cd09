"""Opening text files with any usual compression, encoding and delimiter."""

from __future__ import annotations

import bz2
import codecs
import csv
import difflib
import gzip
import io
import itertools
import lzma
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow

from ptune.errors import PtuneError, first_line

COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
DELIMITERS = (",", ";", "\t", "|")
# Lines of a file from which its delimiter is found.
SAMPLE = 100
# Byte-order marks. UTF-32's begins with UTF-16's.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "utf-8-sig",
}


@dataclass(frozen=True)
class Dialect:
    """How a file is written.

    Attributes:
        delimiter: Between the cells of a CSV file; ``None``: found in the first lines.
        encoding: ``None``: UTF-8, or what a byte-order mark says.
        header: True if the first line of a CSV or TSV file names the columns. If not, the columns
            are called 1, 2 and so on.
    """

    delimiter: str | None = None
    encoding: str | None = None
    header: bool = True


FOUND = Dialect()


def format_of(file: str | Path) -> str:
    """A file's extension without that of a compression, in lower case."""
    file = Path(file)
    if file.suffix.lower() in COMPRESSIONS:
        file = file.with_suffix("")
    return file.suffix.lower()


@contextmanager
def opened(file: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file, decompressed.

    Raises:
        PtuneError: There is no such file, or it is damaged.
    """
    if not file.is_file():
        raise PtuneError(f"There is no file {file}. {near_path(file)}".rstrip())
    openers: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _zstd}
    try:
        with openers.get(file.suffix.lower(), open)(file, "rb") as stream:
            yield stream
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise PtuneError(
            f"{file} could not be read ({first_line(error).rstrip('.')}): it is damaged or "
            "incomplete. Write or download it again."
        ) from error


def _zstd(file: Path, mode: str) -> Any:
    return pyarrow.CompressedInputStream(pyarrow.OSFile(str(file), mode), "zstd")


def lines(file: Path, dialect: Dialect = FOUND, newline: str = "\n") -> Iterator[str]:
    """Yield the lines of a text file while it is read.

    Raises:
        PtuneError: It is not there, is damaged, or has another encoding.
    """
    with opened(file) as stream:
        start = stream.read(4)
    mark = next((name for bom, name in _MARKS.items() if start.startswith(bom)), None)
    encoding = mark or dialect.encoding or "utf-8"
    try:
        codecs.lookup(encoding)
    except LookupError as error:
        raise PtuneError(
            f"There is no encoding {encoding!r}. Use for example --encoding cp1252."
        ) from error
    try:
        with (
            opened(file) as stream,
            io.TextIOWrapper(stream, encoding=encoding, newline=newline) as text,
        ):
            yield from text
    except UnicodeError as error:
        raise PtuneError(_wrong_encoding(file, encoding)) from error


def _wrong_encoding(file: Path, encoding: str) -> str:
    with opened(file) as stream:
        for number, line in enumerate(stream, 1):
            try:
                line.decode(encoding)
            except UnicodeError as error:
                start = getattr(error, "start", 0)
                likely = _likely_encoding(line)
                name = "UTF-8" if encoding == "utf-8" else encoding
                return (
                    f"{file} is not {name}: byte 0x{line[start]:02x} in line {number}. It is "
                    f"probably {likely}: use --encoding {likely.split()[0]}, or convert the file "
                    f"(`iconv -f {likely.split()[0]} -t utf-8 {file.name} > utf8-{file.name}`)."
                )
    return f"{file} does not have the encoding {encoding}. Name another with --encoding."


def _likely_encoding(line: bytes) -> str:
    """A guess from one line: most files that are not UTF-8 are Western European."""
    if line.count(0) > len(line) // 4:
        return "utf-16"
    high = [byte for byte in line if byte > 127]
    if len(high) * 5 <= len(line) and not {0x81, 0x8D, 0x8F, 0x90, 0x9D} & set(high):
        return "cp1252 (Windows, a superset of latin-1)"
    if all(byte >= 0xC0 or byte in (0xA8, 0xB8) for byte in high):
        return "cp1251 (Windows, Cyrillic)"
    for encoding in ("shift_jis", "euc_kr", "gb18030"):
        try:
            line.decode(encoding)
        except UnicodeDecodeError:
            continue
        return encoding
    return "latin-1"


def delimiter_of(file: Path, dialect: Dialect = FOUND) -> str:
    """The delimiter of a CSV or TSV file.

    The header decides: a delimiter must divide it, and the best one divides the following lines
    into as many cells.

    Raises:
        PtuneError: The given delimiter is not one character.
    """
    if dialect.delimiter is not None:
        delimiter = {"tab": "\t", "\\t": "\t"}.get(dialect.delimiter, dialect.delimiter)
        if len(delimiter) != 1 or delimiter in '"\r\n':
            raise PtuneError(
                f"The delimiter {dialect.delimiter!r} is not one character. Use for example ';', "
                "or tab."
            )
        return delimiter
    if format_of(file) == ".tsv":
        return "\t"
    sample = list(itertools.islice(lines(file, dialect, newline=""), SAMPLE))
    if sample and (given := re.fullmatch(r"sep=(.)\s*", sample[0])):  # as Excel writes it
        return given[1]

    def quality(delimiter: str) -> tuple[bool, int]:
        try:
            rows = [row for row in csv.reader(sample, delimiter=delimiter) if row]
        except csv.Error:
            return False, 0
        width = len(rows[0]) if rows else 0
        # The last row may be cut off.
        return width > 1 and all(len(row) == width for row in rows[:-1] or rows), width

    return max(DELIMITERS, key=quality)


def near_path(path: Path) -> str:
    """A hint at a file with a similar name, for the end of a message."""
    parent = path.parent
    if not parent.is_dir():
        return f"There is no folder {parent} either."
    close = difflib.get_close_matches(path.name, [p.name for p in parent.iterdir()], n=1)
    return f"Did you mean {parent / close[0]}?" if close else "Check the path."
