"""SemiFL: which examples are fixed, and a client's round as a plain loop."""

from __future__ import annotations

import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict
from torch.nn.functional import cross_entropy

from fedlab.engines.flower_internals import task_identity
from fedlab.errors import ConfigError
from fedlab.losses.sharpness import sharpness_consistency
from fedlab.registry import load_config
from fedlab.seeds import seeded
from fedlab.strategies.aggregation import ClientUpdate
from fedlab.strategies.protocol import metrics_record, tensor_record
from fedlab.strategies.semi_fl import SPEC, Options, confident
from fedlab.strategies.validation import InvalidUpdate
from fedlab.training import null_progress
from toy import SMALL, Blobs

P = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.8, 0.2]])


def test_a_fixed_threshold_is_that_of_all():
    assert confident(P, Options(threshold=0.75)).tolist() == [True, False, False, True]


def test_an_adaptive_threshold_is_lower_for_a_class_that_the_model_seldom_predicts():
    # the mean of the largest is 0.75; mean probabilities are 0.65 and 0.35, so class 1 needs 0.75 * 0.35 / 0.65 = 0.40
    assert confident(P, Options(thresholds="adaptive")).tolist() == [True, False, True, True]


def test_a_round_of_a_client_is_the_plain_loop(record):
    seen, directory = record("semi_fl", rounds=1, **{"semi_fl.threshold": 0.4, "semi_fl.weights": "threshold"})
    workload, weights = Blobs(domains="a,b,c"), []
    for client in range(3):
        one, x = seen["train", 1, client], workload.data(client, "train")[:]["x"]
        model = workload.model()
        model.load_state_dict(one.received["arrays"])
        with torch.no_grad():
            best, labels = model.eval()(x).softmax(1).max(1)
        weights.append(1 - best.mean())
        fixed = (best >= 0.4).nonzero()[:, 0]
        reported = directory.rounds()[1]["bytes"]
        assert 0 < len(fixed) < 90 and reported
        sgd, beta = torch.optim.SGD(model.train().parameters(), 0.05, 0.9), torch.distributions.Beta(0.75, 0.75)
        with seeded(5, "train", 1, client):
            for _ in range(5):
                a, b = fixed[torch.randint(len(fixed), (16,))], torch.randint(90, (16,))
                share = float(beta.sample())
                mixed = model(workload.view(share * x[a] + (1 - share) * x[b]))
                plain = model(workload.view(x[a]))
                loss = cross_entropy(plain, labels[a]) + share * cross_entropy(mixed, labels[a])
                sgd.zero_grad()
                (loss + (1 - share) * cross_entropy(mixed, labels[b])).backward()
                sgd.step()
        for name, tensor in model.state_dict().items():
            torch.testing.assert_close(one.answered[name], tensor, rtol=1e-4, atol=1e-5)
    answers = [seen["train", 1, client].answered for client in range(3)]
    assert max(weights) > 1.01 * min(weights)
    for name, tensor in directory.checkpoints.load(1)["arrays"].items():
        if tensor.is_floating_point():
            mean = sum(weight * one[name] for weight, one in zip(weights, answers, strict=True)) / sum(weights)
            torch.testing.assert_close(tensor, mean, rtol=1e-5, atol=1e-6)


def test_sharpness_aware_consistency_is_a_further_term_and_mixup_can_be_left_out(record):
    options = {"semi_fl.threshold": 0.5, "semi_fl.consistency": 2.0, "semi_fl.perturbation": 0.3, "semi_fl.mixup": 0.0}
    seen, _ = record("semi_fl", rounds=1, **options, **{"semi_fl.thresholds": "adaptive"})
    workload, one = Blobs(domains="a,b,c"), seen["train", 1, 0]
    x, model = workload.data(0, "train")[:]["x"], workload.model()
    model.load_state_dict(one.received["arrays"])
    with torch.no_grad():
        p = model.eval()(x).softmax(1)
    (best, labels), fixed = p.max(1), confident(p, Options(thresholds="adaptive")).nonzero()[:, 0]
    assert 0 < int((best[fixed] >= 0.5).sum()) < len(fixed)
    sgd = torch.optim.SGD(model.train().parameters(), 0.05, 0.9)
    with seeded(5, "train", 1, 0):
        for _ in range(5):
            rows = fixed[torch.randint(len(fixed), (16,))]
            view = workload.view(x[rows])
            logits, sure = model(view), best[rows] >= 0.5
            sharp = sharpness_consistency(model, view, logits, labels[rows], sure, 0.3)
            sgd.zero_grad()
            (cross_entropy(logits, labels[rows]) + 2 * sharp).backward()
            sgd.step()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(one.answered[name], tensor, rtol=1e-4, atol=1e-5)


def test_a_client_that_is_certain_of_everything_counts_for_next_to_nothing_and_none_can_count_more_than_one():
    config = load_config({**SMALL, "workload": "toy:SPEC", "strategy": "semi_fl"}, {"semi_fl.weights": "threshold"})
    server = SPEC.server(config.workload, config, lambda *_: None)
    assert server.client_weight(ClientUpdate({}, 9, {"threshold": 1.0})) == pytest.approx(1e-6)
    assert server.client_weight(ClientUpdate({}, 9, {"threshold": 0.25})) == 0.75
    model = tensor_record(server.trainer.average.state_dict())
    server.updates.send(model, ConfigRecord())
    for threshold in (-0.5, 1.5):
        metrics = metrics_record({"loss": 1.0, "confident": 0.5, "threshold": threshold}, 90)
        with task_identity(1, 1):
            reply = Message(RecordDict({"arrays": model, "metrics": metrics, "config": ConfigRecord()}), 1, "train")
        with pytest.raises(InvalidUpdate, match=rf"its threshold is {threshold:g}; expected a number from 0 to 1"):
            server.check(reply)


@pytest.mark.parametrize("rule", ["fedmedian", "fedtrimmedavg", "krum", "bulyan", "dp_fixed", "dp_adaptive"])
def test_weights_that_a_rule_does_not_read_are_refused(rule):
    chosen = {"workload": "digits", "strategy": "semi_fl", "server.pretrain_steps": 0}
    chosen |= {"digits.targets": "usps,mnist_m,optdigits,synthdigits", "semi_fl.aggregation": rule}

    def server(**more):
        config = load_config({**chosen, **more})
        return SPEC.server(config.workload, config, null_progress)

    server()
    with pytest.raises(ConfigError, match=rf"'semi_fl.weights': with aggregation '{rule}' clients do not weigh"):
        server(**{"semi_fl.weights": "threshold"})
    server(**{"semi_fl.weights": "threshold", "semi_fl.aggregation": "multikrum"})
