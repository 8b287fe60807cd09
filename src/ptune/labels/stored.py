"""Labels in JSON files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from ptune.errors import PtuneError
from ptune.labels.columns import PROBLEM_TYPES, is_unicode
from ptune.labels.labels import Labels


def labels_to_json(labels: Labels) -> dict[str, Any]:
    """Labels as fields of a JSON object."""
    content: dict[str, Any] = {"labels": list(labels.names), "problem_type": labels.problem_type}
    if labels.outputs is not None:
        content["label_outputs"] = list(labels.outputs)
    if labels.aliases:
        content["label_aliases"] = dict(labels.aliases)
    each = labels.value_type
    if each != "str":
        content["label_type"] = each if isinstance(each, str) else list(each)
    return content


def labels_from_json(content: Mapping[str, Any], where: str, count: int = 2) -> Labels:
    """Read what `labels_to_json` wrote.

    Args:
        content: A JSON object; its other fields are ignored.
        where: The file, for messages.
        count: How many labels there are if the file does not name them: LABEL_0, LABEL_1 and so on.

    Raises:
        PtuneError: The labels, their type or the problem type are not valid, or a label is there
            twice.
    """

    def damaged(what: str) -> PtuneError:
        return PtuneError(f"{where} is damaged: {what}. Save or download it again.")

    names, problem_type = content.get("labels"), content.get("problem_type")
    value_type, outputs = content.get("label_type", "str"), content.get("label_outputs")
    aliases = content.get("label_aliases") or {}
    if problem_type not in (None, *PROBLEM_TYPES):
        raise damaged(
            f"problem_type is {str(problem_type)[:80]!r}. Expected one of "
            f"{', '.join(PROBLEM_TYPES)}"
        )
    if names is None:
        return Labels(tuple(f"LABEL_{i}" for i in range(count)), problem_type)
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise damaged(f"labels is {str(names)[:80]}. Expected a list of strings")
    if wrong := [name for name in names if not is_unicode(name)]:
        raise damaged(f"the label {wrong[0][:80]!r} is not valid Unicode (it has a lone surrogate)")
    known = range(-1, len(names))
    if outputs is not None and not (
        isinstance(outputs, list)
        and all(type(n) is int and n in known for n in outputs)
        and set(outputs) >= set(known[1:])
        and len(outputs) > len(names)
    ):
        raise damaged(
            f"label_outputs is {str(outputs)[:80]}. Expected a list with the number of each label, "
            "or -1"
        )
    each = tuple(value_type) if isinstance(value_type, list) else value_type
    if not isinstance(aliases, dict) or not all(
        is_unicode(name) and type(n) is int and n in known for name, n in aliases.items()
    ):
        raise damaged(
            f"label_aliases is {str(aliases)[:80]!r}. Expected an object with the number of a "
            "label, or -1, for each further name"
        )
    changed = None if outputs is None else tuple(outputs)
    labels = Labels(tuple(names), problem_type, each, changed, tuple(aliases.items()))
    try:
        labels.classes  # noqa: B018
    except (TypeError, ValueError, OverflowError) as error:
        raise damaged(
            f"label_type is {str(value_type)[:80]!r}, which does not fit the labels "
            f"{', '.join(names)[:80]}"
        ) from error
    if twice := [value for value, count in Counter(labels.values).items() if count > 1]:
        raise PtuneError(
            f"{where} has the label {str(twice[0])[:80]!r} twice. Give each label its own name. To "
            "make one label of several, use `ptune merge-labels`."
        )
    return labels
