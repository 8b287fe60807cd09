"""Many texts: files of them into files of predictions, here or on the machines of a Ray cluster.

A folder becomes a folder: a file of the same name and format for every input file, with its rows in
their order and its columns, and the predictions beside them. A file appears when it is complete.
What it was made from is noted in the folder `.ptune` beside it, so that a second call does what the
first one did not finish, and what has changed.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import itertools
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import pyarrow
from pyarrow import parquet

from ptune.adapters import adapter
from ptune.adapters.adapter import Adapter
from ptune.data import dataset as data
from ptune.data.dataset import PAIR, TEXT, Batch, Columns
from ptune.errors import PtuneError, first_line
from ptune.export.checkpoint import MARK_NAME
from ptune.files import read_json, staged, write_json
from ptune.inference.classifier import WINDOW, Prediction, Text, TextClassifier
from ptune.inference.engines import MODEL_NAME, open_classifier

# Rows of a file that are in memory at a time, and in a row group of a Parquet file.
ROWS, ROWS_OF_PARQUET = WINDOW, 8 * WINDOW
NOTES = ".ptune"
# Between a driver and its workers go names of files only.
OBJECT_STORE_BYTES = 100 * 2**20

Results = Iterable[dict[str, Any]]


# Where texts come from.


@dataclass
class Source:
    """Texts to classify, with whatever stands beside them.

    Attributes:
        batches: Rows.
        columns: Which of their columns hold the texts.
        where: A column's name for messages.
    """

    batches: Iterator[Batch]
    columns: Columns
    where: Callable[[str], str]

    @classmethod
    def of_file(cls, file: Path, columns: Columns) -> Source:
        """The rows of a CSV, TSV, JSON lines or Parquet file.

        Raises:
            PtuneError: As for `data.read_batches`, here or when it is read; or no column can be
                told from its name.
        """
        size = ROWS_OF_PARQUET if file.suffix.lower() == ".parquet" else ROWS
        batches = data.read_batches(file, size)
        first = list(itertools.islice(batches, 1))
        if first:
            columns = data.find_columns(_names(first[0]), columns, file, labelled=False)
        return cls(itertools.chain(first, batches), columns, lambda c: f"column {c!r} of {file}")

    @classmethod
    def of_texts(cls, texts: Iterable[Text]) -> Source:
        """Texts, or pairs as tuples, as rows.

        Raises:
            PtuneError: When they are read: they are not all of one kind.
        """
        first = list(itertools.islice(texts := iter(texts), 1))
        pairs = bool(first) and not isinstance(first[0], str)

        def rows() -> Iterator[dict[str, Any]]:
            for i, text in enumerate(itertools.chain(first, texts), 1):
                if isinstance(text, str) == pairs:
                    raise PtuneError(
                        f"Text {i} is {text!r}; wanted are strings, or pairs of strings, and not "
                        "both at once."
                    )
                yield {TEXT: text[0], PAIR: text[1]} if pairs else {TEXT: text}

        each = rows()
        batches = iter(lambda: list(itertools.islice(each, ROWS)), [])
        names = {TEXT: "list of texts", PAIR: "list of second texts"}
        return cls(batches, Columns(TEXT, PAIR if pairs else None), names.__getitem__)

    def read(self) -> Iterator[tuple[Batch, list[Text]]]:
        """Rows and their texts, as they come.

        Raises:
            PtuneError: A text is empty or missing; the message says which.
        """
        names = [c for c in (self.columns.text, self.columns.text_pair) if c is not None]
        before = 0
        for batch in self.batches:
            columns = [
                data.check_texts(_column(batch, name), self.where(name), before) for name in names
            ]
            texts: list[Any] = columns[0] if len(columns) == 1 else list(zip(*columns, strict=True))
            yield batch, texts
            before += len(texts)


def _names(batch: Batch) -> list[str]:
    if isinstance(batch, pyarrow.RecordBatch):
        return list(batch.schema.names)
    return list(dict.fromkeys(name for row in batch for name in row))


def _column(batch: Batch, name: str) -> list[Any]:
    if isinstance(batch, pyarrow.RecordBatch):
        return list(batch.column(name).to_pylist())
    return [row.get(name) for row in batch]


def predictions(
    classifier: TextClassifier, source: Source
) -> Iterator[tuple[Batch, list[Text], list[Prediction]]]:
    """Rows, their texts and what the classifier says of them, as they come.

    Raises:
        PtuneError: A text is empty or missing; the message says which.
    """
    for batch, texts in source.read():
        yield batch, texts, list(classifier.stream(texts)) if texts else []


# Where predictions go.


class Writer:
    """Takes rows and what is predicted of them.

    Beside the input's columns come `label`, `score` and `probabilities`; or, where the input has
    one of these, `predicted_label` and so on.
    """

    _prefix: str | None = None

    def write(self, batch: Batch, predicted: list[Prediction]) -> None:
        """Append rows."""
        raise NotImplementedError

    def prefix(self, batch: Batch) -> str:
        """What the names of the new columns begin with.

        Raises:
            PtuneError: The first rows left a name free that these have.
        """
        names, new = set(_names(batch)), ("label", "score", "probabilities")
        if self._prefix is None:
            self._prefix = ""
            while any(self._prefix + name in names for name in new):
                self._prefix += "predicted_"
        if taken := [name for name in new if self._prefix + name in names]:
            raise PtuneError(
                f"Some rows have a {self._prefix + taken[0]!r}, and the first ones had none: there "
                "is no room for the predictions. Rename it, or give it to every row."
            )
        return self._prefix


def _rows(batch: Batch) -> list[dict[str, Any]]:
    return batch.to_pylist() if isinstance(batch, pyarrow.RecordBatch) else batch


class JsonLines(Writer):
    """An object a line."""

    def __init__(self, out: IO[str]) -> None:
        self.out = out

    def write(self, batch: Batch, predicted: list[Prediction]) -> None:
        """Append rows."""
        p = self.prefix(batch)
        for row, prediction in zip(_rows(batch), predicted, strict=True):
            probabilities = {k: round(v, 6) for k, v in prediction.probabilities.items()}
            record = {
                **row,
                f"{p}label": prediction.label,
                f"{p}score": round(prediction.score, 6),
                f"{p}probabilities": probabilities,
            }
            # What JSON has no word for, a date say, is written as text.
            self.out.write(json.dumps(record, ensure_ascii=False, default=str) + "\n")


class Delimited(Writer):
    """CSV, or the same with tabs: a column for each label's probability."""

    def __init__(self, out: IO[str], separator: str) -> None:
        self.out, self.separator = out, separator
        self._writer: csv.DictWriter | None = None

    def write(self, batch: Batch, predicted: list[Prediction]) -> None:
        """Append rows, with a header before the first."""
        p = self.prefix(batch)
        for row, prediction in zip(_rows(batch), predicted, strict=True):
            label = prediction.label
            shown = "|".join(label) if isinstance(label, list) else label
            row = {**row, f"{p}label": shown, f"{p}score": round(prediction.score, 6)}
            if not isinstance(label, float):
                # A label may be called like one of the columns before it.
                row |= {
                    f"{k} (label)" if k in row else k: round(v, 6)
                    for k, v in prediction.probabilities.items()
                }
            if self._writer is None:
                self._writer = csv.DictWriter(self.out, list(row), delimiter=self.separator)
                self._writer.writeheader()
            if unknown := [name for name in row if name not in self._writer.fieldnames]:
                raise PtuneError(
                    f"Some rows have a {unknown[0]!r}, and the first one had none: they make no "
                    "table. Write JSON lines instead (a .jsonl file)."
                )
            self._writer.writerow(row)


