"""Damaged files of adapters: each is refused with a `PtuneError`, or is a valid adapter."""

import hashlib
import json
import os
import random
import resource
import shutil
import struct
import time
import warnings

import numpy as np
import pytest
import torch

import ptune
import ptune.peft
from ptune import PromptEncoderConfig, PromptModel, PtuneError
from ptune.adapters.adapter import Adapter
from ptune.adapters.schema import MAX_VALUE
from ptune.backbones.loading import load_backbone
from ptune.labels import Labels
from ptune.postprocessing import Postprocessing
from ptune.texts import Reading

# `make fuzz` sets more of them, and another seed.
MUTATIONS = int(os.environ.get("PTUNE_FUZZ_MUTATIONS", "300"))
SEED = int(os.environ.get("PTUNE_FUZZ_SEED", "0"))
CONFIG, INFO = "adapter_config.json", "ptune.json"
SAFE, PICKLE = "adapter_model.safetensors", "adapter_model.bin"

VALUES = [
    *(None, True, False, 0, 1, -1, 10**6, 10**30, 10**400, 0.5, -0.0, 1e300, float("nan")),
    *(float("inf"), "", "0", "20", ".", "../x", "~", "a/b", "\x00", "\ud800", "é" * 1000),
    *([], [[]], [None], ["a", 1], ["a"] * 60_000, {}, {"a": {}}, {"labels": 3}),
]


def changed_json(draw, content):
    """A JSON object with a value replaced, removed or added, here or further down."""
    content = dict(content)
    name = draw.choice([*content, "labels", "label_type", "first_layer", "unknown"])
    kind = draw.random()
    if kind < 0.1:
        content.pop(name, None)
    elif kind < 0.3 and isinstance(content.get(name), dict):
        content[name] = changed_json(draw, content[name])
    else:
        content[name] = draw.choice(VALUES)
    return content


def changed_header(draw, data):
    """A safetensors file whose header says something else."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    entry = header[draw.choice([name for name in header if name != "__metadata__"])]
    kind = draw.randrange(6)
    if kind == 0:
        entry["shape"] = draw.choice([[], [0], [-1], [2**63], [2**32, 2**32], [1, 1, 1], ["a"]])
    elif kind == 1:
        entry["dtype"] = draw.choice(["I64", "F8_E4M3", "BOOL", "F16", "F64", "X", None, 3])
    elif kind == 2:
        entry["data_offsets"] = draw.choice([[0, 0], [8, 4], [0, 2**62], [-4, 0], [], None])
    elif kind == 3:
        header[draw.choice(["", "prompt_embeddings", "base_model.x", "é", "a" * 10**6])] = entry
    elif kind == 4:
        header = draw.choice([[], {}, 3, {"__metadata__": {"a": 3}}])
    else:
        header.pop(draw.choice(list(header)))
    text = json.dumps(header).encode()
    if draw.random() < 0.1:
        text = b"[" * 10_000 + text
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def changed_bytes(draw, data):
    """Bytes with some cut, replaced, repeated or inserted."""
    data = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        start = draw.randrange(len(data) + 1)
        stop = min(len(data), start + draw.choice([1, 1, 8, 100]))
        data[start:stop] = draw.choice(
            [b"", b"\x00", b"\xff" * 8, draw.randbytes(stop - start), bytes(data[start:stop]) * 2]
        )
    return bytes(data)


def changed_values(draw, data):
    """A safetensors file with a number of its last tensor replaced."""
    value = draw.choice([float("nan"), float("inf"), -1e30, 3e38, 2e6, 1e5, 0.0])
    return data[:-4] + struct.pack("<f", value)


def mutate(draw, file):
    """Damage a file of an adapter; returns what was done."""
    kind = draw.random()
    if kind < 0.05:
        file.unlink()
        if draw.random() < 0.5:
            file.mkdir()
        return f"removed {file.name}"
    data = file.read_bytes()
    if file.suffix == ".json" and kind < 0.8:
        data = json.dumps(changed_json(draw, json.loads(data))).encode()
    elif file.suffix == ".safetensors" and kind < 0.5:
        data = changed_header(draw, data)
    elif file.suffix == ".safetensors" and kind < 0.6:
        data = changed_values(draw, data)
    else:
        data = changed_bytes(draw, data)
    file.write_bytes(data)
    return f"{file.name}: {data[:300]!r}"


def check(adapter):
    """Is this what an adapter's declared tensors may be?"""
    k = adapter.config.num_virtual_tokens
    assert adapter.prompt_embeddings.ndim == 2
    assert len(adapter.prompt_embeddings) == k
    assert 1 <= len(adapter.labels) <= 50_000
    for tensor in [adapter.prompt_embeddings, *adapter.head.values()]:
        assert tensor.dtype == torch.float32
        assert tensor.ndim > 0
        assert tensor.abs().max() <= MAX_VALUE


