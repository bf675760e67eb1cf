"""Options of the data that a workload declares to have no effect on it have none, and the others have one."""

from __future__ import annotations

import pytest

from fedlab import registry
from fedlab.errors import ConfigError, DataError
from fedlab.seeds import seeded
from fedlab.workload import unused_options

OTHER = {  # than the default, so that something changes wherever the option is read
    "data.clients_per_domain": 2,
    "data.partition": "quantity",
    "data.alpha": 0.05,
    "data.min_examples": 10**6,
    "data.test_classes": "own",
    "data.max_examples": 120,
}
CASES = {
    "digits": {"digits.targets": "usps"},
    "digits of two clients each": {"digits.targets": "usps", "data.clients_per_domain": 2},
    "digits, divided": {"digits.setting": "shards"},
    "digits, divided at random": {"digits.setting": "shards", "data.partition": "shards"},
    "fewshot": {"fewshot.targets": "usps", "data.clients_per_domain": 2},
    "images": {},
    "generation": {},
    "generation by domain": {"generation.setting": "domains", "generation.targets": "usps"},
    "molecules": {"data.partition": "dirichlet", "data.max_examples": 600},
}


def workload(name, options):
    return registry.load_config({"workload": name.split()[0].strip(","), **options}).workload


def seen(name, options):
    """Return what clients have, in short, or that it is refused."""
    try:
        made, found = workload(name, options), []
        for partition, client in enumerate(made.clients):
            for split in ("train", "test"):
                with seeded("unused options"):
                    data = made.data(partition, split)
                    batch = data[slice(0, 40)]
                found.append((client, len(data), *(float(column.double().sum()) for column in batch.values())))
    except (ConfigError, DataError):
        return "refused"
    return found


@pytest.mark.parametrize("name", CASES)
def test_what_is_declared_to_have_no_effect_has_none_and_the_rest_has_one(name):
    usual, unused = seen(name, CASES[name]), unused_options(workload(name, CASES[name]))
    assert usual != "refused"
    other = {key: value for key, value in OTHER.items() if CASES[name].get(key) != value}
    silent = {key for key, value in other.items() if seen(name, {**CASES[name], key: value}) == usual}
    assert silent == unused & set(other)
