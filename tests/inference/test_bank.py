"""A bank gives the logits of each task's own classifier, whatever else is in the batch."""

import copy
import json
import random
import re
import shutil
import threading
import time
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from architectures import ARCHITECTURES, build_model, tokenizer_that_pads
from conftest import SENTENCES, cut_short, edit_json, edit_tensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import ptune
from ptune import PromptBank, PromptModel, PtuneError
from ptune.backbones.architectures import Architecture
from ptune.backbones.loading import load_backbone
from ptune.peft import PromptEncoderConfig

# Tasks that differ as much as possible. Name: labels, problem type, prompt.
TASKS = {
    "prefix": (["no", "yes"], "single_label_classification", {"num_virtual_tokens": 5}),
    "mean": (
        ["a", "b", "c"],
        "multi_label_classification",
        {"num_virtual_tokens": 3, "placement": "after_first", "pooling": "mean"},
    ),
    "asking": (
        ["x", "y"],
        "single_label_classification",
        {"num_virtual_tokens": 6, "placement": "after_first", "pooling": "prompt"},
    ),
    "deep": (["score"], "regression", {"num_virtual_tokens": 4, "depth": "deep"}),
    "as deep": (
        ["good", "bad"],
        "single_label_classification",
        {"num_virtual_tokens": 4, "depth": "deep"},
    ),
    "shifted": (
        ["p", "q", "r", "s", "t"],
        "single_label_classification",
        {"num_virtual_tokens": 7, "depth": "deep", "shift_positions": True, "pooling": "mean"},
    ),
    "layers": (
        ["i", "j", "k"],
        "single_label_classification",
        {"num_virtual_tokens": 6, "depth": "deep", "pooling": "layers"},
    ),
    "pairs": (
        ["e", "f"],
        "single_label_classification",
        {"num_virtual_tokens": 5, "depth": "deep", "pooling": "pairs"},
    ),
    "reader": (
        ["u", "v", "w"],
        "single_label_classification",
        {"num_virtual_tokens": 4, "depth": "reader", "pooling": "prompt", "reader_rank": 2},
    ),
    "reader, added keys": (
        ["o", "p"],
        "single_label_classification",
        {"num_virtual_tokens": 3, "depth": "reader", "pooling": "prompt", "reader_key_rank": 2},
    ),
    "reader, layers": (
        ["x", "y"],
        "single_label_classification",
        {"num_virtual_tokens": 2, "depth": "reader", "pooling": "layers"},
    ),
    "reader, pairs": (
        ["g", "h"],
        "single_label_classification",
        {"num_virtual_tokens": 3, "depth": "reader", "pooling": "pairs"},
    ),
    "as reader": (
        ["m", "n"],
        "multi_label_classification",
        {"num_virtual_tokens": 2, "depth": "reader"},
    ),
}
READERS = [task for task in TASKS if "reader" in task]
# One module is every layer; states have the positions first.
LAYERS_OUT_OF_REACH = ("ALBERT", "XLNet")
TEXTS = [*SENTENCES[:4], "the", (SENTENCES[4], SENTENCES[5]), ("the lamp", "red")]


def save_adapter(backbone, folder, labels, problem_type, options, seed=0, **info):
    """Save an adapter with a random prompt and head."""
    torch.manual_seed(seed)
    make = ptune.PromptEncoderConfig if options.get("depth") == "reader" else PromptEncoderConfig
    config = make(encoder_reparameterization_type="NONE", **options)
    model = PromptModel(backbone, config)
    with torch.no_grad():
        model.prompt_encoder.embedding.weight.normal_(std=0.5)
        for _, p in model.head_parameters():
            p.normal_(std=0.3)
    for name, value in info.items():
        setattr(model, name, value)
    backbone.config.id2label = dict(enumerate(labels))
    backbone.config.problem_type = problem_type
    model.save_pretrained(folder)
    model.unload()


