"""Digit domains: what comes out, what stays hidden, and what is said about damaged files."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity

from fedlab.data.digits import datasets
from fedlab.data.digits.datasets import DOMAINS, EMBEDDED, EmbeddedSetWarning, data_root, load_digits
from fedlab.data.images.domain_suites import load_domain
from fedlab.data.images.office import OFFICE
from fedlab.data.molecules.smiles import molecule_file
from fedlab.errors import DataError

EMBEDDED_DOMAINS = [name for name in DOMAINS if name != "svhn"]
COUNTS = {
    "mnist": (6000, 2000),
    "usps": (4000, 2007),
    "mnist_m": (2500, 1500),
    "optdigits": (1200, 597),
    "synthdigits": (2500, 1500),
    **{name: (1000, 1000) for name, domain in DOMAINS.items() if domain.proxy},
}
FULL_COUNTS = {"mnist": (60000, 10000), "usps": (7291, 2007), "mnist_m": (12000, 4500)}
FULL = os.environ.get("FEDLAB_DATA")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An empty folder in the place of the embedded one."""
    monkeypatch.setattr(datasets, "EMBEDDED", tmp_path)
    return tmp_path


# What comes out


@pytest.mark.parametrize("domain", EMBEDDED_DOMAINS)
@pytest.mark.parametrize(("split", "labels"), [("train", False), ("test", False), ("train", True)])
def test_every_domain_has_one_shape_and_range(domain, split, labels):
    examples = load_digits(domain, split, with_labels=labels, upper_bound=labels)
    assert len(examples) == COUNTS[domain][split == "test"]
    assert examples.columns["x"].dtype == torch.uint8
    batch = examples[: len(examples)]
    assert batch["x"].shape == (len(examples), 3, 32, 32)
    assert batch["x"].dtype == torch.float32
    assert batch["x"].min() == -1
    assert batch["x"].max() > 0.9
    if split == "test" or labels:
        assert batch["y"].dtype == torch.int64
        assert set(batch["y"].tolist()) == set(range(10))


@pytest.mark.parametrize("domain", ["mnist", "usps", "optdigits"])
def test_gray_domains_are_white_on_black(domain):
    x = load_digits(domain, "test")[:]["x"]
    assert torch.equal(x[:, 0], x[:, 2])
    border = torch.cat([x[..., 0].flatten(), x[..., -1].flatten()])  # left and right
    assert border.median() == -1
    assert x[..., 8:24, 8:24].mean() > x.mean()


def test_mnist_is_padded_not_stretched():
    with np.load(EMBEDDED / "mnist_train.npz") as archive:
        stored = torch.from_numpy(archive["x"][:5])
    columns = load_digits("mnist", "train").columns["x"][:5]
    assert torch.equal(columns[:, 1, 2:30, 2:30], stored)
    assert columns[:, :, :2].max() == 0


def test_optdigits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits as reference

    images, labels = reference(return_X_y=True)
    parts = [DOMAINS["optdigits"].read_full(Path(), part) for part in ("train", "test")]
    order = np.random.default_rng(1797).permutation(1797)
    assert np.array_equal(np.concatenate([part.labels for part in parts]), labels[order])
    found = np.concatenate([part.images for part in parts]).reshape(1797, 64)
    assert np.array_equal(found, np.rint(images[order] * (255 / 16)).astype(np.uint8))
    assert parts[0].labels.dtype == labels.dtype


def test_optdigits_parts_share_no_image():
    train, test = load_digits("optdigits", "train").columns["x"], load_digits("optdigits", "test").columns["x"]
    assert not {image.numpy().tobytes() for image in train} & {image.numpy().tobytes() for image in test}
    assert len(train) + len(test) == 1797


def test_oracle_labels_belong_to_the_images():
    """The nearest neighbor in the test set of USPS names most training images rightly."""
    train, test = load_digits("usps", "train", with_labels=True, upper_bound=True)[:300], load_digits("usps", "test")[:]
    distances = torch.cdist(train["x"][:, 0].flatten(1), test["x"][:, 0].flatten(1))
    assert test["y"][distances.argmin(1)].eq(train["y"]).float().mean() > 0.85


def test_arrays_are_decoded_once_in_a_process():
    first, second = load_digits("mnist_m", "test"), load_digits("mnist_m", "test")
    assert first.columns["x"].data_ptr() == second.columns["x"].data_ptr()


def test_changing_a_batch_leaves_the_shared_columns_alone():
    examples = load_digits("usps", "test")
    before = examples.columns["x"][0].clone(), examples.columns["y"][0].item()
    for batch in (examples[:2], examples[torch.tensor([0, 1])], examples[0]):
        batch["x"].zero_()
        batch["y"].fill_(-1)
    assert torch.equal(examples.columns["x"][0], before[0])
    assert examples.columns["y"][0] == before[1]


