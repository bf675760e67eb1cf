"""DualAdapt's local training of many clients at once: stacked heads on cached features, and mixtures side by side.

Features, labels and weights of all clients are one table, from which each client takes rows of its own. See
``strategies/vectorized.py`` for what comes around it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from flwr.app import Message, RecordDict
from torch import Tensor, nn

from fedlab.data.dataset import Batch
from fedlab.models import gaussian_mixture
from fedlab.models.gaussian_mixture import Statistics
from fedlab.optimizers import OptimizerSettings, cosine_rates
from fedlab.seeds import Stream
from fedlab.strategies.drawn_ahead import RowsAhead
from fedlab.strategies.dualadapt.client import HeadResult, HeadWork, answer, first_head, prepare, run
from fedlab.strategies.dualadapt.local_head import (
    PHASE,
    RunningMixture,
    local_loss,
    opinions,
    pseudo_labels_of_many,
    typicality,
)
from fedlab.strategies.protocol import ClientContext, load
from fedlab.vectorized.draws import Draw
from fedlab.vectorized.stacked_model import StackedModel
from fedlab.vectorized.stacked_training import train_stacked
from fedlab.workload import Workload

COPIES = 6  # of a head's weights on a CPU: model, stack, gradient, two of Adam, one more
MIXTURES = 8  # of a client's size at a time: its statistics and the batch's, before and after, and two mixtures


@dataclass(frozen=True)
class LocalHeads:
    """The clients' training in parts."""

    phase: str = PHASE

    def prepare(self, workload: Workload, message: Message, context: ClientContext) -> HeadWork:
        """Return the work of one client."""
        return prepare(workload, message, context)

    def run(self, workload: Workload, work: HeadWork) -> HeadResult:
        """Fit one client's head and mixture."""
        return run(work)

    def run_many(
        self, workload: Workload, works: Sequence[HeadWork], streams: Sequence[Stream]
    ) -> list[tuple[HeadResult, list[float]]]:
        """Fit heads and mixtures of clients of one kind, those with the most steps first.

        Raises
        ------
        NotVectorizable
            When an operation of the head cannot be mapped over heads.
        """
        if not works[0].needs_head:
            mixtures = _fit_mixtures(works, streams)
            return [
                (HeadResult(work.local or first_head(work), mixture, None), [])
                for work, mixture in zip(works, mixtures, strict=True)
            ]
        first = works[0]
        table = _table(works, _columns(works))
        model = StackedModel(
            deepcopy(first.head).requires_grad_(True).train(),
            [(work.start or work.head).state_dict() for work in works],
            _LocalLoss(first.options.client_discrepancy),
        )
        plain = StackedModel(first.head.eval(), [work.head.state_dict() for work in works], _probabilities)
        feed, rate = _Feed(model, plain, table, works, streams), first.training.learning_rate
        steps, settings = [work.steps for work in works], [OptimizerSettings("adam", rate)] * len(works)
        rates = [list(cosine_rates(rate, count)) for count in steps]
        states, losses = train_stacked(model, feed, steps, settings, schedules=rates)
        mixtures = feed.mixtures.all()
        return [
            (HeadResult(_head(work, state), mixture, sum(values) / len(values) if values else None), values)
            for work, state, mixture, values in zip(works, states, mixtures, losses, strict=True)
        ]

    def reply(
        self, workload: Workload, message: Message, context: ClientContext, work: HeadWork, result: HeadResult
    ) -> RecordDict:
        """Return the client's answer."""
        return answer(work, result)

    def kind(self, work: HeadWork) -> str:
        """Return what stacked heads and mixtures, one optimizer and batches of one shape depend on."""
        targets = None if work.targets is None else (work.targets.dtype, work.targets.shape[1:])
        shapes = work.z.dtype, work.z.shape[1:], work.source.means.shape, targets
        return repr((work.needs_head, shapes, work.options, replace(work.training, steps=0)))

    def subject(self, workload: Workload, work: HeadWork) -> str:
        """Return the workload, whose heads can or cannot be vectorized."""
        return f"local heads of {workload!r}"

    def shortened(self, work: HeadWork) -> HeadWork:
        """Return the work with two steps at most."""
        return replace(work, training=replace(work.training, steps=min(work.steps, 2), epochs=0.0))

    def resident(self, work: HeadWork) -> int:
        """Return the bytes of features, which are stored twice, and on a CPU those of the head and the mixture."""
        features = 2 * work.z.nbytes
        if work.device.type == "cuda":
            return features
        head: int = sum(tensor.nbytes for tensor in work.head.state_dict().values())
        return features + COPIES * head + MIXTURES * 2 * work.source.means.nbytes


@dataclass(frozen=True)
class _LocalLoss:
    """The loss of line 7 as a function of F_l and a batch."""

    discrepancy_weight: float

    def __call__(self, head: nn.Module, batch: Batch) -> Tensor:
        """Return the loss, a scalar."""
        return local_loss(
            head(batch["z"]), batch["labels"], batch["weights"], batch["p_global"], self.discrepancy_weight
        )


