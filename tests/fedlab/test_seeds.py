"""Named random streams: the same for the same name, others for another, and the ambient ones untouched."""

from __future__ import annotations

import hashlib
import os
import random
from threading import Event, Thread

import numpy as np
import pytest
import torch

from fedlab.seeds import Stream, deterministic, exclusive, in_turn, preserved, seed_of, seeded, turns


def draw():
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_a_seed_is_a_function_of_its_names_and_lies_in_63_bits():
    assert seed_of(0, "train", 1) == seed_of(0, "train", 1)
    assert all(0 <= seed_of(number) < 2**63 for number in range(200))


def test_a_seed_is_the_same_in_every_process_and_version():
    # SHA-256 of "int:0\x1fstr:train", its first 8 bytes shifted right by one: coreutils' sha256sum says so
    assert seed_of(0, "train") == 0x0941ED3839152A2F


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((0, 1), (1, 0)),  # order
        ((0, "1"), (0, 1)),  # type
        ((1, 23), (12, 3)),  # where one name ends
        (("a", "b"), ("ab",)),
        ((0,), (0, 0)),  # how many
    ],
)
def test_another_name_is_another_seed(one, other):
    assert seed_of(*one) != seed_of(*other)


def test_seeds_do_not_collide_over_a_run():
    seeds = {seed_of(0, use, server_round, client) for use in "ab" for server_round in range(50) for client in range(9)}
    assert len(seeds) == 2 * 50 * 9


def test_the_same_scope_gives_the_same_numbers_from_every_generator():
    with seeded(0, "train", 1):
        first = draw()
    draw()
    with seeded(0, "train", 1):
        again = draw()
    with seeded(0, "train", 2):
        other = draw()
    assert first == again
    assert all(a != b for a, b in zip(first, other, strict=True))


def test_the_ambient_generators_go_on_as_if_nothing_had_happened():
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = [draw(), draw()]
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = draw()
    with seeded("anything"):
        draw()
    assert [before, draw()] == expected


def test_the_ambient_generators_survive_an_exception():
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = draw()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)

    def body():
        with seeded("anything"):
            draw()
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        body()
    assert draw() == expected


def test_scopes_nest():
    with seeded("outer"):
        expected = [draw(), draw()]
    with seeded("outer"):
        first = draw()
        with seeded("inner"):
            draw()
        assert [first, draw()] == expected


def test_deterministic_fixes_threads_and_kernels_and_puts_them_back():
    before = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    with deterministic(before[0] + 1):
        assert torch.get_num_threads() == before[0] + 1
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.utils.deterministic.fill_uninitialized_memory  # it costs a tenth and changes no bit
        assert not torch.backends.cudnn.benchmark
    assert (torch.get_num_threads(), torch.get_deterministic_debug_mode()) == before  # a notebook stays as it was
    assert torch.utils.deterministic.fill_uninitialized_memory


def test_a_stream_in_one_thread_is_not_disturbed_by_one_in_another():
    def draw(found):
        for _ in range(200):
            with seeded(1, "a"):
                found.append((torch.rand(2).sum().item(), np.random.rand(), random.random()))

    before = random.getstate()
    found: list[tuple[float, ...]] = []
    threads = [Thread(target=draw, args=(found,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1 and len(found) == 800
    assert random.getstate() == before


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")  # of Python 3.12: the case in question
def test_a_fork_does_not_wait_for_a_thread_that_it_does_not_have():
    entered, leave = Event(), Event()

    def hold():
        with exclusive():
            entered.set()
            leave.wait()

    holder = Thread(target=hold)
    holder.start()
    entered.wait()
    child = os.fork()
    if child == 0:
        with exclusive():
            os._exit(7)
    leave.set()
    holder.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_a_stream_that_is_left_goes_on_where_it_was():
    with seeded(3, "turns", 1):
        first, second = draw(), draw()
    with seeded(3, "turns", 2):
        other = draw()
    one, two = Stream(3, "turns", 1), Stream(3, "turns", 2)
    with preserved():
        with one:
            assert draw() == first
        with two:
            assert draw() == other
        with one:
            assert draw() == second


def test_a_generator_of_a_stream_draws_its_numbers_and_the_stream_goes_on_after_them():
    with seeded(3, "turns", 1):
        numbers = [torch.randn(3), torch.randint(9, (5,)), torch.randn(3), torch.rand(2)]
        others = random.random(), float(np.random.rand())
    stream = Stream(3, "turns", 1)
    with preserved():
        found = [torch.randn(3, generator=stream.cpu_generator())]
        found.append(torch.randint(9, (5,), generator=stream.cpu_generator()))
        with stream:
            found.append(torch.randn(3))
        found.append(torch.rand(2, generator=stream.cpu_generator()))
        assert all(map(torch.equal, found, numbers))
        with stream:
            assert (random.random(), float(np.random.rand())) == others


@pytest.mark.parametrize("who", [(), (0,), (2,), (0, 1, 2), (1, 2)], ids=str)
@pytest.mark.parametrize(
    "draw_one",
    [
        random.random,
        lambda: [random.random() for _ in range(312)],  # all words of a state: only the words themselves differ
        lambda: float(np.random.rand()),
        lambda: float(np.random.standard_normal()),
        lambda: [float(np.random.standard_normal()) for _ in range(2)],
        lambda: float(torch.rand(())),
        lambda: float(torch.randn(())),
    ],
)
def test_who_draws_in_turn_draws_from_its_own_stream(who, draw_one):
    def alone(position):
        with seeded("in turn", position):
            return draw_one() if position in who else None

    found = {}

    def act(position):
        found[position] = draw_one() if position in who else None

    before = random.getstate(), torch.get_rng_state()
    with preserved():
        in_turn([Stream("in turn", position) for position in range(3)], act)
    assert found == {position: alone(position) for position in range(3)}
    assert random.getstate() == before[0] and torch.equal(torch.get_rng_state(), before[1])


def test_the_second_of_a_pair_of_normal_numbers_waits_for_the_next_turn():
    with seeded("in turn", 0):
        numbers = [float(np.random.standard_normal()) for _ in range(3)]
    found, streams = [], [Stream("in turn", position) for position in range(2)]

    def act(position):
        if position == 0:
            found.append(float(np.random.standard_normal()))

    with preserved():
        for _ in range(3):
            in_turn(streams, act)
    assert found == numbers


def test_who_draws_nothing_in_turn_is_asked_once():
    asked = []
    with preserved():
        in_turn([], asked.append)
        in_turn([Stream(position) for position in range(4)], asked.append)
    assert asked == [0, 1, 2, 3]


def test_preserved_streams_are_restored_after_an_error():
    before = random.getstate(), torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), preserved(), Stream("any"):
        draw()[0] / 0
    assert random.getstate() == before[0] and torch.equal(torch.get_rng_state(), before[1])


def test_scopes_that_take_turns_have_the_numbers_of_scopes_alone_and_those_within_them_are_restored():
    with seeded(0, "one"):
        one = draw(), draw()
    with seeded(0, "two"):
        two = draw()
    draw()
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    with seeded("around"), turns():
        with seeded(0, "one"):
            first = draw()
            with seeded(0, "two"):
                assert draw() == two
            with preserved(), seeded(0, "two"):
                draw()
            assert (first, draw()) == one
        with pytest.raises(ValueError, match="an error"), seeded(0, "one"):
            raise ValueError("an error")
        with seeded(0, "two"):
            assert draw() == two
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before


def test_a_stream_without_a_name_has_a_seed() -> None:
    assert seed_of() == int.from_bytes(hashlib.sha256(b"").digest()[:8], "big") >> 1
