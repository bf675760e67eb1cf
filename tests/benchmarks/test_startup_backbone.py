"""STARTUP's workload on frozen features: which of an image and its views is read where."""

from __future__ import annotations

import torch

from benchmarks.startup_backbone import FrozenFewShot
from configs import make
from fedlab.seeds import seeded
from fedlab.workloads.fewshot import FewShot


def test_views_are_trained_on_and_images_are_labeled_and_an_untrained_layer_changes_nothing():
    options = {"base": "omniglot", "targets": "optdigits", "max_examples": 8, "size": 32}
    workload = make(FrozenFewShot, views=2, **options)
    own, base = workload.data(0, "train"), workload.data(None, "train")
    x = own.columns["x"]  # of each image, and of two views
    assert x.shape == (8, 3, 1280) and not torch.equal(x[:, 1], x[:, 2])
    torch.testing.assert_close(x[:, 0], workload.frozen(make(FewShot, **options).data(0, "train").columns["x"]))
    with seeded("a"):
        seen, of_server = workload.view(own[:]["x"]), base[:]["x"]
    for chosen, stored in ((seen, x), (of_server, base.columns["x"])):
        first, second = ((chosen == stored[:, number]).all(1) for number in (1, 2))
        assert (first | second).all() and first.any() and second.any()
    features = workload.model().features
    assert torch.equal(features(own[:]["x"]), x[:, 0]) and torch.equal(features(seen), seen)
