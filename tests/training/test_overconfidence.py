"""Calibration without held-out texts."""

import numpy as np
import pytest
import torch
from scipy import special
from sklearn.metrics import log_loss
from sklearn.neural_network import MLPClassifier

import ptune
from ptune.adapters.adapter import describe
from ptune.adapters.card import model_card
from ptune.labels import Labels
from ptune.quality.evidence import of_run
from ptune.training.calibration import ece
from ptune.training.overconfidence import fit_temperature
from ptune.training.start import dataset_of_run


def drawn(n, sure, seed=0, width=100):
    """Features, and labels that are drawn from their probabilities."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, width))
    p = special.expit(sure * x[:, 0])
    return x, (rng.random(n) < p).astype(int)


def temperature(x, y, loss, same=None):
    given = torch.from_numpy(x).float(), torch.from_numpy(y)
    own = torch.arange(len(y)) if same is None else same
    return fit_temperature(Labels(("no", "yes")), *given, own, loss)


def test_a_classifier_that_knows_its_texts_by_heart_becomes_honest_about_others():
    x, y = drawn(300, sure=3.0)
    network = MLPClassifier((64,), max_iter=300, random_state=0).fit(x, y)
    x_new, y_new = drawn(3000, sure=3.0, seed=1)
    labels, logits = Labels(("no", "yes")), np.log(network.predict_proba(x_new).clip(1e-9))
    found = temperature(x, y, log_loss(y, network.predict_proba(x)))
    before, after = (ece(labels, labels.probabilities(logits / t), y_new) for t in (1, found))
    assert after < 0.08 < 0.2 < before


def test_labels_that_a_text_can_have_together_share_a_temperature():
    drawings = [drawn(300, sure=3.0, seed=s) for s in (0, 2)]
    x, y = drawings[0][0], np.stack([drawings[0][1], drawings[1][1]], axis=1)
    network = MLPClassifier((64,), max_iter=300, random_state=0).fit(x, y)
    labels = Labels(("a", "b"), problem_type="multi_label_classification")
    given = torch.from_numpy(x).float(), torch.from_numpy(y).float()
    known = special.logit(network.predict_proba(x).clip(1e-9, 1 - 1e-9))
    loss = float(labels.losses(torch.from_numpy(known), given[1].double()).mean())
    given[1][:10, 1] = torch.nan  # unknown
    found = fit_temperature(labels, *given, torch.arange(300), loss)
    x_new, first = drawn(3000, sure=3.0, seed=1)
    y_new = np.stack([first, np.random.default_rng(3).integers(0, 2, 3000)], axis=1)
    logits = special.logit(network.predict_proba(x_new).clip(1e-9, 1 - 1e-9))
    before, after = (ece(labels, labels.probabilities(logits / t), y_new) for t in (1, found))
    assert after < 0.15 < 0.25 < before


def test_it_is_more_sure_if_its_texts_tell_more():
    found = [temperature(*drawn(200, sure), 0.01) for sure in (0.0, 3.0, 30.0)]
    assert found[0] > 2 * found[1] > 2 * found[2] >= 2


def test_copies_of_a_text_do_not_vouch_for_it():
    """With random labels, a copy in another fold would be answered right and with certainty."""
    x, y = drawn(60, sure=0.0)
    copied = np.repeat(x, 5, axis=0), np.repeat(y, 5)
    same = torch.arange(60).repeat_interleave(5) * 5
    assert temperature(*copied, 0.01, same) > 0.7 * temperature(x, y, 0.01) > 2
    assert temperature(*copied, 0.01) < 1


# Classifiers that are trained on all their examples.


@pytest.fixture(scope="module")
def memorised(bert_folder, texts):
    """What trains a classifier on 100 texts with random labels; the classifier; new texts."""
    rng = np.random.default_rng(0)
    words = sorted({word for text in texts for word in text.split()})
    given = [" ".join(rng.choice(words, 6)) for _ in range(300)]
    examples = given[:100], rng.choice(["yes", "no"], 100)
    how = {"model": str(bert_folder), "num_virtual_tokens": 4, "dtype": "float32", "epochs": 30}
    how |= {"learning_rate": 0.1, "prompt_learning_rate": 0.5}

    def train(labels=examples[1], **settings):
        own = ptune.PromptClassifier(**how, **settings)
        return own.fit(examples[0], labels, device="cpu", verbose=False)

    return train, train(), given[100:]


def test_random_labels_give_no_confidence(memorised):
    _, classifier, new = memorised
    logits = np.stack(list(classifier.logits(new)))
    before, after = special.softmax(logits, axis=1), classifier.predict_proba(new)
    assert before.max(axis=1).mean() > 0.7
    assert after.max(axis=1).mean() < 0.6
    assert (before.argmax(axis=1) == after.argmax(axis=1)).all()
    assert classifier.postprocessing_.facts == {
        "rows": 100,
        "calibration": "temperature",
        "fitted_on": "training, cross-fitted",
    }


def test_the_temperature_is_the_same_everywhere(memorised, bert_folder, tmp_path):
    _, classifier, new = memorised
    classifier.save(tmp_path / "saved")
    wanted = classifier.predict_proba(new[:9])
    loaded = ptune.load(tmp_path / "saved", dtype="float32", device="cpu")
    assert loaded.postprocessing_.facts == classifier.postprocessing_.facts
    np.testing.assert_allclose(loaded.predict_proba(new[:9]), wanted, atol=1e-5)
    bank = ptune.PromptBank(str(bert_folder), dtype="float32", device="cpu")
    bank.add("task", tmp_path / "saved")
    found = [list(p.probabilities.values()) for p in bank([("task", t) for t in new[:9]])]
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_the_card_and_info_tell_how_it_was_fitted(memorised, tmp_path):
    _, classifier, _ = memorised
    classifier.save(tmp_path)
    expected = "temperature scaling, cross-fitted on training texts (100)"
    assert describe(tmp_path)["calibration"] == expected
    card = model_card(tmp_path, "alice/random").text
    assert f"- Probabilities are calibrated: {expected}." in card
    assert "scores below" not in card


def test_a_run_with_few_held_out_texts_says_where_its_temperature_is_from(
    bert_folder, texts, tmp_path
):
    file = tmp_path / "train.csv"
    rows = [f'"{t} {i}",{"money" if "money" in t else "other"}' for i in range(8) for t in texts]
    file.write_text("\n".join(["text,label", *rows]) + "\n", "utf-8")
    how = {"model": str(bert_folder), "train_file": str(file), "epochs": 1, "label_names": False}
    settings = ptune.TrainSettings(**how)
    run = ptune.train_run(settings, tmp_path / "run")
    held_out = sum(run.metrics["eval_examples"].values())
    assert held_out < 20
    quality = run.metrics["quality"]
    assert quality["fitted_on"] == "training, cross-fitted"
    assert quality["rows"] == len(rows) - held_out
    assert 1 / quality["temperature"] == pytest.approx(run.postprocessing.scale)
    # No text of the evaluation set was used, so nothing has to be cross-fitted for its report.
    classifier, data = ptune.load(run.folder, device="cpu"), dataset_of_run(run.folder)
    (found,) = of_run(classifier, data)
    assert found.measured_on == "evaluation"
    assert found.calibration.startswith("temperature scaling, cross-fitted on training texts")
    np.testing.assert_allclose(found.calibrated, run.postprocessing.calibrated(found.logits))


def test_random_labels_give_no_confidence_if_a_text_can_have_several(memorised):
    train, _, new = memorised
    rng = np.random.default_rng(1)
    classifier = train([[name for name in "ab" if rng.random() < 0.5] for _ in range(100)])
    raw = special.expit(np.stack(list(classifier.logits(new))))
    probabilities = classifier.predict_proba(new)
    before, after = (np.abs(p - 0.5).mean() for p in (raw, probabilities))
    assert before > 0.2
    assert after < 0.7 * before
    assert ((raw > 0.5) == (probabilities > 0.5)).all()
    assert classifier.postprocessing_.facts["fitted_on"] == "training, cross-fitted"


def test_calibrate_false_leaves_the_probabilities_as_they_are(memorised):
    train, classifier, new = memorised
    raw = train(calibrate=False)
    assert not raw.postprocessing_.tensors
    logits = np.stack(list(classifier.logits(new)))
    np.testing.assert_allclose(raw.predict_proba(new), special.softmax(logits, axis=1), atol=1e-5)
