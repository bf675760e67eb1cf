"""Batches in two parts: the bits of a whole batch from the same stream, and a second part that waits for nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import plain_views
from fedlab import registry
from fedlab.data.dataset import ArrayDataset
from fedlab.data.images.trivial_augment import SPARE_DEVIATIONS, changed, draw_changes, group_sizes
from fedlab.data.pinned import layout, pack, send_together, unpack
from fedlab.data.pixels import to_float
from fedlab.data.random_batches import RandomBatches, RandomTransform, joined, parted
from fedlab.seeds import seeded
from host_waits import NoHostWait

CPU, META = torch.device("cpu"), torch.device("meta")
DIGITS = {"workload": "digits", "strategy": "source_only", "data.max_examples": 40}
IMAGES = {"workload": "images", "strategy": "source_only", "images.client_labels": True, "data.max_examples": 40}
ALL = {"images.crop_padding": 2, "images.augment": "trivial", "images.hflip": True, "images.cutmix": 0.5}
CASES = {
    "digits": DIGITS,
    "wide": {**DIGITS, "digits.augment": "wide"},
    "plain digits": {**DIGITS, "digits.augment": False},
    "images": {**IMAGES, **ALL, "images.min_crop_area": 1.0},
    "cropped": {**IMAGES, **ALL, "images.min_crop_area": 0.3},
    "jitter": {**IMAGES, **ALL, "images.jitter": 0.4},
    "textures": {**DIGITS, "digits.texture": "randconv"},
}
SPLIT = ("digits", "wide", "images", "cropped")


def examples(case):
    return registry.load_config({}, CASES[case]).workload.data(None, "train")


def same(one, other):
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("case", CASES)
def test_a_batch_in_two_parts_has_the_bits_of_a_whole_one(case):
    data = examples(case)
    batches = RandomBatches(data, 13, CPU)
    assert batches.is_split == (case in SPLIT)
    torch.manual_seed(0)
    made = [batches.make(drawn) for drawn in batches.draw_several_at(2, "a", 3)]
    after = torch.rand(1)
    with seeded("a", 3):
        whole = [data.sample_batch(13), data.sample_batch(13)]
    assert all(map(same, made, whole))
    torch.manual_seed(0)
    assert torch.equal(after, torch.rand(1))  # the current stream is left alone
    if not batches.is_split:
        assert same(batches.draw_at("a", 3), whole[0])


@pytest.mark.parametrize("case", SPLIT)
def test_to_make_a_batch_waits_for_nothing(case):
    data = examples(case)
    drawn = RandomBatches(data, 13, CPU).draw_at("a")
    stored = {name: column.to(META) for name, column in data.stored.items()}
    there = RandomBatches(ArrayDataset(stored, data.transform), 13, META)
    drawn = {name: column.to(META) for name, column in drawn.items()}
    with NoHostWait():
        made = there.make(drawn)
    assert {name: column.shape for name, column in made.items()} == {
        name: column.shape for name, column in data.sample_batch(13).items()
    }


def test_what_waits_is_found():
    x = torch.ones(3, device=META)
    for wait in (lambda: x[x > 0], lambda: x + torch.tensor([1.0]), lambda: bool(x[0] > 0)):
        with pytest.raises((AssertionError, RuntimeError)), NoHostWait():
            wait()


def plain_digits(batch, **ranges):
    return {**batch, "x": plain_views.random_recolor(plain_views.random_affine(to_float(batch)["x"], **ranges))}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("size", [2, 13, 128])
def test_views_of_digits_are_those_of_before(size, seed):
    data = examples("digits")
    with seeded(seed):
        rows = torch.randint(len(data), (size,))
        plain = plain_digits({name: column[rows] for name, column in data.columns.items()})
    batches = RandomBatches(data, size, CPU)
    assert torch.equal(batches.make(batches.draw_at(seed))["x"], plain["x"])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("size", [2, 13, 128])
def test_views_of_images_are_those_of_before(size, seed):
    data = examples("images")
    with seeded(seed):
        rows = torch.randint(len(data), (size,))
        x = data.stored["x"][data.rows[rows]].float() / 127.5 - 1
        x = plain_views.trivial_augment(plain_views.padded_crop(x.expand(-1, 3, -1, -1), 2))
        x = torch.where((torch.rand(size) < 0.5)[:, None, None, None], x.flip(-1), x)
        x, pasted, share = plain_views.cutmix(x, data.stored["y"][data.rows[rows]], 0.5)
    batches = RandomBatches(data, size, CPU)
    made = batches.make(batches.draw_at(seed))
    assert torch.equal(made["x"], x)
    assert torch.equal(made["y_pasted"], pasted) and torch.equal(made["pasted_share"], share)


@pytest.mark.parametrize("seed", range(5))
def test_a_group_that_is_larger_than_expected_changes_no_bit(monkeypatch, seed):
    x = 2 * (torch.randint(0, 256, (20, 3, 9, 9)).float() / 255) - 1
    torch.manual_seed(seed)
    plain = plain_views.trivial_augment(x)
    for most in (1, 20):
        monkeypatch.setattr("fedlab.data.images.trivial_augment.group_sizes", lambda count, most=most: (most,) * 9)
        torch.manual_seed(seed)
        assert torch.equal(changed(x, **draw_changes(len(x), 9, fixed=True)), plain)


@pytest.mark.parametrize("count", [1, 7, 64])
def test_groups_of_fixed_sizes_change_no_bit(count):
    x = 2 * (torch.randint(0, 256, (count, 3, 9, 9)).float() / 255) - 1
    needed, fixed = (draw_changes(count, 9, torch.Generator().manual_seed(3), fixed) for fixed in (False, True))
    assert torch.equal(changed(x, **needed), changed(x, **fixed))
    assert len(needed["rows"]) < len(fixed["rows"])


def test_shapes_of_what_is_drawn_are_those_of_any_other_batch():
    torch.manual_seed(0)
    shapes = {tuple(column.shape for column in draw_changes(512, 32, fixed=True).values()) for _ in range(300)}
    assert len(shapes) == 1
    assert SPARE_DEVIATIONS >= 7 and group_sizes(512)[1] < 2.5 * 512 / 14


def test_several_tensors_in_one_row_of_bytes_come_back():
    tensors = {
        "rows": torch.arange(5),
        "flags": torch.tensor([True, False, True]),
        "numbers": torch.randn(3, 7),
        "double": torch.randn(2, dtype=torch.float64),
        "none": torch.empty(0, 4),
        "one": torch.tensor(2.5),
    }
    parts = layout(tensors)
    assert all(part.start % 16 == 0 for part in parts)
    assert same(unpack(pack(tensors, parts), parts), tensors)
    assert same(send_together(tensors, CPU), tensors)


def test_joined_batches_are_parted_again():
    batches = [{"x": torch.ones(number + 1), "drawn x": torch.zeros(2)} for number in range(11)]
    assert all(map(same, parted(joined(batches), 11), batches))


def test_a_set_that_says_itself_how_it_is_drawn_from_is_asked():
    class Ones(ArrayDataset):
        def sample_batch(self, size):
            return self[torch.ones(size, dtype=torch.long)]

    batches = RandomBatches(Ones({"x": torch.arange(4)}), 3, CPU)
    assert batches.make(batches.draw_at("a"))["x"].tolist() == [1, 1, 1]


def test_rows_of_a_selection_without_a_transform_are_looked_up():
    data = ArrayDataset({"x": torch.arange(10)}).select(torch.tensor([3, 7]))
    batches = RandomBatches(data, 50, CPU)
    assert batches.is_split and set(batches.make(batches.draw_at("a"))["x"].tolist()) == {3, 7}


def test_a_transform_in_two_parts_is_one_when_it_is_called():
    noise = RandomTransform(
        lambda count, generator, fixed: {"noise": torch.rand(count, generator=generator)},
        lambda batch, drawn: {**batch, "x": batch["x"] + drawn["noise"]},
    )
    data = ArrayDataset({"x": torch.zeros(9)}, noise)
    torch.manual_seed(1)
    found = data[:4]["x"]
    torch.manual_seed(1)
    assert torch.equal(found, torch.rand(4))
    with pytest.raises(AttributeError):
        replace(noise).draw = None
