"""Labels that are renamed, merged and dropped after training."""

import json
import shutil

import numpy as np
import pytest
from conftest import call, refused
from scipy import special
from subjects import SENTENCES, Subject, answers

import ptune
from ptune import PromptBank, PtuneError
from ptune.adapters import schema
from ptune.adapters.adapter import Adapter
from ptune.adapters.relabel import relabel
from ptune.files import locked
from ptune.labels import (
    Labels,
    edits,
    indicators,
    labels_from_json,
    labels_to_json,
    leaves_out,
)
from ptune.labels.columns import LABELS
from ptune.postprocessing import Postprocessing


@pytest.fixture
def copy_of(folder_of, tmp_path):
    def copy(subject):
        return shutil.copytree(folder_of(subject) / "adapter", tmp_path / "a")

    return copy


def load(folder):
    return ptune.load(folder, dtype="float32", device="cpu")


def test_merged_labels_have_the_sum_of_the_probabilities(copy_of, tmp_path):
    folder = copy_of(Subject("input"))
    before = load(folder)
    p, logits = before.predict_proba(SENTENCES), answers(before, SENTENCES)
    assert call("merge-labels", folder, "yes", "no", "--into", "decided") == 0
    after = load(folder)
    assert after.labels == ["decided", "maybe"]
    expected = np.stack([p[:, 0] + p[:, 2], p[:, 1]], axis=1)
    np.testing.assert_allclose(after.predict_proba(SENTENCES), expected, atol=1e-6)
    np.testing.assert_allclose(answers(after, SENTENCES), logits, atol=1e-6)
    names = ["decided" if a > b else "maybe" for a, b in expected]
    assert after.predict(SENTENCES).tolist() == names
    assert [found.label for found in after(SENTENCES)] == names
    assert after.score(SENTENCES, names) == 1.0
    assert [sets[:1] for sets in after.predict_set(SENTENCES, 0.9) if sets] == [
        [name] for name, sets in zip(names, after.predict_set(SENTENCES, 0.9), strict=True) if sets
    ]
    # The same in a bank, and after it is saved again.
    bank = PromptBank(after.model, dtype="float32", device="cpu")
    bank.add("merged", folder)
    np.testing.assert_allclose(
        bank["merged"].predict_proba(SENTENCES), after.predict_proba(SENTENCES), atol=1e-6
    )
    after.save(tmp_path / "again")
    np.testing.assert_allclose(
        load(tmp_path / "again").predict_proba(SENTENCES), expected, atol=1e-6
    )


def test_a_text_has_a_merged_label_if_it_has_one_of_the_old_ones(copy_of):
    classifier = load(copy_of(Subject("input", head="multi-label")))
    before, p = classifier.predict(SENTENCES), classifier.predict_proba(SENTENCES)
    classifier.merge_labels(["b", "d"], "e")
    assert classifier.labels == ["a", "e", "c"]
    either = before[:, 1] | before[:, 3]
    expected = np.stack([before[:, 0], either, before[:, 2]], axis=1)
    np.testing.assert_array_equal(classifier.predict(SENTENCES), expected)
    np.testing.assert_allclose(
        classifier.predict_proba(SENTENCES)[:, 1], np.maximum(p[:, 1], p[:, 3]), atol=1e-6
    )


def test_a_dropped_label_gives_its_probability_to_the_others(copy_of, tmp_path):
    folder = copy_of(Subject("input"))
    p = load(folder).predict_proba(SENTENCES)
    assert call("drop-label", folder, "maybe", "--output", tmp_path / "b") == 0
    assert load(folder).labels == ["no", "maybe", "yes"]
    after = load(tmp_path / "b")
    assert after.labels == ["no", "yes"]
    rest = p[:, [0, 2]]
    np.testing.assert_allclose(
        after.predict_proba(SENTENCES), rest / rest.sum(axis=1, keepdims=True), atol=1e-6
    )


def test_a_renamed_label_changes_no_number_and_keeps_the_former_file(copy_of):
    folder = copy_of(Subject("input"))
    before, p = (folder / "ptune.json").read_bytes(), load(folder).predict_proba(SENTENCES)
    for old, new in [("no", "nein"), ("nein", "non")]:
        assert call("rename-label", folder, old, new) == 0
    after = load(folder)
    assert after.labels == ["non", "maybe", "yes"]
    np.testing.assert_array_equal(after.predict_proba(SENTENCES), p)
    assert (folder / "ptune.1.json").read_bytes() == before
    assert "nein" in (folder / "ptune.2.json").read_text()
    assert "requires" in json.loads((folder / "ptune.json").read_text())


