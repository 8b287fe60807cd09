"""Threads may share a classifier, a model or a bank: each gets the answers of one thread alone."""

import asyncio
import copy
import itertools
import threading

import numpy as np
import pytest
import torch
from subjects import (
    INPUTS,
    MECHANISMS,
    ON_TORCH,
    PLAIN,
    SENTENCES,
    SUBJECTS,
    TEMPLATES,
    Subject,
    answers,
    config_of,
    each_subject,
    frequent_switches,
    in_a_thread,
    in_threads,
    is_right,
    meanwhile,
    read_backbone,
    shake,
)
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import AutoTokenizer

import ptune
from ptune import PromptBank, PromptClassifier, PromptEncoderConfig, PromptModel
from ptune.backbones.loading import load_backbone
from ptune.texts import Reading, Template

THREADS, CALLS = 8, 50
COLOURS = (
    [f"{text} {word}" for text in SENTENCES for word in ("red", "blue")],
    ["red", "blue"] * len(SENTENCES),
)
MINILM_INPUTS = [["ok"], ["Where is it?", "It rains."], ["Number 007, please; €5!"], ["The shop"]]


@pytest.fixture(autouse=True)
def switches():
    with frequent_switches():
        yield


def check(classifiers, inputs, calls=CALLS):
    """Every thread asks for other texts, and gets what it gets alone.

    Args:
        classifiers: The classifier that each thread asks.
        inputs: Lists of texts.
        calls: Calls of each thread.
    """
    wanted = {id(c): [answers(c, texts) for texts in inputs] for c in classifiers}
    assert_differ(wanted)

    def ask(thread):
        classifier, wrong = classifiers[thread], 0
        for call in range(calls):
            i = (7 * call + 5 * thread) % len(inputs)
            wrong += not is_right(answers(classifier, inputs[i]), wanted[id(classifier)][i])
        return wrong

    wrong = in_threads(*(lambda i=i: ask(i) for i in range(len(classifiers))))
    assert sum(wrong) == 0, f"{sum(wrong)} of {len(classifiers) * calls} answers are wrong"


def assert_differ(wanted):
    """Answers that are mixed up must be noticed."""
    for logits in wanted.values():
        for one, other in itertools.combinations(logits[:4], 2):
            assert not is_right(one, other)


# One classifier.


@each_subject(SUBJECTS)
def test_eight_threads_share_a_classifier(classifier, subject):
    most = subject in (Subject(), Subject("shared")) or subject.engine != "torch"
    check([classifier] * THREADS, INPUTS, calls=CALLS if most else 15)


@pytest.mark.parametrize("prompt", ["deep", "input"])
def test_eight_threads_share_a_classifier_of_a_real_backbone(prompt, tmp_path):
    """MiniLM in the number format that `ptune.load` chooses."""
    config = PromptEncoderConfig(depth=prompt, encoder_reparameterization_type="NONE")
    model = PromptModel(load_backbone("minilm", labels=["red", "blue"]), config)
    shake(model, seed=1).save_pretrained(tmp_path)
    check([ptune.load(tmp_path)] * THREADS, MINILM_INPUTS)


@each_subject([Subject(), Subject("shared"), Subject(engine="openvino")])
def test_to_thread(classifier):
    inputs = (INPUTS * 2)[:50]
    wanted = [answers(classifier, texts) for texts in inputs]

    async def ask():
        return await asyncio.gather(
            *(asyncio.to_thread(answers, classifier, texts) for texts in inputs)
        )

    found = asyncio.run(ask())
    assert sum(map(is_right, found, wanted)) == 50


@each_subject([Subject(), Subject(engine="onnx"), Subject(engine="openvino")])
def test_streams_of_one_classifier_are_read_in_turn(classifier):
    """Each of two generators is still at work while the other gives its next answer."""
    classifier.batch_size = 1
    one, two = SENTENCES * 2, SENTENCES[::-1] * 2
    wanted = [[p.probabilities for p in classifier.stream(texts)] for texts in (one, two)]
    pairs = zip(classifier.stream(one), classifier.stream(iter(two)), strict=True)
    found = [[p.probabilities for p in column] for column in zip(*pairs, strict=True)]
    for probabilities, others in zip(found, wanted, strict=True):
        assert probabilities == [pytest.approx(p, abs=1e-5) for p in others]


@each_subject([Subject(), Subject("shared"), Subject(engine="openvino")])
def test_a_stream_reads_texts_that_the_classifier_chooses(classifier):
    wanted = classifier.predict_proba(SENTENCES[:3])
    chosen = (text for text in SENTENCES[:3] if classifier(text).score >= 0)
    found = in_a_thread(lambda: [list(p.probabilities.values()) for p in classifier.stream(chosen)])
    np.testing.assert_allclose(found, wanted, atol=1e-5)


