"""The forms a prompt takes inside a frozen backbone.

| form | k virtual tokens are |
| --- | --- |
| `InputRows` | rows of the token-embedding table |
| `KeysAndValues` | keys and values that every layer's attention sees beside the text's |
| `RowsInEveryLayer` | rows of the table, replaced by others before every further layer |

The first goes everywhere, the second where a family routes attention through Transformers'
`AttentionInterface`, the third where it does not. The last two are deep prompts (P-tuning v2,
arXiv 2110.07602). A form knows how many numbers a virtual token has (`width`), whether it stands
among the positions of the text, how to `enter` the backbone for a forward pass, and what the
prompt would be if words stood in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, eager_mask, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ptune.backbones.cpu import FEW_PASSES, eager_attention
from ptune.backbones.loading import layer_lists, read
from ptune.errors import PtuneError
from ptune.prompts import layout
from ptune.prompts.config import Pooling, PromptEncoderConfig
from ptune.prompts.hooks import ExtraRows, side_by_side, states_of


class Form:
    """What a prompt is inside a backbone.

    Attributes:
        width: Numbers that a virtual token has.
        takes_positions: Whether the prompt takes k of the positions that the backbone has.
    """

    takes_positions: bool

    def __init__(self, table: ExtraRows, width: int) -> None:
        self.table, self.width = table, width

    def enter(self, prompts: list[Tensor], which: Sequence[int] | None, start: int) -> list[Tensor]:
        """Put prompts in, for the forward passes until others enter.

        Args:
            prompts: ``[k, width]`` each; empty, ``[0, width]``, where the batch's prompt has
                another form.
            which: The prompt of each row of the batch. ``None``: there is one, and all rows have
                it.
            start: The extra row of the table where the returned rows will begin.

        Returns:
            ``[n, token_dim]`` each: the rows, k or none, that stand among the text's tokens.
        """
        raise NotImplementedError

    def leave(self) -> None:
        """Take the prompt out."""

    def words(self, ids: Tensor) -> Tensor:
        """The prompt ``[k, width]`` that the tokens `ids`, ``[k]``, would be; float32."""
        raise NotImplementedError

    def remove(self) -> None:
        """Leave the backbone as it was."""
        self.leave()


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt in a forward pass, and how it wants the text to be read.

    Attributes:
        form: What it is inside the backbone.
        rows: ``[k, width]``.
        before: How many tokens of the text stand before it.
        shifts: Whether the text's positions count from k, though it stands among none of them.
        pooling: What the head reads; as in `PromptEncoderConfig`.
    """

    form: Form
    rows: Tensor
    before: int = 0
    shifts: bool = False
    pooling: Pooling = "architecture"

    @classmethod
    def of(cls, config: PromptEncoderConfig, form: Form, rows: Tensor) -> Prompt:
        """The prompt `rows` that `config` describes."""
        return cls(
            form,
            rows,
            before=layout.TOKENS_BEFORE[config.placement],
            shifts=config.shift_positions,
            pooling=config.pooling,
        )

    @property
    def positions(self) -> int:
        """How many of the backbone's positions it takes from the text."""
        return len(self.rows) if self.form.takes_positions or self.shifts else 0


class InputRows(Form):
    """The prompt is k rows of the token-embedding table, and nothing else."""

    takes_positions = True

    def __init__(self, table: ExtraRows) -> None:
        super().__init__(table, width=table.weight.shape[1])

    def enter(  # noqa: D102
        self, prompts: list[Tensor], which: Sequence[int] | None, start: int
    ) -> list[Tensor]:
        return prompts

    def words(self, ids: Tensor) -> Tensor:  # noqa: D102
        return self.table.weight[ids].detach().float()


