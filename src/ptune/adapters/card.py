"""Model cards: metadata for the Hub and text for people. The text is in `card.md.jinja`."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ptune.adapters.adapter import WEIGHTS_NAME, Adapter
from ptune.adapters.public import PublicBackbone, last_part, without_paths
from ptune.adapters.quality import QUALITY_NAME
from ptune.adapters.schema import CONFIG_NAME, INFO_NAME, OWN_FIELDS, config_content
from ptune.data.glue import GLUE_ON_THE_HUB
from ptune.files import (
    CONFUSION_NAME,
    LABELS_NAME,
    METRICS_NAME,
    PICTURES,
    SETTINGS_NAME,
    read_if_there,
    read_metrics,
)
from ptune.labels import Labels

LIBRARY = "ptune"
# For the Hub's widget, unless the author names a text. A text of the data is never published.
EXAMPLE = "Write a text to classify."
TEMPLATE = Path(__file__).with_name("card.md.jinja")

# Metric names of `ptune.labels`: their names on https://hf.co/metrics, and titles.
_METRICS: dict[str, tuple[str, str, dict[str, Any] | None]] = {
    "accuracy": ("accuracy", "Accuracy", None),
    "f1": ("f1", "F1", None),
    "f1_macro": ("f1", "F1 (macro)", {"average": "macro"}),
    "f1_micro": ("f1", "F1 (micro)", {"average": "micro"}),
    "matthews_correlation": ("matthews_correlation", "Matthews correlation", None),
    "pearson": ("pearsonr", "Pearson correlation", None),
    "spearman": ("spearmanr", "Spearman correlation", None),
}
_FILES = {
    CONFIG_NAME: "the prompt's configuration",
    WEIGHTS_NAME: "the prompt and the head",
    INFO_NAME: "labels, and the backbone's sizes",
    QUALITY_NAME: "calibration and thresholds",
    METRICS_NAME: "scores of every epoch",
}
# What `metrics.json` says about the labels, and how right the answers are.
_SCORES = (
    *("eval", "best", "majority", "majority_tie"),
    *("labels", "label_scores", "confusion_matrix", "quality"),
)
# Of each epoch, what is not a score.
_OF_EPOCH = ("epoch", "step", "train_loss")
# Settings that are files or folders: only their names are published.
_FILE_SETTINGS = ("train_file", "eval_file", "data_dir")


@dataclass(frozen=True)
class CardText:
    """What only the author knows, for the model card, in Markdown. What is left out is not stated.

    Attributes:
        data_description: Where the texts are from, who labelled them, and what is left out.
        intended_use: What the classifier is for; ``None``: a general sentence.
        limits: What it is not for, and known weaknesses, next to the general ones.
        example: A text that may be published, for the card and the Hub's widget.
        language: The language of the texts, as a code such as `en`.
    """

    data_description: str | None = None
    intended_use: str | None = None
    limits: str | None = None
    example: str | None = None
    language: str | None = None


def model_card(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    license: str | None = None,
    text: CardText | None = None,
) -> ModelCard:
    """A model card for the adapter in `folder`.

    Its library is `ptune`, even if PEFT can load the adapter. Otherwise the Hub would show how to
    load it with PEFT, which only warns about what it does not know (the place of the prompt, what
    the head reads) and predicts something else. The tag `peft` marks adapters for which PEFT
    predicts the same.

    Args:
        folder: A run folder, or another folder with an adapter.
        repo_id: The repository that the card is for.
        license: An identifier from https://hf.co/docs/hub/repositories-licenses.
        text: What only the author knows.

    Raises:
        PtuneError: There is no adapter, or it is damaged.
    """
    folder, text = Path(folder), text or CardText()
    adapter = Adapter.read(folder, own_backbone=True)
    config = adapter.config
    backbone = PublicBackbone.of(config.base_model_name_or_path, config.revision)
    metrics, pictures = metrics_of(folder, adapter.labels), pictures_of(folder, adapter.labels)
    settings = read_if_there(folder / SETTINGS_NAME)
    own = config_content(config).keys() & OWN_FIELDS.keys()
    # PEFT would not put the template's words around texts.
    in_peft = adapter.reading.template is None and all(
        OWN_FIELDS[name].training_only for name in own
    )
    name = repo_id.rpartition("/")[2]
    results = list(_eval_results(metrics, settings))
    metadata = ModelCardData(
        library_name=LIBRARY,
        license=license,
        language=text.language,
        base_model=backbone.name if backbone.on_hub else None,
        base_model_relation="adapter" if backbone.on_hub else None,
        pipeline_tag="text-classification",
        tags=["p-tuning", *(["peft"] if in_peft else [])],
        datasets=_datasets(settings),
        metrics=sorted({r.metric_type for r in results}) or None,
        eval_results=results or None,
        model_name=name if results else None,
        widget=[{"text": text.example or EXAMPLE}],
    )
    always = (CONFIG_NAME, WEIGHTS_NAME)
    rendered = _template().render(
        metadata=metadata.to_yaml(),
        name=name,
        repo_id=repo_id,
        backbone=backbone,
        loads_in_peft=in_peft and backbone.on_hub,
        labels=adapter.labels,
        calibration=adapter.postprocessing.calibration,
        deep=config.depth == "deep",
        prompt_length=config.num_virtual_tokens,
        parameters=sum(t.numel() for t in adapter.tensors().values()),
        pairs=bool(metrics.get("text_pairs") or settings.get("text_pair_column")),
        trained_on=metrics.get("task"),
        text=text,
        settings=_training(settings, metrics),
        versions=metrics.get("versions") or {},
        pictures=pictures,
        files={f: what for f, what in _FILES.items() if f in always or (folder / f).is_file()},
        regrouped=adapter.labels.outputs is not None,
        **_scores(metrics),
    )
    return ModelCard(rendered)


def metrics_of(folder: Path, labels: Labels) -> dict[str, Any]:
    """What `metrics.json` in a run folder says of an adapter whose labels may have changed since.

    Renamed labels have their present names. Scores of merged or dropped labels are left out: they
    are not those of the adapter.
    """
    found = read_metrics(folder / METRICS_NAME)
    if labels.outputs is not None:
        known = {name: value for name, value in found.items() if name not in _SCORES}
        if "epochs" in found:
            known["epochs"] = [{n: e[n] for n in _OF_EPOCH if n in e} for e in found["epochs"]]
        return known | ({"eval": {}} if "eval" in found else {})
    if not found.get("labels"):
        return found
    names = dict(zip(found["labels"], labels.names, strict=False))
    by_label = {
        part: [{**row, "label": names.get(row["label"], row["label"])} for row in rows]
        for part, rows in (found.get("label_scores") or {}).items()
    }
    return found | {"labels": list(labels.names), "label_scores": by_label}


def pictures_of(folder: Path, labels: Labels) -> dict[str, str]:
    """The pictures in a run folder and what they show; none of labels that were changed since."""
    if labels.outputs is not None:
        return {}
    before = read_metrics(folder / METRICS_NAME).get("labels", list(labels.names))
    outdated = () if before == list(labels.names) else (CONFUSION_NAME, LABELS_NAME)
    return {
        name: what
        for name, what in PICTURES.items()
        if name not in outdated and (folder / name).is_file()
    }


def _datasets(settings: dict[str, Any]) -> list[str] | None:
    """The data set on the Hub that it was trained on."""
    if settings.get("task"):
        return [GLUE_ON_THE_HUB]
    found = PublicBackbone.of(settings.get("dataset"), None)
    return [found.name] if found.name and found.on_hub else None


def _template() -> jinja2.Template:
    environment = jinja2.Environment(keep_trailing_newline=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"code": _code, "plain": _plain}
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8"))


def _code(value: Any) -> str:
    """A value as code, on one line and inside a table's cell."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = " ".join(text.split()).replace("|", "\\|")
    if "`" not in text:
        return f"`{text}`"
    fence = "`" * (1 + max(map(len, re.findall("`+", text))))
    return f"{fence} {text} {fence}"


