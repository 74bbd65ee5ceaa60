"""Train DALL-E 2's prior on the shape world, and ask where its samples lie: notebook 12."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from tutorial_lib import lora, pretrained
from tutorial_lib.captions import all_claims, caption_tokens, draw_claims
from tutorial_lib.cifar10 import to_floats
from tutorial_lib.clip import CLIP
from tutorial_lib.denoiser import Condition, Denoiser, NetworkDenoiser
from tutorial_lib.dpm_solver import dpm_solver_pp_2m
from tutorial_lib.guidance import ClassifierFree
from tutorial_lib.losses import simple, x0_error
from tutorial_lib.pretrained import SCHEDULE, empty_caption
from tutorial_lib.recipes.diffusion_run import HalfPrecision
from tutorial_lib.recipes.record import (
    Metrics,
    TrainingRun,
    origin,
    save_weights,
    write_metrics,
    written_by,
)
from tutorial_lib.recipes.shapes import WORLD, captioned_pictures
from tutorial_lib.samplers import final
from tutorial_lib.schedule import log_snr_times
from tutorial_lib.shape_world import COLOURS, HELD_OUT, SHAPES, SIZES, Scenes, draw_scenes, render
from tutorial_lib.train import train
from tutorial_lib.unclip import Prior, PriorConfig, PriorMLP, PriorMLPConfig, best_of, said, scaled

LOSSES = {"x0": x0_error, "eps": simple}  # of what a prior may predict
LEAST = 1e-3  # of the times, where sampling ends too
ATTRIBUTES = {"colour": len(COLOURS), "shape": len(SHAPES), "size": len(SIZES)}
RIDGE = 0.01  # of the linear probe, beside coordinates whose mean square is 1


@dataclass(frozen=True, kw_only=True)
class PriorRun(TrainingRun):
    """Fix a prior, how long it trains on the embeddings of how many pictures, and its tests.

    It predicts "x0", as the paper's, or "eps". Captions are emptied with probability `unlabelled`.
    Each of the `scales` of guidance, w, is tested on captions of `tested` scenes, with up to
    `candidates` samples each; `bank` other scenes say where real embeddings lie.
    """

    network: PriorConfig | PriorMLPConfig
    predicts: str = "x0"
    images: int = 1_000_000
    unlabelled: float = 0.1
    ema_decay: float = 0.999
    scales: tuple[float, ...] = (0.0, 1.0)
    candidates: int = 4
    tested: int = 2000
    bank: int = 20_000
    sampler_steps: int = 25
    graph: bool = False


@torch.no_grad()
def in_parts(encode: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """Return what an encoder makes of many rows, some thousands at a time."""
    return torch.cat([encode(part) for part in rows.split(5000)])


def picture_embeddings(clip: CLIP, pixels: Tensor) -> Tensor:
    """Return CLIP's scaled embeddings of pixels (B, 3, H, W), (B, D)."""
    return in_parts(lambda part: scaled(clip.image(to_floats(part))), pixels)


def trained(
    name: str,
    config: TrainingRun,
    out: Path,
    net: nn.Module,
    data: tuple[Tensor, ...],
    objective: object,
) -> tuple[nn.Module, float]:
    """Train a network, leave what it learned in bfloat16, and return its average and seconds."""
    schedule = config.schedule(ema_decay=config.ema_decay, graph=config.graph)
    about = {"checkpoint": config.checkpoint_in(out), "about": written_by(name)}
    if config.compiled:
        net.compile(dynamic=False, fullgraph=True)
    result = train(net, data, objective, schedule, **about, watch=config.journal(out))
    kept = lora.trained(net, result.ema)
    save_weights(kept, out / "weights.safetensors", origin(name, config.device))
    return result.ema, round(result.seconds, 1)


def share(right: Tensor) -> float | None:
    """Return how often it is so; None of nothing."""
    return round(float(right.double().mean()), 4) if len(right) else None


