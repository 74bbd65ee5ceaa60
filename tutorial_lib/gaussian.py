"""Gaussians with diagonal covariance: every step of a diffusion chain is one of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

HALF_BIN = 1 / 255  # half the distance of two 8-bit values in [-1, 1]


def sum_over_dims(x: Tensor) -> Tensor:
    """Sum over all axes but the first, (B, ...) -> (B,)."""
    return x.flatten(1).sum(1) if x.ndim > 1 else x


@dataclass(frozen=True)
class Gaussian:
    """Hold N(mean, diag(variance)), a batch of independent Gaussians.

    `mean` is (B, ...); `variance` is a float or any tensor that broadcasts to it. Quantities
    are in nats and summed over all axes but the first: shape (B,).
    """

    mean: Tensor
    variance: Tensor | float

    def _variance(self) -> Tensor:
        return torch.as_tensor(
            self.variance, dtype=self.mean.dtype, device=self.mean.device
        ).expand_as(self.mean)

    def sample(self, *, generator: torch.Generator) -> Tensor:
        """Draw mean + sqrt(variance) * noise, reparameterised (Kingma & Welling 2014, 2.4)."""
        noise = torch.randn(
            self.mean.shape, generator=generator, dtype=self.mean.dtype, device=self.mean.device
        )
        return self.mean + self._variance().sqrt() * noise

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log N(x; mean, variance) in nats (Bishop 2006, eq. 2.43)."""
        variance = self._variance()
        return -0.5 * sum_over_dims(
            (x - self.mean) ** 2 / variance + variance.log() + math.log(2 * math.pi)
        )

    def entropy(self) -> Tensor:
        """Return the differential entropy in nats (Cover & Thomas 2006, theorem 8.4.1)."""
        return 0.5 * sum_over_dims(self._variance().log() + math.log(2 * math.pi * math.e))

    def kl(self, other: Gaussian) -> Tensor:
        """Return KL(self || other) in nats (Kingma & Welling 2014, appendix B, generalised)."""
        ratio = self._variance() / other._variance()
        shift = (self.mean - other.mean) ** 2 / other._variance()
        return 0.5 * sum_over_dims(ratio - 1 - ratio.log() + shift)


@dataclass(frozen=True)
class DiscretisedGaussian:
    """Hold a Gaussian cut into the 256 values k / 127.5 - 1 of 8-bit pixels in [-1, 1].

    DDPM (Ho et al. 2020), eq. 13: a value takes the mass of its bin, the end values the tails too.
    """

    mean: Tensor
    variance: Tensor | float

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x) in nats of pixels (B, ...), (B,) (Ho et al. 2020, eq. 13).

        A bin in the upper half is mirrored, so that the difference of two distribution functions
        is one of small numbers; it is then taken between their logarithms.
        """
        scale = torch.as_tensor(self.variance, dtype=x.dtype, device=x.device).rsqrt()
        side = torch.where(x > self.mean, -1.0, 1.0).to(x.dtype)
        offset = side * (x - self.mean)  # <= 0
        high = torch.special.log_ndtr((offset + HALF_BIN) * scale)
        low = torch.special.log_ndtr((offset - HALF_BIN) * scale)
        inner = high + torch.log(-torch.expm1(low - high))
        # an end value's bin reaches to infinity on its outer side
        first, last = x < -1 + HALF_BIN, x > 1 - HALF_BIN
        lower = torch.special.log_ndtr((x - self.mean + HALF_BIN) * scale)
        upper = torch.special.log_ndtr((self.mean - x + HALF_BIN) * scale)
        return sum_over_dims(torch.where(first, lower, torch.where(last, upper, inner)))
