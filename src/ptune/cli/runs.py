"""`ptune list` and `ptune compare`."""

from __future__ import annotations

import warnings
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column, Table

from ptune.cli.options import (
    LABELLED,
    READING,
    AsJson,
    LabelledFile,
    Loading,
    console,
    first_score,
    load_with,
    print_json,
    read_with,
    say,
    with_settings,
)
from ptune.errors import PtuneError, listed
from ptune.files import CHECKPOINTS
from ptune.training.settings import TrainSettings

if TYPE_CHECKING:
    import numpy as np

    from ptune.inference.text_classifier import TextClassifier

# Columns of `ptune list` that are not broken inside a word.
WIDTHS = {"score": 8, "date": 10, "labels": 6, "kB": 4}
# A difference that chance gives this often is no difference.
CHANCE = 0.05


def list_runs(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with run folders.")],
    as_json: AsJson = False,
) -> None:
    """List the classifiers in a folder: task, labels, score, date, backbone and size.

    Example: ptune list runs
    """
    if not folder.is_dir():
        raise PtuneError(f"{folder} is not a folder. Name the folder that holds your runs.")
    from ptune.adapters.adapter import WEIGHTS_NAME

    found = {file.parent for file in folder.glob(f"[!.]*/{WEIGHTS_NAME}")}
    # The tasks or seeds of one training.
    parts = {file.parent for file in folder.glob(f"[!.]*/[!.]*/{WEIGHTS_NAME}")}
    found |= {p for p in parts if p.parent not in found and p.parent.name != CHECKPOINTS}
    rows = [_row(run, run.relative_to(folder).as_posix()) for run in sorted(found)]
    if as_json:
        print_json({"runs": rows})
        return
    if not rows:
        say(f"{folder} holds no classifiers. Train one with `ptune train`.")
        return
    # On narrow terminals, names of runs that start alike stay apart.
    columns = [Column(name, overflow="fold", min_width=WIDTHS.get(name)) for name in rows[0]]
    lean: dict[str, Any] = {"box": None, "padding": (0, 1, 0, 0)}
    table = Table(*columns, **(lean if console.width < 80 else {}))
    for row in rows:
        table.add_row(*map(str, row.values()))
    console.print(table)


def _row(run: Path, name: str) -> dict[str, Any]:
    from ptune.adapters.adapter import WEIGHTS_NAME, Adapter
    from ptune.files import METRICS_NAME, read_metrics

    weights = run / WEIGHTS_NAME
    row: dict[str, Any] = {"run": name, "task": "", "labels": "", "score": ""}
    row["date"] = f"{datetime.fromtimestamp(weights.stat().st_mtime):%Y-%m-%d %H:%M}"
    row |= {"backbone": "", "kB": round(weights.stat().st_size / 1000)}
    try:
        adapter = Adapter.read(run, own_backbone=True)
        metrics = read_metrics(run / METRICS_NAME)
    except PtuneError:
        return row | {"task": "(damaged)"}
    scores = metrics.get("eval", {})
    row |= {"task": metrics.get("task", ""), "labels": len(adapter.labels)}
    if score := first_score(scores):
        row["score"] = f"{score} {scores[score]:.3f}"
    return row | {"backbone": Path(adapter.config.base_model_name_or_path or "").name}


@with_settings(Loading, "model", "allow_other_backbone", "dtype")
@with_settings(TrainSettings, *READING, *LABELLED)
def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="A run folder or a Hub id.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Another one, with these labels.")],
    file: LabelledFile = None,
    as_json: AsJson = False,
    **options: Any,
) -> None:
    """Compare two classifiers on one labelled file, with McNemar's test.

    The test counts the texts that only one of them labels correctly. It asks whether chance alone
    would distribute these texts so unevenly.

    Example: ptune compare runs/deep runs/input --file gold.csv
    """
    import numpy as np
    from scipy import stats

    from ptune.inference.classifier import load

    if file is None:
        raise PtuneError("Name a labelled file to compare on: --file gold.csv.")
    loading = load_with(options)
    right, labels = [], []
    for adapter in (first, second):
        classifier = load(adapter, **loading)
        how = read_with(options, classifier.text_columns, adapter)
        right.append(_right(classifier, file, how))
        labels.append(set(classifier.labels))
    own, others = labels
    if own != others:
        named = listed(sorted(map(str, own ^ others)), 5)
        warnings.warn(
            f"Only one of the two classifiers has {named}. Fewer labels are an easier task, so the "
            "difference does not tell which classifier is better.",
            stacklevel=2,
        )
    both = ~np.isnan(right).any(axis=0)
    if not both.any():
        raise PtuneError(f"No text of {file} has a label that both classifiers can answer with.")
    right = [found[both].astype(bool) for found in right]
    only = [int((a & ~b).sum()) for a, b in (right, right[::-1])]
    p = stats.binomtest(only[0], sum(only)).pvalue if sum(only) else 1.0
    result: dict[str, Any] = {
        "texts": len(right[0]),
        "accuracy": [float(r.mean()) for r in right],
        "right": [int(r.sum()) for r in right],
        "only_this_right": only,
        "p": float(p),
    }
    if as_json:
        print_json(result)
        return
    table = Table("", "accuracy", "right", "only this one right")
    for i, name in enumerate((first, second)):
        table.add_row(name, f"{result['accuracy'][i]:.4f}", str(result["right"][i]), str(only[i]))
    console.print(table)
    better = first if only[0] > only[1] else second
    say(
        f"McNemar's exact test on {len(right[0])} texts: p = {p:.3g}. "
        + (f"{better} is better." if p < CHANCE else "The difference may be chance.")
    )


def _right(classifier: TextClassifier, file: Path, how: dict[str, Any]) -> np.ndarray:
    """Which texts of a file a classifier labels correctly, as 0 and 1; NaN: it does not count."""
    import numpy as np

    from ptune.data.dataset import texts_to_evaluate
    from ptune.inference.text_classifier import warn_of_unseen
    from ptune.labels import comparable
    from ptune.texts import as_rows

    labels = classifier.labels_
    if labels.is_regression:
        raise PtuneError("A regression has no right and wrong answers; use `ptune evaluate`.")
    numbers: list[int] = []
    (texts, column), rows = texts_to_evaluate(file, labels, numbers=numbers, **how)
    found = np.full(len(numbers), np.nan)
    targets, unseen = labels.targets(column)
    warn_of_unseen(targets, unseen)
    predicted = np.asarray(classifier.predict(as_rows(texts)))
    if labels.is_single:
        names = [*labels.classes.tolist(), *[None] * (int(np.max(targets, initial=0)) + 1)]
        found[rows] = [names[t] == p for t, p in zip(targets, predicted.tolist(), strict=True)]
        return found
    targets, predicted, known = comparable(labels, targets, predicted)
    found[known] = (targets == predicted).all(axis=1)[known]
    return found
