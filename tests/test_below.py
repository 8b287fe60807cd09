"""Layers below a deep prompt's first one, computed once per text."""

from __future__ import annotations

import copy
import json
import sqlite3
from functools import cache

import pytest
import torch
from conftest import SENTENCES
from families import FAMILIES, build_model, build_tokenizer
from torch import nn
from transformers import PreTrainedTokenizerBase

from ptune import PromptEncoderConfig, PromptModel, PtuneError
from ptune.backbones.loading import layer_lists
from ptune.below import Kept, LayersBelow
from ptune.prompts.mechanisms import KeysAndValues

K = 4
# Those whose layers are in one list, with attention that can be given keys and values.
STARTS = (
    "BERT",
    "RoBERTa",
    "ELECTRA",
    "DistilBERT",
    "ModernBERT",
    "GPT-2",
    "OPT",
    "Gemma 3",
    "Llama",
)


@cache
def tokenizer(name: str) -> PreTrainedTokenizerBase:
    made = build_tokenizer(FAMILIES[name], SENTENCES)
    if made.pad_token is None:
        made.pad_token = made.eos_token
    return made


def made(name: str, **options: object) -> PromptModel:
    backbone = build_model(FAMILIES[name], tokenizer(name))
    torch.manual_seed(1)
    config = {"depth": "deep", "encoder_reparameterization_type": "NONE", "first_layer": 1}
    return PromptModel(backbone, PromptEncoderConfig(num_virtual_tokens=K, **{**config, **options}))


def batch(name: str, texts: list[str]) -> dict[str, torch.Tensor]:
    return dict(tokenizer(name)(texts, padding=True, return_tensors="pt"))


def calls_of_first_layer(model: PromptModel) -> list[int]:
    counted: list[int] = []
    (layers,) = layer_lists(model.backbone)
    layers[0].register_forward_hook(lambda *_: counted.append(1))
    return counted


@pytest.mark.parametrize("name", STARTS)
def test_same_numbers_and_gradients_from_above_the_first_layer(name: str, tmp_path) -> None:
    """In whatever batch a text is met again, and whichever process kept it."""
    model = made(name).eval()
    plain = [{}, {}]
    for i, texts in enumerate((SENTENCES[:3], [SENTENCES[3], SENTENCES[1]])):
        output = model(**batch(name, texts), labels=torch.zeros(len(texts), dtype=torch.long))
        output.loss.backward()
        plain[i] = {
            "logits": output.logits.detach(),
            "grad": model.prompt_encoder.embedding.weight.grad,
        }
        model.zero_grad()
    for process in range(2):
        model = made(name).eval()
        model.keep_layers_below(tmp_path)
        calls = calls_of_first_layer(model)
        if process == 0:  # everything is read once, in other batches
            model(**batch(name, SENTENCES[:4]))
            assert len(calls) == 1
        for i, texts in enumerate((SENTENCES[:3], [SENTENCES[3], SENTENCES[1]])):
            output = model(**batch(name, texts), labels=torch.zeros(len(texts), dtype=torch.long))
            output.loss.backward()
            assert len(calls) == 1 - process
            torch.testing.assert_close(output.logits, plain[i]["logits"], rtol=1e-5, atol=1e-5)
            grad = model.prompt_encoder.embedding.weight.grad
            scale = grad.abs().max().item()
            torch.testing.assert_close(grad, plain[i]["grad"], rtol=0, atol=1e-5 * scale)
            model.zero_grad()


def test_a_batch_with_one_new_text_is_read_whole(tmp_path) -> None:
    model = made("BERT").eval()
    model.keep_layers_below(tmp_path)
    calls = calls_of_first_layer(model)
    for texts, seen in ((SENTENCES[:2], 1), (SENTENCES[:3], 2), (SENTENCES[1:3], 2)):
        model(**batch("BERT", texts))
        assert len(calls) == seen


def test_the_prompt_is_not_below_its_first_layer() -> None:
    """Its width counts the layers above, and those below get no keys."""
    whole, upper = made("BERT", first_layer=0), made("BERT", first_layer=1)
    layers = len(whole.form.sizes)
    assert isinstance(upper.form, KeysAndValues)
    assert upper.form.width == whole.form.width * (layers - 1) // layers
    inputs = batch("BERT", SENTENCES[:2])
    with torch.no_grad():
        with_prompt = upper(**inputs, output_hidden_states=True).hidden_states
        without = upper.backbone(**inputs, output_hidden_states=True).hidden_states
    # `leave` comes with the next prompt: the backbone by itself is asked after it.
    assert torch.equal(with_prompt[1], without[1])


