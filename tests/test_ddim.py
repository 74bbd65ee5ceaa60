"""DDIM: exact steps on a Gaussian, ancestral at eta = 1, diffusers step for step. Takes 5 s."""

import pytest
import torch
from exact_levels import levels
from truths import SCHEDULES, every_schedule, gaussian, generator, normal, pair, variants

from tutorial_lib.denoiser import Condition, MixtureDenoiser
from tutorial_lib.samplers import ancestral, ddim, final
from tutorial_lib.schedule import DiscreteVP, LinearVP, log_snr_times, uniform_times

STEPS = [(0.999, 1.0), (0.3, 0.9), (0.001, 0.002), (0.0, 0.3), (0.0, 0.001)]  # s, t
POINT = torch.tensor([[0.7, -0.2]], dtype=torch.float64)


class Oracle:
    """Know x_0 itself."""

    def __init__(self, schedule):
        self.schedule, self.exact = schedule, MixtureDenoiser(gaussian(std=1e-9), schedule)

    def __call__(self, xt, t, cond=None):
        return self.exact(xt, t)


@every_schedule
@pytest.mark.parametrize("s, t", STEPS)
def test_a_step_keeps_the_noise_it_sees(name, s, t):
    """With x_0 known, alpha x_0 + sigma eps goes to the same eps at s (50 digits for levels)."""
    early, late = levels(name, torch.tensor([s, t], dtype=torch.float64))
    eps = normal(5, 2)
    xt = float(late[0]) * POINT + float(late[1]) * eps
    times = torch.tensor([t, s], dtype=torch.float64)
    (found,) = ddim(Oracle(SCHEDULES[name]), xt, times)
    exact = float(early[0]) * POINT + float(early[1]) * eps
    assert (found - exact).abs().max() < 1e-9


def root_forgotten(x0, eps, noise, alpha, sigma, fresh):
    return alpha * x0 + (sigma**2 - fresh) * eps + fresh**0.5 * noise


def all_of_sigma(x0, eps, noise, alpha, sigma, fresh):
    return alpha * x0 + sigma * eps + fresh**0.5 * noise


def variance_for_std(x0, eps, noise, alpha, sigma, fresh):
    return alpha * x0 + (sigma**2 - fresh) ** 0.5 * eps + fresh * noise


def right(x0, eps, noise, alpha, sigma, fresh):
    return alpha * x0 + (sigma**2 - fresh) ** 0.5 * eps + fresh**0.5 * noise


def step_gap(step, eta, s=0.3, t=0.5):
    """Distance of a step written by hand from the library's, with the same noise."""
    denoiser, schedule = MixtureDenoiser(pair(), LinearVP()), LinearVP()
    times = torch.tensor([t, s], dtype=torch.float64)
    (found,) = ddim(denoiser, normal(5, 2), times, eta=eta, generator=generator(7))
    prediction = denoiser(normal(5, 2), t)
    a, b = schedule.alpha(t) ** 2, schedule.alpha(s) ** 2  # the paper's alpha_t, alpha_{t-1}
    fresh = eta**2 * (1 - b) / (1 - a) * (1 - a / b)  # eq. 16, squared
    noise = normal(5, 2, seed=7)
    made = step(prediction.x0, prediction.eps, noise, b.sqrt(), (1 - b).sqrt(), fresh)
    return float((found - made).abs().max())


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_the_papers_equation_12(eta):
    assert step_gap(right, eta) < 1e-14


@variants(a=root_forgotten, b=all_of_sigma, c=variance_for_std)
def test_wrong_steps_are_seen(wrong):
    assert step_gap(wrong, 0.7) > 1e-2


@every_schedule
def test_eta_one_is_the_ancestral_step(name):
    denoiser, times = MixtureDenoiser(pair(), SCHEDULES[name]), uniform_times(20)
    x = SCHEDULES[name].prior_std * normal(50, 2)
    ours = list(ddim(denoiser, x, times, eta=1.0, generator=generator(4)))
    theirs = list(ancestral(denoiser, x, times, generator=generator(4)))
    assert max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)) < 1e-11


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("n_steps", [1000, 50])
def test_diffusers_step_for_step(eta, n_steps):
    reason = "expected: diffusers is not installed, pip install '.[oracles]'"
    diffusers = pytest.importorskip("diffusers", reason=reason)
    scheduler = diffusers.DDIMScheduler(1000, clip_sample=False, set_alpha_to_one=True)
    schedule = DiscreteVP.linear(1000)
    scheduler.alphas_cumprod = torch.cumprod(1 - schedule.betas, 0)  # theirs are in float32
    scheduler.set_timesteps(n_steps)
    denoiser, theirs, noise = MixtureDenoiser(pair(), schedule), normal(2, 2), generator(7)
    steps = scheduler.timesteps[-50:]  # the same 50 here and there, down to the data
    times = torch.cat([steps + 1, torch.zeros(1)]).double() / 1000
    # where theirs ends one step short of ours, at alpha = 1, so do we
    ours = ddim(denoiser, normal(2, 2), times, eta=eta, generator=generator(7))
    for step, t, x in zip(steps, times[:-1], ours, strict=True):
        eps = denoiser(theirs, t).eps
        theirs = scheduler.step(eps, step, theirs, eta=eta, generator=noise).prev_sample
        assert (x - theirs).abs().max() < 1e-10


def spread_of(eta, std, times):
    """Standard deviation of samples of N(0, std^2) over the true one, from Sobol-like starts."""
    denoiser = MixtureDenoiser(gaussian(dim=1, std=std), LinearVP())
    start = torch.special.ndtri((torch.arange(4000).double() + 0.5) / 4000)[:, None]
    return float(final(ddim(denoiser, start, times, eta=eta, generator=generator(2))).std()) / std


def test_few_steps_narrow_a_gaussian_less_without_noise():
    times = uniform_times(20) ** 2
    assert 1 - spread_of(0.0, 0.1, times) < 0.75 * (1 - spread_of(1.0, 0.1, times))


def test_the_same_start_ends_at_the_same_point():
    denoiser, x = MixtureDenoiser(pair(), LinearVP()), normal(200, 2)
    fine, coarse = (final(ddim(denoiser, x, log_snr_times(LinearVP(), n))) for n in (400, 50))
    assert (fine - coarse).abs().median() < 0.05
    noisy = final(
        ddim(denoiser, x, log_snr_times(LinearVP(), 50), eta=1.0, generator=generator(1))
    )
    assert (fine - noisy).abs().median() > 0.2


def test_every_step_sees_the_condition_and_keeps_the_dtype():
    exact, cond = MixtureDenoiser(pair(), LinearVP()), Condition(label=torch.arange(3))

    def denoiser(xt, t, told=None):
        assert told is cond
        return exact(xt, t)

    denoiser.schedule = exact.schedule
    path = list(ddim(denoiser, normal(3, 2).float(), uniform_times(5), cond))
    assert len(path) == 5 and all(x.dtype == torch.float32 for x in path)


def test_noise_needs_a_generator():
    denoiser = MixtureDenoiser(pair(), LinearVP())
    with pytest.raises(ValueError, match="pass generator="):
        final(ddim(denoiser, normal(3, 2), uniform_times(5), eta=0.5))
