"""What a configuration refuses, and what it leaves to be decided."""

import json
from dataclasses import asdict

import pytest
from conftest import build, refused
from transformers import BertForSequenceClassification

from ptune import PromptEncoderConfig, PromptModel, TrainSettings
from ptune import peft as ours
from ptune.training.start import prompt_config

DECIDED = ("pooling", "prompt_init", "prompt_init_text", "prompt_init_scale")


def decided(config, *arguments, **options):
    resolved = config.resolved(*arguments, **options)
    return tuple(getattr(resolved, name) for name in DECIDED)


@pytest.fixture(scope="module")
def sentence_encoder(bert_folder, tmp_path_factory):
    """A backbone with the file by which sentence-transformers marks mean pooling."""
    folder = tmp_path_factory.mktemp("backbones") / "sentences"
    BertForSequenceClassification.from_pretrained(bert_folder).save_pretrained(folder)
    (folder / "1_Pooling").mkdir()
    marked = json.dumps({"pooling_mode_mean_tokens": True})
    (folder / "1_Pooling" / "config.json").write_text(marked)
    return str(folder)


# Values


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        *(
            ({name: value}, f"{name} is {value!r}; expected an integer from 1 to {limit}.")
            for name, value, limit in [
                ("num_virtual_tokens", 0, "10,000"),
                ("num_virtual_tokens", 10_001, "10,000"),
                ("num_virtual_tokens", 2.5, "10,000"),
                ("num_virtual_tokens", None, "10,000"),
                ("encoder_hidden_size", 16_385, "16,384"),
                ("encoder_num_layers", True, "16"),
            ]
        ),
        ({"encoder_dropout": 1.0}, "encoder_dropout is 1.0; expected at least 0 and below 1."),
        (
            {"prompt_init_scale": float("inf")},
            "prompt_init_scale is inf; expected a number above 0.",
        ),
        ({"prompt_init_scale": 0.0}, "prompt_init_scale is 0.0; expected a number above 0."),
        (
            {"placement": "end"},
            "placement is 'end'; expected one of 'prefix', 'after_first', 'template'.",
        ),
        (
            {"depth": "shallow"},
            "depth is 'shallow'; expected one of 'input', 'deep', 'reader', 'none'.",
        ),
        (
            {"encoder_reparameterization_type": "GRU"},
            "encoder_reparameterization_type is 'GRU'; expected one of 'MLP', 'LSTM', 'NONE'.",
        ),
        ({"task_type": "CAUSAL_LM"}, "task_type is 'CAUSAL_LM'; expected one of 'SEQ_CLS'."),
        (
            {"pooling": "first"},
            "pooling is 'first'; expected one of 'auto', 'architecture', 'mean', 'layers', "
            "'pairs', 'prompt'.",
        ),
        (
            {"prompt_init": "zero"},
            "prompt_init is 'zero'; expected one of 'random', 'vocab', 'text'.",
        ),
        (
            {"prompt_init": "text"},
            "prompt_init is 'text' and prompt_init_text is None, but a text to start from needs "
            "prompt_init='text', and the other way round. Set both or neither.",
        ),
        (
            {"depth": "none", "prompt_init_text": "is it spam?"},
            "prompt_init_text is 'is it spam?' and depth is 'none': there is no prompt to start "
            "from a text. Leave it out, or use another depth.",
        ),
        (
            {"prompt_init": "random", "prompt_init_text": "what is it about?"},
            "prompt_init is 'random' and prompt_init_text is 'what is it about?', but a text to "
            "start from needs prompt_init='text', and the other way round. Set both or neither.",
        ),
        (
            {"depth": "deep", "pooling": "prompt"},
            "pooling is 'prompt', but a deep prompt has no vectors that the head could read. Use "
            "'mean' or 'architecture'.",
        ),
        (
            {"depth": "deep", "encoder_reparameterization_type": "LSTM"},
            "encoder_reparameterization_type is 'LSTM'; a deep prompt takes 'MLP' or 'NONE'.",
        ),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(fields, message):
    with refused(message):
        PromptEncoderConfig(**fields)


