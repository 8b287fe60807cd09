"""ptune: any number of text classifiers from one frozen language model, by p-tuning.

>>> import ptune
>>> config = ptune.PromptEncoderConfig(num_virtual_tokens=20)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ptune.bank import PromptBank as PromptBank
    from ptune.classifier import Prediction as Prediction
    from ptune.classifier import PromptClassifier as PromptClassifier
    from ptune.classifier import load as load
    from ptune.config import PromptEncoderConfig as PromptEncoderConfig
    from ptune.errors import PtuneError as PtuneError
    from ptune.export import export_transformers as export_transformers
    from ptune.model import PromptModel as PromptModel
    from ptune.onnx import export_onnx as export_onnx
    from ptune.runtime import load_exported as load_exported
    from ptune.training import TrainSettings as TrainSettings
    from ptune.training import train_run as train_run

# Imported when first used: `import ptune` itself costs next to nothing.
_HOME = {
    "Prediction": "classifier",
    "PromptBank": "bank",
    "PromptClassifier": "classifier",
    "load": "classifier",
    "PromptEncoderConfig": "config",
    "PtuneError": "errors",
    "export_transformers": "export",
    "PromptModel": "model",
    "export_onnx": "onnx",
    "load_exported": "runtime",
    "TrainSettings": "training",
    "train_run": "training",
}
__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"ptune.{_HOME[name]}"), name)
    raise AttributeError(f"module 'ptune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
