"""What a new prompt starts from: random numbers, words, or a trained prompt."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ptune.backbones.architectures import Architecture, generates
from ptune.backbones.loading import load_tokenizer
from ptune.errors import PtuneError
from ptune.prompts.config import PROMPT_TUNING, PromptEncoderConfig
from ptune.prompts.encoder import PromptEncoder, build_prompt_encoder
from ptune.prompts.host import Host
from ptune.prompts.mechanisms import Mechanism
from ptune.prompts.readers import Readers
from ptune.texts import special_before


def new_encoder(host: Host, config: PromptEncoderConfig, mechanism: Mechanism) -> PromptEncoder:
    """An encoder that is to be trained, on the backbone's device."""
    encoder = build_prompt_encoder(config, mechanism.width)
    start = encoder.embedding.weight.detach()
    if config.prompt_init != "random":
        words = _first_words(host.architecture, config).to(host.tokens.weight.device)
        wide = encoder.embedding.embedding_dim == mechanism.width
        bound = host.architecture.max_positions
        if wide and bound is not None and len(words) >= bound:
            raise PtuneError(
                f"{len(words)} virtual tokens cannot start as words: the backbone reads them and "
                f"an end token, and has {bound} positions. Use a smaller num_virtual_tokens, or "
                "prompt_init='random'."
            )
        start = mechanism.from_words(words) if wide else host.tokens.of_words(words)
    assert config.prompt_init_scale is not None  # `fitted` decides it
    start = start.float() * config.prompt_init_scale
    if isinstance(mechanism, Readers):
        start = mechanism.start(start[: config.num_virtual_tokens], config.parts)
    encoder.start_from(start)
    return encoder.to(host.tokens.weight.device)


def fixed_encoder(
    host: Host, config: PromptEncoderConfig, mechanism: Mechanism, embeddings: Tensor
) -> PromptEncoder:
    """An encoder that is a trained prompt itself, on the backbone's device.

    Raises:
        PtuneError: The prompt has another shape than the configuration says.
    """
    host.check_shape(embeddings, config, mechanism)
    encoder = PromptEncoder(config, mechanism.width)
    encoder.start_from(embeddings)
    return encoder.to(host.tokens.weight.device)


def _first_words(architecture: Architecture, config: PromptEncoderConfig) -> Tensor:
    """The tokens from which a prompt is initialised, ``[num_virtual_tokens]``."""
    k = config.num_virtual_tokens
    if config.prompt_init == "vocab":
        return torch.randint(architecture.vocab_rows, (k,))
    name, text = config.base_model_name_or_path, config.prompt_init_text
    options: dict[str, Any] = {"revision": config.revision}
    if config.tokenizer_name_or_path is not None:
        name, options = config.tokenizer_name_or_path, dict(config.tokenizer_kwargs or {})
        options.pop("trust_remote_code", None)
    if name is None:
        raise PtuneError(
            "prompt_init='text' needs the backbone's tokenizer, but this backbone has no name. "
            "Set tokenizer_name_or_path to the folder or Hub id that has its tokenizer."
        )
    tokenizer = load_tokenizer(name, **options)
    # PEFT's prompt tuning starts with the special tokens, too.
    special = config.peft_type == PROMPT_TUNING
    ids = tokenizer(text, add_special_tokens=special)["input_ids"]
    if config.depth == "deep" and generates(architecture.model_type):
        # A decoder attends most to its first token, and has always read this one there.
        ids = special_before(tokenizer) + ids if ids else ids
    if not ids:
        raise PtuneError(
            f"prompt_init_text is {text!r}, which has no tokens. Use a text with words."
        )
    return torch.tensor([ids[i % len(ids)] for i in range(k)])
