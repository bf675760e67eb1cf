"""One labelled set over clients: disjoint, complete, as skewed as asked."""

from __future__ import annotations

import pytest
import torch

from fedlab.data.partition import MIN_EXAMPLES, dirichlet_shards, even_shards
from fedlab.errors import ConfigError

LABELS = torch.arange(10).repeat_interleave(60)[torch.randperm(600, generator=torch.Generator().manual_seed(0))]


def skew(shards):
    """Mean over shards of the total variation between their classes and the whole set's, in [0, 0.9]."""
    whole = torch.full((10,), 0.1)
    shares = [torch.bincount(LABELS[rows], minlength=10) / len(rows) for rows in shards]
    return float(torch.stack([(share - whole).abs().sum() / 2 for share in shares]).mean())


@pytest.mark.parametrize("alpha", [0.1, 0.5, 10.0, float("inf")])
@pytest.mark.parametrize("shards", [1, 2, 7])
def test_shards_are_disjoint_sorted_and_together_everything(alpha, shards):
    rows = dirichlet_shards(LABELS, shards, alpha, seed=1)
    assert len(rows) == shards
    assert sorted(torch.cat(rows).tolist()) == list(range(600))
    for shard in rows:
        assert len(shard) >= MIN_EXAMPLES
        assert shard.dtype == torch.int64
        assert shard.tolist() == sorted(shard.tolist())


def test_skew_grows_as_alpha_falls():
    skews = [skew(dirichlet_shards(LABELS, 4, alpha, seed=1)) for alpha in (float("inf"), 100.0, 1.0, 0.1)]
    assert skews == sorted(skews)
    assert skews[0] == 0.0
    assert skews[1] < 0.1
    assert skews[3] > 0.5


def test_infinite_alpha_shares_every_class_equally():
    for shard in dirichlet_shards(LABELS, 4, float("inf"), seed=1):
        assert torch.bincount(LABELS[shard], minlength=10).tolist() == [15] * 10


def test_which_examples_of_a_class_a_shard_gets_is_drawn():
    first, _ = dirichlet_shards(LABELS, 2, float("inf"), seed=1)
    of_class = torch.nonzero(LABELS == 0)[:, 0].tolist()
    taken = [row in set(first.tolist()) for row in of_class]
    assert sum(taken) == 30
    assert taken != [True] * 30 + [False] * 30


def test_a_split_is_a_function_of_seed_and_number_of_shards():
    def split(shards, seed):
        return [shard.tolist() for shard in dirichlet_shards(LABELS, shards, 0.5, seed)]

    torch.manual_seed(0)
    first = split(4, 1)
    torch.manual_seed(1)
    assert split(4, 1) == first
    assert split(4, 2) != first


def test_too_few_examples_are_refused():
    with pytest.raises(ConfigError, match="25 examples cannot be split into 3 shards of at least 10; ask for fewer"):
        dirichlet_shards(LABELS[:25], 3, 1.0, seed=0)
    assert len(dirichlet_shards(LABELS[:30], 3, float("inf"), seed=0)) == 3


def test_a_skew_that_starves_a_client_is_refused():
    with pytest.raises(ConfigError, match=r"no split of 600 examples into 20 shards with alpha=0.001 .* raise alpha"):
        dirichlet_shards(LABELS, 20, 1e-3, seed=0)


def test_even_shards_share_out_every_row_by_a_draw_of_the_seed():
    shards = even_shards(53, 5, seed=2)
    assert sorted(torch.cat(shards).tolist()) == list(range(53)) and {len(rows) for rows in shards} == {10, 11}
    assert all(torch.equal(rows, again) for rows, again in zip(shards, even_shards(53, 5, seed=2), strict=True))
    assert not torch.equal(shards[0], even_shards(53, 5, seed=3)[0])
    with pytest.raises(ConfigError, match="49 examples cannot be split over 5 clients with at least 10 each"):
        even_shards(49, 5, seed=2)
