"""The probability flow: exact steps and paths, measured orders, scipy's solver. Takes 15 s."""

import math
from itertools import pairwise

import mpmath
import numpy as np
import pytest
import torch
from exact_levels import LEVELS
from mpmath import mpf
from scipy.integrate import DOP853
from truths import SCHEDULES, every_schedule, gaussian, generator, normal, pair, variants

from tutorial_lib.denoiser import Condition, MixtureDenoiser, Prediction
from tutorial_lib.samplers import ddim, final
from tutorial_lib.schedule import CosineVP, LinearVP, log_snr_times, uniform_times
from tutorial_lib.solvers import euler, euler_maruyama, heun, probability_flow

MEAN, STD = torch.tensor([0.7, -0.2], dtype=torch.float64), 0.5  # of truths.gaussian()
STEPS = [(0.95, 0.9804), (0.3004, 0.9004), (0.0004, 0.0016)]  # s, t, off the discrete grids
END = 1e-3


def polar(name, t):
    alpha, sigma = LEVELS[name](t)
    return mpmath.sqrt(alpha**2 + sigma**2), mpmath.atan2(sigma, alpha)


def slope(name, x, t, half=0.5):
    """d(x / r) / d phi by the chain rule from dx / dt = f x - g^2 score / 2, in 50 digits."""
    t = mpf(t)
    alpha, sigma = LEVELS[name](t)
    f = mpmath.diff(lambda t: mpmath.log(LEVELS[name](t)[0]), t)
    g2 = mpmath.diff(lambda t: LEVELS[name](t)[1] ** 2, t) - 2 * f * sigma**2
    r, growth = polar(name, t)[0], mpmath.diff(lambda t: polar(name, t)[0], t)
    turn = mpmath.diff(lambda t: polar(name, t)[1], t)
    pull = half * g2 / (alpha**2 * STD**2 + sigma**2)  # score = -(x - alpha MEAN) / (...)
    on_x, on_mean = (f + pull - growth / r) / (r * turn), -alpha * pull / (r * turn)
    return float(on_x) * x + float(on_mean) * MEAN


def right(name, x, s, t, half=0.5, look=None):
    """Euler's and Heun's point at s."""
    (r, phi), (r_s, phi_s) = polar(name, mpf(t)), polar(name, mpf(s))
    y, h = x / float(r), float(phi_s - phi)
    first = slope(name, x, t, half)
    end = float(r_s) * (y + h * first)
    second = slope(name, end, s if look is None else look, half)
    return end, float(r_s) * (y + h / 2 * (first + second))


def no_half(name, x, s, t):
    return right(name, x, s, t, half=1.0)


def looking_from_t(name, x, s, t):
    """Heun's second look at the time of the first."""
    return right(name, x, s, t, look=t)


def radius_forgotten(name, x, s, t):
    (r, _), (r_s, _) = polar(name, mpf(t)), polar(name, mpf(s))
    return tuple(point * float(r / r_s) for point in right(name, x, s, t))


def one_step(sampler, name, s, t, mixture=None):
    denoiser = MixtureDenoiser(mixture or gaussian(), SCHEDULES[name])
    (x,) = sampler(denoiser, normal(5, 2), torch.tensor([t, s], dtype=torch.float64))
    return x


def step_errors(formula, name, s, t):
    exact = formula(name, normal(5, 2), s, t)
    found = [one_step(sampler, name, s, t) for sampler in (euler, heun)]
    return [float((x - y).abs().max()) for x, y in zip(found, exact, strict=True)]


@every_schedule
@pytest.mark.parametrize("s, t", STEPS)
def test_a_step_is_exact(name, s, t):
    assert max(step_errors(right, name, s, t)) < 1e-10


@variants(half=no_half, radius=radius_forgotten)
def test_wrong_steps_are_seen(wrong):
    assert min(step_errors(wrong, "sub-VP", 0.5, 0.6)) > 1e-3


def test_a_second_look_at_the_first_time_is_seen():
    assert step_errors(looking_from_t, "sub-VP", 0.5, 0.6)[1] > 1e-3


@every_schedule
def test_the_flow_of_a_gaussian_is_known(name):
    """Every point keeps its distance from the mean in standard deviations."""
    schedule, x = SCHEDULES[name], normal(20, 2)
    times = torch.tensor([1.0, 0.6, 0.2, END], dtype=torch.float64)
    alphas, sigmas = schedule.alpha(times).tolist(), schedule.sigma(times).tolist()
    means = [alpha * MEAN for alpha in alphas]
    stds = [math.hypot(alpha * STD, sigma) for alpha, sigma in zip(alphas, sigmas, strict=True)]
    start = means[0] + stds[0] * x
    options = {"rtol": 1e-8, "atol": 1e-8, "method": DOP853}
    path = probability_flow(MixtureDenoiser(gaussian(), schedule), start, times, **options)
    for found, mean, std in zip(path, means[1:], stds[1:], strict=True):
        assert (found - (mean + std * x)).abs().max() < 1e-6


