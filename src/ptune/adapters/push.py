"""The Hub: publish a classifier, with a card that says what it is.

`ptune.adapters.download` loads from the Hub. Only `huggingface_hub` does the talking.
"""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any

from huggingface_hub import (
    CommitOperationAdd,
    EvalResult,
    HfApi,
    ModelCard,
    ModelCardData,
    constants,
)
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
from ptune.adapters import adapter
from ptune.adapters.adapter import Adapter
from ptune.adapters.download import HubHTTPError, is_hub_id
from ptune.adapters.schema import CONFIG_NAME, INFO_NAME, OWN_FIELDS, config_content
from ptune.data.glue import GLUE_ON_THE_HUB
from ptune.errors import PtuneError, first_line
from ptune.files import CONFUSION_NAME, CURVE_NAME, METRICS_NAME, SETTINGS_NAME, read_json

if TYPE_CHECKING:
    from ptune.model import PromptModel

CARD_NAME = "README.md"
PICTURES = {CURVE_NAME: "Learning curve", CONFUSION_NAME: "Confusion matrix"}
LIBRARY = "ptune"

# Metric names of `ptune.labels` as https://hf.co/metrics and people call them.
_METRICS: dict[str, tuple[str, str, dict[str, Any] | None]] = {
    "accuracy": ("accuracy", "Accuracy", None),
    "f1": ("f1", "F1", None),
    "f1_macro": ("f1", "F1 (macro)", {"average": "macro"}),
    "f1_micro": ("f1", "F1 (micro)", {"average": "micro"}),
    "matthews_correlation": ("matthews_correlation", "Matthews correlation", None),
    "pearson": ("pearsonr", "Pearson correlation", None),
    "spearman": ("spearmanr", "Spearman correlation", None),
}
# Settings that are files or folders: only their names are anyone else's business.
_FILE_SETTINGS = ("train_file", "eval_file", "data_dir")


def push(
    source: str | os.PathLike[str] | PromptModel,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | bool | None = None,
    commit_message: str | None = None,
    license: str | None = None,
) -> str:
    """Publish a classifier on the Hub, in one commit.

    What goes: the adapter, its labels, and from a run folder its scores and pictures, and a model
    card unless the folder has a `README.md` of its own. What stays: checkpoints, the state that
    resuming needs, and every path of this machine. The folder itself is only read.

    Args:
        source: A run folder, any other folder with an adapter, or a model.
        repo_id: ``owner/name``, or a name under your own account. Made if it is not there.
        private: Of a new repository; ``None``: as the account has it, which is mostly public.
        revision: A branch to push to, made from `main` if it is not there.
        create_pr: Open a pull request, which needs no right to write.
        token: With the right to write; ``None``: the one of `hf auth login`.
        commit_message: Title of the commit or the pull request.
        license: For the card, as https://hf.co/docs/hub/repositories-licenses calls it.

    Returns:
        The address of the repository, the branch or the pull request.

    Raises:
        PtuneError: There is no adapter, or the Hub refuses or cannot be reached. Nothing was
            committed then.
    """
    if create_pr and revision:
        raise PtuneError(
            f"A pull request is made against main, not against the branch {revision!r}. Leave out "
            "one of the two."
        )
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise PtuneError(
            f"{repo_id!r} cannot be a repository: {first_line(error)} Wanted is owner/name, or "
            "a name under your own account."
        ) from error
    with tempfile.TemporaryDirectory(prefix="ptune-") as own, _explained(repo_id):
        if isinstance(source, str | os.PathLike):
            folder = Path(source)
        else:
            folder = Path(own)
            adapter.save(source, folder, trained_state=False)
        # Before anything is made on the Hub: what cannot be read is not pushed.
        prepared = _prepare(folder)
        api = HfApi(token=token, library_name=LIBRARY, library_version=__version__)
        repo = api.create_repo(repo_id, private=private, exist_ok=True)
        repo_id = repo.repo_id
        if private is not None and bool(api.repo_info(repo_id).private) != private:
            met, wanted = ("public", "private") if private else ("private", "public")
            raise PtuneError(
                f"{repo_id} is there already and is {met}; nothing was pushed. Make it {wanted} in "
                "its settings on the Hub, or choose another name."
            )
        card = prepared.own_card or str(model_card(folder, repo_id, license=license)).encode()
        if revision:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = api.create_commit(
            repo_id,
            [
                CommitOperationAdd(name, content)
                for name, content in {**prepared.files, CARD_NAME: card}.items()
            ],
            commit_message=commit_message or "Upload a p-tuned classifier",
            revision=revision,
            create_pr=create_pr,
        )
    if create_pr and commit.pr_url:
        return commit.pr_url
    return f"{repo}/tree/{revision}" if revision else str(repo)


