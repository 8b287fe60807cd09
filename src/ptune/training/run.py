"""A training run: settings in, a run folder out.

`torchrun` and `accelerate launch` run all of this in several processes. Only the first one writes
files.
"""

from __future__ import annotations

import json
import logging
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainingArguments,
)

from ptune import __version__, compat
from ptune.adapters.adapter import Adapter
from ptune.backbones.architectures import names_of_head
from ptune.backbones.cpu import forget_shapes
from ptune.backbones.loading import (
    fast_dtype,
    full_name,
    is_decoder,
    is_masked,
    load_backbone,
    load_language_model,
    load_tokenizer,
)
from ptune.data.dataset import LABEL, PAIR, TEXT, TaskData, load_files
from ptune.data.glue import load_glue
from ptune.data.opening import Dialect
from ptune.data.splits import load_task
from ptune.data.tables import Columns
from ptune.errors import PtuneError
from ptune.files import (
    DATA_CURVE_NAME,
    FEATURES_NAME,
    METRICS_NAME,
    NEXT_TO_REPORT,
    PICTURES,
    REPORT_NAME,
    SEEDS_NAME,
    SETTINGS_NAME,
    read_json,
    staged,
    write_json,
)
from ptune.labels import Labels, mean_and_std, per_label
from ptune.model import PromptModel
from ptune.postprocessing import RAW, Goal, Postprocessing
from ptune.prompts.config import PromptEncoderConfig
from ptune.prompts.questions import default_question
from ptune.prompts.words import (
    NoWords,
    parse_words,
    start_of_head,
    words_from_examples,
)
from ptune.texts import Template, special_before
from ptune.training import calibration, report
from ptune.training.defaults import Situation, choose, head_of, question, virtual_tokens
from ptune.training.features import Features, keep_features
from ptune.training.settings import TrainSettings, is_first
from ptune.training.summary import Summary
from ptune.training.trainer import (
    SharingTrainer,
    StopAndSave,
    answers_of,
    build_trainer,
    training_arguments,
)

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
# `label_words` for words found in examples, and how many examples of each label are read.
FROM_EXAMPLES, FOUND_IN = "auto", 8
# True labels and logits of each evaluation set.
Answers = dict[str, tuple[np.ndarray, np.ndarray]]


@dataclass
class Run:
    """A finished run.

    Attributes:
        folder: The run folder.
        model: The trained model.
        metrics: The content of `metrics.json`.
        postprocessing: Calibration and thresholds, fitted on the evaluation sets.
        answers: True labels and logits of each evaluation set.
    """

    folder: Path
    model: PromptModel
    metrics: dict[str, Any]
    postprocessing: Postprocessing = RAW
    answers: Answers = field(default_factory=dict)


def train_run(
    settings: TrainSettings,
    output_dir: str | Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    progress: TrainerCallback | None = None,
    dataset: TaskData | None = None,
    show: Callable[[Summary], None] | None = None,
) -> Run:
    """Train a classifier and write everything about it to one folder.

    Args:
        settings: What to train, on which data.
        output_dir: The run folder. It gets the adapter, `metrics.json`, `settings.json`,
            pictures and `checkpoints`.
        overwrite: Replace the run in this folder.
        resume: Continue an interrupted run from its last checkpoint.
        progress: Callback that shows the progress.
        dataset: The dataset, if the settings name none.
        show: Gets a summary of the data before anything is written.

    Raises:
        PtuneError: The settings or the data are wrong. Nothing was overwritten.
        KeyboardInterrupt: Ctrl-C was pressed. A checkpoint was written.
    """
    folder = Path(output_dir)
    check_folder(folder, overwrite=overwrite, resume=resume)
    forget_shapes()
    Goal.parse(settings.threshold_for or "f1")  # refuses a wrong one
    given = settings
    settings, dataset, tokenizer = prepare(given, dataset)
    if resume:
        check_unchanged(folder, settings, dataset)
    settings, model = model_for(given, settings, dataset, tokenizer)
    assert dataset.train is not None
    with compat.own_accelerate_state():
        stop = StopAndSave()
        trainer, truncated = build_trainer(
            model,
            tokenizer,
            dataset,
            training_arguments(settings, folder / CHECKPOINTS, len(dataset.train)),
            settings,
            callbacks=[stop, *([progress] if progress else [])],
        )
        if show and is_first():
            show(Summary.of(settings, dataset, trainer.train_dataset, truncated))
        # The folder changes only now: from here on, wrong settings cannot end the run.
        prepare_folder(folder, settings, keep=resume)
        checkpoint = last_checkpoint(folder / CHECKPOINTS) if resume else None
        started = time.perf_counter()
        with stop.listening():
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if stop.asked:
            raise KeyboardInterrupt
        seconds = time.perf_counter() - started
        answers = all_answers(trainer)
        known = known_texts(trainer, settings, dataset.labels)
    sizes = model.get_nb_trainable_parameters()
    results = results_of(settings, dataset, answers, trainer.state.log_history, trainer.args, sizes)
    results |= {"truncated_texts": truncated, "seconds": round(seconds, 1)}
    if settings.prompt == "reader":
        results["kept_texts"] = model.kept_texts.summary
        model.kept_texts.close()
    values, results["quality"] = calibrated(settings, dataset.labels, answers, known)
    run = Run(folder, model, results, values, answers)
    if is_first():
        write_adapter(folder, model.to_adapter(), dataset, values)
        _write_results(run, dataset)
        if settings.keep_features:
            _keep_features(trainer, folder)
    return run


