"""Labels of every type: the same values after saving, and from a bank, an export and the server."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import httpx2 as httpx
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Colour, Level, once
from serve import Server

import ptune
from ptune.adapters.adapter import Adapter
from ptune.backbones.loading import load_backbone
from ptune.labels import REGRESSION, Labels, labels_to_json


def arrays(*dtypes):
    return {dtype: np.array([1, 0], dtype=dtype) for dtype in dtypes}


ONE = {
    "text": ["b", "a"],
    "versions": ["1.1", "1.10"],
    "digits": ["7", "007"],
    "integers": [3, -7],
    "large integers": [2**70, 1],
    "booleans": [True, False],
    "floats": [1.0, 2.0],
    "enum": [Colour.BLUE, Colour.RED],
    "integer enum": [Level.HIGH, Level.LOW],
    "mixed": [3, "b"],
    "np.str_": np.array(["x", "y"]),
    "categories": pd.Categorical(["b", "a"], categories=["never", "b", "a"]),
    "nullable": pd.Series([3, 7], dtype="Int16"),
    **arrays("int8", "uint8", "int32", "uint64", "float16", "float32", "float64", "bool"),
}
SEVERAL = {
    "matrix": np.array([[1, 0], [0, 1]]),
    "lists": [["b", "a"], ["b"]],
    "sets of numbers": [{3, 7}, {3}],
    "sets of members": [{Colour.RED}, {Colour.BLUE}],
    "frame": pd.DataFrame({"late": [1, 0], "rude": [1, 1]}),
    "frame with numbers as names": pd.DataFrame({3: [1, 0], 7: [1, 1]}),
}
FORMS = {**ONE, **SEVERAL, "regression": [0.5, 2.25]}


@pytest.fixture(scope="module")
def folders(bert_folder, tmp_path_factory):
    """A folder of adapters, one for each form of labels, and a folder of exports of them."""
    root = once(tmp_path_factory, "labels", lambda root: write(root, bert_folder))
    return root / "adapters", root / "exports"


def write(root, bert_folder):
    made = {}
    for name, y in FORMS.items():
        labels = Labels.learn(y)
        if len(labels) not in made:
            torch.manual_seed(0)
            backbone = load_backbone(
                str(bert_folder), labels=labels.names, problem_type=labels.kind, dtype="float32"
            )
            config = ptune.PromptEncoderConfig(num_virtual_tokens=2, depth="input")
            model = ptune.PromptModel(backbone, config)
            with torch.no_grad():
                for _, parameter in model.head_parameters():
                    parameter.mul_(10)
            made[len(labels)] = model.to_adapter()
        place = root / "adapters" / name.replace(" ", "-")
        replace(made[len(labels)], labels=labels).save(place)
        graph = root / f"{len(labels)} outputs"
        if not graph.exists():
            ptune.export_onnx(place, graph)
        # The graph depends on the number of labels only.
        export = Path(shutil.copytree(graph, root / "exports" / place.name))
        info = json.loads((export / "ptune_export.json").read_text())
        info.pop("label_type", None)
        (export / "ptune_export.json").write_text(json.dumps({**info, **labels_to_json(labels)}))


@pytest.fixture(scope="module")
def bank(folders):
    bank = ptune.PromptBank.from_folder(folders[0], dtype="float32")
    assert not bank.refused
    return bank


@pytest.fixture(scope="module")
def url(folders):
    with Server(folders[0]) as running:
        yield running.url


def same(found, expected):
    """Equal values of equal types, one by one."""
    if isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype
        found, expected = found.tolist(), expected.tolist()
    assert found == expected
    assert [type(v) for v in found] == [type(v) for v in expected]


@pytest.mark.parametrize("name", FORMS)
def test_values_and_types_are_the_same_everywhere(name, folders, bank, url, texts, tmp_path):
    y, task = FORMS[name], name.replace(" ", "-")
    labels = Labels.learn(y)
    first = ptune.load(folders[0] / task, dtype="float32")
    first.save(tmp_path / "again")
    again = ptune.load(tmp_path / "again", dtype="float32")
    exported = ptune.load_exported(folders[1] / task)
    expected = first.predict(texts)
    for classifier in (again, exported, bank[task]):
        same(classifier.classes_, labels.classes)
        found = classifier.predict(texts)
        if labels.kind == REGRESSION:
            np.testing.assert_allclose(found, expected, atol=1e-5)
        else:
            same(found, expected)
            same([classifier(t).label for t in texts], [first(t).label for t in texts])
        assert np.isfinite(classifier.score(texts, expected))
    if labels.is_single:
        # Every label, also those that this classifier happens not to predict.
        same(again.labels_.decode(np.eye(2)[again.labels_.encode(y)]).tolist(), _plain(y))
    answer = httpx.post(f"{url}/tasks/{task}/predict", json={"inputs": texts[0]}).json()
    if labels.kind == REGRESSION:
        assert answer[0]["score"] == pytest.approx(expected[0], abs=1e-3)
        return
    named = dict(zip(labels.names, labels.values, strict=True))
    served = {named[entry["label"]]: entry["score"] for entry in answer}
    assert served == pytest.approx(first(texts[0]).probabilities, abs=0.02)


def _plain(y):
    return np.asarray(y).tolist() if hasattr(y, "dtype") else list(y)


def test_the_files_of_an_adapter_hold_the_types(folders):
    stored = {
        place.name: labels_to_json(Adapter.read(place).labels).get("label_type", "str")
        for place in folders[0].iterdir()
    }
    assert stored["int8"] == "int8"
    assert stored["text"] == stored["regression"] == "str"
    assert stored["mixed"] == ["int64", "str"]
    assert stored["integer-enum"].endswith(":Level")
