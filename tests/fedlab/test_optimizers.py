"""SGD and Adam beside torch's, bit by bit, and what building them imports."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from fedlab.optimizers import SGD, Adam, FusedAdam, OptimizerSettings, cosine_rates, one_cycle

SHAPES = [(3, 5), (5,), (2, 3, 3, 3), ()]


def weights(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def run(optimizer, tensors, steps=6, skipped=()):
    """Steps along gradients of one stream; ``skipped`` are the rows that have none in even steps."""
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        optimizer.zero_grad()
        for row, weight in enumerate(tensors):
            gradient = torch.randn(weight.shape, generator=generator)
            if step % 2 or row not in skipped:
                weight.grad = gradient
        optimizer.step()
    return [weight.detach() for weight in tensors]


@pytest.mark.parametrize("decay", [0.0, 0.03])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("skipped", [(), (1, 3)])
def test_sgd_has_the_bits_of_torch(momentum, decay, skipped):
    ours, theirs = weights(), weights()
    run(SGD(ours, 0.1, momentum, decay), ours, skipped=skipped)
    run(torch.optim.SGD(theirs, 0.1, momentum=momentum, weight_decay=decay), theirs, skipped=skipped)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_nesterov_has_the_bits_of_torch(momentum):
    ours, theirs = weights(), weights()
    run(SGD(ours, 0.1, momentum, 0.03, nesterov=True), ours)
    run(torch.optim.SGD(theirs, 0.1, momentum, weight_decay=0.03, nesterov=momentum > 0), theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("decay", [0.0, 0.03])
@pytest.mark.parametrize("skipped", [(), (0, 2)])
def test_adam_has_the_bits_of_torch(decay, skipped):
    ours, theirs = weights(), weights()
    run(Adam(ours, 0.02, decay), ours, skipped=skipped)
    run(torch.optim.Adam(theirs, 0.02, weight_decay=decay), theirs, skipped=skipped)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_channels_last_weights_have_the_bits_of_torch():
    ours, theirs = ([nn.Parameter(weights()[2].detach().to(memory_format=torch.channels_last))] for _ in range(2))
    run(Adam(ours, 0.02), ours)
    run(torch.optim.Adam(theirs, 0.02), theirs)
    assert torch.equal(ours[0], theirs[0])


@pytest.mark.parametrize("steps", [1, 2, 7, 40])
def test_a_cosine_has_the_bits_of_torch(steps):
    optimizer = torch.optim.Adam(weights(), 0.003)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    theirs = []
    for _ in range(steps):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert list(cosine_rates(0.003, steps)) == theirs


@pytest.mark.parametrize(("steps", "rise"), [(1, 0.3), (2, 0.3), (10, 0.3), (11, 0.1), (40, 0.1)])
def test_one_cycle_of_adam_has_the_bits_of_torch(steps, rise):
    ours, theirs = weights(), weights()
    adam, other = Adam(ours, 0.003), torch.optim.Adam(theirs, 0.003)
    schedule = torch.optim.lr_scheduler.OneCycleLR(other, 0.003, steps, pct_start=rise, final_div_factor=10)
    for rate, beta in one_cycle(0.003, steps, rise, final_div_factor=10):
        group = other.param_groups[0]
        assert (rate, beta) == (group["lr"], group["betas"][0])
        adam.learning_rate, adam.beta_1 = rate, beta
        run(adam, ours, steps=1)
        run(other, theirs, steps=1)
        schedule.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("first", [Adam, torch.optim.Adam])
def test_adam_goes_on_from_its_state_and_from_that_of_torch(first):
    whole, parted = weights(), weights()
    run(Adam(whole, 0.02), whole, steps=6, skipped=(1,))
    begun, rest = first(parted, 0.02), Adam(parted, 0.02)
    generator = torch.Generator().manual_seed(1)
    for step in range(6):
        if step == 3:
            rest.load_state_dict(begun.state_dict())
        for row, weight in enumerate(parted):
            gradient = torch.randn(weight.shape, generator=generator)
            weight.grad = gradient if step % 2 or row != 1 else None
        (begun if step < 3 else rest).step()
    assert all(torch.equal(a, b) for a, b in zip(whole, parted, strict=True))


@pytest.mark.parametrize("decay", [0.0, 0.03])
def test_adam_and_the_fused_one_go_on_from_each_others_states(decay):
    """Each optimizer goes on from the state of the other, to rounding, as when a run moves between CPU and GPU."""
    expected, found = weights(), weights()
    adam, other = Adam(expected, 0.02, decay), Adam(found, 0.02, decay)
    for kind in (FusedAdam, Adam, FusedAdam):
        state, other = other.state_dict(), kind(found, 0.5, decay)
        other.load_state_dict(state)
        for one in (adam, other):
            one.learning_rate, one.beta_1 = 0.02, 0.85
        assert (other.learning_rate, other.beta_1) == (0.02, 0.85)
        run(adam, expected, steps=2)
        run(other, found, steps=2)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(expected, found, strict=True))


def test_settings_build_what_they_name():
    sgd = OptimizerSettings("sgd", 0.1, 0.5, 0.01).build(weights())
    assert isinstance(sgd, SGD) and (sgd.learning_rate, sgd.momentum, sgd.weight_decay) == (0.1, 0.5, 0.01)
    adam = OptimizerSettings("adam", 0.1, 0.5, 0.01).build(weights())
    assert isinstance(adam, Adam) and (adam.learning_rate, adam.weight_decay) == (0.1, 0.01)


def test_training_does_not_import_the_compiler():
    code = (
        "import sys, torch\n"
        "from fedlab.optimizers import SGD, Adam\n"
        "from fedlab.training import train_steps\n"
        "w = torch.nn.Parameter(torch.ones(2))\n"
        "for optimizer in (SGD([w], 0.1, 0.9), Adam([w], 0.1)):\n"
        "    train_steps(lambda: (w * w).sum(), optimizer, 2, name='x', max_grad_norm=1.0)\n"
        "assert not [name for name in sys.modules if name.startswith('torch._dynamo')], 'imported'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
