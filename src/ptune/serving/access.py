"""What clients may reach: names of tasks, files of the served folder, addresses, tokens."""

from __future__ import annotations

import re
import secrets
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit

from ptune.adapters.adapter import ENCODER_NAME, PREDICTING, TRAINED_STATE_NAME
from ptune.errors import PtuneError
from ptune.files import METRICS_NAME
from ptune.serving.settings import is_loopback

# A task's name is one part of a path, and means the same on every file system.
TASK_NAME = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$")
NAME_RULE = (
    "The name of a task has 1 to 128 letters (A to Z), digits, '_', '-' and '.', and does not "
    "start with '.' or '-'."
)
# Files of an adapter that the server reads.
FILES = (*PREDICTING, TRAINED_STATE_NAME, ENCODER_NAME, METRICS_NAME)


@lru_cache
def is_local_host(header: str) -> bool:
    """True if a Host header names this machine: a loopback address or localhost."""
    try:
        host = (urlsplit(f"//{header}").hostname or "").rstrip(".")
    except ValueError:
        return False
    return is_loopback(host) or host.endswith(".localhost")


def task_folder(folder: Path, task: str) -> Path:
    """The folder of a task's adapter.

    Raises:
        PtuneError: The name is not valid, or a link leads out of the served folder.
    """
    if not TASK_NAME.fullmatch(task):
        raise PtuneError(NAME_RULE)
    root = folder.resolve()
    for path in (root / task, *(root / task / name for name in FILES)):
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            raise PtuneError(
                f"{task}: {path.name} links to a place outside the served folder. Copy the files "
                "into the folder."
            )
    return root / task


def same_token(sent: str, token: str | None) -> bool:
    """Compare tokens in a time that does not depend on where they differ."""
    return token is not None and secrets.compare_digest(sent.encode(), token.encode())
