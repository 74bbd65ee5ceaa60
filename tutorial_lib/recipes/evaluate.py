"""Measure a trained diffusion model of images: its bounds, its samples and what they score."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from tutorial_lib.cifar10 import Images, to_floats, to_pixels
from tutorial_lib.denoiser import Condition, Denoiser
from tutorial_lib.gaussian import HALF_BIN
from tutorial_lib.guidance import StaticThreshold
from tutorial_lib.likelihood import (
    chain_bound,
    flow_log_likelihood,
    hutchinson,
    pixel_decoder,
    random_signs,
)
from tutorial_lib.networks.embeddings import NULL_LABEL
from tutorial_lib.recipes import judge
from tutorial_lib.recipes.diffusion_run import DiffusionRun, denoiser, fresh_network
from tutorial_lib.recipes.record import Metrics, load_weights, save_sheet
from tutorial_lib.samplers import ancestral, ddim, final
from tutorial_lib.schedule import log_snr_times, uniform_times

BATCH = 500
FLOW_BATCH = 125  # its gradients are taken in float32, and keep what a forward pass computed
CURVE_STEPS = 50  # of the DDIM samples that the curve of a training is drawn from


def evaluate(config: DiffusionRun, images: Images, unseen: Images, out: Path) -> Metrics:
    """Return everything that is measured of the network kept in `out`, and draw its samples."""
    net = fresh_network(config).eval().requires_grad_(False)
    real = images.pixels.to(config.device)
    by = judge_of(config.device, real)
    whole = {"dynamic": False, "fullgraph": True}
    fast = torch.compile(net, **whole) if config.compiled else net  # with net's own weights
    model, asked = denoiser(fast, config), config.network.n_classes > 0
    curve = [
        _milestone(path, net, model, config, unseen, by)
        for path in [*sorted((out / "milestones").glob("*")), out / "weights.safetensors"]
    ]
    pixels, labels = draw(model, config)
    save_sheet(to_floats(pixels[:200]), 20, out / "samples.jpg")
    found = bound(model, unseen, config) | {"evaluations_per_sample": config.sample_steps}
    if by is not None:
        found |= by.scores(pixels, labels if asked else None)
        found["floor"] = by.scores(unseen.pixels.to(config.device), None)
    if config.inception is not None:
        features = judge.load_inception(config.inception, config.device)
        found["fid"] = round(judge.fid(features, pixels, real), 4)
    found["flow"] = flow_bound(denoiser(net, config, half=False), unseen, config)
    return found | {"curve": curve, "parameters": sum(p.numel() for p in net.parameters())}


def judge_of(
    device: str, real: Tensor, weights: Path | None = None, clock: float = 0.0
) -> judge.Judge | None:
    """Return who scores samples against real pixels, if that classifier has been trained.

    It is the one of clean pictures, or that of `weights`, asked at `clock`.
    """
    weights = weights or judge.WEIGHTS
    if not weights.exists():
        return None
    return judge.Judge(judge.load_classifier(weights, device), real, clock)


def _milestone(
    path: Path,
    net: nn.Module,
    model: Denoiser,
    config: DiffusionRun,
    unseen: Images,
    by: judge.Judge | None,
) -> Metrics:
    """Load weights that a run kept on its way, and return what they are worth."""
    net.load_state_dict(load_weights(path)[0])
    steps = int(path.stem) if path.stem.isdigit() else config.steps
    found = bound(model, unseen, config, config.curve_images)
    found = {key: found[key] for key in ("bits_per_dim", "standard_error")}
    if by is not None:
        pixels, labels = draw(model, config, config.curve_samples)
        scores = by.scores(pixels, labels if config.network.n_classes else None)
        found |= {k: scores[k] for k in scores if k not in ("samples", "reference_images")}
    return {"images_seen": steps * config.batch_size, **found}


def draw(model: Denoiser, config: DiffusionRun, n: int | None = None) -> tuple[Tensor, Tensor]:
    """Return sampled pixels (N, 3, H, W) and the labels asked for (N,), all classes alike.

    The run's samples are ancestral, with its variance; where `n` says how many, DDIM's.
    """
    model = StaticThreshold(model)  # at little signal x_0 is the noise's error times 1 / alpha
    net, device = config.network, config.device
    generator = Generator(device).manual_seed(config.seed + 1)
    labels = torch.arange(n or config.samples, device=device) % max(1, net.n_classes)
    made = []
    for rows in labels.split(BATCH):
        shape = (len(rows), net.in_channels, net.side, net.side)
        x = torch.randn(shape, generator=generator, device=device)
        cond = Condition(label=rows) if net.n_classes else None
        if n is None:
            times, how = uniform_times(config.sample_steps), {"variance": config.variance}
            walk = ancestral(model, x, times, cond, generator=generator, **how)
        else:
            walk = ddim(model, x, uniform_times(min(CURVE_STEPS, config.sample_steps)), cond)
        made.append(to_pixels(final(walk)))
    return torch.cat(made), labels


@torch.no_grad()
def bound(model: Denoiser, unseen: Images, config: DiffusionRun, n: int | None = None) -> Metrics:
    """Return the bound on unseen images in bits/dim, without labels, all steps, and its parts."""
    model = StaticThreshold(model)
    generator = Generator(config.device).manual_seed(config.seed + 2)
    pixels = unseen.pixels[: n or config.bound_images].to(config.device)
    times = uniform_times(config.n_steps)[:-1]
    settings = {"variance": config.variance, "decoder": pixel_decoder(config.variance)}
    parts = [
        chain_bound(
            model, to_floats(x), times, unlabelled(x, config), generator=generator, **settings
        )
        for x in pixels.split(BATCH)
    ]
    bits = pixels[0].numel() * math.log(2)
    return {
        **_mean_and_error(torch.cat([part.total for part in parts]) / bits),
        "prior": round(_mean(part.prior for part in parts) / bits, 6),
        "steps": round(_mean(part.steps.sum(1) for part in parts) / bits, 4),
        "reconstruction": round(_mean(part.reconstruction for part in parts) / bits, 4),
        "bound_images": len(pixels),
        "per_step": _by_step(torch.cat([part.steps for part in parts]) / bits),
    }


def _by_step(bits: Tensor) -> list[float]:
    """Return the mean of each step's term (B, n_steps), from data to noise, 3 digits each."""
    return [float(f"{x:.2e}") for x in bits.double().mean(0).flip(0).tolist()]


