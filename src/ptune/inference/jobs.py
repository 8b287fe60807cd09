"""Classify files and folders of files, here or on a Ray cluster.

A folder of files becomes a folder of predictions: one file of the same name and format for every
input file. A file appears when it is complete. The folder `.ptune` next to the predictions records
what each file was made from, so that a second call classifies only files that are missing or have
changed.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ptune.adapters.adapter import PREDICTING, Adapter
from ptune.adapters.download import AdapterFiles
from ptune.adapters.quality import QUALITY_NAME
from ptune.adapters.schema import CONFIG_NAME
from ptune.data import opening
from ptune.data.opening import FOUND, Dialect
from ptune.data.sheets import SHEETS
from ptune.data.tables import FORMATS, Columns
from ptune.errors import PtuneError, first_line, missing_package
from ptune.files import (
    MODEL_NAME,
    check_file,
    digest_of,
    read_json,
    remove_abandoned,
    staged,
    staged_file,
    write_json,
)
from ptune.inference.classifier import load
from ptune.inference.engines import EXPORT_INFO_NAME, load_exported
from ptune.inference.files import Source, check_typed, format_of, output_format, write, writer
from ptune.inference.text_classifier import TextClassifier

RECORDS = ".ptune"
# A driver and its workers exchange only file names.
OBJECT_STORE_BYTES = 100 * 2**20

Results = Iterable[dict[str, Any]]


def _fingerprint(file: Path) -> dict[str, int]:
    """Size in bytes and modification time, which differ if the file is replaced."""
    found = file.stat()
    return {"size": found.st_size, "mtime_ns": found.st_mtime_ns}


@dataclass(frozen=True)
class Recipe:
    """How to classify: everything that a worker needs and that decides its predictions.

    Attributes:
        adapter: A run folder, a checkpoint or a Hub id; for other runtimes, an export.
        columns: The columns that hold the texts. ``None``: found by name.
        model, revision, dtype, allow_other_backbone: As for `ptune.load`.
        runtime: `torch`, `onnx` or `openvino`.
        min_confidence: As for `TextClassifier.predict`.
        dialect: How the files are written.
        mark_truncated: Add a column that tells which texts were truncated.
    """

    adapter: str
    columns: Columns = field(default_factory=Columns)
    model: str | None = None
    revision: str | None = None
    dtype: str = "auto"
    runtime: str = "torch"
    allow_other_backbone: bool = False
    min_confidence: float | None = None
    dialect: Dialect = FOUND
    mark_truncated: bool = False

    def load(self) -> TextClassifier:
        """Load an adapter on PyTorch, or an export on another runtime.

        Raises:
            PtuneError: As for `ptune.load` and `load_exported`; or an export is to be loaded as an
                adapter is.
        """
        of_adapters = ("model", "revision", "allow_other_backbone")
        given: dict[str, Any] = {name: getattr(self, name) for name in of_adapters}
        if self.runtime == "torch":
            return load(self.adapter, dtype=self.dtype, **given)
        for name, value in given.items():
            if value:
                option = name.replace("_", "-")
                raise PtuneError(f"--{option} is for adapters; an export contains its backbone.")
        return load_exported(self.adapter, self.runtime, dtype=self.dtype)  # type: ignore[arg-type]

    def trained_on(self, columns: tuple[str, ...]) -> Recipe:
        """The same, knowing the columns that were named when the classifier was trained."""
        own = dataclasses.replace(self.columns, trained=columns)
        return dataclasses.replace(self, columns=own)

    def fingerprint(self) -> dict[str, Any]:
        """Everything that decides a prediction, with a hash of the adapter's files.

        Raises:
            PtuneError: The adapter does not exist or is damaged.
        """
        if self.runtime == "torch":
            source = AdapterFiles(self.adapter, revision=self.revision)
            Adapter.read(source, own_backbone=self.model is not None)
            files: list[Path | None] = [source.find(name) for name in PREDICTING]
        else:
            folder = Path(self.adapter)  # a large graph has its weights in another file
            files = [folder / EXPORT_INFO_NAME, folder / QUALITY_NAME]
            files += sorted(folder.glob(MODEL_NAME + "*"))
        rest = dataclasses.asdict(self)
        del rest["adapter"], rest["allow_other_backbone"]
        # What was named for training belongs to the adapter.
        columns = {k: v for k, v in rest["columns"].items() if not k.startswith("trained")}
        return {"adapter": digest_of(files), **rest, "columns": columns}


@dataclass(frozen=True)
class Job:
    """One file to classify.

    Attributes:
        source: The file.
        target: The file for the predictions.
        format: The format of `target`.
        record: The file that records what the predictions were made from. ``None``: no record is
            kept, and the job is never considered done.
        made_from: The content of the record.
    """

    source: Path
    target: Path
    format: str
    record: Path | None = None
    made_from: dict[str, Any] = field(default_factory=dict)

    def is_done(self) -> bool:
        """True if `target` is complete and was made from this recipe and input."""
        if self.record is None or not self.record.is_file() or not self.target.is_file():
            return False
        try:
            recorded = read_json(self.record)
        except PtuneError:
            return False
        return recorded == {**self.made_from, "output": _fingerprint(self.target)}


class Worker:
    """Classifies one file after the other.

    Ray creates a worker in each of its processes; without Ray there is only one.
    """

    def __init__(self, recipe: Recipe, jobs: list[Job]) -> None:
        self.recipe, self.jobs = recipe, jobs

    @cached_property
    def classifier(self) -> TextClassifier:
        """Loaded with the first file, so that its errors are reported like any others."""
        return self.recipe.load()

    def __call__(self, item: dict[str, int]) -> dict[str, Any]:
        """Do the job with the number `item["job"]`.

        Returns:
            `rows` and `truncated`, the number of texts classified and of those that were not read
            to the end, and `error`, a message or an empty string.
        """
        try:
            rows, truncated = self._do(self.jobs[item["job"]])
            return {"rows": rows, "truncated": truncated, "error": ""}
        except PtuneError as error:
            return {"rows": 0, "truncated": 0, "error": str(error)}

    def _do(self, job: Job) -> tuple[int, int]:
        recipe = self.recipe.trained_on(self.classifier.text_columns)
        source = Source.of_file(job.source, recipe.columns, recipe.dialect)
        # The record comes first. It holds the output's time, so it is not valid before the output
        # is in place.
        counts = 0, 0
        with staged_file(job.target, sweep=False) as file:
            mark = self.recipe.mark_truncated
            with writer(file, job.format, self.classifier, mark_truncated=mark) as out:
                counts = write(self.classifier, source, out, self.recipe.min_confidence)
            if job.record is not None:
                with staged(job.record.parent) as records:
                    record = {**job.made_from, "output": _fingerprint(file)}
                    write_json(records / job.record.name, record)
        return counts


def find_jobs(file: Path, output: Path, recipe: Recipe, format: str | None = None) -> list[Job]:
    """List the files to classify.

    Args:
        file: A file, or a folder with files at any depth. Names that start with a dot or an
            underscore are skipped.
        output: A folder. For a single input file it may be a file, which exists or has an
            extension.
        recipe: How to classify.
        format: Format of the output file. ``None``: from its extension.

    Raises:
        PtuneError: There are no files to classify, or the output would overwrite the input or files
            in a folder that `.ptune` does not record.
    """
    if not file.is_dir():
        check_file(file, or_folder=True)
        if not output.is_dir() and (output.suffix or output.exists()):
            check_typed(kind := output_format(output, format), file)
            return [Job(file, output.absolute(), kind)]
    if format is not None:
        raise PtuneError("Files in a folder keep their format. Omit --format.")
    if file.is_dir() and not output.is_dir() and opening.format_of(output) in FORMATS:
        raise PtuneError(
            f"{output} names a file, and {file} is a folder: each of its files becomes one of its "
            "own. Name a folder."
        )
    whole, below = (file if file.is_dir() else file.parent).absolute(), output.absolute()
    holds = "a classifier" if (below / CONFIG_NAME).is_file() else ""
    if below.resolve().is_relative_to(whole.resolve()) and (
        file.is_dir() or below.resolve() == whole.resolve()
    ):
        holds = "the input"
    if holds:
        raise PtuneError(
            f"{output} is the folder of {holds}, and predictions would be mixed with it. Name "
            "another folder."
        )
    found = [file.absolute()] if file.is_file() else sorted(_files(whole))
    if not found:
        raise PtuneError(f"{file} contains no {', '.join(FORMATS)} file. Check the path.")
    fingerprint = recipe.fingerprint()
    jobs, sources = list[Job](), dict[Path, Path]()
    for source in found:
        path = source.relative_to(whole)
        record = below / RECORDS / path.with_name(path.name + ".json")
        made_from = {"recipe": fingerprint, "input": _fingerprint(source)}
        # Sheets are read and not written.
        sheet = opening.format_of(source) in SHEETS
        target = below / (path.with_name(path.name + ".csv") if sheet else path)
        if target.exists() and not record.is_file():
            raise PtuneError(
                f"{output / target.relative_to(below)} exists, and {output / RECORDS} has no note "
                "that ptune wrote it, so it is not replaced. Name another folder with --output."
            )
        if (other := sources.setdefault(target, source)) != source:
            raise PtuneError(
                f"{other} and {source} would both become "
                f"{output / target.relative_to(below)}, because a workbook becomes a CSV file. "
                "Rename one of them."
            )
        jobs.append(Job(source, target, format_of(target), record, made_from))
    return jobs


def _files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        hidden = any(part[0] in "._" for part in path.relative_to(folder).parts)
        if opening.format_of(path) in FORMATS and path.is_file() and not hidden:
            yield path


def run_jobs(
    jobs: list[Job],
    recipe: Recipe,
    *,
    ray: bool = False,
    workers: int | None = None,
    show: Callable[[Results, int], Results] = lambda results, total: results,
) -> tuple[int, int]:
    """Classify files. If one cannot be classified, the others still are.

    Args:
        jobs: The files, from `find_jobs`.
        recipe: How to classify.
        ray: Run on a Ray cluster: the one in `RAY_ADDRESS`, or a new one on this machine.
        workers: Number of classifiers on Ray. ``None``: one per GPU, or one per CPU without GPUs.
        show: Shows progress, like `rich.progress.track`.

    Returns:
        The number of texts classified, and of those that were not read to the end.

    Raises:
        PtuneError: Some files could not be classified. The message says which and why.
    """
    if not jobs:
        return 0, 0
    results = _on_ray(jobs, recipe, workers) if ray else _here(jobs, recipe)
    rows, truncated, failed = 0, 0, []
    for result in show(results, len(jobs)):
        rows += result["rows"]
        truncated += result["truncated"]
        failed += [result["error"]] if result["error"] else []
    if failed:
        done = len(jobs) - len(failed)
        of = f"{len(failed)} of {len(jobs)} files could not be classified. " if done else ""
        rest = f" The other {done} are done." if done else ""
        reasons = list(dict.fromkeys(failed))
        more = f" And {len(reasons) - 3} more files." if len(reasons) > 3 else ""
        raise PtuneError(of + " ".join(reasons[:3]) + more + rest)
    recorded = [job for job in jobs if job.record is not None]
    for folder in {p.parent for job in recorded for p in (job.target, job.record) if p}:
        remove_abandoned(folder)
    return rows, truncated


def _here(jobs: list[Job], recipe: Recipe) -> Iterator[dict[str, Any]]:
    worker = Worker(recipe, jobs)
    for i in range(len(jobs)):
        yield worker({"job": i})


def _on_ray(jobs: list[Job], recipe: Recipe, workers: int | None) -> Iterator[dict[str, Any]]:
    """Run a pool of workers on Ray Data, each with one file at a time.

    A worker that dies is restarted, and its file is classified again from the start.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise missing_package("Ray", "ray") from error
    # Workers may run in another folder.
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
    # ptune shows its own progress bar.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    resources = ray.cluster_resources()
    kind = "GPU" if resources.get("GPU") else "CPU"
    size = min(workers or int(resources[kind]), len(jobs))
    numbers = [{"job": i} for i in range(len(jobs))]
    files = ray.data.from_items(numbers, override_num_blocks=len(jobs))
    pool = files.map(
        Worker,
        fn_constructor_args=(recipe, jobs),
        compute=ray.data.ActorPoolStrategy(size=size),
        num_cpus=1 if kind == "CPU" else None,
        num_gpus=1 if kind == "GPU" else None,
    )
    try:
        yield from pool.iter_rows()
    except ray.exceptions.RayError as error:
        raise PtuneError(f"Ray stopped: {first_line(error)}") from error
    finally:
        if started:
            ray.shutdown()


def _absolute(name: str) -> str:
    """The absolute path of a folder. Other names, such as Hub ids, are returned unchanged."""
    return str(Path(name).absolute()) if Path(name).is_dir() else name
