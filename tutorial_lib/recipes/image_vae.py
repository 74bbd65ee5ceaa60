"""Train an image VAE, of one level or several, and measure its bound in bits per dimension."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from tutorial_lib import ranks
from tutorial_lib.autoencoder import Bound, HierarchicalVAE, Stage, image_vae
from tutorial_lib.cifar10 import Images, cifar10, to_floats
from tutorial_lib.recipes.record import (
    Metrics,
    OnCifar10,
    TrainingRun,
    save_sheet,
    write_metrics,
    written_by,
)
from tutorial_lib.train import TrainResult, train

NATS_PER_BIT = math.log(2)


@dataclass(frozen=True, kw_only=True)
class ImageVAERun(TrainingRun, OnCifar10):
    """Fix an image VAE: its levels, from the pixels up, and how long it trains on what."""

    stages: tuple[Stage, ...]
    steps: int = 5_000
    batch_size: int = 256
    learning_rate: float = 6e-4


def run_image_vae(name: str, config: ImageVAERun, out: Path) -> Metrics:
    """Train, measure on unseen images, and leave the record with reconstructions and samples."""
    images = cifar10("train", source=config.source, limit=config.images)
    unseen = cifar10("test", source=config.source, limit=config.test_images)
    generator = torch.Generator(config.device).manual_seed(config.seed)
    result = _fit(name, config, images, out)
    if not ranks.leads():
        return {}
    vae = result.ema
    test = unseen.pixels.to(config.device)
    found = {
        "data": images.form,
        **measure(vae, test, generator),
        "parameters": sum(p.numel() for p in vae.parameters()),
        "seconds": round(result.seconds, 1),
    }
    metrics = write_metrics(out, name, config, found)
    _draw(vae, test[:16], generator, out)
    return metrics


def headline(found: Metrics) -> str:
    """Say in a few words what a run found."""
    return f"{found['bits_per_dim']:.3f} ± {found['standard_error']:.3f} bits/dim"


def _fit(name: str, config: ImageVAERun, images: Images, out: Path) -> TrainResult:
    drawn = torch.Generator().manual_seed(config.seed)
    vae = image_vae(config.stages, generator=drawn)
    vae = vae.to(config.device, memory_format=torch.channels_last)

    def objective(vae: HierarchicalVAE, pixels: Tensor, generator: Generator) -> Tensor:
        flip = torch.rand(len(pixels), generator=generator, device=pixels.device) < 0.5
        pixels = torch.where(flip[:, None, None, None], pixels.flip(3), pixels)
        return -_bound(vae, pixels, generator).elbo / (pixels[0].numel() * NATS_PER_BIT)

    kept = {"checkpoint": config.checkpoint_in(out), "about": written_by(name)}
    return train(
        vae, images.pixels, objective, config.schedule(), **kept, watch=config.journal(out)
    )


def _bound(vae: HierarchicalVAE, pixels: Tensor, generator: Generator) -> Bound:
    """Run the networks in bfloat16 on a GPU (2.5 times as fast); likelihoods stay float32."""
    x = to_floats(pixels).contiguous(memory_format=torch.channels_last)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=x.device.type == "cuda"):
        return vae(x, generator=generator)


@torch.no_grad()
def measure(vae: HierarchicalVAE, pixels: Tensor, generator: Generator) -> dict[str, Any]:
    """Return the bound on unseen images in bits/dim, its standard error and its parts."""
    bounds = [_bound(vae, batch, generator) for batch in pixels.split(500)]
    bits = pixels[0].numel() * NATS_PER_BIT
    reconstruction = -torch.cat([b.reconstruction for b in bounds]).double() / bits
    kl = torch.cat([b.kl for b in bounds]).double() / bits
    total = reconstruction + kl.sum(1)
    return {
        "bits_per_dim": round(total.mean().item(), 4),
        "standard_error": round(total.std().item() / len(total) ** 0.5, 4),
        "reconstruction": round(reconstruction.mean().item(), 4),
        "kl_of_levels": [round(level, 4) for level in kl.mean(0).tolist()],
    }


@torch.no_grad()
def _draw(vae: HierarchicalVAE, pixels: Tensor, generator: Generator, out: Path) -> None:
    """Store unseen images above their reconstructions from every level, and 64 samples."""
    x = to_floats(pixels)
    levels = range(1, len(vae.encoders) + 1)
    rows = [x, *(vae.reconstruct(x, level) for level in levels)]
    save_sheet(torch.cat(rows), len(x), out / "reconstructions.jpg")
    made = vae.generate(64, generator=generator).mean
    save_sheet(made, 16, out / "samples.jpg")
