"""Calibration, thresholds and sets of labels: the same everywhere, refused where damaged."""

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import call, client_of, refused
from safetensors.torch import load_file, save_file
from scipy import special
from subjects import ON_TORCH, SENTENCES, SUBJECTS, Subject, postprocessing_of, read_backbone

import ptune
from ptune.adapters.adapter import Adapter
from ptune.adapters.quality import QUALITY_NAME
from ptune.labels import Labels
from ptune.postprocessing import Goal, Postprocessing
from ptune.training.calibration import fit_unfamiliar

CALIBRATED = [s for s in SUBJECTS if s.head != "regression"]
MULTI = "multi_label_classification"


def expected(subject, logits):
    """The probabilities that a subject's calibration gives its logits."""
    values = postprocessing_of(subject)
    logits = logits * values.scale + (0 if values.shift is None else values.shift)
    return special.expit(logits) if subject.head == "multi-label" else special.softmax(logits, 1)


@pytest.mark.parametrize("subject", CALIBRATED, ids=str)
def test_probabilities_are_calibrated_and_logits_are_not(folder_of, subject):
    reference = Subject(subject.mechanism, subject.head).load(folder_of(subject))
    reference.postprocessing_ = Postprocessing()
    logits = np.stack(list(reference.logits(SENTENCES)))
    wanted = expected(subject, logits)
    assert np.abs(wanted - reference.predict_proba(SENTENCES)).max() > 0.01
    classifier = subject.load(folder_of(subject))
    np.testing.assert_allclose(np.stack(list(classifier.logits(SENTENCES))), logits, atol=1e-5)
    np.testing.assert_allclose(classifier.predict_proba(SENTENCES), wanted, atol=1e-5)
    for prediction, p in zip(classifier(SENTENCES), wanted, strict=True):
        np.testing.assert_allclose(list(prediction.probabilities.values()), p, atol=1e-5)


@pytest.mark.parametrize("subject", [s for s in ON_TORCH if s.head != "regression"], ids=str)
def test_a_bank_gives_the_probabilities_of_the_classifier(folder_of, subject):
    folder = folder_of(subject)
    bank = ptune.PromptBank(str(folder / "backbone"), dtype="float32", device="cpu")
    bank.add("task", folder / "adapter")
    classifier = subject.load(folder)
    for found, text in zip(bank([("task", t) for t in SENTENCES]), SENTENCES, strict=True):
        wanted = classifier(text)
        assert found.label == wanted.label
        assert found.probabilities == pytest.approx(wanted.probabilities, abs=1e-5)


def test_a_server_gives_the_probabilities_of_the_classifier(folder_of):
    subject = Subject()
    folder = folder_of(subject)
    bank = ptune.PromptBank(str(folder / "backbone"), dtype="float32", device="cpu")
    bank.add("task", folder / "adapter")
    classifier = subject.load(folder)
    with client_of(bank) as web:
        sent = {"inputs": SENTENCES[0]}
        scores = web.post("/tasks/task/predict", json=sent).json()
        raw = web.post("/tasks/task/predict", json={**sent, "raw_scores": True}).json()
    found = {row["label"]: row["score"] for row in scores}
    assert found == pytest.approx(classifier(SENTENCES[0]).probabilities, abs=1e-5)
    logits = dict(zip(classifier.labels, next(classifier.logits(SENTENCES[0])), strict=True))
    assert {row["label"]: row["score"] for row in raw} == pytest.approx(logits, abs=1e-5)


def test_a_checkpoint_for_transformers_is_calibrated(folder_of, tmp_path):
    from transformers import pipeline

    subject = Subject("shared")
    folder = folder_of(subject)
    ptune.export_transformers(folder / "adapter", tmp_path / "out")
    pipe = pipeline("text-classification", str(tmp_path / "out"), top_k=None, device="cpu")
    found = {row["label"]: row["score"] for row in pipe(SENTENCES[:1])[0]}
    assert found == pytest.approx(subject.load(folder)(SENTENCES[0]).probabilities, abs=1e-5)


def test_peft_loads_a_calibrated_adapter_and_gives_its_raw_logits(folder_of):
    peft = pytest.importorskip("peft")
    subject = Subject("shared")
    folder = folder_of(subject)
    classifier = subject.load(folder)
    model = peft.PeftModel.from_pretrained(
        read_backbone(subject, folder / "backbone"), folder / "adapter"
    )
    batch = classifier.tokenizer_(SENTENCES[0], return_tensors="pt")
    with torch.inference_mode():
        logits = model.eval()(**batch).logits[0].numpy()
    np.testing.assert_allclose(logits, next(classifier.logits(SENTENCES[0])), atol=1e-4)