# Several classifiers, loaded, trained and closed.


@each_subject([Subject(), Subject("layers")])
def test_classifiers_of_unrelated_backbones_do_not_meet(folder_of, subject):
    """Of one architecture and of another, with other prompts and numbers of labels."""
    others = [subject, Subject("shared"), Subject("input", head="multi-label")]
    loaded = [s.load(folder_of(s)) for s in (subject, *others)]
    check([loaded[i % 4] for i in range(THREADS)], INPUTS, calls=15)


def test_four_threads_load_while_others_predict_and_train(folder_of, bert_folder):
    subjects = [Subject("input"), Subject(), Subject("layers"), Subject("shared")]
    folders = {s: folder_of(s) for s in subjects}
    wanted = {s: answers(s.load(folders[s]), SENTENCES) for s in subjects}
    busy = {s: s.load(folders[s]) for s in (Subject(), Subject("shared"))}
    before = {s: state_of(c) for s, c in busy.items()}

    def predict(subject):
        assert is_right(answers(busy[subject], SENTENCES), wanted[subject])

    def load(subject):
        for _ in range(3):
            classifier = subject.load(folders[subject])
            assert is_right(answers(classifier, SENTENCES), wanted[subject])
            classifier.prompt_model_.unload()

    with meanwhile(*(lambda s=s: predict(s) for s in busy), lambda: fit(bert_folder, epochs=1)):
        in_threads(*(lambda s=s: load(s) for s in subjects))
    for subject, classifier in busy.items():
        assert state_of(classifier) == before[subject]
        predict(subject)


def state_of(classifier):
    """Every number of a model, as bytes."""
    return {
        name: tensor.detach().cpu().numpy().tobytes()
        for name, tensor in classifier.prompt_model_.state_dict().items()
    }


def fit(folder, **options):
    """Train a classifier that tells red from blue."""
    common = {"num_virtual_tokens": 4, "batch_size": 8, "dtype": "float32"}
    return PromptClassifier(str(folder), **{**common, **options}).fit(*COLOURS)


def turns_of(*functions):
    """Call functions in a thread each; their results, and who trained when, in turns."""
    steps = []

    def record(module, args):
        if isinstance(module, torch.nn.Embedding) and torch.is_grad_enabled():
            steps.append(threading.get_ident())

    hook = register_module_forward_pre_hook(record)
    try:
        results = in_threads(*functions, seconds=240)
    finally:
        hook.remove()
    return results, [thread for thread, _ in itertools.groupby(steps)]


@each_subject([Subject(), Subject("shared")])
def test_two_threads_train(folder_of, subject):
    """They train at the same time, and neither changes any other model."""
    folder = folder_of(subject)
    bystander = subject.load(folder)
    before, logits = state_of(bystander), answers(bystander, SENTENCES)
    prompt = MECHANISMS[subject.mechanism][1]["depth"]
    (one, other), turns = turns_of(
        *(lambda i=i: fit(folder / "backbone", seed=i, epochs=10, prompt=prompt) for i in range(2))
    )
    # Neither waited for the end of the other.
    assert len(set(turns)) == 2
    assert len(turns) > 4
    assert state_of(bystander) == before
    assert is_right(answers(bystander, SENTENCES), logits)
    check([one, other], INPUTS[:4], calls=10)


@pytest.mark.slow
@pytest.mark.parametrize("prompt", ["deep", "input"])
def test_two_trainings_in_threads_are_as_good_as_one_after_the_other(prompt):
    def train(seed):
        options = {"num_virtual_tokens": 10, "epochs": 20}
        return fit("minilm", seed=seed, prompt=prompt, **options).score(*COLOURS)

    alone = [train(seed) for seed in range(2)]
    found, turns = turns_of(lambda: train(0), lambda: train(1))
    assert len(turns) > 20
    assert min(alone) > 0.9
    assert found == pytest.approx(alone, abs=0.03)


# Several adapters on one backbone.


