"""Predicting on image files: the same numbers as in testing, from a client's directory and from a run's."""

from __future__ import annotations

import csv
import io
import json
import shutil

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from PIL import Image
from typer.testing import CliRunner

import fedlab
import toy
from fedlab.cli.app import app
from fedlab.client.app import app as client_app
from fedlab.data.digits import datasets
from fedlab.data.digits.folder_files import SkippedFilesWarning
from fedlab.engines.spec import flower_config
from fedlab.errors import ConfigError, DataError, RunError
from fedlab.inference.predict import images, load_predictor, predict
from fedlab.registry import load_config
from fedlab.runs.directory import RunDirectory
from tables import put

TINY = {
    "rounds": 1,
    "threads": 1,
    "device": "cpu",
    "server.pretrain_steps": 40,
    "server.steps": 2,
    "server.batch_size": 64,
    "client.steps": 10,
    "digits.augment": False,
    "data.max_examples": 600,
}


def keep(run, folder, partition):
    """What the client of a partition keeps of the last evaluation message of a run; returns the reply's metrics."""
    config = load_config(str(run.config_file))
    checkpoint = torch.load(run.path / "checkpoints" / f"round-{config.run.rounds}.pt", weights_only=True)
    heads = checkpoint["strategy"].get("heads", {})
    own = {"head": ArrayRecord(heads[partition])} if partition in heads else {}
    arrays, fact = ArrayRecord(checkpoint["arrays"]), ConfigRecord({"server-round": config.run.rounds})
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    message = Message(RecordDict({"arrays": arrays, "config": fact, **own}), 7, "evaluate")
    node = {"partition-id": partition, "num-partitions": 2, "state-dir": str(folder)}
    reply = client_app(message, Context(1, 7, node, RecordDict(), flower_config(config)))
    assert not reply.has_error(), reply.error
    return dict(reply.content["metrics"])


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Two runs of two clients, what the second client of each keeps, and that client's test images as PNG files."""
    home = tmp_path_factory.mktemp("home")
    overrides = {**TINY, "digits.targets": "usps,optdigits"}
    for strategy, preset in (("dualadapt", "dualadapt-digits-heads"), ("source_only", "source-only-digits")):
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("FEDLAB_DATA", raising=False)
            result = fedlab.run(preset, runs=home, overrides={**overrides, "name": strategy})
            measured = keep(RunDirectory.open(result.directory), home / f"{strategy}-client", 1)
        (home / f"{strategy}.json").write_text(json.dumps([measured, result.final()["optdigits"]]))
    test = datasets.load_digits("optdigits", "test").columns
    for number, (pixels, label) in enumerate(zip(test["x"], test["y"], strict=True)):
        path = home / "scans" / f"{number:03}-{int(label)}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path)
    return home


@pytest.fixture
def kept(home, tmp_path):
    """A copy of what a client keeps, to damage."""
    return shutil.copytree(home / "dualadapt-client", tmp_path / "optdigits")


def accuracy(predictions):
    return sum(one.label == int(one.file.stem[-1]) for one in predictions) / len(predictions)


# What is predicted


@pytest.mark.engine
@pytest.mark.parametrize(
    ("strategy", "metric"), [("dualadapt", "accuracy_average"), ("source_only", "accuracy")], ids=str
)
def test_a_clients_model_is_as_right_on_files_as_it_was_in_testing(home, strategy, metric):
    measured, final = json.loads((home / f"{strategy}.json").read_text())
    assert measured[metric] == pytest.approx(final[metric], abs=1e-9)  # the model that is kept is the one of the run
    predictions = predict(home / f"{strategy}-client", [home / "scans"])
    assert len(predictions) == 597
    assert accuracy(predictions) == pytest.approx(measured[metric], abs=1e-9)
    assert accuracy(predictions) > 0.2  # it has learned something: chance is 0.1


