"""Training losses: f(denoiser, x0, t, cond, *, generator) -> (B,), one number an example.

All draw the noise, form x_t and compare; they differ in what is compared and how it is weighted.
Errors are summed over dimensions, so that the bound's terms come out in nats. Which t to draw is
the caller's choice, or that of `StepImportance`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor, nn

from tutorial_lib.denoiser import Condition, Denoiser, Prediction
from tutorial_lib.gaussian import sum_over_dims
from tutorial_lib.likelihood import (
    Decoder,
    Variance,
    chain_term,
    continuous_weight,
    pixel_decoder,
    step_kl,
)
from tutorial_lib.schedule import Schedule, Time, as_time, time_like


class Loss(Protocol):
    """Compare a denoiser's prediction at a freshly noised x_t with the truth."""

    def __call__(
        self,
        denoiser: Denoiser,
        x0: Tensor,
        t: Time,
        cond: Condition | None = None,
        *,
        generator: torch.Generator,
    ) -> Tensor:
        """Return the loss of each example, (B,)."""
        ...


def noised(
    denoiser: Denoiser,
    x0: Tensor,
    t: Time,
    cond: Condition | None,
    generator: torch.Generator,
) -> tuple[Prediction, Tensor]:
    """Draw eps, form x_t, and return what the denoiser makes of it together with eps.

    Source: DDPM (Ho et al. 2020), algorithm 1, lines 4-5.
    """
    eps = torch.randn(x0.shape, generator=generator, dtype=x0.dtype, device=x0.device)
    return denoiser(denoiser.schedule.add_noise(x0, eps, t), t, cond), eps


def simple(
    denoiser: Denoiser,
    x0: Tensor,
    t: Time,
    cond: Condition | None = None,
    *,
    generator: torch.Generator,
) -> Tensor:
    """Return ||eps - eps_hat||^2, (B,): L_simple (DDPM, Ho et al. 2020, eq. 14)."""
    prediction, eps = noised(denoiser, x0, t, cond, generator)
    return sum_over_dims((eps - prediction.eps) ** 2)


def x0_error(
    denoiser: Denoiser,
    x0: Tensor,
    t: Time,
    cond: Condition | None = None,
    *,
    generator: torch.Generator,
) -> Tensor:
    """Return ||x_0 - x0_hat||^2, (B,) (Luo 2022, first interpretation, without its weight)."""
    prediction, _ = noised(denoiser, x0, t, cond, generator)
    return sum_over_dims((x0 - prediction.x0) ** 2)


def score_error(
    denoiser: Denoiser,
    x0: Tensor,
    t: Time,
    cond: Condition | None = None,
    *,
    generator: torch.Generator,
) -> Tensor:
    """Return ||score + eps / sigma||^2, (B,): denoising score matching (Vincent 2011)."""
    prediction, eps = noised(denoiser, x0, t, cond, generator)
    return sum_over_dims((prediction.score + eps / prediction.level.sigma) ** 2)


def explicit_score_error(exact: Denoiser) -> Loss:
    """Return ||score - exact score||^2, (B,), as a Loss (Hyvärinen 2005, eq. 2).

    Only a toy knows the exact score. On average it is `score_error` less what no denoiser can
    change (Vincent 2011, section 4.2): alpha^2 / sigma^4 E tr Cov[x_0 | x_t].
    """

    def loss(
        denoiser: Denoiser,
        x0: Tensor,
        t: Time,
        cond: Condition | None = None,
        *,
        generator: torch.Generator,
    ) -> Tensor:
        prediction, _ = noised(denoiser, x0, t, cond, generator)
        return sum_over_dims((prediction.score - exact(prediction.xt, t, cond).score) ** 2)

    return loss


def v_error(
    denoiser: Denoiser,
    x0: Tensor,
    t: Time,
    cond: Condition | None = None,
    *,
    generator: torch.Generator,
) -> Tensor:
    """Return ||v - v_hat||^2, (B,) (Salimans & Ho 2022, section 4)."""
    prediction, eps = noised(denoiser, x0, t, cond, generator)
    truth = prediction.level.alpha * eps - prediction.level.sigma * x0
    return sum_over_dims((truth - prediction.v) ** 2)


def _step_before(t: Time, n_steps: int) -> Tensor:
    """Return t - 1/n_steps, 0 itself at the first step."""
    return ((as_time(t) * n_steps).round() - 1) / n_steps


def mean_error(n_steps: int) -> Loss:
    """Return ||mu - mu_hat||^2, (B,), of a chain of `n_steps`, as a Loss (Ho et al. 2020, eq. 8).

    mu is the mean of q(x_s | x_t, x_0) for t in 1/n_steps .. 1 and s = t - 1/n_steps, mu_hat the
    same at the predicted x_0. They differ in x_0 alone: it is `x0_error` times (the weight of x_0
    in mu)^2, however the network predicts.
    """

    def loss(
        denoiser: Denoiser,
        x0: Tensor,
        t: Time,
        cond: Condition | None = None,
        *,
        generator: torch.Generator,
    ) -> Tensor:
        prediction, _ = noised(denoiser, x0, t, cond, generator)
        s, t = (time_like(time, x0) for time in (_step_before(t, n_steps), t))
        gain = denoiser.schedule.posterior_weights(s, t)[1].to(x0.dtype)
        return sum_over_dims((gain * (x0 - prediction.x0)) ** 2)

    return loss


def weighted(loss: Loss, weight: Callable[[Schedule, Time], Tensor]) -> Loss:
    """Return `loss` times weight(schedule, t), (B,) (Kingma et al. 2021, section 5.2)."""

    def product(
        denoiser: Denoiser,
        x0: Tensor,
        t: Time,
        cond: Condition | None = None,
        *,
        generator: torch.Generator,
    ) -> Tensor:
        scale = weight(denoiser.schedule, t).to(x0.device, x0.dtype)
        return scale * loss(denoiser, x0, t, cond, generator=generator)

    return product


