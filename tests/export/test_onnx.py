"""An exported graph gives the classifier's logits, on both runtimes and without ptune."""

import json
import shutil
import sys
import warnings
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from architectures import ARCHITECTURES, build_model, build_tokenizer
from conftest import SENTENCES, call, edit_json
from tokenizers import Tokenizer

import ptune
from ptune import PromptModel, PtuneError
from ptune.adapters.relabel import relabel
from ptune.export.check import Comparison
from ptune.labels import edits
from ptune.peft import PromptEncoderConfig

K = 5
LABELS = ["no", "maybe", "yes"]
DEEP = {"depth": "deep", "encoder_reparameterization_type": "NONE"}
# A few architectures that cover every mechanism and every pooling.
EXPORTS = {
    "BERT, input, mean": ("BERT", {"pooling": "mean"}),
    "BERT, input, prompt": ("BERT", {"pooling": "prompt"}),
    "BERT, deep, layers": ("BERT", {"depth": "deep", "pooling": "layers"}),
    "BERT, deep, pairs": ("BERT", {"depth": "deep", "pooling": "pairs"}),
    "RoBERTa, deep": ("RoBERTa", DEEP),
    "DeBERTa-v2, deep": ("DeBERTa-v2", DEEP),
    "GPT-2, deep": ("GPT-2", DEEP),
    "Llama, input": ("Llama", {"placement": "prefix"}),
    "BERT, reader": (
        "BERT",
        {"depth": "reader", "pooling": "prompt", "reader_rank": 2, "reader_key_rank": 2},
    ),
    "BERT, reader, pairs": ("BERT", {"depth": "reader", "pooling": "pairs"}),
    "Llama, reader": ("Llama", {"depth": "reader"}),
}
# The labels of this one are merged before it is exported.
MERGED = "BERT, input, prompt"
RUNTIMES = ["onnx", "openvino"]
PAIRS = list(zip(SENTENCES[:4], SENTENCES[4:], strict=True))
LONG = " ".join(SENTENCES * 3)


