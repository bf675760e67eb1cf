"""Each rule beside Flower's class of its name, on random models of several clients.

Within 2e-7 (about one unit in the last place of these weights): a mean is divided by the sum of the weights at the end,
Flower's goes through float64 (FedAdam), and torch's square root is not NumPy's (FedAdagrad, FedYogi).
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping as FlowerFixedClipping
from flwr.supercore.differential_privacy import compute_adaptive_noise_params

from fedlab.seeds import seeded
from fedlab.strategies import aggregation
from fedlab.strategies.aggregation import ClientUpdate
from flower_reference import aggregate as reference
from flower_reference import array_record
from toy import Blobs

COUNTER = "features.2.num_batches_tracked"
LOOSE = 2e-7


def trainable():
    return [name for name, _ in Blobs().model().named_parameters()]


def compare(found, wanted, tolerance):
    for name, tensor in wanted.items():
        if tolerance:
            torch.testing.assert_close(found[name].double(), tensor.double(), rtol=tolerance, atol=tolerance)
        else:
            assert torch.equal(found[name], tensor.to(found[name].dtype)), name


OPTIMIZERS = {
    "fedavgm": (flower.FedAvgM, {"learning_rate": "server_learning_rate", "momentum": "server_momentum"}, LOOSE),
    "fedadagrad": (flower.FedAdagrad, {"learning_rate": "eta", "tau": "tau"}, LOOSE),
    "fedadam": (flower.FedAdam, {"learning_rate": "eta", "beta_1": "beta_1", "beta_2": "beta_2", "tau": "tau"}, LOOSE),
    "fedyogi": (flower.FedYogi, {"learning_rate": "eta", "beta_1": "beta_1", "beta_2": "beta_2", "tau": "tau"}, LOOSE),
}
VALUES = {"learning_rate": 0.03, "momentum": 0.8, "beta_1": 0.6, "beta_2": 0.95, "tau": 0.02}


def test_fedavg(make, start, models):
    floats = [name for name in start if name != COUNTER]
    compare(make("fedavg").aggregate(start, models(1), 1), reference(flower.FedAvg(), models(1), floats), LOOSE)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_server_optimizers_over_three_rounds(make, start, models, name):
    cls, options, tolerance = OPTIMIZERS[name]
    rule = make(name, **{f"{name}.{ours}": VALUES[ours] for ours in options})
    strategy = cls(**{theirs: VALUES[ours] for ours, theirs in options.items()})
    statistics, current = [key for key in start if key not in trainable() and key != COUNTER], start
    for server_round in (1, 2, 3):
        updates = models(server_round, current)
        weights = array_record({key: current[key] for key in trainable()})
        strategy.current_arrays = weights if name == "fedavgm" else {k: a.numpy() for k, a in weights.items()}
        wanted = reference(strategy, updates, trainable(), server_round=server_round)
        current = rule.aggregate(current, updates, server_round)
        compare(current, wanted, tolerance)
        compare(current, reference(flower.FedAvg(), updates, statistics), LOOSE)


def seven(models):
    return [*models(1), *models(2)[:2]]


@pytest.mark.parametrize(
    ("name", "options", "strategy"),
    [
        ("fedmedian", {}, flower.FedMedian()),
        ("fedtrimmedavg", {"trim_fraction": 0.3}, flower.FedTrimmedAvg(beta=0.3)),
        ("krum", {"num_malicious": 1}, flower.Krum(num_malicious_nodes=1)),
        ("multikrum", {"num_malicious": 1}, flower.MultiKrum(num_malicious_nodes=1, num_nodes_to_select=6)),
        ("multikrum", {"num_malicious": 0, "num_selected": 3}, flower.MultiKrum(num_nodes_to_select=3)),
        ("bulyan", {"num_malicious": 0}, flower.Bulyan(num_malicious_nodes=0)),
    ],
)
@pytest.mark.parametrize("count", [5, 6, 7])
def test_robust_rules(make, start, models, name, options, strategy, count):
    """Flower's in float64, as ours; an even number of clients has two middle values."""
    updates = seven(models)[:count]
    if name == "multikrum" and options["num_malicious"]:
        strategy = flower.MultiKrum(num_malicious_nodes=1, num_nodes_to_select=count - 1)
    floats = [key for key in start if key != COUNTER]
    found = make(name, **{f"{name}.{key}": value for key, value in options.items()}).aggregate(start, updates, 1)
    compare(found, reference(strategy, updates, floats, dtype=torch.float64), 0.0)


