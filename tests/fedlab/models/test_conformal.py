"""Conformal p-values: by hand, a plain loop, and their guarantee."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedlab.models.conformal import conformal_p_value, quantiles
from mixtures import drawn, few, mixture_of, seeds


def test_typicality_by_hand() -> None:
    reference = torch.tensor([-3.0, -1.0, -2.0])
    ranks = conformal_p_value(torch.tensor([-9.0, -3.0, -1.5, 0.0]), reference)
    assert ranks.tolist() == [0.25, 0.5, 0.75, 1.0]


@few
@given(seed=seeds, examples=st.integers(1, 60), data=st.data())
def test_summary_is_within_one_over_its_size(seed: int, examples: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, examples))
    stream = torch.Generator().manual_seed(seed)
    reference = torch.randint(0, 30, (2, examples), generator=stream).double()  # with ties
    values = torch.arange(-1.0, 31.0).expand(2, -1)
    exact = conformal_p_value(values, reference)
    plain = [[(1 + sum(r <= v for r in row)) / (1 + examples) for v in range(-1, 31)] for row in reference.tolist()]
    torch.testing.assert_close(exact, torch.tensor(plain, dtype=torch.float64))
    summary = quantiles(reference, count)
    assert summary.shape == (2, count)
    assert (summary.diff(dim=-1) >= 0).all()
    assert (conformal_p_value(values, summary) - exact).abs().max() <= 1 / count
    assert torch.equal(quantiles(reference, examples), reference.sort(-1).values)


def test_typicality_of_the_same_law_is_uniform_and_of_another_small() -> None:
    mixture = mixture_of(6, dimensions=64)
    reference = mixture.log_prob(drawn(mixture, 2000, seed=1))
    alike = conformal_p_value(mixture.log_prob(drawn(mixture, 2000, seed=2)), reference)
    for share in (0.1, 0.5, 0.9):
        assert (alike <= share).double().mean().item() == pytest.approx(share, abs=0.05)
    other = conformal_p_value(mixture.log_prob(drawn(mixture, 200) + 3), quantiles(reference, 100))
    assert other.max() < 0.05
    assert other.min() > 0


FAILURES: dict[str, Callable[[], object]] = {
    "a log-likelihood is NaN": lambda: conformal_p_value(torch.tensor([math.nan]), torch.zeros(3)),
    "at least one reference": lambda: conformal_p_value(torch.zeros(3), torch.zeros(0)),
    "cannot summarize 3 log-likelihoods by 4": lambda: quantiles(torch.zeros(3), 4),
}


@pytest.mark.parametrize("sentence", FAILURES)
def test_failures_are_sentences(sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        FAILURES[sentence]()
