"""`Adapter`: a trained prompt and head, and the files they are saved in.

| file | contents | read by |
| --- | --- | --- |
| `adapter_config.json` | the prompt's configuration | ptune and 🤗 PEFT |
| `adapter_model.safetensors` | `prompt_embeddings` [k, width] and `base_model.<head …>` | both |
| `ptune.json` | labels, problem type, mechanism, the backbone's sizes | ptune |
| `ptune_quality.safetensors` | calibration, thresholds: `Postprocessing` | ptune |
| `model.safetensors` | prompt encoder and head, to resume training | `Trainer`, ptune |
| `prompt_encoder.safetensors` | the same, in folders that `ptune.peft` writes | ptune |

`adapter_config.json` and `adapter_model.safetensors` are PEFT's format. It stores only the *output*
of the prompt encoder, and PEFT resumes training with that as the encoder's *input*.
`model.safetensors` keeps the encoder itself, under the name that `Trainer` looks for.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors.torch import save_file

from ptune import __version__
from ptune.adapters import schema
from ptune.adapters.download import AdapterFiles, is_hub_id
from ptune.adapters.quality import QUALITY_NAME, read_quality, save_quality
from ptune.adapters.schema import CONFIG_NAME, INFO_NAME, Mechanism
from ptune.adapters.weights import (
    EMBEDDINGS_KEY,
    HEAD_PREFIX,
    check_labels,
    is_trained_state,
    read_tensors,
    split,
)
from ptune.errors import PtuneError
from ptune.files import (
    METRICS_NAME,
    folder_of,
    read_json,
    read_metrics,
    remove_abandoned,
    staged,
    write_json,
)
from ptune.labels import Labels, labels_to_json
from ptune.postprocessing import RAW, Postprocessing
from ptune.prompts.config import PromptEncoderConfig
from ptune.texts import Reading

WEIGHTS_NAME = "adapter_model.safetensors"
OLD_WEIGHTS_NAME = "adapter_model.bin"
TRAINED_STATE_NAME = "model.safetensors"
# The same content under another name, where a folder must look as PEFT leaves it.
ENCODER_NAME = "prompt_encoder.safetensors"
# The files that decide what an adapter predicts.
PREDICTING = (CONFIG_NAME, WEIGHTS_NAME, OLD_WEIGHTS_NAME, INFO_NAME, QUALITY_NAME)
# In model cards that a publication replaces by a fuller one.
CARD_MARK = "<!-- This card was written automatically. -->"


@dataclass(frozen=True, eq=False)
class Adapter:
    """A trained prompt and head: a value with everything that an adapter's files contain.

    Attributes:
        config: The prompt's configuration.
        prompt_embeddings: The prompt, ``[rows, width]``, in the precision of its
            file: float32 if ptune wrote it. An input prompt is as wide as the backbone's token
            embedding.
        head: The head's parameters, in the same precision, under their names in the backbone.
        labels: The labels and the problem type. If PEFT wrote the adapter: numbered labels.
        mechanism: How the prompt enters the backbone: ``"input"`` (as tokens), ``"prefix"``
            (key-values in every layer), ``"layers"`` (embeddings in every layer) or ``"reader"``
            (after the text, which does not attend to it). ``None``: not recorded
            (by PEFT or the first version of ptune); the width of the prompt tells it, together
            with the backbone.
        reading: How its texts are read, with the longest text that the user allowed.
        text_columns: The columns with the texts; ``None``: not trained on a table.
        backbone: Sizes, sampled weights and the commit by which the backbone is recognised; empty
            if PEFT wrote the adapter.
        postprocessing: Calibration, thresholds and the like; empty if nothing was fitted.
        source: The folder or Hub id that the adapter came from, for messages.
        ptune_version: The version of ptune that wrote it; ``None``: written by PEFT.
        trained_state: The file that resuming needs, `model.safetensors`, if there is one.
    """

    config: PromptEncoderConfig
    prompt_embeddings: torch.Tensor
    head: dict[str, torch.Tensor]
    labels: Labels
    mechanism: Mechanism | None = None
    reading: Reading = field(default_factory=Reading)
    text_columns: list[str] | None = None
    backbone: dict[str, Any] = field(default_factory=dict)
    postprocessing: Postprocessing = RAW
    source: str = "the adapter"
    ptune_version: str | None = __version__
    trained_state: Path | None = None

    @classmethod
    def read(
        cls,
        source: str | os.PathLike[str] | AdapterFiles,
        *,
        own_backbone: bool = False,
        **where: Any,
    ) -> Adapter:
        """Read an adapter's files, written by ptune or by 🤗 PEFT.

        Args:
            source: A folder, a repository on the Hub, or the files themselves.
            own_backbone: As for `read_config`.
            **where: As for `AdapterFiles`.

        Raises:
            PtuneError: There is no adapter, or one of its files is damaged; the message names it.
        """
        files = source if isinstance(source, AdapterFiles) else AdapterFiles(source, **where)
        config = read_config(files, own_backbone=own_backbone)
        embeddings, head = _read_weights(files, config)
        info = _read_info(files, config, head)
        return cls(
            config=config,
            prompt_embeddings=embeddings,
            head=head,
            source=files.source,
            trained_state=files.find(ENCODER_NAME) or files.find(TRAINED_STATE_NAME),
            **info,
        )

    def save(
        self,
        folder: str | os.PathLike[str],
        trained_state: Mapping[str, torch.Tensor] | None = None,
        *,
        state_name: str = TRAINED_STATE_NAME,
    ) -> None:
        """Write the adapter's files.

        Args:
            folder: Created if it does not exist. Files with other names in it stay.
            trained_state: What resuming needs: prompt encoder and head, under their names in the
                model. Inference does without. That of another adapter in the folder is removed.
            state_name: The file for it, `TRAINED_STATE_NAME` or `ENCODER_NAME`.

        Raises:
            PtuneError: The folder cannot be written, or has a model where the state would be. What
                was there before is unchanged.
        """
        folder = folder_of(folder)
        before = folder / state_name
        if trained_state and before.is_file() and not is_trained_state(before):
            raise PtuneError(
                f"{folder} holds a model ({state_name}), which would be replaced. Name another "
                "folder."
            )
        with staged(folder) as stage:
            config = replace(self.config, inference_mode=True)
            text = schema.config_text(
                schema.config_content(config, self.prompt_embeddings.shape[1])
            )
            (stage / CONFIG_NAME).write_text(text, encoding="utf-8")
            info = {
                "format": schema.FORMAT,
                "requires": self.requires,
                "ptune_version": __version__,
                **labels_to_json(self.labels),
                **self.reading.to_json(),
                **({"text_columns": self.text_columns} if self.text_columns else {}),
                "mechanism": self.mechanism,
                "backbone": self.backbone,
                **save_quality(self.postprocessing, stage),
            }
            write_json(stage / INFO_NAME, info)
            save_file(self.tensors(), stage / WEIGHTS_NAME, metadata={"format": "pt"})
            if trained_state:
                state = {n: t.cpu().contiguous() for n, t in trained_state.items()}
                save_file(state, stage / state_name, metadata={"format": "pt"})
        remove_abandoned(folder)
        # What would now belong to an older adapter is removed, and somebody's model is not.
        own = before if trained_state else self.trained_state
        for file in (folder / ENCODER_NAME, folder / TRAINED_STATE_NAME):
            is_own = own is not None and file.resolve() == own.resolve()
            if not is_own and is_trained_state(file):
                file.unlink()
        if not self.postprocessing.tensors:
            (folder / QUALITY_NAME).unlink(missing_ok=True)

    @property
    def requires(self) -> list[str]:
        """What a reader must know about, to give the same answers."""
        features = {
            schema.TEMPLATE: self.reading.template is not None,
            schema.NO_PROMPT: self.config.depth == "none",
            schema.READER: self.config.depth == "reader",
            schema.READER_KEY_RANK: self.config.reader_key_rank > 0,
            schema.MASK: self.reading.at_mask,
            schema.LONG_TEXTS: self.reading.long_texts != "truncate",
            schema.WINDOW_WEIGHTS: bool(self.reading.window_weights),
            schema.LABEL_OUTPUTS: self.labels.outputs is not None,
        }
        return [name for name, used in features.items() if used]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Prompt and head under their names in `adapter_model.safetensors`."""
        named = {HEAD_PREFIX + name: tensor for name, tensor in self.head.items()}
        if len(self.prompt_embeddings):
            named[EMBEDDINGS_KEY] = self.prompt_embeddings
        return {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}

    def read_trained_state(self) -> dict[str, torch.Tensor] | None:
        """Prompt encoder and head, under their names in the model; ``None`` if not saved.

        Raises:
            PtuneError: The file is damaged.
        """
        if self.trained_state is None:
            return None
        return read_tensors(self.trained_state, is_adapter=False)