def test_a_prompt_of_another_width_is_refused():
    config = PromptEncoderConfig(token_dim=16)
    sizes = {"token_dim": 32, "num_layers": 2, "num_heads": 2}
    with refused(
        "The prompt is 16 wide and the backbone's token embedding 32: this prompt belongs to "
        "another backbone."
    ):
        config.for_backbone(**sizes)
    config.base_model_name_or_path = "lab/wide"
    with refused("…another backbone (lab/wide)."):
        config.for_backbone(**sizes)


# Defaults


def test_the_default_prompt_is_deep_without_an_encoder():
    config = PromptEncoderConfig()
    assert (config.depth, config.num_virtual_tokens) == ("deep", 20)
    assert (config.encoder_reparameterization_type, config.encoder_hidden_size) == ("NONE", 128)
    assert config.placement == "after_first"
    assert decided(config) == ("architecture", "random", None, 0.5)


def test_an_input_prompt_starts_as_words_of_the_vocabulary():
    assert decided(PromptEncoderConfig(depth="input")) == ("architecture", "vocab", None, 1.0)


@pytest.mark.parametrize("depth", ["input", "deep"])
def test_a_start_that_is_given_is_not_scaled(depth):
    config = PromptEncoderConfig(depth=depth, prompt_init="random")
    assert decided(config)[1:] == ("random", None, 1.0)
    config = PromptEncoderConfig(depth=depth, prompt_init_text="is it spam?")
    assert decided(config)[1:] == ("text", "is it spam?", 1.0)
    assert decided(PromptEncoderConfig(depth=depth, prompt_init_scale=0.25))[3] == 0.25


def test_the_question_of_a_dataset_starts_an_input_prompt_only():
    question = "do the sentences agree?"
    shown = decided(PromptEncoderConfig(depth="input"), question=question)
    assert shown[1:] == ("text", question, 1.0)
    assert decided(PromptEncoderConfig(), question=question)[1:] == ("random", None, 0.5)
    own = PromptEncoderConfig(depth="input", prompt_init="vocab")
    assert decided(own, question=question)[1:] == ("vocab", None, 1.0)


def test_auto_pooling_is_a_mean_for_sentence_encoders(sentence_encoder, bert_folder):
    for depth, pairs, pooling in (
        ("deep", False, "mean"),
        ("deep", True, "mean"),
        ("input", False, "mean"),
        ("input", True, "prompt"),
    ):
        config = PromptEncoderConfig(depth=depth)
        assert decided(config, sentence_encoder, pairs=pairs)[0] == pooling
        assert decided(config, str(bert_folder), pairs=pairs)[0] == "architecture"
    given = PromptEncoderConfig(pooling="architecture")
    assert decided(given, sentence_encoder)[0] == "architecture"


def test_resolving_twice_changes_nothing(sentence_encoder):
    once = PromptEncoderConfig().resolved(sentence_encoder)
    assert once.resolved() == once


def test_a_model_gets_the_prompt_that_training_gets(sentence_encoder):
    backbone = BertForSequenceClassification.from_pretrained(sentence_encoder)
    for options in ({}, {"depth": "input"}):
        model = PromptModel(backbone, PromptEncoderConfig(**options))
        found = asdict(model.prompt_config)
        model.unload()
        prompt = {"prompt": options["depth"]} if options else {}
        settings = TrainSettings(model=sentence_encoder, task="sst2", **prompt)
        expected = asdict(prompt_config(settings))
        for name in ("depth", "num_virtual_tokens", "placement", "encoder_hidden_size", *DECIDED):
            assert found[name] == expected[name], name
        assert found["pooling"] == "mean"


def test_peft_s_defaults_are_for_ptune_peft_only():
    config = ours.PromptEncoderConfig()
    assert (config.depth, config.placement, config.pooling) == ("input", "prefix", "architecture")
    assert config.encoder_reparameterization_type == "MLP"
    assert config.encoder_hidden_size is None
    assert (config.prompt_init, config.prompt_init_scale) == ("random", 1.0)
    model = ours.get_peft_model(build("bert"), config)
    assert isinstance(model.prompt_config, ours.PromptEncoderConfig)
    assert decided(model.prompt_config) == decided(config)
