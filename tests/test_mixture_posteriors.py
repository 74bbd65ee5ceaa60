"""Noised mixtures and p(x_0 | x_t), by scipy, a fine grid, Tweedie and sampling."""

import pytest
import torch
from truths import (
    MIXTURES,
    SCHEDULES,
    every_mixture,
    every_schedule,
    gap,
    generator,
    normal,
    pair,
    relative,
    scipy_parts,
    standard_errors,
    torch_log_prob,
    torch_score,
    variants,
)

from tutorial_lib.schedule import Level

LEVELS = {"low": (1.0, 0.3), "middle": (0.6, 0.8), "high": (0.2, 2.0)}  # alpha, sigma
every_level = pytest.mark.parametrize("alpha, sigma", LEVELS.values(), ids=LEVELS)


def at(alpha, sigma) -> Level:
    return Level(*torch.tensor([alpha, sigma], dtype=torch.float64))


def noisy(mixture, alpha, sigma, n=6):
    clean = mixture.sample(n, generator=generator(3))
    return alpha * clean + sigma * normal(n, mixture.dim, seed=4)


@every_mixture
@every_level
def test_diffuse_is_the_law_of_noised_points(mixture, alpha, sigma):
    diffused, x = mixture.diffuse(at(alpha, sigma)), 2 * normal(40, mixture.dim)
    exact = scipy_parts(mixture, x, alpha, sigma).logsumexp(-1)
    assert relative(diffused.log_prob(x), exact) < 1e-11
    assert gap(diffused.score(x), torch_score(mixture, x, alpha, sigma)) < 1e-11
    drawn = noisy(mixture, alpha, sigma, n=40000)
    assert standard_errors(drawn, diffused.mean) < 6
    centred = drawn - diffused.mean
    assert standard_errors(centred[:, :, None] * centred[:, None], diffused.covariance) < 6


@variants(
    alpha_not_squared=lambda alpha, sigma: (alpha**0.5, sigma),
    alpha_squared_twice=lambda alpha, sigma: (alpha**2, sigma),
    sigma_not_squared=lambda alpha, sigma: (alpha, sigma**0.5),
    sigma_missing=lambda alpha, sigma: (alpha, 0.0),
)
def test_wrong_diffusions_fail(wrong):
    x = noisy(pair(), *LEVELS["middle"])
    exact = scipy_parts(pair(), x, *LEVELS["middle"]).logsumexp(-1)
    assert relative(pair().diffuse(at(*wrong(*LEVELS["middle"]))).log_prob(x), exact) > 0.01


def posterior_on_a_grid(mixture, xt, alpha, sigma):
    """E[x_0 | x_t] and Cov[x_0 | x_t] in the plane, by summing over 150,000 values of x_0."""
    x0 = torch.cartesian_prod(*(torch.arange(-n, n + 1).double() / 40 for n in (240, 160)))
    log_prior = scipy_parts(mixture, x0).logsumexp(-1)
    for row in xt:
        log_joint = log_prior - ((row - alpha * x0) ** 2).sum(1) / (2 * sigma**2)
        mass = log_joint.softmax(0)
        centred = x0 - mass @ x0
        yield mass @ x0, (mass[:, None] * centred).T @ centred


@pytest.mark.parametrize("name", ["gaussian", "pair"])
@every_level
def test_posterior_moments_are_sums_over_a_grid(name, alpha, sigma):
    mixture, xt = MIXTURES[name], noisy(MIXTURES[name], alpha, sigma)
    moments = zip(*posterior_on_a_grid(mixture, xt, alpha, sigma), strict=True)
    mean, covariance = map(torch.stack, moments)
    assert gap(mixture.posterior_mean(xt, at(alpha, sigma)), mean) < 1e-9
    assert gap(mixture.posterior_covariance(xt, at(alpha, sigma)), covariance) < 1e-9


