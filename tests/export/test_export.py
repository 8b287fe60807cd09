"""An exported checkpoint, opened with Transformers alone, gives ptune's logits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from architectures import ARCHITECTURES, POSITIONS, VOCABULARY, build_model, build_tokenizer
from conftest import SENTENCES, call, edit_tensors, use_prompt
from tokenizers import processors
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

import ptune
from ptune import PromptModel, PtuneError
from ptune.backbones.loading import load_backbone
from ptune.export import checkpoint as export
from ptune.export.check import Comparison
from ptune.peft import PromptEncoderConfig

K = 5
LABELS = ("calm", "cross", "neither")
# Text that imitates special tokens, as an adversary or another model may write it.
SPELLED = "<virtual 0> prompt <virtual:0> prompt:0 [unused1] <pad:0> $A"


def make(
    folder, architecture, tokenizer=None, *, labels=LABELS, kind="single_label_classification", **k
):
    """Save a backbone of this architecture with a tokenizer, and an adapter; its folder."""
    tokenizer = tokenizer or build_tokenizer(ARCHITECTURES[architecture], SENTENCES)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    build_model(ARCHITECTURES[architecture], tokenizer).save_pretrained(folder / "backbone")
    tokenizer.save_pretrained(folder / "backbone")
    backbone = load_backbone(
        str(folder / "backbone"), labels=labels, problem_type=kind, dtype="float32"
    )
    torch.manual_seed(1)
    max_length = k.pop("max_length", None)
    model = PromptModel(backbone, PromptEncoderConfig(num_virtual_tokens=K, **k)).eval()
    with torch.no_grad():
        for _, parameter in model.head_parameters():
            parameter += torch.randn_like(parameter) / 2
        if model.prompt_config.depth == "input":
            use_prompt(model, torch.randn_like(model.prompt_embeddings()))
    model.max_length = max_length
    model.to_adapter().save(folder / "adapter")
    return folder / "adapter"


def ours(adapter_folder, texts):
    return np.asarray(list(ptune.load(adapter_folder, dtype="float32").logits(texts)))


@torch.no_grad()
def theirs(folder, texts, **options):
    """Logits of a padded batch, from `AutoTokenizer` and the model."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    options = {"padding": True, "truncation": True, "return_tensors": "pt", **options}
    return model(**tokenizer(texts, **options)).logits.float().numpy()


def assert_same(one, two):
    """Equal within 1e-5 of the largest logit."""
    np.testing.assert_allclose(one, two, atol=1e-5 * np.abs(two).max(), rtol=0)


def natural_placement(architecture):
    """After the first special token if there is one, otherwise before the text."""
    return "prefix" if ARCHITECTURES[architecture].template[0].startswith("$A") else "after_first"


LONG = "please answer the phone " * 60
TEXTS = [*SENTENCES[:3], "?", SPELLED, "Naïve 日本語 🙂\ttab", LONG]
PAIRS = [(SENTENCES[0], SENTENCES[1]), (SPELLED, "no"), ("short", LONG), (LONG, "short")]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_gives_ptune_s_logits(architecture, tmp_path):
    source = make(tmp_path, architecture, placement=natural_placement(architecture))
    check = ptune.export_transformers(source, tmp_path / "out")
    assert check.difference < 1e-5
    texts, pairs = TEXTS, PAIRS
    if ARCHITECTURES[architecture].config.__name__ in ("BloomConfig", "T5Config", "XLNetConfig"):
        texts, pairs = TEXTS[:-1], PAIRS[:2]  # no maximum length: nothing is truncated
    assert_same(theirs(tmp_path / "out", texts), ours(source, texts))
    assert_same(theirs(tmp_path / "out", pairs), ours(source, pairs))


def test_a_head_of_zeros_is_exported_as_it_is(tmp_path):
    source = make(tmp_path, "Llama", placement="prefix")
    edit_tensors(source, {"base_model.score.weight": torch.zeros(3, 32)})
    assert ptune.export_transformers(source, tmp_path / "out").difference == 0
    assert not theirs(tmp_path / "out", TEXTS).any()


