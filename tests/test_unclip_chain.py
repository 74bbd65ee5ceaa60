"""DALL-E 2's chain as a recipe: what it asks whom, and what it counts as right. 30 seconds."""

import copy
import json
import math
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from truths import generator, normal, standard_errors

from tutorial_lib import pretrained, recipes
from tutorial_lib.captions import UNSAID, all_claims, holds, read_tokens
from tutorial_lib.checkpoints import CheckpointError
from tutorial_lib.cifar10 import to_floats
from tutorial_lib.clip import CLIP
from tutorial_lib.denoiser import Condition, Prediction
from tutorial_lib.pretrained import CLIP_CONFIG, SCHEDULE, empty_caption
from tutorial_lib.recipes import unclip_chain, unclip_decoder
from tutorial_lib.recipes.record import save_weights
from tutorial_lib.recipes.shapes import read_all
from tutorial_lib.recipes.text_guidance import NAMES
from tutorial_lib.recipes.unclip import UNCLIP
from tutorial_lib.recipes.unclip_chain import (
    SOURCES,
    Chain,
    Unpictured,
    _only,
    chain_headline,
)
from tutorial_lib.shape_world import COLOURS, HELD_OUT, SHAPES, Scenes, draw_scenes, render
from tutorial_lib.unclip import said

RECIPE = UNCLIP["shapes_unclip"]
TINY = RECIPE.tiny
D = CLIP_CONFIG.width
EMPTY = empty_caption().text


@pytest.fixture(scope="module")
def chain():
    return Chain(TINY)


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def changed(chain, **parts):
    """The same chain, with other settings or with stand-ins for some of its parts."""
    other = copy.copy(chain)
    names = {field.name for field in fields(TINY)}
    how = {name: parts.pop(name) for name in [*parts] if name in names}
    other.config = replace(chain.config, **how)
    vars(other).update(parts)
    return other


# the run


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("shapes_unclip")
    return out, recipes.run("shapes_unclip", tiny=True, out=str(out))


def test_the_chain_runs_and_leaves_its_record(chain, tiny_run):
    out, found = tiny_run
    assert json.loads((out / "metrics.json").read_text()) == found
    ways = [("none", "caption")]
    ways += [(source, told) for source in SOURCES for told in ("embedding", "both")]
    assert [(row["source"], row["told"], row["w"]) for row in found["table"]] == [
        (*way, 1.0) for way in ways
    ]
    assert [row["told"] for row in found["diversity"]] == ["caption", "embedding", "both"]
    assert [(row["source"], row["told"]) for row in found["binding"]] == [
        ("none", "caption"),
        *((source, told) for source in ("picture", "prior") for told in ("embedding", "both")),
    ]
    kinds = (5 * math.log(5) + 2 * math.log(6)) / 7  # of seven colours five have a pair held out
    assert found["truth"]["entropy"] == pytest.approx(kinds + math.log(2), abs=1e-4)
    assert next(chain.right()) == found["table"][0]  # all noise is the seed's
    assert next(chain.diverse()) == found["diversity"][0]


def test_a_tiny_sheet_has_a_row_of_the_scenes_and_nine_of_pictures(chain, tiny_run):
    sheet = Image.open(tiny_run[0] / "samples.jpg")
    assert sheet.size == (4 * 32, 10 * 32)
    real = render(chain._captions(2)[0])
    assert (tiles(sheet)[0] - real).abs().mean() < 0.03  # JPEG


def test_the_record_keeps_what_was_asked_for(tiny_run):
    """But for paths, which are of one machine, and lie in fields of some names."""
    kept = tiny_run[1]["config"]
    for name in ("guided", "scales", "captions", "alike", "candidates", "sampler_steps"):
        value = getattr(TINY, name)
        assert kept[name] == (list(value) if isinstance(value, tuple) else value)


def tiles(sheet):
    """A sheet's pictures (rows, columns, 3, 32, 32)."""
    x = torch.tensor(np.asarray(sheet)) / 127.5 - 1
    return x.unflatten(0, (-1, 32)).unflatten(2, (-1, 32)).permute(0, 2, 4, 1, 3)


