"""The image, built, and the services of docker-compose.yml in containers: `make test-containers`.

Run by podman, which needs no daemon. FEDLAB_TEST_IMAGE names an image that is there already; else it is built, with
torch from FEDLAB_TORCH_INDEX if that is set.
"""

from __future__ import annotations

import os
import re

import pytest

from compose_file import TINY, resolve
from podman_services import Federation
from scripts.build_image import build
from scripts.podman import NoContainersError, working_podman
from waiting import wait_until

pytestmark = pytest.mark.container
NAMES = ("usps", "optdigits")  # of clients that differ by their volumes only
OPTIONS = {"FEDLAB_TARGETS": ",".join(NAMES), "FEDLAB_ROUNDS": "1", "FEDLAB_OPTIONS": TINY, "FEDLAB_WAIT": "150"}


@pytest.fixture(scope="module")
def image():
    return os.environ.get("FEDLAB_TEST_IMAGE") or "localhost/fedlab-test"


@pytest.fixture(scope="module")
def podman(image, tmp_path_factory):
    folder = tmp_path_factory.mktemp("podman")
    try:
        if "FEDLAB_TEST_IMAGE" in os.environ:
            return working_podman(image, folder)
        return build(image, os.environ.get("FEDLAB_TORCH_INDEX", ""), folder)
    except NoContainersError as error:
        pytest.fail(f"these tests were asked for, and cannot run here: {error}", pytrace=False)


@pytest.fixture
def federation(podman, image):
    """Services of the file with their volumes, of which `certs` has run."""
    with Federation(podman, image, resolve(**OPTIONS)["services"]) as created:
        created.up("certs")
        assert created.ended("certs", 60) == 0, created.log("certs")
        yield created


def test_the_image_runs_as_nobody_in_particular_and_lacks_nothing(podman, image):
    told = podman("run", "--rm", "--network", "none", image)
    assert "Usage" in told and "join" in told
    doctor = podman.run("run", "--rm", "--network", "none", image, "doctor")
    assert doctor.returncode == 0, doctor.stdout + doctor.stderr
    program = "import os, torch, torchvision; print(os.getuid(), os.access('/opt/fedlab', os.W_OK), torch.version.cuda)"
    said = podman("run", "--rm", "--network", "none", "--entrypoint", "python", image, "-c", program).split()
    assert said[:2] == ["10001", "False"]
    size = int(podman("image", "inspect", "--format", "{{.Size}}", image))
    assert said[2] != "None" or size < 2.5e9  # of the build for CPUs


def test_a_federation_in_containers_ends_at_the_bits_of_one_process(podman, image, federation):
    seen = {}
    for name in ("server", "usps"):
        federation.up(name)
        assert federation.healthy(name), federation.log(name)
        assert federation.ran(name, "id", "-u").stdout.strip() == "10001"
        for folder in ("/certs", "/data", "/opt/fedlab"):
            assert federation.ran(name, "touch", f"{folder}/new").returncode != 0, f"{name} may write to {folder}"
        seen[name] = set(federation.ran(name, "find", "/certs", "-type", "f").stdout.split())
    assert seen["usps"] == {"/certs/ca.crt", "/certs/clients/usps.key"}
    assert "/certs/server.key" in seen["server"] and not any("ca.key" in path for path in seen["server"])
    federation.up("optdigits")  # without which the run does not begin
    for name in ("server", *NAMES):
        assert federation.ended(name, 300) == 0, federation.log(name)

    overrides = [f"digits.targets={','.join(NAMES)}", "rounds=1", *TINY.split()]
    where = ("--rm", "--network", "none", f"--volume={federation.volumes['runs']}:/runs")
    options = ("--seed", "0", "--device", "cpu", "--runs", "/runs/local")
    podman("run", *where, image, "run", "dualadapt-digits", *overrides, *options)
    program = """
from pathlib import Path
from fedlab.runs.result import Result
print(*(Result.read(file.parent).weights_sha256 for file in Path("/runs").rglob("manifest.json")))
"""
    local, deployed = podman("run", *where, "--entrypoint", "python", image, "-c", program).split()
    assert deployed == local and len(local) == 64


def test_a_server_that_refuses_ends_before_any_client_is_started(federation):
    federation.up("server", "serve dualadapt-digits no.such=1 --address 0.0.0.0:9092 --certs /certs --runs /runs")
    assert not federation.healthy("server")  # clients are started once it is
    assert federation.ended("server", 5) != 0 and "no.such" in federation.log("server")


def test_a_client_whose_server_is_gone_gives_up_and_is_not_started_for_ever(federation):
    command = federation.services["usps"]["command"]
    federation.up("usps", re.sub(r"--give-up-after \d+", "--give-up-after 1", command))
    wait_until(lambda: federation.restarts("usps") == 2, "its last start", 240, output=lambda: federation.log("usps"))
    assert federation.ended("usps", 120) != 0
    assert "server:9092" in federation.log("usps")
