"""Facts of the machine that decide about the bits of a run: processor, libraries and their settings, for the manifest.

Two runs with the same options give the same SHA-256 where these are the same. Another processor may round differently:
torch's kernels exist for several sets of instructions, and sums in another order are other sums.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any

import torch

from fedlab.config.run_options import RunConfig
from fedlab.errors import HELP_PAGE, ConfigError, FedlabWarning
from fedlab.machine import numeric_environment, processor_name
from fedlab.precision import resolve_precision
from fedlab.training import resolve_device

# Facts that decide about bits, with their names for people.
DECISIVE = {
    "cpu_capability": "instructions of the processor",
    "environment": "settings of numerical libraries",
    "libraries": "numerical libraries",
    "gpus": "GPUs",
    "float_precision": "precision of floating-point numbers",
}
DECISIVE_VERSIONS = ("torch", "numpy", "torchvision", "scikit-learn")
LIBRARIES = re.compile(r"(Math Kernel Library|MKL-DNN|cuDNN|CUDA Runtime)(?: Version)? v?(\d[\w.]*)")
THREADS_ONLY = ("OMP_", "KMP_", "CUBLAS_")  # variables that begin so change no bit: a run sets both itself


class DifferentMachinesWarning(FedlabWarning):
    """Warning that runs are compared, or resumed, whose bits may differ because of the machine alone."""


def numerics(device: str, vectorized: bool = False, precision: str = "auto", compiled: bool = False) -> dict[str, Any]:
    """Return the facts about this machine and process on which bits depend, as plain JSON; GPUs if one is used."""
    here = _device(device)
    used = resolve_precision(precision, here) if here else precision
    gpus = range(torch.cuda.device_count()) if here and here.type == "cuda" else ()
    return {
        "training": "vectorized" if vectorized else "one client at a time",
        "float_precision": f"{used}, compiled" if compiled else used,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "processor": processor_name(),
        "environment": numeric_environment(),
        "libraries": dict(LIBRARIES.findall(torch.__config__.show())),
        "gpus": [torch.cuda.get_device_name(index) for index in gpus],
    }


def numerics_of(run: RunConfig) -> dict[str, Any]:
    """Return the facts for a run's options."""
    return numerics(run.device, run.vectorizes, run.precision, run.compile)


def _device(name: str) -> torch.device | None:
    """Return the device of an option, None for one that this machine lacks."""
    try:
        return resolve_device(name)
    except ConfigError:
        return None


def different_facts(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return what may make the bits of two runs with the same options differ, by their manifests.

    What a manifest lacks, as one of an older version does, is not compared.
    """
    mine, theirs = (_decisive(manifest.get("numerics", {})) for manifest in (one, other))
    found = [
        f"{title} ({_short(mine[name])} and {_short(theirs[name])})"
        for name, title in DECISIVE.items()
        if name in mine and name in theirs and mine[name] != theirs[name]
    ]
    mine, theirs = one.get("versions", {}), other.get("versions", {})
    return found + [
        f"{name} ({mine[name]} and {theirs[name]})"
        for name in DECISIVE_VERSIONS
        if name in mine and name in theirs and mine[name] != theirs[name]
    ]


def warn_of_different(one: Mapping[str, Any], other: Mapping[str, Any], what: str) -> None:
    """Warn that two manifests are of machines whose bits may differ; ``what`` begins the sentence.

    Warns
    -----
    DifferentMachinesWarning
        With the facts that differ.
    """
    if found := different_facts(one, other):
        warnings.warn(
            f"{what} with different {', '.join(found)}: their bits may differ for that alone; see {HELP_PAGE}",
            DifferentMachinesWarning,
            stacklevel=3,
        )


def _decisive(facts: Mapping[str, Any]) -> dict[str, Any]:
    if "environment" not in facts:
        return dict(facts)
    environment = facts["environment"]
    return {
        **facts,
        "environment": {name: text for name, text in environment.items() if not name.startswith(THREADS_ONLY)},
    }


def _short(value: object) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{name}={text}" for name, text in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return str(value)
