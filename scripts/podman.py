"""Call podman, with settings under which it starts containers on this machine."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

REMEDY = "install podman with a runtime (Debian: podman crun runc netavark aardvark-dns catatonit iptables) and be root"


class PodmanError(Exception):
    """A command of podman failed; the text is for a person."""


class NoContainersError(PodmanError):
    """The machine lacks what it takes to build images and start containers; the text is for a person."""


class Podman:
    """Commands of podman as a function: ``podman("image", "ls")`` returns what it printed.

    Parameters
    ----------
    environment
        Variables on top of this process's.

    Raises
    ------
    NoContainersError
        There is no podman.
    PodmanError
        On a call: the command failed.
    """

    def __init__(self, environment: Mapping[str, str] | None = None):
        if shutil.which("podman") is None:
            raise NoContainersError(f"there is no podman here; {REMEDY}")
        self.environment = {**os.environ, **(environment or {})}

    def __call__(self, *arguments: str) -> str:
        """Run a command and return what it prints, stripped."""
        ran = self.run(*arguments)
        if ran.returncode:
            raise PodmanError(f"`podman {' '.join(arguments)}` failed: {ran.stderr.strip()[-2000:]}")
        return ran.stdout.strip()

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command whose failure is an answer; return status and output."""
        command = ["podman", *arguments]
        return subprocess.run(command, env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)

    def show(self, *arguments: str) -> None:
        """Run a command that takes minutes; what it says goes to stderr as it comes."""
        ran = subprocess.run(["podman", *arguments], env=self.environment, stdin=subprocess.DEVNULL, stdout=sys.stderr)
        if ran.returncode:
            raise PodmanError(f"`podman {arguments[0]}` failed with status {ran.returncode}")

    def has_image(self, name: str) -> bool:
        """Return True if an image is stored here."""
        return self.run("image", "exists", name).returncode == 0


def working_podman(image: str, folder: Path) -> Podman:
    """Return a podman that starts containers of a stored image, with a network.

    Podman's own settings come first. Where nothing starts with them, as without systemd or without the right to raise
    limits, control groups are made without systemd and limits stay as they are, with each runtime in turn.

    Parameters
    ----------
    image
        A stored image that has ``true``.
    folder
        Where settings are written; podman reads them at each call.

    Raises
    ------
    NoContainersError
        No container starts; the text has the reason for each try.
    """
    tries = {"its own settings": Podman()}
    for runtime in filter(shutil.which, ("crun", "runc")):
        settings = folder / f"{runtime}.conf"
        settings.write_text(_settings(runtime))
        tries[runtime] = Podman({"CONTAINERS_CONF": str(settings)})
    reasons = []
    for name, podman in tries.items():
        started = podman.run("run", "--rm", "--network", "bridge", "--entrypoint", "true", image)
        if started.returncode == 0:
            return podman
        reasons.append(f"with {name}: {started.stderr.strip()}")
    raise NoContainersError(f"podman starts no container here; {REMEDY}. It said\n" + "\n".join(reasons))


def _settings(runtime: str) -> str:
    """Return a file of settings (containers.conf(5)) that asks nothing of systemd, and no rights for limits."""
    limits = (
        ("nofile", resource.RLIMIT_NOFILE, 2**20),
        ("nproc", resource.RLIMIT_NPROC, 2**15),
    )  # podman's own at most
    ulimits = []
    for name, number, most in limits:
        hard = resource.getrlimit(number)[1]
        value = most if hard == resource.RLIM_INFINITY else min(hard, most)
        ulimits.append(f"{name}={value}:{value}")
    return "\n".join(
        [
            "[containers]",
            f"default_ulimits = {json.dumps(ulimits)}",
            'log_driver = "k8s-file"',
            "[engine]",
            'cgroup_manager = "cgroupfs"',
            'events_logger = "file"',
            f'runtime = "{runtime}"',
            "[network]",
            'network_backend = "netavark"',
            "",
        ]
    )
