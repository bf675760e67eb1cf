"""Hooks of the documentation site: the API reference, the pages of the repository's root, links that leave ``docs/``.

``mkdocs.yml`` names this file. The API pages follow the package: a new module has its page without being listed here.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from textwrap import dedent
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "fedlab"
API = PurePosixPath("reference/api")
ROOT_PAGES = {"CONTRIBUTING.md": "Contributing", "CHANGELOG.md": "Changelog", "SECURITY.md": "Security"}

LINK = re.compile(r"(!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s#]+)(?P<anchor>#[^)\s]*)?\)")
DOCTEST = re.compile(r"(?:^ *>>> .*\n?)(?:^ *\S.*\n?)*", re.MULTILINE)
BLOCK = re.compile(r"^(Source|Departures|Metrics)\n((?: {4,}\S.*\n?)+)", re.MULTILINE)  # an indented text below a word
LIST = re.compile(r"^(?! *(?:\d+\.|[-*]) )( *\S.*\n)(?= *(?:1\.|[-*]) )", re.MULTILINE)
ROLE = re.compile(r":(?:py:)?(?:func|class|mod|meth|attr|data|exc):`~?(?P<name>[\w.]+)`")


def modules(folder: Path = PACKAGE, prefix: str = "fedlab") -> dict[str, Path]:
    """Return every public module below a package by its import name, packages before their modules."""
    found = {prefix: folder / "__init__.py"}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(("_", ".")):
            continue
        if (path / "__init__.py").is_file():
            found |= modules(path, f"{prefix}.{path.name}")
        elif path.suffix == ".py":
            found[f"{prefix}.{path.stem}"] = path
    return found


MODULES = modules()
PAGES = {path.resolve(): name for name, path in MODULES.items()}
PAGES |= {path.resolve().parent: name for path, name in PAGES.items() if path.name == "__init__.py"}


def is_package(name: str) -> bool:
    """True for the name of a package, False for that of a plain module."""
    return MODULES[name].name == "__init__.py"


def page_of(name: str) -> str:
    """Return where a module's page lies below ``docs/``."""
    parts = name.split(".")[1:]
    return str(API.joinpath(*parts, "index.md") if is_package(name) else API.joinpath(*parts[:-1], f"{parts[-1]}.md"))


def navigation(package: str) -> list[Any]:
    """Return the entries of a package: its own page, then its modules and packages."""
    below = [name for name in MODULES if name.rpartition(".")[0] == package]
    inner = [{name.rpartition(".")[2]: navigation(name) if is_package(name) else page_of(name)} for name in below]
    return [page_of(package), *inner]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the API reference and the root's pages to the navigation."""
    assert config.nav is not None
    for entry in config.nav:
        if "Reference" in entry:
            entry["Reference"].append({"API": navigation("fedlab")})
    config.nav.append({"Project": [{title: name.lower()} for name, title in ROOT_PAGES.items()]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each module and for each of the root's pages."""
    for name in MODULES:
        options = "\n    options:\n      show_submodules: false\n" if is_package(name) else "\n"
        files.append(File.generated(config, page_of(name), content=f"::: {name}{options}"))
    for name in ROOT_PAGES:
        files.append(File.generated(config, name.lower(), content=(ROOT / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links to files outside ``docs/`` at their page of the site, and leave the text where they have none."""
    here = PurePosixPath(page.file.src_uri)
    origins = {name.lower(): name for name in ROOT_PAGES}
    source = ROOT / origins[str(here)] if str(here) in origins else ROOT / "docs" / here

    def replaced(match: re.Match[str]) -> str:
        target = match["target"]
        if "://" in target or target.startswith("mailto:"):
            return match[0]
        path = (source.parent / target).resolve()
        if path.is_relative_to(ROOT / "docs"):
            page = path.relative_to(ROOT / "docs").as_posix()
        elif path.name in ROOT_PAGES and path.parent == ROOT:
            page = path.name.lower()
        elif path in PAGES:
            page = page_of(PAGES[path])
        else:
            return match["text"]
        link = os.path.relpath(page, here.parent)
        return f"{match[1]}[{match['text']}]({link}{match['anchor'] or ''})"

    return LINK.sub(replaced, markdown)


class PlainDocstrings(griffe.Extension):
    """Make Markdown of docstrings: of roles as ``:func:`run```, doctests, indented blocks, lists after a sentence."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Rewrite the docstrings of a package once all of it is loaded."""
        self._visit(pkg)

    def _visit(self, node: griffe.Object) -> None:
        if node.docstring:
            text = BLOCK.sub(lambda match: f"**{match[1]}**\n\n{dedent(match[2])}", node.docstring.value)
            text = LIST.sub(r"\1\n", text)
            text = ROLE.sub(lambda match: _reference(node, match["name"]), text)
            node.docstring.value = DOCTEST.sub(lambda match: f"```pycon\n{match[0].rstrip()}\n```\n", text)
        for member in node.members.values():
            if isinstance(member, griffe.Object):
                self._visit(member)


def _reference(node: griffe.Object, name: str) -> str:
    """Return a link to a public object, or its name in code where the site has no entry for it."""
    try:
        target = node.modules_collection[name if name.startswith("fedlab.") else node.resolve(name)]
    except (KeyError, griffe.NameResolutionError):
        return f"`{name}`"
    is_shown = target.has_docstring and not target.is_private
    return f"[`{name}`][{target.canonical_path}]" if is_shown else f"`{name}`"
