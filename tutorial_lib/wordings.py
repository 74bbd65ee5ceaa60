"""Words that captions of the shape world never use, and forms they never take.

What has only been told the captions' own words cannot know that a disc is a circle. A language
model that has read elsewhere may (Imagen, Saharia et al. 2022, section 2.1).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Generator, Tensor

from tutorial_lib.captions import LENGTH, UNSAID, VOCABULARY, Claims
from tutorial_lib.shape_world import COLOURS, SHAPES, SIZES

OTHER_WORDS = {  # by what they tell; chosen by sense, before any was tried
    "shape": {
        "circle": ("disc", "dot", "ball"),
        "square": ("box", "block", "tile"),
        "triangle": ("pyramid", "wedge", "cone"),
        "cross": ("plus", "crucifix", "crossing"),
        "ring": ("hoop", "loop", "annulus"),
        "diamond": ("rhombus", "lozenge", "gem"),
    },
    "colour": {
        "red": ("crimson", "scarlet"),
        "orange": ("amber", "tangerine"),
        "yellow": ("golden", "lemon"),
        "green": ("emerald", "lime"),
        "blue": ("navy", "azure"),
        "purple": ("violet", "lilac"),
        "white": ("ivory", "snowy"),
        "black": ("ebony", "inky"),
    },
    "size": {"small": ("little", "tiny"), "large": ("big", "huge")},
    "relation": {
        "left of": ("west of",),  # and so "to the left of": "to the west of"
        "right of": ("east of",),
        "above": ("atop", "higher than"),
        "over": ("atop", "higher than"),
        "below": ("beneath", "lower than"),
        "under": ("beneath", "lower than"),
    },
}
FORMS = (  # of a caption of one object
    "the {shape} is {size} and {colour}",
    "one {size} {colour} {shape} , please",
    "i see a {shape} that is {colour} and {size}",
    "{shape} , {colour} , {size}",
)
FACTS = {  # what a dictionary says of shapes, under each of their names
    "circle": ("is round", "is full", "has no corner"),
    "square": ("has four corners", "is full", "stands on a side"),
    "triangle": ("has three corners", "is full", "stands on a side"),
    "cross": ("has four arms", "is made of two bars", "has many corners"),
    "ring": ("is round", "is hollow", "has no corner"),
    "diamond": ("has four corners", "is full", "stands on a corner"),
}
SENTENCES = (  # of their cosines the language model's authors tell three
    "That is a happy person",
    "That is a happy dog",
    "That is a very happy person",
    "Today is a sunny day",
)
_OPENING = (  # one of each shape, by another name
    *("a large red disc", "a large green box", "a large yellow pyramid"),
    *("a large blue crucifix", "a large green hoop", "a large purple gem"),
)
_FORMED = ("red", "green", "yellow", "blue", "red", "purple")  # the colours of shapes in FORMS
_SIZED = ("small", "large", "small", "large", "large", "small")


def course_texts() -> list[str]:
    """Return the texts whose features by the language model come with the package."""
    shapes = [
        f"a large {colour} {word}"
        for shape in SHAPES
        for word in (shape, *OTHER_WORDS["shape"][shape])
        for colour in ("white", "black")  # of which no shape is held out
    ]
    colours = [
        f"{'an' if word[0] in 'aei' else 'a'} {word} {'ring' if colour != 'orange' else 'cross'}"
        for colour, words in OTHER_WORDS["colour"].items()
        for word in words
    ]
    sizes = [f"a {word} blue square" for words in OTHER_WORDS["size"].values() for word in words]
    forms = [
        form.format(size=size, colour=colour, shape=shape)
        for shape, colour, size in zip(SHAPES, _FORMED, _SIZED, strict=True)
        for form in FORMS
    ]
    lies = ("west of", "east of", "atop", "higher than", "beneath", "lower than")
    pairs = (("red circle", "blue square"), ("green ring", "yellow cross"))
    related = [f"a {a} {lie} a {b}" for lie in lies for a, b in pairs]
    return ["", *SENTENCES, *_OPENING, *shapes, *colours, *sizes, *forms, *related]


def other_words(kind: str) -> dict[str, str]:
    """Return what each new word of a kind means in the captions' own words."""
    pairs = OTHER_WORDS[kind].items()
    return {new: old for old, words in reversed(pairs) for new in words}


def reworded(texts: Iterable[str], kind: str, *, generator: Generator) -> list[str]:
    """Return captions with all words of a kind exchanged for other ones of that meaning.

    Each by one of those in `OTHER_WORDS[kind]`, equally often; what has none stays.
    """
    return [_reworded(text, OTHER_WORDS[kind], generator) for text in texts]


def _reworded(text: str, table: dict[str, tuple[str, ...]], generator: Generator) -> str:
    said = f" {text} "
    for old, words in table.items():
        while f" {old} " in said:
            new = words[
                int(torch.randint(len(words), (), generator=generator, device=generator.device))
            ]
            said = said.replace(f" {old} ", f" {new} ", 1)
    vowels = tuple("aeio")
    words = said.split()
    for k in range(len(words) - 1):
        if words[k] in ("a", "an"):
            words[k] = "an" if words[k + 1].startswith(vowels) else "a"
    return " ".join(words)


def sentences(claims: Claims, *, generator: Generator) -> list[str]:
    """Say what is claimed of single objects, all of it, each in one of the `FORMS`."""
    if bool((claims.count != 1).any()) or bool((claims.size[:, 0] == UNSAID).any()):
        raise ValueError("only whole captions of one object have these forms")
    n, where = claims.count.shape, generator.device
    which = torch.randint(len(FORMS), n, generator=generator, device=where)
    names = tuple(SIZES), tuple(COLOURS), SHAPES
    said = zip(claims.size[:, 0], claims.colour[:, 0], claims.shape[:, 0], which, strict=True)
    return [
        FORMS[form].format(size=names[0][s], colour=names[1][c], shape=names[2][k])
        for s, c, k, form in said
    ]


def dictionary() -> list[str]:
    """Return what is said of every shape under all its names, such as "a disc is round"."""
    return [
        f"{'an' if name[0] in 'aeio' else 'a'} {name} {fact}"
        for shape, facts in FACTS.items()
        for name in (shape, *OTHER_WORDS["shape"][shape])
        for fact in facts
    ]


def _words() -> tuple[str, ...]:
    kinds = (" ".join(words) for table in OTHER_WORDS.values() for words in table.values())
    texts = [*kinds, *dictionary(), *(form.format(size="", colour="", shape="") for form in FORMS)]
    return tuple(sorted({word for text in texts for word in text.split()} - set(VOCABULARY)))


WORDS = (*VOCABULARY, *_words(), "<mask>")  # the captions' own words keep their numbers
_NUMBERS = {word: k for k, word in enumerate(WORDS)}


def tokens(texts: Iterable[str]) -> Tensor:
    """Return the tokens (B, LENGTH) of texts in these words, as `captions.write_tokens` does.

    KeyError for another word.
    """
    rows = []
    for text in texts:
        said = [_NUMBERS[word] for word in text.replace(",", " ,").split()]
        row = [_NUMBERS["<start>"], *said, _NUMBERS["<end>"]]
        rows.append(row + [_NUMBERS["<pad>"]] * (LENGTH - len(row)))
    return torch.tensor(rows)
