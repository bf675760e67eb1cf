"""The models of a run as plain torch modules, from its checkpoints: the global one, and what a client predicts with."""

from __future__ import annotations

from torch import nn

from fedlab.errors import ConfigError, RunError, suggest
from fedlab.inference.predict import Recalled, checkpoint_round
from fedlab.registry import load_run_config
from fedlab.runs.directory import RunDirectory
from fedlab.workload import blank_model


def load_model(run: RunDirectory, client: str | None = None, server_round: int | None = None) -> nn.Module:
    """Return a model of a run on the CPU, in evaluation mode.

    Parameters
    ----------
    client
        Name of the client in whose place the model predicts; None: the workload's model with the global arrays.
    server_round
        Round of the checkpoint; None: the newest.

    Raises
    ------
    ConfigError
        When there is no such client, or no checkpoint of that round.
    RunError
        When there is no checkpoint, or its arrays are not those of the workload's model.
    """
    config = load_run_config(run.config_file)
    recalled = Recalled(run.checkpoints.path(checkpoint_round(run, server_round)), config)
    if client is not None:
        if client not in config.clients:
            raise ConfigError(f"{run.path} has no client {client!r}; {suggest(client, config.clients)}")
        return recalled.in_place_of(config.clients.index(client))[1]
    model, arrays = blank_model(config.workload), recalled.content["arrays"]
    if arrays.keys() != model.state_dict().keys():
        raise RunError(
            f"the arrays that the clients of {run.path} share are not a whole model of its workload; name a client "
            f"({', '.join(config.clients[:3])}), whose model is whole"
        )
    model.load_state_dict(arrays)
    return model.eval()
