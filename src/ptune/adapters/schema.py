"""The JSON files of an adapter: their fields, what each may hold, and what an absent field means.

Every `adapter_config.json` and `ptune.json` is read and written through this module. The tables
are part of the file format: an absent field of `adapter_config.json` has PEFT's value, whatever
default the field has in Python.
"""

from __future__ import annotations

import json
import reprlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from ptune import __version__
from ptune.errors import PtuneError
from ptune.files import ADAPTER_NAME
from ptune.labels import labels_from_json
from ptune.prompts.config import (
    LIMITS,
    P_TUNING,
    PREFIX_TUNING,
    PROMPT_TUNING,
    Depth,
    LongTexts,
    Placement,
    Pooling,
    PromptEncoderConfig,
    PromptInit,
    Reparameterization,
)
from ptune.texts import Reading

CONFIG_NAME = ADAPTER_NAME
INFO_NAME = "ptune.json"

# The format of `ptune.json`. Files without a format are of format 1.
FORMAT = 2
# What `requires` may name: features without which a file cannot be understood.
READER, TEMPLATE, NO_PROMPT, MASK = "reader", "template", "no_prompt", "mask"
LONG_TEXTS, LABEL_OUTPUTS = "long_texts", "label_outputs"
WINDOW_WEIGHTS, READER_KEY_RANK = "window_weights", "reader_key_rank"
FEATURES = frozenset(
    {READER, TEMPLATE, NO_PROMPT, MASK, LONG_TEXTS, LABEL_OUTPUTS, WINDOW_WEIGHTS, READER_KEY_RANK}
)

# Bytes that a JSON file of an adapter may have: 50,000 labels of 300 characters.
MAX_JSON = 16_000_000
# The largest number in an adapter. Trained prompts and heads stay below 1,000.
MAX_VALUE = 1e6

Mechanism = Literal["none", "input", "prefix", "layers", "reader"]
# The depth of a prompt, by its mechanism.
DEPTH_OF: dict[Mechanism, Depth] = {
    "none": "none",
    "input": "input",
    "prefix": "deep",
    "layers": "deep",
    "reader": "reader",
}

# Values in messages, shortened.
_brief = reprlib.Repr()
_brief.maxstring = _brief.maxother = 80
shown = _brief.repr


@dataclass(frozen=True)
class Kind:
    """What a field may hold: a description for messages, and a test."""

    name: str
    accepts: Callable[[Any], bool]


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return (_is_int(value) or isinstance(value, float)) and abs(value) <= MAX_VALUE


def _is_strings(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(v, str) for v in value)


def _is_numbers(value: Any) -> bool:
    return isinstance(value, dict) and len(value) <= 1000 and all(map(_is_number, value.values()))


def _is_weights(value: Any) -> bool:
    is_short = isinstance(value, list | tuple) and len(value) <= 1000
    return is_short and all(_is_number(v) and v > 0 for v in value)


def one_of(*choices: str) -> Kind:
    """A string from a list."""
    *most, last = map(repr, choices)
    name = f"{', '.join(most)} or {last}" if most else last
    return Kind(name, lambda value: value in choices)


def integer(limit: int, least: int = 1) -> Kind:
    """An integer up to a limit."""
    name = f"an integer from {least} to {limit:,}"
    return Kind(name, lambda value: _is_int(value) and least <= value <= limit)


STRING = Kind("a string", lambda value: isinstance(value, str))
STRINGS = Kind("a list of strings", _is_strings)
POSITIVE = integer(1_000_000_000)
NUMBER = Kind("a number", _is_number)
WEIGHTS = Kind("a list of at most 1,000 positive numbers", _is_weights)
NUMBERS = Kind("an object of at most 1,000 numbers", _is_numbers)
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
OBJECT = Kind("an object", lambda value: isinstance(value, dict))
LABELS = Kind("labels", lambda value: True)  # `Labels` reads these itself


@dataclass(frozen=True)
class Field:
    """A field of a file.

    Attributes:
        kind: What it may hold. `null` is the same as an absent field.
        default: What an absent field means.
        required: Whether the field must be there.
        training_only: Whether it has no effect on predictions.
    """

    kind: Kind
    default: Any = None
    required: bool = False
    training_only: bool = False


