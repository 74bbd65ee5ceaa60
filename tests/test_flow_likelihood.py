"""The probability flow's log-likelihood: exact densities, its order, its estimates. Takes 20 s."""

import math

import pytest
import torch
from truths import (
    SCHEDULES,
    every_schedule,
    gaussian,
    generator,
    needle,
    normal,
    pair,
    standard_errors,
    variants,
)

from tutorial_lib import likelihood
from tutorial_lib.denoiser import MixtureDenoiser
from tutorial_lib.likelihood import (
    exact_divergence,
    flow_log_likelihood,
    hutchinson,
    random_signs,
)
from tutorial_lib.schedule import LinearVP, log_snr_times

END = 1e-3


def flow_error(name, n, mixture=None, flow=flow_log_likelihood, prior=True, **options):
    """Largest error in nats of log p_t at t = END, starting from the exact density at t = 1."""
    mixture, schedule = mixture or pair(), SCHEDULES[name]
    early, late = (schedule.at(t, like=torch.zeros(1)) for t in (END, 1.0))
    exact = mixture.diffuse(early)
    x = exact.sample(20, generator=generator(3))
    log_prior = mixture.diffuse(late).log_prob if prior else None
    times = log_snr_times(schedule, n, END)
    denoiser = MixtureDenoiser(mixture, schedule)
    found = flow(denoiser, x, times, log_prior=log_prior, **options)
    return float((found - exact.log_prob(x)).abs().max())


@every_schedule
def test_density_of_a_mixture(name):
    assert flow_error(name, 128) < 1e-5
    assert flow_error(name, 64, gaussian()) < 1e-5


@pytest.mark.parametrize("name", ["linear", "sub-VP", "VE"])
def test_error_falls_with_the_fourth_power(name):
    few, many = (flow_error(name, n, gaussian()) for n in (16, 32))
    assert 3.7 < math.log2(few / many) < 5


def halved(field, x):
    value, divergence = exact_divergence(field, x)
    return value, divergence / 2


def flipped(field, x):
    value, divergence = exact_divergence(field, x)
    return value, -divergence


def without_one(field, x):
    value, divergence = exact_divergence(field, x)
    return value, divergence - 0.5


@variants(half=halved, sign=flipped, missing=without_one)
def test_a_wrong_divergence_is_seen(wrong):
    assert flow_error("linear", 100, divergence=wrong) > 0.1


def test_the_standard_prior_costs_its_mismatch():
    """alpha(1) is 0.0066 for linear; VE's sigma_max = 10 is only eight times the data's spread."""
    assert 1e-4 < flow_error("linear", 100, prior=False) < 0.02
    assert 0.05 < flow_error("VE", 100, prior=False) < 0.5


def linear_field(x):
    return x @ torch.tensor([[1.0, 2.0], [0.3, -4.0]], dtype=torch.float64).T


def test_divergences_of_a_linear_field():
    value, exact = exact_divergence(linear_field, normal(6, 2))
    assert torch.equal(value, linear_field(normal(6, 2)))
    assert (exact - (-3)).abs().max() < 1e-14
    many = normal(20_000, 2)
    for probe in (normal(20_000, 2, seed=5), random_signs(many, generator=generator(6))):
        _, estimate = hutchinson(probe)(linear_field, many)
        assert standard_errors(estimate, -3.0) < 5
        assert standard_errors(estimate, -2.5) > 5


def test_random_signs_vary_least():
    """Their variance is that of the off-diagonal part alone; a Gaussian probe adds 2 J_ii^2."""
    many = normal(50_000, 2)
    signs = random_signs(many, generator=generator(6))
    spreads = [
        float(hutchinson(probe)(linear_field, many)[1].var())
        for probe in (signs, normal(50_000, 2, seed=5))
    ]
    off, on = 2.3**2, 2 * (1 + 16)
    assert spreads[0] == pytest.approx(off, rel=0.05)
    assert spreads[1] == pytest.approx(off + on, rel=0.05)
    assert set(signs.unique().tolist()) == {-1.0, 1.0}


def test_the_estimate_of_a_flow_is_unbiased():
    mixture, schedule = gaussian(dim=3), SCHEDULES["linear"]
    x = mixture.diffuse(schedule.at(END, like=torch.zeros(1))).sample(1, generator=generator(3))
    many, times = x.expand(400, -1), log_snr_times(schedule, 16, END)
    denoiser = MixtureDenoiser(needle(), schedule)
    exact = flow_log_likelihood(denoiser, x, times)
    probe = random_signs(many, generator=generator(8))
    found = flow_log_likelihood(denoiser, many, times, divergence=hutchinson(probe))
    assert found.std() > 0 and standard_errors(found, exact) < 5


def test_images_are_taken_whole():
    """An image (B, C, H, W) is D numbers to the flow."""
    points = normal(3, 12)
    flat = flow_log_likelihood(Round(), points, log_snr_times(LinearVP(), 8))
    images = flow_log_likelihood(Round(), points.view(3, 3, 2, 2), log_snr_times(LinearVP(), 8))
    assert torch.allclose(flat, images, atol=1e-10)


class Round:
    """The denoiser of N(0, I)."""

    schedule = LinearVP()

    def __call__(self, xt, t, cond=None):
        level = self.schedule.at(t, like=xt)
        return likelihood.Prediction.from_eps(xt, level, level.sigma * xt)
