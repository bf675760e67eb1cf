"""torchvision's vision transformer split into ``features`` and ``head``, in a size for 32 pixels and a CPU.

**Source**: Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021; ``torchvision.models.VisionTransformer``.

**Departures**: none of the network; it is small, about as large as the Mixer ``tiny``.
"""

from __future__ import annotations

from torch import Tensor, nn

from fedlab.errors import ConfigError

PATCH, WIDTH, DEPTH, HEADS, HIDDEN = 8, 64, 4, 4, 128


class ViT(nn.Module):
    """A transformer with 64 features of the class token, patches of 8 pixels, and a linear head that starts at zero.

    Parameters
    ----------
    classes
        Number of classes.
    size
        Pixels a side.

    Raises
    ------
    ConfigError
        When patches do not tile the image.
    """

    def __init__(self, classes: int, size: int) -> None:
        from torchvision.models.vision_transformer import VisionTransformer  # costs a second

        super().__init__()
        if size % PATCH:
            raise ConfigError(f"images of {size} pixels cannot be cut into patches of {PATCH}; take a multiple of it")
        body = VisionTransformer(size, PATCH, DEPTH, HEADS, WIDTH, HIDDEN)
        body.heads = nn.Identity()
        self.features: nn.Module = body  # (batch, 3, size, size) to (batch, width)
        self.head = nn.Linear(WIDTH, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (batch, classes) of images (batch, 3, size, size)."""
        logits: Tensor = self.head(self.features(x))
        return logits
