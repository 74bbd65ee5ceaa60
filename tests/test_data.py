"""The toy densities have the recorded moments; the point sets lie where they say."""

import math

import pytest
import torch
import truths

from tutorial_lib.data import (
    checkerboard,
    moons,
    overlap3,
    overlap3_classes,
    spirals,
    std8,
    std8_classes,
)
from tutorial_lib.mixtures import GaussianMixture


def integral(mixture: GaussianMixture, function) -> float:
    """E function(x), by the midpoint rule on a square that holds all but 1e-9 of the mass."""
    side = torch.linspace(-4.5, 4.5, 226, dtype=torch.float64)
    points = torch.cartesian_prod(side, side)
    density = mixture.log_prob(points).exp() * (side[1] - side[0]) ** 2
    assert float(density.sum()) == pytest.approx(1, abs=1e-8)
    return float((density * function(points)).sum())


def turned(mixture: GaussianMixture) -> GaussianMixture:
    """The wrong variant: every ellipse turned by 90 degrees."""
    quarter = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    return GaussianMixture(
        mixture.weights, mixture.means, quarter @ mixture.covariances @ quarter.T
    )


def test_std8_has_the_recorded_moments():
    torch.testing.assert_close(std8().mean, torch.zeros(2, dtype=torch.float64))
    covariance = std8().covariance
    assert covariance.diagonal().tolist() == pytest.approx([0.705, 1.168], abs=5e-4)
    assert float(covariance[0, 1]) == pytest.approx(0, abs=1e-15)
    entropy = integral(std8(), lambda x: -std8().log_prob(x))
    assert entropy == pytest.approx(0.9399, abs=1e-4)  # recorded from 400,000 draws
    wrong = turned(std8())
    assert wrong.covariance.diagonal().tolist() != pytest.approx([0.705, 1.168], abs=5e-4)
    assert integral(wrong, lambda x: -wrong.log_prob(x)) != pytest.approx(0.9399, abs=1e-4)


def test_std8_petals():
    mixture = std8()
    assert (16 * mixture.weights).tolist() == pytest.approx([1, 2, 3, 2, 1, 2, 3, 2])
    for mean, covariance in zip(mixture.means, mixture.covariances, strict=True):
        radius = mean.norm()
        assert float(radius) == pytest.approx(1.35)
        torch.testing.assert_close(covariance @ mean, 0.20**2 * mean)  # radial axis
        assert float(covariance.det()) == pytest.approx((0.20 * 0.10) ** 2)


def test_std8_classes_are_pairs_of_neighbours():
    means, classes = std8().means, std8_classes()
    assert torch.bincount(classes).tolist() == [2, 2, 2, 2]
    for k in range(4):
        first, second = means[classes == k]
        assert float(first @ second) / 1.35**2 == pytest.approx(math.cos(math.pi / 4))


def test_overlap3_has_the_recorded_overlap():
    def recognised(mixture: GaussianMixture) -> float:
        return integral(mixture.component(1), lambda x: mixture.classify(x)[:, 1])

    assert recognised(overlap3()) == pytest.approx(0.861, abs=1e-3)
    assert recognised(turned(overlap3())) != pytest.approx(0.861, abs=0.01)
    assert overlap3().weights.tolist() == pytest.approx([0.40, 0.35, 0.25])
    assert overlap3_classes().tolist() == [0, 1, 2]
    assert overlap3().means.norm(dim=1).tolist() == pytest.approx([0.9] * 3)
    for axes in torch.linalg.eigvalsh(overlap3().covariances).sqrt():
        assert axes.tolist() == pytest.approx([0.35, 0.60])


def test_moons_lie_on_two_half_circles():
    points = moons(2000, noise=0.0, generator=truths.generator())
    centres = torch.tensor([[-0.5, -0.25], [0.5, 0.25]], dtype=torch.float64)
    upper, lower = (points - c for c in centres)
    on_upper = (upper.norm(dim=1) - 1).abs() < 1e-12
    on_lower = (lower.norm(dim=1) - 1).abs() < 1e-12
    assert bool((on_upper & (upper[:, 1] >= 0) | on_lower & (lower[:, 1] <= 0)).all())
    assert abs(int(on_upper.sum()) - 1000) < 6 * math.sqrt(500)


def test_spirals_wind_one_and_a_half_turns():
    points = spirals(2000, noise=0.0, generator=truths.generator())
    radius = points.norm(dim=1)
    unwound = torch.atan2(points[:, 1], points[:, 0]) - 2 * math.pi * radius
    # an arm starts at angle 0 or pi, so twice the unwound angle is a whole number of turns
    assert float((2 * unwound).cos().min()) > 1 - 1e-9
    assert float(radius.max()) == pytest.approx(1.5, abs=0.01)
    assert truths.standard_errors((radius / 1.5) ** 2, 0.5) < 6  # as even as the arm is long
    assert abs(int((unwound.cos() > 0).sum()) - 1000) < 6 * math.sqrt(500)


def test_checkerboard_fills_its_eight_dark_squares_evenly():
    points = checkerboard(8000, generator=truths.generator())
    square = points.floor().long()
    assert bool((square.sum(1) % 2 == 0).all())
    counts = torch.bincount((square[:, 0] + 2) * 4 + square[:, 1] + 2, minlength=16)
    counts = counts[counts > 0].double()
    assert len(counts) == 8
    assert float((counts - 1000).abs().max()) < 6 * math.sqrt(1000 * 7 / 8)
    assert truths.standard_errors(points - square, 0.5) < 6


@pytest.mark.parametrize("draw", [moons, spirals, checkerboard])
def test_point_sets_follow_their_generator_alone(draw):
    before = torch.get_rng_state()
    first, again = (draw(50, generator=truths.generator(7)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert first.shape == (50, 2)
    assert first.dtype == torch.float64
    assert not torch.equal(first, draw(50, generator=truths.generator(8)))
