"""Masked language models as classifiers: what they predict at the mask token, for a few words only.

Transformers' masked language models end in a projection of every position to the whole vocabulary.
Here only the mask's position goes through the last part of the model, and the projection has one
row for each label. What comes before it (a dense layer, GELU and LayerNorm in BERT) stays as it is.
"""

from __future__ import annotations

from functools import cache, partial, wraps
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.loss.loss_utils import ForSequenceClassificationLoss
from transformers.modeling_outputs import SequenceClassifierOutput

from ptune import compat
from ptune.backbones.architectures import first_with
from ptune.errors import PtuneError


def read_at_mask(model: PreTrainedModel, labels: int, mask_token: int | None) -> PreTrainedModel:
    """Turn a masked language model into a classifier, in place. Its new last layer is random.

    Args:
        model: From `AutoModelForMaskedLM`.
        labels: Number of labels.
        mask_token: Id of the tokenizer's mask token.

    Raises:
        PtuneError: It has no mask token, or no trained head; or its projection is out of reach.
    """
    name = model.name_or_path
    if mask_token is None:
        raise PtuneError(
            f"The tokenizer of {name} has no mask token, so a template cannot have {{mask}}. "
            "Choose another backbone, or a template without it."
        )
    inside = {id(p) for p in model.base_model.parameters()}
    outside = {n: p for n, p in model.named_parameters() if id(p) not in inside}
    if missing := [n for n, p in outside.items() if not compat.was_loaded(p)]:
        raise PtuneError(
            f"The checkpoint {name} has no masked-language-model head ({missing[0]} is missing), "
            "so it cannot fill a gap. Choose a pretrained masked language model, such as "
            "roberta-base, or a template without {mask}."
        )
    old: Any = model.get_output_embeddings()
    path = next((n for n, m in model.named_modules() if m is old), None)
    vocabulary = model.config.get_text_config().vocab_size
    is_projection = isinstance(old, nn.Linear) and old.out_features == vocabulary
    if path is None or not is_projection or model.config.is_encoder_decoder:
        raise PtuneError(
            f"{type(model).__name__} does not end in a layer with one row for each word, so its "
            "rows cannot start a head. Choose another backbone, or a template without {mask}."
        )
    own = {"dtype": old.weight.dtype, "device": old.weight.device}
    model.set_submodule(path, nn.Linear(old.in_features, labels, **own))
    # BERT and others keep the vocabulary's bias once more, next to the projection.
    parent = model.get_submodule(path.rpartition(".")[0])
    if isinstance(getattr(parent, "bias", None), nn.Parameter):
        del parent.bias
    model.__class__ = _reading(type(model))  # type: ignore[arg-type]
    model.ptune_mask_token = mask_token
    model.base_model.register_forward_hook(partial(_keep_mask, mask_token), with_kwargs=True)
    return model


def _keep_mask(
    mask_token: int, base_model: nn.Module, args: tuple[Any, ...], inputs: Any, output: Any
) -> Any:
    """Forward hook that keeps the hidden state ``[batch, 1, hidden]`` at the mask."""
    ids: Tensor = inputs["input_ids"] if "input_ids" in inputs else args[0]
    states = output.last_hidden_state
    at = first_with(ids, mask_token)[:, :, None]  # [batch, 1, 1]
    output.last_hidden_state = states.gather(1, at.expand(-1, 1, states.shape[2]))
    return output


@cache
def _reading(masked: Any) -> Any:
    """The class of a masked language model that returns logits ``[batch, num_labels]``."""

    class Reading(masked):
        _tied_weights_keys: ClassVar[Any] = {}

        @wraps(masked.forward)
        def forward(self, *args: Any, labels: Tensor | None = None, **inputs: Any) -> Any:
            output = super().forward(*args, **inputs)
            logits, loss = output.logits[:, 0], None
            if labels is not None:
                loss = ForSequenceClassificationLoss(labels, logits, self.config)
            return SequenceClassifierOutput(
                loss=loss,
                logits=logits,
                hidden_states=output.hidden_states,
                attentions=output.attentions,
            )

        def __reduce_ex__(self, protocol: Any) -> Any:
            return _blank, (masked,), self.__dict__

    # Transformers looks at the file of the class.
    for attribute in ("__name__", "__qualname__", "__module__"):
        setattr(Reading, attribute, getattr(masked, attribute))
    return Reading


def _blank(masked: Any) -> Any:
    own = _reading(masked)
    return own.__new__(own)
