"""Gaussian mixtures: all that a diffusion model must learn of them is known in closed form."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tutorial_lib.schedule import Level


class GaussianMixture:
    """Hold sum_k weights_k N(means_k, covariances_k), float64, K components in D dimensions.

    weights (..., K), means (..., K, D), covariances (..., K, D, D), positive definite. Leading
    axes hold a batch of mixtures (a posterior for every point, say) and broadcast against those
    of the points (..., D) that methods take. Each covariance is kept as its eigenvectors and
    eigenvalues, which noise changes only through alpha^2 eigenvalue + sigma^2. Source: Bishop
    (2006), section 2.3.9.
    """

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor) -> None:
        weights, means, covariances = (
            torch.as_tensor(a, dtype=torch.float64) for a in (weights, means, covariances)
        )
        k, d = means.shape[-2:]
        if weights.shape[-1] != k or covariances.shape[-3:] != (k, d, d):
            raise ValueError(
                f"weights {tuple(weights.shape)}, means {tuple(means.shape)} and covariances "
                f"{tuple(covariances.shape)} must be (..., K), (..., K, D) and (..., K, D, D)"
            )
        variances, axes = torch.linalg.eigh(covariances)
        if not bool((variances > 0).all() and (weights > 0).all()):
            raise ValueError("weights must be positive and covariances positive definite")
        self._set(weights, means, variances, axes)

    def _set(self, weights: Tensor, means: Tensor, variances: Tensor, axes: Tensor) -> None:
        self.weights = weights / weights.sum(-1, keepdim=True)
        self.means, self._variances, self._axes = means, variances, axes

    @classmethod
    def _from_axes(
        cls, weights: Tensor, means: Tensor, variances: Tensor, axes: Tensor
    ) -> GaussianMixture:
        mixture = cls.__new__(cls)
        mixture._set(weights, means, variances, axes)
        return mixture

    @property
    def dim(self) -> int:
        """Return D."""
        return self.means.shape[-1]

    @property
    def covariances(self) -> Tensor:
        """Return the components' covariances, (..., K, D, D)."""
        return (self._axes * self._variances[..., None, :]) @ self._axes.mT

    @property
    def mean(self) -> Tensor:
        """Return the mixture's mean, (..., D)."""
        return (self.weights[..., None] * self.means).sum(-2)

    @property
    def covariance(self) -> Tensor:
        """Return the mixture's covariance, (..., D, D): the law of total variance."""
        centred = self.means - self.mean[..., None, :]
        spread = self.covariances + centred[..., :, None] * centred[..., None, :]
        return (self.weights[..., None, None] * spread).sum(-3)

    def component(self, k: int) -> GaussianMixture:
        """Return component `k` alone, as a mixture of one."""
        pick = slice(k, k + 1) if k >= 0 else slice(k, k + 1 or None)
        return self._from_axes(
            self.weights[..., pick],
            self.means[..., pick, :],
            self._variances[..., pick, :],
            self._axes[..., pick, :, :],
        )

    def reweighted(self, weights: Tensor) -> GaussianMixture:
        """Return the same components under other weights (..., K), of which some may be 0."""
        return self._from_axes(weights.to(self.weights), self.means, self._variances, self._axes)

    def sample_with_labels(self, n: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw `n` points (n, D) and the component (n,) that each came from."""
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, self.dim, generator=generator, dtype=self.means.dtype)
        turned = torch.einsum("nij,nj->ni", self._axes[k], self._variances[k].sqrt() * noise)
        return self.means[k] + turned, k

    def sample(self, n: int, *, generator: torch.Generator) -> Tensor:
        """Draw `n` points (n, D) of an unbatched mixture."""
        return self.sample_with_labels(n, generator=generator)[0]

    def _along_axes(self, x: Tensor) -> Tensor:
        """Return x - mean_k in the coordinates of component k's axes, (..., K, D)."""
        centred = x.to(self.means.dtype)[..., None, :] - self.means
        return torch.einsum("...kd,...kde->...ke", centred, self._axes)

    def _from_coordinates(self, along: Tensor) -> Tensor:
        """Return the vectors that have these coordinates along each component's axes."""
        return torch.einsum("...kde,...ke->...kd", self._axes, along)

    def _log_joint(self, along: Tensor) -> Tensor:
        """Return log weights_k N(x; mean_k, covariance_k), (..., K)."""
        terms = along**2 / self._variances + self._variances.log() + math.log(2 * math.pi)
        return self.weights.log() - 0.5 * terms.sum(-1)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log density in nats, (...,) (Bishop 2006, eq. 9.7, by log-sum-exp)."""
        return self._log_joint(self._along_axes(x)).logsumexp(-1)

    def classify(self, x: Tensor) -> Tensor:
        """Return p(component | x), (..., K) (Bishop 2006, eq. 9.13)."""
        return self._log_joint(self._along_axes(x)).softmax(-1)

    def score(self, x: Tensor) -> Tensor:
        """Return grad_x log p(x), (..., D): the components' scores weighted by p(component | x).

        Source: Bishop (2006), eq. 9.16, read as a gradient in x.
        """
        along = self._along_axes(x)
        pulls = -self._from_coordinates(along / self._variances)
        return (self._log_joint(along).softmax(-1)[..., None] * pulls).sum(-2)

    def diffuse(self, level: Level) -> GaussianMixture:
        """Return the law of x_t = alpha x_0 + sigma eps: N(alpha m_k, alpha^2 C_k + sigma^2 I).

        `level` holds numbers, or (B, 1) for one mixture a row (DDPM, Ho et al. 2020, eq. 4).
        """
        alpha, sigma = _columns(level)
        variances = alpha**2 * self._variances + sigma**2
        return self._from_axes(self.weights, alpha * self.means, variances, self._axes)

    def posterior(self, xt: Tensor, level: Level) -> GaussianMixture:
        """Return p(x_0 | x_t), a mixture for every row of `xt` (Bishop 2006, eq. 2.116).

        Its weights are p(component | x_t); its means shift with x_t, its covariances do not.
        """
        alpha, sigma = _columns(level)
        noised = self.diffuse(level)
        along = noised._along_axes(xt)
        gain = alpha * self._variances / noised._variances
        means = self.means + self._from_coordinates(gain * along)
        variances = (sigma**2 * self._variances / noised._variances).expand_as(means)
        weights = noised._log_joint(along).softmax(-1)
        return self._from_axes(weights, means, variances, self._axes)

    def posterior_mean(self, xt: Tensor, level: Level) -> Tensor:
        """Return E[x_0 | x_t], (..., D): what the best denoiser predicts (Efron 2011, eq. 1.4)."""
        return self.posterior(xt, level).mean

    def posterior_covariance(self, xt: Tensor, level: Level) -> Tensor:
        """Return Cov[x_0 | x_t], (..., D, D) (Efron 2011, section 2)."""
        return self.posterior(xt, level).covariance


def _columns(level: Level) -> tuple[Tensor, Tensor]:
    """Return alpha and sigma in float64, shaped to multiply means (..., K, D)."""
    alpha, sigma = (torch.as_tensor(a, dtype=torch.float64) for a in (level.alpha, level.sigma))
    return (alpha[..., None], sigma[..., None]) if alpha.ndim else (alpha, sigma)
