"""What a language model is asked: the words around each text, and the words of the labels."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ptune.backbones.loading import is_masked, load_language_model
from ptune.data.dataset import LABEL, TaskData, text_columns
from ptune.errors import PtuneError
from ptune.model import PromptModel
from ptune.prompts.questions import default_question
from ptune.prompts.words import Asked, NoWords, parse_words
from ptune.texts import Template, special_before
from ptune.training.defaults import Situation, head_of, virtual_tokens
from ptune.training.settings import TrainSettings

logger = logging.getLogger(__name__)

# `label_words` for words found in examples, and how many examples of each label are read.
FROM_EXAMPLES, FOUND_IN = "auto", 8


def ask_with_words(
    settings: TrainSettings, dataset: TaskData, tokenizer: PreTrainedTokenizerBase
) -> TrainSettings:
    """Decide on a template, and on the prompt that starts as its words.

    Raises:
        PtuneError: The template is malformed, or the labels are numbers to predict.
    """
    situation = Situation.of(settings, dataset)
    if settings.head is None:
        settings = replace(settings, head=head_of(settings, situation))
    if settings.asks_words and dataset.labels.is_regression:
        raise PtuneError("A regression has no label words. Use head='linear'.")
    if settings.label_words and not settings.asks_words:
        raise PtuneError(
            f"There are label words, and the head starts as {settings.head!r}, which does not use "
            "them. Add head='words' (--head words) on a language model, or leave them out."
        )
    masked = is_masked(settings.model, revision=settings.revision)
    if settings.asks_words and settings.template is None:
        asked = default_question(
            dataset.labels.names,
            pairs=dataset.pairs,
            place="gap" if masked else "after" if settings.prompt == "reader" else "before",
            question=dataset.question,
        )
        words = settings.label_words or (json.dumps(asked.words) if asked.words else None)
        settings = replace(settings, template=asked.template, label_words=words)
    _check_model(settings, situation, masked=masked)
    if settings.at_mask and settings.pooling == "auto":
        settings = replace(settings, pooling="architecture")
    if settings.head == "words-frozen" and settings.prompt == "none":
        raise PtuneError(
            "head is 'words-frozen' and prompt is 'none', so nothing would train. Use "
            "head='words', or another prompt."
        )
    places = Template(settings.template).prompt_places if settings.template else []
    if settings.placement == "template" and not places:
        raise PtuneError(
            "placement is 'template', but no template has a place for the prompt. Add one, such as "
            "'{prompt:3} {text} {prompt:3}', or leave placement out."
        )
    if settings.template is None or settings.prompt == "none":
        return settings
    return _with_start(settings, Template(settings.template), situation, tokenizer)


def _with_start(
    settings: TrainSettings, template: Template, situation: Situation, tokenizer: Any
) -> TrainSettings:
    """Decide where a prompt is in its template, and what it starts as there.

    Raises:
        PtuneError: The template has places where a prompt of this kind cannot be.
    """
    kind, words, places = settings.prompt, template.soft_words, template.prompt_places
    at_end, is_one = template.soft_at_end, places == [f"{{soft:{words}}}"]
    if kind == "input" and places and (at_end or not is_one):
        k = settings.num_virtual_tokens
        k = k or (virtual_tokens(settings) if "{prompt}" in places else None)
        length = len(template.placed(tokenizer, k).words)
        settings = replace(settings, placement="template", num_virtual_tokens=length)
        is_open = settings.prompt_init is None and settings.prompt_init_text is None
        return replace(settings, prompt_init="vocab") if is_open else settings
    has_place = not places or (is_one and (kind == "reader" or not at_end))
    has_place |= kind == "deep" and places == ["{prompt}"] and template.replaces_special
    if not has_place:
        where = "at the end: {soft:words}"
        where = where if kind == "reader" else "at the start: {soft:words} or {prompt}"
        raise PtuneError(
            f"The template {settings.template!r} has {places[-1]}, and the only place of a {kind} "
            f"prompt is {where}. Use prompt='input', or plain words."
        )
    if not words or at_end != (kind == "reader") or settings.prompt_init is not None:
        return settings
    length = len(tokenizer(words, add_special_tokens=False)["input_ids"])
    length += len(replaced_special(settings, situation, tokenizer))
    return replace(
        settings,
        prompt_init="text",
        prompt_init_text=words,
        prompt_init_scale=1.0,
        num_virtual_tokens=length,
        shift_positions=settings.prompt == "deep",  # where the words were
    )


def _check_model(settings: TrainSettings, situation: Situation, *, masked: bool) -> None:
    """Check that a language model can answer as the template asks.

    Args:
        settings, situation: Those of the run.
        masked: Whether the model fills gaps.

    Raises:
        PtuneError: It cannot.
    """
    if settings.asks_words and not (situation.backbone == "decoder" or masked):
        raise PtuneError(
            f"{settings.model} was trained neither to continue texts nor to fill gaps in them, so "
            "it cannot be asked for a label. Use a causal or masked language model, such as "
            "smollm2 or roberta-base, or head='linear'."
        )
    if settings.at_mask and not masked:
        raise PtuneError(
            f"The template {settings.template!r} has {{mask}}, and {settings.model} was not "
            "trained to fill gaps. End the template with the question instead."
        )
    if settings.asks_words and masked and not settings.at_mask:
        raise PtuneError(
            f"{settings.model} fills gaps, and the template {settings.template!r} has no {{mask}}. "
            "Add it where the label word should be, such as '{text} It was {mask}.'."
        )


def replaced_special(
    settings: TrainSettings, situation: Situation, tokenizer: PreTrainedTokenizerBase
) -> list[int]:
    """The special tokens before a text that a prompt of soft words replaces, such as BOS.

    Their keys and values belong before those of the words, so a deep prompt starts with them.
    """
    is_deep = situation.backbone == "decoder" and settings.prompt == "deep"
    return special_before(tokenizer) if is_deep else []


def own_language_model(settings: TrainSettings, dtype: torch.dtype) -> PreTrainedModel:
    """The language model of the backbone that the settings describe."""
    return load_language_model(
        settings.model, masked=settings.at_mask, dtype=dtype, revision=settings.revision
    )


def start_with_words(
    model: PromptModel,
    settings: TrainSettings,
    dataset: TaskData,
    tokenizer: PreTrainedTokenizerBase,
    language_model: PreTrainedModel,
    *,
    calibrate: bool = True,
) -> None:
    """Start the head as the rows of its label words in the language model.

    Raises:
        PtuneError: As for `Asked.start_of_head`; or words are to be found without examples.
    """
    assert settings.template is not None, "`ask_with_words` chooses one"
    template = Template(settings.template)
    if settings.prompt == "none" or settings.placement == "template":
        template = template.without_prompt()
    asked, names = Asked(language_model, tokenizer, template), dataset.labels.names
    if settings.label_words == FROM_EXAMPLES:
        if not dataset.train:
            raise PtuneError(
                f"label_words is {FROM_EXAMPLES!r}, but there are no training examples. Name the "
                "words, or leave label_words out."
            )
        some = dataset.few_examples(FOUND_IN, settings.seed).train
        longest = model.max_text_tokens(tokenizer)
        words = asked.words_from_examples(text_columns(some), some[LABEL], names, longest)
        listed = "; ".join(f"{name}: {', '.join(own)}" for name, own in words.items())
        logger.warning("The label words are %s.", listed)
    else:
        words = parse_words(settings.label_words or {}, names)
    _set_head(model, *asked.start_of_head(words, calibrate=calibrate))


def _set_head(model: PromptModel, rows: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Set the head to rows ``[labels, hidden]`` and a bias ``[labels]``; ``None``: zeros.

    Raises:
        NoWords: The backbone's head has more layers than one.
    """
    named = dict(model.head_parameters())
    weights = [name for name, p in named.items() if p.ndim > 1]
    if [named[name].shape for name in weights] != [rows.shape]:
        raise NoWords(
            f"The head of {model.architecture.name} has other parameters ({', '.join(named)}) than "
            f"one layer on what the language model's head reads. Use head='linear'."
        )
    with torch.no_grad():
        for name, parameter in named.items():
            start = rows if name in weights else bias
            parameter.copy_(torch.zeros_like(parameter) if start is None else start)
