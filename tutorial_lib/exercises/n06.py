"""The exercises of notebook 06: Analytic-DPM."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import pad

from tutorial_lib.analytic import cheapest_times
from tutorial_lib.exercises import Exercise, Mistake
from tutorial_lib.exercises.probes import Probes, exact, normals

Pair = tuple[Tensor, Tensor]
Rule = Callable[[Tensor], Tensor]
OfTwo = Callable[[Tensor, Tensor], Tensor]


def _unexplained(
    eps_hat: Tensor,
    *,
    size: Rule = lambda eps_hat: eps_hat.square().mean(1),
    error: Rule = lambda sizes: sizes.std() / len(sizes) ** 0.5,
) -> Pair:
    sizes = size(eps_hat)
    return 1 - sizes.mean(), error(sizes)


def _answers(seed: int, n_draws: int, dims: int) -> Tensor:
    """Stand in for a network's answers: the entries of one draw go together."""
    shared = 0.5 * normals(seed, n_draws, 1) + 0.2
    return shared + 0.5 * normals(seed + 1, n_draws, dims)


UNEXPLAINED = Exercise(
    "06.1",
    "an exact network's answers are smaller than the noise by just what x_t leaves unexplained.",
    _unexplained,
    lambda: [(_answers(0, 7, 4),), (_answers(2, 12, 3),)],
    (
        Mistake(
            "d forgotten",
            "a squared norm adds up d dimensions: divide it by d, for u is a share.",
            partial(_unexplained, size=lambda eps_hat: eps_hat.square().sum(1)),
        ),
        Mistake(
            "square missing",
            "square the norm: u is a share of the noise's variance.",
            partial(_unexplained, size=lambda eps_hat: eps_hat.norm(dim=1) / eps_hat.shape[1]),
        ),
        Mistake(
            "R^2 returned",
            "that is R^2, the share that x_t explains: u is 1 minus it.",
            lambda eps_hat: (1 - _unexplained(eps_hat)[0], _unexplained(eps_hat)[1]),
        ),
        Mistake(
            "mean squared",
            "square each answer, then average: the mean answer is nearly 0, whatever x_t tells.",
            lambda e: (1 - e.mean(0).square().mean(), _unexplained(e)[1]),
        ),
        Mistake(
            "standard deviation",
            "that is how much single draws vary: a mean of M draws errs by 1 / sqrt(M) of it.",
            partial(_unexplained, error=torch.std),
        ),
        Mistake(
            "all entries taken for draws",
            "the D entries of a draw are not independent: average each draw, then std over the M.",
            partial(_unexplained, size=lambda eps_hat: eps_hat.square().flatten()),
        ),
        Mistake(
            "divided by sqrt(M D)",
            "each draw gives one average, whatever its D: divide their std by sqrt(M) alone.",
            lambda e: (_unexplained(e)[0], _unexplained(e)[1] / e.shape[1] ** 0.5),
        ),
        Mistake(
            "M for M - 1",
            "the mean came from the same M draws: their std divides by M - 1, as torch's does.",
            partial(_unexplained, error=lambda s: s.std(correction=0) / len(s) ** 0.5),
        ),
        Mistake(
            "outputs swapped",
            "return u first, then its standard error.",
            lambda eps_hat: _unexplained(eps_hat)[::-1],
        ),
    ),
)


def _beta(bar_s: Tensor, bar_t: Tensor) -> Tensor:
    return 1 - bar_t / bar_s


def _tilde(bar_s: Tensor, bar_t: Tensor) -> Tensor:
    return _beta(bar_s, bar_t) * (1 - bar_s) / (1 - bar_t)


def _ratio(bar_t: Tensor) -> Tensor:
    """Return Var[x_0 | x_t] where u = 1."""
    return (1 - bar_t) / bar_t


def _kappa(bar_s: Tensor, bar_t: Tensor, fresh: Tensor) -> Tensor:
    """Return the weight of x_0 in the mean of a stride whose fresh noise is lambda^2."""
    return bar_s.sqrt() - bar_t.sqrt() * (1 - bar_s - fresh).sqrt() / (1 - bar_t).sqrt()


