"""One classifier as an ONNX graph with the prompt inside, for ONNX Runtime, OpenVINO and others.

The graph takes what the backbone's own tokenizer gives for a text (`input_ids`, `attention_mask`
and, where the family has them, `token_type_ids`, each ``[batch, sequence]``) and gives `logits`,
``[batch, num_labels]``. Any kind of prompt and of pooling goes in.

| file | holds |
| --- | --- |
| `model.onnx` | the graph and its weights (beyond 2 GB they lie in `model.onnx.data`) |
| `tokenizer.json` and what 🤗 Transformers puts beside it | cuts texts and pads batches by itself |
| `ptune_export.json` | labels, problem type, the longest text, what the check found |
"""

from __future__ import annotations

import copy
import importlib.util
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ptune import __version__, compat
from ptune.adapters.adapter import is_hub_id
from ptune.data.dataset import read_table
from ptune.errors import PtuneError, first_line
from ptune.export.checkpoint import LONG_CHECK, MARK_NAME, TOLERANCE, Check, check_target, replaced
from ptune.files import write_json
from ptune.inference.classifier import PromptClassifier, Text, TextClassifier, load
from ptune.inference.engines import MODEL_NAME, load_exported
from ptune.model import PromptModel
from ptune.prompts.mechanisms import Attentions

DATA_NAME = MODEL_NAME + ".data"
# Larger graphs do not fit into one file: Protocol Buffers end at 2 GB.
ONE_FILE = 1_800_000_000


def export_onnx(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    int8: bool = False,
    check_texts: Sequence[Text] = (),
    overwrite: bool = False,
    model: str | None = None,
    revision: str | None = None,
) -> Check:
    """Write a classifier as an ONNX graph in float32, tokenizer and labels beside it.

    Before the files get their names, ONNX Runtime classifies texts with them, alone and in
    batches of any length, and must give PyTorch's logits.

    Args:
        source: The adapter: a folder, or a repository on the Hub.
        folder: Where to. A former export there is replaced.
        int8: Quantise the weights of the matrix products and of the embedding, and their inputs
            as they come. Logits differ then; how much is in the result.
        check_texts: Texts or pairs to try it on, besides ptune's own.
        overwrite: Replace a checkpoint that ptune did not export.
        model: The backbone, where it is not to be had under the name the adapter remembers.
        revision: Of the adapter on the Hub.

    Raises:
        PtuneError: The exporter is not installed; the folder holds something else; the tokenizer
            is a slow one; the exporter does not manage this family, or its graph gives other
            logits. What was in the folder is whole.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise PtuneError(
                f"{package} is not installed, which the export to ONNX needs. Install it with "
                "`pip install 'ptune[onnx]'`."
            )
    folder = Path(folder).resolve()
    check_target(folder, overwrite=overwrite)
    classifier = load(source, model=model, revision=revision, dtype="float32", device="cpu")
    prompt_model = classifier.prompt_model_
    tokenizer = _tokenizer(classifier)
    sets = _texts(prompt_model.text_room(tokenizer), check_texts)
    expected = [list(classifier.logits(texts)) for texts in sets]
    config = prompt_model.prompt_config
    name = config.base_model_name_or_path or ""
    mark: dict[str, Any] = {
        "ptune_version": __version__,
        "to": "onnx",
        "labels": classifier.labels,
        "problem_type": classifier.problem_type_,
        "max_length": prompt_model.text_room(tokenizer),
        "weights": "float32",
        "backbone": name if is_hub_id(name) else Path(name).name,
        "num_virtual_tokens": config.num_virtual_tokens,
    }
    with replaced(folder) as stage:
        tokenizer.save_pretrained(stage)
        write_json(stage / MARK_NAME, mark)
        _write_graph(prompt_model, tokenizer, stage / MODEL_NAME)
        del classifier, prompt_model
        found = _difference(load_exported(stage, "onnx"), sets, expected)
        if not found <= TOLERANCE:
            raise PtuneError(
                f"The exported graph's logits differ from PyTorch's by {found:.1e} of the largest "
                f"logit, and {TOLERANCE:.0e} is allowed, so nothing was written. The exporter "
                "does not know this family well; run the adapter itself."
            )
        if int8:
            _quantize(stage)
            mark["weights"] = "int8"
            write_json(stage / MARK_NAME, mark)
            found = _difference(load_exported(stage, "onnx"), sets, expected)
            if not np.isfinite(found):
                raise PtuneError(
                    "In int8 the logits of this backbone are not numbers, so nothing was written. "
                    "Export it without --int8."
                )
        check = Check(sum(map(len, sets)), found)
        mark["check"] = {"texts": check.texts, "largest_relative_difference": found}
        write_json(stage / MARK_NAME, mark)
    return check


def _tokenizer(classifier: PromptClassifier) -> Any:
    """The backbone's tokenizer, whose file says how texts are cut and batches padded."""
    own: Any = classifier.tokenizer_
    if not own.is_fast:
        raise PtuneError(
            f"The backbone's tokenizer, {type(own).__name__}, is not one of the library tokenizers "
            "(a fast one), so that nothing but Transformers could run the export. Use a backbone "
            "that comes with a tokenizer.json."
        )
    tokenizer = copy.deepcopy(own)
    room = classifier.prompt_model_.text_room(own)
    if room is not None:
        tokenizer.backend_tokenizer.enable_truncation(room, direction=own.truncation_side)
    tokenizer.backend_tokenizer.enable_padding(
        direction=own.padding_side,
        pad_id=own.pad_token_id,
        pad_type_id=own.pad_token_type_id,
        pad_token=own.pad_token,
    )
    return tokenizer


