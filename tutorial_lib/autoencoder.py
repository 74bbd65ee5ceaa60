"""Variational autoencoders of any depth, and the linear-Gaussian model that judges them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from tutorial_lib.gaussian import Gaussian, sum_over_dims
from tutorial_lib.networks.convolutional import downward, upward
from tutorial_lib.networks.mlp import initialise

LEVELS_PER_UNIT = 127.5  # 8-bit pixels k = 0..255 stand at k / 127.5 - 1 in [-1, 1]


@dataclass(frozen=True)
class LinearGaussian:
    """Hold p(z) = N(0, I), p(x|z) = N(W z + mean, noise_variance I): everything is closed form.

    Probabilistic principal component analysis (Tipping & Bishop 1999), section 3.1. W is (D, q),
    `mean` is (D,); results are in W's dtype (use float64), in nats.
    """

    W: Tensor
    mean: Tensor
    noise_variance: float

    def sample(self, n: int, *, generator: Generator) -> Tensor:
        """Draw n points x, shape (n, D)."""
        z = Gaussian(self.W.new_zeros(n, self.W.shape[1]), 1.0).sample(generator=generator)
        return Gaussian(z @ self.W.T + self.mean, self.noise_variance).sample(generator=generator)

    def log_evidence(self, x: Tensor) -> Tensor:
        """Return log p(x) of x ~ N(mean, W W' + noise_variance I), (B, D) -> (B,)."""
        covariance = self.W @ self.W.T + self.noise_variance * self._eye(self.W.shape[0])
        return torch.distributions.MultivariateNormal(self.mean, covariance).log_prob(x)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean (B, q) and the covariance (q, q) of p(z|x), the same for every x.

        Tipping & Bishop 1999, section 3.1: M^-1 W' (x - mean) and s2 M^-1, M = W' W + s2 I.
        """
        covariance = self.noise_variance * self._precision().inverse()
        return (x - self.mean) @ self.W @ covariance / self.noise_variance, covariance

    def elbo(self, x: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
        """Return E_q log p(x|z) - KL(q || p(z)) for q = N(mean, covariance), shape (B,).

        Kingma & Welling 2014, eq. 3. `mean` is (B, q), `covariance` (q, q) or (B, q, q).
        """
        error = ((x - self.mean - mean @ self.W.T) ** 2).sum(-1)
        spread = _trace(self.W.T @ self.W @ covariance)
        log_normaliser = x.shape[-1] * math.log(2 * math.pi * self.noise_variance)
        reconstruction = -0.5 * (log_normaliser + (error + spread) / self.noise_variance)
        prior = torch.zeros_like(mean), self._eye(mean.shape[-1])
        return reconstruction - _full_kl(mean, covariance, *prior)

    def gap(self, x: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
        """Return KL(N(mean, covariance) || p(z|x)), which log_evidence - elbo must equal.

        Luo 2022, eq. 15. Shapes as in `elbo`.
        """
        return _full_kl(mean, covariance, *self.posterior(x))

    def best_diagonal_gap(self) -> Tensor:
        """Return the least gap of any q with a diagonal covariance, the mean-field floor, ().

        Bishop 2006, section 10.1.2: the best variances are the reciprocals of the posterior
        precision's diagonal.
        """
        precision = self._precision() / self.noise_variance
        return 0.5 * (precision.diagonal().log().sum() - precision.logdet())

    def _precision(self) -> Tensor:
        return self.W.T @ self.W + self.noise_variance * self._eye(self.W.shape[1])

    def _eye(self, n: int) -> Tensor:
        return torch.eye(n, dtype=self.W.dtype, device=self.W.device)


def _full_kl(mean: Tensor, covariance: Tensor, other_mean: Tensor, other: Tensor) -> Tensor:
    precision = other.inverse()
    shift = other_mean - mean
    mahalanobis = torch.einsum("...i,ij,...j->...", shift, precision, shift)
    log_ratio = other.logdet() - covariance.logdet()
    return 0.5 * (_trace(precision @ covariance) + mahalanobis - mean.shape[-1] + log_ratio)


def _trace(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1).sum(-1)


class Distribution(Protocol):
    """Name what a decoder returns: a Gaussian, a DiscretisedLogistic, or one of your own."""

    mean: Tensor

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x) in nats, (B, ...) -> (B,)."""

    def sample(self, *, generator: Generator) -> Tensor:
        """Draw one x of each distribution in the batch."""


@dataclass(frozen=True)
class DiscretisedLogistic:
    """Hold independent logistics, rounded to the 256 values of 8-bit pixels in [-1, 1].

    PixelCNN++ (Salimans et al. 2017), eq. 2, with one component: each value takes the mass of its
    bin, the end values that of the tails too, so the 256 probabilities sum to one.
    """

    mean: Tensor
    log_scale: Tensor

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x) in nats of pixels k / 127.5 - 1, (B, ...) -> (B,).

        With bin edges a > b in units of the scale, F(a) - F(b) = F(a) F(-b) (1 - exp(b - a)):
        every factor keeps its logarithm where the difference would underflow.
        """
        precision, half_bin = torch.exp(-self.log_scale), 0.5 / LEVELS_PER_UNIT
        above = F.logsigmoid((x - self.mean + half_bin) * precision)
        below = F.logsigmoid((self.mean - x + half_bin) * precision)
        width = torch.log(-torch.expm1(-2 * half_bin * precision))
        is_first, is_last = x <= -1 + half_bin, x >= 1 - half_bin
        return sum_over_dims(
            torch.where(is_last, 0.0, above)
            + torch.where(is_first, 0.0, below)
            + torch.where(is_first | is_last, 0.0, width)
        )

    def sample(self, *, generator: Generator) -> Tensor:
        """Draw pixels in [-1, 1] by inverting the distribution function, then rounding."""
        uniform = torch.empty_like(self.mean).uniform_(generator=generator)
        x = self.mean + self.log_scale.exp() * torch.logit(uniform, eps=1e-6)
        return ((x.clamp(-1, 1) + 1) * LEVELS_PER_UNIT).round() / LEVELS_PER_UNIT - 1


Family = Callable[[Tensor], Distribution]


def diagonal_gaussian(output: Tensor) -> Gaussian:
    """Read a network's output as means, then log-variances, along axis 1.

    Kingma & Welling 2014, appendix C.2. Log-variances are kept to [-10, 10]: where latents
    cost next to nothing their noise would vanish.
    """
    mean, log_variance = output.chunk(2, dim=1)
    return Gaussian(mean, log_variance.clamp(-10, 10).exp())


def fixed_variance(variance: float) -> Family:
    """Return the family that reads a network's output as means, with one fixed variance."""
    return lambda output: Gaussian(output, variance)