def test_the_same_start_from_words_whatever_the_first_layer() -> None:
    words = torch.tensor([5, 6, 7])
    whole = made("BERT", first_layer=0).form.words(words)
    upper = made("BERT", first_layer=1).form.words(words)
    assert torch.equal(whole[:, -upper.shape[1] :], upper)


def test_it_is_saved_and_loaded(tmp_path) -> None:
    model = made("BERT").eval()
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["first_layer"] == 1
    backbone = build_model(FAMILIES["BERT"], tokenizer("BERT"))
    loaded = PromptModel.from_pretrained(backbone, tmp_path)
    inputs = batch("BERT", SENTENCES[:2])
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


def test_other_weights_are_kept_in_another_file(tmp_path) -> None:
    for change in (None, "embeddings", "above"):
        model = made("BERT")
        (layers,) = layer_lists(model.backbone)
        with torch.no_grad():
            if change == "embeddings":
                model.get_input_embeddings().weight[0] += 1
            if change == "above":
                next(layers[-1].parameters()).add_(1)
        model.keep_layers_below(tmp_path)
    assert len(list(tmp_path.glob("*.sqlite"))) == 2


def test_dropout_and_hidden_states_are_computed_anew(tmp_path) -> None:
    model = made("BERT", backbone_dropout=True).train()
    model.keep_layers_below(tmp_path)
    calls = calls_of_first_layer(model)
    inputs = batch("BERT", SENTENCES[:2])
    for _ in range(2):
        model(**inputs)
    assert len(calls) == 2
    model.eval()
    for _ in range(2):
        model(**inputs)
    assert len(calls) == 3
    model(**inputs, output_hidden_states=True)
    assert len(calls) == 4


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("BERT", {"first_layer": 99}, "has the layers 0 to"),
        ("BERT", {"first_layer": -1}, "at least 0"),
        ("BERT", {"depth": "input"}, "from the first layer on"),
        ("ALBERT", {}, "in one list"),
        ("T5", {}, "in one list"),
        ("BLOOM", {}, "every layer"),
    ],
)
def test_what_cannot_start_there_is_refused(name: str, options: dict, said: str) -> None:
    with pytest.raises(PtuneError, match=said):
        made(name, **options)


def test_a_backbone_that_cannot_do_without_its_first_layers_is_refused(tmp_path) -> None:
    """What another layer left behind, for instance, would be missing."""
    model = made("BERT")
    (layers,) = layer_lists(model.backbone)
    left: list[torch.Tensor] = []
    layers[0].register_forward_hook(lambda m, args, out: left.append(args[0]))
    layers[1].register_forward_hook(lambda m, args, out: out + left.pop())
    with pytest.raises(PtuneError, match="--no-keep-layers"):
        LayersBelow(model.backbone, 1, tmp_path)


def test_unload_leaves_nothing(tmp_path) -> None:
    model = made("BERT")
    model.keep_layers_below(tmp_path)
    (layers,) = layer_lists(model.backbone)
    assert isinstance(layers, nn.ModuleList)
    model.unload()
    assert not any(layer._forward_pre_hooks for layer in layers)


@torch.no_grad()
def test_a_deep_copy_reads_the_same_file(tmp_path) -> None:
    model = made("BERT").eval()
    model.keep_layers_below(tmp_path)
    inputs = batch("BERT", SENTENCES[:2])
    logits = model(**inputs).logits
    twin = copy.deepcopy(model)
    calls, original = calls_of_first_layer(twin), calls_of_first_layer(model)
    torch.testing.assert_close(twin(**inputs).logits, logits, rtol=1e-5, atol=1e-5)
    assert calls == original == []


def test_a_file_that_is_none(tmp_path) -> None:
    (tmp_path / "a.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(PtuneError, match="cannot be used"):
        Kept(tmp_path / "a.sqlite")


def test_a_file_that_cannot_be_written_any_more(tmp_path, caplog) -> None:
    kept = Kept(tmp_path / "a.sqlite")
    kept.put({b"a": b"1"})
    with sqlite3.connect(tmp_path / "a.sqlite") as other:
        other.execute("DROP TABLE kept")
        other.execute("CREATE VIEW kept AS SELECT x'61' AS key, x'31' AS value")
    for _ in range(2):
        kept.put({b"b": b"2"})
    assert caplog.text.count("Nothing more is kept") == 1
    assert kept.get([b"a", b"b"]) == [b"1", None]


def test_two_processes_share_a_file(tmp_path) -> None:
    one, other = Kept(tmp_path / "a.sqlite"), Kept(tmp_path / "a.sqlite")
    one.put({b"a": b"1"})
    other.put({b"a": b"again", b"b": b"2"})
    assert one.get([b"b", b"a", b"c"]) == [b"2", b"1", None]
