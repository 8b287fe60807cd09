"""Optimizer steps relative to the scale of what they change.

Adam's step has the size of its learning rate, whatever the gradient is. A step that suits word
embeddings of 0.05 is 40 times too small for keys of 2, and one that suits the head of one backbone
is too large for another's with larger features. `ScaledSteps` multiplies every step, so that one
learning rate fits all of them. Parameters keep their meaning: nothing has to be undone later.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ptune.model import PromptModel
from ptune.training.features import Features


class ScaledSteps:
    """Changes the steps of an optimizer, whichever it is.

    Args:
        optimizer: The optimizer. Its steps are changed from now on.
        scales: Factors for the steps of parameters: one for each column.
        features: What the head reads. Its last layer trains as if it read them standardised, and
            keeps the weight and bias that read them as they are. ``None``: it is left alone.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        scales: Mapping[nn.Parameter, Tensor],
        features: Features | None = None,
    ) -> None:
        self.scales, self.features = dict(scales), features
        self._before: dict[nn.Parameter, Tensor] = {}
        optimizer.register_step_pre_hook(self._prepare)
        optimizer.register_step_post_hook(self._scale)

    @torch.no_grad()
    def _prepare(self, *_: Any) -> None:
        changed = [*self.scales, *([self.features.weight] if self.features else [])]
        self._before = {p: p.detach().clone() for p in changed if p.grad is not None}
        if self.features is not None and self.features.weight in self._before:
            gradient = self.features.weight.grad
            assert gradient is not None
            gradient.copy_(self.features.gradient(gradient))

    @torch.no_grad()
    def _scale(self, *_: Any) -> None:
        for parameter, before in self._before.items():
            step = parameter - before
            if self.features is not None and parameter is self.features.weight:
                step = self.features.step(step)
                if self.features.bias is not None:
                    self.features.bias.sub_(step @ self.features.mean)
            else:
                step = step * self.scales[parameter]
            parameter.copy_(before + step)
        self._before = {}


def prompt_scales(model: PromptModel) -> dict[nn.Parameter, Tensor]:
    """The root mean square of each part of a prompt, such as the keys of one layer.

    A part that is zero has the scale 1.
    """
    encoder, mechanism = model.prompt_encoder, model.state.mechanism
    scales: dict[nn.Parameter, Tensor] = {}
    for parameter in encoder.parameters():
        parts = [parameter.shape[-1]]
        if parameter is encoder.embedding.weight and parameter.shape[1] == mechanism.width:
            parts = mechanism.parts
        columns = [
            part.pow(2).mean().sqrt().expand(part.shape[-1])
            for part in parameter.detach().split(parts, dim=-1)
        ]
        scale = torch.cat(columns)
        scales[parameter] = torch.where(scale > 0, scale, 1.0)
    return scales
