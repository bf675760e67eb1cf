"""Operations that a step of the server leaves to the host: draws, and nothing that is computed of images.

Numbers of operations, and no clock. On a GPU the rest is a CUDA graph, which has the bits of single kernels.
"""

from __future__ import annotations

import pytest
import torch

from benchmarks import step_operations
from benchmarks.step_operations import GRAPHED, OPTIMIZER, REST
from fedlab import launch
from fedlab.data.random_batches import RandomBatches
from fedlab.seeds import deterministic
from fedlab.strategies.source_only import SourceTrainer

MOST = {"dualadapt-digits-mcd": 10, "mixer-cifar10-central": 36}


def config(preset, **changes):
    given = {**step_operations.SMALL, **step_operations.PRESETS[preset], **changes}
    return launch.prepare(preset, given)


def whole_batches(monkeypatch):
    """Let each batch be made before the graph, as that of a set whose transform is one function."""
    monkeypatch.setattr(
        RandomBatches, "is_split", property(lambda self: False, lambda self, value: None), raising=False
    )


@pytest.mark.parametrize("preset", list(MOST))
def test_the_host_draws_and_computes_no_image(preset, monkeypatch):
    parts = step_operations.counted(step_operations.server_steps(config(preset)))
    assert parts[REST] <= MOST[preset]
    assert parts[OPTIMIZER] < 15
    whole_batches(monkeypatch)
    before = step_operations.counted(step_operations.server_steps(config(preset)))
    assert before[REST] > 100 and before[GRAPHED] < parts[GRAPHED]


def losses_and_weights(preset, monkeypatch, **changes):
    """Mean loss of some steps, and the model's state."""
    made = []
    init = SourceTrainer.__init__

    def noted(self, *args):
        init(self, *args)
        made.append(self)

    with monkeypatch.context() as patch, deterministic(1):
        patch.setattr(SourceTrainer, "__init__", noted)
        steps = step_operations.server_steps(config(preset, **changes))
        mean = steps(5)
    return mean, {name: value.cpu() for name, value in made[0].model.state_dict().items()}, made[0].objective


def same(one, other):
    return one[0] == other[0] and all(torch.equal(value, other[1][name]) for name, value in one[1].items())


@pytest.mark.parametrize("preset", list(MOST))
def test_training_has_the_bits_of_whole_batches(preset, monkeypatch):
    parts = losses_and_weights(preset, monkeypatch)
    whole_batches(monkeypatch)
    assert same(parts, losses_and_weights(preset, monkeypatch))


@pytest.mark.gpu
@pytest.mark.parametrize("preset", list(MOST))
def test_views_in_a_graph_have_the_bits_of_single_kernels(preset, monkeypatch):
    on_gpu = {"device": "cuda", "server.batch_size": 64}
    graph = losses_and_weights(preset, monkeypatch, **on_gpu)
    assert graph[2].refused == ""
    assert same(graph, losses_and_weights(preset, monkeypatch, cuda_graphs=False, **on_gpu))


@pytest.mark.gpu
def test_what_is_drawn_comes_to_a_gpu_in_one_copy_as_it_is():
    data = config("mixer-cifar10-central").workload.data(None, "train")
    here = RandomBatches(data, 64, torch.device("cpu"))
    there = RandomBatches(data.on_device(torch.device("cuda")), 64, torch.device("cuda"))
    assert there.is_split
    one, other = here.draw_at("a"), there.draw_at("a")
    assert len({column.untyped_storage().data_ptr() for column in other.values()}) == 1
    assert list(one) == list(other) and all(torch.equal(column, other[name].cpu()) for name, column in one.items())
