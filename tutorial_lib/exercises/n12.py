"""The exercises of notebook 12: DALL-E 2."""

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


def _of_points(joint: Tensor, point: Tensor) -> Tensor:
    return (point[:, None] == point).to(joint) @ joint  # (X, C): p(z, c) of each picture's z


def _ratio(joint: Tensor, point: Tensor) -> Tensor:
    of_point = _of_points(joint, point)
    silent = joint.sum(1, keepdim=True) / of_point.sum(1, keepdim=True)  # p(x | z)
    return joint / of_point / silent


def _terms(joint: Tensor, point: Tensor) -> Tensor:
    return torch.xlogy(joint, _ratio(joint, point).where(joint > 0, 1.0))


def _lost(joint: Tensor, point: Tensor) -> Tensor:
    return _terms(joint, point).sum()


def _table(joint: Tensor, point: Tensor) -> Tensor:
    return torch.stack([joint[point == k].sum(0) for k in range(int(point.max()) + 1)])


def _last_of_each(joint: Tensor, point: Tensor) -> Tensor:
    rows = dict(zip(point.tolist(), joint, strict=True))
    return torch.stack([rows.get(k, torch.zeros_like(joint[0])) for k in range(max(rows) + 1)])


def _plogp(p: Tensor) -> Tensor:
    return torch.xlogy(p, p).sum()


def _information(table: Tensor) -> Tensor:
    return _plogp(table) - _plogp(table.sum(0)) - _plogp(table.sum(1))


def _lost_probes() -> Probes:
    """Give a table without a 0, one where p(z, c) is 0, and one of numbers left out."""
    tables = [(1.5 * normals(k, *s)).exp() for k, s in enumerate([(6, 4), (7, 3), (9, 5)])]
    points = [[1, 0, 2, 1, 0, 1], [2, 0, 3, 1, 0, 2, 3], [6, 0, 2, 6, 3, 2, 0, 6, 5]]
    tables[1][[0, 5, 2, 4], [1, 1, 0, 2]] = 0
    tables[2][4] = tables[2][:, 1] = tables[2][1, 3] = 0  # no point 3, and no caption 1
    return [(t / t.sum(), torch.tensor(p)) for t, p in zip(tables, points, strict=True)]


LOST = Exercise(
    "12.1",
    "what is lost is what the point does not know of the caption, to the nat.",
    _lost,
    _lost_probes,
    (
        Mistake(
            "I(x; c)",
            "that is all that pictures tell of captions: what their points tell is not lost.",
            lambda joint, point: _information(joint),
        ),
        Mistake(
            "I(z; c)",
            "that is what points still tell of captions, and so is not lost.",
            lambda joint, point: _information(_table(joint, point)),
        ),
        Mistake(
            "sign",
            "less than nothing is lost: which knows more, the picture or its point?",
            lambda joint, point: -_lost(joint, point),
        ),
        Mistake(
            "I(x; z)",
            "that is what a picture tells of its point, I(x; z): no caption is in it.",
            lambda joint, point: -_plogp(_table(joint, point).sum(1)),
        ),
        Mistake(
            "H(c | z)",
            "that is how open the caption is, given the point; given the picture, it may be, too.",
            lambda joint, point: -_plogp(joint.sum(0)) - _information(_table(joint, point)),
        ),
        Mistake(
            "bits",
            "log2 counts bits: nats have the natural logarithm.",
            lambda joint, point: _lost(joint, point) / math.log(2),
        ),
        Mistake(
            "mean over captions",
            "add up over the captions: how likely each is, joint has counted already.",
            lambda joint, point: _lost(joint, point) / joint.shape[1],
        ),
        Mistake(
            "captions alike",
            "captions are not equally likely: the mean over them goes by p(c).",
            lambda p, z: (_terms(p, z).sum(0) / p.sum(0)).nansum() / p.shape[1],
        ),
        Mistake(
            "points alike",
            "points are not equally likely: the mean over them goes by p(z).",
            lambda p, z: (_terms(p, z) / _of_points(p, z).sum(1, True)).nansum() / len(z.unique()),
        ),
        Mistake(
            "logarithm of 0",
            "a probability may be 0, and adds nothing: its logarithm makes nan of all.",
            lambda joint, point: (joint * _ratio(joint, point).log()).sum(),
        ),
        Mistake(
            "divided by 0",
            "a point may have no picture, a caption no chance: to divide by 0 makes nan of all.",
            lambda joint, point: _lost(joint, point) + 0 / _table(joint, point).sum(1).min(),
        ),
        Mistake(
            "not added up",
            "pictures share points: their rows are added up, not written over one another.",
            lambda joint, point: _information(joint) - _information(_last_of_each(joint, point)),
        ),
        Mistake(
            "points counted",
            "the last points are missing: numbers are left out, so how many there are is too few.",
            lambda p, z: _information(p) - _information(_table(p, z)[: len(z.unique())]),
        ),
    ),
    keeps="joint and point are the caller's: divide, or fill in, a copy.",
)


