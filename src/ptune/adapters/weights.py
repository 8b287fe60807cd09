"""Read the tensors of adapters that may come from strangers.

Headers are checked before memory is taken: a file cannot make ptune allocate more than its own
size. Only floating-point tensors with finite values up to `MAX_VALUE` are read.
"""

from __future__ import annotations

import os
import pickletools
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from ptune.adapters.schema import MAX_VALUE, shown
from ptune.errors import PtuneError, first_line

EMBEDDINGS_KEY = "prompt_embeddings"
HEAD_PREFIX = "base_model."

# How many labels an adapter may have. PTUNE_MAX_LABELS in the environment changes it.
MAX_LABELS = 50_000
# Bytes of names and shapes. Those of the largest head in Transformers take 2,000.
MAX_HEADER = 1_000_000
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# All that `torch.save` needs for tensors.
_GLOBALS = {
    "collections OrderedDict",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor_v2",
    *(f"torch {kind}Storage" for kind in ("Double", "Float", "Half", "BFloat16")),
}

Shapes = dict[str, list[int]]


def max_labels() -> int:
    """How many labels an adapter may have.

    Raises:
        PtuneError: The environment's PTUNE_MAX_LABELS is not a number.
    """
    value = os.environ.get("PTUNE_MAX_LABELS", str(MAX_LABELS))
    if not value.isdecimal():
        raise PtuneError(f"PTUNE_MAX_LABELS is {shown(value)}; expected a number such as 50000.")
    return int(value)


def check_labels(count: int, file: Path | str) -> None:
    """Refuse more labels than an adapter may have."""
    if count > (limit := max_labels()):
        raise PtuneError(
            f"{file} has {count:,} labels; expected at most {limit:,}. If you trust it, set "
            f"PTUNE_MAX_LABELS={count} in the environment."
        )


def read_tensors(file: Path, *, is_adapter: bool = True) -> dict[str, torch.Tensor]:
    """The tensors of a file, once its header has passed.

    Args:
        file: A safetensors file, or a pickle by `torch.save` with only tensors.
        is_adapter: Whether it holds only a prompt and a head; else also a prompt encoder.

    Raises:
        PtuneError: It is damaged, or holds what no adapter has; the message names file and tensor.
    """
    try:
        if file.suffix == ".bin":
            _check_pickle(file)
            tensors = torch.load(file, map_location="cpu", weights_only=True)
            _check_pickled(tensors, file)
            shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
        else:
            tensors, shapes = {}, _shapes(file)
        _check_shapes(shapes, file, is_adapter=is_adapter)
        tensors = tensors or load_file(file)
    except PtuneError:
        raise
    except Exception as error:  # Each reader fails in its own ways on a damaged file.
        raise _damaged(file, first_line(error)) from error
    check_values(tensors, str(file))
    return dict(tensors)


def is_trained_state(file: Path) -> bool:
    """Whether a file holds prompt encoder and head; not if it is a model, or not there."""
    try:
        with safe_open(file, "pt") as opened:
            names = list(opened.keys())
            return all(name.startswith(("prompt_encoders.", "backbone.")) for name in names)
    except (OSError, SafetensorError):
        return False


def split(
    tensors: Mapping[str, torch.Tensor], where: str
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Prompt embeddings and head from the tensors of an adapter file.

    Raises:
        PtuneError: There are no prompt embeddings.
    """
    if EMBEDDINGS_KEY not in tensors:
        raise PtuneError(f"{where} has no {EMBEDDINGS_KEY!r}, so it is not a p-tuning adapter.")
    head = {n.removeprefix(HEAD_PREFIX): t for n, t in tensors.items()}
    return head.pop(EMBEDDINGS_KEY), head


def check_values(tensors: Mapping[str, torch.Tensor], where: str) -> None:
    """Refuse values that are NaN, infinite or absurdly large."""
    for name, tensor in tensors.items():
        low, high = (float(bound) for bound in tensor.detach().aminmax())
        if not (low >= -MAX_VALUE and high <= MAX_VALUE):
            found = low if not low >= -MAX_VALUE else high
            raise PtuneError(
                f"{where}: {shown(name)} holds {found:g}; expected finite numbers up to "
                f"{MAX_VALUE:,.0f}. The file is damaged, or the training failed: download it or "
                "train again."
            )


def _check_shapes(shapes: Shapes, file: Path, *, is_adapter: bool) -> None:
    for name, shape in shapes.items():
        if is_adapter and name != EMBEDDINGS_KEY and not name.startswith(HEAD_PREFIX):
            raise PtuneError(
                f"{file}: {shown(name)} is not a tensor of an adapter; expected {EMBEDDINGS_KEY!r} "
                f"and names that begin with {HEAD_PREFIX!r}."
            )
        if not shape or 0 in shape:
            raise PtuneError(
                f"{file}: {shown(name)} has the shape {shape}; expected at least one value in "
                "each of one or more dimensions."
            )
        if is_adapter and name != EMBEDDINGS_KEY:
            check_labels(shape[0], f"{file}: {shown(name)}")


def _shapes(file: Path) -> Shapes:
    """The tensors that a safetensors file declares."""
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
    if size > MAX_HEADER:
        raise _damaged(file, f"its header has {size:,} bytes; expected at most {MAX_HEADER:,}")
    shapes = {}
    # It also refuses sizes that differ from the file's.
    with safe_open(file, "pt") as opened:
        for name in opened.keys():  # noqa: SIM118
            tensor = opened.get_slice(name)
            shapes[name] = list(tensor.get_shape())
            _check_dtype(name, tensor.get_dtype(), _DTYPES, file)
    return shapes


def _check_pickle(file: Path) -> None:
    """Refuse a pickle that is compressed, or holds more than tensors."""
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        declared, size = sum(e.file_size for e in entries), file.stat().st_size
        if declared > size or any(e.compress_type != zipfile.ZIP_STORED for e in entries):
            raise _damaged(file, f"{declared:,} bytes compressed to {size:,}")
        (pickled,) = (e for e in entries if e.filename.endswith("/data.pkl"))
        if pickled.file_size > MAX_HEADER:
            raise _damaged(
                file, f"its header has {pickled.file_size:,} bytes; expected at most {MAX_HEADER:,}"
            )
        content = archive.read(pickled)
    for operation, argument, _ in pickletools.genops(content):
        name = operation.name
        if name in ("STACK_GLOBAL", "INST") or (name == "GLOBAL" and argument not in _GLOBALS):
            raise _damaged(file, f"it holds {shown(argument or name)}, which is not a tensor")


def _check_pickled(tensors: object, file: Path) -> None:
    """Refuse what a pickle can hold and a safetensors file cannot."""
    if not isinstance(tensors, dict) or not all(isinstance(name, str) for name in tensors):
        raise _damaged(file, "it holds no named tensors")
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise _damaged(file, f"{shown(name)} is not a tensor")
        _check_dtype(name, tensor.dtype, _DTYPES.values(), file)
    declared, size = sum(t.nbytes for t in tensors.values()), file.stat().st_size
    if declared > size:
        raise _damaged(file, f"it declares {declared:,} bytes and has {size:,}")


def _check_dtype(name: str, dtype: object, known: Iterable[object], file: Path) -> None:
    if dtype not in known:
        raise PtuneError(
            f"{file}: {shown(name)} has the type {dtype}; expected one of {', '.join(_DTYPES)}."
        )


def _damaged(file: Path, reason: str) -> PtuneError:
    return PtuneError(f"{file} is damaged or cut short ({reason}). Save or download it again.")
