"""What README and documentation show is true: code runs, commands parse, numbers have a file."""

import ast
import contextlib
import dataclasses
import io
import json
import re
import shlex
from pathlib import Path

import pytest
import typer
from conftest import call
from transformers import TrainingArguments

import ptune
from ptune.cli.app import app
from ptune.training import defaults

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
RESULTS = ROOT / "benchmarks" / "results"
# A visible line before a block that cannot run here, and how many there may be.
NOT_RUN, MOST_NOT_RUN = re.compile(r"needs? (a GPU|the network)", re.IGNORECASE), 5

# Their fields are options of `ptune train`.
TRAINER = {field.name for field in dataclasses.fields(TrainingArguments)}

pytestmark = pytest.mark.skipif(len(PAGES) == 1, reason="the documentation is not in this copy")


def name_of(page):
    return str(page.relative_to(ROOT))


# Code.


def blocks(page, *languages):
    """Fenced blocks in these languages, also those indented in tabs, without their indentation."""
    fence = None
    for line in page.read_text("utf-8").splitlines():
        if fence is None and (found := re.match(r"( *)```(\w*)", line)):
            fence, language, lines = found[1] + "```", found[2], []
        elif line == fence:
            if language in languages:
                yield "\n".join([*lines, ""])
            fence = None
        elif fence is not None:
            lines.append(line.removeprefix(fence.removesuffix("```")))


