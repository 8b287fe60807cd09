"""The prompt encoder: parameters in, the k rows of the prompt out.

Module and parameter names, layers and initial values are the reference's (🤗 PEFT,
`PromptEncoder`; the method is "GPT Understands, Too", arXiv 2103.10385), so that a state
dictionary of one loads into the other.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ptune.config import PromptEncoderConfig


class PromptEncoder(nn.Module):
    """k learned vectors: plain rows, and what the other encoders are fed with.

    Args:
        config: With `token_dim` filled in.

    `forward()` takes nothing, because a prompt does not depend on the text, and returns the rows
    as ``[num_virtual_tokens, token_dim]``. It is called once a step, not once an example.
    """

    def __init__(self, config: PromptEncoderConfig) -> None:
        super().__init__()
        assert config.token_dim is not None, "fill in the backbone's sizes with config.for_backbone"
        self.embedding = nn.Embedding(config.num_virtual_tokens, config.token_dim)

    def forward(self) -> Tensor:
        """The prompt's rows, ``[num_virtual_tokens, token_dim]``."""
        return self.embedding.weight

    def start_from(self, rows: Tensor) -> None:
        """Make `rows`, ``[num_virtual_tokens, token_dim]``, the input vectors."""
        with torch.no_grad():
            self.embedding.weight.copy_(rows)


class MLPPromptEncoder(PromptEncoder):
    """Rows through a perceptron with two hidden layers."""

    def __init__(self, config: PromptEncoderConfig) -> None:
        super().__init__(config)
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
        """The prompt's rows, ``[num_virtual_tokens, token_dim]``."""
        return self.mlp_head(self.embedding.weight)


class LSTMPromptEncoder(PromptEncoder):
    """Rows through a bidirectional LSTM, then a perceptron: the paper's own encoder."""

    def __init__(self, config: PromptEncoderConfig) -> None:
        super().__init__(config)
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
        """The prompt's rows, ``[num_virtual_tokens, token_dim]``."""
        hidden, _ = self.lstm_head(self.embedding.weight[None])  # [1, k, 2 * hidden]
        return self.mlp_head(hidden)[0]  # [k, token_dim]


ENCODERS: dict[str, type[PromptEncoder]] = {
    "NONE": PromptEncoder,
    "MLP": MLPPromptEncoder,
    "LSTM": LSTMPromptEncoder,
}


def build_prompt_encoder(config: PromptEncoderConfig) -> PromptEncoder:
    """The encoder that `config.encoder_reparameterization_type` names."""
    return ENCODERS[config.encoder_reparameterization_type](config)
