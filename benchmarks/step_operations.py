"""Torch's operations of one training step, by part, and the host's time for it: what keeps a GPU waiting.

Counted on a CPU with small batches, so that there is next to nothing to compute. On a GPU the loss and its gradient are
one launch, a CUDA graph; each operation of another part is a call of the host, and most of them launch a kernel. What
differs on a GPU: Adam is one operation there, copies are counted as on a CPU, where they are none.

    python -m benchmarks.step_operations
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fedlab import launch, optimizers, training
from fedlab.config.schema import Config
from fedlab.cuda_graphs import GraphedLoss
from fedlab.models.feature_classifier import head_of
from fedlab.seeds import deterministic, seeded
from fedlab.strategies.dualadapt.local_head import adapt_head
from fedlab.strategies.dualadapt.mixtures import read_mixture
from fedlab.strategies.dualadapt.server import DualAdapt
from fedlab.strategies.dualadapt.server_loss import server_loss
from fedlab.strategies.source_only import SourceTrainer
from fedlab.training import null_progress

BATCH, EXAMPLES, CLIENTS = 8, 64, 3
STEPS, TIMED = 6, 20  # all but the first are counted
SMALL = {"server.batch_size": BATCH, "client.batch_size": BATCH, "data.max_examples": EXAMPLES, "device": "cpu"}
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "dualadapt-digits-mcd": {"digits.network": "small", "digits.targets": "usps"},
    "mixer-cifar10-central": {"images.source": "omniglot", "images.size": 32, "precision": "float32"},
}
GRAPHED, OPTIMIZER, REST = "in the graph: loss and gradient", "optimizer and average", "outside of it: draws and views"
# Views of memory and questions about it: no kernel, and next to no time.
FREE = ("detach", "alias", "view", "_unsafe_view", "expand", "select", "slice", "unsqueeze", "squeeze", "as_strided")
FREE += ("permute", "transpose", "t", "unbind", "split", "split_with_sizes", "_local_scalar_dense", "_reshape_alias")


class Parts:
    """Knows which part of a step is computed now, and for how long each was.

    Attributes
    ----------
    current
        The part.
    seconds
        CPU time of each.
    """

    def __init__(self) -> None:
        self.current, self.seconds = REST, Counter[str]()
        self._since = time.process_time()

    def enter(self, part: str) -> str:
        """Go on with a part; return the one before."""
        now, before = time.process_time(), self.current
        self.seconds[before] += now - self._since
        self.current, self._since = part, now
        return before

    def of(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that belongs to a part."""

        def within(*args: Any, **kwargs: Any) -> Any:
            before = self.enter(part)
            try:
                return call(*args, **kwargs)
            finally:
                self.enter(before)

        return within

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Follow what the body computes."""
        calls = ((GRAPHED, GraphedLoss, "_eager"), (GRAPHED, Tensor, "backward"))
        calls += ((OPTIMIZER, optimizers.Adam, "step"), (OPTIMIZER, training.MovingAverage, "update"))
        with ExitStack() as patches:
            for part, owner, name in calls:
                patches.enter_context(mock.patch.object(owner, name, self.of(part, getattr(owner, name))))
            yield


class Operations(TorchDispatchMode):
    """Counts the operations that this thread calls, by part."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.parts, self.counts = parts, Counter[str]()

    def __torch_dispatch__(self, func: Any, types: object, args: Any = (), kwargs: Any = None) -> Any:
        """Call an operation, and count it."""
        if func.__name__.partition(".")[0] not in FREE:
            self.counts[self.parts.current] += 1
        return func(*args, **(kwargs or {}))


def server_steps(config: Config) -> Callable[[int], object]:
    """Return a function that takes so many steps of a preset's server."""
    with seeded(0, "server"):
        if config.run.strategy != "dualadapt":
            trainer = SourceTrainer(config.workload, config, null_progress)
            return lambda steps: trainer.train(1, steps, "server")
        server = DualAdapt(config.workload, config, null_progress)
        trainer, mixture = server.trainer, server.source_mixture()
    heads = {partition: head_of(trainer.model).state_dict() for partition in range(CLIENTS)}
    extra = server_loss(trainer, heads, dict.fromkeys(heads, mixture), server.options, 1)
    return lambda steps: trainer.train(1, steps, "server", extra)


def counted(steps: Callable[[int], object]) -> Mapping[str, float]:
    """Return the operations of a step by part, the mean over all but the first."""
    found, parts = [], Parts()
    with parts.followed():
        steps(1)  # an optimizer's first step sets up what it remembers
        for count in (1, STEPS):
            with Operations(parts) as operations:
                steps(count)
            found.append(operations.counts)
    return {part: (found[1][part] - found[0][part]) / (STEPS - 1) for part in (REST, GRAPHED, OPTIMIZER)}


def host_milliseconds(steps: Callable[[int], object], repeats: int = 5) -> float:
    """Return the CPU time of a step outside of the graph and the optimizer, the least of several tries."""
    parts, tries = Parts(), list[float]()
    with parts.followed():
        for _ in range(repeats):
            parts.enter(REST)
            parts.seconds.clear()
            steps(TIMED)
            parts.enter(REST)
            tries.append(parts.seconds[REST])
    return 1000 * min(tries) / TIMED


def client_steps(config: Config) -> Callable[[int], object]:
    """Return a function that takes so many steps of a DualAdapt client's head and mixture."""
    with seeded(0, "client"):
        server = DualAdapt(config.workload, config, null_progress)
        source, quantiles = read_mixture(server.source_mixture(), torch.device("cpu"))
        head, z = head_of(server.trainer.model), torch.randn(EXAMPLES, source.means.shape[-1])

    def steps(count: int) -> None:
        with seeded(0, "steps"):
            adapt_head(head, z, source, quantiles, server.options, replace(config.client, steps=count))

    return steps


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="*", default=list(PRESETS), help="those of the table by default")
    asked = parser.parse_args()
    print(f"| step, batches of {BATCH} | {REST} | {GRAPHED} | {OPTIMIZER} | ms of the CPU outside of these two |")
    print("|---|---|---|---|---|")
    for preset in asked.presets:
        config = launch.prepare(preset, {**SMALL, **PRESETS.get(preset, {})})
        sides = {"server": server_steps} | ({"client": client_steps} if config.run.strategy == "dualadapt" else {})
        for side, steps_of in sides.items():
            with deterministic(1):
                steps = steps_of(config)
                parts = counted(steps)
                cells = " | ".join(f"{count:g}" for count in parts.values())
                print(f"| {side} of `{preset}` | {cells} | {host_milliseconds(steps):.2f} |")


if __name__ == "__main__":
    main()
