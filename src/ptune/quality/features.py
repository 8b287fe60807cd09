"""Features of texts from a frozen backbone, and linear classifiers on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from ptune import texts
from ptune.backbones.architectures import Architecture
from ptune.backbones.loading import default_device, load_backbone, load_tokenizer, smallest
from ptune.training import calibration

Array = NDArray[Any]
# Texts per `batch_size` of 128 tokens.
BATCH_SIZE = 32
# How far the covariance of `Discriminant` is moved towards that of independent features.
SHRINKAGE = 0.3

Show = Callable[[Iterable[list[int]], int], Iterable[list[int]]]


@torch.inference_mode()
def features(
    columns: Sequence[Sequence[str]],
    model: str,
    *,
    revision: str | None = None,
    show: Show = lambda batches, total: batches,
) -> tuple[Array, list[int]]:
    """The mean of a backbone's last hidden states over each text, normalised to length 1.

    Args:
        columns: One column of texts; or two, the first texts and the second texts.
        model: The backbone.
        revision: Its revision on the Hub.
        show: Shows progress: takes batches and their number.

    Returns:
        Features ``[n, hidden]`` in float32, and the positions of the texts that are longer than
        the backbone reads.

    Raises:
        PtuneError: The backbone cannot be loaded.
    """
    tokenizer, loaded = load_tokenizer(model, revision=revision), load_backbone(model)
    limit = smallest(Architecture.of(loaded).max_positions, tokenizer.model_max_length)
    encoder: Any = loaded.base_model.eval()
    if loaded.config.is_encoder_decoder:
        encoder = encoder.get_encoder()
    encoder.to(device := default_device())
    encoded, cut = texts.encode(tokenizer, columns, limit)
    lengths = [len(ids) for ids in encoded["input_ids"]]
    batches = list(texts.batches(lengths, BATCH_SIZE, texts.most_padding(device)))
    found = np.empty((len(columns[0]), 0), dtype=np.float32)
    for chosen in show(batches, len(batches)):
        batch = tokenizer.pad(texts.take(encoded, chosen), return_tensors="pt").to(device)
        states = encoder(**batch)[0].float()  # [batch, seq, hidden]
        mask = batch["attention_mask"][..., None]
        means = (states * mask).sum(dim=1) / mask.sum(dim=1)
        if not found.shape[1]:
            found = np.empty((len(columns[0]), means.shape[1]), dtype=np.float32)
        found[chosen] = torch.nn.functional.normalize(means).cpu().numpy()
    return found, cut


def nearest(new: Array, known: Array, count: int = 3) -> Array:
    """The numbers ``[n, count]`` of the known texts that are most alike, the most alike first.

    Args:
        new: Features ``[n, hidden]``.
        known: Features ``[known, hidden]``.
        count: How many to find for each.
    """
    return np.argsort(-(new @ known.T), axis=1)[:, :count]


def fit_logistic_regression(x: Array, y: Array) -> LogisticRegression:
    """Logistic regression on features of length 1, which the demo and the report compare with."""
    return LogisticRegression(C=10.0, max_iter=1000).fit(x, y)


class Discriminant:
    """Linear discriminant analysis: a linear classifier with a closed form, so it fits at once.

    Args:
        x: Features ``[n, hidden]``.
        y: Label numbers ``[n]``.
        labels: How many labels there are.
    """

    def __init__(self, x: Array, y: Array, labels: int) -> None:
        counts = np.bincount(y, minlength=labels)
        means = np.zeros((labels, x.shape[1]))
        np.add.at(means, y, x)
        means /= np.maximum(counts, 1)[:, None]
        rest = x - means[y]
        covariance = rest.T @ rest / len(x)
        size = np.trace(covariance) / len(covariance)
        covariance = (1 - SHRINKAGE) * covariance
        covariance.flat[:: len(covariance) + 1] += SHRINKAGE * size + 1e-9
        self.weight = np.linalg.solve(covariance, means.T)  # [hidden, labels]
        prior = np.log(np.maximum(counts, 0.1) / len(x))
        self.bias = prior - 0.5 * (means.T * self.weight).sum(axis=0)

    def logits(self, x: Array) -> Array:
        """Logits ``[n, labels]``."""
        return x @ self.weight + self.bias


def cross_fitted_logits(x: Array, y: Array, labels: int) -> Array:
    """Logits ``[n, labels]`` of each text, by a `Discriminant` that did not see it."""
    found = np.empty((len(x), labels))
    for out in calibration.folds(len(x)):
        found[out] = Discriminant(x[~out], y[~out], labels).logits(x[out])
    return found
