"""The demo: a classifier of support mail, compared with two simpler ones.

The data is in this folder: `train.csv`, `test.csv` and a `README.md` on how it was made.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer
from transformers import TrainerCallback

from ptune import labels as metrics
from ptune.backbones.loading import load_backbone, load_tokenizer
from ptune.backbones.wheels import MINILM
from ptune.data.dataset import LABEL, TEXT
from ptune.training.run import Run, load_dataset, train_run
from ptune.training.settings import TrainSettings

FOLDER = Path(__file__).parent
EXAMPLES = [
    "tracking says delivered on tuesday but there is nothing in front of my door",
    "I was charged for the headphones and then the page crashed and it took the money again",
    "Please don't send it, I found my old one",
    "since the update the lamp forgets the wifi every night",
]

# One line of the comparison: name, scores, number of trained parameters.
Row = tuple[str, dict[str, float], int]


def run_demo(
    output_dir: str | Path,
    *,
    seed: int = 0,
    epochs: float | None = None,
    overwrite: bool = False,
    progress: TrainerCallback | None = None,
) -> tuple[Run, list[Row]]:
    """Train on the support mail, and score two simpler classifiers on the same test set.

    Raises:
        PtuneError: The folder is not empty, or the embedded backbone is not installed.
    """
    settings = TrainSettings(
        train_file=str(FOLDER / "train.csv"),
        eval_file=str(FOLDER / "test.csv"),
        seed=seed,
        epochs=epochs,
    )
    dataset = load_dataset(settings)
    dataset.name = "Support mail"
    run = train_run(settings, output_dir, overwrite=overwrite, progress=progress, dataset=dataset)
    assert dataset.train is not None
    simple, parameters = logistic_regression(dataset.train, dataset.evaluation[""])
    rows = [
        ("majority class", run.metrics["majority"], 0),
        ("logistic regression on mean embeddings", simple, parameters),
        ("p-tuned", run.metrics["eval"], run.metrics["trainable_parameters"]),
    ]
    return run, rows


def logistic_regression(train: Dataset, test: Dataset) -> tuple[dict[str, float], int]:
    """Scores of scikit-learn's logistic regression on MiniLM's mean-pooled embeddings.

    Returns:
        Accuracy and macro-F1, and the number of fitted parameters.
    """
    classifier = LogisticRegression(C=10.0, max_iter=1000)
    # The model's authors normalise embeddings to length 1.
    pipeline = make_pipeline(Normalizer(), classifier)
    pipeline.fit(mean_embeddings(train[TEXT]), train[LABEL])
    predicted = pipeline.predict(mean_embeddings(test[TEXT]))
    scores = metrics.compute(["accuracy", "f1_macro"], np.asarray(test[LABEL]), predicted)
    return scores, classifier.coef_.size + classifier.intercept_.size


@torch.inference_mode()
def mean_embeddings(texts: Iterable[str], model: str = MINILM) -> np.ndarray:
    """The backbone's last hidden states, averaged over each text: ``[n, hidden]``, float32."""
    tokenizer, texts = load_tokenizer(model), list(texts)
    encoder = load_backbone(model, dtype="float32").base_model.eval()
    vectors = []
    for start in range(0, len(texts), 64):
        batch = tokenizer(
            texts[start : start + 64], padding=True, truncation=True, return_tensors="pt"
        )
        states = encoder(**batch).last_hidden_state  # [batch, seq, hidden]
        mask = batch["attention_mask"][..., None]
        vectors.append((states * mask).sum(dim=1) / mask.sum(dim=1))
    return torch.cat(vectors).numpy()
