"""The best variances of a chain against closed forms, and the best of all grids. 4 seconds."""

import itertools
import math

import pytest
import torch
from truths import SCHEDULES, every_schedule, gaussian, generator, normal, pair, variants

from tutorial_lib.analytic import (
    Analytic,
    Diagonal,
    WithNoiseVariance,
    cheapest_times,
    noise_shares,
    residual_error,
    residual_network,
    square_error,
    square_network,
    stride_costs,
    variance_bounds,
)
from tutorial_lib.denoiser import MixtureDenoiser, NetworkDenoiser
from tutorial_lib.likelihood import chain_bound
from tutorial_lib.networks.mlp import PointMLP
from tutorial_lib.samplers import ancestral, beta, beta_tilde, ddim, final
from tutorial_lib.schedule import DiscreteVP

TIMES = torch.tensor([1.0, 0.8, 0.5, 0.2, 0.05, 0.01], dtype=torch.float64)
STD = 0.5
CHAIN = DiscreteVP.linear(1000)


def share(schedule, times, variance=STD**2):
    """u(t) of a Gaussian: of sigma eps, in a sum with alpha x_0, what the sum does not tell."""
    signal, noise = schedule.alpha(times) ** 2 * variance, schedule.sigma(times) ** 2
    return signal / (signal + noise)


def exact_share(mixture, denoiser, x0, t, seed=0):
    """E Var[eps | x_t] / d by the posterior's covariance, and the (B, d) variances themselves."""
    xt = denoiser.schedule.add_noise(x0, normal(*x0.shape, seed=seed), t)
    level = denoiser.schedule.at(t, like=xt)
    ratio = (level.alpha / level.sigma) ** 2
    return ratio * mixture.posterior_covariance(xt, level).diagonal(dim1=1, dim2=2)


@every_schedule
def test_both_estimates_are_a_gaussians_share_within_their_standard_errors(name):
    schedule, mixture = SCHEDULES[name], gaussian(std=STD)
    exact, x0 = MixtureDenoiser(mixture, schedule), mixture.sample(4000, generator=generator(1))
    truth = share(schedule, TIMES)
    size, error = noise_shares(exact, x0, TIMES, generator=generator(2))
    for found, mean in ((size, 1 - size.mean), (error, error.mean)):
        assert ((mean - truth).abs() / found.standard_error).max() < 6
        assert (found.times == TIMES).all() and found.standard_error.max() < 0.04


def test_the_standard_errors_are_those_of_repeated_estimates():
    exact, mixture = MixtureDenoiser(pair(), CHAIN), pair()
    runs = []
    for k in range(60):
        x0 = mixture.sample(500, generator=generator(k))
        runs.append(noise_shares(exact, x0, TIMES, generator=generator(1000 + k)))
    for kind in zip(*runs, strict=True):
        spread = torch.stack([run.mean for run in kind]).std(0)
        said = torch.stack([run.standard_error for run in kind]).mean(0)
        assert ((said / spread).log().abs() < math.log(1.7)).all()  # of 60: 6 errors of a std


@variants(
    forgotten_d=lambda p, eps: p.eps.square().sum(1),
    score=lambda p, eps: p.score.square().mean(1),
    root=lambda p, eps: p.eps.square().mean(1).sqrt(),
)
def test_other_means_are_far_from_the_share(wrong):
    schedule, mixture = CHAIN, gaussian(std=STD)
    exact, x0 = MixtureDenoiser(mixture, schedule), mixture.sample(4000, generator=generator(1))
    t = torch.tensor(0.05, dtype=torch.float64)
    xt = schedule.add_noise(x0, normal(4000, 2), t)
    found = wrong(exact(xt, t), None)
    assert (1 - found.mean() - share(schedule, t)).abs() > 6 * found.std() / 4000**0.5


