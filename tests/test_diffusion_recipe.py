"""The diffusion recipes, tiny and on invented images, and how their samples are judged. 20 s."""

import json
import math
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import safetensors.torch
import scipy.linalg
import torch
from PIL import Image
from truths import generator

from tutorial_lib import recipes
from tutorial_lib.cifar10 import Images
from tutorial_lib.denoiser import Prediction
from tutorial_lib.gaussian import DiscretisedGaussian
from tutorial_lib.losses import StepImportance
from tutorial_lib.networks.unet import UNet
from tutorial_lib.recipes import diffusion, judge
from tutorial_lib.recipes.diffusion import objective
from tutorial_lib.recipes.diffusion_run import denoiser, fresh_network
from tutorial_lib.recipes.evaluate import bound, draw, flow_bound
from tutorial_lib.samplers import beta, learned_range
from tutorial_lib.schedule import DiscreteVP
from tutorial_lib.train import TrainConfig, train

COURSE = recipes.RECIPES["cifar10_course"]
DDPM = recipes.RECIPES["cifar10_ddpm"]


def invented(split, *, source=None, limit=None):
    """Flat images whose colour is their class, and a little noise."""
    labels = torch.arange(limit) % 10
    noise = torch.randint(8, (limit, 3, 32, 32), generator=generator(len(split)))
    pixels = (25 * labels[:, None, None, None] + noise).to(torch.uint8)
    return Images(pixels, labels, tuple("abcdefghij"), "colours")


@pytest.fixture
def no_classifier(monkeypatch, tmp_path):
    monkeypatch.setattr(diffusion, "cifar10", invented)
    monkeypatch.setattr(judge, "WEIGHTS", tmp_path / "absent")


def log_lines(folder):
    return (folder / "log.jsonl").read_text().splitlines()


@pytest.mark.parametrize(
    "name",
    [
        *("cifar10_ddpm", "cifar10_iddpm", "cifar10_course", "cifar10_short_vlb_importance"),
        "cifar10_short_dit",
    ],
)
def test_a_tiny_run_leaves_its_record(no_classifier, tmp_path, name):
    (tmp_path / "milestones").mkdir()
    (tmp_path / "milestones" / "0000003.safetensors").write_bytes(b"of an earlier run")
    metrics = recipes.run(name, tiny=True, out=str(tmp_path), steps=40, learning_rate=3e-3)
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    parts = metrics["prior"] + metrics["steps"] + metrics["reconstruction"]
    assert metrics["bits_per_dim"] == pytest.approx(parts, abs=3e-4)
    assert metrics["config"]["chain"].startswith("DiscreteVP.")
    assert "fd_classifier" not in metrics
    log = [json.loads(line)["loss"] for line in log_lines(tmp_path)]
    assert sum(log[-10:]) < 0.9 * sum(log[:10])
    assert Image.open(tmp_path / "samples.jpg").size == (20 * 32, 32)
    assert Image.open(tmp_path / "progress.jpg").size == (20 * 32, 2 * 32)
    net = fresh_network(recipes.RECIPES[name].tiny)
    net.load_state_dict(safetensors.torch.load_file(tmp_path / "weights.safetensors"))
    net.load_state_dict(safetensors.torch.load_file(tmp_path / "best.safetensors"))
    held_out = [json.loads(line)["held_out"] for line in log_lines(tmp_path)]
    best = metrics["held_out_loss"]
    assert best["last"] == held_out[-1] and best["best"] == min(held_out)
    assert best["best_step"] == 1 + held_out.index(min(held_out))
    assert [point["images_seen"] for point in metrics["curve"]] == [
        16 * n for n in (6, 12, 25, 40)
    ]
    assert metrics["curve"][-1]["bits_per_dim"] < metrics["curve"][0]["bits_per_dim"]
    assert metrics["flow"]["evaluations"] == 12


