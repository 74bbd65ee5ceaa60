"""Where the reverse SDE and Langevin's steps lead: to q(x_t), at every t. Takes 12 s."""

from functools import cache

import pytest
import torch
from truths import SCHEDULES, gaussian, generator, normal, pair, standard_errors, variants

from tutorial_lib.denoiser import MixtureDenoiser, Prediction
from tutorial_lib.metrics import sliced_wasserstein
from tutorial_lib.samplers import ancestral, final
from tutorial_lib.schedule import LinearVP, log_snr_times, uniform_times
from tutorial_lib.solvers import (
    euler,
    euler_maruyama,
    langevin,
    predictor_corrector,
    reverse_diffusion,
)

some_schedules = pytest.mark.parametrize("name", ["linear", "sub-VP", "VE"])


def noised(name, t):
    """The law of x_t."""
    return pair().diffuse(SCHEDULES[name].at(t, like=normal(1)))


@cache
def bar(name, t, n):
    """What true samples of x_t score, six standard deviations of it allowed."""
    law = noised(name, t)
    draws = [law.sample(n, generator=generator(i)) for i in range(8)]
    scores = torch.tensor([sliced_wasserstein(x, law) for x in draws])
    return float(scores.mean() + 6 * scores.std())


class Mistaken:
    """Give `factor` times the score."""

    def __init__(self, factor, name, mixture=None):
        self.factor, self.schedule, self.mixture = factor, SCHEDULES[name], mixture or pair()

    def __call__(self, xt, t, cond=None):
        level = self.schedule.at(t, like=xt)
        score = self.mixture.diffuse(level).score(xt)
        return Prediction.from_score(xt, level, self.factor * score)


def excess(sampler, name, n_steps=300, factor=1.0, **options):
    """Distance from q(x_t) over its bar, the largest at three times down to 1e-3."""
    times, n = log_snr_times(SCHEDULES[name], n_steps), 1000
    x = noised(name, 1.0).sample(n, generator=generator(3))
    walk = sampler(Mistaken(factor, name), x, times, generator=generator(9), **options)
    path, worst = list(walk), 0.0
    for i in (n_steps // 2, 3 * n_steps // 4, n_steps):
        t = float(times[i])
        worst = max(worst, sliced_wasserstein(path[i - 1], noised(name, t)) / bar(name, t, n))
    return worst


@some_schedules
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 1.5])
def test_all_of_the_family_have_the_marginals(name, eta):
    assert excess(euler_maruyama, name, eta=eta) < 1


@some_schedules
def test_reverse_diffusion_has_the_marginals(name):
    assert excess(reverse_diffusion, name) < 1


@some_schedules
@pytest.mark.parametrize("predictor", [reverse_diffusion, euler, ancestral])
def test_a_corrected_predictor_has_the_marginals(name, predictor):
    assert excess(predictor_corrector, name, n_steps=60, predictor=predictor) < 1


@pytest.mark.parametrize(
    "sampler, options, factor",
    [
        (euler_maruyama, {"eta": 0.0}, 2.0),  # the flow without 1/2
        (euler_maruyama, {"eta": 1.0}, 0.5),  # the flow's drift with the SDE's noise
        (euler_maruyama, {"eta": 1.5}, 2 / 3.25),  # the SDE's drift, over-noised
        (reverse_diffusion, {}, 0.5),
        (predictor_corrector, {}, 0.5),
    ],
    ids=["no half", "flow's drift", "SDE's drift", "reverse diffusion", "corrected"],
)
def test_a_drift_that_does_not_fit_the_noise_is_seen(sampler, options, factor):
    assert excess(sampler, "linear", 100, factor, **options) > 1


# a Langevin step


def right(x, z, score, snr):
    step = 2 * (snr * z.norm(dim=1).mean() / score.norm(dim=1).mean()) ** 2
    return x + step * score + (2 * step) ** 0.5 * z


def half_the_noise(x, z, score, snr):
    step = 2 * (snr * z.norm(dim=1).mean() / score.norm(dim=1).mean()) ** 2
    return x + step * score + step**0.5 * z


def downhill(x, z, score, snr):
    return right(x, z, -score, snr)


def snr_not_squared(x, z, score, snr):
    return right(x, z, score, snr**0.5)


def a_step_for_each_row(x, z, score, snr):
    step = 2 * (snr * z.norm(dim=1) / score.norm(dim=1))[:, None] ** 2
    return x + step * score + (2 * step) ** 0.5 * z


