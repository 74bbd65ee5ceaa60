"""What may be said of scenes of the shape world, in words and exactly.

A caption says of each object some of its size, colour and shape, and of the first two how they
lie. What it does not say may be anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import torch
from torch import Generator, Tensor

from tutorial_lib.shape_world import COLOURS, MOST, SHAPES, SIZES, Scenes

RELATIONS = ("left of", "right of", "above", "below")
UNSAID = -1
CLEAR = 0.25  # how much farther apart two centres are along a relation than across it
_WORDINGS = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
_OPENINGS = ("", "", "a picture of ", "there is ")
_SAID = {"size": 0.6, "colour": 0.9, "shape": 0.9, "relation": 0.8}  # how often


@dataclass(frozen=True)
class Claims:
    """Hold what B captions say: `size`, `colour` and `shape` (B, N) as in Scenes, or UNSAID.

    `count` (B,) is the number of objects, which is always said; `relation` (B,), an index into
    RELATIONS, is that of the first object to the second.
    """

    count: Tensor
    size: Tensor
    colour: Tensor
    shape: Tensor
    relation: Tensor


def relations(centre: Tensor) -> Tensor:
    """Return which of RELATIONS holds from the first to the second of centres (..., 2, 2).

    UNSAID where they lie about diagonally, and no one word would do.
    """
    x, y = (centre[..., 0, :] - centre[..., 1, :]).unbind(-1)
    beside = torch.where(x < 0, 0, 1)
    above = torch.where(y < 0, 2, 3)
    found = torch.where(x.abs() > y.abs(), beside, above)
    return torch.where((x.abs() - y.abs()).abs() < CLEAR, UNSAID, found)


def draw_claims(scenes: Scenes, *, generator: Generator) -> Claims:
    """Choose what to say of scenes, all of it true: each thing is left out now and then.

    The shape or the colour of an object is always said, and a relation of two or more alone.
    """
    n = scenes.present.shape

    def now_and_then(share: float, shape: torch.Size) -> Tensor:
        return torch.rand(shape, generator=generator) < share

    colour = now_and_then(_SAID["colour"], n)
    said = {
        "size": now_and_then(_SAID["size"], n),
        "colour": colour,
        "shape": now_and_then(_SAID["shape"], n) | ~colour,
    }
    kept = {
        name: torch.where(said[name] & scenes.present, getattr(scenes, name), UNSAID)
        for name in said
    }
    related = now_and_then(_SAID["relation"], n[:1]) & scenes.present[:, 1]
    relation = torch.where(related, relations(scenes.centre[:, :2]), UNSAID)
    return Claims(count=scenes.present.sum(1), relation=relation, **kept)


def holds(claims: Claims, scenes: Scenes) -> Tensor:
    """Return of which scenes (B,) their captions are true, whatever the objects' order."""
    right = torch.zeros(len(scenes), dtype=torch.bool)
    for order in permutations(range(MOST)):
        order = list(order)
        fits = scenes.present[:, order] == (torch.arange(MOST) < claims.count[:, None])
        for name in ("size", "colour", "shape"):
            said = getattr(claims, name)
            fits &= (said == UNSAID) | (said == getattr(scenes, name)[:, order])
        x, y = (scenes.centre[:, order[0]] - scenes.centre[:, order[1]]).unbind(-1)
        lies = torch.stack([x < 0, x > 0, y < 0, y > 0], 1)
        lies = lies.gather(1, claims.relation.clamp(min=0)[:, None])[:, 0]
        right |= fits.all(1) & (lies | (claims.relation == UNSAID))
    return right


def captions(claims: Claims, *, generator: Generator) -> list[str]:
    """Return what is claimed in words, in one of several wordings each."""
    rolls = torch.randint(4, (len(claims.count), 2), generator=generator).tolist()
    columns = (claims.count, claims.size, claims.colour, claims.shape, claims.relation)
    rows = zip(*(column.tolist() for column in columns), rolls, strict=True)
    return [_caption(*row) for row in rows]


def _caption(
    count: int,
    sizes: list[int],
    colours: list[int],
    shapes: list[int],
    relation: int,
    rolls: list[int],
) -> str:
    things = [_thing(*said) for said in zip(sizes, colours, shapes, strict=True)][:count]
    opening, wording = _OPENINGS[rolls[0]], rolls[1] % 2
    if relation == UNSAID:
        *first, last = things
        return opening + (f"{', '.join(first)} and {last}" if first else last)
    name = RELATIONS[relation]
    if rolls[1] > 1:  # the same from the other side
        name = RELATIONS[relation ^ 1]
        things[:2] = things[1::-1]
    text = f"{opening}{things[0]} {_WORDINGS[name][wording]} {things[1]}"
    return text + "".join(f", and {thing}" for thing in things[2:])


def _thing(size: int, colour: int, shape: int) -> str:
    """Return such as "a small red circle"; "thing" stands for a shape that is not said."""
    said = [tuple(SIZES)[size]] if size != UNSAID else []
    said += [tuple(COLOURS)[colour]] if colour != UNSAID else []
    words = [*said, SHAPES[shape] if shape != UNSAID else "thing"]
    return ("an " if words[0][0] in "aeiou" else "a ") + " ".join(words)
