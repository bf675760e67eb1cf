"""Plot data of a run's clients: features before and after, the strategy's weights of examples, confusions, images.

All is computed once, from the checkpoints before the first round and after the last, and kept beside the run in
``clients.npz``; writing a page again reads that. What a workload or a strategy does not have is left out: a model
without ``features`` has no map, a strategy that declares no ``example_weights`` has no weights, test data without
labels has no confusions.

**Features**: the server's test data through the server's model and the client's through the client's own (with the
batch-norm statistics and weights that it would predict with), reduced to the plane of the two largest principal
components of all of them together, before and after, so that both panels have the same axes.

**Confusions** are those of the client's predictor. They are drawn only where they agree with what the client reported
of itself, so labels of another set of classes than the model's never make a picture. Neither do example images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedlab.data.dataset import ArrayDataset
from fedlab.errors import DataError, FedlabError, RunError
from fedlab.files import write_atomically
from fedlab.inference.predict import Recalled
from fedlab.models.feature_classifier import features_of, missing_parts
from fedlab.registry import load_run_config
from fedlab.report.confusions import BATCH, agrees, confusion
from fedlab.report.example_images import choose_examples
from fedlab.report.pixel_rows import labels_of_rows
from fedlab.runs.checkpoints import Checkpoints
from fedlab.runs.result import Result
from fedlab.seeds import deterministic, seeded
from fedlab.workload import Workload

FILE, FORMAT = "clients.npz", 3
POINTS = 300  # of a domain in a map
CLIENTS = 60  # whose data are kept where nothing else is asked for
BINS = 20  # of a histogram of weights

Array = NDArray[Any]
NOTHING = np.zeros((0, 2), np.float32)


@dataclass(frozen=True)
class ClientPlotData:
    """Arrays that are drawn of one client; an empty array says that there is nothing to draw.

    Attributes
    ----------
    source_before, target_before, source_after, target_after
        Points (points, 2) of the plane.
    explained
        Fraction of the variance along its two axes, (2,).
    source_labels, target_labels
        Classes (points,), where the labels are those that the model predicts.
    source_weights, target_weights
        Examples by the strategy's weight for this client, (bins,) counts over [0, 1].
    confusion
        Counts (true class, predicted class) over the client's test data.
    example_images, example_classes, example_scores
        Test images with true and predicted classes, see :func:`fedlab.report.example_images.choose_examples`.
    """

    name: str
    source_before: Array
    target_before: Array
    source_after: Array
    target_after: Array
    explained: Array
    source_labels: Array
    target_labels: Array
    source_weights: Array
    target_weights: Array
    confusion: Array
    example_images: Array
    example_classes: Array
    example_scores: Array


ARRAYS = [field.name for field in fields(ClientPlotData) if field.name != "name"]


def load(result: Result, most: int = CLIENTS, names: Sequence[str] = ()) -> list[ClientPlotData]:
    """Return the plot data of a run's clients, from the file beside it or computed.

    Parameters
    ----------
    most, names
        The first so many clients, or those of these names.

    Raises
    ------
    FedlabError
        When the run has no checkpoint that can be read, its data is not here, or its model gives what nobody expects.
    """
    path = result.directory / FILE
    wanted = ",".join(names) or most
    key = f"{FORMAT} {POINTS} {wanted} {result.weights_sha256 or result.rounds[-1]['round']}"
    if path.is_file():
        with np.load(path) as stored:
            if str(stored["key"]) == key:
                names = [str(name) for name in stored["names"]]
                return [ClientPlotData(name, **{a: stored[f"{i} {a}"] for a in ARRAYS}) for i, name in enumerate(names)]
    try:
        found = compute(result, most, names)
    except FedlabError:
        raise
    except Exception as error:  # a model of the future may take or give anything; a page does without its picture
        raise RunError(f"nothing can be drawn of the clients of {result.directory}: {error!r}") from error
    arrays = {f"{i} {a}": getattr(client, a) for i, client in enumerate(found) for a in ARRAYS}
    _save(path, {"key": np.array(key), "names": np.array([client.name for client in found], dtype=str), **arrays})
    return found


def _save(path: Path, arrays: Mapping[str, Array]) -> None:
    stream = BytesIO()
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    write_atomically(path, stream.getvalue())


@torch.no_grad()
def compute(result: Result, most: int, names: Sequence[str] = ()) -> list[ClientPlotData]:
    """Return the plot data of some clients from a run's checkpoints; arguments as of :func:`load`.

    Raises
    ------
    RunError
        When the run has no checkpoint.
    """
    config = load_run_config(result.directory / "config.toml")
    checkpoints = Checkpoints(result.directory)
    rounds = checkpoints.rounds()
    if not rounds:
        raise RunError(f"{result.directory} has no checkpoint; `fedlab resume {result.directory}` runs it on")
    after = Recalled(checkpoints.path(rounds[-1]), config)
    before = Recalled(checkpoints.path(0), config) if rounds[0] == 0 and rounds[-1] else None
    partitions = [config.clients.index(name) for name in names if name in config.clients]
    partitions = partitions or list(range(len(config.clients))[:most])
    with deterministic(config.run.threads), seeded(config.run.seed, "report"):
        source = _source(after.workload)
        return [_view(result, before, after, source, at, config.clients[at]) for at in partitions]


def _view(
    result: Result, before: Recalled | None, after: Recalled, source: ArrayDataset | None, partition: int, name: str
) -> ClientPlotData:
    target = after.workload.data(partition, "test")
    empty = dict.fromkeys(ARRAYS, NOTHING)
    state, predictor = after.in_place_of(partition)
    counts = confusion(predictor, target)
    reported = result.rounds[-1]["clients"].get(name, {})
    known = bool(len(counts)) and agrees(counts, reported, result.metric_table)
    drawn: dict[str, Array] = {"confusion": counts if known else NOTHING}
    if known:
        drawn |= choose_examples(predictor, target)
    if source is not None and not missing_parts(after.workload.model()) and "x" in target.columns:
        states = [(before.content["arrays"], before.in_place_of(partition)[0])] if before else []
        states.append((after.content["arrays"], state))
        drawn |= _map(after.workload, states, source, target, known)
        z, own = drawn.pop("source"), drawn.pop("target")
        drawn |= _weights(after, partition, z, own)
    return ClientPlotData(name, **{**empty, **drawn})


def _source(workload: Workload) -> ArrayDataset | None:
    """Return the server's test data, or its training data where it has none, or None."""
    for split in ("test", "train"):
        try:
            data = workload.data(None, split)
        except DataError:
            continue
        if "x" in data.columns and len(data):
            return data
    return None