@contextmanager
def trained_in_memory(
    settings: TrainSettings,
    dataset: TaskData,
    *,
    callbacks: Sequence[TrainerCallback] = (),
    **arguments: Any,
) -> Iterator[SharingTrainer]:
    """Train without writing anything; the trainer, which has the model and the evaluation sets.

    Args:
        settings, dataset: As for `train_run`.
        callbacks: For the `Trainer`.
        **arguments: Fields of `TrainingArguments`, in place of those of the settings.

    Raises:
        PtuneError: The settings or the data are wrong.
    """
    given = settings
    settings, dataset, tokenizer = prepare(given, dataset)
    settings, model = model_for(given, settings, dataset, tokenizer)
    quiet = {"save_strategy": "no", "logging_strategy": "no", "load_best_model_at_end": False}
    own = replace(
        settings, training_arguments={**settings.training_arguments, **quiet, **arguments}
    )
    assert dataset.train is not None
    with compat.own_accelerate_state(), tempfile.TemporaryDirectory(prefix="ptune-") as folder:
        how = training_arguments(own, folder, len(dataset.train))
        trainer, _ = build_trainer(model, tokenizer, dataset, how, own, callbacks=list(callbacks))
        trainer.train()
        yield trainer


def train_seeds(
    settings: TrainSettings,
    output_dir: str | Path,
    seeds: Sequence[int],
    *,
    overwrite: bool = False,
    resume: bool = False,
    progress: TrainerCallback | None = None,
    dataset: TaskData | None = None,
    show: Callable[[Summary], None] | None = None,
) -> dict[str, dict[str, float]]:
    """Train once with each seed. Each run gets its own folder `seed-N` in `output_dir`.

    Args:
        settings, overwrite, progress, dataset, show: As for `train_run`.
        resume: Continue an interrupted run, and skip the runs that are finished.
        output_dir: Also gets `seeds.json`: the returned values and the scores of each run.
        seeds: The seeds, all different.

    Returns:
        The `mean` of each evaluation score and its standard deviation over the seeds, `std`.

    Raises:
        PtuneError: As for `train_run`.
    """
    folder = Path(output_dir)
    runs = [(replace(settings, seed=seed), folder / f"seed-{seed}") for seed in seeds]
    begun = {here: resume and is_begun(here) for _, here in runs}
    for own, here in runs:
        check_folder(here, overwrite=overwrite, resume=begun[here])
        if begun[here]:
            check_unchanged(here, *prepare(own, dataset)[:2])
    scores: dict[int, dict[str, float]] = {}
    for own, here in runs:
        if begun[here] and (here / METRICS_NAME).is_file():
            scores[own.seed] = read_json(here / METRICS_NAME)["eval"]
            continue
        how: dict[str, Any] = {"overwrite": overwrite, "resume": begun[here]}
        run = train_run(own, here, **how, progress=progress, dataset=dataset, show=show)
        scores[own.seed] = run.metrics["eval"]
    spread = {
        name: mean_and_std([found[name] for found in scores.values()]) for name in scores[seeds[0]]
    }
    if is_first():
        with staged(folder) as stage:
            by_seed = {str(k): v for k, v in scores.items()}
            write_json(stage / SEEDS_NAME, {"scores": by_seed, **spread})
    return spread


# From settings to data and model.


