"""Losses against a hand computation with the same noise, and against their expectations."""

import pytest
import torch
from torch import nn
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

from tutorial_lib import losses
from tutorial_lib.denoiser import Condition, MixtureDenoiser, NetworkDenoiser, Prediction
from tutorial_lib.likelihood import step_kl
from tutorial_lib.schedule import DiscreteVP, LinearVP

TIMES = torch.tensor([0.001, 0.01, 0.1, 0.3, 0.5, 0.8, 0.97, 1.0], dtype=torch.float64)
ERRORS = {
    "x0": losses.x0_error,
    "eps": losses.simple,
    "score": losses.score_error,
    "v": losses.v_error,
}
every_error = pytest.mark.parametrize("form", ERRORS)


def by_hand(form, schedule, x0, eps, t, mixture):
    """The squared error of the exact denoiser in one form, each step written out."""
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    xt = alpha * x0 + sigma * eps
    clean = mixture.posterior_mean(xt, schedule.at(t, like=xt))
    noise = (xt - alpha * clean) / sigma
    error = {
        "x0": x0 - clean,
        "eps": eps - noise,
        "score": -eps / sigma + noise / sigma,
        "v": (alpha * eps - sigma * x0) - (alpha * noise - sigma * clean),
    }
    return (error[form] ** 2).sum(1)


def factor(form, schedule, t):
    """What each form's error is in units of x_0's."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    return {
        "x0": torch.ones_like(t),
        "eps": (alpha / sigma) ** 2,
        "score": (alpha / sigma**2) ** 2,
        "v": ((alpha**2 + sigma**2) / sigma) ** 2,
    }[form]


@every_schedule
@every_error
def test_each_loss_by_hand_with_the_same_noise(name, form):
    schedule, x0, eps = SCHEDULES[name], normal(8, 2), normal(8, 2, seed=7)
    exact = by_hand(form, schedule, x0, eps, TIMES, pair())
    found = ERRORS[form](MixtureDenoiser(pair(), schedule), x0, TIMES, generator=generator(7))
    assert relative(found, exact) < 1e-8
    alone = [
        ERRORS[form](MixtureDenoiser(pair(), schedule), x0, t, generator=generator(7))[i]
        for i, t in enumerate(TIMES.tolist())
    ]
    assert relative(torch.stack(alone), found) < 1e-10  # a number for t, or one for each row


@every_schedule
@every_error
def test_errors_differ_by_known_factors_whatever_the_denoiser(name, form):
    schedule, x0 = SCHEDULES[name], normal(8, 2)
    mistaken = MixtureDenoiser(gaussian(), schedule)  # of other data: no error is small
    clean = losses.x0_error(mistaken, x0, TIMES, generator=generator(7))
    found = ERRORS[form](mistaken, x0, TIMES, generator=generator(7))
    assert relative(found, factor(form, schedule, TIMES) * clean) < 1e-8


@every_schedule
@every_error
def test_expected_errors_on_gaussian_data(name, form):
    """With exact predictions the error of x_0 is the posterior's variance, 2 c^2 s^2 / (...)."""
    schedule, denoiser = SCHEDULES[name], MixtureDenoiser(gaussian(), SCHEDULES[name])
    x0 = gaussian().sample(4000, generator=generator(1))
    for t in TIMES[[1, 4, 7]]:
        alpha2, sigma2 = schedule.alpha(t) ** 2, schedule.sigma(t) ** 2
        expected = factor(form, schedule, t) * 2 * 0.25 * sigma2 / (alpha2 * 0.25 + sigma2)
        found = ERRORS[form](denoiser, x0, t, generator=generator(2))
        assert standard_errors(found, expected) < 6


@variants(
    mean_for_sum=lambda p, eps, x0: ((eps - p.eps) ** 2).mean(1),
    signed=lambda p, eps, x0: (eps - p.eps).sum(1),
    not_squared=lambda p, eps, x0: (eps - p.eps).norm(dim=1),
    x0_for_eps=lambda p, eps, x0: ((x0 - p.x0) ** 2).sum(1),
    score_for_eps=lambda p, eps, x0: ((eps + p.score) ** 2).sum(1),
)
def test_wrong_losses_fail(wrong):
    x0 = gaussian().sample(4000, generator=generator(1))
    denoiser, t = MixtureDenoiser(gaussian(), LinearVP()), TIMES[3]
    found = wrong(*losses.noised(denoiser, x0, t, None, generator(2)), x0)
    snr = LinearVP().snr(t)
    assert standard_errors(found, 2 * snr * 0.25 / (snr * 0.25 + 1)) > 6


@every_schedule
def test_weighted_and_bound(name):
    schedule, x0 = SCHEDULES[name], normal(8, 2)
    denoiser = MixtureDenoiser(pair(), schedule)
    simple = losses.simple(denoiser, x0, TIMES, generator=generator(7))
    heavy = losses.weighted(losses.simple, lambda schedule, t: 1 + t)
    assert torch.equal(heavy(denoiser, x0, TIMES, generator=generator(7)), (1 + TIMES) * simple)
    rate = -torch.autograd.functional.jvp(schedule.lambda_, TIMES, torch.ones(8).double())[1]
    found = losses.bound(denoiser, x0, TIMES, generator=generator(7))
    assert relative(found, rate * simple) < 1e-10
    assert relative(2 * found, rate * simple) > 0.5  # the variant: the log-SNR's rate


