"""DualAdapt's local training of many clients at once: stacked heads on cached features, and mixtures side by side.

Features, labels and weights of all clients are one table, from which each client takes rows of its own. See
``strategies/vectorized.py`` for what comes around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from flwr.app import Message, RecordDict
from torch import Tensor, nn

from fedlab.data.dataset import Batch
from fedlab.models import gaussian_mixture
from fedlab.models.gaussian_mixture import Statistics
from fedlab.optimizers import OptimizerSettings, cosine_rates
from fedlab.seeds import Stream
from fedlab.strategies.drawn_ahead import DrawnAhead
from fedlab.strategies.dualadapt.client import HeadResult, HeadWork, answer, first_head, prepare, run
from fedlab.strategies.dualadapt.local_head import (
    PHASE,
    RunningMixture,
    draw_rows,
    local_loss,
    opinions,
    pseudo_labels_of_many,
    typicality,
)
from fedlab.strategies.protocol import ClientContext, load
from fedlab.vectorized.draws import draw
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
        table = _Table(works, _columns(works))
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


def _head(work: HeadWork, state: dict[str, Tensor]) -> nn.Module:
    """Return F_l, as the loop does."""
    return load(deepcopy(work.head), state, work.device).requires_grad_(False).eval()


class _Table:
    """Columns of several clients, one client's rows after another's."""

    def __init__(self, works: Sequence[HeadWork], columns: Sequence[dict[str, Tensor]] = ()) -> None:
        self.columns = {"z": torch.cat([work.z for work in works])}
        for name in columns[0] if columns else ():
            self.columns[name] = torch.cat([own[name] for own in columns])
        starts = accumulate((len(work.z) for work in works[:-1]), initial=0)
        self.starts = torch.tensor(list(starts))[:, None]  # (clients, 1)

    def batch(self, rows: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return columns (clients, batch, ...) at rows (batch,) of the first so many clients."""
        index = (torch.stack(list(rows)) + self.starts[: len(rows)]).to(self.columns["z"].device)
        return {name: column[index] for name, column in self.columns.items()}


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
        table: _Table,
        works: Sequence[HeadWork],
        streams: Sequence[Stream],
    ) -> None:
        self.plain, self.table, self.works, self.mixtures = plain, table, works, _Mixtures(works)
        trial: dict[str, Tensor] = {
            name: column[: works[0].training.batch_size] for name, column in table.columns.items()
        }
        trial["p_global"] = _probabilities(plain.model, trial)
        self.plan = model.record(trial) if works[0].steps else []
        self.ahead = DrawnAhead(self._draw, _size, [work.steps for work in works], streams)

    def __call__(self, step: int, count: int) -> tuple[Batch, list[Tensor]]:
        """Return the batches of the first ``count`` clients in a step, and the numbers that their losses draw."""
        rows, numbers = zip(*self.ahead(step, count), strict=True)
        batch = self.table.batch(rows)
        if count < len(self.plain):
            self.plain.keep(count)
        with torch.no_grad():
            batch["p_global"] = self.plain.losses(batch)
        self.mixtures.update(batch["z"])
        return batch, [torch.stack(each).to(batch["z"].device) for each in zip(*numbers, strict=True)]

    def _draw(self, position: int) -> tuple[Tensor, list[Tensor]]:
        work = self.works[position]
        return draw_rows(len(work.z), work.training), draw(self.plan)


def _size(drawn: tuple[Tensor, list[Tensor]]) -> int:
    rows, numbers = drawn
    return rows.nbytes + sum(one.nbytes for one in numbers)


def _fit_mixtures(works: Sequence[HeadWork], streams: Sequence[Stream]) -> GaussianMixtures:
    """Fit W_T of several clients, those with the most steps first, without a head."""
    steps = [work.steps for work in works]

    def draw_next(position: int) -> Tensor:
        return draw_rows(len(works[position].z), works[position].training)

    table, mixtures = _Table(works), _Mixtures(works)
    ahead = DrawnAhead(draw_next, lambda rows: rows.nbytes, steps, streams)
    for step in range(steps[0]):
        mixtures.update(table.batch(ahead(step, sum(number > step for number in steps)))["z"])
    return mixtures.all()
