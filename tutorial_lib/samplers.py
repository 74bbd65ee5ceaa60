"""Samplers on a grid of times: generator functions that yield x after every step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

from tutorial_lib.denoiser import Condition, Denoiser, Prediction
from tutorial_lib.schedule import Schedule, Time, as_time, time_like

Variance = Callable[[Prediction, Schedule, Time, Time], Tensor]


def beta(prediction: Prediction, schedule: Schedule, s: Time, t: Time) -> Tensor:
    """Return the forward step's variance, DDPM's beta_t (Ho et al. 2020, section 3.2).

    Right when the data are N(0, I); too large when they are a point.
    """
    s, t = (time_like(time, prediction.xt) for time in (s, t))
    return schedule.transition(s, t)[1].to(prediction.xt.dtype)


def beta_tilde(prediction: Prediction, schedule: Schedule, s: Time, t: Time) -> Tensor:
    """Return the variance of q(x_s | x_t, x_0) (DDPM, Ho et al. 2020, eq. 7).

    Right when the data are a point; too small otherwise.
    """
    s, t = (time_like(time, prediction.xt) for time in (s, t))
    return schedule.posterior_weights(s, t)[2].to(prediction.xt.dtype)


def learned_range(prediction: Prediction, schedule: Schedule, s: Time, t: Time) -> Tensor:
    """Return exp(v log beta + (1 - v) log beta_tilde) (Nichol & Dhariwal 2021, eq. 15).

    v is the network's `variance_fraction`. Where beta_tilde is 0, at the step to clean data, that
    of the step before it stands in, as long again (the authors' code: step 2's at step 1).
    """
    fraction = prediction.variance_fraction
    if fraction is None:
        raise ValueError("this network has no variance head: learned_range needs one")
    s, t = as_time(s), as_time(t)
    last = schedule.sigma(s) == 0
    low, high = torch.where(last, t, s), torch.where(last, 2 * t - s, t)
    narrow = beta_tilde(prediction, schedule, low, high)
    wide = beta(prediction, schedule, s, t)
    return (fraction * wide.log() + (1 - fraction) * narrow.log()).exp()


def ancestral(
    denoiser: Denoiser,
    x: Tensor,
    times: Tensor,
    cond: Condition | None = None,
    *,
    generator: torch.Generator,
    variance: Variance = beta_tilde,
) -> Iterator[Tensor]:
    """Walk back along `times` by p(x_s | x_t) = N(posterior mean at x0_hat, variance).

    DDPM (Ho et al. 2020), algorithm 2, for any decreasing grid; `x` is drawn at times[0]. A step
    that ends at s = 0 adds no noise.
    """
    schedule = denoiser.schedule
    keeps, gains, _ = schedule.posterior_weights(times[1:], times[:-1])  # of all steps at once
    weights = zip(keeps.tolist(), gains.tolist(), strict=True)
    for (t, s), (keep, gain) in zip(pairwise(times), weights, strict=True):
        prediction = denoiser(x, t, cond)
        x = keep * x + gain * prediction.x0
        if s > 0:
            noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
            x = x + variance(prediction, schedule, s, t).sqrt() * noise
        yield x


def ddim(
    denoiser: Denoiser,
    x: Tensor,
    times: Tensor,
    cond: Condition | None = None,
    *,
    eta: float = 0.0,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Walk back along `times`, any decreasing grid, keeping the marginals q(x_s | x_0).

    DDIM (Song et al. 2021), eq. 12 and 16: of x_s's noise, eta^2 beta_tilde is fresh and the rest
    points along eps. eta = 0 draws nothing and needs no generator; eta = 1 is `ancestral` with
    beta_tilde. A step that ends at s = 0 adds no noise.
    """
    schedule = denoiser.schedule
    fresh = eta**2 * schedule.posterior_weights(times[1:], times[:-1])[2]  # variances, all steps'
    along = (schedule.sigma(times[1:]) ** 2 - fresh).clamp(min=0).sqrt()
    alphas = schedule.alpha(times[1:])
    columns = (alphas.tolist(), along.tolist(), fresh.sqrt().tolist())
    for (t, s), (alpha, towards, std) in zip(
        pairwise(times), zip(*columns, strict=True), strict=True
    ):
        prediction = denoiser(x, t, cond)
        x = alpha * prediction.x0 + towards * prediction.eps
        if eta > 0 and s > 0:
            noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
            x = x + std * noise
        yield x


def final(trajectory: Iterator[Tensor]) -> Tensor:
    """Return the last point of a trajectory, without gradients; a ValueError if it has none."""
    last = None
    with torch.no_grad():
        for last in trajectory:  # noqa: B007 the end is all that is wanted
            pass
    if last is None:
        raise ValueError("the trajectory is empty: a time grid needs at least two entries")
    return last
