"""Dockerfile and docker-compose.yml without a Docker engine: what they say, and that what they say works.

The commands of the services are taken out of the file and started as processes; a container's paths become folders, as
its mounts say, and the server's name the loopback.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from compose_file import BIN, CLIENTS, FILE, ROOT, TINY, compose, dockerfile, files, mount_of, mounts, resolve, words
from fedlab.data.digits import datasets
from fedlab.engines import processes
from fedlab.runs.result import Result
from fedlab.shared_libraries import DEBIAN_PACKAGES, system_libraries
from fedlab.workloads.digits import Digits
from waiting import wait_until

LINKED = {path.name for path in (ROOT / "fedlab").iterdir() if path.is_symlink()}
SERVICES = resolve()["services"]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


# The Dockerfile


def test_the_image_gets_the_sources_and_nothing_else():
    copies = [text.split()[:-1] for word, text in dockerfile() if word == "COPY"]
    copied = [source for sources in copies if not sources[0].startswith("--from=") for source in sources]
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert copied and all(any(f"{path}/".startswith(f"{source}/") for path in tracked) for source in copied)
    ignored = (ROOT / ".dockerignore").read_text().split("\n")
    assert ignored[1] == "*"
    assert {line[1:] for line in ignored if line.startswith("!")} == set(copied)
    packages = {"src", "fedlab", *LINKED}
    assert packages | {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "setup.py"} == set(copied)


def test_the_image_is_small():
    """One copy of what is installed, in the last stage; nothing that only building needs."""
    stages = "".join(f"\0{text}" if word == "FROM" else f"\n{word} {text}" for word, text in dockerfile()).split("\0")
    assert "pip" not in stages[-1]
    assert re.findall(r"COPY --from=(\S+) (\S+) (\S+)", stages[-1]) == [
        ("dependencies", "/opt/fedlab", "/opt/fedlab"),
        ("package", "/opt/package", "/opt/fedlab"),
    ]
    assert "PIP_NO_CACHE_DIR=1" in stages[1] and "rm -rf /var/lib/apt/lists/*" in stages[-1]


def test_the_image_installs_what_pyproject_says_and_names_no_place(tmp_path):
    runs = [text for word, text in dockerfile() if word == "RUN"]
    program = shlex.split(next(text for text in runs if "tomllib" in text).partition(">")[0])
    assert program[0] == "python"
    told = subprocess.run([sys.executable, *program[1:]], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert told.splitlines() == PYPROJECT["project"]["dependencies"]
    assert [found.strip() for text in runs for found in re.findall("pip install[^;&]*", text)] == [
        'pip install --no-deps --index-url "$TORCH_INDEX" -c constraints.txt torch torchvision',
        "pip install -c constraints.txt -r requirements.txt",
        "pip install --no-deps --prefix /opt/package .",
    ]
    first, last = (text.split()[0] for word, text in dockerfile() if word == "FROM" and "python" in text)
    assert first == last and re.fullmatch(r"python:3\.\d+-slim", last)  # plain names, of no registry in particular
    assert dict(dockerfile())["ARG"] == 'TORCH_INDEX=""' and "torch" in told and "torchvision" in told
    assert "://" not in (ROOT / "Dockerfile").read_text() + FILE.read_text()


def test_the_image_runs_fedlab_as_somebody_without_rights():
    said = dict(dockerfile())  # the last of each
    user = said["USER"]
    assert user == SERVICES["server"]["user"]
    assert all(int(number) >= 10000 for number in user.split(":"))
    made = next(text for word, text in dockerfile() if word == "RUN" and "useradd" in text)
    assert "--uid 10001" in made and "--gid 10001" in made
    mounted = {mount_of(volume).target for service in SERVICES.values() for volume in service["volumes"]}
    owned = {part for line in made.split("&&") if "--owner=fedlab" in line for part in line.split() if part[0] == "/"}
    assert owned == mounted == {"/certs", "/state", "/runs", "/data"}  # else a volume would belong to root
    assert json.loads(said["ENTRYPOINT"]) == list(PYPROJECT["project"]["scripts"])


# What python:3.*-slim has of its own, and what only several GPUs or machines need: the driver brings libcuda, and torch
# loads RDMA and MPI for nothing that one machine does.
BASE = {"ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1", "libgcc_s.so.1", "libstdc++.so.6", "libz.so.1"}
BASE |= {f"lib{name}.so" for name in ("c", "dl", "m", "pthread", "rt", "util")}
UNUSED = {
    "libcuda",
    "libfabric",
    "libibverbs",
    "libmlx5",
    "libmpi",
    "liboshmem",
    "libpmix",
    "librdmacm",
    "libucp",
    "libucs",
}


def distributions(requirements):
    """Names of the distributions that requirements install here, with all that they bring."""
    found, waiting = set(), [Requirement(text) for text in requirements]
    while waiting:
        wanted = waiting.pop()
        key = (canonicalize_name(wanted.name), tuple(sorted(wanted.extras)))
        if key in found or (wanted.marker and not wanted.marker.evaluate({"extra": ""})):
            continue
        found.add(key)
        for text in metadata.requires(wanted.name) or []:
            more = Requirement(text)
            if more.marker and any(more.marker.evaluate({"extra": extra}) for extra in wanted.extras):
                more.marker = None
            waiting.append(more)
    return {name for name, _ in found}


def test_the_image_has_every_library_that_its_wheels_ask_for():
    """RDKit without libXrender: every command but `--help` would die."""
    line = next(text for word, text in dockerfile() if word == "RUN" and "apt-get install" in text)
    installed = {part for part in line.split("&&")[1].split()[2:] if not part.startswith("--")}
    names = distributions(PYPROJECT["project"]["dependencies"])
    assert {"rdkit", "torch", "dp-accounting"} <= names
    asked = {
        library: wheels
        for library, wheels in system_libraries(names).items()
        if library not in BASE and f"{library.partition('.so')[0]}.so" not in BASE
        if library.partition(".so")[0] not in UNUSED
    }
    assert {library for library in asked if DEBIAN_PACKAGES.get(library) not in installed} == set()
    assert installed == {DEBIAN_PACKAGES[library] for library in asked}  # and nothing that no wheel asks for


# The compose file


def test_the_file_keeps_to_the_schema_of_the_compose_specification():
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(FILE)]
    checked = subprocess.run(command, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_compose_itself_resolves_the_file_as_we_do(profile, tmp_path):
    command = compose()
    if command is None:
        pytest.skip("no `docker compose` here: Docker's client has no Compose plugin, and there is no docker-compose 2")
    variables = {
        "FEDLAB_ROUNDS": "1",
        "FEDLAB_OPTIONS": TINY,
        "FEDLAB_DATA": str(tmp_path),
        "COMPOSE_PROFILES": profile,
    }
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), **variables}
    told = subprocess.run(
        [*command, "config", "--format", "json"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert told.returncode == 0, told.stderr
    theirs, ours = json.loads(told.stdout)["services"], resolve(**variables)["services"]
    assert set(theirs) == {name for name, service in ours.items() if profile in service.get("profiles", [profile])}
    for name, service in theirs.items():
        assert service["command"] == words(ours[name]["command"])
        assert service["environment"] == ours[name]["environment"]
        assert service.get("healthcheck", {}).get("test") == ours[name].get("healthcheck", {}).get("test")
        seen = {mount_of(volume).target: mount_of(volume) for volume in service["volumes"]}
        assert seen == mounts(ours[name])


def test_one_client_for_each_target_of_the_preset_on_the_cpu_or_on_a_gpu():
    assert Digits().clients == CLIENTS
    profiles = {name: service.get("profiles") for name, service in SERVICES.items()}
    assert profiles == {
        **{"certs": None, "server": None},
        **{name: ["cpu"] for name in CLIENTS},
        **{f"{name}-gpu": ["gpu"] for name in CLIENTS},
    }
    for name in CLIENTS:
        cpu, gpu = dict(SERVICES[name]), dict(SERVICES[f"{name}-gpu"])
        assert gpu.pop("deploy")["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]
        assert gpu["command"] == cpu["command"].replace("--device cpu", "--device cuda:0")
        assert {**gpu, "command": cpu["command"], "profiles": ["cpu"]} == cpu
    assert re.findall(r"^COMPOSE_PROFILES=(.*)$", (ROOT / ".env").read_text(), re.M) == ["cpu"]


def test_clients_differ_by_nothing_but_their_volumes():
    usps = {key: value for key, value in SERVICES["usps"].items() if key != "volumes"}
    for name in CLIENTS:
        assert {key: value for key, value in SERVICES[name].items() if key != "volumes"} == usps
        assert mounts(SERVICES[name])["/certs"].subpath == f"clients/{name}"
        assert mounts(SERVICES[name])["/state"].source == name


def test_nobody_sees_more_than_it_needs():
    volumes = resolve()["volumes"]
    for name, service in SERVICES.items():
        assert service["user"] == "10001:10001"
        assert service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"]
        assert "privileged" not in service
        assert "--insecure" not in words(service["command"])
        assert all(mount.source in volumes for mount in mounts(service).values())
        credentials = mounts(service)["/certs"]
        assert (credentials.read_only, bool(credentials.subpath)) == (
            (False, False) if name == "certs" else (True,) * 2
        )
    assert SERVICES["certs"]["network_mode"] == "none"
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["server"]


def test_everybody_waits_for_the_credentials_and_is_asked_for_its_health():
    for name, service in SERVICES.items():
        if name == "certs":
            assert service["build"]["context"] == "." and "restart" not in service
        else:
            assert "build" not in service and service["image"] == SERVICES["certs"]["image"]
            assert service["depends_on"]["certs"] == {"condition": "service_completed_successfully"}
            assert service["healthcheck"]["test"][:2] == ["CMD", "fedlab"]
            assert service["restart"] == ("no" if name == "server" else "on-failure:2")


def test_everything_ends_when_the_server_refuses_to_start_or_goes_away():
    """Clients are started once the server answers; later, each gives up, and is started again twice at most."""
    for name, service in SERVICES.items():
        if name not in ("certs", "server"):
            assert service["depends_on"]["server"] == {"condition": "service_healthy"}
            command = words(service["command"])
            assert 0 < int(command[command.index("--give-up-after") + 1]) <= 300
    assert "restart" not in SERVICES["certs"] and SERVICES["server"]["restart"] == "no"


def test_every_option_is_in_the_file_of_options():
    used = set(re.findall(r"\$\{(\w+)", FILE.read_text()))
    assert used == set(re.findall(r"^# (FEDLAB_\w+)=", (ROOT / ".env").read_text(), re.M))


# The commands, started


class Container:
    """What a service would do in its container, done by a process: its mounts are folders below ``volumes``."""

    def __init__(self, name, services, volumes, address):
        self.name, self.service, self.address = name, services[name], address
        self.log = volumes.parent / f"{name}.out"
        self.mounts = {target: volumes / mount.source / mount.subpath for target, mount in mounts(self.service).items()}
        self.process = None

    def here(self, word):
        """An argument as it has to read outside the container."""
        word = re.sub(r"^(server|localhost|0\.0\.0\.0):9092$", self.address, word)
        for target, folder in self.mounts.items():
            word = re.sub(rf"^{target}(?=/|$)", str(folder), word)
        return word

    def environment(self):
        own = {key: self.here(value) for key, value in self.service["environment"].items()}
        return {**os.environ, **own, "OMP_NUM_THREADS": "1"}

    def command(self, arguments):
        (program,) = json.loads(dict(dockerfile())["ENTRYPOINT"])
        return [str(BIN / program), *map(self.here, arguments)]

    def up(self):
        command, folder = self.command(words(self.service["command"])), self.log.parent
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                command, cwd=folder, env=self.environment(), stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        return self

    def ran(self, arguments):
        """What `docker compose run` or a health check would see of a command in this container."""
        return subprocess.run(self.command(arguments), env=self.environment(), capture_output=True, text=True)

    def health(self):
        kind, program, *arguments = self.service["healthcheck"]["test"]
        assert (kind, program) == ("CMD", "fedlab")
        return self.ran(arguments)

    def until_healthy(self, seconds=120):
        healthy = lambda: self.health().returncode == 0  # noqa: E731
        wait_until(healthy, "its health", seconds, process=self.process, output=self.log.read_text)


@pytest.mark.engine
def test_the_services_complete_a_round_and_each_sees_its_own_key_only(tmp_path):
    names = ("usps", "optdigits")  # of clients that differ by their volumes only; each costs many seconds
    volumes, address = tmp_path / "volumes", f"localhost:{processes.free_ports(1)[0]}"
    (volumes / "runs").mkdir(parents=True)
    resolved = resolve(FEDLAB_TARGETS=",".join(names), FEDLAB_ROUNDS="1", FEDLAB_OPTIONS=TINY, FEDLAB_WAIT="150")
    services = {name: Container(name, resolved["services"], volumes, address) for name in ("certs", "server", *names)}

    made = []
    for _ in range(2):  # the second time, as at the next `docker compose up`, it keeps what is there
        assert services["certs"].up().process.wait(60) == 0, services["certs"].log.read_text()
        made.append({path: (volumes / "certs" / path).read_bytes() for path in files(volumes / "certs")})
    assert made[0] == made[1]
    assert files(services["server"].mounts["/certs"]) == {
        *("ca.crt", "server.crt", "server.key", "clients/usps.pub", "clients/optdigits.pub")
    }

    server, clients = services["server"], [services[name] for name in names]
    try:
        assert server.health().returncode == 1
        server.up().until_healthy()
        for client in clients:
            assert files(client.mounts["/certs"]) == {"ca.crt", f"clients/{client.name}.key"}
            assert client.health().returncode == 1
            client.up().until_healthy()
        for service in (server, *clients):
            assert service.process.wait(300) == 0, service.log.read_text()
    finally:
        for service in (server, *clients):
            if service.process and service.process.poll() is None:
                service.process.terminate()
                service.process.wait(30)
    assert [service.health().returncode for service in (server, *clients)] == [1, 1, 1]

    (run,) = (volumes / "runs").iterdir()
    assert [record["round"] for record in Result.read(run).rounds] == [0, 1]
    assert set(Result.read(run).final()) == set(names)
    assert '"refused"' not in (run / "events.jsonl").read_text()  # a health check is no stranger at the door
    pixels = datasets.load_digits("usps", "test").columns["x"][0].permute(1, 2, 0).numpy()  # (height, width, channels)
    Image.fromarray(pixels).save(tmp_path / "scan.png")
    told = clients[0].ran(["predict", "/state", str(tmp_path / "scan.png"), "--json"])
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout)["class"] in range(10)
