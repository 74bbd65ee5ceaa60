"""DPM-Solver and DPM-Solver++: the flow's linear part exactly, the network's by Taylor in lambda.

With y = x / alpha the probability flow is dy = eps d(sigma / alpha), with y = x / sigma it is
dy = x_0 d(alpha / sigma): along a step h = lambda_s - lambda_t a solver takes eps, or x_0, for a
polynomial in lambda. The two forms are one method, in which alpha and sigma change places and
lambda its sign. (Lu et al. 2022) are two papers, DPM-Solver and DPM-Solver++. A step that ends
where sigma = 0, at infinite lambda, is of order 1 in every solver here: it returns alpha x_0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from tutorial_lib.denoiser import Condition, Denoiser
from tutorial_lib.schedule import Schedule, as_time

Form = Literal["eps", "x0"]
Look = Callable[[Tensor, Tensor], Tensor]

# How far along a step, in lambda, a solver of each order looks, then its end
SHARES = {1: (1.0,), 2: (1 / 2, 1.0), 3: (1 / 3, 2 / 3, 1.0)}


def phi_2(z: Tensor) -> Tensor:
    """Return (e^z - 1 - z) / z^2, the weight of a slope (Lu et al. 2022, appendix B.2).

    Accurate to rounding for every finite z of either sign, 0 too.
    """
    series = torch.ones_like(z)
    for k in range(18, 2, -1):  # 1/2! + z/3! + ..., by Horner; the closed form cancels here
        series = 1 + z / k * series
    return torch.where(z.abs() < 1, series / 2, (torch.expm1(z) - z) / z**2)


@dataclass(frozen=True)
class _Leg:
    """Hold the numbers of a way from a step's start at t to `share` of it, for one step.

    A prediction that stays `first` leads to keep x + gain first; one that grows evenly in lambda,
    by `change` until the leg's end, leads to bend change beyond.
    """

    share: float
    t: Tensor
    keep: float
    gain: float
    bend: float

    def first(self, x: Tensor, first: Tensor) -> Tensor:
        """Return the end by order 1 (Lu et al. 2022, eq. 3.7)."""
        return self.keep * x + self.gain * first

    def second(self, x: Tensor, first: Tensor, change: Tensor, share: float) -> Tensor:
        """Return the end by order 2, from a change seen `share` of the way along.

        Lu et al. 2022, algorithm 1, which takes gain / 2 for bend: they differ by O(h^3).
        """
        return self.keep * x + self.gain * (first + (0.5 / share) * change)

    def third(self, x: Tensor, first: Tensor, change: Tensor, share: float) -> Tensor:
        """Return the end by order 3 if `share` is 2/3 (Lu et al. 2022, algorithm 2)."""
        return self.keep * x + self.gain * first + (self.bend / share) * change


def _legs(schedule: Schedule, times: Tensor, share: float, form: Form) -> list[_Leg]:
    """Return one leg for each step of a grid; a ValueError if it does not fall."""
    lambdas = schedule.lambda_(times)
    z = share * lambdas.diff()
    if not bool((z > 0).all()):
        raise ValueError("the solvers run from noise to data: times must fall")
    ends = schedule.time_of(lambdas[:-1] + z) if share < 1 else times[1:]
    start, end = schedule.log_level(times[:-1]), schedule.log_level(ends)
    if form == "x0":
        start, end, z = start[::-1], end[::-1], -z
    keep, scale = (end[0] - start[0]).exp(), end[1].exp()
    # scale expm1(z) = keep start[1] - scale, without its cancellation; at z = inf its limit
    gain = torch.where(z < math.inf, -scale * torch.expm1(z), -keep * start[1].exp())
    bend = -scale * z * phi_2(z)
    columns = (ends, keep.tolist(), gain.tolist(), bend.tolist())
    return [_Leg(share, *numbers) for numbers in zip(*columns, strict=True)]


def _by_order_1(look: Look, x: Tensor, first: Tensor, end: _Leg) -> tuple[Tensor, None]:
    return end.first(x, first), None


def _by_order_2(
    look: Look, x: Tensor, first: Tensor, middle: _Leg, end: _Leg
) -> tuple[Tensor, Tensor]:
    change = look(middle.first(x, first), middle.t) - first
    return end.second(x, first, change, middle.share), change


def _by_order_3(
    look: Look, x: Tensor, first: Tensor, near: _Leg, far: _Leg, end: _Leg
) -> tuple[Tensor, Tensor]:
    change = look(near.first(x, first), near.t) - first
    later = look(far.third(x, first, change, near.share / far.share), far.t) - first
    return end.third(x, first, later, far.share), change


# Each returns x_s, and how much the prediction changes on its first leg
_STEP = {1: _by_order_1, 2: _by_order_2, 3: _by_order_3}


def _walk(
    denoiser: Denoiser,
    x: Tensor,
    times: Tensor,
    cond: Condition | None,
    form: Form,
    plans: Sequence[tuple[float, ...]],
) -> Iterator[Tensor]:
    """Walk back along `times`, each step along legs of the shares that its plan names."""
    schedule, times = denoiser.schedule, as_time(times)
    sigmas = schedule.sigma(times[1:]).tolist()
    plans = [plan if sigma else SHARES[1] for plan, sigma in zip(plans, sigmas, strict=True)]
    named = {share for plan in plans for share in plan}
    legs = {share: _legs(schedule, times, share, form) for share in named}

    def look(x: Tensor, t: Tensor) -> Tensor:
        return getattr(denoiser(x, t, cond), form)

    for i, (t, plan) in enumerate(zip(times[:-1], plans, strict=True)):
        x, _ = _STEP[len(plan)](look, x, look(x, t), *(legs[share][i] for share in plan))
        yield x


def singlestep(
    denoiser: Denoiser,
    x: Tensor,
    times: Tensor,
    cond: Condition | None = None,
    *,
    generator: torch.Generator | None = None,
    orders: Sequence[int],
) -> Iterator[Tensor]:
    """Walk back along `times` by DPM-Solvers, each step of its own order, 1, 2 or 3.

    Lu et al. 2022, DPM-Solver, section 3.4: DPM-Solver-fast, if `orders` are `fast_orders`. A
    ValueError unless each step has an order.
    """
    if len(orders) != len(times) - 1 or not set(orders) <= set(SHARES):
        raise ValueError(f"each of {len(times) - 1} steps needs an order 1, 2 or 3, got {orders}")
    yield from _walk(denoiser, x, times, cond, "eps", [SHARES[order] for order in orders])


def fast_orders(evaluations: int) -> tuple[int, ...]:
    """Return the orders of DPM-Solver-fast's steps, which look `evaluations` times in all.

    Lu et al. 2022, DPM-Solver, section 3.4: order 3, then lower, in evaluations // 3 + 1 steps.
    """
    if evaluations < 1:
        raise ValueError(f"a solver looks at least once, got {evaluations} evaluations")
    last = ((2, 1), (1,), (2,))[evaluations % 3]
    return (3,) * (evaluations // 3 + 1 - len(last)) + last


def dpm_solver_1(
    denoiser: Denoiser,
    x: Tensor,
    times: Tensor,
    cond: Condition | None = None,
    *,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Walk back along `times` by DPM-Solver-1, which is `ddim` (Lu et al. 2022, eq. 3.7)."""
    yield from _walk(denoiser, x, times, cond, "eps", [SHARES[1]] * (len(times) - 1))


