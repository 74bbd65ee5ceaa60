"""The exercises of notebook 07: DPM-Solver and DPM-Solver++."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from tutorial_lib.dpm_solver import fast_orders, phi_2
from tutorial_lib.exercises import Exercise, Mistake
from tutorial_lib.exercises.probes import Probes, exact, normals
from tutorial_lib.schedule import CosineVP, LinearVP, Schedule

Pair = tuple[Tensor, Tensor]
Rule = Callable[[Tensor], Tensor]
OfTwo = Callable[[Tensor, Tensor], Tensor]
OfThree = Callable[[Tensor, Tensor, Tensor], Tensor]


def _slope_weight(h: Tensor) -> Tensor:
    return h**2 * phi_2(h)


def _weights(h: Tensor, *, slope: Rule = _slope_weight) -> Pair:
    return torch.expm1(h), slope(h)


def _weights_probes() -> Probes:
    """Give long steps, and steps of 1e-7 where 1 + h is exact and e^h halfway to the next number.

    However e^h - 1 - h is then computed without expm1, it is wrong by the same last bit.
    """
    return [(exact([0.05, 0.4, 1.1, 2.5]),), (exact([7.0, 9.0, 13.0]) / 2**26,)]


WEIGHTS = Exercise(
    "07.1",
    "along a step only the network is guessed: any polynomial in lambda is integrated exactly.",
    _weights,
    _weights_probes,
    (
        Mistake(
            "cancellation",
            "e^h - 1 - h loses all digits as h falls: use torch.expm1, or a series for small h.",
            partial(_weights, slope=lambda h: h.exp() - 1 - h),
        ),
        Mistake(
            "start's exponential in front",
            "e^{lambda_s}, of the step's end, stands in front: with e^{lambda_t} both lack e^h.",
            lambda h: tuple((-h).exp() * weight for weight in _weights(h)),
        ),
        Mistake(
            "form of x_0",
            "that integrates e^{+lambda}, the form of x_0: that of eps has e^{-lambda}.",
            lambda h: (-torch.expm1(-h), _slope_weight(-h)),
        ),
        Mistake(
            "slope times area",
            "b (lambda - lambda_t) reaches b h only at the end: integrate it along the step.",
            partial(_weights, slope=lambda h: h * torch.expm1(h)),
        ),
        Mistake(
            "middle's value",
            "h / 2 (e^h - 1) is the paper's stand-in for w_1, right to h^2: integrate by parts.",
            partial(_weights, slope=lambda h: h / 2 * torch.expm1(h)),
        ),
        Mistake(
            "one order too far",
            "w_1 is e^h less two terms of its series: h^2 / 2 comes off in the next weight.",
            partial(_weights, slope=lambda h: torch.expm1(h) - h - h**2 / 2),
        ),
        Mistake(
            "phi functions",
            "those are phi_1 and phi_2: w_0 is h phi_1, w_1 is h^2 phi_2.",
            lambda h: (torch.expm1(h) / h, phi_2(h)),
        ),
        Mistake(
            "one h missing",
            "w_1 is h^2 phi_2: one h of the slope's way, one of the integral over it.",
            partial(_weights, slope=lambda h: h * phi_2(h)),
        ),
        Mistake(
            "boundary term's sign",
            "integrated by parts, the boundary term is -h: w_1 is w_0 - h.",
            partial(_weights, slope=lambda h: torch.expm1(h) + h),
        ),
        Mistake(
            "no exponential",
            "h and h^2 / 2 are the weights without e^{-lambda}, Euler's: keep it in the integral.",
            lambda h: (h, h**2 / 2),
        ),
        Mistake(
            "weights swapped",
            "return w_0, of a, first, then w_1, of b.",
            lambda h: _weights(h)[::-1],
        ),
    ),
)


def _of_mean(mean: OfTwo) -> Callable[[Tensor, Tensor, Rule, Rule], Tensor]:
    """Return an answer that looks at the time of some `mean` of the ends' lambdas."""
    return lambda t, s, lambda_, time_of: time_of(mean(lambda_(t), lambda_(s)))


def _average(a: Tensor, b: Tensor) -> Tensor:
    return (a + b) / 2


