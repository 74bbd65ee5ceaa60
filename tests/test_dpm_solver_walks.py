"""DPM-Solver's kin and ends, looks, costs and adaptive steps. Takes 5 s."""

from itertools import pairwise

import mpmath
import pytest
import torch
from mpmath import mpf
from test_dpm_solver import END, Polynomial, dpm_1, dpm_2, dpm_3, flow
from test_sampler_cost import MOST, crossings, per_step
from truths import SCHEDULES, every_schedule, generator, normal, pair

from tutorial_lib.denoiser import Condition, MixtureDenoiser
from tutorial_lib.dpm_solver import (
    dpm_solver_1,
    dpm_solver_2,
    dpm_solver_3,
    dpm_solver_adaptive,
    dpm_solver_pp_2m,
    dpm_solver_pp_2s,
    fast_orders,
    phi_2,
    sde_dpm_solver_pp_2m,
    singlestep,
)
from tutorial_lib.samplers import ancestral, ddim
from tutorial_lib.schedule import LinearVP, log_snr_times, uniform_times

LOOKS = {
    dpm_solver_1: 1,
    dpm_solver_2: 2,
    dpm_solver_3: 3,
    dpm_solver_pp_2s: 2,
    dpm_solver_pp_2m: 1,
    sde_dpm_solver_pp_2m: 1,
}
every_solver = pytest.mark.parametrize("solver", LOOKS)
ENDS = torch.tensor([1.0, END], dtype=torch.float64)


class Seen:
    """A denoiser that keeps when it was asked, and what it said."""

    def __init__(self, denoiser, cond=None):
        self.denoiser, self.schedule, self.cond = denoiser, denoiser.schedule, cond
        self.times, self.said = [], []

    def __call__(self, xt, t, cond=None):
        assert cond is self.cond
        self.times.append(float(t))
        self.said.append(self.denoiser(xt, t))
        return self.said[-1]


def on_pair(name):
    return MixtureDenoiser(pair(), SCHEDULES[name])


def walk(solver, denoiser, times, x=None, **options):
    x = denoiser.schedule.prior_std * normal(5, 2) if x is None else x
    return list(solver(denoiser, x, times, generator=generator(7), **options))


def far(walk, other):
    gaps = [(a - b).abs().max() / b.abs().max() for a, b in zip(walk, other, strict=True)]
    return float(max(gaps))


def test_the_weight_of_a_slope_is_accurate():
    sizes = [1e-12, 1e-6, 1e-3, 0.5, 0.999, 1.0, 1.001, 3.0, 20.0]
    zs = torch.tensor([sign * size for size in sizes for sign in (1, -1)], dtype=torch.float64)
    exact = [float((mpmath.expm1(mpf(z)) - mpf(z)) / mpf(z) ** 2) for z in zs.tolist()]
    exact = torch.tensor(exact, dtype=torch.float64)
    assert (phi_2(zs) / exact - 1).abs().max() < 1e-14
    assert phi_2(torch.zeros(1)) == 0.5
    for cancelling in (zs.exp() - 1 - zs) / zs**2, (zs.expm1() / zs - 1) / zs:
        assert (cancelling / exact - 1).abs().max() > 1e-5


# Kinships and ends


@every_schedule
def test_order_one_is_ddim_or_ancestral(name):
    denoiser, times = on_pair(name), uniform_times(20)
    by_ddim = walk(ddim, denoiser, times)
    assert far(walk(dpm_solver_1, denoiser, times), by_ddim) < 1e-10
    assert far(walk(singlestep, denoiser, times, orders=[1] * 20), by_ddim) < 1e-10
    assert far(walk(dpm_solver_2, denoiser, times), by_ddim) > 1e-3
    # a single step, and two of which the last is of order 1 too
    for kin, solver in ((ddim, dpm_solver_pp_2m), (ancestral, sde_dpm_solver_pp_2m)):
        few = times[[0, 12]], times[[0, 12, 18]]
        assert far(walk(solver, denoiser, few[0]), walk(kin, denoiser, few[0])) < 1e-10
        theirs = walk(kin, denoiser, few[1])
        assert far(walk(solver, denoiser, few[1], lower_order_final=True), theirs) < 1e-10
        assert far(walk(solver, denoiser, few[1]), theirs) > 1e-3
        last = times[[12, 20]]  # to s = 0, where no noise is added, not on VE either
        assert far(walk(solver, denoiser, last), walk(kin, denoiser, last)) < 1e-10