class Parquet(Writer):
    """A Parquet file, whose own columns keep their types."""

    def __init__(self, file: Path, classifier: TextClassifier) -> None:
        self.file = file
        kinds = {
            "multi_label_classification": pyarrow.list_(pyarrow.string()),
            "regression": pyarrow.float64(),
        }
        self.types = {
            "label": kinds.get(classifier.problem_type_, pyarrow.string()),
            "score": pyarrow.float64(),
            "probabilities": pyarrow.struct([(n, pyarrow.float64()) for n in classifier.labels]),
        }
        self._writer: parquet.ParquetWriter | None = None

    def write(self, batch: Batch, predicted: list[Prediction]) -> None:
        """Append a row group."""
        if not isinstance(batch, pyarrow.RecordBatch):
            raise PtuneError(
                f"{self.file.name} can be written from a Parquet file only, whose columns have "
                "types. Name a .jsonl or .csv file."
            )
        p = self.prefix(batch)
        for name, kind in self.types.items():
            column = pyarrow.array([getattr(x, name) for x in predicted], kind)
            batch = batch.append_column(f"{p}{name}", column)
        if self._writer is None:
            self._writer = parquet.ParquetWriter(self.file, batch.schema)
        self._writer.write_batch(batch)

    def close(self) -> None:
        """Complete the file."""
        if self._writer is not None:
            self._writer.close()


