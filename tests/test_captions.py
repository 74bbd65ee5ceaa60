"""Captions of the shape world, read back by a parser of our own, and what makes them true. 2 s."""

import re
from dataclasses import replace

import pytest
import torch
from truths import generator

from tutorial_lib.captions import (
    END,
    LENGTH,
    PAD,
    RELATIONS,
    START,
    UNSAID,
    VOCABULARY,
    Claims,
    all_claims,
    caption_likelihood,
    caption_tokens,
    draw_claims,
    holds,
    read_tokens,
    relations,
    write_named,
    write_tokens,
)
from tutorial_lib.shape_world import COLOURS, MOST, SHAPES, SIZES, draw_scenes

SAME = {"to the left of": "left of", "to the right of": "right of", "over": "above"}
SAME |= {"under": "below"}
WORDS = {"size": tuple(SIZES), "colour": tuple(COLOURS), "shape": SHAPES}
BETWEEN = "|".join([*sorted(SAME, key=len, reverse=True), *RELATIONS])


def world(n=3000, seed=0):
    scenes = draw_scenes(n, generator=generator(seed))
    return scenes, draw_claims(scenes, generator=generator(seed + 1))


def understood(text):
    """What a caption says: the things in their order, and the relation of the first two."""
    text = re.sub(r"^(a picture of|there is) ", "", text)
    relation = re.search(rf" ({BETWEEN}) ", text)
    parts = re.split(rf" (?:{BETWEEN}) |, and |, | and ", text)
    things = []
    for part in parts:
        article, *words, last = part.split()
        assert article == ("an" if (words or [last])[0][0] in "aeiou" else "a"), text
        thing = dict.fromkeys(WORDS, UNSAID)
        for word in (*words, last):
            if word == "thing":
                continue
            (name,) = (k for k, known in WORDS.items() if word in known)
            thing[name] = WORDS[name].index(word)
        things.append(tuple(thing.values()))
    name = relation and SAME.get(relation[1], relation[1])
    return things, RELATIONS.index(name) if name else UNSAID


def test_captions_say_what_they_claim_and_nothing_else():
    _, claims = world()
    mirrored = 0
    for k, text in enumerate(read_tokens(caption_tokens(claims, generator=generator(5)))):
        things, relation = understood(text)
        said = [
            tuple(int(getattr(claims, name)[k, i]) for name in WORDS)
            for i in range(int(claims.count[k]))
        ]
        if relation != claims.relation[k]:
            mirrored += 1
            assert relation == int(claims.relation[k]) ^ 1, text
            said[:2] = said[1::-1]
        assert things == said, text
    assert 0.3 < mirrored / int((claims.relation != UNSAID).sum()) < 0.7


def test_tokens_are_words_and_words_tokens():
    _, claims = world()
    tokens = caption_tokens(claims, generator=generator(5))
    assert tokens.shape == (3000, LENGTH)
    assert torch.equal(write_tokens(read_tokens(tokens)), tokens)
    assert (tokens[:, 0] == START).all() and ((tokens == END).sum(1) == 1).all()
    ends = (tokens == END).long().argmax(1)[:, None]
    assert torch.equal(tokens == PAD, torch.arange(LENGTH) > ends)
    used = {VOCABULARY[k] for k in tokens.unique().tolist()}
    assert used == set(VOCABULARY)  # each word is in use, and none is lacking


def test_captions_as_people_type_them():
    typed, same = "A red circle, and a Blue ring", "a red circle, and a blue ring"
    assert read_tokens(write_tokens([typed])) == [same]
    with pytest.raises(ValueError, match="no caption has the word 'crimson'; the words are: ,"):
        write_tokens(["a crimson circle"])
    with pytest.raises(ValueError, match="at most 22 words, this one 24"):
        write_tokens(["a red circle " * 8])


def test_wordings_vary():
    _, claims = world(1)
    claims = replace(claims, count=torch.tensor([2]), relation=torch.tensor([0]))
    said = {read_tokens(caption_tokens(claims, generator=generator(k)))[0] for k in range(200)}
    assert len(said) == 3 * 4  # openings, and ways to say a relation


def test_a_caption_is_true_of_its_scene_and_rarely_of_another():
    scenes, claims = world()
    assert holds(claims, scenes).all()
    assert holds(claims, scenes[torch.arange(1, 3001) % 3000]).double().mean() < 0.02


@pytest.mark.parametrize("name", ["size", "colour", "shape"])
def test_one_false_word_makes_a_caption_false(name):
    scenes, claims = world()
    alone = (scenes.present.sum(1) == 1) & (getattr(claims, name)[:, 0] != UNSAID)
    other = (getattr(scenes, name) + 1) % len(WORDS[name])
    changed = replace(scenes, **{name: other})
    assert not holds(claims, changed)[alone].any()
    unsaid = (scenes.present.sum(1) == 1) & ~alone
    assert holds(claims, changed)[unsaid].all() and unsaid.any()


def test_a_false_relation_makes_a_caption_false_and_a_mirror_true():
    scenes, claims = world()
    told = claims.relation != UNSAID
    wrong = replace(claims, relation=torch.where(told, claims.relation ^ 1, UNSAID))
    distinct = told & (scenes.colour[:, 0] != scenes.colour[:, 1]) & (claims.count == 2)
    distinct &= ((claims.colour != UNSAID) & scenes.present).sum(1) == 2
    assert distinct.sum() > 300 and not holds(wrong, scenes)[distinct].any()
    swapped = {name: getattr(claims, name)[:, [1, 0, 2]] for name in WORDS}
    assert holds(replace(wrong, **swapped), scenes)[told].all()


