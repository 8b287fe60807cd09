"""Files: JSON, and folders whose files are replaced together or not at all.

The names of the files in a run folder are here too, because training writes them and adapters
publish them.
"""

from __future__ import annotations

import difflib
import filecmp
import glob
import hashlib
import json
import math
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ptune.errors import PtuneError, cut

ADAPTER_NAME = "adapter_config.json"
SETTINGS_NAME = "settings.json"
METRICS_NAME = "metrics.json"
FEATURES_NAME = "ptune_features.safetensors"
SEEDS_NAME = "seeds.json"
DATA_CURVE_NAME = "data_curve.json"
CURVE_NAME = "training_curve.png"
CONFUSION_NAME = "confusion_matrix.png"
LABELS_NAME = "label_scores.png"
VALUES_NAME = "predicted_values.png"
# What each picture in a run folder shows. The last is version 0.1's.
PICTURES = {
    CURVE_NAME: "Training curve",
    CONFUSION_NAME: "Confusion matrix",
    LABELS_NAME: "Precision and recall of each label",
    VALUES_NAME: "Predicted and true values",
    "data_curve.png": "Score by the number of training examples",
    "learning_curve.png": "Training curve",
}
REPORT_NAME = "report.html"
# The folder of an unfinished run.
CHECKPOINTS = "checkpoints"
NEXT_TO_REPORT = ("report.json", "mistakes.csv")
# The graph in an export to ONNX.
MODEL_NAME = "model.onnx"
# How folders are called that files are written in. A killed process leaves its own behind.
UNFINISHED = ".writing-"
# Bytes that a file's name may have, on most systems.
MAX_NAME = 255
# Such a folder that is newer may not be locked yet by its process.
NEW_SECONDS = 0.5
# The folder that `replaced` is about to replace.
FORMER = "former"


def is_export(source: str | os.PathLike[str]) -> bool:
    """True for a folder that `ptune export --to onnx` wrote."""
    return (Path(name_of(source)) / MODEL_NAME).is_file()


def name_of(source: str | os.PathLike[str]) -> str:
    """The folder or repository of an adapter as a string.

    Raises:
        PtuneError: It is neither, but for example a classifier.
    """
    if not isinstance(source, str | os.PathLike):
        raise PtuneError(
            f"Expected the folder of an adapter, or its name on the Hub; found an object of type "
            f"{type(source).__name__}. Save a classifier first: classifier.save(folder)."
        )
    name = at_home(source)
    if not is_path(name):
        raise PtuneError(
            f"{cut(name, 80)!r} cannot be the name of a folder or of a repository on the Hub. "
            "Expected the adapter's folder, or owner/name."
        )
    return name


def is_path(path: str) -> bool:
    """True if files can have this path: no part is too long, and there is no null byte."""
    return "\0" not in path and all(len(os.fsencode(p)) <= MAX_NAME for p in Path(path).parts)


def is_below(path: str) -> bool:
    """True if a path names a file or folder below the folder to which it is joined."""
    own = Path(path)
    return is_path(path) and not own.anchor and ".." not in own.parts and own != Path()


def at_home(path: str | os.PathLike[str]) -> str:
    """A path whose `~` is the home folder, as a shell makes it."""
    return os.path.expanduser(path)  # noqa: PTH111 (Path's own fails if there is no such user)