def text_writer(out: IO[str], form: str) -> Writer:
    """A writer of `jsonl`, `csv` or `tsv`."""
    return JsonLines(out) if form == "jsonl" else Delimited(out, "," if form == "csv" else "\t")


def form_of(file: Path) -> str:
    """What a file is written as: what its ending says, else JSON lines."""
    ending = file.suffix.lower().removeprefix(".")
    return ending if ending in ("csv", "tsv", "parquet") else "jsonl"


@contextmanager
def writer(file: Path, form: str, classifier: TextClassifier) -> Iterator[Writer]:
    """A writer of a file."""
    if form == "parquet":
        table = Parquet(file, classifier)
        try:
            yield table
        finally:
            table.close()
    else:
        with file.open("w", encoding="utf-8", newline="") as f:
            yield text_writer(f, form)


def write(classifier: TextClassifier, source: Source, out: Writer) -> int:
    """Write predictions; how many there were.

    Raises:
        PtuneError: A text is empty or missing.
    """
    count = 0
    for batch, texts, predicted in predictions(classifier, source):
        out.write(batch, predicted)
        count += len(texts)
    return count


def _known_by(file: Path) -> dict[str, int]:
    """By what a file is told from a later one in its place: its size in bytes, and its time."""
    found = file.stat()
    return {"size": found.st_size, "mtime_ns": found.st_mtime_ns}


# Whole folders.


@dataclass(frozen=True)
class Recipe:
    """How to classify: what a worker needs, and by what its results are told from others'.

    Attributes:
        adapter: A run folder, a checkpoint, a Hub id; or an export, for another runtime.
        columns: Which columns hold the texts; `None`: found by name.
        model, revision, dtype: As for `ptune.load`.
        runtime: `torch`, `onnx` or `openvino`.
    """

    adapter: str
    columns: Columns = field(default_factory=Columns)
    model: str | None = None
    revision: str | None = None
    dtype: str = "auto"
    runtime: str = "torch"

    def load(self) -> TextClassifier:
        """The classifier."""
        return open_classifier(
            self.adapter,
            self.runtime,
            model=self.model,
            revision=self.revision,
            dtype=self.dtype,
        )

    def known_by(self) -> dict[str, Any]:
        """All that decides a prediction, the adapter by what is in its files.

        Raises:
            PtuneError: There is no such adapter, or it is damaged.
        """
        names: tuple[str, ...] = (MARK_NAME, MODEL_NAME)
        if self.runtime == "torch":
            names = (adapter.CONFIG_NAME, adapter.WEIGHTS_NAME, adapter.INFO_NAME)
            Adapter.read(self.adapter, own_backbone=self.model is not None, revision=self.revision)
        digest = hashlib.sha256()
        for name in names:
            file = adapter.fetch(self.adapter, name, revision=self.revision)
            digest.update(file.read_bytes() if file else b"none")
        rest = dataclasses.asdict(self)
        del rest["adapter"]
        return {"adapter": digest.hexdigest(), **rest}


