"""One loss of many models: weights and buffers stacked along a first dimension, forward passes mapped over it.

Models are independent, so the gradient of the sum of their losses is each one's own. Weights are stacked leaves and
only the forward pass is mapped (``torch.func.vmap``), so that backward passes and optimizers are the ordinary ones.

**Source**: ``torch.func``'s tutorial on model ensembling, and PyTorch's list of what ``vmap`` cannot map.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from fedlab.data.dataset import Batch
from fedlab.data.pinned import send
from fedlab.vectorized.draws import Draw, NotVectorizable, Replay, record
from fedlab.vectorized.stacked_convolution import convolutions_on
from fedlab.vectorized.stacked_states import StackedStates

Tensors = Mapping[str, Tensor]
Penalty = Callable[[Tensors, Tensors, Tensors], Tensor]  # weights, those at the start, extra tensors -> scalar
INNER = "model."  # prefix of the model's names in the module that computes the loss


class StackedModel:
    """The weights of several models of one kind, as stacked leaves, and their losses.

    Parameters
    ----------
    model
        A module of their structure, in training mode, on the device. It gives what a state lacks, and is only read.
    states
        State of each model by name. They are only read.
    loss
        Maps a module and a batch to a scalar, as :meth:`fedlab.workload.Workload.loss` does.
    penalty
        A term to add to the loss.
    extra
        For each model the tensors that the penalty reads.

    Attributes
    ----------
    weights
        Leaves by name, each (models, ...).
    buffers
        Buffers by name, each (models, ...), which forward passes change in place.
    """

    def __init__(
        self,
        model: nn.Module,
        states: Sequence[Tensors],
        loss: Callable[[nn.Module, Batch], Tensor],
        penalty: Penalty | None = None,
        extra: Sequence[Tensors] = (),
    ) -> None:
        self.model, self.loss = model, loss
        self.module, self.penalty = _Loss(model, loss), penalty
        self.plan: list[Draw] = []
        device = next(model.parameters()).device
        linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        self.weights: dict[str, Tensor] = {}
        for name, weight in model.named_parameters():
            stacked = _stack([state[name] for state in states], weight, name in linear)
            self.weights[name] = stacked.requires_grad_(weight.requires_grad)
        self.buffers = {
            name: _stack([state.get(name, buffer) for state in states], buffer)
            for name, buffer in model.named_buffers()
        }
        self.start = {name: weight.detach().clone() for name, weight in self.weights.items()} if penalty else {}
        self.extra = {
            name: _stack([one[name] for one in extra], like.to(device)) for name, like in (extra or [{}])[0].items()
        }
        self._names = _state_names(model)

    def __len__(self) -> int:
        return len(next(iter(self.weights.values())))

    def record(self, batch: Batch) -> list[Draw]:
        """Note and return what the loss draws, from a trial with one model's batch (examples, ...) on the device.

        Raises
        ------
        NotVectorizable
            When that depends on values, or the loss cannot be mapped.
        """
        with _mappable():
            self.plan = record(self.loss, self.model, batch)
        return self.plan

    def losses(self, batch: Batch, numbers: Sequence[Tensor] = ()) -> Tensor:
        """Return the loss of each model (models, ...) on a batch of its own: columns (models, examples, ...).

        Parameters
        ----------
        numbers
            What the loss draws, in the order of the plan, each (models, ...).

        Raises
        ------
        NotVectorizable
            When an operation of the forward pass cannot be mapped over models.
        """
        with _mappable(), convolutions_on(next(iter(self.weights.values())).device):
            found: Tensor = vmap(self._loss, randomness="error")(
                self.weights, self.buffers, self.start, self.extra, dict(batch), list(numbers)
            )
        return found

    def _loss(
        self,
        weights: Tensors,
        buffers: Tensors,
        start: Tensors,
        extra: Tensors,
        batch: Batch,
        numbers: Sequence[Tensor],
    ) -> Tensor:
        tensors = {INNER + name: tensor for name, tensor in (weights | buffers).items()}  # type: ignore[operator]
        with Replay(self.plan, numbers) if self.plan else nullcontext():
            value: Tensor = functional_call(self.module, tensors, (batch,))
        return value + self.penalty(weights, start, extra) if self.penalty else value

    def keep(self, count: int) -> None:
        """Go on with the first ``count`` models; the others' weights stay as they are, in the tensors given before."""
        self.weights = {
            name: weight.detach()[:count].requires_grad_(weight.requires_grad) for name, weight in self.weights.items()
        }
        for tensors in (self.buffers, self.start, self.extra):
            tensors.update({name: tensor[:count] for name, tensor in tensors.items()})

    def states(self, weights: Tensors, buffers: Tensors) -> StackedStates:
        """Return the states of the models, in the order of their own ``state_dict``, from stacked tensors."""
        stacked = {**weights, **buffers}
        return StackedStates({name: stacked[origin] for name, origin in self._names.items()})


