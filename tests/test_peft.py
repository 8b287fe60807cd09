"""Code written for PEFT runs with its import line changed."""

import json
import re
import subprocess
import sys
import warnings
from pathlib import Path

import peft
import pytest
import torch
import transformers
from architectures import ARCHITECTURES, build_model, build_tokenizer
from conftest import SENTENCES, build, refused
from huggingface_hub import ModelCard

import ptune
from ptune import peft as ours

GUIDE = Path(__file__).parents[1] / "examples" / "p_tuning_guide.py"
HEADER = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"


def run_guide(model, data_dir, epochs):
    command = [sys.executable, str(GUIDE), "--model", str(model), "--data-dir", str(data_dir)]
    return subprocess.run(
        [*command, "--epochs", str(epochs)], capture_output=True, text=True, check=True
    ).stdout


def check_guide_output(output):
    assert re.search(
        r"trainable params: [\d,]+ \|\| all params: [\d,]+ \|\| trainable%: \d", output
    )
    first, second = re.findall(r"^(?:not equivalent|equivalent): (\d+)%$", output, re.MULTILINE)
    assert 99 <= int(first) + int(second) <= 101


def test_the_guide_runs_to_its_last_line(bert_folder, texts, tmp_path):
    (tmp_path / "MRPC").mkdir()
    rows = [f"{i % 2}\t1\t2\t{texts[i % 8]}\t{texts[(i + i % 2) % 8]}" for i in range(40)]
    for split in ("train", "dev"):
        (tmp_path / "MRPC" / f"{split}.tsv").write_text("\n".join([HEADER, *rows]), "utf-8-sig")
    check_guide_output(run_guide(bert_folder, tmp_path, 2))


def test_roberta_large_has_the_guide_s_parameters(capsys):
    with torch.device("meta"):
        config = transformers.RobertaConfig(
            vocab_size=50265,
            hidden_size=1024,
            num_hidden_layers=24,
            num_attention_heads=16,
            intermediate_size=4096,
            max_position_embeddings=514,
            type_vocab_size=1,
        )
        backbone = transformers.AutoModelForSequenceClassification.from_config(config)
        model = ours.get_peft_model(
            backbone,
            ours.PromptEncoderConfig(
                task_type="SEQ_CLS", num_virtual_tokens=20, encoder_hidden_size=128
            ),
        )
    model.print_trainable_parameters()
    assert capsys.readouterr().out == (
        "trainable params: 1,351,938 || all params: 355,662,082 || trainable%: 0.3801\n"
    )


def test_a_state_dictionary_can_be_read_and_set(kind):
    config = ours.get_peft_config(
        {
            "peft_type": "P_TUNING",
            "task_type": "SEQ_CLS",
            "num_virtual_tokens": 5,
            "encoder_hidden_size": 16,
        }
    )
    one = ours.get_peft_model(build(kind), config).eval()
    two = ours.get_peft_model(build(kind, seed=9), config).eval()
    two.backbone.base_model.load_state_dict(one.backbone.base_model.state_dict())
    ids = torch.arange(10, 16)[None]
    assert not torch.equal(one(ids).logits, two(ids).logits)
    state = ours.get_peft_model_state_dict(one)
    assert state["prompt_embeddings"].shape == (5, 32)
    ours.set_peft_model_state_dict(two, state)
    assert torch.equal(one(ids).logits, two(ids).logits)


def test_training_goes_on_from_a_state_dictionary(kind, tmp_path):
    model = ours.get_peft_model(build(kind), ours.PromptEncoderConfig(num_virtual_tokens=5))
    ours.set_peft_model_state_dict(model, ours.get_peft_model_state_dict(model))
    ids = torch.tensor([[5, 6, 7]])
    expected = model.eval()(ids).logits
    model.save_pretrained(tmp_path)
    again = ours.PeftModel.from_pretrained(build(kind), tmp_path, is_trainable=True)
    assert torch.equal(again.eval()(ids).logits, expected)


def test_what_is_refused_leaves_no_adapter(kind):
    model = ours.get_peft_model(build(kind), ours.PromptEncoderConfig(num_virtual_tokens=5))
    with pytest.raises(ptune.PtuneError, match="PEFT has no readers"):
        model.add_adapter("reader", ptune.PromptEncoderConfig(depth="reader"))
    assert list(model.peft_config) == ["default"]


def test_a_renamed_adapter_keeps_its_configuration():
    config = ours.PrefixTuningConfig(num_virtual_tokens=4, init_weights="zero")
    model = ours.get_peft_model(build("bert"), config)
    model.rename_adapter("default", "mail")
    assert model.peft_config["mail"].init_weights == "zero"


