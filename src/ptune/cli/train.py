"""`ptune train` and `ptune demo`."""

from __future__ import annotations

import dataclasses
import difflib
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ptune.cli.options import (
    FIRST,
    OUTPUT,
    AsJson,
    Overwrite,
    Seed,
    console,
    errors,
    file_option,
    option,
    option_of,
    print_json,
    say,
    typed,
    with_settings,
)
from ptune.cli.predict import print_predictions
from ptune.errors import PtuneError, on_one_line
from ptune.files import METRICS_NAME, SETTINGS_NAME, read_json, staged_file, write_json
from ptune.training.declaration import settings_of
from ptune.training.settings import DATA, DECIDED, MODEL, TRAINING, TrainSettings

if TYPE_CHECKING:
    from ptune.training.run import Run
    from ptune.training.summary import Summary


OutputDir = Annotated[
    Path,
    option("Folder for the adapter, its scores and its pictures.", OUTPUT, metavar="DIR"),
]
Config = Annotated[
    Path | None,
    file_option(
        "Take settings from a YAML or JSON file, such as the settings.json of another run. "
        "Options override them."
    ),
]
SaveConfig = Annotated[
    Path | None,
    file_option("Write the settings of this call to a YAML or JSON file, for --config."),
]
DryRun = Annotated[bool, option("Print what the data look like, and stop.", OUTPUT, "--dry-run")]
Seeds = Annotated[
    int,
    option(
        "Train N times, with N seeds counted from --seed, and print mean and standard deviation.",
        TRAINING,
        default="1",
        metavar="N",
    ),
]
DataCurve = Annotated[
    bool,
    option(
        "Also train on 10%, 25% and 50% of the data, and estimate what more data would bring.",
        TRAINING,
        "--data-curve",
    ),
]
Resume = Annotated[
    bool, option("Continue the interrupted run in the output folder.", OUTPUT, "--resume")
]
_SETTINGS = settings_of(TrainSettings)
_EACH = "Column with the label. Repeat it to train a task for each column."
LabelColumns = Annotated[
    list[str] | None, option_of(replace(_SETTINGS["label_column"], help=_EACH))
]
DemoEpochs = Annotated[
    float | None,
    option_of(
        replace(
            _SETTINGS["epochs"],
            unset="half of those of ptune train; for a decoder 2 of all examples and 4 of few",
        )
    ),
]
TasksDir = Annotated[
    Path | None,
    option("Train a task for each file in this folder.", DATA, default="none", metavar="DIR"),
]
GroupColumn = Annotated[
    str | None,
    option(
        "Train a task for each value in this column, such as customers.",
        DATA,
        default="none",
        metavar="NAME",
    ),
]


@with_settings(TrainSettings)
def train(
    context: typer.Context,
    *,
    output_dir: OutputDir,
    config: Config = None,
    save_config: SaveConfig = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    seeds: Seeds = 1,
    data_curve: DataCurve = False,
    overwrite: Overwrite = False,
    resume: Resume = False,
    label_column: LabelColumns = None,
    tasks_dir: TasksDir = None,
    group_column: GroupColumn = None,
    **options: Any,
) -> None:
    """Train a classifier on your own file, a 🤗 data set or a GLUE task; or one for each task.

    For example:

    ptune train --task mrpc --data-dir glue --output-dir runs/mrpc

    ptune train --train-file a.csv --eval-file b.csv --output-dir runs/mine

    ptune train --dataset ag_news --output-dir runs/news

    ptune train --tasks-dir customers --prompt reader --output-dir runs/customers
    """
    from ptune.cli.fleet import several_tasks, train_tasks
    from ptune.training.folder import is_begun
    from ptune.training.report import TrainingProgress
    from ptune.training.run import train_run, train_seeds
    from ptune.training.summary import verdict

    if seeds < 1:
        raise PtuneError(f"seeds is {seeds}; expected a whole number of at least 1.")
    tasks = several_tasks(options, label_column, tasks_dir, group_column)
    if data_curve and (seeds > 1 or tasks or TrainSettings().processes > 1):
        raise PtuneError("--data-curve goes with one task, one seed and one process.")
    first = output_dir if seeds == 1 else output_dir / f"seed-{options['seed']}"
    before = TrainSettings.read(first).to_dict() if resume and is_begun(first) else {}
    settings, given = read_settings(context, options, config, before)
    if save_config:
        _save_config(given, save_config, None if is_begun(first) else first, context, tasks)
    to = errors if as_json else console
    if tasks:
        if dry_run or seeds > 1:
            raise PtuneError("Several tasks have neither --dry-run nor --seeds. Leave it out.")
        with interruptible(output_dir, runs=2):
            train_tasks(settings, tasks, output_dir, as_json, overwrite=overwrite, resume=resume)
        return
    how: dict[str, Any] = {
        "overwrite": overwrite,
        "resume": resume and not dry_run,
        "progress": TrainingProgress(to),
        "show": _Shown(to, dry_run, as_json, settings.skip_empty),
    }
    with interruptible(output_dir, runs=seeds), tempfile.TemporaryDirectory() as elsewhere:
        if dry_run:
            # Shows what there is; training refuses empty texts. GLUE has none.
            train_run(replace(settings, skip_empty=settings.task is None), elsewhere, **how)
        if seeds == 1:
            run = train_run(settings, output_dir, **how)
            write_report(run)
            curve = _data_curve(run, settings, to, how["progress"]) if data_curve else {}
            shown = run.metrics | {"verdict": verdict(run.metrics)} | curve
            print_json(shown) if as_json else show_run(run)
            return
        numbers = range(settings.seed, settings.seed + seeds)
        spread = train_seeds(settings, output_dir, numbers, **how)
        print_json(spread) if as_json else _show_spread(spread, output_dir, seeds)


