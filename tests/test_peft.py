"""Code written for PEFT runs with its import line changed."""

import re
import subprocess
import sys
from pathlib import Path

import peft
import torch
import transformers
from conftest import build, refused

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


def test_the_guide_runs_to_its_last_line(bert_folder, texts, tmp_path):
    (tmp_path / "MRPC").mkdir()
    rows = [f"{i % 2}\t1\t2\t{texts[i % 8]}\t{texts[(i + i % 2) % 8]}" for i in range(40)]
    for split in ("train", "dev"):
        (tmp_path / "MRPC" / f"{split}.tsv").write_text("\n".join([HEADER, *rows]), "utf-8-sig")
    check_guide_output(run_guide(bert_folder, tmp_path, 2))


def test_roberta_large_has_the_guide_s_parameters(capsys):
    with torch.device("meta"):
        config = transformers.RobertaConfig(
            vocab_size=50265,
            hidden_size=1024,
            num_hidden_layers=24,
            num_attention_heads=16,
            intermediate_size=4096,
            max_position_embeddings=514,
            type_vocab_size=1,
        )
        backbone = transformers.AutoModelForSequenceClassification.from_config(config)
        model = ours.get_peft_model(
            backbone,
            ours.PromptEncoderConfig(
                task_type="SEQ_CLS", num_virtual_tokens=20, encoder_hidden_size=128
            ),
        )
    model.print_trainable_parameters()
    assert capsys.readouterr().out == (
        "trainable params: 1,351,938 || all params: 355,662,082 || trainable%: 0.3801\n"
    )


def test_a_state_dictionary_can_be_read_and_set(kind):
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


def test_a_state_dictionary_of_another_length_is_refused(kind):
    config = ours.PromptEncoderConfig(num_virtual_tokens=5)
    model = ours.get_peft_model(build(kind), config)
    state = ours.get_peft_model_state_dict(model)
    state["prompt_embeddings"] = state["prompt_embeddings"][:3]
    with refused("The prompt has the shape [3, 32], but … requires [5, 32]…"):
        ours.set_peft_model_state_dict(model, state)
    del state["prompt_embeddings"]
    with refused(
        "the state dictionary has no 'prompt_embeddings', so it is not a p-tuning adapter."
    ):
        ours.set_peft_model_state_dict(model, state)


def test_a_configuration_survives_a_dictionary():
    config = ours.PromptEncoderConfig(num_virtual_tokens=5, encoder_dropout=0.5)
    assert ours.get_peft_config(config.to_dict()) == config
    theirs = peft.PromptEncoderConfig(task_type="SEQ_CLS", num_virtual_tokens=5)
    assert ours.get_peft_config(theirs.to_dict()) == ours.PromptEncoderConfig(num_virtual_tokens=5)


def test_a_configuration_is_read_from_a_folder(kind, tmp_path):
    config = ours.PromptEncoderConfig(num_virtual_tokens=5, encoder_hidden_size=16)
    ours.get_peft_model(build(kind), config).save_pretrained(tmp_path)
    read = ours.PeftConfig.from_pretrained(tmp_path)
    assert isinstance(read, ours.PromptEncoderConfig)
    assert read.peft_type == ours.PeftType.P_TUNING
    assert read.task_type == ours.TaskType.SEQ_CLS
    assert (read.num_virtual_tokens, read.encoder_hidden_size) == (5, 16)


def test_another_method_is_refused_by_name():
    with refused(
        "The configuration: peft_type is 'LORA'; ptune reads 'P_TUNING', 'PREFIX_TUNING' and "
        "'PROMPT_TUNING'."
    ):
        ours.get_peft_config({"peft_type": "LORA"})
