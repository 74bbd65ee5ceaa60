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
from tutorial_lib.recipes import growing, two_objects
from tutorial_lib.recipes.growing import WORDS_ALONE, AttendingPainter, PoolingPainter
from tutorial_lib.recipes.two_objects import WAYS
from tutorial_lib.shape_world import COLOURS, SHAPES

TINY = {kind: recipes.RECIPES[f"growing_{kind}"].tiny for kind in ("pooled", "attended")}


@pytest.fixture(scope="module")
def language_model():
    return minilm()


def test_scenes_are_all_pairs_of_unlike_objects():
    rows = two_objects.scenes()
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
    assert two_objects.texts(torch.tensor([row])) == [
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
    said = two_objects.texts(two_objects.scenes())
    assert two_objects.most_right([tuple(sorted(text.split())) for text in said]) == 0.25
    assert two_objects.most_right(said) == 1
    meant, alike = two_objects.scenes().repeat_interleave(len(WAYS), 0).tolist(), {}
    for text, scene in zip(said, meant, strict=True):
        alike.setdefault(tuple(sorted(text.split())), []).append(tuple(scene))
    assert all(len(set(scenes)) == len(scenes) == 4 for scenes in alike.values())
    assert two_objects.most_right(["all the same"] * 5) == 0.2
    # who hears which colour came first, but no more, has two ways left of the six
    colours = [tuple(w for w in text.split() if w in COLOURS) for text in said]
    words = [tuple(sorted(text.split())) for text in said]
    assert two_objects.most_right(list(zip(words, colours, strict=True))) == 0.5


def test_pictures_are_read_back_through_their_noise():
    rows = two_objects.scenes()
    x = two_objects.pictures(rows)
    assert x.shape == (1680, 8) and (x.view(-1, 4, 2).norm(dim=2) - 1).abs().max() < 1e-6
    noisy, law = x + 0.2 * torch.randn(x.shape, generator=generator(0)), []
    wrong = (two_objects.read_pictures(noisy) != rows).double().mean(0)
    for kinds in (COLOURS, SHAPES) * 2:  # points off a wedge, to either side
        law.append(math.erfc(math.sin(math.pi / len(kinds)) / 0.2 / math.sqrt(2)))
    assert (wrong - torch.tensor(law)).abs().max() < 0.02 and wrong.min() > 0
    turned = two_objects.pictures(rows[:, [2, 3, 0, 1]])
    assert torch.equal(turned, x.roll(4, dims=1))


def test_a_reader_of_all_layers_is_the_language_model(language_model):
    model, split = language_model
    tokens = split(two_objects.texts(two_objects.scenes()[:3]))
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
    texts = two_objects.texts(two_objects.scenes()[:30:7])
    swapped = [" ".join(reversed(text.split())) for text in texts]
    gaps = {}
    for layers in (WORDS_ALONE, 0, 1):
        x, _ = mean_told(language_model, texts + swapped, layers)
        there, back = x[:, 0].chunk(2)
        gaps[layers] = float((there - back).norm(dim=1).max() / there.norm(dim=1).mean())
    assert gaps[WORDS_ALONE] == 0 < 0.01 < gaps[0] < gaps[1] and gaps[1] > 0.1


@pytest.mark.parametrize("attends", [False, True])
def test_what_is_told_has_one_size_and_filling_is_nothing(language_model, attends):
    model, split = language_model
    tokens = split(two_objects.texts(two_objects.scenes()[::20]))
    seen = tokens != FILLING
    read = growing.features(model, tokens, 2)
    x, mask = growing.told(read, seen, attends)
    assert x.shape == ((len(tokens), tokens.shape[1] if attends else 1, 384))
    assert torch.equal(mask, seen) if attends else mask.all()
    words = x[mask].float()
    assert words.mean(0).abs().max() < 2e-3 and (words.square().mean() - 1).abs() < 1e-2
    assert not x[~mask].any()
    if not attends:
        by_hand = torch.stack([r[s].double().mean(0) for r, s in zip(read, seen, strict=True)])
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
    x0 = two_objects.pictures(two_objects.scenes()[:50])
    text, mask = torch.zeros(50, 1, 3), torch.ones(50, 1, dtype=torch.bool)
    net = PoolingPainter(3, 8, generator=generator(1))
    found = growing.cost(net, (x0, text, mask), generator(4))
    draw = generator(4)
    noisy = x0 + growing.SPREAD * torch.randn(x0.shape, generator=draw)
    t = torch.rand(50, generator=draw, dtype=torch.float64)
    model, cond = growing.denoiser(net), Condition(text=text, mask=mask)
    assert torch.equal(found, v_error(model, noisy, t, cond, generator=draw) / 8)


@pytest.mark.parametrize("images", [1680, 40])
def test_scenes_of_the_same_words_are_all_taught_or_all_asked(images):
    config = replace(TINY["pooled"], images=images)
    rows, hidden = growing.parted(config)
    assert len(rows) == images and hidden.sum() == images / 5
    said = two_objects.texts(rows[hidden])
    assert two_objects.most_right([tuple(sorted(text.split())) for text in said]) == 0.25
    words = {tuple(sorted(text.split())) for text in two_objects.texts(rows[~hidden])}
    assert not words & {tuple(sorted(text.split())) for text in said}
    other, _ = growing.parted(replace(config, seed=1, images=40))
    assert not torch.equal(other, rows[:40])


def test_a_probe_reads_what_is_linear_for_each_way_and_not_what_is_gone():
    rows, hidden = growing.parted(replace(TINY["pooled"], images=400))
    meant, hidden = (x.repeat_interleave(len(WAYS), 0) for x in (rows, hidden))
    ones = torch.cat([torch.eye(8)[meant[:, k]] for k in range(4)], 1)  # (N, 32)
    maps = torch.randn(len(WAYS), 32, 60, generator=generator(1))
    told = torch.einsum("nwk,wkd->nwd", ones.view(-1, len(WAYS), 32), maps).flatten(0, 1)
    assert growing.probe(told[:, None], meant, hidden) == 1
    bag = torch.cat([ones[:, :8] + ones[:, 16:24], ones[:, 8:16] + ones[:, 24:]], 1)
    assert growing.probe(bag[:, None], meant, hidden) < 0.3
    broken = told.clone()
    broken[:: len(WAYS)] = 0  # one way of eight says nothing
    assert 0.87 < growing.probe(broken[:, None], meant, hidden) < 0.9


def test_the_part_of_order_in_a_spread():
    rows, _ = growing.parted(replace(TINY["pooled"], images=400))
    meant = rows.repeat_interleave(len(WAYS), 0)
    words = 3.0 * torch.randn(420, 50, generator=generator(1))[two_objects.of_words(meant)]
    alone = torch.randn(len(meant), 50, generator=generator(2))
    law = (0.75 * 1 / (9 + 1)) ** 0.5  # a mean of four has taken its quarter
    assert abs(growing.order((words + alone)[:, None], meant) - law) < 0.01
    assert growing.order(words[:, None], meant) < 1e-6
    shifted = (words + 100.0 * torch.arange(len(meant))[:, None].remainder(len(WAYS)))[:, None]
    assert growing.order(shifted, meant) < 1e-4  # which way it is said is no order


def test_evened_no_direction_is_louder_and_nothing_is_lost():
    turn = torch.linalg.qr(torch.randn(6, 6, generator=generator(1)))[0]
    loud = torch.tensor([100.0, 10.0, 1.0, 0.1, 0.01, 0.0])  # the last is silent
    x = (torch.randn(500, 6, generator=generator(2)) * loud) @ turn + 3
    taught = torch.arange(500) < 400
    even = growing.evened(x[:, None], taught)
    assert even.shape == (500, 1, 5)
    covariance = even[taught, 0].double().T.cov(correction=0)
    assert (covariance - torch.eye(5)).abs().max() < 1e-3
    back = torch.linalg.lstsq(even[:, 0], x - x[taught].mean(0)).solution
    assert (even[:, 0] @ back - (x - x[taught].mean(0))).abs().max() < 1e-3


def test_an_evened_run_tells_its_painters_so(tmp_path, monkeypatch):
    real, told = growing.Trial.painted, []

    def painted(self, text, *rest):
        told.append(text[~self.hidden, 0])
        return real(self, text, *rest)

    monkeypatch.setattr(growing.Trial, "painted", painted)
    recipes.run("growing_evened", tiny=True, out=str(tmp_path))
    assert all((x.square().mean(0) - 1).abs().max() < 1e-3 for x in told)
    assert len(told[0]) == 16 * len(WAYS) and told[0].shape[1] < 384


@pytest.mark.parametrize("kind", TINY)
def test_a_record_is_left_and_no_scene_of_the_test_was_learned(kind, tmp_path, monkeypatch):
    config, learned, asked = TINY[kind], [], []
    rows, hidden = (x.repeat_interleave(len(WAYS), 0) for x in growing.parted(config))
    new, old = rows[hidden], rows[~hidden].view(-1, len(WAYS), 4)[::4].flatten(0, 1)

    def train(net, data, *rest):
        learned.append(two_objects.read_pictures(data[0]))
        return real(net, data, *rest)

    def draw(model, text, *rest):
        asked.append(text)
        if len(asked) % 2:  # of four new scenes the first is drawn right, of the old all
            return torch.cat([new[:8], new[8:] + 1])
        return old

    real = growing.train
    monkeypatch.setattr(growing, "train", train)
    monkeypatch.setattr(growing, "draw", draw)
    found = recipes.run(f"growing_{kind}", tiny=True, out=str(tmp_path))
    assert json.loads((tmp_path / "metrics.json").read_text()) == found
    assert len(found["table"]) == len(learned) == len(asked) / 2 == 2 * len(config.widths)
    assert all(torch.equal(scenes, rows[~hidden]) for scenes in learned)
    assert all(len(text) == 4 * len(WAYS) == found["unseen"] for text in asked)
    assert all(row["right"] == 0.25 and set(row["ways"]) == {0.25} for row in found["table"])
    assert all(row["seen"] == 1 for row in found["table"])
    assert found["reader"] == {"0": 0, "1": 1_774_464}
    assert found["told"].keys() == (set() if config.attends else {"0", "1"})
    assert found["images_seen"] == 4 * 8 * len(found["table"])


def test_painters_draw_what_they_learned():
    config = replace(TINY["pooled"], steps=1000, batch_size=128, sampler_steps=10)
    rows = two_objects.scenes()[::400]
    text = torch.eye(len(rows))[:, None]
    mask, x0 = torch.ones(len(rows), 1, dtype=torch.bool), two_objects.pictures(rows)
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
