"""The prompts and texts of a batch, arranged in one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from ptune.backbones.architectures import Architecture, flat, positions_read
from ptune.backbones.cpu import is_traced
from ptune.errors import PtuneError
from ptune.prompts import layout
from ptune.prompts.config import OF_LAYERS, OF_TEXT
from ptune.prompts.mechanisms import Prompt
from ptune.prompts.passes import Pass
from ptune.prompts.readers import Readers, TextStates


def takes_turns(which: Sequence[int], n: int) -> bool:
    """True for 0, 1, … n - 1, 0, 1, … n - 1 and so on."""
    return list(which) == list(range(n)) * (len(which) // n)


class Batch:
    """Enters the prompts of a batch into a pass and arranges the batch's inputs with them.

    Args:
        architecture: The backbone's.
        config: The backbone's configuration.
        prompts, which: As for `Host.run`.
        current: The pass.
        device: Where the batch is.
    """

    def __init__(
        self,
        architecture: Architecture,
        config: PreTrainedConfig,
        prompts: Sequence[Prompt],
        which: Sequence[int] | None,
        current: Pass,
        device: torch.device,
    ) -> None:
        self.own, self.config = architecture, config
        self.prompts, self.which, self.current, self.device = prompts, which, current, device
        embeddings: list[Tensor] = []
        self.lengths, self.starts, total = [0] * len(prompts), [0] * len(prompts), 0
        for mechanism in dict.fromkeys(p.mechanism for p in prompts):
            none = prompts[0].embeddings.new_empty(0, mechanism.width)
            own = [p.embeddings if p.mechanism is mechanism else none for p in prompts]
            for i, entered in enumerate(mechanism.enter(current, own, which, total)):
                if prompts[i].mechanism is mechanism:
                    self.lengths[i] = 0 if prompts[i].in_text else len(entered)
                    self.starts[i] = total
                    total += len(entered)
                    embeddings.append(entered)
        current.prompt_embeddings = torch.cat(embeddings)
        self.mean = self._of_texts([p.pooling != "architecture" for p in prompts])

    def _of_texts(self, values: Sequence[int]) -> int | Tensor:
        """Turn one number per prompt into one per text: ``[batch, 1]``, or a single number."""
        if self.which is None or len(set(values)) == 1:
            return values[0]
        return torch.tensor([[values[i]] for i in self.which], device=self.device)

    def add_embeddings(self, inputs_embeds: Tensor) -> Tensor:
        """Add vectors ``[batch, seq, token_dim]`` to the prompt embeddings; return their ids."""
        batch, seq, dim = inputs_embeds.shape
        prompt = self.current.prompt_embeddings
        assert prompt is not None
        ids = torch.arange(batch * seq, device=prompt.device).view(batch, seq)
        self.current.prompt_embeddings = torch.cat(
            [prompt.to(inputs_embeds.dtype), inputs_embeds.reshape(-1, dim)]
        )
        return ids + self.own.vocab_rows + len(prompt)

    def arrange(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
    ) -> dict[str, Tensor]:
        """The backbone's inputs with prompt and text in place, ``[batch, k + seq]`` each."""
        k = self._of_texts(self.lengths)
        before = self._of_texts([p.before for p in self.prompts])
        virtual = torch.arange(max(self.lengths), device=input_ids.device)  # [longest k]
        virtual_mask = virtual < k  # [longest k] or [batch, longest k]
        side = self.own.padding_side
        order = layout.prompt_order(attention_mask, virtual_mask, before, side)
        order = layout.trim(order, self._width(attention_mask, order.shape[1], k), side)
        start = self.own.vocab_rows + self._of_texts(self.starts)
        in_text = (input_ids < 0) & (attention_mask != 0)  # [batch, seq], virtual tokens
        if any(prompt.in_text for prompt in self.prompts):
            input_ids = torch.where(in_text, start + in_text.cumsum(dim=1) - 1, input_ids)
        text_ids, pad = self._disguised(input_ids, attention_mask)
        inputs = {
            "input_ids": layout.place(
                text_ids, torch.where(virtual_mask, start + virtual, pad), order
            ),
            "attention_mask": layout.place(attention_mask, virtual_mask, order),
        }
        if token_type_ids is not None:
            zeros = torch.zeros_like(virtual)
            inputs["token_type_ids"] = layout.place(token_type_ids, zeros, order)
        shift = self._of_texts(
            [p.positions - n for p, n in zip(self.prompts, self.lengths, strict=True)]
        )
        if position_ids is not None:
            if not self.own.takes_position_ids:
                raise PtuneError(f"{self.own.name} takes no position_ids. Leave them out.")
            position_ids = position_ids.expand_as(input_ids)
            inputs["position_ids"] = layout.place_positions(
                position_ids, attention_mask, virtual_mask, before, order
            )
        elif self.own.takes_position_ids and (isinstance(shift, Tensor) or shift > 0):
            # The prompt takes positions, but is not among the tokens.
            inputs["position_ids"] = self._counted(inputs["attention_mask"]) + shift
        if isinstance(self.mean, Tensor) or self.mean:
            self._pool(attention_mask, virtual_mask, in_text, order)
            if any(p.pooling == "pairs" for p in self.prompts):
                types = inputs.get("token_type_ids", torch.zeros_like(inputs["input_ids"]))
                self.current.second_mask = types > 0
        self.mask, self.ids = inputs["attention_mask"], inputs["input_ids"]
        return inputs

    def arrange_readers(self, readers: Readers, texts: TextStates) -> dict[str, Any]:
        """The backbone's inputs for readers of `texts`: virtual tokens only, ``[rows, k]``."""
        mask, which = texts.mask, self.which
        rows = mask.shape[0] if which is None else len(which)
        times = 1 if which is None else rows // max(1, len(mask))
        nothing = self.prompts[0].embeddings[:0]
        low_rank = [nothing if p.low_rank is None else p.low_rank for p in self.prompts]
        added = [nothing if p.added_keys is None else p.added_keys for p in self.prompts]
        if which is not None and takes_turns(which, len(self.prompts)):
            which = None  # the same readers again and again
        readers.enter_low_rank(self.current, low_rank, which)
        self.current.prompts_per_text = times
        self.current.text_means = texts.means.repeat_interleave(times, dim=0)
        lengths = texts.lengths
        if times > 1:
            lengths = lengths.repeat_interleave(times, dim=0)  # [rows, 1]
        self._check_fits(lengths, self._of_texts([p.positions for p in self.prompts]))
        empty = torch.zeros(rows, 0, dtype=torch.long, device=mask.device)
        inputs: dict[str, Any] = self.arrange(empty, empty, None, None)
        inputs.pop("position_ids", None)
        if readers.continues:
            self.current.reader_positions = self._counted(self.mask) + lengths
        if readers.by_cache:
            assert self.own.cache_name is not None
            inputs[self.own.cache_name], seen = texts.as_cache(times)
            inputs["attention_mask"] = torch.cat([seen, self.mask], dim=1)
        else:
            readers.enter_texts(self.current, texts, self.mask.shape[1], times)
            readers.enter_added_keys(self.current, added, which)
        return inputs

    def _counted(self, mask: Tensor) -> Tensor:
        """The positions of the tokens in a mask ``[batch, seq]``, as the backbone counts them."""
        return (mask.cumsum(dim=1) - 1).clamp_min(0) + self.own.first_position

    def as_one_row(self, inputs: dict[str, Any], dtype: torch.dtype) -> None:
        """Leave padding out of what `arrange` returned, if there is any."""
        if not self.mask.all():
            keys, visible = self.current.key_values, self.current.key_mask
            if visible is None:
                k = keys[0][0].shape[2] if keys else 0
                visible = self.mask.new_ones(len(self.mask), k)
            self.current.row = row = layout.OneRow.of(self.mask, visible, dtype)
            inputs.setdefault("position_ids", self._counted(self.mask))
            for name in ("input_ids", "attention_mask", "token_type_ids", "position_ids"):
                if name in inputs:
                    inputs[name] = row.join(inputs[name])

    def _disguised(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, int]:
        """Token ids in which only padding has the pad token's id, and that id.

        Elsewhere, an alias replaces the pad token (see `Pass.aliases`).
        """
        assert self.current.prompt_embeddings is not None
        # Read in every pass, because `Trainer` sets it to the tokenizer's.
        pad = self.config.get_text_config().pad_token_id
        alias = self.own.vocab_rows + len(self.current.prompt_embeddings)
        aliases = [pad]
        text_ids = torch.where(input_ids == pad, alias, input_ids)
        if self.own.is_encoder_decoder:
            # The head reads the last end token, and all texts must have the same number of them.
            aliases.append(end := self.config.eos_token_id)
            ends = (input_ids == end) & (attention_mask != 0)
            inner = ends & (ends.flip(1).cumsum(1).flip(1) > 1)
            text_ids = torch.where(inner, alias + 1, text_ids)
        self.current.aliases = tuple(aliases)
        return torch.where(attention_mask != 0, text_ids, pad), pad

    def _pool(
        self, attention_mask: Tensor, virtual_mask: Tensor, in_text: Tensor, order: Tensor
    ) -> None:
        of_text = torch.as_tensor(self._of_texts([p.pooling in OF_TEXT for p in self.prompts]))
        of_text = of_text.to(attention_mask.device)
        # Virtual tokens among the text's are read with the prompt.
        is_text, is_prompt = (attention_mask != 0) & (of_text ^ in_text), virtual_mask & ~of_text
        self.current.mean_mask = layout.place(is_text, is_prompt, order)
        self.current.mean_texts = self.mean if isinstance(self.mean, Tensor) else None
        if any(p.pooling in OF_LAYERS for p in self.prompts):
            self.current.earlier_layers = self.own.layers_read - 1

    def _width(self, attention_mask: Tensor, width: int, k: int | Tensor) -> int:
        """How many of `width` columns to keep.

        These are all of them, unless the prompts differ or the batch fits only without padding.
        """
        bound, seq = self.own.max_positions, attention_mask.shape[1]
        positions = self._of_texts([p.positions for p in self.prompts])
        if (
            not isinstance(k, Tensor)
            and not isinstance(positions, Tensor)
            and (bound is None or seq + positions <= bound)
        ):
            return width
        lengths = (attention_mask != 0).sum(dim=1, keepdim=True)  # [batch, 1]
        self._check_fits(lengths, positions)
        return max(1, int((lengths + k).max()))

    def _check_fits(self, lengths: Tensor, positions: int | Tensor) -> None:
        """Check that texts of these lengths, ``[batch, 1]``, fit with the prompts' positions."""
        bound, taken = self.own.max_positions, lengths + positions
        if bound is not None and not is_traced() and (worst := int(taken.max())) > bound:
            longest = int(lengths[int(taken.argmax())])
            fits = bound - worst + longest
            raise PtuneError(
                f"A text of {longest} tokens is too long: the backbone has {bound} positions and "
                f"the prompt takes {worst - longest}, so at most {fits} tokens fit. Tokenise with "
                f"truncation=True, max_length={fits}."
            )

    def compute_only_what_is_read(self) -> None:
        """Skip the positions that the head does not read, at the end of the last layer."""
        own = self.own
        if own.last_layer_end is None:
            return
        read = positions_read(own.last_layer_end.reads, self.mask, self.ids, own.mask_token)
        if self.current.mean_mask is not None:
            mean = torch.as_tensor(self.mean, device=read.device)
            read = torch.where(mean, self.current.mean_mask, read)
        self.current.positions = flat(read)