@pytest.mark.parametrize("architecture", ["BERT", "RoBERTa", "OPT", "Llama", "BART"])
def test_a_prompt_before_the_first_token(architecture, tmp_path):
    source = make(tmp_path, architecture, placement="prefix")
    ptune.export_transformers(source, tmp_path / "out")
    assert_same(theirs(tmp_path / "out", TEXTS), ours(source, TEXTS))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert min(tokenizer("the")["input_ids"][:K]) >= VOCABULARY


# Tokenizers made by their own classes, with every kind of post-processor.


def parts(architecture):
    """Vocabulary and merges, in the form that tokenizer classes take."""
    made = json.loads(
        build_tokenizer(ARCHITECTURES[architecture], SENTENCES).backend_tokenizer.to_str()
    )
    model = made["model"]
    if isinstance(model["vocab"], list):
        return {"vocab": [tuple(pair) for pair in model["vocab"]]}
    merges = {"merges": [tuple(m) for m in model["merges"]]} if "merges" in model else {}
    return {"vocab": model["vocab"], **merges}


def with_post_processor(architecture, post_processor):
    tokenizer = build_tokenizer(ARCHITECTURES[architecture], SENTENCES)
    tokenizer.backend_tokenizer.post_processor = post_processor
    return tokenizer


REAL = {
    "BERT": lambda: transformers.BertTokenizer(**parts("BERT")),
    "RoBERTa": lambda: transformers.RobertaTokenizer(**parts("RoBERTa")),
    "BART": lambda: transformers.BartTokenizer(**parts("BART")),
    "XLM-R": lambda: transformers.XLMRobertaTokenizer(**parts("XLM-R")),
    "ALBERT": lambda: transformers.AlbertTokenizer(**parts("ALBERT")),
    "DeBERTa-v2": lambda: transformers.DebertaV2Tokenizer(**parts("DeBERTa-v2")),
    "GPT-2": lambda: transformers.GPT2Tokenizer(
        **parts("GPT-2"), unk_token="<|end|>", bos_token="<|end|>", eos_token="<|end|>"
    ),
    "OPT": lambda: transformers.GPT2Tokenizer(
        **parts("OPT"), add_bos_token=True, bos_token="</s>", eos_token="</s>", pad_token="<pad>"
    ),
    "BLOOM": lambda: with_post_processor(
        "BLOOM", processors.ByteLevel(add_prefix_space=True, trim_offsets=False)
    ),
    "Llama": lambda: transformers.LlamaTokenizer(**parts("Llama"), add_bos_token=True),
    "Gemma": lambda: transformers.GemmaTokenizer(**parts("Gemma"), add_bos_token=True),
    "Qwen 2": lambda: transformers.Qwen2Tokenizer(
        **parts("Qwen 2"), eos_token="<|end|>", pad_token="<|pad|>"
    ),
    "T5": lambda: transformers.T5Tokenizer(**parts("T5"), extra_ids=0),
    "XLNet": lambda: transformers.XLNetTokenizer(**parts("XLNet")),
    # A sequence of post-processors, as in Llama 3.
    "Mistral": lambda: with_post_processor(
        "Mistral",
        processors.Sequence(
            [
                processors.ByteLevel(trim_offsets=True),
                processors.TemplateProcessing(
                    single="<s> $A", pair="<s> $A <s> $B:1", special_tokens=[("<s>", 1)]
                ),
            ]
        ),
    ),
}


@pytest.mark.parametrize("architecture", REAL)
def test_tokenizers_made_by_their_own_classes(architecture, tmp_path):
    source = make(
        tmp_path, architecture, REAL[architecture](), placement=natural_placement(architecture)
    )
    ptune.export_transformers(source, tmp_path / "out")
    assert_same(theirs(tmp_path / "out", TEXTS[:-1]), ours(source, TEXTS[:-1]))
    assert_same(theirs(tmp_path / "out", PAIRS[:2]), ours(source, PAIRS[:2]))


def test_offsets_are_trimmed_as_before(tmp_path):
    """A post-processor also trims offsets, not only adds special tokens."""
    source = make(tmp_path, "RoBERTa", REAL["RoBERTa"](), placement="after_first")
    ptune.export_transformers(source, tmp_path / "out")
    options = {"return_offsets_mapping": True, "add_special_tokens": True}
    text = " the  phone"
    before = AutoTokenizer.from_pretrained(tmp_path / "backbone")(text, **options)
    after = AutoTokenizer.from_pretrained(tmp_path / "out")(text, **options)
    offsets = after["offset_mapping"]
    assert offsets[1 : 1 + K] == [(0, 0)] * K
    assert offsets[:1] + offsets[1 + K :] == before["offset_mapping"]
    assert (0, 4) not in offsets  # untrimmed, the first word would include its space


