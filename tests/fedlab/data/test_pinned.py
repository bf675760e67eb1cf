"""Copies to a GPU: not within a CUDA graph."""

from __future__ import annotations

import pytest
import torch

from fedlab.data.pinned import send, send_together

GPU = torch.device("cuda")
CPU = torch.device("cpu")


def test_a_copy_within_a_graph_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="copied to the GPU within the graph"):
        send(torch.rand(3), GPU)
    with pytest.raises(RuntimeError, match="copied to the GPU within the graph"):
        send_together({"one": torch.rand(3), "two": torch.rand(2)}, GPU)


def test_what_is_there_is_not_copied():
    x = torch.rand(3)
    assert send(x, CPU) is x and send_together({"x": x, "y": x}, CPU)["y"] is x


@pytest.mark.gpu
def test_a_loss_that_draws_on_the_cpu_is_refused_as_a_graph():
    x, graph = torch.zeros(4, device=GPU), torch.cuda.CUDAGraph()
    send(torch.rand(4), GPU)  # a free block of pinned memory, which torch would take for the copy
    with pytest.raises(RuntimeError, match="within the graph"), torch.cuda.graph(graph):
        x += send(torch.rand(4), GPU)
