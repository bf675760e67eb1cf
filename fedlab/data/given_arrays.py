"""Examples that a program gives as objects, as a data set: arrays, tensors, data frames, lists or torch data sets.

Whatever has a method ``to_numpy``, such as frames and series of pandas and polars, is an array; rows go by their order,
not by an index.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from fedlab.data.dataset import ArrayDataset
from fedlab.errors import ConfigError, name_list, plural

PAIR = "inputs and labels are given as a tuple (x, y) of NumPy arrays, tensors or data frames"
LABELS = "classes are numbered from 0, as by np.unique(y, return_inverse=True)[1]"
NUMBERS = "biuf"  # kinds of NumPy: truth values, integers with and without a sign, floats


def read_examples(owner: str, examples: object) -> ArrayDataset:
    """Return examples as a data set with columns ``x`` (examples, ...) and, where they have labels, ``y`` (examples,).

    Floats become float32, other numbers stay as they are; labels become int64.

    Parameters
    ----------
    owner
        Whose they are, for messages.
    examples
        A pair (x, y), inputs alone, or a torch data set of pairs.

    Raises
    ------
    ConfigError
        When they are none of these, when an input is no finite number, or a label no class from 0.
    """
    if isinstance(examples, Dataset):
        examples = _read_dataset(owner, examples)
    pair = examples if isinstance(examples, tuple) else (examples,)
    if not 1 <= len(pair) <= 2:
        raise ConfigError(f"{owner}: a tuple of {len(pair)} is no pair; {PAIR}")
    _check_index(owner, pair)
    x = _inputs(owner, pair[0])
    return ArrayDataset({"x": x} if len(pair) == 1 else {"x": x, "y": _labels(owner, pair[1], len(x))})


def _check_index(owner: str, pair: tuple[Any, ...]) -> None:
    """Refuse frames whose rows are not in the same order, which an index tells."""
    first: Any = getattr(pair[0], "index", None)
    last: Any = getattr(pair[-1], "index", None)
    if hasattr(first, "equals") and hasattr(last, "equals") and not first.equals(last):
        raise ConfigError(
            f"{owner}: inputs and labels have different indexes, so their rows may not belong together; reorder the "
            "labels by y.loc[x.index], or give x.to_numpy() and y.to_numpy()"
        )


def _inputs(owner: str, values: object) -> Tensor:
    x = _tensor(owner, values)
    if x.dim() < 1 or not len(x) or x.layout != torch.strided:
        raise ConfigError(
            f"{owner}: inputs of shape {tuple(x.shape)}, {x.layout}; dense ones (examples, ...) are expected, and at "
            "least one example"
        )
    if not x.is_floating_point():
        return x
    if wrong := int((~torch.isfinite(x)).sum()):
        raise ConfigError(
            f"{owner}: {wrong} of {x.numel()} input values are missing, NaN or infinite; fill them or leave the "
            "examples out"
        )
    return x.float()


def _labels(owner: str, values: object, examples: int) -> Tensor:
    """Return labels (examples,); a single column, and floats that are whole numbers, will do."""
    y = _tensor(owner, values, "labels")
    y = y[:, 0] if y.dim() == 2 and y.shape[1] == 1 else y
    expected = "one class from 0 for each is expected, as an integer"
    if y.dim() == 2:
        raise ConfigError(
            f"{owner}: labels of shape {tuple(y.shape)} for {plural(examples, 'input')}; {expected}, which of "
            "one-hot labels is "
            "y.argmax(1)"
        )
    if y.dim() != 1 or len(y) != examples:
        raise ConfigError(f"{owner}: labels of shape {tuple(y.shape)} for {plural(examples, 'input')}; {expected}")
    y = y if y.is_floating_point() else y.long()
    wrong = y[~(torch.isfinite(y) & (y == y.round()) & (y >= 0))] if y.is_floating_point() else y[y < 0]
    if len(wrong):
        raise ConfigError(
            f"{owner}: {len(wrong)} of {examples} labels are no class, the first is {wrong[0].item()}; {expected}, and "
            "examples without a label are given apart, as another client's inputs"
        )
    return y.long()


def _read_dataset(owner: str, examples: Dataset[Any]) -> tuple[Tensor, Tensor]:
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


def _tensor(owner: str, values: object, what: str = "inputs") -> Tensor:
    """Return numbers as a tensor, which shares memory with an array where it can.

    Raises
    ------
    ConfigError
        When they are no numbers, with what they are.
    """
    try:
        if isinstance(values, Tensor):
            found = values.detach()
        else:
            array = values.to_numpy() if hasattr(values, "to_numpy") else values
            found = torch.as_tensor(_numbers(array) if isinstance(array, np.ndarray) else array)
        if found.is_complex():
            raise TypeError("complex numbers")
    except (TypeError, ValueError, RuntimeError) as error:
        columns = _columns_of_others(values)
        reason = f"columns {name_list(columns)} are none" if columns else str(error).partition("\n")[0]
        hint = PAIR if what == "inputs" else LABELS
        raise ConfigError(
            f"{owner}: {what} of type {type(values).__name__} are no numbers ({reason}); {hint}"
        ) from None
    return found


def _numbers(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array as torch takes it: of numbers, in this machine's byte order, that may be written."""
    if array.dtype.kind == "O":  # for instance of a frame with columns of several types
        array = np.asarray(array.tolist())
    if array.dtype.kind not in NUMBERS:
        raise TypeError(f"the first is {array.flat[0].item()!r}" if array.size else f"an array of {array.dtype}")
    return np.require(array, array.dtype.newbyteorder("="), ["C_CONTIGUOUS", "WRITEABLE"])


def _columns_of_others(values: object) -> list[str]:
    """Return the columns of a data frame that hold no numbers; none of anything else."""
    frame: Any = values
    columns = getattr(values, "columns", ())
    try:
        return [str(name) for name in columns if np.asarray(frame[name].to_numpy()).dtype.kind not in NUMBERS]
    except (TypeError, KeyError, AttributeError):
        return []
