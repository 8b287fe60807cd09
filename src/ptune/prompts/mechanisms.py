"""How a prompt of k virtual tokens acts inside a frozen backbone.

| mechanism | a virtual token is | requires |
| --- | --- | --- |
| `none` | there is none: only the head is learned | nothing |
| `input` | an input embedding | nothing |
| `prefix` | a key and a value in every attention, before those of the text | attention that uses `AttentionInterface` |
| `layers` | an input embedding, and one more embedding for every later layer | a list of layers |

Another one, `reader`, is in `ptune.prompts.readers`. `prefix` and `layers` are deep prompts (P-tuning v2, arXiv 2110.07602). A mechanism knows how many
numbers a virtual token has, whether the prompt takes positions from the text, how to enter a
forward pass, and which prompt is equivalent to a sequence of words.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ptune import compat
from ptune.backbones.architectures import Architecture, end_token, read
from ptune.prompts import layout
from ptune.prompts.config import Pooling, PromptEncoderConfig
from ptune.prompts.heads import stacked
from ptune.prompts.hooks import LayerInputs, VirtualTokens
from ptune.prompts.keys import KeyValue
from ptune.prompts.passes import Pass


class Mechanism:
    """How a prompt acts inside a backbone.

    Attributes:
        name: The name that adapters record.
        width: Numbers per virtual token.
        takes_positions: Whether the prompt takes k of the backbone's positions.
        sizes: Numbers per virtual token in each layer or attention; together `width`.
        parts: Widths of the parts of a virtual token. They add up to `width`, and each part has a
            scale of its own.
    """

    name: str
    takes_positions: bool

    def __init__(self, backbone: PreTrainedModel, tokens: VirtualTokens, sizes: list[int]) -> None:
        self.backbone, self.tokens, self.passes = backbone, tokens, tokens.passes
        self.sizes = self.parts = sizes
        self.width = sum(sizes)

    def enter(
        self, current: Pass, prompts: list[Tensor], which: Sequence[int] | None, start: int
    ) -> list[Tensor]:
        """Put prompts into a forward pass.

        Args:
            current: The pass.
            prompts: ``[k, width]`` each; ``[0, width]`` for prompts of other mechanisms.
            which: The index of each text's prompt. ``None``: all texts share the only prompt.
            start: Index in the pass of the first prompt embedding that this call returns.

        Returns:
            For each prompt, the embeddings to place among the tokens, ``[k or 0, token_dim]``.
        """
        raise NotImplementedError

    def from_words(self, ids: Tensor) -> Tensor:
        """The prompt ``[k, width]`` equivalent to the tokens `ids`, ``[k]``; float32."""
        raise NotImplementedError

    def positions_of(self, config: PromptEncoderConfig) -> int:
        """How many of the backbone's positions a prompt takes from the text."""
        if config.placement == "template":  # its places are among the text's own tokens
            return 0
        return config.num_virtual_tokens if self.takes_positions or config.shift_positions else 0

    def remove(self) -> None:
        """Detach the mechanism from the backbone."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt in a forward pass, and how texts are read with it.

    Attributes:
        mechanism: How the prompt acts inside the backbone.
        embeddings: ``[k, width]``.
        positions: How many of the backbone's positions are not available to the text.
        before: How many tokens of the text come before the prompt.
        in_text: Whether its places are among the text's tokens, as ids below 0.
        pooling: What the head reads; as in `PromptEncoderConfig`.
        low_rank: Low-rank layers of a reader, ``[2 * rank, width]``.
        added_keys: What a reader adds to the keys of its text, ``[2 * rank, width]``.
    """

    mechanism: Mechanism
    embeddings: Tensor
    positions: int
    before: int = 0
    in_text: bool = False
    pooling: Pooling = "architecture"
    low_rank: Tensor | None = None
    added_keys: Tensor | None = None

    @classmethod
    def of(cls, config: PromptEncoderConfig, mechanism: Mechanism, embeddings: Tensor) -> Prompt:
        """The prompt that `config` describes, with all rows of its embeddings."""
        low_rank = added_keys = None
        if len(embeddings) > config.num_virtual_tokens:
            embeddings, low_rank, added_keys = embeddings.split(config.parts)
        # The text is not in a reader's pass, and what its head reads of it was kept.
        pooling = "prompt" if config.reads_reader_and_text else config.pooling
        return cls(
            mechanism,
            embeddings,
            mechanism.positions_of(config),
            before=layout.TOKENS_BEFORE[config.placement],
            in_text=config.placement == "template",
            pooling=pooling,
            low_rank=low_rank,
            added_keys=added_keys,
        )

    @property
    def nbytes(self) -> int:
        """Bytes of its numbers."""
        parts = (self.embeddings, self.low_rank, self.added_keys)
        return sum(part.nbytes for part in parts if part is not None)


class InputEmbeddings(Mechanism):
    """k input embeddings and nothing else."""

    name = "input"
    takes_positions = True

    def __init__(self, backbone: PreTrainedModel, own: Architecture, tokens: VirtualTokens) -> None:
        super().__init__(backbone, tokens, [own.token_dim])

    def enter(  # noqa: D102
        self, current: Pass, prompts: list[Tensor], which: Sequence[int] | None, start: int
    ) -> list[Tensor]:
        return prompts

    def from_words(self, ids: Tensor) -> Tensor:  # noqa: D102
        return self.tokens.of_words(ids)


class NoPrompt(InputEmbeddings):
    """No virtual tokens: the backbone reads the text alone, and only the head is learned."""

    name = "none"
    takes_positions = False


