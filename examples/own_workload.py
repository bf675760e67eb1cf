"""A workload with data, model, loss and metric of its own: scikit-learn's diabetes data, divided among clinics.

Run it from the folder of this file::

    fedlab run own_workload:PRESET own_workload.width=32 data.num_clients=3
"""

from dataclasses import dataclass, field

import torch
from sklearn.datasets import load_diabetes
from torch import Tensor, nn
from torch.nn.functional import smooth_l1_loss

from fedlab.config.data_options import DEFAULT_DATA, DataConfig
from fedlab.data.dataset import ArrayDataset, Batch
from fedlab.metrics import Metric
from fedlab.workload import WorkloadSpec


@dataclass(frozen=True)
class Diabetes:
    """Progression of the disease (25 to 346) one year after 10 measurements, in units of 100."""

    width: int = field(default=16, metadata={"description": "hidden units"})
    data_config: DataConfig = DEFAULT_DATA

    @property
    def clients(self) -> tuple[str, ...]:
        return tuple(f"clinic-{number}" for number in range(self.data_config.num_shards))

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(10, self.width), nn.ReLU(), nn.Linear(self.width, 1))

    def data(self, partition: int | None, split: str) -> ArrayDataset:
        x, y = load_diabetes(return_X_y=True)
        columns = {"x": torch.tensor(20 * x).float(), "y": torch.tensor(y / 100).float()}
        owners, owner = len(self.clients) + 1, 0 if partition is None else partition + 1
        rows = torch.randperm(len(y), generator=torch.Generator().manual_seed(self.data_config.seed))[owner::owners]
        cut = len(rows) * 3 // 4
        return ArrayDataset(columns).select(rows[:cut] if split == "train" else rows[cut:])

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return smooth_l1_loss(model(batch["x"]).squeeze(1), batch["y"])

    @torch.no_grad()
    def evaluate(self, model: nn.Module, data: ArrayDataset) -> dict[str, float]:
        batch = data[:]
        return {"mae": float(100 * (model.eval()(batch["x"]).squeeze(1) - batch["y"]).abs().mean())}


SPEC = WorkloadSpec(
    Diabetes,
    metrics=(Metric("mae", "mean absolute error", unit="points", higher_is_better=False),),
    primary_metric="mae",
    name="own_workload",
)
PRESET = {
    "description": "diabetes progression, FedAvg over clinics",
    **{"workload": "own_workload:SPEC", "strategy": "fedavg", "rounds": 10},
    "server": {"pretrain_steps": 0},
    "client": {"steps": 20, "batch_size": 32, "learning_rate": 0.02},
}