def _clean(zt: Tensor, eps: Tensor, alpha: float, sigma: float) -> Tensor:
    return (zt - sigma * eps) / alpha


def _moved(z: Tensor) -> Tensor:
    return F.normalize(z) * z.shape[1] ** 0.5


def _agrees(zt: Tensor, eps: Tensor, z: Tensor, alpha: float, sigma: float) -> Tensor:
    return eps + alpha / sigma * (_clean(zt, eps, alpha, sigma) - z)


def _on_sphere(
    zt: Tensor,
    eps: Tensor,
    alpha: float,
    sigma: float,
    *,
    clean: Callable[[Tensor, Tensor, float, float], Tensor] = _clean,
    move: Rule = _moved,
    agrees: Callable[[Tensor, Tensor, Tensor, float, float], Tensor] = _agrees,
) -> Pair:
    z = move(clean(zt, eps, alpha, sigma))
    return z, agrees(zt, eps, z, alpha, sigma)


def _on_sphere_probes() -> Probes:
    """Give predictions that are too long, and too short, early and late, and one alone."""
    probes = []
    for k, (shape, angle) in enumerate([((4, 6), 0.5), ((3, 5), 1.2), ((1, 7), 0.9)]):
        z, error, eps = (normals(3 * k + i, *shape) for i in range(3))
        alpha, sigma = math.cos(angle), math.sin(angle)
        zt = alpha * z * exact([0.4, 1.7, 0.7, 1.1])[: len(z), None] + sigma * eps
        probes.append((zt, eps + 0.2 * error, alpha, sigma))
    return probes


SPHERE = Exercise(
    "12.2",
    "who moves z moves the noise: z_t is what it was, and is made of both.",
    _on_sphere,
    _on_sphere_probes,
    (
        Mistake(
            "eps as it was",
            "z has moved, and eps has not: together they make another z_t.",
            partial(_on_sphere, agrees=lambda zt, eps, z, alpha, sigma: eps),
        ),
        Mistake(
            "noise first",
            "z comes first, and then its noise.",
            lambda *given: _on_sphere(*given)[::-1],
        ),
        Mistake(
            "length 1",
            "that has length 1: scaled embeddings are longer.",
            partial(_on_sphere, move=F.normalize),
        ),
        Mistake(
            "length D",
            "that has length D: it is the square of the length that is D.",
            partial(_on_sphere, move=lambda z: F.normalize(z) * z.shape[1]),
        ),
        Mistake(
            "the batch's length",
            "each row has a length of its own: yours is that of the whole batch.",
            partial(_on_sphere, move=lambda z: z / z.norm() * z.shape[1] ** 0.5),
        ),
        Mistake(
            "only shortened",
            "what is too short is moved as well: yours is shortened, and never lengthened.",
            partial(_on_sphere, move=lambda z: z * (_moved(z) / z).clamp(max=1)),
        ),
        Mistake(
            "swapped",
            "alpha and sigma are exchanged: which of them is the noise's?",
            lambda zt, eps, alpha, sigma: _on_sphere(zt, eps, sigma, alpha),
        ),
        Mistake(
            "clipped",
            "to clip is for pictures, which have a box: embeddings have a length.",
            partial(_on_sphere, move=lambda z: z.clamp(-1, 1)),
        ),
        Mistake(
            "not moved",
            "z is predicted and not moved: look at its length.",
            partial(_on_sphere, move=lambda z: z),
        ),
        Mistake(
            "z_t moved",
            "you move z_t, which has noise in it: first predict z.",
            partial(_on_sphere, clean=lambda zt, eps, alpha, sigma: zt),
        ),
        Mistake(
            "noise added",
            "the noise is in z_t once: you add it again, where it should come out.",
            partial(_on_sphere, clean=lambda zt, eps, a, s: _clean(zt, eps, a, -s)),
        ),
        Mistake(
            "sigma forgotten",
            "what is left of z_t is sigma times the noise, not the noise.",
            partial(_on_sphere, agrees=lambda zt, eps, z, alpha, sigma: zt - alpha * z),
        ),
        Mistake(
            "alpha forgotten",
            "z_t holds alpha times z: you take off all of z.",
            partial(_on_sphere, agrees=lambda zt, eps, z, alpha, sigma: (zt - z) / sigma),
        ),
    ),
    keeps="zt and eps are the caller's: /= and -= change them there, too.",
)


