"""An unmodified `Trainer` trains, checkpoints, reloads the best checkpoint and resumes exactly."""

from pathlib import Path

import pytest
import torch
import transformers
from conftest import build
from datasets import Dataset
from transformers import DataCollatorWithPadding, EarlyStoppingCallback, Trainer, TrainingArguments

from ptune import PromptModel
from ptune.peft import PromptEncoderConfig


@pytest.fixture(scope="module")
def examples(tokenizer, texts):
    """Two labels that words predict. Some are wrong, so that the loss rises again later."""
    rows = [f"{t} {i % 7}" for i in range(6) for t in texts]
    labels = [(i % 8) % 2 for i in range(len(rows))]
    dataset = Dataset.from_dict({"text": rows, "labels": labels})
    return dataset.map(lambda r: tokenizer(r["text"]), remove_columns="text")


def make_trainer(kind, tokenizer, examples, folder, callbacks=(), seed=5, **options):
    transformers.set_seed(seed)
    model = PromptModel(
        build(kind), PromptEncoderConfig(num_virtual_tokens=4, encoder_hidden_size=16)
    )
    arguments = {
        "num_train_epochs": 4,
        "learning_rate": 0.03,
        "per_device_train_batch_size": 8,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "load_best_model_at_end": True,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        **options,
    }
    return Trainer(
        model=model,
        args=TrainingArguments(output_dir=str(folder), **arguments),
        train_dataset=examples,
        eval_dataset=examples.select(range(0, len(examples), 3)),
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=list(callbacks),
    )


def test_the_best_checkpoint_is_loaded_at_the_end(kind, tokenizer, examples, tmp_path, caplog):
    trainer = make_trainer(kind, tokenizer, examples, tmp_path)
    trainer.train()
    recorded = [h["eval_loss"] for h in trainer.state.log_history if "eval_loss" in h]
    assert len(recorded) == 4
    assert recorded[0] != recorded[-1]
    assert trainer.state.best_metric == min(recorded)
    assert trainer.evaluate()["eval_loss"] == min(recorded)
    assert "missing keys" not in caplog.text
    assert "unexpected keys" not in caplog.text


def test_each_checkpoint_is_an_adapter_with_the_recorded_scores(
    kind, tokenizer, examples, tmp_path
):
    trainer = make_trainer(kind, tokenizer, examples, tmp_path, load_best_model_at_end=False)
    trainer.train()
    recorded = {h["step"]: h["eval_loss"] for h in trainer.state.log_history if "eval_loss" in h}
    checkpoints = list(tmp_path.glob("checkpoint-*"))
    assert len(checkpoints) == 4
    for checkpoint in checkpoints:
        loaded = PromptModel.from_pretrained(build(kind), checkpoint)
        trainer.model = trainer.model_wrapped = loaded
        step = int(checkpoint.name.split("-")[1])
        assert trainer.evaluate()["eval_loss"] == recorded[step]


def test_a_resumed_training_writes_the_same_bytes(kind, tokenizer, examples, tmp_path):
    whole = make_trainer(kind, tokenizer, examples, tmp_path / "a", load_best_model_at_end=False)
    whole.train()
    again = make_trainer(
        kind, tokenizer, examples, tmp_path / "b", load_best_model_at_end=False, seed=77
    )
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-12"))
    for trainer in (whole, again):
        trainer.model.save_pretrained(Path(trainer.args.output_dir) / "end")
    for file in ("adapter_model.safetensors", "model.safetensors", "adapter_config.json"):
        assert (tmp_path / "a/end" / file).read_bytes() == (tmp_path / "b/end" / file).read_bytes()


def test_early_stopping_works(tokenizer, examples, tmp_path):
    stop = EarlyStoppingCallback(early_stopping_patience=1, early_stopping_threshold=10.0)
    trainer = make_trainer("bert", tokenizer, examples, tmp_path, callbacks=[stop])
    trainer.train()
    assert trainer.state.epoch == 2


def test_gradient_accumulation_equals_a_larger_batch(tokenizer, examples, tmp_path):
    ends = []
    for size, steps in ((8, 1), (4, 2)):
        trainer = make_trainer(
            "gpt2",
            tokenizer,
            examples,
            tmp_path / str(size),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            num_train_epochs=1,
            optim="sgd",
        )
        trainer.train()
        ends.append(trainer.model.prompt_embeddings())
    torch.testing.assert_close(*ends, atol=1e-4, rtol=0)
