"""Pack what a run needs for a machine that has torch, and reaches no package index.

``python -m scripts.offline_packages --python 3.12 --there there.txt`` writes the packages that fedlab imports, in the
versions that are installed here, as wheels of another Python have them. There::

    mkdir packages && tar -xf packages.tar.xz -C packages && PYTHONPATH=packages:src:. python3 -m benchmarks.gpu

``there.txt`` names packages that the machine has (one a line, ``pip list --format=freeze`` will do). They and what only
they need stay away, as do torch's, and what only other engines than ``local`` import (UNUSED; ``--all`` packs it). Only
for Linux on x86-64.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from fedlab import shared_libraries

PACKAGE = "fedlab-adapt"
TORCH = frozenset({"torch", "torchvision"})  # no network is needed to use them, and they are gigabytes
# Asked for by fedlab or Flower, and imported by no run whose clients are in its own processes.
UNUSED = frozenset(
    {
        "ray",
        "uv",
        "alembic",
        "sqlalchemy",
        "greenlet",
        "fastapi",
        "starlette",
        "uvicorn",
        "mako",
        "prompt-toolkit",
        "pycparser",
        "wcwidth",
        "tomli",
        "httptools",
        "python-dotenv",
        "watchfiles",
        "websockets",
        "jsonschema",
        "jsonschema-specifications",
        "referencing",
        "rpds-py",
        "questionary",
        "uvloop",
    }
)
GLIBC = range(17, 40)  # of manylinux tags; pip takes none but those that are named
NEEDLESS = (
    "__pycache__",
    "tests",
    "test",
    "testData",
    "testing_data",
    "NP_Score",
    "RECORD",
)  # files and folders of these names
EXTENSIONS = """
import contextlib, importlib, pkgutil, sys, fedlab
for found in pkgutil.walk_packages(fedlab.__path__, "fedlab."):
    with contextlib.suppress(ModuleNotFoundError, SystemExit):  # of optional packages; of programs
        importlib.import_module(found.name)
for name, module in list(sys.modules.items()):
    if name.startswith("rdkit.") and str(getattr(module, "__file__", "")).endswith(".so"):
        print(name)
"""


def needed(root: str, without: Iterable[str], python: str) -> Iterator[str]:
    """Yield ``name==version`` of what a package needs here, its needs' needs included.

    Parameters
    ----------
    root
        Name of an installed package, which is not yielded itself.
    without
        Names of packages that are not looked at.
    python
        Version for which the markers of requirements are read, as "3.12".
    """
    seen, waiting = {canonicalize_name(name) for name in (root, *without)}, [(root, frozenset[str]())]
    while waiting:
        name, extras = waiting.pop()
        for line in distribution(name).requires or ():
            requirement = Requirement(line)
            environments = [{"extra": extra, "python_version": python} for extra in (*extras, "")]
            wanted = requirement.marker is None or any(requirement.marker.evaluate(each) for each in environments)
            found = canonicalize_name(requirement.name)
            if not wanted or found in seen:
                continue
            seen.add(found)
            try:
                yield f"{found}=={distribution(found).version}"
            except PackageNotFoundError:  # for another system, or of an extra that is not installed
                continue
            waiting.append((found, frozenset(requirement.extras)))


def install(packages: list[str], folder: Path, python: str) -> None:
    """Put wheels of another Python into a folder.

    Raises
    ------
    SystemExit
        When pip finds no wheel, with what it said.
    """
    platforms = [f"--platform=manylinux_2_{minor}_x86_64" for minor in GLIBC]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-compile", "--only-binary=:all:", f"--python-version={python}", "--implementation=cp"]
    command += [*platforms, "--platform=manylinux2014_x86_64", "--platform=manylinux1_x86_64", f"--target={folder}"]
    if subprocess.run([*command, *packages], check=False).returncode:
        raise SystemExit(f"pip found no wheels for Python {python}: see above; --without NAME leaves a package out")


def keep_imported_extensions(folder: Path, package: str, modules: Iterable[str]) -> None:
    """Remove the extension modules of a package that are not named, and the libraries that no other file asks for."""
    kept = {name.removeprefix(f"{package}.").replace(".", "/") for name in modules}
    for file in (folder / package).rglob("*.so"):
        if str(file.relative_to(folder / package)).split(".")[0] not in kept:
            file.unlink()
    libraries = {file.name: file for file in (folder / f"{package}.libs").glob("*")}
    waiting, used = list((folder / package).rglob("*.so")), set[str]()
    while waiting:
        names = set(shared_libraries.needed(waiting.pop())) & libraries.keys() - used
        used |= names
        waiting += [libraries[name] for name in names]
    for name in libraries.keys() - used:
        libraries[name].unlink()


def pack(folder: Path, out: Path) -> None:
    """Write the files of a folder as ``.tar.xz``, without what a run does not need."""

    def slim(found: tarfile.TarInfo) -> tarfile.TarInfo | None:
        return None if Path(found.name).name in NEEDLESS else found

    with tarfile.open(out, "w:xz", preset=9) as archive:
        for path in sorted(folder.iterdir()):
            archive.add(path, path.name, filter=slim)


def main() -> None:
    """Pack the packages that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=f"{sys.version_info[0]}.{sys.version_info[1]}", help="version there")
    parser.add_argument("--there", type=Path, help="file with the names of packages that the machine has")
    parser.add_argument("--without", nargs="*", default=[], metavar="NAME", help="packages to leave out, such as ray")
    parser.add_argument("--all", action="store_true", help="pack also what only other engines than local import")
    parser.add_argument("--out", type=Path, default=Path("packages.tar.xz"))
    options = parser.parse_args()
    try:
        lines = options.there.read_text(encoding="utf-8").splitlines() if options.there else []
    except (OSError, UnicodeDecodeError) as error:
        parser.error(f"--there {options.there} cannot be read ({error}); name a text file with a package on each line")
    there = {re.split(r"[=<>~!\s;\[]", line.strip())[0] for line in lines if line.strip()}
    without = {*TORCH, *there, *options.without, *(() if options.all else UNUSED)}
    packages = sorted(needed(PACKAGE, without, options.python))
    print(" ".join(packages))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "packages"
        install(packages, folder, options.python)
        if (folder / "rdkit").is_dir():
            found = subprocess.run([sys.executable, "-c", EXTENSIONS], check=True, capture_output=True, text=True)
            keep_imported_extensions(folder, "rdkit", found.stdout.split())
        own = Path(str(distribution(PACKAGE).locate_file(""))).glob("fedlab_adapt*-info")
        for information in own:  # the version that fedlab says
            shutil.copytree(information, folder / information.name)
        pack(folder, options.out)
    print(f"{options.out}  {os.path.getsize(options.out) / 1e6:.1f} MB, {len(packages)} packages")


if __name__ == "__main__":
    main()
