"""`PromptClassifier`: train, load and save a classifier, with scikit-learn's interface."""

from __future__ import annotations

import inspect
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from rich.console import Console
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from ptune import texts
from ptune.adapters.adapter import Adapter
from ptune.backbones.loading import chosen_device, full_name, load_backbone, load_tokenizer
from ptune.data.dataset import TaskData, check_lengths, dataset_of
from ptune.errors import Origin, PtuneError, near
from ptune.files import is_export
from ptune.inference.text_classifier import Answer, Batch, Found, TextClassifier
from ptune.labels import Labels, columns_of, edits, read
from ptune.model import PromptModel
from ptune.texts import Reading, Text
from ptune.training.declaration import documented, settings_of
from ptune.training.settings import DECIDED, ClassifierSettings, TrainSettings

HELD_OUT = Origin("the texts of eval_set")
ANSWERS = Origin("the labels of eval_set")


@documented
class PromptClassifier(ClassifierSettings, TextClassifier, ClassifierMixin, BaseEstimator):
    """A p-tuned text classifier with the interface of scikit-learn.

    `ptune.load` returns a trained one. Train a new one with `fit`. It works wherever scikit-learn
    takes an estimator, such as in `cross_val_score`.

    Texts are strings. Pairs of texts are tuples or lists of two strings.

    Args:
        {settings}

    Attributes:
        classes_: Label values, in the order of the probabilities.
        prompt_model_: The `PromptModel`.
        tokenizer_: The backbone's tokenizer.
    """

    # Training.

    def fit(
        self,
        X: Iterable[Text],
        y: Any,
        sample_weight: Any = None,
        *,
        eval_set: tuple[Any, Any] | None = None,
        class_weight: Any = None,
        problem_type: str | None = None,
        device: str | torch.device | None = None,
        verbose: bool | None = None,
        **training_arguments: Any,
    ) -> PromptClassifier:
        """Train on texts or pairs `X` and their labels `y`.

        `y` holds one label per text: strings, integers, booleans or enum members. Numbers with a
        fraction make a regression. A matrix of zeros and ones, or a list of labels per text, makes
        a classifier with several labels per text.

        Leave out texts without a label: ``known = pandas.notna(y)``, then ``X[known], y[known]``.

        Args:
            X: Texts or pairs: a list, array, Series, or a DataFrame with one or two columns.
            y: Their labels.
            sample_weight: A weight for each text.
            eval_set: Texts and labels to evaluate on after each epoch; the scores are in
                `history_`. Probabilities are calibrated on them. Without them, the temperature is
                cross-fitted on the training texts, with a stand-in for the classifier.
            class_weight: A weight for each label, or `balanced`.
            problem_type: As in Transformers' configurations; ``None``: inferred from the labels.
            device: ``None``: a GPU if there is one.
            verbose: Show progress; ``None``: on a terminal.
            **training_arguments: Any field of 🤗 `TrainingArguments`, such as `weight_decay`.

        Raises:
            PtuneError: A text or a label is missing, or there is only one label.
        """
        from ptune.training.run import train_run

        if y is None:
            raise PtuneError("fit requires y to be passed, but the target y is None.")
        columns_in = columns_of(X)
        names = () if columns_in is None else texts.columns_of_texts(columns_in)
        weights: dict[str, Any] = {"sample_weight": sample_weight, "class_weight": class_weight}
        data = TaskData.from_lists(texts.as_columns(texts.rows(X)), y, problem_type, **weights)
        if eval_set is not None:
            held_out, answers = _one_set(eval_set)
            column = read(answers, ANSWERS)
            columns = texts.as_columns(texts.rows(held_out, names), data.pairs, HELD_OUT)
            check_lengths(columns, column)
            data.evaluation[""] = dataset_of(columns, data.labels.encode(column))
        settings = TrainSettings(**self.get_params())
        settings.training_arguments = {
            "save_strategy": "no",
            "eval_strategy": "no" if eval_set is None else "epoch",
            **_known_arguments(training_arguments),
        }
        if device is not None:
            device = chosen_device(device)
            settings.training_arguments["use_cpu"] = device.type == "cpu"
        with tempfile.TemporaryDirectory(prefix="ptune-") as folder:
            run = train_run(
                settings, folder, overwrite=True, dataset=data, progress=_progress(verbose)
            )
        run.model.freeze()
        self.__dict__.pop("feature_names_in_", None)
        if names:
            self.feature_names_in_ = np.array(names, dtype=object)
        self.prompt_model_, self.labels_ = run.model.eval(), data.labels
        self.postprocessing_ = run.postprocessing
        self.history_: list[dict[str, Any]] = run.metrics["epochs"]
        if device is not None:
            self.prompt_model_.to(device)
        self.tokenizer_ = load_tokenizer(self.model)
        return self

    # Prediction.

    def _windows(self, X: Text | Iterable[Text]) -> Iterator[Found]:
        check_is_fitted(self)
        return super()._windows(X)

    def _reading(self) -> Reading:
        return self.prompt_model_.reading(self.tokenizer_)

    def _most_padding(self) -> int | None:
        model = self.prompt_model_
        return texts.most_padding(model.device, one_row=model.host.takes_one_row)

    def _forward(self, batches: Iterable[Batch]) -> Iterator[Answer]:
        if self.prompt_model_.training:  # the user's own loop left it so
            self.prompt_model_.eval()
        for chosen, rows in batches:
            batch = texts.padded(self.tokenizer_, rows)
            with torch.inference_mode():
                output = self.prompt_model_(**batch.to(self.prompt_model_.device))
            yield chosen, output.logits.float().cpu().numpy()

    @classmethod
    def zero_shot(
        cls,
        labels: Sequence[str],
        *,
        model: str = "smollm2",
        template: str | None = None,
        label_words: Mapping[str, str | Sequence[str]] | str | None = None,
        pairs: bool = False,
        calibrate: bool = True,
        device: str | torch.device | None = None,
        **settings: Any,
    ) -> PromptClassifier:
        """A classifier without any training: a language model is asked for the label.

        `fit` then trains a prompt and a head that start from the same question.

        Args:
            labels: The labels.
            model: A causal or masked language model: short name, Hub id or folder.
            template: The words around each text (`Template`); ``None``: a question with the labels.
            label_words: Words for each label; ``None``: the labels themselves.
            pairs: Classify pairs of texts.
            calibrate: Give texts without content equal scores (contextual calibration).
            device: ``None``: a GPU if there is one.
            **settings: Other settings of the classifier, for `fit`.

        Raises:
            PtuneError: There are fewer than two labels, or the model is not such a language model.

        Example:
            ``PromptClassifier.zero_shot(["positive", "negative"]).predict(["What a day!"])``
        """
        from ptune.training.start import zero_shot_model

        if isinstance(labels, str | set | frozenset) or not isinstance(labels, Iterable):
            what = f"the string {labels!r}" if isinstance(labels, str) else repr(labels)
            what = "a set without order" if isinstance(labels, set | frozenset) else what
            raise PtuneError(f"labels is {what}; pass a list of labels.")
        names = tuple(labels)
        if wrong := [name for name in names if not isinstance(name, str) or names.count(name) > 1]:
            raise PtuneError(
                f"Expected different strings as labels; found {wrong[0]!r} in {names}."
            )
        device = chosen_device(device)
        if not isinstance(label_words, str | Mapping | None):
            raise PtuneError(
                f"label_words is {label_words!r}; pass words by label, such as "
                "{'positive': ['good', 'great']}."
            )
        words = json.dumps(dict(label_words)) if isinstance(label_words, Mapping) else label_words
        asked_by: dict[str, Any] = {"template": template, "label_words": words}
        classifier = cls(model, **{"head": "words", **settings, **asked_by})
        own = TrainSettings(**{**classifier.get_params(), "prompt": "none", "head": "words"})
        answers = Labels(names)
        found, tokenizer, asked = zero_shot_model(own, answers, pairs=pairs, calibrate=calibrate)
        found.freeze()
        classifier.prompt_model_ = found.eval().to(device)
        classifier.template = asked.template
        # Another head, for `fit`, uses no words.
        classifier.label_words = asked.label_words if "words" in (classifier.head or "") else None
        classifier.tokenizer_, classifier.labels_ = tokenizer, answers
        return classifier

    # Labels, changed after training.

    def rename_label(self, old: Any, new: str) -> PromptClassifier:
        """Give a label another name.

        Raises:
            PtuneError: There is no such label, or another one has the new name.
        """
        check_is_fitted(self)
        self.labels_ = edits.rename(self.labels_, old, new)
        return self

    def merge_labels(self, old: Sequence[Any], into: str) -> PromptClassifier:
        """Make one label of several, whose probabilities add up.

        If a text can have several labels, it has the new one if it has one of the old ones.

        Raises:
            PtuneError: There are no such labels, or another label has the new name.
        """
        check_is_fitted(self)
        self.labels_ = edits.merge(self.labels_, old, into)
        return self

    def drop_label(self, label: Any) -> PromptClassifier:
        """Never answer with a label. Its probability goes to the others.

        Raises:
            PtuneError: There is no such label, or too few would be left.
        """
        check_is_fitted(self)
        self.labels_ = edits.drop(self.labels_, label)
        return self

    # Files.

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the adapter, for `ptune.load`.

        Raises:
            PtuneError: The folder cannot be written. What was there before is unchanged.
        """
        self._adapter().save(folder)

    save_pretrained = save

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str], **kwargs: Any) -> PromptClassifier:
        """Load a classifier on PyTorch: `ptune.load`, with its arguments except `engine`."""
        return load(source, **kwargs)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Publish the adapter with a model card; see `ptune.adapters.push.push`.

        `ptune push` publishes a run folder, scores and pictures included.

        Raises:
            PtuneError: The Hub refuses, or cannot be reached.
        """
        from ptune.adapters.push import push

        return push(self._adapter(), repo_id, **kwargs)

    def _adapter(self) -> Adapter:
        check_is_fitted(self)
        own: dict[str, Any] = {"labels": self.labels_, "postprocessing": self.postprocessing_}
        columns = list(getattr(self, "feature_names_in_", ()))
        if columns and all(isinstance(name, str) for name in columns):
            own["text_columns"] = columns
        return replace(self.prompt_model_.to_adapter(), **own)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        tags.classifier_tags.multi_label = True
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "prompt_model_")


