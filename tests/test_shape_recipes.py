"""The recipes of the shape world, tiny; and who judges what was drawn. Takes 30 seconds."""

import json
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from PIL import Image
from truths import generator

from tutorial_lib import recipes
from tutorial_lib.captions import LENGTH, read_tokens
from tutorial_lib.clip import CLIP
from tutorial_lib.pretrained import empty_caption
from tutorial_lib.recipes import shape_clip, text_to_image
from tutorial_lib.recipes.shapes import scene_pool
from tutorial_lib.recipes.text_to_image import (
    CaptionJudge,
    fresh_network,
    objective,
)
from tutorial_lib.shape_world import COLOURS, HELD_OUT, SHAPES, render

TINY = recipes.RECIPES["shapes_text_to_image"].tiny


def test_a_pool_has_pictures_with_a_true_caption_each_and_no_pair_that_is_held_out():
    (part,) = scene_pool(300, seed=3, device="cpu", held_out=HELD_OUT)
    scenes, pixels, tokens = part
    assert pixels.dtype == torch.uint8 and pixels.shape == (300, 3, 32, 32)
    assert (pixels.double() / 127.5 - 1 - render(scenes)).abs().max() < 1 / 127
    names = tuple(COLOURS)
    pairs = zip(scenes.colour[scenes.present], scenes.shape[scenes.present], strict=True)
    assert not {(names[c], SHAPES[s]) for c, s in pairs} & set(HELD_OUT)
    assert tokens.shape == (300, LENGTH) and len(set(read_tokens(tokens))) > 250


def test_the_oracle_trains_and_leaves_its_record(tmp_path):
    found = recipes.run("shapes_oracle", tiny=True, out=str(tmp_path))
    assert json.loads((tmp_path / "metrics.json").read_text()) == found
    assert set(found["clean"]) == {"count", "size", "colour", "shape", "place", "everything"}
    assert "% of clean pictures" in recipes.RECIPES["shapes_oracle"].headline(found)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "log.jsonl").open()]
    assert losses[-1] < losses[0]


def test_a_text_to_image_network_trains_and_leaves_its_record(tmp_path):
    found = recipes.run("shapes_text_to_image", tiny=True, out=str(tmp_path))
    assert json.loads((tmp_path / "metrics.json").read_text()) == found
    assert [row["w"] for row in found["table"] if row["steps"] == 25] == list(TINY.scales)
    assert {row["step"] for row in found["curve"]} == {10, 20}
    assert found["parameters"].keys() == {"net", "encoder"}
    assert Image.open(tmp_path / "samples.jpg").size == (16 * 32, 6 * 32)
    assert (tmp_path / "weights.safetensors").exists()
    assert "drawn right" in recipes.RECIPES["shapes_text_to_image"].headline(found)


@pytest.mark.parametrize("name", ["shapes_clip", "shapes_clip_noisy", "shapes_clip_careful"])
def test_clip_trains_and_leaves_its_record(tmp_path, name):
    found = recipes.run(name, tiny=True, out=str(tmp_path))
    assert json.loads((tmp_path / "metrics.json").read_text()) == found
    times = [str(t) for t in shape_clip.PROBED]
    assert list(found["at"]) == (times if name.endswith("noisy") else ["0.0"])
    assert "zero-shot" in recipes.RECIPES[name].headline(found)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "log.jsonl").open()]
    assert sum(losses[-5:]) < sum(losses[:5])
    config = recipes.RECIPES[name].tiny
    net = CLIP(config.network, generator=generator(0)).eval()
    net.load_state_dict(safetensors.torch.load_file(tmp_path / "weights.safetensors"))
    again = shape_clip.clip_tests(net, config)
    for kind in ("zero_shot", "chosen"):
        assert again[kind] == pytest.approx(found["at"]["0.0"][kind], abs=0.15)


class Painter(CaptionJudge):
    """Paint the very scenes that captions were drawn from, and change them before."""

    def __init__(self, spoil=lambda scenes: scenes):
        super().__init__(TINY)
        self.spoil, self.scenes = spoil, []

    def draw(self, model, tokens, w, steps):
        return render(self.spoil(self.scenes.pop(0)))


def painted(monkeypatch, spoil, n=200):
    painter, drawn = Painter(spoil), text_to_image.draw_scenes

    def remembered(*args, **how):
        painter.scenes.append(drawn(*args, **how))
        return painter.scenes[-1]

    monkeypatch.setattr(text_to_image, "draw_scenes", remembered)
    return painter.shares(None, 0.0, n)


def test_a_painter_who_sees_the_scenes_gets_all_captions_right(monkeypatch):
    shares = painted(monkeypatch, lambda scenes: scenes)
    kinds = ("one", "two", "three", "seen", "unseen", "mix")
    assert min(shares[kind] for kind in kinds) > 0.98


@pytest.mark.parametrize(
    ("spoil", "right"),
    [
        (lambda s: replace(s, paint=s.paint.roll(1, 0)), {"one": 0.25, "three": 0.1}),
        (lambda s: replace(s, centre=-s.centre), {"seen": 1.0, "two": 0.5, "three": 0.5}),
        (lambda s: replace(s, paint=s.paint.flip(1)), {"one": 0.35, "three": 0.3}),
        (lambda s: replace(s, present=s.present.roll(1, 1)), {"one": 0.2, "three": 1.0}),
    ],
    ids=["another's paint", "the other side", "paints exchanged", "another object"],
)
def test_a_painter_who_is_wrong_is_found_out(monkeypatch, spoil, right):
    shares = painted(monkeypatch, spoil)
    for kind, most in right.items():
        if most == 1.0:
            assert shares[kind] > 0.97
        else:
            assert shares[kind] < most


def test_captions_are_emptied_as_often_as_the_run_says():
    config = replace(TINY, unlabelled=0.25)
    asked = []

    class Listening(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.one = torch.nn.Parameter(torch.ones(()))

        def forward(self, xt, clock, cond):
            asked.append(cond.text)
            return self.one * xt

    pixels = torch.zeros(4000, 3, 32, 32, dtype=torch.uint8)
    tokens = torch.full((4000, LENGTH), 7)
    loss = objective(config)(Listening(), (pixels, tokens), generator(1))
    assert loss.shape == (4000,)
    empty = (asked[0] == empty_caption().text).all(1).double().mean()
    assert float(empty) == pytest.approx(0.25, abs=0.042)  # 6 standard errors
    assert read_tokens(empty_caption().text) == [""]


def test_the_network_learns_words_and_pictures_together():
    net = fresh_network(TINY)
    (part,) = scene_pool(8, seed=0, device="cpu")
    loss = objective(replace(TINY, unlabelled=0.0))(net, part[1:], generator(2))
    loss.mean().backward()  # the last layers begin at zero: only they learn at first
    assert net.net.last[-1].weight.grad.any()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator(3)))
    objective(replace(TINY, unlabelled=0.0))(net, part[1:], generator(2)).mean().backward()
    idle = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert not idle
