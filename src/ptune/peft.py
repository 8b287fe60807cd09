"""PEFT's names: code written for 🤗 PEFT's prompts runs with its import line changed.

P-tuning, prompt tuning and prefix tuning for sequence classification are here, with PEFT's
defaults. `ptune.PromptEncoderConfig` has ptune's own.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, NoReturn, cast

import torch
from huggingface_hub import ModelCard
from torch import nn
from transformers import PreTrainedModel

from ptune.adapters import adapter, schema
from ptune.adapters.adapter import Adapter
from ptune.adapters.weights import split
from ptune.backbones.loading import load_backbone
from ptune.errors import PtuneError
from ptune.files import staged
from ptune.model import PromptModel
from ptune.prompts import config as own
from ptune.prompts.encoder import PromptEncoder

__all__ = [
    "AutoPeftModelForSequenceClassification",
    "PeftConfig",
    "PeftModel",
    "PeftModelForSequenceClassification",
    "PeftType",
    "PrefixTuningConfig",
    "PromptEncoder",
    "PromptEncoderConfig",
    "PromptEncoderReparameterizationType",
    "PromptLearningConfig",
    "PromptTuningConfig",
    "PromptTuningInit",
    "TaskType",
    "get_peft_config",
    "get_peft_model",
    "get_peft_model_state_dict",
    "prepare_model_for_kbit_training",
    "set_peft_model_state_dict",
]


class PeftType(StrEnum):
    """Methods."""

    P_TUNING = own.P_TUNING
    PREFIX_TUNING = own.PREFIX_TUNING
    PROMPT_TUNING = own.PROMPT_TUNING


class TaskType(StrEnum):
    """Tasks."""

    SEQ_CLS = "SEQ_CLS"


class PromptEncoderReparameterizationType(StrEnum):
    """Prompt encoders."""

    MLP = "MLP"
    LSTM = "LSTM"
    NONE = "NONE"


class PromptTuningInit(StrEnum):
    """What a prompt of prompt tuning starts from."""

    TEXT = "TEXT"
    SAMPLE_VOCAB = "SAMPLE_VOCAB"
    RANDOM = "RANDOM"


# Configurations.


@dataclass
class PeftConfig:
    """What all configurations share. `from_pretrained` and `from_peft_type` choose the class.

    The fields are those of `ptune.PromptEncoderConfig`. `auto_mapping` is not used: ptune imports
    no code that a file names.
    """

    task_type: str | None = None
    peft_type: str | None = None
    auto_mapping: dict[str, Any] | None = None
    peft_version: str | None = own.PEFT_FORMAT
    base_model_name_or_path: str | None = None
    revision: str | None = None
    inference_mode: bool = False

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str], **where: Any) -> PeftConfig:
        """Read the configuration of an adapter, as the class of its method.

        Args:
            source: A folder, or a repository on the Hub.
            **where: `subfolder`, `revision`, `token`, `cache_dir`, `local_files_only`.

        Raises:
            PtuneError: There is none, it is damaged, or it describes another method.
        """
        return _from_own(adapter.read_config(source, **where))

    @classmethod
    def from_peft_type(cls, **fields: Any) -> PeftConfig:
        """A configuration of the class that `peft_type` names, from the fields of the dataclass.

        Raises:
            PtuneError: It is another method, or a field holds something that it may not.
        """
        given = {"num_virtual_tokens": own.PromptEncoderConfig.num_virtual_tokens, **fields}
        # Files do not record these two.
        kept = {n: v for n in ("init_weights", "tokenizer_kwargs") if (v := given.pop(n, None))}
        return replace(_from_own(schema.parse_config(given, "The configuration")), **kept)

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write `adapter_config.json`.

        Raises:
            PtuneError: The folder cannot be written.
        """
        with staged(Path(save_directory)) as stage:
            text = schema.config_text(self.to_dict())
            (stage / schema.CONFIG_NAME).write_text(text, encoding="utf-8")

    def to_dict(self) -> dict[str, Any]:
        """The content of `adapter_config.json`."""
        return asdict(self)

    @property
    def is_prompt_learning(self) -> bool:
        """True for every kind of prompt."""
        return False

    def to_own(self) -> own.PromptEncoderConfig:
        """The same prompt as a configuration of ptune.

        Raises:
            PtuneError: It is not a prompt's, or a field holds something that it may not.
        """
        raise PtuneError(
            f"{type(self).__name__} describes no prompt. Expected PromptEncoderConfig, "
            "PromptTuningConfig or PrefixTuningConfig."
        )


