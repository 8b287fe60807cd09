"""What is fitted on held-out texts, on simulated logits whose truth is known."""

import re
import warnings

import numpy as np
import pytest
from conftest import refused
from scipy import special
from sklearn.metrics import roc_auc_score

import ptune
from ptune.data.dataset import TaskData
from ptune.files import METRICS_NAME, read_json
from ptune.labels import Labels
from ptune.postprocessing import RAW, Goal
from ptune.training.calibration import ece, fit, fit_thresholds, fit_unfamiliar, some_of_each
from ptune.training.start import prepare

ONE = Labels(("a", "b", "c"))
SEVERAL = Labels(("a", "b", "c"), "multi_label_classification")


def simulated(labels, n, seed, overconfident=1.0):
    """Logits and labels drawn from their probabilities; then the logits are scaled."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=2.0, size=(n, len(labels)))
    p = labels.probabilities(logits)
    if labels.is_single:
        targets = (p.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
    else:
        targets = (rng.random(p.shape) < p).astype(float)
    return logits * overconfident, targets


@pytest.mark.parametrize("labels", [ONE, SEVERAL], ids=["one", "several"])
def test_an_overconfident_classifier_becomes_honest(labels):
    values, measured = fit(labels, *simulated(labels, 2000, 0, overconfident=3.0), Goal("f1"))
    assert measured["ece"]["after"] < 0.03 < 0.08 < measured["ece"]["before"]
    assert measured["brier"]["after"] < measured["brier"]["before"]
    logits, targets = simulated(labels, 2000, 1, overconfident=3.0)  # new texts
    p = labels.probabilities(values.calibrated(logits))
    assert ece(labels, p, targets) < 0.03
    np.testing.assert_allclose(values.scale, 1 / 3, rtol=0.15)


def test_the_temperature_changes_no_decision():
    logits, targets = simulated(ONE, 500, 0, overconfident=3.0)
    values, _ = fit(ONE, logits, targets)
    assert (values.margins(logits).argmax(axis=1) == logits.argmax(axis=1)).all()


@pytest.mark.parametrize("labels", [ONE, SEVERAL], ids=["one", "several"])
def test_what_is_honest_already_shows_no_gain(labels):
    """Measured on the texts of the fit itself, there would be one."""
    fits = [fit(labels, *simulated(labels, 60, seed)) for seed in range(30)]
    brier = [measured["brier"] for _, measured in fits]
    assert np.mean([b["after"] - b["before"] for b in brier]) > 0


def test_random_labels_show_no_gain():
    rng = np.random.default_rng(0)
    labels = Labels(tuple("abcdef"), "multi_label_classification")
    gains = []
    for _ in range(20):
        targets = (rng.random((100, 6)) < 0.5).astype(float)
        logits = rng.normal(scale=0.1, size=(100, 6)) + 3.0  # says yes to everything
        gains.append(fit(labels, logits, targets, Goal("f1"))[1]["f1_macro"])
    assert np.mean([g["after"] - g["before"] for g in gains]) < 0


def test_all_predictions_right_is_no_reason_for_certainty():
    logits, targets = 2.0 * np.eye(3)[np.arange(30) % 3], np.arange(30) % 3
    values, _ = fit(ONE, logits, targets)
    assert 1 < values.scale[0] < 5


def test_too_few_texts_and_regressions_are_left_alone():
    assert fit(ONE, *simulated(ONE, 19, 0)) == (RAW, {})
    assert fit(Labels(("score",), "regression"), np.ones((50, 1)), np.ones(50)) == (RAW, {})


def test_unknown_labels_do_not_count():
    logits, targets = simulated(SEVERAL, 400, 0, overconfident=3.0)
    wanted, _ = fit(SEVERAL, logits[:200], targets[:200], Goal("f1"))
    targets[200:] = np.nan
    found, measured = fit(SEVERAL, logits, targets, Goal("f1"))
    assert measured["rows"] == 200
    np.testing.assert_allclose(found.scale, wanted.scale)
    np.testing.assert_allclose(found.thresholds, wanted.thresholds)


def test_thresholds_reach_their_goal():
    rng = np.random.default_rng(0)
    p = rng.random((4000, 1))
    y = (rng.random((4000, 1)) < p**3).astype(float)

    def scores(goal):
        chosen = p > fit_thresholds(p, y, goal)
        hits = (chosen & (y == 1)).sum()
        return hits / chosen.sum(), hits / y.sum()

    precision, recall = scores(Goal("precision", 0.7))
    assert precision >= 0.7
    assert recall == pytest.approx(0.5, abs=0.2)
    assert scores(Goal("recall", 0.9))[1] >= 0.9
    best = max(np.linspace(0.05, 0.95, 19), key=lambda t: _f1(p > t, y))
    assert _f1(p > fit_thresholds(p, y, Goal("f1")), y) >= _f1(p > best, y)
    (never,) = fit_thresholds(1 - p, np.zeros_like(p), Goal("precision", 0.7))
    assert never == 1


def _f1(chosen, y):
    return 2 * (chosen & (y == 1)).sum() / (chosen.sum() + y.sum())


def test_sets_hold_the_true_label_as_often_as_promised():
    covered, labels = [], ONE
    for seed in range(20):
        values, _ = fit(labels, *simulated(labels, 500, seed, overconfident=2.0))
        logits, targets = simulated(labels, 500, 100 + seed, overconfident=2.0)
        sets = values.label_sets(labels, logits, 0.9)
        covered.append(sets[np.arange(500), targets].mean())
    assert np.mean(covered) == pytest.approx(0.9, abs=0.015)


def clusters(n, seed, known=6, size=8):
    """Logits around the means of some labels, and labels; and logits around other means."""
    rng, means = np.random.default_rng(seed), np.random.default_rng(0).normal(size=(12, size)) * 4
    y = rng.integers(0, known, n)
    others = means[known:][rng.integers(0, 12 - known, n)]
    spread = np.linspace(0.3, 2.0, size)  # some directions vary more than others
    return means[y] + rng.normal(size=(n, size)) * spread, y, others + rng.normal(size=others.shape)


@pytest.mark.parametrize("known", [None, 3])
def test_unfamiliar_texts_are_told_from_those_of_known_labels(known):
    logits, y, _ = clusters(600, 1)
    known = known and clusters(200, known)[0]
    unfamiliar = fit_unfamiliar(logits, y, known)
    inside, _, outside = clusters(600, 2)
    assert np.mean(unfamiliar.share(inside) > 0.95) == pytest.approx(0.05, abs=0.03)
    assert np.mean(unfamiliar.share(outside) > 0.95) > 0.9
    energy = -special.logsumexp(np.concatenate([inside, outside]), axis=1)
    share = unfamiliar.share(np.concatenate([inside, outside]))
    truth = np.arange(1200) >= 600
    assert roc_auc_score(truth, share) > roc_auc_score(truth, energy)
    assert fit_unfamiliar(logits[:49], y[:49], known) is None


def test_a_measure_that_hardly_varies_has_no_weight_in_what_is_unfamiliar():
    """Here it is the entropy of very certain probabilities, by which other texts would be told."""
    rng, y = np.random.default_rng(0), np.arange(120) % 2
    logits = np.where(np.eye(2)[y] == 1, 20.0, 0.0) + rng.normal(size=(120, 1))
    logits += rng.normal(size=logits.shape) / 4
    others = np.where(np.eye(2)[y] == 1, 18.0, 0.0) + rng.normal(size=(120, 1))
    weights = fit_unfamiliar(logits, y, None, others).weights
    assert np.abs(weights).max() < 1e6  # else the adapter that holds them could not be read


def test_texts_that_are_far_from_every_training_text_are_unfamiliar():
    """Labels whose texts form a ring have a mean that is no text's place."""
    rng, size = np.random.default_rng(0), 24

    def of(y, x):
        return np.concatenate([x, 30 * np.eye(size)[y][:, 2:] + rng.normal(size=(len(y), 22))], 1)

    def ring(n):
        angle, y = rng.uniform(0, 2 * np.pi, n), rng.integers(2, size, n)
        around = 20 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        return of(y, around + rng.normal(size=(n, 2))), y

    (logits, y), (known, _) = ring(800), ring(1000)
    middle = of(rng.integers(2, size, 100), rng.normal(size=(100, 2)) * 2)
    found = fit_unfamiliar(logits, y, known)
    assert np.mean(found.share(middle) > 0.95) > 0.5
    assert np.mean(found.share(ring(400)[0]) > 0.95) == pytest.approx(0.04, abs=0.04)
    # Other texts of no label choose what counts.
    chosen = fit_unfamiliar(logits, y, known, middle[:50])
    new = np.concatenate([ring(400)[0], middle[50:]])
    truth = np.arange(450) >= 400
    assert roc_auc_score(truth, chosen.score(new)) >= roc_auc_score(truth, found.score(new))
    assert np.mean(chosen.share(ring(400)[0]) > 0.95) == pytest.approx(0.04, abs=0.04)


