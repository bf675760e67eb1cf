"""The run directory: nothing overwritten, nothing half-written, checkpoints that come back bit for bit."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from importlib import metadata

import numpy as np
import pytest
import torch

from disks import fill, full_disk, small_disk
from fedlab.errors import RunError
from fedlab.files import read_lines
from fedlab.registry import load_config
from fedlab.runs.checkpoints import weights_sha256
from fedlab.runs.directory import RESERVE, RunDirectory
from fedlab.runs.listing import summarize

CONFIG = load_config({"name": "lunch", "seed": 3, "rounds": 2, "digits.targets": "usps", "dualadapt.mixup": "off"})


@pytest.fixture
def run(tmp_path):
    return RunDirectory.create(tmp_path, CONFIG)


def record(server_round):
    return {"round": server_round, "clients": {}, "mean": {}}


# --- making one, and what cannot be written ---


@pytest.mark.parametrize("target", ["nowhere/at/all", "runs"], ids=["link to nowhere", "link to itself"])
def test_a_folder_that_is_a_broken_link_is_refused_and_not_tried_for_ever(target, tmp_path):
    (tmp_path / "runs").symlink_to(target)
    with pytest.raises(RunError, match="no run directory can be made in .*/runs: .*link"):
        RunDirectory.create(tmp_path / "runs", CONFIG)


def test_a_linked_folder_is_used(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "runs").symlink_to("elsewhere")
    assert RunDirectory.create(tmp_path / "runs", CONFIG).path == tmp_path / "elsewhere" / "lunch-3"


def test_a_checkpoint_that_does_not_fit_is_an_error_of_the_disk_and_leaves_the_last_one(run):
    run.checkpoints.save(1, {"arrays": {"w": torch.zeros(10)}}, keep=2)
    with full_disk(100_000), pytest.raises(OSError, match="File too large") as error:  # torch's own error hides it
        run.checkpoints.save(2, {"arrays": {"w": torch.zeros(100_000)}}, keep=2)
    assert error.value.filename == str(run.checkpoints.path(2))
    assert [path.name for path in run.checkpoints.path(1).parent.iterdir()] == ["round-1.pt"]


def test_the_end_of_a_run_is_recorded_and_a_full_disk_does_not_hide_its_reason(run):
    run.note_end(OSError(28, "No space left on device", "x"))
    assert run.manifest()["status"] == "failed" and run.manifest()["error"].startswith("x: no space left")
    run.note_end(KeyboardInterrupt())
    assert (run.manifest()["status"], run.manifest()["error"]) == ("interrupted", None)
    with full_disk():
        run.note_end(ValueError("the reason"))  # raises nothing: whoever calls it raises the reason


def test_a_run_whose_disk_is_full_has_failed_and_does_not_seem_to_run_on(tmp_path):
    with small_disk(tmp_path / "disk", 300_000) as disk:
        run = RunDirectory.create(disk, CONFIG)
        with run:
            run.update_manifest(status="running")
            fill(disk)
            with pytest.raises(OSError, match="No space left") as error:
                run.log_round(record(0))
            run.note_end(error.value)
        assert run.manifest()["status"] == "failed" and "no space left" in run.manifest()["error"]
        assert read_lines(run.path / "events.jsonl")[-1]["event"] == "failed"
        assert summarize(run.path).status == "failed"


def test_a_run_keeps_room_for_its_end_while_it_lasts(run):
    with run:
        assert (run.path / RESERVE).stat().st_size > 50_000
    assert not (run.path / RESERVE).exists()


# --- logs ---


def test_a_torn_last_line_is_left_out(tmp_path):
    path = tmp_path / "log"
    assert read_lines(path) == []
    path.write_text('{"a": 1}\n{"a": 2}\n{"a": ')
    assert read_lines(path) == [{"a": 1}, {"a": 2}]
    path.write_text('{"a": ')
    assert read_lines(path) == []


# --- the hash of weights ---


def test_the_hash_is_over_name_type_shape_and_bytes():
    digest = hashlib.sha256()
    digest.update(b"/a|float32|(2,)|" + np.array([1, 2], np.float32).tobytes())
    digest.update(b"/b/0|int64|()|" + np.int64(7).tobytes())
    nest = {"b": [torch.tensor(7)], "a": torch.tensor([1.0, 2.0])}
    assert weights_sha256(nest) == digest.hexdigest()


def test_the_hash_knows_neither_the_order_of_keys_nor_the_layout_in_memory():
    x = torch.arange(6.0).reshape(2, 3)
    turned = x.T.contiguous().T  # the same matrix, stored by column
    assert not turned.is_contiguous()
    assert weights_sha256({"a": x, "b": x}) == weights_sha256({"b": turned, "a": x.numpy()})


@pytest.mark.parametrize(
    "other",
    [
        {"a": torch.tensor([1.0, 2.0000002])},
        {"b": torch.tensor([1.0, 2.0])},
        {"a": torch.tensor([[1.0, 2.0]])},
        {"a": torch.tensor([1.0, 2.0]).view(torch.int32)},
        {"a": torch.tensor([1.0, 2.0]), "c": torch.tensor([1.0, 2.0])},
        {},
    ],
)
def test_the_hash_tells_different_weights_apart(other):
    assert weights_sha256({"a": torch.tensor([1.0, 2.0])}) != weights_sha256(other)


# --- making and opening ---


def test_a_new_run_never_overwrites_an_old_one(tmp_path):
    paths = [RunDirectory.create(tmp_path, CONFIG).path.name for _ in range(3)]
    assert paths == ["lunch-3", "lunch-3-2", "lunch-3-3"]


def test_a_run_without_a_name_is_called_after_what_it_does_on_the_disk_too(tmp_path):
    run = RunDirectory.create(tmp_path, load_config({"seed": 3, "strategy": "fedavg", "workload": "digits"}))
    assert run.path.name == "fedavg-digits-3"
    assert load_config(str(run.config_file)).run.name == "fedavg-digits"


def test_config_comes_back_wherever_the_directory_now_lies(tmp_path, run):
    assert load_config(str(run.config_file)) == CONFIG
    assert run.path.is_absolute()
    moved = run.path.rename(tmp_path / "elsewhere")
    assert load_config(str(RunDirectory.open(moved).config_file)) == CONFIG
    assert str(tmp_path) not in (moved / "config.toml").read_text()


def test_the_manifest_says_what_made_the_run(run):
    manifest = run.manifest()
    assert (manifest["status"], manifest["seed"], manifest["engine"]) == ("created", 3, "local")
    assert manifest["versions"]["torch"] == metadata.version("torch")
    assert manifest["versions"]["flwr"].startswith("1.39")
    assert "CPUs" in manifest["machine"]
    assert set(manifest) >= {"created", "git_commit"}


def test_notes_add_to_the_manifest_and_replace_what_they_name(run):
    run.update_manifest(status="running", device="cpu")
    run.update_manifest(status="finished")
    assert run.manifest()["status"] == "finished"
    assert run.manifest()["device"] == "cpu"
    assert run.manifest()["seed"] == 3


def test_what_is_no_run_directory_is_refused(tmp_path):
    with pytest.raises(RunError, match="is no run directory: it has no config.toml; `fedlab run` makes one"):
        RunDirectory.open(tmp_path)
    with pytest.raises(RunError, match="is no run directory"):
        RunDirectory.open(tmp_path / "none")


# --- one writer ---


def test_a_second_writer_is_refused_until_the_first_is_done(run):
    with run:
        with pytest.raises(RunError, match="in use by another process"), RunDirectory.open(run.path):
            pass
        assert RunDirectory.open(run.path).manifest()  # reading is always possible
    with RunDirectory.open(run.path):
        pass


def test_the_lock_goes_with_the_process_that_held_it(run):
    code = f"import fcntl, os; f = open({str(run.path / '.lock')!r}, 'w'); fcntl.flock(f, fcntl.LOCK_EX); os._exit(9)"
    assert subprocess.run([sys.executable, "-S", "-c", code]).returncode == 9
    with run:
        pass


# --- logs ---


def test_rounds_come_back_in_order(run):
    assert run.rounds() == []
    for server_round in range(3):
        run.log_round(record(server_round))
    assert run.rounds() == [record(0), record(1), record(2)]


def test_events_are_stamped_lines(run):
    run.emit("phase", round=1, phase="clients")
    run.emit("failed", reason="line\nbreak")
    first, second = read_lines(run.path / "events.jsonl")
    assert (first["event"], first["round"], first["phase"]) == ("phase", 1, "clients")
    assert second["reason"] == "line\nbreak"
    assert second["time"] >= first["time"] > 1.6e9


# --- checkpoints ---


def state(value):
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    return {"arrays": {"w": torch.full((2,), value)}, "strategy": {"optimizer": optimizer, "heads": {1: {}}}}


def test_the_newest_checkpoint_comes_back_bit_for_bit(run):
    assert run.checkpoints.rewind() is None
    for server_round in (0, 1, 2):
        run.log_round(record(server_round))
        run.checkpoints.save(server_round, state(server_round / 3), keep=5)
    server_round, read = run.checkpoints.rewind()
    assert server_round == 2
    assert torch.equal(read["arrays"]["w"], torch.full((2,), 2 / 3))
    assert read["strategy"]["optimizer"]["param_groups"] == [{"lr": 0.1, "params": [0]}]
    assert list(read["strategy"]["heads"]) == [1]  # keys keep their type
    assert len(run.rounds()) == 3


def test_only_the_newest_are_kept_by_number_not_by_name(run):
    for server_round in range(8, 12):
        run.checkpoints.save(server_round, state(0.0), keep=2)
    folder = run.path / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["round-10.pt", "round-11.pt"]
    assert run.checkpoints.latest()[0] == 11


def test_rounds_after_the_checkpoint_are_cut_off_with_a_torn_line(run):
    for server_round in range(3):
        run.log_round(record(server_round))
    run.checkpoints.save(1, state(0.0), keep=2)
    with (run.path / "metrics.jsonl").open("a") as log:
        log.write('{"round": 3, "cli')
    before = (run.path / "metrics.jsonl").read_bytes()
    assert (
        run.checkpoints.latest()[0] == 1 and (run.path / "metrics.jsonl").read_bytes() == before
    )  # looking writes nothing
    assert run.checkpoints.rewind()[0] == 1
    run.log_round({**record(2), "again": True})
    assert run.rounds() == [record(0), record(1), {**record(2), "again": True}]


def test_without_a_checkpoint_a_run_begins_with_an_empty_log(run):
    run.log_round(record(0))
    assert run.checkpoints.rewind() is None
    assert run.rounds() == []


def test_half_a_checkpoint_of_a_killed_run_is_not_taken_for_one(run):
    run.checkpoints.save(1, state(0.0), keep=2)
    whole = (run.path / "checkpoints" / "round-1.pt").read_bytes()
    (run.path / "checkpoints" / ".round-2.tmp").write_bytes(whole[:100])
    assert run.checkpoints.latest()[0] == 1


def test_a_damaged_checkpoint_is_named_and_the_one_before_still_serves(run):
    for server_round in (0, 1, 2):
        run.log_round(record(server_round))
        run.checkpoints.save(server_round, state(0.0), keep=2)
    newest = run.path / "checkpoints" / "round-2.pt"
    newest.write_bytes(newest.read_bytes()[:100])
    with pytest.raises(RunError, match="round-2.pt cannot be read .*delete it to resume one round earlier"):
        run.checkpoints.rewind()
    assert [line["round"] for line in run.rounds()] == [0, 1, 2]  # nothing was lost by looking
    newest.unlink()
    assert run.checkpoints.rewind()[0] == 1


def test_damaged_lines_are_named_and_those_after_the_checkpoint_cut_off(run):
    log = run.path / "metrics.jsonl"
    for server_round in range(2):
        run.log_round(record(server_round))
    run.checkpoints.save(1, state(0.0), keep=2)
    with log.open("a") as stream:
        stream.write("garbage{\n")
    with pytest.raises(RunError, match=r"line 3 of .*metrics\.jsonl is damaged: 'garbage\{'; delete that line"):
        run.rounds()
    assert run.checkpoints.rewind()[0] == 1
    assert run.rounds() == [record(0), record(1)]


@pytest.mark.parametrize("left", ["", "garbage\n", '{"round": 1}\n'])
def test_a_checkpoint_without_its_rounds_is_refused(run, left):
    run.checkpoints.save(1, state(0.0), keep=2)
    (run.path / "metrics.jsonl").write_text(left)
    with pytest.raises(
        RunError, match=r"should be rounds 0 to 1, that of the newest checkpoint.* start anew: fedlab run"
    ):
        run.checkpoints.rewind()
    assert (run.path / "metrics.jsonl").read_text() == left


def test_a_damaged_manifest_is_named(run):
    (run.path / "manifest.json").write_text("nope")
    with pytest.raises(RunError, match=r"manifest\.json is damaged .*; delete it"):
        run.manifest()


def test_a_checkpoint_never_runs_code(run, tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    run.checkpoints.save(1, {"arrays": Trap()}, keep=1)
    with pytest.raises(RunError, match="cannot be read"):
        run.checkpoints.rewind()
    assert not (tmp_path / "sprung").exists()


def test_metrics_are_plain_json(run):
    run.log_round({**record(0), "mean": {"loss": 0.5}})
    assert json.loads((run.path / "metrics.jsonl").read_text())["mean"] == {"loss": 0.5}
