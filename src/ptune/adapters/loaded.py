"""`AdapterSet`: several adapters on one backbone, of which each thread uses one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ptune import compat
from ptune.adapters.adapter import Adapter, adapter_of
from ptune.adapters.fit import check_fits
from ptune.backbones.architectures import Architecture
from ptune.backbones.cpu import is_traced
from ptune.backbones.loading import loading, smallest
from ptune.errors import PtuneError, cut
from ptune.files import is_below
from ptune.labels import Labels
from ptune.postprocessing import RAW, Postprocessing
from ptune.prompts.config import PromptEncoderConfig
from ptune.prompts.encoder import PromptEncoder
from ptune.prompts.heads import Head
from ptune.prompts.host import Host
from ptune.prompts.mechanisms import Mechanism
from ptune.prompts.start import fixed_encoder, new_encoder
from ptune.texts import Reading

_HEADS = "heads."  # before the name of an adapter, in a state dictionary


@dataclass
class AdapterState:
    """One adapter of a model, without its prompt encoder.

    Attributes:
        config: The prompt's configuration.
        mechanism: How the prompt acts inside the backbone.
        head: Parameters and labels.
        reading: How the caller reads texts, with the user's limit on their length.
        trains: Whether it trains while it is active.
        head_trains: Whether its head then trains too.
        labels: The labels of a saved adapter, with the types of their values.
        postprocessing: What was fitted to a saved adapter that does not train.
        text_columns: As in `Adapter`.
    """

    config: PromptEncoderConfig
    mechanism: Mechanism
    head: Head
    reading: Reading = field(default_factory=Reading)
    trains: bool = True
    head_trains: bool = True
    labels: Labels | None = None
    postprocessing: Postprocessing = RAW
    text_columns: list[str] | None = None

    def take(self, saved: Adapter, *, trains: bool) -> None:
        """Keep of a saved adapter what is neither prompt nor head, to save it again."""
        self.reading, self.labels = saved.reading, saved.labels
        self.text_columns = saved.text_columns
        self.postprocessing = RAW if trains else saved.postprocessing


class _ThreadChoice(threading.local):
    """The adapter that a thread has chosen, and whether it has disabled all adapters.

    Args:
        by_thread: What each thread has chosen; shared by all threads.
    """

    disabled: bool = False

    def __init__(self, by_thread: WeakKeyDictionary[threading.Thread, str]) -> None:
        self.by_thread = by_thread

    @classmethod
    def new(cls) -> _ThreadChoice:
        """No thread has chosen anything."""
        return cls(WeakKeyDictionary())

    @property
    def adapter(self) -> str | None:
        """The adapter that the calling thread has chosen."""
        return self.by_thread.get(threading.current_thread())

    def choose(self, name: str) -> None:
        """Choose an adapter for the calling thread."""
        self.by_thread[threading.current_thread()] = name

    def rename(self, name: str, new_name: str) -> None:
        """Every thread that has chosen an adapter keeps it under its new name."""
        for thread, chosen in list(self.by_thread.items()):
            if chosen == name:
                self.by_thread[thread] = new_name

    def of_others(self) -> set[str]:
        """The adapters that running threads have chosen."""
        return {name for thread, name in list(self.by_thread.items()) if thread.is_alive()}

    def __reduce__(self) -> tuple[Any, ...]:
        return _ThreadChoice.new, ()

    def __deepcopy__(self, memo: dict[int, Any]) -> _ThreadChoice:
        return _ThreadChoice.new()


class AdapterSet(compat.ModelOverrides, PreTrainedModel):
    """Several adapters on one backbone. Each thread uses one of them.

    `set_adapter` applies to the calling thread, and to threads that have never called it. `config`
    and the backbone's installed head follow the latest call. A thread whose adapter was deleted
    must choose another one.
    """

    def __init__(self, host: Host, adapter_name: str) -> None:
        super().__init__(host.backbone.config)
        self.host, self.backbone = host, host.backbone
        self._choice = _ThreadChoice.new()
        self._default_adapter = adapter_name
        self.adapters: dict[str, AdapterState] = {}
        self.prompt_encoders = nn.ModuleDict()

    @property
    def architecture(self) -> Architecture:
        """What is known about the backbone."""
        return self.host.architecture

    @property
    def active_adapter(self) -> str:
        """The adapter that this thread uses.

        Raises:
            PtuneError: The one that it has chosen was deleted.
        """
        if is_traced():
            return self._default_adapter
        own = self._choice.adapter
        if own is not None and own not in self.adapters:
            raise PtuneError(
                f"The adapter {own!r}, which this thread has chosen, was deleted. Choose another "
                f"one (set_adapter): {', '.join(self.adapters)}."
            )
        return own or self._default_adapter

    @property
    def state(self) -> AdapterState:
        """The active adapter's state."""
        return self.adapters[self.active_adapter]

    @property
    def prompt_config(self) -> PromptEncoderConfig:
        """The active adapter's configuration."""
        return self.state.config

    @property
    def prompt_encoder(self) -> PromptEncoder:
        """The active adapter's encoder."""
        encoder = self.prompt_encoders[self.active_adapter]
        assert isinstance(encoder, PromptEncoder)
        return encoder

    @property
    def max_length(self) -> int | None:
        """The user's limit on a text's length, in tokens. It is saved with the adapter."""
        return self.state.reading.max_text_tokens

    @max_length.setter
    def max_length(self, length: int | None) -> None:
        self.state.reading = replace(self.state.reading, max_text_tokens=length)

    def max_text_tokens(self, tokenizer: PreTrainedTokenizerBase | None = None) -> int | None:
        """The longest text that fits with the prompt, in tokens, including special tokens.

        ``None``: no limit.
        """
        own = None if tokenizer is None else tokenizer.model_max_length
        return smallest(self.max_text_positions, self.max_length, own)

    @property
    def max_text_positions(self) -> int | None:
        """How many of the backbone's positions the prompt leaves for a text. ``None``: no limit."""
        bound = self.architecture.max_positions
        taken = self.state.mechanism.positions_of(self.prompt_config)
        return None if bound is None else bound - taken

    def reading(self, tokenizer: PreTrainedTokenizerBase) -> Reading:
        """How the active adapter's texts are read, with the longest text that fits."""
        return replace(self.state.reading, max_text_tokens=self.max_text_tokens(tokenizer))

    def add_adapter(self, name: str, config: PromptEncoderConfig) -> None:
        """Add a new prompt with a copy of the backbone's original head, without activating it.

        Raises:
            PtuneError: The name is in use, or the prompt does not fit.
        """
        self._check_new_name(name)
        with loading():
            self._put(name, config)
        self._freeze_inactive()

    def load_adapter(
        self,
        source: Any,
        adapter_name: str,
        *,
        is_trainable: bool = False,
        allow_other_backbone: bool = False,
        **where: Any,
    ) -> None:
        """Add a saved adapter without activating it.

        It can have other labels than the active adapter, and another number of labels.

        Args:
            source: A folder, a repository on the Hub, or an `Adapter`.
            adapter_name: Its name in this model.
            is_trainable: Whether it trains while it is active. It has no prompt encoder.
            allow_other_backbone: As for `from_adapter`.
            **where: As for `Adapter.read`.

        Raises:
            PtuneError: There is no such adapter, or it does not fit. The model is then unchanged.
        """
        self._check_new_name(adapter_name)
        adapter = adapter_of(source, **where)
        check_fits(adapter, self.host, allow_other_backbone=allow_other_backbone)
        config = replace(adapter.config, inference_mode=not is_trainable)
        if is_trainable:
            config = replace(config, encoder_reparameterization_type="NONE")
        head = Head.of(adapter.head, adapter.labels)
        with loading():
            self._put(adapter_name, config, adapter.prompt_embeddings, adapter.mechanism, head)
        state = self.adapters[adapter_name]
        state.trains = is_trainable
        state.take(adapter, trains=is_trainable)
        self._freeze_inactive()

    def set_adapter(self, name: str) -> None:
        """Make another adapter active: its prompt, head and labels.

        This applies to the calling thread, and to threads that have never called `set_adapter`.

        Raises:
            PtuneError: There is no adapter with this name, or the backbone was restored (unload).
        """
        self.host.check_in_use()
        self._check_known(name)
        with self.host.passes.lock:
            self._choice.choose(name)
            if name == self._default_adapter:
                self._freeze_inactive()
                return
            self._default_adapter = name
            self.host.heads.install(self.adapters[name].head)
            for parameter in self.adapters[name].head.parameters.values():
                parameter.grad = None
            self._freeze_inactive()
            self.train(self.training)

    def rename_adapter(self, name: str, new_name: str) -> None:
        """Rename an adapter.

        Raises:
            PtuneError: There is no adapter with this name, or the new name is in use.
        """
        self._check_known(name)
        self._check_new_name(new_name)
        with self.host.passes.lock:
            self.adapters[new_name] = self.adapters[name]
            self.prompt_encoders[new_name] = self.prompt_encoders[name]
            if self._default_adapter == name:
                self._default_adapter = new_name
            self._choice.rename(name, new_name)
            del self.adapters[name], self.prompt_encoders[name]

    def delete_adapter(self, name: str) -> None:
        """Remove an adapter that is not active.

        Another thread that has chosen it must choose another one.

        Raises:
            PtuneError: There is no adapter with this name, or it is active.
        """
        self._check_known(name)
        if name in (self.active_adapter, self._default_adapter):
            raise PtuneError(
                f"The adapter {name!r} is active. Activate another one first (set_adapter), or "
                "restore the backbone (unload)."
            )
        with self.host.passes.lock:
            del self.adapters[name], self.prompt_encoders[name]

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Within the context, this thread uses the backbone without a prompt, with its own head."""
        before = self._choice.disabled
        self._choice.disabled = True
        try:
            yield
        finally:
            self._choice.disabled = before

    # State dictionaries. The installed head is part of the backbone, and the others are not.

    def _tensors_elsewhere(self) -> dict[str, Tensor]:
        return self._other_heads()

    def _other_heads(self) -> dict[str, Tensor]:
        with self.host.passes.lock:
            return {
                f"{_HEADS}{name}.{parameter}": tensor
                for name, state in self.adapters.items()
                if state.head is not self.host.heads.installed
                for parameter, tensor in state.head.parameters.items()
            }

    @torch.no_grad()
    def _take_elsewhere(self, state: dict[str, Any], prefix: str) -> list[str]:
        start = prefix + _HEADS
        given = {
            key.removeprefix(start).partition(".")[0] for key in state if key.startswith(start)
        }
        # Another adapter may have been active. Then its head was the backbone's.
        active = [name for name in self.adapters if name not in given]
        installed = self.host.heads.installed
        own = [name for name, adapter in self.adapters.items() if adapter.head is installed]
        if len(active) == 1 and own and own[0] in given:
            for parameter in self.architecture.head_names:
                inside, outside = f"{prefix}backbone.{parameter}", f"{start}{own[0]}.{parameter}"
                if inside in state and outside in state:
                    state[f"{start}{active[0]}.{parameter}"] = state[inside]
                    state[inside] = state.pop(outside)
        missing = []
        for name, tensor in self._other_heads().items():
            if (found := state.get(prefix + name)) is None:
                missing.append(prefix + name)
            elif found.shape == tensor.shape:
                tensor.copy_(state.pop(prefix + name))
        return missing

    def _put(
        self,
        name: str,
        config: PromptEncoderConfig,
        embeddings: Tensor | None = None,
        mechanism: str | None = None,
        head: Head | None = None,
    ) -> None:
        """Add an adapter. A missing prompt is initialised; a missing head is the backbone's."""
        if not isinstance(config, PromptEncoderConfig):
            raise PtuneError(
                f"The configuration is {type(config).__name__}; expected a PromptEncoderConfig, "
                "such as PromptEncoderConfig(num_virtual_tokens=20)."
            )
        self.host.check_in_use()
        config = self.host.fitted(config)
        width = None if embeddings is None else embeddings.shape[1]
        own = self.host.mechanism_for(config, mechanism, width)
        if embeddings is None:
            encoder = new_encoder(self.host, config, own)
        else:
            encoder = fixed_encoder(self.host, config, own, embeddings)
        head = head or self.host.heads.new(self.host.means_read(config))
        state = AdapterState(config, own, head)
        with self.host.passes.lock:
            self.prompt_encoders[name], self.adapters[name] = encoder, state

    def _check_known(self, name: str) -> None:
        if name not in self.adapters:
            raise PtuneError(
                f"There is no adapter {name!r}. The adapters are: {', '.join(self.adapters)}."
            )

    def _check_new_name(self, name: str) -> None:
        if name in self.adapters:
            raise PtuneError(f"There is already an adapter {name!r}. Choose another name.")
        # The last ones are taken by what holds the encoders.
        if not isinstance(name, str) or not name or "." in name or hasattr(nn.ModuleDict(), name):
            raise PtuneError(
                f"An adapter cannot be called {name!r}. Choose a name that is not empty, contains "
                "no dots and is no attribute of PyTorch's modules."
            )
        # It is saved in a folder of that name, next to the others.
        if not is_below(name):
            raise PtuneError(
                f"An adapter cannot be called {cut(name, 80)!r}: it is saved in a folder of that "
                "name. Choose a short name that is no absolute path."
            )

    def _freeze_inactive(self) -> None:
        """Train only adapters that a thread uses, and only if they are trainable."""
        with self.host.passes.lock:  # others add, choose and delete adapters meanwhile
            used = {self._default_adapter, *self._choice.of_others()}
            for name, state in self.adapters.items():
                self.prompt_encoders[name].requires_grad_(name in used and state.trains)
                for parameter in state.head.parameters.values():
                    parameter.requires_grad_(state.trains and state.head_trains)
