"""Export one classifier as an ONNX graph, for ONNX Runtime, OpenVINO and other runtimes.

The graph contains the prompt, whatever its mechanism and pooling. It takes what the backbone's own
tokenizer gives for a text (`input_ids`, `attention_mask` and, for some architectures,
`token_type_ids`, each ``[batch, seq]``) and returns `logits` ``[batch, num_labels]``.

| file | contents |
| --- | --- |
| `model.onnx` | the graph and its weights (weights over 2 GB are in `model.onnx.data`) |
| `text.onnx`, `reader.onnx` | with `two_graphs`: the same in two steps |
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
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ptune.adapters.quality import save_quality
from ptune.backbones.loading import location
from ptune.errors import PtuneError, first_line, missing_package
from ptune.export.check import (
    TOLERANCE,
    Check,
    Comparison,
    check_apart,
    check_target,
    require_fast_tokenizer,
    write_export_info,
)
from ptune.files import MODEL_NAME, replaced
from ptune.inference.classifier import PromptClassifier, load
from ptune.inference.engines import OnnxRuntime, Padded, load_exported
from ptune.inference.text_classifier import Answer
from ptune.labels import labels_to_json
from ptune.model import PromptModel
from ptune.prompts.attention import use_eager_attention
from ptune.prompts.host import Given
from ptune.prompts.mechanisms import Prompt
from ptune.prompts.readers import StatesShape, TextStates
from ptune.texts import Text

# Protocol Buffers cannot exceed 2 GB: the weights of larger graphs go to a second file.
MAX_ONE_FILE = 1_800_000_000
# A reader in two steps.
TEXT_GRAPH, READER_GRAPH = "text.onnx", "reader.onnx"
# What the second one reads of a text besides its keys and values, if heads can read it.
MEANS = "text_means"


def export_onnx(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    int8: bool = False,
    two_graphs: bool = False,
    check_texts: Text | Iterable[Text] | None = None,
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
        two_graphs: Also write a reader as two graphs. `text.onnx` takes what `model.onnx` takes
            and returns `states` ``[batch, seq, width]``, the keys and values that readers attend
            to, `text_mask` ``[batch, seq]`` and, on an encoder, `text_means` ``[batch, width]``,
            which heads may read. It serves every reader on the backbone. `reader.onnx` takes these
            and returns `logits`.
        check_texts: Texts or pairs to compare, in addition to ptune's own.
        overwrite: Replace a checkpoint that ptune did not export.
        model: The backbone, if the name stored in the adapter cannot be found.
        revision: Revision of the adapter on the Hub.
        allow_other_backbone: As for `ptune.load`.

    Raises:
        PtuneError: The exporter is not installed; the folder holds something else; the tokenizer
            is slow; `two_graphs` is set and the prompt is no reader; PyTorch cannot export this
            architecture, or the graph's logits differ. The folder is unchanged.
    """
    require_exporter()
    folder = Path(folder).resolve()
    check_target(folder, overwrite=overwrite)
    how: dict[str, Any] = {"model": model, "revision": revision, "dtype": "float32"}
    how |= {"device": "cpu", "allow_other_backbone": allow_other_backbone}
    classifier = load(source, **how)
    check_apart(folder, source, location(classifier.model))
    options: dict[str, Any] = {"int8": int8, "two_graphs": two_graphs, "overwrite": overwrite}
    return write_onnx(classifier, folder, check_texts=check_texts, **options)


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
    two_graphs: bool = False,
    check_texts: Text | Iterable[Text] | None = None,
    overwrite: bool | None = None,
) -> Check:
    """Write a classifier, which is in float32 on the CPU, as `export_onnx` does.

    The classifier is changed and cannot be used afterwards. Without `overwrite`, whatever is in
    the folder is replaced.

    Raises:
        PtuneError: As for `export_onnx`.
    """
    prompt_model = classifier.prompt_model_
    depth = prompt_model.prompt_config.depth
    if two_graphs and depth != "reader":
        raise PtuneError(
            "Only a reader has two graphs, because other prompts change what is computed for the "
            f"text, and this prompt is {depth}. Leave out --two-graphs, or train with --prompt "
            "reader."
        )
    tokenizer = _tokenizer(classifier)
    comparison = Comparison(classifier, check_texts)
    values = classifier.postprocessing_
    info: dict[str, Any] = {
        "to": "onnx",
        **labels_to_json(classifier.labels_),
        **prompt_model.reading(tokenizer).to_json(),
        "text_columns": list(classifier.text_columns) or None,
    }
    write_info = partial(write_export_info, config=prompt_model.prompt_config, **info)
    with replaced(folder) as stage:
        tokenizer.save_pretrained(stage)
        write_info = partial(write_info, **save_quality(values, stage))
        write_info(folder=stage, check=None, weights="float32")
        _write_graphs(prompt_model, tokenizer, stage, two_graphs=two_graphs)
        del classifier, prompt_model
        check = _check(comparison, stage)
        if not check.difference <= TOLERANCE:
            raise PtuneError(
                f"The logits of the exported graph differ from PyTorch's by {check.difference:.1e} "
                f"of the largest logit; at most {TOLERANCE:.0e} is allowed. Nothing was written: "
                "PyTorch's exporter does not support this architecture. Run the adapter itself."
            )
        if int8:
            _quantize(stage)
            check = _check(comparison, stage)
            if not np.isfinite(check.difference):
                raise PtuneError(
                    "This backbone's logits are NaN or infinite in int8. Nothing was written. "
                    "Export it without --int8."
                )
        write_info(folder=stage, check=check, weights="int8" if int8 else "float32")
        if overwrite is not None:
            check_target(folder, overwrite=overwrite)  # others may have filled it meanwhile
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


