"""Adapters are saved completely, load exactly, and are in PEFT's format."""

import json
import os
import re
import resource
import subprocess
import sys
import warnings
import zipfile
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from architectures import ARCHITECTURES, build_model, build_tokenizer
from conftest import (
    SENTENCES,
    build,
    cut_short,
    edit_json,
    edit_tensors,
    randomised,
    refused,
)
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, BertConfig, BertModel

import ptune
from ptune import PromptModel, PtuneError, __version__
from ptune.adapters.adapter import TRAINED_STATE_NAME, Adapter, describe
from ptune.backbones.loading import load_backbone
from ptune.errors import cut
from ptune.labels import Labels
from ptune.peft import PromptEncoderConfig
from ptune.postprocessing import Postprocessing

IDS = torch.arange(10, 22).view(2, 6)


def trained(backbone, **options):
    """A model whose prompt and head differ from a new model's."""
    torch.manual_seed(3)
    config = PromptEncoderConfig(num_virtual_tokens=5, encoder_hidden_size=16, **options)
    return randomised(PromptModel(backbone, config), 4)


@pytest.fixture
def saved(backbone, tmp_path):
    model = trained(backbone)
    model.save_pretrained(tmp_path / "adapter")
    return model, tmp_path / "adapter"


@pytest.mark.parametrize("encoder", ["MLP", "LSTM", "NONE"])
@pytest.mark.parametrize("placement", ["prefix", "after_first"])
@torch.no_grad()
def test_a_reloaded_adapter_has_the_same_logits_bit_for_bit(kind, encoder, placement, tmp_path):
    model = trained(
        build(kind, num_labels=3), placement=placement, encoder_reparameterization_type=encoder
    )
    model.save_pretrained(tmp_path)
    loaded = PromptModel.from_pretrained(build(kind, num_labels=3), tmp_path)
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)
    assert not any(p.requires_grad for p in loaded.parameters())


def test_logits_are_the_same_in_a_new_process_under_another_seed(bert_folder, tmp_path):
    script = """
import sys, torch
from ptune import PromptModel
from ptune.backbones.loading import load_backbone
from ptune.errors import cut
backbone, folder, out = sys.argv[1:]
torch.manual_seed(99)
backbone = load_backbone(backbone, labels=["a", "b", "c"], dtype="float32")
with torch.no_grad():
    model = PromptModel.from_pretrained(backbone, folder)
    torch.save(model(torch.arange(10, 22).view(2, 6)).logits, out)
"""
    torch.manual_seed(1)
    backbone = load_backbone(bert_folder, labels=["a", "b", "c"], dtype="float32")
    model = PromptModel(backbone, PromptEncoderConfig(num_virtual_tokens=4)).eval()
    model.save_pretrained(tmp_path / "a")
    arguments = [bert_folder, tmp_path / "a", tmp_path / "logits"]
    subprocess.run([sys.executable, "-c", script, *map(str, arguments)], check=True)
    with torch.no_grad():
        expected = model(torch.arange(10, 22).view(2, 6)).logits
    assert torch.equal(torch.load(tmp_path / "logits"), expected)


