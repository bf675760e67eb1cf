"""The backends by name: where ``fedlab compare --on`` can run cells."""

from __future__ import annotations

from fedlab.comparison.cluster.backend import Backend
from fedlab.errors import ConfigError, suggest
from fedlab.references import load_reference

BACKENDS = {
    "ray": "fedlab.comparison.cluster.ray_backend:RayBackend",
    "slurm": "fedlab.comparison.cluster.slurm_backend:SlurmBackend",
}


def find_backend(text: str) -> Backend:
    """Return the backend of ``NAME`` or ``NAME:DETAILS``, as ``--on`` is written.

    Raises
    ------
    ConfigError
        When there is none of this name, or it cannot read the details.
    """
    name, _, details = text.strip().partition(":")
    if name not in BACKENDS:
        raise ConfigError(
            f"cells cannot be run on {text!r}; {suggest(name, BACKENDS)} Write --on {' or '.join(BACKENDS)}"
        )
    found: Backend = load_reference(BACKENDS[name])(details)
    return found