# A file never leaves the pooling open.
POOLINGS = [name for name in get_args(Pooling) if name != "auto"]

# PEFT 0.21.2: the fields that all prompts have, and their defaults.
PEFT_FIELDS = {
    "task_type": Field(one_of("SEQ_CLS")),
    "peft_type": Field(one_of(P_TUNING, PREFIX_TUNING, PROMPT_TUNING), required=True),
    "auto_mapping": Field(OBJECT),
    "peft_version": Field(STRING),
    "base_model_name_or_path": Field(STRING),
    "revision": Field(STRING),
    "inference_mode": Field(FLAG, False),
    "num_virtual_tokens": Field(integer(LIMITS["num_virtual_tokens"], 0), required=True),
    "token_dim": Field(POSITIVE),
    "num_transformer_submodules": Field(POSITIVE),
    "num_attention_heads": Field(POSITIVE),
    "num_layers": Field(POSITIVE),
    "modules_to_save": Field(STRINGS),
}
# The start of a prompt under PEFT's names.
PEFT_INITS = {"RANDOM": "random", "SAMPLE_VOCAB": "vocab", "TEXT": "text"}
_HIDDEN = integer(LIMITS["encoder_hidden_size"])
# The fields of one method.
METHOD_FIELDS = {
    P_TUNING: {
        "encoder_reparameterization_type": Field(one_of(*get_args(Reparameterization)), "MLP"),
        "encoder_hidden_size": Field(_HIDDEN),
        "encoder_num_layers": Field(integer(LIMITS["encoder_num_layers"]), 2),
        "encoder_dropout": Field(NUMBER, 0.0),
    },
    PREFIX_TUNING: {
        "encoder_hidden_size": Field(_HIDDEN),
        "prefix_projection": Field(FLAG, False),
        # How training began.
        "init_weights": Field(STRING, training_only=True),
    },
    PROMPT_TUNING: {
        "prompt_tuning_init": Field(one_of(*PEFT_INITS), "RANDOM", training_only=True),
        "prompt_tuning_init_text": Field(STRING, training_only=True),
        "tokenizer_name_or_path": Field(STRING, training_only=True),
        "tokenizer_kwargs": Field(OBJECT, training_only=True),
    },
}
# Fields that PEFT does not have. Their defaults are what PEFT does.
OWN_FIELDS = {
    "depth": Field(one_of(*get_args(Depth)), "input"),
    "reader_rank": Field(integer(LIMITS["reader_rank"], 0), 0),
    "reader_key_rank": Field(integer(LIMITS["reader_key_rank"], 0), 0),
    "placement": Field(one_of(*get_args(Placement)), "prefix"),
    "shift_positions": Field(FLAG, False),
    "backbone_dropout": Field(FLAG, False, training_only=True),
    "pooling": Field(one_of("family", *POOLINGS), "family"),
    "prompt_init": Field(one_of(*get_args(PromptInit)), "random", training_only=True),
    "prompt_init_text": Field(STRING, training_only=True),
    "prompt_init_scale": Field(NUMBER, 1.0, training_only=True),
    "tokenizer_name_or_path": Field(STRING, training_only=True),
}

# How texts are read: of an adapter, and of an export.
READING_FIELDS = {
    "max_length": Field(POSITIVE),
    "long_texts": Field(one_of(*get_args(LongTexts)), "truncate"),
    "window_weights": Field(WEIGHTS, ()),
    "text_pairs": Field(FLAG),
    "text_columns": Field(STRINGS),
    "template": Field(STRING),
}
INFO_FIELDS = {
    **READING_FIELDS,
    "format": Field(POSITIVE, 1),
    "requires": Field(STRINGS, ()),
    "ptune_version": Field(STRING),
    "labels": Field(LABELS),
    "problem_type": Field(LABELS),
    "label_type": Field(LABELS),
    "label_outputs": Field(LABELS),
    "label_aliases": Field(LABELS),
    "mechanism": Field(one_of(*get_args(Mechanism))),
    "backbone": Field(OBJECT),
    "quality": Field(OBJECT),  # `ptune.adapters.quality` reads it
}
BACKBONE_SIZES = {
    "model_type": Field(STRING),
    "vocab_rows": Field(POSITIVE),
    "num_layers": Field(POSITIVE),
    "hidden_size": Field(POSITIVE),
}
BACKBONE_FIELDS = {**BACKBONE_SIZES, "commit": Field(STRING), "weights": Field(NUMBERS)}


