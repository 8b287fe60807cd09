"""What ptune knows about a backbone, found by inspecting it once.

Nothing here depends on an architecture's name. ptune runs the backbone on two short texts and
watches its attentions, its last layer and its logits.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from ptune import compat
from ptune.errors import PtuneError, first_line

Side = Literal["left", "right"]
Reads = Literal["first", "last", "mask"]

# Architectures in which predictions depend on a text's padding, with or without a prompt.
PADDING_MATTERS = {
    "convbert": "its convolutions read padding",
    "fnet": "it mixes all positions, padding included",
    "nystromformer": "it averages over segments of the padded length",
    "yoso": "it hashes all positions, padding included",
}


# The last layers that a head can read; see `Architecture.layers_read`.
LAYERS_READ = 3


@dataclass(frozen=True)
class Attention:
    """One attention of a backbone.

    Attributes:
        path: The module's name in the backbone. ALBERT has one module for all layers.
        heads: Number of key-value heads.
        head_dim: Width of a key or value.
    """

    path: str
    heads: int
    head_dim: int


@dataclass(frozen=True)
class LastLayerEnd:
    """The end of the last layer, in which positions do not depend on each other.

    Attributes:
        start, end: Names of its first and last module.
        reads: Which position of a text the head reads.
    """

    start: str
    end: str
    reads: Reads


# What a cache is called since Transformers 5.24, and before.
_CACHES = ("cache", "past_key_values")


@dataclass(frozen=True)
class Architecture:
    """A backbone's architecture.

    Attributes:
        name: Class of the backbone, for messages.
        model_type: As in its configuration.
        vocab_rows: Number of rows V of the embedding weight.
        token_dim: Width of the embedding weight.
        hidden_size: Width of a hidden state.
        num_layers, num_heads: As in its configuration; ``None`` if missing there.
        max_positions: Longest sequence including virtual tokens; ``None``: no limit.
        first_position: Position of a text's first token; 2 in RoBERTa.
        padding_side: Left if the head reads the last position of the sequence.
        takes_position_ids, takes_use_cache: Whether its forward method has these arguments.
        cache_name: What it calls the cache that it takes and returns; ``None``: it takes none.
        takes_token_types: Whether it tells the two texts of a pair apart by `token_type_ids`.
        is_encoder_decoder: As in its configuration.
        head_names: Names of the head's parameters.
        layers: Names of its layers, in order; in an encoder-decoder, those of the encoder.
        attentions: Its attentions in the order of the forward pass; empty if they do not use
            Transformers' `AttentionInterface`.
        is_causal: Whether every attention is causal and unlimited, so that what comes before a
            text cannot depend on the text.
        sees_all: Whether every attention is unlimited in both directions.
        last_layer_end: ``None`` if every position must be computed.
        mask_token: The token at which the head reads a text; ``None``: it reads elsewhere. See
            `ptune.backbones.masked`.
    """

    name: str
    model_type: str
    vocab_rows: int
    token_dim: int
    hidden_size: int
    num_layers: int | None
    num_heads: int | None
    max_positions: int | None
    first_position: int
    padding_side: Side
    takes_position_ids: bool
    takes_use_cache: bool
    cache_name: str | None
    takes_token_types: bool
    is_encoder_decoder: bool
    head_names: tuple[str, ...]
    layers: tuple[str, ...]
    attentions: tuple[Attention, ...]
    is_causal: bool
    sees_all: bool
    last_layer_end: LastLayerEnd | None
    mask_token: int | None = None

    @classmethod
    def of(cls, backbone: PreTrainedModel) -> Architecture:
        """Inspect a backbone and leave it unchanged.

        Raises:
            PtuneError: It cannot be p-tuned, or fails on two short texts.
        """
        check_supported(backbone)
        config = backbone.config.get_text_config()
        inputs = inspect.signature(backbone.forward).parameters
        inside = inspect.signature(backbone.base_model.forward).parameters
        weight = embedding_weight(backbone)
        layers = _layers(backbone)
        max_positions, first_position = _positions(backbone)
        attentions, end = _watch(backbone, layers)
        directions = _directions(backbone) if attentions else set()
        return cls(
            name=type(backbone).__name__,
            model_type=backbone.config.model_type,
            vocab_rows=weight.shape[0],
            token_dim=weight.shape[1],
            hidden_size=config.hidden_size,
            num_layers=getattr(config, "num_hidden_layers", None),
            num_heads=getattr(config, "num_attention_heads", None),
            max_positions=max_positions,
            first_position=first_position,
            padding_side="left" if getattr(config, "summary_type", None) == "last" else "right",
            takes_position_ids="position_ids" in inputs
            or ("kwargs" in inputs and "position_ids" in inside),
            takes_use_cache="use_cache" in inputs,
            cache_name=next((name for name in _CACHES if name in inputs), None),
            takes_token_types="token_type_ids" in inputs
            and getattr(config, "type_vocab_size", 0) > 1,
            is_encoder_decoder=bool(backbone.config.is_encoder_decoder),
            head_names=tuple(names_of_head(backbone)),
            layers=tuple(layers),
            attentions=attentions,
            is_causal=directions == {True},
            sees_all=directions == {False},
            last_layer_end=end,
            mask_token=mask_token_of(backbone),
        )

    @property
    def layers_read(self) -> int:
        """Of how many layers a head with the pooling ``"layers"`` reads the means."""
        return min(LAYERS_READ, len(self.layers))

    def mechanism_of(self, depth: str, width: int | None = None) -> str:
        """The name of the mechanism of a prompt, by its width if an adapter does not record it.

        Args:
            depth: As in `PromptEncoderConfig`.
            width: Numbers per virtual token of a trained prompt; ``None``: the prompt is new.
        """
        if depth in ("input", "reader", "none"):
            return depth
        widths = {}
        if self.attentions:
            widths["prefix"] = sum(2 * a.heads * a.head_dim for a in self.attentions)
        if self.layers or not widths:
            widths["layers"] = sum(self.input_widths)
        return next((name for name, w in widths.items() if w == width), next(iter(widths)))

    @property
    def input_widths(self) -> list[int]:
        """The width of the embeddings that each layer reads: the first one reads tokens'."""
        return [self.token_dim] + [self.hidden_size] * (len(self.layers) - 1)

    @property
    def adds_keys(self) -> bool:
        """Whether readers can add to the keys that they see (`AddedKeys`), in every later layer."""
        return (
            bool(self.attentions)
            and len(self.layers) in (0, len(self.attentions))
            and all(a.heads * a.head_dim <= self.hidden_size for a in self.attentions)
        )

    @property
    def takes_one_row(self) -> bool:
        """Whether it may read a batch as one row without padding; `Host` tries it out."""
        end = self.last_layer_end
        whole = end is not None and end.end == self.layers[-1] and end.reads == "first"
        return whole and self.sees_all and self.takes_position_ids

    @property
    def sizes(self) -> dict[str, Any]:
        """The sizes by which an adapter recognises its backbone."""
        return {
            "model_type": self.model_type,
            "vocab_rows": self.vocab_rows,
            "num_layers": self.num_layers,
            "hidden_size": self.hidden_size,
        }


