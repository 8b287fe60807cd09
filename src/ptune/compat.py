"""Private names of the libraries underneath: the only file of ptune that touches them.

torch, Transformers, Accelerate and huggingface_hub may change a private name in any release. Each
entry below says what it stands for and what happens without it. All were checked with the releases
in `TESTED`; `tests/test_compat.py` checks them against what is installed. With a newer minor
release, `warn_if_untested` looks for every name and reports what is missing.

Heavy libraries are imported inside the functions, so that `import ptune` stays cheap.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptune.errors import PtuneError

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor, nn
    from torch.utils.data import Sampler
    from transformers import PreTrainedModel

# The newest release that the whole test suite passed with. With Transformers 5.24, that was without
# the tests that run PEFT's prefix tuning, which PEFT 0.21.2 refuses there.
TESTED = {
    "torch": "2.13.0",
    "transformers": "5.24.0",
    "accelerate": "1.15.0",
    "huggingface-hub": "2.4.0",
    "datasets": "5.2.0",
    "tokenizers": "0.23.3",
    "safetensors": "0.8.0",
}


class UntestedVersion(UserWarning):
    """A library is newer than the release that ptune was tested with."""


# Versions


def untested() -> dict[str, str]:
    """Installed libraries that are at least one minor release newer than `TESTED`."""
    installed = {name: importlib.metadata.version(name) for name in TESTED}
    return {n: v for n, v in installed.items() if _minor(v) > _minor(TESTED[n])}


def _minor(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def warn_if_untested(*, training: bool = False) -> None:
    """Warn about untested versions, and name what ptune misses in them. It never refuses one.

    Args:
        training: Look for what only training uses, and warn only if something is missing.
    """
    newer = untested()
    if not newer:
        return
    listed = ", ".join(f"{name} {v} (tested: {TESTED[name]})" for name, v in newer.items())
    gone = missing(training=training)
    if training and not gone:
        return
    found = f"Missing there: {'; '.join(gone)}." if gone else "Every internal that it uses exists."
    warnings.warn(
        f"ptune has not been tested with {listed}. {found} If something fails, install the tested "
        "release or upgrade ptune.",
        UntestedVersion,
        stacklevel=2,
    )


def missing(*, training: bool = False) -> list[str]:
    """The private names that the installed libraries lack, each with the consequence.

    Args:
        training: Those that only training uses, instead of the others. Prediction must not wait
            for these imports.
    """
    checks = _training_names() if training else _names()
    return [f"{name} ({effect})" for owner, name, effect in checks if not hasattr(owner, name)]


def _names() -> list[tuple[Any, str, str]]:
    import huggingface_hub
    import torch
    from accelerate import state
    from torch.utils import _python_dispatch
    from transformers import PreTrainedConfig, PreTrainedModel, modeling_layers

    model, ops = PreTrainedModel, torch.ops
    states = (state.PartialState, state.AcceleratorState, state.GradientState)
    checks: list[tuple[Any, str, str]] = [
        (model, "_can_set_attn_implementation", "deep prompts use embeddings in every layer"),
        (model, "_supports_sdpa", "attention runs the eager kernel"),
        (model, "_set_gradient_checkpointing", "gradient checkpointing fails"),
        (model, "_check_and_adjust_attn_implementation", "building a PromptModel may fail"),
        (model, "_check_and_adjust_experts_implementation", "building a PromptModel may fail"),
        (model, "_save_to_state_dict", "state_dict holds the active adapter's head alone"),
        (model, "_load_from_state_dict", "state_dict holds the active adapter's head alone"),
        (model, "_keys_to_ignore_on_save", "Trainer reports frozen weights as missing"),
        (PreTrainedConfig, "_attn_implementation", "backbones fail to load"),
        (modeling_layers, "GradientCheckpointingLayer", "gradient checkpointing is unavailable"),
        (huggingface_hub, "_CACHED_NO_EXIST", "offline use needs every optional file in the cache"),
        (ops.aten, "_softmax_backward_data", "training on a CPU is slower"),
        (_python_dispatch, "_get_current_dispatch_mode", "predictions fail while a thread exports"),
        *((owner, "_shared_state", "trainings in threads disturb each other") for owner in states),
    ]
    if torch.backends.mkldnn.is_available():
        checks += [(ops.mkldnn, name, "bfloat16 is slower on a CPU") for name in _PACKED_LINEAR]
    return checks


def _training_names() -> list[tuple[Any, str, str]]:
    from transformers import Trainer, trainer_pt_utils

    on_a_full_disk = "checkpoints on a full disk fail with another library's error"
    return [
        (Trainer, "_save_checkpoint", on_a_full_disk),
        (trainer_pt_utils, "LengthGroupedSampler", "training in several processes fails"),
    ]


# torch

_PACKED_LINEAR = ("_linear_pointwise", "_reorder_linear_weight", "_is_mkldnn_bf16_supported")


def has_packed_linear() -> bool:
    """True if oneDNN multiplies bfloat16 with packed weights here. Without it: plain layers."""
    import torch

    ops = torch.ops.mkldnn
    return (
        torch.backends.mkldnn.is_available()
        and all(hasattr(ops, name) for name in _PACKED_LINEAR)
        and bool(ops._is_mkldnn_bf16_supported())
    )


def pack_linear(weight: Tensor, rows: int) -> Tensor:
    """A weight ``[out, in]`` in oneDNN's own order; `rows` is a hint about the inputs."""
    import torch

    return torch.ops.mkldnn._reorder_linear_weight(weight, rows)


