"""The recipes of the shape world, tiny; and who judges what was drawn. Takes 30 seconds."""

import json
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from PIL import Image
from truths import generator

from tutorial_lib import pretrained, recipes
from tutorial_lib.captions import LENGTH, holds, read_tokens, write_tokens
from tutorial_lib.clip import CLIP
from tutorial_lib.oracle import read
from tutorial_lib.pretrained import empty_caption
from tutorial_lib.recipes import inpainting, shape_clip, text_guidance, text_to_image
from tutorial_lib.recipes.shapes import scene_pool
from tutorial_lib.recipes.text_to_image import (
    CaptionJudge,
    fresh_network,
    objective,
)
from tutorial_lib.shape_world import COLOURS, HELD_OUT, SHAPES, Scenes, draw_scenes, render

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


def test_an_inpainting_network_trains_and_leaves_what_it_changed(tmp_path):
    found = recipes.run("shapes_inpainting", tiny=True, out=str(tmp_path))
    assert json.loads((tmp_path / "metrics.json").read_text()) == found
    assert [row["way"] for row in found["edits"]] == ["network", "base alone", "replacement"]
    assert all(row["known_pixels_off_by"] == 0 for row in found["edits"])
    assert [row["way"] for row in found["repairs"]] == ["mended", "drawn anew"]
    kept = safetensors.torch.load_file(tmp_path / "weights.safetensors")
    assert sum(x.numel() for x in kept.values()) == found["parameters"] < 600_000
    assert any(x.any() for name, x in kept.items() if name.endswith("up.weight"))
    assert Image.open(tmp_path / "samples.jpg").size == (3 * 32, 6 * 32)
    assert "of edits right" in recipes.RECIPES["shapes_inpainting"].headline(found)


def test_an_edit_s_picture_is_right_and_the_one_before_is_not():
    edit, half = inpainting.edits(300, seed=5, device="cpu")
    net = pretrained.oracle()
    for task, share in ((edit, 0.03), (half, 1.0)):
        right = holds(task.claims, read(net, task.x0)).double().mean()
        assert right <= share if share < 1 else right > 0.99
        erased = 1 - task.known
        assert 0.01 < float(erased.mean()) < 0.25


def test_guides_are_compared_and_leave_their_record(tmp_path):
    found = recipes.run("shapes_text_guidance", tiny=True, out=str(tmp_path))
    assert json.loads((tmp_path / "metrics.json").read_text()) == found
    told = [(row["guide"], row["scale"]) for row in found["table"]]
    assert told == [("classifier-free", 0.0), *((guide, 1.0) for guide in text_guidance.GUIDES)]
    assert Image.open(tmp_path / "samples.jpg").size == (4 * 32, 11 * 32)
    assert "by noised CLIP" in recipes.RECIPES["shapes_text_guidance"].headline(found)


def test_diversity_is_that_of_the_world_for_the_world_and_none_for_one_picture():
    config = replace(recipes.RECIPES["shapes_text_guidance"].tiny, alike=300)
    compared = text_guidance.Comparison(config)
    draw, rows = generator(6), len(text_guidance.NAMES) * 300
    scenes = draw_scenes(4 * 8 * rows // 7, generator=draw, objects=(1,), held_out=HELD_OUT)
    names = tuple(COLOURS)
    of = (scenes.colour[:, 0] == names.index(name) for name in text_guidance.NAMES)
    wanted = [scenes[rows][:300] for rows in of]
    whole = Scenes(*(torch.cat([getattr(s, f) for s in wanted]) for f in vars(scenes)))
    found, truth = compared._diversity(whole), compared.truth()
    assert found["open_right"] == 1
    assert found["entropy"] == pytest.approx(truth["entropy"], abs=0.05)  # (kinds - 1) / 2 n less
    assert found["spread"] == pytest.approx(truth["spread"], abs=0.05)
    one = Scenes(*(x[:1].expand_as(x) for x in vars(whole).values()))
    alike = compared._diversity(replace(one, colour=whole.colour))
    assert alike["entropy"] == 0 and alike["spread"] == 0
    other = compared._diversity(replace(whole, colour=whole.colour.roll(300, 0)))
    assert other["open_right"] < 0.05


def test_a_network_that_is_emptied_late_is_tested_before(tmp_path, monkeypatch):
    asked, objective = [], text_to_image.objective

    def heard(config):
        asked.append(config.unlabelled)
        return objective(config)

    monkeypatch.setattr(text_to_image, "objective", heard)
    found = recipes.run("shapes_emptied_late", tiny=True, out=str(tmp_path))
    assert asked == [0.0, 0.2]  # never at first, then as often as GLIDE does
    assert [row["w"] for row in found["before"]] == [row["w"] for row in found["table"]] == [0.0]


def test_false_captions_are_false_and_turned_round():
    config = replace(recipes.RECIPES["shapes_clip_careful"].tiny, images=400)
    pixels, true, false = shape_clip.clip_data(config)
    empty = write_tokens([""])[0]
    said = (false != empty).any(1)
    assert 0.2 < float(said.double().mean()) < 0.7  # where a relation is said
    (part,) = scene_pool(400, seed=config.seed, device="cpu", held_out=HELD_OUT)
    assert torch.equal(part[1], pixels)
    sides = {"left": "right", "right": "left", "above": "below", "below": "above"}
    sides |= {"over": "under", "under": "over"}
    for one, other in zip(read_tokens(true[said]), read_tokens(false[said]), strict=True):
        assert any(word in one.split() for word in sides) and one != other
        assert sorted(set(one.split()) & set(COLOURS)) == sorted(set(other.split()) & set(COLOURS))
    assert not [line for line in read_tokens(false[~said]) if line]
