"""Data sets: mixtures whose density is known, point sets for pictures, CIFAR-10."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from tutorial_lib.cifar10 import DataError, Images, cifar10, to_floats, to_pixels
from tutorial_lib.mixtures import GaussianMixture

__all__ = [
    "DataError",
    "Images",
    "checkerboard",
    "cifar10",
    "moons",
    "overlap3",
    "overlap3_classes",
    "spirals",
    "std8",
    "std8_classes",
    "to_floats",
    "to_pixels",
]


def std8() -> GaussianMixture:
    """Return the course's standard density: eight petals around the origin.

    Petal k lies at 45 k degrees, 1.35 out, twice as long (0.20) along the radius as across;
    the weights run 1:2:3:2:1:2:3:2. Its mean is 0, its entropy 0.940 nats.
    """
    angles = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
    weights = torch.tensor([1, 2, 3, 2, 1, 2, 3, 2], dtype=torch.float64)
    return _ellipses(weights, 1.35 * _direction(angles), angles, length=0.20, width=0.10)


def std8_classes() -> Tensor:
    """Return the class of each petal, (8,): 0 to 3, two neighbours a class."""
    return torch.arange(8) // 2


def overlap3() -> GaussianMixture:
    """Return three broad, crossing ellipses, one class each, that guidance must tell apart.

    A point of class 1 is recognised with probability 0.86 on average.
    """
    places = torch.tensor([90.0, 210.0, 330.0], dtype=torch.float64).deg2rad()
    turns = torch.tensor([15.0, 75.0, 150.0], dtype=torch.float64).deg2rad()
    weights = torch.tensor([0.40, 0.35, 0.25], dtype=torch.float64)
    return _ellipses(weights, 0.9 * _direction(places), turns, length=0.60, width=0.35)


def overlap3_classes() -> Tensor:
    """Return the class of each ellipse, (3,): its own number."""
    return torch.arange(3)


def _direction(angles: Tensor) -> Tensor:
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def _ellipses(
    weights: Tensor, means: Tensor, turns: Tensor, length: float, width: float
) -> GaussianMixture:
    """Return Gaussians with standard deviation `length` along angle `turns`, `width` across."""
    along, across = _direction(turns), _direction(turns + math.pi / 2)
    covariances = length**2 * along[:, :, None] * along[:, None, :]
    covariances = covariances + width**2 * across[:, :, None] * across[:, None, :]
    return GaussianMixture(weights, means, covariances)


def moons(n: int, *, noise: float = 0.05, generator: Generator) -> Tensor:
    """Draw `n` points (n, 2) of two interleaved half circles of radius 1, centred on 0."""
    upper = _uniform(n, generator=generator) < 0.5
    angle = math.pi * _uniform(n, generator=generator)
    arc = _direction(angle) - torch.tensor([0.5, 0.25], dtype=torch.float64)
    points = torch.where(upper[:, None], arc, -arc)
    return points + noise * _normal(n, generator=generator)


def spirals(n: int, *, noise: float = 0.03, generator: Generator) -> Tensor:
    """Draw `n` points (n, 2) of two spirals of one and a half turns that end at radius 1.5."""
    arm = math.pi * (_uniform(n, generator=generator) < 0.5).double()
    along = _uniform(n, generator=generator).sqrt()  # even along the arm: its length grows so
    points = 1.5 * along[:, None] * _direction(3 * math.pi * along + arm)
    return points + noise * _normal(n, generator=generator)


def checkerboard(n: int, *, generator: Generator) -> Tensor:
    """Draw `n` points (n, 2), uniform on the eight dark squares of a 4 x 4 board, side 4."""
    square = torch.randint(8, (n,), generator=generator)
    row, column = square // 2, square % 2 * 2 + square // 2 % 2
    corner = torch.stack([column, row], dim=-1).double() - 2
    return corner + torch.rand(n, 2, generator=generator, dtype=torch.float64)


def _uniform(n: int, *, generator: Generator) -> Tensor:
    return torch.rand(n, generator=generator, dtype=torch.float64)


def _normal(n: int, *, generator: Generator) -> Tensor:
    return torch.randn(n, 2, generator=generator, dtype=torch.float64)
