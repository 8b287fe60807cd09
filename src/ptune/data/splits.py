"""🤗 data sets and their splits: on the Hub, or in a folder that `save_to_disk` wrote."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptune import compat
from ptune.data.dataset import Examples, TaskData, examples_of, quiet, task_data
from ptune.data.tables import BY_NAME, Columns, Table, called, find_columns
from ptune.errors import PtuneError, near
from ptune.labels import LABEL_NAMES, Labels, known_names

if TYPE_CHECKING:  # 🤗 Datasets takes a second to import, and classifying needs none of it.
    from datasets import Dataset, Features

logger = logging.getLogger(__name__)

# Names of splits, in order of preference.
TRAIN = ("train", "training")
VALIDATION = ("validation", "valid", "val", "dev", "eval", "evaluation")
TEST = ("test", "testing")


def load_splits(name: str, config: str | None = None) -> dict[str, Dataset]:
    """The splits of a data set by name; a folder with only one is called `train`.

    Args:
        name: A folder that `save_to_disk` wrote, or an id on the Hub.
        config: The configuration (subset) on the Hub.

    Raises:
        PtuneError: There is no such data set or configuration, or the Hub cannot be reached.
    """
    from datasets import DatasetDict, load_dataset, load_from_disk

    folder = Path(name)
    try:
        with quiet():
            if folder.is_dir():
                found = load_from_disk(name)
                return dict(found) if isinstance(found, DatasetDict) else {"train": found}
            return dict(load_dataset(name, config))
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split()).rstrip(".")[:500]
        fix = (
            "Name a folder that save_to_disk wrote; for a folder of files, use --train-file."
            if folder.is_dir()
            else "Check the name and the network, or name its configuration with --dataset-config."
        )
        raise PtuneError(f"The data set {name} could not be loaded ({reason}). {fix}") from error


def load_task(
    name: str,
    config: str | None = None,
    *,
    columns: Columns = BY_NAME,
    problem_type: str | None = None,
    seed: int = 0,
    other_label: str | None = None,
    **how: Any,
) -> TaskData:
    """What to train and evaluate on: the splits train and validation, or test.

    Args:
        name, config: As for `load_splits`.
        columns: Which columns to read.
        problem_type: As in Transformers' configurations; ``None``: inferred from the labels.
        seed: Random seed of the examples that are held out, if there is no other split.
        other_label: As for `load_files`.
        **how: Other arguments of `examples_of`.

    Raises:
        PtuneError: As for `load_splits` and `examples_of`; or no split is for training.
    """
    splits = load_splits(name, config)
    train = next((split for split in TRAIN if split in splits), "")
    if not train and len(splits) > 1:
        raise PtuneError(
            f"The data set {name} has no split {TRAIN[0]!r}; there are: {', '.join(splits)}. "
            "Save the one to train on in a folder of its own."
        )
    train = train or next(iter(splits))
    evaluation = _first_labelled(splits, (*VALIDATION, *TEST), columns)

    def evaluation_examples(labels: Labels) -> Examples:
        known = {**how, "problem_type": labels.kind, "known": known_names(labels)}
        return split_examples(splits, str(evaluation), name, columns=columns, **known)

    logger.warning(
        "%s: training on the split %r, evaluating on %s.",
        name,
        train,
        repr(evaluation) if evaluation else "a fifth of it that is held out",
    )
    data = task_data(
        name,
        split_examples(splits, train, name, columns=columns, problem_type=problem_type, **how),
        evaluation_examples if evaluation else None,
        problem_type,
        seed,
        other_label,
    )
    data.revision = compat.dataset_commit(splits[train], name)
    return data


def evaluation_split(
    name: str,
    config: str | None = None,
    split: str | None = None,
    *,
    columns: Columns = BY_NAME,
    **how: Any,
) -> Examples:
    """What to evaluate on: the split test, or else validation, or else train.

    Args:
        name, config: As for `load_splits`.
        split: The name of another split.
        columns: Which columns to read.
        **how: Other arguments of `examples_of`.

    Raises:
        PtuneError: As for `load_splits` and `examples_of`; or there is no such split.
    """
    splits = load_splits(name, config)
    if split is not None and split not in splits:
        raise PtuneError(f"The data set {name} has no split {split!r}; {near(split, splits)}.")
    chosen = split or _first_labelled(splits, (*TEST, *VALIDATION, *splits), columns)
    if chosen is None:
        raise PtuneError(
            f"No split of {name} has labels to evaluate on ({', '.join(splits)}). Use "
            "`ptune predict`, or name the column with --label-column."
        )
    if split is None and len(splits) > 1:
        logger.warning("%s: evaluating on the split %r.", name, chosen)
    return split_examples(splits, chosen, name, columns=columns, **how)


def split_examples(
    splits: dict[str, Dataset], split: str, name: str, *, columns: Columns = BY_NAME, **how: Any
) -> Examples:
    """The texts and labels of a split; classes are their names."""
    dataset, where = splits[split], f"{name} ({split})"
    found = find_columns(_candidates(dataset.features, columns), columns, where)
    table: Table = {name: _cells(dataset, name) for name in (*found.texts, *found.labels)}
    return examples_of(table, where, columns=found, typed=True, **how)


def _candidates(features: Features, columns: Columns) -> list[str]:
    """Columns that may hold texts or labels; numbers are not texts."""
    from datasets import Value

    asked = (*columns.texts, *columns.labels)
    strings = ("string", "large_string", "string_view")
    return [
        name
        for name, feature in features.items()
        if name in asked
        or called(LABEL_NAMES, [name])
        or (isinstance(feature, Value) and feature.dtype in strings)
    ]


def _cells(dataset: Dataset, column: str) -> list[Any]:
    """The values of a column, with names in place of numbers of classes."""
    from datasets import ClassLabel

    feature = dataset.features[column]
    values = list(dataset[column])
    inner = getattr(feature, "feature", feature)
    if not isinstance(inner, ClassLabel):
        return values
    names = inner.names

    def named(value: Any) -> Any:
        if isinstance(value, list):
            return [named(v) for v in value]
        return None if value is None or value < 0 else names[value]  # -1: not public

    return [named(value) for value in values]


def _first_labelled(
    splits: dict[str, Dataset], order: Sequence[str], columns: Columns
) -> str | None:
    """The first split in an order that has labels."""
    for split in order:
        if split not in splits:
            continue
        names = splits[split].column_names
        label = next(iter(columns.labels), None) or called(LABEL_NAMES, names)
        if label in names and any(v is not None for v in _cells(splits[split], str(label))):
            return split
    return None
