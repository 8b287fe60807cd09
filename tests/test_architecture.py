"""The structure that ARCHITECTURE.md promises."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import structure

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "ptune"

MOST_LINES, MOST_METHODS, MOST_MODULES = 60, 20, 9
# Larger than the rules allow: the size, and the reason.
LARGE_FUNCTIONS: dict[str, tuple[int, str]] = {}
LARGE_CLASSES: dict[str, tuple[int, str]] = {}


def too_large(sizes, most, exceptions):
    allowed = {where: size for where, (size, _) in exceptions.items()}
    return {s.where: s.size for s in sizes if s.size > allowed.get(s.where, most)}


def files_in_the_tree():
    """Paths in the tree of ARCHITECTURE.md, relative to src/ptune."""
    page = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
    block = page.split("<!-- tree -->")[1].split("<!-- /tree -->")[0]
    folders = []
    for line in block.splitlines():
        entry = re.match(r"( +)([^\s,]+(?:, [^\s,]+)*)", line)
        if entry is None:
            continue
        depth = len(entry[1]) // 2
        del folders[depth - 1 :]
        for name in entry[2].split(", "):
            if name.endswith("/"):
                folders.append(name.rstrip("/"))
            else:
                yield "/".join([*folders, name])


def test_every_file_is_in_the_tree_and_the_tree_has_no_other():
    found = {
        str(file.relative_to(SOURCE))
        for file in SOURCE.rglob("*")
        if file.is_file() and file.suffix != ".pyc"
    }
    assert sorted(files_in_the_tree()) == sorted(found)


def test_functions_are_short():
    assert too_large(structure.function_lengths(), MOST_LINES, LARGE_FUNCTIONS) == {}


def test_classes_have_few_public_methods():
    assert too_large(structure.class_sizes(), MOST_METHODS, LARGE_CLASSES) == {}


def test_few_modules_are_at_the_top_level():
    assert len(structure.top_level_modules()) <= MOST_MODULES


def test_no_modules_import_each_other():
    assert structure.cycles(structure.imports()) == []


def imported_packages():
    for file in structure.files():
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                yield from (alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield node.module.split(".")[0]


def test_every_imported_package_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    lists = [
        project["dependencies"],
        *(extras[e] for e in ("ray", "onnx", "openvino", "serve", "spreadsheet", "tune")),
    ]
    declared = {re.match(r"[\w-]+", d)[0].lower() for listed in lists for d in listed}
    own = {"ptune", *sys.stdlib_module_names}
    names = packages_distributions()
    for package in sorted(set(imported_packages()) - own):
        found = {name.lower().replace("_", "-") for name in names.get(package, [package])}
        assert found & declared, f"{package} is imported but not declared in pyproject.toml"


def test_every_declared_package_has_an_upper_bound_and_a_tested_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    pinned = {
        line.split("==")[0] for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    }
    unbounded = {"pyarrow", "openvino"}  # their versions count releases and years
    for listed in [project["dependencies"], *project["optional-dependencies"].values()]:
        for requirement in listed:
            name = re.match(r"[\w-]+", requirement)[0]
            if name != "ptune":
                assert ("<" in requirement) is (name not in unbounded), requirement
                assert name in pinned, f"constraints.txt has no version of {name}"
