"""What a run starts from: the data, the resolved settings and the model."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ptune import compat
from ptune.backbones.architectures import names_of_head
from ptune.backbones.loading import (
    default_device,
    fast_dtype,
    load_backbone,
    load_tokenizer,
)
from ptune.data.dataset import PAIR, TEXT, TaskData, labelled_texts, load_files
from ptune.data.glue import load_glue
from ptune.data.opening import Dialect
from ptune.data.sources import check_options, of_others, source_of
from ptune.data.splits import load_task
from ptune.data.tables import Columns
from ptune.errors import PtuneError
from ptune.files import SETTINGS_NAME
from ptune.labels import Labels
from ptune.model import PromptModel
from ptune.prompts.config import PromptEncoderConfig
from ptune.prompts.kept import KeptTexts
from ptune.prompts.words import NoWords
from ptune.texts import Reading, Template, special_before
from ptune.training.asking import (
    ask_with_words,
    own_language_model,
    replaced_special,
    start_with_words,
)
from ptune.training.defaults import Situation, choose, pooling_of, question, virtual_tokens
from ptune.training.settings import TrainSettings
from ptune.training.unused import note_too_few, note_unused

logger = logging.getLogger(__name__)

_shared = ContextVar[KeptTexts | None]("_shared", default=None)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Train as if the calling program had set nothing, and leave it its random numbers.

    `torch.no_grad`, `inference_mode`, `autocast` and a default device end here. Training seeds the
    generators of Python, NumPy and torch: a program that splits its data by them would get one
    split each time.
    """
    before, numbers = random.getstate(), np.random.get_state()
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    cpu = torch.device("cpu")  # as a context, it slows every function of torch down
    try:
        with (
            torch.random.fork_rng(gpus),
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(default_device(), enabled=False),
            nullcontext() if torch.get_default_device() == cpu else cpu,
        ):
            yield
    finally:
        random.setstate(before)
        np.random.set_state(numbers)


def check_arguments(settings: Any, dataset: Any) -> None:
    """Refuse what is neither settings nor data.

    Raises:
        PtuneError: One of them is something else.
    """
    for given, expected in ((settings, TrainSettings), (dataset, TaskData | None)):
        if not isinstance(given, expected):
            raise PtuneError(
                f"Expected TrainSettings(train_file=…) and an output folder, or a TaskData; found "
                f"a {type(given).__name__}. PromptClassifier().fit takes texts and labels."
            )


def prepare(
    settings: TrainSettings, dataset: TaskData | None = None
) -> tuple[TrainSettings, TaskData, PreTrainedTokenizerBase]:
    """Load the dataset, unless it is given, and the tokenizer, and resolve the settings.

    Raises:
        PtuneError: One of the arguments is something else; or the data or settings are wrong.
    """
    check_arguments(settings, dataset)
    dataset = dataset or load_dataset(settings)
    tokenizer = load_tokenizer(settings.model, revision=settings.revision)
    settings = ask_with_words(settings, dataset, tokenizer)
    return resolve(settings, dataset), dataset, tokenizer


def resolve(settings: TrainSettings, dataset: TaskData) -> TrainSettings:
    """Fill in what the settings leave open, from the dataset, the backbone and the hardware.

    With the result, a run can be repeated elsewhere.
    """
    note_unused(settings, dataset.labels, lambda own: _resolved(own, dataset))
    return _resolved(settings, dataset)


def _resolved(settings: TrainSettings, dataset: TaskData) -> TrainSettings:
    situation = Situation.of(settings, dataset)
    config = own_prompt(settings, dataset, situation)
    pooling = config.pooling
    if settings.pooling == "auto" and pooling != "architecture":
        pooling = pooling_of(settings, situation) or pooling
    resolved = replace(
        settings,
        pooling=pooling,
        prompt_init=config.prompt_init,
        prompt_init_text=config.prompt_init_text,
        prompt_init_scale=config.prompt_init_scale,
    )
    if settings.dtype == "auto":
        resolved.dtype = str(fast_dtype()).removeprefix("torch.")  # type: ignore[assignment]
    if settings.task is None:
        resolved.problem_type = dataset.labels.problem_type  # type: ignore[assignment]
    return choose(resolved, situation)


