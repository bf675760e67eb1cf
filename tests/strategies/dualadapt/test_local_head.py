"""A client's head and mixture as one model to a CUDA graph: the bits of two, and nothing that waits for a GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from fedlab.config.sections import parse_section
from fedlab.config.training_options import ClientConfig
from fedlab.models import em
from fedlab.models.conformal import quantiles
from fedlab.seeds import deterministic, seeded
from fedlab.strategies.dualadapt.local_head import HeadAndMixture, RunningMixture, adapt_head, em_step_sizes
from fedlab.strategies.dualadapt.shared import Options
from host_waits import NoHostWait

WIDTH, CLASSES, COMPONENTS = 6, 3, 4


def work(device="cpu"):
    """Head, features, source mixture and its quantiles."""
    with seeded("work"):
        head = nn.Sequential(nn.Linear(WIDTH, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, CLASSES))
        z = torch.randn(90, WIDTH)
        source = em.fit(torch.randn(80, WIDTH), COMPONENTS)
    place = torch.device(device)
    moved = replace(source, **{name: array.to(place) for name, array in source.arrays().items()})
    return head.to(place), z.to(place), moved, quantiles(source.log_prob(z), 30).to(place)


def test_statistics_that_change_in_place_have_the_bits_of_new_ones():
    head, z, source, _ = work()
    both, running = HeadAndMixture(head, source, 1e-2), RunningMixture(source, 1e-2)
    for step, step_size in enumerate(em_step_sizes(30, torch.device("cpu"))):
        rows = torch.arange(step, step + 17)
        both.update(z[rows], step_size)
        running.update(z[rows])
        for one, other in zip(both.statistics, running.statistics, strict=True):
            assert torch.equal(one, other)
    assert all(map(torch.equal, both.fitted().arrays().values(), running.fitted().arrays().values()))


def test_the_source_mixture_stays_as_it_is():
    head, z, source, _ = work()
    before = source.statistics()
    HeadAndMixture(head, source, 1e-2).update(z, torch.tensor(0.5, dtype=torch.float64))
    assert all(map(torch.equal, before, source.statistics()))


def test_a_step_of_the_mixture_waits_for_nothing_after_the_first():
    head, z, source, _ = work()
    both = HeadAndMixture(head, source, 1e-2)
    step_size = torch.tensor(0.5, dtype=torch.float64)
    both.update(z, step_size)
    both, z, step_size = (one.to("meta") for one in (both, z, step_size))
    with NoHostWait():
        both.update(z, step_size)


def test_features_that_are_not_finite_are_told_in_a_sentence():
    head, z, source, sorted_log_prob = work()
    z[3, 2] = float("nan")
    training = parse_section(ClientConfig, "client", {"client.steps": 50, "client.batch_size": 16})
    options = parse_section(Options, "dualadapt", {"dualadapt.client_weights": False})
    labels = torch.zeros(len(z), dtype=torch.long)
    with pytest.raises(ValueError, match="NaN or infinity"):
        adapt_head(head, z, source, sorted_log_prob, options, training, targets=labels)


@pytest.mark.gpu
def test_head_and_mixture_in_a_graph_have_the_bits_of_single_kernels():
    training = parse_section(ClientConfig, "client", {"client.steps": 6, "client.batch_size": 16})
    options = parse_section(Options, "dualadapt", {})
    found = []
    for graphs in (True, False):
        head, z, source, sorted_log_prob = work("cuda")
        with deterministic(1), seeded("steps"):
            local, mixture, loss = adapt_head(head, z, source, sorted_log_prob, options, training, cuda_graphs=graphs)
        found.append((loss, [*local.state_dict().values(), *mixture.arrays().values()]))
    assert found[0][0] == found[1][0]
    assert all(map(torch.equal, found[0][1], found[1][1]))
