"""AdaBN: the server is source_only; a client is tested with statistics of its own training data."""

from __future__ import annotations

import pytest
import torch

from fedlab.launch import saved_config
from tables import client_functions
from toy import Blobs

BLOBS = Blobs(domains="a,b,c")


def by_hand(arrays, client, share):
    """The model with one batch norm whose statistics are those of all of a client's data."""
    model = BLOBS.model()
    model.load_state_dict(arrays)
    z = model.features[1](model.features[0](BLOBS.data(client, "train")[:]["x"]))
    norm = model.features[2]
    with torch.no_grad():
        norm.running_mean.mul_(1 - share).add_(share * z.mean(0))
        norm.running_var.mul_(1 - share).add_(share * z.var(0))
    return model


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_clients_are_tested_with_their_own_statistics(record, share):
    seen, directory = record("adabn", **{"adabn.bn_adaptation": share})
    for client, name in enumerate("abc"):
        arrays = seen["evaluate", 2, client].received["arrays"]
        wanted = BLOBS.evaluate(by_hand(arrays, client, share), BLOBS.data(client, "test"))
        found = directory.rounds()[-1]["clients"][name]
        assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-4)
        assert found["accuracy"] == pytest.approx(wanted["accuracy"], abs=0.02)


def test_the_model_is_that_of_source_only_bit_for_bit(record):
    ours, source = record("adabn")[1], record("source_only")[1]
    assert ours.manifest()["weights_sha256"] == source.manifest()["weights_sha256"]
    assert ours.rounds()[-1]["clients"] != source.rounds()[-1]["clients"]
    assert record("adabn", **{"adabn.bn_adaptation": 0.0})[1].rounds()[-1]["clients"] == source.rounds()[-1]["clients"]


def test_no_client_is_asked_to_train(record):
    assert all(purpose == "evaluate" for purpose, _, _ in record("adabn")[0])


def test_what_predicts_from_a_checkpoint_has_the_clients_statistics(record):
    seen, directory = record("adabn")
    half, config = client_functions("adabn"), saved_config(directory)
    recalled = half.states_from_checkpoint(BLOBS, directory.checkpoints.latest()[1], 1, config)["arrays"]
    wanted = by_hand(seen["evaluate", 2, 1].received["arrays"], 1, 1.0).state_dict()
    for name in ("features.2.running_mean", "features.2.running_var", "head.0.weight"):
        torch.testing.assert_close(recalled[name], wanted[name], rtol=1e-5, atol=1e-6)
