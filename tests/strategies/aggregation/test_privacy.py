"""Clipping, noise and what they are worth, beside the papers' lines and Flower's own wrapper."""

from __future__ import annotations

import math

import pytest
import torch
from flwr.serverapp.strategy import DifferentialPrivacyServerSideAdaptiveClipping as FlowerAdaptive
from flwr.serverapp.strategy import FedAvg

from fedlab.errors import ConfigError
from fedlab.models.batchnorm_stats import adapt_batchnorm
from fedlab.seeds import seeded
from fedlab.strategies.aggregation import ClientUpdate
from fedlab.strategies.aggregation.client import clip
from flower_reference import FlowerReply, array_record

COUNTER, NORM = "features.2.num_batches_tracked", 0.5
QUIET = {"dp_fixed.noise_multiplier": 0.0, "dp_fixed.clipping_norm": NORM}


def learned(workload):
    return [name for name, _ in workload.model().named_parameters()]


def change(arrays, start, names):
    return torch.cat([(arrays[name] - start[name]).double().flatten() for name in names])


def test_without_noise_it_is_the_plain_mean_of_clipped_updates(make, workload, start, models):
    given, names = models(1), learned(workload)
    new = make("dp_fixed", **QUIET).aggregate(start, given, 1)
    updates = [change(one.arrays, start, names) for one in given]
    assert all(update.norm() > NORM for update in updates)
    wanted = torch.stack([update * min(1.0, NORM / float(update.norm())) for update in updates]).mean(0)
    torch.testing.assert_close(change(new, start, names), wanted, rtol=0, atol=1e-6)


def test_one_client_changes_the_sum_by_the_norm_and_by_no_rounding_of_others(make, workload, start, models):
    """Large weights, as of norms of a trained network, and a small norm; without it, all else stays the same."""
    large = {name: tensor * 1000 if tensor.is_floating_point() else tensor for name, tensor in start.items()}
    given = [one for number in range(20) for one in models(number, large, size=0.01)]
    absent = 40
    rule = make("dp_fixed", **{**QUIET, "dp_fixed.clipping_norm": 1e-3})

    def sums(updates):
        rule.begin(large)
        for one in updates:
            rule.add(one, 1.0)
        return torch.cat([rule.sums[name].flatten() for name in learned(workload)])

    without = [ClientUpdate(large, 10, {}) if number == absent else one for number, one in enumerate(given)]
    assert float((sums(given) - sums(without)).norm()) == pytest.approx(1e-3, rel=1e-6)


def test_updates_within_the_norm_are_left(workload, start, models):
    given, names = models(1, size=1e-3), learned(workload)
    same, whole = clip(given[0].arrays, start, set(names), 10.0)
    assert whole and all(torch.allclose(same[name], given[0].arrays[name], atol=1e-7) for name in names)
    still, whole = clip(start, start, set(names), 0.1)  # a norm of 0
    assert whole and all(torch.equal(still[name], start[name]) for name in start)


def test_noise_has_the_size_that_it_says_and_comes_from_the_named_stream(make, workload, start, models):
    given, names = models(1), learned(workload)
    quiet = change(make("dp_fixed", **QUIET).aggregate(start, given, 1), start, names)

    def noisy(number):
        rule = make("dp_fixed", **{**QUIET, "dp_fixed.noise_multiplier": 2.0})
        with seeded("noise", number):
            new = rule.aggregate(start, given, 1)
        return change(new, start, names), rule.metrics()

    (first, metrics), (again, _) = noisy(0), noisy(0)
    assert torch.equal(first, again)
    noise = torch.cat([noisy(number)[0] - quiet for number in range(40)])
    assert metrics["noise"] == pytest.approx(2.0 * NORM / 5)
    assert float(noise.std()) == pytest.approx(metrics["noise"], rel=0.05)
    assert abs(float(noise.mean())) < 0.02


def test_statistics_are_the_servers_own_whatever_clients_send(make, workload, start, models):
    given = models(1)
    for one in given:
        one.arrays["features.2.running_var"].fill_(1e6)
    new = make("dp_fixed", **QUIET).aggregate(start, given, 1)
    model = workload.model()
    model.load_state_dict(new)
    adapt_batchnorm(model, workload.data(None, "train"), 1000, 1.0, torch.device("cpu"))
    for name in ("features.2.running_mean", "features.2.running_var"):
        torch.testing.assert_close(new[name], model.state_dict()[name])
    assert new[COUNTER] == start[COUNTER]


def test_the_norm_follows_the_median_of_the_updates(make, workload, start, models):
    rule = make("dp_adaptive", **{"dp_adaptive.noise_multiplier": 0.0, "dp_adaptive.clipping_norm": 0.01})
    norms = sorted(float(change(one.arrays, start, learned(workload)).norm()) for one in models(1))
    for server_round in range(1, 80):
        rule.aggregate(start, models(1), server_round)
    assert norms[1] < rule.norm < norms[3]


def test_flowers_own_wrapper_runs_away_from_that_median(workload, start, models):
    """Departure 4: should a later Flower mend this, the departure can go."""
    wrapper = FlowerAdaptive(FedAvg(), 0.0, 5, initial_clipping_norm=0.01)
    names = learned(workload)
    wrapper.current_arrays = array_record({name: start[name] for name in names})
    for server_round in range(1, 80):
        replies = [FlowerReply({name: one.arrays[name] for name in names}, 1, {}) for one in models(1)]
        wrapper.aggregate_train(server_round, replies)
    assert wrapper.clipping_norm < 1e-5