def test_with_few_labels_unfamiliar_texts_are_told_as_well_as_by_the_energy():
    rng = np.random.default_rng(0)

    def texts(n, size):
        y = rng.integers(0, 2, n)
        sure = rng.gamma(9, size / 9, n)[:, None]
        return np.eye(2)[y] * sure + rng.normal(size=(n, 2)) * 0.7, y

    found = fit_unfamiliar(*texts(300, 8.0), texts(300, 12.0)[0])  # sure of its training texts
    new = np.concatenate([texts(400, 8.0)[0], texts(400, 3.0)[0]])
    truth = np.arange(800) >= 400
    energy = roc_auc_score(truth, -special.logsumexp(new, axis=1))
    assert energy > 0.9
    assert roc_auc_score(truth, found.score(new)) > energy - 0.01


@pytest.mark.parametrize(("right", "marked"), [(True, 0.015), (False, 0.05)])
def test_the_threshold_marks_few_texts_whose_label_is_right(right, marked):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 8, 6000)
    logits = 6 * np.eye(8)[y] + rng.normal(size=(6000, 8))
    found = fit_unfamiliar(logits[:3000], y[:3000] if right else (y[:3000] + 1) % 8)
    assert np.mean(found.share(logits[3000:]) > 0.95) == pytest.approx(marked, abs=0.015)


