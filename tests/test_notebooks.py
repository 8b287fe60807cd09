"""The notebooks run, and what is committed has outputs."""

import re
from pathlib import Path

import nbformat
import pytest
from architectures import ARCHITECTURES, build_model, build_tokenizer
from nbclient import NotebookClient
from transformers import AutoModelForCausalLM

import ptune

FOLDER = Path(__file__).parents[1] / "notebooks"
# Fewer steps and examples than in the committed notebook: its first code cell.
SMALL = {
    "few_examples": 'model, per_label, epochs = "tiny", 1, 1',
    "csv_to_served_classifier": "epochs = 0.05",
    "peft_p_tuning_guide": "examples, evaluated, epochs = 32, 16, 1",
}
# What the cells print, in this order, whatever the numbers are.
PRINTED = {
    "few_examples": [
        r"'\{soft:Is the text positive or negative\?",
        r"\['\w+' '\w+'\]\n",
        r"no examples: \d\.\d\d\n",
        r"\d examples per label: \d\.\d\d\n",
        r"\w+ \d\.\d\d\n",
    ],
    "csv_to_served_classifier": [
        r"text,label\n",
        r"\d+ findings\n",
        r"accuracy: 0\.\d+\n",
        r"adapter_model.safetensors +\d+\.\d kB\n",
        r"\w+ +0\.\d+  where is my parcel\?\n",
        r"\['mail'\]\n",
        r"\w+ +\d\.\d+\n",
        r"0\n",
    ],
    "peft_p_tuning_guide": [
        r"\(\['text', 'text_pair', 'label'\], 3667, 408\)",
        r"trainable params: [\d,]+ \|\| all params",
        r"\{'eval_accuracy': 0\.\d+, 'eval_f1': 0?\.\d+\}\n",
        r"adapter_config.json\nadapter_model.safetensors\n",
        r"not equivalent: \d+%\nequivalent: \d+%\n",
    ],
}


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def printed(book):
    outputs = [o for c in book.cells if c.cell_type == "code" for o in c.outputs]
    # A kernel may send what one cell prints in several parts.
    return "".join(o.get("text") or f"{o.get('data', {}).get('text/plain', '')}\n" for o in outputs)


def assert_printed(book, name):
    assert re.search(".*".join(PRINTED[name]), printed(book), re.DOTALL), printed(book)


def write_tiny_decoder(folder):
    """A causal language model with random weights."""
    texts = (Path(ptune.__file__).parent / "demo" / "train.csv").read_text("utf-8").splitlines()
    qwen = ARCHITECTURES["Qwen 2"]
    tokenizer = build_tokenizer(qwen, texts)
    config = build_model(qwen, tokenizer, max_position_embeddings=512).config
    for part in (AutoModelForCausalLM.from_config(config), tokenizer):
        part.save_pretrained(folder)


@pytest.mark.data
@pytest.mark.parametrize("name", SMALL)
def test_a_notebook_runs(name, tmp_path, monkeypatch, glue_folder):
    book = read(name)
    if "tiny" in SMALL[name]:
        write_tiny_decoder(tmp_path / "tiny")
    (parameters,) = [c for c in book.cells if "parameters" in c.metadata.get("tags", [])]
    parameters.source = SMALL[name]
    monkeypatch.setenv("PTUNE_DATA", str(glue_folder.absolute()))
    monkeypatch.setenv("PYTHONPATH", str(Path(ptune.__file__).parents[1]))
    where = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(book, timeout=280, kernel_name="python3", resources=where).execute()
    assert_printed(book, name)


@pytest.mark.parametrize("name", SMALL)
def test_a_committed_notebook_is_small_and_has_outputs(name):
    assert (FOLDER / f"{name}.ipynb").stat().st_size < 150_000
    book = read(name)
    nbformat.validate(book)
    assert_printed(book, name)
    assert all(o.output_type != "error" for c in book.cells for o in c.get("outputs", []))
