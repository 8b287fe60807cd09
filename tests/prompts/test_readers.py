"""Readers: virtual tokens that attend to the text, while the text does not attend to them."""

from dataclasses import replace

import pytest
import torch
import transformers
from architectures import ARCHITECTURES, build_model, tokenizer_that_pads
from conftest import SENTENCES, build, refused, use_prompt
from packaging.version import Version
from subjects import shake

from ptune import PromptEncoderConfig, PromptModel
from ptune.backbones.architectures import Architecture
from ptune.peft import PromptEncoderConfig as InPeft
from ptune.prompts.host import Given
from ptune.prompts.keys import FACTOR
from ptune.prompts.mechanisms import Prompt

K = 5
REFUSED = ["MPNet", "DeBERTa", "DeBERTa-v2", "Megatron-BERT", "XLNet", "BART", "T5"]
READABLE = [name for name in ARCHITECTURES if name not in REFUSED]
# Those whose head can also read the text.
READ_TWICE = ["BERT", "RoBERTa", "ELECTRA", "DistilBERT"]
DECODERS = READABLE[READABLE.index("GPT-2") :]
TEXTS = [*SENTENCES[:4], "the"]


def made(name):
    architecture = ARCHITECTURES[name]
    tokenizer = tokenizer_that_pads(architecture, SENTENCES)
    return build_model(architecture, tokenizer), tokenizer


def reader(backbone, seed=0, **options):
    """A reader with random numbers."""
    config = PromptEncoderConfig(**{"depth": "reader", "num_virtual_tokens": K, **options})
    return shake(PromptModel(backbone, config), seed, std=0.4)


def ranks(backbone):
    """Everything low-rank that a reader can have on this backbone."""
    adds = Architecture.of(backbone).adds_keys
    return {"reader_rank": 2, "reader_key_rank": 2 if adds else 0}


def padded(tokenizer, texts=TEXTS, **options):
    return tokenizer(texts, padding=True, return_tensors="pt", **options)


@torch.no_grad()
@pytest.mark.parametrize("name", READABLE)
def test_a_text_is_read_the_same_with_and_without_readers(name):
    """Bit for bit: the inputs and the output of every layer."""
    backbone, tokenizer = made(name)
    model, inputs = reader(backbone, **ranks(backbone)), padded(tokenizer)
    width, seen = inputs["input_ids"].shape[1], []
    for layer in model.architecture.layers or [model.architecture.attentions[0].path]:
        backbone.get_submodule(layer).register_forward_hook(
            lambda _, args, output: seen.append(output[0] if isinstance(output, tuple) else output)
        )
    # Compute every position of the last layer.
    model.host.architecture = replace(model.architecture, last_layer_end=None)
    with model.disable_adapter():
        model(**inputs)
    alone, seen[:] = [*seen], []
    model(**inputs)
    with_readers = [states for states in seen if states.shape[1] == width]
    assert len(alone) == len(with_readers) == len(seen) / 2
    assert all(torch.equal(one, other) for one, other in zip(alone, with_readers, strict=True))


