"""The question that a language model is asked if the user names no template.

Common labels have questions and label words of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from ptune.labels import in_words

# The most labels that a question lists.
FEW = 6

# What each label is called in an answer. A set of labels is common if all of them are in one table.
ANSWERS = {
    **{"yes": "Yes", "true": "Yes", "no": "No", "false": "No", "maybe": "Maybe"},
    **{"entailment": "Yes", "not entailment": "No", "neutral": "Maybe", "contradiction": "No"},
    **{"equivalent": "Yes", "not equivalent": "No", "duplicate": "Yes", "not duplicate": "No"},
    **{"acceptable": "Yes", "unacceptable": "No"},
}
MOODS = {"positive": "great", "negative": "terrible", "neutral": "okay", "mixed": "mixed"}
_GRADES = ("terrible", "bad", "okay", "good", "great")
RATINGS = {
    f"{n}{unit}": grade
    for n, grade in enumerate(_GRADES, start=1)
    for unit in ("", " star", " stars")
}


# Where a model is asked: before the text, after it (where readers are), or at a gap to fill.
Place = Literal["before", "after", "gap"]


class Question(NamedTuple):
    """A template, and the words of the labels; ``None``: the labels themselves."""

    template: str
    words: dict[str, str] | None = None


class _Wording(NamedTuple):
    """How to ask for a label.

    Attributes:
        task: The question, for before the text.
        start: What the answer continues, after the text.
        gap: What the gap continues, after the text.
        alone: What the answer continues if there is no question before the text; ``None``: `start`.
        text: What the text is called.
    """

    task: str
    start: str
    gap: str
    alone: str | None = None
    text: str = "Text"

    def template(self, place: Place, *, pairs: bool) -> str:
        """The template that asks at a place."""
        if place == "gap":
            return "{text} ? {mask}, {text_pair}" if pairs else f"{{text}} {self.gap} {{mask}}."
        if place == "after":
            texts = "First text: {text}\nSecond text: {text_pair}" if pairs else "{text}"
            return f"{texts}{{soft:{self.alone or self.start}}}"
        text = "First text" if pairs else self.text
        second = "\nSecond text: {text_pair}" if pairs else ""
        return f"{{soft:{self.task}\n{text}:}} {{text}}{second}{self.start}"


def default_question(
    labels: Sequence[str],
    *,
    pairs: bool = False,
    place: Place = "before",
    question: str | None = None,
) -> Question:
    """A question about a text whose answer is one of the labels.

    Args:
        labels: The labels.
        pairs: Whether it is about pairs of texts.
        place: Where the model is asked.
        question: What is asked about a text, if that is known.
    """
    asked = f"{question[0].upper()}{question[1:]}" if question else None
    if words := _all_in(ANSWERS, labels):
        usual = "Does the second text follow from the first?" if pairs else "Is this true?"
        said, answers = asked or usual, list(words.values())
        wording = _Wording(
            task=f"{said} Answer {as_choice(answers)}.",
            start="\nAnswer:",
            gap=asked or "Is it?",
            alone=f"\n{said} Answer:",
        )
    elif not pairs and (words := _all_in(MOODS, labels)):
        # SmolLM2 answers better if the positive label comes first.
        first = [label for mood in MOODS for label in labels if in_words(label).lower() == mood]
        wording = _Wording(f"Is the text {as_choice(first)}?", " Sentiment:", "It was")
        words = words if place == "gap" else None
    elif not pairs and (words := _all_in(RATINGS, labels)):
        task = f"Is the review {as_choice(list(words.values()))}?"
        wording = _Wording(task, "\nRating:", "It was", text="Review")
    else:
        words, wording = None, _general(labels, pairs=pairs)
    return Question(wording.template(place, pairs=pairs), words)


def _all_in(table: dict[str, str], labels: Sequence[str]) -> dict[str, str] | None:
    """The word of each label, if a table has all of them and no two words are the same."""
    words = {label: table.get(in_words(label).lower(), "") for label in labels}
    return words if all(words.values()) and len(set(words.values())) == len(words) else None


def _general(labels: Sequence[str], *, pairs: bool) -> _Wording:
    """Asks which of the labels fits.

    A few labels are listed. Many are not: a model then prefers those that it read last.
    """
    label, about = "\nLabel:", "\nThis text is about"
    few, what = len(labels) <= FEW, "two texts" if pairs else "text"
    listing = f"Classify the {what} as {as_choice(labels)}." if few else None
    if pairs:
        return _Wording(listing or "Compare two texts.", label, "")
    task = listing or "Read the text and say what it is about."
    return _Wording(task, label if few else about, "It is about", alone=about)


def as_choice(labels: Sequence[str]) -> str:
    """Labels in a sentence: `a, b or c`. Braces would be places of a template."""
    names = [in_words(label).replace("{", "(").replace("}", ")") for label in labels]
    return f"{', '.join(names[:-1])} or {names[-1]}"