def test_the_headline_has_the_best_of_the_three_it_names_and_of_no_other():
    shares = {
        ("none", "caption"): (0.95, 0.96),
        ("picture", "embedding"): (0.94, 0.93),
        ("prior", "embedding"): (0.41, 0.552),
        ("prior", "both"): (0.887, 0.7),
        ("text", "embedding"): (0.2554, 0.23),
        ("text", "both"): (0.98, 0.99),
        ("best of 4", "embedding"): (0.97, 0.92),
        ("best of 4", "both"): (0.91, 0.9),
    }
    table = [
        {"source": source, "told": told, "w": w, "right": right, "right_but_for_relations": 1.0}
        for (source, told), found in shares.items()
        for w, right in zip((0.0, 2.0), found, strict=True)
    ]
    assert chain_headline({"table": table}) == (
        "55 % of captions right from the prior's embedding, 89 % with the caption beside it; "
        "26 % from the caption's embedding"
    )


# embeddings


class Gaussian:
    """The exact prior of a case that is known: embeddings of a caption are N(mean, SPREAD^2)."""

    SPREAD = 0.6

    def __init__(self):
        self.schedule = SCHEDULE

    @staticmethod
    def mean(hint):
        return 0.5 * hint.roll(1, 1) + 0.3

    def __call__(self, xt, t, cond):
        level, mean, var = SCHEDULE.at(t, like=xt), self.mean(cond.hint), self.SPREAD**2
        gain = var * level.alpha / (var * level.alpha**2 + level.sigma**2)
        return Prediction.from_x0(xt, level, mean + gain * (xt - level.alpha * mean))


def test_embeddings_are_of_the_law_that_the_prior_knows(chain, monkeypatch):
    known, drawn, draw = (
        changed(chain, captions=200, sampler_steps=25, prior=Gaussian()),
        [],
        unclip_chain.draw_embeddings,
    )
    monkeypatch.setattr(
        unclip_chain,
        "draw_embeddings",
        lambda *args, **how: drawn.append(draw(*args, **how)) or drawn[-1],
    )
    _, _, tokens = known._captions(2)
    found = known.embeddings(tokens)
    assert list(found) == [name for name in ("text", *SOURCES[2:])]
    text = said(known.clean, tokens).hint
    mean = Gaussian.mean(text)
    assert torch.equal(found["text"], text) and (text.norm(dim=1) - 8).abs().max() < 1e-4
    assert (found["mean"] - mean).abs().max() < 0.02  # there is a little signal left
    rest = ((found["prior"] - mean) / Gaussian.SPREAD).double()
    assert standard_errors(rest.flatten(), 0.0) < 5
    assert standard_errors(rest.flatten().square(), 1.0) < 5
    (many,) = drawn
    assert many.shape == (200, 4, D) and torch.equal(found["prior"], many[:, 0])
    chosen = {}
    for k in (2, 4):
        products = [[float(z @ y) for z in row[:k]] for row, y in zip(many, text, strict=True)]
        chosen[k] = torch.tensor([row.index(max(row)) for row in products])
        assert torch.equal(found[f"best of {k}"], many[torch.arange(200), chosen[k]])
    assert (chosen[2] != chosen[4]).double().mean() > 0.3 and chosen[4].unique().numel() == 4


def test_the_shipped_prior_s_mean_is_the_average_of_its_samples(chain):
    several = changed(chain, captions=24, candidates=48, sampler_steps=8)
    _, _, tokens = several._captions(2)
    cond = said(several.clean, tokens)
    null = said(several.clean, EMPTY)
    many = unclip_chain.draw_embeddings(several.prior, cond, several.config, w=0.0, null=null)
    average = many.mean(1)
    found = changed(several, candidates=4).embeddings(tokens)

    def alike(z):
        return F.cosine_similarity(z, average)

    mean = found["mean"]
    assert alike(mean).mean() > 0.99 and alike(mean).min() > 0.97
    assert alike(found["prior"]).mean() < 0.98 and alike(found["text"]).mean() < 0.85
    assert alike(mean.roll(1, 0)).mean() < 0.7
    unit = D**0.5
    assert mean.norm(dim=1).max() < 1.01 * unit and mean.norm(dim=1).mean() < 0.98 * unit
    assert (mean.norm(dim=1) / average.norm(dim=1)).mean() == pytest.approx(1, abs=0.03)
    assert found["prior"].norm(dim=1).mean() == pytest.approx(unit, rel=0.02)