@dataclass
class PromptLearningConfig(PeftConfig):
    """What the configurations of prompts share, as in `ptune.PromptEncoderConfig`.

    Args:
        init_weights: ``None`` or ``False``: the prompt starts as its method does. ``"zero"``, for
            prefix tuning: it starts as zeros.
    """

    num_virtual_tokens: int = own.PromptEncoderConfig.num_virtual_tokens
    token_dim: int | None = None
    num_transformer_submodules: int | None = None
    num_attention_heads: int | None = None
    num_layers: int | None = None
    modules_to_save: list[str] | None = None
    init_weights: Literal["zero", False] | None = None

    @property
    def is_prompt_learning(self) -> bool:
        """True for every kind of prompt."""
        return True

    def to_dict(self) -> dict[str, Any]:
        """The content of `adapter_config.json`."""
        return schema.config_content(self.to_own())

    def _check(self, method: PeftType) -> None:
        """Set the method, check all values, and turn names into members of enumerations."""
        self.peft_type = method
        self.to_own()
        if self.init_weights not in (None, False):
            if method != PeftType.PREFIX_TUNING:
                raise PtuneError(
                    f"init_weights is {self.init_weights!r}, but only prefix tuning can start as "
                    "zeros. Leave it out."
                )
            if self.init_weights != "zero":
                raise PtuneError(
                    f"init_weights is {self.init_weights!r}; expected 'zero', or None for a "
                    "random start."
                )
        self.task_type = self.task_type and TaskType(self.task_type)

    def _own(self, **fields: Any) -> own.PromptEncoderConfig:
        shared = {name: getattr(self, name) for name in schema.PEFT_FIELDS}
        return own.PromptEncoderConfig(
            **{
                **shared,
                "placement": "prefix",
                "pooling": "architecture",
                "prompt_init": "random",
                "prompt_init_scale": 1.0,
                "encoder_hidden_size": None,
                **fields,
            }
        )


@dataclass
class PromptEncoderConfig(own.PromptEncoderConfig, PromptLearningConfig):  # type: ignore[misc]
    """P-tuning with PEFT's defaults: an input prompt before the text, through an MLP.

    The fields are those of `ptune.PromptEncoderConfig`.

    Example:
        >>> PromptEncoderConfig(num_virtual_tokens=20, encoder_hidden_size=128).placement
        'prefix'
    """

    encoder_reparameterization_type: own.Reparameterization = "MLP"
    encoder_hidden_size: int | None = None
    depth: own.Depth = "input"
    placement: own.Placement = "prefix"
    pooling: own.Pooling = "architecture"
    prompt_init: own.PromptInit = "random"
    prompt_init_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.depth == "reader":
            raise PtuneError(
                "depth is 'reader', but 🤗 PEFT has no readers and could not load the adapter. Use "
                "ptune.PromptEncoderConfig with ptune.PromptModel, or another depth."
            )
        super().__post_init__()
        self._check(PeftType.P_TUNING)

    def to_own(self) -> own.PromptEncoderConfig:
        """Itself: it is a configuration of ptune."""
        return self


