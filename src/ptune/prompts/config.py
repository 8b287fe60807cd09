"""What a prompt is: `PromptEncoderConfig`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from ptune.errors import PtuneError

PEFT_TYPE = "P_TUNING"
# The release of PEFT whose file format is written.
PEFT_FORMAT = "0.21.2"

Depth = Literal["input", "deep"]
Placement = Literal["prefix", "after_first"]
Pooling = Literal["architecture", "mean", "prompt"]
Reparameterization = Literal["MLP", "LSTM", "NONE"]
PromptInit = Literal["random", "vocab", "text"]


@dataclass
class PromptEncoderConfig:
    """What a prompt is: its length, its parameters, and its place in the backbone.

    Args:
        task_type: Always ``"SEQ_CLS"`` (sequence classification).
        num_virtual_tokens: Length k of the prompt, in tokens.
        encoder_hidden_size: Width of the prompt encoder; ``None``: the embedding's width.
        encoder_reparameterization_type: ``"MLP"``, ``"LSTM"`` or ``"NONE"`` (the prompt embeddings
            are the parameters).
        encoder_num_layers: Layers of the LSTM. The MLP always has two hidden layers.
        encoder_dropout: Dropout between the layers of the LSTM.
        token_dim: Width d of the backbone's token embedding; filled in from the backbone.
        num_layers: Layers of the backbone; filled in for PEFT.
        num_attention_heads: Attention heads of the backbone; filled in for PEFT.
        num_transformer_submodules: 1. PEFT repeats prompts for encoder-decoders.
        modules_to_save: Saved for PEFT. ptune trains and saves the whole head, that is every
            parameter outside the backbone's base model.
        base_model_name_or_path: The backbone's Hub id or folder.
        revision: The backbone's revision on the Hub.
        inference_mode: True in a saved adapter.
        depth: ``"input"``: the backbone reads the virtual tokens like tokens of the text.
            ``"deep"``: every layer has virtual tokens of its own (P-tuning v2); see
            `ptune.prompts.mechanisms`.
        placement: ``"prefix"``: before the text, as in PEFT. ``"after_first"``: right after the
            first token, which is a special token for most encoders.
        backbone_dropout: Train with the frozen backbone's own dropout, as PEFT does.
        pooling: What the head reads. ``"architecture"``: the vector that the architecture reads
            (of the first or the last token). ``"mean"``: the mean over the text, as sentence
            encoders are trained. ``"prompt"``: the mean over the vectors of an input prompt, which
            have read the text.
        shift_positions: For a deep prompt of key-values: the text's positions start at k, as in
            PEFT's prefix tuning, and not at 0 as in pretraining.
        prompt_init: ``"random"``: the initial values of the encoder, as in PEFT. ``"vocab"``: the
            prompt starts as random words of the backbone's vocabulary; a deep prompt starts as
            their key-values or hidden states. ``"text"``: as ``"vocab"``, with the words of
            `prompt_init_text`.
        prompt_init_text: A description of the task, or its label names. It is repeated, or cut, to
            `num_virtual_tokens` tokens.
        prompt_init_scale: Factor for the initial values.

    Raises:
        PtuneError: A value is out of range; the message names the field.

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
    pooling: Pooling = "architecture"
    prompt_init: PromptInit = "random"
    prompt_init_text: str | None = None
    prompt_init_scale: float = 1.0

    def __post_init__(self) -> None:
        # PEFT's enumerations are strings too; files hold plain strings.
        for name in ("task_type", "peft_type", "encoder_reparameterization_type"):
            value = getattr(self, name)
            setattr(self, name, getattr(value, "value", value))
        for name, allowed in _CHOICES.items():
            if (value := getattr(self, name)) not in allowed:
                expected = ", ".join(repr(choice) for choice in allowed if choice)
                raise PtuneError(f"{name} is {value!r}; expected one of {expected}.")
        for name in ("num_virtual_tokens", "encoder_hidden_size", "encoder_num_layers"):
            value = getattr(self, name)
            if value is None and name == "encoder_hidden_size":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise PtuneError(f"{name} is {value!r}; expected an integer of at least 1.")
        if not self.prompt_init_scale > 0:
            raise PtuneError(
                f"prompt_init_scale is {self.prompt_init_scale!r}; expected a number above 0."
            )
        if not 0.0 <= self.encoder_dropout < 1.0:
            raise PtuneError(
                f"encoder_dropout is {self.encoder_dropout!r}; expected at least 0 and below 1."
            )
        self._check_combinations()

    def _check_combinations(self) -> None:
        if self.depth == "deep" and self.encoder_reparameterization_type == "LSTM":
            raise PtuneError(
                "encoder_reparameterization_type is 'LSTM'; a deep prompt takes 'MLP' or 'NONE'."
            )
        if self.depth == "deep" and self.pooling == "prompt":
            raise PtuneError(
                "pooling is 'prompt', but a deep prompt has no vectors that the head could read. "
                "Use 'mean' or 'architecture'."
            )
        if (self.prompt_init == "text") != bool((self.prompt_init_text or "").strip()):
            raise PtuneError(
                f"prompt_init is {self.prompt_init!r} and prompt_init_text is "
                f"{self.prompt_init_text!r}, but a text to start from needs prompt_init='text', "
                "and the other way round. Set both (--prompt-init-text does) or neither."
            )

    @property
    def is_prompt_learning(self) -> bool:
        """True, as in PEFT for every kind of prompt."""
        return True

    def for_backbone(
        self, *, token_dim: int, num_layers: int | None, num_heads: int | None
    ) -> PromptEncoderConfig:
        """A copy with the backbone's sizes filled in.

        Raises:
            PtuneError: `token_dim` is set, and the backbone's differs.
        """
        if self.token_dim not in (None, token_dim):
            name = self.base_model_name_or_path
            raise PtuneError(
                f"The prompt is {self.token_dim} wide and the backbone's token embedding "
                f"{token_dim}: this prompt belongs to another backbone{f' ({name})' * bool(name)}."
            )
        return replace(
            self,
            token_dim=token_dim,
            num_layers=num_layers,
            num_attention_heads=num_heads,
            num_transformer_submodules=self.num_transformer_submodules or 1,
            modules_to_save=self.modules_to_save or ["classifier", "score"],
        )


_CHOICES: dict[str, tuple[str | None, ...]] = {
    "task_type": ("SEQ_CLS", None),
    "peft_type": (PEFT_TYPE,),
    "depth": get_args(Depth),
    "placement": get_args(Placement),
    "encoder_reparameterization_type": get_args(Reparameterization),
    "pooling": get_args(Pooling),
    "prompt_init": get_args(PromptInit),
}
