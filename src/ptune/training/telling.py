"""The windows of long texts that tell the label, and a head that starts from them.

Most windows of a long text say nothing about its label, and the data does not say which ones do. As
in multiple-instance learning, the start guesses for each text how likely each window is the telling
one, fits a linear classifier of the telling windows of each label against all other windows, and
repeats. A guess also learns in which part of a text the telling windows are.

The first classifiers are discriminants, which find the windows even if the first guess is poor. The
last ones are logistic regressions, which are more accurate once most of the windows are found.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import optimize
from torch import Tensor
from torch.nn import functional as F

from ptune import texts

# Rounds of guessing and fitting: with discriminants, and then with logistic regressions. The
# accuracy on texts that were left out rises no further.
ROUNDS, LAST_ROUNDS = 10, 3
# How sure the first guess is: the factor of standardised scores.
SURE = 3.0
# The factor of logits before a guess. Windows are less independent of each other than the
# discriminant believes, and a guess that is too sure finds no better one.
SHARPNESS = 1 / 3
# Equal parts of a text in which windows count differently, and texts that say they all count 1.
PARTS, EVEN_TEXTS = 10, 5
# The variance of a logit that the logistic regression expects.
LOGIT_VARIANCE = 4.0
# Steps of the logistic regression in a round, which starts where the last one ended.
STEPS = 30
# Texts that the mean of all telling windows counts for in the mean of those of one label.
SHARED_TEXTS = 30
# How far the variances of the windows are drawn to their mean.
SHRINKAGE = 0.6


def fit_telling(
    windows: Sequence[Tensor], targets: Tensor, weights: Tensor, labels: int
) -> tuple[Tensor, Tensor, Tensor]:
    """A linear layer whose logits are log-likelihood ratios of a telling window to any other.

    The logarithm of their weighted mean exponential, over a text's windows, is the text's logit.

    Args:
        windows: The standardised features of the windows of each text, ``[windows, width]``.
        targets: The label of each text, ``[n]``.
        weights: The texts' weights, ``[n]``.
        labels: How many labels there are.

    Returns:
        Coefficients ``[labels, width]``, intercepts ``[labels]``, and the weights of windows by
        their place, ``[PARTS]``, as for `texts.pooled`.
    """
    sizes = [len(own) for own in windows]
    counts = torch.tensor(sizes)
    text_of = torch.arange(len(windows)).repeat_interleave(counts)
    place = torch.cat([torch.from_numpy(texts.in_parts(n, PARTS)) for n in sizes])
    weights = weights.double() / weights.double().mean()
    of_window = weights[text_of]
    x = torch.cat(list(windows)).double()
    center = x.mean(dim=0)
    variances, axes = torch.linalg.eigh((x - center).T @ (x - center) / len(x))
    shrunk = (1 - SHRINKAGE) * variances.clamp_min(0) + SHRINKAGE * variances.mean() + 1e-12
    white = axes / shrunk.sqrt()
    x = (x - center) @ white  # [all windows, width]
    goal = F.one_hot(targets, labels).double()
    own = targets[text_of, None]
    scores = x @ _between_means(x, text_of, counts, goal)
    first = (scores.gather(1, own) - scores.mean(dim=1, keepdim=True))[:, 0]

    def guess(scores: Tensor, parts: Tensor) -> tuple[Tensor, Tensor]:
        telling = _shares(scores + (place @ parts).log(), sizes)
        return telling, _part_weights(telling, place, sizes, of_window)

    evenly = of_window.new_ones(PARTS)
    telling, parts = guess(SURE * first / first.std().clamp_min(1e-12), evenly)
    for _ in range(ROUNDS):
        layer, intercepts = _discriminant(x, goal[text_of], telling, of_window)
        scores = (x @ layer + intercepts).gather(1, own)[:, 0]
        telling, parts = guess(SHARPNESS * scores, parts)
    standard = torch.cat(list(windows)).float()
    found = standard.new_zeros(x.shape[1] + 1, labels)
    for _ in range(LAST_ROUNDS):
        found = _logistic(standard, goal[text_of], telling, of_window, found)
        scores = (standard @ found[:-1] + found[-1]).gather(1, own)[:, 0]
        telling, parts = guess(scores, parts)
    return found[:-1].T.double(), found[-1].double(), parts


def _between_means(x: Tensor, text_of: Tensor, counts: Tensor, goal: Tensor) -> Tensor:
    """Ridge regression ``[width, labels]`` of the labels on the means of the texts' windows."""
    means = x.new_zeros(len(counts), x.shape[1]).index_add(0, text_of, x) / counts[:, None]
    means = means - means.mean(dim=0)
    gram = means.T @ means
    gram.diagonal().add_(gram.trace() / len(gram) + 1e-12)
    return torch.linalg.solve(gram, means.T @ (goal - goal.mean(dim=0)))


