"""States of models: loaded where they fit, else refused with the array that does not."""

from __future__ import annotations

import pytest
import torch

from fedlab.errors import IncompatibleWeightsError
from fedlab.strategies import model_states
from toy import Blobs

CPU = torch.device("cpu")


@pytest.fixture
def state():
    return {name: tensor.clone() for name, tensor in Blobs().model().state_dict().items()}


def test_a_state_of_the_model_is_loaded(state):
    for model in (model_states.load(Blobs().model(), state, CPU), model_states.loaded_model(Blobs(), state, CPU)):
        assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())


def test_a_loaded_model_does_not_change_what_came_in_the_message(state):
    before = {name: tensor.clone() for name, tensor in state.items()}
    model = model_states.loaded_model(Blobs(), state, CPU)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(1.0)
    assert all(torch.equal(state[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("change", ["missing", "more", "shape"])
def test_another_model_s_state_is_refused_by_the_array_that_does_not_fit(state, change):
    name = sorted(state)[0]
    if change == "missing":
        del state[name]
    elif change == "more":
        name = "another"
        state[name] = torch.zeros(1)
    else:
        state[name] = torch.zeros(3, 1, 4)
    words = f"of another model than Net: .*the first is '{name}'; use the workload and the options"
    for refuse in (
        lambda: model_states.check_state(Blobs(), state),
        lambda: model_states.check_weights(Blobs().model(), state),
        lambda: model_states.load(Blobs().model(), state, CPU),
        lambda: model_states.loaded_model(Blobs(), state, CPU),
    ):
        with pytest.raises(IncompatibleWeightsError, match=words):
            refuse()
