"""The learned schedule: monotone, with fixed ends, for whatever its parameters are."""

import pytest
import torch
from truths import generator, relative

from tutorial_lib.learned_schedule import LearnedVP


def scrambled(seed: int, size: float = 3.0) -> LearnedVP:
    """A schedule whose parameters are random, far from where training starts."""
    schedule = LearnedVP(6.0, -4.0, generator=generator(seed))
    with torch.no_grad():
        for parameter in schedule.parameters():
            noise = torch.randn(parameter.shape, generator=generator(seed + 50)).double()
            parameter += size * noise
    return schedule


@pytest.mark.parametrize("seed", range(5))
def test_it_falls_between_fixed_ends_for_any_parameters(seed):
    schedule, t = scrambled(seed), torch.linspace(0, 1, 1001, dtype=torch.float64)
    lambda_ = schedule.lambda_(t).detach()
    assert bool((lambda_.diff() < 0).all())
    assert abs(lambda_[0] - 6) < 1e-12 and abs(lambda_[-1] + 4) < 1e-12
    assert (schedule.time_of(lambda_) - t).abs().max() < 1e-9
    assert bool(((schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2 - 1).abs() < 1e-14).all())
    assert schedule.time_of(7.0) < 1e-15 and schedule.time_of(-5.0) == 1  # beyond the ends


def test_without_softplus_it_would_not_be_monotone():
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)

    def is_monotone(schedule):
        gates = torch.sigmoid(schedule.slope * t[:, None] + schedule.offset)
        steps = (schedule.linear * t + (schedule.weight * gates).sum(1)).diff()
        return bool((steps > 0).all() or (steps < 0).all())

    assert not all(is_monotone(scrambled(seed)) for seed in range(5))


def test_gradients_are_those_of_finite_differences():
    schedule = scrambled(1, size=0.5)

    def loss():
        t = torch.tensor([0.2, 0.6], dtype=torch.float64)
        return (schedule.diffusion2(t) / schedule.sigma(t)).sum() + schedule.alpha(t[0])

    loss().backward()
    for parameter in schedule.parameters():
        numeric = torch.zeros_like(parameter)
        flat, slots = parameter.data.view(-1), numeric.view(-1)
        for i in range(len(flat)):
            ends = []
            for step in (1e-5, -2e-5, 1e-5):  # up, down, and back where it was
                flat[i] += step
                ends.append(loss().item())
            slots[i] = (ends[0] - ends[1]) / 2e-5
        assert relative(parameter.grad, numeric) < 1e-4
        assert bool((parameter.grad != 0).all())