def parse_config(content: Mapping[str, Any], file: Path | str) -> PromptEncoderConfig:
    """The configuration in the content of an `adapter_config.json`.

    Args:
        content: The JSON object, written by ptune or by PEFT.
        file: Where it comes from, for messages.

    Raises:
        PtuneError: It describes another method, or a field holds something that it may not.
    """
    method = content.get("peft_type")
    if not isinstance(method, str) or method not in METHOD_FIELDS:
        raise PtuneError(
            f"{file}: peft_type is {shown(method)}; ptune reads {P_TUNING!r}, {PREFIX_TUNING!r} "
            f"and {PROMPT_TUNING!r}. Load an adapter of another method with PEFT, or train a "
            "classifier with `ptune train`."
        )
    if content.get("first_layer"):
        raise PtuneError(
            f"{file} has first_layer; prompts that start at a higher layer were removed from "
            "ptune. Train the adapter again without it."
        )
    fields = {**PEFT_FIELDS, **OWN_FIELDS, **METHOD_FIELDS[method]}
    values = parse_fields({**content, "first_layer": None}, fields, file)
    if method == PREFIX_TUNING:
        del values["init_weights"]
        values |= {
            "depth": "deep",
            "shift_positions": True,
            "encoder_reparameterization_type": "MLP" if values.pop("prefix_projection") else "NONE",
            # PEFT's is the width of a layer's keys, not of the embedding.
            "token_dim": None,
        }
    elif method == PROMPT_TUNING:
        del values["tokenizer_kwargs"]  # a stranger's arguments are not passed on
        init, text = values.pop("prompt_tuning_init"), values.pop("prompt_tuning_init_text")
        values |= {
            "encoder_reparameterization_type": "NONE",
            "prompt_init": PEFT_INITS[init],
            "prompt_init_text": text if init == "TEXT" else None,
        }
    values["pooling"] = "architecture" if values["pooling"] == "family" else values["pooling"]
    try:
        return PromptEncoderConfig(**values)
    except PtuneError as error:
        raise PtuneError(f"{file}: {error}") from error


def config_content(config: PromptEncoderConfig, width: int | None = None) -> dict[str, Any]:
    """The content of `adapter_config.json`.

    ptune's own fields are left out where they say what PEFT does, because PEFT warns about fields
    that it does not know.

    Args:
        config: The prompt.
        width: Width of the prompt embeddings, if they are known.
    """
    content = {name: getattr(config, name) for name in PEFT_FIELDS}
    own = {name: getattr(config, name) for name in OWN_FIELDS}
    if own["pooling"] == "architecture":
        own["pooling"] = "family"
    if config.peft_type == PREFIX_TUNING and width and not config.num_attention_heads:
        # Key-values that PEFT could not place: ptune's own deep prompt.
        content["peft_type"] = P_TUNING
    if content["peft_type"] == P_TUNING:
        content |= {name: getattr(config, name) for name in METHOD_FIELDS[P_TUNING]}
    elif content["peft_type"] == PREFIX_TUNING:
        content["encoder_hidden_size"] = config.encoder_hidden_size
        content["prefix_projection"] = config.encoder_reparameterization_type == "MLP"
        content["init_weights"] = None
        if width and config.num_layers:
            content["token_dim"] = width // (2 * config.num_layers)
        own |= {"depth": "input", "shift_positions": False}  # implied
    else:
        init = {value: name for name, value in PEFT_INITS.items()}[config.prompt_init or "random"]
        content["prompt_tuning_init"] = init
        content["prompt_tuning_init_text"] = config.prompt_init_text
        content["tokenizer_name_or_path"] = config.tokenizer_name_or_path
        if init == "TEXT":  # PEFT insists on a tokenizer
            content["tokenizer_name_or_path"] = (
                config.tokenizer_name_or_path or config.base_model_name_or_path
            )
        content["tokenizer_kwargs"] = config.tokenizer_kwargs
        own |= {"prompt_init": "random", "prompt_init_text": None, "tokenizer_name_or_path": None}
    return content | {n: value for n, value in own.items() if value != OWN_FIELDS[n].default}