def test_a_layer_that_no_checkpoint_has_is_part_of_the_head(tmp_path):
    """A BERT without a pooler gets a random one, which must be the same after loading."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=60,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "no-pooler")
    load = AutoModelForSequenceClassification.from_pretrained
    torch.manual_seed(1)
    model = PromptModel(load(tmp_path / "no-pooler"), PromptEncoderConfig(num_virtual_tokens=3))
    assert "bert.pooler.dense.weight" in dict(model.head_parameters())
    model.eval().save_pretrained(tmp_path / "adapter")
    torch.manual_seed(2)
    loaded = PromptModel.from_pretrained(load(tmp_path / "no-pooler"), tmp_path / "adapter")
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("encoder", ["MLP", "LSTM"])
@torch.no_grad()
def test_resuming_starts_with_the_same_encoder(kind, encoder, tmp_path):
    model = trained(build(kind), encoder_reparameterization_type=encoder)
    model.save_pretrained(tmp_path)
    loaded = PromptModel.from_pretrained(build(kind), tmp_path, is_trainable=True)
    before, after = model.trained_state(), loaded.trained_state()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)


@torch.no_grad()
def test_resuming_without_the_encoder_trains_the_prompt_embeddings(saved, kind):
    model, folder = saved
    (folder / TRAINED_STATE_NAME).unlink()
    loaded = PromptModel.from_pretrained(build(kind), folder, is_trainable=True).eval()
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)
    assert loaded.prompt_encoder.embedding.weight.requires_grad


@pytest.mark.parametrize("encoder", ["MLP", "LSTM", "NONE"])
def test_peft_loads_our_adapter_without_a_warning_and_agrees(kind, encoder, tmp_path):
    folder = tmp_path
    model = trained(build(kind), encoder_reparameterization_type=encoder)
    model.save_pretrained(folder)
    backbone = build(kind)
    backbone.config.pad_token_id = model.config.pad_token_id
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        theirs = peft.PeftModel.from_pretrained(backbone, folder).eval()
    if kind == "gpt2":  # PEFT reads the last position
        logits = torch.cat([theirs(row[None]).logits for row in IDS])
    else:
        logits = theirs(IDS).logits
    torch.testing.assert_close(logits, model(IDS).logits, atol=1e-5, rtol=0)


def test_peft_warns_about_a_placement_that_it_does_not_know(backbone, kind, tmp_path):
    trained(backbone, placement="after_first").save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="placement"):
        peft.PeftModel.from_pretrained(build(kind), tmp_path)


@pytest.mark.parametrize("encoder", ["MLP", "LSTM"])
@pytest.mark.parametrize("safe", [True, False])
@torch.no_grad()
def test_we_load_peft_s_adapter_and_agree(kind, encoder, safe, tmp_path):
    backbone = build(kind)
    if backbone.config.pad_token_id is None:
        backbone.config.pad_token_id = 2
    config = peft.PromptEncoderConfig(
        task_type="SEQ_CLS",
        num_virtual_tokens=5,
        encoder_hidden_size=16,
        encoder_reparameterization_type=encoder,
    )
    theirs = peft.get_peft_model(backbone, config).eval()
    theirs.save_pretrained(tmp_path)
    if not safe:
        tensors = load_file(tmp_path / "adapter_model.safetensors")
        torch.save(tensors, tmp_path / "adapter_model.bin")
        (tmp_path / "adapter_model.safetensors").unlink()
    ours = PromptModel.from_pretrained(build(kind), tmp_path)
    for row in IDS:
        torch.testing.assert_close(ours(row[None]).logits, theirs(row[None]).logits)


class Killed(BaseException):
    """Nothing catches it, as nothing catches a SIGKILL."""


def test_a_kill_while_files_are_replaced_leaves_no_mixture(saved, tmp_path, monkeypatch):
    """Weights with the labels of another adapter would load, and answer wrongly."""
    _, folder = saved
    one = Adapter.read(folder)
    labels = replace(one.labels, names=one.labels.names[::-1])
    other = replace(one, labels=labels, prompt_embeddings=one.prompt_embeddings + 1)
    move, left, seen = Path.replace, 0, set()

    def until_killed(file, target):
        nonlocal left
        if not left:
            raise Killed
        left -= 1
        return move(file, target)

    for moves in range(4):
        place, left = tmp_path / str(moves), moves
        one.save(place)
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", until_killed)
            with suppress(Killed):
                other.save(place)
        try:
            found = Adapter.read(place)
        except PtuneError:
            seen.add("refused")
        else:
            whole = [one, other][torch.equal(found.prompt_embeddings, other.prompt_embeddings)]
            assert found.labels.names == whole.labels.names
            seen.add("read")
        other.save(place)
        assert Adapter.read(place).labels.names == other.labels.names
    assert seen == {"refused", "read"}


def test_files_can_be_read_by_everyone_and_describe_themselves(saved):
    _, folder = saved
    info = json.loads((folder / "ptune.json").read_text())
    assert info["labels"] == ["LABEL_0", "LABEL_1"]
    assert info["backbone"]["num_layers"] == 2
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["peft_type"] == "P_TUNING"
    assert "placement" not in config
    for file in folder.iterdir():
        assert file.stat().st_mode & 0o044, f"only its owner can read {file.name}"


def forget_mechanism(folder):
    """Make `ptune.json` what the first version wrote."""
    file = folder / "ptune.json"
    content = json.loads(file.read_text())
    for name in ("format", "requires", "mechanism"):
        del content[name]
    file.write_text(json.dumps(content))


MECHANISMS = {
    "input": ("BERT", {"depth": "input"}),
    "prefix": ("BERT", {"depth": "deep"}),
    "layers": ("BLOOM", {"depth": "deep"}),
}


@pytest.mark.parametrize("mechanism", list(MECHANISMS))
@torch.no_grad()
def test_every_mechanism_survives_reading_and_writing_without_a_model(mechanism, tmp_path):
    architecture, options = MECHANISMS[mechanism]
    tokenizer = build_tokenizer(ARCHITECTURES[architecture], SENTENCES)
    model = trained(build_model(ARCHITECTURES[architecture], tokenizer), **options)
    model.save_pretrained(tmp_path / "one")
    found = Adapter.read(tmp_path / "one")
    assert found.mechanism == mechanism
    assert json.loads((tmp_path / "one" / "ptune.json").read_text())["mechanism"] == mechanism
    found.save(tmp_path / "two", found.read_trained_state())
    files = {f.name: f.read_bytes() for f in (tmp_path / "one").iterdir()}
    assert {f.name: f.read_bytes() for f in (tmp_path / "two").iterdir()} == files
    loaded = PromptModel.from_pretrained(
        build_model(ARCHITECTURES[architecture], tokenizer), tmp_path / "two"
    )
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("mechanism", list(MECHANISMS))
@torch.no_grad()
def test_an_adapter_without_a_recorded_mechanism_gets_the_same_one(mechanism, tmp_path):
    architecture, options = MECHANISMS[mechanism]
    tokenizer = build_tokenizer(ARCHITECTURES[architecture], SENTENCES)
    model = trained(build_model(ARCHITECTURES[architecture], tokenizer), **options)
    model.save_pretrained(tmp_path)
    forget_mechanism(tmp_path)
    assert Adapter.read(tmp_path).mechanism is None
    loaded = PromptModel.from_pretrained(
        build_model(ARCHITECTURES[architecture], tokenizer), tmp_path
    )
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)
    assert loaded.to_adapter().mechanism == mechanism


@torch.no_grad()
def test_the_width_tells_the_mechanism_where_the_backbone_has_both(tmp_path):
    """As when an architecture's attention has come within reach since the adapter was saved."""
    torch.manual_seed(3)
    config = PromptEncoderConfig(num_virtual_tokens=5, depth="deep")
    model = PromptModel(build("bert"), config, mechanism="layers").eval()
    model.save_pretrained(tmp_path)
    forget_mechanism(tmp_path)
    for is_trainable in (False, True):
        loaded = PromptModel.from_pretrained(build("bert"), tmp_path, is_trainable=is_trainable)
        assert loaded.to_adapter().mechanism == "layers"
        assert torch.equal(loaded.eval()(IDS).logits, model(IDS).logits)