@dataclass(frozen=True)
class _Prepared:
    """What is pushed: content, or the file that holds it, by name."""

    files: dict[str, bytes | Path]
    own_card: bytes | None


def _prepare(folder: Path) -> _Prepared:
    """A folder's files as others may see them.

    Raises:
        PtuneError: There is no adapter, or it is damaged.
    """
    if not folder.is_dir():
        raise PtuneError(f"There is no folder {folder}. Name the one that holds {CONFIG_NAME}.")
    found = Adapter.read(folder, own_backbone=True)
    backbone = PublicBackbone.of(found.config.base_model_name_or_path, found.config.revision)
    if backbone.is_local:
        warnings.warn(
            f"The backbone {found.config.base_model_name_or_path} is a folder on this machine. The "
            f"pushed adapter calls it {backbone.name}, and whoever loads it has to name theirs "
            "(`--model`, or model= in Python). Push the backbone too and train from its id on the "
            "Hub if others are to use this.",
            stacklevel=4,
        )
    config = read_json(folder / CONFIG_NAME)
    config |= {"base_model_name_or_path": backbone.name, "revision": backbone.revision}
    files: dict[str, bytes | Path] = {CONFIG_NAME: _json(config, sort_keys=True)}
    weights = folder / adapter.WEIGHTS_NAME
    files[adapter.WEIGHTS_NAME] = weights if weights.is_file() else _as_safetensors(found)
    if found.ptune_version:
        files[INFO_NAME] = folder / INFO_NAME
    if (scores := folder / METRICS_NAME).is_file():
        files[METRICS_NAME] = _json(_without_paths({**read_json(scores), "model": backbone.name}))
    files |= {name: folder / name for name in PICTURES if (folder / name).is_file()}
    card = folder / CARD_NAME
    return _Prepared(files, card.read_bytes() if card.is_file() else None)


def _as_safetensors(found: Adapter) -> bytes:
    """An adapter that is there as a pickle, in a format that cannot hold code."""
    return tensors_to_bytes(found.tensors(), {"format": "pt"})


def _json(content: dict[str, Any], *, sort_keys: bool = False) -> bytes:
    text = json.dumps(content, indent=2, ensure_ascii=False, sort_keys=sort_keys)
    return (text + "\n").encode()


@dataclass(frozen=True)
class PublicBackbone:
    """A backbone as a card may name it.

    Attributes:
        name: Its id on the Hub; or ``./name`` for a folder of this machine. That is no id, so
            that nobody loads another model which happens to have the folder's name.
        revision: Its revision on the Hub.
        is_local: It is a folder of this machine.
    """

    name: str | None
    revision: str | None
    is_local: bool

    @classmethod
    def of(cls, name: str | None, revision: str | None) -> PublicBackbone:
        """From what `adapter_config.json` says."""
        if not name:
            return cls(None, revision, is_local=False)
        # A folder of the Hub's own cache: models--owner--name/snapshots/<commit>.
        if cached := re.search(r"models--([^/\\]+)[/\\]snapshots[/\\]([0-9a-f]{40})", name):
            return cls(cached[1].replace("--", "/"), cached[2], is_local=False)
        if Path(name).is_dir() or not is_hub_id(name):
            return cls(f"./{_last_part(name)}", None, is_local=True)
        return cls(name, revision, is_local=False)