@dataclass(frozen=True)
class Job:
    """A file to classify.

    Attributes:
        source: The file.
        target: Where the predictions go.
        form: What they are written as.
        note: Where it is noted what they were made from; `None`: nowhere, it is always done.
        made_from: What is noted.
    """

    source: Path
    target: Path
    form: str
    note: Path | None = None
    made_from: dict[str, Any] = field(default_factory=dict)

    def is_done(self) -> bool:
        """Whether its predictions are there, whole and from this very input."""
        if self.note is None or not self.note.is_file() or not self.target.is_file():
            return False
        try:
            noted = read_json(self.note)
        except PtuneError:
            return False
        return noted == {**self.made_from, "output": _known_by(self.target)}


class Worker:
    """A classifier that does one file after the other.

    Ray makes one in each of its processes; without Ray there is one, here.
    """

    def __init__(self, recipe: Recipe, todo: list[Job]) -> None:
        self.recipe, self.todo = recipe, todo

    @cached_property
    def classifier(self) -> TextClassifier:
        """Loaded with the first file, so that what goes wrong is told like all else."""
        return self.recipe.load()

    def __call__(self, item: dict[str, int]) -> dict[str, Any]:
        """Do the file of that number; `rows` says how many it had, `error` why it could not be."""
        try:
            return {"rows": self._do(self.todo[item["job"]]), "error": ""}
        except PtuneError as error:
            return {"rows": 0, "error": str(error)}

    def _do(self, job: Job) -> int:
        source = Source.of_file(job.source, self.recipe.columns)
        # The note first: it names the output by its time, so that it is of no use before the
        # output is there.
        count = 0
        with staged(job.target.parent) as stage:
            file = stage / job.target.name
            with writer(file, job.form, self.classifier) as out:
                count = write(self.classifier, source, out)
            if job.note is not None:
                with staged(job.note.parent) as notes:
                    noted = {**job.made_from, "output": _known_by(file)}
                    write_json(notes / job.note.name, noted)
        return count


def jobs(file: Path, output: Path, recipe: Recipe, form: str | None = None) -> list[Job]:
    """What there is to do: a file into a file, or files into a folder.

    Args:
        file: A file, or a folder with files at any depth. Names that begin with a dot or an
            underscore are passed over.
        output: A folder; or for one file a file, if it has an ending and is no folder.
        recipe: How they are to be classified.
        form: What the one file is written as, if not as its ending says.

    Raises:
        PtuneError: There is nothing to do, or what there is would be overwritten.
    """
    if not file.is_dir():
        if not file.is_file():
            raise PtuneError(f"There is no file or folder {file}. Check the path.")
        if output.suffix and not output.is_dir():
            return [Job(file, output.absolute(), form or form_of(output))]
    if form is not None:
        raise PtuneError("Files in a folder keep the format they have. Leave out --format.")
    whole, below = (file if file.is_dir() else file.parent).absolute(), output.absolute()
    if below.resolve().is_relative_to(whole.resolve()) and (
        file.is_dir() or below.resolve() == whole.resolve()
    ):
        raise PtuneError(
            f"{output} is where the input is, which the predictions would mix with. Name another "
            "folder."
        )
    found = [file.absolute()] if file.is_file() else sorted(_files(whole))
    if not found:
        raise PtuneError(f"{file} holds no {', '.join(data.FORMATS)} file. Check the path.")
    known_by = recipe.known_by()
    made = []
    for source in found:
        path = source.relative_to(whole)
        note = below / NOTES / path.with_name(path.name + ".json")
        made_from = {"recipe": known_by, "input": _known_by(source)}
        made.append(Job(source, below / path, form_of(source), note, made_from))
    return made


