"""The files of `Postprocessing`: `ptune_quality.safetensors`, and a section of a JSON file.

They are next to an adapter (`ptune.json`) or an export (`ptune_export.json`). A program that does
not know them gets the classifier's raw logits.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from ptune import __version__
from ptune.adapters.schema import POSITIVE, STRING, Field, parse_fields, shown
from ptune.adapters.weights import read_tensors
from ptune.errors import PtuneError
from ptune.labels import Labels
from ptune.postprocessing import Postprocessing

QUALITY_NAME = "ptune_quality.safetensors"
# The section of the JSON file. The tensors are read only if it is there.
SECTION = "quality"

# Scores of held-out texts in a file.
MAX_SCORES = 100_000
# Its tensors. Earlier versions have one weight, or neither that nor known texts.
UNFAMILIAR = [f"unfamiliar.{n}" for n in ("within", "means", "overall", "scores")]
KNOWN = {"unfamiliar.known", "unfamiliar.weight"}
FIELDS = {
    "rows": Field(POSITIVE),
    "calibration": Field(STRING),
    "fitted_on": Field(STRING),  # if not on the evaluation set
    "threshold_for": Field(STRING),
}


def save_quality(values: Postprocessing, folder: Path) -> dict[str, Any]:
    """Write the tensors into a folder; the fields for its JSON file."""
    tensors = {name: torch.from_numpy(np.array(v)) for name, v in values.tensors.items()}
    if not tensors:
        return {}
    save_file(tensors, folder / QUALITY_NAME)
    return {SECTION: dict(values.facts)}


def read_quality(
    content: Mapping[str, Any],
    find: Callable[[str], Path | None],
    labels: Labels,
    where: Path | str,
) -> Postprocessing:
    """Read what `save_quality` wrote.

    Args:
        content: The JSON file's content.
        find: The path of a file in the same place; ``None``: there is no such file.
        labels: The classifier's labels.
        where: The JSON file, for messages.

    Raises:
        PtuneError: The tensors are missing or damaged, or belong to other labels.
    """
    if (section := content.get(SECTION)) is None:
        return Postprocessing()
    if not isinstance(section, dict):
        raise PtuneError(f"{where}: {SECTION} is {shown(section)}; expected an object.")
    facts = parse_fields(section, FIELDS, f"{where}, {SECTION}")
    file = find(QUALITY_NAME)
    if file is None:
        raise PtuneError(
            f"{where} belongs to a calibrated classifier, but there is no {QUALITY_NAME} next to "
            f"it. Copy or download that file too, or remove {SECTION!r} from {Path(where).name} "
            "to predict without calibration."
        )
    tensors = read_tensors(file, is_adapter=False)
    if unknown := sorted(tensors.keys() - Postprocessing.LIMITS.keys()):
        warnings.warn(
            f"{file} has {', '.join(map(shown, unknown[:5]))}, which ptune {__version__} does not "
            "know and ignores. Upgrade ptune (`pip install -U ptune`).",
            stacklevel=2,
        )
    # Those of known texts are in float16, and stay so when the adapter is saved again.
    found = {
        n: (t if t.dtype == torch.float16 else t.double()).numpy()
        for n, t in tensors.items()
        if n not in unknown
    }
    for name, values in found.items():
        _check(name, values, len(labels.output_names), file)
    parts = {n for n in found if n.startswith("unfamiliar.")}
    if parts and (
        parts - KNOWN - {"unfamiliar.weights"} != set(UNFAMILIAR)
        or ("unfamiliar.weights" not in parts and len(parts & KNOWN) == 1)
    ):
        raise PtuneError(
            f"{file} has {', '.join(sorted(parts))} only; expected {', '.join(UNFAMILIAR)}. The "
            "file is damaged: download it, or train the classifier again."
        )
    return Postprocessing.from_tensors(found, {n: v for n, v in facts.items() if v is not None})


def _check(name: str, values: np.ndarray, labels: int, file: Path) -> None:
    shapes = {
        "unfamiliar.within": (labels, labels),
        "unfamiliar.means": (labels, labels),
        "unfamiliar.overall": (labels + 1, labels),
        "unfamiliar.weight": (1,),
        "unfamiliar.weights": (4,) if values.shape == (4,) else (5,),  # earlier: no energy
    }
    if name in ("set_scores", "unfamiliar.scores"):
        fits, expected = values.ndim == 1 and len(values) <= MAX_SCORES, f"at most {MAX_SCORES:,}"
    elif name == "unfamiliar.known":
        fits = values.ndim == 2 and 0 < len(values) <= MAX_SCORES and values.shape[1] == labels
        expected = f"[at most {MAX_SCORES:,}, {labels}]"
    elif name in shapes:
        fits, expected = values.shape == shapes[name], str(list(shapes[name]))
    else:
        fits, expected = values.shape == (labels,), f"{labels}, one for each label"
    if not fits:
        raise PtuneError(
            f"{file}: {name} has the shape {list(values.shape)}; expected {expected}. The file is "
            "damaged or belongs to another adapter."
        )
    low, high = Postprocessing.LIMITS[name]
    least, most = float(values.min()), float(values.max())
    if least < low or most > high:
        wrong = least if least < low else most
        raise PtuneError(
            f"{file}: {name} holds {wrong:g}; expected numbers from {low:g} to {high:g}. The file "
            "is damaged: download it, or train the classifier again."
        )
