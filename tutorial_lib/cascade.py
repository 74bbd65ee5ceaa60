"""Cascades: small pictures first, then larger ones given them, each by a diffusion of its own.

small = final(ddim(base, noise, times, caption))
told = augmented(small, schedule, 0.1, generator=generator)
large = final(ddim(NetworkDenoiser(SuperResolver(net), schedule, "v"), wide_noise, times, told))
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from tutorial_lib.denoiser import Condition, log_snr_clock
from tutorial_lib.schedule import Schedule, Time, as_time


def enlarged(low: Tensor, side: int) -> Tensor:
    """Return pictures (B, C, h, w) as (B, C, side, side), bilinear (as in Ho et al. 2022).

    Both cover the same square: colours change evenly from the centre of a pixel to the next's, and
    not at all outside the outermost centres.
    """
    return F.interpolate(low, size=(side, side), mode="bilinear", align_corners=False)


def reduced(x: Tensor, side: int) -> Tensor:
    """Return pictures (B, C, H, H) as (B, C, side, side), each pixel the mean of a square's.

    Raises ValueError if `side` does not divide H.
    """
    if x.shape[-1] % side:
        raise ValueError(f"{side} does not divide {x.shape[-1]}, the side of the pictures")
    return F.avg_pool2d(x, x.shape[-1] // side)


def augmented(
    low: Tensor,
    schedule: Schedule,
    level: Time,
    *,
    generator: Generator,
    clock: Callable[[Schedule, Time], Tensor] = log_snr_clock,
) -> Condition:
    """Return small pictures (B, C, h, w) noised to the time `level`, () or (B,), and what it is.

    Conditioning augmentation (Ho et al. 2022, section 3.3; Imagen, Saharia et al. 2022, section
    2.4). A super-resolver that is trained on samples of q(low_s | low_0), s random, learns
    E[x_0 | x_t, low_s] of every s at once. Which s drowns the faults of small pictures that were
    drawn, and as little else as may be, is found when it samples. `clock` is how it is told s.
    """
    eps = torch.randn(low.shape, generator=generator, dtype=low.dtype, device=low.device)
    told = clock(schedule, as_time(level)).to(low).expand(len(low))
    return Condition(low_res=schedule.add_noise(low, eps, level), aug_level=told)


class SuperResolver(nn.Module):
    """Let a network that reads twice the channels see the small picture, enlarged, beside x_t.

    SR3 (Saharia et al. 2021), section 2. An `augmented` U-Net is told the small picture's noise
    too (Imagen, Saharia et al. 2022, section 2.4).
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, xt: Tensor, clock: Tensor, cond: Condition) -> Tensor:
        """Map xt (B, C, H, H), clock (B,), cond.low_res (B, C, h, h) and cond.aug_level (B,)."""
        low = enlarged(cond.low_res.to(xt.dtype), xt.shape[-1])
        return self.net(torch.cat([xt, low], 1), clock, cond)
