"""What every schedule promises its callers: shapes, dtypes, time grids and clear errors."""

import math
import re

import pytest
import torch
from exact_levels import levels
from truths import SCHEDULES, every_schedule, normal, relative

from tutorial_lib.schedule import (
    VE,
    DiscreteVP,
    LinearVP,
    SubVP,
    log_snr_times,
    quadratic_times,
    uniform_times,
)


@every_schedule
def test_per_row_times_equal_a_loop(name):
    schedule, t = SCHEDULES[name], torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    x0, eps = normal(3, 2, 4, 4, seed=1), normal(3, 2, 4, 4, seed=2)
    xt, back = schedule.add_noise(x0, eps, t), schedule.posterior(x0, eps, 0.5 * t, t)
    for i, (alpha, sigma) in enumerate(levels(name, t)):
        assert relative(xt[i], float(alpha) * x0[i] + float(sigma) * eps[i]) < 1e-9
        alone = schedule.posterior(x0[i : i + 1], eps[i : i + 1], 0.5 * t[i].item(), t[i].item())
        assert relative(back.mean[i], alone.mean[0]) < 1e-11
        assert relative(back.variance[i].squeeze(), alone.variance) < 1e-11


def test_points_keep_their_dtype():
    x0 = normal(3, 2).float()
    level = LinearVP().at(0.3, like=x0)
    assert level.alpha.dtype == LinearVP().posterior(x0, x0, 0.1, 0.3).mean.dtype == torch.float32
    assert level.sigma == LinearVP().sigma(0.3).float()


def test_time_grids():
    assert uniform_times(4).tolist() == [1, 0.75, 0.5, 0.25, 0]
    assert quadratic_times(4).tolist() == [1, 0.5625, 0.25, 0.0625, 0]


@every_schedule
def test_log_snr_times_are_even_in_lambda(name):
    times = log_snr_times(SCHEDULES[name], 10, t_end=0.002)
    assert (times[0], times[-1]) == (1, 0.002)
    steps = SCHEDULES[name].lambda_(times).diff()
    assert relative(steps, steps.mean().expand(10)) < 1e-9


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: LinearVP().alpha(1.01), "time must lie in [0, 1], got 1.01"),
        (lambda: LinearVP().sigma(torch.tensor([0.5, -0.1])), "got -0.1 to 0.5"),
        (lambda: LinearVP().alpha(math.nan), "time must lie in [0, 1]"),
        (lambda: LinearVP().transition(0.5, 0.5), "s < t"),
        (lambda: SubVP().posterior(normal(2, 2), normal(2, 2), 0.6, 0.5), "s < t"),
        (
            lambda: LinearVP().at(torch.zeros(2, 1), normal(2, 2)),
            "t must be () or (B,), got (2, 1)",
        ),
        (lambda: LinearVP().at(torch.zeros(3), normal(2, 2)), "got (3,) for x (2, 2)"),
        (lambda: DiscreteVP([0.1, 1.0]), "strictly between 0 and 1"),
        (lambda: DiscreteVP([]), "strictly between 0 and 1"),
        (lambda: DiscreteVP([[0.1]]), "one row of numbers"),
        (lambda: LinearVP(20.0, 0.1), "0 < beta_min < beta_max, got 20.0 and 0.1"),
        (lambda: VE(0.0), "0 < sigma_min < sigma_max, got 0.0"),
    ],
)
def test_user_errors_say_what_was_wrong(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
