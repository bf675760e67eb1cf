"""The shell commands of the pages, line by line."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.tiny import LIGHT, SHORT, TINY_DATA
from fedlab.registry import read_any_preset

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
ALWAYS = {*SHORT, "client.epochs", "data.num_clients", "server.lr_warmup_rounds", "client.lr_warmup_rounds"}  # replaced
# What shortens a method whose steps are its own, or need more than one step.
METHODS = {"source_free": "source_free.steps=1", "shot": "shot.epochs=0.1", "fed_mcd": "client.steps=6"}


@dataclass(frozen=True)
class Line:
    """A command with its shell variables filled in, and what is set for it; those of one block share a folder."""

    page: str
    block: float
    text: str
    variables: tuple[str, ...] = ()

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text, comments=True)


def lines(page: Path) -> Iterator[Line]:
    """Yield the commands of a page; a block that is a script or writes a file is one command."""
    text, name = page.read_text(encoding="utf-8").replace("\\\n", ""), str(page.relative_to(ROOT))
    found = re.findall(r"^```(?:bash|sh|shell|console)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    for number, block in enumerate(found):
        if block.startswith("#!") or "<<" in block:
            yield Line(name, number, block)
            continue
        known: dict[str, str] = {}
        for line in block.splitlines():
            if not line.strip() or line.startswith("#"):
                continue
            if assigned := re.fullmatch(r"(\w+)=(\S+|\"[^\"]*\")(?: +#.*)?", line):
                known[assigned[1]] = assigned[2].strip('"')  # a shell splits it into words where it is used
                continue
            for variable, value in known.items():
                line = line.replace(f"${variable}", value)
            place = number + 0.5 * line.startswith("(")  # a subshell, whose folder is its own
            for part in line.strip("()").split(" && "):
                before, command = re.fullmatch(r"((?:[A-Za-z_]+=\S+ )*)(.*)", part).groups()
                yield Line(name, place, command, tuple(before.split()))


def shrunk(words: list[str]) -> list[str]:
    """The words of `fedlab run` or `fedlab compare` with options that leave one tiny round of little data."""
    preset, text = words[1], " ".join(words)
    workload = str(read_any_preset(preset)[1].get("workload", ""))
    another = " strategy=" in text or "client_adapt=" in text  # does not adapt as the preset does
    other = ("source_free.",) if another else ()
    light = {key: value for key, value in LIGHT.get(preset, {}).items() if not key.startswith(other)}
    small: dict[str, object] = {**({} if " workload=" in text else TINY_DATA.get(workload, {})), **light}
    if "digits.targets" in small:
        small["digits.targets"] = "optdigits,usps"  # the clients that pages name
    least = {"engine": "inprocess", **SHORT, **small}
    for method, option in METHODS.items():
        if method in text:
            least |= [option.split("=")]
    own = {"rounds"} if "join_rounds" in text else set()  # a late joiner needs its own
    if "lr_schedule=step" in text:
        least |= {"rounds": 2}
        words = [re.sub(r"lr_step_rounds=\d+", "lr_step_rounds=1", word) for word in words]
    words = [word for word in words if word.partition("=")[0] not in ALWAYS - own]
    named = {word.partition("=")[0] for word in words} | own
    named |= {key for key in least if f":{key}=" in text}  # of one variant
    return [*words, *(f"{key}={value}" for key, value in least.items() if key not in named), "report=false"]
