"""Guidance and thresholds: a denoiser goes in, a denoiser comes out, so that they compose.

    StaticThreshold(ClassifierFree(model, w=2.0))
    ClassifierGuided(Unlabelled(model), classifier, scale=3.0)

Every sampler takes what comes out. `guided_ancestral` alone is a sampler: its guidance needs to
know how far a step goes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutorial_lib.denoiser import (
    NULL_LABEL,
    Condition,
    Denoiser,
    Prediction,
    ask,
    class_weights,
    log_snr_clock,
)
from tutorial_lib.mixtures import GaussianMixture
from tutorial_lib.samplers import Variance, beta_tilde
from tutorial_lib.schedule import Schedule, Time, as_time, time_like

# f(xt, t, cond): how well each noisy point (B, ...) suits the condition, (B,); rows do not mix
Similarity = Callable[[Tensor, Time, Condition | None], Tensor]
# f(xt, t): logits of each noisy point, (B, K); log p(y | x_t) will do, whose log-softmax it is
Classifier = Callable[[Tensor, Time], Tensor]
NO_LABEL = Condition(label=torch.tensor([NULL_LABEL]))


class StaticThreshold:
    """Clip each predicted x_0 to the range of the data, and make eps agree.

    Imagen (Saharia et al. 2022), section 2.3; DDPM's released code samples so (Ho et al. 2020).
    Without it an error in eps, divided by a small alpha, throws x_0 far outside.
    """

    def __init__(self, denoiser: Denoiser, low: float = -1.0, high: float = 1.0) -> None:
        if not low < high:
            raise ValueError(f"the range is {low} to {high}: it must rise")
        self.denoiser, self.schedule = denoiser, denoiser.schedule
        self.low, self.high = low, high

    def __call__(self, xt: Tensor, t: Time, cond: Condition | None = None) -> Prediction:
        """Predict as the denoiser does, within the range."""
        return self.denoiser(xt, t, cond).clipped(self.low, self.high)


class DynamicThreshold:
    """Clip each predicted x_0 to [-s, s], divide it by s, and make eps agree.

    Imagen (Saharia et al. 2022), section 2.3, for data in [-1, 1]: s is a quantile of a row's
    |x_0|, but at least 1. What strong guidance pushes out of the range comes back without all of
    it lying on the bounds.
    """

    def __init__(self, denoiser: Denoiser, quantile: float = 0.995) -> None:
        if not 0 < quantile <= 1:
            raise ValueError(f"quantile is {quantile}: it must lie in (0, 1]")
        self.denoiser, self.schedule, self.quantile = denoiser, denoiser.schedule, quantile

    def __call__(self, xt: Tensor, t: Time, cond: Condition | None = None) -> Prediction:
        """Predict as the denoiser does, each row within its own range."""
        prediction = self.denoiser(xt, t, cond)
        sizes = prediction.x0.flatten(1).abs().quantile(self.quantile, dim=1)  # (B,)
        s = sizes.clamp(min=1).reshape(-1, *(1,) * (xt.ndim - 1))
        return prediction.with_x0(prediction.x0.clamp(-s, s) / s)


class Unlabelled:
    """Ask a denoiser without the label: the unconditional model, which a classifier may guide."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser, self.schedule = denoiser, denoiser.schedule

    def __call__(self, xt: Tensor, t: Time, cond: Condition | None = None) -> Prediction:
        """Predict as the denoiser does when the label is absent."""
        return self.denoiser(xt, t, cond and cond.without("label"))


def slope(similarity: Similarity, xt: Tensor, t: Time, cond: Condition | None = None) -> Tensor:
    """Return the gradient of a similarity in x_t, (B, ...) (Dhariwal & Nichol 2021, section 4).

    Under torch.no_grad too. It keeps no graph, unless one leads to `xt` and is asked for, as
    when the divergence of a guided flow is taken.
    """
    graph = torch.is_grad_enabled() and xt.requires_grad
    with torch.enable_grad():
        x = xt if graph else xt.detach().requires_grad_()
        total = similarity(x, t, cond).sum()
        return torch.autograd.grad(total, x, create_graph=graph)[0]


