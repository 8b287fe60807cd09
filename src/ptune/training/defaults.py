"""Settings that are left open: chosen from the backbone and the data, by one rule.

docs/reference/defaults.md has the rule as a table, and what it was chosen from.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Any

from ptune.backbones.architectures import LAYERS_READ
from ptune.backbones.loading import is_decoder, model_type_of
from ptune.data.dataset import TaskData
from ptune.errors import PtuneError
from ptune.prompts.config import Depth, Pooling, PromptEncoderConfig, vectors_of
from ptune.prompts.questions import FEW, as_choice
from ptune.texts import IN_WINDOWS
from ptune.training.settings import HeadStart, Preset, TrainSettings

# The length of a run: passes over the data, and the fewest steps.
EPOCHS: dict[Preset, int] = {"fast": 4, "default": 8, "best": 20}
MIN_STEPS: dict[Preset, int] = {"fast": 100, "default": 200, "best": 500}
# A head that is fitted to single texts, or reads them besides a reader, leaves a prompt less to
# learn, and twice the passes only teach it its examples by heart.
SHORT_EPOCHS: dict[Preset, int] = {"fast": 2, "default": 4, "best": 10}
# Fewer steps where further ones make a prompt worse: with such a head, with pairs of texts, or with
# a head of label words.
MIN_SHORT_STEPS: dict[Preset, int] = {"fast": 24, "default": 48, "best": 96}
# However long a run is, it is evaluated so often if the settings leave it open.
EVALUATIONS = 8
# What `Trainer` does after each epoch, or after each N steps.
SCHEDULED = ("eval", "save", "logging")

# Learning rates of the prompt, by kind of backbone. Relative to the scale of its start.
PROMPT_RATES = {
    ("encoder", "deep"): 0.12,
    ("encoder", "input"): 0.1,
    ("decoder", "deep"): 0.02,
    ("decoder", "input"): 0.04,
}
# That of a prompt that learns from pairs of texts.
PAIR_RATE = 0.03
# Learning rate of the head, relative to the scale of what it reads, for the mean in one layer.
HEAD_RATE = 1e-3
# A reader starts at words that know nothing of the task, and its low-rank layers start at zero. So
# neither its start nor what the head reads then is a measure for steps, or a start for the head.
READER_RATE = 1e-3
READER_HEAD_RATE = {"encoder": 5e-3, "decoder": 1e-4}
# With how much the texts of a pair differ, the head reads twice as much, and learns it by heart.
READER_PAIR_HEAD_RATE = 2e-3
# From words that ask for the label, with a head of label words, larger steps learn more.
READER_RATE_FROM_WORDS = 1e-2
READER_RANK = {"encoder": 32, "decoder": 0}
# With low-rank layers, 2 tokens learn as much of a single text as 8, and more of it if they add to
# its keys, too. Pairs of texts gained nothing from this, and 64 examples were learned by heart.
READER_TOKENS, FEW_READER_TOKENS = 8, 2
READER_KEY_RANK, FEWEST_FOR_KEYS = {"encoder": 32, "decoder": 0}, 128
# With at most this many examples per label, a prompt learns from pairs of texts. Names of labels
# are learned too, if each has at least this many characters. Shorter ones are usually codes.
FEW_EXAMPLES, SHORTEST_NAME = 32, 3
# With fewer examples per label, a head that reads several layers fits them too closely.
MANY_EXAMPLES = 100


@dataclass(frozen=True)
class Situation:
    """What the rule looks at.

    Attributes:
        backbone: `encoder` or `decoder`.
        prompt: `deep`, `input`, `reader` or `none`.
        examples: Number of training examples.
        words: Whether every label is a word, and a text has exactly one.
        pairs: Whether texts come in pairs.
        single: Whether a text has exactly one label.
        regression: Whether a number is predicted.
        few: Whether there are few examples per label.
        names: Whether every label has a telling name.
        labels: Number of labels.
        many: Whether there are many.
    """

    backbone: str
    prompt: Depth
    examples: int
    words: bool = False
    pairs: bool = False
    single: bool = False
    regression: bool = False
    few: bool = False
    names: bool = False
    labels: int = 2
    many: bool = False

    @classmethod
    def of(cls, settings: TrainSettings, dataset: TaskData) -> Situation:
        """The situation of a run."""
        decoder = is_decoder(settings.model, revision=settings.revision)
        names, examples = dataset.labels.names, len(dataset.train)
        words = dataset.labels.is_single and all(map(_is_word, names))
        return cls(
            backbone="decoder" if decoder else "encoder",
            prompt=settings.prompt,
            examples=examples,
            words=words,
            pairs=dataset.pairs,
            single=dataset.labels.is_single,
            regression=dataset.labels.is_regression,
            few=examples <= FEW_EXAMPLES * len(names),
            many=are_many(examples, len(names)),
            names=words and all(len(name) >= SHORTEST_NAME for name in names),
            labels=len(names),
        )


def _is_word(label: str) -> bool:
    return any(c.isalpha() for c in label) and not re.fullmatch(r"LABEL_\d+", label)


def are_many(examples: int, labels: int) -> bool:
    """Whether there are many examples per label."""
    return examples >= MANY_EXAMPLES * labels


def virtual_tokens(settings: TrainSettings) -> int:
    """Length of the prompt."""
    usual = PromptEncoderConfig.num_virtual_tokens
    return settings.num_virtual_tokens or (READER_TOKENS if settings.prompt == "reader" else usual)


def head_of(settings: TrainSettings, situation: Situation) -> HeadStart:
    """What the head starts as."""
    if situation.backbone == "encoder":
        if situation.prompt == "reader":
            return "linear"
        return "words" if settings.at_mask and situation.words else "features"
    reads_end = settings.pooling in ("auto", "architecture")
    return "words" if situation.words and reads_end else "linear"


def pooling_of(settings: TrainSettings, situation: Situation) -> Pooling | None:
    """What the head of a sentence encoder reads; ``None``: the mean in the last layer.

    In a regression, more was no better, and a deep prompt gained nothing on pairs. With a head of
    several layers, as RoBERTa has, nothing else was measured.
    """
    is_bert = model_type_of(settings.model, revision=settings.revision) == "bert"
    in_windows = settings.long_texts in IN_WINDOWS
    if not is_bert or in_windows or settings.loss == "pairs" or situation.regression:
        return None
    if settings.prompt == "reader":
        return "pairs" if situation.pairs else "layers"
    takes = settings.prompt in ("deep", "none") and situation.single and situation.many
    return "layers" if takes and not situation.pairs else None


def choose(settings: TrainSettings, situation: Situation) -> TrainSettings:
    """Fill in the settings that are left open, apart from the prompt's start and its pooling.

    `PromptEncoderConfig.resolved` decides those two, also outside of training.

    Raises:
        PtuneError: The prompt cannot learn from pairs of texts, as the settings ask.
    """
    kind = situation.backbone, situation.prompt
    head = settings.head or head_of(settings, situation)
    chosen: dict[str, Any] = {
        "head": head,
        "num_virtual_tokens": virtual_tokens(settings),
        "prompt_learning_rate": PROMPT_RATES.get(kind, READER_RATE),
        # The wider the head, the more a step changes its logits.
        "learning_rate": HEAD_RATE / vectors_of(settings.pooling, LAYERS_READ),
        "shift_positions": kind == ("decoder", "deep"),
        "reader_rank": 0,
        "reader_key_rank": 0,
    }
    is_fitted = head == "features"
    few = situation.few and is_fitted and kind[0] == "encoder"
    chosen["label_names"] = few and situation.names and not situation.pairs
    can_pair = is_fitted and situation.single and situation.prompt in ("deep", "input")
    can_pair = can_pair and settings.long_texts not in IN_WINDOWS and settings.processes == 1
    chosen["loss"] = "pairs" if few and can_pair else "labels"
    if (settings.loss or chosen["loss"]) == "pairs":
        if not can_pair:
            raise PtuneError(
                "loss pairs requires one label per text, a deep or input prompt, a head that "
                "starts from features, texts that are not read in windows, and one process, which "
                "sees all pairs of a batch. Change that, or leave loss out."
            )
        chosen["prompt_learning_rate"] = PAIR_RATE
    if situation.prompt == "reader":
        rank, usual = settings.reader_rank, READER_RANK[situation.backbone]
        if head.startswith("words"):
            chosen["prompt_learning_rate"] = READER_RATE_FROM_WORDS
        else:
            chosen["learning_rate"] = READER_HEAD_RATE[situation.backbone]
            if settings.pooling == "pairs":
                chosen["learning_rate"] = READER_PAIR_HEAD_RATE
        chosen["reader_rank"] = usual if rank is None else rank
        if chosen["reader_rank"] and not situation.pairs:
            chosen["num_virtual_tokens"] = FEW_READER_TOKENS
            if situation.examples >= FEWEST_FOR_KEYS:
                chosen["reader_key_rank"] = READER_KEY_RANK[situation.backbone]
    left_open = {k: v for k, v in chosen.items() if getattr(settings, k) is None}
    settings = replace(settings, **left_open)
    examples = situation.examples + (situation.labels if settings.label_names else 0)
    if settings.asks_words and settings.epochs is None:
        # It answers before training, and few examples soon make it worse: they take small steps.
        # One of many labels says more than one of two, by its logarithm.
        bits = examples * math.log2(situation.labels)
        steps = EPOCHS[settings.preset] * bits / _step_examples(settings)
        share = min(1.0, steps / _fewest_steps(settings)) ** 2
        rates = {"learning_rate", "prompt_learning_rate"} & left_open.keys()
        settings = replace(settings, **{rate: share * left_open[rate] for rate in rates})
    short = is_fitted and kind == ("encoder", "deep") and settings.loss != "pairs"
    short = short or (situation.prompt == "reader" and settings.pooling == "layers")
    short = short and situation.single and not situation.pairs
    return with_schedule(settings, examples, short=short)


def steps_per_epoch(settings: TrainSettings, examples: int) -> int:
    """Optimizer steps in a pass over the training examples."""
    return math.ceil(examples / _step_examples(settings))


def _step_examples(settings: TrainSettings) -> int:
    """Examples of an optimizer step."""
    accumulated = settings.training_arguments.get("gradient_accumulation_steps", 1)
    return settings.batch_size * accumulated * settings.processes


def _fewest_steps(settings: TrainSettings, *, short: bool = False) -> int:
    is_short = short or settings.loss == "pairs" or settings.asks_words
    return (MIN_SHORT_STEPS if is_short else MIN_STEPS)[settings.preset]


def with_schedule(settings: TrainSettings, examples: int, *, short: bool = False) -> TrainSettings:
    """Choose the number of epochs if the settings leave it open, and when to evaluate.

    Small datasets need a minimum number of steps.

    Args:
        settings: The settings.
        examples: Number of training examples.
        short: Whether the head leaves the prompt little to learn.
    """
    if settings.epochs is not None:
        return settings
    per_epoch = steps_per_epoch(settings, examples)
    epochs = (SHORT_EPOCHS if short else EPOCHS)[settings.preset]
    fewest = _fewest_steps(settings, short=short)
    if epochs * per_epoch >= fewest:
        return replace(settings, epochs=epochs)
    schedule: dict[str, Any] = {f"{what}_strategy": "steps" for what in SCHEDULED}
    schedule |= {f"{what}_steps": max(1, fewest // EVALUATIONS) for what in SCHEDULED}
    return replace(
        settings,
        epochs=fewest / per_epoch,
        training_arguments=schedule | settings.training_arguments,
    )


def question(dataset: TaskData) -> str:
    """A question about a text, with the names of the labels, from which a prompt can start."""
    if dataset.question:
        return f"{dataset.question[0].upper()}{dataset.question[1:]} Answer:"
    what = "texts" if dataset.pairs else "text"
    if dataset.labels.is_regression:
        return f"Rate the {what} with a number. Answer:"
    names = dataset.labels.names
    if not any(c.isalpha() for name in names for c in name):
        return f"Classify the {what}. Answer:"
    return f"Classify the {what}. Is it {as_choice(names[:FEW])}? Answer:"
