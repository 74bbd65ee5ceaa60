"""The reverse SDE: exact steps and chains, limits, diffusers step for step. Takes 8 s."""

import importlib

import mpmath
import pytest
import torch
from exact_levels import LEVELS, levels
from mpmath import mpf
from truths import (
    SCHEDULES,
    every_schedule,
    gaussian,
    generator,
    normal,
    pair,
    standard_errors,
    variants,
)

from tutorial_lib.denoiser import Condition, MixtureDenoiser
from tutorial_lib.samplers import ancestral, beta, ddim, final
from tutorial_lib.schedule import VE, LinearVP, log_snr_times, uniform_times
from tutorial_lib.solvers import (
    euler_maruyama,
    langevin,
    predictor_corrector,
    reverse_diffusion,
)

MEAN, VARIANCE = torch.tensor([0.7, -0.2], dtype=torch.float64), 0.25  # of truths.gaussian()
# s, t; no t lies on a grid point of the discrete schedules, where the drift jumps
STEPS = [(0.95, 1.0), (0.3004, 0.9004), (0.0004, 0.0016), (0.0, 0.3004), (0.0, 0.0004)]
every_step = pytest.mark.parametrize("s, t", STEPS)


def score(name, x, t):
    """That of N(MEAN, VARIANCE I), noised."""
    alpha, sigma = map(float, LEVELS[name](mpf(t)))
    return -(x - alpha * MEAN) / (alpha**2 * VARIANCE + sigma**2)


def drift_and_diffusion2(name, t):
    """f = d log alpha / dt and g^2 = d sigma^2 / dt - 2 f sigma^2, by differences in 50 digits."""
    f = mpmath.diff(lambda t: mpmath.log(LEVELS[name](t)[0]), mpf(t))
    growth = mpmath.diff(lambda t: LEVELS[name](t)[1] ** 2, mpf(t))
    return float(f), float(growth - 2 * f * LEVELS[name](mpf(t))[1] ** 2)


def only_step(sampler, name, s, t, mixture=None, **options):
    denoiser = MixtureDenoiser(mixture or gaussian(), SCHEDULES[name])
    times = torch.tensor([t, s], dtype=torch.float64)
    (x,) = sampler(denoiser, normal(5, 2), times, generator=generator(7), **options)
    return x


def far(found, exact) -> float:
    return float((found - exact).abs().max() / exact.abs().max())


# dx = [f x - (1 + eta^2) / 2 g^2 score] dt + eta g dw, and how it is got wrong


def right(x, z, f, g2, h, eta, early, late):
    return x - h * (f * x - (1 + eta**2) / 2 * g2 * late) + eta * (g2 * h) ** 0.5 * z


def no_half(x, z, f, g2, h, eta, early, late):
    return x - h * (f * x - (1 + eta**2) * g2 * late) + eta * (g2 * h) ** 0.5 * z


def g_for_g2(x, z, f, g2, h, eta, early, late):
    return x - h * (f * x - (1 + eta**2) / 2 * g2**0.5 * late) + eta * (g2 * h) ** 0.5 * z


def eta_not_squared(x, z, f, g2, h, eta, early, late):
    return x - h * (f * x - (1 + eta) / 2 * g2 * late) + eta * (g2 * h) ** 0.5 * z


def h_for_its_root(x, z, f, g2, h, eta, early, late):
    return x - h * (f * x - (1 + eta**2) / 2 * g2 * late) + eta * g2**0.5 * h * z


def always_all_noise(x, z, f, g2, h, eta, early, late):
    return x - h * (f * x - (1 + eta**2) / 2 * g2 * late) + (g2 * h) ** 0.5 * z


def score_at_s(x, z, f, g2, h, eta, early, late):
    return right(x, z, f, g2, h, eta, early, early)


def forward(x, z, f, g2, h, eta, early, late):
    return x + h * f * x - (x - right(x, z, 0, g2, h, eta, early, late))


def euler_maruyama_error(formula, name, s, t, eta):
    f, g2 = drift_and_diffusion2(name, t)
    x, z = normal(5, 2), normal(5, 2, seed=7) * (s > 0)
    slopes = score(name, x, s if s else t), score(name, x, t)
    found = only_step(euler_maruyama, name, s, t, eta=eta)
    return far(found, formula(x, z, f, g2, t - s, eta, *slopes))


