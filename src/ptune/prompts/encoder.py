"""The prompt encoder: parameters in, the prompt out.

Module and parameter names, layers and initial values are the reference's (🤗 PEFT's
`PromptEncoder` and `PrefixEncoder`; the methods are "GPT Understands, Too", arXiv 2103.10385, and
P-tuning v2, arXiv 2110.07602), so that a state dictionary of one loads into the other.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ptune.prompts.config import PromptEncoderConfig


class PromptEncoder(nn.Module):
    """k learned vectors: the prompt itself, and what the other encoders are fed with.

    Args:
        config: With `token_dim` filled in.
        width: Numbers a virtual token has; see `ptune.prompts.mechanisms`. An input
            prompt is `token_dim` wide, and its vectors are called rows.

    `forward()` takes nothing, because a prompt does not depend on the text, and returns the
    prompt as ``[num_virtual_tokens, width]``. It is called once a step, not once an example.
    """

    def __init__(self, config: PromptEncoderConfig, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.num_virtual_tokens, width)

    def forward(self) -> Tensor:
        """The prompt, ``[num_virtual_tokens, width]``."""
        return self.embedding.weight

    def start_from(self, rows: Tensor) -> None:
        """Make `rows`, as wide as the encoder's input vectors, those vectors."""
        with torch.no_grad():
            self.embedding.weight.copy_(rows)


class MLPPromptEncoder(PromptEncoder):
    """Rows through a perceptron with two hidden layers."""

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
        """The prompt's rows, ``[num_virtual_tokens, token_dim]``."""
        return self.mlp_head(self.embedding.weight)


class LSTMPromptEncoder(PromptEncoder):
    """Rows through a bidirectional LSTM, then a perceptron: the paper's own encoder."""

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
        """The prompt's rows, ``[num_virtual_tokens, token_dim]``."""
        hidden, _ = self.lstm_head(self.embedding.weight[None])  # [1, k, 2 * hidden]
        return self.mlp_head(hidden)[0]  # [k, token_dim]


class MLPPrefixEncoder(PromptEncoder):
    """Vectors of `token_dim` numbers through one hidden layer: P-tuning v2's reparameterisation."""

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
    ("deep", "MLP"): MLPPrefixEncoder,
}


def build_prompt_encoder(config: PromptEncoderConfig, width: int) -> PromptEncoder:
    """The encoder that the configuration names, for a prompt of `width` numbers a token."""
    return ENCODERS[config.depth, config.encoder_reparameterization_type](config, width)
