"""The recipes of notebook 14: what is measured of a first stage, what is drawn in one. 40 s."""

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from truths import generator

from tutorial_lib import recipes
from tutorial_lib.captions import all_claims, caption_tokens
from tutorial_lib.denoiser import Condition
from tutorial_lib.first_stage import FirstStage
from tutorial_lib.gaussian import Gaussian
from tutorial_lib.latent import LatentSpace
from tutorial_lib.losses import v_error
from tutorial_lib.pretrained import clip
from tutorial_lib.recipes import first_stages, latents
from tutorial_lib.recipes.shapes import captioned_pictures
from tutorial_lib.recipes.text_to_image import CaptionJudge, denoiser, objective
from tutorial_lib.shape_world import HELD_OUT, draw_scenes

TINY = {name: recipes.RECIPES[f"shapes_{name}"].tiny for name in ("kl_4", "vq_4", "latent_4")}


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """A folder with the records of two tiny first stages."""
    folder = tmp_path_factory.mktemp("results")
    for name in ("shapes_kl_4", "shapes_vq_4"):
        recipes.run(name, tiny=True, out=str(folder / name))
    return folder


def test_first_stages_leave_records_weights_and_pictures(records):
    for name in ("shapes_kl_4", "shapes_vq_4"):
        found = json.loads((records / name / "metrics.json").read_text())
        assert found["factor"] == 4 and found["numbers"] == 4 * 8 * 8
        assert (records / name / "samples.jpg").exists()
        assert "f = 4:" in recipes.RECIPES[name].headline(found)
        losses = [json.loads(line)["loss"] for line in (records / name / "log.jsonl").open()]
        assert losses[-1] < losses[0]
    assert found["codes_used"] > 1  # the unused were moved before training


class Identity(nn.Module):
    """A first stage that changes nothing, with latents of a given spread."""

    quantiser = None

    def __init__(self, deviation):
        super().__init__()
        self.deviation = deviation

    def law(self, x):
        return Gaussian(x, torch.full_like(x, self.deviation**2))

    def decode(self, z):
        return z


def test_what_changes_nothing_is_read_right_and_errors_are_those_of_its_noise():
    config = replace(TINY["kl_4"], tested=200)
    scenes, x = first_stages.unseen(config)
    exact = first_stages.measured(Identity(1e-6), scenes, x, config)
    assert exact["right"] > 0.97 and exact["psnr"] > 100 and exact["fd_clip"] < 1e-5
    assert exact["numbers"] == 3 * 32 * 32 and abs(exact["deviation"] - float(x.std())) < 1e-3
    noisy = first_stages.measured(Identity(0.1), scenes, x, config)
    assert abs(noisy["psnr"] - 10 * math.log10(4 / 0.1**2)) < 0.05
    assert abs(noisy["absolute"] - 0.1 * math.sqrt(2 / math.pi)) < 1e-3
    nats = 0.5 * (0.01 - 1 - math.log(0.01) + x.square()).flatten(1).sum(1).mean()
    assert abs(noisy["bits"] - float(nats) / math.log(2)) < 1
    assert noisy["right"] < exact["right"] or noisy["fd_clip"] > exact["fd_clip"]


def test_the_rate_of_codes_is_their_entropy():
    stage = FirstStage(TINY["vq_4"].stage, generator=generator(0))
    quantiser = stage.quantiser
    even = torch.arange(128).repeat(3).view(6, 8, 8)
    found = first_stages.rate(stage, quantiser.vectors(even))
    assert found == {"bits": 64 * 7, "codes_used": 128}
    half = torch.where(torch.arange(64) < 32, 0, 1).view(1, 8, 8)
    assert first_stages.rate(stage, quantiser.vectors(half)) == {"bits": 64, "codes_used": 2}
    assert first_stages.rate(stage, quantiser.vectors(0 * half)) == {"bits": 0, "codes_used": 1}


@pytest.mark.parametrize("perceptual", [0.0, 50.0])
def test_the_loss_is_the_absolute_error_and_the_price(perceptual):
    config = replace(TINY["kl_4"], weight=0.3, perceptual=perceptual)
    stage = first_stages.fresh_stage(config)
    pixels = torch.randint(256, (3, 3, 32, 32), generator=generator(1), dtype=torch.uint8)
    found = first_stages.objective(config)(stage, pixels, generator(2))
    x = pixels.float() / 127.5 - 1
    restored = stage(x, generator=generator(2))
    expected = (restored.x - x).abs().flatten(1).sum(1) + 0.3 * restored.price
    if perceptual:
        expected += perceptual * (1 - (clip().image(x) * clip().image(restored.x)).sum(1))
    assert (found - expected / 3072).abs().max() < 1e-6


# Inside


def caption(n):
    scenes = draw_scenes(n, generator=generator(2), held_out=HELD_OUT)
    return caption_tokens(all_claims(scenes), generator=generator(3))


def test_a_latent_run_scales_what_its_first_stage_left(records, tmp_path, monkeypatch):
    monkeypatch.setattr(latents, "RESULTS", records)
    found = recipes.run("shapes_latent_4", tiny=True, out=str(tmp_path / "scaled"))
    assert found == json.loads((tmp_path / "scaled" / "metrics.json").read_text())
    first = json.loads((records / "shapes_kl_4" / "metrics.json").read_text())
    assert abs(found["scale"] * first["deviation"] - 1) < 0.1
    assert found["drawn_per_second"] > 0 and "pictures a second" in latents.headline(found)
    plain = recipes.run("shapes_latent_4_unscaled", tiny=True, out=str(tmp_path / "plain"))
    assert plain["scale"] == 1
    coded = recipes.run("shapes_latent_4_vq", tiny=True, out=str(tmp_path / "coded"))
    assert coded["scale"] != found["scale"]