def dpm_solver_2(
    denoiser: Denoiser,
    x: Tensor,
    times: Tensor,
    cond: Condition | None = None,
    *,
    generator: torch.Generator | None = None,
    r1: float = 1 / 2,
) -> Iterator[Tensor]:
    """Walk back along `times` by DPM-Solver-2, two looks a step (Lu et al. 2022, algorithm 1).

    The second look is at `r1` of the step in lambda.
    """
    yield from _walk(denoiser, x, times, cond, "eps", [(r1, 1.0)] * (len(times) - 1))


def dpm_solver_3(
    denoiser: Denoiser,
    x: Tensor,
    times: Tensor,
    cond: Condition | None = None,
    *,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Walk back along `times` by DPM-Solver-3, three looks a step (Lu et al. 2022, alg. 2)."""
    yield from _walk(denoiser, x, times, cond, "eps", [SHARES[3]] * (len(times) - 1))


def _attempt(
    schedule: Schedule, look: Look, x: Tensor, first: Tensor, ends: Tensor, order: int
) -> tuple[Tensor, Tensor]:
    """Return a step's x_s by `order`, and by the order below from the same looks."""
    *inner, end = (_legs(schedule, ends, share, "eps")[0] for share in SHARES[order])
    high, change = _STEP[order](look, x, first, *inner, end)
    if order == 2:
        return high, end.first(x, first)
    return high, end.second(x, first, change, inner[0].share)


def _error(low: Tensor, high: Tensor, before: Tensor, atol: float, rtol: float) -> float:
    """Return the batch's largest error in units of the tolerance, RMS over a row's numbers."""
    allowed = (rtol * torch.maximum(low.abs(), before.abs())).clamp(min=atol)
    return ((high - low) / allowed).square().flatten(1).mean(1).sqrt().max().item()


def dpm_solver_adaptive(
    denoiser: Denoiser,
    x: Tensor,
    times: Tensor,
    cond: Condition | None = None,
    *,
    generator: torch.Generator | None = None,
    order: int = 3,
    atol: float = 0.0078,
    rtol: float = 0.05,
    theta: float = 0.9,
    h_init: float = 0.05,
) -> Iterator[Tensor]:
    """Walk back to each of `times` in steps as long as a tolerance allows.

    DPM-Solver-12 and -23 (Lu et al. 2022, appendix C), by `order` 2 and 3: a step is kept if it
    differs from that of the order below, made of the same looks, by at most `atol`, or `rtol` of
    x; the batch's worst row decides (released code). A second try looks once less: not at t.
    Each waits for the device to tell its error. A RuntimeError when no step is short enough.
    """
    schedule, times = denoiser.schedule, as_time(times)
    lambdas = schedule.lambda_(times).tolist()
    if order not in (2, 3) or not all(a < b < math.inf for a, b in pairwise(lambdas)):
        raise ValueError("order must be 2 or 3, and times must fall and end where sigma > 0")

    def look(x: Tensor, t: Tensor) -> Tensor:
        return denoiser(x, t, cond).eps

    t, lambda_, h, before, first = times[0], lambdas[0], h_init, x, None
    for stop, lambda_stop in zip(times[1:], lambdas[1:], strict=True):
        while lambda_ < lambda_stop:
            if not h > 1e-10:  # nor if it is no number
                raise RuntimeError(f"no step from t = {float(t):.6g} meets the tolerance")
            s, lambda_s = stop, lambda_stop
            if lambda_ + 1.000001 * h < lambda_stop:  # leave no rest that is only rounding
                s, lambda_s = schedule.time_of(lambda_ + h), lambda_ + h
            first = look(x, t) if first is None else first
            high, low = _attempt(schedule, look, x, first, torch.stack([t, s]), order)
            error = _error(low, high, before, atol, rtol)
            h = theta * (lambda_s - lambda_) * max(error, 1e-9) ** (-1 / order)
            if error <= 1:
                x, before, t, lambda_, first = high, low, s, lambda_s, None
        yield x


def dpm_solver_pp_2s(
    denoiser: Denoiser,
    x: Tensor,
    times: Tensor,
    cond: Condition | None = None,
    *,
    generator: torch.Generator | None = None,
    r1: float = 1 / 2,
) -> Iterator[Tensor]:
    """Walk back along `times` by DPM-Solver++(2S), two looks a step.

    Lu et al. 2022, DPM-Solver++, algorithm 1: `dpm_solver_2` in the form of x_0.
    """
    yield from _walk(denoiser, x, times, cond, "x0", [(r1, 1.0)] * (len(times) - 1))


def _multistep(
    denoiser: Denoiser,
    x: Tensor,
    times: Tensor,
    cond: Condition | None,
    generator: torch.Generator | None,
    numbers: Iterable[tuple[float, float, float]],
    lower_order_final: bool,
    form: Form = "x0",
) -> Iterator[Tensor]:
    """Walk back by x_s = keep x_t + gain x_0 + std noise, x_0 (or eps) of half a step ahead."""
    h = denoiser.schedule.lambda_(times).diff()
    ahead = torch.where(h[1:] < math.inf, 0.5 * h[1:] / h[:-1], 0)  # 1 / (2 r) of the paper
    ahead = [0.0, *ahead.tolist()]  # the first step has nothing behind it
    if lower_order_final:
        ahead[-1] = 0.0
    before = None
    for t, share, (keep, gain, std) in zip(times[:-1], ahead, numbers, strict=True):
        now = getattr(denoiser(x, t, cond), form)
        x = keep * x + gain * (now + share * (now - before) if share else now)
        if std > 0:
            noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
            x = x + std * noise
        before = now
        yield x


def dpm_solver_pp_2m(
    denoiser: Denoiser,
    x: Tensor,
    times: Tensor,
    cond: Condition | None = None,
    *,
    generator: torch.Generator | None = None,
    lower_order_final: bool = False,
    form: Form = "x0",
) -> Iterator[Tensor]:
    """Walk back along `times` by DPM-Solver++(2M), of order 2 with one look a step.

    Lu et al. 2022, DPM-Solver++, algorithm 2: x_0's slope is that of the step before. The first
    step is of order 1, and with `lower_order_final` the last, as in the released code for few.
    With `form` "eps" the noise is foreseen instead: the rule of DPM-Solver's released code.
    """
    legs = _legs(denoiser.schedule, as_time(times), 1.0, form)
    numbers = ((leg.keep, leg.gain, 0.0) for leg in legs)
    yield from _multistep(denoiser, x, times, cond, generator, numbers, lower_order_final, form)


def sde_dpm_solver_pp_2m(
    denoiser: Denoiser,
    x: Tensor,
    times: Tensor,
    cond: Condition | None = None,
    *,
    generator: torch.Generator,
    lower_order_final: bool = False,
) -> Iterator[Tensor]:
    """Walk back along `times` by SDE-DPM-Solver++(2M), the reverse SDE with one look a step.

    Lu et al. 2022, DPM-Solver++: x_s is drawn from q(x_s | x_t, x_0), with x_0 as in
    `dpm_solver_pp_2m`; where that is of order 1 it is `ancestral` with beta_tilde. A step that
    ends at s = 0 adds no noise.
    """
    keeps, gains, variances = denoiser.schedule.posterior_weights(times[1:], times[:-1])
    stds = variances.sqrt() * (times[1:] > 0)
    numbers = zip(*(column.tolist() for column in (keeps, gains, stds)), strict=True)
    yield from _multistep(denoiser, x, times, cond, generator, numbers, lower_order_final)
