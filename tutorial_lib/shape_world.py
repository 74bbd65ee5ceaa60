"""A world of pictures and captions whose truth is known: coloured shapes on plain ground.

Coordinates run over [-1, 1], x to the right and y down; sizes are in the same unit, of which
a picture has two. Everything is vectorised over scenes (B) and their objects (N), and made on
torch's default device, of which generators must be.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from itertools import combinations

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

SHAPES = ("circle", "square", "triangle", "cross", "ring", "diamond")
COLOURS = {
    "red": (0.80, 0.22, 0.20),
    "orange": (0.88, 0.52, 0.16),
    "yellow": (0.86, 0.80, 0.25),
    "green": (0.22, 0.62, 0.30),
    "blue": (0.20, 0.36, 0.80),
    "purple": (0.52, 0.26, 0.66),
    "white": (0.92, 0.92, 0.90),
    "black": (0.10, 0.10, 0.12),
}
SIZES = {"small": (0.17, 0.21), "large": (0.30, 0.36)}  # from the centre to the farthest point
GROUNDS = ((0.62, 0.58, 0.54), (0.48, 0.54, 0.58))
HELD_OUT = (  # of 48 pairs, kept from every training: each shape once, and no colour twice
    *(("yellow", "circle"), ("purple", "square"), ("blue", "triangle")),
    *(("red", "cross"), ("orange", "ring"), ("green", "diamond")),
)
SEEN = tuple((c, s) for c in COLOURS for s in SHAPES if (c, s) not in HELD_OUT)
MOST = 3  # objects in a scene
GAP = 0.06  # at least, between the circles around two objects and to the picture's edge
TURN = math.radians(8)  # at most, either way
_TINT = 0.04


@dataclass(frozen=True)
class Scenes:
    """Hold B scenes of up to N objects, of which those that are not `present` do not count.

    `shape`, `colour` and `size` (B, N) are indices into SHAPES, COLOURS and SIZES; `centre`
    (B, N, 2), `radius` (B, N), `angle` (B, N) in radians, `paint` (B, N, 3) and `ground` (B, 3)
    in [0, 1] are what no caption tells.
    """

    present: Tensor
    shape: Tensor
    colour: Tensor
    size: Tensor
    centre: Tensor
    radius: Tensor
    angle: Tensor
    paint: Tensor
    ground: Tensor

    def __len__(self) -> int:
        """Return how many scenes there are."""
        return len(self.present)

    def __getitem__(self, rows: Tensor | slice) -> Scenes:
        """Return some of the scenes."""
        return Scenes(*(getattr(self, field.name)[rows] for field in fields(self)))


def draw_scenes(
    n: int,
    *,
    generator: Generator,
    objects: Iterable[int] = (1, 2, 3),
    held_out: Iterable[tuple[str, str]] = (),
) -> Scenes:
    """Draw `n` scenes with as many objects as `objects` says, equally often, none touching.

    No object is of a colour and shape in `held_out`, such as ("red", "cross"). Raises ValueError
    for a number of objects that is not 1, 2 or 3.
    """
    choices = torch.tensor(tuple(objects))
    if not len(choices) or not bool(((choices >= 1) & (choices <= MOST)).all()):
        raise ValueError(f"a scene has 1 to {MOST} objects, not {choices.tolist()}")
    count = choices[torch.randint(len(choices), (n,), generator=generator)]
    present = torch.arange(MOST) < count[:, None]
    allowed = _allowed(held_out)
    kind = allowed[torch.randint(len(allowed), (n, MOST), generator=generator)]
    size = torch.randint(len(SIZES), (n, MOST), generator=generator)
    low, high = torch.tensor(tuple(SIZES.values())).T
    share = torch.rand(n, MOST, generator=generator)
    radius = low[size] + share * (high - low)[size]
    paint = torch.tensor(tuple(COLOURS.values()))[kind // len(SHAPES)]
    ground = torch.tensor(GROUNDS)[torch.randint(len(GROUNDS), (n,), generator=generator)]
    return Scenes(
        present=present,
        shape=kind % len(SHAPES),
        colour=kind // len(SHAPES),
        size=size,
        centre=_apart(radius, present, generator),
        radius=radius,
        angle=TURN * (2 * torch.rand(n, MOST, generator=generator) - 1),
        paint=_jitter(paint, generator),
        ground=_jitter(ground, generator),
    )


def _allowed(held_out: Iterable[tuple[str, str]]) -> Tensor:
    """Return the numbers of the pairs that may be drawn, counted colour by colour."""
    names = tuple(COLOURS)
    out = {names.index(colour) * len(SHAPES) + SHAPES.index(shape) for colour, shape in held_out}
    return torch.tensor([k for k in range(len(names) * len(SHAPES)) if k not in out])


def _jitter(colours: Tensor, generator: Generator) -> Tensor:
    return (colours + _TINT * (2 * torch.rand(colours.shape, generator=generator) - 1)).clamp(0, 1)


def _apart(radius: Tensor, present: Tensor, generator: Generator) -> Tensor:
    """Draw centres (B, N, 2), uniform among those with all objects inside and apart."""
    centre, left = torch.zeros(*radius.shape, 2), torch.arange(len(radius))
    while len(left):
        r = radius[left]
        room = (1 - GAP - r)[..., None]
        tried = room * (2 * torch.rand(len(left), MOST, 2, generator=generator) - 1)
        centre[left] = tried
        clear = torch.cdist(tried, tried) - r[:, :, None] - r[:, None] - GAP
        pair = present[left][:, :, None] & present[left][:, None] & ~torch.eye(MOST, dtype=bool)
        left = left[((clear < 0) & pair).any((1, 2))]
    return centre


def render(scenes: Scenes, side: int = 32) -> Tensor:
    """Return pictures (B, 3, side, side) in [-1, 1], with edges blurred over one pixel.

    A pixel's colour is a mean, weighed by how much of it is covered (to first order in its size).
    """
    cover = masks(scenes, side)
    ground = scenes.ground[:, :, None, None].expand(-1, -1, side, side)
    paint = (cover[:, :, None] * scenes.paint[..., None, None]).sum(1)
    return 2 * (paint + (1 - cover.sum(1))[:, None] * ground) - 1


def masks(scenes: Scenes, side: int = 32) -> Tensor:
    """Return how much each object covers of each pixel, (B, N, side, side), in [0, 1]."""
    pixel = 2 / side
    return (0.5 - distances(scenes, side) / pixel).clamp(0, 1) * scenes.present[..., None, None]


def outlines(scenes: Scenes, side: int = 32) -> Tensor:
    """Return the outlines of all objects, one pixel wide, (B, 1, side, side), in [0, 1]."""
    pixel = 2 / side
    line = (1 - distances(scenes, side).abs() / pixel).clamp(min=0)
    return (line * scenes.present[..., None, None]).amax(1, keepdim=True)


def boxes(scenes: Scenes) -> Tensor:
    """Return the boxes around the circles around objects, (B, N, 4): left, top, right, bottom."""
    reach = scenes.radius[..., None]
    return torch.cat([scenes.centre - reach, scenes.centre + reach], -1)


def layout(scenes: Scenes, side: int = 32) -> Tensor:
    """Return how much of each pixel the boxes of each shape's objects hold, in [0, 1].

    Of (B, shapes, side, side), channel k is exactly of SHAPES[k], its boxes overlapping or not:
    it tells what is where, but neither its colour nor its rim.
    """
    pixel, n = 2 / side, scenes.present.shape[1]
    start = torch.arange(side, dtype=scenes.radius.dtype) * pixel - 1
    low, high = boxes(scenes)[..., None].split(2, 2)  # (B, N, 2, 1): x and y
    low, high = low.maximum(start), high.minimum(start + pixel)
    of = F.one_hot(scenes.shape, len(SHAPES)) * scenes.present[..., None]  # (B, N, shapes)
    found = low.new_zeros(len(scenes), len(SHAPES), side, side)
    for some in (c for k in range(n) for c in combinations(range(n), k + 1)):
        x, y = ((high[:, some].amin(1) - low[:, some].amax(1)).clamp(min=0) / pixel).unbind(1)
        shared = of[:, some].prod(1)[..., None, None] * (y[:, :, None] * x[:, None])[:, None]
        found += shared if len(some) % 2 else -shared  # of boxes that overlap, once
    return found


def distances(scenes: Scenes, side: int = 32) -> Tensor:
    """Return the signed distances of pixels' centres to objects' rims, (B, N, side, side).

    They are negative inside, exact at the sides and, outside, a lower bound at the corners.
    """
    found = scenes.radius.new_empty(*scenes.shape.shape, side, side)
    for k, rim in enumerate(_RIMS):
        pick = scenes.shape == k
        x, y = frames(scenes.centre[pick], scenes.radius[pick], scenes.angle[pick], side)
        found[pick] = rim(x, y) * scenes.radius[pick][:, None, None]
    return found


def frames(centre: Tensor, radius: Tensor, angle: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Return where pixels' centres lie in the own frames of M objects, x and y (M, side, side).

    An object is upright in its frame, about 0, and its farthest point is 1 away. `centre` (M, 2),
    `radius` (M,) and `angle` (M,) are as in Scenes.
    """
    axis = (torch.arange(side, dtype=radius.dtype) + 0.5) * (2 / side) - 1
    x = (axis[None, None, :] - centre[:, 0, None, None]) / radius[:, None, None]
    y = (axis[None, :, None] - centre[:, 1, None, None]) / radius[:, None, None]
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    return cos * x + sin * y, cos * y - sin * x


def _circle(x: Tensor, y: Tensor) -> Tensor:
    return x.hypot(y) - 1


def _square(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(x.abs(), y.abs()) - math.sqrt(0.5)


def _triangle(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(y, math.sqrt(0.75) * x.abs() - y / 2) - 0.5


def _cross(x: Tensor, y: Tensor) -> Tensor:
    half, long = 0.3, math.sqrt(1 - 0.3**2)
    flat = torch.maximum(x.abs() - long, y.abs() - half)
    return torch.minimum(flat, torch.maximum(x.abs() - half, y.abs() - long))


def _ring(x: Tensor, y: Tensor) -> Tensor:
    return (x.hypot(y) - 0.76).abs() - 0.24


def _diamond(x: Tensor, y: Tensor) -> Tensor:
    return (x.abs() / 0.7 + y.abs() - 1) / math.hypot(1 / 0.7, 1)


_RIMS = (_circle, _square, _triangle, _cross, _ring, _diamond)
