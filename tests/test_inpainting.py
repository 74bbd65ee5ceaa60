"""Inpainting: what is known, where, and two ways to keep it. Takes 10 seconds."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from truths import generator

from tutorial_lib import pretrained
from tutorial_lib.captions import all_claims, as_claimed, holds, write_tokens
from tutorial_lib.denoiser import Condition, MixtureDenoiser, Prediction
from tutorial_lib.inpainting import (
    Beside,
    KeepKnown,
    draw_known,
    known_part,
    outside,
    replacement,
)
from tutorial_lib.mixtures import GaussianMixture
from tutorial_lib.pretrained import BASE_NETWORK, INPAINTING_NETWORK, SMALL_NETWORK
from tutorial_lib.samplers import final
from tutorial_lib.schedule import CosineVP, uniform_times
from tutorial_lib.shape_world import MOST, draw_scenes

SCHEDULE = CosineVP()


def test_pixels_are_erased_whose_centres_lie_in_a_box():
    boxes = torch.tensor([[[-0.5, -1.0, 0.3, 0.1], [0.4, 0.5, 0.9, 2.0]], [[2.0, 2, 3, 3]] * 2])
    known = outside(boxes, 8)
    assert known.shape == (2, 1, 8, 8)
    for i, j in ((i, j) for i in range(8) for j in range(8)):
        x, y = -1 + (2 * j + 1) / 8, -1 + (2 * i + 1) / 8
        within = any(a < x < c and b < y < d for a, b, c, d in boxes[0].tolist())
        assert known[0, 0, i, j] == (not within)
    assert known[1].all()  # a box beside the picture


def test_what_is_told_is_the_picture_there_and_where():
    x0 = torch.randn(3, 3, 4, 4, generator=generator(1))
    known = torch.zeros(3, 1, 4, 4)
    known[:, :, :, 2:] = 1
    told = known_part(x0, known)
    assert told.shape == (3, 4, 4, 4)
    assert torch.equal(told[:, :3, :, 2:], x0[:, :, :, 2:]) and not told[:, :3, :, :2].any()
    assert torch.equal(told[:, 3:], known)


def test_a_box_is_erased_or_all():
    known = draw_known(3000, 16, generator=generator(2))
    bare = (known == 0).all((1, 2, 3)).double().mean()
    assert float(bare) == pytest.approx(0.2, abs=0.044)  # 6 standard errors
    gone = 1 - known[:, 0]
    rows, columns = gone.amax(2), gone.amax(1)
    assert torch.equal(gone, rows[:, :, None] * columns[:, None])  # a product: a box
    sides = rows.sum(1)[(known == 1).any((1, 2, 3)) & gone.any(1).any(1)]
    assert sides.max() <= 0.65 * 16 + 1
    assert torch.equal(known, draw_known(3000, 16, generator=generator(2)))


class Listening(nn.Module):
    """Answer what a network is given."""

    def forward(self, xt, clock, cond):
        return torch.cat([xt, clock[:, None, None, None].expand_as(xt[:, :1])], 1)


def test_a_hint_lies_beside_x_t():
    xt, hint = (torch.randn(2, c, 4, 4, generator=generator(c)) for c in (3, 4))
    seen = Beside(Listening())(xt, torch.tensor([1.0, 2.0]), Condition(hint=hint))
    assert torch.equal(seen[:, :3], xt) and torch.equal(seen[:, 3:7], hint)
    assert seen[:, 7].flatten(1).unique(dim=1).flatten().tolist() == [1, 2]


TWO = GaussianMixture(
    torch.tensor([0.5, 0.5], dtype=torch.float64),
    torch.tensor([[0.6, 1.5], [-0.6, -1.5]], dtype=torch.float64),
    0.09 * torch.eye(2, dtype=torch.float64).expand(2, 2, 2),
)
FIRST = torch.tensor([[1.0, 0.0]], dtype=torch.float64)


def test_what_is_known_is_kept_and_the_noise_agrees():
    xt = torch.randn(50, 2, generator=generator(3), dtype=torch.float64)
    x0 = torch.randn(50, 2, generator=generator(4), dtype=torch.float64)
    t = torch.tensor(0.6, dtype=torch.float64)
    plain = MixtureDenoiser(TWO, SCHEDULE)
    kept, free = KeepKnown(plain, x0, FIRST)(xt, t), plain(xt, t)
    assert torch.equal(kept.x0[:, 0], x0[:, 0]) and torch.equal(kept.x0[:, 1], free.x0[:, 1])
    again = kept.level.alpha * kept.x0 + kept.level.sigma * kept.eps
    assert (again - xt).abs().max() < 1e-12
    assert (kept.eps[:, 1] - free.eps[:, 1]).abs().max() < 1e-12


def ended(denoiser, at, steps=30, n=4000, **how):
    """Fill in the second coordinate of points whose first is `at`."""
    x0 = torch.tensor([at, 9.0], dtype=torch.float64).expand(n, 2)
    start = torch.randn(n, 2, generator=generator(5), dtype=torch.float64)
    given = (start, uniform_times(steps), x0, FIRST)
    return final(replacement(denoiser, *given, generator=generator(6), **how))


def test_replacement_is_right_where_the_known_part_tells_nothing():
    apart = replace_means([[0.0, 1.5], [0.0, -1.5]])
    x = ended(MixtureDenoiser(apart, SCHEDULE), 0.4, steps=200)
    assert torch.equal(x[:, 0], torch.full_like(x[:, 0], 0.4))
    upper = x[:, 1] > 0
    assert float(upper.double().mean()) == pytest.approx(0.5, abs=6 * 0.5 / 4000**0.5)
    assert float(x[upper, 1].mean()) == pytest.approx(1.5, abs=0.05)
    assert float(x[upper, 1].std()) == pytest.approx(0.3, abs=0.03)


def replace_means(means):
    return GaussianMixture(TWO.weights, torch.tensor(means).double(), TWO.covariances)


def test_replacement_is_biased_where_it_tells_much_and_repeats_mend_some_of_it():
    exact = 1 / (1 + math.exp(-4 * 0.6 * 0.6 / (2 * 0.09)))
    plain = MixtureDenoiser(TWO, SCHEDULE)
    once, often = (float((ended(plain, 0.6, repeats=k)[:, 1] > 0).double().mean()) for k in (1, 9))
    assert exact > 0.999 and 0.5 < once < 0.75 and often > once + 0.05


class Watching:
    """Remember the known coordinate that a denoiser is asked about, by time."""

    def __init__(self):
        self.schedule, self.seen = SCHEDULE, {}

    def __call__(self, xt, t, cond=None):
        self.seen[float(t)] = xt[:, 0]
        level = SCHEDULE.at(t, like=xt)
        return Prediction.from_x0(xt, level, torch.zeros_like(xt))


def test_the_known_part_is_as_noisy_as_its_time():
    watching = Watching()
    ended(watching, 2.0, steps=5, n=20_000)
    times = sorted(watching.seen)
    for t in times[:-1]:  # the first point is noise
        level = SCHEDULE.at(torch.tensor(t, dtype=torch.float64), like=torch.zeros(1).double())
        x, error = watching.seen[t], float(level.sigma) / 20_000**0.5
        assert float(x.mean()) == pytest.approx(2 * float(level.alpha), abs=6 * error)
        assert float(x.std()) == pytest.approx(float(level.sigma), abs=6 * error)
    first, second = (watching.seen[t] for t in times[:2])
    scaled = [(x - x.mean()) / x.std() for x in (first, second)]
    assert abs(float((scaled[0] * scaled[1]).mean())) < 6 / 20_000**0.5  # fresh every time


def test_other_models_begin_as_the_base():
    base = pretrained.text_to_image().net
    tokens = write_tokens(["a red ring", "a small thing above a blue cross"])
    xt, clock = torch.randn(2, 3, 32, 32, generator=generator(7)), torch.tensor([0.3, -1.0])
    plain = base(xt, clock, Condition(text=tokens))
    filling = Beside(pretrained.from_base(INPAINTING_NETWORK)).eval()
    hint = known_part(xt, torch.ones(2, 1, 32, 32))
    begun = filling(xt, clock, Condition(text=tokens, hint=hint))
    assert (begun - plain).abs().max() < 1e-5
    learning = {name for name, p in filling.named_parameters() if p.requires_grad}
    parts = (".down.weight", ".up.weight")
    assert {n for n in learning if not n.endswith(parts)} == {"net." + pretrained.FIRST}
    small = pretrained.from_base(SMALL_NETWORK)
    whole = {n for n, p in small.named_parameters() if p.requires_grad and not n.endswith(parts)}
    assert whole == {pretrained.FIRST, "net.last.2.weight", "net.last.2.bias"}
    assert replace(SMALL_NETWORK, side=32, patch=2) == BASE_NETWORK


def changed(scenes, **what):
    return replace(scenes, **what)


def test_an_object_that_is_not_as_said_is_found():
    scenes = draw_scenes(500, generator=generator(8), objects=(3,))
    claims = all_claims(scenes)
    assert as_claimed(claims, scenes).all()
    place = torch.randint(MOST, (500,), generator=generator(9))
    mine = torch.arange(MOST) == place[:, None]
    other = changed(scenes, shape=torch.where(mine, (scenes.shape + 1) % 6, scenes.shape))
    wrong = ~holds(claims, other)
    found = as_claimed(claims, other)
    unique = wrong & (found.sum(1) == 2)  # unless another object became the one meant
    assert unique.double().mean() > 0.9
    assert (~found[unique] == mine[unique]).all(1).double().mean() > 0.95
    order = [2, 0, 1]
    names = ("present", "shape", "colour", "size", "centre", "radius", "angle", "paint")
    turned = changed(scenes, **{name: getattr(scenes, name)[:, order] for name in names})
    assert as_claimed(claims, turned).all()  # the order of reading does not matter
    mirrored = changed(scenes, centre=-scenes.centre)
    told = claims.relation >= 0
    assert (as_claimed(claims, mirrored).sum(1) < 3)[told].double().mean() > 0.9
    assert as_claimed(claims, mirrored)[~told].all()
