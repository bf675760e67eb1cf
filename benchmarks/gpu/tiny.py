"""Options that make one round of any preset take seconds: for checks that it runs, on any device."""

from __future__ import annotations

from collections.abc import Mapping

from fedlab.config.presets import read_preset
from fedlab.config.sections import Value

SHORT: Mapping[str, Value] = {  # the least of every step
    "rounds": 1,
    "threads": 1,
    "server.pretrain_steps": 2,
    "server.steps": 1,
    "server.batch_size": 8,
    "client.steps": 1,
    "client.batch_size": 8,
}
# What makes each workload's data small; presets whose sets do not ship run where FEDLAB_DATA has them.
TINY_DATA: Mapping[str, Mapping[str, Value]] = {
    "camvid": {"camvid.targets": "dusk", "camvid.width": 8},
    "digits": {"data.max_examples": 100, "digits.targets": "optdigits"},
    "fewshot": {"data.max_examples": 100, "fewshot.shots": "1", "fewshot.queries": 1, "fewshot.episodes": 5},
    "images": {"data.max_examples": 100},
    "image_folder": {"data.max_examples": 60, "image_folder.size": 64},
    "generation": {
        "data.max_examples": 100,
        "generation.eval_images": 8,
        "generation.samples": 8,
        "generation.sampling_steps": 1,
        "client.batch_size": 4,
    },
    "molecules": {
        "data.max_examples": 300,
        "molecules.samples": 20,
        "molecules.adjacency_layers": 2,
        "molecules.node_layers": 2,
    },
    "office": {"data.max_examples": 100, "office.targets": "webcam"},
    "pacs": {"data.max_examples": 100, "pacs.targets": "sketch"},
}
LIGHT: Mapping[str, Mapping[str, Value]] = {
    "dualadapt-digits-mcd": {"dualadapt.source_only_twin": False},  # a twin doubles its checkpoints of a gigabyte
    "dualadapt-digits": {"source_free.steps": 3, "source_free.min_examples_per_class": 0},
    "ddpm-cifar10": {"generation.network": "tiny"},
    "fedavg-cifar10": {"data.num_clients": 4, "data.alpha": 100.0, "images.network": "resnet20"},
    "fedavg-cross-device": {"data.num_clients": 40, "data.max_examples": 0},
    "ddpm-mnist-long": {"generation.network": "tiny"},
    "mixer-cifar10-central": {"server.lr_warmup_rounds": 0},  # a warm-up is shorter than its run
    "ncsn-cifar10": {"generation.width": 8, "generation.num_timesteps": 4},
}


def tiny_round(preset: str) -> dict[str, Value]:
    """Return the overrides of one tiny round of a built-in preset."""
    return {**SHORT, **TINY_DATA[str(read_preset(preset)[1]["workload"])], **LIGHT.get(preset, {})}
