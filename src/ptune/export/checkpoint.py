"""Export one classifier as an ordinary Transformers checkpoint.

An input prompt consists of rows of the embedding weight. The export appends these rows to the
backbone's own embedding weight, and the tokenizer's post-processor emits their ids where it emits
`[CLS]`. The ids have no name in the vocabulary, so no text can spell them, and truncation counts
them like any other special token.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from tokenizers import Tokenizer, processors
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from ptune.adapters.adapter import read_config
from ptune.backbones.loading import location, quiet_transformers
from ptune.errors import PtuneError
from ptune.export.check import (
    TOLERANCE,
    Check,
    Comparison,
    check_apart,
    check_target,
    require_fast_tokenizer,
    write_export_info,
)
from ptune.files import read_json, replaced, write_json
from ptune.inference.classifier import PromptClassifier, load
from ptune.prompts.layout import TOKENS_BEFORE
from ptune.texts import Text

if TYPE_CHECKING:
    from ptune.model import PromptModel
    from ptune.postprocessing import Postprocessing
    from ptune.prompts.config import PromptEncoderConfig

BATCH_SIZE = 4

ExportDtype = Literal["float32", "bfloat16", "float16"]


def export_transformers(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    dtype: ExportDtype = "float32",
    check_texts: Text | Iterable[Text] | None = None,
    overwrite: bool = False,
    model: str | None = None,
    revision: str | None = None,
    allow_other_backbone: bool = False,
) -> Check:
    """Write a classifier with an input prompt as an ordinary Transformers checkpoint.

    `AutoModelForSequenceClassification`, `AutoTokenizer` and `pipeline("text-classification")`
    open it without ptune and give the same probabilities: calibration becomes part of the head.
    The export is reopened and compared with ptune before it is moved to `folder`.

    Args:
        source: The adapter: a folder, or a repository on the Hub.
        folder: Where to write the checkpoint. An earlier export there is replaced.
        dtype: Number format of the weights. Half precision rounds the logits.
        check_texts: Texts or pairs to compare, in addition to ptune's own.
        overwrite: Replace a checkpoint that ptune did not export.
        model: The backbone, if the name stored in the adapter cannot be found.
        revision: Revision of the adapter on the Hub.
        allow_other_backbone: As for `ptune.load`.

    Raises:
        PtuneError: The classifier does not fit an ordinary checkpoint (a deep prompt, mean
            pooling, a slow tokenizer); the folder holds something else; or the logits differ.
    """
    folder = Path(folder).resolve()
    config = read_config(source, own_backbone=model is not None, revision=revision)
    _check_prompt(config)
    check_target(folder, overwrite=overwrite)
    how: dict[str, Any] = {"model": model, "revision": revision, "dtype": "float32"}
    classifier = load(source, allow_other_backbone=allow_other_backbone, **how)
    check_apart(folder, source, location(classifier.model))
    _check_texts(classifier, source)
    labels, device = classifier.labels, classifier.prompt_model_.device
    tokenizer, ids = _tokenizer(classifier)
    comparison = Comparison(classifier, check_texts, calibrated=True)
    backbone = _backbone(classifier.prompt_model_, ids, classifier.postprocessing_)
    del classifier
    with replaced(folder) as stage, quiet_transformers():
        backbone.save_pretrained(stage)
        _save_tokenizer(tokenizer, stage)
        del backbone
        check = comparison.check(_open(stage, labels, device))
        if not check.difference <= TOLERANCE:
            raise PtuneError(
                f"The logits of the exported checkpoint differ from ptune's by "
                f"{check.difference:.1e} of the largest logit; at most {TOLERANCE:.0e} is allowed. "
                "Nothing was written: this architecture or tokenizer is not supported. Use "
                "`--to onnx`, and report the backbone to ptune's maintainers."
            )
        if dtype != "float32":
            exact = AutoModelForSequenceClassification.from_pretrained(
                stage, dtype=getattr(torch, dtype)
            )
            exact.save_pretrained(stage)
            del exact
            check = comparison.check(_open(stage, labels, device))
            if not np.isfinite(check.difference):
                raise PtuneError(
                    f"This backbone's logits are NaN or infinite in {dtype}. Nothing was written. "
                    "Use --dtype bfloat16 or float32."
                )
        write_export_info(stage, config=config, check=check, to="transformers", dtype=dtype)
        check_target(folder, overwrite=overwrite)  # others may have filled it meanwhile
    return check


def _check_prompt(config: PromptEncoderConfig) -> None:
    """Refuse what an ordinary checkpoint cannot hold, before anything is loaded."""
    if config.depth == "reader":
        raise PtuneError(
            "A reader passes through the backbone after the text, which no classification class of "
            "Transformers does. Train an input prompt (`ptune train --prompt input`), or export "
            "this classifier with `--to onnx`."
        )
    if config.depth == "deep":
        raise PtuneError(
            "A deep prompt adds keys and values to every layer, and an ordinary Transformers "
            "checkpoint has no place for them. Train an input prompt "
            "(`ptune train --prompt input`), or export this classifier with `--to onnx`."
        )
    if config.pooling != "architecture":
        raise PtuneError(
            f"This classifier's head reads a mean (pooling={config.pooling!r}), which no "
            "classification class of Transformers computes. Train it to read what its "
            "architecture reads (`ptune train --prompt input --pooling architecture`), or export "
            "this classifier with `--to onnx`."
        )


def _check_texts(classifier: PromptClassifier, source: str | os.PathLike[str]) -> None:
    """Refuse texts that are read as no ordinary tokenizer does, and labels that were merged."""
    reading = classifier.prompt_model_.state.reading
    if classifier.labels_.outputs is not None:
        raise PtuneError(
            f"Labels of the classifier {source} were merged or dropped, and an ordinary checkpoint "
            "has one output for each label. Export it with `--to onnx`."
        )
    if template := reading.template:
        raise PtuneError(
            f"The classifier {source} puts the words {template.pattern!r} around each text, which "
            "no ordinary checkpoint does. Export it with `--to onnx`."
        )
    if (how_long := reading.long_texts) != "truncate":
        raise PtuneError(
            f"The classifier {source} reads long texts in its own way (long_texts={how_long!r}), "
            "which no ordinary checkpoint does. Export it with `--to onnx`."
        )


def _open(
    folder: Path, labels: list[str], device: torch.device
) -> Callable[[list[Any]], Iterator[np.ndarray]]:
    """The logits of an exported checkpoint, computed with Transformers alone."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).to(device).eval()
    order = [model.config.label2id[label] for label in labels]

    def logits(texts: list[Any]) -> Iterator[np.ndarray]:
        for start in range(0, len(texts), BATCH_SIZE):
            batch = tokenizer(
                texts[start : start + BATCH_SIZE],
                padding=True,
                truncation=True,
                return_tensors="pt",
            ).to(device)
            with torch.inference_mode():
                found = model(**batch).logits[:, order]
            yield from found.float().cpu().numpy()

    return logits