def check_supported(backbone: PreTrainedModel) -> None:
    """Check that a backbone can be p-tuned.

    Raises:
        PtuneError: It has no head or no embedding weight, takes no attention mask, or its
            predictions depend on padding.
    """
    name = type(backbone).__name__
    if not isinstance(backbone, PreTrainedModel):
        raise PtuneError(
            f"The backbone is of type {name}; expected a model of 🤗 Transformers. Load it with "
            "AutoModelForSequenceClassification.from_pretrained, or use PromptClassifier, which "
            "takes a name."
        )
    if backbone.base_model is backbone:
        raise PtuneError(
            f"{name} has no classification head. Load the backbone with "
            "AutoModelForSequenceClassification."
        )
    if reason := PADDING_MATTERS.get(backbone.config.model_type):
        raise PtuneError(
            f"{name} cannot be p-tuned: {reason}, so a text's prediction would depend on its "
            "batch. Choose another backbone."
        )
    try:
        embedding: Any = backbone.get_input_embeddings()
    except NotImplementedError:
        embedding = None
    if getattr(embedding, "weight", None) is None or embedding.weight.ndim != 2:
        raise PtuneError(
            f"{name} cannot be p-tuned: it has no embedding weight to which virtual tokens could "
            "be added. Choose another backbone."
        )
    if "attention_mask" not in inspect.signature(backbone.forward).parameters:
        raise PtuneError(
            f"{name} cannot be p-tuned: it takes no attention mask, so padding would change its "
            "predictions. Choose another backbone."
        )


