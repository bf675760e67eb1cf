"""Examples of a program as a data set: frames, lists and odd arrays are read, and what is no number is a sentence."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from fedlab.data.given_arrays import read_examples
from fedlab.errors import ConfigError

X, Y = np.arange(12.0).reshape(4, 3), np.array([0, 2, 1, 0])
FRAME = pd.DataFrame(X, columns=list("abc"), index=[7, 3, 9, 1])
SERIES = pd.Series(Y, index=FRAME.index)


@pytest.mark.parametrize(
    "examples",
    [
        (FRAME, SERIES),
        (FRAME, SERIES.to_frame()),
        (FRAME.assign(b=[1, 4, 7, 10], c=FRAME["c"].astype(object)), SERIES.astype("Int64")),
        (FRAME, SERIES.astype(float)),
        (X.tolist(), Y.tolist()),
        (X.astype(object), Y[:, None]),
        (X[::-1].copy()[::-1], Y.astype(np.uint16)),
        (np.broadcast_to(X, (4, 3)), Y.astype(">i4")),
        (torch.from_numpy(X).requires_grad_(), torch.from_numpy(Y)),
    ],
)
def test_frames_lists_and_odd_arrays_are_the_same_examples(examples):
    batch = read_examples("a", examples)[:]
    assert torch.equal(batch["x"], torch.from_numpy(X).float()) and torch.equal(batch["y"], torch.from_numpy(Y))
    assert batch["y"].dtype == torch.int64 and not batch["x"].requires_grad


@pytest.mark.parametrize(
    ("examples", "sentence"),
    [
        ((FRAME.assign(b="u"), SERIES), r"inputs of type DataFrame are no numbers \(columns b are none\); .*tuple"),
        ((FRAME.assign(b=[1, 2, None, 3]), SERIES), "1 of 12 input values are missing, NaN or infinite"),
        ((X * 1j, Y), r"of type ndarray are no numbers \(the first is 0j"),
        ((FRAME, SERIES.map(str)), r"labels of type Series .* \(the first is '0'\); classes are numbered from 0"),
        ((FRAME, SERIES.map(str).astype("category")), r"labels of type Series .* \(the first is '0'\)"),
        ((FRAME, SERIES.where(SERIES > 0)), "2 of 4 labels are no class, the first is nan"),
        ((FRAME, SERIES.sort_index()), r"different indexes.* y.loc\[x.index\]"),
        ((X, np.eye(3)[Y]), r"labels of shape \(4, 3\) for 4 inputs; .* one-hot labels is y.argmax\(1\)"),
        (
            [torch.from_numpy(X), Y],
            r"inputs of type list are no numbers \(.*\); inputs and labels are given as a tuple",
        ),
        ({"x": X, "y": Y}, "inputs of type dict are no numbers .* as a tuple"),
        ((X, None), "labels of type NoneType are no numbers"),
    ],
)
def test_what_is_no_example_is_a_sentence(examples, sentence):
    with pytest.raises(ConfigError, match=sentence):
        read_examples("a", examples)
