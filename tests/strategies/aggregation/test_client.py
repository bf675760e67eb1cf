"""What clients do at a rule's request, through both apps."""

from __future__ import annotations

import json

import pytest
import torch

from toy import Blobs

BLOBS = Blobs(domains="a,b,c")


def told(directory, metric):
    """A metric of each client's training reply in round 1."""
    events = map(json.loads, (directory.path / "events.jsonl").read_text().splitlines())
    found = [event for event in events if metric in event.get("metrics", {}) and event["round"] == 1]
    return [event["metrics"][metric] for event in sorted(found, key=lambda event: event["client"])]


def test_the_loss_before_training_is_that_of_the_model_that_was_sent(record):
    seen, directory = record("qfedavg", rounds=1)
    losses = told(directory, "start-loss")
    assert len(losses) == 3
    for client, found in enumerate(losses):
        model = BLOBS.model()
        model.load_state_dict(seen["train", 1, client].received["arrays"])
        wanted = BLOBS.evaluate(model, Blobs(domains="a,b,c", client_labels=True).data(client, "train"))["loss"]
        assert found == pytest.approx(wanted, rel=1e-5)


def test_to_be_asked_for_it_does_not_change_what_a_client_learns(record):
    asked, plain = record("qfedavg", rounds=1)[0], record("fedavg", rounds=1)[0]
    for client in range(3):
        one, other = asked["train", 1, client], plain["train", 1, client]
        assert all(torch.equal(one.answered[name], other.answered[name]) for name in other.answered)


@pytest.mark.parametrize("rule", ["dp_fixed", "dp_adaptive"])
def test_clipping_on_the_client_gives_what_clipping_on_the_server_gives(record, rule):
    options = {f"{rule}.clipping_norm": 0.2}
    found = {}
    for side in ("server", "client"):
        seen, directory = record(rule, **options, **{f"{rule}.clip_on": side})
        found[side] = directory.checkpoints.latest()[1]
        for client in range(3):
            one = seen["train", 1, client]
            received = one.received["arrays"]
            learned = [name for name, _ in BLOBS.model().named_parameters()]
            change = torch.cat([(one.answered[name] - received[name]).flatten() for name in learned])
            assert (float(change.norm()) < 0.2001) == (side == "client")
            if side == "client":  # nothing else of its data leaves it
                others = received.keys() - set(learned)
                assert all(torch.equal(one.answered[name], received[name]) for name in others)
    for name, tensor in found["server"]["arrays"].items():
        torch.testing.assert_close(found["client"]["arrays"][name], tensor, rtol=0, atol=1e-5)
    assert found["client"]["strategy"]["norm"] == pytest.approx(found["server"]["strategy"]["norm"])
