"""What may be published: nothing here names a path of this machine."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from ptune.adapters.download import is_hub_id


@dataclass(frozen=True)
class PublicBackbone:
    """The name of a backbone for others.

    Attributes:
        name: Its id on the Hub. A folder of this machine becomes ``./name``, which is not an id, so
            that nobody loads another model that happens to be called like the folder.
        revision: Its revision on the Hub.
        is_local: True if it is a folder of this machine.
    """

    name: str | None
    revision: str | None
    is_local: bool

    @classmethod
    def of(cls, name: str | None, revision: str | None) -> PublicBackbone:
        """From the fields of `adapter_config.json`."""
        if not name:
            return cls(None, revision, is_local=False)
        # A folder of the Hub's own cache: models--owner--name/snapshots/<commit>.
        if cached := re.search(r"models--([^/\\]+)[/\\]snapshots[/\\]([0-9a-f]{40})", name):
            return cls(cached[1].replace("--", "/"), cached[2], is_local=False)
        if Path(name).is_dir() or not is_hub_id(name):
            return cls(f"./{last_part(name)}", None, is_local=True)
        return cls(name, revision, is_local=False)

    @property
    def on_hub(self) -> bool:
        """True if others can download it by its name."""
        return self.name is not None and not self.is_local


def last_part(path: str) -> str:
    """The last part of a path of any operating system."""
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def without_paths(value: Any) -> Any:
    """A JSON value in which every path of this machine is cut to its last part."""
    if isinstance(value, dict):
        return {key: without_paths(v) for key, v in value.items()}
    if isinstance(value, list):
        return [without_paths(v) for v in value]
    if isinstance(value, str) and _is_path(value):
        return last_part(value)
    return value


def _is_path(value: str) -> bool:
    """Whether a string names something on this machine, as far as one can tell."""
    return bool(last_part(value)) and (
        Path(value).is_absolute()
        or PureWindowsPath(value).is_absolute()
        or value.startswith(("~/", "../"))
        or ("/" in value and _exists(Path(value)))
    )


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a part of it is too long for a name
        return False
