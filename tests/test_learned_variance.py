"""IDDPM's variance head: its range, its loss, and pixels cut out of a Gaussian. About a second."""

import math
from types import SimpleNamespace

import mpmath
import pytest
import torch
from torch import nn
from truths import generator, normal, relative, variants

from tutorial_lib import losses
from tutorial_lib.denoiser import NetworkDenoiser, Prediction
from tutorial_lib.gaussian import DiscretisedGaussian
from tutorial_lib.likelihood import chain_bound, pixel_decoder, step_kl
from tutorial_lib.samplers import beta, beta_tilde, learned_range
from tutorial_lib.schedule import VE, DiscreteVP, uniform_times

T = 50
DDPM = DiscreteVP.cosine(T)


def prediction(schedule, fraction, t, batch=5):
    xt = normal(batch, 2, seed=3)
    level = schedule.at(t, like=xt)
    head = torch.full_like(xt, fraction)
    return Prediction(xt, level, normal(batch, 2, seed=4), normal(batch, 2, seed=5), head)


# The range


@pytest.mark.parametrize("n", [2, 7, T])
def test_learned_range_runs_from_beta_tilde_to_beta(n):
    s, t = (n - 1) / T, n / T
    low, high = (f(prediction(DDPM, 0.0, t), DDPM, s, t) for f in (beta_tilde, beta))
    ends = [learned_range(prediction(DDPM, v, t), DDPM, s, t) for v in (0.0, 1.0, 0.25, 1.5)]
    exact = [low, high, low**0.75 * high**0.25, high * (high / low).sqrt()]
    for got, want in zip(ends, exact, strict=True):
        assert relative(got, want.expand_as(got)) < 1e-12


def test_at_the_last_step_the_second_steps_beta_tilde_stands_in():
    """As in the authors' code, `posterior_log_variance_clipped`."""
    betas = DDPM.betas
    bar = torch.cumprod(1 - betas, 0)
    second = betas[1] * (1 - bar[0]) / (1 - bar[1])
    got = learned_range(prediction(DDPM, 0.0, 1 / T), DDPM, 0.0, 1 / T)
    assert relative(got, second.expand_as(got)) < 1e-12
    rows = torch.tensor([1, 2, 3, 4, 5], dtype=torch.float64) / T  # each row its own step
    mixed = learned_range(prediction(DDPM, 0.0, rows), DDPM, rows - 1 / T, rows)
    assert relative(mixed[0], second.expand(2)) < 1e-12
    alone = learned_range(prediction(DDPM, 0.0, rows[3].item()), DDPM, 3 / T, 4 / T)
    assert relative(mixed[3], alone[3]) < 1e-12


def test_variance_exploding_needs_no_stand_in():
    schedule = VE()
    got = learned_range(prediction(schedule, 0.0, 0.1), schedule, 0.0, 0.1)
    want = beta_tilde(prediction(schedule, 0.0, 0.1), schedule, 0.0, 0.1)
    assert relative(got, want.expand_as(got)) < 1e-12


def test_learned_range_agrees_with_diffusers():
    schedulers = pytest.importorskip("diffusers.schedulers")
    theirs = schedulers.DDPMScheduler(
        T, trained_betas=DDPM.betas.tolist(), variance_type="learned_range"
    )
    for n in (2, 20, T):
        output = normal(5, 2, seed=6)
        log_variance = theirs._get_variance(n - 1, predicted_variance=output)
        mine = prediction(DDPM, 0.0, n / T)
        mine = Prediction(mine.xt, mine.level, mine.x0, mine.eps, 0.5 * (output + 1))
        got = learned_range(mine, DDPM, (n - 1) / T, n / T)
        assert (got.log() - log_variance).abs().max() < 1e-4  # its table is float32


def test_no_head_is_told():
    bare = Prediction(
        *(normal(5, 2),), DDPM.at(0.5, like=normal(5, 2)), normal(5, 2), normal(5, 2)
    )
    with pytest.raises(ValueError, match="no variance head"):
        learned_range(bare, DDPM, 0.48, 0.5)


def test_a_network_with_twice_the_channels_has_a_head():
    net = nn.Conv2d(3, 6, 1).double()

    def seen(xt, clock, cond=None):
        return nn.Conv2d.forward(net, xt)

    net.forward = seen
    xt = normal(2, 3, 4, 4)
    got = NetworkDenoiser(net, DDPM)(xt, 0.5)
    mean, head = nn.Conv2d.forward(net, xt).chunk(2, dim=1)
    assert torch.equal(got.eps, mean)
    assert torch.equal(got.variance_fraction, (head + 1) / 2)