@every_schedule
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_with_the_best_variance_every_stride_keeps_a_gaussians_marginal(name, eta):
    """Var[x_s] = Var[mean] + variance, whatever the stride and the mean's own fresh noise."""
    schedule = SCHEDULES[name]
    best = Analytic(TIMES, share(schedule, TIMES), eta=eta)
    for t, s in itertools.combinations(TIMES, 2):
        (width,) = best.of_times(schedule, s, t)
        slope, before, after = _linear(schedule, s, t, eta)
        assert width == pytest.approx(float(after - slope**2 * before), rel=1e-7)
        low, high = variance_bounds(schedule, s, t, eta=eta)
        assert low <= width <= high
        fresh = eta**2 * schedule.posterior_weights(s, t)[2]
        assert low == pytest.approx(float(fresh))


def _linear(schedule, s, t, eta):
    """The slope of DDIM's mean in x_t for Gaussian data, and the variances of x_t and x_s."""
    (alpha, sigma), (alpha_s, sigma_s) = ((schedule.alpha(r), schedule.sigma(r)) for r in (t, s))
    before, after = alpha**2 * STD**2 + sigma**2, alpha_s**2 * STD**2 + sigma_s**2
    fresh = eta**2 * schedule.posterior_weights(s, t)[2]
    x0, eps = alpha * STD**2 / before, sigma / before  # of x_t, less its mean
    return alpha_s * x0 + (sigma_s**2 - fresh).sqrt() * eps, before, after


@pytest.mark.parametrize("other", [beta, beta_tilde])
def test_ddpms_widths_do_not_keep_it(other):
    s, t = TIMES[2], TIMES[1]
    slope, before, after = _linear(CHAIN, s, t, 1.0)
    (width,) = other.of_times(CHAIN, s, t)
    assert abs(width / (after - slope**2 * before) - 1) > 0.02


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_walk_in_five_strides_draws_a_gaussian_of_the_right_variance(eta):
    mixture = gaussian(std=STD)
    exact = MixtureDenoiser(mixture, CHAIN)
    best = Analytic(TIMES, share(CHAIN, TIMES), eta=eta)
    walk = ddim(exact, normal(40_000, 2), TIMES, eta=eta, variance=best, generator=generator(3))
    drawn = final(walk).var(0)
    right = CHAIN.alpha(TIMES[-1]) ** 2 * STD**2 + CHAIN.sigma(TIMES[-1]) ** 2
    band = 6 * right * math.sqrt(2 / 40_000)
    assert ((drawn - right).abs() < band).all()
    plain = final(ddim(exact, normal(40_000, 2), TIMES, eta=eta, generator=generator(3))).var(0)
    assert ((plain - right).abs() > band).all()


def test_ddim_at_eta_one_with_a_variance_is_ancestral_with_it():
    exact = MixtureDenoiser(pair(), CHAIN)
    for variance in (beta, Analytic(TIMES, share(CHAIN, TIMES))):
        how = {"variance": variance}
        one = final(ddim(exact, normal(50, 2), TIMES, eta=1.0, generator=generator(1), **how))
        other = final(ancestral(exact, normal(50, 2), TIMES, generator=generator(1), **how))
        assert (one - other).abs().max() < 1e-12
    with pytest.raises(ValueError, match="generator"):
        final(ddim(exact, normal(5, 2), TIMES, variance=beta))


def test_no_multiple_of_the_best_variance_has_a_lower_bound():
    mixture, times = pair(), TIMES
    exact, x0 = MixtureDenoiser(mixture, CHAIN), mixture.sample(4000, generator=generator(1))
    _, curve = noise_shares(exact, x0, times, generator=generator(2))

    def total(factor):
        best = Analytic(times, curve.mean)

        def variance(*step):
            return factor * best(*step)

        found = chain_bound(exact, x0, times, generator=generator(2), variance=variance)
        return found.steps.sum(1).mean()

    least = total(1.0)
    assert all(total(c) > least for c in (0.5, 0.9, 0.97, 1.03, 1.1, 2.0))


