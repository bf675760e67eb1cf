"""Local differential privacy of what a DualAdapt client sends, for each of its examples.

The client releases once a round: noised class moments of its features (``fedlab.models.class_moments``). Then it draws
synthetic features from them, and everything that it sends is made of these as it is otherwise made of its own: head,
mixture, quantiles, losses. So one epsilon covers all, and the server may be curious. With ``gradients`` the head is
trained by DP-SGD on its own features (``private_head.py``), and the moments are for the rest.

What one example changes is bounded because nothing before the noise looks at two examples: features are taken with the
server's batch-norm statistics, labels are the global head's for each example alone, and all examples take part. So
``bn_adaptation``, ``pseudo_labels``, ``class_balance`` and ``max_features`` do not touch the release. The number of
examples is replaced by the noised one.

**Guarantee**: (epsilon, delta) for each training example of a client, present or absent, against the server and
everybody else, over all rounds, with secret noise. Neither the time that a client takes nor the text of an error is
covered; accuracies on a client's test data are not sent where noise is secret.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from fedlab.config.schema import Config
from fedlab.data.dataset import ArrayDataset
from fedlab.errors import ConfigError
from fedlab.models import class_moments
from fedlab.models.feature_classifier import features_of, probabilities
from fedlab.models.gaussian_mixture import GaussianMixture
from fedlab.privacy.accounting import PrivacyAccount, Release, gradient_noise, noise_multiplier
from fedlab.privacy.noise import gaussian_noise
from fedlab.strategies.dualadapt.shared import BATCH, Options

PUBLIC_ROWS = 5000  # features drawn from W_S, whose class moments are the public ones
SYNTHETIC_ROWS = 300  # features of each class drawn from the noised moments
MOMENTS_SHARE = 0.25  # of the squared signal that a budget allows: of the moments, beside gradients
LARGEST = 1e6  # value of a feature
MIN_SIGNAL = 0.3  # of the moments, mean over classes; below it targets are the global head's probabilities


@dataclass(frozen=True, eq=False)
class Synthetic:
    """Features (rows, width) drawn from noised moments, targets (rows, classes), and the noised number of examples."""

    features: Tensor
    targets: Tensor
    examples: int


def release_of(config: Config) -> Release | None:
    """Return what a client releases in a round; None without local privacy.

    Raises
    ------
    ConfigError
        When neither the noise nor a budget that it could be computed from is given, or the number of steps of gradients
        is not.
    """
    options: Options = config.strategy
    if options.local_privacy == "off":
        return None
    if not (options.noise_multiplier or config.dp.max_epsilon):
        raise ConfigError(
            f"option 'dualadapt.local_privacy' is {options.local_privacy!r} and nothing says how much noise; set "
            "dp.max_epsilon, or dualadapt.noise_multiplier"
        )
    budget = config.dp.max_epsilon, config.dp.delta, config.run.rounds
    if options.local_privacy == "moments":
        return Release(options.noise_multiplier or noise_multiplier(*budget))
    if config.client.epochs or not config.client.steps:
        raise ConfigError(
            "option 'dualadapt.local_privacy' is 'gradients', and the number of steps would depend on the number of "
            "examples, which is private; give client.steps, and no client.epochs"
        )
    release = Release(
        options.noise_multiplier or noise_multiplier(*budget) / MOMENTS_SHARE**0.5,
        steps=config.client.steps,
        rate=options.sampling_rate,
        gradient_noise=options.noise_multiplier,
    )
    return release if options.noise_multiplier else replace(release, gradient_noise=gradient_noise(*budget, release))


def account_of(config: Config) -> PrivacyAccount | None:
    """Return an empty account of one client's releases; None without local privacy.

    Raises
    ------
    ConfigError
        As :func:`release_of`, and when the budget does not allow one release.
    """
    release = release_of(config)
    if release is None:
        return None
    account = PrivacyAccount(config.dp, "example", release, secret=config.secret_noise)
    if reason := account.exhausted():
        raise ConfigError(f"option 'dp.max_epsilon': no round can be run, {reason}")
    return account


@torch.no_grad()
def plain_features(model: nn.Module, data: ArrayDataset, device: torch.device) -> Tensor:
    """Return a client's features (examples, width) under G with the server's batch-norm statistics.

    They are finite and at most ``LARGEST``, whatever the example is: one that made the round fail would tell that it
    is there. Every batch has as many inputs, the last one with zeros for those that it lacks: a library may round in
    another way for one or two rows than for many, and so an example's features would tell how many others there are.

    Raises
    ------
    ConfigError
        When an example has several rows of features.
    """
    features, parts = features_of(model).eval(), []
    for batch in data.batches(BATCH):
        x = batch["x"].to(device)
        z = features(filled_up(x, BATCH))
        if len(z) != BATCH:
            raise ConfigError(
                "option 'dualadapt.local_privacy' protects one row of features for each example, and this workload's "
                f"examples have {len(z) // BATCH} rows each; set it to off"
            )
        parts.append(z[: len(x)])
    return torch.cat(parts).nan_to_num(0.0).clamp(-LARGEST, LARGEST)


def alone(function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """Return a function of rows (rows, ...) that treats each by itself, to the bit as with any number of others."""
    return torch.cat([function(part) for part in torch.split(filled_up(rows, BATCH), BATCH)])[: len(rows)]


def filled_up(rows: Tensor, size: int) -> Tensor:
    """Return rows (rows, ...) with zeros after them, up to the next multiple of ``size``."""
    return torch.cat([rows, rows.new_zeros(-len(rows) % size, *rows.shape[1:])])


def release_features(
    z: Tensor, heads: Sequence[nn.Module], source: GaussianMixture, release: Release, *, secret: bool
) -> Synthetic:
    """Release the noised class moments of features z (examples, width), and return features drawn from them.

    Parameters
    ----------
    heads
        F_g, and the initial head of a late joiner if there is one; their mean probabilities label an example.
    source
        W_S, from which the public moments come.
    release
        How much noise.
    secret
        True if the noise is secret.
    """

    def probabilities_of(rows: Tensor) -> Tensor:
        return torch.stack([alone(partial(probabilities, head), rows) for head in heads]).mean(0)

    drawn = source.sample(PUBLIC_ROWS).to(z)
    p = probabilities_of(drawn)
    public = class_moments.class_moments(drawn, p.argmax(1), p.shape[1], variance_floor=1e-6)
    sums = class_moments.clipped_sums(z, probabilities_of(z).argmax(1), public)
    stdv = release.noise_multiplier * class_moments.SENSITIVITY
    noised = sums + gaussian_noise(sums.shape, stdv, secret=secret).to(sums)
    moments = class_moments.denoise(noised, public, stdv)
    drawn, labels = class_moments.sample(moments, SYNTHETIC_ROWS)
    features = drawn.to(z)
    clear = bool(moments.signal.mean() >= MIN_SIGNAL)
    targets = one_hot(labels, p.shape[1]).to(p) if clear else probabilities_of(features)
    return Synthetic(features, targets, max(1, round(float(moments.counts.sum()))))
