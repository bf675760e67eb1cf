"""SGD and Adam with the bits of torch's, without its base class, whose first object imports the compiler (2 s).

Local training builds an optimizer for each client and round, and processes of clients and servers start often.

**Source**: ``torch.optim.SGD`` and ``torch.optim.Adam`` (torch 2.14), with which ``tests/fedlab/test_optimizers.py``
compares every step bit by bit; Kingma and Ba, Adam, ICLR 2015.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8  # Adam's, torch's defaults


class Optimizer(Protocol):
    """The part of an optimizer that a training loop uses; torch's have it as well.

    Attributes
    ----------
    param_groups
        Mappings whose ``params`` are the weights.
    """

    param_groups: list[dict[str, Any]]

    def step(self) -> object:
        """Move the weights one step along their gradients."""
        ...

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients."""
        ...


class _FirstOrder:
    """The weights, and the order of a step: those with a gradient, weight decay, the move."""

    def __init__(self, weights: Iterable[Tensor], learning_rate: float | Tensor, weight_decay: float) -> None:
        self.weights = list(weights)
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.param_groups: list[dict[str, Any]] = [{"params": self.weights}]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients."""
        for weight in self.weights:
            weight.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Move the weights one step along their gradients, and drop these; weights without one stay."""
        rows = [row for row, weight in enumerate(self.weights) if weight.grad is not None]
        if not rows:
            return
        weights = [self.weights[row] for row in rows]
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        self.zero_grad()
        if self.weight_decay:
            torch._foreach_add_(gradients, weights, alpha=self.weight_decay)
        self._move(rows, weights, gradients)

    def _move(self, rows: Sequence[int], weights: list[Tensor], gradients: list[Tensor]) -> None:
        """Move the weights of these rows; the gradients are the optimizer's to keep or to change."""
        raise NotImplementedError

    def keep(self, weights: Iterable[Tensor]) -> None:
        """Go on with other weights: the first rows of each of those so far."""
        self.weights = list(weights)
        self.param_groups[0]["params"] = self.weights
        if isinstance(self.learning_rate, Tensor):
            self.learning_rate = self.learning_rate[: len(self.weights[0])]
        for kept in self._kept():
            kept.update({row: tensor[: len(self.weights[row])] for row, tensor in kept.items()})

    def _kept(self) -> tuple[dict[int, Tensor], ...]:
        """Return what the optimizer remembers, tensors like the weights by row."""
        raise NotImplementedError