def packed_linear(input: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer ``[…, in]`` → ``[…, out]`` with a weight from `pack_linear`."""
    import torch

    # The overload itself: letting PyTorch choose it takes a twentieth of a short text's time.
    product = torch.ops.mkldnn._linear_pointwise.default
    return product(input, packed, bias, "none", [], "none")


def softmax_backward(grads: Tensor, weights: Tensor) -> Tensor:
    """The gradient of softmax over the last dimension, from that of its result `weights`."""
    import torch

    if hasattr(torch.ops.aten, "_softmax_backward_data"):
        return torch.ops.aten._softmax_backward_data(grads, weights, -1, weights.dtype)
    grads = grads * weights
    return grads - weights * grads.sum(dim=-1, keepdim=True)


def has_dispatch_mode() -> bool:
    """True if a mode sees this thread's operations, as that of `torch.export` does."""
    from torch.utils import _python_dispatch

    return _python_dispatch._get_current_dispatch_mode() is not None


def version_of(tensor: Tensor) -> object:
    """Changes whenever the tensor is written to. For a tensor without a count: never equal."""
    return object() if tensor.is_inference() else tensor._version


# Transformers: attention


def attention_of(backbone: PreTrainedModel) -> str:
    """The name of the attention function that a backbone uses (`_attn_implementation`)."""
    return backbone.config._attn_implementation or "eager"


def has_attention_interface(backbone: PreTrainedModel) -> bool:
    """True if the architecture looks its attention function up by name.

    Transformers decides it by searching the source of the class. Without that method, it is false.
    """
    return bool(getattr(backbone, "_can_set_attn_implementation", lambda: False)())


def supports_sdpa(backbone: PreTrainedModel) -> bool:
    """True if PyTorch's fused attention computes what the architecture's own does."""
    return bool(getattr(backbone, "_supports_sdpa", False))


def eager_attention(module: nn.Module) -> Callable[..., Any]:
    """The plain attention function of the architecture that an attention layer belongs to.

    Raises:
        PtuneError: The file that defines the layer has none.
    """
    name = type(module).__module__
    function = getattr(sys.modules[name], "eager_attention_forward", None)
    if function is None:
        raise PtuneError(
            f"{name} has no eager_attention_forward, so ptune cannot replace the attention of "
            f"{type(module).__name__}. Load the backbone with attn_implementation='sdpa', or use "
            "an input prompt."
        )
    return function


def attention_function(kernel: str, module: nn.Module) -> Callable[..., Any]:
    """The function registered as `kernel`, or the architecture's plain one for ``"eager"``."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if kernel == "eager":
        return ALL_ATTENTION_FUNCTIONS.get(kernel) or eager_attention(module)
    return ALL_ATTENTION_FUNCTIONS[kernel]


def register_attention(name: str, function: Callable[..., Any], mask_of: str) -> None:
    """Make an attention function selectable by name, with the masks of `mask_of`.

    Args:
        name: What `set_attn_implementation` takes.
        function: Called like the functions of Transformers.
        mask_of: ``"eager"`` for an additive mask ``[batch, 1, queries, seq]``; ``"sdpa"`` for a
            boolean one that is always there, because PyTorch would otherwise count causality
            from the first key.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask, sdpa_mask

    def full_mask(*args: Any, **kwargs: Any) -> Tensor | None:
        return sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False})

    AttentionInterface.register(name, function)
    AttentionMaskInterface.register(name, eager_mask if mask_of == "eager" else full_mask)


