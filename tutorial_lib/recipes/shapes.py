"""Pictures and captions of the shape world by the million, and the oracle that judges them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from tutorial_lib import pretrained
from tutorial_lib.captions import all_claims, caption_tokens, draw_claims, holds
from tutorial_lib.cifar10 import to_floats, to_pixels
from tutorial_lib.metrics import frechet_distance_of_samples
from tutorial_lib.oracle import Oracle, Reading, read, reading_error, shares_right
from tutorial_lib.recipes.record import (
    Metrics,
    TrainingRun,
    origin,
    save_weights,
    write_metrics,
    written_by,
)
from tutorial_lib.shape_world import HELD_OUT, Scenes, draw_scenes, render
from tutorial_lib.train import train

WORLD = "the shape world"
CHUNK = 20_000  # scenes that are rendered at a time
READ = ("present", "size", "colour", "shape", "centre")


@dataclass(frozen=True, kw_only=True)
class OracleRun(TrainingRun):
    """Fix how long the oracle learns, on `images` scenes, and on how many others it is tested."""

    images: int = 400_000
    tested: int = 20_000
    noise: float = 0.05  # at most, that is added to its pictures: generated ones have some


def scene_pool(
    n: int, *, seed: int, device: str, held_out: Iterable[tuple[str, str]] = (), side: int = 32
) -> Iterable[tuple[Scenes, Tensor, Tensor]]:
    """Draw `n` scenes with their pixels (n, 3, side, side) and captions' tokens, in parts."""
    generator = Generator(device).manual_seed(seed)
    pairs = tuple(held_out)
    with torch.device(device):
        for start in range(0, n, CHUNK):
            rows = min(CHUNK, n - start)
            scenes = draw_scenes(rows, generator=generator, held_out=pairs)
            claims = draw_claims(scenes, generator=generator)
            tokens = caption_tokens(claims, generator=generator)
            yield scenes, to_pixels(render(scenes, side)), tokens


def captioned_pictures(n: int, *, seed: int, device: str, side: int = 32) -> tuple[Tensor, Tensor]:
    """Return pixels (n, 3, side, side) and tokens (n, L) to train on, without pairs held out."""
    parts = scene_pool(n, seed=seed, device=device, held_out=HELD_OUT, side=side)
    pixels, tokens = zip(*((p, t) for _, p, t in parts), strict=True)
    return torch.cat(pixels), torch.cat(tokens)


@torch.no_grad()
def clip_distance(made: Tensor, real: Tensor, device: str) -> float:
    """Return the Frechet distance of pictures (N, 3, 32, 32) and others in CLIP's embeddings."""
    clip = pretrained.clip(device)
    seen = [torch.cat([clip.image(part) for part in x.split(1000)]).double() for x in (made, real)]
    return round(frechet_distance_of_samples(*seen), 5)


def run_oracle(name: str, config: OracleRun, out: Path) -> Metrics:
    """Train the oracle, on every pair of colour and shape, and measure what it takes to fail."""
    parts = [
        (pixels, *(getattr(scenes, kind) for kind in READ))
        for scenes, pixels, _ in scene_pool(config.images, seed=config.seed, device=config.device)
    ]
    data = tuple(torch.cat(column) for column in zip(*parts, strict=True))
    net = Oracle(generator=Generator().manual_seed(config.seed)).to(config.device)

    def objective(net: Oracle, batch: tuple[Tensor, ...], generator: Generator) -> Tensor:
        pixels, *labels = batch
        x = to_floats(pixels)
        size = torch.rand(len(x), 1, 1, 1, generator=generator, device=x.device)
        noise = torch.randn(x.shape, generator=generator, device=x.device)
        return reading_error(net(x + config.noise * size * noise), Reading(*labels))

    about = {"checkpoint": config.checkpoint_in(out), "about": written_by(name)}
    result = train(net, data, objective, config.schedule(), **about, watch=config.journal(out))
    save_weights(result.ema, out / "weights.safetensors", origin(name, config.device))
    found = {"data": WORLD, **oracle_tests(result.ema, config.tested, config.device)}
    found |= {"parameters": sum(p.numel() for p in net.parameters())}
    return write_metrics(out, name, config, found | {"seconds": round(result.seconds, 1)})


def oracle_headline(found: Metrics) -> str:
    """Say in a few words what the oracle can do."""
    return f"everything right in {100 * found['clean']['everything']:.2f} % of clean pictures"


@torch.no_grad()
def oracle_tests(oracle: Oracle, n: int, device: str) -> Metrics:
    """Return how well the oracle reads `n` clean pictures, and how it fails on spoilt ones.

    Spoilt are noise (how often it reads anything there), means of two pictures (read as the
    first), and pictures blurred over some pixels.
    """
    with torch.device(device):
        generator = Generator(device).manual_seed(1)
        scenes = draw_scenes(n, generator=generator)
        x, claims = render(scenes), all_claims(scenes)
        noise = torch.randn(n, 3, 32, 32, generator=generator) / 2

        def right(pictures: Tensor) -> float:
            return round(float(holds(claims, read_all(oracle, pictures)).double().mean()), 4)

        shares = shares_right(scenes, read_all(oracle, x))
        clean = {name: round(share, 4) for name, share in shares.items()}
        seen = read_all(oracle, noise).present.any(1).double().mean()
        return {
            "clean": clean | {"everything": right(x)},
            "noise_read_as_something": round(float(seen), 4),
            "blend_read_as_one": right((x + x.roll(1, 0)) / 2),
            "blurred": {str(k): right(_blurred(x, k)) for k in (3, 5, 7)},
            "tested": n,
        }


def read_all(oracle: Oracle, pictures: Tensor) -> Reading:
    """Return what an oracle reads in any number of pictures, some thousands at a time."""
    rows = [vars(read(oracle, part)) for part in pictures.split(2000)]
    return Reading(**{kind: torch.cat([row[kind] for row in rows]) for kind in READ})


def _blurred(x: Tensor, side: int) -> Tensor:
    return F.avg_pool2d(F.pad(x, (side // 2,) * 4, mode="replicate"), side, 1)
