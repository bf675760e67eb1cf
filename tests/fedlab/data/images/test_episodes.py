"""Episodes: what they hold, that they are a function of seed and labels, and what is refused."""

from __future__ import annotations

import pytest
import torch

from fedlab.data.images.episodes import EpisodeDataset, sample_episodes
from fedlab.errors import DataError
from fedlab.seeds import seeded

Y = torch.tensor([7, 3, 3, 9, 7, 9, 9, 3, 7, 3, 9, 7, 1, 1, 1, 1, 1, 9, 3, 3])


def test_an_episode_has_its_classes_in_order_and_no_image_twice():
    drawn = sample_episodes(Y, ways=3, shots=1, queries=3, episodes=200, seed=0)
    assert drawn.support.shape == (200, 3) and drawn.query.shape == (200, 9)
    support, query = Y[drawn.support].view(200, 3, 1), Y[drawn.query].view(200, 3, 3)
    assert (query == support).all()
    assert all(len(set(classes)) == 3 for classes in support[..., 0].tolist())
    assert all(len(set(rows)) == 12 for rows in torch.cat([drawn.support, drawn.query], 1).tolist())
    assert drawn.labels(drawn.query).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_classes_and_images_are_drawn_uniformly():
    drawn = sample_episodes(Y, ways=2, shots=1, queries=1, episodes=6000, seed=1)
    classes = Y[drawn.support].flatten()
    for label in (1, 3, 7, 9):
        assert float((classes == label).float().mean()) == pytest.approx(1 / 4, abs=0.02)
    of_seven = drawn.support.flatten()[classes == 7]
    for row in (Y == 7).nonzero()[:, 0].tolist():
        assert float((of_seven == row).float().mean()) == pytest.approx(1 / 4, abs=0.03)


def test_episodes_are_a_function_of_seed_and_labels_alone():
    torch.manual_seed(0)
    first = sample_episodes(Y, ways=3, shots=1, queries=2, episodes=9, seed=4)
    state = torch.get_rng_state()
    again = sample_episodes(Y, ways=3, shots=1, queries=2, episodes=9, seed=4)
    other = sample_episodes(Y, ways=3, shots=1, queries=2, episodes=9, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.support, again.support) and torch.equal(first.query, again.query)
    assert not torch.equal(first.support, other.support)


def test_too_few_classes_or_images_are_refused_with_what_to_do():
    with pytest.raises(DataError, match="episodes of 5 classes cannot be sampled from 4; lower fewshot.ways"):
        sample_episodes(Y, ways=5, shots=1, queries=1, episodes=1, seed=0)
    with pytest.raises(DataError, match=r"class 7 has 4 images for episodes, and 2 shots with 3 queries take 5; lower"):
        sample_episodes(Y, ways=2, shots=2, queries=3, episodes=1, seed=0)


def test_a_sample_to_train_on_is_one_episode():
    y = torch.arange(6).repeat(12)
    data = EpisodeDataset({"x": torch.arange(72), "y": y})
    with seeded("a"):
        batch = data.sample_batch(45)
    with seeded("a"):
        assert torch.equal(data.sample_batch(45)["x"], batch["x"])
    assert torch.equal(batch["y"], batch["y"][::10].repeat_interleave(10))
    assert len(batch["y"].unique()) == 4 and len(batch["x"].unique()) == 40
    assert torch.equal(y[batch["x"]], batch["y"])
    assert len(data.sample_batch(1000)["y"]) == 60  # no more classes than there are
