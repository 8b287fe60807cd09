"""`TrainSettings`: everything that determines a training run."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from typing import Any

from ptune.errors import PtuneError


def processes() -> int:
    """Number of processes that train together, as set by `torchrun` and `accelerate launch`."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """True in the one process that writes files and prints."""
    return os.environ.get("RANK", "0") == "0"


@dataclass(frozen=True)
class Defaults:
    """Default values that depend on the kind of prompt, measured on MRPC and the demo's emails."""

    learning_rate: float
    prompt_learning_rate: float
    prompt_init: str
    prompt_init_scale: float
    pooling_of_pairs: str  # for sentence encoders; single texts always use the mean over the text
    zero_head: bool  # True: the layer that produces the logits starts at zero


DEFAULTS = {
    "input": Defaults(5e-3, 5e-3, "vocab", 1.0, "prompt", zero_head=True),
    "deep": Defaults(5e-3, 6e-2, "random", 0.5, "mean", zero_head=False),
}


@dataclass
class TrainSettings:
    """Everything that determines a run. `settings.json` stores it, so a run can be repeated.

    Attributes:
        model: Backbone: short name, Hub id or folder.
        revision: Revision of the backbone on the Hub.
        task: GLUE task. Alternatively:
        train_file, eval_file: Your own files.
        data_dir: Folder with GLUE's original TSV files. `None`: download from the Hub.
        text_column, text_pair_column, label_column: `None`: found by name.
        problem_type: `None`: inferred from the labels.
        label_separator: Separates the labels of one text.
        examples_per_label: Train on N examples of each label. `None`: on all.
        prompt: `deep`: virtual tokens in every layer. `input`: virtual tokens among the text's.
        num_virtual_tokens: Length of the prompt in tokens.
        encoder: `MLP`, `LSTM` or `NONE`.
        encoder_hidden_size: Width of the prompt encoder.
        placement: `after_first`, or `prefix` as in PEFT.
        pooling: What the head reads: `architecture`, the `mean` over the text, the mean over the
            `prompt`, or `auto`. For sentence encoders, `auto` is the mean over the text, or over
            the prompt if texts are pairs and the prompt is an input prompt. For other backbones it
            is `architecture`.
        prompt_init: `vocab`, `text` or `random`. `None`: depends on the kind of prompt.
        prompt_init_text: Words that the prompt starts from, such as a question about the text.
            `None`: an input prompt starts from the question of its GLUE task.
        prompt_init_scale: Factor for the initial vectors. `None`: depends on the kind of prompt.
        backbone_dropout: Train with the frozen backbone's dropout.
        learning_rate: Learning rate of the head. `None`: depends on the kind of prompt.
        prompt_learning_rate: Learning rate of the prompt. `None`: depends on the kind of prompt.
        epochs: Passes over the data. `None`: 8, and at least 200 steps.
        batch_size: Examples per step and process.
        max_length: Longest text in tokens, without the prompt. `None`: the backbone's limit.
        dtype: Data type of the frozen backbone.
        seed: Random seed.
        processes: Number of processes that train together.
        training_arguments: Any other field of 🤗 `TrainingArguments`.
    """

    model: str = "minilm"
    revision: str | None = None
    task: str | None = None
    data_dir: str | None = None
    train_file: str | None = None
    eval_file: str | None = None
    text_column: str | None = None
    text_pair_column: str | None = None
    label_column: str | None = None
    problem_type: str | None = None
    label_separator: str = "|"
    examples_per_label: int | None = None
    prompt: str = "deep"
    num_virtual_tokens: int = 20
    encoder: str = "NONE"
    encoder_hidden_size: int = 128
    placement: str = "after_first"
    pooling: str = "auto"
    prompt_init: str | None = None
    prompt_init_text: str | None = None
    prompt_init_scale: float | None = None
    backbone_dropout: bool = False
    learning_rate: float | None = None
    prompt_learning_rate: float | None = None
    epochs: float | None = None
    batch_size: int = 32
    max_length: int | None = None
    dtype: str = "auto"
    seed: int = 0
    processes: int = field(default_factory=processes)
    training_arguments: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        least_of = {"seed": 0} | dict.fromkeys(
            ("batch_size", "max_length", "num_virtual_tokens", "examples_per_label"), 1
        )
        for name, least in least_of.items():
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < least):
                raise PtuneError(
                    f"{name} is {value!r}; it must be a whole number of at least {least}."
                )
        if self.prompt not in DEFAULTS:
            raise PtuneError(f"prompt is {self.prompt!r}; it must be 'input' or 'deep'.")
        for name in ("learning_rate", "prompt_learning_rate", "epochs"):
            value = getattr(self, name)
            least_rate = 0.0 if name != "epochs" else 1e-9
            if value is not None and not (math.isfinite(value) and value >= least_rate):
                expected = "a number above 0" if name == "epochs" else "a number of at least 0"
                raise PtuneError(f"{name} is {value!r}; it must be {expected}.")

    @property
    def rates(self) -> tuple[float, float]:
        """Learning rates of the head and the prompt."""
        own, head, prompt = DEFAULTS[self.prompt], self.learning_rate, self.prompt_learning_rate
        return (
            own.learning_rate if head is None else head,
            own.prompt_learning_rate if prompt is None else prompt,
        )
