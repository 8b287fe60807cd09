"""Compare the accuracy of methods over tasks, backbones and seeds, one run after another.

    python benchmarks/suite.py --data-dir data --backbones minilm --jobs 2
    python benchmarks/suite.py --report
    python benchmarks/suite.py --tasks development --set prompt_learning_rate=1e-2 --name "at 1e-2"

Every finished run adds a line to the results file at once. If you start the same command again,
only the missing runs are done. `--report` prints means, standard errors, tasks won and paired
bootstrap intervals. `benchmarks/tasks.py` lists the tasks. Choose defaults on the development
tasks only.

One rule for all methods: the same examples, batch size (32), number of epochs, schedule and
precision (bfloat16 products where the hardware is fast with them, trained parameters in float32).
Every epoch is evaluated and recorded, and **the score is that of the last epoch**, so no epoch is
chosen by looking at the evaluation set. ptune runs with its defaults. The learning rate of every
other method is searched once per task and backbone: three rates, and further ones while the best
is at the end of the range (at most five); seed 0, trained on four fifths of the training examples
and compared on the other fifth. Rates and runs of other methods are also
read from the committed results, so that later only ptune has to run.

On a backbone other than MiniLM, a task has at most 1,000 training examples (banking77: 10 per
label) and 400 evaluation examples, unless --max-train and --max-eval say otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import json
import math
import multiprocessing
import multiprocessing.connection
import os
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from common import (
    Row,
    append_row,
    device_peak_memory_mb,
    machine,
    read_rows,
    reset_peak_memory,
    silence,
    versions,
)
from tasks import FOLDERS, GROUPS, TASKS, hold_out_fifth, load_task

silence()
COMMITTED = Path(__file__).parent / "results" / "suite.jsonl"
VIRTUAL_TOKENS = 20
LIBRARIES = ("ptune", "torch", "transformers", "peft", "setfit", "scikit-learn")
SEARCH, FINAL = "search", "final"
MOST_RATES = 5  # that are searched for one method and task


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        backbone: A short name, a Hub id or a folder.
        task: From `tasks.TASKS`.
        method: From `methods`, or the name of a variant of ptune.
        part: `search`: one learning rate on a fifth of the training examples; `final`: the result.
        rate: Learning rate of a method that is not ptune; ``None``: not yet known, or has none.
        options: ptune's settings.
        shots: Training examples per label; ``None``: all.
    """

    backbone: str
    task: str
    method: str
    part: str
    seed: int
    rate: float | None
    epochs: float | None
    shots: int | None
    max_train: int | None
    max_eval: int | None
    data_dirs: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def key(self) -> tuple[Any, ...]:
        """What identifies the run in a results file."""
        return key_of(asdict(self) | {"backbone": short(self.backbone)})

    def settings(self, **options: Any) -> Any:
        """The run as `TrainSettings`."""
        from ptune import TrainSettings

        chosen = {"model": self.backbone, "epochs": self.epochs, "seed": self.seed}
        return TrainSettings(**{**chosen, **self.options, **options})

    def data(self) -> Any:
        """The examples of the run."""
        data = _task(self.task, self.data_dirs, self.max_train, self.max_eval)
        if self.shots is not None:
            data = data.few_examples(self.shots, self.seed)
        return hold_out_fifth(data) if self.part == SEARCH else data


def key_of(row: Row) -> tuple[Any, ...]:
    """What identifies a run. The searched rate follows from other runs."""
    fields = ("backbone", "task", "method", "part", "seed", "epochs", "shots", "max_train")
    rate = row["rate"] if row["part"] == SEARCH else None
    return (*(row[k] for k in (*fields, "max_eval")), rate)


def short(backbone: str) -> str:
    """How results name a backbone: a folder by its own name."""
    return Path(backbone).name if Path(backbone).is_dir() else backbone


@functools.lru_cache(maxsize=4)
def _task(name: str, folders: tuple[str, ...], max_train: int | None, max_eval: int | None) -> Any:
    return load_task(name, folders, max_train=max_train, max_eval=max_eval)


# Methods. Each takes a job and its data, and returns a curve and the number of trained parameters.


Curve = list[dict[str, float]]  # scores of every evaluation; the last ones are the result
Found = dict[str, Any]


class NotPossible(Exception):
    """The method cannot be run on this backbone or task, or its package does not work here."""