def test_stride_costs_are_the_bounds_steps():
    mixture = pair()
    exact, x0 = MixtureDenoiser(mixture, CHAIN), mixture.sample(20_000, generator=generator(1))
    _, curve = noise_shares(exact, x0, TIMES, generator=generator(2))
    best = Analytic(TIMES, curve.mean)
    found = chain_bound(exact, x0, TIMES, generator=generator(3), variance=best).steps / 2
    costs = stride_costs(CHAIN, TIMES, curve.mean)
    said = torch.stack([costs[i, i + 1] for i in range(len(TIMES) - 1)])
    assert ((found.mean(0) - said).abs() < 6 * found.std(0) / 20_000**0.5).all()
    assert costs.tril().isinf().sum() == 6 * 7 / 2 and (costs.triu(1) >= 0).all()


def test_the_cheapest_grid_is_the_best_of_all_of_its_length():
    times = torch.linspace(1, 0.01, 9, dtype=torch.float64)
    exact, x0 = MixtureDenoiser(pair(), CHAIN), pair().sample(4000, generator=generator(1))
    _, curve = noise_shares(exact, x0, times, generator=generator(2))
    costs = stride_costs(CHAIN, times, curve.mean)

    def price(way):
        return sum(float(costs[a, b]) for a, b in itertools.pairwise(way))

    for n in (1, 2, 4, 8):
        ways = [(0, *mid, 8) for mid in itertools.combinations(range(1, 8), n - 1)]
        best = min(ways, key=price)
        assert cheapest_times(times, costs, n).tolist() == times[list(best)].tolist()
        assert n in (1, 8) or price(best) < price(max(ways, key=price))
    for n in (0, 9):
        with pytest.raises(ValueError, match="between 1 and 8"):
            cheapest_times(times, costs, n)


def test_to_a_gaussian_every_grid_costs_the_same():
    """Its steps back are Gaussian: each costs I(x_s; x_0) - I(x_t; x_0), and sums telescope."""
    times = torch.linspace(1, 0.01, 9, dtype=torch.float64)
    costs = stride_costs(CHAIN, times, share(CHAIN, times))
    told = 0.5 * torch.log1p(CHAIN.snr(times) * STD**2)
    for a, b in itertools.combinations(range(9), 2):
        assert costs[a, b] == pytest.approx(float(told[b] - told[a]), rel=1e-9)


def test_estimates_beyond_the_bounds_are_clipped():
    s, t = TIMES[2], TIMES[1]
    for u, bound in ((-0.3, 0), (1.4, 1)):
        (width,) = Analytic(TIMES, torch.full((6,), u).double()).of_times(CHAIN, s, t)
        assert width == variance_bounds(CHAIN, s, t)[bound]
    narrow = Analytic(TIMES, torch.ones(6).double(), spread=0.1).of_times(CHAIN, s, t)[0]
    assert narrow == variance_bounds(CHAIN, s, t, spread=0.1)[1]
    gain = CHAIN.posterior_weights(s, t)[1]
    assert narrow == pytest.approx(float(beta_tilde.of_times(CHAIN, s, t)[0] + gain**2 * 0.01))


def test_a_curve_is_read_between_its_times_and_not_beyond_them():
    curve = Analytic(torch.tensor([0.8, 0.4]).double(), torch.tensor([0.2, 0.6]).double())
    for t, u in ((0.8, 0.2), (0.4, 0.6), (0.5, 0.5)):
        s, t = torch.tensor(0.1).double(), torch.tensor(t).double()
        (low, high), (width,) = variance_bounds(CHAIN, s, t), curve.of_times(CHAIN, s, t)
        assert width == pytest.approx(float(low + u * (high - low)))
    point = Analytic(torch.tensor([0.5]).double(), torch.tensor([0.5]).double())
    assert point.of_times(CHAIN, s, torch.tensor(0.5).double())[0] == pytest.approx(float(width))
    for t in (0.3, 0.9):
        with pytest.raises(ValueError, match=r"known from t = 0\.4 to 0\.8"):
            curve.of_times(CHAIN, s, torch.tensor(t).double())


