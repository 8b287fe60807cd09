"""What can be wrong with labelled texts: one function for each check.

Each takes `Rows` and yields findings. Checks that need a backbone take its features, too.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import CountVectorizer

from ptune.errors import counted, on_one_line
from ptune.labels import Labels
from ptune.quality.features import cross_fitted_logits
from ptune.training.calibration import fit_temperature

Array = NDArray[Any]
Level = Literal["error", "warning", "note"]

# Texts with fewer characters than this, or without a letter, are very short.
SHORT = 3
# Fewer examples of a label are too few.
FEW = 10
# The largest label may have this many times the examples of the smallest.
IMBALANCE = 20
# Near-duplicates: how alike the features are, and then the characters.
ALIKE, SAME_CHARACTERS = 0.9, 0.9
# A token gives a label away if nearly all texts of the label have it, and nearly no others.
GIVEN_AWAY, GIVES_AWAY = 0.95, 0.99
# A label is likely wrong if this is its probability at most, and another label is more probable.
WRONG = 0.1
# Characters of a text that are compared, and the most alike texts that each is compared with.
COMPARED, CLOSEST = 1000, 20


@dataclass(frozen=True)
class Rows:
    """The rows of a file that have a text and a label.

    Attributes:
        numbers: Number of each row in the file, from 1.
        texts: The texts; the two of a pair are joined by a line break.
        labels: The labels of each row, sorted.
        is_single: Each row has exactly one label.
        columns: The texts as `ptune.texts` takes them, in one column or two.
        is_regression: The labels are numbers to predict, which have no names.
    """

    numbers: list[int]
    texts: list[str]
    labels: list[tuple[str, ...]]
    is_single: bool
    columns: list[list[str]]
    is_regression: bool = False

    @property
    def counts(self) -> Counter[str]:
        """How many rows have each label."""
        return Counter(label for labels in self.labels for label in labels)


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        check: Which check.
        level: `error`: the scores or the labels cannot be trusted. `warning`: worth a look.
            `note`: good to know.
        problem: What was found, in a sentence.
        advice: What to do about it.
        rows: Numbers of the rows in the file, the most serious first.
        remarks: A remark for each of these rows.
    """

    check: str
    level: Level
    problem: str
    advice: str
    rows: list[int] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def normal(text: str) -> str:
    """A text without what does not count for equality: case and white space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _quoted(text: str) -> str:
    return f'"{on_one_line(text)}"'


# Equal and nearly equal texts.


def duplicates(rows: Rows) -> Iterator[Finding]:
    """Equal texts with equal labels, and with different ones."""
    first: dict[tuple[str, tuple[str, ...]], int] = {}
    groups: dict[str, list[int]] = defaultdict(list)
    again, remarks = [], []
    for i, text in enumerate(map(normal, rows.texts)):
        groups[text].append(i)
        known = first.setdefault((text, rows.labels[i]), i)
        if known != i:
            again.append(rows.numbers[i])
            remarks.append(f"same as row {rows.numbers[known]}")
    if again:
        yield Finding(
            "duplicates",
            "warning",
            counted(len(again), "row repeats", "rows repeat") + " an earlier row",
            "Leave them out (--fix), or they count twice and leak into held-out parts.",
            again,
            remarks,
        )
    mixed = [g for g in groups.values() if len({rows.labels[i] for i in g}) > 1]
    if mixed:
        example = mixed[0]
        names = " and ".join(sorted({", ".join(rows.labels[i]) or "no label" for i in example}))
        yield Finding(
            "conflicts",
            "error",
            counted(len(mixed), "text occurs", "texts occur") + " with different labels, such as "
            f"{_quoted(rows.texts[example[0]])}: {names}",
            "Decide on one label for each text.",
            [rows.numbers[i] for g in mixed for i in g],
            [f"text of row {rows.numbers[g[0]]} with another label" for g in mixed for _ in g],
        )


def leakage(rows: Rows, other: Rows) -> Iterator[Finding]:
    """Texts of the evaluation file that are in the training file, too, and unknown labels."""
    known = {normal(text): n for text, n in zip(rows.texts, rows.numbers, strict=True)}
    found = [(n, known.get(normal(t))) for t, n in zip(other.texts, other.numbers, strict=True)]
    if inside := [(n, at) for n, at in found if at is not None]:
        yield Finding(
            "leakage",
            "error",
            f"{len(inside)} of {len(found)} evaluation texts are in the training file, too",
            "Remove them from one of the files. Scores on them are too high.",
            [n for n, _ in inside],
            [f"same text as row {at} of the training file" for _, at in inside],
        )
    unseen = other.counts.keys() - rows.counts.keys()
    if unseen and not rows.is_regression:
        wrong = [i for i, labels in enumerate(other.labels) if unseen & set(labels)]
        yield Finding(
            "unknown labels",
            "error",
            counted(len(unseen), "evaluation label is", "evaluation labels are")
            + " not in the training file, such as "
            f"{sorted(unseen)[0]!r}",
            "Add examples of them, or correct their spelling.",
            [other.numbers[i] for i in wrong],
            [", ".join(other.labels[i]) for i in wrong],
        )


def near_duplicates(
    rows: Rows, x: Array, other: Rows | None = None, other_x: Array | None = None
) -> Iterator[Finding]:
    """Texts that differ in a few characters, in one file or between two."""
    inside = other is None or other_x is None
    later, later_x = (rows, x) if other is None or other_x is None else (other, other_x)
    first, second = list(map(normal, rows.texts)), list(map(normal, later.texts))
    found: dict[int, int] = {}
    for start in range(0, len(second), 1024):
        alike = later_x[start : start + 1024] @ x.T  # [block, n]
        for at, row in enumerate(alike, start):
            for j in _closest(row[:at] if inside else row):
                if first[j] == second[at]:
                    continue
                if _similar(first[j][:COMPARED], second[at][:COMPARED]):
                    found[at] = j
                    break
    if not found:
        return
    remarks = [f"nearly row {rows.numbers[j]}: {_quoted(rows.texts[j])}" for j in found.values()]
    numbers = [later.numbers[i] for i in found]
    if inside:
        level, problem = "note", counted(len(found), "row is", "rows are")
        problem += " nearly equal to an earlier row"
        advice = "Look at them. Held-out parts of the file are easier than new texts."
    else:
        level = "warning"
        problem = counted(len(found), "evaluation text is", "evaluation texts are")
        problem += " nearly equal to a training text"
        advice = "Look at them. Scores on them are too high."
    check = "near-duplicates" if inside else "near leakage"
    yield Finding(check, level, problem, advice, numbers, remarks)  # type: ignore[arg-type]


def _closest(alike: Array) -> list[int]:
    """The texts that are most alike, in their order."""
    near = np.flatnonzero(alike > ALIKE)
    if len(near) > CLOSEST:
        near = np.sort(near[np.argpartition(-alike[near], CLOSEST)[:CLOSEST]])
    return near.tolist()


def _similar(a: str, b: str) -> bool:
    if 2 * min(len(a), len(b)) < SAME_CHARACTERS * (len(a) + len(b)):
        return False
    matcher = SequenceMatcher(None, a, b, autojunk=False)
    return matcher.quick_ratio() >= SAME_CHARACTERS and matcher.ratio() >= SAME_CHARACTERS


# Texts.

# UTF-8 that was read as Latin-1 or Windows-1252, and characters that could not be decoded.
_BROKEN = re.compile(
    "[ÃÂ][\u0080-\u00bf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u2013-\u203a]|â€|ï»¿|\ufffd"
)


def repaired(text: str) -> str:
    """A text whose UTF-8 was read as Windows-1252 or Latin-1, as it was meant."""
    if _BROKEN.search(text):
        for encoding in ("cp1252", "latin-1"):
            try:
                return text.encode(encoding).decode("utf-8")
            except UnicodeError:
                continue
    return text


def broken(rows: Rows) -> Iterator[Finding]:
    """Texts that are very short, or whose characters were read with a wrong encoding."""
    short = [
        i
        for i, text in enumerate(rows.texts)
        if len(text.strip()) < SHORT or not any(map(str.isalnum, text))
    ]
    if short:
        yield Finding(
            "short texts",
            "warning",
            counted(len(short), "text has", "texts have")
            + f" less than {SHORT} characters, or no letter or digit, such as "
            f"{_quoted(rows.texts[short[0]])}",
            "Check whether their label can be known.",
            [rows.numbers[i] for i in short],
            [""] * len(short),
        )
    wrong = [i for i, text in enumerate(rows.texts) if _BROKEN.search(text)]
    if wrong:
        yield Finding(
            "encoding",
            "warning",
            counted(len(wrong), "text has", "texts have")
            + f" broken characters, such as {_quoted(rows.texts[wrong[0]])}",
            "Read the source with the right encoding, or repair them (--fix).",
            [rows.numbers[i] for i in wrong],
            [_quoted(repaired(rows.texts[i])) for i in wrong],
        )


@cache
def _script(character: str) -> str:
    return unicodedata.name(character, "?").split()[0] if character.isalpha() else ""


def scripts(rows: Rows) -> Iterator[Finding]:
    """Texts in another script than most."""
    each = []
    for text in rows.texts:
        counts = Counter(filter(None, map(_script, text[:COMPARED])))
        each.append(counts.most_common(1)[0][0] if counts else "")
    usual = Counter(filter(None, each)).most_common(1)
    others = [i for i, script in enumerate(each) if script and script != usual[0][0]]
    if others:
        names = Counter(each[i].capitalize() for i in others)
        yield Finding(
            "scripts",
            "note",
            counted(len(others), "text is", "texts are")
            + f" not in {usual[0][0].capitalize()} script: "
            + ", ".join(f"{name} {n}" for name, n in names.most_common(3)),
            "Check whether the backbone knows these languages.",
            [rows.numbers[i] for i in others],
            [each[i].capitalize() for i in others],
        )


_PERSONAL = {
    "e-mail addresses": re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)*\.[a-zA-Z]{2,}"),
    "phone numbers": re.compile(r"(?<![\w.])(?<!\d )(?:\+|00?)\d[\d ()/-]{7,16}\d(?![\w.])"),
    "IBANs": re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"),
}


def personal_data(rows: Rows) -> Iterator[Finding]:
    """How many texts have e-mail addresses, phone numbers and bank accounts."""
    for name, pattern in _PERSONAL.items():
        found = [i for i, text in enumerate(rows.texts) if _has(text, pattern, name)]
        if found:
            yield Finding(
                "personal data",
                "note",
                counted(len(found), "text has", "texts have") + f" {name}",
                "Check whether you may use them, or replace them.",
                [rows.numbers[i] for i in found],
                [name] * len(found),
            )


def _has(text: str, pattern: re.Pattern[str], name: str) -> bool:
    if name != "IBANs":
        return bool(pattern.search(text))
    return any(_is_iban(found.group()) for found in pattern.finditer(text))


def _is_iban(text: str) -> bool:
    """True if the check digits are right (ISO 13616)."""
    plain = text.replace(" ", "")
    return int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4])) % 97 == 1


def truncated(rows: Rows, cut: Sequence[int], limit: str) -> Iterator[Finding]:
    """Texts that are longer than the backbone reads."""
    if cut:
        yield Finding(
            "truncated",
            "warning",
            counted(len(cut), "text is", "texts are") + f" longer than {limit} reads",
            "Only their beginning counts. Take a backbone for longer texts, or shorten them.",
            [rows.numbers[i] for i in cut],
            [""] * len(cut),
        )


# Labels.


def label_names(rows: Rows) -> Iterator[Finding]:
    """Labels that differ in case or spelling, that are rare, and that are very frequent."""
    counts = rows.counts
    spellings = same_spelling(counts)
    for spelling, usual in spellings.items():
        chosen = [i for i, labels in enumerate(rows.labels) if spelling in labels]
        yield Finding(
            "spelling",
            "error",
            f"the labels {usual!r} ({counts[usual]}) and {spelling!r} ({counts[spelling]}) differ "
            "only in case or punctuation",
            "Use one spelling (--fix takes the more frequent one).",
            [rows.numbers[i] for i in chosen],
            [f"{spelling} instead of {usual}"] * len(chosen),
        )
    names = sorted(counts.keys() - spellings.keys(), key=lambda name: -counts[name])
    for i, rare in enumerate(names):
        usual_ = next(
            (n for n in names[:i] if 10 * counts[rare] < counts[n] and _typo(rare, n)), ""
        )
        if usual_:
            chosen = [i for i, labels in enumerate(rows.labels) if rare in labels]
            yield Finding(
                "spelling",
                "warning",
                f"the label {rare!r} ({counts[rare]}) is spelled almost like {usual_!r} "
                f"({counts[usual_]})",
                "Correct it if it is a typing error.",
                [rows.numbers[i] for i in chosen],
                [f"{rare} instead of {usual_}?"] * len(chosen),
            )
    if len(names) == 1:
        yield Finding(
            "one label",
            "error",
            f"all {len(rows.labels)} rows have no other label than {names[0]!r}",
            "A classifier needs at least two. Is it the right column (--label-column)?",
        )
    few = [name for name in names if counts[name] < FEW]
    if few:
        chosen = [i for i, labels in enumerate(rows.labels) if set(few) & set(labels)]
        yield Finding(
            "few examples",
            "warning",
            counted(len(few), f"of {len(names)} labels has", f"of {len(names)} labels have")
            + f" fewer than {FEW} examples: "
            + ", ".join(f"{name} {counts[name]}" for name in few[-5:][::-1])
            + (", …" if len(few) > 5 else ""),
            "Add examples, or merge labels.",
            [rows.numbers[i] for i in chosen],
            [", ".join(rows.labels[i]) for i in chosen],
        )
    if names and counts[names[0]] > IMBALANCE * counts[names[-1]]:
        yield Finding(
            "imbalance",
            "note",
            f"the label {names[0]!r} has {counts[names[0]]} examples and {names[-1]!r} "
            f"{counts[names[-1]]}",
            "Judge the classifier by macro F1. class_weight='balanced' of fit weighs rare labels.",
        )


# Characters that may be written one for another inside a name, and left out at its ends. Others
# are part of the name, such as signs (A+), emojis, and the marks of scripts like Devanagari.
_BETWEEN = re.compile(
    r"""(?:(?!(?<=\d)[.,:/]\d)(?!(?<![^\W_])-\d)[-/_\s.,:;'"()\[\]{}\u2010-\u201f])+"""
)
_AT_ENDS = " _.,:;'\"()[]{}\u2018\u2019\u201c\u201d"
# At the ends of a name these tell labels apart: A+ and A-, C and C#.
_SIGNS = "+-#&%*/"


def same_spelling(counts: Counter[str]) -> dict[str, str]:
    """Labels that are the same but for case and separators, each with its most frequent form."""
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name in sorted(counts, key=lambda name: (-counts[name], name)):
        groups[_without_separators(name)].append(name)
    return {rare: group[0] for group in groups.values() for rare in group[1:]}


def _without_separators(name: str) -> tuple[str, ...]:
    """What two spellings of a label have in common: the signs before it, the name, those after."""
    plain = normal(name)
    if not any(map(str.isalpha, plain)) or _is_number(plain):
        return (" ".join(name.split()),)
    core = plain.strip(_AT_ENDS + _SIGNS)
    start, end = plain.split(core, 1) if core else (plain, "")
    before, after = ("".join(c for c in part if c in _SIGNS) for part in (start, end))
    return before, _BETWEEN.sub(" ", core), after


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _typo(a: str, b: str) -> bool:
    """True if two names differ in one or two letters, and not in a number."""
    if min(len(a), len(b)) < 5 or re.sub(r"\D", "", a) != re.sub(r"\D", "", b):
        return False
    return SequenceMatcher(None, a.casefold(), b.casefold(), autojunk=False).ratio() >= 0.9


def give_away(rows: Rows) -> Iterator[Finding]:
    """Labels that the presence of one word gives away."""
    names = sorted(name for name, n in rows.counts.items() if n >= FEW)
    if len(rows.counts) < 2:
        return
    vectorizer = CountVectorizer(binary=True, min_df=FEW, token_pattern=r"(?u)\b\w+\b")
    try:
        words = vectorizer.fit_transform([text[:COMPARED] for text in rows.texts])
    except ValueError:  # no word is frequent enough
        return
    vocabulary, of_word = vectorizer.get_feature_names_out(), np.asarray(words.sum(axis=0))[0]
    for name in names:
        has = np.array([name in labels for labels in rows.labels])
        both = words.T @ has.astype(int)
        share, purity = both / has.sum(), both / of_word
        for i in np.flatnonzero((share >= GIVEN_AWAY) & (purity >= GIVES_AWAY))[:1]:
            yield Finding(
                "give-away",
                "warning",
                f"the word {vocabulary[i]!r} gives the label {name!r} away: {share[i]:.0%} of its "
                f"texts have it, and {both[i]} of the {of_word[i]} texts with the word have the "
                "label",
                "If the word comes from how the data was made, remove it: new texts lack it.",
                [n for n, on in zip(rows.numbers, has, strict=True) if on],
                [name] * int(has.sum()),
            )


def wrong_labels(rows: Rows, x: Array) -> Iterator[Finding]:
    """Labels that a classifier trained on the other rows finds improbable.

    Confident learning, https://arxiv.org/abs/1911.00068, with a linear classifier on features.
    """
    names = sorted(rows.counts)
    if not rows.is_single or rows.is_regression or not 2 <= len(names) <= len(rows.texts) // 5:
        return
    number = {name: i for i, name in enumerate(names)}
    y = np.array([number[label] for (label,) in rows.labels])
    logits = cross_fitted_logits(x, y, len(names))
    labels = Labels(tuple(names))
    p = labels.probabilities(logits * fit_temperature(labels, logits, y))  # [n, labels]
    own, best = p[np.arange(len(y)), y], p.argmax(axis=1)
    suspects = np.flatnonzero((best != y) & (own <= WRONG))
    suspects = suspects[np.argsort(own[suspects], kind="stable")]
    if len(suspects):
        worst = int(suspects[0])
        yield Finding(
            "wrong labels",
            "warning",
            counted(len(suspects), "label is", "labels are")
            + f" likely wrong, such as {names[y[worst]]!r} for "
            f"{_quoted(rows.texts[worst])}: rather {names[best[worst]]!r}",
            "Look at them in this order (--output lists them).",
            [rows.numbers[i] for i in suspects],
            [f"rather {names[best[i]]} ({p[i, best[i]]:.2f})" for i in suspects],
        )
