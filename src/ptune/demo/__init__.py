"""The demo: a classifier of support mail, compared with two simpler ones.

The data is in this folder: `train.csv`, `test.csv` and a `README.md` on how it was made.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import TrainerCallback

from ptune import labels as metrics
from ptune.backbones.wheels import MINILM
from ptune.data.dataset import LABEL, TEXT
from ptune.inference.classifier import PromptClassifier
from ptune.quality.features import features, fit_logistic_regression
from ptune.training import pictures
from ptune.training.folder import check_folder
from ptune.training.run import Run, train_run
from ptune.training.settings import TrainSettings
from ptune.training.start import load_dataset

FOLDER = Path(__file__).parent
NAME = "Support mail"
FILES: dict[str, Any] = {
    "train_file": str(FOLDER / "train.csv"),
    "eval_file": str(FOLDER / "test.csv"),
}
EXAMPLES = [
    "tracking says delivered on tuesday but there is nothing in front of my door",
    "I was charged for the headphones and then the page crashed and it took the money again",
    "Please don't send it, I found my old one",
    "since the update the lamp forgets the wifi every night",
]

# Passes over few examples, and over all of them: a language model starts where it understands most.
FEW, FEW_EPOCHS, ALL_EPOCHS = 16, 4, 2
CURVE, METHODS = "examples_curve.png", "accuracy_by_method.png"

# One line of the comparison: name, scores, number of trained parameters.
Row = tuple[str, dict[str, float], int]


def run_demo(
    output_dir: str | Path,
    *,
    model: str = MINILM,
    seed: int = 0,
    epochs: float | None = None,
    overwrite: bool = False,
    progress: TrainerCallback | None = None,
) -> tuple[Run, list[Row]]:
    """Train on the support mail with `preset="fast"`, and score two simpler classifiers.

    All are scored on the same test set.

    Raises:
        PtuneError: The folder is not empty, or the embedded backbone is not installed.
    """
    settings = TrainSettings(model=model, **FILES, preset="fast", seed=seed, epochs=epochs)
    dataset = load_dataset(settings)
    dataset.name = NAME
    run = train_run(settings, output_dir, overwrite=overwrite, progress=progress, dataset=dataset)
    simple, parameters = logistic_regression(dataset.train, dataset.evaluation[""], model)
    rows = [
        ("majority class", run.metrics["majority"], 0),
        ("logistic regression on mean embeddings", simple, parameters),
        ("p-tuned", run.metrics["eval"], run.metrics["trainable_parameters"]),
    ]
    accuracy = {name: (scores["accuracy"],) * 3 for name, scores, _ in rows}
    start = ("the majority class", accuracy.pop("majority class")[0])
    drawn = pictures.methods(accuracy, start, "accuracy", NAME, own=["p-tuned"])
    drawn.save(Path(output_dir) / METHODS)
    return run, rows


def run_decoder_demo(
    output_dir: str | Path,
    *,
    model: str = "smollm2",
    seed: int = 0,
    epochs: float | None = None,
    overwrite: bool = False,
    progress: TrainerCallback | None = None,
) -> tuple[Run, list[Row]]:
    """Ask a language model without training, then train on a few and on all support mails.

    Returns:
        The run on all mails, and a row for each number of examples. A picture of the scores is in
        the run folder, and the run on a few mails is in its folder `few`.

    Raises:
        PtuneError: The folder is not empty, or the language model is not installed.
    """
    folder = Path(output_dir)
    settings = TrainSettings(model=model, **FILES, seed=seed, head="words")
    check_folder(folder, overwrite=overwrite, resume=False)
    dataset = load_dataset(settings)
    dataset.name = NAME
    test = dataset.evaluation[""]
    classifier = PromptClassifier.zero_shot(dataset.labels.names, model=model)
    predicted = dataset.labels.decide(np.stack(list(classifier.logits(test[TEXT]))))
    asked = dataset.labels.scores(dataset.metrics, np.asarray(test[LABEL]), predicted)
    how: dict[str, Any] = {"overwrite": overwrite, "progress": progress}
    every = replace(settings, epochs=epochs or ALL_EPOCHS)
    run = train_run(every, folder, **how, dataset=dataset)
    few = replace(settings, epochs=epochs or FEW_EPOCHS, examples_per_label=FEW)
    fewer = train_run(few, folder / "few", **how)
    rows = [("without training", asked, 0)]
    for count, own in ((f"{FEW} examples per label", fewer), ("all examples", run)):
        rows.append((count, own.metrics["eval"], own.metrics["trainable_parameters"]))
    pictures.by_examples([(name, scores) for name, scores, _ in rows], NAME).save(folder / CURVE)
    return run, rows


def logistic_regression(
    train: Dataset, test: Dataset, model: str = MINILM
) -> tuple[dict[str, float], int]:
    """Scores of scikit-learn's logistic regression on a backbone's mean-pooled embeddings.

    Returns:
        Accuracy and macro-F1, and the number of fitted parameters.
    """
    known, _ = features([train[TEXT]], model)
    classifier = fit_logistic_regression(known, np.asarray(train[LABEL]))
    predicted = classifier.predict(features([test[TEXT]], model)[0])
    scores = metrics.compute(["accuracy", "f1_macro"], np.asarray(test[LABEL]), predicted)
    return scores, classifier.coef_.size + classifier.intercept_.size
