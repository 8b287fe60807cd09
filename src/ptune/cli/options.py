"""What the commands share: options, those generated from settings included, and output."""

from __future__ import annotations

import inspect
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer
from rich.console import Console
from rich.markup import escape

from ptune.files import json_line
from ptune.serving.settings import LIMITS, SERVER
from ptune.training.declaration import FILE, Setting, setting, settings_of
from ptune.training.settings import ADVANCED, DATA, MODEL, TRAINING, Dtype, TrainSettings, is_first

Command = TypeVar("Command", bound=Callable[..., Any])

# Sections of `--help`, in addition to those of the settings.
OUTPUT, HUB = "Output", "Hub"
ORDER = (DATA, MODEL, TRAINING, SERVER, LIMITS, OUTPUT, HUB, ADVANCED)

# On a narrow terminal, `--help` has no frames: they would leave no room for the names of options.
WIDE = shutil.get_terminal_size().columns >= 80
# `torchrun` and `accelerate launch` start the command several times. Only one process prints.
FIRST = is_first()
# Texts, labels and names of folders are printed as they are: `[b]` and `:x:` mean nothing in them.
console = Console(quiet=not FIRST, markup=False, emoji=False)
errors = Console(stderr=True, markup=False, emoji=False)


def typed(place: Path | str) -> str:
    """The name of a file or folder as it is typed in a shell, for a command to repeat."""
    return shlex.quote(str(place))


def say(text: str, to: Console = console) -> None:
    """Print a text as it is, without colours and line breaks."""
    to.print(text, highlight=False, soft_wrap=True)


def print_json(content: Any) -> None:
    """Print one JSON value to standard output, without colours and line breaks of a terminal."""
    if FIRST:
        print(json_line(content))


def first_score(scores: dict[str, Any]) -> str | None:
    """The name of the first score of a run that is not a loss."""
    return next((name for name in scores if not name.endswith("loss")), None)


def option(help: str, section: str, *names: str, default: str = "", **more: Any) -> Any:
    """An option of a command.

    Args:
        help: What it does, in sentences.
        section: Where `--help` lists it.
        names: Its names. None: from the parameter's name.
        default: The default as text, if it is not the parameter's.
        more: For `typer.Option`.
    """
    how: dict[str, Any] = {"show_default": not default, **more}
    text = f"{help} [default: {default}]" if default else help
    text = escape(text) if WIDE else text
    return typer.Option(*names, help=text, rich_help_panel=section, **how)


def file_option(help: str, section: str = OUTPUT, default: str = "none") -> Any:
    """An option that names a file; see `option`."""
    return option(help, section, default=default, metavar=FILE)


# Settings in which backslash and n, as typed, are a line break.
HOLD_LINE_BREAKS = ("template", "label_separator")
_METAVARS = {int: "N", float: "X", str: "TEXT"}


def option_of(setting: Setting) -> Any:
    """The option for a setting."""
    name = setting.name.replace("_", "-")
    # The opposite of `--no-header` is `--header`.
    names = (f"--{name}/--{name.removeprefix('no-')}",) if name.startswith("no-") else ()
    more = {"callback": _with_line_breaks} if setting.name in HOLD_LINE_BREAKS else {}
    return option(
        setting.help,
        setting.section,
        *names,
        default=setting.shown_default or ("" if setting.kind is bool else "none"),
        metavar=setting.metavar or _METAVARS.get(setting.kind),
        envvar=setting.envvar,
        show_default=False,
        **more,
    )


def _with_line_breaks(value: str | None) -> str | None:
    """A setting as it is typed, in which a shell leaves a line break as two characters."""
    return value and value.replace("\\n", "\n")