def test_labels_can_be_changed_again_and_again():
    labels = Labels(("a", "b", "c", "d", "e"))
    labels = edits.merge(labels, ["a", "c"], "x")
    labels = edits.merge(labels, ["x", "e"], "b2")
    labels = edits.drop(labels, "d")
    assert (labels.names, labels.outputs) == (("b2", "b"), (0, 1, 0, -1, 0))
    z = np.log(np.array([[0.1, 0.2, 0.3, 0.35, 0.05]]))
    np.testing.assert_allclose(labels.probabilities(z), [[0.45 / 0.65, 0.2 / 0.65]])
    again = labels_from_json(labels_to_json(labels), "ptune.json")
    assert again == labels
    numbers = edits.rename(Labels(("1", "2"), value_type="int64"), "1", "one")
    assert numbers.values == ["one", 2]
    assert special.softmax(z).sum() == pytest.approx(1)


def test_files_may_have_the_labels_of_before_a_change(copy_of, tmp_path, capsys, caplog):
    folder = copy_of(Subject("input"))
    before = load(folder).predict(SENTENCES)
    file = tmp_path / "gold.csv"
    rows = [*zip(SENTENCES, before, strict=True), (SENTENCES[0], "maybe"), (SENTENCES[1], "yes")]
    file.write_text("\n".join(["text,label", *(f'"{text}",{label}' for text, label in rows)]))
    merged, dropped = tmp_path / "merged", tmp_path / "dropped"
    assert call("merge-labels", folder, "yes", "no", "--into", "decided", "--output", merged) == 0
    assert call("rename-label", merged, "decided", "sure") == 0
    after = load(merged)
    names = ["maybe" if label == "maybe" else "sure" for _, label in rows]
    expected = after.evaluate([text for text, _ in rows], names)
    capsys.readouterr()
    assert call("evaluate", merged, "--file", file, "--json") == 0
    assert json.loads(capsys.readouterr().out) == pytest.approx(expected, abs=1e-6)
    # Texts of a dropped label are left out, with a note; of two classifiers, for both.
    assert call("drop-label", folder, "maybe", "--output", dropped) == 0
    assert call("evaluate", dropped, "--file", file, "--json") == 0
    left = sum(label != "maybe" for _, label in rows)
    assert f"Left out {len(rows) - left} of {len(rows)} examples" in caplog.text
    capsys.readouterr()
    assert call("compare", folder, dropped, "--file", file, "--json") == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["texts"] == left
    assert "Only one of the two classifiers has maybe." in " ".join(said.err.split())
    file.write_text(f'text,label\n"{SENTENCES[0]}",maybe')
    assert call("evaluate", dropped, "--file", file) == 2
    assert "so none is left." in " ".join(capsys.readouterr().err.split())


def test_the_old_names_of_labels_follow_every_change():
    labels = Labels(("a", "b", "c", "d"), aliases=(("other", -1),))
    labels = edits.rename(labels, "a", "x")
    labels = edits.merge(labels, ["x", "c"], "y")
    labels = edits.drop(labels, "b")
    assert dict(labels.aliases) == {"other": -1, "a": 0, "x": 0, "c": 0, "b": -1}
    assert labels.targets(["y", "a", "c", "d"])[0].tolist() == [0, 0, 0, 1]
    assert leaves_out(labels, "b")
    assert not leaves_out(labels, "a")
    assert labels_from_json(labels_to_json(labels), "ptune.json") == labels
    # A name that is used again belongs to its new label.
    again = edits.rename(labels, "d", "b")
    assert dict(again.aliases) == {"other": -1, "a": 0, "x": 0, "c": 0, "d": 1}
    assert again.targets(["b", "d"])[0].tolist() == [1, 1]
    for wrong in ({"z": 2}, {"z": True}, {"z": "y"}, ["z"], {"\ud800": 0}):
        with pytest.raises(PtuneError, match="label_aliases is"):
            labels_from_json({**labels_to_json(labels), "label_aliases": wrong}, "ptune.json")


def test_columns_of_merged_labels_are_read_as_one():
    labels = edits.merge(Labels(("a", "b", "c"), "multi_label_classification"), ["a", "c"], "x")
    table = {"a": [1, 0, 0], "c": [0, 0, np.nan], "b": [1, 1, 0]}
    column = indicators(list(zip(*table.values(), strict=True)), names=tuple(table), origin=LABELS)
    np.testing.assert_array_equal(labels.targets(column)[0], [[1, 1], [0, 1], [np.nan, 0]])
    column = indicators([(1, 0)], names=("b", "x"), origin=LABELS)
    assert edits.drop(labels, "b").targets(column)[0].tolist() == [[0]]