def damage_by_cutting(folder):
    cut_short(folder)
    return "…/adapter_model.safetensors is damaged or cut short (…). Save or download it again."


def damage_by_another_shape(folder):
    edit_tensors(folder, {"prompt_embeddings": torch.zeros(3, 32)})
    return (
        "…/adapter_model.safetensors: 'prompt_embeddings' has the shape [3, 32]; expected [5, 32] "
        "from adapter_config.json. One of the two files is damaged or belongs to another adapter."
    )


def damage_by_nan(folder):
    edit_tensors(folder, {"prompt_embeddings": torch.full([5, 32], torch.nan)})
    return (
        "…/adapter_model.safetensors: 'prompt_embeddings' holds nan; expected finite numbers up to "
        "1,000,000. The file is damaged, or the training failed: download it or train again."
    )


def damage_by_infinity(folder):
    edit_tensors(folder, {"base_model.classifier.bias": torch.tensor([0.0, -torch.inf])})
    return "…: 'base_model.classifier.bias' holds -inf; expected finite numbers up to 1,000,000. …"


def damage_by_a_huge_number(folder):
    edit_tensors(folder, {"base_model.classifier.bias": torch.tensor([0.0, 1e30])})
    return "…: 'base_model.classifier.bias' holds 1e+30; expected finite numbers up to 1,000,000. …"


def damage_by_a_tensor_of_the_backbone(folder):
    edit_tensors(folder, {"bert.embeddings.word_embeddings.weight": torch.zeros(400, 32)})
    return (
        "…: 'bert.embeddings.word_embeddings.weight' is not a tensor of an adapter; expected "
        "'prompt_embeddings' and names that begin with 'base_model.'."
    )


def damage_by_a_prefixed_tensor_of_the_backbone(folder):
    name = "base_model.bert.embeddings.word_embeddings.weight"
    edit_tensors(folder, {name: torch.zeros(400, 32)})
    return (
        "The adapter … has the head parameters bert.embeddings.word_embeddings.weight, which are "
        "not in the head of BertForSequenceClassification: it belongs to another backbone."
    )


def damage_by_a_scalar(folder):
    edit_tensors(folder, {"base_model.classifier.bias": torch.tensor(1.0)})
    return (
        "…: 'base_model.classifier.bias' has the shape []; expected at least one value in each of "
        "one or more dimensions."
    )


def damage_by_integers(folder):
    edit_tensors(folder, {"base_model.classifier.bias": torch.tensor([1, 2])})
    return "…: 'base_model.classifier.bias' has the type I64; expected one of F64, F32, F16, BF16."


