"""`ptune.load(…, engine=…)`: the same classifier, whatever computes its logits."""

import os
import shutil
import sys
from dataclasses import replace

import numpy as np
import pandas
import pytest
import torch
from conftest import call, refused
from huggingface_hub import constants
from subjects import SENTENCES, Subject

import ptune
from ptune import PtuneError
from ptune.adapters.adapter import Adapter
from ptune.export import loading
from ptune.export.loading import graph_of
from ptune.inference.engines import ExportedClassifier, load_exported
from ptune.labels import edits

EXACT = {"dtype": "float32", "device": "cpu"}


@pytest.fixture
def adapter(folder_of):
    """An adapter, and the cache that its graph is kept in."""
    folder = folder_of(Subject())
    return folder / "adapter", folder / "cache"


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_an_engine_gives_the_logits_of_pytorch(adapter, engine):
    source, cache = adapter
    classifier = ptune.load(source, engine=engine, cache_dir=cache, dtype="float32", batch_size=2)
    assert isinstance(classifier, ExportedClassifier)
    texts = [*SENTENCES, "the", " ".join(SENTENCES * 3)]
    wanted = ptune.load(source, **EXACT)
    found = np.stack(list(classifier.logits(texts)))
    expected = np.stack(list(wanted.logits(texts)))
    assert np.abs(found - expected).max() <= 1e-3 * np.abs(expected).max()
    for one, other in zip(classifier(texts), wanted(texts), strict=True):
        assert (one.label, one.truncated) == (other.label, other.truncated)
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-4)
    assert [p.truncated for p in classifier(texts)] == [False] * 9 + [True]


@pytest.mark.slow
def test_the_graph_is_exported_once_for_each_content_of_an_adapter(adapter, tmp_path):
    source, cache = adapter
    first = graph_of(source, cache_dir=cache)
    written = (first / "model.onnx").stat().st_mtime_ns
    assert graph_of(source, cache_dir=cache) == first
    assert (first / "model.onnx").stat().st_mtime_ns == written
    assert graph_of(first) == first
    read = Adapter.read(source)
    renamed = replace(read, labels=edits.rename(read.labels, "no", "never"))
    reading = replace(read.reading, pairs=False)
    replace(renamed, reading=reading, text_columns=["mail"]).save(tmp_path / "renamed")
    classifier = ptune.load(tmp_path / "renamed", engine="onnx", cache_dir=cache)
    assert classifier.labels == ["never", "maybe", "yes"]
    table = pandas.DataFrame({"number": range(8), "mail": SENTENCES})
    assert list(classifier.predict(table)) == list(classifier.predict(SENTENCES))
    with pytest.warns(UserWarning, match="was trained on single texts, and these are pairs"):
        classifier.predict([("a", "b")])


def test_auto_is_openvino_once_its_graph_exists(adapter, tmp_path, monkeypatch):
    source, cache = adapter
    graph_of(source, cache_dir=cache)
    found = ptune.load(source, engine="auto", cache_dir=cache, **EXACT)
    assert isinstance(found, ExportedClassifier)
    other = ptune.load(source, engine="auto", cache_dir=tmp_path, **EXACT)
    assert isinstance(other, ptune.PromptClassifier)
    assert not list(tmp_path.iterdir())
    assert list(found.predict(SENTENCES)) == list(other.predict(SENTENCES))
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert isinstance(
        ptune.load(source, engine="auto", cache_dir=cache, **EXACT), ptune.PromptClassifier
    )


@pytest.mark.parametrize(("engine", "package"), [("onnx", "onnxscript"), ("openvino", "openvino")])
def test_a_missing_package_is_named_before_anything_is_exported(
    adapter, tmp_path, monkeypatch, caplog, engine, package
):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(PtuneError, match=rf"{package} is not installed.*'ptune\[{engine}\]'"):
        ptune.load(adapter[0], engine=engine, cache_dir=tmp_path)
    assert "Exporting" not in caplog.text


def test_an_export_opens_on_an_engine(adapter):
    source, cache = adapter
    folder = graph_of(source, cache_dir=cache)
    wanted = list(load_exported(folder, "onnx").predict(SENTENCES))
    assert list(ptune.load(folder, engine="onnx").predict(SENTENCES)) == wanted


def test_the_command_line_runs_an_adapter_on_another_engine(adapter, monkeypatch, capsys):
    source, cache = adapter
    monkeypatch.setattr(constants, "HF_HOME", str(cache))
    words = ("--format", "jsonl", "--dtype", "float32")
    shown = []
    for runtime in ("torch", "onnx"):
        assert call("predict", source, SENTENCES[0], "--runtime", runtime, *words) == 0
        shown.append(capsys.readouterr().out)
    assert '"label":' in shown[0]
    assert shown[0] == shown[1]


def test_a_cache_that_cannot_be_written_is_named_and_what_is_in_it_is_used(adapter, tmp_path):
    source, _ = adapter
    (tmp_path / "file").write_text("")
    with refused(
        "The cache folder …/file/ptune/onnx cannot be written (Not a directory). Set the "
        "environment variable HF_HOME to a folder that can."
    ):
        graph_of(source, cache_dir=tmp_path / "file")
    folder = loading._graph(source, cache_dir=tmp_path)
    folder.mkdir(parents=True)
    folder.with_suffix(".lock").mkdir()  # so that it cannot be locked
    (folder / "ptune_export.json").write_text("{}")
    assert graph_of(source, cache_dir=tmp_path) == folder


def test_an_engine_that_does_not_exist_and_a_device_it_lacks_are_refused(adapter):
    with refused(
        "There is no engine 'tensorrt'. Choose one of torch, onnx, openvino, auto.",
    ):
        ptune.load(adapter[0], engine="tensorrt")
    with refused(
        "The engine onnx runs on the CPU, not on cuda. Omit the device, or use the engine torch.",
    ):
        ptune.load(adapter[0], engine="onnx", device=torch.device("cuda"))


def test_a_changed_backbone_gets_a_graph_of_its_own(adapter, tmp_path, monkeypatch):
    source = shutil.copytree(adapter[0].parent, tmp_path / "own", ignore=lambda *_: ["cache"])
    monkeypatch.setattr("ptune.export.loading.write_onnx", lambda classifier, folder: None)
    named = {"model": str(source / "backbone"), "cache_dir": tmp_path}
    first = graph_of(source / "adapter", **named)
    assert graph_of(source / "adapter", **named) == first
    os.utime(source / "backbone/model.safetensors", (1, 1))
    assert graph_of(source / "adapter", **named) != first
