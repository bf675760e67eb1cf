"""STARTUP: a teacher of the base classes labels each client's images softly, and a student learns from both.

```
1  server: train the teacher on the labelled base; student <- its backbone, a fresh head, a projector
2  repeat
3    server, R_s times:  student <- SGD on  base * CE(base batch)
4    broadcast student and teacher
5    client i:  q <- softmax(teacher(x)) for its images x, once
6      R_c times:  two views x', x'' of a batch
7        student <- SGD on  distil * mean of KL(q, p(x')) and KL(q, p(x''))  +  contrastive * NT-Xent(x', x'')
8      upload the student
9    server: student <- mean of the students, weighted by images; or another rule (``startup.aggregation``)
```
With ``startup.setting=centralized`` the server takes lines 3 and 7 as one step on all clients' images: the paper's
method, for simulation only. The ingredients are options, so baselines are the same file: no line 7 is transfer,
``soft=none`` is transfer + SimCLR, ``base=0`` besides is SimCLR on the target. ``moving`` > 0 lets the teacher follow
the student, and with ``sharpness=10`` and ``start=whole`` that is Dynamic Distillation.

**Source**: Phoo and Hariharan, Self-training for Few-shot Transfer Across Extreme Task Differences, ICLR 2021, section
4 and published code; Islam et al., Dynamic Distillation Network for Cross-Domain Few-Shot Recognition with Unlabeled
Data, NeurIPS 2021. Neither is federated.

**Departures**: (1) federated: base and target losses alternate, server and clients, instead of one sum; (2) a fixed
number of steps and a cosine from the first step size to 0 over the rounds, instead of a search over step sizes, a
plateau rule and the best of many checkpoints by validation loss; (3) batches are drawn with replacement; (4) momentum
starts anew each round; (5) the moving teacher sees one weak view and teaches both strong ones, in evaluation mode, and
on the server it moves once a round by as much as the clients' steps weigh.

**The teacher travels with every message**, and the soft labels stay where they are made. That is one model more a round
on the way down. Soft labels that came back with each message would be fewer bytes, but then the server would hold the
teacher's opinion of every image of a client.

**Metrics**: ``loss`` is the mean base loss of the round, ``client_loss`` the clients' mean of line 7. Clients test in
round 0 (with ``start`` at its default, that is transfer), every ``evaluate_every`` rounds and after the last.
"""

from __future__ import annotations

from fedlab.strategies.protocol import ClientFunctions, StrategySpec, evaluate
from fedlab.strategies.source_only import PHASES
from fedlab.strategies.startup.client import train
from fedlab.strategies.startup.server import Startup
from fedlab.strategies.startup.shared import Options, Student

__all__ = ["SPEC", "Options", "Startup", "Student", "train"]

SPEC: StrategySpec = StrategySpec(
    Options, Startup, ClientFunctions(train, evaluate), phases=PHASES
)
