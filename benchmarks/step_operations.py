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
from contextlib import contextmanager
from typing import Any
from unittest import mock

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fedlab import launch, optimizers, training
from fedlab.config.schema import Config
from fedlab.cuda_graphs import GraphedLoss
from fedlab.models.feature_classifier import head_of
from fedlab.seeds import deterministic, seeded
from fedlab.strategies.dualadapt import client as dualadapt_client
from fedlab.strategies.dualadapt.server import DualAdapt
from fedlab.strategies.dualadapt.server_loss import server_loss
from fedlab.strategies.protocol import arrays_of
from fedlab.strategies.source_only import SourceTrainer
from fedlab.training import null_progress

BATCH, EXAMPLES, CLIENTS = 8, 64, 3
STEPS = 6  # of which all but the first are counted
SMALL = {"server.batch_size": BATCH, "client.batch_size": BATCH, "data.max_examples": EXAMPLES, "device": "cpu"}
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "dualadapt-digits-mcd": {"digits.network": "small", "digits.targets": "usps"},
    "mixer-cifar10-central": {"images.source": "omniglot", "images.size": 32, "precision": "float32"},
}
GRAPHED, OPTIMIZER, REST = "in the graph: loss and gradient", "optimizer and average", "outside of it: draws and views"
# Views of memory and questions about it: no kernel, and next to no time.
FREE = ("detach", "alias", "view", "_unsafe_view", "expand", "select", "slice", "unsqueeze", "squeeze", "as_strided")
FREE += ("permute", "transpose", "t", "unbind", "split", "split_with_sizes", "_local_scalar_dense", "_reshape_alias")


class Operations(TorchDispatchMode):
    """Counts the operations that this thread calls, by the part that is current."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.part = REST

    def __torch_dispatch__(self, func: Any, types: object, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__.partition(".")[0] not in FREE:
            self.counts[self.part] += 1
        return func(*args, **(kwargs or {}))

    @contextmanager
    def within(self, part: str) -> Iterator[None]:
        """Count what the body calls to a part."""
        before, self.part = self.part, part
        try:
            yield
        finally:
            self.part = before

    def of(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function whose operations count to a part."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            with self.within(part):
                return call(*args, **kwargs)

        return counted


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
    operations = Operations()
    patches = (
        mock.patch.object(GraphedLoss, "_eager", operations.of(GRAPHED, GraphedLoss._eager)),
        mock.patch.object(Tensor, "backward", operations.of(GRAPHED, Tensor.backward)),
        mock.patch.object(optimizers.Adam, "step", operations.of(OPTIMIZER, optimizers.Adam.step)),
        mock.patch.object(training.MovingAverage, "update", operations.of(OPTIMIZER, training.MovingAverage.update)),
    )
    found = []
    for patch in patches:
        patch.start()
    try:
        steps(1)  # an optimizer's first step sets up what it remembers
        for count in (1, STEPS):
            operations.counts.clear()
            with operations:
                steps(count)
            found.append(Counter(operations.counts))
    finally:
        for patch in patches:
            patch.stop()
    return {part: (found[1][part] - found[0][part]) / (STEPS - 1) for part in (REST, GRAPHED, OPTIMIZER)}


def host_milliseconds(steps: Callable[[int], object], repeats: int = 5) -> float:
    """Return the least CPU time of a step among several tries."""
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        steps(STEPS)
        best = min(best, time.process_time() - start)
    return 1000 * best / STEPS


def client_steps(config: Config) -> Callable[[int], object]:
    """Return a function that takes so many steps of a DualAdapt client's head and mixture."""
    server = DualAdapt(config.workload, config, null_progress)
    width = server.source_mixture()["means"].shape[-1]
    raise NotImplementedError(width, dualadapt_client, arrays_of)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("presets", nargs="*", default=list(PRESETS), help="those of the table by default")
    print(f"| a step on batches of {BATCH} | {REST} | {GRAPHED} | {OPTIMIZER} | ms of the CPU |\n|---|---|---|---|---|")
    for preset in parser.parse_args().presets:
        config = launch.prepare(preset, {**SMALL, **PRESETS.get(preset, {})})
        with deterministic(1):
            steps = server_steps(config)
            parts = counted(steps)
            cells = " | ".join(f"{count:g}" for count in parts.values())
            print(f"| server of `{preset}` | {cells} | {host_milliseconds(steps):.2f} |")


if __name__ == "__main__":
    main()
