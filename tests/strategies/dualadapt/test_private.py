"""Local privacy: what a client sends depends on its examples through one noised release, and nothing else."""

from __future__ import annotations

import pytest
import torch

from fedlab import launch
from fedlab.data.dataset import ArrayDataset
from fedlab.errors import ConfigError
from fedlab.models import class_moments, em
from fedlab.models.batchnorm_stats import encode
from fedlab.seeds import seeded
from fedlab.strategies.dualadapt import private
from fedlab.strategies.dualadapt.evaluation import evaluate
from private_replies import Swapped, arrays, asked, config, equal, reply
from tables import server_strategy
from toy import Blobs, Net

CPU = torch.device("cpu")


@pytest.fixture
def content():
    return asked()


def test_everything_that_is_sent_is_made_of_the_release(content, monkeypatch):
    """With the release held fixed, another data set gives the same reply, its metrics and its number of examples."""
    fixed = torch.randn(3, 1 + 2 * 8, generator=torch.Generator().manual_seed(1)).double() * 5 + 20
    monkeypatch.setattr(class_moments, "clipped_sums", lambda *arguments: fixed)
    first, second = reply(content), reply(content, Swapped())
    assert equal(arrays(first), arrays(second))
    assert dict(first["metrics"]) == dict(second["metrics"])


def test_the_release_reads_each_example_alone(monkeypatch):
    """The sums of a set are the sums of its examples, one at a time, under the statistics that were sent."""
    with seeded("model"):
        model = Net().eval()
    source = em.fit(torch.randn(60, 8, generator=torch.Generator().manual_seed(0)), 2, variance_floor=1e-2)
    original, released = class_moments.clipped_sums, []

    def spy(z, labels, public):
        released.append(original(z, labels, public))
        return released[-1]

    monkeypatch.setattr(class_moments, "clipped_sums", spy)
    x = Blobs().data(0, "train").columns["x"]
    for part in (x, *x.split(1)):
        with seeded("release"):
            z = private.plain_features(model, ArrayDataset({"x": part}), CPU)
            private.release_features(z, [model.head], source, private.Release(1.0), secret=False)
    torch.testing.assert_close(released[0], torch.stack(released[1:]).sum(0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("preset", ["dualadapt-digits-heads", "dualadapt-office"])
def test_an_example_is_counted_to_the_bit_as_if_there_were_no_other(preset):
    """One or two rows at the end of the batches would be rounded in another way than many."""
    workload = launch.resolve_config(preset, {}).workload
    with seeded("model"):
        model = workload.model().eval()
    data = workload.data(0, "train")
    whole = private.plain_features(model, data.select(torch.arange(16)), CPU)
    labels = private.alone(model.head, whole)
    for count in (1, 2, 3, 5):
        z = private.plain_features(model, data.select(torch.arange(count)), CPU)
        assert torch.equal(z, whole[:count])
        assert torch.equal(private.alone(model.head, z), labels[:count])


def test_the_noise_has_the_size_of_the_account(content, monkeypatch):
    asked = []
    monkeypatch.setattr(
        private, "gaussian_noise", lambda shape, stdv, secret: asked.append((stdv, secret)) or torch.zeros(*shape)
    )
    reply(content, **{"dualadapt.noise_multiplier": 2.0, "dp.noise": "secret"})
    assert asked == [(2.0 * class_moments.SENSITIVITY, True)]


@pytest.mark.parametrize(("noise", "clear"), [(1e-6, True), (1e6, False)])
def test_targets_are_classes_where_the_moments_say_something_and_else_the_global_heads(noise, clear):
    with seeded("model"):
        model = Net().eval()
    z = encode(model.features, Blobs().data(0, "train"), CPU) + 1.0  # away from the public moments
    with seeded("release"):
        source = em.fit(torch.randn(60, 8), 2, variance_floor=1e-2)
        found = private.release_features(z, [model.head], source, private.Release(noise), secret=False)
    assert found.targets.shape == (len(found.features), 3)
    assert bool(((found.targets == 0) | (found.targets == 1)).all()) == clear
    torch.testing.assert_close(found.targets.sum(1), torch.ones(len(found.targets)))


def test_seeded_replies_repeat_and_secret_ones_do_not(content):
    assert equal(arrays(reply(content)), arrays(reply(content)))
    secret = {"dp.noise": "secret"}
    assert not equal(arrays(reply(content, **secret)), arrays(reply(content, **secret)))


def test_the_clients_own_statistics_do_not_enter(content, monkeypatch):
    monkeypatch.setattr("fedlab.strategies.dualadapt.client.adapt_batchnorm", None)  # would be called, and fail
    assert reply(content)["metrics"]["num-examples"] > 0


def test_accuracies_stay_on_a_client_whose_noise_is_secret(content):
    found = reply(content, function=evaluate, **{"dp.noise": "secret"})
    assert dict(found["metrics"]) == {"num-examples": 1}
    assert "accuracy_global" in reply(content, function=evaluate)["metrics"]


def test_the_least_noise_of_the_budget_is_used_over_all_rounds():
    found = private.account_of(config(**{"dualadapt.noise_multiplier": 0.0, "dp.max_epsilon": 4.0}))
    for _ in range(3):  # rounds
        assert found.exhausted() == ""
        found.spend()
    assert found.exhausted() and found.epsilon() == pytest.approx(4.0, rel=1e-6)
    assert private.account_of(config(**{"dualadapt.local_privacy": "off"})) is None


def test_too_little_is_refused():
    with pytest.raises(ConfigError, match=r"nothing says how much noise; set dp.max_epsilon"):
        private.account_of(config(**{"dualadapt.noise_multiplier": 0.0}))
    with pytest.raises(ConfigError, match=r"no round can be run"):
        private.account_of(config(**{"dualadapt.noise_multiplier": 0.1, "dp.max_epsilon": 1.0}))


def test_examples_with_several_rows_are_refused(content):
    with seeded("model"):
        model = Net().eval()
    model.features.append(torch.nn.Unflatten(1, (2, 4))).append(torch.nn.Flatten(0, 1))
    data = Blobs().data(0, "train")
    assert len(encode(model.features, data, CPU)) == 2 * len(data)
    with pytest.raises(ConfigError, match=r"examples have 2 rows each"):
        private.plain_features(model, data, CPU)


def test_the_account_is_in_the_checkpoint():
    half = server_strategy(config(), Blobs())
    half.account.spend()
    state = half.state()
    other = server_strategy(config(), Blobs())
    other.trainer.restore = lambda state: None
    other.baseline.restore = lambda state: None
    other.restore(state)
    assert other.account.count == 1
