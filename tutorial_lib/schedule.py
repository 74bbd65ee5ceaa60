"""Noise schedules: x_t = alpha(t) x_0 + sigma(t) eps, with t in [0, 1] from data to noise.

Everything else follows from log alpha and log sigma. lambda = log(alpha / sigma) is half the
log signal-to-noise ratio; it falls, so that a noise level has a time. DDPM's step n of T is n / T.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from tutorial_lib.gaussian import Gaussian

Time = Tensor | float


@dataclass(frozen=True)
class Level:
    """Hold alpha and sigma at one time, shaped to broadcast against the points they scale."""

    alpha: Tensor
    sigma: Tensor


def as_time(t: Time) -> Tensor:
    """Return `t` as a float64 tensor; a ValueError outside [0, 1] (not looked at on a GPU)."""
    t = torch.as_tensor(t, dtype=torch.float64)
    if t.is_cpu and not (0 <= t.item() <= 1 if t.ndim == 0 else (t == t.clamp(0, 1)).all()):
        raise ValueError(f"time must lie in [0, 1], got {t.min():.6g} to {t.max():.6g}")
    return t


def time_like(t: Time, like: Tensor) -> Tensor:
    """Return `t`, () or (B,), as () or (B, 1, ...), ready to multiply `like`, (B, ...)."""
    if (t := as_time(t)).ndim == 0:  # stays on the host: a copy would wait for the GPU
        return t
    if t.ndim > 1 or t.shape[0] not in (1, like.shape[0]):
        raise ValueError(f"t must be () or (B,), got {tuple(t.shape)} for x {tuple(like.shape)}")
    return t.to(like.device).reshape(-1, *(1,) * (like.ndim - 1))


class Schedule(ABC):
    """Map time to noise level; subclasses give log alpha, log sigma, their rates and the inverse.

    All methods take t of any shape (or a float), compute in float64 and return t's shape.
    """

    prior_std: float = 1.0  # std of the distribution that sampling starts from

    @abstractmethod
    def log_alpha(self, t: Time) -> Tensor:
        """Return log alpha(t), the log of the factor on the data."""

    @abstractmethod
    def log_level(self, t: Time) -> tuple[Tensor, Tensor]:
        """Return log alpha(t) and log sigma(t); what they share is computed once."""

    @abstractmethod
    def time_of(self, lambda_: Time) -> Tensor:
        """Return the t at which log(alpha / sigma) is `lambda_`."""

    @abstractmethod
    def drift(self, t: Time) -> Tensor:
        """Return f(t) = d log alpha / dt, of dx = f x dt + g dw (Song et al. 2021, eq. 5)."""

    @abstractmethod
    def diffusion2(self, t: Time) -> Tensor:
        """Return g^2(t) = -2 sigma^2 d lambda / dt (Kingma et al. 2021, section 5)."""

    def log_sigma(self, t: Time) -> Tensor:
        """Return log sigma(t), the log of the noise's standard deviation."""
        return self.log_level(t)[1]

    def alpha(self, t: Time) -> Tensor:
        """Return alpha(t)."""
        return self.log_alpha(t).exp()

    def sigma(self, t: Time) -> Tensor:
        """Return sigma(t)."""
        return self.log_sigma(t).exp()

    def lambda_(self, t: Time) -> Tensor:
        """Return log(alpha / sigma), half the log-SNR (Lu et al. 2022, section 3)."""
        log_alpha, log_sigma = self.log_level(t)
        return log_alpha - log_sigma

    def snr(self, t: Time) -> Tensor:
        """Return the signal-to-noise ratio alpha^2 / sigma^2 (Kingma et al. 2021, section 3.1)."""
        return (2 * self.lambda_(t)).exp()

    def at(self, t: Time, like: Tensor) -> Level:
        """Return alpha and sigma at `t`, () or (B,), ready to multiply `like`, (B, ...)."""
        logs = self.log_level(time_like(t, like))
        return Level(*(log.exp().to(like.dtype) for log in logs))

    def add_noise(self, x0: Tensor, eps: Tensor, t: Time) -> Tensor:
        """Return x_t = alpha x_0 + sigma eps (DDPM, Ho et al. 2020, eq. 4)."""
        level = self.at(t, like=x0)
        return level.alpha * x0 + level.sigma * eps

    def transition(self, s: Time, t: Time) -> tuple[Tensor, Tensor]:
        """Return scale and variance of q(x_t | x_s), s < t (Kingma et al. 2021, appendix A).

        Between DDPM's neighbours they are sqrt(alpha_t) and beta_t.
        """
        s, t = as_time(s), as_time(t)
        if t.is_cpu and not bool((s < t).all()):
            raise ValueError("a transition runs from s to a later t: s < t")
        (log_alpha, log_sigma), (log_alpha_t, log_sigma_t) = self.log_level(s), self.log_level(t)
        fall = (log_alpha_t - log_sigma_t) - (log_alpha - log_sigma)  # of lambda from s to t
        return (log_alpha_t - log_alpha).exp(), -(log_sigma_t.exp() ** 2) * torch.expm1(2 * fall)

    def posterior_weights(self, s: Time, t: Time) -> tuple[Tensor, Tensor, Tensor]:
        """Return the weights of x_t and x_0 in q(x_s | x_t, x_0), and its variance, for s < t.

        Kingma et al. 2021, appendix A; between neighbours, Ho et al. 2020, eq. 6-7.
        """
        scale, variance = self.transition(s, t)
        (log_alpha, log_sigma), log_sigma_t = self.log_level(s), self.log_sigma(t)
        share = variance / log_sigma_t.exp() ** 2  # how much of x_t's noise came after s
        keep = scale * (2 * (log_sigma - log_sigma_t)).exp()
        return keep, log_alpha.exp() * share, log_sigma.exp() ** 2 * share

    def posterior(self, x0: Tensor, xt: Tensor, s: Time, t: Time) -> Gaussian:
        """Return q(x_s | x_t, x_0) for any s < t (Kingma et al. 2021, appendix A).

        At s = t - 1/T it is DDPM's posterior (Ho et al. 2020, eq. 6-7). At s = 0 of a
        variance-preserving schedule it is x_0 itself, with variance 0.
        """
        weights = self.posterior_weights(time_like(s, xt), time_like(t, xt))
        keep, gain, variance = (w.to(xt.dtype) for w in weights)
        return Gaussian(keep * xt + gain * x0, variance)