def test_a_state_dictionary_of_another_length_is_refused(kind):
    config = ours.PromptEncoderConfig(num_virtual_tokens=5)
    model = ours.get_peft_model(build(kind), config)
    state = ours.get_peft_model_state_dict(model)
    state["prompt_embeddings"] = state["prompt_embeddings"][:3]
    with refused("The prompt has the shape [3, 32], but … requires [5, 32]…"):
        ours.set_peft_model_state_dict(model, state)
    del state["prompt_embeddings"]
    with refused(
        "the state dictionary has no 'prompt_embeddings', so it is not a p-tuning adapter."
    ):
        ours.set_peft_model_state_dict(model, state)


def test_a_configuration_survives_a_dictionary():
    config = ours.PromptEncoderConfig(num_virtual_tokens=5, encoder_dropout=0.5)
    assert ours.get_peft_config(config.to_dict()) == config
    theirs = peft.PromptEncoderConfig(task_type="SEQ_CLS", num_virtual_tokens=5)
    assert ours.get_peft_config(theirs.to_dict()) == ours.PromptEncoderConfig(num_virtual_tokens=5)


def test_a_configuration_is_read_from_a_folder(kind, tmp_path):
    config = ours.PromptEncoderConfig(num_virtual_tokens=5, encoder_hidden_size=16)
    ours.get_peft_model(build(kind), config).save_pretrained(tmp_path)
    read = ours.PeftConfig.from_pretrained(tmp_path)
    assert isinstance(read, ours.PromptEncoderConfig)
    assert read.peft_type == ours.PeftType.P_TUNING
    assert read.task_type == ours.TaskType.SEQ_CLS
    assert (read.num_virtual_tokens, read.encoder_hidden_size) == (5, 16)


def test_another_method_is_refused_by_name():
    with refused(
        "The configuration: peft_type is 'LORA'; ptune reads 'P_TUNING', 'PREFIX_TUNING' and "
        "'PROMPT_TUNING'. Load an adapter of another method with PEFT, or train a classifier with "
        "`ptune train`."
    ):
        ours.get_peft_config({"peft_type": "LORA"})


# Prompt tuning and prefix tuning.

KINDS = {
    "P_TUNING": (ours.PromptEncoderConfig, {"encoder_hidden_size": 16}),
    "PROMPT_TUNING": (ours.PromptTuningConfig, {}),
    "PREFIX_TUNING": (ours.PrefixTuningConfig, {}),
    "PREFIX_TUNING through an MLP": (
        ours.PrefixTuningConfig,
        {"prefix_projection": True, "encoder_hidden_size": 16},
    ),
}
IDS = torch.arange(10, 16)[None]


@pytest.fixture(params=KINDS)
def method(request):
    return request.param


def configured(method, names=ours, **options):
    own_class, own_options = KINDS[method]
    return getattr(names, own_class.__name__)(
        **{"task_type": "SEQ_CLS", "num_virtual_tokens": 5, **own_options, **options}
    )


