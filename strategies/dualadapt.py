"""DualAdapt: one labelled source on the server, many unlabelled targets on the clients, adapted from both sides.

**Source**: Yao et al., Federated Multi-Target Domain Adaptation, WACV 2022, arXiv 2108.07792; the discrepancy is
MCD's (Saito et al., CVPR 2018). Symbols: G features, F_g global head, F_l^i the local head of client i, W_S and W_T^i
the Gaussian mixtures of source and target features, d the discrepancy.

Line numbers in the comments are those of the pseudo-code in ``docs/dualadapt.md``, where the numbered departures and
what each is worth stand too.

**On the wire**: down ``arrays`` (G, F_g) and ``mixture`` (W_S); up ``head`` (F_l), ``mixture`` (W_T) and ``metrics``.

**Metrics** of each client, on its test data: accuracy of the ``global`` head, the ``local`` head and the ``average``
of their probabilities, all on the averaged (EMA) G; ``source_only``: the control; after
the last round ``last``: as ``average`` on the last G.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from typing import Any, Literal

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.functional import cross_entropy

from fedlab import gmm
from fedlab.config import ClientTraining, Core, Flat, Weight, build
from fedlab.data.examples import Examples
from fedlab.errors import ConfigError
from fedlab.losses.discrepancy import discrepancy
from fedlab.losses.propagation import propagate
from fedlab.models.normalisation import adopt_statistics, encode, statistics_held
from fedlab.models.split import Average, features_of, head_of, missing_parts, probabilities
from fedlab.roster import RosterGrid
from fedlab.seeds import seeded
from fedlab.training import Progress, optimise, pick_device
from fedlab.workload import Workload
from strategies.protocol import (
    ARRAYS,
    CONFIG,
    METRICS,
    ROUND,
    ClientHalf,
    Entry,
    arrays_of,
    client_metrics,
    known,
    load,
    metrics_record,
    own_data,
)
from strategies.source_only import SourceTrainer

HEAD, MIXTURE, LAST, CONTROL = "head", "mixture", "last", "control"
QUANTILES = 256  # of a mixture's log-likelihood on its own data, sent beside it
SOURCE_IMAGES = 6000  # source examples that W_S is fitted to, at most
BATCH = 500  # images a pass where no gradient is taken


@dataclass(frozen=True)
class Knobs:
    """DualAdapt's ingredients, each with its own switch."""

    client_discrepancy: Weight = Field(0.1, description="weight of the discrepancy on the client (line 7); 0: off")
    server_discrepancy: Weight = Field(0.2, description="weight of the discrepancy on the server (line 12); 0: off")
    client_weights: bool = Field(True, description="weigh target examples by their typicality for the source mixture")
    server_weights: bool = Field(True, description="weigh pseudo-targets by their typicality for a client's mixture")
    mixup: Literal["average", "difference", "off"] = Field(
        "average", description="pseudo-targets: averages or absolute differences of two source images, or source images"
    )
    components: int = Field(10, ge=1, description="components of each mixture")
    em_steps: int = Field(15, ge=1, description="EM steps of the source mixture")
    variance_floor: float = Field(1e-2, gt=0, allow_inf_nan=False, description="added to every variance of a mixture")
    pseudo_labels: Literal["global", "propagated"] = Field(
        "propagated", description="targets of the local head: the global head's, or those smoothed over neighbours"
    )
    neighbours: int = Field(10, ge=1, description="neighbours of an example in the graph of propagated labels")
    balance: float = Field(1.0, ge=0, le=1, description="how far pseudo-label classes are evened out; 0: not")
    own_statistics: float = Field(
        0.75, ge=0, le=1, description="share of a client's own in the batch-norm statistics it uses; 0: the source's"
    )
    statistics_images: int = Field(1000, ge=2, description="images of a client that these statistics are taken from")
    control: bool = Field(
        True, description="carry a source-only twin and test it too, and after the last round the last G"
    )


# --- client half ------------------------------------------------------------------------------------------------------