def make_adapter(folder, name, options):
    architecture = ARCHITECTURES[name]
    tokenizer = build_tokenizer(architecture, SENTENCES)
    backbone = build_model(architecture, tokenizer, num_labels=3)
    backbone.config.id2label = dict(enumerate(LABELS))
    backbone.config.problem_type = "single_label_classification"
    backbone.save_pretrained(folder / "backbone")
    tokenizer.save_pretrained(folder / "backbone")
    backbone.name_or_path = str(folder / "backbone")
    torch.manual_seed(1)
    make = ptune.PromptEncoderConfig if options.get("depth") == "reader" else PromptEncoderConfig
    config = make(num_virtual_tokens=K, encoder_hidden_size=16, **options)
    PromptModel(backbone, config).save_pretrained(folder / "adapter")
    return folder / "adapter"


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """Exports an adapter, once per name; returns both folders."""
    made = {}

    def export(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("export")
            adapter = make_adapter(folder, *EXPORTS[name])
            if name == MERGED:
                relabel(adapter, lambda labels: edits.merge(labels, ["no", "yes"], "decided"))
            check = ptune.export_onnx(adapter, folder / "out", two_graphs="reader" in name)
            assert check.difference < 1e-5
            made[name] = adapter, folder / "out"
        return made[name]

    return export


@pytest.fixture(scope="module", params=EXPORTS)
def export(request, exports):
    adapter, folder = exports(request.param)
    return ptune.load(adapter, dtype="float32", device="cpu"), folder


@pytest.fixture(scope="module")
def bert(exports):
    return exports("BERT, input, mean")


def assert_same(found, expected):
    expected = np.asarray(list(expected))
    np.testing.assert_allclose(
        np.asarray(list(found)), expected, atol=1e-5 * np.abs(expected).max()
    )


@pytest.mark.slow
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_runtimes_give_pytorch_s_logits_in_any_batch(export, runtime):
    classifier, folder = export
    exported = ptune.load_exported(folder, runtime, dtype="float32")
    texts = [*SENTENCES, "the", LONG]
    expected = list(classifier.logits(texts))
    assert_same(exported.logits(texts), expected)
    assert_same([next(exported.logits(t)) for t in texts], expected)
    exported.batch_size = 1
    assert_same(exported.logits(texts), expected)
    assert_same(exported.logits(PAIRS), classifier.logits(PAIRS))


@pytest.mark.slow
def test_an_export_needs_only_onnxruntime_and_tokenizers(export):
    classifier, folder = export
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    for texts, side in (([*SENTENCES, LONG], "right"), (PAIRS, "right"), (SENTENCES, "left")):
        tokenizer.enable_padding(**{**tokenizer.padding, "direction": side})
        encoded = tokenizer.encode_batch(texts)
        tensors = {
            "input_ids": [e.ids for e in encoded],
            "attention_mask": [e.attention_mask for e in encoded],
            "token_type_ids": [e.type_ids for e in encoded],
        }
        taken = {i.name: np.array(tensors[i.name]) for i in session.get_inputs()}
        (logits,) = session.run(["logits"], taken)
        assert_same(logits, classifier.logits(texts))


@pytest.mark.slow
def test_the_graph_of_a_text_serves_every_reader_on_the_backbone(exports):
    made = [exports(name) for name in ("BERT, reader", "BERT, reader, pairs")]
    text = onnxruntime.InferenceSession(made[0][1] / "text.onnx")
    names = ["states", "text_mask", "text_means"]
    for adapter, folder in made:  # each with a tokenizer of its own
        encoded = Tokenizer.from_file(str(folder / "tokenizer.json")).encode_batch(SENTENCES)
        tokens = {
            "input_ids": np.array([e.ids for e in encoded]),
            "attention_mask": np.array([e.attention_mask for e in encoded]),
        }
        given = dict(zip(names, text.run(names, tokens), strict=True))
        reader = onnxruntime.InferenceSession(folder / "reader.onnx")
        (logits,) = reader.run(["logits"], {i.name: given[i.name] for i in reader.get_inputs()})
        assert_same(logits, ptune.load(adapter, dtype="float32", device="cpu").logits(SENTENCES))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_an_export_has_the_methods_of_a_classifier(bert, runtime):
    adapter, folder = bert
    classifier = ptune.load(adapter, dtype="float32")
    exported = ptune.load_exported(folder, runtime, dtype="float32")
    np.testing.assert_allclose(
        exported.predict_proba(SENTENCES), classifier.predict_proba(SENTENCES), atol=1e-5
    )
    assert list(exported.predict(PAIRS)) == list(classifier.predict(PAIRS))
    assert exported.labels == LABELS
    assert exported(SENTENCES[0]).label == classifier(SENTENCES[0]).label
    assert exported((SENTENCES[0], "the")).probabilities.keys() == set(LABELS)
    assert [p.label for p in exported.stream(iter(SENTENCES))] == list(exported.predict(SENTENCES))
    assert exported.score(SENTENCES, classifier.predict(SENTENCES)) == 1.0
    assert exported([]) == []
    with pytest.raises(PtuneError, match="empty"):
        exported.predict(["fine", ""])


@pytest.mark.slow
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_an_export_answers_with_merged_labels(exports, runtime):
    adapter, folder = exports(MERGED)
    classifier = ptune.load(adapter, dtype="float32", device="cpu")
    exported = ptune.load_exported(folder, runtime, dtype="float32")
    assert exported.labels == classifier.labels == ["decided", "maybe"]
    p = exported.predict_proba(SENTENCES)
    np.testing.assert_allclose(p, classifier.predict_proba(SENTENCES), atol=1e-5)
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-6)
    assert list(exported.predict(SENTENCES)) == list(classifier.predict(SENTENCES))
    assert exported(SENTENCES[0]).probabilities.keys() == {"decided", "maybe"}


def test_openvino_in_bfloat16_is_close(bert):
    adapter, folder = bert
    half = ptune.load_exported(folder, "openvino", dtype="bfloat16").predict_proba(SENTENCES)
    expected = ptune.load(adapter, dtype="float32").predict_proba(SENTENCES)
    np.testing.assert_allclose(half, expected, atol=0.05)


@pytest.mark.slow
def test_int8_is_smaller_and_close(bert, monkeypatch, tmp_path):
    adapter, folder = bert
    # As if the graph were large: the weights go to a second file.
    monkeypatch.setattr("ptune.export.onnx.MAX_ONE_FILE", 0)
    check = ptune.export_onnx(adapter, tmp_path / "out", int8=True)
    assert 1e-5 < check.difference < 0.1
    assert (tmp_path / "out" / "model.onnx.data").stat().st_size
    sizes = [sum(g.stat().st_size for g in f.glob("model*")) for f in (folder, tmp_path / "out")]
    assert sizes[1] < 0.9 * sizes[0]
    exported = ptune.load_exported(tmp_path / "out", "onnx")
    np.testing.assert_allclose(
        exported.predict_proba(SENTENCES),
        ptune.load(adapter, dtype="float32").predict_proba(SENTENCES),
        atol=0.1,
    )
    assert json.loads((tmp_path / "out" / "ptune_export.json").read_text())["weights"] == "int8"
    assert ptune.load_exported(tmp_path / "out", "openvino")(SENTENCES[0]).label in LABELS


# The command line.