def recorder() -> Any:
    """A callback of `Trainer` that records every evaluation and how long evaluations took."""
    from transformers import TrainerCallback

    class Recorder(TrainerCallback):
        def __init__(self) -> None:
            self.curve: Curve = []
            self.evaluating = 0.0
            self.loss: dict[str, float] = {}

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if "loss" in kwargs["logs"]:
                self.loss = {"train_loss": round(float(kwargs["logs"]["loss"]), 5)}

        def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            scores = {k.removeprefix("eval_"): v for k, v in kwargs["metrics"].items()}
            self.evaluating += scores.get("runtime", 0.0)
            hidden = ("_second", "runtime", "epoch")
            kept = {k: round(v, 5) for k, v in scores.items() if not k.endswith(hidden)}
            self.curve.append({"epoch": round(state.epoch, 3), **kept, **self.loss})

    return Recorder()


ARGUMENTS = {"save_strategy": "no", "logging_strategy": "epoch"}


def ours(job: Job, data: Any) -> Found:
    """`ptune train`."""
    from ptune import train_run

    recorded = recorder()
    settings = job.settings()
    settings.training_arguments = {**ARGUMENTS, **settings.training_arguments}
    with tempfile.TemporaryDirectory() as folder:
        run = train_run(settings, folder, overwrite=True, dataset=data, progress=recorded)
        used = json.loads((Path(folder) / "settings.json").read_text("utf-8"))
    return {
        "curve": recorded.curve,
        "trained_parameters": run.metrics["trainable_parameters"],
        "seconds": run.metrics["seconds"] - recorded.evaluating,
        "settings": {k: v for k, v in used.items() if k not in ("model", "training_arguments")},
    }


@dataclass(frozen=True)
class Rival:
    """Another method, trained by 🤗 `Trainer`.

    Attributes:
        adapt: Turns a backbone into the model to train.
        rates: Learning rates to search.
        reserved: Tokens that texts leave free for a prompt.
        whole: Load all weights in float32, because (almost) all layers are trained.
        left_padding: Pad on the left on decoders.
    """

    adapt: Callable[[Any], Any]
    rates: tuple[float, ...]
    reserved: int = 0
    whole: bool = False
    left_padding: bool = False

    def __call__(self, job: Job, data: Any) -> Found:
        """Train and evaluate."""
        import torch
        from transformers import DataCollatorWithPadding, PrinterCallback, Trainer, set_seed

        from ptune.backbones.loading import fast_dtype, load_backbone, load_tokenizer
        from ptune.texts import Reading
        from ptune.training import trainer as training

        tokenizer, recorded, labels = load_tokenizer(job.backbone), recorder(), data.labels
        set_seed(job.seed)
        backbone = load_backbone(
            job.backbone,
            labels=labels.names,
            problem_type=labels.problem_type,
            dtype="float32" if self.whole else "auto",
        )
        # With embeddings instead of ids, a decoder's head reads the last position, so PEFT's guide
        # pads on the left.
        if self.left_padding and hasattr(backbone, "score"):
            tokenizer.padding_side = "left"
        model = self.adapt(backbone)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        limit = min(tokenizer.model_max_length, 512) - self.reserved
        train, evaluation = (
            training.tokenize(tokenizer, examples, Reading(limit))[0]
            for examples in (data.train, *data.evaluation.values())
        )
        assert job.rate is not None
        settings = job.settings(learning_rate=job.rate)
        settings.training_arguments = {
            **ARGUMENTS,
            "bf16": fast_dtype() == torch.bfloat16,
            "label_names": ["labels"],
        }
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(
                model=model,
                args=training.training_arguments(settings, folder, len(train)),
                train_dataset=train,
                eval_dataset=evaluation,
                data_collator=DataCollatorWithPadding(tokenizer),
                compute_metrics=training.metric_function(data),
                callbacks=[recorded, training.NotFinite()],
            )
            trainer.remove_callback(PrinterCallback)
            started = time.perf_counter()
            trainer.train()
            seconds = time.perf_counter() - started - recorded.evaluating
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        return {"curve": recorded.curve, "trained_parameters": trained, "seconds": seconds}