def train(workload: Workload, message: Message, context: Context) -> RecordDict:
    """Lines 5 to 9 on one client.

    Returns
    -------
    RecordDict
        ``head``: F_l; ``mixture``: W_T and the quantiles of its log-likelihood; ``metrics``: ``loss``, ``entropy`` and
        ``discrepancy`` of the two heads on the client's own data, no label among them.
    """
    knobs, training = build(Knobs, "dualadapt", context.run_config), build(ClientTraining, "client", context.run_config)
    device = pick_device(build(Core, "", context.run_config).device)
    data = own_data(workload, context, "train")
    model = load(workload.model(), arrays_of(message.content), device)
    z = client_features(model, data, knobs, device)  # (examples, width), once a round: G is frozen
    source, quantiles = read_mixture(arrays_of(message.content, MIXTURE), device)
    local, mixture, loss = adapt_head(head_of(model), z, source, quantiles, knobs, training)
    mixture_arrays = {**mixture.arrays(), "quantiles": summary(mixture.log_prob(z))}
    p, q = probabilities(head_of(model), z), probabilities(local, z)
    entropy = -(p * p.clamp_min(1e-12).log()).sum(1).mean()
    metrics = known(loss=loss, entropy=float(entropy), discrepancy=float(discrepancy(p, q).mean()))
    return RecordDict(
        {
            HEAD: ArrayRecord(local.state_dict()),
            MIXTURE: ArrayRecord(mixture_arrays),
            METRICS: metrics_record(metrics, len(data)),
        }
    )


def adapt_head(
    head: nn.Module, z: Tensor, source: gmm.Mixture, quantiles: Tensor, knobs: Knobs, training: ClientTraining
) -> tuple[nn.Module, gmm.Mixture, float | None]:
    """Lines 5 to 8: F_l and W_T from F_g, W_S and the client's features.

    Parameters
    ----------
    head
        F_g; it is left as it is.
    z
        Target features (examples, width).
    source, quantiles
        W_S, and the sorted log-likelihoods (256,) of the source's own features under it.

    Returns
    -------
    tuple
        F_l, W_T and the mean loss.
    """
    local = deepcopy(head).requires_grad_(True).train()  # line 5
    p_global = probabilities(head, z)
    labels = pseudo_labels(z, p_global, knobs)  # (examples,)
    weights = torch.ones(len(z), device=z.device)
    if knobs.client_weights:
        weights = gmm.relative(gmm.typicality(source.log_prob(z), quantiles)).to(z)
    statistics, drawn = source.statistics(), iter(range(training.steps))

    def loss() -> Tensor:  # line 7
        nonlocal statistics
        rows = torch.randint(len(z), (training.batch,)).to(z.device)
        value = local_loss(local(z[rows]), labels[rows], weights[rows], p_global[rows], knobs.client_discrepancy)
        batch = gmm.statistics(gmm.from_statistics(statistics, knobs.variance_floor), z[rows])
        statistics = gmm.update(statistics, batch, gmm.schedule(next(drawn)))  # line 8
        return value

    optimiser = torch.optim.Adam(local.parameters(), training.learning_rate)
    plan = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(training.steps, 1))
    mean = optimise(loss, optimiser, training.steps, name="local head", after_step=plan.step)
    return local.requires_grad_(False).eval(), gmm.from_statistics(statistics, knobs.variance_floor), mean


def local_loss(logits: Tensor, labels: Tensor, weights: Tensor, p_global: Tensor, apart: float) -> Tensor:
    """Line 7: mean over the batch of w CE(F_l, pseudo-label) - apart x d(F_g, F_l); logits (batch, classes)."""
    fit = weights * cross_entropy(logits, labels, reduction="none")
    return (fit - apart * discrepancy(p_global, logits.softmax(1))).mean()


@torch.no_grad()
def pseudo_labels(z: Tensor, p: Tensor, knobs: Knobs) -> Tensor:
    """Labels (examples,) for the local head: argmax F_g, if asked smoothed over neighbours and evened out by class."""
    if knobs.pseudo_labels == "propagated":
        p = propagate(z, p, knobs.neighbours)
    return (p / p.sum(0).clamp_min(1e-6) ** knobs.balance).argmax(1)


def evaluate(workload: Workload, message: Message, context: Context) -> RecordDict:
    """Accuracy of global, local and averaged heads on the client's test data, of the last G, and of the control."""
    knobs = build(Knobs, "dualadapt", context.run_config)
    device = pick_device(build(Core, "", context.run_config).device)
    test = own_data(workload, context, "test")

    def tested(record: str, adapted: bool = True) -> tuple[nn.Module, Examples]:
        model = load(workload.model(), arrays_of(message.content, record), device)
        if adapted:
            own = own_data(workload, context, "train")
            adopt_statistics(features_of(model), own, knobs.statistics_images, knobs.own_statistics, device)
        z = encode(features_of(model), test, device, BATCH)
        return head_of(model), Examples({**test.columns, "x": z})

    def measure(head: nn.Module, data: Examples) -> dict[str, float]:
        return workload.evaluate(head, data)

    heads = message.content
    metrics: dict[str, float] = {}
    global_head, data = tested(ARRAYS)
    metrics |= named("global", measure(global_head, data))
    if HEAD in heads:
        local = load(deepcopy(global_head), arrays_of(message.content, HEAD), device)
        metrics |= named("local", measure(local, data)) | named("average", measure(Average(global_head, local), data))
        if LAST in heads:
            last_head, last_data = tested(LAST)
            metrics |= named("last", measure(Average(last_head, local), last_data))
    if CONTROL in heads:
        metrics |= named("source_only", measure(*tested(CONTROL, adapted=False)))
    return RecordDict({METRICS: metrics_record(metrics, len(test))})


