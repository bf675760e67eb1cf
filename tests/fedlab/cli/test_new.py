"""`fedlab new`: says what it wrote and how to go on, or why it wrote nothing."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from fedlab.cli.app import app


def call(*arguments):
    return CliRunner().invoke(app, ["new", *map(str, arguments)])


@pytest.mark.parametrize("kind", ["workload", "strategy"])
def test_what_was_written_and_how_to_go_on(tmp_path, kind):
    said = call(kind, "my_own", "--folder", tmp_path)
    assert said.exit_code == 0
    wrote = [line.removeprefix("wrote ") for line in said.output.splitlines() if line.startswith("wrote ")]
    assert len(wrote) == 3 and all((tmp_path / path).exists() for path in wrote)
    assert f"try it:    cd {tmp_path / 'my_own'} && fedlab run my_own:PRESET" in said.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["workload", "My-Own"], "My-Own"), (["workload", "torch"], "torch"), (["rule", "my_own"], "rule")],
)
def test_a_wrong_name_or_kind_is_a_sentence_and_writes_nothing(tmp_path, arguments, words):
    said = call(*arguments, "--folder", tmp_path)
    assert said.exit_code != 0 and words in said.stderr
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path):
    assert call("workload", "my_own", "--folder", tmp_path).exit_code == 0
    again = call("workload", "my_own", "--folder", tmp_path)
    assert again.exit_code == 1 and "my_own" in again.stderr
