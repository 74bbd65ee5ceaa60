"""The shape world: areas in closed form, exact labels, nothing touches, no silent drift. 4 s."""

import hashlib
import math
from dataclasses import fields, replace

import pytest
import torch
from torch.nn import functional as F
from truths import generator, variants

from tutorial_lib import shape_world
from tutorial_lib.shape_world import (
    COLOURS,
    GAP,
    MOST,
    SHAPES,
    SIZES,
    boxes,
    distances,
    draw_scenes,
    layout,
    masks,
    outlines,
    render,
)

CROSS = 8 * 0.3 * math.sqrt(1 - 0.3**2) - 4 * 0.3**2
AREAS = {  # of shapes whose farthest point is 1 from their centre
    "circle": math.pi,
    "square": 2.0,
    "triangle": 3 * math.sqrt(3) / 4,
    "cross": CROSS,
    "ring": math.pi * (1 - 0.52**2),
    "diamond": 2 * 0.7,
}


def double(scenes):
    """The same scenes in double precision, which no machine rounds in another way."""
    parts = {f.name: getattr(scenes, f.name) for f in fields(scenes)}
    return replace(scenes, **{k: v.double() for k, v in parts.items() if v.is_floating_point()})


def one(shape, radius=0.5, centre=(0.1, -0.2), angle=0.0):
    """A scene with one object."""
    scenes = double(draw_scenes(1, generator=generator(0), objects=(1,)))
    full = torch.full((1, MOST), SHAPES.index(shape))
    place = torch.tensor(centre).double().expand(1, MOST, 2)
    sizes = {"radius": radius + 0 * scenes.radius, "angle": angle + 0 * scenes.angle}
    return replace(scenes, shape=full, centre=place, **sizes)


def test_the_world_does_not_drift():
    scenes = double(draw_scenes(200, generator=generator(0), held_out=[("red", "cross")]))
    pictures = ((render(scenes) + 1) * 127.5).round().to(torch.uint8)
    labels = torch.stack([scenes.present.long(), scenes.shape, scenes.colour, scenes.size])
    found = [hashlib.sha256(v.numpy().tobytes()).hexdigest()[:16] for v in (labels, pictures)]
    assert found == ["62459d1ca6f8b650", "bf44df7318397317"]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("angle", [0.0, 0.1])
