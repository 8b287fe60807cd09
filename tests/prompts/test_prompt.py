"""The prompt encoder is PEFT's, layer for layer."""

import peft
import pytest
import torch

from ptune.peft import PromptEncoderConfig
from ptune.prompts.encoder import build_prompt_encoder


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("kind", ["MLP", "LSTM"])
def test_prompt_embeddings_equal_peft_s_with_the_same_weights(kind, layers):
    settings = {
        "num_virtual_tokens": 7,
        "token_dim": 48,
        "encoder_hidden_size": 24,
        "encoder_num_layers": layers if kind == "LSTM" else 2,
        "encoder_reparameterization_type": kind,
    }
    theirs = peft.PromptEncoder(
        peft.PromptEncoderConfig(**settings, num_transformer_submodules=1, task_type="SEQ_CLS")
    )
    ours = build_prompt_encoder(PromptEncoderConfig(**settings), 48)
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(), theirs(torch.arange(7)[None])[0], atol=1e-6, rtol=0)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


def test_the_deep_encoder_is_peft_s_prefix_encoder():
    sizes = {"num_virtual_tokens": 7, "token_dim": 48, "encoder_hidden_size": 24}
    theirs = peft.PrefixEncoder(
        peft.PrefixTuningConfig(
            **sizes, num_layers=3, num_attention_heads=2, prefix_projection=True
        )
    )
    config = PromptEncoderConfig(**sizes, depth="deep", encoder_reparameterization_type="MLP")
    ours = build_prompt_encoder(config, 3 * 2 * 48)
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(), theirs(torch.arange(7)), atol=1e-6, rtol=0)


def test_dropout_of_the_lstm_is_where_peft_has_it():
    config = PromptEncoderConfig(
        num_virtual_tokens=4,
        token_dim=8,
        encoder_reparameterization_type="LSTM",
        encoder_dropout=0.5,
    )
    encoder = build_prompt_encoder(config, 8)
    assert encoder.lstm_head.dropout == 0.5
    assert not torch.equal(encoder(), encoder())
    encoder.eval()
    assert torch.equal(encoder(), encoder())


def test_without_an_encoder_the_prompt_embeddings_are_the_parameters():
    encoder = build_prompt_encoder(
        PromptEncoderConfig(
            num_virtual_tokens=4, token_dim=8, encoder_reparameterization_type="NONE"
        ),
        8,
    )
    assert encoder() is encoder.embedding.weight
