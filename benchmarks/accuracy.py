"""Compare the accuracy of methods on one backbone and dataset, with the same number of epochs.

    python benchmarks/accuracy.py --task mrpc --data-dir glue --output-dir runs/accuracy

This runs every method with every seed, each run in its own process, and prints a table. It writes
`accuracy.json` and `accuracy.png` to the output folder. Runs that the file already contains are
skipped, so an interrupted benchmark resumes. Scores are those of the last epoch, so no epoch is
chosen by looking at the evaluation set. ptune uses its defaults, which were chosen on MRPC's dev
set (docs/which.md), so the comparison is fairer on other data. Other methods use common settings.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import peak_memory_mb, versions

VIRTUAL_TOKENS = 20


@dataclass(frozen=True)
class Job:
    """One method on one dataset with one seed."""

    method: str
    seed: int
    model: str
    epochs: float | None
    task: str | None
    data_dir: str | None
    train_file: str | None
    eval_file: str | None
    shots: int | None

    def settings(self, **options: Any) -> Any:
        """The job as `TrainSettings`."""
        from ptune import TrainSettings

        return TrainSettings(
            model=self.model,
            task=self.task,
            data_dir=self.data_dir,
            train_file=self.train_file,
            eval_file=self.eval_file,
            epochs=self.epochs,
            seed=self.seed,
            examples_per_label=self.shots,
            **options,
        )

    def dataset(self) -> Any:
        """The dataset."""
        from ptune.training.run import load_dataset

        return load_dataset(self.settings())


Scores = dict[str, float]
Method = Callable[[Job], tuple[Scores, int]]  # scores, number of trained parameters


def majority(job: Job) -> tuple[Scores, int]:
    """Always predict the most frequent label."""
    from ptune.training.report import majority

    return majority(job.dataset())[0], 0


def logistic_regression(job: Job) -> tuple[Scores, int]:
    """Logistic regression on mean embeddings; for pairs: both, their product and difference."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from ptune import labels as metrics
    from ptune.data import dataset as data

    dataset = job.dataset()
    (evaluation,) = dataset.evaluation.values()
    train, test = (_features(job.model, d) for d in (dataset.train, evaluation))
    # The strength of the penalty is chosen on the training set.
    grid = {"logisticregression__C": [1e-4, 1e-3, 1e-2, 1e-1, 1.0]}
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    search = GridSearchCV(pipeline, grid, cv=4).fit(train, list(dataset.train[data.LABEL]))
    classifier = search.best_estimator_
    scores = metrics.compute(
        dataset.metrics, np.asarray(evaluation[data.LABEL]), classifier.predict(test)
    )
    coefficients = classifier[-1]
    return scores, coefficients.coef_.size + coefficients.intercept_.size


def _features(model: str, dataset: Any) -> np.ndarray:
    from ptune.data import dataset as data
    from ptune.demo import mean_embeddings

    columns = [
        mean_embeddings(dataset[name], model)
        for name in (data.TEXT, data.PAIR)
        if name in dataset.column_names
    ]
    if len(columns) == 1:
        return columns[0]
    a, b = columns
    return np.concatenate([a, b, a * b, np.abs(a - b)], axis=1)


def other(learning_rate: float, adapt: Callable[[Any], Any], reserved: int = 0) -> Method:
    """Another method, trained by 🤗 `Trainer`.

    Args:
        learning_rate: The only learning rate.
        adapt: Turns a backbone into the model to train.
        reserved: Tokens that texts leave free for a prompt.
    """

    def run(job: Job) -> tuple[Scores, int]:
        import torch
        import transformers
        from transformers import DataCollatorWithPadding, Trainer

        from ptune.backbones.loading import fast_dtype, load_backbone, load_tokenizer
        from ptune.training import trainer as training

        dataset, tokenizer = job.dataset(), load_tokenizer(job.model)
        transformers.set_seed(job.seed)
        labels = dataset.labels
        backbone = load_backbone(job.model, labels=labels.names, problem_type=labels.problem_type)
        model = adapt(backbone)
        # Frozen weights as in ptune; trained ones in float32, under autocast.
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        limit = min(tokenizer.model_max_length, 512) - reserved
        encoded = [
            training.tokenize(tokenizer, d, limit)[0]
            for d in (dataset.train, *dataset.evaluation.values())
        ]
        with tempfile.TemporaryDirectory() as folder:
            settings = job.settings(learning_rate=learning_rate)
            settings.training_arguments = {
                "save_strategy": "no",
                "eval_strategy": "no",
                "bf16": fast_dtype() == torch.bfloat16,
                "use_cpu": not torch.cuda.is_available(),
                "label_names": ["labels"],
            }
            trainer = Trainer(
                model=model,
                args=training.training_arguments(settings, folder, len(dataset.train)),
                train_dataset=encoded[0],
                eval_dataset=encoded[1],
                data_collator=DataCollatorWithPadding(tokenizer),
                compute_metrics=training.metric_function(dataset),
            )
            trainer.train()
            found = trainer.evaluate()
        scores = {name: found[f"eval_{name}"] for name in dataset.metrics}
        return scores, sum(p.numel() for p in model.parameters() if p.requires_grad)

    return run


