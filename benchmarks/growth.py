"""How do time and memory grow with texts, labels, tasks and lengths?

    make growth

Each point is measured in a process of its own, in CPU seconds of one thread, on a small backbone
with random weights. A row gives the CPU time and the peak memory at each size, and the exponent of
the time, fitted to its upper half: 1 is proportional growth. The peak is what the work added to the
memory of its process. `--tiny` is a rehearsal with small sizes.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import peak_memory_mb, reset_peak_memory, write_result
from transformers import BertConfig, BertModel

import ptune
from ptune import PromptBank, PromptModel
from ptune.backbones.loading import load_backbone, load_tokenizer
from ptune.data.dataset import TEXT
from ptune.data.tables import read_table
from ptune.peft import PromptEncoderConfig

Work = Callable[[], Any]


def make_backbone(folder: Path) -> None:
    """Save a small BERT with random weights and MiniLM's tokenizer."""
    tokenizer = load_tokenizer("minilm")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=256,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_adapter(
    folder: Path, backbone: Path, labels: int = 2, virtual_tokens: int = 8, seed: int = 0
) -> None:
    """Save an untrained adapter."""
    torch.manual_seed(seed)
    model = load_backbone(str(backbone), labels=[f"l{i}" for i in range(labels)], dtype="float32")
    config = PromptEncoderConfig(
        num_virtual_tokens=virtual_tokens, depth="deep", encoder_reparameterization_type="NONE"
    )
    PromptModel(model, config).to_adapter().save(folder)


def mails(count: int) -> list[str]:
    """Texts of the demo, repeated."""
    texts = list(read_table(Path(ptune.__file__).parent / "demo" / "test.csv")[TEXT])
    return [texts[i % len(texts)] for i in range(count)]


# What grows. Each function prepares for one size and returns the work to measure.


def _loaded(folder: Path, backbone: Path, **adapter: int) -> Any:
    make_adapter(folder / "adapter", backbone, **adapter)
    classifier = ptune.load(folder / "adapter", dtype="float32")
    classifier.predict(mails(8))
    return classifier


def predict_texts(folder: Path, backbone: Path, size: int) -> Work:
    """`predict` on many texts."""
    classifier, texts = _loaded(folder, backbone), mails(size)
    return lambda: classifier.predict(texts)


def predict_labels(folder: Path, backbone: Path, size: int) -> Work:
    """`predict_proba` on 512 texts, with many labels."""
    classifier, texts = _loaded(folder, backbone, labels=size), mails(512)
    return lambda: classifier.predict_proba(texts)


def evaluate_labels(folder: Path, backbone: Path, size: int) -> Work:
    """`evaluate` on 512 texts, with many labels."""
    classifier, texts = _loaded(folder, backbone, labels=size), mails(512)
    y = [f"l{i % size}" for i in range(512)]
    return lambda: classifier.evaluate(texts, y)


def train_labels(folder: Path, backbone: Path, size: int) -> Work:
    """Four training steps on twice as many texts as the largest number of labels."""
    count = 2 * max(GROWTH["training, by labels"].sizes)
    texts, y = mails(count), [f"l{i % size}" for i in range(count)]
    classifier = ptune.PromptClassifier(str(backbone), dtype="float32", calibrate=False)
    return lambda: classifier.fit(texts, y, max_steps=4, device="cpu", verbose=False)


def predict_prompts(folder: Path, backbone: Path, size: int) -> Work:
    """`predict` on 256 texts, with a long prompt."""
    classifier, texts = _loaded(folder, backbone, virtual_tokens=size), mails(256)
    return lambda: classifier.predict(texts)


def predict_long(folder: Path, backbone: Path, size: int) -> Work:
    """`predict` on 64 texts of many tokens."""
    classifier, texts = _loaded(folder, backbone), ["word " * (size - 2)] * 64
    return lambda: classifier.predict(texts)


def folder_of_tasks(folder: Path, backbone: Path, size: int) -> Path:
    """A folder with many tasks: the same untrained adapter under many names."""
    make_adapter(folder / "one", backbone)
    files = {f.name: f.read_bytes() for f in (folder / "one").iterdir()}
    for i in range(size):
        (place := folder / "tasks" / f"task{i}").mkdir(parents=True)
        for name, content in files.items():
            (place / name).write_bytes(content)
    return folder / "tasks"


def load_tasks(folder: Path, backbone: Path, size: int) -> Work:
    """Loading a bank of many tasks."""
    tasks = folder_of_tasks(folder, backbone, size)
    return lambda: PromptBank.from_folder(tasks, dtype="float32")


