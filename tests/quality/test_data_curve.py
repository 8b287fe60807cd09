"""Would more data help?"""

import json

import numpy as np
import pytest
from conftest import call

from ptune.data.dataset import TaskData
from ptune.quality.data_curve import curve_of, extended, nested

NAMES = ["a", "b"]


def answers_with(errors, texts=4000):
    """Answers of which a share is wrong; trainings on more data make some of the same errors."""
    truth = np.arange(texts) % 2
    wrong = np.random.default_rng(0).random(texts) < errors
    return {"": (truth, 5.0 * np.eye(2)[truth ^ wrong])}


def data(labels):
    return TaskData.from_lists([[f"text {i}" for i in range(len(labels))]], labels)


def test_a_power_law_is_continued():
    sizes = np.array([100, 250, 500, 1000])
    for limit, factor, exponent in ((0.05, 0.2, 0.5), (0.0, 0.3, 0.3), (0.2, 0.0, 0.5)):

        def score(n, limit=limit, factor=factor, exponent=exponent):
            return 1 - limit - factor * (n / 1000) ** -exponent

        found = extended(sizes, score(sizes), np.array([2000, 4000]))
        assert found == pytest.approx(score(np.array([2000, 4000])), abs=0.003)


@pytest.mark.parametrize(
    ("errors", "answer", "start"),
    [
        ({100: 0.40, 250: 0.28, 500: 0.21, 1000: 0.16}, "yes", "More data like this would prob"),
        ({100: 0.1, 250: 0.1, 500: 0.1, 1000: 0.1}, "hardly", "More data like this would hardly"),
        ({500: 0.2, 1000: 0.1}, "unknown", "There are too few examples to tell"),
    ],
)
def test_the_answer_follows_from_the_scores(errors, answer, start):
    found = curve_of({n: answers_with(e) for n, e in errors.items()}, data(NAMES))
    assert found.answer == answer
    assert found.sentence.startswith(start)
    for point, error in zip(found.measured, errors.values(), strict=True):
        assert point.low <= point.score <= point.high
        assert point.score == pytest.approx(1 - error, abs=0.02)
    if answer == "yes":
        assert [p.examples for p in found.predicted] == [2000, 4000]
        # error = 0.16 * (n / 1000) ** -0.4
        assert found.predicted[0].score == pytest.approx(1 - 0.16 * 2**-0.4, abs=0.015)


def test_parts_are_nested_and_keep_the_shares_of_labels():
    labels = ["rare"] * 10 + ["often"] * 90
    dataset = data(labels)
    order = nested(dataset)
    assert sorted(order) == list(range(100))
    for size in (10, 25, 50):
        rare = sum(labels[i] == "rare" for i in order[:size])
        assert rare == pytest.approx(size / 10, abs=1)
    assert {labels[i] for i in order[:2]} == {"rare", "often"}


def test_train_adds_a_data_curve(bert_folder, texts, tmp_path, capsys):
    file = tmp_path / "mail.csv"
    rows = [f'"{t} {i}",{"money" if "money" in t else "other"}' for i in range(4) for t in texts]
    file.write_text("text,label\n" + "\n".join(rows) + "\n")
    flags = ["--train-file", file, "--model", bert_folder, "--epochs", 1, "--dtype", "float32"]
    assert call("train", *flags, "--data-curve", "--json", "--output-dir", tmp_path / "run") == 0
    printed = json.loads(capsys.readouterr().out)
    written = json.loads((tmp_path / "run" / "data_curve.json").read_text())
    assert printed["data_curve"] == written
    sizes = [point["examples"] for point in written["measured"]]
    assert sizes[-1] == printed["train_examples"]
    assert sizes == sorted({max(2, round(s * sizes[-1])) for s in (0.1, 0.25, 0.5, 1)})
    assert written["measured"][-1]["score"] == pytest.approx(printed["eval"]["accuracy"])
    assert (tmp_path / "run" / "data_curve.png").stat().st_size > 1000
    assert call("train", *flags, "--data-curve", "--seeds", 2, "--output-dir", tmp_path / "b") == 2