def norm_of_the_batch(x, z, score, snr):
    return right(x, z, score, snr * z.norm() / score.norm())


def langevin_error(formula, name, snr=0.3):
    denoiser = MixtureDenoiser(pair(), SCHEDULES[name])
    times, x = torch.tensor([0.4, 0.3]), normal(5, 2)
    found = list(langevin(denoiser, x, times, generator=generator(7), snr=snr))
    draws, error = generator(7), 0.0
    for t, y in zip(times, found, strict=True):
        z = torch.randn(5, 2, generator=draws, dtype=torch.float64)
        error = max(error, (formula(x, z, denoiser(x, t).score, snr) - y).abs().max())
        x = y
    return error


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_langevin_step_is_exact(name):
    assert langevin_error(right, name) < 1e-12


@variants(
    a=half_the_noise, b=downhill, c=snr_not_squared, d=a_step_for_each_row, e=norm_of_the_batch
)
def test_wrong_langevin_steps_are_seen(wrong):
    assert langevin_error(wrong, "linear") > 1e-2


def settled(name, t, x, steps, factor=1, snr=0.1, mixture=None):
    """Points after so many Langevin steps at one time."""
    denoiser, times = Mistaken(factor, name, mixture), torch.full((steps,), t)
    return final(langevin(denoiser, x, times, generator=generator(7), snr=snr))


@pytest.mark.parametrize("snr", [0.3, 0.5])
def test_langevin_widens_a_gaussian_by_one_plus_snr_squared(snr):
    """x' = (1 - step / v) x + noise of 2 step stays at V = v / (1 - step / 2v), and the rule's
    step is 2 snr^2 v^2 / V: so V = v (1 + snr^2)."""
    law = gaussian().diffuse(LinearVP().at(0.3, like=normal(1)))
    x = law.sample(40_000, generator=generator(3))
    x = settled("linear", 0.3, x, round(3 / snr**2), snr=snr, mixture=gaussian())
    squares, variance = (x - law.mean) ** 2, law.covariance[0, 0]
    assert standard_errors(x, law.mean) < 6
    assert standard_errors(squares, variance * (1 + snr**2)) < 6
    assert standard_errors(squares, variance * (1 + snr**2 / 2)) > 6  # the step without its 2


@pytest.mark.parametrize("name", ["linear", "VE"])
def test_langevin_leaves_the_noised_density_as_it_is(name):
    law, n = noised(name, 0.3), 10_000
    x = law.sample(n, generator=generator(3))
    exact, half, against = (
        sliced_wasserstein(settled(name, 0.3, x, 20, factor), law) for factor in (1, 0.5, -1)
    )
    assert exact < bar(name, 0.3, n) < min(half, against)


@pytest.mark.parametrize("name, t", [("linear", 0.3), ("linear", 0.05), ("VE", 0.3)])
def test_langevin_repairs_a_displaced_density(name, t):
    law = noised(name, t)
    x = law.sample(2000, generator=generator(3)) + torch.tensor([0.2, -0.2])

    def left(steps, factor=1):
        moved = settled(name, t, x, steps, factor, snr=0.16)
        return sliced_wasserstein(moved, law) / sliced_wasserstein(x, law)

    assert left(20) < 0.5 and left(20) < left(10) < left(5) < 1
    assert left(20, factor=-1) > 1


# predictor and corrector


@pytest.mark.parametrize("corrector_steps", [0, 1, 3])
def test_each_predictors_step_is_corrected_where_it_ends(corrector_steps):
    """And not at s = 0; the same draws, one after another."""
    denoiser, times = MixtureDenoiser(pair(), LinearVP()), uniform_times(4)
    options = {"corrector_steps": corrector_steps, "snr": 0.3}
    found = predictor_corrector(denoiser, normal(5, 2), times, generator=generator(7), **options)
    x, draws = normal(5, 2), generator(7)
    for i, y in enumerate(found):
        (x,) = reverse_diffusion(denoiser, x, times[i : i + 2], generator=draws)
        for _ in range(corrector_steps * (i < 3)):
            z = torch.randn(5, 2, generator=draws, dtype=torch.float64)
            x = right(x, z, denoiser(x, times[i + 1]).score, 0.3)
        assert (x - y).abs().max() < 1e-12


def test_a_langevin_step_on_clean_data_is_refused():
    denoiser = MixtureDenoiser(pair(), LinearVP())
    with pytest.raises(ValueError, match="take Langevin steps at t > 0"):
        final(langevin(denoiser, normal(5, 2), uniform_times(3), generator=generator(7)))