def _middle_probes() -> Probes:
    """Give single steps and many, on schedules where lambda is not linear in t."""
    ends = [(exact(0.8), exact(0.2)), (exact([0.9, 0.5, 0.3]), exact([0.6, 0.05, 0.1]))]
    return [(*pair, s.lambda_, s.time_of) for s in (LinearVP(), CosineVP()) for pair in ends]


MIDDLE = Exercise(
    "07.2",
    "lambda is the solver's clock: its looks are even there, and its inverse gives their times.",
    _of_mean(_average),
    _middle_probes,
    (
        Mistake(
            "middle of the times",
            "(t + s) / 2 is the middle in time: average lambda_(t) and lambda_(s).",
            lambda t, s, lambda_, time_of: _average(t, s),
        ),
        Mistake(
            "geometric mean of the times",
            "sqrt(t s) is the middle of log t: lambda depends on t in another way, so ask it.",
            lambda t, s, lambda_, time_of: (t * s).sqrt(),
        ),
        Mistake(
            "mean of the SNRs",
            "average the lambdas themselves: of SNRs, e^{2 lambda}, the clean end wins.",
            _of_mean(lambda a, b: _average((2 * a).exp(), (2 * b).exp()).log() / 2),
        ),
        Mistake(
            "mean of the noise levels",
            "average the lambdas themselves: of sigma / alpha, e^{-lambda}, the noisy end wins.",
            _of_mean(lambda a, b: -_average((-a).exp(), (-b).exp()).log()),
        ),
        Mistake(
            "middle lambda",
            "that is the middle's lambda: time_of turns it into a time, for the network.",
            lambda t, s, lambda_, time_of: _average(lambda_(t), lambda_(s)),
        ),
        Mistake(
            "start left out",
            "half of h is only the way: add it to lambda_(t), where the step starts.",
            _of_mean(lambda a, b: (b - a) / 2),
        ),
        Mistake(
            "back into the noise",
            "lambda rises from t to s: h is lambda_(s) - lambda_(t), and half of it is added.",
            _of_mean(lambda a, b: a - (b - a) / 2),
        ),
        Mistake(
            "end of the step",
            "that is s, the whole step: go half of h from lambda_(t).",
            _of_mean(lambda a, b: b),
        ),
    ),
)


def _look(x: Tensor) -> Tensor:
    """Stand in for a network at one time: any function of the point that is not symmetric."""
    return torch.tanh(0.7 * x + 0.1) + 0.4 * x.roll(1, dims=-1)


def _rise(t: Pair, s: Pair) -> Tensor:
    """Return lambda_s - lambda_t."""
    return (s[0] / s[1]).log() - (t[0] / t[1]).log()


def _leg(x: Tensor, eps: Tensor, t: Pair, s: Pair, *, h: Rule = lambda h: h) -> Tensor:
    return s[0] / t[0] * x - s[1] * torch.expm1(h(_rise(t, s))) * eps


def _second(
    x: Tensor,
    eps: Tensor,
    look: Rule,
    t: Pair,
    m: Pair,
    s: Pair,
    *,
    near: Callable[[Tensor, Tensor, Pair, Pair], Tensor] = _leg,
    far: Callable[[Tensor, Tensor, Pair, Pair], Tensor] = _leg,
    noise: OfThree = lambda eps, look, h: look,
) -> Tensor:
    u = near(x, eps, t, m)
    return far(x, noise(eps, look(u), _rise(t, s)), t, s)


def _unscaled(x: Tensor, eps: Tensor, t: Pair, s: Pair) -> Tensor:
    return _leg(t[0] / s[0] * x, eps, t, s)


def _chained(x: Tensor, eps: Tensor, look: Rule, t: Pair, m: Pair, s: Pair) -> Tensor:
    u = _leg(x, eps, t, m)
    return _leg(u, look(u), m, s)


def _levels(schedule: Schedule, t: float) -> Pair:
    return schedule.alpha(t), schedule.sigma(t)


def _second_probes() -> Probes:
    probes = []
    for k, (schedule, t, s) in enumerate([(LinearVP(), 0.6, 0.3), (CosineVP(), 0.7, 0.4)]):
        m = schedule.time_of(_average(schedule.lambda_(t), schedule.lambda_(s)))
        ends = (_levels(schedule, time) for time in (t, m, s))
        probes.append((normals(k, 4, 3), normals(k + 2, 4, 3), _look, *ends))
    return probes


