import pytest
import torch

from fedlab import launch
from fedlab.config.presets import preset_names, read_preset
from fedlab.data.dataset import ArrayDataset
from fedlab.errors import DataError

CPU = torch.device("cpu")


PRESETS = [name for name in preset_names() if read_preset(name)[1]["workload"] != "image_folder"]  # a user's own files


@pytest.mark.parametrize("preset", PRESETS)
def test_transforms_compute_where_the_columns_are_and_wait_for_no_device(preset):
    try:
        workload = launch.prepare(preset, {}).workload
        sets = [workload.data(partition, "train") for partition in (None, 0)]
    except DataError as missing:
        pytest.skip(f"set FEDLAB_DATA: {missing}")
    for data in sets:
        if data.host_only or data.transform is None:
            continue
        batch = data.transform({name: column[:4].to("meta") for name, column in data.columns.items()})
        assert {column.device.type for column in batch.values()} == {"meta"}


def test_on_a_cpu_a_set_stays_what_it_is():
    data = ArrayDataset({"x": torch.arange(6)})
    assert data.on_device(CPU) is data


def test_an_index_goes_to_the_columns_also_of_selected_rows():
    data = ArrayDataset({"x": torch.arange(6).to("meta")})
    assert data[torch.tensor([1, 2])]["x"].shape == (2,)
    assert data.select(torch.tensor([3, 4, 5]).to("meta"))[torch.tensor([0, 2])]["x"].shape == (2,)


@pytest.mark.gpu
def test_a_column_is_copied_once_and_gives_the_same_batches():
    x = torch.arange(60.0).view(20, 3)
    data, device = ArrayDataset({"x": x}, lambda batch: {"x": batch["x"] + 1}), torch.device("cuda:0")
    some = data.select(torch.arange(5, 15))
    moved, of_some = data.on_device(device), some.on_device(device)
    assert moved.columns["x"] is of_some.columns.stored["x"]
    for one, other in ((data, moved), (some, of_some)):
        torch.manual_seed(0)
        expected = one.sample_batch(8)["x"]
        torch.manual_seed(0)
        found = other.sample_batch(8)["x"]
        assert found.is_cuda
        assert torch.equal(found.cpu(), expected)