def test_a_run_predicts_in_the_place_of_its_clients(home):
    run = home / "source_only-0"
    expected = predict(home / "source_only-client", [home / "scans"])
    assert predict(run, [home / "scans"], client="optdigits") == expected
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    predictor = load_predictor(home / "dualadapt-0", "usps")
    assert (predictor.client, predictor.round) == ("usps", 1)
    assert len(predictor.predict([home / "scans" / "000-*.png"])) == 1
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_runs_heads_are_those_of_the_client_that_is_asked_for(home, tmp_path):
    run = shutil.copytree(home / "dualadapt-0", tmp_path / "run")
    (path,) = (run / "checkpoints").glob("round-1.pt")
    checkpoint = torch.load(path, weights_only=True)
    for name, tensor in checkpoint["strategy"]["heads"][1].items():
        tensor.zero_()
        if name == list(checkpoint["strategy"]["heads"][1])[-1]:  # the bias of the last layer
            tensor[4] = 50.0
    torch.save(checkpoint, path)
    best = {name: {one.label for one in predict(run, [home / "scans"], name)} for name in ("usps", "optdigits")}
    assert best["optdigits"] == {4}
    assert best["usps"] != {4}


def test_probabilities_are_those_of_the_averaged_heads(home):
    predictor = load_predictor(home / "dualadapt-client")
    (one,) = predictor.predict([home / "scans" / "000-*.png"])
    x = predictor.workload.images([one.file])[:]["x"]
    g, average = predictor.module.features, predictor.module.head
    with torch.no_grad():
        p = (average.first(g(x)).softmax(1) + average.second(g(x)).softmax(1))[0] / 2
    best, second = p.topk(2).indices.tolist()
    assert (one.label, one.second) == (best, second)
    assert one.probability == pytest.approx(float(p[best]), abs=1e-5)
    assert one.second_probability == pytest.approx(float(p[second]), abs=1e-5)


def test_portions_and_order_change_nothing(home, monkeypatch):
    files = sorted((home / "scans").glob("00*.png"))
    whole = predict(home / "dualadapt-client", files)
    monkeypatch.setattr("fedlab.inference.predict.FILES", 3)
    monkeypatch.setattr("fedlab.inference.predict.BATCH", 2)
    again = predict(home / "dualadapt-client", files[::-1])
    assert [one.file for one in again] == files[::-1]
    assert [one.label for one in again[::-1]] == [one.label for one in whole]
    assert [one.probability for one in again[::-1]] == pytest.approx([one.probability for one in whole], abs=1e-5)


def test_labels_in_the_names_of_folders_are_not_used(home, tmp_path):
    for name in ("3", "7"):
        (tmp_path / name).mkdir()
        shutil.copy(next((home / "scans").glob("000-*.png")), tmp_path / name / "a.png")
    first, second = predict(home / "dualadapt-client", [tmp_path])
    assert first.row() | {"file": ""} == second.row() | {"file": ""}


# Which images are meant


def test_files_folders_and_patterns_are_found_once_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.jpg", "deep/c.png", "deep/notes.txt", "odd[1].png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    with pytest.warns(SkippedFilesWarning, match=r"1 of 2 files of deep .* the first is notes.txt"):
        names = [str(path) for path in images(["b.jpg", "*.png", "deep", "deep/c.png", "odd[1].png"])]
    assert names == ["b.jpg", "a.png", "odd[1].png", "deep/c.png"]
    assert [str(path) for path in images(["**/*"])] == ["a.png", "b.jpg", "deep/c.png", "odd[1].png"]
    assert [str(path) for path in images(["deep/notes.txt"])] == ["deep/notes.txt"]  # the reader will say what it is


@pytest.mark.parametrize(
    ("paths", "sentence"),
    [
        ([], "no image was named; give image files"),
        (["gone.png"], "there is no file or folder 'gone.png'"),
        (["gone/*.png"], "nothing matches the pattern 'gone/*.png'"),
        (["*.txt"], "none of the 1 paths that match '*.txt' is an image file"),
        (["empty"], "folder empty holds no image"),
    ],
)
def test_no_image_is_refused(tmp_path, monkeypatch, paths, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError) as error:
        images(paths)
    assert sentence in str(error.value)


# Which model is meant


