"""What may be said of scenes of the shape world, in words and exactly.

A caption says of each object some of its size, colour and shape, and of the first two how they
lie. What it does not say may be anything. All is made on torch's default device.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import permutations

import torch
from torch import Generator, Tensor

from tutorial_lib.shape_world import COLOURS, MOST, SHAPES, SIZES, Scenes

RELATIONS = ("left of", "right of", "above", "below")
UNSAID = -1
CLEAR = 0.25  # how much farther apart two centres are along a relation than across it
_OPENINGS = ("", "", "a picture of", "there is")
_BETWEEN = (  # two wordings of each relation, and none
    *("left of", "to the left of", "right of", "to the right of"),
    *("above", "over", "below", "under", ""),
)
PAD, START, END = 0, 1, 2
NAME = "[V]"  # stands in a caption for a word of a subject's own
VOCABULARY = (
    *("<pad>", "<start>", "<end>", ",", "and", "a", "an", "picture", "of", "there", "is"),
    *("to", "the", "left", "right", "above", "over", "below", "under"),
    *(*SIZES, *COLOURS, *SHAPES, "thing"),
)
LENGTH = 24
_NUMBERS = {word: k for k, word in enumerate(VOCABULARY)}
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


def all_claims(scenes: Scenes) -> Claims:
    """Say everything of scenes that a caption can."""
    there = {
        name: torch.where(scenes.present, getattr(scenes, name), UNSAID)
        for name in ("size", "colour", "shape")
    }
    lie = torch.where(scenes.present[:, 1], relations(scenes.centre[:, :2]), UNSAID)
    return Claims(count=scenes.present.sum(1), relation=lie, **there)


def holds(claims: Claims, scenes: Scenes) -> Tensor:
    """Return of which scenes (B,) their captions are true, whatever the objects' order.

    To lie left of another an object's centre need only be farther left, and so on.
    """
    right = torch.zeros(len(scenes), dtype=torch.bool)
    for order in permutations(range(MOST)):
        fits, lies = _as_said(claims, scenes, list(order))
        there = scenes.present[:, order] == (torch.arange(MOST) < claims.count[:, None])
        right |= (fits & there).all(1) & lies
    return right


def _as_said(claims: Claims, scenes: Scenes, order: list[int]) -> tuple[Tensor, Tensor]:
    """Return which objects (B, N), in an order, have what is said, and if two lie so (B,)."""
    fits = torch.ones_like(scenes.present)
    for name in ("size", "colour", "shape"):
        said = getattr(claims, name)
        fits &= (said == UNSAID) | (said == getattr(scenes, name)[:, order])
    x, y = (scenes.centre[:, order[0]] - scenes.centre[:, order[1]]).unbind(-1)
    lies = torch.stack([x < 0, x > 0, y < 0, y > 0], 1)
    lies = lies.gather(1, claims.relation.clamp(min=0)[:, None])[:, 0]
    return fits, lies | (claims.relation == UNSAID)


def as_claimed(claims: Claims, scenes: Scenes) -> Tensor:
    """Return which objects (B, N) of scenes are as their caption says, in the best-fitting order.

    That order has as many of them as may be. Where the first two lie otherwise than is said, the
    first of them is not as claimed.
    """
    best, most = torch.zeros_like(scenes.present), torch.full((len(scenes.present),), -1)
    for order in permutations(range(MOST)):
        fits, lies = _as_said(claims, scenes, list(order))
        fits &= scenes.present[:, order] & (torch.arange(MOST) < claims.count[:, None])
        fits[:, 0] &= lies | ~fits[:, 1]
        own = torch.zeros_like(fits)
        own[:, order] = fits
        better = fits.sum(1) > most
        best = torch.where(better[:, None], own, best)
        most = torch.where(better, fits.sum(1), most)
    return best


def caption_likelihood(claims: Claims, scenes: Scenes, *, related: bool = True) -> Tensor:
    """Return how likely each of C captions is of each of B pictures, (B, C).

    It is p(caption | picture), but for a factor that is the same for all pictures: in which words
    it is said, and of what. A picture does not tell which object is first: any order will do.
    If not `related`, it is the likelihood of the rest, whatever is said of how things lie.
    """
    n, zero = scenes.present.sum(1), torch.zeros(len(scenes), len(claims.count))
    total, orders = zero.clone(), zero.clone()
    for order in permutations(range(MOST)):
        order = list(order)
        first = (scenes.present[:, order] == (torch.arange(MOST) < n[:, None])).all(1)
        fits = first[:, None] & (n[:, None] == claims.count)
        for name in ("size", "colour", "shape"):
            said = getattr(claims, name)  # (C, N)
            same = said == getattr(scenes, name)[:, order][:, None]  # (B, C, N)
            fits &= ((said == UNSAID) | same).all(2)
        lie = torch.where(n > 1, relations(scenes.centre[:, order[:2]]), UNSAID)[:, None]
        said = _SAID["relation"] * (claims.relation == lie)
        unsaid = torch.where(lie == UNSAID, 1.0, 1 - _SAID["relation"])
        lies = torch.where(claims.relation == UNSAID, unsaid, said) if related else 1.0
        total += fits * lies
        orders += first[:, None]
    return total / orders


def caption_tokens(claims: Claims, *, generator: Generator) -> Tensor:
    """Return what is claimed in one of several wordings, as tokens (B, LENGTH).

    A caption begins with START, ends with END and is filled up with PAD.
    """
    n = len(claims.count)
    mirrored, which = (torch.rand(n, generator=generator) < 0.5 for _ in range(2))
    opening = torch.randint(len(_OPENINGS), (n,), generator=generator)
    related = claims.relation != UNSAID
    things = _things(claims)  # (B, N, 4)
    swapped = things[:, [1, 0, *range(2, MOST)]]
    things = torch.where((related & mirrored)[:, None, None], swapped, things)
    relation = torch.where(mirrored, claims.relation ^ 1, claims.relation)
    between = _table(_BETWEEN)[torch.where(related, 2 * relation + which, -1)]
    two, three = claims.count == 2, claims.count == 3
    comma = torch.where(three & ~related, _ids(","), PAD)
    links = torch.where(two & ~related, _ids("and"), comma)
    parts = [
        torch.full((n, 1), START),
        _table(_OPENINGS)[opening],
        things[:, 0],
        torch.where(related[:, None], between, PAD),
        links[:, None],
        things[:, 1],
        torch.where(three & related, _ids(","), PAD)[:, None],
        torch.where(three, _ids("and"), PAD)[:, None],
        things[:, 2],
        torch.full((n, 1), END),
    ]
    slots = torch.cat(parts, 1)
    filled = slots.gather(1, (slots == PAD).to(torch.int8).argsort(dim=1, stable=True))
    return filled[:, :LENGTH]


def read_tokens(tokens: Tensor) -> list[str]:
    """Return the captions that tokens (B, L) spell."""
    silent = {PAD, START, END}
    texts = (" ".join(VOCABULARY[k] for k in row if k not in silent) for row in tokens.tolist())
    return [text.replace(" ,", ",") for text in texts]


def write_tokens(texts: Iterable[str]) -> Tensor:
    """Return the tokens (B, LENGTH) of captions, in small letters or large.

    Raises ValueError for a word that the world does not know, or a caption that is too long.
    """
    rows = []
    for text in texts:
        words = text.lower().replace(",", " ,").split()
        strange = [word for word in words if word not in _NUMBERS]
        if strange:
            known = ", ".join(VOCABULARY[3:])
            raise ValueError(f"no caption has the word {strange[0]!r}; the words are: {known}")
        if len(words) > LENGTH - 2:
            raise ValueError(f"a caption has at most {LENGTH - 2} words, this one {len(words)}")
        row = [START, *(_NUMBERS[word] for word in words), END]
        rows.append(row + [PAD] * (LENGTH - len(row)))
    return torch.tensor(rows)


def write_named(texts: Iterable[str], token: int) -> Tensor:
    """Return the tokens (B, LENGTH) of captions, with `token` wherever they say [V].

    "a [V] circle": a name, and the noun of its class (Ruiz et al. 2023, section 3.2). Raises
    ValueError as `write_tokens` does.
    """
    texts = list(texts)
    tokens = write_tokens(text.replace(NAME, "thing") for text in texts)
    for row, text in zip(tokens, texts, strict=True):
        words = text.replace(",", " ,").split()
        row[[1 + k for k, word in enumerate(words) if word == NAME]] = token
    return tokens


def _things(claims: Claims) -> Tensor:
    """Return the four words of each object, (B, N, 4), such as "a small red circle"."""
    columns = []
    for name, names in (("size", SIZES), ("colour", COLOURS), ("shape", SHAPES)):
        unsaid = "thing" if name == "shape" else "<pad>"
        ids = torch.tensor([_NUMBERS[word] for word in (*names, unsaid)])
        columns.append(ids[getattr(claims, name)])  # UNSAID is the last
    words = torch.stack(columns, -1)
    first = words.gather(-1, (words != PAD).to(torch.int8).argmax(-1, keepdim=True))
    vowel = torch.tensor([word[0] in "aeiou" for word in VOCABULARY])
    article = torch.where(vowel[first], _ids("an"), _ids("a"))
    there = torch.arange(MOST)[:, None] < claims.count[:, None, None]
    return torch.where(there, torch.cat([article, words], -1), PAD)


def _ids(word: str) -> Tensor:
    return torch.tensor(_NUMBERS[word])


def _table(phrases: Iterable[str]) -> Tensor:
    """Return the tokens of phrases, (P, most words), filled up with PAD."""
    rows = [[_NUMBERS[word] for word in phrase.split()] for phrase in phrases]
    most = max(map(len, rows))
    return torch.tensor([row + [PAD] * (most - len(row)) for row in rows])
