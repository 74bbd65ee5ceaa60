"""Ancestral sampling: exact steps and chains on a Gaussian, diffusers step for step, samples."""

import pytest
import torch
from exact_levels import conditioned, levels
from truths import (
    SCHEDULES,
    every_schedule,
    gaussian,
    generator,
    normal,
    pair,
    relative,
    standard_errors,
)

from tutorial_lib.denoiser import Condition, MixtureDenoiser
from tutorial_lib.metrics import sliced_wasserstein
from tutorial_lib.samplers import ancestral, beta, beta_tilde, final
from tutorial_lib.schedule import DiscreteVP, LinearVP, log_snr_times, uniform_times

MEAN, VARIANCE = torch.tensor([0.7, -0.2], dtype=torch.float64), 0.25  # of truths.gaussian()
STEPS = [(0.999, 1.0), (0.3, 0.9), (0.001, 0.002), (0.0, 0.3), (0.0, 0.001)]  # s, t
every_variance = pytest.mark.parametrize("variance", [beta, beta_tilde])


def exact_step(name, s, t, variance):
    """A step on N(MEAN, VARIANCE I): x_s = slope x_t + shift MEAN + sqrt(noise) eps.

    DDPM's posterior at E[x_0 | x_t], in 50 digits; no noise where s = 0.
    """
    early, late = levels(name, torch.tensor([s, t], dtype=torch.float64))
    on_xt, on_x0, noise = conditioned(early, late)
    gain = late[0] * VARIANCE / (late[0] ** 2 * VARIANCE + late[1] ** 2)  # of E[x_0 | x_t]
    if variance is beta:
        noise = late[1] ** 2 - (late[0] / early[0] * early[1]) ** 2
    slope, shift = on_xt + on_x0 * gain, on_x0 * (1 - gain * late[0])
    return float(slope), float(shift), float(noise) * (s > 0)


def walk(name, times, x, variance=beta, seed=7):
    denoiser = MixtureDenoiser(gaussian(), SCHEDULES[name])
    return ancestral(denoiser, x, times, generator=generator(seed), variance=variance)


def step_error(found, name, s, t, variance) -> float:
    slope, shift, noise = exact_step(name, s, t, variance)
    exact = slope * normal(5, 2) + shift * MEAN + noise**0.5 * normal(5, 2, seed=7)
    return float((found - exact).abs().max())


@every_schedule
@every_variance
@pytest.mark.parametrize("s, t", STEPS)
def test_one_step_is_exact(name, variance, s, t):
    (found,) = walk(name, torch.tensor([t, s], dtype=torch.float64), normal(5, 2), variance)
    assert step_error(found, name, s, t, variance) < 1e-12


def parts(denoiser, x, s, t, look=None):
    """A step's mean and its two variances, with x_0 guessed as if the time were `look`."""
    schedule, prediction = denoiser.schedule, denoiser(x, t if look is None else look)
    step = schedule.posterior(prediction.x0, x, s, t)
    return step.mean, schedule.transition(s, t)[1], step.variance


def off_by_one(denoiser, x, eps, s, t):
    (mean, *_), (_, variance, _) = parts(denoiser, x, s - 0.001, s), parts(denoiser, x, s, t)
    return mean + variance**0.5 * eps


def variance_for_std(denoiser, x, eps, s, t):
    mean, variance, _ = parts(denoiser, x, s, t)
    return mean + variance * eps


def beta_tilde_for_beta(denoiser, x, eps, s, t):
    mean, _, variance = parts(denoiser, x, s, t)
    return mean + variance**0.5 * eps


def too_early(denoiser, x, eps, s, t):
    mean, variance, _ = parts(denoiser, x, s, t, look=s)
    return mean + variance**0.5 * eps


@pytest.mark.parametrize("wrong", [off_by_one, variance_for_std, beta_tilde_for_beta, too_early])
def test_wrong_steps_fail(wrong):
    denoiser = MixtureDenoiser(gaussian(), DiscreteVP.linear(1000))
    found = wrong(denoiser, normal(5, 2), normal(5, 2, seed=7), 0.3, 0.301)
    assert step_error(found, "discrete linear", 0.3, 0.301, beta) > 1e-5


def test_noise_at_the_last_step_would_be_seen():
    denoiser = MixtureDenoiser(gaussian(), DiscreteVP.linear(1000))
    mean, variance, _ = parts(denoiser, normal(5, 2), 0.0, 0.001)
    noisy = mean + variance**0.5 * normal(5, 2, seed=7)
    assert step_error(mean, "discrete linear", 0.0, 0.001, beta) < 1e-12
    assert step_error(noisy, "discrete linear", 0.0, 0.001, beta) > 1e-3


