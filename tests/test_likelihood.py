"""The variational bound, term by term, against closed forms for Gaussian data."""

import math

import pytest
import torch
from truths import (
    SCHEDULES,
    every_schedule,
    gaussian,
    generator,
    normal,
    pair,
    relative,
    standard_errors,
    variants,
)

from tutorial_lib.denoiser import MixtureDenoiser, Prediction
from tutorial_lib.likelihood import (
    ChainBound,
    chain_bound,
    continuous_weight,
    noise_decoder,
    prior_term,
    step_kl,
)
from tutorial_lib.samplers import beta
from tutorial_lib.schedule import VE, LinearVP, log_snr_times, uniform_times

DIM, MEAN2, VARIANCE = 2, 0.7**2 + 0.2**2, 0.25  # of truths.gaussian(): size, |mean|^2, variance


@every_schedule
def test_step_kl_is_half_the_snr_difference_times_the_error(name):
    schedule, x0, t = SCHEDULES[name], normal(20, 2), torch.linspace(0.05, 1, 20)
    xt = schedule.add_noise(x0, normal(20, 2, seed=1), t)
    prediction = MixtureDenoiser(pair(), schedule)(xt, t)
    for s in (0.01, 0.5 * t, t - 0.01):
        kl = step_kl(prediction, schedule, x0, s, t)
        exact = (schedule.snr(s) - schedule.snr(t)) * ((x0 - prediction.x0) ** 2).sum(1) / 2
        assert relative(kl, exact) < 1e-8
        assert relative(kl, 2 * exact) > 0.4  # the variant: 1/2 missing


@pytest.mark.parametrize("dim", [2, 3])
def test_variances_of_a_square_batch(dim):
    """With B = D a variance of shape (B,) would spread along the wrong axis in silence."""
    schedule, x0, t = LinearVP(), normal(dim, dim), torch.linspace(0.2, 0.9, dim)
    prediction = MixtureDenoiser(gaussian(dim), schedule)(normal(dim, dim, seed=1), t)
    together = step_kl(prediction, schedule, x0, 0.5 * t, t, variance=beta)
    for i, time in enumerate(t):
        row = MixtureDenoiser(gaussian(dim), schedule)(prediction.xt[i : i + 1], time)
        alone = step_kl(row, schedule, x0[i : i + 1], 0.5 * time, time, variance=beta)
        assert relative(together[i], alone[0]) < 1e-12


def expected_terms(schedule, times, model_variance=None):
    """E of the bound's prior, steps and reconstruction over N(mean, VARIANCE I) in the plane."""
    alpha, sigma2, snr = schedule.alpha(times), schedule.sigma(times) ** 2, schedule.snr(times)
    prior2 = schedule.prior_std**2
    prior = alpha[0] ** 2 * (MEAN2 + DIM * VARIANCE) / prior2
    prior = 0.5 * (prior + DIM * (sigma2[0] / prior2 - 1 - (sigma2[0] / prior2).log()))
    least_error = DIM * VARIANCE * sigma2 / (alpha**2 * VARIANCE + sigma2)
    steps = 0.5 * (snr[1:] - snr[:-1]) * least_error[:-1]
    if model_variance is not None:
        ratio = sigma2[1:] * (1 - snr[:-1] / snr[1:]) / model_variance
        steps = steps * ratio + 0.5 * DIM * (ratio - 1 - ratio.log())
    return prior, steps, 0.5 * DIM * (1 + math.log(2 * math.pi) - snr[-1].log())


def estimate(schedule, times, **options) -> ChainBound:
    x0 = gaussian().sample(4000, generator=generator(1))
    denoiser = MixtureDenoiser(gaussian(), schedule)
    return chain_bound(denoiser, x0, times, generator=generator(2), **options)


@every_schedule
@pytest.mark.parametrize("variance", [None, beta])
def test_chain_bound_is_its_closed_form_in_expectation(name, variance):
    schedule = SCHEDULES[name]
    times = log_snr_times(schedule, 8, t_end=0.01)
    forward = variance and schedule.transition(times[1:], times[:-1])[1]
    prior, steps, reconstruction = expected_terms(schedule, times, forward)
    bound = estimate(schedule, times, variance=variance)
    assert standard_errors(bound.prior, prior) < 6
    assert standard_errors(bound.steps, steps) < 6
    assert standard_errors(bound.reconstruction, reconstruction) < 6
    assert standard_errors(bound.total, prior + steps.sum() + reconstruction) < 6