# Pixels


def exact_log_mass(x, mean, std):
    """Log of the bin's mass by 50-digit arithmetic."""
    with mpmath.workdps(60):
        half = mpmath.mpf(1) / 255
        low = -mpmath.inf if x < -1 + 1e-3 else (mpmath.mpf(x) - half - mean) / std
        high = mpmath.inf if x > 1 - 1e-3 else (mpmath.mpf(x) + half - mean) / std
        if low > 0:  # mirrored, where the distribution function has digits
            low, high = -high, -low
        return float(mpmath.log(mpmath.ncdf(high) - mpmath.ncdf(low)))


PIXELS = [0, 1, 3, 100, 127, 128, 200, 254, 255]
LAWS = [(0.0, 0.5), (0.3, 0.01), (-0.9, 0.002), (1.4, 0.05), (0.1, 3.0)]


def is_discretised_gaussian(law):
    for mean, std in LAWS:
        x = torch.tensor(PIXELS, dtype=torch.float64)[:, None] / 127.5 - 1
        got = law(torch.full_like(x, mean), std**2).log_prob(x)
        want = [exact_log_mass(float(v), mean, std) for v in x[:, 0]]
        want = torch.tensor(want, dtype=torch.float64)
        if not torch.allclose(got, want, rtol=1e-9, atol=1e-9):
            return False
    return True


def test_masses_of_pixels_far_out_and_near():
    assert is_discretised_gaussian(DiscretisedGaussian)


@variants(
    density=lambda m, v: SimpleNamespace(
        log_prob=lambda x: (
            torch.distributions.Normal(m, math.sqrt(v)).log_prob(x).sum(1) + math.log(2 / 255)
        )
    ),
    **{"std for variance": lambda m, v: DiscretisedGaussian(m, math.sqrt(v))},
    shifted=lambda m, v: DiscretisedGaussian(m + 1 / 255, v),
)
def test_wrong_masses_are_seen(wrong):
    assert not is_discretised_gaussian(wrong)


def test_the_256_values_share_one_unit_of_mass():
    x = torch.arange(256).double()[:, None] / 127.5 - 1
    for mean, std in LAWS:
        mass = DiscretisedGaussian(torch.full_like(x, mean), std**2).log_prob(x).exp().sum()
        assert abs(float(mass) - 1) < 1e-12


def test_masses_have_gradients_everywhere():
    x = torch.tensor(PIXELS)[:, None].float() / 127.5 - 1
    mean = torch.zeros_like(x).requires_grad_()
    variance = torch.full_like(x, 0.01**2).requires_grad_()  # 100 standard deviations out
    DiscretisedGaussian(mean, variance).log_prob(x).sum().backward()
    assert bool(mean.grad.isfinite().all()) and bool(variance.grad.isfinite().all())


def test_a_decoder_without_variance_is_refused():
    with pytest.raises(ValueError, match="step to s = 0 has variance 0"):
        pixel_decoder(beta_tilde)(prediction(DDPM, 0.0, 1 / T), DDPM, 1 / T)


# The loss


class Head(nn.Module):
    """A network of two numbers for each channel: what it predicts, and its variance."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
        self.head = nn.Parameter(torch.tensor(-0.2, dtype=torch.float64))

    def forward(self, xt, clock, cond=None):
        return torch.cat([self.mean * xt, self.head * torch.ones_like(xt)], dim=1)


def pixels(batch=6):
    levels = torch.randint(256, (batch, 2, 1, 1), generator=generator(8))
    return levels.double() / 127.5 - 1


def gradients(loss, net, x0, t):
    values = loss(NetworkDenoiser(net, DDPM), x0, t, generator=generator(9))
    return values, torch.autograd.grad(values.sum(), [net.mean, net.head], allow_unused=True)


def by_hand(net, x0, t):
    """L_simple, and each row's term of the bound on its own, by the paths tested elsewhere."""
    eps = torch.randn(x0.shape, generator=generator(9), dtype=torch.float64)
    xt, terms = DDPM.add_noise(x0, eps, t), []
    for i, n in enumerate((t * T).round().int().tolist()):
        row = NetworkDenoiser(net, DDPM)(xt[i : i + 1], n / T)
        if n == 1:
            law = pixel_decoder(learned_range)(row, DDPM, 1 / T)
            terms.append(-law.log_prob(x0[i : i + 1]))
        else:
            kl = step_kl(row, DDPM, x0[i : i + 1], (n - 1) / T, n / T, learned_range)
            terms.append(kl)
    simple = ((eps - net.mean * xt) ** 2).flatten(1).sum(1)
    return simple, torch.cat(terms)