@dataclass
class PromptTuningConfig(PromptLearningConfig):
    """Prompt tuning: an input prompt whose embeddings are the parameters.

    Args:
        prompt_tuning_init: What the prompt starts from: ``"RANDOM"`` numbers, random words of the
            vocabulary (``"SAMPLE_VOCAB"``) or the words of `prompt_tuning_init_text` (``"TEXT"``).
        prompt_tuning_init_text: Repeated, or cut, to `num_virtual_tokens` tokens.
        tokenizer_name_or_path: The tokenizer of that text.
        tokenizer_kwargs: Arguments for loading it. `trust_remote_code` is ignored.

    Raises:
        PtuneError: A value is out of range, or the text or its tokenizer is missing.

    Example:
        >>> PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=10).peft_type.value
        'PROMPT_TUNING'
    """

    prompt_tuning_init: str = PromptTuningInit.RANDOM
    prompt_tuning_init_text: str | None = None
    tokenizer_name_or_path: str | None = None
    tokenizer_kwargs: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.prompt_tuning_init not in list(PromptTuningInit):
            expected = ", ".join(repr(init.value) for init in PromptTuningInit)
            raise PtuneError(
                f"prompt_tuning_init is {self.prompt_tuning_init!r}; expected one of {expected}."
            )
        self.prompt_tuning_init = PromptTuningInit(self.prompt_tuning_init)
        if self.prompt_tuning_init == PromptTuningInit.TEXT:
            for name in ("prompt_tuning_init_text", "tokenizer_name_or_path"):
                if not getattr(self, name):
                    raise PtuneError(
                        f"prompt_tuning_init is 'TEXT', but {name} is {getattr(self, name)!r}. "
                        f"Set {name} as well."
                    )
        elif self.tokenizer_kwargs:
            raise PtuneError(
                "tokenizer_kwargs are for a prompt that starts from a text. Set "
                "prompt_tuning_init='TEXT', or leave them out."
            )
        self._check(PeftType.PROMPT_TUNING)

    def to_own(self) -> own.PromptEncoderConfig:
        """The same prompt as a configuration of ptune."""
        from_text = self.prompt_tuning_init == PromptTuningInit.TEXT
        return self._own(
            depth="input",
            encoder_reparameterization_type="NONE",
            prompt_init=schema.PEFT_INITS[self.prompt_tuning_init],
            prompt_init_text=self.prompt_tuning_init_text if from_text else None,
            tokenizer_name_or_path=self.tokenizer_name_or_path,
            tokenizer_kwargs=self.tokenizer_kwargs,
        )


@dataclass
class PrefixTuningConfig(PromptLearningConfig):
    """Prefix tuning: keys and values in front of those of every layer.

    Args:
        encoder_hidden_size: Width of the MLP; ``None``: the embedding's width.
        prefix_projection: Train the prompt through an MLP.

    Raises:
        PtuneError: A value is out of range; the message names the field.

    Example:
        >>> PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=10).to_own().depth
        'deep'
    """

    encoder_hidden_size: int | None = None
    prefix_projection: bool = False

    def __post_init__(self) -> None:
        self._check(PeftType.PREFIX_TUNING)

    def to_own(self) -> own.PromptEncoderConfig:
        """The same prompt as a configuration of ptune."""
        return self._own(
            depth="deep",
            shift_positions=True,
            encoder_reparameterization_type="MLP" if self.prefix_projection else "NONE",
            encoder_hidden_size=self.encoder_hidden_size,
            token_dim=None,  # PEFT's is the width of a layer's keys
        )

    def to_dict(self) -> dict[str, Any]:
        """The content of `adapter_config.json`."""
        return super().to_dict() | {"init_weights": self.init_weights or None}


def _from_own(config: own.PromptEncoderConfig) -> PromptLearningConfig:
    """The configuration of PEFT's class for a prompt."""
    shared = {name: getattr(config, name) for name in schema.PEFT_FIELDS}
    if config.peft_type == PeftType.PREFIX_TUNING:
        return PrefixTuningConfig(
            **shared,
            encoder_hidden_size=config.encoder_hidden_size,
            prefix_projection=config.encoder_reparameterization_type == "MLP",
        )
    if config.peft_type == PeftType.PROMPT_TUNING:
        content = schema.config_content(config)
        names = schema.METHOD_FIELDS[own.PROMPT_TUNING]
        return PromptTuningConfig(**shared, **{name: content[name] for name in names})
    return PromptEncoderConfig(**vars(config))


def get_peft_config(config_dict: dict[str, Any]) -> PeftConfig:
    """A configuration from a dictionary with `peft_type` and the fields of its dataclass.

    Raises:
        PtuneError: It describes another method, or a field holds something that it may not.
    """
    return PeftConfig.from_peft_type(**config_dict)


# Models.

# Arguments of PEFT's functions that say how to load large weights. Prompts are small.
_WITHOUT_EFFECT = (
    "autocast_adapter_dtype",
    "ephemeral_gpu_offload",
    "low_cpu_mem_usage",
    "torch_device",
)


