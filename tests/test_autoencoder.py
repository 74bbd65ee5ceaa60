"""Linear-Gaussian models give exact answers; every other VAE here is judged by them."""

import math

import pytest
import torch
from torch import nn

from tests.truths import generator
from tutorial_lib.autoencoder import (
    VAE,
    Conditional,
    DiscretisedLogistic,
    HierarchicalVAE,
    LinearGaussian,
    Stage,
    diagonal_gaussian,
    discretised_logistic,
    image_vae,
    point_vae,
)
from tutorial_lib.gaussian import Gaussian
from tutorial_lib.networks.convolutional import ResidualBlock
from tutorial_lib.train import TrainConfig, train

F64 = torch.float64


def randn(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=F64)


# Probabilistic PCA -----------------------------------------------------------------------------


def ppca(dim=5, latent=2):
    return LinearGaussian(randn(dim, latent, seed=7), randn(dim, seed=4), 0.3)


def any_encoder(n, latent=2):
    root = randn(n, latent, latent, seed=6)
    return randn(n, latent, seed=5), root @ root.mT + 0.1 * torch.eye(latent, dtype=F64)


def identity_error(model, gap):
    x = model.sample(2000, generator=generator(7))
    q = any_encoder(len(x))
    return (model.log_evidence(x) - model.elbo(x, *q) - gap(model, x, *q)).abs().max()


def gap_of(mean, covariance, other_mean, other, *, half=0.5, sign=1.0):
    """Restate KL(N || N') by torch.distributions' pieces, with room for mistakes."""
    p = torch.distributions.MultivariateNormal(mean, covariance)
    q = torch.distributions.MultivariateNormal(other_mean, other)
    exact = torch.distributions.kl_divergence(p, q)
    log_ratio = 0.5 * (other.logdet() - covariance.logdet())
    return 2 * half * (exact + (sign - 1) * log_ratio)


WRONG_GAPS = {
    "the half is missing": lambda m, x, *q: gap_of(*q, *m.posterior(x), half=1.0),
    "log-determinants swapped": lambda m, x, *q: gap_of(*q, *m.posterior(x), sign=-1.0),
    "KL the other way": lambda m, x, *q: gap_of(*m.posterior(x), *q),
    "gap to the prior": lambda m, x, *q: gap_of(
        *q, torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64)
    ),
}


def test_log_evidence_is_elbo_plus_gap():
    # Each term is O(100) in float64: 1e-10 leaves four digits for its rounding.
    assert identity_error(ppca(), LinearGaussian.gap) < 1e-10


@pytest.mark.parametrize("gap", WRONG_GAPS.values(), ids=WRONG_GAPS)
def test_identity_catches(gap):
    assert identity_error(ppca(), gap) > 1e-2


def test_log_evidence_is_the_integral_over_z():
    model = LinearGaussian(randn(3, 1, seed=1), randn(3, seed=2), 0.3)
    x = model.sample(20, generator=generator(3))
    z = torch.linspace(-12, 12, 40_001, dtype=F64)
    joint = Gaussian(torch.zeros_like(z), 1.0).log_prob(z)
    mean = z[:, None] * model.W[:, 0] + model.mean
    integrals = [
        (joint + Gaussian(mean, 0.3).log_prob(row)).logsumexp(0) + math.log(z[1] - z[0])
        for row in x
    ]
    # The trapezium rule is exact to rounding for an analytic integrand that vanishes at the ends.
    assert (torch.stack(integrals) - model.log_evidence(x)).abs().max() < 1e-11


def test_exact_encoder_has_no_gap():
    model = ppca()
    x = model.sample(500, generator=generator(1))
    assert (model.log_evidence(x) - model.elbo(x, *model.posterior(x))).abs().max() < 1e-11


def diagonal_gap(model, variances):
    x = model.sample(1, generator=generator(0))
    mean, _ = model.posterior(x)
    return model.gap(x, mean, variances.diag())[0]


