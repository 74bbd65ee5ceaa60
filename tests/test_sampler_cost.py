"""What a sampler adds to its network: so many torch operations a step, counted, not timed."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from truths import SCHEDULES, every_schedule, generator, normal, variants

from tutorial_lib.denoiser import NetworkDenoiser, log_snr_clock
from tutorial_lib.samplers import ancestral, beta, beta_tilde, ddim, encode, final, learned_range
from tutorial_lib.schedule import uniform_times
from tutorial_lib.solvers import (
    euler,
    euler_maruyama,
    heun,
    langevin,
    predictor_corrector,
    reverse_diffusion,
)

every_variance = pytest.mark.parametrize(
    "variance", [beta, beta_tilde, learned_range], ids=["beta", "beta_tilde", "learned_range"]
)


class Still(nn.Module):
    """The cheapest network with a variance head: its answer, whatever it is asked, is ready."""

    def __init__(self):
        super().__init__()
        self.answer = normal(1, 6, 4, 4).float()

    def forward(self, xt, clock, cond=None):
        return self.answer


class Count(TorchDispatchMode):
    """Count the operations that torch is asked for, reads of a number by the host among them."""

    operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operations += 1
        return func(*args, **(kwargs or {}))


class Crossings(TorchDispatchMode):
    """Count the tensors that are carried from the host to another device, or back."""

    crossings = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            source = args[1] if func is torch.ops.aten.copy_.default else args[0]
            self.crossings += source.device != found.device
        return found


def walk(name, times, sampler=ancestral, dtype=torch.float32, **options):
    denoiser = NetworkDenoiser(Still(), SCHEDULES[name])
    x = normal(1, 3, 4, 4).to(dtype)
    return sampler(denoiser, x, times, generator=generator(7), **options)


def per_step(name, sampler=ancestral, **options) -> float:
    """Operations of one more step."""

    def operations(n):
        with Count() as count:
            final(walk(name, uniform_times(n)[:-1], sampler, **options))
        return count.operations

    return (operations(30) - operations(10)) / 20


def crossings(sampler, clock=log_snr_clock, **options) -> int:
    """Crossings of a whole walk on a device of which torch knows shapes alone."""
    x = torch.empty(2, 3, 4, 4, device="meta")
    net = Still()
    net.answer = torch.empty(2, 6, 4, 4, device="meta")
    with Crossings() as seen:
        final(sampler(NetworkDenoiser(net, SCHEDULES["cosine"], "v", clock), x, **options))
    return seen.crossings


@pytest.mark.parametrize("times", [uniform_times(5), uniform_times(9)], ids=["5", "9"])
@pytest.mark.parametrize("sampler", [ddim, euler, heun])
def test_a_walk_carries_nothing_to_the_device(sampler, times):
    """A copy from the host waits for all that the device has still to do."""
    assert crossings(sampler, times=times) == 0


def test_a_clock_carried_to_the_device_is_seen():
    def carried(schedule, t):
        return log_snr_clock(schedule, t)[None]

    assert crossings(ddim, carried, times=uniform_times(5)) == 5


def whole(variance):
    """The same variance as a plain function, which is computed anew at each step."""
    return lambda *arguments: variance(*arguments)


MOST = 64  # operations a step, of about 1.5 microseconds each; 41 to 60 are needed
some_schedules = pytest.mark.parametrize("name", ["linear", "cosine", "discrete linear"])


@some_schedules
@every_variance
def test_an_ancestral_step_costs_little(name, variance):
    assert per_step(name, variance=variance) <= MOST


@some_schedules
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_ddim_step_costs_little(name, eta):
    assert per_step(name, ddim, eta=eta) <= MOST


@some_schedules
@pytest.mark.parametrize("solver", [euler_maruyama, reverse_diffusion, euler])
def test_a_solvers_step_costs_little(name, solver):
    assert per_step(name, solver) <= MOST


@some_schedules
def test_solvers_that_do_more_cost_little_more(name):
    """Heun looks twice, Langevin takes two norms, a predictor is given its numbers anew."""
    assert per_step(name, heun) <= 2 * MOST
    assert per_step(name, langevin) <= MOST + 12
    assert per_step(name, predictor_corrector) <= 4 * MOST


def encoding(denoiser, x, times, generator):
    return encode(denoiser, x, times)


@some_schedules
def test_a_step_of_encoding_costs_little(name):
    assert per_step(name, encoding) <= MOST


@variants(a=whole(beta), b=whole(beta_tilde), c=whole(learned_range))
def test_a_variance_anew_at_each_step_is_seen(wrong):
    assert per_step("linear", variance=wrong) > MOST


@every_schedule
@every_variance
@pytest.mark.parametrize("times", [[1.0, 0.6, 0.0], [1.0, 0.5, 0.2, 0.1], [0.3, 0.0]])
def test_all_steps_at_once_are_the_same_steps(name, variance, times):
    """Where a step from t > 1/2 to the data is never asked for the range's stand-in at 2 t."""
    times, options = torch.tensor(times, dtype=torch.float64), {"dtype": torch.float64}
    at_once = walk(name, times, variance=variance, **options)
    one_by_one = walk(name, times, variance=whole(variance), **options)
    for x, same in zip(at_once, one_by_one, strict=True):
        assert (x - same).abs().max() <= 1e-12 * same.abs().max()
