"""Label words: a head that starts as rows of a language model's own head.

A language model that reads "Review: a waste of time. Sentiment:" expects " negative" more than
" positive". These two rows of its head, applied to what it knows at that place, classify without
any training (arXiv 2001.07676, 2103.10385).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ptune.errors import PtuneError
from ptune.texts import Template, encode, lock_of

# Texts without content, for which all labels should be equally likely (arXiv 2102.09690).
WITHOUT_CONTENT = ("N/A", "", "[MASK]", "…")


class NoWords(PtuneError):
    """A head cannot start as rows of the language model's head."""


Words = dict[str, list[str]]
# The most labels that a question lists.
FEW = 6
# Words found in examples: how many to take for each label, and how many likely ones to test.
MOST_WORDS, LIKELY = 3, 1000


def parse_words(given: str | Mapping[str, str | Sequence[str]], labels: Sequence[str]) -> Words:
    """The words of each label.

    Args:
        given: Words by label; or ``label=word|word,label=word``, or the name of a JSON file with
            words by label.
        labels: The labels, in the order of the logits. A label without words is its own word.

    Raises:
        PtuneError: It names an unknown label, or cannot be read.
    """
    if isinstance(given, str):
        given = _read(given)
    if unknown := sorted(given.keys() - set(labels)):
        raise PtuneError(
            f"There are words for the label {unknown[0]!r}, but the labels are "
            f"{', '.join(labels[:20])}."
        )
    found = {}
    for label in labels:
        words = given.get(label, _spelled(label))
        found[label] = [words] if isinstance(words, str) else list(words)
        if not found[label] or not all(isinstance(w, str) and w.strip() for w in found[label]):
            raise PtuneError(f"The label {label!r} has no words. Give it at least one.")
    return found