def with_settings(owner: type, *names: str) -> Callable[[Command], Command]:
    """Give a command an option for each setting, and call it with them as keyword arguments.

    A setting that the command declares itself is left to it.

    Args:
        owner: The class that declares the settings.
        names: The settings; none: all of them.
    """

    def add_options(command: Command) -> Command:
        parameters = inspect.signature(command, eval_str=True).parameters
        own, settings = parameters.values(), settings_of(owner)
        chosen = [settings[name] for name in names or settings if name not in parameters]
        declared = [setting for setting in chosen if setting.section]
        added = [
            inspect.Parameter(
                setting.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=setting.default,
                annotation=Annotated[setting.type, option_of(setting)],
            )
            for setting in declared
        ]
        first = [p for p in own if p.kind is p.POSITIONAL_OR_KEYWORD]
        kept = [p for p in own if p.kind is p.KEYWORD_ONLY]
        # Python wants positional parameters first; `--help` lists panels in the order of options.
        ordered = sorted([*added, *kept], key=lambda p: ORDER.index(_panel(p)))
        command.__signature__ = inspect.Signature([*first, *ordered])  # type: ignore[attr-defined]
        return command

    return add_options


def _panel(parameter: inspect.Parameter) -> str:
    (declared,) = parameter.annotation.__metadata__
    return declared.rich_help_panel


# Settings by which a file is read, and by which its labels are.
READING = (
    "text_column",
    "text_pair_column",
    "delimiter",
    "encoding",
    "no_header",
    "sheet",
    "no_quotes",
)
LABELLED = ("label_column", "indicator_column", "label_separator", "skip_unlabelled", "skip_empty")


def read_with(
    options: dict[str, Any], trained: tuple[str, ...] = (), run: str = ""
) -> dict[str, Any]:
    """The options with `columns` and a `dialect` in place of those that say how to read a file.

    Args:
        options: The options.
        trained: As in `Columns`.
        run: The folder of the classifier, as for `Columns.as_in_run`.
    """
    from ptune.data.opening import Dialect
    from ptune.data.tables import Columns

    rest = dict(options)
    given = {name: rest.pop(name) for name in READING}
    label, indicators = (rest.pop(name, None) for name in LABELLED[:2])
    text, pair = given["text_column"], given["text_pair_column"]
    columns = Columns(text, pair, label, tuple(indicators or ()) or None, trained)
    columns = columns.as_in_run(run) if run else columns
    return {"columns": columns, "dialect": Dialect.of(given), **rest}


_SETTINGS = settings_of(TrainSettings)


@dataclass(frozen=True)
class Loading:
    """How an adapter is loaded; for `with_settings`."""

    model: str | None = setting(
        None, "Backbone.", MODEL, metavar="MODEL", unset="the one that the adapter names"
    )
    allow_other_backbone: bool = setting(
        False, "Accept a backbone with other weights than the adapter was trained on.", MODEL
    )
    dtype: Dtype = setting("auto", _SETTINGS["dtype"].help, MODEL)
    runtime: Literal["torch", "onnx", "openvino"] = setting(
        "torch",
        "What computes. onnx and openvino run what `ptune export` wrote; an adapter is exported "
        "once, into the cache folder.",
        OUTPUT,
    )
    revision: str | None = setting(
        None,
        "Branch, tag or commit of the adapter on the Hub.",
        HUB,
        metavar="REV",
        unset="the default branch",
    )


def load_with(options: dict[str, Any]) -> dict[str, Any]:
    """Take the options that say how to load an adapter out of the others."""
    return {name: options.pop(name) for name in settings_of(Loading) if name in options}


TextColumn = Annotated[str | None, option_of(_SETTINGS["text_column"])]
Template = Annotated[str | None, option_of(_SETTINGS["template"])]
LabelWords = Annotated[str | None, option_of(_SETTINGS["label_words"])]
DtypeOption = Annotated[Dtype, option_of(_SETTINGS["dtype"])]
Epochs = Annotated[float | None, option_of(_SETTINGS["epochs"])]
Seed = Annotated[int, option_of(_SETTINGS["seed"])]
Texts = Annotated[
    list[str] | None,
    typer.Argument(help="Texts. Without any, or for -, the lines of standard input."),
]
Adapter = Annotated[str, typer.Argument(help="A run folder, a checkpoint or a Hub id.")]
AsJson = Annotated[
    bool, option("Print one JSON object to standard output, and nothing else.", OUTPUT, "--json")
]
AsJsonList = Annotated[
    bool, option("Print one JSON list to standard output, and nothing else.", OUTPUT, "--json")
]
Overwrite = Annotated[bool, option("Replace the run in the output folder.", OUTPUT, "--overwrite")]
LabelledFile = Annotated[
    Path | None,
    file_option("A labelled file, of any kind that ptune train reads.", DATA),
]
