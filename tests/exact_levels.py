"""The schedules' noise levels once more, straight from the papers and in 50 digits (mpmath).

The package's stable formulas have something independent to answer to here. Levels are functions
of an mpf t that return (alpha, sigma).
"""

import mpmath
import numpy as np
import torch
from mpmath import mpf
from truths import SCHEDULES

from tutorial_lib.learned_schedule import LearnedVP

mpmath.mp.dps = 50


def _preserving(alpha: mpf) -> tuple[mpf, mpf]:
    return alpha, mpmath.sqrt(1 - alpha**2)


def _linear_alpha(t: mpf) -> mpf:
    beta_integral = mpf(0.1) * t + (mpf(20) - mpf(0.1)) * t**2 / 2  # Song et al. 2021, eq. 32
    return mpmath.exp(-beta_integral / 2)


def _sub_vp(t: mpf) -> tuple[mpf, mpf]:
    return _linear_alpha(t), 1 - _linear_alpha(t) ** 2  # Song et al. 2021, eq. 29


def _cosine_alpha(t: mpf) -> mpf:
    start = mpmath.pi / 2 * mpf(0.008) / (1 + mpf(0.008))  # Nichol & Dhariwal 2021, eq. 17
    last = 1 / mpmath.sqrt(1 + mpmath.exp(20))  # alpha where log(alpha / sigma) = -10
    end = mpmath.acos(last * mpmath.cos(start))
    return mpmath.cos(start + t * (end - start)) / mpmath.cos(start)


def ddpm_betas() -> list[float]:
    """DDPM's 1000 betas (Ho et al. 2020, section 4)."""
    return np.linspace(1e-4, 0.02, 1000).tolist()


def iddpm_betas() -> list[float]:
    """IDDPM's 1000 betas (Nichol & Dhariwal 2021, eq. 17 and the line after)."""
    angle = (np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2
    bars = np.cos(angle) ** 2
    return np.minimum(1 - bars[1:] / bars[:-1], 0.999).tolist()


def alpha_bars(betas: list[float]) -> list[mpf]:
    """Cumulative products of 1 - beta in 50 digits; entry n is after n steps, entry 0 is 1."""
    bars = [mpf(1)]
    for beta in betas:
        bars.append(bars[-1] * (1 - mpf(beta)))
    return bars


def _stepped(betas: list[float]):
    logs = [mpmath.log(bar) / 2 for bar in alpha_bars(betas)]

    def level(t: mpf) -> tuple[mpf, mpf]:
        left = min(int(t * len(betas) + mpf(10) ** -12), len(betas) - 1)
        share = t * len(betas) - left
        return _preserving(mpmath.exp(logs[left] + share * (logs[left + 1] - logs[left])))

    return level


def _learned(schedule: LearnedVP):
    def softplus(x: float) -> mpf:
        return mpmath.log1p(mpmath.exp(mpf(x)))

    linear = softplus(schedule.linear.item())
    rows = (schedule.weight.tolist(), schedule.slope.tolist(), schedule.offset.tolist())
    gates = [(softplus(w), softplus(a), mpf(b)) for w, a, b in zip(*rows, strict=True)]

    def rise(t: mpf) -> mpf:
        return linear * t + mpmath.fsum(w / (1 + mpmath.exp(-a * t - b)) for w, a, b in gates)

    start, span = rise(mpf(0)), rise(mpf(1)) - rise(mpf(0))

    def level(t: mpf) -> tuple[mpf, mpf]:
        lambda_ = 5 - 10 * (rise(t) - start) / span
        return _preserving(1 / mpmath.sqrt(1 + mpmath.exp(-2 * lambda_)))

    return level


LEVELS = {
    "linear": lambda t: _preserving(_linear_alpha(t)),
    "cosine": lambda t: _preserving(_cosine_alpha(t)),
    "discrete linear": _stepped(ddpm_betas()),
    "discrete cosine": _stepped(iddpm_betas()),
    "sub-VP": _sub_vp,
    "VE": lambda t: (mpf(1), mpf(0.01) * mpf(1000) ** t),  # Song et al. 2021, eq. 30
    "learned": _learned(SCHEDULES["learned"]),
}


def levels(name: str, t: torch.Tensor) -> list[tuple[mpf, mpf]]:
    """(alpha, sigma) of a schedule at each time."""
    return [LEVELS[name](mpf(value)) for value in t.tolist()]


def conditioned(early: tuple[mpf, mpf], late: tuple[mpf, mpf]) -> tuple[mpf, mpf, mpf]:
    """q(x_s | x_t, x_0) by conditioning the joint Gaussian of (x_s, x_t) given x_0.

    Returns the factor on x_t, the factor on x_0 and the variance.
    """
    (alpha_s, sigma_s), (alpha_t, sigma_t) = early, late
    covariance = alpha_t / alpha_s * sigma_s**2
    gain = covariance / sigma_t**2
    return gain, alpha_s - gain * alpha_t, sigma_s**2 - gain * covariance
