"""The exercises of notebook 03: DDIM."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize, pad

from tutorial_lib import samplers
from tutorial_lib.exercises import Exercise, Mistake
from tutorial_lib.exercises.probes import Probes, normals
from tutorial_lib.gaussian import Gaussian
from tutorial_lib.schedule import DiscreteVP

Pair = tuple[Tensor, Tensor]


# The paper (appendix D.2) takes floor(c i) and floor(c i^2) with a c that brings the last step
# "close to T"; its code counts from 0 and ends at T - T // n, or at 0.8 T. Here the last is T, as
# in `uniform_times` and `quadratic_times`, which need no floor: our schedules know every time.
# Where T < n^2, as for 50 quadratic steps of 1000, floor gives a 0 and may give a step twice.


def _floored(n_steps: int, n: int, first: int = 1) -> Pair:
    i = torch.arange(first, first + n)
    return n_steps * i // n, n_steps * i**2 // n**2


def _each(change: Callable[[Tensor], Tensor], pair: Pair) -> Pair:
    return change(pair[0]), change(pair[1])


def _steps_of(pair: Pair) -> Pair:
    return _each(lambda tau: tau.long().clamp(min=1).unique(), pair)


def _sub_sequence(n_steps: int, n: int) -> Pair:
    return _steps_of(_floored(n_steps, n))


def _rounded(n_steps: int, n: int) -> Pair:
    shares = torch.arange(1, n + 1, dtype=torch.float64) / n
    return _steps_of(((n_steps * shares).round(), (n_steps * shares**2).round()))


def _authors(n_steps: int, n: int) -> Pair:
    roots = torch.linspace(0, (0.8 * n_steps) ** 0.5, n, dtype=torch.float64)
    return torch.arange(0, n_steps, n_steps // n), (roots**2).long()


SUB_SEQUENCE = Exercise(
    "03.1",
    "a network trained on T steps may be sampled along any few of them that end at T.",
    _sub_sequence,
    lambda: [(30, 10), (64, 8), (100, 7)],  # where every way to write the floor rounds alike
    (
        Mistake(
            "i from 0",
            "let i run from 1 to n: from 0 to n - 1 the last step is short of T.",
            lambda n_steps, n: _floored(n_steps, n, first=0),
        ),
        Mistake(
            "i from 0, and 1 added",
            "1 added to i from 0 starts at step 1 and stops short of T: let i run from 1 to n.",
            lambda n_steps, n: _each(lambda tau: (tau + 1).unique(), _floored(n_steps, n, 0)),
        ),
        Mistake(
            "floored stride",
            "take the floor last: i strides of T // n stop short of T unless n divides T.",
            lambda T, n: (T // n * torch.arange(1, n + 1), _sub_sequence(T, n)[1]),
        ),
        Mistake(
            "counted from 0",
            "steps count from 1, so the last is T, not T - 1.",
            lambda n_steps, n: _each(lambda tau: tau - 1, _sub_sequence(n_steps, n)),
        ),
        Mistake(
            "0 listed",
            "leave 0 out of tau: it is where the last jump lands, not where a jump starts.",
            lambda n_steps, n: _each(lambda tau: pad(tau, (1, 0)), _floored(n_steps, n)),
        ),
        Mistake(
            "falling",
            "return tau in rising order: the sampler turns it round.",
            lambda n_steps, n: _each(lambda tau: tau.flip(0), _sub_sequence(n_steps, n)),
        ),
        Mistake(
            "floor to 0",
            "where T < n^2 the floor of the first quadratic step is 0: raise it to 1.",
            _floored,
        ),
        Mistake(
            "a step twice",
            "a step that stands in tau twice asks the network for nothing: keep each one once.",
            lambda n_steps, n: _each(lambda tau: tau.clamp(min=1), _floored(n_steps, n)),
        ),
        Mistake("rounded", "round down, as the paper's floor does, not to nearest.", _rounded),
        Mistake(
            "the authors' code",
            "the authors' code counts from 0 and stops at 0.8 T: here the last step is T.",
            _authors,
        ),
    ),
)


def _ends(bars: Tensor, tau: Tensor, clean: float = 1.0) -> Pair:
    """Return alpha_bar where each jump lands and where it starts; it lands last on x_0, at 1."""
    start = bars[tau - 1]
    return torch.cat([bars.new_tensor([clean]), start[:-1]]), start


def _before(bars: Tensor, tau: Tensor) -> Tensor:
    """Return alpha_bar one step, not one jump, before each of `tau`."""
    return torch.cat([bars.new_ones(1), bars])[tau - 1]


def _eta_times(variance: Callable[..., Tensor], ends: Callable = _ends) -> Callable:
    return lambda bars, tau, eta: eta * variance(*ends(bars, tau)).sqrt()


def _tilde(bar_s: Tensor, bar_t: Tensor) -> Tensor:
    return (1 - bar_s) / (1 - bar_t) * (1 - bar_t / bar_s)


_sigma = _eta_times(_tilde)


def _sigma_probes() -> Probes:
    tau = torch.tensor([4, 20, 57, 90])  # short of T, where an index off by one would raise
    bars = torch.cumprod(1 - DiscreteVP.linear(100).betas, 0)
    return [(bars, tau, 1.0), (bars, tau, 0.4)]


SIGMA = Exercise(
    "03.2",
    "one dial leads from DDIM, eta = 0, to DDPM's beta_tilde, eta = 1, over any stride.",
    _sigma,
    _sigma_probes,
    (
        Mistake(
            "step for jump",
            "a jump lands on tau_{i-1}, not on tau_i - 1: take its alpha_bar.",
            _eta_times(_tilde, lambda bars, tau: (_before(bars, tau), bars[tau - 1])),
        ),
        Mistake(
            "beta_t for the jump's",
            "1 - alpha_bar_t / alpha_bar_s spans the whole jump; beta_t is one step's.",
            _eta_times(
                lambda bar_s, bar_t, bar: (1 - bar_s) / (1 - bar_t) * (1 - bar_t / bar),
                lambda bars, tau: (*_ends(bars, tau), _before(bars, tau)),
            ),
        ),
        Mistake(
            "index off by one",
            "steps count from 1 and tables from 0: step t stands at index t - 1.",
            _eta_times(_tilde, lambda bars, tau: _ends(bars, tau + 1)),
        ),
        Mistake(
            "variance for std",
            "that is the variance: eq. 16 takes the root of both factors.",
            lambda bars, tau, eta: eta * _tilde(*_ends(bars, tau)),
        ),
        Mistake(
            "eta under the root",
            "eta multiplies the standard deviation: keep it outside the root.",
            lambda bars, tau, eta: eta**0.5 * _sigma(bars, tau, 1.0),
        ),
        Mistake(
            "sigma-hat",
            "the factor (1 - alpha_bar_s) / (1 - alpha_bar_t) is missing: that is sigma-hat.",
            _eta_times(lambda bar_s, bar_t: 1 - bar_t / bar_s),
        ),
        Mistake(
            "last jump to step 1",
            "the last jump lands on x_0, where alpha_bar is 1, not on step 1.",
            _eta_times(_tilde, lambda bars, tau: _ends(bars, tau, float(bars[0]))),
        ),
        Mistake(
            "last jump left out",
            "one sigma for each of tau: the jump from tau_1 to x_0 has one too, and it is 0.",
            lambda bars, tau, eta: _sigma(bars, tau, eta)[1:],
        ),
    ),
)


def _clean(xt: Tensor, eps_hat: Tensor, bar_t: Tensor) -> Tensor:
    return (xt - (1 - bar_t).sqrt() * eps_hat) / bar_t.sqrt()


def _ddim_step(
    xt: Tensor, eps_hat: Tensor, z: Tensor, bar_t: Tensor, bar_s: Tensor, sigma: Tensor
) -> Tensor:
    along = (1 - bar_s - sigma**2).sqrt()
    return bar_s.sqrt() * _clean(xt, eps_hat, bar_t) + along * eps_hat + sigma * z


def _along(share: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """Return a step whose direction has another weight, of alpha_bar_t, alpha_bar_s and sigma."""
    return lambda xt, e, z, t, s, sigma: (
        s.sqrt() * _clean(xt, e, t) + share(t, s, sigma) * e + sigma * z
    )


def _towards(clean: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """Return a step with another first term, of x_t, eps_hat, alpha_bar_t and alpha_bar_s."""
    return lambda xt, e, z, t, s, sigma: (
        clean(xt, e, t, s) + (1 - s - sigma**2).sqrt() * e + sigma * z
    )


def _jumps(n: int, *jumps: tuple[float, ...]) -> Probes:
    levels = torch.tensor(jumps, dtype=torch.float64)
    return [(*normals(k, n, 4, 2), *jump) for k, jump in enumerate(levels)]


DDIM_STEP = Exercise(
    "03.3",
    "fresh noise takes its share from the old, so x_s has the right noise whatever sigma is.",
    _ddim_step,
    lambda: _jumps(3, (0.2, 0.5, 0.3), (0.05, 0.9, 0.08), (0.7, 0.8, 0.0), (0.9, 1.0, 0.0)),
    (
        Mistake(
            "noise counted twice",
            "subtract sigma^2 under the direction's root, or x_s holds too much noise.",
            _along(lambda t, s, sigma: (1 - s).sqrt()),
        ),
        Mistake(
            "sigma for sigma^2",
            "sigma is a standard deviation: subtract its square from 1 - alpha_bar_s.",
            _along(lambda t, s, sigma: (1 - s - sigma).sqrt()),
        ),
        Mistake(
            "root of the direction missing",
            "the direction's weight is the root of 1 - alpha_bar_s - sigma^2.",
            _along(lambda t, s, sigma: 1 - s - sigma**2),
        ),
        Mistake(
            "no roots at all",
            "alpha_bar is a squared factor: signal and noise are weighted with roots.",
            lambda xt, e, z, t, s, sigma: (
                s * (xt - (1 - t) * e) / t + (1 - s - sigma**2) * e + sigma * z
            ),
        ),
        Mistake(
            "direction of x_t",
            "the direction is a part of x_s: its weight needs 1 - alpha_bar_s, not alpha_bar_t.",
            _along(lambda t, s, sigma: (1 - t - sigma**2).sqrt()),
        ),
        Mistake(
            "variance for std",
            "the fresh noise z is multiplied by sigma itself, not by its square.",
            lambda xt, e, z, t, s, sigma: _ddim_step(xt, e, 0 * z, t, s, sigma) + sigma**2 * z,
        ),
        Mistake(
            "x_0 still shrunk",
            "the predicted x_0 is divided by sqrt(alpha_bar_t).",
            _towards(lambda xt, e, t, s: s.sqrt() * (xt - (1 - t).sqrt() * e)),
        ),
        Mistake(
            "noise without its root",
            "x_t holds sqrt(1 - alpha_bar_t) eps: take the root before you subtract it.",
            _towards(lambda xt, e, t, s: s.sqrt() * (xt - (1 - t) * e) / t.sqrt()),
        ),
        Mistake(
            "x_0 clipped",
            "eq. 12 does not clip the predicted x_0: that is a default of diffusers, for images.",
            _towards(lambda xt, e, t, s: s.sqrt() * _clean(xt, e, t).clamp(-1, 1)),
        ),
        Mistake(
            "x_0 not shrunk again",
            "x_s holds sqrt(alpha_bar_s) x_0: scale the predicted x_0.",
            _towards(lambda xt, e, t, s: _clean(xt, e, t)),
        ),
        Mistake(
            "ends swapped",
            "alpha_bar_t belongs to the point that you have, alpha_bar_s to the one you make.",
            lambda xt, e, z, t, s, sigma: _ddim_step(xt, e, z, s, t, sigma),
        ),
    ),
)


def _encode_step(xs: Tensor, eps_hat: Tensor, bar_s: Tensor, bar_t: Tensor) -> Tensor:
    """Take the step of `ddim` without noise the other way: its start is now the cleaner end."""
    return _ddim_step(xs, eps_hat, 0 * xs, bar_s, bar_t, 0 * bar_s)


def _ode_step(rise: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """Return a step of x / sqrt(alpha_bar) by eps_hat times `rise`, scaled back (eq. 13-14)."""
    return lambda xs, e, s, t: t.sqrt() * (xs / s.sqrt() + rise(1 / s - 1, 1 / t - 1) * e)


ENCODE_STEP = Exercise(
    "03.4",
    "encoding is the sampler's step towards more noise: both are Euler steps of one ODE.",
    _encode_step,
    lambda: _jumps(2, (0.99, 0.9), (0.5, 0.3), (0.8, 0.1)),
    (
        Mistake(
            "fresh noise",
            "eps_hat is the noise that x_s already holds: move along it, do not add it anew.",
            lambda xs, e, s, t: (t / s).sqrt() * xs + (1 - t / s).sqrt() * e,
        ),
        Mistake(
            "old noise not removed",
            "take sqrt(1 - alpha_bar_s) eps_hat out before you put the new level in.",
            lambda xs, e, s, t: (t / s).sqrt() * xs + (1 - t).sqrt() * e,
        ),
        Mistake(
            "noise kept",
            "noise rises as signal falls: give x_t the noise level of alpha_bar_t.",
            lambda xs, e, s, t: t.sqrt() * _clean(xs, e, s) + (1 - s).sqrt() * e,
        ),
        Mistake(
            "the sampler's step",
            "that walks from t to s: x_s is the start here, and x_t what you make.",
            lambda xs, e, s, t: _encode_step(xs, e, t, s),
        ),
        Mistake(
            "left rescaled",
            "that is x_t / sqrt(alpha_bar_t), the ODE's variable: multiply by sqrt(alpha_bar_t).",
            lambda xs, e, s, t: _encode_step(xs, e, s, t) / t.sqrt(),
        ),
        Mistake(
            "never rescaled",
            "the ODE moves x / sqrt(alpha_bar): divide x_s by its root, step, and multiply back.",
            lambda xs, e, s, t: xs + ((1 / t - 1).sqrt() - (1 / s - 1).sqrt()) * e,
        ),
        Mistake(
            "noise of x for that of x-bar",
            "x / sqrt(alpha_bar) holds noise of sqrt(1 / alpha_bar - 1): divide by the root too.",
            lambda xs, e, s, t: t.sqrt() * (xs / s.sqrt() + ((1 - t).sqrt() - (1 - s).sqrt()) * e),
        ),
        Mistake(
            "Euler in sigma^2",
            "that is Euler's step in sigma^2, the probability flow's clock: DDIM steps in sigma.",
            _ode_step(lambda noise_s, noise_t: (noise_t - noise_s) / (2 * noise_s.sqrt())),
        ),
        Mistake(
            "variances in the ODE",
            "the ODE's clock is sqrt(1 / alpha_bar - 1): take the roots, then the difference.",
            _ode_step(lambda noise_s, noise_t: noise_t - noise_s),
        ),
        Mistake(
            "sign of the step",
            "towards noise the ODE's clock rises: the factor of eps_hat is positive.",
            _ode_step(lambda noise_s, noise_t: noise_s.sqrt() - noise_t.sqrt()),
        ),
    ),
)


def _turned(angle: Tensor, a: Tensor, b: Tensor, share: float) -> Tensor:
    return (((1 - share) * angle).sin() * a + (share * angle).sin() * b) / angle.sin()


def _angle(a: Tensor, b: Tensor) -> Tensor:
    return cosine_similarity(a, b, dim=1).acos()[:, None]


SLERP = Exercise(
    "03.5",
    "on a great circle noise keeps its norm; a straight line cuts through where no noise lies.",
    samplers.slerp,
    # as many rows as columns, so that a second axis forgotten does not raise
    lambda: [(*normals(k, 2, 3, 3), share) for k, share in enumerate((0.5, 0.2))],
    (
        Mistake(
            "straight line",
            "that is linear interpolation, which shortens noise half way: weigh with sines.",
            lambda a, b, share: torch.lerp(a, b, share),
        ),
        Mistake(
            "roots of the shares",
            "roots of shares keep norms at right angles alone: use sines of shares of the angle.",
            lambda a, b, share: (1 - share) ** 0.5 * a + share**0.5 * b,
        ),
        Mistake(
            "straight line made longer",
            "that keeps the mean norm by a factor of the shares: weigh each by its sine instead.",
            lambda a, b, share: torch.lerp(a, b, share) / (share**2 + (1 - share) ** 2) ** 0.5,
        ),
        Mistake(
            "norms lost",
            "unit vectors are for the angle alone: mix a and b themselves, with their norms.",
            lambda a, b, share: _turned(_angle(a, b), normalize(a), normalize(b), share),
        ),
        Mistake(
            "one angle for the batch",
            "every row has an angle of its own: sum over axis 1 alone.",
            lambda a, b, share: _turned(
                ((a * b).sum() / (a.norm() * b.norm())).acos(), a, b, share
            ),
        ),
        Mistake(
            "dot product for cosine",
            "divide the dot product by both norms before acos.",
            lambda a, b, share: _turned((a * b).sum(1, keepdim=True).acos(), a, b, share),
        ),
        Mistake(
            "sine of the whole missing",
            "divide both sines by the sine of the whole angle: share = 0 must give a.",
            lambda a, b, share: samplers.slerp(a, b, share) * _angle(a, b).sin(),
        ),
        Mistake(
            "ends swapped",
            "share is the way gone from a: share = 0 must give a.",
            lambda a, b, share: samplers.slerp(b, a, share),
        ),
        Mistake(
            "no second axis",
            "one weight a row: give the angle a second axis, [:, None].",
            lambda a, b, share: _turned(_angle(a, b)[:, 0], a, b, share),
        ),
    ),
)


# The mean of q_sigma(x_{t-1} | x_t, x_0) holds c_t x_0, and an error in eps is one in x_0 of
# sqrt(1 / ab_t - 1) times its size: gamma_t = c_t^2 (1 / ab_t - 1) / (2 sigma_t^2). Appendix B
# has 1 / (2 d sigma_t^2 ab_t): no c_t^2, no 1 - ab_t, and a 1 / d too many. Theorem 1 stands, for
# gamma_t > 0: c_t = 0 needs sigma_t^2 = 1 - ab_{t-1} / ab_t < 0. Step 1 is left out: there the
# paper draws from N(x_0's guess, sigma_1^2 I), and c_1 = 1.


def _pull(bars: Tensor, sigmas: Tensor) -> Tensor:
    """Return c_t, the mean's whole dependence on x_0, for t = 2 .. T."""
    before, now, variance = bars[:-1], bars[1:], sigmas[1:] ** 2
    return before.sqrt() - (1 - before - variance).sqrt() * (now / (1 - now)).sqrt()


