"""The oracle of the shape world: what it reads, and that it can fail. Takes about 15 seconds."""

from dataclasses import replace

import pytest
import torch
from truths import generator

from tutorial_lib import pretrained
from tutorial_lib.captions import all_claims, holds
from tutorial_lib.oracle import GRID, PARTS, Oracle, Reading, read, reading_error, shares_right
from tutorial_lib.recipes.shapes import READ, oracle_tests
from tutorial_lib.shape_world import draw_scenes


@pytest.fixture(scope="module")
def tested():
    return oracle_tests(pretrained.oracle(), 2000, "cpu")


def test_it_reads_clean_pictures(tested):
    assert min(tested["clean"].values()) >= 0.99


def test_it_can_fail(tested):
    assert tested["noise_read_as_something"] < 0.05
    assert tested["blend_read_as_one"] < 0.1
    blurred = list(tested["blurred"].values())
    assert blurred[0] < 0.95 and blurred == sorted(blurred, reverse=True) and blurred[-1] < 0.1


class Known(torch.nn.Module):
    """Say of scenes, and not of the pictures that it is given, exactly what is where."""

    def __init__(self, scenes, spoil=lambda centre: centre):
        super().__init__()
        self.scenes, self.spoil = scenes, spoil

    def forward(self, pictures):
        out = torch.full((len(self.scenes), sum(PARTS), GRID, GRID), -20.0)
        kinds = (self.scenes.size, self.scenes.colour, self.scenes.shape)
        for b, n in self.scenes.present.nonzero().tolist():
            at = (self.spoil(self.scenes.centre[b, n]) + 1) * GRID / 2
            x, y = at.long().tolist()
            cell, start = out[b, :, y, x], 1
            cell[0] = 20.0
            for part, kind in zip(PARTS[1:4], kinds, strict=True):
                cell[start + int(kind[b, n])] = 20.0
                start += part
            cell[start:] = at - torch.tensor([x, y]) - 0.5
        return out


def scenes(n=200):
    return draw_scenes(n, generator=generator(4))


def test_what_cells_say_is_read_and_costs_nothing():
    truth = scenes()
    reading = read(Known(truth), None)
    assert bool(holds(all_claims(truth), reading).all())
    assert min(shares_right(truth, reading).values()) == 1.0
    assert float(reading_error(Known(truth)(None), truth)) < 1e-6


def test_axes_that_are_swapped_cost_much():
    truth = scenes()
    swapped = Known(truth, spoil=lambda centre: centre.flip(0))
    assert float(reading_error(swapped(None), truth)) > 10
    shares = shares_right(truth, read(swapped, None))
    assert shares["place"] < 0.3 and shares["colour"] < 0.5


def test_each_share_counts_its_own_mistakes():
    truth = scenes()
    right = Reading(**{kind: getattr(truth, kind) for kind in READ})
    for name in ("size", "colour", "shape"):
        rows = torch.arange(len(truth)) % 4 == 0
        false = torch.where(rows[:, None], getattr(truth, name) ^ 1, getattr(truth, name))
        shares = shares_right(truth, replace(right, **{name: false}))
        wrong = float(truth.present[rows].sum() / truth.present.sum())
        assert shares.pop(name) == pytest.approx(1 - wrong)
        assert set(shares.values()) == {1.0}
    fewer = truth.present & (torch.arange(3) < 2)
    shares = shares_right(truth, replace(right, present=fewer))
    assert shares["count"] == pytest.approx(float((truth.present.sum(1) < 3).double().mean()))
    assert shares["colour"] == pytest.approx(float(fewer.sum() / truth.present.sum()))


def test_of_two_that_lie_close_the_surer_is_read():
    out = torch.full((1, sum(PARTS), GRID, GRID), -20.0)
    out[0, 0, 2, 2], out[0, 0, 2, 3], out[0, 0, 6, 6] = 4.0, 5.0, -1.0
    out[0, -2:] = 0.0
    reading = read(lambda pictures: out, None)
    assert reading.present.tolist() == [[True, True, False]]
    assert reading.centre[0, 0].tolist() == pytest.approx([3.5 / 4 - 1, 2.5 / 4 - 1])
    assert reading.centre[0, 1].tolist() == pytest.approx([6.5 / 4 - 1, 6.5 / 4 - 1])


def test_more_objects_than_a_scene_has_are_none():
    out = torch.full((1, sum(PARTS), GRID, GRID), -20.0)
    for x in (0, 2, 4, 6):
        out[0, 0, 3, x] = 5.0
    out[0, -2:] = 0.0
    assert not read(lambda pictures: out, None).present.any()


def test_pictures_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"not \(B, 3, 32, 32\)"):
        Oracle(8, generator=generator(0))(torch.zeros(2, 3, 16, 16))
