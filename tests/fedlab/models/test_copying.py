"""A copied module is what ``copy.deepcopy`` makes of it, and shares nothing with the module."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn

from fedlab.models.copying import copy_module, copy_with_state
from fedlab.models.digits import McdNet, SmallNet
from fedlab.models.fcn import FcnNet
from fedlab.models.norm_layers import GlobalAvgPool
from fedlab.models.resnet10 import ResNet10


class Tied(nn.Module):
    """One weight under two names, one layer in two places, a buffer that is no state, and a list of its layers."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.again = nn.ModuleDict({"first": self.first})
        self.register_buffer("scale", torch.ones(3), persistent=False)
        self.layers, self.note = [self.first, self.second], {"sizes": [3, 3]}
        self.first.register_forward_hook(self.hook)
        self.requires_grad_(False)

    def hook(self, module, arguments, output):
        return output * self.scale

    def forward(self, x):
        return self.second(self.first(x))


class OwnCopy(nn.Linear):
    def __deepcopy__(self, memo):
        return OwnCopy(self.in_features + 1, self.out_features)


class OwnState(nn.Linear):
    def __setstate__(self, state):
        super().__setstate__(state)
        self.was_set = True


class Views(nn.Module):
    """A buffer that is a part of another one."""

    def __init__(self):
        super().__init__()
        self.register_buffer("all", torch.zeros(3))
        self.register_buffer("first", self.all[:1])


class Made(nn.Linear):
    """A layer whose class wants to know a size before it makes one."""

    def __new__(cls, size, *rest):
        return super().__new__(cls)

    def __init__(self, size):
        super().__init__(size, size)

    def __getnewargs__(self):
        return (self.in_features,)


MODULES = {
    "mcd": McdNet,
    "digits": SmallNet,
    "resnet": lambda: ResNet10(5),
    "segmentation": lambda: FcnNet(5),
    "pool": GlobalAvgPool,
    "recurrent": lambda: nn.LSTM(3, 4),
    "attention": lambda: nn.TransformerEncoderLayer(4, 2, 8),
    "tied": Tied,
    "nested": lambda: nn.Sequential(OwnState(2, 2), nn.Conv2d(1, 1, 3), nn.ParameterList([torch.ones(2)])),
}


def structure(module):
    """Class and attributes of every layer, with tensors and layers by their names."""
    tensors = {id(one): name for name, one in [*module.named_parameters(), *module.named_buffers()]}
    layers = {id(one): name for name, one in module.named_modules()}

    def described(value):
        if isinstance(value, torch.Tensor | nn.Module):
            return tensors.get(id(value)) or ("layer", layers.get(id(value)))
        if isinstance(value, dict):
            return [(str(key), described(one)) for key, one in value.items()]
        if isinstance(value, list | tuple):
            return [described(one) for one in value]
        return value if isinstance(value, int | float | str | bool | None) else type(value)

    rows = [(name, type(one), described(vars(one))) for name, one in module.named_modules(remove_duplicate=False)]
    names = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    return rows, names, [(name, one.requires_grad) for name, one in module.named_parameters()]


@pytest.mark.parametrize("name", list(MODULES))
def test_a_copy_is_that_of_deepcopy(name):
    module = MODULES[name]()
    copied, reference = copy_module(module), deepcopy(module)
    assert structure(copied) == structure(reference)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    assert all(torch.equal(value, before[key]) for key, value in copied.state_dict().items())
    for value in copied.state_dict().values():
        value.fill_(7)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_what_is_held_twice_is_held_twice_by_the_copy():
    module = Tied()
    copied = copy_module(module)
    assert copied.first.weight is copied.second.weight is not module.first.weight
    assert copied.again["first"] is copied.first is copied.layers[0]
    (hook,) = copied.first._forward_hooks.values()
    assert hook.__self__ is copied
    module.scale.zero_()
    module.note["sizes"].append(0)
    assert copied(torch.ones(1, 3)).abs().sum() > 0 and copied.note == {"sizes": [3, 3]}


def test_tensors_that_share_memory_share_it_in_the_copy():
    module = Views()
    copied = copy_module(module)
    copied.all.add_(1)
    assert float(copied.first) == 1 and float(module.first) == 0


def test_a_layer_that_says_how_it_is_copied_is_copied_that_way():
    copied = copy_module(nn.Sequential(OwnCopy(2, 2), OwnState(2, 2), Made(2)))
    assert copied[0].in_features == 3 and copied[1].was_set and copied[2].in_features == 2


class OwnLoad(nn.Linear):
    def _load_from_state_dict(self, state, prefix, *rest):
        super()._load_from_state_dict({name: 2 * value for name, value in state.items()}, prefix, *rest)


def hooked():
    module = nn.Linear(2, 2)
    module.register_load_state_dict_post_hook(lambda module, keys: None)
    return module


@pytest.mark.parametrize("name", ["mcd", "digits", "resnet", "segmentation", "pool"])
def test_a_copy_with_a_state_is_a_copy_that_has_loaded_it(name):
    module = MODULES[name]().requires_grad_(False)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    state = {key: value.double() + 1 if value.dim() == 1 else value + 1 for key, value in before.items()}
    copied, reference = copy_with_state(module, state), deepcopy(module)
    reference.load_state_dict(state)
    assert copied is not None and structure(copied) == structure(reference)
    found, expected = copied.state_dict(), reference.state_dict()
    assert all(torch.equal(found[key], value) and found[key].dtype == value.dtype for key, value in expected.items())
    for value in found.values():
        value.fill_(7)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert not any((value == 7).any() for value in state.values() if value.numel())


def test_strides_are_those_of_the_module_as_after_loading():
    module = nn.Conv2d(2, 2, 3).to(memory_format=torch.channels_last)
    copied = copy_with_state(module, nn.Conv2d(2, 2, 3).state_dict())
    assert copied.weight.stride() == module.weight.stride()


@pytest.mark.parametrize(
    "make", [Tied, Views, lambda: OwnLoad(2, 2), hooked, MODULES["nested"], MODULES["recurrent"], MODULES["attention"]]
)
def test_where_loading_is_more_than_to_copy_tensors_there_is_no_such_copy(make):
    module = make()
    assert copy_with_state(module, module.state_dict()) is None
