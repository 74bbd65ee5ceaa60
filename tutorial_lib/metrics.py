"""Judge samples and denoisers: against exact densities where they are known.

Distances to a mixture use its exact distribution functions, so the only noise is the samples'.
Compare methods on the same starts (`sobol_normal` for deterministic samplers): the floor of
true samples is itself random, most of it in how many fall into each mode.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from scipy.stats import wasserstein_distance
from torch import Generator, Tensor

from tutorial_lib.denoiser import Denoiser
from tutorial_lib.gaussian import sum_over_dims
from tutorial_lib.mixtures import GaussianMixture

Number = TypeVar("Number", float, Tensor)


def sliced_wasserstein(x: Tensor, mixture: GaussianMixture, n_directions: int = 32) -> float:
    """Return the mean over directions of W1 between projected points (n, D) and the mixture.

    Sliced distance: Bonneel et al. (2015), definition 2. In each direction the mixture is a
    1-D mixture with distribution function F, and W1 is the integral of |F_n - F| (Vallender
    1974), here exact: F has a closed-form antiderivative and crosses each step of F_n at most
    once. Directions are equally spaced in 2-D, quasi-random above. True samples of the
    standard mixture score 0.016 at n = 5000 and 0.010 at 10,000.
    """
    u = _directions(mixture.dim, n_directions)
    points = (x.double() @ u.T).T.sort(dim=1).values  # (R, n)
    means = u @ mixture.means.T  # (R, K)
    stds = torch.einsum("ri,kij,rj->rk", u, mixture.covariances, u).sqrt()
    lines = zip(points, means, stds, strict=True)
    return sum(_line_w1(y, _Line(mixture.weights, m, s)) for y, m, s in lines) / len(u)


def sliced_wasserstein_to_points(
    x: Tensor, points: Tensor, weights: Tensor, n_directions: int = 32
) -> float:
    """Return the sliced W1 of samples (n, D) to `points` (N, D) with `weights` (N,), of any sum.

    Bonneel et al. (2015), definition 2, by scipy. A fine grid of points stands for a density
    that is known up to a constant.
    """
    lines = [(x.double() @ u, points.double() @ u) for u in _directions(x.shape[1], n_directions)]
    return sum(wasserstein_distance(a, b, None, weights) for a, b in lines) / len(lines)


def _directions(dim: int, n: int) -> Tensor:
    if dim == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    if dim == 2:
        angle = torch.arange(n, dtype=torch.float64) * (math.pi / n)
        return torch.stack([angle.cos(), angle.sin()], dim=1)
    return torch.nn.functional.normalize(sobol_normal(n, dim), dim=1)


class _Line:
    """Hold a mixture of 1-D Gaussians by its distribution function F and the area under it."""

    def __init__(self, weights: Tensor, means: Tensor, stds: Tensor) -> None:
        self.weights, self.means, self.stds = weights, means, stds
        self.mean = weights @ means

    def cdf(self, y: Tensor) -> Tensor:
        """Return F(y)."""
        return _phi((y[:, None] - self.means) / self.stds) @ self.weights

    def cdf_and_area(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return F(y) and the integral of F up to y, which is E max(y - Y, 0)."""
        z = (y[:, None] - self.means) / self.stds
        phi = _phi(z)
        density = (-0.5 * z**2).exp() / math.sqrt(2 * math.pi)
        return phi @ self.weights, (z * phi + density) @ (self.weights * self.stds)


def _phi(z: Tensor) -> Tensor:
    return 0.5 * torch.erfc(z * -math.sqrt(0.5))  # as exact as ndtr and several times faster


def _line_w1(y: Tensor, line: _Line) -> float:
    """Return the integral of |F_n - F| for sorted points `y` (n,), in closed form."""
    cdf, area = line.cdf_and_area(y)
    left, right = y[:-1], y[1:]
    level = torch.arange(1, len(y), dtype=y.dtype) / len(y)  # F_n between left and right
    gaps = (area[1:] - area[:-1] - level * (right - left)).abs()
    cross = (cdf[:-1] < level) & (level < cdf[1:])
    gaps[cross] = _crossed_gap(left[cross], right[cross], level[cross], line)
    tails = area[0] + area[-1] - (y[-1] - line.mean)
    return float(gaps.sum() + tails)


