"""SemiFL: which examples are fixed, and a client's round as a plain loop."""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy

from fedlab.seeds import seeded
from fedlab.strategies.semi_fl import Options, confident
from toy import Blobs

P = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.8, 0.2]])


def test_a_fixed_threshold_is_that_of_all():
    assert confident(P, Options(threshold=0.75)).tolist() == [True, False, False, True]


def test_an_adaptive_threshold_is_lower_for_a_class_that_the_model_seldom_predicts():
    # the mean of the largest is 0.75; mean probabilities are 0.65 and 0.35, so class 1 needs 0.75 * 0.35 / 0.65 = 0.40
    assert confident(P, Options(thresholds="adaptive")).tolist() == [True, False, True, True]


def test_a_round_of_a_client_is_the_plain_loop(record):
    seen, directory = record("semi_fl", rounds=1, **{"semi_fl.threshold": 0.4})
    workload = Blobs(domains="a,b,c")
    for client in range(3):
        one, x = seen["train", 1, client], workload.data(client, "train")[:]["x"]
        model = workload.model()
        model.load_state_dict(one.received["arrays"])
        with torch.no_grad():
            best, labels = model.eval()(x).softmax(1).max(1)
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
