"""The layers below a deep prompt's first one, computed once per text.

What they make of a text is the same in every epoch, with every seed and in every trial: nothing
that trains comes before it. It is kept in a file, and whoever reads the text again starts above.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ptune.backbones.loading import are_close, layer_lists, read, two_texts
from ptune.errors import PtuneError
from ptune.prompts.hooks import states_of

logger = logging.getLogger(__name__)

# What of a backbone's configuration has no part in its numbers.
_NO_PART = {
    "_name_or_path", "architectures", "dtype", "id2label", "label2id", "pad_token_id",
    "problem_type", "transformers_version",
}  # fmt: skip


def default_folder() -> Path:
    """Where the files are if no other place is said: the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ptune" / "layers"


class LayersBelow:
    """The layers below layer `first` of a backbone, and what they made of the texts so far.

    While it reads a batch (`reading`), the backbone does without those layers if all texts of the
    batch are known; else it reads as usual, and they are known from then on.

    Args:
        backbone: Frozen, and with a layer to start at (`check_first_layer`).
        first: The layer, counted from 0, whose input is kept: ``[tokens, hidden]`` for each text.
        folder: Of the files, one for each backbone, number format and layer.

    Raises:
        PtuneError: The backbone cannot start there, or the file cannot be used.
    """

    def __init__(self, backbone: PreTrainedModel, first: int, folder: Path) -> None:
        self.first = first
        self.parent, self.name = _place_of_layers(backbone)
        self.layers: nn.ModuleList = getattr(self.parent, self.name)
        self.above = nn.ModuleList(list(self.layers)[first:])
        self.states: Tensor | None = None  # [batch, seq, hidden], in place of the layer's input
        self.heard = torch.empty(0)  # likewise, what the layer was given
        self._hook = self.layers[first].register_forward_pre_hook(self._before, with_kwargs=True)
        if not self._holds(backbone.base_model, *two_texts(backbone)):
            self.remove()
            raise PtuneError(
                f"{type(backbone).__name__} cannot start at layer {first}: it reads otherwise "
                "from there. Have the layers below computed anew (--no-keep-layers)."
            )
        self.kept = Kept(folder / f"{_fingerprint(backbone, list(self.above), first)}.sqlite")

    def remove(self) -> None:
        """Leave the backbone as it was."""
        self._hook.remove()

    @contextmanager
    def reading(self, inputs: dict[str, Tensor]) -> Iterator[None]:
        """Let the backbone read `inputs` once: ids, mask and so on, ``[batch, seq]`` each."""
        mask = inputs["attention_mask"] != 0  # [batch, seq]
        texts = _keys(inputs, mask)
        known = self.kept.get(texts)
        if None not in known:
            hidden, dtype = self.heard.shape[-1], self.heard.dtype
            tokens = torch.frombuffer(bytearray(b"".join(known)), dtype=dtype)  # type: ignore[arg-type]
            states = torch.zeros(*mask.shape, hidden, dtype=dtype, device=mask.device)
            states[mask] = tokens.view(-1, hidden).to(mask.device)
            with self._from(states):
                yield
            return
        yield
        new = {
            text: _bytes(self.heard[row][mask[row]])
            for row, (text, numbers) in enumerate(zip(texts, known, strict=True))
            if numbers is None
        }
        self.kept.put(new)

    @contextmanager
    def _from(self, states: Tensor) -> Iterator[None]:
        """Without the layers below, and with `states` as what they gave."""
        self.states = states
        setattr(self.parent, self.name, self.above)
        try:
            yield
        finally:
            setattr(self.parent, self.name, self.layers)
            self.states = None

    def _holds(self, base_model: PreTrainedModel, ids: Tensor, mask: Tensor) -> bool:
        """Whether the backbone gives the same from there on."""
        usual = read(base_model, ids, mask)[0]
        try:
            with self._from(self.heard):
                return are_close(read(base_model, ids, mask)[0], usual)
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
            return False

    def _before(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        states, rest = states_of(args, kwargs)
        self.heard = states.detach()
        return (states if self.states is None else self.states, *rest), kwargs


class Kept:
    """A file of byte strings, each under a key; several processes may use it at once.

    It is of use, not of need: when it cannot be written any more, that is said once, and what
    would have gone into it is computed again.

    Args:
        file: Made if it is not there.

    Raises:
        PtuneError: It cannot be opened, or is no such file.
    """

    def __init__(self, file: Path) -> None:
        self.file, self.full = file, False
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(file, timeout=60, check_same_thread=False)
            self._file.execute("PRAGMA journal_mode = WAL")  # readers do not wait for writers
            self._file.execute("CREATE TABLE IF NOT EXISTS kept (key BLOB PRIMARY KEY, value BLOB)")
        except (OSError, sqlite3.Error) as error:
            raise PtuneError(
                f"{file}, where the output of frozen layers is kept, cannot be used: {error}. "
                "Delete it, set XDG_CACHE_HOME to another folder, or do without (--no-keep-layers)."
            ) from error

    def __reduce__(self) -> tuple[type[Kept], tuple[Path]]:
        return Kept, (self.file,)  # a copy opens the file for itself

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """What is there, in the order of the keys."""
        query = "SELECT value FROM kept WHERE key = ?"
        found = [self._file.execute(query, (key,)).fetchone() for key in keys]
        return [row[0] if row else None for row in found]

    def put(self, values: dict[bytes, bytes]) -> None:
        """Add some."""
        if self.full:
            return
        try:
            with self._file:
                self._file.executemany("INSERT OR IGNORE INTO kept VALUES (?, ?)", values.items())
        except sqlite3.Error as error:
            self.full = True
            logger.warning("Nothing more is kept in %s: %s.", self.file, error)


def _place_of_layers(backbone: PreTrainedModel) -> tuple[nn.Module, str]:
    """The module that has the list of layers, and its name there."""
    (layers,) = layer_lists(backbone)
    places = (
        (parent, name)
        for parent in backbone.base_model.modules()
        for name, child in parent.named_children()
        if child is layers
    )
    return next(places)


def _keys(inputs: dict[str, Tensor], mask: Tensor) -> list[bytes]:
    """A digest of each text, of all there is to know about it."""
    columns = [
        inputs[name].cpu()
        for name in ("input_ids", "token_type_ids", "position_ids")
        if name in inputs
    ]
    rows = zip(*columns, mask.cpu(), strict=True)
    return [
        hashlib.blake2b(b"|".join(_bytes(c[real]) for c in row), digest_size=16).digest()
        for *row, real in rows
    ]


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()


def _fingerprint(backbone: PreTrainedModel, above: Sequence[nn.Module], first: int) -> str:
    """What the numbers depend on: embeddings and layers below `first`, and how they are used."""
    inside = {id(p) for layer in above for p in layer.parameters()}
    content = {k: v for k, v in backbone.config.to_dict().items() if k not in _NO_PART}
    digest = hashlib.blake2b(json.dumps([first, content], sort_keys=True, default=str).encode())
    for name, tensor in backbone.base_model.state_dict(keep_vars=True).items():
        if id(tensor) not in inside and not tensor.requires_grad:  # else it is the head's
            digest.update(f"{name} {tensor.dtype}".encode() + _bytes(tensor))
    return digest.hexdigest()[:32]
