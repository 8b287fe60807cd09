"""One forward pass: all of its state in one object, which no other thread can see.

Hooks on a backbone read `Passes.current`. It is set only while a thread holds the lock, so two
threads that call one backbone take turns, one forward pass at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ptune import compat
from ptune.backbones.cpu import is_traced

KeyValue = tuple[Tensor, Tensor]


@dataclass
class Pass:
    """The complete state of one forward pass over a backbone.

    Attributes:
        prompt_embeddings: ``[n, token_dim]``: token id V + i reads row i of these.
        aliases: Token id V + n + j reads the embedding of token `aliases[j]`. They stand for
            tokens of a text that the backbone would mistake for padding or for its end.
        token_ids: The ids that the embedding layer was called with.
        virtual: ``[batch, seq]``: which prompt embedding is where; negative where none is.
        key_values: For each attention, keys and values ``[1 or batch, heads, k, head_dim]`` that
            come before the text's own.
        key_mask: ``[batch, k]``, true where a text sees a key; ``None``: everywhere.
        calls: How often each attention module was called, where one serves several layers.
        layer_embeddings: For each layer, ``[n, hidden]``, in place of its input at virtual tokens.
        layer_start: Which prompt embedding is the first of these.
        mean_mask: ``[batch, seq]``, true at the positions whose mean the head reads.
        mean_rows: ``[batch, 1]``, true for texts whose mean is read; ``None``: all of them.
        positions: ``[kept]``, of batch * seq: what the end of the last layer computes.
        kept_shape: The shape that `positions` were taken out of.
        heads: Head parameters by name, one set for each text or one for all. Empty: the
            backbone's own.
        heard: Receives the keys and values of every attention, in order.
        heard_states: Receives the input of every layer but the first.
    """

    prompt_embeddings: Tensor | None = None
    aliases: tuple[int, ...] = ()
    token_ids: Tensor | None = None
    virtual: Tensor | None = None
    key_values: Sequence[KeyValue] = ()
    key_mask: Tensor | None = None
    calls: dict[nn.Module, int] = field(default_factory=dict)
    layer_embeddings: Sequence[Tensor] = ()
    layer_start: int = 0
    mean_mask: Tensor | None = None
    mean_rows: Tensor | None = None
    positions: Tensor | None = None
    kept_shape: torch.Size | None = None
    heads: Sequence[dict[str, Tensor]] = ()
    heard: list[KeyValue] | None = None
    heard_states: list[Tensor] | None = None


class Passes:
    """The forward pass that runs on a backbone now, if one does.

    Copies and pickles start without one.
    """

    def __init__(self) -> None:
        self.current: Pass | None = None
        self.lock = compat.ForkLock(level=2)

    @contextmanager
    def running(self, current: Pass | None) -> Iterator[None]:
        """Make a pass the current one. Passes of one thread may be nested."""
        with nullcontext() if is_traced() else self.lock:
            before = self.current
            try:
                self.current = current
                yield
            finally:
                self.current = before

    def __reduce__(self) -> tuple[Any, ...]:
        return Passes, ()
