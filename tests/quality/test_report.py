"""`ptune report`: intervals that are right, and a page that shows what is there."""

import base64
import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import call

from ptune.adapters.adapter import Adapter
from ptune.data.dataset import TEXT
from ptune.files import read_json
from ptune.labels import MULTI, REGRESSION, SINGLE, Labels, compute
from ptune.quality import bootstrap, report
from ptune.quality.evidence import Evidence, dataset_of_run, reference_texts

HOSTILE = "<script>alert('x')</script> {{ 7*7 }} <img src=http://example.org/a.png>"


def write(file, rows, header):
    with file.open("w", encoding="utf-8", newline="") as out:
        csv.writer(out).writerows([header, *rows])
    return file


@pytest.fixture(scope="module")
def run(bert_folder, texts, tmp_path_factory):
    """A trained run with a hostile label, and the file of its data."""
    folder = tmp_path_factory.mktemp("report")
    labels = ["money", "<b>other</b>", "thanks"]
    rows = [
        (f"{t} {i}", labels[("thank" in t) * 2 or ("money" not in t and "phone" not in t)])
        for i in range(20)
        for t in texts
    ]
    file = write(folder / "train.csv", rows, ("text", "label"))
    options = (
        "--model",
        bert_folder,
        "--num-virtual-tokens",
        4,
        "--epochs",
        2,
        "--dtype",
        "float32",
    )
    assert call("train", "--train-file", file, "--output-dir", folder / "run", *options) == 0
    return folder / "run", labels


def test_a_training_ends_with_a_report_on_its_evaluation_set(run):
    folder, _ = run
    page = (folder / "report.html").read_text("utf-8")
    assert "evaluation, cross-fitted" in page
    assert "&lt;b&gt;other&lt;/b&gt;" in page
    content = read_json(folder / "report.json")
    metrics = read_json(folder / "metrics.json")
    assert content["rows"] == metrics["eval_examples"]["eval"] == 32
    values = {row["metric"]: row["value"] for row in content["scores"]}
    assert values["accuracy"] == pytest.approx(metrics["eval"]["accuracy"])
    # The folds are others, because `Trainer` takes the texts in another order.
    assert content["calibration"]["ece"] == pytest.approx(metrics["quality"]["ece"], abs=0.05)
    assert content["baselines"]["majority class"]["accuracy"] == metrics["majority"]["accuracy"]


def test_a_report_on_a_run_without_one_of_its_labels(run, tmp_path):
    folder, labels = run
    shutil.copytree(folder, changed := tmp_path / "run")
    assert call("drop-label", changed, labels[2]) == 0
    assert call("report", changed, "--dtype", "float32") == 0
    content = read_json(changed / "report.json")
    examples = {row["label"]: row["examples"] for row in content["per_label"]}
    assert set(examples) == set(labels[:2])
    assert sum(examples.values()) == content["rows"] < 32
    assert content["baselines"]["logistic regression on features"]["accuracy"] > 0.8
    # `ptune drift` compares new texts with those that the classifier is still for.
    before, now = (reference_texts(f, Adapter.read(f).labels)[0] for f in (folder, changed))
    assert set(now) < set(before)


def test_a_file_with_old_labels_is_reported_on_after_they_were_changed(
    run, tmp_path, capsys, caplog
):
    folder, labels = run
    changed = tmp_path / "changed"
    assert call("rename-label", folder, labels[0], "cash", "--output", changed) == 0
    assert call("drop-label", changed, labels[2]) == 0
    rows = [(f"text {i} of money", labels[i % 3], f"c{i % 3}", i) for i in range(12)]
    file = write(tmp_path / "gold.csv", [rows[0], *rows], ("text", "label", "country", "id"))
    options = ("--dtype", "float32", "--fast", "--slice-column", "country")
    assert call("report", changed, "--file", file, *options) == 0
    assert "Left out 4 of 13 examples with a label that" in caplog.text
    content = read_json(changed / "reports" / "gold.json")
    examples = {row["label"]: row["examples"] for row in content["per_label"]}
    assert examples == {"cash": 5, labels[1]: 4}
    slices = {row["part"]: row["texts"] for row in content["slices"]["country"]}
    assert slices == {"c0": 5, "c1": 4}
    # The new folder knows its run: what it was trained on, with the new labels.
    assert call("report", changed, "--dtype", "float32", "--fast") == 0
    content = read_json(changed / "report.json")
    assert {row["label"] for row in content["per_label"]} == {"cash", labels[1]}
    capsys.readouterr()
    known = ("--train-file", folder.parent / "train.csv", "--dtype", "float32", "--json")
    assert call("explain", changed, "the money is gone 0", *known) == 0
    found = json.loads(capsys.readouterr().out)["nearest"]
    assert {row["label"] for row in found} <= {"cash", labels[1]}


