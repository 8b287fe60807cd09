"""Opening text files with any usual compression, encoding and delimiter."""

# ruff: noqa: RUF001 (characters by which encodings are recognised)

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import itertools
import lzma
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import pyarrow

from ptune.errors import PtuneError, first_line
from ptune.files import check_file

DELIMITERS = (",", ";", "\t", "|")
# Lines of a file from which its delimiter is found.
SAMPLE = 100
# This many zero bytes at its start, at only even or only odd places, are a sign of UTF-16.
FEW = 4
# Fewer than one byte in this many is a control character, in text.
MOST_CONTROL = 50
# Byte-order marks. UTF-32's begins with UTF-16's.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "utf-8-sig",
}

OLD_EXCEL = "an old Excel file (.xls)"
# The first bytes of files that are not text.
_BINARY = {
    b"PK\x03\x04": "a zip file, such as .xlsx or .ods,",
    b"\x1f\x8b": "compressed (.gz)",
    b"BZh": "compressed (.bz2)",
    b"\xfd7zXZ": "compressed (.xz)",
    b"\x28\xb5\x2f\xfd": "compressed (.zst)",
    b"PAR1": "a Parquet file (.parquet)",
    b"ARROW1": "an Arrow file (.arrow)",
    b"\xd0\xcf\x11\xe0": OLD_EXCEL,
    b"%PDF-": "a PDF file",
}


@dataclass(frozen=True)
class Dialect:
    """How a file is written.

    Attributes:
        delimiter: Between the cells of a CSV file; ``None``: found in the first lines.
        encoding: ``None``: UTF-8, or what a byte-order mark says.
        header: True if the first line of a CSV or TSV file names the columns. If not, the columns
            are called 1, 2 and so on.
        sheet: Name of a sheet of a workbook; ``None``: the first one.
        quotes: True if a cell of a CSV or TSV file may be in quotes. If not, they are text.
    """

    delimiter: str | None = None
    encoding: str | None = None
    header: bool = True
    sheet: str | None = None
    quotes: bool = True

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Dialect:
        """What `delimiter`, `encoding`, `no_header`, `sheet` and `no_quotes` say."""
        same = {name: settings[name] for name in ("delimiter", "encoding", "sheet")}
        return cls(**same, header=not settings["no_header"], quotes=not settings["no_quotes"])

    @property
    def quoting(self) -> Literal[0, 3]:
        """How quotes are read, for `csv`."""
        return csv.QUOTE_MINIMAL if self.quotes else csv.QUOTE_NONE


FOUND = Dialect()


def format_of(file: str | Path) -> str:
    """A file's extension without that of a compression, in lower case."""
    file = Path(file)
    if file.suffix.lower() in _OPENERS:
        file = file.with_suffix("")
    return file.suffix.lower()


