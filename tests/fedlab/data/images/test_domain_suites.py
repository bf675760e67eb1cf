"""Sets of several domains: the cut, who sees labels, what ships and what a data root brings."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from fedlab.data.images import domain_suites
from fedlab.data.images.domain_suites import load_domain, read_part
from fedlab.data.images.office import OFFICE
from fedlab.data.images.pacs import PACS
from fedlab.errors import DataError

FULL = os.environ.get("FEDLAB_DATA", "")  # read before the fixture that hides it
SETS = pytest.mark.parametrize("of", [OFFICE, PACS], ids=lambda of: of.name)


def rows(examples):
    return {row.tobytes() for row in examples.columns["x"].numpy()}


# --- what ships ---


@SETS
def test_every_domain_ships_with_two_parts_that_do_not_meet(of):
    for domain in of.domains:
        train, test = load_domain(of, domain, "train"), load_domain(of, domain, "test")
        assert len(train) >= 70 and len(test) >= 70
        assert not rows(train) & rows(test)
        batch = test[:5]
        assert batch["x"].dtype == torch.float32 and torch.isfinite(batch["x"]).all()
        assert set(test.columns["y"].tolist()) == set(range(len(of.classes)))


@SETS
def test_targets_train_without_labels_and_their_file_is_not_opened(of, monkeypatch):
    opened = []
    load = np.load

    def spy(path, **options):
        opened.append(Path(path).name)
        return load(path, **options)

    monkeypatch.setattr(np, "load", spy)
    domain_suites._inputs.cache_clear()
    domain_suites._labels.cache_clear()
    assert set(load_domain(of, of.domains[0], "train").columns) == {"x"}
    assert opened == [f"{of.name}_train.npz"]
    labeled = load_domain(of, of.domains[0], "train", with_labels=True)
    assert opened == [f"{of.name}_train.npz", f"{of.name}_train_labels.npz"]
    assert set(labeled.columns) == {"x", "y"}
    assert torch.equal(labeled.columns["x"], load_domain(of, of.domains[0], "train").columns["x"])


@SETS
def test_training_labels_fit_the_inputs_that_ship(of):
    """The nearest neighbor of a training example in the test part has its class more often than chance."""
    for domain in of.domains:
        train, test = load_domain(of, domain, "train", with_labels=True), load_domain(of, domain, "test")
        far = torch.cdist(train[:]["x"].flatten(1), test[:]["x"].flatten(1))
        right = (test.columns["y"][far.argmin(1)] == train.columns["y"]).float().mean()
        assert right > 1.5 / len(of.classes), domain


# --- a data root ---


def write_office(root, domain="webcam", count=30, **changes):
    folder = root / "office_caltech"
    folder.mkdir(exist_ok=True)
    counts = np.arange(count * 800).reshape(count, 800) % 7
    counts[:, 0] = np.arange(count)  # no two are equal
    labels = np.arange(count).reshape(-1, 1) % 3 + 1
    savemat(folder / f"{domain}.mat", {"fts": counts.astype(np.uint8), "labels": labels.astype(np.uint8), **changes})
    return counts, labels


def test_the_cut_takes_every_class_in_its_share(tmp_path):
    write_office(tmp_path)
    train, test = (
        load_domain(OFFICE, "webcam", "train", tmp_path, with_labels=True),
        load_domain(OFFICE, "webcam", "test", tmp_path),
    )
    assert train.columns["y"].bincount().tolist() == test.columns["y"].bincount().tolist() == [5, 5, 5]
    first = read_part(OFFICE, tmp_path / "office_caltech", "webcam", "train").inputs[:, :2].tolist()
    assert sorted(first) != first  # in random order, so that the beginning is a sample


def test_the_parts_of_a_full_set_are_all_of_it(tmp_path):
    counts, labels = write_office(tmp_path)
    parts = [load_domain(OFFICE, "webcam", split, tmp_path, with_labels=True).columns for split in ("train", "test")]
    found = {(row.numpy().tobytes(), int(y)) for part in parts for row, y in zip(part["x"], part["y"], strict=True)}
    assert found == {(row.astype(np.uint8).tobytes(), int(y) - 1) for row, y in zip(counts, labels[:, 0], strict=True)}


def test_equal_examples_count_once(tmp_path):
    counts, _ = write_office(tmp_path)
    counts[20:] = counts[0]
    write_office(tmp_path, fts=counts.astype(np.uint8))
    parts = [load_domain(OFFICE, "webcam", split, tmp_path) for split in ("train", "test")]
    assert not rows(parts[0]) & rows(parts[1])
    assert sum(map(len, parts)) == len(np.unique(counts, axis=0)) == 20


def test_pacs_is_read_from_jpeg_bytes_and_averaged_down(tmp_path):
    folder = tmp_path / "pacs"
    folder.mkdir()
    files = []
    for number in range(56):
        file = io.BytesIO()
        Image.fromarray(np.full((64, 64, 3), 4 * number, np.uint8)).save(file, "PNG")
        files.append(np.frombuffer(file.getvalue(), np.uint8))
    np.savez(
        folder / "pacs_64.npz",
        buf=np.concatenate(files),
        off=np.cumsum([0, *map(len, files)]),
        y=np.arange(56, dtype=np.uint8) // 2 % 7,
        domain=np.arange(56, dtype=np.uint8) % 2,
        domains=np.array(["art_painting", "sketch"]),
    )
    parts = [load_domain(PACS, "sketch", split, tmp_path, with_labels=True).columns for split in ("train", "test")]
    assert [len(part["y"]) for part in parts] == [19, 9]
    for part in parts:
        number = part["x"][:, 0, 5, 5] // 4
        assert torch.equal(part["y"], number.long() // 2 % 7) and (number % 2 == 1).all()
        assert part["x"].shape[1:] == (3, 32, 32)


@SETS
def test_a_root_without_the_set_leaves_what_ships(of, tmp_path):
    assert torch.equal(
        load_domain(of, of.domains[0], "train", tmp_path).columns["x"],
        load_domain(of, of.domains[0], "train").columns["x"],
    )


def test_what_cannot_be_read_says_where_and_what_to_do(tmp_path):
    with pytest.raises(DataError, match="pacs has no domain 'foto'; did you mean 'photo'"):
        load_domain(PACS, "foto", "train")
    with pytest.raises(DataError, match="no split 'trian'; did you mean 'train'"):
        load_domain(PACS, "photo", "trian")
    with pytest.raises(DataError, match="data root .* is not a folder"):
        load_domain(PACS, "photo", "train", tmp_path / "gone")
    (tmp_path / "pacs").mkdir()
    with pytest.raises(DataError, match=r"pacs: photo cannot be read from .*pacs_64.npz.*replace the file, or unset"):
        load_domain(PACS, "photo", "train", tmp_path)
    write_office(tmp_path, labels=np.full((30, 1), 12, np.uint8))
    with pytest.raises(DataError, match="30 examples with 30 labels of which the largest is 11; .* from 0 to 9"):
        load_domain(OFFICE, "webcam", "train", tmp_path)
    write_office(tmp_path, "dslr", fts=np.zeros((30, 4096), np.uint8))
    with pytest.raises(DataError, match=r"fts of uint8 \(30, 4096\); expected counts \(N, 800\)"):
        load_domain(OFFICE, "dslr", "train", tmp_path)


@pytest.mark.skipif(not FULL, reason="needs FEDLAB_DATA with the full sets")
@SETS
def test_what_ships_is_the_beginning_of_the_full_parts(of):
    root = Path(FULL)
    for part in ("train", "test"):
        domain = "webcam" if of is OFFICE else "photo"
        small, full = (load_domain(of, domain, part, place, with_labels=True) for place in (None, root))
        count = min(of.embedded[part], len(full))
        assert len(small) == count
        assert torch.equal(small.columns["y"], full.columns["y"][:count])
        apart = (small[:]["x"] - full[:count]["x"]).abs().mean()
        assert apart <= 0.05  # JPEG, in images of [-1, 1]; histograms are equal
