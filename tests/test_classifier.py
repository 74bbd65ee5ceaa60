"""The classifiers of the image track: network, shifted images, tiny runs. Takes 10 s."""

import json
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import safetensors.torch
import torch
from truths import generator

from tutorial_lib import recipes
from tutorial_lib.cifar10 import Images
from tutorial_lib.denoiser import Condition
from tutorial_lib.guidance import label_log_prob, slope
from tutorial_lib.networks.classifier import ImageClassifier
from tutorial_lib.recipes import classifier, judge
from tutorial_lib.recipes.catalogue import TINY_TRUNK
from tutorial_lib.recipes.classifier import NETWORK, PROBED, ClassifierRun, kept, measure, shifted


def moved(image, down, right, flip):
    """Pad by reflection, cut, flip: with numpy, one image at a time."""
    side = image.shape[1]
    padded = np.pad(image, ((0, 0), (4, 4), (4, 4)), mode="reflect")
    cut = padded[:, 4 + down : 4 + down + side, 4 + right : 4 + right + side]
    return cut[:, :, ::-1] if flip else cut


def is_shifted(move):
    """Find, for each result, the one move that made it; every move must be made, as often."""
    pixels = torch.randint(256, (3, 16, 16), generator=generator(), dtype=torch.uint8)
    moves = [(d, r, f) for d in range(-4, 5) for r in range(-4, 5) for f in (False, True)]
    known = {moved(pixels.numpy(), *m).tobytes(): m for m in moves}
    made = move(pixels.expand(4000, -1, -1, -1), generator(1))
    found = [known.get(image.numpy().tobytes()) for image in made]
    if made.dtype != torch.uint8 or None in found:
        return False
    counts = np.unique([moves.index(m) for m in found], return_counts=True)[1]
    return len(counts) == len(moves) and counts.max() < 60  # of 24.7 on average


def test_images_are_shifted_and_flipped_one_by_one():
    assert is_shifted(shifted)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x, g: x.flip(3),
        lambda x, g: shifted(x, g).roll(1, 2),
        lambda x, g: shifted(x[:1], g).expand(len(x), -1, -1, -1),
    ],
    ids=["never shifted", "wrapped", "all alike"],
)
def test_wrong_shifts_are_seen(wrong):
    assert not is_shifted(wrong)


def test_cutout_hides_one_square_of_each_image():
    x = torch.ones(3000, 3, 32, 32)
    masks = kept(x, 12, generator(4))[:, 0]
    hidden = (1 - masks).sum((1, 2))
    for mask in masks[:50]:
        rows, columns = ((mask == 0).any(1 - axis).nonzero().flatten() for axis in (0, 1))
        assert len(rows) * len(columns) == (mask == 0).sum()  # a rectangle
        assert len(rows) <= 12 and len(columns) <= 12
    side = 12 - 2 * 6 * 6 / 32 / 2  # 12, less what falls outside on average: 6^2 / 32 in all
    assert float(hidden.mean()) == pytest.approx(side**2, rel=0.02)
    assert float(masks.mean(0).std()) < 0.1  # everywhere


def test_two_images_do_not_mix():
    two = torch.stack([torch.zeros(3, 8, 8), torch.full((3, 8, 8), 9)]).to(torch.uint8)
    assert shifted(two, generator())[:, 0, 0, 0].tolist() == [0, 9]


def test_the_head_reads_the_features_and_the_clock_matters():
    net = ImageClassifier(TINY_TRUNK, 10, generator=generator())
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator(1)))
    net.eval()
    x, clock = torch.randn(4, 3, 32, 32, generator=generator(2)), torch.full((4,), 0.7)
    assert torch.equal(net(x, clock), net.head(net.features(x, clock)))
    assert torch.equal(net(x), net(x, torch.zeros(4)))
    assert (net(x, clock) - net(x)).abs().max() > 1e-3
    net(x, clock).sum().backward()
    idle = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert [name for name in idle if not name.endswith("key.bias")] == []  # softmax forgets that


def test_the_trunk_is_small_enough_to_ship():
    with mock.patch("tutorial_lib.networks.classifier.initialise_unet"):
        weights = sum(p.numel() for p in ImageClassifier(NETWORK, 10, generator=None).parameters())
    assert weights * 2 < 4e6  # bytes in bfloat16


