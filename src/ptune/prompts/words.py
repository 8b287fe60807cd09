"""Label words: a head that starts as rows of a language model's own head.

A language model that reads "Review: a waste of time. Sentiment:" expects " negative" more than
" positive", and so does one that fills the gap in "A waste of time. It was [MASK]." These two rows
of its head, applied to what it knows at that place, classify without any training (arXiv
2001.07676, 2103.10385).
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from ptune.backbones.architectures import fills_gaps
from ptune.errors import PtuneError
from ptune.labels import in_words
from ptune.texts import Template, encode, lock_of

# Texts without content, for which all labels should be equally likely (arXiv 2102.09690). With the
# sentences, no training set that we tried became worse; placeholders alone sound negative.
_PLACEHOLDERS = ("N/A", "", "[MASK]", "…")
WITHOUT_CONTENT = (*_PLACEHOLDERS, "This is a text.", "Hello.", "It is what it is.")


class NoWords(PtuneError):
    """A head cannot start as rows of the language model's head."""


Words = dict[str, list[str]]
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
            f"{', '.join(labels[:20])}. Leave its words out (label_words)."
        )
    found: Words = {}
    for label in labels:
        words: Any = given.get(label, in_words(label))
        found[label] = list(words) if isinstance(words, list | tuple) else [words]
        if wrong := [word for word in found[label] if not isinstance(word, str)]:
            raise PtuneError(
                f"The label {label!r} has the words {wrong[0]!r}; expected a string or a list of "
                "strings."
            )
        if not found[label] or not all(word.strip() for word in found[label]):
            raise PtuneError(f"The label {label!r} has no words. Give it at least one.")
    return found


