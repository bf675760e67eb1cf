"""The line of memory, what fits, and what is counted."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedlab.errors import ConfigError
from fedlab.vectorized import memory
from fedlab.vectorized.memory import CPU_BYTES, USABLE, ClientMemory, check_batch, measure, suggested_batch

CPU = torch.device("cpu")


def test_a_line_goes_through_one_and_two_clients():
    line = ClientMemory.through(130, 160)
    assert (line.fixed, line.each) == (100, 30)
    assert [line.bytes(clients) for clients in (1, 2, 10)] == [130, 160, 400]
    assert [line.largest(free) for free in (90, 129, 130, 199, 400)] == [0, 0, 1, 3, 10]


def test_a_cpu_takes_what_its_cache_holds_and_a_gpu_what_fits():
    line = ClientMemory(0, 2**20)
    assert suggested_batch(line, CPU, free=2**40) == CPU_BYTES // 2**20
    assert suggested_batch(line, torch.device("cuda"), free=1000 * 2**20) == int(1000 * USABLE)
    assert suggested_batch(ClientMemory(0, 2**50), CPU) == 1


def test_more_than_fits_is_refused_with_what_would_fit():
    line = ClientMemory(10**9, 10**8)
    check_batch(60, line, CPU, free=10**10)
    with pytest.raises(ConfigError, match=r"64 clients at once take about 7.4 GB, and 10 GB are free on cpu; 60 would"):
        check_batch(64, line, CPU, free=10**10)


def test_where_the_system_does_not_tell_its_memory_nothing_is_refused(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda: None)
    check_batch(64, ClientMemory(0, 2**60), CPU)
    assert suggested_batch(ClientMemory(0, 2**20), CPU) == CPU_BYTES // 2**20


def test_what_autograd_keeps_is_counted_twice():
    model, x = nn.Linear(4, 3), torch.rand(5, 4)
    assert measure(CPU, lambda: (model(x) ** 2).sum()) == 2 * 4 * (5 * 4 + 5 * 3)  # x, and what is squared


def test_what_a_step_keeps_counts_until_the_step_ends():
    model, x = nn.Linear(4, 3), torch.rand(5, 4)

    def step() -> None:
        (model(x) ** 2).sum().backward()

    held: list[torch.Tensor] = []  # takes addresses that were given back, so that the next step has others

    def steps() -> None:
        for _ in range(3):
            step()
            held.append(torch.rand(5, 3))

    assert measure(CPU, steps) == measure(CPU, step)
