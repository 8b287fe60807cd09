"""One classifier as a checkpoint that whoever does not have ptune can open.

An input prompt is rows of the token-embedding table, so the result is an ordinary Transformers
checkpoint: the rows are appended to the real table, and the tokenizer's post-processor emits their
ids where it emits `[CLS]`. It knows them by number only. They have no name in the vocabulary, so
no text can spell them, and truncation counts them as it counts every special token.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer, processors
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from ptune import __version__
from ptune.adapters.adapter import is_hub_id, read_config
from ptune.backbones.loading import location, quiet_transformers, weight_of
from ptune.errors import PtuneError
from ptune.files import open_up, read_json, write_json
from ptune.inference.classifier import PromptClassifier, Text, load
from ptune.prompts.config import CONFIG_NAME
from ptune.prompts.layout import TOKENS_BEFORE

if TYPE_CHECKING:
    from ptune.model import PromptModel
    from ptune.prompts.config import PromptEncoderConfig

MARK_NAME = "ptune_export.json"
# The largest difference from ptune's logits, in units of the largest logit, in float32.
TOLERANCE = 1e-4
# Where texts may be longer than this, no check fills them to the brim.
LONG_CHECK = 2048
BATCH = 4

ExportDtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Check:
    """What an export did on the texts of the check.

    Attributes:
        texts: How many there were.
        difference: The largest difference from ptune's logits, in units of the largest logit.
    """

    texts: int
    difference: float


def export_transformers(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    dtype: ExportDtype = "float32",
    check_texts: Sequence[Text] = (),
    overwrite: bool = False,
    model: str | None = None,
    revision: str | None = None,
) -> Check:
    """Write a classifier with an input prompt as an ordinary Transformers checkpoint.

    `AutoModelForSequenceClassification`, `AutoTokenizer` and `pipeline("text-classification")`
    open it without ptune, and give ptune's own logits. Whether they do is tried before the folder
    gets its name.

    Args:
        source: The adapter: a folder, or a repository on the Hub.
        folder: Where to. A former export there is replaced.
        dtype: Of the weights. In half precision logits differ by its rounding.
        check_texts: Texts or pairs to try it on, besides ptune's own.
        overwrite: Replace a checkpoint that ptune did not export.
        model: The backbone, where it is not to be had under the name the adapter remembers.
        revision: Of the adapter on the Hub.

    Raises:
        PtuneError: It is not an ordinary checkpoint's business (a deep prompt, a mean over the
            text, a slow tokenizer); the folder holds something else; or the logits differ.
    """
    folder = Path(folder).resolve()
    config = read_config(source, own_backbone=model is not None, revision=revision)
    _check_prompt(config)
    check_target(folder, overwrite=overwrite)
    classifier = load(source, model=model, revision=revision, dtype="float32")
    for kept in (os.fspath(source), location(classifier.model)):
        if Path(kept).resolve().is_relative_to(folder):
            raise PtuneError(f"{folder} holds {kept}, which is needed. Name another folder.")
    prompt_model = classifier.prompt_model_
    labels, device = classifier.labels, prompt_model.device
    tokenizer, layout = _tokenizer(classifier)
    texts = _texts(classifier, check_texts)
    expected = _in_kinds(texts, classifier.logits)
    backbone = _backbone(prompt_model, layout)
    del classifier, prompt_model
    with replaced(folder) as stage, quiet_transformers():
        backbone.save_pretrained(stage)
        _save_tokenizer(tokenizer, stage)
        del backbone
        found = _difference(stage, texts, expected, labels, device)
        if not found <= TOLERANCE:
            raise PtuneError(
                f"The exported checkpoint's logits differ from ptune's by {found:.1e} of the "
                f"largest logit, and {TOLERANCE:.0e} is allowed, so nothing was written. This "
                "family or tokenizer does something that an export does not know yet; use "
                "`--to onnx`, or tell ptune's maintainers which backbone it is."
            )
        if dtype != "float32":
            exact = AutoModelForSequenceClassification.from_pretrained(
                stage, dtype=getattr(torch, dtype)
            )
            exact.save_pretrained(stage)
            del exact
            found = _difference(stage, texts, expected, labels, device)
            if not np.isfinite(found):
                raise PtuneError(
                    f"The logits of this backbone are not numbers in {dtype}, so nothing was "
                    "written. Use --dtype bfloat16 or float32."
                )
        name = config.base_model_name_or_path or ""
        mark = {
            "ptune_version": __version__,
            "to": "transformers",
            "backbone": name if is_hub_id(name) else Path(name).name,
            "num_virtual_tokens": config.num_virtual_tokens,
            "dtype": dtype,
            "check": {"texts": len(texts), "largest_relative_difference": found},
        }
        write_json(stage / MARK_NAME, mark)
    return Check(len(texts), found)


def _check_prompt(config: PromptEncoderConfig) -> None:
    """Refuse, before anything is loaded, what no ordinary checkpoint can hold."""
    if config.depth == "deep":
        raise PtuneError(
            "A deep prompt is keys and values inside every layer, for which an ordinary "
            "Transformers checkpoint has no place. Train an input prompt "
            "(`ptune train --prompt input`), or export this one with `--to onnx`."
        )
    if config.pooling != "family":
        raise PtuneError(
            f"This classifier's head reads a mean (pooling={config.pooling!r}), over its prompt or "
            "over the text alone, and no classification class of Transformers reads that. Train it "
            "to read what its family reads (`ptune train --prompt input --pooling family`), or "
            "export this one with `--to onnx`."
        )


# The tokenizer.


@dataclass(frozen=True)
class _Rows:
    """Which rows of the exported table are new.

    Attributes:
        first: The first virtual token's; the others follow.
        pad: What padding is from now on.
        text_pad: What the former pad token is that a text spells, where that has moved.
    """

    first: int
    pad: int
    text_pad: int | None = None


def _tokenizer(classifier: PromptClassifier) -> tuple[PreTrainedTokenizerFast, _Rows]:
    """The backbone's tokenizer, which now also emits the prompt."""
    own: Any = classifier.tokenizer_
    model = classifier.prompt_model_
    if not own.is_fast:
        raise PtuneError(
            f"The backbone's tokenizer, {type(own).__name__}, is not one of the library "
            "tokenizers (a fast one), so that nothing but ptune could put a prompt into a text. "
            "Use a backbone that comes with a tokenizer.json."
        )
    backend = Tokenizer.from_str(own.backend_tokenizer.to_str())
    backend.no_truncation()  # what a call asks for, and not what the backbone's file says
    backend.no_padding()
    # Models tell padding by its id, so it must differ from a pad token that a text spells.
    name = f"<pad:{hashlib.sha256(model.prompt_rows().cpu().numpy().tobytes()).hexdigest()[:16]}>"
    pad, text_pad = model.config.get_text_config().pad_token_id, None
    if _counts_from_pad(model):
        spelled = cast(str, backend.id_to_token(pad))
        backend = _renamed(backend, spelled, name)
        backend.add_special_tokens([spelled])
        text_pad = backend.token_to_id(spelled)
    else:
        backend.add_special_tokens([name])
        pad = backend.token_to_id(name)
    ids = backend.get_vocab().values()
    rows = _Rows(max(len(weight_of(model.get_input_embeddings())), max(ids) + 1), pad, text_pad)
    backend.post_processor = _post_processor(backend, model, rows.first)
    named = {n: t for n, t in own.special_tokens_map.items() if isinstance(t, str)}
    room = model.text_room(own)
    k = model.prompt_config.num_virtual_tokens
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **{**named, "pad_token": name},
        model_max_length=None if room is None else room + k,
        padding_side=model.padding_side,
        truncation_side=own.truncation_side,
        model_input_names=own.model_input_names,
        pad_token_type_id=own.pad_token_type_id,
        split_special_tokens=own.split_special_tokens,
        clean_up_tokenization_spaces=own.clean_up_tokenization_spaces,
    )
    return made, rows


