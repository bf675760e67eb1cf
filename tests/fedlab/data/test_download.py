"""Fetching full sets without a network, and the list of what is at hand."""

import socket
import urllib.error

import numpy as np
import pytest

from fedlab.data import download
from fedlab.data.digits import datasets
from fedlab.data.download import available
from fedlab.errors import DataError


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*arguments, **options):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


@pytest.mark.parametrize("domain", ["mnist", "usps", "svhn"])
def test_failing_network_names_set_error_and_remedy(tmp_path, no_network, domain):
    said = []
    with pytest.raises(DataError, match=f"{domain} could not be fetched .*no route to host.*ship with fedlab"):
        download.download(tmp_path, [domain], said.append)
    assert said == []
    assert list(tmp_path.iterdir()) == []  # nothing half done


def test_unreachable_proxy_is_a_sentence_too(tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound but not listening: refuses at once
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{free.getsockname()[1]}")
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        with pytest.raises(DataError, match=r"usps could not be fetched .*refused"):
            download.download(tmp_path, ["usps"], print)


def test_present_sets_are_reported_and_not_fetched(tmp_path, no_network, write_mnist, write_usps, write_npz):
    write_mnist(tmp_path)
    write_usps(tmp_path)
    write_npz(tmp_path, "mnist_m")
    write_npz(tmp_path, "mnist_m", part="test")
    said = []
    download.download(tmp_path, ["mnist", "usps", "mnist_m", "optdigits", "synthdigits"], said.append)
    assert said == [
        f"mnist: present in {tmp_path}, 12 train and 12 test images",
        f"usps: present in {tmp_path}, 12 train and 12 test images",
        f"mnist_m: present in {tmp_path}, 10 train and 10 test images",
        "optdigits: comes with fedlab, nothing to fetch",
        "synthdigits: comes with fedlab, nothing to fetch",
    ]


def test_fetched_files_are_moved_into_place(tmp_path, monkeypatch, write_usps):
    monkeypatch.setitem(download._FETCHERS, "usps", write_usps)
    said = []
    download.download(tmp_path / "new", ["usps"], said.append)
    assert said == [f"usps: fetched into {tmp_path / 'new'}, 12 train and 12 test images"]
    assert len(datasets.load_digits("usps", "test", tmp_path / "new")) == 12
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["USPS"]


def test_transfers_time_out_and_the_default_is_restored(tmp_path, monkeypatch, write_usps):
    before, seen = socket.getdefaulttimeout(), []

    def fetch(folder):
        seen.append(socket.getdefaulttimeout())
        write_usps(folder)

    monkeypatch.setitem(download._FETCHERS, "usps", fetch)
    download.download(tmp_path, ["usps"], print)
    assert seen == [download.TIMEOUT]
    assert socket.getdefaulttimeout() == before


def test_present_but_damaged_is_not_called_present(tmp_path, no_network, write_usps, truncate):
    write_usps(tmp_path)
    truncate(tmp_path / "USPS" / "usps.t.bz2")
    with pytest.raises(DataError, match=r"damaged: .*usps\.t\.bz2.*replace it"):
        download.download(tmp_path, ["usps"], print)


def test_unknown_and_unfetchable_domains(tmp_path):
    with pytest.raises(DataError, match="no digit domain 'minst'; did you mean 'mnist'"):
        download.download(tmp_path, ["minst"], print)
    with pytest.raises(DataError, match=r"mnist_m has no public downloader; put its files at .*mnist_m/train\.npz"):
        download.download(tmp_path, ["mnist_m"], print)


def test_root_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot create the data root"):
        download.download(tmp_path / "file", ["mnist"], print)


# The list


def test_embedded_sets_are_counted_right():
    found = {line.domain: line for line in available(None)}
    assert list(found) == list(datasets.DOMAINS)
    for domain in ("mnist", "usps", "mnist_m", "optdigits", "synthdigits"):
        counts = len(datasets.load_digits(domain, "train")), len(datasets.load_digits(domain, "test"))
        assert (found[domain].train, found[domain].test, found[domain].status) == (*counts, "ok")
    assert found["mnist"].where == "embedded"
    assert found["optdigits"].where == "scikit-learn"
    assert found["svhn"] == ("svhn", "-", None, None, found["svhn"].status)
    assert "svhn does not ship with fedlab" in found["svhn"].status


def test_full_sets_are_counted_from_headers(tmp_path, write_mnist, write_usps, write_npz):
    write_mnist(tmp_path)
    write_usps(tmp_path)
    write_npz(tmp_path, "mnist_m")
    write_npz(tmp_path, "mnist_m", part="test")
    found = {line.domain: line for line in available(tmp_path)}
    assert found["mnist"] == ("mnist", str(tmp_path / "MNIST" / "raw"), 12, 12, "ok")
    assert found["usps"] == ("usps", str(tmp_path / "USPS"), 12, 12, "ok")
    assert found["mnist_m"] == ("mnist_m", str(tmp_path / "mnist_m"), 10, 10, "ok")
    assert found["synthdigits"].where == "embedded"
    assert found["svhn"].status.startswith("missing: expected")


def test_svhn_is_counted_from_its_header(tmp_path):
    io = pytest.importorskip("scipy.io")
    (tmp_path / "SVHN").mkdir()
    for part, labels in (("train", 4), ("test", 3)):
        data = {"X": np.zeros((32, 32, 3, 4), np.uint8), "y": np.ones((labels, 1), np.uint8)}
        io.savemat(tmp_path / "SVHN" / f"{part}_32x32.mat", data)
    line = {line.domain: line for line in available(tmp_path)}["svhn"]
    assert line.train == 4
    assert line.test is None
    assert "hold [3, 4] images and labels" in line.status


def test_list_tells_damage_part_by_part(tmp_path, write_mnist, write_usps, write_npz, truncate):
    write_mnist(tmp_path)
    truncate(tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte")
    write_usps(tmp_path)
    truncate(tmp_path / "USPS" / "usps.bz2")
    truncate(write_npz(tmp_path, "mnist_m"))
    write_npz(tmp_path, "mnist_m", y=np.arange(9), part="test")
    found = {line.domain: line for line in available(tmp_path)}
    assert (found["mnist"].train, found["mnist"].test) == (12, None)
    assert "its header promises 9,424" in found["mnist"].status
    assert (found["usps"].train, found["usps"].test) == (None, 12)
    assert "damaged" in found["usps"].status
    assert "not a zip file" in found["mnist_m"].status
    assert "hold [9, 10] images and labels" in found["mnist_m"].status


def test_root_that_is_no_folder_is_told_once(tmp_path):
    line = available(tmp_path / "nowhere")[0]
    assert line.status.count("is not a folder") == 1
