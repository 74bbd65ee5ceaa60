"""The exercises of notebook 08: classifier guidance."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from tutorial_lib.exercises import Exercise, Mistake
from tutorial_lib.exercises.probes import Probes, exact, normals
from tutorial_lib.schedule import CosineVP, LinearVP

Rule = Callable[[Tensor], Tensor]
OfTwo = Callable[[Tensor, Tensor], Tensor]
OfThree = Callable[[Tensor, Tensor, Tensor], Tensor]


def _guided_noise(
    eps: Tensor, gradient: Tensor, sigma: Tensor, scale: float, *, weight: Rule = lambda s: s
) -> Tensor:
    return eps - scale * weight(sigma) * gradient


def _guided_noise_probes() -> Probes:
    return [
        (normals(k, 4, 3), normals(k + 3, 4, 3), exact(sigma), scale)
        for k, (sigma, scale) in enumerate([(0.3, 2.0), (0.9, 0.5), (0.6, 4.0)])
    ]


NOISE = Exercise(
    "08.1",
    "eps is -sigma times the score, so a gradient of log p enters it times -sigma.",
    _guided_noise,
    _guided_noise_probes,
    (
        Mistake(
            "sigma forgotten",
            "eps is -sigma times the score: what is added to the score enters it times sigma.",
            partial(_guided_noise, weight=torch.ones_like),
        ),
        Mistake(
            "sigma squared",
            "sigma is sqrt(1 - alpha_bar): 1 - alpha_bar, its square, is too small a factor.",
            partial(_guided_noise, weight=torch.square),
        ),
        Mistake(
            "sign",
            "eps points against the score: subtract the gradient, to climb log p.",
            partial(_guided_noise, weight=torch.neg),
        ),
        Mistake(
            "alpha for sigma",
            "alpha scales x_0: the gradient enters eps times sigma, sqrt(1 - alpha_bar).",
            partial(_guided_noise, weight=lambda sigma: (1 - sigma**2).sqrt()),
        ),
        Mistake(
            "unit gradient",
            "keep the gradient's length: where the classifier is sure it is short, and should be.",
            lambda eps, g, sigma, scale: _guided_noise(eps, F.normalize(g), sigma, scale),
        ),
        Mistake(
            "divided by sigma",
            "dividing by sigma makes a score of eps: to make eps of a gradient, multiply.",
            partial(_guided_noise, weight=torch.reciprocal),
        ),
        Mistake(
            "push of x_0",
            "x_0 is pushed by + sigma^2 gradient, as in k-diffusion: eps by - sigma gradient.",
            partial(_guided_noise, weight=lambda sigma: -(sigma**2)),
        ),
        Mistake(
            "scale forgotten",
            "algorithm 2 is printed without the scale: multiply the gradient by it.",
            lambda eps, gradient, sigma, scale: _guided_noise(eps, gradient, sigma, 1),
        ),
        Mistake(
            "eps scaled too",
            "the scale multiplies the gradient alone: eps stays as it is.",
            lambda eps, gradient, sigma, scale: scale * _guided_noise(eps, gradient, sigma, 1),
        ),
        Mistake(
            "score",
            "that is the guided score: times -sigma it is the guided eps.",
            lambda eps, gradient, sigma, scale: scale * gradient - eps / sigma,
        ),
    ),
)


def _guided_step(mean: Tensor, variance: Tensor, slope: Rule, scale: float, z: Tensor) -> Tensor:
    return mean + scale * variance * slope(mean) + variance.sqrt() * z


def _slope(x: Tensor) -> Tensor:
    """Stand in for a gradient of log p(y | x_s): any function of the point that bends."""
    return 0.8 - torch.tanh(1.5 * x) + 0.4 * x.roll(1, dims=-1)


def _guided_step_probes() -> Probes:
    """Give one variance for all, and one for each number, as a learned one is."""
    widths = (exact(0.3), 0.2 + 0.3 * torch.sigmoid(normals(4, 5, 2)))
    return [
        (normals(k, 5, 2), width, _slope, scale, normals(k + 2, 5, 2))
        for k, (width, scale) in enumerate(zip(widths, (3.0, 0.6), strict=True))
    ]


STEP = Exercise(
    "08.2",
    "a wide step can be led far: its mean moves by its variance times the gradient.",
    _guided_step,
    _guided_step_probes,
    (
        Mistake(
            "standard deviation",
            "the gradient is multiplied by the variance: its root is for the noise.",
            lambda m, v, slope, s, z: m + s * v.sqrt() * slope(m) + v.sqrt() * z,
        ),
        Mistake(
            "variance forgotten",
            "multiply the gradient by the variance: the narrower a step, the less it is led.",
            lambda m, v, slope, s, z: m + s * slope(m) + v.sqrt() * z,
        ),
        Mistake(
            "gradient after the noise",
            "ask for the gradient at the mean: the noise is added after that.",
            lambda m, v, slope, s, z: _guided_step(m + v.sqrt() * z, v, slope, s, 0 * z),
        ),
        Mistake(
            "noise scaled",
            "the scale is for the gradient alone: the noise keeps the width of the step.",
            lambda m, v, slope, s, z: m + s * (v * slope(m) + v.sqrt() * z),
        ),
        Mistake(
            "noise not rooted",
            "z has variance 1: multiply it by the root of the variance.",
            lambda m, v, slope, s, z: m + s * v * slope(m) + v * z,
        ),
        Mistake(
            "noise of a log variance",
            "that takes the variance for its logarithm: the noise is sqrt(variance) z.",
            lambda m, v, slope, s, z: m + s * v * slope(m) + (v / 2).exp() * z,
        ),
        Mistake(
            "sign",
            "guidance climbs log p(y | x_s): add the gradient.",
            lambda m, v, slope, s, z: m - s * v * slope(m) + v.sqrt() * z,
        ),
        Mistake(
            "noise forgotten",
            "guidance moves the mean alone: add the step's noise, sqrt(variance) z, too.",
            lambda m, v, slope, s, z: m + s * v * slope(m),
        ),
        Mistake(
            "diffusers' factor",
            "diffusers' exp(variance / 2) takes it for a logarithm: use the variance as it is.",
            lambda m, v, slope, s, z: m + s * (v / 2).exp() * slope(m) + v.sqrt() * z,
        ),
        Mistake(
            "half",
            "half of the variance is Langevin's step: DDPM's mean moves by all of it.",
            lambda m, v, slope, s, z: m + s * v / 2 * slope(m) + v.sqrt() * z,
        ),
    ),
)


def _of_label(table: Tensor, y: Tensor) -> Tensor:
    """Return the entry of each row's label, (B,)."""
    return table.gather(1, y[:, None])[:, 0]