class PeftModelForSequenceClassification(PromptModel):
    """A `PromptModel` with the arguments, the attributes and the files of PEFT's class.

    Args:
        model: Any `AutoModelForSequenceClassification`, changed in place.
        peft_config: The prompt, as a configuration of PEFT's or of ptune's class.
        adapter_name: Its name in this model.
        prompt_embeddings, mechanism: As for `PromptModel`.

    Raises:
        PtuneError: The prompt does not fit the model, which is unchanged then.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        peft_config: Any = None,
        adapter_name: str = "default",
        prompt_embeddings: torch.Tensor | None = None,
        *,
        mechanism: str | None = None,
    ) -> None:
        self._peft_configs: dict[str, PeftConfig] = {}
        super().__init__(
            model,
            PromptEncoderConfig() if peft_config is None else peft_config,
            prompt_embeddings,
            adapter_name=adapter_name,
            mechanism=mechanism,
        )

    def _put(self, name: str, config: Any, *args: Any, **kwargs: Any) -> None:
        given, config = config, _to_own(config)
        _from_own(config)  # PEFT must have a class for it
        super()._put(name, config, *args, **kwargs)
        peft_config = _from_own(self.adapters[name].config)
        if getattr(given, "init_weights", None) == "zero":
            peft_config = replace(peft_config, init_weights="zero")
            _set_to_zero(self.prompt_encoders[name])
        self._peft_configs[name] = peft_config

    def rename_adapter(self, name: str, new_name: str) -> None:  # noqa: D102
        super().rename_adapter(name, new_name)
        if name in self._peft_configs:
            self._peft_configs[new_name] = self._peft_configs.pop(name)

    def delete_adapter(self, name: str) -> None:  # noqa: D102
        super().delete_adapter(name)
        self._peft_configs.pop(name, None)

    @property
    def peft_config(self) -> dict[str, PeftConfig]:
        """The configuration of each adapter, by name."""
        return {
            name: self._peft_configs.get(name) or _from_own(state.config)
            for name, state in self.adapters.items()
        }

    @property
    def active_peft_config(self) -> PeftConfig:
        """The active adapter's configuration."""
        return self.peft_config[self.active_adapter]

    @property
    def active_adapters(self) -> list[str]:
        """The active adapter, in a list."""
        return [self.active_adapter]

    @property
    def peft_type(self) -> PeftType:
        """The active adapter's method."""
        return PeftType(cast(str, self.active_peft_config.peft_type))

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        model: PreTrainedModel,
        model_id: Any,
        adapter_name: str = "default",
        is_trainable: bool = False,
        config: PeftConfig | None = None,
        **kwargs: Any,
    ) -> PeftModelForSequenceClassification:
        """Put a saved adapter on `model`, as `PromptModel.from_pretrained` does.

        Args:
            config: Replaces the adapter's own. It becomes the model's, as in PEFT: its
                `inference_mode` is set, and what it leaves open is filled in.
            **kwargs: As for `PromptModel.from_pretrained`. PEFT's arguments for loading large
                weights have no effect.
        """
        allow = kwargs.pop("allow_other_backbone", False)
        loaded = cls.from_adapter(
            model,
            _read(model_id, kwargs),
            is_trainable=is_trainable,
            config=None if config is None else _to_own(config),
            adapter_name=adapter_name,
            allow_other_backbone=allow,
        )
        assert isinstance(loaded, PeftModelForSequenceClassification)
        if config is not None:
            config.inference_mode = not is_trainable
            for name, value in vars(loaded.peft_config[adapter_name]).items():
                if getattr(config, name, value) is None:
                    setattr(config, name, value)
            loaded._peft_configs[adapter_name] = config
        return loaded

    def add_adapter(self, adapter_name: str, peft_config: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """As `PromptModel.add_adapter`, with PEFT's arguments."""
        _refuse_unknown(kwargs, "add_adapter")
        super().add_adapter(adapter_name, peft_config)

    def load_adapter(  # type: ignore[override]
        self, model_id: Any, adapter_name: str, is_trainable: bool = False, **kwargs: Any
    ) -> None:
        """As `PromptModel.load_adapter`, with PEFT's arguments."""
        allow = kwargs.pop("allow_other_backbone", False)
        super().load_adapter(
            _read(model_id, kwargs),
            adapter_name,
            is_trainable=is_trainable,
            allow_other_backbone=allow,
        )

    def set_adapter(self, adapter_name: str, inference_mode: bool = False) -> None:
        """As `PromptModel.set_adapter`. With `inference_mode`, the adapter does not train."""
        super().set_adapter(adapter_name)
        if inference_mode:
            self.freeze()

    def merge_and_unload(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: a prompt cannot become part of the weights.

        Raises:
            PtuneError: Always.
        """
        raise PtuneError(
            "A prompt is read with every text and cannot be merged into the backbone's weights. "
            "Take the backbone back without it (unload), or write a checkpoint that contains an "
            "input prompt (ptune.export_transformers)."
        )

    # Files.

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | os.PathLike[str],
        safe_serialization: bool = True,
        selected_adapters: list[str] | None = None,
        is_main_process: bool = True,
        **kwargs: Any,
    ) -> None:
        """Save all adapters, or the selected ones, each with a model card, where PEFT saves them.

        `default` (or the only adapter) is saved in the folder itself, others in folders of their
        names in it. A checkpoint of `Trainer` always has the active adapter in the folder itself.

        Raises:
            PtuneError: `safe_serialization` is False, an adapter does not exist, or the folder
                cannot be written.
        """
        if not safe_serialization:
            raise PtuneError(
                "ptune writes no pickle files, because they can run code when they are loaded. "
                "Leave out safe_serialization=False."
            )
        if not is_main_process:
            return
        for_trainer = "state_dict" in kwargs  # also where it is None
        root = self.active_adapter if for_trainer else "default"
        if len(self.adapters) == 1:
            root = next(iter(self.adapters))
        for name in list(self.adapters) if selected_adapters is None else selected_adapters:
            saved = self.to_adapter(name)
            folder = Path(save_directory) / ("" if name == root else name)
            # `Trainer` looks for the state under its own name.
            file = adapter.TRAINED_STATE_NAME if for_trainer else adapter.ENCODER_NAME
            saved.save(folder, self.trained_state(name), state_name=file)
            self._write_card(folder, saved)

    def create_or_update_model_card(self, output_dir: str | os.PathLike[str]) -> None:
        """Write a `README.md` that names PEFT and the backbone, or add this to the one there.

        `push_to_hub` writes a card of its own, with scores and without paths of this machine.
        """
        self._write_card(Path(output_dir), self.to_adapter())

    def _write_card(self, folder: Path, saved: Adapter) -> None:
        file = folder / CARD_NAME
        card = ModelCard(
            file.read_text("utf-8") if file.exists() else _CARD, ignore_metadata_errors=True
        )
        card.data["library_name"] = "peft"
        card.data["pipeline_tag"] = "text-classification"
        card.data["base_model"] = self.config.name_or_path or saved.config.base_model_name_or_path
        card.data["tags"] = sorted({*(card.data.get("tags") or []), "p-tuning"})
        with staged(folder) as stage:
            (stage / CARD_NAME).write_text(str(card), encoding="utf-8")


PeftModel = PeftModelForSequenceClassification

CARD_NAME = "README.md"
_CARD = f"""{adapter.CARD_MARK}

A text classifier: a prompt and a head for a frozen language model.

```python
from ptune.peft import AutoPeftModelForSequenceClassification

model = AutoPeftModelForSequenceClassification.from_pretrained("this folder")
```
"""


class AutoPeftModelForSequenceClassification:
    """Loads an adapter together with the backbone that it names."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise PtuneError(
            f"{type(self).__name__} has no instances. Use {type(self).__name__}.from_pretrained."
        )

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        adapter_name: str = "default",
        is_trainable: bool = False,
        config: PeftConfig | None = None,
        revision: str | None = None,
        **kwargs: Any,
    ) -> PeftModelForSequenceClassification:
        """Load an adapter and its backbone.

        Args:
            pretrained_model_name_or_path: A folder, or a repository on the Hub.
            adapter_name, is_trainable, config: As for `PeftModel.from_pretrained`.
            revision: Of the adapter.
            **kwargs: `subfolder`, `token`, `cache_dir`, `local_files_only` of the adapter, and
                `allow_other_backbone` as for `PromptModel.from_adapter`. Others go to the
                backbone's `from_pretrained`; its `dtype` is float32 by default.

        Raises:
            PtuneError: There is no adapter, it names no backbone, or one of them cannot be loaded.
        """
        kwargs = {name: value for name, value in kwargs.items() if name not in _WITHOUT_EFFECT}
        here = ("subfolder", "token", "cache_dir", "local_files_only")
        where = {name: kwargs.pop(name) for name in here if name in kwargs}
        allow = kwargs.pop("allow_other_backbone", False)
        saved = Adapter.read(pretrained_model_name_or_path, revision=revision, **where)
        backbone_name = saved.config.base_model_name_or_path
        if backbone_name is None:
            raise PtuneError(
                f"The adapter {saved.source} does not name its backbone. Load the backbone "
                "yourself, and the adapter with PeftModel.from_pretrained."
            )
        kwargs.setdefault("dtype", kwargs.pop("torch_dtype", None) or torch.float32)
        backbone = load_backbone(
            backbone_name,
            labels=saved.labels.output_names,
            problem_type=saved.labels.problem_type,
            revision=saved.config.revision,
            token=where.get("token"),
            at_mask=saved.reading.at_mask,
            **kwargs,
        )
        return PeftModel.from_pretrained(
            backbone, saved, adapter_name, is_trainable, config, allow_other_backbone=allow
        )


