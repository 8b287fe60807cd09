"""The question that a language model is asked if the user names no template.

Common labels have questions and label words of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

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


class Question(NamedTuple):
    """A template, and the words of the labels; ``None``: the labels themselves."""

    template: str
    words: dict[str, str] | None = None


def default_question(
    labels: Sequence[str],
    *,
    pairs: bool = False,
    masked: bool = False,
    question: str | None = None,
    after: bool = False,
) -> Question:
    """A question about a text whose answer is one of the labels.

    Args:
        labels: The labels.
        pairs: Whether it is about pairs of texts.
        masked: Whether a masked language model is asked, which fills a gap.
        question: What is asked about a text, if that is known.
        after: Whether all words come after the text, for a reader to start as.
    """
    asked = f"{question[0].upper()}{question[1:]}" if question else None
    if words := _all_in(ANSWERS, labels):
        if after:
            return Question(_after(f"{asked or _asked(pairs=pairs)} Answer:", pairs=pairs), words)
        template = _answered(list(words.values()), asked, pairs=pairs, masked=masked)
        return Question(template, words)
    if not pairs and (words := _all_in(MOODS, labels)):
        if masked:
            return Question("{text} It was {mask}.", words)
        if after:
            return Question("{text}{soft: Sentiment:}")
        # SmolLM2 answers better if the positive label comes first.
        first = [label for mood in MOODS for label in labels if in_words(label).lower() == mood]
        asked = f"Is the text {listed(first)}?"
        return Question(f"{{soft:{asked}\nText:}} {{text}} Sentiment:")
    if not pairs and (words := _all_in(RATINGS, labels)):
        if masked:
            return Question("{text} It was {mask}.", words)
        if after:
            return Question(_after("Rating:"), words)
        asked = f"Is the review {listed(list(words.values()))}?"
        return Question(f"{{soft:{asked}\nReview:}} {{text}}\nRating:", words)
    if masked:
        return Question("{text} ? {mask}, {text_pair}" if pairs else "{text} It is about {mask}.")
    if after:
        return Question(_after("Label:" if pairs else "This text is about", pairs=pairs))
    return Question(_general(labels, pairs=pairs))


def _after(asked: str, *, pairs: bool = False) -> str:
    """A template that says something after the text, or after both."""
    texts = "First text: {text}\nSecond text: {text_pair}" if pairs else "{text}"
    return f"{texts}{{soft:\n{asked}}}"


def _all_in(table: dict[str, str], labels: Sequence[str]) -> dict[str, str] | None:
    """The word of each label, if a table has all of them and no two words are the same."""
    words = {label: table.get(in_words(label).lower(), "") for label in labels}
    return words if all(words.values()) and len(set(words.values())) == len(words) else None


def _answered(answers: Sequence[str], asked: str | None, *, pairs: bool, masked: bool) -> str:
    """A template that asks for one of a few answers, such as Yes and No."""
    if masked:
        return (
            "{text} ? {mask}, {text_pair}" if pairs else f"{{text}} {asked or 'Is it?'} {{mask}}."
        )
    asked = f"{asked or _asked(pairs=pairs)} Answer {listed(answers)}."
    if pairs:
        return f"{{soft:{asked}\nFirst text:}} {{text}}\nSecond text: {{text_pair}}\nAnswer:"
    return f"{{soft:{asked}\nText:}} {{text}}\nAnswer:"


def _asked(*, pairs: bool) -> str:
    """A question that yes and no answer."""
    return "Does the second text follow from the first?" if pairs else "Is this true?"


def _general(labels: Sequence[str], *, pairs: bool) -> str:
    """A template that asks which of the labels fits.

    A few labels are listed. Many are not: a model then prefers those that it read last.
    """
    if pairs:
        task = (
            f"Classify the two texts as {listed(labels)}."
            if len(labels) <= FEW
            else "Compare two texts."
        )
        return f"{{soft:{task}\nFirst text:}} {{text}}\nSecond text: {{text_pair}}\nLabel:"
    if len(labels) <= FEW:
        return f"{{soft:Classify the text as {listed(labels)}.\nText:}} {{text}}\nLabel:"
    return "{soft:Read the text and say what it is about.\nText:} {text}\nThis text is about"


def listed(labels: Sequence[str]) -> str:
    """Labels in a sentence: `a, b or c`. Braces would be places of a template."""
    names = [in_words(label).replace("{", "(").replace("}", ")") for label in labels]
    return f"{', '.join(names[:-1])} or {names[-1]}"