def bound(
    denoiser: Denoiser,
    x0: Tensor,
    t: Time,
    cond: Condition | None = None,
    *,
    generator: torch.Generator,
) -> Tensor:
    """Return the continuous-time bound's integrand at t, (B,) nats (Kingma et al. 2021, 5).

    Averaged over t uniform on [t_end, 1] and multiplied by 1 - t_end it is the diffusion term.
    """
    return weighted(simple, continuous_weight)(denoiser, x0, t, cond, generator=generator)


def bound_term(
    denoiser: Denoiser,
    x0: Tensor,
    s: Time,
    t: Time,
    cond: Condition | None = None,
    *,
    generator: torch.Generator,
) -> Tensor:
    """Return the bound's term of the step from t to s, (B,) nats (DDPM, Ho et al. 2020, eq. 5)."""
    prediction, _ = noised(denoiser, x0, t, cond, generator)
    return step_kl(prediction, denoiser.schedule, x0, s, t)


def _bound_estimate(
    n_steps: int, variance: Variance, decoder: Decoder | None
) -> Callable[[Prediction, Schedule, Tensor, Time], Tensor]:
    """Return n_steps times the term of the step to t, as a function of a prediction at t."""
    last = decoder or pixel_decoder(variance)

    def estimate(prediction: Prediction, schedule: Schedule, x0: Tensor, t: Time) -> Tensor:
        s = _step_before(t, n_steps)
        return n_steps * chain_term(prediction, schedule, x0, s, t, variance, last)

    return estimate


def vlb(n_steps: int, variance: Variance, decoder: Decoder | None = None) -> Loss:
    """Return L_vlb, (B,) nats, of a chain of `n_steps`, as a Loss (Nichol & Dhariwal 2021, eq. 4).

    It is n_steps times the term of the step to t, in 1/n_steps .. 1, from t - 1/n_steps: averaged
    over steps drawn evenly, the chain's bound without its prior term, which nothing can train.
    The last step's `decoder` is `pixel_decoder(variance)` unless another is given; points take
    `noise_decoder`.
    """
    estimate = _bound_estimate(n_steps, variance, decoder)

    def loss(
        denoiser: Denoiser,
        x0: Tensor,
        t: Time,
        cond: Condition | None = None,
        *,
        generator: torch.Generator,
    ) -> Tensor:
        prediction, _ = noised(denoiser, x0, t, cond, generator)
        return estimate(prediction, denoiser.schedule, x0, t)

    return loss


def hybrid(
    n_steps: int, variance: Variance, decoder: Decoder | None = None, weight: float = 1e-3
) -> Loss:
    """Return L_simple + weight L_vlb for a chain of `n_steps` (Nichol & Dhariwal 2021, eq. 16).

    L_vlb, as `vlb` estimates it, teaches the variance alone: the gradient of the mean is stopped
    in it (section 3.1).
    """
    estimate = _bound_estimate(n_steps, variance, decoder)

    def loss(
        denoiser: Denoiser,
        x0: Tensor,
        t: Time,
        cond: Condition | None = None,
        *,
        generator: torch.Generator,
    ) -> Tensor:
        prediction, eps = noised(denoiser, x0, t, cond, generator)
        still = replace(prediction, x0=prediction.x0.detach(), eps=prediction.eps.detach())
        simple_part = sum_over_dims((eps - prediction.eps) ** 2)
        return simple_part + weight * estimate(still, denoiser.schedule, x0, t)

    return loss


class StepImportance(nn.Module):
    """Draw steps t with p_t ~ sqrt(E[L_t^2]) (Nichol & Dhariwal 2021, section 3.3, eq. 18).

    The mean is over the last 10 losses of step t, in 1 .. n_steps; until every step has 10, draws
    are even. One draw in a thousand stays so, as in the authors' code: no step dies out, and no
    weight exceeds 1000. The history is a buffer: as part of a module that is trained, it goes to
    its device and into its checkpoints, but not into its weights. No value is read back from
    there.
    """

    def __init__(self, n_steps: int) -> None:
        super().__init__()
        unknown = torch.full((n_steps, 10), math.nan, dtype=torch.float64)
        self.register_buffer("history", unknown, persistent=False)

    @property
    def probabilities(self) -> Tensor:
        """Return p_t of every step, (n_steps,)."""
        n_steps = len(self.history)
        sizes = (self.history**2).mean(1).sqrt()
        shares = sizes / sizes.sum()  # all nan while one is
        return torch.where(shares.isnan(), 1 / n_steps, 0.999 * shares + 0.001 / n_steps)

    def sample(self, n: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw `n` steps and the weights 1 / (n_steps p_t) that keep a mean over them unbiased."""
        p = self.probabilities
        drawn = torch.multinomial(p, n, replacement=True, generator=generator)
        return drawn + 1, 1 / (len(p) * p[drawn])

    @torch.no_grad()
    def update(self, steps: Tensor, losses: Tensor) -> None:
        """Remember the unweighted `losses` of `steps`, (n,) both, of a step's the latest 10."""
        n_steps, kept = self.history.shape
        row = torch.arange(n_steps, device=steps.device)
        rows = torch.cat([row.repeat_interleave(kept), steps - 1])
        rows, order = rows.sort(stable=True)  # in each row the old before the new
        known = torch.cat([self.history.flatten(), losses.to(self.history)])[order]
        ends = torch.searchsorted(rows, row, right=True)
        self.history.copy_(known[ends[:, None] + torch.arange(-kept, 0, device=steps.device)])