def _shares(scores: Tensor, sizes: Sequence[int]) -> Tensor:
    """The softmax of scores ``[all windows]`` within each text; `sizes` counts its windows."""
    return torch.cat([own.softmax(dim=0) for own in scores.split(sizes)])


def _part_weights(telling: Tensor, place: Tensor, sizes: Sequence[int], weights: Tensor) -> Tensor:
    """How much more often telling windows are in each part of a text than others, ``[PARTS]``.

    Args:
        telling: The probability that windows tell their text's label, ``[all windows]``.
        place: How much of them is in each part of the text, ``[all windows, PARTS]``.
        sizes: How many windows each text has.
        weights: The weights of their texts, ``[all windows]``.
    """
    even = _shares(torch.zeros_like(telling), sizes)
    found, expected = (place.T @ (own * weights) + EVEN_TEXTS for own in (telling, even))
    return found / expected


def _discriminant(
    x: Tensor, goal: Tensor, telling: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """The logarithm of how much likelier a window is as a telling one of each label.

    Args:
        x: Windows with a covariance of about 1, ``[all windows, width]``.
        goal: 1 for the label of their text, ``[all windows, labels]``.
        telling: The probability that they tell it, ``[all windows]``.
        weights: The weights of their texts, ``[all windows]``.

    Returns:
        Coefficients ``[width, labels]`` and intercepts ``[labels]``.
    """
    tells, rest = telling * weights, (1 - telling).clamp_min(0) * weights
    others = rest @ x / rest.sum().clamp_min(1e-12)
    shared = tells @ x / tells.sum()
    of_label = goal * tells[:, None]
    sizes = of_label.sum(dim=0)[:, None]
    means = (of_label.T @ x + SHARED_TEXTS * shared) / (sizes + SHARED_TEXTS)
    return means.T - others[:, None], (others.square().sum() - means.square().sum(dim=1)) / 2


def _logistic(x: Tensor, goal: Tensor, telling: Tensor, weights: Tensor, start: Tensor) -> Tensor:
    """Logistic regression of the labels of telling windows, and of none for all others.

    Args:
        x: Standardised windows, ``[all windows, width]``.
        goal, telling, weights: As for `_discriminant`.
        start: Coefficients and intercepts to start from, ``[width + 1, labels]``.

    Returns:
        Coefficients and intercepts, ``[width + 1, labels]``.
    """
    strength = x.shape[1] / LOGIT_VARIANCE
    weights = weights[:, None].to(x)
    wanted = goal.to(x) * telling[:, None].to(x) * weights

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        layer = torch.from_numpy(values).to(x).view_as(start)
        scores = x @ layer[:-1] + layer[-1]
        total = F.pad(scores, (0, 1)).logsumexp(dim=1, keepdim=True)
        error = weights * (scores - total).exp() - wanted
        gradient = torch.cat([x.T @ error + strength * layer[:-1], error.sum(0, keepdim=True)])
        value = (weights * total).sum() - (wanted * scores).sum()
        value = value + strength / 2 * layer[:-1].square().sum()
        return float(value), gradient.double().numpy().ravel()

    options = {"maxiter": STEPS}
    flat = start.double().numpy().ravel()
    found = optimize.minimize(loss, flat, jac=True, method="L-BFGS-B", options=options)
    return torch.from_numpy(found.x).to(x).view_as(start)
