"""CamVid: the cut in the package beside the full set, splits by time, what is refused."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from fedlab.data.digits.datasets import EMBEDDED
from fedlab.data.segmentation import camvid
from fedlab.data.segmentation.camvid import (
    CLASSES,
    DRIVES,
    EMBEDDED_FILE,
    FULL_FILE,
    GAP,
    HELD_OUT,
    IGNORE_INDEX,
    LIST_LENGTHS,
    load_drive,
)
from fedlab.errors import DataError

ROOT = Path(os.environ.get("FEDLAB_DATA", "") or "/nowhere")
needs_full = pytest.mark.skipif(
    not (ROOT / FULL_FILE).is_file(), reason=f"FEDLAB_DATA names no folder that holds the full set, {FULL_FILE}"
)
VIEWS = {"day_0006R0": 101, "day_0016E5": 204, "day_05VD": 171, "dusk": 124, "dark_0006R0": 101, "dark_0016E5": 204}


def write_full(root: Path, **changes) -> Path:
    """A set of flat views in the published format: view i of list k has the color i, pixels alternate 0, 1, 2, 11."""
    arrays = {}
    for name, count in LIST_LENGTHS.items():
        arrays[f"x_{name}"] = (
            np.zeros((count, 120, 160, 3), np.uint8) + np.arange(count, dtype=np.uint8)[:, None, None, None] % 200
        )
        arrays[f"y_{name}"] = np.tile(np.uint8([0, 1, 2, 11]), (count, 120, 40))
    path = root / FULL_FILE
    path.parent.mkdir(parents=True)
    arrays = {name: array for name, array in {**arrays, **changes}.items() if array is not None}
    np.savez_compressed(path, **arrays)
    return path


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    root = tmp_path_factory.mktemp("camvid")
    write_full(root)
    return root


@pytest.mark.parametrize("drive", DRIVES)
def test_every_drive_ships_with_the_package(drive):
    whole, train, test = (load_drive(drive, split) for split in ("all", "train", "test"))
    assert len(whole) == VIEWS[drive]
    assert len(train) == VIEWS[drive] // 2 - GAP and len(test) == VIEWS[drive] - VIEWS[drive] // 2
    assert set(train.columns) == {"x"} and set(test.columns) == {"x", "y"}
    x, y = test[:3]["x"], test[:3]["y"]
    assert x.shape == (3, 3, 60, 80) and x.dtype == torch.float32 and x.min() >= -1 and x.max() <= 1
    assert y.shape == (3, 60, 80) and y.dtype == torch.int64
    assert set(whole.columns["y"].unique().tolist()) <= {IGNORE_INDEX, *range(len(CLASSES))}


def test_splits_are_by_time_with_a_gap():
    """The training part is the first half but for the gap, the test part the second: together they lack the gap."""
    whole = load_drive("dusk", "all").columns
    train, test = load_drive("dusk", "train", with_labels=True).columns, load_drive("dusk", "test").columns
    assert torch.equal(whole["x"][:54], train["x"]) and torch.equal(whole["x"][62:], test["x"])
    assert torch.equal(whole["y"][:54], train["y"]) and torch.equal(whole["y"][62:], test["y"])
    assert torch.equal(train["x"], load_drive("dusk", "train").columns["x"])


def test_no_view_belongs_to_two_drives():
    days = [name for name in DRIVES if not DRIVES[name].dark]
    views = [view.numpy().tobytes() for name in days for view in load_drive(name, "all").columns["x"]]
    views += [view.numpy().tobytes() for view in load_drive(HELD_OUT, "all").columns["x"]]
    assert len(views) == sum(LIST_LENGTHS.values()) == len(set(views))


def test_a_cut_between_two_drives_is_the_largest_jump_nearby():
    """The file has no names: what says that the drives were told apart rightly is what one sees at the cuts."""
    for name, cuts in (("train", (62, 163)), ("test", (62,))):
        x = camvid._lists(None, 2)[name].x.float()
        jump = (x[1:] - x[:-1]).abs().mean((1, 2, 3))
        for cut in cuts:
            assert int(jump[cut - 6 : cut + 5].argmax()) == 5


def test_frequencies_are_those_of_the_source_drives():
    y = torch.cat([load_drive(name, "all").columns["y"] for name in ("day_0006R0", "day_0016E5")])
    shares = [float((y == number).sum() / (y != IGNORE_INDEX).sum()) for number in range(len(CLASSES))]
    assert shares == pytest.approx(camvid.FREQUENCIES, abs=6e-5)


def test_dusk_is_darker_than_any_day_and_darkened_days_are_near_it():
    mean = {name: float(load_drive(name, "train").columns["x"].float().mean()) for name in DRIVES}
    assert mean["dusk"] < 0.65 * min(mean[name] for name in ("day_0006R0", "day_0016E5", "day_05VD"))
    for name in ("dark_0006R0", "dark_0016E5"):
        assert abs(mean[name] - mean["dusk"]) < 0.15 * mean[name.replace("dark", "day")]


def test_darkening_is_a_gamma_and_a_gain_of_each_color():
    x = torch.tensor([0, 64, 128, 255], dtype=torch.uint8).view(1, 1, 1, 4).expand(1, 3, 1, 4)
    wanted = [[round(gain * 255 * (v / 255) ** 1.8) for v in (0, 64, 128, 255)] for gain in (0.62, 0.70, 0.72)]
    assert camvid.darken(x)[0, :, 0].tolist() == wanted


# --- a full set ---


def test_a_full_set_is_reduced_by_averages_and_every_second_label(full):
    small, large = load_drive("dusk", "test", full), load_drive("dusk", "test", full, reduce=1)
    assert small.columns["x"].shape == (62, 3, 60, 80) and large.columns["x"].shape == (62, 3, 120, 160)
    assert small.columns["x"][:, 0, 0, 0].tolist() == list(range(62))
    assert small.columns["y"].unique().tolist() == [0, 2]  # 0, 1, 2, void: every second
    assert large.columns["y"].unique().tolist() == [IGNORE_INDEX, 0, 1, 2]
    squares = np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3)
    assert camvid.downsample(squares, 2)[0, 1, 0, 2] == round((26 + 29 + 38 + 41) / 4)


@needs_full
def test_the_cut_is_the_full_set_but_for_jpeg():
    for drive in ("dusk", "day_0016E5"):
        cut, whole = load_drive(drive, "test").columns, load_drive(drive, "test", ROOT).columns
        assert torch.equal(cut["y"], whole["y"])
        assert (cut["x"].float() - whole["x"].float()).abs().mean() < 4


# --- what is refused ---


def test_names_that_do_not_exist_are_refused():
    with pytest.raises(DataError, match="no drive 'dsuk' in CamVid; did you mean 'dusk'"):
        load_drive("dsuk", "train")
    with pytest.raises(DataError, match="no split 'trian'; did you mean 'train'"):
        load_drive("dusk", "trian")


def test_large_views_need_the_full_set(tmp_path):
    with pytest.raises(DataError, match="at 120 x 160 pixels does not ship with fedlab: expected FOLDER/camvid"):
        load_drive("dusk", "train", reduce=1)
    with pytest.raises(DataError, match=f"expected {tmp_path}/camvid/camvid_160x120.npz; set data.root or FEDLAB_DATA"):
        load_drive("dusk", "train", tmp_path, reduce=1)
    assert len(load_drive("dusk", "train", tmp_path)) == 54  # a folder of other sets: the cut serves


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"x_val": None}, "expected 'x_val'; replace the file, or unset data.root"),
        ({"x_val": np.zeros((7, 120, 160, 3), np.uint8)}, r"'x_val' is uint8 \(7, 120, 160, 3\), expected uint8 \(101"),
        ({"y_train": np.zeros((367, 120, 160), np.int32)}, r"'y_train' is int32 .*, expected uint8 \(367, 120, 160\)"),
        ({"y_test": np.full((233, 120, 160), 12, np.uint8)}, "holds labels up to 12, expected 0..11"),
    ],
)
def test_a_full_set_of_another_kind_is_refused(tmp_path, changes, sentence):
    write_full(tmp_path, **changes)
    with pytest.raises(DataError, match=sentence):
        load_drive("dusk", "train", tmp_path)


def test_a_damaged_full_set_is_refused(tmp_path, truncate):
    truncate(write_full(tmp_path))
    with pytest.raises(DataError, match="camvid_160x120.npz cannot be read .*; replace the file, or unset data.root"):
        load_drive("dusk", "train", tmp_path)


def test_a_damaged_or_missing_cut_says_reinstall(tmp_path, monkeypatch):
    monkeypatch.setattr(camvid, "EMBEDDED", tmp_path)
    with pytest.raises(DataError, match="found no such file; the package is damaged, reinstall fedlab"):
        load_drive("dusk", "train")
    with np.load(EMBEDDED / EMBEDDED_FILE) as archive:
        arrays = dict(archive)
    arrays["buf"] = arrays["buf"].copy()
    arrays["buf"][: arrays["off"][1]] = 0
    np.savez(tmp_path / EMBEDDED_FILE, **arrays)
    with pytest.raises(DataError, match="camvid.npz cannot be read .*cannot identify image.*; the package is damaged"):
        load_drive("dusk", "train")
    shutil.copy(EMBEDDED / "omniglot.npz", tmp_path / EMBEDDED_FILE)
    camvid._embedded.cache_clear()
    with pytest.raises(DataError, match="expected 'buf'; the package is damaged"):
        load_drive("dusk", "train")