def _probabilities(head: nn.Module, batch: Batch) -> Tensor:
    """Return class probabilities (batch, classes) of features."""
    logits: Tensor = head(batch["z"])
    return logits.softmax(1)


def _columns(works: Sequence[HeadWork]) -> list[dict[str, Tensor]]:
    """Return what the loss reads of each client beside features, columns (examples, ...)."""
    if works[0].targets is None:
        mean_probs = [opinions(work.head, work.z, work.start)[1] for work in works]
        labels = pseudo_labels_of_many([work.z for work in works], mean_probs, works[0].options)
    else:
        labels = [work.targets for work in works if work.targets is not None]
    return [
        {"labels": own, "weights": typicality(work.z, work.source, work.quantiles, work.options)}
        for work, own in zip(works, labels, strict=True)
    ]


def _head(work: HeadWork, state: Mapping[str, Tensor]) -> nn.Module:
    """Return F_l, as the loop does."""
    return load(deepcopy(work.head), state, work.device).requires_grad_(False).eval()


def _table(works: Sequence[HeadWork], columns: Sequence[dict[str, Tensor]] = ()) -> dict[str, Tensor]:
    """Return columns of several clients, one client's rows after another's."""
    own = {name: torch.cat([one[name] for one in columns]) for name in (columns[0] if columns else ())}
    return {"z": torch.cat([work.z for work in works]), **own}


def _rows(works: Sequence[HeadWork], streams: Sequence[Stream], plan: Sequence[Draw]) -> RowsAhead:
    """Return the rows of the table that clients draw in each step."""
    first = works[0]
    lengths, steps = [len(work.z) for work in works], [work.steps for work in works]
    return RowsAhead(lengths, first.training.batch_size, steps, streams, plan, first.z.device)


class _Mixtures:
    """W_T of several clients, of which the first ones go on when others have taken all their steps."""

    def __init__(self, works: Sequence[HeadWork]) -> None:
        sources = gaussian_mixture.stack([work.source for work in works])
        self.running = RunningMixture(sources, works[0].options.variance_floor)
        self.ended: list[GaussianMixtures] = []
        self.count = len(works)

    def update(self, z: Tensor) -> None:
        """Update the mixtures of the first clients by one EM step on z (clients, batch, width)."""
        if len(z) < self.count:
            self.ended.append(_from(self.running.fitted(), len(z)))
            self.count = len(z)
            self.running.statistics = Statistics(*(part[: self.count] for part in self.running.statistics))
        self.running.update(z)

    def all(self) -> list[gaussian_mixture.GaussianMixture]:
        """Return the mixture of each client."""
        return [one for some in (_from(self.running.fitted(), 0), *reversed(self.ended)) for one in some]


GaussianMixtures = list[gaussian_mixture.GaussianMixture]


def _from(mixtures: gaussian_mixture.GaussianMixture, first: int) -> GaussianMixtures:
    """Return stacked mixtures one by one, from the first of these on."""
    return [mixtures[index] for index in range(first, len(mixtures.means))]


class _Feed:
    """Batches of many clients, each from its client's stream; the mixtures learn from them as well (line 8).

    F_g's probabilities come from stacked heads, as F_l's do. F_l begins as F_g, where their discrepancy has no slope;
    probabilities of another product of matrices would differ by rounding, and give it one.
    """

    def __init__(
        self,
        model: StackedModel,
        plain: StackedModel,
        table: dict[str, Tensor],
        works: Sequence[HeadWork],
        streams: Sequence[Stream],
    ) -> None:
        self.plain, self.table, self.mixtures = plain, table, _Mixtures(works)
        trial = {name: column[: works[0].training.batch_size] for name, column in table.items()}
        trial["p_global"] = _probabilities(plain.model, trial)
        self.ahead = _rows(works, streams, model.record(trial) if works[0].steps else [])

    def __call__(self, step: int, count: int) -> tuple[Batch, list[Tensor]]:
        """Return the batches of the first ``count`` clients in a step, and the numbers that their losses draw."""
        rows, numbers = self.ahead(step, count)
        batch = {name: column[rows] for name, column in self.table.items()}
        if count < len(self.plain):
            self.plain.keep(count)
        with torch.no_grad():
            batch["p_global"] = self.plain.losses(batch)
        self.mixtures.update(batch["z"])
        return batch, numbers


def _fit_mixtures(works: Sequence[HeadWork], streams: Sequence[Stream]) -> GaussianMixtures:
    """Fit W_T of several clients, those with the most steps first, without a head."""
    z, mixtures, ahead = _table(works)["z"], _Mixtures(works), _rows(works, streams, [])
    for step in range(works[0].steps):
        mixtures.update(z[ahead(step, sum(work.steps > step for work in works))[0]])
    return mixtures.all()
