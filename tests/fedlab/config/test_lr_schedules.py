"""Learning rates by round: their factors, and what is refused."""

from __future__ import annotations

import pytest

from fedlab.config.lr_schedules import SMALLEST, check_schedule, cosine_factor, lr_factor
from fedlab.config.training_options import ClientConfig, ServerConfig
from fedlab.errors import ConfigError

TENTHS = {"lr_schedule": "step", "lr_step_rounds": 2}


def factors(rounds=5, **options):
    return [lr_factor(ClientConfig(**options), server_round, rounds) for server_round in range(1, rounds + 1)]


def test_a_rate_falls_by_a_cosine_from_the_first_round_to_the_last():
    expected = [1, 0.2 + 0.8 * (1 + 0.5**0.5) / 2, 0.6, 0.2 + 0.8 * (1 - 0.5**0.5) / 2, 0.2]
    assert [cosine_factor(0.2, number, 5) for number in range(1, 6)] == pytest.approx(expected)
    assert cosine_factor(0.2, 1, 1) == cosine_factor(1.0, 4, 9) == 1.0
    for kind in ("auto", "cosine"):
        assert factors(lr_schedule=kind, final_lr_fraction=0.2) == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["auto", "constant"])
def test_without_more_it_is_the_same_in_every_round(kind):
    assert factors(lr_schedule=kind) == [1.0] * 5
    options = ServerConfig(lr_schedule=kind)
    assert options.at_round(3, 5) is options


def test_steps_and_a_warm_up_before_them():
    assert factors(**TENTHS) == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    assert factors(**TENTHS, lr_step_factor=0.5, lr_warmup_rounds=2) == pytest.approx([1 / 3, 2 / 3, 1, 1, 0.5])
    assert factors(final_lr_fraction=0.2, lr_warmup_rounds=2) == pytest.approx([1 / 3, 2 / 3, 1, 0.6, 0.2])
    assert factors(2, lr_warmup_rounds=3) == [0.25, 0.5]
    assert lr_factor(ClientConfig(lr_warmup_rounds=3), 0, 5) == 1.0
    assert ServerConfig(**TENTHS, learning_rate=3.0).at_round(3, 5).learning_rate == pytest.approx(0.3)
    assert lr_factor(ClientConfig(**TENTHS), 10_000, 10_000) == SMALLEST


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"lr_schedule": "cosine"}, "'server.lr_schedule': a cosine falls to .* which is 1"),
        ({"lr_schedule": "constant", "final_lr_fraction": 0.5}, "'server.final_lr_fraction'.*no effect"),
        ({**TENTHS, "final_lr_fraction": 0.5}, "'server.final_lr_fraction'.*lr_schedule=step"),
        ({"lr_schedule": "step"}, "'server.lr_step_rounds'.*needs the number of rounds"),
        ({"lr_step_rounds": 3}, "'server.lr_step_rounds' has no effect"),
        ({"lr_step_factor": 0.5, "final_lr_fraction": 0.5}, "'server.lr_step_factor' has no effect"),
    ],
)
def test_options_without_an_effect_are_refused(options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        check_schedule("server", ServerConfig(**options))
