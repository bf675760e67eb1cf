"""Batch-norm statistics of a domain against means and variances by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fedlab.data.dataset import ArrayDataset
from fedlab.models.batchnorm_stats import batch_norm_names, batch_norms, encode, frozen_stats, recompute_stats

GENERATOR = torch.Generator().manual_seed(0)
BATCHES = [torch.randn(8, 3, generator=GENERATOR) * 2 + 1, torch.randn(5, 3, generator=GENERATOR) - 3]


def state(module):
    return copy.deepcopy(module.state_dict())


def equal(first, second, names=None):
    return all(torch.equal(first[name], second[name]) for name in names or first)


def test_statistics_are_the_mean_over_batches_by_hand():
    layer = nn.BatchNorm1d(3)
    layer.running_mean.fill_(50.0)
    recompute_stats(layer, BATCHES)
    torch.testing.assert_close(layer.running_mean, (BATCHES[0].mean(0) + BATCHES[1].mean(0)) / 2)
    torch.testing.assert_close(layer.running_var, (BATCHES[0].var(0) + BATCHES[1].var(0)) / 2)  # n - 1 below


def test_images_are_normalized_by_channel():
    x = torch.randn(4, 2, 5, 5, generator=torch.Generator().manual_seed(1)) * 3
    layer = nn.BatchNorm2d(2)
    recompute_stats(layer, [x])
    torch.testing.assert_close(layer.running_mean, x.mean((0, 2, 3)))
    torch.testing.assert_close(layer.running_var, x.transpose(0, 1).flatten(1).var(1))


def test_a_later_layer_sees_what_the_earlier_one_normalized():
    first, second = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    recompute_stats(nn.Sequential(first, second), BATCHES[:1])
    torch.testing.assert_close(second.running_mean, torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(second.running_var, torch.full((3,), 8 / 7), atol=1e-4, rtol=0)


@pytest.mark.parametrize("fraction", [0.0, 0.25, 1.0])
def test_a_share_moves_part_of_the_way(fraction):
    layer = nn.BatchNorm1d(3)
    layer.running_mean.fill_(50.0)
    layer.running_var.fill_(10.0)
    recompute_stats(layer, BATCHES[:1], fraction)
    torch.testing.assert_close(layer.running_mean, (1 - fraction) * 50.0 + fraction * BATCHES[0].mean(0))
    torch.testing.assert_close(layer.running_var, (1 - fraction) * 10.0 + fraction * BATCHES[0].var(0))


@pytest.mark.parametrize("training", [True, False])
def test_weights_mode_and_momentum_stay(training):
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, momentum=0.3)).train(training)
    weights = {name: weight.detach().clone() for name, weight in module.named_parameters()}
    recompute_stats(module, BATCHES)
    assert all(torch.equal(weight, weights[name]) for name, weight in module.named_parameters())
    assert module.training is module[1].training is training
    assert module[1].momentum == 0.3
    assert all(weight.grad is None for weight in module.parameters())


def test_a_module_without_batch_norm_is_not_even_called():
    def never():
        raise AssertionError("a batch was read")
        yield

    module = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    before = state(module)
    recompute_stats(module, never())
    assert equal(state(module), before)
    assert batch_norms(module) == []


def test_a_layer_that_tracks_nothing_is_left_out():
    plain = nn.BatchNorm1d(3, track_running_stats=False)
    tracked = nn.BatchNorm1d(3)
    assert batch_norms(nn.Sequential(plain, tracked)) == [tracked]
    recompute_stats(plain, BATCHES)


def test_batches_of_one_are_left_out():
    layer = nn.BatchNorm1d(3)
    recompute_stats(layer, [BATCHES[0], BATCHES[1][:1]])
    torch.testing.assert_close(layer.running_mean, BATCHES[0].mean(0))


@pytest.mark.parametrize("batches", [[], [BATCHES[0][:1]]])
def test_without_a_batch_to_measure_statistics_stay(batches):
    layer = nn.BatchNorm1d(3)
    layer.running_mean.fill_(5.0), layer.running_var.fill_(7.0)
    recompute_stats(layer, batches)
    assert layer.running_mean.tolist() == [5.0] * 3
    assert layer.running_var.tolist() == [7.0] * 3
    assert layer.momentum == 0.1


# --- held ---


def test_held_statistics_normalize_as_ever_and_keep_no_trace():
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=0.3)).train()
    twin = copy.deepcopy(module)
    before = state(module)
    with frozen_stats(module):
        held = module(BATCHES[0])
    assert torch.equal(held, twin(BATCHES[0]))
    assert equal(state(module), before, ["1.running_mean", "1.running_var"])
    assert not equal(state(twin), before, ["1.running_mean"])
    assert module[1].momentum == 0.3
    module(BATCHES[0])  # and afterwards they move again
    assert equal(state(module), state(twin), ["1.running_mean", "1.running_var"])


def test_held_statistics_are_let_go_after_an_exception():
    layer = nn.BatchNorm1d(3)
    with pytest.raises(ValueError, match="inside"), frozen_stats(layer):
        raise ValueError("inside")
    assert layer.momentum == 0.1


def test_gradients_flow_through_held_layers():
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    with frozen_stats(module):
        module(BATCHES[0]).square().mean().backward()
    assert all(weight.grad is not None for weight in module.parameters())


# --- features ---


def test_features_are_those_of_evaluation_mode_batch_by_batch():
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).train()
    z = encode(module, ArrayDataset({"x": BATCHES[0]}), torch.device("cpu"), batch=3)
    assert not z.requires_grad
    torch.testing.assert_close(z, module.eval()(BATCHES[0]).detach())


def test_all_names_of_batch_norms_are_found_at_any_depth():
    model = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.BatchNorm1d(3), nn.ReLU()), nn.LayerNorm(3))
    keys = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    assert batch_norm_names(model) == [f"1.0.{key}" for key in keys]
    assert batch_norm_names(nn.Linear(2, 2)) == []
    assert batch_norm_names(nn.BatchNorm1d(2, affine=False)) == ["running_mean", "running_var", "num_batches_tracked"]