class _Loss(nn.Module):
    """A model and its loss as one module, whose weights ``functional_call`` can replace."""

    def __init__(self, model: nn.Module, loss: Callable[[nn.Module, Batch], Tensor]) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: Batch) -> Tensor:
        """Return the loss, a scalar."""
        return self.loss(self.model, batch)


def _stack(tensors: Sequence[Tensor], like: Tensor, transposed: bool = False) -> Tensor:
    """Stack tensors, in the type and on the device of one; ``transposed`` matrices lie in memory as their transposes.

    A batched product's gradient of a linear layer's weight comes transposed. A leaf that lies so as well takes it as it
    is, where another one makes a copy of it in each step. What all models have in common is moved to the device once.
    """
    if all(tensor is tensors[0] for tensor in tensors):
        first = tensors[0].detach().to(like)
        stacked = (first.T if transposed else first).expand(len(tensors), *first.shape[:: -1 if transposed else 1])
        stacked = stacked.clone(memory_format=torch.contiguous_format)
    elif transposed and like.device.type == "cpu":
        stacked = torch.empty(len(tensors), *like.shape[::-1], dtype=like.dtype)
        for row, tensor in zip(stacked, tensors, strict=True):  # torch is quick with a single transpose only
            row.copy_(tensor.detach().T)
    else:
        stacked = send(torch.stack([tensor.detach() for tensor in tensors]), like.device).to(like.dtype)
        stacked = stacked.mT.contiguous() if transposed else stacked
    return stacked.mT if transposed else stacked


def _state_names(model: nn.Module) -> dict[str, str]:
    """Names in a model's state, and the parameter or buffer of each; tied weights have several names and one tensor."""
    named = {id(tensor): name for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    return {name: named[id(tensor)] for name, tensor in model.state_dict(keep_vars=True).items()}


@contextmanager
def _mappable() -> Iterator[None]:
    """Turn what vmap cannot map into NotVectorizable, the slow loops inside vmap included."""
    functorch: Any = torch._C._functorch
    attention: Any = torch.backends.cuda
    slow, flash = functorch._is_vmap_fallback_enabled(), attention.flash_sdp_enabled()
    efficient = attention.mem_efficient_sdp_enabled()
    functorch._set_vmap_fallback_enabled(False)
    attention.enable_flash_sdp(False)  # attention as matrix products, which have a batching rule
    attention.enable_mem_efficient_sdp(False)
    try:
        yield
    except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
        if reason := _reason(str(error)):
            raise NotVectorizable(reason) from error
        raise
    finally:
        functorch._set_vmap_fallback_enabled(slow)
        attention.enable_flash_sdp(flash)
        attention.enable_mem_efficient_sdp(efficient)


REASONS: Mapping[str, str] = {
    r"(\S+) hit the vmap fallback": "operation {} has no batching rule",
    r"[Bb]atching rule not implemented for (\S+?)[,;.]?(?:\s|$)": "operation {} has no batching rule",
    r"called random operation": "its loss draws random numbers",
    r"randomness": "its loss draws random numbers",
    r"data-dependent control flow": "its loss branches on values",
    r"does not have a grad_fn": "its loss takes a gradient itself",
    r"data pointer of Tensor": "its loss reads values of tensors (numpy)",
    r"\.item\(\)": "its loss reads values of tensors (item)",
    r"vmap: (.*)": "{}",
}


def _reason(message: str) -> str:
    """Return why vmap refused, from its message; empty for an error that is not vmap's."""
    for pattern, reason in REASONS.items():
        if found := re.search(pattern, message):
            return reason.format(*found.groups()).removesuffix(".")
    return ""