class Flow:
    """Points of the pair's flow from t = 1 to END, exact to 1e-9."""

    def __init__(self, name):
        self.schedule = SCHEDULES[name]
        self.denoiser = MixtureDenoiser(pair(), self.schedule)
        law = pair().diffuse(self.schedule.at(1.0, like=normal(1)))
        self.start = law.sample(50, generator=generator(3))
        ends = torch.tensor([1.0, END], dtype=torch.float64)
        self.end = self.adaptive(ends, 1e-10)

    def adaptive(self, times, tolerance, x=None):
        options = {"rtol": tolerance, "atol": tolerance, "method": DOP853}
        return final(
            probability_flow(self.denoiser, self.start if x is None else x, times, **options)
        )

    def error(self, sampler, n, **options):
        """Median over points of the distance from where they belong."""
        times = log_snr_times(self.schedule, n, END)
        found = final(sampler(self.denoiser, self.start, times, **options))
        return float((found - self.end).norm(dim=1).median())

    def order(self, sampler, **options):
        """Minus the slope of log error on log steps."""
        steps = np.array([32, 64, 128, 256])
        errors = [self.error(sampler, n, **options) for n in steps]
        return -np.polyfit(np.log(steps), np.log(errors), 1)[0]


@pytest.mark.parametrize("name", ["linear", "sub-VP", "VE"])
def test_the_orders_are_one_and_two(name):
    flow = Flow(name)
    assert abs(flow.order(euler) - 1) < 0.1
    assert abs(flow.order(heun) - 2) < 0.15
    assert abs(flow.order(euler_maruyama, generator=generator(7), eta=0.0) - 1) < 0.15


def test_an_adaptive_solver_meets_a_finer_heun():
    flow = Flow("linear")
    assert flow.error(heun, 4000) < 1e-6
    assert flow.error(heun, 100) > 1e-5


def test_the_error_falls_with_the_tolerance():
    flow, times = Flow("linear"), torch.tensor([1.0, END], dtype=torch.float64)

    def error(tolerance):
        options = {"rtol": tolerance, "atol": tolerance}
        found = final(probability_flow(flow.denoiser, flow.start, times, **options))
        return float((found - flow.end).abs().max())

    errors = [error(tolerance) for tolerance in (1e-3, 1e-5, 1e-7, 1e-9)]
    assert errors[0] < 0.1 and errors[-1] < 1e-7
    assert all(fine < coarse / 20 for coarse, fine in pairwise(errors))


def test_the_adaptive_solver_is_the_one_asked_for():
    """DOP853, of order 8, needs fewer looks at a tight tolerance; none of them is recorded."""
    exact, seen = Flow("linear").denoiser, []

    def denoiser(xt, t, cond=None):
        seen.append(torch.is_grad_enabled())
        return exact(xt, t)

    denoiser.schedule = exact.schedule
    looks = []
    for method in ({}, {"method": DOP853}):
        seen.clear()
        times, x = log_snr_times(exact.schedule, 3, END), normal(5, 2).requires_grad_()
        list(probability_flow(denoiser, x, times, rtol=1e-12, atol=1e-12, **method))
        looks.append(len(seen))
        assert not any(seen)
    assert looks[1] < 0.8 * looks[0]


def test_the_flow_read_on_its_way_is_the_flow_ended_there():
    flow = Flow("VE")
    times = log_snr_times(flow.schedule, 6, END)
    options = {"rtol": 1e-9, "atol": 1e-9}
    path = list(probability_flow(flow.denoiser, flow.start, times, **options))
    for x, t in zip(path, times[1:], strict=True):
        ended = flow.adaptive(torch.stack([times[0], t]), 1e-10)
        assert (x - ended).abs().max() < 1e-6 * ended.abs().max()


@pytest.mark.parametrize("solver, within", [(heun, 1e-3), (probability_flow, 1e-3)])
def test_what_rises_comes_back(solver, within):
    flow = Flow("sub-VP")
    times = log_snr_times(flow.schedule, 200, END)
    code = final(solver(flow.denoiser, flow.end, times.flip(0)))
    assert (code - flow.start).abs().max() < within


