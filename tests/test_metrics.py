"""Metrics: closed forms, an independent quadrature, and wrong variants that must be told apart."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
import truths
from scipy.stats import norm
from truths import normal, variants

from tutorial_lib import metrics
from tutorial_lib.data import overlap3, std8
from tutorial_lib.denoiser import MixtureDenoiser, Prediction
from tutorial_lib.mixtures import GaussianMixture
from tutorial_lib.schedule import LinearVP


def line_mixture(shift: float = 0.0) -> GaussianMixture:
    means = torch.tensor([[-1.0], [0.5], [2.0]]) + shift
    return GaussianMixture([0.5, 0.2, 0.3], means, [[[0.04]], [[1.0]], [[0.25]]])


def w1_by_quadrature(points: torch.Tensor, mixture: GaussianMixture) -> float:
    """Integrate |F_n - F| numerically, in steps that no kink falls into."""
    weights, means = mixture.weights.numpy(), mixture.means[:, 0].numpy()
    stds = mixture.covariances[:, 0, 0].sqrt().numpy()
    y = np.sort(points[:, 0].numpy())

    def cdf(v: np.ndarray) -> np.ndarray:
        return norm.cdf((np.asarray(v)[..., None] - means) / stds) @ weights

    grid = np.unique(np.concatenate([np.linspace(-30, 30, 20_001), y]))
    step = np.searchsorted(y, grid[:-1], side="right") / len(y)
    nodes, shares = np.polynomial.legendre.leggauss(8)
    half = np.diff(grid) / 2
    inside = (grid[:-1] + half)[:, None] + half[:, None] * nodes
    return float((np.abs(cdf(inside) - step[:, None]) @ shares * half).sum())


def naive_energy(x: torch.Tensor, y: torch.Tensor) -> float:
    """The biased form: each point is also paired with itself."""
    return float(
        2 * torch.cdist(x, y).mean() - torch.cdist(x, x).mean() - torch.cdist(y, y).mean()
    )


def test_w1_of_one_point_is_its_mean_distance():
    standard = GaussianMixture([1.0], [[0.0]], [[[1.0]]])
    for c in (0.0, 0.7, -3.0):
        exact = c * (2 * norm.cdf(c) - 1) + 2 * norm.pdf(c)
        assert metrics.sliced_wasserstein(torch.tensor([[c]]), standard) == pytest.approx(
            exact, rel=1e-7 if c == 0.7 else 1e-12
        )  # 0.7 is rounded to float32


def test_w1_matches_quadrature_and_sees_a_shifted_reference():
    points = line_mixture().sample(200, generator=truths.generator())
    got = metrics.sliced_wasserstein(points, line_mixture())
    # a kink of |F_n - F| inside a 0.003 wide cell costs the quadrature up to 1e-6
    assert got == pytest.approx(w1_by_quadrature(points, line_mixture()), abs=2e-6)
    assert got != pytest.approx(w1_by_quadrature(points, line_mixture(shift=0.01)), abs=1e-3)


def test_w1_of_ordered_laws_is_the_difference_of_means():
    x = line_mixture().sample(500, generator=truths.generator()) + 40
    exact = float(x.mean() - line_mixture().mean)
    assert metrics.sliced_wasserstein(x, line_mixture()) == pytest.approx(exact, rel=1e-12)
    far = torch.tensor([30.0, 40.0], dtype=torch.float64)
    y = std8().sample(500, generator=truths.generator())
    angles = math.pi / 32 * torch.arange(32, dtype=torch.float64)
    gap = y.mean(0) + 50 * far  # std8 has mean 0; no direction is orthogonal enough to overlap
    exact = float((gap[0] * angles.cos() + gap[1] * angles.sin()).abs().mean())
    assert metrics.sliced_wasserstein(y + 50 * far, std8()) == pytest.approx(exact, rel=1e-9)


def test_w1_of_a_wider_gaussian():
    levels = (torch.arange(2**14, dtype=torch.float64) + 0.5) / 2**14
    quantiles = torch.special.ndtri(levels)[:, None]
    standard = GaussianMixture([1.0], [[0.0]], [[[1.0]]])
    assert metrics.sliced_wasserstein(1.3 * quantiles, standard) == pytest.approx(
        0.3 * math.sqrt(2 / math.pi), rel=1e-3
    )


def test_sliced_w1_in_three_dimensions():
    """The mean of |u . d| over the sphere is |d| / 2; 256 quasi-random u give it to 3%."""
    ball = GaussianMixture([1.0], [[0.0, 0, 0]], 1e-8 * torch.eye(3)[None])
    x = torch.tensor([[2.0, -1.0, 2.0]])
    assert metrics.sliced_wasserstein(x, ball, n_directions=256) == pytest.approx(1.5, rel=0.03)


def test_floor_of_true_samples():
    """Twelve draws average the floor that 20 earlier ones had, within 6 standard errors."""
    n, seeds, floor, spread = 5000, 12, 0.0162, 0.0063
    scores = [
        metrics.sliced_wasserstein(std8().sample(n, generator=truths.generator(s)), std8())
        for s in range(seeds)
    ]
    assert abs(np.mean(scores) - floor) < 6 * spread * math.sqrt(1 / seeds + 1 / 20)
    shifted = std8().sample(n, generator=truths.generator()) + 0.1
    assert metrics.sliced_wasserstein(shifted, std8()) > floor + 6 * spread


def test_sliced_w1_to_points_by_hand():
    x = torch.tensor([[0.0, 1.0], [2.0, 5.0]], dtype=torch.float64)
    moved = metrics.sliced_wasserstein_to_points(x, x + torch.tensor([3.0, 0.0]), torch.ones(2))
    assert moved == pytest.approx(3 * 2 / math.pi, rel=1e-3)  # the mean of 3 |cos|
    one = metrics.sliced_wasserstein_to_points(x[:, :1], torch.tensor([[0.0], [8.0]]), [3.0, 1.0])
    assert one == pytest.approx(0.25 * 2 + 0.25 * 6)


def test_sliced_w1_to_a_grid_is_that_to_the_mixture():
    axis = torch.linspace(-4, 4, 201, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).reshape(-1, 2)
    x = overlap3().component(1).sample(500, generator=torch.Generator().manual_seed(0))
    by_grid = metrics.sliced_wasserstein_to_points(x, grid, overlap3().log_prob(grid).exp())
    assert by_grid == pytest.approx(metrics.sliced_wasserstein(x, overlap3()), abs=2e-3)


def test_energy_distance_by_hand():
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [3.0]])
    assert metrics.energy_distance(x, y) == pytest.approx(3 - 1 - 3, abs=1e-15)
    assert naive_energy(x, y) == 1.0


def test_energy_distance_is_unbiased():
    """Closed form: E|N(m, 2)| = m (1 - 2 Phi(-m / sqrt 2)) + 2 / sqrt(pi) exp(-m^2 / 4)."""
    m, n, rounds = 0.5, 30, 400
    exact = 2 * (m * (1 - 2 * norm.cdf(-m / 2**0.5)) + 2 / math.pi**0.5 * math.exp(-(m**2) / 4))
    exact -= 4 / math.pi**0.5
    x, y = truths.normal(rounds, n, 1, seed=1), m + truths.normal(rounds, n, 1, seed=2)

    def draws(distance) -> torch.Tensor:
        return torch.tensor([distance(a, b) for a, b in zip(x, y, strict=True)])

    assert truths.standard_errors(draws(metrics.energy_distance), exact) < 6
    assert truths.standard_errors(draws(naive_energy), exact) > 6


def test_mmd_by_hand_and_in_closed_form():
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [3.0]])

    def kernel(d: float) -> float:
        return math.exp(-(d**2) / (2 * 2.0**2))

    exact = kernel(1) + kernel(3) - (kernel(0) + kernel(3) + kernel(1) + kernel(2)) / 2
    assert metrics.mmd(x, y, bandwidth=2.0) == pytest.approx(exact, abs=1e-15)
    # E k(X, Y) = h / sqrt(h^2 + 2) exp(-m^2 / (2 (h^2 + 2))) for N(0, 1) and N(m, 1)
    m, h, n = 0.7, 0.8, 40
    exact = 2 * h / math.sqrt(h**2 + 2) * (1 - math.exp(-(m**2) / (2 * (h**2 + 2))))
    x, y = truths.normal(400, n, 1, seed=3), m + truths.normal(400, n, 1, seed=4)

    def draws(bandwidth: float) -> torch.Tensor:
        return torch.tensor([metrics.mmd(a, b, bandwidth) for a, b in zip(x, y, strict=True)])

    assert truths.standard_errors(draws(h), exact) < 6
    assert truths.standard_errors(draws(h / 2**0.5), exact) > 6  # the kernel without its 1/2


def test_pairs_in_chunks_are_all_pairs():
    x, y = truths.normal(1500, 2, seed=1), truths.normal(1100, 2, seed=2)
    within = [torch.cdist(z, z).sum() / (len(z) * (len(z) - 1)) for z in (x, y)]
    exact = float(2 * torch.cdist(x, y).mean() - sum(within))
    assert metrics.energy_distance(x, y) == pytest.approx(exact, abs=1e-6)


def test_frechet_distance_in_closed_form():
    zero = torch.zeros(2)
    a, b = torch.diag(torch.tensor([4.0, 9.0])), torch.diag(torch.tensor([1.0, 25.0]))
    exact = 1 + 4 + 9
    assert metrics.frechet_distance(zero, a, torch.tensor([3.0, 0.0]), b) == pytest.approx(exact)
    without_root = 9 + float((a + b).trace() - 2 * (a @ b).trace())
    assert without_root != pytest.approx(exact, abs=1)
    ray = torch.tensor([[1.0, 2.0], [2.0, 4.0]])  # singular; to the origin: its trace
    assert metrics.frechet_distance(zero, ray, zero, 0 * ray) == pytest.approx(5)


def test_frechet_distance_of_covariances_that_do_not_commute():
    a, b = (z @ z.T for z in (truths.normal(5, 7, seed=1), truths.normal(5, 7, seed=2)))
    root = scipy.linalg.sqrtm((a @ b).numpy()).real
    exact = float((a + b).trace()) - 2 * np.trace(root)
    got = metrics.frechet_distance(torch.zeros(5), a, torch.zeros(5), b)
    assert got == pytest.approx(exact, rel=1e-10)
    commuting = float(((root_of(a) - root_of(b)) ** 2).sum())
    assert got != pytest.approx(commuting, rel=0.01)


def root_of(cov: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(scipy.linalg.sqrtm(cov.numpy()).real)


def test_frechet_distance_of_moved_samples():
    x = std8().sample(100, generator=truths.generator())
    shift = torch.tensor([3.0, -4.0])
    assert metrics.frechet_distance_of_samples(x, x + shift) == pytest.approx(25)
    stretched = 2 * (x - x.mean(0)) + x.mean(0)
    assert metrics.frechet_distance_of_samples(x, stretched) == pytest.approx(
        float(torch.cov(x.T).trace())
    )


@pytest.mark.parametrize("mixture", [std8(), overlap3()], ids=["std8", "overlap3"])
def test_mode_shares_of_true_samples_are_the_weights(mixture):
    x = mixture.sample(20_000, generator=truths.generator(5))
    assert truths.standard_errors(mixture.classify(x), mixture.weights) < 6
    torch.testing.assert_close(metrics.mode_shares(x, mixture), mixture.classify(x).mean(0))
    assert metrics.mode_coverage(x, mixture) < 0.02


def test_the_most_likely_mode_is_a_biased_count():
    x = overlap3().sample(100_000, generator=truths.generator(5))
    counts = torch.nn.functional.one_hot(overlap3().classify(x).argmax(1)).double()
    assert truths.standard_errors(counts, overlap3().weights) > 6


def test_mode_coverage_of_a_collapsed_sampler():
    x = std8().component(2).sample(1000, generator=truths.generator())
    assert metrics.mode_coverage(x, std8()) == pytest.approx(1 - 3 / 16, abs=1e-3)


def test_within_mode_variance_ratio():
    x, mode = std8().sample_with_labels(20_000, generator=truths.generator())
    truth = metrics.within_mode_variance_ratio(x, std8())
    # |deviation|^2 / trace has variance 1.36 in a petal of axes 2:1
    assert abs(truth - 1) < 6 * math.sqrt(1.36 / 20_000)
    centre = std8().means[mode]
    centre = torch.stack([x[mode == k].mean(0) for k in range(8)])[mode]
    narrow = metrics.within_mode_variance_ratio(centre + 0.5 * (x - centre), std8())
    assert narrow == pytest.approx(truth / 4, rel=0.01)  # a point or two change petal
    moved = metrics.within_mode_variance_ratio(x + 0.02, std8())
    assert moved == pytest.approx(truth, rel=0.02)  # a shape, whatever the place
    lonely = metrics.within_mode_variance_ratio(std8().means[:1], std8().component(0))
    assert math.isnan(lonely)


class Offset:
    """Predict the exact noise plus a constant."""

    def __init__(self, exact: MixtureDenoiser, offset: float) -> None:
        self.exact, self.offset, self.schedule = exact, offset, exact.schedule

    def __call__(self, xt, t, cond=None) -> Prediction:
        exact = self.exact(xt, t)
        return Prediction.from_eps(xt, exact.level, exact.eps + self.offset)


def test_noise_excess_sums_over_dimensions():
    exact = MixtureDenoiser(truths.gaussian(dim=3), LinearVP())
    x0 = exact.mixture.sample(50, generator=truths.generator())
    times = torch.tensor([0.1, 0.5, 0.9])
    got = metrics.noise_excess(Offset(exact, 0.2), exact, x0, times, generator=truths.generator())
    torch.testing.assert_close(got, torch.full((3,), 3 * 0.2**2, dtype=torch.float64))
    none = metrics.noise_excess(exact, exact, x0, times, generator=truths.generator())
    assert none.tolist() == [0, 0, 0]


def test_noise_excess_between_two_gaussians():
    """eps = sigma (x_t - alpha m) / (alpha^2 c + sigma^2): the excess is a chi-square's mean."""
    schedule, n = LinearVP(), 20_000
    right, wrong = (
        MixtureDenoiser(GaussianMixture([1.0], [[0.0, 0.0]], c * torch.eye(2)[None]), schedule)
        for c in (0.25, 0.5)
    )
    x0 = right.mixture.sample(n, generator=truths.generator(1))
    times = [0.05, 0.3, 0.8]
    got = metrics.noise_excess(wrong, right, x0, times, generator=truths.generator(2))
    for t, value in zip(times, got.tolist(), strict=True):
        alpha2, sigma2 = float(schedule.alpha(t)) ** 2, float(schedule.sigma(t)) ** 2
        total = [alpha2 * c + sigma2 for c in (0.25, 0.5)]
        exact = 2 * sigma2 * (1 / total[0] - 1 / total[1]) ** 2 * total[0]
        assert value == pytest.approx(exact, rel=6 / math.sqrt(n))  # chi-square of 2: std = mean