def learned(settings: TrainSettings, dataset: TaskData) -> TaskData:
    """What a run trains on: the dataset, with the names of its labels if they are learned too."""
    return dataset.with_label_names() if settings.label_names else dataset


def load_dataset(settings: TrainSettings) -> TaskData:
    """Read the dataset that the settings name.

    Raises:
        PtuneError: They name none or two, or have options for other data; or it cannot be read.
    """
    named = [s for s in (settings.task, settings.train_file, settings.dataset) if s is not None]
    source = source_of(vars(settings))
    if source is None:
        raise PtuneError(
            "Name what to learn: a GLUE task (--task mrpc), a file (--train-file a.csv) or a data "
            "set (--dataset ag_news)" + (", and one only." if named else ".")
        )
    check_options(vars(settings), source)
    notes: list[str] = []
    how: dict[str, Any] = {
        "notes": notes,
        "columns": Columns(
            settings.text_column,
            settings.text_pair_column,
            settings.label_column,
            tuple(settings.indicator_column or ()) or None,
        ),
        "problem_type": settings.problem_type,
        "label_separator": settings.label_separator,
        "skip_unlabelled": settings.skip_unlabelled,
        "skip_empty": settings.skip_empty,
        "annotators": settings.annotators,
        "other_label": settings.other_label,
        "seed": settings.seed,
    }
    if settings.task is not None:
        dataset = load_glue(settings.task, settings.data_dir)
        if not dataset.train:
            raise PtuneError(f"GLUE's {settings.task} has no training data: train on mnli.")
    elif settings.dataset is not None:
        dataset = load_task(settings.dataset, settings.dataset_config, **how)
    else:
        how |= {"dialect": Dialect.of(vars(settings)), "where": settings.where}
        dataset = load_files(named[0], settings.eval_file, **how)
    dataset.notes = notes[:1]
    if settings.examples_per_label is not None:
        every, per_label = dataset, settings.examples_per_label
        dataset = every.few_examples(per_label, settings.seed)
        note_too_few(every, per_label)
    return dataset.weighted(class_weight=settings.class_weight)


def dataset_of_run(folder: Path, train_file: Path | None = None) -> TaskData | None:
    """The data that a run was trained and evaluated on; ``None``: it is not here any more.

    Args:
        folder: The run folder.
        train_file: The training file, if it has moved. If the folder is an adapter without the
            settings of its run, all of the file is training data.

    Raises:
        PtuneError: `train_file` cannot be read.
    """
    if train_file is not None and not (folder / SETTINGS_NAME).is_file():
        data = TaskData.from_lists(*labelled_texts(train_file))
        return replace(data, name=train_file.stem)
    try:
        settings = TrainSettings.read(folder)
        if train_file is not None:
            none: dict[str, Any] = dict.fromkeys(of_others("file") & vars(settings).keys())
            settings = replace(settings, **none, train_file=str(train_file))
        return load_dataset(settings)
    except PtuneError:
        if train_file is not None:
            raise
        return None


def own_prompt(
    settings: TrainSettings, dataset: TaskData, situation: Situation
) -> PromptEncoderConfig:
    """The prompt that the settings describe, for a dataset."""
    decoder = situation.backbone == "decoder"
    asked = dataset.question
    if decoder or settings.prompt_init == "text":
        asked = question(dataset)
    return prompt_config(settings, asked, pairs=dataset.pairs, decoder=decoder)