def _peft(make: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def adapt(backbone: Any) -> Any:
        import peft

        return peft.get_peft_model(backbone, make(peft))

    return adapt


def _biases(backbone: Any) -> Any:
    """Train the bias vectors and the head (BitFit, arXiv 2106.10199)."""
    from ptune.backbones.architectures import names_of_head

    head, some = set(names_of_head(backbone)), False
    for name, parameter in backbone.named_parameters():
        bias = name.endswith("bias") and name not in head
        some |= bias
        parameter.requires_grad_(bias or name in head)
    if not some:
        raise NotPossible("the backbone has no bias vectors")
    return backbone


def majority(job: Job, data: Any) -> Found:
    """Always predict the most frequent label."""
    from ptune import labels as metrics
    from ptune.data.dataset import LABEL

    (evaluation,) = data.evaluation.values()
    targets, train = np.asarray(evaluation[LABEL]), np.asarray(data.train[LABEL])
    if data.labels.is_regression:
        raise NotPossible("a regression has no most frequent label")
    if data.labels.is_single:
        predicted = np.full(len(targets), np.bincount(train).argmax())
    else:
        predicted = np.zeros_like(targets, dtype=int)
        predicted[:, train.sum(axis=0).argmax()] = 1
    scores = metrics.compute(data.metrics, targets.astype(int), predicted)
    return {"curve": [scores], "trained_parameters": 0, "seconds": 0.0}


def logistic_regression(job: Job, data: Any) -> Found:
    """Linear model on mean embeddings; for pairs: both, their product and difference.

    The penalty is chosen on a fifth of the training examples. A ridge regression for a regression.
    """
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.model_selection import GridSearchCV, ShuffleSplit
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from ptune import labels as metrics
    from ptune.data.dataset import LABEL

    (evaluation,) = data.evaluation.values()
    started = time.perf_counter()
    train, test = (_features(job.backbone, d) for d in (data.train, evaluation))
    strengths = [1e-4, 1e-3, 1e-2, 1e-1, 1.0]
    if data.labels.is_regression:
        model, grid = Ridge(), {"ridge__alpha": [1 / c for c in strengths]}
    else:
        model, grid = LogisticRegression(max_iter=300), {"logisticregression__C": strengths}
        if data.labels.is_multi:
            model = OneVsRestClassifier(model)
            grid = {"onevsrestclassifier__estimator__C": strengths}
    search = GridSearchCV(
        make_pipeline(StandardScaler(), model),
        grid,
        cv=ShuffleSplit(1, test_size=0.2, random_state=0),
        scoring="f1_macro" if data.labels.is_multi else None,
    ).fit(train, np.asarray(data.train[LABEL]))
    scores = metrics.compute(data.metrics, np.asarray(evaluation[LABEL]), search.predict(test))
    outputs = 1 if data.labels.is_regression else len(data.labels)
    return {
        "curve": [scores],
        "trained_parameters": (train.shape[1] + 1) * outputs,
        "seconds": time.perf_counter() - started,
        "settings": {k.rpartition("__")[2]: v for k, v in search.best_params_.items()},
    }


def _features(backbone: str, examples: Any) -> np.ndarray:
    """The features of texts, or of pairs: ``[n, width]``."""
    from ptune.data.dataset import text_columns

    columns = [embeddings(backbone, column) for column in text_columns(examples)]
    if len(columns) == 1:
        return columns[0]
    a, b = columns
    return np.concatenate([a, b, a * b, np.abs(a - b)], axis=1)


def embeddings(backbone: str, texts: list[str]) -> np.ndarray:
    """The last hidden states, averaged over each text: ``[n, hidden]``, float32."""
    import torch

    from ptune.backbones.loading import default_device, load_backbone, load_tokenizer

    tokenizer, device = load_tokenizer(backbone), default_device()
    encoder = load_backbone(backbone, dtype="float32").base_model.eval().to(device)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    vectors: Any = [None] * len(texts)
    with torch.inference_mode():
        for start in range(0, len(texts), 64):
            chosen = order[start : start + 64]
            batch = tokenizer(
                [texts[i] for i in chosen],
                padding=True,
                truncation=True,
                max_length=512,
                return_tensors="pt",
            ).to(device)
            states = encoder(**batch).last_hidden_state  # [batch, seq, hidden]
            mask = batch["attention_mask"][..., None]
            means = (states * mask).sum(dim=1) / mask.sum(dim=1)
            for i, mean in zip(chosen, means.float().cpu().numpy(), strict=True):
                vectors[i] = mean
    return np.stack(vectors)


def setfit(job: Job, data: Any) -> Found:
    """SetFit: contrastive fine-tuning of a sentence encoder, then logistic regression."""
    if job.shots is None:
        raise NotPossible("SetFit is for few examples (--shots)")
    try:
        from setfit import SetFitModel, Trainer, TrainingArguments
    except ImportError as error:
        raise NotPossible(f"setfit does not import: {error}") from error
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from sklearn.linear_model import LogisticRegression

    from ptune import labels as metrics
    from ptune.backbones.loading import location
    from ptune.data.dataset import LABEL, text_columns

    (evaluation,) = data.evaluation.values()

    def texts(examples: Any) -> list[str]:
        return [" ".join(parts) for parts in zip(*text_columns(examples), strict=True)]

    body = SentenceTransformer(location(job.backbone))
    model = SetFitModel(model_body=body, model_head=LogisticRegression(max_iter=1000))
    train = Dataset.from_dict({"text": texts(data.train), "label": list(data.train[LABEL])})
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        # 20 pairs of each kind per text, as in the paper (arXiv 2209.11055).
        args = TrainingArguments(
            output_dir=folder, num_epochs=1, num_iterations=20, batch_size=16, seed=job.seed
        )
        Trainer(model=model, args=args, train_dataset=train).train()
    seconds = time.perf_counter() - started
    predicted = np.asarray(model.predict(texts(evaluation)))
    scores = metrics.compute(data.metrics, np.asarray(evaluation[LABEL]), predicted)
    trained = sum(p.numel() for p in body.parameters())
    return {"curve": [scores], "trained_parameters": trained, "seconds": seconds}


RIVALS: dict[str, Callable[[Job, Any], Found]] = {
    "majority": majority,
    "logistic regression": logistic_regression,
    "PEFT LoRA": Rival(
        _peft(
            lambda peft: peft.LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, lora_dropout=0.1)
        ),
        (3e-4, 1e-3, 3e-3),
    ),
    "full fine-tuning": Rival(lambda backbone: backbone, (2e-5, 6e-5, 2e-4), whole=True),
    "PEFT p-tuning": Rival(
        _peft(
            lambda peft: peft.PromptEncoderConfig(
                task_type="SEQ_CLS", num_virtual_tokens=VIRTUAL_TOKENS, encoder_hidden_size=128
            )
        ),
        (1e-3, 3e-3, 1e-2),
        reserved=VIRTUAL_TOKENS,
        left_padding=True,
    ),
    "PEFT prefix tuning": Rival(
        _peft(
            lambda peft: peft.PrefixTuningConfig(
                task_type="SEQ_CLS", num_virtual_tokens=VIRTUAL_TOKENS
            )
        ),
        (3e-3, 1e-2, 3e-2),
        reserved=VIRTUAL_TOKENS,
    ),
    "BitFit": Rival(_biases, (1e-3, 3e-3, 1e-2), whole=True),
    "SetFit": setfit,
}
DETERMINISTIC = ("majority", "logistic regression")


