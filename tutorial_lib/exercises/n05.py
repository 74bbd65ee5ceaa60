"""The exercises of notebook 05: IDDPM."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from tutorial_lib.exercises import Exercise, Mistake
from tutorial_lib.exercises.probes import Probes, normals
from tutorial_lib.gaussian import HALF_BIN, Gaussian
from tutorial_lib.metrics import bits_per_dim
from tutorial_lib.schedule import DiscreteVP

Pair = tuple[Tensor, Tensor]
Triple = tuple[Tensor, Tensor, Tensor]


def _bars(betas: Tensor) -> Tensor:
    return torch.cumprod(1 - betas, 0)


def _before(bars: Tensor) -> Tensor:
    """Return the alpha_bar of the step before, 1 at the first."""
    return torch.cat([torch.ones_like(bars[:1]), bars[:-1]])


def _cosine_truth(n_steps: int, s: float, max_beta: float) -> Pair:
    betas = DiscreteVP.cosine(n_steps, s).betas.clamp(max=max_beta)
    return betas, _bars(betas)


def _angles(n_steps: int, s: float) -> Tensor:
    """Return the cosine's angle at steps 0 .. T."""
    t = torch.linspace(0, 1, n_steps + 1, dtype=torch.float64)
    return (t + s) / (1 + s) * math.pi / 2


def _squares(n_steps: int, s: float) -> Tensor:
    return _angles(n_steps, s).cos() ** 2


def _cosine_of(
    f: Callable[[int, float], Tensor] = _squares, *, low: float | None = None, high: float = 0
) -> Callable[..., Pair]:
    """Return a schedule of f(T, s) / f(0), betas clipped to `low` and `high` (max_beta, if 0)."""

    def cosine(n_steps: int, s: float, max_beta: float) -> Pair:
        values = f(n_steps, s)
        betas = (1 - values[1:] / values[:-1]).clamp(low, high or max_beta)
        return betas, _bars(betas)

    return cosine


def _unclipped(n_steps: int, s: float, max_beta: float) -> Pair:
    squares = _squares(n_steps, s)
    return 1 - squares[1:] / squares[:-1], squares[1:] / squares[0]


COSINE = Exercise(
    "05.1",
    "a schedule may be drawn as the alpha_bar one wants: its betas follow by division.",
    _cosine_truth,
    # At 1000 steps the first betas are below 0.0001, a floor that some code gives them.
    lambda: [(1000, 0.008, 0.02), (40, 0.008, 0.999), (20, 0.17, 0.5)],
    (
        Mistake(
            "not divided by 1 + s",
            "divide t / T + s by 1 + s: the angle must end at pi / 2, not beyond.",
            _cosine_of(lambda n, s: (_angles(n, s) * (1 + s)).cos() ** 2),
        ),
        Mistake(
            "no square",
            "the cosine itself is sqrt(alpha_bar), the scale of the data: square it.",
            _cosine_of(lambda n, s: _angles(n, s).cos()),
        ),
        Mistake(
            "not divided by f(0)",
            "alpha_bar_t is f(t) / f(0), so that alpha_bar_0 = 1: f(0) itself is a little less.",
            _cosine_of(lambda n, s: torch.cat([torch.ones(1), _squares(n, s)[1:]])),
        ),
        Mistake(
            "one step late",
            "step 1 already goes from f(0) to f(1): its beta is not 0.",
            _cosine_of(lambda n, s: torch.cat([_squares(n, s)[:1], _squares(n, s)[:-1]])),
        ),
        Mistake(
            "T points for T steps",
            "T steps have T + 1 ends: linspace with T points makes them too long and beta_1 zero.",
            _cosine_of(lambda n, s: torch.cat([_squares(n, s)[:1], _squares(n - 1, s)])),
        ),
        Mistake(
            "clip missing",
            "f(T) = 0 makes the last beta 1, and nothing is left: let none exceed max_beta.",
            _unclipped,
        ),
        Mistake(
            "the paper's clip",
            "0.999 is the paper's choice: here the limit is the argument, max_beta.",
            _cosine_of(high=0.999),
        ),
        Mistake(
            "clipped from below",
            "clip from above alone: the first betas of a long chain are below 0.0001, rightly.",
            _cosine_of(low=1e-4),
        ),
        Mistake(
            "outputs swapped",
            "return the betas first, then their alpha_bars.",
            lambda n, s, most: _cosine_truth(n, s, most)[::-1],
        ),
        Mistake(
            "alpha_bar before the clip",
            "the clip changes alpha_bar too: it is the running product of 1 - the clipped betas.",
            lambda n, s, most: (_cosine_truth(n, s, most)[0], _unclipped(n, s, most)[1]),
        ),
    ),
)


