"""What the tests of threads, interrupts, copies and release run on.

If you add a mechanism, an engine or a kind of head, add it here. Every test that takes a subject
then runs on it too.
"""

import os
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, build_model, tokenizer_that_pads
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

import ptune
from ptune import PromptEncoderConfig, PromptModel
from ptune.adapters.adapter import Adapter
from ptune.backbones.loading import load_backbone
from ptune.postprocessing import Postprocessing
from ptune.texts import Reading, Template, encode

DEEP = {"depth": "deep", "num_virtual_tokens": 4}
# How a prompt enters a backbone: an architecture where it does so, and the prompt.
MECHANISMS = {
    # No prompt, only a head.
    "none": ("BERT", {"depth": "none"}),
    # A prompt among the tokens of the text.
    "input": ("BERT", {"depth": "input", "placement": "after_first"}),
    # The same at places that a template names.
    "in the text": ("BERT", {"depth": "input", "placement": "template"}),
    # An input prompt before the texts of a causal backbone, read once for the whole batch.
    "shared": ("GPT-2", {"depth": "input", "placement": "prefix"}),
    # Keys and values in every layer.
    "prefix": ("RoBERTa", {**DEEP, "pooling": "mean"}),
    # The same where one module is the attention of all layers.
    "prefix in one module": ("ALBERT", DEEP),
    # The same with a head that reads several layers.
    "prefix, layers read": ("BERT", {**DEEP, "pooling": "layers"}),
    # The same with a head that also reads how much the two texts of a pair differ.
    "prefix, pairs read": ("BERT", {**DEEP, "pooling": "pairs"}),
    # Embeddings in every layer, where attention is out of reach.
    "layers": ("DeBERTa-v2", DEEP),
    # Tokens that attend to the text, which does not attend to them.
    "reader": (
        "BERT",
        {"depth": "reader", "pooling": "prompt", "reader_rank": 3, "reader_key_rank": 2},
    ),
    # The same with a head that also reads what was kept of the text.
    "reader, layers read": ("BERT", {"depth": "reader", "pooling": "layers"}),
    # The same where the text's keys and values enter as a cache of Transformers.
    "reader by cache": ("Falcon", {"depth": "reader"}),
}
# Labels, problem type, and what the head reads where that is not the architecture's own.
HEADS = {
    "plain": (["no", "maybe", "yes"], "single_label_classification", {}),
    # A pooler that is not in the checkpoint, so it is trained and saved with the head.
    "pooler": (["no", "yes"], "single_label_classification", {}),
    "regression": (["score"], "regression", {"pooling": "prompt"}),
    "multi-label": (["a", "b", "c", "d"], "multi_label_classification", {"pooling": "mean"}),
    # A masked language model's own head, which reads at the mask token.
    "mask": (["parcel", "lamp", "phone"], "single_label_classification", {}),
}
# The words around each text.
TEMPLATES = {
    "mask": Template("{text} it was {mask} today"),
    "in the text": Template("I say {prompt:2} {text} {prompt:3} today"),
}
ENGINES = ("torch", "onnx", "openvino")


@dataclass(frozen=True)
class Subject:
    """A classifier to test: a mechanism, a kind of head and an engine."""

    mechanism: str = "prefix"
    head: str = "plain"
    engine: str = "torch"

    def __str__(self):
        return "-".join((self.mechanism, self.head, self.engine))

    def load(self, folder):
        """The classifier, from the folder that `write` wrote."""
        how = {"dtype": "float32", "device": "cpu", "cache_dir": folder / "cache"}
        return ptune.load(folder / "adapter", engine=self.engine, **how)


SUBJECTS = [
    *(Subject(mechanism=name) for name in MECHANISMS),
    *(Subject("input", head=name) for name in HEADS if name != "plain"),
    *(Subject(engine=name) for name in ENGINES if name != "torch"),
]
# Those that PyTorch runs: they can be copied, trained and taken apart.
ON_TORCH = [subject for subject in SUBJECTS if subject.engine == "torch"]
# One for each mechanism.
PLAIN = [subject for subject in ON_TORCH if subject.head == "plain"]


def each_subject(subjects):
    """Run a test on subjects; the fixture `classifier` is that of each."""
    return pytest.mark.parametrize("subject", subjects, ids=str)


SENTENCES = [
    "the parcel never came and nobody answers the phone",
    "please send my money back today",
    "how do I change the address of my order",
    "the lamp blinks red and then goes dark",
    "where can I find an invoice for the headphones",
    "I cannot log in any more since the update",
    "thank you for the quick help yesterday",
    "is the black one in stock again soon",
]
# One to four texts each, of a few tokens to more than the backbone reads.
INPUTS = [
    [" ".join(SENTENCES[(i + j) % 8].split()[: 1 + (3 * i + 5 * j) % 9]) for j in range(1 + i % 4)]
    for i in range(32)
] + [[" ".join(SENTENCES * 3), "the"]]


