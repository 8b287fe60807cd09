"""What a classifier gets right and wrong on labelled texts: `ptune report`.

The result is one HTML page that needs no network, the same as JSON, and the mistakes as CSV.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray

from ptune.data.dataset import TaskData
from ptune.errors import PtuneError, cut
from ptune.files import METRICS_NAME, REPORT_NAME, read_json, read_metrics, staged, write_json
from ptune.inference.text_classifier import TextClassifier
from ptune.labels import compute, confusion, majority, per_label
from ptune.quality import bootstrap
from ptune.quality.evidence import SHOWN, Evidence, of_run, target_in_words
from ptune.quality.features import Show, features, fit_logistic_regression, nearest
from ptune.training import calibration
from ptune.training import pictures as draw
from ptune.training import report as training
from ptune.training.pictures import Picture

Array = NDArray[Any]
Pictures = Sequence[tuple[str, Picture]]
TEMPLATE = Path(__file__).with_name("report.html.jinja")

# Confused pairs, examples of each, mistakes on the page.
PAIRS, EXAMPLES, MISTAKES = 8, 2, 40
# Values of a column that are compared.
SLICES = 12
CONFIDENCES = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
# Examples that logistic regression learns from, at most.
MOST_EXAMPLES = 5000


def build(
    evidence: Evidence,
    model: str | None = None,
    show: Show = lambda batches, total: batches,
) -> dict[str, Any]:
    """Everything that the page shows, as JSON.

    Args:
        evidence: The texts and the answers.
        model: The backbone on whose features logistic regression is trained; ``None``: it is not.
        show: Shows the progress of the features.
    """
    labels = evidence.labels
    content: dict[str, Any] = {
        "name": evidence.name,
        "measured_on": evidence.measured_on,
        "rows": len(evidence.lengths),
        "labels": len(labels),
        "problem_type": labels.kind,
        "scores": _scores(evidence),
        "baselines": _baselines(evidence),
        "by_length": _by_length(evidence),
        "slices": {name: _slice(evidence, values) for name, values in evidence.slices.items()},
    }
    alike = None
    if model is not None and evidence.train is not None:
        alike = _with_features(evidence, content, model, show)
    if not labels.is_regression:
        each = per_label(evidence.targets, evidence.predicted, labels.names)
        content["per_label"] = sorted(each, key=lambda row: row["f1"])
        content["calibration"] = _calibration(evidence)
    if labels.is_single:
        content |= {"coverage": _coverage(evidence), **_confusion(evidence)}
    content["mistakes"] = _mistakes(evidence, alike)
    return content


# Scores.


def _scores(evidence: Evidence) -> list[dict[str, Any]]:
    """Each metric with its interval."""
    found = _measured(evidence, evidence.metrics, by_label=evidence.labels.is_single)
    return [{"metric": name, **own} for name, own in found.items()]


def _measured(
    evidence: Evidence, names: Sequence[str], *, by_label: bool = False, chosen: Any = slice(None)
) -> dict[str, dict[str, float]]:
    """The value of each metric on some of the texts, and its interval.

    Args:
        evidence: The texts and the answers.
        names: Names of metrics.
        by_label: Whether every label keeps its share in a resample.
        chosen: Which texts.
    """
    targets, predicted = (part[chosen] for part in evidence.comparable)
    weights = bootstrap.counts(targets if by_label else np.zeros(len(targets), dtype=int))
    found = bootstrap.resampled(names, targets, predicted, len(evidence.labels), weights)
    ends = {name: bootstrap.interval(found[name]) for name in names}
    return {
        name: {"value": value, "low": ends[name][0], "high": ends[name][1]}
        for name, value in compute(names, targets, predicted).items()
    }


def _baselines(evidence: Evidence) -> dict[str, dict[str, float]]:
    """Scores of always predicting the most frequent label of the training set."""
    if evidence.train is None or not evidence.labels.is_single:
        return {}
    label, _ = majority(evidence.train[1])
    constant = np.full(len(evidence.targets), label)
    return {"majority class": compute(evidence.metrics, evidence.targets, constant)}


def _with_features(
    evidence: Evidence, content: dict[str, Any], model: str, show: Show
) -> list[list[str]]:
    """Add logistic regression on the backbone's features; the nearest training texts of each."""
    assert evidence.train is not None
    columns, targets = evidence.train
    known, _ = features(columns, model, show=show)
    new, _ = features(evidence.columns, model, show=show)
    labels = evidence.labels
    if labels.is_single:
        chosen = np.random.default_rng(0).permutation(len(known))[:MOST_EXAMPLES]
        simple = fit_logistic_regression(known[chosen], targets[chosen])
        scores = compute(evidence.metrics, evidence.targets, simple.predict(new))
        content["baselines"]["logistic regression on features"] = scores
    found = nearest(new, known)
    return [[" ⏎ ".join(column[j] for column in columns) for j in row] for row in found]