class VariancePreserving(Schedule):
    """Keep alpha^2 + sigma^2 = 1, so that unit-variance data stay so (Song et al. 2021, eq. 11).

    alpha(0) = 1 and sigma(0) = 0, so lambda_(0) is infinite; time_of(inf) is 0.
    """

    @abstractmethod
    def _time_of_log_alpha(self, log_alpha: Tensor) -> Tensor: ...

    def log_level(self, t: Time) -> tuple[Tensor, Tensor]:
        """Return log alpha and log sqrt(1 - alpha^2), without cancellation near t = 0."""
        log_alpha = self.log_alpha(t)
        return log_alpha, 0.5 * (-torch.expm1(2 * log_alpha)).log()

    def time_of(self, lambda_: Time) -> Tensor:
        """Return the t where log(alpha / sigma) is `lambda_`: alpha^2 = sigmoid(2 lambda)."""
        lambda_ = torch.as_tensor(lambda_, dtype=torch.float64)
        return self._time_of_log_alpha(0.5 * torch.nn.functional.logsigmoid(2 * lambda_))

    def diffusion2(self, t: Time) -> Tensor:
        """Return g^2 = -2 f: noise puts back what the drift removes (Song et al. 2021, eq. 11)."""
        return -2 * self.drift(t)


class LinearBeta(Schedule):
    """Share alpha between the schedules whose beta(t) rises linearly (Song et al. 2021, eq. 32).

    beta(t) = beta_min + t (beta_max - beta_min), log alpha = -1/2 int_0^t beta.
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0) -> None:
        if not 0 < beta_min < beta_max:
            raise ValueError(f"need 0 < beta_min < beta_max, got {beta_min} and {beta_max}")
        self.beta_min, self.beta_max = beta_min, beta_max

    def log_alpha(self, t: Time) -> Tensor:
        """Return -1/2 int_0^t beta (Song et al. 2021, eq. 33)."""
        t = as_time(t)
        return -0.5 * t * (self.beta_min + t * (0.5 * (self.beta_max - self.beta_min)))

    def drift(self, t: Time) -> Tensor:
        """Return -beta(t) / 2 (Song et al. 2021, eq. 11)."""
        return -0.5 * (self.beta_min + as_time(t) * (self.beta_max - self.beta_min))

    def _time_of_log_alpha(self, log_alpha: Tensor) -> Tensor:
        slope = self.beta_max - self.beta_min  # root of slope/4 t^2 + beta_min/2 t + log_alpha
        return -4 * log_alpha / (self.beta_min + (self.beta_min**2 - 4 * slope * log_alpha).sqrt())


class LinearVP(LinearBeta, VariancePreserving):
    """Give DDPM's linear schedule in continuous time (Song et al. 2021, eq. 11 and 32).

    The defaults are DDPM's betas 1e-4 .. 0.02 at T = 1000.
    """


class SubVP(LinearBeta):
    """Give the sub-VP schedule, sigma = 1 - alpha^2 (Song et al. 2021, eq. 12 and 29)."""

    def log_level(self, t: Time) -> tuple[Tensor, Tensor]:
        """Return log alpha and log(1 - alpha^2) (Song et al. 2021, eq. 29)."""
        log_alpha = self.log_alpha(t)
        return log_alpha, (-torch.expm1(2 * log_alpha)).log()

    def time_of(self, lambda_: Time) -> Tensor:
        """Return the t where log(alpha / sigma) is `lambda_`: alpha^2 + alpha / e^lambda = 1."""
        lambda_ = torch.as_tensor(lambda_, dtype=torch.float64)
        return self._time_of_log_alpha(-torch.asinh(0.5 * (-lambda_).exp()))

    def diffusion2(self, t: Time) -> Tensor:
        """Return beta (1 - alpha^4) (Song et al. 2021, eq. 12)."""
        return 2 * self.drift(t) * torch.expm1(4 * self.log_alpha(t))


class CosineVP(VariancePreserving):
    """Give the cosine schedule, cos(angle) / cos(angle_0) (Nichol & Dhariwal 2021, eq. 17).

    The paper's alpha reaches 0 at t = 1, where log-SNR is -inf. Here time is squeezed (by 3 parts
    in 100,000) so that lambda_(1) = `lambda_end`, near where the paper's clipped betas end at
    T = 1000.
    """

    def __init__(self, s: float = 0.008, lambda_end: float = -10.0) -> None:
        self._start = 0.5 * math.pi * s / (1 + s)
        log_alpha_end = -0.5 * math.log1p(math.exp(-2 * lambda_end))
        self._span = math.acos(math.exp(log_alpha_end) * math.cos(self._start)) - self._start

    def log_alpha(self, t: Time) -> Tensor:
        """Return log cos(angle) - log cos(angle_0), without cancellation near t = 0."""
        half, start = 0.5 * self._span * as_time(t), self._start
        # cos(a + 2h) / cos(a) - 1 = -2 sin(h) sin(a + h) / cos(a)
        return torch.log1p(half.sin() * (start + half).sin() / (-0.5 * math.cos(start)))

    def drift(self, t: Time) -> Tensor:
        """Return d log alpha / dt = -tan(angle) d angle / dt."""
        return -self._span * (self._start + self._span * as_time(t)).tan()

    def _time_of_log_alpha(self, log_alpha: Tensor) -> Tensor:
        cos = math.cos(self._start) * log_alpha.exp()
        sin2 = -torch.expm1(2 * log_alpha) * math.cos(self._start) ** 2  # accurate at both ends
        sin = (sin2 + math.sin(self._start) ** 2).sqrt()
        sin_gap = sin2 / (sin + math.sin(self._start))  # sin(angle) - sin(angle_0)
        # tan of the half difference: (sin a - sin b) / (cos a + cos b)
        return 2 * torch.atan(sin_gap / (cos + math.cos(self._start))) / self._span


class DiscreteVP(VariancePreserving):
    """Give T discrete betas, linear in log alpha between the grid points t = n / T.

    At the grid points alpha^2 is DDPM's alpha_bar_n (Ho et al. 2020, eq. 4).
    """

    def __init__(self, betas: Tensor) -> None:
        betas = torch.as_tensor(betas, dtype=torch.float64)
        if betas.ndim != 1 or not len(betas) or not bool(((betas > 0) & (betas < 1)).all()):
            raise ValueError("betas must be one row of numbers strictly between 0 and 1")
        self.betas = betas
        grid = torch.arange(len(betas) + 1, dtype=torch.float64, device=betas.device) / len(betas)
        falls = 0.5 * torch.log1p(-betas)  # of log alpha, from each grid point to the next
        table = torch.cat([betas.new_zeros(1), falls.cumsum(0)])
        slopes = len(betas) * torch.cat([falls, falls[-1:]])  # t = 1 has that of the last segment
        self._tables = {betas.device: (grid[1:], grid, table, slopes)}  # and on each device asked

    @classmethod
    def linear(cls, n_steps: int = 1000) -> DiscreteVP:
        """Give 1e-4 .. 0.02 times 1000 / T, at most 0.999 (DDPM, Ho et al. 2020, section 4)."""
        betas = torch.linspace(1e-4, 0.02, n_steps, dtype=torch.float64) * 1000 / n_steps
        return cls(betas.clamp(max=0.999))

    @classmethod
    def cosine(cls, n_steps: int = 1000, s: float = 0.008) -> DiscreteVP:
        """Give IDDPM's betas, clipped at 0.999 (Nichol & Dhariwal 2021, eq. 17)."""
        t = torch.linspace(0, 1, n_steps + 1, dtype=torch.float64)
        alpha_bar = ((t + s) / (1 + s) * math.pi / 2).cos() ** 2
        return cls((1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999))

    def _tables_on(self, device: torch.device) -> tuple[Tensor, ...]:
        if device not in self._tables:  # kept: a CUDA graph cannot record a copy from the host
            tables = next(iter(self._tables.values()))
            self._tables[device] = tuple(table.to(device) for table in tables)
        return self._tables[device]

    def _segment(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the grid point at or before t, log alpha there and the slope from there on."""
        ends, grid, table, slopes = self._tables_on(t.device)
        # (n / T) * T can round to just under n: compare t with the grid itself
        left = torch.searchsorted(ends, t.contiguous(), right=True)
        return grid[left], table[left], slopes[left]

    def log_alpha(self, t: Time) -> Tensor:
        """Return log alpha(t), half of log alpha_bar at the grid points."""
        t = as_time(t)
        start, value, slope = self._segment(t)
        return value + (t - start) * slope

    def drift(self, t: Time) -> Tensor:
        """Return d log alpha / dt, constant between grid points (the right-hand slope on them)."""
        return self._segment(as_time(t))[2]

    def _time_of_log_alpha(self, log_alpha: Tensor) -> Tensor:
        _, grid, table, slopes = self._tables_on(log_alpha.device)
        left = (torch.searchsorted(-table, -log_alpha, right=True) - 1).clamp(min=0)
        return grid[left] + (log_alpha - table[left]) / slopes[left]


class VE(Schedule):
    """Give the variance-exploding schedule, geometric in sigma (Song et al. 2021, eq. 30-31)."""

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 10.0) -> None:
        if not 0 < sigma_min < sigma_max:
            raise ValueError(f"need 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}")
        self.sigma_min, self.prior_std = sigma_min, sigma_max
        self._log_ratio = math.log(sigma_max / sigma_min)

    def log_alpha(self, t: Time) -> Tensor:
        """Return 0: the data are never scaled."""
        return torch.zeros_like(as_time(t))

    def log_level(self, t: Time) -> tuple[Tensor, Tensor]:
        """Return 0 and log sigma_min + t log(sigma_max / sigma_min) (Song et al. 2021, eq. 30)."""
        return self.log_alpha(t), math.log(self.sigma_min) + as_time(t) * self._log_ratio

    def time_of(self, lambda_: Time) -> Tensor:
        """Return the t at which log(alpha / sigma) is `lambda_`: lambda is linear in t."""
        lambda_ = torch.as_tensor(lambda_, dtype=torch.float64)
        return (-lambda_ - math.log(self.sigma_min)) / self._log_ratio

    def drift(self, t: Time) -> Tensor:
        """Return 0."""
        return torch.zeros_like(as_time(t))

    def diffusion2(self, t: Time) -> Tensor:
        """Return d sigma^2 / dt (Song et al. 2021, eq. 9)."""
        return 2 * self._log_ratio * self.sigma(t) ** 2


def uniform_times(n: int) -> Tensor:
    """Return n + 1 evenly spaced times from 1 down to 0."""
    return torch.arange(n, -1, -1, dtype=torch.float64) / n


def quadratic_times(n: int) -> Tensor:
    """Return n + 1 times from 1 to 0, dense near the data (DDIM, Song et al. 2021, app. D.2)."""
    return uniform_times(n) ** 2


def log_snr_times(schedule: Schedule, n: int, t_end: float = 1e-3, t_start: float = 1.0) -> Tensor:
    """Return n + 1 times from `t_start` to `t_end`, even in lambda (Lu et al. 2022, section 3)."""
    first, last = schedule.lambda_(t_start).item(), schedule.lambda_(t_end).item()
    times = schedule.time_of(torch.linspace(first, last, n + 1, dtype=torch.float64))
    times[0], times[-1] = t_start, t_end
    return times
