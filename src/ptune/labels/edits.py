"""Labels that are renamed, merged or dropped after training. The head stays as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ptune.errors import PtuneError, near
from ptune.labels.labels import Labels
from ptune.labels.values import type_of_all, types_of_each


def rename(labels: Labels, old: Any, new: str) -> Labels:
    """Give a label another name.

    Raises:
        PtuneError: There is no such label, or another one has the new name.
    """
    number = _number(labels, old)
    _check_new(labels, new, [number])
    if new == labels.names[number]:
        return labels
    names = [new if i == number else name for i, name in enumerate(labels.names)]
    # A number or an enum member that is renamed becomes a string.
    types = list(types_of_each(labels.value_type, len(labels)))
    types[number] = "str"
    aliases = {**dict(labels.aliases), labels.names[number]: number}
    return _renamed(replace(labels, names=tuple(names), value_type=type_of_all(types)), aliases)


def merge(labels: Labels, old: Sequence[Any], into: str) -> Labels:
    """Make one label of several: see `Labels.merged`.

    If the new one has the name of one of them, that one stays as it is, with its value and place.

    Raises:
        PtuneError: There are no such labels, or another label has the new name; or the answer is a
            number.
    """
    if isinstance(old, str):
        raise PtuneError(f"{old!r} is one label; expected a list of at least two to merge.")
    numbers = sorted({_number(labels, name) for name in old})
    if len(numbers) < 2:
        raise PtuneError(
            f"Only {', '.join(map(str, old))} is to be merged; expected at least two labels."
        )
    if labels.is_single and len(numbers) == len(labels):
        raise PtuneError("All labels are to be merged into one, which every text would get.")
    _check_new(labels, into, numbers)
    kept = labels.names.index(into) if into in labels.names else numbers[0]
    gone = [number for number in numbers if number != kept]
    return rename(_without(labels, gone, kept), labels.names[kept], into)


def drop(labels: Labels, old: Any) -> Labels:
    """Never answer with a label. The probabilities of the others are larger by its share.

    Raises:
        PtuneError: There is no such label, or too few would be left.
    """
    number = _number(labels, old)
    if len(labels) == (2 if labels.is_single else 1):
        raise PtuneError(f"Without {old!r}, {len(labels) - 1} label is left; that is too few.")
    return _without(labels, [number], None)


def _without(labels: Labels, gone: list[int], to: int | None) -> Labels:
    """Without some labels, whose outputs become those of the label `to`, or of none."""
    kept = [i for i in range(len(labels)) if i not in gone]
    place = {i: kept.index(i) for i in kept} | {
        i: -1 if to is None else kept.index(to) for i in gone
    }
    types = types_of_each(labels.value_type, len(labels))
    changed = Labels(
        tuple(labels.names[i] for i in kept),
        labels.problem_type,
        type_of_all([types[i] for i in kept]),
        tuple(place.get(i, -1) for i in labels.outputs or range(len(labels))),
    )
    aliases = {name: place.get(i, -1) for name, i in labels.aliases}
    return _renamed(changed, {**aliases, **{labels.names[i]: place[i] for i in gone}})


def _renamed(labels: Labels, aliases: Mapping[str, int]) -> Labels:
    """Labels that labelled files may call by other names, too, unless a label has that name."""
    others = {name: i for name, i in aliases.items() if name not in labels.names}
    return replace(labels, aliases=tuple(others.items()))


def _number(labels: Labels, name: Any) -> int:
    """The number of a label that is named, or given as the user's own value."""
    if labels.is_regression:
        raise PtuneError("The classifier predicts a number, so it has no labels to change.")
    for known in (labels.names, labels.values):
        if name in known:
            return known.index(name)
    raise PtuneError(f"There is no label {name!r}; {near(name, labels.names)}.")


def _check_new(labels: Labels, name: str, numbers: Sequence[int]) -> None:
    if not isinstance(name, str):
        raise PtuneError(f"The new label is {name!r}; expected a string.")
    if not name.strip():
        raise PtuneError("The new label is empty. Give it a name.")
    if name in labels.names and labels.names.index(name) not in numbers:
        raise PtuneError(
            f"There is a label {name!r} already. Merge the two, or choose another name."
        )