def prepare(
    settings: TrainSettings, dataset: TaskData | None = None
) -> tuple[TrainSettings, TaskData, PreTrainedTokenizerBase]:
    """Load the dataset, unless it is given, and the tokenizer, and resolve the settings."""
    dataset = dataset or load_dataset(settings)
    tokenizer = load_tokenizer(settings.model, revision=settings.revision)
    settings = ask_with_words(settings, dataset, tokenizer)
    return resolve(settings, dataset), dataset, tokenizer


def resolve(settings: TrainSettings, dataset: TaskData) -> TrainSettings:
    """Fill in what the settings leave open, from the dataset, the backbone and the hardware.

    With the result, a run can be repeated elsewhere.
    """
    situation = Situation.of(settings, dataset)
    config = own_prompt(settings, dataset, situation)
    resolved = replace(
        settings,
        pooling=config.pooling,
        prompt_init=config.prompt_init,
        prompt_init_text=config.prompt_init_text,
        prompt_init_scale=config.prompt_init_scale,
    )
    if settings.dtype == "auto":
        resolved.dtype = str(fast_dtype()).removeprefix("torch.")  # type: ignore[assignment]
    if settings.task is None:
        resolved.problem_type = dataset.labels.problem_type  # type: ignore[assignment]
    return choose(resolved, situation)


def load_dataset(settings: TrainSettings) -> TaskData:
    """Read the dataset that the settings name.

    Raises:
        PtuneError: They name none or two, or it cannot be read.
    """
    named = [s for s in (settings.task, settings.train_file, settings.dataset) if s is not None]
    if len(named) != 1:
        raise PtuneError(
            "Name what to learn: a GLUE task (--task mrpc), a file (--train-file a.csv) or a data "
            "set (--dataset ag_news)" + (", and one only." if named else ".")
        )
    if settings.where is not None and settings.train_file is None:
        raise PtuneError("where chooses rows of a file. Use it with --train-file, or leave it out.")
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
        "seed": settings.seed,
    }
    if settings.task is not None:
        dataset = load_glue(settings.task, settings.data_dir)
        if dataset.train is None:
            raise PtuneError(f"GLUE's {settings.task} has no training data: train on mnli.")
    elif settings.dataset is not None:
        dataset = load_task(settings.dataset, settings.dataset_config, **how)
    else:
        how |= {"dialect": dialect_of(settings), "where": settings.where}
        dataset = load_files(named[0], settings.eval_file, **how)
    dataset.notes = notes[:1]
    if settings.examples_per_label is not None:
        dataset = dataset.few_examples(settings.examples_per_label, settings.seed)
    return dataset.weighted(class_weight=settings.class_weight)