@every_schedule
def test_bound_terms_are_step_kls(name):
    schedule, x0 = SCHEDULES[name], normal(8, 2)
    denoiser, s, t = MixtureDenoiser(pair(), schedule), 0.5 * TIMES, TIMES
    prediction = denoiser(schedule.add_noise(x0, normal(8, 2, seed=7), t), t)
    found = losses.bound_term(denoiser, x0, s, t, generator=generator(7))
    assert relative(found, step_kl(prediction, schedule, x0, s, t)) < 1e-12
    x0_error = losses.x0_error(denoiser, x0, t, generator=generator(7))
    assert relative(found, 0.5 * (schedule.snr(s) - schedule.snr(t)) * x0_error) < 1e-8


@pytest.mark.parametrize("move", [lambda x: 0.9 * x, lambda x: x + 0.1, lambda x: -x, torch.tanh])
def test_any_other_x0_costs_its_squared_distance_from_the_exact_one(move):
    exact = MixtureDenoiser(pair(), LinearVP())
    x0, t = pair().sample(4000, generator=generator(1)), TIMES[4]

    class Moved:
        schedule = exact.schedule

        def __call__(self, xt, t, cond=None):
            prediction = exact(xt, t, cond)
            return Prediction.from_x0(xt, prediction.level, move(prediction.x0))

    least, more = (losses.x0_error(d, x0, t, generator=generator(2)) for d in (exact, Moved()))
    prediction, _ = losses.noised(exact, x0, t, None, generator(2))
    distance = ((move(prediction.x0) - prediction.x0) ** 2).sum(1)
    assert standard_errors(more - least - distance, 0.0) < 6
    assert (more - least).mean() > 0


def test_gradients_and_conditions_reach_the_network():
    class Linear(nn.Linear):
        def forward(self, xt, clock, cond):
            return super().forward(xt) * cond.label

    net, cond = Linear(2, 2, bias=False).double(), Condition(label=torch.tensor(3.0))
    denoiser, x0 = NetworkDenoiser(net, LinearVP()), normal(8, 2)
    losses.simple(denoiser, x0, TIMES, cond, generator=generator(7)).sum().backward()
    eps = normal(8, 2, seed=7)
    xt = LinearVP().add_noise(x0, eps, TIMES)
    exact = -2 * 3 * (eps - 3 * xt @ net.weight.T).T @ xt
    assert relative(net.weight.grad, exact.detach()) < 1e-12


@every_error
def test_single_precision_stays_single(form):
    x0, t = normal(8, 2).float(), torch.linspace(0.1, 1, 8).double()
    eps = torch.randn(8, 2, generator=generator(7))
    found = ERRORS[form](MixtureDenoiser(pair(), LinearVP()), x0, t, generator=generator(7))
    exact = by_hand(form, LinearVP(), x0.double(), eps.double(), t, pair())
    assert found.dtype == torch.float32 and relative(found, exact) < 1e-4


# Score matching


class Affine:
    """A stand-in for a network: an affine map of x_t, read as eps."""

    def __init__(self, schedule, slope, shift):
        self.schedule, self.slope, self.shift = schedule, slope, shift

    def __call__(self, xt, t, cond=None):
        eps = self.slope * xt + self.shift
        return Prediction.from_eps(xt, self.schedule.at(t, like=xt), eps)


def stand_ins(schedule):
    """Denoisers from good to bad: exact, of other data, right at pure noise, blind."""
    return {
        "exact": MixtureDenoiser(pair(), schedule),
        "of other data": MixtureDenoiser(gaussian(), schedule),
        "slope 1": Affine(schedule, 1.0, 0.0),
        "blind": Affine(schedule, 0.0, 0.3),
    }


def scaled_spread(xt, schedule, t):
    """alpha^2 / sigma^4 tr Cov[x_0 | x_t], a number for each row."""
    covariance = pair().posterior_covariance(xt, schedule.at(t, like=xt))
    trace = covariance.diagonal(dim1=1, dim2=2).sum(1)
    return schedule.alpha(t) ** 2 / schedule.sigma(t) ** 4 * trace


def beyond_vincent(name, who, t, explicit=losses.explicit_score_error, spread=scaled_spread):
    """Standard errors by which J_DSM - J_ESM misses alpha^2 / sigma^4 E tr Cov[x_0 | x_t]."""
    schedule, x0 = SCHEDULES[name], pair().sample(20_000, generator=generator(1))
    denoiser = stand_ins(schedule)[who]
    implicit = losses.score_error(denoiser, x0, t, generator=generator(2))
    loss = explicit(MixtureDenoiser(pair(), schedule))
    xt = schedule.add_noise(x0, normal(20_000, 2, seed=2), t)
    rest = implicit - loss(denoiser, x0, t, generator=generator(2)) - spread(xt, schedule, t)
    return standard_errors(rest, 0.0)