def _gamma(bars: Tensor, sigmas: Tensor) -> Tensor:
    """Go the long way: the KL of two steps from x_t = 0 whose eps differ by 1."""
    before, now, std = bars[:-1], bars[1:], sigmas[1:]
    zero = torch.zeros_like(now)
    q, p = (
        Gaussian(_ddim_step(zero, eps, zero, now, before, std), std**2) for eps in (zero, zero + 1)
    )
    return q.kl(p)


def _priced(cost: Callable[[Tensor, Tensor], Tensor], pull: Callable = _pull) -> Callable:
    """Return weights `cost`(c_t, 1 / alpha_bar_t - 1) / (2 sigma_t^2)."""
    return lambda bars, sigmas: cost(pull(bars, sigmas), 1 / bars[1:] - 1) / (2 * sigmas[1:] ** 2)


def _ddpm_weight(bars: Tensor, sigmas: Tensor) -> Tensor:
    beta = 1 - bars[1:] / bars[:-1]
    return beta**2 / (2 * sigmas[1:] ** 2 * (1 - beta) * (1 - bars[1:]))


def _gamma_probes() -> Probes:
    bars = torch.tensor([0.95, 0.8, 0.5, 0.3, 0.1], dtype=torch.float64)
    return [(bars, _sigma(bars, torch.arange(1, 6), eta)) for eta in (0.9, 0.5)]


