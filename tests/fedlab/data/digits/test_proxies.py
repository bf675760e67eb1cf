"""Proxy targets: made from MNIST's test images alone, the same every time, legible as other than their source."""

import random

import numpy as np
import pytest
import torch

from fedlab.data.digits.datasets import DOMAINS, PROXY_SEEDS, load_digits
from fedlab.data.digits.proxies import KINDS, make_proxy, part_rows
from fedlab.data.download import available, download
from fedlab.errors import DataError
from fedlab.workloads.digits import Digits

PROXIES = [name for name, domain in DOMAINS.items() if domain.proxy]
MIN_DIFFERENCE = {"texture": 0.2, "lowres": 0.08, "tight": 0.1, "color": 0.3}  # mean over pixels, of 1


def digits(count=200):
    """MNIST's first test images as stored, (count, 32, 32)."""
    return load_digits("mnist", "test").columns["x"][:count, 0].numpy()


@pytest.fixture(params=sorted(KINDS))
def kind(request):
    return request.param


# The function


def test_shape_range_and_distance_from_the_source(kind):
    images = digits()
    made = make_proxy(images, kind, 3)
    assert (made.shape, made.dtype) == ((200, 32, 32, 3), np.uint8)
    assert made.min() < 10 and made.max() > 245
    assert np.abs(made / 255 - images[..., None] / 255).mean() > MIN_DIFFERENCE[kind]
    assert made.std(axis=(1, 2)).max(axis=1).min() > 5  # no image is blank


def test_same_seed_same_bits_on_any_number_of_threads(kind):
    for count in (1, 200):
        first = make_proxy(digits(count), kind, 3)
        assert np.array_equal(first, make_proxy(digits(count), kind, 3))
        torch.set_num_threads(2)
        assert np.array_equal(first, make_proxy(digits(count), kind, 3))
        torch.set_num_threads(1)


def test_another_seed_gives_another_picture_of_each_digit(kind):
    first, second = make_proxy(digits(50), kind, 3), make_proxy(digits(50), kind, 4)
    assert (first != second).any(axis=(1, 2, 3)).all()


def test_ambient_random_state_is_neither_used_nor_changed(kind):
    images = digits(20)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    first = make_proxy(images, kind, 3)
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before
    torch.manual_seed(2)
    assert np.array_equal(first, make_proxy(images, kind, 3))


def test_images_of_28_are_padded(kind):
    images = digits(20)
    assert np.array_equal(make_proxy(images[:, 2:30, 2:30], kind, 3), make_proxy(images, kind, 3))


def test_the_source_is_left_alone(kind):
    images = digits(20)
    before = images.copy()
    make_proxy(images, kind, 3)
    assert np.array_equal(images, before)


def test_blank_and_full_images_are_no_error(kind):
    """What MNIST never holds must not stop a reader: a frame without a bounding box, one all ink."""
    extremes = np.stack([np.zeros((28, 28), np.uint8), np.full((28, 28), 255, np.uint8)])
    assert make_proxy(extremes, kind, 0).shape == (2, 32, 32, 3)


@pytest.mark.parametrize("kind", ["lowres", "tight"])
def test_boxes_fill_the_frame_but_a_1_stays_narrow(kind):
    bars = np.zeros((2, 28, 28), np.uint8)
    bars[0, 8:18, 9:17] = 255  # 10 high, 8 wide: stretched on both axes
    bars[1, 4:24, 13:15] = 255  # 20 high, 2 wide: a 1
    seen = make_proxy(bars, kind, 0)[..., 0] > 60
    for image in seen:
        assert image.any(1).sum() >= 24  # rows
    assert seen[0].any(0).sum() >= 24  # columns
    assert seen[1].sum(1).mean() < 12  # columns of a row: slanted it may span more


def test_strokes_of_color_stand_out_from_their_ground():
    lightness = make_proxy(digits(), "color", 0) / 255 @ np.array([0.299, 0.587, 0.114])  # (200, 32, 32)
    contrast = np.abs(lightness - np.median(lightness, axis=(1, 2), keepdims=True))
    assert np.quantile(np.quantile(contrast, 0.99, axis=(1, 2)), 0.05) > 0.2


@pytest.mark.parametrize("kind", ["lowres", "tight"])
def test_order_is_kept(kind):
    images = digits(50).copy()
    images[[3, 4, 17, 49]] = 0
    assert np.array_equal(make_proxy(images, kind, 0).any(axis=(1, 2, 3)), images.any(axis=(1, 2)))


