"""`ptune predict`, `ptune evaluate` and `ptune info`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

from ptune.cli.options import (
    OUTPUT,
    Adapter,
    DataDir,
    DatasetConfig,
    Delimiter,
    DtypeOption,
    Encoding,
    IndicatorColumn,
    LabelColumn,
    LabelledFile,
    Model,
    NoHeader,
    OtherBackbone,
    PairColumn,
    Revision,
    Runtime,
    Separator,
    Sheet,
    SkipUnlabelled,
    TextColumn,
    console,
    errors,
    option,
    say,
)
from ptune.errors import PtuneError
from ptune.training.settings import DATA

if TYPE_CHECKING:
    from ptune.inference.classifier import TextClassifier
    from ptune.inference.files import Source
    from ptune.inference.jobs import Recipe
    from ptune.labels import Prediction

Format = Annotated[
    Literal["table", "jsonl", "csv"] | None,
    option(
        "Format of the output.", OUTPUT, default="table for typed texts on a terminal, else jsonl"
    ),
]
Abstain = Annotated[
    float | None,
    option(
        "Label texts (none) if no label has at least this probability.",
        OUTPUT,
        default="label every text",
        metavar="X",
    ),
]


def predict(
    adapter: Adapter,
    texts: Annotated[
        list[str] | None,
        typer.Argument(help="Texts. Without any, or for -, the lines of standard input."),
    ] = None,
    pair: Annotated[
        str | None,
        option("Second text of a pair. The first one is the argument.", DATA, metavar="TEXT"),
    ] = None,
    file: Annotated[
        Path | None,
        option(
            "Classify the texts of a file: CSV, TSV, JSON, Parquet, Arrow, .xlsx or .ods; or of "
            "all such files in a folder.",
            DATA,
        ),
    ] = None,
    text_column: TextColumn = None,
    text_pair_column: PairColumn = None,
    delimiter: Delimiter = None,
    encoding: Encoding = None,
    no_header: NoHeader = False,
    sheet: Sheet = None,
    format: Format = None,
    output: Annotated[
        Path | None,
        option(
            "Write to this file, in the format of its ending. For a folder, write to this folder.",
            OUTPUT,
            default="standard output",
        ),
    ] = None,
    abstain: Abstain = None,
    model: Model = None,
    allow_other_backbone: OtherBackbone = False,
    revision: Revision = None,
    dtype: DtypeOption = "auto",
    runtime: Runtime = "torch",
    ray: Annotated[
        bool, option("Distribute the files of a folder over the workers of Ray.", OUTPUT, "--ray")
    ] = False,
    workers: Annotated[
        int | None,
        option("Number of Ray workers.", OUTPUT, default="one per GPU, or per CPU", metavar="N"),
    ] = None,
) -> None:
    """Classify texts, a file, a folder of files, or the lines of standard input.

    Each line of standard input is a text, or a pair of texts separated by a tab.

    For example:

    ptune predict runs/mine "where is my parcel?"

    ptune predict runs/mine --file new.csv --output labels.csv

    ptune predict runs/mine --file mails/ --output labelled/

    ptune predict runs/mrpc "It rains." --pair "Rain falls."
    """
    from ptune.data.opening import Dialect
    from ptune.data.tables import Columns
    from ptune.inference.files import Source
    from ptune.inference.jobs import Recipe

    if file and texts:
        raise PtuneError("Give texts or --file, not both.")
    if pair is not None and (not texts or len(texts) != 1):
        raise PtuneError("--pair requires exactly one text before it.")
    columns = Columns(text_column, text_pair_column)
    dialect = Dialect(delimiter, encoding, not no_header, sheet)
    chosen = (model, revision, dtype, runtime, allow_other_backbone, abstain)
    recipe = Recipe(adapter, columns, *chosen, dialect)
    if file and output:
        _predict_files(file, output, recipe, format, ray=ray, workers=workers)
        return
    if ray or (file and file.is_dir()):
        raise PtuneError("A folder, and --ray, require --file and --output. Give both.")
    typed = bool(texts) and texts != ["-"]
    as_table = format == "table" or (format is None and typed and console.is_terminal)
    classifier = recipe.load()
    if file:
        source = Source.of_file(file, columns, dialect)
    else:
        pairs = [(text, pair) for text in texts or []] if pair is not None else texts
        source = Source.of_texts(pairs if pairs and typed else _lines(sys.stdin))
    shown = "table" if as_table and not output else format
    _predict(classifier, source, output, shown, abstain)


def _lines(stream: Iterable[str]) -> Iterator[str | tuple[str, str]]:
    try:
        for line in stream:
            first, tab, second = line.rstrip("\n").partition("\t")
            yield (first, second) if tab else first
    except UnicodeDecodeError as error:
        raise PtuneError(f"Standard input is not UTF-8: {error}.") from error


def _predict(
    classifier: TextClassifier,
    source: Source,
    output: Path | None,
    format: str | None,
    abstain: float | None,
) -> None:
    """Classify the texts of one source, to a file or to standard output."""
    from ptune.files import staged
    from ptune.inference import files

    if output:
        kind = format if format in ("csv", "jsonl") else files.format_of(output)
        with (
            staged(output.absolute().parent) as stage,
            files.writer(stage / output.name, kind, classifier) as out,
        ):
            count = files.write(classifier, source, out, abstain)
        say(f"{count} predictions in {output}", errors)
    elif format == "table":
        for _, shown, predicted in files.predictions(classifier, source, abstain):
            print_predictions(shown, predicted)
    else:
        out = files.text_writer(sys.stdout, format or "jsonl")
        files.write(classifier, source, out, abstain)


def _predict_files(
    file: Path, output: Path, recipe: Recipe, format: str | None, *, ray: bool, workers: int | None
) -> None:
    from rich.progress import track

    from ptune.inference.jobs import find_jobs, run_jobs

    def show(results: Iterable[Any], total: int) -> Iterable[Any]:
        return track(results, "files", total, console=errors, transient=True)

    jobs = find_jobs(file, output, recipe, format)
    todo = [job for job in jobs if not job.is_done()]
    rows = run_jobs(todo, recipe, ray=ray, workers=workers, show=show)
    before = f"; {len(jobs) - len(todo)} files were done before" if len(todo) < len(jobs) else ""
    say(f"{rows} predictions in {output}{before}", errors)


def print_predictions(texts: Sequence[Any], predictions: Sequence[Prediction]) -> None:
    """Print a table of texts with their label and its probability."""
    table = Table("text", "label", "probability", "next")
    for text, prediction in zip(texts, predictions, strict=True):
        ranked = sorted(prediction.probabilities.items(), key=lambda item: -item[1])
        label = prediction.label
        shown = ", ".join(label) if isinstance(label, list) else str(label)
        number = isinstance(label, float)
        table.add_row(
            text if isinstance(text, str) else "\n".join(text),
            f"{label:.3f}" if number else shown,
            "" if number else f"{prediction.score:.0%}",
            "" if number else "  ".join(f"{name} {p:.0%}" for name, p in ranked[1:3]),
        )
    console.print(table)


def evaluate(
    adapter: Adapter,
    task: Annotated[str | None, option("GLUE task.", DATA, metavar="TASK")] = None,
    data_dir: DataDir = None,
    file: LabelledFile = None,
    dataset: Annotated[
        str | None,
        option(
            "A 🤗 data set: an id on the Hub, or a folder that save_to_disk wrote.",
            DATA,
            metavar="NAME",
        ),
    ] = None,
    dataset_config: DatasetConfig = None,
    split: Annotated[
        str | None,
        option("Split of the data set.", DATA, default="test, or validation", metavar="NAME"),
    ] = None,
    text_column: TextColumn = None,
    text_pair_column: PairColumn = None,
    label_column: LabelColumn = None,
    indicator_column: IndicatorColumn = None,
    label_separator: Separator = None,
    skip_unlabelled: SkipUnlabelled = False,
    delimiter: Delimiter = None,
    encoding: Encoding = None,
    no_header: NoHeader = False,
    sheet: Sheet = None,
    model: Model = None,
    allow_other_backbone: OtherBackbone = False,
    revision: Revision = None,
    dtype: DtypeOption = "auto",
    runtime: Runtime = "torch",
    output: Annotated[
        Path | None, option("Also write the scores to this JSON file.", OUTPUT, metavar="FILE")
    ] = None,
) -> None:
    """Score a classifier on a labelled file, a data set or a GLUE task's evaluation set.

    For example:

    ptune evaluate runs/mine --file b.csv

    ptune evaluate runs/news --dataset ag_news
    """
    from ptune.data.glue import evaluation_sets
    from ptune.data.opening import Dialect
    from ptune.data.tables import Columns
    from ptune.files import staged
    from ptune.inference.engines import open_classifier
    from ptune.texts import as_rows

    classifier = open_classifier(
        adapter,
        runtime,
        model=model,
        revision=revision,
        dtype=dtype,
        allow_other_backbone=allow_other_backbone,
    )
    sets, metrics = evaluation_sets(
        classifier.labels_,
        task=task,
        data_dir=data_dir,
        file=file,
        columns=Columns(
            text_column, text_pair_column, label_column, tuple(indicator_column or ()) or None
        ),
        dataset=dataset,
        config=dataset_config,
        split=split,
        dialect=Dialect(delimiter, encoding, not no_header, sheet),
        label_separator=label_separator,
        skip_unlabelled=skip_unlabelled,
    )
    scores = {
        (f"{name}_" if name else "") + key: value
        for name, (columns, labels) in sets.items()
        for key, value in classifier.evaluate(as_rows(columns), labels, metrics).items()
    }
    console.print_json(json.dumps(scores))
    if output:
        with staged(output.absolute().parent) as stage:
            (stage / output.name).write_text(json.dumps(scores, indent=2) + "\n", "utf-8")


def info(adapter: Adapter, revision: Revision = None) -> None:
    """Print an adapter's backbone, size, labels and scores."""
    from ptune.adapters.adapter import describe

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in describe(adapter, revision=revision).items():
        table.add_row(key, str(value))
    console.print(table, markup=False)
