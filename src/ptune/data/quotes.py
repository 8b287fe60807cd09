"""Quotes in CSV and TSV files that are text: they join rows to one cell."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from ptune.errors import Origin, counted


def warn_of_joined(
    columns: Mapping[str, Sequence[str]], file: Path, separator: str, before: int = 0
) -> bool:
    """Warn of cells whose lines look like rows of the table, and return whether there are any.

    Args:
        columns: Rows of the file, by column.
        file, separator: The file, and what separates its cells.
        before: The number of rows before these.
    """
    found = _joined(list(columns.values()), separator)
    if not found:
        return False
    cells = counted(len(found), "cell", "cells")
    warnings.warn(
        f"Lines that look like rows of {file} are in {cells}, of "
        f'{Origin(str(file), in_file=True, before=before).at(found)}: a quote (") begins a cell, '
        "and the next one ends it. If quotes are part of the texts, use --no-quotes.",
        stacklevel=3,
    )
    return True


def _joined(columns: Sequence[Sequence[str]], separator: str) -> list[int]:
    """The rows with a cell whose lines have as many cells as the table, and values of its columns.

    A value counts if it occurs at least twice in a column, as labels do.
    """
    found, several, last = [], dict[int, set[str]](), len(columns) - 1

    def is_known(place: int, value: str) -> bool:
        if place not in several:
            counts = Counter(columns[place])
            several[place] = {cell for cell, n in counts.items() if n > 1 and cell.strip()}
        return value in several[place]

    for place, column in enumerate(columns if last > 0 else ()):
        for i in [i for i, cell in enumerate(column) if "\n" in cell]:
            lines = [line.split(separator) for line in re.split(r"\r?\n", column[i])]
            lines[0] = [*[""] * place, *lines[0]]
            lines[-1] += [""] * (last - place)
            if any(len(cells) != len(columns) for cells in lines):
                continue
            # The first line shows nothing before the cell, and the last one nothing after it.
            telling = lines[place == last : len(lines) - (place == 0)]
            if all(
                any(is_known(j, c) for j, c in enumerate(cells) if j != place) for cells in telling
            ):
                found.append(i)
    return sorted(found)
