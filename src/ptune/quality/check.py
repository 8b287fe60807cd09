"""Check labelled data before a training: `ptune check`."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ptune.backbones.loading import full_name
from ptune.data.dataset import labels_in, no_complete_row
from ptune.data.opening import FOUND, Dialect
from ptune.data.tables import (
    BY_NAME,
    Columns,
    Table,
    find_columns,
    header_rows,
    is_typed,
    read_table,
)
from ptune.errors import PtuneError, counted
from ptune.files import staged_file
from ptune.inference.files import text_file
from ptune.labels import REGRESSION, is_missing
from ptune.quality import findings
from ptune.quality.features import Show, features
from ptune.quality.findings import Finding, Rows, normal, repaired, same_spelling

# Where a finding's rows are.
ORDER = ("error", "warning", "note")


@dataclass
class Examples:
    """A file of labelled texts, whatever is wrong with it.

    Attributes:
        file: The file.
        table: Its columns.
        columns: Those with the texts and the label.
        rows: The rows that have a text and a label.
        incomplete: What is wrong with the others.
    """

    file: Path
    table: Table
    columns: Columns
    rows: Rows
    incomplete: list[Finding] = field(default_factory=list)

    @classmethod
    def read(
        cls,
        file: Path,
        columns: Columns = BY_NAME,
        dialect: Dialect = FOUND,
        label_separator: str | None = None,
    ) -> Examples:
        """Read a file.

        Raises:
            PtuneError: It cannot be read, its columns cannot be found, or no row is complete.
        """
        table = read_table(file, dialect, as_it_is=True)
        headers = set(header_rows(table))
        for cells in table.values():
            for i in headers:
                cells[i] = ""
        columns = find_columns(table, columns, file)
        how: dict[str, Any] = {"separator": label_separator, "typed": is_typed(file)}
        column = labels_in(table, columns, str(file), **how)
        cells = [["" if is_missing(v) else v for v in table[name]] for name in columns.texts]
        no_text = {i for text in cells for i, v in enumerate(text) if not isinstance(v, str)}
        texts = [[str(value) for value in text] for text in cells]
        empty = {i for text in texts for i, value in enumerate(text) if not value.strip()} | no_text
        missing = set(column.missing()) - empty
        no_label = set(column.wrong()) - empty - missing
        left_out = empty | missing | no_label
        kept = [i for i in range(len(column)) if i not in left_out]
        if not kept:
            column.without(sorted(empty | missing)).check()
            raise no_complete_row(file)
        column = column.without(sorted(left_out))
        if column.kind == "indicators":
            all_names = column.names or tuple(range(column.values.shape[1]))
            each: Any = [[all_names[j] for j in np.flatnonzero(row == 1)] for row in column.values]
        else:
            each = column.values if column.kind == "several" else [[v] for v in column.values]
        own = [[text[i] for i in kept] for text in texts]
        rows = Rows(
            numbers=[i + 1 for i in kept],
            texts=["\n".join(parts) for parts in zip(*own, strict=True)],
            labels=[tuple(sorted(map(str, labels))) for labels in each],
            is_single=column.kind == "one",
            columns=own,
            is_regression=column.problem_type == REGRESSION,
        )
        found = cls(Path(file), table, columns, rows)
        fill, fix = (f"{what}, or leave them out (--fix)." for what in ("Fill it in", "Correct it"))
        leave_out = "Leave them out (--fix)."
        has, repeats = ("row has", "rows have"), ("row repeats", "rows repeat")
        for what, verb, problem, advice, gone in (
            ("repeated header", repeats, "the header, as in joined files", leave_out, headers),
            ("no text", has, "no text", fill, empty - headers - no_text),
            ("not a text", has, "something other than a text, such as a list", fix, no_text),
            ("no label", has, "no label", fill, missing),
            ("not a label", has, "something other than a label, such as a list", fix, no_label),
        ):
            if gone:
                numbers, remarks = [i + 1 for i in sorted(gone)], [""] * len(gone)
                problem = f"{counted(len(gone), *verb)} {problem}"
                found.incomplete.append(Finding(what, "error", problem, advice, numbers, remarks))
        return found


def check(
    train: Examples,
    evaluation: Examples | None = None,
    *,
    model: str | None = None,
    show: Show = lambda batches, total: batches,
) -> list[Finding]:
    """All that is found in the data, the most serious first.

    Args:
        train: The training data.
        evaluation: The evaluation data, to find texts that are in both.
        model: The backbone that finds near-duplicates, likely wrong labels and long texts;
            ``None``: these are not looked for.
        show: Shows progress: takes batches and their number.

    Raises:
        PtuneError: The backbone cannot be loaded.
    """
    found = [*train.incomplete]
    of_names = () if train.rows.is_regression else (findings.label_names, findings.give_away)
    for look in (
        findings.duplicates,
        findings.broken,
        findings.scripts,
        *of_names,
        findings.personal_data,
    ):
        found += look(train.rows)
    if evaluation is not None:
        found += findings.leakage(train.rows, evaluation.rows)
    if model is not None:
        found += _with_backbone(train.rows, evaluation.rows if evaluation else None, model, show)
    return sorted(found, key=lambda finding: ORDER.index(finding.level))


def _with_backbone(rows: Rows, other: Rows | None, model: str, show: Show) -> Iterator[Finding]:
    x, cut = features(rows.columns, model, show=show)
    yield from findings.truncated(rows, cut, full_name(model))
    yield from findings.near_duplicates(rows, x)
    if other is not None:
        yield from findings.near_duplicates(rows, x, other, features(other.columns, model)[0])
    yield from findings.wrong_labels(rows, x)


def write_findings(
    found: list[Finding], train: Examples, evaluation: Examples | None, output: Path
) -> None:
    """Write one line for each row of each finding: check, file, row, text, labels, remark.

    Raises:
        PtuneError: The file cannot be written.
    """
    with staged_file(output) as written, written.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["check", "level", "file", "row", "text", "labels", "remark"])
        for finding in found:
            file = evaluation if is_about_evaluation(finding) and evaluation else train
            places = {number: i for i, number in enumerate(file.rows.numbers)}
            for number, remark in zip(finding.rows, finding.remarks, strict=True):
                i = places.get(number)
                text, labels = ("", ()) if i is None else (file.rows.texts[i], file.rows.labels[i])
                own = [finding.check, finding.level, file.file.name, number]
                writer.writerow([*own, text, "|".join(labels), remark])


def is_about_evaluation(finding: Finding) -> bool:
    """True if the rows of a finding are those of the evaluation file."""
    return finding.check in ("leakage", "near leakage", "unknown labels")


def write_fixed(train: Examples, output: Path) -> dict[str, int]:
    """Write the file without what can be repaired safely. All columns stay.

    Rows without a text or a label, and rows that repeat an earlier one with the same label, are
    left out. Broken characters are repaired, and spellings of a label that differ only in case and
    separators become the most frequent one.

    Returns:
        How many rows were left out or changed, by reason.

    Raises:
        PtuneError: The file cannot be written, or is not `.csv`, `.tsv` or `.jsonl`.
    """
    if output.suffix.lower() not in (".csv", ".tsv", ".jsonl"):
        raise PtuneError(f"{output} cannot be written: name a .csv, .tsv or .jsonl file.")
    rows, columns = train.rows, train.columns
    has_names = rows.is_single and not rows.is_regression and columns.label
    spellings = same_spelling(rows.counts) if has_names else {}
    fixed: list[dict[str, Any]] = []
    total = len(next(iter(train.table.values())))
    done = {"incomplete": total - len(rows.numbers), "repeated": 0, "characters": 0, "spelling": 0}
    seen = set()
    for number, labels in zip(rows.numbers, rows.labels, strict=True):
        row = {name: column[number - 1] for name, column in train.table.items()}
        for name in columns.texts:
            if (better := repaired(str(row[name]))) != row[name]:
                row[name], done["characters"] = better, done["characters"] + 1
        if spellings and labels[0] in spellings:
            row[str(columns.label)] = spellings[labels[0]]
            labels, done["spelling"] = (spellings[labels[0]],), done["spelling"] + 1
        key = (normal("\n".join(str(row[name]) for name in columns.texts)), labels)
        if key in seen:
            done["repeated"] += 1
            continue
        seen.add(key)
        fixed.append(row)
    with staged_file(output) as written, text_file(written, output.suffix.lower()[1:]) as writer:
        for row in fixed:
            writer.put(row)
    return done
