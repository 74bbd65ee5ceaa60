"""Denoisers: the exact one in 50 digits, and one made of a network that answers exactly."""

import pytest
import torch
from exact_levels import levels
from mpmath import mpf
from torch import nn
from truths import SCHEDULES, every_mixture, every_schedule, gaussian, normal, pair, relative

from tutorial_lib.data import overlap3
from tutorial_lib.denoiser import (
    Condition,
    MixtureDenoiser,
    NetworkDenoiser,
    PointsDenoiser,
    Prediction,
    log_snr_clock,
    step_clock,
)
from tutorial_lib.schedule import LinearVP, as_time

every_form = pytest.mark.parametrize("form", ["x0", "eps", "score", "v"])
TIMES = torch.tensor([1e-12, 1e-8, 1e-4, 0.01, 0.3, 0.7, 0.99, 1 - 1e-9, 1.0]).double()


@every_schedule
def test_the_exact_denoiser_of_a_gaussian_in_50_digits(name):
    schedule, xt = SCHEDULES[name], normal(len(TIMES), 2, seed=5)
    x0, eps, mean, variance = [], [], mpf(0.7), mpf(0.25)
    for (alpha, sigma), x in zip(levels(name, TIMES), xt[:, 0].tolist(), strict=True):
        pull = (x - alpha * mean) / (alpha**2 * variance + sigma**2)
        x0.append(mean + alpha * variance * pull)
        eps.append(sigma * pull)
    prediction = MixtureDenoiser(gaussian(), schedule)(xt, TIMES)
    assert relative(prediction.x0[:, 0], x0) < 1e-11
    assert relative(prediction.eps[:, 0], eps) < 1e-11
    if name == "linear":  # the variant: eps from x_0, which cancels near the data
        cancelling = Prediction.from_x0(xt, schedule.at(TIMES, like=xt), prediction.x0)
        assert relative(cancelling.eps[:, 0], eps) > 1e-6


@every_mixture
@every_schedule
def test_the_exact_denoisers_forms_agree(mixture, name):
    xt = normal(len(TIMES), mixture.dim, seed=5)
    prediction = MixtureDenoiser(mixture, SCHEDULES[name])(xt, TIMES)
    level = prediction.level
    back = level.alpha * prediction.x0 + level.sigma * prediction.eps
    assert (back - xt).abs().max() < 1e-12
    for i, t in enumerate(TIMES):  # every row at its own time is a loop
        alone = MixtureDenoiser(mixture, SCHEDULES[name])(xt[i : i + 1], t.item())
        assert relative(prediction.x0[i], alone.x0[0]) < 1e-10
        assert relative(prediction.eps[i], alone.eps[0]) < 1e-10


def test_the_exact_denoiser_of_two_points_by_hand():
    points, t = torch.tensor([[-1.0], [2.0]]).double(), torch.tensor([0.3, 0.9]).double()
    schedule, xt = LinearVP(), torch.tensor([[0.4], [0.7]]).double()
    level = schedule.at(t, like=xt)
    heights = [
        w * (-((xt - level.alpha * c) ** 2) / (2 * level.sigma**2)).exp()
        for w, c in ((3, -1), (5, 2))
    ]
    expected = (2 * heights[1] - heights[0]) / (heights[0] + heights[1])
    found = PointsDenoiser(points, torch.tensor([3.0, 5.0]).double().log(), schedule)(xt, t).x0
    assert relative(found, expected) < 1e-12


def test_a_grid_has_the_denoiser_of_its_density():
    axis = torch.linspace(-4, 4, 161, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).reshape(-1, 2)
    by_grid = PointsDenoiser(grid, overlap3().log_prob(grid) + 7, LinearVP())
    x0 = overlap3().sample(40, generator=torch.Generator().manual_seed(8))
    for t in (0.1, 0.3, 0.9):
        xt = LinearVP().add_noise(x0, normal(40, 2, seed=9), t)
        exact = MixtureDenoiser(overlap3(), LinearVP())(xt, t)
        assert relative(by_grid(xt, t).x0, exact.x0) < 2e-4


