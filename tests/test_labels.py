"""Metrics against values worked out by hand."""

import math

import numpy as np
import pytest

from ptune.data.glue import GLUE
from ptune.labels import (
    METRICS,
    MULTI,
    PROBLEM_TYPES,
    REGRESSION,
    SINGLE,
    Labels,
    comparable,
    compute,
)

# 3 true positives, 1 false positive, 2 false negatives, 4 true negatives.
LABELS = np.array([1, 1, 1, 1, 1, 0, 0, 0, 0, 0])
PREDICTED = np.array([1, 1, 1, 0, 0, 1, 0, 0, 0, 0])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("accuracy", 7 / 10),
        ("f1", 2 * 3 / (2 * 3 + 1 + 2)),
        ("f1_macro", (6 / 9 + 8 / 11) / 2),
        ("f1_micro", 7 / 10),
        ("matthews_correlation", (3 * 4 - 1 * 2) / math.sqrt(4 * 5 * 5 * 6)),
    ],
)
def test_a_metric_of_labels_is_what_its_definition_says(name, value):
    assert compute([name], LABELS, PREDICTED) == {name: pytest.approx(value)}


def test_pearson_is_the_covariance_over_both_deviations():
    x, y = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 3.0, 2.0, 10.0])
    by_hand = 13.0 / math.sqrt(5.0 * 50.0)
    assert compute(["pearson"], x, y)["pearson"] == pytest.approx(by_hand)


def test_spearman_looks_at_ranks_alone():
    x, y = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 3.0, 2.0, 1000.0])
    assert compute(["spearman"], x, y)["spearman"] == pytest.approx(1 - 6 * 2 / (4 * 15))


@pytest.mark.parametrize("name", ["pearson", "spearman"])
@pytest.mark.parametrize("constant", ["labels", "predictions"])
@pytest.mark.filterwarnings("error")
def test_a_constant_has_no_correlation_and_no_warning(name, constant):
    flat, steep = np.full(5, 2.5), np.arange(5.0)
    pair = (flat, steep) if constant == "labels" else (steep, flat)
    assert math.isnan(compute([name], *pair)[name])


@pytest.mark.parametrize("name", ["f1", "f1_macro", "f1_micro", "matthews_correlation"])
@pytest.mark.filterwarnings("error")
def test_always_the_same_wrong_label_scores_zero_without_a_warning(name):
    assert compute([name], np.ones(6, int), np.zeros(6, int))[name] == 0.0


def test_several_labels_a_text_are_right_only_together():
    labels = np.array([[1, 0, 1], [0, 1, 0]])
    predicted = np.array([[1, 0, 0], [0, 1, 0]])
    scores = compute(Labels(("a", "b", "c"), MULTI).metrics, labels, predicted)
    assert scores == pytest.approx(
        {"accuracy": 0.5, "f1_micro": 2 * 2 / (2 * 2 + 1), "f1_macro": (1 + 1 + 0) / 3}
    )


@pytest.mark.parametrize("name", ["f1_micro", "f1_macro"])
def test_the_f1_of_the_only_label_a_text_may_have_is_that_of_the_label(name):
    labels, predictions = np.array([[1], [0], [0], [0]]), np.array([[1], [1], [0], [0]])
    assert compute([name], labels, predictions) == {name: 2 / 3}


def test_every_metric_that_a_task_names_is_there():
    named = {m for task in GLUE.values() for m in task.metrics}
    named |= {m for kind in PROBLEM_TYPES for m in Labels((), kind).metrics}
    assert named <= METRICS.keys()


def test_scores_are_plain_floats():
    scores = compute(METRICS.keys() - {"pearson", "spearman"}, LABELS, PREDICTED)
    assert {type(v) for v in scores.values()} == {float}


@pytest.mark.parametrize(
    ("problem_type", "decided"),
    [
        (SINGLE, [1, 0]),
        (MULTI, [[0, 1, 1], [1, 0, 0]]),
    ],
)
def test_logits_become_labels(problem_type, decided):
    logits = np.array([[-2.0, 3.0, 0.5], [1.0, -1.0, 0.0]])
    np.testing.assert_array_equal(Labels(("a", "b", "c"), problem_type).decide(logits), decided)


@pytest.mark.parametrize("logits", [[[0.5], [-7.0]], [0.5, -7.0]])
def test_a_regression_predicts_its_logit(logits):
    np.testing.assert_array_equal(
        Labels(("score",), REGRESSION).decide(np.array(logits)), [0.5, -7.0]
    )


def test_half_precision_logits_are_decided_like_any():
    logits = np.array([[0.1, 0.2]], dtype=np.float16)
    assert Labels(("a", "b")).decide(logits).tolist() == [1]


def test_unknown_and_unseen_labels_are_compared_as_if_both_said_no():
    labels = Labels(("a", "b"), MULTI)
    targets = np.array([[1, np.nan, 1], [np.nan, np.nan, np.nan], [0, 1, 0]])  # a third label
    found, predicted, known = comparable(labels, targets, np.array([[1, 1], [1, 0], [0, 1]]))
    assert found.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert predicted.tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]
    assert known.tolist() == [True, False, True]
    assert labels.scores(["accuracy"], targets, np.array([[1, 1], [1, 0], [0, 1]])) == {
        "accuracy": 0.5
    }
