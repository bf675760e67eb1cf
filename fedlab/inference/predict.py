"""Predicting on image files with what a run has learned: for a client's owner, from the directory that the client
keeps; for whoever holds the run, from its newest checkpoint, in the place of one of its clients.

Nothing is trained and nothing is written. All is done on the CPU, where the same files give the same numbers on every
machine of a kind. How an image file becomes the model's input is the workload's ``images``.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fedlab.config.schema import Config
from fedlab.data.dataset import ArrayDataset
from fedlab.data.digits import image_files, image_folder
from fedlab.errors import ConfigError, DataError, FedlabError, IncompatibleWeightsError, RunError, suggest
from fedlab.files import expand_user
from fedlab.registry import config_from_text, load_run_config
from fedlab.runs.client_state import CLIENT, state_at
from fedlab.runs.client_store import MODEL
from fedlab.runs.directory import RunDirectory
from fedlab.seeds import deterministic
from fedlab.tensor_files import UnreadableFileError, read_tensors
from fedlab.workload import SupportsClassNames, SupportsImages, Workload

if TYPE_CHECKING:
    from fedlab.strategies.protocol import ClientFunctions, ModelStates

FILES, BATCH = 2000, 500  # image files held at a time, and images a pass of the model


@dataclass(frozen=True)
class Prediction:
    """Likeliest class of one image and the next one, each with its probability in [0, 1], and their names if any."""

    file: Path
    label: int
    probability: float
    second: int
    second_probability: float
    name: str = ""
    second_name: str = ""

    def row(self) -> dict[str, str | int | float]:
        """Plain values by the names that scripts read."""
        return {
            "file": str(self.file),
            "class": self.name or self.label,
            "probability": round(self.probability, 6),
            "second": self.second_name or self.second,
            "second_probability": round(self.second_probability, 6),
        }


@dataclass(frozen=True)
class Predictor:
    """A model that predicts in the place of one client, as it was after a round."""

    module: nn.Module  # inputs (batch, ...) to logits or log-probabilities (batch, classes)
    workload: SupportsImages
    client: str
    round: int
    threads: int

    def predict(self, paths: Sequence[str | Path], unreadable: list[str] | None = None) -> list[Prediction]:
        """One prediction for each image, in the order of ``images``, whose errors it has.

        Parameters
        ----------
        unreadable
            Takes a sentence for each file that cannot be read, which is then left out; None: the first is an error.

        Raises
        ------
        DataError
            When a file cannot be read.
        RunError
            When the model gives values that are not finite.
        """
        files = images(paths)
        predictions: list[Prediction] = []
        with deterministic(self.threads):
            for start in range(0, len(files), FILES):
                some = files[start : start + FILES]
                try:
                    inputs = self.workload.images(some)
                except DataError:
                    if unreadable is None:
                        raise
                    some = self._readable(some, unreadable)
                    if not some:
                        continue
                    inputs = self.workload.images(some)
                p, classes = self._two_best(inputs)
                if not p.isfinite().all():
                    raise RunError(
                        f"the model of client {self.client!r} gives values that are not finite; take one of another run"
                    )
                pairs = zip(some, classes.tolist(), p.tolist(), strict=True)
                predictions += [
                    Prediction(file, a, p_a, b, p_b, self._name(a), self._name(b)) for file, (a, b), (p_a, p_b) in pairs
                ]
        return predictions

    def _name(self, label: int) -> str:
        return self.workload.classes[label] if isinstance(self.workload, SupportsClassNames) else ""

    def _readable(self, files: Sequence[Path], unreadable: list[str]) -> list[Path]:
        """Those that can be read; why the others cannot goes to ``unreadable``."""
        found: list[Path] = []
        for file in files:
            try:
                self.workload.images([file])
            except DataError as error:
                unreadable.append(str(error))
            else:
                found.append(file)
        return found

    @torch.no_grad()
    def _two_best(self, inputs: ArrayDataset) -> tuple[Tensor, Tensor]:
        """Probabilities and classes, (examples, 2) both; softmax leaves log-probabilities what they are."""
        logits = torch.cat([self.module(batch["x"]) for batch in inputs.batches(BATCH)])
        p, classes = logits.double().softmax(1).topk(2)
        return p, classes


def predict(directory: Path | str, paths: Sequence[str | Path], client: str | None = None) -> list[Prediction]:
    """Predict for image files with the model in a directory.

    Parameters
    ----------
    directory
        What a client keeps (``clients/NAME``), or a run directory.
    paths
        Files, folders (with all below them) and patterns such as ``"scans/*.png"``.
    client
        In whose place to predict, for the directory of a run that has several clients.

    Raises
    ------
    FedlabError
        When there is no model, no image, or one of them cannot be read.
    """
    return load_predictor(Path(directory), client).predict(paths)


def images(paths: Sequence[str | Path]) -> list[Path]:
    """Return the image files that are meant by files, folders and patterns, each once.

    Raises
    ------
    DataError
        When no path is given or none of them holds an image.
    """
    found = dict.fromkeys(file for path in paths for file in _meant(expand_user(path)))
    if not found:
        raise DataError("no image was named; give image files, or folders that hold some")
    return list(found)


def _meant(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from image_folder.find_image_files(path)
    elif path.exists():
        yield path  # whatever its name says: the reader tells what it is
    elif matches := sorted(map(Path, glob.glob(str(path), recursive=True))):
        chosen = [match for match in matches if image_files.is_image_file(match) and match.is_file()]
        if not chosen:
            raise DataError(f"none of the {len(matches)} paths that match {str(path)!r} is an image file")
        yield from chosen
    else:
        what = "nothing matches the pattern" if glob.has_magic(str(path)) else "there is no file or folder"
        raise DataError(f"{what} {str(path)!r}; give image files, or folders that hold some")


def load_predictor(directory: Path, client: str | None = None, server_round: int | None = None) -> Predictor:
    """The model of a client's directory, or of a checkpoint of a run.

    Parameters
    ----------
    server_round
        Round of the model; None: the newest that there is.

    Raises
    ------
    ConfigError
        When the client or the round is another than the directory's, or it has to be said which client of a run is
        meant.
    RunError
        When there is no model, it is damaged, or no model of this fedlab's.
    """
    if (directory / MODEL).is_file():
        return _kept(directory / MODEL, client, server_round)
    if (directory / "config.toml").is_file():
        return _of_run(RunDirectory.open(directory), client, server_round)
    raise RunError(
        f"there is no model in {directory}: expected {MODEL}, which a client keeps (`fedlab join` names its "
        "directory), or the config.toml and checkpoints of a run; give the directory of either"
    )


def _kept(path: Path, client: str | None, server_round: int | None) -> Predictor:
    """From what a client keeps, see :mod:`fedlab.runs.client_store`."""
    content = _load(path, {"config": str, "round": int, "client": str, "states": Mapping})
    if client not in (None, content["client"]):
        raise ConfigError(f"{path} is the model of client {content['client']!r}, not of {client!r}; leave --client out")
    if server_round not in (None, content["round"]):
        raise ConfigError(f"{path} is the model after round {content['round']}, not {server_round}; leave --round out")
    config = config_from_text("", content["config"])
    return _build(path, config, content["client"], content["round"], lambda half, _: content["states"])


def _of_run(run: RunDirectory, client: str | None, server_round: int | None) -> Predictor:
    """From a run's checkpoint, in the place of one of its clients."""
    config = load_run_config(run.config_file)
    _check_images(config.workload, run.path)
    names = config.clients
    if client is None and len(names) > 1:
        raise ConfigError(f"{run.path} has {len(names)} clients; say which one with --client: {', '.join(names)}")
    if client is not None and client not in names:
        raise ConfigError(f"{run.path} has no client {client!r}; {suggest(client, names)}")
    chosen = client or names[0]
    chosen_round = checkpoint_round(run, server_round)
    path = run.checkpoints.path(chosen_round)
    content = _load(path, {"arrays": Mapping, "strategy": Mapping})
    partition = names.index(chosen)
    content[CLIENT] = state_at(path, partition)
    return _build(
        path,
        config,
        chosen,
        chosen_round,
        lambda half, workload: half.states_from_checkpoint(workload, content, partition, config),
    )