@every_schedule
@pytest.mark.parametrize("who", stand_ins(LinearVP()))
@pytest.mark.parametrize("t", [0.05, 0.3, 0.7])
def test_denoising_score_matching_differs_by_vincents_constant(name, who, t):
    assert beyond_vincent(name, who, t) < 6


def half_as_in_the_paper(exact):
    return lambda *a, **k: 0.5 * losses.explicit_score_error(exact)(*a, **k)


def in_units_of_eps(exact):
    return losses.weighted(losses.explicit_score_error(exact), lambda c, t: c.sigma(t) ** 2)


def without_square(exact):
    return lambda *a, **k: losses.explicit_score_error(exact)(*a, **k).sqrt()


def of_another_mixture(exact):
    return losses.explicit_score_error(MixtureDenoiser(gaussian(), exact.schedule))


@variants(a=half_as_in_the_paper, b=in_units_of_eps, c=without_square, d=of_another_mixture)
def test_wrong_explicit_losses_are_seen(wrong):
    assert beyond_vincent("linear", "blind", 0.3, explicit=wrong) > 6


@variants(
    sigma_squared=lambda xt, c, t: c.sigma(t) ** 2 * scaled_spread(xt, c, t),
    alpha_forgotten=lambda xt, c, t: scaled_spread(xt, c, t) / c.alpha(t) ** 2,
    mean_for_trace=lambda xt, c, t: scaled_spread(xt, c, t) / 2,
    sign=lambda xt, c, t: -scaled_spread(xt, c, t),
)
def test_wrong_constants_are_seen(wrong):
    assert beyond_vincent("linear", "slope 1", 0.3, spread=wrong) > 6


def test_the_exact_score_has_no_explicit_error_and_is_asked_with_the_condition():
    exact, cond = MixtureDenoiser(pair(), LinearVP()), Condition(label=torch.arange(8))

    def told(xt, t, given=None):
        assert given is cond
        return exact(xt, t)

    told.schedule = exact.schedule
    found = losses.explicit_score_error(told)(
        told, normal(8, 2), TIMES, cond, generator=generator()
    )
    assert not found.any()


# The mean of a step


def means_by_hand(denoiser, x0, n):
    """The squared distance of DDPM's two means: eq. 7 with x_0, eq. 11 with the predicted eps."""
    betas = DiscreteVP.linear(1000).betas
    bars = torch.cat([torch.ones(1).double(), torch.cumprod(1 - betas, 0)])
    bar, before = bars[n][:, None], bars[n - 1][:, None]  # alpha_bar_t, alpha_bar_{t-1}
    beta = betas[n - 1][:, None]
    xt = bar.sqrt() * x0 + (1 - bar).sqrt() * normal(len(n), 2, seed=7)
    truth = before.sqrt() * beta / (1 - bar) * x0
    truth = truth + (1 - beta).sqrt() * (1 - before) / (1 - bar) * xt
    eps = denoiser(xt, n.double() / 1000).eps
    return ((truth - (xt - beta / (1 - bar).sqrt() * eps) / (1 - beta).sqrt()) ** 2).sum(1)


def mean_gap(loss):
    n, x0 = torch.tensor([1, 2, 3, 50, 300, 700, 999, 1000]), normal(8, 2)
    denoiser = MixtureDenoiser(pair(), DiscreteVP.linear(1000))
    found = loss(denoiser, x0, n.double() / 1000, generator=generator(7))
    return relative(found, means_by_hand(denoiser, x0, n))


def test_mean_error_is_ddpms():
    assert mean_gap(losses.mean_error(1000)) < 1e-8


@variants(
    a=losses.x0_error,
    b=losses.simple,
    c=losses.mean_error(2000),
    d=losses.mean_error(1001),
    e=losses.weighted(losses.mean_error(1000), lambda c, t: torch.full_like(t, 0.5)),
)
def test_wrong_mean_errors_are_seen(wrong):
    assert mean_gap(wrong) > 1e-2


@every_schedule
def test_mean_errors_are_distances_of_posterior_means(name):
    schedule, x0, n = SCHEDULES[name], normal(4, 2), torch.tensor([1.0, 2, 30, 50]).double()
    denoiser, s, t = MixtureDenoiser(pair(), schedule), (n - 1) / 50, n / 50
    xt = schedule.add_noise(x0, normal(4, 2, seed=7), t)
    guess = denoiser(xt, t).x0
    means = [schedule.posterior(x, xt, s, t).mean for x in (x0, guess)]
    loss = losses.mean_error(50)
    found = loss(denoiser, x0, t, generator=generator(7))
    assert relative(found, ((means[0] - means[1]) ** 2).sum(1)) < 1e-6
    alone = loss(denoiser, x0, 0.6, generator=generator(7))[2]  # a number for t
    assert relative(alone, found[2]) < 1e-6