# The graphs.


class _Graph(nn.Module):
    """A function of a model and of named tensors, as a module that takes the tensors in order."""

    def __init__(
        self, function: Callable[..., Any], model: PromptModel, names: Iterable[str]
    ) -> None:
        super().__init__()
        self.function, self.model, self.names = function, model, list(names)

    def forward(self, *tensors: Tensor) -> Any:
        return self.function(self.model, **dict(zip(self.names, tensors, strict=True)))


def _logits(model: PromptModel, **inputs: Tensor) -> Tensor:
    return model(**inputs).logits


def _between(texts: TextStates) -> dict[str, Tensor]:
    """What readers see of texts, as the tensors that one graph hands to the other."""
    found = {"states": texts.joined(), "text_mask": texts.mask}
    return found | ({MEANS: texts.means} if texts.shape.means else {})


def _states(model: PromptModel, **inputs: Tensor) -> tuple[Tensor, ...]:
    return tuple(_between(model.host.read_texts(Given(**inputs))).values())


def _answers(
    model: PromptModel,
    *,
    shape: StatesShape,
    states: Tensor,
    text_mask: Tensor,
    text_means: Tensor | None = None,
) -> Tensor:
    """What a reader answers from these tensors."""
    means = states[:, 0, :0] if text_means is None else text_means
    texts, own = TextStates.of_joined(states, text_mask, means, shape), model.state
    prompt = Prompt.of(own.config, own.mechanism, model.prompt_embeddings())
    return model.host.run([prompt], texts, head=own.head).logits


@torch.no_grad()
def _write_graphs(model: PromptModel, tokenizer: Any, folder: Path, *, two_graphs: bool) -> None:
    use_eager_attention(model.backbone)  # the runtimes recognise it and fuse it
    inputs = dict(
        tokenizer(["a text", "another, and a longer one"], padding=True, return_tensors="pt")
    )
    size = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    # The graph also accepts shorter texts. But the exporter treats a length of 1 as a constant,
    # and the decoder of an encoder-decoder reads one token less.
    longest = torch.export.Dim("sequence", min=3, max=model.max_text_positions)
    fixed = {0: torch.export.Dim("batch")}
    axes = {**fixed, 1: longest}

    def write(
        name: str, function: Callable[..., Any], given: Mapping[str, Tensor], found: list[str]
    ) -> None:
        tensors = tuple(given.values())
        with _quiet(), _explained(model.backbone):
            program = torch.export.export(
                _Graph(function, model, given),
                tensors,
                dynamic_shapes=(tuple(fixed if own == MEANS else axes for own in given),),
                strict=False,
                # Some architectures branch on sizes; the branch is the same for every size here.
                prefer_deferred_runtime_asserts_over_guards=True,
            )
            graph = torch.onnx.export(
                program,
                tensors,
                input_names=list(given),
                output_names=found,
                dynamo=True,
                verbose=False,
            )
            assert graph is not None
            graph.save(folder / name, external_data=size > MAX_ONE_FILE)

    write(MODEL_NAME, _logits, inputs, ["logits"])
    if two_graphs:
        states = model.host.read_texts(Given(**inputs))
        between = _between(states)
        write(TEXT_GRAPH, _states, inputs, list(between))
        write(READER_GRAPH, partial(_answers, shape=states.shape), between, ["logits"])


class _TwoGraphs:
    """`text.onnx` and `reader.onnx` in place of `model.onnx`."""

    def __init__(self, folder: Path) -> None:
        self.text, self.reader = (
            OnnxRuntime(folder / name, "auto") for name in (TEXT_GRAPH, READER_GRAPH)
        )
        self.inputs, self.outputs = self.text.inputs, self.reader.outputs

    def run(self, batches: Iterable[Padded]) -> Iterator[Answer]:
        """Run one batch after the other."""
        for chosen, tensors in batches:
            states = self.text.session.run(self.reader.inputs, tensors)
            given = dict(zip(self.reader.inputs, states, strict=True))
            yield from self.reader.run([(chosen, given)])


def _check(comparison: Comparison, folder: Path) -> Check:
    """Compare all graphs of an export."""
    exported = load_exported(folder, "onnx")
    check = comparison.check(exported.logits)
    if (folder / TEXT_GRAPH).is_file():
        exported.engine = _TwoGraphs(folder)
        difference = comparison.check(exported.logits).difference
        # A NaN counts as the largest.
        check = replace(check, difference=float(np.max([check.difference, difference])))
    return check


def _quantize(folder: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    for graph in folder.glob("*.onnx"):
        former = list(folder.glob(graph.name + "*"))
        size = sum(file.stat().st_size for file in former)
        with tempfile.TemporaryDirectory(dir=folder) as made, _quiet():
            quantize_dynamic(
                graph,
                Path(made) / graph.name,
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
