"""DPM-Solver and ++: unequal steps in closed form, planted faults, orders. Takes 6 s."""

from functools import cache, partial
from itertools import pairwise
from typing import NamedTuple

import mpmath
import numpy as np
import pytest
import torch
from exact_levels import LEVELS
from mpmath import mpf
from scipy.integrate import DOP853
from truths import SCHEDULES, every_schedule, gaussian, generator, normal, pair

from tutorial_lib.denoiser import MixtureDenoiser, Prediction
from tutorial_lib.dpm_solver import (
    dpm_solver_1,
    dpm_solver_2,
    dpm_solver_3,
    dpm_solver_pp_2m,
    dpm_solver_pp_2s,
)
from tutorial_lib.samplers import final
from tutorial_lib.schedule import log_snr_times
from tutorial_lib.solvers import probability_flow

TIMES = torch.tensor([0.8004, 0.6004, 0.2503], dtype=torch.float64)  # unequal in t and in lambda
END = 1e-3


# The papers' steps by other hands, their faults as options


def along(at, x, t, s, eps):
    h = at.lambda_(s) - at.lambda_(t)
    return at.alpha(s) / at.alpha(t) * x - at.sigma(s) * h.expm1() * eps


def dpm_1(look, at, x, t, s, past, noise):
    return along(at, x, t, s, look(x, t).eps)


def dpm_2(look, at, x, t, s, past, noise, weight=1.0, middle_in_t=False):
    first = look(x, t).eps
    m = (s + t) / 2 if middle_in_t else at.time_of((at.lambda_(s) + at.lambda_(t)) / 2)
    second = look(along(at, x, t, m, first), m).eps
    return along(at, x, t, s, first + weight * (second - first))


def of_slope(h):
    return h.expm1() / h - 1


def dpm_3(look, at, x, t, s, past, noise, bend=1.0, weight=of_slope, r2=2 / 3, divisor=2 / 3):
    h, first = at.lambda_(s) - at.lambda_(t), look(x, t).eps
    s1, s2 = (at.time_of(at.lambda_(t) + r * h) for r in (1 / 3, r2))
    d1 = look(along(at, x, t, s1, first), s1).eps - first
    u2 = along(at, x, t, s2, first) - bend * at.sigma(s2) * 3 * r2 * of_slope(r2 * h) * d1
    d2 = look(u2, s2).eps - first
    return along(at, x, t, s, first) - at.sigma(s) * weight(h) * d2 / divisor


def pp_2s(look, at, x, t, s, past, noise, weight=1.0):
    h, first = at.lambda_(s) - at.lambda_(t), look(x, t).x0
    m = at.time_of(at.lambda_(t) + h / 2)
    u = at.sigma(m) / at.sigma(t) * x - at.alpha(m) * (-h / 2).expm1() * first
    data = (1 - weight) * first + weight * look(u, m).x0
    return at.sigma(s) / at.sigma(t) * x - at.alpha(s) * (-h).expm1() * data


def extrapolated(look, x, t, h, past, share):
    """x_0 a step h on from t, by a slope from `past`, which has what was seen a step before."""
    now = look(x, t).x0
    before, h_before = past[-1] if past else (now, h)
    past.append((now, h))
    return now + share(h_before / h) * (now - before)


def right(ratio):
    return 1 / (2 * ratio)


def pp_2m(look, at, x, t, s, past, noise, share=right):
    h = at.lambda_(s) - at.lambda_(t)
    data = extrapolated(look, x, t, h, past, share)
    return at.sigma(s) / at.sigma(t) * x - at.alpha(s) * (-h).expm1() * data


def sde_2m(look, at, x, t, s, past, noise, share=right, keep=1, pull=2, spread=2, root=0.5):
    h = at.lambda_(s) - at.lambda_(t)
    data = extrapolated(look, x, t, h, past, share)
    std = at.sigma(s) * (-(-spread * h).expm1()) ** root
    kept = at.sigma(s) / at.sigma(t) * (-keep * h).exp() * x
    z = torch.randn(x.shape, generator=noise, dtype=x.dtype)
    return kept - at.alpha(s) * (-pull * h).expm1() * data + std * z


def by_hand(step, **fault):
    """A sampler that walks by one of these steps."""

    def sampler(denoiser, x, times, cond=None, *, generator=None):
        past = []
        for t, s in pairwise(times):
            x = step(denoiser, denoiser.schedule, x, t, s, past, generator, **fault)
            yield x

    return sampler


# A prediction that lambda alone decides: a step holds it at one known value