# --- maps -------------------------------------------------------------------------------------------------------------


def _map(
    workload: Workload, states: list[tuple[Any, Any]], source: ArrayDataset, target: ArrayDataset, labeled: bool
) -> dict[str, Array]:
    """Return points of the plane before and after, and the features (points, width) after as "source" and "target"."""
    clouds, labels = [], []
    for server, own in states:
        for state, data in ((server, source), (own, target)):
            z, y = rows_of(_features(workload, state), data, POINTS)
            clouds.append(z.numpy())
            labels.append(y.numpy() if labeled and y is not None else NOTHING)
    points, explained = plane(clouds)
    when = ["before", "after"][-len(states) :]
    names = [f"{side}_{at}" for at in when for side in ("source", "target")]
    return {
        **dict(zip(names, points, strict=True)),
        "explained": explained,
        "source_labels": labels[-2],
        "target_labels": labels[-1],
        "source": clouds[-2],
        "target": clouds[-1],
    }


def _features(workload: Workload, state: Mapping[str, Tensor]) -> nn.Module:
    """Return G with its part of a state; other parts, such as a second head, are the strategy's own."""
    features = features_of(workload.model())
    prefix = "features."
    own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    features.load_state_dict(own)
    return features.eval()


def rows_of(features: nn.Module, data: ArrayDataset, count: int) -> tuple[Tensor, Tensor | None]:
    """Return about ``count`` rows of features, evenly spread over the data, and their labels.

    Features (rows, width) are a row an example or a cell of an image, (batch, width, height, width) a row a cell.

    Raises
    ------
    RunError
        When the features have another number of axes.
    """
    some = data.subsample(count)
    rows, labels = [], []
    for batch in some.batches(BATCH):
        z, y = features(batch["x"]), batch.get("y")
        z = z.movedim(1, -1).flatten(0, 2) if z.ndim == 4 else z
        if z.ndim != 2:
            raise RunError(f"a map needs features (batch, width) or (batch, width, height, width), got {z.ndim} axes")
        wanted = -(-count * len(batch["x"]) // len(some))
        chosen = torch.linspace(0, len(z) - 1, min(wanted, len(z))).long()
        rows.append(z[chosen])
        own = labels_of_rows(len(z), y) if y is not None else None
        labels += [own[chosen]] if own is not None else []
    known = torch.cat(labels) if len(labels) == len(rows) else None
    return torch.cat(rows).float(), known


def plane(clouds: list[Array]) -> tuple[list[Array], Array]:
    """Return clouds (points, width) in the plane of their common principal components, and the fractions of variance.

    The fractions, (2,), are those of the two axes.
    """
    together = np.concatenate(clouds).astype(np.float64)
    center = together.mean(0)
    _, scale, axes = np.linalg.svd(together - center, full_matrices=False)
    axes = np.concatenate([axes, np.zeros((2, axes.shape[1]))])[:2]  # features of one dimension are a line
    axes = (
        axes * np.where(axes[np.arange(2), np.abs(axes).argmax(1)] < 0, -1.0, 1.0)[:, None]
    )  # one sign on any machine
    explained = np.square(np.append(scale, [0.0, 0.0])[:2]) / max(float(np.square(scale).sum()), 1e-300)
    return [((cloud - center) @ axes.T).astype(np.float32) for cloud in clouds], explained


def _weights(after: Recalled, partition: int, source: Array, target: Array) -> dict[str, Array]:
    """Return histograms (bins,) of the strategy's weights of features (rows, width); nothing where it has none."""
    counts = {}
    for side, z in (("source", source), ("target", target)):
        weights = after.example_weights(partition, torch.from_numpy(z))
        if weights is None:
            return {}
        counts[f"{side}_weights"] = np.histogram(weights.numpy(), BINS, (0.0, 1.0))[0]
    return counts
