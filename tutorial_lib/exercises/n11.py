"""The exercises of notebook 11: GLIDE."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from tutorial_lib.exercises import Exercise, Mistake
from tutorial_lib.exercises.probes import Probes, exact, normals

Rule = Callable[[Tensor], Tensor]
OfTwo = Callable[[Tensor, Tensor], Tensor]
OfThree = Callable[[Tensor, Tensor, Tensor], Tensor]
ByHeads = Callable[[Tensor, int], Tensor]


def _split(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)  # (B, heads, L, d)


def _shares(scores: Tensor, there: Tensor) -> Tensor:
    return scores.masked_fill(~there, -torch.inf).softmax(-1)


def _look(
    z: Tensor,
    h: Tensor,
    there: Tensor,
    heads: int,
    *,
    split: ByHeads = _split,
    merge: Rule = lambda y: y.transpose(1, 2).flatten(2),
    width: Callable[[int, int], int] = lambda c, heads: c // heads,
    shares: OfTwo = _shares,
) -> Tensor:
    q, k = split(z, heads), split(h, heads)
    scores = q @ k.mT / width(z.shape[-1], heads) ** 0.5
    return merge(shares(scores, there[:, None, None]) @ k)


def _look_probes() -> Probes:
    """Give captions of several lengths, each of which is filled up; no two sizes agree."""
    some = torch.arange(5) < torch.tensor([[4], [2]])
    other = torch.arange(7) < torch.tensor([[3], [6], [5]])
    return [
        (normals(0, 2, 6, 8), normals(1, 2, 5, 8), some, 2),
        (normals(2, 3, 4, 12), normals(3, 3, 7, 12), other, 4),
    ]


LOOK = Exercise(
    "11.1",
    "every position takes its own share of every word, and what only fills takes none.",
    _look,
    _look_probes,
    (
        Mistake(
            "not scaled",
            "the scores are not scaled: see what (11.1) divides them by.",
            partial(_look, width=lambda c, heads: 1),
        ),
        Mistake(
            "scaled by all channels",
            "d is the length of one head's query, not all C channels.",
            partial(_look, width=lambda c, heads: c),
        ),
        Mistake(
            "one head",
            "heads is lost: each head has a softmax of its own, over its own channels.",
            lambda z, h, there, heads: _look(z, h, there, 1),
        ),
        Mistake(
            "softmax over positions",
            "shares add up to 1 over the words, the axis of length L; yours do over positions.",
            partial(_look, shares=lambda s, there: s.softmax(-2) * there),
        ),
        Mistake(
            "mask ignored",
            "what only fills gets a share: where there is False, it must be none.",
            partial(_look, shares=lambda s, there: s.softmax(-1)),
        ),
        Mistake(
            "mask inverted",
            "there is True at words: you keep what fills, and drop the words.",
            partial(_look, shares=lambda s, there: _shares(s, ~there)),
        ),
        Mistake(
            "mask after the softmax",
            "shares must add up to 1 over the words: the mask comes before the softmax.",
            partial(_look, shares=lambda s, there: s.softmax(-1) * there),
        ),
        Mistake(
            "score 0",
            "a score of 0 is not none: look at what the softmax makes of it.",
            partial(_look, shares=lambda s, there: (s * there).softmax(-1)),
        ),
        Mistake(
            "view for transpose",
            "view(B, heads, -1, d) cuts through the positions: cut the channels, then move axes.",
            partial(_look, split=lambda x, n: x.reshape(len(x), n, -1, x.shape[2] // n)),
        ),
        Mistake(
            "merged in the wrong order",
            "a position's heads are not side by side: move axes before you merge the last two.",
            partial(_look, merge=lambda y: y.reshape(len(y), y.shape[2], -1)),
        ),
    ),
    keeps="z and h are the caller's: do not write into them.",
)


def _place(tokens: Tensor) -> Tensor:
    return (tokens != 0).sum(1) - 1


def _end_feature(h: Tensor, tokens: Tensor, *, place: Rule = _place) -> Tensor:
    return torch.stack([row[k] for row, k in zip(h, place(tokens), strict=True)])


def _end_probes() -> Probes:
    """Give captions that begin with 1 and end with 2, with larger numbers between."""
    some = [[1, 7, 5, 2, 0, 0, 0], [1, 4, 2, 0, 0, 0, 0], [1, 3, 9, 8, 6, 2, 0]]
    other = [[1, 6, 3, 2, 0, 0], [1, 2, 0, 0, 0, 0]]
    return [
        (normals(0, 3, 7, 4), torch.tensor(some)),
        (normals(1, 2, 6, 5), torch.tensor(other)),
    ]


END = Exercise(
    "11.2",
    "the clock hears the last token, whose feature has seen all the others.",
    _end_feature,
    _end_probes,
    (
        Mistake(
            "last place",
            "the last place only fills: find the last token that is not 0.",
            lambda h, tokens: h[:, -1],
        ),
        Mistake(
            "first token",
            "the first token has seen only itself: it is the last that has seen all.",
            lambda h, tokens: h[:, 0],
        ),
        Mistake(
            "one too far",
            "places are counted from 0: yours is one too far, the first that only fills.",
            partial(_end_feature, place=lambda tokens: _place(tokens) + 1),
        ),
        Mistake(
            "one too early",
            "the end token is a token, too: yours is the one before it.",
            partial(_end_feature, place=lambda tokens: _place(tokens) - 1),
        ),
        Mistake(
            "longest caption's length",
            "captions differ in length: yours all end where the longest does.",
            lambda h, tokens: h[:, _place(tokens).max()],
        ),
        Mistake(
            "largest number",
            "CLIP's end token has the largest number: here the largest is another word's.",
            partial(_end_feature, place=lambda tokens: tokens.argmax(1)),
        ),
        Mistake(
            "mean",
            "that is the mean of all features: one is asked for.",
            lambda h, tokens: h.mean(1),
        ),
        Mistake(
            "mean of the words",
            "that is the mean over the caption: one feature is asked for.",
            lambda h, s: (h * (s != 0)[..., None]).sum(1) / (s != 0).sum(1, keepdim=True),
        ),
        Mistake(
            "every row with every end",
            "h[:, place] gives each row the ends of all: pair rows and places.",
            lambda h, tokens: h[:, _place(tokens)],
        ),
    ),
    keeps="h and tokens are the caller's: blank out in a copy.",
)


class _Eye:
    """Be an encoder of pictures, smooth and not linear, that sees another way if mu is marked."""

    def __init__(self, seed: int, mu: Tensor, width: int) -> None:
        self.mu, self.weights = mu, normals(seed, mu[0].numel(), width)

    def __call__(self, x: Tensor) -> Tensor:
        bent = (1 + self.mu.requires_grad) / len(self.weights) ** 0.5
        return torch.tanh(bent * (x.flatten(1) @ self.weights.to(x.dtype)))


def _pulled(
    image: Rule,
    text: Tensor,
    mu: Tensor,
    variance: Tensor,
    scale: float,
    *,
    fit: OfTwo = F.cosine_similarity,
    total: Rule = torch.sum,
    lead: Rule = lambda mu: mu.detach().requires_grad_(),
    move: OfThree = lambda mu, variance, push: mu + variance * push,
) -> Tensor:
    x = lead(mu)
    gradient = torch.autograd.grad(total(fit(image(x), text)), x)[0]
    return move(mu, variance, scale * gradient)


def _pulled_probes() -> Probes:
    """Give one variance for all, and one for each number; nothing is of unit length."""
    probes = []
    for k, (shape, scale) in enumerate([((3, 2, 3, 3), 3.0), ((2, 1, 4, 4), 0.7)]):
        mu = normals(6 * k, *shape)
        variance = 0.2 + 0.3 * torch.sigmoid(normals(6 * k + 1, *shape)) if k else exact(0.3)
        text = 1.5 * normals(6 * k + 2, shape[0], 5)
        probes.append((_Eye(6 * k + 3, mu, 5), text, mu, variance, scale))
    return probes


PULLED = Exercise(
    "11.3",
    "CLIP says which way a picture comes to fit its caption; the step says how far it may go.",
    _pulled,
    _pulled_probes,
    (
        Mistake(
            "not normalised",
            "a cosine is of unit vectors: neither is normalised.",
            partial(_pulled, fit=lambda image, text: (image * text).sum(1)),
        ),
        Mistake(
            "text not normalised",
            "the text is not normalised: its length would count as scale.",
            partial(_pulled, fit=lambda image, text: (F.normalize(image) * text).sum(1)),
        ),
        Mistake(
            "image not normalised",
            "the image is not normalised: that pulls at the length of its features, too.",
            partial(_pulled, fit=lambda image, text: (image * F.normalize(text)).sum(1)),
        ),
        Mistake(
            "standard deviation",
            "(11.7) has the variance itself: its root is for the noise.",
            partial(_pulled, move=lambda mu, variance, push: mu + variance.sqrt() * push),
        ),
        Mistake(
            "variance forgotten",
            "the variance is lost: the narrower a step, the less it is led.",
            partial(_pulled, move=lambda mu, variance, push: mu + push),
        ),
        Mistake(
            "sign",
            "that leads away from the caption: a cosine is climbed, a loss descended.",
            partial(_pulled, move=lambda mu, variance, push: mu - variance * push),
        ),
        Mistake(
            "mean over the batch",
            "each row moves by its own gradient: a mean makes it smaller, the larger the batch.",
            partial(_pulled, total=torch.mean),
        ),
        Mistake(
            "all pairs",
            "row i belongs with caption i: of the table of all pairs that is the diagonal.",
            partial(_pulled, fit=lambda image, text: F.normalize(image) @ F.normalize(text).T),
        ),
        Mistake(
            "clamped first",
            "ask for the gradient at mu itself: you clamp mu, and ask elsewhere.",
            partial(_pulled, lead=lambda mu: mu.detach().clamp(-1, 1).requires_grad_()),
        ),
        Mistake(
            "no graph",
            "autograd follows a point only if told so, before the image is asked.",
            partial(_pulled, lead=lambda mu: mu),
        ),
        Mistake(
            "mu marked",
            "mu is the caller's: marked, it drags its graph through every later step.",
            partial(_pulled, lead=lambda mu: mu.requires_grad_()),
        ),
    ),
    keeps="mu and text are the caller's: += and /= change them there, too.",
)


def _noised(x0: Tensor, alpha: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    return alpha * x0 + sigma * noise


def _put_back(
    x: Tensor,
    x0: Tensor,
    known: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    noise: Tensor,
    *,
    noised: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] = _noised,
    choose: OfThree = lambda known, there, x: torch.where(known.bool(), there, x),
) -> Tensor:
    return choose(known, noised(x0, alpha, sigma, noise), x)


def _put_back_probes() -> Probes:
    """Give one time for all, and one for each row."""
    probes, angles = [], (exact(0.4), exact([0.3, 1.2])[:, None, None, None])
    for k, angle in enumerate(angles):
        x, x0, noise = (normals(4 * k + i, 2, 3, 4, 5) for i in range(3))
        known = (normals(4 * k + 3, 2, 1, 4, 5) > 0).double()
        probes.append((x, x0, known, angle.cos(), angle.sin(), noise))
    return probes


PUT_BACK = Exercise(
    "11.4",
    "what is known comes back as noisy as the rest is by then.",
    _put_back,
    _put_back_probes,
    (
        Mistake(
            "swapped",
            "known is 1 where x_0 is known: what was drawn stays elsewhere, not there.",
            partial(_put_back, choose=lambda m, there, x: m * x + (1 - m) * there),
        ),
        Mistake(
            "clean",
            "the rest is still in noise: a clean part beside it is unlike what was trained on.",
            partial(_put_back, noised=lambda x0, alpha, sigma, noise: x0),
        ),
        Mistake(
            "alpha forgotten",
            "x_0 keeps its full size: look at both terms of (11.8).",
            partial(_put_back, noised=lambda x0, alpha, sigma, noise: x0 + sigma * noise),
        ),
        Mistake(
            "alpha on the noise",
            "alpha is the picture's, sigma the noise's.",
            partial(_put_back, noised=lambda x0, a, s, noise: _noised(x0, s, a, noise)),
        ),
        Mistake(
            "variance",
            "sigma is a standard deviation already: neither square it nor take 1 - alpha^2.",
            partial(_put_back, noised=lambda x0, a, s, noise: _noised(x0, a, s**2, noise)),
        ),
        Mistake(
            "square roots",
            "alpha is no square: both numbers are used as they are given.",
            partial(_put_back, noised=lambda x0, a, s, e: _noised(x0, a**0.5, (1 - a) ** 0.5, e)),
        ),
        Mistake(
            "noise forgotten",
            "the noise is lost: the rest of x is still in it.",
            partial(_put_back, noised=lambda x0, alpha, sigma, noise: alpha * x0),
        ),
        Mistake(
            "noise everywhere",
            "noise comes with the known part alone: the rest has had its own.",
            lambda x, x0, m, a, s, noise: torch.where(m.bool(), a * x0, x) + s * noise,
        ),
        Mistake(
            "the rest lost",
            "where nothing is known x stays: you leave nothing there.",
            partial(_put_back, choose=lambda known, there, x: known * there),
        ),
        Mistake(
            "x not erased",
            "where it is known, x is still there: it is put in its place, not on top.",
            partial(_put_back, choose=lambda known, there, x: known * there + x),
        ),
        Mistake(
            "blended",
            "known selects, pixel by pixel: there is nothing to average.",
            partial(_put_back, choose=lambda m, there, x: torch.where(m > 0, (there + x) / 2, x)),
        ),
        Mistake(
            "x's own noise",
            "nothing changes: what x has there, noise and all, is not what is known.",
            lambda x, *given: x,
        ),
    ),
    keeps="x and x0 are the caller's: you write into them; choose into a new tensor.",
)


def _best_weight(
    v: Tensor,
    told: Tensor,
    silent: Tensor,
    *,
    miss: OfThree = lambda v, told, silent: v - told,
    push: OfThree = lambda v, told, silent: told - silent,
    square: OfThree = lambda v, told, silent: (told - silent).square().sum(),
) -> Tensor:
    up = (miss(v, told, silent) * push(v, told, silent)).sum()
    return up / square(v, told, silent)


def _each(v: Tensor, told: Tensor, silent: Tensor) -> Tensor:
    return torch.stack([_best_weight(*row) for row in zip(v, told, silent, strict=True)])


def _best_weight_probes() -> Probes:
    """Give rows that differ in how much the caption says, and a weight below 0."""
    probes = []
    for k, (shape, w) in enumerate([((4, 3, 2, 2), 0.3), ((3, 6), -0.7)]):
        told, gap, miss = (normals(3 * k + i, *shape) for i in range(3))
        gap = gap * exact([0.3, 1.5, 0.8, 2.0])[: len(gap)].reshape(-1, *(1,) * (gap.ndim - 1))
        probes.append((told + w * gap + 0.5 * miss, told, told - gap))
    return probes


BEST = Exercise(
    "11.5",
    "the weight that errs least is a slope: what the model misses, along what the caption adds.",
    _best_weight,
    _best_weight_probes,
    (
        Mistake(
            "s for w",
            "that starts from the empty caption: w counts from the prediction with the caption.",
            partial(_best_weight, miss=lambda v, told, silent: v - silent),
        ),
        Mistake(
            "sign",
            "a sign is turned: see in (11.5) what is taken off what, above the line and below.",
            lambda *given: -_best_weight(*given),
        ),
        Mistake(
            "mean of ratios",
            "one w for all: average above and below the line before you divide.",
            lambda *given: _each(*given).mean(),
        ),
        Mistake(
            "one for each row",
            "one w for all is asked for: the expectations are over the batch, too.",
            _each,
        ),
        Mistake(
            "told alone below",
            "below the line stands what the caption changes, not all that is predicted.",
            partial(_best_weight, square=lambda v, told, silent: told.square().sum()),
        ),
        Mistake(
            "not squared below",
            "below the line stands a length squared.",
            partial(_best_weight, square=lambda v, told, silent: (told - silent).norm()),
        ),
        Mistake(
            "a ratio for each number",
            "a ratio for each number is wild where the caption changes little: sum, then divide.",
            lambda v, told, silent: ((v - told) / (told - silent)).mean(),
        ),
        Mistake(
            "told not subtracted",
            "w is to explain what is missing of v: how much is there already?",
            partial(_best_weight, miss=lambda v, told, silent: v),
        ),
        Mistake(
            "projected on v - silent",
            "project on the direction that w moves along: v does not move.",
            lambda v, told, silent: _best_weight(v, told, told - (v - silent)),
        ),
        Mistake(
            "cut at 0",
            "a model may mind its caption too much: w may be below 0.",
            lambda *given: _best_weight(*given).relu(),
        ),
    ),
    keeps="v, told and silent are the caller's: subtract in a copy.",
)

EXERCISES = (LOOK, END, PULLED, PUT_BACK, BEST)
