"""Labels in the cells of a file: what the characters of a cell mean.

Files without types (CSV, TSV) hold text only. There, whole numbers such as `7` become integers, and
all else stays text: `007`, `1.10` and `NA` are names. A column is a regression only if its values
look continuous, see `looks_continuous`.
"""

from __future__ import annotations

import ast
import json
import math
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ptune.errors import Origin, PtuneError
from ptune.labels import MULTI, REGRESSION, LabelColumn, annotated, indicators, is_missing, read

SEPARATOR = "|"
# Names contain these more often, so cells with them are several labels only on request.
OTHER_SEPARATORS = (",", ";", "/")
# From this number of different values on, numbers with a fraction look continuous.
MANY_VALUES = 20

# pandas writes whole numbers with a fraction if some are missing.
_BINARY = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}
# Python reads no integer with more than 4,300 digits.
_WHOLE = re.compile(r"0|-?[1-9]\d{0,4299}")
_BRACKETS = re.compile(r"\[.*\]|\(.*\)|\{.*\}", re.DOTALL)
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][-+]?\d+)?")


def label_column(
    cells: Sequence[Any],
    where: str,
    *,
    problem_type: str | None = None,
    separator: str | None = None,
    typed: bool = False,
    known: Collection[str] = (),
) -> LabelColumn:
    """The labels in the cells of one column.

    Args:
        cells: The cells, of any type if the file has types, else strings.
        where: The column and its file, for messages.
        problem_type: As in Transformers' configurations, if it is known.
        separator: Between several labels in one cell; ``None``: `|`, if cells hold it and parts of
            them also occur alone. A list in a cell, as JSON or Python, is several labels too.
        typed: True if the file has types: its strings are names, and its numbers are numbers.
        known: Names of labels that exist, with the white space around them.
    """
    if known or _strip_is_safe(cells):
        exact = frozenset(known)
        cells = [
            cell.strip() if isinstance(cell, str) and cell not in exact else cell for cell in cells
        ]
    texts = [cell for cell in cells if isinstance(cell, str) and cell]
    several = problem_type == MULTI or (separator is not None and problem_type is None)
    if problem_type is None and not several:
        several = _parts_stand_alone(texts, SEPARATOR) or _are_lists(texts)
        likely = [s for s in OTHER_SEPARATORS if _parts_stand_alone(texts, s)]
        for used in [] if several else [SEPARATOR, "\n", *likely]:
            if joined := next((t for t in texts if used in t), None):
                _name_separator(f"The label {joined!r}", used, where)
        if not several and texts and all(map(_BRACKETS.fullmatch, set(texts))):
            warnings.warn(
                f"Each label is in brackets, such as {texts[0]!r} ({where}), and each is taken as "
                'one label. If they are lists, write them as JSON, such as ["a", "b"].',
                stacklevel=2,
            )
    if separator and not any(separator in text for text in texts):
        _warn_of_other(texts, separator, where)
    values: list[Any] = list(cells)
    if several:
        values = [_parts(cell, separator or SEPARATOR) for cell in cells]
    if not typed:
        values = _numbers(values, problem_type)
    return read(values, Origin(where, in_file=True))


def indicator_columns(table: Mapping[str, Sequence[Any]], where: str) -> LabelColumn:
    """Columns of 0 and 1, one for each label. An empty cell is unknown.

    Args:
        table: The cells of each column.
        where: The file, for messages.

    Raises:
        PtuneError: A cell holds something else.
    """
    cells = [
        [_BINARY.get(str(cell).strip().lower(), cell) for cell in column]
        for column in table.values()
    ]
    rows = list(zip(*cells, strict=True))
    return indicators(rows, names=tuple(table), origin=Origin(where, in_file=True))


def vote_columns(table: Mapping[str, Sequence[Any]], where: str) -> LabelColumn:
    """Columns with the number or share of annotators who chose a label, one for each label.

    Args:
        table: The cells of each column. An empty one is 0.
        where: The file, for messages.

    Raises:
        PtuneError: A cell is not a number of at least 0.
    """
    votes: list[dict[str, float]] = []
    for i, row in enumerate(zip(*table.values(), strict=True), 1):
        votes.append({})
        for name, cell in zip(table, row, strict=True):
            try:
                votes[-1][name] = 0.0 if is_missing(cell) else float(cell)
            except (TypeError, ValueError):
                votes[-1][name] = math.nan
            if not 0 <= votes[-1][name] < math.inf:
                raise PtuneError(
                    f"Expected how many annotators chose the label in column {name!r} of {where}. "
                    f"Found {cell!r} in row {i}. Correct it, or leave out --problem-type if a text "
                    "can have several labels."
                )
    return annotated(votes, Origin(where, in_file=True))