def test_the_command_line_exports_predicts_and_evaluates(bert, tmp_path, capsys):
    model = ptune.load(bert[0], dtype="float32").prompt_model_
    model.max_length = 12  # the export keeps max_length
    adapter, out, gold = tmp_path / "adapter", tmp_path / "out", tmp_path / "gold.csv"
    model.save_pretrained(adapter)
    gold.write_text("text,label\n" + "\n".join(f"{t} {t},no" for t in SENTENCES))
    assert call("export", adapter, out, "--to", "onnx", "--check-file", gold) == 0
    said = capsys.readouterr().out
    assert "On 47 texts" in said  # 39 of ptune's own
    assert "differ from ptune's by at most" in said
    assert len(Tokenizer.from_file(str(out / "tokenizer.json")).encode(LONG).ids) == 12
    words = ("--file", gold, "--dtype", "float32")
    expected = None
    for runtime in ("torch", "onnx", "openvino"):
        source = adapter if runtime == "torch" else out
        predictions = tmp_path / f"{runtime}.jsonl"
        done = call("predict", source, *words, "--runtime", runtime, "--output", predictions)
        assert done == 0
        found = [json.loads(line) for line in predictions.read_text().splitlines()]
        expected = expected or found
        for one, two in zip(found, expected, strict=True):
            assert one["text"] == two["text"]
            found_p, expected_p = (x["predicted_probabilities"] for x in (one, two))
            assert found_p == pytest.approx(expected_p, abs=1e-5)
        capsys.readouterr()
        assert call("evaluate", source, *words, "--runtime", runtime) == 0
        share = np.mean([w["predicted_label"] == "no" for w in expected])
        assert json.loads(capsys.readouterr().out)["accuracy"] == pytest.approx(share)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["predict", "EXPORT", "text"], "run it with `--runtime onnx`"),
        (["predict", "EXPORT", "text", "--runtime", "onnx", "--model", "minilm"], "--model is for"),
        (["predict", "EXPORT", "text", "--runtime", "openvino", "--revision", "v1"], "--revision"),
        (
            ["predict", "EXPORT", "text", "--runtime", "onnx", "--dtype", "bfloat16"],
            "number format",
        ),
        (["predict", "EXPORT", "text", "--runtime", "openvino", "--dtype", "float16"], "or bfloa"),
        (["export", "ADAPTER", "ADAPTER", "--to", "onnx"], "holds an adapter"),
        (["export", "ADAPTER", "FILE", "--to", "onnx"], "is a file"),
        (["export", "ADAPTER", "FOLDER", "--to", "onnx"], "not an export"),
        (["export", "EXPORT", "NEW", "--to", "onnx"], "run it with `--runtime onnx`"),
        (["export", "ADAPTER", "NEW", "--to", "onnx", "--two-graphs"], "this prompt is input"),
        (["export", "ADAPTER", "NEW", "--two-graphs"], "--two-graphs is for --to onnx. Leave"),
    ],
)
def test_wrong_flags_are_explained(bert, tmp_path, capsys, words, message):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("mine")
    places = {
        "ADAPTER": bert[0],
        "EXPORT": bert[1],
        "FILE": tmp_path / "folder" / "file",
        "FOLDER": tmp_path / "folder",
        "NEW": tmp_path / "new",
    }
    before = {f: f.read_bytes() for f in bert[0].iterdir()}
    assert call(*[places.get(word, word) for word in words]) == 2
    assert message in capsys.readouterr().err
    assert {f: f.read_bytes() for f in bert[0].iterdir()} == before
    assert (tmp_path / "folder" / "file").read_text() == "mine"
    assert not (tmp_path / "new").exists()


def test_texts_of_the_other_form_are_noted_once(bert):
    classifier = ptune.load(bert[0], dtype="float32")
    state = classifier.prompt_model_.state
    state.reading = replace(state.reading, pairs=False)
    with warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always")
        comparison = Comparison(classifier, PAIRS)
        assert comparison.check(classifier.logits).difference < 1e-6
    assert len([str(w.message) for w in noted if "was trained on single" in str(w.message)]) == 1


@pytest.mark.parametrize(
    ("texts", "count"),
    [
        (None, 0),
        ("one text", 1),
        (PAIRS[0], 1),
        (["a", PAIRS[0], list(PAIRS[1])], 3),
        (np.array(["a", "b"]), 2),
        (iter(["a", "b", "c"]), 3),
    ],
)
def test_any_texts_can_be_compared(bert, texts, count):
    classifier = ptune.load(bert[0], dtype="float32")
    sets = [Comparison(classifier, some).sets for some in ((), texts)]
    assert sum(map(len, sets[1])) - sum(map(len, sets[0])) == count


