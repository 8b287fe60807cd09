"""The reference's names, so that code written for 🤗 PEFT runs with its import line changed.

What is here: what p-tuning for sequence classification needs. ptune has no other method.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import torch
from transformers import PreTrainedModel

from ptune.adapters import adapter
from ptune.model import PromptModel
from ptune.prompts.config import PromptEncoderConfig
from ptune.prompts.encoder import PromptEncoder

__all__ = [
    "PeftConfig",
    "PeftModel",
    "PeftModelForSequenceClassification",
    "PeftType",
    "PromptEncoder",
    "PromptEncoderConfig",
    "PromptEncoderReparameterizationType",
    "TaskType",
    "get_peft_config",
    "get_peft_model",
    "get_peft_model_state_dict",
    "set_peft_model_state_dict",
]


class PeftType(StrEnum):
    """The methods there are."""

    P_TUNING = "P_TUNING"


class TaskType(StrEnum):
    """The tasks there are."""

    SEQ_CLS = "SEQ_CLS"


class PromptEncoderReparameterizationType(StrEnum):
    """The prompt encoders there are."""

    MLP = "MLP"
    LSTM = "LSTM"
    NONE = "NONE"


PeftModel = PeftModelForSequenceClassification = PromptModel
PeftConfig = PromptEncoderConfig


def get_peft_config(config_dict: dict[str, Any]) -> PromptEncoderConfig:
    """A configuration from a dictionary with `peft_type` and the fields of the dataclass."""
    return PromptEncoderConfig.from_dict(config_dict)


def get_peft_model(
    model: PreTrainedModel, peft_config: PromptEncoderConfig, adapter_name: str = "default"
) -> PromptModel:
    """Freeze `model` and give it a prompt to train.

    Raises:
        PtuneError: The prompt does not fit the model.
    """
    return PromptModel(model, peft_config, adapter_name=adapter_name)


def get_peft_model_state_dict(model: PromptModel, **kwargs: Any) -> dict[str, torch.Tensor]:
    """What the adapter file holds: the prompt's rows and the head."""
    return adapter.from_model(model).tensors()


def set_peft_model_state_dict(
    model: PromptModel, peft_model_state_dict: dict[str, torch.Tensor], **kwargs: Any
) -> None:
    """Put the rows and the head of an adapter into `model`, for inference or to go on training.

    The rows replace the prompt encoder: they are its output and would be nonsense as its input.

    Raises:
        PtuneError: They do not fit.
    """
    adapter.put(model, *adapter.split(peft_model_state_dict, "the state dictionary"))
