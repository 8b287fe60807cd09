"""Fixtures: tiny seeded backbones of real architectures, and tokenizers trained here."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

import enum
import gc
import json
import math
import random
import re
import subprocess
import sys
import time
import warnings
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import subjects
import torch
import transformers
from architectures import ARCHITECTURES
from filelock import FileLock
from safetensors.torch import load_file, save_file
from subjects import SENTENCES
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

# Threads do not make tiny models faster, and tests may run in parallel.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call():
    """PEFT 0.21.2 cannot run a prefix on Transformers 5.24, where caches have another name."""
    try:
        return (yield)
    except ValueError as error:
        if str(error).startswith("Model does not support past key values"):
            pytest.xfail(str(error))
        raise


def refused(message):
    """Expect a `PtuneError` with exactly this message; `…` stands for any text."""
    from ptune import PtuneError

    return pytest.raises(PtuneError, match=f"^{re.escape(message).replace('…', '.*')}$")


def call(*words):
    """Run `ptune` in this process; returns the exit code."""
    from ptune.cli.app import main

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setattr(sys, "argv", ["ptune", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            main()
    return stopped.value.code or 0


def once(tmp_path_factory, name, make):
    """A folder that one of the parallel workers makes, for all of them."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, part = base / name, base / f"{name}.part"
    with FileLock(base / f"{name}.lock"):
        if not folder.exists():
            make(part)
            part.rename(folder)
    return folder


@pytest.fixture(scope="session")
def texts():
    return SENTENCES


def write_mail(file, texts, copies):
    """Write a CSV file of these texts, numbered, with two labels; returns the file."""
    rows = [
        f'"{t} {i}",{"money" if "money" in t or "parcel" in t else "other"}'
        for i in range(copies)
        for t in texts
    ]
    file.write_text("text,label\n" + "\n".join(rows) + "\n")
    return file


class Colour(enum.Enum):
    RED = "red"
    BLUE = 2


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 10


def edit_json(file, **fields):
    """Change fields of a JSON file."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def edit_tensors(folder, changed):
    """Change tensors of an adapter; `None` removes one."""
    file = folder / "adapter_model.safetensors"
    tensors = {**load_file(file), **changed}
    save_file({name: t.contiguous() for name, t in tensors.items() if t is not None}, file)


def cut_short(folder):
    """Remove the end of an adapter's weights."""
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


each_problem_type = pytest.mark.parametrize(
    ("problem_type", "num_labels", "labels"),
    [
        ("single_label_classification", 3, torch.tensor([0, 2])),
        ("multi_label_classification", 3, torch.tensor([[0.0, 1, 1], [1, 0, 0]])),
        ("regression", 1, torch.tensor([0.5, 3.0])),
    ],
)


def same_backbone(one, other):
    """Whether two backbones have the same configuration and parameters, which train alike."""
    parameters = zip(one.named_parameters(), other.named_parameters(), strict=True)
    return one.config.to_dict() == other.config.to_dict() and all(
        a == b and torch.equal(p, q) and p.requires_grad == q.requires_grad
        for (a, p), (b, q) in parameters
    )


def train_tokenizer(bos=None, eos=None, unk="[UNK]", pad="[PAD]"):
    special = [t for t in (pad, unk, bos, eos) if t]
    tokenizer = Tokenizer(models.BPE(unk_token=unk))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(dict.fromkeys(special)),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    if bos and eos:
        ids = [(t, tokenizer.token_to_id(t)) for t in (bos, eos)]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A {eos}", pair=f"{bos} $A {eos} $B:1 {eos}:1", special_tokens=ids
        )
    names = {"unk_token": unk, "pad_token": pad, "bos_token": bos, "cls_token": bos}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=eos,
        sep_token=eos,
        model_max_length=64,
        **{k: v for k, v in names.items() if v},
    )


