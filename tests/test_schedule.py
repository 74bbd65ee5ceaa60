"""Every schedule against its closed form in 50 digits, and against the numbers in the papers."""

import math

import mpmath
import pytest
import torch
from exact_levels import LEVELS, alpha_bars, conditioned, ddpm_betas, iddpm_betas, levels
from mpmath import mpf
from truths import SCHEDULES, every_schedule, normal, relative, variants

from tutorial_lib.gaussian import Gaussian
from tutorial_lib.schedule import (
    VE,
    CosineVP,
    DiscreteVP,
    LinearVP,
    uniform_times,
)

BAR = 1e-11  # rounding t itself costs up to 8e-12: the cosine's alpha is that steep at t = 1
EARLY = torch.logspace(-9, -3, 7, dtype=torch.float64)
TIMES = torch.cat([torch.linspace(0.0015, 0.9995, 21), torch.ones(1)]).double()
STEPS = torch.arange(1001, dtype=torch.float64) / 1000
DDPM = SCHEDULES["discrete linear"]


def posterior_error(posterior, exact, s, t):
    """Largest relative error of the factors on x_t and x_0 and of the variance."""
    x0 = torch.tensor([[0.0, 1.0]], dtype=torch.float64).expand(len(t), 2)
    found = posterior(x0, 1 - x0, s, t)  # two unit points read off the two factors
    got = (found.mean[:, 0], found.mean[:, 1], found.variance.expand(-1, 2)[:, 0])
    return max(map(relative, got, zip(*exact, strict=True)))


def ddpm_posterior(betas):
    """DDPM's eq. 6-7 for n = 1 .. T, in 50 digits."""
    bars = alpha_bars(betas)
    for before, bar, beta in zip(bars, bars[1:], map(mpf, betas), strict=False):
        on_xt = mpmath.sqrt(1 - beta) * (1 - before) / (1 - bar)
        yield on_xt, mpmath.sqrt(before) * beta / (1 - bar), (1 - before) / (1 - bar) * beta


@every_schedule
def test_alpha_and_sigma_are_the_closed_forms(name):
    t, schedule = torch.cat([EARLY, TIMES]), SCHEDULES[name]
    alpha, sigma = zip(*levels(name, t), strict=True)
    assert relative(schedule.alpha(t), alpha) < BAR
    assert relative(schedule.sigma(t), sigma) < BAR
    assert relative(schedule.snr(t), [(a / b) ** 2 for a, b in levels(name, t)]) < BAR


@every_schedule
def test_posterior_is_the_conditioned_joint_gaussian(name):
    for s in (0 * TIMES, 0.01 * TIMES, 0.5 * TIMES, TIMES - 0.001):
        exact = list(map(conditioned, levels(name, s), levels(name, TIMES)))
        assert posterior_error(SCHEDULES[name].posterior, exact, s, TIMES) < BAR


@pytest.mark.parametrize("name", ["sub-VP", "VE"])
def test_a_posterior_that_assumes_variance_preservation_fails(name):
    exact = list(map(conditioned, levels(name, 0.5 * TIMES), levels(name, TIMES)))
    assert posterior_error(LinearVP().posterior, exact, 0.5 * TIMES, TIMES) > 1e-3


@pytest.mark.parametrize("name, betas", [("linear", ddpm_betas()), ("cosine", iddpm_betas())])
def test_neighbours_are_ddpm(name, betas):
    schedule, s, t = SCHEDULES[f"discrete {name}"], STEPS[:-1], STEPS[1:]
    assert posterior_error(schedule.posterior, ddpm_posterior(betas), s, t) < BAR
    scale, variance = schedule.transition(s, t)
    assert relative(scale, [mpmath.sqrt(1 - mpf(b)) for b in betas]) < BAR
    assert relative(variance, betas) < BAR
    assert relative(schedule.alpha(STEPS) ** 2, alpha_bars(betas)) < BAR


@variants(
    alpha_bar_t_for_its_predecessor=lambda x0, xt, s, t: DDPM.posterior(
        x0 * (DDPM.alpha(t) / DDPM.alpha(s))[:, None], xt, s, t
    ),
    sqrt_dropped=lambda x0, xt, s, t: DDPM.posterior(x0 * DDPM.alpha(s)[:, None], xt, s, t),
    off_by_one=lambda x0, xt, s, t: DDPM.posterior(x0, xt, (s - 0.001).clamp(min=0), t),
    beta_for_beta_tilde=lambda x0, xt, s, t: Gaussian(
        DDPM.posterior(x0, xt, s, t).mean, DDPM.transition(s, t)[1][:, None]
    ),
)
def test_wrong_ddpm_posteriors_fail(wrong):
    assert posterior_error(wrong, ddpm_posterior(ddpm_betas()), STEPS[:-1], STEPS[1:]) > 1e-3


