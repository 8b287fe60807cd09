"""One forward pass: all of its state in one object that no other thread can see.

Hooks on a backbone read `Passes.current`. It is set only while a thread holds the lock, so threads
that call the same backbone take turns, one forward pass at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ptune import compat
from ptune.prompts.keys import AddedKeys, KeyValue
from ptune.prompts.layout import OneRow


@dataclass
class Pass:
    """The complete state of one forward pass over a backbone.

    Attributes:
        prompt_embeddings: ``[n, token_dim]``: the embedding of token id V + i is row i.
        aliases: The embedding of token id V + n + j is that of token `aliases[j]`. Aliases replace
            tokens of a text that the backbone would mistake for padding or for the text's end.
        token_ids: The ids that the embedding layer was called with.
        virtual: ``[batch, seq]``: the index of the prompt embedding at each position; negative
            where there is none.
        key_values: For each attention, keys and values ``[1 or batch, heads, k, head_dim]`` that
            come before those of the text.
        key_mask: ``[batch, k]``, true where a text attends to a key; ``None``: everywhere.
        key_distances: ``[batch, queries, k]``: how many positions each key is before each query,
            for attention that is limited to a window; ``None``: not limited.
        mask: What the last attention had: the backbone's mask, the limit on distances, the number
            of keys without `key_values`, and the mask with them.
        prompts_per_text: How many readers share the keys and values of a text. The batch has a row
            for each reader, those of a text one after the other.
        calls: How often each attention module was called, where one serves several layers.
        layer_embeddings: For each layer but the first, ``[n, hidden]``: replaces its input at
            virtual tokens.
        layer_start: Index of the prompt embedding that the first of these belongs to.
        reader_vectors: For each layer but the first, ``[n, hidden]``: added to its input at virtual
            tokens.
        reader_low_rank: For each layer but the first, two matrices ``[n, rank, hidden]``,
            where row i of the batch has number i modulo n.
        added_keys: For each of `key_values`, what readers add to the keys; ``None``: nothing.
            Empty: nothing anywhere.
        reader_positions: ``[batch, seq]``: the positions of readers, if they follow a text.
        mean_mask: ``[batch, seq]``, true at the positions whose mean the head reads.
        mean_texts: ``[batch, 1]``, true for texts whose mean is read; ``None``: all of them.
        earlier_layers: How many layers before the last have their mean read, too.
        second_mask: ``[batch, seq]``, true at the second text of a pair, if heads read how much the
            two differ; ``None``: they do not.
        text_means: What the head of a reader reads of its text, ``[batch, width]``.
        layer_states: Their states ``[batch, seq, hidden]``, by their number counted from the last.
        row: The batch as one row of tokens; ``None``: a row for each text.
        positions: ``[kept]``, indices of batch * seq that the end of the last layer computes.
        kept_shape: The shape from which `positions` were selected.
        heads: Head parameters by name. With n sets, text i of the batch has set i modulo n. Empty:
            the backbone's own.
        head_inputs: What the layers of the head read, while `heads` are many.
        captured_key_values: Collects the keys and values of every attention, in order.
        captured_states: Collects the input of every layer but the first.
    """

    prompt_embeddings: Tensor | None = None
    aliases: tuple[int, ...] = ()
    token_ids: Tensor | None = None
    virtual: Tensor | None = None
    key_values: Sequence[KeyValue] = ()
    key_mask: Tensor | None = None
    key_distances: Tensor | None = None
    mask: tuple[Tensor | None, int | None, int, Tensor | None] | None = None
    prompts_per_text: int = 1
    calls: dict[nn.Module, int] = field(default_factory=dict)
    layer_embeddings: Sequence[Tensor] = ()
    layer_start: int = 0
    reader_vectors: Sequence[Tensor] = ()
    reader_low_rank: Sequence[tuple[Tensor, Tensor]] = ()
    added_keys: Sequence[AddedKeys | None] = ()
    reader_positions: Tensor | None = None
    mean_mask: Tensor | None = None
    mean_texts: Tensor | None = None
    earlier_layers: int = 0
    second_mask: Tensor | None = None
    text_means: Tensor | None = None
    layer_states: dict[int, Tensor] = field(default_factory=dict)
    row: OneRow | None = None
    positions: Tensor | None = None
    kept_shape: torch.Size | None = None
    heads: Sequence[Mapping[str, Tensor]] = ()
    head_inputs: dict[nn.Module, Tensor] = field(default_factory=dict)
    captured_key_values: list[KeyValue] | None = None
    captured_states: list[Tensor] | None = None


class Passes:
    """The forward pass that is running on a backbone, if there is one.

    Copies and pickles have none.
    """

    def __init__(self) -> None:
        self.current: Pass | None = None
        self.lock = compat.ForkLock(level=2)

    @contextmanager
    def running(self, current: Pass | None) -> Iterator[None]:
        """Make a pass the current one within the context. A thread can nest passes."""
        with nullcontext() if torch.compiler.is_dynamo_compiling() else self.lock:
            before = self.current
            try:
                self.current = current
                yield
            finally:
                self.current = before

    def __reduce__(self) -> tuple[Any, ...]:
        return Passes, ()