@pytest.mark.parametrize("sampler", [euler, heun, probability_flow])
def test_schedules_share_one_flow(sampler):
    """What a schedule adds is when a noise level is met, and a scale."""
    levels = torch.linspace(-2, 3, 20, dtype=torch.float64)
    ends = []
    for name in ("linear", "cosine", "discrete linear", "sub-VP", "VE"):
        schedule = SCHEDULES[name]
        times = schedule.time_of(levels)
        radii = torch.hypot(schedule.alpha(times), schedule.sigma(times))
        x = radii[0] * normal(5, 2)
        ends.append(final(sampler(MixtureDenoiser(pair(), schedule), x, times)) / radii[-1])
    assert max(float((end - ends[0]).abs().max()) for end in ends) < 1e-9


def test_ddim_goes_around_the_circle_that_euler_leaves():
    """x_s / r = cos(h) x / r + sin(h) v / r is DDIM's step, and Euler's to first order in h."""
    denoiser, gaps = MixtureDenoiser(pair(), LinearVP()), []
    x, t = normal(5, 2), torch.tensor(0.6, dtype=torch.float64)
    for h in (0.1, 0.05):
        angle = torch.atan2(LinearVP().sigma(t), LinearVP().alpha(t)) - h
        times = torch.stack([t, LinearVP().time_of(-angle.tan().log())])
        (turned,) = ddim(denoiser, x, times)
        v = denoiser(x, t).v
        assert (turned - (math.cos(h) * x - math.sin(h) * v)).abs().max() < 1e-12
        (straight,) = euler(denoiser, x, times)
        gaps.append(float((turned - straight).abs().max()))
    assert math.log2(gaps[0] / gaps[1]) == pytest.approx(2, abs=0.1)


# ends, shapes


def test_a_step_to_clean_data_looks_once():
    """From the noise all the way: Euler's step, for Heun too, turns x into x_0's guess."""
    schedule, seen = CosineVP(), []
    exact = MixtureDenoiser(pair(), schedule)

    def denoiser(xt, t, cond=None):
        seen.append(float(t))
        return exact(xt, t)

    denoiser.schedule = schedule
    (by_heun,), (by_euler,) = (
        list(sampler(denoiser, normal(5, 2), torch.tensor([0.01, 0.0])))
        for sampler in (heun, euler)
    )
    assert torch.equal(by_heun, by_euler) and seen == pytest.approx([0.01, 0.01])
    assert (by_heun - exact(normal(5, 2), 0.01).x0).abs().max() < 1e-2
    points = final(heun(denoiser, normal(500, 2), uniform_times(100)))
    truth = final(probability_flow(exact, normal(500, 2), torch.tensor([1.0, 1e-6])))
    assert (points - truth).abs().median() < 1e-2 and min(seen) == pytest.approx(0.01)


def test_the_adaptive_solver_is_refused_clean_data():
    denoiser = MixtureDenoiser(pair(), LinearVP())
    for times in (uniform_times(3), uniform_times(3).flip(0)):
        with pytest.raises(ValueError, match="let times end at t > 0"):
            final(probability_flow(denoiser, normal(5, 2), times))


def test_a_flow_that_cannot_be_solved_is_not_returned():
    exact = MixtureDenoiser(pair(), LinearVP())

    def denoiser(xt, t, cond=None):
        found = exact(xt, t)
        return found if t > 0.7 else Prediction(xt, found.level, math.nan * found.x0, found.eps)

    denoiser.schedule = exact.schedule
    with pytest.raises(RuntimeError, match="not solved to rtol 1e-05: "):
        final(probability_flow(denoiser, normal(5, 2), torch.tensor([1.0, 0.5])))


@pytest.mark.parametrize("sampler", [euler, heun, probability_flow])
def test_images_float32_and_conditions(sampler):
    """An image is D numbers to the flow, of the caller's dtype."""
    exact, cond = MixtureDenoiser(gaussian(dim=12), LinearVP()), Condition(label=torch.arange(3))
    times = log_snr_times(LinearVP(), 5)
    flat = list(sampler(exact, normal(3, 12), times))

    def denoiser(xt, t, told=None):
        assert told is cond and xt.dtype == torch.float32
        found = exact(xt.flatten(1), t)
        return Prediction(xt, found.level, found.x0.view_as(xt), found.eps.view_as(xt))

    denoiser.schedule = exact.schedule
    path = list(sampler(denoiser, normal(3, 12).float().view(3, 3, 2, 2), times, cond))
    assert len(path) == 5
    for x, y in zip(path, flat, strict=True):
        assert x.shape == (3, 3, 2, 2) and x.dtype == torch.float32
        assert (x.flatten(1) - y).abs().max() < 1e-4
