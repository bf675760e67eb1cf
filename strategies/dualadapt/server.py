"""DualAdapt's server half: lines 1 to 4 and 10 to 13 of the pseudo-code, and newcomers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from fedlab.comm.grid import RosterGrid
from fedlab.config.schema import Core, Flat, build
from fedlab.errors import ConfigError
from fedlab.losses.discrepancy import discrepancy
from fedlab.models import conformal, em, gaussian_mixture
from fedlab.models.batchnorm_stats import encode, frozen_stats
from fedlab.models.feature_classifier import check_parts, features_of, head_of, subsample_rows
from fedlab.seeds import seeded
from fedlab.strategies import validation
from fedlab.strategies.dualadapt import onboarding
from fedlab.strategies.dualadapt.mixtures import check_mixture, of_one_length, read_mixture, upload
from fedlab.strategies.dualadapt.shared import (
    BATCH,
    CONTROL,
    HEAD,
    LAST,
    MIXTURE,
    ONLY_MIXTURE,
    SOURCE_ROWS,
    START,
    Knobs,
)
from fedlab.strategies.protocol import (
    ARRAYS,
    CONFIG,
    ROUND,
    arrays_of,
    client_metrics,
    is_final,
    known,
    load,
    partition_by_node,
)
from fedlab.strategies.source_only import SourceTrainer
from fedlab.training import Progress
from fedlab.workload import TestsNewClasses, Workload


class DualAdapt(FlowerFedAvg):
    """Lines 1 to 4 and 10 to 13: pre-training, the source mixture, the steps against the clients' heads."""

    def __init__(self, workload: Workload, flat: Flat, progress: Progress) -> None:
        super().__init__(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)
        self.knobs, self.rounds = build(Knobs, "dualadapt", flat), build(Core, "", flat).rounds
        self.trainer = SourceTrainer(workload, flat, progress)
        check_parts(self.trainer.model, "dualadapt", build(Core, "", flat).workload)
        if isinstance(workload, TestsNewClasses):
            raise ConfigError(
                f"dualadapt fits heads for the server's classes, and workload {build(Core, '', flat).workload!r} tests "
                "classes that the server has never seen; use startup, self_training or source_only"
            )
        if self.knobs.components > len(self.trainer.source):
            raise ConfigError(
                f"knob 'dualadapt.components': a mixture of {self.knobs.components} components cannot be "
                f"fitted to {len(self.trainer.source)} source examples; ask for fewer"
            )
        self.control = SourceTrainer(workload, flat, progress) if self.knobs.control else None
        self.workload, self.device, self.seed = workload, self.trainer.device, self.trainer.seed
        self.progress = progress
        self.flat, self.norm_limit = flat, build(Core, "", flat).norm_limit
        self.heads: dict[int, dict[str, Tensor]] = {}  # F_l by partition; of a newcomer, what it starts from
        self.mixtures: dict[int, dict[str, Tensor]] = {}  # W_T and its quantiles by partition
        self.source: dict[str, Tensor] = {}  # W_S of this round and its quantiles
        self.onboarding: dict[int, int] = {}  # newcomer's partition -> rounds for itself that it has left
        self.arriving = False  # whether this round only asks newcomers for their mixtures
        self.partition_of: Mapping[int, int] = {}
        self.names: Mapping[int, str] = {}
        self.measured: dict[str, float] = {}
        self.noted: list[dict[str, Any]] = []

    def initialise(self) -> ArrayRecord:
        """Line 1: cross-entropy on the source; the control starts from the same weights."""
        self.measured = known(loss=self.trainer.pretrain())
        if self.control:
            self.control.restore(deepcopy(self.trainer.state()))
        return ArrayRecord(self.trainer.average.state_dict())

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Lines 10 to 13 with the heads of the round before, then lines 3 and 4.

        When clients have arrived that were never trained, the round is theirs: G stays as it is and they send their
        mixtures. The next ``onboarding`` rounds are theirs too: line 12 is taken against their heads alone.
        """
        self.partition_of, self.noted, self.measured = partition_by_node(grid), [], {}
        self.names = grid.names if isinstance(grid, RosterGrid) else {}
        present = set(self.partition_of.values())
        arrived = present - self.heads.keys() if self.heads and self.knobs.onboarding else set()
        newcomers = present & self.onboarding.keys()
        self.arriving = bool(arrived)
        if not self.arriving:
            self._steps(server_round, newcomers or set(self.heads))
        config[ROUND], self.source = server_round, self.source_mixture()
        shared: dict[str, ArrayRecord | ConfigRecord] = {
            ARRAYS: ArrayRecord(self.trainer.average.state_dict()),
            MIXTURE: ArrayRecord(self.source),
            CONFIG: config,
        }
        if self.arriving:
            config[ONLY_MIXTURE] = True
        messages: list[Message] = []
        for node, partition in self.partition_of.items():
            if partition in (arrived or newcomers or present):
                own = {START: ArrayRecord(self.heads[partition])} if partition in newcomers and not arrived else {}
                messages += self._construct_messages(RecordDict({**shared, **own}), [node], MessageType.TRAIN)
        return messages

    def _steps(self, server_round: int, against: set[int]) -> None:
        """Lines 10 to 13 against the heads of some clients, and the control's steps beside them."""
        steps = self.trainer.knobs.steps
        beside = self.server_loss(server_round, against) if against and self.knobs.server_discrepancy else None
        self.measured = known(loss=self.trainer.train(server_round, steps, "server", beside))
        if self.control:
            self.measured |= known(control_loss=self.control.train(server_round, steps, "control"))

    def source_mixture(self) -> dict[str, Tensor]:
        """Line 3: W_S on a random view of each source example, and the quantiles of its log-likelihood there."""
        some = self.trainer.source.subsample(SOURCE_ROWS)
        z = subsample_rows(encode(features_of(self.trainer.average), some, self.device, BATCH), SOURCE_ROWS)
        mixture = em.fit(
            z, self.knobs.components, steps=self.knobs.em_steps, tolerance=0.0, variance_floor=self.knobs.variance_floor
        )
        return dict(arrays_of(RecordDict({MIXTURE: upload(mixture, z)}), MIXTURE))

    def server_loss(self, server_round: int, against: Iterable[int]) -> Callable[[int], Tensor]:
        """Lines 11 and 12: the weighted discrepancy on pseudo-targets, as a function of the step; only G learns."""
        model, head = self.trainer.model, head_of(self.trainer.model)
        chosen = sorted(against)
        stacked = [
            load(deepcopy(head), self.heads[partition], self.device).requires_grad_(False).eval()
            for partition in chosen
        ]
        weights, buffers = stack_module_state(stacked)
        received = [read_mixture(self.mixtures[partition], self.device) for partition in chosen]
        mixtures = gaussian_mixture.stack([mixture for mixture, _ in received])
        quantiles = of_one_length([sorted_likelihoods for _, sorted_likelihoods in received])

        def local_heads(z: Tensor) -> Tensor:  # (batch, width) -> (clients, batch, classes)
            call = vmap(lambda state, extra: functional_call(stacked[0], (state, extra), (z,)))
            logits: Tensor = call(weights, buffers)
            return logits.softmax(2)

        def loss(step: int) -> Tensor:
            with seeded(self.seed, "pseudo-targets", server_round, step):
                x = self.pseudo_targets()
            with frozen_stats(model):
                z = features_of(model)(x)
                frozen = {name: weight.detach() for name, weight in head.named_parameters()}
                p = functional_call(head, frozen, (z,)).softmax(1)
            q = local_heads(z)
            apart = discrepancy(p.expand_as(q).flatten(0, 1), q.flatten(0, 1)).view(len(chosen), -1)  # (clients, batch)
            if self.knobs.server_weights:
                typical = conformal.conformal_p_value(mixtures.log_prob(z.detach()), quantiles)
                apart = conformal.mean_normalized(typical).to(apart) * apart
            return self.knobs.server_discrepancy * apart.mean()

        return loss

    def pseudo_targets(self) -> Tensor:
        """Line 11: images (batch, ...) that are not of the source, from two source images each."""
        x, other = self.trainer.draw()["x"], self.trainer.draw()["x"]
        if self.knobs.mixup == "average":
            return (x + other) / 2
        return (x - other).abs() - 1 if self.knobs.mixup == "difference" else x  # |u - v| of [0, 1], back in [-1, 1]

    def check(self, reply: Message) -> None:
        """Refuse a reply without a head like F_g and a mixture like W_S; of a newcomer's first, without the mixture."""
        if not self.arriving:
            validation.arrays(reply.content, HEAD, head_of(self.trainer.average).state_dict(), self.norm_limit)
        check_mixture(validation.read(reply.content, MIXTURE), self.source, self.norm_limit, self.knobs.variance_floor)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Line 9, received: heads and mixtures are kept by partition; a client that failed keeps its last ones."""
        metrics = []
        for reply in replies:
            partition = self.partition_of[reply.metadata.src_node_id]
            mixture = arrays_of(reply.content, MIXTURE)
            if self.arriving:
                self._welcome(partition, mixture)
                continue
            self.heads[partition] = arrays_of(reply.content, HEAD)
            self.mixtures[partition] = mixture
            if partition in self.onboarding:
                self.onboarding[partition] -= 1
            metrics.append(client_metrics(reply))
        self.onboarding = {partition: left for partition, left in self.onboarding.items() if left}
        for name in ("loss", "entropy", "discrepancy"):
            reported = [values[name] for values in metrics if name in values]
            if reported:
                self.measured[f"client_{name}"] = sum(reported) / len(reported)
        return ArrayRecord(self.trainer.average.state_dict()), None

    def _welcome(self, partition: int, mixture: dict[str, Tensor]) -> None:
        """A newcomer's mixture is here: find its first head."""
        cpu = torch.device("cpu")
        known_mixtures = {
            other: read_mixture(arrays, cpu)[0]
            for other, arrays in self.mixtures.items()
            if other in self.heads and other not in self.onboarding
        }
        distances = onboarding.rank(read_mixture(mixture, cpu)[0], known_mixtures)
        choice = onboarding.choose(self.knobs.start, partition, distances, self.seed)
        if choice.taken is not None:
            head = self.heads[choice.taken]
        elif self.knobs.start == "fresh":
            with seeded(self.seed, "fresh start", partition):
                head = head_of(self.workload.model()).state_dict()
        else:
            head = head_of(self.trainer.average).state_dict()
        self.heads[partition] = {name: tensor.detach().clone() for name, tensor in head.items()}
        self.mixtures[partition], self.onboarding[partition] = mixture, self.knobs.onboarding
        self.noted.append(choice.note(self.names))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Each client gets the averaged model and its own head back; with ``control`` what to compare with as well."""
        config[ROUND] = server_round
        shared: dict[str, ArrayRecord | ConfigRecord] = {ARRAYS: arrays, CONFIG: config}
        if self.control:
            shared[CONTROL] = ArrayRecord(self.control.average.state_dict())
            if is_final(server_round, self.rounds, config):
                shared[LAST] = ArrayRecord(self.trainer.model.state_dict())
        messages: list[Message] = []
        for node, partition in partition_by_node(grid).items():
            own = {HEAD: ArrayRecord(self.heads[partition])} if partition in self.heads else {}
            messages += self._construct_messages(RecordDict({**shared, **own}), [node], MessageType.EVALUATE)
        return messages

    def metrics(self) -> dict[str, float]:
        """Losses on the server, and means of what clients measured without labels."""
        return self.measured

    def notes(self) -> list[dict[str, Any]]:
        """Who is new, how far it is from the others, and what it starts from."""
        return self.noted

    def state(self) -> dict[str, Any]:
        """Trainer, control, and what the clients sent last."""
        return {
            "trainer": self.trainer.state(),
            "control": self.control.state() if self.control else {},
            "heads": self.heads,
            "mixtures": self.mixtures,
            "onboarding": self.onboarding,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take a state back."""
        self.trainer.restore(state["trainer"])
        if self.control:
            self.control.restore(state["control"])
        self.heads, self.mixtures = dict(state["heads"]), dict(state["mixtures"])
        self.onboarding = dict(state["onboarding"])
