"""Build the image with podman, also where no registry of images is reached; print its name and size.

The Dockerfile's base image is pulled. Where that fails, a release of Debian with the same Python takes its place, made
by debootstrap and tagged with the base image's name. pip installs from where it does outside: the containers of the
build get its settings, and the files and folders that they name, read-only.

As root, ``python -m scripts.build_image --torch-index URL``; without an index, with what pip finds by itself.
"""

from __future__ import annotations

import argparse
import ast
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from scripts.podman import NoContainersError, Podman, PodmanError, working_podman

ROOT = Path(__file__).parents[1]
RELEASES = {"3.11": "bookworm", "3.13": "trixie"}  # Debian's, by its Python
PACKAGES = ("ca-certificates", "python3-venv", "python-is-python3")
KEEP_NOTHING = 'DPkg::Post-Invoke { "rm -rf /var/cache/apt/*"; };\n'  # as in images of Debian that are published
SETTINGS = {"cert", "client-cert", "constraint", "extra-index-url", "find-links", "index-url", "no-index", "proxy"}
SETTINGS |= {"timeout", "trusted-host"}


def build(tag: str, torch_index: str, folder: Path) -> Podman:
    """Build the image and return the podman that has it and starts its containers.

    Parameters
    ----------
    tag
        Name of the image.
    torch_index
        Address or folder of the package index that torch is installed from; empty for pip's own.
    folder
        For settings and the system that debootstrap makes.

    Raises
    ------
    NoContainersError
        A tool is missing, or the base image cannot be had.
    PodmanError
        The build failed.
    """
    base = base_image((ROOT / "Dockerfile").read_text())
    ensure_base(base, folder)
    podman = working_podman(base, folder)
    settings = pip_settings()
    (folder / "pip.conf").write_text(pip_conf(settings))
    volumes = [f"{folder / 'pip.conf'}:/etc/pip.conf:ro"]
    volumes += [f"{path}:{path}:ro" for path in sorted(local_paths({**settings, "torch-index-url": torch_index}))]
    podman.show(
        *("build", "--format", "docker", "--pull=never", "--network", "host", "--tag", tag),
        *("--build-arg", f"TORCH_INDEX={torch_index}"),
        *(word for volume in volumes for word in ("--volume", volume)),
        str(ROOT),
    )
    return podman


def base_image(dockerfile: str) -> str:
    """Return the name of the image that the Dockerfile's last stage begins with."""
    return str(re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE)[-1])


def ensure_base(name: str, folder: Path) -> None:
    """Pull the base image, or make one with the same Python and import it under this name; keep one that is there.

    Raises
    ------
    NoContainersError
        It cannot be pulled, and there is no debootstrap or no release of Debian with this Python.
    """
    podman = Podman()
    if podman.has_image(name):
        return
    if not (pulled := podman.run("pull", "--quiet", name)).returncode:
        return
    failed = f"the base image {name} cannot be pulled ({pulled.stderr.strip()[-300:]})"
    version = re.search(r":(\d+\.\d+)", name)
    release = RELEASES.get(version[1] if version else "")
    if release is None or shutil.which("debootstrap") is None:
        raise NoContainersError(
            f"{failed}; with debootstrap (as root) Debian's Python {' or '.join(RELEASES)} would do"
        )
    system, archive = folder / "base", folder / "base.tar"
    command = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", release, str(system)]
    made = subprocess.run(command, capture_output=True, text=True)
    if made.returncode:
        raise NoContainersError(f"{failed}, and debootstrap failed: {made.stdout[-2000:]}")
    shutil.rmtree(system / "var/cache/apt")
    (system / "etc/apt/apt.conf.d/keep-nothing").write_text(KEEP_NOTHING)
    subprocess.run(["tar", "--create", "--file", str(archive), "--directory", str(system), "."], check=True)
    podman("import", "--quiet", str(archive), f"localhost/{name}")
    shutil.rmtree(system)
    archive.unlink()


def pip_settings() -> dict[str, str]:
    """Return those of pip's settings here, from files and environment, that say where packages come from."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    found = {}
    for line in listed.stdout.splitlines():
        name, _, value = line.partition("=")
        if (key := name.rpartition(".")[2]) in SETTINGS:
            found[key] = str(ast.literal_eval(value))
    return found


def pip_conf(settings: Mapping[str, str]) -> str:
    """Return the text of a file of pip's settings."""
    lines = [f"{key} = " + "\n    ".join(value.split()) for key, value in sorted(settings.items())]
    return "\n".join(["[global]", *lines, ""])


def local_paths(settings: Mapping[str, str]) -> set[Path]:
    """Return the files and folders of this machine that settings name; of an index what lies beside it, too.

    An index is a folder of pages, whose links lead to files elsewhere: ``simple/`` to ``packages/``, for example.
    """
    paths = set()
    for key, value in settings.items():
        for word in value.split():
            path = Path(word.removeprefix("file://"))
            if path.is_absolute() and path.exists():
                paths.add(path.parent if key.endswith("index-url") else path)
    return paths


def main() -> None:
    """Build the image as the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tag", default="fedlab")
    parser.add_argument(
        "--torch-index", default="", metavar="URL", help="package index of torch, as for builds for CPUs"
    )
    chosen = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as folder:
            podman = build(chosen.tag, chosen.torch_index, Path(folder))
        size = int(podman("image", "inspect", "--format", "{{.Size}}", chosen.tag))
    except PodmanError as error:
        raise SystemExit(f"error: {error}") from None
    print(f"{chosen.tag}: {size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
