"""How far to believe a classifier whose examples were all trained on.

It knows them by heart, so its answers to them say nothing about new texts, and to train it again
without some of them takes as long as before. A stand-in is quick to train: logistic regression with
a Gaussian kernel on what the head read before training. It is made to fit the training texts as
closely as the classifier does, and cross-fitted: how far its answers to the texts that it left out
can be believed is how far those of the classifier can be.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy import optimize
from torch import Tensor

from ptune.labels import Labels
from ptune.postprocessing import RAW, Postprocessing
from ptune.training import calibration
from ptune.training.features import Features, never_zero

FITTED_ON = "training, cross-fitted"
# The most texts that are read. The time grows with the cube of their number.
MOST_TEXTS = 2048

# Strengths of the regularisation, as powers of ten, and how often their range is halved.
STRENGTHS, HALVINGS = (-8.0, 0.0), 6
# Steps of a logistic regression, and the change of its loss that ends it.
STEPS, CHANGE = 200, 1e-6
# As `calibration.PRIOR`. A classifier that knows few texts by heart may need a large temperature.
PRIOR = 3.0
# Part of its own variance that each text adds to the kernel. Equal texts stay invertible.
OWN = 1e-3


def fit(
    labels: Labels, start: Features, targets: Any, loss: float
) -> tuple[Postprocessing, dict[str, Any]]:
    """Calibration without held-out texts.

    Args:
        labels: The labels.
        start: What the head read of training texts before training.
        targets: The labels of all training texts.
        loss: The mean loss of the trained classifier on some of them.

    Returns:
        The fitted values, and what `metrics.json` reports. Both are empty for fewer than
        `calibration.MIN_ROWS` different texts.
    """
    same = start.same[:MOST_TEXTS]
    if len(same.unique()) < calibration.MIN_ROWS:
        return RAW, {}
    own = torch.as_tensor(np.asarray(targets)[start.rows[:MOST_TEXTS]])
    temperature = fit_temperature(labels, start.values[:MOST_TEXTS], own, same, loss)
    facts = {"rows": len(own), "calibration": "temperature", "fitted_on": FITTED_ON}
    values = Postprocessing(np.full(len(labels), 1 / temperature), facts=facts)
    return values, {"fitted_on": FITTED_ON, "rows": len(own), "temperature": temperature}


def fit_temperature(
    labels: Labels, features: Tensor, targets: Tensor, same: Tensor, loss: float
) -> float:
    """The temperature of a classifier.

    Args:
        labels: The labels.
        features: What its head read of the training texts before training, ``[n, width]``.
        targets: Their labels, ``[n]`` or ``[n, num_labels]``.
        same: The first of them that is the same text, ``[n]``.
        loss: The mean loss of the trained classifier on training texts.
    """
    inputs = _kernel_features(features)
    low, high = STRENGTHS
    layer = None
    for _ in range(HALVINGS):
        strength = (low + high) / 2
        layer = _logistic(labels, inputs, targets, 10**strength, layer)
        fits = labels.losses(_logits(inputs, layer), targets).mean() < loss
        low, high = (strength, high) if fits else (low, strength)
    left_out = torch.empty(len(targets), len(labels))
    fold = _folds(targets, same)
    for i in range(calibration.FOLDS):
        layer = _logistic(labels, inputs[fold != i], targets[fold != i], 10**strength)
        left_out[fold == i] = _logits(inputs[fold == i], layer)
    given = left_out.double().numpy(), targets.numpy()
    return 1 / calibration.fit_temperature(labels, *given, PRIOR)


def _folds(targets: Tensor, same: Tensor) -> Tensor:
    """The fold of each text, ``[n]``. Equal texts meet, and each has its share of every label."""
    shuffled = torch.randperm(len(same), generator=torch.Generator().manual_seed(0))
    if targets.ndim == 1:
        shuffled = shuffled[targets[shuffled].argsort(stable=True)]
    place = torch.empty_like(shuffled)
    place[shuffled] = torch.arange(len(same))
    return place[same] % calibration.FOLDS


def _kernel_features(features: Tensor) -> Tensor:
    """Features ``[n, n]`` whose products are the Gaussian kernel of the standardised ones.

    It is as wide as the distance of two texts usually is.
    """
    x = features.double()
    x = (x - x.mean(dim=0)) / never_zero(x.std(dim=0, correction=0))
    squared = torch.cdist(x, x).square()
    kernel = (-squared / (2 * squared.mean()).clamp_min(1e-9)).exp()
    kernel.diagonal().add_(OWN)
    return torch.linalg.cholesky(kernel).float()


def _logits(inputs: Tensor, layer: Tensor) -> Tensor:
    return inputs @ layer[:-1] + layer[-1]


def _logistic(
    labels: Labels, inputs: Tensor, targets: Tensor, strength: float, start: Tensor | None = None
) -> Tensor:
    """Logistic regression with a penalty on the squares of its coefficients.

    Args:
        labels: The labels, which know the loss.
        inputs: The features, ``[n, width]``.
        targets: The labels of each text, ``[n]`` or ``[n, num_labels]``.
        strength: The penalty's strength, for the mean loss.
        start: Coefficients and intercepts to start from.

    Returns:
        Coefficients and, in the last row, intercepts, ``[width + 1, num_labels]``.
    """
    shape = inputs.shape[1] + 1, len(labels)

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        layer = torch.from_numpy(values).float().view(shape).requires_grad_()
        penalty = strength * layer[:-1].square().sum() / 2
        value = labels.losses(_logits(inputs, layer), targets).mean() + penalty
        (gradient,) = torch.autograd.grad(value, layer)
        return value.item(), gradient.double().numpy().ravel()

    first = np.zeros(shape).ravel() if start is None else start.double().numpy().ravel()
    options = {"maxiter": STEPS, "ftol": CHANGE}
    found = optimize.minimize(loss, first, jac=True, method="L-BFGS-B", options=options)
    return torch.from_numpy(found.x).float().view(shape)
