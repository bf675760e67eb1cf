"""Random numbers that a loss draws: recorded once, drawn for each model from its own stream, and put back.

Inside ``vmap`` one generator would serve all models. So :func:`record` runs the loss once for one model and notes what
it draws; :func:`draw` repeats that, from whatever stream is the current one; and :class:`Replay` gives the numbers to
the mapped loss in the place of its own draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from fedlab.data.dataset import Batch
from fedlab.errors import FedlabError
from fedlab.seeds import seeded

FACTORIES = (torch.randn, torch.rand, torch.randint, torch.randperm)
ALIKE = (torch.randn_like, torch.rand_like, torch.randint_like)
DROPOUTS = (functional.dropout, torch.dropout)
CONVOLUTIONS: tuple[Any, ...] = (torch.conv1d, torch.conv2d, torch.conv3d)
CONVOLUTIONS += (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)


class NotVectorizable(FedlabError):
    """Models cannot be trained at once; the message says why, as the end of a sentence."""


@dataclass(frozen=True)
class Draw:
    """One place of a loss that draws.

    Attributes
    ----------
    function
        What the loss calls there.
    shape, nbytes
        Of the numbers of one model.
    sample
        Draws them from the current random stream.
    """

    function: Callable[..., Any]
    shape: torch.Size
    nbytes: int
    sample: Callable[[], Tensor]


def record(loss: Callable[[nn.Module, Batch], Tensor], model: nn.Module, batch: Batch) -> list[Draw]:
    """Return what a loss draws, in order; neither the model nor any random stream is changed.

    Raises
    ------
    NotVectorizable
        When what it draws depends on values, or when it would compute in another precision if it were mapped.
    """
    recorder = _Recorder()
    with seeded("a trial of the loss"), torch.no_grad(), recorder:
        loss(deepcopy(model), batch)
    return recorder.draws


def draw(plan: Iterable[Draw]) -> list[Tensor]:
    """Return the numbers of one model and one step, from the current random stream."""
    return [one.sample() for one in plan]


class _Recorder(TorchFunctionMode):
    """Lets everything run, and notes the calls that draw."""

    def __init__(self) -> None:
        super().__init__()
        self.draws: list[Draw] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in CONVOLUTIONS and torch.is_autocast_enabled(args[0].device.type):
            raise NotVectorizable("automatic mixed precision does not reach convolutions that are mapped")
        result = func(*args, **kwargs)
        if sample := _sampler(func, args, kwargs):
            self.draws.append(Draw(func, result.shape, result.nbytes, sample))
        return result


class Replay(TorchFunctionMode):
    """Gives numbers that were drawn before to the calls that would draw them.

    Parameters
    ----------
    plan
        What the loss draws.
    numbers
        The numbers, in that order.
    """

    def __init__(self, plan: Sequence[Draw], numbers: Sequence[Tensor]) -> None:
        super().__init__()
        self.left = list(zip(plan, numbers, strict=True))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in DROPOUTS and not _drops(*args, **kwargs):
            return args[0]
        if func not in (*FACTORIES, *ALIKE, *DROPOUTS):
            return func(*args, **kwargs)
        expected, numbers = self.left.pop(0) if self.left else (None, torch.empty(0))
        if expected is None or expected.function is not func:
            raise NotVectorizable("what its loss draws differs from step to step")
        return args[0] * numbers if func in DROPOUTS else numbers


def _sampler(func: Any, args: Any, kwargs: Any) -> Callable[[], Tensor] | None:
    """Return a function that draws what a call draws; None for a call that draws nothing."""
    if func in DROPOUTS:
        if not _drops(*args, **kwargs):
            return None
        ones, p = torch.ones_like(args[0]), _probability(*args, **kwargs)
        return lambda: functional.dropout(ones, p, True)  # 0, or 1 / (1 - p)
    if func in ALIKE:
        like = torch.empty_like(args[0])  # in the same order in memory, which is that of the numbers
        return lambda: func(like, *args[1:], **kwargs)
    if func in FACTORIES:
        if any(isinstance(value, Tensor) for value in (*args, *kwargs.values())):
            raise NotVectorizable("what its loss draws depends on values")
        return lambda: func(*args, **kwargs)
    return None


def _drops(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False, **_: Any) -> bool:
    return training and p > 0


def _probability(input: Tensor, p: float = 0.5, *_: Any, **__: Any) -> float:
    return p
