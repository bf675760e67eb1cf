"""Draw what a run of DualAdapt sees in test views: python scripts/segmentation_picture.py RUN_DIR CLIENT PICTURE.

Four views of the client's test part, evenly spread, and below them their labels, the prediction of the source-only
twin that the run carries, and that of the client's averaged heads, each with its mean IoU over all test views.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import numpy as np
import torch

from fedlab.data.segmentation.camvid import CLASSES, IGNORE_INDEX
from fedlab.registry import load_config
from fedlab.runs.directory import RunDirectory
from fedlab.workloads.camvid import upsample_logits

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.patches import Patch

VIEWS = 4
COLORS = np.array(  # CamVid's own, class by class; void is black
    [
        (128, 128, 128),
        (128, 0, 0),
        (192, 192, 128),
        (128, 64, 128),
        (0, 0, 192),
        (128, 128, 0),
        (192, 128, 128),
        (64, 64, 128),
        (64, 0, 128),
        (64, 64, 0),
        (0, 128, 192),
        (0, 0, 0),
    ],
    np.uint8,
)


@torch.no_grad()
def draw(run: Path, client: str, picture: Path) -> None:
    """A column for each view."""
    directory = RunDirectory.open(run)
    config, newest = load_config(str(directory.config_file)), directory.checkpoints.latest()
    if newest is None or not newest[1]["strategy"].get("control"):
        sys.exit(
            f"{run} holds no checkpoint of DualAdapt with its control; run it with dualadapt.source_only_twin=true"
        )
    workload, state = config.workload, newest[1]
    half, partition = config.plugins["strategy"].spec.client, workload.clients.index(client)
    twin = workload.model()
    twin.load_state_dict(state["strategy"]["control"]["average"])
    adapted = half.predictor(workload, half.states_from_checkpoint(workload, state, partition, config))
    test = workload.data(partition, "test")
    some = test.subsample(VIEWS)[:]
    rows = [("view", ((some["x"] + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())]
    rows.append(("labels", painted(some["y"])))
    for name, model in (("source only", twin.eval()), ("DualAdapt", adapted)):
        score = workload.evaluate(model, test)["miou"]
        seen = upsample_logits(model(some["x"]).softmax(1), some["y"]).argmax(1)
        rows.append((f"{name}\nmIoU {100 * score:.1f} %", painted(seen)))
    figure, axes = pyplot.subplots(len(rows), VIEWS, figsize=(2.4 * VIEWS, 1.8 * len(rows) + 0.5))
    for line, (name, images) in zip(axes, rows, strict=True):
        line[0].set_ylabel(name)
        for axis, image in zip(line, images, strict=True):
            axis.imshow(image, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
    handles = [Patch(color=color / 255, label=name) for name, color in zip([*CLASSES, "unknown"], COLORS, strict=True)]
    figure.legend(handles=handles, loc="lower center", ncols=6, frameon=False)
    figure.subplots_adjust(0.09, 0.09, 0.995, 0.995, 0.03, 0.03)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=90)


def painted(labels: torch.Tensor) -> np.ndarray:
    """Classes (views, height, width) as colors (views, height, width, 3)."""
    return COLORS[labels.masked_fill(labels == IGNORE_INDEX, len(CLASSES)).numpy()]


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    draw(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