def get_peft_model(
    model: PreTrainedModel,
    peft_config: PeftConfig | own.PromptEncoderConfig,
    adapter_name: str = "default",
    mixed: bool = False,
    autocast_adapter_dtype: bool = True,
    revision: str | None = None,
    low_cpu_mem_usage: bool = False,
) -> PeftModelForSequenceClassification:
    """Freeze `model` and give it a prompt to train.

    Args:
        model: Any `AutoModelForSequenceClassification`, changed in place.
        peft_config: The prompt.
        adapter_name: Its name in the model.
        mixed: False. Adapters of several methods at once are not for prompts.
        autocast_adapter_dtype, low_cpu_mem_usage: Without effect: prompt and head are float32.
        revision: The backbone's revision on the Hub, to be saved with the adapter.

    Raises:
        PtuneError: The prompt does not fit the model.
    """
    if mixed:
        raise PtuneError("mixed=True is not for prompts. Leave it out.")
    if revision is not None:
        peft_config = replace(peft_config, revision=revision)
    return PeftModel(model, peft_config, adapter_name)


def get_peft_model_state_dict(
    model: PromptModel, state_dict: None = None, adapter_name: str | None = None, **kwargs: Any
) -> dict[str, torch.Tensor]:
    """The tensors of an adapter file: prompt and head. Other arguments have no effect."""
    return model.to_adapter(adapter_name).tensors()


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


