"""The exercises of notebook 02: DDPM."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from tutorial_lib.exercises import Exercise, Mistake
from tutorial_lib.exercises.probes import Probes, normals
from tutorial_lib.gaussian import HALF_BIN, DiscretisedGaussian, Gaussian
from tutorial_lib.schedule import DiscreteVP

Model = Callable[[Tensor, Tensor], Tensor]  # x_t (B, D) and steps (B,) to a guess of the noise


def _bars(betas: Tensor) -> Tensor:
    return torch.cumprod(1 - betas, 0)


def _linear(n_steps: int) -> Tensor:
    return DiscreteVP.linear(n_steps).betas


def _tables(betas: Tensor) -> tuple[Tensor, Tensor]:
    return betas, _bars(betas)


SCHEDULE = Exercise(
    "02.1",
    "a thousand small betas leave 4 parts in 100,000 of the signal's variance.",
    lambda n_steps: _tables(_linear(n_steps)),
    lambda: [(1000,), (200,), (40,)],
    (
        Mistake(
            "not scaled",
            "with fewer steps each must do more: multiply the betas by 1000 / T.",
            lambda n: _tables(_linear(n) * n / 1000),
        ),
        Mistake(
            "scaled the wrong way",
            "fewer steps need larger betas: the factor is 1000 / T, not T / 1000.",
            lambda n: _tables(_linear(n) * (n / 1000) ** 2),
        ),
        Mistake(
            "linear in the root",
            "these betas are linear in their square root (Stable Diffusion's); DDPM's are linear.",
            lambda n: _tables(
                torch.linspace(0.01, 0.02**0.5, n, dtype=torch.float64) ** 2 * 1000 / n
            ),
        ),
        Mistake(
            "end left out",
            "the last beta, 0.02 times 1000 / T, belongs to the schedule: linspace with T points.",
            lambda n: _tables(_linear(n + 1)[:-1] * (n + 1) / n),
        ),
        Mistake(
            "shifted by one",
            "alpha_bar of step 1 is already 1 - beta_1: do not begin with 1.",
            lambda n: (_linear(n), _bars(_linear(n)) / (1 - _linear(n))),
        ),
        Mistake(
            "alphas for alpha_bar",
            "the second table is the running product of the alphas, not the alphas.",
            lambda n: (_linear(n), 1 - _linear(n)),
        ),
        Mistake(
            "outputs swapped",
            "the betas come first, alpha_bar second: yours are the other way round.",
            lambda n: _tables(_linear(n))[::-1],
        ),
    ),
)


def _guess(xt: Tensor, t: Tensor) -> Tensor:
    """Stand in for a network: any function of the point and the step that is not symmetric."""
    if xt.ndim != 2:
        raise ValueError("the model takes xt of shape (B, D), one point for each row")
    if torch.as_tensor(t).ndim != 1:
        raise ValueError("the model takes t of shape (B,), one step for each row")
    return torch.tanh(0.7 * xt + 0.1) + 0.01 * t[:, None] * xt.roll(1, dims=1)


def _noised(x0: Tensor, eps: Tensor, kept: Tensor) -> Tensor:
    return kept.sqrt() * x0 + (1 - kept).sqrt() * eps


def _loss_of(
    noised: Callable[[Tensor, Tensor, Tensor], Tensor] = _noised,
    table: Callable[[Tensor], Tensor] = _bars,
) -> Callable[..., Tensor]:
    """Return a loss with another x_t, of x_0, eps and alpha_bar (B, 1), or another table."""

    def loss(model: Model, x0: Tensor, t: Tensor, eps: Tensor, betas: Tensor) -> Tensor:
        xt = noised(x0, eps, table(betas)[t - 1][:, None])
        return (eps - model(xt, t)).square().sum(1)

    return loss


_loss = _loss_of()


def _loss_probes() -> Probes:
    t = torch.tensor([1, 2, 17, 50, 99])  # not 100: a table read one row late then still answers
    return [(_guess, normals(k, 5, 2), t, normals(k + 1, 5, 2), _linear(100)) for k in (0, 2)]


LOSS = Exercise(
    "02.2",
    "Algorithm 1 is one jump, one guess and one squared error; no chain is run in training.",
    _loss,
    _loss_probes,
    (
        Mistake(
            "second axis missing",
            "alpha_bar at t is (B,): give it a second axis, [:, None], to multiply (B, D).",
            _loss_of(lambda x0, eps, kept: _noised(x0, eps, kept[:, 0])),
        ),
        Mistake(
            "an axis too many",
            "alpha_bar at t must be (B, 1): one more axis pairs each row with all the others.",
            _loss_of(lambda x0, eps, kept: _noised(x0, eps, kept[:, None])),
        ),
        Mistake(
            "clean point shown",
            "the network must see the noised x_t, not x_0.",
            _loss_of(lambda x0, eps, kept: x0),
        ),
        Mistake(
            "one step's alpha",
            "x_t has lost all of the first t steps: use alpha_bar, the product, not alpha_t.",
            _loss_of(table=lambda b: 1 - b),
        ),
        Mistake(
            "index off by one",
            "steps count from 1 and tables from 0: step t stands at index t - 1.",
            _loss_of(table=lambda b: _bars(b).roll(-1)),
        ),
        Mistake(
            "variance for std",
            "1 - alpha_bar is the noise's variance: take its root.",
            _loss_of(lambda x0, eps, kept: kept.sqrt() * x0 + (1 - kept) * eps),
        ),
        Mistake(
            "network told t - 1",
            "tell the network the step t itself; only the tables are shifted.",
            lambda f, *given: _loss(lambda x, t: f(x, t - 1), *given),
        ),
        Mistake(
            "mean over dimensions",
            "sum the squared error over the dimensions: the bound is in nats for the whole point.",
            lambda *given: _loss(*given) / 2,
        ),
    ),
)


def _mean(x: Tensor, e: Tensor, beta: Tensor, bar: Tensor) -> Tensor:
    return (x - beta / (1 - bar).sqrt() * e) / (1 - beta).sqrt()


def _step_of(
    mean: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] = _mean,
    std: Callable[[Tensor], Tensor] = torch.sqrt,
    late: tuple[int, int] = (0, 0),
) -> Callable[..., Tensor]:
    """Return a step with another mean or noise, or with beta and alpha_bar from later rows."""

    def step(xt: Tensor, t: int, eps_hat: Tensor, z: Tensor, betas: Tensor) -> Tensor:
        beta, bar = betas[t - 1 + late[0]], _bars(betas)[t - 1 + late[1]]
        return mean(xt, eps_hat, beta, bar) + (std(beta) * z if t > 1 else 0 * z)

    return step


_step = _step_of()


def _step_tilde(xt: Tensor, t: int, eps_hat: Tensor, z: Tensor, betas: Tensor) -> Tensor:
    ratio = (1 - _bars(betas)[t - 2]) / (1 - _bars(betas)[t - 1])
    return _step(xt, t, eps_hat, ratio.sqrt() * z, betas)


def _step_probes() -> Probes:
    return [
        (normals(t, 4, 2), t, normals(t + 1, 4, 2), normals(t + 2, 4, 2), _linear(100))
        for t in (1, 2, 30, 99)  # not 100: see _loss_probes
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
            "no noise at all",
            "every step but the last adds fresh noise, sqrt(beta_t) z.",
            _step_of(std=torch.zeros_like),
        ),
        Mistake(
            "variance for std",
            "sigma_t^2 is beta_t: the noise is multiplied by its root.",
            _step_of(std=lambda beta: beta),
        ),
        Mistake(
            "noise rescaled",
            "1 / sqrt(alpha_t) multiplies the mean alone, not the fresh noise.",
            _step_of(std=lambda beta: (beta / (1 - beta)).sqrt()),
        ),
        Mistake(
            "beta_tilde",
            "that is the other choice of variance, beta_tilde: here sigma_t^2 is beta_t.",
            _step_tilde,
        ),
        Mistake(
            "all tables one row late",
            "steps count from 1 and tables from 0: read every table at t - 1, not at t.",
            _step_of(late=(1, 1)),
        ),
        Mistake(
            "alpha_bar one row late",
            "your alpha_bar is that of step t + 1: alpha_bar_t stands at index t - 1.",
            _step_of(late=(0, 1)),
        ),
        Mistake(
            "alpha_bar one row early",
            "your alpha_bar is that of step t - 1: alpha_bar_t stands at index t - 1.",
            _step_of(late=(0, -1)),
        ),
        Mistake(
            "alpha_bar_0 at the first step",
            "where alpha_bar_0 = 1 stands in front, alpha_bar_t is at index t, not at t - 1.",
            _step_of(lambda x, e, beta, bar: _mean(x, e, beta, bar / (1 - beta))),
        ),
        Mistake(
            "beta one row late",
            "your beta is that of step t + 1: beta_t stands at index t - 1.",
            _step_of(late=(1, 0)),
        ),
        Mistake(
            "not rescaled",
            "step t shrank x by sqrt(alpha_t): divide the mean by it.",
            _step_of(lambda x, e, beta, bar: x - beta / (1 - bar).sqrt() * e),
        ),
        Mistake(
            "root of alpha missing",
            "x_t was scaled by sqrt(alpha_t): divide by the root, not by alpha_t.",
            _step_of(lambda x, e, beta, bar: _mean(x, e, beta, bar) / (1 - beta).sqrt()),
        ),
        Mistake(
            "root of 1 - alpha_bar missing",
            "the guess is multiplied by beta_t / sqrt(1 - alpha_bar_t): yours lacks the root.",
            _step_of(lambda x, e, beta, bar: (x - beta / (1 - bar) * e) / (1 - beta).sqrt()),
        ),
        Mistake(
            "root of beta removed",
            "eps_hat guesses the noise of all t steps: less than sqrt(beta_t) of it is step t's.",
            _step_of(lambda x, e, beta, bar: (x - beta.sqrt() * e) / (1 - beta).sqrt()),
        ),
        Mistake(
            "all the noise removed",
            "a step removes beta_t / sqrt(1 - alpha_bar_t) of the guess, not all of it.",
            _step_of(lambda x, e, beta, bar: (x - (1 - bar).sqrt() * e) / (1 - beta).sqrt()),
        ),
    ),
)


def _stride(xt: Tensor, eps_hat: Tensor, s: int, t: int, betas: Tensor) -> Tensor:
    """Return the mean of x_s given x_t and the x_0 that eps_hat implies, by the library."""
    chain, end = DiscreteVP(betas), t / len(betas)
    x0 = (xt - chain.sigma(end) * eps_hat) / chain.alpha(end)
    return chain.posterior(x0, xt, s / len(betas), end).mean


def _share(now: Tensor, then: Tensor, betas: Tensor) -> Tensor:
    return 1 - now / then


def _ddim(now: Tensor, then: Tensor, betas: Tensor) -> Tensor:
    kept = (now / then * (1 - then)).sqrt()
    return ((1 - now).sqrt() - kept) * (1 - now).sqrt()


def _stride_of(taken: Callable[..., Tensor] = _share, power: float = 0.5) -> Callable[..., Tensor]:
    """Return a stride with `taken`(alpha_bar_t, alpha_bar_s, betas) in place of 1 - ratio."""

    def stride(xt: Tensor, eps_hat: Tensor, s: int, t: int, betas: Tensor) -> Tensor:
        now, then = ((1 - betas[:n]).prod() for n in (t, s))
        removed = taken(now, then, betas[s:t]) / (1 - now).sqrt()
        return (xt - removed * eps_hat) / (now / then) ** power

    return stride


def _stride_probes() -> Probes:
    pairs = ((0, 1), (0, 40), (29, 30), (10, 60), (3, 99))
    return [(normals(t, 4, 2), normals(t + 1, 4, 2), s, t, _linear(100)) for s, t in pairs]


STRIDE = Exercise(
    "02.4",
    "one step back may undo many: it removes the share of the noise that all of them brought.",
    _stride,
    _stride_probes,
    (
        Mistake(
            "alpha_bar_0 forgotten",
            "alpha_bar_0 = 1 is in no table: at s = 0 the index s - 1 = -1 reads the last step.",
            lambda x, e, s, t, b: _stride_of()(x, e, s or len(b), t, b),
        ),
        Mistake(
            "one step's beta",
            "all of the steps s + 1 to t are undone: 1 - alpha_bar_t / alpha_bar_s, not beta_t.",
            _stride_of(lambda now, then, betas: betas[-1]),
        ),
        Mistake(
            "sum of betas",
            "each step shrinks the noise of those before: 1 - the product of alphas, not the sum.",
            _stride_of(lambda now, then, betas: betas.sum()),
        ),
        Mistake(
            "difference of alpha_bars",
            "the noise of the first s steps has shrunk by t: 1 - a ratio, not a difference.",
            _stride_of(lambda now, then, betas: then - now),
        ),
        Mistake(
            "all the noise removed",
            "only the share of steps s + 1 to t goes: x_s keeps the noise of the first s steps.",
            _stride_of(lambda now, then, betas: 1 - now),
        ),
        Mistake(
            "the rest kept as guessed",
            "that puts all of the guess back, as notebook 03 will: on average a share remains.",
            _stride_of(_ddim),
        ),
        Mistake(
            "root of 1 - alpha_bar missing",
            "the share is of sqrt(1 - alpha_bar_t) eps_hat: its root leaves a root below.",
            _stride_of(lambda *of: _share(*of) / (1 - of[0]).sqrt()),
        ),
        Mistake(
            "not rescaled",
            "the steps shrank x_s by sqrt(alpha_bar_t / alpha_bar_s): divide by it.",
            _stride_of(power=0),
        ),
    ),
)


def _walk(model: Model, x: Tensor, noises: Tensor, betas: Tensor, *steps: int) -> Tensor:
    for t in steps or range(len(betas), 0, -1):
        x = _step(x, t, model(x, torch.full((len(x),), t)), noises[t - 1], betas)
    return x


def _sample_probes() -> Probes:
    betas = _linear(40)[::4]
    return [(_guess, normals(k, 3, 2), normals(k + 1, len(betas), 3, 2), betas) for k in (0, 2)]


SAMPLE = Exercise(
    "02.5",
    "the loop runs from T down to 1, asks the same network each time, and ends without noise.",
    _walk,
    _sample_probes,
    (
        Mistake(
            "from 1 to T",
            "sampling begins with noise: run t from T down to 1.",
            lambda f, x, z, b: _walk(f, x, z, b, *range(1, len(b) + 1)),
        ),
        Mistake(
            "index off by one",
            "step t's noise, beta and alpha_bar stand at index t - 1: index T is beyond the end.",
            lambda f, x, z, b: z[len(b)],
        ),
        Mistake(
            "noises in order of use",
            "noises are numbered by step, not in order of use: step t takes noises[t - 1].",
            lambda f, x, z, b: _walk(f, x, z.flip(0), b),
        ),
        Mistake(
            "first step forgotten",
            "the loop begins at t = T: range(T, 0, -1), not range(T - 1, 0, -1).",
            lambda f, x, z, b: _walk(f, x, z, b, *range(len(b) - 1, 0, -1)),
        ),
        Mistake(
            "noise at the last step",
            "the step to x_0 adds no noise: take z = 0 at t = 1.",
            lambda f, x, z, b: _walk(f, x, z, b) + b[0].sqrt() * z[0],
        ),
        Mistake(
            "network told t - 1",
            "ask the network about the step t at which x_t stands, not about t - 1.",
            lambda f, *given: _walk(lambda x, t: f(x, t - 1), *given),
        ),
        Mistake(
            "last step forgotten",
            "the loop includes t = 1: what you return is still x_1.",
            lambda f, x, z, b: _walk(f, x, z, b, *range(len(b), 1, -1)),
        ),
    ),
)


def _pixel_probes() -> Probes:
    """Return means so close to x that even the square of std divides without an underflow."""
    levels = torch.tensor([[0, 255, 3], [128, 127, 250], [255, 0, 60]], dtype=torch.float64)
    x = levels / 127.5 - 1
    return [
        (x, x + reach * normals(k, 3, 3).tanh(), torch.tensor(std, dtype=torch.float64))
        for k, std, reach in ((0, 0.05, 0.012), (1, 0.005, 0.8 * HALF_BIN))
    ]


def _log_mass(
    half: float = HALF_BIN, power: float = 1, low: bool = True, high: bool = True
) -> Callable[..., Tensor]:
    """Return log P of bins of that half width, with std ** power, with the ends open as told."""

    def log_mass(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        above = torch.special.ndtr((x - mean + half) / std**power)
        below = torch.special.ndtr((x - mean - half) / std**power)
        above = torch.where((x > 1 - HALF_BIN) & high, 1.0, above)
        below = torch.where((x < -1 + HALF_BIN) & low, 0.0, below)
        return (above - below).log().sum(1)

    return log_mass


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
            _log_mass(low=False, high=False),
        ),
        Mistake(
            "lower end closed",
            "the bin of 0 is open too: it reaches to minus infinity, and the mass below it is 0.",
            _log_mass(low=False),
        ),
        Mistake(
            "upper end closed",
            "the bin of 255 is open too: it reaches to infinity, and the mass up to its end is 1.",
            _log_mass(high=False),
        ),
        Mistake(
            "bin twice too wide",
            "two values are 2 / 255 apart, so a bin reaches 1 / 255 to either side.",
            _log_mass(2 * HALF_BIN),
        ),
        Mistake(
            "variance for std",
            "the argument is a standard deviation: divide by it, not by its square.",
            _log_mass(power=2),
        ),
        Mistake(
            "bits for nats",
            "that is in bits: use the natural logarithm.",
            lambda x, mean, std: DiscretisedGaussian(mean, std**2).log_prob(x) / math.log(2),
        ),
    ),
)


EXERCISES = (SCHEDULE, LOSS, STEP, STRIDE, SAMPLE, PIXELS)
