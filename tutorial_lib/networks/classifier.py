"""A classifier of images, clean or noised: the first half of a U-Net, and what it saw."""

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from tutorial_lib.networks.unet import Encoder, UNetConfig, group_norm, initialise_unet


class ImageClassifier(nn.Module):
    """Pool the encoder's last features over space, then map them to a logit for each class.

    Dhariwal & Nichol 2021, section 4, with average for attention pooling.
    """

    def __init__(self, config: UNetConfig, n_classes: int, *, generator: Generator) -> None:
        super().__init__()
        self.config, self.n_classes = config, n_classes
        width = config.levels[-1][0]
        with torch.device("meta"):
            self.encoder = Encoder(config)
            self.norm = group_norm(width)
            self.head = nn.Linear(width, n_classes)
        initialise_unet(self, generator)

    def features(self, x: Tensor, clock: Tensor | None = None) -> Tensor:
        """Map images (B, C, H, W) and clock (B,), zero if None, to pooled features (B, width)."""
        clock = x.new_zeros(len(x)) if clock is None else clock
        seen = self.encoder(x, self.encoder.embed(clock))[-1]
        return F.silu(self.norm(seen)).mean((2, 3))

    def forward(self, x: Tensor, clock: Tensor | None = None) -> Tensor:
        """Map images (B, C, H, W) and clock (B,), zero if None, to logits (B, n_classes)."""
        return self.head(self.features(x, clock))