def is_hybrid(loss):
    net, x0 = Head(), pixels()
    t = torch.tensor([1, 2, 10, 25, 49, 50]).double() / T
    values, (on_mean, on_head) = gradients(loss, net, x0, t)
    simple, terms = by_hand(net, x0, t)
    if not torch.allclose(values, simple + 1e-3 * T * terms, rtol=1e-9):
        return False
    mean_alone = torch.autograd.grad(simple.sum(), net.mean)[0]
    head_alone = torch.autograd.grad(1e-3 * T * terms.sum(), net.head)[0]
    return relative(on_mean, mean_alone) < 1e-9 and relative(on_head, head_alone) < 1e-9


def test_hybrid_loss_by_hand():
    assert is_hybrid(losses.hybrid(T, learned_range))


def is_finite(loss, n_steps=1000):
    """At every step, in float32, whose spacing at x_0's guess for t = 1, 1e5, is a whole bin."""
    net, schedule = Head().float(), DiscreteVP.cosine(n_steps)
    net.mean.data.fill_(-5)
    t = torch.cat([torch.arange(1, n_steps + 1), torch.full((99,), n_steps)]).double() / n_steps
    x0 = pixels(len(t)).float()
    values = loss(NetworkDenoiser(net, schedule), x0, t, generator=generator(9))
    values.sum().backward()
    return bool(values.isfinite().all() and net.head.grad.isfinite())


def decoder_asked_everywhere(denoiser, x0, t, cond=None, *, generator):
    """A step's decoder sees the guesses of all rows, and `where` hides what it made of them."""
    prediction, _ = losses.noised(denoiser, x0, t, cond, generator)
    decoded = pixel_decoder(learned_range)(prediction, denoiser.schedule, t / 4)
    return torch.where(t > 0.5, prediction.variance_fraction.sum((1, 2, 3)), decoded.log_prob(x0))


def test_the_hybrid_loss_is_finite_in_single_precision():
    assert is_finite(losses.hybrid(1000, learned_range))
    assert not is_finite(decoder_asked_everywhere)


def without_stopped_gradient(denoiser, x0, t, cond=None, *, generator):
    prediction, eps = losses.noised(denoiser, x0, t, cond, generator)
    s = ((t * T).round() - 1) / T
    decoder = pixel_decoder(learned_range)
    term = losses.chain_term(prediction, DDPM, x0, s, t, learned_range, decoder)
    return ((eps - prediction.eps) ** 2).flatten(1).sum(1) + 1e-3 * T * term


@variants(
    **{"gradient not stopped": without_stopped_gradient},
    **{"weight without T": losses.hybrid(T, learned_range, weight=1e-3 / T)},
    **{"variance beta": losses.hybrid(T, lambda p, c, s, t: beta(p, c, s, t).expand_as(p.x0))},
)
def test_wrong_hybrids_are_seen(wrong):
    with pytest.raises((RuntimeError, AssertionError)):  # beta leaves the head without gradient
        assert is_hybrid(wrong)


def test_the_whole_bound_of_pixels_is_the_sum_of_its_terms():
    net, x0 = Head(), pixels(400)
    denoiser = NetworkDenoiser(net, DDPM)
    with torch.no_grad():
        whole = chain_bound(
            denoiser,
            x0,
            uniform_times(T)[:-1],
            generator=generator(10),
            variance=learned_range,
            decoder=pixel_decoder(learned_range),
        )
    assert whole.steps.shape == (400, T - 1)
    draws = torch.stack([by_hand(net, x0[:6], torch.full((6,), n / T))[1] for n in (1, 2, 50)])
    found = (whole.reconstruction, whole.steps[:, -1], whole.steps[:, 0])
    for term, got in zip(draws.detach(), found, strict=True):
        assert abs(float(term.mean() - got[:6].mean())) < 3 * float(got.std())
