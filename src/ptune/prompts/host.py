"""`Host`: a frozen backbone, and everything that is attached to it.

The one idea: **a prompt is k extra rows of the embedding weight.** Virtual token i has the id
V + i, where V is the number of rows of the frozen weight, and the backbone is called with ids. It
handles its own positions, padding and pooling, and nothing here knows how.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ptune import compat
from ptune.backbones.architectures import (
    POSITION_READ,
    SPECIAL_IDS,
    Architecture,
    flat,
    use_valid_special_ids,
)
from ptune.backbones.cpu import CpuKernels, is_traced
from ptune.errors import PtuneError
from ptune.prompts import layout
from ptune.prompts.attention import Attentions
from ptune.prompts.config import PromptEncoderConfig
from ptune.prompts.heads import Head, Heads
from ptune.prompts.hooks import FrozenCheckpoint, MeanPooling, OnlyPositionsRead, VirtualTokens
from ptune.prompts.mechanisms import (
    InputEmbeddings,
    LayerEmbeddings,
    Mechanism,
    PrefixKeyValues,
    Prompt,
    SharedInputEmbeddings,
)
from ptune.prompts.passes import Pass, Passes

# The input prompt of a causal backbone, computed once for a whole batch.
SHARED = "shared"


@dataclass(frozen=True)
class _Before:
    """What ptune changes about a backbone, as it was."""

    requires_grad: dict[str, bool]
    training: dict[Any, bool]
    special_ids: list[tuple[Any, str, Any]]

    @classmethod
    def of(cls, backbone: PreTrainedModel) -> _Before:
        config = backbone.config
        configs = {id(c): c for c in (config, config.get_text_config())}.values()
        return cls(
            {name: p.requires_grad for name, p in backbone.named_parameters()},
            {module: module.training for module in backbone.modules()},
            [(c, n, getattr(c, n)) for c in configs for n in SPECIAL_IDS if hasattr(c, n)],
        )

    def restore(self, backbone: PreTrainedModel) -> None:
        for name, parameter in backbone.named_parameters():
            parameter.requires_grad_(self.requires_grad[name])
        for module, training in self.training.items():
            module.training = training
        for config, name, value in self.special_ids:
            setattr(config, name, value)


class Host:
    """A frozen backbone with hooks that let prompts in, until `release` detaches them.

    Any number of threads may call `run`: each forward pass has its own `Pass`, and they take
    turns.

    Args:
        backbone: A sequence classifier of 🤗 Transformers, changed in place.

    Attributes:
        architecture: What is known about it.
        heads: Which head it has now.
        passes: The forward pass that runs now.
        released: Whether the backbone was given back.

    Raises:
        PtuneError: It cannot be p-tuned, or has a host already. It is unchanged then.
    """

    def __init__(self, backbone: PreTrainedModel) -> None:
        if getattr(backbone, "ptune_hosted", False):
            raise PtuneError(
                f"This {type(backbone).__name__} already carries a prompt. Add another one to its "
                "PromptModel (add_adapter, load_adapter), or take the backbone back first (unload)."
            )
        self.backbone = backbone
        self.architecture = Architecture.of(backbone)
        self.passes = Passes()
        self.released = False
        self._attached: list[Any] = []  # each has `remove`
        self._mechanisms: dict[str, Mechanism] = {}
        self._attentions: Attentions | None = None
        self._before = _Before.of(backbone)
        try:
            backbone.ptune_hosted = True
            use_valid_special_ids(backbone.config, self.architecture.vocab_rows)
            backbone.requires_grad_(False)
            self.heads = self._attach(Heads(backbone, self.architecture.head_names))
            if CpuKernels.pay(backbone):
                self._attach(CpuKernels(backbone))
            self.tokens = self._attach(VirtualTokens(backbone, self.passes))
            self._attach(MeanPooling(backbone, self.passes))
            if end := self.architecture.last_layer_end:
                self._attach(OnlyPositionsRead(backbone, end, self.passes))
        except BaseException:
            self.release()
            raise
        self._checkpointable = compat.checkpointing_layers(backbone)

    def _attach(self, attached: Any) -> Any:
        self._attached.append(attached)
        return attached

    def release(self) -> PreTrainedModel:
        """Detach everything, and give the backbone back as it came, bit for bit."""
        with self.passes.lock:
            for attached in reversed(self._attached):
                attached.remove()
            self._attached.clear()
            self.released = True
            for layer in self.checkpointed_layers():
                function = compat.checkpointing_function(layer)
                if isinstance(function, FrozenCheckpoint):
                    compat.set_checkpointing_function(layer, function.checkpoint)
            self._before.restore(self.backbone)
            self.backbone.__dict__.pop("ptune_hosted", None)
        return self.backbone

    # Prompts.

    def fitted(self, config: PromptEncoderConfig) -> PromptEncoderConfig:
        """The configuration with the backbone's sizes filled in.

        Raises:
            PtuneError: The prompt does not fit the backbone.
        """
        own = self.architecture
        config = config.for_backbone(
            token_dim=own.token_dim,
            num_layers=own.num_layers,
            num_heads=own.num_heads,
            name=self.backbone.name_or_path or None,
        )
        k = config.num_virtual_tokens
        if config.depth == "input" and own.max_positions is not None and k >= own.max_positions:
            raise PtuneError(
                f"{k} virtual tokens do not fit: the backbone has {own.max_positions} positions "
                "and a text needs some of them. Use a smaller num_virtual_tokens."
            )
        if config.pooling == "prompt" and own.looks_back:
            raise PtuneError(
                "pooling is 'prompt', but attention in this backbone only looks back: a prompt "
                "before the text has not read it. Use 'architecture' or 'mean'."
            )
        return config

    def mechanism_for(
        self, config: PromptEncoderConfig, recorded: str | None = None, width: int | None = None
    ) -> Mechanism:
        """How a prompt acts inside this backbone.

        Args:
            config: The prompt.
            recorded: The mechanism that an adapter names; `None`: the one that has this width.
            width: Numbers per virtual token; `None`: the prompt is new.

        Raises:
            PtuneError: The backbone does not have it.
        """
        own = self.architecture
        name = recorded or own.mechanism_of(config.depth, width)
        if name == "prefix" and not own.attentions:
            raise PtuneError(
                f"The prompt consists of key-values in every attention, and {own.name} does not "
                "look its attention up by name in this version of Transformers. Load it with the "
                "version that the adapter was trained with, or train it again."
            )
        if name == "layers" and not own.layers:
            raise PtuneError(
                f"{own.name} cannot have a deep prompt: neither its attention nor its layers are "
                "where Transformers usually has them. Use an input prompt."
            )
        return self.mechanism(name)

    def mechanism(self, name: str) -> Mechanism:
        """A mechanism by name, attached to the backbone on first use."""
        if name not in self._mechanisms:
            with self.passes.lock:
                if name not in self._mechanisms:
                    self._mechanisms[name] = self._attach(self._new_mechanism(name))
        return self._mechanisms[name]

    def _new_mechanism(self, name: str) -> Mechanism:
        backbone, own, tokens, passes = (
            self.backbone,
            self.architecture,
            self.tokens,
            self.passes,
        )
        if name in (SHARED, "prefix") and self._attentions is None:
            self._attentions = self._attach(Attentions(backbone, own, passes))
        if name == SHARED:
            return SharedInputEmbeddings(backbone, tokens, passes)
        if name == "prefix":
            return PrefixKeyValues(backbone, own, tokens, passes)
        if name == "layers":
            return LayerEmbeddings(backbone, own, tokens, passes)
        if name == "input":
            return InputEmbeddings(tokens)
        raise PtuneError(
            f"The prompt's mechanism is {name!r}; ptune has 'input', 'prefix' and 'layers'. The "
            "adapter was written by a newer version: upgrade ptune."
        )

    def can_share(self, config: PromptEncoderConfig, **inputs: Any) -> bool:
        """Whether a prompt can be computed once for a whole batch with the same results."""
        own = self.architecture
        return (
            own.looks_back
            and own.takes_position_ids
            and config.depth == "input"
            and config.placement == "prefix"
            and inputs.get("position_ids") is None
            and not self._needs_everything(inputs)
        )

    def check_shape(self, embeddings: Tensor, config: PromptEncoderConfig, own: Mechanism) -> None:
        """Refuse a prompt whose shape is not that of its mechanism in this backbone.

        Raises:
            PtuneError: It is not.
        """
        expected = (config.num_virtual_tokens, own.width)
        if embeddings.shape != expected:
            raise PtuneError(
                f"The prompt has the shape {list(embeddings.shape)}, and {self.architecture.name} "
                f"takes a prompt of this kind as {list(expected)}: it belongs to another backbone, "
                "or was made in another way."
            )

    # Gradient checkpointing.

    def checkpointed_layers(self) -> list[Any]:
        """The layers that gradient checkpointing is switched on for."""
        layers = getattr(self, "_checkpointable", ())
        return [layer for layer in layers if layer.gradient_checkpointing]

    def wrap_checkpoints(self, *, drops_out: bool) -> None:
        """Keep frozen layers frozen while they are checkpointed."""
        for layer in self.checkpointed_layers():
            function = compat.checkpointing_function(layer)
            if isinstance(function, FrozenCheckpoint):
                function = function.checkpoint
            wrapped = FrozenCheckpoint(function, self.passes, drops_out=drops_out)
            compat.set_checkpointing_function(layer, wrapped)

    # Forward passes.

    def run(
        self,
        prompts: Sequence[Prompt],
        which: Sequence[int] | None = None,
        *,
        head: Head | None = None,
        heads: Sequence[dict[str, Tensor]] = (),
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **inputs: Any,
    ) -> Any:
        """Let the backbone read a batch, each text with its own prompt, in one forward pass.

        Args:
            prompts: Of this host's mechanisms.
            which: The prompt of each text. ``None``: there is one, and all texts have it.
            head: In place of the one that is installed.
            heads: A head for each text, or one for all (`ptune.prompts.heads.HeadPerText`).
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds: As for
                `PromptModel.forward`.
            **inputs: For the backbone.

        Raises:
            PtuneError: As for `PromptModel.forward`.
        """
        current = Pass(heads=heads)
        if self.released:
            raise PtuneError(
                f"This {self.architecture.name} was given back (unload) and has no prompts any "
                "more. Build a PromptModel on it again."
            )
        with self.passes.running(current), self.heads.using(head):
            input_ids = self._given_ids(input_ids, inputs_embeds)
            if attention_mask is None:
                attention_mask = torch.ones_like(input_ids)
            if inputs_embeds is None:
                self._check_ids(input_ids, attention_mask)
            batch = _Batch(self, prompts, which, current, input_ids.device)
            if inputs_embeds is not None:
                input_ids = batch.add_embeddings(inputs_embeds)
            inputs |= batch.arrange(input_ids, attention_mask, token_type_ids, position_ids)
            if self.architecture.takes_use_cache:
                inputs.setdefault("use_cache", False)  # nothing is generated
            if not self._needs_everything(inputs):
                batch.compute_only_what_is_read(inputs["attention_mask"])
            return self.backbone(**inputs)

    def _given_ids(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        if input_ids is not None and inputs_embeds is not None:
            raise PtuneError("Give input_ids or inputs_embeds, not both.")
        if input_ids is not None:
            return input_ids
        if inputs_embeds is None:
            raise PtuneError("Give input_ids or inputs_embeds; both are missing.")
        if self.architecture.is_encoder_decoder:
            raise PtuneError(
                f"{self.architecture.name} looks for the id of the end token; give input_ids "
                "instead of inputs_embeds."
            )
        return inputs_embeds.new_zeros(inputs_embeds.shape[:2], dtype=torch.long)

    def _check_ids(self, input_ids: Tensor, attention_mask: Tensor) -> None:
        """Refuse tokens, ``[batch, seq]``, that would be taken for virtual ones."""
        if is_traced() or not input_ids.numel():
            return
        rows = self.architecture.vocab_rows
        if (largest := int((input_ids * (attention_mask != 0)).max())) >= rows:
            raise PtuneError(
                f"A text has the token id {largest}, and the backbone's embedding has the rows 0 "
                f"to {rows - 1}: the tokenizer belongs to another backbone, or was given more "
                "tokens. Use the backbone's own tokenizer, or make the embedding larger before "
                "p-tuning (backbone.resize_token_embeddings(len(tokenizer)))."
            )

    def _needs_everything(self, inputs: dict[str, Any]) -> bool:
        """True if every position must be computed (hidden states, attentions, tracing)."""
        config = self.backbone.config
        return bool(
            any(
                inputs.get(name, getattr(config, name, False))
                for name in ("output_hidden_states", "output_attentions")
            )
            or self.checkpointed_layers()
            or is_traced()
        )


class _Batch:
    """The prompts of a batch, entered into a pass, and the batch's inputs with them."""

    def __init__(
        self,
        host: Host,
        prompts: Sequence[Prompt],
        which: Sequence[int] | None,
        current: Pass,
        device: torch.device,
    ) -> None:
        self.own, self.config = host.architecture, host.backbone.config
        self.prompts, self.which, self.current, self.device = prompts, which, current, device
        embeddings: list[Tensor] = []
        self.lengths, self.starts, total = [0] * len(prompts), [0] * len(prompts), 0
        for mechanism in dict.fromkeys(p.mechanism for p in prompts):
            none = prompts[0].embeddings.new_empty(0, mechanism.width)
            own = [p.embeddings if p.mechanism is mechanism else none for p in prompts]
            for i, entered in enumerate(mechanism.enter(current, own, which, total)):
                if prompts[i].mechanism is mechanism:
                    self.lengths[i], self.starts[i] = len(entered), total
                    total += len(entered)
                    embeddings.append(entered)
        current.prompt_embeddings = torch.cat(embeddings)
        self.mean = self._of_texts([p.pooling != "architecture" for p in prompts])

    def _of_texts(self, values: Sequence[int]) -> int | Tensor:
        """A number for each prompt as one for each text: one for all, or ``[batch, 1]``."""
        if self.which is None or len(set(values)) == 1:
            return values[0]
        return torch.tensor([[values[i]] for i in self.which], device=self.device)

    def add_embeddings(self, inputs_embeds: Tensor) -> Tensor:
        """Vectors ``[batch, seq, token_dim]`` as further prompt embeddings; their token ids."""
        batch, seq, dim = inputs_embeds.shape
        rows = self.current.prompt_embeddings
        assert rows is not None
        ids = torch.arange(batch * seq, device=rows.device).view(batch, seq)
        self.current.prompt_embeddings = torch.cat(
            [rows.to(inputs_embeds.dtype), inputs_embeds.reshape(-1, dim)]
        )
        return ids + self.own.vocab_rows + len(rows)

    def arrange(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
    ) -> dict[str, Tensor]:
        """The backbone's inputs, ``[batch, k + seq]`` each, prompt and text in their places."""
        k = self._of_texts(self.lengths)
        before = self._of_texts([p.before for p in self.prompts])
        virtual = torch.arange(max(self.lengths), device=input_ids.device)  # [longest k]
        virtual_mask = virtual < k  # [longest k] or [batch, longest k]
        side = self.own.padding_side
        order = layout.prompt_order(attention_mask, virtual_mask, before, side)
        order = layout.trim(order, self._width(attention_mask, order.shape[1], k), side)
        text_ids, pad = self._disguised(input_ids, attention_mask)
        start = self.own.vocab_rows + self._of_texts(self.starts)
        inputs = {
            "input_ids": layout.place(
                text_ids, torch.where(virtual_mask, start + virtual, pad), order
            ),
            "attention_mask": layout.place(attention_mask, virtual_mask, order),
        }
        if token_type_ids is not None:
            zeros = torch.zeros_like(virtual)
            inputs["token_type_ids"] = layout.place(token_type_ids, zeros, order)
        shift = self._of_texts(
            [p.positions - n for p, n in zip(self.prompts, self.lengths, strict=True)]
        )
        if position_ids is not None:
            if not self.own.takes_position_ids:
                raise PtuneError(f"{self.own.name} takes no position_ids. Leave them out.")
            position_ids = position_ids.expand_as(input_ids)
            inputs["position_ids"] = layout.place_positions(
                position_ids, attention_mask, virtual_mask, before, order
            )
        elif self.own.takes_position_ids and (isinstance(shift, Tensor) or shift > 0):
            # The prompt takes positions, but does not stand among the tokens.
            counted = (inputs["attention_mask"].cumsum(dim=1) - 1).clamp_min(0)
            inputs["position_ids"] = counted + self.own.first_position + shift
        if isinstance(self.mean, Tensor) or self.mean:
            self._pool(attention_mask, virtual_mask, order)
        return inputs

    def _disguised(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, int]:
        """Token ids in which only padding looks like padding; and the padding's id."""
        assert self.current.prompt_embeddings is not None
        # Asked for each time: `Trainer` sets it to the tokenizer's.
        pad = self.config.get_text_config().pad_token_id
        alias = self.own.vocab_rows + len(self.current.prompt_embeddings)
        aliases = [pad]
        # A pad token that is part of a text must not look like padding, and padding must.
        text_ids = torch.where(input_ids == pad, alias, input_ids)
        if self.own.is_encoder_decoder:
            # The head reads the last end token, and every text must have as many of them.
            aliases.append(end := self.config.eos_token_id)
            ends = (input_ids == end) & (attention_mask != 0)
            inner = ends & (ends.flip(1).cumsum(1).flip(1) > 1)
            text_ids = torch.where(inner, alias + 1, text_ids)
        self.current.aliases = tuple(aliases)
        return torch.where(attention_mask != 0, text_ids, pad), pad

    def _pool(self, attention_mask: Tensor, virtual_mask: Tensor, order: Tensor) -> None:
        of_text = torch.as_tensor(self._of_texts([p.pooling == "mean" for p in self.prompts]))
        of_text = of_text.to(attention_mask.device)
        is_text, is_prompt = (attention_mask != 0) & of_text, virtual_mask & ~of_text
        self.current.mean_mask = layout.place(is_text, is_prompt, order)
        self.current.mean_rows = self.mean if isinstance(self.mean, Tensor) else None

    def _width(self, attention_mask: Tensor, width: int, k: int | Tensor) -> int:
        """How many of `width` columns to keep.

        All of them, unless only padding makes the batch too wide or the prompts differ.
        """
        bound, seq = self.own.max_positions, attention_mask.shape[1]
        positions = self._of_texts([p.positions for p in self.prompts])
        if (
            not isinstance(k, Tensor)
            and not isinstance(positions, Tensor)
            and (bound is None or seq + positions <= bound)
        ):
            return width
        lengths = (attention_mask != 0).sum(dim=1, keepdim=True)  # [batch, 1]
        taken = lengths + positions
        if bound is not None and (worst := int(taken.max())) > bound:
            longest = int(lengths[int(taken.argmax())])
            fits = bound - worst + longest
            raise PtuneError(
                f"A text of {longest} tokens is too long: the backbone has {bound} positions and "
                f"the prompt takes {worst - longest}, so at most {fits} tokens fit. Tokenise with "
                f"truncation=True, max_length={fits}."
            )
        return max(1, int((lengths + k).max()))

    def compute_only_what_is_read(self, attention_mask: Tensor) -> None:
        """Leave out the positions that nothing reads after the last layer."""
        if self.own.last_layer_end is None:
            return
        read_at: Callable[[Tensor], Tensor] = POSITION_READ[self.own.last_layer_end.reads]
        read = read_at(attention_mask)
        if self.current.mean_mask is not None:
            mean = torch.as_tensor(self.mean, device=read.device)
            read = torch.where(mean, self.current.mean_mask, read)
        self.current.positions = flat(read)
