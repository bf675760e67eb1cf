"""Losses whose kernels are launched all at once on a GPU: the forward and the backward pass as one CUDA graph.

A step of a small network is a thousand kernels of a few microseconds, and launching one from Python takes longer. A
graph is captured once and replayed for every batch of the same shapes: the same kernels in the same order on the same
memory, so the same bits. Random numbers of a GPU go on from its generator at every replay, as without a graph.

A loss that cannot be captured, because it waits for the GPU or its shapes depend on values, is computed as usual.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fedlab.data.dataset import Batch
from fedlab.errors import FedlabWarning
from fedlab.precision import autocast, current_precision

OTHER_THREADS = "thread_local"  # may use the GPU during a capture
WARMUP = 3  # passes before the capture: libraries choose their kernels and take their memory in the first ones
Loss = Callable[[nn.Module, Batch], Tensor]


class NotCapturedWarning(FedlabWarning):
    """Warning that a loss cannot be captured as a CUDA graph."""


class GraphedLoss:
    """A loss of a model's batches, ``graphed(batch)``, a scalar to call ``backward()`` on.

    The first batch of some shapes is computed as usual; the second is captured. On a CPU nothing is captured. Terms may
    be added to a captured loss; it may not be scaled, since its gradient is computed along with it.

    Parameters
    ----------
    loss
        A function of the model and a batch.
    model
        Keeps its parameters: they may change in place, as by ``load_state_dict`` or an optimizer.
    enabled
        False: nothing is captured.
    prepare
        What becomes of a batch first, without a gradient, for instance random views. It is a part of the graph; where
        that cannot be captured, it is computed before it.

    Attributes
    ----------
    refused
        Why no graph could be captured; empty if nothing was refused.
    prepares_before
        True if a graph could not be captured with the preparation in it.
    """

    def __init__(
        self,
        loss: Loss,
        model: nn.Module,
        enabled: bool = True,
        prepare: Callable[[Batch], Batch] | None = None,
    ) -> None:
        self.loss, self.model, self.enabled, self.refused = loss, model, enabled, ""
        self.prepare, self.prepares_before = prepare, False
        self._weights = list(model.parameters())  # walking through many modules takes longer than a small step
        self._seen: dict[object, _Capture | None] = {}

    def __call__(self, batch: Batch) -> Tensor:
        """Return the loss of a batch, a scalar."""
        given = batch
        if self.prepare and self.prepares_before:
            with autocast():
                batch = self.prepare(batch)
        if self.refused or not self._may_be_captured(batch):
            return self._eager(batch)
        key = self._key(batch)
        if key not in self._seen:
            self._seen[key] = None
            return self._eager(batch)
        captured = self._seen[key]
        if captured is None:
            try:
                captured = self._seen[key] = _Capture(self._eager, self.model, batch)
            except RuntimeError as error:
                self._refuse(error)
                return self(given)
        value: Tensor = _Replay.apply(captured, batch, captured.trigger)
        return value

    def _may_be_captured(self, batch: Batch) -> bool:
        return self.enabled and all(column.is_cuda for column in batch.values())

    def _refuse(self, error: RuntimeError) -> None:
        """Go on without the preparation in the graph, or, if it is not there any more, without a graph."""
        reason, what = str(error).splitlines()[0], "a training step"
        if self.prepare and not self.prepares_before:
            self.prepares_before, what = True, "what comes before the model in a training step"
        else:
            self.refused = reason
        self._seen.clear()
        end_failed_capture(next(self.model.parameters()).device)
        warnings.warn(
            f"{what} cannot be a CUDA graph and runs kernel by kernel, which is slower: {reason}",
            NotCapturedWarning,
            stacklevel=3,
        )

    def _eager(self, batch: Batch) -> Tensor:
        with autocast():
            if self.prepare and not self.prepares_before:
                batch = self.prepare(batch)
            return self.loss(self.model, batch)

    def _key(self, batch: Batch) -> object:
        columns = tuple((name, column.dtype, column.shape) for name, column in batch.items())
        trained = tuple(weight.requires_grad for weight in self._weights)
        return columns, trained, self.model.training, current_precision()


class _Capture:
    """The graph of one loss, with the memory that it reads and writes."""

    def __init__(self, loss: Callable[[Batch], Tensor], model: nn.Module, batch: Batch) -> None:
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        self.batch = {name: column.clone() for name, column in batch.items()}
        device = trained[0].device
        buffers, random = [buffer.clone() for buffer in model.buffers()], torch.cuda.get_rng_state(device)

        def compute() -> tuple[Tensor, list[bool], Tensor]:
            with fresh_leaves(model) as leaves:
                value = loss(self.batch)
                own = [leaves[weight] for weight in trained]
                gradients = torch.autograd.grad(value, own, allow_unused=True)
            used = [gradient is not None for gradient in gradients]
            parts = [
                in_order_of(weight, part) for weight, part in zip(trained, gradients, strict=True) if part is not None
            ]
            return value.detach(), used, torch.cat(parts)

        try:
            side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(side):
                for _ in range(WARMUP):
                    compute()
            torch.cuda.current_stream(device).wait_stream(side)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, capture_error_mode=OTHER_THREADS):
                self.value, used, self.flat = compute()
        finally:
            torch.cuda.set_rng_state(random, device)
            for buffer, before in zip(model.buffers(), buffers, strict=True):
                buffer.copy_(before)
        self.weights = [weight for weight, known in zip(trained, used, strict=True) if known]
        self.trigger = torch.zeros((), device=device, requires_grad=True)  # so that backward() comes here

    def replay(self, batch: Batch) -> Tensor:
        """Return the loss of another batch; its gradients are in ``flat`` until the next replay."""
        for name, column in batch.items():
            self.batch[name].copy_(column, non_blocking=True)
        self.graph.replay()
        return self.value.clone()


@contextmanager
def fresh_leaves(model: nn.Module) -> Iterator[dict[nn.Parameter, nn.Parameter]]:
    """Let a model compute with new parameters in the same memory; yield the new one of each parameter.

    Autograd ties a leaf to the stream of its first use for as long as some result of it lives, such as the loss of the
    last step. A capture, on a stream of its own, fails with "previous error during capture" at such a leaf.
    """
    leaves = {
        weight: nn.Parameter(weight.detach(), requires_grad=weight.requires_grad) for weight in model.parameters()
    }
    places = [(module, name, weight) for module in model.modules() for name, weight in module._parameters.items()]
    try:
        for module, name, weight in places:
            if weight is not None:
                setattr(module, name, leaves[weight])
        yield leaves
    finally:
        for module, name, weight in places:
            setattr(module, name, weight)


def in_order_of(weight: Tensor, gradient: Tensor) -> Tensor:
    """Return a gradient as a row of numbers (numel,), in the order in which the weight's lie in memory."""
    if weight.is_contiguous():
        return gradient.reshape(-1)
    return torch.empty_like(weight).copy_(gradient).as_strided((weight.numel(),), (1,))


