"""Wrappers of denoisers: what thresholds do to predictions and samples."""

from dataclasses import replace

import pytest
import torch
from truths import SCHEDULES, every_schedule, gaussian, normal, pair

from tutorial_lib.denoiser import Condition, MixtureDenoiser, Prediction
from tutorial_lib.guidance import StaticThreshold
from tutorial_lib.samplers import ddim, final
from tutorial_lib.schedule import DiscreteVP


@every_schedule
def test_a_threshold_clips_x0_and_keeps_xt(name):
    exact = MixtureDenoiser(gaussian(std=2.0), SCHEDULES[name])
    xt, t = 3 * normal(200, 2), 0.4
    free, held = exact(xt, t), StaticThreshold(exact, -0.5, 1.0)(xt, t)
    assert torch.equal(held.x0, free.x0.clamp(-0.5, 1.0)) and not torch.equal(held.x0, free.x0)
    again = held.level.alpha * held.x0 + held.level.sigma * held.eps
    assert (again - xt).abs().max() < 1e-12 * xt.abs().max()
    inside = ((free.x0 > -0.5) & (free.x0 < 1.0)).all(1)
    assert inside.any() and (held.eps - free.eps)[inside].abs().max() < 1e-11


def test_it_hands_on_condition_and_variance():
    told = []

    def denoiser(xt, t, cond=None):
        told.append(cond)
        found = MixtureDenoiser(pair(), denoiser.schedule)(xt, t)
        return replace(found, variance_fraction=0.3 * torch.ones_like(xt))

    denoiser.schedule, cond = DiscreteVP.cosine(100), Condition(label=torch.arange(5))
    found = StaticThreshold(denoiser)(normal(5, 2), 0.5, cond)
    assert told == [cond] and (found.variance_fraction == 0.3).all()
    assert StaticThreshold(denoiser).schedule is denoiser.schedule


class Rounded:
    """An exact denoiser whose eps errs by 0.4 %, as bfloat16 does."""

    def __init__(self):
        self.exact = MixtureDenoiser(gaussian(std=0.1), DiscreteVP.cosine(1000))
        self.schedule = self.exact.schedule

    def __call__(self, xt, t, cond=None):
        found = self.exact(xt, t)
        return Prediction.from_eps(xt, found.level, found.eps * (1 + 0.004 * normal(*xt.shape)))


def test_it_saves_the_first_step_of_a_chain_that_starts_without_signal():
    """The cosine chain ends at alpha = 5e-5: an error of 0.004 in eps is one of 80 in x_0."""
    start, times = normal(5000, 2), torch.tensor([1.0, 0.98], dtype=torch.float64)
    free, held = (final(ddim(d, start, times)) for d in (Rounded(), StaticThreshold(Rounded())))
    assert free.std() > 2 and 0.95 < held.std() < 1.05  # of x_s, truly 1


def test_a_range_that_falls_is_refused():
    with pytest.raises(ValueError, match="must rise"):
        StaticThreshold(MixtureDenoiser(pair(), DiscreteVP.linear(10)), 1.0, -1.0)
