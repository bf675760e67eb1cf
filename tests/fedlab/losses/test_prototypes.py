"""ProtoNet's loss by hand."""

from __future__ import annotations

import math

import pytest
import torch

from fedlab.losses.prototypes import episode_loss


def test_two_classes_on_a_line():
    z = torch.tensor([[0.0], [2.0], [0.0], [4.0], [6.0], [7.0]])  # support 0 | 4, queries 2, 0 | 6, 7
    y = torch.tensor([8, 8, 8, 3, 3, 3])
    by_hand = [(2.0, 2.0), (0.0, 4.0), (2.0, 6.0), (3.0, 7.0)]  # distance to the right mean and to the other
    wanted = sum(math.log(1 + math.exp(right**2 - wrong**2)) for right, wrong in by_hand) / 4
    assert float(episode_loss(z, y)) == pytest.approx(wanted)


def test_the_support_is_averaged():
    z = torch.tensor([[-1.0], [1.0], [0.0], [0.5], [9.0], [11.0], [10.0], [10.0]])
    wanted = (
        math.log(1 + math.exp(0 - 100)) + math.log(1 + math.exp(0.25 - 9.5**2)) + 2 * math.log(1 + math.exp(-100))
    ) / 4
    assert float(episode_loss(z, torch.tensor([0] * 4 + [1] * 4))) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("labels", [[0, 1, 0, 1], [0, 0, 0, 1], [0, 1]])
def test_a_batch_that_is_no_episode_is_refused(labels):
    with pytest.raises(ValueError, match="an episode has its classes one after another"):
        episode_loss(torch.zeros(len(labels), 2), torch.tensor(labels))
