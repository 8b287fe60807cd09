"""Whatever interrupts a classifier, it predicts exactly as before afterwards."""

import contextlib
import copy
import gc
import itertools
import os
import pickle
import random
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from subjects import (
    ENVIRONMENT,
    ON_TORCH,
    PLAIN,
    SENTENCES,
    SUBJECTS,
    Subject,
    answers,
    config_of,
    each_subject,
    in_a_thread,
    in_threads,
    inputs_of,
    meanwhile,
    read_backbone,
    shake,
)

from ptune import PromptBank, PromptModel, PtuneError


def check(classifier, wanted, texts=SENTENCES):
    """It predicts exactly what it did, in this thread and in another one."""
    np.testing.assert_array_equal(answers(classifier, texts), wanted)
    np.testing.assert_array_equal(in_a_thread(lambda: answers(classifier, texts)), wanted)


# Exceptions inside the backbone.


def embedding(backbone):
    return backbone.get_input_embeddings()


def attention(backbone):
    """The attention of the last layer."""
    return [m for m in backbone.base_model.modules() if "Attention" in type(m).__name__][-1]


def head(backbone):
    return [m for m in backbone.modules() if isinstance(m, torch.nn.Linear)][-1]


@contextlib.contextmanager
def raising(module, error, *, after):
    """Raise an error the next time that a module is called: before its work or after it."""

    def raise_it(*_):
        raise error

    register = module.register_forward_hook if after else module.register_forward_pre_hook
    hook = register(raise_it)
    try:
        yield
    finally:
        hook.remove()


ERRORS = [RuntimeError, KeyboardInterrupt]
PLACES = [embedding, attention, head]


@pytest.mark.parametrize("place", PLACES)
@each_subject(ON_TORCH)
def test_an_exception_in_the_backbone_leaves_nothing(classifier, place):
    wanted = answers(classifier, SENTENCES)
    backbone = classifier.prompt_model_.get_base_model()
    inputs = classifier.tokenizer_(SENTENCES[0], return_tensors="pt")
    with torch.no_grad():
        own = backbone(**inputs).logits
    for error, after in itertools.product(ERRORS, (False, True)):
        stops = raising(place(backbone), error("stop"), after=after)
        with stops, pytest.raises(error, match="stop"):
            classifier.predict(SENTENCES[:3])
        # The prompt is gone from the backbone.
        with torch.no_grad():
            assert torch.equal(backbone(**inputs).logits, own)
        check(classifier, wanted)


@pytest.mark.parametrize("place", PLACES)
@each_subject(PLAIN)
def test_an_exception_in_another_thread_leaves_nothing(classifier, place):
    """One thread fails while another one predicts."""
    wanted = answers(classifier, SENTENCES)
    failing = threading.local()

    def fail(*_):
        if getattr(failing, "now", False):
            raise RuntimeError("stop")

    def fail_often():
        failing.now = True
        for _ in range(10):
            with pytest.raises(RuntimeError, match="stop"):
                classifier.predict(SENTENCES[:3])

    def predict():
        np.testing.assert_allclose(answers(classifier, SENTENCES), wanted, atol=1e-5, rtol=0)

    hook = place(classifier.prompt_model_.backbone).register_forward_hook(fail)
    with meanwhile(predict):
        in_threads(fail_often, fail_often)
    hook.remove()
    check(classifier, wanted)


@pytest.mark.parametrize("place", PLACES)
@each_subject(PLAIN)
def test_an_exception_in_a_model_leaves_nothing(folder_of, subject, place):
    """In training, without its adapter, and in a thread that uses another one."""
    folder = folder_of(subject)
    model = PromptModel.from_pretrained(
        read_backbone(subject, folder / "backbone"), folder / "adapter", is_trainable=True
    ).eval()
    inputs = inputs_of(subject, folder / "backbone")
    labels = torch.tensor([0, 1, 0])
    model.add_adapter("other", config_of(subject, num_virtual_tokens=2, placement="prefix"))
    with torch.no_grad():
        for p in model.adapters["other"].head.parameters.values():
            p.neg_()  # all that differs without a prompt

    @torch.no_grad()
    def disabled():
        with model.disable_adapter():
            return model(**inputs).logits

    @torch.no_grad()
    def with_another():
        model.set_adapter("other")
        return model(**inputs).logits

    def found():
        with torch.no_grad():
            own = model(**inputs).logits
        return [own, disabled(), in_a_thread(with_another)]

    in_a_thread(with_another)
    model.set_adapter("default")
    wanted = found()
    assert not any(torch.allclose(one, two) for one, two in itertools.combinations(wanted, 2))
    calls = (lambda: model(**inputs, labels=labels), disabled, lambda: in_a_thread(with_another))
    for call, error in itertools.product(calls, ERRORS):
        stops = raising(place(model.backbone), error("stop"), after=True)
        with stops, pytest.raises((error, BaseExceptionGroup), match=r"stop|1 of 1 threads"):
            call()
        assert all(map(torch.equal, found(), wanted))
    model.set_adapter("default")
    model(**inputs, labels=labels).loss.backward()
    trained = [*model.prompt_encoder.parameters(), *(p for _, p in model.head_parameters())]
    assert all(p.grad.isfinite().all() for p in trained if p.numel())


