"""DualAdapt's options, and the names of its records in messages."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedlab.config.sections import NonNegativeFloat
from fedlab.strategies.client_adaptation import OFF, ClientAdapt

HEAD, MIXTURE, LAST, CONTROL, START = "head", "mixture", "last", "control", "start"
ONLY_MIXTURE = "only-mixture"  # in the config of a late joiner's first message
CANDIDATE = "candidate-"  # and a partition: names of heads in that message
CHOSEN_BY_CLIENT = ("balanced", "agreement")  # initial heads that only a late joiner's data can tell
QUANTILES = 256  # of a mixture's log-likelihood on its own data, sent with it
SOURCE_ROWS = 6000  # source features that W_S is fitted to, at most
BATCH = 500  # images per forward pass without gradients
WEIGHTS_TOLERANCE = 0.05  # half precision may move the sum of a mixture's weights this far from 1


@dataclass(frozen=True)
class Options:
    """DualAdapt's ingredients, each with its own switch."""

    client_discrepancy: NonNegativeFloat = Field(
        0.1, description="weight of the discrepancy on the client (line 7); 0: off"
    )
    server_discrepancy: NonNegativeFloat = Field(
        0.2, description="weight of the discrepancy on the server (line 12); 0: off"
    )
    server_steps: Literal["joint", "separate"] = Field(
        "joint", description="lines 12 and 13: one step on the sum of both losses, or a step on each in turn"
    )
    client_weights: bool = Field(True, description="weight target examples by their typicality for the source mixture")
    server_weights: bool = Field(True, description="weight pseudo-targets by their typicality for a client's mixture")
    mixup: Literal["average", "difference", "off"] = Field(
        "average", description="pseudo-targets: averages or absolute differences of two source images, or source images"
    )
    components: int = Field(10, ge=1, description="components of each mixture")
    em_steps: int = Field(15, ge=1, description="EM steps of the source mixture")
    variance_floor: float = Field(1e-2, gt=0, allow_inf_nan=False, description="added to every variance of a mixture")
    pseudo_labels: Literal["global", "propagated"] = Field(
        "propagated", description="targets of the local head: the global head's, or those smoothed over neighbors"
    )
    num_neighbors: int = Field(10, ge=1, description="neighbors of an example in the graph of propagated labels")
    max_features: int = Field(
        12000, ge=2, description="features of a client that its head is fitted to in a round, at most; drawn at random"
    )
    class_balance: float = Field(1.0, ge=0, le=1, description="how far pseudo-label classes are balanced; 0: not")
    bn_adaptation: float = Field(
        0.75, ge=0, le=1, description="weight of a client's own batch-norm statistics in those it uses; 0: the source's"
    )
    bn_images: int = Field(1000, ge=2, description="images of a client that these statistics are taken from")
    onboarding: int = Field(2, ge=0, description="rounds in which only late joiners and the server adapt; 0: none")
    late_joiner_init: Literal["nearest", "global", "random", "fresh", "balanced", "agreement"] = Field(
        "agreement",
        description="initial head of a late joiner: that of the client whose mixture is nearest to its own, the global "
        "head, that of a client drawn at random, fresh weights, the global head balanced over its classes, or the "
        "client's head that agrees most with its propagated labels where it does so clearly more than the global one",
    )
    source_only_twin: bool = Field(
        True, description="train and test a source-only baseline as well, and after the last round test the last G"
    )
    local_privacy: Literal["off", "moments", "gradients"] = Field(
        "off",
        description="moments: all that a client sends is made of noised class moments of its features, so that it is "
        "differentially private for each example; gradients: its head is trained by DP-SGD instead",
    )
    noise_multiplier: NonNegativeFloat = Field(
        0.0,
        description="noise on these moments, and on the gradients of a step, in units of what one example can change; "
        "0: the least that dp.max_epsilon allows over all rounds",
    )
    clip_norm: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="largest norm of an example's gradient (local_privacy=gradients)"
    )
    sampling_rate: float = Field(
        0.1, gt=0, le=1, description="probability with which an example is in a step (local_privacy=gradients)"
    )
    client_adapt: ClientAdapt = OFF
