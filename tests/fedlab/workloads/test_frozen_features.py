"""Frozen stages of a backbone, with a small network in its place: how many batches are computed at a time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from fedlab.seeds import deterministic, seeded
from fedlab.workloads import frozen_features
from fedlab.workloads.frozen_features import BATCH, FrozenStages


@pytest.fixture
def started(monkeypatch):
    """Numbers of threads that were started, one for each set of images."""
    numbers = []

    class Pool(ThreadPoolExecutor):
        def __init__(self, number):
            numbers.append(number)
            super().__init__(number)

    network = nn.Conv2d(3, 2, 3)
    monkeypatch.setattr(frozen_features, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(frozen_features, "_frozen", lambda *arguments: network)
    monkeypatch.setattr(frozen_features.joblib, "cpu_count", lambda: 8)
    return numbers


def test_a_run_of_one_thread_computes_one_batch_at_a_time_with_the_same_bits(started):
    stages = FrozenStages("small", "", 1, "cpu")
    with seeded("images"):
        pixels = torch.randn(3 * BATCH + 1, 3, 5, 5)
    with deterministic(1):
        alone = stages(pixels)
    with deterministic(2):
        together = stages(pixels)
    assert started == [1, 2]
    assert torch.equal(alone, together) and alone.shape == (3 * BATCH + 1, 2, 3, 3)
