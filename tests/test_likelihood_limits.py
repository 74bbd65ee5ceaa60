"""What the bound tends to: chains that lose nothing, chains that lose 1/T, and the entropy."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from truths import generator, normal, standard_errors, variants

from tutorial_lib.data import std8
from tutorial_lib.denoiser import MixtureDenoiser
from tutorial_lib.gaussian import Gaussian
from tutorial_lib.likelihood import chain_bound, noise_decoder, prior_term, step_kl
from tutorial_lib.losses import bound
from tutorial_lib.mixtures import GaussianMixture
from tutorial_lib.samplers import beta, beta_tilde
from tutorial_lib.schedule import LinearVP, log_snr_times, uniform_times

SCHEDULE, T_END, ENTROPY = LinearVP(), 1e-3, 0.9399  # of std8, in nats, from 400,000 points


def line(c2: float) -> GaussianMixture:
    """N(0, c2) in one dimension."""
    return GaussianMixture([1.0], [[0.0]], [[[c2]]])


def best(c2):
    """The variance of x_s given x_t: the step's, and what not knowing x_0 adds to it."""

    def variance(prediction, schedule, s, t):
        step = schedule.posterior(torch.ones_like(prediction.xt), 0 * prediction.xt, s, t)
        unknown = line(c2).posterior_covariance(prediction.xt, prediction.level)[..., 0]
        return step.variance + step.mean**2 * unknown

    return variance


def late(variance):
    """The variant: the variance of the step before, alpha_bar off by one."""

    def shifted(prediction, schedule, s, t):
        step = t - s
        return variance(prediction, schedule, (s - step).clamp(min=0), (t - step).clamp(min=1e-9))

    return shifted


def chain_gap(c2, n_steps, variance) -> float:
    """KL of the chain's joint law from the data's noised path: what the bound lies over entropy.

    Each reverse step of the truth is the joint Gaussian of (x_s, x_t), conditioned on x_t; the
    KLs don't depend on x_t, so any will do.
    """
    times = uniform_times(n_steps)
    t, s, xt = times[:-1], times[1:], normal(n_steps, 1)
    early, late = (SCHEDULE.alpha(u) ** 2 * c2 + SCHEDULE.sigma(u) ** 2 for u in (s, t))
    scale, noise = SCHEDULE.transition(s, t)
    truth = Gaussian((scale * early / late)[:, None] * xt, (early * noise / late)[:, None])
    prediction = MixtureDenoiser(line(c2), SCHEDULE)(xt, t)
    mean = SCHEDULE.posterior(prediction.x0, xt, s, t).mean
    steps = truth.kl(Gaussian(mean, variance(prediction, SCHEDULE, s, t)))
    zero = torch.zeros(1, dtype=torch.float64)
    return float(steps.sum() + Gaussian(zero, late[0]).kl(Gaussian(zero, 1.0)))


def slope(gaps: dict[int, float]) -> float:
    """Minus the exponent of T between the first and the last gap."""
    (first, start), *_, (last, end) = gaps.items()
    return math.log(start / end) / math.log(last / first)


@pytest.mark.parametrize("c2", [0.04, 0.5, 1.0, 3.0])
def test_the_true_reverse_variance_loses_nothing_for_any_number_of_steps(c2):
    assert max(chain_gap(c2, n, best(c2)) for n in (1, 2, 5, 10, 100, 1000)) < 1e-8


@pytest.mark.parametrize("c2, single", [(0.04, None), (0.5, 0.097)])
def test_beta_loses_one_over_the_number_of_steps(c2, single):
    gaps = {n: chain_gap(c2, n, beta) for n in (100, 200, 500, 1000)}
    assert 0.9 < slope(gaps) < 1.1
    assert all(late < early for early, late in pairwise(gaps.values()))
    assert single is None or chain_gap(c2, 1, beta) == pytest.approx(single, abs=5e-4)  # FIGURES


def test_beta_is_exactly_right_for_unit_variance():
    assert max(chain_gap(1.0, n, beta) for n in (1, 10, 1000)) < 1e-12