@contextmanager
def opened(file: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file, decompressed.

    Raises:
        PtuneError: There is no such file, or it is damaged.
    """
    check_file(file)
    try:
        with _OPENERS.get(file.suffix.lower(), open)(file, "rb") as stream:
            yield stream
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise PtuneError(
            f"{file} could not be read ({first_line(error).rstrip('.')}): it is damaged, "
            "incomplete, or not what its ending says. Write or download it again, or rename it."
        ) from error


@contextmanager
def created(file: Path) -> Iterator[IO[bytes]]:
    """A new file, compressed if its name says so."""
    with _OPENERS.get(file.suffix.lower(), open)(file, "wb") as stream:
        yield stream


def _zstd(file: Path, mode: str) -> Any:
    kind = pyarrow.CompressedInputStream if mode == "rb" else pyarrow.CompressedOutputStream
    return kind(pyarrow.OSFile(str(file), mode), "zstd")


_OPENERS: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _zstd}


def lines(file: Path, dialect: Dialect = FOUND, newline: str = "\n") -> Iterator[str]:
    """Yield the lines of a text file while it is read.

    Raises:
        PtuneError: It is not there, is damaged, or has another encoding.
    """
    with opened(file) as stream:
        start = stream.read(2**10)
    for magic, what in _BINARY.items():
        if start.startswith(magic):
            fix = (
                "Save it as .xlsx or as CSV in UTF-8."
                if what == OLD_EXCEL
                else "Give it the ending that says so, or save it as CSV in UTF-8."
            )
            raise PtuneError(f"{file} is {what} and not text. {fix}")
    mark = next((name for bom, name in _MARKS.items() if start.startswith(bom)), None)
    if mark == "utf-8-sig" and dialect.encoding and not _is_utf8(file):
        mark = None  # another program has put it before a text that it did not convert
    encoding = mark or dialect.encoding or "utf-8"
    if mark is None and dialect.encoding is None and _is_wide(start):
        likely = _likely_encoding(start, [])
        raise PtuneError(
            f"{file} is not UTF-8: {start.count(0)} of its first {len(start)} bytes are zero. "
            + _use(likely, file)
        )
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
            if mark is None and start.startswith(codecs.BOM_UTF8):
                stream.read(len(codecs.BOM_UTF8))
            yield from text
    except UnicodeError as error:
        raise PtuneError(_wrong_encoding(file, encoding)) from error


def _is_utf8(file: Path) -> bool:
    try:
        with opened(file) as stream, io.TextIOWrapper(stream, encoding="utf-8") as text:
            return all(True for _ in text)
    except UnicodeError:
        return False


def _is_wide(start: bytes) -> bool:
    """Whether a file without a byte-order mark is UTF-16 or UTF-32, by its first bytes."""
    zeros = start.count(0)
    at_one_side = start[1::2].count(0) in (0, zeros)
    return zeros * 4 > len(start) or (zeros >= FEW and at_one_side)


def _wrong_encoding(file: Path, encoding: str) -> str:
    found = ""
    sample: list[bytes] = []  # lines with bytes that are not ASCII
    with opened(file) as stream:
        for number, line in enumerate(stream, 1):
            if line.isascii():
                continue
            sample.append(line)
            if not found:
                try:
                    line.decode(encoding)
                except UnicodeError as error:
                    byte = line[getattr(error, "start", 0)]
                    found = f"byte 0x{byte:02x} in line {number}"
            if found and len(sample) >= SAMPLE:
                break
    with opened(file) as stream:
        start = stream.read(2**16)
    if not found:
        return f"{file} does not have the encoding {encoding}. Name another with --encoding."
    control = sum(byte < 32 and byte not in b"\t\n\r\f" for byte in start)
    if control * MOST_CONTROL > len(start) and not _is_wide(start):
        return (
            f"{file} is not text: {control:,} of its first {len(start):,} bytes are control "
            "characters. Name another file, or save this one as CSV in UTF-8."
        )
    marked = "UTF-8, although it starts with its byte-order mark"
    name = {"utf-8": "UTF-8", "utf-8-sig": marked}.get(encoding, encoding)
    return f"{file} is not {name}: {found}. " + _use(_likely_encoding(start, sample), file)


def _use(encoding: str, file: Path) -> str:
    return (
        f"It is probably {encoding}: use --encoding {encoding}, or convert the file "
        f"(`iconv -f {encoding} -t utf-8 {file.name} > utf8-{file.name}`)."
    )


# Encodings in order of preference, with the characters beyond ASCII that are usual in texts of
# their languages, and those that are possible.
_USUAL = {
    "cp1252": ("[À-ÿœŒšŽ“”„‘’–—…€«»¿¡•°§©®™£]", ""),
    "cp1250": ("[À-žŠ-ž“”„‘’–—…€«»°§]", ""),
    "cp850": ("[À-ÿ]", ""),
    "cp1251": ("[а-яё–—«»№]", "[А-ЯЁ]"),
    "koi8_r": ("[а-яё]", "[А-ЯЁ]"),
    "shift_jis": ("[ぁ-ヿ、-〿！-～]", "[一-鿿]"),
    "euc_jp": ("[ぁ-ヿ、-〿！-～]", "[一-鿿]"),
    "euc_kr": ("[가-힣]", ""),
    "gb18030": ("[一-鿿、-〿！-～“”]", ""),
    "big5": ("[一-鿿、-〿！-～]", ""),
}
_WESTERN = ("cp1252", "cp1250", "cp850")


def _likely_encoding(start: bytes, sample: list[bytes]) -> str:
    """A guess at the encoding of a file that is not UTF-8.

    Args:
        start: Its first bytes.
        sample: Lines with bytes that are not ASCII.
    """
    if (zeros := start.count(0)) and _is_wide(start):
        if not any(start[0::4] + start[1::4]) or not any(start[2::4] + start[3::4]):
            return f"utf-32-{'be' if start[0] == 0 else 'le'}"
        return f"utf-16-{'le' if start[1::2].count(0) * 2 > zeros else 'be'}"
    joined = b"".join(sample)
    mostly_ascii = sum(byte > 127 for byte in joined) * 2 <= len(joined)
    scores: dict[str, float] = {}
    for encoding, (usual, possible) in _USUAL.items():
        if encoding in _WESTERN and not mostly_ascii:
            continue
        try:
            text = "".join(c for c in joined.decode(encoding) if not c.isascii())
        except UnicodeDecodeError:
            continue
        fitting = len(re.findall(usual, text)) + 0.9 * len(re.findall(possible or "(?!)", text))
        bonus = 0.2 * (encoding in _WESTERN) + 0.2 * bool(re.search("[ぁ-ヿ]{2}", text))
        scores[encoding] = fitting / max(1, len(text)) + bonus
    return max(scores, key=scores.__getitem__, default="latin-1")


def delimiter_of(file: Path, dialect: Dialect = FOUND) -> str:
    """The delimiter of a CSV or TSV file.

    The header decides: a delimiter must divide it, and the best one divides the following lines
    into the same number of cells.

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
            rows = [
                row
                for row in csv.reader(sample, delimiter=delimiter, quoting=dialect.quoting)
                if row
            ]
        except csv.Error:
            return False, 0
        width = len(rows[0]) if rows else 0
        # The last row may be cut off.
        return width > 1 and all(len(row) == width for row in rows[:-1] or rows), width

    return max(DELIMITERS, key=quality)
