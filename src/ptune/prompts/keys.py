"""What a reader adds to the keys of its text, so that it can look for other things in it.

The backbone's keys fit the questions of its own tokens. A reader adds vectors of low rank to them,
as LoRA does (arXiv 2106.09685), but only in its own attention: the text's keys stay as they are for
other readers, and nothing has to be read again.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ptune.backbones.cpu import scaled_product

KeyValue = tuple[Tensor, Tensor]

# Factor of what is added, alpha / rank in LoRA's terms (measured on MiniLM).
FACTOR = 2.0


@dataclass(frozen=True)
class AddedKeys:
    """What each reader in a batch adds to the keys of its text in one attention.

    A product of two narrow matrices. Scores use them one by one: a query is multiplied by the
    second one first, so the sum is not computed.

    Attributes:
        narrow: The first one times the values of the text, ``[rows, seq, rank]``: a row for each
            reader.
        wide: The second one, ``[n, rank, heads, head_dim]``. Row i of the batch has number i
            modulo n.
    """

    narrow: Tensor
    wide: Tensor

    @classmethod
    def of(cls, pair: KeyValue, down: Tensor, up: Tensor, times: int) -> AddedKeys:
        """What readers add to the keys of their texts.

        Args:
            pair: Keys and values of the texts, ``[texts, heads, seq, head_dim]``.
            down, up: The matrices, ``[n, rank, width]``. If a token has fewer values or keys than
                that, the last numbers of each row are not used.
            times: How many readers each text has. Their rows follow one another.
        """
        read = pair[1].transpose(1, 2).flatten(2)  # [texts, seq, values of a token]
        down = down[..., : read.shape[2]].to(read.dtype)
        if len(down) == times:
            narrow = F.linear(read, down.flatten(0, 1)).unflatten(2, down.shape[:2])
            narrow = narrow.transpose(1, 2).flatten(0, 1)
        else:
            rows = read.repeat_interleave(times, dim=0).unflatten(0, (-1, len(down)))
            narrow = torch.einsum("tnsv,nrv->tnsr", rows, down).flatten(0, 1)
        _, heads, _, dim = pair[0].shape
        return cls(narrow, up[..., : heads * dim].unflatten(2, (heads, dim)))

    def scores(self, query: Tensor, scaling: float) -> Tensor:
        """What is added to the scores of the text.

        Args:
            query: ``[rows, query_heads, k, head_dim]``. Adjacent heads share a head of the text.
            scaling: Factor of the scores.

        Returns:
            ``[rows, query_heads, k, seq]``.
        """
        n, _, heads, _ = self.wide.shape
        apart = query.flatten(1, 2).unflatten(1, (heads, -1)).unflatten(0, (-1, n))
        asked = torch.einsum("tnhqd,nrhd->tnhqr", apart, self.wide.to(query.dtype))
        narrow = self.narrow.mT.to(query)
        # All heads of a reader multiply the same narrow matrix.
        found = scaled_product(asked.flatten(0, 1).flatten(1, 2), narrow, FACTOR * scaling)
        return found.unflatten(1, query.shape[1:3])

    def keys(self) -> Tensor:
        """What is added to the keys of the text, ``[rows, heads, seq, head_dim]``."""
        rows = self.narrow.unflatten(0, (-1, len(self.wide)))
        found = torch.einsum("tnsr,nrhd->tnhsd", rows, self.wide.to(rows.dtype))
        return FACTOR * found.flatten(0, 1)