def _read(given: str) -> Mapping[str, str | Sequence[str]]:
    if given.endswith(".json") or given.startswith("{"):
        try:
            content = json.loads(given if given[0] == "{" else Path(given).read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise PtuneError(f"The label words {given} cannot be read: {error}.") from error
        if not isinstance(content, dict):
            raise PtuneError(f"{given} does not hold an object; expected words by label.")
        return content
    pairs = [part.partition("=") for part in given.split(",")]
    if wrong := [label for label, equals, _ in pairs if not equals]:
        raise PtuneError(
            f"The label words have {wrong[0]!r}; expected label=word or label=word|word, with "
            "commas between the labels, or the name of a JSON file."
        )
    found: dict[str, str | Sequence[str]] = {}
    for label, _, words in pairs:
        if label.strip() in found:
            raise PtuneError(
                f"The label words name {label.strip()!r} twice. Write all its words at once, as "
                f"{label.strip()}={'|'.join(found[label.strip()])}|{words.strip()}."
            )
        found[label.strip()] = words.split("|")
    return found


class Start(NamedTuple):
    """What a head starts as, float32: rows ``[labels, hidden]``, and a bias ``[labels]``.

    A causal language model's head has no bias.
    """

    rows: Tensor
    bias: Tensor | None

    def shifted(self, by: Tensor, mean: Tensor) -> Start:
        """The same with other scores.

        Without a bias, the scores of a text move along the mean of the states, which language
        models share among all texts, so by nearly these amounts.

        Args:
            by: What is added to the score of each label, ``[labels]``.
            mean: The mean of what the head reads, ``[hidden]``.
        """
        if self.bias is not None:
            return Start(self.rows, self.bias + by)
        return Start(self.rows + by[:, None] * (mean / (mean @ mean)), None)


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
    alike: dict[frozenset[tuple[int, ...]], str] = {}
    for label, own in zip(words, ids, strict=True):
        same = alike.setdefault(frozenset(map(tuple, own)), label)
        if same != label:
            warnings.warn(
                f"The words of the labels {same!r} and {label!r} are the same tokens, so the "
                "language model cannot tell them apart. Give each words of its own (label_words).",
                stacklevel=2,
            )
    return ids


def rows_of(model: PreTrainedModel, tokens: Sequence[Sequence[Sequence[int]]]) -> Start:
    """The rows of a language model's head for its label words, and their biases.

    Args:
        model: The language model.
        tokens: From `token_of_each`.

    Raises:
        NoWords: Its scores are not rows of the head times what the head reads.
    """
    head: Any = model.get_output_embeddings()

    def of_words(parameter: Tensor) -> Tensor:
        parameter = parameter.detach().float()
        means = [[parameter[torch.tensor(word)].mean(0) for word in own] for own in tokens]
        return torch.stack([torch.stack(own).mean(0) for own in means])

    masked = fills_gaps(model.config.model_type)
    own_bias = head.bias if masked else None
    if cap := getattr(model.config.get_text_config(), "final_logit_softcapping", None):
        raise NoWords(
            f"{type(model).__name__} caps its scores (final_logit_softcapping is {cap:g}), and a "
            "head is linear, so its probabilities would not be the language model's. Use "
            "head='linear'."
        )
    if not _is_linear(model, head, own_bias):
        raise NoWords(
            f"The scores of {type(model).__name__} are not those of its head alone (it has a bias, "
            "or scales them), so its rows cannot start a head. Use head='linear'."
        )
    rows = of_words(head.weight)
    if not masked:
        return Start(rows, None)
    return Start(rows, rows.new_zeros(len(rows)) if own_bias is None else of_words(own_bias))


@torch.no_grad()
def _is_linear(model: PreTrainedModel, head: Any, bias: Tensor | None) -> bool:
    """Whether the scores are the head's rows times what it reads, and a bias, on a few tokens."""
    ids = torch.arange(1, 7, device=model.device).view(2, 3) % head.weight.shape[0]
    states, logits = _states_and_scores(model, ids)
    expected = F.linear(states, head.weight, bias)
    return bool((expected - logits).abs().max() <= 0.02 * logits.abs().max())


@dataclass(frozen=True)
class Asked:
    """A language model, and the words around each text that ask it for the label.

    Attributes:
        model: The language model.
        tokenizer: Its tokenizer.
        template: The words around each text.
    """

    model: PreTrainedModel
    tokenizer: Any
    template: Template

    @torch.no_grad()
    def words_from_examples(
        self,
        columns: Sequence[Sequence[str]],
        labels: Sequence[int],
        names: Sequence[str],
        longest: int | None = None,
    ) -> Words:
        """The words that it says after texts of one label more than after others.

        For each label those with the largest likelihood ratio, as in PETAL (arXiv 2010.13641),
        among the words that are likely after any label. A label for which there is none is its own
        word.

        Args:
            columns: Some labelled texts; or first and second texts.
            labels: The number of each text's label.
            names: The labels.
            longest: The longest text in tokens; longer texts are cut.
        """
        head: Any = self.model.get_output_embeddings()
        states = self._states(columns, longest)
        bias = None if head.bias is None else head.bias.float()
        scores = F.linear(states, head.weight.float(), bias).log_softmax(dim=1)  # [texts, vocab]
        which = torch.tensor(labels, device=scores.device)
        means = torch.stack([scores[which == i].mean(0) for i in range(len(names))])
        means = means.nan_to_num(nan=-torch.inf)  # a label without examples
        ratios = means - (means.exp().sum(0) - means.exp()).div(len(names) - 1).log()
        likely = means.amax(0).topk(min(LIKELY, means.shape[1])).indices.tolist()
        words = {token: word for token in likely if (word := self._word_of(token))}
        best = {token: int(ratios[:, token].argmax()) for token in words}
        found = {}
        for i, name in enumerate(names):
            own = sorted((t for t in words if best[t] == i), key=lambda t: -float(ratios[i, t]))
            found[name] = [words[t] for t in own[:MOST_WORDS]] or [in_words(name)]
        return found

    def _word_of(self, token: int) -> str | None:
        """The word that a token is, if it is a whole one."""
        word = self.tokenizer.decode([token]).strip()
        spaced = (" " if self.template.is_spaced else "") + word
        again = self.tokenizer(spaced, add_special_tokens=False)["input_ids"]
        return word if word.isalpha() and len(word) > 1 and again == [token] else None

    def start_of_head(self, words: Words, *, calibrate: bool = True) -> Start:
        """A head that answers as the language model does.

        With `calibrate`, texts without content get equal scores (contextual calibration): what the
        model prefers anyway says nothing about a text.

        Args:
            words: The words of each label.
            calibrate: Give texts without content equal scores.

        Raises:
            PtuneError: As for `rows_of`.
        """
        tokens = token_of_each(self.tokenizer, words, spaced=self.template.is_spaced)
        rows, bias = rows_of(self.model, tokens)
        if not calibrate:
            return Start(rows, bias)
        states = self._states([list(WITHOUT_CONTENT)] * (1 + self.template.takes_pairs))
        scores = F.linear(states, rows, bias).log_softmax(dim=1).mean(0)  # [labels]
        return Start(rows, bias).shifted(scores.mean() - scores, states.mean(0))

    @torch.no_grad()
    def _states(self, columns: Sequence[Sequence[str]], longest: int | None = None) -> Tensor:
        """What the head reads of each text, ``[texts, hidden]``, float32.

        It is at the mask token of the template, or after the last token. An empty text that is
        all of its template, and gets no special token, has none.
        """
        encoded, _ = encode(self.tokenizer, columns, longest, template=self.template)
        found = []
        for ids in filter(None, encoded["input_ids"]):
            text = torch.tensor([ids], device=self.model.device)
            states, _ = _states_and_scores(self.model, text)
            at_mask = self.template.has_mask
            place = ids.index(self.tokenizer.mask_token_id) if at_mask else -1
            found.append(states[0, place].float())
        return torch.stack(found)


def _states_and_scores(model: PreTrainedModel, ids: Tensor) -> tuple[Tensor, Tensor]:
    """What the head of a language model reads, ``[batch, seq, hidden]``, and its scores."""
    head: Any = model.get_output_embeddings()
    read: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    try:
        cache = {} if fills_gaps(model.config.model_type) else {"use_cache": False}
        logits = model.eval()(input_ids=ids, **cache).logits
    finally:
        hook.remove()
    return read[0], logits