def backbone_of(subject, folder, seed=0):
    """The subject's backbone with a fresh head and its tokenizer, written into `folder`."""
    architecture = ARCHITECTURES[MECHANISMS[subject.mechanism][0]]
    tokenizer = tokenizer_that_pads(architecture, SENTENCES)
    if subject.head == "mask":
        tokenizer.add_special_tokens({"mask_token": "[MASK]"})
    base = build_model(architecture, tokenizer, seed=seed).base_model
    if subject.head == "pooler":
        base.pooler = None
    if subject.head == "mask":
        base = AutoModelForMaskedLM.from_config(base.config)
    base.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return read_backbone(subject, folder), tokenizer


def inputs_of(subject, folder):
    """A padded batch of three texts, as the backbone in the folder reads them."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    template = TEMPLATES.get(subject.mechanism)
    encoded, _ = encode(tokenizer, [SENTENCES[:3]], None, template=template)
    return tokenizer.pad(encoded, return_tensors="pt")


def read_backbone(subject, folder):
    """The backbone from its folder, with a head for the subject's labels."""
    labels, problem_type, _ = HEADS[subject.head]
    torch.manual_seed(1)
    if subject.head == "mask":
        how = {"labels": labels, "problem_type": problem_type, "dtype": "float32"}
        return load_backbone(str(folder), at_mask=True, **how)
    backbone = AutoModelForSequenceClassification.from_pretrained(
        folder,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
        problem_type=problem_type,
    )
    backbone.name_or_path = str(folder)
    return backbone.eval()


def config_of(subject, **options):
    """The subject's prompt."""
    common = {"num_virtual_tokens": 5, "encoder_reparameterization_type": "NONE"}
    own = {**MECHANISMS[subject.mechanism][1], **HEADS[subject.head][2]}
    return PromptEncoderConfig(**{**common, **own, **options})


def shake(model, seed, std=0.5):
    """Give prompt and head random numbers, none of which is small."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.normal_(std=std)
    return model.eval()


def postprocessing_of(subject):
    """Calibration and thresholds that change every probability."""
    count = len(HEADS[subject.head][0])
    if subject.head == "regression":
        return Postprocessing()
    if subject.head == "multi-label":
        steps = np.arange(count)
        thresholds = np.array([0.9, 0.6, 0.2, 0.5])
        return Postprocessing(0.5 + 0.1 * steps, 0.3 - 0.2 * steps, thresholds)
    return Postprocessing(np.full(count, 0.6), set_scores=np.linspace(0.1, 0.8, 30))


def write(subject, folder, seed=2):
    """Write the subject's backbone and adapter. Other engines than PyTorch export it on loading."""
    if not folder.is_dir():
        backbone, _ = backbone_of(subject, folder / "backbone")
        model = shake(PromptModel(backbone, config_of(subject)), seed)
        template = TEMPLATES.get(subject.head) or TEMPLATES.get(subject.mechanism)
        model.state.reading = Reading(template=template)
        model.save_pretrained(folder / "adapter")
        adapter = Adapter.read(folder / "adapter")
        replace(adapter, postprocessing=postprocessing_of(subject)).save(folder / "adapter")


def answers(classifier, texts):
    """Logits ``[texts, labels]``."""
    return np.stack(list(classifier.logits(texts)))


def is_right(found, wanted):
    """Whether logits are within 1e-5 of those of one thread."""
    return found.shape == wanted.shape and bool(np.abs(found - wanted).max() <= 1e-5)


def in_threads(*functions, seconds=60.0):
    """Call functions in a thread each, all at once.

    Returns:
        Their results, in order.

    Raises:
        ExceptionGroup: What they raised.
        AssertionError: One of them still runs after `seconds`.
    """
    barrier = threading.Barrier(len(functions))
    results, errors = [None] * len(functions), []

    def call(i):
        barrier.wait()
        try:
            results[i] = functions[i]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=call, args=[i], daemon=True) for i in range(len(functions))]
    end = time.monotonic() + seconds
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    running = sum(thread.is_alive() for thread in threads)
    assert not running, f"{running} of {len(threads)} threads still run after {seconds:.0f} s"
    if errors:
        raise BaseExceptionGroup(f"{len(errors)} of {len(functions)} threads raised", errors)
    return results


def in_a_thread(function, seconds=60.0):
    """Call a function in a new thread; its result."""
    return in_threads(function, seconds=seconds)[0]


@contextmanager
def meanwhile(*functions):
    """Call functions again and again, in a thread each, while the block runs.

    Raises:
        ExceptionGroup: What they raised; each stops at its first exception.
    """
    stop, errors, calls = threading.Event(), [], [0] * len(functions)

    def repeat(i):
        try:
            while not stop.is_set():
                functions[i]()
                calls[i] += 1
        except BaseException as error:
            errors.append(error)

    threads = [
        threading.Thread(target=repeat, args=[i], daemon=True) for i in range(len(functions))
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "a thread does not come to an end"
    if errors:
        raise BaseExceptionGroup(f"{len(errors)} of {len(functions)} threads raised", errors)
    assert all(calls), "a thread did not finish one call"


@contextmanager
def frequent_switches():
    """Let Python change threads after a few microseconds, so that races are met in short tests."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


# What a test that starts processes of its own gives them.
ENVIRONMENT = {**os.environ, "PYTHONFAULTHANDLER": "1"}