class Polynomial:
    """Predict constant + slope l + curve l^2, l = lambda - lambda(TIMES[0]), whatever x is."""

    constant = torch.tensor([0.7, -0.4], dtype=torch.float64)
    slope = torch.tensor([-0.5, 0.8], dtype=torch.float64)
    curve = torch.tensor([0.3, 0.2], dtype=torch.float64)

    def __init__(self, name, form, degree):
        self.schedule, self.form, self.degree = SCHEDULES[name], form, degree
        self.start = float(lambda_(name, TIMES[0]))

    def at(self, lambda_):
        past = float(lambda_) - self.start
        return self.constant + past * self.slope + (self.degree > 1) * past**2 * self.curve

    def __call__(self, xt, t, cond=None):
        read = getattr(Prediction, f"from_{self.form}")
        value = self.at(self.schedule.lambda_(t)).expand(xt.shape)
        return read(xt, self.schedule.at(t, like=xt), value)


def lambda_(name, t):
    alpha, sigma = LEVELS[name](mpf(float(t)))
    return mpmath.log(alpha / sigma)


def at_start(denoiser, start, end, i):
    return denoiser.at(start)


def half_way(denoiser, start, end, i):
    return denoiser.at((start + end) / 2)


def half_way_but_first(denoiser, start, end, i):
    return denoiser.at((start + end) / 2 if i else start)


def on_the_chord(denoiser, start, end, i):
    """To 2/3 of the step, at the mean of l that the papers' integral of eps weighs by e^-l.

    Of a straight line it is the exact solution.
    """
    h, first = end - start, denoiser.at(start)
    moment = mpmath.quad(lambda past: past * mpmath.exp(-past), [0, h])
    share = float(moment / (1 - mpmath.exp(-h)) / (2 * h / 3))
    return first + share * (denoiser.at(start + 2 * h / 3) - first)


def held(form, x, s, t, value):
    """x_s if the prediction is `value`: the other one is where x_t says."""
    (alpha_s, sigma_s), (alpha, sigma) = s, t
    if form == "eps":
        return float(alpha_s / alpha) * x + float(sigma_s - alpha_s / alpha * sigma) * value
    return float(sigma_s / sigma) * x + float(alpha_s - sigma_s / sigma * alpha) * value


class Case(NamedTuple):
    solver: object
    by_hand: object
    order: int
    form: str
    mean: object  # which value of a polynomial a step holds
    degree: int = 1