def test_it_has_to_be_said_which_client_of_a_run(home):
    with pytest.raises(ConfigError, match="has 2 clients; say which one with --client: usps, optdigits"):
        load_predictor(home / "dualadapt-0")
    with pytest.raises(ConfigError, match="has no client 'usp'; did you mean 'usps'"):
        load_predictor(home / "dualadapt-0", "usp")


def test_a_client_that_takes_no_part_is_not_in_the_run(home, tmp_path):
    run = shutil.copytree(home / "source_only-0", tmp_path / "run")
    text = (run / "config.toml").read_text()
    assert "\nnum_clients = 0\n" in text
    (run / "config.toml").write_text(text.replace("\nnum_clients = 0\n", "\nnum_clients = 1\n"))
    assert load_predictor(run).client == "usps"
    with pytest.raises(ConfigError, match="has no client 'optdigits'"):
        load_predictor(run, "optdigits")


def test_a_clients_directory_is_of_that_client_alone(home):
    assert load_predictor(home / "dualadapt-client", "optdigits").client == "optdigits"
    with pytest.raises(ConfigError, match="is the model of client 'optdigits', not of 'usps'; leave --client out"):
        load_predictor(home / "dualadapt-client", "usps")


def test_the_newest_checkpoint_is_taken(home, tmp_path):
    run = shutil.copytree(home / "source_only-0", tmp_path / "run")
    shutil.copy(run / "checkpoints" / "round-1.pt", run / "checkpoints" / "round-10.pt")
    (run / "checkpoints" / "round-9.pt").write_bytes(b"torn")
    assert load_predictor(run, "usps").round == 10
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(RunError, match=r"has no checkpoint to predict with; `fedlab run .*/config\.toml` makes one"):
        load_predictor(run, "usps")
    (run / "manifest.json").write_text('{"status": "interrupted"}')
    with pytest.raises(RunError, match="has no checkpoint to predict with; `fedlab resume .*` makes one"):
        load_predictor(run, "usps")


def test_a_directory_without_a_model_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(RunError, match=r"there is no model in .*: expected model\.pt, .* or the config\.toml"):
            load_predictor(path)


def test_a_damaged_model_is_refused(kept, truncate_model):
    with pytest.raises(RunError, match=r"model .*model\.pt cannot be read \(.+\); it is damaged, or another version"):
        load_predictor(kept)


@pytest.fixture(params=["half", "empty", "text", "code"])
def truncate_model(request, kept):
    path = kept / "model.pt"
    if request.param == "code":
        torch.save({"config": {}, "round": 1, "client": "usps", "states": {}, "more": shutil.rmtree}, path)
    else:
        content = path.read_bytes()
        path.write_bytes(
            {"half": content[: len(content) // 2], "empty": b"", "text": b"no model at all"}[request.param]
        )


@pytest.mark.parametrize(
    ("content", "lacks"),
    [
        ([1, 2], "config, round, client, states"),
        ({"weight": torch.zeros(2)}, "config, round, client, states"),
        ({"config": "", "round": "1", "client": "usps", "states": {}}, "round"),
    ],
)
def test_a_file_of_someone_elses_is_refused(kept, content, lacks):
    torch.save(content, kept / "model.pt")
    with pytest.raises(RunError, match=rf"model\.pt is no model of fedlab's: it lacks {lacks};"):
        load_predictor(kept)


def changed(kept, change):
    content = torch.load(kept / "model.pt", weights_only=True)
    change(content)
    torch.save(content, kept / "model.pt")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda content: content.update(config=content["config"].replace('"small"', '"mcd"')),
            "does not fit its own options",
        ),
        (lambda content: content["states"].pop("arrays"), "does not fit its own options .*arrays"),
        (lambda content: content["states"].update(arrays={}), "does not fit its own options"),
        (lambda content: content["states"].update(arrays=3), "does not fit its own options"),
    ],
)
def test_states_that_do_not_fit_are_refused(kept, change, reason):
    changed(kept, change)
    with pytest.raises(RunError, match=rf"model\.pt {reason}.*; it is damaged, or another version"):
        load_predictor(kept)


