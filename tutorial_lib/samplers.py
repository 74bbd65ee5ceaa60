"""Samplers on a grid of times: generator functions that yield x after every step."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise, zip_longest

import torch
from torch import Tensor

from tutorial_lib.denoiser import Condition, Denoiser, Prediction
from tutorial_lib.schedule import Schedule, Time, as_time, time_like

Variance = Callable[[Prediction, Schedule, Time, Time], Tensor]


@dataclass(frozen=True)
class StepVariance(ABC):
    """Be a Variance in two parts, so that a sampler has the first for all its steps at once.

    A plain function of (prediction, schedule, s, t) is a Variance too, computed anew at each step.
    """

    @abstractmethod
    def of_times(self, schedule: Schedule, s: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        """Return the numbers that the times alone decide, each of t's shape."""

    def of_prediction(self, prediction: Prediction, *numbers: Tensor | float) -> Tensor | float:
        """Return the variance that a prediction makes of a step's numbers: the only one, as is."""
        (variance,) = numbers
        return variance

    def __call__(self, prediction: Prediction, schedule: Schedule, s: Time, t: Time) -> Tensor:
        """Return the variance of p(x_s | x_t), ready to multiply x_t."""
        s, t = (time_like(time, prediction.xt) for time in (s, t))
        numbers = (n.to(prediction.xt.dtype) for n in self.of_times(schedule, s, t))
        return self.of_prediction(prediction, *numbers)


class Beta(StepVariance):
    """Give the forward step's variance, DDPM's beta_t (Ho et al. 2020, section 3.2).

    Right when the data are N(0, I); too large when they are a point.
    """

    def of_times(self, schedule: Schedule, s: Tensor, t: Tensor) -> tuple[Tensor]:
        """Return the variance of q(x_t | x_s)."""
        return (schedule.transition(s, t)[1],)


@dataclass(frozen=True)
class BetaTilde(StepVariance):
    """Give eta^2 times the variance of q(x_s | x_t, x_0) (DDPM, Ho et al. 2020, eq. 7).

    eta = 1 is right when the data are a point, too small otherwise; others are DDIM's.
    """

    eta: float = 1.0

    def of_times(self, schedule: Schedule, s: Tensor, t: Tensor) -> tuple[Tensor]:
        """Return eta^2 beta_tilde (DDIM, Song et al. 2021, eq. 16)."""
        return (self.eta**2 * schedule.posterior_weights(s, t)[2],)


