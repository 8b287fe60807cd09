"""Heads: the parameters of a backbone outside its base model. Each adapter has its own set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from ptune.errors import PtuneError
from ptune.labels import Labels
from ptune.prompts.hooks import Hooks, in_own_form
from ptune.prompts.passes import Passes


@dataclass
class Head:
    """One head for a backbone, with its labels.

    Attributes:
        parameters: The head's parameters, by their names in the backbone.
        labels: `id2label` and `problem_type`, as in the backbone's configuration.
    """

    parameters: dict[str, nn.Parameter]
    labels: dict[str, Any]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], labels: Labels, device: Any = None) -> Head:
        """A float32 copy of a head's tensors, for labels."""
        how: dict[str, Any] = {"device": device, "dtype": torch.float32, "copy": True}
        parameters = {name: nn.Parameter(t.to(**how)) for name, t in tensors.items()}
        return cls(parameters, labels_dict(labels))


class Heads:
    """Exchanges the head of a backbone.

    Args:
        backbone: Its own head becomes `original` and is never changed.
        names: Names of the head's parameters.
    """

    def __init__(self, backbone: PreTrainedModel, names: Sequence[str]) -> None:
        self.backbone = backbone
        named = dict(backbone.named_parameters())
        own = {name: named[name] for name in names}
        # A parameter may belong to several modules.
        self._places: dict[str, list[tuple[nn.Module, str]]] = {name: [] for name in own}
        for module in backbone.modules():
            for leaf, parameter in module.named_parameters(recurse=False):
                for name, mine in own.items():
                    if parameter is mine:
                        self._places[name].append((module, leaf))
        self.original = self.installed = Head(own, labels_of(backbone))
        modules = dict.fromkeys(m for places in self._places.values() for m, _ in places)
        self._hooks = [m.register_forward_pre_hook(in_own_form) for m in modules]

    @cached_property
    def reads(self) -> str | None:
        """The name of the weight of the layer that reads what is pooled, if that is one."""
        inside = {id(p) for p in self.backbone.base_model.parameters()}
        for name, places in self._places.items():
            layer, leaf = places[0]
            weight = getattr(layer, leaf)
            if leaf == "weight" and weight.dim() == 2 and id(weight) not in inside:
                return name
        return None

    def new(self, means: int = 1) -> Head:
        """A trainable float32 copy of the original head.

        Args:
            means: As for `widened`.
        """
        copies = {
            name: nn.Parameter(p.detach().clone().float())
            for name, p in self.original.parameters.items()
        }
        return self.widened(Head(copies, dict(self.original.labels)), means)

    def random(self) -> Head:
        """A head whose answers depend on all that it reads, always the same one."""
        head, generator = self.new(), torch.Generator().manual_seed(0)
        for parameter in head.parameters.values():
            values = torch.randn(parameter.shape, generator=generator)
            parameter.data = values.to(parameter.device) / parameter.shape[-1] ** 0.5
        return head

    def widened(self, head: Head, means: int) -> Head:
        """A head that reads one vector, made to read several, one after the other.

        Args:
            head: Changed in place.
            means: How many; see `Host.means_read`. What reads those after the first starts at zero.
        """
        if means > 1:
            weight = head.parameters[cast("str", self.reads)]  # [out, hidden]
            weight.data = F.pad(weight.data, (0, (means - 1) * weight.shape[1]))
        return head

    def install(self, head: Head) -> None:
        """Put a head into the backbone. The previous head keeps its current values and labels."""
        if head is self.installed:
            return
        former, self.installed = self.installed, head
        former.labels = labels_of(self.backbone)
        for name, places in self._places.items():
            module, leaf = places[0]
            current = getattr(module, leaf)
            former.parameters[name] = current  # `to` may have replaced it
            parameter = head.parameters[name]
            if parameter.device != current.device:
                parameter.data = parameter.data.to(current.device)
            for module, leaf in places:
                setattr(module, leaf, parameter)
        set_labels(self.backbone, head.labels)

    @contextmanager
    def using(self, head: Head | None) -> Iterator[None]:
        """Install a head within the context. ``None``: keep the installed one."""
        if head is None or head is self.installed:
            yield
            return
        before = self.installed
        try:
            self.install(head)
            yield
        finally:
            self.install(before)

    def remove(self) -> None:
        """Put the original head back."""
        self.install(self.original)
        for hook in self._hooks:
            hook.remove()


def labels_dict(labels: Labels) -> dict[str, Any]:
    """Labels as `id2label` and `problem_type`."""
    return {
        "id2label": dict(enumerate(labels.output_names)),
        "problem_type": labels.problem_type,
    }


