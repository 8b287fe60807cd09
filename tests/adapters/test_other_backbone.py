"""An adapter recognises its backbone by sampled weights, and refuses others of the same sizes."""

import json
import re
import shutil
import warnings

import pytest
import torch
from architectures import ARCHITECTURES, build_model, build_tokenizer
from conftest import SENTENCES, build, call, refused
from torch import nn
from transformers import AutoModelForSequenceClassification

import ptune
import ptune.peft
from ptune import PromptBank, PromptEncoderConfig, PromptModel, PtuneError
from ptune.adapters.adapter import Adapter, describe
from ptune.backbones.fingerprint import SAMPLES, compare, fingerprint
from ptune.backbones.loading import load_backbone
from ptune.export.checkpoint import export_transformers
from ptune.export.onnx import export_onnx
from ptune.inference.jobs import Recipe
from ptune.serving.process import load_bank
from ptune.serving.settings import ServeSettings

IDS = torch.arange(10, 22).view(2, 6)
OTHER_WEIGHTS = (
    "The adapter {} was trained on {}; the backbone {} has the same sizes, but other weights ({}). "
    "Load {}. To use this backbone nevertheless, set allow_other_backbone=True "
    "(--allow-other-backbone)."
)

pytestmark = pytest.mark.filterwarnings("error::UserWarning")


def refusal(adapter="…", trained_on="…", backbone="…", difference="bert.…[…] is … instead of …"):
    return refused(OTHER_WEIGHTS.format(adapter, trained_on, backbone, difference, trained_on))


def adapter_of(backbone, folder):
    """Save a new adapter of a backbone."""
    # Whether mean pooling is the default would be looked up under the backbone's name.
    config = PromptEncoderConfig(num_virtual_tokens=3, depth="input", pooling="architecture")
    model = PromptModel(backbone, config).eval()
    model.save_pretrained(folder)
    return model