class SGD(_FirstOrder):
    """Stochastic gradient descent: v <- momentum v + g, w <- w - learning_rate v; the first v is the first gradient.

    Parameters
    ----------
    weights
        Tensors to train, of any shapes.
    learning_rate, momentum
        Step size, one for all or of each row (rows,) of weights (rows, ...), and momentum in [0, 1).
    weight_decay
        Multiple of a weight that is added to its gradient.
    nesterov
        Move along g + momentum v instead, with Nesterov's momentum.
    """

    def __init__(
        self,
        weights: Iterable[Tensor],
        learning_rate: float | Tensor,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        super().__init__(weights, learning_rate, weight_decay)
        self.momentum, self.nesterov = momentum, nesterov
        self.velocities: dict[int, Tensor] = {}

    def _move(self, rows: Sequence[int], weights: list[Tensor], gradients: list[Tensor]) -> None:
        if self.momentum:
            known = [(row, gradient) for row, gradient in zip(rows, gradients, strict=True) if row in self.velocities]
            if known:
                velocities = [self.velocities[row] for row, _ in known]
                torch._foreach_mul_(velocities, self.momentum)
                torch._foreach_add_(velocities, [gradient for _, gradient in known])
            for row, gradient in zip(rows, gradients, strict=True):
                self.velocities.setdefault(row, gradient.clone() if self.nesterov else gradient)
            velocities = [self.velocities[row] for row in rows]
            if self.nesterov:
                torch._foreach_add_(gradients, velocities, alpha=self.momentum)
            else:
                gradients = velocities
        rate = self.learning_rate
        if isinstance(rate, Tensor):
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.addcmul_(gradient, per_row(rate, weight), value=-1)
        else:
            torch._foreach_add_(weights, gradients, alpha=-rate)

    def _kept(self) -> tuple[dict[int, Tensor], ...]:
        return (self.velocities,)


class Adam(_FirstOrder):
    """Adam: steps along the mean gradient over the root of the mean squared gradient, both corrected for their start.

    Parameters
    ----------
    weights
        Tensors to train, of any shapes.
    learning_rate
        Step size, one for all or of each row (rows,) of weights (rows, ...); it may be changed between steps.
    weight_decay
        Multiple of a weight that is added to its gradient.

    Attributes
    ----------
    beta_1
        Decay of the mean gradient; it may be changed between steps.
    """

    def __init__(self, weights: Iterable[Tensor], learning_rate: float | Tensor, weight_decay: float = 0.0) -> None:
        super().__init__(weights, learning_rate, weight_decay)
        self.beta_1 = BETA_1
        self.means: dict[int, Tensor] = {}
        self.squares: dict[int, Tensor] = {}
        self.steps: dict[int, int] = {}

    def _move(self, rows: Sequence[int], weights: list[Tensor], gradients: list[Tensor]) -> None:
        for row, weight in zip(rows, weights, strict=True):
            if row not in self.means:
                self.means[row], self.squares[row] = torch.zeros_like(weight), torch.zeros_like(weight)
            self.steps[row] = self.steps.get(row, 0) + 1
        means, squares = [self.means[row] for row in rows], [self.squares[row] for row in rows]
        steps = [self.steps[row] for row in rows]
        torch._foreach_lerp_(means, gradients, 1 - self.beta_1)
        torch._foreach_mul_(squares, BETA_2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - BETA_2)
        roots = torch._foreach_sqrt(squares)
        torch._foreach_div_(roots, [(1 - BETA_2**step) ** 0.5 for step in steps])
        torch._foreach_add_(roots, EPSILON)
        rate = self.learning_rate
        if isinstance(rate, Tensor):
            for weight, mean, root, step in zip(weights, means, roots, steps, strict=True):
                weight.addcmul_(mean / root, per_row(rate, weight), value=-1 / (1 - self.beta_1**step))
        else:
            torch._foreach_addcdiv_(weights, means, roots, [-rate / (1 - self.beta_1**step) for step in steps])

    def _kept(self) -> tuple[dict[int, Tensor], ...]:
        return self.means, self.squares

    def state_dict(self) -> dict[str, Any]:
        """Return what the optimizer remembers, in the layout of ``torch.optim.Adam`` and without its options."""
        return {
            "state": {
                row: {"step": torch.tensor(float(step)), "exp_avg": self.means[row], "exp_avg_sq": self.squares[row]}
                for row, step in self.steps.items()
            }
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the state of this optimizer, or of torch's, of the same weights."""
        rows = state["state"]
        self.steps = {row: int(kept["step"]) for row, kept in rows.items()}
        self.means = {row: kept["exp_avg"].to(self.weights[row], copy=True) for row, kept in rows.items()}
        self.squares = {row: kept["exp_avg_sq"].to(self.weights[row], copy=True) for row, kept in rows.items()}


class FusedAdam(torch.optim.Adam):
    """Torch's Adam with one kernel a step, for GPUs, and with the attributes and states of :class:`Adam`."""

    def __init__(self, weights: Iterable[Tensor], learning_rate: float, weight_decay: float = 0.0) -> None:
        super().__init__(weights, learning_rate, weight_decay=weight_decay, fused=True)

    @property
    def learning_rate(self) -> float:
        """Step size of the next steps."""
        return float(self.param_groups[0]["lr"])

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self.param_groups[0]["lr"] = value

    @property
    def beta_1(self) -> float:
        """Decay of the mean gradient in the next steps."""
        return float(self.param_groups[0]["betas"][0])

    @beta_1.setter
    def beta_1(self, value: float) -> None:
        self.param_groups[0]["betas"] = (value, BETA_2)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from the state of this optimizer, or of :class:`Adam`, of the same weights; options stay."""
        super().load_state_dict({"state": state_dict["state"], "param_groups": self.state_dict()["param_groups"]})


def per_row(values: Tensor, like: Tensor) -> Tensor:
    """Return values (rows,) in the shape (rows, 1, ..., 1) that multiplies the rows of a tensor (rows, ...)."""
    return values.view(-1, *(1 for _ in like.shape[1:]))


@dataclass(frozen=True)
class OptimizerSettings:
    """Local optimizer of a client, without its weights.

    Attributes
    ----------
    name
        "sgd" or "adam".
    learning_rate, momentum, weight_decay
        As of :class:`SGD`; Adam has no momentum.
    max_grad_norm
        Largest Euclidean norm of the gradient of all weights together; a larger one is scaled down. 0: no limit.
    """

    name: Literal["sgd", "adam"]
    learning_rate: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    max_grad_norm: float = 0.0

    def build(self, weights: Iterable[Tensor], learning_rate: float | Tensor | None = None) -> SGD | Adam:
        """Return a fresh optimizer of these weights; ``learning_rate`` (rows,) of stacked ones where it differs."""
        rate = self.learning_rate if learning_rate is None else learning_rate
        if self.name == "adam":
            return Adam(weights, rate, self.weight_decay)
        return SGD(weights, rate, self.momentum, self.weight_decay)


def cosine_rates(learning_rate: float, steps: int) -> Iterator[float]:
    """Yield the learning rate of each step, from the first to 0 by half a cosine, with the bits of torch's schedule.

    **Source**: ``torch.optim.lr_scheduler.CosineAnnealingLR``, which multiplies from step to step.
    """
    for step in range(steps):
        if step:
            learning_rate *= (1 + math.cos(math.pi * step / steps)) / (1 + math.cos(math.pi * (step - 1) / steps))
        yield learning_rate


def one_cycle(peak: float, steps: int, rise: float, final_div_factor: float) -> Iterator[tuple[float, float]]:
    """Yield the learning rate and Adam's beta_1 of each step of one cycle, with the bits of torch's schedule.

    The rate goes from ``peak / 25`` to ``peak`` in the fraction ``rise`` of the steps, and on to ``peak / 25 /
    final_div_factor``; beta_1 goes from 0.95 to 0.85 and back.

    **Source**: ``torch.optim.lr_scheduler.OneCycleLR``; Smith and Topin, Super-convergence, 2019.
    """
    first = peak / 25
    summit, last = float(rise * steps) - 1, steps - 1
    for step in range(steps):
        if step <= summit:
            fraction, rates, betas = step / summit if summit else 0.0, (first, peak), (0.95, 0.85)
        else:
            fraction = (step - summit) / (last - summit)
            rates, betas = (peak, first / final_div_factor), (0.85, 0.95)
        yield _half_cosine(*rates, fraction), _half_cosine(*betas, fraction)


def _half_cosine(start: float, end: float, fraction: float) -> float:
    return end + (start - end) / 2.0 * (math.cos(math.pi * fraction) + 1)