@every_schedule
@every_step
@pytest.mark.parametrize("eta", [0.0, 1.0, 1.5])
def test_an_euler_maruyama_step_is_exact(name, s, t, eta):
    assert euler_maruyama_error(right, name, s, t, eta) < 1e-10


@variants(
    a=no_half,
    b=g_for_g2,
    c=eta_not_squared,
    d=h_for_its_root,
    e=always_all_noise,
    f=score_at_s,
    g=forward,
)
def test_wrong_euler_maruyama_steps_are_seen(wrong):
    assert euler_maruyama_error(wrong, "linear", 0.5, 0.6, 0.7) > 1e-3


# x_s = (2 - scale) x + G^2 score + G noise


def reversed_step(x, z, scale, variance, early, late):
    return (2 - scale) * x + variance * late + variance**0.5 * z


def ancestrally(x, z, scale, variance, early, late):
    return (x + variance * late) / scale + variance**0.5 * z


def drift_not_reversed(x, z, scale, variance, early, late):
    return scale * x + variance * late + variance**0.5 * z


def variance_for_std(x, z, scale, variance, early, late):
    return (2 - scale) * x + variance * late + variance * z


def reversed_with_score_at_s(x, z, scale, variance, early, late):
    return (2 - scale) * x + variance * early + variance**0.5 * z


def reverse_diffusion_error(formula, name, s, t):
    (alpha_s, sigma_s), (alpha, sigma) = levels(name, torch.tensor([s, t], dtype=torch.float64))
    scale = alpha / alpha_s
    numbers = float(scale), float(sigma**2 - (scale * sigma_s) ** 2)
    x, z = normal(5, 2), normal(5, 2, seed=7) * (s > 0)
    slopes = score(name, x, s if s else t), score(name, x, t)
    return far(only_step(reverse_diffusion, name, s, t), formula(x, z, *numbers, *slopes))


@every_schedule
@every_step
def test_a_reverse_diffusion_step_is_exact(name, s, t):
    assert reverse_diffusion_error(reversed_step, name, s, t) < 1e-11


@variants(a=ancestrally, b=drift_not_reversed, c=variance_for_std, d=reversed_with_score_at_s)
def test_wrong_reverse_diffusion_steps_are_seen(wrong):
    assert reverse_diffusion_error(wrong, "linear", 0.5, 0.6) > 1e-3


def test_without_drift_reverse_diffusion_is_ancestral_with_beta():
    walks = [
        list(sampler(MixtureDenoiser(pair(), VE()), 10 * normal(5, 2), uniform_times(20), **given))
        for sampler, given in (
            (reverse_diffusion, {"generator": generator(7)}),
            (ancestral, {"generator": generator(7), "variance": beta}),
        )
    ]
    assert max(far(a, b) for a, b in zip(*walks, strict=True)) < 1e-12


# chains: a Gaussian stays one, whose mean and variance are known after every step


def em_on_gaussian(name, s, t, eta):
    """x_s = slope x_t + shift MEAN + sqrt(noise) eps."""
    alpha, sigma = map(float, LEVELS[name](mpf(t)))
    f, g2 = drift_and_diffusion2(name, t)
    pull = (1 + eta**2) / 2 * g2 * (t - s) / (alpha**2 * VARIANCE + sigma**2)
    return 1 - f * (t - s) - pull, alpha * pull, eta**2 * g2 * (t - s) * (s > 0)


def rd_on_gaussian(name, s, t):
    (alpha_s, sigma_s), (alpha, sigma) = levels(name, torch.tensor([s, t], dtype=torch.float64))
    scale = alpha / alpha_s
    noise = sigma**2 - (scale * sigma_s) ** 2
    pull = noise / (alpha**2 * VARIANCE + sigma**2)
    return tuple(map(float, (2 - scale - pull, alpha * pull, noise * (s > 0))))