def _width(
    u: Tensor,
    bar_s: Tensor,
    bar_t: Tensor,
    eta: Tensor,
    *,
    noise: OfTwo = _tilde,
    kappa: Callable[[Tensor, Tensor, Tensor], Tensor] = _kappa,
    power: int = 2,
    ratio: Rule = _ratio,
) -> Tensor:
    fresh = eta**2 * noise(bar_s, bar_t)
    return fresh + kappa(bar_s, bar_t, fresh) ** power * ratio(bar_t) * u


def _strides() -> Pair:
    """Return the bars at both ends of four strides, those at s first."""
    return exact([0.95, 0.6, 0.3, 0.05]), exact([0.92, 0.5, 0.1, 0.02])


WIDTH = Exercise(
    "06.2",
    "what a stride cannot know of x_0 belongs in its noise: the curve u sets every best width.",
    _width,
    lambda: [
        (exact([0.1, 0.3, 0.7, 0.95]), *_strides(), exact(0.5)),
        (exact([0.6, 0.2, 0.05, 0.4]), *_strides(), exact([[0.0], [0.8], [1.0]])),
    ],
    (
        Mistake(
            "eta for eta^2",
            "eta multiplies the standard deviation: lambda^2 is eta^2 beta_tilde.",
            lambda u, s, t, eta: _width(u, s, t, eta.sqrt()),
        ),
        Mistake(
            "DDPM's kappa",
            "kappa changes with eta: beta sqrt(bar_s) / (1 - bar_t) is that of eta = 1.",
            partial(_width, kappa=lambda s, t, fresh: _kappa(s, t, _tilde(s, t))),
        ),
        Mistake(
            "lambda^2 left out of kappa",
            "fresh noise takes the place of old: the root in kappa is of 1 - bar_s - lambda^2.",
            partial(_width, kappa=lambda s, t, fresh: _kappa(s, t, torch.zeros_like(fresh))),
        ),
        Mistake(
            "kappa not squared",
            "kappa multiplies x_0, so the variance of x_0 is multiplied by kappa^2.",
            partial(_width, power=1),
        ),
        Mistake(
            "variances added",
            "x_0's error and eps's are one and the same error: add their weights, then square.",
            partial(_width, kappa=lambda s, t, fresh: (s + (1 - s - fresh) / _ratio(t)).sqrt()),
        ),
        Mistake(
            "u for the variance of x_0",
            "u is the noise's variance: x_0's is (1 - bar_t) / bar_t times that.",
            partial(_width, ratio=torch.ones_like),
        ),
        Mistake(
            "ratio inverted",
            "x_0 is (x_t - sqrt(1 - bar_t) eps) / sqrt(bar_t): u's factor is (1 - bar_t) / bar_t.",
            partial(_width, ratio=lambda bar_t: bar_t / (1 - bar_t)),
        ),
        Mistake(
            "clipped",
            "clip nothing here: the variance of x_0 may exceed 1, and its bounds come in 06.4.",
            lambda u, s, t, eta: _width(torch.minimum(u, 1 / _ratio(t)), s, t, eta),
        ),
        Mistake(
            "lambda^2 forgotten",
            "add lambda^2: the stride draws that noise even where x_0 is known.",
            lambda u, s, t, eta: _width(u, s, t, eta) - eta**2 * _tilde(s, t),
        ),
        Mistake(
            "beta for beta_tilde",
            "at eta = 1 the fresh noise is beta_tilde, beta times (1 - bar_s) / (1 - bar_t).",
            partial(_width, noise=_beta),
        ),
        Mistake(
            "explained for unexplained",
            "u itself is the share left open: 1 - u is the one that x_t explains.",
            lambda u, s, t, eta: _width(1 - u, s, t, eta),
        ),
    ),
)


Letters = tuple[Tensor, Tensor, Tensor]  # alpha_n, beta_bar_n, beta_bar_{n-1}


def _beta_bars(betas: Tensor) -> Tensor:
    """Return beta_bar of steps 0 .. T."""
    return pad(1 - torch.cumprod(1 - betas, 0), (1, 0))


def _letters(betas: Tensor, n: int | Tensor, table: Rule = _beta_bars) -> Letters:
    return 1 - betas[n - 1], table(betas)[n], table(betas)[n - 1]


def _paper(
    gamma: Tensor,
    lambda2: Tensor,
    betas: Tensor,
    n: int | Tensor,
    *,
    letters: Callable[[Tensor, int | Tensor], Letters] = _letters,
    sign: int = 1,
    power: int = 2,
    factor: Rule = lambda bar: bar,
) -> Tensor:
    alpha, bar, before = letters(betas, n)
    gap = (bar / alpha).sqrt() - sign * (before - lambda2).sqrt()
    return lambda2 + gap**power * (1 - factor(bar) * gamma)


