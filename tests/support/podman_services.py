"""Services of docker-compose.yml as containers of podman, for machines without a Docker engine.

Podman 4 knows no part of a volume (``subpath``): such a mount is of the folder that the volume is on the host.
"""

from __future__ import annotations

import json
import shlex
import uuid

from compose_file import mounts, words
from scripts.podman import Podman
from waiting import wait_until


class Federation:
    """A network, volumes and services of one project; leaving it removes all of them."""

    def __init__(self, podman: Podman, image: str, services):
        self.podman, self.image, self.services = podman, image, services
        self.project = f"fedlab-{uuid.uuid4().hex[:8]}"
        self.started: list[str] = []
        sources = {mount.source for service in services.values() for mount in mounts(service).values()}
        self.volumes = {source: f"{self.project}-{source}" for source in sources}

    def __enter__(self):
        self.podman("network", "create", self.project)
        for volume in self.volumes.values():
            self.podman("volume", "create", volume)
        return self

    def __exit__(self, *error):
        if self.started:
            self.podman.run("rm", "--force", "--time", "5", *map(self.container, self.started))
        self.podman.run("volume", "rm", "--force", *self.volumes.values())
        self.podman.run("network", "rm", self.project)

    def container(self, name):
        return f"{self.project}-{name}"

    def up(self, name, command=None):
        """Start a service, with another command than its own if one is given."""
        arguments = words(command or self.services[name]["command"])
        self.podman("run", "--detach", "--name", self.container(name), *self._options(name), self.image, *arguments)
        self.started.append(name)

    def ran(self, name, *arguments):
        """What a command in a running container prints and returns: `docker compose exec`."""
        return self.podman.run("exec", self.container(name), *arguments)

    def state(self, name):
        return json.loads(self.podman("inspect", "--format", "{{json .State}}", self.container(name)))

    def restarts(self, name):
        return int(self.podman("inspect", "--format", "{{.RestartCount}}", self.container(name)))

    def ended(self, name, seconds):
        """Wait until a container has ended for good; return its exit status."""
        done = lambda: self.state(name)["Status"] == "exited"  # noqa: E731
        wait_until(done, f"the end of {name}", seconds, output=lambda: self.log(name))
        return self.state(name)["ExitCode"]

    def healthy(self, name, seconds=180):
        """Ask a service's health until it is good; False when the container ends before."""

        def answered():
            good = self.podman.run("healthcheck", "run", self.container(name)).returncode == 0
            return good or self.state(name)["Status"] == "exited"

        wait_until(answered, f"the health of {name}", seconds, output=lambda: self.log(name))
        return self.state(name)["Status"] == "running"

    def log(self, name):
        said = self.podman.run("logs", self.container(name))
        return said.stdout + said.stderr

    def _options(self, name):
        service = self.services[name]
        network = service.get("network_mode", self.project)
        yield from ("--network", network, "--user", service["user"], "--restart", service.get("restart", "no"))
        if network == self.project:
            yield from ("--network-alias", name)
        yield from ("--init",) if service["init"] else ()
        yield from (f"--cap-drop={right}" for right in service["cap_drop"])
        yield from (f"--security-opt={option.replace(':true', '')}" for option in service["security_opt"])
        yield from (f"--env={key}={value}" for key, value in service["environment"].items())
        if "healthcheck" in service:
            kind, *test = service["healthcheck"]["test"]
            assert kind == "CMD"
            yield from ("--health-cmd", shlex.join(test), "--health-interval", "disable")  # `healthy` asks
        for mount in mounts(service).values():
            source = self.volumes[mount.source]
            if mount.subpath:
                source = f"{self.podman('volume', 'inspect', '--format', '{{.Mountpoint}}', source)}/{mount.subpath}"
            yield f"--volume={source}:{mount.target}{':ro' if mount.read_only else ''}"