def views_like(weights: Sequence[Tensor], flat: Tensor) -> list[Tensor]:
    """Return parts of a row of numbers, one after another, with the shapes and strides of dense weights."""
    found, start = list[Tensor](), 0
    for weight in weights:
        found.append(flat.as_strided(weight.size(), weight.stride(), start))
        start += weight.numel()
    return found


def end_failed_capture(device: torch.device) -> None:
    """Free the GPU's random generator from a capture that failed.

    Torch leaves it in the state of a capture, and refuses every later draw; the end of another capture frees it.
    """
    torch.cuda.synchronize(device)
    with torch.cuda.graph(torch.cuda.CUDAGraph(), capture_error_mode=OTHER_THREADS):
        torch.zeros(1, device=device).add_(1)


class _Replay(torch.autograd.Function):
    """A replay as an operation of autograd, so that terms can be added to its result.

    Gradients come to the weights past autograd, as views of one copy: with hundreds of weights it takes longer than a
    replay.
    """

    @staticmethod
    def forward(ctx: Any, captured: _Capture, batch: Batch, trigger: Tensor) -> Tensor:
        ctx.captured = captured
        return captured.replay(batch)

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> tuple[None, None, None]:
        captured: _Capture = ctx.captured
        for weight, gradient in zip(captured.weights, views_like(captured.weights, captured.flat.clone()), strict=True):
            if weight.grad is None:
                weight.grad = gradient
            else:
                weight.grad += gradient
        return None, None, None


class KeptModels:
    """The last models that were trained on a GPU, with their graphs: capturing takes longer than a client's few steps.

    Parameters
    ----------
    size
        How many are kept; each holds its activations on the GPU.
    """

    def __init__(self, size: int = 2) -> None:
        self.size = size
        self._known: dict[object, GraphedLoss] = {}

    def get(self, key: object, make: Callable[[], GraphedLoss]) -> GraphedLoss:
        """Return the loss that ``make`` made for this key, a model on a GPU with the weights of its last use."""
        found = self._known.pop(key, None) or make()
        self._known[key] = found
        for old in list(self._known)[: -self.size]:
            del self._known[old]
        return found


kept_models = KeptModels()  # of this process