def _paper_probes() -> Probes:
    """Give steps short of T, where an index off by one would raise; step 1 draws nothing."""
    betas, probes = torch.linspace(0.05, 0.4, 12, dtype=torch.float64), []
    for n, eta, explained in ((1, 1.0, 0.4), (torch.tensor(4), 0.7, 0.3), (9, 0.9, 0.8)):
        alpha, bar, before = _letters(betas, n)
        probes.append((explained / bar, eta**2 * (1 - alpha) * before / bar, betas, n))
    return probes


PAPER = Exercise(
    "06.3",
    "beta_bar Gamma is R^2, the explained share: the paper's best width is that of 06.2.",
    _paper,
    _paper_probes,
    (
        Mistake(
            "Gamma for the share",
            "Gamma is of scores: times beta_bar_n it is of noises, a share between 0 and 1.",
            partial(_paper, factor=torch.ones_like),
        ),
        Mistake(
            "std for variance",
            "Gamma is a mean of squares: multiply it by the variance beta_bar_n, not by its root.",
            partial(_paper, factor=torch.sqrt),
        ),
        Mistake(
            "alpha_bar for alpha",
            "beta_bar_n is divided by alpha_n, of one step, not by the product alpha_bar_n.",
            partial(_paper, letters=lambda b, n: (1 - _beta_bars(b)[n], *_letters(b, n)[1:])),
        ),
        Mistake(
            "betas multiplied",
            "beta_bar_n is 1 - alpha_bar_n, the noise of n steps, not the product of the betas.",
            partial(_paper, letters=partial(_letters, table=lambda b: pad(b.cumprod(0), (1, 0)))),
        ),
        Mistake(
            "plus for minus",
            "the two roots are subtracted: what is left of x_0 is their difference.",
            partial(_paper, sign=-1),
        ),
        Mistake(
            "square missing",
            "square the difference of the roots: it multiplies a variance.",
            partial(_paper, power=1),
        ),
        Mistake(
            "beta_bar of the same step",
            "the second root is of beta_bar_{n-1} - lambda^2: the step ends at n - 1.",
            partial(_paper, letters=lambda b, n: (*_letters(b, n)[:2], _beta_bars(b)[n])),
        ),
        Mistake(
            "beta_bar_0 from the table's end",
            "at n = 1 index n - 2 is -1, the last of the table: put beta_bar_0 = 0 in front.",
            partial(_paper, letters=lambda b, n: (*_letters(b, n)[:2], _beta_bars(b)[1:][n - 2])),
        ),
        Mistake(
            "index off by one",
            "steps count from 1 and tables from 0: step n stands at index n - 1.",
            lambda gamma, lambda2, betas, n: _paper(gamma, lambda2, betas, n + 1),
        ),
        Mistake(
            "lambda^2 squared",
            "the argument is lambda^2 already: use it as it is.",
            lambda gamma, lambda2, betas, n: _paper(gamma, lambda2**2, betas, n),
        ),
    ),
)


def _clipped(
    u: Tensor,
    bar_s: Tensor,
    bar_t: Tensor,
    r: Tensor,
    *,
    least: float = 0.0,
    most: OfTwo = lambda ratio, r: torch.minimum(ratio, r**2),
) -> Tensor:
    fresh, ratio = _tilde(bar_s, bar_t), _ratio(bar_t)
    left_open = torch.minimum((ratio * u).clamp(min=least), most(ratio, r))
    return fresh + _kappa(bar_s, bar_t, fresh) ** 2 * left_open


_to_one = partial(_clipped, most=lambda ratio, r: ratio)


def _clipped_probes() -> Probes:
    """Give estimates below 0, between and above 1: r bounds the last strides, u the first."""
    rows = exact([[-0.3], [0.4], [0.9], [1.2], [1.8]]), exact([[-4.0], [0.08], [0.7], [5.0]])
    return [(u, *_strides(), exact(r)) for u, r in zip(rows, (0.6, 2.0), strict=True)]