# The graph.


class _Logits(nn.Module):
    """The model as a function from tensors, in the order of `names`, to a tensor."""

    def __init__(self, model: PromptModel, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.model(**dict(zip(self.names, tensors, strict=True))).logits


@torch.no_grad()
def _write_graph(model: PromptModel, tokenizer: Any, file: Path) -> None:
    backbone = model.backbone
    if Attentions.reachable(backbone):
        # Written out, the runtimes know attention when they see it, and fuse it.
        kernel = compat.attention_of(backbone).replace("sdpa", "eager")
        backbone.set_attn_implementation(kernel)
    inputs = dict(
        tokenizer(["a text", "another, and a longer one"], padding=True, return_tensors="pt")
    )
    names, tensors = list(inputs), tuple(inputs.values())
    size = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    with _quiet(), _explained(backbone):
        axes = {
            0: torch.export.Dim("batch"),
            # The graph takes shorter ones, too. But the exporter takes a length of one for a
            # constant, and decoders of encoder-decoders read one token less.
            1: torch.export.Dim("sequence", min=3, max=model.max_text_length),
        }
        program = torch.export.export(
            _Logits(model, names),
            tensors,
            dynamic_shapes=(tuple(axes for _ in names),),
            strict=False,
            # Some families ask about sizes, and the answer is the same for all of them.
            prefer_deferred_runtime_asserts_over_guards=True,
        )
        graph = torch.onnx.export(
            program, tensors, input_names=names, output_names=["logits"], dynamo=True, verbose=False
        )
        assert graph is not None
        graph.save(file, external_data=size > ONE_FILE)


def _quantize(folder: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    former = list(folder.glob(MODEL_NAME + "*"))
    size = sum(file.stat().st_size for file in former)
    with tempfile.TemporaryDirectory(dir=folder) as made, _quiet():
        quantize_dynamic(
            folder / MODEL_NAME,
            Path(made) / MODEL_NAME,
            weight_type=QuantType.QInt8,
            per_channel=True,
            use_external_data_format=size / 4 > ONE_FILE,
        )
        for file in former:
            file.unlink()
        for file in Path(made).iterdir():
            file.replace(folder / file.name)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporters say to their developers."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


@contextmanager
def _explained(backbone: nn.Module) -> Iterator[None]:
    try:
        yield
    except OSError:  # a full disk, say, is the folder's matter
        raise
    except Exception as error:  # The exporter fails in the ways of the code that it reads.
        first: BaseException = error
        while first.__cause__ is not None:
            first = first.__cause__
        reason = first_line(first).split(" For more information")[0].rstrip(".!")
        raise PtuneError(
            f"PyTorch's exporter does not manage {type(backbone).__name__}: {reason}. Nothing was "
            "written; run the adapter itself."
        ) from error


# The check.


def _texts(room: int | None, more: Sequence[Text]) -> list[list[Any]]:
    """Texts of many lengths, and pairs."""
    mails = read_table(Path(__file__).parents[1] / "demo" / "test.csv")["text"]
    texts: list[Any] = ["?", *mails[:24], " ".join(mails[24:28])]
    pairs: list[Any] = list(zip(mails[28:36], mails[36:44], strict=True))
    if room is not None and room <= LONG_CHECK:
        texts.append("very long " * room)
    texts += [text for text in more if isinstance(text, str)]
    pairs += [text for text in more if not isinstance(text, str)]
    return [texts, pairs]


def _difference(
    exported: TextClassifier, sets: list[list[Any]], expected: list[list[np.ndarray]]
) -> float:
    """How far the exported classifier is from PyTorch, on texts alone and in batches."""
    largest = max(float(np.abs(logits).max()) for logits in expected)
    apart = 0.0
    for texts, wanted in zip(sets, expected, strict=True):
        together = list(exported.logits(texts))
        alone = [next(exported.logits([text])) for text in texts[:4]]
        for found in (together, alone):
            difference = np.abs(np.asarray(found) - np.asarray(wanted[: len(found)])).max()
            apart = max(apart, float(difference)) if np.isfinite(difference) else np.inf
    return apart / largest
