"""Every private name of another library still exists, and does what ptune relies on."""

import ast
import importlib.metadata
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import huggingface_hub
import pytest
import torch
import transformers
from accelerate import Accelerator, DistributedType
from conftest import build
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainingArguments, trainer_pt_utils

import ptune
from ptune import PtuneError, compat

SOURCE = Path(ptune.__file__).parent
LIBRARIES = {"torch", "transformers", "accelerate", "huggingface_hub", "datasets"}


# Versions


def test_the_suite_runs_with_the_tested_releases_or_says_so():
    newer = compat.untested()
    if newer:
        with pytest.warns(compat.UntestedVersion):
            compat.warn_if_untested()
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            compat.warn_if_untested()


def test_nothing_is_missing_from_the_installed_libraries():
    assert compat.missing() == compat.missing(training=True) == []


@pytest.mark.parametrize(
    ("installed", "warns"),
    [("5.22.1", False), ("5.23.4", False), ("5.24.0.dev0", True), ("6.0.0", True)],
)
def test_a_newer_minor_release_is_warned_about_once_and_not_refused(monkeypatch, installed, warns):
    real = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda n: installed if n == "transformers" else real(n)
    )
    monkeypatch.setattr(compat, "TESTED", {"torch": real("torch"), "transformers": "5.23.0"})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        compat.warn_if_untested()
    assert len(caught) == warns
    if warns:
        assert f"transformers {installed} (tested: 5.23.0)" in str(caught[0].message)
        assert "Every internal that it uses exists" in str(caught[0].message)


