"""How a prompt of k virtual tokens acts inside a frozen backbone.

| mechanism | a virtual token is | works where |
| --- | --- | --- |
| `input` | a row of the embedding weight | everywhere |
| `prefix` | a key and a value in every attention, in front of the text's | attention goes through `AttentionInterface` |
| `layers` | a row of the embedding weight, and another in the input of every layer | there is a list of layers |

The last two are deep prompts (P-tuning v2, arXiv 2110.07602). A mechanism knows how many numbers
a virtual token has, whether it takes positions from the text, how to enter a forward pass, and
what the prompt would be if words stood in its place.
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
from ptune.prompts.passes import KeyValue, Pass, Passes


class Mechanism:
    """How a prompt acts inside a backbone.

    Attributes:
        name: As adapters record it.
        width: Numbers that a virtual token has.
        takes_positions: Whether the prompt takes k of the backbone's positions.
    """

    name: str
    takes_positions: bool

    def __init__(self, tokens: VirtualTokens, width: int) -> None:
        self.tokens, self.width = tokens, width

    def enter(
        self, current: Pass, prompts: list[Tensor], which: Sequence[int] | None, start: int
    ) -> list[Tensor]:
        """Put prompts into a forward pass.

        Args:
            current: The pass.
            prompts: ``[k, width]`` each; ``[0, width]`` for prompts of other mechanisms.
            which: The prompt of each text. ``None``: there is one, and all texts have it.
            start: Number of prompt embeddings that come before the returned ones.

        Returns:
            ``[n, token_dim]`` each: the embeddings, k or none, that stand among the tokens.
        """
        raise NotImplementedError

    def from_words(self, ids: Tensor) -> Tensor:
        """The prompt ``[k, width]`` that the tokens `ids`, ``[k]``, would be; float32."""
        raise NotImplementedError

    def remove(self) -> None:
        """Detach it from the backbone."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt in a forward pass, and how the text is read with it.

    Attributes:
        mechanism: How it acts inside the backbone.
        embeddings: ``[k, width]``.
        before: How many tokens of the text come before it.
        shifts: Whether the text's positions count from k, though the prompt takes none.
        pooling: What the head reads; as in `PromptEncoderConfig`.
    """

    mechanism: Mechanism
    embeddings: Tensor
    before: int = 0
    shifts: bool = False
    pooling: Pooling = "architecture"

    @classmethod
    def of(cls, config: PromptEncoderConfig, mechanism: Mechanism, embeddings: Tensor) -> Prompt:
        """The prompt that `config` describes."""
        return cls(
            mechanism,
            embeddings,
            before=layout.TOKENS_BEFORE[config.placement],
            shifts=config.shift_positions,
            pooling=config.pooling,
        )

    @property
    def positions(self) -> int:
        """How many of the backbone's positions it takes from the text."""
        return len(self.embeddings) if self.mechanism.takes_positions or self.shifts else 0


class InputEmbeddings(Mechanism):
    """k rows of the embedding weight, and nothing else."""

    name = "input"
    takes_positions = True

    def __init__(self, tokens: VirtualTokens) -> None:
        super().__init__(tokens, width=tokens.weight.shape[1])

    def enter(  # noqa: D102
        self, current: Pass, prompts: list[Tensor], which: Sequence[int] | None, start: int
    ) -> list[Tensor]:
        return prompts

    def from_words(self, ids: Tensor) -> Tensor:  # noqa: D102
        return self.tokens.weight[ids].detach().float()


class SharedInputEmbeddings(InputEmbeddings):
    """An input prompt before the texts of a causal backbone, computed once for a whole batch.

    What comes before a text cannot depend on it there. So the backbone reads the prompt alone,
    every text sees its keys and values, and positions count on from the prompt. Numbers and
    gradients are those of `InputEmbeddings`.
    """

    def __init__(self, backbone: PreTrainedModel, tokens: VirtualTokens, passes: Passes) -> None:
        super().__init__(tokens)
        self.backbone, self.passes = backbone, passes
        # Where nothing trains, the prompt is read once and for all.
        self._known: tuple[Tensor, object, list[KeyValue]] | None = None

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
        if keep and self._known and self._known[0] is prompt and self._known[1] == version:
            return self._known[2]
        ids = torch.arange(len(prompt), device=prompt.device) + self.tokens.vocab_rows
        heard: list[KeyValue] = []
        with self.passes.running(Pass(prompt_embeddings=prompt, heard=heard)):
            self.backbone.base_model(
                input_ids=ids[None], attention_mask=torch.ones_like(ids)[None], use_cache=False
            )
        self._known = (prompt, version, heard) if keep else None
        return heard