def damage_by_another_number_of_labels(folder):
    edit_json(folder / "ptune.json", labels=["a", "b", "c"])
    return (
        "…/ptune.json names 3 labels, but no layer of the head has as many outputs. One of the two "
        "files is damaged or belongs to another adapter."
    )


def damage_by_many_labels(folder):
    (folder / "ptune.json").write_text(json.dumps({"labels": ["a"] * 1_000_000}))
    return (
        "…/ptune.json has 1,000,000 labels; expected at most 50,000. If you trust it, set "
        "PTUNE_MAX_LABELS=1000000 in the environment."
    )


def damage_by_many_rows(folder):
    edit_tensors(folder, {"base_model.classifier.bias": torch.zeros(20_000_000)})  # 80 MB
    return (
        "…: 'base_model.classifier.bias' has 20,000,000 labels; expected at most 50,000. If you "
        "trust it, set PTUNE_MAX_LABELS=20000000 in the environment."
    )


def damage_by_a_long_header(folder):
    file = folder / "adapter_model.safetensors"
    content = file.read_bytes()
    file.write_bytes((2**40).to_bytes(8, "little") + content[8:])
    return (
        "…/adapter_model.safetensors is damaged or cut short (its header has 1,099,511,627,776 "
        "bytes; expected at most 1,000,000). Save or download it again."
    )


def damage_by_declaring_more_than_there_is(folder):
    file = folder / "adapter_model.safetensors"
    header = (
        b'{"prompt_embeddings":{"dtype":"F32","shape":[5,99999999],"data_offsets":[0,1999999980]}}'
    )
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    return "…/adapter_model.safetensors is damaged or cut short (…). Save or download it again."


def damage_by_a_compressed_pickle(folder):
    as_pickle(folder, compression=zipfile.ZIP_DEFLATED, zeros=20_000_000)
    return (
        "…/adapter_model.bin is damaged or cut short (80,0… bytes compressed to …). Save or "
        "download it again."
    )


def damage_by_a_pickle_of_other_things(folder):
    as_pickle(folder, extra=bytearray(8))
    return (
        "…/adapter_model.bin is damaged or cut short (it holds '__builtin__ bytearray', which is "
        "not a tensor). Save or download it again."
    )


def damage_by_a_pickle_with_expanded_tensors(folder):
    as_pickle(folder, extra=torch.zeros(1).expand(10**12))
    return (
        "…/adapter_model.bin is damaged or cut short (it declares 4,000,000,… bytes and has …). "
        "Save or download it again."
    )


def as_pickle(folder, compression=zipfile.ZIP_STORED, zeros=0, **more):
    """Turn the weights into `adapter_model.bin`."""
    file = folder / "adapter_model.safetensors"
    tensors = {**load_file(file), **more}
    if zeros:
        tensors["base_model.classifier.bias"] = torch.zeros(zeros)
    torch.save(tensors, folder / "plain.zip")
    file.unlink()
    with (
        zipfile.ZipFile(folder / "plain.zip") as plain,
        zipfile.ZipFile(folder / "adapter_model.bin", "w", compression) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))


def damage_by_dropping_the_prompt(folder):
    edit_tensors(folder, {"prompt_embeddings": None})
    return "….safetensors has no 'prompt_embeddings', so it is not a p-tuning adapter."


def damage_by_deep_json(folder):
    (folder / "adapter_config.json").write_text("[" * 100_000 + "]" * 100_000)
    return (
        "…/adapter_config.json is damaged: its lists and objects are nested too deeply. Save or "
        "fetch it again."
    )


def damage_by_long_json(folder):
    with (folder / "ptune.json").open("r+b") as file:
        file.truncate(50_000_000)
    return "…/ptune.json has 50,000,000 bytes; expected at most 16,000,000."


def damage_by_broken_json(folder):
    (folder / "adapter_config.json").write_text('{"peft_type":')
    return "…/adapter_config.json is damaged: …"


def damage_by_an_empty_file(folder):
    (folder / "adapter_config.json").write_text("")
    return "…/adapter_config.json is empty. Save or fetch it again."


def damage_by_another_method(folder):
    edit_json(folder / "adapter_config.json", peft_type="LORA")
    return (
        "…/adapter_config.json: peft_type is 'LORA'; ptune reads 'P_TUNING', "
        "'PREFIX_TUNING' and 'PROMPT_TUNING'. Load an adapter of another method with PEFT, or "
        "train a classifier with `ptune train`."
    )