def test_the_number_of_objects_is_always_said():
    scenes, claims = world()
    fewer = replace(scenes, present=scenes.present & (torch.arange(MOST) < 2))
    three = claims.count == 3
    assert not holds(claims, fewer)[three].any()
    assert torch.equal(claims.count, scenes.present.sum(1))


def test_the_order_of_objects_does_not_matter():
    scenes, claims = world()
    order = [2, 0, 1]
    names = ("present", "shape", "colour", "size", "centre", "radius")
    turned = replace(scenes, **{name: getattr(scenes, name)[:, order] for name in names})
    assert holds(claims, turned).all()


def test_relations_by_hand():
    first, second = torch.tensor([0.1, 0.2]), torch.tensor([[0.8, 0.1], [0.0, 0.9], [0.5, 0.6]])
    pairs = torch.stack([first.expand(3, 2), second], 1)
    names = [RELATIONS[k] if k != UNSAID else None for k in relations(pairs)]
    assert names == ["left of", "above", None]
    assert [RELATIONS[k] for k in relations(pairs[:2].flip(1))] == ["right of", "below"]


def test_what_is_said_is_left_out_now_and_then():
    scenes, claims = world(20_000)
    there = scenes.present
    shares = {name: (getattr(claims, name)[there] != UNSAID).double().mean() for name in WORDS}
    assert shares == pytest.approx({"size": 0.6, "colour": 0.9, "shape": 0.91}, abs=0.01)
    clear = there[:, 1] & (relations(scenes.centre[:, :2]) != UNSAID)
    related = claims.relation != UNSAID
    assert related[clear].double().mean() == pytest.approx(0.8, abs=0.015)
    assert not related[~clear].any()
    assert ((claims.colour == UNSAID) & (claims.shape == UNSAID) & there).sum() == 0
    assert isinstance(claims, Claims) and (claims.size[~there] == UNSAID).all()


def counted(scenes, claims, n):
    """How often n tellers of each picture, who see its objects in any order, claim this."""
    shares = torch.zeros(len(scenes), len(claims.count))
    for b in range(len(scenes)):
        many = scenes[torch.full((n,), b)]
        order = torch.rand(n, MOST, generator=generator(b)).argsort(1)
        order = torch.where(many.present.sum(1, keepdim=True) == MOST, order, torch.arange(MOST))
        two = many.present.sum(1) == 2
        turned = two & (torch.rand(n, generator=generator(b + 50)) < 0.5)
        order[turned] = torch.tensor([1, 0, 2])
        shuffled = {
            name: getattr(many, name).gather(1, order) for name in ("size", "colour", "shape")
        }
        centre = many.centre.gather(1, order[..., None].expand(-1, -1, 2))
        told = draw_claims(replace(many, centre=centre, **shuffled), generator=generator(b + 99))
        for c in range(len(claims.count)):
            one = {name: getattr(claims, name)[c] for name in vars(claims)}
            same = [(getattr(told, k) == v).view(n, -1).all(1) for k, v in one.items()]
            shares[b, c] = torch.stack(same).all(0).double().mean()
    return shares


def test_likelihoods_are_how_often_tellers_say_it():
    """Of ten pictures and a caption of each; columns have a factor of their own."""
    scenes = draw_scenes(10, generator=generator(3))
    claims = draw_claims(scenes, generator=generator(4))
    n = 40_000
    likely, often = caption_likelihood(claims, scenes), counted(scenes, claims, n)
    assert bool((likely.diagonal() > 0).all())
    factor = often.sum(0) / likely.sum(0)
    band = 6 * (often * (1 - often) / n).sqrt() + 1e-4
    assert bool(((likely * factor - often).abs() < band + 0.02 * often).all())


def test_a_caption_that_does_not_hold_has_no_likelihood():
    scenes, claims = world(300)
    likely = caption_likelihood(claims, scenes)
    for shift in range(1, 20):
        true = holds(claims, scenes[torch.arange(300).roll(shift)])
        found = likely[torch.arange(300).roll(shift), torch.arange(300)]
        assert not bool((found > 0)[~true].any())
    turned = all_claims(scenes)
    related = turned.relation != UNSAID
    turned = replace(turned, relation=torch.where(related, turned.relation ^ 1, UNSAID))
    false = related & ~holds(turned, scenes)
    assert int(false.sum()) > 50
    assert not bool(caption_likelihood(turned, scenes).diagonal()[false].any())


def test_likelihoods_of_the_rest_are_sums_over_what_may_be_said_of_how_things_lie():
    scenes, claims = world(200)
    two = claims.count > 1
    anything = [
        caption_likelihood(replace(claims, relation=torch.where(two, said, UNSAID)), scenes)
        for said in (UNSAID, *range(len(RELATIONS)))
    ]
    summed = torch.where(two, torch.stack(anything).sum(0), anything[0])
    rest = caption_likelihood(claims, scenes, related=False)
    assert torch.allclose(summed, rest, atol=1e-6)


def test_a_name_stands_where_it_is_said():
    tokens = write_named(["a [V] circle, a thing and a [V] ring", "a thing"], 99)
    plain = write_tokens(["a red circle, a thing and a blue ring", "a thing"])
    assert (tokens == 99).nonzero().tolist() == [[0, 2], [0, 9]]
    assert torch.equal(tokens[1], plain[1])
    rest = tokens != 99
    assert torch.equal(tokens[rest], plain[rest])
    with pytest.raises(ValueError, match="no caption has the word 'dog'"):
        write_named(["a [V] dog"], 99)
