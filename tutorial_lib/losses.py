"""Training losses: f(denoiser, x0, t, cond, *, generator) -> (B,), one number an example.

All draw the noise, form x_t and compare; they differ in what is compared and how it is weighted.
Errors are summed over dimensions, so that the bound's terms come out in nats.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

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
from tutorial_lib.schedule import Schedule, Time


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


def hybrid(
    n_steps: int, variance: Variance, decoder: Decoder | None = None, weight: float = 1e-3
) -> Loss:
    """Return L_simple + weight L_vlb for a chain of `n_steps` (Nichol & Dhariwal 2021, eq. 16).

    L_vlb teaches the variance alone: the gradient of the mean is stopped in it (section 3.1). It
    is estimated by n_steps times the term of the step to t, in 1/n_steps .. 1, from t - 1/n_steps.
    The last step's `decoder` is `pixel_decoder(variance)` unless another is given.
    """
    last = decoder or pixel_decoder(variance)

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
        s = ((t * n_steps).round() - 1) / n_steps
        term = chain_term(still, denoiser.schedule, x0, s, t, variance, last)
        return sum_over_dims((eps - prediction.eps) ** 2) + weight * n_steps * term

    return loss
