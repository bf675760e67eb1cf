"""The server's optimizers beside the papers' formulas as a loop over arrays."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedlab.errors import RunError
from fedlab.seeds import seeded
from fedlab.strategies.aggregation import ClientUpdate
from toy import Blobs

COUNTER = "features.2.num_batches_tracked"
WEIGHTS = np.arange(1, 6) / 15


def learned():
    return {name for name, _ in Blobs().model().named_parameters()}


def average(stacked):
    return np.tensordot(WEIGHTS, stacked, 1)


def test_fedavg_is_the_weighted_mean_of_all_floats(make, rounds):
    rounds(make("fedavg"), lambda name, w, clients, server_round: average(clients))


def test_fedavgm_steps_along_a_momentum_and_averages_statistics(make, rounds):
    speed, parameters = {}, learned()

    def step(name, w, clients, server_round):
        if name not in parameters:
            return average(clients)
        speed[name] = 0.8 * speed.get(name, 0) + (w - average(clients))
        return w - 0.5 * speed[name]

    rounds(make("fedavgm", **{"fedavgm.momentum": 0.8, "fedavgm.learning_rate": 0.5}), step)


def test_two_clients_by_hand(make, start):
    """Weights 1 and 3 of 4: from 0, models 2 and 6 have mean 5; the counter takes the largest."""
    zeros = {name: torch.zeros_like(tensor) for name, tensor in start.items()}
    updates = [
        ClientUpdate({name: torch.full_like(tensor, value) for name, tensor in start.items()}, examples, {})
        for value, examples in ((2, 1), (6, 3))
    ]
    mean = make("fedavg").aggregate(zeros, updates, 1)
    assert all((tensor == (6 if name == COUNTER else 5)).all() for name, tensor in mean.items())
    rule = make("fedavgm", **{"fedavgm.momentum": 0.5, "fedavgm.learning_rate": 2.0})
    assert (rule.aggregate(zeros, updates, 1)["head.0.weight"] == 10).all()  # v = -5
    assert (rule.aggregate(zeros, updates, 2)["head.0.weight"] == 15).all()  # v = -7.5
    with pytest.raises(RunError, match="too few replies to aggregate: 0, and"):
        rule.aggregate(zeros, [], 3)


def second_moment(rule, v, change):
    if rule == "fedadagrad":
        return v + change**2
    if rule == "fedadam":
        return 0.95 * v + 0.05 * change**2
    return v - 0.05 * change**2 * np.sign(v - change**2)


@pytest.mark.parametrize("rule", ["fedadagrad", "fedadam", "fedyogi"])
def test_adaptive_rules_are_algorithm_2_of_reddi(make, rounds, rule):
    first, second, parameters = {}, {}, learned()
    beta = 0.0 if rule == "fedadagrad" else 0.6

    def step(name, w, clients, server_round):
        if name not in parameters:
            return average(clients)
        change = average(clients) - w
        first[name] = beta * first.get(name, 0) + (1 - beta) * change
        second[name] = second_moment(rule, second.get(name, np.zeros_like(w)), change)
        rate = 0.03
        if rule == "fedadam":  # Flower counts from round + 1
            rate *= np.sqrt(1 - 0.95 ** (server_round + 1)) / (1 - beta ** (server_round + 1))
        return w + rate * first[name] / (np.sqrt(second[name]) + 0.02)

    betas = {} if rule == "fedadagrad" else {f"{rule}.beta_1": 0.6, f"{rule}.beta_2": 0.95}
    rounds(make(rule, **{f"{rule}.learning_rate": 0.03, f"{rule}.tau": 0.02, **betas}), step)


@pytest.mark.parametrize("rule", ["fedavgm", "fedadagrad", "fedadam", "fedyogi"])
def test_a_restored_rule_goes_on_to_the_same_bits(make, start, models, rule):
    through, before = make(rule), make(rule)
    middle = through.aggregate(start, models(1), 1)
    before.aggregate(start, models(1), 1)
    saved, after = before.state(), make(rule)
    before.aggregate(middle, models(2, middle), 2)  # what was saved does not move with the rule
    after.restore(saved)
    wanted, found = through.aggregate(middle, models(2, middle), 2), after.aggregate(middle, models(2, middle), 2)
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)
    with seeded("fresh"):
        fresh = make(rule).aggregate(middle, models(2, middle), 2)
    assert not all(torch.equal(wanted[name], fresh[name]) for name in wanted)  # it does remember something


def test_without_momentum_and_with_rate_one_fedavgm_is_fedavg(make, start, models):
    plain = make("fedavg").aggregate(start, models(1), 1)
    none = make("fedavgm", **{"fedavgm.momentum": 0.0}).aggregate(start, models(1), 1)
    assert all(torch.equal(plain[name], none[name]) for name in plain)


@pytest.mark.parametrize("rule", ["fedavgm", "fedadam"])
def test_statistics_do_not_overshoot(make, start, models, rule):
    """An optimizer's step on a variance that falls would end below zero."""
    current, name = start, "features.2.running_var"
    option = {f"{rule}.learning_rate": 5.0}
    strategy = make(rule, **option)
    for server_round in range(1, 6):
        given = models(server_round, current)
        current = strategy.aggregate(current, given, server_round)
        assert (current[name] >= 0).all()
