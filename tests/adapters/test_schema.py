"""The fields of an adapter's files: what they may hold, and what absent and unknown ones mean."""

import json

import peft
import pytest

from ptune import PromptEncoderConfig, PtuneError, __version__
from ptune.adapters import schema
from ptune.adapters.schema import config_content, parse_config, parse_info
from ptune.texts import Reading

CONFIG = {"peft_type": "P_TUNING", "task_type": "SEQ_CLS", "num_virtual_tokens": 5}
UPGRADE = "Upgrade ptune (`pip install -U ptune`)."

pytestmark = pytest.mark.filterwarnings("error")


def refusal(call, *arguments):
    with pytest.raises(PtuneError) as refused:
        call(*arguments)
    return str(refused.value)


# adapter_config.json


def test_an_absent_field_has_peft_s_value():
    config = parse_config(CONFIG, "f")
    theirs = peft.PromptEncoderConfig(task_type="SEQ_CLS", num_virtual_tokens=5)
    for name in schema.PEFT_FIELDS | schema.METHOD_FIELDS["P_TUNING"]:
        expected = getattr(theirs, name)
        expected = getattr(expected, "value", expected)
        if name != "peft_version":
            assert getattr(config, name) == expected, name
    assert (config.depth, config.placement, config.pooling) == ("input", "prefix", "architecture")
    assert (config.prompt_init, config.prompt_init_scale) == ("random", 1.0)
    assert config.shift_positions is config.backbone_dropout is False


def test_null_is_the_same_as_absent():
    absent = parse_config(CONFIG, "f")
    assert parse_config({**CONFIG, "encoder_dropout": None, "pooling": None}, "f") == absent


@pytest.mark.parametrize("pooling", ["family", "architecture"])
def test_files_call_the_architecture_s_pooling_family(pooling):
    config = parse_config({**CONFIG, "depth": "deep", "pooling": pooling}, "f")
    assert config.pooling == "architecture"
    assert "pooling" not in config_content(config)
    assert config_content(parse_config({**CONFIG, "pooling": "mean"}, "f"))["pooling"] == "mean"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"depth": "deep", "encoder_reparameterization_type": "NONE", "placement": "after_first"},
        {"prompt_init": "text", "prompt_init_text": "sports?", "prompt_init_scale": 0.5},
        {"shift_positions": True, "backbone_dropout": True, "encoder_dropout": 0.1},
    ],
)
def test_a_configuration_survives_writing_and_reading(options):
    config = PromptEncoderConfig(num_virtual_tokens=5, **options).resolved()
    text = schema.config_text(config_content(config))
    assert parse_config(json.loads(text), "f") == config


def test_prefix_tuning_is_a_deep_prompt():
    content = {**CONFIG, "peft_type": "PREFIX_TUNING", "token_dim": 16, "init_weights": "zero"}
    config = parse_config({**content, "prefix_projection": True}, "f")
    assert (config.peft_type, config.depth, config.token_dim) == ("PREFIX_TUNING", "deep", None)
    assert config.shift_positions
    assert config.encoder_reparameterization_type == "MLP"
    assert parse_config(content, "f").encoder_reparameterization_type == "NONE"


def test_fields_of_peft_at_their_defaults_and_null_fields_are_ignored():
    unused = {"prefix_projection": False, "init_weights": None, "something_new": None}
    assert parse_config({**CONFIG, **unused, "first_layer": None}, "f") == parse_config(CONFIG, "f")


def test_other_unknown_fields_are_warned_about_by_name():
    content = {**CONFIG, "prefix_projection": True, "frequency": "high"}
    with pytest.warns(UserWarning, match="does not know") as warned:
        assert parse_config(content, "f/adapter_config.json") == parse_config(CONFIG, "f")
    assert str(warned[0].message) == (
        f"f/adapter_config.json has fields that ptune {__version__} does not know and ignores: "
        "frequency, prefix_projection. If predictions differ from those of the version that wrote "
        "it, upgrade ptune (`pip install -U ptune`)."
    )


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("task_type", "CAUSAL_LM", "'SEQ_CLS'"),
        ("auto_mapping", "yes", "an object"),
        ("base_model_name_or_path", ["a", "b"], "a string"),
        ("revision", 3, "a string"),
        ("inference_mode", "true", "true or false"),
        ("num_virtual_tokens", "20", "an integer from 0 to 10,000"),
        ("num_virtual_tokens", True, "an integer from 0 to 10,000"),
        ("num_virtual_tokens", 10_001, "an integer from 0 to 10,000"),
        ("encoder_hidden_size", 16_385, "an integer from 1 to 16,384"),
        ("encoder_num_layers", 17, "an integer from 1 to 16"),
        ("token_dim", 0, "an integer from 1 to 1,000,000,000"),
        ("num_layers", 10**9 + 1, "an integer from 1 to 1,000,000,000"),
        ("modules_to_save", "classifier", "a list of strings"),
        ("encoder_reparameterization_type", "CNN", "'MLP', 'LSTM' or 'NONE'"),
        ("encoder_dropout", float("nan"), "a number"),
        ("depth", 3, "'input', 'deep', 'reader' or 'none'"),
        ("pooling", ["mean"], "'family', 'architecture', 'mean', 'layers', 'pairs' or 'prompt'"),
        ("prompt_init_scale", "big", "a number"),
        ("prompt_init_scale", 1e300, "a number"),
    ],
)
def test_a_field_of_the_wrong_kind_is_refused_by_name(field, value, expected):
    message = refusal(parse_config, {**CONFIG, field: value}, "f")
    assert message == f"f: {field} is {value!r}; expected {expected}."