class Attentions:
    """Every attention of a backbone, in the order of the forward pass.

    They can be listened to, and be given keys and values that stand before the text's own.
    Transformers looks attention functions up by name (`AttentionInterface`), and so no method of
    the backbone is replaced. Only families that do so have this; see `reachable`.
    """

    def __init__(self, backbone: PreTrainedModel) -> None:
        self.backbone = backbone
        self.before = backbone.config._attn_implementation
        kernel = self.before if self.before in _KERNELS else "sdpa"
        if kernel == "sdpa" and not backbone._supports_sdpa:
            kernel = "eager"
        backbone.set_attn_implementation(f"{_PREFIX}{kernel}")
        self.shapes: list[tuple[int, int]] = []  # heads, head_dim
        self.slots: dict[nn.Module, _Slots] = {}
        self.giver: Form | None = None  # whose keys and values are there
        for module, key, _ in self.reading(torch.tensor([], dtype=torch.long)):
            slots = self.slots.setdefault(module, _Slots())
            slots.numbers.append(len(self.shapes))
            self.shapes.append((key.shape[1], key.shape[3]))
        for module, slots in self.slots.items():
            module.ptune_slots = slots  # type: ignore[assignment]

    @staticmethod
    def reachable(backbone: PreTrainedModel) -> bool:
        """Whether this family routes attention through `AttentionInterface`."""
        return backbone._can_set_attn_implementation()

    def give(
        self,
        pairs: Sequence[tuple[Tensor, Tensor] | None],
        giver: Form | None,
        seen: Tensor | None = None,
    ) -> None:
        """Give each attention its keys and values.

        Args:
            pairs: ``[1 or batch, heads, k, head_dim]`` each, or ``None``; nothing: none at all.
            giver: Whose they are.
            seen: ``[batch, k]``, true where a row of the batch has a key; ``None``: everywhere.
        """
        self.giver = giver
        for slots in self.slots.values():
            slots.pairs = [pairs[i] for i in slots.numbers] if pairs else []
            slots.seen = seen
            slots.calls = 0

    @contextmanager
    def listening(self) -> Iterator[list[Heard]]:
        """Hear module, keys and values ``[batch, heads, seq, head_dim]`` of every attention."""
        global _listener
        heard: list[Heard] = []
        _listener = heard
        try:
            yield heard
        finally:
            _listener = None

    def reading(self, ids: Tensor) -> list[Heard]:
        """What is heard while the backbone reads the tokens `ids`, ``[k]``, and an end."""
        with self.listening() as heard:
            _read_words(self.backbone, ids)
        return heard

    def remove(self) -> None:
        """Leave the backbone as it was."""
        for module in self.slots:
            del module.ptune_slots
        self.backbone.set_attn_implementation(self.before)


class KeysAndValues(Form):
    """The prompt is k keys and k values in every attention of the backbone.

    They take no position of the text's, and cost next to nothing. A virtual token is, for each
    attention in the order of the forward pass, its key and its value: ``[attentions, 2, heads *
    head_dim]``, laid out flat as 🤗 PEFT's prefix tuning does.
    """

    takes_positions = False

    def __init__(self, attentions: Attentions, table: ExtraRows) -> None:
        self.attentions = attentions
        self.shapes = attentions.shapes
        self.sizes = [2 * heads * dim for heads, dim in self.shapes]
        super().__init__(table, width=sum(self.sizes))

    def enter(  # noqa: D102
        self, prompts: list[Tensor], which: Sequence[int] | None, start: int
    ) -> list[Tensor]:
        rows, seen = prompts[0][None], None  # [1, k, width]: one for the whole batch
        if which is not None:
            rows = side_by_side([prompts[i] for i in which])  # [batch, longest k, width]
            lengths = [[len(prompts[i])] for i in which]  # [batch, 1]
            if min(lengths) != max(lengths):
                columns = torch.arange(rows.shape[1], device=rows.device)
                seen = columns < torch.tensor(lengths, device=rows.device)
        pairs: list[tuple[Tensor, Tensor] | None] = []
        if rows.shape[1]:
            parts = rows.split(self.sizes, dim=2)
            for part, (heads, dim) in zip(parts, self.shapes, strict=True):
                # [2, 1 or batch, heads, k, dim]
                both = part.unflatten(2, (2, heads, dim)).permute(2, 0, 3, 1, 4)
                pairs.append((both[0], both[1]))
        self.attentions.give(pairs, self, seen)
        return [p.new_empty(0, self.table.weight.shape[1]) for p in prompts]

    def leave(self) -> None:  # noqa: D102
        if self.attentions.giver is self:
            self.attentions.give([], None)

    def words(self, ids: Tensor) -> Tensor:  # noqa: D102
        parts = []
        for _, key, value in self.attentions.reading(ids):
            both = torch.stack([key[0], value[0]])[:, :, : len(ids)]  # [2, heads, k, dim]
            parts.append(both.permute(2, 0, 1, 3).flatten(1))  # [k, 2 * heads * dim]
        return torch.cat(parts, dim=1).float()


