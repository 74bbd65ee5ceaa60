"""Classifier guidance of a chain's means: exact steps, the other form's limit. Takes 2 s."""

import math

import pytest
import torch
from labelled import bar, exact, points
from truths import generator, normal, variants

from tutorial_lib.data import overlap3
from tutorial_lib.denoiser import Condition
from tutorial_lib.guidance import (
    ClassifierGuided,
    Unlabelled,
    guided_ancestral,
    label_log_prob,
)
from tutorial_lib.metrics import sliced_wasserstein
from tutorial_lib.samplers import ancestral, beta, beta_tilde, final
from tutorial_lib.schedule import uniform_times


def step_by_hand(t, s, scale, variance, gradient):
    """mean + scale variance gradient(mean, x_t) + noise, with the exact scores' difference."""
    denoiser, (x, cond, _) = exact()[0], points("overlap3", "linear", t)
    schedule = denoiser.schedule
    prediction = denoiser(x, t)
    mean = schedule.posterior(prediction.x0, x, s, t).mean

    def exact_slope(x, t):
        return denoiser(x, t, cond).score - denoiser(x, t).score

    spread = variance(prediction, schedule, s, t)
    z = torch.randn(x.shape, generator=generator(7), dtype=x.dtype)
    return mean + scale * gradient(exact_slope, mean, x, s, t, spread) + spread**0.5 * z


def step(t, s, scale=1.0, variance=beta_tilde):
    (denoiser, classifier), (x, cond, _) = exact(), points("overlap3", "linear", t)
    times, model = torch.tensor([t, s], dtype=torch.float64), Unlabelled(denoiser)
    how = {"similarity": label_log_prob(classifier), "scale": scale, "variance": variance}
    (found,) = guided_ancestral(model, x, times, cond, generator=generator(7), **how)
    return found


def step_gap(gradient, t=0.5, s=0.3, scale=1.5, variance=beta_tilde):
    theirs = step_by_hand(t, s, scale, variance, gradient)
    return float((step(t, s, scale, variance) - theirs).abs().max())


def at_the_mean(exact_slope, mean, x, s, t, spread):
    return spread * exact_slope(mean, s)


def at_the_old_point(exact_slope, mean, x, s, t, spread):
    return spread * exact_slope(x, t)


def at_the_old_time(exact_slope, mean, x, s, t, spread):
    return spread * exact_slope(mean, t)


def by_the_std(exact_slope, mean, x, s, t, spread):
    return spread**0.5 * exact_slope(mean, s)


def against(exact_slope, mean, x, s, t, spread):
    return -spread * exact_slope(mean, s)


def half_shift(exact_slope, mean, x, s, t, spread):
    return spread * exact_slope(mean, s) / 2


@pytest.mark.parametrize("variance", [beta, beta_tilde])
@pytest.mark.parametrize("t, s", [(1.0, 0.9), (0.5, 0.3), (0.02, 0.01)])
def test_a_step_moves_the_mean_by_variance_times_gradient(t, s, variance):
    assert step_gap(at_the_mean, t, s, variance=variance) < 1e-11


@variants(a=at_the_old_point, b=at_the_old_time, c=by_the_std, d=against, e=half_shift)
def test_wrong_shifts_are_seen(wrong):
    assert step_gap(wrong) > 0.01


@pytest.mark.parametrize("variance", [beta, beta_tilde])
def test_the_last_step_is_guided_by_its_variance_and_adds_no_noise(variance):
    (denoiser, classifier), (x, cond, _) = exact(), points("overlap3", "linear", 0.1)
    zero, model = torch.tensor(0.0, dtype=torch.float64), Unlabelled(denoiser)
    prediction = model(x, 0.1)
    mean = denoiser.schedule.posterior(prediction.x0, x, 0.0, 0.1).mean.requires_grad_()
    chosen = classifier(mean, zero).log_softmax(1).gather(1, cond.label[:, None]).sum()
    (gradient,) = torch.autograd.grad(chosen, mean)
    spread = variance(prediction, denoiser.schedule, zero, torch.tensor(0.1, dtype=zero.dtype))
    gap = step(0.1, 0.0, 1.5, variance) - (mean + 1.5 * spread * gradient).detach()
    assert float(gap.abs().max()) < 1e-11
    assert (float((spread * gradient).abs().max()) > 1e-3) == (variance is beta)


def test_unguided_it_is_the_ancestral_chain():
    (denoiser, classifier), x = exact(), normal(20, 2)
    cond, times = Condition(label=torch.arange(20) % 3), uniform_times(15)
    how = {"similarity": label_log_prob(classifier), "variance": beta}
    plain = list(ancestral(denoiser, x, times, cond, generator=generator(5), variance=beta))
    for scale, same in [(0.0, True), (0.5, False)]:
        walk = guided_ancestral(
            denoiser, x, times, cond, generator=generator(5), scale=scale, **how
        )
        gaps = [float((a - b).abs().max()) for a, b in zip(walk, plain, strict=True)]
        assert (max(gaps) < 1e-12) == same


def apart(h, scale, t=0.5, variance=beta):
    """Distance of one step of the two forms, with the same noise."""
    (denoiser, classifier), (x, cond, _) = exact(), points("overlap3", "linear", t)
    guided = ClassifierGuided(Unlabelled(denoiser), classifier, scale=1.0)
    times = torch.tensor([t, t - h], dtype=torch.float64)
    (ours,) = ancestral(guided, x, times, cond, generator=generator(7), variance=variance)
    return float((ours - step(t, t - h, scale, variance)).abs().mean())


@pytest.mark.parametrize("variance", [beta, beta_tilde])
def test_the_two_forms_agree_to_first_order(variance):
    """A step of h guides by O(h); the forms differ by O(h^2), a wrong scale by O(h)."""
    right, wrong = (
        math.log2(apart(2e-3, s, variance=variance) / apart(1e-3, s, variance=variance))
        for s in (1.0, 0.9)
    )
    assert 1.9 < right < 2.1 and 0.8 < wrong < 1.2


def test_the_shifted_chain_samples_the_class():
    denoiser, classifier = exact()
    n, how = 1000, {"similarity": label_log_prob(classifier), "variance": beta}
    found = {}
    for scale in (1.0, 0.5):
        x, cond = normal(n, 2, seed=3), Condition(torch.full((n,), 1))
        walk = guided_ancestral(
            Unlabelled(denoiser),
            x,
            uniform_times(60),
            cond,
            generator=generator(9),
            scale=scale,
            **how,
        )
        found[scale] = sliced_wasserstein(final(walk), overlap3().component(1)) / bar(1, n)
    assert found[1.0] < 1 < found[0.5]
