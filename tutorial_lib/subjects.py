"""Subjects: patterned objects, which no training shows, to be taught from a few pictures.

An ordinary object has one colour, a subject two, in a pattern that turns and grows with it. They
are always the same, without a tint, and HELD_OUT binds only what is drawn beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from tutorial_lib import shape_world as world
from tutorial_lib.shape_world import COLOURS, SHAPES, SIZES, Scenes, masks, render

PATTERNS = ("halves", "stripes", "dots", "checks")
SHOWN = 0.5  # from here on `shows` means yes
_BAND, _DOT, _LATTICE = 2 / 3, 0.25, 0.8  # widths of stripes and checks, dots' radius and period


@dataclass(frozen=True)
class Subject:
    """Describe an object in two colours, first that of its upper half, its middle or between dots.

    Raises ValueError for a shape, pattern or colour that is not known, and for one colour alone.
    """

    shape: str
    pattern: str
    colours: tuple[str, str]

    def __post_init__(self) -> None:
        for name, names in ((self.shape, SHAPES), (self.pattern, PATTERNS)):
            if name not in names:
                raise ValueError(f"{name!r} is none of {', '.join(names)}")
        if len(self.colours) != 2 or len({*self.colours} & {*COLOURS}) != 2:
            raise ValueError(f"colours are two of {', '.join(COLOURS)}, not {self.colours}")


SUBJECTS = {
    "kite": Subject("diamond", "halves", ("orange", "green")),
    "ball": Subject("circle", "stripes", ("purple", "white")),
    "die": Subject("square", "dots", ("yellow", "black")),
    "pinwheel": Subject("cross", "checks", ("blue", "white")),
}


def draw_subject(
    n: int, subject: Subject, *, generator: Generator, objects: tuple[int, ...] = (1,)
) -> tuple[Tensor, Scenes]:
    """Return pictures (n, 3, 32, 32) and scenes, as of `draw_scenes`, of a subject as object 0."""
    scenes = world.draw_scenes(n, generator=generator, objects=objects, held_out=world.HELD_OUT)
    return render_subject(scenes, subject), _plain(scenes, subject, 0)


def _plain(scenes: Scenes, subject: Subject, which: int) -> Scenes:
    """Return scenes in which an object has the subject's shape and, all over, its first colour."""
    shape, colour, paint = (v.clone() for v in (scenes.shape, scenes.colour, scenes.paint))
    shape[:, which] = SHAPES.index(subject.shape)
    colour[:, which] = tuple(COLOURS).index(subject.colours[0])
    paint[:, which] = paint.new_tensor(COLOURS[subject.colours[0]])
    return replace(scenes, shape=shape, colour=colour, paint=paint)


def render_subject(scenes: Scenes, subject: Subject, which: int = 0, side: int = 32) -> Tensor:
    """Return pictures (B, 3, side, side) in [-1, 1] as `render` does, of the subject as `which`.

    Its pattern is blurred as edges are. Raises ValueError if a scene has no such object present.
    """
    if not bool(scenes.present[:, which].all()):
        raise ValueError(f"object {which} is not present in every scene, so it is no subject")
    scenes = _plain(scenes, subject, which)
    centre, radius, angle = (v[:, which] for v in (scenes.centre, scenes.radius, scenes.angle))
    beyond = _beyond(subject.pattern, *world.frames(centre, radius, angle, side))
    share = (0.5 + beyond * radius[:, None, None] * side / 2).clamp(0, 1)[:, None]
    old, new = scenes.paint.new_tensor([COLOURS[k] for k in subject.colours])[..., None, None]
    return render(scenes, side) + 2 * share * masks(scenes, side)[:, which, None] * (new - old)


def _beyond(pattern: str, x: Tensor, y: Tensor) -> Tensor:
    """Return how far into the second colour points of a frame are, negative in the first."""
    u, v = (((z + _BAND).remainder(2 * _BAND) - _BAND).abs() - _BAND / 2 for z in (x, y))
    dots = _DOT - torch.hypot(*(z.remainder(_LATTICE) - _LATTICE / 2 for z in (x, y)))
    checks = torch.minimum(torch.maximum(u, v), -torch.minimum(u, v))
    return {"halves": y, "stripes": u, "dots": dots, "checks": checks}[pattern]


def shows(pictures: Tensor, subject: Subject) -> Tensor:
    """Return how well pictures (B, 3, H, H) in [-1, 1] show a subject anywhere, (B,) in [0, 1].

    It is 1 - E / E' at the best place, size and turn: E is the squared error, in and just around
    the object, of the subject drawn on the picture's median colour; E' is that of the best object
    in one colour, were the subject there. It judges patterns well and shapes roughly.
    """
    own, cover, near = _templates(subject, pictures.shape[-1])
    plain = (cover * own).sum((2, 3), keepdim=True) / cover.square().sum((2, 3), keepdim=True)
    scale, found = (own - cover * plain).square().sum((1, 2, 3), keepdim=True), []
    for seen in (pictures + 1) / 2:
        ground = seen.flatten(1).median(1).values[:, None, None]
        rest, drawn = seen - ground, own - ground * cover
        rest = torch.cat([rest, rest.square().sum(0, keepdim=True)])
        kernel, bias = torch.cat([-2 * drawn, near], 1) / scale, drawn.square() / scale
        error = F.conv2d(rest, kernel, bias.sum((1, 2, 3)), padding=kernel.shape[-1] // 3)
        found.append(float(1 - error.amin()))
    return pictures.new_tensor(found).clamp(0, 1)


def _templates(subject: Subject, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return T subjects on black (T, 3, k, k), their cover and where to compare (T, 1, k, k)."""
    k = 2 * round(SIZES["large"][1] * side / 2 + 1) + 1
    radii = torch.cat([torch.linspace(*size, 7)[1::2] for size in SIZES.values()]) * side / k
    few = torch.linspace(-1, 1, 7)[1::2]  # the middles of thirds: of a pixel, and of turns
    grid = torch.cartesian_prod(few / k, few / k, radii, world.TURN * few)[:, None]
    at, one = (grid[..., :2], grid[..., 2], grid[..., 3]), torch.zeros(len(grid), 1).long()
    black = torch.zeros(len(grid), 1, 3)
    scenes = _plain(Scenes(one == 0, one, one, one, *at, black, black[:, 0]), subject, 0)
    own = (render_subject(scenes, subject, side=k) + 1) / 2
    return own, masks(scenes, k), (world.distances(scenes, k) < 2 / k).to(own.dtype)