def test_best_diagonal_gap_is_the_minimum():
    model = ppca()
    log_variance = torch.zeros(2, dtype=F64, requires_grad=True)
    search = torch.optim.LBFGS([log_variance], max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        search.zero_grad()
        gap = diagonal_gap(model, log_variance.exp())
        gap.backward()
        return gap

    search.step(closure)
    floor = model.best_diagonal_gap()
    assert floor > 0.1  # a rotated posterior: there is something to see
    assert (diagonal_gap(model, log_variance.detach().exp()) - floor).abs() < 1e-9
    marginal_variances = model.posterior(torch.zeros(1, 5, dtype=F64))[1].diagonal()
    assert diagonal_gap(model, marginal_variances) > floor + 0.05  # the usual wrong answer


# Discretised logistic --------------------------------------------------------------------------

PIXELS = torch.arange(256, dtype=F64) / 127.5 - 1
LOGISTICS = [(0.0, 0.0), (0.3, -2.0), (-1.0, -4.0), (1.0, -7.0), (0.501, -6.0), (3.0, -1.0)]


def probabilities(mean, log_scale, dtype=F64):
    p = DiscretisedLogistic(
        torch.full((256, 1), mean, dtype=dtype), torch.full((256, 1), log_scale, dtype=dtype)
    )
    return p.log_prob(PIXELS[:, None].to(dtype)).exp()


def density_of_bins(mean, log_scale):
    """Integrate over each bin alone: right inside, without the tails at both ends."""
    edges = (torch.arange(257, dtype=F64) - 0.5) / 127.5 - 1
    return torch.sigmoid((edges - mean) / math.exp(log_scale)).diff()


@pytest.mark.parametrize(("mean", "log_scale"), LOGISTICS)
def test_discretised_logistic_sums_to_one(mean, log_scale):
    assert abs(probabilities(mean, log_scale).sum() - 1) < 1e-12
    assert abs(probabilities(mean, log_scale, torch.float32).sum() - 1) < 1e-4
    inside = (probabilities(mean, log_scale) - density_of_bins(mean, log_scale))[1:-1]
    assert inside.abs().max() < 1e-13


def test_sum_catches_forgotten_tails():
    assert abs(density_of_bins(0.3, -2.0).sum() - 1) > 1e-3


def test_discretised_logistic_far_from_its_mean():
    """All of float32's range away, log p is linear in the distance, and so is its gradient."""
    mean = torch.full((1, 1), -1.0, requires_grad=True)
    p = DiscretisedLogistic(mean, torch.tensor([[-7.0]]))
    log_p = p.log_prob(torch.ones(1, 1))
    log_p.sum().backward()
    assert math.isclose(log_p.item(), -(2 - 1 / 255) * math.exp(7), rel_tol=1e-5)
    assert math.isclose(mean.grad.item(), math.exp(7), rel_tol=1e-5)


def test_discretised_logistic_samples_follow_its_probabilities():
    n, mean, log_scale = 200_000, 0.7, -1.5
    p = DiscretisedLogistic(torch.full((n, 1), mean), torch.full((n, 1), log_scale))
    k = ((p.sample(generator=generator(0)) + 1) * 127.5).round().long().flatten()
    counts = k.bincount(minlength=256).to(F64)
    want = n * probabilities(mean, log_scale)
    assert ((counts - want) / want.sqrt()).square().sum() < 255 + 6 * math.sqrt(2 * 255)  # chi^2


def test_a_wild_output_has_a_finite_price():
    """A log-scale of 200 alone would leave inner bins no mass at all, and the loss infinite."""
    output = torch.tensor([[0.5, 200.0], [0.5, -200.0], [50.0, 0.0]], requires_grad=True)
    x = PIXELS[100].float().expand(3, 1)
    log_p = discretised_logistic(output).log_prob(x)
    log_p.sum().backward()
    assert log_p.min() > -2e3
    assert output.grad.isfinite().all()
    free = DiscretisedLogistic(torch.full((1, 1), 0.5), torch.full((1, 1), 200.0))
    assert free.log_prob(x[:1]).isinf().all()


# Chains of linear-Gaussian levels --------------------------------------------------------------


def linear(weight, bias, variance):
    layer = nn.Linear(*weight.shape[::-1], dtype=F64)
    layer.weight.data, layer.bias.data = weight, bias
    return Conditional(layer, lambda mean: Gaussian(mean, variance))


class Chain:
    """A hierarchical VAE of 2-D linear-Gaussian levels whose bound and evidence are known."""

    def __init__(self, levels):
        self.up = [
            (0.5 * randn(2, 2, seed=t), 0.3 * randn(2, seed=t + 10), 0.3 + 0.1 * t)
            for t in range(levels)
        ]
        self.down = [
            (0.5 * randn(2, 2, seed=t + 20), 0.3 * randn(2, seed=t + 30), 0.6 - 0.1 * t)
            for t in range(levels)
        ]
        self.model = HierarchicalVAE(
            [linear(*level) for level in self.up], [linear(*level) for level in self.down], (2,)
        ).requires_grad_(False)

    def generative_joint(self):
        """Return mean and covariance of (z_T, ..., z_1, x), stacked."""
        start = torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64)
        return stack_up(*start, reversed(self.down))

    def log_evidence(self, x):
        mean, covariance = self.generative_joint()
        marginal = torch.distributions.MultivariateNormal(mean[-2:], covariance[-2:, -2:])
        return marginal.log_prob(x)

    def elbo(self, x):
        """Return log p(x) - KL(q(z|x) || p(z|x)) over the joint z = z_1..T, for one x (2,)."""
        mean, covariance = self.generative_joint()
        gain = covariance[:-2, -2:] @ covariance[-2:, -2:].inverse()
        p_mean = mean[:-2] + gain @ (x - mean[-2:])
        p_covariance = covariance[:-2, :-2] - gain @ covariance[-2:, :-2]
        q_mean, q_covariance = stack_up(x, torch.zeros(2, 2, dtype=F64), self.up)
        order = torch.arange(2, len(q_mean)).reshape(-1, 2).flip(0).flatten()  # z_T first
        q = q_mean[order], q_covariance[order][:, order]
        return self.log_evidence(x) - gap_of(*q, p_mean, p_covariance)


