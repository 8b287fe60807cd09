"""Time of a training step with a head of label words, and with a new linear head.

    python benchmarks/words.py --output runs/words_step.json

Both heads read the same tokens, in turns in one process. On a masked language model, the linear
head is Transformers' own for classification. The backbones have MiniLM's size and random weights.
Processor time, on one thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from common import silence, write_result
from datasets import Dataset

from ptune.backbones.loading import load_tokenizer
from ptune.data.dataset import TaskData
from ptune.labels import Labels
from ptune.training.asking import ask_with_words
from ptune.training.settings import TrainSettings
from ptune.training.start import new_model, resolve

SIZES: dict[str, Any] = {
    "vocab_size": 30522,
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
}
KINDS: dict[str, tuple[Any, Any, str]] = {
    "causal (Llama)": (tf.LlamaConfig, tf.AutoModelForCausalLM, "{soft:Text:} {text} Mood:"),
    "masked (BERT)": (tf.BertConfig, tf.AutoModelForMaskedLM, "{text} It was {mask}."),
}
ROUNDS, STEPS = 15, 2


def step_of(folder: str, template: str, head: Any) -> Any:
    """A function that takes one training step."""
    settings = TrainSettings(model=folder, template=template, head=head, dtype="float32")
    tokenizer = load_tokenizer(folder)
    data = Dataset.from_dict({"text": ["good", "bad"], "label": [0, 1]})
    dataset = TaskData("words", Labels(("positive", "negative")), (), train=data)
    settings = ask_with_words(settings, dataset, tokenizer)
    settings = replace(resolve(settings, dataset), head=head)
    model = new_model(settings, dataset, tokenizer).train()
    optimizer = torch.optim.AdamW(model.parameter_groups(1e-3))
    ids = torch.randint(1000, 20000, (8, 48), generator=torch.Generator().manual_seed(0))
    ids[:, -2] = tokenizer.mask_token_id
    labels = torch.arange(8) % 2

    def step() -> float:
        started = time.process_time()
        for _ in range(STEPS):
            model(input_ids=ids, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return time.process_time() - started

    return step


def measure(kind: str) -> dict[str, str]:
    """The ratio of both heads' times, in turns."""
    config, auto, template = KINDS[kind]
    with tempfile.TemporaryDirectory() as folder:
        auto.from_config(config(**SIZES)).save_pretrained(folder)
        load_tokenizer("minilm").save_pretrained(folder)
        words = step_of(folder, template, "words")
        linear = step_of(folder, template.replace("{mask}", "good"), "linear")
    words(), linear()
    times = [(words(), linear()) for _ in range(ROUNDS)]
    ratios = sorted(w / p for w, p in times)
    return {
        "words": f"{statistics.median(w for w, _ in times) / STEPS:.2f} s",
        "linear": f"{statistics.median(p for _, p in times) / STEPS:.2f} s",
        "words / linear": f"{statistics.median(ratios):.3f}",
        "half of the rounds": f"{ratios[ROUNDS // 4]:.3f} to {ratios[-1 - ROUNDS // 4]:.3f}",
    }


def main() -> None:
    """Measure both kinds of language models and write a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/words_step.json"))
    args = parser.parse_args()
    silence()
    torch.set_num_threads(1)
    rows = {kind: measure(kind) for kind in KINDS}
    write_result(
        args.output,
        "Processor time of a training step, deep prompt, 8 texts of 48 tokens, float32",
        "python benchmarks/words.py",
        "language model",
        rows,
        note="one thread",
        source=f"Output of the command. {ROUNDS} rounds in turns; other programs ran meanwhile.",
    )
    print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