def test_a_run_stopped_in_its_measurement_needs_only_its_weights(
    no_classifier, tmp_path, monkeypatch
):
    """The checkpoint, eight times as large, may be gone, and the program may be a later one."""
    whole = {"tiny": True, "out": str(tmp_path), "checkpoint": True}
    monkeypatch.setenv("COURSE_COMMIT", "trained")
    first = recipes.run("cifar10_course", **whole)
    (tmp_path / "checkpoint.safetensors").unlink()
    (tmp_path / "metrics.json").unlink()
    monkeypatch.setenv("COURSE_COMMIT", "measured")
    with mock.patch.object(diffusion, "_fit", side_effect=AssertionError("trained again")):
        again = recipes.run("cifar10_course", **whole)
    assert first["trained"]["commit"] == again["trained"]["commit"] == "trained"
    assert first["trained"]["recipe"] == "cifar10_course" and first["trained"]["device"]
    assert again == first | {"commit": "measured"}
    with mock.patch.object(diffusion, "_fit", side_effect=KeyboardInterrupt):
        for change in ({"steps": 21}, {"seed": 1}, {"checkpoint": False}):
            with pytest.raises(KeyboardInterrupt):
                recipes.run("cifar10_course", **whole | change)


def test_the_published_network_and_the_courses():
    assert DDPM.full.network.out_channels == 3 and DDPM.full.variance is beta
    assert COURSE.full.variance is learned_range
    with mock.patch("tutorial_lib.networks.unet.initialise_unet"):
        net = UNet(COURSE.full.network, generator=None)
    weights = sum(p.numel() for p in net.parameters())
    assert 14e6 < 2 * weights < 15e6  # bytes in bfloat16


def trained_net(config):
    net = UNet(config.network, generator=generator(1))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator(2)))
    return net.eval()


def test_labels_are_dropped_with_their_probability():
    net, data = trained_net(COURSE.tiny), invented("train", limit=40)
    other = (data.labels + 3) % 10

    def costs(unlabelled, labels):
        cost = objective(replace(COURSE.tiny, unlabelled=unlabelled))
        with torch.no_grad():
            return cost(net, (data.pixels, labels), generator(4))

    assert torch.equal(costs(1.0, data.labels), costs(1.0, other))
    assert (costs(0.0, data.labels) != costs(0.0, other)).all()
    some = (costs(0.5, data.labels) != costs(0.5, other)).sum()
    assert 8 < int(some) < 32


def test_the_loss_is_a_mean_over_dimensions_of_the_noise():
    """A network that answers zero owes the noise itself, 1 for every dimension."""
    config = DDPM.tiny
    net = UNet(config.network, generator=generator())  # zero as it starts
    data = invented("train", limit=64)
    with torch.no_grad():
        cost = objective(config)(net, (data.pixels, data.labels), generator(5))
    assert cost.shape == (64,) and float(cost.mean()) == pytest.approx(1, abs=0.02)


def test_the_bound_alone_teaches_the_mean_where_hybrid_stops_its_gradient():
    """The head of the mean is the first half of the last layer's channels."""
    data = invented("train", limit=20)

    def pull_of_the_bound(loss):
        config = replace(COURSE.tiny, loss=loss, unlabelled=0.0)
        net = trained_net(config)
        cost = objective(config)(net, (data.pixels, data.labels), generator(5))
        cost.sum().backward()
        return float(cost.mean()), net.last[-1].weight.grad[:3]

    (hybrid, gradient), (vlb, other) = (pull_of_the_bound(loss) for loss in ("hybrid", "vlb"))
    assert vlb > 10 * hybrid  # nats of a whole chain
    cosine = torch.nn.functional.cosine_similarity(gradient.flatten(), other.flatten(), 0)
    assert abs(float(cosine)) < 0.999 and float(other.norm()) > 0


IMPORTANT = replace(COURSE.tiny, loss="vlb_importance")


def fit_by_importance(path, stop=None):
    """Train for 30 steps, or until a watcher stops it, and return the network."""

    def watch(told):
        if told.step == stop:
            raise InterruptedError

    net, data = fresh_network(IMPORTANT), invented("train", limit=64)
    net.importance = StepImportance(IMPORTANT.n_steps)
    config = TrainConfig(30, 16, 1e-3, log_every=5, checkpoint_every=10)
    pair = (data.pixels, data.labels)
    return train(net, pair, objective(IMPORTANT), config, checkpoint=path, watch=watch).module


