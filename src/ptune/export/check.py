"""What both exports share: the folder, the tokenizer, and the check against ptune's logits.

An export is reopened and compared with ptune before it gets its final name.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ptune import __version__
from ptune.adapters.download import is_hub_id
from ptune.adapters.schema import CONFIG_NAME
from ptune.data.tables import read_table
from ptune.errors import PtuneError
from ptune.files import write_json
from ptune.inference.classifier import PromptClassifier
from ptune.inference.engines import EXPORT_INFO_NAME
from ptune.labels import is_container
from ptune.prompts.config import PromptEncoderConfig
from ptune.texts import Text, as_columns, as_rows, rows

# The largest accepted difference from ptune's logits in float32, relative to the largest logit.
TOLERANCE = 1e-4
# Backbones that read longer texts are not checked on a text of maximum length.
LONGEST_CHECK = 2048


@dataclass(frozen=True)
class Check:
    """How an export compares with ptune.

    Attributes:
        texts: Number of texts compared.
        difference: The largest difference from ptune's logits, relative to the largest logit.
    """

    texts: int
    difference: float


class Comparison:
    """ptune's own texts and those of a user, and the logits that ptune gives for them.

    Args:
        classifier: The classifier to export.
        more: The user's texts and pairs; ``None``: none.
        calibrated: Compare calibrated logits.

    Raises:
        PtuneError: One of the user's is not a text.
    """

    def __init__(
        self,
        classifier: PromptClassifier,
        more: Text | Iterable[Text] | None,
        *,
        calibrated: bool = False,
    ) -> None:
        own, added = own_texts(classifier), list(rows(() if more is None else more))
        self.sets: list[list[Any]] = []
        for pairs in (False, True):
            some = [text for text in added if is_container(text) is pairs]
            checked = as_rows(as_columns(some, pairs)) if some else []
            together = [text for text in own if isinstance(text, tuple) is pairs] + checked
            if together:
                self.sets.append(together)
        turn = classifier.postprocessing_.calibrated if calibrated else np.asarray
        self.expected = [turn(list(classifier.logits(some))) for some in self.sets]

    def check(self, logits: Callable[[list[Any]], Iterable[np.ndarray]]) -> Check:
        """Compare an export's logits, of texts in batches and one by one."""
        # A head of zeros gives only zeros. The difference is then absolute.
        largest = max(float(np.abs(expected).max()) for expected in self.expected) or 1.0
        difference = 0.0
        for texts, expected in zip(self.sets, self.expected, strict=True):
            with warnings.catch_warnings():
                # What there is to say about the texts was said when ptune read them.
                warnings.simplefilter("ignore", UserWarning)
                together = list(logits(texts))
                alone = [next(iter(logits([text]))) for text in texts[:4]]
            for found in (together, alone):
                gap = np.abs(np.asarray(found) - expected[: len(found)]).max()
                difference = max(difference, float(gap)) if np.isfinite(gap) else np.inf
        return Check(sum(map(len, self.sets)), difference / largest)


def own_texts(classifier: PromptClassifier) -> list[Text]:
    """Texts and pairs of many lengths, with Unicode and with the spelling of special tokens."""
    mails = read_table(Path(__file__).parents[1] / "demo" / "test.csv")["text"]
    spelled = f"This spells <virtual 0>, {classifier.tokenizer_.pad_token} and prompt:0 in a text."
    texts: list[Text] = ["?", "Naïve café: 日本語, emoji 🙂, and\ttabs", spelled]
    texts += [*mails[:24], " ".join(mails[24:28])]
    texts += [*zip(mails[28:36], mails[36:44], strict=True), (spelled, "no")]
    longest = classifier.prompt_model_.max_text_tokens(classifier.tokenizer_)
    if longest is not None and longest <= LONGEST_CHECK:
        texts += ["very long " * longest, ("long too " * longest, "short")]
    reading = classifier.prompt_model_.state.reading
    pairs = reading.template.takes_pairs if reading.template else reading.pairs
    if pairs is not None:
        texts = [text for text in texts if isinstance(text, tuple) is pairs]
    return texts


def require_fast_tokenizer(classifier: PromptClassifier) -> Any:
    """The backbone's tokenizer, if its file alone can tokenise.

    Raises:
        PtuneError: It is a slow tokenizer.
    """
    tokenizer: Any = classifier.tokenizer_
    if not tokenizer.is_fast:
        raise PtuneError(
            f"The backbone's tokenizer, {type(tokenizer).__name__}, is written in Python, and an "
            "export needs a fast one. Use a backbone that comes with a tokenizer.json."
        )
    return tokenizer


def write_export_info(
    folder: Path, *, config: PromptEncoderConfig, check: Check | None, **more: Any
) -> None:
    """Write what an export is made from, and how it compares with ptune."""
    backbone = config.base_model_name_or_path or ""
    info: dict[str, Any] = {
        "ptune_version": __version__,
        **more,
        # The folder's name: the path belongs to this machine.
        "backbone": backbone if is_hub_id(backbone) else Path(backbone).name,
        "num_virtual_tokens": config.num_virtual_tokens,
    }
    if check is not None:
        info["check"] = {
            "texts": check.texts,
            "largest_relative_difference": check.difference,
        }
    write_json(folder / EXPORT_INFO_NAME, info)


def check_apart(folder: Path, *read: str | os.PathLike[str]) -> None:
    """Refuse a target that contains what the export reads, and would be replaced.

    Raises:
        PtuneError: It contains one of these places.
    """
    for place in read:
        if Path(place).resolve().is_relative_to(folder):
            raise PtuneError(
                f"{folder} contains {os.fspath(place)}, which the export reads. Name another one."
            )


def check_target(folder: Path, *, overwrite: bool) -> None:
    """Refuse to replace what ptune did not export, before any work is done.

    Raises:
        PtuneError: The target is a file, an adapter, an unrelated folder, or (without
            `overwrite`) another checkpoint.
    """
    if folder.exists() and not folder.is_dir():
        raise PtuneError(f"{folder} is a file. Name a folder for the export.")
    if not folder.is_dir() or not any(folder.iterdir()) or (folder / EXPORT_INFO_NAME).is_file():
        return
    if not (folder / "config.json").is_file():
        what = "an adapter" if (folder / CONFIG_NAME).is_file() else "files that are not an export"
        raise PtuneError(f"The folder {folder} holds {what}. Name another folder.")
    if not overwrite:
        raise PtuneError(
            f"The folder {folder} holds a checkpoint that ptune did not export. Name another "
            "folder, or replace it (--overwrite)."
        )
