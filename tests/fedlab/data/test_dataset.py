"""Examples against plain indexing."""

import pytest
import torch

from fedlab.data.dataset import ArrayDataset


def _examples(transform=None):
    return ArrayDataset({"x": torch.arange(10.0).reshape(5, 2), "y": torch.arange(5)}, transform)


def test_one_index_gives_whole_batch():
    batch = _examples()[torch.tensor([4, 0, 4])]
    assert batch["x"].tolist() == [[8, 9], [0, 1], [8, 9]]
    assert batch["y"].tolist() == [4, 0, 4]


def test_batches_cover_all_once_in_order():
    batches = list(_examples().batches(2))
    assert [len(batch["y"]) for batch in batches] == [2, 2, 1]
    assert torch.cat([batch["y"] for batch in batches]).tolist() == list(range(5))


def test_transform_is_applied_to_each_batch():
    doubled = _examples(lambda batch: {**batch, "x": batch["x"] * 2})
    assert doubled[1:3]["x"].tolist() == [[4, 6], [8, 10]]
    assert doubled.columns["x"].tolist()[1] == [2, 3]


def test_sample_follows_the_ambient_random_stream():
    examples = _examples()
    torch.manual_seed(7)
    first = examples.sample_batch(50)["y"]
    torch.manual_seed(7)
    assert torch.equal(first, examples.sample_batch(50)["y"])
    assert set(first.tolist()) == set(range(5))


def test_length_is_the_number_of_rows():
    assert len(_examples()) == 5


def test_columns_of_different_length_are_refused():
    with pytest.raises(ValueError, match=r"need one length, got \{'x': 3, 'y': 2\}"):
        ArrayDataset({"x": torch.zeros(3), "y": torch.zeros(2)})


def test_no_column_is_refused():
    with pytest.raises(ValueError, match="need one length"):
        ArrayDataset({})


def test_selected_rows_are_read_as_a_copy_of_them_would_be():
    doubled = _examples(lambda batch: {**batch, "x": batch["x"] * 2})
    for rows in (torch.tensor([4, 1, 1]), slice(1, 4), torch.tensor([True, False, True, True, False])):
        part = doubled.select(rows)
        plain = ArrayDataset({name: column[rows] for name, column in doubled.columns.items()}, doubled.transform)
        assert len(part) == len(plain) == 3
        for index in (torch.tensor([2, 0]), slice(0, 2)):
            assert {name: c.tolist() for name, c in part[index].items()} == {
                name: c.tolist() for name, c in plain[index].items()
            }
        assert torch.equal(part.columns["x"], plain.columns["x"])
        assert [len(batch["y"]) for batch in part.batches(2)] == [2, 1]
        assert part.select(torch.tensor([1]))[:]["y"].tolist() == plain[1:2]["y"].tolist()
        assert list(part.columns) == ["x", "y"] and "z" not in part.columns


def test_selecting_copies_nothing_until_a_column_is_read():
    whole = _examples()
    part = whole.select(torch.tensor([0, 3]))
    whole.columns["y"][3] = 7  # still seen, so nothing was copied
    assert part.columns["y"].tolist() == [0, 7]
    assert part.columns["y"] is part.columns["y"]


def test_columns_can_be_left_out():
    for data in (_examples(), _examples().select(torch.tensor([1, 2]))):
        bare = data.without("y")
        assert list(bare.columns) == ["x"] and set(bare[:1]) == {"x"} and len(bare) == len(data)
        assert "y" in data.columns