def test_shuffled_latents_lost_their_layout_alone(records, tmp_path, monkeypatch):
    monkeypatch.setattr(latents, "RESULTS", records)
    config = recipes.RECIPES["shapes_latent_4_shuffled"].tiny
    mixed, stage = latents.first_stage(config), latents.first_stage(TINY["latent_4"])
    x = torch.rand(2, 3, 32, 32, generator=generator(1))
    z, plain = mixed.law(x).mean, stage.law(x).mean
    assert not torch.equal(z, plain)
    assert torch.equal(z.flatten(2).sort().values, plain.flatten(2).sort().values)
    channels = z.flatten(2)  # one order for all pictures and channels
    places = [plain.flatten(2)[0, 0].tolist().index(v) for v in channels[0, 0].tolist()]
    assert torch.equal(channels, plain.flatten(2)[:, :, places])
    assert torch.equal(mixed.decode(z), stage.decode(plain))
    found = recipes.run("shapes_latent_4_shuffled", tiny=True, out=str(tmp_path))
    assert found["scale"] > 0


def test_pixels_can_be_latents_of_size_one(tmp_path):
    found = recipes.run("shapes_pixels_scaled", tiny=True, out=str(tmp_path))
    config = recipes.RECIPES["shapes_pixels_scaled"].tiny
    pixels, _ = captioned_pictures(config.images, seed=config.seed, device="cpu")
    x = pixels.float() / 127.5 - 1
    assert abs(found["scale"] * float(x.std()) - 1) < 1e-3
    space = LatentSpace(latents.first_stage(config), found["scale"])
    assert torch.allclose(space.enter(x), found["scale"] * x)
    assert torch.allclose(space.leave(space.enter(x)), x, atol=1e-6)


def test_the_distance_is_to_the_scenes_that_the_captions_tell_of(monkeypatch):
    judge = latents.LatentJudge(TINY["latent_4"], None)
    told = next(iter(latents.scene_pool(8, seed=3, device="cpu", held_out=HELD_OUT)))
    asked = []

    def draw(model, tokens, w, steps):
        asked.append((tokens, w))
        return told[1].float() / 127.5 - 1

    monkeypatch.setattr(judge, "draw", draw)
    assert abs(judge.distance(None)) < 1e-6
    assert torch.equal(asked[0][0], told[2]) and asked[0][1] == 0
    monkeypatch.setattr(judge, "draw", lambda *a: -draw(*a))
    assert judge.distance(None) > 0.01


def test_without_a_stage_it_is_the_text_to_image_run(tmp_path):
    found = recipes.run("shapes_patches", tiny=True, out=str(tmp_path))
    assert "scale" not in found and found["table"][0]["w"] == 0
    config = recipes.RECIPES["shapes_patches"].tiny
    judge, tokens = latents.LatentJudge(config, None), caption(2)
    model = denoiser(judge.network())
    drawn = judge.draw(model, tokens, 1.0, 3)
    assert torch.equal(drawn, CaptionJudge(config).draw(model, tokens, 1.0, 3))


def test_latents_are_kept_in_half_precision_and_learned_as_they_are(records, monkeypatch):
    monkeypatch.setattr(latents, "RESULTS", records)
    config = TINY["latent_4"]
    space = LatentSpace(latents.first_stage(config), 3.0)
    pixels = torch.randint(256, (5, 3, 32, 32), generator=generator(1), dtype=torch.uint8)
    z = latents.latents_of(space, pixels)
    assert z.dtype == torch.float16 and z.shape == (5, 4, 8, 8)
    exact = space.enter(pixels.float() / 127.5 - 1)
    assert (z - exact).abs().max() < 1e-3 * exact.abs().max()
    net = latents.fresh_network(config)
    tokens = caption(5)
    config = replace(config, unlabelled=0.0)
    found = objective(config)(net, (z, tokens), generator(4))
    draw = generator(4)
    t = torch.rand(2, 5, generator=draw)[0].double() ** config.time_power
    cond = Condition(text=tokens)
    assert (
        found - v_error(denoiser(net), z.float(), t, cond, generator=draw) / 256
    ).abs().max() < 1e-6


def test_what_is_drawn_inside_a_space_leaves_it(records, monkeypatch):
    monkeypatch.setattr(latents, "RESULTS", records)
    config = TINY["latent_4"]
    stage = latents.first_stage(config)
    asked = []

    class Space:
        def leave(self, z):
            asked.append(z)
            return 9 * stage.decode(z)

    judge, tokens = latents.LatentJudge(config, Space()), caption(3)
    drawn = judge.draw(denoiser(judge.network()), tokens, 0.0, 3)
    assert drawn.shape == (3, 3, 32, 32) and drawn.abs().max() <= 1
    (z,) = asked
    assert z.shape == (3, 4, 8, 8)
    assert torch.equal(drawn, (9 * stage.decode(z)).clamp(-1, 1))
