from __future__ import annotations

import errno

import pytest

from fedlab.errors import (
    MAX_NAMES,
    REMEDIES,
    ConfigError,
    DataError,
    FedlabError,
    RunError,
    os_error_sentence,
    plural,
    suggest,
)


def test_a_close_name_is_proposed():
    assert suggest("dualadpt", ["fedavg", "dualadapt"]) == "did you mean 'dualadapt'?"


def test_a_few_names_are_all_listed_when_none_is_close():
    assert suggest("zzz", ["b", "a"]) == "known: a, b."


def test_many_names_are_not():
    assert suggest("zzz", [f"option-{i}" for i in range(MAX_NAMES + 1)]) == "nothing known has a name like that."


def test_one_thing_has_no_plural():
    counts = [(0, "0 cells"), (1, "1 cell"), (2, "2 cells"), (12345, "12,345 cells")]
    assert [plural(count, "cell") for count, _ in counts] == [words for _, words in counts]


@pytest.mark.parametrize("kind", [ConfigError, DataError, RunError])
def test_every_error_of_ours_is_caught_as_one(kind):
    assert issubclass(kind, FedlabError)


def test_an_error_of_the_system_is_a_sentence_with_place_and_remedy(tmp_path):
    for make in (lambda: (tmp_path / "none").read_text(), lambda: tmp_path.read_text()):
        with pytest.raises(OSError, match="Errno") as error:
            make()
        said = os_error_sentence(error.value)
        assert said.startswith(f"{tmp_path}") and said.endswith(REMEDIES[error.value.errno])
    assert os_error_sentence(OSError(errno.EIO, "Input/output error", b"/dev/x")) == "/dev/x: input/output error"
    assert os_error_sentence(OSError("made by a library")) == "made by a library"
    assert os_error_sentence(TimeoutError()) == "TimeoutError"