def _calibration(evidence: Evidence) -> dict[str, Any]:
    labels, targets, logits = evidence.labels, evidence.targets, evidence.calibrated
    after = labels.probabilities(logits)
    return {
        "method": evidence.calibration,
        **calibration.before_and_after(labels, evidence.logits, logits, targets),
        "reliability": [
            {"texts": n, "claimed": claimed, "right": right}
            for n, claimed, right in calibration.reliability(
                *calibration.confidences(labels, after, targets)
            )
        ],
    }


def _coverage(evidence: Evidence) -> list[dict[str, Any]]:
    """What `min_confidence` costs and brings."""
    confidence = evidence.labels.probabilities(evidence.calibrated).max(axis=1)
    rows = []
    for bound in CONFIDENCES:
        kept = confidence >= bound
        accuracy = float(evidence.right[kept].mean()) if kept.any() else None
        rows.append({"min_confidence": bound, "coverage": float(kept.mean()), "accuracy": accuracy})
    return rows


def _confusion(evidence: Evidence) -> dict[str, Any]:
    matrix = confusion(evidence.targets, evidence.predicted, len(evidence.labels))
    names = evidence.labels.names
    off = matrix * (1 - np.eye(len(matrix), dtype=int))
    pairs = []
    for flat in np.argsort(-off, axis=None, kind="stable")[:PAIRS]:
        i, j = divmod(int(flat), len(matrix))
        if not off[i, j]:
            break
        chosen = np.flatnonzero((evidence.targets == i) & (evidence.predicted == j))
        pairs.append(
            {
                "label": names[i],
                "predicted": names[j],
                "texts": int(off[i, j]),
                "of": int(matrix[i].sum()),
                "examples": [evidence.text(k) for k in chosen[:EXAMPLES]],
            }
        )
    return {"confused": pairs, "confusion": {"labels": list(names), "counts": matrix.tolist()}}


def _quality(evidence: Evidence, chosen: Array) -> dict[str, Any]:
    """The first metric on a part of the texts, with an interval."""
    (found,) = _measured(evidence, evidence.metrics[:1], chosen=chosen).values()
    return {"texts": int(chosen.sum()), **found}


def _by_length(evidence: Evidence) -> list[dict[str, Any]]:
    lengths = np.array(evidence.lengths)
    bounds = np.unique(np.quantile(lengths, [0, 0.25, 0.5, 0.75]).astype(int)).tolist()
    rows = []
    for low, high in itertools.pairwise([*bounds, int(lengths.max()) + 1]):
        inside = (lengths >= low) & (lengths < high)
        title = f"{low} to {high - 1} tokens"
        if inside.any():
            rows.append({"part": title, **_quality(evidence, inside)})
    if evidence.cut.any():
        rows.append({"part": "cut to the classifier's limit", **_quality(evidence, evidence.cut)})
    return rows


def _slice(evidence: Evidence, values: Sequence[Any]) -> list[dict[str, Any]]:
    each = np.array([str(value) for value in values], dtype=object)
    return [
        {"part": value or "(empty)", **_quality(evidence, each == value)}
        for value, _ in Counter(each.tolist()).most_common(SLICES)
    ]


def _mistakes(evidence: Evidence, alike: list[list[str]] | None) -> list[dict[str, Any]]:
    """Wrong predictions, the most confident first; for a regression the largest errors."""
    targets, predicted = evidence.comparable
    labels = evidence.labels
    if labels.is_regression:
        size = np.abs(targets - predicted)
        wrong = np.argsort(-size, kind="stable")
        score: Array = predicted
    else:
        p = labels.probabilities(evidence.calibrated)
        score = p.max(axis=1) if labels.is_single else np.abs(p - targets).max(axis=1)
        wrong = np.flatnonzero(~evidence.right)
        wrong = wrong[np.argsort(-score[wrong], kind="stable")]
    rows = []
    for i in wrong.tolist():
        row = {
            **({} if evidence.rows is None else {"row": evidence.rows[i]}),
            "text": " ⏎ ".join(column[i] for column in evidence.columns),
            "label": target_in_words(labels, evidence.targets[i]),
            "predicted": target_in_words(labels, predicted[i]),
            "score": round(float(score[i]), 4),
        }
        if not labels.is_regression:
            each = zip(labels.names, p[i].tolist(), strict=True)
            row["scores"] = {n: round(v, 4) for n, v in sorted(each, key=lambda e: -e[1])[:5]}
        if alike is not None:
            row["nearest"] = alike[i]
        rows.append(row)
    return rows


# Pictures and files.


