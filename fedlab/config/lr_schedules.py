"""Learning rates by round: constant, in steps, or along a cosine, each after a linear warm-up.

A rate is a function of the round, and a cosine's of the number of rounds too; nothing is remembered from round to
round. So a resumed run and every engine have the same rates.

**Source**: Goyal et al., Accurate, Large Minibatch SGD, 2017 (warm-up, steps); Loshchilov and Hutter, SGDR, ICLR 2017
(cosine). There an epoch is what a round is here.
"""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Literal, Self

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedlab.config.sections import Fraction, PositiveFloat
from fedlab.errors import ConfigError, plural

STEP_FACTOR = 0.1  # usual
SMALLEST = 1e-30  # factor; many steps would make it 0


@dataclass(frozen=True)
class ScheduledConfig:
    """A section of options with a learning rate by round, as ``server`` and ``client`` are."""

    learning_rate: PositiveFloat = Field(1e-3, description="learning rate")
    lr_schedule: Literal["auto", "constant", "step", "cosine"] = Field(
        "auto",
        description="learning_rate by round: constant; step (every lr_step_rounds); cosine (to final_lr_fraction in "
        "the last round); auto: cosine where final_lr_fraction is below 1, else constant",
    )
    lr_step_rounds: int = Field(0, ge=0, description="rounds between two steps of lr_schedule=step")
    lr_step_factor: Fraction = Field(STEP_FACTOR, description="factor of learning_rate at each step")
    lr_warmup_rounds: int = Field(
        0, ge=0, description="rounds in which learning_rate rises linearly before lr_schedule begins"
    )
    final_lr_fraction: Fraction = Field(
        1.0, description="fraction of learning_rate that is left in the last round, by a cosine"
    )

    def at_round(self, server_round: int, rounds: int) -> Self:
        """Return the options with the learning rate of a round of a run of ``rounds`` rounds."""
        factor = lr_factor(self, server_round, rounds)
        return self if factor == 1 else replace(self, learning_rate=self.learning_rate * factor)


SCHEDULE_FIELDS = tuple(field.name for field in fields(ScheduledConfig) if field.name != "learning_rate")


def lr_factor(options: ScheduledConfig, server_round: int, rounds: int) -> float:
    """Return the factor of the learning rate in a round, counted from 1, of a run of ``rounds`` rounds.

    In the W rounds of a warm-up it is 1 / (W + 1), 2 / (W + 1), ...; the schedule begins after them. In round 0, which
    trains nothing, it is 1.
    """
    warmup = options.lr_warmup_rounds
    if not server_round:
        return 1.0
    if server_round <= warmup:
        return server_round / (warmup + 1)
    if options.lr_schedule == "step":
        return max(SMALLEST, options.lr_step_factor ** ((server_round - warmup - 1) // options.lr_step_rounds))
    return cosine_factor(options.final_lr_fraction, server_round - warmup, rounds - warmup)


def cosine_factor(final: float, server_round: int, rounds: int) -> float:
    """Return the factor of a learning rate in a round: 1 in the first, ``final`` in the last, a cosine between them.

    >>> [cosine_factor(0.2, server_round, 3) for server_round in (1, 2, 3)]
    [1.0, 0.6, 0.2]
    """
    if final == 1 or rounds < 2:
        return 1.0
    return final + (1 - final) * (1 + math.cos(math.pi * (server_round - 1) / (rounds - 1))) / 2


def check_length(section: str, options: ScheduledConfig, rounds: int) -> None:
    """Refuse a warm-up that never ends in a run of ``rounds`` rounds, and a step that would come after it.

    Raises
    ------
    ConfigError
        With the option and what the run has room for.
    """
    warmup, wait = options.lr_warmup_rounds, options.lr_step_rounds
    if warmup >= rounds:
        raise ConfigError(
            f"option '{section}.lr_warmup_rounds': after a warm-up of {plural(warmup, 'round')} none of the run's "
            f"{rounds} has "
            f"the full learning rate; set at most {rounds - 1}, or raise rounds"
        )
    if options.lr_schedule == "step" and warmup + wait >= rounds:
        raise ConfigError(
            f"option '{section}.lr_step_rounds': the first step would come in round {warmup + wait + 1}, and the run "
            f"has {rounds}; set at most {rounds - warmup - 1}, or raise rounds"
            if rounds - warmup > 1
            else f"option '{section}.lr_schedule': a run of {plural(rounds, 'round')}, {warmup} of them warm-up, "
            "has room for no "
            f"step; raise rounds, or set {section}.lr_schedule=constant"
        )


def check_schedule(section: str, options: ScheduledConfig) -> None:
    """Refuse options of a schedule that have no effect, or without which it has none.

    Parameters
    ----------
    section
        Where the options are: "server" or "client".

    Raises
    ------
    ConfigError
        With the option to set.
    """
    kind, falls = options.lr_schedule, options.final_lr_fraction < 1
    if kind == "cosine" and not falls:
        raise ConfigError(
            f"option '{section}.lr_schedule': a cosine falls to {section}.final_lr_fraction of the learning rate, "
            f"which is 1; set {section}.final_lr_fraction=0.01, for example"
        )
    if kind in ("constant", "step") and falls:
        raise ConfigError(
            f"option '{section}.final_lr_fraction': it says to what a cosine falls and has no effect with "
            f"{section}.lr_schedule={kind}; set it to 1, or {section}.lr_schedule=cosine"
        )
    if kind == "step" and not options.lr_step_rounds:
        raise ConfigError(
            f"option '{section}.lr_step_rounds': {section}.lr_schedule=step needs the number of rounds between two "
            f"steps; set {section}.lr_step_rounds=10, for example"
        )
    if kind != "step" and (options.lr_step_rounds or options.lr_step_factor != STEP_FACTOR):
        given = "lr_step_rounds" if options.lr_step_rounds else "lr_step_factor"
        raise ConfigError(
            f"option '{section}.{given}' has no effect with {section}.lr_schedule={kind}; set "
            f"{section}.lr_schedule=step, or leave it out"
        )