def _crossed_gap(left: Tensor, right: Tensor, level: Tensor, line: _Line) -> Tensor:
    """Return the integral of |level - F| from left to right where F crosses `level` between.

    The crossing is bisected; its error enters the area squared, so 25 halvings are plenty.
    """
    low, high = left, right
    for _ in range(25):
        middle = 0.5 * (low + high)
        under = line.cdf(middle) < level
        low, high = torch.where(under, middle, low), torch.where(under, high, middle)
    areas = [line.cdf_and_area(y)[1] for y in (left, low, right)]
    below = level * (low - left) - (areas[1] - areas[0])
    return below + (areas[2] - areas[1]) - level * (right - low)


def energy_distance(x: Tensor, y: Tensor) -> float:
    """Return 2 E|X - Y| - E|X - X'| - E|Y - Y'| for points (n, D) and (m, D), without bias.

    Szekely & Rizzo (2013), eq. 1: the *squared* energy distance. X and X' are never the same
    point, so equal laws score 0 on average and often less: never divide by it.
    """
    return _u_statistic(lambda a, b: -torch.cdist(a, b, compute_mode=_EXACT), x, y)


def mmd(x: Tensor, y: Tensor, bandwidth: float) -> float:
    """Return the *squared* maximum mean discrepancy of (n, D) and (m, D), without bias.

    Gretton et al. (2012), eq. 3, kernel exp(-|x - y|^2 / (2 bandwidth^2)). Equal laws score 0
    on average and often less.
    """

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (-0.5 * (torch.cdist(a, b, compute_mode=_EXACT) / bandwidth) ** 2).exp()

    return _u_statistic(kernel, x, y)


_EXACT = "donot_use_mm_for_euclid_dist"  # the product form loses half the digits of near points


