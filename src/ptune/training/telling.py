"""The windows of long texts that tell the label, and a head that starts from them.

Most windows of a long text say nothing about its label, and the data does not say which ones do. As
in multiple-instance learning, the start guesses for each text how likely each window is the telling
one, fits a linear discriminant of the telling windows of each label against all other windows, and
repeats.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

# Rounds of guessing and fitting. The accuracy on texts that were left out rises no further.
ROUNDS = 10
# How sure the first guess is: the factor of standardised scores.
SURE = 3.0
# Texts that the mean of all telling windows counts for in the mean of those of one label.
SHARED_TEXTS = 30
# How far the variances of the windows are drawn to their mean.
SHRINKAGE = 0.6


def fit_telling(
    windows: Sequence[Tensor], targets: Tensor, weights: Tensor, labels: int, sharpness: float
) -> tuple[Tensor, Tensor]:
    """A linear layer whose logits are log-likelihood ratios of a telling window to any other.

    The logarithm of their mean exponential, over the windows of a text, is the text's logit.

    Args:
        windows: The features of the windows of each text, ``[windows, width]``.
        targets: The label of each text, ``[n]``.
        weights: The texts' weights, ``[n]``.
        labels: How many labels there are.
        sharpness: The factor of logits before a guess. Windows are less independent of each other
            than the discriminant believes, and a guess that is too sure finds no better one.

    Returns:
        Coefficients ``[labels, width]`` and intercepts ``[labels]``.
    """
    sizes = [len(own) for own in windows]
    counts = torch.tensor(sizes)
    text_of = torch.arange(len(windows)).repeat_interleave(counts)
    weights = weights.double() / weights.double().mean()
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
    telling = _shares(SURE * first / first.std().clamp_min(1e-12), sizes)
    for _ in range(ROUNDS):
        layer, intercepts = _discriminant(x, goal[text_of], telling, weights[text_of])
        telling = _shares(sharpness * (x @ layer + intercepts).gather(1, own)[:, 0], sizes)
    layer, intercepts = _discriminant(x, goal[text_of], telling, weights[text_of])
    often = (weights @ goal).clamp_min(1e-4) / weights.sum()
    coefficients = (white @ layer).T
    return coefficients, intercepts + often.log() - coefficients @ center


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
