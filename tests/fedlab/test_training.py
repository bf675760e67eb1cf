"""The optimization loop against its own arithmetic, the averaged model, and the choice of device."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedlab.errors import ConfigError, RunError
from fedlab.training import MovingAverage, resolve_device, train_steps


def parabola(start=1.0, rate=0.25):
    """f(w) = w^2 from w = 1: gradient descent with rate 0.25 halves w at each step."""
    weight = nn.Parameter(torch.tensor(start))
    return weight, torch.optim.SGD([weight], rate)


def test_steps_and_mean_loss_by_hand():
    weight, optimizer = parabola()
    mean = train_steps(lambda: weight**2, optimizer, 3, name="parabola")
    assert weight.item() == 0.125  # 1, 1/2, 1/4, 1/8
    assert mean == (1 + 1 / 4 + 1 / 16) / 3


def test_gradients_do_not_pile_up_and_old_ones_do_not_count():
    weight, optimizer = parabola()
    weight.grad = torch.tensor(100.0)
    train_steps(lambda: weight**2, optimizer, 1, name="parabola")
    assert weight.item() == 0.5


def test_a_step_may_take_the_mean_of_several_batches():
    weight, optimizer = parabola()
    factors = iter([1.0, 3.0, 0.5, 1.5])
    mean = train_steps(lambda: next(factors) * weight**2, optimizer, 2, name="parabola", accumulate=2, max_grad_norm=9)
    assert weight.item() == 0.0  # f is 2 w^2, then w^2: rate 0.25 moves w from 1 to 0
    assert mean == pytest.approx((2 + 0) / 2)


def test_no_steps_leave_the_weights():
    weight, optimizer = parabola()
    assert train_steps(lambda: weight**2, optimizer, 0, name="parabola") is None
    assert weight.item() == 1.0


def test_callbacks_see_every_step_after_it_was_taken():
    weight, optimizer = parabola()
    seen, told = [], []
    train_steps(
        lambda: weight**2,
        optimizer,
        2,
        name="parabola",
        after_step=lambda: seen.append(weight.item()),
        progress=lambda *news: told.append(news),
    )
    assert seen == [0.5, 0.25]
    assert told == [("parabola", 1, 2), ("parabola", 2, 2)]


@pytest.mark.parametrize("bad", ["nan", "inf", "-inf"])
def test_a_loss_that_is_not_finite_stops_before_it_spoils_the_weights(bad):
    weight, optimizer = parabola()
    factors = iter([1.0, float(bad), 1.0])
    with pytest.raises(RunError, match=f"parabola: the loss is {bad} at step 2 of 3; lower the learning rate"):
        train_steps(lambda: weight**2 * next(factors), optimizer, 3, name="parabola")
    assert weight.item() == 0.5


# --- the averaged model ---


def test_the_average_moves_by_its_decay_and_buffers_are_copied():
    average, model = nn.BatchNorm1d(1), nn.BatchNorm1d(1)
    with torch.no_grad():
        average.weight.fill_(1.0), model.weight.fill_(3.0)
        model.running_mean.fill_(5.0), model.num_batches_tracked.fill_(7)
    moving = MovingAverage(average, model, 0.75)
    moving.update()
    assert average.weight.item() == 1.5  # 0.75 * 1 + 0.25 * 3
    assert (average.running_mean.item(), average.num_batches_tracked.item()) == (5.0, 7)
    assert model.weight.item() == 3.0
    moving.update()
    assert average.weight.item() == 1.875


def test_decay_zero_is_a_copy():
    average, model = nn.Linear(3, 2), nn.Linear(3, 2)
    MovingAverage(average, model, 0.0).update()
    assert all(torch.equal(a, b) for a, b in zip(average.parameters(), model.parameters(), strict=True))
    assert average.weight.data_ptr() != model.weight.data_ptr()


# --- the device ---


def test_auto_is_the_gpu_where_there_is_one():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match=r"device 'cuda:99' was asked for, but this machine has \d+ usable GPUs; use"):
        resolve_device("cuda:99")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_machine_without_a_gpu_says_so():
    with pytest.raises(ConfigError, match="'cuda' was asked for, but this machine has 0 usable GPUs; use device=cpu"):
        resolve_device("cuda")


@pytest.mark.parametrize(("start", "after"), [(3.0, 3.0 - 0.25), (0.25, 0.25 - 0.25 * 0.5)])
def test_a_long_gradient_is_scaled_down_and_a_short_one_is_not(start, after):
    weight, optimizer = parabola(start)
    train_steps(lambda: weight**2, optimizer, 1, name="parabola", max_grad_norm=1.0)
    assert weight.item() == pytest.approx(after)