def cache_of(key_values: Iterable[tuple[Tensor, Tensor]]) -> Any:
    """A cache that holds keys and values ``[batch, heads, seq, head_dim]`` for each layer."""
    from transformers import DynamicCache

    cache = DynamicCache()
    for layer, (key, value) in enumerate(key_values):
        cache.update(key, value, layer)
    return cache


# Transformers: models


def was_loaded(parameter: Tensor) -> bool:
    """True if the parameter was loaded from a checkpoint. Without the mark: false."""
    return bool(getattr(parameter, "_is_hf_initialized", False))


def set_source(backbone: PreTrainedModel, name: str, commit: str | None = None) -> None:
    """Record where a backbone came from, for its configuration and for messages."""
    backbone.name_or_path = name
    backbone.config._name_or_path = name
    if commit is not None:
        backbone.config._commit_hash = commit  # as earlier versions of Transformers


def commit_of(backbone: PreTrainedModel) -> str | None:
    """The commit on the Hub that a backbone was loaded from; ``None`` if unknown."""
    known = getattr(backbone.config, "_commit_hash", None)
    return known if isinstance(known, str) else commit_in(backbone.name_or_path)


def commit_in(path: str) -> str | None:
    """The commit in a path of the Hub's cache, `models--owner--name/snapshots/<commit>`."""
    found = re.search(r"[/\\]snapshots[/\\]([0-9a-f]{40})", path)
    return found[1] if found else None


