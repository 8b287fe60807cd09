"""Errors that the user can fix, and helpers for their messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


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


def near(name: str, known: Iterable[str]) -> str:
    """The names that exist, and the one that was probably meant, as the end of a message."""
    known = list(known)
    close = difflib.get_close_matches(name.lower(), [k.lower() for k in known], n=1, cutoff=0.6)
    guess = next((k for k in known if close and k.lower() == close[0]), None)
    there = f"here are: {listed(known)}"
    return f"did you mean {guess!r}? T{there}" if guess else f"t{there}"


def listed(names: Sequence[str], limit: int = 20) -> str:
    """Names with commas between them, for a message.

    Example:
        >>> listed(["", "text", "label"], limit=2)
        '(no name), text, …'
    """
    shown = [name if name.strip() else "(no name)" for name in names[:limit]]
    return ", ".join(shown) + (", …" if len(names) > limit else "")


def positions(found: Sequence[int], first: int, limit: int = 5) -> str:
    """Where in a collection (counted from 0) or in a file (counted from 1), for a message.

    Args:
        found: Positions, counted from 0.
        first: The number of the first one: 0 for a collection, 1 for a file.
        limit: How many to list.

    Example:
        >>> positions([2, 20], 0)
        'position 2, 20 (counting from 0)'
    """
    listed = ", ".join(str(i + first) for i in found[:limit])
    more = ", …" if len(found) > limit else ""
    return f"{'row' if first else 'position'} {listed}{more} (counting from {first})"


def missing_package(package: str | None, extra: str) -> PtuneError:
    """The error to raise when an optional package cannot be imported."""
    return PtuneError(
        f"{package} is not installed. Install it with `pip install 'ptune[{extra}]'`."
    )
