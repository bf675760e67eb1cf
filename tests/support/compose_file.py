"""docker-compose.yml and Dockerfile as tests read them: variables filled in, mounts by target."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import yaml

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docker-compose.yml"
BIN = Path(sys.executable).parent
VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?P<how>:[-+])(?P<word>[^}]*)\}")
CLIENTS = ("usps", "mnist_m", "optdigits", "synthdigits")
TINY = "server.pretrain_steps=2 server.steps=1 server.batch_size=8 client.steps=1 client.batch_size=8 "
TINY += "data.max_examples=100 source_free.steps=2 source_free.min_examples_per_class=0 threads=1"


def resolve(**variables):
    """The services as Compose sees them: anchors and merges by YAML, ``${NAME:-word}`` and ``${NAME:+word}`` by us."""

    def value(match):
        given = variables.get(match["name"], "")
        return (given or match["word"]) if match["how"] == ":-" else (given and match["word"])

    def inside(node):
        if isinstance(node, dict):
            return {key: inside(item) for key, item in node.items()}
        if isinstance(node, list):
            return [inside(item) for item in node]
        return VARIABLE.sub(value, node) if isinstance(node, str) else node

    return inside(yaml.safe_load(FILE.read_text()))


def words(command):
    return shlex.split(command) if isinstance(command, str) else command


def dockerfile():
    """Instructions and their text, continued lines joined."""
    lines = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.M)).splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line.strip()]


def mount_of(volume):
    """Where a volume comes from and goes to, in short or long form."""
    if isinstance(volume, str):
        source, target, *mode = volume.split(":")
        return SimpleNamespace(source=source, subpath="", target=target, read_only=mode == ["ro"])
    subpath = volume.get("volume", {}).get("subpath", "")
    return SimpleNamespace(
        source=volume["source"], subpath=subpath, target=volume["target"], read_only=volume.get("read_only", False)
    )


def mounts(service):
    return {mount.target: mount for mount in map(mount_of, service["volumes"])}


def compose():
    """The command of Compose 2 or newer, or none: `docker compose`, or `docker-compose`, here or beside Python."""
    alone = shutil.which("docker-compose") or shutil.which("docker-compose", path=BIN)
    for command in (["docker", "compose"], [alone]):
        if command[0] and shutil.which(command[0]):
            asked = subprocess.run([*command, "version", "--short"], capture_output=True, text=True)
            if asked.returncode == 0 and int(asked.stdout.strip().lstrip("v").partition(".")[0]) >= 2:
                return command
    return None


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