def shown_output(code):
    """The lines `# → …` of a block, which follow the `print` whose output they show."""
    return [line[4:] for line in code.splitlines() if line.startswith("# → ")]


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A folder with what the first page makes, trained for fewer steps, and the files it names."""
    folder = tmp_path_factory.mktemp("pages")
    (first, *_) = blocks(ROOT / "docs" / "index.md", "python")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(defaults.MIN_STEPS, "default", 64)
        patch.chdir(folder)
        names = run(first)
    pairs = zip(names["texts"], names["labels"], strict=True)
    lines = [f'"{text}",{label}' for text, label in pairs]
    for name in ("mail", "mails", "more", "new", "gold", "test", "last_week"):
        (folder / f"{name}.csv").write_text("\n".join(["text,label", *lines * 3, ""]))
    other = {
        "tags": "text,labels\n" + "one,a|b\ntwo,a\nthree,b\n" * 5,
        "pairs": "first,second,label\n" + "one,two,a\nthree,four,b\n" * 5,
        "ratings": "text,stars\n" + "one,1\ntwo,2.5\nthree,3\n" * 5,
    }
    for name, content in other.items():
        (folder / f"{name}.csv").write_text(content)
    return folder


def run(code, names=None):
    """Run a block; what it prints must be what it shows."""
    names, printed = {} if names is None else names, io.StringIO()
    ast.parse(code)
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "<block>", "exec"), names)
    if expected := shown_output(code):
        assert_same_output(printed.getvalue().splitlines(), expected)
    return names


def assert_same_output(printed, expected):
    """Words are equal, and numbers with a fraction to 0.03."""
    number = re.compile(r"\d+\.\d+")
    words = [number.sub("#", line.rstrip()) for line in printed]
    assert words == [number.sub("#", line) for line in expected]
    for found, shown in zip(
        number.findall(" ".join(printed)), number.findall(" ".join(expected)), strict=True
    ):
        assert float(found) == pytest.approx(float(shown), abs=0.03)


WITH_PYTHON = [page for page in PAGES if any(blocks(page, "python"))]


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name_of)
def test_python_blocks_run_and_print_what_they_show(page, trained, tmp_path, monkeypatch):
    if page.name in ("README.md", "index.md"):
        monkeypatch.chdir(tmp_path)
    else:
        # Elsewhere, shapes and names are shown, which do not need a long training.
        monkeypatch.setitem(defaults.MIN_STEPS, "default", 8)
        monkeypatch.chdir(trained)
    names = {}
    for code in blocks(page, "python"):
        names = run(code, names)


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name_of)
def test_what_a_block_prints_is_shown(page):
    for code in blocks(page, "python"):
        assert "print(" not in code or shown_output(code), code


def test_few_blocks_are_not_run():
    found = [
        line
        for page in PAGES
        for line in page.read_text("utf-8").splitlines()
        if NOT_RUN.search(line)
    ]
    assert len(found) <= MOST_NOT_RUN


def commands(page):
    for block in blocks(page, "", "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            if found := re.match(r"(?:\S+=\S+ |.*?\| |torchrun .*-m )?(ptune \S.*)", line.strip()):
                yield re.split(r" [|>#] ?", found[1])[0]


WITH_COMMANDS = [page for page in PAGES if any(commands(page))]


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=name_of)
def test_commands_have_only_options_that_exist(page):
    root = typer.main.get_command(app)
    for line in commands(page):
        _, name, *words = shlex.split(line)
        assert name in root.commands, line
        command = root.commands[name]
        options = {o for p in command.params for o in [*p.opts, *p.secondary_opts]} | {"--help"}
        used = {word.split("=")[0] for word in words if word.startswith("--")}
        if name == "train":
            used -= {word for word in used if word.removeprefix("--").replace("-", "_") in TRAINER}
        assert used <= options, f"{line}: {used - options}"


# Commands that end by themselves, with what `trained` has. A training stops after its summary.
ENDS = ("train", "predict", "evaluate", "info", "check", "explain")
NOT_HERE = re.compile(
    r"--(model|ray|runtime|seeds|tasks-dir|group-column|task|config) |your-|mails/|s/pairs \"|tone"
)
RUN = dict.fromkeys(line for page in WITH_COMMANDS for line in commands(page))


@pytest.mark.parametrize(
    "line", [line for line in RUN if line.split()[1] in ENDS and not NOT_HERE.search(line)]
)
def test_commands_run(line, trained, monkeypatch):
    monkeypatch.chdir(trained)
    words = shlex.split(line)[1:]
    assert call(*words, *(["--dry-run"] * (words[0] == "train"))) == 0


@pytest.mark.parametrize("name", ptune.__all__)
def test_a_public_name_has_a_place_in_the_reference(name):
    page = (ROOT / "docs" / "reference" / "api.md").read_text("utf-8")
    assert f"::: ptune.{name}\n" in page + "\n" or f"`ptune.{name}`" in page


# Numbers.

# A number with its file: 0.894<!--accuracy_held_aside:ptune_deep_prompt:topic-->
MARKED = re.compile(r"([\d,]+(?:\.\d+)?)(?: ?[^\s\d<]+)?<!--(\w+):([^:]+(?:_:_[^:]+)?):([^:>]+)-->")
# Settings and limits, which nobody measured.
FIXED = re.compile(r"[\d.,]+ ?[\w%]*<!--not-measured-->")
UNITS = r"(?:%|\u00d7|x|[kMGT]B|[KMGT]iB|ms|s|min|h|seconds|minutes|hours|TFLOP/s|times as)"
MEASURED = re.compile(rf"(?<![\w.])\d+\.\d+(?![\w.]*\.\d)|(?<![\w.])\d[\d,.]* ?{UNITS}(?!\w)")
VERSIONS = re.compile(
    r"(Python|[Tt]orch|PyTorch|[Tt]ransformers|peft|PEFT|infinity-emb|LitServe|optimum-onnx|ptune|"
    r"Apache|version)[ -]<? ?\d+\.\d+[\w.+]*"
)


def cell(name, row, column):
    rows = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))["rows"]
    found = {key.replace(" ", "_"): value for key, value in rows.items()}
    return {key.replace(" ", "_"): value for key, value in found[row].items()}[column]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_numbers_are_those_of_the_results(page):
    for shown, name, row, column in MARKED.findall(page.read_text("utf-8")):
        measured = re.search(r"[\d,]+(?:\.\d+)?", cell(name, row, column))[0].replace(",", "")
        digits = len(shown.partition(".")[2])
        assert float(shown.replace(",", "")) == pytest.approx(
            float(measured), abs=0.501 * 10**-digits
        ), f"{name_of(page)} shows {shown}; benchmarks/results/{name}.json has {measured}"


def prose(page):
    """What people read as text: no code, links, addresses, generated tables and marked numbers."""
    text = page.read_text("utf-8")
    for mark in ("settings", "architectures", "onnx"):
        text = re.sub(rf"<!-- {mark} -->.*<!-- /{mark} -->", "", text, flags=re.DOTALL)
    text = re.sub(r"^( *)```.*?^\1```", "", text, flags=re.MULTILINE | re.DOTALL)
    for pattern in (MARKED, FIXED, re.compile(r"`[^`]*`"), re.compile(r"\]\([^)]*\)"), VERSIONS):
        text = pattern.sub("", text)
    return re.sub(r"\b(?:arXiv )?\d{4}\.\d{5}", "", text)


@pytest.mark.parametrize("page", [p for p in PAGES if p.name != "settings.md"], ids=name_of)
def test_a_measured_number_names_its_file(page):
    assert MEASURED.findall(prose(page)) == [], "write it as 0.9<!--file:row:column-->"


def test_results_say_where_they_come_from():
    for file in sorted(RESULTS.glob("*.json")):
        content = json.loads(file.read_text("utf-8"))
        assert {"about", "machine", "command", "source", "rows"} <= content.keys(), file.name


def test_the_readme_is_short():
    assert len(README.read_text("utf-8").split()) <= 900
