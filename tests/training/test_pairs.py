"""Few examples: a prompt that learns from pairs of texts, with a head that is fitted to it."""

import numpy as np
import pytest
import torch
from conftest import refused
from transformers import TrainerCallback

from ptune import TrainSettings
from ptune.data.dataset import TaskData
from ptune.training.defaults import Situation, choose
from ptune.training.pairs import pair_loss
from ptune.training.run import trained_in_memory
from ptune.training.start import load_dataset

TEXTS = [f"{word} {number}" for word in ("send my money", "the lamp is red") for number in "12345"]
LABELS = ["refund"] * 5 + ["lamp"] * 5


def test_the_loss_is_small_if_texts_of_one_label_are_alike_and_others_are_not():
    apart = torch.eye(2).repeat_interleave(2, dim=0)
    labels = torch.tensor([0, 0, 1, 1])
    expected = np.log(1 + 2 * np.exp(-10))  # of three others, one has the cosine 1, and two have 0
    assert pair_loss(apart, labels).item() == pytest.approx(expected, rel=1e-3)
    assert pair_loss(7 * apart, labels).item() == pytest.approx(expected, rel=1e-3)
    mixed = pair_loss(apart, torch.tensor([0, 1, 0, 1])).item()
    assert mixed == pytest.approx(10 + expected, rel=1e-3)


@pytest.mark.parametrize("labels", [[0, 1, 2], [0]])
def test_texts_without_another_of_their_label_teach_nothing(labels):
    features = torch.randn(len(labels), 4, requires_grad=True)
    loss = pair_loss(features, torch.tensor(labels))
    loss.backward()
    assert loss.item() == 0
    assert features.grad.abs().max() == 0


def _settings(folder, **options):
    given = {"model": str(folder), "dtype": "float32", "num_virtual_tokens": 4, "batch_size": 4}
    return TrainSettings(**given, **options)


@pytest.mark.parametrize("prompt", ["deep", "input"])
def test_texts_of_one_label_become_alike_and_the_head_fits_the_last_prompt(prompt, bert_folder):
    data = TaskData.from_lists([TEXTS], LABELS)
    losses = {}
    for rate in (1e-9, 0.03):
        own = _settings(bert_folder, prompt=prompt, prompt_learning_rate=rate)
        with trained_in_memory(own, data, eval_strategy="no") as trainer:
            assert trainer.state.global_step == 48
            batch = trainer.data_collator(trainer.train_dataset.remove_columns("labels").to_list())
            targets = torch.tensor(trainer.train_dataset["labels"])
            trainer.model.eval()
            with torch.no_grad():
                features = trainer.pairs.read(batch)
                logits = trainer.model(**batch).logits
            losses[rate] = pair_loss(features, targets).item()
            assert (logits.argmax(dim=1) == targets).float().mean() >= 0.9
    assert losses[0.03] < losses[1e-9] - 0.05


class Heads(TrainerCallback):
    """Keeps the head of each evaluation."""

    def __init__(self):
        self.found = []

    def on_evaluate(self, args, state, control, model=None, **kwargs):
        self.found.append(dict(model.head_parameters())["classifier.weight"].clone())


def test_every_evaluation_has_a_head_for_its_own_prompt(bert_folder, tmp_path):
    rows = [f"{text},{label}" for text, label in zip(TEXTS, LABELS, strict=True)]
    (tmp_path / "mail.csv").write_text("\n".join(["text,label", *rows]))
    own = _settings(bert_folder, train_file=str(tmp_path / "mail.csv"), epochs=2)
    heads = Heads()
    with trained_in_memory(own, load_dataset(own), callbacks=[heads]):
        first, second = heads.found
        assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("options", "texts", "labels", "loss"),
    [
        ({}, TEXTS, LABELS, "pairs"),
        ({}, TEXTS * 7, LABELS * 7, "labels"),
        ({}, TEXTS, [["a"], ["a", "b"]] * 5, "labels"),
        ({"prompt": "reader"}, TEXTS, LABELS, "labels"),
        ({"loss": "labels"}, TEXTS, LABELS, "labels"),
        ({"head": "linear"}, TEXTS, LABELS, "labels"),
    ],
    ids=["few", "many", "several labels", "reader", "own", "head"],
)
def test_few_examples_are_learned_in_pairs(options, texts, labels, loss, bert_folder):
    data, own = TaskData.from_lists([texts], labels), _settings(bert_folder, **options)
    assert choose(own, Situation.of(own, data)).loss == loss


@pytest.mark.parametrize(
    ("options", "labels"),
    [
        ({}, [0.5, 1.5] * 5),
        ({"prompt": "reader"}, LABELS),
        ({"head": "linear"}, LABELS),
        ({"long_texts": "windows"}, LABELS),
        ({"processes": 2}, LABELS),
    ],
    ids=["regression", "reader", "head", "windows", "processes"],
)
def test_what_cannot_learn_from_pairs_is_refused(options, labels, bert_folder):
    own = _settings(bert_folder, loss="pairs", **options)
    message = (
        "loss pairs requires one label per text, a deep or input prompt, a head that starts from "
        "features, texts that are not read in windows, and one process, which sees all pairs of a "
        "batch. Change that, or leave loss out."
    )
    with refused(message), trained_in_memory(own, TaskData.from_lists([TEXTS], labels)):
        pass