def labels_of(backbone: PreTrainedModel) -> dict[str, Any]:
    """A backbone's `id2label` and `problem_type`."""
    config = backbone.config
    return {"id2label": dict(config.id2label), "problem_type": config.problem_type}


def set_labels(backbone: PreTrainedModel, labels: dict[str, Any]) -> None:
    """Set the labels that a backbone's logits stand for."""
    config = backbone.config
    config.id2label = dict(labels["id2label"])
    config.label2id = {label: i for i, label in config.id2label.items()}
    config.problem_type = labels["problem_type"]
    # Losses in Transformers read it from the module.
    if hasattr(backbone, "num_labels"):
        backbone.num_labels = config.num_labels


class HeadPerText(Hooks):
    """Gives every text of a batch its own head instead of the backbone's; see `Pass.heads`.

    With n heads, text i of the batch has head i modulo n. Heads may have different numbers of
    labels. The logits then have the width of the largest head, with zeros after a text's own.

    Raises:
        PtuneError: The head contains layers other than Linear and LayerNorm.
    """

    def __init__(self, backbone: PreTrainedModel, names: Iterable[str], passes: Passes) -> None:
        self._names: dict[nn.Module, dict[str, str]] = {}  # of each layer's parameters
        for name in names:
            path, _, parameter = name.rpartition(".")
            self._names.setdefault(backbone.get_submodule(path), {})[parameter] = name
        for layer, own in self._names.items():
            whole = own.keys() == dict(layer.named_parameters()).keys()
            if not isinstance(layer, nn.Linear | nn.LayerNorm) or not whole:
                raise PtuneError(
                    f"The head of {type(backbone).__name__} contains a {type(layer).__name__} "
                    f"({', '.join(own.values())}). Texts in one batch can have different heads "
                    "only if the heads consist of Linear and LayerNorm layers. Load the "
                    "classifiers one by one instead (ptune.load)."
                )
        before = [
            layer.register_forward_pre_hook(self._before, prepend=True) for layer in self._names
        ]
        after = [layer.register_forward_hook(self._after) for layer in self._names]
        super().__init__(passes, before + after)

    def _before(self, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        # Before a layer takes what the backbone's own head reads of it.
        if (current := self.passes.current) is not None and current.heads:
            current.head_inputs[layer] = args[0]

    def _after(self, layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        current = self.passes.current
        if current is None or not current.heads:
            return None
        heads, names = current.heads, self._names[layer]
        # Heads keep their number format when the backbone gets another one (`half()`).
        inputs = current.head_inputs.pop(layer).to(heads[0][names["weight"]].dtype)
        # [n, texts of a head, positions, in]
        grouped = inputs.reshape(inputs.shape[0], -1, inputs.shape[-1]).unflatten(
            0, (-1, len(heads))
        )
        flat = grouped.transpose(0, 1).flatten(1, 2)  # [n, texts * positions, in]
        weights = [head[names["weight"]] for head in heads]
        width = max(weight.shape[0] for weight in weights)
        result = flat.new_zeros(*flat.shape[:2], width)  # [n, texts * positions, out]
        # Stack the weights of a few heads at a time, to limit memory.
        size = max(1, _STACKED_NUMBERS // max(weight.numel() for weight in weights))
        for start in range(0, len(weights), size):
            some = slice(start, start + size)
            own = {
                parameter: stacked([head[name] for head in heads[some]])
                for parameter, name in names.items()
            }
            part = _layer_per_head(layer, flat[some], **own)
            result[some, :, : part.shape[2]] = part
        result = result.unflatten(1, (grouped.shape[0], -1)).transpose(0, 1)
        return result.reshape(*inputs.shape[:-1], width)


_STACKED_NUMBERS = 2**23


def _layer_per_head(
    layer: nn.Module, inputs: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    """A layer's output for ``[heads, positions, in]`` with parameters ``[heads, …]``."""
    if isinstance(layer, nn.LayerNorm):
        normal = F.layer_norm(inputs, layer.normalized_shape, eps=layer.eps)
        result = normal * weight[:, None]
    else:
        result = inputs[..., : weight.shape[2]] @ weight.mT  # [heads, positions, out]
    return result if bias is None else result + bias[:, None]


def stacked(tensors: list[Tensor]) -> Tensor:
    """Stack tensors, padding each with zeros at its end to the largest size of each dimension."""
    if len({t.shape for t in tensors}) == 1:
        return torch.stack(tensors)
    largest = [max(sizes) for sizes in zip(*(t.shape for t in tensors), strict=True)]

    def padded(tensor: Tensor) -> Tensor:
        missing = [n - size for n, size in zip(largest, tensor.shape, strict=True)]
        return F.pad(tensor, [n for last in reversed(missing) for n in (0, last)])

    return torch.stack(list(map(padded, tensors)))
