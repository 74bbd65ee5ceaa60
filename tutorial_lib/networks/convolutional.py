"""Residual convolutions that halve or double an image's sides: the networks of the image VAEs."""

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F


class ResidualBlock(nn.Module):
    """Add two 3x3 convolutions of an image to it; as it starts, the identity.

    Pre-activation residual block (He et al. 2016, Identity Mappings) with group norms of
    8 groups (Wu & He 2018); the second convolution starts at zero (Zhang et al. 2019).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first_norm, self.second_norm = nn.GroupNorm(8, width), nn.GroupNorm(8, width)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, width, H, W) to the same shape."""
        h = self.first(F.silu(self.first_norm(x)))
        return x + self.second(F.silu(self.second_norm(h)))


def downward(
    channels: int, widths: Sequence[int], depth: int, out: int, *, generator: Generator
) -> nn.Sequential:
    """Build a network that halves an image's sides once per entry of `widths`.

    `depth` residual blocks follow each halving. Shapes: (B, channels, H, W) to
    (B, out, H / 2^n, W / 2^n), n = len(widths).
    """
    with torch.device("meta"):
        layers = []
        for before, width in zip([channels, *widths], widths, strict=False):
            layers += [nn.Conv2d(before, width, 2, stride=2), *_blocks(width, depth)]
        layers += [nn.Conv2d(widths[-1], out, 3, padding=1)]
    return _initialised(nn.Sequential(*layers), generator)


def upward(
    channels: int, widths: Sequence[int], depth: int, out: int, *, generator: Generator
) -> nn.Sequential:
    """Build a network that doubles an image's sides once per entry of `widths`.

    `depth` residual blocks come before each doubling. Shapes: (B, channels, H, W) to
    (B, out, 2^n H, 2^n W), n = len(widths).
    """
    with torch.device("meta"):
        layers = [nn.Conv2d(channels, widths[0], 3, padding=1)]
        for width, after in zip(widths, [*widths[1:], out], strict=True):
            layers += [*_blocks(width, depth), nn.ConvTranspose2d(width, after, 2, stride=2)]
    return _initialised(nn.Sequential(*layers), generator)


def _blocks(width: int, depth: int) -> list[ResidualBlock]:
    return [ResidualBlock(width) for _ in range(depth)]


def _initialised(network: nn.Sequential, generator: Generator) -> nn.Sequential:
    network.to_empty(device=generator.device)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim == 1:  # biases, and the norms' scales
                parameter.fill_(1.0 if "norm.weight" in name else 0.0)
                continue
            std = 0.0 if ".second." in name else 1 / math.sqrt(parameter[0].numel())
            parameter.normal_(std=std, generator=generator)
    return network