@pytest.fixture(scope="module", params=["input", "deep", "pickle"])
def original(request, tmp_path_factory):
    depth = "deep" if request.param == "deep" else "input"
    width = 16 if depth == "input" else 64
    adapter = Adapter(
        PromptEncoderConfig(num_virtual_tokens=4, depth=depth, token_dim=16).resolved(),
        torch.randn(4, width),
        {"classifier.weight": torch.randn(3, 16), "classifier.bias": torch.zeros(3)},
        Labels(("red", "green", "blue")),
        mechanism="input" if depth == "input" else "prefix",
        reading=Reading(128),
        backbone={"model_type": "bert", "vocab_rows": 400, "weights": {"a[0]": 0.5}},
        postprocessing=Postprocessing(scale=np.ones(3), shift=np.zeros(3), facts={"rows": 9}),
    )
    folder = tmp_path_factory.mktemp("fuzz") / request.param
    adapter.save(folder)
    if request.param == "pickle":
        torch.save(adapter.tensors(), folder / PICKLE)
        (folder / SAFE).unlink()
    return folder


def attack(original, folder, count, use):
    """Damage copies of an adapter and use them: each is refused, or used without an error."""
    draw, messages = random.Random(f"{SEED} {original.name}"), []
    use(draw, original)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(count):
        shutil.copytree(original, folder)
        files = draw.sample(sorted(folder.iterdir()), draw.choice([1, 1, 2]))
        done, started = [mutate(draw, file) for file in files], time.process_time()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                use(draw, folder)
        except PtuneError as error:
            messages.append(str(error))
        except BaseException as error:
            raise AssertionError(f"mutation {number}: {done}") from error
        seconds = time.process_time() - started
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak  # kB
        assert (seconds < 5, grown < 1_000_000) == (True, True), f"mutation {number}: {done}"
        shutil.rmtree(folder)
    assert len(messages) > count // 4
    assert all(20 < len(message) < 2000 for message in messages)


def test_a_damaged_file_is_refused_or_still_an_adapter(original, tmp_path):
    attack(
        original,
        tmp_path / "damaged",
        MUTATIONS // 3,
        lambda draw, folder: check(Adapter.read(folder)),
    )


@pytest.mark.parametrize("depth", ["input", "deep"])
def test_a_damaged_adapter_never_changes_the_backbone(depth, bert_folder, tmp_path):
    """With a backbone: `ptune.load`, and resuming on a backbone that others use, too."""

    def weights(model):
        parts = {n: p for n, p in model.state_dict().items() if n.startswith("bert.")}
        return hashlib.sha256(b"".join(parts[n].numpy().tobytes() for n in sorted(parts))).digest()

    shared = load_backbone(str(bert_folder), dtype="float32")
    config = ptune.peft.PromptEncoderConfig(
        num_virtual_tokens=4, depth=depth, encoder_hidden_size=8
    )
    model = PromptModel(shared, config)
    model.save_pretrained(tmp_path / depth)
    model.unload()
    before = weights(shared)

    def use(draw, folder):
        model = None
        try:
            if draw.random() < 0.3:
                model = PromptModel.from_pretrained(shared, folder, is_trainable=True)
            else:
                name = draw.choice([None, str(bert_folder)])
                classifier = ptune.load(folder, model=name, dtype="float32", device="cpu")
                model = classifier.prompt_model_
                assert np.isfinite(next(classifier.logits("where is my parcel?"))).all()
            check(model.to_adapter())
        finally:
            assert weights(model.unload() if model else shared) == before

    attack(tmp_path / depth, tmp_path / "damaged", 50 if MUTATIONS == 300 else 150, use)