# Large initial values, so that a random backbone gives texts different logits.
SIZES = {
    "vocab_size": 400,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.2,
}
KINDS = {
    "bert": lambda **k: transformers.BertConfig(
        **SIZES, intermediate_size=64, max_position_embeddings=64, pad_token_id=0, **k
    ),
    "roberta": lambda **k: transformers.RobertaConfig(
        **SIZES, intermediate_size=64, max_position_embeddings=66, pad_token_id=1, **k
    ),
    "gpt2": lambda **k: transformers.GPT2Config(
        vocab_size=400,
        n_embd=32,
        n_layer=2,
        n_head=2,
        n_positions=64,
        initializer_range=0.2,
        bos_token_id=2,
        eos_token_id=2,
        **k,
    ),
}


def build(kind, seed=0, **options):
    """A classifier with random weights and two labels, or `num_labels`."""
    torch.manual_seed(seed)
    return AutoModelForSequenceClassification.from_config(KINDS[kind](**options)).eval()


def use_prompt(model, embeddings):
    """Replace a model's prompt encoder by a prompt, ``[k, width]``."""
    model.use_adapter(replace(model.to_adapter(), prompt_embeddings=embeddings))


def randomised(model, seed):
    """Change the prompt and head of a model randomly."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * 0.1)
    return model.eval()


@contextmanager
def client_of(bank):
    """A client of a server of the tasks of a bank, in this process."""
    from fastapi.testclient import TestClient

    from ptune.serving.app import build_app
    from ptune.serving.settings import ServeSettings

    with TestClient(build_app(bank, ServeSettings(".")), base_url="http://localhost") as client:
        yield client


@pytest.fixture(params=list(KINDS))
def kind(request):
    return request.param


@pytest.fixture
def backbone(kind):
    return build(kind)


@pytest.fixture(scope="session")
def tokenizer():
    return train_tokenizer(bos="[CLS]", eos="[SEP]")


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory, tokenizer):
    """A backbone as on the Hub: a base model without a head, and its tokenizer."""
    folder = tmp_path_factory.mktemp("backbones") / "tiny-bert"
    build("bert").bert.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory):
    """The folder of a subject's files (see `subjects.py`), written when they are first needed."""
    root = tmp_path_factory.mktemp("subjects")

    def folder(subject):
        place = root / f"{subject.mechanism}, {subject.head}"
        subjects.write(subject, place)
        return place

    return folder


@pytest.fixture
def classifier(folder_of, subject):
    """The classifier of a subject; see `each_subject`."""
    return subject.load(folder_of(subject))


