"""Recipes on invented images, and the learner's minute on real ones. Takes about a minute."""

import errno
import json
import math
import os
import re
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import runs
import torch
from PIL import Image

from tests.truths import generator
from tutorial_lib import recipes
from tutorial_lib.autoencoder import Bound
from tutorial_lib.autoencoder import image_vae as build_vae
from tutorial_lib.checkpoints import CheckpointError, read
from tutorial_lib.cifar10 import Images, cifar10, to_pixels
from tutorial_lib.recipes import classifier, image_vae, record
from tutorial_lib.train import Progress

REAL = os.environ.get("TUTORIAL_LIB_DATA")
VARYING = ("seconds",)  # what two equal runs may differ in


@pytest.fixture
def invented(monkeypatch):
    """Serve smooth colour ramps in CIFAR-10's place; return them by split."""

    def images(split, *, source=None, limit=None):
        corners = torch.rand(limit, 3, 2, 2, generator=generator(len(split)))
        x = torch.nn.functional.interpolate(corners, 32, mode="bilinear") * 2 - 1
        return Images(to_pixels(x), torch.zeros(limit, dtype=torch.long), ("ramp",), "ramps")

    for module in (image_vae, classifier):
        monkeypatch.setattr(module, "cifar10", images)
    return images


def tiny(out, name="cifar10_vae", **overrides):
    return recipes.run(name, tiny=True, out=str(out), **overrides)


def lasting(metrics):
    return {key: value for key, value in metrics.items() if key not in VARYING}


class Known:
    """A model whose every image costs 1 bit/dim to reconstruct, 0.5 and 0.25 in two levels."""

    def __call__(self, x, *, generator):
        nats = x[0].numel() * math.log(2) * torch.ones(len(x))
        return Bound(-nats, torch.stack([0.5 * nats, 0.25 * nats], dim=1))


def test_measure_counts_bits_per_dimension():
    pixels = torch.zeros(700, 3, 32, 32, dtype=torch.uint8)  # more than one batch
    assert image_vae.measure(Known(), pixels, generator()) == {
        "bits_per_dim": 1.75,
        "standard_error": 0.0,
        "reconstruction": 1.0,
        "kl_of_levels": [0.5, 0.25],
    }


@pytest.mark.parametrize(("name", "levels"), [("cifar10_vae", 1), ("cifar10_hvae", 3)])
def test_a_run_leaves_its_record(invented, tmp_path, name, levels):
    metrics = tiny(tmp_path, name)
    assert json.loads((tmp_path / "metrics.json").read_text()) == json.loads(json.dumps(metrics))
    parts = metrics["reconstruction"] + sum(metrics["kl_of_levels"])
    assert metrics["bits_per_dim"] == pytest.approx(parts, abs=3e-4)  # rounded to 1e-4 each
    assert len(metrics["kl_of_levels"]) == levels
    assert metrics["data"] == "ramps"
    assert metrics["images_seen"] == 20 * 16
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert log[-1]["step"] == 20
    assert log[-1]["loss"] < log[0]["loss"]
    sheet = torch.tensor(np.asarray(Image.open(tmp_path / "reconstructions.jpg"))).int()
    assert sheet.shape == (32 * (1 + levels), 16 * 32, 3)
    originals = invented("test", limit=32).pixels[:16]
    off = (sheet[:32] - torch.cat(list(originals.permute(0, 2, 3, 1)), dim=1)).abs()
    assert off.max() < 8  # JPEG; any two of the ramps are 90 apart somewhere
    assert Image.open(tmp_path / "samples.jpg").size == (16 * 32, 4 * 32)
    assert str(tmp_path) not in (tmp_path / "metrics.json").read_text()


def test_a_run_can_be_repeated(invented, tmp_path):
    first, again = tiny(tmp_path / "1"), tiny(tmp_path / "2")
    other = tiny(tmp_path / "3", seed=1)
    assert lasting(first) == lasting(again)
    assert first["bits_per_dim"] != other["bits_per_dim"]


def interrupt_at(monkeypatch, call):
    calls, convert = [], image_vae.to_floats

    def counted(pixels):
        calls.append(1)
        if len(calls) == call:
            signal.raise_signal(signal.SIGINT)
        return convert(pixels)

    monkeypatch.setattr(image_vae, "to_floats", counted)


def test_an_interrupted_run_goes_on_where_it_stopped(invented, tmp_path, monkeypatch):
    settings = {"checkpoint": True}
    whole = tiny(tmp_path / "whole", **settings)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 7)
        with pytest.raises(KeyboardInterrupt, match="after step 7"):
            tiny(tmp_path / "halves", **settings)
    assert lasting(tiny(tmp_path / "halves", **settings)) == lasting(whole)


def test_networks_are_compiled_on_gpus_unless_in_pieces():
    full = recipes.RECIPES["cifar10_ddpm"].full
    assert replace(full, device="cuda").compiled and not replace(full, device="cpu").compiled
    assert not replace(full, device="cuda", sharded=True).compiled


def told(step, seconds):
    return Progress(step, 1.0 / step, seconds, torch.nn.Identity())


def test_a_journal_is_written_as_the_run_goes_and_resumes(tmp_path):
    journal = record.Journal(tmp_path, 32, resumed=False)
    for step in (10, 20, 30):
        journal(told(step, step / 5))
    lines = [json.loads(line) for line in journal.path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 30]
    assert "images_per_second" not in lines[0] and lines[1]["images_per_second"] == 160
    again = record.Journal(tmp_path, 32, resumed=True)  # from a checkpoint of step 15
    again(told(20, 5.0))
    lines = [json.loads(line) for line in journal.path.read_text().splitlines()]
    assert [(line["step"], line["seconds"]) for line in lines] == [(10, 2.0), (20, 5.0)]
    fresh = record.Journal(tmp_path, 32, resumed=False)
    fresh(told(10, 1.0))
    assert len(journal.path.read_text().splitlines()) == 1


