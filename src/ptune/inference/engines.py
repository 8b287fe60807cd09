"""Run an exported classifier on ONNX Runtime or OpenVINO."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from ptune.adapters.quality import read_quality
from ptune.adapters.schema import parse_reading
from ptune.backbones.loading import fast_dtype, load_tokenizer
from ptune.compat import ForkLock
from ptune.errors import PtuneError, missing_package
from ptune.files import MODEL_NAME, name_of, read_json
from ptune.inference.text_classifier import Answer, Batch, TextClassifier
from ptune.labels import Labels, labels_from_json
from ptune.postprocessing import Postprocessing
from ptune.texts import Reading, padded

# About an export.
EXPORT_INFO_NAME = "ptune_export.json"
TOKENIZER_NAME = "tokenizer.json"

Runtime = Literal["onnx", "openvino"]
Dtype = Literal["auto", "float32", "bfloat16"]
# The positions of texts in a window, and their tensors ``[batch, seq]``.
Padded = tuple[list[int], dict[str, np.ndarray]]


class Engine(Protocol):
    """What computes the logits of an exported classifier.

    Attributes:
        inputs: Names of the tensors that it takes.
        outputs: Names of the tensors that it returns, and the last number of their shape; -1:
            the graph does not tell.
    """

    inputs: list[str]
    outputs: dict[str, int]

    def run(self, batches: Iterable[Padded]) -> Iterable[Answer]:
        """Return logits ``[batch, num_labels]`` for batches of texts, in any order."""


@contextmanager
def _opening(file: Path) -> Iterator[None]:
    """Name the file of an export that a library cannot open, whose message names lines of C++."""
    try:
        if not file.stat().st_size:
            raise EOFError(f"{file} is empty")
        yield
    except Exception as error:  # Each library raises its own exceptions.
        raise PtuneError(
            f"{file} could not be opened: it is missing, damaged or incomplete, or was written by "
            "a newer version. Export or download it again."
        ) from error


class OnnxRuntime:
    """A graph on ONNX Runtime's CPU kernels, which compute in the file's number format."""

    def __init__(self, file: Path, dtype: str) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise missing_package("onnxruntime", "onnx") from error
        if dtype not in ("auto", "float32"):
            raise PtuneError(
                f"ONNX Runtime computes in the file's number format, not in {dtype}. Omit --dtype, "
                "or use the runtime openvino."
            )
        with _opening(file):
            self.session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        self.inputs = [given.name for given in self.session.get_inputs()]
        self.outputs = {
            found.name: found.shape[-1] if isinstance(found.shape[-1], int) else -1
            for found in self.session.get_outputs()
        }

    def run(self, batches: Iterable[Padded]) -> Iterator[Answer]:
        """Run one batch after the other, on all cores."""
        for chosen, tensors in batches:
            yield chosen, self.session.run(["logits"], tensors)[0]


class OpenVino:
    """A graph on OpenVINO's CPU kernels, in bfloat16 where the CPU multiplies it fast.

    Several batches run at a time, one per core, while the next ones are tokenised and padded. With
    MiniLM, two cores are a seventh faster this way than together on one batch.
    """

    def __init__(self, file: Path, dtype: str) -> None:
        try:
            import openvino
        except ImportError as error:
            raise missing_package("openvino", "openvino") from error
        precisions = {"float32": "f32", "bfloat16": "bf16"}
        if dtype == "auto":
            dtype = str(fast_dtype("cpu")).removeprefix("torch.")
        if dtype not in precisions:
            raise PtuneError(f"OpenVINO computes in float32 or bfloat16 on a CPU, not in {dtype}.")
        hints = {"INFERENCE_PRECISION_HINT": precisions[dtype], "PERFORMANCE_HINT": "THROUGHPUT"}
        with _opening(file):
            compiled = openvino.Core().compile_model(file, "CPU", hints)
        self.inputs = [given.any_name for given in compiled.inputs]
        self.outputs = {
            found.any_name: found.partial_shape[-1].get_max_length() for found in compiled.outputs
        }
        self.queue = openvino.AsyncInferQueue(compiled)
        self._lock = ForkLock(level=2)  # the queue belongs to one thread at a time

    def run(self, batches: Iterable[Padded]) -> list[Answer]:
        """Run several batches at a time. Answers come in the order in which they finish."""
        answers: list[Answer] = []

        def done(request: Any, chosen: list[int]) -> None:
            answers.append((chosen, request.get_output_tensor(0).data.astype(np.float32)))

        with self._lock:
            self.queue.set_callback(done)
            try:
                for chosen, tensors in batches:
                    self.queue.start_async(tensors, chosen)
            finally:
                self.queue.wait_all()
        return answers


RUNTIMES: dict[str, Callable[[Path, str], Engine]] = {"onnx": OnnxRuntime, "openvino": OpenVino}


class ExportedClassifier(TextClassifier):
    """An exported classifier, with the methods of `PromptClassifier`. See `load_exported`."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Any,
        labels: Labels,
        postprocessing: Postprocessing,
        reading: Reading,
        batch_size: int,
    ) -> None:
        self.engine = engine
        self.tokenizer_ = tokenizer
        self.labels_, self.postprocessing_ = labels, postprocessing
        self.reading, self.batch_size = reading, batch_size

    def _reading(self) -> Reading:
        return self.reading

    def _forward(self, batches: Iterable[Batch]) -> Iterable[Answer]:
        return self.engine.run(self._padded(batches))

    def _padded(self, batches: Iterable[Batch]) -> Iterator[Padded]:
        for chosen, rows in batches:
            batch = padded(self.tokenizer_, rows, "np")
            yield chosen, {name: batch[name] for name in self.engine.inputs}