def test_thresholds_decide_which_labels_a_text_has(folder_of):
    subject = Subject("input", head="multi-label")
    classifier = subject.load(folder_of(subject))
    thresholds = postprocessing_of(subject).thresholds
    wanted = (classifier.predict_proba(SENTENCES) > thresholds).astype(int)
    assert (wanted != (classifier.predict_proba(SENTENCES) > 0.5)).any()
    np.testing.assert_array_equal(classifier.predict(SENTENCES), wanted)
    assert classifier.score(SENTENCES, wanted) == 1.0
    assert classifier.evaluate(SENTENCES, wanted)["f1_micro"] == 1.0
    for prediction, row in zip(classifier(SENTENCES), wanted, strict=True):
        assert prediction.label == [n for n, on in zip(classifier.labels, row, strict=True) if on]
    with refused("min_confidence requires a classifier with one label per text. With several, …"):
        classifier.predict(SENTENCES, min_confidence=0.5)


def test_a_text_without_a_confident_label_has_none(folder_of, capsys):
    subject = Subject()
    folder = folder_of(subject)
    classifier = subject.load(folder)
    confidence = classifier.predict_proba(SENTENCES).max(axis=1)
    bound = float(np.median(confidence))
    labels = classifier.predict(SENTENCES, min_confidence=bound)
    assert [label is None for label in labels] == list(confidence < bound)
    assert [p.label for p in classifier(SENTENCES, min_confidence=bound)] == list(labels)
    with refused("min_confidence is 80; expected a number from 0 to 1."):
        classifier.predict(SENTENCES, min_confidence=80)
    options = ("--abstain", bound, "--format", "jsonl", "--dtype", "float32")
    assert call("predict", folder / "adapter", *SENTENCES, *options) == 0
    found = [json.loads(line)["label"] for line in capsys.readouterr().out.splitlines()]
    assert found == [label or "(none)" for label in labels]


def test_a_prediction_set_holds_the_labels_that_are_plausible(folder_of):
    subject = Subject()
    classifier = subject.load(folder_of(subject))
    scores = postprocessing_of(subject).set_scores
    bound = 1 - scores[int(np.ceil(31 * 0.9)) - 1]
    probabilities = classifier.predict_proba(SENTENCES)
    for found, p in zip(classifier.predict_set(SENTENCES, 0.9), probabilities, strict=True):
        assert found == [classifier.labels[i] for i in np.argsort(-p) if p[i] >= bound]
    everything = classifier.predict_set(SENTENCES, 0.99)  # more than 30 texts can promise
    assert all(len(found) == 3 for found in everything)
    with refused("coverage is 95; expected a number between 0 and 1."):
        classifier.predict_set(SENTENCES, 95)
    classifier.postprocessing_ = Postprocessing()
    with refused("The classifier has no scores of held-out texts, …"):
        classifier.predict_set(SENTENCES)


def test_unfamiliar_texts_are_marked_everywhere(folder_of, tmp_path, capsys):
    folder = folder_of(Subject())
    logits = np.stack(list(Subject().load(folder).logits(SENTENCES)))
    rng = np.random.default_rng(0)
    known = rng.normal(size=(120, 3)) * logits.std() + logits.mean(axis=0)
    unfamiliar = fit_unfamiliar(known, known.argmax(axis=1), known[:9] + 0.1)
    values = replace(postprocessing_of(Subject()), unfamiliar=unfamiliar)
    replace(Adapter.read(folder / "adapter"), postprocessing=values).save(tmp_path / "adapter")
    classifier = ptune.load(tmp_path / "adapter", dtype="float32", device="cpu")
    found = [p.unfamiliar for p in classifier(SENTENCES)]
    assert found == pytest.approx(unfamiliar.share(logits).tolist(), abs=0.1)
    assert len(set(found)) > 3
    bank = ptune.PromptBank(str(folder / "backbone"), dtype="float32", device="cpu")
    bank.add("task", tmp_path / "adapter")
    shares = [p.unfamiliar for p in bank([("task", t) for t in SENTENCES])]
    assert shares == pytest.approx(found, abs=0.1)
    for format in ("jsonl", "csv"):
        options = ("--format", format, "--dtype", "float32")
        assert call("predict", tmp_path / "adapter", *SENTENCES, *options) == 0
        lines = capsys.readouterr().out.splitlines()
        rows = map(json.loads, lines) if format == "jsonl" else csv.DictReader(lines)
        assert [float(r["unfamiliar"]) for r in rows] == pytest.approx(found, abs=0.1)
    file = tmp_path / "adapter" / QUALITY_NAME
    # Earlier files have four weights, without that of the energy.
    earlier, weights = load_file(file), np.array([1.0, 2.0, 3.0, 4.0])
    save_file({**earlier, "unfamiliar.weights": torch.from_numpy(weights)}, file)
    found = ptune.load(tmp_path / "adapter", dtype="float32", device="cpu").postprocessing_
    expected = unfamiliar.parts(logits)[:, :4] @ weights
    assert found.unfamiliar.score(logits) == pytest.approx(expected)
    save_file({k: v for k, v in earlier.items() if k != "unfamiliar.means"}, file)
    with refused("…has unfamiliar.known, unfamiliar.overall, unfamiliar.scores, …; expected …"):
        ptune.load(tmp_path / "adapter")


