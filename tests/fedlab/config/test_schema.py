"""The sections that every run has: ranges, descriptions, and what is derived from them."""

from __future__ import annotations

import pytest

from fedlab.config.data_options import SHARDS, DataConfig
from fedlab.config.run_options import CheckpointConfig, CommConfig, RunConfig
from fedlab.config.schema import COMMON_SECTIONS, parse_join_rounds
from fedlab.config.sections import options, parse_section
from fedlab.config.training_options import ClientConfig, ServerConfig
from fedlab.errors import ConfigError
from fedlab.registry import all_sections, load_config

# --- options ---


def test_every_option_is_described_and_of_a_type_that_toml_has():
    for option in options(all_sections()).values():
        assert option.description, option.key
        assert type(option.default) in (bool, int, float, str), option.key


def test_keys_of_the_common_sections():
    table = options(COMMON_SECTIONS)
    assert table["rounds"].default == RunConfig().rounds
    assert table["server.steps"].default == ServerConfig().steps
    assert table["client.steps"].default == ClientConfig().steps
    assert "data.client_folder" not in table and "data.seed" not in table


@pytest.mark.parametrize(
    ("engine", "agreement", "limited"),
    [("grpc", "auto", True), ("grpc", "off", False), ("inprocess", "auto", False), ("inprocess", "limit", True)],
)
def test_clients_limit_each_other_where_they_are_real(engine, agreement, limited):
    config = load_config({"engine": engine, "server.agreement": agreement})
    assert config.clients_limit_each_other is limited


def test_strings_of_a_command_line_become_typed_values():
    run = parse_section(RunConfig, "", {"rounds": "3", "engine": "ray", "budget_bytes": "5e6"})
    assert (run.rounds, run.engine, run.budget_bytes) == (3, "ray", 5e6)
    assert type(run.rounds) is int
    assert parse_section(CommConfig, "comm", {"comm.idle_timeout": "0.5"}).idle_timeout == 0.5
    assert parse_section(CheckpointConfig, "checkpoint", {"checkpoint.keep_initial": "yes"}).keep_initial is True


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("rounds", "many", r"option 'rounds' \(federated rounds\): got 'many'; input should be a valid int"),
        ("rounds", 0, "got 0; .*greater than or equal to 1"),
        ("rounds", 2.5, "got 2.5"),
        ("seed", -1, "got -1"),
        ("device", "gpu", "got 'gpu'"),
        ("device", "cuda:x", "got 'cuda:x'"),
        ("name", "../elsewhere", "got '../elsewhere'"),
        ("budget_seconds", "inf", "got 'inf'"),
        ("comm.idle_timeout", 0, "got 0; .*greater than 0"),
        ("comm.compression", "int4", "got 'int4'; .*'float32', 'float16' or 'int8'"),
        ("checkpoint.keep", 0, "got 0"),
        ("data.num_clients", -1, "got -1"),
        ("data.clients_per_domain", 0, "got 0"),
        ("data.alpha", 0, "got 0; .*greater than 0"),
        ("data.alpha", "inf", "got 'inf'; .*finite"),
        ("server.learning_rate", "inf", "got 'inf'; .*finite"),
        ("server.learning_rate", 0.0, "got 0.0"),
        ("server.ema_decay", 1.0, "got 1.0; .*less than 1"),
        ("server.batch_size", 1, "got 1; "),
        ("server.final_lr_fraction", 0, "got 0"),
        ("client.learning_rate", "nan", "got 'nan'"),
        ("client.optimizer", "lbfgs", "got 'lbfgs'; .*'sgd' or 'adam'"),
        ("client.max_grad_norm", -1, "got -1"),
    ],
)
def test_a_value_out_of_range_is_named_with_its_key_and_what_was_expected(key, value, sentence):
    prefix = key.rpartition(".")[0]
    with pytest.raises(ConfigError, match=rf"option '{key}'.*{sentence}" if "option" not in sentence else sentence):
        parse_section(COMMON_SECTIONS[prefix], prefix, {key: value})


# --- data ---


def test_one_set_is_divided_among_as_many_clients_as_asked_for():
    assert DataConfig().num_shards == SHARDS
    assert DataConfig(num_clients=7).num_shards == 7


def test_how_a_set_is_divided_is_the_workloads_default_or_what_it_can_do():
    assert DataConfig().partition_kind("scaffold", "iid") == "scaffold"
    assert DataConfig(partition="iid").partition_kind("scaffold", "iid") == "iid"
    with pytest.raises(ConfigError, match="option 'data.partition': got 'size'; this workload has scaffold, iid"):
        DataConfig(partition="size").partition_kind("scaffold", "iid")


# --- the tree ---


def test_options_are_those_of_what_is_in_use_by_key_and_typed():
    config = load_config({"strategy": "self_training", "self_training.aggregation": "fedadam", "rounds": "7"})
    values = config.options()
    assert values["rounds"] == config.run.rounds == 7
    assert values["digits.targets"] == config.workload.targets
    assert values["fedadam.learning_rate"] == config.aggregation.learning_rate
    sections = {key.rpartition(".")[0] for key in values}
    assert sections == {
        "",
        "comm",
        "checkpoint",
        "data",
        "server",
        "client",
        "dp",
        "stop",
        "digits",
        "self_training",
        "fedadam",
    }


def test_clients_are_those_of_the_workload_that_take_part():
    every = load_config({"digits.targets": "usps,optdigits,mnist_m"})
    assert every.clients == ("usps", "optdigits", "mnist_m")
    assert load_config({"digits.targets": "usps,optdigits,mnist_m", "data.num_clients": 2}).clients == every.clients[:2]


def test_the_data_section_reaches_the_workload_with_the_runs_seed():
    config = load_config({"seed": 5, "data.max_examples": 20, "data.alpha": 0.1})
    assert config.workload.data_config is config.data
    assert (config.data.seed, config.data.max_examples, config.data.alpha) == (5, 20, 0.1)


def test_a_clients_own_data_is_of_its_machine_and_is_not_written():
    config = load_config({}, {}, client_folder="/home/me/scans")
    assert config.workload.data_config.client_folder == "/home/me/scans"
    assert "/home/me" not in config.to_toml()


# --- clients that join late ---

NAMES = {0: "near", 1: "far", 2: "late"}


def test_rounds_of_late_joiners_by_partition():
    assert parse_join_rounds(" late=3, far = 2,", NAMES) == {2: 3, 1: 2}
    assert parse_join_rounds("", NAMES) == {}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("late", "'late' is not client=round with a round from 1"),
        ("late=0", "'late=0' is not client=round"),
        ("late=x", "'late=x' is not client=round"),
        ("lat=2", "this run has no client 'lat'; did you mean 'late'"),
        ("near=1,far=2,late=3", "every client joins late"),
    ],
)
def test_late_joiners_that_make_no_sense_are_refused(text, sentence):
    with pytest.raises(ConfigError, match=sentence):
        parse_join_rounds(text, NAMES)