def test_each_picture_of_a_caption_has_an_embedding_of_its_own_and_one_mean(chain):
    found, again, other = (
        changed(chain, sampler_steps=6, seed=seed).embeddings(chain.open) for seed in (0, 0, 1)
    )
    pair = {name: z.unflatten(0, (len(NAMES), 2)) for name, z in found.items()}
    apart = {name: (z[:, 0] - z[:, 1]).norm(dim=1) for name, z in pair.items()}
    assert apart["prior"].mean() > 2 and apart["mean"].max() < 1 and apart["text"].max() == 0
    for name, z in found.items():  # all noise is the seed's
        assert torch.equal(again[name], z) and torch.equal(other[name], z) == (name == "text")


def test_pictures_are_embedded_by_clip(chain):
    scenes = draw_scenes(5, generator=generator(3))
    by_hand = 8 * chain.clean.image(render(scenes))
    assert (chain._embedded(scenes) - by_hand).abs().max() < 1e-5


# who is asked for pictures, and what


class Flat:
    """A denoiser whose picture is of one colour: red of the embedding, green of the caption."""

    def __init__(self):
        self.schedule, self.asked = SCHEDULE, []

    @staticmethod
    def colour(text, z):
        words = (text > 0).sum(1) / 100
        red = 0 * words if z is None else z[:, 0] / 10
        return torch.stack([red, words, 0 * words + 0.1], 1)

    def __call__(self, xt, t, cond):
        self.asked.append(cond)
        x0 = self.colour(cond.text, cond.image_embedding)[:, :, None, None].expand_as(xt)
        return Prediction.from_x0(xt, SCHEDULE.at(t, like=xt), x0)


def pictured(chain, z, tokens, w):
    """The pictures' mean colours, and what the base and the decoder were asked, step by step."""
    flat = changed(chain, base=Flat(), decoder=Flat())
    x = flat.pictures(z, tokens, w)
    assert x.shape == (len(tokens), 3, 32, 32)
    assert x.std((2, 3)).max() < 0.01
    return x.mean((2, 3)), flat.base.asked, flat.decoder.asked


@pytest.mark.parametrize("w", [0.0, 1.5])
def test_of_an_embedding_the_decoder_is_asked_with_exactly_that_one(chain, w):
    _, _, tokens = changed(chain, captions=5)._captions(2)
    z = torch.cat([torch.linspace(-1, 1, 5)[:, None], normal(5, D - 1).float()], 1)
    colours, base, decoder = pictured(chain, z, tokens, w)
    assert not base and len(decoder) == TINY.sampler_steps
    for cond in decoder:
        assert set(cond.given()) == {"text", "image_embedding"}
        assert torch.equal(cond.image_embedding[:5], z) and torch.equal(cond.text[:5], tokens)
        assert len(cond.text) == len(cond.image_embedding) == (10 if w else 5)
        assert not cond.image_embedding[5:].any()
        assert torch.equal(cond.text[5:], EMPTY.expand(len(cond.text) - 5, -1))
    told, nothing = Flat.colour(tokens, z), Flat.colour(EMPTY, torch.zeros(1, D))
    assert (colours - ((1 + w) * told - w * nothing)).abs().max() < 0.003


@pytest.mark.parametrize("w", [0.0, 1.5])
def test_without_an_embedding_the_base_is_asked_and_knows_of_none(chain, w):
    _, _, tokens = changed(chain, captions=5)._captions(3)
    colours, base, decoder = pictured(chain, None, tokens, w)
    assert not decoder and len(base) == TINY.sampler_steps
    for cond in base:
        assert set(cond.given()) == {"text"}
        assert torch.equal(cond.text[:5], tokens) and len(cond.text) == (10 if w else 5)
        assert torch.equal(cond.text[5:], EMPTY.expand(len(cond.text) - 5, -1))
    by_hand = (1 + w) * Flat.colour(tokens, None) - w * Flat.colour(EMPTY, None)
    assert (colours - by_hand).abs().max() < 0.003


def test_unpictured_is_the_model_of_the_caption_alone():
    model, tokens, xt = Flat(), EMPTY.repeat(2, 1), normal(2, 3, 32, 32).float()
    one = Unpictured(model)
    told = one(xt, 0.5, Condition(text=tokens, image_embedding=torch.ones(2, D)))
    bare = model(xt, 0.5, Condition(text=tokens))
    assert torch.equal(told.x0, bare.x0) and torch.equal(told.eps, bare.eps)
    assert one.schedule is model.schedule


