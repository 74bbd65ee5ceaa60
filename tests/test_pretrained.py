"""The weights that come with the package: whole, small, and those of their records. Takes 2 s."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import ship
import torch

from tutorial_lib import pretrained
from tutorial_lib.recipes.record import origin_of

RESULTS = Path(__file__).parents[1] / "results"
NAMES = [path.stem for path in sorted(pretrained.FOLDER.glob("*.safetensors"))]
MOST, MOST_TOGETHER = 4.5e6, 10e6  # bytes


def test_every_file_has_its_checksum_and_is_small():
    assert sorted(pretrained.checksums()) == [f"{name}.safetensors" for name in NAMES]
    sizes = [(pretrained.FOLDER / f"{name}.safetensors").stat().st_size for name in NAMES]
    assert max(sizes) <= MOST and sum(sizes) <= MOST_TOGETHER


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_those_of_their_record(name):
    about = origin_of(pretrained.FOLDER / f"{name}.safetensors")
    record = json.loads((RESULTS / name / "metrics.json").read_text())
    assert about["recipe"] == record["recipe"] == name
    assert about["commit"] == record["commit"] and about["device"] == record["device"]
    assert all(x.dtype == torch.float32 for x in pretrained.weights(name).values())


def test_every_model_is_there():
    tuned = (pretrained.inpainting, pretrained.small, pretrained.decoder)
    whole = (pretrained.text_to_image, pretrained.prior)
    nets = [load().net for load in (*tuned, *whole, pretrained.super_resolver)]
    nets.append(pretrained.super_resolver(plain=True).net)
    for net in (pretrained.oracle(), pretrained.clip(), pretrained.clip(noisy=True), *nets):
        assert not net.training and not any(p.requires_grad for p in net.parameters())


def test_damaged_and_missing_weights_are_refused(tmp_path):
    safetensors.torch.save_file({"x": torch.ones(3)}, tmp_path / "one.safetensors")
    ship.ship([], folder=tmp_path)
    assert pretrained.weights("one", tmp_path)["x"].tolist() == [1, 1, 1]
    whole = (tmp_path / "one.safetensors").read_bytes()
    (tmp_path / "one.safetensors").write_bytes(whole[:-1] + b"\1")
    with pytest.raises(pretrained.WeightsError, match="damaged: install the package again"):
        pretrained.weights("one", tmp_path)
    with pytest.raises(pretrained.WeightsError, match="no weights at"):
        pretrained.weights("two", tmp_path)


def test_what_a_recipe_trained_is_shipped(tmp_path):
    results, folder = tmp_path / "results", tmp_path / "weights"
    (results / "new").mkdir(parents=True)
    folder.mkdir()
    safetensors.torch.save_file({"x": torch.ones(3)}, results / "new" / "weights.safetensors")
    ship.ship(["new"], results, folder)
    assert list(pretrained.checksums(folder)) == ["new.safetensors"]
    assert not (results / "new" / "weights.safetensors").exists()
    assert pretrained.weights("new", folder)["x"].tolist() == [1, 1, 1]