def read_settings(
    context: typer.Context,
    options: dict[str, Any],
    config: Path | None,
    before: dict[str, Any] | None = None,
) -> tuple[TrainSettings, dict[str, Any]]:
    """The settings of a command, and those among them that are given.

    Args:
        context: The command's; it has the fields of `TrainingArguments`.
        options: The command's options with the names of settings.
        config: A file with settings.
        before: Settings of the run that is resumed. What the user gives must agree with them.
    """
    typed = {name: value for name, value in options.items() if was_typed(context, name)}
    if "epochs" in typed and "preset" in typed:
        warnings.warn(f"--preset {typed['preset']} is not used: --epochs decides.", stacklevel=1)
    given = {**(before or {}), **(TrainSettings.read(config).to_dict() if config else {})}
    if before:
        given["processes"] = TrainSettings().processes
    arguments = {**given.pop("training_arguments", {}), **parse_training_arguments(context.args)}
    given |= typed
    settings = TrainSettings(**given, training_arguments=arguments)
    return settings, given | ({"training_arguments": arguments} if arguments else {})


class _Shown:
    """Prints the summary of the data once, and stops there in a dry run."""

    def __init__(self, to: Console, dry_run: bool, as_json: bool, skip_empty: bool) -> None:
        self.to, self.dry_run, self.as_json, self.done = to, dry_run, as_json, False
        self.skip_empty = skip_empty

    def __call__(self, summary: Summary) -> None:
        if self.dry_run and self.as_json:
            print_json(summary.to_dict())
        elif not self.done:
            for title, line in summary.lines().items():
                say(f"{title:9} {line}", self.to)
        self.done = True
        if self.dry_run:
            if "without a text" in summary.columns and not self.skip_empty:
                say("Rows without a text: fill them in, or train with --skip-empty.", errors)
            raise typer.Exit


def _save_config(
    content: dict[str, Any],
    file: Path,
    new_run: Path | None,
    context: typer.Context,
    tasks: dict[str, Any],
) -> None:
    """Write the settings that are given, and print what they do not hold.

    Args:
        content: The settings.
        file: Where to.
        new_run: The folder of the run, if it is new.
        context: The command's.
        tasks: As from `several_tasks`.
    """
    import yaml

    if new_run is not None and not tasks and file.absolute().is_relative_to(new_run.absolute()):
        raise PtuneError(
            f"--save-config {file} is in the output folder, which must be empty when a run starts. "
            "Name a file elsewhere. The run writes its settings to settings.json there too."
        )
    if file.suffix not in ("", ".json", ".yaml", ".yml"):
        raise PtuneError(
            f"--save-config {file} ends in {file.suffix!r}; settings are written as .yaml or .json."
        )
    if file.is_file() and file.stat().st_size:
        try:
            TrainSettings.read(file)
        except PtuneError as error:
            raise PtuneError(
                f"--save-config {file} would replace a file that holds no settings. Name another "
                "file."
            ) from error
    with staged_file(file) as written:
        if file.suffix in (".yaml", ".yml"):
            written.write_text(yaml.safe_dump(content, sort_keys=False), "utf-8")
        else:
            write_json(written, content)
    # Not settings, so they must be given again.
    names = [f"--{name.replace('_', '-').replace('columns', 'column')}" for name in tasks]
    names += [f"--{n.replace('_', '-')}" for n in ("seeds", "data_curve") if was_typed(context, n)]
    if names:
        say(f"{file} does not hold {' and '.join(names)}: repeat it with --config.", errors)


