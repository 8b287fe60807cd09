"""Adapters go from PEFT to ptune and back. Also: faults of PEFT that ptune does not have.

Each test of a fault first shows that PEFT has it, and then what ptune does instead. If one of them
fails because PEFT has fixed the fault, delete it.
"""

import copy
import warnings

import peft
import pytest
import torch
from architectures import ARCHITECTURES, build_model, build_tokenizer, tokenizer_that_pads
from conftest import SENTENCES, build
from datasets import Dataset
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

from ptune import PromptModel
from ptune import peft as ours
from ptune.peft import PromptEncoderConfig

SETTINGS = {"task_type": "SEQ_CLS", "num_virtual_tokens": 5, "encoder_hidden_size": 16}
ROUND_TRIP = ["RoBERTa", "BERT", "GPT-2", "OPT", "BLOOM", "Llama"]


@pytest.fixture(params=ROUND_TRIP)
def architecture(request):
    return ARCHITECTURES[request.param]


@pytest.fixture
def tokenizer(architecture):
    return tokenizer_that_pads(architecture, SENTENCES)


def fresh(architecture, tokenizer, **options):
    return build_model(architecture, tokenizer, **options)


def logits_one_by_one(model, tokenizer):
    """Logits without padding, where PEFT is correct on these architectures."""
    with torch.no_grad():
        inputs = [tokenizer(t, return_tensors="pt") for t in SENTENCES]
        return torch.cat([model(**i).logits for i in inputs])


@pytest.mark.parametrize("encoder", ["MLP", "LSTM"])
def test_an_adapter_goes_from_peft_to_ptune_and_back(architecture, tokenizer, encoder, tmp_path):
    torch.manual_seed(1)
    config = peft.PromptEncoderConfig(**SETTINGS, encoder_reparameterization_type=encoder)
    theirs = peft.get_peft_model(fresh(architecture, tokenizer), config).eval()
    expected = logits_one_by_one(theirs, tokenizer)
    theirs.save_pretrained(tmp_path / "theirs")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        here = PromptModel.from_pretrained(fresh(architecture, tokenizer), tmp_path / "theirs")
        torch.testing.assert_close(logits_one_by_one(here, tokenizer), expected, atol=1e-5, rtol=0)
        here.save_pretrained(tmp_path / "ours")
        back = peft.PeftModel.from_pretrained(
            fresh(architecture, tokenizer), tmp_path / "ours"
        ).eval()
    torch.testing.assert_close(logits_one_by_one(back, tokenizer), expected, atol=1e-5, rtol=0)


def test_the_head_trains_on_every_architecture(architecture, tokenizer):
    model = ours.get_peft_model(
        fresh(architecture, tokenizer), ours.PromptEncoderConfig(**SETTINGS)
    )
    assert all(p.requires_grad for _, p in model.head_parameters())
    assert model.prompt_config.modules_to_save == ["classifier", "score"]


# Behaviour that PEFT's own tests require.


def test_peft_s_methods_exist(kind):
    model = ours.get_peft_model(build(kind), ours.PromptEncoderConfig(**SETTINGS))
    for method in (
        "save_pretrained",
        "from_pretrained",
        "push_to_hub",
        "print_trainable_parameters",
        "get_nb_trainable_parameters",
        "get_base_model",
        "add_adapter",
        "set_adapter",
        "delete_adapter",
        "load_adapter",
        "disable_adapter",
        "unload",
    ):
        assert callable(getattr(model, method)), method


def test_an_adapter_can_have_a_name(kind, tmp_path):
    model = ours.get_peft_model(build(kind), ours.PromptEncoderConfig(**SETTINGS), "test-adapter")
    assert model.active_adapter == "test-adapter"
    ids = torch.arange(10, 16)[None]
    model.eval().save_pretrained(tmp_path)
    again = ours.PeftModel.from_pretrained(build(kind), tmp_path)
    assert torch.equal(again(ids).logits, model(ids).logits)


def test_a_config_passed_to_from_pretrained_is_used_and_not_changed(kind, tmp_path):
    model = ours.get_peft_model(build(kind), ours.PromptEncoderConfig(**SETTINGS)).eval()
    model.save_pretrained(tmp_path)
    given = ours.PeftConfig.from_pretrained(tmp_path)
    given.revision = "a-branch"
    before = copy.deepcopy(given)
    loaded = ours.PeftModel.from_pretrained(build(kind), tmp_path, config=given)
    assert loaded.prompt_config.revision == "a-branch"
    assert given == before


# Faults of PEFT.


def pad_left(rows, pad):
    width = max(len(r) for r in rows)
    ids = torch.tensor([[pad] * (width - len(r)) + r for r in rows])
    return ids, torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows])


TEXTS = [list(range(10, 13)), list(range(30, 41))]


def both(kind, **options):
    """PEFT's model and ours, with the same weights."""
    backbone = build(kind, **options)
    if backbone.config.pad_token_id is None:
        backbone.config.pad_token_id = 0
    torch.manual_seed(1)
    theirs = peft.get_peft_model(
        copy.deepcopy(backbone), peft.PromptEncoderConfig(**SETTINGS)
    ).eval()
    mine = PromptModel(backbone, PromptEncoderConfig(**SETTINGS)).eval()
    mine.prompt_encoder.load_state_dict(theirs.prompt_encoder["default"].state_dict())
    return theirs, mine