def dialect_of(settings: TrainSettings) -> Dialect:
    """How the settings say that files are written."""
    return Dialect(settings.delimiter, settings.encoding, not settings.no_header, settings.sheet)


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
        calibrate: For a head of label words; see `start_of_head`.
    """
    transformers.set_seed(settings.seed)
    backbone = own_backbone(settings, dataset.labels)
    if settings.prompt == "input":
        start_head_at_zero(backbone)
    config, around = fitted_prompt(settings, dataset, tokenizer)
    model = PromptModel(backbone, config)
    model.max_length, model.state.pairs = settings.max_length, dataset.pairs
    model.state.long_texts = settings.long_texts
    model.state.template = around
    if settings.prompt == "reader":
        model.kept_texts.limit = int(settings.keep_texts * 1e9)
    if settings.template and settings.asks_words:
        template = Template(settings.template)
        start_with_words(model, settings, dataset, tokenizer, template, calibrate=calibrate)
        if settings.head == "words-frozen":
            model.state.head_trains = False
            model.set_adapter(model.active_adapter)
    return model


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


def fitted_prompt(
    settings: TrainSettings, dataset: TaskData, tokenizer: PreTrainedTokenizerBase
) -> tuple[PromptEncoderConfig, Template | None]:
    """The prompt as it fits the tokenizer, and the words that stay around each text."""
    config = own_prompt(settings, dataset, Situation.of(settings, dataset))
    around = None if settings.template is None else Template(settings.template)
    if around and around.soft_words == settings.prompt_init_text:
        replaces_special = bool(_replaced_special(settings, tokenizer))
        around = around.without_soft_words(replaces_special=replaces_special)
    return fit_to_tokenizer(config, tokenizer, around), around


def model_for(
    given: TrainSettings, settings: TrainSettings, dataset: TaskData, tokenizer: Any
) -> tuple[TrainSettings, PromptModel]:
    """`new_model`; with a linear head if words were chosen and the language model allows none."""
    try:
        return settings, new_model(settings, dataset, tokenizer)
    except NoWords as error:
        if given.head is not None:
            raise
        logger.warning("%s", str(error).replace("Use head=", "It starts with head="))
    settings, _, _ = prepare(replace(given, head="linear"), dataset)
    return settings, new_model(settings, dataset, tokenizer)


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
        raise PtuneError(f"There are {len(labels)} labels; expected at least two.")
    tokenizer = load_tokenizer(settings.model, revision=settings.revision)
    columns: dict[str, list[str]] = {TEXT: [], **({PAIR: []} if pairs else {})}
    dataset = TaskData("zero-shot", labels, (), train=Dataset.from_dict(columns))
    settings = ask_with_words(settings, dataset, tokenizer)
    return new_model(settings, dataset, tokenizer, calibrate=calibrate), tokenizer, settings


def ask_with_words(
    settings: TrainSettings, dataset: TaskData, tokenizer: PreTrainedTokenizerBase
) -> TrainSettings:
    """Decide on a template, and on the prompt that starts as its words.

    Raises:
        PtuneError: The template is malformed, or the labels are numbers to predict.
    """
    if settings.head is None:
        settings = replace(settings, head=head_of(settings, Situation.of(settings, dataset)))
    if settings.asks_words and dataset.labels.is_regression:
        raise PtuneError("A regression has no label words. Use head='linear'.")
    masked = is_masked(settings.model, revision=settings.revision)
    if settings.asks_words and settings.template is None:
        asked = default_question(
            dataset.labels.names, pairs=dataset.pairs, masked=masked, question=dataset.question
        )
        words = json.dumps(asked.words) if asked.words else None
        words = settings.label_words or words
        settings = replace(settings, template=asked.template, label_words=words)
    check_model(settings, masked=masked)
    if settings.at_mask and settings.pooling == "auto":
        settings = replace(settings, pooling="architecture")
    if settings.head == "words-frozen" and settings.prompt == "none":
        raise PtuneError(
            "head is 'words-frozen' and prompt is 'none', so nothing would train. Use "
            "head='words', or another prompt."
        )
    if settings.template is None or settings.prompt == "none" or settings.prompt_init is not None:
        return settings
    if not (words := Template(settings.template).soft_words):
        return settings
    length = len(tokenizer(words, add_special_tokens=False)["input_ids"])
    length += len(_replaced_special(settings, tokenizer))
    return replace(
        settings,
        prompt_init="text",
        prompt_init_text=words,
        prompt_init_scale=1.0,
        num_virtual_tokens=length,
        shift_positions=settings.prompt == "deep",  # where the words were
    )


def check_model(settings: TrainSettings, *, masked: bool) -> None:
    """Check that a language model can answer as the template asks.

    Args:
        settings: The settings.
        masked: Whether it fills gaps.

    Raises:
        PtuneError: It cannot.
    """
    decoder = is_decoder(settings.model, revision=settings.revision)
    if settings.asks_words and not (decoder or masked):
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


def _replaced_special(settings: TrainSettings, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The special tokens before a text that a prompt of soft words replaces, such as BOS.

    Their keys and values belong before those of the words, so a deep prompt starts with them.
    """
    decoder = is_decoder(settings.model, revision=settings.revision)
    return special_before(tokenizer) if decoder and settings.prompt == "deep" else []


def start_with_words(
    model: PromptModel,
    settings: TrainSettings,
    dataset: TaskData,
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    *,
    calibrate: bool,
) -> None:
    """Start the head as the rows of its label words in the language model.

    Raises:
        PtuneError: As for `start_of_head`; or words are to be found without examples.
    """
    backbone = model.get_base_model()
    language_model = load_language_model(
        settings.model,
        masked=settings.at_mask,
        dtype=backbone.dtype,
        revision=settings.revision,
    )
    names = dataset.labels.names
    if settings.label_words == FROM_EXAMPLES:
        if not dataset.train:
            raise PtuneError(
                f"label_words is {FROM_EXAMPLES!r}, but there are no training examples. Name the "
                "words, or leave label_words out."
            )
        some = dataset.few_examples(FOUND_IN, settings.seed).train
        assert some is not None
        columns = [some[name] for name in (TEXT, PAIR) if name in some.column_names]
        longest = model.max_text_tokens(tokenizer)
        words = words_from_examples(
            language_model, tokenizer, template, columns, some[LABEL], names, longest
        )
        listed = "; ".join(f"{name}: {', '.join(own)}" for name, own in words.items())
        logger.warning("The label words are %s.", listed)
    else:
        words = parse_words(settings.label_words or {}, names)
    start_head(
        model, *start_of_head(language_model, tokenizer, template, words, calibrate=calibrate)
    )


