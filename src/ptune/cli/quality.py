"""`ptune check`: look at data before a training."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from ptune.cli.options import (
    OUTPUT,
    Delimiter,
    Encoding,
    LabelColumn,
    NoHeader,
    PairColumn,
    Separator,
    TextColumn,
    console,
    errors,
    option,
    say,
)
from ptune.training.settings import BACKBONE, DATA

AsJson = Annotated[bool, option("Print JSON.", OUTPUT, "--json")]
COLOURS = {"error": "red", "warning": "yellow", "note": "cyan"}


def check(
    data: Annotated[Path, typer.Argument(help="A labelled CSV, TSV, JSON lines or Parquet file.")],
    eval_file: Annotated[
        Path | None, option("Also look for its texts in the training file.", DATA, metavar="FILE")
    ] = None,
    text_column: TextColumn = None,
    text_pair_column: PairColumn = None,
    label_column: LabelColumn = None,
    label_separator: Separator = None,
    delimiter: Delimiter = None,
    encoding: Encoding = None,
    no_header: NoHeader = False,
    model: Annotated[
        str,
        option(
            "Backbone that finds near-duplicates, likely wrong labels and texts that are too long.",
            BACKBONE,
            metavar="MODEL",
        ),
    ] = "minilm",
    fast: Annotated[
        bool, option("Leave out the checks that need a backbone.", BACKBONE, "--fast")
    ] = False,
    strict: Annotated[
        bool, option("Exit with code 1 if there are errors or warnings.", OUTPUT, "--strict")
    ] = False,
    fix: Annotated[
        Path | None,
        option(
            "Write the data without incomplete and repeated rows, with repaired characters and one "
            "spelling of each label.",
            OUTPUT,
            metavar="FILE",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        option("Write a CSV file with every row that was found.", OUTPUT, metavar="FILE"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Look for mistakes in labelled data, before a training.

    It finds duplicates, conflicting and likely wrong labels, texts that are also in the evaluation
    file, broken characters, misspelled and rare labels, labels that one word gives away, and
    personal data.

    Example: ptune check mail.csv --eval-file test.csv
    """
    from ptune.data.opening import Dialect
    from ptune.data.tables import Columns
    from ptune.quality import check as checks

    columns = Columns(text_column, text_pair_column, label_column)
    how: tuple[Any, ...] = (columns, Dialect(delimiter, encoding, not no_header), label_separator)
    train = checks.Examples.read(data, *how)
    evaluation = checks.Examples.read(eval_file, *how) if eval_file else None
    found = checks.check(train, evaluation, model=None if fast else model, show=_progress)
    if output:
        checks.write_findings(found, train, evaluation, output)
    if as_json:
        console.print_json(data=[asdict(finding) for finding in found])
    else:
        _show(found, train.rows.texts, train.rows.is_single, fast)
    if fix:
        done = checks.write_fixed(train, fix)
        listed = ", ".join(f"{name} {n}" for name, n in done.items())
        say(f"Wrote {fix}. Rows: {listed}.", errors)
    if strict and any(finding.level != "note" for finding in found):
        raise typer.Exit(1)


def _progress(batches: Iterable[list[int]], total: int) -> Iterable[list[int]]:
    from rich.progress import track

    return track(batches, "reading", total, console=errors, transient=True)


def _show(found: list[Any], texts: list[str], is_single: bool, fast: bool) -> None:
    table = Table("check", "found", "rows", "what to do", title=f"{len(texts):,} examples")
    for finding in found:
        rows = ", ".join(map(str, finding.rows[:4])) + (", …" if len(finding.rows) > 4 else "")
        name = f"[{COLOURS[finding.level]}]{finding.check}[/]"
        table.add_row(name, *[Text(cell) for cell in (finding.problem, rows, finding.advice)])
    if found:
        console.print(table)
    else:
        say(f"Nothing was found in {len(texts):,} examples.")
    if fast:
        say("Not looked for: near-duplicates, wrong labels, texts that are too long.", errors)
    elif not is_single:
        say("Not looked for: wrong labels, because texts can have several.", errors)
