"""Which options count for which source of data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from ptune.errors import PtuneError

Source = Literal["file", "dataset", "task", "run", "texts"]

IN_WORDS: dict[Source, str] = {
    "file": "a file",
    "dataset": "a data set",
    "task": "a GLUE task",
    "run": "the data of the run",
    "texts": "typed texts or standard input",
}
# Options that name the source of labelled data.
NAMED_BY: dict[str, Source] = {
    "task": "task",
    "dataset": "dataset",
    "train_file": "file",
    "file": "file",
}
_FILE: tuple[Source, ...] = ("file",)
_TABLE: tuple[Source, ...] = ("file", "dataset")
# Options that are not here count for every source.
COUNTS_FOR: dict[str, tuple[Source, ...]] = {
    "data_dir": ("task",),
    "dataset_config": ("dataset",),
    "split": ("dataset",),
    "eval_file": _FILE,
    "where": _FILE,
    "delimiter": _FILE,
    "encoding": _FILE,
    "no_header": _FILE,
    "no_quotes": _FILE,
    "sheet": _FILE,
    "slice_column": _FILE,
    "text_column": _TABLE,
    "text_pair_column": _TABLE,
    "label_column": _TABLE,
    "indicator_column": _TABLE,
    "problem_type": _TABLE,
    "label_separator": _TABLE,
    "annotators": _TABLE,
    "other_label": _TABLE,
    "skip_unlabelled": _TABLE,
    "skip_empty": _TABLE,
}


def check_options(options: Mapping[str, Any], source: Source) -> None:
    """Refuse options that the source of the data would not use.

    Args:
        options: Values by name. Those that are empty are not given.
        source: Where the data come from.

    Raises:
        PtuneError: One of them counts for other sources only.
    """
    for name, sources in COUNTS_FOR.items():
        if source not in sources and options.get(name) not in (None, False, [], ()):
            expected = " or ".join(IN_WORDS[other] for other in sources)
            raise PtuneError(
                f"--{name.replace('_', '-')} is for {expected}, and this is {IN_WORDS[source]}: it "
                "would change nothing. Leave it out."
            )


def source_of(options: Mapping[str, Any]) -> Source | None:
    """Where options say that labelled data come from; ``None``: they name no source, or two."""
    named = [source for name, source in NAMED_BY.items() if options.get(name) is not None]
    return named[0] if len(named) == 1 else None


def of_others(source: Source) -> set[str]:
    """The options that name other sources, or count for others only."""
    naming = {name for name, named in NAMED_BY.items() if named != source}
    return naming | {name for name, sources in COUNTS_FOR.items() if source not in sources}