def prompt_config(
    settings: TrainSettings,
    question: str | None = None,
    *,
    pairs: bool = False,
    decoder: bool = False,
) -> PromptEncoderConfig:
    """The prompt that the settings describe.

    Args:
        settings: The settings of the run.
        question: A question about a text, from whose words the prompt can start.
        pairs: True if texts come in pairs.
        decoder: True if the backbone is a decoder.
    """
    text = settings.prompt_init_text
    if settings.prompt_init == "text":
        text = text or question
    config = PromptEncoderConfig(
        depth=settings.prompt,
        num_virtual_tokens=virtual_tokens(settings),
        reader_rank=settings.reader_rank or 0,
        reader_key_rank=settings.reader_key_rank or 0,
        encoder_reparameterization_type=settings.encoder,
        encoder_hidden_size=settings.encoder_hidden_size,
        placement=settings.placement,
        pooling=settings.pooling,
        prompt_init=settings.prompt_init,
        prompt_init_text=text,
        prompt_init_scale=settings.prompt_init_scale,
        backbone_dropout=settings.backbone_dropout,
        shift_positions=bool(settings.shift_positions),
        revision=settings.revision,
    )
    return config.resolved(settings.model, pairs=pairs, question=question, decoder=decoder)


def new_model(
    settings: TrainSettings,
    dataset: TaskData,
    tokenizer: PreTrainedTokenizerBase,
    *,
    calibrate: bool = True,
) -> PromptModel:
    """Load the backbone and attach a new prompt and head. All randomness comes from the seed.

    Args:
        settings, dataset, tokenizer: What to train.
        calibrate: For a head of label words; see `Asked.start_of_head`.
    """
    transformers.set_seed(settings.seed)
    backbone = own_backbone(settings, dataset.labels)
    if settings.prompt == "input":
        start_head_at_zero(backbone)
    prompt = fitted_prompt(settings, dataset, tokenizer)
    model = PromptModel(backbone, prompt.config)
    model.state.reading = prompt.reading
    _start_as_soft_words(model, prompt.words)
    if settings.prompt == "reader":
        _keep_texts(model, settings)
    if settings.template and settings.asks_words:
        own = own_language_model(settings, backbone.dtype)
        start_with_words(model, settings, dataset, tokenizer, own, calibrate=calibrate)
        if settings.head == "words-frozen":
            model.state.head_trains = False
            model.set_adapter(model.active_adapter)
    return model


def _start_as_soft_words(model: PromptModel, words: list[int | None]) -> None:
    """Start the virtual tokens of `{soft:…}` among the words of the template as their words."""
    if rows := [row for row, word in enumerate(words) if word is not None]:
        vectors = model.host.tokens.of_words(torch.tensor([words[row] for row in rows]))
        with torch.no_grad():
            model.prompt_encoder.embedding.weight[rows] = vectors


def _keep_texts(model: PromptModel, settings: TrainSettings) -> None:
    readers, shared = model.host.readers, _shared.get()
    if shared is not None:
        readers.kept = shared
    kept = readers.kept
    kept.read = kept.reused = kept.from_folder = 0
    kept.limit = int(settings.keep_texts * 1e9)
    if settings.keep_texts_in is not None:
        kept.use_folder(settings.keep_texts_in, int(settings.keep_texts_on_disk * 1e9))


@contextmanager
def sharing_texts() -> Iterator[None]:
    """Let all readers that start within the context share the texts that were read."""
    token = _shared.set(kept := KeptTexts(shared=True))
    try:
        yield
    finally:
        _shared.reset(token)
        kept.close()


def forget_texts(model: PromptModel) -> None:
    """Free the texts that a reader has kept in training, unless it shares them."""
    if not model.kept_texts.shared:
        model.kept_texts.close()


def own_backbone(settings: TrainSettings, labels: Labels) -> PreTrainedModel:
    """The backbone that the settings describe, with a new head for the labels."""
    return load_backbone(
        settings.model,
        labels=labels.names,
        problem_type=labels.problem_type,
        dtype=settings.dtype,
        revision=settings.revision,
        at_mask=settings.at_mask,
    )


class FittedPrompt(NamedTuple):
    """A prompt as it fits the tokenizer.

    Attributes:
        config: Its configuration.
        reading: How texts are read with it, with the words that stay around each text.
        words: For each virtual token among these, the token that it starts as; ``None``: any.
    """

    config: PromptEncoderConfig
    reading: Reading
    words: list[int | None]


