"""Settings of this machine and process that change what a run computes, or stop it: found without importing torch."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from fedlab.errors import HELP_PAGE, ConfigError

PREFIXES = ("OMP_", "KMP_", "MKL_", "OPENBLAS_", "ONEDNN_", "DNNL_", "ATEN_CPU_", "CUBLAS_", "NVIDIA_TF32_")
"""Variables of the environment that numerical libraries read begin with one of these."""
TRUE = ("1", "true", "yes", "on")

_process_with_threads = 0


def numeric_environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the variables that numerical libraries read, by name."""
    found = os.environ if environ is None else environ
    return {name: found[name] for name in sorted(found) if name.startswith(PREFIXES)}


def missing_threads(threads: int, environ: Mapping[str, str] | None = None) -> str:
    """Return the setting because of which OpenMP starts fewer threads than a run asks for; "" where there is none.

    torch's matrix kernels on several threads wait for as many as were asked for: with fewer they wait forever, and
    the process does not hear SIGTERM.

    Parameters
    ----------
    threads
        Threads that the run asks for.
    environ
        Variables of the environment; None: those of this process.
    """
    found = os.environ if environ is None else environ
    if threads < 2:
        return ""
    limit = found.get("OMP_THREAD_LIMIT", "").strip()
    is_bad = {
        "OMP_THREAD_LIMIT": limit.isdigit() and 0 < int(limit) < threads,
        "OMP_DYNAMIC": found.get("OMP_DYNAMIC", "").strip().lower() in TRUE,
        "OMP_MAX_ACTIVE_LEVELS": found.get("OMP_MAX_ACTIVE_LEVELS", "").strip() == "0",
    }
    return next((f"{name}={found[name]}" for name, bad in is_bad.items() if bad), "")


def check_threads(threads: int) -> None:
    """Refuse what would make torch's kernels wait for threads that never come.

    Parameters
    ----------
    threads
        Threads that the run asks for.

    Raises
    ------
    ConfigError
        When OpenMP would start fewer, or when this process was forked from one that has run with several.
    """
    if setting := missing_threads(threads):
        raise ConfigError(
            f"the environment sets {setting}, and the run asks for threads={threads}: torch would wait forever for "
            f"threads that OpenMP does not start; unset {setting.partition('=')[0]}, or set threads=1, which gives "
            f"other bits. See {HELP_PAGE}"
        )
    if threads > 1 and _process_with_threads not in (0, os.getpid()):
        raise ConfigError(
            f"this process was forked from one that has run with several threads, and threads={threads} would wait "
            "forever, since threads do not survive a fork; start the process with multiprocessing's method 'spawn', "
            "or set threads=1, which gives other bits"
        )


def note_threads(threads: int) -> None:
    """Remember that this process runs with several threads, for :func:`check_threads` in what is forked from it."""
    global _process_with_threads
    if threads > 1:
        _process_with_threads = os.getpid()


def processor_name() -> str:
    """Return the name of this machine's processor; its architecture where the system does not tell."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def free_memory(system: Path = Path("/")) -> int | None:
    """Return the bytes of memory that a process may still take, within the limit of a container if there is one.

    What holds copies of files is free, since the system gives it up. None where the system does not tell.

    Parameters
    ----------
    system
        The folder with the files of the kernel.
    """
    try:
        free = _entries(system / "proc/meminfo")["MemAvailable:"] * 1024
    except (OSError, KeyError):
        return None
    group = system / "sys/fs/cgroup"
    with suppress(OSError, ValueError):  # no limit is the word "max"
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        free = min(free, limit - used + _entries(group / "memory.stat").get("inactive_file", 0))
    return max(free, 0)


def _entries(path: Path) -> dict[str, int]:
    """Return the number behind each name of a file of the kernel, one a line."""
    return {words[0]: int(words[1]) for line in path.read_text().splitlines() if len(words := line.split()) > 1}
