"""Notes on settings that a run does not use."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

from ptune.data.dataset import LABEL, TaskData
from ptune.errors import counted, listed, on_one_line
from ptune.labels import Labels
from ptune.postprocessing import Goal
from ptune.training.declaration import settings_of
from ptune.training.settings import TrainSettings

# Settings by what uses them; `_unused` tells why a run does not.
_OF_PROMPT = ("num_virtual_tokens", "prompt_learning_rate", "prompt_init", "prompt_init_scale")
_OF_READER = ("keep_texts", "keep_texts_in", "keep_texts_on_disk")


def note_unused(
    given: TrainSettings, labels: Labels, resolved: Callable[[TrainSettings], TrainSettings]
) -> None:
    """Warn about each setting that was given and changes nothing.

    Args:
        given: The settings before they are resolved. The file of a run has resolved ones, so
            what would be chosen anyway is not noted.
        labels: The labels to learn.
        resolved: Fills in what settings leave open.

    Raises:
        PtuneError: The goal of the thresholds is wrong.
    """
    declared = settings_of(TrainSettings)
    found = {name: why for name, why in _unused(given) if _is_given(given, name)}
    if found:
        left_open = resolved(replace(given, **{n: declared[n].default for n in found}))
        for name, why in found.items():
            if getattr(given, name) != getattr(left_open, name):
                _note(given, name, why)
    if given.threshold_for is not None and (no_goal := _why_no_goal(given, labels)):
        _note(given, "threshold_for", no_goal)


def note_too_few(data: TaskData, per_label: int) -> None:
    """Warn about labels that have fewer examples than are to be drawn of each."""
    counts = Counter(data.train[LABEL])
    fewer = {data.labels.names[i]: n for i, n in counts.items() if n < per_label}
    if len(fewer) == len(counts):
        most = max(counts.values())
        why = f"no label has more than {counted(most, 'training example', 'training examples')}"
        warnings.warn(f"examples_per_label {per_label} is not used: {why}.", stacklevel=3)
    elif fewer:
        shown = listed([f"{on_one_line(name, 40)} {n}" for name, n in fewer.items()], 5)
        warnings.warn(
            f"{counted(len(fewer), 'label has', 'labels have')} fewer training examples than "
            f"examples_per_label {per_label}: {shown}. All of them are learned.",
            stacklevel=3,
        )


def _note(given: TrainSettings, name: str, why: str) -> None:
    value = getattr(given, name)
    shown = f"{value:g}" if isinstance(value, float) else repr(value)
    warnings.warn(f"{name} {shown} is not used: {why}.", stacklevel=4)


def _is_given(settings: TrainSettings, name: str) -> bool:
    return bool(getattr(settings, name) != settings_of(TrainSettings)[name].default)


def _unused(own: TrainSettings) -> Iterator[tuple[str, str]]:
    """The settings that others leave without effect, and why."""
    if own.prompt == "none":
        yield from ((name, "prompt 'none' trains a head alone") for name in _OF_PROMPT)
    if own.prompt != "input":
        yield "placement", "only an input prompt can be in several places"
    if own.prompt != "deep":
        yield "shift_positions", "only a deep prompt can shift the positions of a text"
    if own.prompt != "reader":
        yield from ((name, "only a reader keeps texts (prompt 'reader')") for name in _OF_READER)
    elif own.keep_texts_in is None:
        yield "keep_texts_on_disk", "keep_texts_in names no folder"
    if own.encoder == "NONE":
        yield "encoder_hidden_size", "there is no prompt encoder (encoder 'NONE')"
    if own.head == "words-frozen":
        yield "learning_rate", "head 'words-frozen' does not train"


def _why_no_goal(settings: TrainSettings, labels: Labels) -> str | None:
    """Why the goal of the thresholds has no effect; ``None``: it has one.

    Raises:
        PtuneError: It is wrong.
    """
    goal = Goal.parse(settings.threshold_for or "f1")
    if not labels.is_multi:
        return "only texts that can have several labels have thresholds"
    if goal is not None and not settings.calibrate:
        return "thresholds are chosen only with calibration, which was turned off"
    return None