def ask_tasks(folder: Path, backbone: Path, size: int) -> Work:
    """256 requests to a bank of many tasks."""
    bank = PromptBank.from_folder(folder_of_tasks(folder, backbone, size), dtype="float32")
    requests = [(f"task{i % size}", text) for i, text in enumerate(mails(256))]
    return lambda: bank.logits(requests)


@dataclass(frozen=True)
class Growth:
    """Something that grows: how to prepare it, at which sizes, and in the rehearsal."""

    prepare: Callable[[Path, Path, int], Work]
    sizes: tuple[int, ...]
    tiny: tuple[int, ...] = (1, 2, 4)


GROWTH = {
    "predict, by texts": Growth(predict_texts, (1_000, 4_000, 16_000), (8, 16, 32)),
    "predict_proba, by labels": Growth(predict_labels, (2, 100, 1_000, 10_000), (2, 4, 8)),
    "evaluate, by labels": Growth(evaluate_labels, (2, 100, 1_000, 10_000), (2, 4, 8)),
    "training, by labels": Growth(train_labels, (2, 100, 1_000, 10_000), (2, 4, 8)),
    "loading a bank, by tasks": Growth(load_tasks, (10, 100, 1_000)),
    "asking a bank, by tasks": Growth(ask_tasks, (1, 10, 100, 1_000)),
    "predict, by virtual tokens": Growth(predict_prompts, (1, 20, 50, 100, 200)),
    "predict, by tokens per text": Growth(predict_long, (8, 32, 128, 512), (4, 8, 16)),
}


def point(given: tuple[str, str, int]) -> dict[str, float]:
    """Measure one size: the least CPU seconds of up to three runs, and the peak of the first."""
    name, backbone, size = given
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="ptune-growth-") as folder:
        work = GROWTH[name].prepare(Path(folder), Path(backbone), size)
        reset_peak_memory()
        before, seconds, peaks = peak_memory_mb(), list[float](), list[float]()
        while len(seconds) < 3 and sum(seconds) < 2:
            started = time.process_time()
            work()
            seconds.append(time.process_time() - started)
            peaks.append(peak_memory_mb())
    return {"size": size, "cpu_seconds": min(seconds), "peak_mb": peaks[0] - before}


def exponent(points: list[dict[str, float]]) -> float:
    """The slope of the CPU time over the size, both in logarithms, of the upper half."""
    upper = points[len(points) // 2 - (len(points) == 3) :]
    x, y = ([math.log(p[key]) for p in upper] for key in ("size", "cpu_seconds"))
    return float(np.polyfit(x, y, 1)[0])


def row(points: list[dict[str, float]]) -> dict[str, str]:
    """A row of the table."""
    return {
        "sizes": ", ".join(f"{p['size']:,}" for p in points),
        "CPU seconds": ", ".join(f"{p['cpu_seconds']:.3g}" for p in points),
        "added peak memory": ", ".join(f"{p['peak_mb']:,.0f}" for p in points) + " MB",
        "exponent": f"{exponent(points):.2f}",
    }


def main() -> None:
    """Measure, print the table and write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=GROWTH, default=list(GROWTH))
    parser.add_argument("--tiny", action="store_true", help="a rehearsal with small sizes")
    parser.add_argument("--note", default="", help="added to the machine, such as 'loaded'")
    parser.add_argument("--output", type=Path, default=Path("runs/growth.json"))
    given = parser.parse_args()
    rows: dict[str, dict[str, str]] = {}
    all_points: dict[str, list[dict[str, float]]] = {}
    # Forked processes have imported everything already, and none has computed anything before.
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory(prefix="ptune-growth-") as folder:
        maker = context.Process(target=make_backbone, args=(Path(folder),))
        maker.start()
        maker.join()
        for name in given.only:
            sizes = GROWTH[name].tiny if given.tiny else GROWTH[name].sizes
            with context.Pool(1, maxtasksperchild=1) as pool:
                points = pool.map(point, [(name, folder, n) for n in sizes], chunksize=1)
            all_points[name], rows[name] = points, row(points)
            print(f"| {name} | " + " | ".join(rows[name].values()) + " |", flush=True)
    write_result(
        given.output,
        "CPU time of one thread and peak memory, on a BERT of two layers and 64 numbers per token",
        "make growth",
        "what grows",
        rows,
        note=given.note,
        points=all_points,
    )


if __name__ == "__main__":
    main()