def _between(v: Tensor, beta: Tensor, beta_tilde: Tensor) -> Tensor:
    return (v * beta.log() + (1 - v) * beta_tilde.log()).exp()


def _tildes(bars: Tensor) -> Tensor:
    before = _before(bars)
    return (1 - before) / (1 - bars) * (1 - bars / before)


def _schedules(n_steps: int) -> list[Tensor]:
    return [make(n_steps).betas for make in (DiscreteVP.linear, DiscreteVP.cosine)]


def _variance_probes() -> Probes:
    """Give fractions that are in [0, 1] mostly: nothing keeps a network there."""
    probes, t = [], torch.tensor([2, 3, 9, 40])
    for k, betas in enumerate(_schedules(40)):
        ends = (table[t - 1][:, None] for table in (betas, _tildes(_bars(betas))))
        probes.append((0.5 + 0.7 * normals(k, 4, 3), *ends))
    return probes


VARIANCE = Exercise(
    "05.2",
    "v measures out a ratio: halfway between two variances is their geometric mean.",
    _between,
    _variance_probes,
    (
        Mistake(
            "ends swapped",
            "v = 1 is the upper end, beta, and v = 0 the lower, beta_tilde.",
            lambda v, high, low: _between(1 - v, high, low),
        ),
        Mistake(
            "variances interpolated",
            "interpolate the logarithms of the variances, not the variances, and exponentiate.",
            lambda v, high, low: v * high + (1 - v) * low,
        ),
        Mistake(
            "clamped",
            "do not clamp v: a variance beyond the two ends is allowed, and may be the best.",
            lambda v, high, low: _between(v.clamp(0, 1), high, low),
        ),
        Mistake(
            "squashed",
            "use v as it is: a sigmoid would keep the variance away from both of its ends.",
            lambda v, high, low: _between(v.sigmoid(), high, low),
        ),
        Mistake(
            "mapped twice",
            "v is already the fraction: (v + 1) / 2 is for an output that runs from -1 to 1.",
            lambda v, high, low: _between((v + 1) / 2, high, low),
        ),
    ),
)

Steps = tuple[Gaussian, Gaussian]  # the truth's and the model's


def _steps(eps: Tensor, eps_hat: Tensor, v: Tensor, t: Tensor, betas: Tensor) -> Steps:
    """Return q(x_{t-1} | x_t, x_0) and the model's step, seen from the model's mean; t >= 2."""
    bars = _bars(betas)
    beta, bar, tilde = (table[t - 1][:, None] for table in (betas, bars, _tildes(bars)))
    gap = beta / ((1 - beta) * (1 - bar)).sqrt() * (eps_hat - eps)
    return Gaussian(gap, tilde), Gaussian(torch.zeros_like(gap), _between(v, beta, tilde))


def _straight(eps: Tensor, eps_hat: Tensor, v: Tensor, t: Tensor, betas: Tensor) -> Steps:
    truth, model = _steps(eps, eps_hat, v, t, betas)
    return truth, Gaussian(model.mean, v * betas[t - 1][:, None] + (1 - v) * truth.variance)


def _hybrid_of(
    steps: Callable[..., Steps] = _steps,
    kl: Callable[[Gaussian, Gaussian], Tensor] = Gaussian.kl,
    *,
    weight: float = 1e-3,
    n_terms: int = 0,
    stopped: bool = True,
) -> Callable[..., Triple]:
    """Return an answer whose L_vlb is `n_terms` (T, if 0) times the `kl` of the `steps`."""

    def hybrid(eps: Tensor, eps_hat: Tensor, v: Tensor, t: Tensor, betas: Tensor) -> Triple:
        still = eps_hat.detach() if stopped else eps_hat
        vlb = (n_terms or len(betas)) * kl(*steps(eps, still, v, t, betas))
        loss = (eps - eps_hat).square().sum(1) + weight * vlb
        return loss, *torch.autograd.grad(loss.sum(), (eps_hat, v))

    return hybrid


