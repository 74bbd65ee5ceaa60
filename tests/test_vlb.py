"""L_vlb as a loss: DDPM's printed weights, the whole bound on average, IDDPM's way on a head."""

import math

import pytest
import torch
from torch import nn
from truths import generator, normal, pair, relative, standard_errors, variants

from tutorial_lib import losses
from tutorial_lib.denoiser import MixtureDenoiser, NetworkDenoiser
from tutorial_lib.likelihood import chain_bound, chain_term, noise_decoder
from tutorial_lib.samplers import beta, beta_tilde, learned_range
from tutorial_lib.schedule import DiscreteVP, LinearVP, uniform_times

T = 50
DDPM = DiscreteVP.linear(T)
STEPS = torch.tensor([1, 2, 3, 10, 25, 49, 50])


class Scale(nn.Module):
    """A network of one weight."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, xt, clock, cond=None):
        return self.weight * xt


def by_hand(eps_of, x0, variance):
    """DDPM's eq. 12 with the constant that it leaves out, and T times that; the decoder at t = 1.

    Its weight is beta^2 / (2 sigma^2 alpha (1 - alpha_bar)); the constant is the KL of two
    Gaussians with the same mean, of variances beta_tilde and sigma^2.
    """
    bars = torch.cat([torch.ones(1).double(), torch.cumprod(1 - DDPM.betas, 0)])
    bar, before, beta_t = bars[STEPS], bars[STEPS - 1], DDPM.betas[STEPS - 1]
    eps = normal(len(STEPS), 2, seed=7)
    xt = bar.sqrt()[:, None] * x0 + (1 - bar).sqrt()[:, None] * eps
    tilde = torch.where(STEPS == 1, beta_t, (1 - before) / (1 - bar) * beta_t)
    sigma2 = {"beta": beta_t, "beta_tilde": tilde}[variance]
    weight = beta_t**2 / (2 * sigma2 * (1 - beta_t) * (1 - bar))
    constant = tilde / sigma2 - 1 - (tilde / sigma2).log()  # 2 dimensions, half of each
    terms = weight * ((eps - eps_of(xt)) ** 2).sum(1) + constant
    ratio = (1 - bar) / bar  # VDM's decoder, N(x_t / alpha, sigma^2 / alpha^2)
    decoded = ((x0 - xt / bar.sqrt()[:, None]) ** 2).sum(1) / (2 * ratio)
    return T * torch.where(STEPS == 1, decoded + (2 * math.pi * ratio).log(), terms)


def is_vlb(loss, variance):
    net, x0 = Scale(), normal(len(STEPS), 2)
    denoiser = NetworkDenoiser(net, DDPM)
    found = loss(denoiser, x0, STEPS.double() / T, generator=generator(7))
    exact = by_hand(lambda xt: net.weight * xt, x0, variance)
    if relative(found.detach(), exact.detach()) > 1e-8:
        return False
    slopes = [torch.autograd.grad(value.sum(), net.weight)[0] for value in (found, exact)]
    return relative(*slopes) < 1e-8


@pytest.mark.parametrize("name, variance", [("beta", beta), ("beta_tilde", beta_tilde)])
def test_ddpms_terms_and_their_slope(name, variance):
    assert is_vlb(losses.vlb(T, variance, noise_decoder), name)


def mean_stopped(denoiser, x0, t, cond=None, *, generator):
    """The part of L_hybrid that teaches a variance."""
    whole = losses.hybrid(T, beta, noise_decoder, weight=1.0)
    less = losses.simple(denoiser, x0, t, cond, generator=generator)
    generator.manual_seed(7)
    return whole(denoiser, x0, t, cond, generator=generator) - less


def one_step_early(denoiser, x0, t, cond=None, *, generator):
    prediction, _ = losses.noised(denoiser, x0, t, cond, generator)
    s = (t - 2 / T).clamp(min=0)
    return T * chain_term(prediction, DDPM, x0, s, t, beta, noise_decoder)


def without_t(*arguments, generator):
    return losses.vlb(T, beta, noise_decoder)(*arguments, generator=generator) / T


@variants(
    **{"beta_tilde for beta": losses.vlb(T, beta_tilde, noise_decoder)},
    **{"twice the steps": losses.vlb(2 * T, beta, noise_decoder)},
    a=mean_stopped,
    b=one_step_early,
    c=without_t,
    d=losses.bound,
)
def test_wrong_bounds_are_seen(wrong):
    try:
        assert not is_vlb(wrong, "beta")
    except RuntimeError:  # a stopped mean leaves nothing to differentiate
        assert wrong is mean_stopped


def test_on_average_it_is_the_bound_without_its_prior_term():
    denoiser, n = MixtureDenoiser(pair(), DDPM), 4000
    x0 = pair().sample(n, generator=generator(1))
    whole = chain_bound(denoiser, x0, uniform_times(T)[:-1], generator=generator(2), variance=beta)
    t = torch.randint(1, T + 1, (n,), generator=generator(3)).double() / T
    found = losses.vlb(T, beta, noise_decoder)(denoiser, x0, t, generator=generator(4))
    assert standard_errors(found - (whole.total - whole.prior), 0.0) < 6
    assert standard_errors(found / T - (whole.total - whole.prior), 0.0) > 6


def test_with_beta_tilde_it_is_a_rise_in_snr_times_the_error():
    """Kingma et al. 2021, section 4: 1/2 (SNR(s) - SNR(t)) ||x_0 - x0_hat||^2, at s > 0."""
    schedule, x0, t = LinearVP(), normal(5, 2), torch.tensor([2, 5, 20, 37, 50]).double() / T
    denoiser = MixtureDenoiser(pair(), schedule)
    found = losses.vlb(T, beta_tilde, noise_decoder)(denoiser, x0, t, generator=generator(7))
    error = losses.x0_error(denoiser, x0, t, generator=generator(7))
    exact = T / 2 * (schedule.snr(t - 1 / T) - schedule.snr(t)) * error
    assert relative(found, exact) < 1e-8


def test_with_a_head_mean_and_variance_both_learn():
    """The value is L_hybrid's second part; the slope on the variance too, that on the mean not."""

    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.mean, self.head = (nn.Parameter(torch.tensor(a).double()) for a in (0.3, -0.2))

        def forward(self, xt, clock, cond=None):
            return torch.cat([self.mean * xt, self.head * torch.ones_like(xt)], dim=1)

    net, x0 = Head(), normal(len(STEPS), 2)
    denoiser, t = NetworkDenoiser(net, DDPM), STEPS.double() / T
    whole = losses.vlb(T, learned_range, noise_decoder)(denoiser, x0, t, generator=generator(7))
    mixed = losses.hybrid(T, learned_range, noise_decoder)(denoiser, x0, t, generator=generator(7))
    plain = losses.simple(denoiser, x0, t, generator=generator(7))
    assert relative((plain + 1e-3 * whole).detach(), mixed.detach()) < 1e-12
    on_whole = torch.autograd.grad(whole.sum(), [net.mean, net.head])
    on_mixed = torch.autograd.grad(mixed.sum(), [net.mean, net.head], retain_graph=True)
    on_plain = torch.autograd.grad(plain.sum(), net.mean)
    assert relative(1e-3 * on_whole[1], on_mixed[1]) < 1e-12
    assert relative(on_mixed[0], on_plain[0]) < 1e-12  # the mean's part of L_vlb is stopped there
    assert on_whole[0].abs() > 1


def test_a_number_for_t_serves_all_rows():
    loss, x0 = losses.vlb(T, beta, noise_decoder), normal(5, 2)
    denoiser = MixtureDenoiser(pair(), DDPM)
    for t in (1 / T, 0.4):
        rows = torch.full((5,), t, dtype=torch.float64)
        exact = loss(denoiser, x0, rows, generator=generator(7))
        assert relative(loss(denoiser, x0, t, generator=generator(7)), exact) < 1e-12
