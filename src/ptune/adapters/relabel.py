"""Labels of an adapter, changed after training: only `ptune.json` differs."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ptune.adapters.adapter import Adapter
from ptune.adapters.schema import INFO_NAME
from ptune.errors import PtuneError
from ptune.files import METRICS_NAME, SETTINGS_NAME, check_new, locked
from ptune.labels import Labels


def relabel(
    source: str | os.PathLike[str],
    change: Callable[[Labels], Labels],
    output: str | os.PathLike[str] | None = None,
) -> tuple[Labels, Path | None]:
    """Change the labels of an adapter.

    Args:
        source: The adapter.
        change: Returns the new labels for the old ones.
        output: A new folder for the adapter, which also gets the settings and scores of its run;
            ``None``: it changes in place, and its `ptune.json` stays under another name.

    Returns:
        The new labels, and the name under which the old `ptune.json` stays.

    Raises:
        PtuneError: There is no such adapter, `change` refuses, or the folder is not empty or is
            being changed by another command.
    """
    folder = Path(source)
    if output is not None:
        changed = _changed(source, change)
        check_new(Path(output))
        changed.save(output)
        for name in (SETTINGS_NAME, METRICS_NAME):  # it is the same run
            if (file := folder / name).is_file():
                shutil.copyfile(file, Path(output) / name)
        return changed.labels, None
    if not folder.is_dir():
        _changed(source, change)  # refuses what is no adapter
        raise PtuneError(f"{source} is on the Hub and cannot be changed. Name a folder (--output).")
    with locked(folder) as free:
        if not free:
            raise PtuneError(
                f"Another command is changing {folder}, so nothing was changed. Run this one again "
                "when it has ended."
            )
        return _changed_in_place(folder, change)


def _changed(source: str | os.PathLike[str], change: Callable[[Labels], Labels]) -> Adapter:
    adapter = Adapter.read(source, own_backbone=True)
    return replace(adapter, labels=change(adapter.labels))


def _changed_in_place(
    folder: Path, change: Callable[[Labels], Labels]
) -> tuple[Labels, Path | None]:
    changed, backup = _changed(folder, change), None
    if (info := folder / INFO_NAME).is_file():
        free = (folder / f"ptune.{number}.json" for number in itertools.count(1))
        backup = next(file for file in free if not file.exists())
        shutil.copy2(info, backup)
    changed.save(folder)
    return changed.labels, backup