def _u_statistic(kernel: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> float:
    """Return E k(X, X') + E k(Y, Y') - 2 E k(X, Y) over distinct pairs."""
    x, y = x.double(), y.double()
    same = _kernel_sum(kernel, x[:1], x[:1])  # k(x, x) does not depend on x
    within = [(_kernel_sum(kernel, z, z) / len(z) - same) / (len(z) - 1) for z in (x, y)]
    return sum(within) - 2 * _kernel_sum(kernel, x, y) / (len(x) * len(y))


def _kernel_sum(kernel: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> float:
    return float(sum(kernel(rows, y).sum() for rows in x.split(1024)))


def frechet_distance(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    """Return the *squared* Frechet distance (W2) of two Gaussians, means (D,), covs (D, D).

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)): Dowson & Landau (1982), eq. 16; the FID of
    Heusel et al. (2017), eq. 6. Singular covariances are fine.
    """
    mean1, cov1, mean2, cov2 = (a.double() for a in (mean1, cov1, mean2, cov2))
    variances, axes = torch.linalg.eigh(cov1)
    root = (axes * variances.clamp(min=0).sqrt()) @ axes.T
    # the trace of (C1 C2)^(1/2) is that of (C1^(1/2) C2 C1^(1/2))^(1/2), which is symmetric
    cross = torch.linalg.eigvalsh(root @ cov2 @ root).clamp(min=0).sqrt().sum()
    return float(((mean1 - mean2) ** 2).sum() + cov1.trace() + cov2.trace() - 2 * cross)


def frechet_distance_of_samples(x: Tensor, y: Tensor) -> float:
    """Return `frechet_distance` of the Gaussians fitted to points (n, D) and (m, D).

    It is biased upward at finite n (Chong & Forsyth 2020): compare equal numbers of points.
    """
    x, y = x.double(), y.double()
    return frechet_distance(x.mean(0), torch.cov(x.T), y.mean(0), torch.cov(y.T))


def precision_recall(real: Tensor, made: Tensor, k: int = 3) -> tuple[float, float]:
    """Return how many of `made` (m, D) look real, and how much of `real` (n, D) is made.

    Kynkaanniemi et al. (2019), eq. 1-2: a point counts where it lies within the ball around some
    point of the other set that reaches to that point's k-th nearest neighbour in its own set.
    """
    real, made = real.float(), made.float()
    return _covered(made, real, k), _covered(real, made, k)


def _covered(x: Tensor, by: Tensor, k: int) -> float:
    """Return the share of `x` that lies within the k-nearest-neighbour balls of `by`."""
    # the point itself is the first of its neighbours
    radii = torch.cat(
        [
            torch.cdist(rows, by, compute_mode=_EXACT).kthvalue(k + 1).values
            for rows in by.split(1024)
        ]
    )
    inside = [
        (torch.cdist(rows, by, compute_mode=_EXACT) <= radii).any(1) for rows in x.split(1024)
    ]
    return float(torch.cat(inside).double().mean())


def mode_shares(x: Tensor, mixture: GaussianMixture) -> Tensor:
    """Return the mean of p(component | x) over points (n, D), shape (K,).

    For true samples its expectation is the weights, however much the modes overlap, since
    E p(k | X) = weights_k (Bishop 2006, eq. 9.16-9.18); counting the most likely mode is biased.
    """
    return mixture.classify(x).mean(0)


def mode_coverage(x: Tensor, mixture: GaussianMixture) -> float:
    """Return the total variation between mode shares and weights: 0 is full coverage, 1 none."""
    return float(0.5 * (mode_shares(x, mixture) - mixture.weights).abs().sum())


def within_mode_variance_ratio(x: Tensor, mixture: GaussianMixture) -> float:
    """Return how wide the modes of points (n, D) are: their variance over the true one.

    Each point goes to its most likely mode; a mode's variance is the trace of its covariance
    about its own mean. True samples of separated modes score 1; narrow modes less, which a
    likelihood would reward.
    """
    mode = mixture.classify(x).argmax(1)
    truth = mixture.covariances.diagonal(dim1=1, dim2=2).sum(1)
    count = torch.bincount(mode, minlength=len(truth)).double()
    sums = torch.zeros_like(mixture.means).index_add_(0, mode, x.double())
    centred = x.double() - (sums / count.clamp(min=1)[:, None])[mode]
    freedom = (count - 1).clamp(min=0).sum()
    return float(((centred**2).sum(1) / truth[mode]).sum() / freedom)


@torch.no_grad()
def noise_excess(
    denoiser: Denoiser,
    exact: Denoiser,
    x0: Tensor,
    times: Tensor | Iterable[float],
    *,
    generator: Generator,
) -> Tensor:
    """Return E|eps - eps_exact|^2 at each of `times`, the gauge of training, (len(times),).

    Summed over dimensions, averaged over the points x0 (n, ...), each with fresh noise. The
    loss of DDPM (Ho et al. 2020, eq. 14) is this plus a part that no network can reduce, since
    E[eps | x_t] is the exact prediction (Vincent 2011, section 4.2): the gauge ends at 0.
    """
    return torch.stack([_excess(denoiser, exact, x0, t, generator) for t in times])


def _excess(
    denoiser: Denoiser, exact: Denoiser, x0: Tensor, t: Tensor | float, generator: Generator
) -> Tensor:
    device = generator.device
    eps = torch.randn(x0.shape, generator=generator, dtype=torch.float64, device=device).to(x0)
    xt = denoiser.schedule.add_noise(x0, eps, t)
    gap = denoiser(xt, t).eps.double() - exact(xt, t).eps.double()
    return sum_over_dims(gap**2).mean()


def sobol_normal(n: int, dim: int, seed: int = 0) -> Tensor:
    """Return `n` quasi-random points (n, dim) of N(0, I), the same for the same seed.

    Scrambled Sobol points (Owen 1998) through the normal's quantile function: as starts of a
    deterministic sampler they cut the spread of a sample metric about fifty times. Best when
    `n` is a power of 2.
    """
    engine = torch.quasirandom.SobolEngine(dim, scramble=True, seed=seed)
    cell = 2.0**-engine.MAXBIT  # points lie on a grid from 0: its cells' centres avoid infinity
    return torch.special.ndtri(engine.draw(n, dtype=torch.float64) + cell / 2)


def bits_per_dim(nats: Number, dims: int) -> Number:
    """Return nats an example as bits a dimension, nats / (dims log 2) (Theis et al. 2016, 3.1)."""
    return nats / (dims * math.log(2))