def start_head(model: PromptModel, rows: torch.Tensor, bias: torch.Tensor | None) -> None:
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


def fit_to_tokenizer(
    config: PromptEncoderConfig,
    tokenizer: PreTrainedTokenizerBase,
    template: Template | None = None,
) -> PromptEncoderConfig:
    """Place the prompt before the text if no special token is there."""
    if not special_before(tokenizer) or (template and template.replaces_special):
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


# The run folder.


def check_folder(folder: Path, *, overwrite: bool, resume: bool) -> None:
    """Refuse a folder that must not be written to, before any work is done.

    Only the first process checks: others may arrive after it has begun to write.

    Raises:
        PtuneError: The folder is not empty and neither flag was given, or there is no run to
            resume.
    """
    if not is_first():
        return
    if folder.exists() and not folder.is_dir():
        raise PtuneError(f"{folder} is a file; expected a folder for the results.")
    if resume:
        if not is_begun(folder):
            raise PtuneError(f"{folder} holds no run to resume. Leave out --resume to start one.")
    elif folder.is_dir() and any(folder.iterdir()):
        if not overwrite:
            raise PtuneError(
                f"The folder {folder} already holds something. Choose another one, continue an "
                "interrupted run (--resume), or replace the run in it (--overwrite)."
            )
        if not is_begun(folder):
            raise PtuneError(
                f"The folder {folder} holds files that are not from a ptune run, so --overwrite "
                "leaves it alone. Choose another one."
            )


def check_unchanged(folder: Path, settings: TrainSettings, dataset: TaskData) -> None:
    """Check that resolved settings are those of the run that is resumed.

    Raises:
        PtuneError: Some differ.
    """
    before = resolve(TrainSettings.read(folder), dataset).to_dict()
    if listed := differences(before, settings.to_dict()):
        raise PtuneError(
            f"The run in {folder} was started with other settings: {listed}. Resume it with its "
            "own settings, or start a run in another folder."
        )


def differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What differs between the settings of two runs, as a part of a sentence; empty: nothing."""
    differing = [k for k in {**before, **now} if before.get(k) != now.get(k)]
    return ", ".join(f"{k} was {before.get(k)!r} and is {now.get(k)!r}" for k in differing)


def prepare_folder(folder: Path, settings: TrainSettings, *, keep: bool) -> None:
    """Create the run folder, write the settings and delete a previous run's files unless `keep`.

    Raises:
        PtuneError: The folder cannot be written.
    """
    if keep or not is_first():
        return
    with staged(folder) as stage:
        write_json(stage / SETTINGS_NAME, settings.to_dict())
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    for name in (METRICS_NAME, FEATURES_NAME, REPORT_NAME, DATA_CURVE_NAME, *NEXT_TO_REPORT):
        (folder / name).unlink(missing_ok=True)
    for name in PICTURES:
        for picture in folder.glob(f"{Path(name).stem}*.*g"):  # .png and .svg, of each set
            picture.unlink()


def is_begun(folder: Path) -> bool:
    """True if the folder holds a run, finished or not."""
    return (folder / SETTINGS_NAME).is_file()


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint. `Trainer` writes its state file last."""
    found = []
    for checkpoint in folder.glob("checkpoint-*"):
        step = checkpoint.name.removeprefix("checkpoint-")
        if step.isdigit():
            try:
                read_json(checkpoint / "trainer_state.json")
            except PtuneError:
                logger.warning("Skipping the incomplete checkpoint %s.", checkpoint)
            else:
                found.append((int(step), checkpoint))
    return max(found)[1] if found else None


# Results.


def all_answers(trainer: SharingTrainer) -> Answers:
    """True labels and logits of each evaluation set."""
    found = {}
    for name, examples in trainer.evaluation_sets.items():
        # `Trainer` may reorder the examples. Its labels have the same order as its predictions.
        output = trainer.predict(examples)
        found[name] = answers_of(output)
    return found