def fresh_prior(config: PriorRun) -> nn.Module:
    """Return the run's prior as it is before training."""
    kind = Prior if isinstance(config.network, PriorConfig) else PriorMLP
    net = kind(config.network, generator=Generator().manual_seed(config.seed))
    return net.to(config.device)


def prior_denoiser(net: nn.Module, predicts: str = "x0") -> NetworkDenoiser:
    """Return a prior as a denoiser of the continuous cosine schedule."""
    return NetworkDenoiser(HalfPrecision(net), SCHEDULE, predicts)


def prior_objective(config: PriorRun, null: Condition) -> object:
    """Return the loss of a batch of pictures' and captions' embeddings and tokens, (B,)."""

    def cost(net: nn.Module, batch: tuple[Tensor, ...], generator: Generator) -> Tensor:
        x0, hint, tokens = batch
        t, u = torch.rand(2, len(x0), generator=generator, device=x0.device)
        absent = (u < config.unlabelled)[:, None]
        cond = Condition(
            text=torch.where(absent, null.text, tokens), hint=torch.where(absent, null.hint, hint)
        )
        t, model = 1 - (1 - LEAST) * t.double(), prior_denoiser(net, config.predicts)
        return LOSSES[config.predicts](model, x0, t, cond, generator=generator) / x0.shape[1]

    return cost


def run_prior(name: str, config: PriorRun, out: Path) -> Metrics:
    """Train a prior, test where its samples lie, and leave the record with the weights."""
    clip = pretrained.clip(config.device)
    pixels, tokens = captioned_pictures(config.images, seed=config.seed, device=config.device)
    data = (
        picture_embeddings(clip, pixels),
        in_parts(lambda part: scaled(clip.text(part)), tokens),
        tokens,
    )
    del pixels
    null, net = said(clip, empty_caption(config.device).text), fresh_prior(config)
    ema, seconds = trained(name, config, out, net, data, prior_objective(config, null))
    found = {"data": WORLD, **prior_tests(ema, config, clip)}
    found |= {"parameters": sum(p.numel() for p in net.parameters()), "seconds": seconds}
    return write_metrics(out, name, config, found)


def prior_headline(found: Metrics) -> str:
    """Say in a few words how near a prior comes to what pictures have."""
    whole = found["whole"]
    drawn, text = whole["prior w=0"], whole["text"]
    return (
        f"cosine to the picture's {drawn['cosine']:.2f} (the caption's {text['cosine']:.2f}), "
        f"{drawn['nearest']:.2f} from the nearest picture's ({text['nearest']:.2f})"
    )


def draw_embeddings(
    model: Denoiser, cond: Condition, config: PriorRun, *, w: float, null: Condition
) -> Tensor:
    """Return `config.candidates` samples of a prior for each row of its condition, (B, K, D)."""
    generator = Generator(config.device).manual_seed(config.seed + 2)
    guided = ClassifierFree(model, w, null=null)
    times = log_snr_times(SCHEDULE, config.sampler_steps, LEAST, 0.9946)
    made = []
    for rows in zip(cond.text.split(1000), cond.hint.split(1000), strict=True):
        text, hint = (x.repeat_interleave(config.candidates, 0) for x in rows)
        x = torch.randn(hint.shape, generator=generator, device=hint.device)
        made.append(final(dpm_solver_pp_2m(guided, x, times, Condition(text=text, hint=hint))))
    return torch.cat(made).unflatten(0, (-1, config.candidates))


def attributes(scenes: Scenes) -> Tensor:
    """Return of each scene how many objects it has, and which attributes, (B, 19) of 0 and 1."""
    parts = [F.one_hot(scenes.present.sum(1) - 1, scenes.present.shape[1])]
    for kind, n in ATTRIBUTES.items():
        there = F.one_hot(getattr(scenes, kind), n) * scenes.present[..., None]
        parts.append(there.amax(1))
    return torch.cat(parts, 1)


