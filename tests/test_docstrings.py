"""Docstrings follow numpydoc: a first word that says something, shapes of tensors, and a section of errors raised.

``python tests/test_docstrings.py`` lists every offender, those of excluded modules too.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("fedlab", "server", "client", "strategies")
WITH_SHAPES = tuple(f"fedlab/{package}/" for package in ("models", "losses", "diffusion", "data", "evaluation"))
VAGUE = re.compile(r"(?:Of|As|What|Who|Whose|Whether|How|Nobody|Nothing|Take|Tell|Say)\b")
RAISES = re.compile(r"^\s*Raises\n\s*-{3,}$", re.MULTILINE)
SHAPE = re.compile(r"\(|\b([Ss]calar|shapes?)\b")
SHORTEST = 15  # characters: "Scalar margin." is too little, "Mean cross-entropy." says all

# Modules whose docstrings are still to be rewritten.
WAITING_LIST = """
client/app.py fedlab/cli/app.py fedlab/cli/deploy.py fedlab/cli/molecules.py fedlab/cli/predict.py
fedlab/comm/compression.py fedlab/comm/credentials.py fedlab/comm/grid.py fedlab/comm/roster.py
fedlab/comparison/cells.py fedlab/comparison/grid.py fedlab/comparison/progress.py fedlab/comparison/result.py
fedlab/comparison/runner.py fedlab/comparison/spec.py fedlab/comparison/statistics.py
fedlab/comparison/text_tables.py fedlab/comparison/workers.py fedlab/config/schema.py fedlab/data/dataset.py
fedlab/data/digits/datasets.py fedlab/data/digits/domains.py fedlab/data/digits/image_files.py
fedlab/data/digits/image_folder.py fedlab/data/digits/proxies.py fedlab/data/images/domain_suites.py
fedlab/data/images/image_sets.py fedlab/data/images/views.py fedlab/data/molecules/graphs.py
fedlab/data/molecules/ownership.py fedlab/data/molecules/scaffolds.py fedlab/data/molecules/smiles.py
fedlab/data/partitioners.py fedlab/deploy/client.py fedlab/deploy/client_log.py fedlab/diffusion/denoising.py
fedlab/diffusion/noise_schedule.py fedlab/diffusion/samplers.py fedlab/diffusion/sigmas.py fedlab/doctor.py
fedlab/engines/flower_internals.py fedlab/engines/grpc.py fedlab/engines/inprocess.py
fedlab/engines/processes.py fedlab/engines/ray.py fedlab/engines/superlink.py fedlab/evaluation/image_grids.py
fedlab/evaluation/image_quality.py fedlab/evaluation/molecules.py fedlab/inference/latent_space.py
fedlab/inference/predict.py fedlab/launch.py fedlab/losses/adversarial.py fedlab/losses/soft_labels.py
fedlab/models/batchnorm_stats.py fedlab/models/gaussian_mixture.py fedlab/models/graph_generator.py
fedlab/models/graphnvp.py fedlab/models/message_passing.py fedlab/models/mixer.py fedlab/models/mpgvae.py
fedlab/models/refinenet.py fedlab/models/unet.py fedlab/report/charts.py fedlab/report/client_panels.py
fedlab/report/client_plots.py fedlab/report/commands.py fedlab/comparison/page.py
fedlab/report/comparison_tables.py fedlab/report/confusions.py fedlab/report/partition_table.py
fedlab/report/plots.py fedlab/report/run_tables.py fedlab/report/samples.py fedlab/runs/client_store.py
fedlab/runs/directory.py fedlab/runs/progress.py fedlab/runs/result.py server/app.py server/budget.py
strategies/aggregation/__init__.py strategies/aggregation/client.py strategies/aggregation/fairness.py
strategies/aggregation/privacy.py strategies/aggregation/robust.py strategies/aggregation/rule.py
strategies/aggregation/server_optimizers.py
"""
EXCLUDED = frozenset(WAITING_LIST.split())

PATHS = {
    path.relative_to(ROOT).as_posix(): path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in PATHS.items()}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def names_in(node: ast.AST) -> set[str]:
    """Names and last parts of attributes anywhere in a node; annotations in quotes are read too."""
    found = {part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)}
    found |= {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
    texts = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str)]
    return found | {word for text in texts for word in re.findall(r"\w+", text)}


def errors() -> set[str]:
    """FedlabError and every class of the package that derives from it."""
    classes = [node for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    known = {"FedlabError"}
    while more := {node.name for node in classes if {name for b in node.bases for name in names_in(b)} & known} - known:
        known |= more
    return known


ERRORS = errors()


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
    return {name for node in called for name in names_in(node)} & ERRORS


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
    tree = TREES[name]
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
        is_command = any("command" in names_in(decorator) for decorator in node.decorator_list)  # shown by --help
        if raised(node) and not is_command and not RAISES.search(text):
            found.append(f"{where}: no section Raises, but raises {', '.join(sorted(raised(node)))}")
        shapes = text + (outer if node.name == "forward" else "")
        if name.startswith(WITH_SHAPES) and takes_tensors(node) and not SHAPE.search(shapes):
            found.append(f"{where}: no shape of its tensors, as (batch, classes)")
    return found


@pytest.mark.parametrize("name", sorted(PATHS.keys() - EXCLUDED))
def test_docstrings_say_what_a_reader_needs(name):
    assert offenses(name) == []


def test_the_excluded_modules_are_counted():
    print(f"{len(EXCLUDED & PATHS.keys())} of {len(PATHS)} modules are excluded")


if __name__ == "__main__":
    listed = [line for name in PATHS for line in offenses(name)]
    print(*listed, f"{len(listed)} docstrings in {len({line.partition(':')[0] for line in listed})} modules", sep="\n")