def adapter_of(source: Any, **where: Any) -> Adapter:
    """An adapter, or what `Adapter.read` finds under a name."""
    if isinstance(source, Adapter):
        return source
    return Adapter.read(source, own_backbone=True, **where)


def read_config(
    source: str | os.PathLike[str] | AdapterFiles, *, own_backbone: bool = False, **where: Any
) -> PromptEncoderConfig:
    """Read `adapter_config.json`.

    Args:
        source: As for `Adapter.read`.
        own_backbone: The caller brings the backbone. The one that the file names is not loaded,
            and its name is not checked.
        **where: As for `AdapterFiles`.

    Raises:
        PtuneError: There is none, it is damaged, or it describes another method; or it names code,
            or a path outside its own folder.
    """
    files = source if isinstance(source, AdapterFiles) else AdapterFiles(source, **where)
    config = schema.parse_config(read_json(files.config_file, schema.MAX_JSON), files.config_file)
    _check_names(config, files, own_backbone=own_backbone)
    return config


def _check_names(config: PromptEncoderConfig, files: AdapterFiles, *, own_backbone: bool) -> None:
    """Refuse code, and anything outside the place where the adapter is."""
    file = f"{files.source}: {CONFIG_NAME}"
    if config.auto_mapping is not None:
        raise PtuneError(
            f"{file} names code to import (auto_mapping). ptune does not run code from adapters; "
            "if you trust it, remove the field from the file."
        )
    if config.revision is not None and not _is_inside(config.revision):
        raise PtuneError(
            f"{file} has the revision {schema.shown(config.revision)}. Expected a branch, a tag or "
            "a commit of the backbone."
        )
    if own_backbone:
        return
    _check_place(file, "base_model_name_or_path", config.base_model_name_or_path, files)
    _check_place(file, "tokenizer_name_or_path", config.tokenizer_name_or_path, files)


