"""`TextClassifier`: what every classifier does with logits, whatever computes them."""

from __future__ import annotations

import itertools
import operator
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.progress import track

from ptune import texts
from ptune.errors import Origin, PtuneError
from ptune.labels import LabelColumn, Labels, Prediction, read
from ptune.postprocessing import RAW, Postprocessing, check_confidence
from ptune.texts import Encoded, Reading, Text

if TYPE_CHECKING:
    import transformers

# Positions of a batch's texts in their window, and the texts' `input_ids` and so on.
Batch = tuple[list[int], Encoded]
# Positions of a batch's texts in their window, and their logits ``[batch, num_labels]``.
Answer = tuple[list[int], np.ndarray]
# Logits ``[n, num_labels]`` of texts, and whether each was cut, ``[n]``.
Found = tuple[np.ndarray, np.ndarray]

# Number of texts that are read ahead and sorted by length.
WINDOW = 2048
# From this number of texts on, a progress bar is shown.
LONG_WORK = 500


class TextClassifier:
    """Texts in, labels and probabilities out, whatever runs the backbone.

    Texts are strings; pairs are tuples or lists of two strings. Threads may share a classifier:
    a call keeps everything it computes to itself.

    Attributes:
        labels_: The labels, in the order of the probabilities.
        postprocessing_: Calibration and thresholds, if training had texts to fit them on.
        feature_names_in_: The columns with the texts, if it was trained on a table. Tables with
            more columns are accepted then.
        tokenizer_: The backbone's tokenizer.
        batch_size: A batch has at most 128 tokens times this number.
    """

    labels_: Labels
    postprocessing_: Postprocessing = RAW
    feature_names_in_: np.ndarray
    tokenizer_: transformers.PreTrainedTokenizerBase
    batch_size: int

    def _reading(self) -> Reading:
        """How texts are read."""
        raise NotImplementedError

    def _most_padding(self) -> int | None:
        """Tokens of padding in a batch; ``None``: no limit."""
        return texts.PADDING

    def _forward(self, batches: Iterable[Batch]) -> Iterable[Answer]:
        """Logits of each batch. The batches may come back in any order."""
        raise NotImplementedError

    @property
    def labels(self) -> list[str]:
        """Label names, in the order of the probabilities."""
        return list(self.labels_.names)

    @property
    def text_columns(self) -> tuple[str, ...]:
        """The columns with the texts that were named for training."""
        return tuple(map(str, getattr(self, "feature_names_in_", ())))

    @property
    def classes_(self) -> np.ndarray:
        """Label values, in the order of the probabilities."""
        return self.labels_.classes

    @property
    def problem_type_(self) -> str:
        """As in Transformers' configurations."""
        return self.labels_.kind

    # Prediction.

    def logits(self, X: Text | Iterable[Text]) -> Iterator[np.ndarray]:
        """Logits ``[num_labels]`` of each text, in the order of the texts.

        If labels were merged or dropped, they are those of the head, which has more outputs.

        Texts are read ahead one window at a time, so an endless iterator works and memory stays
        flat. Within a window, a batch holds texts of similar length.
        """
        return itertools.chain.from_iterable(logits for logits, _ in self._windows(X))

    def _windows(self, X: Text | Iterable[Text]) -> Iterator[Found]:
        """The answers to each window of texts."""
        rows = iter(self._rows(X))
        started, pairs = 0, None
        while window := list(itertools.islice(rows, WINDOW)):
            columns = texts.as_columns(window, pairs, Origin("the texts", before=started))
            if pairs is None and (known := self._reading().pairs) not in (None, len(columns) == 2):
                trained = "pairs of texts" if known else "single texts"
                warnings.warn(
                    f"The classifier was trained on {trained}, and these are "
                    f"{'single texts' if known else 'pairs'}. A pair is a tuple of two "
                    "texts; a list of two strings is two texts.",
                    stacklevel=4,
                )
            pairs = len(columns) == 2
            yield self._window(columns)
            started += len(window)

    def _rows(self, X: Any) -> Iterable[Any]:
        return texts.rows(X, list(getattr(self, "feature_names_in_", ())), self._reading().pairs)

    def _window(self, columns: list[list[str]]) -> Found:
        reading = self._reading()
        rows = reading.rows(self.tokenizer_, columns)
        lengths = [len(ids) for ids in rows.encoded["input_ids"]]
        batches = texts.batches(lengths, self.batch_size, self._most_padding())
        logits = np.empty((len(lengths), len(self.labels_.output_names)), dtype=np.float32)
        for chosen, found in self._forward((c, texts.take(rows.encoded, c)) for c in batches):
            logits[chosen] = found
        cut = np.zeros(len(columns[0]), dtype=bool)
        cut[rows.cut] = True
        means, weights = self.labels_.is_regression, reading.window_weights
        return texts.pooled(logits, rows.text_of, means, weights), cut

    def _all(self, X: Text | Iterable[Text]) -> Found:
        """The answers to all texts, with a progress bar if there are many."""
        windows = self._with_bar(self._windows(X), X)  # checks that it is fitted
        none = np.empty((0, len(self.labels_.output_names)), np.float32), np.empty(0, dtype=bool)
        parts = zip(none, *windows, strict=True)
        logits, cut = map(np.concatenate, parts)
        return logits, cut

    def _lengths(self, columns: list[list[str]]) -> list[int]:
        """Tokens of each text with the words around it, none of which is cut."""
        template = self._reading().template
        encoded, _ = texts.encode(self.tokenizer_, columns, None, template=template)
        return [len(ids) for ids in encoded["input_ids"]]

    def _all_logits(self, X: Text | Iterable[Text]) -> np.ndarray:
        return self._all(X)[0]

    def stream(
        self, X: Text | Iterable[Text], *, min_confidence: float | None = None
    ) -> Iterator[Prediction]:
        """A `Prediction` for each text, as texts arrive; for streams of any length.

        Args:
            X: Texts or pairs.
            min_confidence: As for `predict`.
        """
        for logits, cut in self._windows(X):
            yield from self.postprocessing_.predictions(self.labels_, logits, min_confidence, cut)

    def __call__(
        self, X: Text | Iterable[Text], *, min_confidence: float | None = None
    ) -> Prediction | list[Prediction]:
        """One `Prediction` for one text (or for one pair, as a tuple), a list for several."""
        logits, cut = self._all(X)
        predictions = self.postprocessing_.predictions(self.labels_, logits, min_confidence, cut)
        return predictions[0] if texts.is_one(X) else predictions

    def predict_proba(self, X: Text | Iterable[Text]) -> np.ndarray:
        """Probabilities ``[n, num_labels]``, in the order of `classes_`.

        If they are calibrated, about 80% of the texts with a probability of about 0.8 have that
        label. ``postprocessing_.calibration`` tells how they were calibrated; ``None``: not at all.
        """
        logits = self._all_logits(X)
        return self.labels_.probabilities(self.postprocessing_.calibrated(logits))

    def predict(
        self, X: Text | Iterable[Text], *, min_confidence: float | None = None
    ) -> np.ndarray:
        """Labels ``[n]``; with several labels per text, zeros and ones ``[n, num_labels]``.

        Args:
            X: Texts or pairs.
            min_confidence: The label is ``None`` where its probability is lower.

        Raises:
            PtuneError: A text is missing; or `min_confidence` is given, and texts have not exactly
                one label.
        """
        logits = self._all_logits(X)
        decoded = self.labels_.decode(self.postprocessing_.margins(logits))
        if min_confidence is None:
            return decoded
        check_confidence(self.labels_, min_confidence)
        p = self.labels_.probabilities(self.postprocessing_.calibrated(logits))
        decoded = decoded.astype(object)
        decoded[p.max(axis=1) < min_confidence] = None
        return decoded

    def predict_set(self, X: Text | Iterable[Text], coverage: float = 0.95) -> list[list[Any]]:
        """For each text the labels that are plausible, the most probable one first.

        The true label is among them with the probability `coverage`, for texts like those of the
        evaluation set. A set is empty if no label is plausible.

        Args:
            X: Texts or pairs.
            coverage: Between 0 and 1.

        Raises:
            PtuneError: Training had no evaluation set, or texts have not exactly one label.
        """
        logits, values = self._all_logits(X), self.labels_.values
        chosen = self.postprocessing_.label_sets(self.labels_, logits, coverage)
        calibrated = self.labels_.merged(self.postprocessing_.calibrated(logits))
        order = np.argsort(-calibrated, axis=1, kind="stable")
        return [
            [values[i] for i in ranked if inside[i]]
            for ranked, inside in zip(order, chosen, strict=True)
        ]

    def score(self, X: Iterable[Text], y: Any, sample_weight: Any = None) -> float:
        """Accuracy; for a regression R², as scikit-learn defines them.

        With several labels per text, all of a text's labels must be right.
        """
        logits = self._all_logits(X)
        margins, column = self.postprocessing_.margins(logits), self._column(y, logits)
        warn_of_unseen(*self.labels_.targets(column))
        return self.labels_.score(column, margins, sample_weight)

    def evaluate(
        self, X: Iterable[Text], y: Any, metrics: Sequence[str] | None = None
    ) -> dict[str, float]:
        """Scores of the classifier.

        Labels that training never saw count as errors, and a warning lists them. Unknown cells of
        an indicator matrix (NaN) do not count.

        Args:
            X: Texts or pairs.
            y: Their labels, in any form that `fit` accepts.
            metrics: Names of metrics; ``None``: accuracy and F1, or Pearson's and Spearman's
                correlation.

        Raises:
            PtuneError: A text or a label is missing, or their numbers differ.
        """
        logits = self._all_logits(X)
        targets, unseen = self.labels_.targets(self._column(y, logits))
        warn_of_unseen(targets, unseen)
        names = self.labels_.metrics if metrics is None else metrics
        decided = self.labels_.decide(self.postprocessing_.margins(logits))
        return self.labels_.scores(names, targets, decided)

    def _column(self, y: Any, logits: np.ndarray) -> LabelColumn:
        column = read(y)
        if not len(logits):
            raise PtuneError("There are no texts.")
        if len(column) != len(logits):
            raise PtuneError(f"There are {len(logits)} texts and {len(column)} labels.")
        return column

    def _with_bar(self, windows: Iterator[Found], X: Any) -> Iterable[Found]:
        total = 1 if texts.is_one(X) else operator.length_hint(X)
        if total < LONG_WORK:
            return windows
        console = Console(stderr=True)
        return track(
            windows,
            description="classifying",
            total=-(-total // WINDOW),
            transient=True,
            console=console,
            disable=not console.is_terminal,
        )


def warn_of_unseen(targets: np.ndarray, unseen: Counter[str]) -> None:
    """Warn about labels that the classifier does not have, from what `Labels.targets` returns."""
    if unseen:
        labels = len(targets) if targets.ndim == 1 else int(np.nansum(targets))
        listed = ", ".join(f"{name!r} ({n})" for name, n in unseen.most_common(5))
        warnings.warn(
            f"{unseen.total()} of {labels} labels are unknown to the classifier: "
            f"{listed}{', …' if len(unseen) > 5 else ''}. They count as errors.",
            stacklevel=3,
        )
