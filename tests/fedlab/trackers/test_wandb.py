"""Weights & Biases' offline files, read back: records of its own protocol in the blocks of a LevelDB log."""

from __future__ import annotations

import json
import struct

import pytest

import fedlab

pytest.importorskip("wandb")

from wandb.proto.wandb_internal_pb2 import Record

pytestmark = pytest.mark.engine  # each run starts a service of Weights & Biases
BLOCK, HEAD = 2**15, struct.Struct("<IHB")  # bytes of a block; checksum, length, and 1 whole, 2 first, 3 middle, 4 last


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")


def log_entries(content):
    """Yield the entries of a LevelDB log that begins behind 7 bytes."""
    place, entry = 7, b""
    while place + HEAD.size <= len(content):
        if (left := BLOCK - place % BLOCK) < HEAD.size:
            place += left
            continue
        _, length, kind = HEAD.unpack_from(content, place)
        place += HEAD.size + length
        entry += content[place - length : place]
        if kind in (1, 4):
            yield entry
            entry = b""


def records(directory, kind):
    """Return the records of one kind in the offline files of a run directory, oldest first."""
    found = []
    for path in sorted(directory.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime):
        for entry in log_entries(path.read_bytes()):
            record = Record()
            record.ParseFromString(entry)
            if record.WhichOneof("record_type") == kind:
                found.append(getattr(record, kind))
    return found


def history(directory):
    """Return step and mean accuracy of each logged round."""
    rows = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.item}
        for record in records(directory, "history")
    ]
    return [(row["_step"], row["mean/accuracy"]) for row in rows]


def test_a_run_is_written_offline_and_goes_on_under_its_identifier(tracked):
    result = tracked("wandb", track_project="scanners")
    assert history(result.directory) == [(record["round"], record["mean"]["accuracy"]) for record in result.rounds]
    (run,) = records(result.directory, "run")
    assert (run.run_id, run.project, run.display_name) == (result.manifest["id"], "scanners", "toy-0")
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["server.steps"] == 2 and config["strategy"] == "source_only"
    assert [end.exit_code for end in records(result.directory, "exit")] == [0]
    fedlab.resume(result.directory, rounds=3)
    assert [step for step, _ in history(result.directory)] == [0, 1, 2, 3]
    assert {run.run_id for run in records(result.directory, "run")} == {result.manifest["id"]}


def test_cells_of_a_comparison_are_a_group(tracked, tmp_path):
    tracked("wandb", compare=True)
    cells = sorted((tmp_path / "comparisons" / "pair" / "cells").iterdir())
    assert [run.run_group for cell in cells for run in records(cell, "run")] == ["pair", "pair"]
