"""Attacks on made-up uploads, and answers that are made once for what is asked twice."""

from __future__ import annotations

import pytest
import torch
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict

from benchmarks.poisoning import BILLION, Answers, forged, percent_of_honest, shown
from fedlab.comm.tensors import tensor_record, tensors_of
from fedlab.engines.flower_internals import task_identity

START = {"w": torch.tensor([1.0, 2.0]), "bn.running_mean": torch.tensor([1.0])}


def asked(**changes):
    content = {"arrays": tensor_record({**START, **changes}), "config": ConfigRecord({"server-round": 1})}
    with task_identity(1, 1):
        return Message(RecordDict(content), 1, "train")


def answer():
    state = {"w": torch.tensor([1.5, 2.0]), "bn.running_mean": torch.tensor([3.0])}
    return RecordDict({"arrays": tensor_record(state), "metrics": MetricRecord({"num-examples": 7})})


@pytest.mark.parametrize(
    ("attack", "w", "examples"),
    [
        ("labels", [1.5, 2.0], 7),
        ("examples", [1.5, 2.0], BILLION),
        ("doubled", [2.0, 2.0], BILLION),
        ("scaled", [-9.0, 2.0], 7),
        ("reversed", [0.25, 2.0], 7),
    ],
)
def test_an_attack_changes_weights_and_counts_and_no_statistics(attack, w, examples):
    found = forged(answer(), asked(), attack)
    arrays = tensors_of(found["arrays"])
    assert arrays["w"].tolist() == w and arrays["bn.running_mean"].tolist() == [3.0]
    assert found["metrics"]["num-examples"] == examples


@pytest.mark.parametrize(("attack", "factor"), [("labels", 1), ("scaled", 20), ("long", 8)])
def test_an_attack_on_a_head_reverses_its_classes_and_makes_it_longer(attack, factor):
    content = RecordDict({"head": tensor_record({"bias": torch.tensor([1.0, 2.0])})})
    assert tensors_of(forged(content, asked(), attack)["head"])["bias"].tolist() == [2.0 * factor, 1.0 * factor]


def test_what_is_asked_twice_is_answered_once_and_what_differs_anew():
    answers, made = Answers(), []

    def train():
        made.append(True)
        return answer()

    first = answers.get((0, False), asked(), train)
    first["metrics"]["num-examples"] = BILLION  # as an attack does; the next cell gets it as it was
    assert answers.get((0, False), asked(), train)["metrics"]["num-examples"] == 7 and len(made) == 1
    for key, message in [((0, True), asked()), ((1, False), asked()), ((0, False), asked(w=torch.zeros(2)))]:
        answers.get(key, message, train)
    assert len(made) == 4


@pytest.mark.parametrize("left_out", [False, True])
def test_the_honest_clients_count_whether_or_not_the_hostile_one_was_left_out(left_out):
    final = {client: {"accuracy": value} for client, value in [("a", 0.1), ("b", 0.9), ("c", 0.7)]}
    if left_out:
        del final["a"]
    assert percent_of_honest(final, ("a", "b", "c")) == pytest.approx(80.0)
    with pytest.raises(KeyError):
        percent_of_honest({"a": {"accuracy": 0.1}, "b": {"accuracy": 0.9}}, ("a", "b", "c"))


def test_a_cell_of_an_attack_says_what_it_changed_with_the_worst_seed():
    found = {("limit", "honest"): [60.0, 62.0], ("limit", "scaled"): [59.0, 58.0]}
    assert shown(found, "limit", "honest") == "61.0 ± 1.4"
    assert shown(found, "limit", "scaled") == "-2.5 ± 2.1 (≥ -4.0)"
    assert shown(found, "off", "scaled") == ""