def are_numbers(texts: Sequence[str]) -> bool:
    """True if all cells are plain numbers."""
    return all(_NUMBER.fullmatch(text.strip()) for text in texts)


def looks_continuous(texts: Sequence[str]) -> bool:
    """True if cells of text are numbers to predict rather than names such as versions.

    All of them are plain numbers and some have a fraction; no number is written in two ways (`1.1`
    and `1.10` are versions); and there are at least 20 different ones, or they are at least half of
    all cells.
    """
    different = set(texts)
    if not are_numbers(list(different)):
        return False
    numbers = {float(text) for text in different}
    return (
        all(map(math.isfinite, numbers))
        and not all(number.is_integer() for number in numbers)
        and len(numbers) == len(different)
        and len(numbers) >= min(MANY_VALUES, (len(texts) + 1) // 2)
    )


def _strip_is_safe(cells: Sequence[Any]) -> bool:
    """True if no two different cells become equal without the white space around them."""
    different = {cell for cell in cells if isinstance(cell, str) and cell.strip()}
    return len({cell.strip() for cell in different}) == len(different)


def _parts_stand_alone(texts: Sequence[str], separator: str) -> bool:
    """True if cells with a separator are several labels, judged by the other cells.

    The parts of one of them all occur alone, or at least one part of each does.
    """
    different = set(texts)
    alone = {text for text in different if separator not in text}
    joined = [[p.strip() for p in text.split(separator)] for text in different - alone]
    return any(all(p in alone for p in parts) for parts in joined) or (
        bool(joined) and all(any(p in alone for p in parts) for parts in joined)
    )


def _warn_of_other(texts: Sequence[str], separator: str, where: str) -> None:
    """Warn if no label has the separator that the user named, and another one is likely."""
    for used in (SEPARATOR, "\n", *OTHER_SEPARATORS):
        if _parts_stand_alone(texts, used):
            joined = next(text for text in texts if used in text)
            _name_separator(f"No label contains {separator!r}, and {joined!r}", used, where)
            return


def _name_separator(found: str, used: str, where: str) -> None:
    """Say which option reads labels that `used` separates."""
    warnings.warn(
        f"{found} contains {used!r} ({where}). If it stands for several labels, use "
        f"--label-separator {used!r}.",
        stacklevel=3,
    )


def _parts(cell: Any, separator: str) -> Any:
    """The labels in a cell; none in an empty one, while ``None`` stays missing."""
    if isinstance(cell, str):
        if (listed := _listed(cell)) is not None:
            return listed
        return [part.strip() for part in cell.split(separator) if part.strip()]
    return cell


def _are_lists(texts: Sequence[str]) -> bool:
    return any(texts) and all(_listed(text) is not None for text in set(texts))


def _listed(cell: str) -> list[str] | None:
    """The strings and whole numbers of a cell that is a list, as JSON or as Python writes it."""
    if not (cell.startswith("[") and cell.endswith("]")):
        return None
    try:
        found = json.loads(cell)
    except (ValueError, RecursionError):
        try:
            found = ast.literal_eval(cell)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
    if isinstance(found, list) and all(type(label) in (str, int) for label in found):
        return list(map(str, found))
    return None


def _numbers(values: list[Any], problem_type: str | None) -> list[Any]:
    """Whole numbers as integers, and numbers that look continuous as floats."""
    flat = [v for value in values for v in (value if isinstance(value, list) else [value])]
    different = [text for text in set(flat) if not is_missing(text)]
    if not different or not are_numbers(different):
        return values
    convert: Any = None
    if all(_WHOLE.fullmatch(text) for text in different):
        convert = int
    elif problem_type == REGRESSION or (
        problem_type is None and looks_continuous([t for t in flat if not is_missing(t)])
    ):
        convert = float
    if convert is None:
        return values

    def converted(value: Any) -> Any:
        if isinstance(value, list):
            return [convert(v) for v in value]
        return value if is_missing(value) else convert(value)

    return [converted(value) for value in values]
