"""Publish a classifier on the Hub, in one commit."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, RepoUrl, constants
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id
from safetensors.torch import save as tensors_to_bytes

from ptune import __version__
from ptune.adapters import schema
from ptune.adapters.adapter import CARD_MARK, WEIGHTS_NAME, Adapter
from ptune.adapters.card import LIBRARY, CardText, metrics_of, model_card, pictures_of
from ptune.adapters.download import HubHTTPError, id_of_address, own_file
from ptune.adapters.public import PublicBackbone, without_paths
from ptune.adapters.quality import QUALITY_NAME
from ptune.adapters.schema import CONFIG_NAME, INFO_NAME
from ptune.errors import PtuneError, first_line
from ptune.files import METRICS_NAME, PICTURES, json_text, read_json

CARD_NAME = "README.md"
# Files of an adapter or a run, with their contents or the file that holds them.
Files = dict[str, bytes | Path]


def push(
    source: str | os.PathLike[str] | Adapter,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | bool | None = None,
    commit_message: str | None = None,
    license: str | None = None,
    card: CardText | None = None,
) -> str:
    """Publish a classifier on the Hub, in one commit.

    The commit contains the adapter, its labels, the scores and pictures of a run folder, and a
    model card unless the folder has a `README.md` of its own. It does not contain checkpoints, the
    state for resuming, or any path of this machine. The folder itself is only read.

    Args:
        source: A run folder, another folder with an adapter, or an adapter.
        repo_id: ``owner/name``, or a name under your own account. Created if it does not exist.
        private: Visibility of a new repository; ``None``: the account's default, mostly public.
        revision: A branch to push to, created from `main` if it does not exist.
        create_pr: Open a pull request, which needs no write permission.
        token: A token with write permission; ``None``: the token of `hf auth login`.
        commit_message: Title of the commit or the pull request.
        license: For the card, an identifier from
            https://hf.co/docs/hub/repositories-licenses.
        card: What only the author knows, for the model card.

    Returns:
        The address of the repository, the branch or the pull request.

    Raises:
        PtuneError: There is no adapter, or the Hub refuses or cannot be reached. In that case
            nothing was committed.
    """
    if create_pr and revision:
        raise PtuneError(
            f"A pull request goes to main, not to the branch {revision!r}. Leave out one of the "
            "two."
        )
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        what = f"{repo_id!r} cannot be a repository"
        if "://" in repo_id:
            raise PtuneError(f"{what}: it is an address. {id_of_address(repo_id)}") from error
        if (Path(repo_id) / CONFIG_NAME).is_file():
            raise PtuneError(f"{what}: it is a classifier here. Name it first.") from error
        reason = first_line(error).partition(" Use `repo_type`")[0]
        raise PtuneError(
            f"{what}: {reason} Expected owner/name, or a name under your own account."
        ) from error
    with tempfile.TemporaryDirectory(prefix="ptune-") as own, _explained(repo_id):
        folder = Path(own)
        if isinstance(source, Adapter):
            source.save(folder)
        else:
            folder = Path(source)
        # First, so that an adapter that cannot be read creates nothing on the Hub.
        files = _public_files(folder)
        api = HfApi(token=token, library_name=LIBRARY, library_version=__version__)
        repo = _create_repo(api, repo_id, private)
        if CARD_NAME not in files:
            written = model_card(folder, repo.repo_id, license=license, text=card)
            files[CARD_NAME] = str(written).encode()
        if revision:
            api.create_branch(repo.repo_id, branch=revision, exist_ok=True)
        operations = [CommitOperationAdd(name, content) for name, content in files.items()]
        commit = api.create_commit(
            repo.repo_id,
            [*operations, *_outdated(api, repo.repo_id, revision, files)],
            commit_message=commit_message or "Upload a p-tuned classifier",
            revision=revision,
            create_pr=create_pr,
        )
    if create_pr and commit.pr_url:
        return commit.pr_url
    return f"{repo}/tree/{revision}" if revision else str(repo)


def _create_repo(api: HfApi, repo_id: str, private: bool | None) -> RepoUrl:
    """The repository, created if it does not exist, and as private as asked for."""
    repo = api.create_repo(repo_id, private=private, exist_ok=True)
    if private is not None and bool(api.repo_info(repo.repo_id).private) != private:
        found, expected = ("public", "private") if private else ("private", "public")
        raise PtuneError(
            f"{repo.repo_id} already exists and is {found}, so nothing was pushed. Make it "
            f"{expected} in its settings on the Hub, or choose another name."
        )
    return repo


def _outdated(
    api: HfApi, repo_id: str, revision: str | None, files: Files
) -> Iterator[CommitOperationDelete]:
    """What an earlier push left in the repository, and would be taken for this classifier's."""
    gone = sorted({METRICS_NAME, QUALITY_NAME, *PICTURES} - files.keys())
    for found in api.get_paths_info(repo_id, gone, revision=revision) if gone else ():
        yield CommitOperationDelete(found.path)