@variants(beta_for_the_best=beta, off_by_one=late(best(0.5)), beta_tilde_for_the_best=beta_tilde)
def test_wrong_variances_lose_something(wrong):
    assert not chain_gap(0.5, 50, wrong) < 1e-4  # beta_tilde's is infinite: a point at s = 0


def test_the_best_chain_bounds_the_entropy_by_sampling():
    c2, times = 0.04, log_snr_times(SCHEDULE, 6, t_end=0.05)

    def decoder(prediction, schedule, t):
        unknown = line(c2).posterior_covariance(prediction.xt, prediction.level)
        return Gaussian(prediction.x0, unknown[..., 0])

    x0, model = line(c2).sample(4000, generator=generator(1)), MixtureDenoiser(line(c2), SCHEDULE)
    options = {"variance": best(c2), "decoder": decoder}
    found = chain_bound(model, x0, times, generator=generator(2), **options)
    entropy = 0.5 * math.log(2 * math.pi * math.e * c2)
    assert standard_errors(found.total, entropy) < 6
    options["variance"] = beta
    found = chain_bound(model, x0, times, generator=generator(2), **options)
    assert standard_errors(found.total, entropy) > 6


# std8, the exact denoiser, t from 1e-3 to 1 on a grid even in log-SNR (FIGURES.md, 1c)


def diffusion_term(n_steps: int, n: int = 100, look_at: int = 0) -> float:
    """The sum of a chain's mean KLs, over the same points and noise for every number of steps.

    `look_at` = 1 is the variant that looks at x_s where the step starts from x_t.
    """
    ends = log_snr_times(SCHEDULE, n_steps, T_END).unfold(0, 2, 1).repeat_interleave(n, 0)
    x0 = std8().sample(n, generator=generator(3)).repeat(n_steps, 1)
    eps = normal(n, 2, seed=4).repeat(n_steps, 1)
    xt = SCHEDULE.add_noise(x0, eps, ends[:, look_at])
    prediction = MixtureDenoiser(std8(), SCHEDULE)(xt, ends[:, look_at])
    kl = step_kl(prediction, SCHEDULE, x0, s=ends[:, 1], t=ends[:, 0])
    return float(kl.reshape(n_steps, n).mean(1).sum())


def limit(n: int, n_nodes: int, noise: Callable[[], torch.Generator]) -> float:
    """The continuous bound's integral over [1e-3, 1], by the trapezoid rule."""
    times, x0 = log_snr_times(SCHEDULE, n_nodes, T_END), std8().sample(n, generator=generator(3))
    denoiser = MixtureDenoiser(std8(), SCHEDULE)
    integrand = [bound(denoiser, x0, t, generator=noise()).mean() for t in times]
    return -float(torch.trapezoid(torch.stack(integrand), times))


def test_more_steps_are_always_better_and_the_gap_is_one_over_their_number():
    end = limit(100, 400, lambda: generator(4))  # the chains' own noise
    gaps = {n: diffusion_term(n) - end for n in (10, 20, 40, 80, 160, 320)}
    assert all(0 < late < early for early, late in pairwise(gaps.values()))
    assert 0.95 < slope({n: diffusion_term(n) - end for n in (100, 1000)}) < 1.1
    assert diffusion_term(100, look_at=1) < end  # the variant: below its own limit


def test_the_limit_is_the_entropy():
    x0 = std8().sample(3000, generator=generator(3))
    t_end = torch.tensor(T_END, dtype=torch.float64)
    xt = SCHEDULE.add_noise(x0, normal(3000, 2, seed=5), t_end)
    seen = MixtureDenoiser(std8(), SCHEDULE)(xt, t_end)
    last = noise_decoder(seen, SCHEDULE, t_end).log_prob(x0).mean()
    ends = float(prior_term(SCHEDULE, x0).mean() - last)
    fresh = generator(4)
    diffusion = limit(3000, 260, lambda: fresh)
    assert abs(ends + diffusion - ENTROPY) < 0.08
    assert abs(ends + 0.5 * diffusion - ENTROPY) > 3  # the variant: 1/2 once too often