def fine_tuned(backbone, steps=10):
    """A few steps of ordinary fine-tuning."""
    optimizer = torch.optim.AdamW(backbone.parameters(), lr=5e-5)
    for _ in range(steps):
        backbone(IDS[:1], labels=torch.tensor([1])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return backbone


@pytest.fixture
def home(bert_folder, tmp_path):
    """A backbone in a folder of its own, and the folder of an adapter that was trained on it."""
    folder = tmp_path / "bert"
    shutil.copytree(bert_folder, folder)
    adapter_of(load_backbone(str(folder), dtype="float32"), tmp_path / "adapters" / "mail")
    return folder, tmp_path / "adapters" / "mail"


@pytest.fixture
def exchanged(home):
    """As `home`, but the backbone's folder now holds other weights."""
    build("bert", seed=1).bert.save_pretrained(home[0])
    return home


def without_weights(adapter):
    """Make an adapter what an earlier version wrote."""
    file = adapter / "ptune.json"
    content = json.loads(file.read_text())
    del content["backbone"]["weights"]
    file.write_text(json.dumps(content))


# Which backbones are other ones


def test_other_weights_are_refused(kind, tmp_path):
    adapter_of(build(kind), tmp_path / "a")
    other = build(kind, seed=1)
    with refusal(tmp_path / "a", "another model", type(other).__name__, "…[…] is … instead of …"):
        PromptModel.from_pretrained(other, tmp_path / "a")
    model = PromptModel.from_pretrained(other, tmp_path / "a", allow_other_backbone=True)
    assert torch.isfinite(model(IDS).logits).all()


def test_a_fine_tuned_sibling_is_refused(kind, tmp_path):
    adapter_of(build(kind), tmp_path / "a")
    with refusal(difference="…"):
        PromptModel.from_pretrained(fine_tuned(build(kind)).eval(), tmp_path / "a")


def test_a_sibling_whose_last_layer_alone_differs_is_refused(tmp_path):
    adapter_of(build("bert"), tmp_path / "a")
    sibling = build("bert")
    with torch.no_grad():
        sibling.bert.encoder.layer[1].attention.self.query.weight.mul_(1.05)
    with refusal(difference="bert.encoder.layer.1.attention.self.query.weight[…] is … instead …"):
        PromptModel.from_pretrained(sibling, tmp_path / "a")


@pytest.mark.parametrize("trained_in", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("loaded_in", ["float32", "bfloat16", "float16"])
def test_the_data_type_does_not_matter(bert_folder, tmp_path, trained_in, loaded_in):
    adapter_of(load_backbone(str(bert_folder), dtype=trained_in), tmp_path / "a")
    PromptModel.from_pretrained(load_backbone(str(bert_folder), dtype=loaded_in), tmp_path / "a")


@pytest.mark.parametrize("rounded_to", ["bfloat16", "float16"])
def test_a_checkpoint_that_was_rounded_is_the_same_backbone(home, tmp_path, rounded_to):
    copy = tmp_path / "rounded"
    load_backbone(str(home[0]), dtype=rounded_to).save_pretrained(copy)
    PromptModel.from_pretrained(load_backbone(str(copy), dtype="float32"), home[1])


def test_a_copy_in_another_folder_is_the_same_backbone(home, tmp_path):
    home[0].rename(tmp_path / "moved")
    moved = ptune.load(home[1], model=str(tmp_path / "moved"), dtype="float32")
    assert moved.predict_proba(SENTENCES).shape == (8, 2)


@pytest.mark.parametrize("architecture", ["BART", "T5", "ALBERT", "BLOOM"])
def test_tied_and_shared_weights_are_recognised(architecture, tmp_path):
    tokenizer = build_tokenizer(ARCHITECTURES[architecture], SENTENCES)
    backbone = build_model(ARCHITECTURES[architecture], tokenizer)
    backbone.save_pretrained(tmp_path / "backbone")
    model = adapter_of(backbone, tmp_path / "a")
    assert len(model.host.identity["weights"]) == SAMPLES
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "backbone")
    PromptModel.from_pretrained(again, tmp_path / "a")
    with torch.no_grad():
        for p in backbone.parameters():
            p.mul_(1.1)
    with refusal(difference="…[…] is … instead of …"):
        PromptModel.from_pretrained(model.unload(), tmp_path / "a")


def test_new_rows_of_the_embedding_do_not_matter(bert_folder, tmp_path):
    """Resized twice, a backbone has other random rows for its new tokens."""
    backbones = [load_backbone(str(bert_folder), dtype="float32") for _ in range(2)]
    for seed, backbone in enumerate(backbones):
        torch.manual_seed(seed)
        backbone.resize_token_embeddings(403, mean_resizing=False)
    adapter_of(backbones[0], tmp_path / "a")
    PromptModel.from_pretrained(backbones[1], tmp_path / "a")


def test_weights_that_are_not_in_memory_are_not_compared():
    recorded = fingerprint(build("bert"), ())["weights"]
    hollow = build("bert").to("meta")
    assert fingerprint(hollow, ()) == {"weights": {}}
    assert compare(recorded, hollow, ()) is None
    assert compare(recorded, build("bert"), ()) == ""
    assert compare({"nowhere[0]": 1.0, "bert.x": 1.0, "[3]": 0.0}, build("bert"), ()) is None
    place = "bert.pooler.dense.weight"
    assert compare({f"{place}[99999]": 1.0, f"{place}[-1]": 1.0}, build("bert"), ()) is None


def test_samples_come_from_all_layers_and_never_from_the_head(kind):
    backbone = build(kind)
    model = PromptModel(backbone)
    weights = model.host.identity["weights"]
    assert len(weights) == SAMPLES
    sampled = {key.rpartition("[")[0] for key in weights}
    assert sampled == {
        name
        for name, p in backbone.named_parameters()
        if p.ndim > 1 and name not in model.architecture.head_names
    }


# Quantised backbones


def quantised(backbone):
    """Eight bits in the encoder's linear layers, by PyTorch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch announces a successor
        encoder = torch.ao.quantization.quantize_dynamic(backbone.bert.encoder, {nn.Linear})
    backbone.bert.encoder = encoder
    return backbone


def test_of_a_partly_quantised_backbone_the_other_weights_are_compared(tmp_path):
    adapter_of(build("bert"), tmp_path / "a")
    PromptModel.from_pretrained(quantised(build("bert")), tmp_path / "a")
    with refusal():
        PromptModel.from_pretrained(quantised(build("bert", seed=1)), tmp_path / "a")


def labelled_quantised(seed=0, name=None, commit=None):
    """A backbone that says it is quantised, so that its weights do not count."""
    backbone = build("bert", seed)
    backbone.config.quantization_config = {"quant_method": "any"}
    backbone.name_or_path = name or ""
    backbone.config._commit_hash = commit
    return backbone


ONE, TWO = "1" * 40, "2" * 40


def test_a_quantised_backbone_is_compared_by_its_commit(tmp_path):
    adapter_of(labelled_quantised(name="lab/bert", commit=ONE), tmp_path / "a")
    assert Adapter.read(tmp_path / "a").backbone["commit"] == ONE
    PromptModel.from_pretrained(labelled_quantised(1, "lab/bert", ONE), tmp_path / "a")
    trained_on = f"lab/bert at the commit {ONE}"
    with refusal(trained_on=trained_on, difference=f"it is at the commit {TWO} instead of {ONE}"):
        PromptModel.from_pretrained(labelled_quantised(0, "lab/bert", TWO), tmp_path / "a")


def test_a_quantised_backbone_without_a_commit_is_compared_by_its_name(tmp_path):
    adapter_of(labelled_quantised(name="lab/bert"), tmp_path / "a")
    PromptModel.from_pretrained(labelled_quantised(0, "copies/bert"), tmp_path / "a")
    with refusal(
        trained_on="lab/bert",
        backbone="lab/other",
        difference="neither weights nor commits can be compared",
    ):
        PromptModel.from_pretrained(labelled_quantised(0, "lab/other"), tmp_path / "a")


def test_weights_count_and_not_commits_where_both_are_known(tmp_path):
    one, two, other = build("bert"), build("bert"), build("bert", seed=1)
    one.config._commit_hash, two.config._commit_hash = ONE, TWO
    other.config._commit_hash = ONE
    adapter_of(one, tmp_path / "a")
    PromptModel.from_pretrained(two, tmp_path / "a")
    with refusal(trained_on=f"another model at the commit {ONE}"):
        PromptModel.from_pretrained(other, tmp_path / "a")


# Adapters without weights of their backbone


@pytest.mark.parametrize("written_by", ["an earlier version", "peft"])
def test_an_older_adapter_loads_and_its_summary_says_what_is_not_checked(exchanged, written_by):
    _, adapter = exchanged
    assert "48 weights" in describe(adapter)["backbone check"]
    if written_by == "peft":
        (adapter / "ptune.json").unlink()
    else:
        without_weights(adapter)
    assert ptune.load(adapter, dtype="float32").predict(SENTENCES).shape == (8,)
    assert describe(adapter)["backbone check"] == (
        "sizes and name only, because the adapter records no weights of its backbone"
    )


def test_an_older_adapter_on_a_backbone_of_another_name_is_warned_about(home, tmp_path):
    without_weights(home[1])
    shutil.copytree(home[0], tmp_path / "another-bert")
    twin = load_backbone(str(tmp_path / "another-bert"), dtype="float32")
    message = (
        f"The adapter {home[1]} was trained on {home[0]}; the backbone is called "
        f"{twin.name_or_path}. Their sizes agree, but with other weights the predictions are "
        "meaningless."
    )
    with pytest.warns(UserWarning, match=f"^{re.escape(message)}$"):
        PromptModel.from_pretrained(twin, home[1])


# Everywhere an adapter meets a backbone


def model_on(backbone, own=PromptModel):
    """A model with another adapter."""
    config = ptune.peft.PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=4)
    return own(load_backbone(str(backbone), dtype="float32"), config)


ENTRANCES = {
    "load": lambda b, a, o, **k: ptune.load(a, dtype="float32", **k),
    "from_pretrained": lambda b, a, o, **k: PromptModel.from_pretrained(
        load_backbone(str(b), dtype="float32"), a, **k
    ),
    "load_adapter": lambda b, a, o, **k: model_on(b).load_adapter(a, "two", **k),
    "peft": lambda b, a, o, **k: ptune.peft.PeftModel.from_pretrained(
        load_backbone(str(b), dtype="float32"), a, **k
    ),
    "peft's load_adapter": lambda b, a, o, **k: model_on(b, ptune.peft.PeftModel).load_adapter(
        a, "two", **k
    ),
    "peft's auto class": lambda b, a, o, **k: (
        ptune.peft.AutoPeftModelForSequenceClassification.from_pretrained(a, **k)
    ),
    "recipe": lambda b, a, o, **k: Recipe(str(a), dtype="float32", **k).load(),
    "export": lambda b, a, o, **k: export_transformers(a, o, **k),
    "onnx": lambda b, a, o, **k: export_onnx(a, o, **k),
}


@pytest.mark.parametrize("entrance", ENTRANCES)
def test_every_entrance_refuses_other_weights_unless_they_are_allowed(
    exchanged, entrance, tmp_path
):
    folder, adapter = exchanged
    enter = ENTRANCES[entrance]
    with refusal(adapter, folder, folder):
        enter(folder, adapter, tmp_path / "out")
    if entrance != "onnx":  # which takes seconds
        enter(folder, adapter, tmp_path / "out", allow_other_backbone=True)


def test_a_bank_and_a_server_refuse_other_weights_unless_they_are_allowed(exchanged):
    folder, adapter = exchanged
    with pytest.raises(PtuneError, match="the same sizes, but other weights"):
        PromptBank(str(folder), dtype="float32").add("mail", adapter)
    assert (
        "other weights" in PromptBank.from_folder(adapter.parent, dtype="float32").refused["mail"]
    )
    bank = PromptBank.from_folder(
        adapter.parent, dtype="float32", allow_other_backbone=True, memory_budget=0
    )
    assert bank.predict([("mail", SENTENCES[0])])
    settings = ServeSettings(adapter.parent, dtype="float32", allow_other_backbone=True)
    assert list(load_bank(settings)) == ["mail"]


@pytest.mark.parametrize(
    "words", [["predict", "{}", "a text"], ["export", "{}", "{}-out"], ["evaluate", "{}", "--file"]]
)
def test_the_command_refuses_other_weights_unless_they_are_allowed(exchanged, words, capsys):
    folder, adapter = exchanged
    words = [word.format(adapter) for word in words]
    if words[-1] == "--file":
        file = adapter.parent / "labelled.csv"
        file.write_text("text,label\na,LABEL_0\nb,LABEL_1\n")
        words.append(str(file))
    assert call(*words) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert f"the backbone {folder} has the same sizes, but other weights" in error
    assert call(*words, "--allow-other-backbone") == 0