@every_mixture
@every_level
def test_posterior_moments_are_tweedies(mixture, alpha, sigma):
    xt = noisy(mixture, alpha, sigma)
    mean = (xt + sigma**2 * torch_score(mixture, xt, alpha, sigma)) / alpha
    assert gap(mixture.posterior_mean(xt, at(alpha, sigma)), mean) < 1e-10
    for row, covariance in zip(
        xt, mixture.posterior_covariance(xt, at(alpha, sigma)), strict=True
    ):
        hessian = torch.autograd.functional.hessian(
            lambda x: torch_log_prob(mixture, x, alpha, sigma), row
        )
        exact = (sigma / alpha) ** 2 * (torch.eye(mixture.dim) + sigma**2 * hessian)
        assert gap(covariance[None], exact[None]) < 1e-9


@variants(
    sign_flipped=lambda xt, score, alpha, sigma: (xt - sigma**2 * score) / alpha,
    sigma_missing=lambda xt, score, alpha, sigma: (xt + score) / alpha,
    sigma_not_squared=lambda xt, score, alpha, sigma: (xt + sigma * score) / alpha,
    alpha_squared=lambda xt, score, alpha, sigma: (xt + sigma**2 * score) / alpha**2,
)
def test_wrong_tweedies_fail(wrong):
    xt, (alpha, sigma) = noisy(pair(), *LEVELS["middle"]), LEVELS["middle"]
    mean = wrong(xt, torch_score(pair(), xt, alpha, sigma), alpha, sigma)
    assert gap(mean, pair().posterior_mean(xt, at(alpha, sigma))) > 0.05


@every_schedule
def test_a_level_for_every_row_is_a_loop(name):
    schedule, t = SCHEDULES[name], torch.tensor([0.0, 1e-6, 0.1, 0.5, 1.0])
    xt = 2 * normal(5, 3, 2)  # three points at each time
    rows = schedule.at(t, like=xt)
    for i, time in enumerate(t):
        one, only = slice(i, i + 1), schedule.at(time, like=xt)
        for method in (pair().posterior_mean, pair().posterior_covariance):
            assert gap(method(xt, rows)[one], method(xt[one], only)) < 1e-12
        together, alone = pair().diffuse(rows), pair().diffuse(only)
        assert relative(together.log_prob(xt)[i], alone.log_prob(xt[i])) < 1e-12
        assert gap(together.score(xt)[i], alone.score(xt[i])) < 1e-12


@every_mixture
def test_posteriors_take_any_leading_shape(mixture):
    xt, level = noisy(mixture, 0.6, 0.8, n=12), at(0.6, 0.8)
    block = xt.reshape(3, 2, 2, mixture.dim)
    for method in (mixture.posterior_mean, mixture.posterior_covariance):
        assert gap(method(block, level).flatten(0, 2), method(xt, level)) < 1e-12
        assert gap(method(xt[5], level)[None], method(xt, level)[5:6]) < 1e-12


@every_mixture
def test_without_noise_the_posterior_is_the_point(mixture):
    xt = 3 * normal(6, mixture.dim)
    assert gap(mixture.posterior_mean(xt, at(1.0, 0.0)), xt) < 1e-13
    assert not mixture.posterior_covariance(xt, at(1.0, 0.0)).abs().max() > 1e-25
    nothing_left = mixture.posterior_mean(xt, at(0.0, 1.0))
    assert gap(nothing_left, mixture.mean.expand_as(xt)) < 1e-13


@every_mixture
def test_far_from_the_data_the_posterior_is_finite_and_right(mixture):
    xt = 1e4 * normal(6, mixture.dim)  # thousands of standard deviations out: one component rules
    ruling = mixture.diffuse(at(0.6, 0.8)).classify(xt).argmax(-1)
    for row, k in zip(xt, ruling, strict=True):
        mean, covariance = mixture.means[k], mixture.covariances[k]
        noised = 0.36 * covariance + 0.64 * torch.eye(mixture.dim).double()
        exact = mean + 0.6 * covariance @ torch.linalg.solve(noised, row - 0.6 * mean)
        assert gap(mixture.posterior_mean(row, at(0.6, 0.8))[None], exact[None]) < 1e-9
