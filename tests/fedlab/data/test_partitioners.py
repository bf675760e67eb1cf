"""One set over clients: disjoint, complete, as skewed as asked, and drawn as published."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedlab.data.partitioners import MIN_EXAMPLES, PARTITIONS, dirichlet, iid, partition_indices, quantity, shards
from fedlab.errors import ConfigError
from fedlab.seeds import seed_of
from fedlab.workloads.domain_suite import KINDS

INF = float("inf")
LABELS = torch.arange(10).repeat_interleave(60)[torch.randperm(600, generator=torch.Generator().manual_seed(0))]


def skew(parts):
    """Mean over clients of the total variation between their classes and the whole set's, in [0, 0.9]."""
    whole = torch.full((10,), 0.1)
    shares = [torch.bincount(LABELS[rows], minlength=10) / len(rows) for rows in parts]
    return float(torch.stack([(share - whole).abs().sum() / 2 for share in shares]).mean())


def lists(parts):
    return [rows.tolist() for rows in parts]


# --- every kind ---


@pytest.mark.parametrize("kind", list(PARTITIONS))
@pytest.mark.parametrize("alpha", [0.4, 10.0, INF])
@pytest.mark.parametrize("clients", [1, 2, 7])
def test_parts_are_disjoint_sorted_and_together_everything(kind, alpha, clients):
    parts = partition_indices(kind, LABELS, clients, alpha, seed=1)
    assert len(parts) == clients
    assert sorted(torch.cat(parts).tolist()) == list(range(600))
    for rows in parts:
        assert len(rows) >= MIN_EXAMPLES
        assert rows.dtype == torch.int64
        assert rows.tolist() == sorted(rows.tolist())


@pytest.mark.parametrize("kind", list(PARTITIONS))
def test_a_split_is_a_function_of_seed_and_number_of_clients(kind):
    torch.manual_seed(0)
    np.random.seed(0)
    first = lists(partition_indices(kind, LABELS, 4, 0.5, 1))
    torch.manual_seed(1)
    np.random.seed(1)
    assert lists(partition_indices(kind, LABELS, 4, 0.5, 1)) == first
    assert lists(partition_indices(kind, LABELS, 4, 0.5, 2)) != first


@pytest.mark.parametrize("kind", list(PARTITIONS))
def test_more_clients_than_examples_can_feed_are_refused(kind):
    with pytest.raises(ConfigError, match="29 examples cannot be split over 3 clients with at least 10 each; ask for"):
        partition_indices(kind, LABELS[:29], 3, 1.0, seed=0)
    assert len(partition_indices(kind, LABELS[:30], 3, INF, seed=0)) == 3


@pytest.mark.parametrize("kind", [kind for kind, line in PARTITIONS.items() if not line.by_label])
def test_what_does_not_go_by_label_ignores_labels(kind):
    assert lists(partition_indices(kind, LABELS, 3, 0.5, 0)) == lists(
        partition_indices(kind, torch.zeros(600), 3, 0.5, 0)
    )


def test_an_unknown_kind_gets_a_suggest_and_workloads_offer_the_table():
    with pytest.raises(ConfigError, match="no partition 'dirichelt'; did you mean 'dirichlet'"):
        partition_indices("dirichelt", LABELS, 2, 1.0, 0)
    assert set(KINDS) == set(PARTITIONS)


@pytest.mark.parametrize("kind", ["dirichlet", "quantity"])
def test_a_skew_that_starves_a_client_ends_with_a_sentence(kind):
    with pytest.raises(ConfigError, match=r"no split of 600 examples over 20 clients with alpha=0.001 .* raise alpha"):
        partition_indices(kind, LABELS, 20, 1e-3, seed=0)
    with pytest.raises(ConfigError, match="no split of 600 examples"):
        partition_indices(kind, LABELS, 20, 1e-300, seed=0)


# --- iid ---


