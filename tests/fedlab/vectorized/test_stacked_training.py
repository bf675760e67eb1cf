"""Steps of stacked models by hand, and clipping by model beside torch's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedlab.optimizers import OptimizerSettings
from fedlab.vectorized.gradients import clip_each, follow
from fedlab.vectorized.stacked_model import StackedModel
from fedlab.vectorized.stacked_training import stack_batches, train_stacked


class Weight(nn.Module):
    def __init__(self, start):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([start]))


def parabolas(starts):
    """f(w) = w^2: gradient descent with rate 0.25 halves w at each step."""
    states = [Weight(start).state_dict() for start in starts]
    return StackedModel(Weight(0.0), states, lambda model, batch: (model.w**2).sum())


def nothing(step, count):
    return {"x": torch.zeros(count, 1)}, []


def test_each_model_takes_its_own_steps():
    settings = [OptimizerSettings("sgd", 0.25)] * 3
    states, losses = train_stacked(parabolas([1.0, 2.0, 4.0]), nothing, [3, 1, 0], settings)
    assert [state["w"].item() for state in states] == [0.125, 1.0, 4.0]
    assert losses == [[1.0, 0.25, 0.0625], [4.0], []]


def test_each_model_has_its_own_learning_rate():
    settings = [OptimizerSettings("sgd", rate) for rate in (0.25, 0.5, 0.0)]
    states, _ = train_stacked(parabolas([1.0, 1.0, 1.0]), nothing, [2, 2, 1], settings)
    assert [state["w"].item() for state in states] == [0.25, 0.0, 1.0]


def test_averages_follow_and_stop_with_their_model():
    settings = [OptimizerSettings("sgd", 0.25)] * 2
    states, _ = train_stacked(parabolas([1.0, 1.0]), nothing, [2, 1], settings, ema_decay=0.5)
    assert [state["w"].item() for state in states] == [0.5 * 0.75 + 0.5 * 0.25, 0.75]


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_learning_rates_by_model_are_those_of_separate_optimizers(name):
    rates = (0.1, 0.02)
    settings = [OptimizerSettings(name, rate, momentum=0.9, weight_decay=0.01) for rate in rates]
    states, _ = train_stacked(parabolas([1.0, -2.0]), nothing, [4, 3], settings)
    for state, one, start, steps in zip(states, settings, (1.0, -2.0), (4, 3), strict=True):
        alone, _ = train_stacked(parabolas([start]), nothing, [steps], [one])
        torch.testing.assert_close(state["w"], alone[0]["w"])


def test_clipping_is_torchs_for_each_model():
    generator = torch.Generator().manual_seed(0)
    weights = [torch.zeros(3, 2, 2), torch.zeros(3, 5), torch.zeros(3)]
    gradients = [torch.randn(weight.shape, generator=generator) for weight in weights]
    gradients[1][0] *= 100
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = gradient.clone()
    clip_each([*weights, torch.zeros(3, 9)], 3.0)  # the last has no gradient
    for row in range(3):
        alone = [torch.zeros(weight.shape[1:]) for weight in weights]
        for weight, gradient in zip(alone, gradients, strict=True):
            weight.grad = gradient[row].clone()
        nn.utils.clip_grad_norm_(alone, 3.0)
        for weight, other in zip(weights, alone, strict=True):
            torch.testing.assert_close(weight.grad[row], other.grad)


def test_an_average_moves_by_its_decay():
    average = {"w": torch.tensor([1.0, 0.0])}
    follow(average, {"w": torch.tensor([3.0, 4.0])}, 0.75)
    assert average["w"].tolist() == [1.5, 1.0]


def test_batches_are_stacked_by_column():
    batches = [{"x": torch.full((2, 3), float(number)), "y": torch.tensor([number, 7])} for number in range(4)]
    stacked = stack_batches(batches, torch.device("cpu"))
    assert stacked["x"].shape == (4, 2, 3) and stacked["y"].tolist() == [[0, 7], [1, 7], [2, 7], [3, 7]]
