"""The `ptune` command.

Nothing heavy is imported before a subcommand runs, so that `ptune --help` is fast.
"""

from __future__ import annotations

import codecs
import io
import json
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

from ptune.cli import classify, labels, predict, quality, runs, share, train, tune
from ptune.cli.options import FIRST, WIDE, errors
from ptune.errors import PtuneError, first_line, on_one_line
from ptune.files import at_home, check_file
from ptune.training.declaration import FILE, FILE_OR_FOLDER, PLACES
from ptune.training.settings import DATA


class _FlagsWithoutType:
    """Help without `<bool>` after a flag, which would ask for a value that it does not take."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters, as Typer finds them."""
        found: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for parameter in found:
            if getattr(parameter, "is_flag", False) and parameter.metavar is None:
                parameter.metavar = ""
        return found


class Group(_FlagsWithoutType, TyperGroup):
    """All commands."""


class Command(_FlagsWithoutType, TyperCommand):
    """A command that drops nothing in silence, and says how to name a file."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse arguments as Typer does."""
        if not ctx.resilient_parsing:  # as while a shell completes a command
            self._check_given(ctx, args)
        rest = super().parse_args(ctx, args)
        # A shell leaves the ~ of `--output=~/x.csv`, and others start ptune without a shell.
        for parameter in self.params:
            value = ctx.params.get(parameter.name)
            if isinstance(value, Path):
                ctx.params[parameter.name] = Path(at_home(value))
            elif isinstance(value, str) and parameter.metavar in PLACES:
                ctx.params[parameter.name] = at_home(value)
        return rest

    def _check_given(self, ctx: Any, args: list[str]) -> None:
        values, words, given = self.make_parser(ctx).parse_args(args=list(args))
        options: list[Any] = [p for p in self.params if p.param_type_name == "option"]
        single = [option for option in options if not option.multiple]
        files = [option for option in single if option.metavar == FILE]
        for option in single:
            named = option.metavar in (FILE, FILE_OR_FOLDER) and option.rich_help_panel == DATA
            if named and option in given:  # known before anything is imported or loaded
                file = Path(at_home(values[option.name]))
                check_file(file, or_folder=option.metavar == FILE_OR_FOLDER)
        # Other options may be repeated to override a script's.
        for option in single:
            is_data = option in files or option.rich_help_panel == DATA
            if is_data and given.count(option) > 1:
                warnings.warn(
                    f"{option.opts[0]} was given more than once, and takes one value: "
                    f"{values[option.name]} is used.",
                    stacklevel=2,
                )
        free = [option.opts[0] for option in files if option not in given]
        if free and not ctx.allow_extra_args:
            for word in filter(os.path.isfile, words):
                ctx.fail(f"{word} was not expected here. Name the file: {free[0]} {word}.")


app = typer.Typer(
    name="ptune",
    cls=Group,
    help=(
        "Turn one frozen language model into any number of text classifiers, by p-tuning.\n\n"
        "Start with `ptune demo`: it trains on a small dataset of support emails."
    ),
    no_args_is_help=True,
    rich_markup_mode="rich" if WIDE else None,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
for _training in (train.train, tune.tune):
    app.command(
        cls=Command,
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
        epilog=(
            "Every field of 🤗 TrainingArguments is an option too: --weight-decay 0.1, "
            "--load-best-model-at-end, --report-to tensorboard, --gradient-accumulation-steps 4 …"
        ),
    )(_training)
for _command in (
    predict.evaluate,
    predict.predict,
    predict.info,
    classify.classify,
    labels.rename_label,
    labels.merge_labels,
    labels.drop_label,
    labels.add_labels,
    quality.check,
    quality.report,
    quality.drift,
    quality.explain,
    share.serve,
    share.export,
    share.push,
    train.demo,
):
    app.command(cls=Command)(_command)
app.command("list", cls=Command)(runs.list_runs)
app.command(cls=Command)(runs.compare)


# Loggers of packages that warn when they are imported: of a missing Triton, of libraries for GPUs
# that do not load, and of each other's deprecated functions; if a run saves two checkpoints
# within a second; and if there is no home folder for the cache of fonts.
NOISY = (
    "matplotlib",
    "torchao",
    "torch.utils._pytree",
    "torch.utils.flop_counter",
    "transformers.trainer_utils",
)


def _version(value: bool) -> None:
    if value:
        from ptune import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def _setup(
    verbose: Annotated[bool, typer.Option("--verbose", help="Print more details.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    logging.basicConfig(
        format="%(message)s", level=logging.INFO if verbose else logging.WARNING, stream=sys.stderr
    )
    if not verbose:
        # huggingface_hub reads it when it is imported. It reports every attempt to reach the Hub
        # twice; ptune's error message is enough.
        os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    # 🤗 Datasets reads it when it is imported. ptune has its own progress bar.
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    warnings.showwarning = lambda message, *_, **__: errors.print(
        f"Note: {message}", style="yellow", highlight=False, soft_wrap=True
    )
    if not verbose:
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
    if not verbose:
        for name in NOISY:
            logging.getLogger(name).setLevel(logging.ERROR)
    if not FIRST:
        logging.disable(logging.WARNING)
        warnings.simplefilter("ignore")


def main() -> None:
    """Run the command. A mistake of the user's ends it with a message and exit code 2.

    Such mistakes are a `PtuneError`, and files that cannot be read or written.
    """
    _open_streams()
    try:
        app()
    except PtuneError as error:
        message = str(error)
    except OSError as error:
        message = _reason(error)
    where = "" if FIRST else f" in process {os.environ['RANK']}"
    shown = Text.assemble((f"Error{where}:", "bold red"), f" {message}")
    errors.print(shown, highlight=False, soft_wrap=True)
    sys.exit(2)


def _open_streams() -> None:
    """Replace streams that the caller closed, and print what an encoding lacks as escapes.

    In JSON, which most commands print, they mean the same.
    """
    codecs.register_error("ptune.escape", _escaped)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115
    out = sys.stdout
    if isinstance(out, io.TextIOWrapper) and out.errors == "strict":
        out.reconfigure(errors="ptune.escape")


def _escaped(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


def _reason(error: OSError) -> str:
    """What the system says about a file, on one line. A text in its place may be long."""
    if error.filename is None:
        return first_line(error)
    return f"{on_one_line(str(error.filename), 100)}: {error.strerror}."
