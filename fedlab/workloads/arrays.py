"""A classification problem from objects of a notebook: a model, and arrays or data sets of the server and the clients.

**Metrics**: ``accuracy``, the fraction of test examples whose largest logit is the label's; ``loss``, the mean
cross-entropy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset

from fedlab.data.dataset import ArrayDataset, Batch
from fedlab.errors import ConfigError, NoServerDataError
from fedlab.workload import WorkloadSpec
from fedlab.workloads.domain_suite import ACCURACY, accuracy_and_loss

SERVER = "the server"
HELD_OUT = 5  # every so many-th labeled example is for testing, where no test examples are given


def classification(
    model: nn.Module | Callable[[], nn.Module],
    clients: Mapping[str, object],
    server: object = None,
    test: Mapping[str, object] | None = None,
    classes: Sequence[str] = (),
) -> WorkloadSpec:
    """Return a classification problem for ``fedlab.run(workload=...)``, from a model and examples of this program.

    Examples are a pair of arrays ``(x, y)``, inputs (examples, ...) and classes (examples,) from 0; inputs ``x`` alone,
    which have no labels; or a torch data set of such pairs, which is read once. Arrays are NumPy's or tensors.

    Parameters
    ----------
    model
        Maps inputs (batch, ...) to logits (batch, classes): a module, whose weights are the initial ones, or a function
        that makes one. Strategies that adapt want one with parts ``features`` and ``head``.
    clients
        Training examples of each client by name; those without labels suit strategies that need none.
    server
        Labeled examples of the server, of which every fifth is for testing; None where the strategy takes no step on
        it.
    test
        Labeled test examples of clients by name. A client without any is tested on every fifth of its own labeled
        examples, which it then does not train on.
    classes
        Names of the classes, by label.

    Raises
    ------
    ConfigError
        When something is none of these, there is no client, or a client has nothing to be tested on.

    Examples
    --------
    >>> clients = {"a": (torch.randn(50, 4), torch.arange(50) % 3), "b": (torch.randn(40, 4), torch.arange(40) % 3)}
    >>> classification(lambda: nn.Linear(4, 3), clients).workload.clients
    ('a', 'b')
    """
    if not isinstance(clients, Mapping) or not clients:
        raise ConfigError("there are no clients; give their examples by name, as {'a': (x, y), 'b': (x, y)}")
    if strangers := sorted((test or {}).keys() - clients.keys(), key=str):
        raise ConfigError(f"test examples are given for {', '.join(map(str, strangers))}, which no client is called")
    owners = [_split(name, found, (test or {}).get(name)) for name, found in clients.items()]
    own = None if server is None else _split(SERVER, server, None)
    return WorkloadSpec(
        Classification(model, dict(zip(clients, owners, strict=True)), own, classes),
        primary_metric="accuracy",
        metrics=(ACCURACY,),
        name="classification",
    )


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
        labels = [data.columns["y"] for owner in self._owners for data in owner.values() if "y" in data.columns]
        self.classes = tuple(classes) or tuple(str(label) for label in range(1 + max(int(y.max()) for y in labels)))

    def model(self) -> nn.Module:
        """Return a fresh model."""
        return deepcopy(self._model) if isinstance(self._model, nn.Module) else self._model()

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

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean cross-entropy, a scalar."""
        return cross_entropy(model(batch["x"]), batch["y"])

    def evaluate(self, model: nn.Module, data: ArrayDataset) -> dict[str, float]:
        """Return accuracy and cross-entropy."""
        return accuracy_and_loss(model, data)


def _split(owner: str, examples: object, test: object) -> dict[str, ArrayDataset]:
    """Return the examples to train on and to test on; without the latter, some of the former are held out."""
    train = _columns(owner, examples)
    if test is not None:
        tested = _columns(f"the test examples of {owner}", test)
        if "y" not in tested.columns:
            raise ConfigError(f"the test examples of {owner} have no labels; give a pair (x, y)")
        return {"train": train, "test": tested}
    if "y" not in train.columns or len(train) < HELD_OUT:
        advice = "(x, y) of more" if owner == SERVER else f"test={{{owner!r}: (x, y)}}"
        raise ConfigError(
            f"{owner} has nothing to be tested on: it has no labels, or fewer than {HELD_OUT} examples; give {advice}"
        )
    held_out = torch.arange(len(train)) % HELD_OUT == HELD_OUT - 1
    return {"train": train.select(~held_out), "test": train.select(held_out)}


def _columns(owner: str, examples: object) -> ArrayDataset:
    """Return examples as a data set with columns ``x``, of floats where they have a fraction, and maybe ``y``."""
    if isinstance(examples, Dataset):
        examples = _read(owner, examples)
    pair = examples if isinstance(examples, tuple) else (examples,)
    if not 1 <= len(pair) <= 2:
        raise ConfigError(f"{owner}: a tuple of {len(pair)} is no pair (x, y)")
    x = _tensor(owner, pair[0])
    if x.dim() < 1 or not len(x) or x.layout != torch.strided:
        raise ConfigError(
            f"{owner}: inputs of shape {tuple(x.shape)}, {x.layout}; dense ones (examples, ...) are expected, and at "
            "least one example"
        )
    columns = {"x": x.float() if x.is_floating_point() else x}
    if len(pair) == 2:
        y = _tensor(owner, pair[1])
        integers = not (y.is_floating_point() or y.is_complex())
        if y.dim() != 1 or len(y) != len(x) or not integers or int(y.long().min()) < 0:
            raise ConfigError(
                f"{owner}: labels of shape {tuple(y.shape)} and type {y.dtype} for {len(x)} inputs; one class from 0 "
                "for each is expected, as an integer"
            )
        columns["y"] = y.long()
    return ArrayDataset(columns)


def _read(owner: str, examples: Dataset[Any]) -> tuple[Tensor, Tensor]:
    """Read a data set of pairs.

    Raises
    ------
    ConfigError
        When it has no length, no example, or something else than pairs of one shape.
    """
    if not hasattr(examples, "__len__") or not len(examples):
        raise ConfigError(f"{owner}: a {type(examples).__name__} without a length or an example; give arrays (x, y)")
    rows = [examples[number] for number in range(len(examples))]
    for row in rows:
        if not isinstance(row, tuple | list) or len(row) != 2:
            raise ConfigError(
                f"{owner}: an example of the data set is a {type(row).__name__} and no pair of input and label; inputs "
                "alone are given as one array"
            )
    x, y = ([_tensor(owner, row[part]) for row in rows] for part in (0, 1))
    if len({one.shape for one in x}) > 1 or len({one.shape for one in y}) > 1:
        raise ConfigError(f"{owner}: examples of the data set have different shapes; give them one size")
    return torch.stack(x), torch.stack(y)


def _tensor(owner: str, values: object) -> Tensor:
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"{owner}: a {type(values).__name__} is no array of numbers ({error}); give NumPy arrays or tensors"
        ) from None