def walk(sampler, name, times, x, mixture=None, seed=7, **options):
    denoiser = MixtureDenoiser(mixture or gaussian(), SCHEDULES[name])
    return sampler(denoiser, x, times, generator=generator(seed), **options)


@pytest.mark.parametrize("name", ["linear", "sub-VP", "VE"])
@pytest.mark.parametrize(
    "sampler, step, options",
    [
        (euler_maruyama, em_on_gaussian, {"eta": 0.5}),
        (euler_maruyama, em_on_gaussian, {"eta": 1.5}),
        (reverse_diffusion, rd_on_gaussian, {}),
    ],
)
def test_a_chain_has_its_closed_forms_mean_and_variance(name, sampler, step, options):
    times, prior_std = uniform_times(25), SCHEDULES[name].prior_std
    found = final(walk(sampler, name, times, prior_std * normal(20_000, 2), **options))

    def is_right(late=0.0, louder=1.0):
        mean, spread = torch.zeros(2).double(), prior_std**2
        for t, s in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
            slope, shift, noise = step(name, s, max(t - late, 1e-3), **options)
            mean, spread = slope * mean + shift * MEAN, slope**2 * spread + louder * noise
        squares = (found - mean) ** 2
        return standard_errors(found, mean) < 6 and standard_errors(squares, spread) < 6

    assert is_right()
    assert not is_right(late=0.01)  # a step's numbers taken at another time
    assert not is_right(louder=1.2)  # another eta in the noise than in the drift


# how much the samplers differ in a short step: mean and variance both by O(h^2)


def mean_and_variance(sampler, h, **options):
    """A step's mean and variance, from two draws of its known noise."""
    times = torch.tensor([0.5, 0.5 - h], dtype=torch.float64)
    (a,) = walk(sampler, "linear", times, normal(5, 2), pair(), seed=7, **options)
    (b,) = walk(sampler, "linear", times, normal(5, 2), pair(), seed=8, **options)
    std = ((a - b) / (normal(5, 2, seed=7) - normal(5, 2, seed=8))).mean()
    return a - std * normal(5, 2, seed=7), std**2


def slopes(one, other):
    """Powers of h by which the differences of means and of variances fall."""
    gaps = [
        [(a - b).abs().max() for a, b in zip(one(h), other(h), strict=True)]
        for h in (1 / 32, 1 / 256)
    ]
    return (torch.tensor(gaps[0]) / torch.tensor(gaps[1])).log2() / 3


def ddpm(h):
    return mean_and_variance(ancestral, h, variance=beta)


@pytest.mark.parametrize("eta", [0.3, 0.7, 1.0])
def test_ddim_is_euler_maruyama_in_the_limit(eta):
    powers = slopes(
        lambda h: mean_and_variance(ddim, h, eta=eta),
        lambda h: mean_and_variance(euler_maruyama, h, eta=eta),
    )
    assert ((powers - 2).abs() < 0.15).all()


def test_ddpm_is_euler_maruyama_in_the_limit():
    powers = slopes(ddpm, lambda h: mean_and_variance(euler_maruyama, h))
    assert ((powers - 2).abs() < 0.15).all()


def test_ddpm_is_reverse_diffusion_in_the_limit():
    """They share their variance."""
    mean, _ = slopes(ddpm, lambda h: mean_and_variance(reverse_diffusion, h))
    assert abs(mean - 2) < 0.15
    (_, same), (_, variance) = ddpm(0.1), mean_and_variance(reverse_diffusion, 0.1)
    assert abs(same / variance - 1) < 1e-12


@variants(drift=0.5, noise=2.0)
def test_another_member_of_the_family_is_no_limit(wrong):
    """Neither the flow's drift nor more noise than the drift allows for."""
    powers = slopes(ddpm, lambda h: mean_and_variance(euler_maruyama, h, eta=wrong))
    assert ((powers - 1).abs() < 0.15).all()


# diffusers, whose schedulers of these solvers take the score or eps and one time


def oracle(name, **options):
    reason = "expected: diffusers is not installed, pip install '.[oracles]'"
    pytest.importorskip("diffusers", reason=reason)
    folder, scheduler = name.rsplit(".", 1)
    scheduler = getattr(importlib.import_module(f"diffusers.schedulers.{folder}"), scheduler)
    made = scheduler(**options)
    made.set_timesteps(50)
    return made


