"""Each setting is declared once: everything else follows the declaration."""

import inspect
import json
import runpy
from pathlib import Path
from typing import get_args

import pytest
from conftest import refused
from sklearn.base import clone

import ptune
from ptune import PromptEncoderConfig, PtuneError, TrainSettings
from ptune.backbones import loading
from ptune.labels import PROBLEM_TYPES
from ptune.training import settings as declared
from ptune.training.declaration import settings_of
from ptune.training.settings import SECTIONS, ClassifierSettings
from ptune.training.start import prompt_config

SETTINGS = settings_of(TrainSettings)
DOCS = Path(__file__).parents[2] / "docs"


# Values.


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("batch_size", 0, "a whole number of at least 1"),
        ("batch_size", 2.5, "a whole number of at least 1"),
        ("batch_size", True, "a whole number of at least 1"),
        ("batch_size", None, "a whole number of at least 1"),
        ("seed", -1, "a whole number of at least 0"),
        ("max_length", 0, "a whole number of at least 1"),
        ("learning_rate", -1, "a number of at least 0"),
        ("learning_rate", "high", "a number of at least 0"),
        ("prompt_learning_rate", float("nan"), "a number of at least 0"),
        ("epochs", 0, "a number above 0"),
        ("epochs", float("inf"), "a number above 0"),
        ("prompt_init_scale", 0.0, "a number above 0"),
        ("prompt", "deeper", "one of input, deep, reader, none"),
        ("dtype", "int8", "one of auto, float32, bfloat16, float16"),
        ("backbone_dropout", "yes", "True or False"),
        ("model", 3, "a string"),
        ("training_arguments", "--fp16", "a dictionary"),
    ],
)
def test_a_wrong_value_is_refused_with_what_is_expected(name, value, expected):
    with pytest.raises(PtuneError) as refused:
        TrainSettings(**{name: value})
    assert str(refused.value) == f"{name} is {value!r}; expected {expected}."


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epoch": 3}, "PromptClassifier has no setting 'epoch'. Did you mean 'epochs'? …"),
        ({"weight_decay": 1}, "…Fields of TrainingArguments are arguments of fit."),
        (
            {"device": "cpu"},
            "PromptClassifier has no setting 'device'. It is an argument of fit: "
            "PromptClassifier().fit(X, y, device=…).",
        ),
    ],
)
def test_a_wrong_name_is_refused_with_the_right_one(given, message):
    with refused(message):
        ptune.PromptClassifier(**given)


def test_settings_are_given_by_name():
    with refused("… belongs in training_arguments={'max_steps': …}."):
        TrainSettings(max_steps=3)
    with refused("TrainSettings has no setting 'train'. Did you mean 'train_file'? …"):
        TrainSettings(train="mail.csv")
    with refused("PromptClassifier takes one value without a name, and there are 2: 'a', 'b'. …"):
        ptune.PromptClassifier("a", "b")


def test_a_setting_that_may_be_left_open_accepts_none():
    open_ones = {s.name: None for s in SETTINGS.values() if type(None) in get_args(s.type)}
    assert {"task", "epochs", "prompt_learning_rate"} < open_ones.keys()
    assert TrainSettings(**open_ones) == TrainSettings()


def test_a_whole_number_is_accepted_for_a_number():
    assert TrainSettings(epochs=3) == TrainSettings(epochs=3.0)
    assert isinstance(TrainSettings(epochs=3).epochs, float)


def test_the_choices_are_those_of_the_modules_that_use_them():
    assert get_args(declared.ProblemType) == PROBLEM_TYPES
    assert get_args(declared.Dtype) == get_args(loading.Dtype)


# What is generated.


def test_every_setting_has_a_help_text_and_a_section_or_is_no_option():
    for setting in SETTINGS.values():
        assert setting.help.endswith(".")
        assert setting.section in SECTIONS or setting.name in ("processes", "training_arguments")


def test_prompts_have_the_same_defaults_everywhere():
    """Of `TrainSettings` and `PromptClassifier`, and of `PromptEncoderConfig`."""
    for kind in ("deep", "input"):
        own = prompt_config(TrainSettings(prompt=kind, model="/nowhere"))
        assert own == PromptEncoderConfig(depth=kind).resolved()


