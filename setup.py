"""Build script; all but the description is in ``pyproject.toml``.

A package index shows README.md as the description, and there a link to another file of the repository leads nowhere. So
the description has the file's path in its place, and no pictures.
"""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import setup


def description(text: str) -> str:
    """Return Markdown without links to files and without pictures that are files."""
    text = re.sub(r"!\[[^\]]*\]\((?!https?://)[^)]+\)\n*", "", text)
    return re.sub(r"\[([^\]]+)\]\((?!https?://)([^)]+)\)", lambda link: _named(link[1], link[2]), text)


def _named(words: str, path: str) -> str:
    file = path.partition("#")[0]
    return words if file.rstrip("/").startswith(words.rstrip("/")) else f"{words} (`{file}`)"


if __name__ == "__main__":
    readme = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
    setup(long_description=description(readme), long_description_content_type="text/markdown")
