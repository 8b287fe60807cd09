"""Labels that are added after training: `ptune add-labels`.

The prompt stays as it is, and the last layer of the head is fitted anew to the features of old and
new texts together, so no label is forgotten.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import DataCollatorWithPadding

from ptune.data.dataset import Examples, dataset_of, labelled_texts, that_count
from ptune.data.tables import Columns
from ptune.errors import PtuneError
from ptune.files import SETTINGS_NAME, check_new, read_if_there
from ptune.inference.classifier import PromptClassifier, load
from ptune.labels import Labels, known_names
from ptune.labels.values import (
    distinct,
    type_of_all,
    types_of_each,
    value_of,
    warn_of_alike,
)
from ptune.postprocessing import RAW, Goal
from ptune.training import calibration
from ptune.training.features import (
    LABELS,
    Features,
    last_layer,
    never_zero,
    read_features,
)
from ptune.training.fitting import fit_head
from ptune.training.start import dataset_of_run
from ptune.training.trainer import tokenize

# Part of the texts on which the new head is measured and calibrated, before it is fitted to all.
HELD_OUT = 5


@dataclass(frozen=True)
class Growth:
    """Labels that were added.

    Attributes:
        labels: All labels, the old ones first.
        added: Names of the new ones.
        texts: Number of old and of new texts.
        accuracy: On a fifth of the texts, by a head that did not see them: of the old texts with
            the old head (which did see them) and the new one, and of the new texts.
        calibrated: Whether the fifth was large enough to calibrate probabilities.
    """

    labels: Labels
    added: tuple[str, ...]
    texts: tuple[int, int]
    accuracy: dict[str, float]
    calibrated: bool


@dataclass(frozen=True)
class _Set:
    """Features ``[n, width]`` and targets of texts."""

    features: Tensor
    targets: NDArray[Any]

    def part(self, rows: NDArray[Any]) -> _Set:
        return _Set(self.features[torch.from_numpy(rows)], self.targets[rows])


@dataclass(frozen=True)
class _Layer:
    """The last layer of a head."""

    weight: Tensor
    bias: Tensor | None

    @classmethod
    def fitted(cls, texts: _Set, labels: Labels, *, has_bias: bool) -> _Layer:
        x = texts.features
        weight = nn.Parameter(x.new_zeros(len(labels), x.shape[1]))
        bias = nn.Parameter(x.new_zeros(len(labels))) if has_bias else None
        mean, std = x.mean(dim=0), never_zero(x.std(dim=0, correction=0))
        features = Features("", weight, bias, x, np.arange(len(x)), torch.arange(len(x)), mean, std)
        fit_head(features, labels, Dataset.from_dict({LABELS: texts.targets.tolist()}))
        return cls(weight.detach(), None if bias is None else bias.detach())

    def logits(self, texts: _Set) -> NDArray[Any]:
        return nn.functional.linear(texts.features, self.weight, self.bias).double().numpy()


def add_labels(
    source: str | os.PathLike[str],
    train_file: str | Path,
    output: str | Path,
    *,
    replay: str | Path | None = None,
    **how: Any,
) -> Growth:
    """Add the labels of a file to a classifier, and save it as a new one.

    Args:
        source: The classifier's run folder, or another adapter.
        train_file: Labelled texts, with new labels.
        output: A new folder.
        replay: Labelled texts with the old labels; ``None``: the features that the run kept, or
            its training file.
        **how: How the files are read, as for `labelled_texts`.

    Raises:
        PtuneError: There are no old texts, no new label, or nowhere to write; or the classifier
            predicts a number, has merged labels, or a head without a linear layer.
    """
    check_new(Path(output))
    classifier = load(source)
    before, model = classifier.labels_, classifier.prompt_model_
    names = last_layer(model)
    reasons = {
        "it predicts a number": before.is_regression,
        "its labels were merged or dropped": before.outputs is not None,
        "it reads long texts in windows": classifier._reading().in_windows,
        "its head does not end in a linear layer of its own": names is None,
    }
    if names is None or any(reasons.values()):
        why = next(reason for reason, holds in reasons.items() if holds)
        raise PtuneError(
            f"Labels cannot be added to {source}: {why}. Train it again with all labels."
        )
    asked = replace(how.get("columns", Columns()), trained=classifier.text_columns)
    asked = asked.as_in_run(source)
    how |= {"problem_type": before.kind, "columns": asked}
    new_texts, _ = that_count(labelled_texts(train_file, **how), before)
    labels = _grown(before, new_texts, train_file)
    old = _old_texts(classifier, source, replay, **how)
    new = _features(classifier, new_texts, labels, train_file)
    old = _Set(old.features, _widened(old.targets, before, labels))
    adapter = classifier._adapter()
    weight, bias = names
    own = _Layer(adapter.head[weight].float(), adapter.head[bias].float() if bias else None)
    values, accuracy = _measured(own, old, new, before, labels, _goal(classifier, source))
    layer = _Layer.fitted(_joined(old, new), labels, has_bias=bias is not None)
    head = {**adapter.head, weight: layer.weight}
    if bias is not None and layer.bias is not None:
        head[bias] = layer.bias
    check_new(Path(output))  # another command may have filled it meanwhile
    replace(adapter, labels=labels, head=head, postprocessing=values).save(output)
    added = labels.names[len(before) :]
    sizes = len(old.targets), len(new.targets)
    return Growth(labels, added, sizes, accuracy, values is not RAW)


def _grown(before: Labels, examples: Examples, file: str | Path) -> Labels:
    """The old labels, and then those that only the new file has."""
    column = examples[1].check().for_problem(before.kind)
    names, kind = distinct(column)
    types = dict(zip(names, types_of_each(kind, len(names)), strict=True))
    added = [name for name in names if value_of(name, types[name]) not in before]
    if not added:
        raise PtuneError(
            f"{file} has no new label; the classifier knows {', '.join(names[:5])}"
            f"{', …' if len(names) > 5 else ''}. Train it again to learn from more texts."
        )
    warn_of_alike([*before.names, *added], column.origin)
    each = [*types_of_each(before.value_type, len(before)), *(types[name] for name in added)]
    aliases = tuple((name, i) for name, i in before.aliases if name not in added)
    return replace(
        before,
        names=(*before.names, *added),
        value_type=type_of_all(each),
        aliases=aliases,
    )


def _old_texts(
    classifier: PromptClassifier,
    source: str | os.PathLike[str],
    replay: str | Path | None,
    **how: Any,
) -> _Set:
    labels, folder = classifier.labels_, Path(source)
    if replay is not None:
        texts, _ = that_count(labelled_texts(replay, known=known_names(labels), **how), labels)
        return _features(classifier, texts, labels, replay)
    if (kept := read_features(folder)) is not None:
        return _Set(*kept)
    data = dataset_of_run(folder)
    if data is not None and (own := data.for_labels(labels)) is not None:
        return _encoded(classifier, own.train)
    why = "is not here" if data is None else "has other labels by now"
    raise PtuneError(
        f"The old labels of {source} would be forgotten: its training file {why}, and it kept no "
        "features. Name texts labelled with its labels (--replay), or train with --keep-features."
    )


def _features(
    classifier: PromptClassifier, examples: Examples, labels: Labels, file: str | Path
) -> _Set:
    columns, column = examples
    pairs = classifier._reading().pairs
    if pairs not in (None, len(columns) == 2):
        forms = ("single texts", "pairs of texts")
        raise PtuneError(
            f"The classifier was trained on {forms[bool(pairs)]}, and {file} has "
            f"{forms[not pairs]}. Name the columns with the texts (--text-column, "
            "--text-pair-column)."
        )
    return _encoded(classifier, dataset_of(columns, labels.encode(column)))


def _encoded(classifier: PromptClassifier, examples: Dataset) -> _Set:
    model, tokenizer = classifier.prompt_model_, classifier.tokenizer_
    rows, _ = tokenize(tokenizer, examples, classifier._reading())
    found = Features.of(model, rows, DataCollatorWithPadding(tokenizer), 0, len(rows))
    assert found is not None  # the head ends in a linear layer
    return _Set(found.values, np.asarray(rows[LABELS], dtype=float)[found.rows])


def _widened(targets: NDArray[Any], before: Labels, labels: Labels) -> NDArray[Any]:
    """Targets of old texts, which have none of the new labels."""
    if labels.is_single:
        return targets
    return np.pad(targets, ((0, 0), (0, len(labels) - len(before))))


def _joined(*sets: _Set) -> _Set:
    features, targets = [s.features for s in sets], [s.targets for s in sets]
    return _Set(torch.cat(features), np.concatenate(targets))


def _goal(classifier: PromptClassifier, source: str | os.PathLike[str]) -> Goal | None:
    """What the thresholds were chosen for; `None`: they are one half, or there are none."""
    if not classifier.labels_.is_multi:
        return None
    values = classifier.postprocessing_
    asked = values.facts.get("threshold_for")
    if asked is None and values.shift is not None:  # fitted on texts that could have chosen some
        return None
    settings = read_if_there(Path(source) / SETTINGS_NAME)
    return Goal.parse(asked or settings.get("threshold_for") or "f1")


def _measured(
    own: _Layer, old: _Set, new: _Set, before: Labels, labels: Labels, goal: Goal | None
) -> tuple[Any, dict[str, float]]:
    """Calibration from texts that a head did not see, and its accuracy on them."""
    rng = np.random.default_rng(0)
    inside = [rng.permutation(len(s.targets)) % HELD_OUT > 0 for s in (old, new)]
    sets = list(zip((old, new), inside, strict=True))
    layer = _Layer.fitted(
        _joined(*(s.part(rows) for s, rows in sets)), labels, has_bias=own.bias is not None
    )
    rest = [s.part(~rows) for s, rows in sets]
    logits = [layer.logits(s) for s in rest]
    targets = np.concatenate([s.targets for s in rest])
    values, _ = calibration.fit(labels, np.concatenate(logits), targets, goal)
    of_old = rest[0].targets if labels.is_single else rest[0].targets[:, : len(before)]

    def accuracy(own_labels: Labels, truth: NDArray[Any], found: NDArray[Any]) -> float:
        truth = truth.astype(int) if own_labels.is_single else truth
        return own_labels.scores(("accuracy",), truth, own_labels.decide(found))["accuracy"]

    return values, {
        "old texts, before": accuracy(before, of_old, own.logits(rest[0])),
        "old texts": accuracy(labels, rest[0].targets, logits[0]),
        "new texts": accuracy(labels, rest[1].targets, logits[1]),
    }
