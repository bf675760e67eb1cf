"""A network of your own on folders of your own photographs: reading, views and metrics stay those of that workload.

Run it from the folder of this file, on folders as docs/how-to/photos.md describes them::

    fedlab run adapt-photos workload=own_photos:SPEC data.root=FOLDER own_photos.width=64
    fedlab predict runs/adapt-photos-0 --client NAME FOLDER/NAME
"""

from dataclasses import replace

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn

from fedlab.workloads import image_folder


class Net(nn.Module):
    """A feature extractor G, ``features``, and a classifier F, ``head``: DualAdapt treats the two apart."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(32 * 4 * 4, width), nn.BatchNorm1d(width), nn.ReLU()),
        )
        self.head = nn.Linear(width, classes)

    def forward(self, x):  # x: (batch, 3, size, size), between 0 and 1
        return self.head(self.features(x))


@dataclass(frozen=True)
class OwnPhotos(image_folder.ImageFolder):
    """Folders of photographs with another network, and one more option; ``size`` is a side of what it gets."""

    width: int = Field(32, description="features")

    def model(self) -> nn.Module:
        return Net(self.width, len(self.classes))


SPEC = replace(
    image_folder.SPEC, workload=OwnPhotos, name="own_photos", oracle_overrides={"own_photos.client_labels": True}
)
