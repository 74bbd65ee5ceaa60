"""The exercises of notebook 10: CLIP."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from tutorial_lib.exercises import Exercise, Mistake
from tutorial_lib.exercises.probes import Probes, exact, normals

Pair = tuple[Tensor, Tensor]
Rule = Callable[[Tensor], Tensor]
OfTwo = Callable[[Tensor, Tensor], Tensor]
OfThree = Callable[[Tensor, Tensor, Tensor], Tensor]


def _of_pictures(logits: Tensor) -> Tensor:
    return -logits.log_softmax(1).diagonal()


def _both(logits: Tensor) -> Tensor:
    return (_of_pictures(logits) + _of_pictures(logits.T)) / 2


def _of_all(logits: Tensor) -> Tensor:
    return logits.logsumexp((0, 1)) - logits.diagonal()


def _of_others(logits: Tensor) -> Tensor:
    others = logits.masked_fill(torch.eye(len(logits), dtype=torch.bool), -torch.inf)
    return (others.logsumexp(1) + others.logsumexp(0)) / 2 - logits.diagonal()


def _matching_loss(
    image: Tensor,
    text: Tensor,
    scale: float,
    *,
    unit: Rule = F.normalize,
    sharpen: Callable[[Tensor, float], Tensor] = torch.mul,
    loss: Rule = lambda logits: _both(logits).mean(),
) -> Tensor:
    return loss(sharpen(unit(image) @ unit(text).T, scale))


MATCHING = Exercise(
    "10.1",
    "each picture looks for its caption and each caption for its picture: 2 B choices among B.",
    _matching_loss,
    lambda: [
        (normals(2 * k, *shape), normals(2 * k + 1, *shape), scale)
        for k, (shape, scale) in enumerate([((4, 3), 4.0), ((5, 6), 1.5), ((3, 4), 2.5)])
    ],
    (
        Mistake(
            "pictures alone",
            "only the pictures choose: each caption chooses, too, down its column of the logits.",
            partial(_matching_loss, loss=lambda logits: _of_pictures(logits).mean()),
        ),
        Mistake(
            "captions alone",
            "only the captions choose: each picture chooses, too, along its row of the logits.",
            partial(_matching_loss, loss=lambda logits: _of_pictures(logits.T).mean()),
        ),
        Mistake(
            "not normalised",
            "a cosine is of unit vectors: divide every row by its length first.",
            partial(_matching_loss, unit=lambda rows: rows),
        ),
        Mistake(
            "normalised over the batch",
            "dim 0 is the batch: a row's length is taken over its features, dim 1.",
            partial(_matching_loss, unit=lambda rows: F.normalize(rows, dim=0)),
        ),
        Mistake(
            "temperature for scale",
            "scale is one over the temperature: multiply the cosines by it.",
            partial(_matching_loss, sharpen=torch.div),
        ),
        Mistake(
            "log-scale for scale",
            "scale is no logarithm: multiply by it as it is, without exp.",
            partial(_matching_loss, sharpen=lambda cosines, scale: math.exp(scale) * cosines),
        ),
        Mistake(
            "scale lost",
            "scale is lost: multiply by it after normalising, which takes any length away.",
            partial(_matching_loss, sharpen=lambda cosines, scale: cosines),
        ),
        Mistake(
            "sides summed",
            "the two sides are averaged: take half of their sum.",
            partial(_matching_loss, loss=lambda logits: 2 * _both(logits).mean()),
        ),
        Mistake(
            "summed over the batch",
            "take the mean over the pairs: a sum grows with the batch.",
            partial(_matching_loss, loss=lambda logits: _both(logits).sum()),
        ),
        Mistake(
            "softmax over all",
            "each choice is among B: softmax along a row or a column, not over all B x B.",
            partial(_matching_loss, loss=lambda logits: _of_all(logits).mean()),
        ),
        Mistake(
            "pair left out",
            "the pair itself is one of the B: its logit belongs in the denominator, too.",
            partial(_matching_loss, loss=lambda logits: _of_others(logits).mean()),
        ),
        Mistake(
            "bits",
            "log2 counts bits: nats have the natural logarithm.",
            partial(_matching_loss, loss=lambda s: _both(s).mean() / math.log(2)),
        ),
    ),
    keeps="/= writes into the caller's features: write image = image / ..., and so for text.",
)


def _zero_shot(
    image: Tensor,
    prompts: Tensor,
    *,
    mean: Rule = lambda prompts: prompts.mean(1),
    unit: Rule = F.normalize,
    finish: Rule = lambda cosines: cosines,
) -> Tensor:
    return finish(image @ unit(mean(prompts)).T)


def _each_wording(image: Tensor, prompts: Tensor) -> Tensor:
    return torch.einsum("bd,ctd->bct", image, prompts)


def _zero_shot_probes() -> Probes:
    """Give wordings that agree now more, now less, so that their means differ in length."""
    probes = []
    for k, (b, c, t, d) in enumerate([(4, 3, 5, 6), (2, 4, 3, 5)]):
        spread = torch.linspace(0.3, 1.2, c, dtype=torch.float64)[:, None, None]
        prompts = normals(3 * k, c, 1, d) + spread * normals(3 * k + 1, c, t, d)
        image = normals(3 * k + 2, b, d)
        probes.append((F.normalize(image, dim=1), F.normalize(prompts, dim=2)))
    return probes


ZERO_SHOT = Exercise(
    "10.2",
    "many wordings, one classifier: it is averaged before the first picture comes.",
    _zero_shot,
    _zero_shot_probes,
    (
        Mistake(
            "mean not normalised",
            "a mean of unit vectors (or of their cosines) is too short: normalise it again.",
            partial(_zero_shot, unit=lambda mean: mean),
        ),
        Mistake(
            "first wording",
            "that is the first wording alone: take the mean of all T.",
            partial(_zero_shot, mean=lambda prompts: prompts[:, 0]),
        ),
        Mistake(
            "best wording",
            "that is the best wording's cosine: average the wordings before they are compared.",
            lambda image, prompts: _each_wording(image, prompts).amax(2),
        ),
        Mistake(
            "mean over classes",
            "prompts are (C, T, D): the mean is over the wordings, dim 1, not over the classes.",
            partial(_zero_shot, mean=lambda prompts: prompts.mean(0)),
        ),
        Mistake(
            "normalised over the classes",
            "dim 0 of the means is the classes: each class's length is over D, dim 1.",
            partial(_zero_shot, unit=lambda mean: F.normalize(mean, dim=0)),
        ),
        Mistake(
            "softmax",
            "return the cosines: a softmax over the classes comes later, if at all.",
            partial(_zero_shot, finish=lambda cosines: cosines.softmax(1)),
        ),
        Mistake(
            "CLIP's probabilities",
            "those are probabilities, softmax of 100 times the cosines: return the cosines.",
            partial(_zero_shot, finish=lambda cosines: (100 * cosines).softmax(1)),
        ),
        Mistake(
            "averaged probabilities",
            "average the wordings' vectors: you average the probabilities that each gives.",
            lambda image, prompts: _each_wording(image, prompts).softmax(1).mean(2),
        ),
        Mistake(
            "argmax",
            "that is the class chosen: return the cosines with all C.",
            partial(_zero_shot, finish=lambda cosines: cosines.argmax(1)),
        ),
        Mistake(
            "transposed",
            "a row is a picture, a column a class: (B, C), not (C, B).",
            partial(_zero_shot, finish=lambda cosines: cosines.T),
        ),
    ),
    keeps="image and prompts are the caller's, and unit vectors already: do not write into them.",
)


def _information_bound(
    logits: Tensor,
    *,
    most: Callable[[int], float] = math.log,
    loss: Rule = lambda logits: _both(logits).mean(),
) -> Tensor:
    return most(len(logits)) - loss(logits)


def _of_wrong(logits: Tensor) -> Tensor:
    wrong = ~torch.eye(len(logits), dtype=torch.bool)
    return -(logits.log_softmax(1) + logits.log_softmax(0))[wrong].mean() / 2


BOUND = Exercise(
    "10.3",
    "to find one of B tells at most log B nats: a larger batch can show more.",
    _information_bound,
    lambda: [
        (normals(k, b, b) + match * torch.eye(b, dtype=torch.float64),)
        for k, (b, match) in enumerate([(4, 3.0), (6, 1.0), (3, -1.0)])
    ],
    (
        Mistake(
            "log B forgotten",
            "the loss of a blind guess is log B: information is what the loss falls short of it.",
            partial(_information_bound, most=lambda b: 0.0),
        ),
        Mistake(
            "the loss",
            "that is the loss: information is log B less it.",
            lambda logits: _both(logits).mean(),
        ),
        Mistake(
            "sign",
            "a small loss is much information: log B less the loss, not the other way round.",
            lambda logits: -_information_bound(logits),
        ),
        Mistake(
            "pictures alone",
            "only the pictures choose: the loss is the mean with that of the captions' columns.",
            partial(_information_bound, loss=lambda logits: _of_pictures(logits).mean()),
        ),
        Mistake(
            "captions alone",
            "only the captions choose: the loss is the mean with that of the pictures' rows.",
            partial(_information_bound, loss=lambda logits: _of_pictures(logits.T).mean()),
        ),
        Mistake(
            "bits",
            "log2 counts bits: nats have the natural logarithm.",
            lambda logits: _information_bound(logits) / math.log(2),
        ),
        Mistake(
            "all B x B",
            "each choice is among B, not among B x B: log B once.",
            partial(_information_bound, most=lambda b: 2 * math.log(b)),
        ),
        Mistake(
            "summed over the batch",
            "the loss is a mean over the pairs: you take off their sum.",
            partial(_information_bound, loss=lambda logits: _both(logits).sum()),
        ),
        Mistake(
            "one for each pair",
            "return one number: the bound holds for the mean over the pairs.",
            partial(_information_bound, loss=_both),
        ),
        Mistake(
            "off the diagonal",
            "the pairs stand on the diagonal: the loss is of those entries, not of the others.",
            partial(_information_bound, loss=_of_wrong),
        ),
        Mistake(
            "cut at 0",
            "a lower bound may be below 0, if the scores are bad: do not cut it off.",
            lambda logits: _information_bound(logits).relu(),
        ),
    ),
    keeps="logits are the caller's: subtract or fill in a copy of them.",
)


def _centres(n: int) -> Tensor:
    return (torch.arange(n, dtype=torch.float64) + 0.5) * 2 / n - 1


def _inside(low: Tensor, at: Tensor, high: Tensor) -> Tensor:
    return (low <= at) & (at <= high)


def _means(features: Tensor, masks: Tensor) -> Tensor:
    return torch.stack([features[:, mask].mean(1) for mask in masks])


def _roi(
    features: Tensor,
    boxes: Tensor,
    *,
    grid: Callable[[int, int], Pair] = lambda h, w: (_centres(w), _centres(h)),
    sides: Callable[[Tensor], tuple[Tensor, ...]] = lambda boxes: boxes.unbind(1),
    inside: OfThree = _inside,
    pool: OfTwo = _means,
) -> Tensor:
    x, y = grid(*features.shape[1:])
    left, top, right, bottom = (side[:, None] for side in sides(boxes))
    rows, columns = inside(top, y, bottom), inside(left, x, right)
    return pool(features, rows[:, :, None] & columns[:, None])


def _shifted(cells: float) -> Callable[[int, int], Pair]:
    return lambda h, w: (_centres(w) + 2 * cells / w, _centres(h) + 2 * cells / h)


def _sums(features: Tensor, masks: Tensor) -> Tensor:
    return torch.einsum("chw,nhw->nc", features, masks.to(features))


def _roi_probes() -> Probes:
    """Give boxes that hold some cells however they are misread, and no centre on an edge."""
    boxes = exact([[-0.73, -0.9, 0.61, 0.39], [-0.55, -0.41, 0.95, 0.7]])
    other = exact([[-0.32, -0.84, 0.52, 0.76], [-0.94, -0.28, 0.47, 0.93], [-0.9, -0.7, 0.3, 0.4]])
    return [(normals(0, 4, 6, 9), boxes), (normals(1, 2, 8, 5), other)]


ROI = Exercise(
    "10.4",
    "a feature map knows where: the cells of a box alone are compared with the caption.",
    _roi,
    _roi_probes,
    (
        Mistake(
            "axes swapped",
            "left and right bound x, the last axis of features; top and bottom bound y.",
            partial(_roi, sides=lambda boxes: boxes[:, [1, 0, 3, 2]].unbind(1)),
        ),
        Mistake(
            "y up",
            "y points down: row 0 is the top of the picture, near y = -1.",
            partial(_roi, grid=lambda h, w: (_centres(w), -_centres(h))),
        ),
        Mistake(
            "corner for centre",
            "k * 2 / n - 1 is the corner of cell k: its centre is half a cell on, k + 1/2.",
            partial(_roi, grid=_shifted(-0.5)),
        ),
        Mistake(
            "cut off to cells",
            "int() cuts off: a cell is in if its centre is, so both ends are rounded.",
            partial(_roi, grid=_shifted(0.5)),
        ),
        Mistake(
            "ends of the square",
            "linspace(-1, 1, n) puts centres on the edge: the first is half a cell inside.",
            partial(_roi, grid=lambda h, w: (torch.linspace(-1, 1, w), torch.linspace(-1, 1, h))),
        ),
        Mistake(
            "cells touched",
            "a cell that the box only touches is out: its centre must be inside.",
            partial(_roi, inside=lambda a, x, b: _inside(a - 1 / len(x), x, b + 1 / len(x))),
        ),
        Mistake(
            "width and height",
            "the last two are right and bottom, not width and height: add nothing to them.",
            partial(_roi, sides=lambda b: (*b[:, :2].T, *(b[:, :2] + b[:, 2:]).T)),
        ),
        Mistake(
            "from 0 to 1",
            "the square goes from -1 to 1: your centres lie between 0 and 1.",
            partial(_roi, grid=lambda h, w: (_centres(w) / 2 + 0.5, _centres(h) / 2 + 0.5)),
        ),
        Mistake(
            "sum",
            "divide by the number of cells inside: a sum grows with the box.",
            partial(_roi, pool=_sums),
        ),
        Mistake(
            "mean over the picture",
            "divide by the number of cells inside, not by all h w: zeros outside count, too.",
            partial(_roi, pool=lambda f, masks: _sums(f, masks) / f[0].numel()),
        ),
        Mistake(
            "largest",
            "take the mean of the cells: RoI pooling's maximum is another rule.",
            partial(_roi, pool=lambda f, masks: torch.stack([f[:, m].amax(1) for m in masks])),
        ),
    ),
    keeps="features and boxes are the caller's: blank out cells, or move sides, in a copy.",
)


def _loss_gradient(
    logits: Tensor,
    *,
    chances: Callable[[Tensor], Pair] = lambda logits: (logits.softmax(1), logits.softmax(0)),
    rule: OfThree = lambda p, q, pairs: (p + q) / 2 - pairs,
) -> Tensor:
    pairs = torch.eye(len(logits)).to(logits)
    return rule(*chances(logits), pairs) / len(logits)


GRADIENT = Exercise(
    "10.5",
    "each pair is drawn together, each other couple pushed apart by the chance it was given.",
    _loss_gradient,
    lambda: [(normals(k, b, b) * 1.5,) for k, b in enumerate((3, 5, 4))],
    (
        Mistake(
            "sign",
            "the loss falls as a pair's logit grows: the gradient is chances less identity.",
            partial(_loss_gradient, rule=lambda p, q, pairs: pairs - (p + q) / 2),
        ),
        Mistake(
            "not divided by B",
            "the loss is a mean over B pairs: divide by B.",
            partial(_loss_gradient, rule=lambda p, q, pairs: len(p) * ((p + q) / 2 - pairs)),
        ),
        Mistake(
            "pictures alone",
            "only the pictures choose: average with the softmax down the columns, dim 0.",
            partial(_loss_gradient, rule=lambda p, q, pairs: p - pairs),
        ),
        Mistake(
            "captions alone",
            "only the captions choose: average with the softmax along the rows, dim 1.",
            partial(_loss_gradient, rule=lambda p, q, pairs: q - pairs),
        ),
        Mistake(
            "identity forgotten",
            "the pair's own logit pulls, too: take 1 off on the diagonal.",
            partial(_loss_gradient, rule=lambda p, q, pairs: (p + q) / 2),
        ),
        Mistake(
            "sides summed",
            "the loss is the mean of two sides: halve the sum of their gradients.",
            partial(_loss_gradient, rule=lambda p, q, pairs: p + q - 2 * pairs),
        ),
        Mistake(
            "softmaxes summed",
            "halve the softmaxes' sum before the identity is taken off.",
            partial(_loss_gradient, rule=lambda p, q, pairs: p + q - pairs),
        ),
        Mistake(
            "identity twice",
            "each side has half an identity: 1 is taken off the diagonal in all, not 2.",
            partial(_loss_gradient, rule=lambda p, q, pairs: (p + q) / 2 - 2 * pairs),
        ),
        Mistake(
            "softmax over all",
            "each choice is among B: softmax along a row or a column, not over all B x B.",
            partial(_loss_gradient, chances=lambda s: ((s - s.logsumexp((0, 1))).exp(),) * 2),
        ),
        Mistake(
            "not turned back",
            "logits.T.softmax(1) lies on its side: turn it back before it is added.",
            partial(_loss_gradient, chances=lambda s: (s.softmax(1), s.T.softmax(1))),
        ),
    ),
    keeps="logits are the caller's: take the identity, or a maximum, off a copy of them.",
)

Words = list[tuple[int, int]]
Turn = Callable[[Tensor, int, int], Tensor]


def _exchange(tokens: Tensor, a: int, b: int) -> Tensor:
    return torch.where(tokens == a, b, torch.where(tokens == b, a, tokens))


def _turned(tokens: Tensor, pairs: Words, *, turn: Turn = _exchange) -> Tensor:
    for a, b in pairs:
        tokens = turn(tokens, a, b)
    return tokens


def _first_of_each(tokens: Tensor, a: int, b: int) -> Tensor:
    first = [(tokens == n) & ((tokens == n).cumsum(1) == 1) for n in (a, b)]
    return torch.where(first[0] | first[1], _exchange(tokens, a, b), tokens)


def _turned_probes() -> Probes:
    """Give words twice in a row, and both of a pair; numbers are small enough to be places."""
    some = [[1, 3, 7, 5, 3, 2, 0, 0], [1, 7, 6, 2, 0, 0, 0, 0], [1, 5, 7, 5, 4, 6, 2, 0]]
    other = [[2, 6, 1, 1, 3, 0, 0], [5, 2, 4, 6, 1, 3, 0], [3, 4, 2, 4, 3, 3, 2]]
    return [(torch.tensor(some), [(3, 5), (6, 4)]), (torch.tensor(other), [(4, 1), (2, 5)])]


TURNED = Exercise(
    "10.6",
    "one word makes a caption false: who overlooks how things lie finds both as good.",
    _turned,
    _turned_probes,
    (
        Mistake(
            "all become a",
            "all end as a: a second replacement undoes the first, so do both at once.",
            partial(_turned, turn=lambda s, a, b: torch.where(s == b, a, s)),
        ),
        Mistake(
            "all become b",
            "all end as b: while a becomes b, b must become a.",
            partial(_turned, turn=lambda s, a, b: torch.where(s == a, b, s)),
        ),
        Mistake(
            "first row",
            "every caption is turned round, not the first alone.",
            lambda tokens, pairs: torch.cat([_turned(tokens[:1], pairs), tokens[1:]]),
        ),
        Mistake(
            "first occurrence",
            "a word may come twice in a caption: replace it wherever it stands.",
            partial(_turned, turn=_first_of_each),
        ),
        Mistake(
            "first pair",
            "all pairs are exchanged, not the first alone: return after the loop.",
            lambda tokens, pairs: _turned(tokens, pairs[:1]),
        ),
        Mistake(
            "last pair",
            "each pair starts from the tokens again: go on from what the pair before has left.",
            lambda tokens, pairs: _turned(tokens, pairs[-1:]),
        ),
        Mistake(
            "order reversed",
            "the words stay in their places: a becomes b, but the caption is not read backwards.",
            lambda tokens, pairs: tokens.flip(1),
        ),
        Mistake(
            "places exchanged",
            "a and b are numbers of words, not places in the caption: look for tokens == a.",
            partial(_turned, turn=lambda s, a, b: s[:, _exchange(torch.arange(s.shape[1]), a, b)]),
        ),
        Mistake(
            "mask",
            "that says which words change: return the tokens.",
            lambda tokens, pairs: _turned(tokens, pairs) != tokens,
        ),
        Mistake(
            "rest lost",
            "the other words stay: where neither a nor b stands, keep the token.",
            lambda tokens, pairs: _turned(tokens, pairs) * (_turned(tokens, pairs) != tokens),
        ),
    ),
    keeps="tokens are the caller's, who compares both: write into a clone of them.",
)

EXERCISES = (MATCHING, ZERO_SHOT, BOUND, ROI, GRADIENT, TURNED)