def _plain(value: str) -> str:
    """A name in running text, on one line, none of which is Markdown or HTML."""
    return re.sub(r"([\\`*_{}\[\]<>#|!&~$])", r"\\\1", " ".join(value.split()))


def _final(metrics: dict[str, Any]) -> dict[str, float]:
    """The scores of the very adapter that is pushed."""
    return {
        key: value
        for key, value in (metrics.get("eval") or {}).items()
        if _metric_of(key) and isinstance(value, int | float) and math.isfinite(value)
    }


def _metric_of(key: str) -> tuple[str, str] | None:
    """Evaluation set and metric of a key of `metrics.json`: ``matched_accuracy``, ``f1``."""
    for name in sorted(_METRICS, key=len, reverse=True):
        if key == name or key.endswith(f"_{name}"):
            return key.removesuffix(name).rstrip("_"), name
    return None


def _eval_results(metrics: dict[str, Any], settings: dict[str, Any]) -> Iterator[EvalResult]:
    """Scores in the Hub's schema, https://github.com/huggingface/hub-docs, `modelcard.md`."""
    task = settings.get("task")
    for key, value in _final(metrics).items():
        split, name = _metric_of(key) or ("", key)
        kind, title, options = _METRICS[name]
        yield EvalResult(
            task_type="text-classification",
            task_name="Text classification",
            dataset_type=GLUE_ON_THE_HUB if task else "custom",
            dataset_name=str(metrics.get("task", "own texts")),
            dataset_config=task,
            # GLUE's evaluation sets are called validation, validation_matched and so on.
            dataset_split="_".join(filter(None, ["validation", split])),
            dataset_revision=metrics.get("dataset_revision"),
            metric_type=kind,
            metric_name=title,
            metric_value=round(value, 6),
            metric_args=options,
        )