@pytest.fixture(scope="session")
def glue_folder():
    """GLUE's original files; the tests that read them are marked `data`."""
    default = Path(__file__).parents[2] / "shared" / "data" / "glue"
    folder = Path(os.environ.get("PTUNE_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"there is no {folder}; name GLUE's folder with PTUNE_DATA")
    return folder


# The table of architectures in `docs/reference/architectures.md`.


def pytest_addoption(parser):
    parser.addoption(
        "--architectures", metavar="FILE", help="write the table of architectures into FILE"
    )


class ArchitectureTable:
    """Collects the results of `test_architectures.py` for each architecture."""

    def __init__(self, file):
        self.file = Path(file)
        self.passed, self.failed, self.skipped = {}, {}, {}

    def pytest_runtest_logreport(self, report):
        if "test_architectures.py" not in report.nodeid or (
            report.when != "call" and report.passed
        ):
            return
        architecture = next(
            f for f in sorted(ARCHITECTURES, key=len, reverse=True) if f"[{f}" in report.nodeid
        )
        check = report.nodeid.split("::")[1].split("[")[0].removeprefix("test_").replace("_", " ")
        if report.skipped:
            self.skipped.setdefault(architecture, {})[check] = report.longrepr[2].removeprefix(
                "Skipped: "
            )
        else:
            counts = self.passed if report.passed else self.failed
            counts[architecture] = counts.get(architecture, 0) + 1

    def pytest_sessionfinish(self):
        if not self.passed:
            return
        lines = [
            "| architecture | checks passed | failed | not checked |",
            "| --- | --- | --- | --- |",
        ]
        for architecture in ARCHITECTURES:
            left_out = "; ".join(f"{k}: {v}" for k, v in self.skipped.get(architecture, {}).items())
            passed, failed = self.passed.get(architecture, 0), self.failed.get(architecture, 0)
            lines.append(f"| {architecture} | {passed} | {failed} | {left_out} |")
        before, rest = self.file.read_text("utf-8").split("<!-- architectures -->\n")
        _, after = rest.split("<!-- /architectures -->")
        table = "\n".join(["<!-- architectures -->", *lines, "<!-- /architectures -->"])
        self.file.write_text(before + table + after, "utf-8")


# When no further test starts, in seconds since 1970: CI has 25 minutes, and on a slow machine every
# test takes longer. Each commit starts with another file, so others are left out. Slow tests come
# last: in the time of one of them, a hundred others run. None starts in the last 90 seconds.
UNTIL = float(os.environ.get("PTUNE_TESTS_UNTIL", "inf"))
TOO_LATE = "the time for tests is over"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    if time.time() > UNTIL - (90 if item.get_closest_marker("slow") else 0):
        pytest.skip(TOO_LATE)


def pytest_terminal_summary(terminalreporter):
    skipped = terminalreporter.stats.get("skipped", ())
    if late := sum(TOO_LATE in str(report.longrepr) for report in skipped):
        terminalreporter.write_line(f"{late} tests were not run: {TOO_LATE}.")


def pytest_collection_modifyitems(config, items):
    """Attacks run only when they are asked for (`-m attack`)."""
    if "attack" not in (config.option.markexpr or ""):
        attacks = [item for item in items if item.get_closest_marker("attack")]
        config.hook.pytest_deselected(items=attacks)
        items[:] = [item for item in items if item not in attacks]
    if math.isfinite(UNTIL) and items:
        commit = ["git", "-C", str(config.rootpath), "rev-parse", "HEAD"]
        seed = subprocess.run(commit, capture_output=True, text=True).stdout
        file = items[random.Random(seed).randrange(len(items))].path
        first = [item.path for item in items].index(file)
        items[:] = items[first:] + items[:first]
        items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


# Tests that CI may skip, by their id (`*` stands for any text) or their mark, and why. Any other
# skipped test fails there.
MAY_SKIP = {
    "tests/inference/test_sklearn.py::test_scikit_learns_checks*": "EXEMPT there has the reasons",
    "tests/backbones/test_architectures.py::*": "not every architecture has checkpointed layers",
    "tests/test_modes.py::*": "a causal text does not attend to a later prompt",
    "tests/backbones/test_kernels.py::*": "needs a CPU with bfloat16",
    "tests/test_compat.py::*packed*": "needs a CPU with bfloat16",
    "tests/test_fixtures.py::*": "the adapters of the first version are not in the repository",
    "data": "GLUE's files are not in the repository",
    "browser": "Chromium may not be installable",
}


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item):
    """In CI, fail a test that is skipped and not listed in `MAY_SKIP`."""
    report = (yield).get_result()
    if not report.skipped or hasattr(report, "wasxfail") or not os.environ.get("CI"):
        return
    if TOO_LATE in str(report.longrepr):
        return
    marks = {mark.name for mark in item.iter_markers()}
    if not any(name in marks or fnmatchcase(item.nodeid, name) for name in MAY_SKIP):
        report.outcome = "failed"
        report.longrepr = f"{report.longrepr[2]}. CI may skip only what tests/conftest.py lists."


def pytest_collection_finish():
    """Keep the modules' objects out of the garbage collector, which every training calls."""
    gc.collect()
    gc.freeze()


def pytest_configure(config):
    if file := config.getoption("--architectures"):
        config.pluginmanager.register(ArchitectureTable(file))
