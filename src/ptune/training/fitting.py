"""A head that is fitted to its features before training.

Ridge regression gives the head's start, so that training begins at the baseline instead of at
chance. If texts are read in windows, the start may be a classifier of the telling windows instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from datasets import Dataset
from scipy import optimize
from torch import Tensor
from torch.nn import functional as F

from ptune import compat, texts
from ptune.labels import Labels
from ptune.model import PromptModel
from ptune.prompts.words import Start
from ptune.training.features import LABELS, Features, last_layer, weights_of
from ptune.training.telling import fit_telling

# One text in this many is left out, to choose between two starts.
LEFT_OUT = 5
# A smaller share of a label counts as this one, because zero has no logarithm.
RAREST = 1e-3
# Strengths of the ridge regression, for the mean over the texts.
_RIDGES = torch.logspace(-4, 2, 13, dtype=torch.float64)


def fit_head(features: Features, labels: Labels, train: Dataset) -> texts.Weights:
    """Start the last layer of a head with ridge regression on its features.

    The strength of the regression and the scale of the logits are those with the smallest loss on
    texts that were left out (one at a time, in closed form), so the start is not overconfident. A
    weight acts as that many copies of the text, which are left out together.

    If texts have windows, a classifier of the telling ones takes its place where it predicts
    texts that were left out better.

    Args:
        features: The features. The parameters of their layer change in place.
        labels: The labels.
        train: The tokenised training set.

    Returns:
        How much windows count by their place in a text, as for `texts.pooled`.
    """
    targets = _targets_of(train, features.rows, labels)
    weights = weights_of(train, features.rows)
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
    coefficients, intercept, *places = start or of_means(torch.arange(len(inputs)))
    coefficients = coefficients / std
    with torch.no_grad():
        features.weight.copy_(coefficients)
        if features.bias is not None:
            features.bias.copy_(intercept - coefficients @ mean)
    return tuple(places[0].tolist()) if places else ()


def _targets_of(train: Dataset, rows: np.ndarray, labels: Labels) -> Tensor:
    """The targets of some training texts, ``[n, …]``."""
    targets = torch.tensor(np.asarray(train[LABELS], dtype=float)[rows])
    return targets.long() if labels.is_single else targets


def start_at_shares(model: PromptModel, labels: Labels, train: Dataset) -> None:
    """Start the bias of a new head at what it should be for a head that reads nothing.

    That is the logarithm of each label's share, or of its odds if a text can have several labels;
    or the mean of the numbers. Steps are small, and a bias would take hundreds of them to get
    there.

    A head that a checkpoint brought stays as it is.

    Args:
        model: The model. Its head changes in place, if it ends in a linear layer with a bias.
        labels: The labels.
        train: The tokenised training set.
    """
    _, name = last_layer(model) or (None, None)
    if name is None or compat.was_loaded(model.host.heads.original.parameters[name]):
        return
    targets = torch.tensor(np.asarray(train[LABELS], dtype=float))
    weights = weights_of(train, np.arange(len(train)))
    if labels.is_single:
        targets = F.one_hot(targets.long(), len(labels)).double()
    known = (~targets.isnan()).double()
    start = (weights @ targets.nan_to_num()) / (weights @ known).clamp_min(1e-12)
    if not labels.is_regression:
        start = start.clamp(RAREST, 1 - RAREST)
        start = start.log() if labels.is_single else start.logit()
    with torch.no_grad():
        dict(model.head_parameters())[name].copy_(start)


def scale_and_shift(features: Features, labels: Labels, train: Dataset) -> None:
    """Scale the logits of a head of label words, and shift each label's, to fit training labels.

    A language model prefers some words whatever the text says, and is too sure of its answer to a
    question that it hardly understands. Steps of training would be spent on correcting this.

    Args:
        features: The features. The parameters of their layer change in place.
        labels: The labels.
        train: The tokenised training set.
    """
    targets = _targets_of(train, features.rows, labels)
    weights = len(targets) * weights_of(train, features.rows)
    mean, bias = features.mean.cpu().double(), features.bias
    logits = features.values @ features.weight.detach().cpu().float().T
    logits = (logits if bias is None else logits + bias.detach().cpu()).double()
    one = torch.ones(len(logits)).double()
    if bias is None:  # see `Start.shifted`
        one = features.values.double() @ (mean / (mean @ mean))

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        found = torch.tensor(values, requires_grad=True)
        losses = labels.losses(found[0].exp() * logits + one[:, None] * found[1:], targets)
        total = (weights * losses.reshape(len(logits), -1).sum(1)).sum() + found @ found / 2
        (gradient,) = torch.autograd.grad(total, found)
        return total.item(), gradient.numpy()

    with torch.enable_grad():
        found = optimize.minimize(loss, np.zeros(1 + len(labels)), jac=True, method="L-BFGS-B")
    scale, shift = float(np.exp(found.x[0])), torch.from_numpy(found.x[1:])
    with torch.no_grad():
        scaled = Start(scale * features.weight, None if bias is None else scale * bias)
        start = scaled.shifted(shift.to(features.weight), mean.to(features.weight))
        features.weight.copy_(start.rows)
        if bias is not None and start.bias is not None:
            bias.copy_(start.bias)


def _telling_start(
    windows: Sequence[Tensor],
    same: Tensor,
    targets: Tensor,
    weights: Tensor,
    labels: Labels,
    of_means: Callable[[Tensor], tuple[Tensor, Tensor]],
) -> tuple[Tensor, Tensor, Tensor] | None:
    """A layer fitted to telling windows, and the weights of their places.

    ``None``: a layer for the means of windows is better.

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

    def losses(factor: float, weight: Tensor, bias: Tensor, *places: Tensor) -> Tensor:
        own = tuple(places[0].tolist()) if places else ()
        logits = F.linear(read, weight * factor, bias * factor)
        logits = texts.pooled(logits, text_of, weights=own)
        return labels.losses(logits, targets[rest]) * weights[rest] / weights[rest].mean()

    def best(layer: Sequence[Tensor]) -> tuple[float, Tensor]:
        found = [(f, losses(f, *layer)) for f in torch.logspace(-2, 1, 31).tolist()]
        return min(found, key=lambda one: float(one[1].sum()))

    def telling(chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        own = [windows[i] for i in chosen.tolist()]
        return fit_telling(own, targets[chosen], weights[chosen], len(labels))

    (factor, own), (_, others) = best(telling(some)), best(of_means(some))
    gain = others - own
    if not gain.mean() > gain.std(correction=0) / len(rest) ** 0.5:  # it could be by chance
        return None
    coefficients, intercept, places = telling(torch.arange(len(windows)))
    return factor * coefficients, factor * intercept, places


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
        # As in Platt's calibration: a few right answers are no reason for certainty.
        doubt = 2 / (2 + len(scores) / len(self.labels))

        # Half the time of float64, which the choice of a factor does not need.
        scores, shift = scores[self.of_text].float(), self.shift.float()

        def loss(log_factor: float) -> float:
            logits = 10**log_factor * scores + shift  # [m, num_labels]
            if self.labels.is_single:
                losses = F.cross_entropy(
                    logits, self.targets, reduction="none", label_smoothing=doubt
                )
            else:
                losses = self.labels.losses(logits, self.targets)
            losses = losses.reshape(len(logits), -1)
            if self.labels.is_multi:
                undecided = (F.softplus(logits) + F.softplus(-logits)) / 2
                losses = losses + doubt * (undecided - losses)
            return float((self.example_weights * losses).sum())

        if self.labels.is_regression:
            return loss(0), 1.0
        found = optimize.minimize_scalar(
            loss, bounds=(-1, 2), method="bounded", options={"xatol": 0.03}
        )
        return float(found.fun), 10 ** float(found.x)


def _one_column_each(targets: Tensor, labels: Labels, weights: Tensor) -> Tensor:
    """What each output should be: 0 or 1 for a label, or the number of a regression."""
    if labels.is_single:
        return F.one_hot(targets, len(labels)).double()
    columns = targets.reshape(len(targets), -1)
    known = weights * ~columns.isnan()
    return torch.where(
        columns.isnan(), (known * columns.nan_to_num()).sum(0) / known.sum(0), columns
    )