def test_kind_and_images_that_do_not_fit():
    with pytest.raises(DataError, match="no proxy 'colors'; did you mean 'color'"):
        make_proxy(digits(2), "colors", 0)
    with pytest.raises(DataError, match=r"from uint8 \(N > 0, 28, 28\) or \(N, 32, 32\), got uint8 \(2, 16, 16\)"):
        make_proxy(np.zeros((2, 16, 16), np.uint8), "tight", 0)
    with pytest.raises(DataError, match=r"got uint8 \(0, 28, 28\)"):
        make_proxy(np.zeros((0, 28, 28), np.uint8), "tight", 0)
    with pytest.raises(DataError, match="got float32"):
        make_proxy(np.zeros((2, 28, 28), np.float32), "tight", 0)


@pytest.mark.parametrize("count", [2, 3, 2000])
def test_the_two_parts_share_no_image_and_leave_none_out(count):
    assert [*part_rows(count, "train"), *part_rows(count, "test")] == list(range(count))
    assert len(part_rows(count, "test")) - len(part_rows(count, "train")) in (0, 1)


# The domains


def test_every_kind_is_a_domain():
    assert [f"proxy_{kind}" for kind in KINDS] == PROXIES


@pytest.mark.parametrize("domain", PROXIES)
def test_images_and_labels_are_those_of_mnist_test(domain):
    source = load_digits("mnist", "test").columns["y"]
    assert torch.equal(load_digits(domain, "train", with_labels=True, upper_bound=True).columns["y"], source[:1000])
    assert torch.equal(load_digits(domain, "train", with_labels=True).columns["y"], source[:1000])
    assert torch.equal(load_digits(domain, "test").columns["y"], source[1000:])
    assert set(load_digits(domain, "train").columns) == {"x"}
    assert torch.equal(
        load_digits(domain, "train").columns["x"],
        load_digits(domain, "train", with_labels=True, upper_bound=True).columns["x"],
    )


@pytest.mark.parametrize("domain", PROXIES)
def test_parts_are_made_from_disjoint_halves_of_mnist_test(domain):
    source, kind = load_digits("mnist", "test").columns["x"][:, 0].numpy(), DOMAINS[domain].proxy
    for split, half in (("train", source[:1000]), ("test", source[1000:])):
        made = make_proxy(half, kind, PROXY_SEEDS[split])
        assert np.array_equal(load_digits(domain, split).columns["x"].permute(0, 2, 3, 1).numpy(), made)


def test_no_training_image_of_the_source_is_among_them():
    trained_on = {image.numpy().tobytes() for image in load_digits("mnist", "train", with_labels=True).columns["x"]}
    assert not trained_on & {image.numpy().tobytes() for image in load_digits("mnist", "test").columns["x"]}


@pytest.mark.parametrize("domain", PROXIES)
def test_proxies_are_made_once_in_a_process(domain):
    assert (
        load_digits(domain, "train").columns["x"].data_ptr()
        == load_digits(domain, "train", with_labels=True, upper_bound=True).columns["x"].data_ptr()
    )


def test_full_sets_are_halved_and_listed(tmp_path, write_mnist):
    write_mnist(tmp_path, count=13)
    assert len(load_digits("proxy_tight", "train", tmp_path)) == 6
    assert load_digits("proxy_tight", "test", tmp_path)[:]["y"].tolist() == [6, 7, 8, 9, 0, 1, 2]
    found = {line.domain: line for line in available(tmp_path)}
    for domain in PROXIES:
        assert found[domain] == (domain, "made from mnist test", 6, 7, "ok")


def test_listed_and_nothing_to_fetch(tmp_path):
    found = {line.domain: line for line in available(None)}
    for domain in PROXIES:
        assert found[domain] == (domain, "made from mnist test", 1000, 1000, "ok")
    said = []
    download(tmp_path, ["proxy_tight"], said.append)
    assert said == ["proxy_tight: comes with fedlab, nothing to fetch"]


def test_sources_that_are_missing_or_too_few(tmp_path, write_mnist):
    (tmp_path / "MNIST").mkdir()
    with pytest.raises(DataError, match="mnist: expected .*t10k-images-idx3-ubyte, found no such file"):
        load_digits("proxy_tight", "train", tmp_path)
    write_mnist(tmp_path, count=1)
    with pytest.raises(DataError, match="holds 1 image, a proxy needs 2"):
        load_digits("proxy_tight", "train", tmp_path)
    with pytest.raises(DataError, match="no digit domain 'proxy_colo'; did you mean 'proxy_color'"):
        load_digits("proxy_colo", "train")


def test_the_workload_takes_proxies_as_targets():
    workload = Digits(targets="proxy_texture,proxy_lowres")
    assert workload.clients == ("proxy_texture", "proxy_lowres")
    for partition in range(2):
        assert set(workload.data(partition, "train")[:4]) == {"x"}
        assert set(workload.data(partition, "test")[:4]) == {"x", "y"}
    assert set(Digits(targets="proxy_texture", client_labels=True).data(0, "train")[:4]) == {"x", "y"}
    metrics = workload.evaluate(workload.model(), workload.data(1, "test"))
    assert 0 <= metrics["accuracy"] <= 1
