"""The tables of what ships with fedlab: workloads, aggregation rules, strategies and engines by name.

A row names a module by its path, so that nothing is imported before a run uses it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One line of a table: where the spec is, as ``module:attribute``, and what it is."""

    path: str
    summary: str


WORKLOADS: Mapping[str, Row] = {
    "camvid": Row(
        "fedlab.workloads.camvid:SPEC",
        "semantic segmentation of street views: labeled day drives on the server, others on clients",
    ),
    "digits": Row(
        "fedlab.workloads.digits:SPEC",
        "digit domains: a labeled source on the server, unlabeled targets on the clients",
    ),
    "fewshot": Row(
        "fedlab.workloads.fewshot:SPEC",
        "few-shot transfer: labeled base classes on the server, unlabeled targets on the clients",
    ),
    "generation": Row(
        "fedlab.workloads.generation:SPEC", "image generation without labels: a diffusion model or a score network"
    ),
    "image_folder": Row(
        "fedlab.workloads.image_folder:SPEC",
        "photographs of one's own: labeled folders on the server, folders of any images on the clients",
    ),
    "images": Row(
        "fedlab.workloads.images:SPEC",
        "images with classes (Omniglot, CIFAR-10): label-skewed parts of one set on the clients",
    ),
    "molecules": Row(
        "fedlab.workloads.molecules:SPEC",
        "generation of molecular graphs without labels, divided by scaffold, size or at random",
    ),
    "office": Row(
        "fedlab.workloads.office:SPEC",
        "objects in four collections (Office-Caltech10, SURF): one labeled, three unlabeled",
    ),
    "pacs": Row(
        "fedlab.workloads.pacs:SPEC",
        "objects painted, drawn, photographed and sketched (PACS): one style labeled, three not",
    ),
}

_ADAPTATIONS = "fedlab.strategies.client_adaptation"
_ADAPTATION_SUMMARIES = {
    "source_free": "each client trains its own G on balanced labels of neighbors, with a guard, and keeps it",
    "shot": "each client trains its own G on labels of centroids and information maximization (Liang 2020)",
    "adacontrast": "each client trains its own G on labels of neighbors and a contrast of views (Chen 2022)",
}
ADAPTATIONS: Mapping[str, Row] = {
    name: Row(f"{_ADAPTATIONS}.{name}:METHOD", summary) for name, summary in _ADAPTATION_SUMMARIES.items()
}

_RULES = "fedlab.strategies.aggregation"
AGGREGATIONS: Mapping[str, Row] = {
    "fedavg": Row(
        f"{_RULES}.server_optimizers:FEDAVG", "clients train on their labels, the server averages (McMahan 2017)"
    ),
    "fedavgm": Row(f"{_RULES}.server_optimizers:FEDAVGM", "FedAvg with momentum on the server (Hsu 2019)"),
    "fedadagrad": Row(f"{_RULES}.server_optimizers:FEDADAGRAD", "FedAvg with Adagrad on the server (Reddi 2021)"),
    "fedadam": Row(f"{_RULES}.server_optimizers:FEDADAM", "FedAvg with Adam on the server (Reddi 2021)"),
    "fedyogi": Row(f"{_RULES}.server_optimizers:FEDYOGI", "FedAvg with Yogi on the server (Reddi 2021)"),
    "fedexp": Row(
        f"{_RULES}.extrapolation:FEDEXP", "FedAvg, extrapolated as the clients' changes differ (Jhunjhunwala 2023)"
    ),
    "fedmedian": Row(f"{_RULES}.robust:FEDMEDIAN", "the median of each weight over clients (Yin 2018)"),
    "fedtrimmedavg": Row(f"{_RULES}.robust:FEDTRIMMEDAVG", "the mean of each weight without its extremes (Yin 2018)"),
    "krum": Row(f"{_RULES}.robust:KRUM", "the one model that is nearest to the others (Blanchard 2017)"),
    "multikrum": Row(f"{_RULES}.robust:MULTIKRUM", "the mean of the models nearest to the others (Blanchard 2017)"),
    "bulyan": Row(f"{_RULES}.robust:BULYAN", "trimmed mean of the models that Krum selects (El Mhamdi 2018)"),
    "qfedavg": Row(f"{_RULES}.fairness:QFEDAVG", "clients with a high loss weigh more (Li 2020)"),
    "dp_fixed": Row(f"{_RULES}.privacy:DP_FIXED", "client-level differential privacy, fixed clipping (McMahan 2018)"),
    "dp_adaptive": Row(
        f"{_RULES}.privacy:DP_ADAPTIVE", "client-level differential privacy, adaptive clipping (Andrew 2021)"
    ),
}

