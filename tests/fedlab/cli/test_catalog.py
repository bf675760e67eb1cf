"""`fedlab list`, `data` and `doctor`: what there is, what is wrong here, and what a wrong question is told."""

from __future__ import annotations

import pytest

import toy
from fedlab.doctor import Finding
from fedlab.errors import HELP_PAGE
from in_process import call
from tables import put


@pytest.fixture(autouse=True)
def _toy_workload(monkeypatch, tmp_path):
    put(monkeypatch, "workload", "blobs", toy.SPEC)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")


def test_list_names_what_there_is():
    output = call("list").output
    for word in ("dualadapt-digits", "digits", "source_only", "inprocess", "ray", "list options", "list datasets"):
        assert word in output
    assert "fedprox" not in call("list", "engines").output
    assert "synthdigits" in call("list", "datasets").output
    assert "krum" in call("list", "aggregations").output


def test_list_options_shows_every_option_with_its_default():
    output = call("list", "options").output
    assert "dualadapt.mixup" in output
    assert '"average"' in output
    assert "ray.address" in output


def test_in_a_pipe_an_option_begins_a_line_and_the_rest_of_its_description_is_indented(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    for arguments in (("options",), ("options", "dualadapt-digits"), ()):
        lines = call("list", *arguments).output.splitlines()
        assert max(map(len, lines)) <= 120, max(lines, key=len)
    lines = call("list", "options").output.splitlines()
    at = next(at for at, line in enumerate(lines) if line.startswith("server.ema_decay "))
    end = next(end for end in range(at + 1, len(lines)) if not lines[end].startswith(" "))
    own = " ".join(" ".join(lines[at:end]).split())
    assert own.startswith("server.ema_decay 0.98 ") and own.endswith("0: none")


def test_list_options_of_a_section_shows_its_options_with_their_defaults():
    title, heads, *lines = call("list", "options", "client").output.strip().splitlines()
    assert (title, heads.split()) == ("options", ["option", "default"])
    assert all(line.startswith(("client.", " ")) for line in lines)
    assert any(line.startswith("client.batch_size ") for line in lines)
    assert "nothing_such" in call("list", "options", "nothing_such", code=1).stderr


def test_list_options_of_a_preset_shows_its_values(tmp_path):
    lines = call("list", "options", toy.write_preset(tmp_path, rounds=7)).output.splitlines()
    assert any(line.split()[:2] == ["rounds", "7"] for line in lines)
    assert not any(line.startswith("digits.") for line in lines)  # they have no effect there
    assert "only options are of a preset" in call("list", "engines", "toy.toml", code=1).stderr


def test_data_list_shows_where_each_domain_is_read_from():
    output = call("data", "list").output
    assert "the sets inside the package" in output
    for domain in ("mnist", "usps", "mnist_m", "optdigits", "synthdigits", "svhn"):
        assert domain in output


def test_data_download_refuses_a_set_that_it_does_not_know(tmp_path):
    assert "nonesuch" in call("data", "download", tmp_path / "full", "--domains", "nonesuch", code=1).stderr
    assert not list(tmp_path.glob("full/*"))


def test_doctor_has_a_status_and_shows_what_to_do(monkeypatch):
    findings = [Finding("ok", "python 3.11"), Finding("note", "no [GPU]", "none is needed")]
    monkeypatch.setattr("fedlab.doctor.examine", lambda: findings)
    said = call("doctor").output
    assert "ok   python 3.11" in said and "note no [GPU]\n     -> none is needed" in said
    findings.append(Finding("bad", "port 9092 is taken", "end the other server"))
    said = call("doctor", code=1).output
    assert "bad  port 9092 is taken\n     -> end the other server" in said and HELP_PAGE in said
