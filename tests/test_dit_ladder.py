"""The ladder of diffusion transformers: what is trained alike, and compared. Takes 10 seconds."""

import json
from dataclasses import replace

import torch
from torch.utils.flop_counter import FlopCounterMode
from truths import generator

from tutorial_lib import recipes
from tutorial_lib.cifar10 import Images
from tutorial_lib.networks.dit import CONDITIONINGS, multiply_adds
from tutorial_lib.networks.unet import UNet
from tutorial_lib.recipes import dit_ladder
from tutorial_lib.recipes.catalogue import COURSE_DIT, COURSE_NETWORK
from tutorial_lib.recipes.diffusion import held_out_loss, objective
from tutorial_lib.recipes.diffusion_run import fresh_network
from tutorial_lib.train import train

RECIPE = recipes.RECIPES["cifar10_dit_ladder"]


def invented(split, *, source=None, limit=None):
    """Flat images whose colour is their class, and a little noise."""
    labels = torch.arange(limit) % 10
    noise = torch.randint(8, (limit, 3, 32, 32), generator=generator(len(split)))
    pixels = (25 * labels[:, None, None, None] + noise).to(torch.uint8)
    return Images(pixels, labels, tuple("abcdefghij"), "colours")


def test_it_leaves_the_losses_of_every_size_and_conditioning(monkeypatch, tmp_path):
    monkeypatch.setattr(dit_ladder, "cifar10", invented)
    found = recipes.run("cifar10_dit_ladder", tiny=True, out=str(tmp_path))
    assert json.loads((tmp_path / "metrics.json").read_text()) == found
    assert [(row["width"], row["patch"]) for row in found["ladder"]] == [(16, 8), (32, 8)]
    assert [row["conditioning"] for row in found["conditionings"]] == list(CONDITIONINGS)
    same = (found["ladder"][0], found["conditionings"][-1])  # adaLN-Zero by the same seed
    assert same[0]["loss"] == same[1]["loss"] and same[0]["parameters"] == same[1]["parameters"]


def test_a_rung_is_the_loss_of_a_network_trained_by_the_diffusion_recipe():
    config, images = RECIPE.tiny, invented("train", limit=64)
    data, batch = (images.pixels, images.labels), (images.pixels[:9], images.labels[:9])
    shape = replace(dit_ladder.SHAPE, width=16, depth=1, heads=1, patch=8)
    row = dit_ladder.climbed(config, data, batch, shape, 5)
    run = config.model(shape, 5)
    assert run.predicts == "v" and run.learns_variance and run.seed == 5
    net = fresh_network(run)
    ema = train(net, data, objective(run), run.schedule(ema_decay=config.ema_decay)).ema
    assert row["loss"] == held_out_loss(ema, run, batch)
    assert row["loss"] != held_out_loss(fresh_network(run), run, batch)
    assert row["multiply_adds"] == multiply_adds(shape)


def test_the_headline_names_the_best_mean_and_the_ladders_ends():
    ways = [("adaLN", 0.3), ("adaLN", 0.1), ("adaLN-Zero", 0.15), ("adaLN-Zero", 0.2)]
    found = {"conditionings": [{"conditioning": way, "loss": x} for way, x in ways]}
    found["ladder"] = [
        {"multiply_adds": cost, "loss": x} for cost, x in ((5e6, 0.4), (9e7, 0.1), (2e6, 0.5))
    ]
    assert dit_ladder.headline(found) == (
        "adaLN-Zero is best; from 2 to 90 million products a loss of 0.5000 becomes 0.1000"
    )


def test_the_transformer_beside_the_course_network_costs_as_much():
    net, counter = (
        UNet(COURSE_NETWORK, generator=generator(0)).to("meta"),
        FlopCounterMode(display=False),
    )
    with counter, torch.device("meta"):
        net(torch.zeros(1, 3, 32, 32), torch.zeros(1))
    assert abs(multiply_adds(COURSE_DIT) / (counter.get_total_flops() / 2) - 1) < 0.03
