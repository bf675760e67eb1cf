"""What a client's owner allows: by default what the first run asked, and each option for itself."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fedlab import registry
from fedlab.errors import ConfigError
from fedlab.runs.consent import CONSENT, Request, check_consent, config_digest, run_key

DUALADAPT, FEDAVG = Request("dualadapt", "head", 5), Request("fedavg", "model", 5)


def test_a_run_asks_for_what_its_strategy_declares():
    for name, upload in (("dualadapt", "head"), ("fedavg", "model"), ("adabn", "nothing"), ("fedmedian", "model")):
        config = registry.load_config({"workload": "digits", "strategy": name, "rounds": 7})
        assert Request.of(config) == Request(name, upload, 7)


def test_the_first_run_is_the_default_and_is_kept(tmp_path):
    check_consent(tmp_path, {}, DUALADAPT)
    assert (tmp_path / CONSENT).stat().st_mode & 0o777 == 0o600
    check_consent(tmp_path, {}, replace(DUALADAPT, rounds=3))
    with pytest.raises(ConfigError, match=r"strategy 'fedavg', and its owner allows dualadapt; `fedlab join --allow"):
        check_consent(tmp_path, {}, FEDAVG)
    with pytest.raises(ConfigError, match=r"has 6 rounds, and this client's owner allows 5"):
        check_consent(tmp_path, {}, replace(DUALADAPT, rounds=6))
    with pytest.raises(ConfigError, match="sends the client's model, and its owner allows to send head"):
        check_consent(tmp_path, {}, replace(DUALADAPT, upload="model"))


def test_what_is_refused_is_not_taken_for_the_first_run(tmp_path):
    with pytest.raises(ConfigError):
        check_consent(tmp_path, {"allow": "dualadapt"}, FEDAVG)
    assert not (tmp_path / CONSENT).exists()


def test_an_option_goes_over_the_first_run_for_itself(tmp_path):
    check_consent(tmp_path, {}, DUALADAPT)
    with pytest.raises(ConfigError, match="allows to send head"):
        check_consent(tmp_path, {"allow": "dualadapt, fedavg"}, FEDAVG)
    check_consent(tmp_path, {"allow": "dualadapt,fedavg", "allow-upload": "model"}, FEDAVG)
    check_consent(tmp_path, {"max-rounds": "9"}, replace(DUALADAPT, rounds=9))


def test_where_nothing_is_kept_only_the_options_restrict():
    check_consent(None, {}, FEDAVG)
    with pytest.raises(ConfigError):
        check_consent(None, {"allow-upload": "head"}, FEDAVG)


def test_runs_of_other_options_have_other_keys_and_a_longer_one_has_the_same():
    load = registry.load_config
    one = load({"strategy": "dualadapt", "rounds": 2})
    assert run_key(one) == run_key(load({"strategy": "dualadapt", "rounds": 9}))
    assert run_key(one) != run_key(load({"strategy": "dualadapt", "rounds": 2, "seed": 1}))
    assert config_digest(one) != config_digest(load({"strategy": "dualadapt", "rounds": 3}))
