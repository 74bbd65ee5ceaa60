"""The exercises of notebook 14: latent diffusion."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, cdist
from torch.distributions import Normal, kl_divergence
from torch.func import grad

from tutorial_lib.exercises import Exercise, Mistake
from tutorial_lib.exercises.probes import Probes, exact, normals

Rule = Callable[..., Tensor]
Shown = tuple[Tensor, Tensor, Tensor]


def _told(snr: Tensor, errors: Tensor, lean: float = 0.5) -> Tensor:
    heights = torch.cat([errors[:1], errors[:-1]]).lerp(errors, lean)
    return (heights * snr.diff(prepend=snr.new_zeros(1))).cumsum(0) / 2  # from SNR 0 on


def _nats_told(lambdas: Tensor, errors: Tensor) -> Tensor:
    return _told((2 * lambdas).exp(), errors)


def _nats_told_probes() -> Probes:
    """Give levels that begin with much noise, and with little; and an error that rises again."""
    lambdas = [[-1.5, -0.9, -0.7, 0.1, 0.3, 0.8, 1.6], [0.4, 0.5, 1.1, 1.2]]
    probes = [(x, 5 / (1 + x.exp())) for x in map(exact, lambdas)]
    return [*probes, (exact([-0.8, 0.2, 0.6, 1.5, 1.7]), exact([2.0, 1.1, 1.3, 0.2, 0.4]))]


TOLD = Exercise(
    "14.1",
    "an error at each noise level is a price list: this much each level has told.",
    _nats_told,
    _nats_told_probes,
    (
        Mistake(
            "1/2 forgotten",
            "that is twice what is told: look at the factor before the integral.",
            lambda x, e: 2 * _nats_told(x, e),
        ),
        Mistake(
            "head forgotten",
            "the first level has told something already: the integral begins at SNR 0.",
            lambda x, e: _nats_told(x, e) - _nats_told(x[:1], e[:1]),
        ),
        Mistake(
            "lambda for SNR",
            "that is an integral over lambda: (14.1) has another variable, or a factor with it.",
            lambda x, e: _told(x - x[0] + (2 * x[0]).exp(), e),
        ),
        Mistake(
            "alpha / sigma",
            "exp(lambda) is alpha / sigma: the SNR is of squares.",
            lambda x, e: _told(x.exp(), e),
        ),
        Mistake(
            "left sums",
            "each interval has its left end's error: a trapezoid looks at both ends.",
            lambda x, e: _told((2 * x).exp(), e, lean=0.0),
        ),
        Mistake(
            "right sums",
            "each interval has its right end's error: a trapezoid looks at both ends.",
            lambda x, e: _told((2 * x).exp(), e, lean=1.0),
        ),
        Mistake(
            "trapezoids in lambda",
            "your trapezoids are in lambda: with wide steps those in the SNR are others.",
            lambda x, e: _told(x - x[0] + 0.5, 2 * (2 * x).exp() * e),
        ),
        Mistake(
            "bits",
            "those are bits: nats are asked for.",
            lambda x, e: _nats_told(x, e) / math.log(2),
        ),
        Mistake(
            "each piece",
            "that is what each interval adds: told is all up to here.",
            lambda x, e: _nats_told(x, e).diff(prepend=x.new_zeros(1)),
        ),
        Mistake(
            "triangle for head",
            "below the first level the error is what it is there: yours rises from 0.",
            lambda x, e: _nats_told(x, e) - _nats_told(x[:1], e[:1]) / 2,
        ),
        Mistake(
            "one too few",
            "one number is missing: the first level has told something, too.",
            lambda x, e: _nats_told(x, e)[1:] - _nats_told(x[:1], e[:1]),
        ),
    ),
    keeps="lambdas and errors are the caller's: *= and exp_ change them there, too.",
)


def _level(variances: Tensor, total: float) -> Tensor:
    small = variances.sort().values
    left = total - (small.cumsum(0) - small)  # when all that are smaller are under water
    return (left / torch.arange(len(small), 0, -1)).max()


def _errors_of(variances: Tensor, total: float) -> Tensor:
    return variances.minimum(_level(variances, total))


def _errors_of_probes() -> Probes:
    """Give variances in any order, two of them equal, and totals from next to none to all."""
    variances = [exact([0.3, 4.0, 0.05, 1.2, 9.0, 0.6]), exact([2.0, 0.5, 0.5, 7.0])]
    variances += [(2 * normals(k, 5 + k)).exp() for k in range(2)]
    return [(v, share * v.sum().item()) for v in variances for share in (0.7, 1.0, 0.3, 0.01)]


POUR = Exercise(
    "14.2",
    "one level for all that is above water: what is below it is not worth a bit.",
    _errors_of,
    _errors_of_probes,
    (
        Mistake(
            "equal shares",
            "equal shares for all: some errors are above their variances, and cost less than 0.",
            lambda v, total: torch.full_like(v, total / len(v)),
        ),
        Mistake(
            "in proportion",
            "shares in proportion cost the same nats each: some numbers are not worth any.",
            lambda v, total: v * total / v.sum(),
        ),
        Mistake(
            "level not raised",
            "the errors do not add up to total: what the small ones leave goes to the others.",
            lambda v, total: v.clamp(max=total / len(v)),
        ),
        Mistake(
            "sorted",
            "your errors are sorted, and add up to total: each belongs to its own variance.",
            lambda v, total: _errors_of(v, total).sort(descending=True).values,
        ),
        Mistake(
            "level",
            "that is the level: each number's error is asked for, also under water.",
            _level,
        ),
        Mistake(
            "rates",
            "those are the nats that each number costs: return the errors.",
            lambda v, total: (v / _errors_of(v, total)).log() / 2,
        ),
        Mistake(
            "what is told",
            "variance less level is what has been told: the error is what is left.",
            lambda v, total: v - _errors_of(v, total),
        ),
        Mistake(
            "smallest first",
            "your errors run from small to large: each belongs to its own variance.",
            lambda v, total: _errors_of(v, total).sort().values,
        ),
        Mistake(
            "total for level",
            "total is for the sum of all errors: you let each have so much.",
            lambda v, total: v.clamp(max=total),
        ),
    ),
    keeps="variances are the caller's: sort_ and clamp_ change them there, too; use a copy.",
)


def _heard(z: Tensor, book: Tensor, loss: Rule, commitment: float, far: Rule = cdist) -> Tensor:
    e = book[far(z, book).argmin(1)]
    return grad(loss)(e) + 2 * commitment * (z - e)


def _heard_probes() -> Probes:
    """Give more vectors than codes, and fewer; and no commitment at all."""
    probes = []
    for k, (n, codes, d, weight) in enumerate([(9, 4, 3, 0.25), (3, 6, 2, 1.6), (7, 5, 4, 0.0)]):
        z, book, aim = (normals(3 * k + i, rows, d) for i, rows in enumerate([n, codes, n]))
        probes.append((z, book, lambda e, aim=aim: (aim * e).sin().sum().square(), weight))
    return probes


HEARD = Exercise(
    "14.3",
    "the encoder hears what its code should do, and a call to stay near it.",
    _heard,
    _heard_probes,
    (
        Mistake(
            "no straight-through",
            "nothing of loss arrives: a choice has no slope, and gradients must be led past it.",
            lambda z, book, loss, g: _heard(z, book, lambda e: 0 * e.sum(), g),
        ),
        Mistake(
            "slope at z",
            "the slope of loss is taken at z: the decoder has seen the codes.",
            lambda z, b, loss, g: _heard(z, b, lambda e: 0 * e.sum(), g) + grad(loss)(z),
        ),
        Mistake(
            "no commitment",
            "only loss is heard: of the commitment, sg stops the code's side, not z's.",
            lambda z, book, loss, g: _heard(z, book, loss, 0),
        ),
        Mistake(
            "2 forgotten",
            "the commitment's part is half of what it is: it is a square's gradient.",
            lambda z, book, loss, g: _heard(z, book, loss, g / 2),
        ),
        Mistake(
            "mean",
            "the commitment is summed over all: yours is a mean over all numbers.",
            lambda z, book, loss, g: _heard(z, book, loss, g / z.numel()),
        ),
        Mistake(
            "the code's gradient",
            "the commitment's part has the sign that it has for the code: z is pulled here.",
            lambda z, book, loss, g: _heard(z, book, loss, -g),
        ),
        Mistake(
            "farthest",
            "those are the farthest codes: argmin and argmax are exchanged.",
            lambda *given: _heard(*given, far=lambda z, book: -cdist(z, book)),
        ),
        Mistake(
            "dot product",
            "the largest product is not the least distance: long codes win too often.",
            lambda *given: _heard(*given, far=lambda z, book: -z @ book.T),
        ),
        Mistake(
            "absolute",
            "that is the nearest by absolute differences: distances here are of squares.",
            lambda *given: _heard(*given, far=lambda z, book: cdist(z, book, p=1)),
        ),
        Mistake(
            "mean over vectors",
            "the commitment is summed over all: yours is a mean over the vectors.",
            lambda z, book, loss, g: _heard(z, book, loss, g / len(z)),
        ),
        Mistake(
            "the codebook's term",
            "the codebook's own term pulls at z, too: without sg it is counted here.",
            lambda z, book, loss, g: _heard(z, book, loss, 1 + g),
        ),
        Mistake(
            "commitment of 1",
            "commitment changes nothing in yours: it is the weight of z's own term.",
            lambda z, book, loss, g: _heard(z, book, loss, 1.0),
        ),
    ),
    keeps="z and book are the caller's: work on copies.",
)


def _latent_bits(mean: Tensor, log_var: Tensor, axes: tuple[int, ...] = (1, 2, 3)) -> Tensor:
    law = Normal(mean, (log_var / 2).exp(), validate_args=False)
    return kl_divergence(law, Normal(0.0, 1.0)).sum(axes) / math.log(2)


def _latent_bits_probes() -> Probes:
    """Give variances below 1 and above, all above, and one picture alone."""
    shapes = [(3, 2, 4, 5), (2, 4, 1, 3), (1, 3, 5, 2)]
    given = [(normals(2 * k, *s), 1.5 * normals(2 * k + 1, *s)) for k, s in enumerate(shapes)]
    return [given[0], (given[1][0], given[1][1].abs() + 0.1), (given[2][0], given[2][1] - 2)]


BITS = Exercise(
    "14.4",
    "a latent's price, to the bit: independent numbers are paid for one by one.",
    _latent_bits,
    _latent_bits_probes,
    (
        Mistake(
            "nats",
            "those are nats: a bit is less.",
            lambda mean, log_var: math.log(2) * _latent_bits(mean, log_var),
        ),
        Mistake(
            "mean over numbers",
            "that is what a latent costs in the mean: a picture pays for all of its own.",
            lambda mean, log_var: _latent_bits(mean, log_var) / mean[0].numel(),
        ),
        Mistake(
            "log-variance for variance",
            "log_var is taken for the variance: it is its logarithm, and may be below 0.",
            lambda mean, log_var: _latent_bits(mean, log_var.log()),
        ),
        Mistake(
            "log of the deviation",
            "log_var is taken for the logarithm of the deviation: it is the variance's.",
            lambda mean, log_var: _latent_bits(mean, 2 * log_var),
        ),
        Mistake(
            "1/2 forgotten",
            "that is twice the price: a factor is lost.",
            lambda mean, log_var: 2 * _latent_bits(mean, log_var),
        ),
        Mistake(
            "sign",
            "a divergence is not below 0: the sign is turned round.",
            lambda mean, log_var: -_latent_bits(mean, log_var),
        ),
        Mistake(
            "the batch's sum",
            "that is the whole batch's price: each picture has one of its own.",
            lambda mean, log_var: _latent_bits(mean, log_var).sum(),
        ),
        Mistake(
            "channels alone",
            "only the channels are added up: a picture has places, too.",
            lambda mean, log_var: _latent_bits(mean, log_var, (1,)),
        ),
        Mistake(
            "turned round",
            "that is the divergence of N(0, I) from q: the two are exchanged.",
            lambda m, v: _latent_bits(m * (-v / 2).exp(), -v),
        ),
        Mistake(
            "the batch's mean",
            "that is the mean over the batch: each picture has a price of its own.",
            lambda mean, log_var: _latent_bits(mean, log_var).mean(),
        ),
        Mistake(
            "times ln 2",
            "a bit is ln 2 nats: of the smaller unit there are more.",
            lambda mean, log_var: _latent_bits(mean, log_var) * math.log(2) ** 2,
        ),
    ),
    keeps="mean and log_var are the caller's: exp_ and -= change them there, too.",
)


def _shown(xt: Tensor, alpha: Tensor, sigma: Tensor, s: float) -> Shown:
    angle = torch.atan2(s * alpha, sigma)
    size = (1 + (s * s - 1) * alpha**2).sqrt()  # alpha^2 + sigma^2 = 1
    return xt / size[:, None], angle.sin(), angle.cos()


def _shown_probes() -> Probes:
    """Give latents too large, too small and just right, early and late."""
    probes = []
    for k, (shape, s) in enumerate([((5, 3), 4.0), ((4, 6), 0.3), ((3, 2), 1.7), ((2, 4), 1.0)]):
        angles = exact([0.7, 1.3, 0.2, 1.5, 0.05][: shape[0]])
        alpha, sigma = angles.cos(), angles.sin()
        z, noise = (normals(2 * k + i, *shape) for i in range(2))
        probes.append((s * alpha[:, None] * z + sigma[:, None] * noise, alpha, sigma, s))
    return probes


ELSEWHERE = Exercise(
    "14.5",
    "larger latents are the same latents at a time of less noise.",
    _shown,
    _shown_probes,
    (
        Mistake(
            "alpha without s",
            "s is lost in alpha: for the denoiser alpha goes with latents of size 1.",
            lambda xt, a, b, s: (p := _shown(xt, a, b, s)) and (p[0], p[1] / s, p[2]),
        ),
        Mistake(
            "divided by s",
            "s alone takes the noise along: it is not s times as large.",
            lambda xt, a, b, s: (xt / s, a, b),
        ),
        Mistake(
            "s not squared",
            "you add up s alpha^2 and sigma^2: is the first the variance of alpha s z?",
            lambda xt, a, b, s: (p := _shown(xt, a, b, r := s**0.5)) and (p[0], p[1] * r, p[2]),
        ),
        Mistake(
            "multiplied",
            "the point is multiplied where it should be divided.",
            lambda xt, a, b, s: (xt**2 / _shown(xt, a, b, s)[0], *_shown(xt, a, b, s)[1:]),
        ),
        Mistake(
            "point as it was",
            "the levels are right, but the point is as large as it was.",
            lambda xt, a, b, s: (xt, *_shown(xt, a, b, s)[1:]),
        ),
        Mistake(
            "levels as they were",
            "the point is right, but the levels are as they were: it has another SNR.",
            lambda xt, a, b, s: (_shown(xt, a, b, s)[0], a, b),
        ),
        Mistake(
            "levels not divided",
            "the point is right, but the levels' squares do not add up to 1.",
            lambda xt, a, b, s: (_shown(xt, a, b, s)[0], s * a, b),
        ),
        Mistake(
            "s on sigma",
            "s is the latents', not the noise's: it goes with alpha.",
            lambda xt, a, b, s: (p := _shown(xt, b, a, s)) and (p[0], p[2], p[1]),
        ),
        Mistake(
            "sigma over s",
            "that is the right SNR, and no point of the schedule: add up the squares.",
            lambda xt, a, b, s: (xt / s, a, b / s),
        ),
        Mistake(
            "nothing divided",
            "s alpha and sigma are what x_t is made of: they are not of the schedule.",
            lambda xt, a, b, s: (xt, s * a, b),
        ),
        Mistake(
            "SNR times s",
            "your SNR is s times as large: it is of squares.",
            lambda xt, a, b, s: _shown(xt, a, b, s**0.5),
        ),
        Mistake(
            "not a column",
            "the levels are (B,), and lie along the last axis of xt: that needs one more.",
            lambda xt, a, b, s: (xt / (s * s * a * a + b * b).sqrt(), *_shown(xt, a, b, s)[1:]),
        ),
    ),
    keeps="xt, alpha and sigma are the caller's: /= and *= change them there, too.",
)

EXERCISES = (TOLD, POUR, HEARD, BITS, ELSEWHERE)
