"""The recipe that gives a network its analytic widths, on exact and tiny denoisers. 12 s."""

import json
import math
from dataclasses import replace

import pytest
import torch
from PIL import Image
from test_diffusion_recipe import Colours, Truth, invented

from tutorial_lib import recipes
from tutorial_lib.analytic import Estimate, WithNoiseVariance
from tutorial_lib.checkpoints import CheckpointError
from tutorial_lib.cifar10 import Images, to_pixels
from tutorial_lib.denoiser import Prediction
from tutorial_lib.recipes import analytic_widths, diffusion, judge
from tutorial_lib.recipes.analytic_widths import (
    Width,
    cheapest,
    choose_widths,
    doubt_of_head,
    drawn_widths,
    estimate_curves,
    even,
    walk_of,
)
from tutorial_lib.recipes.walks import draw
from tutorial_lib.samplers import beta, learned_range
from tutorial_lib.schedule import DiscreteVP

CONFIG = recipes.RECIPES["cifar10_analytic"].tiny
LONG = replace(CONFIG, model=replace(CONFIG.model, n_steps=1000), samples=40)
CHAIN = DiscreteVP.cosine(1000)


def known_curve():
    """u(t) of N(0, .3^2 I): sigma^2 / alpha^2 times it is the variance that x_t leaves x_0."""
    times = even(1000, 1000)
    alpha2, sigma2 = CHAIN.alpha(times) ** 2, CHAIN.sigma(times) ** 2
    return Estimate(times, alpha2 * 0.09 / (alpha2 * 0.09 + sigma2), torch.zeros(1000))


