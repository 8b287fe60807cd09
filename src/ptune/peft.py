"""PEFT's names: code written for 🤗 PEFT's p-tuning runs with its import line changed.

Only p-tuning for sequence classification is here. `PromptEncoderConfig` has PEFT's defaults;
`ptune.PromptEncoderConfig` has ptune's own.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import torch
from transformers import PreTrainedModel

from ptune.adapters import adapter, schema
from ptune.adapters.weights import split
from ptune.model import PromptModel
from ptune.prompts import config
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
    """Methods."""

    P_TUNING = "P_TUNING"


class TaskType(StrEnum):
    """Tasks."""

    SEQ_CLS = "SEQ_CLS"


class PromptEncoderReparameterizationType(StrEnum):
    """Prompt encoders."""

    MLP = "MLP"
    LSTM = "LSTM"
    NONE = "NONE"


@dataclass
class PromptEncoderConfig(config.PromptEncoderConfig):
    """A prompt with PEFT's defaults: an input prompt before the text, through an MLP.

    The fields are those of `ptune.PromptEncoderConfig`.

    Example:
        >>> PromptEncoderConfig(num_virtual_tokens=20, encoder_hidden_size=128).placement
        'prefix'
    """

    encoder_reparameterization_type: config.Reparameterization = "MLP"
    encoder_hidden_size: int | None = None
    depth: config.Depth = "input"
    placement: config.Placement = "prefix"
    pooling: config.Pooling = "architecture"
    prompt_init: config.PromptInit = "random"
    prompt_init_scale: float = 1.0

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str], **where: Any) -> PromptEncoderConfig:
        """Read the configuration of an adapter.

        Args:
            source: A folder, or a repository on the Hub.
            **where: `subfolder`, `revision`, `token`, `cache_dir`, `local_files_only`.

        Raises:
            PtuneError: There is none, it is damaged, or it describes another method.
        """
        return cls(**vars(adapter.read_config(source, **where)))

    def to_dict(self) -> dict[str, Any]:
        """The content of `adapter_config.json`."""
        return schema.config_content(self)


PeftModel = PeftModelForSequenceClassification = PromptModel
PeftConfig = PromptEncoderConfig


def get_peft_config(config_dict: dict[str, Any]) -> PromptEncoderConfig:
    """A configuration from a dictionary with `peft_type` and the fields of the dataclass.

    Raises:
        PtuneError: It describes another method, or a field holds something that it may not.
    """
    given = {"num_virtual_tokens": PromptEncoderConfig.num_virtual_tokens, **config_dict}
    return PromptEncoderConfig(**vars(schema.parse_config(given, "The dictionary")))


def get_peft_model(
    model: PreTrainedModel, peft_config: config.PromptEncoderConfig, adapter_name: str = "default"
) -> PromptModel:
    """Freeze `model` and give it a prompt to train.

    Raises:
        PtuneError: The prompt does not fit the model.
    """
    return PromptModel(model, peft_config, adapter_name=adapter_name)


def get_peft_model_state_dict(model: PromptModel, **kwargs: Any) -> dict[str, torch.Tensor]:
    """The tensors of an adapter file: prompt embeddings and head."""
    return model.to_adapter().tensors()


def set_peft_model_state_dict(
    model: PromptModel, peft_model_state_dict: dict[str, torch.Tensor], **kwargs: Any
) -> None:
    """Put the prompt embeddings and the head of an adapter into `model`.

    The prompt embeddings replace the prompt encoder, because they are its output. They can be
    trained further as parameters of their own.

    Raises:
        PtuneError: They do not fit.
    """
    source = "the state dictionary"
    embeddings, head = split(peft_model_state_dict, source)
    model.use_adapter(
        replace(model.to_adapter(), prompt_embeddings=embeddings, head=head, source=source)
    )