def _one_set(eval_set: Any) -> tuple[Any, Any]:
    """The texts and labels of an evaluation set, which XGBoost's users write in a list.

    Raises:
        PtuneError: It is anything else.
    """
    if isinstance(eval_set, list) and len(eval_set) == 1:
        (eval_set,) = eval_set
    if not isinstance(eval_set, tuple) or len(eval_set) != 2:
        raise PtuneError("eval_set must be texts and their labels: eval_set=(X_test, y_test).")
    return eval_set[0], eval_set[1]


def _known_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `fit` that are fields of `TrainingArguments`, and nobody else's.

    Raises:
        PtuneError: One of them is not.
    """
    from transformers import TrainingArguments  # Imports all of PEFT, if that is installed.

    settings = settings_of(PromptClassifier)
    for name in arguments:
        if (own := DECIDED.get(name, name)) in settings:
            raise PtuneError(
                f"{name} is a setting of the classifier, and not of fit. Write "
                f"PromptClassifier({own}={arguments[name]!r}) or set_params({own}=…)."
            )
    own_names = list(inspect.signature(PromptClassifier.fit).parameters)[3:-1]
    known = own_names + [f.name for f in fields(TrainingArguments) if f.name not in DECIDED]
    if unknown := sorted(arguments.keys() - set(known)):
        raise PtuneError(
            f"fit has no argument {unknown[0]!r}, and neither has TrainingArguments; "
            f"{near(unknown[0], known)}."
        )
    return arguments


def _progress(verbose: bool | None) -> Any:
    from ptune.training.report import TrainingProgress

    console = Console(stderr=True)
    shown = console.is_terminal if verbose is None else verbose
    return TrainingProgress(console) if shown else None


# Settings of a classifier that are fields of a prompt's configuration.
_SAME_NAME = (
    "reader_rank",
    "reader_key_rank",
    "placement",
    "pooling",
    "prompt_init",
    "prompt_init_text",
    "prompt_init_scale",
)


def _settings_of(adapter: Adapter) -> dict[str, Any]:
    """The settings with which an adapter was trained, as far as it records them."""
    template = adapter.reading.template
    same = [n for n in _SAME_NAME if n != "placement" or adapter.config.depth == "input"]
    return {
        "prompt": adapter.config.depth,
        "encoder": adapter.config.encoder_reparameterization_type,
        "max_length": adapter.reading.max_text_tokens,
        "long_texts": adapter.reading.long_texts,
        "template": template.pattern if template else None,
        "num_virtual_tokens": adapter.config.num_virtual_tokens or None,  # of no prompt: any
        **{setting: getattr(adapter.config, setting) for setting in same},
    }


def load(
    source: str | os.PathLike[str],
    *,
    model: str | None = None,
    dtype: str = "auto",
    device: str | torch.device | None = None,
    batch_size: int = 32,
    allow_other_backbone: bool = False,
    **where: Any,
) -> PromptClassifier:
    """Load a classifier on PyTorch. The arguments are those of `ptune.load`, which calls this.

    Raises:
        PtuneError: As for `ptune.load`.
    """
    if is_export(source):
        raise PtuneError(
            f"{source} is an export to ONNX, and no adapter. `ptune predict` and `ptune evaluate` "
            "run it with `--runtime onnx` or `openvino` (engine= in Python). Everything else "
            "requires the adapter that it was exported from."
        )
    if not isinstance(model, str | os.PathLike | None):
        raise PtuneError(
            f"model is {type(model).__name__}; expected the name or the folder of a backbone. To "
            "put an adapter on a model that you have loaded, use PromptModel.from_pretrained."
        )
    device = chosen_device(device)
    found = Adapter.read(source, own_backbone=model is not None, **where)
    name = model or found.config.base_model_name_or_path
    if not name:
        raise PtuneError(
            f"The adapter {source} does not say which backbone it was trained on "
            "(base_model_name_or_path). Name it (`--model`, or model= in Python)."
        )
    # The folder and the revision of the adapter are not those of the backbone.
    own = {k: v for k, v in where.items() if k not in ("subfolder", "revision")}
    recorded = found.config.base_model_name_or_path
    is_same = recorded is not None and full_name(name) == full_name(recorded)
    own["revision"] = found.config.revision if is_same else None
    backbone = load_backbone(
        name,
        labels=found.labels.output_names,
        problem_type=found.labels.kind,
        dtype=dtype,  # type: ignore[arg-type]
        device=device,
        at_mask=found.reading.at_mask,
        **own,
    )
    prompt_model = PromptModel.from_adapter(
        backbone, found, allow_other_backbone=allow_other_backbone
    )
    tokenizer = load_tokenizer(name, **own)
    how: dict[str, Any] = {"batch_size": batch_size, "dtype": dtype}
    classifier = PromptClassifier(name, **_settings_of(found), **how)
    classifier.prompt_model_, classifier.labels_ = prompt_model.to(device), found.labels
    classifier.tokenizer_, classifier.postprocessing_ = tokenizer, found.postprocessing
    if found.text_columns:
        classifier.feature_names_in_ = np.array(found.text_columns, dtype=object)
    return classifier