def variants_of_ptune() -> dict[str, dict[str, Any]]:
    """The defaults of ptune with each kind of prompt."""
    from typing import get_args

    from ptune.prompts.config import Depth

    kinds = sorted(get_args(Depth), key=lambda kind: kind != "deep")
    return {f"ptune {kind}": {"prompt": kind} for kind in kinds}


# Runs.


def perform(job: Job) -> Row:
    """Do one run in this process. The row also records why it could not be done."""
    row = asdict(job) | {"backbone": short(job.backbone), "metric": TASKS[job.task].metric}
    del row["data_dirs"]
    started = time.perf_counter()
    try:
        data = job.data()
        reset_peak_memory()
        method = RIVALS.get(job.method, ours)
        found = method(job, data)
        last = found["curve"][-1]
        if not math.isfinite(last.get("loss", 0.0)):
            raise ArithmeticError("the loss is not a finite number: the run has diverged")
        row |= {
            **found,
            "score": round(last[row["metric"]], 5),
            "scores": {k: round(last[k], 5) for k in data.metrics},
            "seconds": round(found["seconds"], 2),
            "train_examples": len(data.train),
            "eval_examples": len(data.evaluation[""]),
            "peak_mb": round(device_peak_memory_mb()),
        }
    except NotPossible as reason:
        row["reason"] = str(reason)
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {error}"[:500]
        traceback.print_exc()
    release_memory()
    finished = {"wall": round(time.perf_counter() - started, 2), "machine": machine()}
    return row | finished | {"versions": versions(*LIBRARIES)}


