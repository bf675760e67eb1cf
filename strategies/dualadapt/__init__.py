"""DualAdapt: one labeled source on the server, many unlabeled targets on the clients, adapted on both sides.

**Source**: Yao et al., Federated Multi-Target Domain Adaptation, WACV 2022, arXiv 2108.07792; the discrepancy is
MCD's (Saito et al., CVPR 2018). Symbols: G features, F_g global head, F_l^i the local head of client i, W_S and W_T^i
the Gaussian mixtures of source and target features, d the discrepancy.

Line numbers in the comments are those of the pseudo-code in ``docs/explanation/dualadapt.md``, which also lists the
departures from the paper and the ablation of each.

**On the wire**: down ``arrays`` (G, F_g) and ``mixture`` (W_S); up ``head`` (F_l), ``mixture`` (W_T) and ``metrics``.

**Late joiners** are clients that connect when others have been trained already. In its first round a late joiner sends
only its mixture, in the feature space in which the others' mixtures were fitted; ``dualadapt/onboarding.py`` finds its
initial head. For ``onboarding`` rounds only late joiners and the server adapt, then full rounds continue.

**Metrics** of each client, on its test data: accuracy of the ``global`` head, the ``local`` head and the ``average``
of their probabilities, all on the averaged (EMA) G; ``source_only``: the source-only baseline; after the last round
``last``: as ``average`` on the last G.
"""

from __future__ import annotations

from fedlab.metrics import AUXILIARY_ORDER, Metric, Phase
from fedlab.strategies.dualadapt.client import train
from fedlab.strategies.dualadapt.evaluation import evaluate, prediction_states, predictor, states_from_checkpoint
from fedlab.strategies.dualadapt.many_clients import LocalHeads
from fedlab.strategies.dualadapt.mixtures import example_weights
from fedlab.strategies.dualadapt.private import release_of
from fedlab.strategies.dualadapt.server import DualAdapt
from fedlab.strategies.dualadapt.shared import Options
from fedlab.strategies.protocol import CLIENT_BATCHES, CLIENT_MODELS, ClientFunctions, StrategySpec
from fedlab.strategies.source_only import PHASES
from fedlab.strategies.vectorized import ManyClients

METRICS = (  # variants of the workload's metrics: what predicts on a client
    Metric("*_source_only", order=1, role="reference", note="training on the source alone"),
    Metric("*_global", order=2),
    Metric("*_local", order=3, note="the client's own head"),
    Metric("*_average", order=5, note="both heads together"),
    Metric("*_last", order=4, note="as the averaged heads, on the extractor of the last step"),
    Metric("control_loss", "loss of the source-only twin", higher_is_better=False, order=AUXILIARY_ORDER),
)

SPEC: StrategySpec = StrategySpec(
    Options,
    DualAdapt,
    ClientFunctions(
        train,
        evaluate,
        prediction_states,
        states_from_checkpoint,
        predictor,
        example_weights,
        ManyClients(LocalHeads()),
    ),
    comparison_overrides={"source_only_twin": False},  # source_only is in the table as a strategy of its own
    metrics=METRICS,
    upload="head",
    release=release_of,
    phases=(*PHASES, Phase("control", "its source-only twin trains")),
    ignores=CLIENT_BATCHES | CLIENT_MODELS,
)
