"""Export one classifier as an ONNX graph, for ONNX Runtime, OpenVINO and other runtimes.

The graph contains the prompt, whatever its mechanism and pooling. It takes what the backbone's own
tokenizer gives for a text (`input_ids`, `attention_mask` and, for some architectures,
`token_type_ids`, each ``[batch, seq]``) and returns `logits` ``[batch, num_labels]``.

| file | contents |
| --- | --- |
| `model.onnx` | the graph and its weights (weights over 2 GB are in `model.onnx.data`) |
| `tokenizer.json` and other files | the tokenizer; it truncates texts and pads batches itself |
| `ptune_export.json` | labels, problem type, longest text, result of the check |
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
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ptune.adapters.quality import save_quality
from ptune.errors import PtuneError, first_line, missing_package
from ptune.export.check import (
    TOLERANCE,
    Check,
    Comparison,
    check_target,
    own_texts,
    replaced,
    require_fast_tokenizer,
    write_export_info,
)
from ptune.files import MODEL_NAME
from ptune.inference.classifier import PromptClassifier, load
from ptune.inference.engines import load_exported
from ptune.model import PromptModel
from ptune.prompts.attention import use_eager_attention
from ptune.texts import Text

# Protocol Buffers cannot exceed 2 GB: the weights of larger graphs go to a second file.
MAX_ONE_FILE = 1_800_000_000


def export_onnx(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    int8: bool = False,
    check_texts: Sequence[Text] = (),
    overwrite: bool = False,
    model: str | None = None,
    revision: str | None = None,
    allow_other_backbone: bool = False,
) -> Check:
    """Write a classifier as an ONNX graph in float32, with its tokenizer and labels.

    Before the export is moved to `folder`, ONNX Runtime classifies texts with it, one by one and
    in batches of mixed lengths, and must reproduce PyTorch's logits.

    Args:
        source: The adapter: a folder, or a repository on the Hub.
        folder: Where to write the export. An earlier export there is replaced.
        int8: Quantise the weights of the embedding and of the matrix products to 8 bits, and their
            inputs while the graph runs. The result reports how much the logits differ.
        check_texts: Texts or pairs to compare, in addition to ptune's own.
        overwrite: Replace a checkpoint that ptune did not export.
        model: The backbone, if the name stored in the adapter cannot be found.
        revision: Revision of the adapter on the Hub.
        allow_other_backbone: As for `ptune.load`.

    Raises:
        PtuneError: The exporter is not installed; the folder holds something else; the tokenizer
            is slow; PyTorch cannot export this architecture, or the graph's logits differ. The
            folder is unchanged.
    """
    require_exporter()
    folder = Path(folder).resolve()
    check_target(folder, overwrite=overwrite)
    how: dict[str, Any] = {"model": model, "revision": revision, "dtype": "float32"}
    how |= {"device": "cpu", "allow_other_backbone": allow_other_backbone}
    return write_onnx(load(source, **how), folder, int8=int8, check_texts=check_texts)


def require_exporter() -> None:
    """Check that the packages that write and check a graph are installed.

    Raises:
        PtuneError: One of them is not.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise missing_package(package, "onnx")


