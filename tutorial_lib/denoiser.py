"""The hub of the package: whoever looks at x_t and says what x_0, the noise or the score is.

An exact denoiser (closed form for a Gaussian mixture) and a learned one are the same type, so
every sampler, guidance rule, likelihood and loss runs on both unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from tutorial_lib.mixtures import GaussianMixture
from tutorial_lib.schedule import Level, Schedule, Time

NULL_LABEL = -1  # as in networks/embeddings.py, which sees no denoiser


def _divide(value: Tensor, by: Tensor, what: str) -> Tensor:
    if by.is_cpu and not bool(by.all()):
        raise ZeroDivisionError(what)
    return value / by


@dataclass(frozen=True)
class Prediction:
    """Hold one prediction at x_t in its equivalent forms: x_0, eps, score, v.

    Any form gives the others through x_t = alpha x_0 + sigma eps. Where that divides by zero
    (x_0 from eps when alpha = 0, eps from x_0 and the score when sigma = 0) a ZeroDivisionError
    says so. `variance_fraction` is IDDPM's extra output v in [0, 1], `noise_variance` what a
    second network says of Var[eps | x_t]; both have x_t's shape.
    """

    xt: Tensor
    level: Level
    x0: Tensor
    eps: Tensor
    variance_fraction: Tensor | None = None
    noise_variance: Tensor | None = None

    @property
    def score(self) -> Tensor:
        """Return grad log q(x_t) = -eps / sigma (Song et al. 2021, section 3.3)."""
        return _divide(-self.eps, self.level.sigma, "the score needs sigma > 0: t is too small")

    @property
    def v(self) -> Tensor:
        """Return v = alpha eps - sigma x_0 (Salimans & Ho 2022, section 4)."""
        return self.level.alpha * self.eps - self.level.sigma * self.x0

    @classmethod
    def from_x0(cls, xt: Tensor, level: Level, x0: Tensor) -> Prediction:
        """Read a prediction of the clean point (DDPM, Ho et al. 2020, eq. 4)."""
        signal = level.alpha * x0
        eps = _divide(xt - signal, level.sigma, "eps from x_0 needs sigma > 0: t is too small")
        return cls(xt, level, x0, eps)

    @classmethod
    def from_eps(cls, xt: Tensor, level: Level, eps: Tensor) -> Prediction:
        """Read a prediction of the noise (DDPM, Ho et al. 2020, eq. 15)."""
        noise = level.sigma * eps
        x0 = _divide(xt - noise, level.alpha, "x_0 from eps needs alpha > 0: there is no signal")
        return cls(xt, level, x0, eps)

    @classmethod
    def from_score(cls, xt: Tensor, level: Level, score: Tensor) -> Prediction:
        """Read a prediction of the score: Tweedie's formula (Efron 2011, eq. 1.4)."""
        return cls.from_eps(xt, level, -level.sigma * score)

    @classmethod
    def from_v(cls, xt: Tensor, level: Level, v: Tensor) -> Prediction:
        """Read a prediction of v, regular at both ends (Salimans & Ho 2022, section 4)."""
        norm = level.alpha**2 + level.sigma**2  # 1 on a variance-preserving schedule
        x0 = (level.alpha * xt - level.sigma * v) / norm
        return cls(xt, level, x0, (level.sigma * xt + level.alpha * v) / norm)

    def clipped(self, low: float, high: float) -> Prediction:
        """Clip x_0 to [low, high] and make eps agree (Ho et al. 2020, released code)."""
        return self.with_x0(self.x0.clamp(low, high))

    def with_x0(self, x0: Tensor) -> Prediction:
        """Put another x_0 in place of this one, and make eps agree."""
        agreed = Prediction.from_x0(self.xt, self.level, x0)
        return replace(self, x0=agreed.x0, eps=agreed.eps)

    def pushed(self, push: Tensor) -> Prediction:
        """Add `push` to the score, and so to eps and x_0 (Dhariwal & Nichol 2021, eq. 14)."""
        noise = self.level.sigma * push
        shift = _divide(
            noise, self.level.alpha, "a push on x_0 needs alpha > 0: there is no signal"
        )
        return replace(self, eps=self.eps - noise, x0=self.x0 + self.level.sigma * shift)


@dataclass(frozen=True)
class Condition:
    """Hold what a sample is conditioned on; None means absent.

    label (B,) integers, NULL_LABEL in a row without one; text, a caption's tokens (B, L) or their
    features (B, L, D) with mask (B, L), True where a token may be seen; image_embedding (B, D);
    low_res (B, C, H, W) with aug_level (B,); hint (B, C, H, W), or (B, D) for a prior.
    """

    label: Tensor | None = None
    text: Tensor | None = None
    mask: Tensor | None = None
    image_embedding: Tensor | None = None
    low_res: Tensor | None = None
    aug_level: Tensor | None = None
    hint: Tensor | None = None

    def without(self, *names: str) -> Condition:
        """Return the condition with these fields absent (Ho & Salimans 2022, section 3.2)."""
        return replace(self, **dict.fromkeys(names))

    def given(self) -> dict[str, Tensor]:
        """Return what is not absent, by name."""
        return {name: x for name, x in vars(self).items() if x is not None}


class Denoiser(Protocol):
    """Look at noisy points at time t and return a Prediction; carry the noise schedule."""

    schedule: Schedule

    def __call__(self, xt: Tensor, t: Time, cond: Condition | None = None) -> Prediction:
        """Predict at `xt` (B, ...), `t` () or (B,)."""
        ...


