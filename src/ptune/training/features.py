"""Features: what the head reads, and its scale.

One pass over the training texts, with the prompt as it starts, gives the features. Their standard
deviation sets the size of the head's steps, and `fitting` starts the head from them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from ptune import texts
from ptune.adapters.weights import read_tensors
from ptune.data.dataset import TEXT_NUMBER, WEIGHT
from ptune.errors import PtuneError
from ptune.files import FEATURES_NAME
from ptune.model import PromptModel
from ptune.prompts.heads import Head

# The column of the targets in a tokenised dataset.
LABELS = "labels"
# The most texts whose features are computed: to fit a head, or for their scale.
MOST_TEXTS, SOME_TEXTS = 4096, 512
# The most windows whose features are kept, to find the telling ones.
MOST_WINDOWS = 65_536


@dataclass(frozen=True)
class Features:
    """What the last layer of a head reads.

    Attributes:
        name: The name of that layer's weight in the backbone.
        weight: The weight, ``[num_labels, width]``.
        bias: Its bias, ``[num_labels]``, if it has one.
        values: The features of some training texts, ``[n, width]``, float32 on the CPU.
        rows: Which training texts they are, ``[n]``. None has the weight 0.
        same: The first of them that is the same text, ``[n]``.
        mean: The mean of the features, ``[width]``.
        std: Their standard deviation, ``[width]``; never 0.
        windows: If texts are read in windows: the features of each window, ``[windows, width]``, of
            the first texts. `mean` and `std` are those of windows, and `values` are their means.
    """

    name: str
    weight: nn.Parameter
    bias: nn.Parameter | None
    values: Tensor
    rows: np.ndarray
    same: Tensor
    mean: Tensor
    std: Tensor
    windows: Sequence[Tensor] = ()

    @classmethod
    def of(
        cls,
        model: PromptModel,
        train: Dataset,
        collate: Callable[[list[Any]], Any],
        seed: int,
        most: int = MOST_TEXTS,
    ) -> Features | None:
        """The features of the training texts, or of a random sample of them.

        Args:
            model: The model, before training.
            train: The tokenised training set.
            collate: Makes a batch of examples.
            seed: For the sample.
            most: Size of the sample.

        Returns:
            ``None`` if the head does not end in a linear layer of its own.
        """
        names = last_layer(model)
        if names is None:
            return None
        rows = np.random.default_rng(seed).permutation(len(train))
        rows = rows[(weights_of(train, rows) > 0).numpy()][:most]
        given = [c for c in (LABELS, WEIGHT) if c in train.column_names]
        table = train.remove_columns(given).select(rows.tolist())
        ids, kept = table["input_ids"], 0
        if ids and isinstance(ids[0][0], list):  # windows
            sizes = itertools.accumulate(map(len, ids))
            kept = max(1, sum(size <= MOST_WINDOWS for size in sizes))
            ids = [list(itertools.chain(*windows)) for windows in ids]
        first: dict[tuple[int, ...], int] = {}
        same = torch.tensor([first.setdefault(tuple(row), i) for i, row in enumerate(ids)])
        different = same.unique().tolist()
        reader = HeadInput(model, *names)
        values = torch.empty(len(rows), reader.width, dtype=torch.float32)
        windows: dict[int, Tensor] = {}
        was_training = model.training
        model.eval()
        try:
            lengths, padding = [len(ids[i]) for i in different], texts.most_padding(model.device)
            for batch in texts.batches(lengths, 32, padding):
                chosen = [different[i] for i in batch]
                found = reader.features(collate([table[i] for i in chosen]).to(model.device))
                if found is None:
                    return None
                for i, own in zip(chosen, found, strict=True):
                    values[i] = own.mean(dim=0)
                    if i < kept:
                        windows[i] = own
        finally:
            model.train(was_training)
        values = values[same]
        weights, read = weights_of(train, rows), values
        of_texts = [windows[i] for i in same[:kept].tolist()]
        if of_texts:
            read = torch.cat(of_texts)
            counts = torch.tensor(list(map(len, of_texts)))
            weights = (weights[:kept] / counts).repeat_interleave(counts)
            weights = weights / weights.sum()
        mean = (weights @ read.double()).float()
        std = never_zero((weights @ (read - mean).double().square()).sqrt().float())
        parameters = dict(model.head_parameters())
        weight, device = parameters[names[0]], model.device
        bias = parameters[names[1]] if names[1] else None
        scale = mean.to(device), std.to(device)
        return cls(names[0], weight, bias, values, rows, same, *scale, of_texts)

    # The layer reads z = (x - mean) / std if it has a bias, so V = W std is what a step should
    # change. Without a bias, x / std has a large constant part, the mean. It is shrunk to length 1,
    # so that it acts as a bias and does not drown the rest.

    def _shrunk(self, vectors: Tensor) -> Tensor:
        """Vectors ``[…, width]`` with their part along the mean made smaller."""
        constant = self.mean / self.std
        size = constant.norm()
        if self.bias is not None or size <= 1:
            return vectors
        constant = constant / size
        return vectors - (1 - 1 / size) * (vectors @ constant)[..., None] * constant

    def gradient(self, gradient: Tensor) -> Tensor:
        """The gradient ``[num_labels, width]`` for V, from the weight's."""
        if self.bias is not None:
            assert self.bias.grad is not None
            gradient = gradient - torch.outer(self.bias.grad, self.mean)
        return self._shrunk(gradient / self.std)

    def step(self, step: Tensor) -> Tensor:
        """The step ``[num_labels, width]`` of the weight, from a step of V."""
        return self._shrunk(step) / self.std


