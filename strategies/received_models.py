"""The model of a message, made as a client has always made it, but without first weights that nobody reads.

``load(workload.model(), state, device)`` draws first weights from the client's random stream and throws them away. They
are left out here where that changes no bit: the stream is moved on past them instead (:mod:`fedlab.skipped_draws`).
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedlab.skipped_draws import CountedDraws, moved_on
from fedlab.strategies.protocol import check_state, load, loaded_model
from fedlab.workload import Workload

MIN_DRAWS = 4_000_000  # of fewer numbers, to draw them takes no longer
UNKNOWN, NONE = -1, 0


@dataclass
class _Draws:
    """Draws of a workload's model from torch's stream of the CPU, as far as they are known.

    Attributes
    ----------
    models
        How many were made and looked at.
    skipped
        Numbers to move on by; ``UNKNOWN`` until a second model was looked at, ``NONE`` where the model is to be made.
    """

    workload: Workload
    models: int = 0
    skipped: int = UNKNOWN


_known: deque[_Draws] = deque(maxlen=4)


def received_model(workload: Workload, state: Mapping[str, Tensor], device: torch.device) -> nn.Module:
    """Return a model of the workload with a state, on a device; the random streams are where a new model leaves them.

    Raises
    ------
    IncompatibleWeightsError
        When the state is of another model.
    """
    draws = _draws_of(workload)
    if draws.skipped == NONE:
        return load(workload.model(), state, device)
    if draws.skipped == UNKNOWN:
        return load(_looked_at(draws), state, device)
    check_state(workload, state)
    model = loaded_model(workload, state, device)
    torch.default_generator.set_state(moved_on(torch.default_generator.get_state(), draws.skipped))
    return model


def _draws_of(workload: Workload) -> _Draws:
    for known in _known:
        if known.workload is workload:
            return known
    _known.append(_Draws(workload))
    return _known[-1]


def _looked_at(draws: _Draws) -> nn.Module:
    """Return a new model, and note what it draws: the second time, where processes of one message have ended."""
    draws.models += 1
    if draws.models == 1:
        return draws.workload.model()
    before, others = torch.default_generator.get_state(), _other_streams()
    with CountedDraws() as counted:
        model = draws.workload.model()
    draws.skipped = NONE
    weights = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    read = all(place in weights for place in counted.places)  # else the model keeps some of what it drew
    if counted.count >= MIN_DRAWS and read and others == _other_streams():
        after = torch.default_generator.get_state()
        draws.skipped = counted.count if torch.equal(moved_on(before, counted.count), after) else NONE
    return model


def _other_streams() -> tuple[Any, ...]:
    kind, words, *rest = np.random.get_state(legacy=True)
    return random.getstate(), kind, np.asarray(words).tobytes(), *rest