class SimilarityGuided:
    """Add `scale` times the gradient of a similarity in x_t to the score.

    Semantic diffusion guidance (Liu et al. 2023), section 3: log p(y | x_t) becomes any measure
    of how well x_t suits the condition, such as the cosine of two embeddings. It must know noise,
    since x_t is what it sees.
    """

    def __init__(self, denoiser: Denoiser, similarity: Similarity, scale: float = 1.0) -> None:
        self.denoiser, self.schedule = denoiser, denoiser.schedule
        self.similarity, self.scale = similarity, scale

    def __call__(self, xt: Tensor, t: Time, cond: Condition | None = None) -> Prediction:
        """Predict as the denoiser does, uphill."""
        push = self.scale * slope(self.similarity, xt, t, cond)
        return self.denoiser(xt, t, cond).pushed(push)


def label_log_prob(classifier: Classifier) -> Similarity:
    """Return log p(y | x_t) of the label asked for, as a similarity (Dhariwal & Nichol 2021, 4).

    It is 0 in a row without a label, which is not guided.
    """

    def log_prob(xt: Tensor, t: Time, cond: Condition | None) -> Tensor:
        absent = cond is None or cond.label is None
        label = torch.tensor(NULL_LABEL, device=xt.device) if absent else cond.label
        label = label.expand(len(xt))
        found = classifier(xt, t).log_softmax(1).gather(1, label.clamp(min=0)[:, None])[:, 0]
        return torch.where(label == NULL_LABEL, 0, found)

    return log_prob


class ClassifierGuided:
    """Add `scale` times grad log p(y | x_t), by a classifier, to the score.

    Dhariwal & Nichol 2021, eq. 14 and algorithm 2. Both the denoiser and the classifier are told
    the label: guide an unconditional model as `Unlabelled(model)`. With the exact classifier of
    x_t the model at `scale` 1 is that of p(x | y).
    """

    def __init__(self, denoiser: Denoiser, classifier: Classifier, scale: float = 1.0) -> None:
        self.schedule = denoiser.schedule
        self._guided = SimilarityGuided(denoiser, label_log_prob(classifier), scale)

    def __call__(self, xt: Tensor, t: Time, cond: Condition | None = None) -> Prediction:
        """Predict as the denoiser does, towards the label in each row of `cond`."""
        return self._guided(xt, t, cond)


def guided_ancestral(
    denoiser: Denoiser,
    x: Tensor,
    times: Tensor,
    cond: Condition | None = None,
    *,
    generator: torch.Generator,
    similarity: Similarity,
    scale: float = 1.0,
    variance: Variance = beta_tilde,
) -> Iterator[Tensor]:
    """Walk back along `times` as `ancestral` does, each mean moved by scale variance gradient.

    Dhariwal & Nichol 2021, eq. 10 and algorithm 1, where `similarity` is `label_log_prob` of a
    classifier. The gradient is that at the mean, at the time where the step ends, as in the
    Taylor expansion (eq. 5); the algorithm as printed and the authors' code take it where the
    step starts. As steps shrink this becomes `ancestral` of a `SimilarityGuided`. A step that
    ends at s = 0 adds no noise, and is guided by its `variance`, of which beta_tilde is 0 there.
    """
    schedule = denoiser.schedule
    for t, s in pairwise(times):
        prediction = denoiser(x, t, cond)
        spread = variance(prediction, schedule, s, t)
        x = schedule.posterior(prediction.x0, x, s, t).mean
        x = x + scale * spread * slope(similarity, x, s, cond)
        if s > 0:
            noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
            x = x + spread**0.5 * noise
        yield x