def _counts_from_pad(model: PromptModel) -> bool:
    """Whether positions count from the pad token's id, as in RoBERTa: it must stay what it is."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return model.max_positions not in (None, positions)


def _renamed(backend: Tokenizer, token: str, name: str) -> Tokenizer:
    """The tokenizer with another name for one special token."""
    spec = json.loads(backend.to_str())
    vocabulary = spec["model"]["vocab"]
    if isinstance(vocabulary, dict):
        vocabulary[name] = vocabulary.pop(token)
    else:  # Unigram's pairs of piece and score
        for pair in vocabulary:
            pair[0] = name if pair[0] == token else pair[0]
    for added in spec["added_tokens"]:
        added["content"] = name if added["content"] == token else added["content"]
    return Tokenizer.from_str(json.dumps(spec))


def _post_processor(backend: Tokenizer, model: PromptModel, first: int) -> Any:
    """What frames a text as the backbone's tokenizer does, with the prompt in its place."""
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
                "The prompt stands behind the first token, and this backbone's tokenizer puts none "
                "before a text: the prompt would stand inside the text, where no tokenizer can "
                "put it. Train it with `--placement prefix`."
            )
        frames.append([*frame[:before], "prompt:0", *frame[before:]])
    template = processors.TemplateProcessing(
        single=frames[0], pair=frames[1], special_tokens=list(special.values())
    )
    others = _besides_framing(json.loads(backend.to_str())["post_processor"])
    return processors.Sequence([*others, template]) if others else template


def _besides_framing(post_processor: dict[str, Any] | None) -> list[processors.ByteLevel]:
    """What a post-processor, as in tokenizer.json, does besides framing: it trims offsets."""
    if post_processor is None:
        return []
    if post_processor["type"] == "Sequence":
        return [p for part in post_processor["processors"] for p in _besides_framing(part)]
    if post_processor["type"] not in ("ByteLevel", "RobertaProcessing"):
        return []
    options = ("trim_offsets", "add_prefix_space")
    return [processors.ByteLevel(**{name: post_processor[name] for name in options})]


