"""STARTUP: a teacher of the base classes gives soft labels to the clients' images, and a student learns from both.

```
1  server: train the teacher on the labeled base; student <- its backbone, a fresh head, a projector
2  repeat
3    server, R_s times:  student <- SGD on  b * CE(base batch)
4    broadcast student and teacher
5    client i:  q <- softmax(teacher(x)) for its images x, once
6      R_c times:  two views x', x'' of a batch
7        student <- SGD on  d * mean of KL(q, p(x')) and KL(q, p(x''))  +  c * NT-Xent(x', x'')
8      upload the student
9    server: student <- mean of the students, weighted by images; or another rule (``startup.aggregation``)
```
b, d and c are ``base_weight``, ``distillation_weight`` and ``contrastive_weight``.

With ``startup.setting=centralized`` the server takes lines 3 and 7 as one step on all clients' images: the paper's
method, for simulation only. The ingredients are options, so baselines are the same file: no line 7 is transfer,
``distillation_loss=none`` is transfer + SimCLR, with ``base_weight=0`` as well SimCLR on the target. ``teacher_ema`` >
0 makes the teacher a moving average of the student, and with ``inverse_temperature=10`` and ``start=whole`` that is
Dynamic Distillation.

**Source**: Phoo and Hariharan, Self-training for Few-shot Transfer Across Extreme Task Differences, ICLR 2021, section
4 and published code; Islam et al., Dynamic Distillation Network for Cross-Domain Few-Shot Recognition with Unlabeled
Data, NeurIPS 2021. Neither is federated.

**Departures**: (1) federated: base and target losses alternate, server and clients, instead of one sum; (2) a fixed
number of steps and a cosine from the first step size to 0 over the rounds (times that of ``lr_schedule``), instead of a
search over step sizes, a plateau rule and the best of many checkpoints by validation loss; (3) batches are drawn with
replacement; (4) momentum is reset each round; (5) the moving teacher labels one weak view, in evaluation mode, for both
strong ones, and on the server it moves once a round, by the decay to the power of the clients' mean number of steps.

**Messages**: the teacher is sent to every client in every round, and soft labels never leave their client. That is one
more model a round from server to client. Sending soft labels instead would take fewer bytes, but the server would get
the teacher's prediction for every image of a client.

**Metrics**: ``loss`` is the mean base loss of the round, ``client_loss`` the clients' mean of line 7. Clients test in
round 0 (with ``start`` at its default, that is transfer), every ``evaluate_every`` rounds and after the last.
"""

from __future__ import annotations

from fedlab.strategies.protocol import (
    CLIENT_BATCHES,
    CLIENT_MODELS,
    SERVER_BATCHES,
    SERVER_MODELS,
    ClientFunctions,
    StrategySpec,
    evaluate,
)
from fedlab.strategies.source_only import PHASES
from fedlab.strategies.startup.client import train
from fedlab.strategies.startup.server import Startup
from fedlab.strategies.startup.shared import Options, Student

__all__ = ["SPEC", "Options", "Startup", "Student", "train"]

SPEC: StrategySpec = StrategySpec(
    Options,
    Startup,
    ClientFunctions(train, evaluate),
    depends_on_rounds=True,
    phases=PHASES,
    ignores=SERVER_BATCHES | SERVER_MODELS | CLIENT_BATCHES | CLIENT_MODELS,
)
