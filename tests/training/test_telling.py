"""The head's start if texts are read in windows of which few tell the label."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import nn
from torch.nn import functional as F

from ptune.labels import Labels
from ptune.texts import pooled
from ptune.training.features import Features
from ptune.training.fitting import fit_head

LABELS, WIDTH = Labels(("a", "b", "c")), 16


def windows_of(targets, telling, seed, among=12, size=1.0):
    """Twelve windows per text, of which some of the last are near the place of its label."""
    random = torch.Generator().manual_seed(seed)
    texts = torch.randn(len(targets), 12, WIDTH, generator=random)
    # What tells a label also differs from all other windows in a way that labels share.
    places = 4 * torch.eye(WIDTH)[:3] + 3 * torch.eye(WIDTH)[5]
    for text, target in zip(texts, targets, strict=True):
        chosen = 12 - among + torch.randperm(among, generator=random)[:telling]
        text[chosen] += size * places[target]
    return list(texts)


def accuracy(train, targets, test, windows, weights=None):
    """On the test texts, of a head as it starts."""
    values = torch.stack([text.mean(dim=0) for text in train])
    read = torch.cat(train)
    head, rows = nn.Linear(WIDTH, 3), torch.arange(len(train))
    scale = read.mean(dim=0), read.std(dim=0)
    given = train if windows else ()
    features = Features("", head.weight, head.bias, values, rows.numpy(), rows, *scale, given)
    columns = {"labels": targets.tolist()} | ({"weight": weights} if weights else {})
    counted = fit_head(features, LABELS, Dataset.from_dict(columns))
    text_of = np.repeat(np.arange(len(test)), 12).tolist()
    logits = pooled(F.linear(torch.cat(test), head.weight, head.bias), text_of, weights=counted)
    expected = torch.arange(len(test)) % 3
    loss = float(F.cross_entropy(logits, expected).detach())
    return float((logits.argmax(dim=1) == expected).float().mean()), loss


def test_a_head_starts_from_the_windows_that_tell_the_label():
    targets = torch.arange(90) % 3
    train, test = (windows_of(targets, 1, seed) for seed in (0, 1))
    means, _ = accuracy(train, targets, test, windows=False)
    telling, loss = accuracy(train, targets, test, windows=True)
    assert telling > max(0.85, means + 0.15)
    assert loss < 0.5  # it is not overconfident


def test_a_head_learns_where_in_a_text_the_telling_windows_are():
    targets, found = torch.arange(240) % 3, {}
    for among in (12, 2):
        train, test = (windows_of(targets, 1, seed, among, size=0.5) for seed in (0, 1))
        found[among], _ = accuracy(train, targets, test, windows=True)
    assert found[2] > found[12] + 0.1


@pytest.mark.parametrize("period", [3, 5])
def test_a_head_is_no_worse_where_every_window_tells_the_label(period):
    """Also if every fifth text has the same label, and no other text has it."""
    numbers = torch.arange(90)
    targets = numbers % 3 if period == 3 else (numbers % 5 > 0) * (1 + numbers % 2)
    train, test = windows_of(targets, 12, 0), windows_of(numbers % 3, 12, 1)
    _, means = accuracy(train, targets, test, windows=False)
    right, loss = accuracy(train, targets, test, windows=True)
    assert right == 1
    assert loss <= means + 1e-6


def test_wrong_texts_with_little_weight_change_little():
    targets = torch.arange(90) % 3
    train, test = (windows_of(targets, 1, seed) for seed in (0, 1))
    doubled = torch.cat([targets, (targets + 1) % 3])
    weights = [1.0] * 90 + [0.01] * 90
    found, _ = accuracy(train * 2, doubled, test, True, weights)
    assert found > 0.85


def test_a_label_of_no_text_and_a_single_text_start_without_nan():
    for count in (1, 2, 9):
        targets = torch.arange(count) % 2
        _, loss = accuracy(windows_of(targets, 1, 0), targets, windows_of([0, 1, 2], 1, 1), True)
        assert np.isfinite(loss)