SECOND = Exercise(
    "07.3",
    "DDIM to the middle, one look there, one step for all: a second look buys a second order.",
    _second,
    _second_probes,
    (
        Mistake(
            "whole h to the middle",
            "u is half of the step away: its factor is e^{h/2} - 1, with the middle's lambda.",
            partial(_second, near=partial(_leg, h=lambda h: 2 * h)),
        ),
        Mistake(
            "sigma_s in the middle",
            "u stands at m: its noise is weighted with sigma_m.",
            lambda x, eps, look, t, m, s: _second(
                x, eps, look, t, m, s, near=lambda *to: _leg(x, s[1] / m[1] * eps, t, m)
            ),
        ),
        Mistake(
            "order 1",
            "that is DDIM's step: the look at u, not eps, belongs in the last line.",
            partial(_second, noise=lambda eps, look, h: eps),
        ),
        Mistake(
            "plus for minus",
            "less noise is left at s: both lines subtract theirs.",
            lambda x, eps, look, *ends: _second(x, -eps, lambda u: -look(u), *ends),
        ),
        Mistake(
            "h negative",
            "h is lambda_s - lambda_t, positive: lambda rises as noise falls.",
            partial(_second, near=partial(_leg, h=torch.neg), far=partial(_leg, h=torch.neg)),
        ),
        Mistake(
            "two steps of order 1",
            "take the last step from x over all of h: going on from u makes two DDIM steps.",
            _chained,
        ),
        Mistake(
            "looks averaged",
            "a mean of both looks is Heun's, whose second is at the end: the middle's is enough.",
            partial(_second, noise=lambda eps, look, h: _average(eps, look)),
        ),
        Mistake(
            "exact weight of the slope",
            "w_1 of 07.1 is of order 2 too: the paper's takes the middle look for the whole step.",
            partial(
                _second,
                noise=lambda eps, look, h: eps + 2 * h * phi_2(h) / torch.expm1(h) * (look - eps),
            ),
        ),
        Mistake(
            "look at x",
            "at the middle the network must see the middle: call look(u), not look(x).",
            partial(_second, near=lambda x, eps, t, m: x),
        ),
        Mistake(
            "alphas forgotten",
            "k-diffusion scales x so that alpha is 1: here x is multiplied by the alphas' ratio.",
            partial(_second, near=_unscaled, far=_unscaled),
        ),
        Mistake(
            "form of x_0",
            "that is the form of x_0: for eps, x is scaled by the alphas, the noise by sigma.",
            lambda x, eps, look, *ends: _second(x, eps, look, *(pair[::-1] for pair in ends)),
        ),
    ),
)


def _multistep(
    x: Tensor,
    x0: Tensor,
    x0_before: Tensor,
    h: Tensor,
    h_before: Tensor,
    alpha_s: Tensor,
    sigma_s: Tensor,
    sigma_t: Tensor,
    *,
    ahead: OfTwo = lambda h, before: h / before / 2,
    keep: OfTwo = lambda sigma_s, sigma_t: sigma_s / sigma_t,
    gain: OfThree = lambda h, alpha_s, sigma_s: -alpha_s * torch.expm1(-h),
) -> Tensor:
    guess = x0 + ahead(h, h_before) * (x0 - x0_before)
    return keep(sigma_s, sigma_t) * x + gain(h, alpha_s, sigma_s) * guess


def _multistep_probes() -> Probes:
    probes = []
    grids = (LinearVP(), [0.7, 0.5, 0.2]), (CosineVP(), [0.9, 0.6, 0.5])
    for k, (schedule, times) in enumerate(grids):
        _, t, s = times
        h_before, h = schedule.lambda_(exact(times)).diff()
        points = (normals(3 * k + i, 4, 2) for i in range(3))
        probes.append((*points, h, h_before, *_levels(schedule, s), schedule.sigma(t)))
    return probes


