"""Docstrings follow numpydoc: a first word that says something, shapes of tensors, and a section of errors raised.

``python tests/test_docstrings.py`` lists every offender.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("fedlab", "server", "client", "strategies")
WITH_SHAPES = tuple(f"fedlab/{package}/" for package in ("models", "losses", "diffusion", "data", "evaluation"))
VAGUE = re.compile(r"(?:Of|As|What|Who|Whose|Whether|How|Nobody|Nothing|Take|Tell|Say)\b")
RAISES = re.compile(r"^\s*Raises\n\s*-{3,}$", re.MULTILINE)
SHAPE = re.compile(r"\(|\b([Ss]calar|shapes?)\b")
SHORTEST = 15  # characters: "Scalar margin." is too little, "Mean cross-entropy." says all

PATHS = {
    path.relative_to(ROOT).as_posix(): path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))
}
Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def tree_of(name: str) -> ast.Module:
    """A module, parsed; not before a test asks, as each of the workers collects all tests."""
    return ast.parse(PATHS[name].read_text(encoding="utf-8"))


def names_in(node: ast.AST) -> set[str]:
    """Names and last parts of attributes anywhere in a node; annotations in quotes are read too."""
    found = {part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)}
    found |= {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
    texts = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str)]
    return found | {word for text in texts for word in re.findall(r"\w+", text)}


@cache
def errors() -> set[str]:
    """FedlabError and every class of the package that derives from it."""
    classes = [node for name in PATHS for node in ast.walk(tree_of(name)) if isinstance(node, ast.ClassDef)]
    known = {"FedlabError"}
    while more := {node.name for node in classes if {name for b in node.bases for name in names_in(b)} & known} - known:
        known |= more
    return known


def own_statements(node: ast.AST) -> Iterator[ast.AST]:
    """Everything inside a function but what its inner functions and classes hold."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, Function | ast.ClassDef | ast.Lambda):
            yield child
            yield from own_statements(child)


def raised(function: Function) -> set[str]:
    """Errors of fedlab that a function raises itself."""
    statements = [node for node in own_statements(function) if isinstance(node, ast.Raise) and node.exc]
    called = [node.exc.func if isinstance(node.exc, ast.Call) else node.exc for node in statements]
    return {name for node in called for name in names_in(node)} & errors()


def takes_tensors(function: Function) -> bool:
    """True if an argument or the result is annotated with Tensor; a mapping of them is a state, which has no shape."""
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    notes = [note for note in (*(argument.annotation for argument in arguments), function.returns) if note]
    return any("Tensor" in names_in(note) and not names_in(note) & {"Mapping", "dict"} for note in notes)


def documented(node: ast.AST, name: str = "", public: bool = True, outer: str = "") -> Iterator[tuple]:
    """Every node with a docstring: dotted name, the node, its text, that of the class around it, whether public."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function | ast.ClassDef):
            inner, is_public = f"{name}{child.name}", public and not child.name.startswith("_")
            text = ast.get_docstring(child) or ""
            if text:
                yield inner, child, text, outer, is_public
            is_class = isinstance(child, ast.ClassDef)
            yield from documented(child, f"{inner}.", is_public and is_class, text if is_class else "")


def offenses(name: str) -> list[str]:
    """Sentences about the docstrings of one module."""
    found = []
    tree = tree_of(name)
    if VAGUE.match(ast.get_docstring(tree) or ""):
        found.append(f"{name}: begins with a vague word")
    for inner, node, text, outer, public in documented(tree):
        where = f"{name}:{node.lineno} {inner}"
        if VAGUE.match(text):
            found.append(f"{where}: begins with {text.split()[0]!r}")
        if not public or not isinstance(node, Function):
            continue
        if len(text) < SHORTEST:
            found.append(f"{where}: {text!r} is too short")
        is_command = any("typer" in names_in(a.annotation) for a in node.args.args if a.annotation)  # shown by --help
        if raised(node) and not is_command and not RAISES.search(text):
            found.append(f"{where}: no section Raises, but raises {', '.join(sorted(raised(node)))}")
        shapes = text + (outer if node.name == "forward" else "")
        if name.startswith(WITH_SHAPES) and takes_tensors(node) and not SHAPE.search(shapes):
            found.append(f"{where}: no shape of its tensors, as (batch, classes)")
    return found


@pytest.mark.parametrize("name", sorted(PATHS))
def test_docstrings_say_what_a_reader_needs(name):
    assert offenses(name) == []


if __name__ == "__main__":
    listed = [line for name in PATHS for line in offenses(name)]
    print(*listed, f"{len(listed)} docstrings in {len({line.partition(':')[0] for line in listed})} modules", sep="\n")