def test_sobol_normal_fills_every_cell_once():
    n = 4096
    cells = torch.special.ndtr(metrics.sobol_normal(n, 2)).mul(n).floor().long()
    for axis in cells.T:
        assert torch.equal(axis.sort().values, torch.arange(n))
    iid = torch.special.ndtr(truths.normal(n, 2)).mul(n).floor().long()
    assert not torch.equal(iid[:, 0].sort().values, torch.arange(n))


def test_sobol_normal_is_fixed_by_its_seed_alone():
    before = torch.get_rng_state()
    first, again = metrics.sobol_normal(64, 3, seed=1), metrics.sobol_normal(64, 3, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, metrics.sobol_normal(64, 3, seed=2))
    assert first.dtype == torch.float64


def test_sobol_starts_cut_the_noise_of_the_metric():
    standard = GaussianMixture([1.0], [[0.0, 0.0]], torch.eye(2)[None])
    quasi = [
        metrics.sliced_wasserstein(metrics.sobol_normal(4096, 2, s), standard) for s in (0, 1)
    ]
    iid = metrics.sliced_wasserstein(truths.normal(4096, 2), standard)
    assert max(quasi) < iid / 5


def test_bits_per_dim_of_the_uniform_law_on_bytes():
    assert metrics.bits_per_dim(3072 * math.log(256), 3072) == pytest.approx(8, rel=1e-15)
    nats = torch.tensor([3.0 * math.log(2), 0.0])
    torch.testing.assert_close(metrics.bits_per_dim(nats, 3), torch.tensor([1.0, 0.0]))