def flow_bound(model: Denoiser, unseen: Images, config: DiffusionRun) -> Metrics:
    """Return the probability flow's bits/dim on dequantised unseen images, without labels.

    Uniform noise of one 8-bit step makes -log p(x) a bound on the bits of the pixels (Theis et al.
    2016, section 3.1; Song et al. 2021, Score SDE, section 4.3). The flow ends at t = 1 / T, the
    least noise that the network was trained on: what lies before it is not asked. No x_0 is
    clipped: a divergence wants a smooth field.
    """
    generator = Generator(config.device).manual_seed(config.seed + 3)
    pixels = unseen.pixels[: config.flow_images].to(config.device)
    times = log_snr_times(model.schedule, config.flow_steps, 1 / config.n_steps)
    nats = []
    for rows in pixels.split(FLOW_BATCH):
        x = to_floats(rows)
        x += HALF_BIN * (2 * torch.rand(x.shape, generator=generator, device=x.device) - 1)
        estimate = hutchinson(random_signs(x, generator=generator))
        found = flow_log_likelihood(model, x, times, unlabelled(rows, config), divergence=estimate)
        nats.append(-found / x[0].numel() - math.log(2 * HALF_BIN))
    evaluations = {"images": len(pixels), "evaluations": 4 * config.flow_steps}
    return _mean_and_error(torch.cat(nats) / math.log(2)) | evaluations


def unlabelled(x: Tensor, config: DiffusionRun) -> Condition | None:
    """Return the condition "no label" for images (B, ...), if the network knows labels."""
    if not config.network.n_classes:
        return None
    return Condition(label=torch.full((len(x),), NULL_LABEL, device=x.device))


def _mean_and_error(bits: Tensor) -> Metrics:
    return {
        "bits_per_dim": round(bits.double().mean().item(), 4),
        "standard_error": round(bits.double().std().item() / len(bits) ** 0.5, 4),
    }


def _mean(rows: Iterable[Tensor]) -> float:
    return torch.cat(list(rows)).double().mean().item()
