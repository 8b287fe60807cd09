"""The head's start, and steps that are relative to the scale of what they change."""

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, build_model, build_tokenizer
from conftest import SENTENCES, build, train_tokenizer
from datasets import Dataset
from torch import nn
from torch.nn import functional as F
from transformers import DataCollatorWithPadding

from ptune import PromptEncoderConfig, PromptModel
from ptune.data.dataset import WEIGHT
from ptune.labels import Labels
from ptune.training.features import Features
from ptune.training.fitting import fit_head, scale_and_shift, start_at_shares
from ptune.training.steps import ScaledSteps, prompt_scales

WORDS = [word for sentence in SENTENCES for word in sentence.split()]


def examples(tokenizer, targets):
    """A text for each target, without repetition."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, 6)) for _ in targets]
    return Dataset.from_dict({**tokenizer(texts), "labels": targets})


def features_of(model, train, tokenizer):
    return Features.of(model, train, DataCollatorWithPadding(tokenizer), seed=0)


# Heads of one layer and of two, with bias and without, on the first and on the last token.
@pytest.mark.parametrize("name", ["BERT", "RoBERTa", "GPT-2", "Llama", "BART", "XLNet"])
def test_features_are_what_the_last_layer_reads(name):
    tokenizer = build_tokenizer(ARCHITECTURES[name], SENTENCES)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = PromptModel(build_model(ARCHITECTURES[name], tokenizer))
    train = examples(tokenizer, [0, 1] * 10)
    found = features_of(model, train, tokenizer)
    head = {n: p.detach().clone() for n, p in model.head_parameters()}
    for row, values in zip(found.rows[:4], found.values[:4], strict=True):
        inputs = {k: torch.tensor([v]) for k, v in train[int(row)].items() if k != "labels"}
        expected = F.linear(values, found.weight, found.bias)
        torch.testing.assert_close(model(**inputs).logits[0], expected, atol=1e-4, rtol=1e-4)
    assert all(torch.equal(p, head[n]) for n, p in model.head_parameters())
    assert model.config.num_labels == len(found.weight)


@pytest.mark.parametrize(
    ("labels", "targets"),
    [
        (Labels(("a", "b", "c")), [i % 3 for i in range(60)]),
        (Labels(("a", "b"), "multi_label_classification"), [[i % 2, i % 3 < 1] for i in range(60)]),
        (Labels(("score",), "regression"), [float(i % 3) for i in range(60)]),
    ],
    ids=["single", "multi", "regression"],
)
def test_a_fitted_head_starts_below_the_loss_of_a_constant(tokenizer, labels, targets):
    """The text's first word tells the label."""
    words = ["money", "phone", "lamp", "order", "black", "help"]
    texts = [f"{words[i % 6]} {WORDS[i % 40]} the" for i in range(len(targets))]
    targets = [[float(x) for x in t] if isinstance(t, list) else t for t in targets]
    train = Dataset.from_dict({**tokenizer(texts), "labels": targets})
    backbone = build("bert", num_labels=len(labels), problem_type=labels.problem_type)
    model = PromptModel(backbone, PromptEncoderConfig(pooling="mean")).eval()
    features = features_of(model, train, tokenizer)
    fit_head(features, labels, train)
    inputs = tokenizer(texts, return_tensors="pt", padding=True)
    wanted = torch.tensor(targets)
    with torch.no_grad():
        loss = labels.losses(model(**inputs).logits, wanted).mean()
    if labels.is_single:
        constant = np.log(3)
    elif labels.is_multi:
        share = wanted.mean(dim=0)
        constant = F.binary_cross_entropy(share.expand_as(wanted), wanted)
    else:
        constant = wanted.var(correction=0)
    assert loss < 0.7 * constant


