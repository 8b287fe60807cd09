"""The order of the examples in an epoch, which a run that is resumed within it repeats."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Sampler

# In a checkpoint within an epoch: the state of torch's generator that its order was drawn from.
ORDER_NAME = "order.pt"


class EpochOrder(Sampler[int]):
    """Yields the numbers of the examples as another sampler does, and can do so again.

    `Trainer` draws the order of an epoch from torch's generator, and a checkpoint has the state of
    that generator at its step. Within an epoch, another order would follow from it: the epoch would
    have some examples twice, and others not at all.

    Args:
        order: The other sampler.
        again: What `saved_order` returns; the first epoch gets this order.
    """

    def __init__(self, order: Sampler[int], again: Tensor | None = None) -> None:
        self.order, self.again = order, again
        self.drawn_from: Tensor | None = None

    def __len__(self) -> int:
        return len(self.order)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[int]:
        if self.again is not None:
            torch.set_rng_state(self.again)
            self.again = None
        self.drawn_from = torch.get_rng_state()
        return iter(self.order)

    def save(self, checkpoint: Path) -> None:
        """Write what `saved_order` reads."""
        if self.drawn_from is not None:
            checkpoint.mkdir(parents=True, exist_ok=True)
            torch.save(self.drawn_from, checkpoint / ORDER_NAME)


def saved_order(checkpoint: Path) -> Tensor | None:
    """What the order of an interrupted epoch was drawn from; ``None``: no epoch was interrupted."""
    try:
        found = torch.load(checkpoint / ORDER_NAME, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError):
        return None
    return found if isinstance(found, Tensor) else None