def test_a_checkpoint_of_another_recipe_is_refused(invented, tmp_path):
    tiny(tmp_path, checkpoint=True)
    with pytest.raises(CheckpointError, match="belongs to another run"):
        tiny(tmp_path, "cifar10_hvae", checkpoint=True)


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no recipe 'cifar100_vae': choose from cifar10_vae"):
        recipes.run("cifar100_vae")
    with pytest.raises(ValueError, match="cifar10_vae has no setting stepz"):
        tiny(tmp_path, stepz=3)
    with pytest.raises(ValueError, match="small or tiny"):
        tiny(tmp_path, small=True)


def test_only_the_recorded_run_may_replace_its_record():
    recipe = recipes.RECIPES["cifar10_vae"]
    full = recipe.full
    for same in (full, replace(full, device="cpu", source="copy", checkpoint=True)):
        assert recipe.folder("cifar10_vae", same) == Path("results/cifar10_vae")
    for other in (replace(full, steps=100), replace(full, seed=1), recipe.small):
        assert recipe.folder("cifar10_vae", other) == Path("runs/cifar10_vae")
    assert recipe.folder("cifar10_vae", replace(full, out="mine")) == Path("mine")


def test_the_command_line_runs(invented, tmp_path, capsys):
    command = ["cifar10_vae", "--tiny", "--steps", "3", "--learning-rate", "2e-3", "--checkpoint"]
    assert recipes.main([*command, "--out", str(tmp_path)]) == 0
    config = json.loads(capsys.readouterr().out)["config"]
    assert (config["steps"], config["learning_rate"], config["checkpoint"]) == (3, 2e-3, True)
    written, _ = read(tmp_path / "checkpoint.safetensors")
    assert written["recipe"] == "cifar10_vae"
    assert written["commit"] == json.loads((tmp_path / "metrics.json").read_text())["commit"]


def test_the_list_gives_the_figures_on_record(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    (tmp_path / "cifar10_vae").mkdir()
    found = {"bits_per_dim": 4.2513, "standard_error": 0.0049, "data": "ramps", "device": "a GPU"}
    (tmp_path / "cifar10_vae" / "metrics.json").write_text(json.dumps(found))
    assert recipes.main(["--list"]) == 0
    flat, ladder = capsys.readouterr().out.split("cifar10_hvae")
    assert "recorded: 4.251 ± 0.005 bits/dim on ramps; a GPU" in flat
    assert "recorded" not in ladder and recipes.RECIPES["cifar10_hvae"].cost in ladder


def test_every_record_can_be_listed(capsys):
    assert recipes.main(["--list"]) == 0
    listed, recorded = capsys.readouterr().out, record.RESULTS.glob("*/metrics.json")
    assert (
        listed.count("recorded:") == sum(p.parent.name in recipes.RECIPES for p in recorded) > 30
    )


def test_the_readme_shows_the_recorded_runs():
    text = runs.README.read_text(encoding="utf-8")
    assert runs.in_readme(text) == text, "python tools/runs.py"
    for name in ("cifar10_vae", "cifar10_hvae", "cifar10_classifier"):
        assert f"| `{name}` |" in text
    assert runs.in_readme(text.replace("bits/dim |", "bits |")) == text  # and would be renewed


def no_room(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("options", "broken", "status", "sentence"),
    [
        (["--steps", "0"], None, 1, "steps is 0: it must be positive"),
        (["--learning-rate", "1e9"], None, 1, "the loss is .* try a smaller learning_rate"),
        (["--device", "cuda:99"], None, 1, "there is no device 'cuda:99' here: choose cpu"),
        (
            [],
            "write_metrics",
            1,
            r"files \(No space left on device\): make room, or name a folder",
        ),
        ([], "Ctrl-C", 130, "stopped after step 7, not saved"),
    ],
)
def test_what_goes_wrong_is_one_sentence(
    invented, tmp_path, monkeypatch, capsys, options, broken, status, sentence
):
    if broken == "Ctrl-C":
        interrupt_at(monkeypatch, 7)
    elif broken:
        monkeypatch.setattr(image_vae, broken, no_room)
    out = ["--out", str(tmp_path)]
    assert recipes.main(["cifar10_vae", "--tiny", *out, *options]) == status
    said = capsys.readouterr()
    assert re.search(sentence, said.err) and said.err.count("\n") == 1 and not said.out


@pytest.mark.skipif(not REAL, reason="expected: no real CIFAR-10, TUTORIAL_LIB_DATA is not set")
def test_two_thousand_real_images_in_a_minute(tmp_path):
    """The learner's run: 27 s on one core (5.3 bits/dim; untrained, over 7.5)."""
    metrics = recipes.run("cifar10_vae", small=True, out=str(tmp_path))
    untrained = build_vae(recipes.RECIPES["cifar10_vae"].small.stages, generator=generator(0))
    pixels = cifar10("test", limit=500).pixels
    assert image_vae.measure(untrained, pixels, generator(1))["bits_per_dim"] > 7.5
    assert metrics["bits_per_dim"] < 5.6
    assert metrics["kl_of_levels"][0] > 0.3  # the latents carry the picture
