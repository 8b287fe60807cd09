"""Backbones that do something in a way of their own, and folders with something wrong in them."""

import json

import pytest
import torch
import transformers
from conftest import build, refused

from ptune import PromptClassifier, PromptEncoderConfig, PromptModel, PtuneError
from ptune.backbones.loading import load_backbone, load_tokenizer, model_type_of

SMALL = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "pad_token_id": 0,
}
DEEPSEEK = {
    "num_key_value_heads": 2,
    "moe_intermediate_size": 32,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
}
CONFIGS = {
    # Keys and values have different widths.
    "DeepSeek V3": transformers.DeepseekV3Config(**SMALL, **DEEPSEEK),
    # It passes the mask to its attention by name.
    "Doge": transformers.DogeConfig(**SMALL, num_key_value_heads=2, max_position_embeddings=64),
    # It pads each text to a multiple of its window.
    "Longformer": transformers.LongformerConfig(
        **SMALL, attention_window=[4, 4], max_position_embeddings=66
    ),
}
IDS = torch.tensor([[5, 6, 7, 8, 9, 11, 12, 13, 14], [5, 6, 7, 0, 0, 0, 0, 0, 0]])
MASK = torch.tensor([[1] * 9, [1] * 3 + [0] * 6])


def model_of(config, depth, **options):
    torch.manual_seed(0)
    backbone = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    options = {"prompt_init": "random", "pooling": "architecture", **options}
    own = PromptEncoderConfig(depth=depth, num_virtual_tokens=3, **options)
    return PromptModel(backbone, own).eval()


@torch.no_grad()
@pytest.mark.parametrize("depth", ["none", "input", "deep", "reader"])
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_do_not_depend_on_the_batch(name, depth):
    if (name, depth) == ("Longformer", "reader"):
        with pytest.raises(PtuneError, match="cannot have a reader"):
            model_of(CONFIGS[name], depth)
        return
    model = model_of(CONFIGS[name], depth)
    alone = model(IDS[1:, :3]).logits
    torch.testing.assert_close(model(IDS, attention_mask=MASK).logits[1:], alone)
    moved = {"input_ids": IDS.roll(6, dims=1)[1:], "attention_mask": MASK.roll(6, dims=1)[1:]}
    torch.testing.assert_close(model(**moved).logits, alone)
    if depth == "reader":
        model.kept_texts.limit = 10**6
        for _ in range(2):  # read, and then found again
            torch.testing.assert_close(model(IDS, attention_mask=MASK).logits[1:], alone)


@pytest.mark.parametrize("name", ["XLM", "Flaubert"])
def test_a_reader_is_refused_where_a_cache_is_something_else(name):
    config = getattr(transformers, f"{name}Config")(
        vocab_size=100, emb_dim=32, n_layers=2, n_heads=2, max_position_embeddings=64
    )
    with pytest.raises(PtuneError, match="cannot have a reader"):
        model_of(config, "reader")


def test_a_backbone_whose_layers_read_padding_is_refused():
    config = transformers.ConvBertConfig(**SMALL, embedding_size=32, max_position_embeddings=66)
    with pytest.raises(PtuneError, match="its convolutions read padding"):
        model_of(config, "none")


# What is given to a backbone.


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"input_ids": IDS[0]}, "input_ids have the shape [9]; expected [batch, seq]."),
        (
            {"input_ids": IDS[:1], "attention_mask": MASK},
            "attention_mask has the shape [2, 9], and the tokens [1, 9]. …",
        ),
        (
            {"input_ids": IDS, "token_type_ids": IDS[:, :2]},
            "token_type_ids has the shape [2, 2], and the tokens [2, 9]. …",
        ),
    ],
)
def test_tensors_of_other_shapes_are_refused(given, message):
    model = PromptModel(build("bert"), PromptEncoderConfig(num_virtual_tokens=3))
    with refused(message):
        model(**given)


# Folders.


@pytest.fixture
def folder(tmp_path, tokenizer):
    build("bert").save_pretrained(tmp_path / "backbone")
    tokenizer.save_pretrained(tmp_path / "backbone")
    return tmp_path / "backbone"


def cut(file):
    file.write_bytes(file.read_bytes()[:-100])


def write(content):
    return lambda file: file.write_text(content)


def change(**fields):
    return lambda file: file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("model.safetensors", cut, "could not be loaded: Error while deserializing header"),
        ("config.json", write("{"), "is not a valid JSON file"),
        ("config.json", change(hidden_size="x"), "Field 'hidden_size' expected int, got str"),
        (
            "config.json",
            change(vocab_size=500),
            r"do not fit its config.json: bert\.embeddings\.word_embeddings\.weight has the shape "
            r"\[400, 32\] in the file, and \[500, 32\]",
        ),
    ],
)
def test_a_damaged_backbone_is_named(folder, name, damage, message):
    damage(folder / name)
    with pytest.raises(PtuneError, match=message):
        load_backbone(str(folder))


def test_a_checkpoint_for_other_labels_gets_a_new_last_layer(folder):
    loaded = load_backbone(str(folder), labels=["a", "b", "c"])
    assert loaded.classifier.out_features == 3


def test_a_damaged_configuration_is_named_before_loading(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(PtuneError, match=r"config\.json is damaged"):
        model_type_of(str(folder))


def test_a_tokenizer_s_file_of_another_kind_is_named(folder):
    (folder / "tokenizer_config.json").write_text("[]")
    with pytest.raises(PtuneError, match=r"could not be loaded: 'list' object has no attribute"):
        load_tokenizer(str(folder))


def test_a_backbone_without_a_tokenizer_is_refused(tmp_path):
    build("bert").save_pretrained(tmp_path)
    with pytest.raises(PtuneError, match="has no tokenizer, so no word of a text could be read"):
        PromptClassifier(str(tmp_path)).fit(["good", "bad"] * 5, ["a", "b"] * 5)


def test_an_empty_name_is_refused():
    with refused("The name of the backbone is empty. Name a folder or a model on the Hub."):
        load_backbone("")