def joined(answers: Answers) -> tuple[np.ndarray, np.ndarray]:
    """True labels and logits of all evaluation sets together."""
    truth, logits = zip(*answers.values(), strict=True)
    return np.concatenate(truth), np.concatenate(logits)


def known_texts(
    trainer: SharingTrainer, settings: TrainSettings, labels: Labels
) -> np.ndarray | None:
    """Logits of a few training texts of each label, if they serve to tell unfamiliar texts."""
    train: Any = trainer.train_dataset
    held_out = sum(map(len, trainer.evaluation_sets.values()))
    if (
        not (labels.is_single and settings.calibrate)
        or held_out < calibration.MIN_FAMILIAR
        or len(labels) > calibration.MAX_FAMILIAR
    ):
        return None
    rows = calibration.some_of_each(np.asarray(train["labels"]), len(labels))
    return answers_of(trainer.predict(train.select(rows.tolist())))[1]


def calibrated(
    settings: TrainSettings, labels: Labels, answers: Answers, known: np.ndarray | None = None
) -> tuple[Postprocessing, dict[str, Any]]:
    """Calibration and thresholds from all evaluation sets together, and their measurements.

    Args:
        settings, labels, answers: Those of a run.
        known: Logits of training texts; see `calibration.fit_unfamiliar`.
    """
    if not settings.calibrate or not answers:
        return RAW, {}
    truth, logits = joined(answers)
    goal = Goal.parse(settings.threshold_for or "f1")
    return calibration.fit(labels, logits, truth, goal, known)


def results_of(
    settings: TrainSettings,
    dataset: TaskData,
    answers: Answers,
    log: list[dict[str, Any]],
    args: TrainingArguments,
    sizes: tuple[int, int],
) -> dict[str, Any]:
    """The content of `metrics.json`, except what only the training itself knows.

    Args:
        settings, dataset, answers: As for a `Run`.
        log: `Trainer`'s log.
        args: `Trainer`'s arguments.
        sizes: Trained parameters, and all parameters.
    """
    epochs = report.history(log)
    majority, tie = report.majority(dataset)
    assert dataset.train is not None
    return {
        "task": dataset.name,
        "dataset_revision": dataset.revision,
        "text_pairs": dataset.pairs,
        "model": full_name(settings.model),
        "eval": report.scores(epochs[-1]) if epochs else {},
        "best": report.best(epochs, dataset),
        "adapter": "best" if args.load_best_model_at_end else "last",
        "epochs": epochs,
        "majority": majority,
        "majority_tie": tie,
        "labels": list(dataset.labels.names),
        "problem_type": dataset.labels.kind,
        "confusion_matrix": {
            name or "eval": dataset.labels.confusion(truth, dataset.labels.decide(logits)).tolist()
            for name, (truth, logits) in answers.items()
            if dataset.labels.is_single
        },
        "label_scores": {
            name or "eval": per_label(truth, dataset.labels.decide(logits), dataset.labels.names)
            for name, (truth, logits) in answers.items()
            if not dataset.labels.is_regression
        },
        "train_examples": len(dataset.train),
        "eval_examples": {n or "eval": len(d) for n, d in dataset.evaluation.items()},
        "processes": settings.processes,
        "trainable_parameters": sizes[0],
        "all_parameters": sizes[1],
        "versions": {
            "ptune": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
    }


def write_adapter(
    folder: Path, adapter: Adapter, dataset: TaskData, postprocessing: Postprocessing
) -> None:
    """Write an adapter with the user's labels, calibration and thresholds."""
    replace(adapter, labels=dataset.labels, postprocessing=postprocessing).save(folder)


def _keep_features(trainer: SharingTrainer, folder: Path) -> None:
    """Write what the trained head reads of the training texts."""
    train: Any = trainer.train_dataset
    model: Any = trainer.model
    features = Features.of(model, train, trainer.data_collator, 0, len(train))
    if features is None:
        logger.warning("The head does not end in a linear layer, so no features are kept.")
        return
    with staged(folder) as stage:
        keep_features(features, train, stage)


def _write_results(run: Run, dataset: TaskData) -> None:
    """Write the scores and the pictures."""
    with staged(run.folder) as stage:
        write_json(stage / METRICS_NAME, run.metrics)
        for name, picture in report.pictures(dataset, run.metrics, run.answers).items():
            picture.save(stage / name)