@every_schedule
def test_variances_are_the_forward_steps_and_the_posteriors(name):
    t = torch.linspace(0.1, 1, 5, dtype=torch.float64)
    s = 0.3 * t
    prediction = MixtureDenoiser(pair(), SCHEDULES[name])(normal(5, 2), t)
    pairs = list(zip(levels(name, s), levels(name, t), strict=True))
    forward = [late[1] ** 2 - (late[0] / early[0] * early[1]) ** 2 for early, late in pairs]
    backward = [conditioned(early, late)[2] for early, late in pairs]
    for variance, exact in ((beta, forward), (beta_tilde, backward)):
        found = variance(prediction, SCHEDULES[name], s, t)
        assert found.shape == (5, 1) and relative(found[:, 0], exact) < 1e-11


@pytest.mark.parametrize("name", ["linear", "sub-VP", "VE"])
@every_variance
def test_a_chain_has_its_closed_forms_mean_and_variance(name, variance):
    times, prior_std = uniform_times(12), SCHEDULES[name].prior_std
    found = final(walk(name, times, prior_std * normal(20000, 2), variance))

    def moments(step):
        mean, spread = torch.zeros(2).double(), prior_std**2
        for t, s in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
            slope, shift, noise = step(s, t)
            mean, spread = slope * mean + shift * MEAN, slope**2 * spread + noise
        return mean, spread

    def is_right(step):
        mean, spread = moments(step)
        squares = (found - mean) ** 2
        return standard_errors(found, mean) < 6 and standard_errors(squares, spread) < 6

    assert is_right(lambda s, t: exact_step(name, s, t, variance))
    other = beta if variance is beta_tilde else beta_tilde
    assert not is_right(lambda s, t: exact_step(name, s, t, other))
    assert not is_right(lambda s, t: exact_step(name, max(s - 0.02, 0), t, variance))  # off by one


@pytest.mark.parametrize("variance, kind", [(beta, "fixed_large"), (beta_tilde, "fixed_small")])
@pytest.mark.parametrize("n_steps", [1000, 50])
def test_diffusers_step_for_step(variance, kind, n_steps):
    reason = "expected: diffusers is not installed, pip install '.[oracles]'"
    diffusers = pytest.importorskip("diffusers", reason=reason)
    scheduler = diffusers.DDPMScheduler(1000, variance_type=kind, clip_sample=False)
    schedule = DiscreteVP.linear(1000)
    scheduler.alphas_cumprod = torch.cumprod(1 - schedule.betas, 0)  # theirs are in float32
    scheduler.set_timesteps(n_steps)
    denoiser, theirs, noise = MixtureDenoiser(pair(), schedule), normal(2, 2), generator(7)
    steps = scheduler.timesteps[-50:]  # the same 50 here and there, down to the data
    times = torch.cat([steps + 1, torch.zeros(1)]).double() / 1000
    ours = ancestral(denoiser, normal(2, 2), times, generator=generator(7), variance=variance)
    for step, t, x in zip(steps, times[:-1], ours, strict=True):
        eps = denoiser(theirs, t).eps
        theirs = scheduler.step(eps, step, theirs, generator=noise).prev_sample
        assert (x - theirs).abs().max() < 1e-10


def test_samples_of_the_pair():
    """The bar is what true samples score, six standard deviations of it allowed."""
    times, n = log_snr_times(LinearVP(), 60), 2000
    true = torch.tensor(
        [sliced_wasserstein(pair().sample(n, generator=generator(i)), pair()) for i in range(8)]
    )
    bar = true.mean() + 6 * true.std()

    def distance(**options):
        denoiser = MixtureDenoiser(pair(), LinearVP())
        drawn = final(ancestral(denoiser, normal(n, 2), times, generator=generator(9), **options))
        return sliced_wasserstein(drawn, pair())

    def std(*arguments):
        return beta(*arguments) ** 2

    assert distance() < bar
    assert distance(variance=std) > bar  # the variant: variance where its root belongs


def test_every_step_sees_the_condition_and_keeps_the_dtype():
    exact, cond = MixtureDenoiser(pair(), LinearVP()), Condition(label=torch.arange(3))

    def denoiser(xt, t, told=None):
        assert told is cond
        return exact(xt, t)

    denoiser.schedule = exact.schedule
    x, times = normal(3, 2).float(), uniform_times(5)
    path = list(ancestral(denoiser, x, times, cond, generator=generator(1)))
    assert len(path) == 5 and all(x.dtype == torch.float32 for x in path)


def test_final_is_the_last_point_without_gradients():
    x = normal(3, 2).requires_grad_()
    *_, last = walk("linear", uniform_times(5), x)
    end = final(walk("linear", uniform_times(5), x))
    assert torch.equal(end, last) and last.requires_grad and not end.requires_grad
    with pytest.raises(ValueError, match="needs at least two entries"):
        final(walk("linear", torch.ones(1), x))
    with pytest.raises(ValueError, match="s < t"):
        final(walk("linear", torch.tensor([0.5, 1.0]), x))
