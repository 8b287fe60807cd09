"""Links and names in the documentation point at something that exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("src/**/*.md")])
TESTS = {path.name: path for path in (ROOT / "tests").rglob("*.py")}


def without_blocks(text):
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, heading = target.partition("#")
        linked = (page.parent / file).resolve() if file else page
        assert linked.exists(), f"{page.name} links to {target}"
        if heading:
            titles = re.findall(r"^#+ (.+)$", linked.read_text("utf-8"), flags=re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", t).strip().lower().replace(" ", "-") for t in titles}
            assert heading in anchors, f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_paths_of_the_repository_exist(page):
    text = without_blocks(page.read_text("utf-8"))
    for path in re.findall(r"`((?:benchmarks|docs|examples|src|tests)/[\w/.\-]*)(?:::\w+)?`", text):
        assert (ROOT / path).exists(), f"{page.name} names {path}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_tests_that_are_named_exist(page):
    for file, name in re.findall(r"`([\w/]+\.py)::(\w+)`", page.read_text("utf-8")):
        path = TESTS.get(Path(file).name)
        assert path is not None, f"{page.name} names {file}"
        assert re.search(rf"def {name}\b", path.read_text("utf-8")), f"{page.name} names {name}"