def test_training_texts_of_every_label_are_kept_within_a_limit():
    targets = np.array([0] * 500 + [1] * 5 + [2] * 40)
    chosen = some_of_each(targets, 3)
    assert np.bincount(targets[chosen]).tolist() == [64, 5, 40]
    assert np.bincount(some_of_each(np.arange(10_000) % 200, 200) % 200).tolist() == [25] * 200


def test_few_texts_of_a_label_do_not_make_its_own_texts_familiar():
    """Judged by their own fit, held-out texts would be closer than new ones."""
    flagged = []
    for seed in range(20):
        logits, y, _ = clusters(60, seed)
        flagged.append(np.mean(fit_unfamiliar(logits, y).share(clusters(300, 99)[0]) > 0.95))
    assert np.mean(flagged) == pytest.approx(0.05, abs=0.03)


def test_a_run_keeps_the_logits_of_training_texts_and_learns_nothing_from_others(
    bert_folder, texts, tmp_path
):
    file = tmp_path / "train.csv"
    rows = [f'"{t} {i}",{"money" if "money" in t else "other"}' for i in range(34) for t in texts]
    rows += [f"nothing here {i},nothing" for i in range(12)]
    file.write_text("\n".join(["text,label", *rows]) + "\n", "utf-8")
    how = {"model": str(bert_folder), "train_file": str(file), "dtype": "float32", "epochs": 1}
    how["other_label"] = "nothing"
    run = ptune.train_run(ptune.TrainSettings(**how), tmp_path / "run")
    assert run.metrics["quality"]["out_of_scope"]["rows"] == 12
    assert 0 <= run.metrics["quality"]["out_of_scope"]["marked"] <= 1
    fitted, loaded = run.postprocessing, ptune.load(tmp_path / "run", dtype="float32", device="cpu")
    assert loaded.labels == ["money", "other"]
    most = sum(min(64, n) for n in np.bincount(["money" in t for t in texts]) * 34)
    most += run.metrics["quality"]["rows"]
    assert 0.7 * most < len(fitted.unfamiliar.known) <= most
    logits = np.stack(list(loaded.logits(texts)))
    found = [p.unfamiliar for p in loaded(texts)]
    assert found == pytest.approx(fitted.unfamiliar.share(logits).tolist(), abs=1e-6)


