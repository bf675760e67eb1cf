"""Lines 11 and 12 of DualAdapt: the discrepancy of the clients' heads on pseudo-targets, which trains G alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy

from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from fedlab.cuda_graphs import GraphedLoss
from fedlab.data.dataset import Batch
from fedlab.data.random_batches import RandomBatches, joined, parted
from fedlab.losses.discrepancy import discrepancy
from fedlab.models import conformal, gaussian_mixture
from fedlab.models.batchnorm_stats import frozen_stats
from fedlab.models.feature_classifier import features_of, head_of
from fedlab.strategies.dualadapt.mixtures import pad_quantiles, read_mixture
from fedlab.strategies.dualadapt.shared import Options
from fedlab.strategies.protocol import load
from fedlab.strategies.source_only import SourceTrainer, made


def server_loss(
    trainer: SourceTrainer,
    heads: Mapping[int, Mapping[str, Tensor]],
    mixtures: Mapping[int, Mapping[str, Tensor]],
    options: Options,
    server_round: int,
) -> Callable[[int], Tensor]:
    """Return the weighted discrepancy between F_g and the clients' heads (line 12) as a function of the step.

    Parameters
    ----------
    trainer
        Trainer of G and F_g, from whose source pseudo-targets are made.
    heads
        F_l by partition, of the clients that take part.
    mixtures
        W_T and its quantiles by partition, of these clients at least.
    server_round
        Names the random stream of pseudo-targets, with the step.
    """
    model, head, device, batches = trainer.model, head_of(trainer.model), trainer.device, trainer.batches
    stacked = [load(deepcopy(head), state, device).requires_grad_(False).eval() for state in heads.values()]
    weights, buffers = stack_module_state(stacked)
    received = [read_mixture(mixtures[partition], device) for partition in heads]
    target_mixtures = gaussian_mixture.stack([mixture for mixture, _ in received])
    reference = pad_quantiles([quantiles for _, quantiles in received]).double().sort(-1).values

    def local_heads(z: Tensor) -> Tensor:  # (batch, width) -> (clients, batch, classes)
        call = vmap(lambda state, extra: functional_call(stacked[0], (state, extra), (z,)))
        logits: Tensor = call(weights, buffers)
        return logits.softmax(2)

    def discrepancy_on(model: nn.Module, batch: Batch) -> Tensor:
        with frozen_stats(model):
            z = features_of(model)(batch["x"])
            frozen = {name: weight.detach() for name, weight in head_of(model).named_parameters()}
            p = functional_call(head_of(model), frozen, (z,)).softmax(1)
        q = local_heads(z)
        d = discrepancy(p.expand_as(q).flatten(0, 1), q.flatten(0, 1)).view(len(heads), -1)  # (clients, batch)
        if options.server_weights:
            typical = conformal.p_value_of_sorted(target_mixtures.log_prob(z.detach()), reference)
            d = conformal.mean_normalized(typical).to(d) * d
        return options.server_discrepancy * d.mean()

    def prepare(drawn: Batch) -> Batch:
        return {"x": pseudo_targets(batches, options.mixup, drawn)}

    objective = GraphedLoss(discrepancy_on, model, trainer.objective.enabled, prepare)

    def loss(step: int) -> Tensor:
        names = trainer.seed, "pseudo-targets", server_round, step
        return objective(joined(batches.draw_several_at(2, *names)))

    return loss


def pseudo_targets(batches: RandomBatches, mixup: str, drawn: Batch) -> Tensor:
    """Return images (batch, ...) mixed from two source images each (line 11); with mixup "off", source images.

    Parameters
    ----------
    mixup
        "average", "difference" or "off".
    drawn
        What two batches are made of.
    """
    first, second = parted(drawn, 2)
    x = made(batches, first)["x"]
    if mixup == "off":
        return x
    other = made(batches, second)["x"]
    return (x + other) / 2 if mixup == "average" else (x - other).abs() - 1  # |u - v| of [0, 1], back in [-1, 1]
