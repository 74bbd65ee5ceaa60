"""The page "Before you start": its formulas on Gaussians, and the numbers in its answers."""

import math
import re
from pathlib import Path

import pytest
import torch
from truths import generator, normal, variants

from tutorial_lib.gaussian import Gaussian
from tutorial_lib.likelihood import exact_divergence

PAGE = (Path(__file__).parents[1] / "notebooks" / "prerequisites.md").read_text(encoding="utf-8")
QUESTION = re.compile(
    r"\*\*Question (\d)\.\*\* (.*?)\n\n"
    r"<details><summary>Answer</summary>\n\n(.*?)\n\n</details>",
    re.DOTALL,
)
MOTION = "Differential equations, with noise and without"


def answers(section):
    """The answers of a section, by the number of the question."""
    text = PAGE.split(f"## {section}\n")[1].split("\n## ")[0]
    return {int(n): answer for n, _, answer in QUESTION.findall(text)}


def one(value):
    return torch.tensor([[float(value)]], dtype=torch.float64)


def test_every_section_has_two_questions():
    sections = re.findall(r"^## (.*)$", PAGE, re.M)
    assert len(sections) == 4 and all(set(answers(section)) == {1, 2} for section in sections)


def posterior(m, v, a, s, y):
    precision = 1 / v + a**2 / s**2
    return (m / v + a * y / s**2) / precision, 1 / precision


def posterior_without_square(m, v, a, s, y):
    precision = 1 / v + a / s**2
    return (m / v + a * y / s**2) / precision, 1 / precision


def posterior_of_variances(m, v, a, s, y):
    return (m * v + a * y * s**2) / (v + a**2 * s**2), v + a**2 * s**2


def is_bayes(rule, m=0.7, v=0.3, a=0.6, s=0.5, y=-0.4):
    """Prior times likelihood over the claimed posterior is the same for every x."""
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    mean, variance = rule(m, v, a, s, y)
    joint = Gaussian(torch.full_like(x, m), v).log_prob(x) + Gaussian(a * x, s**2).log_prob(
        torch.full_like(x, y)
    )
    if variance <= 0:
        return False
    return float((joint - Gaussian(torch.full_like(x, mean), variance).log_prob(x)).std()) < 1e-12


def test_precisions_add():
    assert is_bayes(posterior)
    assert "= 21$ degrees" in answers("Gaussian algebra")[2]
    flat = 1e12  # no prior knowledge before the first thermometer
    first = posterior(0, flat, 1, 1, 20)
    mean, variance = posterior(*first, 1, math.sqrt(2), 23)
    assert mean == pytest.approx(21) and variance == pytest.approx(2 / 3)


@variants(square=posterior_without_square, variances=posterior_of_variances)
def test_wrong_posteriors_are_seen(wrong):
    assert not is_bayes(wrong)


def test_sums_of_gaussians():
    assert "\\mathcal N(0, 1)" in answers("Gaussian algebra")[1]
    draws = 0.6 * normal(100_000) + 0.8 * normal(100_000, seed=1)
    assert abs(float(draws.var()) - 1) < 6 * math.sqrt(2 / 100_000)


def kl(m1, v1, m2, v2):
    return 0.5 * (v1 / v2 - 1 - math.log(v1 / v2) + (m1 - m2) ** 2 / v2)


def test_divergences_of_gaussians():
    for numbers in [(0.3, 0.5, -0.2, 2.0), (1, 1, 0, 1), (0, 4, 0, 1)]:
        m1, v1, m2, v2 = numbers
        exact = Gaussian(one(m1), v1).kl(Gaussian(one(m2), v2))
        assert kl(*numbers) == pytest.approx(float(exact), abs=1e-14)
    found = answers("Kullback-Leibler divergence")
    assert f"= {kl(1, 1, 0, 1) / math.log(2):.2f}$ bits" in found[1]
    wide, narrow = kl(0, 1, 0, 4), kl(0, 1, 0, 0.25)
    assert f"= {wide:.2f}$ nats" in found[2] and f"= {narrow:.2f}$ nats" in found[2]
    assert wide < narrow and f"= {math.log(2):.3f}$ for bits" in PAGE


def test_densities_of_moved_points():
    found = answers("Change of variables")
    assert f"= {2 * math.log(3):.2f}$" in found[1]
    before, after = Gaussian(torch.zeros(1, 2), 1.0), Gaussian(torch.zeros(1, 2), 9.0)
    x = normal(1, 2).float()
    fall = float(before.log_prob(x) - after.log_prob(3 * x))
    assert fall == pytest.approx(2 * math.log(3), rel=1e-5)
    density = math.exp(float(Gaussian(one(0), math.exp(-2)).log_prob(one(0))))
    assert density == pytest.approx(math.e / math.sqrt(2 * math.pi))
    assert f"= {density:.2f}$" in found[2]


def test_a_small_step_changes_the_density_by_the_divergence():
    def velocity(x):
        return torch.stack([x[:, 0] * x[:, 1], x[:, 0].sin() - 2 * x[:, 1]], dim=1)

    x, h = normal(5, 2), 1e-6
    _, divergence = exact_divergence(velocity, x)
    jacobian = torch.vmap(torch.func.jacrev(lambda x: x + h * velocity(x[None])[0]))(x)
    assert torch.allclose(jacobian.det().log() / h, divergence, atol=1e-4)


@pytest.mark.parametrize("beta", [0.5, 3.0])
def test_the_forward_process_forgets(beta):
    """Mean and variance of many Euler steps, exactly propagated, against the closed form."""
    n, mean, variance = 100_000, 2.0, 0.1
    h = 1.3 / n
    for _ in range(n):
        mean *= 1 - 0.5 * beta * h
        variance = (1 - 0.5 * beta * h) ** 2 * variance + beta * h
    assert mean == pytest.approx(2 * math.exp(-0.5 * beta * 1.3), rel=1e-4)
    assert variance - 1 == pytest.approx(-0.9 * math.exp(-beta * 1.3), rel=1e-3)


def test_both_forms_of_the_cloud_s_equation():
    """On N(0, v), by autograd: the noise term is a drift along minus half g^2 times the score."""
    x = torch.linspace(-2, 2, 9, dtype=torch.float64, requires_grad=True)
    f, g2, v = -0.5 * x, 0.7, 0.6

    def slope(y):
        return torch.autograd.grad(y.sum(), x, create_graph=True)[0]

    p = torch.exp(-0.5 * x**2 / v) / math.sqrt(2 * math.pi * v)
    noisy = -slope(f * p) + 0.5 * g2 * slope(slope(p))
    flowing = -slope((f - 0.5 * g2 * slope(p.log())) * p)
    forgotten_half = -slope((f - g2 * slope(p.log())) * p)
    assert torch.allclose(noisy, flowing, atol=1e-12)
    assert not torch.allclose(noisy, forgotten_half, atol=1e-2)
    assert "= 0$: the cloud stands still" in answers(MOTION)[2]


def test_noise_grows_with_the_root_of_time():
    assert "\\mathcal N(0, 4)" in answers(MOTION)[1]
    steps = torch.randn(20_000, 64, generator=generator(3), dtype=torch.float64)
    cut = (math.sqrt(4 / 64) * steps).sum(1)
    assert abs(float(cut.var()) - 4) < 6 * 4 * math.sqrt(2 / 20_000)
    assert float((4 / 64 * steps).sum(1).var()) < 1  # with h for its root
