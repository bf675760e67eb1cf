"""Sampling of clients: the same draw everywhere, the asked number, replacements, weights and schedules."""

from __future__ import annotations

import numpy as np
import pytest

from fedlab.comm.sampling import Sampler, read_schedule
from fedlab.errors import ConfigError

EVERYONE = range(100)
NAMES = {0: "usps", 1: "svhn", 2: "mnist_m"}


def test_a_draw_depends_on_seed_phase_and_round_and_on_nothing_else():
    first = Sampler(3, 0.1).draw("train", 5, EVERYONE, EVERYONE)
    np.random.seed(1)
    assert Sampler(3, 0.1).draw("train", 5, list(EVERYONE)[::-1], set(EVERYONE)) == first
    others = [
        Sampler(4, 0.1).draw("train", 5, EVERYONE, EVERYONE),
        Sampler(3, 0.1).draw("evaluate", 5, EVERYONE, EVERYONE),
        Sampler(3, 0.1).draw("train", 6, EVERYONE, EVERYONE),
    ]
    assert len(first) == 10 and all(other != first for other in others)


def test_everyone_takes_part_at_a_fraction_of_one():
    assert Sampler(0).draw("train", 1, EVERYONE, EVERYONE) is None


def test_a_secret_draw_does_not_repeat_and_replaces_nobody():
    sampler = Sampler(3, 0.1, secret=True)
    draws = [sampler.draw("train", 5, EVERYONE, EVERYONE) for _ in range(20)]
    assert all(len(drawn) == 10 for drawn in draws) and len(set(map(frozenset, draws))) == 20
    with_absent = [sampler.draw("train", 5, EVERYONE, range(50)) for _ in range(200)]
    assert all(drawn <= set(range(50)) for drawn in with_absent)
    assert sum(map(len, with_absent)) / 200 == pytest.approx(5, abs=1)  # each with the same chance as before


@pytest.mark.parametrize(
    ("fraction", "clients", "count"), [(0.1, 1000, 100), (0.05, 4, 1), (0.5, 3, 2), (0.99, 10, 10)]
)
def test_how_many_are_drawn(fraction, clients, count):
    drawn = Sampler(0, fraction).draw("train", 1, range(clients), range(clients))
    assert len(drawn) == count == Sampler(0, fraction).count(clients)


def test_an_absent_client_is_replaced_and_the_others_stay():
    sampler = Sampler(0, 0.1)
    whole = sampler.draw("train", 1, EVERYONE, EVERYONE)
    gone = min(whole)
    left = sampler.draw("train", 1, EVERYONE, set(EVERYONE) - {gone})
    assert whole - left == {gone} and len(left) == 10


def test_uniform_sampling_takes_each_client_about_equally_often():
    counts = np.zeros(20)
    for server_round in range(2000):
        counts[list(Sampler(0, 0.25).draw("train", server_round, range(20), range(20)))] += 1
    assert np.abs(counts / 2000 - 0.25).max() < 0.04  # four standard deviations of a mean of 2,000 draws


def test_sampling_by_examples_takes_the_first_client_in_proportion_to_its_size():
    sizes, hits = {0: 1, 1: 2, 2: 7}, np.zeros(3)
    for server_round in range(3000):
        (drawn,) = Sampler(0, 0.34, sizes).draw("train", server_round, range(3), range(3))
        hits[drawn] += 1
    assert np.abs(hits / 3000 - [0.1, 0.2, 0.7]).max() < 0.035


def test_a_schedule_names_the_clients_of_each_round(tmp_path):
    file = tmp_path / "schedule.txt"
    file.write_text("# round 1\nusps, 2\n\nsvhn\n")
    schedule = read_schedule(str(file), NAMES, 2)
    assert schedule == [[0, 2], [1]]
    sampler = Sampler(0, schedule=schedule)
    assert sampler.draw("train", 1, NAMES, NAMES) == {0, 2}
    assert sampler.draw("train", 1, NAMES, {1, 2}) == {2}
    assert [sampler.named(number) for number in (1, 2, 3)] == [[0, 2], [1], ()]
    assert Sampler(0, only_connected=True).draw("evaluate", 1, NAMES, {1, 2}) == {1, 2}


@pytest.mark.parametrize(
    ("text", "rounds", "words"),
    [("usps\n", 2, "has 1 round, and"), ("usp\n", 1, "'usp'.*did you mean 'usps'"), ("\xff", 1, "'ÿ'")],
)
def test_a_schedule_that_does_not_fit_is_refused(tmp_path, text, rounds, words):
    file = tmp_path / "schedule.txt"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=words):
        read_schedule(str(file), NAMES, rounds)


def test_a_schedule_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.txt cannot be read"):
        read_schedule(str(tmp_path / "nowhere.txt"), NAMES, 1)
