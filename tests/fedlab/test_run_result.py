"""The result of a run in a notebook: models, page, a function called after each round; runs listed and exported."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import fedlab
import toy
from fedlab.cli.app import app
from fedlab.errors import ConfigError, RunError
from fedlab.inference.export import export_model, safetensors
from fedlab.runs.directory import RunDirectory
from fedlab.runs.listing import list_runs
from tables import put

OPTIONS = {"workload": "blobs", "blobs.client_labels": True, "strategy": "fedavg", "threads": 1, "client.steps": 2}
OPTIONS |= {"server.pretrain_steps": 0, "rounds": 2, "name": "toy", "checkpoint.keep": 1}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Two runs, of FedAvg with a function called after each round, and of DualAdapt."""
    home, seen = tmp_path_factory.mktemp("home"), []
    with pytest.MonkeyPatch.context() as monkeypatch:
        put(monkeypatch, "workload", "blobs", toy.SPEC)
        result = fedlab.run(OPTIONS, runs=home, on_round=lambda number, means: seen.append((number, means["accuracy"])))
        other = fedlab.run({**OPTIONS, "strategy": "dualadapt", "name": "adapt"}, runs=home)
        yield home, result, other, seen


def test_the_function_is_called_after_each_round_with_the_means(home):
    _, result, _, seen = home
    assert seen == [(record["round"], record["mean"]["accuracy"]) for record in result.rounds]


def test_an_exception_of_the_function_comes_out_and_the_run_is_kept(home, tmp_path):
    def stop(number, means):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fedlab.run(OPTIONS, runs=tmp_path, on_round=stop)
    assert RunDirectory.open(tmp_path / "toy-0").manifest()["status"] == "finished"


def test_the_model_is_a_plain_module_with_the_metrics_of_the_run(home):
    _, result, _, _ = home
    workload, model = toy.Blobs(), result.model()
    assert isinstance(model, nn.Module) and not model.training
    found = workload.evaluate(model, workload.data(1, "test"))
    assert found["accuracy"] == pytest.approx(result.final()["far"]["accuracy"])
    assert torch.equal(result.model("far").state_dict()["head.0.weight"], model.state_dict()["head.0.weight"])


def test_a_client_predicts_with_its_own_model(home):
    _, _, adapted, _ = home
    x = toy.Blobs().data(1, "test")[:4]["x"]
    near, far = adapted.model("near")(x), adapted.model("far")(x)
    assert near.shape == (4, 3) and not torch.equal(near, far)


def test_clients_and_rounds_that_do_not_exist_are_refused(home):
    _, result, _, _ = home
    with pytest.raises(ConfigError, match="no client 'fa'; did you mean 'far'"):
        result.model("fa")
    with pytest.raises(ConfigError, match="no checkpoint of round 1; it has kept 2"):
        result.model(server_round=1)
    with pytest.raises(ConfigError, match="image file"):
        result.predictor("far")


def test_a_notebook_shows_table_and_curves_and_the_page_can_be_written_again(home):
    _, result, _, _ = home
    shown = result._repr_html_()
    assert shown.startswith("<iframe srcdoc=") and "far" in shown and "&lt;svg" in shown and "<script" not in shown
    page = result.report()
    page.unlink()
    assert result.report() == page and page.is_file()


def test_runs_are_listed_with_status_and_figure(home, tmp_path):
    folder, result, _, _ = home
    manifest = result.directory / "manifest.json"
    before = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**before, "created": "2026-01-01T00:00:00+0000"}))
    first, second = list_runs(folder)
    assert (first.name, first.system, first.status, first.rounds) == ("toy-0", "fedavg on blobs", "finished", "2/2")
    assert first.figure == f"accuracy {100 * result.rounds[-1]['mean']['accuracy']:.1f} %"
    assert second.name == "adapt-0"
    output = CliRunner().invoke(app, ["runs", str(folder), "--json"]).output
    assert [json.loads(line)["name"] for line in output.splitlines()] == ["toy-0", "adapt-0"]
    assert "dualadapt on blobs" in CliRunner().invoke(app, ["runs", str(folder)]).output
    with pytest.raises(RunError, match="no run in"):
        list_runs(tmp_path)


def test_a_run_that_was_killed_and_a_damaged_one_are_listed_as_such(home, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.toml").write_text("rounds = 3\n")
    (tmp_path / "a" / "manifest.json").write_text('{"status": "running", "rounds": 3, "created": "1"}')
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "manifest.json").write_text("{")
    assert [(run.name, run.status) for run in list_runs(tmp_path)] == [("b", "damaged"), ("a", "killed")]
    with RunDirectory.open(tmp_path / "a"):
        assert list_runs(tmp_path)[1].status == "running"


def test_safetensors_have_a_header_and_the_bytes_of_each_tensor():
    content = safetensors({"a": torch.tensor([[1.0, 2.0]]), "b": torch.tensor(3)}, {"run": "r"})
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert length % 8 == 0 and header["__metadata__"] == {"run": "r"}
    assert header["a"] == {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]}
    assert header["b"] == {"dtype": "I64", "shape": [], "data_offsets": [8, 16]}
    assert content[8 + length :] == torch.tensor([1.0, 2.0]).numpy().tobytes() + torch.tensor(3).numpy().tobytes()


def test_a_model_is_exported_or_it_is_said_why_not(home, tmp_path, monkeypatch):
    _, result, _, _ = home
    path = tmp_path / "model.safetensors"
    output = CliRunner().invoke(app, ["export", str(result.directory), str(path)]).output
    assert "wrote" in output and path.stat().st_size > sum(p.numel() * 4 for p in result.model().parameters())
    assert b'"client": "far"' in result.export(tmp_path / "far.safetensors", "far").read_bytes()
    with pytest.raises(ConfigError, match="ends in .safetensors or .onnx"):
        result.export(tmp_path / "model.bin")
    monkeypatch.setattr("fedlab.inference.export.NEEDED", ("no_such_package",))
    with pytest.raises(ConfigError, match="ONNX needs no_such_package; `pip install no_such_package`"):
        export_model(result.directory, tmp_path / "model.onnx")


def test_an_onnx_model_gives_the_same_numbers(home, tmp_path):
    _, result, _, _ = home
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    evaluator = pytest.importorskip("onnx.reference").ReferenceEvaluator
    session = evaluator(onnx.load(export_model(result.directory, tmp_path / "model.onnx")))
    x = toy.Blobs().data(0, "test")[:5]["x"]
    assert torch.allclose(torch.from_numpy(session.run(None, {"x": x.numpy()})[0]), result.model()(x), atol=1e-5)
