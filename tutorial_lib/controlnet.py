"""ControlNet: a trained copy of a frozen network's encoder says what to add to its skips."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from tutorial_lib.networks.mlp import initialise
from tutorial_lib.networks.unet import UNet, UNetConfig

WIDTHS = (16, 32, 64)  # of the layers that read a map (Zhang et al. 2023, section 3.3)


class ControlNet(nn.Module):
    """Say, of a map that a picture is to follow, what to add to a U-Net's skips and middle.

    Zhang et al. 2023, section 3. A copy of the encoder learns, told the map through a small
    strided network and a zero convolution; what it finds leaves through one zero convolution
    each. So at first nothing is added. `map_channels` is the map's, (B, map_channels, H, W).
    """

    def __init__(self, net: UNet, map_channels: int, *, generator: Generator) -> None:
        super().__init__()
        config = net.config
        self.map_channels, self.patch = map_channels, config.patch
        self.encoder = copy.deepcopy(net.encoder).requires_grad_(True)
        with torch.device("meta"):
            self.map = map_encoder(map_channels, config.patch)
            self.enter = nn.Conv2d(WIDTHS[-1], config.channels, 1)
            ends = [*config.skips, config.levels[-1][0]]
            self.leave = nn.ModuleList(nn.Conv2d(width, width, 1) for width in ends)
        initialise(self.map, generator)
        for layer in (self.enter, *self.leave):
            layer.to_empty(device=generator.device)
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, xt: Tensor, emb: Tensor, cond: Any, hint: Tensor) -> list[Tensor]:
        """Return what to add, from the first skip to the middle, of a map (B, C, H, W).

        A row whose map is zero everywhere has none, and nothing is added to it.
        """
        copied = self.encoder
        h = copied.first(F.pixel_unshuffle(xt, self.patch)) + self.enter(self.map(hint))
        skips = [h]
        for stage in copied.stages:
            skips.append(stage(skips[-1], emb, cond))
        features = [*skips, copied.middle(skips[-1], emb, cond)]
        there = (hint != 0).flatten(1).any(1)[:, None, None, None]
        return [there * zero(x) for zero, x in zip(self.leave, features, strict=True)]


def map_encoder(channels: int, patch: int) -> nn.Sequential:
    """Return the small network that reads a map, strided down to the size that a U-Net works on.

    Zhang et al. 2023, section 3.3. It is not resized: what lies between the places of the smaller
    grid would be lost.
    """
    layers: list[nn.Module] = []
    strides = [2 if patch >= 2 ** (k + 1) else 1 for k in range(len(WIDTHS))]
    for before, width, stride in zip((channels, *WIDTHS), WIDTHS, strides, strict=False):
        layers += [nn.Conv2d(before, width, 3, stride=stride, padding=1), nn.SiLU()]
    return nn.Sequential(*layers)


class Controlled(nn.Module):
    """Be a frozen U-Net whose skips and middle get what its ControlNets add.

    `cond.hint` holds their maps, one after another along the channels. Several add up (Zhang et
    al. 2023, section 3.4), each times its scale; and each feature counts by its weight.
    """

    def __init__(
        self,
        net: UNet,
        controls: Sequence[ControlNet],
        *,
        scales: Sequence[float] | None = None,
        weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.net, self.controls = net.requires_grad_(False), nn.ModuleList(controls)
        self.scales = tuple(scales or (1.0,) * len(controls))
        self.weights = tuple(weights or (1.0,) * (len(net.config.skips) + 1))
        self.config = net.config

    def forward(self, xt: Tensor, clock: Tensor, cond: Any = None) -> Tensor:
        """Map xt (B, C, H, W) and clock (B,) as the network does, with what is added."""
        if cond is None or cond.hint is None:
            return self.net(xt, clock, cond)
        hints = cond.hint.split([control.map_channels for control in self.controls], 1)
        total: list[Tensor] | None = None
        for control, scale, hint in zip(self.controls, self.scales, hints, strict=True):
            emb = control.encoder.embed(clock, cond)
            added = control(xt, emb, cond, hint.to(xt.dtype))
            added = [scale * w * x for w, x in zip(self.weights, added, strict=True)]
            total = added if total is None else [a + b for a, b in zip(total, added, strict=True)]
        return self.net(xt, clock, cond, control=total)


def resolution_weights(config: UNetConfig) -> list[float]:
    """Return for each feature the largest side over its own: the coarser, the more it counts.

    Zhang et al. 2023, section 3.4: 64 / h, from 1 at the finest map to 8 at the coarsest.
    """
    sides = feature_sides(config)
    return [sides[0] / side for side in sides]


def depth_weights(config: UNetConfig, base: float = 0.825) -> list[float]:
    """Return base^(n - i) for the features i = 0..n: the earlier, the less it counts.

    So in the authors' code (Zhang et al. 2023), where n is 12; elsewhere one reads 7/8 for it.
    """
    last = len(config.skips)
    return [base ** (last - i) for i in range(last + 1)]


def feature_sides(config: UNetConfig) -> list[int]:
    """Return the side of each of an encoder's features, from the first skip to the middle."""
    sides = [side for _, side in config.levels]
    found = [sides[0]]
    for side, smaller in zip(sides, [*sides[1:], sides[-1]], strict=True):
        found += [side] * config.depth + [smaller]  # the last is not halved: that is the middle
    return found
