"""The pages: links lead somewhere, commands parse, and code is that of the repository.

Commands are parsed with their options and presets, and not run: that is done by `test_typed_commands.py` and, for two
tutorials with their Python, by `test_tutorials.py`.
"""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer

from fedlab import registry, scaffold
from fedlab.cli.app import app
from fedlab.comparison.flower_plan import is_app, parse_values
from fedlab.comparison.spec import parse_strategies
from fedlab.config.presets import parse_overrides
from fedlab.errors import ConfigError
from fedlab.flower_apps.project import FlowerProject
from fedlab.registry import load_config, merge, read_any_preset

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
GUIDES = [page for page in PAGES if page.name != "CHANGELOG.md"]  # that one has commands of earlier versions
PLACEHOLDERS = {"...", "PRESET", "NAME"}


def anchors(page):
    """What a heading is called in an address, as GitHub makes it."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings_that_exist(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path) if path else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the words of every ``fedlab`` command of a page, its shell variables filled in."""
    text = page.read_text().replace("\\\n", "")
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL))
    phrases = re.findall(r"`(fedlab [^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    variables: dict[str, str] = {}
    for line in (*blocks.splitlines(), *phrases):
        if assigned := re.match(r"(\w+)=(\S+)(?: +#|$)", line):
            variables[assigned[1]] = assigned[2]
        found = re.search(r"(?:^|[ /(])fedlab ((?!data\b|\.\.\.)[a-z].*)", line)
        if found:
            filled = re.sub(r"\$(\w+)", lambda match: variables.get(match[1], match[0]), found[1])
            words = shlex.split(filled, comments=True)
            end = next((place for place, word in enumerate(words) if word in ("&&", "|", "&")), len(words))
            yield [word.rstrip(",;)") for word in words[:end]]


def check_command(words: list[str]) -> None:
    """Raise if a command, its flags, its preset or one of its options does not exist, or a value is refused."""
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group)
    if len(words) == 1 or PLACEHOLDERS & set(words):
        assert words[0] in group.commands
        return
    runs = words[0] in ("run", "compare", "serve")
    try:
        given = group.commands[words[0]].make_context(words[0], words[1:]).params
    except click.MissingParameter:
        if runs:
            raise
    if not runs:  # prose may leave arguments out
        return
    preset, overrides = given["preset"], parse_overrides(given["overrides"] or [])
    if words[0] != "compare":
        load_config(preset, {key: value for key, value in overrides.items() if value != "FOLDER"})
        return
    if is_app(preset):
        parse_values(FlowerProject.read(preset), overrides)
        return
    usual = str(read_any_preset(preset)[1]["strategy"])
    tried = [{"strategy": variant.name} for variant in parse_strategies(given["strategies"] or usual)]
    for key, value in overrides.items():
        refused = []
        for strategy in tried:
            try:
                merge(preset, {**strategy, key: value})
            except ConfigError as error:
                refused.append(error)
        if len(refused) == len(tried):
            raise refused[0]


@pytest.fixture
def plugins(tmp_path, monkeypatch):
    """The packages that the guides write are installed, and the modules of examples/ can be imported."""
    for kind, name in (("workload", "my_task"), ("strategy", "my_algorithm")):
        scaffold.write_package(kind, name, tmp_path)
        project = tomllib.loads((tmp_path / name / "pyproject.toml").read_text())["project"]
        installed = tmp_path / f"{name}-0.1.0.dist-info"
        installed.mkdir()
        (installed / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n")
        groups = project["entry-points"].items()
        rows = [
            f"[{group}]\n" + "".join(f"{key} = {path}\n" for key, path in points.items()) for group, points in groups
        ]
        (installed / "entry_points.txt").write_text("\n".join(rows))
    registry.forget()
    monkeypatch.setattr(
        sys, "path", [*sys.path, *map(str, (tmp_path, tmp_path / "my_task", tmp_path / "my_algorithm"))]
    )
    monkeypatch.chdir(ROOT / "examples")
    yield tmp_path
    registry.forget()
    for name in ("my_task", "my_algorithm", *(path.stem for path in (ROOT / "examples").iterdir())):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)
def test_commands_parse(page, plugins):
    for words in commands(page):
        try:
            check_command(words)
        except (ConfigError, click.UsageError) as error:
            pytest.fail(f"fedlab {shlex.join(words)}: {getattr(error, 'message', error)}")


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)
def test_what_the_python_of_a_page_imports_is_there(page, plugins):
    """Compile the page's Python, and look up what it imports and asks of imported modules; nothing of it is run."""
    for text in re.findall(r"^```python[^\n]*\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
        if text.startswith("--8<--"):
            continue
        tree, modules = ast.parse(text), {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                modules |= {alias.asname or alias.name: importlib.import_module(alias.name) for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module != "__future__":
                module = importlib.import_module(str(node.module))
                found = {alias.asname or alias.name: getattr(module, alias.name, None) for alias in node.names}
                for name, value in found.items():
                    found[name] = importlib.import_module(f"{node.module}.{name}") if value is None else value
                modules |= found
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
                assert hasattr(modules[node.value.id], node.attr), f"{node.value.id}.{node.attr}"


@pytest.mark.parametrize(
    "line", ["run dualadapt-digit", "run dualadapt-digits nonsense=1", "run dualadapt-digits --keeping 1", "nock here"]
)
def test_a_wrong_command_is_found(line):
    with pytest.raises((ConfigError, click.UsageError, KeyError)):
        check_command(shlex.split(line))


@pytest.mark.parametrize(("page", "name"), [("own-workload", "my_task"), ("own-strategy", "my_algorithm")])
def test_a_guide_shows_what_fedlab_new_writes(page, name, plugins):
    text = (ROOT / "docs" / "how-to" / f"{page}.md").read_text()
    for path in (plugins / name).iterdir():
        assert path.suffix not in (".py", ".toml") or path.read_text().rstrip() in text, path.name


@pytest.mark.parametrize("page", ["own-workload", "own-strategy"])
def test_a_guide_includes_the_examples(page):
    included = re.findall(r'^--8<-- "(.+)"$', (ROOT / "docs" / "how-to" / f"{page}.md").read_text(), re.MULTILINE)
    assert included
    assert all((ROOT / path).is_file() for path in included)