def pictures(
    evidence: Evidence, content: dict[str, Any], results: dict[str, Any]
) -> list[tuple[str, Picture]]:
    """The pictures of the page, with their titles.

    Args:
        evidence, content: What `build` took and returned.
        results: The content of the run's `metrics.json`; empty: there is none.
    """
    labels, found = evidence.labels, []
    if content["baselines"]:
        (first, *_), metric = content["scores"], content["scores"][0]["metric"]
        scores = {name: (s[metric],) * 3 for name, s in content["baselines"].items()}
        (name, (start, *_)), *_ = scores.items()
        scores |= {"this classifier": (first["value"], first["low"], first["high"])}
        scores.pop(name)
        how: dict[str, Any] = {"own": ["this classifier"]}
        drawn = draw.methods(scores, (f"the {name}", start), metric, evidence.name, **how)
        found.append(("Compared with simple methods", drawn))
    if results and (curve := training.training_curve(results)):
        found.append(("Training", curve))
    if labels.is_single:
        counts = np.array(content["confusion"]["counts"])
        found.append(("Confusion", draw.confusion(counts, labels.names, evidence.name)))
    if labels.is_regression:
        found.append(("Numbers", draw.values(evidence.targets, evidence.predicted, evidence.name)))
    else:
        found.append(("Labels", draw.label_scores(content["per_label"], evidence.name)))
    return found


def report_run(folder: Path, classifier: TextClassifier, data: TaskData) -> Path:
    """Write the report of a run on its own evaluation sets, into its folder.

    It is without logistic regression and the nearest training texts, which take longer.

    Args:
        folder: The run folder.
        classifier: The run's classifier.
        data: The run's data.

    Raises:
        PtuneError: It cannot be written, or there is no evaluation set.
    """
    found = of_run(classifier, data)
    if not found:
        raise PtuneError(f"The run in {folder} has no evaluation set. Name a labelled file.")
    page = folder / REPORT_NAME
    for i, one in enumerate(found):
        own = page if i == 0 else page.with_name(f"report_{i + 1}.html")
        content = build(one)
        write(content, own, pictures(one, content, read_metrics(folder / METRICS_NAME)))
    return page


def backbone_of(classifier: TextClassifier) -> str | None:
    """The backbone's name, if the classifier has one of its own."""
    return getattr(classifier, "model", None)


def render(content: dict[str, Any], shown: Pictures = ()) -> str:
    """The page. Texts and labels appear as text, whatever they contain."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["percent"] = lambda v: "none" if v is None else f"{100 * v:.1f}%"
    environment.filters["number"] = lambda value: f"{value:.4f}"
    environment.filters["short"] = lambda text: cut(text, SHOWN)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(**content, pictures=dict(shown), most=MISTAKES, has=content.__contains__)


def write(content: dict[str, Any], page: Path, shown: Pictures = ()) -> None:
    """Write the page, the same as `.json`, and the mistakes as `-mistakes.csv`.

    Args:
        content: From `build`.
        page: The file.
        shown: Pictures and their titles, from `pictures`.

    Raises:
        PtuneError: They cannot be written.
    """
    check_page(page)
    with staged(page.absolute().parent) as stage:
        (stage / page.name).write_text(render(content, shown), encoding="utf-8")
        rest = {name: value for name, value in content.items() if name != "mistakes"}
        write_json(stage / f"{page.stem}.json", rest)
        with (stage / mistakes_name(page)).open("w", encoding="utf-8", newline="") as out:
            writer = csv.writer(out)
            names = ["text", "label", "predicted", "score"]
            names = ["row", *names] if any("row" in row for row in content["mistakes"]) else names
            writer.writerow([*names, "scores", *NEAREST])
            for row in content["mistakes"]:
                scores = json.dumps(row.get("scores", {}), ensure_ascii=False)
                own = [row[name] for name in names]
                writer.writerow([*own, scores, *row.get("nearest", [""] * 3)])


def check_page(page: Path) -> None:
    """Check that a report may be written here.

    Raises:
        PtuneError: The name does not end in `.html`, or the `.json` file next to it, which would be
            replaced, is not a report.
    """
    if page.suffix.lower() not in (".html", ".htm"):
        raise PtuneError(f"{page} is not a page; expected a name that ends in .html.")
    content = page.with_suffix(".json")
    if content.is_file() and not _is_report(content):
        raise PtuneError(
            f"{content} is no report, and would be replaced by the content of {page.name}. Choose "
            "another --output."
        )


def _is_report(file: Path) -> bool:
    try:
        return "measured_on" in read_json(file)
    except PtuneError:
        return False


NEAREST = ("nearest_1", "nearest_2", "nearest_3")


def written_with(page: Path) -> list[Path]:
    """The page, and the files that `write` writes next to it."""
    return [page, page.with_suffix(".json"), page.with_name(mistakes_name(page))]


def mistakes_name(page: Path) -> str:
    """The name of the file of mistakes next to a page."""
    return "mistakes.csv" if page.name == REPORT_NAME else f"{page.stem}-mistakes.csv"