def _data_curve(run: Run, settings: TrainSettings, to: Console, progress: Any) -> dict[str, Any]:
    """Train on parts of the data, and print what they tell."""
    from ptune.quality.data_curve import data_curve

    found = data_curve(
        run,
        settings,
        progress=progress,
        show_part=lambda size: say(f"Training on {size:,} examples.", to),
    )
    table = Table("training examples", found.metric.replace("_", " "), "95% interval")
    for points, what in ((found.measured, ""), (found.predicted, " (predicted)")):
        for p in points:
            table.add_row(f"{p.examples:,}{what}", f"{p.score:.3f}", f"{p.low:.3f} to {p.high:.3f}")
    to.print(table)
    say(f"{found.sentence}\nThe picture is {run.folder / 'data_curve.png'}.", to)
    return {"data_curve": dataclasses.asdict(found) | {"sentence": found.sentence}}


def was_typed(context: typer.Context, name: str) -> bool:
    """Whether an option is on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def write_report(run: Run) -> None:
    """Write the report on the evaluation set. The training has succeeded, whatever happens here."""
    from ptune.inference.classifier import load
    from ptune.quality.report import report_run

    if not FIRST or not run.answers:
        return
    try:
        dtype = TrainSettings.read(run.folder).dtype
        report_run(run.folder, load(run.folder, dtype=dtype), run.data)
    except Exception as error:  # Whatever the data holds, the classifier is there.
        say(f"There is no report ({error}). Try `ptune report {typed(run.folder)}`.", errors)


def show_run(run: Run) -> None:
    """Print the scores of a run, and what to do with it."""
    from ptune.training.summary import verdict

    scores = run.metrics["eval"]
    table = Table("", *[k.replace("_", " ") for k in scores], title=run.metrics["task"])
    table.add_row("p-tuned", *[f"{v:.4f}" for v in scores.values()])
    if base := run.metrics["majority"]:
        title = "majority class" + (" (tie)" if run.metrics["majority_tie"] else "")
        table.add_row(title, *[f"{base[k]:.4f}" if k in base else "" for k in scores])
    console.print(table)
    _show_problem_type(run.metrics)
    if warning := verdict(run.metrics):
        errors.print(warning, style="yellow", highlight=False, soft_wrap=True)
    what = '"…" --pair "…"' if run.metrics["text_pairs"] else '"…"'
    say(
        f"Saved in {run.folder}: adapter, metrics.json, settings.json, pictures, report.html.\n"
        f"Try it: ptune predict {typed(run.folder)} {what}"
    )


def _show_problem_type(metrics: dict[str, Any]) -> None:
    names, kind = metrics["labels"], metrics.get("problem_type", "a classifier")
    shown = ", ".join(on_one_line(name, 40) for name in names[:10])
    shown += ", …" if len(names) > 10 else ""
    labels = f" with {len(names)} labels: {shown}" if len(names) > 1 else ""
    say(f"Trained as {kind}{labels}. To change that, use --problem-type.")


def _show_spread(spread: dict[str, dict[str, float]], folder: Path, seeds: int) -> None:
    table = Table("", *[k.replace("_", " ") for k in spread], title=f"{seeds} seeds")
    table.add_row("mean", *[f"{v['mean']:.4f}" for v in spread.values()])
    table.add_row("standard deviation", *[f"{v['std']:.4f}" for v in spread.values()])
    console.print(table)
    _show_problem_type(read_json(next(folder.glob("seed-*")) / METRICS_NAME))
    say(f"Saved in {folder}: seeds.json, and a run for each seed.")


def demo(
    output_dir: Annotated[Path, option("Folder for the run.", OUTPUT, metavar="DIR")] = Path(
        "runs/demo"
    ),
    model: Annotated[
        str, option("Backbone. A decoder, such as smollm2, is first asked untrained.", MODEL)
    ] = "minilm",
    seed: Seed = 0,
    epochs: DemoEpochs = None,
    overwrite: Overwrite = False,
) -> None:
    """Train on support emails that come with ptune, and classify a few messages.

    The emails to an online shop have twelve intents. The demo compares the p-tuned classifier with
    the majority class and with logistic regression on the same backbone's embeddings. With --model
    smollm2, it compares no, few and all training examples. It needs no network.
    """
    from ptune.backbones.loading import is_decoder
    from ptune.demo import CURVE, EXAMPLES, run_decoder_demo, run_demo
    from ptune.training.report import TrainingProgress

    decoder = is_decoder(model)
    with interruptible(output_dir):
        run, rows = (run_decoder_demo if decoder else run_demo)(
            output_dir,
            model=model,
            seed=seed,
            epochs=epochs,
            overwrite=overwrite,
            progress=TrainingProgress(console),
        )
        write_report(run)
    table = Table("", "accuracy", "macro F1", "trained parameters", title="Support mail, test set")
    for name, scores, parameters in rows:
        table.add_row(
            name, f"{scores['accuracy']:.3f}", f"{scores['f1_macro']:.3f}", f"{parameters:,}"
        )
    console.print(table)
    import ptune

    classifier = ptune.load(output_dir)
    print_predictions(EXAMPLES, list(classifier.stream(EXAMPLES)))
    picture = f", and {output_dir}/{CURVE}" if decoder else ""
    say(
        f"Scores, pictures and mistakes: {output_dir}/report.html{picture}\n"
        f'Your turn: ptune predict {typed(output_dir)} "the box was empty when I opened it"'
    )


@contextmanager
def interruptible(output_dir: Path, command: str = "train", runs: int = 1) -> Iterator[None]:
    """After Ctrl-C, print how to continue and exit with code 130.

    Args:
        output_dir: The run folder, or the folder of several runs.
        command: The command that continues.
        runs: With several runs, only the whole command tells which.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        if FIRST:
            one = f"ptune {command} --resume --output-dir {typed(output_dir)}"
            how = "repeat the command with --resume" if runs > 1 else one
            begun = runs > 1 or (output_dir / SETTINGS_NAME).is_file()
            none = "Interrupted before the training began. Repeat the command to start again."
            say(f"Interrupted. To continue: {how}" if begun else none, errors)
        raise typer.Exit(130) from error


