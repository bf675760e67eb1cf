"""Small data folders that the readers take."""

from __future__ import annotations

import struct

import numpy as np

from benchmarks.gpu.data import CACHE, copy_molecules, copy_usps, first_mnist, first_mnist_m, some_of_each_class
from fedlab.data.digits.datasets import EMBEDDED, load_digits
from fedlab.data.molecules import graphs, smiles


def test_some_pictures_of_each_class_with_their_bounds():
    pictures = {"buf": np.arange(10, dtype=np.uint8), "off": np.array([0, 1, 3, 6, 10]), "y": np.array([1, 0, 1, 0])}
    buffer, bounds, y = some_of_each_class(pictures, 2)
    assert buffer.tolist() == [0, 1, 2] and bounds.tolist() == [0, 1, 3] and y.tolist() == [1, 0]


def test_the_first_digits_are_read_as_from_the_full_sets(tmp_path):
    root, out = tmp_path / "full", tmp_path / "small"
    (root / "MNIST/raw").mkdir(parents=True)
    (root / "mnist_m").mkdir()
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (12, 28, 28)).astype(np.uint8), np.arange(12, dtype=np.uint8) % 10
    for name in ("train", "t10k"):
        header = struct.pack(">iiii", 2051, 12, 28, 28)
        (root / f"MNIST/raw/{name}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (root / f"MNIST/raw/{name}-labels-idx1-ubyte").write_bytes(struct.pack(">ii", 2049, 12) + labels.tobytes())
    smooth = np.full((12, 32, 32, 3), 50, np.uint8) + np.arange(12, dtype=np.uint8)[:, None, None, None] * 10
    for part in ("train", "test"):
        np.savez(root / f"mnist_m/{part}.npz", x=smooth, y=labels)
    for write in (first_mnist, first_mnist_m):
        write(root, out, (6, 4))
    full, small = (
        load_digits("mnist", "train", root, with_labels=True),
        load_digits("mnist", "train", out, with_labels=True),
    )
    assert (small.columns["x"] == full.columns["x"][:6]).all() and small.columns["y"].tolist() == [0, 1, 2, 3, 4, 5]
    colored = load_digits("mnist_m", "test", out).columns
    assert colored["y"].tolist() == [0, 1, 2, 3]
    assert np.abs(colored["x"].numpy().mean((1, 2, 3)) - smooth[:4].mean((1, 2, 3))).max() < 4  # WebP loses a little


def test_molecules_are_carried_parsed_in_both_orders_of_atoms(tmp_path, monkeypatch):
    root, out = tmp_path / "full", tmp_path / "small"
    (root / "molecules").mkdir(parents=True)
    for file in smiles.FILES.values():
        lines = (EMBEDDED / file.replace("zinc_subset", "qm9")).read_text().splitlines(keepends=True)
        (root / "molecules" / file).write_text("".join(lines[:50]))
    monkeypatch.setattr(smiles, "PARALLEL_LINES", 10)
    monkeypatch.setattr(smiles.joblib, "Parallel", lambda n_jobs: list)
    monkeypatch.setattr(smiles.joblib, "delayed", lambda function: function)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    copy_molecules(root, out, (0, 0))
    copy_molecules(root, out, (0, 0))  # over one that is there
    assert not (tmp_path / "own").exists()
    smiles.load_molecules.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(out / CACHE))
    monkeypatch.setattr(smiles, "_parse", None)  # nothing is parsed there
    for order in ("file", "canonical"):
        assert len(smiles.load_molecules(out / "molecules/qm9_train.smi", graphs.QM9, order=order)) > 10


def test_files_that_may_not_be_written_to_are_carried_over_those_that_are_there(tmp_path):
    root, out = tmp_path / "full", tmp_path / "small"
    (root / "USPS").mkdir(parents=True)
    (root / "USPS/usps.bz2").write_bytes(b"images")
    (root / "USPS/usps.bz2").chmod(0o400)
    (root / "USPS").chmod(0o500)
    for _ in range(2):
        copy_usps(root, out, (0, 0))
    assert (out / "USPS/usps.bz2").stat().st_mode & 0o200 and (out / "USPS").stat().st_mode & 0o200