def _scores(metrics: dict[str, Any]) -> dict[str, Any]:
    """What the template needs for the section on scores."""
    majority = metrics.get("majority") or {}
    rows = []
    for key, value in _final(metrics).items():
        split, name = _metric_of(key) or ("", key)
        title = _METRICS[name][1] + (f", {split}" if split else "")
        base = f"{majority[key]:.4f}" if math.isfinite(majority.get(key, math.nan)) else ""
        rows.append({"title": title, "value": f"{value:.4f}", "majority": base})
    return {
        "scores": rows,
        "has_majority": bool(majority),
        "tie": bool(metrics.get("majority_tie")),
        "evaluated_on": metrics.get("task", "the evaluation set"),
        "examples": sum((metrics.get("eval_examples") or {}).values()),
        "dataset_revision": metrics.get("dataset_revision"),
        "best": metrics.get("adapter") == "best",
        "by_label": metrics.get("label_scores") or {},
    }


def _training(settings: dict[str, Any], metrics: dict[str, Any]) -> dict[str, Any]:
    """Settings and facts of the training run, for a table."""
    rows = {name: value for name, value in settings.items() if value not in (None, {}, [])}
    for name in _FILE_SETTINGS:
        if name in rows:
            rows[name] = last_part(str(rows[name]))
    if "dataset" in rows:
        rows["dataset"] = PublicBackbone.of(rows["dataset"], None).name
    if metrics.get("model"):
        rows["model"] = PublicBackbone.of(metrics["model"], None).name
    rows = without_paths(rows)
    if count := metrics.get("train_examples"):
        rows["training examples"] = f"{count:,}"
    if epochs := metrics.get("epochs"):
        rows["epochs"] = f"{epochs[-1]['epoch']:g}"
    if seconds := metrics.get("seconds"):
        rows["seconds"] = f"{seconds:g}"
    return rows