# The tokenizer.


@dataclass(frozen=True)
class _Ids:
    """The new ids of the exported embedding weight.

    Attributes:
        first: Id of the first virtual token; the others follow.
        pad: The new padding id.
        text_pad: The id of the original pad token in a text, if it has moved.
    """

    first: int
    pad: int
    text_pad: int | None = None


def _tokenizer(classifier: PromptClassifier) -> tuple[PreTrainedTokenizerFast, _Ids]:
    """The backbone's tokenizer, extended so that it also emits the prompt."""
    own = require_fast_tokenizer(classifier)
    model = classifier.prompt_model_
    backend = Tokenizer.from_str(own.backend_tokenizer.to_str())
    backend.no_truncation()  # each call decides, not the backbone's file
    backend.no_padding()
    # Models recognise padding by its id, so the id must differ from a pad token within a text.
    prompt = model.prompt_embeddings().cpu().numpy().tobytes()
    name = f"<pad:{hashlib.sha256(prompt).hexdigest()[:16]}>"
    pad, text_pad = model.config.get_text_config().pad_token_id, None
    if _counts_from_pad(model):
        spelled = cast(str, backend.id_to_token(pad))
        backend = _renamed(backend, spelled, name)
        backend.add_special_tokens([spelled])
        text_pad = backend.token_to_id(spelled)
    else:
        backend.add_special_tokens([name])
        pad = backend.token_to_id(name)
    size = max(model.architecture.vocab_rows, max(backend.get_vocab().values()) + 1)
    ids = _Ids(size, pad, text_pad)
    backend.post_processor = _post_processor(backend, model, ids.first)
    named = {n: t for n, t in own.special_tokens_map.items() if isinstance(t, str)}
    longest = model.max_text_tokens(own)
    k = model.prompt_config.num_virtual_tokens
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **{**named, "pad_token": name},
        model_max_length=None if longest is None else longest + k,
        padding_side=model.architecture.padding_side,
        truncation_side=own.truncation_side,
        model_input_names=own.model_input_names,
        pad_token_type_id=own.pad_token_type_id,
        split_special_tokens=own.split_special_tokens,
        clean_up_tokenization_spaces=own.clean_up_tokenization_spaces,
    )
    return made, ids