@pytest.mark.parametrize("place", PLACES)
def test_an_exception_in_a_bank_leaves_nothing(folder_of, place):
    folder = folder_of(Subject("input")) / "adapter"
    backbone = read_backbone(Subject("input"), folder_of(Subject("input")) / "backbone")
    bank = PromptBank(backbone, device="cpu")
    for task in ("one", "two"):
        bank.add(task, folder)
    requests = [(task, text) for text in SENTENCES for task in bank]
    wanted = bank.logits(requests)
    for error, after in itertools.product(ERRORS, (False, True)):
        stops = raising(place(backbone), error("stop"), after=after)
        with stops, pytest.raises(error, match="stop"):
            bank.logits(requests[:3])
    for found in (bank.logits(requests), in_a_thread(lambda: bank.logits(requests))):
        np.testing.assert_array_equal(found, wanted)


# Ctrl-C at any time.


@contextlib.contextmanager
def interrupted_after(seconds):
    """Raise KeyboardInterrupt in the block after so much work of the processor."""

    running = True

    def interrupt(*_):
        if running:  # with other threads, it can come after the timer was stopped
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGVTALRM, interrupt)
    try:
        try:
            signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
            yield
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            running = False
    except KeyboardInterrupt:
        running = False
    finally:
        signal.signal(signal.SIGVTALRM, before)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timers")
@each_subject([*PLAIN, *(s for s in SUBJECTS if s.engine != "torch")])
def test_ctrl_c_at_any_time(classifier):
    classifier.batch_size = 1
    wanted = answers(classifier, SENTENCES)
    interrupt_often(classifier)
    check(classifier, wanted)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timers")
@each_subject([Subject(), Subject("shared"), Subject(engine="openvino")])
def test_ctrl_c_at_any_time_while_others_predict(classifier):
    wanted = answers(classifier, SENTENCES)

    def predict():
        found = answers(classifier, SENTENCES)
        np.testing.assert_allclose(found, wanted, atol=1e-5, rtol=0)

    with meanwhile(predict, predict):
        interrupt_often(classifier)
    check(classifier, wanted)


def interrupt_often(classifier):
    assert threading.current_thread() is threading.main_thread()
    chosen = random.Random(0)
    for _ in range(40):
        with interrupted_after(chosen.uniform(1e-4, 0.02)):
            answers(classifier, SENTENCES[::-1])


# Generators.


@each_subject([Subject("shared"), Subject(), *(s for s in SUBJECTS if s.engine != "torch")])
def test_an_abandoned_stream_leaves_nothing(classifier):
    classifier.batch_size = 1
    wanted = answers(classifier, SENTENCES)
    left = [classifier.stream(SENTENCES[::-1]) for _ in range(3)]
    for stream in left:
        next(stream)
    check(classifier, wanted)
    # Begun in a thread that is gone, closed in this one.
    begun = in_a_thread(lambda: [s for s in [classifier.stream(SENTENCES * 2)] if next(s)])
    check(classifier, wanted)
    begun[0].close()
    left.pop().close()
    del left, begun
    gc.collect()
    check(classifier, wanted)


@pytest.mark.parametrize("error", ERRORS)
@each_subject([Subject("shared"), Subject(), *(s for s in SUBJECTS if s.engine != "torch")])
def test_texts_that_raise_leave_nothing(classifier, error):
    wanted = answers(classifier, SENTENCES)

    def broken():
        yield from SENTENCES
        raise error("no more texts")

    with pytest.raises(error, match="no more texts"):
        list(classifier.stream(broken()))
    check(classifier, wanted)


@each_subject([Subject("shared"), Subject(), *(s for s in SUBJECTS if s.engine != "torch")])
def test_a_text_that_is_refused_leaves_nothing(classifier):
    wanted = answers(classifier, SENTENCES)
    for wrong in (["fine", ""], ["fine", 3], [("a", "b", "c")]):
        with pytest.raises(PtuneError):
            classifier.predict(wrong)
    check(classifier, wanted)


# Copies and pickles.


@pytest.mark.parametrize("kind", ["deepcopy", "pickle"])
@each_subject(ON_TORCH)
def test_a_copy_predicts_the_same_and_is_independent(classifier, kind):
    wanted = answers(classifier, SENTENCES)
    twin = copied(classifier, kind)
    check(twin, wanted)
    assert list(twin.classes_) == list(classifier.classes_)
    with torch.no_grad():
        for p in twin.prompt_model_.prompt_encoder.parameters():
            p.neg_()
        for p in twin.prompt_model_.backbone.parameters():
            p.mul_(1.5)
    changed = answers(twin, SENTENCES)
    assert not np.allclose(changed, wanted, atol=1e-3)
    check(classifier, wanted)
    # Neither do they share what is attached to a backbone.
    classifier.prompt_model_.unload()
    check(twin, changed)


