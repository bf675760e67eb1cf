"""Files of unknown origin: run directories, checkpoints, kept models and caches are data, and never run code."""

from __future__ import annotations

import ast
import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import fedlab
import toy
from fedlab import files
from fedlab.deploy import client
from fedlab.engines import processes
from fedlab.errors import FedlabError, FedlabWarning
from fedlab.inference.latent_space import LatentSpace
from fedlab.inference.predict import load_predictor
from fedlab.report.run_page import write_report
from fedlab.runs import pretrain_cache
from fedlab.runs.client_store import ClientStore
from fedlab.runs.directory import RunDirectory
from fedlab.runs.result import Result
from tables import put

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for name in ("fedlab", "strategies", "server", "client") for path in (ROOT / name).rglob("*.py"))
UNSAFE = {"pickle", "dill", "shelve", "marshal", "cloudpickle"}


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.fixture
def sprung(tmp_path):
    return tmp_path / "sprung"


@pytest.fixture
def run(tmp_path, monkeypatch):
    put(monkeypatch, "workload", "blobs", toy.SPEC)
    return fedlab.run(toy.write_preset(tmp_path, rounds=1), runs=tmp_path, name="theirs")


def payload(trap):
    stream = io.BytesIO()
    torch.save({"arrays": trap, "strategy": trap, "config": "", "states": trap, "round": 1, "client": "near"}, stream)
    return stream.getvalue()


def test_the_trap_works(sprung):
    torch.load(io.BytesIO(payload(Trap(sprung))), weights_only=False)["arrays"].close()
    assert sprung.exists()


def test_a_run_directory_with_payloads_is_refused_by_whatever_reads_it(run, sprung):
    for path in (run.directory / "checkpoints").glob("*.pt"):
        path.write_bytes(payload(Trap(sprung)))
    RunDirectory.open(run.directory).update_manifest(status="interrupted")
    for reader in (load_predictor, LatentSpace.open, fedlab.resume):
        with pytest.raises(FedlabError):
            reader(run.directory)
    write_report(Result.read(run.directory))
    assert not sprung.exists()


def test_a_kept_model_with_a_payload_is_refused(tmp_path, sprung):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "model.pt").write_bytes(payload(Trap(sprung)))
    with pytest.raises(FedlabError, match="cannot be read"):
        load_predictor(tmp_path / "kept")
    assert not sprung.exists()


def test_a_cache_with_a_payload_is_not_used(tmp_path, sprung):
    (tmp_path / "known.pt").write_bytes(payload(Trap(sprung)))
    with pretrain_cache.use_cache(str(tmp_path)), pytest.warns(FedlabWarning, match="it is computed anew"):
        pretrain_cache.get_or_compute(lambda: "known", dict, torch.device("cpu"))
    assert not sprung.exists()


@pytest.mark.parametrize("place", ["elsewhere", "inside"])
def test_a_module_in_a_run_directory_is_not_imported(run, sprung, monkeypatch, place):
    folder = run.directory
    config = (folder / "config.toml").read_text()
    (folder / "config.toml").write_text(config.replace('"blobs"', '"evil_task:SPEC"').replace("[blobs]", "[evil_task]"))
    (folder / "evil_task.py").write_text(f"open({str(sprung)!r}, 'w').close()\nfrom toy import SPEC\n")
    if place == "inside":
        monkeypatch.chdir(folder)
    RunDirectory.open(folder).update_manifest(status="interrupted")
    for reader in (load_predictor, LatentSpace.open, fedlab.resume):
        with pytest.raises(FedlabError, match="no module 'evil_task'"):
            reader(folder)
    write_report(Result.read(folder))
    assert not sprung.exists()


@pytest.mark.parametrize("name", ["events.jsonl", "metrics.jsonl", ".lock"])
def test_nothing_is_written_through_a_link(run, tmp_path, name):
    target = tmp_path / "precious"
    target.write_text("mine\n")
    link = run.directory / name
    link.unlink(missing_ok=True)
    link.symlink_to(target)

    def write():
        with RunDirectory.open(run.directory) as directory:
            directory.emit("note")
            directory.log_round({"round": 2})

    with pytest.raises((OSError, FedlabError), match="symbolic link"):
        write()
    assert target.read_text() == "mine\n"