def release_memory() -> None:
    """Give memory of the GPU back to the other processes."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def end_with_parent() -> None:
    """End this process when its parent is gone, even if that was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def serve(pipe: Any) -> None:
    """The process of a `Worker`: one run after another, until the pipe or the parent ends."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, KeyboardInterrupt, BrokenPipeError):
        while True:
            pipe.send(perform(pipe.recv()))


class Worker:
    """A process that does runs. It keeps imports, data and the GPU's context between them."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()
        self.job: Job | None = None

    def start(self, job: Job) -> None:
        """Begin a run."""
        self.job = job
        self.pipe.send(job)

    def result(self) -> Row:
        """Wait for the end of the run. If the process died, the row says so."""
        job, self.job = self.job, None
        assert job is not None
        try:
            return self.pipe.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            died = f"the process ended with exit code {self.process.exitcode}"
            row = asdict(job) | {"backbone": short(job.backbone), "error": died}
            del row["data_dirs"]
            self.__init__()  # type: ignore[misc]
            return row


class Queue:
    """The runs that are left, in order of importance, and what is known from finished ones.

    Args:
        plan: All runs wanted.
        rows: Earlier results.
    """

    def __init__(self, plan: list[Job], rows: list[Row]) -> None:
        self.known = {key_of(row): row for row in rows}
        self.left = [job for job in plan if job.key not in self.known or self._is_outdated(job)]
        self.running: set[tuple[Any, ...]] = set()

    def add(self, row: Row) -> None:
        """Remember a finished run."""
        self.known[key_of(row)] = row
        self.running.discard(key_of(row))

    def _is_outdated(self, job: Job) -> bool:
        """True if a result was measured before its learning rate was completely searched."""
        row = self.known[job.key]
        is_rival = isinstance(RIVALS.get(job.method), Rival)
        if job.part == SEARCH or not is_rival or "score" not in row:
            return False
        scores, further = self.searched(job), self._further(job)
        return bool(further) or scores.get(row["rate"]) != max(scores.values(), default=None)

    def _further(self, job: Job) -> Job | None:
        """The search of one more rate that a run needs; ``None``: all rates were searched."""
        further = replace(job, part=SEARCH, seed=0, rate=beyond(self.searched(job)))
        return None if further.rate is None or further.key in self.known else further

    def searched(self, job: Job) -> dict[float, float]:
        """Score of each rate that was searched for a run's method and that worked."""
        own = replace(job, part=SEARCH, seed=0, rate=None).key
        rows = [row for key, row in self.known.items() if key[:-1] == own[:-1]]
        return {row["rate"]: row["score"] for row in rows if "score" in row}

    def take(self, seconds_left: float) -> Job | None:
        """The first run that can start, and is expected to end in time."""
        for job in self.left:
            if self.expected(job) > seconds_left:
                continue
            rival = RIVALS.get(job.method)
            if job.part == SEARCH or not isinstance(rival, Rival):
                return self._start(job)
            searches = [each.key for each in searches_for(job, rival)]
            if any(key not in self.known for key in searches) or self._searching(job):
                continue
            if further := self._further(job):
                return self._start(further)
            self.left.remove(job)
            scores = self.searched(job)
            # If no rate worked, the run with the first one records the reason.
            return replace(job, rate=best_rate(scores) if scores else rival.rates[0])
        return None

    def _start(self, job: Job) -> Job:
        if job in self.left:
            self.left.remove(job)
        self.running.add(job.key)
        return job

    def _searching(self, job: Job) -> bool:
        own = replace(job, part=SEARCH, seed=0, rate=None).key
        return any(key[:-1] == own[:-1] for key in self.running)

    def expected(self, job: Job) -> float:
        """Seconds of the longest similar run so far."""
        same = ("backbone", "task", "method")
        own = asdict(job) | {"backbone": short(job.backbone)}
        similar = [r for r in self.known.values() if all(r[k] == own[k] for k in same)]
        return max((row.get("wall", 0.0) for row in similar), default=0.0)


def searches_for(job: Job, rival: Rival) -> list[Job]:
    """The runs that search the learning rate of a run."""
    return [replace(job, part=SEARCH, seed=0, rate=rate) for rate in rival.rates]


def best_rate(scores: dict[float, float]) -> float:
    """The rate with the best score; of several, the one nearest to the middle of the range."""
    rates = sorted(scores)
    middle = (len(rates) - 1) / 2
    return max(rates, key=lambda rate: (scores[rate], -abs(rates.index(rate) - middle)))


