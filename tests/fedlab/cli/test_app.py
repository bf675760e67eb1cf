"""The command line as a user meets it: what it prints, where, and with which exit status."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import toy
from fedlab.cli.errors import handle_errors
from fedlab.cli.run import complete_option, complete_preset
from fedlab.errors import FedlabWarning
from fedlab.registry import load_config, load_run_config
from fedlab.runs.directory import RunDirectory
from in_process import call
from tables import put
from waiting import wait_until

SUPPORT = Path(__file__).parents[2] / "support"


@pytest.fixture(autouse=True)
def _toy_workload(monkeypatch, tmp_path):
    put(monkeypatch, "workload", "blobs", toy.SPEC)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")


def test_print_config_prints_a_preset_that_gives_the_same_configuration_and_runs_nothing(tmp_path):
    text = call("run", toy.write_preset(tmp_path), "rounds=2", "blobs.domains=:dog:,[b]x[/b]", "--print-config").stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["toy.toml"]
    (tmp_path / "printed.toml").write_text(text)
    config = load_config("printed.toml")
    assert config == load_config("toy.toml", {"rounds": 2, "blobs.domains": ":dog:,[b]x[/b]"})
    assert call("run", "printed.toml", "--print-config").stdout == text
    assert "error" in call("run", "printed.toml", "roundz=2", "--print-config", code=1).stderr


def test_a_shell_can_complete_presets_options_and_names():
    assert complete_preset("dualadapt-off") == ["dualadapt-office"]
    assert complete_option("server.st") == ["server.steps="]
    assert complete_option("strategy=fedp") == ["strategy=fedprox", "strategy=fedparts", "strategy=fedper"]
    assert complete_option("rounds=") == []


def test_version_is_that_of_all_that_results_depend_on():
    lines = call("--version").output.splitlines()
    assert {line.split()[0] for line in lines} >= {"fedlab-adapt", "flwr", "torch", "python"}


def test_a_script_is_told_of_an_error_in_its_last_line(tmp_path):
    result = call("run", toy.write_preset(tmp_path), "rounds=0", "--json", code=1)
    last = json.loads(result.stdout.splitlines()[-1])
    assert (last["event"], last["error"]) == ("error", "ConfigError") and "'rounds'" in last["message"]
    assert "error:" in result.stderr


def test_our_warnings_are_sentences(capsys):
    @handle_errors
    def command():
        warnings.warn("3 molecules were set aside", FedlabWarning, stacklevel=1)

    before = warnings.showwarning
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            command()
    finally:
        warnings.showwarning = before
    said = capsys.readouterr().err
    assert said == "warning: 3 molecules were set aside\n"


def test_an_option_without_its_section_is_guessed(tmp_path):
    stderr = call("run", toy.write_preset(tmp_path), "mixup=off", code=1).stderr
    assert "unknown option 'mixup'; did you mean 'dualadapt.mixup'?" in " ".join(stderr.split())


def test_run_prints_rounds_and_a_closing_table_in_plain_lines(tmp_path):
    output = call("run", toy.write_preset(tmp_path), "rounds=2", "--seed", 3).output
    assert "round 2/2" in output
    assert "\x1b[" not in output  # no terminal, no colors or cursor movements
    for word in ("source only", "global", "local", "average", "near", "far", "mean", "bytes", "runs/toy-3"):
        assert word in output.replace("\n", "")


def test_quiet_prints_the_run_directory_and_nothing_else(tmp_path):
    output = call("run", toy.write_preset(tmp_path), "--quiet").output
    assert output.strip() == str(tmp_path / "runs" / "toy-0")


def test_json_prints_one_object_a_line_with_the_result_last(tmp_path):
    lines = [json.loads(line) for line in call("run", toy.write_preset(tmp_path), "--json").output.splitlines()]
    assert {line["event"] for line in lines} >= {"connecting", "phase", "client", "round", "finished", "result"}
    assert [line["round"] for line in lines if line["event"] == "round"] == [0, 1, 2, 3]
    last = lines[-1]
    assert last["event"] == "result"
    assert set(last["clients"]) == {"near", "far"}
    assert len(last["weights_sha256"]) == 64


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "dualadapt-digit"], "did you mean 'dualadapt-digits'"),
        (["run", "dualadapt-digits", "rounds"], "is no override; write key=value"),
        (["run", "dualadapt-digits", "roundz=2"], "did you mean 'rounds'"),
        (["run", "dualadapt-digits", "rounds=two"], "option 'rounds'"),
        (["run", "dualadapt-digits", "--engine", "rays"], "did you mean 'ray'"),
        (["run", "dualadapt-digits", "--device", "cuda:77"], "usable GPUs"),
        (["run", "dualadapt-digits", "data.root=/no/such/folder"], "/no/such/folder"),
        (["run", "dualadapt-digits", "digits.targets=usps,svnh"], "did you mean 'svhn'"),
        (["run", "dualadapt-digits", "digits.setting=shards"], None),
        (["resume", "/no/such/run"], "is no run directory"),
    ],
)
def test_bad_input_is_one_sentence_on_stderr_and_status_1(arguments, words, tmp_path):
    if words is None:
        arguments = ["run", "fedavg-digits", "digits.setting=domains"]
        words = "set strategy=source_only, or one that needs none"
    result = call(*arguments, code=1)
    assert words in " ".join(result.stderr.split())
    assert result.stderr.startswith("error:")
    assert "Traceback" not in result.output
    assert not (tmp_path / "runs").exists()


def test_a_run_that_fails_has_status_1_and_says_where_it_stands(tmp_path):
    result = call("run", toy.write_preset(tmp_path), "blobs.broken=1", code=1)
    assert "partition 1 (far)" in result.stderr
    assert "the disk of this client is gone" in result.stderr


def test_help_has_an_example_and_every_option_a_line():
    output = call("run", "--help").output
    assert "fedlab run dualadapt-digits rounds=3" in output
    assert "Name of a preset" in output
    for option in ("--engine", "--device", "--seed", "--runs", "--quiet", "--json"):
        assert option in output


def test_resuming_a_finished_run_says_that_there_is_nothing_to_do(tmp_path):
    call("run", toy.write_preset(tmp_path, rounds=1), "--quiet")
    before = (tmp_path / "runs" / "toy-0" / "metrics.jsonl").read_bytes()
    assert "this run is finished, and there is nothing to do" in call("resume", "runs/toy-0").output
    assert call("resume", "runs/toy-0", "--quiet").output.strip() == str(tmp_path / "runs" / "toy-0")
    assert (tmp_path / "runs" / "toy-0" / "metrics.jsonl").read_bytes() == before


def test_a_run_is_resumed_for_longer_and_waits_as_long_as_asked(tmp_path):
    call("run", toy.write_preset(tmp_path, rounds=1), "--quiet")
    call("resume", "runs/toy-0", "rounds=2", "--wait", "7", "--quiet")
    found = load_run_config(tmp_path / "runs" / "toy-0" / "config.toml")
    assert (found.run.rounds, found.comm.connect_timeout) == (2, 7.0)


@pytest.mark.engine
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_process_says_how_to_resume(tmp_path, number):
    preset = toy.write_preset(tmp_path, rounds=100)
    script = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored in the background
        f"import sys; sys.path.insert(0, {str(SUPPORT)!r}); import toy; toy.register()\n"
        "from fedlab.cli.app import main; main()"
    )
    command = [sys.executable, "-c", script, "run", preset]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    log = tmp_path / "runs" / "toy-0" / "metrics.jsonl"
    wait_until(lambda: log.exists() and '"round": 2,' in log.read_text(), "round 2", process=process)
    os.kill(process.pid, number)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert f"fedlab resume {tmp_path}/runs/toy-0" in error
    assert "Traceback" not in error
    directory = RunDirectory.open(tmp_path / "runs" / "toy-0")
    assert directory.manifest()["status"] == "interrupted"
    done = directory.rounds()[-1]["round"]
    assert 2 <= done < 100


@pytest.mark.parametrize("name", ["größe", "gr\udcf6sse"])
def test_what_the_terminal_cannot_show_is_replaced_and_nothing_is_lost(name):
    shows = "from rich.markup import escape; from fedlab.cli.common import stdout, show_rows; import csv, json, sys"
    code = (
        f"{shows}; from fedlab.cli import app; "
        "show = lambda: (show_rows('t', [(NAME, 'seen')]), stdout.print(escape(NAME)), "
        "csv.writer(sys.stdout).writerow([NAME, 'last'])); app.app = show; app.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code.replace("NAME", ascii(name))],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(name.encode("ascii", "backslashreplace").decode()) == 3
    assert "seen" in done.stdout and "last" in done.stdout