STRATEGIES: Mapping[str, Row] = {
    "dualadapt": Row(
        "fedlab.strategies.dualadapt:SPEC",
        "adapts G, F_g on the server to heads and mixtures that clients fit on unlabeled data (Yao 2022)",
    ),
    "source_only": Row(
        "fedlab.strategies.source_only:SPEC", "the server trains on its source, no adaptation: the lower bound"
    ),
    "adabn": Row(
        "fedlab.strategies.adabn:SPEC", "source only, with batch-norm statistics of each client's own (Li 2016)"
    ),
    **{
        name: Row(f"{_ADAPTATIONS}.{name}:SPEC", f"source only, then {row.summary}")
        for name, row in ADAPTATIONS.items()
    },
    "self_training": Row(
        "fedlab.strategies.self_training:SPEC",
        "unlabeled clients train on confident pseudo-labels, the server averages",
    ),
    "semi_fl": Row(
        "fedlab.strategies.semi_fl:SPEC",
        "unlabeled clients train on labels of the fresh global model with mixup, the server averages (Diao 2022)",
    ),
    "fed_mcd": Row(
        "fedlab.strategies.fed_mcd:SPEC",
        "MCD's three steps naively federated: source on the server, discrepancy on clients (Saito 2018)",
    ),
    "fed_dann": Row(
        "fedlab.strategies.fed_dann:SPEC",
        "clients train features that a domain discriminator cannot tell from the source's (Ganin 2016)",
    ),
    "fed_shot": Row(f"{_ADAPTATIONS}.federated:SHOT", "SHOT on the clients in every round, FedAvg, own batch norms"),
    "fed_adacontrast": Row(
        f"{_ADAPTATIONS}.federated:ADACONTRAST", "AdaContrast on the clients in every round, FedAvg, own batch norms"
    ),
    "oracle": Row(
        "fedlab.strategies.oracle:SPEC", "source steps in turn with clients that have labels: the upper bound"
    ),
    **AGGREGATIONS,
    "fedprox": Row("fedlab.strategies.fedprox:SPEC", "FedAvg with a proximal term on the client (Li 2020)"),
    "fedbn": Row("fedlab.strategies.fedbn:SPEC", "FedAvg, each client keeps its own batch norms (Li 2021)"),
    "fedparts": Row(
        "fedlab.strategies.fedparts:SPEC",
        "FedAvg, each client sends one part of its model a round, in turns (after FedDiffuse 2024)",
    ),
    "scaffold": Row(
        "fedlab.strategies.scaffold:SPEC", "FedAvg with control variates against client drift (Karimireddy 2020)"
    ),
    "fednova": Row(
        "fedlab.strategies.fednova:SPEC", "FedAvg for clients that take different numbers of steps (Wang 2020)"
    ),
    "feddyn": Row(
        "fedlab.strategies.feddyn:SPEC", "FedAvg with a regularizer that each client updates every round (Acar 2021)"
    ),
    "moon": Row(
        "fedlab.strategies.moon:SPEC", "FedAvg with features contrasted with the previous local model's (Li 2021)"
    ),
    "ditto": Row(
        "fedlab.strategies.ditto:SPEC", "FedAvg, and a personal model near the global one on each client (Li 2021)"
    ),
    "apfl": Row(
        "fedlab.strategies.apfl:SPEC", "FedAvg, and each client mixes the global model with its own (Deng 2020)"
    ),
    "fedper": Row(
        "fedlab.strategies.fedper:SPEC", "FedAvg of the features, each client keeps its own head (Arivazhagan 2019)"
    ),
    "fedrep": Row(
        "fedlab.strategies.fedrep:SPEC", "as FedPer: each client fits its head first, then the features (Collins 2021)"
    ),
    "startup": Row(
        "fedlab.strategies.startup:SPEC", "a teacher of the base labels the clients' images softly (Phoo 2021)"
    ),
}

ENGINES: Mapping[str, Row] = {
    "local": Row("fedlab.engines:LOCAL", "pool with more than 8 clients a round, else inprocess (default)"),
    "inprocess": Row("fedlab.engines:INPROCESS", "this process; a network that is a function call"),
    "pool": Row("fedlab.engines:POOL", "worker processes of this machine"),
    "ray": Row("fedlab.engines:RAY", "clients in Ray actors, of this machine or of a cluster"),
    "grpc": Row("fedlab.engines:GRPC", "real clients over gRPC: `fedlab serve` here, `fedlab join` there"),
}
