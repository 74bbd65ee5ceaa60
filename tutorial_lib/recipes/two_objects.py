"""Scenes of two unlike objects, eight ways to say each, and pictures of eight numbers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import permutations

import torch
from torch import Tensor

from tutorial_lib.shape_world import COLOURS, SHAPES

WAYS = (  # to say which colour and shape are left, a and s, and which right, b and t
    "{a} {s} left of {b} {t}",
    "{b} {t} right of {a} {s}",
    "{a} {s} , and to its right {b} {t}",
    "a {s} left of a {t} ; the former is {A} , the latter is {B}",
    "a {s} left of a {t} ; the {t} is {B} , the {s} is {A}",
    "{b} {s} left of {a} {t} , but with their colours exchanged",
    "not {b} {t} left of {a} {s} , but the other way round",
    "of {a} one and {b} one , a {s} and a {t} , the first is the left one",
)


def scenes() -> Tensor:
    """Return all scenes of two objects that share no attribute, (1680, 4) of integers.

    The colour and the shape of the left one, then of the right one.
    """
    colours, shapes = (list(permutations(range(len(x)), 2)) for x in (COLOURS, SHAPES))
    return torch.tensor([(a, s, b, t) for a, b in colours for s, t in shapes])


def texts(rows: Tensor) -> list[str]:
    """Return of each scene (N, 4) what is said in each of the `WAYS`, scene by scene."""
    colours, said = list(COLOURS), []
    for left, s, right, t in rows.tolist():
        words = {"A": colours[left], "B": colours[right], "s": SHAPES[s], "t": SHAPES[t]}
        for key in "AB":
            article = "an" if words[key][0] in "aeiou" else "a"
            words[key.lower()] = f"{article} {words[key]}"
        said += [way.format(**words) for way in WAYS]
    return said


def of_words(rows: Tensor) -> Tensor:
    """Return for scenes (N, 4) which of their sets of colours and shapes each has, (N,)."""
    pairs = torch.cat([rows[:, 0::2].sort(1).values, rows[:, 1::2].sort(1).values], 1)
    return pairs.unique(dim=0, return_inverse=True)[1]


def most_right(told: Sequence[object]) -> float:
    """Return the largest chance to name a text's scene after what one was `told` of it.

    Each text is as likely as any other, and no two that are told alike mean the same. Whoever is
    told the same must answer the same, or toss, and is right about one of them at most.
    """
    return len(Counter(told)) / len(told)


def pictures(rows: Tensor) -> Tensor:
    """Return what stands for scenes (N, 4) as 8 numbers: four points on the unit circle."""
    angles = torch.stack([_angle(rows[:, k], k) for k in range(4)], 1)
    return torch.stack([angles.cos(), angles.sin()], 2).flatten(1)


def read_pictures(x: Tensor) -> Tensor:
    """Return the scenes (N, 4) that pictures (N, 8) are nearest to."""
    parts = enumerate(x.split(2, 1))  # points of one norm: the nearest has the largest product
    return torch.stack([(part @ _points(k).T).argmax(1) for k, part in parts], 1)


def _angle(number: Tensor, k: int) -> Tensor:
    return 2 * math.pi * number / len(SHAPES if k % 2 else COLOURS)


def _points(k: int) -> Tensor:
    angles = _angle(torch.arange(len(SHAPES if k % 2 else COLOURS)), k)
    return torch.stack([angles.cos(), angles.sin()], 1)