@pytest.mark.parametrize("w", [0.0, 2.0])
def test_without_an_embedding_it_is_the_base_s_own_guided_drawing(chain, w):
    own = changed(chain, captions=3, sample_steps=TINY.sampler_steps)
    _, _, tokens = own._captions(1)
    drawn = own.pictures(None, tokens, w)
    assert (drawn - own.draw(own.guided("classifier-free", w), tokens)).abs().max() < 1e-4
    assert (drawn - own.draw(own.guided("classifier-free", w + 1), tokens)).abs().max() > 0.1


def test_more_than_one_batch_keeps_its_rows_together(chain):
    n = 1100
    z = F.pad(torch.linspace(-1, 1, n)[:, None], (0, D - 1))
    colours, _, _ = pictured(changed(chain, sampler_steps=1), z, EMPTY.expand(n, -1), 0.0)
    assert (colours[:, 0] - z[:, 0] / 10).abs().max() < 0.003


# what is right: a painter paints the very scenes, or spoils them in a way that is known


def joined(*parts):
    return Scenes(*(torch.cat([getattr(s, f.name) for s in parts]) for f in fields(Scenes)))


def blank(scenes, rows):
    return replace(scenes, present=scenes.present & ~rows[:, None])


def turned(scenes):
    return replace(scenes, centre=-scenes.centre)


def exchanged(scenes, rows=True):
    """The first two objects' colours change places, in some rows."""
    rows = torch.as_tensor(rows).expand(len(scenes))[:, None]
    colour = torch.where(rows, scenes.colour[:, [1, 0, 2]], scenes.colour)
    return replace(scenes, colour=colour)


class Painter:
    """Paint the scene of a caption if one is told, and else that of an embedding, spoilt.

    Its embeddings are numbers: of the source, and of the scene in a gallery. `spoil` maps scenes,
    by sources; the gallery has scenes and the captions that are said of them.
    """

    def __init__(self, gallery, spoil=None, see=lambda scenes: scenes):
        self.scenes = scenes = joined(*(scenes for scenes, _, _ in gallery))
        self.captions = [tokens for _, _, tokens in gallery]
        self.numbers = torch.cat([torch.arange(len(tokens)) for tokens in self.captions])
        rows = torch.cat(self.captions).tolist()
        self.by_caption = {tuple(row): k for k, row in enumerate(rows)}
        self.by_place = {self._place(scenes, k): k for k in range(len(scenes))}
        self.spoil, self.see, self.asked = spoil or {}, see, []

    @staticmethod
    def _place(scenes, k):
        return int(scenes.present[k].sum()), *scenes.centre[k].flatten().tolist()

    @staticmethod
    def _code(source, which):
        return torch.stack([torch.full_like(which, SOURCES.index(source)), which], 1).float()

    def embedded(self, scenes):
        which = [self.by_place[self._place(scenes, k)] for k in range(len(scenes))]
        return self._code("picture", torch.tensor(which))

    def embeddings(self, tokens):
        before = 0
        for own in self.captions:
            if torch.equal(own, tokens):
                which = before + torch.arange(len(own))
                return {source: self._code(source, which) for source in SOURCES[1:]}
            before += len(own)
        raise AssertionError("these are no captions of the gallery")

    def pictures(self, z, tokens, w):
        silent = torch.equal(tokens, EMPTY.expand_as(tokens))
        assert silent or not (tokens == EMPTY).all(1).any()
        source = "none" if z is None else SOURCES[int(z[0, 0])]
        self.asked.append((source, silent, w))
        if not silent:
            which = [self.by_caption[tuple(row)] for row in tokens.tolist()]
            return self.see(self.scenes[torch.tensor(which)])
        which = z[:, 1].long()
        spoil = self.spoil.get(source, lambda scenes, numbers: scenes)
        return self.see(spoil(self.scenes[which], self.numbers[which]))

    def at_work(self, chain, **how):
        parts = {"embeddings": self.embeddings, "_embedded": self.embedded}
        return changed(chain, pictures=self.pictures, **parts, **how)


@pytest.fixture
def scenes_are_read(monkeypatch):
    """What is painted need not be read from pixels: scenes are readings without an error."""
    monkeypatch.setattr(unclip_chain, "read_all", lambda oracle, scenes: scenes)


def gallery(chain, captions):
    return [changed(chain, captions=captions)._captions(objects) for objects in (1, 2, 3)]


