"""FedDyn beside algorithm 1 as a plain loop."""

from __future__ import annotations

import pytest
import torch

import plain_loops as plain
from fedlab.errors import ConfigError
from fedlab.runs.client_state import state_at
from fedlab.strategies import validation

ALPHA = 0.1


def plain_loop(start, alpha=ALPHA):
    """The global arrays, h, and g_k by client."""
    gradients, h = {}, {}

    def client(partition, model):
        w = plain.weights_of(model)
        g = gradients.get(partition, {name: torch.zeros_like(value) for name, value in w.items()})

        def regularizer(model):
            return sum(
                alpha / 2 * (v - w[name]).square().sum() - (g[name] * v).sum() for name, v in model.named_parameters()
            )

        state = plain.fit(model, partition, penalty=regularizer)
        gradients[partition] = {name: g[name] - alpha * (state[name] - w[name]) for name in w}
        return state

    def server(arrays, sent, cohort):
        new = plain.mean(sent)
        for name in gradients[cohort[0]]:
            change = sum(state[name] - arrays[name] for state in sent)
            h[name] = h.get(name, 0.0) - alpha * change / len(plain.CLIENTS)
            new[name] = new[name] - h[name] / alpha
        return new

    return plain.federate(start, client, server), h, gradients


def test_three_rounds_with_an_absent_client_are_those_of_the_plain_loop(record, tmp_path):
    _, directory = record("feddyn", **plain.options(tmp_path, **{"feddyn.alpha": ALPHA}))
    arrays, h, gradients = plain_loop(plain.start_of(directory))
    plain.assert_close(plain.result_of(directory), arrays)
    plain.assert_close(directory.checkpoints.latest()[1]["strategy"]["h"], h)
    for partition, gradient in gradients.items():
        plain.assert_close(state_at(directory.checkpoints.path(3), partition)["gradient"], gradient)
    assert directory.rounds()[-1]["server"]["h"] == pytest.approx(validation.norm(h), rel=1e-4)
    without, *_ = plain_loop(plain.start_of(directory), alpha=1e-3)
    assert plain.differ(arrays, without)


def test_an_absent_client_keeps_its_gradient_and_gets_no_more_than_the_model(record, tmp_path):
    seen, directory = record("feddyn", **plain.options(tmp_path))
    first, second = (state_at(directory.checkpoints.path(number), 0)["gradient"] for number in (1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert ("train", 2, 0) not in seen
    assert all(set(exchange.received) == {"arrays"} for exchange in seen.values())


def test_an_alpha_of_0_is_refused(table):
    with pytest.raises(ConfigError, match=r"option 'feddyn.alpha'"):
        table("feddyn", **{"feddyn.alpha": 0.0})
