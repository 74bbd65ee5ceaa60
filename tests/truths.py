"""Problems with exact answers: every algorithm of the package runs on all of them."""

import torch

from tutorial_lib.learned_schedule import LearnedVP
from tutorial_lib.mixtures import GaussianMixture
from tutorial_lib.schedule import VE, CosineVP, DiscreteVP, LinearVP, SubVP

SCHEDULES = {
    "linear": LinearVP(),
    "cosine": CosineVP(),
    "discrete linear": DiscreteVP.linear(1000),
    "discrete cosine": DiscreteVP.cosine(1000),
    "sub-VP": SubVP(),
    "VE": VE(),
    "learned": LearnedVP(5.0, -5.0, generator=torch.Generator().manual_seed(3)),
}


def gaussian(dim: int = 2, std: float = 0.5) -> GaussianMixture:
    """One isotropic Gaussian, off centre."""
    covariance = std**2 * torch.eye(dim, dtype=torch.float64)
    return GaussianMixture([1.0], [[0.7] + [-0.2] * (dim - 1)], covariance[None])


def pair() -> GaussianMixture:
    """Two correlated Gaussians of unequal weight and shape."""
    covariances = [[[0.30, 0.12], [0.12, 0.08]], [[0.05, -0.02], [-0.02, 0.20]]]
    return GaussianMixture([0.7, 0.3], [[-1.0, 0.3], [1.2, -0.4]], covariances)


MIXTURES = {"gaussian": gaussian(), "pair": pair(), "3-D": gaussian(dim=3)}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