@pytest.mark.parametrize("reload", ["best at the end", "resume"])
def test_peft_reloads_a_checkpoint_with_other_weights(tokenizer_bert, reload, tmp_path):
    """PEFT takes the encoder's output for its input when a checkpoint is loaded."""
    texts = [f"{t} {i}" for i in range(4) for t in SENTENCES]
    examples = Dataset.from_dict({"text": texts, "labels": [i % 2 for i in range(len(texts))]})
    examples = examples.map(lambda e: tokenizer_bert(e["text"]), remove_columns="text")

    def losses_after_reload(model):
        """Evaluation loss of the reloaded model, and the loss recorded for its checkpoint."""
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=str(tmp_path / type(model).__name__),
                num_train_epochs=3,
                learning_rate=0.02,
                eval_strategy="epoch",
                save_strategy="epoch",
                load_best_model_at_end=reload == "best at the end",
                report_to="none",
                disable_tqdm=True,
                use_cpu=True,
            ),
            train_dataset=examples,
            eval_dataset=examples,
            data_collator=DataCollatorWithPadding(tokenizer_bert),
        )
        trainer.train()
        losses = [h["eval_loss"] for h in trainer.state.log_history if "eval_loss" in h]
        if reload == "best at the end":
            return trainer.evaluate()["eval_loss"], min(losses)
        step = trainer.state.global_step
        trainer._load_from_checkpoint(f"{trainer.args.output_dir}/checkpoint-{step}")
        return trainer.evaluate()["eval_loss"], losses[-1]

    theirs, mine = both("bert")
    reloaded, recorded = losses_after_reload(mine)
    assert reloaded == recorded
    reloaded, recorded = losses_after_reload(theirs)
    assert reloaded != recorded


@pytest.fixture(scope="module")
def tokenizer_bert():
    from conftest import train_tokenizer

    return train_tokenizer(bos="[CLS]", eos="[SEP]")


@torch.no_grad()
def test_peft_crashes_on_a_text_of_the_model_s_full_length(kind):
    """ptune reports how many tokens fit, and a text of that length runs."""
    theirs, mine = both(kind)
    ids = torch.randint(10, 300, (1, 64))
    with pytest.raises((IndexError, RuntimeError)):
        theirs(ids)
    with pytest.raises(ValueError, match="at most 59 tokens"):
        mine(ids)
    assert mine(ids[:, :59]).logits.isfinite().all()


@torch.no_grad()
def test_logits_of_peft_s_decoders_depend_on_the_padding():
    theirs, mine = both("gpt2")
    ids, mask = pad_left(TEXTS, 0)
    short = torch.tensor([TEXTS[0]])
    alone, together = theirs(short).logits[0], theirs(ids, attention_mask=mask).logits[0]
    assert (alone - together).abs().max() > 1e-3
    alone, together = mine(short).logits[0], mine(ids, attention_mask=mask).logits[0]
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=0)


@torch.no_grad()
def test_peft_does_not_save_the_whole_head(tmp_path):
    """DeBERTa-v2's pooler is outside the base model and is not called `classifier`."""
    architecture = ARCHITECTURES["DeBERTa-v2"]
    tokenizer = build_tokenizer(architecture, SENTENCES)

    def another_head():
        """The same base model, as loaded from a checkpoint, with another random head."""
        model = build_model(architecture, tokenizer)
        for name, p in model.named_parameters():
            if not name.startswith(model.base_model_prefix + "."):
                torch.nn.init.normal_(p)
        return model

    theirs = peft.get_peft_model(
        build_model(architecture, tokenizer), peft.PromptEncoderConfig(**SETTINGS)
    ).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    back = peft.PeftModel.from_pretrained(another_head(), tmp_path / "theirs").eval()
    assert not torch.allclose(
        logits_one_by_one(back, tokenizer), logits_one_by_one(theirs, tokenizer), atol=1e-2
    )
    mine = PromptModel(build_model(architecture, tokenizer), PromptEncoderConfig(**SETTINGS)).eval()
    mine.save_pretrained(tmp_path / "mine")
    again = PromptModel.from_pretrained(another_head(), tmp_path / "mine")
    assert torch.equal(logits_one_by_one(again, tokenizer), logits_one_by_one(mine, tokenizer))


@pytest.mark.parametrize("name", ["DistilBERT", "ALBERT", "OPT (projected)"])
def test_peft_fails_on_some_architectures(name):
    architecture = ARCHITECTURES[name]
    tokenizer = build_tokenizer(architecture, SENTENCES)
    inputs = tokenizer(SENTENCES[0], return_tensors="pt")
    with pytest.raises(Exception):  # noqa: B017 - each architecture fails in its own way
        peft.get_peft_model(
            build_model(architecture, tokenizer), peft.PromptEncoderConfig(**SETTINGS)
        )(**inputs)
    mine = PromptModel(build_model(architecture, tokenizer), PromptEncoderConfig(**SETTINGS)).eval()
    assert mine(**inputs).logits.isfinite().all()


DROPOUT_OFF = {
    "bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "roberta": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "gpt2": {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0},
}


def test_the_loss_curve_equals_peft_s(kind):
    """The positions that ptune skips do not change the loss: twenty steps in float32.

    All texts of a batch have the same length, because PEFT's decoders read padding.
    """
    theirs, mine = both(kind, **DROPOUT_OFF[kind])
    generator = torch.Generator().manual_seed(3)
    batches = [torch.randint(10, 390, (8, 6 + i % 3), generator=generator) for i in range(20)]
    curves = []
    for model in (theirs.train(), mine.train()):
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
        losses = []
        for ids in batches:
            mask, labels = torch.ones_like(ids), (ids[:, 2] > 200).long()
            loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        curves.append(losses)
    assert abs(curves[0][0] - curves[0][-1]) > 0.01, "something is learned"
    assert curves[1] == pytest.approx(curves[0], abs=1e-4)
