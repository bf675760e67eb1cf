"""Clients of a finished run adapt once more: its model, data and random streams, and a method of any options.

What comes out has the bits of a run that ends with that method, at the cost of the clients' steps alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from fedlab.config.sections import Value
from fedlab.registry import load_config
from fedlab.runs.directory import RunDirectory
from fedlab.runs.result import Result
from fedlab.seeds import deterministic, seeded
from fedlab.strategies.client_adaptation.spec import AdaptationSpec
from fedlab.strategies.client_adaptation.wrapper import REPORT, STATES, STREAM, AdaptingClient
from fedlab.strategies.protocol import ARRAYS, ClientContext
from fedlab.strategies.source_only import SPEC as SOURCE_ONLY

Arrays = Mapping[str, torch.Tensor]


class FinishedRun:
    """A run of ``source_only`` after its last round.

    Attributes
    ----------
    config, workload
        Its configuration, and the workload whose clients adapt.
    server_round
        Its last round.
    arrays
        The model that clients would be sent in that round.
    """

    def __init__(self, result: Result, changes: Mapping[str, Value] | None = None) -> None:
        """Read the run; ``changes`` are options of the workload, for example other clients."""
        checkpoints = RunDirectory.open(result.directory).checkpoints
        self.config = load_config({**result.config, **(changes or {})})
        self.workload = self.config.workload
        self.server_round: int = checkpoints.rounds()[-1]
        self.arrays: Arrays = checkpoints.load(self.server_round)[ARRAYS]

    def adapt(self, partition: int, method: AdaptationSpec, options: Any) -> tuple[Arrays, dict[str, float]]:
        """Return the arrays that a client predicts with after adaptation, and the method's report."""
        run, context = self.config.run, ClientContext(partition, replace(self.config, adaptation=options))
        with deterministic(run.threads), seeded(run.seed, STREAM, self.server_round, partition):
            state = AdaptingClient(SOURCE_ONLY.client, method).adapt(self.workload, {ARRAYS: self.arrays}, context)
        return state[STATES][ARRAYS], state[REPORT]

    def accuracy(self, partition: int, arrays: Arrays) -> float:
        """Return the accuracy of arrays on a client's test data."""
        with deterministic(self.config.run.threads):
            model = SOURCE_ONLY.client.predictor(self.workload, {ARRAYS: arrays})
            found = self.workload.evaluate(model, self.workload.data(partition, "test"))
        return float(found["accuracy"])
