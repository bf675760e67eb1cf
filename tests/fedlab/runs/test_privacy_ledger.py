"""The privacy that a client has spent over runs: added up, kept, and limited by its owner."""

from __future__ import annotations

import json

import pytest

from fedlab import registry
from fedlab.errors import ConfigError
from fedlab.privacy.accounting import Release, epsilon
from fedlab.runs.privacy_ledger import DELTA, LEDGER, PrivacyLedger


def config(**options):
    private = {"dualadapt.local_privacy": "moments", "dualadapt.noise_multiplier": 2.0, "dp.noise": "secret"}
    return registry.load_config({"workload": "digits", "strategy": "dualadapt"}, {**private, **options})


def ledger(folder, limit=""):
    return PrivacyLedger.of_client(folder, {"max-epsilon": limit} if limit else {})


def test_releases_of_all_runs_add_up_and_survive_a_restart(tmp_path):
    first, other = Release(2.0), Release(4.0, steps=2, rate=0.1, gradient_noise=3.0)
    assert ledger(tmp_path).spend(first) == epsilon({first: 1}, DELTA)
    ledger(tmp_path).spend(first)
    assert ledger(tmp_path).spend(other) == epsilon({first: 2, other: 1}, DELTA)
    assert ledger(tmp_path).releases() == {first: 2, other: 1}
    assert (tmp_path / LEDGER).stat().st_mode & 0o777 == 0o600


def test_one_more_release_must_fit_the_budget(tmp_path):
    release, two = Release(2.0), epsilon({Release(2.0): 2}, DELTA)
    limited = ledger(tmp_path, str(two * 1.001))
    for _ in range(2):
        limited.check(release, config())
        limited.spend(release)
    with pytest.raises(ConfigError, match="one more release would bring it to"):
        limited.check(release, config())
    ledger(tmp_path).check(release, config())  # without a budget


@pytest.mark.parametrize(
    ("options", "release", "sentence"),
    [
        ({"dp.noise": "seeded"}, Release(2.0), "noise of this run is not secret"),
        ({"strategy": "fedavg"}, None, "'fedavg' .* without noise of the client's own"),
    ],
)
def test_a_budget_refuses_what_is_not_protected(tmp_path, options, release, sentence):
    run = config(**options) if "strategy" not in options else registry.load_config({"workload": "digits", **options})
    with pytest.raises(ConfigError, match=sentence):
        ledger(tmp_path, "8").check(release, run)


def test_what_sends_nothing_costs_nothing(tmp_path):
    run = registry.load_config({"workload": "digits", "strategy": "source_only"})
    ledger(tmp_path, "8").check(None, run)


def test_a_ledger_of_before_there_were_gradients_is_read(tmp_path):
    (tmp_path / LEDGER).write_text(json.dumps({"releases": [{"noise_multiplier": 2.0, "count": 3}]}))
    assert ledger(tmp_path).releases() == {Release(2.0): 3}


def test_a_damaged_ledger_allows_nothing(tmp_path):
    (tmp_path / LEDGER).write_text(json.dumps({"releases": [{"count": 1}]}))
    with pytest.raises(ConfigError, match="is damaged"):
        ledger(tmp_path, "8").check(Release(2.0), config())
