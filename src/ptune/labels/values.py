"""Label values: strings, numbers, booleans and enum members, with their types and names.

A label's name is a string. Its value is what the user passed; name and type together give it back,
so that files store nothing else. A *value type* is `str`, the name of a NumPy type such as `int64`
or `bool`, `int` for integers of any size, or `enum:module:class`. If the labels differ in type, it
is a tuple with one type for each.
"""

from __future__ import annotations

import enum
import math
import re
import sys
import unicodedata
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from ptune.errors import PtuneError
from ptune.labels.columns import LabelColumn, plain

ValueType = str | tuple[str, ...]

_NUMPY = ("bool", *(f"{s}int{n}" for s in ("", "u") for n in (8, 16, 32, 64)))
_NUMPY += ("float16", "float32", "float64")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
# Enum classes whose members this process has used as labels.
_enums: WeakValueDictionary[str, type[enum.Enum]] = WeakValueDictionary()


def distinct(column: LabelColumn) -> tuple[tuple[str, ...], ValueType]:
    """The names of the labels that occur, in order, and the type of their values."""
    if column.kind == "indicators":
        values = list(column.names or range(column.values.shape[1]))
        return _named(values, _type_of(values))
    all_values = column.values
    if column.kind == "several":
        all_values = [v for row in column.values for v in row]
    if column.votes is not None:
        all_values = [v for own in column.votes for v, share in own.items() if share]
    values = list({next(keys(v)): v for v in all_values}.values())
    values = [v + 0.0 if type(v) is float else v for v in values]  # -0.0 is 0.0
    value_type = _type_of(values, column.dtype)
    if isinstance(value_type, tuple):
        values.sort(key=lambda v: (str(v), type(v).__name__))
        value_type = _type_of(values)
    elif value_type.startswith("enum:"):
        members: Any = type(values[0])
        values.sort(key=list(members).index)
    else:
        values.sort()
    return _named(values, value_type)


def _named(values: Sequence[Any], value_type: ValueType) -> tuple[tuple[str, ...], ValueType]:
    types = types_of_each(value_type, len(values))
    return tuple(_name(v, each) for v, each in zip(values, types, strict=True)), value_type


def _type_of(values: Sequence[Any], dtype: np.dtype[Any] | None = None) -> ValueType:
    classes = {type(v) for v in values}
    if all(issubclass(c, enum.Enum) for c in classes):
        if len(classes) == 1:
            (class_,) = classes
            path = f"enum:{class_.__module__}:{class_.__qualname__}"
            _enums[path] = class_
            return path
    elif all(issubclass(c, str) and not issubclass(c, enum.Enum) for c in classes):
        return "str"
    elif classes <= {bool, int, float}:
        if dtype is not None and dtype.name in _NUMPY:
            return dtype.name
        name = np.asarray(values).dtype.name
        return name if name in _NUMPY else "int"
    return tuple(str(_type_of([v])) for v in values)


def types_of_each(value_type: ValueType, count: int) -> tuple[str, ...]:
    """The type of each label's value."""
    return (value_type,) * count if isinstance(value_type, str) else value_type


def type_of_all(types: Sequence[str]) -> ValueType:
    """The value type of labels whose values have these types."""
    return types[0] if len(set(types)) == 1 else tuple(types)


def _name(value: Any, value_type: str) -> str:
    if isinstance(value, enum.Enum):
        return value.name
    return str(np.dtype(value_type).type(value)) if value_type in _NUMPY else str(value)


def value_of(name: str, value_type: str) -> Any:
    """The label value that has this name.

    An enum class is looked for among the imported modules. If it is not there, the value is the
    name: reading a classifier's files never imports anything.

    Raises:
        ValueError: There is no such type, or the name does not fit it.
    """
    if value_type == "str":
        return name
    if value_type == "bool":
        return ("False", "True").index(name) == 1
    if value_type in ("int", *_NUMPY):
        if not value_type.startswith("float"):
            return int(name)
        number = float(np.dtype(value_type).type(name))  # rounded as the user's own value is
        if not math.isfinite(number):
            raise ValueError(name)
        return number
    if not isinstance(value_type, str) or not re.fullmatch(r"enum:[\w.]+:[\w.<>]+", value_type):
        raise ValueError(value_type)
    class_ = _enums.get(value_type) or _imported(*value_type.split(":")[1:])
    return name if class_ is None else class_.__members__.get(name, name)