def named(name: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """A predictor's metrics under its name, its loss left out."""
    return {f"{metric}_{name}": value for metric, value in metrics.items() if metric != "loss"}


# --- server half ------------------------------------------------------------------------------------------------------


class DualAdapt(FlowerFedAvg):
    """Lines 1 to 4 and 10 to 13: pre-training, the source mixture, the steps against the clients' heads."""

    def __init__(self, workload: Workload, flat: Flat, progress: Progress) -> None:
        super().__init__(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)
        self.knobs, self.rounds = build(Knobs, "dualadapt", flat), build(Core, "", flat).rounds
        self.trainer = SourceTrainer(workload, flat, progress)
        check_serves(self.trainer.model, build(Core, "", flat).workload)
        if self.knobs.components > len(self.trainer.source):
            raise ConfigError(
                f"knob 'dualadapt.components': a mixture of {self.knobs.components} components cannot be "
                f"fitted to {len(self.trainer.source)} source examples; ask for fewer"
            )
        self.control = SourceTrainer(workload, flat, progress) if self.knobs.control else None
        self.workload, self.device, self.seed = workload, self.trainer.device, self.trainer.seed
        self.progress = progress
        self.heads: dict[int, dict[str, Tensor]] = {}  # F_l by partition
        self.mixtures: dict[int, dict[str, Tensor]] = {}  # W_T and its quantiles by partition
        self.partition_of: Mapping[int, int] = {}
        self.measured: dict[str, float] = {}

    def initialise(self) -> ArrayRecord:
        """Line 1: cross-entropy on the source; the control starts from the same weights."""
        self.measured = known(loss=self.trainer.pretrain())
        if self.control:
            self.control.restore(deepcopy(self.trainer.state()))
        return ArrayRecord(self.trainer.average.state_dict())

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Lines 10 to 13 with the heads of the round before, then lines 3 and 4."""
        steps = self.trainer.knobs.steps
        beside = self.server_loss(server_round) if self.heads and self.knobs.server_discrepancy else None
        self.measured = known(loss=self.trainer.train(server_round, steps, "server", beside))
        if self.control:
            self.measured |= known(control_loss=self.control.train(server_round, steps, "control"))
        self.partition_of = partitions(grid)
        config[ROUND] = server_round
        record = RecordDict(
            {
                ARRAYS: ArrayRecord(self.trainer.average.state_dict()),
                MIXTURE: ArrayRecord(self.source_mixture()),
                CONFIG: config,
            }
        )
        return self._construct_messages(record, list(grid.get_node_ids()), MessageType.TRAIN)

    def source_mixture(self) -> dict[str, Tensor]:
        """Line 3: W_S on a random view of each source example, and the quantiles of its log-likelihood there."""
        some = self.trainer.source.spread(SOURCE_IMAGES)
        z = encode(features_of(self.trainer.average), some, self.device, BATCH)
        mixture = gmm.fit(
            z, self.knobs.components, steps=self.knobs.em_steps, tolerance=0.0, variance_floor=self.knobs.variance_floor
        )
        return {**mixture.arrays(), "quantiles": summary(mixture.log_prob(z))}

    def server_loss(self, server_round: int) -> Callable[[int], Tensor]:
        """Lines 11 and 12: the weighted discrepancy on pseudo-targets, as a function of the step; only G learns."""
        model, head = self.trainer.model, head_of(self.trainer.model)
        chosen = sorted(self.heads)
        stacked = [
            load(deepcopy(head), self.heads[partition], self.device).requires_grad_(False).eval()
            for partition in chosen
        ]
        weights, buffers = stack_module_state(stacked)
        received = [read_mixture(self.mixtures[partition], self.device) for partition in chosen]
        mixtures = gmm.stack([mixture for mixture, _ in received])
        quantiles = torch.stack([sorted_likelihoods for _, sorted_likelihoods in received])

        def local_heads(z: Tensor) -> Tensor:  # (batch, width) -> (clients, batch, classes)
            call = vmap(lambda state, extra: functional_call(stacked[0], (state, extra), (z,)))
            logits: Tensor = call(weights, buffers)
            return logits.softmax(2)

        def loss(step: int) -> Tensor:
            with seeded(self.seed, "pseudo-targets", server_round, step):
                x = self.pseudo_targets()
            with statistics_held(model):
                z = features_of(model)(x)
                frozen = {name: weight.detach() for name, weight in head.named_parameters()}
                p = functional_call(head, frozen, (z,)).softmax(1)
            q = local_heads(z)
            apart = discrepancy(p.expand_as(q).flatten(0, 1), q.flatten(0, 1)).view(len(chosen), -1)  # (clients, batch)
            if self.knobs.server_weights:
                typical = gmm.typicality(mixtures.log_prob(z.detach()), quantiles)
                apart = gmm.relative(typical).to(apart) * apart
            return self.knobs.server_discrepancy * apart.mean()

        return loss

    def pseudo_targets(self) -> Tensor:
        """Line 11: images (batch, ...) that are not of the source, from two source images each."""
        x, other = self.trainer.draw()["x"], self.trainer.draw()["x"]
        if self.knobs.mixup == "average":
            return (x + other) / 2
        return (x - other).abs() - 1 if self.knobs.mixup == "difference" else x  # |u - v| of [0, 1], back in [-1, 1]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Line 9, received: heads and mixtures are kept by partition; a client that failed keeps its last ones."""
        metrics = []
        for reply in replies:
            partition = self.partition_of[reply.metadata.src_node_id]
            self.heads[partition] = arrays_of(reply.content, HEAD)
            self.mixtures[partition] = arrays_of(reply.content, MIXTURE)
            metrics.append(client_metrics(reply))
        for name in ("loss", "entropy", "discrepancy"):
            reported = [values[name] for values in metrics if name in values]
            if reported:
                self.measured[f"client_{name}"] = sum(reported) / len(reported)
        return ArrayRecord(self.trainer.average.state_dict()), None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Each client gets the averaged model and its own head back; with ``control`` what to compare with as well."""
        config[ROUND] = server_round
        shared: dict[str, ArrayRecord | ConfigRecord] = {ARRAYS: arrays, CONFIG: config}
        if self.control:
            shared[CONTROL] = ArrayRecord(self.control.average.state_dict())
            if server_round == self.rounds:
                shared[LAST] = ArrayRecord(self.trainer.model.state_dict())
        messages: list[Message] = []
        for node, partition in partitions(grid).items():
            own = {HEAD: ArrayRecord(self.heads[partition])} if partition in self.heads else {}
            messages += self._construct_messages(RecordDict({**shared, **own}), [node], MessageType.EVALUATE)
        return messages

    def metrics(self) -> dict[str, float]:
        """Losses on the server, and means of what clients measured without labels."""
        return self.measured

    def state(self) -> dict[str, Any]:
        """Trainer, control, and what the clients sent last."""
        return {
            "trainer": self.trainer.state(),
            "control": self.control.state() if self.control else {},
            "heads": self.heads,
            "mixtures": self.mixtures,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take a state back."""
        self.trainer.restore(state["trainer"])
        if self.control:
            self.control.restore(state["control"])
        self.heads, self.mixtures = dict(state["heads"]), dict(state["mixtures"])


# --- both halves ------------------------------------------------------------------------------------------------------


def check_serves(model: nn.Module, workload: str) -> None:
    """Refuse a model that is not a feature extractor and a classifier.

    Raises
    ------
    ConfigError
        When it lacks ``features`` or ``head``.
    """
    if missing := missing_parts(model):
        raise ConfigError(
            f"dualadapt needs a model with .features and .head; {type(model).__name__} of workload "
            f"{workload!r} lacks {' and '.join(missing)}; use source_only, or fedavg where clients have "
            "labels"
        )


def client_features(model: nn.Module, data: Examples, knobs: Knobs, device: torch.device) -> Tensor:
    """G's features (examples, width) of a client's images, normalised with its own statistics if asked."""
    adopt_statistics(features_of(model), data, knobs.statistics_images, knobs.own_statistics, device)
    return encode(features_of(model), data, device, BATCH)


def summary(log_prob: Tensor) -> Tensor:
    """Sorted log-likelihoods that stand in for all of them, at most 256."""
    return gmm.quantiles(log_prob, min(QUANTILES, len(log_prob)))


def read_mixture(arrays: Mapping[str, Tensor], device: torch.device) -> tuple[gmm.Mixture, Tensor]:
    """A mixture and the quantiles that came with it."""
    return gmm.Mixture.from_arrays(arrays).to(device), arrays["quantiles"].to(device)


def partitions(grid: Grid) -> dict[int, int]:
    """Connected node to partition, in the order of partitions."""
    assert isinstance(grid, RosterGrid)
    return {node: grid.partition_of[node] for node in grid.get_node_ids()}


ENTRY: Entry = Entry(
    "adapts G, F_g on the server to heads and mixtures that clients fit on unlabelled data (Yao 2022)",
    Knobs,
    DualAdapt,
    ClientHalf(train, evaluate),
)
