"""Labels that are added to a trained classifier."""

import shutil
from itertools import product

import numpy as np
import pytest
from conftest import call, edit_json, refused

import ptune
from ptune import PromptBank
from ptune.data.tables import Columns
from ptune.inference import grow
from ptune.inference.grow import _grown, add_labels
from ptune.labels import Labels, read
from ptune.training.settings import TrainSettings

WORDS = ["please", "today", "the red one", "again", "quickly", "for me", "now", "by mail"]
MEANING = {"parcel": "delivery", "money": "refund", "lamp": "defect", "invoice": "bill"}
OTHER = ["delivery", "defect"]


def rows_of(labels, several=False):
    """Texts whose one word tells the label."""
    found = []
    for (word, label), first, last in product(MEANING.items(), WORDS[:6], WORDS[2:]):
        if label in labels:
            found.append((f"{first} {word} {word} {last}", label))
    return found + ([("money and parcel", "refund|delivery")] * 4 if several else [])


def write(file, rows):
    file.write_text("text,label\n" + "\n".join(f"{text},{label}" for text, label in rows) + "\n")
    return file


@pytest.fixture(scope="module", params=["one label", "several"])
def run(request, bert_folder, tmp_path_factory):
    """A run that knows two labels and kept its features, and whether a text can have several."""
    folder, several = tmp_path_factory.mktemp("run"), request.param == "several"
    file = write(folder / "old.csv", rows_of(["delivery", "refund"], several))
    settings = TrainSettings(
        model=str(bert_folder),
        train_file=str(file),
        prompt="none",
        pooling="mean",
        head="features",
        epochs=1,
        dtype="float32",
        keep_features=True,
        label_separator="|" if several else None,
    )
    ptune.train_run(settings, folder / "run")
    return folder / "run", several


def test_new_labels_are_learned_and_old_ones_kept(run, tmp_path):
    folder, several = run
    shutil.copytree(folder, moved := tmp_path / "a")
    write(tmp_path / "new.csv", rows_of(["defect", "bill"]))
    how = ["--label-separator", "|"] if several else []
    asked = ["--train-file", tmp_path / "new.csv", *how]
    assert call("add-labels", moved, *asked, "--output", tmp_path / "b") == 0
    before, after = (ptune.load(f, dtype="float32", device="cpu") for f in (moved, tmp_path / "b"))
    assert after.labels == [*before.labels, "bill", "defect"]
    texts, labels = zip(*rows_of(list(MEANING.values())), strict=True)
    y = [[label] for label in labels] if several else list(labels)
    assert after.score(list(texts), y) > 0.9
    np.testing.assert_array_equal(
        after.prompt_model_.prompt_embeddings(), before.prompt_model_.prompt_embeddings()
    )
    bank = PromptBank(after.model, dtype="float32", device="cpu")
    bank.add("grown", tmp_path / "b")
    np.testing.assert_allclose(
        bank["grown"].predict_proba(texts[:4]), after.predict_proba(list(texts[:4])), atol=1e-5
    )
    # The same from the old texts themselves: features are kept in half precision.
    replayed = {"replay": folder.parent / "old.csv", "label_separator": "|" if several else None}
    grown = add_labels(moved, tmp_path / "new.csv", tmp_path / "c", **replayed)
    assert grown.added == ("bill", "defect")
    assert set(grown.accuracy) == {"old texts, before", "old texts", "new texts"}
    assert grown.accuracy["old texts"] > 0.8
    assert grown.accuracy["new texts"] > 0.5
    again = ptune.load(tmp_path / "c", dtype="float32", device="cpu")
    assert np.mean(again.predict(list(texts)) == after.predict(list(texts))) > 0.95


def test_too_few_texts_to_calibrate_are_noted(run, tmp_path, capsys):
    folder, several = run
    how = ["--label-separator", "|"] if several else []
    for name, labels in (("few", ["delivery", "refund"]), ("new", ["bill"])):
        write(tmp_path / f"{name}.csv", rows_of(labels, several)[:20])
    asked = ["--train-file", tmp_path / "new.csv", "--replay", tmp_path / "few.csv", *how]
    assert call("add-labels", folder, *asked, "--output", tmp_path / "b") == 0
    assert "Probabilities are not calibrated: a fifth is less than 20" in capsys.readouterr().out


def test_what_would_forget_or_add_nothing_is_refused(run, tmp_path):
    folder, several = run
    how = {"label_separator": "|" if several else None}
    shutil.copytree(folder, moved := tmp_path / "a")
    write(tmp_path / "old.csv", rows_of(["delivery", "refund"], several))
    new = write(tmp_path / "new.csv", rows_of(["bill"]))
    with refused(
        f"{tmp_path / 'old.csv'} has no new label; the classifier knows delivery, refund. Train it "
        "again to learn from more texts."
    ):
        add_labels(moved, tmp_path / "old.csv", tmp_path / "b", **how)
    (moved / "ptune_features.safetensors").unlink()

    def forgets(why):
        return refused(
            f"The old labels of {moved} would be forgotten: its training file {why}, and it kept "
            "no features. Name texts labelled with its labels (--replay), or train with "
            "--keep-features."
        )

    edit_json(moved / "settings.json", train_file=str(write(tmp_path / "e.csv", rows_of(OTHER))))
    with forgets("has other labels by now"):
        add_labels(moved, new, tmp_path / "b", **how)
    (moved / "settings.json").unlink()
    with forgets("is not here"):
        add_labels(moved, new, tmp_path / "b", **how)
    with refused(f"{tmp_path} already holds something. Name a new folder."):
        add_labels(moved, new, tmp_path, **how)
    assert not (tmp_path / "b").exists()


