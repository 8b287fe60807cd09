"""What `mkdocs build` adds to the pages: tables of results, the CLI, the HTTP API and errors.

A page asks for it with a link to a file of `benchmarks/results/` on a line of its own, or with
`<!-- cli -->`, `<!-- http -->` and `<!-- errors -->`. Nothing that is added is stored in the
repository, so it cannot be out of date.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
SOURCE, RESULTS = ROOT / "src" / "ptune", ROOT / "benchmarks" / "results"
# Pages made of files in the root folder of the repository.
PROJECT = {
    "CHANGELOG.md": "changelog.md",
    "ARCHITECTURE.md": "project/architecture.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security.md",
}
RESULT = re.compile(r"^\[[^\]]*\]\((?:\.\./)+benchmarks/results/(\w+)\.json\)$", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of `PROJECT`."""
    for name, page in PROJECT.items():
        text = (ROOT / name).read_text("utf-8")
        up = "../" * page.count("/")
        text = re.sub(r"\]\(docs/", f"]({up}", text)
        files.append(File.generated(config, page, content=_links_to_project(text, page)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Insert what the page asks for."""
    markdown = RESULT.sub(lambda found: results_table(found[1]), markdown)
    for mark, content in (("cli", cli), ("http", http), ("errors", errors)):
        if f"<!-- {mark} -->" in markdown:
            markdown = markdown.replace(f"<!-- {mark} -->", content())
    return _links_to_project(markdown, page.file.src_uri)


def _links_to_project(text: str, page: str) -> str:
    """Point links to `PROJECT`'s files to their pages."""
    up = "../" * page.count("/")
    for name, target in PROJECT.items():
        text = re.sub(rf"\]\((?:\.\./)*{name}", f"]({up}{target}", text)
    return text


# Results.


def results_table(name: str) -> str:
    """A file of `benchmarks/results/` as a table."""
    found = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
    columns = list(dict.fromkeys(c for row in found["rows"].values() for c in row))
    lines = [_row([found["first_column"], *columns]), _row(["---"] * (len(columns) + 1))]
    for title, row in found["rows"].items():
        lines.append(_row([title, *[row.get(column, "") for column in columns]]))
    about = f"*{found['about']}. Machine: {found['machine']}. Command: `{found['command']}`.*"
    return "\n".join(["", about, "", *lines, ""])


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


# The command line.


def cli() -> str:
    """Every command with its arguments and options, from the parser."""
    import typer

    from ptune.cli.app import app

    root: Any = typer.main.get_command(app)
    context = root.make_context("ptune", [], resilient_parsing=True)
    return "\n".join(
        line
        for name in root.list_commands(context)
        for line in _command(name, root.get_command(context, name))
    )


def _command(name: str, command: Any) -> Iterator[str]:
    help = inspect.cleandoc(command.help or "")
    yield f"\n## ptune {name}\n"
    # Examples are lines that begin with the command.
    yield re.sub(r"(?m)^((?:Example: )?ptune .*)$", r"`\1`", help).replace(
        "`Example: ", "Example: `"
    )
    yield ""
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    panels: dict[str, list[Any]] = defaultdict(list, {"Arguments": arguments} if arguments else {})
    for option in command.params:
        if option.param_type_name == "option" and option.name != "help" and not option.hidden:
            panels[option.rich_help_panel or "Options"].append(option)
    for panel, parameters in panels.items():
        yield f"\n**{panel}**\n\n| name | value | what it does |\n| --- | --- | --- |"
        yield from (_row(_parameter(p)) for p in parameters)
    if command.epilog:
        yield f"\n{command.epilog}"


def _parameter(parameter: Any) -> list[str]:
    if parameter.param_type_name == "argument":
        names, value = f"`{parameter.metavar or parameter.name.upper()}`", ""
    else:
        names = ", ".join(f"`{n}`" for n in [*parameter.opts, *parameter.secondary_opts])
        annotation = parameter.type_descriptor.annotation
        choices = ", ".join(get_args(annotation)) if get_origin(annotation) is Literal else ""
        value = "" if parameter.is_flag else choices or parameter.metavar or annotation.__name__
    help = (parameter.help or "").replace("\\[", "[")
    default = parameter.default
    if parameter.show_default and isinstance(default, str | int | Path) and default is not False:
        help += f" [default: {default}]"
    if parameter.required and parameter.param_type_name == "option":
        help += " [required]"
    return [names, value, help]


# The server.


def http() -> str:
    """Every route with its answers, and the types of requests and answers, from OpenAPI."""
    from ptune.serving.app import build_app
    from ptune.serving.settings import ServeSettings

    class NoTasks(dict):
        refused: dict[str, str] = {}  # noqa: RUF012

    bank: Any = NoTasks()
    api = build_app(bank, ServeSettings(".")).openapi()
    return "\n".join([*_routes(api["paths"]), *_schemas(api["components"]["schemas"])])


def _routes(paths: dict[str, Any]) -> Iterator[str]:
    for path, methods in paths.items():
        for method, route in methods.items():
            yield f"\n## {method.upper()} {path}\n"
            yield route.get("description") or route["summary"] + "."
            yield "\n| status | answer |\n| --- | --- |"
            for status, answer in route["responses"].items():
                yield _row([status, " ".join(answer["description"].split())])


def _schemas(schemas: dict[str, Any]) -> Iterator[str]:
    yield "\n## Types"
    for name, schema in schemas.items():
        yield f"\n### {name}\n\n{schema.get('description', '')}"
        if fields := schema.get("properties"):
            yield "\n| field | type | |\n| --- | --- | --- |"
            for field, how in fields.items():
                yield _row([f"`{field}`", _type(how), how.get("description", "")])


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return schema["$ref"].rpartition("/")[2]
    if options := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(_type(option) for option in options)
    kind = schema.get("type", "any")
    return f"list of {_type(schema['items'])}" if kind == "array" and "items" in schema else kind


# Errors.


def errors() -> str:
    """Every message that the source raises as a `PtuneError`, by package."""
    found: dict[str, set[str]] = defaultdict(set)
    for file in sorted(SOURCE.rglob("*.py")):
        part = file.relative_to(SOURCE).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "PtuneError" and node.args:
                message = _text(node.args[0])
                if len(re.sub(r"\W|…", "", message)) > 10:
                    found[part].add(message)
    lines = []
    for part, messages in found.items():
        lines.append(f"\n### {TOPICS.get(part, part.capitalize())}\n")
        lines += [f"- `` {message} ``" for message in sorted(messages)]
    return "\n".join(lines)


TOPICS = {
    "cli": "Command line",
    "data": "Files and datasets",
    "files": "Files that ptune writes",
    "peft": "ptune.peft",
    "errors": "Packages",
    "texts": "Texts",
    "model": "PromptModel",
    "serving": "Server",
}


def _text(node: ast.expr) -> str:
    """A message in the source, with … for what is filled in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(v) if isinstance(v, ast.Constant) else "…" for v in node.values)
    if isinstance(node, ast.BinOp):
        return _text(node.left) + _text(node.right)
    return "…"


# Docstrings that are completed when a module is imported (`ptune.training.declaration`).


class Completed(griffe.Extension):
    """Takes the docstrings of classes with settings from the imported module."""

    def on_class(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        """Replace the docstring of the source if it is a template."""
        if cls.docstring and "{settings}" in cls.docstring.value:
            found = getattr(importlib.import_module(cls.module.path), cls.name)
            cls.docstring.value = inspect.cleandoc(found.__doc__)