def prepare_model_for_kbit_training(
    model: PreTrainedModel,
    use_gradient_checkpointing: bool = True,
    gradient_checkpointing_kwargs: dict[str, Any] | None = None,
) -> PreTrainedModel:
    """Freeze a quantised model and make its other parameters float32, before `get_peft_model`.

    Args:
        model: The model, changed in place.
        use_gradient_checkpointing: Compute activations again in the backward pass, if the model
            was loaded in 4 or 8 bits.
        gradient_checkpointing_kwargs: For `gradient_checkpointing_enable`.
    """
    model.requires_grad_(False)
    for parameter in model.parameters():
        packed = type(parameter).__name__ in ("Params4bit", "Int8Params")
        if parameter.dtype in (torch.float16, torch.bfloat16) and not packed:
            parameter.data = parameter.data.float()
    quantised = getattr(model, "is_loaded_in_8bit", False) or getattr(
        model, "is_loaded_in_4bit", False
    )
    if quantised and use_gradient_checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs or {})
    return model


def _to_own(config: Any) -> own.PromptEncoderConfig:
    if isinstance(config, PeftConfig):
        return config.to_own()
    if isinstance(config, own.PromptEncoderConfig):
        return config
    raise PtuneError(
        f"The configuration is a {type(config).__name__}. Expected PromptEncoderConfig, "
        "PromptTuningConfig or PrefixTuningConfig of ptune.peft."
    )


def _read(source: Any, kwargs: dict[str, Any]) -> Adapter:
    """The adapter that a user names as in PEFT."""
    where = {name: value for name, value in kwargs.items() if name not in _WITHOUT_EFFECT}
    return adapter.adapter_of(source, **where)


def _refuse_unknown(kwargs: dict[str, Any], function: str) -> None:
    if unknown := sorted(kwargs.keys() - set(_WITHOUT_EFFECT)):
        raise TypeError(f"{function} got unexpected arguments: {', '.join(unknown)}")


@torch.no_grad()
def _set_to_zero(encoder: nn.Module) -> None:
    """Make a prompt of key-values zeros, with an encoder or without."""
    last = encoder.transform[-1] if hasattr(encoder, "transform") else encoder.embedding  # type: ignore[index]
    for parameter in cast(nn.Module, last).parameters():
        parameter.zero_()