def test_each_source_is_applied_to_its_own_captions_as_it_is_told(chain, scenes_are_read):
    """A source's pictures are spoilt in its own way, of which all shares are known."""
    n = 40
    asked = gallery(chain, n)
    painter = Painter(
        asked,
        {
            "text": lambda scenes, numbers: blank(scenes, numbers >= 0),
            "mean": lambda scenes, _: turned(scenes),
            "prior": lambda scenes, numbers: blank(scenes, numbers % 4 == 0),
            "best of 2": lambda scenes, numbers: blank(scenes, numbers % 2 == 0),
            "best of 4": lambda scenes, numbers: blank(scenes, numbers % 4 != 0),
        },
    )
    table = list(painter.at_work(chain, captions=n, guided=(0.5, 3.0)).right())
    shares = [float(holds(c, turned(scenes)).double().mean()) for scenes, c, _ in asked]
    right = {"picture": 1, "text": 0, "prior": 0.75, "best of 2": 0.5, "best of 4": 0.25}
    right["mean"] = sum(shares) / 3
    assert shares[0] == 1 and 0.1 < right["mean"] < 0.8  # it can be told from the others
    assert len(table) == 2 + 4 * len(SOURCES)
    for row, w in zip(table, (0.5, 3.0) * (1 + 2 * len(SOURCES)), strict=True):
        wanted = right[row["source"]] if row["told"] == "embedding" else 1
        bare = 1 if row["source"] == "mean" else wanted
        assert row["right"] == pytest.approx(wanted, abs=1e-4) and row["w"] == w
        assert row["right_but_for_relations"] == pytest.approx(bare, abs=1e-4)
        if row["source"] == "mean" and row["told"] == "embedding":
            assert [row[f"right_{k}"] for k in (1, 2, 3)] == pytest.approx(shares, abs=1e-4)
    told = [(row["source"], row["told"] == "embedding", row["w"]) for row in table]
    assert painter.asked == [way for way in told for _ in range(3)]


def test_embeddings_of_other_captions_are_found_out(chain, scenes_are_read):
    asked = gallery(chain, 60)
    painter = Painter(asked)
    at_work = painter.at_work(chain)
    z = [at_work.embeddings(tokens)["prior"] for _, _, tokens in asked]
    own = at_work._row("prior", "embedding", 1.0, asked, z)
    other = at_work._row("prior", "embedding", 1.0, asked, [x.roll(1, 0) for x in z])
    assert own["right"] == 1 and other["right"] < 0.1
    both = at_work._row("prior", "both", 1.0, asked, [x.roll(1, 0) for x in z])
    assert both["right"] == 1  # this painter believes the caption
    fewer = at_work._row("prior", "embedding", 1.0, asked, [z[1], z[1], z[1]])
    assert [fewer[f"right_{k}"] > 0.9 for k in (1, 2, 3)] == [False, True, False]


def test_right_is_the_mean_of_one_two_and_three_objects(chain, scenes_are_read):
    asked = gallery(chain, 40)
    painter = Painter(
        asked,
        {
            "prior": lambda scenes, numbers: blank(
                scenes, numbers % 4 < torch.tensor([0, 3, 1, 4])[scenes.present.sum(1)]
            )
        },
    )
    at_work = painter.at_work(chain)
    z = [at_work.embeddings(tokens)["prior"] for _, _, tokens in asked]
    row = at_work._row("prior", "embedding", 1.0, asked, z)
    kinds = ("right", "right_but_for_relations")
    for kind in kinds:
        assert [row[f"{kind}_{k}"] for k in (1, 2, 3)] == [0.25, 0.75, 0]
        assert row[kind] == 0.3333


def test_what_the_oracle_reads_of_the_very_scenes_is_right(chain):
    asked = gallery(chain, 60)
    painter = Painter(asked, {"mean": lambda scenes, _: turned(scenes)}, see=render)
    at_work = painter.at_work(chain)
    row = at_work._row("none", "caption", 1.0, asked)
    assert min(row[f"right_{k}"] for k in (1, 2, 3)) > 0.95
    z = [at_work.embeddings(tokens)["mean"] for _, _, tokens in asked]
    row = at_work._row("mean", "embedding", 1.0, asked, z)
    unsaid = [float((c.relation == UNSAID).double().mean()) for _, c, _ in asked]
    assert row["right_but_for_relations"] > 0.95 and row["right_1"] > 0.95
    for k in (2, 3):
        assert unsaid[k - 1] - 0.05 < row[f"right_{k}"] < unsaid[k - 1] + 0.15 < 0.8


