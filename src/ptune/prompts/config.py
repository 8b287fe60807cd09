"""What a prompt is: `PromptEncoderConfig`, with ptune's defaults.

The defaults were measured on MRPC and on the demo's emails (docs/measuring/accuracy.md).
`ptune.peft` has PEFT's defaults. Neither changes what saved files mean; see
`ptune.adapters.schema`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from ptune.errors import PtuneError

# PEFT's names for the methods. Files name one of them.
P_TUNING = "P_TUNING"
PREFIX_TUNING = "PREFIX_TUNING"
PROMPT_TUNING = "PROMPT_TUNING"
# The release of PEFT whose file format is written.
PEFT_FORMAT = "0.21.2"

Depth = Literal["input", "deep", "reader", "none"]
Placement = Literal["prefix", "after_first", "template"]
Pooling = Literal["auto", "architecture", "mean", "layers", "pairs", "prompt"]
# What is pooled over the text, and of this, what is in several layers.
OF_TEXT: tuple[Pooling, ...] = ("mean", "layers", "pairs")
OF_LAYERS: tuple[Pooling, ...] = ("layers", "pairs")
Reparameterization = Literal["MLP", "LSTM", "NONE"]
PromptInit = Literal["random", "vocab", "text"]
# What is read of a text that is longer than the limit: its start, its start and its end, or all of
# it in windows that overlap, or in paragraphs and sentences.
LongTexts = Literal["truncate", "head_tail", "windows", "passages"]

# The largest values of these fields, so that a file cannot ask for more memory than there is.
LIMITS = {
    "num_virtual_tokens": 10_000,
    "encoder_hidden_size": 16_384,
    "encoder_num_layers": 16,
    "reader_rank": 1_024,
    "reader_key_rank": 1_024,
}
RANKS = ("reader_rank", "reader_key_rank")


def vectors_of(pooling: Pooling, layers: int) -> int:
    """How many vectors a pooling gives, if `layers` layers can be read."""
    return {"layers": layers, "pairs": 2 * layers}.get(pooling, 1)


def start_of(depth: Depth, *, decoder: bool) -> tuple[PromptInit, float]:
    """What a prompt starts from if its configuration leaves it open, and the factor for it.

    ``"vocab"`` becomes ``"text"`` if there is a question about the texts.
    """
    # A decoder does not recover from keys and values that no text has. An encoder learns more from
    # a random start.
    if depth == "none":
        return "random", 1.0
    return ("random", 0.5) if depth == "deep" and not decoder else ("vocab", 1.0)


@dataclass
class PromptEncoderConfig:
    """What a prompt is: its length, its parameters, and its place in the backbone.

    Args:
        task_type: Always ``"SEQ_CLS"`` (sequence classification).
        peft_type: The method that files name. ``"PROMPT_TUNING"`` is an input prompt and
            ``"PREFIX_TUNING"`` a deep one, both as PEFT has them.
        num_virtual_tokens: Length k of the prompt, in tokens.
        encoder_reparameterization_type: ``"NONE"`` (the prompt embeddings are the parameters),
            ``"MLP"`` or ``"LSTM"``.
        encoder_hidden_size: Width of the MLP or LSTM; ``None``: the embedding's width.
        encoder_num_layers: Layers of the LSTM. The MLP always has two hidden layers.
        encoder_dropout: Dropout between the layers of the LSTM.
        token_dim: Width d of the backbone's token embedding; filled in from the backbone.
        num_layers: Layers of the backbone; filled in for PEFT.
        num_attention_heads: Attention heads of the backbone; filled in for PEFT.
        num_transformer_submodules: 1. PEFT repeats prompts for encoder-decoders.
        modules_to_save: Saved for PEFT. ptune trains and saves the whole head, that is every
            parameter outside the backbone's base model.
        base_model_name_or_path: The backbone's Hub id or folder; ``None``: filled in from the
            backbone.
        revision: The backbone's revision on the Hub.
        inference_mode: True in a saved adapter.
        depth: ``"deep"``: every layer has virtual tokens of its own (P-tuning v2); see
            `ptune.prompts.mechanisms`. ``"input"``: the backbone reads the virtual tokens like
            tokens of the text. ``"reader"``: the virtual tokens attend to the text in every layer,
            and the text does not attend to them. ``"none"``: there are no virtual tokens, only a
            head.
        reader_rank: For a reader: rank of a low-rank layer between the layers of the backbone,
            which only the virtual tokens pass through; 0: none.
        reader_key_rank: For a reader: rank of what is added to the keys of the text, as only this
            reader sees them; 0: nothing.
        placement: Where an input prompt is. ``"after_first"``: right after the first token, which
            is a special token for most encoders. ``"prefix"``: before the text, as in PEFT.
            ``"template"``: at the places that a template names; see `ptune.texts.Template`.
        backbone_dropout: Train with the frozen backbone's own dropout, as PEFT does.
        pooling: What the head reads. ``"architecture"``: the vector that the architecture reads
            (of the first or the last token). ``"mean"``: the mean over the text, as sentence
            encoders are trained. ``"layers"``: the means over the text in each of the last three
            layers, one after the other, for which a head is three times as wide. ``"pairs"``: the
            same, and in each of these layers how much the means over the two texts of a pair
            differ, without the sign, for which a head is six times as wide. ``"prompt"``: the
            mean over the vectors of an input prompt, which have read the text, or of a reader.
            The head of a reader that reads the text's means reads its own mean first.
            ``"auto"``: ``"mean"`` for sentence encoders (``"prompt"`` for a reader), else
            ``"architecture"``; see `resolved`.
        shift_positions: For a deep prompt of key-values: the text's positions start at k, as in
            PEFT's prefix tuning, and not at 0 as in pretraining.
        prompt_init: ``"random"``: the initial values of the encoder. ``"vocab"``: the prompt starts
            as random words of the backbone's vocabulary; a deep prompt starts as their key-values
            or hidden states. ``"text"``: as ``"vocab"``, with the words of `prompt_init_text`.
            ``None``: ``"text"`` if there is such a text; else ``"random"`` for a deep prompt of an
            encoder and ``"vocab"`` for all others.
        prompt_init_text: A description of the task, or its label names. It is repeated, or cut, to
            `num_virtual_tokens` tokens.
        tokenizer_name_or_path: The tokenizer for `prompt_init_text`; ``None``: the backbone's.
        tokenizer_kwargs: Arguments for loading that tokenizer. They are not read from files.
        prompt_init_scale: Factor for the initial values; ``None``: 0.5 for a deep prompt that
            starts at random because `prompt_init` is ``None``, else 1.

    Raises:
        PtuneError: A value is out of range; the message names the field.

    Example:
        >>> PromptEncoderConfig(num_virtual_tokens=10).resolved().prompt_init
        'random'
        >>> PromptEncoderConfig(depth="input").resolved().prompt_init
        'vocab'
    """

    task_type: str | None = "SEQ_CLS"
    peft_type: str = P_TUNING
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
    encoder_reparameterization_type: Reparameterization = "NONE"
    encoder_hidden_size: int | None = 128
    encoder_num_layers: int = 2
    encoder_dropout: float = 0.0
    depth: Depth = "deep"
    reader_rank: int = 0
    reader_key_rank: int = 0
    placement: Placement = "after_first"
    shift_positions: bool = False
    backbone_dropout: bool = False
    pooling: Pooling = "auto"
    prompt_init: PromptInit | None = None
    prompt_init_text: str | None = None
    prompt_init_scale: float | None = None
    tokenizer_name_or_path: str | None = None
    tokenizer_kwargs: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        # PEFT's enumerations are strings too; files hold plain strings.
        for name in ("task_type", "peft_type", "encoder_reparameterization_type"):
            value = getattr(self, name)
            setattr(self, name, getattr(value, "value", value))
        for name, allowed in _CHOICES.items():
            if (value := getattr(self, name)) not in allowed:
                expected = ", ".join(repr(choice) for choice in allowed if choice)
                raise PtuneError(f"{name} is {value!r}; expected one of {expected}.")
        if self.depth == "none":
            self.num_virtual_tokens = 0
        for name, limit in LIMITS.items():
            value = getattr(self, name)
            if name == "num_virtual_tokens" and self.depth == "none":
                continue
            if value is None and name == "encoder_hidden_size":
                continue
            least, is_int = int(name not in RANKS), isinstance(value, int)
            if not is_int or isinstance(value, bool) or not least <= value <= limit:
                raise PtuneError(
                    f"{name} is {value!r}; expected an integer from {least} to {limit:,}."
                )
        scale, dropout = self.prompt_init_scale, self.encoder_dropout
        if scale is not None and not (isinstance(scale, int | float) and 0 < scale < math.inf):
            raise PtuneError(
                f"prompt_init_scale is {self.prompt_init_scale!r}; expected a number above 0."
            )
        if not (isinstance(dropout, int | float) and 0.0 <= dropout < 1.0):
            raise PtuneError(
                f"encoder_dropout is {self.encoder_dropout!r}; expected at least 0 and below 1."
            )
        self._check_combinations()

    def _check_combinations(self) -> None:
        expected = {PROMPT_TUNING: "input", PREFIX_TUNING: "deep"}.get(self.peft_type, self.depth)
        if self.depth != expected:
            raise PtuneError(
                f"peft_type is {self.peft_type!r} and depth is {self.depth!r}; expected depth "
                f"{expected!r}."
            )
        if self.placement == "template" and self.depth != "input":
            raise PtuneError(
                f"placement is 'template' and depth is {self.depth!r}; only an input prompt has "
                "places among the words of a template. Leave placement out, or use depth='input'."
            )
        takes, encoder = _ENCODERS[self.depth], self.encoder_reparameterization_type
        if encoder not in takes:
            kind = {"deep": "a deep prompt", "none": "a head alone"}.get(self.depth, "a reader")
            raise PtuneError(
                f"encoder_reparameterization_type is {encoder!r}; {kind} takes "
                f"{' or '.join(map(repr, takes))}."
            )
        if self.depth in ("deep", "none") and self.pooling == "prompt":
            has = "a deep prompt has" if self.depth == "deep" else "there are"
            raise PtuneError(
                f"pooling is 'prompt', but {has} no vectors that the head could read. Use 'mean' "
                "or 'architecture'."
            )
        for name in RANKS:
            if self.depth != "reader" and (rank := getattr(self, name)):
                raise PtuneError(
                    f"{name} is {rank} and depth is {self.depth!r}; only a reader has a rank. "
                    "Leave it out, or use depth='reader'."
                )
        if not isinstance(self.prompt_init_text, str | None):
            raise PtuneError(f"prompt_init_text is {self.prompt_init_text!r}; expected a text.")
        has_text = bool((self.prompt_init_text or "").strip())
        if has_text and self.depth == "none":
            raise PtuneError(
                f"prompt_init_text is {self.prompt_init_text!r} and depth is 'none': there is no "
                "prompt to start from a text. Leave it out, or use another depth."
            )
        if self.prompt_init is not None and (self.prompt_init == "text") != has_text:
            raise PtuneError(
                f"prompt_init is {self.prompt_init!r} and prompt_init_text is "
                f"{self.prompt_init_text!r}, but a text to start from needs prompt_init='text', "
                "and the other way round. Set both or neither."
            )

    @property
    def is_prompt_learning(self) -> bool:
        """True, as in PEFT for every kind of prompt."""
        return True

    @property
    def rows(self) -> int:
        """Rows of the prompt embeddings."""
        return sum(self.parts)

    @property
    def parts(self) -> list[int]:
        """Rows of the virtual tokens, of a reader's low-rank layers, and of its added keys."""
        return [self.num_virtual_tokens, 2 * self.reader_rank, 2 * self.reader_key_rank]

    @property
    def reads_reader_and_text(self) -> bool:
        """Whether the head reads a reader and, after it, the text's means."""
        return self.depth == "reader" and self.pooling in OF_TEXT

    def resolved(
        self,
        backbone: str | None = None,
        *,
        pairs: bool = False,
        question: str | None = None,
        decoder: bool = False,
    ) -> PromptEncoderConfig:
        """A copy in which `pooling` and the start of the prompt are decided.

        Args:
            backbone: The backbone's name, if `base_model_name_or_path` is not set.
            pairs: True if texts come in pairs. For a sentence encoder with an input prompt,
                ``"auto"`` pooling is then the mean over the prompt.
            question: A question about the text, from whose words a prompt can start.
            decoder: True if the backbone is a decoder.
        """
        init, text, scale = self.prompt_init, self.prompt_init_text, self.prompt_init_scale
        if init is None and (text or "").strip():
            init = "text"
        own_init, own_scale = start_of(self.depth, decoder=decoder)
        if scale is None:  # the default scale belongs to the default start
            scale = own_scale if init is None else 1.0
        if init is None:
            init = own_init
            if init == "vocab" and question:
                init, text = "text", question
        pooling, name = self.pooling, self.base_model_name_or_path or backbone
        if pooling == "auto":
            # Imported here to keep `ptune --help` fast.
            from ptune.backbones.loading import is_mean_pooled

            pooling = "architecture"
            if name and is_mean_pooled(name, revision=self.revision):
                reads_prompt = self.depth == "reader" or (pairs and self.depth == "input")
                pooling = "prompt" if reads_prompt else "mean"
        return replace(
            self,
            pooling=pooling,
            prompt_init=init,
            prompt_init_text=text,
            prompt_init_scale=scale,
        )

    def for_backbone(
        self,
        *,
        token_dim: int,
        num_layers: int | None,
        num_heads: int | None,
        name: str | None = None,
        decoder: bool = False,
    ) -> PromptEncoderConfig:
        """A copy with the backbone's name and sizes filled in, and everything decided.

        Raises:
            PtuneError: `token_dim` is set, and the backbone's differs.
        """
        if self.token_dim not in (None, token_dim):
            trained_on = self.base_model_name_or_path
            raise PtuneError(
                f"The prompt is {self.token_dim} wide and the backbone's token embedding "
                f"{token_dim}: this prompt belongs to another backbone"
                f"{f' ({trained_on})' if trained_on else ''}."
            )
        return replace(
            self,
            base_model_name_or_path=self.base_model_name_or_path or name,
            token_dim=token_dim,
            num_layers=num_layers,
            num_attention_heads=num_heads,
            num_transformer_submodules=self.num_transformer_submodules or 1,
            modules_to_save=self.modules_to_save or ["classifier", "score"],
        ).resolved(decoder=decoder)


_ENCODERS: dict[Depth, tuple[Reparameterization, ...]] = {
    "input": get_args(Reparameterization),
    "deep": ("MLP", "NONE"),
    "reader": ("NONE",),
    "none": ("NONE",),
}
_CHOICES: dict[str, tuple[str | None, ...]] = {
    "task_type": ("SEQ_CLS", None),
    "peft_type": (P_TUNING, PREFIX_TUNING, PROMPT_TUNING),
    "depth": get_args(Depth),
    "placement": get_args(Placement),
    "encoder_reparameterization_type": get_args(Reparameterization),
    "pooling": get_args(Pooling),
    "prompt_init": (*get_args(PromptInit), None),
}