MULTISTEP = Exercise(
    "07.4",
    "the step before has paid for the slope already: order 2 costs one look a step.",
    _multistep,
    _multistep_probes,
    (
        Mistake(
            "ratio inverted",
            "the slope is a difference over h_before: h / h_before, the paper's 1 / r.",
            partial(_multistep, ahead=lambda h, before: before / h / 2),
        ),
        Mistake(
            "half missing",
            "D is the prediction half a step ahead, a mean over the step: take half of the ratio.",
            partial(_multistep, ahead=torch.div),
        ),
        Mistake(
            "equal steps",
            "3/2 and -1/2 are for equal steps: here the half is times h / h_before.",
            partial(_multistep, ahead=lambda h, before: torch.full_like(h, 0.5)),
        ),
        Mistake(
            "difference's sign",
            "D goes on from x0_before through x0: add the difference x0 - x0_before.",
            partial(_multistep, ahead=lambda h, before: -h / before / 2),
        ),
        Mistake(
            "order 1",
            "that is DDIM's step: x0 - x0_before must bring in the slope.",
            partial(_multistep, ahead=lambda h, before: torch.zeros_like(h)),
        ),
        Mistake(
            "prediction before alone",
            "x0 is the newer prediction: the one before it only tells the slope.",
            partial(_multistep, ahead=lambda h, before: -torch.ones_like(h)),
        ),
        Mistake(
            "h's sign",
            "with x_0 the integral is of e^{+lambda}: its exponent is -h, that of eps is h.",
            partial(_multistep, gain=lambda h, alpha_s, sigma_s: -alpha_s * torch.expm1(h)),
        ),
        Mistake(
            "alpha forgotten",
            "k-diffusion scales x so that alpha is 1: here x_0's weight is multiplied by alpha_s.",
            partial(_multistep, gain=lambda h, alpha_s, sigma_s: -torch.expm1(-h)),
        ),
        Mistake(
            "weight of eps",
            "-sigma_s (e^h - 1) is the weight of eps: that of x_0 has alpha_s and e^{-h}.",
            partial(_multistep, gain=lambda h, alpha_s, sigma_s: -sigma_s * torch.expm1(h)),
        ),
        Mistake(
            "levels inverted",
            "x keeps its noise, scaled down: sigma_s / sigma_t is less than 1.",
            partial(_multistep, keep=lambda sigma_s, sigma_t: sigma_t / sigma_s),
        ),
        Mistake(
            "exact weight of the slope",
            "the code's 'taylor' is of order 2 too, but algorithm 2 holds D over the whole step.",
            partial(_multistep, ahead=lambda h, b: -(h**2) * phi_2(-h) / torch.expm1(-h) / b),
        ),
    ),
)