# What stays hidden


@pytest.mark.parametrize("domain", EMBEDDED_DOMAINS)
def test_train_has_no_label_column(domain):
    examples = load_digits(domain, "train")
    assert set(examples.columns) == {"x"}
    assert set(examples[:3]) == {"x"}


def test_training_files_of_targets_hold_no_labels():
    for path in (EMBEDDED / f"{domain}_train.npz" for domain in ("mnist", "usps", "mnist_m", "synthdigits")):
        with np.load(path) as archive:
            assert len(archive.files) == (2 if path.name == "mnist_train.npz" else 1), path.name


@pytest.mark.parametrize(("split", "labels"), [("train", False), ("train", True), ("test", True)])
def test_only_upper_bounds_open_their_file(package, split, labels):
    for path in Path(__file__).parents[4].joinpath("fedlab/data/embedded").glob("*.npz"):
        if path.name != datasets.BOUND_LABELS:
            os.symlink(path, package / path.name)
    load_digits("mnist", split, with_labels=labels)
    if split == "test" or not labels:
        load_digits("usps", split, with_labels=labels)
    with pytest.raises(DataError, match=r"bounds_only_train_labels\.npz cannot be read"):
        load_digits("usps", "train", with_labels=True, upper_bound=True)


def test_labels_are_refused_for_an_embedded_target():
    assert set(load_digits("mnist", "train", with_labels=True).columns) == {"x", "y"}
    with pytest.raises(DataError, match=r"usps ships without training labels.*upper_bound=True"):
        load_digits("usps", "train", with_labels=True)


def test_embedded_mnist_m_is_not_drawn_from_embedded_mnist():
    """A digit and its own MNIST-M image correlate by 0.58 (either sign, mean over the full sets), strangers by 0.27."""
    target = load_digits("mnist_m", "train")[:200]["x"].mean(1).flatten(1)
    source = load_digits("mnist", "train")[:200]["x"][:, 0].flatten(1)
    target, source = (x - x.mean(1, keepdim=True) for x in (target, source))
    assert cosine_similarity(target, source).abs().mean() < 0.35


@pytest.mark.skipif(not FULL, reason="FEDLAB_DATA is not set: no full sets to read")
def test_embedded_mnist_m_begins_where_embedded_mnist_ends():
    full, small = (
        load_digits("mnist_m", "train", Path(FULL), with_labels=True, upper_bound=True),
        load_digits("mnist_m", "train", with_labels=True, upper_bound=True),
    )
    assert torch.equal(full.columns["x"][6000:8500], small.columns["x"])
    assert torch.equal(full.columns["y"][6000:8500], small.columns["y"])
    assert torch.equal(
        load_digits("mnist", "train", Path(FULL), with_labels=True).columns["y"][6000:8500], small.columns["y"]
    )


# Names and roots


def test_unknown_domain_names_a_suggest():
    with pytest.raises(DataError, match="no digit domain 'mnistm'; did you mean 'mnist_m'"):
        load_digits("mnistm", "train")


def test_unknown_split_names_a_suggest():
    with pytest.raises(DataError, match="no split 'trian'; did you mean 'train'"):
        load_digits("mnist", "trian")


def test_svhn_without_root_says_where_to_get_it():
    with pytest.raises(DataError, match=r"svhn does not ship with fedlab.*fedlab data download.*SVHN/"):
        load_digits("svhn", "train")


def test_data_root_prefers_what_is_given(monkeypatch):
    monkeypatch.setenv("FEDLAB_DATA", "/from/environment")
    assert data_root("/given") == Path("/given")
    assert data_root("") == data_root(None) == Path("/from/environment")
    monkeypatch.setenv("FEDLAB_DATA", "")
    assert data_root("") is None
    monkeypatch.delenv("FEDLAB_DATA")
    assert data_root() is None
    assert data_root("~/sets") == Path.home() / "sets"


def test_root_that_is_no_folder(tmp_path):
    with pytest.raises(DataError, match=r"data root .*nowhere is not a folder"):
        load_digits("mnist", "train", tmp_path / "nowhere")


@pytest.mark.parametrize(("domain", "count"), [("mnist", 6000), ("usps", 4000), ("mnist_m", 2500)])
def test_root_without_the_folder_of_a_set_reads_the_one_that_ships_and_says_so(tmp_path, domain, count):
    with pytest.warns(EmbeddedSetWarning, match=f"{tmp_path} has no folder of {domain}"):
        assert len(load_digits(domain, "train", tmp_path)) == count


@pytest.mark.parametrize(
    ("domain", "expected"),
    [("mnist", "train-images-idx3-ubyte"), ("usps", "usps.bz2"), ("mnist_m", "train.npz"), ("svhn", "train_32x32.mat")],
)
def test_root_whose_folder_of_a_set_lacks_a_file_is_no_fallback(tmp_path, domain, expected):
    for folder in ("MNIST", "USPS", "mnist_m"):
        (tmp_path / folder).mkdir()
    with pytest.raises(DataError, match=f"{domain}: expected .*{expected}, found no such file.*unset data.root"):
        load_digits(domain, "train", tmp_path)