def beyond(scores: dict[float, float]) -> float | None:
    """A rate to search next, because the best one is at the end of the range; ``None``: done."""
    if not scores or len(scores) >= MOST_RATES:
        return None
    best, lowest, highest = best_rate(scores), min(scores), max(scores)
    further = {highest: best * 3, lowest: best / 3}.get(best)
    return None if further is None else float(f"{further:.1g}")


def planned(args: argparse.Namespace, variants: dict[str, dict[str, Any]]) -> list[Job]:
    """All runs of the command, the most important first: complete tables for one seed at a time."""
    plan: dict[Any, Job] = {}
    for seed in args.seeds:
        for backbone in args.backbones:
            limited = backbone != "minilm"
            for task in args.tasks:
                for method in [*variants, *args.methods]:
                    if method in DETERMINISTIC and not args.shots and seed != args.seeds[0]:
                        continue
                    job = Job(
                        backbone=backbone,
                        task=task,
                        method=method,
                        part=FINAL,
                        seed=seed,
                        rate=None,
                        epochs=args.epochs,
                        shots=args.shots,
                        max_train=args.max_train or (1000 if limited else None),
                        max_eval=args.max_eval or (400 if limited else None),
                        data_dirs=tuple(args.data_dir),
                        options=variants.get(method, {}),
                    )
                    rival = RIVALS.get(method)
                    before = searches_for(job, rival) if isinstance(rival, Rival) else []
                    for each in (*before, job):
                        plan.setdefault(each.key, each)
    return list(plan.values())