def fitted_prompt(
    settings: TrainSettings, dataset: TaskData, tokenizer: PreTrainedTokenizerBase
) -> FittedPrompt:
    """The prompt that a run starts with."""
    situation = Situation.of(settings, dataset)
    config = own_prompt(settings, dataset, situation)
    around = None if settings.template is None else Template(settings.template)
    words: list[int | None] = []
    if around and settings.prompt == "none":
        around = around.without_prompt()
    elif around and settings.placement == "template":
        around, words = around.placed(tokenizer, config.num_virtual_tokens)
    elif around and around.soft_words == settings.prompt_init_text:
        replaced = replaced_special(settings, situation, tokenizer)
        around = around.without_soft_words(replaces_special=bool(replaced))
        if around.pattern == "{text}":  # the texts themselves, as other tasks read them
            around = None
    reading = Reading(settings.max_length, settings.long_texts, around, pairs=dataset.pairs)
    return FittedPrompt(fit_to_tokenizer(config, tokenizer, around), reading, words)


def model_for(
    given: TrainSettings, settings: TrainSettings, dataset: TaskData, tokenizer: Any
) -> tuple[TrainSettings, PromptModel]:
    """`new_model`; with a linear head if words were chosen and the language model allows none."""
    try:
        return settings, new_model(settings, dataset, tokenizer)
    except NoWords as error:
        if given.head is not None or given.label_words is not None:
            raise
        logger.warning("%s", str(error).replace("Use head=", "It starts with head="))
    settings, _, _ = prepare(replace(given, head="linear"), dataset)
    return settings, new_model(settings, dataset, tokenizer)


@undisturbed()
def zero_shot_model(
    settings: TrainSettings, labels: Labels, *, pairs: bool, calibrate: bool = True
) -> tuple[PromptModel, PreTrainedTokenizerBase, TrainSettings]:
    """A model that answers as its language model does, without training.

    Returns:
        The model, its tokenizer, and the settings with the template and the words that it asks by.

    Raises:
        PtuneError: As for `new_model`; or there are fewer than two labels.
    """
    if len(labels) < 2:
        raise PtuneError(
            f"Found {len(labels)} label(s); expected at least two, such as --labels yes,no "
            "(labels=['yes', 'no'] in Python)."
        )
    if settings.template is not None:
        takes_pairs = Template(settings.template).takes_pairs
        if pairs and not takes_pairs:
            raise PtuneError(
                f"The template {settings.template!r} has {{text}} alone, but the texts are pairs. "
                "Add {text_pair} where the second text belongs."
            )
        pairs = takes_pairs
    tokenizer = load_tokenizer(settings.model, revision=settings.revision)
    columns: dict[str, list[str]] = {TEXT: [], **({PAIR: []} if pairs else {})}
    dataset = TaskData("zero-shot", labels, (), train=Dataset.from_dict(columns))
    settings = ask_with_words(settings, dataset, tokenizer)
    return new_model(settings, dataset, tokenizer, calibrate=calibrate), tokenizer, settings


def fit_to_tokenizer(
    config: PromptEncoderConfig,
    tokenizer: PreTrainedTokenizerBase,
    template: Template | None = None,
) -> PromptEncoderConfig:
    """Place the prompt before the text if no special token is there, unless a template does."""
    in_text = config.placement == "template"
    if not in_text and (not special_before(tokenizer) or (template and template.replaces_special)):
        config.placement = "prefix"
    return config


def start_head_at_zero(backbone: PreTrainedModel) -> None:
    """Set the layer that produces the logits to zero, unless a checkpoint provided it.

    Every seed then starts from the same predictions.
    """
    named = dict(backbone.named_parameters())
    for name in names_of_head(backbone):
        parameter = named[name]
        gives_logits = parameter.shape[0] == backbone.config.num_labels
        if gives_logits and not compat.was_loaded(parameter):
            parameter.data.zero_()