def _public_files(folder: Path) -> Files:
    """The files of a folder that are published, without paths of this machine.

    Raises:
        PtuneError: There is no adapter, or it is damaged.
    """
    if not folder.is_dir():
        raise PtuneError(f"There is no folder {folder}. Name the folder that has {CONFIG_NAME}.")
    adapter = Adapter.read(folder, own_backbone=True)
    backbone = PublicBackbone.of(adapter.config.base_model_name_or_path, adapter.config.revision)
    if backbone.is_local:
        warnings.warn(
            f"The backbone {adapter.config.base_model_name_or_path} is a folder on this machine. "
            f"The pushed adapter calls it {backbone.name}, and everyone who loads it has to name "
            "their own copy (`--model`, or model= in Python). To share the adapter, push the "
            "backbone too and train from its id on the Hub.",
            stacklevel=4,
        )
    config = read_json(folder / CONFIG_NAME)
    config |= {"base_model_name_or_path": backbone.name, "revision": backbone.revision}
    if tokenizer := config.get("tokenizer_name_or_path"):
        config["tokenizer_name_or_path"] = PublicBackbone.of(tokenizer, None).name
    if "tokenizer_kwargs" in config:
        config["tokenizer_kwargs"] = without_paths(config["tokenizer_kwargs"])
    files: Files = {CONFIG_NAME: schema.config_text(config).encode()}
    weights = folder / WEIGHTS_NAME
    # A pickle is published as safetensors, a format that cannot hold code.
    as_safetensors = partial(tensors_to_bytes, adapter.tensors(), {"format": "pt"})
    files[WEIGHTS_NAME] = weights if weights.is_file() else as_safetensors()
    if (folder / METRICS_NAME).is_file():
        known = metrics_of(folder, adapter.labels)
        public = without_paths({**known, "model": backbone.name})
        files[METRICS_NAME] = json_text(public).encode()
    unchanged = [INFO_NAME, *pictures_of(folder, adapter.labels), CARD_NAME]
    unchanged += [QUALITY_NAME] if adapter.postprocessing.tensors else []
    files |= {name: file for name in unchanged if (file := own_file(folder, name))}
    if CARD_NAME in files and CARD_MARK in (folder / CARD_NAME).read_text("utf-8"):
        del files[CARD_NAME]
    return files


# Refusals


@contextmanager
def _explained(repo_id: str) -> Iterator[None]:
    """Turn the client's errors into messages with a next step."""
    try:
        yield
    except PtuneError:
        raise
    except (HubHTTPError, OSError, RuntimeError, ValueError) as error:
        raise PtuneError(_refusal(error, repo_id)) from error


def _refusal(error: BaseException, repo_id: str) -> str:
    # A failed upload reports only the file's name; its cause has the reason.
    causes = [e for e in _chain(error) if isinstance(e, HfHubHTTPError | HubHTTPError)]
    cause = causes[0] if causes else error
    status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
    reason = (getattr(cause, "server_message", None) or first_line(cause)).rstrip(".")
    if isinstance(cause, LocalTokenNotFoundError) or status == 401:
        return (
            f"{repo_id} was not pushed, because you are not logged in to the Hub ({reason}). Log "
            "in with `hf auth login`, or pass a token that may write (--token, or token= in "
            "Python)."
        )
    if status == 403:
        return (
            f"{repo_id} was not pushed, because you may not write to it ({reason}). Use a token "
            "with write permission, push under your own name, or open a pull request "
            "(--pull-request, or create_pr=True in Python)."
        )
    if isinstance(cause, RepositoryNotFoundError):
        return f"There is no repository {repo_id} that you can see ({reason}). Check the name."
    if status not in (None, 400):  # with 400, the client's own message names the fault
        return f"The Hub refused {repo_id} with error {status} ({reason}). Try again later."
    if isinstance(cause, OfflineModeIsEnabled):
        return f"{repo_id} was not pushed: offline mode is on. Unset HF_HUB_OFFLINE and try again."
    if isinstance(cause, HubHTTPError) and status is None:
        return (
            f"The connection to the Hub at {constants.ENDPOINT} failed ({reason}), so nothing was "
            "committed. Check the network and push again."
        )
    return f"{repo_id} was not pushed: {' '.join(str(error).split())}"


def _chain(error: BaseException | None) -> Iterable[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
