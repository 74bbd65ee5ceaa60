"""Predictions in all their forms: what one form says, every other must say too."""

import re
from dataclasses import replace

import pytest
import torch
from truths import SCHEDULES, every_schedule, normal, pair, relative, variants

from tutorial_lib.denoiser import Condition, MixtureDenoiser, Prediction
from tutorial_lib.schedule import Level, LinearVP

FORMS = ("x0", "eps", "score", "v")
every_form = pytest.mark.parametrize("form", FORMS)
TIMES = torch.tensor([1e-12, 1e-8, 1e-4, 0.01, 0.3, 0.7, 0.99, 1 - 1e-9, 1.0]).double()


def read(form, xt, level, value) -> Prediction:
    return getattr(Prediction, f"from_{form}")(xt, level, value)


def round_trip_error(name, first, second, read=read) -> float:
    """Error of x_0 times alpha and of eps times sigma (their conditioning) after two readings."""
    x0, eps = normal(len(TIMES), 2, seed=1), normal(len(TIMES), 2, seed=2)
    level = SCHEDULES[name].at(TIMES, like=x0)
    xt = level.alpha * x0 + level.sigma * eps
    truth = Prediction(xt, level, x0, eps)
    once = getattr(Prediction, f"from_{first}")(xt, level, getattr(truth, first))
    again = read(second, xt, level, getattr(once, second))
    x0_error = (again.x0 - x0).abs() * level.alpha.clamp(max=1)
    eps_error = (again.eps - eps).abs() * level.sigma.clamp(max=1)
    return float(torch.maximum(x0_error, eps_error).max())


@every_schedule
@every_form
@pytest.mark.parametrize("second", FORMS)
def test_forms_are_equivalent(name, form, second):
    assert round_trip_error(name, form, second) < 1e-11


def wrong_v(xt, level, v):
    """The variant that takes alpha^2 + sigma^2 = 1 for granted."""
    return Prediction(
        xt, level, level.alpha * xt - level.sigma * v, level.sigma * xt + level.alpha * v
    )


@variants(
    eps_without_sigma=(
        "eps",
        lambda xt, level, eps: Prediction.from_eps(xt, level, eps / level.sigma),
    ),
    score_without_sign=(
        "score",
        lambda xt, level, score: Prediction.from_score(xt, level, -score),
    ),
    score_for_eps=("score", Prediction.from_eps),
    alpha_squared=("x0", lambda xt, level, x0: Prediction.from_x0(xt, level, level.alpha * x0)),
)
def test_wrong_readings_fail(wrong):
    form, reader = wrong
    assert round_trip_error("linear", form, form, lambda form, *a: reader(*a)) > 0.1


def test_v_on_schedules_that_do_not_preserve_variance():
    def error(name):
        return round_trip_error(name, "v", "v", lambda form, *a: wrong_v(*a))

    assert error("linear") < 1e-11 and error("sub-VP") > 0.1 and error("VE") > 0.1


@pytest.mark.parametrize(
    "use, message",
    [
        (
            lambda p: Prediction.from_eps(p.xt, Level(0 * p.xt, p.xt), p.eps),
            "x_0 from eps needs alpha > 0",
        ),
        (
            lambda p: Prediction.from_score(p.xt, Level(0 * p.xt, p.xt), p.eps),
            "there is no signal",
        ),
        (lambda p: Prediction.from_x0(p.xt, p.level, p.x0), "eps from x_0 needs sigma > 0"),
        (lambda p: p.score, "the score needs sigma > 0: t is too small"),
    ],
)
def test_true_singularities_say_so(use, message):
    prediction = MixtureDenoiser(pair(), LinearVP())(normal(3, 2), torch.tensor([0.5, 0.0, 1.0]))
    with pytest.raises(ZeroDivisionError, match=re.escape(message)):
        use(prediction)


def test_v_is_regular_at_both_ends():
    xt, v, zero, one = normal(3, 2), normal(3, 2, seed=1), torch.zeros(()), torch.ones(())
    data, noise = (Prediction.from_v(xt, Level(*ends), v) for ends in ((one, zero), (zero, one)))
    assert torch.equal(data.x0, xt) and torch.equal(data.eps, v)
    assert torch.equal(noise.x0, -v) and torch.equal(noise.eps, xt)


def test_clipping_keeps_the_forms_consistent():
    xt, level = 2 * normal(50, 2), LinearVP().at(0.4, like=normal(50, 2))
    wild = replace(Prediction.from_eps(xt, level, normal(50, 2, seed=1)), variance_fraction=xt)
    clipped = wild.clipped(-1.0, 1.5)
    assert torch.equal(clipped.x0, wild.x0.clamp(-1.0, 1.5)) and bool(
        (clipped.x0 != wild.x0).any()
    )
    assert (level.alpha * clipped.x0 + level.sigma * clipped.eps - xt).abs().max() < 1e-14
    assert clipped.variance_fraction is xt
    inside = (clipped.x0 == wild.x0).all(1)
    assert inside.any() and relative(clipped.eps[inside], wild.eps[inside]) < 1e-12
    stale = level.alpha * clipped.x0 + level.sigma * wild.eps  # the variant: eps left as it was
    assert (stale - xt).abs().max() > 0.1


def test_condition_without():
    full = Condition(label=torch.arange(3), text=normal(3, 4, 5), mask=torch.ones(3, 4))
    assert full.without("text", "mask") == Condition(label=full.label)
    assert full.without() == full and full.text is not None
    with pytest.raises(TypeError, match="txet"):
        full.without("txet")