def test_iid_shares_out_every_row_evenly_by_a_draw_of_the_seed():
    parts = iid(LABELS[:53], 5, INF, seed=2)
    assert sorted(torch.cat(parts).tolist()) == list(range(53))
    assert [len(rows) for rows in parts] == [11, 11, 11, 10, 10]
    assert parts[0].tolist() != list(range(11))


# --- dirichlet ---


def test_skew_grows_as_alpha_falls():
    skews = [skew(dirichlet(LABELS, 4, alpha, seed=1)) for alpha in (INF, 100.0, 1.0, 0.1)]
    assert skews == sorted(skews)
    assert skews[0] == 0.0
    assert skews[1] < 0.1
    assert skews[3] > 0.5


def test_infinite_alpha_shares_every_class_equally():
    for rows in dirichlet(LABELS, 4, INF, seed=1):
        assert torch.bincount(LABELS[rows], minlength=10).tolist() == [15] * 10


def test_which_examples_of_a_class_a_client_gets_is_drawn():
    first, _ = dirichlet(LABELS, 2, INF, seed=1)
    of_class = torch.nonzero(LABELS == 0)[:, 0].tolist()
    taken = [row in set(first.tolist()) for row in of_class]
    assert sum(taken) == 30
    assert taken != [True] * 30 + [False] * 30


@pytest.mark.parametrize("alpha", [0.05, 0.5])
def test_dirichlet_is_a_plain_loop_over_classes_and_clients(alpha):
    generator = np.random.default_rng(seed_of(3, "dirichlet", 5))
    y = LABELS.tolist()
    while True:
        wanted = [[] for _ in range(5)]
        for label in range(10):
            shares = generator.dirichlet([alpha] * 5)
            rows = generator.permutation([row for row in range(600) if y[row] == label]).tolist()
            start, total = 0, 0.0
            for client in range(5):
                total += shares[client]
                end = 60 if client == 4 else round(total * 60)
                wanted[client] += rows[start:end]
                start = end
        if min(len(rows) for rows in wanted) >= 10:
            break
    assert lists(dirichlet(LABELS, 5, alpha, seed=3)) == [sorted(rows) for rows in wanted]


# --- shards ---


def test_shards_are_two_pieces_of_the_sorted_set_for_each():
    """Four clients, ten classes of 60: eight pieces of 75 rows, in each of which are two classes at most."""
    y = LABELS.tolist()
    in_order = sorted(range(600), key=lambda row: (y[row], row))
    pieces = {frozenset(in_order[75 * number : 75 * number + 75]) for number in range(8)}
    dealt = []
    for rows in shards(LABELS, 4, INF, seed=1):
        mine = {piece for piece in pieces if piece <= set(rows.tolist())}
        assert len(mine) == 2 and len(rows) == 150
        dealt += mine
        assert len(LABELS[rows].unique()) <= 4
    assert set(dealt) == pieces


def test_mcmahans_clients_have_two_classes():
    """Sixty rows of each of ten classes, pieces of 60: each piece is one class."""
    for rows in shards(LABELS, 5, INF, seed=0):
        assert sorted(torch.bincount(LABELS[rows], minlength=10).tolist(), reverse=True)[:3] in (
            [60, 60, 0],
            [120, 0, 0],
        )


# --- quantity ---


def test_sizes_follow_the_draw_and_labels_do_not():
    shares = np.random.default_rng(seed_of(4, "quantity", 3)).dirichlet([2.0] * 3)
    parts = quantity(LABELS, 3, 2.0, seed=4)
    assert [len(rows) for rows in parts] == pytest.approx(600 * shares, abs=1)
    assert skew(parts) < 0.15


def test_sizes_spread_as_alpha_falls():
    def spread(alpha):
        return float(np.mean([np.std([len(rows) for rows in quantity(LABELS, 5, alpha, seed)]) for seed in range(9)]))

    spreads = [spread(alpha) for alpha in (INF, 100.0, 1.0, 0.4)]
    assert spreads == sorted(spreads)
    assert spreads[0] == 0.0