def test_steps_drawn_by_importance_keep_the_mean_with_less_noise(tmp_path):
    net, data = fit_by_importance(tmp_path / "run"), invented("train", limit=64)
    assert float(net.importance.probabilities[0]) > 3 / IMPORTANT.n_steps  # the decoder's
    pair = data.pixels.repeat(15, 1, 1, 1), data.labels.repeat(15)
    with torch.no_grad():
        even = objective(IMPORTANT, evenly=True)(net, pair, generator(6))
        drawn = objective(IMPORTANT)(net, pair, generator(7))
    off = (even.var() / len(even) + drawn.var() / len(drawn)).sqrt()
    assert abs(float(even.mean() - drawn.mean())) < 5 * float(off)
    assert float(drawn.var()) < 0.7 * float(even.var())


def test_the_history_of_losses_is_in_the_checkpoint_and_not_in_the_weights(tmp_path):
    whole = fit_by_importance(tmp_path / "whole")
    with pytest.raises(InterruptedError):
        fit_by_importance(tmp_path / "parts", stop=25)
    resumed = fit_by_importance(tmp_path / "parts")
    assert "importance.history" not in whole.state_dict()
    assert torch.equal(whole.importance.history, resumed.importance.history)
    assert all(map(torch.equal, whole.parameters(), resumed.parameters()))


def test_an_unknown_loss_is_refused():
    with pytest.raises(ValueError, match="hybrid, vlb, vlb_importance, not 'simple'"):
        objective(replace(COURSE.tiny, loss="simple"))


class Truth:
    """The exact denoiser of images whose dimensions are N(0, 0.3^2)."""

    def __init__(self, config):
        self.schedule = config.chain(config.n_steps)

    def __call__(self, xt, t, cond=None):
        level = self.schedule.at(t, like=xt)
        spread = level.alpha**2 * 0.09 + level.sigma**2
        found = Prediction.from_x0(xt, level, level.alpha * 0.09 / spread * xt)
        return replace(found, variance_fraction=torch.full_like(xt, 0.5))


def test_the_bound_of_a_known_model_is_near_its_entropy():
    config = replace(DDPM.tiny, n_steps=200, bound_images=40, chain=DiscreteVP.linear)
    x = 0.3 * torch.randn(40, 3, 32, 32, generator=generator(6))
    pixels = ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    data = Images(pixels, torch.zeros(40).long(), ("a",), "noise")
    found = bound(Truth(config), data, config)
    real = pixels.double() / 127.5 - 1
    entropy = -DiscretisedGaussian(torch.zeros_like(real), 0.09).log_prob(real).mean()
    gap = found["bits_per_dim"] - float(entropy) / (3072 * math.log(2))
    assert 0 < gap < 0.5  # what beta wastes in 200 steps


def test_the_flow_of_a_known_model_is_near_its_entropy():
    """Its last noise, sigma = 0.01, and the uniform noise of a step cost next to nothing here."""
    chain = {"n_steps": 1000, "flow_steps": 24, "chain": DiscreteVP.linear}
    config = replace(DDPM.tiny, flow_images=40, **chain)
    x = 0.3 * torch.randn(40, 3, 32, 32, generator=generator(6))
    pixels = ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    data = Images(pixels, torch.zeros(40).long(), ("a",), "noise")
    found = flow_bound(Truth(config), data, config)
    real = pixels.double() / 127.5 - 1
    entropy = -DiscretisedGaussian(torch.zeros_like(real), 0.09).log_prob(real).mean()
    gap = found["bits_per_dim"] - float(entropy) / (3072 * math.log(2))
    assert abs(gap) < 0.01 and found["images"] == 40 and found["evaluations"] == 96


def test_samples_of_a_known_model_have_its_spread():
    config = replace(DDPM.tiny, n_steps=200, sample_steps=100, samples=40)
    pixels, labels = draw(Truth(config), config)
    spread = float((pixels.double() / 127.5 - 1).std())
    assert spread == pytest.approx(0.3, rel=0.05)
    assert labels.tolist() == [0] * 40


