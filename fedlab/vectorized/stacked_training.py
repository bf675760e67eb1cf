"""The local steps of many models at once: the counterpart of ``fedlab.training.train_steps`` for stacked weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from fedlab.data.dataset import Batch
from fedlab.optimizers import OptimizerSettings
from fedlab.vectorized.gradients import average_each, clip_each, follow
from fedlab.vectorized.stacked_model import StackedModel
from fedlab.vectorized.stacked_states import StackedStates


def train_stacked(
    model: StackedModel,
    batches: Callable[[int, int], tuple[Batch, Sequence[Tensor]]],
    steps: Sequence[int],
    settings: Sequence[OptimizerSettings],
    ema_decay: float = 0.0,
    schedules: Sequence[Sequence[float]] = (),
    accumulate: int = 1,
) -> tuple[StackedStates, list[list[float]]]:
    """Train each model by its own number of steps, and return the models' states and losses.

    Models whose steps are over stay behind, so that no step is spent on them.

    Parameters
    ----------
    model
        The models, those with the most steps first; they are trained in place.
    batches
        Returns for the number of a batch, counted from 0 over all steps, and a number of models the batches of the
        first so many: columns (models, examples, ...) on the models' device, and the numbers that the loss draws.
    steps
        Number of steps of each model, none larger than the one before.
    settings
        Optimizer of each model; only learning rates may differ.
    ema_decay
        Decay of a moving average of the weights, which is then the result; 0: none.
    schedules
        For each model the learning rate of each of its steps, in the place of the optimizer's own.
    accumulate
        Batches of a step, whose losses and gradients are averaged.

    Returns
    -------
    tuple
        The states of the models, and for each its losses, one a step.

    Raises
    ------
    NotVectorizable
        When an operation of the forward pass cannot be mapped over models.
    """
    first, active = settings[0], len(steps)
    weights, buffers = dict(model.weights), dict(model.buffers)
    average = {name: weight.detach().clone() for name, weight in weights.items()} if ema_decay else {}
    trailing = dict(average)
    like = next(iter(weights.values()))
    optimizer = first.build(weights.values(), _rates([one.learning_rate for one in settings], like))
    losses: list[Tensor] = []
    for step in range(steps[0]):
        if (count := sum(number > step for number in steps)) < active:
            active = count
            model.keep(active)
            optimizer.keep(model.weights.values())
            trailing = {name: tensor[:active] for name, tensor in average.items()}
        if schedules:
            optimizer.learning_rate = _rates([schedule[step] for schedule in schedules[:active]], like)
        parts = []
        for number in range(step * accumulate, (step + 1) * accumulate):
            values = model.losses(*batches(number, active))
            values.sum().backward()  # type: ignore[no-untyped-call]
            parts.append(values.detach())
        losses.append(parts[0] if accumulate == 1 else torch.stack(parts).mean(0))
        average_each(model.weights.values(), accumulate)
        if first.max_grad_norm:
            clip_each(model.weights.values(), first.max_grad_norm)
        optimizer.step()
        if ema_decay:
            follow(trailing, model.weights, ema_decay)
    return model.states(average or weights, buffers), _by_model(losses, len(steps))


def _rates(rates: Sequence[float], like: Tensor) -> float | Tensor:
    """Learning rates of models: the one that all have, or (models,)."""
    return torch.tensor(rates, dtype=like.dtype, device=like.device) if len(set(rates)) > 1 else rates[0]


def _by_model(losses: Sequence[Tensor], models: int) -> list[list[float]]:
    """Losses of each model, from those of each step (active models,); read from the device once."""
    found: list[list[float]] = [[] for _ in range(models)]
    if losses:
        values = iter(torch.cat(list(losses)).tolist())
        for row in (row for one in losses for row in range(len(one))):
            found[row].append(next(values))
    return found


def stack_batches(batches: Sequence[Mapping[str, Tensor]], device: torch.device) -> dict[str, Tensor]:
    """Return one batch with columns (models, examples, ...) on a device, from a batch of each model."""
    return {name: torch.stack([one[name] for one in batches]).to(device, non_blocking=True) for name in batches[0]}
