"""Canaries: a SuperLink's Control API."""

from __future__ import annotations

import inspect
import io
import sys
import tomllib
import zipfile

import httpx
import pytest
from flwr.common.constant import Status, SubStatus
from flwr.proto.control_pb2 import ListRunsResponse, RegisterNodeResponse, StartRunResponse, StreamLogsResponse

from fedlab.engines import processes
from fedlab.engines.flower_control import Control, ControlError, Outcome


class Answers:
    """Stands for Flower's Control API: records requests and gives one reply, or fails."""

    def __init__(self, reply):
        self.reply, self.requests = reply, []

    def __getattr__(self, method):
        def call(request):
            self.requests.append((method, request))
            if isinstance(self.reply, Exception):
                raise self.reply
            return self.reply

        return call


@pytest.fixture
def control():
    """A control client whose requests are answered by a reply of the test's."""

    def answering(reply):
        client = Control("127.0.0.1:1", None)
        client._api = Answers(reply)
        return client, client._api.requests

    return answering


def test_flowers_client_has_these_methods_and_the_http_client_that_is_replaced():
    api = Control("127.0.0.1:1", None)._api
    assert all(callable(getattr(api, name)) for name in ("StartRun", "ListRuns", "StreamLogs", "RegisterNode"))
    assert "self._client" in inspect.getsource(sys.modules[type(api).__mro__[1].__module__])
    assert isinstance(api._client, httpx.Client) and not api._client.trust_env


def test_a_server_that_does_not_answer_is_an_error():
    with pytest.raises(ControlError):
        Control(f"127.0.0.1:{processes.free_ports(1)[0]}", None).outcome(3)


def test_a_run_is_started_with_apps_and_their_config(control):
    client, requests = control(StartRunResponse(run_id=3))
    assert client.start_run("a:app", "b:app", {"x.y": 1, "z": "q"}) == 3
    ((method, request),) = requests
    assert method == "StartRun"
    project = bundled(request.fab.content)
    assert project["tool"]["flwr"]["app"]["components"] == {"serverapp": "a:app", "clientapp": "b:app"}
    assert project["tool"]["flwr"]["app"]["config"] == {"x.y": 1, "z": "q"}
    with pytest.raises(ControlError, match="no id"):
        control(StartRunResponse())[0].start_run("a:app", "b:app", {})


def bundled(content):
    """The pyproject.toml of a bundle."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return tomllib.loads(archive.read("pyproject.toml").decode())


@pytest.mark.parametrize(
    ("status", "sub_status", "expected"),
    [
        (Status.RUNNING, "", None),
        (Status.FINISHED, SubStatus.COMPLETED, Outcome(True, SubStatus.COMPLETED, "why")),
        (Status.FINISHED, SubStatus.FAILED, Outcome(False, SubStatus.FAILED, "why")),
    ],
)
def test_an_outcome(control, status, sub_status, expected):
    reply = ListRunsResponse()
    run = reply.run_dict[3].status
    run.status, run.sub_status, run.details = status, sub_status, "why"
    assert control(reply)[0].outcome(3) == expected


def test_a_node_is_registered_with_its_name_and_key(control):
    client, requests = control(RegisterNodeResponse(node_id=77))
    assert client.register_node("usps", b"key") == 77
    assert (requests[0][1].name, requests[0][1].public_key) == ("usps", b"key")


def test_logs_are_streamed_and_a_broken_stream_is_an_error(control):
    client, _ = control([StreamLogsResponse(log_output="a"), StreamLogsResponse(log_output="b")])
    assert list(client.stream_logs(3)) == ["a", "b"]
    with pytest.raises(ControlError):
        list(control(httpx.ReadError("gone"))[0].stream_logs(3))