def cached_commit(name: str, revision: str | None, cache_dir: Any) -> str | None:
    """The commit of a model that was just loaded from the Hub; ``None`` for a folder."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        file = try_to_load_from_cache(name, "config.json", revision=revision, cache_dir=cache_dir)
    except HFValidationError:
        return None
    return commit_in(file) if isinstance(file, str) else None


def optional_file(source: str, name: str, **where: Any) -> Path | None:
    """A file of a model, or ``None`` if it has no such file or the Hub cannot be reached."""
    from transformers.utils import cached_file

    try:
        file = cached_file(source, name, **where)
    except OSError:
        return None
    return Path(file) if file else None


def checkpointing_layers(backbone: nn.Module) -> list[Any]:
    """The layers that gradient checkpointing can be switched on for."""
    from transformers import modeling_layers

    layer = getattr(modeling_layers, "GradientCheckpointingLayer", ())
    return [module for module in backbone.modules() if isinstance(module, layer)]


def checkpointing_function(layer: Any) -> Callable[..., Any]:
    """The function that recomputes a layer, set while gradient checkpointing is on."""
    return layer._gradient_checkpointing_func


def set_checkpointing_function(layer: Any, function: Callable[..., Any]) -> None:
    """Recompute a layer with `function` from now on."""
    layer._gradient_checkpointing_func = function


def recomputed_layer(function: partial[Any]) -> Any:
    """The layer that a checkpointing function is asked to recompute.

    Transformers 5.23 passes its forward method with the layer as first argument, earlier releases
    the layer's bound method.
    """
    return function.args[0] if function.args else function.func.__self__  # type: ignore[attr-defined]


def switch_off_checkpointing(model: PreTrainedModel) -> None:
    """Undo `gradient_checkpointing_enable`, with the hook that it leaves on the embedding."""
    # Transformers 5.23 renamed the method; the old name warns.
    off = getattr(model, "activation_checkpointing_disable", None)
    (off or model.gradient_checkpointing_disable)()
    if getattr(model, "_require_grads_hooks", None) or hasattr(model, "_require_grads_hook"):
        model.disable_input_require_grads()


class ModelOverrides:
    """The private methods of `PreTrainedModel` that a wrapper around a model has to replace.

    Inherit from it before `PreTrainedModel`, and define `_frozen_names` and
    `_on_gradient_checkpointing`; and `_tensors_elsewhere` and `_take_elsewhere`, if there are such
    tensors. Without a method in Transformers or torch, its override is never called.
    """

    def _frozen_names(self) -> set[str]:
        """Names of the tensors that no checkpoint holds."""
        raise NotImplementedError

    def _on_gradient_checkpointing(self) -> None:
        """Called after gradient checkpointing has been switched on or off."""
        raise NotImplementedError

    def _tensors_elsewhere(self) -> dict[str, Tensor]:
        """Tensors of a state dictionary that belong to no module, by name."""
        return {}

    def _take_elsewhere(self, state: dict[str, Any], prefix: str) -> list[str]:
        """Take such tensors out of a state dictionary; returns the names of missing ones."""
        return []

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)  # type: ignore[misc]
        for name, tensor in self._tensors_elsewhere().items():
            destination[prefix + name] = tensor if keep_vars else tensor.detach()

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *args: Any) -> None:
        _, _, missing, *_ = args  # names that the caller reports
        missing += self._take_elsewhere(state, prefix)
        super()._load_from_state_dict(state, prefix, *args)  # type: ignore[misc]

    def _check_and_adjust_attn_implementation(self, implementation: Any, **kwargs: Any) -> Any:
        return implementation  # the wrapped model has checked it

    def _check_and_adjust_experts_implementation(self, implementation: Any) -> Any:
        return implementation

    @property
    def _keys_to_ignore_on_save(self) -> set[str]:
        return self._frozen_names()  # `Trainer` accepts a checkpoint without them

    def _set_gradient_checkpointing(self, *args: Any, **kwargs: Any) -> None:
        super()._set_gradient_checkpointing(*args, **kwargs)  # type: ignore[misc]
        self._on_gradient_checkpointing()


# Trainer and Accelerate


class TrainerOverrides:
    """Private methods of `Trainer`: a checkpoint is written within `saving`, and no step is added.

    Inherit from it before `Trainer`, and define `saving`. Without a method in Transformers, its
    override is never called.
    """

    def saving(self) -> AbstractContextManager[None]:
        """The context in which a checkpoint is written."""
        raise NotImplementedError

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with self.saving():
            super()._save_checkpoint(*args, **kwargs)  # type: ignore[misc]

    def _init_training_state(self, max_steps: int, *args: Any, **kwargs: Any) -> tuple[int, int]:
        # `Trainer` counts steps only after one: resumed at the end, it would train another one.
        at: tuple[int, int] = super()._init_training_state(  # type: ignore[misc]
            max_steps, *args, **kwargs
        )
        state: Any = self.state  # type: ignore[attr-defined]
        return (sys.maxsize, 0) if state.global_step >= max_steps else at


def length_grouped_sampler(batch_size: int, dataset: Any) -> Sampler[int]:
    """The order that `Trainer` reads a dataset in with ``train_sampling_strategy``."""
    from transformers.trainer_pt_utils import LengthGroupedSampler

    return LengthGroupedSampler(batch_size, dataset=dataset)


def synchronize_torch_generators() -> None:
    """Give torch's generator the same state in all processes."""
    from accelerate.utils import synchronize_rng_states

    synchronize_rng_states(["torch"])


_replacing_states = threading.Lock()