def test_a_long_value_is_shortened_in_the_message():
    message = refusal(parse_config, {**CONFIG, "task_type": "a" * 10**6}, "f")
    assert message == f"f: task_type is '{'a' * 37}...{'a' * 38}'; expected 'SEQ_CLS'."


def test_a_value_out_of_range_is_refused_with_the_file():
    message = refusal(parse_config, {**CONFIG, "encoder_dropout": 1}, "f")
    assert message == "f: encoder_dropout is 1; expected at least 0 and below 1."


def test_a_prompt_without_a_length_is_refused():
    message = refusal(parse_config, {"peft_type": "P_TUNING"}, "f")
    assert message == "f has no num_virtual_tokens; expected an integer from 0 to 10,000."


def test_another_method_is_refused():
    assert refusal(parse_config, {**CONFIG, "peft_type": "LORA"}, "f") == (
        "f: peft_type is 'LORA'; ptune reads 'P_TUNING', 'PREFIX_TUNING' and 'PROMPT_TUNING'. Load "
        "an adapter of another method with PEFT, or train a classifier with `ptune train`."
    )


def test_a_prompt_that_starts_at_a_higher_layer_is_refused():
    assert refusal(parse_config, {**CONFIG, "first_layer": 1}, "f") == (
        "f has first_layer; prompts that start at a higher layer were removed from ptune. Train "
        "the adapter again without it."
    )


# ptune.json


INFO = {"format": 2, "requires": [], "labels": ["no", "yes"], "mechanism": "prefix"}


def test_an_empty_file_numbers_the_labels_and_leaves_the_rest_open():
    info = parse_info({}, "f", 3)
    assert info.pop("labels").names == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert info.pop("backbone") == {}
    assert info.pop("reading") == Reading()
    assert set(info.values()) == {None}


def test_an_unknown_requirement_is_refused_by_name():
    message = refusal(parse_info, {**INFO, "requires": ["readers", "experts"]}, "f", 2)
    assert message == (
        f"f requires experts, readers, which ptune {__version__} does not know. {UPGRADE}"
    )


def test_a_newer_format_is_refused_unless_it_lists_what_it_requires():
    newer = {**INFO, "format": 3}
    assert parse_info(newer, "f", 2)["labels"].names == ("no", "yes")
    for requires in ({}, {"requires": None}):
        content = {k: v for k, v in newer.items() if k != "requires"} | requires
        assert refusal(parse_info, content, "f", 2) == (
            f"f has the format 3, and ptune {__version__} reads formats up to 2. {UPGRADE}"
        )


def test_what_a_newer_file_requires_is_checked_before_its_fields():
    newer = {"format": 3, "requires": ["readers"], "max_length": "long"}
    assert refusal(parse_info, newer, "f", 2).startswith("f requires readers")


def test_unknown_fields_of_ptune_json_are_warned_about():
    with pytest.warns(UserWarning, match=r"^f has fields .* ignores: temperature\."):
        parse_info({**INFO, "temperature": 2.0}, "f", 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"format": "2"}, "f: format is '2'; expected an integer from 1 to 1,000,000,000."),
        ({"requires": "readers"}, "f: requires is 'readers'; expected a list of strings."),
        ({"ptune_version": 1}, "f: ptune_version is 1; expected a string."),
        ({"max_length": -1}, "f: max_length is -1; expected an integer from 1 to 1,000,000,000."),
        (
            {"mechanism": "magic"},
            "f: mechanism is 'magic'; expected 'none', 'input', 'prefix', 'layers' or 'reader'.",
        ),
        ({"backbone": []}, "f: backbone is []; expected an object."),
        (
            {"backbone": {"hidden_size": "wide"}},
            "f, backbone: hidden_size is 'wide'; expected an integer from 1 to 1,000,000,000.",
        ),
        (
            {"backbone": {"weights": {"a[0]": "b"}}},
            "f, backbone: weights is {'a[0]': 'b'}; expected an object of at most 1,000 numbers.",
        ),
        (
            {"backbone": {"weights": {str(i): 0 for i in range(1001)}}},
            "f, backbone: weights is {'0': 0, '1': 0, '10': 0, '100': 0, ...}; expected an object "
            "of at most 1,000 numbers.",
        ),
        (
            {"labels": [1, 2]},
            "f is damaged: labels is [1, 2]. Expected a list of strings. Save or download it "
            "again.",
        ),
        (
            {"labels": ["a", "\ud800"]},
            "f is damaged: the label '\\ud800' is not valid Unicode (it has a lone surrogate). "
            "Save or download it again.",
        ),
        (
            {"problem_type": "ranking"},
            "f is damaged: problem_type is 'ranking'. Expected one of single_label_classification, "
            "multi_label_classification, regression. Save or download it again.",
        ),
    ],
)
def test_a_field_of_ptune_json_of_the_wrong_kind_is_refused(content, message):
    assert refusal(parse_info, content, "f", 2) == message