def _check_place(file: str, field: str, name: str | None, files: AdapterFiles) -> None:
    """Refuse the name of a backbone or tokenizer that is a path ptune does not follow."""
    if name is None:
        return
    yours = "If you have that backbone, name it yourself (`--model`, or model= in Python)."
    if field == "tokenizer_name_or_path":
        yours = "Remove the field from the file: only a new prompt needs a tokenizer."
    # A folder of this machine is only for adapters that are on it too.
    path = Path(name)
    is_folder = files.is_local and path.is_absolute() and ".." not in path.parts
    if not is_folder and not is_hub_id(name):
        expected = (
            "an absolute folder or an id on the Hub" if files.is_local else "an id on the Hub"
        )
        raise PtuneError(f"{file}: {field} is {schema.shown(name)}; expected {expected}. {yours}")
    if not is_folder and path.exists():
        raise PtuneError(
            f"{file}: {field} is {name!r}, an id on the Hub, but there is a file or folder of that "
            f"name here, which would be read instead. Work in another folder. {yours}"
        )


def _is_inside(path: str) -> bool:
    """True if a path stays below where it starts."""
    parts = PurePosixPath(path.replace("\\", "/")).parts
    return ".." not in parts and path[:1] not in ("/", "~")


def _read_info(
    files: AdapterFiles, config: PromptEncoderConfig, head: Mapping[str, torch.Tensor]
) -> dict[str, Any]:
    """What `ptune.json` says, if it agrees with the other files."""
    found = files.find(INFO_NAME)
    content, file = (read_json(found, schema.MAX_JSON) if found else {}), found or INFO_NAME
    if isinstance(names := content.get("labels"), list):
        check_labels(len(names), file)
    # The last layer of every head in Transformers has one output per label.
    info = schema.parse_info(content, file, len(list(head.values())[-1]) if head else 2)
    count, mechanism = len(info["labels"].output_names), info["mechanism"]
    if head and count not in {len(tensor) for tensor in head.values()}:
        raise PtuneError(
            f"{file} names {count} labels, but no layer of the head has as many outputs. One of "
            "the two files is damaged or belongs to another adapter."
        )
    if mechanism and schema.DEPTH_OF[mechanism] != config.depth:
        raise PtuneError(
            f"{file}: mechanism is {mechanism!r}, but {CONFIG_NAME} has the depth "
            f"{config.depth!r}. One of the two files belongs to another adapter."
        )
    return info | {"postprocessing": read_quality(content, files.find, info["labels"], file)}