@pytest.fixture
def pair(folder_of, subject, tmp_path):
    """A model with the adapters `default` (of the subject) and `other`, inputs, and the logits.

    The second adapter has more virtual tokens and other labels.
    """
    folder = folder_of(subject)
    prompt = config_of(subject, num_virtual_tokens=7)
    shape = Subject(subject.mechanism, head="multi-label")
    other = shake(PromptModel(read_backbone(shape, folder / "backbone"), prompt), seed=9)
    other.save_pretrained(tmp_path)
    inputs = AutoTokenizer.from_pretrained(folder / "backbone")
    if inputs.pad_token is None:
        inputs.pad_token = inputs.eos_token
    inputs = inputs(SENTENCES[:3], padding=True, return_tensors="pt")
    model = PromptModel.from_pretrained(
        read_backbone(subject, folder / "backbone"), folder / "adapter"
    ).eval()
    plain = read_backbone(subject, folder / "backbone")
    plain.config.pad_token_id = model.config.pad_token_id
    with torch.no_grad():
        logits = {
            "default": model(**inputs).logits,
            "other": other(**inputs).logits,
            "none": plain(**inputs).logits,
        }
    model.load_adapter(tmp_path, "other")
    return model, inputs, logits, tmp_path


@torch.no_grad()
def agrees(model, inputs, wanted):
    found = model(**inputs).logits
    return found.shape == wanted.shape and bool((found - wanted).abs().max() <= 1e-5)


