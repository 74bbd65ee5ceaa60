"""The exercises of notebook 01: one bound, from VAE to diffusion."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tutorial_lib.denoiser import Prediction
from tutorial_lib.exercises import Exercise, Mistake
from tutorial_lib.exercises.probes import Probes, normals
from tutorial_lib.gaussian import Gaussian
from tutorial_lib.mixtures import GaussianMixture
from tutorial_lib.schedule import DiscreteVP, Level


def _kl_probes() -> Probes:
    means, stds = normals(0, 4, 5, 3), 0.3 + normals(1, 4, 5, 3).abs()
    return [(means[0], stds[0], means[1], stds[1]), (means[2], stds[2], means[3], stds[3])]


def _kl_truth(mean_q: Tensor, std_q: Tensor, mean_p: Tensor, std_p: Tensor) -> Tensor:
    return Gaussian(mean_q, std_q**2).kl(Gaussian(mean_p, std_p**2))


def _kl_terms(q: Tensor, a: Tensor, p: Tensor, b: Tensor) -> Tensor:
    return (b / a).log() + (a**2 + (q - p) ** 2) / (2 * b**2) - 0.5


KL = Exercise(
    "01.1",
    "one formula prices every step of a diffusion chain, and swapping its arguments changes it.",
    _kl_truth,
    _kl_probes,
    (
        Mistake(
            "arguments swapped",
            "this is KL(p || q): the average is taken under the first argument, q.",
            lambda q, a, p, b: _kl_truth(p, b, q, a),
        ),
        Mistake(
            "half missing",
            "every term of the exponent carries a factor 1/2; yours is missing.",
            lambda q, a, p, b: 2 * _kl_truth(q, a, p, b),
        ),
        Mistake(
            "variance for std",
            "the arguments are standard deviations: square them where a variance is meant.",
            lambda q, a, p, b: _kl_truth(q, a.sqrt(), p, b.sqrt()),
        ),
        Mistake(
            "log ratio upside down",
            "the logarithm is log(std_p / std_q), not the other way up.",
            lambda q, a, p, b: (_kl_terms(q, a, p, b) - 2 * (b / a).log()).sum(1),
        ),
        Mistake(
            "log ratio twice",
            "log(std_p / std_q) is already half the log of the variances' ratio: count it once.",
            lambda q, a, p, b: (_kl_terms(q, a, p, b) + (b / a).log()).sum(1),
        ),
        Mistake(
            "mean over dimensions",
            "sum over the dimensions: independent coordinates add their divergences.",
            lambda q, a, p, b: _kl_terms(q, a, p, b).mean(1),
        ),
        Mistake(
            "minus one forgotten",
            "a divergence from itself must be 0: the 1/2 per dimension is not subtracted.",
            lambda q, a, p, b: (_kl_terms(q, a, p, b) + 0.5).sum(1),
        ),
    ),
)


def _weights_probes() -> Probes:
    joint, guess = normals(2, 6, 4) * 3 - 5, normals(3, 6, 4)
    return [(joint, guess), (joint - 2000, guess)]


def _weights_truth(log_joint: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    ratio = log_joint - log_q
    return ratio.mean(0), ratio.logsumexp(0) - math.log(len(ratio))


BOUNDS = Exercise(
    "01.2",
    "the mean of the logs is the ELBO, the log of the mean is closer to log p(x): that is Jensen.",
    _weights_truth,
    _weights_probes,
    (
        Mistake(
            "order swapped",
            "first the ELBO (mean of the logs), then the estimate of log p(x) (log of the mean).",
            lambda j, q: _weights_truth(j, q)[::-1],
        ),
        Mistake(
            "sum for mean",
            "logsumexp is the log of a sum: subtract log K to make it the log of a mean.",
            lambda j, q: ((j - q).mean(0), (j - q).logsumexp(0)),
        ),
        Mistake(
            "underflow",
            "exp underflows where log p(x, z) is very negative: use torch.logsumexp.",
            lambda j, q: ((j - q).mean(0), (j - q).exp().mean(0).log()),
        ),
        Mistake(
            "q forgotten",
            "divide by q(z | x): without it the draws are not corrected for where you looked.",
            lambda j, q: _weights_truth(j, torch.zeros_like(q)),
        ),
        Mistake(
            "q multiplied",
            "the ratio is p(x, z) / q(z | x): subtract log q, do not add it.",
            lambda j, q: _weights_truth(j, -q),
        ),
        Mistake(
            "averaged over points",
            "average over the K draws (axis 0), not over the B data points.",
            lambda j, q: ((j - q).mean(1), (j - q).logsumexp(1) - math.log(j.shape[1])),
        ),
    ),
)


def _noising_probes() -> Probes:
    betas = torch.linspace(1e-3, 0.2, 20, dtype=torch.float64)
    steps = torch.tensor([1, 2, 7, 19])  # short of T, where an index off by one would raise
    return [(normals(4, 4, 2), betas, steps, normals(5, 4, 2))]


def _noising_truth(x0: Tensor, betas: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    return DiscreteVP(betas).add_noise(x0, eps, t / len(betas))


def _mix(kept: Tensor, x0: Tensor, eps: Tensor) -> Tensor:
    return kept[:, None].sqrt() * x0 + (1 - kept)[:, None].sqrt() * eps


def _bar(betas: Tensor) -> Tensor:
    return torch.cumprod(1 - betas, 0)


NOISING = Exercise(
    "01.3",
    "training needs no chain: any noise level is one jump away, with its own t for every row.",
    _noising_truth,
    _noising_probes,
    (
        Mistake(
            "alpha for alpha_bar",
            "1 - beta_t is one step's alpha: multiply all of them up to t (torch.cumprod).",
            lambda x, betas, t, e: _mix((1 - betas)[t - 1], x, e),
        ),
        Mistake(
            "off by one, late",
            "off by one: steps run from 1, so alpha_bar_t stands at index t - 1 of the cumprod.",
            lambda x, betas, t, e: _mix(_bar(betas)[t], x, e),
        ),
        Mistake(
            "off by one, early",
            "off by one: this is alpha_bar_{t-1}; step 1 must already add noise.",
            lambda x, betas, t, e: _mix(torch.cat([torch.ones(1), _bar(betas)])[t - 1], x, e),
        ),
        Mistake(
            "noise not rooted",
            "1 - alpha_bar is the noise's variance: multiply eps by its square root.",
            lambda x, betas, t, e: (
                _bar(betas)[t - 1, None].sqrt() * x + (1 - _bar(betas)[t - 1, None]) * e
            ),
        ),
        Mistake(
            "signal not rooted",
            "the data are scaled by sqrt(alpha_bar), not by alpha_bar.",
            lambda x, betas, t, e: (
                _bar(betas)[t - 1, None] * x + (1 - _bar(betas)[t - 1, None]).sqrt() * e
            ),
        ),
        Mistake(
            "no second axis",
            "every row has its own alpha_bar: give it a second axis, [:, None].",
            lambda x, betas, t, e: (
                _bar(betas)[t - 1].sqrt() * x + (1 - _bar(betas)[t - 1]).sqrt() * e
            ),
        ),
        Mistake(
            "roles swapped",
            "signal and noise are swapped: at small t almost all of x_0 is kept.",
            lambda x, betas, t, e: _mix(1 - _bar(betas)[t - 1], x, e),
        ),
    ),
)


def _stride_probes() -> Probes:
    bars = [(0.9, 0.5), (0.7, 0.1), (0.999, 0.998)]
    tensors = [tuple(torch.tensor(b, dtype=torch.float64) for b in pair) for pair in bars]
    return [(normals(6, 3, 2), normals(7, 3, 2), *pair) for pair in tensors]


def _stride_truth(x0: Tensor, xt: Tensor, bar_s: Tensor, bar_t: Tensor) -> tuple[Tensor, Tensor]:
    """Condition the joint Gaussian of (x_s, x_t) given x_0 on x_t (Bishop 2006, eq. 2.81-2.82)."""
    covariance = (bar_t / bar_s).sqrt() * (1 - bar_s)
    gain = covariance / (1 - bar_t)
    mean = bar_s.sqrt() * x0 + gain * (xt - bar_t.sqrt() * x0)
    return mean, 1 - bar_s - gain * covariance


def _with_variance(variance: Any) -> Any:
    return lambda x0, xt, s, t: (_stride_truth(x0, xt, s, t)[0], variance(x0, xt, s, t))


STRIDE = Exercise(
    "01.4",
    "with the right alpha, t / s, the formula of one step serves any stride: samplers may skip.",
    _stride_truth,
    _stride_probes,
    (
        Mistake(
            "weights swapped",
            "the weights are swapped: sqrt(alpha) (1 - alpha_bar_s) belongs to x_t.",
            lambda x0, xt, s, t: _stride_truth(xt, x0, s, t),
        ),
        Mistake(
            "forward variance",
            "1 - alpha_bar_t / alpha_bar_s is the forward step's variance: x_0 tells more.",
            _with_variance(lambda x0, xt, s, t: 1 - t / s),
        ),
        Mistake(
            "std for variance",
            "return the variance, not its square root.",
            _with_variance(lambda x0, xt, s, t: _stride_truth(x0, xt, s, t)[1].sqrt()),
        ),
        Mistake(
            "alpha_bar for alpha",
            "alpha is what this stride keeps, alpha_bar_t / alpha_bar_s, not alpha_bar_t.",
            lambda x0, xt, s, t: (
                (t.sqrt() * (1 - s) * xt + s.sqrt() * (1 - t) * x0) / (1 - t),
                (1 - t) * (1 - s) / (1 - t),
            ),
        ),
        Mistake(
            "weights not rooted",
            "both weights have square roots: sqrt(alpha) for x_t, sqrt(alpha_bar_s) for x_0.",
            lambda x0, xt, s, t: (
                (t / s * (1 - s) * xt + s * (1 - t / s) * x0) / (1 - t),
                _stride_truth(x0, xt, s, t)[1],
            ),
        ),
        Mistake(
            "x_0 not scaled",
            "x_0 comes with a factor sqrt(alpha_bar_s): the target is x_s, which has shrunk.",
            lambda x0, xt, s, t: (
                ((t / s).sqrt() * (1 - s) * xt + (1 - t / s) * x0) / (1 - t),
                _stride_truth(x0, xt, s, t)[1],
            ),
        ),
    ),
)


def _tweedie_mixture() -> GaussianMixture:
    covariances = [[[0.30, 0.12], [0.12, 0.08]], [[0.05, -0.02], [-0.02, 0.20]]]
    return GaussianMixture([0.7, 0.3], [[-1.0, 0.3], [1.2, -0.4]], covariances)


def _tweedie_probes() -> Probes:
    probes = []
    for k, bar in enumerate((0.9, 0.4)):
        kept = torch.tensor(bar, dtype=torch.float64)
        xt = normals(8 + k, 4, 2)
        noisy = _tweedie_mixture().diffuse(Level(kept.sqrt(), (1 - kept).sqrt()))
        rows = [torch.autograd.functional.hessian(noisy.log_prob, x) for x in xt]
        probes.append((xt, noisy.score(xt), torch.stack(rows), kept))
    return probes


def _tweedie_truth(
    xt: Tensor, score: Tensor, hessian: Tensor, bar: Tensor
) -> tuple[Tensor, Tensor]:
    """Ask the mixture itself, which needs neither score nor Hessian."""
    level = Level(bar.sqrt(), (1 - bar).sqrt())
    posterior = _tweedie_mixture().posterior(xt, level)
    return posterior.mean, posterior.covariance


def _tweedie(sign: int, noise: Any, scale: Any, spread: Any) -> Any:
    def answer(xt: Tensor, score: Tensor, hessian: Tensor, bar: Tensor) -> tuple[Tensor, Tensor]:
        mean = (xt + sign * noise(1 - bar) * score) / scale(bar)
        return mean, spread(1 - bar, bar, hessian, torch.eye(2, dtype=torch.float64))

    return answer


def _right_spread(noise: Tensor, bar: Tensor, hessian: Tensor, eye: Tensor) -> Tensor:
    return noise / bar * (eye + noise * hessian)


TWEEDIE = Exercise(
    "01.6",
    "slope and curvature of the noisy log-density hold mean and covariance of what is hidden.",
    _tweedie_truth,
    _tweedie_probes,
    (
        Mistake(
            "score's sign",
            "the score points towards the data: add it, do not subtract it.",
            _tweedie(-1, lambda n: n, torch.sqrt, _right_spread),
        ),
        Mistake(
            "std for variance",
            "the score is scaled by the noise's variance 1 - alpha_bar, not by its square root.",
            _tweedie(1, torch.sqrt, torch.sqrt, _right_spread),
        ),
        Mistake(
            "still shrunk",
            "this is the mean of sqrt(alpha_bar) x_0: divide by sqrt(alpha_bar).",
            _tweedie(1, lambda n: n, torch.ones_like, _right_spread),
        ),
        Mistake(
            "covariance still shrunk",
            "the covariance of x_0 is that of sqrt(alpha_bar) x_0 divided by alpha_bar.",
            _tweedie(
                1,
                lambda n: n,
                torch.sqrt,
                lambda n, bar, h, eye: bar * _right_spread(n, bar, h, eye),
            ),
        ),
        Mistake(
            "Jacobian for covariance",
            "that is the Jacobian of the mean: times (1 - alpha_bar) / sqrt(alpha_bar) it is the "
            "covariance.",
            _tweedie(
                1, lambda n: n, torch.sqrt, lambda n, bar, h, eye: (eye + n * h) / bar.sqrt()
            ),
        ),
        Mistake(
            "one for identity",
            "1 + (1 - alpha_bar) Hessian adds 1 to every entry: add the identity matrix.",
            _tweedie(1, lambda n: n, torch.sqrt, lambda n, bar, h, eye: n / bar * (1 + n * h)),
        ),
        Mistake(
            "Hessian's sign",
            "where log q curves down we know more: the (negative) Hessian is added to I.",
            _tweedie(1, lambda n: n, torch.sqrt, lambda n, bar, h, eye: n / bar * (eye - n * h)),
        ),
        Mistake(
            "identity forgotten",
            "without curvature the covariance is (1 - alpha_bar) / alpha_bar I: I is missing.",
            _tweedie(1, lambda n: n, torch.sqrt, lambda n, bar, h, eye: n / bar * n * h),
        ),
    ),
)


def _cost_probes() -> Probes:
    bars = [(0.99, 0.9), (0.5, 0.3)]
    tensors = [tuple(torch.tensor(b, dtype=torch.float64) for b in pair) for pair in bars]
    return [(normals(10, 5, 3), normals(11, 5, 3), *pair) for pair in tensors]


def _snr(bar: Tensor) -> Tensor:
    return bar / (1 - bar)


def _cost_truth(eps: Tensor, eps_hat: Tensor, bar_s: Tensor, bar_t: Tensor) -> Tensor:
    """Go the long way: two posteriors and the KL between them."""
    level = Level(bar_t.sqrt(), (1 - bar_t).sqrt())
    x0 = torch.ones_like(eps)
    xt = level.alpha * x0 + level.sigma * eps
    guess = Prediction.from_eps(xt, level, eps_hat).x0
    mean, variance = _stride_truth(x0, xt, bar_s, bar_t)
    return Gaussian(mean, variance).kl(
        Gaussian(_stride_truth(guess, xt, bar_s, bar_t)[0], variance)
    )


def _cost(weight: Any, reduce: Any = lambda e: e.sum(1)) -> Any:
    return lambda eps, hat, s, t: weight(_snr(s), _snr(t)) * reduce((eps - hat) ** 2)


COST = Exercise(
    "01.5",
    "the bound weighs a noise error by the relative loss of SNR; DDPM's simple loss drops that.",
    _cost_truth,
    _cost_probes,
    (
        Mistake(
            "half missing",
            "the KL of two Gaussians has a factor 1/2.",
            _cost(lambda s, t: s / t - 1),
        ),
        Mistake(
            "weight of x_0",
            "SNR_s - SNR_t weighs an error in x_0; divide by SNR_t to weigh one in eps.",
            _cost(lambda s, t: 0.5 * (s - t)),
        ),
        Mistake(
            "alpha_bar for SNR",
            "alpha_bar_s / alpha_bar_t is no ratio of SNRs: SNR is alpha_bar / (1 - alpha_bar).",
            lambda eps, hat, s, t: 0.5 * (s / t - 1) * ((eps - hat) ** 2).sum(1),
        ),
        Mistake(
            "no weight",
            "the bare squared error is DDPM's simple loss; the bound weighs it by the SNR lost.",
            _cost(lambda s, t: torch.ones_like(s)),
        ),
        Mistake(
            "ratio upside down",
            "s is the cleaner end, so SNR_s / SNR_t > 1: upside down the cost is negative.",
            _cost(lambda s, t: 0.5 * (t / s - 1)),
        ),
        Mistake(
            "wrong end",
            "divide the loss of SNR by SNR_t, where the network looked, not by SNR_s.",
            _cost(lambda s, t: 0.5 * (s - t) / s),
        ),
        Mistake(
            "mean over dimensions",
            "sum the squared error over dimensions: nats of independent coordinates add.",
            _cost(lambda s, t: 0.5 * (s / t - 1), lambda e: e.mean(1)),
        ),
    ),
)

EXERCISES = (KL, BOUNDS, NOISING, STRIDE, COST, TWEEDIE)
