"""The shape of `src/ptune`: modules, levels, cycles, and the largest functions and classes.

`make structure` prints it; `test_architecture.py` holds it to the rules of ARCHITECTURE.md.
"""

import ast
from collections import defaultdict
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import grimp

# The package that Python finds, so that an older checkout can be measured too (PYTHONPATH).
SOURCE = Path(find_spec("ptune").origin).parent


@dataclass(frozen=True)
class Size:
    """How large a function or class is."""

    where: str  # file:name
    size: int


def files():
    return sorted(SOURCE.rglob("*.py"))


def _definitions(node, path=()):
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield (*path, child.name), child
            yield from _definitions(child, (*path, child.name))
        else:
            yield from _definitions(child, path)


def definitions():
    """Every function and class: (where, node)."""
    for file in files():
        for path, node in _definitions(ast.parse(file.read_text("utf-8"))):
            yield f"{file.relative_to(SOURCE)}:{'.'.join(path)}", node


def function_lengths():
    """Lines of each function from `def` to its end, without the docstring."""
    for where, node in definitions():
        if isinstance(node, ast.ClassDef):
            continue
        lines = node.end_lineno - node.lineno + 1
        if ast.get_docstring(node) is not None:
            docstring = node.body[0]
            lines -= docstring.end_lineno - docstring.lineno + 1
        yield Size(where, lines)


def class_sizes():
    """Public methods and properties that each class defines."""
    for where, node in definitions():
        if isinstance(node, ast.ClassDef):
            names = {
                n.name
                for n in node.body
                if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)
                and not n.name.startswith("_")
            }
            yield Size(where, len(names))


def top_level_modules():
    return sorted(f.stem for f in SOURCE.glob("*.py"))


def imports():
    """Which module imports which: {importer: {imported}}, without the names of `ptune` itself."""
    graph = grimp.build_graph("ptune", cache_dir=None)
    found = {}
    for module in sorted(graph.modules - {"ptune"}):
        found[module] = set(graph.find_modules_directly_imported_by(module)) - {"ptune"}
    return found


def cycles(graph):
    """Groups of modules that import each other, largest first (strongly connected, Tarjan)."""
    number, low, stack, groups = {}, {}, [], []

    def visit(module):
        number[module] = low[module] = len(number)
        stack.append(module)
        for other in sorted(graph[module]):
            if other not in number:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], number[other])
        if low[module] == number[module]:
            group = []
            while not group or group[-1] != module:
                group.append(stack.pop())
            groups.append(sorted(group))

    for module in graph:
        if module not in number:
            visit(module)
    return sorted((g for g in groups if len(g) > 1), key=len, reverse=True)


def levels(graph):
    """The longest chain of imports, counted in modules; a cycle counts once."""
    group_of = {m: tuple(g) for g in cycles(graph) for m in g}
    below = defaultdict(set)
    for module, imported in graph.items():
        own = group_of.get(module, (module,))
        below[own] |= {group_of.get(m, (m,)) for m in imported} - {own}
    depth = {}

    def depth_of(group):
        if group not in depth:
            depth[group] = 1 + max(map(depth_of, below[group]), default=0)
        return depth[group]

    return max(map(depth_of, list(below)))


def main():
    graph = imports()
    lines = sum(len(f.read_text("utf-8").splitlines()) for f in files())
    groups = cycles(graph)
    rows = [
        ("lines of Python", lines),
        ("modules", len(files())),
        ("modules at the top level", len(top_level_modules())),
        ("packages", sum(1 for f in SOURCE.iterdir() if (f / "__init__.py").is_file())),
        ("imports between modules", sum(map(len, graph.values()))),
        ("levels", levels(graph)),
        ("cycles", len(groups)),
    ]
    for name, number in rows:
        print(f"{number:7,}  {name}")
    for group in groups:
        print(f"{'':7}  cycle: {', '.join(group)}")
    for title, sizes in (
        ("lines", function_lengths()),
        ("public methods", class_sizes()),
    ):
        print(f"\nLargest, in {title}:")
        for size in sorted(sizes, key=lambda s: -s.size)[:10]:
            print(f"{size.size:7,}  {size.where}")


if __name__ == "__main__":
    main()
