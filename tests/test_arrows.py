"""Who may import whom: the arrows of docs/architecture.md, read from the sources."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import get_args

import pytest

from fedlab.metrics import COMMON_METRICS, COMMON_PHASES
from fedlab.registry import ENGINES, STRATEGIES, WORKLOADS, find, names

ROOT = Path(__file__).parents[1]
FOLDERS = ("server", "client", "strategies", "fedlab")
OURS = ("fedlab",)


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "fedlab" else ("fedlab", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for name in FOLDERS for path in sorted((ROOT / name).rglob("*.py"))}
NOT_OURS_TO_BE_PURE = (
    "flwr",
    "ray",
    "fedlab.config",
    "fedlab.runs.directory",
    "fedlab.data.digits.datasets",
    "fedlab.data.download",
)
FILES = ("pathlib", "os", "io", "shutil", "tomllib", "tempfile")


def imported(source, module, is_package=False):
    """Absolute names of every module that a source imports, anywhere in it; ``from a import b`` gives a and a.b."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".")[: None if is_package else -1]
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            names |= {origin, *(f"{origin}.{alias.name}" for alias in node.names)}
    return names


def is_below(name, *packages):
    return any(name == package or name.startswith(f"{package}.") for package in packages)


@cache
def imports_of(name):
    """Modules that a module imports; not read before a test asks, as each of the workers collects all tests."""
    path = MODULES[name]
    return imported(path.read_text(encoding="utf-8"), name, path.name == "__init__.py")


def arrows(*packages):
    """Which of our modules import one of the packages."""
    return {module for module in MODULES if any(is_below(name, *packages) for name in imports_of(module))}


def below(*packages):
    return {module for module in MODULES if is_below(module, *packages)}


def test_the_reader_of_imports_finds_every_kind():
    source = (
        "import a.b as c\nfrom d import e\nfrom . import f\nfrom ..g import h\n"
        "def late():\n    from i.j import k\nif TYPE_CHECKING:\n    import l\n"
    )
    names = imported(source, "fedlab.x.y")
    assert names == {"a.b", "d", "d.e", "fedlab.x", "fedlab.x.f", "fedlab.g", "fedlab.g.h", "i.j", "i.j.k", "l"}
    assert imported("from . import f", "fedlab.x", is_package=True) == {"fedlab.x", "fedlab.x.f"}


def test_the_sources_were_found():
    assert {
        "fedlab.models.gaussian_mixture",
        "fedlab.strategies.fedavg",
        "fedlab.server.app",
        "fedlab.client.app",
        "fedlab.engines",
    } <= set(MODULES)
    assert arrows("torch") and arrows("flwr")


def test_server_and_client_never_import_each_other_and_nobody_imports_them():
    assert arrows("fedlab.server") <= below("fedlab.server") | {"fedlab.cli.app", "fedlab.launch"}
    assert arrows("fedlab.client") <= below("fedlab.client") | {"fedlab.cli.app", "fedlab.launch"}


def test_fedlab_does_not_know_the_strategies():
    composing = {
        "fedlab.registry",
        "fedlab.cli.catalog",
        "fedlab.inference.predict",
        "fedlab.testing",
        "fedlab.comparison.grid",
        "fedlab.comparison.spec",
    }
    assert arrows("fedlab.strategies") <= below("fedlab.server", "fedlab.client", "fedlab.strategies") | composing


def test_flower_stays_at_the_edges():
    edges = below("fedlab.server", "fedlab.client", "fedlab.strategies", "fedlab.engines", "fedlab.flower_apps")
    assert arrows("flwr") <= edges | {
        "fedlab.comm.roster",
        "fedlab.comm.grid",
        "fedlab.comm.messages",
        "fedlab.comm.replies",
        "fedlab.comm.stacked_replies",
        "fedlab.comm.compression",
        "fedlab.comm.tensors",
        "fedlab.comm.wrapped_grid",
        "fedlab.doctor",
        "fedlab.testing",
    }
    assert arrows("ray") <= below("fedlab.engines") | {"fedlab.doctor", "fedlab.comparison.cluster.ray_driver"}


@pytest.mark.parametrize(
    "package", ["fedlab.models", "fedlab.losses", "fedlab.models.gaussian_mixture", "fedlab.diffusion"]
)
def test_models_losses_mixtures_and_diffusion_are_plain_torch(package):
    modules = below(package)
    assert modules
    assert not modules & arrows(*NOT_OURS_TO_BE_PURE, *FILES)
    for module in modules:
        allowed = (
            package,
            "fedlab.models",
            "fedlab.losses",
            "fedlab.models.gaussian_mixture",
            "fedlab.data.dataset",
            "fedlab.errors",
        )
        assert {name for name in imports_of(module) if is_below(name, *OURS)} <= {
            name for name in imports_of(module) if is_below(name, *allowed)
        }