def _save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    tokenizer.save_pretrained(folder)
    # Transformers 5 calls the class by a name that 4 does not know; both know this one.
    file = folder / "tokenizer_config.json"
    write_json(file, {**read_json(file), "tokenizer_class": "PreTrainedTokenizerFast"})


# The model.


@torch.no_grad()
def _backbone(model: PromptModel, rows: _Rows) -> PreTrainedModel:
    """The backbone with prompt and head in it; the prompt model is of no use afterwards."""
    prompt = model.prompt_rows()  # [k, token_dim]
    head = {name: p.detach().clone() for name, p in model.head_parameters()}
    backbone = model.unload()
    for name, tensor in head.items():
        backbone.get_parameter(name).copy_(tensor)
    table: Any = backbone.get_input_embeddings()
    before = weight_of(table)
    size = len(before)
    # Some families' tables multiply what they hold; ptune's rows come in behind that.
    at = before.norm(dim=1).argmax()
    scale = (table(at) @ before[at]) / (before[at] @ before[at])
    backbone.resize_token_embeddings(rows.first + len(prompt), mean_resizing=False)
    weight = weight_of(backbone.get_input_embeddings())  # [first + k, token_dim]
    weight[size : rows.first] = 0  # padding's, which is never looked at
    weight[rows.first :] = prompt / scale
    if rows.text_pad is not None:
        weight[rows.text_pad] = weight[rows.pad]
    backbone.config.get_text_config().pad_token_id = rows.pad
    return backbone


# The check.


def _texts(classifier: PromptClassifier, more: Sequence[Text]) -> list[Text]:
    model = classifier.prompt_model_
    spelled = f"This spells <virtual 0>, {classifier.tokenizer_.pad_token} and prompt:0 in a text."
    texts: list[Text] = [
        "The parcel never came, and nobody answers the phone.",
        "?",
        "Naïve café: 日本語, emoji 🙂, and\ttabs",
        spelled,
        ("It rains in the mountains today.", "Rain falls on the hills."),
        (spelled, "no"),
    ]
    room = model.text_room(classifier.tokenizer_)
    if room is not None and room <= LONG_CHECK:
        texts += ["very long " * room, ("long too " * room, "short")]
    return [*texts, *more]


def _in_kinds(texts: list[Text], logits: Callable[[list[Any]], Iterable[Any]]) -> np.ndarray:
    """Logits ``[n, num_labels]`` of single texts and of pairs, which no batch mixes."""
    found: dict[int, Any] = {}
    for pairs in (False, True):
        chosen = [i for i, text in enumerate(texts) if isinstance(text, str) != pairs]
        found |= zip(chosen, logits([texts[i] for i in chosen]), strict=True)
    return np.asarray([found[i] for i in range(len(texts))], dtype=np.float64)


@torch.inference_mode()
def _difference(
    folder: Path,
    texts: list[Text],
    expected: np.ndarray,
    labels: list[str],
    device: torch.device,
) -> float:
    """How far a checkpoint, opened as anybody opens it, is from ptune."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).to(device).eval()
    order = [model.config.label2id[label] for label in labels]

    def logits(chosen: list[Any]) -> Iterator[Any]:
        for start in range(0, len(chosen), BATCH):
            batch = tokenizer(
                chosen[start : start + BATCH], padding=True, truncation=True, return_tensors="pt"
            )
            yield from model(**batch.to(device)).logits[:, order].float().cpu().numpy()

    return float(np.abs(_in_kinds(texts, logits) - expected).max() / np.abs(expected).max())


# The folder.


def check_target(folder: Path, *, overwrite: bool) -> None:
    """Refuse, before any work is done, to replace what ptune did not export.

    Raises:
        PtuneError: It is a file; or holds something else, and no checkpoint or not `overwrite`.
    """
    if folder.exists() and not folder.is_dir():
        raise PtuneError(f"{folder} is a file; wanted is a folder for the export.")
    if not folder.is_dir() or not any(folder.iterdir()) or (folder / MARK_NAME).is_file():
        return
    if not (folder / "config.json").is_file():
        what = "an adapter" if (folder / CONFIG_NAME).is_file() else "something that is no export"
        raise PtuneError(f"The folder {folder} holds {what}, and is left alone. Name another one.")
    if not overwrite:
        raise PtuneError(
            f"The folder {folder} holds a checkpoint that ptune did not export. Name another one, "
            "or replace it (--overwrite)."
        )


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """A folder to write into that takes the place of `folder` once it is complete.

    Raises:
        PtuneError: It cannot be written; what was there before is whole.
    """
    stage = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        made, former = stage / "new", stage / "former"
        made.mkdir()
        yield made
        open_up(made)
        if folder.exists():
            folder.replace(former)
        try:
            made.replace(folder)
        except BaseException:
            if former.exists():
                former.replace(folder)
            raise
    except (OSError, SafetensorError) as error:
        raise PtuneError(
            f"Writing to {folder} failed: {getattr(error, 'strerror', None) or error}. What was "
            "there before is unchanged. Make room or name another folder."
        ) from error
    finally:
        if stage is not None:
            shutil.rmtree(stage, ignore_errors=True)