CLIPPED = Exercise(
    "06.4",
    "an estimate may err, a theorem does not: the best width lies between two known ones.",
    _clipped,
    _clipped_probes,
    (
        Mistake(
            "clipped from below alone",
            "clip from above too: at u = 1, or at Var[x_0 | x_t] = r^2 if that is less.",
            partial(_clipped, most=lambda ratio, r: torch.full_like(ratio, torch.inf)),
        ),
        Mistake(
            "r unused",
            "u between 0 and 1 is not all: data in [-r, r] have no variance above r^2.",
            _to_one,
        ),
        Mistake(
            "r alone",
            "r^2 is not the only bound: where little noise is left, u = 1 gives the lesser one.",
            partial(_clipped, most=lambda ratio, r: r**2),
        ),
        Mistake(
            "1 for r^2",
            "1 is the bound of data in [-1, 1]: here r says how far they reach.",
            partial(_clipped, most=lambda ratio, r: torch.ones_like(ratio)),
        ),
        Mistake(
            "greater of the two bounds",
            "both upper bounds hold at once: take the smaller of the two.",
            partial(_clipped, most=lambda ratio, r: torch.maximum(ratio, r**2)),
        ),
        Mistake(
            "r for r^2",
            "r bounds a standard deviation: the variance of x_0 is at most r^2.",
            partial(_clipped, most=torch.minimum),
        ),
        Mistake(
            "whole length for half",
            "a variance is at most the square of half the interval: r^2, not (2 r)^2.",
            partial(_clipped, most=lambda ratio, r: torch.minimum(ratio, (2 * r) ** 2)),
        ),
        Mistake(
            "width clipped at r^2",
            "r^2 bounds the variance of x_0, not the width: that one follows it, times kappa^2.",
            lambda u, s, t, r: torch.minimum(_to_one(u, s, t, r), r**2),
        ),
        Mistake(
            "beta as upper bound",
            "beta is no bound: at u = 1 the width is beta / (1 - beta), which is more.",
            lambda u, s, t, r: torch.minimum(_clipped(u, s, t, r), _beta(s, t)),
        ),
        Mistake(
            "zero as lower bound",
            "the least width is not 0 but beta_tilde, which the stride adds even at u = 0.",
            lambda *given: _clipped(*given, least=-torch.inf).clamp(min=0),
        ),
    ),
)


def _targets(eps: Tensor, eps_hat: Tensor) -> Pair:
    return (eps - eps_hat).square(), eps.square()


def _meant(eps_hat: Tensor, h: Tensor) -> Pair:
    return h, (h - eps_hat.square()).clamp(min=0)


def _stage(
    eps: Tensor,
    eps_hat: Tensor,
    h: Tensor,
    *,
    targets: Callable[[Tensor, Tensor], Pair] = _targets,
    meant: Callable[[Tensor, Tensor], Pair] = _meant,
    penalty: Rule = torch.square,
) -> tuple[Tensor, ...]:
    residual, square = (penalty(target - h).sum(1) for target in targets(eps, eps_hat))
    return residual, square, *meant(eps_hat, h)


def _stage_probes() -> Probes:
    """Give answers above 0 whose variances are on either side of 0 and 1."""
    return [
        (normals(k, *shape), 0.8 * normals(k + 1, *shape), normals(k + 2, *shape).exp())
        for k, shape in enumerate([(5, 3), (4, 2)])
    ]