# Precision and recall


def counted_by_hand(real, made, k):
    """Precision by loops over pairs, as the paper's equations read."""
    hits = 0
    for x in made:
        for i, y in enumerate(real):
            others = sorted(float((y - z).norm()) for j, z in enumerate(real) if j != i)
            if float((x - y).norm()) <= others[k - 1]:
                hits += 1
                break
    return hits / len(made)


def is_precision_recall(measure):
    real, made = normal(60, 2, seed=1), 0.5 * normal(50, 2, seed=2) + 0.8
    want = (counted_by_hand(real, made, 3), counted_by_hand(made, real, 3))
    assert 0.05 < want[1] < want[0] < 1  # narrow samples: precise, and without recall
    return measure(real, made) == pytest.approx(want, abs=1e-9)


def test_precision_and_recall_by_hand():
    assert is_precision_recall(metrics.precision_recall)
    same = normal(100, 5)
    assert metrics.precision_recall(same, same) == (1.0, 1.0)
    assert metrics.precision_recall(same, same + 100) == (0.0, 0.0)


@variants(
    swapped=lambda real, made: metrics.precision_recall(made, real),
    **{"itself counted as neighbour": lambda real, made: metrics.precision_recall(real, made, 2)},
)
def test_wrong_precision_is_seen(wrong):
    assert not is_precision_recall(wrong)