def discretised_logistic(output: Tensor) -> DiscretisedLogistic:
    """Read a network's output as locations, then log-scales, along axis 1.

    Log-scales stay above -7 (a tenth of a pixel's bin, nearly), as in PixelCNN++, and below
    7, where all mass lies in the end values: one wild latent cannot make a bin's mass zero.
    """
    mean, log_scale = output.chunk(2, dim=1)
    return DiscretisedLogistic(mean, log_scale.clamp(-7, 7))


class Conditional(nn.Module):
    """Make a network's output a distribution (Kingma & Welling 2014, section 3).

    Autocast lowers the precision of the network, not that of the distribution.
    """

    def __init__(self, network: nn.Module, family: Family) -> None:
        super().__init__()
        self.network, self.family = network, family

    def forward(self, given: Tensor) -> Distribution:
        """Return the distribution of the next variable, given this one."""
        return self.family(self.network(given).to(given.dtype))


@dataclass(frozen=True)
class Bound:
    """Hold a variational bound term by term, in nats: an estimate from one draw of the latents.

    `reconstruction` (B,) is log p(x|z_1). `kl` (B, T) is what each level costs, level 1 first:
    log q(z_t|z_{t-1}) - log p(z_t|z_{t+1}), with all that has a closed form integrated. Only the
    top level's is a Kullback-Leibler divergence: below it z_{t+1} was drawn from z_t itself, so
    the expected cost may be negative.
    """

    reconstruction: Tensor
    kl: Tensor

    @property
    def elbo(self) -> Tensor:
        """Return the evidence lower bound, (B,) (Luo 2022, eq. 29)."""
        return self.reconstruction - self.kl.sum(1)


