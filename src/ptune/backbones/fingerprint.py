"""Recognise a backbone by its weights: a few dozen numbers from all of its layers."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from ptune import compat

# Numbers that are recorded. A fine-tuned sibling differs in most of them.
SAMPLES = 48
# Rounding to bfloat16 changes a number by up to 0.4% of itself, and rounding to float16 changes
# the smallest ones by up to 3e-8.
RELATIVE, ABSOLUTE = 0.005, 1e-7
# Files of adapters hold no larger numbers.
LARGEST = 1e6
# Parts of a configuration that name the backbone or its labels.
_NOT_COMPUTED = {"_name_or_path", "id2label", "label2id", "problem_type", "architectures"}
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def fingerprint(backbone: PreTrainedModel, head_names: Collection[str]) -> dict[str, Any]:
    """The commit on the Hub, if it is known, and some weights by name and position.

    Args:
        backbone: Only its frozen matrices count. A quantised backbone has none that could be
            compared.
        head_names: Parameters that are trained.
    """
    frozen = {n: p for n, p in backbone.named_parameters() if n not in head_names and p.ndim > 1}
    names, weights = sorted(frozen), {}
    for i in range(SAMPLES if names else 0):
        name = names[i * len(names) // SAMPLES]
        # Steps of the golden ratio never fall into one column.
        position = frozen[name].numel() * ((618 * i + 137) % 1000) // 1000
        if (value := _value(backbone, frozen[name], position)) is not None:
            weights[f"{name}[{position}]"] = float(f"{value:.6g}")
    commit = compat.commit_of(backbone)
    return {"commit": commit, "weights": weights} if commit else {"weights": weights}


def compare(
    recorded: Mapping[str, float], backbone: PreTrainedModel, head_names: Collection[str]
) -> str | None:
    """How a backbone's weights differ from recorded ones.

    Returns:
        The first difference, for messages; empty if there is none; ``None`` if no weight could be
        compared.
    """
    parameters = {n: p for n, p in backbone.named_parameters() if n not in head_names}
    result = None
    for key, expected in recorded.items():
        found = re.fullmatch(r"(.+)\[(\d{1,15})\]", key)
        if found is None or found[1] not in parameters:
            continue
        value = _value(backbone, parameters[found[1]], int(found[2]))
        if value is None:
            continue
        if not math.isclose(value, expected, rel_tol=RELATIVE, abs_tol=ABSOLUTE):
            return f"{key} is {value:.4g} instead of {expected:.4g}"
        result = ""
    return result


def exact_fingerprint(
    backbone: PreTrainedModel, head_names: Collection[str], how: object
) -> str | None:
    """A hash of everything that determines the exact output of a frozen backbone.

    Args:
        backbone: The backbone.
        head_names: Parameters that are trained.
        how: How it computes.

    Returns:
        ``None`` if its weights cannot be read, which some quantised ones cannot.
    """
    config = {k: v for k, v in backbone.config.to_dict().items() if k not in _NOT_COMPUTED}
    libraries = torch.__version__, transformers.__version__
    found = hashlib.sha256(repr((sorted(config.items()), how, libraries)).encode())
    try:
        for name, tensor in (*backbone.named_parameters(), *backbone.named_buffers()):
            if name not in head_names:
                found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
                numbers = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
                found.update(numbers.numpy().data)
    except (RuntimeError, TypeError, NotImplementedError):
        return None
    return found.hexdigest()[:32]


def _value(backbone: PreTrainedModel, parameter: Tensor, position: int) -> float | None:
    """One number of a parameter; ``None`` if it has none in memory that could be compared."""
    data, quantised = parameter.data, getattr(backbone.config, "quantization_config", None)
    plain = type(data) is Tensor and data.dtype in _FLOATS and not data.is_meta
    if not plain or quantised is not None or position >= data.numel():
        return None
    index = []
    for size in reversed(data.shape):
        position, place = divmod(position, size)
        index.append(place)
    value = float(data[tuple(reversed(index))])
    return value if abs(value) < LARGEST else None