def load_exported(
    folder: str | os.PathLike[str],
    runtime: Runtime = "onnx",
    *,
    dtype: Dtype = "auto",
    batch_size: int = 32,
) -> ExportedClassifier:
    """Load an export written by `ptune export --to onnx`.

    Args:
        folder: The exported folder.
        runtime: `onnx` or `openvino`.
        dtype: Number format of the computation. ``"auto"``: OpenVINO uses bfloat16 where it is
            fast, otherwise float32; ONNX Runtime uses the file's.
        batch_size: Batches contain up to `batch_size` * 128 tokens.

    Raises:
        PtuneError: The folder is not such an export, or is damaged; or the runtime is not
            installed.

    Example:
        ``ptune.load_exported("exported/mail", "openvino").predict(texts)``
    """
    folder = Path(name_of(folder))
    file = folder / MODEL_NAME
    if not file.is_file() or not (folder / EXPORT_INFO_NAME).is_file():
        raise PtuneError(
            f"{folder} is not an export to ONNX: it needs {MODEL_NAME} and {EXPORT_INFO_NAME}. "
            "Create one with `ptune export ADAPTER OUT --to onnx`, and name OUT here."
        )
    if runtime not in RUNTIMES:
        raise PtuneError(f"There is no runtime {runtime!r}. Choose one of {', '.join(RUNTIMES)}.")
    info = read_json(folder / EXPORT_INFO_NAME)
    if missing := {"labels", "problem_type", "max_length"} - info.keys():
        raise PtuneError(
            f"{folder / EXPORT_INFO_NAME} is damaged: it lacks {', '.join(sorted(missing))}. "
            "Export or download it again."
        )
    engine = RUNTIMES[runtime](file, dtype)
    with _opening(folder / TOKENIZER_NAME):
        tokenizer = load_tokenizer(str(folder))
    if unknown := set(engine.inputs) - set(tokenizer("a").keys()):
        raise PtuneError(
            f"{file} takes {', '.join(sorted(unknown))}, which the tokenizer in the same folder "
            "does not give: the files come from different exports. Export or download it again."
        )
    labels = labels_from_json(info, EXPORT_INFO_NAME)
    if engine.outputs not in ({"logits": n} for n in (len(labels.output_names), -1)):
        found = ", ".join(f"{count} {name}" for name, count in engine.outputs.items())
        raise PtuneError(
            f"{file} returns {found}; {EXPORT_INFO_NAME} in the same folder expects "
            f"{len(labels.output_names)} logits: the files come from different exports. Export or "
            "download it again."
        )
    values = read_quality(info, lambda n: _existing(folder / n), labels, folder / EXPORT_INFO_NAME)
    own = parse_reading(info, folder / EXPORT_INFO_NAME)
    classifier = ExportedClassifier(engine, tokenizer, labels, values, own["reading"], batch_size)
    if columns := own["text_columns"]:
        classifier.feature_names_in_ = np.array(columns, dtype=object)
    return classifier


def _existing(file: Path) -> Path | None:
    return file if file.is_file() else None