class SharedInputEmbeddings(InputEmbeddings):
    """An input prompt on a causal backbone, computed once for a whole batch.

    In a causal backbone, what comes before a text cannot depend on it. So the backbone reads the
    prompt alone, every text attends to its keys and values, and positions continue after the
    prompt. Logits and gradients are those of `InputEmbeddings`.
    """

    def __init__(self, backbone: PreTrainedModel, own: Architecture, tokens: VirtualTokens) -> None:
        super().__init__(backbone, own, tokens)
        # For inference, the prompt is read only once.
        self._cached: tuple[Tensor, object, list[KeyValue]] | None = None

    def enter(  # noqa: D102
        self, current: Pass, prompts: list[Tensor], which: Sequence[int] | None, start: int
    ) -> list[Tensor]:
        (prompt,) = prompts
        current.key_values = self._key_values(prompt)
        return [prompt[:0]]

    def _key_values(self, prompt: Tensor) -> list[KeyValue]:
        weight = self.tokens.weight
        keep = isinstance(prompt, nn.Parameter) and not torch.is_grad_enabled()
        version = (compat.version_of(prompt), weight.dtype, weight.device) if keep else None
        if keep and self._cached and self._cached[0] is prompt and self._cached[1] == version:
            return self._cached[2]
        ids = torch.arange(len(prompt), device=prompt.device) + self.tokens.vocab_rows
        captured: list[KeyValue] = []
        with self.passes.running(Pass(prompt_embeddings=prompt, captured_key_values=captured)):
            self.backbone.base_model(
                input_ids=ids[None], attention_mask=torch.ones_like(ids)[None], use_cache=False
            )
        self._cached = (prompt, version, captured) if keep else None
        return captured


class PrefixKeyValues(Mechanism):
    """k keys and k values in every attention, before those of the text.

    They take no positions from the text and cost almost nothing. A virtual token consists of a
    key and a value for each attention, in the order of the forward pass: ``[attentions, 2,
    heads * head_dim]``, flattened as in 🤗 PEFT's prefix tuning.
    """

    name = "prefix"
    takes_positions = False

    def __init__(self, backbone: PreTrainedModel, own: Architecture, tokens: VirtualTokens) -> None:
        self.shapes = [(a.heads, a.head_dim) for a in own.attentions]
        super().__init__(backbone, tokens, [2 * heads * dim for heads, dim in self.shapes])
        self.parts = [heads * dim for heads, dim in self.shapes for _ in range(2)]

    def enter(  # noqa: D102
        self, current: Pass, prompts: list[Tensor], which: Sequence[int] | None, start: int
    ) -> list[Tensor]:
        prefix = prompts[0][None]  # [1, k, width]: one for the whole batch
        if which is not None:
            prefix = stacked([prompts[i] for i in which])  # [batch, longest k, width]
            lengths = [[len(prompts[i])] for i in which]  # [batch, 1]
            if min(lengths) != max(lengths):
                columns = torch.arange(prefix.shape[1], device=prefix.device)
                current.key_mask = columns < torch.tensor(lengths, device=prefix.device)
        if prefix.shape[1]:
            pairs = []
            parts = prefix.split(self.sizes, dim=2)
            for part, (heads, dim) in zip(parts, self.shapes, strict=True):
                # [2, 1 or batch, heads, k, head_dim]
                both = part.unflatten(2, (2, heads, dim)).permute(2, 0, 3, 1, 4)
                pairs.append((both[0], both[1]))
            current.key_values = pairs
        return [p.new_empty(0, self.tokens.weight.shape[1]) for p in prompts]

    def from_words(self, ids: Tensor) -> Tensor:  # noqa: D102
        captured: list[KeyValue] = []
        with self.passes.running(Pass(captured_key_values=captured)):
            _read_words(self.backbone, ids)
        parts = []
        for key, value in captured:
            both = torch.stack([key[0], value[0]])[:, :, : len(ids)]  # [2, heads, k, head_dim]
            parts.append(both.permute(2, 0, 1, 3).flatten(1))  # [k, 2 * heads * head_dim]
        return torch.cat(parts, dim=1).float()


class LayerEmbeddings(Mechanism):
    """k input embeddings, and k more embeddings in the input of every later layer.

    A virtual token consists of its input embedding and one embedding for each layer but the first:
    ``[token_dim + (layers - 1) * hidden]``.
    """

    name = "layers"
    takes_positions = True

    def __init__(self, backbone: PreTrainedModel, own: Architecture, tokens: VirtualTokens) -> None:
        super().__init__(backbone, tokens, own.input_widths)
        self._hook = LayerInputs(backbone, own.layers, tokens.passes)

    def enter(  # noqa: D102
        self, current: Pass, prompts: list[Tensor], which: Sequence[int] | None, start: int
    ) -> list[Tensor]:
        together = torch.cat(prompts)
        if len(together):
            current.layer_embeddings = together.split(self.sizes, dim=1)[1:]
            current.layer_start = start
        return [p[:, : self.sizes[0]] for p in prompts]

    def from_words(self, ids: Tensor) -> Tensor:  # noqa: D102
        captured: list[Tensor] = []
        with self.passes.running(Pass(captured_states=captured)):
            _read_words(self.backbone, ids)
        # One text: [1, seq, hidden], or [seq, 1, hidden] in XLNet.
        states = [s.flatten(0, 1)[: len(ids)] for s in captured]
        return torch.cat([self.tokens.of_words(ids), *states], dim=1).float()

    def remove(self) -> None:  # noqa: D102
        self._hook.remove()


def _read_words(backbone: PreTrainedModel, ids: Tensor) -> None:
    """Run the backbone on the tokens `ids`, ``[k]``, and an end token."""
    text = torch.cat([ids, ids.new_tensor([end_token(backbone)])])[None]
    text = text.to(backbone.device)
    read(backbone, text, torch.ones_like(text))