@pytest.fixture
def copy(folder_of, tmp_path):
    """A calibrated adapter that a test may damage."""
    return shutil.copytree(folder_of(Subject()) / "adapter", tmp_path / "adapter")


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("scale", [1.0, np.nan, 1.0], "…'scale' holds nan; expected finite numbers…"),
        ("scale", [1.0, np.inf, 1.0], "…'scale' holds inf; expected finite numbers…"),
        ("scale", [1.0, -1.0, 1.0], "…scale holds -1; expected numbers from 0.001 to 1000…"),
        ("scale", [1.0, 1.0], "…scale has the shape [2]; expected 3, one for each label…"),
        ("shift", [0.0, 0.0, 1e5], "…shift holds 100000; expected numbers from -1000 to 1000…"),
        ("thresholds", [0.5, 0.5, 2.0], "…thresholds holds 2; expected numbers from 0 to 1…"),
        ("set_scores", [[0.5]], "…set_scores has the shape [1, 1]; expected at most 100,000…"),
        (
            "unfamiliar.known",
            [[1.0]],
            "…unfamiliar.known has the shape [1, 1]; expected [at most 100,000, 3]…",
        ),
        ("unfamiliar.within", [[1.0]], "…unfamiliar.within has the shape [1, 1]; expected [3, 3]…"),
        ("set_scores", [-0.5], "…set_scores holds -0.5; expected numbers from 0 to 1…"),
    ],
)
def test_values_that_cannot_be_right_are_refused(copy, name, values, message):
    file = copy / QUALITY_NAME
    save_file({**load_file(file), name: torch.tensor(values, dtype=torch.float64)}, file)
    with refused(message):
        ptune.load(copy)


def test_a_missing_or_unknown_part_is_named(copy):
    file = copy / QUALITY_NAME
    save_file({**load_file(file), "later": torch.ones(3)}, file)
    with pytest.warns(UserWarning, match="has 'later', which ptune .* does not know and ignores"):
        ptune.load(copy)
    file.unlink()
    with refused("…ptune.json belongs to a calibrated classifier, but there is no ptune_quality…"):
        ptune.load(copy)


def test_saving_without_calibration_leaves_none_behind(copy):
    classifier = ptune.load(copy, dtype="float32")
    classifier.save(copy.parent / "again")
    again = ptune.load(copy.parent / "again", dtype="float32")
    assert (again.predict_proba(SENTENCES) == classifier.predict_proba(SENTENCES)).all()
    classifier.postprocessing_ = Postprocessing()
    classifier.save(copy)
    assert not (copy / QUALITY_NAME).exists()
    assert not ptune.load(copy).postprocessing_.tensors


def test_goals_are_read_and_wrong_ones_refused():
    assert Goal.parse("f1") == Goal("f1")
    assert Goal.parse(" recall >= .75") == Goal("recall", 0.75)
    assert Goal.parse("none") is None
    for wrong in ("precision", "accuracy>=0.9", "precision>=90", "recall>=-1", "f1>=0.5"):
        with refused(f"threshold_for is {wrong!r}; expected f1, none, precision>=X or recall>=X…"):
            Goal.parse(wrong)


def test_a_label_with_the_threshold_one_is_never_predicted():
    values = Postprocessing(thresholds=np.array([1.0, 0.0]))
    (found,) = values.predictions(Labels(("a", "b"), MULTI), np.array([[50.0, -50.0]]))
    assert found.label == ["b"]
