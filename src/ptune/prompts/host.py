"""`Host`: a frozen backbone and everything that is attached to it.

The main idea: **a prompt is k extra rows of the embedding weight.** Virtual token i has the id
V + i, where V is the number of rows of the frozen weight, and the backbone is called with ids. It
handles its own positions, padding and pooling, so this module does not need to know how.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ptune import compat
from ptune.backbones.architectures import (
    Architecture,
    are_close,
    generates,
    special_ids,
    two_texts,
    use_valid_special_ids,
    without_dropout,
)
from ptune.backbones.cpu import CpuKernels, is_traced
from ptune.backbones.fingerprint import exact_fingerprint, fingerprint
from ptune.errors import PtuneError
from ptune.prompts.attention import Attentions
from ptune.prompts.batch import Batch
from ptune.prompts.config import (
    OF_LAYERS,
    PREFIX_TUNING,
    Pooling,
    PromptEncoderConfig,
    vectors_of,
)
from ptune.prompts.heads import Head, Heads
from ptune.prompts.hooks import FrozenCheckpoint, MeanPooling, OnlyPositionsRead, VirtualTokens
from ptune.prompts.kept import text_keys
from ptune.prompts.keys import KeyValue
from ptune.prompts.mechanisms import (
    InputEmbeddings,
    LayerEmbeddings,
    Mechanism,
    NoPrompt,
    PrefixKeyValues,
    Prompt,
    SharedInputEmbeddings,
)
from ptune.prompts.passes import Pass, Passes
from ptune.prompts.readers import Readers, TextStates

# The input prompt of a causal backbone, computed once for a whole batch.
SHARED = "shared"


_MECHANISMS: dict[str, Callable[[PreTrainedModel, Architecture, VirtualTokens], Mechanism]] = {
    "none": NoPrompt,
    "input": InputEmbeddings,
    SHARED: SharedInputEmbeddings,
    "prefix": PrefixKeyValues,
    "layers": LayerEmbeddings,
    "reader": Readers,
}


class Given(NamedTuple):
    """A batch of texts as the caller gives it; see `PromptModel.forward`."""

    input_ids: Tensor | None = None
    attention_mask: Tensor | None = None
    token_type_ids: Tensor | None = None
    position_ids: Tensor | None = None
    inputs_embeds: Tensor | None = None


@dataclass(frozen=True)
class _Before:
    """Snapshot of the settings of a backbone that ptune changes, restored by `Host.release`."""

    requires_grad: dict[str, bool]
    training: dict[Any, bool]
    special_ids: list[tuple[Any, str, Any]]

    @classmethod
    def of(cls, backbone: PreTrainedModel) -> _Before:
        return cls(
            {name: p.requires_grad for name, p in backbone.named_parameters()},
            {module: module.training for module in backbone.modules()},
            special_ids(backbone.config),
        )

    def restore(self, backbone: PreTrainedModel) -> None:
        for name, parameter in backbone.named_parameters():
            parameter.requires_grad_(self.requires_grad[name])
        for module, training in self.training.items():
            module.training = training
        for config, name, value in self.special_ids:
            setattr(config, name, value)


class Host:
    """A frozen backbone with hooks that insert prompts, until `release` detaches them.

    Any number of threads can call `run`. Each forward pass has its own `Pass`, and they run one
    at a time.

    Args:
        backbone: A sequence classifier of 🤗 Transformers. It is changed in place.

    Attributes:
        architecture: What is known about the backbone.
        identity: Sizes and weights by which an adapter recognises the backbone.
        heads: Exchanges the backbone's head.
        passes: Holds the forward pass that is running.
        released: True after `release`.

    Raises:
        PtuneError: The backbone cannot be p-tuned, or already has a host. It is then unchanged.
    """

    def __init__(self, backbone: PreTrainedModel) -> None:
        parts = backbone.modules() if isinstance(backbone, nn.Module) else ()
        if any(getattr(part, "ptune_hosted", False) for part in parts):
            raise PtuneError(
                f"This {type(backbone).__name__} already carries a prompt. Add another one to its "
                "PromptModel (add_adapter, load_adapter), or restore the backbone first (unload)."
            )
        self.backbone = backbone
        self.architecture = own = Architecture.of(backbone)
        self.identity = {**own.sizes, **fingerprint(backbone, own.head_names)}
        self.passes = Passes()
        self.released = False
        self._attached: list[Any] = []  # each has `remove`
        self._mechanisms: dict[str, Mechanism] = {}
        self._attentions: Attentions | None = None
        self._tested: dict[str, bool] = {}
        self._before = _Before.of(backbone)
        try:
            backbone.ptune_hosted = True
            use_valid_special_ids(backbone.config, self.architecture.vocab_rows)
            backbone.requires_grad_(False)
            self.heads = self.attach(Heads(backbone, self.architecture.head_names))
            if CpuKernels.are_faster(backbone):
                self.attach(CpuKernels(backbone))
            self.tokens = self.attach(VirtualTokens(backbone, self.passes))
            self.attach(MeanPooling(backbone, own, self.passes))
            if end := self.architecture.last_layer_end:
                self.attach(OnlyPositionsRead(backbone, end, self.passes))
        except BaseException:
            self.release()
            raise
        self._checkpointable = compat.checkpointing_layers(backbone)

    def attach(self, attached: Any) -> Any:
        """Keep what was attached to the backbone, so that `release` removes it; returned."""
        self._attached.append(attached)
        return attached

    def release(self) -> PreTrainedModel:
        """Detach everything and return the backbone, bit for bit as it was before."""
        with self.passes.lock:
            for attached in reversed(self._attached):
                attached.remove()
            self._attached.clear()
            self.released = True
            for layer in self.checkpointed_layers():
                function = compat.checkpointing_function(layer)
                if isinstance(function, FrozenCheckpoint):
                    compat.set_checkpointing_function(layer, function.checkpoint)
            self._before.restore(self.backbone)
            self.backbone.__dict__.pop("ptune_hosted", None)
        return self.backbone

    def check_in_use(self) -> None:
        """Check that the backbone still carries prompts.

        Raises:
            PtuneError: It was released.
        """
        if self.released:
            raise PtuneError(
                f"This {self.architecture.name} was given back (unload) and has no prompts any "
                "more. Build a PromptModel on it again."
            )

    # Prompts.

    def fitted(self, config: PromptEncoderConfig) -> PromptEncoderConfig:
        """The configuration with the backbone's sizes filled in.

        Raises:
            PtuneError: The prompt does not fit the backbone.
        """
        own = self.architecture
        config = config.for_backbone(
            token_dim=own.token_dim,
            num_layers=own.num_layers,
            num_heads=self._key_heads() if config.peft_type == PREFIX_TUNING else own.num_heads,
            name=self.backbone.name_or_path or None,
            decoder=generates(own.model_type),
        )
        k = config.num_virtual_tokens
        takes = config.depth == "input" or (config.shift_positions and k)
        if takes and own.max_positions is not None and k >= own.max_positions:
            raise PtuneError(
                f"{k} virtual tokens do not fit: the backbone has {own.max_positions} positions "
                "and a text needs some of them. Use a smaller num_virtual_tokens."
            )
        if own.mask_token is not None:
            if config.depth == "reader":
                raise PtuneError(
                    "The template has {mask}, where the head reads the text, and a reader reads "
                    "after it. Use a deep or an input prompt, or a template without {mask}."
                )
            if config.pooling != "architecture":
                raise PtuneError(
                    f"The template has {{mask}}, where the head reads, and pooling is "
                    f"{config.pooling!r}. Use 'architecture', or a template without {{mask}}."
                )
        if config.pooling in OF_LAYERS and not self._tests(self._takes_layers):
            raise PtuneError(
                f"pooling is {config.pooling!r}, but ptune cannot give the states of the last "
                f"layers of {own.name} to its head. Use 'mean' or 'architecture'."
            )
        if config.pooling == "pairs" and not own.takes_token_types:
            raise PtuneError(
                f"pooling is 'pairs', but {own.name} has no token types, by which ptune tells the "
                "two texts of a pair apart. Use 'layers', 'mean' or 'architecture'."
            )
        if config.reads_reader_and_text and self._read_of_texts == "architecture":
            raise PtuneError(
                f"pooling is {config.pooling!r}, but the head of a reader on {own.name} cannot "
                "read the text. Use 'prompt' or 'architecture'."
            )
        if config.reader_key_rank and not own.adds_keys:
            raise PtuneError(
                f"reader_key_rank is {config.reader_key_rank}, but a reader on {own.name} cannot "
                "add to the keys that it sees. Leave it out."
            )
        if config.pooling == "prompt" and config.depth == "input" and own.is_causal:
            raise PtuneError(
                "pooling is 'prompt', but this backbone is causal: a prompt before the text cannot "
                "attend to it. Use 'architecture' or 'mean'."
            )
        return config

    def _tests(self, test: Callable[[], bool]) -> bool:
        """The result of a test of this backbone, which runs once."""
        if test.__name__ not in self._tested:
            with self.passes.lock:
                self._tested[test.__name__] = test()
        return self._tested[test.__name__]

    def _takes_layers(self) -> bool:
        """Whether a head can read several layers, the same in any batch."""
        own = self.architecture
        if own.is_encoder_decoder or own.mask_token is not None:
            return False
        if not own.layers or self.heads.reads is None:
            return False
        if self.backbone.device.type == "meta":
            return True
        ids, mask = two_texts(self.backbone)
        prompt = replace(self.no_prompt, pooling="layers")
        head = self.heads.new()
        weight = head.parameters[self.heads.reads]
        weight.data = weight.repeat(1, own.layers_read)
        return self._agree(
            lambda: self.run([prompt], Given(ids, mask), head=head).logits[1:],
            lambda: self.run([prompt], Given(ids[1:, :3]), head=head).logits,
        )

    def means_read(self, config: PromptEncoderConfig) -> int:
        """How many vectors the head of a prompt reads, one after the other."""
        own = vectors_of(config.pooling, self.architecture.layers_read)
        return own + config.reads_reader_and_text

    def _key_heads(self) -> int | None:
        """Number of key-value heads; ``None`` where PEFT's prefix tuning cannot place keys.

        PEFT needs one attention per layer, and all of them alike.
        """
        shapes = [(a.heads, a.head_dim) for a in self.architecture.attentions]
        alike = len(set(shapes)) == 1 and len(shapes) == self.architecture.num_layers
        return shapes[0][0] if alike else None

    def mechanism_for(
        self, config: PromptEncoderConfig, recorded: str | None = None, width: int | None = None
    ) -> Mechanism:
        """The mechanism for a prompt on this backbone.

        Args:
            config: The prompt.
            recorded: The mechanism that an adapter recorded; ``None``: the one with this width.
            width: Numbers per virtual token; ``None``: the prompt is new.

        Raises:
            PtuneError: The backbone does not support it.
        """
        own = self.architecture
        name = recorded or own.mechanism_of(config.depth, width)
        if name == "prefix" and not own.attentions:
            raise PtuneError(
                f"The prompt consists of key-values in every attention, and {own.name} does not "
                "look its attention up by name in this version of Transformers. Load it with the "
                "version that the adapter was trained with, or train it again."
            )
        if name == "layers" and not own.layers:
            raise PtuneError(
                f"{own.name} cannot have a deep prompt: neither its attention nor its layers are "
                "where Transformers usually has them. Use an input prompt."
            )
        if name == "reader" and (own.is_encoder_decoder or not (own.attentions or own.cache_name)):
            raise PtuneError(
                f"{own.name} cannot have a reader: ptune cannot give the keys and values of a text "
                "to its attention. Use a deep or an input prompt."
            )
        mechanism = self.mechanism(name)
        if name == "reader" and not self._tests(self._reads_exactly):
            raise PtuneError(
                f"{own.name} cannot have a reader: its answer for a text would depend on the other "
                "texts in the batch. Use a deep or an input prompt."
            )
        return mechanism

    def mechanism(self, name: str) -> Mechanism:
        """The mechanism called `name`, attached to the backbone on first use."""
        if name not in self._mechanisms:
            with self.passes.lock:
                if name not in self._mechanisms:
                    self._mechanisms[name] = self.attach(self._new_mechanism(name))
        return self._mechanisms[name]

    def _use_attentions(self) -> None:
        """Route the backbone's attentions through those of `ptune.prompts.attention`."""
        if self._attentions is None:
            attentions = Attentions(self.backbone, self.architecture, self.passes)
            self._attentions = self.attach(attentions)

    def _new_mechanism(self, name: str) -> Mechanism:
        if name not in _MECHANISMS:
            raise PtuneError(
                f"The prompt's mechanism is {name!r}; this version of ptune knows 'none', 'input', "
                "'prefix', 'layers' and 'reader'. The adapter was written by a newer version: "
                "upgrade ptune."
            )
        if name in (SHARED, "prefix") or (name == "reader" and self.architecture.attentions):
            self._use_attentions()
        # Tested before anything is attached, so that an exception leaves the backbone as it was.
        of_text = self._read_of_texts if name == "reader" else "architecture"
        mechanism = _MECHANISMS[name](self.backbone, self.architecture, self.tokens)
        if isinstance(mechanism, Readers):
            mechanism.of_text = of_text
        return mechanism

    @property
    def _read_of_texts(self) -> Pooling:
        """The pooling with all that heads can read of a text; ``"architecture"``: nothing."""
        if self.architecture.is_causal or not self._tests(self._takes_layers):
            return "architecture"
        return "pairs" if self.architecture.takes_token_types else "layers"

    def _reads_exactly(self) -> bool:
        """Whether readers answer the same for a text alone and in a batch with a longer one."""
        readers = self.mechanism("reader")
        assert isinstance(readers, Readers)
        if self.backbone.device.type == "meta" or not readers.by_cache:
            return True
        ids, mask = two_texts(self.backbone)
        prompt = Prompt(readers, self.tokens.weight.new_full((2, readers.width), 0.1), 0)
        return self._agree(
            lambda: self.run([prompt], Given(ids, mask)).logits[1:],
            lambda: self.run([prompt], Given(ids[1:, :3])).logits,
        )

    @torch.no_grad()
    def _agree(self, one: Callable[[], Tensor], other: Callable[[], Tensor]) -> bool:
        """Whether two ways to compute logits are possible here and give the same."""
        try:
            with without_dropout(self.backbone):
                return are_close(one(), other())
        except (AttributeError, RuntimeError, TypeError, ValueError, LookupError):
            return False

    def can_share(self, config: PromptEncoderConfig, **inputs: Any) -> bool:
        """True if a prompt can be computed once for a whole batch with the same results."""
        own = self.architecture
        return (
            own.is_causal
            and own.takes_position_ids
            and config.depth == "input"
            and config.placement == "prefix"
            and inputs.get("position_ids") is None
            # On a GPU, two small passes of a training step take longer than a larger one.
            and not (self.backbone.device.type == "cuda" and torch.is_grad_enabled())
            and not self._needs_everything(inputs)
        )

    def check_shape(self, embeddings: Tensor, config: PromptEncoderConfig, own: Mechanism) -> None:
        """Check that a prompt has the shape that its mechanism needs on this backbone.

        Raises:
            PtuneError: It has another shape.
        """
        expected = (config.rows, own.width)
        if embeddings.shape != expected:
            raise PtuneError(
                f"The prompt has the shape {list(embeddings.shape)}, but "
                f"{self.architecture.name} requires {list(expected)} for a prompt of this kind: "
                "it belongs to another backbone, or has another depth."
            )

    # Gradient checkpointing.

    def checkpointed_layers(self) -> list[Any]:
        """The layers with gradient checkpointing enabled."""
        layers = getattr(self, "_checkpointable", ())
        return [layer for layer in layers if layer.gradient_checkpointing]

    def wrap_checkpoints(self, *, drops_out: bool) -> None:
        """Keep dropout of checkpointed layers off, unless `drops_out`."""
        for layer in self.checkpointed_layers():
            function = compat.checkpointing_function(layer)
            if isinstance(function, FrozenCheckpoint):
                function = function.checkpoint
            wrapped = FrozenCheckpoint(function, self.passes, drops_out=drops_out)
            compat.set_checkpointing_function(layer, wrapped)

    # Forward passes.

    def run(
        self,
        prompts: Sequence[Prompt],
        texts: Given | TextStates,
        which: Sequence[int] | None = None,
        *,
        head: Head | None = None,
        heads: Sequence[Mapping[str, Tensor]] = (),
        one_row: bool | None = None,
        **inputs: Any,
    ) -> Any:
        """Run the backbone on a batch in one forward pass, each text with its own prompt.

        Readers attend to what `read_texts` returns for the texts. The backbone then runs on the
        readers alone.

        Args:
            prompts: Prompts with mechanisms of this host.
            texts: The batch; or, for readers, texts that were read before. With N prompts for each
                of those, `which` has the N prompts of the first text, then those of the second,
                and so on.
            which: The index of each text's prompt. ``None``: all texts share the only prompt.
            head: Use this head instead of the installed one.
            heads: One head per text, one for all, or n that take turns
                (`ptune.prompts.heads.HeadPerText`).
            one_row: Leave padding out (`takes_one_row`); ``None``: if it can, and there is no
                gradient.
            **inputs: What else the backbone gets.

        Raises:
            PtuneError: As for `PromptModel.forward`.
        """
        current = Pass(heads=heads)
        self.check_in_use()
        with self.passes.running(current), self.heads.using(head):
            if self._attentions is not None:
                self._attentions.use_chosen()
            if isinstance(readers := prompts[0].mechanism, Readers):
                states = self.read_texts(texts) if isinstance(texts, Given) else texts
                batch = self._batch(prompts, which, current, states.mask.device)
                inputs |= batch.arrange_readers(readers, states)
                one_row = False
            else:
                assert isinstance(texts, Given), "only readers take texts that were read before"
                batch, arranged = self._arranged(prompts, which, current, texts)
                inputs |= arranged
            if self.architecture.takes_use_cache:
                inputs.setdefault("use_cache", False)  # nothing is generated
            self._leave_out_what_is_not_read(batch, inputs, one_row)
            return self.backbone(**inputs)

    def _leave_out_what_is_not_read(
        self, batch: Batch, inputs: dict[str, Any], one_row: bool | None = None
    ) -> None:
        """Compute neither positions that nothing reads nor, with `one_row`, padding."""
        if not self._needs_everything(inputs):
            batch.compute_only_what_is_read()
            if one_row is None:
                one_row = not torch.is_grad_enabled() and self.takes_one_row
            if one_row:
                batch.as_one_row(inputs, self.tokens.weight.dtype)

    @property
    def takes_one_row(self) -> bool:
        """Whether it can read a batch as one row of tokens, without padding."""
        on_cpu = self.backbone.device.type == "cpu"
        return on_cpu and self.architecture.takes_one_row and self._tests(self._reads_one_row)

    def _reads_one_row(self) -> bool:
        """Whether two texts get the same logits without their padding."""
        ids, mask = two_texts(self.backbone)
        self._use_attentions()
        # What an adapter's head answers may not depend on the text, as before training.
        head = self.heads.random()

        def logits(one_row: bool) -> Tensor:
            return self.run([self.no_prompt], Given(ids, mask), head=head, one_row=one_row).logits

        return self._agree(partial(logits, True), partial(logits, False))

    def _batch(
        self,
        prompts: Sequence[Prompt],
        which: Sequence[int] | None,
        current: Pass,
        device: torch.device,
    ) -> Batch:
        return Batch(self.architecture, self.backbone.config, prompts, which, current, device)

    def _arranged(
        self, prompts: Sequence[Prompt], which: Sequence[int] | None, current: Pass, given: Given
    ) -> tuple[Batch, dict[str, Tensor]]:
        """A batch of texts with their prompts in a pass, and the backbone's inputs."""
        ids, mask, embeddings = self._given_ids(given), given.attention_mask, given.inputs_embeds
        _check_shapes(ids, given)
        if mask is None:
            mask = torch.ones_like(ids)
        elif mask.is_floating_point():  # positions are counted by it
            mask = (mask != 0).long()
        if embeddings is None:
            self._check_ids(ids, mask)
            mask = self._without_places(ids, mask, prompts, which)
        batch = self._batch(prompts, which, current, ids.device)
        if embeddings is not None:
            ids = batch.add_embeddings(embeddings)
        return batch, batch.arrange(ids, mask, given.token_type_ids, given.position_ids)

    @property
    def no_prompt(self) -> Prompt:
        """A prompt without virtual tokens."""
        weight = self.tokens.weight
        return Prompt(self.mechanism("input"), weight.new_empty(0, weight.shape[1]), 0)

    @property
    def readers(self) -> Readers:
        """The mechanism of readers, with the texts that it keeps."""
        readers = self.mechanism("reader")
        assert isinstance(readers, Readers)
        return readers

    @torch.no_grad()
    def read_texts(self, given: Given) -> TextStates:
        """What readers see of a batch of texts, from `Readers.kept` if they were read before.

        Raises:
            PtuneError: As for `PromptModel.forward`.
        """
        kept = self.readers.kept
        drops_out = self.backbone.base_model.training
        input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds = given
        unusual = position_ids is not None or inputs_embeds is not None or is_traced()
        if input_ids is None or not kept.is_on or drops_out or unusual:
            return self._read(given)
        kept.check(self._version(), self._fingerprint)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        keys = text_keys(input_ids, attention_mask, token_type_ids)
        # The first row of each text that was not read before.
        first = {key: i for i, key in reversed(list(enumerate(keys)))}
        found = {key: kept.get(key) for key in first}
        missing = {key: i for key, i in first.items() if found[key] is None}
        kept.read += len(missing)
        kept.reused += len(keys) - len(missing)
        if missing:
            index = torch.tensor(list(missing.values()), device=input_ids.device)
            types = None if token_type_ids is None else token_type_ids[index]
            states = self._read(Given(input_ids[index], attention_mask[index], types))
            kept.shape = states.shape
            new = dict(zip(missing, states.rows(), strict=True))
            kept.add(new)
            found |= new
        assert kept.shape is not None
        return TextStates.of_rows([cast("Tensor", found[key]) for key in keys], kept.shape)

    def _read(self, given: Given) -> TextStates:
        """Run the backbone on texts without a prompt and keep all keys and values."""
        by_cache, captured = self.readers.by_cache, list[KeyValue]()
        if by_cache and self.checkpointed_layers():
            raise PtuneError(
                f"A reader on {self.architecture.name} cannot use gradient checkpointing, because "
                "the layers would drop the keys and values of the text. Switch it off: a reader "
                "takes little memory without it."
            )
        current = Pass(captured_key_values=None if by_cache else captured)
        with self.passes.running(current):
            if self._attentions is not None:
                self._attentions.use_chosen()
            none = replace(self.no_prompt, pooling=self.readers.of_text)
            batch, inputs = self._arranged([none], None, current, given)
            mask = inputs["attention_mask"] != 0
            if self.architecture.takes_use_cache:
                inputs["use_cache"] = by_cache  # type: ignore[assignment]
            self._leave_out_what_is_not_read(batch, inputs)
            output = self.backbone.base_model(**inputs)
            if by_cache:
                cache = output[self.architecture.cache_name]
                captured = [(layer.keys, layer.values) for layer in cache.layers]
            means = output.last_hidden_state[:, 0]  # the same everywhere
        return TextStates(captured, mask, means[:, :0] if none.pooling == "architecture" else means)

    def _version(self) -> object:
        """Differs between hosts, and whenever the frozen part of the backbone changes."""
        device, heads = self.tokens.weight.device, set(self.architecture.head_names)
        autocast = torch.is_autocast_enabled(device.type)
        return (
            self.passes,
            compat.attention_of(self.backbone),
            torch.get_autocast_dtype(device.type) if autocast else None,
            *(
                (p.dtype, p.device, compat.version_of(p))
                for name, p in self.backbone.named_parameters()
                if name not in heads
            ),
        )

    def _fingerprint(self) -> str | None:
        """Which backbone this is, and how it computes, for texts that are kept in a folder."""
        device = self.tokens.weight.device.type
        autocast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
        how = (compat.attention_of(self.backbone), device, autocast, self.readers.of_text)
        return exact_fingerprint(self.backbone, self.architecture.head_names, how)

    def _given_ids(self, given: Given) -> Tensor:
        input_ids, inputs_embeds = given.input_ids, given.inputs_embeds
        if input_ids is not None and inputs_embeds is not None:
            raise PtuneError("Give input_ids or inputs_embeds, not both.")
        if input_ids is not None:
            return input_ids
        if inputs_embeds is None:
            raise PtuneError("Give input_ids or inputs_embeds; both are missing.")
        if self.architecture.is_encoder_decoder or self.architecture.mask_token is not None:
            token = "end" if self.architecture.is_encoder_decoder else "mask"
            raise PtuneError(
                f"{self.architecture.name} looks for the id of the {token} token. Give input_ids "
                "instead of inputs_embeds."
            )
        return inputs_embeds.new_zeros(inputs_embeds.shape[:2], dtype=torch.long)

    def _check_ids(self, input_ids: Tensor, attention_mask: Tensor) -> None:
        """Check that no token, ``[batch, seq]``, has the id of a virtual token."""
        if is_traced() or not input_ids.numel():
            return
        rows = self.architecture.vocab_rows
        if (largest := int((input_ids * (attention_mask != 0)).max())) >= rows:
            raise PtuneError(
                f"A text has the token id {largest}, but the backbone's embedding weight has only "
                f"the rows 0 to {rows - 1}: the tokenizer belongs to another backbone, or tokens "
                "were added to it. Use the backbone's own tokenizer, or enlarge the embedding "
                "weight before p-tuning (backbone.resize_token_embeddings(len(tokenizer)))."
            )
        token = self.architecture.mask_token
        if token is not None and not (input_ids == token).any(dim=1).all():
            raise PtuneError(
                f"A text has no mask token (id {token}), and this classifier answers there. "
                "Tokenise texts with its template (ptune.texts.encode)."
            )

    def _without_places(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        prompts: Sequence[Prompt],
        which: Sequence[int] | None,
    ) -> Tensor:
        """The mask ``[batch, seq]`` without places for virtual tokens, where a prompt has none.

        Raises:
            PtuneError: A prompt has virtual tokens among the words, and a text other places.
        """
        is_place = (input_ids < 0) & (attention_mask != 0)
        if is_traced() or not (is_place.any() or any(prompt.in_text for prompt in prompts)):
            return attention_mask
        expected = [len(prompt.embeddings) if prompt.in_text else 0 for prompt in prompts]
        each = input_ids.new_tensor([expected[i] for i in which or [0] * len(input_ids)])
        found = is_place.sum(dim=1)
        if (wrong := (found != each) & (each > 0)).any():
            text = int(wrong.int().argmax())
            raise PtuneError(
                f"A text has {int(found[text])} places for virtual tokens (ids below 0), and its "
                f"prompt has {int(each[text])}. Tokenise texts with the classifier's template "
                "(ptune.texts.encode)."
            )
        return attention_mask * (~is_place | (each > 0)[:, None])

    def _needs_everything(self, inputs: dict[str, Any]) -> bool:
        """True if every position must be computed (hidden states, attentions, tracing)."""
        config = self.backbone.config
        return bool(
            any(
                inputs.get(name, getattr(config, name, False))
                for name in ("output_hidden_states", "output_attentions")
            )
            or self.checkpointed_layers()
            or is_traced()
        )


def _check_shapes(ids: Tensor, given: Given) -> None:
    """Check that the mask and the token types have the shape ``[batch, seq]`` of the tokens."""
    expected = list(ids.shape)
    if len(expected) != 2:
        raise PtuneError(f"input_ids have the shape {expected}; expected [batch, seq].")
    for name in ("attention_mask", "token_type_ids"):
        tensor = getattr(given, name)
        if tensor is not None and list(tensor.shape) != expected:
            raise PtuneError(
                f"{name} has the shape {list(tensor.shape)}, and the tokens {expected}. Pass what "
                "the tokenizer returned for these texts."
            )
