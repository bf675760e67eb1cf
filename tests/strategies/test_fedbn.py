"""FedBN's server beside algorithm 1: all but the batch norms is averaged, each client gets its own back."""

from __future__ import annotations

import torch

from tables import client_functions

NORMS = [f"features.2.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]


def test_two_rounds_are_those_of_the_plain_loop(record, weighted_mean):
    seen, directory = record("fedbn")
    first = seen["train", 1, 0].received["arrays"]
    shared, norms = {name: first[name].double() for name in first if name not in NORMS}, {}
    for server_round in (1, 2):
        for client in range(3):
            received = seen["train", server_round, client].received["arrays"]
            for name in shared:
                torch.testing.assert_close(received[name].double(), shared[name], rtol=0, atol=1e-6)
            for name in NORMS:
                assert torch.equal(received[name], norms[client][name] if norms else first[name])
        answers = [seen["train", server_round, client] for client in range(3)]
        mean = weighted_mean(answers)
        shared = {name: mean[name] for name in shared}
        norms = {client: {name: one.answered[name] for name in NORMS} for client, one in enumerate(answers)}
        for client in range(3):  # tested with its own
            tested = seen["evaluate", server_round, client].received["arrays"]
            assert all(torch.equal(tested[name], norms[client][name]) for name in NORMS)
    assert not torch.equal(norms[0][NORMS[2]], norms[1][NORMS[2]])
    kept = directory.checkpoints.latest()[1]["strategy"]["norms"]
    assert all(torch.equal(kept[client][name], norms[client][name]) for client in range(3) for name in NORMS)


def test_what_predicts_from_a_checkpoint_is_what_was_tested(record):
    seen, directory = record("fedbn", rounds=1)
    half, checkpoint = client_functions("fedbn"), directory.checkpoints.latest()[1]
    for client in range(3):
        recalled = half.states_from_checkpoint(None, checkpoint, client, {})["arrays"]
        tested = seen["evaluate", 1, client].received["arrays"]
        assert recalled.keys() == tested.keys()
        assert all(torch.equal(recalled[name], tested[name]) for name in tested)
    late_joiner = half.states_from_checkpoint(None, checkpoint, 7, {})["arrays"]
    assert all(torch.equal(late_joiner[name], checkpoint["arrays"][name]) for name in late_joiner)


def test_on_a_model_without_batch_norms_it_is_fedavg_bit_for_bit(federate):
    ours, average = federate("fedbn"), federate("fedavg")
    assert ours.manifest["weights_sha256"] == average.manifest["weights_sha256"]
    assert [line["clients"] for line in ours.rounds] == [line["clients"] for line in average.rounds]