class HierarchicalVAE(nn.Module):
    """Model x by a chain of T latents: p(z_T) p(z_{T-1}|z_T) ... p(z_1|z_2) p(x|z_1).

    The Markovian hierarchical VAE (Luo 2022, eqs. 23-24), with q(z_1|x) q(z_2|z_1) ...
    q(z_T|z_{T-1}) and p(z_T) = N(0, I); T = 1 is the VAE (Kingma & Welling 2014). Encoder t maps
    z_{t-1} to z_t's Gaussian (z_0 is x), decoder t z_t to z_{t-1}'s law; a z_T has `top_shape`.
    """

    def __init__(
        self,
        encoders: Sequence[nn.Module],
        decoders: Sequence[nn.Module],
        top_shape: Sequence[int],
    ) -> None:
        super().__init__()
        if not len(encoders) == len(decoders) > 0:
            counts = f"{len(encoders)} encoders and {len(decoders)} decoders"
            raise ValueError(f"{counts}: give one of each per level")
        self.encoders, self.decoders = nn.ModuleList(encoders), nn.ModuleList(decoders)
        self.top_shape = tuple(top_shape)

    def bound(self, x: Tensor, *, generator: Generator) -> Bound:
        """Estimate the evidence lower bound of each x (Luo 2022, eq. 29).

        Closed forms where they exist: log q's expectation at every level, the whole divergence
        from the prior at the top (Kingma & Welling 2014, eq. 7, for T = 1).
        """
        latents, posteriors, priors = self._draw_chain(x, generator)
        *below_top, (_, top, prior) = zip(latents, posteriors, priors, strict=True)
        costs = [-q.entropy() - p.log_prob(z) for z, q, p in below_top] + [top.kl(prior)]
        return Bound(self.decoders[0](latents[0]).log_prob(x), torch.stack(costs, dim=1))

    forward = bound  # what wraps a module for several GPUs sees its calls alone

    def log_evidence(self, x: Tensor, n_samples: int, *, generator: Generator) -> Tensor:
        """Estimate log p(x) by importance sampling: a bound that tightens as n_samples grows.

        Importance weighted autoencoders (Burda et al. 2016), eq. 8. Shape (B,), nats.
        """
        weights = [self._log_weight(x, generator) for _ in range(n_samples)]
        return torch.stack(weights).logsumexp(0) - math.log(n_samples)

    def reconstruct(self, x: Tensor, level: int = 1) -> Tensor:
        """Return the mean of x after a way up to z_level and down again, by means alone."""
        for encoder in self.encoders[:level]:
            x = encoder(x).mean
        for decoder in reversed(self.decoders[:level]):
            x = decoder(x).mean
        return x

    def sample(self, n: int, *, generator: Generator) -> Tensor:
        """Draw n points x from the model, top level first."""
        return self.generate(n, generator=generator).sample(generator=generator)

    def generate(self, n: int, *, generator: Generator) -> Distribution:
        """Draw n chains of latents, top level first, and return their p(x|z_1)."""
        like = next(self.parameters())
        zeros = torch.zeros((n, *self.top_shape), dtype=like.dtype, device=like.device)
        p: Distribution = Gaussian(zeros, 1.0)
        for decoder in reversed(self.decoders):
            p = decoder(p.sample(generator=generator))
        return p

    def _draw_chain(
        self, x: Tensor, generator: Generator
    ) -> tuple[list[Tensor], list[Gaussian], list[Distribution]]:
        latents, posteriors = [], []
        for encoder in self.encoders:
            posteriors.append(encoder(latents[-1] if latents else x))
            latents.append(posteriors[-1].sample(generator=generator))
        priors = [d(z) for d, z in zip(self.decoders[1:], latents[1:], strict=True)]
        return latents, posteriors, [*priors, Gaussian(torch.zeros_like(latents[-1]), 1.0)]

    def _log_weight(self, x: Tensor, generator: Generator) -> Tensor:
        latents, posteriors, priors = self._draw_chain(x, generator)
        weight = self.decoders[0](latents[0]).log_prob(x)
        for z, q, p in zip(latents, posteriors, priors, strict=True):
            weight = weight + p.log_prob(z) - q.log_prob(z)
        return weight


def VAE(encoder: nn.Module, decoder: nn.Module, top_shape: Sequence[int]) -> HierarchicalVAE:
    """Return the hierarchical VAE of one level (Kingma & Welling 2014)."""
    return HierarchicalVAE([encoder], [decoder], top_shape)


def point_vae(
    levels: int = 1,
    dim: int = 2,
    width: int = 64,
    noise_variance: float | None = None,
    *,
    generator: Generator,
) -> HierarchicalVAE:
    """Build a VAE of points, (B, dim), whose latents are of the points' size.

    `noise_variance` is that of p(x|z_1); with None the decoder predicts it. One hidden layer more
    than Kingma & Welling 2014, appendix C.2.
    """
    likelihood = diagonal_gaussian if noise_variance is None else fixed_variance(noise_variance)
    families = [likelihood] + (levels - 1) * [diagonal_gaussian]

    def conditional(family: Family) -> Conditional:
        out = dim if family is not diagonal_gaussian else 2 * dim
        return Conditional(_mlp([dim, width, width, out], generator), family)

    encoders = [conditional(diagonal_gaussian) for _ in families]
    return HierarchicalVAE(encoders, [conditional(family) for family in families], (dim,))


@dataclass(frozen=True)
class Stage:
    """Describe one level of an image VAE: a halving per width, and its latent's channels."""

    widths: tuple[int, ...]
    channels: int
    depth: int = 2


def image_vae(stages: Sequence[Stage], size: int = 32, *, generator: Generator) -> HierarchicalVAE:
    """Build a VAE of 8-bit colour images, (B, 3, size, size) in [-1, 1], a level per stage.

    The latents are images too, decoders mirror encoders, and p(x|z_1) is a logistic of learned
    scale per pixel and channel, discretised (Salimans et al. 2017, eq. 2).
    """
    families = [discretised_logistic] + (len(stages) - 1) * [diagonal_gaussian]
    encoders, decoders, channels = [], [], 3
    for stage, family in zip(stages, families, strict=True):
        below, here = channels, stage.channels
        down = downward(below, stage.widths, stage.depth, 2 * here, generator=generator)
        up = upward(here, stage.widths[::-1], stage.depth, 2 * below, generator=generator)
        encoders.append(Conditional(down, diagonal_gaussian))
        decoders.append(Conditional(up, family))
        channels, size = here, size // 2 ** len(stage.widths)
    return HierarchicalVAE(encoders, decoders, (channels, size, size))


def _mlp(widths: Sequence[int], generator: Generator) -> nn.Sequential:
    with torch.device("meta"):
        layers = [layer for m, n in pairwise(widths) for layer in (nn.Linear(m, n), nn.SiLU())]
        network = nn.Sequential(*layers[:-1])
    initialise(network, generator)
    return network