def _guided_twice(neither: Tensor, point: Tensor, both: Tensor, w_z: float, w_c: float) -> Tensor:
    return (1 + w_c) * both + (w_z - w_c) * point - w_z * neither


def _guided(start: Tensor, end: Tensor, w: float) -> Tensor:
    return start + (1 + w) * (end - start)


def _stepped(n: Tensor, point: Tensor, both: Tensor, by_z: float, by_c: float) -> Tensor:
    return n + by_z * (point - n) + by_c * (both - point)


def _guided_twice_probes() -> Probes:
    """Give weights above 0, of 0, both or one of the two, and below 0."""
    shapes = [(2, 3, 4, 4), (3, 5), (1, 6), (2, 2, 3), (2, 4)]
    weights = [(2.0, 0.7), (0.0, 1.5), (3.0, 0.0), (0.0, 0.0), (-0.4, 1.2)]
    given = [[normals(3 * k + i, *shape) for i in range(3)] for k, shape in enumerate(shapes)]
    return [(*tensors, *w) for tensors, w in zip(given, weights, strict=True)]


TWICE = Exercise(
    "12.3",
    "two things told are two steps, and each may be taken as far as one likes.",
    _guided_twice,
    _guided_twice_probes,
    (
        Mistake(
            "from 1",
            "that has weights that start from 1: here 0 takes each step just once.",
            lambda n, p, b, w_z, w_c: _stepped(n, p, b, w_z, w_c),
        ),
        Mistake(
            "w_c from 1",
            "w_c counts what is more than one step: of 0 the caption is still told.",
            lambda n, p, b, w_z, w_c: _stepped(n, p, b, 1 + w_z, w_c),
        ),
        Mistake(
            "both forgotten",
            "w_c of 0 is no reason to leave the caption out: see Hint 1.",
            lambda n, p, b, w_z, w_c: _stepped(n, p, b, 1 + w_z, (1 + w_c) * (w_c != 0)),
        ),
        Mistake(
            "point and both exchanged",
            "point and both are exchanged: the first step is to the point alone.",
            lambda n, p, b, w_z, w_c: _guided_twice(n, b, p, w_z, w_c),
        ),
        Mistake(
            "weights exchanged",
            "the weights are exchanged: w_z is the point's, w_c the caption's.",
            lambda n, p, b, w_z, w_c: _guided_twice(n, p, b, w_c, w_z),
        ),
        Mistake(
            "caption from neither",
            "the caption's step starts where the point is told: yours takes the point's again.",
            lambda n, p, b, w_z, w_c: _guided(n, p, w_z) + (1 + w_c) * (b - n),
        ),
        Mistake(
            "w_c from neither",
            "w_c takes the point's step again: the caption's is from where the point is told.",
            lambda n, p, b, w_z, w_c: b + w_z * (p - n) + w_c * (b - n),
        ),
        Mistake(
            "from where it was guided",
            "both steps are between predictions: yours to the caption starts from what is guided.",
            lambda n, p, b, w_z, w_c: _guided(_guided(n, p, w_z), b, w_c),
        ),
        Mistake(
            "from both",
            "that starts from both: from there each step has been taken once already.",
            lambda n, p, b, w_z, w_c: b - n + _stepped(n, p, b, 1 + w_z, 1 + w_c),
        ),
        Mistake(
            "averaged",
            "the two guidances are averaged: one step comes after the other, and both in full.",
            lambda n, p, b, w_z, w_c: (_guided(n, p, w_z) + _guided(p, b, w_c)) / 2,
        ),
        Mistake(
            "averaged from neither",
            "that is the mean of two guidances from neither: the second step starts at point.",
            lambda n, p, b, w_z, w_c: (_guided(n, p, w_z) + _guided(n, b, w_c)) / 2,
        ),
    ),
    keeps="neither, point and both are the caller's: -= and += change them there, too.",
)