def checkpoint_round(run: RunDirectory, server_round: int | None = None) -> int:
    """Return the round of the checkpoint that is meant: the newest unless another one is asked for.

    Raises
    ------
    ConfigError
        When that round's checkpoint was not kept.
    RunError
        When there is no checkpoint.
    """
    rounds = run.checkpoints.rounds()
    if not rounds:
        finished = run.manifest().get("status") == "finished"  # which resume would only read
        what = f"fedlab run {run.path}/config.toml" if finished else f"fedlab resume {run.path}"
        raise RunError(f"{run.path} has no checkpoint to predict with; `{what}` makes one")
    if server_round is not None and server_round not in rounds:
        raise ConfigError(
            f"{run.path} has no checkpoint of round {server_round}; it has kept {', '.join(map(str, rounds))} "
            "(checkpoint.keep says how many a run keeps)"
        )
    return rounds[-1] if server_round is None else server_round


def _build(
    path: Path,
    config: Config,
    client: str,
    server_round: int,
    states: Callable[[ClientFunctions, Workload], ModelStates],
) -> Predictor:
    """The predictor of a strategy, from the states that are found with its client half."""
    with _fitting(path):
        half: ClientFunctions = config.plugins["strategy"].spec.client
        workload = _check_images(config.workload, path)
        module = half.predictor(workload, states(half, workload))
    return Predictor(module.eval(), workload, client, server_round, config.run.threads)


