"""Wrappers of denoisers: what thresholds do to predictions and samples."""

from dataclasses import replace

import pytest
import torch
from truths import SCHEDULES, every_schedule, gaussian, normal, pair, variants

from tutorial_lib.denoiser import Condition, MixtureDenoiser, Prediction
from tutorial_lib.guidance import DynamicThreshold, StaticThreshold
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


@pytest.mark.parametrize("threshold", [StaticThreshold, DynamicThreshold])
def test_it_hands_on_condition_and_variance(threshold):
    told = []

    def denoiser(xt, t, cond=None):
        told.append(cond)
        found = MixtureDenoiser(pair(), denoiser.schedule)(xt, t)
        return replace(found, variance_fraction=0.3 * torch.ones_like(xt))

    denoiser.schedule, cond = DiscreteVP.cosine(100), Condition(label=torch.arange(5))
    found = threshold(denoiser)(normal(5, 2), 0.5, cond)
    assert told == [cond] and (found.variance_fraction == 0.3).all()
    assert threshold(denoiser).schedule is denoiser.schedule


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


# Imagen's dynamic threshold, one row and one number at a time


def quantile(values, q):
    """The value a share q of the way through the sorted ones, straight lines between them."""
    values = sorted(values)
    place = q * (len(values) - 1)
    low = min(int(place), len(values) - 2)
    return values[low] + (place - low) * (values[low + 1] - values[low])


def of_imagen(rows, q):
    sizes = [max(1.0, quantile([abs(v) for v in row], q)) for row in rows]
    return [[min(max(v, -s), s) / s for v in row] for row, s in zip(rows, sizes, strict=True)]


def not_divided(rows, q):
    sizes = [max(1.0, quantile([abs(v) for v in row], q)) for row in rows]
    return [[min(max(v, -s), s) for v in row] for row, s in zip(rows, sizes, strict=True)]


def below_one(rows, q):
    sizes = [quantile([abs(v) for v in row], q) for row in rows]
    return [[min(max(v, -s), s) / s for v in row] for row, s in zip(rows, sizes, strict=True)]


def of_the_batch(rows, q):
    s = max(1.0, quantile([abs(v) for row in rows for v in row], q))
    return [[min(max(v, -s), s) / s for v in row] for row in rows]


def signed(rows, q):
    sizes = [max(1.0, quantile(row, q)) for row in rows]
    return [[min(max(v, -s), s) / s for v in row] for row, s in zip(rows, sizes, strict=True)]


def threshold_gap(rule, q, shape=(6, 3, 4, 4)):
    """Distance of the wrapper's x_0 from the rule's, on rows from 0.3 to 3 wide."""
    schedule, xt = SCHEDULES["cosine"], normal(*shape)
    x0 = torch.linspace(0.3, 3, shape[0]).double().reshape(-1, 1, 1, 1) * (normal(*shape) - 0.5)

    def denoiser(xt, t, cond=None):
        return Prediction.from_x0(xt, schedule.at(t, like=xt), x0)

    denoiser.schedule = schedule
    held = DynamicThreshold(denoiser, quantile=q)(xt, 0.4)
    again = held.level.alpha * held.x0 + held.level.sigma * held.eps
    assert (again - xt).abs().max() < 1e-12
    made = torch.tensor(rule(x0.flatten(1).tolist(), q), dtype=torch.float64).reshape(shape)
    return float((held.x0 - made).abs().max())


@pytest.mark.parametrize("q", [0.3, 0.9, 0.995, 1.0])
def test_the_dynamic_threshold_is_imagens(q):
    assert threshold_gap(of_imagen, q) < 1e-12


@variants(a=not_divided, b=below_one, c=of_the_batch, d=signed)
def test_wrong_dynamic_thresholds_are_seen(wrong):
    assert threshold_gap(wrong, 0.9) > 0.05


def test_within_the_range_a_dynamic_threshold_does_nothing():
    exact = MixtureDenoiser(gaussian(std=0.01), SCHEDULES["linear"])  # at (0.7, -0.2)
    xt = normal(50, 2)
    free, held = exact(xt, 0.5), DynamicThreshold(exact)(xt, 0.5)
    assert torch.equal(held.x0, free.x0) and (held.eps - free.eps).abs().max() < 1e-14


@pytest.mark.parametrize("q", [0.0, 99.5])
def test_a_quantile_outside_its_range_is_refused(q):
    with pytest.raises(ValueError, match="must lie in"):
        DynamicThreshold(MixtureDenoiser(pair(), DiscreteVP.linear(10)), quantile=q)
