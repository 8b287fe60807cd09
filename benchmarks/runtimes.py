"""How fast is an exported classifier on PyTorch, ONNX Runtime and OpenVINO, compared with PEFT?

    ptune train --task mrpc --data-dir glue --output-dir runs/mrpc
    python benchmarks/runtimes.py --adapter runs/mrpc --data-dir glue --output-dir runs/runtimes

Exports the adapter (on MiniLM, trained on MRPC) in float32 and in int8, times MRPC's dev texts on
every runtime, including tokenisation, prints a table of throughput, ratio and accuracy, and writes
`runtimes.json`. The plain backbone is MiniLM with a new head and no prompt, on the same texts. PEFT
is used as in its guide "P-tuning for sequence classification": float32, batches of 32 texts in
their order. It is not trained here, so it has no accuracy. Ratios are taken within a round, so that
other load on the machine affects all alike.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import versions, write_result
from speed import _peft, in_turn, peft_predictor, ratio

import ptune
from ptune import PromptEncoderConfig, PromptModel
from ptune.backbones.loading import load_backbone
from ptune.data import dataset as data
from ptune.data.glue import load_glue
from ptune.inference.text_classifier import TextClassifier

PEFT, PLAIN = "PEFT, float32", "plain backbone"
FASTEST_PLAIN = f"{PLAIN}, OpenVINO, bfloat16"
Pairs = list[tuple[str, str]]


def contenders(adapter: Path, folder: Path, labels: list[str]) -> dict[str, TextClassifier]:
    """The adapter on PyTorch, its exports on every runtime, and the backbone without a prompt."""
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
    config = PromptEncoderConfig(depth="none", pooling="mean")
    plain = PromptModel(load_backbone("minilm", labels=labels), config).to_adapter()
    plain.save(folder / "plain")
    ptune.export_onnx(folder / "plain", folder / "plain-exported")
    made[f"{PLAIN}, PyTorch, auto"] = ptune.load(folder / "plain", device="cpu")
    made[FASTEST_PLAIN] = ptune.load_exported(
        folder / "plain-exported", "openvino", dtype="bfloat16"
    )
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
        classifiers = contenders(args.adapter, Path(folder), task.labels.names)
    guide = peft_predictor(_peft("minilm", "p-tuning").eval(), "minilm")
    work: dict[str, Callable[[], Any]] = {PEFT: lambda: guide(texts)}
    for name, classifier in classifiers.items():
        work[name] = lambda c=classifier: list(c.logits(texts))  # type: ignore[misc]
    seconds = in_turn(work, args.rounds)
    rows = {}
    for name in work:
        rows[name] = {"texts per second": f"{len(texts) / statistics.median(seconds[name]):.0f}"}
        for base in (PEFT, FASTEST_PLAIN):
            found = ratio(seconds, base, name)
            spread = f"({found['least']:.2f} to {found['most']:.2f})"
            rows[name][f"speed-up over {base}"] = f"{found['median']:.2f} {spread}"
        if name in classifiers and not name.startswith(PLAIN):  # the others are not trained
            accuracy = classifiers[name].evaluate(texts, labels, ["accuracy"])["accuracy"]
            rows[name]["accuracy"] = f"{accuracy:.4f}"
    print_rows("runtime", rows)
    write_result(
        args.output_dir / "runtimes.json",
        f"MiniLM with a deep prompt, {len(texts)} of MRPC's dev texts, batch 32, tokenisation "
        f"included. Medians of {args.rounds} rounds, and the least and the most",
        "python benchmarks/runtimes.py --data-dir glue",
        "runtime",
        rows,
        versions=versions("ptune", "torch", "peft", "onnxruntime", "openvino"),
    )


def print_rows(title: str, rows: dict[str, dict[str, str]]) -> None:
    """Print a table."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    print(f"| {' | '.join([title, *columns])} |\n| {' | '.join(['---'] * (1 + len(columns)))} |")
    for name, row in rows.items():
        print(f"| {' | '.join([name, *(row.get(column, '') for column in columns)])} |")


if __name__ == "__main__":
    main()