def _hybrid_probes() -> Probes:
    t, probes = torch.tensor([2, 3, 10, 30, 39]), []  # short of T, where t + 1 would raise
    for k, betas in enumerate(_schedules(40)):
        eps, error, v = (normals(3 * k + i, 5, 2) for i in range(3))
        learned = ((eps + 0.5 * error).requires_grad_(), (0.5 + 0.3 * v).requires_grad_())
        probes.append((eps, *learned, t, betas))
    return probes


HYBRID = Exercise(
    "05.3",
    "one network, two teachers: L_simple for the mean, a little of L_vlb for the variance.",
    _hybrid_of(),
    _hybrid_probes,
    (
        Mistake(
            "mean not stopped",
            "L_vlb must teach the variance alone: detach eps_hat where the KL uses it.",
            _hybrid_of(stopped=False),
        ),
        Mistake(
            "an output that learns nothing",
            "both outputs learn: detach eps_hat in the KL, but not in L_simple, and v nowhere.",
            _hybrid_of(lambda eps, hat, v, t, b: _steps(eps, hat, v.detach(), t, b)),
        ),
        Mistake(
            "0.001 forgotten",
            "L_vlb is multiplied by 0.001, lest it drown L_simple.",
            _hybrid_of(weight=1.0),
        ),
        Mistake(
            "one term for all",
            "the step that was drawn stands for all the terms of L_vlb: multiply its KL by T.",
            _hybrid_of(n_terms=1),
        ),
        Mistake(
            "mean over dimensions",
            "sum both parts over the dimensions: the loss is that of the whole point.",
            lambda *given: tuple(part / 2 for part in _hybrid_of()(*given)),
        ),
        Mistake(
            "bits per dimension",
            "improved-diffusion has L_vlb in bits per dimension: here it is in nats per point.",
            lambda *given: tuple(x / 2 for x in _hybrid_of(weight=1e-3 / math.log(2))(*given)),
        ),
        Mistake(
            "the means' distance left out",
            "stopped is not left out: the error of the mean stays in the KL, and moves v.",
            _hybrid_of(lambda eps, hat, v, t, b: _steps(eps, eps, v, t, b)),
        ),
        Mistake(
            "variances interpolated",
            "the width is interpolated in logarithms, as in 05.2.",
            _hybrid_of(_straight),
        ),
        Mistake(
            "half forgotten",
            "a KL of Gaussians has 1/2 in front of its bracket.",
            _hybrid_of(kl=lambda truth, model: 2 * truth.kl(model)),
        ),
        Mistake(
            "gradients swapped",
            "return the gradient of eps_hat before that of v.",
            lambda *given: tuple(_hybrid_of()(*given)[k] for k in (0, 2, 1)),
        ),
        Mistake(
            "KL the wrong way round",
            "the KL goes from q(x_{t-1} | x_t, x_0) to the model: divide by the learned variance.",
            _hybrid_of(kl=lambda truth, model: model.kl(truth)),
        ),
        Mistake(
            "index off by one",
            "steps count from 1 and tables from 0: step t stands at index t - 1.",
            _hybrid_of(lambda eps, hat, v, t, b: _steps(eps, hat, v, t + 1, b)),
        ),
    ),
)


def _drawn(sizes: Tensor) -> Pair:
    """Return the probabilities that are proportional to `sizes`, and the weights."""
    p = sizes / sizes.sum()
    return p, 1 / (len(p) * p)


def _rms(history: Tensor) -> Tensor:
    return history.square().mean(1).sqrt()


def _weighed(weights: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Pair]:
    """Return an answer with other weights, as a function of the probabilities."""
    return lambda history: (_drawn(_rms(history))[0], weights(_drawn(_rms(history))[0]))