def write_onnx(
    classifier: PromptClassifier,
    folder: Path,
    *,
    int8: bool = False,
    check_texts: Sequence[Text] = (),
) -> Check:
    """Write a classifier, which is in float32 on the CPU, as `export_onnx` does.

    The classifier is changed and cannot be used afterwards.

    Raises:
        PtuneError: As for `export_onnx`.
    """
    prompt_model = classifier.prompt_model_
    tokenizer = _tokenizer(classifier)
    comparison = Comparison(classifier, [*own_texts(classifier), *check_texts])
    values, reading = classifier.postprocessing_, prompt_model.reading(tokenizer)
    info: dict[str, Any] = {
        "to": "onnx",
        **classifier.labels_.to_json(),
        "max_length": reading.max_text_tokens,
        "long_texts": reading.long_texts,
        "window_weights": reading.window_weights,
        "text_pairs": prompt_model.state.pairs,
        "text_columns": [*map(str, getattr(classifier, "feature_names_in_", ()))] or None,
        "template": reading.template and reading.template.pattern,
    }
    write_info = partial(write_export_info, config=prompt_model.prompt_config, **info)
    with replaced(folder) as stage:
        tokenizer.save_pretrained(stage)
        write_info = partial(write_info, **save_quality(values, stage))
        write_info(folder=stage, check=None, weights="float32")
        _write_graph(prompt_model, tokenizer, stage / MODEL_NAME)
        del classifier, prompt_model
        check = comparison.check(load_exported(stage, "onnx").logits)
        if not check.difference <= TOLERANCE:
            raise PtuneError(
                f"The logits of the exported graph differ from PyTorch's by {check.difference:.1e} "
                f"of the largest logit; at most {TOLERANCE:.0e} is allowed. Nothing was written: "
                "PyTorch's exporter does not support this architecture. Run the adapter itself."
            )
        if int8:
            _quantize(stage)
            check = comparison.check(load_exported(stage, "onnx").logits)
            if not np.isfinite(check.difference):
                raise PtuneError(
                    "This backbone's logits are NaN or infinite in int8. Nothing was written. "
                    "Export it without --int8."
                )
        write_info(folder=stage, check=check, weights="int8" if int8 else "float32")
    return check


def _tokenizer(classifier: PromptClassifier) -> Any:
    """The backbone's tokenizer, set to truncate texts and pad batches by itself."""
    own = require_fast_tokenizer(classifier)
    tokenizer = copy.deepcopy(own)
    longest = classifier.prompt_model_.max_text_tokens(own)
    if longest is not None:
        tokenizer.backend_tokenizer.enable_truncation(longest, direction=own.truncation_side)
    tokenizer.backend_tokenizer.enable_padding(
        direction=own.padding_side,
        pad_id=own.pad_token_id,
        pad_type_id=own.pad_token_type_id,
        pad_token=own.pad_token,
    )
    return tokenizer


# The graph.


class _Logits(nn.Module):
    """The model as a function of tensors, in the order of `names`, that returns logits."""

    def __init__(self, model: PromptModel, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.model(**dict(zip(self.names, tensors, strict=True))).logits


@torch.no_grad()
def _write_graph(model: PromptModel, tokenizer: Any, file: Path) -> None:
    backbone = model.backbone
    use_eager_attention(backbone)  # the runtimes recognise it and fuse it
    inputs = dict(
        tokenizer(["a text", "another, and a longer one"], padding=True, return_tensors="pt")
    )
    names, tensors = list(inputs), tuple(inputs.values())
    size = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    with _quiet(), _explained(backbone):
        axes = {
            0: torch.export.Dim("batch"),
            # The graph also accepts shorter texts. But the exporter treats a length of 1 as a
            # constant, and the decoder of an encoder-decoder reads one token less.
            1: torch.export.Dim("sequence", min=3, max=model.max_text_positions),
        }
        program = torch.export.export(
            _Logits(model, names),
            tensors,
            dynamic_shapes=(tuple(axes for _ in names),),
            strict=False,
            # Some architectures branch on sizes; the branch is the same for every size here.
            prefer_deferred_runtime_asserts_over_guards=True,
        )
        graph = torch.onnx.export(
            program, tensors, input_names=names, output_names=["logits"], dynamo=True, verbose=False
        )
        assert graph is not None
        graph.save(file, external_data=size > MAX_ONE_FILE)


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
            use_external_data_format=size / 4 > MAX_ONE_FILE,
        )
        for file in former:
            file.unlink()
        for file in Path(made).iterdir():
            file.replace(folder / file.name)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings that are meant for developers of the exporters."""
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
    except OSError:  # such as a full disk, which `replaced` reports
        raise
    except Exception as error:  # Any exception of the traced code can surface here.
        first: BaseException = error
        while first.__cause__ is not None:
            first = first.__cause__
        reason = first_line(first).split(" For more information")[0].rstrip(".!")
        raise PtuneError(
            f"PyTorch cannot export {type(backbone).__name__}: {reason}. Nothing was written. "
            "Run the adapter itself."
        ) from error