def _log_p(logits: Tensor, y: Tensor) -> Tensor:
    return _of_label(logits.log_softmax(1), y)


def _uphill(
    logits: Rule,
    x: Tensor,
    y: Tensor,
    *,
    height: OfTwo = lambda logits, y: _log_p(logits, y).sum(),
    lead: Callable[[Tensor], Tensor] = lambda x: x.detach().requires_grad_(),
) -> Tensor:
    x = lead(x)
    return torch.autograd.grad(height(logits(x), y), x)[0]


def _classifier(seed: int, dims: int, n_classes: int) -> Rule:
    weights, heads = normals(seed, dims, 8), normals(seed + 1, 8, n_classes)
    return lambda x: torch.tanh(x @ weights.to(x)) @ heads.to(x)


def _uphill_probes() -> Probes:
    labels = (torch.tensor([2, 0, 1, 2, 2]), torch.tensor([3, 1, 1]))
    return [
        (_classifier(4 * k, dims, n_classes), normals(4 * k + 2, len(y), dims), y)
        for k, (y, dims, n_classes) in enumerate(zip(labels, (2, 4), (3, 4), strict=True))
    ]


UPHILL = Exercise(
    "08.3",
    "one backward pass leads every row up its own log p: rows do not mix, so sum them.",
    _uphill,
    _uphill_probes,
    (
        Mistake(
            "logit",
            "a logit is not log p yet: log_softmax also counts what the other classes lose.",
            partial(_uphill, height=lambda logits, y: _of_label(logits, y).sum()),
        ),
        Mistake(
            "probability",
            "climb log p, not p: where p is small, the gradient of p vanishes with it.",
            partial(_uphill, height=lambda logits, y: _of_label(logits.softmax(1), y).sum()),
        ),
        Mistake(
            "mean over the batch",
            "sum over the rows: a mean makes each gradient smaller, the larger the batch.",
            partial(_uphill, height=lambda logits, y: _log_p(logits, y).mean()),
        ),
        Mistake(
            "sign",
            "that is the way down: cross-entropy is -log p.",
            partial(_uphill, height=lambda logits, y: -_log_p(logits, y).sum()),
        ),
        Mistake(
            "cross-entropy",
            "F.cross_entropy is -log p, and its mean: turn the sign, and sum the rows.",
            partial(_uphill, height=F.cross_entropy),
        ),
        Mistake(
            "all classes summed",
            "pick the label of each row: the sum over all classes leads to none of them.",
            partial(_uphill, height=lambda logits, y: logits.log_softmax(1).sum()),
        ),
        Mistake(
            "every row with every label",
            "[:, y] gives each row the labels of all: pick with [range(B), y], or gather.",
            partial(_uphill, height=lambda logits, y: logits.log_softmax(1)[:, y].sum()),
        ),
        Mistake(
            "softmax twice",
            "log_softmax, like cross_entropy, takes the logits: give it no softmax of them.",
            partial(_uphill, height=lambda logits, y: _log_p(logits.softmax(1), y).sum()),
        ),
        Mistake(
            "x needs no gradient",
            "autograd follows x only if told so, before logits: x.detach().requires_grad_().",
            partial(_uphill, lead=lambda x: x),
        ),
        Mistake(
            "rows not summed",
            "autograd starts from one number: sum log p over the rows, which do not mix.",
            partial(_uphill, height=_log_p),
        ),
    ),
)


