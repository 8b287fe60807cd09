"""`ptune tune`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from ptune.cli.options import (
    OUTPUT,
    AsJson,
    Overwrite,
    console,
    errors,
    option,
    print_json,
    say,
    with_settings,
)
from ptune.cli.train import (
    Config,
    OutputDir,
    interruptible,
    read_settings,
    show_run,
    was_typed,
    write_report,
)
from ptune.training.settings import TRAINING, TrainSettings

if TYPE_CHECKING:
    from ptune.training.tune import Tuned

Trials = Annotated[
    int,
    option("Number of trials, including those of an interrupted search.", TRAINING, metavar="N"),
]
Folds = Annotated[
    int | None,
    option(
        "Score each trial on N parts of the training data in turn. 1: on a fifth of it.",
        TRAINING,
        default="3 with fewer than 500 examples, else 1",
        metavar="N",
    ),
]
Resume = Annotated[
    bool, option("Continue the interrupted search in the output folder.", OUTPUT, "--resume")
]


@with_settings(TrainSettings)
def tune(
    context: typer.Context,
    *,
    output_dir: OutputDir,
    trials: Trials = 20,
    folds: Folds = None,
    config: Config = None,
    as_json: AsJson = False,
    overwrite: Overwrite = False,
    resume: Resume = False,
    **options: Any,
) -> None:
    """Search for better settings than the defaults, and train a classifier with them.

    It searches the kind and length of the prompt, both learning rates and the number of epochs.
    What you give as an option stays as it is. The evaluation set takes no part in the search.

    Example: ptune tune --train-file mail.csv --trials 20 --output-dir runs/mail
    """
    from ptune.labels import in_words
    from ptune.training import tune as search
    from ptune.training.report import TrainingProgress

    before = search.read_search(output_dir) if resume else {}
    settings, _ = read_settings(context, options, config, before.get("asked"))
    searched = before.get("search", search.left_open(settings))
    if not was_typed(context, "trials"):
        trials = before.get("planned", trials)
    to = errors if as_json else console

    def show_trial(trial: dict[str, Any]) -> None:
        score = trial[metric := list(trial)[2]]
        shown = "no score" if score is None else f"{in_words(metric)} {score:.3f}"
        what = ", ".join(f"{name} {_value(v)}" for name, v in list(trial.items())[4:])
        seconds = "" if trial["seconds"] is None else f" in {trial['seconds']:.0f} s"
        say(f"trial {trial['trial'] + 1:3} {trial['state']:8} {shown}{seconds}: {what}", to)

    with interruptible(output_dir, "tune"):
        found = search.tune(
            settings,
            output_dir,
            trials=trials,
            search=[name for name in searched if not was_typed(context, name)],
            folds=folds,
            overwrite=overwrite,
            resume=resume,
            progress=TrainingProgress(to),
            show_trial=show_trial,
        )
        write_report(found.run)
    if as_json:
        print_json(found.summary | {"trials": found.trials, "metrics": found.run.metrics})
        return
    show_run(found.run)
    _show_found(found)


def _value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _show_found(found: Tuned) -> None:
    table = Table("searched", "chosen", "what mattered", title="Settings")
    for name, value in found.settings.items():
        share = found.importances.get(name)
        table.add_row(name, _value(value), "" if share is None else f"{share:.0%}")
    console.print(table)
    default = found.default_score
    than = "" if default is None else f", that of the default settings {default:.3f}"
    say(
        f"Its score in the search was {found.score:.3f}{than}. The best of many scores is a little "
        "too high; the scores above are from texts that the search did not use.\n"
        f"All trials are in {found.run.folder / 'trials.csv'}."
    )