@contextlib.contextmanager
def workers(count: int) -> Iterator[list[Worker]]:
    """Processes that share the cores. They end with the context."""
    threads = str(max(1, joblib.cpu_count() // count))  # of the cores that this process may use
    os.environ |= {"OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
    started = [Worker() for _ in range(count)]
    try:
        yield started
    finally:
        for worker in started:
            worker.process.kill()
        for worker in started:
            worker.process.join()


def execute(queue: Queue, file: Path, jobs: int, minutes: float | None) -> None:
    """Do the runs that are left. After `minutes`, unfinished ones are given up."""
    end = time.monotonic() + (60 * minutes if minutes else float("inf"))
    total, done = len(queue.left), 0
    print(f"{total} runs to do, {len(queue.known)} known", flush=True)
    with workers(min(jobs, max(1, total))) as started:
        while True:
            for worker in started:
                if worker.job is None and (job := queue.take(end - time.monotonic())):
                    worker.start(job)
            busy = {w.pipe: w for w in started if w.job}
            if not busy:
                break
            left = end - time.monotonic()
            waiting = None if left == float("inf") else max(0.0, left)
            ready = multiprocessing.connection.wait(list(busy), waiting)
            if not ready:
                break
            for pipe in ready:
                row = busy[pipe].result() | {"jobs": jobs}
                append_row(file, row)
                queue.add(row)
                done += 1
                print(f"{done}/{total} {describe(row)}", flush=True)
        given_up = sum(1 for worker in started if worker.job)
    if queue.left or given_up:
        print(f"{len(queue.left) + given_up} runs left. Start the same command again to do them.")


def describe(row: Row) -> str:
    """One line about a run."""
    rate = "" if row["rate"] is None else f" at {row['rate']:g}"
    what = f"{row['backbone']} {row['task']}, {row['method']}{rate}, seed {row['seed']}"
    part = " (search)" if row["part"] == SEARCH else ""
    if "score" not in row:
        return f"{what}{part}: {row.get('reason') or row.get('error')}"
    curve = " ".join(f"{point[row['metric']]:.3f}" for point in row["curve"])
    return f"{what}{part}: {row['metric']} {curve} ({row['seconds']:.1f} of {row['wall']:.1f} s)"


# The report.


def report(rows: list[Row], reference: str | None) -> None:
    """Print tables of the final runs, each group of comparable runs separately."""
    latest = {key_of(row): row for row in rows}
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in latest.values():
        same = (row["backbone"], row["shots"], row["epochs"], row["max_train"], row["max_eval"])
        groups.setdefault(same, []).append(row)
    for (backbone, shots, epochs, *limits), found in groups.items():
        few = [f"{shots} examples per label"] if shots else []
        long = [f"{epochs:g} epochs"] if epochs else ["200 steps or 8 epochs"]
        sizes = [f"at most {n} {of}" for n, of in zip(limits, ("training", "evaluation"),
                                                      strict=True) if n]  # fmt: skip
        print(f"\n## {', '.join([backbone, *few, *long, *sizes])}\n")
        final = [row for row in found if row["part"] == FINAL and "score" in row]
        if final:
            print_scores(final)
            print_verdict(final, reference)
        print_rates(found)
        for row in found:
            if "score" not in row:
                print(f"- not run: {describe(row)}")


Scores = dict[str, dict[str, dict[int, float]]]  # method, task, seed


def scores_of(rows: list[Row]) -> Scores:
    """Scores by method, task and seed; methods and tasks in a fixed order."""
    methods = list(dict.fromkeys([r["method"] for r in rows if r["method"] not in RIVALS]))
    methods += [m for m in reversed(RIVALS) if any(r["method"] == m for r in rows)]
    found: Scores = {method: {} for method in methods}
    for task in TASKS:
        for row in rows:
            if row["task"] == task:
                found[row["method"]].setdefault(task, {})[row["seed"]] = row["score"]
    return found


def print_scores(rows: list[Row]) -> None:
    """Mean and standard error of every method on every task, and averages over groups of tasks."""
    scores = scores_of(rows)
    tasks = [task for task in TASKS if any(task in own for own in scores.values())]
    groups = {g: [t for t in tasks if t in GROUPS[g]] for g in GROUPS}
    groups = {g: names for g, names in groups.items() if names}
    means = {m: {t: float(np.mean(list(s.values()))) for t, s in own.items()}
             for m, own in scores.items()}  # fmt: skip
    best = {t: max(own[t] for own in means.values() if t in own) for t in tasks}
    header = ["method", *tasks, *groups, "wins", "spread", "seconds", "peak MB"]
    print("| " + " | ".join(header) + " |\n|" + " --- |" * len(header))
    for method, own in scores.items():
        cells = [method]
        for task in tasks:
            values = list(own.get(task, {}).values())
            error = np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else None
            mean = f"{means[method][task]:.3f}" if values else "-"
            cells.append(mean if error is None else f"{mean} ± {error:.3f}")
        for names in groups.values():
            complete = all(t in means[method] for t in names)
            cells.append(f"{np.mean([means[method][t] for t in names]):.4f}" if complete else "-")
        cells.append(str(sum(means[method].get(t) == best[t] for t in tasks)))
        stds = [np.std(list(s.values()), ddof=1) for s in own.values() if len(s) > 1]
        cells.append(f"{np.mean(stds):.4f}" if stds else "-")
        of_method = [row for row in rows if row["method"] == method]
        cells.append(f"{np.mean([row['seconds'] for row in of_method]):.1f}")
        cells.append(f"{max(row['peak_mb'] for row in of_method):,}")
        print("| " + " | ".join(cells) + " |")
    print(
        "\nMean ± standard error over seeds; the groups are averages of means. Wins: tasks with "
        "the best mean. Spread: standard deviation over seeds, averaged over tasks."
    )
    print("Metrics: " + ", ".join(f"{t} {TASKS[t].metric}" for t in tasks) + ".")


def print_verdict(rows: list[Row], reference: str | None) -> None:
    """Differences between one method and each other one, paired by task and seed."""
    scores = scores_of(rows)
    ours = reference or next(iter(scores))
    if ours not in scores:
        return
    lines = []
    for method, own in scores.items():
        pairs: dict[str, list[float]] = {}
        for task, seeds in scores[ours].items():
            for seed, score in seeds.items():
                # A method without randomness has one run, which every seed is compared with.
                theirs = own.get(task, {})
                alone = method in DETERMINISTIC and len(theirs) == 1
                other = next(iter(theirs.values())) if alone else theirs.get(seed)
                if other is not None and method != ours:
                    pairs.setdefault(task, []).append(score - other)
        if pairs:
            each = {task: float(np.mean(differences)) for task, differences in pairs.items()}
            low, high = interval([d for differences in pairs.values() for d in differences])
            ahead, behind = (sum(s * d > 0 for d in each.values()) for s in (1, -1))
            worst = min(each, key=lambda task: each[task])
            lines.append(
                f"| {method} | {np.mean(list(each.values())):+.4f} | {low:+.4f} … {high:+.4f} | "
                f"{ahead} : {behind} | {worst} {each[worst]:+.3f} |"
            )
    if lines:
        print(f"\n| {ours} minus | mean | 90% interval | tasks ahead : behind | worst task |")
        print("\n".join(["| --- | --- | --- | --- | --- |", *lines]))
        print("\nInterval: paired bootstrap over all pairs of a task and a seed.")


def interval(differences: list[float]) -> tuple[float, float]:
    """90% percentile interval of the mean, from 10,000 resamples."""
    values = np.array(differences)
    drawn = np.random.default_rng(0).integers(0, len(values), (10_000, len(values)))
    low, high = np.percentile(values[drawn].mean(axis=1), [5, 95])
    return float(low), float(high)


def print_rates(rows: list[Row]) -> None:
    """The searched learning rates; a best rate at the end of its range is marked."""
    lines = []
    for method in RIVALS:
        cells = []
        for task in TASKS:
            own = {r["rate"]: r["score"] for r in rows if "score" in r and r["part"] == SEARCH
                   and (r["method"], r["task"]) == (method, task)}  # fmt: skip
            if own:
                best = best_rate(own)
                at_end = best in (min(own), max(own))
                cells.append(f"{task} {best:g}{'*' if at_end else ''}")
        if cells:
            lines.append(f"- {method}: {', '.join(cells)}")
    if lines:
        print(
            "\nSearched learning rates (* at the end of the range):\n\n" + "\n".join(lines) + "\n"
        )


# The command line.


def value_of(text: str) -> tuple[str, Any]:
    """`name=value` of --set; the value is JSON, or else a string."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not name=value")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = made.add_argument
    add("--data-dir", nargs="+", default=FOLDERS, help="folders that hold the tasks' folders")
    add("--backbones", nargs="+", default=["minilm"], help="names or folders")
    groups = [*GROUPS, *TASKS]
    usual = [task for task in TASKS if task not in GROUPS["further"]]
    add("--tasks", nargs="+", default=usual, choices=groups, metavar="TASK")
    add("--methods", nargs="*", metavar="METHOD", help="default: all, or only the variants")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--epochs", type=float, help="default: 4; with --shots as in `ptune train`")
    add("--shots", type=int, help="training examples per label")
    add("--max-train", type=int)
    add("--max-eval", type=int)
    add("--set", type=value_of, nargs="+", action="extend", default=[], metavar="NAME=VALUE",
        help="settings of ptune; needs --name")  # fmt: skip
    add("--name", help="name of the variant that --set describes")
    add("--variants", type=Path, help="JSON file: settings of ptune by name")
    add("--results", type=Path, default=Path("runs/suite/suite.jsonl"))
    add("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    add("--jobs", type=int, default=1, help="number of processes")
    add("--minutes", type=float, help="stop after this time")
    add("--retry", action="store_true", help="repeat runs that failed")
    add("--tiny", action="store_true", help="rehearse: few examples, one epoch")
    add("--report", nargs="*", type=Path, metavar="FILE",
        help="print the report of these files (default: all results) and stop")  # fmt: skip
    add("--reference", help="method that the others are compared with")
    return made


def main() -> None:
    """Run the suite or print its report."""
    options = parser()
    args = options.parse_args()
    if args.report is not None:
        report(read_rows(args.report or [COMMITTED, args.results]), args.reference)
        return
    ptune = variants_of_ptune()
    variants = {args.name: dict(args.set)} if args.name else {}
    if bool(args.set) != bool(args.name):
        options.error("--set and --name belong together")
    if args.variants:
        variants |= json.loads(args.variants.read_text("utf-8"))
    default = [] if variants else [*ptune, *RIVALS]
    args.methods = default if args.methods is None else args.methods
    if unknown := [m for m in args.methods if m not in {**ptune, **RIVALS}]:
        options.error(f"no method {unknown[0]!r}; there are {', '.join([*ptune, *RIVALS])}")
    variants |= {m: ptune[m] for m in args.methods if m in ptune}
    args.methods = [m for m in args.methods if m not in ptune]
    args.tasks = [t for each in args.tasks for t in GROUPS.get(each, [each])]
    if args.tiny:
        args.epochs, args.max_train, args.max_eval = args.epochs or 1.0, 48, 32
    if args.epochs is None and not args.shots:
        args.epochs = 4.0
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    rows = [row for row in read_rows([COMMITTED]) if row["method"] in RIVALS]
    rows += read_rows([args.results])
    if args.retry:
        rows = [row for row in rows if "error" not in row]
    queue = Queue(planned(args, variants), rows)
    for name, settings in variants.items():
        before = [r for r in rows if r["method"] == name and r["options"] != settings]
        if before:
            options.error(
                f"{args.results} has {name!r} with {before[0]['options']}: choose another --name"
            )
    execute(queue, args.results, args.jobs, args.minutes)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
