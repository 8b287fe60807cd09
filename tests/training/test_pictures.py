"""Pictures: what they show, for any number of labels and any names."""

import re
import struct
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from ptune.data.dataset import TaskData, dataset_of
from ptune.labels import MULTI, REGRESSION, Labels, per_label
from ptune.training import pictures, report

HOSTILE = [
    "<script>alert(1)</script>",
    'a "b" & c',
    "$\\frac{1}{$",
    "退款 😀",
    "two\nlines\x07",
    "x" * 80,
]


def texts(picture):
    """Every text of the SVG, as a reader sees it."""
    root = ET.fromstring(picture.svg)
    assert root.get("role") == "img"
    assert root.get("aria-label") == picture.alt
    assert not [e for e in root.iter() if e.tag.endswith(("script", "foreignObject"))]
    return [" ".join("".join(e.itertext()).split()) for e in root.iter() if e.tag.endswith("text")]


def is_png(data):
    width, height = struct.unpack(">II", data[16:24])
    return data.startswith(b"\x89PNG") and data[-8:-4] == b"IEND" and min(width, height) > 200


@pytest.mark.parametrize("n", [2, 12, 77, 150])
def test_a_confusion_matrix_names_every_label_and_fits_a_page(n):
    names = [*HOSTILE, *(f"label_{i}" for i in range(n))][:n]
    rng = np.random.default_rng(n)
    counts = np.diag(rng.integers(5, 40, n)) + (rng.random((n, n)) < 2 / n)
    drawn = pictures.confusion(counts, names, "mail $1")
    found = texts(drawn)
    for name, total in zip(names, counts.sum(axis=1), strict=True):
        assert pictures.short(name) in found
        assert f"{pictures.short(name)} ({total})" in found
    assert any(text.startswith("mail $1: ") for text in found)
    assert is_png(drawn.png)
    assert len(drawn.url) < 400_000


def test_rows_of_a_confusion_matrix_are_shares_of_the_true_label():
    drawn = pictures.confusion(np.array([[3, 1], [5, 95]]), ["rare", "common"], "mail")
    assert {"75", "25", "5", "95"} <= set(texts(drawn))
    assert drawn.alt == (
        "Confusion matrix of mail, 2 labels: 98 of 104 right. Most often, common is predicted as "
        "rare: 5 of 100 texts."
    )


def test_the_worst_labels_come_first_next_to_those_they_are_confused_with():
    counts = np.diag([10, 10, 5, 10, 9])
    counts[2, 4], counts[4, 2], counts[3, 1] = 5, 1, 1
    assert pictures.order_by_confusion(counts) == [2, 4, 3, 1, 0]


def test_rare_labels_are_as_visible_as_frequent_ones():
    truth = np.zeros((100, 3))
    truth[:50, 0], truth[:2, 1] = 1, 1
    predicted = truth.copy()
    predicted[:, 1] = 0
    truth[99, 0] = np.nan  # unknown
    predicted[99, 0] = 1
    drawn = pictures.label_scores(
        per_label(truth, predicted, ["common", "rare", "unseen"]), "feelings"
    )
    found = texts(drawn)
    assert [t for t in found if re.search(r"\(\d+\)$", t)] == [
        "unseen (0)",
        "rare (2)",
        "common (50)",
    ]
    assert {"never predicted", "no examples"} <= set(found)
    assert "recall (mean 0.50)" in found  # of the two labels that have examples


def test_the_kept_checkpoint_is_marked():
    epochs = [
        {
            "epoch": float(i),
            "step": 9 * i,
            "train_loss": 1 / i,
            "loss": 1.1 / i,
            "accuracy": 0.1 * i,
        }
        for i in (1, 2, 3)
    ]
    drawn = pictures.training_curve(epochs, "mail", selected=2.0, majority={"accuracy": 0.05})
    assert texts(drawn).count("kept: epoch 2") == 2
    assert "majority class" in texts(drawn)
    assert drawn.alt.endswith("The checkpoint of epoch 2 was kept: accuracy 0.200.")


def test_bars_of_methods_start_at_the_baseline():
    scores = {"worse": (0.6, 0.6, 0.6), "better": (0.8, 0.75, 0.85)}
    drawn = pictures.methods(scores, ("the majority class", 0.7), "accuracy", "mail")
    assert "accuracy; bars start at the majority class, 0.700" in texts(drawn)
    svg = drawn.svg.decode()
    bars = re.findall(r'<path d="M ([\d.]+) [\d.]+ \nL ([\d.]+) [^"]*"[^>]*fill: #999999', svg)
    (worse_left, worse_right), (better_left, better_right) = (map(float, bar) for bar in bars)
    start = next(x for x in (worse_left, worse_right) if x in (better_left, better_right))
    assert {start} == {worse_left} & {better_left}
    assert worse_right < start < better_right


def test_saved_pictures_are_png_and_svg(tmp_path):
    drawn = pictures.values(np.array([1.0, 2.0]), np.array([1.5, 2.0]), "stars")
    drawn.save(tmp_path / "values.png")
    assert {p.name for p in tmp_path.iterdir()} == {"values.png", "values.svg"}
    assert drawn.alt.endswith("they differ by 0.250 on average.")


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (Labels(("stars",), REGRESSION), {"predicted_values_a.png", "predicted_values_b.png"}),
        (Labels(("x", "y"), MULTI), {"label_scores_a.png", "label_scores_b.png"}),
    ],
)
def test_a_run_has_the_pictures_of_its_kind_for_each_evaluation_set(labels, names):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20, len(labels)))
    truth = logits[:, 0] + 0.1 if labels.is_regression else (logits > 0.5).astype(float)
    data = TaskData("mail", labels, labels.metrics, dataset_of([[]], []))
    rows = [] if labels.is_regression else per_label(truth, labels.decide(logits), labels.names)
    results = {"epochs": [], "label_scores": {"a": rows, "b": rows}}
    drawn = report.pictures(data, results, dict.fromkeys("ab", (truth, logits)))
    assert drawn.keys() == names
    assert all(is_png(picture.png) for picture in drawn.values())