def test_a_folder_that_is_filled_meanwhile_is_not_replaced(run, tmp_path, monkeypatch):
    folder, several = run
    new, out = write(tmp_path / "new.csv", rows_of(["bill"])), tmp_path / "b"
    measured = grow._measured

    def fill(*given):
        shutil.copytree(folder, out)
        return measured(*given)

    monkeypatch.setattr(grow, "_measured", fill)
    with refused(f"{out} already holds something. Name a new folder."):
        add_labels(folder, new, out, label_separator="|" if several else None)
    assert ptune.load(out).labels == ptune.load(folder).labels


def test_labels_are_added_after_one_was_renamed(run, tmp_path):
    """The training file has the old name."""
    folder, several = run
    how = {"label_separator": "|" if several else None}
    shutil.copytree(folder, moved := tmp_path / "a")
    (moved / "ptune_features.safetensors").unlink()
    assert call("rename-label", moved, "refund", "money back") == 0
    new = write(tmp_path / "new.csv", rows_of(["bill"]))
    grown = add_labels(moved, new, tmp_path / "b", **how)
    assert grown.labels.names == ("delivery", "money back", "bill")
    assert grown.accuracy["old texts, before"] > 0.9


def test_texts_of_no_label_are_not_learned(run, tmp_path, caplog):
    """`--other-label` named their label in training."""
    folder, several = run
    how = {"label_separator": "|" if several else None}
    shutil.copytree(folder, moved := tmp_path / "a")
    edit_json(moved / "ptune.json", label_aliases={"defect": -1}, text_columns=["mail"])
    # Of two columns that might be texts, it reads the one that was named for training.
    rows = [f"again,{text},{label}" for text, label in rows_of(["bill", "defect"])]
    (new := tmp_path / "new.csv").write_text("\n".join(["note,mail,label", *rows]))
    grown = add_labels(moved, new, tmp_path / "b", **how)
    assert grown.added == ("bill",)
    assert grown.texts[1] == len(rows_of(["bill", "defect"] if several else ["bill"]))
    if not several:
        assert "Left out 36 of 72 examples with a label that the classifier" in caplog.text


@pytest.mark.parametrize("run", ["several"], indirect=True)
def test_files_are_read_as_in_training(run, tmp_path):
    """The column of labels and what separates them were named there."""
    folder, _ = run
    shutil.copytree(folder, moved := tmp_path / "a")
    edit_json(moved / "settings.json", label_column="tags", label_separator=";")
    rows = [f"{text},money,{label};delivery" for text, label in rows_of(["bill"])]
    (new := tmp_path / "new.csv").write_text("\n".join(["text,label,tags", *rows]))
    assert add_labels(moved, new, tmp_path / "b").added == ("bill",)


@pytest.mark.parametrize("run", ["several"], indirect=True)
@pytest.mark.parametrize("goal", ["f1", "precision>=0.9", "none"])
def test_thresholds_are_chosen_for_what_they_were_chosen_for(run, goal, tmp_path):
    folder, _ = run
    shutil.copytree(folder, moved := tmp_path / "a")
    edit_json(moved / "settings.json", threshold_for=goal)
    new = write(tmp_path / "new.csv", rows_of(["bill"]))
    add_labels(moved, new, tmp_path / "b")
    values = ptune.load(tmp_path / "b").postprocessing_
    assert values.facts.get("threshold_for", "none") == goal
    assert (values.thresholds is None) == (goal == "none")


def test_pairs_are_not_added_to_single_texts(run, tmp_path):
    folder, _ = run
    (tmp_path / "new.csv").write_text("a,b,label\n" + "money,parcel,bill\n" * 5)
    pairs = Columns("a", "b")
    with refused(
        f"The classifier was trained on single texts, and {tmp_path / 'new.csv'} has pairs of "
        "texts. Name the columns with the texts (--text-column, --text-pair-column)."
    ):
        add_labels(folder, tmp_path / "new.csv", tmp_path / "b", columns=pairs)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("before", "column", "names"),
    [
        ([1, 2, 3], [1.0, 2.0, 4.0], ("1", "2", "3", "4.0")),
        ([1, 2, 3], ["1", "4"], ("1", "2", "3", "4")),
        (["1", "no"], [1, 2], ("1", "no", "2")),
        ([True, False], ["true", "maybe"], ("False", "True", "maybe")),
    ],
)
def test_a_label_in_another_form_is_not_a_new_one(before, column, names):
    labels = _grown(Labels.learn(before), ([["a"] * len(column)], read(column)), "new.csv")
    assert labels.names == names
    assert all(value in labels for value in column)
    assert "none of them" not in labels
    assert labels.encode(labels.values) == list(range(len(labels)))


def test_labels_that_look_like_old_ones_are_noted():
    with pytest.warns(UserWarning, match="'refund' and 'Refund'"):
        _grown(Labels(("refund", "bill")), ([["a"]], read(["Refund"])), "new.csv")