def embedding_weight(backbone: PreTrainedModel) -> Tensor:
    """The weight ``[V, token_dim]`` of the token embedding."""
    weight = backbone.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return weight


def mask_token_of(backbone: PreTrainedModel) -> int | None:
    """The token at which the head reads a text (`ptune.backbones.masked`), if there is one."""
    return getattr(backbone, "ptune_mask_token", None)


def names_of_head(backbone: PreTrainedModel) -> list[str]:
    """Names of the parameters outside the base model, and of those missing in its checkpoint.

    Transformers marks every parameter that it loaded from a checkpoint. An unmarked one inside a
    loaded base model (for example a pooler) is random, so it is trained and saved with the head.

    The head of a masked language model is its last layer. What comes before it is frozen.
    """
    if mask_token_of(backbone) is not None:
        last = backbone.get_output_embeddings()
        own = {id(p) for p in last.parameters()}
        return [name for name, p in backbone.named_parameters() if id(p) in own]
    inside = {id(p) for p in backbone.base_model.parameters()}
    loaded = any(compat.was_loaded(p) for p in backbone.base_model.parameters())
    return [
        name
        for name, p in backbone.named_parameters()
        if id(p) not in inside or (loaded and not compat.was_loaded(p))
    ]


def _positions(backbone: PreTrainedModel) -> tuple[int | None, int]:
    """The longest sequence and the position of a text's first token."""
    positions = getattr(backbone.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(positions, int) or positions < 1:
        return None, 0
    for name, module in backbone.named_modules():
        # In RoBERTa and similar architectures, positions start at padding_idx + 1.
        padding_idx = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and padding_idx is not None:
            return positions - padding_idx - 1, padding_idx + 1
    return positions, 0


def _layers(backbone: PreTrainedModel) -> list[str]:
    """Names of the layers: the first list of as many modules as there are layers.

    Funnel has a list of blocks, each a list of layers, which no forward pass calls.
    """
    count = getattr(backbone.config.get_text_config(), "num_hidden_layers", None)
    prefix = f"{backbone.base_model_prefix}." if backbone.base_model is not backbone else ""
    for name, module in backbone.base_model.named_modules(prefix=prefix.rstrip(".")):
        is_list = isinstance(module, nn.ModuleList) and len(module) == count
        if is_list and not any(isinstance(part, nn.ModuleList) for part in module):
            return [f"{name}.{i}" for i in range(len(module))]
    return []


def _directions(backbone: PreTrainedModel) -> set[bool]:
    """Whether attentions are causal; empty if unknown, or if one of them has a window."""
    config = backbone.config.get_text_config()
    layers = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    limited = set(layers) != {"full_attention"} if layers else window is not None
    if config.is_encoder_decoder or limited:
        return set()
    return {m.is_causal for m in backbone.modules() if hasattr(m, "is_causal")}


def generates(model_type: str | None) -> bool:
    """True if a type of model was trained to continue texts (GPT-2, Llama), not to fill gaps.

    Transformers then has a causal language model of this type, and no masked one.
    """
    from transformers.models.auto import modeling_auto as auto

    return (
        model_type in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        and model_type not in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
        and model_type not in auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
    )


def fills_gaps(model_type: str | None) -> bool:
    """True if a type of model is an encoder that was trained to fill gaps in texts (BERT)."""
    from transformers.models.auto import modeling_auto as auto

    return (
        model_type in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
        and model_type not in auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
    )


# Special tokens.


def use_valid_special_ids(config: PreTrainedConfig, vocab_rows: int) -> None:
    """Replace special token ids that are unset or outside the embedding weight.

    Decoders find the end of a text by its pad tokens. If there is no pad token, any id will do,
    because a text's own tokens with that id are replaced by aliases (see `Pass.aliases`).

    Raises:
        PtuneError: An encoder-decoder has no end token, at which its head reads a text.
    """
    text = config.get_text_config()
    pad = _valid(text.pad_token_id, vocab_rows)
    if pad is None:
        pad = _valid(getattr(text, "eos_token_id", None), vocab_rows) or 0
    if pad != text.pad_token_id:
        text.pad_token_id = pad
    if not config.is_encoder_decoder:
        return
    for name in ("eos_token_id", "decoder_start_token_id"):
        own = getattr(config, name, None)
        found = _valid(own, vocab_rows)
        if found is None:
            raise PtuneError(
                f"The backbone needs its {name} to read a text, but its configuration has {own!r} "
                f"instead of a token id from 0 to {vocab_rows - 1}. Set config.{name} before "
                "p-tuning."
            )
        if found != own:
            setattr(config, name, found)


def _valid(value: Any, vocab_rows: int) -> int | None:
    """A token id, or the first one in a list, that is a row of the embedding weight."""
    values = value if isinstance(value, list | tuple) else [value]
    fits = [v for v in values if isinstance(v, int) and 0 <= v < vocab_rows]
    return fits[0] if fits else None


_SPECIAL_IDS = ("pad_token_id", "eos_token_id", "decoder_start_token_id")


def special_ids(config: PreTrainedConfig) -> list[tuple[PreTrainedConfig, str, Any]]:
    """What `use_valid_special_ids` may change: configuration, name and value."""
    configs = {id(c): c for c in (config, config.get_text_config())}.values()
    return [(c, n, getattr(c, n)) for c in configs for n in _SPECIAL_IDS if hasattr(c, n)]


@contextmanager
def _valid_special_ids(backbone: PreTrainedModel) -> Iterator[None]:
    before = special_ids(backbone.config)
    try:
        use_valid_special_ids(backbone.config, len(embedding_weight(backbone)))
        yield
    finally:
        for config, name, value in before:
            setattr(config, name, value)


# Watching a backbone read two short texts.


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode within the context."""
    training = {m: m.training for m in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, mode in training.items():
            module.training = mode


@torch.no_grad()
def read(model: PreTrainedModel, ids: Tensor, attention_mask: Tensor) -> Any:
    """A backbone's output for tokens ``[batch, seq]``, without dropout."""
    with without_dropout(model):
        return model(input_ids=ids, attention_mask=attention_mask)


def end_token(backbone: PreTrainedModel) -> int:
    """The token that ends a text, which encoder-decoders need; 0 if there is none."""
    end = getattr(backbone.config.get_text_config(), "eos_token_id", None)
    return _valid(end, len(embedding_weight(backbone))) or 0


def two_texts(backbone: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """Token ids ``[2, 5]`` and their mask. The second text has two positions of padding.

    Five, because some backbones pad a text to a multiple of an even number (Longformer).
    """
    config = backbone.config
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    pad, rows = config.get_text_config().pad_token_id, len(embedding_weight(backbone))
    end = end_token(backbone)
    special = {pad, end} if config.is_encoder_decoder else {pad}
    free = [t for t in (*range(pad + 1, pad + 9), *range(9)) if t < rows and t not in special]
    tokens = torch.tensor([free[i % len(free)] for i in range(5)] if free else [0] * 5)
    ids = torch.where(mask != 0, tokens, pad)
    if config.is_encoder_decoder:
        ids[last_of_each(mask)] = end
    if (token := mask_token_of(backbone)) is not None:
        ids[:, 1] = token
    return ids.to(backbone.device), mask.to(backbone.device)


def _watch(
    backbone: PreTrainedModel, layers: Sequence[str]
) -> tuple[tuple[Attention, ...], LastLayerEnd | None]:
    """The attentions and the end of the last layer."""
    with ExitStack() as stack:
        stack.enter_context(_valid_special_ids(backbone))
        ids, mask = two_texts(backbone)
        seen = stack.enter_context(_watched_attentions(backbone))
        ends = [_WatchedEnd(backbone, *pair) for pair in _candidate_ends(backbone, layers)]
        for watched in ends:
            stack.callback(watched.remove)
        try:
            logits = getattr(read(backbone, ids, mask), "logits", None)
        except Exception as error:  # whatever the backbone's own code raises
            if backbone.device.type == "meta":
                return tuple(seen), None
            raise PtuneError(
                f"{type(backbone).__name__} failed on two short texts "
                f"({first_line(error).rstrip('.')}). Check that its configuration is complete and "
                "that it classifies texts without ptune."
            ) from error
        if logits is None or logits.ndim != 2:
            # Such as a language model, which answers at every token.
            raise PtuneError(
                f"{type(backbone).__name__} does not give one row of logits for each text, so it "
                "does not classify texts. Load the backbone with "
                "AutoModelForSequenceClassification."
            )
        attentions = tuple(seen)
        return attentions, next(filter(None, (e.find(backbone, ids, mask) for e in ends)), None)


@contextmanager
def _watched_attentions(backbone: PreTrainedModel) -> Iterator[list[Attention]]:
    """Collect every attention that uses `AttentionInterface`, in order.

    There are none if keys and values have different widths in one of them (DeepSeek), because
    prompts have the same for both.
    """
    seen: list[Attention] = []
    unequal = False
    if not compat.has_attention_interface(backbone):
        yield seen
        return
    paths = {module: name for name, module in backbone.named_modules()}

    def note(module: nn.Module, key: Tensor, value: Tensor) -> None:
        nonlocal unequal
        unequal = unequal or key.shape != value.shape
        if unequal:
            seen.clear()
        elif module in paths:
            seen.append(Attention(paths[module], key.shape[1], key.shape[3]))

    before = compat.attention_of(backbone)
    backbone.set_attn_implementation(WATCHED)
    for module in paths:
        module.ptune_watcher = note
    try:
        yield seen
    finally:
        for module in paths:
            del module.ptune_watcher
        backbone.set_attn_implementation(before)


def _watched_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any = None,  # some pass it by this name
    **kwargs: Any,
) -> Any:
    if (note := getattr(module, "ptune_watcher", None)) is not None:
        note(module, key, value)
    return compat.eager_attention(module)(module, query, key, value, attention_mask, **kwargs)


WATCHED = "ptune_watched"
compat.register_attention(WATCHED, _watched_attention, "eager")


def _candidate_ends(backbone: PreTrainedModel, layers: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Modules that may be the start and end of a `LastLayerEnd`."""
    if backbone.config.is_encoder_decoder or not layers:
        return
    path = layers[-1]
    layer = backbone.get_submodule(path)
    if isinstance(getattr(getattr(layer, "attention", None), "output", None), nn.Module):
        yield f"{path}.attention.output", path  # BERT and similar
    for first, last in (("mlp", "mlp"), ("ffn", "ffn"), ("fc1", "fc2")):
        if all(isinstance(getattr(layer, name, None), nn.Module) for name in (first, last)):
            yield f"{path}.{first}", f"{path}.{last}"


class _WatchedEnd:
    """Tests whether all positions but one can be left out between two modules.

    The others are replaced by NaN. If NaN reaches the logits or changes the kept position, no
    position can be left out.
    """

    def __init__(self, backbone: PreTrainedModel, start: str, end: str) -> None:
        self.start, self.end = start, end
        self.positions: Tensor | None = None  # [kept] of batch * seq
        self.output = torch.empty(0)  # [batch * seq, width]
        self._shape = torch.Size()
        self._hooks = [
            backbone.get_submodule(start).register_forward_pre_hook(self._before),
            backbone.get_submodule(end).register_forward_hook(self._after),
        ]

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def find(self, backbone: PreTrainedModel, ids: Tensor, mask: Tensor) -> LastLayerEnd | None:
        usual = self.output
        try:
            token = mask_token_of(backbone)
            tried: tuple[Reads, ...] = ("first", "last") if token is None else ("mask",)
            for reads in tried:
                self.positions = flat(positions_read(reads, mask, ids, token))
                logits = read(backbone, ids, mask).logits
                same = are_close(self.output[self.positions], usual[self.positions])
                if same and logits.isfinite().all():
                    return LastLayerEnd(self.start, self.end, reads)
        except (RuntimeError, TypeError, ValueError, IndexError):
            pass  # positions cannot be left out here
        finally:
            self.positions = None
        return None

    def _before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self.positions is None:
            return None
        args, self._shape = keep_positions(args, self.positions)
        return args

    def _after(self, module: nn.Module, args: Any, output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output
        if self.positions is None:
            self.output = states.reshape(-1, states.shape[-1])
            return None
        output = put_back(output, self.positions, self._shape, torch.nan)
        states = output[0] if isinstance(output, tuple) else output
        self.output = states.reshape(-1, states.shape[-1])
        return output


def are_close(one: Tensor, other: Tensor) -> bool:
    """True if two tensors are equal up to rounding in half precision. NaN is never close."""
    return bool((one - other).abs().max() <= 0.02 * other.abs().max())


def keep_positions(args: tuple[Any, ...], positions: Tensor) -> tuple[tuple[Any, ...], torch.Size]:
    """Reduce a module's arguments to some positions; also return their shape before that.

    Args:
        args: The first is hidden states ``[batch, seq, width]`` (in OPT ``[batch * seq, width]``).
            Every argument of that shape is reduced.
        positions: ``[kept]``, indices of batch * seq.
    """
    shape = args[0].shape[:-1]

    def kept(states: Tensor) -> Tensor:
        some = states.flatten(0, -2).index_select(0, positions)  # [kept, width]
        return some if len(shape) == 1 else some[None]

    alike = [isinstance(a, Tensor) and a.shape[:-1] == shape for a in args]
    return tuple(kept(a) if yes else a for a, yes in zip(args, alike, strict=True)), shape


def put_back(output: Any, positions: Tensor, shape: torch.Size, elsewhere: float) -> Any:
    """Undo `keep_positions` for a module's output; fill the other positions with `elsewhere`."""
    states, *rest = output if isinstance(output, tuple) else (output,)
    width = states.shape[-1]
    everywhere = states.new_full((shape.numel(), width), elsewhere)
    everywhere.index_copy_(0, positions, states.reshape(-1, width))
    everywhere = everywhere.view(*shape, width)
    return (everywhere, *rest) if isinstance(output, tuple) else everywhere


def first_of_each(mask: Tensor) -> Tensor:
    """The first position of each row of a mask ``[batch, seq]``, as a mask."""
    return torch.arange(mask.shape[1], device=mask.device).expand_as(mask) == 0


def last_of_each(mask: Tensor) -> Tensor:
    """The last position of each row of a mask ``[batch, seq]`` at which it is set, as a mask."""
    columns = torch.arange(mask.shape[1], device=mask.device)
    return columns == (columns * (mask != 0)).max(dim=1, keepdim=True).values


def flat(mask: Tensor) -> Tensor:
    """Where a mask ``[batch, seq]`` is set, as indices of batch * seq."""
    return mask.flatten().nonzero()[:, 0]


def first_with(ids: Tensor, token: int) -> Tensor:
    """The first column of each row of ids ``[batch, seq]`` that holds a token, ``[batch, 1]``.

    Without such a token, it is the first column.
    """
    return (ids == token).int().argmax(dim=1, keepdim=True)


def positions_read(reads: Reads, mask: Tensor, ids: Tensor, mask_token: int | None) -> Tensor:
    """The position of each text that the head reads, as a mask ``[batch, seq]``.

    Args:
        reads: Which one.
        mask: ``[batch, seq]``, zero for padding.
        ids: ``[batch, seq]``.
        mask_token: As in `Architecture`.
    """
    if reads == "mask":
        assert mask_token is not None
        return torch.arange(ids.shape[1], device=ids.device) == first_with(ids, mask_token)
    return first_of_each(mask) if reads == "first" else last_of_each(mask)