def _noised(x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    return alpha[:, None] * x0 + sigma[:, None] * eps


def _aware_loss(
    logits: OfTwo,
    x0: Tensor,
    y: Tensor,
    t: Tensor,
    eps: Tensor,
    alpha: Rule,
    sigma: Rule,
    *,
    noised: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] = _noised,
    loss: OfTwo = lambda logits, y: -_log_p(logits, y),
) -> Tensor:
    return loss(logits(noised(x0, eps, alpha(t), sigma(t)), t), y)


def _aware_classifier(seed: int, dims: int, n_classes: int) -> OfTwo:
    weights, heads = normals(seed, dims + 1, 8), normals(seed + 1, 8, n_classes)

    def logits(xt: Tensor, t: Tensor) -> Tensor:
        times = torch.as_tensor(t).to(xt).reshape(-1, 1).expand(len(xt), 1)
        return torch.tanh(torch.cat([xt, 2 * times], 1) @ weights.to(xt)) @ heads.to(xt)

    return logits


def _aware_probes() -> Probes:
    """Give batches of another size than the dimensions, so that no axis fits by chance."""
    probes = []
    labels = (torch.tensor([2, 0, 1, 2, 0]), torch.tensor([3, 1, 0, 2]))
    for k, (y, dims) in enumerate(zip(labels, (2, 3), strict=True)):
        schedule, t = (LinearVP(), CosineVP())[k], torch.sigmoid(normals(5 * k, len(y)))
        x0, eps = normals(5 * k + 1, len(y), dims), normals(5 * k + 2, len(y), dims)
        logits = _aware_classifier(5 * k + 3, dims, dims + 1)
        probes.append((logits, x0, y, t, eps, schedule.alpha, schedule.sigma))
    return probes


AWARE = Exercise(
    "08.4",
    "a classifier that is to guide must know noise: it learns from x_t, and is told t.",
    _aware_loss,
    _aware_probes,
    (
        Mistake(
            "clean x_0",
            "when it guides, the classifier will see x_t: noise x_0 before it looks.",
            partial(_aware_loss, noised=lambda x0, eps, alpha, sigma: x0),
        ),
        Mistake(
            "t not told",
            "tell the classifier t: how much of a point is noise, it cannot know by itself.",
            lambda logits, *given: _aware_loss(lambda xt, t: logits(xt, 0 * t), *given),
        ),
        Mistake(
            "alpha and sigma swapped",
            "alpha multiplies x_0, sigma multiplies eps.",
            partial(_aware_loss, noised=lambda x0, eps, a, s: _noised(x0, eps, s, a)),
        ),
        Mistake(
            "roots taken twice",
            "alpha is sqrt(alpha_bar) already, and sigma sqrt(1 - alpha_bar): take no roots.",
            partial(_aware_loss, noised=lambda x, e, a, s: _noised(x, e, a**0.5, (1 - a) ** 0.5)),
        ),
        Mistake(
            "logits for log p",
            "a logit is not log p yet: take log_softmax of the logits first.",
            partial(_aware_loss, loss=lambda logits, y: -_of_label(logits, y)),
        ),
        Mistake(
            "probability",
            "-p is not -log p: nll_loss, too, must be given logarithms.",
            partial(_aware_loss, loss=lambda logits, y: -_of_label(logits.softmax(1), y)),
        ),
        Mistake(
            "softmax twice",
            "cross_entropy takes the logits: it does the softmax itself.",
            partial(_aware_loss, loss=lambda logits, y: -_log_p(logits.softmax(1), y)),
        ),
        Mistake(
            "mean over the batch",
            "return one loss for each row, (B,): reduction='none'.",
            partial(_aware_loss, loss=F.cross_entropy),
        ),
        Mistake(
            "rows along dimensions",
            "alpha(t) is (B,): with a second axis, [:, None], each row is noised by its own.",
            partial(_aware_loss, noised=lambda x0, eps, alpha, sigma: alpha * x0 + sigma * eps),
        ),
    ),
)


