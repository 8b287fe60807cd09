"""Errors that the user can fix, and helpers for their messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


class PtuneError(ValueError):
    """A mistake of the user's, or a file that is not as it should be.

    The message says what was found, what was expected and how to fix it. The command line prints
    it and exits with code 2; in Python it is an ordinary `ValueError`.
    """


def first_line(error: BaseException) -> str:
    """The first line of another library's message, or the error's type if it has none.

    A line that ends in a colon needs the next one.
    """
    lines = [line.strip() for line in str(error).strip().splitlines()]
    if lines and lines[0].endswith(":"):
        return " ".join(lines[:2])
    return lines[0] if lines else type(error).__name__


def near(name: object, known: Iterable[str]) -> str:
    """The names that exist, and the one that was probably meant, as the end of a message."""
    name, known = str(name), list(known)
    close = difflib.get_close_matches(name.lower(), [k.lower() for k in known], n=1, cutoff=0.6)
    close += [k.lower() for k in known if len(name) > 2 and k.lower().startswith(name.lower())]
    guess = next((k for k in known if close and k.lower() == close[0]), None)
    there = f"here are: {listed(known)}"
    return f"did you mean {guess!r}? T{there}" if guess else f"t{there}"


def counted(n: int, one: str, many: str) -> str:
    """A number with the words that fit it.

    Example:
        >>> counted(1, "row is", "rows are")
        '1 row is'
    """
    return f"{n} {one if n == 1 else many}"


def cut(text: str, most: int) -> str:
    """A text, shortened to at most `most` characters.

    Example:
        >>> cut("a long name", 7)
        'a long…'
    """
    return text if len(text) <= most else text[: most - 1] + "…"


def on_one_line(text: str, most: int = 60) -> str:
    """A text without line breaks, shortened to at most `most` characters."""
    return cut(" ".join(text.split()), most)


def listed(names: Sequence[str], limit: int = 20) -> str:
    """Names with commas between them, for a message.

    Example:
        >>> listed(["", "text", "label"], limit=2)
        '(no name), text, …'
    """
    shown = [name if name.strip() else "(no name)" for name in names[:limit]]
    return ", ".join(shown) + (", …" if len(names) > limit else "")


@dataclass(frozen=True)
class Origin:
    """Where values come from, for messages.

    Attributes:
        name: What they are, such as a column of a file.
        in_file: Whether they are rows of a file, which are counted from 1, others from 0.
        before: Number of values that came before these.
        fix: What to do about wrong ones.
    """

    name: str
    in_file: bool = False
    before: int = 0
    fix: str = "Correct them or leave them out."

    @classmethod
    def column(cls, name: Any, file: Any, **more: Any) -> Origin:
        """A column of a file or data set."""
        return cls(f"column {name!r} of {file}", in_file=True, **more)

    def __str__(self) -> str:
        return self.name

    def at(self, found: Sequence[int]) -> str:
        """Where some values are: the first five of these positions, which are counted from 0.

        Example:
            >>> Origin("the texts", before=10).at([2, 20])
            'position 12, 30 (counting from 0)'
        """
        first = 1 if self.in_file else 0
        shown = ", ".join(str(self.before + first + i) for i in found[:5])
        more = ", …" if len(found) > 5 else ""
        return f"{'row' if self.in_file else 'position'} {shown}{more} (counting from {first})"


def missing_package(package: str | None, extra: str) -> PtuneError:
    """The error to raise when an optional package cannot be imported."""
    return PtuneError(
        f"{package} is not installed. Install it with `pip install 'ptune[{extra}]'`."
    )