def test_both_curves_are_those_of_a_known_model():
    x0 = 0.3 * torch.randn(40, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    images = Images(to_pixels(x0), torch.zeros(40, dtype=torch.long), ("one",), "noise")
    few = replace(LONG, model=replace(LONG.model, n_steps=20), curve_images=40)
    found = estimate_curves(Truth(few.model), few, images)
    alpha2 = Truth(few.model).schedule.alpha(even(20, 20)) ** 2
    truth = alpha2 * 0.09 / (alpha2 * 0.09 + 1 - alpha2)
    for name in ("size", "error"):
        off = (found[name].mean - truth).abs() / found[name].standard_error
        assert off.max() < 6 and found[name].standard_error.max() < 0.01, name


@pytest.mark.parametrize("width", ["size", "error", "DDIM, error", "DDIM, size"])
def test_ten_steps_of_the_best_width_keep_a_gaussians_variance_and_beta_does_not(width):
    curves = {"size": known_curve(), "error": known_curve()}
    widths = choose_widths(curves, LONG.model) | drawn_widths(curves)

    def spread(name):
        width = Width(name, Truth(LONG.model), widths[name])
        pixels = draw(walk_of(width, even(1000, 10)), LONG)[0]
        return float((pixels.double() / 127.5 - 1).std())

    # the last step is the mean alone: it takes off sigma_1^2 / alpha_1^2, next to nothing
    assert spread(width) == pytest.approx(0.3, rel=0.02)
    assert spread("beta") > 0.33 and spread("DDIM") < 0.29


def test_the_quieter_width_is_the_same_but_for_the_last_noise():
    widths = drawn_widths({"size": known_curve(), "error": known_curve()})
    known = choose_widths({"error": known_curve()}, LONG.model)["error"]
    xt, two = torch.randn(3, 1, 4, 4), torch.tensor
    prediction = Prediction.from_x0(xt, CHAIN.at(0.5, like=xt), 0 * xt)
    for s, t in ((0.2, 0.3), (0.001, 0.1)):
        step = (prediction, CHAIN, two(s, dtype=torch.float64), two(t, dtype=torch.float64))
        quiet, loud = (float(w(*step)) for w in (widths["error, quieter"], known))
        assert (quiet == loud) == (s > 0.001)
        if s == 0.001:
            grey_levels = math.sqrt(2 / math.pi) * quiet**0.5 / (2 / 255)
            assert loud > quiet and grey_levels == pytest.approx(1)


def test_a_heads_doubt_gives_single_steps_their_own_width_and_long_ones_the_doubts():
    """Where v is best for doubt phi in the step from t, the stride's width is (5.3)'s."""
    xt, phi = torch.randn(5, 3, 4, 4), 0.4
    for t in (0.002, 0.3, 0.9):
        t = torch.tensor(t, dtype=torch.float64)
        s = t - 0.001
        wide, narrow = CHAIN.transition(s, t)[1], CHAIN.posterior_weights(s, t)[2]
        log_r = (wide / narrow).log()
        v = torch.log1p(phi * torch.expm1(log_r)) / log_r
        said = replace(
            Prediction.from_eps(xt, CHAIN.at(t, like=xt), xt),
            variance_fraction=torch.full_like(xt, float(v)),
        )
        single = doubt_of_head(1000)(said, CHAIN, s, t)
        assert torch.allclose(single, learned_range(said, CHAIN, s, t), rtol=1e-4)
        low = t / 2
        wide, narrow = CHAIN.transition(low, t)[1], CHAIN.posterior_weights(low, t)[2]
        # |x_0| <= 1 leaves a variance of 1 at most, which counts at t = .9
        best = narrow + min(phi, 1 / float(CHAIN.sigma(t) ** 2)) * (wide - narrow)
        found = doubt_of_head(1000)(said, CHAIN, low, t)
        assert torch.allclose(found, best.float().expand_as(found), rtol=1e-4)
    # the step to clean data, where beta_tilde is 0 and another stands in for it
    s, t = torch.tensor([0.0, 0.001], dtype=torch.float64)
    said = replace(said, xt=xt, level=CHAIN.at(t, like=xt))
    last = doubt_of_head(1000)(said, CHAIN, s, t)
    assert torch.allclose(last, learned_range(said, CHAIN, s, t), rtol=1e-4)


def test_the_cheapest_grid_of_a_gaussian_is_no_worse_than_the_even_one():
    curve = known_curve()
    found = cheapest(CHAIN, curve, (5, 10, 1000))
    assert sorted(found) == [5, 10]
    for n, times in found.items():
        assert len(times) == n and times[0] == 1 and times[-1] == 0.001
        assert bool((times.diff() < 0).all())


def test_a_tiny_run_leaves_its_record(monkeypatch, tmp_path):
    for module in (diffusion, analytic_widths):
        monkeypatch.setattr(module, "cifar10", invented)
    monkeypatch.setattr(judge, "WEIGHTS", tmp_path / "absent")
    recipes.run("cifar10_course", tiny=True, out=str(tmp_path / "course"))
    weights = str(tmp_path / "course" / "weights.safetensors")
    with pytest.raises(FileNotFoundError, match="run the recipe first"):
        recipes.run("cifar10_analytic", tiny=True, out=str(tmp_path), weights=weights + "x")
    judge.WEIGHTS.touch()
    monkeypatch.setattr(judge, "load_classifier", lambda path=None, device="cpu": Colours())
    whole = {"tiny": True, "out": str(tmp_path), "weights": weights, "checkpoint": True}
    metrics = recipes.run("cifar10_analytic", **whole)
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    assert len(metrics["bits"]) == 2 * 2 * 7 and len(metrics["judged"]) == 11 + 5
    assert all(math.isfinite(row["bits_per_dim"]) for row in metrics["bits"])
    assert all(row["fd_classifier"] >= 0 for row in metrics["judged"])
    assert {len(c["mean"]) for c in metrics["curves"].values()} == {10}
    assert metrics["grids"]["4"][0] == 10 and metrics["grids"]["4"][-1] == 1
    assert Image.open(tmp_path / "widths.jpg").size == (32 * 4, 32 * 11)
    log = (tmp_path / "log.jsonl").read_text()
    again = recipes.run("cifar10_analytic", **whole)  # goes on where its training was over
    assert again["bits"] == metrics["bits"] and (tmp_path / "log.jsonl").read_text() == log
    with pytest.raises(CheckpointError):
        recipes.run("cifar10_analytic", **whole | {"learning_rate": 2e-3})
    alone = {"out": str(tmp_path), "weights": weights, "channels": 0, "drawn": ()}
    bare = recipes.run("cifar10_analytic", tiny=True, **alone)
    assert len(bare["bits"]) == 2 * 2 * 6 and bare["judged"] == []
    assert "samples" not in bare and bare["images_seen"] == 0 < metrics["images_seen"]
    assert "with beta" in recipes.RECIPES["cifar10_analytic"].headline(metrics)


def test_the_bound_of_beta_is_that_of_a_plain_chain():
    model, config = Truth(LONG.model), replace(LONG, bound_images=8)
    x0 = 0.3 * torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    images = Images(to_pixels(x0), torch.zeros(8, dtype=torch.long), ("one",), "noise")
    times, wrapped = even(1000, 10), WithNoiseVariance(model, lambda p, t, cond: 0 * p.xt + 1)
    plain, alike = (
        analytic_widths.bound(Width("beta", who, beta), images, config, times)
        for who in (model, wrapped)
    )
    assert plain == alike
    known = choose_widths({"error": known_curve()}, LONG.model)["error"]
    better = analytic_widths.bound(Width("error", model, known), images, config, times)
    assert better["bits_per_dim"] < plain["bits_per_dim"]