@pytest.fixture(scope="module")
def run(bert_folder, texts, tmp_path_factory):
    """A run with 24 held-out texts."""
    file = tmp_path_factory.mktemp("calibration") / "train.csv"
    rows = [f'"{t} {i}",{"money" if "money" in t else "other"}' for i in range(15) for t in texts]
    file.write_text("\n".join(["text,label", *rows]) + "\n", "utf-8")
    settings = ptune.TrainSettings(
        model=str(bert_folder),
        train_file=str(file),
        num_virtual_tokens=4,
        dtype="float32",
        epochs=2,
    )
    return ptune.train_run(settings, file.parent / "run"), settings


def test_a_run_calibrates_its_classifier(run, texts):
    run, _ = run
    loaded = ptune.load(run.folder, dtype="float32")
    np.testing.assert_array_equal(loaded.postprocessing_.scale, run.postprocessing.scale)
    assert read_json(run.folder / METRICS_NAME)["quality"] == run.metrics["quality"]
    assert run.metrics["quality"]["measured_on"] == "evaluation, cross-fitted"
    assert run.metrics["quality"]["rows"] == 24
    logits = np.stack(list(loaded.logits(texts)))
    wanted = special.softmax(logits / run.metrics["quality"]["temperature"], axis=1)
    np.testing.assert_allclose(loaded.predict_proba(texts), wanted, atol=1e-6)


def test_no_calibrate_leaves_the_probabilities_as_they_are(run, tmp_path):
    before, settings = run
    own = ptune.TrainSettings(**{**settings.to_dict(), "calibrate": False})
    raw = ptune.train_run(own, tmp_path / "raw")
    assert not raw.postprocessing.tensors
    assert raw.metrics["quality"] == {}
    assert raw.metrics["eval"] == before.metrics["eval"]


def test_a_wrong_goal_is_refused_before_any_training(run, texts, tmp_path):
    _, settings = run
    own = ptune.TrainSettings(**{**settings.to_dict(), "threshold_for": "precision>=9"})
    with refused("threshold_for is 'precision>=9'; expected f1, none, …"):
        ptune.train_run(own, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    classifier = ptune.PromptClassifier(
        settings.model, threshold_for="precision>=9", num_virtual_tokens=4, epochs=10**6
    )
    with refused("threshold_for is 'precision>=9'; expected f1, none, …"):
        classifier.fit(texts, ["a", "b"] * (len(texts) // 2) + ["a"] * (len(texts) % 2))


@pytest.mark.parametrize(
    ("labels", "own", "why"),
    [
        (["a", "b"], {}, "is not used: only texts that can have several labels"),
        ([["a"], ["a", "b"]], {"calibrate": False}, "is not used: .* only with calibration"),
        ([["a"], ["a", "b"]], {}, None),
        ([["a"], ["a", "b"]], {"calibrate": False, "threshold_for": "none"}, None),
    ],
)
def test_a_goal_without_effect_is_reported(bert_folder, labels, own, why):
    data = TaskData.from_lists([["one", "two"]], labels)
    own = {"threshold_for": "precision>=0.9", **own}
    settings = ptune.TrainSettings(model=str(bert_folder), num_virtual_tokens=4, **own)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        prepare(settings, data)
    found = [str(w.message) for w in caught if "threshold_for" in str(w.message)]
    assert len(found) == (why is not None)
    assert all(re.search(why, message) for message in found)