class LearnedRange(StepVariance):
    """Give exp(v log beta + (1 - v) log beta_tilde) (Nichol & Dhariwal 2021, eq. 15).

    v is the network's `variance_fraction`. Where beta_tilde is 0, at the step to clean data, that
    of the step before it stands in, as long again (the authors' code: step 2's at step 1).
    """

    def of_times(self, schedule: Schedule, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return log beta and log beta_tilde."""
        s, t = as_time(s), as_time(t)
        last = schedule.sigma(s) == 0
        low, high = torch.where(last, t, s), torch.where(last, 2 * t - s, t)
        wide, narrow = schedule.transition(s, t)[1], schedule.posterior_weights(low, high)[2]
        return wide.log(), narrow.log()

    def of_prediction(
        self, prediction: Prediction, wide: Tensor | float, narrow: Tensor | float
    ) -> Tensor:
        """Return the variance at the prediction's fraction of the range; a ValueError without."""
        fraction = prediction.variance_fraction
        if fraction is None:
            raise ValueError("this network has no variance head: learned_range needs one")
        return (narrow + fraction * (wide - narrow)).exp()


beta, beta_tilde, learned_range = Beta(), BetaTilde(), LearnedRange()


def _by_step(
    variance: Variance, schedule: Schedule, times: Tensor
) -> tuple[Callable[..., Tensor | float], Iterable[tuple]]:
    """Return how a prediction gives a step's variance, and what else that takes at each step."""
    if isinstance(variance, StepVariance):
        numbers = variance.of_times(schedule, times[1:], times[:-1])
        return variance.of_prediction, zip(*(n.tolist() for n in numbers), strict=True)
    return variance, ((schedule, s, t) for t, s in pairwise(times))


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
    spread, known = _by_step(variance, schedule, times[times > 0])  # nothing for a step to s = 0
    steps = zip_longest(times[:-1], keeps.tolist(), gains.tolist(), known)
    for t, keep, gain, given in steps:
        prediction = denoiser(x, t, cond)
        x = keep * x + gain * prediction.x0
        if given is not None:
            noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
            x = x + spread(prediction, *given) ** 0.5 * noise
        yield x


def ddim(
    denoiser: Denoiser,
    x: Tensor,
    times: Tensor,
    cond: Condition | None = None,
    *,
    eta: float = 0.0,
    variance: Variance | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Walk back along `times`, any decreasing grid, keeping the marginals q(x_s | x_0).

    DDIM (Song et al. 2021), eq. 12 and 16: of x_s's noise, eta^2 beta_tilde is fresh and the rest
    points along eps. eta = 0 draws nothing and needs no generator; eta = 1 is `ancestral` with
    beta_tilde. With `variance` the fresh noise has that one, and the mean stays as eta says
    (Analytic-DPM, Bao et al. 2022, section 3). A step that ends at s = 0 adds no noise.
    """
    draws = eta > 0 or variance is not None
    if draws and generator is None:
        raise ValueError("eta > 0, or a variance, draws noise: pass generator=")
    schedule, noisy = denoiser.schedule, times[times > 0]
    (fresh,) = BetaTilde(eta).of_times(schedule, times[1:], times[:-1])  # variances, all steps'
    along = (schedule.sigma(times[1:]) ** 2 - fresh).clamp(min=0).sqrt()
    columns = (schedule.alpha(times[1:]).tolist(), along.tolist())
    spread, known = _by_step(variance or BetaTilde(eta), schedule, noisy if draws else noisy[:1])
    for t, alpha, towards, given in zip_longest(times[:-1], *columns, known):
        prediction = denoiser(x, t, cond)
        x = alpha * prediction.x0 + towards * prediction.eps
        if given is not None:
            noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
            x = x + spread(prediction, *given) ** 0.5 * noise
        yield x


def encode(
    denoiser: Denoiser, x: Tensor, times: Tensor, cond: Condition | None = None
) -> Iterator[Tensor]:
    """Walk from data to noise along a sampler's own falling grid, taken from its end.

    DDIM (Song et al. 2021), sections 4.3 and 5.4: the step of `ddim` at eta = 0, towards more
    noise; `x` is at times[-1]. A step asks the denoiser where it starts, the step of `ddim` that
    goes back asks at the other end: along the same `times` it returns to `x` up to an error that
    falls as steps grow in number. A ValueError for a grid that ends at sigma = 0, where data
    carry no noise for eps to be and a network was never trained.
    """
    rising = times.flip(0)
    alphas, sigmas = (log.exp() for log in denoiser.schedule.log_level(rising))
    if not 0 < sigmas[0] < sigmas[-1]:
        raise ValueError("the grid must fall, as a sampler's, and end where sigma > 0")
    for t, alpha, sigma in zip(rising[:-1], alphas[1:].tolist(), sigmas[1:].tolist(), strict=True):
        prediction = denoiser(x, t, cond)
        x = alpha * prediction.x0 + sigma * prediction.eps
        yield x


def slerp(a: Tensor, b: Tensor, share: Tensor | float) -> Tensor:
    """Return the point a `share`, () or (B,), of the way from `a` to `b` along a great circle.

    Shoemake (1985); DDIM (Song et al. 2021), appendix D.5. Each row of (B, ...) is one vector:
    of two of the same norm every point between has that norm. Parallel rows meet on a straight
    line. As rows come to point opposite ways the middle, (a + b) / (2 cos(angle / 2)), grows
    without bound unless their norms agree: leave such pairs out. In 2-D one pair in six is more
    than 150 degrees apart, in hundreds of dimensions none. A ValueError for opposite rows.
    """
    u, v = (torch.nn.functional.normalize(x.flatten(1), dim=1) for x in (a, b))
    apart, together = (u - v).norm(dim=1), (u + v).norm(dim=1)
    if a.is_cpu and not bool(together.all()):
        raise ValueError("opposite vectors lie on many great circles: none is between them")
    turn = 2 / math.pi * torch.atan2(apart, together)  # in pi; arccos would lose half the digits
    share = torch.as_tensor(share, dtype=a.dtype, device=a.device)
    turn, share = (x.reshape(-1, *(1,) * (a.ndim - 1)) for x in (turn, share))
    # sin(share angle) / sin(angle), which is share where the angle is 0
    near, far = (part * torch.sinc(part * turn) / torch.sinc(turn) for part in (1 - share, share))
    return near * a + far * b


def final(trajectory: Iterator[Tensor]) -> Tensor:
    """Return the last point of a trajectory, without gradients; a ValueError if it has none."""
    last = None
    with torch.no_grad():
        for last in trajectory:  # noqa: B007 the end is all that is wanted
            pass
    if last is None:
        raise ValueError("the trajectory is empty: a time grid needs at least two entries")
    return last