def test_a_report_on_a_file_has_everything_as_text(run, texts, tmp_path, capsys):
    folder, labels = run
    rows = [
        (f"{t} {i}", labels[i % 3], "de" if i % 2 else "<i>fr</i>") for i in range(6) for t in texts
    ]
    rows.append((HOSTILE, labels[0], "de"))
    file = write(tmp_path / "gold.csv", rows, ("text", "label", "country"))
    options = ("--file", file, "--slice-column", "country", "--dtype", "float32")
    assert call("report", folder, *options) == 0
    learned = set(dataset_of_run(folder).train[TEXT])
    known = sum(text in learned for text, *_ in rows)
    measured_on = f"test, but {known} of 49 texts are training texts"
    assert known > 5
    assert f"gold: 49 texts ({measured_on})" in capsys.readouterr().out
    page = (folder / "reports" / "gold.html").read_text("utf-8")
    assert len(page) < 2_000_000
    own = re.compile(r' src="data:image/svg\+xml;base64,([\w+/=]+)"')
    drawn = [base64.b64decode(svg).decode() for svg in own.findall(page)]
    assert len(drawn) == 4  # compared, training, labels, confusion
    assert all("<script" not in svg and "&lt;b&gt;other" in svg for svg in drawn[2:])
    assert len(re.findall(r"<img [^>]*alt=.[A-Z]", page)) == 4
    rest = re.sub(r"<img [^>]*>", "", own.sub("", page)).replace("&lt;img src=", "")
    assert not re.search(r"<script|<img|<i>|<b>other|\b49 \*|src=|href=", rest)
    content = read_json(folder / "reports" / "gold.json")
    assert content["measured_on"] == measured_on
    right = [row["value"] for row in content["scores"] if row["metric"] == "accuracy"]
    assert content["coverage"][0] == {"min_confidence": 0.0, "coverage": 1.0, "accuracy": right[0]}
    assert sum(bin["texts"] for bin in content["calibration"]["reliability"]) == 49
    assert {row["part"]: row["texts"] for row in content["slices"]["country"]} == {
        "de": 25,
        "<i>fr</i>": 24,
    }
    assert sum(map(sum, content["confusion"]["counts"])) == 49
    assert sum(row["texts"] for row in content["by_length"] if "tokens" in row["part"]) == 49
    assert "logistic regression on features" in content["baselines"]
    with (folder / "reports" / "gold-mistakes.csv").open(encoding="utf-8") as opened:
        mistakes = list(csv.DictReader(opened))
    assert len(mistakes) == round(49 * (1 - right[0]))
    scores = [float(row["score"]) for row in mistakes]
    assert scores == sorted(scores, reverse=True)
    for row in mistakes:
        text, label, _ = rows[int(row["row"]) - 1]
        assert (row["text"], row["label"]) == (text, label)
        scores = json.loads(row["scores"])
        assert row["label"] != row["predicted"] == max(scores, key=scores.get)
        assert row["nearest_1"]


@pytest.mark.parametrize(
    "own", [{"task": "mrpc", "data_dir": "glue"}, {"dataset": "mails", "dataset_config": "en"}]
)
def test_another_training_file_may_be_named_for_any_run(tmp_path, own):
    file = write(tmp_path / "mail.csv", [("a text", "x"), ("another", "y")] * 5, ("text", "label"))
    (tmp_path / "settings.json").write_text(json.dumps(own))
    assert len(dataset_of_run(tmp_path, file).train) == 8


