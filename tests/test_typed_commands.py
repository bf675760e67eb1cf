"""Every shell command of README.md and docs/ is typed, made small by further options, or has a reason that is checked.

All pages are typed in one folder, in the order of `doc_commands.PAGES`, so that a page finds the runs of others.
The two tutorials that are typed in their own order, with their Python, are in `tests/test_tutorials.py`.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import math
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from doc_commands import PAGES, ROOT, Line, lines, shrunk
from fedlab import launch
from fedlab.cli.app import app
from fedlab.comparison import spec
from fedlab.comparison.flower_plan import is_app
from fedlab.config.presets import parse_overrides

# Pages whose commands take long even when they are made small: `make test-commands`.
LONG = ("comparison", "diffusion", "graphnvp", "mixer", "mpgvae", "score", "segmentation", "startup")
TUTORIALS = ("first-simulation", "first-comparison")
MOST_VARIANTS = 3  # of a comparison that is run; a larger one is a measurement, whose options `test_docs.py` resolves


def covered(path: str) -> Callable[[Line], bool]:
    return lambda line: (ROOT / "tests" / path).exists()


def is_a_target(line: Line) -> bool:
    makefile = (ROOT / "Makefile").read_text()
    return all(re.search(rf"^{name}:", makefile, re.MULTILINE) for name in re.findall(r"make (\w+)", line.text))


def names_extras(line: Line) -> bool:
    extras = re.findall(r"\[([\w,]+)\]", line.text)
    return all(f"\n{name} = [" in (ROOT / "pyproject.toml").read_text() for part in extras for name in part.split(","))


def starts(line: Line) -> bool:
    """A benchmark takes the arguments, or a script is there; neither is run."""
    words = shlex.split(line.text.partition("python ")[2], comments=True)
    if words[0] != "-m":
        return (ROOT / words[0]).is_file()
    if words[1] == "pytest":
        return True
    path = ROOT / (words[1].replace(".", "/") + ".py")
    path = path if path.is_file() else path.with_suffix("") / "__main__.py"
    parse = argparse.ArgumentParser.parse_args

    def only_parse(parser, *arguments):
        parse(parser, *arguments)
        raise SystemExit(0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(path), *words[2:]])
        patch.setattr(argparse.ArgumentParser, "parse_args", only_parse)
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(path), run_name="__main__")
    return not end.value.code


# Presets whose every command is run; of others the first one of each strategy, and the rest is checked as before a run.
CHEAP = ("dualadapt-digits", "source-only-digits", "self-training-digits", "oracle-digits", "fedavg-digits")
FEWER = {"FILES": "scan.png", "rounds=20": "rounds=2", "rounds=50": "rounds=3"}

# What is not typed: a pattern, the reason, and a check that the reason holds.
REASONS: list[tuple[str, str, Callable[[Line], bool]]] = [
    (
        r"python3 -m venv|^(\.venv/bin/|/opt/fedlab/bin/)?pip install|^source |^apt-get ",
        "installs packages",
        names_extras,
    ),
    (r"^make ", "installs packages", is_a_target),
    (r"^git clone", "needs the network", covered("fedlab/flower_apps")),
    (r"^tensorboard ", "starts a server", covered("fedlab/trackers/test_tensorboard.py")),
    (r"python -m |python scripts/", "takes minutes to hours", starts),
    (r"^pytest -m gpu", "needs a GPU", covered("benchmarks/gpu")),
    (r"^docker compose|^export FEDLAB_TORCH_INDEX", "needs Docker", covered("test_compose.py")),
    (
        r"^useradd|^/opt|^install |^chown|^printf|^cp |^system|^journal",
        "changes a machine",
        covered("test_service.py"),
    ),
    (r"^flower-|^flwr |FLWR_HOME|flwr run", "starts processes", covered("fedlab/engines/test_plain_flower.py")),
    (r"^fedlab (serve|join|ping)|clients/\w+ |served", "is a deployment", covered("fedlab/engines/test_grpc.py")),
    (r"--on |ray\.address|SBATCH", "needs a cluster", covered("fedlab/comparison/cluster")),
    (r"engine[= ]ray", "starts processes", covered("fedlab/engines/test_ray.py")),
    (
        r"device=cuda|clients_per_gpu|(graphnvp|mpgvae)-\w+-paper|^fedlab run \w+-cifar10",
        "needs a GPU",
        covered("benchmarks/gpu"),
    ),
    (r"(FOLDER|DATA|/path/to)\b", "needs data of yours", covered("fedlab/workloads/test_image_folder.py")),
    (r"strategy=my_algorithm|fedavg,my_algorithm", "needs it installed", covered("fedlab/test_scaffold.py")),
    (r"^fedlab doctor", "takes seconds", covered("fedlab/test_doctor.py")),
    (r"^fedlab flower", "takes somebody's app", covered("fedlab/flower_apps")),
    (r"track=", "needs a tracker", covered("fedlab/trackers")),
]


def triples(letters: str) -> list[tuple[str, ...]]:
    return list(itertools.product(letters, repeat=3))


class Typist:
    """Types commands in one folder; what was typed once is not typed again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.typed, self.run = folder, set[tuple[str, ...]](), set[str]()
        shutil.copytree(ROOT / "examples", folder / "examples")
        for name in ("scan.png", "scans/1.png", "more/2.png", "drawings/3.png"):
            (folder / name).parent.mkdir(exist_ok=True)
            Image.new("RGB", (32, 32), "white").save(folder / name)
        rings = ("".join(["C1", *ring, "C1", *end]) for ring in triples("CNO") for end in triples("CNO"))
        (folder / "mine.smi").write_text("\n".join(itertools.islice(rings, 300)))

    def type(self, line: Line) -> str:
        """Type a command; return why it failed or has no reason, "" otherwise."""
        for pattern, reason, holds in REASONS:
            if re.search(pattern, line.text):
                return "" if holds(line) else f"not typed because it {reason}, which is not so"
        words = shlex.split(line.text.removeprefix(".venv/bin/"), comments=True)
        end = next((at for at, word in enumerate(words) if word in ("|", ">")), len(words))
        words = [FEWER.get(word, word) for word in words[:end] if word != "time"]
        if words[0] in ("ls", "grep"):
            return ""
        if words[0] != "fedlab":
            return "is neither fedlab nor has a reason"
        return self._fedlab(words[1:], line.variables)

    def _fedlab(self, words: list[str], variables: tuple[str, ...]) -> str:
        if words[0] in ("run", "compare") and not is_app(words[1]):
            words = shrunk(words)
        if words[0] == "compare":
            if variants(words) > MOST_VARIANTS:
                return ""
            words += ["--seeds", "1", "--jobs", "1"]
        words += ["--force"] if words[0] == "certs" else []
        if tuple(words) in self.typed:
            return ""
        self.typed.add(tuple(words))
        kind = " ".join([*words[1:2], *(word for word in words if word.startswith("strategy="))])
        if words[0] == "run" and kind in self.run and not kind.startswith(CHEAP):
            launch.prepare(words[1], parse_overrides([word for word in words[2:] if re.match(r"[\w.]+=", word)]))
            return ""
        if words[0] == "run":
            self.run.add(kind)
        result = CliRunner().invoke(app, words)
        if "FEDLAB_DATA=..." in variables and "FEDLAB_DATA" in result.stderr:
            return ""  # a set that does not ship, not even in part: the command says where it is looked for
        return "" if result.exit_code == 0 else f"{shlex.join(words)}\n{result.output}\n{result.stderr}"


