"""Settings declared once: a dataclass field with its help, range and default.

Validation, the options of the command line, docstrings and the tables in the docs are generated
from the declarations. Nothing heavy is imported here, so that `ptune --help` stays fast.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import os
import textwrap
import types
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ptune.errors import PtuneError, near
from ptune.files import at_home

Class = TypeVar("Class", bound=type)
# The metavars of settings and options that name a file or a folder.
FILE, FILE_OR_FOLDER = "FILE", "PATH"
PLACES = (FILE, FILE_OR_FOLDER, "DIR", "MODEL")


@dataclass(frozen=True)
class Setting:
    """What a field declares.

    Attributes:
        help: What the setting does, in sentences.
        section: Where `--help` and the docs list it; empty: it is not an option.
        at_least: The smallest value.
        at_most: The largest value, together with `at_least`.
        above: The value must be larger.
        metavar: What `--help` calls the value. ``None``: its choices, or N, X or TEXT by its type.
        envvar: The environment variable that gives the value if the command line does not.
        unset: What ``None`` means, shown as the default.
        name, type, default: Those of the field, filled in by `settings_of`.
    """

    help: str
    section: str = ""
    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    metavar: str | None = None
    envvar: str | None = None
    unset: str = ""
    name: str = ""
    type: Any = None
    default: Any = None

    @property
    def kind(self) -> Any:
        """The type without ``None`` and without type arguments."""
        is_union = get_origin(self.type) in (Union, types.UnionType)
        first = get_args(self.type)[0] if is_union else self.type
        return first if get_origin(first) is Literal else get_origin(first) or first

    @property
    def choices(self) -> tuple[Any, ...]:
        """The allowed values; empty: any value of the type."""
        return get_args(self.kind)

    @property
    def values(self) -> str:
        """The allowed values in words."""
        if self.choices:
            return ", ".join(map(str, self.choices))
        expected = _KINDS[self.kind][0]
        if self.at_most is not None:
            return f"{expected} from {self.at_least:g} to {self.at_most:g}"
        if self.at_least is not None:
            return f"{expected} of at least {self.at_least:g}"
        return expected if self.above is None else f"{expected} above {self.above:g}"

    @property
    def shown_default(self) -> str:
        """The default as text; empty: there is nothing to show."""
        return self.unset if self.default is None or self.default is False else _shown(self.default)

    @property
    def full_help(self) -> str:
        """The help and the default."""
        return self.help + (f" [default: {self.shown_default}]" if self.shown_default else "")

    def checked(self, value: Any) -> Any:
        """The value, if its type and range are right; whole numbers become floats for a float.

        A grid search passes NumPy's numbers, and a path is as good as its name.

        Raises:
            PtuneError: The value is not allowed.
        """
        if value is None and type(None) in get_args(self.type):
            return None
        value = value.item() if getattr(value, "ndim", None) == 0 else value
        value = os.fspath(value) if isinstance(value, os.PathLike) else value
        value = at_home(value) if self.metavar in PLACES and isinstance(value, str) else value
        if not self._allows(value):
            one_of = "one of " if self.choices else ""
            shown = repr(value) if len(repr(value)) < 100 else f"a {type(value).__name__}"
            raise PtuneError(f"{self.name} is {shown}; expected {one_of}{self.values}.")
        return float(value) if self.kind is float else value

    def _allows(self, value: Any) -> bool:
        if self.choices:
            return value in self.choices
        return (
            isinstance(value, _KINDS[self.kind][1])
            and isinstance(value, bool) == (self.kind is bool)
            and (self.kind is not float or math.isfinite(value))
            and (self.at_least is None or value >= self.at_least)
            and (self.at_most is None or value <= self.at_most)
            and (self.above is None or value > self.above)
        )


_KINDS: dict[Any, tuple[str, Any]] = {
    bool: ("True or False", bool),
    float: ("a number", (float, int)),
    int: ("a whole number", int),
    str: ("a string", str),
    dict: ("a dictionary", dict),
    list: ("a list", list),
}


def _shown(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    if not 0 < value < 0.1:
        return f"{value:g}"
    mantissa, exponent = f"{value:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def setting(default: Any, help: str, section: str = "", **declared: Any) -> Any:
    """A dataclass field that declares a setting; the arguments are those of `Setting`."""
    how: Any = {"default_factory": default} if callable(default) else {"default": default}
    found = Setting(help, section, **declared)
    # A value that may come from the environment is a secret.
    return dataclasses.field(**how, metadata={"setting": found}, repr=found.envvar is None)


@functools.cache
def settings_of(owner: Any) -> dict[str, Setting]:
    """The settings that a dataclass, or its subclass, declares, by name."""
    (declaring, *_) = (c for c in owner.__mro__ if "__dataclass_fields__" in vars(c))
    types = get_type_hints(declaring)
    return {
        f.name: dataclasses.replace(
            f.metadata["setting"],
            name=f.name,
            type=types[f.name],
            default=None if f.default is dataclasses.MISSING else f.default,
        )
        for f in dataclasses.fields(owner)
        if "setting" in f.metadata
    }


def check_settings(owner: Any) -> None:
    """Check the settings of an object.

    Raises:
        PtuneError: A value has the wrong type or is out of range; the message names it.
    """
    kind: Any = type(owner)
    for name, declared in settings_of(kind).items():
        object.__setattr__(owner, name, declared.checked(getattr(owner, name)))  # it may be frozen


def documented(owner: Class) -> Class:
    """Replace ``{settings}`` in the docstring of a class by a line for each setting."""
    lines = [
        textwrap.fill(f"{s.name}: {s.full_help}", 92, subsequent_indent=" " * 12)
        for s in settings_of(owner).values()
    ]
    owner.__doc__ = (owner.__doc__ or "").replace("{settings}", ("\n" + " " * 8).join(lines))
    return owner


def closed(owner: Class) -> Class:
    """Make a class refuse arguments that it does not have with the names of those it has."""
    made: Any = owner.__init__  # type: ignore[misc]
    known = [name for name in inspect.signature(made).parameters if name != "self"]

    @functools.wraps(made)
    def init(self: Any, *values: Any, **named: Any) -> None:
        kind = type(self)
        for name in named.keys() - set(known):
            fit = getattr(kind, "fit", None)
            if fit is not None and name in inspect.signature(fit).parameters:
                hint = f"It is an argument of fit: {kind.__name__}().fit(X, y, {name}=…)"
            else:
                hint = near(name, known)
                hint = hint[0].upper() + hint[1:]
                hint += ". Fields of TrainingArguments are arguments of fit" if fit else ""
                if "training_arguments" in known:
                    own = f"training_arguments={{{name!r}: …}}"
                    hint += f". A field of TrainingArguments belongs in {own}"
            raise PtuneError(f"{kind.__name__} has no setting {name!r}. {hint}.")
        if len(values) > 1:
            raise PtuneError(
                f"{kind.__name__} takes one value without a name, and there are {len(values)}: "
                f"{', '.join(map(repr, values[:3]))}. Name the others, such as prompt='deep'."
            )
        made(self, *values, **named)

    owner.__init__ = init  # type: ignore[misc]
    return owner