def test_a_training_file_may_be_named_for_an_adapter_without_a_run(run, tmp_path, capsys):
    """As `save` writes it, or as it is on the Hub."""
    folder, labels = run
    shutil.copytree(folder, bare := tmp_path / "bare")
    (bare / "settings.json").unlink()
    train = folder.parent / "train.csv"
    known = ("--train-file", train, "--dtype", "float32")
    assert call("explain", bare, "the money is gone", *known, "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["nearest"]) == 3
    file = write(tmp_path / "gold.csv", [("a text", labels[0])], ("text", "label"))
    assert call("report", bare, "--file", file, *known) == 0
    baselines = read_json(bare / "reports" / "gold.json")["baselines"]
    assert "logistic regression on features" in baselines
    assert call("report", bare, *known) == 2
    assert "it is not known which texts of" in " ".join(capsys.readouterr().err.split())


def test_a_report_replaces_nothing_but_reports(run, tmp_path, capsys):
    folder, labels = run
    file = write(tmp_path / "gold.csv", [("a text", labels[0])], ("text", "label"))
    (tmp_path / "gold.json").write_text('{"mine": 1}')
    for page, message in (
        ("gold.html", "gold.json is no report, and would be replaced by the content of gold.html"),
        ("gold.pdf", "gold.pdf is not a page; expected a name that ends in .html."),
    ):
        assert call("report", folder, "--file", file, "--output", tmp_path / page) == 2
        assert message in capsys.readouterr().err
    assert (tmp_path / "gold.json").read_text() == '{"mine": 1}'


def test_mistakes_are_in_the_rows_of_the_file(run, texts, tmp_path):
    folder, labels = run
    rows = [(f"{t} {i}", labels[i % 3]) for i in range(3) for t in texts]
    rows.insert(1, ("a text without a label", ""))
    rows.insert(4, ("text", "label"))
    rows.insert(6, ("another one", " "))
    file = write(tmp_path / "gold.csv", rows, ("text", "label"))
    options = ("--file", file, "--fast", "--skip-unlabelled", "--dtype", "float32")
    assert call("report", folder, *options, "--output", tmp_path / "a.html") == 0
    mistakes = [*csv.DictReader((tmp_path / "a-mistakes.csv").open(encoding="utf-8", newline=""))]
    assert len(mistakes) > 5
    for row in mistakes:
        assert (row["text"], row["label"]) == rows[int(row["row"]) - 1]
    assert ">row</th>" in (tmp_path / "a.html").read_text("utf-8")


def test_a_held_out_part_has_no_rows_of_a_file(run, tmp_path):
    folder, _ = run
    own = Path(shutil.copytree(folder, tmp_path / "run"))
    assert call("report", own, "--fast", "--dtype", "float32") == 0
    assert (own / "mistakes.csv").read_text("utf-8").startswith("text,label,predicted,score,")
    assert ">row</th>" not in (own / "report.html").read_text("utf-8")


@pytest.mark.parametrize(("kind", "pictures"), [(REGRESSION, 1), (MULTI, 1), (SINGLE, 3)])
def test_a_page_of_each_kind_has_its_pictures(kind, pictures):
    rng = np.random.default_rng(0)
    labels = Labels(("stars",) if kind == REGRESSION else tuple("abc"), kind)
    logits = rng.normal(size=(30, len(labels)))
    noisy = logits + rng.normal(size=logits.shape)
    targets = {REGRESSION: noisy[:, 0], MULTI: (noisy > 0) * 1.0, SINGLE: noisy.argmax(axis=1)}
    texts = [f"text {i}" for i in range(30)]
    answers = (targets[kind], logits, logits, logits, [5 + i for i in range(30)])
    train = ([texts], targets[kind]) if kind == SINGLE else None
    evidence = Evidence("mail", "test", labels, [texts], *answers, np.zeros(30, dtype=bool))
    evidence = replace(evidence, train=train, metrics=labels.metrics)
    content = report.build(evidence)
    drawn = report.pictures(evidence, content, {})
    assert len(drawn) == pictures
    page = report.render(content, drawn)
    assert all(picture.url in page for _, picture in drawn)
    radii = re.findall(r'<circle [^>]*r="([\d.]+)"', page)
    assert all(float(radius) <= 12 for radius in radii)  # no circle leaves its diagram
    assert ("<th>error</th>" in page) == (kind == REGRESSION)


def test_a_failed_report_does_not_break_a_training(run, tmp_path, monkeypatch, capsys):
    folder, _ = run
    monkeypatch.setattr("ptune.quality.report.TEMPLATE", Path("missing"))
    settings = ("--config", folder / "settings.json", "--output-dir", tmp_path / "run")
    assert call("train", *settings, "--epochs", 1) == 0
    assert "There is no report" in capsys.readouterr().err
    assert (tmp_path / "run" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("kind", ["one", "several"])
def test_a_resample_with_every_text_once_gives_the_score_itself(kind):
    rng = np.random.default_rng(0)
    if kind == "one":
        targets, predicted = rng.integers(0, 3, 60), rng.integers(0, 3, 60)
        names = ["accuracy", "f1_macro", "matthews_correlation"]
    else:
        targets, predicted = rng.integers(0, 2, (60, 4)), rng.integers(0, 2, (60, 4))
        targets[:, 3] = predicted[:, 3] = 0  # a label that does not occur
        names = ["accuracy", "f1_macro", "f1_micro"]
    found = bootstrap.resampled(names, targets, predicted, 4, np.ones((1, 60), dtype=np.float32))
    wanted = compute(names, targets, predicted)
    assert {name: float(values[0]) for name, values in found.items()} == pytest.approx(wanted)
    # Rounding must not put a score that equals an end of its interval outside.
    assert float(found["accuracy"][0]) == wanted["accuracy"]


def test_resamples_keep_the_number_of_texts_of_each_label():
    strata = np.array([0] * 5 + [1] * 20)
    counts = bootstrap.counts(strata, samples=50)
    assert (counts[:, :5].sum(axis=1) == 5).all()
    assert (counts[:, 5:].sum(axis=1) == 20).all()
    assert len(np.unique(counts, axis=0)) == 50


def test_intervals_cover_the_true_accuracy():
    rng = np.random.default_rng(0)
    covered = []
    for simulation in range(400):
        targets = (rng.random(250) < 0.6).astype(int)
        right = rng.random(250) < np.where(targets == 1, 0.85, 0.75)
        weights = bootstrap.counts(targets, samples=300, seed=simulation)
        predicted = np.where(right, targets, 1 - targets)
        sampled = bootstrap.resampled(["accuracy"], targets, predicted, 2, weights)
        low, high = bootstrap.interval(sampled["accuracy"])
        covered.append(low <= 0.6 * 0.85 + 0.4 * 0.75 <= high)
    assert 0.92 <= np.mean(covered) <= 0.98


def test_explain_shows_the_training_texts_that_are_most_alike(run, tmp_path, capsys):
    folder, _ = run
    file, page = folder.parent / "train.csv", tmp_path / "page.html"
    with file.open(encoding="utf-8", newline="") as content:
        rows = list(csv.DictReader(content))
    known = next(row for row in rows if row["label"] == "<b>other</b>")
    options = ("--train-file", file, "--dtype", "float32")
    assert call("explain", folder, known["text"], *options, "--json", "--output", page) == 0
    first, *others = json.loads(capsys.readouterr().out)["nearest"]
    assert first == known
    assert len(others) == 2
    assert all(other in rows for other in others)
    assert f"&lt;b&gt;other&lt;/b&gt;: {known['text']}" in page.read_text("utf-8")
    assert call("explain", folder, known["text"], *options) == 0
    assert "training text" in capsys.readouterr().out
    assert call("explain", folder, "a", "--pair", "b", *options) == 2
    assert "train has 1 column(s) of texts, and 2 text(s) are explained." in " ".join(
        capsys.readouterr().err.split()
    )