@every_schedule
@every_solver
def test_a_step_to_clean_data_is_of_order_one(name, solver):
    """Where data are clean: not on VE, nor on a learned schedule."""
    denoiser, times = Seen(on_pair(name)), torch.tensor([0.5, 0.2, 0.1, 0.0], dtype=torch.float64)
    *_, before, end = walk(solver, denoiser, times)
    clean = float(SCHEDULES[name].sigma(0.0)) == 0
    assert len(denoiser.times) == 3 * LOOKS[solver] - clean * (LOOKS[solver] - 1)
    prediction = on_pair(name)(before, times[2])
    (one_step,) = walk(ddim, denoiser, times[2:], x=before)
    if clean:
        assert far([end, end], [prediction.x0, one_step]) < 1e-12
    elif solver in (dpm_solver_2, dpm_solver_3, dpm_solver_pp_2s, dpm_solver_pp_2m):
        assert far([end], [one_step]) > 1e-5


@every_solver
def test_a_solver_looks_so_often_with_the_condition_and_keeps_the_dtype(solver):
    cond = Condition(label=torch.arange(5))
    denoiser = Seen(on_pair("linear"), cond)
    path = walk(solver, denoiser, log_snr_times(LinearVP(), 6), normal(5, 2).float(), cond=cond)
    assert len(path) == 6 and len(denoiser.times) == 6 * LOOKS[solver]
    assert all(x.dtype == torch.float32 for x in path)
    fine = walk(solver, on_pair("linear"), log_snr_times(LinearVP(), 6))
    if solver is not sde_dpm_solver_pp_2m:  # whose noise is another in float32
        assert far(path, fine) < 1e-5
    assert all(a > b for a, b in pairwise(denoiser.times))


@pytest.mark.parametrize("evaluations", [*range(1, 14), 50])
def test_fast_orders_spend_every_evaluation(evaluations):
    orders = fast_orders(evaluations)
    assert len(orders) == evaluations // 3 + 1 and list(orders) == sorted(orders, reverse=True)
    denoiser, times = Seen(on_pair("linear")), log_snr_times(LinearVP(), len(orders))
    path = walk(singlestep, denoiser, times, orders=orders)
    assert len(denoiser.times) == evaluations
    for i, order in enumerate(orders):  # each step is what its order says
        x = path[i - 1] if i else None
        solver = (dpm_solver_1, dpm_solver_2, dpm_solver_3)[order - 1]
        assert far(walk(solver, on_pair("linear"), times[i : i + 2], x), path[i : i + 1]) < 1e-12


def test_the_papers_fast_orders():
    assert fast_orders(12) == (3, 3, 3, 2, 1)
    assert fast_orders(10) == (3, 3, 3, 1) and fast_orders(20) == (3, 3, 3, 3, 3, 3, 2)


@pytest.mark.parametrize(
    "solver, options, times, said",
    [
        *((solver, {}, uniform_times(3).flip(0)[1:], "fall|s < t") for solver in LOOKS),
        (singlestep, {"orders": (3, 3)}, uniform_times(3), "each of 3 steps needs an order"),
        (singlestep, {"orders": (3, 4)}, uniform_times(2), "each of 2 steps needs an order"),
        (dpm_solver_adaptive, {}, uniform_times(1), "end where sigma > 0"),
        (dpm_solver_adaptive, {}, ENDS.flip(0), "times must fall"),
        (dpm_solver_adaptive, {"order": 1}, ENDS, "order must be 2 or 3"),
        (dpm_solver_adaptive, {"h_init": -1}, ENDS, "no step"),
    ],
)
def test_what_cannot_be_walked_is_refused(solver, options, times, said):
    with pytest.raises((ValueError, RuntimeError), match=said):
        walk(solver, on_pair("linear"), times, **options)


def test_no_evaluations_are_refused():
    with pytest.raises(ValueError, match="at least once"):
        fast_orders(0)


@pytest.mark.parametrize("name", ["linear", "cosine", "discrete linear"])
@every_solver
def test_a_step_costs_little_and_carries_nothing_to_the_device(name, solver):
    assert per_step(name, solver) <= LOOKS[solver] * MOST
    if solver is not sde_dpm_solver_pp_2m:
        assert crossings(solver, times=uniform_times(5)) == 0


# Adaptive steps


