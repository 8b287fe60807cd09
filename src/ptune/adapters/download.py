"""Find the files of an adapter: in a folder, or in one commit of a repository on the Hub."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from ptune import compat
from ptune.adapters.schema import CONFIG_NAME
from ptune.errors import PtuneError, first_line, listed
from ptune.files import SETTINGS_NAME, name_of, near_path

HubHTTPError = compat.connection_error()


class AdapterFiles:
    """The files of one adapter.

    All files from the Hub are from the commit of the first one, `adapter_config.json`, so that a
    push in between cannot mix two versions. `snapshot_download` would do that too, but without a
    network it cannot tell a file that the repository lacks from one that was never downloaded.

    Args:
        source: A folder, or a repository on the Hub.
        subfolder: The adapter's folder inside `source`.
        revision: A branch, tag or commit on the Hub; ``None``: `main`.
        token: For private and gated repositories; ``None``: the token of `hf auth login`.
        cache_dir: Where downloads are kept; ``None``: the Hub's own cache.
        local_files_only: Use the cache only, without asking the Hub.

    Attributes:
        folder: The local folder with the files that were found so far.

    Raises:
        PtuneError: There is no such adapter, or the Hub cannot be reached.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        *,
        subfolder: str | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
    ) -> None:
        self.source = name_of(source)
        self.is_local = Path(self.source).is_dir()
        self.folder = Path(self.source, subfolder or "")
        self._inside, self._revision = subfolder or "", revision
        self._cache = None if cache_dir is None else os.fspath(cache_dir)
        self._download = partial(
            hf_hub_download,
            self.source,
            token=token,
            cache_dir=self._cache,
            local_files_only=local_files_only,
        )
        if not self.is_local and Path(self.source).exists():
            raise PtuneError(
                f"{self.source} is a file. Expected the folder that contains {CONFIG_NAME}."
            )
        file = self.find(CONFIG_NAME)
        if file is None:
            raise PtuneError(
                f"{self.source} has no {CONFIG_NAME}, so it is not an adapter. "
                + _instead(self.folder)
            )
        self.config_file = file
        if not self.is_local:
            self.folder = file.parent
            # The cache has a folder per commit: snapshots/<commit>/<subfolder>/<file>.
            self._revision = file.parents[len(PurePosixPath(self._inside).parts)].name

    def find(self, name: str) -> Path | None:
        """The local path of a file, downloaded if necessary; ``None``: there is no such file.

        Raises:
            PtuneError: The Hub cannot be reached, or it is a link to another folder.
        """
        if self.is_local:
            return own_file(self.folder, name)
        path = f"{self._inside}/{name}" if self._inside else name
        try:
            return Path(self._download(path, revision=self._revision))
        except LocalEntryNotFoundError as error:
            # The cache also remembers which files a repository does not have.
            known = compat.is_known_missing(
                self.source, path, cache_dir=self._cache, revision=self._revision
            )
            if known:
                return None
            raise PtuneError(self._why_not(error, name)) from error
        except EntryNotFoundError:
            return None
        except (HubHTTPError, HFValidationError, OSError) as error:
            raise PtuneError(self._why_not(error, name)) from error

    def _why_not(self, error: Exception, name: str) -> str:
        """Why a file could not be downloaded, and what to do about it."""
        source = repr(self.source)
        if isinstance(error, HFValidationError) and "://" in self.source:
            return f"{source} is an address. {id_of_address(self.source)}"
        if isinstance(error, HFValidationError):
            return f"There is no folder {source}. {near_path(Path(self.source))}"
        offline = isinstance(error, LocalEntryNotFoundError)
        cause = error.__cause__ if offline else error
        reason = first_line(cause or error).rstrip(".")
        if isinstance(cause, RevisionNotFoundError):
            return (
                f"The repository {source} has no revision {self._revision!r}. Name one of its "
                "branches, tags or commits."
            )
        status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
        if isinstance(cause, RepositoryNotFoundError) or status in (401, 403):
            return (
                f"{source} is neither a folder here nor a repository on the Hub that you can read "
                f"({reason}). Check the name. If the repository is private or gated, log in "
                "(`hf auth login`) or pass a token that may read it."
            )
        if status is not None:
            return f"The Hub did not provide {name} of {source} ({reason}). Try again later."
        if isinstance(cause, HubHTTPError) and name == CONFIG_NAME:
            return (
                f"There is no folder {source}, and the Hub could not be asked for a repository "
                f"with that name ({reason}). {self._guess()}"
            )
        if isinstance(cause, HubHTTPError):
            return (
                f"The connection to the Hub failed during the download of {name} of {source} "
                f"({reason}). Nothing of it was kept. Check the network and try again."
            )
        if offline:
            return (
                f"There is no folder {source}, and the Hub could not be asked for {name} of a "
                f"repository with that name (no network, or offline mode). {self._guess()}"
            )
        return f"{name} of {source} could not be saved ({reason}). Free some space or try again."

    def _guess(self) -> str:
        hint = near_path(Path(self.source))
        return hint if hint.startswith("Did") else "Check the path or the network."


def _instead(folder: Path) -> str:
    """What a folder without an adapter holds instead, and what to do, for a message."""
    places = [*folder.glob(f"[!.]*/{CONFIG_NAME}"), *folder.glob(f"checkpoints/*/{CONFIG_NAME}")]
    inside = sorted(str(place.parent.relative_to(folder)) for place in places)
    one_of = f"a folder inside it that is one: {listed(inside, 5)}."
    if (folder / SETTINGS_NAME).is_file():
        resume = "Its training has not finished: repeat the command with --resume"
        return f"{resume}, or name {one_of}" if inside else f"{resume}."
    if inside:
        return f"Name {one_of}"
    if (folder / "config.json").is_file():
        return f"It is a model; train a classifier on it with `ptune train --model {folder}`."
    return "Name the folder that `ptune train` wrote (--output-dir), or one of its checkpoints."


def own_file(folder: Path, name: str) -> Path | None:
    """A file of an adapter's folder; ``None``: there is none.

    Raises:
        PtuneError: It is not a file, or a link that leads out of the folder.
    """
    file = folder / name
    if not os.path.lexists(file):
        return None
    if file.is_symlink():
        root, target = Path(os.path.realpath(folder)), Path(os.path.realpath(file))
        # A snapshot in the Hub's cache consists of links to `blobs`.
        blobs = [parent.parent / "blobs" for parent in root.parents if parent.name == "snapshots"]
        if not any(target.is_relative_to(place) for place in (root, *blobs)):
            raise PtuneError(
                f"{file} links to {target}, outside the adapter's folder. If you trust the "
                "adapter, replace the link by a copy of the file."
            )
    if not file.is_file():
        raise PtuneError(f"{file} is not a regular file. Remove it, or download the adapter again.")
    return file


def id_of_address(address: str) -> str:
    """How to name the repository with this address, as a sentence."""
    parts = urlsplit(address).path.strip("/").split("/")
    name = "/".join(parts[:2])
    there = f": {name}" if len(parts) > 1 and is_hub_id(name) else ""
    return f"Name the repository as owner/name{there}."


def is_hub_id(name: str) -> bool:
    """True if a repository on the Hub can have this name."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True