ORDERS = ("1", "2", "3", "2S", "2M")
CASES = {
    "1": Case(dpm_solver_1, dpm_1, 1, "eps", at_start),
    "2": Case(dpm_solver_2, dpm_2, 2, "eps", half_way),
    "2, r1 = 0.3": Case(partial(dpm_solver_2, r1=0.3), dpm_2, 2, "eps", half_way),
    "3": Case(dpm_solver_3, dpm_3, 3, "eps", on_the_chord, degree=2),
    "2S": Case(dpm_solver_pp_2s, pp_2s, 2, "x0", half_way),
    "2S, r1 = 0.3": Case(partial(dpm_solver_pp_2s, r1=0.3), pp_2s, 2, "x0", half_way),
    "2M": Case(dpm_solver_pp_2m, pp_2m, 2, "x0", half_way_but_first),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
every_order = pytest.mark.parametrize("case", [CASES[key] for key in ORDERS], ids=ORDERS)


def closed_form_error(sampler, name, case):
    """Of two unequal steps."""
    denoiser, x, error = Polynomial(name, case.form, case.degree), normal(5, 2), 0.0
    for i, found in enumerate(sampler(denoiser, x, TIMES)):
        t, s = TIMES[i : i + 2].tolist()
        value = case.mean(denoiser, lambda_(name, t), lambda_(name, s), i)
        x = held(case.form, x, *(LEVELS[name](mpf(when)) for when in (s, t)), value)
        error = max(error, float((found - x).abs().max() / x.abs().max()))
    return error


@every_schedule
@every_case
def test_unequal_steps_have_their_closed_form(name, case):
    assert closed_form_error(case.solver, name, case) < 1e-10


# Orders: of the step after one 0.4 times as long, and of whole paths


def local_order(sampler, name="linear"):
    """The power of h by which a step's error falls, on the known flow of a Gaussian, less 1."""
    at, mean = SCHEDULES[name], torch.tensor([0.7, -0.2], dtype=torch.float64)
    sizes, errors = [0.2, 0.1, 0.05, 0.025], []
    for h in sizes:
        times = at.time_of(torch.tensor([0, 0.4 * h, 1.4 * h], dtype=torch.float64))
        before, found = sampler(MixtureDenoiser(gaussian(), at), normal(5, 2), times)
        alphas, stds = at.alpha(times), torch.hypot(0.5 * at.alpha(times), at.sigma(times))
        z = (before - alphas[1] * mean) / stds[1]  # which the flow keeps
        errors.append(float((found - (alphas[2] * mean + stds[2] * z)).abs().max()))
    return np.polyfit(np.log(sizes), np.log(errors), 1)[0] - 1


@cache
def flow(name):
    """A denoiser, and points of its flow at t = 1 and at END."""
    denoiser = MixtureDenoiser(pair(), SCHEDULES[name])
    law = pair().diffuse(denoiser.schedule.at(1.0, like=normal(1)))
    start = law.sample(100, generator=generator(3))
    ends = torch.tensor([1.0, END], dtype=torch.float64)
    end = probability_flow(denoiser, start, ends, rtol=1e-11, atol=1e-11, method=DOP853)
    return denoiser, start, final(end)


def order(sampler, name="linear", steps=(48, 96, 192)):
    """Of the median error: a mean would only tell of the few points between two modes."""
    denoiser, start, end = flow(name)
    grids = [log_snr_times(SCHEDULES[name], n, END) for n in steps]
    ends = [final(sampler(denoiser, start, times)) for times in grids]
    errors = [float((found - end).norm(dim=1).median()) for found in ends]
    return -np.polyfit(np.log(steps), np.log(errors), 1)[0]


@pytest.mark.parametrize("name", ["linear", "sub-VP", "VE"])
@every_order
def test_the_orders_are_the_papers(name, case):
    assert abs(order(case.solver, name) - case.order) < 0.15
    assert abs(local_order(case.solver, name) - case.order) < 0.15


# Every formula and check once more, against faults


@every_schedule
@every_order
def test_a_walk_is_the_papers_by_other_hands(name, case):
    denoiser, x = MixtureDenoiser(pair(), SCHEDULES[name]), normal(5, 2)
    walks = (list(s(denoiser, x, TIMES)) for s in (case.solver, by_hand(case.by_hand)))
    assert max(float((a - b).abs().max()) for a, b in zip(*walks, strict=True)) < 1e-12


CLOSED, PATH, LOCAL = "closed form", "order", "order of a step"
FAULTS = {
    "2: no second term": ("2", {"weight": 0.0}, {CLOSED, PATH, LOCAL}),
    "2: its sign": ("2", {"weight": -1.0}, {CLOSED, PATH, LOCAL}),
    "2: no factor 1/2": ("2", {"weight": 2.0}, {CLOSED, PATH, LOCAL}),
    "2: 1/2 too many": ("2", {"weight": 0.5}, {CLOSED, PATH, LOCAL}),
    "2: middle in t": ("2", {"middle_in_t": True}, {CLOSED}),
    "3: no D1": ("3", {"bend": 0.0}, {PATH, LOCAL}),
    "3: sign of D1": ("3", {"bend": -1.0}, {PATH, LOCAL}),
    "3: order 2's weight": ("3", {"weight": lambda h: h.expm1() / 2}, {CLOSED, PATH, LOCAL}),
    "3: phi_1": ("3", {"weight": lambda h: h.expm1() / h}, {CLOSED, PATH, LOCAL}),
    "3: no 1/r2": ("3", {"divisor": 1.0}, {CLOSED, PATH, LOCAL}),
    "3: r2 = 1/2": ("3", {"r2": 0.5, "divisor": 0.5}, {CLOSED, PATH, LOCAL}),
    "2S: no second term": ("2S", {"weight": 0.0}, {CLOSED, PATH, LOCAL}),
    "2S: its sign": ("2S", {"weight": -1.0}, {CLOSED, PATH, LOCAL}),
    "2S: no factor 1/2": ("2S", {"weight": 2.0}, {CLOSED, PATH, LOCAL}),
    "2M: no second term": ("2M", {"share": lambda ratio: 0.0}, {CLOSED, PATH, LOCAL}),
    "2M: its sign": ("2M", {"share": lambda ratio: -0.5 / ratio}, {CLOSED, PATH, LOCAL}),
    "2M: no factor 1/2": ("2M", {"share": lambda ratio: 1 / ratio}, {CLOSED, PATH, LOCAL}),
    "2M: inverted": ("2M", {"share": lambda ratio: ratio / 2}, {CLOSED, LOCAL}),
    "2M: no ratio": ("2M", {"share": lambda ratio: 0.5}, {CLOSED, LOCAL}),
}


@pytest.mark.parametrize("key, fault, seen", FAULTS.values(), ids=FAULTS)
def test_faults_are_seen(key, fault, seen):
    """What the order of a path does not see, the ratio and the middle, shows in a single step."""
    case = CASES[key]
    wrong = by_hand(case.by_hand, **fault)
    missed = {
        CLOSED: closed_form_error(wrong, "linear", case) < 1e-3,
        PATH: abs(order(wrong, steps=(32, 96)) - case.order) < 0.5,
        LOCAL: abs(local_order(wrong) - case.order) < 0.5,
    }
    assert {check for check in missed if not missed[check]} == seen
