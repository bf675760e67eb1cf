"""Adaptation on the client after the last round: a client trains its own G on its unlabeled data and keeps it.

A method is a row of the table of strategies (``strategy=source_free``: the server trains on its source, then each
client adapts), and a value of the option ``client_adapt`` of strategies that have one::

    fedlab run dualadapt-digits dualadapt.client_adapt=source_free source_free.steps=120

The method's options are those of the section with its name. What a client has trained is its state
(``ClientContext.state``): it never leaves the client, which predicts with it from then on.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

ADAPT, OFF = "client_adapt", "off"  # the option and its value without a method

ClientAdapt = Annotated[
    str, Field(description="how each client trains its own G after the last round: source_free, shot, adacontrast; off")
]
