"""What the head reads before training: its scale, and a head that is fitted to it.

One pass over the training texts, with the prompt as it starts, gives the features. Their standard
deviation sets the size of the head's steps. Ridge regression on them gives the head's start, so
that training begins at the baseline instead of at chance. If texts are read in windows, the start
may be a discriminant of the telling windows instead.
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
from ptune.labels import Labels
from ptune.model import PromptModel
from ptune.prompts.heads import Head
from ptune.training.telling import fit_telling

# The column of the targets in a tokenised dataset.
LABELS = "labels"
# The most texts whose features are computed: to fit a head, or for their scale.
MOST_TEXTS, SOME_TEXTS = 4096, 512
# The most windows whose features are kept, to find the telling ones.
MOST_WINDOWS = 65_536
# How sure the guesses at telling windows may be; the best one is chosen.
SHARPNESS = (1.0, 1 / 3)
# One text in this many is left out, to choose between two starts.
LEFT_OUT = 5
# Strengths of the ridge regression, for the mean over the texts.
_RIDGES = torch.logspace(-4, 2, 13, dtype=torch.float64)


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
        rows = rows[(_weights(train, rows) > 0).numpy()][:most]
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
        values = torch.empty(len(rows), reader.width)
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
        weights, read = _weights(train, rows), values
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


def _weights(train: Dataset, rows: np.ndarray) -> Tensor:
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
        parameters[weight] = nn.Parameter(torch.eye(self.width, device=self.weight.device))
        if bias:
            parameters[bias] = nn.Parameter(torch.zeros(self.width, device=self.weight.device))
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


# A head fitted to the features.


def fit_head(features: Features, labels: Labels, train: Dataset) -> None:
    """Start the last layer of a head with ridge regression on its features.

    The strength of the regression and the scale of the logits are those with the smallest loss on
    texts that were left out (one at a time, in closed form), so the start is not overconfident. A
    weight acts as that many copies of the text, which are left out together.

    If texts have windows, a discriminant of the telling ones takes its place where it predicts
    texts that were left out better.

    Args:
        features: The features. The parameters of their layer change in place.
        labels: The labels.
        train: The tokenised training set.
    """
    targets = torch.tensor(np.asarray(train[LABELS], dtype=float)[features.rows])
    targets = targets.long() if labels.is_single else targets
    weights = _weights(train, features.rows)
    mean, std = features.mean.cpu().double(), features.std.cpu().double()
    shifts = features.bias is not None

    def standardised(values: Tensor) -> Tensor:
        return (values.double() - mean if shifts else values.double()) / std

    inputs = standardised(features.values)

    def of_means(some: Tensor) -> tuple[Tensor, Tensor]:
        different, of_text = features.same[some].unique(return_inverse=True)
        own = weights[some] / weights[some].sum()
        ridge = _Ridge(inputs[different], of_text, targets[some], own, labels, shifts=shifts)
        return ridge.best()

    start = None
    if shifts and labels.is_single and any(len(own) > 1 for own in features.windows):
        n = len(features.windows)
        windows = [standardised(own) for own in features.windows]
        given = windows, features.same[:n], targets[:n], weights[:n]
        start = _telling_start(*given, labels, of_means)
    coefficients, intercept = start or of_means(torch.arange(len(inputs)))
    coefficients = coefficients / std
    with torch.no_grad():
        features.weight.copy_(coefficients)
        if features.bias is not None:
            features.bias.copy_(intercept - coefficients @ mean)


def _telling_start(
    windows: Sequence[Tensor],
    same: Tensor,
    targets: Tensor,
    weights: Tensor,
    labels: Labels,
    of_means: Callable[[Tensor], tuple[Tensor, Tensor]],
) -> tuple[Tensor, Tensor] | None:
    """A layer fitted to telling windows; ``None``: one for the means of windows is better.

    Args:
        windows: The features of the windows of each text.
        same: The first of the texts that is the same one, ``[n]``.
        targets, weights: The texts' labels and weights, ``[n]``.
        labels: The labels.
        of_means: Fits the other layer to some of the texts.
    """
    # The order of the texts may follow their labels.
    shuffled = torch.randperm(len(same), generator=torch.Generator().manual_seed(0))
    left_out = shuffled[same] % LEFT_OUT == 0
    some, rest = (~left_out).nonzero()[:, 0], left_out.nonzero()[:, 0]
    if not len(some) or not len(rest):
        return None
    counts = torch.tensor([len(windows[i]) for i in rest.tolist()])
    text_of = torch.arange(len(rest)).repeat_interleave(counts).tolist()
    read = torch.cat([windows[i] for i in rest.tolist()])

    def loss(layer: tuple[Tensor, Tensor], factor: float) -> float:
        logits = texts.pooled(F.linear(read, layer[0] * factor, layer[1] * factor), text_of)
        losses = labels.losses(logits, targets[rest])
        return float(losses @ weights[rest] / weights[rest].sum())

    def telling(chosen: Tensor, sharpness: float) -> tuple[Tensor, Tensor]:
        own = [windows[i] for i in chosen.tolist()]
        return fit_telling(own, targets[chosen], weights[chosen], len(labels), sharpness)

    found = {sharpness: telling(some, sharpness) for sharpness in SHARPNESS}
    factors = torch.logspace(-2, 0.5, 26).tolist()
    least, sharpness, factor = min((loss(found[s], f), s, f) for s in found for f in factors)
    if not least < loss(of_means(some), 1.0):
        return None
    coefficients, intercept = telling(torch.arange(len(windows)), sharpness)
    return factor * coefficients, factor * intercept


class _Ridge:
    """Ridge regression whose scores become logits.

    Args:
        inputs: The features of different texts, ``[n, width]``.
        of_text: Which of them each example has, ``[m]``.
        targets: The examples' targets, ``[m, …]``.
        weights: Their weights, ``[m]``; together 1.
        labels: The labels.
        shifts: Whether the logits have an intercept.
    """

    def __init__(
        self,
        inputs: Tensor,
        of_text: Tensor,
        targets: Tensor,
        weights: Tensor,
        labels: Labels,
        *,
        shifts: bool,
    ) -> None:
        self.inputs, self.of_text, self.targets = inputs, of_text, targets
        self.labels, self.shifts = labels, shifts
        self.example_weights = weights[:, None]  # [m, 1]
        goal = _one_column_each(targets, labels, self.example_weights)  # [m, num_labels]
        if shifts:
            center = (self.example_weights * goal).sum(dim=0)
            few = center.clamp(1e-4, 1 - 1e-4)
            self.shift = few.log() if labels.is_single else few.logit()
        else:
            center = goal.new_full(goal.shape[1:], 0.5 if labels.is_multi else 1 / len(labels))
            self.shift = torch.zeros_like(center)
        if labels.is_regression:
            self.shift = center = center if shifts else torch.zeros_like(center)
        # A text's weight and mean goal.
        self.weights = self._per_text(torch.ones_like(self.example_weights))  # [n, 1]
        self.goal = self._per_text(goal) / self.weights - center  # [n, num_labels]

    def _per_text(self, values: Tensor) -> Tensor:
        """The sum of the examples' values, times their weights, for each text."""
        sums = values.new_zeros(len(self.inputs), values.shape[1])
        return sums.index_add(0, self.of_text, self.example_weights * values)

    def best(self) -> tuple[Tensor, Tensor]:
        """Coefficients ``[num_labels, width]`` and intercepts ``[num_labels]``."""
        rows = self.weights.sqrt() * self.inputs
        values, vectors = torch.linalg.eigh(rows.T @ rows)  # [width], [width, width]
        turned = self.inputs @ vectors
        projected = turned.T @ (self.weights * self.goal)
        found = (torch.inf, projected.T, self.shift)
        for strength in _RIDGES:
            inverse = 1 / (values.clamp_min(0) + strength)
            # How much a text decides its own score; the mean that was taken out counts, too.
            leverage = self.weights * (self.shifts + (turned.pow(2) * inverse).sum(1, keepdim=True))
            scores = turned @ (inverse[:, None] * projected)
            left_out = self.goal - (self.goal - scores) / (1 - leverage).clamp_min(1e-9)
            loss, scale = self._calibrated(left_out)
            if loss < found[0]:
                coefficients = vectors @ (inverse[:, None] * projected)
                found = (loss, scale * coefficients.T, self.shift)
        return found[1:]

    def _calibrated(self, scores: Tensor) -> tuple[float, float]:
        """The smallest loss, and the factor that makes scores logits with it."""
        factors = [1.0] if self.labels.is_regression else torch.logspace(-1, 2, 25).tolist()
        # As in Platt's calibration: a few right answers are no reason for certainty.
        doubt = 2 / (2 + len(scores) / len(self.labels))

        def loss(factor: float) -> float:
            logits = (factor * scores + self.shift)[self.of_text]
            losses = self.labels.losses(logits, self.targets).reshape(len(logits), -1)
            if self.labels.is_single:
                losses = losses - doubt * (losses + logits.log_softmax(dim=1).mean(1, keepdim=True))
            elif self.labels.is_multi:
                undecided = (F.softplus(logits) + F.softplus(-logits)) / 2
                losses = losses + doubt * (undecided - losses)
            return float((self.example_weights * losses).sum())

        return min((loss(factor), factor) for factor in factors)


def _one_column_each(targets: Tensor, labels: Labels, weights: Tensor) -> Tensor:
    """What each output should be: 0 or 1 for a label, or the number of a regression."""
    if labels.is_single:
        return F.one_hot(targets, len(labels)).double()
    columns = targets.reshape(len(targets), -1)
    known = weights * ~columns.isnan()
    return torch.where(
        columns.isnan(), (known * columns.nan_to_num()).sum(0) / known.sum(0), columns
    )
