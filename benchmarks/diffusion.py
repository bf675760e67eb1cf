"""What diffusion models cost: training beside diffusers' U-Net, ways to calculate, and samplers of a run.

    python -m benchmarks.diffusion
    python -m benchmarks.diffusion --network medium --threads 2
    python -m benchmarks.diffusion --compile              # torch.compile too; takes a minute and a C++ compiler
    python -m benchmarks.diffusion --run runs/ddpm-mnist-0 --samples 500   # seconds and Frechet distance by sampler
    python -m benchmarks.diffusion --run runs/ddpm-mnist-0 --bits 100      # the variational bound of test images

Both sides of a ratio come from one run on one machine. diffusers cannot be installed beside Flower (its huggingface-hub
asks for click 8.4, Flower's typer for one below). In an environment of its own that sees this one's packages:

    python -m venv /tmp/beside && /tmp/beside/bin/pip install diffusers==0.42.1
    .venv/bin/python -c "import torch, pathlib; print(pathlib.Path(torch.__file__).parents[1])" \
        > $(ls -d /tmp/beside/lib/python*/site-packages)/fedlab.pth
    /tmp/beside/bin/python -m benchmarks.diffusion
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks import likelihood_bound as bound
from fedlab.diffusion import denoising, noise_schedule
from fedlab.errors import ConfigError
from fedlab.evaluation import digit_labels, image_quality
from fedlab.models.unet import SHAPES, UNet, UNetShape
from fedlab.registry import load_config
from fedlab.runs.directory import RunDirectory
from fedlab.seeds import seeded
from fedlab.workloads import sampling
from fedlab.workloads.generation import Generation

BETWEEN = 5  # turns in which the sides are timed, so that a busy moment of the machine hits all
WAYS = [  # sampler, its steps, eta
    ("ancestral", 1000, 0.0),
    ("ddim", 50, 0.0),
    ("ddim", 20, 0.0),
    ("ddim", 50, 1.0),
    ("ddim", 20, 1.0),
]


def theirs(shape: UNetShape, channels: int, size: int) -> nn.Module | None:
    """Diffusers' U-Net of the same widths, blocks and attention, or None where diffusers is not installed."""
    try:
        from diffusers import UNet2DModel
    except ImportError:
        return None
    sizes = [size // 2**depth for depth in range(len(shape.factors))]
    found: nn.Module = UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=[shape.width * factor for factor in shape.factors],
        layers_per_block=shape.blocks,
        down_block_types=["AttnDownBlock2D" if pixels in shape.attention else "DownBlock2D" for pixels in sizes],
        up_block_types=["AttnUpBlock2D" if pixels in shape.attention else "UpBlock2D" for pixels in sizes[::-1]],
        norm_num_groups=min(32, shape.width // 4),
        attention_head_dim=shape.width * max(shape.factors),
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        dropout=shape.dropout,
    )
    return found


def step_of(model: nn.Module, x: Tensor, call: Callable[..., Tensor], *, bf16: bool = False) -> Callable[[], None]:
    """One training step of a model on images x: loss, gradients, Adam."""
    law, optimizer = (
        noise_schedule.ddpm_schedule(noise_schedule.linear_betas(1000)),
        torch.optim.Adam(model.parameters(), 1e-4),
    )

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = denoising.denoising_loss(law, lambda x, level: call(x, level).float(), x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def training(network: str, batch: int, threads: int, compiled: bool) -> Table:
    """Images a second in training: ours, ours in other ways, diffusers'."""
    torch.set_num_threads(threads)
    size = 32 if network == "cifar10" else 28
    shape, channels = SHAPES[network], 3 if network == "cifar10" else 1
    with seeded("benchmark"):
        x = torch.rand(batch, channels, size, size) * 2 - 1
        last = x.contiguous(memory_format=torch.channels_last)
        ours = partial(UNet, channels, size, shape)
        sides: dict[str, Callable[[], None]] = {}
        for name, bf16, order in (
            ("ours, float32", False, torch.contiguous_format),
            ("ours, bfloat16 autocast", True, torch.contiguous_format),
            ("ours, channels last", False, torch.channels_last),
            ("ours, bfloat16, channels last", True, torch.channels_last),
        ):
            model = ours().to(memory_format=order)  # type: ignore[call-overload]
            sides[name] = step_of(model, last if order == torch.channels_last else x, model, bf16=bf16)
        if compiled:
            model = ours()
            sides["ours, torch.compile"] = step_of(model, x, torch.compile(model))
        other = theirs(shape, channels, size) if shape.patch == 1 else None
        if other is not None:
            counts = [sum(weight.numel() for weight in one.parameters()) for one in (ours(), other)]
            assert counts[0] == counts[1], counts
            sides["diffusers, float32"] = step_of(other, x, lambda x, level: other(x, level).sample)
    spent = dict.fromkeys(sides, float("inf"))
    for name, step in sides.items():
        begun = time.perf_counter()
        step()
        if "compile" in name:
            print(f"{name}: first step {time.perf_counter() - begun:.0f} s")
    for _ in range(BETWEEN):
        for name, step in sides.items():
            begun = time.perf_counter()
            step()
            spent[name] = min(spent[name], time.perf_counter() - begun)
    table = Table(title=f"training {network}, batches of {batch}, {size} pixels, {threads} threads, best of {BETWEEN}")
    for head in ("what", "images a second", "against ours, float32"):
        table.add_column(head, justify="left" if head == "what" else "right")
    base = spent["ours, float32"]
    for name, best in spent.items():
        table.add_row(name, f"{batch / best:,.0f}", f"{base / best:.2f}")
    if other is None:
        reason = "has no such network" if shape.patch > 1 else "is not installed here, see --help"
        table.caption = f"diffusers {reason}"
    return table


def learned(folder: Path) -> tuple[Generation, nn.Module]:
    """The workload of a run and its newest model."""
    run = RunDirectory.open(folder)
    config, newest = load_config(str(run.config_file)), run.checkpoints.latest()
    workload = config.workload
    if not isinstance(workload, Generation):
        raise ConfigError(f"{folder} learned {config.run.workload}, and only images are drawn here")
    if newest is None:
        raise ConfigError(f"{folder} has no checkpoint; `fedlab resume {folder}` continues it")
    model = workload.model()
    model.load_state_dict(newest[1]["arrays"])
    return workload, model.eval()


def bits(folder: Path, images: int, threads: int) -> str:
    """The variational bound of a run's newest model, over test images of its clients."""
    torch.set_num_threads(threads)
    workload, model = learned(folder)
    x = sampling.real_images(replace(workload, samples=images), "test")
    levels = (x + 1) * 127.5
    if not torch.allclose(levels, levels.round(), atol=1e-3):
        raise ConfigError(f"pixels of {workload.size} a side are means, no gray levels, of which the bound is; take 28")
    with seeded("benchmark", "bits"):
        found = bound.bits_per_dimension(workload.noise_schedule, workload.backbone(model), x)
    error = float(found.std()) / len(found) ** 0.5
    return f"variational bound: {float(found.mean()):.3f} ± {error:.3f} bits a dimension over {len(x)} test images"


def samplers(folder: Path, samples: int, threads: int) -> Table:
    """Seconds and Frechet distance of each sampler, with the newest model of a run."""
    torch.set_num_threads(threads)
    workload, model = learned(folder)
    real, seen = (
        digit_labels.classify_digits(sampling.real_images(replace(workload, samples=samples), part))[0]
        for part in ("test", "train")
    )
    table = Table(title=f"{folder.name}: {samples} images of {workload.size} pixels, {threads} threads")
    for head in ("sampler", "steps", "eta", "seconds", "frechet", "precision", "recall"):
        table.add_column(head, justify="left" if head == "sampler" else "right")

    def add(*cells: str, features: Tensor) -> None:
        table.add_row(
            *cells, *(f"{value:.3g}" for value in image_quality.distribution_metrics(features, real).values())
        )

    add("real images", "", "", "", features=seen)
    for sampler, steps, eta in WAYS:
        asked = replace(workload, sampler=sampler, sampling_steps=min(steps, workload.num_timesteps), eta=eta)
        with seeded("benchmark", sampler, steps):
            begun = time.perf_counter()
            drawn = sampling.draw(asked, model, samples)
            spent = time.perf_counter() - begun
        add(sampler, f"{steps:,}", f"{eta:g}", f"{spent:.1f}", features=digit_labels.classify_digits(drawn)[0])
    return table


def main() -> None:
    """Print the tables that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=sorted(SHAPES), default="small")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--run", type=Path)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--bits", type=int, default=0, help="test images of --run that the bound is taken on")
    asked = parser.parse_args()
    if asked.run and asked.bits:
        print(bits(asked.run, asked.bits, asked.threads))
    elif asked.run:
        Console().print(samplers(asked.run, asked.samples, asked.threads))
    else:
        Console().print(training(asked.network, asked.batch, asked.threads, asked.compile))


if __name__ == "__main__":
    main()
