"""States of models that came in a message or a checkpoint: loaded into a model that they fit, else refused."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from fedlab.errors import IncompatibleWeightsError, plural
from fedlab.models.copying import copy_with_state
from fedlab.workload import Workload, blank_model, model_shapes, model_template


def load(model: nn.Module, state: Mapping[str, torch.Tensor], device: torch.device) -> nn.Module:
    """Load a state into a model and return it on a device.

    Raises
    ------
    IncompatibleWeightsError
        When the state is of another model.
    """
    check_weights(model, state)
    model.load_state_dict(dict(state))
    return model.to(device)


def loaded_model(workload: Workload, state: Mapping[str, torch.Tensor], device: torch.device) -> nn.Module:
    """Return a model of the workload with a state, on a device: that of :func:`load`, in one copy where that can be.

    Raises
    ------
    IncompatibleWeightsError
        When the state is of another model.
    """
    check_state(workload, state)
    model = copy_with_state(model_template(workload), state) if device.type == "cpu" else None
    return load(blank_model(workload), state, device) if model is None else model


def check_state(workload: Workload, state: Mapping[str, torch.Tensor]) -> None:
    """Validate that a state has the names and shapes of that of the workload's model.

    Raises
    ------
    IncompatibleWeightsError
        When the state is of another model.
    """
    _check_shapes(type(model_template(workload)).__name__, model_shapes(workload), state)


def check_weights(model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Validate that a state has the names and shapes of a model's.

    Raises
    ------
    IncompatibleWeightsError
        When the state is of another model, for instance from a checkpoint made with other options.
    """
    _check_shapes(type(model).__name__, {name: own.shape for name, own in model.state_dict().items()}, state)


def _check_shapes(model: str, shapes: Mapping[str, torch.Size], state: Mapping[str, torch.Tensor]) -> None:
    if {name: tensor.shape for name, tensor in state.items()} == shapes:
        return
    foreign = sorted(
        name
        for name in shapes.keys() | state.keys()
        if name not in shapes or name not in state or shapes[name] != state[name].shape
    )
    raise IncompatibleWeightsError(
        f"these weights are of another model than {model}: {plural(len(foreign), 'array')} without a match, the "
        f"first is {foreign[0]!r}; use the workload and the options that they were trained with"
    )
