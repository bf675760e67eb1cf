"""What every test can count on: the embedded data, one thread, no telemetry, generators left as they were."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
import torch

from tables import forget

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
gc.disable()  # until all tests are collected: what is imported stays
torch.set_warn_always(True)  # warnings are errors: which test fails must not depend on which ran before it


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With ``-m gpu`` import the files of such tests alone: a bare GPU machine lacks packages that others import."""
    if config.option.markexpr != "gpu" or not collection_path.match("test_*.py"):
        return None
    return True if "mark.gpu" not in collection_path.read_text(encoding="utf-8") else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start real processes come first: they wait more than they work, while other workers work."""
    waiting = {item.path for item in items if item.get_closest_marker("engine")}
    items.sort(key=lambda item: item.path not in waiting)


def pytest_collection_finish() -> None:
    """Collect garbage again, but not in what is loaded by now."""
    gc.freeze()
    gc.enable()


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Exclude what a file has loaded from garbage collection, which some of Flower's calls start by hand."""
    if nextitem is not None and nextitem.path != item.path:
        gc.collect()
        gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def embedded_data():
    """The sets inside the package, wherever FEDLAB_DATA points; tests of the full sets say where they read.

    For the whole session, since fixtures of a module start processes before those of a test are set up.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("FEDLAB_DATA", raising=False)
        yield


@pytest.fixture(autouse=True, scope="session")
def no_power_failure():
    """Do not wait for the disk after each file: no test cuts the power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture(autouse=True)
def nothing_resolved():
    """What the registry found for one test is not known to the next."""
    yield
    forget()


@pytest.fixture(autouse=True)
def one_thread():
    """Small tensors are faster on one thread, and a test that sets another number does not slow the next."""
    mode = torch.get_deterministic_debug_mode()
    torch.set_num_threads(1)
    yield
    torch.set_deterministic_debug_mode(mode)
