"""Problems with exact answers: every algorithm of the package runs on all of them."""

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

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
    "learned": LearnedVP(5.0, -5.0, generator=torch.Generator().manual_seed(3)).requires_grad_(
        False
    ),
}


def gaussian(dim: int = 2, std: float = 0.5) -> GaussianMixture:
    """One isotropic Gaussian, off centre."""
    covariance = std**2 * torch.eye(dim, dtype=torch.float64)
    return GaussianMixture([1.0], [[0.7] + [-0.2] * (dim - 1)], covariance[None])


def pair() -> GaussianMixture:
    """Two correlated Gaussians of unequal weight and shape."""
    covariances = [[[0.30, 0.12], [0.12, 0.08]], [[0.05, -0.02], [-0.02, 0.20]]]
    return GaussianMixture([0.7, 0.3], [[-1.0, 0.3], [1.2, -0.4]], covariances)


def needle() -> GaussianMixture:
    """Three components in 3-D, one of them 1000 times longer than it is wide."""
    turn, _ = torch.linalg.qr(
        torch.tensor([[1.0, 2, 0], [-1, 1, 1], [0.5, 0, 3]], dtype=torch.float64)
    )
    spreads = torch.tensor([[1.0, 1e-3, 1e-3], [0.2, 0.1, 0.3], [0.5, 0.5, 0.1]]).double() ** 2
    means = [[0.0, 0, 0], [1, -1, 0.5], [-1, 0.5, 1]]
    return GaussianMixture([0.2, 0.5, 0.3], means, turn @ torch.diag_embed(spreads) @ turn.mT)


MIXTURES = {"gaussian": gaussian(), "3-D": gaussian(dim=3), "pair": pair(), "needle": needle()}


every_schedule = pytest.mark.parametrize("name", SCHEDULES)
every_mixture = pytest.mark.parametrize("mixture", MIXTURES.values(), ids=MIXTURES)


def variants(**wrong):
    """Parametrise a test by named wrong variants, which the check must reject."""
    return pytest.mark.parametrize("wrong", wrong.values(), ids=wrong.keys())


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    """Standard normal noise in float64."""
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def relative(got: torch.Tensor, exact: list | torch.Tensor) -> float:
    """Largest |got - exact| / |exact|; where exact is 0 only 0 will do."""
    if not isinstance(exact, torch.Tensor):
        exact = torch.tensor([float(e) for e in exact], dtype=torch.float64)
    gap = (got - exact).abs()
    return float(torch.where(gap == 0, 0.0, gap / exact.abs()).max())


def gap(got: torch.Tensor, exact: torch.Tensor) -> float:
    """Largest error of a row, a vector or matrix, over that row's own largest entry."""
    error, size = ((a.flatten(1).abs().amax(1)) for a in (got - exact, exact))
    return float((error / size).max())


def standard_errors(draws: torch.Tensor, exact: torch.Tensor | float) -> float:
    """Distance of the mean over axis 0 from `exact`, in standard errors, at its largest."""
    error = draws.std(0) / len(draws) ** 0.5
    return float(((draws.mean(0) - exact).abs() / error).max())


# Gaussian mixtures by other hands: scipy's densities, and torch.distributions under autograd


def scipy_parts(mixture, x, alpha=1.0, sigma=0.0) -> torch.Tensor:
    """log weight_k N(x; alpha mean_k, alpha^2 covariance_k + sigma^2 I), (n, K)."""
    noise = sigma**2 * np.eye(mixture.dim)
    parts = zip(mixture.means.numpy(), mixture.covariances.numpy(), strict=True)
    logs = [multivariate_normal(alpha * m, alpha**2 * c + noise).logpdf(x) for m, c in parts]
    return mixture.weights.log() + torch.from_numpy(np.stack(logs, axis=-1))


def torch_log_prob(mixture, x, alpha=1.0, sigma=0.0) -> torch.Tensor:
    """log density of alpha x_0 + sigma eps, (n,)."""
    covariances = alpha**2 * mixture.covariances + sigma**2 * torch.eye(mixture.dim).double()
    parts = torch.distributions.MultivariateNormal(alpha * mixture.means, covariances)
    choice = torch.distributions.Categorical(mixture.weights)
    return torch.distributions.MixtureSameFamily(choice, parts).log_prob(x)


def torch_score(mixture, x, alpha=1.0, sigma=0.0) -> torch.Tensor:
    """Its gradient in x by autograd, (n, D)."""
    x = x.clone().requires_grad_()
    return torch.autograd.grad(torch_log_prob(mixture, x, alpha, sigma).sum(), x)[0]


def copy_blocks(ours, theirs):
    """Give the layers of PyTorch's transformer the weights of our blocks."""
    for mine, other in zip(ours.blocks, theirs.layers, strict=True):
        looking = mine.itself
        parts = (looking.query, looking.key, looking.value)
        other.self_attn.in_proj_weight.data = torch.cat([part.weight for part in parts])
        other.self_attn.in_proj_bias.data = torch.cat([part.bias for part in parts])
        other.self_attn.out_proj.load_state_dict(looking.out.state_dict())
        pairs = [(other.norm1, mine.norm1), (other.norm2, mine.norm2)]
        pairs += [(other.linear1, mine.alone[0]), (other.linear2, mine.alone[2])]
        for into, source in pairs:
            into.load_state_dict(source.state_dict())
