"""ptune: any number of text classifiers from one frozen language model, by p-tuning.

>>> import ptune
>>> config = ptune.PromptEncoderConfig(num_virtual_tokens=20)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ptune.errors import PtuneError as PtuneError
    from ptune.export.checkpoint import export_transformers as export_transformers
    from ptune.export.loading import load as load
    from ptune.export.onnx import export_onnx as export_onnx
    from ptune.inference.bank import PromptBank as PromptBank
    from ptune.inference.classifier import PromptClassifier as PromptClassifier
    from ptune.inference.engines import load_exported as load_exported
    from ptune.labels import Prediction as Prediction
    from ptune.model import PromptModel as PromptModel
    from ptune.prompts.config import PromptEncoderConfig as PromptEncoderConfig
    from ptune.training.fleet import train_fleet as train_fleet
    from ptune.training.run import train_run as train_run
    from ptune.training.settings import TrainSettings as TrainSettings
    from ptune.training.tune import tune as tune

# Names are imported on first use, so that `import ptune` itself costs almost nothing.
_HOME = {
    "Prediction": "labels",
    "PromptBank": "inference.bank",
    "PromptClassifier": "inference.classifier",
    "PromptEncoderConfig": "prompts.config",
    "PromptModel": "model",
    "PtuneError": "errors",
    "TrainSettings": "training.settings",
    "export_onnx": "export.onnx",
    "export_transformers": "export.checkpoint",
    "load": "export.loading",
    "load_exported": "inference.engines",
    "train_fleet": "training.fleet",
    "train_run": "training.run",
    "tune": "training.tune",
}
__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"ptune.{_HOME[name]}"), name)
    raise AttributeError(f"module 'ptune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
