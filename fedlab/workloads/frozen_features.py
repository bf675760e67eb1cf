"""Features of images under the frozen stages of a backbone, computed once on a machine.

Results depend on the images, the network, the random views, torch's version and the kind of device; these name the
cache's file (:mod:`fedlab.data.images.feature_cache`). On a CPU every batch is computed on one thread, as many batches
at a time as the process has threads: ``threads`` of the run, and before it begins torch's own number, unless a user set
``threads``. This number changes the time and not the bits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache

import joblib
import torch
from torch import Tensor, nn

from fedlab.data.cache import cache_key
from fedlab.data.images import feature_cache
from fedlab.data.images.image_stores import ImageStore, content_key
from fedlab.data.pixels import bytes_to_float
from fedlab.errors import ConfigError
from fedlab.models.backbones import fold_batch_norms, split_stages
from fedlab.seeds import deterministic, seeded
from fedlab.training import resolve_device
from fedlab.workloads.backbones import load_backbone, stages_of

FORMAT = "1"  # of what is computed
BATCH = 32  # images a pass
READ = 256  # images that are decoded at a time
VIEW_SEED = 2108  # random views are the same in all runs, so that their features are computed once

View = Callable[[Tensor], Tensor]
LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class FrozenStages:
    """The frozen stages of a backbone.

    Attributes
    ----------
    network
        Name of the backbone.
    weights
        File of its weights; empty: where they lie by default.
    trained
        Number of its last stages that are not frozen.
    device
        Name of the device that features are computed on, see :func:`fedlab.training.resolve_device`.
    """

    network: str
    weights: str
    trained: int
    device: str

    def features(self, store: ImageStore, view: View | None = None, views: int = 0, view_name: str = "") -> Tensor:
        """Return features of all images of a store, without views (images, ...), else (images, 1 + views, ...).

        Parameters
        ----------
        view, views
            A random view of images (batch, 3, size, size), and how many of each image follow the image itself.
        view_name
            Names everything that ``view`` depends on.

        Raises
        ------
        ConfigError
            When the network is not on this machine, or cannot read images of this size.
        """
        device = resolve_device(self.device)
        shape = _shape_of(self, store.size)
        sizes = (len(store.names), *((1 + views,) if views else ()), *shape)
        kind = f"{torch.__version__} {device.type} {torch.backends.cpu.get_cpu_capability()}"
        source = load_backbone(self.network, self.weights).sha256
        made_of = (FORMAT, self.network, source, str(self.trained), content_key(store), kind, f"{views} {view_name}")
        key = cache_key(*made_of)

        def fill(rows: feature_cache.Rows) -> None:
            LOG.info("computing features of %s images, %s times", f"{len(rows):,}", 1 + views)
            for number in range(1 + views):
                for start, part in self._passes(store, device, view if number else None, number):
                    whole = rows[start : start + len(part)]
                    (whole[:, number] if views else whole)[...] = part.numpy()

        return feature_cache.get_or_compute(key, sizes, fill)

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        """Return features (images, ...) of images (images, 3, size, size) in [-1, 1], on the CPU."""
        device = resolve_device(self.device)
        frozen = _frozen(self.network, self.weights, self.trained, device.type)

        def one(x: Tensor) -> Tensor:
            with torch.no_grad():  # each thread has its own mode
                z: Tensor = frozen(x.to(device, memory_format=torch.channels_last))
            return z.float().contiguous().cpu()

        at_once = min(joblib.cpu_count(), torch.get_num_threads()) if device.type == "cpu" else 1
        with deterministic(1), ThreadPoolExecutor(at_once) as pool:
            return torch.cat(list(pool.map(one, torch.split(pixels, BATCH))))

    def _passes(
        self, store: ImageStore, device: torch.device, view: View | None, number: int
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield first row and features (rows, ...) of a few hundred images at a time."""
        for start in range(0, len(store.names), READ):
            x = bytes_to_float(store.pixels(range(start, min(start + READ, len(store.names)))))
            if view is not None:
                with seeded(VIEW_SEED, "source views", number, start):
                    x = view(x)
            yield start, self(x)


@lru_cache(maxsize=8)
def _shape_of(stages: FrozenStages, size: int) -> tuple[int, ...]:
    try:
        return tuple(stages(torch.zeros(1, 3, size, size)).shape[1:])
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ConfigError(f"network={stages.network} cannot read images of {size} pixels ({error})") from error


@lru_cache(maxsize=2)
def _frozen(network: str, weights: str, trained: int, device: str) -> nn.Module:
    backbone = load_backbone(network, weights)
    frozen, _ = split_stages(stages_of(backbone, trained, network), trained)
    return fold_batch_norms(deepcopy(frozen)).to(device)