def test_the_default_is_shown():
    assert SETTINGS["seed"].shown_default == "0"
    assert SETTINGS["epochs"].full_help.endswith(
        "[default: 8, and at least 200 steps (48 in pairs or with label words). With single texts "
        "on an encoder, a deep prompt or a reader: 4, and at least 48 steps]"
    )
    assert SETTINGS["prompt_init"].shown_default.startswith(
        "random for a deep prompt of an encoder"
    )


def test_the_classifier_takes_the_declared_settings_with_their_defaults():
    parameters = inspect.signature(ptune.PromptClassifier).parameters
    declared = settings_of(ClassifierSettings)
    assert {n: p.default for n, p in parameters.items()} == {
        s.name: s.default for s in declared.values()
    }
    assert not {p.kind for p in parameters.values()} & {
        inspect.Parameter.VAR_POSITIONAL,
        inspect.Parameter.VAR_KEYWORD,
    }
    assert next(iter(parameters)) == "model"
    assert TrainSettings(**ptune.PromptClassifier().get_params()) == TrainSettings()


def test_the_classifier_is_cloned_with_its_settings():
    own = ptune.PromptClassifier("some/model", epochs=3, prompt="input")
    copy = clone(own)
    assert copy is not own
    assert copy.get_params() == own.get_params()
    assert copy.get_params()["model"] == "some/model"


@pytest.mark.parametrize("owner", [ptune.PromptClassifier, TrainSettings])
def test_the_docstring_describes_every_setting(owner):
    text = " ".join(inspect.getdoc(owner).split())
    for setting in settings_of(owner).values():
        assert f"{setting.name}: {setting.full_help}" in text


def test_the_tables_in_the_docs_are_current():
    """`make docs` writes them."""
    write = runpy.run_path(str(DOCS / "settings.py"))
    page = write["page"]()
    assert (DOCS / "reference" / "settings.md").read_text("utf-8") == page
    assert (DOCS / "guides" / "serve.md").read_text("utf-8") == write["serve_page"]()
    for setting in SETTINGS.values():
        assert not setting.section or f"| `{setting.name}` |" in page


# Files.


def test_settings_are_read_as_they_were_written(tmp_path):
    own = TrainSettings(task="mrpc", encoder="MLP", encoder_hidden_size=7, epochs=2.5, seed=4)
    (tmp_path / "settings.json").write_text(json.dumps(own.to_dict()))
    assert TrainSettings.read(tmp_path) == TrainSettings.read(tmp_path / "settings.json") == own


def test_settings_of_the_first_version_are_read(tmp_path):
    old = {**vars(TrainSettings(task="mrpc")), "first_layer": 0, "keep_layers": True}
    old |= {"learning_rate": None, "pooling": "family", "label_separator": "|"}
    (tmp_path / "settings.json").write_text(json.dumps(old))
    assert TrainSettings.read(tmp_path) == TrainSettings(task="mrpc", pooling="architecture")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"first_layer": 2}, "first_layer.*removed"),
        ({"rotary": 1}, "unknown setting 'rotary'; there are: .*newer version .*upgrade ptune"),
        ({"epoks": 1}, "unknown setting 'epoks'; did you mean 'epochs'"),
        ({"seed": "a"}, "seed is 'a'; expected a whole number"),
    ],
)
def test_settings_that_ptune_cannot_follow_are_refused(tmp_path, content, message):
    (tmp_path / "settings.json").write_text(json.dumps(content))
    with pytest.raises(PtuneError, match=message):
        TrainSettings.read(tmp_path)


def test_a_file_that_is_not_yaml_is_refused(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("epochs: [")
    with refused(f"{file} is not YAML (… line 1, column …). Expected lines such as `epochs: 8`."):
        TrainSettings.read(file)


def test_a_folder_without_settings_is_refused(tmp_path):
    with pytest.raises(PtuneError, match=r"There is no file .*settings.json"):
        TrainSettings.read(tmp_path)
