"""What a prompt is, as a dataclass and as the file `adapter_config.json`.

The file is the one that 🤗 PEFT writes for `PromptEncoderConfig`. ptune's own fields are written
only where they differ from what the reference does, so that a file the reference can use carries
nothing unknown to it, and it warns about one it cannot.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from ptune.errors import PtuneError

CONFIG_NAME = "adapter_config.json"
PEFT_TYPE = "P_TUNING"
# The reference's deep prompt: read, and written as ptune's own.
PREFIX_TUNING = "PREFIX_TUNING"
# The release of the reference whose file format is written.
PEFT_FORMAT = "0.21.2"

Depth = Literal["input", "deep"]
Placement = Literal["prefix", "after_first"]
Pooling = Literal["family", "mean", "prompt"]
Reparameterization = Literal["MLP", "LSTM", "NONE"]
PromptInit = Literal["random", "vocab", "text"]


@dataclass
class PromptEncoderConfig:
    """What a prompt is: how many virtual tokens, how they are parameterised, where they stand.

    Args:
        task_type: Always ``"SEQ_CLS"`` (sequence classification).
        num_virtual_tokens: Length k of the prompt, in tokens.
        encoder_hidden_size: Width of the prompt encoder; ``None`` takes the embedding's width.
        encoder_reparameterization_type: ``"MLP"``, ``"LSTM"`` or ``"NONE"`` (plain rows).
        encoder_num_layers: Layers of the LSTM. The MLP always has its two hidden layers.
        encoder_dropout: Dropout between the layers of the LSTM.
        token_dim: Width d of the backbone's token embedding; filled in from the backbone.
        num_layers: Layers of the backbone; filled in, for the reference's readers.
        num_attention_heads: Attention heads of the backbone; filled in likewise.
        num_transformer_submodules: 1; the reference repeats prompts for encoder-decoders.
        modules_to_save: Written for the reference's readers. ptune trains and saves the whole
            head, that is every parameter outside the backbone's base model.
        base_model_name_or_path: The backbone's Hub id or folder.
        revision: The backbone's revision on the Hub.
        inference_mode: True in a saved adapter.
        depth: ``"input"``: the virtual tokens are read like tokens of the text. ``"deep"``: they
            are there anew in every layer (P-tuning v2); see `ptune.prompts.mechanisms`.
        placement: ``"prefix"``: before the text, as in the reference. ``"after_first"``: right
            after the first token, which for most encoders is a special one.
        backbone_dropout: Train with the frozen backbone's own dropout, as the reference does.
        pooling: ``"family"``: the head reads the vector that its family reads (the first token's,
            the last one's). ``"mean"``: the mean over the text, as sentence encoders want it.
            ``"prompt"``: the mean over an input prompt's own vectors, which have read the text.
        shift_positions: Deep prompts of keys and values: count the text's positions from k, as
            the reference's prefix tuning does, and not as the backbone was pretrained.
        prompt_init: ``"random"``: the encoder's own initial values, as in the reference.
            ``"vocab"``: the prompt starts as words drawn from the backbone's vocabulary; a deep
            one as their keys and values, or as their hidden states. ``"text"``: likewise as the
            words of `prompt_init_text`.
        prompt_init_text: A description of the task, or the names of its labels; repeated, or cut,
            to `num_virtual_tokens` tokens.
        prompt_init_scale: By what the initial vectors are multiplied.

    Raises:
        PtuneError: A value is out of its range; the message names it.

    Example:
        >>> PromptEncoderConfig(num_virtual_tokens=20, encoder_hidden_size=128).placement
        'prefix'
    """

    task_type: str | None = "SEQ_CLS"
    peft_type: str = PEFT_TYPE
    auto_mapping: dict[str, Any] | None = None
    peft_version: str | None = PEFT_FORMAT
    base_model_name_or_path: str | None = None
    revision: str | None = None
    inference_mode: bool = False
    num_virtual_tokens: int = 20
    token_dim: int | None = None
    num_transformer_submodules: int | None = None
    num_attention_heads: int | None = None
    num_layers: int | None = None
    modules_to_save: list[str] | None = None
    encoder_reparameterization_type: Reparameterization = "MLP"
    encoder_hidden_size: int | None = None
    encoder_num_layers: int = 2
    encoder_dropout: float = 0.0
    depth: Depth = "input"
    placement: Placement = "prefix"
    shift_positions: bool = False
    backbone_dropout: bool = False
    pooling: Pooling = "family"
    prompt_init: PromptInit = "random"
    prompt_init_text: str | None = None
    prompt_init_scale: float = 1.0

    def __post_init__(self) -> None:
        # The reference's enumerations are strings too; plain strings go into the file.
        for name in ("task_type", "peft_type", "encoder_reparameterization_type"):
            value = getattr(self, name)
            setattr(self, name, getattr(value, "value", value))
        for name, allowed in _CHOICES.items():
            if (value := getattr(self, name)) not in allowed:
                wanted = ", ".join(repr(choice) for choice in allowed if choice)
                raise PtuneError(f"{name} is {value!r}; it must be one of {wanted}.")
        if self.depth == "deep" and self.encoder_reparameterization_type == "LSTM":
            raise PtuneError(
                "encoder_reparameterization_type is 'LSTM'; a deep prompt takes 'MLP' or 'NONE'."
            )
        if self.depth == "deep" and self.pooling == "prompt":
            raise PtuneError(
                "pooling is 'prompt'; a deep prompt has no vectors that the head could read. Take "
                "'mean' or 'family'."
            )
        for name in ("num_virtual_tokens", "encoder_hidden_size", "encoder_num_layers"):
            value = getattr(self, name)
            if value is None and name == "encoder_hidden_size":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise PtuneError(f"{name} is {value!r}; it must be a whole number of at least 1.")
        if (self.prompt_init == "text") != bool((self.prompt_init_text or "").strip()):
            raise PtuneError(
                f"prompt_init is {self.prompt_init!r} and prompt_init_text "
                f"{self.prompt_init_text!r}; words to start from and 'text' go together. Give the "
                "words (--prompt-init-text) without another prompt_init, or neither."
            )
        if not self.prompt_init_scale > 0:
            raise PtuneError(
                f"prompt_init_scale is {self.prompt_init_scale!r}; it must be a number above 0."
            )
        if not 0.0 <= self.encoder_dropout < 1.0:
            raise PtuneError(
                f"encoder_dropout is {self.encoder_dropout!r}; it must be at least 0 and below 1."
            )

    @property
    def is_prompt_learning(self) -> bool:
        """True, as in the reference for every kind of prompt."""
        return True

    def for_backbone(
        self, *, token_dim: int, num_layers: int | None, num_heads: int | None
    ) -> PromptEncoderConfig:
        """A copy with the backbone's sizes filled in.

        Raises:
            PtuneError: `token_dim` was given and is not the backbone's.
        """
        if self.token_dim not in (None, token_dim):
            raise PtuneError(
                f"The prompt is {self.token_dim} wide and the backbone's token embedding "
                f"{token_dim}: this prompt belongs to another backbone"
                + (f" ({self.base_model_name_or_path})." if self.base_model_name_or_path else ".")
            )
        return replace(
            self,
            token_dim=token_dim,
            num_layers=num_layers,
            num_attention_heads=num_heads,
            num_transformer_submodules=self.num_transformer_submodules or 1,
            modules_to_save=self.modules_to_save or ["classifier", "score"],
        )

    def to_dict(self) -> dict[str, Any]:
        """The content of `adapter_config.json`; ptune's own fields only where they differ."""
        content = asdict(self)
        for name in OWN_FIELDS:
            if content[name] == getattr(PromptEncoderConfig, name):
                del content[name]
        return content

    def to_json(self) -> str:
        """`to_dict` as the text of `adapter_config.json`."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> PromptEncoderConfig:
        """Read the content of `adapter_config.json`, as written by ptune or by the reference.

        Raises:
            PtuneError: It describes another method, or has a field that ptune does not know and
                therefore cannot honour.
        """
        met = content.get("peft_type")
        if met == PREFIX_TUNING:
            content = _from_prefix_tuning(content)
        elif met != PEFT_TYPE:
            raise PtuneError(
                f"The adapter's peft_type is {met!r}; ptune reads {PEFT_TYPE!r} (p-tuning) and "
                f"{PREFIX_TUNING!r} (prefix tuning, a deep prompt)."
            )
        if content.get("first_layer"):
            raise PtuneError(
                "adapter_config.json has first_layer; prompts that start at a higher layer were "
                "removed from ptune. Train the adapter again without it."
            )
        content = {k: v for k, v in content.items() if k != "first_layer"}
        known = {field.name for field in fields(cls)}
        if unknown := sorted(k for k in content.keys() - known if content[k] is not None):
            raise PtuneError(
                f"adapter_config.json has the unknown field(s) {', '.join(unknown)}: it was "
                "written by a newer version. Upgrade ptune (`pip install -U ptune`)."
            )
        return cls(**{name: value for name, value in content.items() if name in known})

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str], **where: Any) -> PromptEncoderConfig:
        """Read an adapter's configuration from a folder or from the Hub.

        Args:
            source: The folder, or the repository's id.
            **where: `subfolder`, `revision`, `token`, `cache_dir`, `local_files_only`.

        Raises:
            PtuneError: There is none, it is damaged, or of another method.
        """
        from ptune.adapters.adapter import read_config

        return read_config(source, **where)


def _from_prefix_tuning(content: dict[str, Any]) -> dict[str, Any]:
    """A configuration of the reference's prefix tuning as the deep prompt that it is."""
    content = dict(content)
    projected = content.pop("prefix_projection", False)
    content.pop("init_weights", None)
    return {
        **content,
        "peft_type": PEFT_TYPE,
        "depth": "deep",
        "shift_positions": True,
        "encoder_reparameterization_type": "MLP" if projected else "NONE",
        # The reference's is the width of a layer's keys, which the backbone knows better.
        "token_dim": None,
    }


_CHOICES: dict[str, tuple[str | None, ...]] = {
    "task_type": ("SEQ_CLS", None),
    "peft_type": (PEFT_TYPE,),
    "depth": ("input", "deep"),
    "placement": ("prefix", "after_first"),
    "encoder_reparameterization_type": ("MLP", "LSTM", "NONE"),
    "pooling": ("family", "mean", "prompt"),
    "prompt_init": ("random", "vocab", "text"),
}
# Fields the reference does not have, with defaults that are what it does.
OWN_FIELDS = (
    "depth",
    "placement",
    "shift_positions",
    "backbone_dropout",
    "pooling",
    "prompt_init",
    "prompt_init_text",
    "prompt_init_scale",
)
