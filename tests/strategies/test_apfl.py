"""APFL beside algorithm 1 as a plain loop."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch.nn.functional import cross_entropy

import plain_loops as plain
from fedlab.errors import ConfigError
from fedlab.runs.client_state import state_at

ALPHA = 0.3


def plain_loop(start, alpha=ALPHA, adaptive=False):
    """The global arrays, and of each client v, a and the mixture's batch-norm statistics."""
    local, alphas, statistics = {}, {}, {}

    def client(partition, model):
        v = {name: value.clone() for name, value in local.get(partition, plain.weights_of(model)).items()}
        a, mixture = alphas.get(partition, alpha), deepcopy(model)
        mixture.load_state_dict({**model.state_dict(), **statistics.get(partition, {})})
        optimizers = plain.sgd(model.parameters()), plain.sgd(v.values())
        for step, (x, y) in enumerate(plain.batches(partition)):
            w = plain.weights_of(model)
            with torch.no_grad():
                for name, weight in mixture.named_parameters():
                    weight.copy_(a * v[name] + (1 - a) * w[name])
            model.zero_grad()
            mixture.zero_grad()
            cross_entropy(model(x), y).backward()
            cross_entropy(mixture(x), y).backward()
            slope = 0.0
            for name, weight in mixture.named_parameters():
                v[name].grad = a * weight.grad
                slope += float(((v[name] - w[name]) * weight.grad).sum())
            for optimizer in optimizers:
                optimizer.step()
            if adaptive and step == 0:
                a = min(max(a - plain.RATE * slope, 0.0), 1.0)
        local[partition], alphas[partition] = v, a
        statistics[partition] = {name: value for name, value in plain.state_of(mixture).items() if name not in v}
        return plain.state_of(model)

    return plain.federate(start, client), local, alphas, statistics


@pytest.mark.parametrize("adaptive", [False, True])
def test_three_rounds_with_an_absent_client_are_those_of_the_plain_loop(record, tmp_path, adaptive):
    changes = {"apfl.alpha": ALPHA, "apfl.adaptive": adaptive}
    _, directory = record("apfl", **plain.options(tmp_path, **changes))
    arrays, local, alphas, statistics = plain_loop(plain.start_of(directory), adaptive=adaptive)
    plain.assert_close(plain.result_of(directory), arrays)
    for partition, v in local.items():
        state = state_at(directory.checkpoints.path(3), partition)
        plain.assert_close(state["local"], v)
        plain.assert_close(state["buffers"], statistics[partition])
        assert state["alpha"] == pytest.approx(alphas[partition], rel=1e-5)
        a = alphas[partition]
        mixture = {name: a * v[name] + (1 - a) * arrays[name] for name in v} | statistics[partition]
        reported = directory.rounds()[-1]["clients"][plain.CLIENTS[partition]]
        assert reported["accuracy_personal"] == pytest.approx(plain.accuracy(mixture, partition))
        assert reported["accuracy_global"] == pytest.approx(plain.accuracy(arrays, partition))
    assert (set(alphas.values()) == {ALPHA}) != adaptive


def test_the_global_model_is_that_of_fedavg_bit_for_bit(record, tmp_path):
    hashes = [record(name, **plain.options(tmp_path))[1].manifest()["weights_sha256"] for name in ("apfl", "fedavg")]
    assert hashes[0] == hashes[1]


def test_an_absent_client_keeps_its_model_and_its_weight(record, tmp_path):
    _, directory = record("apfl", **plain.options(tmp_path, **{"apfl.adaptive": True}))
    first, second = (state_at(directory.checkpoints.path(number), 0) for number in (1, 2))
    assert first["alpha"] == second["alpha"]
    assert all(torch.equal(first["local"][name], second["local"][name]) for name in first["local"])


def test_a_weight_above_1_is_refused(table):
    with pytest.raises(ConfigError, match=r"option 'apfl.alpha'"):
        table("apfl", **{"apfl.alpha": 1.5})
