"""What is hung on a frozen backbone, and taken off again.

Forward hooks only: no class or method of the backbone is replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from ptune.backbones.loading import are_close, layer_lists, read, two_texts, weight_of
from ptune.errors import PtuneError


class ExtraRows:
    """Extra rows of an embedding table of V rows: id V + i reads `rows[i]`.

    The ids past the last extra row read the frozen table's own rows `disguised`, in their order.
    They stand for tokens of a text that the backbone would take for something else by their ids:
    a pad token for padding.
    """

    def __init__(self, backbone: PreTrainedModel) -> None:
        self.weight = weight = weight_of(backbone.get_input_embeddings())  # [V, token_dim]
        self.size = weight.shape[0]  # V
        self.rows: Tensor | None = None  # [extra, token_dim] while the backbone runs
        self.disguised: tuple[int, ...] = ()
        self._ids: Tensor | None = None
        # Of the last forward pass: which extra row stands where, below zero where none does.
        self.index: Tensor | None = None  # [batch, seq]
        # Encoder and decoder may have a module each for one table.
        tables = [m for m in backbone.modules() if getattr(m, "weight", None) is weight]
        self._hooks = [
            *(table.register_forward_pre_hook(self._before) for table in tables),
            *(table.register_forward_hook(self._after) for table in tables),
        ]

    def remove(self) -> None:
        """Take the rows off the table again."""
        for hook in self._hooks:
            hook.remove()

    def _before(self, table: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if self.rows is None:
            return None
        self._ids, *rest = ids, *_ = args
        shown = torch.where(ids < self.size, ids, 0)
        for id_, own in enumerate(self.disguised, start=self.size + self.rows.shape[0]):
            shown = torch.where(ids == id_, own, shown)
        return shown, *rest

    def _after(self, table: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        if self.rows is None or self._ids is None:
            return None
        if not isinstance(output, Tensor):
            raise PtuneError(
                f"The token embedding {type(table).__name__} gives a {type(output).__name__} and "
                "not a tensor, so that this backbone cannot be p-tuned. Choose another one."
            )
        self.index = index = self._ids - self.size
        self._ids = None
        if not len(self.rows):
            return None
        extra = (index >= 0) & (index < self.rows.shape[0])
        rows = F.embedding(index.clamp(0, self.rows.shape[0] - 1), self.rows)
        return torch.where(extra[..., None], rows.to(output.dtype), output)  # [batch, seq, dim]


class MeanOverText:
    """Lets the head read the mean of some of the last hidden states, whichever one it reads.

    Of the text's that is what sentence encoders were trained for. The mean stands at every
    position, and in place of the base model's own pooled vector.
    """

    def __init__(self, base_model: nn.Module) -> None:
        self.mask: Tensor | None = None  # [batch, seq], true at what the mean is over
        self.rows: Tensor | None = None  # [batch, 1], true where it is wanted; None: everywhere
        self._hook = base_model.register_forward_hook(self._after)

    def remove(self) -> None:
        """Let the head read what it used to."""
        self._hook.remove()

    def _after(self, base_model: nn.Module, args: Any, output: ModelOutput) -> ModelOutput | None:
        if self.mask is None:
            return None
        states = output.last_hidden_state  # [batch, seq, hidden]
        weights = self.mask[..., None].to(states.dtype)
        self.mask = None
        mean = (states * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1)  # [batch, hidden]
        if self.rows is None:
            output.last_hidden_state = mean[:, None].expand_as(states)
        else:
            output.last_hidden_state = torch.where(self.rows[..., None], mean[:, None], states)
        if "pooler_output" in output:
            if self.rows is not None:
                mean = torch.where(self.rows, mean, output.pooler_output)
            output.pooler_output = mean
        return output


class OnlyWhereRead:
    """Lets the end of the last layer work only at the positions that are read behind it.

    What follows a layer's attention treats every position by itself. Of what the last layer gives
    a head reads the first position, or the last one of each text, or the mean over some: the
    others are left out of the work and come out as zeros.

    Families build that end in their own ways, and their heads read what they do. Both are found
    out by letting the backbone read two short texts, with numbers that are none (NaN) in the
    place of what is left out. Where these reach the logits, or the rest is not what it was,
    nothing is left out.
    """

    def __init__(self, backbone: PreTrainedModel) -> None:
        self.positions: Tensor | None = None  # [read], of batch * seq, while the backbone runs
        self.head: Callable[[Tensor], Tensor] | None = None  # which ones the head reads
        self._left_out = 0.0
        self._shape = torch.Size()  # of what came in, but for its last dimension
        self._given = torch.empty(0)  # [batch * seq, width], while it is found out
        self._hooks: list[Any] = []
        for start, end in _ends_of_last_layer(backbone):
            self._hooks = [
                start.register_forward_pre_hook(self._before),
                end.register_forward_hook(self._after),
            ]
            self.head = self._what_is_read(backbone)
            if self.head is not None:
                return
            self.remove()

    def remove(self) -> None:
        """Let the last layer work everywhere."""
        for hook in self._hooks:
            hook.remove()

    def _what_is_read(self, backbone: PreTrainedModel) -> Callable[[Tensor], Tensor] | None:
        ids, mask = two_texts(backbone)
        try:
            read(backbone, ids, mask)
            usual = self._given
            for which in (first_of_each, last_of_each):
                self.positions, self._left_out = flat(which(mask)), torch.nan
                logits = read(backbone, ids, mask).logits
                given, wanted = self._given[self.positions], usual[self.positions]
                if are_close(given, wanted) and logits.isfinite().all():
                    return which
        except (RuntimeError, TypeError, ValueError, IndexError):
            pass  # nothing that single positions could be taken out of
        finally:
            self.positions, self._left_out, self._given = None, 0.0, torch.empty(0)
        return None

    def _before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self.positions is None:
            return None
        self._shape = shape = args[0].shape[:-1]  # [batch, seq]; OPT: [batch * seq]

        def chosen(states: Tensor, positions: Tensor = self.positions) -> Tensor:
            some = states.flatten(0, -2).index_select(0, positions)  # [read, width]
            return some if len(shape) == 1 else some[None]

        alike = [isinstance(a, Tensor) and a.shape[:-1] == shape for a in args]
        return tuple(chosen(a) if yes else a for a, yes in zip(args, alike, strict=True))

    def _after(self, module: nn.Module, args: Any, output: Any) -> Any:
        states, *rest = output if isinstance(output, tuple) else (output,)
        width = states.shape[-1]
        if self.positions is None:
            if self.head is None:
                self._given = states.reshape(-1, width)
            return None
        everywhere = states.new_full((self._shape.numel(), width), self._left_out)
        everywhere.index_copy_(0, self.positions, states.reshape(-1, width))
        if self.head is None:
            self._given = everywhere
        everywhere = everywhere.view(*self._shape, width)
        return (everywhere, *rest) if isinstance(output, tuple) else everywhere


def first_of_each(mask: Tensor) -> Tensor:
    """The first position of each row of a mask ``[batch, seq]``, as a mask."""
    return torch.arange(mask.shape[1], device=mask.device).expand_as(mask) == 0


def last_of_each(mask: Tensor) -> Tensor:
    """The last position of each row of a mask ``[batch, seq]`` where it is set, as a mask."""
    columns = torch.arange(mask.shape[1], device=mask.device)
    return columns == (columns * (mask != 0)).max(dim=1, keepdim=True).values


def flat(mask: Tensor) -> Tensor:
    """Where a mask ``[batch, seq]`` is set, as indices of batch * seq."""
    return mask.flatten().nonzero()[:, 0]


def _ends_of_last_layer(backbone: PreTrainedModel) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Modules between which the last layer may treat every position by itself."""
    lists = layer_lists(backbone)
    if backbone.config.is_encoder_decoder or not lists:
        return
    layer: nn.Module = lists[-1][-1]
    output = getattr(getattr(layer, "attention", None), "output", None)
    if isinstance(output, nn.Module):  # BERT and its kin
        yield output, layer
    for first, last in (("mlp", "mlp"), ("ffn", "ffn"), ("fc1", "fc2")):
        start, end = getattr(layer, first, None), getattr(layer, last, None)
        if isinstance(start, nn.Module) and isinstance(end, nn.Module):
            yield start, end


