"""`PromptModel`: a prompt and a head, trained on a frozen backbone.

This module decides what is trained and saved, and has the interface that `Trainer` and users of
🤗 PEFT expect. `ptune.prompts.host` inserts the prompt into the backbone.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import ModelOutput

from ptune import compat
from ptune.adapters.adapter import Adapter
from ptune.adapters.fit import (
    check_backbone,
    check_encoder,
    check_fits,
    check_head,
    check_trained_state,
)
from ptune.backbones.architectures import Architecture, generates
from ptune.backbones.cpu import is_traced
from ptune.backbones.loading import load_tokenizer, loading, smallest
from ptune.errors import PtuneError
from ptune.labels import SINGLE, Labels
from ptune.prompts.config import PROMPT_TUNING, LongTexts, PromptEncoderConfig
from ptune.prompts.encoder import PromptEncoder, build_prompt_encoder
from ptune.prompts.heads import Head
from ptune.prompts.host import SHARED, Given, Host
from ptune.prompts.kept import KeptTexts
from ptune.prompts.mechanisms import Mechanism, Prompt
from ptune.prompts.readers import Readers
from ptune.texts import Reading, Template, special_before


@dataclass
class AdapterState:
    """One adapter of a model, without its prompt encoder.

    Attributes:
        config: The prompt's configuration.
        mechanism: How the prompt acts inside the backbone.
        head: Parameters and labels.
        max_length: The user's limit on a text's length, in tokens.
        long_texts: What the caller reads of longer texts.
        pairs: Whether it was trained on pairs of texts; ``None``: unknown.
        template: The words around each text, which the caller puts there.
        trains: Whether it trains while it is active.
        head_trains: Whether its head then trains too.
    """

    config: PromptEncoderConfig
    mechanism: Mechanism
    head: Head
    max_length: int | None = None
    long_texts: LongTexts = "truncate"
    pairs: bool | None = None
    template: Template | None = None
    trains: bool = True
    head_trains: bool = True

    def take_over(self, adapter: Adapter) -> None:
        """Take over from an adapter how its texts are read."""
        self.max_length, self.pairs = adapter.max_length, adapter.pairs
        self.template, self.long_texts = adapter.template, adapter.long_texts


class _ThreadChoice(threading.local):
    """The adapter that a thread has chosen, and whether it has disabled all adapters.

    Args:
        by_thread: What each thread has chosen; shared by all threads.
    """

    disabled: bool = False

    def __init__(self, by_thread: WeakKeyDictionary[threading.Thread, str]) -> None:
        self.by_thread = by_thread
        self.adapter: str | None = None

    @classmethod
    def new(cls) -> _ThreadChoice:
        """No thread has chosen anything."""
        return cls(WeakKeyDictionary())

    def choose(self, name: str) -> None:
        """Choose an adapter for the calling thread."""
        self.adapter = self.by_thread[threading.current_thread()] = name

    def of_others(self) -> set[str]:
        """The adapters that running threads have chosen."""
        return {name for thread, name in list(self.by_thread.items()) if thread.is_alive()}

    def __reduce__(self) -> tuple[Any, ...]:
        return _ThreadChoice.new, ()

    def __deepcopy__(self, memo: dict[int, Any]) -> _ThreadChoice:
        return _ThreadChoice.new()


class AdapterSet:
    """Several adapters on one backbone. Each thread uses one of them.

    `set_adapter` applies to the calling thread, and to threads that have never called it. `config`
    and the backbone's installed head follow the latest call.
    """

    host: Host
    backbone: PreTrainedModel
    prompt_encoders: nn.ModuleDict
    adapters: dict[str, AdapterState]
    _choice: _ThreadChoice
    _default_adapter: str

    @property
    def architecture(self) -> Architecture:
        """What is known about the backbone."""
        return self.host.architecture

    @property
    def active_adapter(self) -> str:
        """The adapter that this thread uses."""
        if is_traced():
            return self._default_adapter
        own = self._choice.adapter
        return own if own in self.adapters else self._default_adapter

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
        return self.state.max_length

    @max_length.setter
    def max_length(self, length: int | None) -> None:
        self.state.max_length = length

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
        if bound is None:
            return None
        config = self.prompt_config
        k = 0 if config.placement == "template" else config.num_virtual_tokens
        return bound - self.state.mechanism.positions_taken(k, shifts=config.shift_positions)

    def reading(self, tokenizer: PreTrainedTokenizerBase) -> Reading:
        """How the active adapter's texts are read."""
        state = self.state
        return Reading(self.max_text_tokens(tokenizer), state.long_texts, state.template)

    def add_adapter(self, name: str, config: PromptEncoderConfig) -> None:
        """Add a new prompt with a copy of the backbone's original head, without activating it.

        Raises:
            PtuneError: The name is in use, or the prompt does not fit.
        """
        self._check_new_name(name)
        with loading():
            cast(Any, self)._put(name, config)
        self._freeze_inactive()

    def set_adapter(self, name: str) -> None:
        """Make another adapter active: its prompt, head and labels.

        This applies to the calling thread, and to threads that have never called `set_adapter`.

        Raises:
            PtuneError: There is no adapter with this name.
        """
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
            cast(Any, self).train(cast(Any, self).training)

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
            if self._choice.adapter == name:
                self._choice.choose(new_name)
            del self.adapters[name], self.prompt_encoders[name]

    def delete_adapter(self, name: str) -> None:
        """Remove an adapter that is not active.

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

    def _check_known(self, name: str) -> None:
        if name not in self.adapters:
            raise PtuneError(
                f"There is no adapter {name!r}. The adapters are: {', '.join(self.adapters)}."
            )

    def _check_new_name(self, name: str) -> None:
        if name in self.adapters:
            raise PtuneError(f"There is already an adapter {name!r}. Choose another name.")
        if not name or "." in name:
            raise PtuneError(
                f"An adapter cannot be called {name!r}. Choose a name that is not empty and "
                "contains no dots."
            )

    def _freeze_inactive(self) -> None:
        """Train only adapters that a thread uses, and only if they are trainable."""
        with self.host.passes.lock:  # others add, choose and delete adapters meanwhile
            used = {self._default_adapter, *self._choice.of_others()}
            for name, state in self.adapters.items():
                self.prompt_encoders[name].requires_grad_(name in used and state.trains)
                for parameter in state.head.parameters.values():
                    parameter.requires_grad_(state.trains and state.head_trains)


class PromptModel(AdapterSet, compat.ModelOverrides, PreTrainedModel):
    """A frozen sequence classifier of 🤗 Transformers with a prompt and a head to train.

    It is a `PreTrainedModel`, so an unmodified `Trainer` trains, checkpoints, resumes and reloads
    it. The *head* is every parameter outside the backbone's base model. All of it is trained and
    saved, in float32.

    Several adapters can share the backbone (`AdapterSet`), and several threads can call the model.

    Args:
        backbone: Any `AutoModelForSequenceClassification`. It is changed in place (frozen and
            hooked) until `unload` restores it.
        config: The prompt's configuration; ``None``: the defaults.
        prompt_embeddings: A trained prompt, ``[num_virtual_tokens, width]``, for inference. It
            needs no encoder.
        mechanism: How the prompt acts inside the backbone, as recorded in an adapter; ``None``:
            choose the best mechanism.

    Raises:
        PtuneError: The prompt does not fit the backbone, which is then unchanged.
    """

    base_model_prefix = "backbone"
    main_input_name = "input_ids"
    # `Trainer` passes the number of labels in a step, over all processes; see `forward`.
    accepts_loss_kwargs = True
    supports_gradient_checkpointing = True
    # Compute an input prompt once for a whole batch, where that gives the same results.
    share_prompt = True

    def __init__(
        self,
        backbone: PreTrainedModel,
        config: PromptEncoderConfig | None = None,
        prompt_embeddings: Tensor | None = None,
        *,
        adapter_name: str = "default",
        mechanism: str | None = None,
    ) -> None:
        # If another thread loaded a backbone now, it would change torch's default dtype.
        with loading():
            host = Host(backbone)
            try:
                super().__init__(backbone.config)
                self.host, self.backbone = host, backbone
                self._choice = _ThreadChoice.new()
                self._default_adapter = adapter_name
                self.adapters: dict[str, AdapterState] = {}
                self.prompt_encoders = nn.ModuleDict()
                config = config or PromptEncoderConfig()
                self._put(adapter_name, config, prompt_embeddings, mechanism)
                host.heads.install(self.state.head)
                self._freeze_inactive()
                self.train(backbone.training)
            except BaseException:
                host.release()
                raise

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
        state.take_over(adapter)
        state.trains = is_trainable
        self._freeze_inactive()

    def _put(
        self,
        name: str,
        config: PromptEncoderConfig,
        embeddings: Tensor | None = None,
        mechanism: str | None = None,
        head: Head | None = None,
    ) -> None:
        """Add an adapter. A missing prompt is initialised; a missing head is the backbone's."""
        config = self.host.fitted(config)
        width = None if embeddings is None else embeddings.shape[1]
        own = self.host.mechanism_for(config, mechanism, width)
        if embeddings is None:
            encoder = self._new_encoder(config, own)
        else:
            encoder = self._fixed_encoder(embeddings, config, own)
        encoder = encoder.to(self.host.tokens.weight.device)
        state = AdapterState(config, own, head or self.host.heads.new())
        with self.host.passes.lock:
            self.prompt_encoders[name], self.adapters[name] = encoder, state

    def _new_encoder(self, config: PromptEncoderConfig, mechanism: Mechanism) -> PromptEncoder:
        encoder = build_prompt_encoder(config, mechanism.width)
        start = encoder.embedding.weight.detach()
        if config.prompt_init != "random":
            words = self._first_words(config).to(self.host.tokens.weight.device)
            wide = encoder.embedding.embedding_dim == mechanism.width
            start = mechanism.from_words(words) if wide else self.host.tokens.of_words(words)
        assert config.prompt_init_scale is not None  # `fitted` decides it
        start = start.float() * config.prompt_init_scale
        if isinstance(mechanism, Readers):
            start = mechanism.start(start[: config.num_virtual_tokens], config.reader_rank)
        encoder.start_from(start)
        return encoder

    def _fixed_encoder(
        self, embeddings: Tensor, config: PromptEncoderConfig, mechanism: Mechanism
    ) -> PromptEncoder:
        """An encoder that is the prompt itself."""
        self.host.check_shape(embeddings, config, mechanism)
        encoder = PromptEncoder(config, mechanism.width)
        encoder.start_from(embeddings)
        return encoder

    def _first_words(self, config: PromptEncoderConfig) -> Tensor:
        """The tokens from which a prompt is initialised, ``[num_virtual_tokens]``."""
        k = config.num_virtual_tokens
        if config.prompt_init == "vocab":
            return torch.randint(self.architecture.vocab_rows, (k,))
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
        if config.depth == "deep" and generates(self.architecture.model_type):
            # A decoder attends most to its first token, and has always read this one there.
            ids = special_before(tokenizer) + ids if ids else ids
        if not ids:
            raise PtuneError(
                f"prompt_init_text is {text!r}, which has no tokens. Use a text with words."
            )
        return torch.tensor([ids[i % len(ids)] for i in range(k)])

    # What trains.

    def head_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The active adapter's head: parameters by their names in the backbone."""
        return self._parameters_of(self.state.head)

    def _parameters_of(self, head: Head) -> Iterator[tuple[str, nn.Parameter]]:
        if head is self.host.heads.installed:
            names = self.architecture.head_names
            return ((name, self.backbone.get_parameter(name)) for name in names)
        return iter(head.parameters.items())

    def parameter_groups(
        self,
        learning_rate: float,
        *,
        prompt_learning_rate: float | None = None,
        weight_decay: float = 0.0,
    ) -> list[dict[str, Any]]:
        """Parameter groups for an optimizer: prompt and head, each with its learning rate.

        Args:
            learning_rate: Learning rate of the head.
            prompt_learning_rate: Learning rate of the prompt; ``None``: the head's.
            weight_decay: Weight decay of weights; biases have none, as in `Trainer`.

        Example:
            ``Trainer(..., optimizers=(torch.optim.AdamW(model.parameter_groups(
            1e-3, prompt_learning_rate=3e-3)), None))``
        """
        rates = {"prompt": prompt_learning_rate or learning_rate, "head": learning_rate}
        groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
        for part, parameters in (
            ("prompt", self.prompt_encoder.named_parameters()),
            ("head", self.head_parameters()),
        ):
            for name, parameter in parameters:
                if parameter.requires_grad:
                    decays = not name.endswith("bias") and parameter.ndim > 1
                    groups.setdefault((part, decays), []).append(parameter)
        return [
            {"params": params, "lr": rates[part], "weight_decay": weight_decay if decays else 0.0}
            for (part, decays), params in groups.items()
        ]

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """The number of trainable parameters, and of all parameters."""
        counts = [(p.numel(), p.requires_grad) for p in self.parameters()]
        return sum(n for n, trains in counts if trains), sum(n for n, _ in counts)

    def print_trainable_parameters(self) -> None:
        """Print both numbers and their ratio, as PEFT does."""
        trainable, total = self.get_nb_trainable_parameters()
        print(
            f"trainable params: {trainable:,d} || all params: {total:,d} || "
            f"trainable%: {100 * trainable / total:.4f}"
        )

    def freeze(self) -> None:
        """Stop training the active adapter, for inference."""
        self.state.trains = False
        self._freeze_inactive()

    @property
    def kept_texts(self) -> KeptTexts:
        """The texts that a reader keeps from one epoch to the next, up to `limit` bytes.

        The limit is 0 at first. `ptune train` and `PromptClassifier.fit` set it while they train.
        """
        return self.host.readers.kept

    def unload(self) -> PreTrainedModel:
        """Restore the backbone bit for bit and return it. This model cannot be used afterwards."""
        if self.host.checkpointed_layers():
            compat.switch_off_checkpointing(self)
        return self.host.release()

    def train(self, mode: bool = True) -> PromptModel:
        """Set training mode. The backbone uses dropout only with `backbone_dropout`."""
        super().train(mode)
        if not self.prompt_config.backbone_dropout:
            self.backbone.base_model.eval()
            for layer in self.host.checkpointed_layers():
                layer.training = mode
        return self

    def on_gradient_checkpointing(self) -> None:
        """Keep the backbone's dropout off after checkpointing was switched on or off."""
        self.host.wrap_checkpoints(drops_out=self.prompt_config.backbone_dropout)
        self.train(self.training)

    # Forward pass.

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | None = None,
        **kwargs: Any,
    ) -> ModelOutput | tuple[Tensor, ...]:
        """Classify a batch of texts.

        Args:
            input_ids: ``[batch, seq]``, padded on either side or not at all.
            attention_mask: ``[batch, seq]``, zero for padding; ``None``: every token counts.
            token_type_ids: ``[batch, seq]``, where the backbone has them.
            position_ids: ``[batch, seq]``, counted for the text alone.
            inputs_embeds: ``[batch, seq, token_dim]``, instead of `input_ids`.
            labels: ``[batch]``, or ``[batch, num_labels]`` for multi-label classification.
            num_items_in_batch: Number of labels in the whole training step. The losses of the
                step's batches then add up to the mean over the step.

        Returns:
            The backbone's output: `logits`, ``[batch, num_labels]``, and, with labels, `loss`.
            Sequence outputs include the prompt's positions and are padded on the right.

        Raises:
            PtuneError: A text does not fit together with the prompt, or has a token id that is
                not in the backbone's embedding weight.
        """
        prompt, head = self._prompt_and_head(position_ids=position_ids, **kwargs)
        if labels is not None:
            kwargs["labels"] = labels
        given = Given(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        output = self.host.run([prompt], given, head=head, **kwargs)
        if labels is not None and num_items_in_batch is not None:
            # Transformers' classifiers return the mean loss over the batch.
            output["loss"] = output["loss"] * (labels.numel() / num_items_in_batch)
        return output

    @torch.no_grad()
    def prompt_embeddings(self) -> Tensor:
        """The prompt for inference, ``[num_virtual_tokens, width]``, float32."""
        return self.prompt_encoder().detach().float()

    def _prompt_and_head(self, **inputs: Any) -> tuple[Prompt, Head]:
        """The prompt and head that this thread uses."""
        state = self.state
        if not is_traced() and self._choice.disabled:
            return self.host.no_prompt, self.host.heads.original
        mechanism = state.mechanism
        if self.share_prompt and self.host.can_share(state.config, **inputs):
            mechanism = self.host.mechanism(SHARED)
        return Prompt.of(state.config, mechanism, self.prompt_encoder()), state.head

    # The interface of `PreTrainedModel` and PEFT.

    def get_input_embeddings(self) -> nn.Module:
        """The backbone's token embedding."""
        return self.backbone.get_input_embeddings()

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the backbone has already tied its weights."""

    def trained_state(self, name: str | None = None) -> dict[str, Tensor]:
        """The tensors needed to resume training: prompt encoder and head, by their names here.

        Args:
            name: The adapter; ``None``: the active one.
        """
        name = self.active_adapter if name is None else name
        state = self.adapters[name]
        if not state.trains:
            return {}
        encoder = self.prompt_encoders[name].named_parameters(f"prompt_encoders.{name}")
        named = dict(encoder) | {f"backbone.{n}": p for n, p in self._parameters_of(state.head)}
        return {n: p.detach() for n, p in named.items() if p.numel()}

    def frozen_names(self) -> set[str]:
        """Names of the frozen tensors, which are not part of a checkpoint."""
        return self.state_dict().keys() - self.trained_state().keys()

    def get_base_model(self) -> PreTrainedModel:
        """The backbone, under PEFT's name."""
        return self.backbone

    # Files.

    @torch.no_grad()
    def to_adapter(self, name: str | None = None) -> Adapter:
        """An adapter as a value that can be saved and loaded for inference.

        Args:
            name: The adapter; ``None``: the active one.

        Raises:
            PtuneError: There is no adapter with this name.
        """
        name = self.active_adapter if name is None else name
        self._check_known(name)
        config, state = self.config, self.adapters[name]
        labels = state.head.labels
        if state.head is self.host.heads.installed:
            labels = {"id2label": config.id2label, "problem_type": config.problem_type}
        return Adapter(
            config=replace(state.config, inference_mode=True),
            prompt_embeddings=self.prompt_encoders[name]().detach().float().cpu(),
            head={name: p.detach().cpu() for name, p in self._parameters_of(state.head)},
            labels=Labels(tuple(labels["id2label"].values()), labels["problem_type"] or SINGLE),
            mechanism=state.mechanism.name,  # type: ignore[arg-type]
            max_length=state.max_length,
            long_texts=state.long_texts,
            pairs=state.pairs,
            template=state.template,
            backbone=self.host.identity,
        )

    @classmethod
    def from_adapter(
        cls,
        backbone: PreTrainedModel,
        adapter: Adapter,
        *,
        is_trainable: bool = False,
        config: PromptEncoderConfig | None = None,
        adapter_name: str = "default",
        allow_other_backbone: bool = False,
    ) -> PromptModel:
        """Put an adapter on a backbone.

        Args:
            backbone: A sequence classifier with the adapter's number of labels.
            adapter: The adapter.
            is_trainable: Continue training: the prompt encoder if it was saved, else the prompt
                embeddings as plain parameters.
            config: Replaces the adapter's configuration.
            adapter_name: Its name in the model.
            allow_other_backbone: Accept a backbone of the same sizes with other weights than the
                adapter was trained on. Predictions then differ.

        Raises:
            PtuneError: The adapter belongs to another backbone. `backbone` is then unchanged.
        """
        own, width = Architecture.of(backbone), adapter.prompt_embeddings.shape[1]
        check_backbone(adapter, own, backbone, allow_other_backbone=allow_other_backbone)
        config = replace(config or adapter.config, inference_mode=not is_trainable)
        state = adapter.read_trained_state() if is_trainable else None
        if is_trainable and state is None:
            config = replace(config, encoder_reparameterization_type="NONE")
        # A loaded prompt is not initialised from words, which would need a tokenizer.
        start = replace(config, prompt_init="random", prompt_init_text=None)
        if state is not None:
            state = {_renamed(name, adapter_name): tensor for name, tensor in state.items()}
            check_encoder(adapter, state, replace(start, token_dim=own.token_dim), adapter_name)
        embeddings = adapter.prompt_embeddings if state is None else None
        mechanism = adapter.mechanism or own.mechanism_of(config.depth, width)
        model = cls(
            backbone,
            config if state is None else start,
            prompt_embeddings=embeddings,
            adapter_name=adapter_name,
            mechanism=mechanism,
        )
        try:
            model.state.config = replace(
                model.prompt_config,
                prompt_init=config.prompt_init,
                prompt_init_text=config.prompt_init_text,
            )
            model._fill_head(adapter)
            if state is not None:
                check_trained_state(adapter, state, model.trained_state())
                model.load_state_dict(state, strict=False)
        except BaseException:
            model.unload()
            raise
        model.state.take_over(adapter)
        if not is_trainable:
            model.freeze()
        return model.train(is_trainable)

    @classmethod
    def from_pretrained(
        cls,
        model: PreTrainedModel,
        model_id: Any,
        *,
        is_trainable: bool = False,
        config: PromptEncoderConfig | None = None,
        allow_other_backbone: bool = False,
        **where: Any,
    ) -> PromptModel:
        """Put a saved adapter on `model`: `from_adapter` for a folder or a Hub repository.

        Args:
            model: The backbone.
            model_id: A folder, a repository on the Hub, or an `Adapter`.
            is_trainable, config, allow_other_backbone: As for `from_adapter`.
            **where: `subfolder`, `revision`, `token`, `cache_dir`, `local_files_only`.

        Raises:
            PtuneError: There is no adapter, it is damaged, or it belongs to another backbone.
        """
        adapter = adapter_of(model_id, **where)
        return cls.from_adapter(
            model,
            adapter,
            is_trainable=is_trainable,
            config=config,
            allow_other_backbone=allow_other_backbone,
        )

    def use_adapter(self, adapter: Adapter) -> None:
        """Replace the active adapter's prompt encoder and head by a saved prompt and head.

        Raises:
            PtuneError: They do not fit. The model is then unchanged.
        """
        state = self.state
        encoder = self._fixed_encoder(adapter.prompt_embeddings, state.config, state.mechanism)
        self._fill_head(adapter)
        self.prompt_encoders[self.active_adapter] = encoder.to(self.host.tokens.weight.device)

    def _fill_head(self, adapter: Adapter) -> None:
        own = dict(self.head_parameters())
        check_head(adapter, {n: p.shape for n, p in own.items()}, self.architecture.name)
        if missing := sorted(own.keys() - adapter.head.keys()):
            warnings.warn(
                f"The adapter {adapter.source} does not contain {', '.join(missing)}. They keep "
                "the backbone's values, which are random if its checkpoint has none. Adapters "
                "saved by PEFT lack such parameters: train and save the adapter with ptune.",
                stacklevel=4,
            )
        with torch.no_grad():
            for name, tensor in adapter.head.items():
                own[name].copy_(tensor)

    def save_pretrained(
        self, save_directory: Any, selected_adapters: list[str] | None = None, **kwargs: Any
    ) -> None:
        """Save the active adapter and the state needed to resume. `Trainer` does so at checkpoints.

        Args:
            save_directory: The folder.
            selected_adapters: Save these adapters instead: `default` in the folder itself, others
                in subfolders of their names, as PEFT does.
            **kwargs: `is_main_process` and others that `Trainer` passes.
        """
        if not kwargs.get("is_main_process", True):
            return
        if selected_adapters is None:
            self.to_adapter().save(save_directory, self.trained_state())
            return
        for name in selected_adapters:
            folder = Path(save_directory) / ("" if name == "default" else name)
            self.to_adapter(name).save(folder, self.trained_state(name))

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Publish the adapter with a model card.

        Args:
            repo_id: As for `ptune.adapters.push.push`.
            **kwargs: As for `ptune.adapters.push.push`; `use_auth_token` is PEFT's name for
                `token`.
        """
        from ptune.adapters.push import push

        old = kwargs.pop("use_auth_token", None)
        kwargs.setdefault("token", old)
        return push(self.to_adapter(), repo_id, **kwargs)


def _renamed(parameter: str, adapter_name: str) -> str:
    """The name in a model of a parameter that was saved under another adapter's name."""
    if parameter.startswith("prompt_encoders."):
        _, _, rest = parameter.split(".", 2)
        return f"prompt_encoders.{adapter_name}.{rest}"
    return parameter


def adapter_of(source: Any, **where: Any) -> Adapter:
    """An adapter, or what `Adapter.read` finds under a name."""
    if isinstance(source, Adapter):
        return source
    return Adapter.read(source, own_backbone=True, **where)