def test_a_model_that_is_not_finite_is_refused(kept, home):
    changed(kept, lambda content: [tensor.fill_(float("nan")) for tensor in content["states"]["head"].values()])
    with pytest.raises(RunError, match="client 'optdigits' gives values that are not finite"):
        predict(kept, [home / "scans" / "00*.png"])


def test_a_workload_without_images_is_refused(tmp_path, monkeypatch):
    put(monkeypatch, "workload", "blobs", toy.SPEC)
    result = fedlab.run(toy.write_preset(tmp_path, rounds=1), runs=tmp_path)
    for client in (None, "near"):
        with pytest.raises(ConfigError, match="has learned does not tell the class of an image file; there is nothing"):
            load_predictor(result.directory, client)


# The command


def call(*arguments, code=0):
    result = CliRunner().invoke(app, ["predict", *map(str, arguments)], env={"COLUMNS": "160"})
    assert result.exit_code == code, result.output
    return result


def test_the_command_shows_a_table(home, monkeypatch):
    monkeypatch.chdir(home)
    output = call("dualadapt-client", "scans/00*.png").output
    assert "10 images, by the model of client optdigits after round 1" in output
    one = predict("dualadapt-client", ["scans/000-*.png"])[0]
    percent = (f"{100 * value:.1f} %" for value in (one.probability, one.second_probability))
    for word in (str(one.file), *percent, "class", "second"):
        assert word in output
    assert "1 image, by" in call("dualadapt-0", "--client", "usps", one.file).output


def test_the_command_speaks_to_scripts(home, monkeypatch):
    monkeypatch.chdir(home)
    expected = [one.row() for one in predict("dualadapt-client", ["scans/00*.png"])]
    lines = call("dualadapt-client", "scans/00*.png", "--json").stdout.splitlines()
    assert [json.loads(line) for line in lines] == expected
    rows = list(csv.DictReader(io.StringIO(call("dualadapt-client", "scans/00*.png", "--csv").stdout)))
    assert rows == [{name: str(value) for name, value in row.items()} for row in expected]
    assert list(rows[0]) == ["file", "class", "probability", "second", "second_probability"]


def test_a_file_that_cannot_be_read_costs_no_other_its_prediction(home, monkeypatch):
    monkeypatch.chdir(home)
    (home / "bad.png").write_bytes(b"")
    expected = [one.row() for one in predict("dualadapt-client", ["scans/00*.png"])]
    result = call("dualadapt-client", "bad.png", "scans/00*.png", "--json", code=1)
    assert [json.loads(line) for line in result.stdout.splitlines()[: len(expected)]] == expected
    said = " ".join(result.stderr.split())
    assert f"1 of {len(expected) + 1} files cannot be used: image bad.png cannot be read: it is empty" in said
    with pytest.raises(DataError, match="bad.png cannot be read"):
        predict("dualadapt-client", ["bad.png", "scans/00*.png"])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("dualadapt-client", "none.png"), "there is no file or folder 'none.png'"),
        (("dualadapt-client", "bad.png"), "image bad.png cannot be read: it is empty"),
        (("scans", "scans"), "there is no model in scans"),
        (("dualadapt-0", "scans"), "say which one with --client: usps, optdigits"),
        (("dualadapt-client", "scans", "--csv", "--json"), "--csv and --json exclude each other"),
    ],
)
def test_the_command_says_what_is_wrong(home, monkeypatch, arguments, sentence):
    monkeypatch.chdir(home)
    (home / "bad.png").write_bytes(b"")
    output = call(*arguments, code=1).output
    assert sentence in " ".join(output.split())
    assert "Traceback" not in output


def test_images_of_any_size_and_kind_are_predicted(home, tmp_path):
    Image.fromarray(np.full((200, 90, 4), 128, np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.full((7, 9), 128, np.uint8)).save(tmp_path / "b.jpg")
    assert [one.file.name for one in predict(home / "dualadapt-client", [tmp_path])] == ["a.png", "b.jpg"]