def test_the_shipped_chain_draws_what_captions_say_and_clip_s_text_does_worse(chain):
    """Of captions of one object, in few steps; other captions' embeddings do worst."""
    few = changed(chain, captions=24, sampler_steps=8)
    _, claims, tokens = few._captions(1)
    found = few.embeddings(tokens)
    silent = few._told(tokens, "embedding")

    def right(z):
        x = few.pictures(z, silent, 0.5)
        return few._shares("1", claims, read_all(few.oracle, x))["right_1"]

    prior, text, other = (
        right(z) for z in (found["prior"], found["text"], found["prior"].roll(1, 0))
    )
    assert prior > 0.75 and text < prior - 0.15 and other < 0.15


# how diverse it is


def test_diversity_is_that_of_what_is_painted_by_who_is_told_what(scenes_are_read):
    """A painter has the world's pictures of embeddings if w is not 4, else one a colour."""
    alike, scales = 200, (0.5, 4.0)
    chain = Chain(replace(TINY, alike=alike, scales=scales))
    pool = draw_scenes(3000, generator=generator(6), objects=(1,), held_out=HELD_OUT)
    of = (pool[pool.colour[:, 0] == list(COLOURS).index(name)] for name in NAMES)
    world = joined(*(scenes[:alike] for scenes in of))
    first = torch.arange(len(NAMES)).repeat_interleave(alike) * alike
    prior = torch.randperm(len(world), generator=generator(7)).float()[:, None]
    where, asked = prior[:, 0].argsort(), []

    def pictures(z, tokens, w):
        silent = torch.equal(tokens, EMPTY.expand_as(tokens))
        assert silent or torch.equal(tokens, chain.open)
        asked.append((z is not None, silent, w))
        if z is None or w == 4.0:
            return world[first]
        return world[where[z[:, 0].long()]]  # whose embedding this is

    painted = changed(chain, pictures=pictures, embeddings=lambda tokens: {"prior": prior})
    rows = list(painted.diverse())
    told = {"caption": (False, False), "embedding": (True, True), "both": (True, False)}
    assert [(row["told"], row["w"]) for row in rows] == [(k, w) for k in told for w in scales]
    assert asked == [(*how, w) for how in told.values() for w in scales]
    truth = chain.truth()
    for row in rows:
        assert row["open_right"] == 1
        if row["told"] == "caption" or row["w"] == 4.0:
            assert row["entropy"] == row["spread"] == 0
        else:
            assert row["entropy"] == pytest.approx(truth["entropy"], abs=0.06)
            assert row["spread"] == pytest.approx(truth["spread"], abs=0.05)
    mixed = changed(painted, embeddings=lambda tokens: {"prior": prior.roll(alike, 0)})
    assert list(mixed.diverse())[2]["open_right"] < 0.05


# what is bound to what


def test_two_objects_differ_in_colour_and_in_shape_and_all_is_said_of_them(chain):
    scenes, claims, tokens = changed(chain, captions=100)._distinct()
    assert 250 < len(scenes) == len(tokens) == len(claims.count) < 350  # of 400
    assert (scenes.present.sum(1) == 2).all()
    names, seen = tuple(COLOURS), set()
    for colour, shape, text in zip(
        scenes.colour[:, :2].tolist(),
        scenes.shape[:, :2].tolist(),
        read_tokens(tokens),
        strict=True,
    ):
        assert colour[0] != colour[1] and shape[0] != shape[1]
        pairs = {(names[c], SHAPES[s]) for c, s in zip(colour, shape, strict=True)}
        seen |= pairs
        assert all(f"{c} {s}" in text for c, s in pairs)
        assert sum(text.split().count(size) for size in ("small", "large")) == 2
    assert not seen & set(HELD_OUT) and len(seen) == 42
    everything = all_claims(scenes)
    assert all(torch.equal(x, getattr(everything, name)) for name, x in vars(claims).items())


def binds(chain, spoil, w=(1.0,)):
    """What a painter of these scenes binds, by source and what it was told, and how many."""
    asked = changed(chain, captions=50)._distinct()
    painter = Painter([asked], spoil)
    rows = list(painter.at_work(chain, captions=50, guided=w).bound())
    told = [(row["source"], row["told"] == "embedding", row["w"]) for row in rows]
    assert painter.asked == told
    found = {(row["source"], row["told"], row["w"]): (row["bound"], row["of"]) for row in rows}
    assert len(found) == 5 * len(w)
    return found, asked[0]