def assert_same(found, expected):
    """Within 1e-5 of the logits' scale."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, atol=1e-5 * max(1.0, np.abs(other).max()), rtol=0)


# On every architecture.


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_a_mixed_batch_gives_each_task_s_own_logits_on_every_architecture(
    architecture, tmp_path, monkeypatch
):
    monkeypatch.setattr(ptune.texts.tokens, "PADDING", 10**6)  # a batch mixes all lengths, too
    kind = ARCHITECTURES[architecture]
    tokenizer = tokenizer_that_pads(kind, SENTENCES)
    base = build_model(kind, tokenizer)
    own = {}
    known = Architecture.of(base)
    tasks = [t for t in TASKS if t not in READERS]
    tasks = [t for t in tasks if not (known.is_causal and TASKS[t][2].get("pooling") == "prompt")]
    if base.config.is_encoder_decoder or architecture in LAYERS_OUT_OF_REACH:
        tasks.remove("layers")
    if not known.takes_token_types or "layers" not in tasks:
        tasks.remove("pairs")
    for i, task in enumerate(tasks):
        labels, problem_type, options = TASKS[task]
        backbone = build_model(kind, tokenizer, num_labels=len(labels))
        backbone.base_model.load_state_dict(base.base_model.state_dict())
        save_adapter(backbone, tmp_path / task, labels, problem_type, options, seed=i)
        own[task] = PromptModel.from_pretrained(backbone, tmp_path / task)
    bank = PromptBank(base, tokenizer=tokenizer)
    for task in tasks:
        bank.add(task, tmp_path / task)
    requests = [(task, text) for text in TEXTS for task in tasks]
    random.Random(0).shuffle(requests)
    bank.logits(requests[:1])  # finds out whether the backbone needs padding
    runs = []
    base.base_model.register_forward_hook(lambda *_: runs.append(1))
    found = bank.logits(requests)
    assert len(runs) == 1
    expected = []
    for task, text in requests:
        columns = [text] if isinstance(text, str) else list(text)
        with torch.no_grad():
            output = own[task](**tokenizer(*columns, return_tensors="pt"))
        expected.append(output.logits[0].numpy())
    assert_same(found, expected)


# On one small backbone.


@pytest.fixture(scope="module")
def folder(bert_folder, tmp_path_factory):
    """A folder of tasks, as `from_folder` takes it."""
    folder = tmp_path_factory.mktemp("bank")
    for i, (task, (labels, problem_type, options)) in enumerate(TASKS.items()):
        backbone = load_backbone(str(bert_folder), labels=labels, dtype="float32")
        save_adapter(backbone, folder / task, labels, problem_type, options, seed=i)
    return folder


@pytest.fixture(scope="module")
def own(folder):
    """Each task's own classifier."""
    return {task: ptune.load(folder / task, dtype="float32") for task in TASKS}


@pytest.fixture(scope="module")
def shared_bank(folder):
    return PromptBank.from_folder(folder, dtype="float32")


@pytest.fixture
def bank(folder):
    """A bank that a test can change."""
    return PromptBank.from_folder(folder, dtype="float32")


def alone(own, requests):
    return [next(own[task].logits(text)) for task, text in requests]


