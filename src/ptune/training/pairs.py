"""Training on few examples: the prompt learns which texts belong together, and no head is trained.

A head that is fitted to few examples gets all of them right at once, so its loss has nothing left
to teach the prompt. The pairs of examples are many more. SetFit (arXiv:2209.11055) trains whole
encoders on them; here they train a prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import TrainerCallback

from ptune.data.dataset import WEIGHT
from ptune.training.features import HeadInput

# A cosine of 1 makes a text more likely than one of 0 by exp(1 / TEMPERATURE).
TEMPERATURE = 0.1


def pair_loss(features: Tensor, labels: Tensor) -> Tensor:
    """The supervised contrastive loss (arXiv:2004.11362) of a batch.

    Args:
        features: What the head reads, ``[texts, width]``.
        labels: The label of each text, ``[texts]``.

    Returns:
        For each text, how unlikely the others with its label are if similar ones are likely. The
        mean over the texts that share their label with another one; 0 if none does.
    """
    unit = F.normalize(features, dim=1)
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    likely = (unit @ unit.T / TEMPERATURE).masked_fill(itself, -torch.inf).log_softmax(dim=1)
    same = (labels[:, None] == labels) & ~itself
    others = same.sum(dim=1)
    losses = -likely.masked_fill(~same, 0).sum(dim=1) / others.clamp_min(1)
    return losses.sum() / (others > 0).sum().clamp_min(1)


class TrainingInPairs(TrainerCallback):
    """Gives the loss of a batch, and fits the head before each evaluation and checkpoint.

    Args:
        read: Reads what the head reads.
        fit: Fits the head to what it reads now.
    """

    def __init__(self, read: HeadInput, fit: Callable[[], None]) -> None:
        self.read, self.fit = read, fit
        self._fitted_at: int | None = None  # the step

    def loss(self, inputs: dict[str, Any]) -> Tensor:
        """The loss of a batch of training texts."""
        inputs.pop(WEIGHT, None)
        labels = inputs.pop("labels")
        return pair_loss(self.read(inputs), labels)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Fit the head if the model is used or saved now."""
        if control.should_evaluate or control.should_save:
            self._fit_at(state.global_step)

    on_epoch_end = on_step_end

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Fit the head for the last prompt. The best one was saved with its head."""
        self._fit_at(state.global_step)

    def _fit_at(self, step: int) -> None:
        if step != self._fitted_at:
            self.fit()
            self._fitted_at = step
