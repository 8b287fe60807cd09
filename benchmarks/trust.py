"""Can what ptune says about a classifier be believed?

Each part measures one promise of docs/guides/trust.md on the data in PTUNE_DATA. Texts of the
test sets are never used to fit anything.

    python benchmarks/trust.py --output results.json
    python benchmarks/trust.py --parts ece unfamiliar --with-prompt

intervals   how many 95% intervals contain the true score, in simulations
sets        coverage of prediction sets on banking77, over random splits
thresholds  macro F1 on goemotions' test set, with thresholds per label and with 0.5
ece         calibration error on the test sets of the demo, tweet_irony and banking77, and on
            MRPC's dev set
fit         the same for classifiers that are trained on all their examples, without an evaluation
            set: at most 1,000 of them or 20 per label, and 16 per label
unfamiliar  60 intents of banking77 are known: are texts of the other 17 told apart?
speed       predictions with calibration, unfamiliar share and truncation, compared with logits
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from common import machine, silence, versions
from datasets import Dataset
from scipy import special
from sklearn.metrics import f1_score, roc_auc_score

import ptune
from ptune.data.dataset import LABEL, PAIR, TEXT
from ptune.data.glue import load_glue
from ptune.demo import __file__ as demo
from ptune.labels import Labels
from ptune.postprocessing import RAW, UNFAMILIAR
from ptune.quality import bootstrap
from ptune.training import calibration

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("PTUNE_DATA", ROOT.parent / "shared" / "data"))
Settings = dict[str, Any]
# Only the head is trained: what is measured here is fitted to its logits. With a prompt, as by
# default, training takes five to ten times as long.
HEAD: Settings = {"prompt": "none", "head": "features", "epochs": 1}


def examples(file: Path, label: str = "label") -> tuple[list[str], list[str]]:
    """Texts and labels of a CSV file."""
    with file.open(newline="", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    return [row["text"] for row in rows], [row[label] for row in rows]


def pairs(rows: Dataset, labels: Labels) -> tuple[list[tuple[str, str]], list[str]]:
    """Pairs of texts, and their labels."""
    found = list(zip(rows[TEXT], rows[PAIR], strict=True))
    return found, [labels.names[i] for i in rows[LABEL]]


def intervals(simulations: int = 1000) -> dict[str, Any]:
    """Simulated test sets of a population with known scores.

    Intervals are for texts with the shares of labels in the test set. So each simulated set has
    those of the population; or, to see how much that matters, shares that vary by chance.
    """
    rng = np.random.default_rng(0)
    share = np.array([0.5, 0.3, 0.15, 0.05])
    # The distribution of predictions for each label.
    predicts = np.array(
        [[0.9, 0.05, 0.03, 0.02], [0.1, 0.8, 0.05, 0.05], [0.2, 0.1, 0.7, 0], [0.3, 0.1, 0, 0.6]]
    )
    joint = share[:, None] * predicts
    true = {
        "accuracy": float(np.trace(joint)),
        "f1_macro": float(np.mean(2 * np.diag(joint) / (joint.sum(0) + joint.sum(1)))),
    }
    found: dict[str, dict[str, float]] = {}
    for size, varies in itertools.product((200, 1000), (False, True)):
        inside: dict[str, list[bool]] = {name: [] for name in true}
        for i in range(simulations):
            own = rng.multinomial(size, share) if varies else np.rint(size * share).astype(int)
            targets = np.repeat(np.arange(4), own)
            predicted = (predicts.cumsum(1)[targets] > rng.random((size, 1))).argmax(1)
            weights = bootstrap.counts(targets, seed=i)
            values = bootstrap.resampled(list(true), targets, predicted, 4, weights)
            for name, value in true.items():
                low, high = bootstrap.interval(values[name])
                # The population's score is a quotient too, which is rounded in another order.
                inside[name].append(low - 1e-9 <= value <= high + 1e-9)
        key = f"{size} texts, shares of labels {'vary' if varies else 'fixed'}"
        found[key] = {name: float(np.mean(covered)) for name, covered in inside.items()}
    return found


def sets(settings: Settings) -> dict[str, Any]:
    """Train once, then split the other texts at random."""
    train, test = (examples(DATA / "banking77" / f"{n}.csv", "category") for n in ("train", "test"))
    texts, names = [*train[0], *test[0]], np.array([*train[1], *test[1]])
    order = np.random.default_rng(0).permutation(len(texts))
    fit, rest = order[:5000], order[5000:]
    classifier = ptune.PromptClassifier(**settings).fit(
        [texts[i] for i in fit], names[fit], verbose=False
    )
    labels = classifier.labels_
    logits = np.stack(list(classifier.logits([texts[i] for i in rest])))
    targets = np.array(labels.encode(names[rest].tolist()))
    coverage: dict[float, list[float]] = {0.9: [], 0.95: []}
    sizes: dict[float, list[float]] = {0.9: [], 0.95: []}
    for split in range(20):
        order = np.random.default_rng(split).permutation(len(rest))
        held_out, judged = order[:2000], order[2000:5000]
        values = calibration.fit_values(labels, logits[held_out], targets[held_out], None)
        for wanted in coverage:
            inside = values.label_sets(labels, logits[judged], wanted)
            coverage[wanted].append(inside[np.arange(len(judged)), targets[judged]].mean())
            sizes[wanted].append(inside.sum(axis=1).mean())
    accuracy = (logits.argmax(1) == targets).mean()
    return {"accuracy": float(accuracy)} | {
        str(wanted): {
            "mean": float(np.mean(own)),
            "std": float(np.std(own)),
            "labels per set": float(np.mean(sizes[wanted])),
        }
        for wanted, own in coverage.items()
    }


def thresholds(settings: Settings, most: int = 6000) -> dict[str, Any]:
    """Thresholds are fitted on a part of the training file and judged on the test file."""
    texts, names = examples(DATA / "goemotions" / "train.csv", "labels")
    columns = [name.split("|") for name in names]
    cut = most * 2 // 3
    fit, held_out = slice(cut), slice(cut, most)
    classifier = ptune.PromptClassifier(**settings).fit(
        texts[fit],
        columns[fit],
        eval_set=(texts[held_out], columns[held_out]),
        problem_type="multi_label_classification",
        verbose=False,
    )
    texts, names = examples(DATA / "goemotions" / "test.csv", "labels")
    targets = np.array(classifier.labels_.encode([name.split("|") for name in names]))
    logits = np.stack(list(classifier.logits(texts)))
    values = classifier.postprocessing_
    scores = {
        "0.5": logits > 0,
        "0.5, calibrated": values.calibrated(logits) > 0,
        "per label": values.margins(logits) > 0,
    }
    return {
        name: float(f1_score(targets, found, average="macro", zero_division=0))
        for name, found in scores.items()
    }


def ece(settings: Settings) -> dict[str, Any]:
    """The calibration error before and after, and what labels drawn from the probabilities have."""
    folder, mrpc = Path(demo).parent, load_glue("mrpc", DATA / "glue")
    parts = {
        "demo": [examples(folder / f"{part}.csv") for part in ("train", "test")],
        "tweet_irony": [
            examples(DATA / "tweet_irony" / f"{part}.csv") for part in ("train", "val", "test")
        ],
        "banking77": [
            examples(DATA / "banking77" / f"{part}.csv", "category") for part in ("train", "test")
        ],
        "mrpc": [pairs(rows, mrpc.labels) for rows in (mrpc.train, mrpc.evaluation[""])],
    }
    found = {}
    for name, (train, *held_out_part, test) in parts.items():
        held_out = held_out_part[0] if held_out_part else tuple(own[::5] for own in train)
        if not held_out_part:  # a fifth of the training file is held out
            train = [[value for i, value in enumerate(own) if i % 5] for own in train]
        classifier = ptune.PromptClassifier(**settings).fit(
            *train, eval_set=held_out, verbose=False
        )
        labels, values = classifier.labels_, classifier.postprocessing_
        targets = np.array(labels.encode(test[1]))
        logits = np.stack(list(classifier.logits(test[0])))
        p = labels.probabilities(values.calibrated(logits))
        rng = np.random.default_rng(0)
        drawn = [
            calibration.ece(labels, p, (p.cumsum(1) > rng.random((len(p), 1))).argmax(1))
            for _ in range(1000)
        ]
        after = calibration.ece(labels, p, targets)
        found[name] = {
            "before": calibration.ece(labels, labels.probabilities(logits), targets),
            "after": after,
            "bar": max(0.03, float(np.quantile(drawn, 0.95))),
            "accuracy": float((p.argmax(1) == targets).mean()),
            "accuracy before": float((logits.argmax(1) == targets).mean()),
            "texts": len(targets),
        }
    return found


def fit(settings: Settings, seeds: int = 2) -> dict[str, Any]:
    """The calibration error before and after, if the temperature comes from training texts."""
    mrpc = load_glue("mrpc", DATA / "glue")
    parts = {
        "demo": [examples(Path(demo).parent / f"{part}.csv") for part in ("train", "test")],
        "tweet_irony": [examples(DATA / "tweet_irony" / f"{p}.csv") for p in ("train", "test")],
        "mrpc": [pairs(rows, mrpc.labels) for rows in (mrpc.train, mrpc.evaluation[""])],
        "banking77": [
            examples(DATA / "banking77" / f"{p}.csv", "category") for p in ("train", "test")
        ],
        "goemotions": [
            examples(DATA / "goemotions" / f"{p}.csv", "labels") for p in ("train", "test")
        ],
    }
    found = {}
    for (name, (train, test)), few, seed in itertools.product(
        parts.items(), (False, True), range(seeds)
    ):
        several = name == "goemotions"  # labels of a text
        if several and few:
            continue
        per_label = 16 if few else 20 if name == "banking77" else None
        given = some(train, None if per_label else 1000, per_label, seed=seed)
        texts, truth = some(test, 1540 if name == "banking77" else 1000, seed=99)
        x, y = given
        if several:
            y = [own.split("|") for own in y]
            known = {name for own in y for name in own}
            truth = [[name for name in own.split("|") if name in known] for own in truth]
        classifier = ptune.PromptClassifier(**settings, seed=seed).fit(x, y, verbose=False)
        labels, values = classifier.labels_, classifier.postprocessing_
        targets = np.array(labels.encode(truth))
        logits = np.stack(list(classifier.logits(texts)))
        p = {
            n: labels.probabilities(z)
            for n, z in (("before", logits), ("after", values.calibrated(logits)))
        }
        found[f"{name}{', 16 per label' if few else ''}, seed {seed}"] = {
            "examples": len(x),
            "accuracy": labels.score(truth, logits),
            "mean probability before": float(p["before"].max(1).mean()),
            **{name: calibration.ece(labels, own, targets) for name, own in p.items()},
            "temperature": values.scale is not None and float(1 / values.scale[0]),
        }
        print(found, flush=True)
    return found


def some(
    given: tuple[list[Any], list[str]], most: int | None, per_label: int | None = None, *, seed: int
) -> tuple[list[Any], list[str]]:
    """Some of the examples, drawn at random."""
    texts, names = given
    seen: Counter[str] = Counter()
    chosen = []
    for i in np.random.default_rng(seed).permutation(len(texts)).tolist():
        seen[names[i]] += 1
        if per_label is None or seen[names[i]] <= per_label:
            chosen.append(i)
    chosen = chosen[:most]
    return [texts[i] for i in chosen], [names[i] for i in chosen]


def unfamiliar(settings: Settings, draws: int = 5) -> dict[str, Any]:
    """Train on 60 intents, of which a fifth of the texts is held out; judge on the test file."""
    texts, names = examples(DATA / "banking77" / "train.csv", "category")
    given, truth = examples(DATA / "banking77" / "test.csv", "category")
    intents = sorted(set(names))
    rows: list[dict[str, float]] = []
    for draw in range(draws):
        rng = np.random.default_rng(draw)
        known = set(rng.permutation(intents)[:60].tolist())
        own = rng.permutation([i for i, name in enumerate(names) if name in known]).tolist()
        held_out, train = own[: len(own) // 5], own[len(own) // 5 :]
        classifier = ptune.PromptClassifier(**settings, seed=draw).fit(
            [texts[i] for i in train],
            [names[i] for i in train],
            eval_set=([texts[i] for i in held_out], [names[i] for i in held_out]),
            verbose=False,
        )
        inside = np.array([name in known for name in truth])
        logits = np.stack(list(classifier.logits(given))).astype(float)
        measure = classifier.postprocessing_.unfamiliar
        assert measure is not None
        share, p = measure.share(logits), special.softmax(logits, axis=1)
        predicted = [classifier.labels_.names[i] for i in logits.argmax(1)]
        right = np.array([own == true for own, true in zip(predicted, truth, strict=True)])[inside]
        kept = share[inside] <= UNFAMILIAR
        rows.append(
            {
                "unfamiliar": roc_auc_score(~inside, measure.score(logits)),
                "largest probability": roc_auc_score(~inside, -p.max(axis=1)),
                "energy": roc_auc_score(~inside, -special.logsumexp(logits, axis=1)),
                "marked of the unknown": (share[~inside] > UNFAMILIAR).mean(),
                "marked of the known": 1 - kept.mean(),
                "accuracy": right.mean(),
                "accuracy lost": right.mean() - (right & kept).mean(),
            }
        )
        print(rows[-1], flush=True)
    return {
        "draws": [{k: round(float(v), 4) for k, v in row.items()} for row in rows],
        "mean": {k: float(np.mean([row[k] for row in rows])) for k in rows[0]},
    }


def speed(settings: Settings, rounds: int = 8) -> dict[str, Any]:
    """CPU time of the same predictions, in turns, with everything fitted and with nothing."""
    train, held_out = (examples(Path(demo).parent / f"{n}.csv") for n in ("train", "test"))
    classifier = ptune.PromptClassifier(**settings).fit(*train, eval_set=held_out, verbose=False)
    values, texts = classifier.postprocessing_, held_out[0]
    seconds: dict[str, list[float]] = {"everything": [], "nothing": []}
    for i in range(rounds + 1):
        for name, own in (("everything", values), ("nothing", RAW)):
            classifier.postprocessing_ = own
            started = time.process_time()
            classifier(texts)
            if i:  # the first round warms up
                seconds[name].append(time.process_time() - started)
    best = {name: min(own) for name, own in seconds.items()}
    median = {name: float(np.median(own)) for name, own in seconds.items()}
    return {
        "texts": len(texts),
        "seconds": best,
        "speed with everything": best["nothing"] / best["everything"],
        "by medians": median["nothing"] / median["everything"],
    }


PARTS = {part.__name__: part for part in (intervals, sets, thresholds, ece, fit, unfamiliar, speed)}


def main() -> None:
    """Measure the parts that are asked for, and print them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--output", type=Path, help="parts that are already there are kept")
    parser.add_argument("--with-prompt", action="store_true", help="train with the defaults")
    options = parser.parse_args()
    settings: Settings = {} if options.with_prompt else HEAD
    silence()
    found: dict[str, Any] = {}
    if options.output and options.output.is_file():
        found = json.loads(options.output.read_text("utf-8"))
    found |= {"machine": machine(), "versions": versions("ptune", "torch", "scikit-learn")}
    for part in options.parts:
        started = time.process_time()
        how = {} if part == "intervals" else {"settings": settings}
        found[part] = PARTS[part](**how) | {"cpu_seconds": round(time.process_time() - started, 1)}
        print(json.dumps({part: found[part]}, indent=2), flush=True)
        if options.output:
            options.output.write_text(json.dumps(found, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