def _peft(make: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def adapt(backbone: Any) -> Any:
        import peft

        return peft.get_peft_model(backbone, make(peft))

    return adapt


def _head_only(backbone: Any) -> Any:
    for parameter in backbone.base_model.parameters():
        parameter.requires_grad_(False)
    return backbone


def setfit(job: Job) -> tuple[Scores, int]:
    """SetFit: contrastive fine-tuning of a sentence encoder, then logistic regression."""
    from sentence_transformers import SentenceTransformer
    from setfit import SetFitModel, Trainer, TrainingArguments
    from sklearn.linear_model import LogisticRegression

    from ptune import labels as metrics
    from ptune.backbones.loading import location
    from ptune.data import dataset as data

    dataset = job.dataset()
    (evaluation,) = dataset.evaluation.values()

    def texts(dataset: Any) -> list[str]:
        columns = [dataset[c] for c in (data.TEXT, data.PAIR) if c in dataset.column_names]
        return [" ".join(parts) for parts in zip(*columns, strict=True)]

    from datasets import Dataset

    body = SentenceTransformer(location(job.model))
    model = SetFitModel(model_body=body, model_head=LogisticRegression(max_iter=1000))
    train = Dataset.from_dict(
        {"text": texts(dataset.train), "label": list(dataset.train[data.LABEL])}
    )
    with tempfile.TemporaryDirectory() as folder:
        # 20 pairs of each kind per text, as in the paper (arXiv 2209.11055).
        args = TrainingArguments(
            output_dir=folder, num_epochs=1, num_iterations=20, batch_size=16, seed=job.seed
        )
        Trainer(model=model, args=args, train_dataset=train).train()
    predicted = np.asarray(model.predict(texts(evaluation)))
    scores = metrics.compute(dataset.metrics, np.asarray(evaluation[data.LABEL]), predicted)
    return scores, sum(p.numel() for p in body.parameters())


def ours(**options: Any) -> Method:
    """`ptune train`."""

    def run(job: Job) -> tuple[Scores, int]:
        from ptune import train_run

        settings = job.settings(**options)
        settings.training_arguments = {"save_strategy": "no"}
        with tempfile.TemporaryDirectory() as folder:
            results = train_run(settings, folder, overwrite=True, dataset=job.dataset()).metrics
        scores = {k: v for k, v in results["eval"].items() if k != "loss"}
        return scores, results["trainable_parameters"]

    return run


METHODS: dict[str, Method] = {
    "majority class": majority,
    "logistic regression": logistic_regression,
    "head only": other(1e-3, _head_only),
    "PEFT p-tuning": other(
        1e-3,
        _peft(
            lambda peft: peft.PromptEncoderConfig(
                task_type="SEQ_CLS", num_virtual_tokens=VIRTUAL_TOKENS, encoder_hidden_size=128
            )
        ),
        reserved=VIRTUAL_TOKENS,
    ),
    "PEFT prefix tuning": other(
        1e-2,
        _peft(
            lambda peft: peft.PrefixTuningConfig(
                task_type="SEQ_CLS", num_virtual_tokens=VIRTUAL_TOKENS
            )
        ),
        reserved=VIRTUAL_TOKENS,
    ),
    "PEFT LoRA": other(
        1e-3,
        _peft(
            lambda peft: peft.LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, lora_dropout=0.1)
        ),
    ),
    "full fine-tuning": other(5e-5, lambda backbone: backbone.float()),
    "SetFit": setfit,
    "ptune input prompt": ours(prompt="input"),
    "ptune deep prompt": ours(prompt="deep"),
}
DETERMINISTIC = ("majority class", "logistic regression")
FEW_ONLY = ("SetFit",)
# Libraries that the numbers depend on.
LIBRARIES = ("ptune", "torch", "transformers", "peft", "setfit", "scikit-learn")


def run_here(job: Job) -> None:
    """Run one job and print its result as JSON."""
    started = time.perf_counter()
    scores, trained = METHODS[job.method](job)
    result = {
        "scores": scores,
        "trained_parameters": trained,
        "seconds": round(time.perf_counter() - started, 1),
        "peak_memory_mb": round(peak_memory_mb()),
    }
    print("RESULT " + json.dumps(result))