def _importance_probes() -> Probes:
    """Give losses that fall with t, as the bound's do, and vary at each step."""
    sizes = [5 / torch.arange(1, n + 1, dtype=torch.float64)[:, None] for n in (8, 20)]
    return [(size * normals(len(size), len(size), 10).exp(),) for size in sizes]


IMPORTANCE = Exercise(
    "05.4",
    "draw where losses are large and weigh by 1 / (T p): the mean stays, its noise shrinks.",
    lambda history: _drawn(_rms(history)),
    _importance_probes,
    (
        Mistake(
            "mean of the losses",
            "p is proportional to the root mean square, which also counts how much a loss varies.",
            lambda history: _drawn(history.mean(1)),
        ),
        Mistake(
            "root missing",
            "take the root of the mean square: p goes with a loss's size, not with its square.",
            lambda history: _drawn(history.square().mean(1)),
        ),
        Mistake(
            "spread about the mean",
            "the mean square is not the variance: do not subtract the mean first.",
            lambda history: _drawn(history.std(1)),
        ),
        Mistake(
            "wrong axis",
            "average over the ten losses of a step, axis 1: each step has one probability.",
            lambda history: _drawn(_rms(history.T)),
        ),
        Mistake(
            "a uniform share",
            "p is proportional to the root mean square alone: add no uniform share to it.",
            lambda h: _drawn(0.999 * _rms(h) + 0.001 * _rms(h).mean()),
        ),
        Mistake(
            "weights rescaled",
            "leave the weights as they are: divided by their largest, they shrink the mean.",
            _weighed(lambda p: p.min() / p),
        ),
        Mistake(
            "weights of mean 1",
            "leave the weights as they are: their mean over the draws is 1, not over the steps.",
            _weighed(lambda p: (1 / p) / (1 / p).mean()),
        ),
        Mistake(
            "probabilities that do not sum to 1",
            "divide the sizes by their sum: probabilities add up to 1.",
            lambda history: (_rms(history), _drawn(_rms(history))[1]),
        ),
        Mistake(
            "T forgotten in the weights",
            "1 / p_t would give the sum over the steps: for their mean divide by T as well.",
            _weighed(lambda p: 1 / p),
        ),
    ),
)


def _respace_truth(bars: Tensor, steps: Tensor) -> Pair:
    kept = bars[steps - 1]
    return 1 - kept / _before(kept), _tildes(kept)


def _picked(bars: Tensor, steps: Tensor) -> Tensor:
    return (1 - bars / _before(bars))[steps - 1]


def _neighbour(bars: Tensor, steps: Tensor) -> Pair:
    betas, _ = _respace_truth(bars, steps)
    return betas, ((1 - _before(bars)) / (1 - bars))[steps - 1] * betas


def _filled(bars: Tensor, steps: Tensor) -> Pair:
    betas, tildes = _respace_truth(bars, steps)
    return betas, torch.cat([tildes[1:2], tildes[1:]])


def _respace_probes() -> Probes:
    short = ([3, 12, 21, 39], [2, 10, 20, 30, 38])  # of T, where an index off by one would raise
    return [
        (_bars(betas), torch.tensor(steps))
        for betas, steps in zip(_schedules(40), short, strict=True)
    ]


RESPACE = Exercise(
    "05.5",
    "a chain may skip steps if its betas are those of the strides: each alpha_bar stays.",
    _respace_truth,
    _respace_probes,
    (
        Mistake(
            "the long chain's betas",
            "a stride adds more noise than one step: divide by alpha_bar of the step kept before.",
            lambda *given: (_picked(*given), _tildes(_bars(_picked(*given)))),
        ),
        Mistake(
            "both tables picked",
            "rows of the long chain's tables are steps of one: make new tables for the strides.",
            lambda bars, steps: (_picked(bars, steps), _tildes(bars)[steps - 1]),
        ),
        Mistake(
            "ratio forgotten",
            "1 - alpha_bar_s is the noise of all s steps, not that of the last stride.",
            lambda bars, steps: (1 - bars[steps - 1], 1 - _before(bars[steps - 1])),
        ),
        Mistake(
            "index off by one",
            "steps count from 1 and tables from 0: step s stands at index s - 1.",
            lambda bars, steps: _respace_truth(bars, steps + 1),
        ),
        Mistake(
            "first stride lost",
            "the first stride starts at step 0, where alpha_bar is 1: put it in front.",
            lambda bars, steps: tuple(table[1:] for table in _respace_truth(bars, steps)),
        ),
        Mistake(
            "long chain's neighbour in beta_tilde",
            "beta_tilde, too, looks back to the step kept before, not to s - 1.",
            _neighbour,
        ),
        Mistake(
            "first beta_tilde filled in",
            "the first beta_tilde is 0, for x_0 is known: only its logarithm needs a substitute.",
            _filled,
        ),
    ),
)