@pytest.mark.parametrize(
    ("labels", "targets", "weights", "expected"),
    [
        (Labels(("a", "b")), [0, 0, 0, 1], None, [0.75, 0.25]),
        (Labels(("a", "b")), [0, 0, 0, 1], [1 / 3, 1 / 3, 1 / 3, 1], [0.5, 0.5]),
        (Labels(("a", "b", "without an example")), [0, 0, 0, 1], None, [0.75, 0.25, 0.001]),
        # One target is unknown, and one label.
        (
            Labels(("a", "b", "c", "d"), "multi_label_classification"),
            [[a, b, 1.0, np.nan] for a, b in ((1, 0), (1, np.nan), (0, 0), (1, 1))],
            None,
            [3 / 4, 1 / 3, 0.999, 0.001],
        ),
        (Labels(("score",), "regression"), [1.0, 2.0, 3.0, 6.0], None, 3.0),
        (Labels(("score",), "regression"), [1.0, 2.0, 3.0, 6.0], [1, 1, 1, 0], 2.0),
    ],
    ids=["single", "weighted", "empty", "multi", "regression", "weighted regression"],
)
def test_a_linear_head_starts_at_the_shares_of_the_labels(
    tokenizer, labels, targets, weights, expected
):
    train = examples(tokenizer, targets)
    if weights:
        train = train.add_column(WEIGHT, weights)
    model = PromptModel(build("bert", num_labels=len(labels), problem_type=labels.problem_type))
    start_at_shares(model, labels, train)
    bias = dict(model.head_parameters())["classifier.bias"].detach()
    found = bias if labels.is_regression else bias.sigmoid() if labels.is_multi else bias.exp()
    np.testing.assert_allclose(found, np.reshape(expected, -1), rtol=1e-5)


# With a bias, and without one.
@pytest.mark.parametrize("name", ["BERT", "Llama"])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_head_of_words_is_scaled_and_shifted_to_what_tells_the_labels(name, weighted):
    tokenizer = build_tokenizer(ARCHITECTURES[name], SENTENCES)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model, labels = PromptModel(build_model(ARCHITECTURES[name], tokenizer)), Labels(("a", "b"))
    train = examples(tokenizer, [0] * 600)
    features = features_of(model, train, tokenizer)
    with torch.no_grad():
        torch.manual_seed(0)
        spread = 5 * torch.randn_like(features.weight) / features.std / features.std.numel() ** 0.5
        mean = features.mean / features.mean.square().sum()
        likelier = torch.tensor([2.0, -2.0])  # whatever the text says
        features.weight.copy_(spread + torch.outer(likelier - spread @ features.mean, mean))
        asked = F.linear(features.values, features.weight, features.bias).double()
        # Without a bias, only the mean of the features can shift logits.
        one = 1 if name == "BERT" else (features.values @ mean)[:, None]
        true = 0.3 * asked - one * (0.3 * likelier + torch.tensor([1.0, -1.0]))
    drawn = np.empty(600, dtype=int)
    drawn[features.rows] = torch.multinomial(true.softmax(dim=1), 1)[:, 0].numpy()
    own = np.ones(600)
    if weighted:  # what counts nothing has the other label
        own[:200], drawn[:200] = 0, 1 - drawn[:200]
    train = train.remove_columns("labels").add_column("labels", drawn.tolist())
    train = train.add_column(WEIGHT, own.tolist())
    features = features_of(model, train, tokenizer)
    targets = torch.from_numpy(drawn[features.rows])
    scale_and_shift(features, labels, train)
    with torch.no_grad():
        found = F.linear(features.values, features.weight, features.bias).double()
    places = {row: i for i, row in enumerate(np.random.default_rng(0).permutation(600).tolist())}
    true = true[[places[row] for row in features.rows.tolist()]]
    loss = F.cross_entropy(found, targets)
    assert loss < F.cross_entropy(true, targets) + 0.005
    margins = found[:, 0] - found[:, 1], true[:, 0] - true[:, 1]
    assert torch.corrcoef(torch.stack(margins))[0, 1] > 0.99