def test_every_class_is_drawn_alike():
    config = replace(COURSE.tiny, samples=30)
    pixels, labels = draw(denoiser(trained_net(config), config), config)
    assert pixels.shape == (30, 3, 32, 32) and pixels.dtype == torch.uint8
    assert torch.bincount(labels).tolist() == [3] * 10


class Colours(torch.nn.Module):
    """Features that are mean colours, and a head that knows them."""

    def features(self, x, clock=None):
        mean = (x.mean((2, 3)) + 1) * 127.5
        return torch.cat([mean, mean.square() / 255], dim=1)

    def head(self, seen):
        return -((seen[:, :1] - 25 * torch.arange(10) - 3.5).abs())


def test_scores_tell_good_samples_from_bad():
    real, fresh = invented("train", limit=400), invented("tests", limit=400)
    bad = torch.randint(256, (400, 3, 32, 32), generator=generator(7)).to(torch.uint8)
    by = judge.Judge(Colours(), real.pixels)
    good = by.scores(fresh.pixels, fresh.labels)
    assert good["accuracy"] == 1.0 and good["samples"] == good["reference_images"] == 400
    worse = by.scores(bad, fresh.labels)
    assert worse["fd_classifier"] > 100 * good["fd_classifier"]
    assert worse["accuracy"] < 0.3 and worse["recall"] < good["recall"]
    one_class = fresh.pixels[fresh.labels == 2].repeat(10, 1, 1, 1)
    narrow = by.scores(one_class, None)
    assert narrow["precision"] > 0.9 and narrow["recall"] < 0.3 and "accuracy" not in narrow


def test_a_run_is_judged_where_the_classifier_is(monkeypatch, tmp_path):
    monkeypatch.setattr(diffusion, "cifar10", invented)
    weights = tmp_path / "weights.safetensors"
    weights.touch()
    monkeypatch.setattr(judge, "WEIGHTS", weights)
    monkeypatch.setattr(judge, "load_classifier", lambda path=None, device="cpu": Colours())
    metrics = recipes.run("cifar10_course", tiny=True, out=str(tmp_path / "run"))
    assert metrics["floor"]["fd_classifier"] < metrics["fd_classifier"]
    assert 0 <= metrics["accuracy"] <= 1 and "accuracy" not in metrics["floor"]


def test_the_recorded_classifier_loads():
    net = judge.load_classifier()
    record = json.loads((judge.WEIGHTS.parent / "metrics.json").read_text())
    assert record["accuracy"]["0.0"] >= 0.9
    blank = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    assert judge.Judge(net, blank).real.shape == (2, 128)
    with pytest.raises(FileNotFoundError, match="run the recipe cifar10_classifier first"):
        judge.load_classifier(judge.WEIGHTS.with_name("absent"))


class Pool(torch.nn.Module):
    """The interface of NVIDIA's Inception in TorchScript, with mean colours for features."""

    def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        if return_features:
            return x.float().mean((2, 3))
        return x.float().mean((1, 2, 3))


def test_fid_uses_the_network_that_a_user_has(no_classifier, tmp_path):
    path = tmp_path / "inception-2015-12-05.pt"
    torch.jit.script(Pool()).save(str(path))
    real, made = invented("train", limit=700).pixels, 255 - invented("test", limit=600).pixels
    found = judge.fid(judge.load_inception(str(path)), made, real)
    means = [x.double().mean((2, 3)).numpy() for x in (made, real)]
    covariances = [np.cov(m, rowvar=False) for m in means]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    exact = ((means[0].mean(0) - means[1].mean(0)) ** 2).sum()
    exact += np.trace(covariances[0] + covariances[1] - 2 * root)
    assert found == pytest.approx(exact, rel=1e-3)  # scipy's root of a singular product is rough
    metrics = recipes.run("cifar10_ddpm", tiny=True, out=str(tmp_path), inception=str(path))
    assert metrics["fid"] > 1 and metrics["config"]["inception"] is None
    (tmp_path / "other.pt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is no TorchScript network"):
        judge.load_inception(str(tmp_path / "other.pt"))