def test_the_exact_denoiser_at_the_data():
    xt = normal(5, 2)
    prediction = MixtureDenoiser(pair(), LinearVP())(xt, 0.0)
    assert relative(prediction.x0, xt) < 1e-13 and not prediction.eps.any()


@every_schedule
def test_the_exact_denoiser_of_single_precision_points_works_in_double(name):
    denoiser, xt = MixtureDenoiser(pair(), SCHEDULES[name]), normal(len(TIMES), 2).float()
    single, double = denoiser(xt, TIMES), denoiser(xt.double(), TIMES)
    assert torch.equal(single.x0, double.x0.float())
    assert torch.equal(single.eps, double.eps.float())


class ExactNet(nn.Module):
    """A network that answers exactly, in the form that it is asked for; its clock is t."""

    def __init__(self, schedule, form):
        super().__init__()
        self.exact, self.form, self.seen = MixtureDenoiser(pair(), schedule), form, None

    def forward(self, xt, clock, cond):
        self.seen = (xt, clock, cond)
        return getattr(self.exact(xt, clock.double()), self.form)


@every_schedule
@every_form
def test_a_network_that_is_exact_is_the_exact_denoiser(name, form):
    xt, t = normal(4, 2), torch.tensor([0.01, 0.2, 0.6, 0.95]).double()
    net, exact = ExactNet(SCHEDULES[name], form), MixtureDenoiser(pair(), SCHEDULES[name])
    denoiser = NetworkDenoiser(net, SCHEDULES[name], form, clock=lambda _, t: as_time(t))
    for time in (t, 0.3):
        cond, truth = Condition(label=xt), exact(xt, time)
        told = denoiser(xt, time, cond)
        alpha, sigma = told.level.alpha.clamp(max=1), told.level.sigma.clamp(max=1)
        assert (alpha * (told.x0 - truth.x0)).abs().max() < 1e-11  # 1 / alpha is its conditioning
        assert (sigma * (told.eps - truth.eps)).abs().max() < 1e-11
        assert net.seen[1].shape == (4,) and net.seen[2] is cond
    if form != "v":  # the variant: one form taken for another
        other = NetworkDenoiser(net, SCHEDULES[name], predicts="v", clock=denoiser.clock)
        assert relative(other(xt, t).x0, exact(xt, t).x0) > 0.01


@pytest.mark.parametrize("net_dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_networks_work_in_their_own_dtype_and_points_keep_theirs(net_dtype, dtype):
    class Linear(nn.Linear):
        def forward(self, xt, clock, cond):
            assert xt.dtype == clock.dtype == net_dtype
            return super().forward(xt) * clock[:, None]

    net, schedule = Linear(2, 2).to(net_dtype), LinearVP()
    xt, t = normal(3, 2).to(dtype), torch.tensor([0.1, 0.5, 1.0])
    answer = net(xt.to(net_dtype), log_snr_clock(schedule, t).to(net_dtype), None)
    exact = Prediction.from_eps(xt, schedule.at(t, like=xt), answer.to(dtype))
    told = NetworkDenoiser(net, schedule)(xt, t)
    assert torch.equal(told.x0, exact.x0) and told.x0.dtype == told.eps.dtype == dtype


def test_clocks():
    t = torch.tensor([0.0, 0.001, 0.5, 1.0], dtype=torch.float64)
    assert relative(step_clock(LinearVP(), t), torch.tensor([0.0, 1, 500, 1000]).double()) < 1e-15
    clock = log_snr_clock(LinearVP(), t)
    assert clock[0] == 2 and relative(clock[1:], LinearVP().snr(t)[1:].log() / 10) < 1e-13


def test_unknown_form():
    with pytest.raises(ValueError, match=r"predicts must be .* got 'noise'"):
        NetworkDenoiser(nn.Linear(2, 2), LinearVP(), predicts="noise")
