"""Speed of mixture fitting: ours against scikit-learn's from the same start, and a batched fit against a loop of fits.

Run: ``python -m benchmarks.mixtures`` (under 60 s). Every figure is the median of several runs in this process, taken
in turns so that a busy machine slows all of them; one thread for torch and for scikit-learn's BLAS alike.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial

import sklearn
import torch
from rich.console import Console
from rich.table import Table
from sklearn.mixture import GaussianMixture as SklearnMixture
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor

from fedlab.models.em import fit, kmeans_plusplus_init
from fedlab.models.gaussian_mixture import GaussianMixture, stack

EXAMPLES, COMPONENTS, STEPS, CLIENTS, REPEATS, THREADS = 6000, 10, 15, 4, 7, 1


def features(examples: int, dimensions: int, seed: int) -> Tensor:
    """(examples, dimensions) float32, rectified clusters as a network's features are."""
    stream = torch.Generator().manual_seed(seed)
    centers = torch.randn(COMPONENTS, dimensions, generator=stream)
    member = torch.randint(COMPONENTS, (examples,), generator=stream)
    return (centers[member] + torch.randn(examples, dimensions, generator=stream)).clamp_min(0)


def sklearn_fit(x: Tensor, start: GaussianMixture) -> SklearnMixture:
    """Take as many steps from the same start, in the type of ``x``; it takes one E-step more, for its labels."""
    kind = x.numpy().dtype
    reference = SklearnMixture(
        COMPONENTS,
        covariance_type="diag",
        max_iter=STEPS,
        tol=0.0,
        weights_init=start.log_weights.softmax(-1).numpy().astype(kind),
        means_init=start.means.numpy().astype(kind),
        precisions_init=start.variances.reciprocal().numpy().astype(kind),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it did not converge: it was not asked to
        return reference.fit(x.numpy())


def medians(runs: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Median milliseconds of each, in turns, after one unmeasured turn."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(REPEATS + 1):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            taken[name].append(1000 * (time.perf_counter() - began))
    return {name: statistics.median(times[1:]) for name, times in taken.items()}


def against_sklearn(table: Table, dimensions: int) -> None:
    """Rows: one fit here, in scikit-learn, and how far their log-likelihoods per example are apart."""
    x = features(EXAMPLES, dimensions, seed=0)
    start = kmeans_plusplus_init(x, COMPONENTS)
    ours = partial(fit, x, COMPONENTS, start=start, steps=STEPS, tolerance=0)
    theirs = {
        "scikit-learn, float64": partial(sklearn_fit, x.double(), start),
        "scikit-learn, float32": partial(sklearn_fit, x, start),
    }
    likelihood = ours().log_prob(x).mean().item()
    gaps = {name: f"{run().score(x.double().numpy()) - likelihood:+.0e}" for name, run in theirs.items()}
    took = medians({"ours (float32 in, float64 inside)": ours, **theirs})
    base = next(iter(took.values()))
    for name, taken in took.items():
        table.add_row(f"{EXAMPLES} x {dimensions}", name, f"{taken:.1f}", f"{taken / base:.2f}", gaps.get(name, ""))
    table.add_section()


def against_loop(table: Table, examples: int, dimensions: int) -> None:
    """Rows: several clients' mixtures fitted at once and one by one."""
    x = torch.stack(
        [features(examples, dimensions, seed) for seed in range(CLIENTS)]
    )  # (clients, examples, dimensions)
    start = stack([kmeans_plusplus_init(client, COMPONENTS) for client in x])
    fit_one = partial(fit, components=COMPONENTS, steps=STEPS, tolerance=0)
    took = medians(
        {
            "one batched fit": lambda: fit_one(x, start=start),
            "a loop of fits": lambda: [fit_one(client, start=start[i]) for i, client in enumerate(x)],
        }
    )
    for name, taken in took.items():
        ratio = f"{taken / took['one batched fit']:.2f}"
        table.add_row(f"{CLIENTS} x {examples} x {dimensions}", name, f"{taken:.1f}", ratio, "")
    table.add_section()


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    table = Table(
        title=f"{COMPONENTS} components, {STEPS} EM steps, {THREADS} thread, median of {REPEATS} runs, "
        f"torch {torch.__version__}, scikit-learn {sklearn.__version__}"
    )
    for heading in ("features", "what", "ms", "ratio to first", "log-likelihood - ours"):
        table.add_column(heading, justify="left" if heading == "what" else "right", no_wrap=True)
    with threadpool_limits(THREADS):
        for dimensions in (64, 128):
            against_sklearn(table, dimensions)
        for examples, dimensions in ((EXAMPLES, 64), (EXAMPLES, 128), (300, 64)):
            against_loop(table, examples, dimensions)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
