"""Draw what Langevin dynamics does on two clouds whose score is known: python scripts/langevin_pictures.py [FOLDER].

Writes langevin-modes.png (plain Langevin forgets which cloud has more mass, annealing finds it) and langevin-noise.png
(the same chain with and without its noise: variance against steps) to docs/images, and prints the numbers in them.
The clouds are those of Song and Ermon, 2019, figure 3: a fifth of N((-5, -5), I), four fifths of N((5, 5), I).
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from fedlab.diffusion import noise_schedule, samplers, sigmas
from fedlab.seeds import seeded

MEANS = torch.tensor([[-5.0, -5.0], [5.0, 5.0]])
SHARES = torch.tensor([0.2, 0.8])
COUNT, STEPS, ALPHA = 1280, 1000, 0.1
LEVELS, LARGEST, SMALLEST, EACH = 10, 20.0, 0.3, 100
INK, WARM, GRAY = "#2f6f9f", "#b5451f", "#8c8c8c"


def slope(x: Tensor, sigma: float = 0.0) -> Tensor:
    """The score (batch, 2) of the clouds with noise of ``sigma`` on top, at x (batch, 2)."""
    variance = 1 + sigma**2
    apart = x[:, None] - MEANS
    weights = (SHARES.log() - apart.square().sum(2) / (2 * variance)).softmax(1)
    return -(weights[:, :, None] * apart).sum(1) / variance


def exact(count: int) -> Tensor:
    """Draws (count, 2) from the clouds."""
    return MEANS[torch.multinomial(SHARES, count, replacement=True)] + torch.randn(count, 2)


def plain(x: Tensor, steps: int, *, noisy: bool = True, told: list[Tensor] | None = None) -> Tensor:
    """Langevin steps of one size, with or without their noise; ``told`` gets every state."""
    for _ in range(steps):
        drawn = torch.randn_like(x)
        x = samplers.langevin_step(x, slope(x), ALPHA, drawn if noisy else torch.zeros_like(x))
        if told is not None:
            told.append(x)
    return x


def annealed(x: Tensor) -> Tensor:
    """Annealed Langevin dynamics with NCSNv2's step, from the clouds' own score at each level."""
    law = noise_schedule.ncsn_schedule(sigmas.geometric_sigmas(SMALLEST, LARGEST, LEVELS))

    def found(x: Tensor, level: Tensor) -> Tensor:
        sigma = law.at(int(level[0]))[1]
        return -sigma * slope(x, sigma)

    factor = float((LARGEST / SMALLEST) ** (1 / (LEVELS - 1)))
    return samplers.annealed_langevin(law, found, x, steps=EACH, step=sigmas.best_step(factor, EACH), denoise=True)


def upper(x: Tensor) -> float:
    """Share of points nearer to the larger cloud."""
    return float((x.sum(1) > 0).float().mean())


def within(x: Tensor) -> float:
    """Variance a coordinate around the mean of the points of each cloud, 1 for the clouds themselves."""
    sides = [x[x.sum(1) > 0], x[x.sum(1) <= 0]]
    return float(sum((side - side.mean(0)).square().sum() for side in sides) / x.numel())


def modes(folder: Path) -> None:
    """The first picture."""
    with seeded("langevin pictures", "modes"):
        begin = torch.rand(COUNT, 2) * 16 - 8
        found = {
            "the clouds themselves": exact(COUNT),
            f"plain Langevin, {STEPS:,} steps": plain(begin, STEPS),
            f"annealed, {LEVELS} levels of {EACH} steps": annealed(torch.randn(COUNT, 2) * LARGEST),
        }
    figure = Figure((10, 3.9), dpi=110, layout="constrained")
    for axes, (name, x) in zip(figure.subplots(1, 3, sharex=True, sharey=True), found.items(), strict=True):
        print(f"{name}: {upper(x):.3f} in the larger cloud, variance within {within(x):.2f}")
        axes.scatter(*x.T, s=4, alpha=0.35, color=INK, linewidths=0)
        axes.set_title(f"{name}\n{100 * upper(x):.0f} % in the upper cloud", fontsize=10)
        axes.set(xlim=(-9.5, 9.5), ylim=(-9.5, 9.5), aspect="equal")
        axes.tick_params(labelsize=8)
    figure.savefig(folder / "langevin-modes.png", facecolor="white")


def noisy(folder: Path) -> None:
    """The second picture."""
    steps = 200
    with seeded("langevin pictures", "noise"):
        begin = torch.rand(COUNT, 2) * 16 - 8
        paths: dict[str, list[Tensor]] = {"with its noise": [], "without": []}
        for name, told in paths.items():
            plain(begin, steps, noisy=name == "with its noise", told=told)
    figure = Figure((10, 3.9), dpi=110, layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for axes, (name, told), color, size in zip((left, middle), paths.items(), (INK, WARM), (4, 40), strict=True):
        axes.scatter(*told[-1].T, s=size, alpha=0.35, color=color, linewidths=0)
        axes.set_title(f"the chain {name}, step {steps}", fontsize=10)
        axes.set(xlim=(-9.5, 9.5), ylim=(-9.5, 9.5), aspect="equal")
        curve = [within(begin), *map(within, told)]
        right.plot(curve, color=color, label=name)
        at = {number: round(curve[number], 4) for number in (0, 10, 50, 100, 200)}
        print(f"the chain {name}: variance within clouds after so many steps {at}")
    right.axhline(1, color=GRAY, linewidth=1, linestyle="--", label="the clouds' own")
    right.set(xlabel="steps", ylabel="variance within the clouds", yscale="log", ylim=(1e-3, 20))
    right.legend(fontsize=8, frameon=False)
    for axes in (left, middle, right):
        axes.tick_params(labelsize=8)
    figure.savefig(folder / "langevin-noise.png", facecolor="white")


if __name__ == "__main__":
    where = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "docs" / "images"
    modes(where)
    noisy(where)