def variants(words: list[str]) -> int:
    """The number of cells of one seed of `fedlab compare`."""
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group)
    given = group.commands["compare"].make_context("compare", words[1:]).params
    if is_app(given["preset"]):
        return MOST_VARIANTS + 1  # an app runs its own rounds
    values = spec.parse_options(parse_overrides(given["overrides"] or []), spec.sections_of(given["preset"]))
    return len(spec.parse_strategies(given["strategies"])) * math.prod(len(each) for each in values.values())


@pytest.fixture(scope="module")
def typist(tmp_path_factory):
    """One who types; what pages let this process import is forgotten afterwards."""
    search_path, folder = sys.path.copy(), tmp_path_factory.mktemp("typed")
    yield Typist(folder)
    sys.path[:] = search_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(folder)):
            del sys.modules[name]
    importlib.invalidate_caches()


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.stem, marks=pytest.mark.typed if page.stem in LONG else pytest.mark.engine)
        for page in PAGES
        if page.stem not in TUTORIALS
    ],
)
def test_every_command_is_typed_or_has_a_reason(page, typist, monkeypatch):
    block = -1
    for line in lines(page):
        if line.block != block:
            block = line.block
            monkeypatch.chdir(typist.folder)
        if line.words and line.words[0] == "cd":
            monkeypatch.chdir(typist.folder / line.words[1])
            continue
        failed = typist.type(line)
        assert not failed, f"{line.text}\n{failed}"
