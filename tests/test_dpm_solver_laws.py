"""SDE-DPM-Solver++: its step and its law; diffusers, formula by formula. Takes 3 s."""

from functools import partial
from itertools import pairwise

import pytest
import torch
from exact_levels import LEVELS, conditioned
from mpmath import mpf
from test_dpm_solver import TIMES, Polynomial, by_hand, lambda_, sde_2m
from truths import (
    SCHEDULES,
    every_schedule,
    gaussian,
    generator,
    normal,
    pair,
    standard_errors,
    variants,
)

from tutorial_lib.denoiser import MixtureDenoiser
from tutorial_lib.dpm_solver import (
    dpm_solver_2,
    dpm_solver_3,
    dpm_solver_pp_2m,
    dpm_solver_pp_2s,
    sde_dpm_solver_pp_2m,
)
from tutorial_lib.samplers import ancestral, final
from tutorial_lib.schedule import DiscreteVP, LinearVP, log_snr_times, uniform_times

FAULTS = {
    "no second term": {"share": lambda ratio: 0.0},
    "its sign": {"share": lambda ratio: -0.5 / ratio},
    "no factor 1/2": {"share": lambda ratio: 1 / ratio},
    "ratio inverted": {"share": lambda ratio: ratio / 2},
    "the flow's share of x": {"keep": 0},
    "the flow's pull": {"pull": 1},
    "too little noise": {"spread": 1},
    "variance for std": {"root": 1.0},
}
every_fault = variants(**FAULTS)


# One step


def closed_form_error(sampler, name):
    """Of two unequal steps, with x_0 straight in lambda: from x_s given x_t and x_0, Gaussians."""
    denoiser, x, noise, error = Polynomial(name, "x0", 1), normal(5, 2), generator(7), 0.0
    for i, found in enumerate(sampler(denoiser, x, TIMES, generator=generator(7))):
        t, s = TIMES[i : i + 2].tolist()
        keep, gain, variance = map(float, conditioned(LEVELS[name](mpf(s)), LEVELS[name](mpf(t))))
        ahead = (lambda_(name, s) - lambda_(name, t)) / 2 if i else 0
        z = torch.randn(5, 2, generator=noise, dtype=torch.float64)
        x = keep * x + gain * denoiser.at(lambda_(name, t) + ahead) + variance**0.5 * z
        error = max(error, float((found - x).abs().max() / x.abs().max()))
    return error


def hand_gap(sampler, name):
    denoiser, x = MixtureDenoiser(pair(), SCHEDULES[name]), normal(5, 2)
    walks = [s(denoiser, x, TIMES, generator=generator(7)) for s in (sampler, by_hand(sde_2m))]
    return max(float((a - b).abs().max()) for a, b in zip(*walks, strict=True))


@every_schedule
def test_a_step_of_the_sde_has_its_closed_form(name):
    assert closed_form_error(sde_dpm_solver_pp_2m, name) < 1e-10
    assert hand_gap(sde_dpm_solver_pp_2m, name) < 1e-11


@every_fault
def test_wrong_steps_of_the_sde_are_seen(wrong):
    assert closed_form_error(by_hand(sde_2m), "linear") < 1e-10
    assert closed_form_error(by_hand(sde_2m, **wrong), "linear") > 1e-3


# A chain: on a Gaussian it stays one, and on a mixture its law comes near


def mean_and_variance(name, times):
    """At the end, of the Gaussian chain of pairs (x_t, the x_0 seen a step before)."""
    mean, std = torch.tensor([0.7, -0.2], dtype=torch.float64), 0.5  # of truths.gaussian()
    means, spread = torch.zeros(2, 2).double(), torch.zeros(2, 2).double()  # pair by coordinate
    spread[0, 0] = SCHEDULES[name].prior_std ** 2
    grid = [mpf(t) for t in times.tolist()]
    for i, (t, s) in enumerate(pairwise(grid)):
        alpha, sigma = LEVELS[name](t)
        keep, gain, variance = conditioned(LEVELS[name](s), (alpha, sigma))
        of_x = alpha * std**2 / (alpha**2 * std**2 + sigma**2)  # x_0 = of_x x_t + of_mean mean
        of_mean = 1 - alpha * of_x
        h = lambda_(name, s) - lambda_(name, t)
        ahead = h / (2 * (lambda_(name, t) - lambda_(name, grid[i - 1]))) if i else 0
        rows = [[keep + gain * (1 + ahead) * of_x, -gain * ahead], [of_x, 0]]
        step = torch.tensor([[float(entry) for entry in row] for row in rows]).double()
        shift = torch.tensor([[float(gain * (1 + ahead) * of_mean)], [float(of_mean)]]).double()
        means, spread = step @ means + shift * mean, step @ spread @ step.mT
        spread[0, 0] += float(variance)
    return means[0], spread[0, 0]


def has_this_law(sampler, name, n_steps=12):
    times = uniform_times(n_steps)[:-1]  # unequal in lambda
    denoiser, start = MixtureDenoiser(gaussian(), SCHEDULES[name]), normal(20_000, 2)
    x = SCHEDULES[name].prior_std * start
    found = final(sampler(denoiser, x, times, generator=generator(7)))
    mean, variance = mean_and_variance(name, times)
    squares = (found - mean) ** 2
    return standard_errors(found, mean) < 6 and standard_errors(squares, variance) < 6


@pytest.mark.parametrize("name", ["linear", "sub-VP", "VE"])
def test_the_chain_on_a_gaussian_has_its_closed_law(name):
    assert has_this_law(sde_dpm_solver_pp_2m, name)


@every_fault
def test_wrong_chains_have_another_law(wrong):
    assert has_this_law(by_hand(sde_2m), "linear")
    assert not has_this_law(by_hand(sde_2m, **wrong), "linear")


