"""A bank answers every request as the task's own classifier does, whatever else is in the batch."""

import json
import random
import shutil
import threading
import time

import numpy as np
import pytest
import torch
from conftest import SENTENCES
from families import FAMILIES, build_model, build_tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import ptune
from ptune import PromptBank, PromptEncoderConfig, PromptModel, PtuneError
from ptune.backbone import load_backbone
from ptune.forms import RowsInEveryLayer

# Tasks as different as they can be: name, labels, problem type, prompt.
TASKS = {
    "prefix": (["no", "yes"], "single_label_classification", {"num_virtual_tokens": 5}),
    "mean": (
        ["a", "b", "c"],
        "multi_label_classification",
        {"num_virtual_tokens": 3, "placement": "after_first", "pooling": "mean"},
    ),
    "deep": (
        ["score"],
        "regression",
        {"num_virtual_tokens": 4, "depth": "deep"},
    ),
    "shifted": (
        ["p", "q", "r", "s", "t"],
        "single_label_classification",
        {"num_virtual_tokens": 7, "depth": "deep", "shift_positions": True, "pooling": "mean"},
    ),
}
TEXTS = [*SENTENCES[:4], "the", (SENTENCES[4], SENTENCES[5]), ("the lamp", "red")]


def save_adapter(backbone, folder, labels, problem_type, options, seed=0, **info):
    """An adapter with random numbers, none of which is small."""
    torch.manual_seed(seed)
    config = PromptEncoderConfig(encoder_reparameterization_type="NONE", **options)
    model = PromptModel(backbone, config)
    with torch.no_grad():
        model.prompt_encoder.embedding.weight.normal_(std=0.5)
        for _, p in model.head_parameters():
            p.normal_(std=0.3)
    for name, value in info.items():
        setattr(model, name, value)
    backbone.config.id2label = dict(enumerate(labels))
    backbone.config.problem_type = problem_type
    model.save_pretrained(folder)
    model.unload()


def assert_same(found, wanted):
    """Within 1e-5 of the logits' scale."""
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, atol=1e-5 * max(1.0, np.abs(other).max()), rtol=0)


# On every family of backbones.


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_mixed_batch_on_every_family_is_each_task_s_own_answer(family, tmp_path):
    kind = FAMILIES[family]
    tokenizer = build_tokenizer(kind, SENTENCES)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    base = build_model(kind, tokenizer)
    own = {}
    for i, (task, (labels, problem_type, options)) in enumerate(TASKS.items()):
        backbone = build_model(kind, tokenizer, num_labels=len(labels))
        backbone.base_model.load_state_dict(base.base_model.state_dict())
        save_adapter(backbone, tmp_path / task, labels, problem_type, options, seed=i)
        own[task] = ptune.adapter.load(backbone, tmp_path / task)
    bank = PromptBank(base, tokenizer=tokenizer)
    for task in TASKS:
        bank.add(task, tmp_path / task)
    requests = [(task, text) for text in TEXTS for task in TASKS]
    random.Random(0).shuffle(requests)
    runs = []
    base.base_model.register_forward_hook(lambda *_: runs.append(1))
    found = bank.logits(requests)
    assert len(runs) == 1
    wanted = []
    for task, text in requests:
        columns = [text] if isinstance(text, str) else list(text)
        with torch.no_grad():
            output = own[task](**tokenizer(*columns, return_tensors="pt"))
        wanted.append(output.logits[0].numpy())
    assert_same(found, wanted)