def stack_up(mean, covariance, levels):
    """Append y = W u + b + noise to a joint Gaussian whose last two entries are u, per level."""
    for weight, bias, variance in levels:
        mean = torch.cat([mean, weight @ mean[-2:] + bias])
        cross = weight @ covariance[-2:]
        corner = cross[:, -2:] @ weight.T + variance * torch.eye(2, dtype=F64)
        covariance = torch.cat(
            [torch.cat([covariance, cross.T], dim=1), torch.cat([cross, corner], dim=1)]
        )
    return mean, covariance


def own_bound(model, x, g):
    return model.bound(x, generator=g).elbo


def kl_added(model, x, g):
    bound = model.bound(x, generator=g)
    return bound.reconstruction + bound.kl.sum(1)


def top_level_dropped(model, x, g):
    bound = model.bound(x, generator=g)
    return bound.reconstruction - bound.kl[:, :-1].sum(1)


def level_one_dropped(model, x, g):
    bound = model.bound(x, generator=g)
    return bound.reconstruction - bound.kl[:, 1:].sum(1)


def consistency_as_a_kl(model, x, g):
    """Average KL(q(z_t|z_{t-1}) || p(z_t|z_{t+1})) over q: Luo 2022, eq. 45, to the letter."""
    latents, posteriors, priors = model._draw_chain(x, g)
    costs = [q.kl(p) for q, p in zip(posteriors, priors, strict=True)]
    return model.decoders[0](latents[0]).log_prob(x) - torch.stack(costs).sum(0)


def deviation(levels, estimate, n=200_000):
    """Return |mean of the estimate - exact bound| in standard errors."""
    chain, x = Chain(levels), torch.tensor([0.4, -1.1], dtype=F64)
    draws = estimate(chain.model, x.expand(n, 2), generator(11))
    return ((draws.mean() - chain.elbo(x)) / (draws.std() / math.sqrt(n))).abs()


@pytest.mark.parametrize("levels", [1, 2, 3, 5])
def test_bound_of_a_chain_is_unbiased(levels):
    assert deviation(levels, own_bound) < 6


@pytest.mark.parametrize(
    "wrong", [kl_added, top_level_dropped, level_one_dropped, consistency_as_a_kl]
)
def test_exact_bound_catches(wrong):
    assert deviation(3, wrong) > 30


def exact_scalar_chain(levels=3):
    """Chain z_t = a z_{t+1} + noise with the exact posterior as encoder: every draw is exact."""
    a, s2, variance = 0.8, 0.3, 1.0
    encoders, decoders = [], []
    for _ in range(levels):  # from the top: the variance of z_t, then of what lies below it
        below = a**2 * variance + s2
        gain = a * variance / below
        unit = torch.ones(1, 1, dtype=F64)
        encoders.insert(0, linear(gain * unit, 0 * unit[0], variance - gain * a * variance))
        decoders.insert(0, linear(a * unit, 0 * unit[0], s2))
        variance = below
    return HierarchicalVAE(encoders, decoders, (1,)).requires_grad_(False), variance


def test_importance_weights_are_the_evidence_under_the_exact_posterior():
    model, variance = exact_scalar_chain()
    x = randn(50, 1, seed=8)
    want = Gaussian(torch.zeros_like(x), variance).log_prob(x)
    for n in (1, 4):
        got = model.log_evidence(x, n, generator=generator(2))
        assert (got - want).abs().max() < 1e-12