class PrefixKeyValues(Mechanism):
    """k keys and k values in every attention of the backbone, in front of the text's.

    They take no position of the text's, and cost almost nothing. A virtual token is, for each
    attention in the order of the forward pass, its key and its value: ``[attentions, 2, heads *
    head_dim]``, laid out flat as in 🤗 PEFT's prefix tuning.
    """

    name = "prefix"
    takes_positions = False

    def __init__(
        self,
        backbone: PreTrainedModel,
        architecture: Architecture,
        tokens: VirtualTokens,
        passes: Passes,
    ) -> None:
        self.backbone, self.passes = backbone, passes
        self.shapes = [(a.heads, a.head_dim) for a in architecture.attentions]
        self.sizes = [2 * heads * dim for heads, dim in self.shapes]
        super().__init__(tokens, width=sum(self.sizes))

    def enter(  # noqa: D102
        self, current: Pass, prompts: list[Tensor], which: Sequence[int] | None, start: int
    ) -> list[Tensor]:
        rows = prompts[0][None]  # [1, k, width]: one for the whole batch
        if which is not None:
            rows = stacked([prompts[i] for i in which])  # [batch, longest k, width]
            lengths = [[len(prompts[i])] for i in which]  # [batch, 1]
            if min(lengths) != max(lengths):
                columns = torch.arange(rows.shape[1], device=rows.device)
                current.key_mask = columns < torch.tensor(lengths, device=rows.device)
        if rows.shape[1]:
            pairs = []
            parts = rows.split(self.sizes, dim=2)
            for part, (heads, dim) in zip(parts, self.shapes, strict=True):
                # [2, 1 or batch, heads, k, head_dim]
                both = part.unflatten(2, (2, heads, dim)).permute(2, 0, 3, 1, 4)
                pairs.append((both[0], both[1]))
            current.key_values = pairs
        return [p.new_empty(0, self.tokens.weight.shape[1]) for p in prompts]

    def from_words(self, ids: Tensor) -> Tensor:  # noqa: D102
        heard: list[KeyValue] = []
        with self.passes.running(Pass(heard=heard)):
            _read_words(self.backbone, ids)
        parts = []
        for key, value in heard:
            both = torch.stack([key[0], value[0]])[:, :, : len(ids)]  # [2, heads, k, head_dim]
            parts.append(both.permute(2, 0, 1, 3).flatten(1))  # [k, 2 * heads * head_dim]
        return torch.cat(parts, dim=1).float()


class LayerEmbeddings(Mechanism):
    """k rows of the embedding weight, and k other rows in the input of every further layer.

    A virtual token is its row of the embedding weight and then one for each layer but the first:
    ``[token_dim + (layers - 1) * hidden]``.
    """

    name = "layers"
    takes_positions = True

    def __init__(
        self,
        backbone: PreTrainedModel,
        architecture: Architecture,
        tokens: VirtualTokens,
        passes: Passes,
    ) -> None:
        self.backbone, self.passes = backbone, passes
        further = len(architecture.layers) - 1
        self.sizes = [tokens.weight.shape[1]] + [architecture.hidden_size] * further
        super().__init__(tokens, width=sum(self.sizes))
        self._hook = LayerInputs(backbone, architecture.layers, passes)

    def enter(  # noqa: D102
        self, current: Pass, prompts: list[Tensor], which: Sequence[int] | None, start: int
    ) -> list[Tensor]:
        rows = torch.cat(prompts)
        if len(rows):
            current.layer_embeddings, current.layer_start = rows.split(self.sizes, dim=1), start
        return [p[:, : self.sizes[0]] for p in prompts]

    def from_words(self, ids: Tensor) -> Tensor:  # noqa: D102
        heard: list[Tensor] = []
        with self.passes.running(Pass(heard_states=heard)):
            _read_words(self.backbone, ids)
        # One text: [1, seq, hidden], or [seq, 1, hidden] in XLNet.
        states = [s.flatten(0, 1)[: len(ids)] for s in heard]
        return torch.cat([self.tokens.weight[ids].detach(), *states], dim=1).float()

    def remove(self) -> None:  # noqa: D102
        self._hook.remove()


def _read_words(backbone: PreTrainedModel, ids: Tensor) -> None:
    """Let the backbone read the tokens `ids`, ``[k]``, and an end token."""
    text = torch.cat([ids, ids.new_tensor([end_token(backbone)])])[None]
    text = text.to(backbone.device)
    read(backbone, text, torch.ones_like(text))
