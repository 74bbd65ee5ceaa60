"""The recipes of notebook 13: who reads, how new words are counted, thresholds. Takes 60 s."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest
import safetensors.torch
import torch
from truths import generator

from tutorial_lib import pretrained, recipes
from tutorial_lib.captions import LENGTH, UNSAID, all_claims
from tutorial_lib.language_model import minilm
from tutorial_lib.recipes import text_encoders, text_only, thresholds
from tutorial_lib.recipes.text_encoders import (
    EncoderJudge,
    by_word,
    fresh_network,
    noise_beside,
    only,
    pieces_of_words,
    text_encoder,
)
from tutorial_lib.shape_world import COLOURS, GROUNDS, HELD_OUT, SHAPES, SIZES, draw_scenes, render
from tutorial_lib.wordings import OTHER_WORDS, WORDS, dictionary, other_words, reworded, tokens

TINY = recipes.RECIPES["shapes_encoder_trained"].tiny
READERS = ("trained", "clip", "text_only", "minilm", "minilm_noisy")


@pytest.fixture(scope="module")
def dictionary_reader(tmp_path_factory):
    """The record and the weights of a tiny run of the encoder that has only read."""
    out = tmp_path_factory.mktemp("text_only")
    return recipes.run("shapes_text_only", tiny=True, out=str(out)), out / "weights.safetensors"


# The encoder that has only read


def test_it_leaves_its_record(dictionary_reader):
    found, weights = dictionary_reader
    assert json.loads((weights.parent / "metrics.json").read_text()) == found
    assert set(found["guesses"]) == set(other_words("shape"))
    assert "other words for shapes" in recipes.RECIPES["shapes_text_only"].headline(found)
    losses = [json.loads(line)["loss"] for line in (weights.parent / "log.jsonl").open()]
    assert losses[-1] < losses[0]


def test_its_texts_name_no_pair_that_is_held_out_and_a_fifth_are_facts():
    said = text_only.texts(1000, seed=3)
    assert len(said) == 1000 and set(said[800:]) == set(dictionary())
    means = other_words("colour") | other_words("shape")
    for text in said[:800]:
        words = [means.get(word, word) for word in text.split()]
        assert not {*pairwise(words)} & set(HELD_OUT), text
    new = {word for word in other_words("shape") if any(word in t.split() for t in said[:800])}
    assert new == set(other_words("shape"))


def test_only_words_are_hidden_and_only_hidden_words_count():
    config = replace(recipes.RECIPES["shapes_text_only"].tiny, masked=0.5)
    batch = tokens(["a red circle", "the ring is small and red"] * 300)

    class Net(torch.nn.Module):
        """Say of each place the word that it is shown, and keep what it is shown."""

        words = torch.nn.Embedding(len(WORDS), len(WORDS))
        words.weight.data = torch.eye(len(WORDS))

        def forward(self, shown):
            self.shown = shown
            return 50.0 * torch.eye(len(WORDS))[shown]

    net = Net()
    cost = text_only.objective(config)(net, batch, generator(0))
    hidden = net.shown != batch
    assert (net.shown[hidden] == text_only.MASK).all()
    assert not hidden[:, 0].any() and not hidden[batch <= 2].any()  # filling, ends
    share = hidden.double().sum(1) / (batch > 2).sum(1)
    assert abs(float(share.mean()) - 0.5) < 0.05
    assert torch.allclose(cost.double(), 50 * share / 0.5)  # wrong where hidden, right elsewhere


def test_the_probe_understands_what_is_there_and_guesses_where_nothing_is():
    meaning = {s: k for k, s in enumerate(SHAPES)}
    meaning |= {word: meaning[shape] for word, shape in other_words("shape").items()}

    def knows(said):
        dice = torch.randn(len(said), 30, generator=generator(len(said)))
        kinds = torch.tensor([meaning[text.split()[-1]] for text in said])
        return torch.cat([torch.eye(6)[kinds], 0.1 * dice], 1)

    share, guesses = text_only.shape_guesses(knows)
    assert share == 1 and guesses["disc"] == "circle"
    blind = [
        text_only.shape_guesses(
            lambda said, k=k: torch.randn(len(said), 40, generator=generator(99 * k + len(said)))
        )[0]
        for k in range(20)
    ]
    assert 0.05 < sum(blind) / 20 < 0.3


# Five readers


@pytest.mark.parametrize("reader", READERS)
def test_a_painter_with_each_reader_trains_and_leaves_its_record(
    tmp_path, monkeypatch, dictionary_reader, reader
):
    monkeypatch.setattr(text_encoders, "TEXT_ONLY", dictionary_reader[1])
    name = f"shapes_encoder_{reader}"
    found = recipes.run(name, tiny=True, out=str(tmp_path))
    assert json.loads((tmp_path / "metrics.json").read_text()) == found
    assert set(found["wordings"][0]) == {"w", "words", *OTHER_WORDS, "form"}
    assert "other words for shapes" in recipes.RECIPES[name].headline(found)
    kept = safetensors.torch.load_file(tmp_path / "weights.safetensors")
    assert sum(x.numel() for x in kept.values()) == found["parameters"]["learn"]
    assert any(key.startswith("encoder.") for key in kept) == (reader == "trained")
    assert ("net.project.weight" in kept) == (reader != "trained")


def test_adapters_of_the_base_are_what_the_package_loads(tmp_path):
    recipes.run("shapes_minilm_noisy", tiny=True, out=str(tmp_path))
    kept = safetensors.torch.load_file(tmp_path / "weights.safetensors")
    assert kept.keys() == pretrained.weights("shapes_minilm_noisy").keys()
    shapes = {key: x.shape for key, x in pretrained.weights("shapes_minilm_noisy").items()}
    assert {key: x.shape for key, x in kept.items()} == shapes


def test_frozen_readers_do_not_learn_and_a_strange_one_is_refused():
    net = fresh_network(replace(TINY, encoder="CLIP"))
    assert not any(x.requires_grad for x in net.encoder.parameters())
    assert all(x.requires_grad for x in net.net.parameters())
    with pytest.raises(ValueError, match=r"no encoder 'T5'.*MiniLM"):
        text_encoder(replace(TINY, encoder="T5"), generator(0))


def test_clip_reads_its_own_words_as_before():
    encoder, width = text_encoder(replace(TINY, encoder="CLIP"), generator(0))
    said = tokens(["a red circle", "a small ring"])
    with torch.no_grad():
        assert torch.equal(encoder(said), pretrained.clip().words(said)) and width == 64
        assert encoder(tokens(["a red disc"])).isfinite().all()


def test_fewer_layers_of_the_language_model_are_its_first_ones():
    short, _ = text_encoder(replace(TINY, encoder="MiniLM", layers=2), generator(0))
    whole, split = minilm()
    said, seen = split(["a red circle"]), []
    whole.blocks[1].register_forward_hook(lambda net, given, made: seen.append(made))
    whole(said)
    assert torch.equal(short(said), seen[0])


def test_noise_is_of_the_size_that_is_asked_for():
    x0 = torch.zeros(200, 3, 32, 32)
    assert noise_beside(TINY)(x0, generator(0)) == {}
    noise = noise_beside(replace(TINY, noise=0.5))(x0, generator(0))["hint"]
    assert noise.shape == (200, LENGTH, 384) and abs(float(noise.std()) - 0.5) < 0.01


# How new words are counted


@pytest.fixture(scope="module")
def judge():
    return EncoderJudge(replace(TINY, encoder="MiniLM", captions=60))


def test_captions_are_spelt_as_the_language_model_spells_them(judge):
    said = ["a large rhombus", "an annulus above a crucifix", "", *dictionary()]
    right = minilm()[1](said)
    spelt = judge.spelled(tokens(said))
    assert torch.equal(spelt[:, : right.shape[1]], right) and not spelt[:, right.shape[1] :].any()
    assert judge.null.text[0, :3].tolist() == right[2, :3].tolist()
    assert pieces_of_words(minilm()[1]).shape[0] == len(WORDS)


class Painter(EncoderJudge):
    """Paint single objects as their captions mean them, or otherwise; pairs at random."""

    def __init__(self, spoil=lambda scenes: scenes):
        super().__init__(replace(TINY, captions=600))
        self.spoil = spoil

    def _reworded(self, kind, n):
        claims, said = super()._reworded(kind, n)
        scenes = draw_scenes(n, generator=generator(9), objects=(int(claims.count[0]),))
        kinds = {k: getattr(claims, k).clamp(min=0) for k in ("shape", "colour", "size")}
        low, high = torch.tensor(tuple(SIZES.values())).T
        radius = torch.where(scenes.present, (low + high)[kinds["size"]] / 2, scenes.radius)
        paint = torch.tensor(tuple(COLOURS.values()))[kinds["colour"]]
        centre = 0.5 * scenes.centre  # a large one must not leave the picture
        self.scenes = replace(scenes, **kinds, radius=radius, paint=paint, centre=centre)
        return claims, said

    def draw(self, model, tokens, w, steps):
        return render(self.spoil(self.scenes))


def test_what_is_painted_as_meant_is_right_and_other_shapes_are_not():
    found = Painter().wordings(None, 2.0)
    assert min(found[kind] for kind in ("shape", "colour", "size", "form")) > 0.97
    assert min(found["words"].values()) > 0.9
    wrong = Painter(lambda scenes: replace(scenes, shape=(scenes.shape + 1) % 6))
    spoilt = wrong.wordings(None, 2.0)
    assert max(spoilt[kind] for kind in ("shape", "colour", "size", "form")) < 0.03
    shapes, colours = ([spoilt["words"][w] for w in other_words(k)] for k in ("shape", "colour"))
    assert max(shapes) < 0.1 and min(colours) > 0.9  # each is judged by what it tells alone


def test_claims_of_one_kind_alone():
    claims = all_claims(draw_scenes(5, generator=generator(0), objects=(1,)))
    shapes = only(claims, "shape")
    assert torch.equal(shapes.shape, claims.shape) and torch.equal(shapes.count, claims.count)
    assert (shapes.colour == UNSAID).all() and (shapes.size == UNSAID).all()


def test_shares_are_counted_by_word():
    said = ["a disc", "a red disc", "a ball", "a dot"]
    found = by_word(said, [True, False, True, False], {"disc": "", "ball": "", "dot": ""})
    assert found == {"disc": 0.5, "ball": 1.0, "dot": 0.0}


def test_every_caption_has_a_new_word(judge):
    for kind in OTHER_WORDS:
        claims, said = judge._reworded(kind, 40)
        words = other_words(kind)
        assert len(said) == len(claims.count) == 40
        assert all(any(f" {w} " in f" {text} " for w in words) for text in said), kind
        assert said == reworded(said, kind, generator=generator(0))  # none is left


# Thresholds


def test_thresholds_leave_their_record(tmp_path):
    found = recipes.run("shapes_thresholds", tiny=True, out=str(tmp_path))
    assert json.loads((tmp_path / "metrics.json").read_text()) == found
    assert "on the bounds" in recipes.RECIPES["shapes_thresholds"].headline(found)
    rows = {(row["w"], row["threshold"]): row for row in found["table"]}
    assert len(rows) == 10 and all(len(row["outside"]) == 3 for row in rows.values())
    at = {kind: rows[8.0, kind]["on_bounds"] for kind in thresholds.THRESHOLDS}
    assert at["dynamic 0.995"] < at["static"] <= at["none"]


def test_looks_are_those_of_pictures_whose_looks_are_known():
    config = recipes.RECIPES["shapes_thresholds"].tiny
    trial = thresholds.Trial(replace(config, captions=300))
    assert trial.looks(trial.truth)["fd_clip"] == pytest.approx(0, abs=1e-4)
    true = trial.looks(trial.others)
    assert true["on_bounds"] == 0 and true["fd_clip"] > 0.001
    half = torch.zeros(300, 3, 32, 32)
    half[..., :16] = 1.0
    found = trial.looks(half)
    assert found["on_bounds"] == 0.5 and found["contrast"] == pytest.approx(0.5, abs=1e-3)
    ground = 2 * torch.tensor(GROUNDS[1]) - 1
    plain = ground[None, :, None, None].repeat(300, 1, 32, 32)
    assert trial.looks(plain)["ground_error"] == pytest.approx(0, abs=1e-4)
    assert trial.looks(plain + 0.1)["ground_error"] == pytest.approx(0.1, abs=1e-3)


def test_a_watched_denoiser_counts_what_leaves_the_box():
    model = pretrained.text_to_image()
    watched = thresholds.Watched(model)
    xt = torch.randn(2, 3, 32, 32, generator=generator(0))
    said = watched(xt, 0.5, pretrained.empty_caption())
    assert torch.equal(said.x0, model(xt, 0.5, pretrained.empty_caption()).x0)
    assert watched.outside == [(said.x0.abs() > 1).double().mean()]
