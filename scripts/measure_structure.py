"""Print the size of the source tree and how its packages depend on each other: the figures of docs/architecture.md.

Run ``python scripts/measure_structure.py`` from anywhere; it imports nothing of fedlab.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("fedlab", "strategies", "server", "client")


def module_name(path: Path) -> str:
    """Return the import name of a file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "fedlab" else ("fedlab", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.Module, known: dict[str, Path]) -> Iterator[str]:
    """Yield the modules of ours that a source imports, those inside functions included; imports here are absolute."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield from [name for name in (f"{node.module}.{alias.name}", node.module or "") if name in known][:1]


class CodeOnly(ast.NodeTransformer):
    """Takes imports and docstrings out of a tree."""

    def generic_visit(self, node: ast.AST) -> ast.AST | None:  # type: ignore[override]
        """Return a node without them, or None for one that is an import or a docstring."""
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        return None if docstring or isinstance(node, ast.Import | ast.ImportFrom) else super().generic_visit(node)


def shared_lines(trees: dict[str, ast.Module], window: int = 5) -> int:
    """Count lines of code, in Python's own layout, that modules share in runs of at least ``window`` lines."""
    code = {
        name: [line.strip() for line in ast.unparse(CodeOnly().visit(tree)).split("\n")] for name, tree in trees.items()
    }
    code = {name: [line for line in lines if line] for name, lines in code.items()}
    places = defaultdict[tuple[str, ...], list[tuple[str, int]]](list)
    for name, lines in code.items():
        for start in range(len(lines) - window + 1):
            places[tuple(lines[start : start + window])].append((name, start))
    repeated = [found for found in places.values() if len({name for name, _ in found}) > 1]
    return len({(name, start + i) for found in repeated for name, start in found for i in range(window)})


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return circles of a graph, the arrow that closes each taken out before the next is looked for."""
    graph, found = {name: set(others) for name, others in graph.items()}, []
    while True:
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            found.append(error.args[1])
            graph[found[-1][1]].discard(found[-1][0])
        else:
            return found


def main() -> None:
    """Print modules, functions, packages, arrows and circles."""
    known = {module_name(path): path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))}
    texts = {name: path.read_text(encoding="utf-8") for name, path in known.items()}
    trees = {name: ast.parse(text) for name, text in texts.items()}
    lines = {name: len(text.splitlines()) for name, text in texts.items()}
    functions = {
        f"{name}.{node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
        for name, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    for title, sizes in (("modules", lines), ("functions", functions)):
        longest = max(sizes, key=sizes.__getitem__)
        print(f"{title}: {len(sizes)}, median {median(sizes.values()):g} lines, longest {sizes[longest]} ({longest})")
    modules = {name: set(imports(tree, known)) - {name} for name, tree in trees.items()}
    packages: dict[str, set[str]] = {}
    for name, others in modules.items():
        own, *rest = [".".join(other.split(".")[:2]) for other in (name, *sorted(others))]
        packages.setdefault(own, set()).update(set(rest) - {own})
    print(
        f"packages, and modules at the root: {len(packages)}; imports between them: {sum(map(len, packages.values()))}"
    )
    for title, graph in (("modules", modules), ("packages", packages)):
        print(
            f"circles of {title}: {len(found := circles(graph))}",
            *(" -> ".join(circle) for circle in found),
            sep="\n  ",
        )
    print(f"lines of code that modules share, 5 or more in a row: {shared_lines(trees)}")


if __name__ == "__main__":
    main()