def damage_by_missing_weights(folder):
    (folder / "adapter_model.safetensors").unlink()
    return (
        "… is incomplete: it has adapter_config.json but no adapter_model.safetensors. Save or "
        "download it again."
    )


def damage_by_missing_config(folder):
    (folder / "adapter_config.json").unlink()
    return (
        "… has no adapter_config.json, so it is not an adapter. Name the folder that `ptune train` "
        "wrote (--output-dir), or one of its checkpoints."
    )


def damage_by_a_newer_version(folder):
    edit_json(folder / "ptune.json", requires=["readers"])
    return (
        f"…/ptune.json requires readers, which ptune {__version__} does not know. Upgrade ptune "
        "(`pip install -U ptune`)."
    )


def damage_by_another_mechanism(folder):
    edit_json(folder / "ptune.json", mechanism="prefix")
    return (
        "…/ptune.json: mechanism is 'prefix', but adapter_config.json has the depth 'input'. One "
        "of the two files belongs to another adapter."
    )


def calibrate(folder):
    """Make `ptune.json` say that the classifier is calibrated."""
    edit_json(folder / "ptune.json", quality={})


def damage_by_missing_calibration(folder):
    calibrate(folder)
    return (
        f"{folder}/ptune.json belongs to a calibrated classifier, but there is no "
        "ptune_quality.safetensors next to it. Copy or download that file too, or remove 'quality' "
        "from ptune.json to predict without calibration."
    )


def damage_by_a_calibration_out_of_range(folder):
    calibrate(folder)
    file = folder / "ptune_quality.safetensors"
    save_file({"scale": torch.tensor([1.0, 1e5]), "shift": torch.zeros(2)}, file)
    return (
        f"{file}: scale holds 100000; expected numbers from 0.001 to 1000. The file is damaged: "
        "download it, or train the classifier again."
    )


def damage_by_a_link_to_another_folder(folder):
    file = folder / "adapter_model.safetensors"
    target = file.rename(folder.parent / "elsewhere")
    file.symlink_to(target)
    return (
        f"{file} links to {target}, outside the adapter's folder. If you trust the adapter, "
        "replace the link by a copy of the file."
    )


def damage_by_a_link_up_and_down(folder):
    file = folder / "ptune.json"
    target = file.rename(folder.parent / "elsewhere.json")
    file.symlink_to("../elsewhere.json")
    return f"{file} links to {target}, outside the adapter's folder. …"


def damage_by_a_link_to_itself(folder):
    (folder / "ptune.json").unlink()
    (folder / "ptune.json").symlink_to("ptune.json")
    return f"{folder}/ptune.json is not a regular file. Remove it, or download the adapter again."


def damage_by_a_pipe(folder):
    (folder / "ptune.json").unlink()
    os.mkfifo(folder / "ptune.json")
    return f"{folder}/ptune.json is not a regular file. …"


def damage_by_a_pickle_of_a_list(folder):
    (folder / "adapter_model.safetensors").unlink()
    torch.save([torch.zeros(2)], folder / "adapter_model.bin")
    return (
        "…/adapter_model.bin is damaged or cut short (it holds no named tensors). Save or download "
        "it again."
    )


def damage_by_a_pickle(folder):
    import pickle

    (folder / "adapter_model.safetensors").unlink()
    with (folder / "adapter_model.bin").open("wb") as f:
        pickle.dump({"prompt_embeddings": os.system}, f)
    return "…/adapter_model.bin is damaged or cut short (…). Save or download it again."


DAMAGES = [value for name, value in list(globals().items()) if name.startswith("damage_by")]


@pytest.mark.parametrize("kind", ["bert"], indirect=True)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_adapter_is_refused_by_name(saved, kind, damage):
    _, folder = saved
    message = damage(folder)
    backbone = build(kind)
    with refused(message), at_most(50_000_000):
        PromptModel.from_pretrained(backbone, folder)


@contextmanager
def at_most(limit):
    """Check how many bytes more than before are in memory at any time, where Linux tells."""
    status = Path("/proc/self/status")

    def kilobytes(name):
        return int(re.search(rf"{name}:\s+(\d+) kB", status.read_text())[1])

    if status.exists():
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
        before = kilobytes("VmRSS")
    try:
        yield
    finally:
        if status.exists():
            assert (kilobytes("VmHWM") - before) * 1024 <= limit