def trials(
    denoiser,
    x,
    times,
    order,
    rtol,
    theta=0.9,
    power=None,
    worst=torch.max,
    size=torch.mean,
    keep=0,
):
    """When the papers' algorithm looks, and where it ends, of a prediction straight in lambda."""
    at, before, asked, t, h, atol = denoiser.schedule, x, [], times[0], 3.0, 0.1
    shares, steps = (((1 / 2,), (dpm_1, dpm_2)), ((1 / 3, 2 / 3), (dpm_2, dpm_3)))[order - 2]
    kept = True
    for stop in times[1:]:
        while t > stop:
            rest = at.lambda_(stop) - at.lambda_(t)
            s = at.time_of(at.lambda_(t) + h) if h < rest else stop
            h = at.lambda_(s) - at.lambda_(t)
            asked += [t] * kept + [at.time_of(at.lambda_(t) + share * h) for share in shares]
            low, high = (step(denoiser, at, x, t, s, [], None) for step in steps)
            allowed = torch.maximum(low.abs(), before.abs()).mul(rtol).clamp(min=atol)
            error = worst(size(((low - high) / allowed) ** 2, dim=1).sqrt())
            h, kept = theta * h * error ** (power or -1 / order), bool(error <= 1)
            if kept:
                x, before, t = high, (low, high)[keep], s
    return [float(t) for t in asked], x


@pytest.mark.parametrize("order", [2, 3])
def test_adaptive_steps_are_the_papers(order):
    """Down to 0.3, then to END; the first step is tried too long, and costs one look less."""
    denoiser, x = Seen(Polynomial("linear", "eps", 1)), normal(5, 2)
    times, options = torch.tensor([1.0, 0.3, END], dtype=torch.float64), {"atol": 0.1, "rtol": 0.2}
    path = walk(dpm_solver_adaptive, denoiser, times, x, order=order, h_init=3.0, **options)
    asked, end = trials(denoiser.denoiser, x, times, order, 0.2)
    assert denoiser.times == pytest.approx(asked, rel=1e-9) and far(path[1:], [end]) < 1e-9
    assert len(asked) % order
    faults = [{"theta": 0.81}, {"power": -1 / (order + 1)}]
    faults += [{"worst": torch.mean}, {"size": torch.sum}]
    faults += [{"keep": 1}] * (order == 2)  # by order 3 x grows here: what it was does not matter
    for wrong in faults:
        others, _ = trials(denoiser.denoiser, x, times, order, 0.2, **wrong)
        assert others != pytest.approx(asked, rel=1e-6)


@every_schedule
def test_the_adaptive_solver_ends_where_it_is_told(name):
    """A prediction that stays the same is solved exactly by any steps."""
    denoiser, times = (
        Polynomial(name, "eps", 0),
        torch.tensor([1.0, 0.4, END], dtype=torch.float64),
    )
    denoiser.slope = torch.zeros(2, dtype=torch.float64)
    path = walk(dpm_solver_adaptive, denoiser, times)
    assert far(path, walk(ddim, denoiser, times)) < 1e-11
    assert far(path, walk(ddim, denoiser, times + 1e-4 * (times < 1))) > 1e-6


def test_the_adaptive_error_falls_with_the_tolerance():
    exact, start, end = flow("linear")
    cond, tolerances, looks = Condition(label=torch.arange(100)), (1e-2, 1e-3, 1e-4), {}
    for order in (2, 3):
        errors = []
        for tolerance in tolerances:
            denoiser = Seen(exact, cond)
            options = {"order": order, "atol": tolerance, "rtol": tolerance, "cond": cond}
            (found,) = walk(dpm_solver_adaptive, denoiser, ENDS, start, **options)
            errors.append(float((found - end).norm(dim=1).median()))
            looks[order, tolerance] = len(denoiser.times)
        assert errors[0] < 1e-2 and all(coarse > 3 * fine for coarse, fine in pairwise(errors))
        assert all(looks[order, a] < looks[order, b] for a, b in pairwise(tolerances))
    assert looks[3, 1e-4] < 0.6 * looks[2, 1e-4]
    # float32 says how long steps are: the ends agree as the default tolerance lets them
    (single,) = walk(dpm_solver_adaptive, exact, ENDS, start.float())
    (double,) = walk(dpm_solver_adaptive, exact, ENDS, start)
    assert single.dtype == torch.float32 and (single - double).abs().median() < 1e-3


def test_the_adaptive_defaults_are_the_papers():
    said = {"order": 3, "atol": 0.0078, "rtol": 0.05, "theta": 0.9, "h_init": 0.05}
    walks = [walk(dpm_solver_adaptive, on_pair("linear"), ENDS, **given) for given in ({}, said)]
    assert torch.equal(*(path[0] for path in walks))
    for name in said:
        other = {name: 2} if name == "order" else {name: said[name] / 2}
        assert not torch.equal(
            walk(dpm_solver_adaptive, on_pair("linear"), ENDS, **other)[0], walks[0][0]
        )


def test_a_denoiser_gone_wrong_is_no_endless_loop():
    class Broken(Polynomial):
        def at(self, where):
            return super().at(where) * float("nan")

    with pytest.raises(RuntimeError, match="no step from t = 1 meets the tolerance"):
        walk(dpm_solver_adaptive, Broken("linear", "eps", 1), ENDS)