class WithoutDropout:
    """Checkpointing for a layer that is frozen: it has to be called in training, but not train.

    Transformers checkpoints a layer only where `layer.training` is set, and that flag would turn
    the layer's own dropout on.
    """

    def __init__(self, checkpoint: Callable[..., Any], *, drops_out: bool) -> None:
        self.checkpoint = checkpoint
        self.drops_out = drops_out

    def __call__(self, function: partial[Any], *args: Any) -> Any:
        """Checkpoint `function`, the layer's forward pass bound to the layer."""
        layer = function.args[0]

        def run(*inputs: Any) -> Any:
            layer.training = self.drops_out
            try:
                return function(*inputs)
            finally:
                layer.training = True

        return self.checkpoint(run, *args)


def states_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, list[Any]]:
    """A layer's hidden states, by place or taken out of `kwargs`, and what else has a place."""
    states, *rest = args if args else (kwargs.pop("hidden_states"),)
    return states, rest


def in_own_dtype(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Forward pre-hook: a float32 layer of the head behind a backbone in half precision."""
    dtype = next(module.parameters(recurse=False)).dtype
    return tuple(
        a.to(dtype) if isinstance(a, Tensor) and a.is_floating_point() else a for a in args
    )


class HeadPerRow:
    """Gives every row of a batch a head of its own, in place of the backbone's.

    Heads may have different numbers of labels: the logits of all are as wide as those of the
    largest, and zero behind a row's own.
    """

    def __init__(self, backbone: PreTrainedModel, names: Iterable[str]) -> None:
        # Of each row, or one for all, while the backbone runs.
        self.heads: list[dict[str, Tensor]] = []
        self._names: dict[nn.Module, dict[str, str]] = {}  # of each layer's parameters
        for name in names:
            path, _, parameter = name.rpartition(".")
            self._names.setdefault(backbone.get_submodule(path), {})[parameter] = name
        for layer, own in self._names.items():
            whole = own.keys() == dict(layer.named_parameters()).keys()
            if not isinstance(layer, nn.Linear | nn.LayerNorm) or not whole:
                raise PtuneError(
                    f"The head of {type(backbone).__name__} has parameters of a "
                    f"{type(layer).__name__} ({', '.join(own.values())}); rows of one batch can "
                    "have heads of their own where these are made of Linear and LayerNorm. Load "
                    "the classifiers one by one instead (ptune.load)."
                )
        for layer in self._names:
            layer.register_forward_hook(self._after)

    def _after(self, layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if not self.heads:
            return None
        inputs, names = args[0], self._names[layer]
        flat = inputs.reshape(inputs.shape[0], -1, inputs.shape[-1])  # [batch, positions, in]
        weights = [head[names["weight"]] for head in self.heads]
        width = max(weight.shape[0] for weight in weights)
        result = flat.new_zeros(*flat.shape[:2], width)  # [batch, positions, out]
        # So many heads at a time that their weights side by side take some megabytes at most.
        size = max(1, _NUMBERS_AT_A_TIME // max(weight.numel() for weight in weights))
        for start in range(0, len(weights), size):
            some = slice(start, start + size)
            own = {
                parameter: side_by_side([head[name] for head in self.heads[some]])
                for parameter, name in names.items()
            }
            rows = some if len(weights) > 1 else slice(None)
            part = _layer_per_row(layer, flat[rows], **own)
            result[rows, :, : part.shape[2]] = part
        return result.reshape(*inputs.shape[:-1], width)


_NUMBERS_AT_A_TIME = 2**23


def _layer_per_row(
    layer: nn.Module, rows: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    """What a layer makes of ``[rows, positions, in]`` with parameters ``[rows or 1, …]``."""
    if isinstance(layer, nn.LayerNorm):
        normal = F.layer_norm(rows, layer.normalized_shape, eps=layer.eps)
        result = normal * weight[:, None]
    else:
        result = rows @ weight.mT  # [rows, positions, out]
    return result if bias is None else result + bias[:, None]


def side_by_side(tensors: list[Tensor]) -> Tensor:
    """Tensors ``[n, …]`` as one, ``[tensors, longest n, …]``, with zeros behind the shorter."""
    if len({t.shape for t in tensors}) == 1:
        return torch.stack(tensors)
    return nn.utils.rnn.pad_sequence(tensors, batch_first=True)
