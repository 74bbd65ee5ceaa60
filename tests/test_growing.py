"""Readers and painters that grow: what is said, who is told it, what is kept. Takes 15 s."""

import json
import math
from dataclasses import replace

import pytest
import torch
from truths import generator

from tutorial_lib import recipes
from tutorial_lib.denoiser import Condition
from tutorial_lib.language_model import FILLING, minilm
from tutorial_lib.losses import v_error
from tutorial_lib.recipes import growing
from tutorial_lib.recipes.growing import WAYS, WORDS_ALONE, AttendingPainter, PoolingPainter
from tutorial_lib.shape_world import COLOURS, SHAPES

TINY = {kind: recipes.RECIPES[f"growing_{kind}"].tiny for kind in ("pooled", "attended")}


@pytest.fixture(scope="module")
def language_model():
    return minilm()


def test_scenes_are_all_pairs_of_unlike_objects():
    rows = growing.scenes()
    assert len(rows) == len(rows.unique(dim=0)) == 8 * 7 * 6 * 5
    assert (rows[:, 0] != rows[:, 2]).all() and (rows[:, 1] != rows[:, 3]).all()


def test_every_way_says_which_object_is_which():
    colours, shapes = list(COLOURS), SHAPES
    row = [
        colours.index("orange"),
        shapes.index("circle"),
        colours.index("red"),
        shapes.index("ring"),
    ]
    assert growing.texts(torch.tensor([row])) == [
        "an orange circle left of a red ring",
        "a red ring right of an orange circle",
        "an orange circle , and to its right a red ring",
        "a circle left of a ring ; the former is orange , the latter is red",
        "a circle left of a ring ; the ring is red , the circle is orange",
        "a red circle left of an orange ring , but with their colours exchanged",
        "not a red ring left of an orange circle , but the other way round",
        "of an orange one and a red one , a circle and a ring , the first is the left one",
    ]


def test_words_without_order_leave_one_scene_in_four_and_texts_leave_none_open():
    said = growing.texts(growing.scenes())
    assert growing.most_right([tuple(sorted(text.split())) for text in said]) == 0.25
    assert growing.most_right(said) == 1
    meant, alike = growing.scenes().repeat_interleave(len(WAYS), 0).tolist(), {}
    for text, scene in zip(said, meant, strict=True):
        alike.setdefault(tuple(sorted(text.split())), []).append(tuple(scene))
    assert all(len(set(scenes)) == len(scenes) == 4 for scenes in alike.values())
    assert growing.most_right(["all the same"] * 5) == 0.2
    # who hears which colour came first, but no more, has two ways left of the six
    colours = [tuple(w for w in text.split() if w in COLOURS) for text in said]
    words = [tuple(sorted(text.split())) for text in said]
    assert growing.most_right(list(zip(words, colours, strict=True))) == 0.5


def test_pictures_are_read_back_through_their_noise():
    rows = growing.scenes()
    x = growing.pictures(rows)
    assert x.shape == (1680, 8) and (x.view(-1, 4, 2).norm(dim=2) - 1).abs().max() < 1e-6
    noisy, law = x + 0.2 * torch.randn(x.shape, generator=generator(0)), []
    wrong = (growing.read_pictures(noisy) != rows).double().mean(0)
    for kinds in (COLOURS, SHAPES) * 2:  # points off a wedge, to either side
        law.append(math.erfc(math.sin(math.pi / len(kinds)) / 0.2 / math.sqrt(2)))
    assert (wrong - torch.tensor(law)).abs().max() < 0.02 and wrong.min() > 0
    turned = growing.pictures(rows[:, [2, 3, 0, 1]])
    assert torch.equal(turned, x.roll(4, dims=1))


def test_a_reader_of_all_layers_is_the_language_model(language_model):
    model, split = language_model
    tokens = split(growing.texts(growing.scenes()[:3]))
    seen = (tokens != FILLING)[..., None]
    exact = model(tokens)
    gap = (growing.features(model, tokens, len(model.blocks)).float() - exact) * seen
    assert gap.abs().max() < 1e-3 * exact.abs().max()
    first = model.norm(
        model.words(tokens) + model.places.weight[: tokens.shape[1]] + model.kinds.weight[0]
    )
    assert (
        growing.features(model, tokens, 0).float() - first
    ).abs().max() < 1e-3 * first.abs().max()


def mean_told(language_model, texts, layers):
    model, split = language_model
    tokens = split(texts)
    return growing.told(growing.features(model, tokens, layers), tokens != FILLING, attends=False)


def test_words_alone_are_a_bag_and_one_layer_is_not(language_model):
    texts = growing.texts(growing.scenes()[:30:7])
    swapped = [" ".join(reversed(text.split())) for text in texts]
    gaps = {}
    for layers in (WORDS_ALONE, 0, 1):
        x, _ = mean_told(language_model, texts + swapped, layers)
        there, back = x[:, 0].chunk(2)
        gaps[layers] = float((there - back).norm(dim=1).max() / there.norm(dim=1).mean())
    assert gaps[WORDS_ALONE] < 1e-4 < 0.01 < gaps[0] < gaps[1] and gaps[1] > 0.1


