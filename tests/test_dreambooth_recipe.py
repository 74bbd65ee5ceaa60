"""The recipe of notebook 15: what is taught, what is asked, what is recorded. Takes 15 seconds."""

import json
from dataclasses import replace

import pytest
import torch

from tutorial_lib import recipes
from tutorial_lib.captions import VOCABULARY, read_tokens
from tutorial_lib.recipes import dreambooth
from tutorial_lib.recipes.dreambooth import BESIDE, Lesson
from tutorial_lib.shape_world import HELD_OUT
from tutorial_lib.subjects import SHOWN, SUBJECTS, draw_subject, shows

TINY = recipes.RECIPES["shapes_dreambooth"].tiny


def test_every_subject_word_weight_and_seed_is_a_run(tmp_path):
    found = recipes.run("shapes_dreambooth_words", tiny=True, out=str(tmp_path))
    assert found == json.loads((tmp_path / "metrics.json").read_text())
    assert [row["word"] for row in found["table"]] == ["spare", "red", "large", "above", "thing"]
    assert all(row["weight"] == 1 and row["subject"] == "kite" for row in found["table"])
    assert [look["step"] for look in found["table"][0]["curve"]] == [0, 2]
    assert (tmp_path / "samples.jpg").exists()
    assert "subject drawn for its name and for its class, weight 1:" in dreambooth.headline(found)


def test_no_pair_beside_a_subject_is_held_out():
    assert not {(colour, shape) for _, colour, shape in BESIDE} & set(HELD_OUT)


@pytest.fixture(scope="module")
def lesson():
    return Lesson(replace(TINY, tested=24), SUBJECTS["ball"], "", 0)


def test_it_is_shown_the_subject_by_a_word_that_is_new(lesson):
    pictures, tokens = lesson.shown
    assert (shows(pictures, lesson.subject) > SHOWN).all() and len(pictures) == 4
    ground = pictures.flatten(2).median(2).values[..., None, None]
    covered = ((pictures - ground).abs().amax(1) > 0.1).flatten(1).double().mean(1)
    assert covered.min() > 0.06  # of the picture: a small one covers a third of that
    assert (tokens == len(VOCABULARY)).sum(1).tolist() == [1] * 4
    assert read_tokens(lesson.of_class) == ["a circle"]
    known = Lesson(TINY, SUBJECTS["ball"], "red", 0)
    assert read_tokens(known.own) == ["a red circle"]
    assert torch.equal(known.shown[0], pictures)


def test_what_is_asked_is_counted(lesson, monkeypatch):
    pictures = draw_subject(24, lesson.subject, generator=torch.Generator().manual_seed(3))[0]

    def draw(tokens, k):
        return pictures[: len(tokens)]

    monkeypatch.setattr(lesson, "draw", draw)
    found = lesson.look(7)
    assert found["step"] == 7 and found["named"] == found["class"] == 1
    assert found["other"] == found["beside"] == 0 and 0 <= found["right"] < 0.2
    assert found["spread"] == pytest.approx(
        float(torch.pdist(pictures.flatten(1)).mean()), abs=1e-3
    )
    monkeypatch.setattr(lesson, "draw", lambda tokens, k: 0 * pictures[: len(tokens)])
    nothing = lesson.look(8)
    assert nothing["named"] == nothing["class"] == nothing["spread"] == 0


def test_without_weight_the_class_teaches_nothing(monkeypatch):
    weights = []
    real = dreambooth.preserved
    monkeypatch.setattr(
        dreambooth,
        "preserved",
        lambda e, n, weight: weights.append(weight) or real(e, n, weight=weight),
    )
    ends = {}
    for weight in (0.0, 1.0):
        taught = Lesson(TINY, SUBJECTS["kite"], "", 0)
        monkeypatch.setattr(taught, "look", lambda step: {"step": step})
        assert [look["step"] for look in taught.teach(weight)] == [0, 2]
        ends[weight] = taught.net.encoder.words.weight.detach()
    assert weights == [0, 0, 1, 1] and not torch.equal(ends[0.0], ends[1.0])
    begun = Lesson(TINY, SUBJECTS["kite"], "", 0).net.encoder.words.weight
    assert not torch.equal(ends[0.0][-1], begun[-1])
    assert not any(p.requires_grad for p in taught.net.parameters())  # averages do not learn