def _without(
    z: Tensor, tokens: Tensor, empty: Tensor, no_point: Tensor, no_caption: Tensor
) -> Pair:
    said = [empty if gone else row for row, gone in zip(tokens, no_caption, strict=True)]
    return z.masked_fill(no_point[:, None], 0), torch.stack(said)


def _leave_out(
    z: Tensor, tokens: Tensor, empty: Tensor, p_z: float, p_c: float, u: Tensor, v: Tensor
) -> Pair:
    return _without(z, tokens, empty, u < p_z, v < p_c)


def _leave_out_probes() -> Probes:
    """Give draws that fall on their probability, and probabilities of 0 and 1."""
    probes, chances = [], [(0.375, 0.625), (0.0, 1.0), (0.75, 0.5)]
    for k, (rows, width, length) in enumerate([(20, 4, 5), (6, 3, 4), (1, 3, 5)]):
        z, u, v = normals(3 * k, rows, width), *(2 * normals(3 * k + 1, 2, rows)).sigmoid()
        u[1:2], v[2:3] = chances[k][0], chances[k][1] % 1
        tokens = 3 + torch.arange(rows * length).reshape(rows, length) % 7
        empty = torch.tensor([1, 2, *(0,) * (length - 2)])
        probes.append((z, tokens, empty, *chances[k], u, v))
    return probes


OUT = Exercise(
    "12.4",
    "two draws of a row's own: so the decoder hears both, either and neither.",
    _leave_out,
    _leave_out_probes,
    (
        Mistake(
            "u for both",
            "one draw decides both: the caption is left out by its own, v.",
            lambda z, t, e, p, q, u, v: _leave_out(z, t, e, p, q, u, u),
        ),
        Mistake(
            "v for both",
            "one draw decides both: the point is left out by its own, u.",
            lambda z, t, e, p, q, u, v: _leave_out(z, t, e, p, q, v, v),
        ),
        Mistake(
            "u and v exchanged",
            "u and v are exchanged: u is the point's, v the caption's.",
            lambda z, t, e, p, q, u, v: _leave_out(z, t, e, p, q, v, u),
        ),
        Mistake(
            "p_z and p_c exchanged",
            "p_z and p_c are exchanged: p_z is the point's, p_c the caption's.",
            lambda z, t, e, p, q, u, v: _leave_out(z, t, e, q, p, u, v),
        ),
        Mistake(
            "<=",
            "a draw equal to its p leaves nothing out: u may be 0, and so may p_z.",
            lambda z, t, e, p, q, u, v: _without(z, t, e, u <= p, v <= q),
        ),
        Mistake(
            "kept with p",
            "p_z and p_c are the chances to be left out: yours are those to be kept.",
            lambda z, t, e, p, q, u, v: _without(z, t, e, u >= p, v >= q),
        ),
        Mistake(
            ">",
            "the larger draws are to be kept: you leave those out, and keep the small.",
            lambda z, t, e, p, q, u, v: _without(z, t, e, u > p, v > q),
        ),
        Mistake(
            "the whole batch",
            "each row is drawn for by itself: yours are all left out, or none.",
            lambda z, t, e, p, q, u, v: _leave_out(z, t, e, p, q, 0 * u + u[0], 0 * v + v[0]),
        ),
        Mistake(
            "zeros for tokens",
            "a row of zeros is no caption: the empty one has a beginning and an end.",
            lambda z, t, e, *rest: _leave_out(z, t, 0 * e, *rest),
        ),
        Mistake(
            "together",
            "where one is left out you leave out the other: each goes by itself.",
            lambda z, t, e, p, q, u, v: _without(z, t, e, *2 * ((u < p) | (v < q),)),
        ),
        Mistake(
            "scaled up",
            "that is dropout, which scales up what it keeps: here it stays as it is.",
            lambda z, t, e, p, *rest: _leave_out(z / (1 - p), t, e, p, *rest),
        ),
        Mistake(
            "rows removed",
            "rows are missing: to be left out is to be replaced, and the batch stays as long.",
            lambda z, t, e, p, q, u, v: (z[u >= p], t[v >= q]),
        ),
        Mistake(
            "not a column",
            "u < p_z is (B,), and lies along the last axis of z: see the hint.",
            lambda z, t, e, p, q, u, v: (z * (u >= p), t),
        ),
    ),
    keeps="z and tokens are the caller's, who keeps them for later: write into a copy.",
)


def _towards(before: Tensor, after: Tensor) -> Tensor:
    return F.normalize(after - before)