Shape = tuple[int, int, int]


def _bits_with(
    offset: Callable[[float], float], dims_of: Callable[[Shape], float] = math.prod
) -> Callable[[Tensor, Tensor, Shape], Pair]:
    """Return an answer that adds `offset`, of the dimensions, to the density's bits."""

    def bits(nats: Tensor, density_nats: Tensor, shape: Shape) -> Pair:
        dims = dims_of(shape)
        return bits_per_dim(nats, dims), bits_per_dim(density_nats, dims) + offset(dims)

    return bits


def _bin(dims: float) -> float:
    """Return what the width of a pixel's bin adds to each dimension, whatever their number."""
    return -math.log2(2 * HALF_BIN)


_bits_truth = _bits_with(_bin)


def _bits_probes() -> Probes:
    """Give about three bits of both: a density's are -4 before it meets the bins."""
    probes = []
    for k, shape in enumerate([(3, 8, 8), (3, 16, 12)]):
        nats = (3 + 0.3 * normals(k, 2, 4)) * math.prod(shape) * math.log(2)
        probes.append((nats[0], nats[1] - _bin(1) * math.prod(shape) * math.log(2), shape))
    return probes


BITS = Exercise(
    "05.6",
    "bits/dim is the cost of a lossless file: a density has none before a bin has a width.",
    _bits_truth,
    _bits_probes,
    (
        Mistake(
            "nats for bits",
            "that is in nats: divide by log 2, the nats in one bit.",
            lambda *given: tuple(math.log(2) * bits for bits in _bits_truth(*given)),
        ),
        Mistake(
            "bits added to nats",
            "the nats must become bits before anything is added: divide them by log 2.",
            _bits_with(_bin, lambda shape: math.prod(shape) / math.log(2)),
        ),
        Mistake(
            "channels forgotten",
            "every channel of every pixel is a dimension: divide by C H W.",
            _bits_with(_bin, lambda shape: shape[1] * shape[2]),
        ),
        Mistake(
            "scale forgotten",
            "a density is no probability: times the bin's width, 1 / 127.5, it becomes one.",
            _bits_with(lambda dims: 0.0),
        ),
        Mistake(
            "bin's width with the wrong sign",
            "a narrow bin holds less, so it costs more bits: add log2(127.5).",
            _bits_with(lambda dims: -_bin(dims)),
        ),
        Mistake(
            "eight bits",
            "the data run from -1 to 1, not from 0 to 1: a bin is 1 / 127.5 wide, not 1 / 256.",
            _bits_with(lambda dims: 8.0),
        ),
        Mistake(
            "seven bits",
            "255 gaps fill [-1, 1], so a bin is 1 / 127.5 wide: 1 / 128 is another scaling.",
            _bits_with(lambda dims: 7.0),
        ),
        Mistake(
            "bin of 1 / 255",
            "255 gaps fill an interval of length 2: a bin is 2 / 255 wide.",
            _bits_with(lambda dims: math.log2(255)),
        ),
        Mistake(
            "width in nats",
            "the bin's width, too, must be in bits: log2(127.5), not log(127.5).",
            _bits_with(lambda dims: math.log(127.5)),
        ),
        Mistake(
            "width counted once",
            "each dimension has its bin: log2(127.5) is added to every one, not to the image.",
            _bits_with(lambda dims: _bin(dims) / dims),
        ),
    ),
)

EXERCISES = (COSINE, VARIANCE, HYBRID, IMPORTANCE, RESPACE, BITS)
