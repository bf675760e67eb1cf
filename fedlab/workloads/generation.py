"""Image generation: a diffusion model or a score network, learned from images without labels by denoising.

Clients have parts of the source domain, label-skewed or not, or a domain each; labels are read to divide images only.
The server has all of the source's training images: for ``source_only``, which is then the centralized bound, and for
pre-training.

``generation.process`` is the noise: ``ddpm`` and ``gamma`` are Markov chains of ``num_timesteps`` steps by
``schedule``, ``ncsn`` has ``num_timesteps`` noise levels from ``sigma_min`` to ``sigma_max``. Any network can be
combined with any process; only the norms of ``ncsn1`` are conditioned on the level, and with ``ncsn`` its output is the
score itself.

**Source**: see ``fedlab/diffusion`` and ``fedlab/models/unet.py``, ``refinenet.py``.

**Departures**: (1) optimizer and gradient clipping belong to strategies (``client.optimizer``,
``client.max_grad_norm``), and there is no warm-up; (2) averaging of the model is the strategy's (``server.ema_decay``);
(3) images are not dequantized.

**Metrics** of a client: ``loss``, the mean squared error of the predicted noise in held-out images, 1 for a network
that predicts 0; each image at one level, evenly distributed, with the same noise in every round. **Of the server**,
every ``sample_every`` rounds: those of ``fedlab/workloads/sampling.py`` over ``generation.samples`` generated images.
"""

from __future__ import annotations

from pydantic.dataclasses import dataclass
from torch import nn

from fedlab.metrics import FRACTION, Metric, Phase
from fedlab.training import Progress, null_progress
from fedlab.workload import Score, WorkloadSpec
from fedlab.workloads import sampling
from fedlab.workloads.denoising import Denoising


@dataclass(frozen=True)
class Generation(Denoising):
    """The workload: denoising, and metrics of generated images."""

    def __post_init__(self) -> None:
        """Refuse what does not go together, samplers included."""
        super().__post_init__()
        sampling.check(self)

    def score(self, model: nn.Module, progress: Progress = null_progress) -> Score:
        """Return metrics and pictures of generated images, from torch's current random stream."""
        return sampling.score(self, model, progress) if self.samples else Score()


IMAGE_QUALITY = (
    Metric("frechet", "Fréchet distance", higher_is_better=False, order=1),
    Metric("inception_frechet", "Fréchet inception distance", higher_is_better=False, order=2),
    Metric("precision", unit=FRACTION, higher_is_better=True, order=3),
    Metric("recall", unit=FRACTION, higher_is_better=True, order=4),
    Metric("label_*", higher_is_better=False, order=5),
    Metric("*_real", "real data", role="reference"),
)

SPEC = WorkloadSpec(
    Generation, primary_metric="frechet", metrics=IMAGE_QUALITY, phases=(Phase("samples", "samples are drawn"),)
)
