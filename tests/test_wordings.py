"""Words and forms that captions never use: each keeps its meaning. Takes 3 seconds."""

import re
from itertools import pairwise

import pytest
import torch
from truths import generator

from tutorial_lib.captions import (
    LENGTH,
    VOCABULARY,
    all_claims,
    caption_tokens,
    draw_claims,
    read_tokens,
    write_tokens,
)
from tutorial_lib.shape_world import COLOURS, HELD_OUT, SHAPES, SIZES, draw_scenes
from tutorial_lib.wordings import (
    FACTS,
    FORMS,
    OTHER_WORDS,
    WORDS,
    course_texts,
    dictionary,
    other_words,
    reworded,
    sentences,
    tokens,
)


def captions(n, seed=0, objects=(1, 2, 3)):
    scenes = draw_scenes(n, generator=generator(seed), objects=objects)
    claims = draw_claims(scenes, generator=generator(seed + 1))
    return read_tokens(caption_tokens(claims, generator=generator(seed + 2)))


def without_articles(text):
    return re.sub(r"\ban?\b", "a", text.replace(",", " ,")).split()


@pytest.mark.parametrize("kind", OTHER_WORDS)
def test_a_reworded_caption_says_the_same(kind):
    said = [text.replace(",", " ,") for text in captions(400)]
    meaning = other_words(kind)
    for old, new in zip(said, reworded(said, kind, generator=generator(5)), strict=True):
        assert not any(f" {word} " in f" {new} " for word in OTHER_WORDS[kind])
        back = f" {new} "
        for word in sorted(meaning, key=len, reverse=True):
            back = back.replace(f" {word} ", f" {meaning[word]} ").replace(
                f" {word} ", f" {meaning[word]} "
            )
        same = back.replace(" over ", " above ").replace(" under ", " below ")
        old = old.replace(" over ", " above ").replace(" under ", " below ")
        assert without_articles(same) == without_articles(old)


def test_all_other_words_are_used_equally_often():
    said = reworded(["a red circle"] * 600, "shape", generator=generator(0))
    for word in OTHER_WORDS["shape"]["circle"]:
        assert abs(sum(word in text for text in said) - 200) < 6 * (600 * 2 / 9) ** 0.5


def test_articles_fit():
    said = reworded(captions(300, objects=(1,)), "colour", generator=generator(1))
    assert any("an amber" in text for text in said)
    for text in said:
        for article, word in re.findall(r"\b(an?) (\w+)", text):
            assert (article == "an") == (word[0] in "aeiou"), text


def test_nothing_else_changes():
    said = ["a large thing to the left of a blue thing", "there is a red circle"]
    new = reworded(said, "relation", generator=generator(0))
    assert new == ["a large thing to the west of a blue thing", said[1]]


def test_sentences_say_all_of_a_single_object():
    scenes = draw_scenes(200, generator=generator(0), objects=(1,))
    found = sentences(all_claims(scenes), generator=generator(1))
    names = tuple(SIZES), tuple(COLOURS), SHAPES
    for k, text in enumerate(found):
        said = (names[0][scenes.size[k, 0]], names[1][scenes.colour[k, 0]])
        assert {*said, names[2][scenes.shape[k, 0]]} <= set(text.split())
    starts = {form.split()[0] for form in FORMS if "{" not in form.split()[0]}
    assert starts <= {text.split()[0] for text in found}
    pairs = all_claims(draw_scenes(5, generator=generator(0), objects=(2,)))
    with pytest.raises(ValueError, match="one object"):
        sentences(pairs, generator=generator(1))


def test_the_dictionary_tells_every_shape_apart_under_all_its_names():
    assert len({frozenset(facts) for facts in FACTS.values()}) == len(SHAPES)
    said = dictionary()
    assert "a disc is round" in said and "an annulus is hollow" in said
    for name, shape in (other_words("shape") | {s: s for s in SHAPES}).items():
        mine = {text.split(f" {name} ")[1] for text in said if f" {name} " in text}
        assert mine == set(FACTS[shape])


def test_tokens_are_the_captions_own_with_more_words():
    assert WORDS[: len(VOCABULARY)] == VOCABULARY and len(set(WORDS)) == len(WORDS)
    said = captions(200)
    assert torch.equal(tokens(said), write_tokens(said))
    new = [*dictionary(), *reworded(said, "colour", generator=generator(0))]
    assert tokens(new).shape == (len(new), LENGTH) and int(tokens(new).max()) < len(WORDS)
    with pytest.raises(KeyError):
        tokens(["a red banana"])


def test_the_courses_texts_are_different_and_show_no_pair_that_is_held_out():
    texts = course_texts()
    assert len(set(texts)) == len(texts) and texts[0] == ""
    colours = other_words("colour") | {c: c for c in COLOURS}
    shapes = other_words("shape") | {s: s for s in SHAPES}
    for text in texts:
        words = text.replace(",", "").split()
        pairs = pairwise(words)
        found = {(colours[a], shapes[b]) for a, b in pairs if a in colours and b in shapes}
        assert not found & set(HELD_OUT), text