def test_root_without_synthdigits_and_optdigits_reads_those_that_ship(tmp_path, write_npz):
    assert len(load_digits("synthdigits", "test", tmp_path)) == 1500
    assert len(load_digits("optdigits", "test", tmp_path)) == 597
    write_npz(tmp_path, "synthdigits")
    assert len(load_digits("synthdigits", "train", tmp_path)) == 10
    with pytest.raises(DataError, match=r"expected .*synthdigits/test\.npz"):
        load_digits("synthdigits", "test", tmp_path)


# Full sets, small ones of the same format


def test_full_mnist_format(tmp_path, write_mnist):
    write_mnist(tmp_path)
    assert load_digits("mnist", "train", tmp_path, with_labels=True)[:]["y"].tolist() == [i % 10 for i in range(12)]
    assert load_digits("mnist", "train", tmp_path).columns["x"][0, 0, 2, 2:6].tolist() == [0, 1, 2, 3]


def test_full_usps_format(tmp_path, write_usps):
    write_usps(tmp_path)
    batch = load_digits("usps", "train", tmp_path, with_labels=True, upper_bound=True)[:]
    assert batch["y"].tolist() == [i % 10 for i in range(12)]
    assert batch["x"][0, 0, 0, 0] < -0.98
    assert batch["x"][0, 0, -1, -1] > 0.95


def test_full_svhn_format(tmp_path, monkeypatch):
    io = pytest.importorskip("scipy.io")
    from torchvision.datasets import SVHN
    from torchvision.datasets.utils import calculate_md5

    path = tmp_path / "SVHN" / "test_32x32.mat"
    path.parent.mkdir()
    x = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 6), dtype=np.uint8)
    io.savemat(path, {"X": x, "y": np.array([[10], [1], [2], [3], [4], [9]], np.uint8)})
    with pytest.raises(DataError, match=r"test_32x32\.mat cannot be read .*corrupted"):
        load_digits("svhn", "test", tmp_path)  # not the published file
    monkeypatch.setitem(SVHN.split_list, "test", ["", path.name, calculate_md5(path)])
    examples = load_digits("svhn", "test", tmp_path)
    assert examples.columns["y"].tolist() == [0, 1, 2, 3, 4, 9]
    assert examples.columns["x"][5, 2, 7, 9] == x[7, 9, 2, 5]


@pytest.mark.skipif(not FULL, reason="FEDLAB_DATA is not set: no full sets to read")
@pytest.mark.parametrize("domain", ["mnist", "mnist_m"])
def test_full_set_begins_like_the_embedded_one(domain):
    full, small = load_digits(domain, "test", Path(FULL)), load_digits(domain, "test")
    assert len(full) == FULL_COUNTS[domain][1]
    assert torch.equal(full.columns["y"][: len(small)], small.columns["y"])
    assert torch.equal(full.columns["x"][: len(small)], small.columns["x"])


@pytest.mark.skipif(not FULL, reason="FEDLAB_DATA is not set: no full sets to read")
def test_full_usps_test_set_is_the_embedded_one():
    full, small = load_digits("usps", "test", Path(FULL)), load_digits("usps", "test")
    assert torch.equal(full.columns["y"], small.columns["y"])
    assert torch.equal(full.columns["x"], small.columns["x"])


# Damage


def test_missing_embedded_file(package):
    with pytest.raises(DataError, match=r"usps_test\.npz, found no such file; reinstall fedlab"):
        load_digits("usps", "test")


@pytest.mark.parametrize("name", ["usps_test", "mnist_m_test"])
def test_truncated_embedded_npz(package, name, truncate):
    shutil.copy(EMBEDDED / f"{name}.npz", package)
    truncate(package / f"{name}.npz")
    with pytest.raises(DataError, match=rf"{name}\.npz cannot be read .*reinstall fedlab"):
        load_digits(name.removesuffix("_test"), "test")