def _last_part(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def _without_paths(value: Any) -> Any:
    """The same, with the paths of this machine cut to their last part."""
    if isinstance(value, dict):
        return {key: _without_paths(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_without_paths(v) for v in value]
    if isinstance(value, str) and (
        Path(value).is_absolute()
        or PureWindowsPath(value).is_absolute()
        or value.startswith(("~/", "../"))
        or ("/" in value and Path(value).exists())
    ):
        return _last_part(value)
    return value


# The card.


def model_card(
    folder: str | os.PathLike[str], repo_id: str, *, license: str | None = None
) -> ModelCard:
    """A model card for the adapter in `folder`: metadata for the Hub, text for people.

    The library is `ptune`, also where PEFT can load the adapter: the Hub would otherwise show how
    to load it with PEFT, and PEFT passes over what it does not know (where the prompt stands, what
    the head reads) with no more than a warning, and predicts something else. The tag `peft` says
    that PEFT predicts the same.

    Args:
        folder: A run folder, or any other with an adapter.
        repo_id: Where the card will stand.
        license: If you give one.

    Raises:
        PtuneError: There is no adapter, or it is damaged.
    """
    folder = Path(folder)
    found = Adapter.read(folder, own_backbone=True)
    backbone = PublicBackbone.of(found.config.base_model_name_or_path, found.config.revision)
    scores = _read_if_there(folder / METRICS_NAME)
    settings = _read_if_there(folder / SETTINGS_NAME)
    results = list(_eval_results(scores, settings))
    own = config_content(found.config).keys() & OWN_FIELDS.keys()
    unknown_to_peft = [name for name in own if not OWN_FIELDS[name].training_only]
    loads_in_peft = not unknown_to_peft
    on_hub = backbone.name is not None and not backbone.is_local
    metadata = ModelCardData(
        library_name=LIBRARY,
        license=license,
        base_model=backbone.name if on_hub else None,
        base_model_relation="adapter" if on_hub else None,
        pipeline_tag="text-classification",
        tags=["p-tuning", *(["peft"] if loads_in_peft else [])],
        datasets=[GLUE_ON_THE_HUB] if settings.get("task") else None,
        metrics=sorted({r.metric_type for r in results}) or None,
        eval_results=results or None,
        model_name=repo_id.rpartition("/")[2] if results else None,
    )
    pairs = bool(scores.get("text_pairs") or settings.get("text_pair_column"))
    sections = [
        f"# {repo_id.rpartition('/')[2]}",
        _what_it_does(found, backbone, scores, pairs=pairs),
        _labels(found),
        _usage(repo_id, backbone, pairs=pairs, loads_in_peft=loads_in_peft and on_hub),
        _scores(scores),
        *(f"![{text}]({name})" for name, text in PICTURES.items() if (folder / name).is_file()),
        _training(settings, scores),
        _files(folder),
    ]
    text = "\n\n".join(section for section in sections if section)
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{text}\n")


def _read_if_there(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}


def _final(scores: dict[str, Any]) -> dict[str, float]:
    """The scores of the very adapter that is pushed."""
    record = scores.get("best" if scores.get("adapter") == "best" else "eval") or {}
    return {
        key: value
        for key, value in record.items()
        if _metric_of(key) and isinstance(value, int | float) and math.isfinite(value)
    }


def _metric_of(key: str) -> tuple[str, str] | None:
    """Evaluation set and metric of a key of `metrics.json`: ``matched_accuracy``, ``f1``."""
    for name in sorted(_METRICS, key=len, reverse=True):
        if key == name or key.endswith(f"_{name}"):
            return key.removesuffix(name).rstrip("_"), name
    return None


def _eval_results(scores: dict[str, Any], settings: dict[str, Any]) -> Iterator[EvalResult]:
    """Scores in the Hub's schema, https://github.com/huggingface/hub-docs, `modelcard.md`."""
    task = settings.get("task")
    for key, value in _final(scores).items():
        split, name = _metric_of(key) or ("", key)
        kind, title, options = _METRICS[name]
        yield EvalResult(
            task_type="text-classification",
            task_name="Text classification",
            dataset_type=GLUE_ON_THE_HUB if task else "custom",
            dataset_name=str(scores.get("task", "own texts")),
            dataset_config=task,
            # GLUE's evaluation sets are called validation, validation_matched and so on.
            dataset_split="_".join(filter(None, ["validation", split])),
            dataset_revision=scores.get("dataset_revision"),
            metric_type=kind,
            metric_name=title,
            metric_value=round(value, 6),
            metric_args=options,
        )


def _what_it_does(
    found: Adapter, backbone: PublicBackbone, scores: dict[str, Any], *, pairs: bool
) -> str:
    text, labels = "a pair of texts" if pairs else "a text", found.labels
    if labels.is_regression:
        does = f"gives {text} a number ({_code(labels.names[0])})"
    else:
        one = "" if labels.is_multi else "one "
        does = f"says which {one}of {len(labels)} labels {text} has"
    if backbone.name is None:
        on = "a frozen language model"
    elif backbone.is_local:
        on = f"a frozen language model of its author's, {_code(backbone.name)}"
    else:
        on = f"the frozen [{backbone.name}](https://huggingface.co/{backbone.name})"
    learned = f"Trained on {scores['task']}. " if scores.get("task") else ""
    size = found.prompt_embeddings.numel() + sum(t.numel() for t in found.head.values())
    deep = found.config.depth == "deep"
    method = (
        "[P-tuning v2](https://arxiv.org/abs/2110.07602)"
        if deep
        else "[p-tuning](https://arxiv.org/abs/2103.10385)"
    )
    length = f"{len(found.prompt_embeddings)} learned virtual tokens"
    return (
        f"This classifier {does}. {learned}It is a prompt of {length}"
        f"{' in every layer' if deep else ''} and a head, together {size:,} parameters, for "
        f"{on}: {method}, with ptune."
    )


def _labels(found: Adapter) -> str:
    if found.labels.is_regression:
        return ""
    return "## Labels\n\n" + ", ".join(map(_code, found.labels.names))


def _usage(repo_id: str, backbone: PublicBackbone, *, pairs: bool, loads_in_peft: bool) -> str:
    own = f', model="path/to/{backbone.name[2:]}"' if backbone.is_local and backbone.name else ""
    example = '("The first text.", "The second text.")' if pairs else '"Your text."'
    note = ""
    if backbone.is_local:
        note = (
            f"\n\nThe backbone {_code(str(backbone.name))} was a folder on its author's machine: "
            "you need the same weights to use this, and say where they are with `model=`."
        )
    elif loads_in_peft:
        note = "\n\n🤗 PEFT loads it too: `PeftModel.from_pretrained`."
    return (
        "## Use\n\n```python\nimport ptune\n\n"
        f'classifier = ptune.load("{repo_id}"{own})\nprint(classifier({example}))\n```{note}'
    )


def _scores(scores: dict[str, Any]) -> str:
    final = _final(scores)
    if not final:
        return ""
    majority = scores.get("majority") or {}
    counts = scores.get("eval_examples") or {}
    lines = ["| | this classifier |" + (" always the commonest label |" if majority else "")]
    lines.append("| --- | ---: |" + (" ---: |" if majority else ""))
    for key, value in final.items():
        split, name = _metric_of(key) or ("", key)
        title = _METRICS[name][1] + (f", {split}" if split else "")
        base = f" {majority[key]:.4f} |" if key in majority else " |" if majority else ""
        lines.append(f"| {title} | {value:.4f} |{base}")
    on = f"On {scores.get('task', 'the evaluation set')}"
    if counts:
        on += f", {sum(counts.values()):,} examples that it was not trained on"
    if revision := scores.get("dataset_revision"):
        on += f" (revision `{revision}`)"
    epoch = "the best" if scores.get("adapter") == "best" else "the last"
    table = "\n".join(lines)
    return f"## Scores\n\n{on}, after {epoch} epoch:\n\n{table}"


def _training(settings: dict[str, Any], scores: dict[str, Any]) -> str:
    rows = {name: value for name, value in settings.items() if value not in (None, {}, [])}
    for name in _FILE_SETTINGS:
        if name in rows:
            rows[name] = _last_part(str(rows[name]))
    if scores.get("model"):
        rows["model"] = PublicBackbone.of(scores["model"], None).name
    rows = _without_paths(rows)
    if count := scores.get("train_examples"):
        rows["training examples"] = f"{count:,}"
    if epochs := scores.get("epochs"):
        rows["epochs"] = f"{epochs[-1]['epoch']:g}"
    if seconds := scores.get("seconds"):
        rows["seconds"] = f"{seconds:g}"
    rows |= scores.get("versions") or {}
    if not rows:
        return ""
    lines = "\n".join(f"| {name.replace('_', ' ')} | {_code(v)} |" for name, v in rows.items())
    return f"## Training\n\n| setting | |\n| --- | --- |\n{lines}"


def _files(folder: Path) -> str:
    what = {
        CONFIG_NAME: "the prompt's configuration",
        adapter.WEIGHTS_NAME: "the prompt's rows and the head",
        INFO_NAME: "labels, and the backbone's sizes",
        METRICS_NAME: "scores of every epoch",
    }
    always = (CONFIG_NAME, adapter.WEIGHTS_NAME)
    there = [name for name in what if name in always or (folder / name).is_file()]
    return "## Files\n\n" + "\n".join(f"- `{name}`: {what[name]}" for name in there)


def _code(value: Any) -> str:
    """A value as code, on one line and inside a table's cell."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = " ".join(text.split()).replace("|", "\\|")
    return f"`` {text} ``" if "`" in text else f"`{text}`"


# Refusals.


@contextmanager
def _explained(repo_id: str) -> Iterator[None]:
    """Turn what the client raises into a message with a next step."""
    try:
        yield
    except PtuneError:
        raise
    except (HubHTTPError, OSError, RuntimeError, ValueError) as error:
        raise PtuneError(_refusal(error, repo_id)) from error


def _refusal(error: BaseException, repo_id: str) -> str:
    # An upload that fails says only which file it was; why is in its cause.
    causes = [e for e in _chain(error) if isinstance(e, HfHubHTTPError | HubHTTPError)]
    cause = causes[0] if causes else error
    status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
    said = (getattr(cause, "server_message", None) or first_line(cause)).rstrip(".")
    if isinstance(cause, LocalTokenNotFoundError) or status == 401:
        return (
            f"The Hub does not know you ({said}), so {repo_id} was not pushed. Log in with "
            "`hf auth login`, or give a token that may write (--token, or token= in Python)."
        )
    if status == 403:
        return (
            f"The Hub does not let you write to {repo_id} ({said}). Use a token with the write "
            "permission, push under a name of your own, or offer it as a pull request "
            "(--pull-request, or create_pr=True in Python)."
        )
    if isinstance(cause, RepositoryNotFoundError):
        return f"There is no repository {repo_id} that you may see ({said}). Check the name."
    if status not in (None, 400):  # 400: the client has said what is wrong with it
        return f"The Hub refused {repo_id} with error {status} ({said}). Try again later."
    if isinstance(cause, OfflineModeIsEnabled):
        return f"{repo_id} was not pushed: offline mode is on. Unset HF_HUB_OFFLINE and try again."
    if isinstance(cause, HubHTTPError) and status is None:
        return (
            f"The connection to the Hub at {constants.ENDPOINT} failed ({said}); nothing was "
            "committed. Check the network and push again."
        )
    return f"{repo_id} was not pushed: {' '.join(str(error).split())}"


def _chain(error: BaseException | None) -> Iterable[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
