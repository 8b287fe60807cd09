"""`TrainSettings`: everything that determines a training run, each setting declared once."""

from __future__ import annotations

import contextlib
import os
from dataclasses import KW_ONLY, asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import yaml

from ptune.errors import PtuneError, near
from ptune.files import SETTINGS_NAME, read_json
from ptune.prompts.config import (
    Depth,
    LongTexts,
    Placement,
    Pooling,
    PromptEncoderConfig,
    PromptInit,
    Reparameterization,
)
from ptune.training.declaration import check_settings, closed, documented, setting, settings_of

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Preset = Literal["fast", "default", "best"]
ClassWeight = Literal["balanced"]
Loss = Literal["labels", "pairs"]
HeadStart = Literal["words", "words-frozen", "linear", "features"]
ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]

# Sections of `ptune train --help` and of the docs, in this order.
SECTIONS = DATA, MODEL, TRAINING, ADVANCED = "Data", "Model", "Training", "Advanced"

# Fields of 🤗 `TrainingArguments` that settings decide, with the setting's name.
DECIDED = {
    "output_dir": "output_dir",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
}


def processes() -> int:
    """Number of processes that train together, as set by `torchrun` and `accelerate launch`."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """True in the one process that writes files and prints."""
    return os.environ.get("RANK", "0") == "0"


# What is chosen by `ptune.training.defaults`.
_CHOSEN = "chosen from the backbone and the data"


@closed
@dataclass(eq=False, repr=False)
class ClassifierSettings:
    """The settings of a classifier and its training, apart from where the data come from."""

    model: str = setting(
        "minilm",
        "Backbone: a Hub id, a folder, or one from a package that works offline: minilm (encoder) "
        "or smollm2 (decoder).",
        MODEL,
        metavar="MODEL",
    )
    _: KW_ONLY
    prompt: Depth = setting(
        PromptEncoderConfig.depth,
        "Virtual tokens in every layer (deep, P-tuning v2), before the text (input), after it and "
        "unseen by it (reader), or nowhere (none: only the head is trained).",
        MODEL,
    )
    num_virtual_tokens: int | None = setting(
        None,
        "Length of the prompt in tokens.",
        MODEL,
        at_least=1,
        unset=f"{PromptEncoderConfig.num_virtual_tokens}; "
        "for a reader 8, or 2 with low-rank layers and single texts",
    )
    reader_rank: int | None = setting(
        None,
        "Rank of the low-rank layers that only a reader's tokens pass through. 0: none.",
        ADVANCED,
        at_least=0,
        unset="32 for a reader on an encoder, else 0",
    )
    reader_key_rank: int | None = setting(
        None,
        "Rank of what a reader adds to the text's keys, as only it sees them. 0: nothing.",
        ADVANCED,
        at_least=0,
        unset="32 for a reader of at least 128 single texts on an encoder, else 0",
    )
    encoder: Reparameterization = setting(
        PromptEncoderConfig.encoder_reparameterization_type,
        "Prompt encoder. NONE trains the prompt embeddings themselves.",
        ADVANCED,
    )
    encoder_hidden_size: int = setting(
        PromptEncoderConfig.encoder_hidden_size,
        "Width of the prompt encoder.",
        ADVANCED,
        at_least=1,
    )
    placement: Placement = setting(
        PromptEncoderConfig.placement,
        "Where an input prompt is: before the text as in PEFT (prefix), or after its first token "
        "if that is a special one (after_first), or at the places of the template (template), "
        "which is chosen if it has some.",
        ADVANCED,
    )
    pooling: Pooling = setting(
        PromptEncoderConfig.pooling,
        "What the head reads: what its architecture does (architecture), the mean over the text "
        "in the last layer (mean) or in three (layers), these and how much the texts of a pair "
        "differ (pairs), or the mean over the prompt (prompt). auto: for a sentence encoder mean, "
        "layers for many texts, layers or pairs besides a reader, prompt for pairs with an input "
        "prompt; else architecture.",
        ADVANCED,
    )
    prompt_init: PromptInit | None = setting(
        None,
        "Start the prompt as words of the vocabulary (vocab), as the words of prompt_init_text "
        "(text), or at random.",
        ADVANCED,
        unset="random for a deep prompt of an encoder, text for a decoder, else vocab",
    )
    prompt_init_text: str | None = setting(
        None,
        "Words that the prompt starts as, such as a question about the text.",
        ADVANCED,
        unset="a GLUE task's question, or for a decoder one with the label names",
    )
    prompt_init_scale: float | None = setting(
        None,
        "Factor for the initial prompt. It is 1 if prompt_init is given.",
        ADVANCED,
        above=0,
        unset="0.5 for a random start, else 1",
    )
    template: str | None = setting(
        None,
        "Words around each text that ask a language model for the label, such as '{soft:Review:} "
        "{text} Sentiment:', or '{text} It was {mask}.' for one that fills gaps (BERT). The prompt "
        "starts as the soft words and replaces them. {prompt:3} is three virtual tokens.",
        MODEL,
        unset="the text alone; with head words, a question with the labels",
    )
    head: HeadStart | None = setting(
        None,
        "What the head starts as: a language model's own scores of the label words (words; with "
        "words-frozen, only the prompt trains), a new layer (linear), or ridge regression on what "
        "it reads (features).",
        MODEL,
        unset="words on a decoder, or with {mask}, if every label is a word; on an encoder, "
        "features; else linear",
    )
    label_names: bool | None = setting(
        None,
        "Learn the names of the labels too, as a text of each label.",
        TRAINING,
        unset="with few examples on an encoder, if the names are words",
    )
    loss: Loss | None = setting(
        None,
        "What training compares: a text with its label (labels), or texts with each other, so that "
        "those of one label become similar, and the head is then fitted to them (pairs).",
        TRAINING,
        unset="pairs with few examples on an encoder, else labels",
    )
    label_words: str | None = setting(
        None,
        "Words for the labels, for head words: label=word|word,label=word, a JSON file with words "
        "by label, or auto for words that the model says after some of the training examples.",
        MODEL,
        unset="the labels themselves",
        metavar="WORDS",
    )
    learning_rate: float | None = setting(
        None, "Learning rate of the head.", TRAINING, at_least=0, metavar="RATE", unset=_CHOSEN
    )
    prompt_learning_rate: float | None = setting(
        None, "Learning rate of the prompt.", TRAINING, at_least=0, metavar="RATE", unset=_CHOSEN
    )
    preset: Preset = setting(
        "default",
        "Length of a run if epochs is left open: half as long (fast), or 2.5 times as long (best).",
        TRAINING,
    )
    epochs: float | None = setting(
        None,
        "Passes over the data.",
        TRAINING,
        above=0,
        unset="8, and at least 200 steps (48 in pairs or with label words). With single "
        "texts on an encoder, a deep prompt or a reader: 4, and at least 48 steps",
    )
    batch_size: int = setting(
        32,
        "Examples per step, in each process. Batches for prediction have at most 128 tokens times "
        "this.",
        TRAINING,
        at_least=1,
    )
    max_length: int | None = setting(
        None,
        "Truncate texts to this number of tokens.",
        TRAINING,
        at_least=1,
        unset="the backbone's limit",
    )
    long_texts: LongTexts = setting(
        "truncate",
        "What is read of a text that is longer than max_length or the backbone's limit: its start "
        "(truncate), its start and its end (head_tail), or all of it in windows that overlap "
        "(windows) or in paragraphs and sentences (passages), of which those with large logits "
        "count more.",
        TRAINING,
    )
    dtype: Dtype = setting(
        "auto",
        "Data type of the frozen backbone. auto: bfloat16 where the hardware is fast with it, "
        "else float32.",
        MODEL,
    )
    seed: int = setting(0, "Random seed.", TRAINING, at_least=0)
    calibrate: bool = setting(
        True,
        "After training, calibrate probabilities and choose thresholds on the evaluation set; with "
        "fewer than 20 texts in it, calibrate by cross-fitting on the training set.",
        TRAINING,
    )
    threshold_for: str | None = setting(
        None,
        "If a text can have several labels: what each label's threshold is chosen for. f1, "
        "precision>=X, recall>=X, or none for one half.",
        ADVANCED,
        unset="f1",
        metavar="GOAL",
    )


@documented
@closed
@dataclass(kw_only=True)
class TrainSettings(ClassifierSettings):
    """Everything that determines a run. `settings.json` stores it, so a run can be repeated.

    Args:
        {settings}

    Raises:
        PtuneError: A value has the wrong type or is out of range; the message names it.

    Example:
        >>> TrainSettings(task="mrpc", prompt="input").batch_size
        32
    """

    revision: str | None = setting(
        None,
        "Revision of the backbone on the Hub.",
        MODEL,
        unset="the default branch",
        metavar="REV",
    )
    task: str | None = setting(
        None,
        "GLUE task: cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte or wnli.",
        DATA,
        metavar="TASK",
    )
    data_dir: str | None = setting(
        None,
        "Folder with GLUE's original TSV files.",
        DATA,
        unset="download them from the Hub",
        metavar="DIR",
    )
    train_file: str | None = setting(
        None, "Your own file: CSV, TSV, JSON, Parquet, Arrow, .xlsx or .ods.", DATA, metavar="FILE"
    )
    dataset: str | None = setting(
        None,
        "A 🤗 data set: an id on the Hub, or a folder that save_to_disk wrote.",
        DATA,
        metavar="NAME",
    )
    dataset_config: str | None = setting(
        None, "Configuration of the data set.", DATA, unset="the only one", metavar="NAME"
    )
    eval_file: str | None = setting(
        None,
        "File to evaluate on.",
        DATA,
        unset="a fifth of the training file, held out",
        metavar="FILE",
    )
    text_column: str | None = setting(
        None, "Column with the text.", DATA, unset="found by name", metavar="NAME"
    )
    text_pair_column: str | None = setting(
        None, "Column with the second text of a pair.", DATA, unset="found by name", metavar="NAME"
    )
    label_column: str | None = setting(
        None,
        "Column with the label.",
        DATA,
        unset="found by name",
        metavar="NAME",
    )
    indicator_column: list[str] | None = setting(
        None,
        "Column of 0 and 1 for one label; an empty cell means unknown. Repeat it for each label, "
        "in place of label_column. With problem_type single_label_classification: how many "
        "annotators chose the label, or their share.",
        DATA,
        metavar="NAME",
    )
    where: str | None = setting(
        None,
        "Read only the rows of a file whose column has this value.",
        DATA,
        unset="all rows",
        metavar="COLUMN=VALUE",
    )
    delimiter: str | None = setting(
        None, "Separates the cells of a CSV file.", DATA, unset="found in the file"
    )
    encoding: str | None = setting(
        None, "Encoding of text files.", DATA, unset="UTF-8, or UTF-16 with a byte-order mark"
    )
    no_header: bool = setting(
        False, "The first line of a table is an example. Its columns are called 1, 2, 3.", DATA
    )
    no_quotes: bool = setting(
        False, 'Quotes (") in a CSV or TSV file are text, and no cell is in quotes.', DATA
    )
    sheet: str | None = setting(
        None, "Sheet of a workbook.", DATA, unset="the first one", metavar="NAME"
    )
    problem_type: ProblemType | None = setting(
        None,
        "What the labels are: single_label_classification, multi_label_classification or "
        "regression.",
        DATA,
        unset="inferred from the labels",
        metavar="TYPE",
    )
    label_separator: str | None = setting(
        None,
        "Separates the labels of a text that has several.",
        DATA,
        unset="|, if parts of the labels also occur alone",
    )
    annotators: bool = setting(
        False,
        "Rows with the same text are labels of several annotators: training learns the shares, "
        "and evaluation expects the most frequent label.",
        DATA,
    )
    other_label: str | None = setting(
        None,
        "Label of texts that belong to none of the others. It is not learned: its texts choose "
        "how unfamiliar texts are told.",
        DATA,
        unset="all labels are learned",
        metavar="LABEL",
    )
    skip_unlabelled: bool = setting(False, "Leave out examples that have no label.", DATA)
    skip_empty: bool = setting(False, "Leave out examples whose text is empty.", DATA)
    examples_per_label: int | None = setting(
        None,
        "Train on N examples of each label, drawn with the seed.",
        DATA,
        at_least=1,
        unset="all",
    )
    class_weight: ClassWeight | None = setting(
        None,
        "Give rare labels as much weight as frequent ones (balanced).",
        TRAINING,
        unset="every example counts the same",
    )
    shift_positions: bool | None = setting(
        None,
        "Count a text's positions from the end of a deep prompt, as PEFT's prefix tuning does.",
        ADVANCED,
        unset="True on a decoder",
    )
    backbone_dropout: bool = setting(
        PromptEncoderConfig.backbone_dropout,
        "Train with the frozen backbone's dropout, as PEFT does.",
        ADVANCED,
    )
    keep_texts: float = setting(
        2.0,
        "Memory for texts that a reader has read, in GB. Texts beyond it are read in every epoch.",
        ADVANCED,
        at_least=0,
        metavar="GB",
    )
    keep_texts_in: str | None = setting(
        None,
        "Folder for texts that a reader has read: beyond the memory, and for later runs.",
        ADVANCED,
        unset="memory only",
        metavar="DIR",
    )
    keep_texts_on_disk: float = setting(
        10.0,
        "Size that a file in this folder may have, in GB. There is one for each backbone and "
        "number format.",
        ADVANCED,
        at_least=0,
        metavar="GB",
    )
    keep_features: bool = setting(
        False,
        "Keep what the head reads of each training text (two bytes per number) in the run folder, "
        "for `ptune add-labels` without the texts.",
        ADVANCED,
    )
    processes: int = setting(
        processes, "Number of processes that train together.", at_least=1, unset="those started"
    )
    training_arguments: dict[str, Any] = setting(
        dict, "Any other fields of 🤗 `TrainingArguments`.", unset="none"
    )

    def __post_init__(self) -> None:
        check_settings(self)
        for name in self.training_arguments:
            if name in DECIDED:
                raise PtuneError(
                    f"training_arguments names {name}, which is a setting of its own. Use "
                    f"{DECIDED[name]} instead."
                )

    @property
    def asks_words(self) -> bool:
        """Whether the head starts as label words, and the template asks for one."""
        return (self.head or "").startswith("words")

    @property
    def at_mask(self) -> bool:
        """Whether the head reads at the mask token of the template."""
        return "{mask}" in (self.template or "")

    def to_dict(self) -> dict[str, Any]:
        """The content of `settings.json`: the settings that have a value and apply."""
        content = {k: v for k, v in asdict(self).items() if v is not None and v != {}}
        if self.encoder == "NONE":
            del content["encoder_hidden_size"]
        return content

    @classmethod
    def read(cls, file: str | Path) -> TrainSettings:
        """Read `settings.json`, from a run folder or under its own name, or a file in YAML.

        Raises:
            PtuneError: There is no such file, it is damaged, or it has an unknown setting.
        """
        file = Path(file)
        file = file / SETTINGS_NAME if file.is_dir() else file
        if not file.is_file():
            raise PtuneError(f"There is no file {file}. Expected the {SETTINGS_NAME} of a run.")
        # The first version wrote null for what was left open, but "|" for the separator, which is
        # now a request for several labels per text. It also had two more settings.
        if file.suffix not in ("", ".json", ".yaml", ".yml"):
            raise PtuneError(
                f"{file} holds no settings; expected the {SETTINGS_NAME} of a run, or a .yaml "
                "file. Examples to learn from are named with --train-file."
            )
        written = _read_yaml(file) if file.suffix in (".yaml", ".yml") else read_json(file)
        content = {k: v for k, v in written.items() if v is not None}
        if "problem_type" in written.keys() - content.keys():
            content.pop("label_separator", None)
        if content.pop("first_layer", 0):
            raise PtuneError(
                f"{file} has first_layer; prompts that start at a higher layer were removed from "
                "ptune. Remove it to train a prompt in every layer."
            )
        content.pop("keep_layers", None)
        if content.get("pooling") == "family":
            content["pooling"] = "architecture"
        known = [f.name for f in fields(cls)]
        if unknown := sorted(content.keys() - set(known)):
            raise PtuneError(
                f"{file} has the unknown setting {unknown[0]!r}; {near(unknown[0], known)}. If a "
                "newer version wrote it, upgrade ptune."
            )
        return cls(**content)


def _read_yaml(file: Path) -> dict[str, Any]:
    """The settings in a YAML file: names with hyphens or underscores.

    Raises:
        PtuneError: It is not YAML, or holds no names.
    """
    try:
        content = yaml.safe_load(file.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise PtuneError(
            f"{file} is not YAML ({reason}). Expected lines such as `epochs: 8`."
        ) from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise PtuneError(f"{file} holds no settings; expected lines such as `epochs: 8`.")
    content = {name.replace("-", "_"): value for name, value in content.items()}
    for name, declared in settings_of(TrainSettings).items():
        # To YAML, 5e-3 is a word: numbers need a point there.
        if declared.kind is float and isinstance(content.get(name), str):
            with contextlib.suppress(ValueError):
                content[name] = float(content[name])
    return content