def law_gap(sampler):
    """In standard errors, after 50 steps: of a mixture's moments and weights, the largest."""
    law, times = pair(), log_snr_times(LinearVP(), 50)
    x = normal(10_000, 2)
    x = final(sampler(MixtureDenoiser(law, LinearVP()), x, times, generator=generator(7)))
    law = law.diffuse(LinearVP().at(times[-1], like=x))
    squares = law.covariances + law.means[:, :, None] * law.means[:, None]
    second = torch.einsum("k,kij->ij", law.weights, squares).flatten()
    return max(
        standard_errors(x, law.weights @ law.means),
        standard_errors((x[:, :, None] * x[:, None]).flatten(1), second),
        standard_errors(law.classify(x), law.weights),
    )


def test_the_law_of_many_steps_is_right():
    """By order 1, which is `ancestral`, 50 steps are not yet many."""
    assert law_gap(sde_dpm_solver_pp_2m) < 6
    assert law_gap(ancestral) > 9
    assert law_gap(by_hand(sde_2m, **FAULTS["too little noise"])) > 9


# diffusers, of whose schedulers the update formulas are called in float64


class Recorded:
    """A denoiser that keeps its predictions of one form."""

    def __init__(self, form):
        self.schedule, self.form, self.said = LinearVP(), form, []

    def __call__(self, xt, t, cond=None):
        prediction = MixtureDenoiser(pair(), self.schedule)(xt, t)
        self.said.append(getattr(prediction, self.form))
        return prediction


def oracle(name, times, **options):
    reason = "expected: diffusers is not installed, pip install '.[oracles]'"
    diffusers = pytest.importorskip("diffusers", reason=reason)
    scheduler = getattr(diffusers, f"DPMSolver{name}Scheduler")(**options)
    scheduler.sigmas = (-LinearVP().lambda_(times)).exp()  # theirs are in float32
    return scheduler


@pytest.mark.parametrize(
    "kind, solver",
    [
        ("dpmsolver++", dpm_solver_pp_2m),
        ("dpmsolver", partial(dpm_solver_pp_2m, form="eps")),
        ("sde-dpmsolver++", sde_dpm_solver_pp_2m),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_diffusers_multistep_step_for_step(kind, solver):
    times, sde = uniform_times(20), kind.startswith("sde")
    how = {"algorithm_type": kind, "solver_order": 2, "final_sigmas_type": "sigma_min"}
    scheduler = oracle("Multistep", times, **how)
    form = "x0" if kind.endswith("++") else "eps"
    denoiser, theirs, noise = Recorded(form), normal(5, 2), generator(7)
    path = solver(denoiser, theirs, times, generator=generator(7))
    for i, x in zip(
        range(20 if form == "x0" else 19), path, strict=False
    ):  # theirs cannot end eps at 0
        scheduler._step_index = i
        z = (
            torch.randn(5, 2, generator=noise, dtype=torch.float64)
            if i < 19
            else torch.zeros(5, 2)
        )
        known = {"sample": theirs, "noise": z if sde else None}
        if 0 < i < 19:
            theirs = scheduler.multistep_dpm_solver_second_order_update(
                denoiser.said[-2:], **known
            )
        else:
            theirs = scheduler.dpm_solver_first_order_update(denoiser.said[-1], **known)
        assert (x - theirs).abs().max() < 1e-11


@pytest.mark.parametrize("lower", [False, True])
def test_diffusers_last_step(lower):
    """Of few steps; theirs are in float32."""
    options = {"lower_order_final": lower, "final_sigmas_type": "sigma_min"}
    scheduler = oracle("Multistep", uniform_times(1), **options)
    scheduler.set_timesteps(10)  # and sets its own sigmas
    times = torch.cat([scheduler.timesteps + 1, torch.ones(1)]).double() / 1000
    denoiser = MixtureDenoiser(pair(), DiscreteVP.linear(1000))
    theirs = normal(5, 2)
    path = [
        list(dpm_solver_pp_2m(denoiser, theirs, times, lower_order_final=asked))
        for asked in (lower, not lower)
    ]
    for step, t in zip(scheduler.timesteps, times[:-1], strict=True):
        eps = denoiser(theirs, t).eps
        theirs = scheduler.step(eps, step, theirs).prev_sample
    assert (path[0][-1] - theirs).abs().max() < 1e-4 < (path[1][-1] - theirs).abs().max() / 10


@pytest.mark.parametrize(
    "solver, kind, order",
    [
        (dpm_solver_pp_2s, "dpmsolver++", 2),
        (dpm_solver_2, "dpmsolver", 2),
        (dpm_solver_3, "dpmsolver", 3),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_diffusers_singlestep_formula(solver, kind, order):
    """Where they agree: theirs finds the third look by another formula, so ours is given to it."""
    form = "x0" if kind == "dpmsolver++" else "eps"
    denoiser, x = Recorded(form), normal(5, 2)
    (found,) = solver(denoiser, x, TIMES[:2])
    shares = torch.linspace(0, 1, order + 1, dtype=torch.float64)  # of the step: 0, looks, 1
    lambdas = LinearVP().lambda_(TIMES[:2])
    times = LinearVP().time_of(lambdas[0] + shares * lambdas.diff())
    options = {"algorithm_type": kind, "solver_order": order, "final_sigmas_type": "sigma_min"}
    scheduler = oracle("Singlestep", times, **options)
    scheduler._step_index = order - 1
    names = {2: "second", 3: "third"}
    update = getattr(scheduler, f"singlestep_dpm_solver_{names[order]}_order_update")
    assert (found - update(denoiser.said, sample=x)).abs().max() < 1e-11
