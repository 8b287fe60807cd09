"""Labels that change after training: `rename-label`, `merge-labels`, `drop-label`, `add-labels`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ptune.cli.options import (
    LABELLED,
    OUTPUT,
    READING,
    Adapter,
    console,
    file_option,
    option,
    read_with,
    say,
    with_settings,
)
from ptune.training.settings import DATA, TrainSettings

if TYPE_CHECKING:
    from ptune.labels import Labels

NewFolder = Annotated[
    Path | None,
    option(
        "Write the adapter to this folder.",
        OUTPUT,
        default="change it in place, and keep its ptune.json under another name",
        metavar="DIR",
    ),
]


def rename_label(
    adapter: Adapter,
    old: Annotated[str, typer.Argument(help="The label.")],
    new: Annotated[str, typer.Argument(help="Its new name.")],
    output: NewFolder = None,
) -> None:
    """Give a label another name, without training.

    For example:

    ptune rename-label runs/mail refund "money back"
    """
    from ptune.labels import edits

    _change(adapter, lambda labels: edits.rename(labels, old, new), output)


def merge_labels(
    adapter: Adapter,
    labels: Annotated[list[str], typer.Argument(help="The labels.")],
    into: Annotated[str, option("Name of the new label.", OUTPUT, "--into")],
    output: NewFolder = None,
) -> None:
    """Make one label of several, without training. Their probabilities add up.

    For example:

    ptune merge-labels runs/mail invoice payment --into billing
    """
    from ptune.labels import edits

    _change(adapter, lambda found: edits.merge(found, labels, into), output)


def drop_label(
    adapter: Adapter,
    label: Annotated[str, typer.Argument(help="The label.")],
    output: NewFolder = None,
) -> None:
    """Never answer with a label, without training. Its probability goes to the others.

    For example:

    ptune drop-label runs/mail other --output runs/mail-2
    """
    from ptune.labels import edits

    _change(adapter, lambda labels: edits.drop(labels, label), output)


@with_settings(TrainSettings, *READING, *LABELLED)
def add_labels(
    adapter: Adapter,
    train_file: Annotated[
        Path, option("Labelled texts, with the new labels.", DATA, metavar="FILE")
    ],
    output: Annotated[
        Path, option("Write the new classifier to this folder.", OUTPUT, metavar="DIR")
    ],
    replay: Annotated[
        Path | None,
        file_option(
            "Labelled texts with the old labels.",
            DATA,
            "the features that the run kept (--keep-features), or its training file",
        ),
    ] = None,
    **options: Any,
) -> None:
    """Add labels to a classifier. The prompt stays; the head is fitted to old and new texts.

    For example:

    ptune add-labels runs/mail --train-file more.csv --replay old.csv --output runs/mail-2
    """
    from ptune.inference import grow
    from ptune.training.calibration import MIN_ROWS

    how = read_with(options)
    found = grow.add_labels(adapter, train_file, output, replay=replay, **how)
    old, new = found.texts
    say(f"{len(found.labels)} labels in {output}; new are {', '.join(found.added)}.", console)
    say(f"Fitted to {old:,} old and {new:,} new texts. Accuracy on a fifth held out:", console)
    for name, accuracy in found.accuracy.items():
        say(f"  {name:18} {accuracy:.3f}", console)
    if not found.calibrated:
        say(f"Probabilities are not calibrated: a fifth is less than {MIN_ROWS} texts.", console)


def _change(adapter: str, change: Callable[[Labels], Labels], output: Path | None) -> None:
    from ptune.adapters.relabel import relabel

    labels, backup = relabel(adapter, change, output)
    say(f"Labels in {output or adapter}: {', '.join(labels.names)} ({len(labels)})", console)
    if backup is not None:
        say(f"The former ptune.json is {backup}.", console)