def made(method, kind="bert", **options):
    return ours.get_peft_model(build(kind), configured(method), **options).eval()


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def test_peft_loads_what_ptune_saves(method, kind, tmp_path):
    model = made(method, kind)
    model.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "adapter_config.json").read_text())
    assert content["peft_type"] == method.split()[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        theirs = peft.PeftModel.from_pretrained(build(kind), tmp_path).eval()
    assert theirs.active_peft_config.peft_type == model.peft_type
    torch.testing.assert_close(logits(theirs), logits(model), atol=1e-5, rtol=1e-4)


def test_ptune_loads_what_peft_saves_and_saves_it_again(method, kind, tmp_path):
    torch.manual_seed(1)
    theirs = peft.get_peft_model(build(kind), configured(method, peft)).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model = ours.PeftModel.from_pretrained(build(kind), tmp_path / "theirs")
    assert isinstance(model.active_peft_config, KINDS[method][0])
    torch.testing.assert_close(logits(model), logits(theirs), atol=1e-5, rtol=1e-4)
    model.save_pretrained(tmp_path / "ours")
    back = peft.PeftModel.from_pretrained(build(kind), tmp_path / "ours").eval()
    torch.testing.assert_close(logits(back), logits(theirs), atol=1e-5, rtol=1e-4)


def test_prefix_tuning_counts_the_heads_of_keys(tmp_path):
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    shape = {"num_hidden_layers": 2, "intermediate_size": 37, "vocab_size": 100, "pad_token_id": 0}

    def backbone():
        torch.manual_seed(0)
        return transformers.LlamaForSequenceClassification(
            transformers.LlamaConfig(**sizes, **shape)
        ).eval()

    model = ours.get_peft_model(backbone(), configured("PREFIX_TUNING")).eval()
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (saved["num_attention_heads"], saved["token_dim"]) == (2, 16)
    theirs = peft.PeftModel.from_pretrained(backbone(), tmp_path).eval()
    torch.testing.assert_close(logits(theirs), logits(model), atol=1e-5, rtol=1e-4)


def test_a_prefix_that_peft_cannot_place_is_saved_as_ptune_s_own(tmp_path):
    architecture = ARCHITECTURES["BLOOM"]  # its attention cannot take key-values
    tokenizer = build_tokenizer(architecture, SENTENCES)
    config = configured("PREFIX_TUNING")
    model = ours.get_peft_model(build_model(architecture, tokenizer), config).eval()
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "P_TUNING"
    again = ours.PeftModel.from_pretrained(build_model(architecture, tokenizer), tmp_path)
    assert torch.equal(logits(again), logits(model))


def test_training_continues_with_the_same_encoder_under_another_name(method, tmp_path):
    model = made(method, adapter_name="mail")
    model.save_pretrained(tmp_path)
    again = ours.PeftModel.from_pretrained(build("bert"), tmp_path, "post", is_trainable=True)
    assert again.active_adapters == ["post"]
    for (name, one), (_, two) in zip(
        model.prompt_encoder.state_dict().items(),
        again.prompt_encoder.state_dict().items(),
        strict=True,
    ):
        assert torch.equal(one, two), name
    assert all(p.requires_grad for p in again.prompt_encoder.parameters())
    assert torch.equal(logits(again.eval()), logits(model))


def test_several_adapters_are_saved_and_loaded_by_name(method, tmp_path):
    model = made(method)
    model.add_adapter("other", configured(method, num_virtual_tokens=3))
    first = logits(model)
    model.set_adapter("other")
    second = logits(model)
    model.set_adapter("default")
    model.save_pretrained(tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    again = ours.PeftModel.from_pretrained(build("bert"), tmp_path)
    again.load_adapter(tmp_path / "other", "other")
    assert [c.num_virtual_tokens for c in again.peft_config.values()] == [5, 3]
    assert torch.equal(logits(again), first)
    again.set_adapter("other")
    assert torch.equal(logits(again), second)
    model.save_pretrained(tmp_path / "one", selected_adapters=["default"])
    assert not (tmp_path / "one" / "other").exists()
    state = ours.get_peft_model_state_dict(model, adapter_name="other")
    assert state["prompt_embeddings"].shape[0] == 3


def test_saving_again_does_not_resume_from_an_older_encoder(tmp_path):
    folder = tmp_path / "adapter"
    made("P_TUNING").save_pretrained(folder)
    model = made("P_TUNING")
    model.prompt_encoder.start_from(torch.randn(5, 32))
    model.save_pretrained(folder, state_dict=None)  # as `Trainer` does
    again = ours.PeftModel.from_pretrained(build("bert"), folder, is_trainable=True)
    assert torch.equal(logits(again.eval()), logits(model))


def test_a_configuration_given_at_loading_becomes_the_model_s(method, tmp_path):
    made(method).save_pretrained(tmp_path)
    config = configured(method)
    model = ours.PeftModel.from_pretrained(build("bert"), tmp_path, config=config)
    assert model.peft_config["default"] is config
    assert config.inference_mode
    assert config.num_layers == 2


def test_a_prompt_starts_as_the_words_that_peft_starts_with(bert_folder):
    options = {
        "prompt_tuning_init": "TEXT",
        "prompt_tuning_init_text": "where is the parcel",
        "tokenizer_name_or_path": str(bert_folder),
        "tokenizer_kwargs": {"use_fast": True},
    }
    model = ours.get_peft_model(build("bert"), configured("PROMPT_TUNING", **options))
    theirs = peft.get_peft_model(build("bert"), configured("PROMPT_TUNING", peft, **options))
    expected = theirs.prompt_encoder["default"].embedding.weight
    assert torch.equal(model.prompt_embeddings(), expected)


def test_an_adapter_that_started_from_a_text_loads_without_its_tokenizer(bert_folder, tmp_path):
    config = configured(
        "PROMPT_TUNING",
        prompt_tuning_init="TEXT",
        prompt_tuning_init_text="where is it",
        tokenizer_name_or_path=str(bert_folder),
    )
    model = ours.get_peft_model(build("bert"), config).eval()
    model.save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    content = json.loads(file.read_text())
    assert content["prompt_tuning_init_text"] == "where is it"
    file.write_text(json.dumps({**content, "tokenizer_name_or_path": "nobody/nothing"}))
    for is_trainable in (False, True):
        again = ours.PeftModel.from_pretrained(build("bert"), tmp_path, is_trainable=is_trainable)
        assert torch.equal(logits(again.eval()), logits(model))


@pytest.mark.parametrize("projection", [False, True])
def test_a_prefix_starts_as_zeros(projection):
    config = configured("PREFIX_TUNING", init_weights="zero", prefix_projection=projection)
    model = ours.get_peft_model(build("bert"), config)
    assert not model.prompt_embeddings().any()
    assert model.active_peft_config.init_weights == "zero"
    assert made("PREFIX_TUNING").prompt_embeddings().any()


def test_from_pretrained_chooses_the_class_of_a_configuration(method, tmp_path):
    config = configured(method)
    assert isinstance(config, ours.PromptLearningConfig)
    assert config.is_prompt_learning
    config.save_pretrained(tmp_path)
    assert ours.PeftConfig.from_pretrained(tmp_path) == config
    assert ours.get_peft_config(config.to_dict()) == config
    theirs = peft.PeftConfig.from_pretrained(str(tmp_path))
    assert type(theirs).__name__ == type(config).__name__


def test_an_adapter_is_loaded_with_the_backbone_that_it_names(bert_folder, tmp_path):
    backbone = transformers.AutoModelForSequenceClassification.from_pretrained(bert_folder)
    model = ours.get_peft_model(backbone, configured("PROMPT_TUNING")).eval()
    model.save_pretrained(tmp_path)
    loaded = ours.AutoPeftModelForSequenceClassification.from_pretrained(tmp_path)
    assert isinstance(loaded, ours.PeftModelForSequenceClassification)
    assert torch.equal(logits(loaded), logits(model))
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "peft"
    assert card.data.base_model == str(bert_folder)


def test_a_card_of_the_user_s_keeps_its_text(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\nMy mail.\n")
    made("PROMPT_TUNING").save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert (card.data.license, card.text.strip()) == ("mit", "My mail.")


def test_what_ptune_does_not_do_is_refused_with_a_reason(tmp_path):
    model = made("PROMPT_TUNING")
    with refused(
        "ptune writes no pickle files, because they can run code when they are loaded. Leave out "
        "safe_serialization=False."
    ):
        model.save_pretrained(tmp_path, safe_serialization=False)
    assert not list(tmp_path.iterdir())
    with refused("A prompt is read with every text and cannot be merged into the backbone's …"):
        model.merge_and_unload()
    with refused("mixed=True is not for prompts. Leave it out."):
        ours.get_peft_model(build("bert"), configured("PROMPT_TUNING"), mixed=True)
    with refused("The configuration is a dict. Expected PromptEncoderConfig, …"):
        ours.get_peft_model(build("bert"), {"num_virtual_tokens": 5})
    with refused("PeftConfig describes no prompt. Expected PromptEncoderConfig, …"):
        ours.get_peft_model(build("bert"), ours.PeftConfig())
    with refused("AutoPeftModelForSequenceClassification has no instances. Use …"):
        ours.AutoPeftModelForSequenceClassification()
    made("PROMPT_TUNING").save_pretrained(tmp_path)
    with refused("The adapter … does not name its backbone. Load the backbone yourself, …"):
        ours.AutoPeftModelForSequenceClassification.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"prompt_tuning_init": "ZERO"},
            "prompt_tuning_init is 'ZERO'; expected one of 'TEXT', 'SAMPLE_VOCAB', 'RANDOM'.",
        ),
        (
            {"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "a"},
            "prompt_tuning_init is 'TEXT', but tokenizer_name_or_path is None. Set "
            "tokenizer_name_or_path as well.",
        ),
        (
            {"tokenizer_kwargs": {"use_fast": False}},
            "tokenizer_kwargs are for a prompt that starts from a text. Set "
            "prompt_tuning_init='TEXT', or leave them out.",
        ),
        (
            {"init_weights": "zero"},
            "init_weights is 'zero', but only prefix tuning can start as zeros. Leave it out.",
        ),
        (
            {"num_virtual_tokens": 0},
            "num_virtual_tokens is 0; expected an integer from 1 to 10,000.",
        ),
    ],
)
def test_a_wrong_field_of_prompt_tuning_is_refused_by_name(options, message):
    with refused(message):
        configured("PROMPT_TUNING", **options)


def test_a_wrong_field_of_prefix_tuning_is_refused_by_name():
    with refused("init_weights is 'ones'; expected 'zero', or None for a random start."):
        configured("PREFIX_TUNING", init_weights="ones")


def test_a_model_is_prepared_for_training_in_few_bits():
    model = ours.prepare_model_for_kbit_training(build("bert").to(torch.bfloat16))
    assert {(p.dtype, p.requires_grad) for p in model.parameters()} == {(torch.float32, False)}
    trained = ours.get_peft_model(model, configured("PROMPT_TUNING"))
    trained(IDS, labels=torch.tensor([1])).loss.backward()
    assert trained.prompt_encoder.embedding.weight.grad.any()
