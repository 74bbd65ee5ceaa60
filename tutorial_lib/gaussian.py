"""Gaussians with diagonal covariance: every step of a diffusion chain is one of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


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
