"""The weights that come with the package: whole, small, and those of their records. Takes 2 s."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import ship
import torch

from tutorial_lib import pretrained
from tutorial_lib.checkpoints import CheckpointError
from tutorial_lib.recipes.record import load_weights, origin_of, save_weights

RESULTS = Path(__file__).parents[1] / "results"
ENDING = ".safetensors.xz"
NAMES = [path.name.removesuffix(ENDING) for path in sorted(pretrained.FOLDER.glob("*" + ENDING))]
MODELS = [name for name in NAMES if name.startswith("shapes")]
MOST, MOST_TOGETHER = 4.5e6, 10e6  # bytes


def test_every_file_has_its_checksum_and_is_small():
    assert sorted(pretrained.checksums()) == [name + ENDING for name in NAMES]
    sizes = [(pretrained.FOLDER / (name + ENDING)).stat().st_size for name in NAMES]
    assert max(sizes) <= MOST and sum(sizes) <= MOST_TOGETHER


@pytest.mark.parametrize("name", MODELS)
def test_weights_are_those_of_their_record(name):
    about = origin_of(pretrained.FOLDER / (name + ENDING))
    record = json.loads((RESULTS / name / "metrics.json").read_text())
    assert about["recipe"] == record["recipe"] == name
    assert about["commit"] == record["commit"] and about["device"] == record["device"]
    assert all(x.dtype == torch.float32 for x in pretrained.weights(name).values())


def test_every_model_is_there():
    tuned = (pretrained.inpainting, pretrained.small, pretrained.decoder)
    whole = (pretrained.text_to_image, pretrained.prior)
    nets = [load().net for load in (*tuned, *whole, pretrained.super_resolver)]
    nets.append(pretrained.super_resolver(plain=True).net)
    nets += [pretrained.read_by_minilm(noisy=noisy).net for noisy in (False, True)]
    nets += [pretrained.first_stage(factor) for factor in (2, 4, 8)]
    inside, space = pretrained.latent_diffusion()
    nets += [inside.net, space.stage]
    for net in (pretrained.oracle(), pretrained.clip(), pretrained.clip(noisy=True), *nets):
        assert not net.training and not any(p.requires_grad for p in net.parameters())


def test_latents_have_the_size_of_their_record():
    record = json.loads((RESULTS / "shapes_large_latent_4" / "metrics.json").read_text())
    assert record["scale"] == pretrained.LATENT_SCALE


def test_damaged_and_missing_weights_are_refused(tmp_path):
    safetensors.torch.save_file({"x": torch.ones(3)}, tmp_path / "one.safetensors")
    ship.pack(tmp_path / "one.safetensors", tmp_path / ("one" + ENDING))
    ship.ship([], folder=tmp_path)
    assert pretrained.weights("one", tmp_path)["x"].tolist() == [1, 1, 1]
    whole = (tmp_path / ("one" + ENDING)).read_bytes()
    (tmp_path / ("one" + ENDING)).write_bytes(whole[:-1] + b"\1")
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
    assert list(pretrained.checksums(folder)) == ["new" + ENDING]
    assert not (results / "new" / "weights.safetensors").exists()
    assert pretrained.weights("new", folder)["x"].tolist() == [1, 1, 1]


def test_rounded_weights_are_near_and_smaller(tmp_path):
    x = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    sizes = {}
    for rounded in (False, True):
        folder = tmp_path / str(rounded)
        (folder / "new").mkdir(parents=True)
        save_weights({"x": x}, folder / "new" / "weights.safetensors", {"recipe": "new"})
        ship.ship(["new"], folder, folder, rounded=rounded)
        packed = folder / ("new" + ENDING)
        sizes[rounded], y = packed.stat().st_size, pretrained.weights("new", folder)["x"]
        assert origin_of(packed)["recipe"] == "new"
        most = 2**-8 + (2**-5 if rounded else 0)  # bfloat16 has 7 bits
        assert ((y - x).abs() <= most * x.abs()).all()
    bits = y.bfloat16().view(torch.int16).int()
    assert (bits % 8 == 0).all() and sizes[True] < 0.85 * sizes[False]


def saved(folder, value=1.0):
    """Weights as a recipe leaves them, and where."""
    weights = {"x": torch.full((3,), value), "y": torch.arange(1000.0)}
    save_weights(weights, folder / "weights.safetensors", {"recipe": "new"})
    return folder / "weights.safetensors"


def test_packed_weights_are_the_same_until_a_later_run_leaves_its_own(tmp_path):
    plain = saved(tmp_path / "new")
    packed, size = plain.with_name("weights.safetensors.xz"), plain.stat().st_size
    before, about = load_weights(plain)
    ship.pack(plain, packed)
    assert [path.name for path in plain.parent.iterdir()] == [packed.name]
    assert packed.stat().st_size < size / 2
    after, told = load_weights(packed)
    assert about == told == origin_of(packed) == {"recipe": "new"}
    assert after.keys() == before.keys()
    assert all(x.dtype == torch.bfloat16 and torch.equal(x, before[k]) for k, x in after.items())
    saved(tmp_path / "new", 2.0)
    assert load_weights(packed)[0]["x"].tolist() == [2, 2, 2]


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.safetensors.xz"])
def test_damaged_weights_of_a_run_are_refused_by_name(tmp_path, name):
    path = saved(tmp_path / "new").with_name(name)
    if path.suffix == ".xz":
        ship.pack(path.with_name("weights.safetensors"), path)
    whole = path.read_bytes()
    for damaged in (b"", whole[:-1], whole[:40], b"text", b"\1" + whole[1:]):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=f"{name} is damaged or holds no weights"):
            load_weights(path)


def test_packed_weights_that_lost_a_bit_are_refused(tmp_path):
    plain = saved(tmp_path / "new")
    path = plain.with_name("weights.safetensors.xz")
    ship.pack(plain, path)
    whole = path.read_bytes()
    for at in range(0, len(whole), 50):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(CheckpointError):
            load_weights(path)


def test_the_packed_course_network_is_that_of_its_record():
    record = json.loads((RESULTS / "cifar10_course" / "metrics.json").read_text())
    about = origin_of(RESULTS / "cifar10_course" / "weights.safetensors.xz")
    assert {k: about[k] for k in record["trained"]} == record["trained"]
