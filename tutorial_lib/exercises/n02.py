"""The exercises of notebook 02: DDPM."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tutorial_lib.exercises import Exercise, Mistake
from tutorial_lib.gaussian import HALF_BIN, DiscretisedGaussian, Gaussian
from tutorial_lib.schedule import DiscreteVP

Probes = list[tuple[Any, ...]]
Model = Callable[[Tensor, Tensor], Tensor]  # x_t (B, D) and steps (B,) to a guess of the noise


def _normal(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _bars(betas: Tensor) -> Tensor:
    return torch.cumprod(1 - betas, 0)


def _linear(n_steps: int) -> Tensor:
    return DiscreteVP.linear(n_steps).betas


def _schedule_truth(n_steps: int) -> tuple[Tensor, Tensor]:
    return _linear(n_steps), _bars(_linear(n_steps))


def _unscaled(n_steps: int) -> tuple[Tensor, Tensor]:
    betas = torch.linspace(1e-4, 0.02, n_steps, dtype=torch.float64)
    return betas, _bars(betas)


def _linear_in_roots(n_steps: int) -> tuple[Tensor, Tensor]:
    roots = torch.linspace(1e-4**0.5, 0.02**0.5, n_steps, dtype=torch.float64)
    betas = roots**2 * 1000 / n_steps
    return betas, _bars(betas)


def _open_ended(n_steps: int) -> tuple[Tensor, Tensor]:
    betas = torch.linspace(1e-4, 0.02, n_steps + 1, dtype=torch.float64)[:-1] * 1000 / n_steps
    return betas, _bars(betas)


def _from_one(n_steps: int) -> tuple[Tensor, Tensor]:
    betas = _linear(n_steps)
    return betas, torch.cat([torch.ones(1, dtype=torch.float64), _bars(betas)[:-1]])


SCHEDULE = Exercise(
    "02.1",
    "a thousand small betas leave 4 parts in 100,000 of the signal's variance.",
    _schedule_truth,
    lambda: [(1000,), (200,), (40,)],
    (
        Mistake(
            "not scaled",
            "with fewer steps each must do more: multiply the betas by 1000 / T.",
            _unscaled,
        ),
        Mistake(
            "linear in the root",
            "these betas are linear in their square root (Stable Diffusion's); DDPM's are linear.",
            _linear_in_roots,
        ),
        Mistake(
            "end left out",
            "the last beta, 0.02 times 1000 / T, belongs to the schedule: linspace with T points.",
            _open_ended,
        ),
        Mistake(
            "product of betas",
            "alpha_bar is the product of the alphas, 1 - beta, not of the betas.",
            lambda n: (_linear(n), torch.cumprod(_linear(n), 0)),
        ),
        Mistake(
            "shifted by one",
            "alpha_bar of step 1 is already 1 - beta_1: do not begin with 1.",
            _from_one,
        ),
        Mistake(
            "alphas for alpha_bar",
            "the second table is the running product of the alphas, not the alphas.",
            lambda n: (_linear(n), 1 - _linear(n)),
        ),
        Mistake(
            "sum for product",
            "exp(-sum of betas) is what the product becomes for infinitely small betas.",
            lambda n: (_linear(n), (-_linear(n).cumsum(0)).exp()),
        ),
    ),
)


def _guess(xt: Tensor, t: Tensor) -> Tensor:
    """Stand in for a network: any function of the point and the step that is not symmetric."""
    return torch.tanh(0.7 * xt + 0.1) + 0.01 * t[:, None] * xt.roll(1, dims=1)


def _noised(x0: Tensor, t: Tensor, eps: Tensor, bars: Tensor) -> Tensor:
    kept = bars[t - 1][:, None]
    return kept.sqrt() * x0 + (1 - kept).sqrt() * eps


def _loss(model: Model, x0: Tensor, t: Tensor, eps: Tensor, betas: Tensor) -> Tensor:
    return (eps - model(_noised(x0, t, eps, _bars(betas)), t)).square().sum(1)


def _loss_one_late(model: Model, x0: Tensor, t: Tensor, eps: Tensor, betas: Tensor) -> Tensor:
    bars = torch.cat([_bars(betas), _bars(betas)[-1:]])
    return (eps - model(_noised(x0, t + 1, eps, bars), t)).square().sum(1)


def _loss_without_root(model: Model, x0: Tensor, t: Tensor, eps: Tensor, betas: Tensor) -> Tensor:
    kept = _bars(betas)[t - 1][:, None]
    return (eps - model(kept.sqrt() * x0 + (1 - kept) * eps, t)).square().sum(1)


def _loss_probes() -> Probes:
    t = torch.tensor([1, 2, 17, 50, 99])
    return [(_guess, _normal(k, 5, 2), t, _normal(k + 1, 5, 2), _linear(100)) for k in (0, 2)]


LOSS = Exercise(
    "02.2",
    "Algorithm 1 is one jump, one guess and one squared error; no chain is run in training.",
    _loss,
    _loss_probes,
    (
        Mistake(
            "clean point shown",
            "the network must see the noised x_t, not x_0.",
            lambda f, x0, t, eps, b: (eps - f(x0, t)).square().sum(1),
        ),
        Mistake(
            "one step's alpha",
            "x_t has lost all of the first t steps: use alpha_bar, the product, not alpha_t.",
            lambda f, x0, t, eps, b: (eps - f(_noised(x0, t, eps, 1 - b), t)).square().sum(1),
        ),
        Mistake(
            "index off by one",
            "steps count from 1 and tables from 0: step t stands at index t - 1.",
            _loss_one_late,
        ),
        Mistake(
            "variance for std",
            "1 - alpha_bar is the noise's variance: take its root.",
            _loss_without_root,
        ),
        Mistake(
            "clean point as target",
            "L_simple compares the guess with the noise eps, not with x_0.",
            lambda f, x0, t, eps, b: (x0 - f(_noised(x0, t, eps, _bars(b)), t)).square().sum(1),
        ),
        Mistake(
            "network told t - 1",
            "tell the network the step t itself; only the tables are shifted.",
            lambda f, x0, t, eps, b: (
                (eps - f(_noised(x0, t, eps, _bars(b)), t - 1)).square().sum(1)
            ),
        ),
        Mistake(
            "mean over dimensions",
            "sum the squared error over the dimensions: the bound is in nats for the whole point.",
            lambda *given: _loss(*given) / 2,
        ),
    ),
)


def _step(xt: Tensor, t: int, eps_hat: Tensor, z: Tensor, betas: Tensor) -> Tensor:
    beta, bar = betas[t - 1], _bars(betas)[t - 1]
    mean = (xt - beta / (1 - bar).sqrt() * eps_hat) / (1 - beta).sqrt()
    return mean + beta.sqrt() * z if t > 1 else mean


def _step_tilde(xt: Tensor, t: int, eps_hat: Tensor, z: Tensor, betas: Tensor) -> Tensor:
    if t == 1:
        return _step(xt, t, eps_hat, z, betas)
    bars = _bars(betas)
    tilde = (1 - bars[t - 2]) / (1 - bars[t - 1]) * betas[t - 1]
    return _step(xt, t, eps_hat, 0 * z, betas) + tilde.sqrt() * z


def _step_scaled(
    change: Callable[[Tensor, Tensor], Tensor],
) -> Callable[..., Tensor]:
    """Return a step whose noise has the scale `change`(beta, mean's 1 / sqrt(alpha))."""

    def step(xt: Tensor, t: int, eps_hat: Tensor, z: Tensor, betas: Tensor) -> Tensor:
        still = _step(xt, t, eps_hat, 0 * z, betas)
        return still + (change(betas[t - 1], (1 - betas[t - 1]).rsqrt()) * z if t > 1 else 0 * z)

    return step


def _step_of(
    mean: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
) -> Callable[..., Tensor]:
    """Return a step with another mean, of x_t, eps_hat, beta and alpha_bar."""

    def step(xt: Tensor, t: int, eps_hat: Tensor, z: Tensor, betas: Tensor) -> Tensor:
        beta, bar = betas[t - 1], _bars(betas)[t - 1]
        return mean(xt, eps_hat, beta, bar) + (beta.sqrt() * z if t > 1 else 0 * z)

    return step


def _step_probes() -> Probes:
    return [
        (_normal(t, 4, 2), t, _normal(t + 1, 4, 2), _normal(t + 2, 4, 2), _linear(100))
        for t in (1, 2, 30, 100)
    ]


STEP = Exercise(
    "02.3",
    "Algorithm 2 removes a little of the guessed noise, rescales, and adds fresh noise.",
    _step,
    _step_probes,
    (
        Mistake(
            "noise at the last step",
            "the step to x_0 adds no noise: take z = 0 at t = 1.",
            lambda x, t, e, z, b: _step(x, t, e, 0 * z, b) + b[t - 1].sqrt() * z,
        ),
        Mistake(
            "variance for std",
            "sigma_t^2 is beta_t: the noise is multiplied by its root.",
            _step_scaled(lambda beta, growth: beta),
        ),
        Mistake(
            "noise rescaled",
            "1 / sqrt(alpha_t) multiplies the mean alone, not the fresh noise.",
            _step_scaled(lambda beta, growth: beta.sqrt() * growth),
        ),
        Mistake(
            "beta_tilde",
            "that is the other choice of variance, beta_tilde: here sigma_t^2 is beta_t.",
            _step_tilde,
        ),
        Mistake(
            "root of alpha missing",
            "x_t was scaled by sqrt(alpha_t): divide by the root, not by alpha_t.",
            _step_of(lambda x, e, beta, bar: (x - beta / (1 - bar).sqrt() * e) / (1 - beta)),
        ),
        Mistake(
            "alpha_bar for alpha",
            "one step undoes one step: divide by sqrt(alpha_t), not by sqrt(alpha_bar_t).",
            _step_of(lambda x, e, beta, bar: (x - beta / (1 - bar).sqrt() * e) / bar.sqrt()),
        ),
        Mistake(
            "root of 1 - alpha_bar missing",
            "the guess is multiplied by beta_t / sqrt(1 - alpha_bar_t): yours lacks the root.",
            _step_of(lambda x, e, beta, bar: (x - beta / (1 - bar) * e) / (1 - beta).sqrt()),
        ),
        Mistake(
            "all the noise removed",
            "a step removes beta_t / sqrt(1 - alpha_bar_t) of the guess, not all of it.",
            _step_of(lambda x, e, beta, bar: (x - (1 - bar).sqrt() * e) / (1 - beta).sqrt()),
        ),
        Mistake(
            "noise added for removed",
            "the guessed noise is taken away: mind the sign.",
            _step_of(
                lambda x, e, beta, bar: (x + beta / (1 - bar).sqrt() * e) / (1 - beta).sqrt()
            ),
        ),
    ),
)


def _weight(betas: Tensor) -> Tensor:
    return betas / (2 * (1 - betas) * (1 - _bars(betas)))


WEIGHT = Exercise(
    "02.4",
    "the bound weighs the cleanest step most, a hundred times as much as those in the middle.",
    _weight,
    lambda: [(_linear(1000),), (_linear(50),)],
    (
        Mistake(
            "half missing",
            "a KL of Gaussians of equal variance is |difference of means|^2 / (2 sigma^2).",
            lambda b: 2 * _weight(b),
        ),
        Mistake(
            "not divided by the variance",
            "divide by sigma_t^2 = beta_t: one factor of beta cancels.",
            lambda b: b * _weight(b),
        ),
        Mistake(
            "divided by the variance twice",
            "the two means differ by beta_t times the noise's error: its square is beta_t^2.",
            lambda b: _weight(b) / b,
        ),
        Mistake(
            "alpha_bar for alpha",
            "the mean is divided by sqrt(alpha_t), one step's factor, not by sqrt(alpha_bar_t).",
            lambda b: _weight(b) * (1 - b) / _bars(b),
        ),
        Mistake(
            "alpha for alpha_bar",
            "the noise in x_t has variance 1 - alpha_bar_t, that of all t steps.",
            lambda b: 1 / (2 * (1 - b)),
        ),
        Mistake(
            "root of the noise's variance",
            "beta_t / sqrt(1 - alpha_bar_t) is squared, and so is its root.",
            lambda b: _weight(b) * (1 - _bars(b)).sqrt(),
        ),
    ),
)


def _walk(
    model: Model,
    x: Tensor,
    noises: Tensor,
    betas: Tensor,
    steps: list[int],
    told: int = 0,
    step: Callable[..., Tensor] = _step,
) -> Tensor:
    for t in steps:
        seen = torch.full((len(x),), t + told)
        x = step(x, t, model(x, seen), noises[t - 1], betas)
    return x


def _down(betas: Tensor) -> list[int]:
    return list(range(len(betas), 0, -1))


def _noisy_to_the_end(x: Tensor, t: int, e: Tensor, z: Tensor, b: Tensor) -> Tensor:
    return _step(x, t, e, 0 * z, b) + b[t - 1].sqrt() * z


def _sample_probes() -> Probes:
    betas = _linear(40)[::4]
    return [(_guess, _normal(k, 3, 2), _normal(k + 1, len(betas), 3, 2), betas) for k in (0, 2)]


SAMPLE = Exercise(
    "02.5",
    "the loop runs from T down to 1, asks the same network each time, and ends without noise.",
    lambda model, x, noises, betas: _walk(model, x, noises, betas, _down(betas)),
    _sample_probes,
    (
        Mistake(
            "from 1 to T",
            "sampling begins with noise: run t from T down to 1.",
            lambda f, x, z, b: _walk(f, x, z, b, _down(b)[::-1]),
        ),
        Mistake(
            "noise at the last step",
            "the step to x_0 adds no noise: take z = 0 at t = 1.",
            lambda f, x, z, b: _walk(f, x, z, b, _down(b), step=_noisy_to_the_end),
        ),
        Mistake(
            "network told t - 1",
            "ask the network about the step t at which x_t stands, not about t - 1.",
            lambda f, x, z, b: _walk(f, x, z, b, _down(b), told=-1),
        ),
        Mistake(
            "last step forgotten",
            "the loop includes t = 1: what you return is still x_1.",
            lambda f, x, z, b: _walk(f, x, z, b, _down(b)[:-1]),
        ),
        Mistake(
            "the same noise at every step",
            "each step has noise of its own, noises[t - 1].",
            lambda f, x, z, b: _walk(f, x, z[:1].expand_as(z), b, _down(b)),
        ),
        Mistake(
            "no noise at all",
            "every step but the last adds sqrt(beta_t) times its noise.",
            lambda f, x, z, b: _walk(f, x, 0 * z, b, _down(b)),
        ),
    ),
)


def _pixel_probes() -> Probes:
    levels = torch.tensor([[0, 255, 3], [128, 127, 250], [255, 0, 60]], dtype=torch.float64)
    x = levels / 127.5 - 1
    return [
        (x, x + std * _normal(k, 3, 3), torch.tensor(std, dtype=torch.float64))
        for k, std in ((0, 0.02), (1, 0.004))
    ]


def _log_mass(x: Tensor, mean: Tensor, std: Tensor, half: float, *, tails: bool) -> Tensor:
    """Return log P of a bin of half that width, by erf, (B, D)."""
    above = torch.special.ndtr((x - mean + half) / std)
    below = torch.special.ndtr((x - mean - half) / std)
    if tails:
        above = torch.where(x > 1 - HALF_BIN, 1.0, above)
        below = torch.where(x < -1 + HALF_BIN, 0.0, below)
    return (above - below).log()


PIXELS = Exercise(
    "02.6",
    "a pixel's likelihood is the mass of its bin, so a bound in bits is about real files.",
    lambda x, mean, std: DiscretisedGaussian(mean, std**2).log_prob(x),
    _pixel_probes,
    (
        Mistake(
            "density for mass",
            "a density is not a probability: take the Gaussian's mass between the bin's edges.",
            lambda x, mean, std: Gaussian(mean, std**2).log_prob(x),
        ),
        Mistake(
            "density times width",
            "density times width is the mass only of bins far narrower than std.",
            lambda x, mean, std: Gaussian(mean, std**2).log_prob(x) + 3 * math.log(2 * HALF_BIN),
        ),
        Mistake(
            "closed ends",
            "the bins of 0 and 255 reach to infinity: nothing lies beyond them.",
            lambda x, mean, std: _log_mass(x, mean, std, HALF_BIN, tails=False).sum(1),
        ),
        Mistake(
            "bin twice too wide",
            "two values are 2 / 255 apart, so a bin reaches 1 / 255 to either side.",
            lambda x, mean, std: _log_mass(x, mean, std, 2 * HALF_BIN, tails=True).sum(1),
        ),
        Mistake(
            "variance for std",
            "the argument is a standard deviation: divide by it, not by its square or root.",
            lambda x, mean, std: DiscretisedGaussian(mean, std).log_prob(x),
        ),
        Mistake(
            "mean over dimensions",
            "the pixels are independent: their log-probabilities add up.",
            lambda x, mean, std: DiscretisedGaussian(mean, std**2).log_prob(x) / 3,
        ),
        Mistake(
            "bits for nats",
            "that is in bits: use the natural logarithm.",
            lambda x, mean, std: DiscretisedGaussian(mean, std**2).log_prob(x) / math.log(2),
        ),
    ),
    tolerance=1e-7,
)


EXERCISES = (SCHEDULE, LOSS, STEP, WEIGHT, SAMPLE, PIXELS)