def digest_of(files: Iterable[Path | None]) -> str:
    """A hash of the names and contents of files. Those that do not exist are skipped."""
    digest = hashlib.sha256()
    for file in files:
        if file is not None and file.is_file():
            with file.open("rb") as content:
                own = hashlib.file_digest(content, "sha256").hexdigest()
            digest.update(f"{file.name} {own}\n".encode())
    return digest.hexdigest()


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Lock a folder until the end of the context; false if someone else has locked it.

    The lock ends with the process, and leaves no file. Where folders cannot be locked (Windows,
    some network drives), it is always true.
    """
    try:
        import fcntl
    except ImportError:
        yield True
        return
    handle, free = os.open(folder, os.O_RDONLY), True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        free = False
    except OSError:
        pass
    try:
        yield free
    finally:
        os.close(handle)


def folder_of(output: str | os.PathLike[str]) -> Path:
    """A folder to write to.

    Raises:
        PtuneError: It has no name (that would be the current folder), is no path, or is a file.
    """
    if not isinstance(output, str | os.PathLike) or not os.fspath(output):
        raise PtuneError(f"Expected the name of a folder to write to; found {output!r}.")
    folder = Path(at_home(output))
    if not is_path(str(folder)):
        raise PtuneError(f"{cut(str(folder), 80)!r} cannot be the name of a folder. Name another.")
    if folder.is_file():
        raise PtuneError(f"{output} is a file. Name a folder to write to.")
    return folder


def check_new(folder: Path) -> None:
    """Refuse a folder to write to that exists and is not empty.

    Raises:
        PtuneError: It holds something, or is a file.
    """
    if folder.is_file() or holds_something(folder):
        raise PtuneError(f"{folder} already holds something. Name a new folder.")


def holds_something(folder: Path) -> bool:
    """True if a folder holds anything but what a killed process left unfinished.

    `Trainer` makes the folder of checkpoints before texts are read, when a run has not begun.
    """
    if not folder.is_dir():
        return False
    inside = [file for file in folder.iterdir() if not file.name.startswith(UNFINISHED)]
    return inside != [folder / CHECKPOINTS] or any(inside[0].iterdir()) if inside else False


@contextmanager
def staged(folder: Path, name: str = "") -> Iterator[Path]:
    """A folder to write into, whose files replace those in `folder` once all are complete.

    Whatever goes wrong while writing (a full disk, a signal), the files that were there stay. If
    the process is killed while it replaces them, one is missing: old and new ones that do not
    belong together are never complete.

    Args:
        folder: Where the files belong.
        name: By which `remove_abandoned` finds what a killed process left.

    Raises:
        PtuneError: `folder` cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f"{UNFINISHED}{name}", dir=folder))
    except OSError as error:
        raise PtuneError(
            f"Cannot write to {folder}: {error.strerror}. Name a folder that you may write to."
        ) from error
    try:
        with locked(stage):  # so that others know that somebody is writing to it
            yield stage
            open_up(stage)
            _replace_together(sorted(stage.iterdir()), folder)
    except (OSError, SafetensorError) as error:
        raise PtuneError(
            f"Saving to {folder} failed: {getattr(error, 'strerror', None) or error}. What was "
            "saved there before is unchanged. Make room or name another folder."
        ) from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def remove_abandoned(folder: Path, name: str = "") -> None:
    """Delete what killed processes left unfinished. Others may be writing to this folder too.

    A folder with what was there before stays: it may be the only copy.

    Args:
        folder: Where `staged` wrote.
        name: That of a folder in it that `replaced` wrote, or as for `staged`; empty: anything.
    """
    for stage in folder.glob(f"{UNFINISHED}{glob.escape(name)}*"):
        # Its process locks it while it writes, a moment after it was made.
        with suppress(OSError), locked(stage) as free:
            is_old = time.time() - stage.stat().st_ctime > NEW_SECONDS
            if free and is_old and not (stage / FORMER).exists():
                shutil.rmtree(stage, ignore_errors=True)


def _replace_together(files: list[Path], folder: Path) -> None:
    """Move files into a folder. Until all are there, the first is missing (such as the config)."""
    if sum(not _is_same(file, folder / file.name) for file in files) > 1:
        (folder / files[0].name).unlink(missing_ok=True)
    for file in [*files[1:], *files[:1]]:
        file.replace(folder / file.name)


def _is_same(file: Path, before: Path) -> bool:
    return before.is_file() and filecmp.cmp(file, before, shallow=False)


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `folder` once everything is written.

    Raises:
        PtuneError: It cannot be written. What was in `folder` before is unchanged.
    """
    stage = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(folder.parent, f"{folder.name}-")
        stage = Path(tempfile.mkdtemp(prefix=f"{UNFINISHED}{folder.name}-", dir=folder.parent))
        with locked(stage):
            made, former = stage / "new", stage / FORMER
            made.mkdir()
            yield made
            open_up(made)
            if folder.exists():
                folder.replace(former)
            try:
                made.replace(folder)
            except BaseException:
                if former.exists():
                    former.replace(folder)
                raise
    except (OSError, SafetensorError) as error:
        raise PtuneError(
            f"Writing to {folder} failed: {getattr(error, 'strerror', None) or error}. What was "
            "there before is unchanged. Free some space or name another folder."
        ) from error
    finally:
        if stage is not None:
            shutil.rmtree(stage, ignore_errors=True)


@contextmanager
def cached(folder: Path) -> Iterator[None]:
    """Lock a folder of the cache while it is made, so that no other process makes it, too.

    Args:
        folder: The folder, which need not exist.

    Raises:
        PtuneError: The cache cannot be written.
    """
    from huggingface_hub.utils import WeakFileLock

    with ExitStack() as stack:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(WeakFileLock(folder.with_suffix(".lock")))
        except OSError as error:
            raise PtuneError(
                f"The cache folder {folder.parent} cannot be written ({error.strerror or error}). "
                "Set the environment variable HF_HOME to a folder that can."
            ) from error
        yield


@contextmanager
def staged_file(file: Path, *, sweep: bool = True) -> Iterator[Path]:
    """A path to write to, which replaces `file` once it is complete; see `staged`.

    A link stays, and the file that it names is replaced. A pipe or a device (`/dev/stdout`) is
    written as it is: a file in its place would destroy it.

    Args:
        file: The file.
        sweep: Delete what a killed process left of this file. It looks through the folder.

    Raises:
        PtuneError: It cannot be written, or it is a folder.
    """
    check_output(file)
    # `/dev/stdout` can be a link to a file that the shell has opened. Replaced, it would be lost.
    if file.exists() and (not file.is_file() or file.absolute().is_relative_to("/dev")):
        try:
            yield file
        except OSError as error:
            raise PtuneError(
                f"Writing to {file} failed: {error.strerror or error}. Name a file."
            ) from error
        return
    target = Path(os.path.realpath(file))
    name = f"{hashlib.sha256(target.name.encode()).hexdigest()[:16]}-"
    if sweep:
        remove_abandoned(target.parent, name)
    with staged(target.parent, name) as stage:
        yield stage / file.name  # whose ending tells the format
        (stage / file.name).rename(stage / target.name)


def check_output(output: Path | None, *inputs: Path | None, may_be_folder: bool = False) -> None:
    """Refuse a file to write to before there is anything to write.

    Raises:
        PtuneError: It is one of the inputs, so that writing it would replace the user's data; or it
            is a folder.
    """
    if output is None:
        return
    if output.is_dir() and not may_be_folder:
        raise PtuneError(f"{output} is a folder. Name a file.")
    if output.is_file():
        for file in inputs:
            if file is not None and file.is_file() and file.samefile(output):
                raise PtuneError(
                    f"{output} is also what is read, and would be replaced. Name another file to "
                    "write to."
                )


# The umask can only be read by setting it, and belongs to the whole process.
_umask = threading.Lock()


def open_up(folder: Path) -> None:
    """Give the files of a folder the permissions of the umask. Some writers do not."""
    with _umask:
        mask = os.umask(0o022)
        os.umask(mask)
    for file in folder.iterdir():
        file.chmod(0o666 & ~mask)


def json_line(content: Any) -> str:
    """JSON on one line, for other programs.

    Types that JSON lacks, such as dates, are strings. NaN and infinity, which most programs refuse
    to read, are `null`.
    """
    return _dumps(content, default=str)


def json_text(content: dict[str, Any]) -> str:
    """A JSON object as people like to read it. NaN and infinity are `null`, as in `json_line`."""
    return _dumps(content, indent=2) + "\n"


def _dumps(content: Any, **how: Any) -> str:
    how |= {"ensure_ascii": False, "allow_nan": False}
    try:
        text = json.dumps(content, **how)
    except ValueError:
        text = json.dumps(_without_nan(content), **how)
    # Half of a character that takes two in UTF-16 has no UTF-8. JSON escapes it as Python does.
    return text.encode(errors="backslashreplace").decode()


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Write a JSON object, as `json_text` has it."""
    file.write_text(json_text(content), "utf-8")