def class_weights(mixture: GaussianMixture, classes: Tensor) -> Tensor:
    """Return p(class and component), (C, K) (product rule: Bishop 2006, eq. 1.11).

    `classes` (K,) is the class of each component, from 0 without a gap; a ValueError for others.
    """
    members = classes == torch.arange(int(classes.max()) + 1)[:, None]  # (C, K)
    if classes.shape != mixture.weights.shape or not bool(members.any(1).all()):
        k, given = len(mixture.weights), classes.tolist()
        raise ValueError(f"{k} components need {k} classes, every one from 0 up, not {given}")
    return members * mixture.weights


class MixtureDenoiser:
    """Be the best possible denoiser of a Gaussian mixture: E[x_0 | x_t], in closed form.

    With `classes` (K,), the class of each component, it is E[x_0 | x_t, y] in a row with a label;
    without a label, and in a row of NULL_LABEL, the whole mixture's.
    """

    def __init__(
        self, mixture: GaussianMixture, schedule: Schedule, classes: Tensor | None = None
    ) -> None:
        self.mixture, self.schedule = mixture, schedule
        self._weights = None if classes is None else class_weights(mixture, classes)

    def _law(self, cond: Condition | None) -> GaussianMixture:
        """Return the law of x_0, or one for every row."""
        if cond is None or cond.label is None:
            return self.mixture
        if self._weights is None:
            raise ValueError("this mixture has no classes: give them, or pass no label")
        rows = torch.cat([self._weights, self.mixture.weights[None]])  # NULL_LABEL: the last one
        return self.mixture.reweighted(rows[cond.label])

    def __call__(self, xt: Tensor, t: Time, cond: Condition | None = None) -> Prediction:
        """Return E[x_0 | x_t] and eps = -sigma score, each in its stable form (Efron 2011)."""
        level, law = self.schedule.at(t, like=xt.double()), self._law(cond)
        x0 = law.posterior_mean(xt, level)
        eps = -level.sigma * law.diffuse(level).score(xt)
        return Prediction(xt, self.schedule.at(t, like=xt), x0.to(xt.dtype), eps.to(xt.dtype))


class PointsDenoiser:
    """Be the exact denoiser of weighted points: E[x_0 | x_t], a mean over all of them.

    Of `points` (N, D) with the logarithms of their weights (N,), normalised or not (Karras et al.
    2022, appendix B.3). A fine grid stands for a density that is known up to a constant; what
    weighs less than e^-16 of the heaviest is left out. There is none where sigma = 0.
    """

    def __init__(self, points: Tensor, log_weights: Tensor, schedule: Schedule) -> None:
        kept = log_weights > log_weights.max() - 16
        self.schedule, self._points, self._logs = schedule, points[kept], log_weights[kept]

    def __call__(self, xt: Tensor, t: Time, cond: Condition | None = None) -> Prediction:
        """Return the mean of the points at noisy `xt` (B, D), each weighed by its posterior."""
        level = self.schedule.at(t, like=xt)
        k = level.sigma / level.alpha
        gaps = torch.cdist(xt / level.alpha, self._points) / k
        return Prediction.from_x0(xt, level, (self._logs - gaps**2 / 2).softmax(1) @ self._points)


def step_clock(schedule: Schedule, t: Time) -> Tensor:
    """Return 1000 t, the clock of DDPM's networks (Ho et al. 2020, appendix B)."""
    return 1000 * torch.as_tensor(t, dtype=torch.float64)


def log_snr_clock(schedule: Schedule, t: Time) -> Tensor:
    """Return a tenth of the log-SNR, clipped to [-2, 2] (after Kingma et al. 2021, section 3.4).

    The clip only matters within about 1e-8 of the ends, where a log-SNR is infinite.
    """
    return (schedule.lambda_(t) / 5).clamp(-2, 2)


def ask(net: nn.Module, xt: Tensor, clock: Tensor, *more: Condition | None) -> Tensor:
    """Return net(xt, clock, *more), asked in the network's dtype and told in xt's.

    `clock` is one for all rows, or (B,).
    """
    dtype = next((p.dtype for p in net.parameters()), xt.dtype)
    if clock.is_cpu and clock.ndim == 0:  # a copy from the host would wait for the GPU
        clock = xt.new_full((), clock.item(), dtype=dtype)
    clock = clock.to(xt.device, dtype).expand(xt.shape[0])
    return net(xt.to(dtype), clock, *more).to(xt.dtype)


class NetworkDenoiser:
    """Make a denoiser of a network that predicts "x0", "eps", "score" or "v".

    A network with twice x_t's channels has a variance head (Nichol & Dhariwal 2021, eq. 15).
    """

    def __init__(
        self,
        net: nn.Module,
        schedule: Schedule,
        predicts: str = "eps",
        clock: Callable[[Schedule, Time], Tensor] = log_snr_clock,
    ) -> None:
        if predicts not in ("x0", "eps", "score", "v"):
            raise ValueError(f'predicts must be "x0", "eps", "score" or "v", got {predicts!r}')
        self.net, self.schedule, self.predicts, self.clock = net, schedule, predicts, clock

    def __call__(self, xt: Tensor, t: Time, cond: Condition | None = None) -> Prediction:
        """Ask the network; read its answer (Kingma et al. 2021, section 3.4)."""
        answer, fraction = ask(self.net, xt, self.clock(self.schedule, t), cond), None
        if answer.shape[1] == 2 * xt.shape[1]:
            answer, output = answer.chunk(2, dim=1)
            fraction = 0.5 * (output + 1)  # the authors' code; v in [0, 1] is not enforced
        read = getattr(Prediction, f"from_{self.predicts}")
        prediction = read(xt, self.schedule.at(t, like=xt), answer)
        return replace(prediction, variance_fraction=fraction)
