"""`ptune predict`, `ptune evaluate` and `ptune info`."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from rich.table import Table

from ptune.cli.options import (
    LABELLED,
    OUTPUT,
    READING,
    Adapter,
    AsJson,
    LabelledFile,
    Loading,
    Texts,
    console,
    errors,
    file_option,
    load_with,
    option,
    print_json,
    read_with,
    say,
    with_settings,
)
from ptune.data.sources import check_options, source_of
from ptune.errors import PtuneError, counted
from ptune.files import check_output, is_export, json_line, staged_file, write_json
from ptune.training.declaration import FILE_OR_FOLDER
from ptune.training.settings import DATA, TrainSettings

if TYPE_CHECKING:
    from ptune.inference.bank import PromptBank
    from ptune.inference.files import Source
    from ptune.inference.jobs import Recipe
    from ptune.inference.text_classifier import TextClassifier
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
MarkTruncated = Annotated[
    bool,
    option(
        "Add a column truncated: whether a part of the text was not read.",
        OUTPUT,
        "--mark-truncated",
    ),
]
Pair = Annotated[
    str | None,
    option(
        "Second text of a pair. The first one is the argument.",
        DATA,
        default="none",
        metavar="TEXT",
    ),
]
FileOrFolder = Annotated[
    Path | None,
    option(
        "Classify the texts of a file, or of every file in a folder.",
        DATA,
        default="none",
        metavar=FILE_OR_FOLDER,
    ),
]
AllTasks = Annotated[
    bool, option("The adapter is a folder of adapters. Use all of them.", OUTPUT, "--all-tasks")
]
Ray = Annotated[
    bool, option("Distribute the files of a folder over the workers of Ray.", OUTPUT, "--ray")
]
Workers = Annotated[
    int | None,
    option("Number of Ray workers.", OUTPUT, default="one per GPU, or per CPU", metavar="N"),
]


@with_settings(Loading)
@with_settings(TrainSettings, *READING)
def predict(
    adapter: Adapter,
    texts: Texts = None,
    pair: Pair = None,
    file: FileOrFolder = None,
    format: Format = None,
    output: Annotated[
        Path | None,
        option(
            "Write to this file, in the format of its ending. For a folder, write to this folder.",
            OUTPUT,
            default="standard output",
        ),
    ] = None,
    all_tasks: AllTasks = False,
    abstain: Abstain = None,
    mark_truncated: MarkTruncated = False,
    ray: Ray = False,
    workers: Workers = None,
    **options: Any,
) -> None:
    """Classify texts, a file, a folder of files, or the lines of standard input.

    Each line of standard input is a text, or a pair of texts separated by a tab.

    For example:

    ptune predict runs/mine "where is my parcel?"

    ptune predict runs/mine --file new.csv --output labels.csv

    ptune predict runs/mine --file mails/ --output labelled/

    ptune predict runs/mrpc "It rains." --pair "Rain falls."

    ptune predict runs --file new.csv --output labels.csv --all-tasks
    """
    from ptune.inference.jobs import Recipe

    if file and texts:
        raise PtuneError("Give texts or --file, not both.")
    if pair is not None and (not texts or len(texts) != 1):
        raise PtuneError("--pair requires exactly one text before it.")
    if workers is not None and not ray:
        raise PtuneError("--workers is for Ray. Add --ray, or leave it out.")
    if not file:
        check_options(options, "texts")
    check_output(output, file, may_be_folder=file is not None and not all_tasks)
    recipe = Recipe(
        adapter, min_confidence=abstain, mark_truncated=mark_truncated, **read_with(options)
    )
    if all_tasks:
        without = (ray, recipe.revision, abstain is not None, mark_truncated, format == "table")
        kind = _format_of_all(output, format)
        bank = _bank(recipe, has_none_of=without)
        columns = bank[next(iter(bank))].text_columns if len(bank) else ()
        source = texts_of(texts, pair, file, recipe.trained_on(columns))
        _predict_all(bank, source, output, kind)
        return
    recipe = on_runtime(recipe)
    if file and output:
        _predict_files(file, output, recipe, format, ray=ray, workers=workers)
        return
    if ray or (file and file.is_dir()):
        raise PtuneError("A folder, and --ray, require --file and --output. Give both.")
    shown = shown_format(texts, file, output, format)
    classifier = recipe.load()
    source = texts_of(texts, pair, file, recipe.trained_on(classifier.text_columns))
    answer(classifier, source, output, shown, abstain, mark_truncated=mark_truncated)


def on_runtime(recipe: Recipe) -> Recipe:
    """The same with the export of its adapter, if another runtime than PyTorch shall run it."""
    if recipe.runtime == "torch" or is_export(recipe.adapter):
        return recipe
    from ptune.export.loading import graph_of

    own: Any = {"model": None, "revision": None, "allow_other_backbone": False}
    folder = graph_of(recipe.adapter, **{name: getattr(recipe, name) for name in own})
    return replace(recipe, adapter=str(folder), **own)


def shown_format(
    texts: list[str] | None, file: Path | None, output: Path | None, format: str | None
) -> str:
    """The format of what a command prints or writes.

    On standard output, it is by default a table for typed texts on a terminal.
    """
    from ptune.inference.files import check_typed, output_format

    is_shown = output is None and texts and texts != ["-"] and console.is_terminal
    shown = "table" if format is None and is_shown else output_format(output, format)
    check_typed(shown, file)
    return shown


def texts_of(
    texts: list[str] | None, pair: str | None, file: Path | None, recipe: Recipe
) -> Source:
    """The texts of a command: typed, in a file, or on standard input."""
    from ptune.inference.files import Source

    if file:
        return Source.of_file(file, recipe.columns, recipe.dialect)
    if not texts or texts == ["-"]:
        return Source.of_texts(_lines(sys.stdin))
    for text in filter(os.path.isfile, texts):
        warnings.warn(
            f"{text} is a file, and its name is read as a text. For the texts in it, use "
            f"--file {text}.",
            stacklevel=2,
        )
    return Source.of_texts(texts if pair is None else [(texts[0], pair)])


def _lines(stream: Iterable[str]) -> Iterator[str | tuple[str, str]]:
    if isinstance(stream, io.TextIOWrapper):
        # Without a locale, Python would read wrong bytes as surrogates.
        stream.reconfigure(errors="strict")
    try:
        for i, line in enumerate(stream):
            line = line if i else line.removeprefix("\ufeff")  # a byte-order mark
            first, tab, second = line.rstrip("\n").partition("\t")
            yield (first, second) if tab else first
    except UnicodeDecodeError as error:
        raise PtuneError(
            f"Standard input is not UTF-8: {error}. Convert it (`iconv -f cp1252 -t utf-8`), or "
            "write a CSV file and name its encoding: --file texts.csv --encoding cp1252."
        ) from error


def answer(
    classifier: TextClassifier,
    source: Source,
    output: Path | None,
    format: str,
    abstain: float | None = None,
    *,
    mark_truncated: bool = False,
) -> None:
    """Classify the texts of one source, to a file or to standard output."""
    from ptune.inference import files

    if output:
        with (
            staged_file(output) as file,
            files.writer(file, format, classifier, mark_truncated=mark_truncated) as out,
        ):
            count, truncated = files.write(classifier, source, out, abstain)
        say(f"{counted(count, 'prediction', 'predictions')} in {output}", errors)
    elif format == "table":
        truncated = 0
        for _, shown, predicted in files.predictions(classifier, source, abstain):
            print_predictions(shown, predicted)
            truncated += sum(prediction.truncated for prediction in predicted)
    else:
        out = files.text_writer(sys.stdout, format)
        out.mark_truncated = mark_truncated
        count, truncated = files.write(classifier, source, out, abstain)
        if not count:
            say("There are no texts to classify.", errors)
    _say_truncated(truncated)


def _bank(recipe: Recipe, has_none_of: Iterable[Any]) -> PromptBank:
    """All adapters of a folder. Prints which were refused."""
    from ptune.inference.bank import PromptBank

    if any(has_none_of) or recipe.runtime != "torch":
        raise PtuneError(
            "--all-tasks does not work with --ray, --revision, --abstain, --mark-truncated, "
            "--runtime and --format table. Leave them out."
        )
    own = ("model", "dtype", "allow_other_backbone")
    bank = PromptBank.from_folder(recipe.adapter, **{name: getattr(recipe, name) for name in own})
    if not len(bank) and bank.refused:
        raise PtuneError(
            f"None of the tasks in {recipe.adapter} can be used. {' '.join(bank.refused.values())}"
        )
    for reason in bank.refused.values():
        say(reason, errors)
    return bank


def _format_of_all(output: Path | None, format: str | None) -> str:
    """The format of the predictions of all tasks."""
    from ptune.inference import files

    kind = files.output_format(output, format)
    if kind in files.TYPED:
        raise PtuneError(f"--all-tasks does not write .{kind} files. Name a .jsonl or .csv file.")
    return kind


def _predict_all(bank: PromptBank, source: Source, output: Path | None, kind: str) -> None:
    """Classify the texts of one source with all tasks, to a file or to standard output."""
    from ptune.inference import files

    if output is None:
        _, truncated = files.write_all(bank, source, files.text_writer(sys.stdout, kind))
    else:
        with staged_file(output) as file, files.text_file(file, kind) as out:
            count, truncated = files.write_all(bank, source, out)
        say(f"{count} texts with the predictions of {len(bank)} tasks in {output}", errors)
    _say_truncated(truncated)


def _predict_files(
    file: Path, output: Path, recipe: Recipe, format: str | None, *, ray: bool, workers: int | None
) -> None:
    from rich.progress import track

    from ptune.inference.jobs import find_jobs, run_jobs

    def show(results: Iterable[Any], total: int) -> Iterable[Any]:
        return track(results, "files", total, console=errors, transient=True)

    jobs = find_jobs(file, output, recipe, format)
    todo = [job for job in jobs if not job.is_done()]
    rows, truncated = run_jobs(todo, recipe, ray=ray, workers=workers, show=show)
    done = len(jobs) - len(todo)
    before = f"; {counted(done, 'file was', 'files were')} done before" if done else ""
    say(f"{counted(rows, 'prediction', 'predictions')} in {output}{before}", errors)
    _say_truncated(truncated)


def _say_truncated(texts: int) -> None:
    if texts:
        some = counted(texts, "text was not read: it is", "texts was not read: they are")
        say(f"A part of {some} too long.", errors)


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


@with_settings(Loading)
@with_settings(TrainSettings, "task", "data_dir", "dataset", "dataset_config", *READING, *LABELLED)
def evaluate(
    adapter: Adapter,
    file: LabelledFile = None,
    split: Annotated[
        str | None,
        option("Split of the data set.", DATA, default="test, or validation", metavar="NAME"),
    ] = None,
    output: Annotated[Path | None, file_option("Also write the scores to this JSON file.")] = None,
    as_json: AsJson = False,
    **options: Any,
) -> None:
    """Score a classifier on a labelled file, a data set or a GLUE task's evaluation set.

    For example:

    ptune evaluate runs/mine --file b.csv

    ptune evaluate runs/news --dataset ag_news
    """
    from ptune.data.glue import evaluation_sets
    from ptune.inference.jobs import Recipe
    from ptune.texts import as_rows

    check_output(output, file)
    asked = {**options, "file": file, "split": split}
    if source := source_of(asked):
        check_options(asked, source)
    classifier = on_runtime(Recipe(adapter, **load_with(options))).load()
    how = {"file": file, "split": split, **read_with(options, classifier.text_columns, adapter)}
    sets, metrics = evaluation_sets(classifier.labels_, **how)
    scores = {
        (f"{name}_" if name else "") + key: value
        for name, (texts, labels) in sets.items()
        for key, value in classifier.evaluate(as_rows(texts), labels, metrics).items()
    }
    # A correlation with equal numbers is NaN.
    print_json(scores) if as_json else console.print_json(json_line(scores))
    if output:
        with staged_file(output) as written:
            write_json(written, scores)


@with_settings(Loading, "revision")
def info(adapter: Adapter, as_json: AsJson = False, **where: Any) -> None:
    """Print an adapter's backbone, size, labels and scores."""
    from ptune.adapters.adapter import describe

    found = describe(adapter, **where)
    if as_json:
        print_json(found)
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in found.items():
        table.add_row(key, str(value))
    console.print(table)
