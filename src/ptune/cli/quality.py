"""`ptune check` for data, `ptune report` for a classifier, `ptune drift` for new texts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from ptune.cli.options import (
    LABELLED,
    OUTPUT,
    READING,
    Adapter,
    AsJson,
    AsJsonList,
    LabelledFile,
    Loading,
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
from ptune.data.sources import check_options
from ptune.errors import PtuneError
from ptune.files import (
    METRICS_NAME,
    REPORT_NAME,
    SETTINGS_NAME,
    check_output,
    read_metrics,
    staged_file,
)
from ptune.training.settings import DATA, MODEL, TrainSettings

if TYPE_CHECKING:
    from ptune.data.dataset import TaskData

COLOURS = {"error": "red", "warning": "yellow", "note": "cyan"}


Fix = Annotated[
    Path | None,
    file_option(
        "Write the data without incomplete and repeated rows, with repaired characters and one "
        "spelling of each label."
    ),
]


@with_settings(TrainSettings, *READING, *LABELLED[:3])
def check(
    data: Annotated[
        Path, typer.Argument(help="A labelled file, of any kind that ptune train reads.")
    ],
    eval_file: Annotated[
        Path | None, file_option("Also look for its texts in the training file.", DATA)
    ] = None,
    model: Annotated[
        str,
        option(
            "Backbone that finds near-duplicates, likely wrong labels and texts that are too long.",
            MODEL,
            metavar="MODEL",
        ),
    ] = "minilm",
    fast: Annotated[
        bool, option("Leave out the checks that need a backbone.", MODEL, "--fast")
    ] = False,
    strict: Annotated[
        bool, option("Exit with code 1 if there are errors or warnings.", OUTPUT, "--strict")
    ] = False,
    fix: Fix = None,
    output: Annotated[
        Path | None, file_option("Write a CSV file with every row that was found.")
    ] = None,
    as_json: AsJsonList = False,
    **options: Any,
) -> None:
    """Look for mistakes in labelled data, before a training.

    It finds duplicates, conflicting and likely wrong labels, texts that are also in the evaluation
    file, broken characters, misspelled and rare labels, labels that one word gives away, and
    personal data.

    Example: ptune check mail.csv --eval-file test.csv
    """
    from ptune.quality import check as checks

    for written in (output, fix):
        check_output(written, data, eval_file)
    how = read_with(options)
    train = checks.Examples.read(data, **how)
    evaluation = checks.Examples.read(eval_file, **how) if eval_file else None
    found = checks.check(train, evaluation, model=None if fast else model, show=_progress)
    if output:
        checks.write_findings(found, train, evaluation, output)
    if as_json:
        print_json([asdict(finding) for finding in found])
    else:
        _show(found, train.rows.texts, train.rows.is_single, fast)
    if fix:
        done = checks.write_fixed(train, fix)
        listed = ", ".join(f"{name} {n}" for name, n in done.items())
        say(f"Wrote {fix}. Rows: {listed}.", errors)
    if strict and any(finding.level != "note" for finding in found):
        raise typer.Exit(1)


@with_settings(Loading, "model", "dtype")
@with_settings(TrainSettings, *READING, *LABELLED)
def report(
    adapter: Adapter,
    file: LabelledFile = None,
    slice_column: Annotated[
        list[str] | None,
        option(
            "Also split the scores by the values of this column.",
            DATA,
            default="none",
            metavar="NAME",
        ),
    ] = None,
    train_file: Annotated[
        Path | None, file_option("The training file.", DATA, "the one of the run")
    ] = None,
    fast: Annotated[
        bool,
        option("Leave out logistic regression and the nearest training texts.", MODEL, "--fast"),
    ] = False,
    output: Annotated[
        Path | None, file_option("The page.", default="reports/FILE.html in the run folder")
    ] = None,
    as_json: AsJson = False,
    **options: Any,
) -> None:
    """Write a page about what a classifier gets right and wrong.

    Without --file, it is about the evaluation set of the run. The same as JSON and a CSV file of
    the mistakes are next to it.

    Example: ptune report runs/mine --file gold.csv --slice-column country
    """
    from ptune.inference.classifier import load
    from ptune.quality import evidence, report
    from ptune.training.start import dataset_of_run

    run = Path(adapter)
    page = run / REPORT_NAME
    if file is not None:  # a classifier on the Hub has no folder here
        page = (run if run.is_dir() else Path()) / "reports" / f"{file.stem}.html"
    page = output or page
    for written in report.written_with(page):
        check_output(written, file, train_file)
    report.check_page(page)
    if file is None:
        check_options({**options, "slice_column": slice_column}, "run")
    classifier = load(adapter, **load_with(options))
    data = dataset_of_run(run, train_file)
    if file is None:
        found = evidence.of_run(classifier, _with_evaluation(data, adapter, train_file))[0]
    else:
        how: dict[str, Any] = {"slices": tuple(slice_column or ()), "data": data}
        how |= read_with(options, classifier.text_columns, adapter)
        found = evidence.of_file(classifier, file, **how)
    backbone = None if fast else report.backbone_of(classifier)
    content = report.build(found, backbone, _progress)
    results = read_metrics(run / METRICS_NAME)
    report.write(content, page, report.pictures(found, content, results))
    if as_json:
        print_json({k: v for k, v in content.items() if k != "mistakes"})
    else:
        _show_scores(content)
        say(f"Wrote {page}, and next to it {page.stem}.json and {report.mistakes_name(page)}.")


@with_settings(Loading, "model", "dtype")
@with_settings(TrainSettings, *READING)
def drift(
    adapter: Adapter,
    file: Annotated[Path, option("New texts, in any kind of file that ptune predict reads.", DATA)],
    reference: Annotated[
        Path | None,
        file_option(
            "Texts to compare with.", DATA, "the evaluation set of the run, or its training set"
        ),
    ] = None,
    fast: Annotated[bool, option("Leave out the backbone's features.", MODEL, "--fast")] = False,
    strict: Annotated[
        bool, option("Exit with code 1 if something has shifted.", OUTPUT, "--strict")
    ] = False,
    as_json: AsJsonList = False,
    **options: Any,
) -> None:
    """Compare new texts, which need no labels, with those that a classifier was made for.

    It compares predicted labels, confidence, length, and the backbone's features.

    Example: ptune drift runs/mail --file last_week.csv
    """
    from ptune.inference.classifier import load
    from ptune.quality import drift as shifts
    from ptune.quality import evidence, report

    classifier = load(adapter, **load_with(options))
    how = read_with(options, classifier.text_columns)
    if reference is None:
        known = evidence.reference_texts(Path(adapter), classifier.labels_)
    else:
        known = evidence.texts_of(reference, **how)
    new = evidence.texts_of(file, **how)
    backbone = None if fast else report.backbone_of(classifier)
    found = shifts.drift(classifier, known, new, model=backbone, show=_progress)
    if as_json:
        print_json([{**asdict(s), "is_shift": s.is_shift} for s in found])
    else:
        table = Table("", "reference", "new", "size", "p-value", "")
        for s in found:
            verdict = Text("shifted", "yellow") if s.is_shift else "as before"
            texts = s.name, s.reference, s.new
            table.add_row(*texts, f"{s.size:.3f}", f"{s.p_value:.3f}", verdict)
        console.print(table)
    if strict and any(s.is_shift for s in found):
        raise typer.Exit(1)


@with_settings(Loading, "model", "dtype")
def explain(
    adapter: Adapter,
    text: Annotated[str, typer.Argument(help="The text.")],
    pair: Annotated[
        str | None,
        option("Second text of a pair.", DATA, default="none", metavar="TEXT"),
    ] = None,
    label: Annotated[
        str | None,
        option("The label to explain.", OUTPUT, default="the most probable one", metavar="NAME"),
    ] = None,
    train_file: Annotated[
        Path | None,
        file_option(
            "Also show the three training texts that are most like it: of this file.", DATA
        ),
    ] = None,
    output: Annotated[Path | None, file_option("Also write the text as a page.")] = None,
    as_json: AsJson = False,
    **loading: Any,
) -> None:
    """Show which words of a text decide its label.

    Green words support the label, red ones oppose it: without them, the classifier is less or more
    sure.

    Example: ptune explain runs/mail "where is my parcel?"
    """
    from ptune.inference.classifier import load
    from ptune.quality import explain as explaining
    from ptune.quality import report
    from ptune.training.start import dataset_of_run

    check_output(output, train_file)
    classifier = load(adapter, **loading)
    found = explaining.explain(classifier, text if pair is None else (text, pair), label)
    backbone = report.backbone_of(classifier)
    if train_file and backbone and (data := dataset_of_run(Path(adapter), train_file)):
        data = data.for_labels(classifier.labels_) or data
        found = explaining.with_nearest(found, data, backbone)
    if output:
        with staged_file(output) as page:
            page.write_text(found.to_html(), encoding="utf-8")
    if as_json:
        print_json(found.to_json())
        return
    say(f"{found.label} {found.score:.3f}")
    console.print(found.to_rich(), soft_wrap=True)
    table = Table("word", "weight")
    for word in sorted(found.words, key=lambda word: -abs(word.weight))[:8]:
        table.add_row(word.text, f"{word.weight:+.3f}")
    console.print(table)
    if found.nearest:
        table = Table("training text", "label")
        for alike in found.nearest:
            table.add_row(alike.text, alike.label)
        console.print(table)


def _with_evaluation(data: TaskData | None, adapter: str, train_file: Path | None) -> TaskData:
    """The data of a run, if it is here and has an evaluation set."""
    if data is None:
        raise PtuneError(
            f"The data of {adapter} is not here. Name a labelled file (--file), or the training "
            "file (--train-file)."
        )
    if not data.evaluation:
        raise PtuneError(
            f"{adapter} has no {SETTINGS_NAME}, so it is not known which texts of {train_file} "
            "were not learned. Name a labelled file with other texts (--file)."
        )
    return data


def _show_scores(content: dict[str, Any]) -> None:
    baselines = content["baselines"]
    title = f"{content['name']}: {content['rows']:,} texts ({content['measured_on']})"
    table = Table("", "value", "95% interval", *baselines, title=title)
    for row in content["scores"]:
        own = f"{row['value']:.4f}", f"{row['low']:.4f} to {row['high']:.4f}"
        others = [f"{scores[row['metric']]:.4f}" for scores in baselines.values()]
        table.add_row(row["metric"].replace("_", " "), *own, *others)
    if found := content.get("calibration"):
        table.add_row("calibration error", f"{found['ece']['after']:.4f}")
    console.print(table)


def _progress(batches: Iterable[list[int]], total: int) -> Iterable[list[int]]:
    from rich.progress import track

    return track(batches, "reading", total, console=errors, transient=True)


def _show(found: list[Any], texts: list[str], is_single: bool, fast: bool) -> None:
    table = Table("check", "found", "rows", "what to do", title=f"{len(texts):,} examples")
    for finding in found:
        rows = ", ".join(map(str, finding.rows[:4])) + (", …" if len(finding.rows) > 4 else "")
        name = Text(finding.check, COLOURS[finding.level])
        table.add_row(name, finding.problem, rows, finding.advice)
    if found:
        console.print(table)
    else:
        say(f"Nothing was found in {len(texts):,} examples.")
    if fast:
        say("Not looked for: near-duplicates, wrong labels, texts that are too long.", errors)
    elif not is_single:
        say("Not looked for: wrong labels, because texts can have several.", errors)