def test_the_warning_comes_once_when_backbones_are_first_imported():
    code = """
import warnings
from ptune import compat
compat.TESTED["safetensors"] = "0.1.0"
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import ptune.backbones.loading
    import ptune.inference.classifier
print(sum(issubclass(w.category, compat.UntestedVersion) for w in caught))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "1", done.stderr


def test_the_warning_names_what_a_newer_release_lacks(monkeypatch):
    monkeypatch.setattr(compat, "TESTED", {"transformers": "5.0.0"})
    monkeypatch.delattr(PreTrainedModel, "_supports_sdpa")
    with pytest.warns(compat.UntestedVersion, match="_supports_sdpa .attention runs the eager"):
        compat.warn_if_untested()


def test_what_training_lacks_is_named_when_training_is_imported(monkeypatch, recwarn):
    monkeypatch.setattr(compat, "TESTED", {"transformers": "5.0.0"})
    compat.warn_if_untested(training=True)
    assert not recwarn.list
    monkeypatch.delattr(trainer_pt_utils, "LengthGroupedSampler")
    with pytest.warns(compat.UntestedVersion, match="LengthGroupedSampler .training in several"):
        compat.warn_if_untested(training=True)


# torch


@pytest.mark.skipif(not compat.has_packed_linear(), reason="no bfloat16 in oneDNN here")
def test_a_packed_linear_layer_gives_the_numbers_of_a_plain_one():
    layer, inputs = nn.Linear(48, 32).bfloat16(), torch.randn(5, 7, 48).bfloat16()
    packed = compat.pack_linear(layer.weight.detach(), 1024)
    found = compat.packed_linear(inputs, packed, layer.bias.detach())
    assert torch.equal(found, layer(inputs).detach())


@pytest.mark.parametrize("kernel", [True, False])
def test_the_gradient_of_softmax_is_autograds(monkeypatch, kernel):
    scores = torch.randn(3, 5, 7, dtype=torch.float64, requires_grad=True)
    weights, grads = scores.softmax(-1), torch.randn(3, 5, 7, dtype=torch.float64)
    (expected,) = torch.autograd.grad(weights, scores, grads)
    if not kernel:
        monkeypatch.setattr(torch.ops, "aten", object())
    torch.testing.assert_close(compat.softmax_backward(grads, weights.detach()), expected)


def test_the_version_of_a_tensor_changes_when_it_is_written_to():
    tensor = torch.zeros(3)
    before = compat.version_of(tensor)
    assert compat.version_of(tensor) == before
    tensor.add_(1)
    assert compat.version_of(tensor) != before
    with torch.inference_mode():
        uncounted = torch.zeros(3)
    assert compat.version_of(uncounted) != compat.version_of(uncounted)


# Transformers: attention


def test_attention_is_found_by_name(kind):
    backbone = build(kind)
    backbone.set_attn_implementation("eager")
    assert compat.attention_of(backbone) == "eager"
    assert compat.has_attention_interface(backbone)
    assert compat.supports_sdpa(backbone)


def test_an_architecture_without_the_interface_is_recognised():
    config = transformers.XLNetConfig(vocab_size=50, d_model=16, n_layer=1, n_head=2, d_inner=16)
    assert not compat.has_attention_interface(
        transformers.XLNetForSequenceClassification(config).eval()
    )


@torch.no_grad()
@pytest.mark.parametrize("mask_of", ["eager", "sdpa"])
def test_a_registered_attention_is_called_with_the_masks_it_asked_for(mask_of):
    backbone, masks = build("bert"), []
    ids, mask = torch.arange(8).view(2, 4) + 5, torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    expected = backbone(input_ids=ids, attention_mask=mask).logits

    def attend(module, query, key, value, attention_mask, **kwargs):
        masks.append(attention_mask)
        function = compat.attention_function(mask_of, module)
        return function(module, query, key, value, attention_mask, **kwargs)

    compat.register_attention(f"compat_test_{mask_of}", attend, mask_of)
    backbone.set_attn_implementation(f"compat_test_{mask_of}")
    found = backbone(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(found, expected)
    assert len(masks) == backbone.config.num_hidden_layers
    for given in masks:
        assert given.shape == (2, 1, 4, 4)
        assert given.is_floating_point() == (mask_of == "eager")


@torch.no_grad()
def test_a_causal_mask_is_always_written_out_for_sdpa():
    backbone, masks = build("gpt2"), []

    def attend(module, query, key, value, attention_mask, **kwargs):
        masks.append(attention_mask)
        return compat.attention_function("sdpa", module)(
            module, query, key, value, attention_mask, **kwargs
        )

    compat.register_attention("compat_test_causal", attend, "sdpa")
    backbone.set_attn_implementation("compat_test_causal")
    backbone(input_ids=torch.arange(5).view(1, 5) + 5)
    assert all(mask is not None and mask[0, 0].tril().equal(mask[0, 0]) for mask in masks)


def test_a_layer_without_plain_attention_is_refused_with_a_way_out():
    with pytest.raises(PtuneError, match="attn_implementation='sdpa'"):
        compat.eager_attention(nn.Linear(2, 2))


# Transformers: models


def test_parameters_of_a_checkpoint_are_told_from_new_ones(bert_folder):
    load = transformers.AutoModelForSequenceClassification.from_pretrained
    backbone = load(bert_folder, num_labels=3)
    marks = {name: compat.was_loaded(p) for name, p in backbone.named_parameters()}
    new = {name for name, loaded in marks.items() if not loaded}
    assert {"classifier.weight", "classifier.bias"} <= new
    assert not any(name.startswith("bert.encoder") for name in new)


def test_the_source_of_a_backbone_is_kept_in_its_configuration(tmp_path):
    backbone = build("bert")
    compat.set_source(backbone, "lab/tiny-bert")
    assert backbone.name_or_path == backbone.config.name_or_path == "lab/tiny-bert"


def test_an_optional_file_is_found_or_none(tmp_path):
    (tmp_path / "there.json").write_text("{}")
    assert compat.optional_file(str(tmp_path), "there.json") == tmp_path / "there.json"
    assert compat.optional_file(str(tmp_path), "1_Pooling/config.json") is None
    assert compat.optional_file("nobody/never-heard-of", "config.json") is None  # offline


def switch_checkpointing(model, to):
    """Transformers 5.23 renamed the methods; the old names warn."""
    new = getattr(model, f"activation_checkpointing_{to}", None)
    (new or getattr(model, f"gradient_checkpointing_{to}"))()


def test_checkpointed_layers_recompute_with_the_function_that_was_set():
    backbone, calls = build("bert").train(), []
    layers = compat.checkpointing_layers(backbone)
    assert len(layers) == backbone.config.num_hidden_layers
    switch_checkpointing(backbone, "enable")
    for layer in layers:
        former = compat.checkpointing_function(layer)

        def counted(*args, former=former, layer=layer):
            calls.append(compat.recomputed_layer(args[0]) is layer)
            return former(*args)

        compat.set_checkpointing_function(layer, counted)
    backbone(input_ids=torch.arange(4).view(1, 4) + 5).logits.sum().backward()
    assert calls == [True] * len(layers)


class Wrapper(compat.ModelOverrides, PreTrainedModel):
    supports_gradient_checkpointing = True

    def __init__(self, backbone):
        super().__init__(backbone.config)
        self.backbone, self.switched = backbone, 0

    def _frozen_names(self):
        return {n for n, p in self.named_parameters() if not p.requires_grad}

    def _on_gradient_checkpointing(self):
        self.switched += 1

    def tie_weights(self, *args, **kwargs):
        pass

    def get_input_embeddings(self):
        return self.backbone.get_input_embeddings()

    def forward(self, **inputs):
        return self.backbone(**inputs)


def test_a_wrapper_keeps_its_backbones_attention_and_learns_of_checkpointing():
    backbone = build("bert")
    compat.register_attention("compat_test_kept", lambda *a, **k: None, "eager")
    backbone.set_attn_implementation("compat_test_kept")
    wrapper = Wrapper(backbone)
    assert compat.attention_of(wrapper) == compat.attention_of(backbone) == "compat_test_kept"
    switch_checkpointing(wrapper, "enable")
    switch_checkpointing(wrapper, "disable")
    assert wrapper.switched == 2


def test_trainer_reloads_a_checkpoint_without_the_frozen_part(tmp_path, caplog):
    wrapper = Wrapper(build("bert"))
    for parameter in wrapper.backbone.bert.parameters():
        parameter.requires_grad_(False)
    trained = {n: p.detach() for n, p in wrapper.named_parameters() if p.requires_grad}
    trainer = Trainer(wrapper, TrainingArguments(str(tmp_path), report_to="none"))
    result = wrapper.load_state_dict(trained, strict=False)
    trainer._issue_warnings_after_load(result)
    assert not caplog.records


# Trainer and Accelerate


def test_batches_grouped_by_length_hold_texts_of_like_length():
    dataset = Dataset.from_dict({"input_ids": [[1] * (1 + i % 40) for i in range(400)]})
    order = list(compat.length_grouped_sampler(8, dataset))
    lengths = [len(ids) for ids in dataset["input_ids"]]
    batches = [[lengths[i] for i in order[start : start + 8]] for start in range(0, 400, 8)]
    assert sorted(order) == list(range(400))
    assert sum(max(b) - min(b) for b in batches) < 40 * len(batches) / 4


def test_a_single_process_keeps_its_generator():
    Accelerator()  # as in training
    torch.manual_seed(3)
    before = torch.get_rng_state()
    compat.synchronize_torch_generators()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_thread_with_its_own_state_leaves_that_of_others_alone(tmp_path):
    trainer = Trainer(build("bert"), TrainingArguments(str(tmp_path), report_to="none"))
    gradients = trainer.accelerator.gradient_state

    def train_in_thread():
        with compat.own_accelerate_state():
            other = Trainer(build("bert"), TrainingArguments(str(tmp_path))).accelerator
            other.gradient_state._set_sync_gradients(False)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(train_in_thread).result()
    assert gradients.sync_gradients
    assert trainer.accelerator.state.distributed_type == DistributedType.NO
    assert Accelerator().gradient_state.__dict__ is gradients.__dict__


# The Hub


def test_a_refused_connection_raises_the_error_that_is_caught(monkeypatch):
    error = compat.connection_error()
    assert issubclass(error, Exception)
    assert error is not Exception
    monkeypatch.setattr(huggingface_hub.constants, "is_offline_mode", lambda: False)
    with pytest.raises(error):
        huggingface_hub.get_session().get("http://127.0.0.1:9/nobody-listens")


def test_the_cache_remembers_which_files_a_repository_lacks(tmp_path):
    repository = tmp_path / "models--lab--tiny"
    (repository / ".no_exist" / ("a" * 40)).mkdir(parents=True)
    (repository / ".no_exist" / ("a" * 40) / "ptune.json").touch()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    cache = {"cache_dir": str(tmp_path)}
    assert compat.is_known_missing("lab/tiny", "ptune.json", **cache)
    assert not compat.is_known_missing("lab/tiny", "adapter_config.json", **cache)
    assert not compat.is_known_missing("lab/other", "ptune.json", **cache)


def test_the_revision_of_a_dataset_is_the_commit_it_was_read_at(tmp_path):
    """The folders are laid out as 🤗 Datasets does for what it fetches from the Hub."""
    folder = tmp_path / "nyu-mll___glue" / "mrpc" / "0.0.0" / ("c" * 40)
    folder.mkdir(parents=True)
    own = Dataset.from_dict({"a": [1]})
    fetched = own.map(lambda row: row, cache_file_name=str(folder / "glue-train.arrow"))
    assert compat.dataset_commit(fetched, "nyu-mll/glue") == "c" * 40
    assert compat.dataset_commit(own, "nyu-mll/glue") is None


# The rule


def private_names(file):
    """Names with a leading underscore that a file uses: (line, name)."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Attribute):
            yield node.lineno, node.attr
        elif isinstance(node, ast.keyword) and node.arg:
            yield node.value.lineno, node.arg
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in (
            "getattr",
            "hasattr",
            "setattr",
            "delattr",
        ):
            name = node.args[1]
            if isinstance(name, ast.Constant):
                yield name.lineno, name.value
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in LIBRARIES:
            for alias in node.names:
                yield node.lineno, alias.name


def defined_names(file):
    """Names that a file of ptune defines: functions, classes, attributes, fields."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.id if isinstance(node, ast.Name) else node.attr
        elif isinstance(node, ast.arg):
            yield node.arg


def test_only_compat_uses_private_names_of_other_libraries():
    files = [f for f in SOURCE.rglob("*.py") if f.name != "compat.py"]
    overrides = {name for name in vars(compat.ModelOverrides) if not name.startswith("__")}
    own = {name for file in files for name in defined_names(file)} - overrides
    found = [
        f"{file.relative_to(SOURCE)}:{line} {name}"
        for file in files
        for line, name in private_names(file)
        if name.startswith("_") and not name.startswith("__") and name not in own
    ]
    assert found == []
