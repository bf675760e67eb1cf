"""Examples a second in training: our presets' models through the framework, and a plain torch loop beside them.

A run of a preset with one client, or of its server alone, takes a few rounds of some steps; the seconds of its training
phase are those that it records itself, messages and all. The plain loop has the same model, data, loss and batches,
as torch computes by default, and nothing else.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

import fedlab
from benchmarks.gpu.rows import Row
from benchmarks.gpu.schedule import Task
from benchmarks.gpu.timing import seconds_of
from fedlab import launch
from fedlab.config.sections import Value
from fedlab.training import resolve_device

PART = "throughput"
ROUNDS = 3  # the first warms up


@dataclass(frozen=True)
class Model:
    """A preset's model: how it is trained here, which phase of a round that is, and its goal on one H100."""

    preset: str
    unit: str
    goal: float
    phase: str
    steps: int
    overrides: Mapping[str, Value]
    side: str  # section of the steps and of the size of batches


MODELS: Mapping[str, Model] = {
    "ddpm": Model(
        "ddpm-cifar10",
        "images/s",
        2500,
        "clients",
        60,
        {"data.num_clients": 1, "generation.samples": 8, "generation.sampling_steps": 1, "generation.eval_images": 8},
        "client",
    ),
    "graphnvp": Model("graphnvp-qm9-paper", "molecules/s", 25_000, "server", 100, {"molecules.samples": 0}, "server"),
    "mpgvae": Model("mpgvae-qm9-paper", "molecules/s", 25_000, "server", 100, {"molecules.samples": 0}, "server"),
}
# Ways to compute, and the options that ask for them.
WAYS: Mapping[str, Mapping[str, Value]] = {
    "as shipped": {},
    "bf16": {"precision": "bf16"},
    "as shipped, no CUDA graphs": {"cuda_graphs": False},
    "float32": {"precision": "float32"},
    "bf16, no CUDA graphs": {"precision": "bf16", "cuda_graphs": False},
    "float32, no CUDA graphs": {"precision": "float32", "cuda_graphs": False},
}


def overrides_of(model: Model, device: str, steps: int, batch: int) -> dict[str, Value]:
    """Return the options of a short run of a model, which trains and does nothing else."""
    sizes: dict[str, Value] = {f"{model.side}.batch_size": batch} if batch else {}
    return {
        **model.overrides,
        **sizes,
        f"{model.side}.steps": steps,
        "rounds": ROUNDS,
        "sample_every": ROUNDS,
        "checkpoint.every": ROUNDS,
        "evaluate_every": ROUNDS,
        "engine": "inprocess",
        "device": device,
    }


def through_framework(name: str, way: str, device: str, steps: int = 0, batch: int = 0) -> float:
    """Return the examples a second of a model's training in a run.

    Raises
    ------
    FedlabError
        When the run does not end.
    """
    model = MODELS[name]
    steps = steps or model.steps
    with tempfile.TemporaryDirectory() as runs:
        overrides = {**overrides_of(model, device, steps, batch), **WAYS[way]}
        result = fedlab.run(model.preset, runs=Path(runs), overrides=overrides)
    seconds = median(line["seconds"][model.phase] for line in result.rounds if line["round"] > 1)
    return steps * int(result.config[f"{model.side}.batch_size"]) / seconds


def plain_loop(name: str, device: str, steps: int = 0, batch: int = 0) -> float:
    """Return the examples a second of the same model and loss in a plain loop with torch's defaults.

    On a GPU these have TF32 in convolutions and float32 in other matrix products.
    """
    model = MODELS[name]
    steps, where = steps or model.steps, resolve_device(device)
    config = launch.prepare(model.preset, overrides_of(model, device, steps, batch))
    workload, size = config.workload, getattr(config, model.side).batch_size
    network = workload.model().to(where).train()
    data = workload.data(0 if model.side == "client" else None, "train")
    optimizer = torch.optim.Adam(network.parameters(), 1e-4)

    def loss() -> torch.Tensor:
        columns = data.sample_batch(size)
        return workload.loss(network, {key: column.to(where) for key, column in columns.items()})

    seconds_of(loss, optimizer, max(1, steps // 10), where)
    return steps * size / seconds_of(loss, optimizer, steps, where)


def diffusers_loop(device: str, steps: int, batch: int, bf16: bool) -> float:
    """Return the images a second of diffusers' network of the same sizes, with a fused Adam."""
    from benchmarks.diffusion import theirs
    from fedlab.diffusion import denoising, noise_schedule
    from fedlab.models.unet import SHAPES

    network, where = theirs(SHAPES["cifar10"], 3, 32), resolve_device(device)
    assert network is not None
    network = network.to(where, memory_format=torch.channels_last if bf16 else torch.contiguous_format)  # type: ignore[call-overload]
    law = noise_schedule.ddpm_schedule(noise_schedule.linear_betas(1000))
    x = (torch.rand(batch, 3, 32, 32) * 2 - 1).to(where)
    optimizer = torch.optim.Adam(network.parameters(), 1e-4, fused=where.type == "cuda")

    def loss() -> torch.Tensor:
        with torch.autocast(where.type, torch.bfloat16, enabled=bf16):
            return denoising.denoising_loss(law, lambda noisy, level: network(noisy, level).sample.float(), x)

    seconds_of(loss, optimizer, 3, where)
    return steps * batch / seconds_of(loss, optimizer, steps, where)


def measure(name: str, device: str, steps: int = 0, batch: int = 0) -> Iterator[Row]:
    """Yield a model's rows: the plain loop first, then each way to compute, beside it."""
    model = MODELS[name]
    reference = plain_loop(name, device, steps, batch)
    yield Row(PART, f"{model.preset}, plain torch loop, its defaults", reference, model.unit)
    for way in WAYS:
        what = f"{model.preset}, {way}"
        try:
            value = through_framework(name, way, device, steps, batch)
        except Exception as error:  # the next way may do
            yield Row(PART, what, error=f"{type(error).__name__}: {error}"[:2000])
            continue
        yield Row(PART, what, value, model.unit, model.goal, reference="plain loop", reference_value=reference)


def measure_diffusers(device: str, steps: int = 40, batch: int = 128) -> Iterator[Row]:
    """Yield the rows of diffusers, or why there are none."""
    try:
        import diffusers
    except ImportError:
        yield Row(PART, "diffusers", note="left out: it is not installed here")
        return
    for bf16 in (False, True):
        what = f"diffusers {diffusers.__version__}, {'bf16, channels last' if bf16 else 'float32'}"
        yield Row(PART, what, diffusers_loop(device, steps, batch, bf16), "images/s")


def tasks(device: str, seconds: float, runs: Path) -> list[Task]:
    """Return a task for each model; a CPU gets a few steps on small batches, to try them out."""
    small = {"steps": 2, "batch": 8} if resolve_device(device).type == "cpu" else {}
    models = [
        Task(PART, model.preset, f"{__name__}:measure", {"name": name, "device": device, **small})
        for name, model in MODELS.items()
    ]
    return [*models, Task(PART, "diffusers", f"{__name__}:measure_diffusers", {"device": device, **small})]