# Opened in a process without ptune.

STRANGER = """
import json, sys
sys.modules["ptune"] = None  # an import of ptune is an ImportError
from transformers import pipeline
folders, texts = json.load(sys.stdin)
texts = [t if isinstance(t, str) else {"text": t[0], "text_pair": t[1]} for t in texts]
options = {"truncation": True, "top_k": None, "function_to_apply": "none"}
for folder in folders:
    classify = pipeline("text-classification", model=folder)
    alone = [classify([text], **options)[0] for text in texts]
    together = classify(texts, batch_size=len(texts), **options)
    logits = [{a["label"]: a["score"] for a in row} for row in alone + together]
    print("answer", json.dumps([logits, classify(texts[0])[0]]))
"""


def test_a_pipeline_works_without_ptune(tmp_path):
    sources = {
        architecture: make(
            tmp_path / architecture, architecture, placement=natural_placement(architecture)
        )
        for architecture in ("BERT", "GPT-2", "Llama")
    }
    for architecture, source in sources.items():
        ptune.export_transformers(source, tmp_path / architecture / "out")
    done = subprocess.run(
        [sys.executable, "-c", STRANGER],
        input=json.dumps([[str(tmp_path / f / "out") for f in sources], [*TEXTS, *PAIRS]]),
        capture_output=True,
        text=True,
        timeout=120,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("answer ")]
    for source, line in zip(sources.values(), lines, strict=True):
        answers, answer = json.loads(line.removeprefix("answer "))
        logits = np.asarray([[row[label] for label in LABELS] for row in answers])
        expected = np.concatenate([ours(source, TEXTS), ours(source, PAIRS)])
        assert_same(logits, np.concatenate([expected, expected]))  # one by one and in a batch
        (best,) = ptune.load(source, dtype="float32")([TEXTS[0]])
        assert answer["label"] == best.label
        assert answer["score"] == pytest.approx(best.score, abs=1e-5)


@pytest.mark.parametrize("kind", ["multi_label_classification", "regression"])
def test_a_pipeline_uses_the_problem_type(kind, tmp_path):
    labels = LABELS if kind.startswith("multi") else ("score",)
    source = make(tmp_path, "BERT", labels=labels, kind=kind)
    ptune.export_transformers(source, tmp_path / "out")
    (answer,) = pipeline("text-classification", model=str(tmp_path / "out"))([TEXTS[0]], top_k=None)
    (expected,) = ptune.load(source, dtype="float32")([TEXTS[0]])
    found = {a["label"]: a["score"] for a in answer}
    assert found == pytest.approx(expected.probabilities, abs=1e-5)


# Texts.


