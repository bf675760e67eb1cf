"""Semantic segmentation: the loss beside a plain loop, mean IoU beside scikit-learn, and every strategy on pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix as reference
from sklearn.metrics import jaccard_score
from torch import nn
from torch.nn.functional import interpolate

from configs import make
from fedlab import launch, registry
from fedlab.config.sections import to_toml
from fedlab.data.dataset import ArrayDataset
from fedlab.data.segmentation.camvid import CLASSES, FREQUENCIES, IGNORE_INDEX
from fedlab.engines import inprocess
from fedlab.errors import ConfigError, DataError
from fedlab.runs.directory import RunDirectory
from fedlab.seeds import seeded
from fedlab.workloads.camvid import CamVid, confusion_matrix, iou, upsample_logits

SMALL = CamVid(width=8)


class Told(nn.Module):
    """A model that gives the logits that it is told."""

    def __init__(self, rows):
        super().__init__()
        self.rows = nn.Parameter(rows)

    def forward(self, x):
        return self.rows


def views(labels):
    """Labels (views, height, width) as examples of black views."""
    y = torch.tensor(labels)
    return ArrayDataset({"x": torch.zeros(len(y), 3, *y.shape[1:]), "y": y})


@pytest.fixture
def scores():
    """Logits of two views of 4 x 6 pixels, and their labels, a third of them void."""
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(2 * 2 * 3, len(CLASSES), generator=generator)
    y = torch.randint(0, len(CLASSES), (2, 4, 6), generator=generator)
    return rows, y.masked_fill(torch.rand(2, 4, 6, generator=generator) < 1 / 3, IGNORE_INDEX)


# --- loss ---


@pytest.mark.parametrize("rare", [0.0, 0.5, 1.0])
def test_the_loss_is_a_plain_loop_over_known_pixels(scores, rare):
    rows, y = scores
    maps = interpolate(rows.detach().view(2, 2, 3, -1).permute(0, 3, 1, 2), (4, 6), mode="bilinear")
    total = weight = 0.0
    for view, line, place in np.ndindex(2, 4, 6):
        label = int(y[view, line, place])
        if label != IGNORE_INDEX:
            share = (sorted(FREQUENCIES)[5] / FREQUENCIES[label]) ** rare
            p = maps[view, label, line, place].exp() / maps[view, :, line, place].exp().sum()
            total, weight = total - share * math.log(p), weight + share
    value = CamVid(width=8, class_weight_power=rare).loss(Told(rows), {"x": torch.zeros(2, 3, 4, 6), "y": y})
    assert float(value.detach()) == pytest.approx(total / weight, rel=1e-5)


def test_labels_may_be_of_rows_instead_of_pixels(scores):
    rows, _ = scores
    y = torch.arange(12).fmod(11).view(2, 6)
    y[0, 3:] = IGNORE_INDEX
    known = [row for row in range(12) if row not in (3, 4, 5)]
    wanted = -sum(float(rows[row].log_softmax(0)[y.flatten()[row]]) for row in known) / len(known)
    value = CamVid(class_weight_power=0.0).loss(Told(rows), {"x": torch.zeros(2, 3, 4, 6), "y": y})
    assert float(value.detach()) == pytest.approx(wanted, rel=1e-5)


def test_views_without_one_known_pixel_lose_nothing(scores):
    model = Told(scores[0])
    loss = SMALL.loss(model, {"x": torch.zeros(2, 3, 4, 6), "y": torch.full((2, 4, 6), IGNORE_INDEX)})
    loss.backward()
    assert float(loss.detach()) == 0 and model.rows.grad.abs().sum() == 0


def test_rows_that_are_not_of_the_views_are_refused(scores):
    with pytest.raises(DataError, match="12 rows of scores for 3 views of 4 x 6 pixels, expected 18"):
        upsample_logits(scores[0], torch.zeros(3, 4, 6))


# --- mean IoU ---


def test_mean_iou_by_hand():
    """Two views of 2 x 2 pixels, one row each. Sky: 3 right, 1 missed; road: 1 wrong; car is predicted, in no label.

    Labels 0 0 0 void | 0 3 3 3, predicted 0 | 3: sky has 3 hits of 3 + 1, road 3 of 3 + 1.
    """
    rows = torch.full((2, len(CLASSES)), -20.0)
    rows[0, 0] = rows[1, 3] = 20.0
    metrics = SMALL.evaluate(Told(rows), views([[[0, 0], [0, IGNORE_INDEX]], [[0, 3], [3, 3]]]))
    assert metrics["miou"] == pytest.approx((3 / 4 + 3 / 4) / 2)
    assert metrics["loss"] == pytest.approx(-math.log(1e-12) / 7, rel=1e-3)


def test_a_class_that_no_label_has_is_left_out_but_its_pixels_are_missed():
    rows = torch.full((2, len(CLASSES)), -20.0)
    rows[0, 0] = rows[1, 8] = 20.0  # the second view is all car, which it is not
    metrics = SMALL.evaluate(Told(rows), views([[[0, 0], [0, 0]], [[0, 0], [3, 3]]]))
    assert metrics["miou"] == pytest.approx((4 / 6 + 0) / 2)


def test_mean_iou_is_that_of_scikit_learn(scores, monkeypatch):
    rows, y = scores
    predicted = upsample_logits(rows.softmax(1), y).argmax(1)
    known = (y != IGNORE_INDEX).numpy()
    truth, guess = y.numpy()[known], predicted.numpy()[known]
    found = confusion_matrix(predicted, y)
    assert (found.numpy() == reference(truth, guess, labels=range(len(CLASSES)))).all()
    each = jaccard_score(truth, guess, labels=range(len(CLASSES)), average=None, zero_division=0)
    np.testing.assert_allclose(iou(found).iou.numpy(), each)
    present = np.unique(truth)
    assert iou(found).present.nonzero().flatten().tolist() == present.tolist()
    metrics = SMALL.evaluate(Told(rows), ArrayDataset({"x": torch.zeros(2, 3, 4, 6), "y": y}))
    assert metrics["miou"] == pytest.approx(each[present].mean())


def test_batches_do_not_change_the_metrics(monkeypatch):
    data = SMALL.data(0, "test").subsample(7)
    with seeded("model"):
        model = SMALL.model()
    whole = SMALL.evaluate(model, data)
    monkeypatch.setattr("fedlab.workloads.camvid.EVALUATION_BATCH", 3)
    assert SMALL.evaluate(model.train(), data) == pytest.approx(whole, rel=1e-5)


def test_nothing_is_measured_without_labels():
    assert SMALL.evaluate(SMALL.model(), SMALL.data(0, "train")) == {}
    with pytest.raises(DataError, match="no test pixel has a class"):
        SMALL.evaluate(
            Told(torch.zeros(1, len(CLASSES))), views([[[IGNORE_INDEX, IGNORE_INDEX], [IGNORE_INDEX, IGNORE_INDEX]]])
        )


# --- data ---


def test_the_server_has_day_and_clients_their_drives():
    workload = CamVid(augment=False)
    assert workload.clients == ("dusk", "day_05VD")
    source, test = workload.data(None, "train"), workload.data(None, "test")
    assert len(source) == 101 + 204 and len(test) == 101
    assert [len(workload.data(client, "train")) for client in (0, 1)] == [54, 77]
    assert [len(workload.data(client, "test")) for client in (0, 1)] == [62, 86]
    assert float(source[:]["x"].mean()) > float(workload.data(0, "train")[:]["x"].mean()) + 0.3


def test_clients_have_training_labels_only_when_asked():
    assert "y" not in CamVid().data(0, "train").columns
    labeled = CamVid(client_labels=True).data(0, "train")
    assert labeled.columns["y"].shape == (54, 60, 80)
    assert torch.equal(labeled.columns["x"], CamVid().data(0, "train").columns["x"])


def test_the_servers_views_are_random_and_keep_their_kind():
    source = CamVid().data(None, "train")
    with seeded("view"):
        first = source[:4]
    with seeded("view"):
        again = source[:4]
    assert torch.equal(first["x"], again["x"]) and torch.equal(first["y"], again["y"])
    assert not torch.equal(first["x"], source[:4]["x"])
    assert first["x"].shape == (4, 3, 60, 80) and first["x"].min() >= -1 and first["x"].max() <= 1
    assert first["y"].dtype == torch.int64 and set(first["y"].unique().tolist()) <= {IGNORE_INDEX, *range(len(CLASSES))}


def test_a_drive_can_be_shared_in_stretches_of_time():
    whole, shared = CamVid(targets="dusk"), make(CamVid, targets="dusk", clients_per_domain=3)
    assert shared.clients == ("dusk-0", "dusk-1", "dusk-2")
    parts = [shared.data(part, "train").columns["x"] for part in range(3)]
    assert [len(part) for part in parts] == [18, 18, 18]
    assert torch.equal(torch.cat(parts), whole.data(0, "train").columns["x"])
    assert torch.equal(shared.data(2, "test").columns["y"], whole.data(0, "test").columns["y"])
    with pytest.raises(ConfigError, match="54 views cannot be split over 28 clients of at least 2 each.*at most 27"):
        make(CamVid, targets="dusk", clients_per_domain=28).data(0, "train")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"targets": "dsuk"}, "unknown drive 'dsuk' in option 'camvid.targets'; did you mean 'dusk'"),
        ({"source": "day_0006"}, "unknown drive 'day_0006' in option 'camvid.source'; did you mean 'day_0006R0'"),
        ({"targets": " , "}, "option 'camvid.targets': ' , ' names nothing"),
        ({"source": ""}, "option 'camvid.source' is ''; name at least one drive"),
        ({"targets": "dusk,day_0016E5"}, "the views of 'day_0016E5' appear twice"),
        ({"targets": "dark_0006R0"}, "the views of 'day_0006R0' appear twice.*each drive has one owner"),
        ({"targets": "dusk,dusk"}, "the views of 'dusk' appear twice"),
        ({"source": "day_0016E5,day_0016E5"}, "the views of 'day_0016E5' appear twice"),
    ],
)
def test_drives_that_do_not_fit_are_refused(options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        make(CamVid, **options)


@pytest.mark.parametrize("partition", [-1, 2])
def test_a_partition_that_does_not_exist_is_refused(partition):
    with pytest.raises(DataError, match=rf"there is no partition {partition}; this workload has 2: dusk, day_05VD"):
        SMALL.data(partition, "test")


# --- strategies: none of them knows that an example has many rows ---

ONE_ROUND = {
    "rounds": 1,
    "threads": 1,
    "server.pretrain_steps": 2,
    "server.steps": 1,
    "server.batch_size": 2,
    "client.steps": 6,
    "client.batch_size": 2,
    "camvid.width": 8,
    "dualadapt.em_steps": 2,
    "dualadapt.components": 2,
    "dualadapt.max_features": 300,
    "fed_dann.source_features": 40,
    "self_training.threshold": 0.1,
}


@pytest.fixture
def federate(tmp_path, monkeypatch):
    """One round of a strategy on a few views, through both apps."""
    read = CamVid.data

    def data(self, partition, split):
        return read(self, partition, split).subsample(4)

    monkeypatch.setattr(CamVid, "data", data)

    def run(strategy, **changes):
        sections = {"", "server", "client", "camvid", strategy}
        usable = {key: value for key, value in ONE_ROUND.items() if key.rpartition(".")[0] in sections}
        labeled = {"camvid.client_labels": registry.find("strategy", strategy).spec.needs_client_labels}
        preset = tmp_path / "tiny.toml"
        preset.write_text(to_toml({"workload": "camvid", "strategy": strategy, **usable, **labeled, **changes}))
        config = launch.prepare(str(preset), {})
        directory = RunDirectory.create(tmp_path, config)
        inprocess.run_config(launch.APPS, config, directory.path)
        return directory

    return run


@pytest.mark.parametrize(
    "name", ["source_only", "adabn", "self_training", "fed_mcd", "fed_dann", "dualadapt", "oracle", "fedavg"]
)
def test_a_strategy_learns_from_pixels(federate, name):
    line = federate(name).rounds()[1]
    assert not line["failures"] and set(line["clients"]) == {"dusk", "day_05VD"}
    shares = {key: value for key, value in line["mean"].items() if key.startswith("miou")}
    assert shares and all(0 <= value <= 1 for value in shares.values())
    assert all(metrics["num-examples"] == 4 for metrics in line["clients"].values())


def test_dualadapts_heads_on_rows_are_measured_as_a_whole_model_is(federate):
    """Before round 1 the same weights are tested by DualAdapt, F_g on rows of G, and whole by source_only."""
    of_heads = federate("dualadapt", **{"dualadapt.bn_adaptation": 0.0}).rounds()[0]["clients"]
    whole = federate("source_only").rounds()[0]["clients"]
    for client in ("dusk", "day_05VD"):
        assert of_heads[client]["miou_global"] == of_heads[client]["miou_source_only"] == whole[client]["miou"] > 0


def test_a_run_of_dualadapt_on_pixels_is_a_function_of_its_seed(federate):
    first, second = (federate("dualadapt").manifest()["weights_sha256"] for _ in range(2))
    assert first == second
