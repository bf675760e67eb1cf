"""The server's knowledge of who is in a client's data: membership inference on one upload of DualAdapt.

    python -m benchmarks.membership                          # minutes on one core; MNIST-M's client
    python -m benchmarks.membership --client usps --examples 250 --epsilon off 1 --fits 128

The attacker is the server. It has G, F_g, W_S and one upload of the client, head F_l and mixture W_T, and asks of
images whether they were among the client's; it also has other images of the client's domain. Of a pool of twice as many
images as the client has, every fit takes a random half. Each fit is attacked in turn, with the others as shadow fits
(LiRA, Carlini et al. 2022, online): of each statistic, the likelihood ratio of two normal distributions, with the image
and without it; means are the image's own, variances are pooled over images.

* *head*: the logit of the pseudo-label's probability under F_l.
* *density*: log W_T(x).
* *tracing*: sum over components of r_k(x) (x - m_k)' V_k^-1 (m - m_k), with m the uploaded mean and m_k, V_k the shadow
  fits' mean and variances (Dwork et al. 2015), and the same for variances.
* *all*: the sum of the three.

Reported are true positives at 0.1 % and 1 % false positives, in percent, and the area under the curve (50: a guess).
The attacker is given more than the server has: features are taken with the batch-norm statistics of the whole pool, so
it knows the client's features exactly. *off* is DualAdapt as it is; a number is the epsilon of this one upload, at
delta 1e-5 (``dualadapt.local_privacy=moments``).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from benchmarks import cells
from fedlab import launch
from fedlab.config.presets import parse_overrides
from fedlab.config.schema import Config
from fedlab.models.batchnorm_stats import adapt_batchnorm, encode
from fedlab.models.feature_classifier import features_of, head_of, probabilities
from fedlab.models.gaussian_mixture import GaussianMixture
from fedlab.privacy.accounting import Release, noise_multiplier
from fedlab.runs import pretrain_cache
from fedlab.seeds import deterministic, seeded
from fedlab.strategies.dualadapt.local_head import adapt_head
from fedlab.strategies.dualadapt.mixtures import read_mixture
from fedlab.strategies.dualadapt.private import release_features
from fedlab.strategies.dualadapt.server import DualAdapt
from fedlab.strategies.protocol import load
from fedlab.training import null_progress

PRESET, DELTA = "dualadapt-digits-heads", 1e-5
RATES = (0.001, 0.01)  # of false positives
CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class Public:
    """The arrays that both sides know: F_g, W_S and its quantiles."""

    head: nn.Module
    source: GaussianMixture
    quantiles: Tensor


def public_model(config: Config, cache: Path) -> tuple[Public, dict[str, Tensor]]:
    """Return what is public after the pre-training, and the state of G and F_g."""
    half = DualAdapt(config.workload, config, null_progress)
    with pretrain_cache.use_cache(str(cache)), seeded(config.run.seed, "membership start"):
        half.initialize()
    with seeded(config.run.seed, "membership"):
        source, quantiles = read_mixture(half.source_mixture(), CPU)
    model = half.trainer.average
    return Public(head_of(model).eval(), source, quantiles), model.state_dict()


def pool_features(config: Config, client: int, pool: int, state: Mapping[str, Tensor]) -> Tensor:
    """Features (pool, width) of images of a client, under the statistics of them all."""
    data, options = config.workload.data(client, "train"), config.strategy
    if len(data) < pool:
        raise SystemExit(f"{config.clients[client]} has {len(data)} images, and the pool needs {pool}; set FEDLAB_DATA")
    images = data.subsample(pool)
    model = load(config.workload.model(), state, CPU)
    adapt_batchnorm(features_of(model), images, options.bn_images, options.bn_adaptation, CPU)
    return encode(features_of(model), images, CPU)


def upload(z: Tensor, public: Public, config: Config, epsilon: str) -> tuple[nn.Module, GaussianMixture]:
    """Head and mixture of a client with features z (examples, width)."""
    targets = None
    if epsilon != "off":
        release = Release(noise_multiplier(float(epsilon), DELTA, 1))
        synthetic = release_features(z, [public.head], public.source, release, secret=False)
        z, targets = synthetic.features, synthetic.targets
    head, mixture, _ = adapt_head(
        public.head, z, public.source, public.quantiles, config.strategy, config.client, targets=targets
    )
    return head, mixture


def statistics(z: Tensor, uploads: list[tuple[nn.Module, GaussianMixture]], public: Public) -> dict[str, Tensor]:
    """Statistics (fits, pool) of every image of a pool z (pool, width) under every upload."""
    labels = probabilities(public.head, z).argmax(1, keepdim=True)
    p = torch.stack([probabilities(head, z).double().gather(1, labels)[:, 0] for head, _ in uploads])
    mixtures = [mixture for _, mixture in uploads]
    means = torch.stack([mixture.means for mixture in mixtures])  # (fits, components, width)
    variances = torch.stack([mixture.variances for mixture in mixtures])
    mean, variance = means.mean(0), variances.mean(0)
    responsibilities = public.source.responsibilities(z)  # (pool, components)
    first = second = torch.zeros(len(uploads), len(z), dtype=torch.float64)
    for k in range(len(mean)):
        standard = (z.double() - mean[k]) / variance[k].sqrt()  # (pool, width)
        moved = (means[:, k] - mean[k]) / variance[k].sqrt()  # (fits, width)
        widened = variances[:, k] / variance[k] - 1
        first = first + moved @ standard.T * responsibilities[:, k]
        second = second + widened @ (standard.square() - 1).T * responsibilities[:, k] / 2
    return {
        "head": p.clamp(1e-12, 1 - 1e-12).logit(),
        "density": torch.stack([mixture.log_prob(z) for mixture in mixtures]),
        "tracing": first,
        "tracing of variances": second,
    }


def likelihood_ratios(values: Tensor, member: Tensor) -> Tensor:
    """Log likelihood ratios (fits, pool) of a statistic, each fit's by the others.

    Parameters
    ----------
    values, member
        The statistic, and True where the fit had the image: (fits, pool).
    """
    total, own = {}, {}
    for inside in (True, False):
        mask = (member == inside).double()
        count = mask.sum(0) - mask  # of the other fits
        average = ((mask * values).sum(0) - mask * values) / count.clamp_min(1)
        total[inside] = average
        own[inside] = mask
    residual = own[True] * (values - total[True]) + own[False] * (values - total[False])
    variance = {side: (own[side] * residual.square()).sum() / own[side].sum() for side in (True, False)}
    density = {side: -0.5 * ((values - total[side]).square() / variance[side] + variance[side].log()) for side in total}
    return density[True] - density[False]


def attack(z: Tensor, public: Public, config: Config, epsilon: str, fits: int) -> Mapping[str, list[float]]:
    """Attack to true positives at each rate and the area under the curve, in percent."""
    generator = torch.Generator().manual_seed(config.run.seed)
    member = torch.stack(
        [torch.rand(len(z), generator=generator).argsort().argsort() < len(z) // 2 for _ in range(fits)]
    )
    uploads = []
    for number, rows in enumerate(member):
        with seeded(config.run.seed, "shadow", number):
            uploads.append(upload(z[rows], public, config, epsilon))
    ratios = {name: likelihood_ratios(v, member) for name, v in statistics(z, uploads, public).items()}
    ratios["tracing"] = ratios["tracing"] + ratios.pop("tracing of variances")
    ratios["all"] = torch.stack(list(ratios.values())).sum(0)
    return {name: figures(score.flatten().numpy(), member.flatten().numpy()) for name, score in ratios.items()}


def figures(score: np.ndarray, member: np.ndarray) -> list[float]:
    """True positives at each rate and the area under the curve, in percent."""
    outside = np.sort(score[~member])
    limits = [outside[int(np.ceil((1 - rate) * len(outside))) - 1] for rate in RATES]
    return [
        *(100 * float((score[member] > limit).mean()) for limit in limits),
        100 * float(roc_auc_score(member, score)),
    ]


def main() -> None:
    """Attack what is asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="key=value of the run")
    parser.add_argument("--client", default="mnist_m")
    parser.add_argument("--examples", type=int, nargs="+", default=[250, 2500])
    parser.add_argument("--epsilon", nargs="+", default=["off", "8", "1"], help="off, or numbers")
    parser.add_argument("--fits", type=int, default=64, help="shadow fits, each of which is attacked")
    parser.add_argument("--runs", type=Path, default=Path("runs/tables"), help="where the pre-training is kept")
    options = parser.parse_args()
    config = launch.resolve_config(
        PRESET, {"threads": 1, "dualadapt.source_only_twin": False, **parse_overrides(options.overrides)}
    )
    columns = ("examples", "epsilon", "attack", *(f"true positives at {100 * rate:g} %" for rate in RATES), "area")
    title = f"membership of {options.client}'s images in one upload, {options.fits} fits"
    with deterministic(1):
        public, state = public_model(config, options.runs / "pretrained")
        for count in options.examples:
            table = cells.table(title, columns)
            client = config.clients.index(options.client)
            z = pool_features(config, client, 2 * count, state)
            for epsilon in options.epsilon:
                for name, found in attack(z, public, config, epsilon, options.fits).items():
                    table.add_row(f"{count:,}", epsilon, name, *(f"{value:.1f}" for value in found))
                table.add_section()
            Console(width=120).print(table)


if __name__ == "__main__":
    main()