def read_metrics(file: Path, limit: int | None = None) -> dict[str, Any]:
    """The `metrics.json` of a run; empty: there is no such file. Scores that are `null` are NaN.

    Args:
        file: The file.
        limit: As for `read_json`.

    Raises:
        PtuneError: As for `read_json`.
    """
    content = read_if_there(file, limit)
    scores = {n: content[n] for n in ("epochs", "eval", "best", "majority") if n in content}
    return content | {name: _with_nan(found) for name, found in scores.items()}


def _with_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: math.nan if part is None else _with_nan(part) for name, part in value.items()}
    return [_with_nan(part) for part in value] if isinstance(value, list) else value


def read_if_there(file: Path, limit: int | None = None) -> dict[str, Any]:
    """A JSON object from a file, as `read_json` reads it; empty: there is no such file."""
    return read_json(file, limit) if file.is_file() else {}


def read_json(file: Path, limit: int | None = None) -> dict[str, Any]:
    """A JSON object from a file.

    Args:
        file: The file.
        limit: How many bytes it may have; ``None``: any number.

    Raises:
        PtuneError: It is not one, or it is larger; the message names the file.
    """
    try:
        size = file.stat().st_size
        if limit is not None and size > limit:
            raise PtuneError(f"{file} has {size:,} bytes; expected at most {limit:,}.")
        if not size:
            raise PtuneError(f"{file} is empty. Save or fetch it again.")
        content = json.loads(file.read_text(encoding="utf-8"))
    except RecursionError:
        raise PtuneError(
            f"{file} is damaged: its lists and objects are nested too deeply. Save or fetch it "
            "again."
        ) from None
    except PtuneError:
        raise
    except (ValueError, OSError) as error:
        raise PtuneError(f"{file} is damaged: {error}. Save or fetch it again.") from error
    if not isinstance(content, dict):
        raise PtuneError(
            f"{file} is damaged: it does not hold a JSON object. Save or fetch it again."
        )
    return content


def near_path(path: Path) -> str:
    """A hint at a file with a similar name, for the end of a message."""
    parent = path.parent
    if not parent.is_dir():
        return f"There is no folder {parent} either."
    close = difflib.get_close_matches(path.name, [p.name for p in parent.iterdir()], n=1)
    return f"Did you mean {parent / close[0]}?" if close else "Check the path."


def check_file(file: Path, or_folder: bool = False) -> None:
    """Check that a file to be read, or a folder of files, exists.

    Raises:
        PtuneError: It does not, or is a folder in place of a file.
    """
    if file.is_dir() and not or_folder:
        raise PtuneError(f"{file} is a folder. Name a file in it.")
    if not (file.is_file() or file.is_dir()):
        kind = "file or folder" if or_folder else "file"
        raise PtuneError(f"There is no {kind} {file}. {near_path(file)}")
