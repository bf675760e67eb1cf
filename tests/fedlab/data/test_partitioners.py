"""One set over clients: disjoint, complete, as skewed as asked, and drawn as published."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedlab.data.partitioners import (
    MIN_EXAMPLES,
    PARTITIONS,
    balanced_dirichlet,
    dirichlet,
    held_out_indices,
    iid,
    matching_indices,
    partition_indices,
    quantity,
    shards,
)
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


@pytest.mark.parametrize("alpha", [1e-3, 1e-300])
def test_a_skew_that_starves_a_client_ends_with_a_sentence(alpha):
    with pytest.raises(ConfigError, match=r"no split of 600 examples over 20 clients with alpha=.* raise alpha"):
        dirichlet(LABELS, 20, alpha, seed=0)


@pytest.mark.parametrize("kind", [kind for kind in PARTITIONS if kind != "dirichlet"])
@pytest.mark.parametrize("alpha", [1e-300, 1e-3, 0.1])
def test_other_schemes_serve_any_number_of_clients_at_any_skew(kind, alpha):
    """600 examples, 200 clients of three: nobody gets less than asked for, and nothing is lost."""
    parts = partition_indices(kind, LABELS, 200, alpha, 0, 2)
    assert min(map(len, parts)) >= 2
    assert sorted(torch.cat(parts).tolist()) == list(range(600))


@pytest.mark.parametrize("kind", list(PARTITIONS))
def test_the_smallest_client_is_an_option(kind):
    with pytest.raises(ConfigError, match="at least 4 each; ask for fewer clients, or lower data.min_examples"):
        partition_indices(kind, LABELS, 200, INF, 0, 4)
    assert min(map(len, partition_indices(kind, LABELS, 40, INF, 0, 4))) >= 4


def test_an_odd_minimum_is_kept_where_pieces_are_uneven():
    """35 rows in 20 pieces: 15 of two and 5 of one, so that some client of ten could get two rows."""
    with pytest.raises(ConfigError, match="35 examples cannot be split over 10 clients with at least 3"):
        shards(LABELS[:35], 10, INF, 0, 3)
    assert min(map(len, shards(LABELS[:35], 10, INF, 0, 2))) >= 2


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


def test_sizes_are_the_minimum_and_a_draw_and_labels_do_not_matter():
    shares = np.random.default_rng(seed_of(4, "quantity", 3)).dirichlet([2.0] * 3)
    parts = quantity(LABELS, 3, 2.0, seed=4)
    assert [len(rows) for rows in parts] == pytest.approx(10 + 570 * shares, abs=1)
    assert skew(parts) < 0.15


def test_sizes_spread_as_alpha_falls():
    def spread(alpha):
        return float(np.mean([np.std([len(rows) for rows in quantity(LABELS, 5, alpha, seed)]) for seed in range(9)]))

    spreads = [spread(alpha) for alpha in (INF, 100.0, 1.0, 0.4)]
    assert spreads == sorted(spreads)
    assert spreads[0] == 0.0


# --- balanced dirichlet ---


def test_balanced_clients_have_equal_sizes_and_skewed_labels():
    skews = []
    for alpha in (INF, 100.0, 1.0, 0.1):
        parts = balanced_dirichlet(LABELS, 7, alpha, seed=1)
        assert {len(rows) for rows in parts} <= {85, 86}
        skews.append(skew(parts))
    assert skews[1] < skews[2] < skews[3]
    assert skews[0] < 0.2 and skews[3] > 0.5


def test_a_balanced_client_gets_the_classes_that_it_draws():
    generator = np.random.default_rng(seed_of(5, "balanced dirichlet", 20))
    wanted = generator.dirichlet([0.5] * 10, 20)
    parts = balanced_dirichlet(LABELS, 20, 0.5, seed=5)
    got = np.stack([torch.bincount(LABELS[rows], minlength=10).numpy() / 30 for rows in parts])
    assert np.corrcoef(wanted.ravel(), got.ravel())[0, 1] > 0.8


def test_rare_classes_are_rare_among_clients_too():
    labels = torch.cat([torch.zeros(5400), torch.ones(600)]).long()
    parts = balanced_dirichlet(labels, 100, 1.0, seed=0)
    rare = torch.tensor([float((labels[rows] == 1).float().mean()) for rows in parts])
    assert float(rare.mean()) == pytest.approx(0.1)
    assert float(rare.median()) < 0.1 < float(rare.max())


# --- test examples ---


def test_tests_are_divided_while_there_are_ten_for_each():
    assert lists(held_out_indices("iid", LABELS, 60, 3)) == lists(iid(LABELS, 60, INF, 3))
    assert lists(held_out_indices("dirichlet", LABELS, 5, 3)) == lists(dirichlet(LABELS, 5, INF, 3))


@pytest.mark.parametrize("kind", ["iid", "dirichlet"])
def test_many_clients_share_test_examples_and_none_goes_without(kind):
    parts = held_out_indices(kind, LABELS, 1200, 3)
    assert len(parts) == 1200
    assert {len(set(rows.tolist())) for rows in parts} == {10}
    assert torch.bincount(torch.cat(parts), minlength=600).tolist() == [20] * 600
    assert lists(held_out_indices(kind, LABELS, 1200, 4)) != lists(parts)
    assert [rows.tolist() for rows in held_out_indices(kind, LABELS[:3], 2, 0)] == [[0, 1, 2]] * 2


def test_a_division_without_a_draw_gives_no_advice_on_alpha():
    labels = torch.arange(10).repeat_interleave(24)  # over 24 clients one of each class, 10 in all
    assert {len(rows) for rows in dirichlet(labels, 24, INF, seed=0)} == {10}
    uneven = torch.cat([labels[:-3], labels[:3]])
    with pytest.raises(
        ConfigError, match="each class divided evenly over 24 clients.*; ask for fewer clients"
    ) as error:
        dirichlet(uneven, 24, INF, seed=0)
    assert "alpha" not in str(error.value)


# --- test examples with the classes of a client's own ---


def test_a_client_tests_on_the_classes_that_it_trains_on():
    labels = torch.arange(4).repeat(25)
    own = [torch.tensor([0, 0, 0, 1]), torch.tensor([2]), torch.tensor([0, 1, 2, 3, 3]), torch.tensor([0, 1, 2])]
    parts = matching_indices(labels, own, seed=3)
    assert [labels[rows].bincount(minlength=4).tolist() for rows in parts] == [
        [19, 6, 0, 0],  # 18.75 and 6.25 of 25
        [0, 0, 25, 0],
        [5, 5, 5, 10],
        [9, 8, 8, 0],  # 25 / 3 each; the first gets what is left
    ]
    assert all(len(rows.unique()) == len(rows) for rows in parts)
    assert all(map(torch.equal, parts, matching_indices(labels, own, seed=3)))
    assert not all(map(torch.equal, parts, matching_indices(labels, own, seed=4)))


def test_examples_of_a_class_are_used_equally_often_by_clients_that_share_them():
    labels = torch.arange(2).repeat(10)
    parts = matching_indices(labels, [torch.tensor([0])] * 7 + [torch.tensor([1])] * 3, seed=0)
    used = torch.cat(parts).bincount(minlength=20)
    assert used[0::2].tolist() == [7] * 10 and used[1::2].tolist() == [3] * 10
    few = matching_indices(labels[:6], [torch.tensor([0])] * 5, seed=0)
    assert [len(rows) for rows in few] == [3] * 5  # all that there are of the class


def test_a_client_whose_classes_no_test_example_has_is_refused():
    with pytest.raises(ConfigError, match="client 1's training examples; set data.test_classes=even"):
        matching_indices(torch.zeros(20, dtype=torch.long), [torch.tensor([0]), torch.tensor([5])], 0)