def never_zero(std: Tensor) -> Tensor:
    """Standard deviations of features ``[width]``, none far below the largest."""
    return std.clamp_min(1e-3 * std.max().clamp_min(1e-12))


def weights_of(train: Dataset, rows: np.ndarray) -> Tensor:
    """The weights of some training texts, ``[n]``; together 1."""
    if WEIGHT not in train.column_names:
        return torch.full((len(rows),), 1 / len(rows), dtype=torch.float64)
    weights = torch.tensor(np.asarray(train[WEIGHT], dtype=float)[rows])
    return weights / weights.sum()


def keep_features(features: Features, train: Dataset, folder: Path) -> None:
    """Write features and targets of the training texts into a run folder."""
    targets = torch.tensor(np.asarray(train[LABELS], dtype=float)[features.rows])
    tensors = {"features": features.values.half(), "targets": targets.float()}
    save_file(tensors, folder / FEATURES_NAME)


def read_features(folder: Path) -> tuple[Tensor, np.ndarray] | None:
    """Features ``[n, width]`` and targets that `keep_features` wrote; ``None``: there are none.

    Raises:
        PtuneError: The file is damaged.
    """
    if not (file := folder / FEATURES_NAME).is_file():
        return None
    found = read_tensors(file, is_adapter=False)
    if found.keys() != {"features", "targets"} or len(found["features"]) != len(found["targets"]):
        raise PtuneError(f"{file} is damaged: expected features and targets. Train again.")
    return found["features"].float(), found["targets"].double().numpy()


def last_layer(model: PromptModel) -> tuple[str, str | None] | None:
    """Names of the weight and the bias of the linear layer that gives the logits."""
    parameters = dict(model.head_parameters())
    labels = model.config.num_labels
    found = None
    for name, parameter in parameters.items():
        path, _, leaf = name.rpartition(".")
        layer = model.backbone.get_submodule(path)
        if leaf == "weight" and isinstance(layer, nn.Linear) and parameter.shape[0] == labels:
            bias = f"{path}.bias"
            found = name, bias if bias in parameters else None
    return found


class HeadInput:
    """Reads what the last layer of a head reads. With the identity as its weight, it returns it.

    Args:
        model: The model.
        weight: The name of the layer's weight; see `last_layer`.
        bias: That of its bias, if it has one.
    """

    def __init__(self, model: PromptModel, weight: str, bias: str | None) -> None:
        self.model, self.own = model, model.state.head
        parameters = dict(model.head_parameters())
        self.weight = parameters[weight]
        self.bias = parameters[bias] if bias else None
        self.width = self.weight.shape[1]
        how: dict[str, Any] = {"device": self.weight.device, "dtype": torch.float32}
        parameters[weight] = nn.Parameter(torch.eye(self.width, **how))
        if bias:
            parameters[bias] = nn.Parameter(torch.zeros(self.width, **how))
        labels = {"id2label": {i: str(i) for i in range(self.width)}, "problem_type": None}
        self.identity = Head(parameters, labels)
        self.checked = False

    def __call__(self, batch: Any) -> Tensor:
        """Features of the rows of a batch, ``[rows, width]``. Gradients pass to the prompt."""
        state = self.model.state
        state.head = self.identity
        try:
            return self.model(**batch).logits.float()
        finally:
            state.head = self.own

    @torch.no_grad()
    def features(self, batch: Any) -> Sequence[Tensor] | None:
        """Features of each text of a batch, ``[windows, width]``, with one window for most texts.

        ``None``: the logits do not depend on them so.
        """
        text_of = batch.pop(TEXT_NUMBER, None)
        found = self(batch)
        if not self.checked:
            logits = self.model(**batch).logits.float()
            expected = F.linear(found, self.weight, self.bias)
            if found.shape[1] != self.width or not torch.allclose(
                logits, expected, rtol=0.05, atol=0.05 * float(logits.abs().max())
            ):
                return None
            self.checked = True
        sizes = [1] * len(found) if text_of is None else torch.bincount(text_of).tolist()
        return found.cpu().split(sizes)
