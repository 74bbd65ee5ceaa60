"""Analytic-DPM: the best variances and the best times of a chain, from a trained noise network.

A step that knows x_t but not x_0 errs by what x_t leaves open. Per dimension that is
(sigma / alpha)^2 u, where u = E Var[eps | x_t] is the share of the noise that cannot be told from
x_t: 1 - R^2 of the best noise network, and its loss. One curve u(t) serves every grid of times.
(Bao et al. 2022) are two papers, Analytic-DPM and the one with second networks, SN- and NPR-DDPM.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import softplus

from tutorial_lib.denoiser import Condition, Denoiser, NetworkDenoiser, Prediction
from tutorial_lib.gaussian import sum_over_dims
from tutorial_lib.losses import noised
from tutorial_lib.samplers import StepVariance
from tutorial_lib.schedule import Schedule, Time, as_time

Second = Callable[[Prediction, Time, Condition | None], Tensor]


@dataclass(frozen=True)
class Estimate:
    """Hold Monte Carlo means at `times`, which fall, and the standard errors of those; (n,)."""

    times: Tensor
    mean: Tensor
    standard_error: Tensor


@torch.no_grad()
def noise_shares(
    denoiser: Denoiser,
    x0: Tensor,
    times: Tensor,
    cond: Condition | None = None,
    *,
    generator: torch.Generator,
) -> tuple[Estimate, Estimate]:
    """Estimate E||eps_hat||^2 / d and E||eps - eps_hat||^2 / d, from one x_t an example and time.

    Where eps_hat is E[eps | x_t] the first is R^2, the share of the noise's variance that x_t
    explains, sigma^2 times the paper's Gamma (Analytic-DPM, Bao et al. 2022, section 3), and the
    second is u = 1 - R^2. Of another network the second, which is L_simple by time and never
    negative, is the u whose variance is best with that network's mean (NPR-DDPM, Bao et al. 2022).
    """
    each = []
    for t in times:
        prediction, eps = noised(denoiser, x0, t, cond, generator)
        sizes = (
            x.double().square().flatten(1).mean(1) for x in (prediction.eps, eps - prediction.eps)
        )
        each.append(torch.stack(list(sizes)))
    draws = torch.stack(each)  # (n, 2, B)
    means, errors = draws.mean(2).cpu(), (draws.std(2) / len(x0) ** 0.5).cpu()
    explained, unexplained = (Estimate(times.cpu(), means[:, k], errors[:, k]) for k in (0, 1))
    return explained, unexplained


def variance_bounds(
    schedule: Schedule, s: Time, t: Time, *, eta: float = 1.0, spread: float = float("inf")
) -> tuple[Tensor, Tensor]:
    """Return the least and the greatest that the best variance of p(x_s | x_t) can be.

    Analytic-DPM (Bao et al. 2022), theorem 2: the first holds with u = 0; the second with u = 1
    or with Var[x_0 | x_t] = spread^2, for data in an interval of length 2 spread, whichever is
    less.
    """
    return tuple(_widths(schedule, s, t, u, eta, spread) for u in (0.0, 1.0))


def _widths(
    schedule: Schedule, s: Time, t: Time, u: Tensor | float, eta: float, spread: float
) -> Tensor:
    """Return lambda^2 + (weight of x_0 in the step's mean)^2 Var[x_0 | x_t]."""
    fresh, gain, ratio = _step(schedule, s, t, eta)
    open_x0 = (ratio * u).clamp(min=0.0, max=spread**2)
    return fresh + gain**2 * torch.minimum(open_x0, ratio)


def _step(schedule: Schedule, s: Time, t: Time, eta: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return lambda^2 = eta^2 beta_tilde, the weight of x_0 in the mean, and (sigma/alpha)^2.

    The mean of `ddim` is alpha_s x_0 + sqrt(sigma_s^2 - lambda^2) (x_t - alpha_t x_0) / sigma_t.
    """
    s, t = as_time(s), as_time(t)
    fresh = eta**2 * schedule.posterior_weights(s, t)[2]
    along = (schedule.sigma(s) ** 2 - fresh).clamp(min=0).sqrt()
    gain = schedule.alpha(s) - along * (schedule.lambda_(t)).exp()
    return fresh, gain, (-2 * schedule.lambda_(t)).exp()


@dataclass(frozen=True, eq=False)
class Analytic(StepVariance):
    """Give each step the one variance that is best for the bound (Bao et al. 2022, theorem 1).

    `times`, which fall, and `unexplained` (n,) are the curve u(t), read between them by straight
    lines; a ValueError beyond them. `eta` is that of the mean: 1 for `ancestral`, DDIM's for
    `ddim`. u is clipped to [0, 1], and to what data in [-spread, spread] allow: theorem 2, which
    estimates break.
    """

    times: Tensor
    unexplained: Tensor
    eta: float = 1.0
    spread: float = float("inf")

    def of_times(self, schedule: Schedule, s: Tensor, t: Tensor) -> tuple[Tensor]:
        """Return lambda^2 + gain^2 (sigma / alpha)^2 u(t)."""
        t = as_time(t)
        u = _between(self.times, self.unexplained, t.cpu()).to(t.device)
        return (_widths(schedule, s, t, u, self.eta, self.spread),)


def _between(times: Tensor, values: Tensor, t: Tensor) -> Tensor:
    """Return the values at t of the straight lines through those at `times`, which fall."""
    rising, values = times.flip(0), values.flip(0).clamp(0, 1)
    if not bool(((t >= rising[0]) & (t <= rising[-1])).all()):
        raise ValueError(f"u is known from t = {rising[0]:g} to {rising[-1]:g} only")
    if len(rising) == 1:
        return values[0].expand(t.shape)
    right = torch.searchsorted(rising, t.contiguous()).clamp(1, len(rising) - 1)
    share = (t - rising[right - 1]) / (rising[right] - rising[right - 1])
    return torch.lerp(values[right - 1], values[right], share)


@dataclass(frozen=True)
class Diagonal(StepVariance):
    """Give each coordinate of each x_t the variance that its `noise_variance` calls for.

    SN-DDPM and NPR-DDPM (Bao et al. 2022). The prediction needs that field: wrap the denoiser in
    `WithNoiseVariance`. `eta` and `spread` are those of `Analytic`.
    """

    eta: float = 1.0
    spread: float = float("inf")

    def of_times(self, schedule: Schedule, s: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        """Return lambda^2, the weight of x_0 in the mean, and (sigma / alpha)^2."""
        return _step(schedule, s, t, self.eta)

    def of_prediction(
        self,
        prediction: Prediction,
        fresh: Tensor | float,
        gain: Tensor | float,
        ratio: Tensor | float,
    ) -> Tensor:
        """Return lambda^2 + gain^2 Var[x_0 | x_t]; a ValueError without a noise_variance."""
        u = prediction.noise_variance
        if u is None:
            raise ValueError("this denoiser says no noise_variance: give it a second network")
        return fresh + gain**2 * (ratio * u.clamp(min=0)).clamp(max=self.spread**2)


class WithNoiseVariance:
    """Add to a denoiser's predictions what `second` says of Var[eps | x_t] (Bao et al. 2022).

    `second` is asked with the prediction, t and the condition. The denoiser gets no gradient:
    this is a second stage, and the first stays as it is.
    """

    def __init__(self, denoiser: Denoiser, second: Second) -> None:
        self.denoiser, self.schedule, self.second = denoiser, denoiser.schedule, second

    def __call__(self, xt: Tensor, t: Time, cond: Condition | None = None) -> Prediction:
        """Predict as the denoiser does, with a noise_variance of the shape of `xt`."""
        with torch.no_grad():
            prediction = self.denoiser(xt, t, cond)
        return replace(prediction, noise_variance=self.second(prediction, t, cond))


def residual_network(net: NetworkDenoiser) -> Second:
    """Read a network's softplus as E[(eps - eps_hat)^2 | x_t] (NPR-DDPM, Bao et al. 2022)."""

    def second(prediction: Prediction, t: Time, cond: Condition | None) -> Tensor:
        return softplus(net(prediction.xt, t, cond).eps)

    return second


def square_network(net: NetworkDenoiser) -> Second:
    """Read a network's answer as E[eps^2 | x_t], less eps_hat^2 (SN-DDPM, Bao et al. 2022)."""

    def second(prediction: Prediction, t: Time, cond: Condition | None) -> Tensor:
        return net(prediction.xt, t, cond).eps - prediction.eps**2

    return second


def residual_error(
    denoiser: Denoiser,
    x0: Tensor,
    t: Time,
    cond: Condition | None = None,
    *,
    generator: torch.Generator,
) -> Tensor:
    """Return ||(eps - eps_hat)^2 - noise_variance||^2, (B,) (NPR-DDPM, Bao et al. 2022)."""
    prediction, eps = noised(denoiser, x0, t, cond, generator)
    return sum_over_dims(((eps - prediction.eps) ** 2 - prediction.noise_variance) ** 2)


def square_error(
    denoiser: Denoiser,
    x0: Tensor,
    t: Time,
    cond: Condition | None = None,
    *,
    generator: torch.Generator,
) -> Tensor:
    """Return ||eps^2 - (eps_hat^2 + noise_variance)||^2, (B,) (SN-DDPM, Bao et al. 2022)."""
    prediction, eps = noised(denoiser, x0, t, cond, generator)
    said = prediction.eps**2 + prediction.noise_variance
    return sum_over_dims((eps**2 - said) ** 2)


def stride_costs(schedule: Schedule, times: Tensor, unexplained: Tensor) -> Tensor:
    """Return what each stride between two of `times` costs the bound, nats a dimension, (n, n).

    Entry [i, j] is the stride from times[i] down to times[j], 1/2 log(best variance / beta_tilde)
    (Bao et al. 2022, section 4); infinite where times[j] is not below times[i].
    """
    i, j = torch.triu_indices(len(times), len(times), 1)
    t, s = times[i], times[j]
    best = Analytic(times, unexplained).of_times(schedule, s, t)[0]
    costs = torch.full((len(times), len(times)), float("inf"), dtype=torch.float64)
    costs[i, j] = 0.5 * (best / schedule.posterior_weights(s, t)[2]).log()
    return costs


def cheapest_times(times: Tensor, costs: Tensor, n_steps: int) -> Tensor:
    """Return the n_steps + 1 of `times`, both ends among them, whose strides cost least in sum.

    Dynamic programming (Watson et al. 2021; Analytic-DPM, Bao et al. 2022, section 4): the
    cheapest path to a time in k strides is one of those in k - 1, and a stride. A ValueError for
    more steps than there are, or none.
    """
    if not 1 <= n_steps < len(times):
        raise ValueError(f"between 1 and {len(times) - 1} steps fit here, not {n_steps}")
    reached, came_from = costs[0], []
    for _ in range(n_steps - 1):
        reached, before = (reached[:, None] + costs).min(0)
        came_from.append(before)
    path = [len(times) - 1]
    for before in reversed(came_from):
        path.append(int(before[path[-1]]))
    return times[torch.tensor([0, *reversed(path)])]