def _counts_from_pad(model: PromptModel) -> bool:
    """True if positions count from the pad token's id, as in RoBERTa: the id must not change."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return model.architecture.max_positions not in (None, positions)


def _renamed(backend: Tokenizer, token: str, name: str) -> Tokenizer:
    """The tokenizer, with one special token renamed."""
    spec = json.loads(backend.to_str())
    vocabulary = spec["model"]["vocab"]
    if isinstance(vocabulary, dict):
        vocabulary[name] = vocabulary.pop(token)
    else:  # Unigram: pairs of piece and score
        for pair in vocabulary:
            pair[0] = name if pair[0] == token else pair[0]
    for added in spec["added_tokens"]:
        added["content"] = name if added["content"] == token else added["content"]
    return Tokenizer.from_str(json.dumps(spec))


def _post_processor(backend: Tokenizer, model: PromptModel, first: int) -> Any:
    """Adds the tokenizer's special tokens as before, and the prompt in its place."""
    config = model.prompt_config
    ids = list(range(first, first + config.num_virtual_tokens))
    names = [f"<virtual {i}>" for i in range(len(ids))]
    special = {"prompt": {"id": "prompt", "ids": ids, "tokens": names}}
    before = TOKENS_BEFORE[config.placement]
    frames = []
    for encoded in (backend.encode("a text"), backend.encode("a text", "another")):
        frame: list[str] = []
        for token, i, kind, which in zip(
            encoded.tokens, encoded.ids, encoded.type_ids, encoded.sequence_ids, strict=True
        ):
            name = f"token {i}" if which is None else f"${'AB'[which]}"
            if which is None:
                special[name] = {"id": name, "ids": [i], "tokens": [token]}
            if which is None or f"{name}:{kind}" not in frame:
                frame.append(f"{name}:{kind}")
        if before and frame[0].startswith("$"):
            raise PtuneError(
                "The prompt follows the first token, and this backbone's tokenizer adds no token "
                "before a text. The prompt would be inside the text, where no tokenizer can put "
                "it. Train the classifier with `--placement prefix`."
            )
        frames.append([*frame[:before], "prompt:0", *frame[before:]])
    template = processors.TemplateProcessing(
        single=frames[0], pair=frames[1], special_tokens=list(special.values())
    )
    others = _other_processors(json.loads(backend.to_str())["post_processor"])
    return processors.Sequence([*others, template]) if others else template


def _other_processors(post_processor: dict[str, Any] | None) -> list[processors.ByteLevel]:
    """The parts of a post-processor (as in tokenizer.json) that trim offsets."""
    if post_processor is None:
        return []
    if post_processor["type"] == "Sequence":
        return [p for part in post_processor["processors"] for p in _other_processors(part)]
    if post_processor["type"] not in ("ByteLevel", "RobertaProcessing"):
        return []
    options = ("trim_offsets", "add_prefix_space")
    return [processors.ByteLevel(**{name: post_processor[name] for name in options})]


def _save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    tokenizer.save_pretrained(folder)
    # Transformers 4 does not know the name that 5 gives the class; both know this one.
    file = folder / "tokenizer_config.json"
    write_json(file, {**read_json(file), "tokenizer_class": "PreTrainedTokenizerFast"})


# The model.


@torch.no_grad()
def _backbone(model: PromptModel, ids: _Ids, values: Postprocessing) -> PreTrainedModel:
    """The backbone with prompt and head inside. The prompt model cannot be used afterwards."""
    prompt = model.prompt_embeddings()  # [k, token_dim]
    head = {name: p.detach().clone() for name, p in model.head_parameters()}
    _calibrate(head, values)
    backbone = model.unload()
    for name, tensor in head.items():
        backbone.get_parameter(name).copy_(tensor)
    embedding: Any = backbone.get_input_embeddings()
    before = embedding.weight
    size = len(before)
    # Some architectures scale their embeddings; ptune adds prompt embeddings after the scaling.
    at = before.norm(dim=1).argmax()
    scale = (embedding(at) @ before[at]) / (before[at] @ before[at])
    backbone.resize_token_embeddings(ids.first + len(prompt), mean_resizing=False)
    weight = backbone.get_input_embeddings().weight  # [first + k, token_dim]
    weight[size : ids.first] = 0  # padding, which is never read
    weight[ids.first :] = prompt / scale
    if ids.text_pad is not None:
        weight[ids.text_pad] = weight[ids.pad]
    backbone.config.get_text_config().pad_token_id = ids.pad
    return backbone


def _calibrate(head: dict[str, Tensor], values: Postprocessing) -> None:
    """Make calibration part of the layer that gives the logits, which is the head's last."""
    if values.scale is None:
        return
    layer = list(head)[-1].rpartition(".")[0]
    weight, bias = head[f"{layer}.weight"], head.get(f"{layer}.bias")
    scale = torch.from_numpy(values.scale).to(weight)
    weight *= scale[:, None]
    if bias is not None:
        bias *= scale
    if values.shift is None or not values.shift.any():
        return
    if bias is None:
        raise PtuneError(
            "This classifier's calibration shifts its logits, and the head of its backbone has no "
            "bias that could do so. Export it with `--to onnx`, or train it with --no-calibrate."
        )
    bias += torch.from_numpy(values.shift).to(bias)
