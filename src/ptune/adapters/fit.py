"""Whether an adapter belongs to a backbone."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ptune import compat
from ptune.adapters.adapter import Adapter
from ptune.backbones.architectures import Architecture
from ptune.backbones.fingerprint import compare
from ptune.errors import PtuneError
from ptune.prompts.config import PromptEncoderConfig
from ptune.prompts.encoder import build_prompt_encoder
from ptune.prompts.host import Host


def check_backbone(
    adapter: Adapter,
    own: Architecture,
    backbone: PreTrainedModel,
    *,
    allow_other_backbone: bool = False,
) -> None:
    """Check that an adapter belongs to a backbone, by sizes and sampled weights.

    A quantised backbone is compared by commit and name. If the adapter records neither weights nor
    a commit, a warning says if the name differs.

    Args:
        adapter: The adapter.
        own: The backbone's architecture.
        backbone: The backbone.
        allow_other_backbone: Accept other weights, but no other sizes.

    Raises:
        PtuneError: The sizes or the weights differ.
    """
    trained_on = adapter.config.base_model_name_or_path or "another model"
    name = backbone.name_or_path or own.name
    differing = [
        f"{key} {value} instead of {adapter.backbone[key]}"
        for key, value in own.sizes.items()
        if key in adapter.backbone and adapter.backbone[key] != value
    ]
    width = adapter.config.token_dim
    if adapter.config.depth == "input":
        width = adapter.prompt_embeddings.shape[1]
    if width not in (None, own.token_dim):
        differing.append(f"token embeddings {own.token_dim} wide instead of {width}")
    if differing:
        raise PtuneError(
            f"The adapter {adapter.source} was trained on {trained_on}; the backbone {name} has "
            f"{', '.join(differing)}. Load {trained_on}."
        )
    if allow_other_backbone:
        return
    both_named = backbone.name_or_path and adapter.config.base_model_name_or_path
    renamed = both_named and Path(name).name.lower() != Path(trained_on).name.lower()
    weights, commit = adapter.backbone.get("weights"), adapter.backbone.get("commit")
    difference = compare(weights or {}, backbone, own.head_names)
    if difference is None and weights is not None:  # quantised, now or when it was trained
        now = compat.commit_of(backbone)
        if commit and now:
            difference = f"it is at the commit {now} instead of {commit}" if commit != now else ""
        elif renamed:
            difference = "neither weights nor commits can be compared"
    if difference:
        at = f" at the commit {commit}" if commit else ""
        raise PtuneError(
            f"The adapter {adapter.source} was trained on {trained_on}{at}; the backbone {name} "
            f"has the same sizes, but other weights ({difference}). Load {trained_on}{at}. To use "
            "this backbone nevertheless, set allow_other_backbone=True (--allow-other-backbone)."
        )
    if difference is None and renamed:
        warnings.warn(
            f"The adapter {adapter.source} was trained on {trained_on}; the backbone is called "
            f"{name}. Their sizes agree, but with other weights the predictions are meaningless.",
            stacklevel=4,
        )


def check_head(adapter: Adapter, shapes: Mapping[str, Sequence[int]], architecture: str) -> None:
    """Check that an adapter's head fits a backbone.

    Args:
        adapter: The adapter.
        shapes: Shapes of the head's parameters, by their names in the backbone.
        architecture: The name of the backbone's architecture, for messages.

    Raises:
        PtuneError: A parameter is unknown, or has another shape.
    """
    if unknown := sorted(adapter.head.keys() - shapes.keys()):
        raise PtuneError(
            f"The adapter {adapter.source} has the head parameters {', '.join(unknown)}, which "
            f"are not in the head of {architecture}: it belongs to another backbone."
        )
    for name, tensor in adapter.head.items():
        found, expected = list(tensor.shape), list(shapes[name])
        if found == expected:
            continue
        advice = "It belongs to another backbone."
        if found[1:] == expected[1:]:
            advice = (
                "If only the number of labels differs, load the backbone with "
                f"num_labels={found[0]}; `ptune.load` does so."
            )
        raise PtuneError(
            f"{name} has the shape {found} in the adapter {adapter.source} and {expected} in the "
            f"backbone. {advice}"
        )


def check_encoder(
    adapter: Adapter, state: Mapping[str, Tensor], config: PromptEncoderConfig, name: str
) -> None:
    """Refuse a prompt encoder that is not the configured one, before memory is taken for it.

    Raises:
        PtuneError: As for `check_trained_state`.
    """
    with torch.device("meta"):
        encoder = build_prompt_encoder(config, adapter.prompt_embeddings.shape[1])
    own = {n: p for n, p in encoder.named_parameters(f"prompt_encoders.{name}") if p.numel()}
    saved = {n: tensor for n, tensor in state.items() if n.startswith("prompt_encoders.")}
    check_trained_state(adapter, saved, own)


def check_trained_state(
    adapter: Adapter, state: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> None:
    """Refuse tensors to resume from that are not those of the prompt encoder and the head.

    Args:
        adapter: For messages.
        state: What its file holds.
        own: The model's.

    Raises:
        PtuneError: A tensor is unknown or missing, or has another shape.
    """
    for name in sorted(state.keys() | own.keys()):
        found, expected = (list(t[name].shape) if name in t else None for t in (state, own))
        if found != expected:
            has = "is missing" if found is None else f"has the shape {found}"
            raise PtuneError(
                f"{adapter.trained_state}: {name} {has}; expected "
                f"{expected or 'no tensor of that name'}. The file is damaged or belongs to "
                "another adapter."
            )


def check_fits(adapter: Adapter, host: Host, *, allow_other_backbone: bool = False) -> None:
    """Check that another adapter can be added to a hosted backbone.

    Raises:
        PtuneError: It belongs to another backbone, or its head is incomplete.
    """
    own, allow = host.architecture, allow_other_backbone
    check_backbone(adapter, own, host.backbone, allow_other_backbone=allow)
    head, labels = host.heads.original.parameters, len(host.heads.original.labels["id2label"])
    if missing := sorted(head.keys() - adapter.head.keys()):
        raise PtuneError(
            f"The adapter {adapter.source} does not contain {', '.join(missing)}, which "
            f"{own.name} needs. Train and save the adapter with ptune."
        )
    shapes = {name: list(parameter.shape) for name, parameter in head.items()}
    if (reads := host.heads.reads) is not None:
        shapes[reads][1] *= host.means_read(adapter.config)
    for shape in shapes.values():
        if shape[0] == labels:  # the layer with one row for each label
            shape[0] = len(adapter.labels.output_names)
    check_head(adapter, shapes, own.name)