def _ending(*rests: tuple[int, ...]) -> Callable[[int], Tensor]:
    """Return an answer that ends in rests[n % 3], after as many 3s as fill n."""

    def orders(evaluations: int) -> Tensor:
        rest = rests[evaluations % 3]
        return torch.tensor([3] * ((evaluations - sum(rest)) // 3) + [*rest])

    return orders


def _fast(evaluations: int) -> Tensor:
    return torch.tensor(fast_orders(evaluations))


FAST = Exercise(
    "07.5",
    "n looks make n // 3 + 1 steps: order 3 as often as it fits, and lower orders at the end.",
    _fast,
    lambda: [(evaluations,) for evaluations in range(1, 12)],
    (
        Mistake(
            "no tensor",
            "these are the orders: return them in a tensor.",
            lambda n: tuple(fast_orders(n)),
        ),
        Mistake(
            "only 3s",
            "K = n // 3 + 1 also where 3 divides n: one step more, by ending in orders 2 and 1.",
            _ending((), (1,), (2,)),
        ),
        Mistake(
            "lower orders first",
            "the lower orders come last, at the least noise: start with the 3s.",
            lambda n: _fast(n).flip(0),
        ),
        Mistake(
            "1 before 2",
            "the orders never rise: where 3 divides n, 2 comes before 1.",
            _ending((1, 2), (1,), (2,)),
        ),
        Mistake(
            "rest in 1s",
            "two looks left are one step of order 2, not two of order 1.",
            _ending((2, 1), (1,), (1, 1)),
        ),
        Mistake(
            "2, 2 at the end",
            "one look left is a step of order 1 after the 3s: no 3 gives way to 2, 2.",
            _ending((2, 1), (2, 2), (2,)),
        ),
        Mistake(
            "a 3 too many",
            "the orders add up to n: where 3 divides n, 2 and 1 take the place of a 3.",
            lambda n: torch.tensor([3] * (n // 3) + [*((2, 1), (1,), (2,))[n % 3]]),
        ),
        Mistake(
            "an order for each look",
            "give one order for each step, as the paper does: diffusers lists one for each look.",
            lambda n: torch.cat([torch.arange(1, order + 1) for order in fast_orders(n)]),
        ),
    ),
)


def _size(low: Tensor, high: Tensor, before: Tensor) -> Tensor:
    return torch.maximum(low.abs(), before.abs())


def _next(
    low: Tensor,
    high: Tensor,
    before: Tensor,
    h: Tensor,
    order: int,
    atol: float,
    rtol: float,
    *,
    size: OfThree = _size,
    allowed: Callable[[Tensor, float], Tensor] = lambda part, atol: part.clamp(min=atol),
    error: Rule = lambda gap: gap.square().mean(1).sqrt().amax(),
    factor: Callable[[Tensor, int], Tensor] = lambda error, order: 0.9 * error ** (-1 / order),
) -> Pair:
    found = error((high - low) / allowed(rtol * size(low, high, before), atol))
    return found <= 1, h * factor(found, order)


def _next_probes() -> Probes:
    """Give tries of both orders, two accepted and two refused."""
    probes = []
    for k, (order, gap) in enumerate([(2, 0.02), (3, 0.06), (3, 0.015), (2, 0.3)]):
        before, change, error = (normals(3 * k + i, 4, 3) for i in range(3))
        low = before + 0.5 * change
        probes.append((low, low + gap * error, before, exact(0.1 + 0.2 * k), order, 0.03, 0.05))
    return probes


NEXT = Exercise(
    "07.6",
    "two orders from the same looks tell the error, and the error how long the next step may be.",
    _next,
    _next_probes,
    (
        Mistake(
            "mean over the batch",
            "all rows share the step, so the worst decides: take the largest, not the mean.",
            partial(_next, error=lambda gap: gap.square().mean(1).sqrt().mean()),
        ),
        Mistake(
            "RMS over all numbers",
            "the RMS is over the dimensions of a row: then take the largest of the batch.",
            partial(_next, error=lambda gap: gap.square().mean().sqrt()),
        ),
        Mistake(
            "each row its own step",
            "the batch walks together: return one verdict and one h, those of the largest E.",
            partial(_next, error=lambda gap: gap.square().mean(1).sqrt()),
        ),
        Mistake(
            "d forgotten",
            "divide the norm by sqrt(d): a tolerance is for one number, however many there are.",
            partial(_next, error=lambda gap: gap.norm(dim=1).amax()),
        ),
        Mistake(
            "root missing",
            "E is a root mean square: take the root before you compare it with 1.",
            partial(_next, error=lambda gap: gap.square().mean(1).amax()),
        ),
        Mistake(
            "tolerances added",
            "the paper allows the larger of atol and rtol |x|: their sum is SciPy's.",
            partial(_next, allowed=torch.add),
        ),
        Mistake(
            "absolute values missing",
            "x has both signs: compare |low| and |before|.",
            partial(_next, size=lambda low, high, before: torch.maximum(low, before)),
        ),
        Mistake(
            "high for low",
            "high is not in the tolerance: its place there, beside before, is low's.",
            partial(_next, size=lambda low, high, before: _size(high, low, before)),
        ),
        Mistake(
            "high for before",
            "the paper measures by |low| and |before|, where the last step ended.",
            partial(_next, size=lambda low, high, before: _size(low, before, high)),
        ),
        Mistake(
            "exponent's sign",
            "a large error calls for a short step: the exponent is -1 / order.",
            partial(_next, factor=lambda error, order: 0.9 * error ** (1 / order)),
        ),
        Mistake(
            "exponent of order + 1",
            "low, one order below, errs by h^order in a step: the paper's exponent is -1 / order.",
            partial(_next, factor=lambda error, order: 0.9 * error ** (-1 / (order + 1))),
        ),
        Mistake(
            "safety inside the root",
            "0.9 multiplies h, outside the power.",
            partial(_next, factor=lambda error, order: (0.9 / error) ** (1 / order)),
        ),
        Mistake(
            "verdict inverted",
            "E is in units of the tolerance: accept where E <= 1.",
            lambda *given: (_next(*given)[0].logical_not(), _next(*given)[1]),
        ),
    ),
)

EXERCISES = (WEIGHTS, MIDDLE, SECOND, MULTISTEP, FAST, NEXT)
