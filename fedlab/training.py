"""The optimization loop, the exponential moving average, the choice of a device."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fedlab.errors import ConfigError, RunError
from fedlab.optimizers import Optimizer
from fedlab.precision import autocast

LOOK_EVERY = 50  # steps between two looks at the losses on a GPU
Progress = Callable[[str, int, int], None]  # phase, steps done, steps in all


def null_progress(phase: str, done: int, total: int) -> None:
    """Ignore progress reports."""


def train_steps(
    loss: Callable[[], Tensor],
    optimizer: Optimizer,
    steps: int,
    *,
    name: str,
    accumulate: int = 1,
    max_grad_norm: float = 0.0,
    after_step: Callable[[], object] | None = None,
    progress: Progress = null_progress,
) -> float | None:
    """Perform ``steps`` gradient steps on ``loss`` and return its mean over them, None when there are none.

    Parameters
    ----------
    loss
        Draws its own batch and returns a scalar.
    name
        Phase that progress reports and errors name.
    accumulate
        Batches of a step, whose losses and gradients are averaged: that of a batch so many times as large where an
        example's loss does not depend on the others, as it does with batch norms.
    max_grad_norm
        Largest Euclidean norm of the gradient of all weights together; a larger one is scaled down. 0: no limit.
    after_step
        Called after every step, for instance to update a moving average of the weights.
    progress
        Called after every step with the name, the steps done and ``steps``.

    Raises
    ------
    RunError
        When the loss is not finite, with the step at which it happened: as soon as it is so on a CPU, and within
        ``LOOK_EVERY`` steps on a GPU, which would stop for every look.
    """
    total, losses = 0.0, list[Tensor]()
    for step in range(steps):
        value = _accumulate(loss, optimizer, accumulate)
        losses.append(value)
        if value.device.type == "cpu" or len(losses) == LOOK_EVERY or step + 1 == steps:
            for number, current in enumerate(torch.stack(losses).tolist(), step + 2 - len(losses)):
                check_loss(current, name, number, steps)
                total += current
            losses.clear()
        if max_grad_norm:
            nn.utils.clip_grad_norm_(_weights(optimizer), max_grad_norm)
        optimizer.step()
        if after_step:
            after_step()
        progress(name, step + 1, steps)
    return total / steps if steps else None


def _accumulate(loss: Callable[[], Tensor], optimizer: Optimizer, batches: int) -> Tensor:
    """Set the gradients to the mean over so many batches, and return the mean loss, a scalar.

    Sums are divided rather than losses: a loss that is a CUDA graph may not be scaled.
    """
    values: list[Tensor] = []
    for _ in range(batches):
        with autocast():
            value = loss()
        if not values:  # here, since a loss may take a step of its own in its first batch
            optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        values.append(value.detach())
    if batches == 1:
        return values[0]
    gradients = [weight.grad for weight in _weights(optimizer) if weight.grad is not None]
    torch._foreach_div_(gradients, float(batches))
    return torch.stack(values).mean()


def _weights(optimizer: Optimizer) -> list[Tensor]:
    return [weight for group in optimizer.param_groups for weight in group["params"]]


def check_loss(value: float, name: str, step: int, steps: int) -> None:
    """Validate that the loss of a step is finite.

    Raises
    ------
    RunError
        When it is not.
    """
    if not math.isfinite(value):
        raise RunError(
            f"{name}: the loss is {value} at step {step} of {steps}; "
            "lower the learning rate, or look at the data for values that are not finite"
        )


def check_losses(values: Sequence[float], name: str) -> None:
    """Validate that the losses of all steps are finite.

    Raises
    ------
    RunError
        When one is not, with the first such step.
    """
    if not all(map(math.isfinite, values)):
        for step, value in enumerate(values, 1):
            check_loss(value, name, step, len(values))


def effective_steps(steps: int, momentum: float) -> float:
    """Return how many plain steps move weights along a constant gradient as far as SGD with momentum does in ``steps``.

    This is the sum of the weights that momentum gives to the gradients of the steps, |a| of Wang et al. (FedNova,
    NeurIPS 2020); with many steps it comes near ``steps / (1 - momentum)``.

    >>> effective_steps(2, 0.5)
    2.5
    """
    return (steps - momentum * (1 - momentum**steps) / (1 - momentum)) / (1 - momentum)


class MovingAverage:
    """An exponential moving average of a model's weights, ``average <- decay * average + (1 - decay) * model``.

    Buffers are copied. Weights and buffers are looked up once: of a model of hundreds of modules that takes as long as
    a training step on a GPU.

    Parameters
    ----------
    average, model
        Modules of one kind; both keep their parameters, which may change in place.
    decay
        In [0, 1]; 0 copies.
    """

    def __init__(self, average: nn.Module, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._weights: tuple[list[Tensor], list[Tensor]] = list(average.parameters()), list(model.parameters())
        self._buffers = list(average.buffers()), list(model.buffers())

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the model as it is now."""
        torch._foreach_lerp_(*self._weights, 1.0 - self.decay)
        if self._buffers[0]:
            torch._foreach_copy_(*self._buffers)


def to_training_device(model: nn.Module, device: torch.device, compiled: bool = False) -> nn.Module:
    """Return a model on the device on which it trains.

    Parameters
    ----------
    compiled
        Compile it by ``torch.compile`` when it is first called, on a GPU; of a model with ``compiled_parts()`` these
        modules, each kind of which is compiled once.
    """
    model = model.to(device)
    if compiled and device.type == "cuda":
        for part in getattr(model, "compiled_parts", lambda: [model])():
            part.compile(dynamic=False)
    return model


def resolve_device(name: str, gpu_reachable: bool = True) -> torch.device:
    """Return the torch device that an option names; "auto" is the first GPU if there is one, else the CPU.

    Parameters
    ----------
    name
        "auto", "cpu", "cuda" or "cuda:N".
    gpu_reachable
        False when some process of the run sees no GPU: "auto" then means the CPU.

    Raises
    ------
    ConfigError
        When a GPU is asked for that this machine does not have, or that not every process would reach.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() and gpu_reachable else "cpu"
    if name.startswith("cuda") and not gpu_reachable:
        raise ConfigError(
            f"device {name!r} was asked for, but clients of this engine get no GPU; set ray.gpus to a "
            "fraction of one for each client, or device=cpu"
        )
    device = torch.device(name)
    if device.type != "cuda":
        return device
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (device.index or 0) >= count:
        raise ConfigError(f"device {name!r} was asked for, but this machine has {count} usable GPUs; use device=cpu")
    return device