class _StateOfThread(threading.local):
    """The dictionary that all instances of a class of Accelerate share, or a thread's own one."""

    def __init__(self, shared: dict[str, Any]) -> None:
        self.shared = shared
        self.own: dict[str, Any] | None = None

    def __get__(self, instance: Any, owner: type | None = None) -> dict[str, Any]:
        return self.shared if self.own is None else self.own


@contextmanager
def own_accelerate_state() -> Iterator[None]:
    """Give this thread its own state of Accelerate, so that several threads can train.

    Without it, a new `TrainingArguments` resets the state of every other `Trainer`, and gradient
    accumulation in one thread makes the optimizers of others skip steps.
    """
    states = _accelerate_states()
    before = [state.own for state in states]
    for state in states:
        state.own = {}
    try:
        yield
    finally:
        for state, own in zip(states, before, strict=True):
            state.own = own


def _accelerate_states() -> list[_StateOfThread]:
    from accelerate import state

    owners = (state.PartialState, state.AcceleratorState, state.GradientState)
    with _replacing_states:
        for owner in owners:
            if not isinstance(vars(owner)["_shared_state"], _StateOfThread):
                owner._shared_state = _StateOfThread(owner._shared_state)
    return [vars(owner)["_shared_state"] for owner in owners]


# The Hub


def connection_error() -> type[Exception]:
    """What huggingface_hub's HTTP library raises when a connection fails."""
    from huggingface_hub import errors

    return getattr(errors, "HTTPError", OSError)


def is_known_missing(
    repository: str, path: str, *, revision: str | None = None, cache_dir: str | None = None
) -> bool:
    """True if the cache remembers that a repository has no such file. Otherwise unknown: false."""
    import huggingface_hub

    known = huggingface_hub.try_to_load_from_cache(
        repository, path, revision=revision, cache_dir=cache_dir
    )
    return known is getattr(huggingface_hub, "_CACHED_NO_EXIST", object())


def dataset_commit(dataset: Dataset, repository: str) -> str | None:
    """The commit that a dataset of the Hub was read at; ``None`` if unknown.

    🤗 Datasets records it only in the name of a cache folder,
    `owner___name/configuration/version/commit`.
    """
    owner_and_name = repository.replace("/", "___")
    for file in dataset.cache_files:
        folder = Path(file["filename"]).parent
        if owner_and_name in folder.parts and re.fullmatch("[0-9a-f]{40}", folder.name):
            return folder.name
    return None


# Locks and forks


class ForkLock(type(threading.RLock())):  # type: ignore[misc]
    """A re-entrant lock that `os.fork` waits for, so that a child finds at rest what it guards.

    The child has the lock free. Copies and pickles get a lock of their own. Entering it is one
    step of the interpreter, so that Ctrl-C cannot come between taking and holding it.

    Args:
        level: A thread that holds a lock may wait for one of a higher level, not of a lower one.
            Loading a backbone has level 0, a bank's tables 1, a backbone 2, a tokenizer 3, the
            list of tokenizers 4.
    """

    def __init__(self, level: int) -> None:
        super().__init__()
        self.level = level
        with _registry:
            _fork_locks.add(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return ForkLock, (self.level,)


# Held for a moment only; a thread that holds it never waits for another lock.
_registry = threading.RLock()
_fork_locks: weakref.WeakSet[ForkLock] = weakref.WeakSet()
_held: list[ForkLock] = []


def _before_fork() -> None:
    while True:
        with _registry:
            locks = sorted(_fork_locks, key=lambda lock: lock.level)
        for lock in locks:
            lock.acquire()
        _registry.acquire()
        if set(_fork_locks) <= set(locks):
            _held[:] = locks
            return
        _registry.release()  # a lock was made meanwhile
        for lock in reversed(locks):
            lock.release()


def _after_fork_in_parent() -> None:
    _registry.release()
    for lock in reversed(_held):
        lock.release()
    _held.clear()


def _after_fork_in_child() -> None:
    global _registry
    _registry = threading.RLock()
    for lock in _held:
        lock._at_fork_reinit()
    if _held and (torch := sys.modules.get("torch")):
        # The threads of the parent's OpenMP pool do not exist here, and waiting for them hangs.
        torch.set_num_threads(1)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