GAMMA = Exercise(
    "03.6",
    "each sigma only weighs the same squared errors anew, so one network serves all of them.",
    _gamma,
    _gamma_probes,
    (
        Mistake(
            "the paper's constant",
            "the paper's 1 / (2 sigma^2 alpha_bar) drops two factors: work out both means.",
            lambda bars, sigmas: 1 / (2 * sigmas[1:] ** 2 * bars[1:]),
        ),
        Mistake(
            "sigmas of the step before",
            "step t has sigma_t, at index t - 1: leave out the first sigma, not the last.",
            lambda bars, sigmas: _priced(lambda c, noise: c**2 * noise)(bars, sigmas.roll(1)),
        ),
        Mistake(
            "x_0's error alone",
            "an error in x_0 moves the mean by c_t times it: multiply by c_t^2.",
            _priced(lambda pull, noise: noise),
        ),
        Mistake(
            "weight of x_0",
            "that weighs an error in x_0: one in eps is sqrt(1 / alpha_bar_t - 1) times as large.",
            _priced(lambda pull, noise: pull**2),
        ),
        Mistake(
            "direction forgotten",
            "x_0 stands in the direction too: c_t is the difference of two terms.",
            lambda bars, sigmas: bars[:-1] * (1 / bars[1:] - 1) / (2 * sigmas[1:] ** 2),
        ),
        Mistake(
            "sigma not subtracted",
            "the direction's weight is the root of 1 - alpha_bar_{t-1} - sigma_t^2.",
            _priced(lambda pull, noise: pull**2 * noise, lambda bars, sd: _pull(bars, 0 * sd)),
        ),
        Mistake(
            "half missing",
            "a KL of Gaussians of equal variance is |difference of means|^2 / (2 sigma^2).",
            lambda bars, sigmas: 2 * _gamma(bars, sigmas),
        ),
        Mistake(
            "DDPM's weight",
            "that is DDPM's weight, right at eta = 1 alone: here the mean changes with sigma.",
            _ddpm_weight,
        ),
    ),
)


EXERCISES = (SUB_SEQUENCE, SIGMA, DDIM_STEP, ENCODE_STEP, SLERP, GAMMA)
