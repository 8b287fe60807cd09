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
from torch.nn import functional as F

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
        labels: The labels, one of which each text has.
        start: What the head read of training texts before training.
        targets: The labels of all training texts.
        loss: The mean cross-entropy of the trained classifier on some of them.

    Returns:
        The fitted values, and what `metrics.json` reports. Both are empty for fewer than
        `calibration.MIN_ROWS` different texts.
    """
    same = start.same[:MOST_TEXTS]
    if len(same.unique()) < calibration.MIN_ROWS:
        return RAW, {}
    own = torch.as_tensor(np.asarray(targets)[start.rows[:MOST_TEXTS]])
    goal = F.one_hot(own, len(labels)).float()
    temperature = fit_temperature(start.values[:MOST_TEXTS], goal, same, loss)
    facts = {"rows": len(own), "calibration": "temperature", "fitted_on": FITTED_ON}
    values = Postprocessing(np.full(len(labels), 1 / temperature), facts=facts)
    return values, {"fitted_on": FITTED_ON, "rows": len(own), "temperature": temperature}


def fit_temperature(features: Tensor, goal: Tensor, same: Tensor, loss: float) -> float:
    """The temperature of a classifier with one label per text.

    Args:
        features: What its head read of the training texts before training, ``[n, width]``.
        goal: 1 for the label of each text, ``[n, num_labels]``.
        same: The first of them that is the same text, ``[n]``.
        loss: The mean cross-entropy of the trained classifier on training texts.
    """
    inputs = _kernel_features(features)
    low, high = STRENGTHS
    layer, targets = None, goal.argmax(dim=1)
    for _ in range(HALVINGS):
        strength = (low + high) / 2
        layer = _logistic(inputs, goal, 10**strength, layer)
        fits = F.cross_entropy(_logits(inputs, layer), goal) < loss
        low, high = (strength, high) if fits else (low, strength)
    left_out = torch.empty_like(goal)
    fold = _folds(targets, same)
    for i in range(calibration.FOLDS):
        layer = _logistic(inputs[fold != i], goal[fold != i], 10**strength)
        left_out[fold == i] = _logits(inputs[fold == i], layer)
    return 1 / calibration.fit_temperature(left_out.double().numpy(), targets.numpy(), PRIOR)


def _folds(targets: Tensor, same: Tensor) -> Tensor:
    """The fold of each text, ``[n]``. Each has its share of every label, and equal texts meet."""
    shuffled = torch.randperm(len(same), generator=torch.Generator().manual_seed(0))
    by_label = shuffled[targets[shuffled].argsort(stable=True)]
    place = torch.empty_like(by_label)
    place[by_label] = torch.arange(len(same))
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


def _logistic(inputs: Tensor, goal: Tensor, strength: float, start: Tensor | None = None) -> Tensor:
    """Logistic regression with a penalty on the squares of its coefficients.

    Args:
        inputs: The features, ``[n, width]``.
        goal: 1 for the label of a text, ``[n, num_labels]``.
        strength: The penalty's strength, for the mean over the texts.
        start: Coefficients and intercepts to start from.

    Returns:
        Coefficients and, in the last row, intercepts, ``[width + 1, num_labels]``.
    """
    shape = inputs.shape[1] + 1, goal.shape[1]

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        layer = torch.from_numpy(values).float().view(shape)
        log_p = _logits(inputs, layer).log_softmax(dim=1)
        error = (log_p.exp() - goal) / len(goal)
        penalised = strength * layer[:-1]
        gradient = torch.cat([inputs.T @ error + penalised, error.sum(0, keepdim=True)])
        value = -(goal * log_p).sum() / len(goal) + (penalised * layer[:-1]).sum() / 2
        return float(value), gradient.double().numpy().ravel()

    first = np.zeros(shape).ravel() if start is None else start.double().numpy().ravel()
    options = {"maxiter": STEPS, "ftol": CHANGE}
    found = optimize.minimize(loss, first, jac=True, method="L-BFGS-B", options=options)
    return torch.from_numpy(found.x).float().view(shape)
