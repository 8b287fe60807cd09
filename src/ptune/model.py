"""`PromptModel`: a frozen backbone, a prompt and a head.

The one idea: **a prompt is k extra rows of the token-embedding table.** Virtual token i has the id
V + i, where V is the number of rows of the frozen table, and the backbone is called with ids. It
then does its own positions, padding and pooling; nothing here knows how.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import ModelOutput

from ptune.backbones.cpu import CpuKernels, is_traced
from ptune.backbones.loading import (
    check_family,
    load_tokenizer,
    max_positions,
    names_of_head,
    smallest,
    weight_of,
)
from ptune.errors import PtuneError
from ptune.prompts import layout
from ptune.prompts.config import PromptEncoderConfig
from ptune.prompts.encoder import PromptEncoder, build_prompt_encoder
from ptune.prompts.hooks import (
    ExtraRows,
    MeanOverText,
    OnlyWhereRead,
    WithoutDropout,
    flat,
    in_own_dtype,
)
from ptune.prompts.mechanisms import (
    Attentions,
    Form,
    InputRows,
    KeysAndValues,
    Prompt,
    RowsInEveryLayer,
    SharedRows,
)


@dataclass
class AdapterState:
    """One adapter of a model, besides its prompt encoder.

    Attributes:
        config: The prompt.
        labels: `id2label` and `problem_type`.
        head: The head's parameters, float32, while the adapter is not the active one.
        max_length: The user's bound on texts, in tokens.
        trains: Whether it trains when it is active.
    """

    config: PromptEncoderConfig
    labels: dict[str, Any]
    head: dict[str, Tensor]
    max_length: int | None = None
    trains: bool = True


@dataclass(frozen=True)
class _AsItCame:
    """What of a backbone is changed, as it was."""

    requires_grad: dict[str, bool]
    head: dict[str, Tensor]
    training: bool
    pad_token_id: int | None
    labels: dict[str, Any]


def _labels_of(backbone: PreTrainedModel) -> dict[str, Any]:
    config = backbone.config
    return {"id2label": dict(config.id2label), "problem_type": config.problem_type}


def _form_name(config: PromptEncoderConfig) -> str:
    return config.depth


def _set_labels(backbone: PreTrainedModel, labels: dict[str, Any]) -> None:
    config = backbone.config
    config.id2label = dict(labels["id2label"])
    config.label2id = {label: i for i, label in config.id2label.items()}
    config.problem_type = labels["problem_type"]
    # The losses of Transformers' classifiers read it off the module.
    if hasattr(backbone, "num_labels"):
        backbone.num_labels = config.num_labels


class PromptModel(PreTrainedModel):
    """A frozen sequence classifier of 🤗 Transformers steered by a prompt.

    It is a `PreTrainedModel`, so that an unmodified `Trainer` trains, checkpoints, resumes and
    reloads it. The *head* is every parameter outside the backbone's base model: all of it trains
    and all of it is saved, in float32.

    Args:
        backbone: Any `AutoModelForSequenceClassification`. It is changed in place (frozen, and
            its embedding takes extra rows) and handed back as it came by `unload`.
        config: The prompt.
        rows: A trained prompt, ``[num_virtual_tokens, width]``: given for inference, there is no
            encoder then.

    Raises:
        PtuneError: The prompt does not fit the backbone.
    """

    base_model_prefix = "backbone"
    main_input_name = "input_ids"
    # `Trainer` says how many labels a step has, on all processes together; see `forward`.
    accepts_loss_kwargs = True
    supports_gradient_checkpointing = True
    # Read an input prompt once for a whole batch, where the backbone cannot tell (`SharedRows`).
    share_prompt = True

    def __init__(
        self,
        backbone: PreTrainedModel,
        config: PromptEncoderConfig,
        rows: Tensor | None = None,
        *,
        adapter_name: str = "default",
    ) -> None:
        super().__init__(backbone.config)
        check_family(backbone)
        self.max_positions = max_positions(backbone)
        # Before the backbone is touched: a prompt that does not fit leaves it as it is.
        config = self.fitted(config, backbone)
        self.backbone = backbone
        head_names = frozenset(names_of_head(backbone))
        named = dict(backbone.named_parameters())
        self._as_it_came = _AsItCame(
            requires_grad={name: p.requires_grad for name, p in named.items()},
            head={name: named[name].data for name in head_names},
            training=backbone.training,
            pad_token_id=backbone.config.get_text_config().pad_token_id,
            labels=_labels_of(backbone),
        )
        self._head_names = head_names
        self._hooks = []
        for name, parameter in named.items():
            parameter.requires_grad_(name in head_names)
            if name in head_names:
                parameter.data = parameter.data.detach().clone().float()
        for name in {name.rpartition(".")[0] for name in head_names}:
            if name:
                module = backbone.get_submodule(name)
                self._hooks.append(module.register_forward_pre_hook(in_own_dtype))

        # Decoders look for the pad token's id to find a text's end. Any id will do where there
        # is none, because a token of a text never shows that id (see `forward`).
        text_config = backbone.config.get_text_config()
        if text_config.pad_token_id is None:
            eos, rows_of_table = text_config.eos_token_id, len(self._table())
            fits = isinstance(eos, int) and 0 <= eos < rows_of_table
            text_config.pad_token_id = eos if fits else 0
        self._kernels = CpuKernels(backbone) if CpuKernels.pay(backbone) else None
        self._extra_rows = ExtraRows(backbone)
        self._mean = MeanOverText(backbone.base_model)
        self._where_read = OnlyWhereRead(backbone)
        # Padding goes behind the text, but before it where the head reads the last position.
        last = getattr(text_config, "summary_type", None) == "last"
        self.padding_side: layout.Side = "left" if last else "right"
        inputs = inspect.signature(backbone.forward).parameters
        inside = inspect.signature(backbone.base_model.forward).parameters
        self.takes_position_ids = "position_ids" in inputs or (
            "kwargs" in inputs and "position_ids" in inside
        )

        self._checkpointable: list[Any] = [
            m for m in backbone.modules() if isinstance(m, GradientCheckpointingLayer)
        ]
        self._takes_use_cache = "use_cache" in inputs
        self._disabled = False
        self._forms: dict[str, Form] = {}
        self._attentions: Attentions | None = None
        self.adapters: dict[str, AdapterState] = {}
        self.prompt_encoders = nn.ModuleDict()
        self.active_adapter = adapter_name
        self.put_adapter(adapter_name, config, rows)
        self.train(backbone.training)

    def _table(self) -> Tensor:
        """The frozen token-embedding table, ``[V, token_dim]``."""
        return weight_of(self.backbone.get_input_embeddings())

    def fitted(self, config: PromptEncoderConfig, backbone: PreTrainedModel) -> PromptEncoderConfig:
        """The configuration with the backbone's sizes filled in.

        Raises:
            PtuneError: The prompt does not fit the backbone.
        """
        text_config = backbone.config.get_text_config()
        config = config.for_backbone(
            token_dim=weight_of(backbone.get_input_embeddings()).shape[1],
            num_layers=getattr(text_config, "num_hidden_layers", None),
            num_heads=getattr(text_config, "num_attention_heads", None),
        )
        k = config.num_virtual_tokens
        if config.depth == "input" and self.max_positions is not None and k >= self.max_positions:
            raise PtuneError(
                f"{k} virtual tokens do not fit: the backbone has {self.max_positions} positions "
                "and a text needs some of them. Use a smaller num_virtual_tokens."
            )
        if config.pooling == "prompt" and SharedRows.possible(backbone):
            raise PtuneError(
                "pooling is 'prompt', but this backbone only looks back: a prompt before the text "
                "has not read it. Take 'architecture' or 'mean'."
            )
        if config.base_model_name_or_path is None:
            config.base_model_name_or_path = backbone.name_or_path or None
        return config

    def put_adapter(
        self,
        name: str,
        config: PromptEncoderConfig,
        rows: Tensor | None = None,
        labels: dict[str, Any] | None = None,
        head: dict[str, Tensor] | None = None,
    ) -> None:
        """Add an adapter; what is not given is new, or as the backbone came with it."""
        config = self.fitted(config, self.backbone)
        form, table = self.form_of(config), self._table()
        if rows is None:
            encoder = build_prompt_encoder(config, form.width)
            if config.prompt_init != "random":
                words = self._first_words(config).to(table.device)
                wide = encoder.embedding.embedding_dim == form.width
                encoder.start_from(form.words(words) if wide else table[words].detach())
            encoder.start_from(encoder.embedding.weight.detach() * config.prompt_init_scale)
        else:
            encoder = self._fixed(rows, config)
        self.prompt_encoders[name] = encoder.to(table.device)
        head = head or {n: t.clone().float() for n, t in self._as_it_came.head.items()}
        labels = labels or self._as_it_came.labels
        self.adapters[name] = AdapterState(config, labels=labels, head=head)

    def _first_words(self, config: PromptEncoderConfig) -> Tensor:
        """The tokens ``[num_virtual_tokens]`` that a prompt starts as."""
        k = config.num_virtual_tokens
        if config.prompt_init == "vocab":
            return torch.randint(len(self._table()), (k,))
        name, text = config.base_model_name_or_path, config.prompt_init_text
        if name is None:
            raise PtuneError(
                "prompt_init='text' needs the backbone's tokenizer, and this backbone has no name. "
                "Set base_model_name_or_path to the folder or Hub id where its tokenizer is."
            )
        tokenizer = load_tokenizer(name, revision=config.revision)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if not ids:
            raise PtuneError(f"prompt_init_text is {text!r}: no word for a prompt to start as.")
        return torch.tensor([ids[i % len(ids)] for i in range(k)])

    def has_form(self, config: PromptEncoderConfig) -> bool:
        """Whether prompts of this kind have been met."""
        return _form_name(config) in self._forms

    def form_of(self, config: PromptEncoderConfig) -> Form:
        """What a prompt is inside this backbone; hung on it when first needed."""
        if not self.has_form(config):
            self._forms[_form_name(config)] = self._new_form(config)
        return self._forms[_form_name(config)]

    def _new_form(self, config: PromptEncoderConfig) -> Form:
        backbone, table = self.backbone, self._extra_rows
        if config.depth == "input":
            if self.takes_position_ids and SharedRows.possible(backbone):
                self._forms["shared"] = SharedRows(self._reach_attentions(), table)
            return InputRows(table)
        if Attentions.reachable(backbone):
            return KeysAndValues(self._reach_attentions(), table)
        return RowsInEveryLayer(backbone, table)

    def _reach_attentions(self) -> Attentions:
        if self._attentions is None:
            self._attentions = Attentions(self.backbone)
        return self._attentions

    @property
    def forms(self) -> list[Form]:
        """Of all adapters so far."""
        return list(self._forms.values())

    @property
    def form(self) -> Form:
        """The active adapter's."""
        return self._forms[_form_name(self.prompt_config)]

    # Several adapters on one backbone. One is active; the others' heads wait beside it.

    @property
    def state(self) -> AdapterState:
        """The active adapter's."""
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
        """A bound of the user's own on texts, in tokens; saved with the adapter."""
        return self.state.max_length

    @max_length.setter
    def max_length(self, length: int | None) -> None:
        self.state.max_length = length

    def add_adapter(self, name: str, config: PromptEncoderConfig) -> None:
        """Add a new prompt, not yet the active one, with a head like the one the backbone had.

        Raises:
            PtuneError: There is an adapter of that name, or the prompt does not fit.
        """
        self._check_new_name(name)
        self.put_adapter(name, config)
        self._freeze_inactive()

    def load_adapter(
        self, source: Any, adapter_name: str, *, is_trainable: bool = False, **where: Any
    ) -> None:
        """Add a saved adapter without activating it; see `ptune.adapters.adapter.load`.

        It may have labels of its own, and another number of them.

        Raises:
            PtuneError: As for `ptune.adapters.adapter.load`; or there is an adapter of that name.
        """
        from ptune.adapters.adapter import load_beside

        self._check_new_name(adapter_name)
        load_beside(self, source, adapter_name, is_trainable=is_trainable, **where)
        self._freeze_inactive()

    def set_adapter(self, name: str) -> None:
        """Make another adapter the active one: its prompt, head and labels.

        Raises:
            PtuneError: There is none of that name.
        """
        self._check_known(name)
        if name == self.active_adapter:
            return
        parameters = dict(self.head_parameters())
        self.state.head = {n: p.data for n, p in parameters.items()}
        self.active_adapter = name
        for n, p in parameters.items():
            p.grad = None
            p.data = self.state.head[n].to(p.device)
        _set_labels(self.backbone, self.state.labels)
        self._freeze_inactive()
        self.train(self.training)

    def rename_adapter(self, name: str, new_name: str) -> None:
        """Call an adapter something else.

        Raises:
            PtuneError: There is none of that name, or one of the new name.
        """
        self._check_known(name)
        self._check_new_name(new_name)
        self.adapters[new_name] = self.adapters.pop(name)
        self.prompt_encoders[new_name] = self.prompt_encoders.pop(name)
        if self.active_adapter == name:
            self.active_adapter = new_name

    def delete_adapter(self, name: str) -> None:
        """Remove an adapter that is not the active one.

        Raises:
            PtuneError: There is none of that name, or it is active.
        """
        self._check_known(name)
        if name == self.active_adapter:
            raise PtuneError(
                f"The adapter {name!r} is active. Make another one active first (set_adapter), or "
                "take the backbone back (unload)."
            )
        del self.adapters[name], self.prompt_encoders[name]

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """The backbone without a prompt, and with the head it came with, for the duration."""
        parameters = dict(self.head_parameters())
        trained = {n: p.data for n, p in parameters.items()}
        labels = self.state.labels
        try:
            for n, p in parameters.items():
                p.data = self._as_it_came.head[n].to(p.device).float()
            _set_labels(self.backbone, self._as_it_came.labels)
            self._disabled = True
            yield
        finally:
            self._disabled = False
            _set_labels(self.backbone, labels)
            for n, p in parameters.items():
                p.data = trained[n]

    def _check_known(self, name: str) -> None:
        if name not in self.adapters:
            raise PtuneError(
                f"There is no adapter {name!r}; there are: {', '.join(self.adapters)}."
            )

    def _check_new_name(self, name: str) -> None:
        if name in self.adapters:
            raise PtuneError(f"There is an adapter {name!r} already. Give this one another name.")
        if not name or "." in name:
            raise PtuneError(f"An adapter cannot be called {name!r}: no dots, and not nothing.")

    def _freeze_inactive(self) -> None:
        """Only the active adapter trains, if it is one that trains."""
        for name, encoder in self.prompt_encoders.items():
            encoder.requires_grad_(name == self.active_adapter and self.state.trains)
        for _, parameter in self.head_parameters():
            parameter.requires_grad_(self.state.trains)

    # What trains, what is saved.

    @property
    def max_text_length(self) -> int | None:
        """The longest text, in tokens, that fits beside the prompt; ``None``: no bound."""
        if self.max_positions is None:
            return None
        return self.max_positions - self._positions_taken

    @property
    def _positions_taken(self) -> int:
        """How many of the backbone's positions are not the text's."""
        config = self.prompt_config
        taken = self.form.takes_positions or config.shift_positions
        return config.num_virtual_tokens if taken else 0

    def text_room(self, tokenizer: PreTrainedTokenizerBase) -> int | None:
        """The longest text, in tokens, special ones included, that tokenising may produce.

        What the prompt needs is taken off the text. ``None``: no bound.
        """
        return smallest(self.max_text_length, self.max_length, tokenizer.model_max_length)

    def head_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names, as in the backbone, and parameters of the head."""
        return ((n, p) for n, p in self.backbone.named_parameters() if n in self._head_names)

    def trained_state(self) -> dict[str, Tensor]:
        """What resuming needs: encoder and head, under their names in this module."""
        return {n: p.detach() for n, p in self.named_parameters() if p.requires_grad}

    def parameter_groups(
        self,
        learning_rate: float,
        *,
        prompt_learning_rate: float | None = None,
        weight_decay: float = 0.0,
    ) -> list[dict[str, Any]]:
        """Parameter groups for an optimizer: prompt and head, with their own learning rates.

        Args:
            learning_rate: Of the head.
            prompt_learning_rate: Of the prompt; ``None``: the head's.
            weight_decay: Of weights; biases get none, as in `Trainer`.

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
        """Numbers of trainable parameters and of all parameters."""
        counts = [(p.numel(), p.requires_grad) for p in self.parameters()]
        return sum(n for n, trains in counts if trains), sum(n for n, _ in counts)

    def print_trainable_parameters(self) -> None:
        """Print both numbers and their ratio, as the reference does."""
        trainable, total = self.get_nb_trainable_parameters()
        print(
            f"trainable params: {trainable:,d} || all params: {total:,d} || "
            f"trainable%: {100 * trainable / total:.4f}"
        )

    def use_rows(self, rows: Tensor) -> None:
        """Take `rows`, ``[num_virtual_tokens, width]``, as the prompt, without an encoder."""
        encoder = self._fixed(rows, self.prompt_config)
        self.prompt_encoders[self.active_adapter] = encoder.to(self._table().device)

    def _fixed(self, rows: Tensor, config: PromptEncoderConfig) -> PromptEncoder:
        form = self.form_of(config)
        self.check_rows(rows, config)
        encoder = PromptEncoder(config, form.width)
        encoder.start_from(rows)
        return encoder

    def check_rows(self, rows: Tensor, config: PromptEncoderConfig) -> None:
        """Refuse a prompt that does not have the shape of its kind in this backbone.

        Raises:
            PtuneError: It has not.
        """
        form = self.form_of(config)
        wanted = (config.num_virtual_tokens, form.width)
        if rows.shape != wanted:
            raise PtuneError(
                f"The prompt has the shape {list(rows.shape)}, and {type(self.backbone).__name__} "
                f"takes a prompt of this kind as {list(wanted)}: it belongs to another backbone, "
                "or was made in another way."
            )

    def freeze(self) -> None:
        """Train nothing any more: for inference."""
        self.state.trains = False
        self._freeze_inactive()

    def unload(self) -> PreTrainedModel:
        """Hand the backbone back as it came, bit for bit; this model is of no use afterwards."""
        for form in self._forms.values():
            form.remove()
        if self._attentions is not None:
            self._attentions.remove()
        if self._kernels is not None:
            self._kernels.remove()
        self._extra_rows.remove()
        self._mean.remove()
        self._where_read.remove()
        for hook in self._hooks:
            hook.remove()
        for layer in self._checkpointed_layers():
            layer._gradient_checkpointing_func = layer._gradient_checkpointing_func.checkpoint
        came = self._as_it_came
        for name, parameter in self.backbone.named_parameters():
            parameter.requires_grad_(came.requires_grad[name])
            if name in came.head:
                parameter.data = came.head[name].to(parameter.device)
        self.config.get_text_config().pad_token_id = came.pad_token_id
        _set_labels(self.backbone, came.labels)
        return self.backbone.train(came.training)

    def train(self, mode: bool = True) -> PromptModel:
        """Training mode for prompt and head; the frozen part drops nothing out unless asked to."""
        super().train(mode)
        if not self.prompt_config.backbone_dropout:
            self.backbone.base_model.eval()
            for layer in self._checkpointed_layers():
                layer.training = mode
        return self

    def _checkpointed_layers(self) -> list[Any]:
        """The layers that gradient checkpointing is switched on for."""
        return [layer for layer in self._checkpointable if layer.gradient_checkpointing]

    def _set_gradient_checkpointing(self, *args: Any, **kwargs: Any) -> None:
        super()._set_gradient_checkpointing(*args, **kwargs)
        for layer in self._checkpointed_layers():
            layer._gradient_checkpointing_func = WithoutDropout(
                layer._gradient_checkpointing_func, drops_out=self.prompt_config.backbone_dropout
            )
        self.train(self.training)

    # Running it.

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
            attention_mask: ``[batch, seq]``, zero where a token is to be passed over; ``None``:
                every token counts.
            token_type_ids: ``[batch, seq]``, where the backbone has them.
            position_ids: ``[batch, seq]``, counted for the text alone.
            inputs_embeds: ``[batch, seq, token_dim]``, in place of `input_ids`.
            labels: ``[batch]``, or ``[batch, num_labels]`` for several labels a text.
            num_items_in_batch: How many labels there are in the step that this batch is a part of:
                the parts' losses then add up to the mean over the step.

        Returns:
            What the backbone returns: `logits` as ``[batch, num_labels]`` and, with labels,
            `loss`. Sequence outputs carry the prompt's positions and have padding on the right.

        Raises:
            PtuneError: A text is longer than fits beside the prompt, or has a token that the
                backbone's embedding has no row for.
        """
        if self._disabled:
            prompt = Prompt(self.form, self.prompt_encoder()[:0])
        else:
            form = self._form_for(position_ids, kwargs)
            prompt = Prompt.of(self.prompt_config, form, self.prompt_encoder())
        output = self.run(
            [prompt],
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            labels=labels,
            **kwargs,
        )
        if labels is not None and num_items_in_batch is not None:
            # The losses of Transformers' classifiers are means over the batch they see.
            output["loss"] = output["loss"] * (labels.numel() / num_items_in_batch)  # type: ignore[index,call-overload]
        return output

    def run(
        self,
        prompts: Sequence[Prompt],
        which: Sequence[int] | None = None,
        *,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> ModelOutput | tuple[Tensor, ...]:
        """Let the backbone read a batch, each row with its own prompt, in one forward pass.

        Args:
            prompts: Any, of this model's forms.
            which: The prompt of each row. ``None``: there is one, and all rows have it.
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, labels: As
                for `forward`.

        Raises:
            PtuneError: As for `forward`.
        """

        def of_rows(values: list[int]) -> int | Tensor:
            """A prompt's number as each row's: one for all, or ``[batch, 1]``."""
            if which is None or len(set(values)) == 1:
                return values[0]
            return torch.tensor([[values[i]] for i in which], device=rows.device)

        rows, lengths, starts = self._enter(prompts, which)
        total, size = rows.shape[0], self._extra_rows.size
        if inputs_embeds is not None:
            if input_ids is not None:
                raise PtuneError("Give input_ids or inputs_embeds, not both.")
            if self.config.is_encoder_decoder:
                raise PtuneError(
                    f"{type(self.backbone).__name__} looks for the end token's id; give input_ids "
                    "instead of inputs_embeds."
                )
            # A given vector is one more row of the table.
            batch, seq, dim = inputs_embeds.shape
            rows = torch.cat([rows.to(inputs_embeds.dtype), inputs_embeds.reshape(-1, dim)])
            input_ids = (
                torch.arange(batch * seq, device=rows.device).view(batch, seq) + size + total
            )
        if input_ids is None:
            raise PtuneError("Give input_ids or inputs_embeds; both are missing.")
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if inputs_embeds is None:
            self._check_ids(input_ids, attention_mask)

        k, before = of_rows(lengths), of_rows([p.before for p in prompts])
        virtual = torch.arange(max(lengths), device=input_ids.device)  # [longest k]
        virtual_mask = virtual < k  # [longest k] or [batch, longest k]
        order = layout.prompt_order(attention_mask, virtual_mask, before, self.padding_side)
        width = self._width(
            attention_mask, order.shape[1], k, of_rows([p.positions for p in prompts])
        )
        order = layout.trim(order, width, self.padding_side)
        # Asked for each time: `Trainer` sets it to the tokenizer's.
        pad = self.config.get_text_config().pad_token_id
        # A pad token that is part of a text must not look like padding, and padding must.
        text_ids = torch.where(input_ids == pad, size + rows.shape[0], input_ids)
        disguised = [pad]
        if self.config.is_encoder_decoder:
            # The head reads the last end token, and Transformers wants as many in every text.
            disguised.append(end := self.config.eos_token_id)
            ends = (input_ids == end) & (attention_mask != 0)
            inner = ends & (ends.flip(1).cumsum(1).flip(1) > 1)
            text_ids = torch.where(inner, size + rows.shape[0] + 1, text_ids)
        text_ids = torch.where(attention_mask != 0, text_ids, pad)
        virtual_ids = torch.where(virtual_mask, size + of_rows(starts) + virtual, pad)
        inputs = {
            "input_ids": layout.place(text_ids, virtual_ids, order),
            "attention_mask": layout.place(attention_mask, virtual_mask, order),
        }
        if token_type_ids is not None:
            inputs["token_type_ids"] = layout.place(
                token_type_ids, torch.zeros_like(virtual), order
            )
        shift = of_rows([p.positions - n for p, n in zip(prompts, lengths, strict=True)])
        if position_ids is not None:
            if not self.takes_position_ids:
                raise PtuneError(
                    f"{type(self.backbone).__name__} takes no position_ids. Leave them out."
                )
            position_ids = position_ids.expand_as(input_ids)
            inputs["position_ids"] = layout.place_positions(
                position_ids, attention_mask, virtual_mask, before, order
            )
        elif self.takes_position_ids and (isinstance(shift, Tensor) or shift > 0):
            # A prompt takes positions, but does not stand among the tokens.
            inputs["position_ids"] = self._shifted(inputs["attention_mask"], shift)
        if labels is not None:
            inputs["labels"] = labels
        if self._takes_use_cache:
            kwargs.setdefault("use_cache", False)  # nothing is generated
        mean = of_rows([p.pooling != "architecture" for p in prompts])
        if isinstance(mean, Tensor) or mean:
            of_text = torch.as_tensor(of_rows([p.pooling == "mean" for p in prompts]))
            is_text, is_prompt = (attention_mask != 0) & of_text, virtual_mask & ~of_text
            self._mean.mask = layout.place(is_text, is_prompt, order)
            self._mean.rows = mean if isinstance(mean, Tensor) else None
        self._extra_rows.rows, self._extra_rows.disguised = rows, tuple(disguised)
        if not self._whole(kwargs):
            self._where_read.positions = self._positions_read(inputs["attention_mask"], mean)
        try:
            return self.backbone(**inputs, **kwargs)
        finally:
            self._extra_rows.rows = self._mean.mask = self._where_read.positions = None

    def _enter(
        self, prompts: Sequence[Prompt], which: Sequence[int] | None
    ) -> tuple[Tensor, list[int], list[int]]:
        """Put the prompts of a batch in.

        Returns:
            The rows ``[n, token_dim]`` of them all that stand among the tokens; for each prompt
            how many of these are its own, and which is the first.
        """
        rows: list[Tensor] = []
        lengths, starts, total = [0] * len(prompts), [0] * len(prompts), 0
        for form in self._forms.values():
            if all(p.form is not form for p in prompts):
                form.leave()
                continue
            none = prompts[0].rows.new_empty(0, form.width)
            own = [p.rows if p.form is form else none for p in prompts]
            for i, entered in enumerate(form.enter(own, which, total)):
                if prompts[i].form is form:
                    lengths[i], starts[i] = len(entered), total
                    total += len(entered)
                    rows.append(entered)
        return torch.cat(rows), lengths, starts

    def _check_ids(self, input_ids: Tensor, attention_mask: Tensor) -> None:
        """Refuse tokens, ``[batch, seq]``, that would be taken for virtual ones."""
        if is_traced() or not input_ids.numel():
            return
        size = self._extra_rows.size
        if (largest := int((input_ids * (attention_mask != 0)).max())) >= size:
            raise PtuneError(
                f"A text has the token id {largest}, and the backbone's embedding has the rows 0 "
                f"to {size - 1}: the tokenizer belongs to another backbone, or has been given more "
                "tokens. Use the backbone's own, or make the embedding larger before p-tuning "
                "(backbone.resize_token_embeddings(len(tokenizer)))."
            )

    def _form_for(self, position_ids: Tensor | None, kwargs: dict[str, Any]) -> Form:
        """The form of this forward pass: read once for the whole batch where nobody can tell."""
        plain = (
            not self.share_prompt
            or "shared" not in self._forms
            or self.prompt_config.depth != "input"
            or self.prompt_config.placement != "prefix"
            or position_ids is not None
            or self._whole(kwargs)
        )
        return self.form if plain else self._forms["shared"]

    def _whole(self, kwargs: dict[str, Any]) -> bool:
        """Whether what no head reads is to be computed all the same."""
        config = self.backbone.config
        return bool(
            any(
                kwargs.get(name, getattr(config, name, False))
                for name in ("output_hidden_states", "output_attentions")
            )
            or self._checkpointed_layers()
            or is_traced()
        )

    def _positions_read(self, attention_mask: Tensor, mean: int | Tensor) -> Tensor | None:
        """Which of batch * seq positions are read behind the last layer; ``None``: take all.

        Args:
            attention_mask: ``[batch, seq]``, with the prompt.
            mean: Whether the mean is read; ``[batch, 1]`` where rows differ.
        """
        if self._where_read.head is None:
            return None
        read = self._where_read.head(attention_mask)
        if self._mean.mask is not None:
            read = torch.where(torch.as_tensor(mean, device=read.device), self._mean.mask, read)
        return flat(read)

    def _shifted(self, attention_mask: Tensor, shift: int | Tensor) -> Tensor:
        """Positions ``[batch, seq]`` of texts that are counted from `shift`, ``[batch, 1]``."""
        counted = (attention_mask.cumsum(dim=1) - 1).clamp_min(0)
        first = getattr(self.backbone.config.get_text_config(), "max_position_embeddings", 0)
        first -= self.max_positions or first  # RoBERTa and its kin count from padding_idx + 1
        return counted + first + shift

    def _width(
        self, attention_mask: Tensor, width: int, k: int | Tensor, positions: int | Tensor
    ) -> int:
        """How many of `width` columns to keep.

        All, unless only padding makes the batch too wide or the prompts differ.

        Args:
            attention_mask: ``[batch, seq]``, of the texts.
            width: Columns that there are.
            k: Columns that are the prompt's; ``[batch, 1]`` where prompts differ.
            positions: Positions that the prompt takes from the text; likewise.
        """
        bound = self.max_positions
        seq = attention_mask.shape[1]
        alike = isinstance(k, int) and isinstance(positions, int)
        if alike and (bound is None or seq + positions <= bound):
            return width
        lengths = (attention_mask != 0).sum(dim=1, keepdim=True)  # [batch, 1]
        if bound is not None and (worst := int((lengths + positions).max())) > bound:
            row = int((lengths + positions).argmax())
            longest = int(lengths[row])
            fits = bound - worst + longest
            raise PtuneError(
                f"A text of {longest} tokens is too long: the backbone has {bound} "
                f"positions and the prompt takes {worst - longest}, so at most "
                f"{fits} tokens fit. Tokenise with truncation=True, "
                f"max_length={fits}."
            )
        return max(1, int((lengths + k).max()))

    # What `PreTrainedModel` and `Trainer` ask for.

    def _check_and_adjust_attn_implementation(self, implementation: Any, **kwargs: Any) -> Any:
        return implementation  # the backbone has chosen

    def _check_and_adjust_experts_implementation(self, implementation: Any) -> Any:
        return implementation

    def get_input_embeddings(self) -> nn.Module:
        """The backbone's token embedding."""
        return self.backbone.get_input_embeddings()

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to tie: the backbone has done it."""

    @property
    def _keys_to_ignore_on_save(self) -> set[str]:
        """What `Trainer`, reloading a checkpoint, is not to miss: the frozen part."""
        return self.state_dict().keys() - self.trained_state().keys()

    def get_base_model(self) -> PreTrainedModel:
        """The backbone, as the reference calls it."""
        return self.backbone

    @torch.no_grad()
    def prompt_rows(self) -> Tensor:
        """The prompt as inference needs it, ``[num_virtual_tokens, width]``, float32."""
        return self.prompt_encoder().detach().float()

    def save_pretrained(
        self, save_directory: Any, selected_adapters: list[str] | None = None, **kwargs: Any
    ) -> None:
        """Write the active adapter and what resuming needs; see `ptune.adapters.adapter.save`.

        `Trainer` calls this for every checkpoint.

        Args:
            save_directory: Where to.
            selected_adapters: Write these instead: `default` there, others into folders of their
                names, as the reference does.
        """
        from ptune.adapters.adapter import save

        if not kwargs.get("is_main_process", True):
            return
        if selected_adapters is None:
            save(self, save_directory)
            return
        active = self.active_adapter
        for name in selected_adapters:
            self.set_adapter(name)
            save(self, Path(save_directory) / ("" if name == "default" else name))
        self.set_adapter(active)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        token: str | bool | None = None,
        commit_message: str | None = None,
        license: str | None = None,
        use_auth_token: str | bool | None = None,
    ) -> str:
        """Publish the adapter with a model card; see `ptune.adapters.push.push`.

        `use_auth_token` is what the reference's guide calls `token`.
        """
        from ptune.adapters.adapter import from_model
        from ptune.adapters.push import push

        return push(
            from_model(self),
            repo_id,
            private=private,
            revision=revision,
            create_pr=create_pr,
            token=use_auth_token if token is None else token,
            commit_message=commit_message,
            license=license,
        )

    @classmethod
    def from_pretrained(cls, model: PreTrainedModel, model_id: Any, **kwargs: Any) -> PromptModel:
        """Put a saved adapter on `model`; see `ptune.adapters.adapter.load`."""
        from ptune.adapters.adapter import load

        return load(model, model_id, **kwargs)
