"""Likelihoods in nats: the variational bound, term by term, and the probability flow's density.

-log p(x_0) <= reconstruction + sum of step KLs + prior KL   (Kingma et al. 2021, section 3.5)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from tutorial_lib.denoiser import Condition, Denoiser, Prediction
from tutorial_lib.gaussian import DiscretisedGaussian, Gaussian, sum_over_dims
from tutorial_lib.schedule import Schedule, Time, as_time

Variance = Callable[[Prediction, Schedule, Time, Time], Tensor]
Decoder = Callable[[Prediction, Schedule, Time], Gaussian | DiscretisedGaussian]
Field = Callable[[Tensor], Tensor]
Divergence = Callable[[Field, Tensor], tuple[Tensor, Tensor]]  # the field at x and its divergence


def prior_term(schedule: Schedule, x0: Tensor) -> Tensor:
    """Return KL(q(x_1 | x_0) || prior), (B,): small, never zero (DDPM, Ho et al. 2020, eq. 5)."""
    level = schedule.at(1.0, like=x0)
    prior = Gaussian(torch.zeros_like(x0), schedule.prior_std**2)
    return Gaussian(level.alpha * x0, level.sigma**2).kl(prior)


def noise_decoder(prediction: Prediction, schedule: Schedule, t: Time) -> Gaussian:
    """Return p(x_0 | x_t) = N(x_t / alpha, sigma^2 / alpha^2) (Kingma et al. 2021, section 3.3).

    It undoes the last trace of noise without asking the network; good when sigma is tiny.
    """
    level = prediction.level
    return Gaussian(prediction.xt / level.alpha, (level.sigma / level.alpha) ** 2)


def pixel_decoder(variance: Variance) -> Decoder:
    """Return the decoder of 8-bit pixels, the last step's Gaussian cut into bins.

    DDPM (Ho et al. 2020), eq. 13: the mean is x0_hat, the variance that of the step from t to 0.
    A ValueError where that is 0, as beta_tilde is.
    """

    def decode(prediction: Prediction, schedule: Schedule, t: Time) -> DiscretisedGaussian:
        last = variance(prediction, schedule, 0 * as_time(t), t)  # 0, where t lies
        if last.device.type == "cpu" and not bool((last > 0).all()):
            raise ValueError(
                "the step to s = 0 has variance 0: its decoder needs another, as beta"
            )
        return DiscretisedGaussian(prediction.x0, last)

    return decode


def step_kl(
    prediction: Prediction,
    schedule: Schedule,
    x0: Tensor,
    s: Time,
    t: Time,
    variance: Variance | None = None,
) -> Tensor:
    """Return KL(q(x_s | x_t, x_0) || p(x_s | x_t)), (B,), s < t (Ho et al. 2020, eq. 5, L_{t-1}).

    The model's step is the posterior at the predicted x_0, with the posterior's own variance
    unless `variance` gives another; the KL is then 1/2 (SNR(s) - SNR(t)) ||x_0 - x0_hat||^2
    (Kingma et al. 2021, section 4). A ValueError at s = 0 of a variance-preserving schedule.
    """
    truth = schedule.posterior(x0, prediction.xt, s, t)
    if x0.device.type == "cpu" and not bool((truth.variance > 0).all()):
        raise ValueError("the step to s = 0 has no KL, its truth is a point: stop at a decoder")
    model = schedule.posterior(prediction.x0, prediction.xt, s, t)
    if variance is not None:
        model = Gaussian(model.mean, variance(prediction, schedule, s, t))
    return truth.kl(model)


def chain_term(
    prediction: Prediction,
    schedule: Schedule,
    x0: Tensor,
    s: Time,
    t: Time,
    variance: Variance,
    decoder: Decoder,
) -> Tensor:
    """Return the bound's term of each row's step, (B,) nats (Nichol & Dhariwal 2021, eq. 4-6).

    The KL of the step from t to s, (B,) each; where s = 0, minus the decoder's log-likelihood.
    """
    s, t = as_time(s), as_time(t)
    ends = s == 0
    # each branch sees all rows: give those that it is not for a step whose value is finite
    kl = step_kl(prediction, schedule, x0, torch.where(ends, t / 2, s), t, variance)
    last = ends.to(x0.device).reshape(ends.shape + (1,) * (x0.ndim - 1))
    near = replace(prediction, x0=torch.where(last, prediction.x0, x0))
    decoded = decoder(near, schedule, torch.where(ends, t, t / 4))
    return torch.where(ends.to(x0.device), -decoded.log_prob(x0), kl)


@dataclass(frozen=True)
class ChainBound:
    """Hold the terms of the bound on -log p(x_0) in nats; `steps` runs from noise to data."""

    prior: Tensor  # (B,)
    steps: Tensor  # (B, n_steps)
    reconstruction: Tensor  # (B,)

    @property
    def total(self) -> Tensor:
        """Return the bound on -log p(x_0) in nats, (B,) (Ho et al. 2020, eq. 5)."""
        return self.prior + self.steps.sum(1) + self.reconstruction

    def bits_per_dim(self, dims: int) -> Tensor:
        """Return the bound in bits per dimension, (B,) (van den Oord et al. 2016, section 5)."""
        return self.total / (dims * math.log(2))


def chain_bound(
    denoiser: Denoiser,
    x0: Tensor,
    times: Tensor,
    cond: Condition | None = None,
    *,
    generator: torch.Generator,
    variance: Variance | None = None,
    decoder: Decoder = noise_decoder,
) -> ChainBound:
    """Estimate the bound of a chain over `times`, with one draw of x_t for each term.

    `times` falls from 1 to an end > 0, where `decoder` takes over (Kingma et al. 2021, 4).
    """
    if float(times[-1]) <= 0:
        raise ValueError("the chain must end at t > 0, where the decoder takes over")
    schedule = denoiser.schedule

    def look(t: Tensor) -> Prediction:
        eps = torch.randn(x0.shape, generator=generator, dtype=x0.dtype, device=x0.device)
        return denoiser(schedule.add_noise(x0, eps, t), t, cond)

    steps = [step_kl(look(t), schedule, x0, s, t, variance) for t, s in pairwise(times)]
    reconstruction = -decoder(look(times[-1]), schedule, times[-1]).log_prob(x0)
    return ChainBound(prior_term(schedule, x0), torch.stack(steps, dim=1), reconstruction)


def continuous_weight(schedule: Schedule, t: Time) -> Tensor:
    """Return -d lambda / dt, the bound's weight on ||eps - eps_hat||^2 (Kingma et al. 2021, 5).

    Its integral over t, for exact predictions, depends on the schedule through its ends alone.
    """
    t = as_time(t)
    return schedule.diffusion2(t) / (2 * schedule.sigma(t) ** 2)


def exact_divergence(field: Field, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the field at `x` and sum_i d field_i / d x_i, (B,), by one backward pass a dimension.

    For points; an image of D numbers would cost D passes.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = field(x)
        parts = value.flatten(1).sum(0)
        rows = [torch.autograd.grad(part, x, retain_graph=True)[0].flatten(1) for part in parts]
    divergence = sum(row[:, i] for i, row in enumerate(rows))
    return value.detach(), divergence


def hutchinson(probe: Tensor) -> Divergence:
    """Return the estimate probe . J probe of a divergence, by one backward pass.

    Unbiased for any `probe`, (B, ...), of independent entries with mean 0 and variance 1
    (Hutchinson 1990; Song et al. 2021, appendix D.2); random signs have the least variance.
    """

    def estimate(field: Field, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            value = field(x)
            product = torch.autograd.grad((value * probe).sum(), x)[0]
        return value.detach(), sum_over_dims(product * probe)

    return estimate


def random_signs(like: Tensor, *, generator: torch.Generator) -> Tensor:
    """Return a probe of -1s and 1s, equally likely, shaped as `like` (Hutchinson 1990)."""
    return 2 * torch.randint(2, like.shape, generator=generator, device=like.device).to(like) - 1


@torch.no_grad()
def flow_log_likelihood(
    denoiser: Denoiser,
    xt: Tensor,
    times: Tensor,
    cond: Condition | None = None,
    *,
    divergence: Divergence = exact_divergence,
    log_prior: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Return log p_t(xt) at t = times[-1] under the probability flow from times[0], (B,) nats.

    The flow (Song et al. 2021, Score SDE, eq. 13 and 39) in coordinates that stay of one size:
    with r^2 = alpha^2 + sigma^2 (1 on a variance-preserving schedule), y = x / r and w = sigma / r
    it is dy / d log(sigma / alpha) = w (eps - w y), whatever the schedule. It is integrated from
    data to noise along `times`, given falling as for samplers, by Runge and Kutta's steps of
    order 4: the error falls with the fourth power of the steps, best even in log-SNR
    (`log_snr_times`). `log_prior` is the density at times[0], that of N(0, prior_std^2) unless
    given. Four evaluations a step.
    """
    schedule, lambdas = denoiser.schedule, denoiser.schedule.lambda_(times.flip(0))

    def rates(lambda_: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        t = schedule.time_of(lambda_)
        level = schedule.at(t, like=xt)
        r = torch.hypot(level.alpha, level.sigma)
        w = level.sigma / r
        return divergence(lambda y: w * (denoiser(r * y, t, cond).eps - w * y), y)

    def log_size(t: Tensor) -> Tensor:
        return 0.5 * torch.logaddexp(2 * schedule.log_alpha(t), 2 * schedule.log_sigma(t))

    y, gained = xt / log_size(times[-1]).exp().item(), xt.new_zeros(len(xt), dtype=torch.float64)
    for a, b in pairwise(lambdas):
        h, middle = (a - b).item(), 0.5 * (a + b)
        k1, d1 = rates(a, y)
        k2, d2 = rates(middle, y + 0.5 * h * k1)
        k3, d3 = rates(middle, y + 0.5 * h * k2)
        k4, d4 = rates(b, y + h * k3)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        gained += h / 6 * (d1 + 2 * d2 + 2 * d3 + d4).double()
    end = log_size(times[0]).exp().item() * y
    prior = Gaussian(torch.zeros_like(end), schedule.prior_std**2).log_prob
    grown = xt[0].numel() * (log_size(times[0]) - log_size(times[-1])).item()  # log |dx / dy|
    return (log_prior or prior)(end).double() + gained + grown
