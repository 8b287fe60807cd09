"""The public API: every name is listed here, importable, documented and tested."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ptune
import ptune.peft

ROOT = Path(__file__).parents[1]
# To add a name to ptune's public API, add it here, to the docs and to a test.
NAMES = [
    "Prediction",
    "PromptBank",
    "PromptClassifier",
    "PromptEncoderConfig",
    "PromptModel",
    "PtuneError",
    "TrainSettings",
    "__version__",
    "export_onnx",
    "export_transformers",
    "load",
    "load_exported",
    "train_fleet",
    "train_run",
    "tune",
]
# The names of 🤗 PEFT's that `ptune.peft` stands in for.
PEFT_NAMES = [
    "AutoPeftModelForSequenceClassification",
    "PeftConfig",
    "PeftModel",
    "PeftModelForSequenceClassification",
    "PeftType",
    "PrefixTuningConfig",
    "PromptEncoder",
    "PromptEncoderConfig",
    "PromptEncoderReparameterizationType",
    "PromptLearningConfig",
    "PromptTuningConfig",
    "PromptTuningInit",
    "TaskType",
    "get_peft_config",
    "get_peft_model",
    "get_peft_model_state_dict",
    "prepare_model_for_kbit_training",
    "set_peft_model_state_dict",
]


def test_the_public_names_are_these():
    assert sorted(ptune.__all__) == NAMES
    assert sorted(ptune.peft.__all__) == PEFT_NAMES


def test_dir_lists_the_public_names():
    assert set(NAMES) <= set(dir(ptune))


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ptune.nothing


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_importable_and_has_a_docstring(name):
    value = getattr(importlib.import_module("ptune"), name)
    if name == "__version__":
        assert re.fullmatch(r"\d+\.\d+\.\d+.*", value)
        return
    assert value.__name__ == name
    assert_documented(value)


@pytest.mark.parametrize("name", PEFT_NAMES)
def test_a_name_of_peft_has_a_docstring(name):
    assert_documented(getattr(ptune.peft, name))


def assert_documented(value):
    """A docstring of its own, and of its own for each public method."""
    assert own_docstring(value)
    if inspect.isclass(value):
        for method, function in vars(value).items():
            if callable(function) and not method.startswith("_"):
                assert inspect.getdoc(getattr(value, method)), f"{value.__name__}.{method}"


def own_docstring(value):
    # A dataclass without a docstring gets its signature as one.
    return value.__doc__ and not value.__doc__.startswith(f"{value.__name__}(")


def test_every_public_name_is_declared_for_type_checkers():
    """Names are imported on first use; type checkers read the block that is never run."""
    tree = ast.parse((ROOT / "src" / "ptune" / "__init__.py").read_text("utf-8"))
    (block,) = [n for n in tree.body if isinstance(n, ast.If)]
    declared = {
        alias.asname or alias.name
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert declared | {"__version__"} == set(NAMES)


HEAVY = ["torch", "transformers", "numpy", "pandas", "sklearn", "datasets"]


@pytest.mark.parametrize(
    ("work", "packages"),
    [
        ("import ptune", HEAVY),
        # So that help, completion and a wrong option answer at once.
        ("import ptune.cli.app", HEAVY),
        *(
            (
                f"{before}ptune.load; import ptune.inference.jobs",
                ["datasets", "peft", "matplotlib", "onnx", "ray"],
            )
            for before in ("", "ptune.compat.TESTED['safetensors'] = '0.1.0'; ")  # an older one
        ),
    ],
)
def test_nothing_is_imported_that_is_not_needed(work, packages):
    code = f"import sys, ptune, ptune.compat; {work}; print(*set({packages}) & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_in_the_documentation(name):
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if len(pages) == 1:
        pytest.skip("the documentation is not part of this copy")
    # As code: "load" alone is any verb.
    as_code = re.compile(rf"ptune\.{name}\b|`{name}\b|import [^\n]*\b{name}\b")
    assert any(as_code.search(page.read_text("utf-8")) for page in pages), (
        f"{name} is in none of {', '.join(str(p.relative_to(ROOT)) for p in pages)}"
    )


def names_used(tree):
    """Public names that a module of tests takes from ptune."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "ptune":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "ptune":
            yield node.attr


def test_every_name_is_exercised_by_a_test():
    files = [f for f in (ROOT / "tests").rglob("test_*.py") if f != Path(__file__)]
    used = {n for f in files for n in names_used(ast.parse(f.read_text("utf-8")))}
    assert set(NAMES) - used == set()