def _aside(image: Tensor, end: Tensor) -> Tensor:
    return end - (image * end).sum(1, keepdim=True) * image  # at right angles to image


def _apart(a: Tensor, b: Tensor) -> Tensor:
    return torch.atan2(_aside(a, b).norm(dim=1, keepdim=True), (a * b).sum(1, keepdim=True))


def _turn_by_text(
    image: Tensor,
    before: Tensor,
    after: Tensor,
    share: float,
    *,
    end: OfTwo = _towards,
    angle: Callable[[Tensor, Tensor, float], Tensor] = lambda a, b, share: share * _apart(a, b),
    aside: OfTwo = lambda image, end: F.normalize(_aside(image, end)),
) -> Tensor:
    to = end(before, after)
    turn = angle(image, to, share)
    return turn.cos() * image + turn.sin() * aside(image, to)


def _between(a: Tensor, b: Tensor, share: float, angle: OfTwo = _apart) -> Tensor:
    near, far = ((part * angle(a, b)).sin() for part in (1 - share, share))
    return (near * a + far * b) / angle(a, b).sin()


def _turn_by_text_probes() -> Probes:
    """Give shares on both sides of 1/2, where a chord and an arc agree; and both ends."""
    given = [((4, 5), 0.3), ((3, 6), 0.8), ((1, 4), 0.5), ((2, 5), 0.0), ((3, 4), 1.0)]
    return [
        (*(F.normalize(normals(3 * k + i, *shape)) for i in range(3)), share)
        for k, (shape, share) in enumerate(given)
    ]


TURN = Exercise(
    "12.5",
    "a difference of captions is a direction, and on a sphere one turns towards it.",
    _turn_by_text,
    _turn_by_text_probes,
    (
        Mistake(
            "straight line",
            "that is on the straight line, inside the sphere: go round, on the great circle.",
            lambda i, b, a, s: torch.lerp(i, _towards(b, a), s),
        ),
        Mistake(
            "chord",
            "that divides the chord, not the angle: shares of one are not shares of the other.",
            lambda i, b, a, s: F.normalize(torch.lerp(i, _towards(b, a), s)),
        ),
        Mistake(
            "added",
            "the difference is added, and the sum is of any length: turn, and stay on the sphere.",
            lambda i, b, a, s: i + s * (a - b),
        ),
        Mistake(
            "added and normalised",
            "to add and normalise is not to turn: at share 1 the picture must be gone.",
            lambda i, b, a, s: F.normalize(i + s * (a - b)),
        ),
        Mistake(
            "before - after",
            "that turns towards what was said before: which is taken off which?",
            partial(_turn_by_text, end=lambda before, after: F.normalize(before - after)),
        ),
        Mistake(
            "towards after",
            "that turns towards after itself: what before says already is to be taken off.",
            partial(_turn_by_text, end=lambda before, after: after),
        ),
        Mistake(
            "not normalised",
            "the difference of two unit vectors is none: it has to be of length 1 first.",
            lambda i, b, a, s: _between(i, a - b, s, lambda i, d: (i * d).sum(1)[:, None].acos()),
        ),
        Mistake(
            "angle alone normalised",
            "the angle is right, but the end is too long or short: of length 1 there, too.",
            lambda i, b, a, s: _between(i, a - b, s),
        ),
        Mistake(
            "from the other end",
            "share counts from the picture: at 0 nothing has turned.",
            lambda i, b, a, s: _turn_by_text(i, b, a, 1 - s),
        ),
        Mistake(
            "mean angle",
            "each row has an angle of its own: yours is one for the batch.",
            lambda i, b, a, s: _between(i, _towards(b, a), s, lambda *ends: _apart(*ends).mean()),
        ),
        Mistake(
            "share for angle",
            "share is no angle: it is a part of the angle between the two ends.",
            partial(_turn_by_text, angle=lambda image, end, share: exact(share)),
        ),
        Mistake(
            "captions' angle",
            "that is the angle between the captions: the way is from the picture to its end.",
            lambda i, b, a, s: _between(i, _towards(b, a), s, lambda *_: _apart(b, a)),
        ),
        Mistake(
            "not at right angles",
            "cos and sin go with two directions at right angles: the difference is not at any.",
            partial(_turn_by_text, aside=lambda image, end: end),
        ),
    ),
    keeps="image, before and after are the caller's: -= and /= change them there, too.",
)

EXERCISES = (LOST, SPHERE, TWICE, OUT, TURN)
