"""The `ptune` command: flags in, library calls, tables out.

Nothing heavy is imported before a subcommand runs, so that `ptune --help` answers at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from ptune.errors import PtuneError

if TYPE_CHECKING:
    from ptune.inference.jobs import Recipe
    from ptune.labels import Prediction
    from ptune.training.run import Run

app = typer.Typer(
    name="ptune",
    help=(
        "Turn one frozen language model into any number of text classifiers, by p-tuning.\n\n"
        "Start with [bold]ptune demo[/bold]: it trains on a small data set of support mail."
    ),
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
)
# `torchrun` and `accelerate launch` start it several times; one of them speaks.
FIRST = os.environ.get("RANK", "0") == "0"
console = Console(quiet=not FIRST)
errors = Console(stderr=True)

# Groups in which `--help` shows the flags.
DATA, PROMPT, TRAINING, OUTPUT, HUB = "Data", "Prompt", "Training", "Output", "Hub"
SERVER, LIMITS = "Server", "Limits"


def _flag(text: str, panel: str, *names: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, metavar=metavar)


TextColumn = Annotated[
    str | None, _flag("Column with the text; found by name if not given.", DATA, metavar="NAME")
]
PairColumn = Annotated[
    str | None, _flag("Column with the second text of a pair.", DATA, metavar="NAME")
]
LabelColumn = Annotated[
    str | None, _flag("Column with the label; found by name.", DATA, metavar="NAME")
]
DataDir = Annotated[
    Path | None,
    _flag(
        "Folder of GLUE's original TSV files; without it they come from the Hub.",
        DATA,
        metavar="DIR",
    ),
]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    _flag("Of the frozen backbone; auto: bfloat16 where the hardware multiplies it fast.", OUTPUT),
]
Model = Annotated[
    str | None,
    _flag("The backbone, if not the one that the adapter names.", HUB, "--model", metavar="MODEL"),
]
Revision = Annotated[
    str | None, _flag("Branch, tag or commit of the adapter on the Hub.", HUB, metavar="REV")
]
Adapter = Annotated[str, typer.Argument(help="A run folder, a checkpoint or a Hub id.")]
Runtime = Annotated[
    Literal["torch", "onnx", "openvino"],
    _flag("What runs it: torch an adapter, the others what `ptune export` wrote.", OUTPUT),
]


def _version(value: bool) -> None:
    if value:
        from ptune import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def _setup(
    verbose: Annotated[bool, typer.Option("--verbose", help="Show what happens inside.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    logging.basicConfig(
        format="%(message)s", level=logging.INFO if verbose else logging.WARNING, stream=sys.stderr
    )
    if not verbose:
        # Read when huggingface_hub is imported. It reports every try to reach the Hub, twice; the
        # error at the end says it once.
        os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    # Likewise by 🤗 Datasets: ptune shows a bar of its own.
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    warnings.showwarning = lambda message, *_, **__: errors.print(
        f"Note: {message}", style="yellow", markup=False, highlight=False, soft_wrap=True
    )
    if not verbose:
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
    if not FIRST:
        logging.disable(logging.WARNING)
        warnings.simplefilter("ignore")


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog=(
        "Every field of 🤗 TrainingArguments is a flag too: --weight-decay 0.1, "
        "--load-best-model-at-end, --report-to tensorboard, --gradient-accumulation-steps 4 …"
    ),
)
def train(
    context: typer.Context,
    output_dir: Annotated[
        Path, _flag("Folder for the adapter, its scores and its pictures.", OUTPUT, metavar="DIR")
    ],
    model: Annotated[
        str,
        _flag(
            "Backbone: a Hub id, a folder, or minilm (embedded, needs no network).",
            PROMPT,
            metavar="MODEL",
        ),
    ] = "minilm",
    revision: Annotated[
        str | None, _flag("Revision of the backbone on the Hub.", HUB, metavar="REV")
    ] = None,
    task: Annotated[
        str | None,
        _flag(
            "GLUE task: cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte or wnli.", DATA, metavar="TASK"
        ),
    ] = None,
    data_dir: DataDir = None,
    train_file: Annotated[
        str | None, _flag("Your own CSV, TSV, JSON lines or Parquet file.", DATA, metavar="FILE")
    ] = None,
    eval_file: Annotated[
        str | None,
        _flag("The same to evaluate on; without it a fifth is held out.", DATA, metavar="FILE"),
    ] = None,
    text_column: TextColumn = None,
    text_pair_column: PairColumn = None,
    label_column: LabelColumn = None,
    problem_type: Annotated[
        Literal["single_label_classification", "multi_label_classification", "regression"] | None,
        _flag(
            "single_label_classification, multi_label_classification or regression; told from the "
            "labels if not given.",
            DATA,
            metavar="TYPE",
        ),
    ] = None,
    label_separator: Annotated[
        str, _flag("Between the labels of one text, if it can have several.", DATA, metavar="TEXT")
    ] = "|",
    prompt: Annotated[
        Literal["deep", "input"],
        _flag("In every layer (P-tuning v2), or read with the text.", PROMPT),
    ] = "deep",
    num_virtual_tokens: Annotated[
        int, _flag("Length of the prompt, in tokens.", PROMPT, metavar="N")
    ] = 20,
    encoder: Annotated[
        Literal["MLP", "LSTM", "NONE"],
        _flag("Prompt encoder; NONE trains the rows themselves.", PROMPT),
    ] = "NONE",
    encoder_hidden_size: Annotated[
        int, _flag("Width of the prompt encoder.", PROMPT, metavar="N")
    ] = 128,
    placement: Annotated[
        Literal["after_first", "prefix"],
        _flag("Behind the first special token, or before the text as in PEFT.", PROMPT),
    ] = "after_first",
    pooling: Annotated[
        Literal["auto", "architecture", "mean", "prompt"],
        _flag("What the head reads; auto: a mean for a sentence encoder.", PROMPT),
    ] = "auto",
    prompt_init: Annotated[
        Literal["vocab", "text", "random"] | None,
        _flag("Start as words of the vocabulary, of a text, or at random.", PROMPT),
    ] = None,
    prompt_init_text: Annotated[
        str | None,
        _flag(
            "Start as these words: what is asked about a text. GLUE tasks bring theirs.",
            PROMPT,
            metavar="TEXT",
        ),
    ] = None,
    prompt_init_scale: Annotated[
        float | None,
        _flag("Multiply the start by this; what suits the prompt.", PROMPT, metavar="X"),
    ] = None,
    backbone_dropout: Annotated[
        bool, _flag("Train with its dropout, as PEFT does.", PROMPT, "--backbone-dropout")
    ] = False,
    learning_rate: Annotated[
        float | None,
        _flag("Of the head; what suits the kind of prompt.", TRAINING, metavar="RATE"),
    ] = None,
    prompt_learning_rate: Annotated[
        float | None, _flag("Of the prompt; likewise.", TRAINING, metavar="RATE")
    ] = None,
    epochs: Annotated[
        float | None,
        _flag("Passes over the data; 8, and at least 200 steps.", TRAINING, metavar="N"),
    ] = None,
    batch_size: Annotated[
        int, _flag("Examples a step, of each process.", TRAINING, metavar="N")
    ] = 32,
    max_length: Annotated[
        int | None,
        _flag("Cut texts to so many tokens; what the backbone allows.", TRAINING, metavar="N"),
    ] = None,
    dtype: Dtype = "auto",
    seed: Annotated[int, _flag("Of everything random.", TRAINING, metavar="N")] = 0,
    seeds: Annotated[
        int,
        _flag(
            "Train so many times, with one seed after the other, and say mean and spread.",
            TRAINING,
            metavar="N",
        ),
    ] = 1,
    examples_per_label: Annotated[
        int | None,
        _flag("Train on so many examples of each label, drawn with the seed.", DATA, metavar="N"),
    ] = None,
    overwrite: Annotated[
        bool, _flag("Replace the run in the output folder.", OUTPUT, "--overwrite")
    ] = False,
    resume: Annotated[
        bool, _flag("Go on with the interrupted run there.", OUTPUT, "--resume")
    ] = False,
) -> None:
    """Train a classifier on a GLUE task or on your own file.

    For example:

    ptune train --task mrpc --data-dir glue --output-dir runs/mrpc

    ptune train --train-file a.csv --eval-file b.csv --output-dir runs/mine
    """
    from ptune.training.report import TrainingProgress
    from ptune.training.run import is_begun, read_settings, train_run, train_seeds
    from ptune.training.settings import TrainSettings

    if seeds < 1:
        raise PtuneError(f"seeds is {seeds}; it must be a whole number of at least 1.")
    names = {f.name for f in dataclasses.fields(TrainSettings)}
    given: dict[str, Any] = {
        k: str(v) if isinstance(v, Path) else v for k, v in context.params.items() if k in names
    }
    given["training_arguments"] = training_arguments(context.args)
    settings = TrainSettings(**given)
    first = output_dir if seeds == 1 else output_dir / f"seed-{seed}"
    if resume and is_begun(first):
        # The run's own settings hold; flags that were typed must agree with them.
        typed = {k for k in given if _was_typed(context, k)}
        typed |= {"training_arguments"} if context.args else set()
        own = dataclasses.asdict(read_settings(first))
        settings = TrainSettings(
            **{**own, "processes": settings.processes, **{k: given[k] for k in typed}}
        )
    how: dict[str, Any] = {
        "overwrite": overwrite,
        "resume": resume,
        "progress": TrainingProgress(console),
    }
    with _interruptible(output_dir):
        if seeds == 1:
            _show_run(train_run(settings, output_dir, **how))
        else:
            spread = train_seeds(settings, output_dir, range(seed, seed + seeds), **how)
            _show_spread(spread, output_dir, seeds)


def _show_run(run: Run) -> None:
    scores = run.metrics["eval"]
    table = Table("", *[k.replace("_", " ") for k in scores], title=run.metrics["task"])
    table.add_row("p-tuned", *[f"{v:.4f}" for v in scores.values()])
    if base := run.metrics["majority"]:
        table.add_row("majority class", *[f"{base[k]:.4f}" if k in base else "" for k in scores])
    console.print(table)
    _say(
        f"Saved in {run.folder}: adapter, metrics.json, settings.json, learning_curve.png, "
        f'confusion_matrix.png.\nTry it: ptune predict {run.folder} "…"'
    )


def _show_spread(spread: dict[str, dict[str, float]], folder: Path, seeds: int) -> None:
    table = Table("", *[k.replace("_", " ") for k in spread], title=f"{seeds} seeds")
    table.add_row("mean", *[f"{v['mean']:.4f}" for v in spread.values()])
    table.add_row("standard deviation", *[f"{v['std']:.4f}" for v in spread.values()])
    console.print(table)
    _say(f"Saved in {folder}: seeds.json, and a run for each seed.")


def _say(text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


@app.command()
def evaluate(
    adapter: Adapter,
    task: Annotated[str | None, _flag("GLUE task.", DATA)] = None,
    data_dir: DataDir = None,
    file: Annotated[
        Path | None, _flag("A labelled CSV, TSV, JSON lines or Parquet file.", DATA)
    ] = None,
    text_column: TextColumn = None,
    text_pair_column: PairColumn = None,
    label_column: LabelColumn = None,
    model: Model = None,
    revision: Revision = None,
    dtype: Dtype = "auto",
    runtime: Runtime = "torch",
    output: Annotated[
        Path | None, _flag("Also write the scores to this JSON file.", OUTPUT)
    ] = None,
) -> None:
    """Measure a classifier on a labelled file or on a GLUE task's evaluation set.

    Example: ptune evaluate runs/mine --file b.csv
    """
    from ptune.data.glue import evaluation_sets
    from ptune.data.tables import Columns
    from ptune.inference.engines import open_classifier

    classifier = open_classifier(adapter, runtime, model=model, revision=revision, dtype=dtype)
    sets, metrics = evaluation_sets(
        classifier.labels_,
        task=task,
        data_dir=data_dir,
        file=file,
        columns=Columns(text_column, text_pair_column, label_column),
    )
    scores = {
        (f"{name}_" if name else "") + key: value
        for name, dataset in sets.items()
        for key, value in classifier.evaluate(dataset, metrics).items()
    }
    console.print_json(json.dumps(scores))
    if output:
        _write(output, json.dumps(scores, indent=2) + "\n")


@app.command()
def predict(
    adapter: Adapter,
    texts: Annotated[
        list[str] | None, typer.Argument(help="Texts; - or none: lines of standard input.")
    ] = None,
    pair: Annotated[
        str | None, _flag("The second text of a pair; the first is the argument.", DATA)
    ] = None,
    file: Annotated[
        Path | None,
        _flag("Classify the texts of a CSV, TSV, JSON lines or Parquet file, or a folder.", DATA),
    ] = None,
    text_column: TextColumn = None,
    text_pair_column: PairColumn = None,
    format: Annotated[
        Literal["table", "jsonl", "csv"] | None,
        _flag("Table on a terminal for typed texts, else JSON lines.", OUTPUT),
    ] = None,
    output: Annotated[
        Path | None,
        _flag("Write to this file, as its ending says; or a folder, a file for each.", OUTPUT),
    ] = None,
    model: Model = None,
    revision: Revision = None,
    dtype: Dtype = "auto",
    runtime: Runtime = "torch",
    ray: Annotated[
        bool, _flag("Share the files of a folder among the workers of Ray.", OUTPUT, "--ray")
    ] = False,
    workers: Annotated[
        int | None, _flag("So many; one for each GPU, or CPU.", OUTPUT, metavar="N")
    ] = None,
) -> None:
    """Classify texts, a file, a folder of files, or the lines of standard input.

    Standard input holds a text a line; for pairs the two texts stand apart by a tab.

    For example:

    ptune predict runs/mine "where is my parcel?"

    ptune predict runs/mine --file new.csv --output labels.csv

    ptune predict runs/mine --file mails/ --output labelled/

    ptune predict runs/mrpc "It rains." --pair "Rain falls."
    """
    from ptune.data.tables import Columns
    from ptune.inference import files
    from ptune.inference.jobs import Recipe

    if file and texts:
        raise PtuneError("Give texts or --file, not both.")
    if pair is not None and (not texts or len(texts) != 1):
        raise PtuneError("--pair wants exactly one text before it.")
    columns = Columns(text_column, text_pair_column)
    recipe = Recipe(adapter, columns, model, revision, dtype, runtime)
    if file and output:
        _predict_files(file, output, recipe, format, ray=ray, workers=workers)
        return
    if ray or (file and file.is_dir()):
        raise PtuneError("A folder, and Ray, want --file and --output. Name both.")
    typed = bool(texts) and texts != ["-"]
    classifier = recipe.load()
    if file:
        source = files.Source.of_file(file, columns)
    elif pair is not None and texts:
        source = files.Source.of_texts([(texts[0], pair)])
    else:
        source = files.Source.of_texts(texts if typed and texts else _lines(sys.stdin))
    if output:
        from ptune.files import staged

        form = format if format in ("csv", "jsonl") else files.format_of(output)
        with (
            staged(output.absolute().parent) as stage,
            files.writer(stage / output.name, form, classifier) as out,
        ):
            count = files.write(classifier, source, out)
        errors.print(
            f"{count} predictions in {output}", markup=False, highlight=False, soft_wrap=True
        )
    elif format == "table" or (format is None and typed and console.is_terminal):
        for _, shown, predicted in files.predictions(classifier, source):
            _print_predictions(shown, predicted)
    else:
        out = files.text_writer(sys.stdout, format or "jsonl")
        files.write(classifier, source, out)


def _predict_files(
    file: Path, output: Path, recipe: Recipe, format: str | None, *, ray: bool, workers: int | None
) -> None:
    from rich.progress import track

    from ptune.inference.jobs import find_jobs, run_jobs

    def show(results: Iterable[Any], total: int) -> Iterable[Any]:
        return track(results, "files", total, console=errors, transient=True)

    jobs = find_jobs(file, output, recipe, format)
    todo = [job for job in jobs if not job.is_done()]
    rows = run_jobs(todo, recipe, ray=ray, workers=workers, show=show)
    before = f"; {len(jobs) - len(todo)} files were done before" if len(todo) < len(jobs) else ""
    errors.print(
        f"{rows} predictions in {output}{before}", markup=False, highlight=False, soft_wrap=True
    )


@app.command()
def info(adapter: Adapter, revision: Revision = None) -> None:
    """Say what an adapter is: its backbone, size, labels and scores."""
    from ptune.adapters.adapter import describe

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in describe(adapter, revision=revision).items():
        table.add_row(key, str(value))
    console.print(table, markup=False)


@app.command()
def serve(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Its sub-folders with an adapter are the tasks.")
    ],
    host: Annotated[
        str, _flag("Address to listen on; a public one wants a token.", SERVER, metavar="ADDRESS")
    ] = "127.0.0.1",
    port: Annotated[int, _flag("Port to listen on; 0: a free one.", SERVER, metavar="N")] = 8080,
    token: Annotated[
        str | None,
        typer.Option(
            help="What clients must show, as a bearer token.",
            rich_help_panel=SERVER,
            envvar="PTUNE_TOKEN",
            show_envvar=True,
        ),
    ] = None,
    admin_token: Annotated[
        str | None,
        typer.Option(
            help="What adding and removing tasks takes; without one nobody does.",
            rich_help_panel=SERVER,
            envvar="PTUNE_ADMIN_TOKEN",
            show_envvar=True,
        ),
    ] = None,
    batch_size: Annotated[int, _flag("Texts a forward pass.", LIMITS, metavar="N")] = 64,
    queue: Annotated[
        int, _flag("Texts that may wait; more are refused with 429.", LIMITS, metavar="N")
    ] = 1024,
    timeout: Annotated[
        float, _flag("Seconds that a request may take.", LIMITS, metavar="SECONDS")
    ] = 30.0,
    max_body: Annotated[int, _flag("Bytes of a request.", LIMITS, metavar="N")] = 1_000_000,
    max_texts: Annotated[int, _flag("Texts of a request.", LIMITS, metavar="N")] = 64,
    max_chars: Annotated[int, _flag("Characters of a text.", LIMITS, metavar="N")] = 20_000,
    max_connections: Annotated[
        int, _flag("Clients connected at a time.", LIMITS, metavar="N")
    ] = 1024,
    memory: Annotated[
        int | None,
        _flag("MB of adapters in memory; the others wait on disk.", LIMITS, metavar="MB"),
    ] = None,
    model: Model = None,
    dtype: Dtype = "auto",
) -> None:
    """Serve every adapter of a folder over HTTP, from one backbone in memory.

    POST /tasks/NAME/predict takes {"inputs": "a text"}; a page to try it by hand is at /, and all
    that can be asked at /docs. Ctrl-C and SIGTERM finish what was accepted.

    Example: ptune serve runs
    """
    from ptune.serving.process import serve
    from ptune.serving.settings import ServeSettings

    settings = ServeSettings(
        folder=folder,
        model=model,
        dtype=dtype,
        memory_budget=None if memory is None else memory * 1_000_000,
        host=host,
        port=port,
        token=token,
        admin_token=admin_token,
        batch_size=batch_size,
        queue=queue,
        timeout=timeout,
        max_body=max_body,
        max_texts=max_texts,
        max_chars=max_chars,
        max_connections=max_connections,
    )
    serve(settings, lambda url, tasks: _say(f"Serving {tasks} tasks at {url} (Ctrl-C stops)"))


@app.command()
def export(
    adapter: Adapter,
    output_dir: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the result.")],
    to: Annotated[
        Literal["transformers", "onnx"],
        _flag(
            "An ordinary Transformers checkpoint, from an input prompt; or a graph for ONNX "
            "Runtime, OpenVINO and others, from any prompt.",
            OUTPUT,
        ),
    ] = "transformers",
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], _flag("Of a checkpoint's weights.", OUTPUT)
    ] = "float32",
    int8: Annotated[bool, _flag("Quantise an ONNX graph.", OUTPUT, "--int8")] = False,
    check_file: Annotated[
        Path | None,
        _flag("Try the result on the texts of this file, too.", DATA, metavar="FILE"),
    ] = None,
    text_column: TextColumn = None,
    text_pair_column: PairColumn = None,
    overwrite: Annotated[
        bool, _flag("Replace what ptune did not export.", OUTPUT, "--overwrite")
    ] = False,
    model: Model = None,
    revision: Revision = None,
) -> None:
    """Write a classifier in a form that needs no ptune.

    The result is opened again and must give ptune's own logits before the folder gets its name.

    For example:

    ptune export runs/mail exported/mail

    ptune export runs/mail exported/mail --to onnx
    """
    from ptune.data.tables import Columns
    from ptune.inference.files import Source

    texts: list[Any] = []
    if check_file:
        source = Source.of_file(check_file, Columns(text_column, text_pair_column))
        texts = [text for _, some in source.read() for text in some]
    how: dict[str, Any] = {"check_texts": texts, "overwrite": overwrite}
    how |= {"model": model, "revision": revision}
    if to == "onnx":
        from ptune.export.onnx import export_onnx

        if dtype != "float32":
            raise PtuneError(
                "An ONNX graph is in float32 or, with --int8, quantised; --dtype is "
                "for --to transformers."
            )
        check = export_onnx(adapter, output_dir, int8=int8, **how)
        try_it = f'ptune predict {output_dir} "…" --runtime onnx'
    else:
        from ptune.export.checkpoint import export_transformers

        if int8:
            raise PtuneError("--int8 is for --to onnx; a checkpoint has --dtype.")
        check = export_transformers(adapter, output_dir, dtype=dtype, **how)
        try_it = f'pipeline("text-classification", "{output_dir}")("…", truncation=True)'
    _say(
        f"Exported to {output_dir}. On {check.texts} texts its logits differ from ptune's by at "
        f"most {check.difference:.1e} of the largest.\nTry it: {try_it}"
    )


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="A run folder, or a checkpoint.")],
    repo_id: Annotated[str, typer.Argument(help="owner/name; made if it is not there.")],
    private: Annotated[
        bool | None,
        _flag("Who sees a new repository; as your account has it.", HUB, "--private/--public"),
    ] = None,
    branch: Annotated[str | None, _flag("Push to this branch, made if need be.", HUB)] = None,
    pull_request: Annotated[bool, _flag("Open a pull request.", HUB)] = False,
    token: Annotated[
        str | None, _flag("With the right to write; the one of `hf auth login`.", HUB)
    ] = None,
    message: Annotated[str | None, _flag("Title of the commit or pull request.", HUB)] = None,
    license: Annotated[str | None, _flag("For the model card, such as apache-2.0.", HUB)] = None,
) -> None:
    """Publish a classifier on the Hub, with a model card.

    Adapter, labels, scores and pictures go; checkpoints and the paths of this machine stay. A
    README.md in the folder is taken as the card.

    Example: ptune push runs/mail me/support-mail --private
    """
    from ptune.adapters import push as hub

    url = hub.push(
        folder,
        repo_id,
        private=private,
        revision=branch,
        create_pr=pull_request,
        token=token,
        commit_message=message,
        license=license,
    )
    _say(f"Pushed to {url}")


@app.command()
def demo(
    output_dir: Annotated[Path, _flag("Folder for the run.", OUTPUT, metavar="DIR")] = Path(
        "runs/demo"
    ),
    seed: Annotated[int, _flag("Of everything random.", TRAINING, metavar="N")] = 0,
    epochs: Annotated[float | None, _flag("Passes over the data.", TRAINING, metavar="N")] = None,
    overwrite: Annotated[
        bool, _flag("Replace the run in the output folder.", OUTPUT, "--overwrite")
    ] = False,
) -> None:
    """Train on the support mail that ptune brings, and classify a few messages.

    Twelve intents of mail to an online shop. Shows the majority class, logistic regression on the
    same backbone's embeddings, and the p-tuned classifier side by side. Needs no network.
    """
    from ptune.demo import EXAMPLES, run_demo
    from ptune.training.report import TrainingProgress

    with _interruptible(output_dir):
        _, rows = run_demo(
            output_dir,
            seed=seed,
            epochs=epochs,
            overwrite=overwrite,
            progress=TrainingProgress(console),
        )
    table = Table("", "accuracy", "macro F1", "trained parameters", title="Support mail, test set")
    for name, scores, parameters in rows:
        table.add_row(
            name, f"{scores['accuracy']:.3f}", f"{scores['f1_macro']:.3f}", f"{parameters:,}"
        )
    console.print(table)
    import ptune

    classifier = ptune.load(output_dir)
    _print_predictions(EXAMPLES, list(classifier.stream(EXAMPLES)))
    _say(
        f"Pictures: {output_dir}/learning_curve.png and {output_dir}/confusion_matrix.png\n"
        f'Your turn: ptune predict {output_dir} "the box was empty when I opened it"'
    )


@contextmanager
def _interruptible(output_dir: Path) -> Iterator[None]:
    """Ctrl-C during training ends with what to do next and exit code 130."""
    try:
        yield
    except KeyboardInterrupt as error:
        if FIRST:
            errors.print(
                f"Interrupted. Go on with: ptune train --resume --output-dir {output_dir}",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
        raise typer.Exit(130) from error


def _was_typed(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def training_arguments(words: list[str]) -> dict[str, Any]:
    """Flags that are fields of 🤗 `TrainingArguments`, as that class reads them.

    Raises:
        PtuneError: One is no such field, or its value cannot be read.
    """
    if not words:
        return {}
    from transformers import HfArgumentParser, TrainingArguments

    from ptune.training.settings import TrainSettings

    own = {f.name for f in dataclasses.fields(TrainSettings)}
    known = {f.name for f in dataclasses.fields(TrainingArguments) if f.init}
    used: list[str] = []
    words = [w for word in words for w in (word.split("=", 1) if word.startswith("--") else [word])]
    for i, word in enumerate(words):
        if not word.startswith("--"):
            if i == 0 or (not words[i - 1].startswith("--") and not used):
                raise PtuneError(f"{word!r} was not expected here. See `ptune train --help`.")
            continue
        name = word[2:].replace("-", "_")
        words[i] = f"--{name}"
        if name not in known:
            near = difflib.get_close_matches(name, known | own, n=1)
            hint = f"Did you mean --{near[0].replace('_', '-')}?" if near else "See --help."
            raise PtuneError(f"There is no flag {word}. {hint}")
        if name in ("output_dir", "num_train_epochs", "per_device_train_batch_size"):
            short = {"num_train_epochs": "epochs", "per_device_train_batch_size": "batch-size"}
            raise PtuneError(f"Say --{short.get(name, 'output-dir')} instead of {word}.")
        used.append(name)

    class Parser(HfArgumentParser):
        def error(self, message: str) -> Any:
            raise PtuneError(f"{message}. See `ptune train --help`.")

    parser = Parser(TrainingArguments, allow_abbrev=False)
    parsed = parser.parse_args([*words])
    return {name: getattr(parsed, name) for name in used}


def _lines(stream: Iterable[str]) -> Iterator[str | tuple[str, str]]:
    try:
        for line in stream:
            first, tab, second = line.rstrip("\n").partition("\t")
            yield (first, second) if tab else first
    except UnicodeDecodeError as error:
        raise PtuneError(f"Standard input is not UTF-8: {error}.") from error


def _print_predictions(texts: Sequence[Any], predictions: Sequence[Prediction]) -> None:
    table = Table("text", "label", "probability", "next")
    for text, prediction in zip(texts, predictions, strict=True):
        ranked = sorted(prediction.probabilities.items(), key=lambda item: -item[1])
        label = prediction.label
        shown = ", ".join(label) if isinstance(label, list) else str(label)
        number = isinstance(label, float)
        table.add_row(
            text if isinstance(text, str) else "\n".join(text),
            f"{label:.3f}" if number else shown,
            "" if number else f"{prediction.score:.0%}",
            "" if number else "  ".join(f"{name} {p:.0%}" for name, p in ranked[1:3]),
        )
    console.print(table)


def _write(file: Path, text: str) -> None:
    from ptune.files import staged

    with staged(file.absolute().parent) as stage:
        (stage / file.name).write_text(text, "utf-8")


def main() -> None:
    """Run the command; a user's mistake ends with a message and exit code 2."""
    try:
        app()
    except PtuneError as error:
        where = "" if FIRST else f" in process {os.environ['RANK']}"
        errors.print(
            f"[bold red]Error{where}:[/bold red] {_plain(str(error))}",
            highlight=False,
            soft_wrap=True,
        )
        sys.exit(2)


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)
