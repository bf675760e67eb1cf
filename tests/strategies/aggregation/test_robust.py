"""Robust rules beside their definitions, and what one liar does to each."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from fedlab.errors import ConfigError, RunError
from fedlab.strategies.aggregation import ClientUpdate, robust

COUNTER = "features.2.num_batches_tracked"


def flat(one):
    return np.concatenate([t.double().numpy().ravel() for name, t in one.arrays.items() if name != COUNTER])


def krum_order(given, malicious):
    """Clients by the sum of squared distances to their n - f - 2 nearest others (Blanchard et al., section 4)."""
    vectors = [flat(one) for one in given]
    scores = []
    for i, own in enumerate(vectors):
        others = sorted(np.sum((own - other) ** 2) for j, other in enumerate(vectors) if j != i)
        scores.append(sum(others[: len(vectors) - malicious - 2]))
    return list(np.argsort(scores))


def lying(given, client=2, size=50.0):
    liar = given[client]
    arrays = {name: t if name == COUNTER else t + size for name, t in liar.arrays.items()}
    return [*given[:client], ClientUpdate(arrays, 10**9, liar.metrics), *given[client + 1 :]]


def test_the_median_of_each_coordinate(make, rounds):
    rounds(make("fedmedian"), lambda name, w, clients, server_round: np.median(clients, 0))


def test_the_mean_without_one_at_each_end(make, rounds):
    def step(name, w, clients, server_round):
        return np.sort(clients, 0)[1:-1].mean(0)

    rounds(make("fedtrimmedavg", **{"fedtrimmedavg.trim_fraction": 0.3}), step)


@pytest.mark.parametrize("malicious", [0, 1])
def test_krum_takes_the_model_with_the_nearest_neighbors(make, start, models, malicious):
    given = models(1)
    best = krum_order(given, malicious)[0]
    new = make("krum", **{"krum.num_malicious": malicious}).aggregate(start, given, 1)
    assert all(torch.equal(new[name], given[best].arrays[name]) for name in new if name != COUNTER)


@pytest.mark.parametrize(("selected", "kept"), [(0, 4), (2, 2)])
def test_multikrum_averages_the_best(make, start, models, selected, kept):
    given = models(1)
    best = krum_order(given, 1)[:kept]
    new = make("multikrum", **{"multikrum.num_malicious": 1, "multikrum.num_selected": selected}).aggregate(
        start, given, 1
    )
    weight = sum(given[i].examples for i in best)
    for name in start.keys() - {COUNTER}:
        wanted = sum(given[i].arrays[name].double() * given[i].examples for i in best) / weight
        torch.testing.assert_close(new[name].double(), wanted, rtol=0, atol=1e-6)


def test_bulyan_averages_near_the_median_of_the_best(make, workload, start, models):
    given = [*models(1), *models(2)[:2]]  # seven, enough for f = 1
    workload = type(workload)(domains="a,b,c,d,e,f,g")
    new = make("bulyan", **{"bulyan.num_malicious": 0}).aggregate(start, given[:5], 1)
    for name in start.keys() - {COUNTER}:  # f = 0: all are selected and all are near
        wanted = torch.stack([one.arrays[name].double() for one in given[:5]]).mean(0)
        torch.testing.assert_close(new[name].double(), wanted, rtol=0, atol=1e-6)


def test_bulyan_with_one_liar_among_seven(workload, table, start, models):
    from fedlab.strategies import aggregation

    given = lying([*models(1), *models(2)[:2]], client=3)
    seven = type(workload)(domains="a,b,c,d,e,f,g")
    config = table("bulyan", **{"blobs.domains": "a,b,c,d,e,f,g", "bulyan.num_malicious": 1})
    new = aggregation.make(seven, config).aggregate(start, given, 1)
    chosen = [given[i] for i in krum_order(given, 1)[:5]]  # theta = 7 - 2
    for name in start.keys() - {COUNTER}:
        stacked = np.stack([one.arrays[name].double().numpy() for one in chosen])
        middle = np.median(stacked, 0)
        nearest = np.argsort(np.abs(stacked - middle), 0)[:3]  # beta = 5 - 2
        wanted = np.take_along_axis(stacked, nearest, 0).mean(0)
        np.testing.assert_allclose(new[name].numpy(), wanted, rtol=0, atol=1e-6)


def test_coordinate_rules_by_hand():
    stack = torch.tensor([[1.0, 5.0], [2.0, 6.0], [4.0, 8.0], [9.0, 100.0]], dtype=torch.float64)
    assert robust.median(stack).tolist() == [3.0, 7.0]
    assert robust.median(stack[:3]).tolist() == [2.0, 6.0]
    assert robust.trimmed_mean(stack, 1).tolist() == [3.0, 7.0]
    assert robust.mean_near_median(stack, 3).tolist() == [7 / 3, 19 / 3]  # 1, 2, 4 and 5, 6, 8
    assert robust.mean_near_median(torch.tensor([0.0, 2.0]), 1) == 0.0  # a tie: the first


def test_krum_scores_by_hand():
    """Points 0, 1, 3 and 10 on a line: with n = 4, f = 1 one neighbor counts."""
    distances = robust.squared_distances(torch.tensor([[0.0], [1.0], [3.0], [10.0]], dtype=torch.float64))
    assert distances[0].tolist() == [0.0, 1.0, 9.0, 100.0]
    assert robust.krum_scores(distances, 1).tolist() == [1.0, 1.0, 4.0, 49.0]
    assert robust.krum_scores(distances, 0).tolist() == [10.0, 5.0, 13.0, 49.0 + 81.0]


ROBUST = {
    "fedmedian": {},
    "fedtrimmedavg": {"fedtrimmedavg.trim_fraction": 0.2},
    "krum": {"krum.num_malicious": 1},
    "multikrum": {"multikrum.num_malicious": 1},
}


@pytest.mark.parametrize("rule", ["fedavg", *ROBUST])
def test_one_liar_moves_the_mean_and_no_robust_rule(make, start, models, rule):
    honest = models(1)
    new = make(rule, **ROBUST.get(rule, {})).aggregate(start, lying(honest), 1)
    off = max(float((new[name] - start[name]).abs().max()) for name in start if name != COUNTER)
    assert off > 10 if rule == "fedavg" else off < 1


def test_near_updates_are_told_apart_far_from_the_origin(make, start):
    """In float32, a^2 + b^2 - 2 ab of weights near 100 that differ by 1e-3 is noise."""
    far = {name: t if name == COUNTER else t + 100 for name, t in start.items()}
    sizes = [0.0, 1e-3, 2e-3, 4e-3, 9e-3]
    given = [
        ClientUpdate({name: t if name == COUNTER else t + size for name, t in far.items()}, 1, {}) for size in sizes
    ]
    order = krum_order(given, 1)
    new = make("krum", **{"krum.num_malicious": 1}).aggregate(far, given, 1)
    assert torch.equal(new["head.0.weight"], given[order[0]].arrays["head.0.weight"])


@pytest.mark.parametrize(
    ("rule", "options", "said"),
    [
        ("krum", {"krum.num_malicious": 2}, r"needs 7 replies a round, and this run is sure of 5"),
        ("krum", {"krum.num_malicious": 1, "min_clients": 3}, r"needs 5 replies a round, and this run is sure of 3"),
        (
            "krum",
            {"krum.num_malicious": 1, "join_rounds": "c=2"},
            r"needs 5 replies a round, and this run is sure of 4",
        ),
        ("multikrum", {"multikrum.num_selected": 6}, r"needs 6 replies"),
        ("bulyan", {"bulyan.num_malicious": 1}, r"needs 7 replies"),
        ("fedtrimmedavg", {"fedtrimmedavg.trim_fraction": 0.1}, r"trims none of 5 clients; 10 are needed"),
    ],
)
def test_a_run_that_is_not_sure_of_enough_clients_is_refused(make, rule, options, said):
    with pytest.raises(ConfigError, match=said):
        make(rule, **options)


def test_too_few_replies_are_an_error_and_not_a_skipped_round(make, start, models):
    with pytest.raises(RunError, match="too few replies to aggregate: 2, and"):
        make("bulyan").aggregate(start, models(1)[:2], 1)


def test_the_order_of_clients_does_not_matter_to_a_median(make, start, models):
    given, rule = models(1)[:3], make("fedmedian")
    found = [rule.aggregate(start, list(order), 1)["head.0.weight"] for order in itertools.permutations(given)]
    assert all(torch.equal(found[0], other) for other in found)