class SharedRows(InputRows):
    """An input prompt before the texts of a causal backbone, read once for a whole batch.

    What stands before a text cannot depend on it there. So the backbone reads the prompt alone,
    and its keys and values are what every text sees; positions count on from the prompt. The
    numbers and gradients are those of `InputRows`.
    """

    def __init__(self, attentions: Attentions, table: ExtraRows) -> None:
        super().__init__(table)
        self.attentions = attentions
        self._read: tuple[Tensor, int, torch.dtype, torch.device] | None = None

    @staticmethod
    def possible(backbone: PreTrainedModel) -> bool:
        """Whether every attention of the backbone is in reach, looks back, and all the way."""
        config = backbone.config.get_text_config()
        if config.is_encoder_decoder or not Attentions.reachable(backbone):
            return False
        looks_back = {m.is_causal for m in backbone.modules() if hasattr(m, "is_causal")}
        layers = getattr(config, "layer_types", None)
        window = getattr(config, "sliding_window", None)
        return looks_back == {True} and (
            set(layers) == {"full_attention"} if layers else window is None
        )

    def enter(  # noqa: D102
        self, prompts: list[Tensor], which: Sequence[int] | None, start: int
    ) -> list[Tensor]:
        (prompt,) = prompts
        weight = self.table.weight
        now = (prompt, prompt._version, weight.dtype, weight.device)
        known = self._read is not None and self.attentions.giver is self
        if known and self._read[0] is prompt and self._read[1:] == now[1:]:  # type: ignore[index]
            return [prompt[:0]]
        self._read = None
        self.attentions.give([], None)
        ids = torch.arange(self.table.size, self.table.size + len(prompt), device=prompt.device)
        self.table.rows = prompt
        try:
            with self.attentions.listening() as heard:
                self.attentions.backbone.base_model(
                    input_ids=ids[None],
                    attention_mask=torch.ones_like(ids)[None],
                    use_cache=False,
                )
        finally:
            self.table.rows = None
        self.attentions.give([(key, value) for _, key, value in heard], self)
        # Once a step in training; once and for all where nothing trains.
        if isinstance(prompt, nn.Parameter) and not torch.is_grad_enabled():
            self._read = now
        return [prompt[:0]]

    def leave(self) -> None:  # noqa: D102
        if self.attentions.giver is self:
            self.attentions.give([], None)