def _imported(module: str, qualname: str) -> type[enum.Enum] | None:
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = vars(found).get(part) if hasattr(found, "__dict__") else None
    return found if isinstance(found, type) and issubclass(found, enum.Enum) else None


def in_words(name: str) -> str:
    """A label's name as people would write it in a sentence.

    Example:
        >>> in_words("lost_or-stolen_card")
        'lost or stolen card'
    """
    return name.replace("_", " ").replace("-", " ").strip() or name


def as_array(values: Sequence[Any], value_type: ValueType) -> NDArray[Any]:
    """Label values as an array of their type."""
    # NumPy cuts NULs off the end of a string.
    if value_type == "str" and not any(value.endswith("\0") for value in values):
        return np.asarray(values)
    if value_type in _NUMPY:
        return np.asarray(values, dtype=str(value_type))
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def keys(value: Any) -> Iterator[tuple[str, Any]]:
    """What a label is looked up by: first itself, then what a file or another type makes of it."""
    value = plain(value)
    if isinstance(value, enum.Enum):
        yield "enum", value.name
        yield "text", value.name
        yield from keys(value.value)
    elif isinstance(value, str):
        yield "text", value
        yield "enum", value
        if _NUMBER.fullmatch(value.strip()):
            yield "number", float(value)
        elif value.strip().lower() in ("true", "false"):
            yield "bool", value.strip().lower() == "true"
    else:
        yield ("bool" if isinstance(value, bool) else "number"), value
        yield "number", value
        yield "bool", value
        yield "text", str(value)
        if isinstance(value, float) and value.is_integer():
            yield "text", str(int(value))
        if type(value) is int:  # pandas adds a fraction to whole numbers if some are missing
            yield "text", f"{value}.0"


def _visible(name: str) -> str:
    """A name without case, white space and invisible characters."""
    folded = unicodedata.normalize("NFKC", name).casefold()
    return "".join(c for c in folded if not c.isspace() and unicodedata.category(c) != "Cf")


def check_names(names: Sequence[str], column: LabelColumn) -> None:
    """Refuse too few and too many labels, and warn about those that look the same.

    Raises:
        PtuneError: There is only one label, or nearly one per example, or two have one name.
    """
    where, in_file = column.origin, column.origin.in_file
    right = "Is it the right column (--label-column)?" if in_file else "Are these the labels?"
    if not names:
        raise PtuneError(f"No example has a label ({where}). A classifier needs at least two.")
    if len(names) < 2:
        none = "" if column.kind == "one" else " or none"
        raise PtuneError(
            f"Every example has the label {names[0]!r}{none} ({where}). This is only one class, "
            f"and a classifier needs at least two. {right}"
        )
    if len(names) > max(100, len(column) // 2):
        option = "--problem-type regression" if in_file else "problem_type='regression'"
        raise PtuneError(
            f"There are {len(names)} different labels in {len(column)} examples ({where}). {right} "
            f"To predict numbers as numbers, use {option}."
        )
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise PtuneError(
            f"Two labels of different types are both written {twice[0]!r} ({where}). Convert all "
            "labels to one type, for example with str()."
        )
    warn_of_alike(names, where)


def warn_of_alike(names: Sequence[str], where: Any) -> None:
    """Warn about labels that look the same.

    Args:
        names: Names of the labels.
        where: Where they are from.
    """
    alike = defaultdict(list)
    for name in names:
        alike[_visible(name)].append(name)
    groups = [" and ".join(map(repr, group)) for group in alike.values() if len(group) > 1]
    if groups:
        warnings.warn(
            f"Some labels differ only in case, white space or Unicode form ({where}): "
            f"{'; '.join(groups[:3])}. They are different labels. If that is a mistake, correct "
            "them (`ptune check --fix` does) and train again.",
            stacklevel=3,
        )