@pytest.mark.parametrize("kind", ["bert"], indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("form", ["safetensors", "pickle"])
def test_a_large_adapter_takes_less_than_twice_its_tensors(saved, kind, form, dtype):
    _, folder = saved
    prompt = torch.ones(1000, 32_000, dtype=dtype)  # 128 MB in float32
    edit_tensors(folder, {"prompt_embeddings": prompt})
    edit_json(folder / "adapter_config.json", num_virtual_tokens=1000, token_dim=32_000)
    if form == "pickle":
        as_pickle(folder)
    with at_most(2 * prompt.nbytes):
        read = Adapter.read(folder).prompt_embeddings
    assert read.sum(dtype=torch.float32) == 32_000_000


@pytest.mark.parametrize("kind", ["bert"], indirect=True)
def test_a_small_file_cannot_ask_for_a_large_prompt_encoder(saved, kind):
    """The encoder's width, 16,384, would take a gigabyte."""
    _, folder = saved
    edit_json(folder / "adapter_config.json", encoder_hidden_size=16_384)
    backbone = build(kind)
    with (
        refused(
            "…/model.safetensors: prompt_encoders.default.mlp_head.0.bias has the shape [16]; "
            "expected [16384]. The file is damaged or belongs to another adapter."
        ),
        at_most(50_000_000),
    ):
        PromptModel.from_pretrained(backbone, folder, is_trainable=True)


@pytest.mark.parametrize("kind", ["bert"], indirect=True)
def test_links_inside_an_adapter_s_folder_are_followed(saved, kind, tmp_path):
    model, folder = saved
    (folder / "ptune.json").rename(folder / "inside.json")
    (folder / "ptune.json").symlink_to("inside.json")
    (tmp_path / "link").symlink_to(folder)
    PromptModel.from_pretrained(build(kind), tmp_path / "link")
    # As in the Hub's cache.
    snapshot = tmp_path / "models--a--b" / "snapshots" / ("1" * 40) / "inner"
    (tmp_path / "models--a--b" / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, name in enumerate(("adapter_config.json", "adapter_model.safetensors")):
        (folder / name).rename(tmp_path / "models--a--b" / "blobs" / str(number))
        (snapshot / name).symlink_to(f"../../../blobs/{number}")
    assert Adapter.read(snapshot).prompt_embeddings.equal(model.prompt_embeddings())


@pytest.mark.parametrize("kind", ["bert"], indirect=True)
def test_a_folder_with_the_name_of_the_backbone_on_the_hub_is_never_read(
    saved, kind, tmp_path, monkeypatch
):
    file = saved[1] / "adapter_config.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "base_model_name_or_path": "bert/tiny"}))
    (tmp_path / "bert" / "tiny").mkdir(parents=True)
    assert Adapter.read(saved[1]).config.base_model_name_or_path == "bert/tiny"
    monkeypatch.chdir(tmp_path)
    with refused(
        f"{saved[1]}: adapter_config.json: base_model_name_or_path is 'bert/tiny', an id on the "
        "Hub, but there is a file or folder of that name here, which would be read instead. Work "
        "in another folder. If you have that backbone, name it yourself (`--model`, or model= in "
        "Python)."
    ):
        Adapter.read(saved[1])
    assert Adapter.read(saved[1], own_backbone=True).labels.names == ("LABEL_0", "LABEL_1")


@pytest.mark.parametrize("kind", ["bert"], indirect=True)
@pytest.mark.parametrize("name", ["base_model.bert.embeddings.word_embeddings.weight", "other"])
def test_resuming_never_touches_the_backbone(saved, kind, name):
    _, folder = saved
    file = folder / TRAINED_STATE_NAME
    save_file({**load_file(file), name: torch.zeros(400, 32)}, file)
    backbone = build(kind)
    before = {n: p.clone() for n, p in backbone.named_parameters()}
    with refused(
        f"{file}: {name} has the shape [400, 32]; expected no tensor of that name. The file is "
        "damaged or belongs to another adapter."
    ):
        PromptModel.from_pretrained(backbone, folder, is_trainable=True)
    assert all(torch.equal(p, before[n]) for n, p in backbone.named_parameters())


@pytest.mark.parametrize("kind", ["bert"], indirect=True)
def test_the_limit_on_labels_can_be_changed(saved, kind, monkeypatch):
    monkeypatch.setenv("PTUNE_MAX_LABELS", "1")
    with refused("… has 2 labels; expected at most 1. If you trust it, set PTUNE_MAX_LABELS=2 …"):
        Adapter.read(saved[1])
    monkeypatch.setenv("PTUNE_MAX_LABELS", "2")
    Adapter.read(saved[1])
    monkeypatch.setenv("PTUNE_MAX_LABELS", "many")
    with refused("PTUNE_MAX_LABELS is 'many'; expected a number such as 50000."):
        Adapter.read(saved[1])


def test_a_folder_that_does_not_exist_is_refused(kind, tmp_path):
    with refused(f"There is no folder '{tmp_path / 'nowhere'}'. Check the path."):
        PromptModel.from_pretrained(build(kind), tmp_path / "nowhere")


def test_a_file_in_place_of_a_folder_is_refused(saved, kind):
    file = saved[1] / "adapter_config.json"
    with refused(f"{file} is a file. Expected the folder that contains adapter_config.json."):
        PromptModel.from_pretrained(build(kind), file)


@pytest.mark.parametrize("kind", ["bert"], indirect=True)
def test_another_backbone_is_refused_with_both_sizes(saved, kind):
    _, folder = saved
    other = build("bert", num_labels=2)
    other.resize_token_embeddings(500)
    with pytest.raises(PtuneError, match="vocab_rows 500 instead of 400"):
        PromptModel.from_pretrained(other, folder)
    with pytest.raises(PtuneError, match="model_type roberta instead of bert"):
        PromptModel.from_pretrained(build("roberta"), folder)


@pytest.mark.parametrize("kind", ["bert"], indirect=True)
def test_another_number_of_labels_is_refused_and_the_backbone_unchanged(saved, kind):
    _, folder = saved
    backbone = build(kind, num_labels=4)
    before = {n: p.clone() for n, p in backbone.named_parameters()}
    with refused(
        f"classifier.bias has the shape [2] in the adapter {folder} and [4] in the "
        "backbone. If only the number of labels differs, load the backbone with num_labels=2; "
        "`ptune.load` does so."
    ):
        PromptModel.from_pretrained(backbone, folder)
    assert all(torch.equal(p, before[n]) for n, p in backbone.named_parameters())
    assert all(p.requires_grad for p in backbone.parameters())


@pytest.mark.parametrize("kind", ["bert"], indirect=True)
def test_a_head_that_does_not_fit_a_model_is_refused(saved, kind):
    """A model has a head already, and adapters for it must have all of it."""
    _, folder = saved
    file = folder / "adapter_model.safetensors"
    tensors = {n: t.clone() for n, t in load_file(file).items()}  # the file is written again
    model = PromptModel(build(kind))
    name = "classifier.weight"
    for changed, message in [
        (
            {f"base_model.{name}": None},
            f"The adapter {folder} does not contain {name}, which BertForSequenceClassification "
            "needs. Train and save the adapter with ptune.",
        ),
        (
            {"base_model.other": torch.zeros(2)},
            f"The adapter {folder} has the head parameters other, which are not in the head of "
            "BertForSequenceClassification: it belongs to another backbone.",
        ),
        (
            {f"base_model.{name}": torch.zeros(2, 31)},
            f"{name} has the shape [2, 31] in the adapter {folder} and [2, 32] in the backbone. It "
            "belongs to another backbone.",
        ),
    ]:
        save_file({n: t for n, t in {**tensors, **changed}.items() if t is not None}, file)
        with refused(message):
            model.load_adapter(folder, "another")
        assert list(model.adapters) == ["default"]
    with refused("There is already an adapter 'default'. Choose another name."):
        model.load_adapter(folder, "default")
    for bad in ("", "../up", "a.b"):
        with refused(
            f"An adapter cannot be called {bad!r}. Choose a name that is not empty, contains no "
            "dots and is no attribute of PyTorch's modules."
        ):
            model.load_adapter(folder, bad)
    for bad in ("/etc/mail", "ü" * 200, "a\0b"):
        with refused(f"An adapter cannot be called {cut(bad, 80)!r}: it is saved in a folder of …"):
            model.load_adapter(folder, bad)
    for bad in ("a" * 300, "a\0b"):
        with refused(f"{cut(bad, 80)!r} cannot be the name of a folder or of a repository on …"):
            ptune.load(bad)
        with refused(f"{cut(bad, 80)!r} cannot be the name of a folder. Name another."):
            model.save_pretrained(bad)


def test_a_missing_part_of_the_head_is_warned_about(saved, kind):
    _, folder = saved
    tensors = load_file(folder / "adapter_model.safetensors")
    dropped = next(name for name in tensors if name.startswith("base_model."))
    edit_tensors(folder, {dropped: None})
    with pytest.warns(UserWarning, match="does not contain " + dropped.removeprefix("base_model.")):
        PromptModel.from_pretrained(build(kind), folder)


@pytest.mark.parametrize("kind", ["bert"], indirect=True)
def test_a_full_disk_leaves_the_old_adapter_unchanged(saved, kind):
    """A limit on the size of files, like a full disk."""
    model, folder = saved
    before = {f.name: f.read_bytes() for f in folder.iterdir()}
    with torch.no_grad():
        model.prompt_encoder.embedding.weight.add_(1.0)
    import signal

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(PtuneError, match="What was saved there before is unchanged"):
            model.save_pretrained(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == before


def test_a_folder_that_cannot_be_created_is_named(saved, tmp_path):
    model, _ = saved
    (tmp_path / "file").write_text("")
    with pytest.raises(PtuneError, match=r"Cannot write to .*file/inside"):
        model.save_pretrained(tmp_path / "file" / "inside")


@pytest.mark.parametrize("kind", ["bert"], indirect=True)
@pytest.mark.parametrize("scores", [{}, {"task": 1, "train_examples": "many", "eval": []}])
def test_scores_of_another_form_are_refused_in_a_summary(saved, scores):
    file = saved[1] / "metrics.json"
    file.write_text(json.dumps(scores))
    with refused(
        f"{file} is damaged: expected the fields task, train_examples and eval as `ptune train` "
        "writes them. Remove the file, or save or download it again."
    ):
        describe(saved[1])


# A folder that an adapter is saved to.


def test_training_goes_on_from_the_adapter_that_was_saved_last(tmp_path):
    model = trained(build("bert"))
    model.save_pretrained(tmp_path)
    newer = randomised(model, 2)
    newer.freeze()
    newer.save_pretrained(tmp_path)
    again = PromptModel.from_pretrained(build("bert"), tmp_path, is_trainable=True)
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(again.eval()(ids).logits, newer(ids).logits)


def test_a_model_in_the_folder_is_never_replaced(tmp_path):
    build("bert").save_pretrained(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    model = trained(build("bert"))
    with pytest.raises(PtuneError, match=r"model.safetensors\), which would be replaced"):
        model.save_pretrained(tmp_path)
    model.freeze()
    model.save_pretrained(tmp_path)  # without what training needs, it only adds files
    assert (tmp_path / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("killed_after", range(3))
def test_a_save_that_is_killed_never_mixes_two_adapters(tmp_path, monkeypatch, killed_after):
    """As when only labels and calibration change: two files of several differ."""
    adapter = trained(build("bert")).to_adapter()
    adapter.save(tmp_path)
    moved, replace_file = [], Path.replace

    class Killed(BaseException):
        pass

    def die(file, target):
        if len(moved) == killed_after:
            raise Killed
        moved.append(target)
        return replace_file(file, target)

    monkeypatch.setattr(Path, "replace", die)
    names, scale = Labels(("money", "other")), {"scale": np.full(2, 2.0)}
    changed = replace(adapter, labels=names, postprocessing=Postprocessing(**scale))
    with pytest.raises(Killed):
        changed.save(tmp_path)
    with pytest.raises(PtuneError, match=r"adapter_config\.json"):
        Adapter.read(tmp_path)


def test_an_adapter_on_a_backbone_keeps_its_labels(tmp_path):
    adapter = replace(trained(build("bert")).to_adapter(), labels=Labels(("money", "other")))
    model = PromptModel.from_adapter(build("bert"), adapter)
    assert model.config.id2label == {0: "money", 1: "other"}
    model.save_pretrained(tmp_path)
    assert Adapter.read(tmp_path).labels.names == ("money", "other")
    assert model.unload().config.id2label == {0: "LABEL_0", 1: "LABEL_1"}


@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize("added", [False, True])
def test_an_adapter_on_a_backbone_can_be_saved_again(tmp_path, added, trains):
    """With the types of its labels and merged ones; and with what was fitted, unless it trains."""
    labels = Labels(("3", "7"), value_type="int64", outputs=(0, 1, 1))
    values = Postprocessing(scale=np.full(3, 2.0))
    own = {"labels": labels, "postprocessing": values, "text_columns": ["mail"]}
    adapter = replace(trained(build("bert", num_labels=3)).to_adapter(), **own)
    model = PromptModel.from_adapter(build("bert", num_labels=3), adapter, is_trainable=trains)
    if added:
        model.load_adapter(adapter, "again", is_trainable=trains)
        model.set_adapter("again")
    model.save_pretrained(tmp_path)
    found = Adapter.read(tmp_path)
    assert (found.labels, found.text_columns) == (labels, ["mail"])
    assert bool(found.postprocessing.tensors) is not trains
    model.config.id2label = {0: "a", 1: "b", 2: "c"}  # the user's own
    assert model.to_adapter().labels.names == ("a", "b", "c")
    assert not model.to_adapter().postprocessing.tensors


def test_one_output_without_a_problem_type_stays_a_number(tmp_path):
    model = PromptModel(build("bert", num_labels=1), PromptEncoderConfig(num_virtual_tokens=3))
    model.save_pretrained(tmp_path)
    assert Adapter.read(tmp_path).labels.kind == "regression"
