"""Code written for the reference runs with its import line changed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import build

from ptune import PtuneError
from ptune import peft as ours

GUIDE = Path(__file__).parents[1] / "examples" / "p_tuning_guide.py"
HEADER = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"


def run_guide(model, data_dir, epochs):
    command = [sys.executable, str(GUIDE), "--model", str(model), "--data-dir", str(data_dir)]
    return subprocess.run(
        [*command, "--epochs", str(epochs)], capture_output=True, text=True, check=True
    ).stdout


def check_guide_output(output):
    assert re.search(
        r"trainable params: [\d,]+ \|\| all params: [\d,]+ \|\| trainable%: \d", output
    )
    first, second = re.findall(r"^(?:not equivalent|equivalent): (\d+)%$", output, re.MULTILINE)
    assert 99 <= int(first) + int(second) <= 101


def test_the_guide_runs_to_its_percentages(bert_folder, texts, tmp_path):
    (tmp_path / "MRPC").mkdir()
    rows = [f"{i % 2}\t1\t2\t{texts[i % 8]}\t{texts[(i + i % 2) % 8]}" for i in range(40)]
    for split in ("train", "dev"):
        (tmp_path / "MRPC" / f"{split}.tsv").write_text("\n".join([HEADER, *rows]), "utf-8-sig")
    check_guide_output(run_guide(bert_folder, tmp_path, 2))


def test_the_state_dictionary_goes_out_and_in(kind):
    config = ours.get_peft_config(
        {
            "peft_type": "P_TUNING",
            "task_type": "SEQ_CLS",
            "num_virtual_tokens": 5,
            "encoder_hidden_size": 16,
        }
    )
    one = ours.get_peft_model(build(kind), config).eval()
    two = ours.get_peft_model(build(kind, seed=9), config).eval()
    two.backbone.base_model.load_state_dict(one.backbone.base_model.state_dict())
    ids = torch.arange(10, 16)[None]
    assert not torch.equal(one(ids).logits, two(ids).logits)
    state = ours.get_peft_model_state_dict(one)
    assert state["prompt_embeddings"].shape == (5, 32)
    ours.set_peft_model_state_dict(two, state)
    assert torch.equal(one(ids).logits, two(ids).logits)


def test_a_state_of_another_length_is_refused(kind):
    config = ours.PromptEncoderConfig(num_virtual_tokens=5)
    model = ours.get_peft_model(build(kind), config)
    state = ours.get_peft_model_state_dict(model)
    state["prompt_embeddings"] = state["prompt_embeddings"][:3]
    with pytest.raises(PtuneError, match=r"\[3, 32\].*\[5, 32\]"):
        ours.set_peft_model_state_dict(model, state)


def test_configurations_are_read_from_a_folder(kind, tmp_path):
    config = ours.PromptEncoderConfig(num_virtual_tokens=5, encoder_hidden_size=16)
    ours.get_peft_model(build(kind), config).save_pretrained(tmp_path)
    read = ours.PeftConfig.from_pretrained(tmp_path)
    assert read.peft_type == ours.PeftType.P_TUNING
    assert read.task_type == ours.TaskType.SEQ_CLS
    assert (read.num_virtual_tokens, read.encoder_hidden_size) == (5, 16)


def test_another_method_is_refused_by_name():
    with pytest.raises(PtuneError, match="'LORA'"):
        ours.get_peft_config({"peft_type": "LORA"})
