"""DP-SGD of the head beside Abadi's algorithm 1 as a loop over examples, and what bounds the influence of each."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn

from fedlab.data.dataset import ArrayDataset
from fedlab.errors import ConfigError
from fedlab.losses.discrepancy import discrepancy
from fedlab.models import em
from fedlab.models.digits import McdNet
from fedlab.models.feature_classifier import probabilities
from fedlab.privacy.accounting import Release
from fedlab.privacy.noise import gaussian_noise, poisson_sample
from fedlab.seeds import seeded
from fedlab.strategies.dualadapt import private, private_head
from private_replies import Swapped, arrays, asked, config, equal, reply
from toy import Blobs

WIDTH, CLASSES, EXAMPLES, CLIP = 8, 3, 40, 0.5
RELEASE = Release(1.0, steps=6, rate=0.3, gradient_noise=0.7)
GRADIENTS = {"dualadapt.local_privacy": "gradients", "dualadapt.noise_multiplier": 1.0}


class Broken(Blobs):
    """The same clients, each with an image of NaN and one of infinity."""

    def data(self, partition, split):
        whole = super().data(partition, split)
        x = whole.columns["x"].clone()
        x[0], x[1] = torch.nan, torch.inf
        return whole if partition is None else ArrayDataset({"x": x})


@pytest.fixture
def head():
    with seeded("head"):
        return nn.Sequential(nn.Linear(WIDTH, 5), nn.ReLU(), nn.Linear(5, CLASSES))


@pytest.fixture
def z():
    with seeded("features"):
        return 3 * torch.randn(EXAMPLES, WIDTH)


def example_loss(head, p_global, x, label, weight, options):
    logits = head(x[None])
    fit = weight * nn.functional.cross_entropy(logits, label[None])
    return fit - options.client_discrepancy * discrepancy(p_global[None], logits.softmax(1)).squeeze()


def test_it_is_algorithm_1_of_abadi_as_a_loop_over_examples(head, z):
    run = config(**{**GRADIENTS, "dualadapt.client_weights": False, "dualadapt.clip_norm": CLIP})
    options, rate = run.strategy, 0.05
    training = run.client.__class__(steps=RELEASE.steps, learning_rate=rate)
    source, start = em.fit(z, 2, variance_floor=1e-2), deepcopy(head)
    with torch.no_grad():  # else the discrepancy begins at its kink, with a sign that rounding decides
        start[2].weight[0] += 0.5
    with seeded("noise"):
        found = private_head.fit_private_head(
            head, z, source, torch.zeros(256), options, training, RELEASE, examples=37, secret=False, start=start
        )
    p, local = probabilities(head, z), deepcopy(start)
    labels = (p + probabilities(start, z)).argmax(1)
    optimizer = torch.optim.Adam(local.parameters(), rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, RELEASE.steps)
    with seeded("noise"):
        for _ in range(RELEASE.steps):
            total = [torch.zeros_like(weight) for weight in local.parameters()]
            for row in poisson_sample(EXAMPLES, RELEASE.rate, secret=False).tolist():
                loss = example_loss(local, p[row], z[row], labels[row], 1.0, options)
                own = torch.autograd.grad(loss, list(local.parameters()))
                norm = torch.cat([part.flatten() for part in own]).norm()
                for sum_, part in zip(total, own, strict=True):
                    sum_ += part / max(1.0, float(norm) / CLIP)
            for weight, sum_ in zip(local.parameters(), total, strict=True):
                noise = gaussian_noise(weight.shape, RELEASE.gradient_noise * CLIP, secret=False).to(weight)
                weight.grad = (sum_ + noise) / (RELEASE.rate * 37)
            optimizer.step()
            schedule.step()
    for name, weight in local.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], weight, rtol=1e-4, atol=1e-6)
    assert any(not torch.equal(weight, start.state_dict()[name]) for name, weight in found.state_dict().items())


def test_one_example_changes_the_sum_by_the_norm_at_most(head, z):
    p = probabilities(head, z)
    columns = {"z": 100 * z, "labels": (p.argmax(1) + 1) % CLASSES, "weights": torch.ones(EXAMPLES), "p_global": p}

    def norm(rows):
        total = private_head.clipped_sum(head, {name: column[rows] for name, column in columns.items()}, 0.1, CLIP)
        return torch.cat([part.flatten() for part in total.values()])

    whole = norm(slice(None))
    for row in range(EXAMPLES):
        others = [other for other in range(EXAMPLES) if other != row]
        assert (whole - norm(others)).norm() <= CLIP * (1 + 1e-9)
    assert (whole - norm(slice(1, None))).norm() > 0.9 * CLIP  # and that is what these large gradients do
    assert norm([]).norm() == 0
    columns["z"][0] = torch.inf  # whose gradient is NaN
    torch.testing.assert_close(norm(slice(None)), norm(slice(1, None)), rtol=0, atol=0)


def test_a_gradient_is_taken_to_the_bit_as_if_the_sample_had_no_other(z):
    """Rows of zeros take the place of examples that a chunk lacks, and add nothing themselves."""
    with seeded("head"):
        head = nn.Sequential(nn.Linear(WIDTH, 64), nn.ReLU(), nn.Linear(64, CLASSES))
    p, seen = probabilities(head, z), []
    columns = {"z": z, "labels": p.argmax(1), "weights": torch.ones(EXAMPLES), "p_global": p}
    for count in (1, 2, 16):
        rows = {
            name: torch.cat([column[:1], torch.zeros_like(column[: count - 1])]) for name, column in columns.items()
        }
        rows["z"][1:] = torch.nan  # whose gradients count as 0
        seen.append(private_head.clipped_sum(head, rows, 0.1, CLIP))
    assert all(torch.equal(one[name], seen[0][name]) for one in seen for name in one)


def test_an_image_that_is_no_number_ends_no_round():
    """A failure would tell the server that it is there."""
    found = reply(asked(), Broken(), **GRADIENTS)
    assert all(tensor.isfinite().all() for record in arrays(found).values() for tensor in record.values())


def test_everything_that_is_sent_is_made_of_noised_sums(monkeypatch):
    """With both sums held fixed, another data set gives the same reply."""
    content, fixed = asked(), torch.randn(3, 1 + 2 * 8, generator=torch.Generator().manual_seed(1)).double() * 5 + 20
    monkeypatch.setattr(private.class_moments, "clipped_sums", lambda *arguments: fixed)
    monkeypatch.setattr(
        private_head,
        "clipped_sum",
        lambda head, *arguments: {name: torch.ones_like(weight) for name, weight in head.named_parameters()},
    )
    monkeypatch.setattr(private_head, "poisson_sample", lambda members, *arguments, **options: torch.arange(2))
    first, second = reply(content, **GRADIENTS), reply(content, Swapped(), **GRADIENTS)
    assert equal(arrays(first), arrays(second))
    assert dict(first["metrics"]) == dict(second["metrics"])


def test_noise_and_samples_are_secret_where_they_are_to_be(monkeypatch):
    seen, content = [], asked()
    monkeypatch.setattr(
        private_head,
        "gaussian_noise",
        lambda shape, stdv, secret: seen.append((stdv, secret)) or torch.zeros(*shape),
    )
    monkeypatch.setattr(
        private_head, "poisson_sample", lambda members, rate, secret: seen.append((rate, secret)) or torch.arange(2)
    )
    options = {**GRADIENTS, "dualadapt.noise_multiplier": 2.0, "dualadapt.clip_norm": CLIP}
    reply(content, **options, **{"dp.noise": "secret", "dualadapt.sampling_rate": 0.3})
    assert set(seen) == {(2.0 * CLIP, True), (0.3, True)}
    assert equal(arrays(reply(content, **options)), arrays(reply(content, **options)))


def test_the_budget_pays_for_moments_and_gradients_of_all_rounds():
    options = {**GRADIENTS, "dualadapt.noise_multiplier": 0.0, "dp.max_epsilon": 8.0}
    found = private.account_of(config(**options))
    assert found.release.steps == config().client.steps and found.release.rate == 0.1
    for _ in range(config().run.rounds):
        assert found.exhausted() == ""
        found.spend()
    assert found.exhausted() and 7.9 < found.epsilon() <= 8.0
    restored = private.account_of(config(**options))
    restored.restore(found.state())
    assert restored.releases == found.releases


def test_what_would_tell_more_is_refused():
    with pytest.raises(ConfigError, match="number of examples, which is private"):
        private.account_of(config(**{**GRADIENTS, "client.epochs": 1.0}))
    with pytest.raises(ConfigError, match="has a layer BatchNorm1d, under which an example has no gradient of its own"):
        private_head.check_head(McdNet().head)
