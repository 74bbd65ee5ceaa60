"""DreamBooth: rare words, what words mean, and what two losses teach. Takes 5 seconds."""

import pytest
import torch
from truths import generator

from tutorial_lib import dreambooth, pretrained
from tutorial_lib.captions import VOCABULARY, write_tokens
from tutorial_lib.denoiser import Condition, NetworkDenoiser
from tutorial_lib.pretrained import SCHEDULE
from tutorial_lib.shape_world import draw_scenes, render


def test_rare_tokens_are_short_words_that_are_hardly_seen():
    words = ("a", "sks", "zwx", "cat", "of,", "4kz", "olis", "ohw")
    counts = torch.tensor([900, 3, 0, 800, 0, 0, 0, 7])
    assert dreambooth.rare_tokens(words, counts, most=5) == [2, 1]
    assert dreambooth.rare_tokens(words, counts, most=10) == [2, 1, 7]
    assert dreambooth.rare_tokens(words, counts, most=5, longest=4) == [2, 6, 1]
    assert dreambooth.rare_tokens(words, counts) == [2]
    with pytest.raises(ValueError, match=r"8 words have counts of shape \(3,\)"):
        dreambooth.rare_tokens(words, counts[:3])


@pytest.fixture(scope="module")
def base():
    return pretrained.text_to_image().net


def test_spare_words_change_nothing_that_was_known(base):
    longer = dreambooth.with_spare_words(base, 3, generator=generator(0))
    assert longer.encoder.words.weight.shape[0] == len(VOCABULARY) + 3
    assert base.encoder.words.weight.shape[0] == len(VOCABULARY)
    tokens = write_tokens(["a red circle", "a thing above a large blue ring"])
    x, clock = torch.randn(2, 3, 32, 32, generator=generator(1)), torch.tensor([0.3, -0.2])
    cond = Condition(text=tokens)
    assert torch.equal(longer(x, clock, cond), base(x, clock, cond))
    spare = tokens.where(tokens != VOCABULARY.index("red"), torch.tensor(len(VOCABULARY)))
    moved = (longer(x, clock, Condition(text=spare)) - base(x, clock, cond)).abs().amax((1, 2, 3))
    assert moved[0] > 1e-3 and moved[1] == 0
    drawn = longer.encoder.words.weight[len(VOCABULARY) :]
    assert 0.8 < drawn.std() < 1.2 and not torch.equal(drawn[0], drawn[1])
    with torch.no_grad():
        longer.net.encoder.first.weight.add_(1)
    assert not torch.equal(longer.net.encoder.first.weight, base.net.encoder.first.weight)


def test_a_word_that_is_known_means_more_than_a_spare_one(base):
    longer = dreambooth.with_spare_words(base, 1, generator=generator(2))
    model = NetworkDenoiser(longer, SCHEDULE, "v")
    x0 = render(draw_scenes(24, generator=generator(3), objects=(1,)))
    t = torch.linspace(0.3, 0.9, 24, dtype=torch.float64)
    silent = write_tokens(["a circle"]).expand(24, -1)
    found = {}
    for word in ("red", "large"):
        said = write_tokens([f"a {word} circle"]).expand(24, -1)
        found[word] = dreambooth.meaning(model, x0, t, said, silent, generator=generator(4))
        spare = said.where(said != VOCABULARY.index(word), torch.tensor(len(VOCABULARY)))
        found["spare"] = dreambooth.meaning(model, x0, t, spare, silent, generator=generator(4))
    none = dreambooth.meaning(model, x0, t, silent, silent, generator=generator(4))
    assert none.shape == (24,) and none.abs().max() == 0
    assert found["red"].mean() > 2 * found["spare"].mean()


def test_what_a_word_means_is_what_it_adds_to_the_belief():
    class Told:
        schedule = SCHEDULE

        def __call__(self, xt, t, cond):
            level = SCHEDULE.at(t, like=xt)
            x0 = (xt - 0 * xt) + cond.text[:, :1, None, None].to(xt)
            return type("Said", (), {"x0": x0, "level": level})

    x0, t = torch.zeros(2, 3, 4, 4), torch.tensor([0.2, 0.9], dtype=torch.float64)
    said, unsaid = torch.tensor([[3], [5]]), torch.tensor([[1], [1]])
    moved = dreambooth.meaning(Told(), x0, t, said, unsaid, generator=generator(0))
    assert moved.tolist() == pytest.approx([4 * 48, 16 * 48])


def test_a_batch_has_as_many_of_both_kinds_with_their_own_words():
    shown = torch.arange(4.0)[:, None], torch.arange(4)[:, None]
    own = torch.arange(100.0, 150)[:, None], torch.arange(100, 150)[:, None]
    x, tokens = dreambooth.beside(shown, own, 300, generator=generator(0))
    assert torch.equal(x.long(), tokens) and x.shape == (600, 1)
    assert set(x[:300, 0].tolist()) == set(range(4))
    assert x[300:].min() >= 100 and len(x[300:].unique()) > 40


def test_the_loss_is_a_mean_of_each_kind():
    errors = torch.tensor([1.0, 3.0, 10.0, 20.0, 60.0])
    assert dreambooth.preserved(errors, 2) == 2 + 30
    assert dreambooth.preserved(errors, 2, weight=0.5) == 2 + 15
    assert dreambooth.preserved(errors, 3, weight=0.0) == pytest.approx(14 / 3)