class Probe:
    """Read attributes from scaled embeddings by a ridge regression on those of real pictures."""

    def __init__(self, embeddings: Tensor, scenes: Scenes) -> None:
        x, y = self._with_one(embeddings), attributes(scenes).double()
        ridge = RIDGE * len(x) * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        self.weights = torch.linalg.solve(x.T @ x + ridge, x.T @ y)

    @staticmethod
    def _with_one(x: Tensor) -> Tensor:
        return F.pad(x.double(), (0, 1), value=1.0)

    def shares(self, embeddings: Tensor, scenes: Scenes) -> Metrics:
        """Return the shares of scenes whose count, colours, shapes and sizes are read right."""
        right = (self._with_one(embeddings) @ self.weights > 0.5) == attributes(scenes).bool()
        sizes = {"count": scenes.present.shape[1], **ATTRIBUTES}
        parts = right.split(list(sizes.values()), 1)
        return {kind: share(part.all(1)) for kind, part in zip(sizes, parts, strict=True)}


@torch.no_grad()
def prior_tests(net: nn.Module, config: PriorRun, clip: CLIP) -> Metrics:
    """Return where a prior's samples lie among CLIP's embeddings, told all of scenes or a part.

    Beside them the embeddings of the pictures themselves and of the captions, as they are.
    """
    device, model = config.device, prior_denoiser(net, config.predicts)
    null, found = said(clip, empty_caption(device).text), {}
    generator = Generator(device).manual_seed(config.seed + 1)
    with torch.device(device):
        others, scenes = (
            draw_scenes(n, generator=generator, held_out=HELD_OUT)
            for n in (config.bank, config.tested)
        )
        bank, image = (
            in_parts(lambda x: scaled(clip.image(x)), render(s)) for s in (others, scenes)
        )
        told = {
            "whole": all_claims(scenes),
            "partial": draw_claims(scenes, generator=generator),
        }
        told = {kind: caption_tokens(x, generator=generator) for kind, x in told.items()}
    place = Place(bank, Probe(bank, others), image, scenes)
    for kind, tokens in told.items():
        cond = said(clip, tokens)
        found[kind] = {"picture": place.of(image), "text": place.of(cond.hint)}
        for w in config.scales:
            drawn = draw_embeddings(model, cond, config, w=w, null=null)
            found[kind][f"prior w={w:g}"] = place.of_many(drawn, cond.hint)
    return found | {"tested": config.tested}


@dataclass(frozen=True)
class Place:
    """Say where embeddings lie, beside those of a bank of pictures and of the pictures meant."""

    bank: Tensor
    probe: Probe
    image: Tensor
    scenes: Scenes

    def of(self, z: Tensor) -> Metrics:
        """Return where scaled embeddings (B, D) lie; distances are in units of real ones' norm."""
        unit = z.shape[1] ** 0.5
        nearest = in_parts(lambda part: torch.cdist(part, self.bank).amin(1), z)
        return {
            "cosine": round(float(F.cosine_similarity(z, self.image).mean()), 4),
            "norm": round(float(z.norm(dim=1).mean()) / unit, 4),
            "nearest": round(float(nearest.mean()) / unit, 4),
            "gap": round(float((z.mean(0) - self.image.mean(0)).norm()) / unit, 4),
            "probe": self.probe.shares(z, self.scenes),
        }

    def of_many(self, candidates: Tensor, text: Tensor) -> Metrics:
        """Return where samples (B, K, D) lie: the first, then the best of more by the text's."""
        k, unit = candidates.shape[1], candidates.shape[2] ** 0.5
        pairs = torch.cdist(candidates, candidates).sum((1, 2)) / (k * (k - 1))
        chosen = {n: best_of(candidates[:, :n], text) for n in (2, 4) if n <= k}
        found = self.of(candidates[:, 0]) | {"spread": round(float(pairs.mean()) / unit, 4)}
        return found | {f"best of {n}": self.of(z) for n, z in chosen.items()}
