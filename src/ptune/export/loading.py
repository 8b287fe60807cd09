"""`ptune.load`: an adapter on PyTorch, or as a graph that is exported once and kept."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, cast, overload

import torch
from huggingface_hub import constants

from ptune import __version__
from ptune.adapters.adapter import PREDICTING
from ptune.adapters.download import AdapterFiles
from ptune.backbones.loading import default_device, full_name
from ptune.errors import PtuneError, missing_package, near
from ptune.export.onnx import require_exporter, write_onnx
from ptune.files import cached, digest_of, is_export
from ptune.inference.classifier import PromptClassifier
from ptune.inference.classifier import load as load_adapter
from ptune.inference.engines import EXPORT_INFO_NAME, RUNTIMES, Dtype, load_exported
from ptune.inference.text_classifier import TextClassifier

logger = logging.getLogger(__name__)

Engine = Literal["torch", "onnx", "openvino", "auto"]


class Source(TypedDict, total=False):
    """Where an adapter and its backbone are. See `load`."""

    model: str | None
    subfolder: str | None
    revision: str | None
    token: str | bool | None
    cache_dir: str | os.PathLike[str] | None
    local_files_only: bool
    allow_other_backbone: bool


class Options(Source, total=False):
    """Arguments of `load`."""

    dtype: str
    device: str | torch.device | None
    batch_size: int


@overload
def load(
    source: str | os.PathLike[str],
    *,
    engine: Literal["torch"] = "torch",
    **options: Unpack[Options],
) -> PromptClassifier: ...
@overload
def load(
    source: str | os.PathLike[str], *, engine: Engine, **options: Unpack[Options]
) -> TextClassifier: ...
def load(
    source: str | os.PathLike[str], *, engine: Engine = "torch", **options: Unpack[Options]
) -> TextClassifier:
    """Load a classifier: an adapter, and the backbone it was trained on.

    Args:
        source: A folder, or a repository on the Hub, written by ptune or by 🤗 PEFT.
        engine: What computes the logits. `torch`: PyTorch. `openvino` and `onnx` (ONNX Runtime)
            run a graph on the CPU, which is exported on first use and kept in the cache folder;
            such a classifier predicts, and cannot be trained or saved. `auto`: `openvino` if it is
            installed, the graph exists already and no GPU is used; otherwise `torch`.
        **options: `model` (`str`): the backbone, if it is not available under the name that the
            adapter stores. `dtype` (`str`): data type of the backbone; ``"auto"``, the default:
            bfloat16 where it is fast, else float32. `device`: ``None``, the default: a GPU if
            there is one. `batch_size` (`int`): a batch has at most 128 tokens times this number;
            32 by default. `subfolder`, `revision`, `token`, `cache_dir`, `local_files_only`: for
            the Hub. `allow_other_backbone` (`bool`): as for `PromptModel.from_adapter`.

    Raises:
        PtuneError: There is no such adapter or backbone, or one does not fit the other; or the
            engine is not installed, or cannot run the adapter.

    Example:
        ``ptune.load("runs/mrpc")(("A pair of texts.", "Two texts."))``
    """
    arguments = [*Options.__annotations__, "engine"]
    if unknown := sorted(options.keys() - set(arguments)):
        raise PtuneError(f"load has no argument {unknown[0]!r}; {near(unknown[0], arguments)}.")
    known = ("torch", *RUNTIMES, "auto")
    if engine not in known:
        raise PtuneError(f"There is no engine {engine!r}. Choose one of {', '.join(known)}.")
    if engine == "torch":
        return load_adapter(source, **options)
    where = {key: options[key] for key in Source.__annotations__ if key in options}  # type: ignore[literal-required]
    at = cast("Source", where)
    device = str(options.get("device") or default_device()).partition(":")[0]
    dtype, size = cast("Dtype", options.get("dtype", "auto")), options.get("batch_size", 32)
    has_openvino = importlib.util.find_spec("openvino") is not None
    if engine == "auto":
        ready = device == "cpu" and has_openvino
        if not ready or not ((folder := _graph(source, **at)) / EXPORT_INFO_NAME).is_file():
            return load_adapter(source, **options)
        return load_exported(folder, "openvino", dtype=dtype, batch_size=size)
    if options.get("device") is not None and device != "cpu":
        raise PtuneError(
            f"The engine {engine} runs on the CPU, not on {device}. Omit the device, or use the "
            "engine torch."
        )
    if engine == "openvino" and not has_openvino:
        raise missing_package("openvino", "openvino")
    return load_exported(graph_of(source, **at), engine, dtype=dtype, batch_size=size)


def graph_of(source: str | os.PathLike[str], **where: Unpack[Source]) -> Path:
    """The folder of a classifier as an ONNX graph. It is exported on first use, then kept.

    Args:
        source: The adapter; or an export, whose folder is returned.
        **where: As for `load`.

    Raises:
        PtuneError: As for `export_onnx`.
    """
    if is_export(source):
        return Path(source)
    folder = _graph(source, **where)
    if (folder / EXPORT_INFO_NAME).is_file():  # also in a cache that is read-only
        return folder
    with cached(folder):
        if not (folder / EXPORT_INFO_NAME).is_file():  # another process may have written it
            require_exporter()
            logger.warning("Exporting %s once, into %s …", source, folder)
            write_onnx(load_adapter(source, dtype="float32", device="cpu", **where), folder)
    return folder


def _identity(backbone: str | os.PathLike[str] | None) -> list[Any]:
    """What a backbone that the caller named is known by; a folder by its files, too."""
    if backbone is None:
        return [None]
    name = full_name(os.fspath(backbone))
    files = sorted(Path(name).glob("*")) if Path(name).is_dir() else []
    return [name, [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]]


def _graph(source: str | os.PathLike[str], **where: Unpack[Source]) -> Path:
    """Where the graph of an adapter with this content is kept."""
    if is_export(source):
        return Path(source)
    backbone = where.get("model")
    own: Any = {k: v for k, v in where.items() if k not in ("model", "allow_other_backbone")}
    content = digest_of(map(AdapterFiles(source, **own).find, PREDICTING))
    key = json.dumps([__version__, *_identity(backbone), content])
    cache = Path(where.get("cache_dir") or constants.HF_HOME)
    return cache / "ptune" / "onnx" / hashlib.sha256(key.encode()).hexdigest()[:32]
