"""How fast is an exported classifier on PyTorch, ONNX Runtime and OpenVINO, compared with PEFT?

    ptune train --task mrpc --data-dir glue --output-dir runs/mrpc
    python benchmarks/runtimes.py --adapter runs/mrpc --data-dir glue --output-dir runs/runtimes

Exports the adapter (on MiniLM, trained on MRPC) in float32 and in int8, times MRPC's dev texts on
every runtime, including tokenisation, prints a table of throughput, ratio and accuracy, and writes
`runtimes.json`. The comparison is PEFT, used as in its guide "P-tuning for sequence
classification": float32, batches of 32 texts in their order. It is not trained here, so it has no
accuracy. Ratios are taken within a round, so that other load on the machine affects all alike.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from speed import _peft, in_turn, peft_predictor, ratio

import ptune
from ptune.data import dataset as data
from ptune.data.glue import load_glue
from ptune.inference.text_classifier import TextClassifier

PEFT = "PEFT, float32"
Pairs = list[tuple[str, str]]


def contenders(adapter: Path, folder: Path) -> dict[str, TextClassifier]:
    """The adapter on PyTorch, and its exports on every runtime."""
    exported = {"float32": folder / "float32", "int8": folder / "int8"}
    for name, where in exported.items():
        ptune.export_onnx(adapter, where, int8=name == "int8")
    made: dict[str, TextClassifier] = {
        "ptune, PyTorch, float32": ptune.load(adapter, dtype="float32", device="cpu"),
        "ptune, PyTorch, auto": ptune.load(adapter, device="cpu"),
        "ONNX Runtime, float32": ptune.load_exported(exported["float32"], "onnx"),
        "ONNX Runtime, int8": ptune.load_exported(exported["int8"], "onnx"),
    }
    for dtype in ("float32", "bfloat16"):
        made[f"OpenVINO, {dtype}"] = ptune.load_exported(
            exported["float32"],
            "openvino",
            dtype=dtype,  # type: ignore[arg-type]
        )
    made["OpenVINO, int8"] = ptune.load_exported(exported["int8"], "openvino")
    return made


def main() -> None:
    """Time them, print the table and write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--adapter", type=Path, required=True, help="trained on MRPC with MiniLM")
    parser.add_argument("--data-dir", help="GLUE's folder; default: download MRPC from the Hub")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--texts", type=int, help="number of dev texts (all)")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/runtimes"))
    args = parser.parse_args()
    task = load_glue("mrpc", args.data_dir)
    examples = task.evaluation[""]
    examples = examples.select(range(min(args.texts or len(examples), len(examples))))
    texts: Pairs = [(r[data.TEXT], r[data.PAIR]) for r in examples]
    labels = [task.labels.names[i] for i in examples[data.LABEL]]
    with tempfile.TemporaryDirectory() as folder:
        classifiers = contenders(args.adapter, Path(folder))
    accuracy = {
        name: classifier.evaluate(texts, labels, ["accuracy"])["accuracy"]
        for name, classifier in classifiers.items()
    }
    guide = peft_predictor(_peft("minilm", "p-tuning").eval(), "minilm")
    work: dict[str, Callable[[], Any]] = {PEFT: lambda: guide(texts)}
    for name, classifier in classifiers.items():
        work[name] = lambda c=classifier: list(c.logits(texts))  # type: ignore[misc]
    seconds = in_turn(work, args.rounds)
    results = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("torch", "peft", "onnxruntime", "openvino")},
        "texts": len(texts),
        "rounds": args.rounds,
        "texts_per_second": {k: len(texts) / statistics.median(v) for k, v in seconds.items()},
        "accuracy": accuracy,
        "ratios": {name: ratio(seconds, PEFT, name) for name in classifiers},
    }
    args.output_dir.mkdir(parents=True, exist_ok=True)
    file = args.output_dir / "runtimes.json"
    file.write_text(json.dumps(results, indent=2) + "\n", "utf-8")
    print(
        "| | texts per second | speed-up over PEFT (least to most) | accuracy |\n"
        "| --- | --- | --- | --- |"
    )
    for name in work:
        r = results["ratios"].get(name)
        times = f"{r['median']:.2f} ({r['least']:.2f} to {r['most']:.2f})" if r else "1"
        score = f"{accuracy[name]:.4f}" if name in accuracy else ""
        print(f"| {name} | {results['texts_per_second'][name]:.0f} | {times} | {score} |")


if __name__ == "__main__":
    main()