@pytest.mark.parametrize("domain", ["synthdigits", "mnist_m"])  # JPEG, WebP
def test_damaged_picture_in_whole_npz(package, domain):
    with np.load(EMBEDDED / f"{domain}_test.npz") as archive:
        sheet, y = archive["sheet"], archive["y"]
    np.savez(package / f"{domain}_test.npz", sheet=sheet[: len(sheet) // 2], y=y)
    with pytest.raises(DataError, match=rf"{domain}_test\.npz cannot be read"):
        load_digits(domain, "test")
    np.savez(package / f"{domain}_test.npz", sheet=np.zeros(100, np.uint8), y=y)
    with pytest.raises(DataError, match="cannot identify image"):
        load_digits(domain, "test")


def test_bounds_file_that_does_not_fit(package):
    shutil.copy(EMBEDDED / "usps_train.npz", package)
    np.savez(package / datasets.BOUND_LABELS, usps=np.zeros(7, np.uint8))
    with pytest.raises(DataError, match=r"labels of uint8 \(7,\) for 4000 images"):
        load_digits("usps", "train", with_labels=True, upper_bound=True)
    np.savez(package / datasets.BOUND_LABELS, mnist_m=np.zeros(7, np.uint8))
    with pytest.raises(DataError, match=r"cannot be read .*usps"):
        load_digits("usps", "train", with_labels=True, upper_bound=True)


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        (np.zeros((10, 28, 28), np.uint8), None, r"images of uint8 \(10, 28, 28\), expected uint8 \(N, 32, 32, 3\)"),
        (np.zeros((10, 32, 32, 3), np.float32), None, "images of float32"),
        (np.zeros((0, 32, 32, 3), np.uint8), np.zeros(0, int), "with N at least 1"),
        (None, np.arange(9), r"labels of int64 \(9,\) for 10 images"),
        (None, np.arange(10) / 2, "labels of float64"),
        (None, np.arange(1, 11), r"labels 1\.\.10, expected 0\.\.9"),
        (None, np.arange(-1, 9), r"labels -1\.\.8, expected 0\.\.9"),
    ],
)
def test_npz_of_wrong_content(tmp_path, x, y, said, write_npz):
    write_npz(tmp_path, "mnist_m", x, y)
    with pytest.raises(DataError, match=f"mnist_m: .*{said}.*; replace the file, or unset data.root"):
        load_digits("mnist_m", "train", tmp_path, with_labels=True, upper_bound=True)


def test_truncated_and_foreign_full_npz(tmp_path, write_npz, truncate):
    truncate(write_npz(tmp_path, "mnist_m"))
    with pytest.raises(DataError, match=r"mnist_m/train\.npz cannot be read"):
        load_digits("mnist_m", "train", tmp_path)
    (tmp_path / "mnist_m" / "test.npz").write_text("<html>404</html>")
    with pytest.raises(DataError, match=r"mnist_m/test\.npz cannot be read"):
        load_digits("mnist_m", "test", tmp_path)
    np.savez(tmp_path / "mnist_m" / "test.npz", other=np.zeros(3))
    with pytest.raises(DataError, match=r"cannot be read .*sheet"):
        load_digits("mnist_m", "test", tmp_path)


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"])
def test_truncated_mnist(tmp_path, name, write_mnist, truncate):
    write_mnist(tmp_path)
    truncate(tmp_path / "MNIST" / "raw" / name)
    with pytest.raises(DataError, match=f"mnist: .*{name}.* cannot be read"):
        load_digits("mnist", "train", tmp_path, with_labels=True)


def test_empty_mnist_file(tmp_path, write_mnist):
    write_mnist(tmp_path)
    (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(b"")
    with pytest.raises(DataError, match=r"mnist: .*cannot be read"):
        load_digits("mnist", "train", tmp_path)


def test_truncated_usps(tmp_path, write_usps, truncate):
    write_usps(tmp_path)
    truncate(tmp_path / "USPS" / "usps.bz2")
    with pytest.raises(DataError, match=r"usps: .*usps\.bz2 cannot be read .*end-of-stream"):
        load_digits("usps", "train", tmp_path)


def test_a_mended_file_is_read_anew(tmp_path, write_npz, truncate):
    path = write_npz(tmp_path, "mnist_m")
    whole = path.read_bytes()
    truncate(path)
    with pytest.raises(DataError):
        load_digits("mnist_m", "train", tmp_path)
    path.write_bytes(whole)
    assert len(load_digits("mnist_m", "train", tmp_path)) == 10


def test_the_remedy_names_the_setting_that_the_folder_came_from(tmp_path, monkeypatch):
    """A sentence names FEDLAB_DATA only where the folder is that one."""
    readers = {
        "MNIST/raw": lambda root: load_digits("mnist", "test", root),
        "molecules": lambda root: molecule_file("qm9", "train", root),
        "not a folder": lambda root: load_digits("mnist", "test", root / "none"),
        "replace the file": lambda root: load_domain(OFFICE, "amazon", "test", root),
    }
    for folder in (OFFICE.folder, "MNIST", "molecules"):
        (tmp_path / folder).mkdir()
    monkeypatch.setenv("FEDLAB_DATA", str(tmp_path / "other"))
    for setting in ("data.root", "FEDLAB_DATA"):
        for words, read in readers.items():
            with pytest.raises(DataError, match=f"{words}.*unset {setting}"):
                read(tmp_path)
        monkeypatch.setenv("FEDLAB_DATA", str(tmp_path))