def test_diffusers_euler_maruyama_step_for_step():
    scheduler = oracle("deprecated.scheduling_sde_vp.ScoreSdeVpScheduler")
    denoiser = MixtureDenoiser(pair(), LinearVP())
    theirs, noise, times = normal(5, 2), generator(7), uniform_times(50)[:-1]
    ours = euler_maruyama(denoiser, normal(5, 2), times, generator=generator(7))
    for t, x in zip(times[:-1], ours, strict=True):
        theirs, _ = scheduler.step_pred(denoiser(theirs, t).eps, theirs, t, generator=noise)
        assert far(x, theirs) < 1e-12


def test_diffusers_reverse_diffusion_step_for_step():
    scheduler = oracle("scheduling_sde_ve.ScoreSdeVeScheduler")
    denoiser = MixtureDenoiser(pair(), VE())
    times = torch.arange(49, -1, -1, dtype=torch.float64) / 49
    scheduler.discrete_sigmas = VE().sigma(times.flip(0))  # theirs are in float32
    theirs, noise = 10 * normal(5, 2), generator(7)
    ours = reverse_diffusion(denoiser, theirs, times, generator=generator(7))
    for k, x in zip(range(49, 0, -1), ours, strict=True):
        t, at = times[49 - k], torch.tensor((k + 0.5) / 49)  # theirs rounds down
        step = scheduler.step_pred(denoiser(theirs, t).score, at, theirs, generator=noise)
        theirs = step.prev_sample
        if k > 1:  # at the last, where t = 0, ours adds no noise
            assert far(x, theirs) < 1e-12
    assert far(x, step.prev_sample_mean) < 1e-12


def test_diffusers_langevin_step_for_step():
    """Theirs draws in float32."""
    scheduler = oracle("scheduling_sde_ve.ScoreSdeVeScheduler", snr=0.3)
    denoiser = MixtureDenoiser(pair(), VE())
    theirs, noise, times = normal(5, 2).float(), generator(7), torch.full((10,), 0.4)
    ours = langevin(denoiser, theirs, times, generator=generator(7), snr=0.3)
    for t, x in zip(times, ours, strict=True):
        score = denoiser(theirs, t).score
        theirs = scheduler.step_correct(score, theirs, generator=noise).prev_sample
        assert far(x, theirs) < 1e-5


@pytest.mark.parametrize(
    "sampler, defaults",
    [
        (euler_maruyama, {"eta": 1.0}),  # the reverse SDE itself
        (langevin, {"snr": 0.16}),  # the paper's, for CIFAR-10
        (predictor_corrector, {"snr": 0.16, "corrector_steps": 1, "predictor": reverse_diffusion}),
    ],
)
def test_defaults_are_the_papers(sampler, defaults):
    times = log_snr_times(LinearVP(), 5)
    ours, said = (final(walk(sampler, "linear", times, normal(5, 2), **o)) for o in ({}, defaults))
    assert torch.equal(ours, said)


def test_times_that_rise_are_refused():
    for sampler in (euler_maruyama, reverse_diffusion):
        with pytest.raises(ValueError, match=r"must fall|s < t"):
            final(walk(sampler, "linear", torch.tensor([0.5, 1.0]), normal(5, 2)))


@pytest.mark.parametrize(
    "sampler", [euler_maruyama, reverse_diffusion, langevin, predictor_corrector]
)
def test_every_step_sees_the_condition_and_keeps_the_dtype(sampler):
    exact, cond = MixtureDenoiser(pair(), LinearVP()), Condition(label=torch.arange(3))

    def denoiser(xt, t, told=None):
        assert told is cond
        return exact(xt, t)

    denoiser.schedule = exact.schedule
    x, times = normal(3, 2).float(), log_snr_times(LinearVP(), 5)
    path = list(sampler(denoiser, x, times, cond, generator=generator(1)))
    assert len(path) == 5 + (sampler is langevin)  # which steps at the first time too
    assert all(x.dtype == torch.float32 for x in path)
