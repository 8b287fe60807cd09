"""A setting that changes nothing is noted."""

import warnings

import pytest
from conftest import call, write_mail

import ptune
from ptune.data.dataset import TaskData
from ptune.training.start import load_dataset, prepare

DATA = [["one", "two"]], ["a", "b"]


def notes(make):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = make()
    return found, [str(w.message) for w in caught if "is not used" in str(w.message)]


@pytest.mark.parametrize(
    ("own", "why"),
    [
        ({"prompt": "none", "num_virtual_tokens": 50}, "prompt 'none' trains a head alone"),
        ({"prompt": "none", "prompt_learning_rate": 0.5}, "prompt 'none' trains a head alone"),
        ({"prompt": "none", "prompt_init": "vocab"}, "prompt 'none' trains a head alone"),
        ({"placement": "prefix"}, "only an input prompt can be in several places"),
        ({"prompt": "input", "shift_positions": True}, "only a deep prompt can shift …"),
        ({"keep_texts": 1.0}, "only a reader keeps texts (prompt 'reader')"),
        ({"keep_texts_in": "read"}, "only a reader keeps texts (prompt 'reader')"),
        ({"prompt": "reader", "keep_texts_on_disk": 1.0}, "keep_texts_in names no folder"),
        ({"encoder_hidden_size": 64}, "there is no prompt encoder (encoder 'NONE')"),
    ],
)
def test_a_setting_without_effect_is_noted(bert_folder, own, why):
    settings = ptune.TrainSettings(model=str(bert_folder), **{"num_virtual_tokens": 4, **own})
    (resolved, *_), found = notes(lambda: prepare(settings, TaskData.from_lists(*DATA)))
    name = list(own)[-1]
    (note,) = [n for n in found if n.startswith(name)]
    assert why.removesuffix("…") in note
    # A run that is repeated from its own file gets no further notes.
    again = ptune.TrainSettings(**resolved.to_dict())
    _, repeated = notes(lambda: prepare(again, TaskData.from_lists(*DATA)))
    assert set(repeated) <= set(found)


@pytest.mark.parametrize("prompt", ["deep", "input", "reader", "none"])
def test_a_run_that_is_repeated_from_its_settings_gets_no_note(bert_folder, prompt):
    settings = ptune.TrainSettings(model=str(bert_folder), prompt=prompt)
    (resolved, *_), found = notes(lambda: prepare(settings, TaskData.from_lists(*DATA)))
    again = ptune.TrainSettings(**resolved.to_dict())
    assert not found
    assert not notes(lambda: prepare(again, TaskData.from_lists(*DATA)))[1]


def test_options_for_other_data_are_noted(tmp_path):
    file = tmp_path / "mail.csv"
    rows = [f"text {i},{'money' if i < 12 else 'other'}" for i in range(40)]
    file.write_text("text,label\n" + "\n".join(rows) + "\n")

    def noted(**own):
        settings = ptune.TrainSettings(train_file=str(file), **own)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            load_dataset(settings)
        return [str(w.message) for w in caught]

    (note,) = noted(annotators=True)
    assert note.startswith("annotators is not used: no two rows of ")
    (note,) = noted(examples_per_label=100)
    assert note == (
        "examples_per_label 100 is not used: no label has more than 22 training examples."
    )
    (note,) = noted(examples_per_label=16)
    assert note.startswith("1 label has fewer training examples than examples_per_label 16: money ")
    assert not noted(examples_per_label=5)
    file.write_text(file.read_text() + rows[0] + "\n")
    assert not noted(annotators=True)


def test_a_preset_without_effect_is_noted(texts, bert_folder, tmp_path, capsys):
    mail = write_mail(tmp_path / "mail.csv", texts, copies=2)
    own = "--train-file", mail, "--model", bert_folder, "--output-dir", tmp_path / "run"
    assert call("train", *own, "--dry-run", "--preset", "best", "--epochs", 2) == 0
    assert "--preset best is not used: --epochs decides." in capsys.readouterr().err