def test_importance_weighting_closes_the_gap():
    """More draws, tighter bound, in expectation and always below log p(x) (Burda et al. 2016)."""
    chain, x = Chain(2), torch.tensor([[0.4, -1.1]], dtype=F64)
    gaps = []
    for n_samples in (1, 10, 100):
        estimates = chain.model.log_evidence(x.expand(4000, 2), n_samples, generator=generator(3))
        gaps.append(chain.log_evidence(x)[0] - estimates.mean())
    standard_error = 6 * estimates.std() / math.sqrt(4000)
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2]
    assert gaps[2] > -standard_error


def test_samples_of_a_chain_have_its_moments():
    chain, n = Chain(3), 100_000
    mean, covariance = chain.generative_joint()
    x = chain.model.sample(n, generator=generator(5))
    std = covariance[-2:, -2:].diagonal().sqrt()
    assert ((x.mean(0) - mean[-2:]).abs() / std).max() < 6 / math.sqrt(n)
    assert (x.T.cov() / covariance[-2:, -2:] - 1).abs().max() < 0.05


def test_one_level_is_the_vae():
    """The VAE by hand, on the same weights and the same noise (Kingma & Welling 2014, eq. 10)."""
    model = point_vae(1, noise_variance=0.1, generator=generator(0)).double()
    x = randn(64, 2, seed=1)
    mean, log_variance = model.encoders[0].network(x).chunk(2, dim=1)
    noise = torch.randn(64, 2, generator=generator(2), dtype=F64)
    decoded = model.decoders[0].network(mean + (0.5 * log_variance).exp() * noise)
    squared = ((x - decoded) ** 2).sum(1) / 0.1
    reconstruction = -0.5 * (squared + 2 * math.log(2 * math.pi * 0.1))
    kl = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(1)
    for same in (model, VAE(model.encoders[0], model.decoders[0], (2,))):
        bound = same.bound(x, generator=generator(2))
        assert (bound.elbo - (reconstruction - kl)).abs().max() < 1e-12
        assert (bound.kl[:, 0] - kl).abs().max() < 1e-12


def test_training_closes_the_gap_of_a_linear_model():
    """A latent posterior with diagonal covariance can be matched: the bound reaches log p(x)."""
    truth = LinearGaussian(torch.tensor([[1.0, 0.0], [0.0, 0.5]], dtype=F64), torch.zeros(2), 0.1)
    x = truth.sample(20_000, generator=generator(1)).float()
    model = point_vae(1, width=32, noise_variance=0.1, generator=generator(2))
    config = TrainConfig(steps=600, batch_size=256, learning_rate=4e-3, ema_decay=0.99)

    def loss(model, batch, g):
        return -model.bound(batch, generator=g).elbo

    entropy = -truth.log_evidence(x.double()).mean()

    def gap():
        with torch.no_grad():
            return loss(model, x, generator(3)).mean() - entropy

    before = gap()
    train(model, x, loss, config)
    assert before > 1
    assert gap() < 0.1


# Networks --------------------------------------------------------------------------------------


def test_residual_blocks_start_as_the_identity():
    model = image_vae([Stage((8, 16), 2)], generator=generator(0))
    blocks = [m for m in model.modules() if isinstance(m, ResidualBlock)]
    assert len(blocks) == 8
    for block in blocks:
        x = torch.randn(2, block.first.in_channels, 4, 4, generator=generator(1))
        assert torch.equal(block(x), x)


def test_likelihood_keeps_its_precision_under_autocast():
    model = image_vae([Stage((8,), 2), Stage((8,), 4)], generator=generator(0))
    k = torch.randint(0, 256, (4, 3, 32, 32), generator=generator(1))
    x = k / 127.5 - 1
    with torch.no_grad():
        want = model.bound(x, generator=generator(2)).elbo
        with torch.autocast("cpu", torch.bfloat16):
            got = model.bound(x, generator=generator(2)).elbo
    assert got.dtype == torch.float32
    # bfloat16 moves means by 0.4 % of their size: an unbiased nudge, far under one nat in 1,000.
    assert ((got - want) / want).abs().max() < 1e-3


def test_image_samples_are_pixels_that_the_model_can_score():
    model = image_vae([Stage((8,), 2), Stage((8,), 2)], size=8, generator=generator(0))
    with torch.no_grad():
        x = model.sample(3, generator=generator(1))
        k = (x + 1) * 127.5
        assert (k - k.round()).abs().max() < 1e-4
        assert model.reconstruct(x, level=2).shape == x.shape


def test_levels_must_pair_up():
    one = Conditional(nn.Linear(2, 4), diagonal_gaussian)
    with pytest.raises(ValueError, match="2 encoders and 1 decoders"):
        HierarchicalVAE([one, one], [one], (2,))
