"""`PromptModel`: a prompt and a head, trained on a frozen backbone.

This module decides what is trained and saved, and has the interface that `Trainer` and users of
🤗 PEFT expect. `ptune.prompts.host` inserts the prompt into the backbone.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from ptune import compat
from ptune.adapters.adapter import Adapter, adapter_of
from ptune.adapters.fit import (
    check_backbone,
    check_encoder,
    check_head,
    check_trained_state,
)
from ptune.adapters.loaded import AdapterSet
from ptune.backbones.architectures import Architecture
from ptune.backbones.cpu import is_traced
from ptune.backbones.loading import loading
from ptune.labels import Labels
from ptune.postprocessing import RAW
from ptune.prompts.config import PromptEncoderConfig
from ptune.prompts.heads import Head, labels_dict, labels_of, set_labels
from ptune.prompts.host import SHARED, Given, Host
from ptune.prompts.kept import KeptTexts
from ptune.prompts.mechanisms import Prompt
from ptune.prompts.start import fixed_encoder


class PromptModel(AdapterSet):
    """A frozen sequence classifier of 🤗 Transformers with a prompt and a head to train.

    It is a `PreTrainedModel`, so an unmodified `Trainer` trains, checkpoints, resumes and reloads
    it. The *head* is every parameter outside the backbone's base model. All of it is trained and
    saved, in float32.

    Several adapters can share the backbone (`AdapterSet`), and several threads can call the model.

    Args:
        backbone: Any `AutoModelForSequenceClassification`. It is changed in place (frozen and
            hooked) until `unload` restores it.
        config: The prompt's configuration; ``None``: the defaults.
        prompt_embeddings: A trained prompt, ``[rows, width]``, for inference. It
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
                super().__init__(host, adapter_name)
                config = config or PromptEncoderConfig()
                self._put(adapter_name, config, prompt_embeddings, mechanism)
                host.heads.install(self.state.head)
                self._freeze_inactive()
                self.train(backbone.training)
            except BaseException:
                host.release()
                raise

    # What trains.

    def head_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The active adapter's head: parameters by their names in the backbone."""
        return iter(self._parameters_of(self.state.head).items())

    def _parameters_of(self, head: Head) -> dict[str, nn.Parameter]:
        with self.host.passes.lock:  # a pass in another thread exchanges heads
            if head is self.host.heads.installed:
                names = self.architecture.head_names
                return {name: self.backbone.get_parameter(name) for name in names}
            return dict(head.parameters)

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
        prompt = learning_rate if prompt_learning_rate is None else prompt_learning_rate
        rates = {"prompt": prompt, "head": learning_rate}
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

    def _on_gradient_checkpointing(self) -> None:
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
            share = _labels_in(labels) / num_items_in_batch
            if isinstance(output, tuple):  # return_dict=False
                return output[0] * share, *output[1:]
            # Transformers' classifiers return the mean loss over the batch.
            output["loss"] = output["loss"] * share
        return output

    @torch.no_grad()
    def prompt_embeddings(self) -> Tensor:
        """The prompt for inference, ``[rows, width]`` (`PromptEncoderConfig.rows`), float32."""
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
        named = dict(encoder) | {
            f"backbone.{n}": p for n, p in self._parameters_of(state.head).items()
        }
        return {n: p.detach() for n, p in named.items() if p.numel()}

    def _frozen_names(self) -> set[str]:
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
        state = self.adapters[name]
        with self.host.passes.lock:
            head, named = self._parameters_of(state.head), state.head.labels
            if state.head is self.host.heads.installed:
                named = labels_of(self.backbone)
        labels, values = state.labels, state.postprocessing
        if labels is None or labels_dict(labels) != named:  # the user's own, by name
            labels = Labels(tuple(named["id2label"].values()), named["problem_type"])
            values = RAW
        return Adapter(
            config=replace(state.config, inference_mode=True),
            prompt_embeddings=self.prompt_encoders[name]().detach().float().cpu(),
            head={name: p.detach().cpu() for name, p in head.items()},
            labels=labels,
            mechanism=state.mechanism.name,  # type: ignore[arg-type]
            reading=state.reading,
            text_columns=state.text_columns,
            postprocessing=values,
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
            if adapter.ptune_version is not None:  # PEFT writes no labels
                set_labels(backbone, labels_dict(adapter.labels))
            if state is not None:
                check_trained_state(adapter, state, model.trained_state())
                model.load_state_dict(state, strict=False)
        except BaseException:
            model.unload()
            raise
        model.state.take(adapter, trains=is_trainable)
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
        embeddings = adapter.prompt_embeddings
        encoder = fixed_encoder(self.host, state.config, state.mechanism, embeddings)
        self._fill_head(adapter)
        self.prompt_encoders[self.active_adapter] = encoder
        state.postprocessing = RAW  # was fitted to the old ones
        # The encoder is the prompt itself.
        state.config = replace(state.config, encoder_reparameterization_type="NONE")
        self._freeze_inactive()

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


def _labels_in(labels: Tensor) -> int | Tensor:
    """How many labels a mean loss is over. Classes of -100 are unknown, and count neither way."""
    return labels.numel() if labels.is_floating_point() else (labels != -100).sum()


def _renamed(parameter: str, adapter_name: str) -> str:
    """The name in a model of a parameter that was saved under another adapter's name."""
    if parameter.startswith("prompt_encoders."):
        _, _, rest = parameter.split(".", 2)
        return f"prompt_encoders.{adapter_name}.{rest}"
    return parameter
