"""DP-SGD of a DualAdapt client's head: line 7 with gradients that are clipped for each example, summed, and noised.

The head begins as F_g. In each step every example is drawn with probability q, independently and in secret; the
gradient of its own loss is shortened to norm C; their sum gets Gaussian noise of standard deviation ``gradient_noise``
C and is divided by q times the noised number of examples. Nothing before the noise looks at two examples: labels are
the global head's for each example alone, weights its own p-value under W_S, and features have the server's batch-norm
statistics. The step itself is Adam's, as without privacy, and costs nothing more.

**Source**: Abadi et al., Deep Learning with Differential Privacy, CCS 2016, algorithm 1.

**Departures**: (1) Adam in the place of plain steps; (2) the expected size of a sample is computed from a noised number
of examples, since the number itself is private here.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from fedlab.config.training_options import ClientConfig
from fedlab.errors import ConfigError
from fedlab.models import conformal
from fedlab.models.feature_classifier import probabilities
from fedlab.models.gaussian_mixture import GaussianMixture
from fedlab.optimizers import Adam, cosine_rates
from fedlab.privacy.accounting import Release
from fedlab.privacy.noise import gaussian_noise, poisson_sample
from fedlab.strategies.dualadapt.local_head import local_loss
from fedlab.strategies.dualadapt.private import alone, filled_up
from fedlab.strategies.dualadapt.shared import Options

CHUNK = 256  # examples whose gradients are held at a time

Gradients = dict[str, Tensor]


def check_head(head: nn.Module) -> None:
    """Check that a head treats examples one by one.

    Raises
    ------
    ConfigError
        For one with batch norms, which couple them, or dropout, whose masks are not the examples' own.
    """
    for module in head.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.modules.dropout._DropoutNd):
            raise ConfigError(
                "option 'dualadapt.local_privacy' is 'gradients', and this network's head has a layer "
                f"{type(module).__name__}, under which an example has no gradient of its own; take 'moments'"
            )


def clipped_sum(head: nn.Module, columns: Mapping[str, Tensor], discrepancy_weight: float, clip: float) -> Gradients:
    """Return the sum of the examples' gradients of the local loss, each shortened to norm ``clip``, by weight's name.

    Norms and sums are in float64: in float32 one example more would also change the rounding of all others' sum
    (Casacuberta et al., CCS 2022); a chunk has as many rows whatever the sample's size, for the same reason. A gradient
    that is not finite counts as 0.

    Parameters
    ----------
    columns
        ``z`` (examples, width), ``labels`` (examples,), ``weights`` (examples,), ``p_global`` (examples, classes).
    """
    weights = {name: weight.detach() for name, weight in head.named_parameters()}

    def loss(state: Gradients, z: Tensor, label: Tensor, weight: Tensor, p: Tensor) -> Tensor:
        logits = functional_call(head, state, (z[None],))
        return local_loss(logits, label[None], weight[None], p[None], discrepancy_weight)

    each = vmap(grad(loss), in_dims=(None, 0, 0, 0, 0))
    total = {name: torch.zeros_like(weight, dtype=torch.float64) for name, weight in weights.items()}
    for begin in range(0, len(columns["z"]), CHUNK):
        rows = slice(begin, begin + CHUNK)
        chunk = [filled_up(columns[name][rows], CHUNK) for name in ("z", "labels", "weights", "p_global")]
        gradients = {name: gradient.double() for name, gradient in each(weights, *chunk).items()}  # (examples, *shape)
        norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients.values()]).norm(dim=0)
        factors = (clip / norms.clamp_min(1e-12)).clamp_max(1.0).where(norms.isfinite(), 0.0)
        factors[len(columns["z"][rows]) :] = 0.0  # of what fills the chunk up
        for name, gradient in gradients.items():
            total[name] += torch.einsum("n,n...->...", factors, gradient.nan_to_num(0.0, 0.0, 0.0))
    return total


def fit_private_head(
    head: nn.Module,
    z: Tensor,
    source: GaussianMixture,
    quantiles: Tensor,
    options: Options,
    training: ClientConfig,
    release: Release,
    *,
    examples: int,
    secret: bool,
    start: nn.Module | None = None,
) -> nn.Module:
    """Fit F_l to features z (examples, width) by DP-SGD, from F_g.

    Parameters
    ----------
    source, quantiles
        W_S, and the sorted log-likelihoods (256,) of the source's own features under it.
    release
        Number of steps, rate of the samples and noise.
    examples
        Noised number of examples.
    secret
        True if noise and samples are secret.
    start
        Initial head of a late joiner, in the place of F_g; labels are then those of both averaged.
    """
    check_head(head)
    local = deepcopy(start or head).requires_grad_(True).eval()
    p_global = alone(partial(probabilities, head), z)
    mean_probs = (p_global + alone(partial(probabilities, start), z)) / 2 if start else p_global
    weights = torch.ones(len(z), device=z.device)
    if options.client_weights:  # not normalized to mean 1, which would look at all examples; clipping sets the scale
        log_prob = alone(source.log_prob, z).nan_to_num(-torch.inf)  # NaN would end the round, and tell of itself
        weights = conformal.conformal_p_value(log_prob, quantiles).to(z)
    columns = {"z": z, "labels": mean_probs.argmax(1), "weights": weights, "p_global": p_global}
    rates, optimizer = cosine_rates(training.learning_rate, release.steps), Adam(local.parameters(), 0.0)
    expected, stdv = release.rate * examples, release.gradient_noise * options.clip_norm
    for _ in range(release.steps):
        rows = poisson_sample(len(z), release.rate, secret=secret).to(z.device)
        sample = {name: column[rows] for name, column in columns.items()}
        total = clipped_sum(local, sample, options.client_discrepancy, options.clip_norm)
        for name, weight in local.named_parameters():
            noise = gaussian_noise(weight.shape, stdv, secret=secret).to(total[name])
            weight.grad = ((total[name] + noise) / expected).to(weight)  # rounded after the noise, not before
        optimizer.learning_rate = next(rates)
        optimizer.step()
    return local.requires_grad_(False).eval()
