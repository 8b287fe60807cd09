"""Which architectures export to ONNX? Tiny seeded models of every architecture in the tests.

    python benchmarks/onnx_architectures.py --write docs/reference/architectures.md
        [--architectures BERT GPT-2]

Exports an input prompt and a deep prompt of each with `ptune.export_onnx`, runs both on ONNX
Runtime and OpenVINO in float32, and writes a table of the largest difference from PyTorch's
logits, relative to the largest logit.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch

import ptune

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from architectures import ARCHITECTURES, build_model, build_tokenizer
from conftest import SENTENCES

from ptune.export.check import Comparison

KINDS = {
    "input": {"placement": "prefix"},
    "deep": {"depth": "deep", "encoder_reparameterization_type": "NONE"},
}
START, END = "<!-- onnx -->\n", "<!-- /onnx -->"


def outcome(name: str, kind: str, folder: Path) -> str:
    """The largest difference with both runtimes, or the error."""
    architecture = ARCHITECTURES[name]
    tokenizer = build_tokenizer(architecture, SENTENCES)
    backbone = build_model(architecture, tokenizer)
    backbone.save_pretrained(folder / "backbone")
    tokenizer.save_pretrained(folder / "backbone")
    backbone.name_or_path = str(folder / "backbone")
    torch.manual_seed(1)
    config = ptune.peft.PromptEncoderConfig(
        num_virtual_tokens=5, encoder_hidden_size=16, **KINDS[kind]
    )  # fmt: skip
    ptune.PromptModel(backbone, config).save_pretrained(folder / "adapter")
    classifier = ptune.load(folder / "adapter", dtype="float32", device="cpu")
    pairs = list(zip(SENTENCES[:4], SENTENCES[4:], strict=True))
    comparison = Comparison(classifier, [*SENTENCES, *pairs])
    cells = []
    try:
        ptune.export_onnx(folder / "adapter", folder / "out")
        for runtime in ("onnx", "openvino"):
            try:
                exported = ptune.load_exported(folder / "out", runtime, dtype="float32")
                cells.append(f"{comparison.check(exported.logits).difference:.0e}")
            except (ptune.PtuneError, RuntimeError) as error:
                cells.append(str(error).splitlines()[0][:160])
    except ptune.PtuneError as error:
        cells = [str(error).split(" Nothing was")[0], ""]
    return " | ".join(cells)


def main() -> None:
    """Export them all and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--architectures", nargs="*", default=list(ARCHITECTURES))
    parser.add_argument("--write", type=Path, help="file that contains the two marks of the table")
    given = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "| architecture | input, ONNX Runtime | input, OpenVINO | deep, ONNX Runtime "
        "| deep, OpenVINO |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in given.architectures:
        cells = []
        for kind in KINDS:
            with tempfile.TemporaryDirectory() as folder:
                cells.append(outcome(name, kind, Path(folder)))
        lines.append(f"| {name} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    if given.write:
        before, rest = given.write.read_text("utf-8").split(START)
        table = "\n".join([START.rstrip(), *lines, END])
        given.write.write_text(before + table + rest.split(END)[1], "utf-8")


if __name__ == "__main__":
    main()
