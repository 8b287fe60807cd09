"""`ptune classify`: a language model's own answer, without training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from ptune.cli.options import (
    OUTPUT,
    DtypeOption,
    LabelWords,
    Template,
    TextColumn,
    Texts,
    errors,
    option,
    say,
)
from ptune.cli.predict import Format, answer, shown_format, texts_of
from ptune.data.sources import check_options
from ptune.errors import PtuneError
from ptune.files import check_output, folder_of
from ptune.training.settings import DATA, MODEL


def classify(
    texts: Texts = None,
    *,
    labels: Annotated[
        str,
        option("The labels, with commas between them.", DATA, metavar="A,B", show_default=False),
    ],
    model: Annotated[
        str, option("Causal or masked language model: a short name, a Hub id or a folder.", MODEL)
    ] = "smollm2",
    template: Template = None,
    label_words: LabelWords = None,
    file: Annotated[
        Path | None, option("Classify the texts of a file.", DATA, default="none")
    ] = None,
    text_column: TextColumn = None,
    format: Format = None,
    output: Annotated[
        Path | None,
        option(
            "Write to this file, in the format of its ending.", OUTPUT, default="standard output"
        ),
    ] = None,
    save: Annotated[
        Path | None,
        option(
            "Also save the classifier, for `ptune predict` and `ptune serve`.",
            OUTPUT,
            default="none",
        ),
    ] = None,
    calibrate: Annotated[bool, option("Give texts without content equal scores.", MODEL)] = True,
    dtype: DtypeOption = "auto",
) -> None:
    """Classify texts with a language model's own words, without training.

    For example:

    ptune classify "what a wonderful day" --labels positive,negative
    """
    from ptune.data.tables import Columns
    from ptune.inference.classifier import PromptClassifier
    from ptune.inference.jobs import Recipe

    if file and texts:
        raise PtuneError("Give texts or --file, not both.")
    if not file:
        check_options({"text_column": text_column}, "texts")
    check_output(output, file)
    if save:
        folder_of(save)
    shown = shown_format(texts, file, output, format)
    names = [name.strip() for name in labels.split(",") if name.strip()]
    source = texts_of(texts, None, file, Recipe("", Columns(text_column)))
    asked: dict[str, Any] = {"template": template, "label_words": label_words}
    asked |= {"pairs": len(source.columns.texts) == 2, "calibrate": calibrate}
    classifier = PromptClassifier.zero_shot(names, model=model, dtype=dtype, **asked)
    answer(classifier, source, output, shown)
    if save:
        classifier.save(save)
        say(f"The classifier is in {save}.", errors)
