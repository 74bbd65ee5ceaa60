"""Gaussian mixtures, the course's ground truth, against scipy, autograd, mpmath and sampling."""

import mpmath
import numpy as np
import pytest
import torch
from truths import (
    MIXTURES,
    every_mixture,
    gap,
    generator,
    normal,
    pair,
    relative,
    scipy_parts,
    standard_errors,
    torch_score,
    variants,
)

from tutorial_lib.mixtures import GaussianMixture


def points(mixture, n=40):
    return mixture.mean + 2 * normal(n, mixture.dim, seed=4)


def rounding(mixture) -> float:
    """Error to expect of a covariance's inverse: machine precision times its condition number."""
    return 1e-13 * float(torch.linalg.cond(mixture.covariances).max())


def exact_log_prob_and_score(mixture, x):
    """Log density and score at one point in 50 digits, where nothing underflows."""
    density, slope = mpmath.mpf(0), mpmath.zeros(mixture.dim, 1)
    parts = zip(mixture.weights, mixture.means, mixture.covariances, strict=True)
    for weight, mean, covariance in parts:
        covariance = mpmath.matrix(covariance.tolist())
        shift = mpmath.matrix(x.tolist()) - mpmath.matrix(mean.tolist())
        pull = -(covariance**-1) * shift
        part = weight.item() * mpmath.exp((shift.T * pull)[0] / 2)
        part /= mpmath.sqrt(mpmath.det(2 * mpmath.pi * covariance))
        density, slope = density + part, slope + part * pull
    return mpmath.log(density), slope / density


@every_mixture
def test_log_prob_and_classify_are_scipys(mixture):
    x = points(mixture)
    parts = scipy_parts(mixture, x)
    assert relative(mixture.log_prob(x), parts.logsumexp(-1)) < rounding(mixture)
    assert gap(mixture.classify(x), parts.softmax(-1)) < 100 * rounding(mixture)  # logs to 100
    for k in range(len(mixture.weights)):
        alone = parts[:, k] - mixture.weights[k].log()
        assert relative(mixture.component(k).log_prob(x), alone) < rounding(mixture)
        assert relative(mixture.component(k - len(mixture.weights)).log_prob(x), alone) < 1e-9


@every_mixture
def test_score_is_the_gradient(mixture):
    x = points(mixture)
    assert gap(mixture.score(x), torch_score(mixture, x)) < rounding(mixture)
    steps = 1e-5 * torch.eye(mixture.dim).double()
    numeric = [(mixture.log_prob(x + h) - mixture.log_prob(x - h)) / 2e-5 for h in steps]
    assert gap(mixture.score(x), torch.stack(numeric, -1)) < 1e-5  # central: h^2, and rounding


@variants(
    sign_flipped=lambda mixture, x: -mixture.score(x),
    covariance_not_inverted=lambda mixture, x: (
        mixture.classify(x)[..., None]
        * (mixture.covariances @ (mixture.means - x[:, None])[..., None])[..., 0]
    ).sum(1),
    prior_weights=lambda mixture, x: sum(
        w * mixture.component(k).score(x) for k, w in enumerate(mixture.weights)
    ),
)
def test_wrong_scores_fail(wrong):
    assert gap(wrong(pair(), points(pair())), torch_score(pair(), points(pair()))) > 0.1


@every_mixture
@pytest.mark.parametrize("distance", [50, 1e4])
def test_far_from_the_data_nothing_underflows(mixture, distance):
    away = torch.nn.functional.normalize(normal(6, mixture.dim, seed=6), dim=1)
    x = mixture.mean + distance * mixture.covariance.diagonal().sqrt() * away
    exact = [exact_log_prob_and_score(mixture, row) for row in x]
    scores = torch.tensor([list(map(float, score)) for _, score in exact], dtype=torch.float64)
    assert relative(mixture.log_prob(x), [log_prob for log_prob, _ in exact]) < rounding(mixture)
    assert gap(mixture.score(x), scores) < rounding(mixture)
    assert not scipy_parts(mixture, x).exp().any()  # here a density that is not logged is 0


@every_mixture
def test_any_leading_shape(mixture):
    x = points(mixture, n=12)
    block = x.reshape(3, 2, 2, mixture.dim)
    for method in (mixture.log_prob, mixture.score, mixture.classify):
        assert method(block).shape[:3] == (3, 2, 2)
        assert relative(method(block).flatten(0, 2), method(x)) < rounding(mixture)
        assert relative(method(x[5]), method(x)[5]) < rounding(mixture)


def test_a_batch_of_mixtures_is_a_loop():
    x, means = points(pair(), n=5), pair().means + normal(5, 1, 2)
    batch = GaussianMixture(normal(5, 2).exp(), means, pair().covariances)
    for i in range(5):
        alone = GaussianMixture(batch.weights[i], means[i], pair().covariances)
        assert relative(batch.log_prob(x)[i], alone.log_prob(x[i])) < 1e-12
        assert relative(batch.score(x)[i], alone.score(x[i])) < 1e-12
        assert relative(batch.mean[i], alone.mean) < 1e-12
        assert relative(batch.covariance[i], alone.covariance) < 1e-12


def square(x):
    """The outer product of every row with itself, (n, D, D)."""
    return x[:, :, None] * x[:, None]


@every_mixture
def test_sample_moments(mixture):
    drawn, labels = mixture.sample_with_labels(40000, generator=generator(1))
    assert torch.equal(mixture.sample(40000, generator=generator(1)), drawn)
    assert standard_errors(drawn, mixture.mean) < 6
    assert standard_errors(square(drawn - mixture.mean), mixture.covariance) < 6
    for k, weight in enumerate(mixture.weights):
        assert (
            abs((labels == k).double().mean() - weight)
            <= 6 * (weight * (1 - weight) / 40000) ** 0.5
        )
        own = (drawn - mixture.means[k])[labels == k]
        assert standard_errors(own, 0.0) < 6
        assert standard_errors(square(own), mixture.covariances[k]) < 6


def test_sample_moments_notice_transposed_axes():
    mixture, axes = MIXTURES["needle"].component(1), MIXTURES["needle"]._axes[1]
    drawn = mixture.sample(40000, generator=generator(1)) - mixture.mean
    assert standard_errors(square(drawn @ axes @ axes), mixture.covariance) > 6


def test_mean_and_covariance_are_sums_over_a_grid():
    x = torch.cartesian_prod(
        *(torch.arange(-n, n + 1, dtype=torch.float64) / 40 for n in (240, 160))
    )
    mass = scipy_parts(pair(), x).logsumexp(-1).softmax(0)
    assert relative(pair().mean, mass @ x) < 1e-10
    centred = x - mass @ x
    assert relative(pair().covariance, (mass[:, None] * centred).T @ centred) < 1e-10


@pytest.mark.parametrize(
    "arguments, message",
    [
        (([1.0], np.zeros((2, 2)), np.eye(2)[None]), r"weights \(1,\), means \(2, 2\)"),
        (([1.0], np.zeros((1, 2)), np.eye(2)), r"covariances \(2, 2\) must be"),
        (([0.0, 1.0], np.zeros((2, 2)), np.stack([np.eye(2)] * 2)), "weights must be positive"),
        (([1.0], np.zeros((1, 2)), np.diag([1.0, -1.0])[None]), "positive definite"),
    ],
)
def test_user_errors_say_what_was_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(*arguments)