@every_schedule
def test_the_diagonal_variance_is_the_noise_left_and_what_is_open_of_x0(name):
    schedule, mixture, t = SCHEDULES[name], pair(), TIMES[2]
    exact, x0 = MixtureDenoiser(mixture, schedule), mixture.sample(50, generator=generator(1))
    xt = schedule.add_noise(x0, normal(50, 2), t)

    def second(prediction, t, cond):
        level = prediction.level
        spread = mixture.posterior_covariance(prediction.xt, level).diagonal(dim1=1, dim2=2)
        return (level.alpha / level.sigma) ** 2 * spread

    told, s = WithNoiseVariance(exact, second)(xt, t), TIMES[4]
    spread = mixture.posterior_covariance(xt, told.level).diagonal(dim1=1, dim2=2)
    _, gain, fresh = schedule.posterior_weights(s, t)
    found = Diagonal()(told, schedule, s, t)
    assert (found / (fresh + gain**2 * spread) - 1).abs().max() < 1e-7
    capped = Diagonal(spread=0.1)(told, schedule, s, t)
    assert (capped / (fresh + gain**2 * spread.clamp(max=0.01)) - 1).abs().max() < 1e-7
    with pytest.raises(ValueError, match="second network"):
        Diagonal()(exact(xt, t), schedule, s, t)


@pytest.mark.parametrize("error", [residual_error, square_error])
def test_each_second_loss_is_least_at_the_variance_of_the_noise(error):
    mixture, t = pair(), torch.full((40_000,), 0.2, dtype=torch.float64)
    exact, x0 = MixtureDenoiser(mixture, CHAIN), mixture.sample(40_000, generator=generator(1))
    truth = exact_share(mixture, exact, x0, t[0])
    eps = normal(40_000, 2)
    xt = CHAIN.add_noise(x0, eps, t[0])

    def loss(factor, shift):
        class Known:
            schedule = CHAIN

            def __call__(self, xt, t, cond=None):
                said = factor * truth + shift
                return WithNoiseVariance(exact, lambda p, t, cond: said)(xt, t)

        return error(Known(), x0, t, generator=generator(0))

    assert (xt == CHAIN.add_noise(x0, normal(40_000, 2), t[0])).all()
    least = loss(1.0, 0.0)
    for factor, shift in ((0.8, 0), (1.25, 0), (1, 0.1), (1, -0.1)):
        more = loss(factor, shift) - least
        assert more.mean() > 6 * more.std() / 200 or more.mean() > 0.002


def test_the_second_stage_teaches_the_second_network_alone():
    first, second = (PointMLP(generator=generator(k)).double() for k in (1, 2))
    for read, error in ((residual_network, residual_error), (square_network, square_error)):
        both = WithNoiseVariance(
            NetworkDenoiser(first, CHAIN), read(NetworkDenoiser(second, CHAIN))
        )
        t = torch.full((64,), 0.3, dtype=torch.float64)
        error(both, normal(64, 2), t, generator=generator(3)).mean().backward()
        assert all(w.grad is None for w in first.parameters())
        assert all(w.grad.abs().sum() > 0 for w in second.parameters())
        second.zero_grad()


def test_what_the_second_network_is_asked_for():
    class Says(torch.nn.Module):
        def forward(self, xt, clock, cond=None):
            return 0.7 * torch.ones_like(xt)

    exact, xt = MixtureDenoiser(pair(), CHAIN), normal(5, 2)
    net = NetworkDenoiser(Says(), CHAIN)
    residual = WithNoiseVariance(exact, residual_network(net))(xt, 0.3)
    square = WithNoiseVariance(exact, square_network(net))(xt, 0.3)
    assert (residual.noise_variance - math.log1p(math.exp(0.7))).abs().max() < 1e-12
    assert (square.noise_variance - (0.7 - exact(xt, 0.3).eps ** 2)).abs().max() < 1e-12
    clipped = residual.clipped(-0.1, 0.1)
    assert (clipped.noise_variance == residual.noise_variance).all()