def config_text(content: Mapping[str, Any]) -> str:
    """The text of `adapter_config.json`, laid out as PEFT does."""
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def parse_info(content: Mapping[str, Any], file: Path | str, outputs: int) -> dict[str, Any]:
    """The content of a `ptune.json`, as arguments of `Adapter`.

    Args:
        content: The JSON object; empty, if there is no such file.
        file: Where it comes from, for messages.
        outputs: How many labels there are, if the file does not name them.

    Raises:
        PtuneError: The file needs a newer version, or a field holds something that it may not.
    """
    # First, because in a newer format any other field may have changed.
    head = parse_fields({n: content.get(n) for n in ("format", "requires")}, INFO_FIELDS, file)
    if unknown := sorted(set(head["requires"]) - FEATURES):
        raise PtuneError(
            f"{file} requires {', '.join(unknown)}, which ptune {__version__} does not know. "
            "Upgrade ptune (`pip install -U ptune`)."
        )
    if head["format"] > FORMAT and content.get("requires") is None:
        raise PtuneError(
            f"{file} has the format {head['format']}, and ptune {__version__} reads formats up to "
            f"{FORMAT}. Upgrade ptune (`pip install -U ptune`)."
        )
    values = parse_fields(content, INFO_FIELDS, file)
    sizes = parse_fields(values["backbone"] or {}, BACKBONE_FIELDS, f"{file}, backbone")
    return {
        "labels": labels_from_json(content, str(file), outputs),
        "backbone": {name: size for name, size in sizes.items() if size is not None},
        "reading": _reading(values, file),
        **{name: values[name] for name in ("ptune_version", "text_columns", "mechanism")},
    }


def parse_reading(content: Mapping[str, Any], file: Path | str) -> dict[str, Any]:
    """How texts are read by an export, and the columns that they were trained on.

    Args:
        content: The JSON object of the export. Its other fields are ignored.
        file: Where it comes from, for messages.

    Raises:
        PtuneError: A field holds something that it may not.
    """
    own = {name: content.get(name) for name in READING_FIELDS}
    values = parse_fields(own, READING_FIELDS, file)
    return {"reading": _reading(values, file), "text_columns": values["text_columns"]}


def _reading(values: Mapping[str, Any], file: Path | str) -> Reading:
    try:
        return Reading.from_json(values)
    except PtuneError as error:
        raise PtuneError(f"{file}: {error}") from error


def parse_fields(
    content: Mapping[str, Any], fields: Mapping[str, Field], file: Path | str
) -> dict[str, Any]:
    """The fields of a JSON object, with defaults for absent ones. Warns about unknown fields.

    Raises:
        PtuneError: A field is missing, or holds something that it may not.
    """
    values = {}
    for name, field in fields.items():
        value = content.get(name)
        if value is None:
            if field.required:
                raise PtuneError(f"{file} has no {name}; expected {field.kind.name}.")
            value = field.default
        elif not field.kind.accepts(value):
            raise PtuneError(f"{file}: {name} is {shown(value)}; expected {field.kind.name}.")
        values[name] = value
    unknown = [
        name
        for name, value in content.items()
        if name not in fields
        and value is not None
        and not any(name in f and value == f[name].default for f in METHOD_FIELDS.values())
    ]
    if unknown:
        warnings.warn(
            f"{file} has fields that ptune {__version__} does not know and ignores: "
            f"{', '.join(sorted(unknown)[:20])[:400]}. If predictions differ from those of "
            "the version that wrote it, upgrade ptune (`pip install -U ptune`).",
            stacklevel=2,
        )
    return values
