"""The recipes that walk a network by solvers and under guidance, on exact and tiny ones. 15 s."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from test_diffusion_recipe import Colours, Truth, invented

from tutorial_lib import recipes
from tutorial_lib.denoiser import log_snr_clock
from tutorial_lib.guidance import NetworkClassifier
from tutorial_lib.recipes import diffusion, judge, walks
from tutorial_lib.recipes.walks import (
    astray,
    classifier_ways,
    clean_ways,
    draw,
    free_ways,
    solver_ways,
)
from tutorial_lib.schedule import DiscreteVP

SOLVERS = recipes.RECIPES["cifar10_solvers"].tiny
GUIDED = recipes.RECIPES["cifar10_classifier_guidance"].tiny
FREE = recipes.RECIPES["cifar10_classifier_free"].tiny


class Counted:
    """A denoiser that counts the rows it was asked for, with labels and without."""

    def __init__(self, model):
        self.model, self.schedule, self.asked = model, model.schedule, []

    def __call__(self, xt, t, cond=None):
        label = None if cond is None else cond.label
        bare = len(xt) if label is None else int((label < 0).sum())
        self.asked.append((len(xt) - bare, bare))
        return self.model(xt, t, cond)


def long(config, **others):
    return replace(config, model=replace(config.model, n_steps=1000), **others)


def spread(pixels):
    return float((pixels.double() / 127.5 - 1).std())


def test_every_solver_asks_as_often_as_it_says():
    config = long(SOLVERS, numbers=(5, 6, 12))
    model = Counted(Truth(config.model))
    ways = list(solver_ways(config, model))
    for way in ways:
        model.asked.clear()
        draw(way, replace(config, samples=4))
        assert len(model.asked) == way.row["evaluations"], way.row
        assert set(model.asked) == {(4, 4) if way.row["w"] > 0 else (0, 4)}
    named = {tuple(way.row[k] for k in ("solver", "grid", "w", "evaluations")) for way in ways}
    assert len(named) == len(ways)
    for w in (-1.0, 7.0):
        assert ("DPM-Solver-3", "log-SNR", w, 6) in named
        assert ("DPM-Solver-3", "log-SNR", w, 5) not in named


def test_walks_start_and_end_where_they_are_told():
    grids = ("log-SNR", "uniform", "quadratic")
    config = long(SOLVERS, numbers=(6,), start=0.9946, grids=grids)
    ways = list(solver_ways(config, Truth(config.model)))
    assert {way.row["grid"] for way in ways} == set(grids)
    for way in ways:
        assert way.times[[0, -1]].tolist() == pytest.approx([0.9946, 1e-3], rel=1e-9)
    seven = [way.times for way in ways if len(way.times) == 7]
    evens = {
        "log-SNR": lambda t: DiscreteVP.cosine(1000).lambda_(t),
        "uniform": lambda t: t,
        "quadratic": lambda t: t.sqrt(),
    }
    found = {
        grid: [t for t in seven if float(even(t).diff().diff().abs().max()) < 1e-6]
        for grid, even in evens.items()
    }
    assert sum(map(len, found.values())) == len(seven) and min(map(len, found.values())) > 0


def test_pictures_are_measured_against_the_fine_walk_before_them():
    config = long(SOLVERS, numbers=(10,), samples=8, fine=200)
    drawn, fine = {}, None
    for way in solver_ways(config, Truth(config.model)):
        pixels = draw(way, config)[0]
        fine = pixels if way.fine else fine
        drawn[way.row["solver"], way.row["grid"], way.row["w"]] = astray(pixels, fine)
    exact = drawn["DPM-Solver++ 2M", "log-SNR", -1.0]
    assert 0 < exact < drawn["DDIM", "log-SNR", -1.0]
    assert astray(fine, fine) == 0
    assert astray(fine.clamp(max=250) + 3, fine.clamp(max=250)) == 3


def test_in_many_evaluations_every_solver_draws_the_data_of_a_known_model():
    config = long(SOLVERS, numbers=(120,), samples=20)
    for way in solver_ways(config, Truth(config.model)):
        pixels, _, seconds = draw(way, config)
        assert spread(pixels) == pytest.approx(0.3, rel=0.04), way.row
        assert seconds > 0 and pixels.shape == (20, 3, 32, 32)


def test_guidance_asks_whom_it_should():
    config = long(FREE, numbers=(0.0, 2.0), steps=10, samples=4)
    model = Counted(Truth(config.model))
    for way in free_ways(config, model):
        model.asked.clear()
        draw(way, config)
        asked = set(model.asked)
        if way.row["guidance"] == "unconditional":
            assert asked == {(0, 4)}
        elif way.row["scale"] == 0:
            assert asked == {(4, 0)}
        elif way.row["guidance"] == "always":
            assert asked == {(4, 4)}
        else:
            assert asked == {(4, 4), (4, 0)}


class Bright(torch.nn.Module):
    """Say that bright pictures are of class 1 and dark ones of class 0, the rest of neither."""

    def forward(self, xt, clock=None, cond=None):
        bright = 200 * xt.mean((1, 2, 3))
        rest = torch.full((len(xt), 8), -20.0)
        return torch.cat([torch.stack([-bright, bright], 1), rest], 1)


def test_a_classifier_pulls_pictures_to_their_labels(monkeypatch):
    config = long(GUIDED, numbers=(0.0, 4.0), steps=20, samples=60)
    classifier = NetworkClassifier(Bright(), DiscreteVP.cosine(1000))
    monkeypatch.setattr(judge, "load_noisy_classifier", lambda device: classifier)
    model = Counted(Truth(config.model))
    for way in classifier_ways(config, model):
        model.asked.clear()
        pixels, labels, _ = draw(way, config)
        known = way.row["model"] == "conditional"
        assert set(model.asked) == {(60, 0) if known else (0, 60)}
        light = pixels.double().mean((1, 2, 3))
        apart = float(light[labels == 1].mean() - light[labels == 0].mean())
        assert (apart > 1) == (way.row["scale"] > 0), way.row


def test_a_classifier_of_clean_pictures_is_asked_the_noisy_ones(monkeypatch):
    config = long(GUIDED, numbers=(0.0, 4.0), steps=20, samples=60)
    monkeypatch.setattr(judge, "load_classifier", lambda path=None, device="cpu": Bright())
    for way in clean_ways(config, Truth(config.model)):
        pixels, labels, _ = draw(way, config)
        light = pixels.double().mean((1, 2, 3))
        apart = float(light[labels == 1].mean() - light[labels == 0].mean())
        assert (apart > 1) == (way.row["scale"] > 0), way.row


class Told(Colours):
    """Features that are the clock that it was told, and nothing of the picture."""

    def features(self, x, clock=None):
        return clock[:, None].expand(-1, 6) + 1e-3 * super().features(x)


def test_each_judge_is_told_that_pictures_are_clean_as_it_learned_it(monkeypatch, tmp_path):
    for name in ("WEIGHTS", "NOISY_WEIGHTS"):
        monkeypatch.setattr(judge, name, tmp_path / name)
        getattr(judge, name).touch()
    monkeypatch.setattr(judge, "load_classifier", lambda path=None, device="cpu": Told())
    black = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
    told = {end: float(by.real.mean()) for end, by in walks._judges("cpu", black).items()}
    chain = DiscreteVP.cosine(1000)
    assert told == pytest.approx({"": 0.0, "_noise_aware": float(log_snr_clock(chain, 0.0))})
    assert told["_noise_aware"] > 1


@pytest.mark.parametrize(
    "name",
    ["solvers", "solvers_grids", "classifier_guidance", "classifier_free"],
)
def test_a_tiny_run_leaves_its_record(monkeypatch, tmp_path, name):
    for module in (diffusion, walks):
        monkeypatch.setattr(module, "cifar10", invented)
    monkeypatch.setattr(judge, "WEIGHTS", tmp_path / "absent")
    monkeypatch.setattr(judge, "NOISY_WEIGHTS", tmp_path / "missing")
    classifier = NetworkClassifier(Bright(), DiscreteVP.cosine(1000))
    monkeypatch.setattr(judge, "load_noisy_classifier", lambda device: classifier)
    recipes.run("cifar10_course", tiny=True, out=str(tmp_path / "course"))
    given = {"tiny": True, "out": str(tmp_path)}
    given["weights"] = str(tmp_path / "course" / "weights.safetensors")
    bare = recipes.run(f"cifar10_{name}", **given)
    headline = recipes.RECIPES[f"cifar10_{name}"].headline
    assert headline(bare) == f"{len(bare['table'])} ways"
    judge.WEIGHTS.touch()
    judge.NOISY_WEIGHTS.touch()
    monkeypatch.setattr(judge, "load_classifier", lambda path=None, device="cpu": Colours())
    metrics = recipes.run(f"cifar10_{name}", **given)
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    assert all(row["fd_classifier"] > 0 for row in metrics["table"])
    assert all(("accuracy" in row) == (row.get("w", 0) >= 0) for row in metrics["table"])
    for row in (*metrics["table"], metrics["floor"]):
        twice = {k: row[f"{k}_noise_aware"] for k in ("fd_classifier", "precision", "recall")}
        assert twice == {k: row[k] for k in twice}  # here both judges are the same
    assert 0 <= metrics["floor"]["accuracy"] == metrics["floor"]["accuracy_noise_aware"] <= 1
    assert all(("astray" in row) == name.startswith("solvers") for row in metrics["table"])
    assert "by" in headline(metrics) and "FD-classifier" in headline(metrics)
    assert Image.open(tmp_path / "samples.jpg").size == (32 * 4, 32 * len(metrics["table"]))