def test_a_label_that_others_are_merged_into_keeps_its_value():
    labels = edits.merge(Labels.learn([1, 2, 3]), [1, 2], "2")
    assert (labels.values, labels.outputs) == ([2, 3], (0, 0, 1))
    assert labels.classes.dtype == np.int64
    assert edits.rename(Labels.learn([1, 2, 3]), 1, "1").values == [1, 2, 3]


def test_sets_of_merged_labels_start_with_the_most_probable(copy_of):
    """Calibration changes how much merged labels gain from being several."""
    classifier = load(copy_of(Subject("input"))).merge_labels(["yes", "no"], "decided")
    scale, scores = np.full(3, 0.05), np.linspace(0.1, 0.99, 30)
    classifier.postprocessing_ = Postprocessing(scale, set_scores=scores)
    first = [found[0] for found in classifier.predict_set(SENTENCES, 0.96)]
    assert first == classifier.predict(SENTENCES).tolist()


def test_the_trained_prompt_encoder_stays(copy_of):
    folder = copy_of(Subject("input"))
    (folder / "model.safetensors").rename(folder / "prompt_encoder.safetensors")
    assert call("rename-label", folder, "no", "nein") == 0
    assert (folder / "prompt_encoder.safetensors").is_file()


def test_only_the_labels_change_and_only_by_one_command_at_a_time(copy_of):
    """Of two that start together, one would lose its change without a word."""
    folder = copy_of(Subject("input"))
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with (
        locked(folder),
        refused(f"Another command is changing {folder}, so nothing was changed. …"),
    ):
        relabel(folder, lambda labels: edits.rename(labels, "no", "nein"))
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    relabel(folder, lambda labels: edits.rename(labels, "no", "nein"))
    after = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert {name for name in after if after[name] != before.get(name)} == {
        "ptune.json",
        "ptune.1.json",
    }


def test_a_label_may_be_given_as_the_user_s_own_value():
    labels = Labels.learn([1, 2, 3])
    assert edits.rename(labels, 1, "one") == edits.rename(labels, "1", "one")
    assert edits.merge(labels, [1, 2], "few").names == ("few", "3")
    assert edits.drop(labels, 2).values == [1, 3]


def test_wrong_changes_are_refused(copy_of, tmp_path):
    folder = copy_of(Subject("input"))
    wrong = {
        "There is no label 'x'; …": lambda labels: edits.rename(labels, "x", "y"),
        "There is a label 'no' already. Merge the two, or choose another name.": lambda labels: (
            edits.rename(labels, "yes", "no")
        ),
        "Only no is to be merged; expected at least two labels.": lambda labels: edits.merge(
            labels, ["no"], "x"
        ),
        "The new label is empty. Give it a name.": lambda labels: edits.rename(labels, "no", " "),
        "Without 'no', 1 label is left; that is too few.": lambda labels: edits.drop(
            edits.drop(labels, "yes"), "no"
        ),
    }
    before = (folder / "ptune.json").read_bytes()
    for message, change in wrong.items():
        with refused(message):
            relabel(folder, change)
    with refused(f"{tmp_path} already holds something. Name a new folder."):
        relabel(folder, lambda labels: labels, tmp_path)
    assert (folder / "ptune.json").read_bytes() == before
    assert not (folder / "ptune.1.json").exists()
    with refused("The classifier predicts a number, so it has no labels to change."):
        edits.drop(Labels(("score",), "regression"), "score")


def test_merged_labels_are_refused_by_older_versions_and_by_an_ordinary_checkpoint(
    copy_of, monkeypatch, tmp_path
):
    folder = copy_of(Subject("input"))
    relabel(folder, lambda labels: edits.merge(labels, ["no", "yes"], "decided"))
    with refused(
        f"Labels of the classifier {folder} were merged or dropped, and an ordinary checkpoint has "
        "one output for each label. Export it with `--to onnx`."
    ):
        ptune.export_transformers(folder, tmp_path / "checkpoint")
    damaged = json.loads((folder / "ptune.json").read_text()) | {"label_outputs": [0, 1, 5]}
    (folder / "ptune.json").write_text(json.dumps(damaged))
    with pytest.raises(PtuneError, match="label_outputs is"):
        Adapter.read(folder)
    monkeypatch.setattr(schema, "FEATURES", schema.FEATURES - {schema.LABEL_OUTPUTS})
    with pytest.raises(PtuneError, match="requires label_outputs"):
        Adapter.read(folder)
