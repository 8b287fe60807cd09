"""Would more data help? Train on parts of the data, and extend the curve of scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize
from transformers import TrainerCallback

from ptune.data.dataset import LABEL, TaskData
from ptune.errors import PtuneError
from ptune.files import DATA_CURVE_NAME, staged, write_json
from ptune.labels import comparable
from ptune.quality.bootstrap import SLOW_SAMPLES, counts, interval, resampled
from ptune.training.pictures import data_curve as draw
from ptune.training.run import Answers, Run, all_answers, joined, trained_in_memory
from ptune.training.settings import TrainSettings
from ptune.training.start import sharing_texts

Array = NDArray[Any]

# Parts of the training data, and how far the curve is extended.
SHARES, FURTHER = (0.1, 0.25, 0.5), (2, 4)
# A curve needs this number of points. A smaller gain is not worth the labelling.
MIN_POINTS, GAIN = 3, 0.01
# How fast errors fall with more data: with the power of the number of examples.
EXPONENTS = np.linspace(0.1, 1.0, 19)


@dataclass(frozen=True)
class Point:
    """A score by the number of training examples, with its 95% interval.

    Attributes:
        examples: Number of training examples.
        score: The score that was measured, or that the curve predicts.
        low, high: The interval over resamples of the evaluation texts.
        fitted: What the curve says.
    """

    examples: int
    score: float
    low: float
    high: float
    fitted: float | None = None


@dataclass(frozen=True)
class DataCurve:
    """Scores by the number of training examples.

    Attributes:
        metric: The name of the score.
        measured: Scores on the evaluation set.
        predicted: Scores that the curve predicts for more data; empty: there are too few points.
        gain: What twice the data would add, with its interval.
        answer: `yes`, `hardly`, `perhaps` or `unknown`.
    """

    metric: str
    measured: list[Point]
    predicted: list[Point]
    gain: tuple[float, float, float] | None
    answer: str

    @property
    def sentence(self) -> str:
        """The answer in words."""
        if self.gain is None:
            return "There are too few examples to tell whether more data would help."
        first = {
            "yes": "More data like this would probably help",
            "hardly": "More data like this would hardly help",
            "perhaps": "More data like this may help; these scores cannot tell",
        }[self.answer]
        gain, low, high = self.gain
        return (
            f"{first}: with twice the examples, the curve expects {gain:+.3f} {self.metric} "
            f"(95% interval {low:+.3f} to {high:+.3f})."
        )


def data_curve(
    run: Run,
    settings: TrainSettings,
    *,
    progress: TrainerCallback | None = None,
    show_part: Callable[[int], None] = lambda examples: None,
) -> DataCurve:
    """Train on parts of a run's data, and write `data_curve.json` and a picture into its folder.

    Each part contains the smaller ones and has the same share of every label. All are scored on the
    same evaluation set.

    Args:
        run: The run on all the data.
        settings: The settings that `train_run` got.
        progress: Callback that shows the progress.
        show_part: Gets the number of examples before each training.

    Raises:
        PtuneError: There is no evaluation set; or the settings are wrong.
    """
    if not run.answers:
        raise PtuneError("A data curve requires an evaluation set. Name one with --eval-file.")
    dataset = run.data
    order, total = nested(dataset), len(dataset.train)
    least = len(dataset.labels) if dataset.labels.is_single else 2
    sizes = sorted({max(least, round(share * total)) for share in SHARES} - {total})
    answers: dict[int, Answers] = {}
    shown = [progress] if progress else []
    with sharing_texts():
        for size in [n for n in sizes if n < total]:
            show_part(size)
            part = replace(dataset, train=dataset.train.select(np.sort(order[:size]).tolist()))
            with trained_in_memory(settings, part, callbacks=shown, eval_strategy="no") as trainer:
                answers[size] = all_answers(trainer)
    found = curve_of({**answers, total: run.answers}, dataset)
    with staged(run.folder) as stage:
        write_json(stage / DATA_CURVE_NAME, asdict(found) | {"sentence": found.sentence})
        points = [(p.examples, p.score, p.low, p.high) for p in found.measured]
        further = [(p.examples, p.score, p.low, p.high) for p in found.predicted]
        fitted = [(p.examples, p.fitted) for p in found.measured if p.fitted is not None]
        picture = draw(points, fitted, further, found.metric, dataset.name)
        picture.save(stage / DATA_CURVE_NAME)
    return found


def nested(dataset: TaskData) -> Array:
    """An order of the training examples whose every beginning has all labels in their shares."""
    rng = np.random.default_rng(0)
    order = rng.permutation(len(dataset.train))
    if not dataset.labels.is_single:
        return order
    labels = np.asarray(dataset.train[LABEL])[order]
    place = np.empty(len(labels))
    for label in np.unique(labels):
        inside = np.flatnonzero(labels == label)
        place[inside] = np.arange(len(inside)) / len(inside)
    return order[np.argsort(place, kind="stable")]


def curve_of(answers: dict[int, Answers], dataset: TaskData) -> DataCurve:
    """The curve through the scores of trainings, by their number of examples."""
    labels, metric = dataset.labels, dataset.metrics[0]
    samples, scores = [], []
    for own in answers.values():
        truth, logits = joined(own)
        truth, decided, known = comparable(labels, truth, labels.decide(logits))
        truth, decided = truth[known], decided[known]
        strata = truth if labels.is_single else np.zeros(len(truth))
        weights = np.concatenate([np.ones((1, len(truth))), counts(strata, SLOW_SAMPLES - 1)])
        found = resampled([metric], truth, decided, len(labels), weights)[metric]
        scores.append(float(found[0]))
        samples.append(found)
    sizes, each = np.array(list(answers)), np.stack(samples, axis=1)  # [samples, sizes]
    further = [factor * int(sizes[-1]) for factor in FURTHER]
    measured = [
        Point(int(n), s, *interval(v)) for n, s, v in zip(sizes, scores, each.T, strict=True)
    ]
    if len(sizes) < MIN_POINTS:
        return DataCurve(metric, measured, [], None, "unknown")
    at = np.array([*sizes, *further])
    curves = np.stack([extended(sizes, row, at) for row in each])  # [samples, sizes + further]
    measured = [replace(p, fitted=float(f)) for p, f in zip(measured, curves[0], strict=False)]
    predicted = [
        Point(n, float(curve[0]), *interval(curve))
        for n, curve in zip(further, curves.T[len(sizes) :], strict=True)
    ]
    gains = curves[:, len(sizes)] - curves[:, len(sizes) - 1]
    gain = float(gains[0]), *interval(gains)
    answer = "hardly" if gain[2] < GAIN else "yes" if gain[1] >= GAIN / 2 else "perhaps"
    return DataCurve(metric, measured, predicted, gain, answer)


def extended(sizes: Array, scores: Array, at: Array) -> Array:
    """Scores at other sizes, from the power law that fits best.

    The error is ``limit + factor * size ** -exponent``, with `limit` and `factor` of at least 0
    (https://arxiv.org/abs/1712.00409).
    """
    relative, best = sizes / sizes[-1], (np.inf, np.zeros(2), 0.0)
    for exponent in EXPONENTS:
        terms = np.stack([np.ones(len(sizes)), relative**-exponent], axis=1)
        found, distance = optimize.nnls(terms, 1 - scores)
        if distance < best[0] - 1e-12:
            best = float(distance), found, float(exponent)
    _, (limit, factor), exponent = best
    return 1 - limit - factor * (at / sizes[-1]) ** -exponent