def test_one_round_of_adaptive_clipping_is_line_13(make, start, models, workload):
    norms = sorted(float(change(one.arrays, start, learned(workload)).norm()) for one in models(1))
    limit = (norms[2] + norms[3]) / 2  # three of five are left whole
    rule = make(
        "dp_adaptive",
        **{
            "dp_adaptive.noise_multiplier": 0.0,
            "dp_adaptive.clipping_norm": limit,
            "dp_adaptive.quantile": 0.4,
            "dp_adaptive.norm_learning_rate": 0.3,
        },
    )
    rule.aggregate(start, models(1), 1)
    assert rule.norm == pytest.approx(limit * math.exp(-0.3 * (3 / 5 - 0.4)))
    assert rule.metrics()["clipping_norm"] == pytest.approx(limit)


def test_both_noises_of_a_round_cost_one_multiplier(make):
    rule = make("dp_adaptive", **{"dp_adaptive.noise_multiplier": 0.3})
    assert rule.multiplier(5) ** -2 + (2 * rule.count_noise(5)) ** -2 == pytest.approx(0.3**-2)
    with pytest.raises(ConfigError, match=r"needs a count_noise of more than 0.5, and it is 0.25 with 5 clients"):
        make("dp_adaptive", **{"dp_adaptive.noise_multiplier": 1.0})
    make("dp_adaptive", **{"dp_adaptive.noise_multiplier": 1.0, "dp_adaptive.count_noise": 2.0})


def test_clients_that_clip_say_whether_they_had_to(make):
    rule = make("dp_adaptive", **{"dp_adaptive.clip_on": "client"})
    assert rule.client_config() == {"clipping-norm": 0.1} and rule.expected_metrics == {"unclipped"}
    assert rule.validate_metrics({"unclipped": 1.0}) == "" and "expected 0 or 1" in rule.validate_metrics(
        {"unclipped": 1e9}
    )
    assert make("dp_fixed").client_config() == {} and not make("dp_fixed").expected_metrics


def test_its_state_is_its_norm_and_what_was_spent(make, start, models):
    rule, other = make("dp_adaptive"), make("dp_adaptive")
    with seeded("round"):
        rule.aggregate(start, models(1), 1)
    other.restore(rule.state())
    with seeded("next"):
        wanted = rule.aggregate(start, models(2), 2)
    with seeded("next"):
        found = other.aggregate(start, models(2), 2)
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)
    assert other.metrics() == rule.metrics()


def test_secret_noise_differs_from_run_to_run_and_has_the_same_size(make, workload, start, models):
    given, names = models(1), learned(workload)
    quiet = change(make("dp_fixed", **QUIET).aggregate(start, given, 1), start, names)

    def noise():
        with seeded("noise"):
            rule = make("dp_fixed", **{**QUIET, "dp_fixed.noise_multiplier": 2.0, "dp.noise": "secret"})
            return change(rule.aggregate(start, given, 1), start, names) - quiet

    draws = [noise() for _ in range(40)]
    assert not torch.equal(draws[0], draws[1])
    assert float(torch.cat(draws).std()) == pytest.approx(2.0 * NORM / 5, rel=0.05)


def test_secret_noise_of_the_count_moves_the_norm(make, start, models):
    options = {"dp_adaptive.noise_multiplier": 0.1, "dp_adaptive.count_noise": 3.0, "dp.noise": "secret"}
    norms = set()
    for _ in range(3):
        rule = make("dp_adaptive", **options)
        with seeded("count"):
            rule.aggregate(start, models(1), 1)
        norms.add(rule.norm)
    assert len(norms) == 3


def test_a_uniform_sample_of_the_clients_is_accounted_for(make):
    noise = {"dp_fixed.noise_multiplier": 2.0, "fraction_train": 0.2}
    sampled = make("dp_fixed", **noise).account.release
    assert (sampled.noise_multiplier, sampled.sampled, sampled.population) == (2.0, 1, 5)
    everybody = make("dp_fixed", **{**noise, "fraction_train": 1.0}).account.release
    weighted = make("dp_fixed", **{**noise, "sampling": "examples"}).account.release
    assert everybody.sampled == everybody.population and weighted.sampled == weighted.population


def test_a_budget_below_one_round_is_refused_and_one_above_it_ends(make, start, models):
    with pytest.raises(ConfigError, match=r"one more release would bring epsilon to .* dp.max_epsilon=0.5"):
        make("dp_fixed", **{"dp_fixed.noise_multiplier": 1.0, "dp.max_epsilon": 0.5})
    rule = make("dp_fixed", **{"dp_fixed.noise_multiplier": 1.0, "dp.max_epsilon": 5.0})
    assert rule.privacy().exhausted() == ""
    with seeded("round"):
        rule.aggregate(start, models(1), 1)
    assert "above the budget" in rule.privacy().exhausted()
    assert rule.metrics()["epsilon"] == pytest.approx(4.377, abs=1e-3)  # one release with z = 1 at 1e-5
    assert make("dp_fixed", **QUIET).privacy() is None