def test_a_painter_of_the_truth_binds_all_and_one_who_exchanges_colours_none(
    chain, scenes_are_read
):
    found, scenes = binds(chain, {"prior": lambda s, _: exchanged(s)}, (0.0, 2.0))
    for (source, told, _), value in found.items():
        wrong = (source, told) == ("prior", "embedding")
        assert value == (0.0 if wrong else 1.0, len(scenes))


def test_a_coin_binds_half(chain, scenes_are_read):
    coin = torch.rand(1000, generator=generator(1)) < 0.5
    found, scenes = binds(chain, {"picture": lambda s, numbers: exchanged(s, coin[numbers])})
    bound, of = found["picture", "embedding", 1.0]
    assert of == len(scenes) > 100
    assert bound == round(1 - float(coin[:of].double().mean()), 4)
    assert bound == pytest.approx(0.5, abs=0.2)


def of_a_third_colour(scenes, rows):
    """One object's colour is neither's, in some rows."""
    third = (scenes.colour[:, :2].sum(1) + 1) % 8
    both = scenes.colour[:, :2].T
    for _ in range(2):
        third = torch.where((third == both).any(0), (third + 1) % 8, third)
    colour = scenes.colour.clone()
    colour[:, 0] = torch.where(rows, third, colour[:, 0])
    assert not (colour[:, :1] == scenes.colour[:, :2])[rows].any()
    return replace(scenes, colour=colour)


def of_a_third_shape(scenes, rows):
    """Shapes are spoilt as colours are."""
    other = replace(scenes, colour=scenes.shape, shape=scenes.colour)
    other = of_a_third_colour(other, rows)
    return replace(scenes, shape=other.colour)


def with_one_more(scenes, rows):
    return replace(scenes, present=scenes.present | rows[:, None])


@pytest.mark.parametrize(
    "spoil",
    [of_a_third_colour, of_a_third_shape, with_one_more, blank],
    ids=["colours", "shapes", "one more", "nothing there"],
)
def test_only_pictures_with_all_colours_and_shapes_are_asked(chain, scenes_are_read, spoil):
    """Of the rest it is not known what is bound to what: they count neither way."""
    found, scenes = binds(
        chain,
        {
            "picture": lambda s, numbers: spoil(s, numbers % 3 == 0),
            "prior": lambda s, numbers: spoil(exchanged(s, numbers % 3 == 1), numbers % 3 == 0),
        },
    )
    numbers = torch.arange(len(scenes)) % 3
    left, kept = int((numbers != 0).sum()), int((numbers == 2).sum())
    assert found["picture", "embedding", 1.0] == (1.0, left)
    assert found["prior", "embedding", 1.0] == (round(kept / left, 4), left)
    assert found["none", "caption", 1.0] == (1.0, len(scenes))


def test_what_is_left_of_no_picture_is_nothing(chain, scenes_are_read):
    found, _ = binds(chain, {"prior": lambda s, numbers: blank(s, numbers >= 0)})
    assert found["prior", "embedding", 1.0] == (None, 0)


@pytest.mark.parametrize("kind", ["colour", "shape", "colour shape", "size relation"])
def test_claims_of_some_kinds_alone_are_silent_of_the_rest(kind):
    scenes = draw_scenes(50, generator=generator(2), objects=(2, 3))
    claims = all_claims(scenes)
    only = _only(claims, kind)
    assert torch.equal(only.count, claims.count)
    for name in ("size", "colour", "shape", "relation"):
        before, after = getattr(claims, name), getattr(only, name)
        wanted = before if name in kind.split() else torch.full_like(before, UNSAID)
        assert torch.equal(after, wanted) and (before != UNSAID).any()
    assert holds(only, scenes).all()


# the sheet


