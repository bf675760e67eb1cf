"""The global model as a module, where the arrays of a round are those of the workload's model."""

from __future__ import annotations

from flwr.app import ArrayRecord
from torch import nn

from fedlab.comm.tensors import tensors_of
from fedlab.config.schema import Config
from fedlab.strategies.protocol import load
from fedlab.training import resolve_device
from fedlab.workload import blank_model


def global_model(config: Config, arrays: ArrayRecord) -> nn.Module | None:
    """Return the workload's model with the global arrays, on the run's device; None where they are something else."""
    model = blank_model(config.workload)
    state = tensors_of(arrays)
    if state.keys() != model.state_dict().keys():
        return None
    return load(model, state, resolve_device(config.run.device)).eval()