def copied(classifier, kind):
    if kind == "deepcopy":
        return copy.deepcopy(classifier)
    return pickle.loads(pickle.dumps(classifier))


@pytest.mark.parametrize("kind", ["deepcopy", "pickle"])
@each_subject(PLAIN)
def test_a_copy_of_a_model_trains_by_itself(folder_of, subject, kind):
    folder = folder_of(subject)
    model = PromptModel(read_backbone(subject, folder / "backbone"), config_of(subject))
    shake(model, seed=3)
    inputs = inputs_of(subject, folder / "backbone")
    with torch.no_grad():
        wanted = model(**inputs).logits
    twin = copied(model, kind)
    optimizer = torch.optim.SGD([p for p in twin.parameters() if p.requires_grad], lr=0.5)
    twin.train()(**inputs, labels=torch.tensor([0, 1, 2])).loss.backward()
    optimizer.step()
    assert all(p.grad is None for p in model.parameters())
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, wanted)
        assert not torch.allclose(twin.eval()(**inputs).logits, wanted, atol=1e-4)
    model.unload()
    with torch.no_grad():
        assert not torch.allclose(twin(**inputs).logits, wanted, atol=1e-4)
    twin.unload()


@each_subject([Subject(), Subject("layers")])
def test_a_copy_that_is_made_after_an_exception(classifier):
    wanted = answers(classifier, SENTENCES)
    backbone = classifier.prompt_model_.backbone
    stops = raising(attention(backbone), KeyboardInterrupt(), after=True)
    with stops, pytest.raises(KeyboardInterrupt):
        classifier.predict(SENTENCES)
    for kind in ("deepcopy", "pickle"):
        check(copied(classifier, kind), wanted)


# Forks, in a process of their own. A child that hangs is killed.

FORK = """
import os, pickle, sys, threading, time, traceback
import numpy as np, torch
import ptune

threads, folder, pickled, masks = sys.argv[1:]
torch.set_num_threads(int(threads))
TEXTS = ["where is my parcel?", "it rains", "please send my money back today", "ok"]
RIGHT, REFUSED = 0, 3


def answers(what):
    if isinstance(what, ptune.PromptBank):
        return np.stack(what.logits([(task, text) for text in TEXTS for task in what]))
    return np.stack(list(what.logits(TEXTS)))


def child(what, wanted):
    try:
        return RIGHT if np.abs(answers(what) - wanted).max() <= 1e-5 else "wrong"
    except ptune.PtuneError as error:
        print(error, flush=True)
        return REFUSED
    except BaseException:
        traceback.print_exc()
        return "raises"


def fork(what, wanted, seconds=20):
    pid = os.fork()
    if not pid:
        code = child(what, wanted)
        os._exit(code if isinstance(code, int) else 1)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    sys.exit(f"a child hangs, {type(what).__name__}, {threading.active_count()} threads")


def check(what):
    wanted, stop, errors = answers(what), threading.Event(), []

    def loop():
        while not stop.is_set():
            if np.abs(answers(what) - wanted).max() > 1e-5:
                errors.append("wrong")

    idle, busy = fork(what, wanted), []
    running = [threading.Thread(target=loop, daemon=True) for _ in range(2)]
    for thread in running:
        thread.start()
    for i in range(6):
        time.sleep(0.01 + 0.007 * i)
        busy.append(fork(what, wanted))
    stop.set()
    for thread in running:
        thread.join()
    print(type(what).__name__, "idle:", idle, "busy:", busy, "errors:", errors, flush=True)
    assert idle == RIGHT or (idle == REFUSED and int(threads) > 1)
    assert set(busy) <= {RIGHT, REFUSED}
    assert not errors
    assert np.abs(answers(what) - wanted).max() <= 1e-5


with open(pickled, "rb") as file:
    check(pickle.load(file))
for place in (folder, masks):
    # The tasks are read from disk for each call.
    how = {"dtype": "float32", "device": "cpu", "memory_budget": 0}
    check(ptune.PromptBank.from_folder(place, **how))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("threads", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_forked_process_predicts_or_says_that_it_cannot(threads, folder_of, tmp_path):
    """Classifier and bank, idle and while two threads predict; never does it hang.

    The classifier came into the process as a pickle.
    """
    subject = Subject("shared") if threads == 1 else Subject()
    folder = folder_of(subject)
    at_mask = folder_of(Subject("input", head="mask"))
    for name, adapter in (("tasks", folder / "adapter"), ("masks", at_mask / "adapter")):
        (tmp_path / name).mkdir()
        for task in ("one", "two"):
            (tmp_path / name / task).symlink_to(adapter)
    (tmp_path / "classifier").write_bytes(pickle.dumps(subject.load(folder)))
    words = [str(threads), *(str(tmp_path / name) for name in ("tasks", "classifier", "masks"))]
    done = subprocess.run(
        [sys.executable, "-c", FORK, *words],
        capture_output=True,
        text=True,
        timeout=120,
        env=ENVIRONMENT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