@variants(
    half_missing=lambda snr, error: (snr[1:] - snr[:-1]) * error[:-1],
    right_end_for_left=lambda snr, error: 0.5 * (snr[1:] - snr[:-1]) * error[1:],
    snr_difference_flipped=lambda snr, error: 0.5 * (snr[:-1] - snr[1:]) * error[:-1],
    unsquared_ratio=lambda snr, error: 0.5 * (snr[1:] ** 0.5 - snr[:-1] ** 0.5) * error[:-1],
)
def test_wrong_steps_fail(wrong):
    times = log_snr_times(LinearVP(), 8, t_end=0.01)
    snr = LinearVP().snr(times)
    steps = wrong(snr, DIM * VARIANCE / (snr * VARIANCE + 1))
    assert standard_errors(estimate(LinearVP(), times).steps, steps) > 6


def test_prior_term_is_ddpms():
    """DDPM reports L_T of about 1e-5 bits per dimension (Ho et al. 2020, section 4)."""
    schedule, pixels = SCHEDULES["discrete linear"], torch.linspace(-1, 1, 256)[None].double()
    bits = prior_term(schedule, pixels).item() / (256 * math.log(2))
    assert 0.3e-5 < bits < 3e-5
    pull = 0.5 * (pixels**2).sum() / 10.0**2  # the variance-exploding prior is as wide as q(x_1)
    assert prior_term(VE(0.01, 10.0), pixels).item() == pytest.approx(pull.item(), rel=1e-12)


def test_noise_decoder_undoes_the_scale():
    schedule = SCHEDULES["sub-VP"]
    level = schedule.at(0.3, like=normal(3, 2))
    prediction = Prediction(normal(3, 2), level, normal(3, 2), normal(3, 2))
    decoded = noise_decoder(prediction, schedule, 0.3)
    assert relative(decoded.mean, normal(3, 2) / level.alpha) < 1e-15
    assert relative(decoded.variance, (level.sigma / level.alpha) ** 2) < 1e-15


def test_units_and_sum():
    prior, steps = torch.tensor([1.0, 2.0]), torch.tensor([[3.0, 4.0], [5.0, 6.0]])
    bound = ChainBound(prior, steps, torch.tensor([-1.0, 10.0]))
    assert bound.total.tolist() == [7.0, 23.0]
    eight_bits = ChainBound(
        3072 * torch.ones(1) * math.log(256), torch.zeros(1, 1), torch.zeros(1)
    )
    assert eight_bits.bits_per_dim(3072).item() == pytest.approx(8)


@every_schedule
def test_continuous_weight_is_the_rate_of_lambda(name):
    schedule, t = SCHEDULES[name], torch.linspace(0.0105, 0.9955, 30, dtype=torch.float64)
    rate = (schedule.lambda_(t - 1e-6) - schedule.lambda_(t + 1e-6)) / 2e-6
    assert relative(continuous_weight(schedule, t), rate) < 1e-6  # h^2 lambda''' / 6, at t = 0.01
    assert relative(continuous_weight(schedule, t), 2 * rate) > 0.4  # the log-SNR's rate instead


@every_schedule
def test_the_bounds_integral_sees_only_the_schedules_ends(name):
    """Its integral of weight times error, in closed form: the ends' log(1 + variance SNR) / 2."""
    schedule = SCHEDULES[name]
    t = log_snr_times(schedule, 4000, t_end=0.01)
    snr = schedule.snr(t)
    error = DIM * snr * VARIANCE / (snr * VARIANCE + 1)  # of eps, by the best denoiser
    integral = -torch.trapezoid(continuous_weight(schedule, t) * error, t)
    exact = 0.5 * DIM * (torch.log1p(VARIANCE * snr[-1]) - torch.log1p(VARIANCE * snr[0]))
    assert relative(integral, exact) < 1e-4


def test_a_chain_must_stop_before_the_data():
    with pytest.raises(ValueError, match="must end at t > 0"):
        estimate(LinearVP(), uniform_times(4))


def test_a_step_to_the_data_has_no_kl():
    prediction = MixtureDenoiser(pair(), LinearVP())(normal(3, 2), 0.1)
    with pytest.raises(ValueError, match="the step to s = 0 has no KL"):
        step_kl(prediction, LinearVP(), normal(3, 2), 0.0, 0.1)