def test_a_clients_log_is_not_written_through_a_link(tmp_path, capsys):
    target, folder = tmp_path / "precious", tmp_path / "state"
    target.write_text("mine\n")
    folder.mkdir()
    (folder / "events.jsonl").symlink_to(target)
    ClientStore(folder).log_event("query")  # the log is lost, and not the round
    assert "symbolic link" in capsys.readouterr().err
    assert target.read_text() == "mine\n"


def test_the_logs_of_flower_are_not_written_through_links_and_nothing_a_link_leads_to_is_made_private(tmp_path):
    """As `fedlab join` and a resumed `fedlab serve` meet them in a folder from elsewhere."""
    targets = [tmp_path / name for name in ("log", "mode", "older")]
    for target in targets:
        target.write_text("mine\n")
        target.chmod(0o644)
    folder = tmp_path / "state"
    folder.mkdir()
    (folder / "model.pt").symlink_to(tmp_path / "mode")
    client._make_private(folder)
    (folder / "flower.log").symlink_to(tmp_path / "log")
    with pytest.raises(OSError, match="symbolic link"):
        files.empty_file(folder / "flower.log")
    with pytest.raises(OSError, match="symbolic link"):
        processes.start("fedlab", "none", [], {"FLWR_HOME": str(tmp_path / "home")}, folder / "flower.log")
    (folder / "large.log").write_text("a line\n")
    (folder / "large.log.1").symlink_to(tmp_path / "older")
    with pytest.raises(OSError, match="symbolic link"):
        files.limit_log(folder / "large.log", 3)
    assert [(target.read_text(), target.stat().st_mode & 0o777) for target in targets] == [("mine\n", 0o644)] * 3


def test_arrays_of_objects_are_not_read(tmp_path, sprung):
    path = tmp_path / "set.npz"
    np.savez(path, x=np.array([Trap(sprung)], dtype=object))
    with np.load(path) as stored, pytest.raises(ValueError, match="allow_pickle"):
        stored["x"]
    assert not sprung.exists()


def calls(path, *names):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in names:
            yield node


def argument(call, name):
    return next((ast.unparse(word.value) for word in call.keywords if word.arg == name), None)


def test_no_file_is_written_through_a_link():
    """A file that may be there already is opened by an opener that follows no link, or replaced."""
    fresh = {"fork_server.py", "scaffold.py", "client.py"}  # into folders that they have just made
    for path in SOURCES:
        for call in calls(path, "open"):
            writes = len(call.args) > 1 and set(ast.unparse(call.args[1])) & set("wax+")
            assert not writes or argument(call, "opener") in ("no_follow", "private_no_follow"), (path, call.lineno)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                mode = ast.unparse(node.args[0]) if node.args else ""
                appends = node.func.attr == "open" and re.fullmatch("'[wax]b?'", mode)
                assert not appends, (path, node.lineno)
                assert not node.func.attr.startswith("write_t") or path.name in fresh, (path, node.lineno)
                assert node.func.attr != "write_bytes", (path, node.lineno)


def test_every_file_is_read_as_data():
    """No module unpickles, evaluates text, or turns off a check of torch or NumPy."""
    assert len(SOURCES) > 100
    loads = [call for path in SOURCES for call in calls(path, "torch.load")]
    assert loads and all(argument(call, "weights_only") == "True" for call in loads)
    for path in SOURCES:
        assert all(argument(call, "allow_pickle") in (None, "False") for call in calls(path, "np.load")), path
        assert not list(calls(path, "eval", "exec", "joblib.load", "yaml.load", "os.system")), path
        assert all(argument(call, "shell") is None for call in calls(path, "subprocess.run", "subprocess.Popen")), path
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not {alias.name.split(".")[0] for alias in node.names} & UNSAFE, path
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in UNSAFE, path
