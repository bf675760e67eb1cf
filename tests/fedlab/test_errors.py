from __future__ import annotations

import pytest

from fedlab.errors import MAX_NAMES, ConfigError, DataError, FedlabError, RunError, suggest


def test_a_close_name_is_proposed():
    assert suggest("dualadpt", ["fedavg", "dualadapt"]) == "did you mean 'dualadapt'?"


def test_a_few_names_are_all_listed_when_none_is_close():
    assert suggest("zzz", ["b", "a"]) == "known: a, b."


def test_many_names_are_not():
    assert suggest("zzz", [f"option-{i}" for i in range(MAX_NAMES + 1)]) == "nothing known has a name like that."


@pytest.mark.parametrize("kind", [ConfigError, DataError, RunError])
def test_every_error_of_ours_is_caught_as_one(kind):
    assert issubclass(kind, FedlabError)
