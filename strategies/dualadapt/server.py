"""DualAdapt's server side: lines 1 to 4 and 10 to 13 of the pseudo-code, and late joiners."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from fedlab.comm.grid import PartitionGrid
from fedlab.config.schema import Config
from fedlab.errors import ConfigError
from fedlab.models import em
from fedlab.models.batchnorm_stats import encode
from fedlab.models.feature_classifier import check_parts, features_of, head_of, subsample_rows
from fedlab.privacy.accounting import PrivacyAccount
from fedlab.seeds import seeded
from fedlab.strategies import validation
from fedlab.strategies.base import BaseStrategy, Records, broadcast
from fedlab.strategies.dualadapt.agreement import AGREEMENT_ROWS, agreeing, head_distances
from fedlab.strategies.dualadapt.mixtures import MIXTURE_REACH, check_mixture, read_mixture, upload
from fedlab.strategies.dualadapt.onboarding import choose, rank
from fedlab.strategies.dualadapt.private import account_of
from fedlab.strategies.dualadapt.server_loss import server_loss
from fedlab.strategies.dualadapt.shared import (
    BATCH,
    CANDIDATE,
    CHOSEN_BY_CLIENT,
    CONTROL,
    HEAD,
    LAST,
    MIXTURE,
    ONLY_MIXTURE,
    SOURCE_ROWS,
    START,
    Options,
)
from fedlab.strategies.protocol import (
    CONFIG,
    EXAMPLES,
    METRICS,
    arrays_of,
    client_metrics,
    drop_none,
    is_final,
    partition_by_node,
    tensor_record,
)
from fedlab.strategies.source_only import SourceTrainer
from fedlab.training import Progress
from fedlab.workload import SupportsEpisodes, Workload

CLIENT_METRICS = ("loss", "entropy", "discrepancy")  # that a client may report


class DualAdapt(BaseStrategy):
    """Lines 1 to 4 and 10 to 13: pre-training, the source mixture, the steps against the clients' heads.

    Raises
    ------
    ConfigError
        When the workload or its model cannot be adapted so, or the source has too few examples for the mixture.
    """

    def __init__(self, workload: Workload, config: Config, progress: Progress) -> None:
        self.options: Options = config.strategy
        self.rounds = config.run.rounds
        self.sampled = config.run.fraction_train < 1 or bool(config.run.schedule)
        self.trainer = SourceTrainer(workload, config, progress)
        check_parts(self.trainer.model, "dualadapt", config.run.workload)
        if isinstance(workload, SupportsEpisodes):
            raise ConfigError(
                f"dualadapt fits heads for the server's classes, and workload {config.run.workload!r} tests "
                "classes that the server has never seen; use startup, self_training or source_only"
            )
        if self.options.components > len(self.trainer.source):
            raise ConfigError(
                f"option 'dualadapt.components': a mixture of {self.options.components} components cannot be "
                f"fitted to {len(self.trainer.source)} source examples; ask for fewer"
            )
        self.baseline: SourceTrainer | None = None  # source only
        if self.options.source_only_twin:  # without line 12 the server itself trains on its source only
            same = not self.options.server_discrepancy
            self.baseline = self.trainer if same else SourceTrainer(workload, config, progress)
        self.workload, self.device, self.seed = workload, self.trainer.device, self.trainer.seed
        self.progress = progress
        self.agreement = config.clients_limit_each_other and not account_of(config)
        self.max_norm_ratio = config.comm.max_update_norm_ratio
        self.heads: dict[int, dict[str, Tensor]] = {}  # F_l by partition; a late joiner's is its initial head
        self.mixtures: dict[int, dict[str, Tensor]] = {}  # W_T and its quantiles by partition
        self.source: dict[str, Tensor] = {}  # W_S of this round and its quantiles
        self.onboarding: dict[int, int] = {}  # partition of a late joiner -> onboarding rounds that it has left
        self.asked: set[int] = set()  # partitions that were asked to train, whether or not they answered
        self.onboarding_round = False  # True if this round only asks late joiners for their mixtures
        self.account = account_of(config)  # of a client that is asked in every round, whether or not it answers
        self.partition_of: Mapping[int, int] = {}
        self.names: Mapping[int, str] = {}
        self._metrics: dict[str, float] = {}
        self._events: list[dict[str, Any]] = []

    def initialize(self) -> ArrayRecord:
        """Pre-train on the source (line 1) and return the averaged model; the baseline starts from the same weights."""
        self._metrics = drop_none(loss=self.trainer.pretrain())
        if self.separate_baseline:
            self.separate_baseline.restore(deepcopy(self.trainer.state()))
        return tensor_record(self.trainer.average.state_dict())

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Run lines 10 to 13 with the heads of the previous round, then lines 3 and 4.

        When clients have joined that were never asked, only they are asked, G stays as it is, and they send their
        mixtures. In the next ``onboarding`` rounds, too, only they train, and line 12 is taken against their heads
        alone. Both happen once for a client, whether or not it answers: one that fails must not keep the others from
        training. It is asked like everybody then, as is one that was there from the start and failed. Where clients
        are sampled nobody is onboarded: a client that trains for the first time starts from F_g, and line 12 is taken
        against the last head and mixture of every client, those absent in this round included.
        """
        self.partition_of, self._events, self._metrics = partition_by_node(grid), [], {}
        self.names = grid.names if isinstance(grid, PartitionGrid) else {}
        present = set(self.partition_of.values())
        onboards = self.heads and self.options.onboarding and not self.sampled
        joined = present - self.asked if onboards else set()
        late = present & self.onboarding.keys()
        partitions = joined or late or present
        self.asked |= partitions
        self.onboarding_round = bool(joined)
        if not self.onboarding_round:
            self._steps(server_round, late or set(self.heads))
            self.onboarding |= {partition: self.onboarding[partition] - 1 for partition in late}
        self.source = self.source_mixture()
        if self.onboarding_round:
            config[ONLY_MIXTURE] = True

        if self.account:
            self.account.spend()

        def initial_head(partition: int) -> Records:
            if joined:
                return self._candidates()
            return {START: tensor_record(self.heads[partition])} if partition in late else {}

        return broadcast(
            grid,
            MessageType.TRAIN,
            server_round,
            tensor_record(self.trainer.average.state_dict()),
            config,
            extra={MIXTURE: tensor_record(self.source)},
            per_client=initial_head,
            partitions=partitions,
        )

    @property
    def _chosen_by_client(self) -> bool:
        return self.options.late_joiner_init in CHOSEN_BY_CLIENT

    def _candidates(self) -> Records:
        """Return the heads that a late joiner may choose from, beside F_g."""
        if self.options.late_joiner_init != "agreement":
            return {}
        known = sorted(self.heads.keys() - self.onboarding.keys())
        return {f"{CANDIDATE}{partition}": tensor_record(self.heads[partition]) for partition in known}

    def _steps(self, server_round: int, against: set[int]) -> None:
        """Run lines 10 to 13 against the heads of some partitions, and the same steps of the source-only baseline."""
        steps = self.trainer.options.steps
        extra_loss = None
        if against and self.options.server_discrepancy:
            heads = {partition: self.heads[partition] for partition in sorted(against)}
            if self.agreement:
                heads = self._agreeing(heads, server_round)
            extra_loss = server_loss(self.trainer, heads, self.mixtures, self.options, server_round)
        separate = self.options.server_steps == "separate"
        self._metrics = drop_none(loss=self.trainer.train(server_round, steps, "server", extra_loss, separate))
        if self.separate_baseline:
            self._metrics |= drop_none(control_loss=self.separate_baseline.train(server_round, steps, "control"))

    @property
    def separate_baseline(self) -> SourceTrainer | None:
        """Return the baseline where it is a model of its own."""
        return None if self.baseline is self.trainer else self.baseline

    def _agreeing(self, heads: dict[int, dict[str, Tensor]], server_round: int) -> dict[int, dict[str, Tensor]]:
        """Return the heads whose distance from F_g on source examples is like the others'."""
        with seeded(self.seed, "agreement", server_round):
            z = encode(features_of(self.trainer.model), self.trainer.source.subsample(AGREEMENT_ROWS), self.device)
            distances = head_distances(head_of(self.trainer.model), heads, z)
        used, far = agreeing(heads, distances)
        for partition, factor in far.items():
            name = self.names.get(partition, str(partition))
            note = f"client {name}: its head is {factor:.1f} times as far from the global one as the median; not used"
            self._events.append({"client": name, "note": note})
        return used

    def source_mixture(self) -> dict[str, Tensor]:
        """Return W_S (line 3), fitted to a random view of source examples, and quantiles of its log-likelihood."""
        examples = self.trainer.source.subsample(SOURCE_ROWS)
        z = subsample_rows(encode(features_of(self.trainer.average), examples, self.device, BATCH), SOURCE_ROWS)
        mixture = em.fit(
            z,
            self.options.components,
            steps=self.options.em_steps,
            tolerance=0.0,
            variance_floor=self.options.variance_floor,
        )
        return dict(arrays_of(RecordDict({MIXTURE: upload(mixture, z)}), MIXTURE))

    def check(self, reply: Message) -> None:
        """Refuse a reply that is not a mixture like W_S and a head like F_g; no head where the server chooses it."""
        with_head = not self.onboarding_round or self._chosen_by_client
        if with_head:
            validation.validate_arrays(
                reply.content, HEAD, head_of(self.trainer.average).state_dict(), self.max_norm_ratio
            )
        check_mixture(
            validation.read_arrays(reply.content, MIXTURE),
            self.source,
            MIXTURE_REACH * self.max_norm_ratio,
            self.options.variance_floor,
        )
        records = {MIXTURE, METRICS, CONFIG} | ({HEAD} if with_head else set())
        validation.validate_content(reply, records, {EXAMPLES}, () if self.onboarding_round else CLIENT_METRICS)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Store heads and mixtures by partition (line 9); those of a client that failed stay as they were."""
        metrics = []
        for reply in replies:
            partition = self.partition_of[reply.metadata.src_node_id]
            mixture = arrays_of(reply.content, MIXTURE)
            if self.onboarding_round:
                own = arrays_of(reply.content, HEAD) if self._chosen_by_client else None
                self._onboard(partition, mixture, own)
                continue
            self.heads[partition] = arrays_of(reply.content, HEAD)
            self.mixtures[partition] = mixture
            metrics.append(client_metrics(reply))
        self.onboarding = {partition: left for partition, left in self.onboarding.items() if left}
        for name in CLIENT_METRICS:
            reported = [values[name] for values in metrics if name in values]
            if reported:
                self._metrics[f"client_{name}"] = sum(reported) / len(reported)
        return tensor_record(self.trainer.average.state_dict()), None

    def _onboard(self, partition: int, mixture: dict[str, Tensor], own: Mapping[str, Tensor] | None) -> None:
        """Store the initial head of a late joiner: its ``own``, or one that is found from its mixture."""
        cpu = torch.device("cpu")
        known_mixtures = {
            other: read_mixture(arrays, cpu)[0]
            for other, arrays in self.mixtures.items()
            if other in self.heads and other not in self.onboarding
        }
        distances = rank(read_mixture(mixture, cpu)[0], known_mixtures)
        choice = choose(self.options.late_joiner_init, partition, distances, self.seed)
        if own is not None:
            head = dict(own)
        elif choice.taken is not None:
            head = self.heads[choice.taken]
        elif self.options.late_joiner_init == "fresh":
            with seeded(self.seed, "fresh start", partition):
                head = head_of(self.workload.model()).state_dict()
        else:
            head = head_of(self.trainer.average).state_dict()
        self.heads[partition] = {name: tensor.detach().clone() for name, tensor in head.items()}
        self.mixtures[partition], self.onboarding[partition] = mixture, self.options.onboarding
        self._events.append(choice.event(self.names))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return for each client the averaged model, its own head, and the models to compare with."""
        extra = {}
        if self.baseline:
            extra[CONTROL] = tensor_record(self.baseline.average.state_dict())
            if is_final(server_round, self.rounds, config):
                extra[LAST] = tensor_record(self.trainer.model.state_dict())

        def own_head(partition: int) -> Records:
            return {HEAD: tensor_record(self.heads[partition])} if partition in self.heads else {}

        return broadcast(grid, MessageType.EVALUATE, server_round, arrays, config, extra=extra, per_client=own_head)

    def metrics(self) -> dict[str, float]:
        """Return the server's losses, and means over clients of what they measured without labels."""
        return self._metrics

    def events(self) -> list[dict[str, Any]]:
        """Return for each late joiner its distances to the others and its initial head."""
        return self._events

    def privacy(self) -> PrivacyAccount | None:
        """Return the account of a client that is asked in every round; None without local privacy."""
        return self.account

    def state(self) -> dict[str, Any]:
        """Return the states of the trainer and the baseline, and what the clients sent last."""
        return {
            "trainer": self.trainer.state(),
            "control": self.separate_baseline.state() if self.separate_baseline else {},
            "heads": self.heads,
            "mixtures": self.mixtures,
            "onboarding": self.onboarding,
            "asked": sorted(self.asked),
            **({"account": self.account.state()} if self.account else {}),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore trainer, baseline, heads and mixtures."""
        self.trainer.restore(state["trainer"])
        if self.separate_baseline:
            self.separate_baseline.restore(state["control"])
        self.heads, self.mixtures = dict(state["heads"]), dict(state["mixtures"])
        self.onboarding, self.asked = dict(state["onboarding"]), set(state.get("asked", state["heads"]))
        if self.account:
            self.account.restore(state["account"])
