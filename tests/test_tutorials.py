"""The tutorials typed: their commands and their Python, in order, in an empty folder, made small by further options.

`tests/test_typed_commands.py` types those of all other pages, `tests/test_docs.py` parses the values of their options.
The processes of the first deployment are those of `tests/fedlab/engines/test_grpc.py` and `tests/fedlab/deploy`.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import fedlab
from commands import TINY
from fedlab.cli.app import app

TUTORIALS = Path(__file__).parents[1] / "docs" / "tutorials"
FEWER = {"--seeds 3": "--seeds 1", "--seeds 5": "--seeds 2", "rounds=10": "rounds=3", "_steps=100": "_steps=3"}

pytestmark = pytest.mark.engine


def blocks(page: str) -> list[tuple[str, str]]:
    """Languages and texts of a page's blocks of code."""
    text = (TUTORIALS / f"{page}.md").read_text(encoding="utf-8").replace("\\\n", "")
    return re.findall(r"^```(bash|python)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def small(line: str) -> list[str]:
    """The words of a command that is made small; options that it has itself stay."""
    for long, short in FEWER.items():
        line = line.replace(long, short)
    words = shlex.split(line, comments=True)[1:]
    if words[0] not in ("run", "compare"):
        return words
    named = {word.partition("=")[0] for word in words}
    one = {"digits.targets": "optdigits"} if words[0] == "compare" else {}
    few = [
        f"{key}={value}" for key, value in {**TINY, **one}.items() if key not in named and not _of_another(key, words)
    ]
    return [*words, *few, *(["--jobs", "1"] if words[0] == "compare" else [])]


def _of_another(option: str, words: list[str]) -> bool:
    unused: dict[str, tuple[str, ...]] = {
        "source-only-digits": ("dualadapt.", "client.", "source_free."),
        "dualadapt-digits-heads": ("source_free.",),
    }
    return option.startswith(unused.get(words[1], ()))


def test_the_python_of_the_first_deployment_writes_an_image(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (text,) = [text for language, text in blocks("first-deployment") if language == "python"]
    exec(compile(text, "first-deployment", "exec"), {})
    with Image.open("scan.png") as image:
        assert image.size == (32, 32)


def own_examples() -> dict[str, object]:
    """Names that a page takes to be a reader's own: a model, and examples of two clients and a server."""
    arrays = {f"x_{owner}": torch.randn(20, 4) for owner in "abs"} | {
        f"y_{owner}": torch.arange(20) % 3 for owner in "abs"
    }
    return {"MyNet": lambda: nn.Linear(4, 3), **arrays}


@pytest.mark.parametrize("page", ["first-simulation", "first-comparison"])
def test_a_tutorial_can_be_typed(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    typed = 0
    for language, text in blocks(page):
        if language == "python":
            for long in re.findall(r'fedlab\.run\("dualadapt-digits", ', text):
                text = text.replace(long, f"{long}overrides={ {k: v for k, v in TINY.items() if k != 'rounds'} }, ")
            exec(compile(text, page, "exec"), {"fedlab": fedlab, **own_examples()})
            continue
        for line in filter(lambda line: line.startswith("fedlab ") and "doctor" not in line, text.splitlines()):
            result = CliRunner().invoke(app, small(line))
            assert result.exit_code == 0, f"{line}\n{result.output}\n{result.stderr}"
            typed += 1
    assert typed >= 3
