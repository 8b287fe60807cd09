"""`ptune serve`, `ptune export` and `ptune push`: let others use a classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ptune.cli.options import (
    HUB,
    OUTPUT,
    Adapter,
    Loading,
    file_option,
    option,
    say,
    typed,
    with_settings,
)
from ptune.errors import PtuneError
from ptune.serving.settings import ServeSettings
from ptune.training.settings import DATA, TrainSettings

CheckFile = Annotated[
    Path | None, file_option("Also check the result on the texts of this file.", DATA)
]
TwoGraphs = Annotated[
    bool,
    option(
        "Also write a reader as two ONNX graphs: text.onnx, which serves all readers on the "
        "backbone, and reader.onnx.",
        OUTPUT,
        "--two-graphs",
    ),
]


@with_settings(ServeSettings)
def serve(
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="Folder. Each subfolder with an adapter is a task."),
    ],
    **options: Any,
) -> None:
    """Serve all adapters of a folder over HTTP, from one backbone in memory.

    POST /tasks/NAME/predict takes {"inputs": "a text"}. A page to try it is at /, and the API at
    /docs. After Ctrl-C or SIGTERM, the server finishes the requests that it has accepted.

    Example: ptune serve runs
    """
    from ptune.serving.process import serve

    settings = ServeSettings(folder, **options)
    serve(settings, lambda url, tasks: say(f"Serving {tasks} tasks at {url} (Ctrl-C stops)"))


@with_settings(Loading, "model", "allow_other_backbone", "revision")
@with_settings(TrainSettings, "text_column", "text_pair_column")
def export(
    adapter: Adapter,
    output_dir: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the result.")],
    to: Annotated[
        Literal["transformers", "onnx"],
        option(
            "transformers: an ordinary checkpoint, from an input prompt. onnx: a graph for ONNX "
            "Runtime, OpenVINO and others, from any prompt.",
            OUTPUT,
        ),
    ] = "transformers",
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"],
        option("Data type of a checkpoint's weights.", OUTPUT),
    ] = "float32",
    int8: Annotated[bool, option("Quantise an ONNX graph.", OUTPUT, "--int8")] = False,
    two_graphs: TwoGraphs = False,
    check_file: CheckFile = None,
    overwrite: Annotated[
        bool, option("Replace a folder that ptune did not export.", OUTPUT, "--overwrite")
    ] = False,
    **options: Any,
) -> None:
    """Write a classifier in a format that works without ptune.

    The result is loaded again and must give ptune's logits before the folder gets its name.

    For example:

    ptune export runs/mail exported/mail

    ptune export runs/mail exported/mail --to onnx
    """
    from ptune.data.tables import Columns
    from ptune.inference.files import Source

    texts: list[Any] = []
    columns = Columns(options.pop("text_column"), options.pop("text_pair_column"))
    if check_file:
        texts = [text for _, some in Source.of_file(check_file, columns).read() for text in some]
    how = {"check_texts": texts, "overwrite": overwrite, **options}
    if to == "onnx":
        from ptune.export.onnx import export_onnx

        if dtype != "float32":
            raise PtuneError(
                "--dtype is for --to transformers. An ONNX graph is float32, or quantised with "
                "--int8."
            )
        check = export_onnx(adapter, output_dir, int8=int8, two_graphs=two_graphs, **how)
        try_it = f'ptune predict {typed(output_dir)} "…" --runtime onnx'
    else:
        from ptune.export.checkpoint import export_transformers

        if int8 or two_graphs:
            which = "--int8" if int8 else "--two-graphs"
            raise PtuneError(f"{which} is for --to onnx. Leave it out.")
        check = export_transformers(adapter, output_dir, dtype=dtype, **how)
        try_it = f'pipeline("text-classification", "{output_dir}")("…", truncation=True)'
    say(
        f"Exported to {output_dir}. On {check.texts} texts its logits differ from ptune's by at "
        f"most {check.difference:.1e} of the largest.\nTry it: {try_it}"
    )


def _for_card(what: str) -> Any:
    return option(f"For the model card: {what}", HUB, default="not stated", metavar="TEXT")


def push(
    folder: Annotated[Path, typer.Argument(help="A run folder, or a checkpoint.")],
    repo_id: Annotated[str, typer.Argument(help="owner/name. Created if it does not exist.")],
    private: Annotated[
        bool | None,
        option(
            "Visibility of a new repository.",
            HUB,
            "--private/--public",
            default="as your account is set up",
        ),
    ] = None,
    branch: Annotated[
        str | None,
        option(
            "Branch to push to. Created if it does not exist.", HUB, default="main", metavar="NAME"
        ),
    ] = None,
    pull_request: Annotated[bool, option("Open a pull request.", HUB, "--pull-request")] = False,
    token: Annotated[
        str | None, option("Token with write access.", HUB, default="the one of `hf auth login`")
    ] = None,
    message: Annotated[
        str | None, option("Title of the commit or pull request.", HUB, default="written by ptune")
    ] = None,
    license: Annotated[
        str | None, option("License for the model card, such as apache-2.0.", HUB, default="none")
    ] = None,
    card_data_description: Annotated[
        str | None, _for_card("where the texts are from, and who labelled them.")
    ] = None,
    card_intended_use: Annotated[str | None, _for_card("what the classifier is for.")] = None,
    card_limits: Annotated[str | None, _for_card("what it is not for.")] = None,
    card_example: Annotated[str | None, _for_card("a text that may be published.")] = None,
    card_language: Annotated[str | None, _for_card("language of the texts, such as en.")] = None,
) -> None:
    """Publish a classifier on the Hub, with a model card.

    Adapter, labels, scores and pictures are uploaded. Checkpoints and paths on this machine are
    not. A README.md in the folder becomes the card.

    Example: ptune push runs/mail me/support-mail --private
    """
    from ptune.adapters import push as hub
    from ptune.adapters.card import CardText

    url = hub.push(
        folder,
        repo_id,
        private=private,
        revision=branch,
        create_pr=pull_request,
        token=token,
        commit_message=message,
        license=license,
        card=CardText(
            card_data_description, card_intended_use, card_limits, card_example, card_language
        ),
    )
    say(f"Pushed to {url}")