def _class_log_prob(
    x: Tensor,
    t_alpha: Tensor,
    t_sigma: Tensor,
    means: Tensor,
    variances: Tensor,
    shares: Tensor,
    *,
    centres: OfTwo = torch.mul,
    spread: OfThree = lambda alpha, sigma, v: alpha**2 * v + sigma**2,
    prior: Rule = torch.log,
    volume: Callable[[Tensor, int], Tensor] = lambda v, d: d / 2 * (2 * torch.pi * v).log(),
    weight: float = 0.5,
    finish: Rule = lambda joint: joint.log_softmax(1),
) -> Tensor:
    width = spread(t_alpha, t_sigma, variances)
    far = (x[:, None] - centres(t_alpha, means)).square().sum(2)
    return finish(prior(shares) - volume(width, x.shape[1]) - weight * far / width)


def _class_probes() -> Probes:
    """Give classes that overlap, of unlike sizes and shares, lest a term hardly counts."""
    probes = []
    for k, (dims, alpha) in enumerate([(2, 0.9), (3, 0.6), (2, 0.4)]):
        means, x = normals(2 * k, 3, dims), normals(2 * k + 1, 5, dims)
        levels = exact(alpha), exact((1 - alpha**2) ** 0.5)
        probes.append((x, *levels, means, exact([0.3, 1.5, 0.7]), exact([0.2, 0.5, 0.3])))
    return probes


POSTERIOR = Exercise(
    "08.5",
    "Gaussians stay Gaussian under noise: Bayes' rule is the exact classifier at every t.",
    _class_log_prob,
    _class_probes,
    (
        Mistake(
            "means not scaled",
            "x_t is alpha x_0 and noise: its classes stand at alpha times their means.",
            partial(_class_log_prob, centres=lambda alpha, means: means),
        ),
        Mistake(
            "noise left out",
            "the noise widens every class: add sigma^2 to its variance.",
            partial(_class_log_prob, spread=lambda alpha, sigma, v: alpha**2 * v),
        ),
        Mistake(
            "alpha not squared",
            "alpha multiplies x_0, so its variance is multiplied by alpha^2.",
            partial(_class_log_prob, spread=lambda alpha, sigma, v: alpha * v + sigma**2),
        ),
        Mistake(
            "deviations added",
            "variances add, standard deviations do not: alpha^2 v + sigma^2.",
            partial(_class_log_prob, spread=lambda a, sigma, v: (a * v.sqrt() + sigma) ** 2),
        ),
        Mistake(
            "variance for scale",
            "torch's Normal takes the standard deviation: give it the root of the variance.",
            partial(_class_log_prob, spread=lambda a, sigma, v: (a**2 * v + sigma**2) ** 2),
        ),
        Mistake(
            "shares forgotten",
            "add the logarithm of the shares: frequent classes are likelier before any look.",
            partial(_class_log_prob, prior=torch.zeros_like),
        ),
        Mistake(
            "log-det forgotten",
            "a wide class is thin: d / 2 times the logarithm of its variance is taken off.",
            partial(_class_log_prob, volume=lambda v, d: 0 * v),
        ),
        Mistake(
            "one dimension's width",
            "all d dimensions are as wide: the logarithm is taken off d / 2 times, not 1 / 2.",
            partial(_class_log_prob, volume=lambda v, d: v.log() / 2),
        ),
        Mistake(
            "half forgotten",
            "a Gaussian's exponent has 1/2: squared distance over 2 times the variance.",
            partial(_class_log_prob, weight=1.0),
        ),
        Mistake(
            "joint",
            "that is a density, of x_t and class: log_softmax over the classes divides by p(x_t).",
            partial(_class_log_prob, finish=lambda joint: joint),
        ),
        Mistake(
            "joint, unscaled",
            "over the classes chances add up to 1: log_softmax divides by their sum.",
            partial(_class_log_prob, volume=lambda v, d: d / 2 * v.log(), finish=lambda q: q),
        ),
        Mistake(
            "probabilities",
            "those are the probabilities: return their logarithms.",
            partial(_class_log_prob, finish=lambda joint: joint.softmax(1)),
        ),
    ),
)

