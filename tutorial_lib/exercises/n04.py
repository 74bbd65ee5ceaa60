"""The exercises of notebook 04: Score SDE."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from tutorial_lib import likelihood
from tutorial_lib.exercises import Exercise, Mistake
from tutorial_lib.exercises.probes import Probes, exact, normals
from tutorial_lib.gaussian import Gaussian

Pairs = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]
Rule = Callable[[Tensor], Tensor]  # such as a field, x (B, D) to (B, D)
Flow = Callable[[Tensor, Tensor], Tensor]  # x (B, D) and t to (B, D), or to (B,)


def _kept(integral: Tensor) -> Tensor:
    return (-0.5 * integral).exp()


def _lost(integral: Tensor) -> Tensor:
    return -torch.expm1(-integral)


def _pairs(mean_factor: Tensor, vp: Tensor, sub_vp: Tensor) -> Pairs:
    return (mean_factor, vp), (mean_factor, sub_vp)


def _kernel(integral: Tensor) -> Pairs:
    return _pairs(_kept(integral), _lost(integral).sqrt(), _lost(integral))


KERNEL = Exercise(
    "04.1",
    "affine SDEs have Gaussian kernels: any time is one jump away, and sub-VP is less noisy.",
    _kernel,
    lambda: [(exact([0.3, 1.0, 10.05]),), (exact([1e-3, 0.02]),)],
    (
        Mistake(
            "half missing in the mean",
            "the drift is -beta / 2 x: the mean factor has its half in the exponent.",
            lambda b: _pairs((-b).exp(), _lost(b).sqrt(), _lost(b)),
        ),
        Mistake(
            "half missing everywhere",
            "means and stds are those of twice the integral: the drift is -beta / 2 x.",
            lambda b: _kernel(2 * b),
        ),
        Mistake(
            "variance for std",
            "eq. 29 gives variances: take the root of both.",
            lambda b: _pairs(_kept(b), _lost(b), _lost(b) ** 2),
        ),
        Mistake(
            "VP's variance for its std",
            "1 - exp(-B) is the VP SDE's variance: take its root.",
            lambda b: _pairs(_kept(b), _lost(b), _lost(b)),
        ),
        Mistake(
            "sub-VP's variance for its std",
            "(1 - exp(-B))^2 is the sub-VP SDE's variance: its std has no square.",
            lambda b: _pairs(_kept(b), _lost(b).sqrt(), _lost(b) ** 2),
        ),
        Mistake(
            "VP twice",
            "the sub-VP SDE adds less noise: its variance is the square of the VP SDE's.",
            lambda b: _pairs(_kept(b), _lost(b).sqrt(), _lost(b).sqrt()),
        ),
        Mistake(
            "rate of noise for the noise",
            "1 - exp(-2 B) is a factor of sub-VP's g^2, the rate at which noise comes in.",
            lambda b: _pairs(_kept(b), _lost(b).sqrt(), _lost(2 * b).sqrt()),
        ),
        Mistake(
            "factor not squared",
            "the noise fills up 1 - (mean factor)^2: yours lacks the square.",
            lambda b: _pairs(_kept(b), _lost(b / 2).sqrt(), _lost(b / 2)),
        ),
        Mistake(
            "half taken twice",
            "the exponent is -B / 2: Song's 0.25 holds the half that integrating t gives.",
            lambda b: _kernel(b / 2),
        ),
    ),
)


def _slope(x: Tensor, t: Tensor) -> Tensor:
    """Stand in for a score: any function of the point and the time that is not symmetric."""
    return -torch.tanh(0.7 * x + 0.1) + 0.4 * t[:, None] * x.roll(1, dims=1)


def _dsm(
    score: Flow,
    x0: Tensor,
    t: Tensor,
    eps: Tensor,
    mean_factor: Tensor,
    std: Tensor,
    *,
    power: int = 2,
    target: Callable[[Tensor, Tensor], Tensor] = lambda eps, std: -eps / std,
) -> Tensor:
    xt = mean_factor[:, None] * x0 + std[:, None] * eps
    return std**power * (score(xt, t) - target(eps, std[:, None])).square().sum(1)


def _dsm_probes() -> Probes:
    t = exact([0.02, 0.2, 0.4, 0.7, 1.0])
    vp, sub_vp = _kernel(0.1 * t + 9.95 * t**2)
    return [
        (_slope, normals(0, 5, 3), t, normals(1, 5, 3), *vp),
        (_slope, normals(2, 5, 3), t, normals(3, 5, 3), *sub_vp),
    ]


DSM = Exercise(
    "04.2",
    "the kernel's score is -eps / std: weighted by std^2, matching it is guessing the noise.",
    _dsm,
    _dsm_probes,
    (
        Mistake(
            "target's sign",
            "the kernel's score points from x_t back to its mean: it is -eps / std.",
            partial(_dsm, target=lambda eps, std: eps / std),
        ),
        Mistake(
            "square missing",
            "square the norm: a mean of distances is least at a median, and the score is a mean.",
            lambda *given: _dsm(*given).sqrt(),
        ),
        Mistake(
            "weighted distance",
            "square the norm: weighted or not, distances lead to medians, squares to the score.",
            lambda *given: given[-1] ** 2 * _dsm(*given, power=0).sqrt(),
        ),
        Mistake(
            "noise for score",
            "-eps is std times the kernel's score: divide it by std.",
            partial(_dsm, target=lambda eps, std: -eps),
        ),
        Mistake(
            "noise over variance",
            "x_t - mean is std eps: divided by the variance it leaves -eps / std.",
            partial(_dsm, target=lambda eps, std: -eps / std**2),
        ),
        Mistake(
            "score taken for a noise",
            "a score is not the noise that DDPM's network guesses: -std score is.",
            partial(_dsm, power=0, target=lambda eps, std: eps),
        ),
        Mistake(
            "mean over dimensions",
            "a squared norm adds up the dimensions: sum over them, do not average.",
            lambda *given: _dsm(*given) / given[1].shape[1],
        ),
        Mistake(
            "weight left out",
            "multiply by std^2: without it the smallest times outweigh all others.",
            partial(_dsm, power=0),
        ),
        Mistake(
            "std for variance",
            "the weight is the kernel's variance, std^2, not std.",
            partial(_dsm, power=1),
        ),
        Mistake(
            "data not scaled",
            "the kernel's mean is mean_factor x_0: scale x_0 before you add the noise.",
            lambda s, x0, t, eps, m, std: _dsm(s, x0, t, eps, torch.ones_like(m), std),
        ),
        Mistake(
            "no second axis",
            "every row has its own mean factor and std: give them a second axis, [:, None].",
            lambda s, x0, t, eps, m, std: s(m * x0 + std * eps, t),
        ),
    ),
)


def _step(
    x: Tensor,
    score: Tensor,
    beta: Tensor,
    dt: Tensor,
    z: Tensor,
    *,
    growth: float = 0.5,
    push: Rule = lambda beta: beta,
    spread: Callable[[Tensor, Tensor], Tensor] = lambda beta, dt: (beta * dt).sqrt(),
) -> Tensor:
    return x + (growth * beta * x + push(beta) * score) * dt + spread(beta, dt) * z


STEP = Exercise(
    "04.3",
    "backwards, the drift turns round and gains beta times the score; the noise stays noise.",
    _step,
    lambda: [
        (normals(k, 4, 2), normals(k + 1, 4, 2), exact(beta), exact(dt), normals(k + 2, 4, 2))
        for k, (beta, dt) in enumerate([(0.1, 0.2), (5.0, 0.02), (20.0, 0.01)])
    ],
    (
        Mistake(
            "x shrinks",
            "on the way back x grows: the drift -beta / 2 x changes its sign, as time does.",
            partial(_step, growth=-0.5),
        ),
        Mistake(
            "score's sign",
            "on the way back the score pulls towards the data: add beta score dt.",
            partial(_step, push=torch.neg),
        ),
        Mistake(
            "eq. 6 with dt above 0",
            "in eq. 6 dt is negative: with dt > 0 the whole drift changes its sign.",
            partial(_step, growth=-0.5, push=torch.neg),
        ),
        Mistake(
            "the flow's half, with noise",
            "half of the score is for the flow without noise: the SDE takes beta score.",
            partial(_step, push=lambda beta: beta / 2),
        ),
        Mistake(
            "half missing",
            "the drift of x is beta / 2 x: the score alone has no half.",
            partial(_step, growth=1),
        ),
        Mistake(
            "beta for g",
            "beta is g^2: the score is multiplied by beta and z by its root.",
            partial(_step, push=torch.square, spread=lambda beta, dt: beta * dt.sqrt()),
        ),
        Mistake(
            "dt missing in the noise",
            "the noise of one step has variance beta dt: yours lacks dt.",
            partial(_step, spread=lambda beta, dt: beta.sqrt()),
        ),
        Mistake(
            "dt for its root",
            "noise grows as the root of time: sqrt(dt), not dt, stands before z.",
            partial(_step, spread=lambda beta, dt: beta.sqrt() * dt),
        ),
        Mistake(
            "g^2 for g",
            "z is multiplied by g = sqrt(beta) and sqrt(dt), not by beta.",
            partial(_step, spread=lambda beta, dt: beta * dt.sqrt()),
        ),
        Mistake(
            "variance for std",
            "beta dt is the variance of the step's noise: z is multiplied by its root.",
            partial(_step, spread=lambda beta, dt: beta * dt),
        ),
        Mistake(
            "noise subtracted",
            "-z is as good a noise as z, but here the step adds the z that it is given.",
            partial(_step, spread=lambda beta, dt: -(beta * dt).sqrt()),
        ),
        Mistake(
            "ancestral step",
            "DDPM's step divides by sqrt(1 - beta dt): Euler-Maruyama adds drift and noise to x.",
            lambda x, s, b, dt, z: (x + b * dt * s) / (1 - b * dt).sqrt() + (b * dt).sqrt() * z,
        ),
    ),
)


def _family(
    x: Tensor,
    score: Tensor,
    beta: Tensor,
    lam: Tensor,
    *,
    weight: Rule = lambda lam: (1 + lam**2) / 2,
    spread: Callable[[Tensor, Tensor], Tensor] = lambda lam, beta: lam * beta.sqrt(),
) -> tuple[Tensor, Tensor]:
    """Return drift and diffusion as `solvers.euler_maruyama` has them, its eta being lam."""
    return -0.5 * beta * x - weight(lam) * beta * score, spread(lam, beta)


FAMILY = Exercise(
    "04.4",
    "noise lam g and a score weighted (1 + lam^2) / 2 balance: same marginals, other paths.",
    _family,
    lambda: [
        (normals(k, 4, 2), normals(k + 1, 4, 2), exact(beta), exact(lam))
        for k, (beta, lam) in enumerate([(7.0, 0.0), (0.4, 0.5), (3.0, 1.0), (12.0, 1.5)])
    ],
    (
        Mistake(
            "lam for lam^2 in the drift",
            "noise lam g has variance lam^2 g^2: the score's weight is (1 + lam^2) / 2.",
            partial(_family, weight=lambda lam: (1 + lam) / 2),
        ),
        Mistake(
            "lam on the variance",
            "this family is right too, but its lam multiplies g^2: here lam multiplies g.",
            lambda x, score, beta, lam: _family(x, score, beta, lam.sqrt()),
        ),
        Mistake(
            "root of lam",
            "lam multiplies g itself: only beta = g^2 goes under the root.",
            partial(_family, spread=lambda lam, beta: (lam * beta).sqrt()),
        ),
        Mistake(
            "g scaled in the reverse SDE",
            "at lam = 0 the flow must remain, with half of g^2 score: yours has no score there.",
            partial(_family, weight=torch.square),
        ),
        Mistake(
            "noise turned down alone",
            "drift and noise change together: less noise takes less of the score.",
            partial(_family, weight=torch.ones_like),
        ),
        Mistake(
            "noise turned up alone",
            "noise blurs the marginals: lam^2 g^2 / 2 more of the score must undo that.",
            partial(_family, weight=lambda lam: torch.full_like(lam, 0.5)),
        ),
        Mistake(
            "undone in the wrong direction",
            "(1 - lam^2) / 2 is for noise added with dt > 0: here the steps go back in time.",
            partial(_family, weight=lambda lam: (1 - lam**2) / 2),
        ),
        Mistake(
            "half missing",
            "the weight is (1 + lam^2) / 2: at lam = 1 it must be the reverse SDE's, 1.",
            partial(_family, weight=lambda lam: 1 + lam**2),
        ),
        Mistake(
            "score's sign",
            "in forward time the score is subtracted: a step back in time then adds it.",
            lambda x, score, beta, lam: _family(x, -score, beta, lam),
        ),
        Mistake(
            "reversed time",
            "the drift is asked in forward time, dx = drift dt with dt < 0: change its sign.",
            lambda x, score, beta, lam: _family(-x, -score, beta, lam),
        ),
        Mistake(
            "g^2 for g",
            "beta is g^2, a variance per unit of time: the diffusion is lam times its root.",
            partial(_family, spread=lambda lam, beta: lam * beta),
        ),
    ),
)


def _hutchinson(f: Rule, x: Tensor, signs: Tensor) -> Tensor:
    return torch.stack([likelihood.hutchinson(v)(f, x)[1] for v in signs]).mean(0)


def _products(f: Rule, x: Tensor, vectors: Tensor, *, look_once: bool = False) -> Tensor:
    """Return v J for each of the vectors, (n, B, D)."""
    x = x.detach().requires_grad_()
    value = f(x)
    rows = (torch.autograd.grad(value if look_once else f(x), x, v)[0] for v in vectors)
    return torch.stack(list(rows))


def _bent(x: Tensor) -> Tensor:
    """Stand in for a flow: a field whose Jacobian is neither diagonal nor symmetric."""
    return torch.sin(x) * x.roll(1, dims=1).exp() + 0.5 * x.square().sum(1, keepdim=True)


HUTCHINSON = Exercise(
    "04.5",
    "one backward pass a probe estimates a divergence without bias, in any dimension.",
    _hutchinson,
    lambda: [(_bent, normals(n, 4, 3), normals(n + 1, n, 4, 3).sign()) for n in (3, 2)],
    (
        Mistake(
            "probe used once",
            "v J v needs the probe twice: multiply the product v J by v before you sum.",
            lambda f, x, signs: _products(f, x, signs).sum(2).mean(0),
        ),
        Mistake(
            "one probe alone",
            "only the first probe was asked: loop over all n, and return after the loop.",
            lambda f, x, signs: _hutchinson(f, x, signs[:1]),
        ),
        Mistake(
            "all probes in one pass",
            "one backward pass for all probes mixes them: v J v needs a pass for each v.",
            lambda f, x, v: (_products(f, x, v.sum(0, keepdim=True)) * v).sum(2).mean(0),
        ),
        Mistake(
            "sum over probes",
            "average over the n probes (axis 0), do not add them up.",
            lambda f, x, signs: _hutchinson(f, x, signs) * len(signs),
        ),
        Mistake(
            "mean over dimensions",
            "a divergence is the sum of D derivatives: sum over the last axis.",
            lambda f, x, signs: _hutchinson(f, x, signs) / x.shape[1],
        ),
        Mistake(
            "probes averaged first",
            "average the n estimates v J v, not the probes: a mean of probes is no probe.",
            lambda f, x, signs: _hutchinson(f, x, signs.mean(0, keepdim=True)),
        ),
        Mistake(
            "x without gradient",
            "autograd must watch x: begin with x = x.detach().requires_grad_().",
            lambda f, x, signs: torch.autograd.grad(f(x), x, signs[0])[0],
        ),
        Mistake(
            "graph used up",
            "a backward pass frees its graph: call f anew for each probe, or retain_graph.",
            lambda f, x, signs: _products(f, x, signs, look_once=True),
        ),
    ),
)


def _stream(x: Tensor, t: Tensor) -> Tensor:
    pace = 1 + torch.as_tensor(t, dtype=x.dtype).reshape(-1, 1)  # one t, or one for each row
    return pace * torch.tanh(0.7 * x + 0.1) - 0.4 * x.roll(1, dims=1)


def _stream_divergence(x: Tensor, t: Tensor) -> Tensor:
    pace = 1 + torch.as_tensor(t, dtype=x.dtype).flatten()
    return 0.7 * pace * (1 - torch.tanh(0.7 * x + 0.1).square()).sum(1)


def _log_likelihood(
    x: Tensor,
    drift: Flow,
    divergence: Flow,
    times: Tensor,
    log_prior: Rule,
    *,
    late: int = 0,
    asked: int = 0,
    moved: int = 0,
    even: bool = False,
    rate: Callable[[Tensor, Tensor], Tensor] = lambda change, dt: change * dt,
) -> Tensor:
    gained = torch.zeros_like(x[:, 0])
    for ends in pairwise(times):
        dt = times[1] - times[0] if even else ends[1] - ends[0]
        places = x, x + drift(x, ends[late]) * dt
        gained = gained + rate(divergence(places[moved], ends[asked]), dt)
        x = places[1]
    return log_prior(x) + gained


def _evened(times: Tensor) -> Tensor:
    shares = torch.arange(len(times)) / (len(times) - 1)
    return times[0] + shares * (times[-1] - times[0])


def _likelihood_probes() -> Probes:
    flow, log_prior = (_stream, _stream_divergence), Gaussian(exact(0.0), exact(1.0)).log_prob
    grids = exact([0.01, 0.05, 0.2, 0.5, 1.0]), exact([0.1, 0.4, 0.6])
    return [(normals(k, 4, 2), *flow, times, log_prior) for k, times in enumerate(grids)]


LIKELIHOOD = Exercise(
    "04.6",
    "along the flow log p changes by minus the divergence: what spreads out thins out.",
    _log_likelihood,
    _likelihood_probes,
    (
        Mistake(
            "divergence's sign",
            "where the flow spreads, it began denser than it ends: add the divergence.",
            lambda x, f, div, times, p: _log_likelihood(x, f, lambda *at: -div(*at), times, p),
        ),
        Mistake(
            "dt missing",
            "the divergence is a rate: multiply it by the step dt before you add it.",
            partial(_log_likelihood, rate=lambda change, dt: change),
        ),
        Mistake(
            "prior at the data",
            "the prior is the density at the flow's end: ask it where the point arrives.",
            lambda x, f, div, times, p: _log_likelihood(x, f, div, times, lambda end: p(x)),
        ),
        Mistake(
            "times reversed",
            "the point starts as data: take the times as they rise, not as a sampler does.",
            lambda x, f, div, times, p: _log_likelihood(x, f, div, times.flip(0), p),
        ),
        Mistake(
            "one dt for all",
            "the times need not be evenly spaced: every step has a dt of its own.",
            partial(_log_likelihood, even=True),
        ),
        Mistake(
            "even steps",
            "the times need not be evenly spaced: a step is the difference of its own two.",
            lambda x, f, div, times, p: _log_likelihood(x, f, div, _evened(times), p),
        ),
        Mistake(
            "divergence left out",
            "the prior where the point arrives is not all: add the integral of the divergence.",
            partial(_log_likelihood, rate=lambda change, dt: 0 * change),
        ),
        Mistake(
            "moved before asked",
            "Euler takes both rates at the same point: add the divergence, then move.",
            partial(_log_likelihood, moved=1),
        ),
        Mistake(
            "divergence where the step ends",
            "drift and divergence belong to one place and time: ask for both before the step.",
            partial(_log_likelihood, moved=1, asked=1),
        ),
        Mistake(
            "later end of the step",
            "Euler's step takes both rates at the time where it begins, not where it ends.",
            partial(_log_likelihood, late=1, asked=1),
        ),
        Mistake(
            "against the flow",
            "times rise from data to noise, so dt > 0: add drift dt, do not subtract it.",
            lambda x, f, *rest: _log_likelihood(x, lambda *at: -f(*at), *rest),
        ),
    ),
)


EXERCISES = (KERNEL, DSM, STEP, FAMILY, HUTCHINSON, LIKELIHOOD)
