"""Special ids of a configuration may be unset, out of range or lists: ptune works where they do.

Checkpoints come with all of these. A vocabulary was made smaller than the default ids of the
configuration's class, the padding is -1, a decoder has no padding, a model has several end tokens.
"""

import contextlib
import copy

import pytest
import torch
import transformers
from architectures import ARCHITECTURES, VOCABULARY, build_model, tokenizer_that_pads
from conftest import SENTENCES
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModelForSequenceClassification

from ptune import PromptEncoderConfig, PromptModel, PtuneError

IDS = [f"{name}_token_id" for name in ("pad", "bos", "eos", "sep", "cls", "mask", "decoder_start")]
VALUES = {
    "unset": lambda _: None,
    "out of range": lambda _: VOCABULARY + 1000,
    "negative": lambda _: -1,
    "lists": lambda id_: [2 if id_ is None else id_, 5],
}
PROMPTS = {
    "input": {"depth": "input", "placement": "prefix"},
    "deep": {"depth": "deep"},
}
TEXTS = [SENTENCES[0], "the", SENTENCES[3]]
K = 4


@pytest.fixture(scope="module", params=list(ARCHITECTURES))
def architecture(request):
    return ARCHITECTURES[request.param]


@pytest.fixture(scope="module")
def tokenizer(architecture):
    return tokenizer_that_pads(architecture, SENTENCES)


def model_of(backbone, prompt):
    torch.manual_seed(1)
    options = {"num_virtual_tokens": K, "encoder_reparameterization_type": "NONE", **prompt}
    return PromptModel(backbone, PromptEncoderConfig(**options)).eval()


def changed(config, value):
    """Set the special ids; those that the configuration's class refuses keep their value."""
    for name in IDS:
        try:
            setattr(config, name, value(getattr(config, name, None)))
        except StrictDataclassError:
            continue
    return config


def built_with(architecture, value):
    """A backbone built from a configuration with these ids."""
    options = dict(architecture.options)
    torch.manual_seed(0)
    try:
        config = changed(architecture.config(**options), value)
        return AutoModelForSequenceClassification.from_config(config).eval()
    except AssertionError:  # most embeddings have a row that is the padding's
        config.pad_token_id = 0
        return AutoModelForSequenceClassification.from_config(config).eval()


def edited(architecture, tokenizer, value):
    """A backbone whose configuration was edited after it was built."""
    backbone = build_model(architecture, tokenizer)
    changed(backbone.config, value)
    return backbone


def can_read(backbone, tokenizer):
    """Whether the backbone itself classifies a text."""
    try:
        backbone(**tokenizer(SENTENCES[0], return_tensors="pt"))
    except (TypeError, ValueError, IndexError):
        return False
    return True


@torch.no_grad()
def check(backbone, tokenizer):
    """It predicts, alone and in a batch; where the backbone itself fails, it may be refused."""
    fails = not can_read(backbone, tokenizer)
    for prompt in PROMPTS.values():
        with contextlib.ExitStack() as stack:
            if fails:
                stack.enter_context(refused_with_a_reason())
            model = model_of(copy.deepcopy(backbone), prompt)
            predict_alone_and_together(model, tokenizer)


@contextlib.contextmanager
def refused_with_a_reason():
    """Nothing is raised, or a `PtuneError` that names the id in one sentence."""
    try:
        yield
    except PtuneError as error:
        message = str(error)
    else:
        return
    assert "\n" not in message
    assert 20 < len(message) < 400
    assert "_token_id" in message or "configuration" in message


def predict_alone_and_together(model, tokenizer):
    alone = torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in TEXTS])
    together = model(**tokenizer(TEXTS, return_tensors="pt", padding=True)).logits
    scale = alone.abs().max().item()
    torch.testing.assert_close(together, alone, atol=1e-5 * scale, rtol=0)
    assert (alone[0] - alone[2]).abs().max() > 1e-3 * scale


@pytest.mark.parametrize("state", list(VALUES))
def test_special_ids_that_are_edited(architecture, tokenizer, state):
    check(edited(architecture, tokenizer, VALUES[state]), tokenizer)


@pytest.mark.parametrize("state", ["unset", "out of range", "lists"])
def test_special_ids_that_a_backbone_is_built_with(architecture, tokenizer, state):
    check(built_with(architecture, VALUES[state]), tokenizer)


@pytest.mark.parametrize("prompt", list(PROMPTS))
@pytest.mark.parametrize("rows", [3, 99])
@torch.no_grad()
def test_a_vocabulary_smaller_than_the_default_end_token(rows, prompt):
    config = transformers.GPT2Config(vocab_size=rows, n_embd=32, n_layer=2, n_head=2)
    assert config.eos_token_id == 50256
    torch.manual_seed(0)
    backbone = AutoModelForSequenceClassification.from_config(config).eval()
    model = model_of(backbone, PROMPTS[prompt])
    ids = torch.arange(rows)[-8:]
    alone = model(ids[None]).logits
    padded = torch.cat([ids, torch.zeros(3, dtype=torch.long)])[None]
    mask = (torch.arange(padded.shape[1]) < len(ids)).long()[None]
    torch.testing.assert_close(model(padded, attention_mask=mask).logits, alone)
