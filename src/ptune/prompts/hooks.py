"""Forward hooks that are attached to a frozen backbone.

No method of the backbone is replaced. Hooks keep no state: they read the current `Pass`, and do
nothing if there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from ptune import compat
from ptune.backbones.architectures import (
    Architecture,
    LastLayerEnd,
    embedding_weight,
    keep_positions,
    put_back,
)
from ptune.errors import PtuneError
from ptune.prompts.passes import Passes


class Hooks:
    """Hooks that read the current `Pass`, until `remove`."""

    def __init__(self, passes: Passes, hooks: Iterable[RemovableHandle]) -> None:
        self.passes, self._hooks = passes, list(hooks)

    def remove(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()


class VirtualTokens(Hooks):
    """Extends an embedding weight of V rows: the embedding of token id V + i is prompt embedding i.

    See `Pass.prompt_embeddings` and `Pass.aliases`.
    """

    def __init__(self, backbone: PreTrainedModel, passes: Passes) -> None:
        self.weight = weight = embedding_weight(backbone)  # [V, token_dim]
        self._module: Any = backbone.get_input_embeddings()
        self.vocab_rows = weight.shape[0]
        # Encoder and decoder may each have a module for the same weight.
        modules = [m for m in backbone.modules() if getattr(m, "weight", None) is weight]
        before = [module.register_forward_pre_hook(self._before) for module in modules]
        after = [module.register_forward_hook(self._after) for module in modules]
        super().__init__(passes, before + after)

    def of_words(self, ids: Tensor) -> Tensor:
        """The embeddings ``[k, token_dim]`` of tokens, float32; Gemma scales its weight."""
        with torch.no_grad():
            return self._module(ids.to(self.weight.device)).float()

    def _before(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        current = self.passes.current
        if current is None or current.prompt_embeddings is None:
            return None
        ids, *rest = args
        current.token_ids = ids
        known = torch.where(ids < self.vocab_rows, ids, 0)
        first = self.vocab_rows + current.prompt_embeddings.shape[0]
        for alias, token in enumerate(current.aliases, start=first):
            known = torch.where(ids == alias, token, known)
        return known, *rest

    def _after(self, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        current = self.passes.current
        if current is None or current.prompt_embeddings is None or current.token_ids is None:
            return None
        if not isinstance(output, Tensor):
            raise PtuneError(
                f"The token embedding {type(module).__name__} returns a {type(output).__name__} "
                "instead of a tensor, so this backbone cannot be p-tuned. Choose another one."
            )
        prompt = current.prompt_embeddings  # [n, token_dim]
        current.virtual = virtual = current.token_ids - self.vocab_rows
        current.token_ids = None
        return _replaced(output, virtual, prompt) if len(prompt) else None


def _replaced(states: Tensor, index: Tensor, rows: Tensor) -> Tensor:
    """States ``[batch, seq, width]``, in which row i takes the places with the index i.

    Args:
        states: The states.
        index: ``[batch, seq]``; below 0 or above n - 1 where a state stays.
        rows: ``[n, width]``.
    """
    is_replaced = (index >= 0) & (index < len(rows))
    found = F.embedding(index.clamp(0, len(rows) - 1), rows)  # [batch, seq, width]
    return torch.where(is_replaced[..., None], found.to(states.dtype), states)


class MeanPooling(Hooks):
    """Makes the head read the mean over some of the last hidden states.

    Sentence encoders were trained to be read this way. The mean replaces the hidden state at every
    position and the base model's pooled vector, so it does not matter which one the head reads.
    See `Pass.mean_mask`. With `Pass.earlier_layers`, the means in earlier layers follow that of the
    last. With `Pass.second_mask`, the differences within pairs come after these, and with
    `Pass.text_means`, all that was kept of a reader's text. A head that reads only the first mean
    takes the first numbers (`in_own_form`).
    """

    def __init__(self, backbone: PreTrainedModel, own: Architecture, passes: Passes) -> None:
        last = own.layers[len(own.layers) - own.layers_read + 1 :]
        hooks = [
            backbone.get_submodule(name).register_forward_pre_hook(
                partial(self._before, number), with_kwargs=True
            )
            for number, name in enumerate(reversed(last))
        ]
        after = backbone.base_model.register_forward_hook(self._after)
        super().__init__(passes, [*hooks, after])

    def _before(
        self, number: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        current = self.passes.current
        if current is not None and number < current.earlier_layers:
            states = args[0] if args else kwargs["hidden_states"]
            if current.row is not None:
                states = states[0][current.row.numbers]  # [batch, seq, hidden]
            current.layer_states[number] = states

    def _after(self, base_model: nn.Module, args: Any, output: ModelOutput) -> ModelOutput | None:
        current = self.passes.current
        if current is None or current.mean_mask is None:
            return None
        states, texts = output.last_hidden_state, current.mean_texts  # [batch, seq, hidden]
        layers = [states, *(current.layer_states[i] for i in range(current.earlier_layers))]
        means = _means(layers, current.mean_mask)
        if (second := current.second_mask) is not None:
            both = (_means(layers, current.mean_mask & own) for own in (~second, second))
            means += [(one - other).abs() for one, other in zip(*both, strict=True)]
        if current.text_means is not None:
            means.append(current.text_means.to(states.dtype))
        mean = torch.cat(means, dim=1)  # [batch, hidden * means]
        added = mean.shape[1] - states.shape[2]
        if texts is None:
            output.last_hidden_state = mean[:, None].expand(-1, states.shape[1], -1)
        else:
            states = F.pad(states, (0, added))
            output.last_hidden_state = torch.where(texts[..., None], mean[:, None], states)
        if "pooler_output" in output:
            if texts is not None:
                mean = torch.where(texts, mean, F.pad(output.pooler_output, (0, added)))
            output.pooler_output = mean
        return output


def _means(states: Sequence[Tensor], mask: Tensor) -> list[Tensor]:
    """The means of states ``[batch, seq, hidden]`` over some positions; 0 where there is none."""
    weights = mask[..., None].to(states[0].dtype)
    count = weights.sum(dim=1).clamp_min(1)
    return [(s * weights).sum(dim=1) / count for s in states]


class OnlyPositionsRead(Hooks):
    """Computes the end of the last layer only at the positions that the head reads.

    These are the first position, the last one of each text, or those whose mean is read. The
    output is zero at all other positions. See `Pass.positions`.
    """

    def __init__(self, backbone: PreTrainedModel, end: LastLayerEnd, passes: Passes) -> None:
        start, last = backbone.get_submodule(end.start), backbone.get_submodule(end.end)
        before = start.register_forward_pre_hook(self._before)
        super().__init__(passes, [before, last.register_forward_hook(self._after)])

    def _before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        current = self.passes.current
        if current is None or current.positions is None:
            return None
        positions, row = current.positions, current.row
        if row is not None:
            positions = row.numbers.flatten()[positions]
        args, shape = keep_positions(args, positions)
        current.kept_shape = shape if row is None else row.shape
        return args

    def _after(self, module: nn.Module, args: Any, output: Any) -> Any:
        current = self.passes.current
        if current is None or current.positions is None or current.kept_shape is None:
            return None
        return put_back(output, current.positions, current.kept_shape, 0.0)


def _before_later_layers(
    backbone: PreTrainedModel, layers: Sequence[str], hook: Callable[..., Any]
) -> list[RemovableHandle]:
    """Have `hook` called before every layer but the first, with its number counted from there."""
    modules = map(backbone.get_submodule, layers[1:])
    return [
        module.register_forward_pre_hook(partial(hook, i), with_kwargs=True)
        for i, module in enumerate(modules)
    ]


class LayerInputs(Hooks):
    """Replaces the input of every layer but the first at the positions of virtual tokens.

    See `Pass.layer_embeddings`. `Pass.captured_states` collects the inputs before replacement.
    """

    def __init__(self, backbone: PreTrainedModel, layers: Sequence[str], passes: Passes) -> None:
        super().__init__(passes, _before_later_layers(backbone, layers, self._before))

    def _before(
        self, number: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        current = self.passes.current
        if current is None or not (current.layer_embeddings or current.captured_states is not None):
            return None
        states, *rest = args if args else (kwargs.pop("hidden_states"),)
        if current.captured_states is not None:
            current.captured_states.append(states)
        if current.layer_embeddings and current.virtual is not None:
            index = current.virtual - current.layer_start
            states = _replaced(states, index, current.layer_embeddings[number])
        return (states, *rest), kwargs


class ReaderStates(Hooks):
    """Changes the input of every layer but the first while readers pass through the backbone.

    See `Pass.reader_vectors`, `Pass.reader_low_rank` and `Pass.reader_positions`.
    """

    def __init__(self, backbone: PreTrainedModel, layers: Sequence[str], passes: Passes) -> None:
        hooks = _before_later_layers(backbone, layers, self._before)
        # Not all classifiers hand `position_ids` on to their base model.
        place = backbone.base_model.register_forward_pre_hook(self._place, with_kwargs=True)
        super().__init__(passes, [*hooks, place])

    def _place(self, base_model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        current = self.passes.current
        if current is None or current.reader_positions is None:
            return None
        return args, {**kwargs, "position_ids": current.reader_positions}

    def _before(
        self, number: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        current = self.passes.current
        if current is None or not current.reader_vectors or current.virtual is None:
            return None
        states, *rest = args if args else (kwargs.pop("hidden_states"),)
        vectors = current.reader_vectors[number]  # [n, hidden]
        change = F.embedding(current.virtual.clamp(0, len(vectors) - 1), vectors)
        if current.reader_low_rank:
            down, up = current.reader_low_rank[number]  # [n, rank, hidden]
            normal = F.rms_norm(states.to(down.dtype), states.shape[-1:])  # [batch, k, hidden]
            normal = normal.unflatten(0, (-1, len(down)))
            narrow = torch.einsum("bnkh,nrh->bnkr", normal, down)
            change = change + torch.einsum("bnkr,nrh->bnkh", narrow, up).flatten(0, 1)
        return (states + change.to(states.dtype), *rest), kwargs


class FrozenCheckpoint:
    """Gradient checkpointing for a frozen layer, without its dropout.

    Transformers checkpoints a layer only if `layer.training` is set, which also turns on the
    layer's dropout. The layer is recomputed in the backward pass, possibly in another thread, with
    the state of its own forward pass.
    """

    def __init__(self, checkpoint: Callable[..., Any], passes: Passes, *, drops_out: bool) -> None:
        self.checkpoint, self.passes, self.drops_out = checkpoint, passes, drops_out

    def __call__(self, function: partial[Any], *args: Any) -> Any:
        """Checkpoint `function`, which calls the layer."""
        layer, current = compat.recomputed_layer(function), self.passes.current

        def run(*inputs: Any) -> Any:
            with self.passes.running(current):
                layer.training = self.drops_out
                try:
                    return function(*inputs)
                finally:
                    layer.training = True

        return self.checkpoint(run, *args)


def in_own_form(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Forward pre-hook that gives a layer of a head its inputs in the layer's dtype and width.

    A head is float32, also after a backbone in half precision. In a batch for heads of different
    widths, a narrow one reads the first numbers. Outside of a pass, a wide one reads zeros for
    the numbers that are missing.
    """
    weight = next(module.parameters(recurse=False))  # or the bias, where that is all there is
    width = weight.shape[1] if weight.dim() == 2 else None

    def form(value: Any) -> Any:
        if not (isinstance(value, Tensor) and value.is_floating_point()):
            return value
        if width is not None and value.shape[-1] != width:
            value = F.pad(value, (0, width - value.shape[-1]))
        return value.to(weight.dtype)

    return tuple(map(form, args))