def test_what_is_not_a_text_is_refused_before_an_export(bert, tmp_path):
    with pytest.raises(PtuneError, match=r"Found an empty text in the texts, at position 1 \("):
        ptune.export_onnx(bert[0], tmp_path / "out", check_texts=["a", ""])
    with pytest.raises(PtuneError, match="found '5' of type int"):
        ptune.export_onnx(bert[0], tmp_path / "out", check_texts=5)
    assert not (tmp_path / "out").exists()


# Errors.


@pytest.mark.parametrize(
    ("package", "runtime", "extra"),
    [("onnxruntime", "onnx", "onnx"), ("openvino", "openvino", "openvino")],
)
def test_the_message_says_how_to_install_a_runtime(bert, monkeypatch, package, runtime, extra):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(PtuneError, match=rf"pip install 'ptune\[{extra}\]'"):
        ptune.load_exported(bert[1], runtime)


def test_the_message_says_how_to_install_the_exporter(bert, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(PtuneError, match=r"onnxscript is not installed.*'ptune\[onnx\]'"):
        ptune.export_onnx(bert[0], tmp_path / "out")


def empty(file):
    file.write_bytes(b"")


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def set_to(**fields):
    return lambda file: edit_json(file, **fields)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("model.onnx", cut, r"^\S+model\.onnx could not be opened: it is missing, damaged [^:]*$"),
        ("model.onnx", empty, r"^\S+model\.onnx could not be opened: it is missing, [^:]*$"),
        ("tokenizer.json", cut, r"tokenizer\.json could not be opened: it is missing, damaged"),
        ("tokenizer.json", empty, r"tokenizer\.json could not be opened: it is missing, damaged"),
        ("tokenizer.json", lambda f: f.unlink(), r"tokenizer\.json could not be opened: it is"),
        ("ptune_export.json", cut, "ptune_export.json is damaged"),
        ("ptune_export.json", lambda f: f.write_text("{}"), "lacks labels"),
        ("ptune_export.json", lambda f: f.unlink(), "not an export to ONNX"),
        ("ptune_export.json", set_to(max_length="ten"), "max_length is 'ten'; expected an integer"),
        ("ptune_export.json", set_to(max_length=-5), "max_length is -5; expected an integer"),
        ("ptune_export.json", set_to(text_columns=3), "text_columns is 3; expected a list"),
        ("ptune_export.json", set_to(labels=["no", "yes"]), "returns 3 logits; .* expects 2"),
        ("ptune_export.json", set_to(labels=["no", "yes", "no"]), "has the label 'no' twice"),
    ],
)
def test_a_damaged_file_is_named(bert, tmp_path, runtime, name, damage, message):
    folder = shutil.copytree(bert[1], tmp_path / "out")
    damage(folder / name)
    with pytest.raises(PtuneError, match=message):
        ptune.load_exported(folder, runtime)


@pytest.mark.slow
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_graph_of_the_text_alone_is_refused(exports, tmp_path, runtime):
    folder = shutil.copytree(exports("BERT, reader")[1], tmp_path / "out")
    (folder / "text.onnx").replace(folder / "model.onnx")
    with pytest.raises(PtuneError, match=r"returns .* text_means; ptune_export.json .* 3 logits"):
        ptune.load_exported(folder, runtime)


def test_files_of_different_exports_are_refused(bert, tmp_path):
    folder = shutil.copytree(bert[1], tmp_path / "out")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["model_input_names"] = ["input_ids"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(PtuneError, match="takes attention_mask, which the tokenizer"):
        ptune.load_exported(folder)


def test_an_export_never_replaces_the_adapter_that_it_reads(bert, tmp_path):
    """It would lie in the folder of an earlier export."""
    source = shutil.copytree(bert[1], tmp_path / "out") / "adapter"
    shutil.copytree(bert[0], source)
    with pytest.raises(PtuneError, match=r"contains .*adapter, which the export reads"):
        ptune.export_onnx(source, tmp_path / "out")
    assert (source / "adapter_config.json").is_file()


def test_a_failed_export_leaves_the_earlier_one(bert, monkeypatch, tmp_path):
    adapter, folder = bert
    before = {f.name: f.read_bytes() for f in folder.iterdir()}
    monkeypatch.setattr("ptune.export.onnx.TOLERANCE", -1.0)
    with pytest.raises(PtuneError, match=r"of the largest logit.*Nothing was written"):
        ptune.export_onnx(adapter, folder)
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == before


def test_an_unsupported_architecture_is_refused_with_the_reason(tmp_path):
    adapter = make_adapter(tmp_path, "XLNet", DEEP)
    with pytest.raises(PtuneError, match=r"cannot export XLNetFor.*Constraints violated"):
        ptune.export_onnx(adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()