@pytest.mark.parametrize("architecture", ["BERT", "RoBERTa", "GPT-2", "Llama", "XLM-R"])
def test_no_text_contains_a_virtual_token_or_padding(architecture, tmp_path):
    """Not even a text made of every token and every name in the tokenizer's files."""
    source = make(tmp_path, architecture, placement=natural_placement(architecture))
    ptune.export_transformers(source, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    spec = json.loads((tmp_path / "out" / "tokenizer.json").read_text())
    names = [n for p in find(spec["post_processor"], "tokens") for n in p]
    virtual = [n for n in names if n.startswith("<virtual")]
    assert len(virtual) == K
    everything = " ".join([*tokenizer.get_vocab(), *names, *map(str, range(VOCABULARY + 20))])
    everything = everything.replace(tokenizer.pad_token, "")
    ids = np.asarray(tokenizer(everything)["input_ids"])
    plain = np.asarray(tokenizer("the")["input_ids"])
    prompt = plain[plain >= VOCABULARY]
    assert len(prompt) == K
    assert sorted(ids[np.isin(ids, prompt)]) == sorted(prompt)  # once each: the prompt
    assert tokenizer.pad_token_id not in ids
    # The backbone's own pad token within a text is read as text, as ptune does.
    spelled = AutoTokenizer.from_pretrained(tmp_path / "backbone").pad_token or "<|end|>"
    texts = [f"the phone {spelled}", f"{spelled} the {spelled} phone", *virtual, "the phone"]
    assert_same(theirs(tmp_path / "out", texts), ours(source, texts))


def find(tree, key):
    """All values of `key` in nested JSON."""
    if isinstance(tree, list):
        return [v for item in tree for v in find(item, key)]
    if not isinstance(tree, dict):
        return []
    own = [tree[key]] if key in tree else []
    return own + [v for item in tree.values() for v in find(item, key)]


def test_truncation_counts_the_prompt(tmp_path):
    source = make(tmp_path, "BERT", placement="after_first")
    ptune.export_transformers(source, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.model_max_length == POSITIONS
    for words in ([LONG], [LONG, "short"], ["short", LONG], [LONG, LONG]):
        ids = tokenizer(*words, truncation=True)["input_ids"]
        assert len(ids) == POSITIONS
        assert ids[1 : 1 + K] == list(range(ids[1], ids[1] + K))


def test_the_user_s_max_length_is_kept(tmp_path):
    source = make(tmp_path, "BERT", placement="after_first", max_length=12)
    ptune.export_transformers(source, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert len(tokenizer(LONG, truncation=True)["input_ids"]) == 12 + K
    assert_same(theirs(tmp_path / "out", TEXTS), ours(source, TEXTS))


def test_the_truncation_side_is_kept(tmp_path):
    tokenizer = build_tokenizer(ARCHITECTURES["BERT"], SENTENCES)
    tokenizer.truncation_side = tokenizer.init_kwargs["truncation_side"] = "left"
    source = make(tmp_path, "BERT", tokenizer)
    ptune.export_transformers(source, tmp_path / "out")
    long = LONG + " the parcel never came"
    assert_same(theirs(tmp_path / "out", [long]), ours(source, [long]))
    assert not np.allclose(ours(source, [long]), ours(source, [LONG]), atol=1e-3)


def test_a_decoder_without_a_pad_token_works_in_a_batch(tmp_path):
    """GPT-2 has no pad token and counts positions from the left; the export handles both."""
    source = make(tmp_path, "GPT-2")
    ptune.export_transformers(source, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert tokenizer.padding_side == "right"
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert_same(theirs(tmp_path / "out", TEXTS, pad_to_multiple_of=8), ours(source, TEXTS))


# Numbers.


@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 0.1), ("float16", 0.02)])
def test_half_precision(dtype, bound, tmp_path):
    source = make(tmp_path, "BERT")
    check = ptune.export_transformers(source, tmp_path / "out", dtype=dtype)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}
    assert 1e-5 < check.difference < bound
    mark = json.loads((tmp_path / "out" / "ptune_export.json").read_text())
    assert mark["check"]["largest_relative_difference"] == check.difference


def test_a_backbone_in_half_precision_is_exported_exactly(tmp_path):
    source = make(tmp_path, "BERT")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "backbone")
    model.to(torch.bfloat16).save_pretrained(tmp_path / "backbone")
    ptune.export_transformers(source, tmp_path / "out")
    assert_same(theirs(tmp_path / "out", TEXTS), ours(source, TEXTS))


# Refusals.


def refused(source, out, *parts, **options):
    """The export is refused, the message contains `parts`, and no file changes."""
    before = sorted(out.parent.rglob("*"))
    with pytest.raises(PtuneError) as error:
        ptune.export_transformers(source, out, **options)
    assert [p for p in parts if p not in str(error.value)] == []
    assert sorted(out.parent.rglob("*")) == before


def test_a_deep_prompt_is_refused(tmp_path):
    source = make(tmp_path, "BERT", depth="deep", encoder_reparameterization_type="NONE")
    refused(source, tmp_path / "out", "--prompt input", "--to onnx")


def test_mean_pooling_is_refused(tmp_path):
    source = make(tmp_path, "BERT", pooling="mean")
    refused(source, tmp_path / "out", "--pooling architecture", "--to onnx")


def test_a_prompt_inside_the_text_is_refused(tmp_path):
    source = make(tmp_path, "GPT-2", placement="after_first")
    refused(source, tmp_path / "out", "--placement prefix")