@pytest.mark.parametrize("attends", [False, True])
def test_what_is_told_has_one_size_and_filling_is_nothing(language_model, attends):
    model, split = language_model
    tokens = split(growing.texts(growing.scenes()[::20]))
    seen = tokens != FILLING
    read = growing.features(model, tokens, 2)
    x, mask = growing.told(read, seen, attends)
    assert x.shape == ((len(tokens), tokens.shape[1] if attends else 1, 384))
    assert torch.equal(mask, seen) if attends else mask.all()
    words = x[mask].float()
    assert words.mean(0).abs().max() < 2e-3 and (words.square().mean() - 1).abs() < 1e-2
    assert not x[~mask].any()
    if not attends:
        by_hand = torch.stack([r[s].float().mean(0) for r, s in zip(read, seen, strict=True)])
        by_hand -= by_hand.mean(0)
        assert (x[:, 0] / by_hand).std() < 1e-2 * (x[:, 0] / by_hand).mean()


def test_a_painter_that_attends_sees_words_and_neither_filling_nor_their_order():
    net, draw = AttendingPainter(12, 16, generator=generator(1)), generator(2)
    xt, clock = torch.randn(5, 8, generator=draw), torch.randn(5, generator=draw)
    text, mask = torch.randn(5, 7, 12, generator=draw), torch.arange(7).expand(5, 7) < 4

    def told(text):
        return net(xt, clock, Condition(text=text, mask=mask))

    plain, other, turned = told(text), text.clone(), text.clone()
    other[:, 4:] = 9.0
    turned[:, :4] = text[:, [2, 0, 3, 1]]
    assert torch.equal(told(other), plain)
    assert (told(turned) - plain).abs().max() < 1e-5
    other[:, 1] = 9.0
    assert (told(other) - plain).abs().max() > 1e-3
    swapped = net(xt.roll(2, 1), clock, Condition(text=text, mask=mask))
    assert (swapped.roll(-2, 1) - plain).abs().max() > 1e-3  # its places are told apart


def test_a_painter_that_pools_is_the_course_network_told_one_vector_more():
    net, draw = PoolingPainter(12, 16, generator=generator(1)), generator(2)
    xt, clock = torch.randn(5, 8, generator=draw), torch.randn(5, generator=draw)
    text = torch.randn(5, 1, 12, generator=draw)
    out = net(xt, clock, Condition(text=text))
    assert torch.equal(out, net.net(torch.cat([xt, text[:, 0]], 1), clock)) and out.shape == (5, 8)


def test_the_cost_is_the_error_in_v_of_noisy_pictures():
    x0 = growing.pictures(growing.scenes()[:50])
    text, mask = torch.zeros(50, 1, 3), torch.ones(50, 1, dtype=torch.bool)
    net = PoolingPainter(3, 8, generator=generator(1))
    found = growing.cost(net, (x0, text, mask), generator(4))
    draw = generator(4)
    noisy = x0 + growing.SPREAD * torch.randn(x0.shape, generator=draw)
    t = torch.rand(50, generator=draw, dtype=torch.float64)
    model, cond = growing.denoiser(net), Condition(text=text, mask=mask)
    assert torch.equal(found, v_error(model, noisy, t, cond, generator=draw) / 8)


@pytest.mark.parametrize("kind", TINY)
def test_a_record_is_left_and_no_scene_of_the_test_was_learned(kind, tmp_path, monkeypatch):
    learned = []

    def train(net, data, *rest):
        learned.append(growing.read_pictures(data[0]))
        return real(net, data, *rest)

    real = growing.train
    monkeypatch.setattr(growing, "train", train)
    tested = []
    monkeypatch.setattr(growing, "draw", lambda model, text, *rest: tested.append(text) or right())

    def right():
        order = torch.randperm(1680, generator=generator(0))
        hidden = growing.scenes()[order[:4]].repeat_interleave(len(WAYS), 0)
        return torch.cat([hidden[:8], hidden[8:] + 1])  # of four scenes the first is drawn right

    found = recipes.run(f"growing_{kind}", tiny=True, out=str(tmp_path))
    assert json.loads((tmp_path / "metrics.json").read_text()) == found
    config = TINY[kind]
    assert len(found["table"]) == len(learned) == 2 * len(config.widths)
    kept = growing.scenes()[torch.randperm(1680, generator=generator(0))[4:20]]
    for rows, text in zip(learned, tested, strict=True):
        assert torch.equal(rows, kept.repeat_interleave(len(WAYS), 0))
        assert len(text) == 4 * len(WAYS) == found["unseen"]
    assert all(row["right"] == 0.25 and set(row["ways"]) == {0.25} for row in found["table"])
    assert found["reader"] == {"0": 0, "1": 1_774_464}
    assert found["images_seen"] == 4 * 8 * len(found["table"])


def test_painters_draw_what_they_learned():
    config = replace(TINY["pooled"], steps=1000, batch_size=128, sampler_steps=10)
    rows = growing.scenes()[::400]
    text = torch.eye(len(rows))[:, None]
    mask, x0 = torch.ones(len(rows), 1, dtype=torch.bool), growing.pictures(rows)
    net = growing.painter(config, len(rows), 32, 0)
    ema = growing.train(net, (x0, text, mask), growing.cost, config.schedule(ema_decay=0.9)).ema
    drawn = growing.draw(growing.denoiser(ema), text, mask, config, 0)
    assert torch.equal(drawn, rows)


def test_its_headline_compares_readers_at_the_widest_painter():
    table = [
        {"layers": layers, "width": width, "right": right}
        for layers, width, right in (
            (-1, 8, 0.9),
            (0, 4, 0.8),
            (0, 8, 0.2),
            (0, 8, 0.3),
            (6, 8, 1.0),
        )
    ]
    shares = "25 % after 0 layers, 100 % after 6 layers"
    assert growing.headline({"table": table}) == f"drawn right by a painter 8 wide: {shares}"
