"""An exported classifier on a runtime that is not PyTorch: ONNX Runtime or OpenVINO."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ptune.backbones.loading import fast_dtype, load_tokenizer
from ptune.errors import PtuneError, first_line
from ptune.export.checkpoint import MARK_NAME
from ptune.files import read_json
from ptune.inference.classifier import Batch, TextClassifier, load

MODEL_NAME = "model.onnx"

Runtime = Literal["onnx", "openvino"]
Dtype = Literal["auto", "float32", "bfloat16"]
# Which texts of a window, and their tensors ``[batch, sequence]``.
Padded = tuple[list[int], dict[str, np.ndarray]]
# Which texts of a window, and their logits ``[batch, num_labels]``.
Answer = tuple[list[int], np.ndarray]


class OnnxRuntime:
    """A graph on ONNX Runtime's CPU kernels, which compute in the number format of the file.

    Attributes:
        inputs: Names of the tensors that the graph takes.
    """

    def __init__(self, file: Path, dtype: str) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise _missing("onnxruntime", "onnx") from error
        if dtype not in ("auto", "float32"):
            raise PtuneError(
                f"ONNX Runtime computes in the format of the file, and not in {dtype}. Leave it "
                "out, or use the runtime openvino."
            )
        self.session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        self.inputs = [given.name for given in self.session.get_inputs()]

    def run(self, batches: Iterable[Padded]) -> Iterator[Answer]:
        """One batch after the other, on all cores."""
        for chosen, tensors in batches:
            yield chosen, self.session.run(["logits"], tensors)[0]


class OpenVino:
    """A graph on OpenVINO's CPU kernels, in bfloat16 where the CPU multiplies it fast.

    Several batches are under way at a time, one a core: two cores then do a seventh more than they
    do on one batch together (seen with MiniLM), and tokenising and padding go on meanwhile.

    Attributes:
        inputs: Names of the tensors that the graph takes.
    """

    def __init__(self, file: Path, dtype: str) -> None:
        try:
            import openvino
        except ImportError as error:
            raise _missing("openvino", "openvino") from error
        precisions = {"float32": "f32", "bfloat16": "bf16"}
        if dtype == "auto":
            dtype = str(fast_dtype("cpu")).removeprefix("torch.")
        if dtype not in precisions:
            raise PtuneError(
                f"OpenVINO computes in float32 or bfloat16 on a CPU, and not in {dtype}."
            )
        compiled = openvino.Core().compile_model(
            file,
            "CPU",
            {"INFERENCE_PRECISION_HINT": precisions[dtype], "PERFORMANCE_HINT": "THROUGHPUT"},
        )
        self.inputs = [given.any_name for given in compiled.inputs]
        self.queue = openvino.AsyncInferQueue(compiled)

    def run(self, batches: Iterable[Padded]) -> list[Answer]:
        """Batches as they come, several at a time."""
        answers: list[Answer] = []

        def done(request: Any, chosen: list[int]) -> None:
            answers.append((chosen, request.get_output_tensor(0).data.astype(np.float32)))

        self.queue.set_callback(done)
        for chosen, tensors in batches:
            self.queue.start_async(tensors, chosen)
        self.queue.wait_all()
        return answers


RUNTIMES: dict[str, type[OnnxRuntime] | type[OpenVino]] = {
    "onnx": OnnxRuntime,
    "openvino": OpenVino,
}


def _missing(package: str, extra: str) -> PtuneError:
    return PtuneError(
        f"{package} is not installed, which this runtime needs. Install it with "
        f"`pip install 'ptune[{extra}]'`."
    )


class ExportedClassifier(TextClassifier):
    """An exported classifier with the verbs of `PromptClassifier`; `load_exported` makes it."""

    def __init__(
        self,
        engine: OnnxRuntime | OpenVino,
        tokenizer: Any,
        mark: dict[str, Any],
        batch_size: int,
    ) -> None:
        self.engine = engine
        self.tokenizer_ = tokenizer
        self.classes_ = np.asarray(mark["labels"])
        self.problem_type_ = mark["problem_type"]
        self.max_length: int | None = mark["max_length"]
        self.batch_size = batch_size

    def _text_room(self) -> int | None:
        return self.max_length

    def _run(self, batches: Iterable[Batch]) -> Iterable[Answer]:
        return self.engine.run(self._padded(batches))

    def _padded(self, batches: Iterable[Batch]) -> Iterator[Padded]:
        for chosen, rows in batches:
            batch = self.tokenizer_.pad(rows, return_tensors="np")
            yield chosen, {name: batch[name] for name in self.engine.inputs}


def load_exported(
    folder: str | os.PathLike[str],
    runtime: Runtime = "onnx",
    *,
    dtype: Dtype = "auto",
    batch_size: int = 32,
) -> ExportedClassifier:
    """Load what `ptune export --to onnx` wrote, to run on another runtime than PyTorch.

    Args:
        folder: The export.
        runtime: `onnx` or `openvino`.
        dtype: To compute in. ``"auto"``: OpenVINO takes bfloat16 where it is fast, else float32;
            ONNX Runtime takes the file's.
        batch_size: So many times 128 tokens are classified at a time.

    Raises:
        PtuneError: It is no such export, or damaged; the runtime is not installed.

    Example:
        ``ptune.load_exported("exported/mail", "openvino").predict(texts)``
    """
    folder = Path(folder)
    file = folder / MODEL_NAME
    if not file.is_file() or not (folder / MARK_NAME).is_file():
        raise PtuneError(
            f"{folder} holds no {MODEL_NAME} with a {MARK_NAME}: it is not an export to ONNX. Make "
            "one with `ptune export ADAPTER OUT --to onnx`, and name OUT here."
        )
    if runtime not in RUNTIMES:
        raise PtuneError(f"There is no runtime {runtime!r}; there are: {', '.join(RUNTIMES)}.")
    mark = read_json(folder / MARK_NAME)
    if missing := {"labels", "problem_type", "max_length"} - mark.keys():
        raise PtuneError(
            f"{folder / MARK_NAME} is damaged: it does not say {', '.join(sorted(missing))}. "
            "Export or fetch it again."
        )
    try:
        engine = RUNTIMES[runtime](file, dtype)
        tokenizer = load_tokenizer(str(folder))
    except PtuneError:
        raise
    except Exception as error:  # Each reader fails in its own ways on a damaged file.
        raise PtuneError(
            f"{folder} could not be opened ({first_line(error)}): one of its files is damaged, or "
            "made for a later version. Export or fetch it again."
        ) from error
    if unknown := set(engine.inputs) - set(tokenizer("a").keys()):
        raise PtuneError(
            f"{file} takes {', '.join(sorted(unknown))}, which the tokenizer beside it does not "
            "give: they are not of one export. Export or fetch it again."
        )
    return ExportedClassifier(engine, tokenizer, mark, batch_size)


def open_classifier(
    source: str,
    runtime: str = "torch",
    *,
    model: str | None = None,
    revision: str | None = None,
    dtype: str = "auto",
) -> TextClassifier:
    """An adapter on PyTorch, or what was exported from one on another runtime.

    Raises:
        PtuneError: As for `ptune.load` and `load_exported`; or a backbone is named for an export.
    """
    if runtime == "torch":
        return load(source, model=model, revision=revision, dtype=dtype)
    for name, given in (("model", model), ("revision", revision)):
        if given is not None:
            raise PtuneError(f"--{name} is for adapters; an export holds its own backbone.")
    return load_exported(source, runtime, dtype=dtype)  # type: ignore[arg-type]