def _files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        hidden = any(part[0] in "._" for part in path.relative_to(folder).parts)
        if path.suffix.lower() in data.FORMATS and path.is_file() and not hidden:
            yield path


def do(
    todo: list[Job],
    recipe: Recipe,
    *,
    ray: bool = False,
    workers: int | None = None,
    show: Callable[[Results, int], Results] = lambda results, total: results,
) -> int:
    """Classify files; a file that cannot be read does not keep the others from being done.

    Args:
        todo: From `jobs`, without those that are done.
        recipe: How to classify.
        ray: On a Ray cluster, the one that `RAY_ADDRESS` names or one on this machine alone.
        workers: How many classifiers work there; `None`: one for each GPU, or else for each CPU.
        show: Shows how far it is, as `rich.progress.track` does.

    Returns:
        How many rows were classified.

    Raises:
        PtuneError: Files could not be done; the message says which and why.
    """
    if not todo:
        return 0
    results = _on_ray(todo, recipe, workers) if ray else _here(todo, recipe)
    rows, failed = 0, []
    for result in show(results, len(todo)):
        rows += result["rows"]
        failed += [result["error"]] if result["error"] else []
    if failed:
        done = len(todo) - len(failed)
        of = f"{len(failed)} of {len(todo)} files could not be classified. " if done else ""
        rest = f" The other {done} are done." if done else ""
        raise PtuneError(of + " ".join(dict.fromkeys(failed)) + rest)
    # What killed workers left: all is done, so that nobody writes there any more.
    noted = [job for job in todo if job.note is not None]
    for folder in {p.parent for job in noted for p in (job.target, job.note) if p is not None}:
        for left in folder.glob(".writing-*"):
            shutil.rmtree(left, ignore_errors=True)
    return rows


def _here(todo: list[Job], recipe: Recipe) -> Iterator[dict[str, Any]]:
    worker = Worker(recipe, todo)
    for i in range(len(todo)):
        yield worker({"job": i})


def _on_ray(todo: list[Job], recipe: Recipe, workers: int | None) -> Iterator[dict[str, Any]]:
    """On Ray Data: a pool of workers, each of which is given one file after the other.

    A worker that dies is started again, and what it was doing is done again from the start.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise PtuneError("Ray is not installed. Install it: pip install 'ptune[ray]'.") from error
    # Workers may be anywhere.
    recipe = dataclasses.replace(
        recipe, adapter=_absolute(recipe.adapter), model=recipe.model and _absolute(recipe.model)
    )
    started = not ray.is_initialized()
    if started:
        here: dict[str, Any] = {
            "address": "local",
            "object_store_memory": OBJECT_STORE_BYTES,
            "include_dashboard": False,
        }
        quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
        ray.init(**({} if "RAY_ADDRESS" in os.environ else here), **quiet)
    # ptune shows its own bar.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    there = ray.cluster_resources()
    kind = "GPU" if there.get("GPU") else "CPU"
    size = min(workers or int(there[kind]), len(todo))
    numbers = [{"job": i} for i in range(len(todo))]
    files = ray.data.from_items(numbers, override_num_blocks=len(todo))
    pool = files.map(
        Worker,
        fn_constructor_args=(recipe, todo),
        compute=ray.data.ActorPoolStrategy(size=size),
        num_cpus=1 if kind == "CPU" else None,
        num_gpus=1 if kind == "GPU" else None,
    )
    try:
        yield from pool.iter_rows()
    except ray.exceptions.RayError as error:
        raise PtuneError(f"Ray gave up: {first_line(error)}") from error
    finally:
        if started:
            ray.shutdown()


def _absolute(name: str) -> str:
    """A folder's whole path; what is none, a Hub id say, as it is."""
    return str(Path(name).absolute()) if Path(name).is_dir() else name