REQUESTS = st.lists(
    st.tuples(
        st.sampled_from(list(TASKS)),
        st.sampled_from(TEXTS) | st.text("abcdé ☃", min_size=1).map("x".__add__),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(requests=REQUESTS, batch_size=st.sampled_from([1, 32]), data=st.data())
def test_any_mix_in_any_order_gives_each_task_s_own_logits(
    own, shared_bank, requests, batch_size, data
):
    found = shared_bank.logits(requests, batch_size=batch_size)
    assert_same(found, alone(own, requests))
    order = data.draw(st.permutations(range(len(requests))))
    shuffled = shared_bank.logits([requests[i] for i in order])
    assert_same(shuffled, [found[i] for i in order])


def test_a_batch_of_deep_prompts_of_equal_length(own, shared_bank):
    requests = [(task, text) for text in TEXTS for task in ("deep", "as deep")]
    assert_same(shared_bank.logits(requests), alone(own, requests))


def test_predictions_equal_those_of_the_classifiers(own, shared_bank):
    requests = [(task, text) for text in TEXTS for task in TASKS]
    for (task, text), found in zip(requests, shared_bank(requests), strict=True):
        expected = own[task](text)
        if isinstance(expected.label, float):
            assert found.label == pytest.approx(expected.label, abs=1e-5)
        else:
            assert found.label == expected.label
        assert found.probabilities == pytest.approx(expected.probabilities, abs=1e-5)
    task, text = requests[0]
    assert shared_bank((task, text)).probabilities == shared_bank([(task, text)])[0].probabilities


def test_predict_has_the_form_of_the_classifiers_predict(own, shared_bank):
    requests = [(task, text) for text in TEXTS for task in TASKS]
    for (task, text), found in zip(requests, shared_bank.predict(requests), strict=True):
        (expected,) = own[task].predict(text)
        assert type(found) is type(expected)
        if own[task].problem_type_ == "regression":
            assert found == pytest.approx(expected, abs=1e-5)
        else:
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("task", TASKS)
def test_a_task_is_a_classifier(own, shared_bank, task):
    one, texts = shared_bank[task], [text for text in TEXTS if isinstance(text, str)]
    frame = pd.DataFrame({"text": texts})
    expected = own[task].predict(texts)
    assert one.predict(frame).dtype == expected.dtype
    np.testing.assert_allclose(list(one.logits(texts)), list(own[task].logits(texts)), atol=1e-5)
    if own[task].problem_type_ != "regression":
        np.testing.assert_array_equal(one.predict(frame), expected)
        assert one.score(texts, expected) == 1.0
    with pytest.raises(PtuneError, match="no task 'nobody'"):
        shared_bank["nobody"]


def test_requests_may_be_columns(shared_bank):
    table = pd.DataFrame({"task": ["mean", "deep"], "text": ["the", "a"]})
    expected = shared_bank.logits([("mean", "the"), ("deep", "a")])
    for requests in (table, zip(table["task"], table["text"], strict=True), table.values):
        assert_same(shared_bank.logits(requests), expected)


def test_each_text_is_read_once_for_all_readers(own, shared_bank):
    """Other prompts read it again, for which all of them share a pass."""
    runs = []
    embedding = shared_bank.backbone.get_input_embeddings()
    hook = embedding.register_forward_hook(lambda _, args, out: runs.append(args[0].shape))
    found = shared_bank.predict_all(TEXTS, READERS)
    hook.remove()
    asked = [(text,) if isinstance(text, str) else text for text in TEXTS]
    tokens = sum(len(shared_bank.tokenizer(*texts)["input_ids"]) for texts in asked)
    assert len(runs) == 2
    assert runs[0] == (1, tokens)  # without padding
    assert runs[1] == (len(READERS) * len(TEXTS), 4)
    assert [list(by_task) for by_task in found] == [READERS] * len(TEXTS)
    for text, by_task in zip(TEXTS, found, strict=True):
        for task, prediction in by_task.items():
            expected = own[task](text)
            assert prediction.label == expected.label
            np.testing.assert_allclose(
                list(prediction.probabilities.values()),
                list(expected.probabilities.values()),
                atol=1e-5,
            )


def test_a_single_task_may_be_named_without_a_list(shared_bank):
    task = next(iter(shared_bank))
    assert list(shared_bank.predict_all(TEXTS[0], task)[0]) == [task]
    assert shared_bank.predict_all(iter(TEXTS), []) == [{}] * len(TEXTS)


def test_a_table_is_read_by_the_columns_of_each_task(folder, tmp_path):
    """As by each task's own classifier, however the columns are ordered and how many there are."""
    for task, columns in (("prefix", ["title"]), ("pairs", ["first", "second"])):
        shutil.copytree(folder / task, tmp_path / task)
        edit_json(tmp_path / task / "ptune.json", text_columns=columns, text_pairs=len(columns) > 1)
    bank = PromptBank.from_folder(tmp_path, dtype="float32")
    table = pd.DataFrame({"second": ["red", "dog"], "first": ["the lamp", "a cat"], "title": "it"})
    of_all = bank.predict_all(table)
    for task in bank:
        expected = ptune.load(tmp_path / task, dtype="float32").predict_proba(table)
        np.testing.assert_allclose(bank[task].predict_proba(table), expected, atol=1e-5)
        found = [list(by_task[task].probabilities.values()) for by_task in of_all]
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_all_tasks_answer_for_every_text(own, shared_bank):
    found = shared_bank.predict_all(iter(TEXTS[:3]))
    assert [list(by_task) for by_task in found] == [list(shared_bank)] * 3
    for text, by_task in zip(TEXTS[:3], found, strict=True):
        for task, prediction in by_task.items():
            expected = own[task](text).label
            assert prediction.label == (
                pytest.approx(expected, abs=1e-5) if task == "deep" else expected
            )


@pytest.mark.parametrize("batch_size", [1, 3])
def test_many_readers_of_one_text_take_several_passes(own, shared_bank, batch_size, monkeypatch):
    monkeypatch.setattr("ptune.inference.bank.TOKENS_PER_TEXT", 4)
    requests = [(task, text) for text in TEXTS for task in READERS * 3]
    assert_same(shared_bank.logits(requests, batch_size=batch_size), alone(own, requests))


def test_no_requests_give_no_results(shared_bank):
    assert shared_bank.logits([]) == []
    assert shared_bank.predict([]) == []


def test_task_describes_a_task(shared_bank, folder):
    info = shared_bank.task("mean")
    assert (info.name, info.labels, info.depth) == ("mean", ["a", "b", "c"], "input")
    assert info.problem_type == "multi_label_classification"
    assert (info.num_virtual_tokens, info.pairs) == (3, None)
    assert list(shared_bank) == sorted(TASKS)
    assert len(shared_bank) == len(TASKS)
    assert "mean" in shared_bank
    assert "other" not in shared_bank


def test_a_run_records_whether_it_was_trained_on_pairs(bank, folder, tmp_path):
    shutil.copytree(folder / "mean", tmp_path / "run")
    (tmp_path / "run" / "metrics.json").write_text('{"text_pairs": true}')
    bank.add("run", tmp_path / "run")
    assert bank.task("run").pairs is True


@pytest.mark.parametrize("tasks", [list(TASKS), ["prefix", "mean", "deep"]])
def test_a_text_is_truncated_to_the_max_text_tokens_of_its_task(own, shared_bank, tasks):
    """Of 64 positions, one task's prompt takes 5 and another's none."""
    requests = [(task, "the parcel never came " * 40) for task in tasks]
    assert_same(shared_bank.logits(requests), alone(own, requests))


def test_a_text_is_truncated_to_the_max_length_of_its_task(bank, folder, bert_folder, tmp_path):
    labels, problem_type, options = TASKS["prefix"]
    backbone = load_backbone(str(bert_folder), labels=labels, dtype="float32")
    save_adapter(backbone, tmp_path / "a", labels, problem_type, options, max_length=6)
    bank.add("short", tmp_path / "a")
    requests = [("short", SENTENCES[0]), ("deep", SENTENCES[0]), ("short", SENTENCES[1])]
    classifier = ptune.load(tmp_path / "a", dtype="float32")
    found = bank.logits(requests)
    assert_same([found[0], found[2]], alone({"short": classifier}, [requests[0], requests[2]]))
    assert_same(bank.logits([("short", SENTENCES[0] + " and more")]), found[:1])


def test_more_requests_than_fit_into_a_window(own, shared_bank, monkeypatch):
    monkeypatch.setattr(ptune.inference.bank, "WINDOW", 5)
    requests = [(task, text) for task in TASKS for text in TEXTS]
    assert_same(shared_bank.logits(requests), alone(own, requests))


def test_large_heads_are_stacked_in_parts(own, shared_bank, monkeypatch):
    monkeypatch.setattr(ptune.prompts.heads, "_STACKED_NUMBERS", 500)  # three heads of 5 x 32
    requests = [(task, text) for task in TASKS for text in TEXTS]
    assert_same(shared_bank.logits(requests), alone(own, requests))


def test_a_half_precision_bank_agrees_with_its_classifiers(folder):
    bank = PromptBank.from_folder(folder, dtype="bfloat16")
    requests = [(task, text) for task in TASKS for text in TEXTS]
    own = {task: ptune.load(folder / task, dtype="bfloat16") for task in TASKS}
    for one, other in zip(bank.logits(requests), alone(own, requests), strict=True):
        np.testing.assert_allclose(one, other, atol=0.05 * max(1.0, np.abs(other).max()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_backbone_may_get_another_number_format_later(folder, own, dtype):
    bank = PromptBank.from_folder(folder, dtype="float32")
    bank.backbone.to(dtype)
    requests = [(task, text) for task in TASKS for text in TEXTS]
    for one, other in zip(bank.logits(requests), alone(own, requests), strict=True):
        np.testing.assert_allclose(one, other, atol=0.05 * max(1.0, np.abs(other).max()))


def test_a_reader_in_float64_answers_as_in_float32(own):
    classifier = copy.deepcopy(own["reader"])
    expected = classifier.predict_proba(["the lamp", "red"])
    classifier.prompt_model_.double()
    np.testing.assert_allclose(classifier.predict_proba(["the lamp", "red"]), expected, atol=1e-5)


def test_a_backbone_in_training_mode_answers_as_in_evaluation_mode(bank, own):
    requests = [(task, text) for task in TASKS for text in TEXTS]
    bank.backbone.train()
    assert_same(bank.logits(requests), alone(own, requests))


def test_pairs_for_a_task_of_single_texts_and_the_reverse(bank, folder, tmp_path):
    for name, pairs in {"one": False, "two": True, "unknown": None}.items():
        shutil.copytree(folder / "mean", tmp_path / name)
        (tmp_path / name / "metrics.json").write_text(json.dumps({"text_pairs": pairs}))
        bank.add(name, tmp_path / name)
    right = [("one", "a"), ("two", ("a", "b")), ("unknown", "a"), ("unknown", ("a", "b"))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bank.predict(right)
    with pytest.warns(UserWarning, match="Trained on single texts, and asked about pairs: one\\."):
        bank.predict([*right, ("one", ("a", "b"))])
    with pytest.warns(UserWarning, match="Trained on pairs, and asked about single texts: two\\."):
        bank.predict_all(["a"], ["one", "two"])


def test_adapters_stored_in_half_precision_answer_as_in_full(folder, bert_folder, tmp_path):
    """As a classifier, in a bank and added to a model."""
    found = {torch.float16: [], torch.float32: []}
    for dtype, logits in found.items():
        bank = PromptBank(str(bert_folder), dtype="float32")
        model = PromptModel.from_pretrained(load_backbone(str(bert_folder)), folder / "as deep")
        for task in ("prefix", "deep", "reader"):
            place = tmp_path / str(dtype) / task
            shutil.copytree(folder / task, place)
            file = place / "adapter_model.safetensors"
            save_file({n: t.half().to(dtype) for n, t in load_file(file).items()}, file)
            requests = [(task, text) for text in TEXTS]
            bank.add(task, place)
            model.load_adapter(place, task)
            model.set_adapter(task)
            with torch.no_grad():
                logits += [*model(torch.arange(3, 9)[None]).logits, *bank.logits(requests)]
            logits += alone({task: ptune.load(place, dtype="float32")}, requests)
    for one, other in zip(*found.values(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_adapters_written_by_peft(folder, bert_folder, own, tmp_path):
    import peft

    for kind in (peft.PromptEncoderConfig, peft.PrefixTuningConfig):
        config = kind(task_type="SEQ_CLS", num_virtual_tokens=6, encoder_hidden_size=8)
        torch.manual_seed(0)
        backbone = load_backbone(str(bert_folder), dtype="float32")
        peft.get_peft_model(backbone, config).save_pretrained(tmp_path / kind.__name__)
    bank = PromptBank.from_folder(folder, dtype="float32")
    classifiers = dict(own)
    for place in tmp_path.iterdir():
        bank.add(place.name, place)
        classifiers[place.name] = ptune.load(place, dtype="float32")
    requests = [(task, text) for text in TEXTS for task in classifiers]
    assert_same(bank.logits(requests), alone(classifiers, requests))


# Adding, replacing and removing tasks.


def test_tasks_can_be_added_replaced_and_removed(bank, folder, own):
    text = SENTENCES[0]
    bank.add("twin", folder / "mean")
    both = [("mean", text), ("deep", text)]
    assert_same(bank.logits([("twin", text), ("deep", text)]), alone(own, both))
    with pytest.raises(PtuneError, match="There is a task 'twin' already"):
        bank.add("twin", folder / "deep")
    bank.add("twin", folder / "deep", replace=True)
    assert_same(bank.logits([("twin", text)]), alone(own, [("deep", text)]))
    assert bank.task("twin").labels == ["score"]
    bank.remove("twin")
    for gone in (bank.remove, bank.task, lambda t: bank.logits([("deep", text), (t, text)])):
        with pytest.raises(PtuneError, match="There is no task 'twin'"):
            gone("twin")
    with pytest.raises(PtuneError, match="There is no task 'deap'; did you mean 'deep'"):
        bank.remove("deap")
    assert_same(bank.logits([("deep", text)]), alone(own, [("deep", text)]))


def test_a_bank_on_a_backbone_of_the_user(bert_folder, folder, own):
    bank = PromptBank(load_backbone(str(bert_folder), dtype="float32"))
    assert len(bank) == 0
    bank.add("only", folder / "mean")
    assert_same(bank.logits([("only", "the")]), alone(own, [("mean", "the")]))


def test_tasks_can_change_while_others_answer(bank, folder, own):
    """Every answer belongs to one of the two adapters that the task has had."""
    text, stop, failures = SENTENCES[0], threading.Event(), []
    choices = [alone(own, [(t, text)])[0] for t in ("deep", "mean")]
    steady = alone(own, [("prefix", text)])[0]
    bank.add("changing", folder / "mean")

    def ask():
        try:
            while not stop.is_set():
                one, other = bank.logits([("prefix", text), ("changing", text)])
                assert_same([one], [steady])
                assert any(
                    other.shape == c.shape and np.allclose(other, c, atol=1e-4) for c in choices
                )
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for i in range(30):
        bank.add("changing", folder / ("deep" if i % 2 else "mean"), replace=True)
        bank.add(f"extra {i}", folder / "shifted")
        bank.remove(f"extra {i}")
        time.sleep(0.005)
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures


# Memory.


def test_adapters_beyond_the_memory_budget_are_read_from_disk_with_the_same_logits(folder, own):
    whole = PromptBank.from_folder(folder, dtype="float32").memory_used
    sizes = {
        task: sum(t.nbytes for t in load_file(folder / task / "adapter_model.safetensors").values())
        for task in TASKS
    }
    assert whole == sum(sizes.values())
    requests = [(task, text) for text in TEXTS for task in TASKS]
    for budget in (0, max(sizes.values()), whole):
        bank = PromptBank.from_folder(folder, dtype="float32", memory_budget=budget)
        assert len(bank) == len(TASKS)
        assert_same(bank.logits(requests, batch_size=1), alone(own, requests))
        assert bank.memory_used <= budget


def test_the_least_recently_used_adapters_are_dropped_first(folder):
    bank = PromptBank.from_folder(folder, dtype="float32")
    bank.logits([("prefix", "the")])
    bank._tasks.budget = bank.memory_used - 1
    bank.add("new", folder / "prefix")
    assert list(bank._tasks.recent)[-2:] == ["prefix", "new"]
    assert min(TASKS) not in bank._tasks.recent  # the first that was added


def test_a_negative_memory_budget_is_refused(folder):
    for wrong in (-1, "1 GB"):
        with pytest.raises(PtuneError, match=f"memory_budget is {wrong!r}"):
            PromptBank.from_folder(folder, memory_budget=wrong)


@pytest.mark.parametrize("wrong", [None, 3, ["minilm"]])
def test_what_is_no_backbone_is_refused(wrong):
    with pytest.raises(PtuneError, match="The backbone is of type"):
        PromptBank(wrong)


def test_what_is_no_folder_is_refused(bank):
    with pytest.raises(PtuneError, match="found an object of type TaskInfo"):
        bank.add("new", bank.task(next(iter(bank))))


@pytest.mark.parametrize("change", ["gone", "another"])
def test_changed_or_missing_files_affect_only_their_own_task(change, folder, own, tmp_path):
    shutil.copytree(folder, tmp_path / "bank")
    bank = PromptBank.from_folder(tmp_path / "bank", dtype="float32", memory_budget=0)
    if change == "gone":
        shutil.rmtree(tmp_path / "bank" / "mean")
    else:
        shutil.copy(folder / "prefix" / "ptune.json", tmp_path / "bank" / "mean" / "ptune.json")
    with pytest.raises(PtuneError, match=r"'mean'.*changed or gone"):
        bank.logits([("deep", "the"), ("mean", "the")])
    assert_same(bank.logits([("deep", "the")]), alone(own, [("deep", "the")]))
    bank.add("mean", folder / "mean", replace=True)
    assert_same(bank.logits([("mean", "the")]), alone(own, [("mean", "the")]))


# Bad adapters, bad requests.


def no_weights(place):
    (place / "adapter_model.safetensors").unlink()


def no_json(place):
    (place / "adapter_config.json").write_text("{")


def wrong_kind(place):
    edit_json(place / "adapter_config.json", prompt_init_scale="large")


def wrong_labels(place):
    edit_json(place / "ptune.json", labels=["only one"])


def wrong_bound(place):
    edit_json(place / "ptune.json", max_length=2)


def another_backbone(place):
    info = json.loads((place / "ptune.json").read_text())
    info["backbone"]["model_type"] = "roberta"
    (place / "ptune.json").write_text(json.dumps(info))


def not_finite(place):
    prompt = load_file(place / "adapter_model.safetensors")["prompt_embeddings"]
    edit_tensors(place, {"prompt_embeddings": torch.full_like(prompt, torch.nan)})


def half_a_head(place):
    edit_tensors(place, {"base_model.classifier.bias": None})


DAMAGES = {
    cut_short: "damaged or cut short",
    no_weights: "incomplete",
    no_json: "damaged",
    wrong_kind: r"adapter_config.json: prompt_init_scale is 'large'; expected a number",
    wrong_labels: "1 labels",
    wrong_bound: "leaves 2 tokens for a text",
    another_backbone: "model_type bert instead of roberta",
    not_finite: "holds nan; expected finite numbers",
    half_a_head: "does not contain classifier.bias",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda d: d.__name__)
def test_a_damaged_adapter_is_refused_by_name_and_affects_no_other_task(
    damage, bank, folder, own, tmp_path
):
    shutil.copytree(folder / "mean", tmp_path / "broken")
    damage(tmp_path / "broken")
    used = bank.memory_used
    with pytest.raises(PtuneError, match=f"'broken' is refused: .*{DAMAGES[damage]}"):
        bank.add("broken", tmp_path / "broken")
    with pytest.raises(PtuneError, match="'mean' is refused"):
        bank.add("mean", tmp_path / "broken", replace=True)
    assert "broken" not in bank
    assert bank.memory_used == used
    requests = [(task, SENTENCES[0]) for task in TASKS]
    assert_same(bank.logits(requests), alone(own, requests))


def test_damaged_adapters_in_a_folder_are_skipped_with_the_reason(folder, own, tmp_path):
    shutil.copytree(folder, tmp_path / "bank")
    for damage in DAMAGES:
        shutil.copytree(folder / "mean", tmp_path / "bank" / damage.__name__)
        damage(tmp_path / "bank" / damage.__name__)
    (tmp_path / "bank" / "notes").mkdir()
    (tmp_path / "bank" / "readme.txt").write_text("no adapter")
    shutil.copytree(folder / "mean", tmp_path / "bank" / "elsewhere")
    file = tmp_path / "bank" / "elsewhere" / "adapter_config.json"
    edit_json(file, base_model_name_or_path="roberta-base")
    bank = PromptBank.from_folder(tmp_path / "bank", dtype="float32")
    assert set(bank) == set(TASKS)
    assert set(bank.refused) == {"elsewhere", *(d.__name__ for d in DAMAGES)}
    for damage, reason in DAMAGES.items():
        assert re.search(reason, bank.refused[damage.__name__])
    assert "trained on roberta-base" in bank.refused["elsewhere"]
    requests = [(task, SENTENCES[0]) for task in TASKS]
    assert_same(bank.logits(requests), alone(own, requests))


def test_a_folder_without_adapters(tmp_path, bert_folder):
    with pytest.raises(PtuneError, match="holds an adapter that names its backbone"):
        PromptBank.from_folder(tmp_path)
    with pytest.raises(PtuneError, match="There is no folder"):
        PromptBank.from_folder(tmp_path / "nothing")
    assert len(PromptBank.from_folder(tmp_path, model=str(bert_folder))) == 0


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (("nobody", "the"), "no task 'nobody'"),
        (("mean", "  "), "'mean' is refused. Found an empty text in the texts, at position 1 "),
        (("mean", ("the", "")), "'mean' is refused. Found an empty text in the second texts"),
        (("mean", 3), "'mean' is refused. Found '3' of type int"),
        (("mean", ["a", "b", "c"]), "Expected strings or pairs of strings"),
        (("mean", {"text": "a"}), "Found a dictionary .* position 1 "),
        (("mean", b"a"), r"call \.decode\(\)"),
        (("mean", "\ud800"), "'mean' is refused. .*not valid Unicode"),
        (("mean", None), "'mean' is refused. Found a missing value"),
        ("mean", "expected a task and a text"),
        (("mean", "the", "red"), "expected a task and a text"),
        (([], "the"), "expected a task and a text"),
    ],
)
def test_an_invalid_request_is_refused(request_, reason, shared_bank):
    with pytest.raises(PtuneError, match=reason):
        shared_bank.logits([("deep", "the"), request_])


@pytest.mark.parametrize("name", ["", None, 3])
def test_a_task_needs_a_name(name, bank, folder):
    with pytest.raises(PtuneError, match="cannot be called"):
        bank.add(name, folder / "mean")


def test_a_head_that_cannot_be_chosen_per_text_is_refused(bert_folder):
    backbone = load_backbone(str(bert_folder), dtype="float32")
    backbone.classifier = torch.nn.Sequential(torch.nn.Linear(32, 2), torch.nn.PReLU())
    with pytest.raises(PtuneError, match=r"PReLU.*ptune\.load"):
        PromptBank(backbone)
