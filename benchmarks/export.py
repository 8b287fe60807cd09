"""Does an exported checkpoint give ptune's predictions in an environment without ptune?

    python3 -m venv plain && plain/bin/pip install torch transformers
    python benchmarks/export.py --data-dir glue --python plain/bin/python --output-dir runs/export

For each architecture: trains an input prompt for a few steps on MRPC, exports it, classifies the
whole dev set in the other environment with `pipeline("text-classification")`, and compares logits
and accuracy with ptune's, in float32. Prints a table, writes `export.json`, and exits with 1 if
logits differ by more than 1e-5 of the largest logit, or if any label differs.

MiniLM is a pretrained model. The others have random weights and a tokenizer of their own class,
trained on MRPC's sentences, so their accuracy means nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers as tf
from tokenizers import models, pre_tokenizers, trainers

import ptune
from ptune.data import dataset as data
from ptune.data.glue import load_glue

LIMIT = 1e-5
VOCABULARY, POSITIONS = 8000, 256
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 256, "num_hidden_layers": 4}
SIZES |= {"num_attention_heads": 4, "initializer_range": 0.1}

STRANGER = """
import importlib.util, json, sys
assert importlib.util.find_spec("ptune") is None, "this interpreter has ptune"
import torch, transformers
torch.set_num_threads(int(sys.argv[1]))
folder, pairs = json.load(sys.stdin)
classify = transformers.pipeline("text-classification", model=folder, device="cpu")
answers = classify(
    [{"text": one, "text_pair": two} for one, two in pairs],
    batch_size=16, truncation=True, top_k=None, function_to_apply="none",
)
logits = [{a["label"]: a["score"] for a in row} for row in answers]
versions = {"transformers": transformers.__version__, "torch": torch.__version__}
print("answer", json.dumps([versions, logits]))
"""


# Architectures with random weights.


def words_of(sentences: list[str], kind: str, special: list[str]) -> dict[str, Any]:
    """Vocabulary and merges, trained on sentences, in the form that tokenizer classes take."""
    made = tokenizers.Tokenizer(models.BPE())
    options: dict[str, Any] = {"vocab_size": VOCABULARY, "special_tokens": special}
    if kind == "bytes":
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        options["initial_alphabet"] = pre_tokenizers.ByteLevel.alphabet()
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.train_from_iterator(sentences, trainers.BpeTrainer(show_progress=False, **options))
    model = json.loads(made.to_str())["model"]
    return {"vocab": model["vocab"], "merges": [tuple(merge) for merge in model["merges"]]}


def roberta(sentences: list[str]) -> tuple[Any, Any]:
    """RoBERTa: positions count from the pad token's id; its own post-processor."""
    words = words_of(sentences, "bytes", ["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    config = tf.RobertaConfig(
        **SIZES, intermediate_size=512, max_position_embeddings=POSITIONS + 2, type_vocab_size=1
    )
    return config, tf.RobertaTokenizer(**words)


def gpt2(sentences: list[str]) -> tuple[Any, Any]:
    """GPT-2: no token before a text, and no pad token."""
    end = "<|endoftext|>"
    words = words_of(sentences, "bytes", [end])
    config = tf.GPT2Config(
        vocab_size=VOCABULARY, n_embd=256, n_layer=4, n_head=4, n_positions=POSITIONS,
        bos_token_id=0, eos_token_id=0, initializer_range=0.1,
    )  # fmt: skip
    return config, tf.GPT2Tokenizer(**words, unk_token=end, bos_token=end, eos_token=end)


def opt(sentences: list[str]) -> tuple[Any, Any]:
    """OPT: GPT-2's tokenizer with </s> before a text."""
    words = words_of(sentences, "bytes", ["<s>", "<pad>", "</s>", "<unk>"])
    sizes = {k: v for k, v in SIZES.items() if k != "initializer_range"}
    config = tf.OPTConfig(
        **sizes, ffn_dim=512, word_embed_proj_dim=256, max_position_embeddings=POSITIONS,
        pad_token_id=1, bos_token_id=2, eos_token_id=2, init_std=0.1,
    )  # fmt: skip
    tokenizer = tf.GPT2Tokenizer(
        **words, add_bos_token=True, bos_token="</s>", eos_token="</s>", pad_token="<pad>",
        unk_token="<unk>",
    )  # fmt: skip
    return config, tokenizer


def bloom(sentences: list[str]) -> tuple[Any, Any]:
    """BLOOM: byte-level, with ALiBi positions, so a text can have any length."""
    words = words_of(sentences, "bytes", ["<unk>", "<s>", "</s>", "<pad>"])
    made = tokenizers.Tokenizer(models.BPE(**words))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.post_processor = tokenizers.processors.ByteLevel(trim_offsets=False)
    config = tf.BloomConfig(
        vocab_size=VOCABULARY, hidden_size=256, n_layer=4, n_head=4, pad_token_id=3,
        initializer_range=0.1,
    )  # fmt: skip
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return config, tf.PreTrainedTokenizerFast(tokenizer_object=made, **names)


def llama(sentences: list[str]) -> tuple[Any, Any]:
    """Llama: SentencePiece BPE with <s> before a text, and no pad token."""
    words = words_of(sentences, "sentencepiece", ["<unk>", "<s>", "</s>"])
    config = tf.LlamaConfig(
        **SIZES, intermediate_size=512, max_position_embeddings=POSITIONS, num_key_value_heads=2
    )
    return config, tf.LlamaTokenizer(**words, add_bos_token=True)


# Name: how to make its backbone, and the placement of the prompt.
ARCHITECTURES: dict[str, tuple[Callable[[list[str]], tuple[Any, Any]] | None, str]] = {
    "minilm": (None, "after_first"),
    "roberta": (roberta, "after_first"),
    "gpt2": (gpt2, "prefix"),
    "opt": (opt, "after_first"),
    "bloom": (bloom, "prefix"),
    "llama": (llama, "after_first"),
}


def backbone(name: str, sentences: list[str], folder: Path) -> str:
    """Create the backbone and return its name or folder."""
    make = ARCHITECTURES[name][0]
    if make is None:
        return name
    config, tokenizer = make(sentences)
    torch.manual_seed(0)
    tf.AutoModelForSequenceClassification.from_config(config).base_model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


# One architecture.


def train(name: str, model: str, args: argparse.Namespace, folder: Path) -> None:
    """Train an input prompt for a few steps on MRPC."""
    settings = ptune.TrainSettings(
        model=model,
        task="mrpc",
        data_dir=args.data_dir,
        prompt="input",
        placement=ARCHITECTURES[name][1],
        pooling="architecture",
        training_arguments={"max_steps": args.steps, "eval_strategy": "no", "save_strategy": "no"},
    )
    ptune.train_run(settings, folder, overwrite=True)


def elsewhere(python: str, folder: Path, pairs: list[tuple[str, str]]) -> tuple[Any, Any]:
    """Versions and logits from the exported checkpoint in an environment without ptune."""
    done = subprocess.run(
        [python, "-I", "-c", STRANGER, str(torch.get_num_threads())],
        input=json.dumps([str(folder), pairs]),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{python} failed:\n{done.stderr}")
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("answer ")]
    versions, logits = json.loads(line.removeprefix("answer "))
    return versions, logits


def compare(name: str, args: argparse.Namespace, dataset: data.TaskData) -> dict[str, Any]:
    """Train, export, and classify with both."""
    folder = args.output_dir / name
    sentences = [*dataset.train[data.TEXT], *dataset.train[data.PAIR]]
    adapter = args.adapter if name == "minilm" and args.adapter else folder / "adapter"
    if adapter != args.adapter:
        train(name, backbone(name, sentences, folder / "backbone"), args, adapter)
    started = time.perf_counter()
    check = ptune.export_transformers(adapter, folder / "exported")
    seconds = time.perf_counter() - started
    classifier = ptune.load(adapter, dtype="float32")
    dev = next(iter(dataset.evaluation.values()))
    dev = dev.select(range(min(len(dev), args.examples or len(dev))))
    pairs = list(zip(dev[data.TEXT], dev[data.PAIR], strict=True))
    ours = np.asarray(list(classifier.logits(pairs)), dtype=np.float64)
    versions, answers = elsewhere(args.python, folder / "exported", pairs)
    theirs = np.asarray([[row[label] for label in classifier.labels] for row in answers])
    gold = np.asarray(dev[data.LABEL])
    difference = np.abs(ours - theirs).max()
    return {
        "texts": len(pairs),
        "largest_difference": float(difference),
        "relative_to_the_largest_logit": float(difference / np.abs(ours).max()),
        "different_labels": int((ours.argmax(1) != theirs.argmax(1)).sum()),
        "accuracy_ptune": float((ours.argmax(1) == gold).mean()),
        "accuracy_exported": float((theirs.argmax(1) == gold).mean()),
        "difference_in_the_export's_own_check": check.difference,
        "export_seconds": seconds,
        "versions_elsewhere": versions,
    }


def main() -> int:
    """Compare every architecture. Return 1 if any differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-dir", help="GLUE's folder; default: download MRPC from the Hub")
    parser.add_argument("--python", required=True, help="Python of an environment without ptune")
    parser.add_argument(
        "--architectures", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES)
    )
    parser.add_argument("--adapter", type=Path, help="a trained adapter on MiniLM")
    parser.add_argument("--steps", type=int, default=20, help="training steps")
    parser.add_argument("--examples", type=int, help="examples of the dev set (all)")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/export"))
    args = parser.parse_args()
    dataset = load_glue("mrpc", args.data_dir)
    results = {name: compare(name, args, dataset) for name in args.architectures}
    versions = {"ptune": ptune.__version__, "transformers": tf.__version__}
    (args.output_dir / "export.json").write_text(
        json.dumps({"versions": versions, "architectures": results}, indent=2) + "\n", "utf-8"
    )
    print("| architecture | texts | largest difference | relative | accuracy, ptune | exported |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, found in results.items():
        print(
            f"| {name} | {found['texts']} | {found['largest_difference']:.1e} "
            f"| {found['relative_to_the_largest_logit']:.1e} | {found['accuracy_ptune']:.4f} "
            f"| {found['accuracy_exported']:.4f} |"
        )
    good = [
        r["relative_to_the_largest_logit"] <= LIMIT and not r["different_labels"]
        for r in results.values()
    ]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
