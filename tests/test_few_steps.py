"""The recipe that walks a network in few steps, on exact denoisers and a tiny network. 5 s."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from test_diffusion_recipe import Colours, Truth, invented

from tutorial_lib import recipes
from tutorial_lib.recipes import diffusion, few_steps, judge
from tutorial_lib.recipes.few_steps import WIDTHS, between, draw, round_trip
from tutorial_lib.schedule import uniform_times

CONFIG = recipes.RECIPES["cifar10_few_steps"].tiny
LONG = replace(CONFIG, model=replace(CONFIG.model, n_steps=1000), samples=20)


def spread(pixels):
    return float((pixels.double() / 127.5 - 1).std())


@pytest.mark.parametrize("width", WIDTHS)
def test_every_width_ends_at_the_data_of_a_known_model(width):
    pixels = draw(Truth(LONG.model), LONG, uniform_times(300), width)
    assert pixels.shape == (20, 3, 32, 32) and pixels.dtype == torch.uint8
    assert spread(pixels) == pytest.approx(0.3, rel=0.04)
    assert torch.equal(pixels, draw(Truth(LONG.model), LONG, uniform_times(300), width))


def test_few_wide_steps_are_too_noisy_and_few_still_ones_too_smooth():
    """Of DDPM's larger width and eta = 0 in ten steps; for a Gaussian both are closed form."""
    times = uniform_times(10)
    still, wide = (spread(draw(Truth(LONG.model), LONG, times, w)) for w in (0.0, "sigma-hat"))
    assert still < 0.3 < wide


def test_the_same_noise_gives_nearly_the_same_image_in_more_steps_but_only_without_new_noise():
    def apart(width):
        few, many = (draw(Truth(LONG.model), LONG, uniform_times(n), width) for n in (50, 300))
        return float((few.double() - many.double()).square().mean())

    assert apart(1.0) > 20 * apart(0.0)


def test_a_round_trip_comes_closer_with_more_steps():
    real = 0.3 * torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    few, more = (round_trip(Truth(LONG.model), LONG, real, n) for n in (20, 80))
    errors = [float((x - real).square().mean()) for x in (few, more)]
    assert errors[1] < errors[0] / 2 and errors[1] < 0.01


def test_rows_between_two_noises_run_from_one_to_the_other():
    rows = between(Truth(LONG.model), LONG).unflatten(0, (4, 4))
    gaps = (rows[:, 1:] - rows[:, :-1]).square().mean((0, 2, 3, 4))
    whole = (rows[:, -1] - rows[:, 0]).square().mean()
    assert (gaps < 0.4 * whole).all() and (rows[0, 0] != rows[1, 0]).any()


def test_a_tiny_run_leaves_its_record(monkeypatch, tmp_path):
    for module in (diffusion, few_steps):
        monkeypatch.setattr(module, "cifar10", invented)
    monkeypatch.setattr(judge, "WEIGHTS", tmp_path / "absent")
    recipes.run("cifar10_course", tiny=True, out=str(tmp_path / "course"))
    weights = str(tmp_path / "course" / "weights.safetensors")
    with pytest.raises(FileNotFoundError, match="run the recipe first"):
        recipes.run("cifar10_few_steps", tiny=True, out=str(tmp_path), weights=weights + "x")
    judge.WEIGHTS.touch()
    monkeypatch.setattr(judge, "load_classifier", lambda path=None, device="cpu": Colours())
    metrics = recipes.run("cifar10_few_steps", tiny=True, out=str(tmp_path), weights=weights)
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    assert len(metrics["table"]) == 2 * len(WIDTHS) + 2 and "images_seen" not in metrics
    assert all(row["fd_classifier"] > 0 for row in metrics["table"])
    assert [row["steps"] for row in metrics["round_trip"]] == [4, 8]
    assert metrics["config"]["weights"] is None
    assert metrics["trained"]["recipe"] == "cifar10_course"
    sizes = {"same_noise": (4, 2), "round_trip": (4, 3), "between": (4, 4)}
    for name, (columns, rows) in sizes.items():
        assert Image.open(tmp_path / f"{name}.jpg").size == (32 * columns, 32 * rows)
    assert recipes.RECIPES["cifar10_few_steps"].headline(metrics).endswith("in 2 steps")
