"""Train the first stage of latent diffusion, and measure rate against distortion: notebook 14."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor

from tutorial_lib import pretrained
from tutorial_lib.captions import all_claims, holds
from tutorial_lib.cifar10 import to_floats
from tutorial_lib.first_stage import FirstStage, FirstStageConfig
from tutorial_lib.gaussian import Gaussian
from tutorial_lib.oracle import read
from tutorial_lib.recipes.record import (
    Metrics,
    TrainingRun,
    origin,
    save_sheet,
    save_weights,
    write_metrics,
    written_by,
)
from tutorial_lib.recipes.shapes import WORLD, clip_distance, scene_pool
from tutorial_lib.shape_world import HELD_OUT, Scenes, draw_scenes, render
from tutorial_lib.train import train

OTHERS = 1000  # is added to a run's seed for the pictures that it is tested on


@dataclass(frozen=True, kw_only=True)
class FirstStageRun(TrainingRun):
    """Fix an autoencoder, how long it trains on `images` scenes, and on how many it is tested.

    Its loss is the absolute error summed over a picture, and `weight` times the latents' price
    (Rombach et al. 2022, appendix G); `perceptual` times one less the cosine of CLIP's embeddings
    before and after takes the place of the paper's LPIPS.
    """

    stage: FirstStageConfig
    weight: float = 1e-6
    perceptual: float = 0.0
    images: int = 400_000
    tested: int = 4000
    ema_decay: float = 0.999
    graph: bool = False


def fresh_stage(config: FirstStageRun) -> FirstStage:
    """Return the run's autoencoder as it is before training."""
    stage = FirstStage(config.stage, generator=Generator().manual_seed(config.seed))
    return stage.to(config.device, memory_format=torch.channels_last)


def objective(config: FirstStageRun) -> object:
    """Return the loss of a batch of pixels, (B,), a mean over a picture's numbers."""
    clip = pretrained.clip(config.device) if config.perceptual else None

    def cost(stage: FirstStage, pixels: Tensor, generator: Generator) -> Tensor:
        x = to_floats(pixels).contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=x.device.type == "cuda"):
            restored = stage(x, generator=generator)
        loss = (restored.x.float() - x).abs().flatten(1).sum(1) + config.weight * restored.price
        if clip is not None:
            near = (clip.image(restored.x.float()) * clip.image(x)).sum(1)
            loss = loss + config.perceptual * (1 - near)
        return loss / x[0].numel()

    return cost


def run_first_stage(name: str, config: FirstStageRun, out: Path) -> Metrics:
    """Train the autoencoder, leave its weights, and measure what it keeps of unseen scenes."""
    pool = scene_pool(config.images, seed=config.seed, device=config.device, held_out=HELD_OUT)
    pixels = torch.cat([part for _, part, _ in pool])
    stage = fresh_stage(config)
    if stage.quantiser is not None:
        first = to_floats(pixels[:2000])
        with torch.no_grad():
            stage.quantiser.renew(
                stage.law(first).mean, generator=Generator().manual_seed(config.seed)
            )
    if config.compiled:
        stage.encoder.compile(dynamic=False)
        stage.decoder.compile(dynamic=False)
    about = {"checkpoint": config.checkpoint_in(out), "about": written_by(name)}
    schedule = config.schedule(ema_decay=config.ema_decay, graph=config.graph)
    watch = config.journal(out)
    result = train(stage, pixels, objective(config), schedule, **about, watch=watch)
    save_weights(result.ema, out / "weights.safetensors", origin(name, config.device))
    kept = fresh_stage(config).eval().requires_grad_(False)
    kept.load_state_dict(result.ema.state_dict())
    scenes, x = unseen(config)
    found = {"data": WORLD, "factor": config.stage.factor, **measured(kept, scenes, x, config)}
    shown = x[:16]
    save_sheet(torch.cat([shown, kept.decode(kept.law(shown).mean)]), 16, out / "samples.jpg")
    found |= {"parameters": sum(p.numel() for p in kept.parameters())}
    return write_metrics(out, name, config, found | {"seconds": round(result.seconds, 1)})


def unseen(config: FirstStageRun) -> tuple[Scenes, Tensor]:
    """Return scenes, and pictures of them, that a run is tested on."""
    generator = Generator(config.device).manual_seed(config.seed + OTHERS)
    with torch.device(config.device):
        scenes = draw_scenes(config.tested, generator=generator, held_out=HELD_OUT)
        return scenes, render(scenes)


@torch.no_grad()
def measured(stage: FirstStage, scenes: Scenes, x: Tensor, config: FirstStageRun) -> Metrics:
    """Return rate, distortion, and what can still be read of pictures that came back.

    The rate in bits a picture: the latents' divergence from N(0, I), or, of codes, the entropy
    of those chosen, place by place alike. The Frechet distance is in CLIP's embeddings.
    """
    generator = Generator(config.device).manual_seed(config.seed + OTHERS + 1)
    parts, bits, latents = [], [], []
    for rows in x.split(1000):
        law = stage.law(rows)
        latents.append(law.mean)
        if stage.quantiser is None:
            parts.append(stage.decode(law.sample(generator=generator)))
            bits.append(law.kl(Gaussian(torch.zeros_like(law.mean), 1.0)) / math.log(2))
        else:
            parts.append(stage.decode(law.mean))
    back, z = torch.cat(parts).clamp(-1, 1), torch.cat(latents)
    square = (back - x).square().flatten(1).mean(1)
    with torch.device(config.device):
        right = holds(all_claims(scenes), read(pretrained.oracle(config.device), back))
    found = {"numbers": z[0].numel(), "deviation": round(float(z.std()), 4)}
    found |= rate(stage, z) if stage.quantiser else {"bits": round(float(torch.cat(bits).mean()))}
    return found | {
        "psnr": round(float((10 * (4 / square).log10()).mean()), 3),
        "absolute": round(float((back - x).abs().mean()), 5),
        "right": round(float(right.double().mean()), 4),
        "fd_clip": clip_distance(back, x, config.device),
    }


def rate(stage: FirstStage, z: Tensor) -> Metrics:
    """Return what the codes of latents cost, in bits a picture, and how many are ever chosen."""
    codes = stage.quantiser(z).codes
    counts = codes.flatten().bincount(minlength=len(stage.quantiser.book)).double()
    share = counts[counts > 0] / counts.sum()
    entropy = float(-(share * share.log2()).sum())
    return {"bits": round(entropy * codes[0].numel()), "codes_used": len(share)}


def headline(found: Metrics) -> str:
    """Say in a few words what is kept in how many bits."""
    kept = f"{100 * found['right']:.0f} % of scenes read right"
    return f"f = {found['factor']}: {found['bits']:,} bits, {found['psnr']:.1f} dB, {kept}"
