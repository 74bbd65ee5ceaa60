"""ControlNets of the shape world: what a run begins with, what counts as obeyed. Takes 60 s."""

import json
from dataclasses import replace

import pytest
import torch
from truths import generator

from tutorial_lib import pretrained, recipes
from tutorial_lib.denoiser import Condition, Prediction
from tutorial_lib.losses import v_error
from tutorial_lib.oracle import Reading
from tutorial_lib.pretrained import SCHEDULE
from tutorial_lib.recipes import control
from tutorial_lib.recipes.control import Trial, controlled, followed
from tutorial_lib.recipes.record import load_weights
from tutorial_lib.recipes.text_to_image import denoiser
from tutorial_lib.shape_world import SHAPES, draw_scenes, layout, outlines, render

TINY = recipes.RECIPES["shapes_control_outlines"].tiny


def inputs(n=3, channels=1):
    draw = generator(1)
    x, hint = (
        torch.randn(n, 3, 32, 32, generator=draw),
        torch.rand(n, channels, 32, 32, generator=draw),
    )
    tokens = pretrained.empty_caption().text.expand(n, -1)
    return x, torch.linspace(0.1, 0.9, n), Condition(text=tokens, hint=hint)


@pytest.mark.parametrize(("kind", "channels"), [("outlines", 1), ("layout", len(SHAPES))])
def test_it_begins_as_the_base(kind, channels):
    net = controlled(replace(TINY, map=kind)).eval()
    xt, clock, cond = inputs(channels=channels)
    bare = net(xt, clock, cond.without("hint"))
    assert torch.equal(net(xt, clock, cond), bare)
    base = pretrained.text_to_image().net
    assert (base(xt, clock, cond.without("hint")) - bare).abs().max() < 1e-4
    learns = [name for name, p in net.named_parameters() if p.requires_grad]
    assert learns and all(name.startswith("net.controls.0.") for name in learns)


def test_what_the_variants_begin_with():
    def weights(**how):
        (one,) = controlled(replace(TINY, **how)).net.controls
        return one

    base = pretrained.text_to_image().net.net.encoder.state_dict()
    copied, anew, ordinary = weights(), weights(copied=False), weights(zero=False)
    same = [torch.equal(x, base[name]) for name, x in copied.encoder.state_dict().items()]
    assert all(same)
    assert not torch.equal(anew.encoder.first.weight, base["first.weight"])
    assert not any(x.weight.any() for x in (*copied.leave, *anew.leave, ordinary.enter))
    assert all(x.weight.any() for x in ordinary.leave)


def test_a_map_is_followed_by_as_many_objects_of_its_shapes_in_their_places():
    scenes = draw_scenes(40, generator=generator(2))
    parts = {k: getattr(scenes, k) for k in ("present", "size", "colour", "shape", "centre")}
    read = Reading(**parts)
    assert followed(scenes, read).all()
    other_colours = Reading(**parts | {"colour": (scenes.colour + 1) % 8})
    assert followed(scenes, other_colours).all()  # of which a map says nothing
    assert not followed(scenes, Reading(**parts | {"shape": (scenes.shape + 1) % 6})).any()
    assert not followed(scenes, Reading(**parts | {"centre": scenes.centre + 1.5})).any()
    fewer = scenes.present.clone()
    fewer[:, 0] = False
    assert not followed(scenes, Reading(**parts | {"present": fewer})).any()
    turned = {k: x.flip(1) for k, x in parts.items()}  # in which order they are read is nothing
    assert followed(scenes, Reading(**turned)).all()


def test_true_pictures_obey_and_others_do_not(monkeypatch):
    trial = Trial(replace(TINY, tested=100))
    monkeypatch.setattr(trial, "draw", lambda *args, **how: render(trial.scenes))
    found = trial.obeyed(None, "both", 0.0, said=True)
    assert min(found["followed"], found["caption"]) > 0.95 and found["iou"] > 0.9
    monkeypatch.setattr(trial, "plain", lambda ema: None)
    assert trial.look(None) == [found]
    monkeypatch.setattr(trial, "draw", lambda *args, **how: render(trial.scenes).roll(1, 0))
    found = trial.obeyed(None, "both", 0.0, said=True)
    assert found["followed"] < 0.2 and found["iou"] < 0.5


@pytest.mark.parametrize("way", [*control.WAYS, "none"])
def test_ways_differ_in_who_is_told_the_map_and_how_features_weigh(way, monkeypatch):
    trial, told = Trial(TINY), []
    net = controlled(TINY)

    class Told:
        schedule = SCHEDULE

        def __call__(self, xt, t, cond=None):
            told.append((cond, net.net.weights))
            return Prediction.from_v(xt, SCHEDULE.at(t, like=xt), 0 * xt)

    monkeypatch.setattr(control, "denoiser", lambda net: Told())
    trial.draw(net, way, 2.0, said=False)
    cond, weights = told[0]
    n = len(trial.maps)
    if way == "none":
        assert cond.hint is None
    else:
        assert torch.equal(cond.hint[:n], trial.maps)
        rest = cond.hint[n:]
        assert torch.equal(rest, trial.maps) if way == "both" else not rest.any()
    assert torch.equal(cond.text[:n], cond.text[n:])  # nothing is said
    law = {"resolution": 2.0, "depth": 0.825 ** -(len(weights) - 1)}.get(way, 1.0)
    assert abs(weights[-1] / weights[0] - law) < 1e-9


def test_the_loss_is_the_error_in_v_told_the_map():
    net, config = controlled(TINY), replace(TINY, unlabelled=0.0)
    pixels = torch.randint(256, (3, 3, 32, 32), generator=generator(1), dtype=torch.uint8)
    maps = torch.randint(256, (3, 1, 32, 32), generator=generator(2), dtype=torch.uint8)
    tokens = pretrained.empty_caption().text.expand(3, -1)
    found = control.objective(config)(net, (pixels, tokens, maps), generator(3))
    draw = generator(3)
    t = torch.rand(2, 3, generator=draw)[0].double() ** config.time_power
    cond, x0 = Condition(text=tokens, hint=maps / 255), pixels.float() / 127.5 - 1
    expected = v_error(denoiser(net), x0, t, cond, generator=draw) / 3072
    assert (found - expected).abs().max() < 1e-6


def test_maps_are_those_of_the_scenes_in_eight_bits():
    for kind, of in (("outlines", outlines), ("layout", layout)):
        pixels, tokens, maps = control.mapped_pictures(replace(TINY, map=kind, images=7))
        ((scenes, same, _),) = control.scene_pool(
            7, seed=0, device="cpu", held_out=control.HELD_OUT
        )
        assert torch.equal(pixels, same) and len(tokens) == 7
        assert (maps / 255 - of(scenes)).abs().max() <= 0.5 / 255 + 1e-6


def test_it_leaves_its_record_and_only_what_learned(tmp_path):
    found = recipes.run("shapes_control_outlines", tiny=True, out=str(tmp_path))
    assert json.loads((tmp_path / "metrics.json").read_text()) == found
    assert len(found["table"]) == 2 * len(control.WAYS) and found["curve"] == []
    weights, about = load_weights(tmp_path / "weights.safetensors")
    assert about["recipe"] == "shapes_control_outlines"
    assert all(name.startswith("net.controls.0.") for name in weights)
    assert sum(x.numel() for x in weights.values()) == found["parameters"]
    assert "maps followed" in control.headline(found)