# Both adapters, and the backbone alone, read the same tokens.
@each_subject([subject for subject in PLAIN if subject.mechanism not in TEMPLATES])
def test_each_thread_uses_the_adapter_it_chose(pair):
    model, inputs, logits, _ = pair

    # One adapter has a single label for each text, the other one has several.
    labels = {"default": torch.tensor([0, 2, 1]), "other": torch.eye(4)[:3]}
    functions = {
        "default": torch.nn.functional.cross_entropy,
        "other": torch.nn.functional.binary_cross_entropy_with_logits,
    }

    def use(name):
        model.set_adapter(name)
        right, loss = 0, functions[name](logits[name], labels[name])
        for _ in range(CALLS // 2):
            right += agrees(model, inputs, logits[name])
            found = model(**inputs, labels=labels[name]).loss
            right += bool((found - loss).abs() <= 1e-5)
        return right, model.active_adapter

    found = in_threads(*(lambda n=n: use(n) for n in ("default", "other") * 2))
    assert found == [(CALLS, "default"), (CALLS, "other")] * 2
    for name in ("default", "other"):
        model.set_adapter(name)
        assert agrees(model, inputs, logits[name])


@each_subject([Subject()])
def test_an_export_of_something_else_changes_nothing_in_other_threads(pair):
    """While one thread exports, `torch.compiler.is_compiling` is true in all of them."""
    model, inputs, logits, _ = pair
    model.set_adapter("default")

    def predict():
        model.set_adapter("other")
        with pytest.raises(ptune.PtuneError, match="has only the rows"):
            model(torch.tensor([[10**6]]))
        return agrees(model, inputs, logits["other"])

    class Exported(torch.nn.Module):
        found: bool

        def forward(self, x):
            assert torch.compiler.is_compiling()
            self.found = in_a_thread(predict)
            return x + 1

    exported = Exported()
    torch.export.export(exported, (torch.ones(2),), strict=False)
    assert exported.found
    assert agrees(model, inputs, logits["default"])


@each_subject([Subject()])
def test_an_adapter_is_saved_with_its_own_head_while_others_predict(pair):
    model, inputs, logits, _ = pair
    wanted = {}
    for name in ("default", "other"):
        model.set_adapter(name)
        wanted[name] = model.to_adapter()

    def predict():
        model.set_adapter("default")
        return sum(agrees(model, inputs, logits["default"]) for _ in range(CALLS))

    def save():
        model.set_adapter("other")
        found = [model.to_adapter() for _ in range(CALLS)]
        states = [model.trained_state() for _ in range(CALLS)]
        head = wanted["other"].head
        return sum(
            adapter.labels == wanted["other"].labels
            and all(torch.equal(adapter.head[name], head[name]) for name in head)
            and all(torch.equal(state[f"backbone.{name}"], head[name]) for name in head)
            for adapter, state in zip(found, states, strict=True)
        )

    model.adapters["other"].trains = True
    assert in_threads(predict, save) == [CALLS, CALLS]


def after_another_thread(model, change, look):
    """What a thread that uses `other` finds after another one, with `default`, changed that."""
    chose, changed = threading.Event(), threading.Event()

    def use():
        model.set_adapter("other")
        chose.set()
        assert changed.wait(30)
        return look()

    def do():
        assert chose.wait(30)
        model.set_adapter("default")
        change("other")
        changed.set()

    return in_threads(use, do)[0]


@each_subject([Subject()])
def test_a_thread_keeps_the_adapter_that_another_one_renames(pair):
    model, inputs, logits, _ = pair

    def look():
        return model.active_adapter, agrees(model, inputs, logits["other"])

    found = after_another_thread(model, lambda name: model.rename_adapter(name, "mail"), look)
    assert found == ("mail", True)


@each_subject([Subject()])
def test_a_thread_whose_adapter_was_deleted_gets_no_answer_of_another_one(pair):
    model, inputs, logits, _ = pair

    def look():
        with pytest.raises(ptune.PtuneError, match="which this thread has chosen, was deleted"):
            model(**inputs)
        model.set_adapter("default")
        return agrees(model, inputs, logits["default"])

    assert after_another_thread(model, model.delete_adapter, look)


@each_subject([Subject()])
def test_each_thread_switches_for_itself(pair):
    """A server's threads take the adapter that a request asks for."""
    model, inputs, logits, _ = pair

    def switch(thread):
        right = 0
        for call in range(CALLS):
            name = ("default", "other")[(call // (1 + thread % 3) + thread) % 2]
            model.set_adapter(name)
            right += agrees(model, inputs, logits[name])
        return right

    assert in_threads(*(lambda i=i: switch(i) for i in range(4))) == [CALLS] * 4


@each_subject([Subject()])
def test_a_thread_that_never_chose_uses_the_latest_choice(pair):
    model, inputs, logits, _ = pair
    go_on, chose = threading.Event(), threading.Event()

    def choose_and_wait():
        model.set_adapter("default")
        chose.set()
        go_on.wait(30)
        return model.active_adapter, agrees(model, inputs, logits["default"])

    def just_use(name):
        return model.active_adapter, agrees(model, inputs, logits[name])

    def main():
        assert chose.wait(30)
        model.set_adapter("other")
        found = in_a_thread(lambda: just_use("other"))
        go_on.set()
        return found

    assert in_threads(choose_and_wait, main) == [("default", True), ("other", True)]
    # The threads that chose are gone: what they chose last is what others use.
    assert in_a_thread(lambda: just_use("other")) == ("other", True)
    in_a_thread(lambda: model.set_adapter("default"))
    assert in_a_thread(lambda: just_use("default")) == ("default", True)


@each_subject([Subject()])
def test_an_adapter_trains_on_while_another_thread_chooses_another_one(pair):
    model, inputs, _, folder = pair
    for name in ("one", "two"):
        model.load_adapter(folder, name, is_trainable=True)
    go_on, chose, ready = threading.Event(), threading.Event(), threading.Event()

    def choose_and_wait():
        assert ready.wait(30)
        model.set_adapter("two")
        chose.set()
        return go_on.wait(30)

    def train():
        model.set_adapter("one")
        optimizer = torch.optim.SGD(
            [p for group in model.parameter_groups(0.1) for p in group["params"]], lr=0.1
        )
        before = {n: p.clone() for n, p in model.trained_state().items()}
        ready.set()
        assert chose.wait(30)
        labels = torch.eye(4)[:3]
        model.train()(**inputs, labels=labels).loss.backward()
        optimizer.step()
        go_on.set()
        after = model.trained_state()
        return before.keys() == after.keys(), {n for n in after if after[n].equal(before[n])}

    assert in_threads(train, choose_and_wait) == [(True, set()), True]


@each_subject([Subject(), Subject("input"), Subject("layers")])
def test_adapters_are_loaded_and_deleted_while_others_predict(pair):
    model, inputs, logits, place = pair

    def use(name):
        model.set_adapter(name)
        assert agrees(model, inputs, logits[name])

    def change(name):
        for _ in range(5):
            model.load_adapter(place, name)
            model.set_adapter(name)
            assert agrees(model, inputs, logits["other"])
            model.set_adapter("default")
            model.delete_adapter(name)

    with meanwhile(lambda: use("default"), lambda: use("other")):
        in_threads(lambda: change("third"), lambda: change("fourth"))
    assert sorted(model.adapters) == ["default", "other"]
    for name in ("default", "other"):
        use(name)


@each_subject([Subject(), Subject("shared"), Subject("layers")])
def test_an_adapter_is_disabled_for_one_thread_only(pair):
    model, inputs, logits, _ = pair

    def disable():
        model.set_adapter("default")
        wrong = 0
        for _ in range(CALLS // 2):
            with model.disable_adapter():
                wrong += not close(model, inputs, logits["none"])
                wrong += not close(model, inputs, logits["none"])
            wrong += not agrees(model, inputs, logits["default"])
        return wrong

    def use(name):
        model.set_adapter(name)
        return sum(not agrees(model, inputs, logits[name]) for _ in range(CALLS))

    found = in_threads(disable, lambda: use("other"), lambda: use("default"))
    assert found == [0, 0, 0]
    model.set_adapter("default")
    assert agrees(model, inputs, logits["default"])


@torch.no_grad()
def close(model, inputs, wanted):
    """As `agrees`, compared with another model: padding may round in another way."""
    found = model(**inputs).logits
    return found.shape == wanted.shape and torch.allclose(found, wanted, atol=1e-4, rtol=1e-4)


# A bank.


@pytest.fixture(scope="module")
def make_tasks(folder_of, tmp_path_factory):
    """Adapters of every head, and with prompts of several lengths, on one backbone."""
    folders = {}

    def make(mechanism):
        if mechanism not in folders:
            folders[mechanism] = root = tmp_path_factory.mktemp("tasks")
            backbone = folder_of(Subject(mechanism)) / "backbone"
            for i, (head, k) in enumerate([("plain", 3), ("multi-label", 5), ("plain", 8)]):
                subject = Subject(mechanism, head=head)
                prompt = config_of(subject, num_virtual_tokens=k)
                model = shake(PromptModel(read_backbone(subject, backbone), prompt), seed=i)
                if mechanism in TEMPLATES:
                    template = Template(f"I say {{prompt:{k}}} {{text}} today")
                    model.state.reading = Reading(template=template)
                model.save_pretrained(root / f"task {i}")
        return folders[mechanism]

    return make


@pytest.mark.parametrize("mechanism", list(MECHANISMS))
def test_a_bank_changes_while_eight_threads_ask_it(mechanism, make_tasks):
    folder = make_tasks(mechanism)
    bank = PromptBank.from_folder(folder, dtype="float32")
    own = {task: ptune.load(folder / task, dtype="float32") for task in bank}
    assert len(own) == 3
    texts = sorted({text for some in INPUTS[:8] for text in some})
    alone = {(task, text): answers(own[task], [text])[0] for task in own for text in texts}
    bank.add("changing", folder / "task 0")
    kinds = {(("task 0", "task 1")[i], text): None for i in range(2) for text in texts}

    def ask(thread, calls):
        wrong = 0
        for call in range(calls):
            start = 3 * call + 5 * thread
            some = [texts[(start + i) % len(texts)] for i in range(1 + call % 3)]
            requests = [(f"task {(thread + i) % 3}", text) for i, text in enumerate(some)]
            found = bank.logits([*requests, ("changing", some[0])])
            wrong += not all(
                same(logits, alone[request])
                for request, logits in zip(requests, found, strict=False)
            )
            wrong += not any(
                same(found[-1], alone[task, some[0]]) for task, text in kinds if text == some[0]
            )
        return wrong

    def change():
        i = next(numbers)
        bank.add("changing", folder / f"task {i % 2}", replace=True)
        bank.add(f"extra {i}", folder / "task 2")
        bank.remove(f"extra {i}")

    numbers = itertools.count()
    calls = CALLS if mechanism == "prefix" else 15
    with meanwhile(change):
        wrong = in_threads(*(lambda i=i: ask(i, calls) for i in range(THREADS)))
    assert sum(wrong) == 0, f"{sum(wrong)} answers are wrong"
    assert sorted(bank) == ["changing", *sorted(own)]


def same(found, wanted):
    """Within 1e-5 of the logits' scale: a batch of the bank mixes tasks and texts."""
    scale = max(1.0, float(np.abs(wanted).max()))
    return found.shape == wanted.shape and bool(np.abs(found - wanted).max() <= 1e-5 * scale)


# Copies.


@each_subject(ON_TORCH)
def test_a_copy_and_its_original_answer_in_threads(classifier):
    twin = copy.deepcopy(classifier)
    with torch.no_grad():
        for p in twin.prompt_model_.prompt_encoder.parameters():
            p.neg_()
        for _, p in twin.prompt_model_.head_parameters():
            p.neg_()  # all that there is without a prompt
    assert not is_right(answers(twin, SENTENCES), answers(classifier, SENTENCES))
    check([classifier, twin] * 2, INPUTS, calls=10)


@each_subject(PLAIN)
def test_a_classifier_is_copied_while_it_predicts(classifier):
    wanted = answers(classifier, SENTENCES)

    def predict():
        assert is_right(answers(classifier, SENTENCES), wanted)

    def copy_it():
        for _ in range(5):
            assert is_right(answers(copy.deepcopy(classifier), SENTENCES), wanted)

    with meanwhile(predict, predict):
        in_threads(copy_it, copy_it)
    predict()