class Knowing(torch.nn.Module):
    """Say the colour of an image's first pixel, doubting it in proportion to the clock."""

    def forward(self, x, clock=None):
        colour = ((x[:, 0, 0, 0] + 1) * 127.5).round().long().clamp(0, 9)
        logits = torch.nn.functional.one_hot(colour, 10) * 50.0
        return logits if clock is None else logits * (clock[:, None] > 0)


def test_accuracy_counts_the_right_ones():
    labels = torch.arange(10).repeat(70)
    pixels = labels[:, None, None, None].expand(-1, 3, 32, 32).to(torch.uint8)
    wrong = labels.clone()
    wrong[:140] += 1
    run = ClassifierRun(steps=1, device="cpu")
    found = measure(Knowing(), Images(pixels, wrong % 10, ("x",) * 10, "plain"), run)
    assert found["accuracy"] == {"0.0": 0.8}
    assert found["cross_entropy"]["0.0"] == pytest.approx(0.2 * 50, abs=1e-3)
    noisy = measure(
        Knowing(), Images(pixels, labels, ("x",) * 10, "plain"), replace(run, noisy=True)
    )
    assert list(noisy["accuracy"]) == [str(t) for t in PROBED]
    assert noisy["accuracy"]["0.0"] == 1.0 and noisy["accuracy"]["1.0"] < 0.2


@pytest.mark.parametrize("name", ["cifar10_classifier", "cifar10_noisy_classifier"])
def test_a_tiny_run_leaves_weights_that_work(tmp_path, monkeypatch, name):
    def images(split, *, source=None, limit=None):
        labels = torch.arange(limit) % 10
        colours = torch.randint(256, (10, 3, 1, 1), generator=generator(3))
        noise = torch.randint(20, (limit, 3, 32, 32), generator=generator(len(split)))
        pixels = (colours[labels] + noise).clamp(max=255).to(torch.uint8)
        return Images(pixels, labels, tuple("abcdefghij"), "colours")

    monkeypatch.setattr(classifier, "cifar10", images)
    metrics = recipes.run(name, tiny=True, out=str(tmp_path), steps=150, learning_rate=1e-2)
    assert json.loads((tmp_path / "metrics.json").read_text())["accuracy"] == metrics["accuracy"]
    log = [json.loads(line)["loss"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert sum(log[-10:]) < sum(log[:10])
    net = ImageClassifier(TINY_TRUNK, 10, generator=generator(9))
    net.load_state_dict(safetensors.torch.load_file(tmp_path / "weights.safetensors"))
    again = measure(net.eval(), images("test", limit=32), ClassifierRun(steps=1, device="cpu"))
    if name == "cifar10_classifier":
        assert metrics["accuracy"]["0.0"] > 0.5
        assert again["accuracy"]["0.0"] == pytest.approx(metrics["accuracy"]["0.0"], abs=0.07)


def test_there_is_no_small_form():
    with pytest.raises(ValueError, match="cifar10_classifier has no small form"):
        recipes.run("cifar10_classifier", small=True)


def test_the_recorded_noisy_classifier_guides():
    """Its gradient, in float32, is that of the log-probability it states: by differences."""
    classifier = judge.load_noisy_classifier()
    colours = torch.rand(10, 3, 1, 1, generator=generator(3))
    smooth = (colours * 2 - 1) * torch.linspace(0.2, 1, 32)  # a picture, more or less
    t, eps = 0.3, torch.randn(10, 3, 32, 32, generator=generator(4))
    xt, cond = classifier.schedule.add_noise(smooth, eps, t), Condition(torch.arange(10))
    log_prob = label_log_prob(classifier)
    found = slope(log_prob, xt, t, cond)
    along = found / found.flatten(1).norm(dim=1)[:, None, None, None]
    ends = [log_prob(xt + h * along, t, cond) for h in (0.05, -0.05)]
    assert found.dtype == torch.float32
    rates = found.flatten(1).norm(dim=1)
    assert torch.allclose((ends[0] - ends[1]) / 0.1, rates, rtol=0.05)
    other = classifier(xt, 0.9).log_softmax(1) - classifier(xt, t).log_softmax(1)
    assert other.abs().max() > 0.5  # it knows the noise level


def test_a_noisy_classifier_without_weights_is_told():
    path = judge.NOISY_WEIGHTS.parent.with_name("absent") / "weights.safetensors"
    with pytest.raises(FileNotFoundError, match="run the recipe absent first"):
        judge.load_noisy_classifier(path)
