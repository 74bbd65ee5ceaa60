"""The exercises of notebook 13: Imagen."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from tutorial_lib.exercises import Exercise, Mistake
from tutorial_lib.exercises.probes import Probes, exact, normals

Pair = tuple[Tensor, Tensor]
Rule = Callable[[Tensor], Tensor]
OfTwo = Callable[[Tensor, Tensor], Tensor]
OfThree = Callable[[Tensor, Tensor, Tensor], Tensor]


def _log_odds(prior: float) -> float:
    return math.log(prior / (1 - prior))


def _guided(told: Tensor, silent: Tensor, w: float) -> Tensor:
    return (1 + w) * told - w * silent


def _guided_sign(
    xt: Tensor,
    alpha: float,
    sigma: float,
    p: float,
    p_c: float,
    w: float,
    *,
    prior: Callable[[float], float] = _log_odds,
    seen: Callable[[Tensor, float, float], Tensor] = lambda x, a, s: 2 * a * x / s**2,
    mean: Rule = lambda log_odds: (log_odds / 2).tanh(),
    guide: Callable[[Tensor, Tensor, float], Tensor] = _guided,
) -> Tensor:
    told, silent = (mean(prior(chance) + seen(xt, alpha, sigma)) for chance in (p_c, p))
    return guide(told, silent, w)


def _guided_sign_probes() -> Probes:
    """Give weights of 0, -1 and more, a caption that says nothing, and alpha of any size."""
    given = [(0.6, 0.8, 0.3, 0.8, 3.0), (1.3, 0.9, 0.7, 0.45, 0.0), (0.4, 0.7, 0.85, 0.25, -1.0)]
    given += [(0.96, 1.2, 0.2, 0.2, 2.0), (0.5, 1.1, 0.6, 0.9, 8.0)]
    probes = []
    for k, (alpha, sigma, *chances) in enumerate(given):
        sign, noise = normals(2 * k, 6 - k).sign(), normals(2 * k + 1, 6 - k)
        probes.append((alpha * sign + sigma * noise, alpha, sigma, *chances))
    return probes


SIGN = Exercise(
    "13.1",
    "both denoisers stay inside the box: it is guidance that leaves it.",
    _guided_sign,
    _guided_sign_probes,
    (
        Mistake(
            "1/2 forgotten",
            "the mean is tanh of half the log odds: the 1/2 is lost.",
            partial(_guided_sign, mean=torch.tanh),
        ),
        Mistake(
            "even odds",
            "the priors are lost: log odds of p and of p_c come before what x_t says.",
            partial(_guided_sign, prior=lambda chance: 0.0),
        ),
        Mistake(
            "p for a half",
            "(13.3) is for even odds without a caption: here p has log odds of its own.",
            lambda xt, alpha, sigma, p, p_c, w: _guided_sign(xt, alpha, sigma, 0.5, p_c, w),
        ),
        Mistake(
            "sigma not squared",
            "sigma is not squared: the exponent of a normal law has the variance.",
            partial(_guided_sign, seen=lambda x, a, s: 2 * a * x / s),
        ),
        Mistake(
            "alpha left out",
            "alpha is left out: x_t is about alpha or -alpha, not 1 or -1.",
            partial(_guided_sign, seen=lambda x, a, s: 2 * x / s**2),
        ),
        Mistake(
            "2 left out",
            "the 2 is left out: x_t adds 2 alpha x_t / sigma^2 to the log odds.",
            partial(_guided_sign, seen=lambda x, a, s: a * x / s**2),
        ),
        Mistake(
            "probabilities",
            "those are logarithms of probabilities: Bayes adds those of the odds, p / (1 - p).",
            partial(_guided_sign, prior=math.log),
        ),
        Mistake(
            "odds of -1",
            "those are the log odds of -1: a p near 1 must make them large.",
            partial(_guided_sign, prior=lambda chance: -_log_odds(chance)),
        ),
        Mistake(
            "sigmoid",
            "a sigmoid is the probability of +1: the mean of a number of 1 or -1 is a tanh.",
            partial(_guided_sign, mean=torch.sigmoid),
        ),
        Mistake(
            "weights exchanged",
            "the weights are exchanged: 1 + w is the conditional's, -w the other's.",
            partial(_guided_sign, guide=lambda told, silent, w: w * told - (1 + w) * silent),
        ),
        Mistake(
            "p and p_c exchanged",
            "p and p_c are exchanged: that guides away from the caption.",
            partial(_guided_sign, guide=lambda told, silent, w: _guided(silent, told, w)),
        ),
        Mistake(
            "Imagen's w",
            "that is Imagen's w, which starts from 1: here w = 0 is the conditional model.",
            partial(_guided_sign, guide=lambda told, silent, w: w * told + (1 - w) * silent),
        ),
        Mistake(
            "log odds guided",
            "you guide the log odds, and never leave the box: what is guided is the two means.",
            partial(_guided_sign, guide=lambda c, u, w: _guided(c.atanh(), u.atanh(), w).tanh()),
        ),
        Mistake(
            "clipped",
            "clipped to the box: what guidance says may lie outside, and that is the point.",
            partial(_guided_sign, guide=lambda *given: _guided(*given).clamp(-1, 1)),
        ),
    ),
    keeps="xt is the caller's: *= and += change it there, too.",
)


def _size(
    x0: Tensor, quantile: float, *, of: Rule = torch.abs, axis: int = 1, least: float = 1.0
) -> Tensor:
    s = of(x0).flatten(axis).quantile(quantile, dim=axis).clamp(min=least)
    return s.reshape(*s.shape, *(1,) * (4 - s.ndim))  # (B, 1, 1, 1)


def _threshold(
    xt: Tensor,
    x0: Tensor,
    alpha: float,
    sigma: float,
    quantile: float,
    *,
    size: Callable[[Tensor, float], Tensor] = _size,
    bring: OfTwo = lambda x0, s: x0.clamp(-s, s) / s,
    agrees: Callable[..., Tensor] = lambda xt, x0, inside, a, s: (xt - a * inside) / s,
) -> Pair:
    inside = bring(x0, size(x0, quantile))
    return inside, agrees(xt, x0, inside, alpha, sigma)


def _threshold_probes() -> Probes:
    """Give pictures inside, far outside and outside below, side by side; all inside; one alone."""
    shapes = [(4, 3, 5, 6), (2, 1, 6, 5), (3, 2, 4, 7), (1, 3, 4, 5)]
    spreads = [[0.2, 4.0, 2.5, 0.5], [0.25, 0.1], [0.25, 30.0, 0.2], [2.0]]
    levels = [(0.6, 0.8, 0.9), (0.8, 0.6, 0.995), (0.3, 0.95, 0.995), (1.2, 0.5, 0.9)]
    probes = []
    for k, (shape, spread) in enumerate(zip(shapes, spreads, strict=True)):
        x0, noise = normals(3 * k, *shape), normals(3 * k + 1, *shape)
        x0[2:3] = x0[2:3].where(x0[2:3] < 0, 0.2 * x0[2:3])
        x0 = x0 * exact(spread)[:, None, None, None]
        alpha, sigma, quantile = levels[k]
        probes.append((alpha * x0.clamp(-1, 1) + sigma * noise, x0, alpha, sigma, quantile))
    return probes


DYNAMIC = Exercise(
    "13.2",
    "each picture comes back by a measure of its own, and the noise with it.",
    _threshold,
    _threshold_probes,
    (
        Mistake(
            "s not at least 1",
            "s is at least 1: where all is inside you blow up the contrast.",
            partial(_threshold, size=partial(_size, least=0.0)),
        ),
        Mistake(
            "the batch's s",
            "each picture has an s of its own: yours is one for the whole batch.",
            partial(_threshold, size=partial(_size, axis=0)),
        ),
        Mistake(
            "s per channel",
            "a picture has one s: yours has one for each channel, and that changes colours.",
            partial(_threshold, size=partial(_size, axis=2)),
        ),
        Mistake(
            "no sizes",
            "the quantile is of the sizes, |x_0|: what lies far below -1 is outside, too.",
            partial(_threshold, size=partial(_size, of=lambda x0: x0)),
        ),
        Mistake(
            "not divided",
            "clipped to [-s, s] and not divided by s: it is still outside the box.",
            partial(_threshold, bring=lambda x0, s: x0.clamp(-s, s)),
        ),
        Mistake(
            "not clipped",
            "divided and not clipped: what lies beyond the quantile is still outside.",
            partial(_threshold, bring=lambda x0, s: x0 / s),
        ),
        Mistake(
            "static",
            "that is the static threshold, which clips to 1: here s says how far out it is.",
            partial(_threshold, bring=lambda x0, s: x0.clamp(-1, 1)),
        ),
        Mistake(
            "clipped to 1, then divided",
            "clipped to 1 and then divided by s: clip to s, so that the ends come to 1.",
            partial(_threshold, bring=lambda x0, s: x0.clamp(-1, 1) / s),
        ),
        Mistake(
            "noise as it was",
            "x_0 has moved, and the noise has not: yours belongs to the old x_0.",
            partial(_threshold, agrees=lambda xt, x0, inside, a, s: (xt - a * x0) / s),
        ),
        Mistake(
            "sigma squared",
            "sigma is squared: x_t holds sigma times the noise.",
            partial(_threshold, agrees=lambda xt, x0, inside, a, s: (xt - a * inside) / s**2),
        ),
        Mistake(
            "alpha and sigma exchanged",
            "alpha and sigma are exchanged: alpha is the picture's, sigma the noise's.",
            partial(_threshold, agrees=lambda xt, x0, inside, a, s: (xt - s * inside) / a),
        ),
        Mistake(
            "noise first",
            "the two are in the wrong order: x_0 comes first, and then its noise.",
            lambda *given: _threshold(*given)[::-1],
        ),
        Mistake(
            "x_t's threshold",
            "x_t is noisy and may be anywhere: the threshold is for x0, what was predicted.",
            lambda xt, x0, *given: _threshold(xt, xt, *given),
        ),
        Mistake(
            "not a column",
            "s is (B,), and lies along the last axis of x0: it needs three more, of size 1.",
            partial(_threshold, size=lambda x0, quantile: _size(x0, quantile).flatten()),
        ),
    ),
    keeps="xt and x0 are the caller's: clamp_ and /= change them there, too.",
)


def _hide_words(
    tokens: Tensor,
    u: Tensor,
    share: float,
    mask: int,
    special: tuple[int, ...],
    *,
    hide: Callable[[Tensor, float], Tensor] = torch.lt,
    words: Callable[..., Tensor] = lambda t, special: ~torch.isin(t, torch.tensor(special)),
    target: Callable[..., Tensor] = lambda t, hidden, mask: t.where(hidden, -100),
) -> Pair:
    hidden = hide(u, share) & words(tokens, special)
    return torch.where(hidden, mask, tokens), target(tokens, hidden, mask)


def _hide_probes() -> Probes:
    """Give draws that fall on the share, special numbers of any size, and shares of 0 and 1."""
    some = [[1, 17, 25, 8, 6, 21, 5, 2], [1, 9, 14, 2, 0, 0, 0, 0], [1, 11, 5, 23, 19, 7, 2, 0]]
    other = [[30, 0, 7, 2, 15, 31], [30, 1, 12, 31, 4, 4], [30, 3, 28, 1, 31, 4]]
    usual, odd = (0, 1, 2), (4, 30, 31)
    given = [(some, 0.375, usual), (other, 0.5, odd), (some[:1], 0.0, usual), (other, 1.0, odd)]
    probes = []
    for k, (texts, share, special) in enumerate(given):
        tokens = torch.tensor(texts)
        u = (1.5 * normals(k, *tokens.shape)).sigmoid()
        u[:, 2] = share % 1
        probes.append((tokens, u, share, 29, special))
    return probes


HIDE = Exercise(
    "13.3",
    "a text asks its own questions: who says what is hidden has learned to read.",
    _hide_words,
    _hide_probes,
    (
        Mistake(
            "every token a target",
            "every token is to be said: -100 belongs where nothing is hidden.",
            partial(_hide_words, target=lambda t, hidden, mask: t),
        ),
        Mistake(
            "special hidden",
            "you hide filling, beginnings and ends, too: what is in special is no word.",
            partial(_hide_words, words=lambda t, special: torch.tensor(True)),
        ),
        Mistake(
            "filling alone",
            "only filling is spared: beginning and end are no words, either.",
            partial(_hide_words, words=lambda t, special: t != special[0]),
        ),
        Mistake(
            "small numbers",
            "which numbers are no words, special says: they need not be the first.",
            partial(_hide_words, words=lambda t, special: t >= len(special)),
        ),
        Mistake(
            "what is not hidden",
            "what is to be said is what is not hidden: the two are turned round.",
            partial(_hide_words, target=lambda t, hidden, mask: t.masked_fill(hidden, -100)),
        ),
        Mistake(
            "after masking",
            "the target is the mask: take what is to be said from the text before you hide.",
            partial(_hide_words, target=lambda t, hidden, mask: torch.where(hidden, mask, -100)),
        ),
        Mistake(
            ">",
            "small u are to be hidden, those below share: you hide the large ones.",
            partial(_hide_words, hide=torch.gt),
        ),
        Mistake(
            ">=",
            "share is what is hidden: you keep so much, and hide the rest.",
            partial(_hide_words, hide=torch.ge),
        ),
        Mistake(
            "<=",
            "a u equal to share hides nothing: u may be 0, and so may share.",
            partial(_hide_words, hide=torch.le),
        ),
        Mistake(
            "0 for -100",
            "0 may be a token: what cross_entropy leaves out is -100.",
            partial(_hide_words, target=lambda t, hidden, mask: t * hidden),
        ),
        Mistake(
            "picked out",
            "tokens[hidden] is a list without places: (B, L), with -100 between them.",
            partial(_hide_words, target=lambda t, hidden, mask: t[hidden]),
        ),
        Mistake(
            "target first",
            "the two are in the wrong order: what is shown comes first.",
            lambda *given: _hide_words(*given)[::-1],
        ),
    ),
    keeps="tokens is the caller's: tokens[hidden] = mask changes it there, too; use a copy.",
)


def _errors(lam: Tensor, d2: Tensor, candidates: Tensor, *, power: int = 2) -> Tensor:
    r = candidates[:, None]
    gain = lam / (lam + r)
    return gain * r + gain**power * d2  # (K, D)


def _best_noise(
    lam: Tensor,
    d2: Tensor,
    candidates: Tensor,
    *,
    errors: OfThree = _errors,
    choose: Rule = lambda errors: errors.sum(1).argmin(),
) -> Tensor:
    return candidates[choose(errors(lam, d2, candidates))]


def _best_noise_probes() -> Probes:
    """Give faults of all sizes, candidates in any order, a lam of 0 and a candidate of 0."""
    given = [(79, 5, 1.0), (202, 3, 2.5), (222, 8, 0.7), (291, 4, 1.5), (262, 6, 0.1)]
    probes = []
    for k, (seed, directions, fault) in enumerate(given):
        lam, d2 = (normals(3 * seed + i, directions).exp() for i in range(2))
        lam[: k % 2] = 0
        candidates = torch.logspace(-2.0, 1.6, 19 + k, dtype=torch.float64)
        candidates[: k // 4] = 0  # no noise
        order = normals(3 * seed + 2, len(candidates)).argsort()
        probes.append((lam, fault * d2, candidates[order]))
    return probes


NOISE = Exercise(
    "13.4",
    "one noise for all is a bargain: fine detail wants it, and coarse detail pays.",
    _best_noise,
    _best_noise_probes,
    (
        Mistake(
            "each its own",
            "the noise is the same in all: sum over the directions before you choose.",
            partial(_best_noise, choose=lambda errors: errors.argmin(0)),
        ),
        Mistake(
            "mean of each one's own",
            "that is a mean of candidates, and none of them: sum the errors, and then choose.",
            lambda lam, d2, c: c[_errors(lam, d2, c).argmin(0)].mean(),
        ),
        Mistake(
            "nearest to the mean",
            "you average what is best for each: sum the errors, some of which are far larger.",
            lambda lam, d2, c: c[(c - (2 * d2 - lam).relu().mean()).abs().argmin()],
        ),
        Mistake(
            "mean of (13.9)",
            "(13.9) is for one direction: its mean is neither a candidate nor the best.",
            lambda lam, d2, c: (2 * d2 - lam).relu().mean(),
        ),
        Mistake(
            "(13.9) of the means",
            "that is (13.9) of the mean variances, and no candidate: try each, and sum errors.",
            lambda lam, d2, c: (2 * d2 - lam).mean(),
        ),
        Mistake(
            "(13.9) of the sums",
            "that is (13.9) of the summed variances, and no candidate: sum the errors instead.",
            lambda lam, d2, c: (2 * d2 - lam).sum(),
        ),
        Mistake(
            "summed variances",
            "you sum the variances, and then take the error: sum the errors of all directions.",
            lambda lam, d2, c: _best_noise(lam.sum()[None], d2.sum()[None], c),
        ),
        Mistake(
            "mean variances",
            "that is best for the mean variances: each direction has an error of its own.",
            lambda lam, d2, c: _best_noise(lam.mean()[None], d2.mean()[None], c),
        ),
        Mistake(
            "price alone",
            "that is always the smallest: the price grows with r, but the fault's part falls.",
            lambda lam, d2, c: c.min(),
        ),
        Mistake(
            "fault alone",
            "that is always the largest: noise has a price, too, the first term of (13.8).",
            lambda lam, d2, c: c.max(),
        ),
        Mistake(
            "index",
            "that is where the candidate stands: return the candidate.",
            lambda lam, d2, c: _errors(lam, d2, c).sum(1).argmin(),
        ),
        Mistake(
            "error",
            "that is the smallest error: return the candidate that has it.",
            lambda lam, d2, c: _errors(lam, d2, c).sum(1).min(),
        ),
        Mistake(
            "gain not squared",
            "the gain is not squared: what is left of the fault is g^2 d2, g = lam / (lam + r).",
            partial(_best_noise, errors=partial(_errors, power=1)),
        ),
        Mistake(
            "d2 squared",
            "d2 is a variance already: you square it again.",
            lambda lam, d2, c: _best_noise(lam, d2**2, c),
        ),
    ),
    keeps="lam, d2 and candidates are the caller's: write into copies.",
)


EXERCISES = (SIGN, DYNAMIC, HIDE, NOISE)
