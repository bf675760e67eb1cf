"""The account beside numeric integration, the classical bound, and what a checkpoint must keep."""

from __future__ import annotations

import math

import dp_accounting
import pytest
from scipy.integrate import quad

from fedlab.config.run_options import PrivacyConfig
from fedlab.config.sections import parse_section
from fedlab.privacy.accounting import PrivacyAccount, Release, describe, epsilon, noise_multiplier

DELTA = 1e-5


def account(secret=False, z=2.0, **options):
    return PrivacyAccount(parse_section(PrivacyConfig, "dp", {}, **options), "client", Release(z), secret=secret)


@pytest.mark.parametrize(("z", "releases"), [(1.0, 1), (2.0, 4), (0.5, 3), (4.0, 10)])
def test_epsilon_is_that_of_the_privacy_loss_by_numeric_integration(z, releases):
    """delta = E[max(0, 1 - exp(epsilon - loss))], the loss of two Gaussians mu apart being N(mu^2 / 2, mu^2)."""
    mu = math.sqrt(releases) / z
    found = epsilon({Release(z): releases}, DELTA)

    def integrand(loss):
        density = math.exp(-((loss - mu * mu / 2) ** 2) / (2 * mu * mu)) / (mu * math.sqrt(2 * math.pi))
        return max(0.0, 1 - math.exp(found - loss)) * density

    assert quad(integrand, found, mu * mu / 2 + 12 * mu, limit=200)[0] == pytest.approx(DELTA, rel=1e-3)


def test_epsilon_is_below_the_classical_bound_and_grows_with_rounds():
    z = 5.0
    assert epsilon({Release(z): 1}, DELTA) < math.sqrt(2 * math.log(1.25 / DELTA)) / z  # Dwork and Roth, theorem A.1
    values = [epsilon({Release(z): rounds}, DELTA) for rounds in (1, 2, 5, 50)]
    assert values == sorted(values)
    assert epsilon({Release(0.01): 100}, DELTA) > 1e5  # next to no noise: no overflow, no promise
    assert epsilon({Release(1e6): 1}, DELTA) == 0.0
    assert epsilon({Release(0.0): 1}, DELTA) == math.inf
    assert epsilon({}, DELTA) == 0.0


def test_unlike_releases_compose_by_their_squares():
    both = epsilon({Release(3.0): 1, Release(4.0): 1}, DELTA)
    assert both == pytest.approx(epsilon({Release(12 / 5): 1}, DELTA), rel=1e-9)  # 1/9 + 1/16 = (5/12)^2


def test_a_small_secret_sample_costs_less_and_a_large_one_never_more():
    everybody = epsilon({Release(4.0): 10}, DELTA)
    assert epsilon({Release(4.0, 10, 1000): 10}, DELTA) < everybody / 10
    assert epsilon({Release(4.0, 9, 10): 10}, DELTA) <= everybody


def test_gradients_of_all_examples_cost_as_much_as_one_release_and_those_of_samples_less():
    """T Gaussian sums with noise z are one with z / sqrt(T); a sample of 5 % costs a small part of that."""
    everybody = epsilon({Release(1e6, steps=16, gradient_noise=8.0): 4}, DELTA)
    assert everybody == pytest.approx(epsilon({Release(1.0): 1}, DELTA), rel=5e-3)
    assert epsilon({Release(1e6, steps=16, rate=0.05, gradient_noise=8.0): 4}, DELTA) < everybody / 10
    assert epsilon({Release(1.0, steps=1, gradient_noise=0.0): 1}, DELTA) == math.inf


@pytest.mark.parametrize(("rate", "z", "steps"), [(0.1, 1.0, 200), (0.25, 2.0, 50)])
def test_gradients_cost_less_than_renyi_s_bound_and_not_much_less(rate, z, steps):
    bound = dp_accounting.rdp.RdpAccountant()
    bound.compose(dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(z)), steps)
    bound.compose(dp_accounting.GaussianDpEvent(3.0))
    found = epsilon({Release(3.0, steps=steps, rate=rate, gradient_noise=z): 1}, DELTA)
    assert 0.8 * bound.get_epsilon(DELTA) < found < bound.get_epsilon(DELTA)


def test_the_least_noise_of_a_budget_spends_it():
    z = noise_multiplier(8.0, DELTA, 5)
    assert epsilon({Release(z): 5}, DELTA) == pytest.approx(8.0, rel=1e-6)
    assert epsilon({Release(z): 5}, DELTA) <= 8.0


def test_a_budget_is_never_exceeded():
    found = account(z=noise_multiplier(8.0, DELTA, 5), max_epsilon=8.0)
    for number in range(5):
        assert found.exhausted() == "" and found.count == number
        found.spend()
    assert "above the budget dp.max_epsilon=8" in found.exhausted()
    assert found.epsilon() <= 8.0
    assert account().exhausted() == ""  # without a budget


def test_a_round_that_may_have_been_lost_counts_only_where_its_noise_cannot_repeat():
    spent = account()
    for _ in range(3):
        spent.spend()
    seeded, secret, fresh = account(), account(secret=True), account(secret=True)
    seeded.restore(spent.state())
    secret.restore(spent.state())
    fresh.restore([])
    assert (seeded.count, secret.count, fresh.count) == (3, 4, 1)


def test_the_record_says_what_is_protected_and_how():
    found = account(secret=True, max_epsilon=9.0)
    found.spend()
    record = found.record()
    assert "for each client, with secret noise" in describe(record)
    assert "protects nobody" in describe(account().record())
    assert record == {
        "epsilon": found.epsilon(),
        "delta": DELTA,
        "max_epsilon": 9.0,
        "unit": "client",
        "noise": "secret",
        "releases": 1,
    }