def parse_training_arguments(words: list[str]) -> dict[str, Any]:
    """Parse options that are fields of 🤗 `TrainingArguments`, as that class does.

    Raises:
        PtuneError: There is no such field, or its value is wrong.
    """
    if not words:
        return {}
    from transformers import HfArgumentParser, TrainingArguments

    class Parser(HfArgumentParser):
        def error(self, message: str) -> Any:
            raise PtuneError(f"{message}. See `ptune train --help`.")

    known = {f.name for f in dataclasses.fields(TrainingArguments) if f.init}
    words, names = _check_names(words, known)
    parsed = Parser(TrainingArguments, allow_abbrev=False).parse_args(words)
    return {name: getattr(parsed, name) for name in names}


def _check_names(words: list[str], known: set[str]) -> tuple[list[str], list[str]]:
    """The words as `HfArgumentParser` reads them, and the fields that they set."""
    own = {f.name for f in dataclasses.fields(TrainSettings)}
    names: list[str] = []
    words = [w for word in words for w in (word.split("=", 1) if word.startswith("--") else [word])]
    for i, word in enumerate(words):
        if not word.startswith("--"):
            if i == 0 or (not words[i - 1].startswith("--") and not names):
                hint = "See `ptune train --help`."
                if Path(word).is_file():
                    hint = f"Name one file, with --train-file {word}."
                raise PtuneError(f"{word!r} was not expected here. {hint}")
            continue
        name = word[2:].replace("-", "_")
        words[i] = f"--{name}"
        if name not in known:
            others = (known | own) - DECIDED.keys() | {"output_dir"}
            near = difflib.get_close_matches(name, others, n=1) or [
                other for other in sorted(own) if name == "".join(w[0] for w in other.split("_"))
            ]
            hint = f"Did you mean --{near[0].replace('_', '-')}?" if near else "See --help."
            raise PtuneError(f"There is no option {word}. {hint}")
        if name in DECIDED:
            raise PtuneError(f"Use --{DECIDED[name].replace('_', '-')} instead of {word}.")
        names.append(name)
    return words, names