@every_schedule
def test_transitions_compose(name):
    schedule, s, u, t = SCHEDULES[name], 0.2 * TIMES, 0.7 * TIMES, TIMES
    (first, var_first), (second, var_second) = schedule.transition(s, u), schedule.transition(u, t)
    scale, variance = schedule.transition(s, t)
    assert relative(first * second, scale) < BAR
    assert relative(second**2 * var_first + var_second, variance) < BAR
    if name != "VE":  # whose scale is 1; the variant: the scale's square dropped
        assert relative(second * var_first + var_second, variance) > 1e-4


@every_schedule
def test_time_of_inverts_lambda(name):
    schedule, near = SCHEDULES[name], torch.logspace(-14, -1, 200, dtype=torch.float64)
    t = torch.cat([torch.zeros(1), near, torch.linspace(0, 1, 501), 1 - near]).double()
    lambda_, rate = schedule.lambda_(t), schedule.diffusion2(t) / (2 * schedule.sigma(t) ** 2)
    rounding = 10 * 2**-52 * (1 + lambda_.abs()) / rate  # a few ulp of lambda, carried over to t
    tolerance = 1e-9 * t + rounding.nan_to_num(0)
    assert bool(((schedule.time_of(lambda_) - t).abs() <= tolerance).all())
    inner = t[(t > 1e-6) & (t < 0.9)]  # the variant: log-SNR where half of it belongs
    assert (schedule.time_of(2 * schedule.lambda_(inner)) - inner).abs().max() > 1e-3


@pytest.mark.parametrize("name", [n for n in SCHEDULES if n not in ("VE", "learned")])
def test_schedules_start_at_the_data(name):
    schedule = SCHEDULES[name]
    assert (schedule.alpha(0.0), schedule.sigma(0.0)) == (1, 0)
    assert schedule.lambda_(0.0) == math.inf
    assert schedule.time_of(math.inf) == 0
    x0, xt = normal(2, 3, seed=1), normal(2, 3, seed=2)
    back = schedule.posterior(x0, xt, 0.0, 0.4)
    assert torch.equal(back.mean, x0) and not back.variance.any()


def test_the_other_ends():
    assert CosineVP(lambda_end=-7.0).lambda_(1.0).item() == pytest.approx(-7, abs=1e-10)
    ve = VE(0.02, 30.0)
    assert ve.sigma(0.0).item() == pytest.approx(0.02) and ve.alpha(0.0) == 1
    assert ve.sigma(1.0).item() == pytest.approx(30.0) and ve.prior_std == 30.0


@every_schedule
def test_drift_and_diffusion_solve_the_moment_equations(name):
    def variance(t):
        return LEVELS[name](t)[1] ** 2

    def log_alpha(t):
        return mpmath.log(LEVELS[name](t)[0])

    schedule, t = SCHEDULES[name], TIMES[:-1] + 1e-4  # away from the corners of the discrete ones
    drift = [mpmath.diff(log_alpha, mpf(u)) for u in t.tolist()]
    rise = [mpmath.diff(variance, mpf(u)) for u in t.tolist()]  # d sigma^2/dt = 2 f sigma^2 + g^2
    noise = [r - 2 * f * variance(u) for r, f, u in zip(rise, drift, t.tolist(), strict=True)]
    assert relative(schedule.drift(t), drift) < BAR
    assert relative(schedule.diffusion2(t), noise) < BAR
    if name == "sub-VP":  # the variant: beta(t) without 1 - alpha^4, the VP schedule's g^2
        assert relative(LinearVP().diffusion2(t), noise) > 0.1


@pytest.mark.parametrize("n_steps", [47, 1000])
def test_discrete_slopes_on_the_grid_are_the_right_hand_ones(n_steps):
    schedule, t = DiscreteVP.linear(n_steps), uniform_times(n_steps).flip(0)[:-1]
    assert relative(schedule.drift(t), 0.5 * n_steps * torch.log1p(-schedule.betas)) < BAR


def test_published_numbers():
    assert DDPM.snr(1.0).item() == pytest.approx(4.036e-5, rel=1e-4)
    # sqrt(beta_1) is slightly smaller than half a pixel's bin, 1/127.5 (IDDPM, section 3.2)
    assert 0.5 / 127.5 < SCHEDULES["discrete cosine"].betas[0].sqrt() < 1 / 127.5
    cosine = torch.cos((STEPS + 0.008) / 1.008 * math.pi / 2) ** 2
    bars = SCHEDULES["discrete cosine"].alpha(STEPS) ** 2
    assert relative(bars[:-1], (cosine / cosine[0])[:-1]) < BAR  # the last is clipped
    assert DiscreteVP.cosine(10).betas[-1] == DiscreteVP.linear(10).betas[-1] == 0.999


def test_discrete_linear_tends_to_its_continuous_twin():
    t = torch.linspace(0.05, 1, 20)

    def gap(n_steps):
        return (DiscreteVP.linear(n_steps).log_alpha(t) - LinearVP().log_alpha(t)).abs().max()

    assert gap(1000) < 0.035  # sum of beta^2 / 4 is 0.0337
    assert gap(1000) / gap(10000) == pytest.approx(10, rel=0.02)