def run_apart(job: Job) -> dict[str, Any]:
    """Run one job in its own process, so that its peak memory is its own."""
    command = [sys.executable, __file__, "--job", json.dumps(vars(job))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            return json.loads(line.removeprefix("RESULT "))
    raise SystemExit(f"{job.method} with seed {job.seed} failed:\n{done.stdout}{done.stderr}")


def summarise(results: dict[str, Any]) -> list[dict[str, Any]]:
    """One record per method, over its seeds."""
    from ptune.labels import mean_and_std

    rows = []
    for method in (m for m in METHODS if m in results["runs"]):
        runs = list(results["runs"][method].values())
        row: dict[str, Any] = {"method": method, "seeds": len(runs)}
        for name in runs[0]["scores"]:
            found = mean_and_std([r["scores"][name] for r in runs])
            row[name], row[f"{name}_std"] = found["mean"], found["std"]
        row["trained_parameters"] = runs[0]["trained_parameters"]
        row["seconds"] = mean_and_std([r["seconds"] for r in runs])["mean"]
        row["peak_memory_mb"] = max(r["peak_memory_mb"] for r in runs)
        rows.append(row)
    return rows


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print a Markdown table."""
    metrics = [k.removesuffix("_std") for k in rows[0] if k.endswith("_std")]
    names = ["method", "seeds", *metrics, "trained", "seconds", "peak MB"]
    print("| " + " | ".join(names) + " |\n|" + " --- |" * len(names))
    for row in rows:
        several = row["seeds"] > 1
        scores = [
            f"{row[m]:.4f}" + (f" ± {row[f'{m}_std']:.4f}" if several else "") for m in metrics
        ]
        cells = [row["method"], row["seeds"], *scores, f"{row['trained_parameters']:,}"]
        cells += [f"{row['seconds']:.0f}", f"{row['peak_memory_mb']:,}"]
        print("| " + " | ".join(map(str, cells)) + " |")


def draw(rows: list[dict[str, Any]], title: str, file: Path) -> None:
    """Plot the first metric of every method with its spread."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    metric = next(k.removesuffix("_std") for k in rows[0] if k.endswith("_std"))
    figure, ax = plt.subplots(figsize=(8, 0.8 + 0.42 * len(rows)), layout="constrained")
    values = [r[metric] for r in rows]
    spread = [r[f"{metric}_std"] for r in rows]
    colours = ["#0072B2" if r["method"].startswith("ptune") else "#9a9a9a" for r in rows]
    bars = ax.barh([r["method"] for r in rows], values, xerr=spread, color=colours, capsize=3)
    ax.bar_label(bars, [f" {v:.3f}" for v in values], padding=4)
    low, high = min(values), max(values)
    ax.set_xlim(max(0, low - 0.35 * (high - low) - 0.01), high + 0.15 * (high - low) + 0.01)
    ax.invert_yaxis()
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_xlabel(f"{metric.replace('_', ' ')}, mean and standard deviation over seeds")
    ax.set_title(title, loc="left")
    figure.savefig(file, dpi=120)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--task", help="GLUE task")
    parser.add_argument("--data-dir", help="folder of GLUE's TSV files; default: download")
    parser.add_argument("--train-file", help="your own file instead of a task")
    parser.add_argument("--eval-file")
    parser.add_argument(
        "--epochs", type=float, help="default: 4; with --shots, the steps of `ptune train`"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--shots", type=int, help="number of training examples per label")
    parser.add_argument("--methods", nargs="+", choices=METHODS, metavar="METHOD")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/accuracy"))
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        run_here(Job(**json.loads(args.job)))
        return
    if (args.task is None) == (args.train_file is None):
        parser.error("give either --task or --train-file")

    if args.epochs is None and not args.shots:
        args.epochs = 4.0
    what = {k: getattr(args, k) for k in ("model", "task", "train_file", "epochs", "shots")}
    file = args.output_dir / "accuracy.json"
    results: dict[str, Any] = {**what, "runs": {}}
    if file.is_file():
        results = json.loads(file.read_text("utf-8"))
        if differing := [k for k in what if results[k] != what[k]]:
            parser.error(
                f"{file} belongs to another benchmark ({', '.join(differing)} differs). "
                "Choose another --output-dir."
            )
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for method in args.methods or METHODS:
        if method in FEW_ONLY and not args.shots:
            continue
        done = results["runs"].setdefault(method, {})
        seeds = args.seeds[:1] if method in DETERMINISTIC and not args.shots else args.seeds
        for seed in seeds:
            if str(seed) in done:
                continue
            job = Job(
                method=method,
                seed=seed,
                **what,
                data_dir=args.data_dir,
                eval_file=args.eval_file,
            )
            done[str(seed)] = result = run_apart(job)
            shown = "  ".join(f"{k} {v:.4f}" for k, v in result["scores"].items())
            print(f"{method}, seed {seed}: {shown}  ({result['seconds']:.0f} s)", flush=True)
            results["versions"] = versions(*LIBRARIES)
            temporary = file.with_suffix(".writing")
            temporary.write_text(json.dumps(results, indent=2) + "\n", "utf-8")
            temporary.replace(file)
    results["runs"] = {m: runs for m, runs in results["runs"].items() if runs}
    rows = summarise(results)
    name = args.task or Path(args.train_file).stem
    budget = [f"{args.epochs:g} epochs"] if args.epochs else []
    few = [f"{args.shots} examples per label"] if args.shots else []
    title = ", ".join([f"{name} on {args.model}", *budget, *few])
    print(f"\n{title}\n")
    print_table(rows)
    draw(rows, title, args.output_dir / "accuracy.png")
    print("\n" + ", ".join(f"{k} {v}" for k, v in results["versions"].items()))


if __name__ == "__main__":
    main()