@pytest.mark.parametrize("count", [20, 60], ids=["fewer than the width", "more"])
def test_a_head_fitted_to_random_labels_is_not_confident(tokenizer, count):
    rng = np.random.default_rng(1)
    train = examples(tokenizer, rng.integers(0, 2, count).tolist())
    model = PromptModel(build("bert")).eval()
    features = features_of(model, train, tokenizer)
    fit_head(features, Labels(("a", "b")), train)
    other = tokenizer([" ".join(rng.choice(WORDS, 6)) for _ in range(50)], padding=True)
    with torch.no_grad():
        logits = model(**{k: torch.tensor(v) for k, v in other.items()}).logits
    assert logits.softmax(dim=1).max(dim=1).values.mean() < 0.7


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_a_scaled_head_trains_as_one_that_reads_standardised_features(optimizer):
    torch.manual_seed(0)
    values = torch.randn(64, 5) * torch.tensor([0.01, 0.1, 1.0, 10.0, 100.0]) + 3
    targets = (values[:, 0] > 3).long()
    mean, std = values.mean(dim=0), values.std(dim=0, correction=0)
    plain, standard = nn.Linear(5, 2), nn.Linear(5, 2)
    with torch.no_grad():
        plain.weight.copy_(standard.weight / std)
        plain.bias.copy_(standard.bias - plain.weight @ mean)
    features = Features(
        "weight", plain.weight, plain.bias, values, np.arange(64), torch.arange(64), mean, std
    )
    own, other = (optimizer(layer.parameters(), lr=0.01) for layer in (plain, standard))
    ScaledSteps(own, {}, features)
    standardised = (values - mean) / std
    for _ in range(5):
        for layer, inputs, steps in ((plain, values, own), (standard, standardised, other)):
            steps.zero_grad()
            F.cross_entropy(layer(inputs), targets).backward()
            steps.step()
    torch.testing.assert_close(plain(values), standard(standardised), atol=1e-3, rtol=1e-3)


def test_a_head_without_a_bias_does_not_learn_only_a_constant():
    """All features have the same large mean, and their differences tell the label."""
    torch.manual_seed(0)
    values = torch.randn(64, 20) + 30
    targets = (values[:, 0] > 30).long()
    right = []
    for scaled in (False, True):
        layer = nn.Linear(20, 2, bias=False)
        layer.weight.data.zero_()
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
        if scaled:
            std = values.std(dim=0)
            ScaledSteps(
                optimizer,
                {},
                Features(
                    "weight",
                    layer.weight,
                    None,
                    values,
                    np.arange(64),
                    torch.arange(64),
                    values.mean(dim=0),
                    std,
                ),
            )
        for batch in torch.arange(64).split(8) * 10:
            optimizer.zero_grad()
            F.cross_entropy(layer(values[batch]), targets[batch]).backward()
            optimizer.step()
        right.append(int((layer(values).argmax(dim=1) == targets).sum()))
    assert right[1] > 55 > right[0]


def test_keys_and_values_step_in_proportion_to_their_start():
    torch.manual_seed(0)
    model = PromptModel(build("bert"), PromptEncoderConfig(num_virtual_tokens=4))
    weight = model.prompt_encoder.embedding.weight
    width = weight.shape[1] // 4  # the keys and the values of each of two layers
    with torch.no_grad():
        weight[:, width : 2 * width] *= 100
    scales = prompt_scales(model)
    before = weight.detach().clone()
    optimizer = torch.optim.Adam([weight], lr=0.01)
    ScaledSteps(optimizer, scales)
    inputs = train_tokenizer(bos="[CLS]", eos="[SEP]")(SENTENCES[:2], padding=True)
    model(**{k: torch.tensor(v) for k, v in inputs.items()}).logits[:, 0].sum().backward()
    optimizer.step()
    parts = zip((weight - before).split(width, 1), before.split(width, 1), strict=True)
    relative = torch.stack([(a.pow(2).mean() / b.pow(2).mean()).sqrt() for a, b in parts])
    torch.testing.assert_close(relative, torch.full((4,), 0.01), atol=1e-3, rtol=0)