def test_the_sheet_has_the_scenes_then_each_way_in_a_row_of_its_own(chain, tmp_path):
    """Pictures are plain: their grey is of the source, and of whether the caption is told."""
    many, asked = changed(chain, captions=20), []
    scenes, _, tokens = many._captions(2)

    def code(k, n):
        return torch.full((n, 1), float(k))

    def embeddings(said):
        assert torch.equal(said, tokens[:16])
        return {source: code(k, 16) for k, source in enumerate(SOURCES) if k}

    def embedded(shown):
        assert torch.equal(shown.centre, scenes.centre[:16])
        return code(0, 16)

    def pictures(z, said, w):
        silent = torch.equal(said, EMPTY.expand_as(said))
        assert silent or torch.equal(said, tokens[:16])
        asked.append(w)
        grey = -0.9 if z is None else -0.6 + 0.3 * z[:, 0] + 0.15 * silent
        return torch.ones(16, 3, 32, 32) * torch.as_tensor(grey).view(-1, 1, 1, 1)

    parts = {"embeddings": embeddings, "_embedded": embedded, "pictures": pictures}
    changed(many, **parts).sheet(tmp_path / "sheet.jpg")
    rows = tiles(Image.open(tmp_path / "sheet.jpg"))
    assert rows.shape[:2] == (10, 16) and set(asked) == {2.0}
    assert (rows[0] - render(scenes[:16])).abs().mean() < 0.03  # JPEG
    greys = [-0.9, *(-0.6 + 0.3 * k + 0.15 * silent for k in range(4) for silent in (1, 0))]
    assert (rows[1:] - torch.tensor(greys).view(-1, 1, 1, 1, 1)).abs().max() < 0.02


# a decoder of another CLIP


@pytest.fixture(scope="module")
def other_clip(tmp_path_factory):
    """A CLIP of other weights, and where they lie."""
    path = tmp_path_factory.mktemp("clip") / "weights.safetensors"
    net = CLIP(CLIP_CONFIG, generator=generator(5)).eval().requires_grad_(False)
    net.load_state_dict({k: x.bfloat16().float() for k, x in net.state_dict().items()})
    save_weights(net, path)
    return net, path


class Untrained(Exception):
    """It came as far as the training."""


@pytest.mark.parametrize("given", [True, False], ids=["given", "the package's own"])
def test_a_decoder_is_told_and_tested_on_embeddings_of_the_clip_that_is_named(
    other_clip, given, monkeypatch, tmp_path
):
    clip, path = other_clip
    theirs = {True: clip, False: pretrained.clip()}
    config = replace(UNCLIP["shapes_decoder"].tiny, clip=str(path) if given else None, images=50)
    told, tested = [], []

    def trained(name, config, out, net, data, objective):
        told.append(data)
        return net, 0.0

    def draw_pictures(model, z, tokens, w, config):
        tested.append(z)
        return torch.zeros(len(z), 3, 32, 32)

    monkeypatch.setattr(unclip_decoder, "trained", trained)
    monkeypatch.setattr(unclip_decoder, "draw_pictures", draw_pictures)
    found = unclip_decoder.run_decoder("shapes_decoder_careful", config, tmp_path)
    assert found["config"]["clip"] == config.clip
    ((pixels, _, z),) = told
    scenes = draw_scenes(config.tested, generator=generator(1), held_out=HELD_OUT)
    for x, got in ((to_floats(pixels), z), (render(scenes), tested[0])):
        same, differ = ((got - 8 * theirs[k].image(x)).norm(dim=1) for k in (given, not given))
        assert len(got) == len(x) and same.max() < 1e-3 and differ.min() > 3


def test_a_clip_that_is_not_there_or_is_not_one_stops_the_run_before_it_begins(
    monkeypatch, tmp_path
):
    def asked(*_, **__):
        raise Untrained

    monkeypatch.setattr(unclip_decoder, "captioned_pictures", asked)
    tiny = UNCLIP["shapes_decoder"].tiny
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"no weights")
    out = tmp_path / "out"
    out.mkdir()
    runs = {
        str(tmp_path / "nothing.safetensors"): FileNotFoundError,
        str(damaged): CheckpointError,
        str(pretrained.FOLDER / "shapes_oracle.safetensors.xz"): RuntimeError,
        None: Untrained,
    }
    for clip, error in runs.items():
        with pytest.raises(error):
            unclip_decoder.run_decoder("shapes_decoder", replace(tiny, clip=clip), out)
    assert not [*out.iterdir()]


def test_the_careful_decoder_is_the_decoder_but_for_its_clip_which_is_the_careful_one_s():
    careful, plain = (UNCLIP[name].full for name in ("shapes_decoder_careful", "shapes_decoder"))
    assert replace(careful, clip=None) == plain
    recipe = recipes.RECIPES["shapes_clip_careful"]
    left = recipe.folder("shapes_clip_careful", recipe.full) / "weights.safetensors"
    assert Path(careful.clip) == left and recipe.full.network == CLIP_CONFIG