def test_a_slow_tokenizer_is_refused(tmp_path):
    source = make(tmp_path, "BERT")
    for file in (tmp_path / "backbone").glob("tokenizer*"):
        file.unlink()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    slow = transformers.BertJapaneseTokenizer(
        str(tmp_path / "vocab.txt"), word_tokenizer_type="basic"
    )
    slow.save_pretrained(tmp_path / "backbone")
    refused(source, tmp_path / "out", "BertJapaneseTokenizer", "tokenizer.json")


def test_an_unrelated_folder_is_not_replaced(tmp_path):
    source = make(tmp_path, "BERT")
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    refused(source, out, "not an export")
    refused(source, out, "not an export", overwrite=True)
    (tmp_path / "file").write_text("")
    refused(source, tmp_path / "file", "is a file")


@pytest.mark.parametrize("to", ["onnx", "transformers"])
def test_a_folder_that_is_filled_meanwhile_is_not_replaced(tmp_path, monkeypatch, to):
    source, out = make(tmp_path, "BERT"), tmp_path / "out"
    compare = Comparison.check

    def fill(*given):
        out.mkdir(exist_ok=True)
        (out / "thesis.txt").write_text("years of work")
        return compare(*given)

    monkeypatch.setattr(Comparison, "check", fill)
    export_to = ptune.export_onnx if to == "onnx" else ptune.export_transformers
    with pytest.raises(PtuneError, match="holds files that are not an export"):
        export_to(source, out)
    assert [file.name for file in out.iterdir()] == ["thesis.txt"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["adapter", "backbone", "out"]


def test_a_checkpoint_is_replaced_only_with_overwrite(tmp_path):
    source = make(tmp_path, "BERT")
    out = tmp_path / "out"
    build_model(
        ARCHITECTURES["BERT"], build_tokenizer(ARCHITECTURES["BERT"], SENTENCES)
    ).save_pretrained(out)
    (out / "pytorch_model.bin").write_text("stale")
    refused(source, out, "--overwrite")
    ptune.export_transformers(source, out, overwrite=True)
    assert not (out / "pytorch_model.bin").exists()
    ptune.export_transformers(source, out)  # this one is ptune's own export


def test_the_backbone_and_the_adapter_are_never_replaced(tmp_path):
    source = make(tmp_path, "BERT")
    refused(source, tmp_path / "backbone", "which the export reads", overwrite=True)


def test_a_wrong_export_leaves_the_earlier_one(tmp_path, monkeypatch):
    """The tokenizer's ids are off by one."""
    source = make(tmp_path, "BERT")
    ptune.export_transformers(source, tmp_path / "out")
    weights = (tmp_path / "out" / "model.safetensors").read_bytes()
    with_prompt = export._tokenizer

    def shifted(classifier):
        tokenizer, ids = with_prompt(classifier)
        return tokenizer, export._Ids(ids.first + 1, ids.pad, ids.text_pad)

    monkeypatch.setattr(export, "_tokenizer", shifted)
    refused(source, tmp_path / "out", "differ from ptune's", "Nothing was written")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == weights


def test_an_unwritable_folder_is_reported(tmp_path):
    source = make(tmp_path, "BERT")
    (tmp_path / "file").write_text("")
    refused(source, tmp_path / "file" / "out", "failed")


# The command.


def test_the_command(tmp_path, capsys):
    source = make(tmp_path, "RoBERTa", placement="after_first")
    table = tmp_path / "pairs.jsonl"
    rows = [{"sentence1": a, "sentence2": b} for a, b in PAIRS]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "deep" / "out"
    assert call("export", source, out, "--check-file", table) == 0
    said = capsys.readouterr().out
    assert str(out) in said
    # 39 of ptune's own texts, and the file's four.
    assert "On 43 texts its logits differ from ptune's by at most " in said
    assert_same(theirs(out, TEXTS), ours(source, TEXTS))
    mark = json.loads((out / "ptune_export.json").read_text())
    assert mark["backbone"] == "backbone"  # the folder's name, not its path
    assert str(tmp_path) not in "".join(f.read_text("latin-1") for f in Path(out).iterdir())


def test_the_command_reports_a_refusal(tmp_path, capsys):
    source = make(tmp_path, "BERT", pooling="mean")
    capsys.readouterr()
    assert call("export", source, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.startswith("Error: This classifier's head reads a mean")
    assert call("export", source, tmp_path / "out", "--to", "coffee") == 2