STAGE = Exercise(
    "06.5",
    "least squares answers with a mean: taught squares, a second network tells variances.",
    _stage,
    _stage_probes,
    (
        Mistake(
            "absolute error",
            "square the errors of h: absolute ones are least at a median, and h is to be a mean.",
            partial(_stage, penalty=torch.abs),
        ),
        Mistake(
            "residual not squared",
            "NPR's target is the residual's square: eps - eps_hat itself has mean 0 given x_t.",
            partial(_stage, targets=lambda eps, hat: (eps - hat, eps.square())),
        ),
        Mistake(
            "answers squared",
            "the targets are squares: the square of a mean, h^2, is not the mean of squares.",
            partial(
                _stage,
                targets=lambda eps, hat: (eps - hat, eps),
                meant=lambda hat, h: _meant(hat, h**2),
            ),
        ),
        Mistake(
            "difference of squares",
            "NPR's target is (eps - eps_hat)^2: eps^2 - eps_hat^2 also keeps the cross term.",
            partial(_stage, targets=lambda eps, hat: (eps**2 - hat**2, eps**2)),
        ),
        Mistake(
            "eps_hat^2 taken off too early",
            "SN's target is eps^2 as it is: eps_hat^2 is taken off h afterwards, in the variance.",
            partial(_stage, targets=lambda eps, hat: ((eps - hat) ** 2, eps**2 - hat**2)),
        ),
        Mistake(
            "eps_hat^2 not taken off",
            "SN's h is a mean square: less the mean's square, eps_hat^2, it is a variance.",
            partial(_stage, meant=lambda hat, h: (h, h)),
        ),
        Mistake(
            "not clipped",
            "h - eps_hat^2 can fall below 0, a variance cannot: clip the second at 0.",
            partial(_stage, meant=lambda hat, h: (h, h - hat.square())),
        ),
        Mistake(
            "mean over dimensions",
            "sum both losses over the dimensions, do not average them.",
            partial(_stage, penalty=lambda gap: gap.square() / gap.shape[1]),
        ),
        Mistake(
            "outputs swapped",
            "NPR comes first, then SN: in the losses and in the variances.",
            lambda *given: tuple(_stage(*given)[k] for k in (1, 0, 3, 2)),
        ),
    ),
)


def _cheapest(costs: Tensor, k: int) -> Tensor:
    return cheapest_times(torch.arange(len(costs)), costs, k)


def _at_most(costs: Tensor, k: int) -> Tensor:
    ways = [_cheapest(costs, fewer) for fewer in range(1, k + 1)]
    return min(ways, key=lambda way: costs[way[:-1], way[1:]].sum())


def _greedy(costs: Tensor, k: int) -> Tensor:
    """Take the cheapest next stride that leaves times enough for those after it."""
    way, last = [0], len(costs) - 1
    for left in range(k - 1, 0, -1):
        way.append(int(costs[way[-1], : last + 1 - left].argmin()))
    return torch.tensor([*way, last])


def _last_origins(costs: Tensor, k: int) -> Tensor:
    reached, way = costs[0], [len(costs) - 1]
    for _ in range(k - 1):
        reached, origin = (reached[:, None] + costs).min(0)
    for _ in range(k):
        way.append(int(origin[way[-1]]))
    return torch.tensor(way[::-1])


def _cheapest_probes() -> Probes:
    """Give costs that have no order, so that fewer strides may cost less; k divides n - 1."""
    probes = []
    for seed, (n, k) in enumerate([(9, 4), (10, 3)]):
        later = torch.ones(n, n, dtype=torch.bool).triu(1)
        probes.append((torch.where(later, 0.1 + normals(seed, n, n).abs(), torch.inf), k))
    return probes


CHEAPEST = Exercise(
    "06.6",
    "the cheapest path in k strides is one in k - 1, and a stride: no list of grids is needed.",
    _cheapest,
    _cheapest_probes,
    (
        Mistake(
            "greedy",
            "the cheapest next stride may lead to dear ones: compare the costs of whole paths.",
            _greedy,
        ),
        Mistake(
            "one table of origins",
            "where a time is best reached from changes: keep a row for each number of strides.",
            _last_origins,
        ),
        Mistake(
            "at most k strides",
            "exactly k strides are asked for, even where fewer cost less.",
            _at_most,
        ),
        Mistake(
            "k stops between",
            "k strides have k - 1 stops between the ends: yours makes one stride too many.",
            lambda costs, k: _cheapest(costs, k + 1),
        ),
        Mistake(
            "k times",
            "k strides have k + 1 times, both ends among them: yours makes one too few.",
            lambda costs, k: _cheapest(costs, k - 1),
        ),
        Mistake(
            "path reversed",
            "tracing back finds the last time first: turn the path round, to begin at 0.",
            lambda costs, k: _cheapest(costs, k).flip(0),
        ),
        Mistake(
            "stops reversed",
            "the stops come out last first: turn them round before you put 0 in front.",
            lambda costs, k: _cheapest(costs, k).flip(0).roll(1),
        ),
        Mistake(
            "ends left out",
            "the ends belong to the path: put 0 in front of the stops and n - 1 after them.",
            lambda costs, k: _cheapest(costs, k)[1:-1],
        ),
    ),
)

EXERCISES = (UNEXPLAINED, WIDTH, PAPER, CLIPPED, STAGE, CHEAPEST)
