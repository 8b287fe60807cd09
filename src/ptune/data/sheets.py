"""Sheets of `.xlsx` and `.ods` workbooks, as rows of text."""

from __future__ import annotations

import datetime
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ptune.data.opening import format_of, opened
from ptune.errors import PtuneError, first_line, missing_package, near

SHEETS = (".xlsx", ".ods")


def sheet_rows(file: Path, sheet: str | None = None) -> Iterator[list[str]]:
    """The rows of a sheet that are not empty, all of the same length.

    Cells are texts as people see them: 7 and not 7.0, and dates as in ISO 8601. The format of a
    number (its currency, its decimals) is not read.

    Args:
        file: The workbook.
        sheet: The name of the sheet; ``None``: the first one, with a warning if there are others.

    Raises:
        PtuneError: It has no such sheet, is damaged or has a password; or python-calamine is not
            installed.
    """
    try:
        from python_calamine import CalamineError, CalamineWorkbook, PasswordError
    except ImportError as error:
        raise missing_package("python-calamine", "spreadsheet") from error
    with opened(file) as stream:
        content = io.BytesIO(stream.read())
    if not content.getbuffer():
        raise PtuneError(f"{file} is empty. Write or download it again.")
    try:
        try:
            workbook = CalamineWorkbook.from_filelike(content)
        except CalamineError:  # the same for a password and for damage; by its path it tells
            workbook = CalamineWorkbook.from_path(str(file))
        names = workbook.sheet_names
        if sheet is not None and sheet not in names:
            raise PtuneError(f"{file} has no sheet {sheet!r}; {near(sheet, names)}.")
        if sheet is None and len(names) > 1:
            warnings.warn(
                f"{file} has the sheets {', '.join(names)}. The first one is read; name another "
                "with --sheet.",
                stacklevel=2,
            )
        for row in workbook.get_sheet_by_name(sheet or names[0]).iter_rows() if names else ():
            cells = [_text(cell) for cell in row]
            if any(cells):
                yield cells
    except PasswordError as error:
        raise PtuneError(f"{file} has a password. Save it without one.") from error
    except CalamineError as error:
        raise PtuneError(
            f"{file} could not be read as {format_of(file)[1:]}: {first_line(error).rstrip('.')}. "
            "Is it complete, and is it what its name says?"
        ) from error


def _text(cell: Any) -> str:
    if isinstance(cell, bool):
        return str(cell).upper()
    if isinstance(cell, float):
        return format(cell, ".15g")  # as many digits as spreadsheets keep
    if isinstance(cell, datetime.date | datetime.time):
        return cell.isoformat()
    return str(cell)
