"""A network of your own on the data of the digits: everything else of that workload stays as it is.

Run it from the folder of this file::

    fedlab run dualadapt-digits workload=own_model:SPEC own_model.width=64 own_model.augment=wide rounds=2
"""

from dataclasses import replace

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn

from fedlab.workloads import digits


class Net(nn.Module):
    """A feature extractor G, ``features``, and a classifier F, ``head``: DualAdapt treats the two apart."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(32 * 8 * 8, width), nn.BatchNorm1d(width), nn.ReLU()),
        )
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        return self.head(self.features(x))


@dataclass(frozen=True)
class OwnModel(digits.Digits):
    """Digits with another network, and one more option."""

    width: int = Field(32, description="features")

    def model(self) -> nn.Module:
        return Net(self.width)


SPEC = replace(digits.SPEC, workload=OwnModel, name="own_model", oracle_overrides={"own_model.client_labels": True})
