"""The exercises of notebook 09: classifier-free guidance."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from tutorial_lib.exercises import Exercise, Mistake
from tutorial_lib.exercises.probes import Probes, exact, normals

Pair = tuple[Tensor, Tensor]
Rule = Callable[[Tensor], Tensor]
OfTwo = Callable[[Tensor, Tensor], Tensor]


def _extrapolate(eps_cond: Tensor, eps_uncond: Tensor, w: float) -> Tensor:
    return (1 + w) * eps_cond - w * eps_uncond


def _rescaled(eps_cond: Tensor, eps_uncond: Tensor, w: float) -> Tensor:
    guided = _extrapolate(eps_cond, eps_uncond, w)
    return guided * eps_cond.std(1, keepdim=True) / guided.std(1, keepdim=True)


EXTRAPOLATE = Exercise(
    "09.1",
    "guidance goes from the guess without a label through the one with it, and w beyond.",
    _extrapolate,
    lambda: [(normals(k, 4, 5), normals(k + 3, 4, 5), w) for k, w in enumerate((0.7, 3.0, 1.6))],
    (
        Mistake(
            "s for w",
            "that takes w for the s of GLIDE, 1 + w: with w = 0 the label must count in full.",
            lambda c, u, w: u + w * (c - u),
        ),
        Mistake(
            "difference alone",
            "that is only what goes beyond eps_cond: add it to eps_cond.",
            lambda c, u, w: w * (c - u),
        ),
        Mistake(
            "swapped",
            "1 + w is the weight of eps_cond, -w that of eps_uncond: yours are swapped.",
            lambda c, u, w: _extrapolate(u, c, w),
        ),
        Mistake(
            "interpolated",
            "1 - w and w lead from eps_cond to eps_uncond: guidance leads away from it.",
            lambda c, u, w: _extrapolate(c, u, -w),
        ),
        Mistake(
            "plus for minus",
            "the weights add up to 1: eps_uncond is subtracted.",
            lambda c, u, w: (1 + w) * c + w * u,
        ),
        Mistake(
            "plus for minus, s for w",
            "the weights add up to 1: they are s and 1 - s, where s is 1 + w.",
            lambda c, u, w: w * c + (w - 1) * u,
        ),
        Mistake(
            "1 forgotten",
            "the weights add up to 1: that of eps_cond is 1 + w.",
            lambda c, u, w: c - w * u,
        ),
        Mistake(
            "brackets missing",
            "w multiplies the whole difference: put eps_cond - eps_uncond in brackets.",
            lambda c, u, w: c + w * c - u,
        ),
        Mistake(
            "from the mean of both",
            "start from eps_cond, not from the mean of both: w = 0 is the conditional model.",
            lambda c, u, w: (c + u) / 2 + w * (c - u),
        ),
        Mistake(
            "weighted average",
            "an average lies between the two: guidance goes beyond eps_cond, so w is subtracted.",
            lambda c, u, w: (c + w * u) / (1 + w),
        ),
        Mistake(
            "one too many",
            "1 + w is counted from eps_uncond: from eps_cond it is w.",
            lambda c, u, w: c + (1 + w) * (c - u),
        ),
        Mistake(
            "rescaled",
            "leave the guided eps as large as it is: its rescaling is a later paper's.",
            _rescaled,
        ),
    ),
)


def _to_w(
    number: Tensor,
    written: str,
    *,
    w: Rule = lambda w: w,
    s: Rule = lambda s: s - 1,
    half: Rule = lambda g: (g - 1) / 2,
) -> Tensor:
    return {"w": w, "s": s, "half": half}[written](number)


TO_W = Exercise(
    "09.2",
    "papers count from different starts: compare the weights of eps_c, not the numbers.",
    _to_w,
    lambda: [
        (exact([0.0, 0.3, 1.5, 4.0]), "w"),
        (exact([0.0, 1.0, 3.0, 7.5]), "s"),
        (exact([0.0, 1.0, 2.5, 6.0]), "half"),
    ],
    (
        Mistake(
            "s for w",
            "s counts from eps_u and w from eps_c: where s is 1, w is 0.",
            partial(_to_w, s=lambda s: s),
        ),
        Mistake(
            "s + 1",
            "s = 1 + w is the larger of the two: take 1 off.",
            partial(_to_w, s=lambda s: s + 1),
        ),
        Mistake(
            "Imagen's w",
            "the w of Imagen is s: that of Ho & Salimans is asked for, and stays as it is.",
            partial(_to_w, w=lambda w: w - 1),
        ),
        Mistake(
            "mean for eps_c",
            "the mean is half a difference short of eps_c: where g is 1, w is 0.",
            partial(_to_w, half=lambda g: g / 2),
        ),
        Mistake(
            "mean for eps_u",
            "the mean is half a difference beyond eps_u: 1 + w is 1/2 larger than g / 2.",
            partial(_to_w, half=lambda g: g / 2 - 1),
        ),
        Mistake(
            "half forgotten",
            "g multiplies half of the difference: 1 + w is (1 + g) / 2.",
            partial(_to_w, half=lambda g: g - 0.5),
        ),
        Mistake(
            "g for s",
            "g counts from the mean, in half differences: where g is 0, w is -1/2.",
            partial(_to_w, half=lambda g: g - 1),
        ),
        Mistake(
            "g's weight of eps_c",
            "(1 + g) / 2 is the weight of eps_c, 1 + w: take 1 off.",
            partial(_to_w, half=lambda g: (1 + g) / 2),
        ),
        Mistake(
            "no guidance below 1",
            "diffusers guides only above 1: a scale below 1 is a w below 0, not 0.",
            partial(_to_w, s=lambda s: (s - 1).relu(), half=lambda g: (g - 1).relu() / 2),
        ),
        Mistake(
            "weight of eps_c",
            "those are the weights of eps_c, 1 + w: take 1 off each.",
            partial(_to_w, s=lambda s: s, half=lambda g: (1 + g) / 2),
        ),
        Mistake(
            "weight of eps_u",
            "those are the weights of eps_u, -w: turn the sign of each.",
            partial(_to_w, s=lambda s: 1 - s, half=lambda g: (1 - g) / 2),
        ),
        Mistake(
            "other way round",
            "that turns w into the others: here the others become w.",
            partial(_to_w, s=lambda w: w + 1, half=lambda w: 2 * w + 1),
        ),
    ),
)


def _drop_labels(y: Tensor, draws: Tensor, p: float, null: int) -> Tensor:
    return torch.where(draws < p, null, y)


def _lowest(y: Tensor, draws: Tensor, p: float, null: int) -> Tensor:
    rank = draws.argsort().argsort()
    return torch.where(rank < round(p * len(y)), null, y)


def _drop_probes() -> Probes:
    """Give p of 0 and 1 too, with a draw of 0."""
    generator, y = torch.Generator().manual_seed(4), torch.tensor([3, 0, 5, 1, 1, 4, 2, 5, 3, 1])
    draws = torch.rand(10, generator=generator, dtype=torch.float64)
    lowest = torch.where(draws == draws.min(), 0.0, draws)
    ends = [(y, lowest, p, 6) for p in (0.0, 1.0)]
    return [(y, draws, 0.3, 6), (y, draws.flip(0), 0.6, 7), *ends]


DROP = Exercise(
    "09.3",
    "a label that is lost now and then is all it takes: one network learns p(x | y) and p(x).",
    _drop_labels,
    _drop_probes,
    (
        Mistake(
            "kept for dropped",
            "p is the share that is dropped: y stays where draws >= p.",
            lambda y, draws, p, null: torch.where(draws < p, y, null),
        ),
        Mistake(
            "greater for less",
            "a draw exceeds p with probability 1 - p: null stands where draws < p.",
            lambda y, draws, p, null: torch.where(draws > p, null, y),
        ),
        Mistake(
            "less or equal",
            "draws may be 0 but never 1: with < a p of 0 drops none, a p of 1 drops all.",
            lambda y, draws, p, null: torch.where(draws <= p, null, y),
        ),
        Mistake(
            "zero for null",
            "0 is a class like the others: what stands for no label is null.",
            lambda y, draws, p, null: y * (draws >= p),
        ),
        Mistake(
            "one draw for the batch",
            "each row has a draw of its own: the first is not for the whole batch.",
            lambda y, draws, p, null: torch.where(draws[:1] < p, null, y),
        ),
        Mistake(
            "fixed number",
            "each row is dropped or not by itself: how many are, may vary.",
            _lowest,
        ),
        Mistake(
            "rows left out",
            "a row without a label stays in the batch: p(x) is learned from it.",
            lambda y, draws, p, null: y[draws >= p],
        ),
        Mistake(
            "mask",
            "that says which labels are dropped: return the labels.",
            lambda y, draws, p, null: draws < p,
        ),
        Mistake(
            "p of the paper",
            "0.1 is one of the paper's choices: here p is the argument.",
            lambda y, draws, p, null: _drop_labels(y, draws, 0.1, null),
        ),
    ),
    keeps="y is the caller's, who needs its labels again: write into a clone of it.",
)


class _Once:
    """Stand in for a network: answer each row by itself, and raise at a second call."""

    def __init__(self, seed: int, dims: int) -> None:
        self.table, self.called = normals(seed, 8, dims), False

    def __call__(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        if self.called:
            raise RuntimeError("the network was called a second time")
        self.called = True
        if not len(x) == len(t) == len(y):
            raise ValueError(f"points:{len(x)} times:{len(t)} labels:{len(y)}")
        return torch.tanh(x + t[:, None] * self.table[y].to(x)) + 0.4 * x.roll(1, dims=-1)


Network = Callable[[Tensor, Tensor, Tensor], Tensor]


def _at_once(
    network: Network,
    x: Tensor,
    t: Tensor,
    y: Tensor,
    null: int,
    w: float,
    *,
    twice: Rule = lambda rows: torch.cat([rows, rows]),
    times: Rule = lambda t: torch.cat([t, t]),
    other: Callable[[Tensor, int], Tensor] = torch.full_like,
    labels: Callable[[Tensor, Tensor], Tensor] = lambda y, null: torch.cat([y, null]),
    halves: Callable[[Tensor], tuple[Tensor, ...]] = lambda eps: eps.chunk(2),
    guide: Callable[[Tensor, Tensor, float], Tensor] = _extrapolate,
) -> Tensor:
    eps = network(twice(x), times(t), labels(y, other(y, null)))
    return guide(*halves(eps), w)


def _two_calls(network: Network, x: Tensor, t: Tensor, y: Tensor, null: int, w: float) -> Tensor:
    return _extrapolate(network(x, t, y), network(x, t, torch.full_like(y, null)), w)


def _beside(rows: Tensor) -> Tensor:
    return rows.repeat_interleave(2, 0)


def _by_turns(network: Network, x: Tensor, t: Tensor, y: Tensor, null: int, w: float) -> Tensor:
    labels = torch.stack([y, torch.full_like(y, null)], 1).flatten()
    return _extrapolate(*network(_beside(x), _beside(t), labels).chunk(2), w)


def _at_once_probes() -> Probes:
    """Give labels on both sides of null, so that no habit about its place goes unseen."""
    probes = []
    for k, (labels, null, w) in enumerate([([1, 5, 3, 0], 2, 1.5), ([4, 2, 6, 6, 1], 7, 0.6)]):
        x, t = normals(3 * k, len(labels), 4), torch.sigmoid(normals(3 * k + 1, len(labels)))
        probes.append((_Once(3 * k + 2, 4), x, t, torch.tensor(labels), null, w))
    return probes


AT_ONCE = Exercise(
    "09.4",
    "guidance takes two looks but one call: rows of a batch do not see one another.",
    _at_once,
    _at_once_probes,
    (
        Mistake(
            "two calls",
            "call the network once, with 2 B rows: one large batch costs less than two calls.",
            _two_calls,
        ),
        Mistake(
            "halves swapped",
            "answers keep the order of the labels: 1 + w belongs to those that were told y.",
            partial(_at_once, halves=lambda eps: eps.chunk(2)[::-1]),
        ),
        Mistake(
            "y twice",
            "the other half must be told null: with y in both there is nothing to compare.",
            partial(_at_once, other=lambda y, null: y),
        ),
        Mistake(
            "zero for null",
            "0 is a class like the others: what stands for no label is null.",
            partial(_at_once, other=lambda y, null: torch.zeros_like(y)),
        ),
        Mistake(
            "x interleaved",
            "repeat_interleave puts the copies of a row side by side: take torch.cat([x, x]).",
            partial(_at_once, twice=_beside, times=_beside),
        ),
        Mistake(
            "all interleaved, then halved",
            "chunk(2) cuts in the middle: cat y and null one after the other, not by turns.",
            _by_turns,
        ),
        Mistake(
            "every other row",
            "cat puts one half after the other: cut the answer in the middle, chunk(2).",
            partial(_at_once, halves=lambda eps: (eps[::2], eps[1::2])),
        ),
        Mistake(
            "y not repeated",
            "2 B rows need 2 B labels: y, and as many nulls after it.",
            partial(_at_once, labels=lambda y, null: y),
        ),
        Mistake(
            "x not repeated",
            "2 B rows need 2 B points: each is asked with its label and without.",
            partial(_at_once, twice=lambda x: x),
        ),
        Mistake(
            "t not repeated",
            "2 B rows need 2 B times: repeat t as x.",
            partial(_at_once, times=lambda t: t),
        ),
        Mistake(
            "s for w",
            "that takes w for the s of GLIDE, 1 + w: guide as in 09.1.",
            partial(_at_once, guide=lambda c, u, w: u + w * (c - u)),
        ),
        Mistake(
            "dimensions halved",
            "chunk(2, dim=1) cuts through the points: it is the rows that are twice as many.",
            partial(_at_once, halves=lambda eps: eps.chunk(2, 1)),
        ),
        Mistake(
            "guided twice",
            "return B rows: DiT's 2 B are for a sampler whose x is doubled, too.",
            partial(_at_once, guide=lambda c, u, w: _extrapolate(c, u, w).repeat(2, 1)),
        ),
    ),
)


def _flow(v_cond: Tensor, v_uncond: Tensor, w: float) -> Tensor:
    return v_cond ** (1 + w) * v_uncond**-w


def _tilted(v_cond: Tensor, v_uncond: Tensor, w: float) -> Tensor:
    return 1 / ((1 + w) / v_cond - w / v_uncond)


OfLaws = Callable[[Tensor, Tensor, float], Tensor]


def _two_variances(
    v_cond: Tensor, v_uncond: Tensor, w: float, *, flow: OfLaws = _flow, tilted: OfLaws = _tilted
) -> Pair:
    return flow(v_cond, v_uncond, w), tilted(v_cond, v_uncond, w)


def _two_variances_probes() -> Probes:
    narrow, wide = exact([0.2, 0.5, 1.0, 2.0]), exact([1.0, 0.8, 3.3, 2.6])
    return [(narrow, wide, w) for w in (0.5, 2.0)]


TWO_VARIANCES = Exercise(
    "09.5",
    "guided scores belong to no noised law: the flow ends narrower than the tilted law.",
    _two_variances,
    _two_variances_probes,
    (
        Mistake(
            "harmonic for geometric",
            "the flow draws another law: each part multiplies x, so v_cond has the power 1 + w.",
            partial(_two_variances, flow=_tilted),
        ),
        Mistake(
            "geometric for harmonic",
            "in the tilted law exponents add up: precisions, 1 / v, are what w extrapolates.",
            partial(_two_variances, tilted=_flow),
        ),
        Mistake(
            "variances extrapolated",
            "the flow multiplies x at each time: w extrapolates log v, not v.",
            partial(_two_variances, flow=_extrapolate),
        ),
        Mistake(
            "standard deviations",
            "those are standard deviations: square them.",
            lambda *given: tuple(v.sqrt() for v in _two_variances(*given)),
        ),
        Mistake(
            "s for w",
            "w and 1 - w are the weights of s: v_cond has 1 + w, v_uncond -w.",
            lambda v_cond, v_uncond, w: _two_variances(v_cond, v_uncond, w - 1),
        ),
        Mistake(
            "tilt of p(x)",
            "p(x) p(y | x)^w is one p(y | x) short: p(x | y) itself is tilted.",
            partial(_two_variances, tilted=lambda c, u, w: _tilted(c, u, w - 1)),
        ),
        Mistake(
            "p(x) left out",
            "p(x)^w divides: take its w / v_uncond off the precision.",
            partial(_two_variances, tilted=lambda c, u, w: c / (1 + w)),
        ),
        Mistake(
            "plus for minus",
            "p(x) is divided by: its power is -w.",
            lambda c, u, w: (c ** (1 + w) * u**w, 1 / ((1 + w) / c + w / u)),
        ),
        Mistake(
            "laws swapped",
            "1 + w belongs to v_cond, -w to v_uncond: yours are swapped.",
            lambda v_cond, v_uncond, w: _two_variances(v_uncond, v_cond, w),
        ),
        Mistake(
            "precision",
            "the second is a precision: a variance is one over it.",
            partial(_two_variances, tilted=lambda *given: 1 / _tilted(*given)),
        ),
        Mistake(
            "outputs swapped",
            "return the variance of the flow first, then that of the tilted law.",
            lambda *given: _two_variances(*given)[::-1],
        ),
    ),
)


def _implicit(
    eps_cond: Tensor,
    eps_uncond: Tensor,
    sigma: Tensor,
    *,
    gap: OfTwo = torch.sub,
    size: Rule = lambda sigma: sigma,
) -> Tensor:
    return -gap(eps_cond, eps_uncond) / size(sigma)


IMPLICIT = Exercise(
    "09.6",
    "one network, asked twice, implies a classifier that nobody trained.",
    _implicit,
    lambda: [
        (normals(k, 4, 3), normals(k + 3, 4, 3), exact(sigma))
        for k, sigma in enumerate((0.3, 0.9, 0.6))
    ],
    (
        Mistake(
            "sign",
            "a score is -eps / sigma: the gradient leads from eps_cond to eps_uncond.",
            partial(_implicit, gap=lambda c, u: u - c),
        ),
        Mistake(
            "not divided",
            "that is a difference of noises: over sigma it is one of scores.",
            partial(_implicit, size=torch.ones_like),
        ),
        Mistake(
            "sigma squared",
            "x_t - alpha x_0 is divided by sigma^2: eps is that over sigma, so sigma is left.",
            partial(_implicit, size=torch.square),
        ),
        Mistake(
            "multiplied",
            "a gradient times sigma is a noise: on the way back, divide by sigma.",
            partial(_implicit, size=torch.reciprocal),
        ),
        Mistake(
            "alpha for sigma",
            "alpha scales x_0: a noise becomes a score by sigma.",
            partial(_implicit, size=lambda sigma: (1 - sigma**2).sqrt()),
        ),
        Mistake(
            "second root",
            "sigma is the root already, sqrt(1 - alpha_bar): take no second one.",
            partial(_implicit, size=torch.sqrt),
        ),
        Mistake(
            "gradient in x_0",
            "the gradient is in x_t: in x_0 it would have a factor alpha.",
            partial(_implicit, size=lambda sigma: sigma / (1 - sigma**2).sqrt()),
        ),
        Mistake(
            "conditional score",
            "that is the score of p(x_t | y): take off that of p(x_t), for Bayes divides.",
            partial(_implicit, gap=lambda c, u: c),
        ),
        Mistake(
            "scores added",
            "Bayes divides p(x_t | y) by p(x_t): their scores are subtracted.",
            partial(_implicit, gap=torch.add),
        ),
    ),
)

EXERCISES = (EXTRAPOLATE, TO_W, DROP, AT_ONCE, TWO_VARIANCES, IMPLICIT)