def _check_images(workload: Workload, path: Path) -> SupportsImages:
    if isinstance(workload, SupportsImages):
        return workload
    raise ConfigError(f"what {path} has learned does not tell the class of an image file; there is nothing to predict")


class Recalled:
    """A checkpoint of a run, and what each of its clients would predict with; the workload may be any.

    Attributes
    ----------
    content
        What the checkpoint holds: ``arrays``, the server's model, and ``strategy``, all else that lives between rounds.

    Raises
    ------
    RunError
        When the checkpoint is damaged, or does not fit the run's options.
    """

    def __init__(self, path: Path, config: Config) -> None:
        self.path, self.content = path, _load(path, {"arrays": Mapping, "strategy": Mapping})
        self.config = replace(config, run=replace(config.run, device="cpu"))
        self.workload: Workload = config.workload
        self._half: ClientFunctions = config.plugins["strategy"].spec.client

    def in_place_of(self, partition: int) -> tuple[Mapping[str, Tensor], nn.Module]:
        """The state of the client's model, and inputs ``x`` to logits or log-probabilities, on the CPU."""
        with _fitting(self.path):
            content = {**self.content, CLIENT: state_at(self.path, partition)}
            states = self._half.states_from_checkpoint(self.workload, content, partition, self.config)
            return states["arrays"], self._half.predictor(self.workload, states).eval()

    def example_weights(self, partition: int, features: Tensor) -> Tensor | None:
        """Return the strategy's weights (rows,) of features (rows, width) for a client; None where it has none."""
        with _fitting(self.path):
            return self._half.example_weights(self.content["strategy"], partition, features)


@contextmanager
def _fitting(path: Path) -> Iterator[None]:
    """Raise a plain error for a checkpoint that does not fit its model: wrong names or shapes can fail anywhere."""
    try:
        yield
    except IncompatibleWeightsError as error:
        raise RunError(f"{path} does not fit its own options ({error}); {_DAMAGED}") from error
    except FedlabError:
        raise
    except Exception as error:
        raise RunError(f"{path} does not fit its own options ({_first_line(error)}); {_DAMAGED}") from error


_DAMAGED = "it is damaged, or another version of fedlab wrote it; take one that this version wrote"


def _load(path: Path, fields: Mapping[str, type]) -> dict[str, Any]:
    """A file of torch's with the given entries; only tensors and plain values are read, never code."""
    try:
        content = read_tensors(path)
    except UnreadableFileError as error:
        raise RunError(f"model {path} cannot be read ({error}); {_DAMAGED}") from error
    missing = [name for name, kind in fields.items() if not isinstance(content, dict) or not _is(content, name, kind)]
    if missing:
        raise RunError(f"{path} is no model of fedlab's: it lacks {', '.join(missing)}; {_DAMAGED}")
    return dict(content)


def _is(content: Mapping[str, Any], name: str, kind: type) -> bool:
    return isinstance(content.get(name), kind)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
