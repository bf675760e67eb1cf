"""The published FID: what is missing is said, and what torchmetrics is given where it is there."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch

from fedlab.evaluation import inception


def test_what_is_missing_is_said(monkeypatch, tmp_path):
    assert "torchmetrics and torch_fidelity cannot be imported; pip install" in inception.unavailable_reason()
    monkeypatch.setattr(inception, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert f"its weights are not at {tmp_path}" in inception.unavailable_reason()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / inception.WEIGHTS).touch()
    assert inception.unavailable_reason() == ""


def test_images_come_to_torchmetrics_in_color_from_0_to_1(monkeypatch):
    given = []

    class Metric:
        def __init__(self, normalize):
            assert normalize

        def update(self, images, real):
            given.append((tuple(images.shape), float(images.min()), float(images.max()), real))

        def compute(self):
            return torch.tensor(3.5)

    module = ModuleType("torchmetrics.image.fid")
    module.FrechetInceptionDistance = Metric
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", module)
    for name in ("torchmetrics", "torchmetrics.image"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    drawn, real = torch.full((60, 1, 4, 4), -1.0), torch.full((50, 3, 4, 4), 1.0)
    assert inception.fid(drawn, real) == pytest.approx(3.5)
    assert given == [
        ((50, 3, 4, 4), 1.0, 1.0, True),
        ((50, 3, 4, 4), 0.0, 0.0, False),
        ((10, 3, 4, 4), 0.0, 0.0, False),
    ]