def test_shapes_cover_their_areas(shape, angle):
    covered = masks(one(shape, angle=angle), 256)[0, 0].sum() * (2 / 256) ** 2
    assert covered == pytest.approx(AREAS[shape] * 0.25, rel=2e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_coverage_is_that_of_many_finer_pixels(shape):
    scene = one(shape, radius=0.33, angle=0.1)
    coarse = masks(scene, 32)[0, 0]
    fine = (distances(scene, 512)[0, 0] < 0).double().reshape(32, 16, 32, 16).mean((1, 3))
    assert (coarse - fine).abs().max() < 0.25 and (coarse - fine).abs().mean() < 0.003


def test_wrong_coverage_is_seen():
    scene = one("circle", radius=0.33)
    fine = (distances(scene, 512)[0, 0] < 0).double().reshape(32, 16, 32, 16).mean((1, 3))
    for wrong in (
        (distances(scene) < 0).double(),
        (0.5 - distances(scene) / (4 / 32)).clamp(0, 1),
    ):
        assert (wrong[0, 0] - fine).abs().mean() > 0.006


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_fills_its_circle_and_no_more(shape):
    scene = one(shape, radius=0.5, angle=0.05)
    inside = distances(scene, 512)[0, 0] < 0
    axis = (torch.arange(512) + 0.5) / 256 - 1
    far = (axis[None] - 0.1).hypot(axis[:, None] + 0.2)[inside].max()
    assert far == pytest.approx(0.5, abs=0.006)


def test_up_is_up_and_right_is_right():
    rows, columns = (masks(one("triangle"))[0, 0].sum(axis) for axis in (1, 0))
    third = int((rows > 0).sum()) // 3
    filled = rows[rows > 0]
    assert filled[:third].sum() < 0.4 * filled[-third:].sum()  # it points upwards
    assert columns[16:].sum() > columns[:16].sum()  # its centre is at x = 0.1
    turned = distances(one("triangle", angle=0.3, centre=(0.0, 0.0)), 64)[0, 0]
    top = (turned < 0).nonzero()[0]
    assert top[1] > 32  # y runs down, so a positive angle turns clockwise


def test_nothing_touches_and_all_is_inside():
    scenes = draw_scenes(2000, generator=generator(1))
    cover = masks(scenes)
    assert cover.sum(1).max() < 1 + 1e-6
    reach = scenes.centre.abs().amax(2) + scenes.radius
    assert reach[scenes.present].max() < 1 - GAP + 1e-6
    apart = torch.cdist(scenes.centre, scenes.centre) - scenes.radius[:, None]
    apart = apart - scenes.radius[:, :, None] + 9 * torch.eye(MOST)
    both = scenes.present[:, None] & scenes.present[:, :, None]
    assert apart[both].min() > GAP - 1e-6
    assert cover[~scenes.present].max() == 0


def test_boxes_hold_what_is_covered():
    scenes = draw_scenes(300, generator=generator(2), objects=(3,))
    axis = (torch.arange(64) + 0.5) / 32 - 1
    covered, box = masks(scenes, 64) > 0.5, boxes(scenes)
    for along, low, high in ((2, 0, 2), (1, 1, 3)):
        seen = covered.any(4 - along)
        least = torch.where(seen, axis, 9).amin(-1)
        most = torch.where(seen, axis, -9).amax(-1)
        assert (least >= box[..., low] - 1 / 64).all() and (most <= box[..., high] + 1 / 64).all()
        tight = (most - least) / (box[..., high] - box[..., low])
        assert tight.min() > 0.45 and tight.max() < 1.01


def test_labels_are_drawn_evenly_and_pairs_are_held_out():
    out = {("red", "cross"), ("blue", "ring")}
    scenes = draw_scenes(6000, generator=generator(3), held_out=out)
    pairs = scenes.colour * len(SHAPES) + scenes.shape
    counts = torch.bincount(pairs[scenes.present], minlength=len(COLOURS) * len(SHAPES))
    names = tuple(COLOURS)
    absent = {
        (names[k // len(SHAPES)], SHAPES[k % len(SHAPES)]) for k in range(48) if not counts[k]
    }
    assert absent == out
    assert counts[counts > 0].min() > 0.75 * counts.sum() / 46
    assert torch.bincount(scenes.present.sum(1)).tolist() == pytest.approx(
        [0] + 3 * [2000], abs=150
    )
    for k, (low, high) in enumerate(SIZES.values()):
        radius = scenes.radius[scenes.size == k]
        assert low <= radius.min() < radius.max() <= high


def test_colours_are_where_they_should_be():
    scenes = draw_scenes(200, generator=generator(4), objects=(1,))
    solid = scenes.shape[:, 0] != SHAPES.index("ring")
    pictures, scenes = render(scenes)[solid], scenes[solid]
    at = ((scenes.centre[:, 0] + 1) * 16).long()
    middle = pictures[torch.arange(len(at)), :, at[:, 1], at[:, 0]]
    named = torch.tensor(tuple(COLOURS.values()))[scenes.colour[:, 0]]
    assert (middle - (2 * named - 1)).abs().max() < 0.09  # twice the tint
    corner = masks(scenes)[:, 0, 0, 0] == 0
    assert torch.allclose(pictures[:, :, 0, 0][corner], 2 * scenes.ground[corner] - 1)
    assert ((middle + 1) / 2 - named).abs().amax(1).lt(0.05).all()


def test_outlines_are_where_the_mask_ends():
    scenes = draw_scenes(100, generator=generator(5))
    line, cover = outlines(scenes)[:, 0], masks(scenes).sum(1)
    rim = (cover > 0.1) & (cover < 0.9)
    assert line[rim].min() > 0.5 and line[cover == 0].max() < 0.51
    assert line.shape == (100, 32, 32) and line.max() <= 1


def spans(low, high, side):
    """Whether each of 64 points of a pixel lies within an interval, (side * 64,)."""
    points = (torch.arange(side * 64) + 0.5) * (2 / (64 * side)) - 1
    return (points > low) & (points < high)


def test_a_layout_is_where_the_points_of_boxes_are():
    scenes = double(draw_scenes(300, generator=generator(6), objects=(2, 3)))
    found, box, side = layout(scenes, 16), boxes(scenes), 16
    shape = torch.where(scenes.present, scenes.shape, -1 - torch.arange(MOST))
    alike = torch.tensor([row.unique().numel() < MOST for row in shape])
    assert alike.sum() > 50
    for i in alike.nonzero()[:25, 0].tolist():
        points = torch.zeros(len(SHAPES), 64 * side, 64 * side, dtype=torch.bool)
        for k in scenes.present[i].nonzero()[:, 0].tolist():
            left, top, right, bottom = box[i, k].tolist()
            points[shape[i, k]] |= spans(top, bottom, side)[:, None] & spans(left, right, side)
        share = points.reshape(-1, side, 64, side, 64).double().mean((2, 4))
        assert (share - found[i]).abs().max() < 2 / 64


@pytest.mark.parametrize("side", [8, 32, 33])
def test_a_layout_s_areas_are_those_of_boxes(side):
    scenes = double(draw_scenes(500, generator=generator(7)))
    area = torch.zeros(500, len(SHAPES)).double()
    area = area.scatter_add(1, scenes.shape, scenes.present * (2 * scenes.radius) ** 2)
    box = boxes(scenes)
    for a, b in ((0, 1), (0, 2), (1, 2)):  # what two boxes share counts once
        both = scenes.present[:, [a, b]].all(1) & (scenes.shape[:, a] == scenes.shape[:, b])
        low = torch.maximum(box[:, a, :2], box[:, b, :2])
        shared = (torch.minimum(box[:, a, 2:], box[:, b, 2:]) - low).clamp(min=0).prod(1)
        area = area.scatter_add(1, scenes.shape[:, [a]], -(both * shared)[:, None])
    found = layout(scenes, side)
    assert found.shape == (500, len(SHAPES), side, side)
    assert found.min() >= 0 and found.max() < 1 + 1e-12
    assert torch.allclose(found.sum((2, 3)) * (2 / side) ** 2, area, atol=1e-12)


def test_a_layout_tells_neither_colours_nor_what_is_absent():
    scenes = draw_scenes(200, generator=generator(8), objects=(1,))
    found = layout(scenes)
    assert (found.amax((2, 3)) > 0.5).equal(F.one_hot(scenes.shape[:, 0], len(SHAPES)) == 1)
    nothing = replace(scenes, present=torch.zeros_like(scenes.present))
    assert layout(nothing).abs().max() == 0
    other = {"colour": scenes.colour.flip(0), "paint": scenes.paint.flip(0)}
    assert torch.equal(layout(replace(scenes, **other, angle=scenes.angle + 1)), found)
    assert found.sum(1)[masks(scenes)[:, 0] == 1].min() > 0.9


@pytest.mark.parametrize("objects", [(), (0,), (1, 4)])
def test_a_wrong_number_of_objects_is_refused(objects):
    with pytest.raises(ValueError, match="1 to 3 objects"):
        draw_scenes(2, generator=generator(0), objects=objects)


@variants(
    a=lambda x, y: (x.abs() + y.abs() - 1) / math.sqrt(2),
    b=lambda x, y: torch.maximum(x.abs(), y.abs()) - 0.8,
)
def test_a_wrong_rim_is_seen(wrong, monkeypatch):
    rims = list(shape_world._RIMS)
    rims[SHAPES.index("diamond")] = wrong
    monkeypatch.setattr(shape_world, "_RIMS", rims)
    with pytest.raises(AssertionError):
        test_shapes_cover_their_areas("diamond", 0.0)
