"""A classification problem from objects of a notebook: a model, and arrays or data sets of the server and the clients.

**Metrics**: ``accuracy``, the fraction of test examples whose largest logit is the label's; ``loss``, the mean
cross-entropy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedlab.data.dataset import ArrayDataset, Batch
from fedlab.data.given_arrays import read_examples
from fedlab.data.sources import DataSource
from fedlab.errors import ConfigError, NoServerDataError
from fedlab.seeds import seeded
from fedlab.workload import WorkloadSpec
from fedlab.workloads.domain_suite import ACCURACY, accuracy_and_loss

SERVER = "the server"
TRIED = 2  # examples on which a model is tried
HELD_OUT = 5  # every so many-th labeled example, class by class, is for testing, where no test examples are given


def classification(
    model: nn.Module | Callable[[], nn.Module],
    clients: Mapping[str, object],
    server: object = None,
    test: Mapping[str, object] | None = None,
    classes: Sequence[str] = (),
) -> WorkloadSpec:
    """Return a classification problem for ``fedlab.run(workload=...)``, from a model and examples of this program.

    Examples are a pair of arrays ``(x, y)``, inputs (examples, ...) and classes (examples,) from 0; inputs ``x`` alone,
    which have no labels; or a torch data set of such pairs, which is read once. Arrays are NumPy's, tensors, or data
    frames and series of pandas, whose rows go by their order. The model is tried on an example or two of everyone.

    Parameters
    ----------
    model
        Maps inputs (batch, ...) to logits (batch, classes): a module, whose weights are the initial ones, or a function
        that makes one. Strategies that adapt want one with parts ``features`` and ``head``.
    clients
        Training examples of each client by name; those without labels suit strategies that need none.
    server
        Labeled examples of the server, of which every fifth, class by class, is for testing; None where the strategy
        takes no step on it.
    test
        Labeled test examples of clients by name. A client without any is tested on every fifth of its own labeled
        examples, class by class, which it then does not train on.
    classes
        Names of the classes, by label, one for each output of the model; empty: their numbers.

    Raises
    ------
    ConfigError
        When something is none of these, there is no client, a client has nothing to be tested on, or the model does not
        fit the examples.

    Examples
    --------
    >>> clients = {"a": (torch.randn(50, 4), torch.arange(50) % 3), "b": (torch.randn(40, 4), torch.arange(40) % 3)}
    >>> classification(lambda: nn.Linear(4, 3), clients).workload.clients
    ('a', 'b')
    """
    if not isinstance(clients, Mapping) or not clients:
        raise ConfigError("there are no clients; give their examples by name, as {'a': (x, y), 'b': (x, y)}")
    if not isinstance(test or {}, Mapping):
        raise ConfigError(f"test is a {type(test).__name__}; give test examples by client, as test={{'a': (x, y)}}")
    if strangers := sorted((test or {}).keys() - clients.keys(), key=str):
        raise ConfigError(f"test examples are given for {', '.join(map(str, strangers))}, which no client is called")
    owners = [_split(name, found, (test or {}).get(name)) for name, found in clients.items()]
    own = None if server is None else _split(SERVER, server, None)
    everyone = {**dict(zip(clients, owners, strict=True)), **({} if own is None else {SERVER: own})}
    outputs = number_of_outputs(model, everyone)
    if isinstance(classes, str) or len(classes) not in (0, outputs):
        raise ConfigError(
            f"classes={classes!r} and a model with {outputs} outputs; give one name for each output, or none"
        )
    return WorkloadSpec(
        Classification(model, dict(zip(clients, owners, strict=True)), own, tuple(classes) or numbered(outputs)),
        primary_metric="accuracy",
        metrics=(ACCURACY,),
        name="classification",
    )


def numbered(outputs: int) -> tuple[str, ...]:
    """Return the names of classes without names."""
    return tuple(map(str, range(outputs)))


def make(model: nn.Module | Callable[[], nn.Module]) -> nn.Module:
    """Return a fresh model: a copy of a module, or what a function makes.

    Raises
    ------
    ConfigError
        When it is neither.
    """
    if isinstance(model, nn.Module):
        return deepcopy(model)
    if not callable(model):
        raise ConfigError(f"the model is a {type(model).__name__}; give a torch module, or a function that makes one")
    try:
        made = model()
    except Exception as error:
        raise ConfigError(
            f"the model cannot be made: calling {getattr(model, '__name__', model)!r} without arguments raised "
            f"{type(error).__name__}: {error}; give a module, or a function such as lambda: Net(10)"
        ) from error
    if not isinstance(made, nn.Module):
        raise ConfigError(f"the function that makes the model returned a {type(made).__name__}; a module is expected")
    return made


@torch.no_grad()
def number_of_outputs(
    model: nn.Module | Callable[[], nn.Module], owners: Mapping[str, Mapping[str, ArrayDataset]]
) -> int:
    """Try a model on a few examples of everyone, and return how many classes it tells apart.

    Raises
    ------
    ConfigError
        When it cannot take them, returns something else than logits (batch, classes), or has too few classes.
    """
    with seeded("trial of a model"):
        tried = make(model).eval()
    device = next((tensor.device for tensor in tried.parameters()), torch.device("cpu"))
    outputs = 0
    for owner, parts in owners.items():
        for data in parts.values():
            x = data[:TRIED]["x"].to(device)
            outputs = _logits(owner, tried, x).shape[1]
            if "y" in data.columns and (largest := int(data.columns["y"].max())) >= outputs:
                raise ConfigError(
                    f"{owner} has the label {largest}, and the model has {outputs} outputs, for labels from 0 to "
                    f"{outputs - 1}; give the model {largest + 1} outputs, or number the labels from 0"
                )
    return outputs


def _logits(owner: str, model: nn.Module, x: Tensor) -> Tensor:
    """Return logits (batch, classes) of inputs (batch, ...)."""
    given = f"inputs of {owner}, of shape (batch{''.join(f', {size}' for size in x.shape[1:])}) and type {x.dtype}"
    try:
        logits = model(x)
    except Exception as error:
        floats = "" if x.is_floating_point() else "; a model that takes floats needs x as floats, for images x / 255"
        raise ConfigError(f"the model cannot take the {given}: {type(error).__name__}: {error}{floats}") from error
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(x) or not logits.is_floating_point():
        shape = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"type {type(logits).__name__}"
        raise ConfigError(
            f"for {len(x)} {given}, the model returned an output of {shape}; logits (batch, classes) are expected"
        )
    return logits


class Classification:
    """The four methods, see :class:`fedlab.workload.Workload`."""

    def __init__(
        self,
        model: nn.Module | Callable[[], nn.Module],
        owners: Mapping[str, Mapping[str, ArrayDataset]],
        server: Mapping[str, ArrayDataset] | None,
        classes: Sequence[str],
    ) -> None:
        self._model, self._owners, self._server = model, list(owners.values()), server
        self.clients = tuple(owners)
        self.classes = tuple(classes)

    def model(self) -> nn.Module:
        """Return a fresh model."""
        return make(self._model)

    def data(self, partition: int | None, split: str) -> ArrayDataset:
        """Return inputs ``x`` and, where their owner has labels, classes ``y``.

        Raises
        ------
        NoServerDataError
            When the server has no examples.
        """
        owner = self._server if partition is None else self._owners[partition]
        if owner is None:
            raise NoServerDataError("this task has no examples on the server; give classification(..., server=(x, y))")
        return owner[split]

    def data_sources(self, partition: int | None) -> Sequence[DataSource]:
        """See :class:`fedlab.workload.SupportsDataSources`."""
        name = SERVER if partition is None else self.clients[partition]
        return [DataSource(name, len(self.data(partition, "train")), "this program")]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean cross-entropy, a scalar."""
        return cross_entropy(model(batch["x"]), batch["y"])

    def evaluate(self, model: nn.Module, data: ArrayDataset) -> dict[str, float]:
        """Return accuracy and cross-entropy."""
        return accuracy_and_loss(model, data)


def _split(owner: str, examples: object, test: object) -> dict[str, ArrayDataset]:
    """Return the examples to train on and to test on; without the latter, some of the former are held out."""
    train = read_examples(owner, examples)
    if test is not None:
        tested = read_examples(f"the test examples of {owner}", test)
        if "y" not in tested.columns:
            raise ConfigError(f"the test examples of {owner} have no labels; give a pair (x, y)")
        return {"train": train, "test": tested}
    if "y" not in train.columns or len(train) < HELD_OUT:
        advice = "(x, y) of more" if owner == SERVER else f"test={{{owner!r}: (x, y)}}"
        raise ConfigError(
            f"{owner} has nothing to be tested on: it has no labels, or fewer than {HELD_OUT} examples; give {advice}"
        )
    held_out = torch.zeros(len(train), dtype=torch.bool)
    # By class: rows may be in an order of their own, as 0, 1, 2, 3, 4, 0, 1, ..., of which every fifth is one class.
    held_out[torch.argsort(train.columns["y"], stable=True)[HELD_OUT - 1 :: HELD_OUT]] = True
    return {"train": train.select(~held_out), "test": train.select(held_out)}
