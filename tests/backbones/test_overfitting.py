"""Every architecture can fit its training data: 64 random texts with random labels.

A sample of the architectures runs by default, all of them with `make architectures`.
"""

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, build_model, build_tokenizer
from conftest import SENTENCES
from datasets import Dataset
from torch.nn import functional as F
from transformers import DataCollatorWithPadding

from ptune import PromptEncoderConfig, PromptModel
from ptune.backbones.architectures import generates
from ptune.training.defaults import HEAD_RATE, PROMPT_RATES
from ptune.training.features import Features
from ptune.training.steps import ScaledSteps, prompt_scales

TEXTS, STEPS = 64, 200
# Twice the sizes of `ARCHITECTURES`.
WIDTHS = ("hidden_size", "n_embd", "dim", "d_model", "embedding_size", "word_embed_proj_dim")
HEADS = ("head_dim", "d_kv", "rotary_dim")
# GPT-Neo's second layer sees only so many tokens: a prompt before them has no effect there.
WINDOW = {"window_size": 64}
# What differs from the default. At 1e-3, Gemma 3 needs more than 200 steps with an input prompt.
HEAD_RATES = {("Gemma 3", "input"): 3e-3}
SAMPLE = ("BERT", "DeBERTa-v2", "GPT-2", "Qwen 3", "Gemma 3", "BART")


def pytest_generate_tests(metafunc):
    every = metafunc.config.getoption("--architectures")
    metafunc.parametrize("name", list(ARCHITECTURES) if every else SAMPLE)


@pytest.mark.slow
@pytest.mark.parametrize("prompt", ["deep", "input"])
def test_prompt_and_head_fit_random_labels(name, prompt):
    steps, gradients = fitted(name, prompt)
    assert steps is not None, f"not all {TEXTS} texts were right within {STEPS} steps"
    assert all(gradient > 0 for gradient in gradients)


def fitted(name, prompt, **options):
    """After how many steps all texts are right, and the gradient of each part of the prompt."""
    architecture = ARCHITECTURES[name]
    tokenizer = build_tokenizer(architecture, SENTENCES)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    wide = {k: 2 * v for k, v in architecture.options.items() if k in WIDTHS + HEADS}
    wide |= {k: v for k, v in WINDOW.items() if k in architecture.options}
    backbone = build_model(architecture, tokenizer, num_labels=2, **wide)
    torch.manual_seed(1)
    model = PromptModel(backbone, PromptEncoderConfig(depth=prompt)).train()
    kind = "decoder" if generates(backbone.config.model_type) else "encoder"
    rng = np.random.default_rng(0)
    words = sorted({word for sentence in SENTENCES for word in sentence.split()})
    texts = [" ".join(rng.choice(words, 6, replace=False)) for _ in range(TEXTS)]
    train = Dataset.from_dict(dict(tokenizer(texts)))
    labels = torch.tensor(rng.permutation([0, 1] * (TEXTS // 2)))
    collate = DataCollatorWithPadding(tokenizer)
    inputs = collate(list(train))
    rate = {"prompt_learning_rate": PROMPT_RATES[kind, prompt], **options}
    head = HEAD_RATES.get((name, prompt), HEAD_RATE)
    optimizer = torch.optim.AdamW(model.parameter_groups(head, **rate))
    ScaledSteps(optimizer, prompt_scales(model), Features.of(model, train, collate, seed=0))
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, STEPS)
    gradients = None
    for step in range(STEPS):
        logits = model(**inputs).logits
        if (logits.argmax(dim=1) == labels).all():
            return step, gradients
        optimizer.zero_grad()
        F.cross_entropy(logits, labels).backward()
        found = model.prompt_encoder.embedding.weight.grad.split(model.state.mechanism.parts, 1)
        gradients = [float(part.abs().max()) for part in found]
        optimizer.step()
        decay.step()
    return None, gradients