class RowsInEveryLayer(Form):
    """The prompt is k rows of the table, and k other rows in the input of every further layer.

    A virtual token is its row for the table and then one for each layer but the first:
    ``[token_dim + (layers - 1) * hidden]``.
    """

    takes_positions = True

    def __init__(self, backbone: PreTrainedModel, table: ExtraRows) -> None:
        self.backbone = backbone
        lists = layer_lists(backbone)
        if not lists:
            raise PtuneError(
                f"{type(backbone).__name__} cannot have a deep prompt: neither its attention nor "
                "its layers are where Transformers usually has them. Use an input prompt."
            )
        self.sizes = [table.weight.shape[1]] + [backbone.config.get_text_config().hidden_size] * (
            len(lists[0]) - 1
        )
        super().__init__(table, width=sum(self.sizes))
        self.rows: list[Tensor] = []  # of each layer, [rows, hidden]
        self.start = 0  # the row of the table that is the first of them
        self.heard: list[Tensor] | None = None
        self._hooks = [
            layer.register_forward_pre_hook(partial(self._before, i), with_kwargs=True)
            for i, layer in enumerate(lists[0])
            if i
        ]

    def enter(  # noqa: D102
        self, prompts: list[Tensor], which: Sequence[int] | None, start: int
    ) -> list[Tensor]:
        rows = torch.cat(prompts)
        self.rows, self.start = list(rows.split(self.sizes, dim=1)) if len(rows) else [], start
        return [p[:, : self.sizes[0]] for p in prompts]

    def leave(self) -> None:  # noqa: D102
        self.rows = []

    @torch.no_grad()
    def words(self, ids: Tensor) -> Tensor:  # noqa: D102
        self.rows, self.heard = [], []
        _read_words(self.backbone, ids)
        # One text: [1, seq, hidden], or [seq, 1, hidden] in XLNet.
        states = [s.flatten(0, 1)[: len(ids)] for s in self.heard]
        self.heard = None
        return torch.cat([self.table.weight[ids].detach(), *states], dim=1).float()

    def _before(
        self, layer: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        states, rest = states_of(args, kwargs)
        if self.heard is not None:
            self.heard.append(states)
        if not self.rows or self.table.index is None:
            return (states, *rest), kwargs
        rows, index = self.rows[layer], self.table.index - self.start  # [batch, seq]
        virtual = (index >= 0) & (index < len(rows))
        own = nn.functional.embedding(index.clamp(0, len(rows) - 1), rows)
        states = torch.where(virtual[..., None], own.to(states.dtype), states)
        return (states, *rest), kwargs

    def remove(self) -> None:  # noqa: D102
        super().remove()
        for hook in self._hooks:
            hook.remove()


class _Slots:
    """Which attentions of the forward pass a module does, and their keys and values.

    ALBERT calls one module for all layers; everywhere else a module has one slot, and counting
    its calls changes nothing when gradient checkpointing calls it again.
    """

    def __init__(self) -> None:
        self.numbers: list[int] = []
        # [1 or batch, heads, k, dim] each
        self.pairs: list[tuple[Tensor, Tensor] | None] = []
        self.seen: Tensor | None = None  # [batch, k]
        self.calls = 0

    def next(self) -> tuple[Tensor, Tensor] | None:
        if not self.pairs:
            return None
        pair = self.pairs[self.calls % len(self.pairs)]
        if len(self.pairs) > 1:
            self.calls += 1
        return pair


def _read_words(backbone: PreTrainedModel, ids: Tensor) -> None:
    """Let the backbone read the tokens `ids`, ``[k]``, and an end, which encoder-decoders want."""
    end = backbone.config.get_text_config().eos_token_id
    end = end[0] if isinstance(end, list) else end or 0
    text = torch.cat([ids, ids.new_tensor([end])])[None].to(backbone.device)
    read(backbone, text, torch.ones_like(text))


# Transformers looks attention functions up by name; ptune's put a prompt before the kernel's keys.

_PREFIX = "ptune_"
Heard = tuple[nn.Module, Tensor, Tensor]
_listener: list[Heard] | None = None


def _with_prompt(kernel: str) -> Callable[..., Any]:
    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **kwargs: Any,
    ) -> Any:
        if _listener is not None:
            _listener.append((module, key, value))
        slots: _Slots | None = getattr(module, "ptune_slots", None)
        if slots is not None and (pair := slots.next()) is not None:
            batch, k = key.shape[0], pair[0].shape[2]
            keys, values = (t.to(key).expand(batch, -1, -1, -1) for t in pair)
            if slots.seen is not None and attention_mask is None:
                attention_mask = key.new_zeros(batch, 1, 1, key.shape[2])
            key = torch.cat([keys, key], dim=2)  # [batch, heads, k + seq, dim]
            value = torch.cat([values, value], dim=2)
            if attention_mask is not None:
                attention_mask = _with_keys(attention_mask, k, slots.seen)
            if kwargs.get("position_bias") is not None:
                kwargs["position_bias"] = nn.functional.pad(kwargs["position_bias"], (k, 0))
        function = ALL_ATTENTION_FUNCTIONS.get_interface(kernel, eager_attention(module))
        return function(module, query, key, value, attention_mask, **kwargs)

    return attend


def _with_keys(mask: Tensor, k: int, seen: Tensor | None) -> Tensor:
    """A mask ``[batch, 1, queries, seq]`` with k keys before the text's.

    Every token sees those that are `seen`, ``[batch, k]``; ``None``: all of them.
    """
    if seen is None:
        return nn.functional.pad(mask, (k, 0), value=mask.dtype == torch.bool)
    seen = seen[:, None, None]  # [batch, 1, 1, k]
    if mask.dtype != torch.bool:
        seen = torch.where(seen, 0.0, torch.finfo(mask.dtype).min).to(mask.dtype)
    shape = torch.broadcast_shapes(mask.shape[:-1], seen.shape[:-1])
    return torch.cat([seen.expand(*shape, -1), mask.expand(*shape, -1)], dim=-1)


def _full_sdpa_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    # Without a mask PyTorch would count causality from the prompt's first key.
    return sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False})


_KERNELS = {"eager": eager_mask, FEW_PASSES: eager_mask, "sdpa": _full_sdpa_mask}
for _kernel, _mask in _KERNELS.items():
    AttentionInterface.register(_PREFIX + _kernel, _with_prompt(_kernel))
    AttentionMaskInterface.register(_PREFIX + _kernel, _mask)
