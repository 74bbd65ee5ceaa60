"""Inpainting: draw what is missing from a picture, so that the rest stays as it is.

A network can learn to (`Beside`, told `known_part`), or any denoiser be led to (`replacement`).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn

from tutorial_lib.denoiser import Condition, Denoiser, Prediction
from tutorial_lib.samplers import Variance, beta_tilde
from tutorial_lib.schedule import Time


def known_part(x0: Tensor, known: Tensor) -> Tensor:
    """Return the hint of an inpainting network, (B, C + 1, H, W): what is known, and where it is.

    `known` (B, 1, H, W) is 1 there and 0 elsewhere, where nothing is told of x0 (B, C, H, W)
    (GLIDE, Nichol et al. 2021, section 4.3).
    """
    return torch.cat([x0 * known, known.to(x0.dtype).expand(len(x0), -1, -1, -1)], 1)


def outside(boxes: Tensor, side: int) -> Tensor:
    """Return what is known when boxes are erased, (B, 1, side, side): 1 where no box lies, else 0.

    `boxes` (B, N, 4) are left, top, right, bottom in a picture from -1 to 1, as in `shape_world`;
    a pixel is within a box where its centre is. GLIDE (Nichol et al. 2021, section 4.3) erases so.
    """
    centre = (torch.arange(side, device=boxes.device, dtype=boxes.dtype) + 0.5) * (2 / side) - 1
    left, top, right, bottom = (edge[..., None] for edge in boxes.unbind(2))
    across, down = (left < centre) & (centre < right), (top < centre) & (centre < bottom)
    within = (down[..., :, None] & across[..., None, :]).any(1, keepdim=True)  # (B, 1, H, W)
    return (~within).to(boxes.dtype)


def draw_known(n: int, side: int, *, generator: torch.Generator, bare: float = 0.2) -> Tensor:
    """Draw what an inpainting network is told, (n, 1, side, side): all but a box, or nothing.

    GLIDE (Nichol et al. 2021), section 4.3, erases regions at random. Here they are boxes with a
    uniform centre and sides of .15 to .65 of the picture's, and a share `bare` is erased whole:
    text to image, which is not to be forgotten.
    """
    device = generator.device
    corner, reach = torch.rand(2, n, 2, generator=generator, device=device)
    corner, reach = 2 * corner - 1, 0.15 + 0.5 * reach
    known = outside(torch.cat([corner - reach, corner + reach], 1)[:, None], side)
    told = torch.rand(n, 1, 1, 1, generator=generator, device=device) >= bare
    return known * told


class Beside(nn.Module):
    """Let a network that reads more channels see a hint beside x_t.

    GLIDE (Nichol et al. 2021), section 4.3, for inpainting; SR3 (Saharia et al. 2021), section 2,
    for pictures to be enlarged.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, xt: Tensor, clock: Tensor, cond: Condition) -> Tensor:
        """Map xt (B, C, H, W), clock (B,) and cond.hint (B, K, H, W) as the network does."""
        return self.net(torch.cat([xt, cond.hint.to(xt.dtype)], 1), clock, cond)


class KeepKnown:
    """Put what is known into each predicted x_0, and make eps agree.

    The noise there is what x_t has beside the truth, so that x_t ends as the truth.
    """

    def __init__(self, denoiser: Denoiser, x0: Tensor, known: Tensor) -> None:
        self.denoiser, self.schedule, self.x0, self.known = denoiser, denoiser.schedule, x0, known

    def __call__(self, xt: Tensor, t: Time, cond: Condition | None = None) -> Prediction:
        """Predict as the denoiser does, and what is known as it is."""
        prediction = self.denoiser(xt, t, cond)
        return prediction.with_x0(torch.where(self.known.bool(), self.x0, prediction.x0))


def replacement(
    denoiser: Denoiser,
    x: Tensor,
    times: Tensor,
    x0: Tensor,
    known: Tensor,
    cond: Condition | None = None,
    *,
    generator: torch.Generator,
    variance: Variance = beta_tilde,
    repeats: int = 1,
) -> Iterator[Tensor]:
    """Walk back along `times` as `ancestral` does, with what is known put back after each step.

    It is a fresh sample of q(x_s | x_0) where `known` is 1 (Song et al. 2021, section 5; RePaint,
    Lugmayr et al. 2022, eq. 8). The rest is drawn given that noised part, not given x_0: biased.
    With `repeats` each step is taken so many times, with the noise of q(x_t | x_s) between
    (RePaint, algorithm 1): the bias falls. Yields x after every step.
    """
    schedule = denoiser.schedule

    def noise() -> Tensor:
        return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)

    for t, s in pairwise(times):
        for k in range(repeats):
            prediction = denoiser(x, t, cond)
            spread = variance(prediction, schedule, s, t)
            lower = schedule.posterior(prediction.x0, x, s, t).mean
            if s > 0:
                lower = lower + spread**0.5 * noise()
            lower = torch.where(known.bool(), schedule.add_noise(x0, noise(), s), lower)
            if k < repeats - 1:
                kept, added = schedule.transition(s, t)
                x = kept * lower + added**0.5 * noise()
        x = lower
        yield x