Norm = Callable[[Tensor, int], Tensor]


def _wide(value: Tensor) -> Tensor:
    return value[:, :, None, None]


def _adaptive(
    h: Tensor, scale: Tensor, shift: Tensor, groups: int, *, norm: Norm = F.group_norm
) -> Tensor:
    return norm(h, groups) * (1 + _wide(scale)) + _wide(shift)


def _by_hand(root: Rule) -> Norm:
    """Return a group norm that divides by `root` of the groups, (B, groups, n)."""

    def norm(h: Tensor, groups: int) -> Tensor:
        parts = h.reshape(len(h), groups, -1)
        return ((parts - parts.mean(2, keepdim=True)) / root(parts)).reshape(h.shape)

    return norm


def _adaptive_probes() -> Probes:
    """Give channels of many sizes; in the second, all so small that 1e-5 counts."""
    probes = []
    for k, (size, groups, channels) in enumerate([(1.0, 3, 6), (0.01, 2, 8)]):
        loud, level = normals(5 * k, 2, channels).exp(), normals(5 * k + 1, 2, channels)
        h = size * (_wide(loud) * normals(5 * k + 2, 2, channels, 3, 2) + _wide(level))
        given = (0.6 * normals(5 * k + i, 2, channels) for i in (3, 4))
        probes.append((h, *given, groups))
    return probes


NORM = Exercise(
    "08.6",
    "time and class reach a layer as a gain and a shift of each channel, after its norm.",
    _adaptive,
    _adaptive_probes,
    (
        Mistake(
            "1 forgotten",
            "the code's gain is 1 + scale, so that a scale of 0 changes nothing.",
            lambda h, scale, shift, groups: _adaptive(h, scale - 1, shift, groups),
        ),
        Mistake(
            "shift inside",
            "the shift comes last: it is not multiplied by 1 + scale.",
            lambda h, scale, shift, groups: _adaptive(h, scale, (1 + scale) * shift, groups),
        ),
        Mistake(
            "scale and shift swapped",
            "scale multiplies, shift is added: yours are swapped.",
            lambda h, scale, shift, groups: _adaptive(h, shift, scale, groups),
        ),
        Mistake(
            "norm comes last",
            "normalise first: a norm after the gain and the shift takes most of them away.",
            lambda h, a, b, groups: F.group_norm(h * (1 + _wide(a)) + _wide(b), groups),
        ),
        Mistake(
            "each channel by itself",
            "that is instance norm: the channels of a group share one mean and one variance.",
            partial(_adaptive, norm=lambda h, groups: F.instance_norm(h)),
        ),
        Mistake(
            "axes missing",
            "scale and shift are (B, C): append two axes, so that a channel's pixels share one.",
            lambda h, scale, shift, groups: F.group_norm(h, groups) * (1 + scale) + shift,
        ),
        Mistake(
            "size for number",
            "`groups` is the number of groups: each has C / groups channels.",
            partial(_adaptive, norm=lambda h, groups: F.group_norm(h, h.shape[1] // groups)),
        ),
        Mistake(
            "unbiased variance",
            "a norm divides by n, not n - 1: correction=0 in torch's var.",
            partial(_adaptive, norm=_by_hand(lambda v: (v.var(2, keepdim=True) + 1e-5).sqrt())),
        ),
        Mistake(
            "eps outside the root",
            "1e-5 is added to the variance, under the root.",
            partial(_adaptive, norm=_by_hand(lambda v: v.std(2, False, keepdim=True) + 1e-5)),
        ),
    ),
)

EXERCISES = (NOISE, STEP, UPHILL, AWARE, POSTERIOR, NORM)
