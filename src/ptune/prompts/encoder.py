"""The prompt encoder: turns trained parameters into a prompt.

Module names, parameter names, layers and initial values are those of `PromptEncoder` and
`PrefixEncoder` in 🤗 PEFT, so a state dict of one loads into the other. The methods are from
"GPT Understands, Too" (arXiv 2103.10385) and P-tuning v2 (arXiv 2110.07602).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ptune.prompts.config import PromptEncoderConfig


class PromptEncoder(nn.Module):
    """Learned vectors that are the prompt. Subclasses transform them into the prompt.

    A prompt does not depend on the text, so `forward()` takes no arguments and is called once
    per step. It returns the prompt, ``[config.rows, width]``: one row per virtual token, and for a
    reader those of its low-rank layers.

    Args:
        config: With `token_dim` filled in.
        width: Numbers per virtual token; see `ptune.prompts.mechanisms`. For an input prompt this
            is `token_dim`.
    """

    def __init__(self, config: PromptEncoderConfig, width: int) -> None:
        super().__init__()
        start = torch.empty(config.rows, width)
        if len(start):  # torch warns about none
            nn.init.normal_(start)
        self.embedding = nn.Embedding.from_pretrained(start, freeze=False)

    def forward(self) -> Tensor:
        """The prompt, ``[rows, width]``."""
        return self.embedding.weight

    def start_from(self, vectors: Tensor) -> None:
        """Set the learned vectors, ``[rows, embedding_dim]``."""
        with torch.no_grad():
            self.embedding.weight.copy_(vectors)


class MLPPromptEncoder(PromptEncoder):
    """An input prompt from a perceptron with two hidden layers."""

    def __init__(self, config: PromptEncoderConfig, width: int) -> None:
        super().__init__(config, width)
        dim = self.embedding.embedding_dim
        hidden = config.encoder_hidden_size or dim
        self.mlp_head = nn.Sequential(
            nn.Linear(dim, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, dim),
        )

    def forward(self) -> Tensor:
        """The prompt, ``[num_virtual_tokens, token_dim]``."""
        return self.mlp_head(self.embedding.weight)


class LSTMPromptEncoder(PromptEncoder):
    """An input prompt from a bidirectional LSTM and a perceptron: the encoder of p-tuning v1."""

    def __init__(self, config: PromptEncoderConfig, width: int) -> None:
        super().__init__(config, width)
        dim = self.embedding.embedding_dim
        hidden = config.encoder_hidden_size or dim
        self.lstm_head = nn.LSTM(
            input_size=dim,
            hidden_size=hidden,
            num_layers=config.encoder_num_layers,
            dropout=config.encoder_dropout,
            bidirectional=True,
            batch_first=True,
        )
        self.mlp_head = nn.Sequential(
            nn.Linear(hidden * 2, hidden * 2), nn.ReLU(), nn.Linear(hidden * 2, dim)
        )

    def forward(self) -> Tensor:
        """The prompt, ``[num_virtual_tokens, token_dim]``."""
        hidden, _ = self.lstm_head(self.embedding.weight[None])  # [1, k, 2 * hidden]
        return self.mlp_head(hidden)[0]  # [k, token_dim]


class MLPPrefixEncoder(PromptEncoder):
    """A deep prompt from one hidden layer: the reparameterisation of P-tuning v2."""

    def __init__(self, config: PromptEncoderConfig, width: int) -> None:
        assert config.token_dim is not None, "fill in the backbone's sizes with config.for_backbone"
        super().__init__(config, config.token_dim)
        hidden = config.encoder_hidden_size or config.token_dim
        self.transform = nn.Sequential(
            nn.Linear(config.token_dim, hidden), nn.Tanh(), nn.Linear(hidden, width)
        )

    def forward(self) -> Tensor:
        """The prompt, ``[num_virtual_tokens, width]``."""
        return self.transform(self.embedding.weight)


ENCODERS: dict[tuple[str, str], type[PromptEncoder]] = {
    ("input", "NONE"): PromptEncoder,
    ("input", "MLP"): MLPPromptEncoder,
    ("input", "LSTM"): LSTMPromptEncoder,
    ("deep", "NONE"): PromptEncoder,
    ("none", "NONE"): PromptEncoder,
    ("deep", "MLP"): MLPPrefixEncoder,
    ("reader", "NONE"): PromptEncoder,
}


def build_prompt_encoder(config: PromptEncoderConfig, width: int) -> PromptEncoder:
    """Build the configured encoder, for a prompt with `width` numbers per virtual token."""
    return ENCODERS[config.depth, config.encoder_reparameterization_type](config, width)