def _read(given: str) -> Mapping[str, str | Sequence[str]]:
    if given.endswith(".json") or given.startswith("{"):
        try:
            content = json.loads(given if given[0] == "{" else Path(given).read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise PtuneError(f"The label words {given} cannot be read: {error}.") from error
        if not isinstance(content, dict):
            raise PtuneError(f"{given} holds no object; expected words by label.")
        return content
    pairs = [part.partition("=") for part in given.split(",")]
    if wrong := [label for label, equals, _ in pairs if not equals]:
        raise PtuneError(
            f"The label words have {wrong[0]!r}; expected label=word or label=word|word, with "
            "commas between the labels, or the name of a JSON file."
        )
    return {label.strip(): words.split("|") for label, _, words in pairs}


def _spelled(label: str) -> str:
    """A label as people would write it in a sentence."""
    return label.replace("_", " ").replace("-", " ").strip() or label


def default_template(labels: Sequence[str], *, pairs: bool = False) -> str:
    """A template that asks which of the labels fits.

    A few labels are listed. Many are not: a model then prefers those that it read last.
    """
    names = [_spelled(label).replace("{", "(").replace("}", ")") for label in labels]
    listed = f"{', '.join(names[:-1])} or {names[-1]}"
    if pairs:
        task = f"Classify the two texts as {listed}." if len(names) <= FEW else "Compare two texts."
        return f"{{soft:{task}\nFirst text:}} {{text}}\nSecond text: {{text_pair}}\nLabel:"
    if len(names) <= FEW:
        return f"{{soft:Classify the text as {listed}.\nText:}} {{text}}\nLabel:"
    return "{soft:Read the text and say what it is about.\nText:} {text}\nThis text is about"


@torch.no_grad()
def words_from_examples(
    model: PreTrainedModel,
    tokenizer: Any,
    template: Template,
    columns: Sequence[Sequence[str]],
    labels: Sequence[int],
    names: Sequence[str],
    longest: int | None = None,
) -> Words:
    """The words that a language model says after texts of one label more than after others.

    For each label those with the largest likelihood ratio, as in PETAL (arXiv 2010.13641), among
    the words that are likely after any label. A label for which there is none is its own word.

    Args:
        model, tokenizer, template: As for `start_of_head`.
        columns: Some labelled texts; or first and second texts.
        labels: The number of each text's label.
        names: The labels.
        longest: The longest text in tokens; longer texts are cut.
    """
    encoded, _ = encode(tokenizer, columns, longest, template=template)
    head: Any = model.get_output_embeddings()
    states = torch.stack([_last_state(model, ids) for ids in encoded["input_ids"]])
    scores = (states @ head.weight.float().T).log_softmax(dim=1)  # [texts, vocabulary]
    which = torch.tensor(labels, device=scores.device)
    means = torch.stack([scores[which == i].mean(0) for i in range(len(names))])
    means = means.nan_to_num(nan=-torch.inf)  # a label without examples
    ratios = means - (means.exp().sum(0) - means.exp()).div(len(names) - 1).log()
    spaced, found = _is_spaced(template), {}
    likely = means.amax(0).topk(min(LIKELY, means.shape[1])).indices.tolist()
    words = {token: word for token in likely if (word := _word_of(tokenizer, token, spaced))}
    best = {token: int(ratios[:, token].argmax()) for token in words}
    for i, name in enumerate(names):
        own = sorted((t for t in words if best[t] == i), key=lambda t: -float(ratios[i, t]))
        found[name] = [words[t] for t in own[:MOST_WORDS]] or [_spelled(name)]
    return found


def _is_spaced(template: Template) -> bool:
    """Whether a space comes before the word that the template asks for."""
    return not (template.chats or template.pattern.endswith((" ", "\n")))


def _word_of(tokenizer: Any, token: int, spaced: bool) -> str | None:
    """The word that a token is, if it is a whole one."""
    text = tokenizer.decode([token])
    word = text.strip()
    again = tokenizer((" " if spaced else "") + word, add_special_tokens=False)["input_ids"]
    return word if word.isalpha() and len(word) > 1 and again == [token] else None


def token_of_each(tokenizer: Any, words: Words, *, spaced: bool) -> list[list[list[int]]]:
    """The tokens that stand for each label: for every word a list of tokens to average over.

    If the first tokens of all words differ, each word is its first token: that is what a language
    model says first. Otherwise it is the first place at which they differ, or else all its tokens.

    Args:
        tokenizer: The backbone's.
        words: The words of each label.
        spaced: Whether a space comes before the word.
    """
    with lock_of(tokenizer):
        ids = [
            [
                tokenizer((" " if spaced else "") + word, add_special_tokens=False)["input_ids"]
                for word in own
            ]
            for own in words.values()
        ]
    for place in range(min(len(word) for own in ids for word in own)):
        tokens = [{word[place] for word in own} for own in ids]
        if sum(map(len, tokens)) == len(set().union(*tokens)):
            return [[[word[place]] for word in own] for own in ids]
    return ids


def rows_of(model: PreTrainedModel, tokens: Sequence[Sequence[Sequence[int]]]) -> Tensor:
    """The rows ``[labels, hidden]`` of a causal language model's head for its label words, float32.

    Args:
        model: The language model.
        tokens: From `token_of_each`.

    Raises:
        NoWords: Its scores are not rows of the head times the last hidden state.
    """
    head: Any = model.get_output_embeddings()
    rows = torch.stack(
        [
            torch.stack([head.weight[torch.tensor(word)].float().mean(0) for word in own]).mean(0)
            for own in tokens
        ]
    )
    if not _is_linear(model, head):
        raise NoWords(
            f"The scores of {type(model).__name__} are not those of its head alone (it has a bias, "
            "or scales or caps them), so its rows cannot start a head. Use head='linear'."
        )
    return rows.detach()


@torch.no_grad()
def _is_linear(model: PreTrainedModel, head: Any) -> bool:
    """Whether the model's scores are its head's rows times the last state, on a few tokens."""
    if getattr(model.config.get_text_config(), "final_logit_softcapping", None):
        return False  # small scores, as those of a few tokens may be, are hardly capped
    rows = head.weight.shape[0]
    ids = torch.arange(1, 7, device=model.device).view(2, 3) % rows
    output = model.eval()(input_ids=ids, output_hidden_states=True, use_cache=False)
    expected = output.hidden_states[-1] @ head.weight.T
    gap = (expected - output.logits).abs().max()
    return bool(gap <= 0.02 * output.logits.abs().max())


def start_of_head(
    model: PreTrainedModel,
    tokenizer: Any,
    template: Template,
    words: Words,
    *,
    calibrate: bool = True,
) -> Tensor:
    """The rows ``[labels, hidden]`` of a head that answers as a language model does, float32.

    With `calibrate`, texts without content get equal scores (contextual calibration): what the
    model prefers anyway says nothing about a text. The scores of other texts move by nearly the
    same amounts, along the mean of the states, which language models share among all texts.

    Args:
        model: The causal language model.
        tokenizer: Its tokenizer.
        template: The words around each text.
        words: The words of each label.

    Raises:
        PtuneError: As for `rows_of`.
    """
    rows = rows_of(model, token_of_each(tokenizer, words, spaced=_is_spaced(template)))
    if not calibrate:
        return rows
    columns = [list(WITHOUT_CONTENT)] * (1 + template.takes_pairs)
    encoded, _ = encode(tokenizer, columns, None, template=template)
    states = torch.stack([_last_state(model, ids) for ids in encoded["input_ids"]])
    scores = (states @ rows.T).log_softmax(dim=1).mean(0)  # [labels]
    mean = states.mean(0)
    return rows - (scores - scores.mean())[:, None] * (mean / (mean @ mean))


@torch.no_grad()
def _last_state(model: PreTrainedModel, ids: Sequence[int]) -> Tensor:
    """What the head reads to predict the token after `ids`, ``[hidden]``, float32."""
    given = torch.tensor([ids], device=model.device)
    output = model.eval()(input_ids=given, output_hidden_states=True, use_cache=False)
    return output.hidden_states[-1][0, -1].float()
