"""FedAvg with differential privacy for a client as a whole: updates are clipped, the mean gets Gaussian noise.

**Source**: fixed clipping: McMahan et al., Learning Differentially Private Recurrent Language Models, ICLR 2018;
adaptive clipping: Andrew et al., Differentially Private Learning with Adaptive Clipping, NeurIPS 2021, algorithm 1.

**What is guaranteed, and what is not.** With secret noise (``dp.noise``), the models that leave the server are
(epsilon, delta) differentially private for each whole client, present or adding nothing (half to the count of adaptive
clipping), with the number of answers known, against whoever gets models: other clients, users of the model. The server
itself must be trusted: it adds the noise. The guarantee is for models only, not for the losses, counts of examples and
test metrics that clients report. Where a uniform sample of the clients trains (``fraction_train``), who was drawn is
secret as well, and epsilon is smaller for it. With seeded noise a run can be repeated, and whoever knows the seed,
which every client and every run directory does, can take the noise away again: ``epsilon`` is then what would hold if
the noise were secret, and nobody is protected. With a handful of clients the noise that gives a small epsilon drowns
the model: this is so.

**Departures** from Flower: (1) clients weigh the same, or one could move the mean by more than norm / clients;
Flower's sensitivity is wrong for a weighted mean; (2) batch-norm statistics and counters are not taken from clients:
the strategy takes them from the server's own data; (3) with adaptive clipping the noise is scaled by the norm that
was clipped to, where Flower 1.39 uses the next one; (4) the norm moves towards the asked quantile, where Flower 1.39
counts the clipped instead of the unclipped and so runs from it; (5) noise for as many clients as answered.

**Metrics** of the server: ``epsilon`` at ``dp.delta`` so far, ``clipping_norm`` and ``noise`` (its standard deviation).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Generic, Literal, TypeVar

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedlab.comm.sampling import Sampler
from fedlab.config.schema import Config
from fedlab.config.sections import PositiveFloat
from fedlab.errors import plural
from fedlab.models.batchnorm_stats import adapt_batchnorm, batch_norms
from fedlab.privacy.accounting import PrivacyAccount, Release
from fedlab.privacy.noise import gaussian_noise
from fedlab.strategies.aggregation.client import CLIPPING_NORM, UNCLIPPED, clipped_change
from fedlab.strategies.aggregation.rule import AggregationSpec, ClientUpdate, WeightedMean, accumulate
from fedlab.strategies.protocol import loaded_model
from fedlab.training import resolve_device
from fedlab.workload import blank_model

STATISTICS_EXAMPLES = 1000
_NOISE = "noise on the mean update, in clipping norms / clients (z); 0: none"
_SIDE = "who clips: the server, or each client before it answers"


@dataclass(frozen=True)
class FixedOptions:
    """Options of fixed clipping."""

    noise_multiplier: float = Field(0.1, ge=0.0, allow_inf_nan=False, description=_NOISE)
    clipping_norm: PositiveFloat = Field(1.0, description="largest norm of a client's update")
    clip_on: Literal["server", "client"] = Field("server", description=_SIDE)


@dataclass(frozen=True)
class AdaptiveOptions:
    """Options of adaptive clipping."""

    noise_multiplier: float = Field(0.1, ge=0.0, allow_inf_nan=False, description=_NOISE)
    clipping_norm: PositiveFloat = Field(0.1, description="largest norm of a client's update in round 1")
    quantile: float = Field(0.5, ge=0.0, le=1.0, description="share of updates that should not be clipped")
    norm_learning_rate: PositiveFloat = Field(0.2, description="how fast the norm follows that share")
    count_noise: float = Field(
        0.0, ge=0.0, allow_inf_nan=False, description="noise on the count of those not clipped; 0: clients / 20"
    )
    clip_on: Literal["server", "client"] = Field("server", description=_SIDE)


DpOptions = TypeVar("DpOptions", FixedOptions, AdaptiveOptions)


class ClippingDP(WeightedMean[DpOptions], Generic[DpOptions]):
    """Clip, average, add noise.

    With n clients, norm S and z the noise on the updates: w <- w + mean of clip(w_k - w, S) + N(0, (z S / n)^2).

    Attributes
    ----------
    norm
        S of the next round.
    used, stdv
        S of the last round, and the standard deviation of its noise.
    rounds
        Number of means so far.
    account
        What the rounds have cost.
    """

    uses_weights = False

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.norm, self.stdv, self.used = self.options.clipping_norm, 0.0, self.options.clipping_norm
        self.rounds, self.secret = 0, self.config.secret_noise
        release = Release(self.options.noise_multiplier, *sampled_clients(self.config))
        self.account = PrivacyAccount(self.config.dp, "client", release, secret=self.secret)
        if self.options.clip_on == "client":
            self.expected_metrics = frozenset({UNCLIPPED})

    def incompatibility(self, clients: int) -> str:
        """Return a refusal where batch norms need inputs x that the server lacks, or the budget is too small."""
        columns = self.workload.data(None, "train").columns
        if batch_norms(blank_model(self.workload)) and "x" not in columns:
            return f"batch-norm statistics are taken of the server's inputs x, and its data has {', '.join(columns)}"
        return self.account.exhausted() if self.privacy() else ""

    def client_config(self) -> dict[str, bool | float]:
        """Return the norm for clients that clip."""
        return {CLIPPING_NORM: self.norm} if self.options.clip_on == "client" else {}

    def validate_metrics(self, metrics: Mapping[str, float]) -> str:
        """Return a refusal of a clipping flag other than 0 or 1, with which one client could move the count by more."""
        bit = metrics.get(UNCLIPPED, 1.0)
        return "" if bit in (0.0, 1.0) else f"its metric {UNCLIPPED!r} is {bit:g}; expected 0 or 1"

    def weight(self, update: ClientUpdate) -> float:
        """Return 1: every client weighs the same."""
        return 1.0

    def begin(self, current: Mapping[str, Tensor]) -> None:
        """Begin a round with empty sums."""
        super().begin(current)
        self.unclipped = 0.0  # number of updates within the norm

    def add_floats(self, update: ClientUpdate, weight: float) -> None:
        """Add the clipped change, float64; one that its client has clipped is above the norm by rounding, if at all.

        A sum of float32 models would round, with each client, all that was added before it, by more than the noise of a
        large cohort's mean is made for (Casacuberta et al., CCS 2022).
        """
        clipped, whole = clipped_change(update.arrays, self.current, self.trainable, self.norm)
        accumulate(self.sums, clipped, [name for name in self.floats if name in self.trainable], weight)
        self.unclipped += update.metrics.get(UNCLIPPED, float(whole))

    def aggregate_floats(self, server_round: int, total: float) -> dict[str, Tensor]:
        """Return the mean with its noise, the statistics as they were, and move the norm."""
        self.used, self.rounds = self.norm, self.rounds + 1
        self.stdv = self.multiplier(self.count) * self.norm / self.count
        mean = self.mean(total)
        noisy = {  # rounded after the noise, not before
            name: self.current[name].double() + value + self.noise(value.shape, self.stdv).to(value)
            for name, value in mean.items()
        }
        self.account.spend()
        self.norm = self.next_norm(self.unclipped, self.count)
        return {**{name: self.current[name] for name in self.floats}, **noisy}

    def finish(self, server_round: int, total: float) -> dict[str, Tensor]:
        """Return the noisy mean, with batch-norm statistics of at most 1000 of the server's own training examples."""
        current = self.current
        new = super().finish(server_round, total)
        model = loaded_model(self.workload, new, resolve_device(self.config.run.device))
        if batch_norms(model):
            device = next(model.parameters()).device
            adapt_batchnorm(model, self.workload.data(None, "train"), STATISTICS_EXAMPLES, 1.0, device)
            found = model.state_dict()
            new |= {name: found[name].cpu() for name in new if name.endswith(("running_mean", "running_var"))}
        return {**new, **{name: tensor for name, tensor in current.items() if not tensor.is_floating_point()}}

    def noise(self, shape: Sequence[int], stdv: float) -> Tensor:
        """Return Gaussian noise of a shape, secret if the run's noise is."""
        return gaussian_noise(shape, stdv, secret=self.secret)

    def privacy(self) -> PrivacyAccount | None:
        """Return the account, None without noise."""
        return self.account if self.options.noise_multiplier else None

    def multiplier(self, clients: int) -> float:
        """Return z of the noise on the updates."""
        return self.options.noise_multiplier

    def next_norm(self, unclipped: float, clients: int) -> float:
        """Return S of the next round."""
        return self.norm

    def metrics(self) -> dict[str, float]:
        """Return noise, norm, and epsilon where there is noise, after a first round."""
        if not self.rounds:
            return {}
        measured = {"clipping_norm": self.used, "noise": self.stdv}
        return {**measured, "epsilon": self.account.epsilon()} if self.privacy() else measured

    def state(self) -> dict[str, Any]:
        """Return the norm, the number of rounds and the account."""
        return {"norm": self.norm, "rounds": self.rounds, "releases": self.account.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the norm, the number of rounds and the account."""
        self.norm, self.rounds = float(state["norm"]), int(state["rounds"])
        self.account.restore(state["releases"])


def sampled_clients(config: Config) -> tuple[int, int]:
    """Return how many clients train in a round, and of how many they are a uniform sample; equal if they are none."""
    run, clients = config.run, len(config.clients)
    if run.fraction_train == 1 or run.sampling != "uniform" or run.schedule or run.join_rounds:
        return clients, clients
    return Sampler(run.seed, run.fraction_train).count(clients), clients


class FixedClippingDP(ClippingDP[FixedOptions]):
    """The norm stays that of its option."""


class AdaptiveClippingDP(ClippingDP[AdaptiveOptions]):
    """The norm follows a quantile of the updates' norms (Andrew et al., algorithm 1).

    With b the noisy fraction of updates within the norm: S <- S exp(-rate (b - quantile)). Updates and count get noise
    that costs one z together (theorem 1): z^-2 = z_updates^-2 + (2 sigma_count)^-2.
    """

    def incompatibility(self, clients: int) -> str:
        """Return a refusal where the count's noise alone leaves nothing of z."""
        if reason := super().incompatibility(clients):
            return reason
        noise, wanted = self.count_noise(clients), self.options.noise_multiplier
        if wanted < 2 * noise or not wanted:
            return ""
        return (
            f"a noise_multiplier of {wanted:g} needs a count_noise of more than {wanted / 2:g}, and it is {noise:g} "
            f"with {plural(clients, 'client')}"
        )

    def count_noise(self, clients: int) -> float:
        """Return the standard deviation of the noise on the count."""
        return self.options.count_noise or clients / 20

    def multiplier(self, clients: int) -> float:
        """Return z_updates (theorem 1), 0 without noise."""
        z = self.options.noise_multiplier
        return math.pow(z**-2 - (2 * self.count_noise(clients)) ** -2, -0.5) if z else 0.0

    def next_norm(self, unclipped: float, clients: int) -> float:
        """Return S of the next round (line 13)."""
        noise = self.count_noise(clients) if self.options.noise_multiplier else 0.0
        fraction = (unclipped + float(self.noise((), noise))) / clients
        return self.norm * math.exp(-self.options.norm_learning_rate * (fraction - self.options.quantile))


DP_FIXED = AggregationSpec(FixedOptions, FixedClippingDP)
DP_ADAPTIVE = AggregationSpec(AdaptiveOptions, AdaptiveClippingDP)
