"""The run folder: what may be written to it, and what an interrupted run left in it."""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ptune.adapters.adapter import PREDICTING
from ptune.data.dataset import TaskData
from ptune.errors import PtuneError, listed
from ptune.files import (
    CHECKPOINTS,
    DATA_CURVE_NAME,
    FEATURES_NAME,
    METRICS_NAME,
    NEXT_TO_REPORT,
    PICTURES,
    REPORT_NAME,
    SETTINGS_NAME,
    UNFINISHED,
    holds_something,
    locked,
    read_if_there,
    read_json,
    staged,
    write_json,
)
from ptune.training.settings import TrainSettings, is_first
from ptune.training.start import resolve

logger = logging.getLogger(__name__)

# In the folder of checkpoints: by what the data of a run is recognised when it is resumed.
DATA_NAME = "data.json"


def check_folder(folder: Path, *, overwrite: bool, resume: bool) -> None:
    """Refuse a folder that must not be written to, before any work is done.

    Only the first process checks: others may arrive after it has begun to write.

    Raises:
        PtuneError: The folder is not empty and neither flag was given, or both were, there is no
            run to resume, or the folder cannot be written.
    """
    if not is_first():
        return
    if overwrite and resume:
        raise PtuneError(
            f"--resume continues the run in {folder}, and --overwrite replaces it. Use one of them."
        )
    there = next(f for f in (folder, *folder.absolute().parents) if f.exists())
    if not there.is_dir():
        raise PtuneError(f"{there} is a file. Name a folder to write to.")
    if resume:
        if not is_begun(folder):
            inside = sorted(file.parent.name for file in folder.glob(f"[!.]*/{SETTINGS_NAME}"))
            if inside:
                raise PtuneError(
                    f"{folder} holds runs in folders of their own ({listed(inside, 3)}). Resume "
                    "them with the command that started them, and --resume."
                )
            raise PtuneError(f"{folder} holds no run to resume. Leave out --resume to start one.")
    elif holds_something(folder):
        if not is_begun(folder):
            raise PtuneError(
                f"The folder {folder} holds files that are not from a ptune run, so nothing is "
                "written to it. Choose another one."
            )
        if not overwrite:
            raise PtuneError(
                f"The folder {folder} already holds a run. Choose another one, continue an "
                "interrupted run (--resume), or replace the run in it (--overwrite)."
            )
    with staged(there):
        pass  # it can be written


def check_unchanged(
    folder: Path, settings: TrainSettings, dataset: TaskData, *, skips: bool = False
) -> None:
    """Check that resolved settings are those of the run that is resumed, and the data, too.

    Args:
        folder, settings, dataset: Those of the run.
        skips: If the run is finished, it is skipped: it is only noted that data have changed.

    Raises:
        PtuneError: Some differ.
    """
    is_changed = has_other_data(folder, dataset)
    if differing := changed_settings(folder, settings, dataset):
        also = " Its data have changed since, too." if is_changed else ""
        raise PtuneError(
            f"The run in {folder} was started with other settings: {differing}.{also} Resume it "
            "with its own settings, or start a run in another folder."
        )
    if is_changed and skips and (folder / METRICS_NAME).is_file():
        warnings.warn(
            f"The run in {folder} was trained on other examples: a file has changed since. It is "
            "finished, and stays as it is; --overwrite replaces it.",
            stacklevel=2,
        )
    elif is_changed:
        raise PtuneError(
            f"The run in {folder} was started with other examples: a file has changed since. "
            "Bring the former one back, replace the run (--overwrite), or start one in another "
            "folder."
        )


def has_other_data(folder: Path, dataset: TaskData) -> bool:
    """True if the run in a folder was started with other examples."""
    written = read_if_there(folder / CHECKPOINTS / DATA_NAME).get("digest")
    return written is not None and written != dataset.digest


def changed_settings(folder: Path, settings: TrainSettings, dataset: TaskData) -> str:
    """What differs between resolved settings and those of the run in a folder; empty: nothing."""
    before = resolve(TrainSettings.read(folder), dataset)
    return differences(before.to_dict(), settings.to_dict())


def differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What differs between the settings of two runs, as a part of a sentence; empty: nothing."""
    differing = [k for k in {**before, **now} if before.get(k) != now.get(k)]
    return ", ".join(f"{k} was {before.get(k)!r} and is {now.get(k)!r}" for k in differing)


@contextmanager
def only_run(
    folder: Path, settings: TrainSettings, data: TaskData, *, overwrite: bool, resume: bool
) -> Iterator[None]:
    """Prepare a run folder, and keep other runs out of it.

    Raises:
        PtuneError: Another run is writing to it, or was first; or it cannot be written.
    """
    with alone_in(folder):
        if is_first() and is_begun(folder):
            check_folder(folder, overwrite=overwrite, resume=resume)
        prepare_folder(folder, settings, data, keep=resume)
        yield


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep others out of a folder until the end of the context. It is created.

    Raises:
        PtuneError: Another run is writing to it.
    """
    if not is_first():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder) as free:
        if not free:
            raise PtuneError(
                f"Another run is writing to {folder}. Wait until it has ended, or choose another "
                "folder."
            )
        yield


def prepare_folder(folder: Path, settings: TrainSettings, data: TaskData, *, keep: bool) -> None:
    """Create the run folder, write the settings and delete a previous run's files unless `keep`.

    Args:
        folder, settings: The folder, and the resolved settings.
        data: By which `check_unchanged` recognises other data.
        keep: A run is resumed, so nothing changes. If it was killed before its data were noted,
            they are now.

    Raises:
        PtuneError: The folder cannot be written.
    """
    if not is_first() or (keep and (folder / CHECKPOINTS / DATA_NAME).is_file()):
        return
    if not keep:
        with staged(folder) as stage:
            write_json(stage / SETTINGS_NAME, settings.to_dict())
            # Killed from here on, it has no settings that do not belong to what is left.
            _remove_run(folder)
        for left in folder.glob(f"{UNFINISHED}*"):
            shutil.rmtree(left, ignore_errors=True)
    with staged(folder / CHECKPOINTS) as stage:
        write_json(stage / DATA_NAME, {"digest": data.digest})


def _remove_run(folder: Path) -> None:
    """Delete what a previous run wrote, except its settings."""
    # The adapter too: with the new settings, its answers would be those of another run.
    written = METRICS_NAME, FEATURES_NAME, REPORT_NAME, DATA_CURVE_NAME, *NEXT_TO_REPORT
    for name in (*PREDICTING, *written):
        (folder / name).unlink(missing_ok=True)
    for name in PICTURES:
        for picture in folder.glob(f"{Path(name).stem}*.*g"):  # .png and .svg, of each set
            picture.unlink()
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


def is_begun(folder: Path) -> bool:
    """True if the folder holds a run, finished or not."""
    return (folder / SETTINGS_NAME).is_file()


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint. `Trainer` writes its state file last."""
    found = []
    for checkpoint in folder.glob("checkpoint-*"):
        step = checkpoint.name.removeprefix("checkpoint-")
        if step.isdigit():
            try:
                read_json(checkpoint / "trainer_state.json")
            except PtuneError:
                logger.warning("Skipping the incomplete checkpoint %s.", checkpoint)
            else:
                found.append((int(step), checkpoint))
    return max(found)[1] if found else None