class ClassifierFree:
    """Extrapolate from a model's unconditional prediction through its conditional one.

    Ho & Salimans 2022, eq. 6: eps = (1 + w) eps_c - w eps_u. w = 0 is the conditional model,
    w = -1 the unconditional one. Both are asked in one batch of 2 B rows, the second half with
    what the one row of `null` says in place of the condition: no label, or an empty caption. Where
    w = 0, or t is outside `interval` (Kynkaanniemi et al. 2024, by noise levels), or the condition
    has nothing that `null` could replace, the model is asked once, as it is. What it says of the
    variance of a step is the conditional half's, as in GLIDE's code.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        w: float,
        interval: tuple[float, float] = (0.0, 1.0),
        null: Condition = NO_LABEL,
    ) -> None:
        if not interval[0] <= interval[1]:
            raise ValueError(f"the interval is {interval}: it must run from low to high t")
        self.denoiser, self.schedule = denoiser, denoiser.schedule
        self.w, self.interval, self._null = w, interval, null.given()

    def __call__(self, xt: Tensor, t: Time, cond: Condition | None = None) -> Prediction:
        """Predict as the denoiser does, more like the condition."""
        low, high = self.interval
        inside = (time_like(t, xt) >= low) & (time_like(t, xt) <= high)
        said = {} if cond is None else cond.given()
        if self.w == 0 or not said.keys() & self._null.keys() or not inside.any():
            return self.denoiser(xt, t, cond)
        n, t = len(xt), as_time(t)
        twice = t.expand(n).repeat(2) if t.ndim else t
        told = {name: self._told_and_not(name, x, n) for name, x in said.items()}
        both = self.denoiser(torch.cat([xt, xt]), twice, Condition(**told))
        w = self.w * inside.to(xt.dtype)
        x0, eps = ((1 + w) * x[:n] - w * x[n:] for x in (both.x0, both.eps))
        more = (x if x is None else x[:n] for x in (both.variance_fraction, both.noise_variance))
        return Prediction(xt, self.schedule.at(t, like=xt), x0, eps, *more)

    def _told_and_not(self, name: str, x: Tensor, n: int) -> Tensor:
        """Return n rows of a part of the condition, followed by as many of nothing said."""
        x = x.expand(n, *x.shape[1:])
        bare = self._null.get(name, x)
        if bare.is_cpu and bare.numel() == 1:  # a copy from the host would wait for the GPU
            return torch.cat([x, torch.full_like(x, bare.item())])
        return torch.cat([x, bare.to(x).expand_as(x)])


class MixtureClassifier:
    """Be the best possible classifier of a Gaussian mixture's noised points: log p(y | x_t).

    `classes` (K,) is the class of each component. The best one for clean data, used at any x_t,
    is `lambda xt, t: classifier(xt, 0.0)`. Source: Bishop (2006), eq. 4.62.
    """

    def __init__(self, mixture: GaussianMixture, schedule: Schedule, classes: Tensor) -> None:
        joint = class_weights(mixture, classes)  # (C, K)
        self.schedule, self._log_shares = schedule, joint.sum(1).log()
        self._laws = mixture.reweighted(joint)  # one of each class

    def __call__(self, xt: Tensor, t: Time) -> Tensor:
        """Return log p(class | x_t) of points (B, D), (B, C)."""
        points = xt.double()[:, None]  # (B, 1, D)
        laws = self._laws.diffuse(self.schedule.at(t, like=points))
        return (self._log_shares + laws.log_prob(points)).log_softmax(1).to(xt.dtype)


class NetworkClassifier:
    """Make a classifier of a network that maps x_t and a clock to logits.

    Dhariwal & Nichol 2021, section 4: it is trained on noised data, apart from any denoiser.
    """

    def __init__(
        self,
        net: nn.Module,
        schedule: Schedule,
        clock: Callable[[Schedule, Time], Tensor] = log_snr_clock,
    ) -> None:
        self.net, self.schedule, self.clock = net, schedule, clock

    def __call__(self, xt: Tensor, t: Time) -> Tensor:
        """Return the network's logits at `xt` (B, ...), (B, K)."""
        return ask(self.net, xt, self.clock(self.schedule, t))


def noised_cross_entropy(
    classifier: Classifier,
    schedule: Schedule,
    x0: Tensor,
    label: Tensor,
    t: Time,
    *,
    generator: torch.Generator,
) -> Tensor:
    """Return -log p(label | x_t) at freshly noised points, (B,) nats.

    What a noise-aware classifier is trained on (Dhariwal & Nichol 2021, section 4).
    """
    eps = torch.randn(x0.shape, generator=generator, dtype=x0.dtype, device=x0.device)
    logits = classifier(schedule.add_noise(x0, eps, t), t)
    return F.cross_entropy(logits, label, reduction="none")