def test_a_workload_does_not_know_that_it_is_federated():
    workloads = below("fedlab.workloads")
    assert not workloads & arrows(
        "flwr", "fedlab.engines", "fedlab.comm.roster", "fedlab.runs.directory", "fedlab.launch"
    )


KINDS_OF_DATA = {"oracle", "scaffold"}  # a part that has its labels, and a way to divide molecules


def choices():
    """Values that workloads' own options choose from."""
    sections = [find("workload", name).spec.options for name in WORKLOADS]
    fields = [field for section in sections for field in section.__pydantic_fields__.values()]
    return {value for field in fields for value in get_args(field.annotation)}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_nobody_branches_on_the_name_of_a_system_strategy_or_engine(module):
    """No comparison with, and no membership of, a name of the tables; the tables themselves are dict displays."""
    engines = () if is_below(module, "fedlab.engines") else ENGINES  # there, "ray" is a package too
    names = {*WORKLOADS, *STRATEGIES, *engines}
    if is_below(module, "fedlab.workloads", "fedlab.data"):  # digits.client_labels=true is a way to hold data
        names -= {*choices(), *KINDS_OF_DATA}
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Compare):
            parts = [part for side in (node.left, *node.comparators) for part in ast.walk(side)]
            found = {part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)}
            assert not found & names, f"{module}:{node.lineno} compares with {found & names}"
        if isinstance(node, ast.MatchValue) and isinstance(node.value, ast.Constant):
            assert node.value.value not in names, f"{module}:{node.lineno}"


def declared_names():
    """Names of strategies, workloads and of all that they declare; of a pattern, what is before or behind its star."""
    specs = [find(kind, name).spec for kind in ("strategy", "workload") for name in names(kind)]
    found = {item.name.removeprefix("*_").strip("*") for spec in specs for item in (*spec.metrics, *spec.phases)}
    common = {item.name for item in (*COMMON_METRICS, *COMMON_PHASES)}
    return {name for name in {*found, *STRATEGIES, *WORKLOADS} - common if name}


# The side of a map that is no client's; the command of one workload; a folder.
ALLOWED = {
    "fedlab.report.client_plots": {"source"},
    "fedlab.cli.molecules": {"valid"},
    "fedlab.runs.directory": {"images"},
}


@pytest.mark.parametrize(
    "module", sorted(below("fedlab.runs", "fedlab.report", "fedlab.comparison", "fedlab.cli", "fedlab.metrics"))
)
def test_generic_modules_name_no_metric_predictor_strategy_or_workload(module):
    """What they know of names, the manifest of a run has declared."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    constants = {
        node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert not constants & declared_names() - ALLOWED.get(module, set())


def module_of(name):
    """The module of ours that a dotted name is in, as far as there is one."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name


def named_in_tables(source):
    """Modules that strings name as ``fedlab.package.module:attribute``, f-strings included: arrows of the tables."""
    constants = [node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)]
    return {
        name for text in constants if isinstance(text, str) for name in re.findall(r"fedlab(?:\.\w+)+(?=:\w)", text)
    }


def all_arrows():
    """Module to the modules that it imports, anywhere in it, or names in a table."""
    found = {}
    for module, path in MODULES.items():
        names = imports_of(module) | named_in_tables(path.read_text(encoding="utf-8"))
        targets = {module_of(name) for name in names if is_below(name, *OURS)}
        found[module] = targets - {module, "", "fedlab"}
    return found


def left_in_circles(arrows):
    """What is left of a graph once everything that leads nowhere is taken off, again and again."""
    rest = {node: set(targets) for node, targets in arrows.items()}
    while leaves := [node for node, targets in rest.items() if not targets & rest.keys()]:
        for node in leaves:
            del rest[node]
    return rest


def test_imports_go_round_in_no_circle():
    """Not even inside functions, for type hints, or through a table that names modules by their path."""
    assert not left_in_circles(all_arrows())


def test_packages_form_no_circle_either():
    """So every package has a place above all that it uses: there is no arrow upwards."""
    packages = {}
    for module, targets in all_arrows().items():
        package = ".".join(module.split(".")[:2])
        packages.setdefault(package, set()).update(".".join(target.split(".")[:2]) for target in targets)
    arrows = {package: targets - {package} for package, targets in packages.items()}
    assert not left_in_circles(arrows)


@pytest.mark.engine
def test_the_apps_start_without_what_few_runs_need():
    """A client is a process of its own, and what it imports is what its first answer waits for."""
    slow = ["scipy", "sklearn", "pandas", "matplotlib", "ray"]
    found = f"[name for name in {slow} if name in sys.modules]"
    code = f"import sys, fedlab.client.app, fedlab.server.app; sys.exit(str({found}))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert found.stderr.strip() == "[]"
