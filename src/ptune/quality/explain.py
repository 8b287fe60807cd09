"""Which words of a text decide its label: `ptune explain`.

A word matters as much as the label's log-odds drop without it (occlusion). That is what the
classifier does, on any engine, and not an estimate from gradients.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.text import Text as RichText

from ptune.data.dataset import TaskData
from ptune.errors import Origin, PtuneError, near
from ptune.inference.text_classifier import TextClassifier
from ptune.quality.evidence import target_in_words, training_texts
from ptune.quality.features import features, nearest
from ptune.texts import Text, as_columns

# Parts of a text that are left out one by one, at most. In longer texts, a part is several words.
MOST_PARTS = 256
# Stands for a text that would be empty.
EMPTY = "…"


@dataclass(frozen=True)
class Word:
    """A word, or a few words in a row, of a text.

    Attributes:
        text: The word.
        column: 0, or 1 for the second text of a pair.
        start, end: Where it is in the text, in characters.
        weight: How much the label's log-odds drop without it. Negative: it favours other labels.
    """

    text: str
    column: int
    start: int
    end: int
    weight: float


class Neighbour(NamedTuple):
    """A training text, and its label."""

    text: str
    label: str


@dataclass(frozen=True)
class Explanation:
    """How much each word of a text counts for a label.

    Attributes:
        texts: The text, or the two of a pair.
        label: The label's name.
        score: Its probability; the number, for a regression.
        words: All words, in order.
        nearest: The training texts that are most alike, if they were looked for.
    """

    texts: tuple[str, ...]
    label: str
    score: float
    words: tuple[Word, ...]
    nearest: tuple[Neighbour, ...] = ()

    def top(self, count: int) -> list[Word]:
        """The words that count most for the label, the most important first."""
        return sorted(self.words, key=lambda word: -word.weight)[:count]

    def without(self, words: list[Word]) -> Text:
        """The text, or the pair, without some of its words."""
        left = [_without(t, [w for w in words if w.column == c]) for c, t in enumerate(self.texts)]
        return left[0] if len(left) == 1 else (left[0], left[1])

    def to_json(self) -> dict[str, Any]:
        """The explanation as a JSON object."""
        words = [
            {"text": w.text, "column": w.column, "start": w.start, "end": w.end, "weight": w.weight}
            for w in self.words
        ]
        found: dict[str, Any] = {"label": self.label, "score": self.score, "words": words}
        if self.nearest:
            found["nearest"] = [{"text": n.text, "label": n.label} for n in self.nearest]
        return found

    def to_rich(self) -> RichText:
        """The text in the colours of a terminal: green supports the label, red opposes it."""
        shown = RichText()
        for column, text in enumerate(self.texts):
            shown.append("\n" if column else "")
            begin = len(shown)
            shown.append(text)
            for word, share in self._shares(column):
                if abs(share) >= 0.15:
                    style = "green" if share > 0 else "red"
                    style = f"bold {style}" if abs(share) >= 0.6 else style
                    shown.stylize(style, begin + word.start, begin + word.end)
        return shown

    def to_html(self) -> str:
        """The text as HTML: blue supports the label, orange opposes it."""
        parts = []
        for column, text in enumerate(self.texts):
            at, shown = 0, ""
            for word, share in self._shares(column):
                colour = "0 114 178" if share > 0 else "213 94 0"
                shown += html.escape(text[at : word.start])
                shown += (
                    f'<span style="background: rgb({colour} / {abs(share) * 0.7:.2f})" '
                    f'title="{word.weight:+.3f}">{html.escape(word.text)}</span>'
                )
                at = word.end
            parts.append(f"<p>{shown}{html.escape(text[at:])}</p>")
        title = f"{html.escape(self.label)} {self.score:.3f}"
        rows = [f"<li>{html.escape(f'{n.label}: {n.text}')}</li>" for n in self.nearest]
        alike = f"<h2>Training texts like it</h2><ul>{''.join(rows)}</ul>" if rows else ""
        return f'<meta charset="utf-8"><h1>{title}</h1>{"".join(parts)}{alike}\n'

    def _shares(self, column: int) -> list[tuple[Word, float]]:
        """The words of a text, each with its weight as a share of the largest."""
        largest = max((abs(word.weight) for word in self.words), default=0.0) or 1.0
        return [(w, w.weight / largest) for w in self.words if w.column == column]


def explain(classifier: TextClassifier, text: Text, label: str | None = None) -> Explanation:
    """How much each word of a text counts for a label.

    The text is classified once for each word, in batches.

    Args:
        classifier: The classifier.
        text: A text; or a pair, as a tuple.
        label: The label's name; ``None``: the most probable one.

    Raises:
        PtuneError: There is no such label, or the text is empty or no text.
    """
    texts = tuple(column[0] for column in as_columns([text], None, Origin("the text")))
    places = [
        (column, part[0].start(), part[-1].end())
        for column, one in enumerate(texts)
        for part in _parts(one, MOST_PARTS // len(texts))
    ]
    words = [Word(texts[c][start:end], c, start, end, 0.0) for c, start, end in places]
    plain = Explanation(texts, "", 0.0, tuple(words))
    variants = [text, *(plain.without([word]) for word in words)]
    logits = np.stack(list(classifier.logits(variants)))
    labels, values = classifier.labels_, classifier.postprocessing_
    calibrated = labels.merged(values.calibrated(logits))  # [1 + words, num_labels]
    names = list(labels.names)
    if label is not None and label not in names:
        raise PtuneError(f"The classifier has no label {label!r}; {near(label, names)}.")
    number = int(calibrated[0].argmax()) if label is None else names.index(label)
    odds = calibrated[:, number]
    score = float(odds[0])
    if not labels.is_regression:
        p = labels.probabilities(calibrated)[:, number]
        score, odds = float(p[0]), _log_odds(calibrated, number) if labels.is_single else odds
    weights = odds[0] - odds[1:]
    return Explanation(
        texts,
        names[number],
        score,
        tuple(
            Word(w.text, w.column, w.start, w.end, float(weight))
            for w, weight in zip(words, weights, strict=True)
        ),
    )


def with_nearest(found: Explanation, data: TaskData, model: str) -> Explanation:
    """An explanation with the training texts that are most like its text.

    Args:
        found: The explanation.
        data: The data of the run.
        model: The backbone, by whose features texts are compared.

    Raises:
        PtuneError: The data has other columns of texts.
    """
    columns, targets = training_texts(data)
    if len(columns) != len(found.texts):
        raise PtuneError(
            f"{data.name} has {len(columns)} column(s) of texts, and {len(found.texts)} text(s) "
            "are explained. Name the training file of this classifier (--train-file)."
        )
    known, _ = features(columns, model)
    new, _ = features([[text] for text in found.texts], model)
    alike = [
        Neighbour(
            " ⏎ ".join(column[i] for column in columns), target_in_words(data.labels, targets[i])
        )
        for i in nearest(new, known)[0]
    ]
    return replace(found, nearest=tuple(alike))


def _log_odds(logits: NDArray[Any], number: int) -> NDArray[Any]:
    """The log-odds ``[n]`` of one of several exclusive labels, which do not saturate at 1."""
    others = np.delete(logits, number, axis=1)
    return logits[:, number] - np.logaddexp.reduce(others, axis=1)


def _parts(text: str, most: int) -> list[list[re.Match[str]]]:
    """The words of a text; in long texts, a few words in a row."""
    words = list(re.finditer(r"\S+", text))
    size = -(-len(words) // most) if words else 1
    return [words[i : i + size] for i in range(0, len(words), size)]


def _without(text: str, words: list[Word]) -> str:
    for word in sorted(words, key=lambda word: -word.start):
        text = text[: word.start] + text[word.end :]
    return " ".join(text.split()) or EMPTY
