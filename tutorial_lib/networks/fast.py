"""The same U-Net, faster under `torch.compile`: layers rewritten, weights and outputs unchanged.

`accelerate` swaps them in place. The plain network stays the reference that this one is tested
against, and the one to read. Both together train 1.55 times as fast as the plain one, compiled.
"""

import torch
from torch import Tensor, nn

from tutorial_lib.networks.unet import Upsample


class SummedGroupNorm(nn.GroupNorm):
    """Normalise by two sums over each channel, then one scale and one shift a channel.

    PyTorch's kernel wants its groups' channels side by side, which channels_last images have
    not: under `torch.compile` it costs 18 of 86 ms a step at batch 512 in copies (one H200).
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape; sums are float32 or wider (Wu & He 2018, eq. 2)."""
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        sums = torch.stack([wide.sum((2, 3)), wide.square().sum((2, 3))])  # (2, B, C)
        grouped = sums.unflatten(2, (self.num_groups, -1))  # (2, B, groups, C / groups)
        per_group = grouped.sum(3, keepdim=True) / (grouped.shape[3] * x.shape[2] * x.shape[3])
        mean, square = per_group.expand_as(grouped).flatten(2)  # each (B, C)
        scale = self.weight * torch.rsqrt(square - mean.square() + self.eps)
        shift = self.bias - mean * scale
        return (wide * scale[:, :, None, None] + shift[:, :, None, None]).to(x.dtype)


class ExpandingUpsample(Upsample):
    """Repeat pixels by a view, whose gradient is a sum where that of `interpolate` scatters."""

    def forward(self, x: Tensor, emb: Tensor, cond: object = None) -> Tensor:
        """Map (B, C, H, W) to (B, C, 2 H, 2 W); written for channels_last."""
        b, c, h, w = x.shape
        pixels = x.permute(0, 2, 3, 1)[:, :, None, :, None]  # (B, H, 1, W, 1, C)
        twice = pixels.expand(b, h, 2, w, 2, c).flatten(1, 2).flatten(2, 3)
        return self.conv(twice.permute(0, 3, 1, 2))


def accelerate(module: nn.Module) -> nn.Module:
    """Give `module`'s norms and upsamplings their faster forms, in place, and return it."""
    for layer in module.modules():
        if type(layer) is nn.GroupNorm:
            layer.__class__ = SummedGroupNorm
        elif type(layer) is Upsample:
            layer.__class__ = ExpandingUpsample
    return module
