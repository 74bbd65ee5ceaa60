"""Gaussians against scipy: densities point by point, entropy and KL by quadrature."""

import numpy as np
import pytest
import torch
from scipy.stats import norm
from truths import generator, normal, relative, standard_errors

from tutorial_lib.gaussian import Gaussian

SIZES = {  # of mean and variance
    "number": ((4, 3), ()),
    "row": ((4, 3), (1, 3)),
    "column": ((4, 3), (4, 1)),
    "full": ((4, 3), (4, 3)),
    "image": ((2, 3, 4, 4), (2, 1, 1, 1)),
    "flat": ((5,), (5,)),
}
every_size = pytest.mark.parametrize("name", SIZES)


def example(name: str, seed: int = 0) -> Gaussian:
    """A Gaussian whose variance broadcasts in the way that `name` says."""
    mean, variance = SIZES[name]
    variance = (0.5 * normal(*variance, seed=seed + 9)).exp()
    return Gaussian(normal(*mean, seed=seed), variance if variance.ndim else variance.item())


def frozen(gaussian: Gaussian):
    """The same law in scipy, with axes (B, numbers in a row)."""
    rows = len(gaussian.mean)
    std = (torch.zeros_like(gaussian.mean) + gaussian.variance).sqrt()
    return norm(gaussian.mean.reshape(rows, -1), std.reshape(rows, -1))


def kl_by_quadrature(p, q) -> torch.Tensor:
    z = np.linspace(-12, 12, 2001)[:, None, None]  # the trapezoid rule is exact on such bells
    x = p.mean() + p.std() * z
    gap = p.pdf(x) * (p.logpdf(x) - q.logpdf(x))
    return torch.from_numpy((np.trapezoid(gap, z, axis=0) * p.std()).sum(1))


@every_size
def test_log_prob_is_scipys(name):
    gaussian, x = example(name), 3 * normal(*SIZES[name][0], seed=5)
    exact = torch.from_numpy(frozen(gaussian).logpdf(x.reshape(len(x), -1)).sum(1))
    assert relative(gaussian.log_prob(x), exact) < 1e-13
    squared = Gaussian(gaussian.mean, gaussian.variance**2)
    assert relative(squared.log_prob(x), exact) > 0.01  # the variant: variance for std


@every_size
def test_entropy_is_scipys(name):
    exact = torch.from_numpy(frozen(example(name)).entropy().sum(1))
    assert relative(example(name).entropy(), exact) < 1e-13


@every_size
def test_kl_is_the_integral(name):
    p, q = example(name, seed=1), example(name, seed=2)
    exact = kl_by_quadrature(frozen(p), frozen(q))
    assert relative(p.kl(q), exact) < 1e-12
    assert not p.kl(p).any()
    half = torch.full_like(exact, 0.5)
    for wrong in (q.kl(p), p.kl(q) / half, p.kl(Gaussian(p.mean, q.variance))):
        assert relative(wrong, exact) > 0.01  # other direction, missing 1/2, means left out


@every_size
def test_samples_are_mean_plus_std_times_noise(name):
    gaussian, noise = example(name), normal(*SIZES[name][0], seed=7)
    drawn = gaussian.sample(generator=generator(7))
    exact = gaussian.mean + gaussian.variance**0.5 * noise
    assert relative(drawn, exact) < 1e-15
    assert relative(gaussian.mean + gaussian.variance * noise, exact) > 0.01


def test_sample_moments():
    gaussian = Gaussian(torch.tensor([[1.0, -2.0]]).double().expand(20000, 2), 0.3)
    drawn = gaussian.sample(generator=generator(1))
    assert standard_errors(drawn, gaussian.mean[0]) < 6
    assert standard_errors((drawn - gaussian.mean) ** 2, 0.3) < 6
    assert standard_errors(drawn.prod(1), -2.0) < 6  # the axes are independent
    assert standard_errors((drawn - gaussian.mean) ** 2, 0.3**0.5) > 6


def test_gradients_flow_through_samples():
    mean, variance = normal(4, 2).requires_grad_(), normal(4, 2, seed=3).exp().requires_grad_()
    drawn = Gaussian(mean, variance).sample(generator=generator(2))
    drawn.sum().backward()
    noise = normal(4, 2, seed=2)
    assert relative(mean.grad, torch.ones(4, 2).double()) == 0
    assert relative(variance.grad, noise / (2 * variance.detach().sqrt())) < 1e-14