def test_bulyan_with_one_liar(workload, table, start, models):
    wide = {"blobs.domains": "a,b,c,d,e,f,g", "bulyan.num_malicious": 1}
    rule = aggregation.make(type(workload)(domains=wide["blobs.domains"]), table("bulyan", **wide))
    updates, floats = seven(models), [key for key in start if key != COUNTER]
    lie = {name: tensor if name == COUNTER else tensor + 50 for name, tensor in updates[3].arrays.items()}
    updates[3] = ClientUpdate(lie, 10**9, {})
    same = [ClientUpdate(one.arrays, one.examples, {}) for one in updates]
    found = rule.aggregate(start, updates, 1)
    compare(found, reference(flower.Bulyan(num_malicious_nodes=1), same, floats, dtype=torch.float64), 0.0)


@pytest.mark.parametrize("q", [0.0, 0.5, 2.0])
def test_qfedavg(make, start, models, q):
    rate = 0.02
    strategy = flower.QFedAvg(client_learning_rate=rate, q=q, train_loss_key="start-loss")
    strategy.current_arrays = array_record({name: start[name] for name in trainable()})
    found = make("qfedavg", **{"qfedavg.q": q, "qfedavg.lipschitz": 1 / rate}).aggregate(start, models(1), 1)
    compare(found, reference(strategy, models(1), trainable()), 1e-6)


@pytest.mark.parametrize("z", [0.0, 0.5])
def test_fixed_clipping(make, start, models, z):
    """With equal examples, since Flower weighs clients by them; noise is drawn from the same stream."""
    updates = [ClientUpdate(one.arrays, 1, {}) for one in models(1)]
    strategy = FlowerFixedClipping(flower.FedAvg(), z, 0.5, num_sampled_clients=5)
    strategy.current_arrays = array_record({name: start[name] for name in trainable()})
    with seeded("noise"):
        wanted = reference(strategy, updates, trainable())
    rule = make("dp_fixed", **{"dp_fixed.noise_multiplier": z, "dp_fixed.clipping_norm": 0.5})
    with seeded("noise"):
        found = rule.aggregate(start, updates, 1)
    compare(found, wanted, 2e-5)  # updates just above the norm are left: clients that clip round


@pytest.mark.parametrize("z", [0.1, 0.3])
def test_split_of_the_noise_is_that_of_flower(make, z):
    rule = make("dp_adaptive", **{"dp_adaptive.noise_multiplier": z})
    assert rule.multiplier(7) == compute_adaptive_noise_params(z, 7, None)[1]


@pytest.mark.parametrize("name", ["fedavg", "fedavgm", "fedadam", "qfedavg", "dp_fixed"])
def test_updates_one_by_one_with_weights_that_do_not_sum_to_one(make, start, models, name):
    """A server that learns the number of examples with the last reply adds examples, and divides at the end."""
    rule, other = make(name), make(name)
    assert not rule.needs_all_updates
    with seeded("round"):
        wanted = rule.aggregate(start, models(1), 1)
    other.begin(start)
    total = 0.0
    for update in models(1):
        other.add(update, other.weight(update))
        total += other.weight(update)
    with seeded("round"):
        found = other.finish(1, total)
    for key in start:
        np.testing.assert_allclose(found[key].numpy(), wanted[key].numpy(), rtol=1e-4, atol=1e-6, err_msg=key)
    assert not other.current and not other.sums  # what a round held is released


def test_rules_that_compare_clients_say_that_they_need_all(make):
    for name in ("fedmedian", "fedtrimmedavg", "krum", "multikrum", "bulyan"):
        assert make(name).needs_all_updates