@torch.no_grad()
@pytest.mark.parametrize("name", READABLE)
def test_an_answer_depends_neither_on_the_batch_nor_on_padding(name):
    backbone, tokenizer = made(name)
    model = reader(backbone, **ranks(backbone))
    inputs = padded(tokenizer)
    expected = torch.cat([model(**padded(tokenizer, [text])).logits for text in TEXTS])
    assert expected.std(dim=0).max() > 0.01
    torch.testing.assert_close(model(**inputs).logits, expected, atol=1e-5, rtol=1e-4)
    more = {key: torch.nn.functional.pad(ids, (3, 2)) for key, ids in inputs.items()}
    torch.testing.assert_close(model(**more).logits, expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", READ_TWICE)
def test_a_head_reads_the_reader_and_then_the_text(name):
    """What it reads of the text is what a head without a prompt reads."""
    backbone, tokenizer = made(name)
    inputs = padded(tokenizer)
    model, width = reader(backbone, pooling="layers"), backbone.config.hidden_size
    reads = model.host.heads.reads
    weight = model.state.head.parameters[reads]
    layers = model.architecture.layers_read
    assert weight.shape[1] == (1 + layers) * width
    both = model(**inputs).logits
    alone = torch.cat([model(**padded(tokenizer, [text])).logits for text in TEXTS])
    torch.testing.assert_close(both, alone, atol=1e-5, rtol=1e-4)
    weight[:, :width] = 0
    found = model(**inputs).logits
    assert not torch.allclose(found, both, atol=1e-3)
    text = weight[:, width:].clone()
    model.add_adapter("text", PromptEncoderConfig(depth="none", pooling="layers"))
    model.set_adapter("text")
    for own, parameter in model.adapters["default"].head.parameters.items():
        value = text if own == reads else parameter
        model.state.head.parameters[own].copy_(value)
    torch.testing.assert_close(model(**inputs).logits, found, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("readers", [1, 2])
@pytest.mark.parametrize("name", ["BERT", "Llama", "Gemma 2", "GPT-2"])
def test_added_keys_are_what_is_added_to_the_keys(name, readers):
    """Attention never computes the sum, which must give the same answer."""
    backbone, tokenizer = made(name)
    model, inputs = reader(backbone, **ranks(backbone)), padded(tokenizer)
    host, config = model.host, model.prompt_config
    embeddings = model.prompt_embeddings()
    prompts = [
        Prompt.of(config, model.state.mechanism, embeddings * (1 + i)) for i in range(readers)
    ]
    which = [*range(readers)] * len(TEXTS)
    texts = host.read_texts(Given(**inputs))
    found = host.run(prompts, texts, which, head=model.state.head).logits
    *_, last = embeddings.split(config.parts)
    sizes = model.state.mechanism.sizes
    for i, own in enumerate(prompts):
        pairs = [texts.key_values[0]]
        rows = (last * (1 + i)).chunk(2)
        parts = zip(*(t.split(sizes, dim=1)[1:] for t in rows), strict=True)
        for (key, value), (down, up) in zip(texts.key_values[1:], parts, strict=True):
            _, heads, _, dim = key.shape
            read = value.transpose(1, 2).flatten(2)
            added = FACTOR * (read @ down[:, : heads * dim].T) @ up[:, : heads * dim]
            pairs.append((key + added.unflatten(2, (heads, dim)).transpose(1, 2), value))
        alone = replace(own, added_keys=None)
        changed = replace(texts, key_values=pairs)
        expected = host.run([alone], changed, head=model.state.head).logits
        torch.testing.assert_close(found[i::readers], expected, atol=1e-5, rtol=1e-4)
        unchanged = host.run([alone], texts, head=model.state.head).logits
        assert (unchanged - expected).abs().max() > 1e-3


@pytest.mark.parametrize("name", READABLE)
def test_keys_can_be_added_unless_texts_enter_as_a_cache(name):
    backbone, _ = made(name)
    # Since Transformers 5.24, the attention of GPT-J is looked up by name.
    late = ["GPT-J"] if Version(transformers.__version__) < Version("5.24") else []
    expected = name not in ["BLOOM", "Falcon", "GPT-Neo", *late]
    assert Architecture.of(backbone).adds_keys == expected


@pytest.mark.parametrize("name", ["BLOOM", "Falcon"])
def test_keys_are_not_added_to_texts_that_enter_as_a_cache(name):
    backbone, _ = made(name)
    with refused(
        f"reader_key_rank is 2, but a reader on {type(backbone).__name__} cannot add to the keys "
        "that it sees. Leave it out."
    ):
        reader(backbone, reader_key_rank=2)
    assert not hasattr(backbone, "ptune_hosted")


@torch.no_grad()
@pytest.mark.parametrize("name", DECODERS)
def test_in_a_decoder_a_reader_equals_tokens_after_the_text(name):
    """In a causal model, a text cannot depend on what comes after it, so the two must agree."""
    backbone, tokenizer = made(name)
    model = reader(backbone)
    words = torch.tensor(tokenizer("my money back and that at once please")["input_ids"][:K])
    use_prompt(model, model.state.mechanism.from_words(words))
    for text in TEXTS:  # longer and shorter than the window of attention
        inputs = padded(tokenizer, [text])
        found = model(**inputs).logits
        ids = torch.cat([inputs["input_ids"], words[None]], dim=1)
        plain = model.host.run([model.host.no_prompt], Given(ids), head=model.state.head)
        torch.testing.assert_close(found, plain.logits, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", REFUSED)
def test_an_architecture_that_cannot_be_read_is_refused(name):
    backbone, _ = made(name)
    with refused(
        f"{type(backbone).__name__} cannot have a reader: ptune cannot give the keys and values of "
        "a text to its attention. Use a deep or an input prompt."
    ):
        reader(backbone)
    assert not hasattr(backbone, "ptune_hosted")


def test_everything_of_a_reader_gets_a_gradient_and_the_text_none(kind, tokenizer, texts):
    model = reader(build(kind), reader_rank=2, reader_key_rank=2).train()
    inputs = padded(tokenizer, texts[:4])
    model(**inputs, labels=torch.tensor([0, 1, 0, 1])).loss.backward()
    width = model.architecture.token_dim
    gradient = model.prompt_encoder.embedding.weight.grad
    assert (gradient[:K].abs().amax(dim=1) > 0).all()  # every token
    # One more layer in width: both matrices of low rank.
    assert (gradient[K:, width:].abs().amax(dim=1) > 0).all()
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    assert model.host.read_texts(Given(**inputs)).key_values[0][0].grad_fn is None


@pytest.mark.parametrize(
    ("kind", "pooling"),
    [("bert", "architecture"), ("bert", "layers"), ("bert", "pairs"), ("gpt2", "architecture")],
)
def test_kept_texts_are_read_once_and_give_the_same_answers(kind, pooling, tokenizer, texts):
    model = reader(build(kind), pooling=pooling)
    inputs = padded(tokenizer, texts)
    expected = model(**inputs).logits
    kept = model.host.readers.kept
    kept.limit = 10**8
    for _ in range(2):
        torch.testing.assert_close(model(**inputs).logits, expected, atol=1e-6, rtol=1e-5)
    assert (kept.read, kept.reused, len(kept)) == (len(texts), len(texts), len(texts))
    some = padded(tokenizer, [texts[2], "a new one", texts[0]])
    found = model(**some).logits
    assert kept.read == len(texts) + 1
    kept.limit = 0
    torch.testing.assert_close(found, model(**some).logits, atol=1e-6, rtol=1e-5)


def test_kept_texts_stay_below_the_limit(tokenizer, texts):
    model = reader(build("bert"))
    kept = model.host.readers.kept
    kept.limit = 10**8
    model(**padded(tokenizer, texts[:1]))
    kept.limit = 3 * kept.nbytes
    inputs = padded(tokenizer, texts)
    first = model(**inputs).logits
    assert 0 < kept.nbytes <= kept.limit
    assert 0 < len(kept) < len(texts)
    torch.testing.assert_close(model(**inputs).logits, first, atol=1e-6, rtol=1e-5)
    assert kept.nbytes <= kept.limit


def test_kept_texts_are_forgotten_when_the_backbone_changes(tokenizer, texts):
    model = reader(build("bert"))
    kept = model.host.readers.kept
    kept.limit = 10**8
    inputs = padded(tokenizer, texts[:3])
    weights = {"weight": torch.randn(32, 64), "bias": torch.zeros(32)}
    for change in (
        lambda: model.to(torch.bfloat16),
        lambda: model.to(torch.float32),
        lambda: model.backbone.bert.encoder.layer[0].output.dense.load_state_dict(weights),
        lambda: model.backbone.set_attn_implementation("ptune_eager"),
    ):
        model(**inputs)
        before = kept.read
        change()
        found = model(**inputs).logits
        assert kept.read == before + 3
        limit, kept.limit = kept.limit, 0
        torch.testing.assert_close(found, model(**inputs).logits)
        kept.limit = limit


def test_kept_texts_differ_by_token_types_and_length(tokenizer):
    model = reader(build("bert"))
    kept = model.host.readers.kept
    kept.limit = 10**8
    inputs = dict(padded(tokenizer, ["where is my parcel"]))
    inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    one = model(**inputs).logits
    inputs["token_type_ids"] += 1
    assert not torch.allclose(model(**inputs).logits, one)
    shorter = {key: ids[:, :-1] for key, ids in inputs.items()}
    assert not torch.allclose(model(**shorter).logits, one)
    assert kept.read == 3


def written(model, folder, limit=10**8, memory=0):
    """Texts of a model are kept in a folder."""
    model.kept_texts.limit = memory
    model.kept_texts.use_folder(folder, limit)
    return model.kept_texts


@pytest.mark.parametrize("pooling", ["architecture", "layers"])
def test_a_later_run_finds_texts_in_a_folder(pooling, tokenizer, texts, tmp_path):
    model, inputs = reader(build("bert"), pooling=pooling), padded(tokenizer, texts)
    expected = model(**inputs).logits
    kept = written(model, tmp_path, memory=1000)
    torch.testing.assert_close(model(**inputs).logits, expected, atol=1e-6, rtol=1e-5)
    assert (kept.read, kept.from_folder) == (len(texts), 0)
    torch.testing.assert_close(model(**inputs).logits, expected, atol=1e-6, rtol=1e-5)
    assert (kept.read, kept.from_folder) == (len(texts), len(texts))
    assert kept.nbytes <= 1000
    later = written(model, tmp_path)
    model(**padded(tokenizer, texts[:1]))  # the first text is always read
    assert torch.equal(model(**inputs).logits, model(**inputs).logits)
    assert later.read == len(texts) + 1
    torch.testing.assert_close(model(**inputs).logits, expected, atol=1e-6, rtol=1e-5)
    (file,) = tmp_path.iterdir()
    file.unlink()  # while it is used
    torch.testing.assert_close(model(**inputs).logits, expected, atol=1e-6, rtol=1e-5)
    later.close()
    before = later.reused
    model(**inputs)
    assert (later.reused, list(tmp_path.iterdir())) == (before, [])


def test_texts_in_a_folder_are_those_of_one_backbone_format_tokenizer_and_length(
    tokenizer, texts, tmp_path
):
    """Every change but that of the head has a file or a text of its own."""

    def answers(change, **options):
        model = reader(build("bert"))
        change(model.backbone)
        kept = written(model, tmp_path)
        model(**padded(tokenizer, ["a text"]))
        found = model(**padded(tokenizer, texts[:3], **options)).logits
        read = kept.read
        kept.close()
        torch.testing.assert_close(found, model(**padded(tokenizer, texts[:3], **options)).logits)
        return read - 1, len(list(tmp_path.iterdir()))

    def fine_tuned(backbone):
        with torch.no_grad():
            backbone.bert.encoder.layer[1].attention.self.key.weight[0, 0] += 1e-3

    def same(backbone):
        backbone.config.id2label = {0: "no", 1: "yes"}

    def other_tokens(backbone):
        with torch.no_grad():
            backbone.bert.embeddings.word_embeddings.weight.copy_(
                backbone.bert.embeddings.word_embeddings.weight.flip(0)
            )

    assert answers(lambda backbone: None) == (3, 1)
    assert answers(same) == (0, 1)
    assert answers(fine_tuned) == (3, 2)
    assert answers(lambda backbone: backbone.to(torch.bfloat16)) == (3, 3)
    assert answers(lambda backbone: backbone.set_attn_implementation("ptune_eager")) == (3, 4)
    assert answers(lambda backbone: setattr(backbone.config, "layer_norm_eps", 0.1)) == (3, 5)
    assert answers(other_tokens) == (3, 6)
    assert answers(same, truncation=True, max_length=4) == (3, 6)


def test_a_damaged_file_of_texts_is_replaced(tokenizer, texts, tmp_path):
    model, inputs = reader(build("bert")), padded(tokenizer, texts)
    expected = model(**inputs).logits
    written(model, tmp_path)
    model(**inputs)
    model.kept_texts.close()
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    middle = len(whole) // 2
    for damage in (
        whole[:middle],
        b"no database!!!" + whole[14:],
        whole[:middle] + bytes(64) + whole[middle + 64 :],
        whole[:4096] + bytes(4096) + whole[8192:],
        b"",
    ):
        file.write_bytes(damage)
        for _ in range(3):
            kept = written(model, tmp_path)
            for _ in range(2):
                torch.testing.assert_close(model(**inputs).logits, expected, atol=1e-6, rtol=1e-5)
            before = kept.read
            model(**inputs)
            is_whole = kept.read == before
            kept.close()
        assert is_whole


def test_a_file_of_texts_stays_below_its_limit_and_a_wrong_folder_is_refused(
    tokenizer, texts, tmp_path
):
    model, inputs = reader(build("bert")), padded(tokenizer, texts)
    expected = model(**inputs).logits
    kept = written(model, tmp_path / "new" / "folder", limit=50_000)
    for _ in range(2):
        torch.testing.assert_close(model(**inputs).logits, expected, atol=1e-6, rtol=1e-5)
    (file,) = (tmp_path / "new" / "folder").iterdir()
    assert 20_000 < file.stat().st_size <= 50_000
    assert 0 < kept.from_folder < len(texts)
    kept.close()
    (tmp_path / "file").write_text("mine")
    written(model, tmp_path / "file")
    with refused(
        "Cannot keep texts in …/file: … Name a folder that you may write to, or leave out "
        "--keep-texts-in."
    ):
        model(**inputs)


@torch.no_grad()
@pytest.mark.parametrize("name", ["BERT", "Gemma 2", "Gemma 3", "ALBERT", "BLOOM", "Qwen 3"])
def test_many_readers_share_what_was_read_of_a_text(name):
    """They do not see each other, whatever their lengths and ranks."""
    backbone, tokenizer = made(name)
    model = reader(backbone)
    inputs = padded(tokenizer)
    host, mechanism = model.host, model.state.mechanism
    prompts, expected = [], []
    adds = model.architecture.adds_keys
    for i, (k, rank, key_rank) in enumerate([(5, 0, 1), (3, 2, 0), (1, 1, 3)]):
        torch.manual_seed(i)
        config = PromptEncoderConfig(
            depth="reader",
            num_virtual_tokens=k,
            reader_rank=rank,
            reader_key_rank=key_rank if adds else 0,
        )
        embeddings = torch.randn(config.rows, mechanism.width)
        prompts.append(Prompt.of(config.resolved(), mechanism, embeddings))
        expected.append(host.run([prompts[-1]], Given(**inputs), head=model.state.head).logits)
    which = [*range(3)] * len(TEXTS)
    texts = host.read_texts(Given(**inputs))
    found = host.run(prompts, texts, which, head=model.state.head).logits
    expected = torch.stack(expected, dim=1).flatten(0, 1)  # [texts * 3, labels]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_gradient_checkpointing_gives_the_same_gradients(tokenizer, texts):
    inputs, gradients = padded(tokenizer, texts[:4]), []
    for checkpointing in (False, True):
        model = reader(build("bert"), reader_rank=2, reader_key_rank=2).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(**inputs, labels=torch.tensor([0, 1, 0, 1])).loss.backward()
        gradients.append(model.prompt_encoder.embedding.weight.grad)
    torch.testing.assert_close(*gradients)


def test_gradient_checkpointing_is_refused_where_texts_enter_as_a_cache():
    backbone, tokenizer = made("BLOOM")
    model = reader(backbone).train()
    model.gradient_checkpointing_enable()
    with refused(
        "A reader on BloomForSequenceClassification cannot use gradient checkpointing, because the "
        "layers would drop the keys and values of the text. Switch it off: a reader takes little "
        "memory without it."
    ):
        model(**padded(tokenizer))


def test_a_text_and_a_reader_that_follows_it_must_fit_together(tokenizer):
    model = reader(build("gpt2"))
    longest = model.max_text_tokens()
    assert longest == model.architecture.max_positions - K
    model(input_ids=torch.full((1, longest), 7))
    with refused(
        "A text of 60 tokens is too long: the backbone has 64 positions and the prompt takes 5, so "
        "at most 59 tokens fit. Tokenise with truncation=True, max_length=59."
    ):
        model(input_ids=torch.full((1, longest + 1), 7))
    # Behind a text with learned positions, a reader has its own.
    assert reader(build("bert")).max_text_tokens() == 64


@torch.no_grad()
def test_a_reader_is_saved_with_its_low_rank_layers(tmp_path, tokenizer, texts):
    model = reader(build("bert"), reader_rank=2, reader_key_rank=2)
    inputs = padded(tokenizer, texts)
    expected = model(**inputs).logits
    model.save_pretrained(tmp_path)
    for trainable in (False, True):
        loaded = PromptModel.from_pretrained(build("bert"), tmp_path, is_trainable=trainable).eval()
        assert torch.equal(loaded(**inputs).logits, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"encoder_reparameterization_type": "MLP"},
            "encoder_reparameterization_type is 'MLP'; a reader takes 'NONE'.",
        ),
        ({"reader_rank": -1}, "reader_rank is -1; expected an integer from 0 to 1,024."),
        (
            {"reader_rank": 4, "depth": "deep"},
            "reader_rank is 4 and depth is 'deep'; only a reader has a rank. Leave it out, or use "
            "depth='reader'.",
        ),
        (
            {"reader_key_rank": 4, "depth": "deep"},
            "reader_key_rank is 4 and depth is 'deep'; only a reader has a rank. Leave it out, or "
            "use depth='reader'.",
        ),
    ],
)
def test_a_configuration_that_no_reader_has_is_refused(options, message):
    with refused(message):
        PromptEncoderConfig(**{"depth": "reader", **options})


def test_peft_has_no_readers():
    with refused(
        "depth is 'reader', but 🤗 PEFT has no readers and could not load the adapter. Use "
        "ptune.PromptEncoderConfig with ptune.PromptModel, or another depth."
    ):
        InPeft(num_virtual_tokens=K, depth="reader")