def _read_weights(
    files: AdapterFiles, config: PromptEncoderConfig
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Prompt embeddings and head of an adapter."""
    file = files.find(WEIGHTS_NAME) or files.find(OLD_WEIGHTS_NAME)
    if file is None:
        raise PtuneError(
            f"{files.source} is incomplete: it has {CONFIG_NAME} but no {WEIGHTS_NAME}. Save or "
            "download it again."
        )
    tensors = dict(read_tensors(file))
    if config.depth == "none":
        tensors.setdefault(EMBEDDINGS_KEY, torch.empty(0, config.token_dim or 0))
    embeddings, head = split(tensors, str(file))
    # The width of a deep prompt depends on the backbone.
    width = config.token_dim if config.depth == "input" else None
    shape, length = list(embeddings.shape), config.rows
    if len(shape) != 2 or shape[0] != length or width not in (None, shape[1]):
        raise PtuneError(
            f"{file}: {EMBEDDINGS_KEY!r} has the shape {shape}; expected "
            f"{[length, width or 'width']} from {CONFIG_NAME}. One of the two files is damaged or "
            "belongs to another adapter."
        )
    return embeddings, head


def _check_of(adapter: Adapter) -> str:
    """How another backbone is noticed when the adapter is loaded."""
    if "weights" not in adapter.backbone:
        return "sizes and name only, because the adapter records no weights of its backbone"
    count, commit = len(adapter.backbone["weights"]), adapter.backbone.get("commit")
    by = f"sizes and {count} weights" if count else "sizes, commit and name (quantised)"
    return f"{by}, commit {commit}" if commit else by


def describe(source: str | os.PathLike[str], **where: Any) -> dict[str, Any]:
    """A summary of an adapter, without its backbone: title and text of each line.

    Raises:
        PtuneError: As for `Adapter.read`.
    """
    files = AdapterFiles(source, **where)
    adapter = Adapter.read(files, own_backbone=True)
    config, width = adapter.config, adapter.prompt_embeddings.shape[1]
    reading = adapter.reading
    weights = files.find(WEIGHTS_NAME) or files.find(OLD_WEIGHTS_NAME)
    assert weights is not None
    where_it_is = {
        "none": "only a head",
        "deep": "in every layer",
        "reader": "after the text, which does not attend to it",
        "input": f"placement {config.placement}",
    }[config.depth]
    encoder, head = config.encoder_reparameterization_type, adapter.head.values()
    found = {
        "adapter": adapter.source,
        "backbone": " @ ".join(filter(None, [config.base_model_name_or_path, config.revision])),
        "backbone sizes": ", ".join(
            f"{name.replace('_', ' ')} {adapter.backbone[name]}"
            for name in schema.BACKBONE_SIZES
            if name in adapter.backbone
        ),
        "backbone check": _check_of(adapter),
        "prompt": f"{config.num_virtual_tokens} virtual tokens x {width}, {where_it_is}"
        + (f", rank {config.reader_rank}" if config.reader_rank else "")
        + (f", rank {config.reader_key_rank} on keys" if config.reader_key_rank else "")
        + (f", trained through {encoder}" if encoder != "NONE" else ""),
        "parameters": f"prompt {adapter.prompt_embeddings.numel():,}, "
        f"head {sum(t.numel() for t in head):,}",
        "file size": f"{weights.stat().st_size / 1000:,.1f} kB",
        "labels": ", ".join(adapter.labels.names),
        "problem type": adapter.labels.problem_type,
        "template": reading.template and reading.template.pattern,
        "longest text": f"{limit} tokens" if (limit := reading.max_text_tokens) else None,
        "longer texts": None if reading.long_texts == "truncate" else reading.long_texts,
        "calibration": adapter.postprocessing.calibration,
    }
    if file := files.find(METRICS_NAME):
        scores = read_metrics(file, schema.MAX_JSON)
        try:
            found["trained on"] = f"{scores['task']}, {scores['train_examples']:,} examples"
            found["scores"] = ", ".join(
                f"{name.replace('_', ' ')} {value:.4f}" for name, value in scores["eval"].items()
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PtuneError(
                f"{file} is damaged: expected the fields task, train_examples and eval as "
                "`ptune train` writes them. Remove the file, or save or download it again."
            ) from error
    version = adapter.ptune_version
    found["written by"] = f"ptune {version}" if version else f"peft {config.peft_version}"
    return {title: text for title, text in found.items() if text}
