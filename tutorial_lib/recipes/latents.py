"""Diffuse in a first stage's latents, and count what is drawn right at what cost: notebook 14."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from tutorial_lib.cifar10 import to_floats
from tutorial_lib.denoiser import Condition, Denoiser
from tutorial_lib.dpm_solver import dpm_solver_pp_2m
from tutorial_lib.first_stage import FirstStage, FirstStageConfig
from tutorial_lib.gaussian import Gaussian
from tutorial_lib.guidance import ClassifierFree
from tutorial_lib.latent import LatentSpace, latent_space
from tutorial_lib.pretrained import SCHEDULE
from tutorial_lib.recipes.record import (
    RESULTS,
    Metrics,
    load_weights,
    origin,
    save_weights,
    write_metrics,
    written_by,
)
from tutorial_lib.recipes.shapes import WORLD, captioned_pictures, clip_distance, scene_pool
from tutorial_lib.recipes.text_to_image import (
    SAMPLER_STEPS,
    CaptionJudge,
    TextToImageRun,
    Watch,
    fresh_network,
    objective,
)
from tutorial_lib.samplers import final
from tutorial_lib.schedule import log_snr_times
from tutorial_lib.shape_world import HELD_OUT
from tutorial_lib.train import train

STARTED = 2000  # pictures that say how large latents are
TIMED = 3  # batches of a sampler's steps whose time is taken, after one that is not


@dataclass(frozen=True, kw_only=True)
class LatentRun(TextToImageRun):
    """Fix a text-to-image network that works on the latents of the first stage of a recipe.

    Without a `stage` it works on pictures; with the stage "pixels" on latents that are pictures.
    Latents are scaled to a standard deviation of 1, or, if not `scaled`, taken as they are;
    `shuffled`, their places are put in one random order, so that neighbours are no longer near
    each other. Pictures have sides of `side`.
    """

    stage: str = ""
    shape: FirstStageConfig | None = None
    scaled: bool = True
    shuffled: bool = False
    side: int = 32
    scales: tuple[float, ...] = (0.0, 2.0)
    looks: int = 5
    batch_timed: int = 500


def first_stage(config: LatentRun) -> FirstStage | Shuffled | Pixels:
    """Return the first stage that the run's recipe left in its record, frozen."""
    if config.stage == "pixels":
        return Pixels()
    stage = FirstStage(config.shape, generator=Generator().manual_seed(config.seed))
    stage.load_state_dict(load_weights(RESULTS / config.stage / "weights.safetensors")[0])
    stage = stage.to(config.device).eval().requires_grad_(False)
    return Shuffled(stage, config.network.side, seed=config.seed) if config.shuffled else stage


class Pixels:
    """A first stage that does nothing."""

    def law(self, x: Tensor) -> Gaussian:
        """Return q(z|x), all of it at x."""
        return Gaussian(x, 0.0)

    def decode(self, z: Tensor) -> Tensor:
        """Return z."""
        return z


class Shuffled:
    """A first stage whose latents (B, C, side, side) lost their layout, and nothing else."""

    def __init__(self, stage: FirstStage, side: int, *, seed: int) -> None:
        self.stage = stage
        self.order = torch.randperm(side**2, generator=Generator().manual_seed(seed))

    def law(self, x: Tensor) -> Gaussian:
        """Return q(z|x), its places in the new order."""
        law = self.stage.law(x)
        return Gaussian(*(_reordered(part, self.order) for part in (law.mean, law.variance)))

    def decode(self, z: Tensor) -> Tensor:
        """Return pictures (B, 3, H, W) of latents in the new order."""
        return self.stage.decode(_reordered(z, self.order.argsort()))


def _reordered(z: Tensor, order: Tensor) -> Tensor:
    return z.flatten(2)[:, :, order.to(z.device)].view_as(z)


@torch.no_grad()
def latents_of(space: LatentSpace, pixels: Tensor) -> Tensor:
    """Return the latents of pixels (N, 3, H, W), in half precision: a million must fit."""
    return torch.cat([space.enter(to_floats(part)).half() for part in pixels.split(5000)])


def run_latent(name: str, config: LatentRun, out: Path) -> Metrics:
    """Train the network, count what it draws right, take its times, and leave the record."""
    pool = {"seed": config.seed, "device": config.device, "side": config.side}
    pixels, tokens = captioned_pictures(config.images, **pool)
    space, data, found = None, (pixels, tokens), {"data": WORLD}
    if config.stage:
        stage = first_stage(config)
        space = latent_space(stage, to_floats(pixels[:STARTED]))
        space = space if config.scaled else LatentSpace(stage, 1.0)
        found["scale"] = round(space.scale, 4)
        data = (latents_of(space, pixels), tokens)
    net, judge = fresh_network(config), LatentJudge(config, space)
    if config.compiled:
        net.compile(dynamic=False, fullgraph=True)
    watch = Watch(config, out, judge.look)
    about = {"checkpoint": config.checkpoint_in(out), "about": written_by(name)}
    schedule = config.schedule(ema_decay=config.ema_decay, graph=config.graph)
    result = train(net, data, objective(config), schedule, **about, watch=watch)
    save_weights(result.ema, out / "weights.safetensors", origin(name, config.device))
    model = judge.model(result.ema)
    found |= {"table": judge.table(model), "curve": watch.curve, **judge.times(model)}
    found |= {"fd_clip": judge.distance(model)}
    judge.picture(model, out / "samples.jpg")
    found |= {"parameters": sum(p.numel() for p in net.parameters())}
    return write_metrics(out, name, config, found | {"seconds": round(result.seconds, 1)})


class LatentJudge(CaptionJudge):
    """Ask a network for captions; what it draws inside a space is made a picture."""

    def __init__(self, config: LatentRun, space: LatentSpace | None) -> None:
        super().__init__(config)
        self.space = space

    def draw(self, model: Denoiser, tokens: Tensor, w: float, steps: int) -> Tensor:
        """Return pictures (N, 3, 32, 32) in [-1, 1] of captions, made smaller for the oracle."""
        return F.adaptive_avg_pool2d(self.paint(model, tokens, w, steps), 32)

    def paint(self, model: Denoiser, tokens: Tensor, w: float, steps: int) -> Tensor:
        """Return pictures in [-1, 1] of captions, guided by w, as large as they are drawn."""
        if self.space is None:
            return super().paint(model, tokens, w, steps)
        shape = self.config.network
        generator = Generator(self.config.device).manual_seed(self.config.seed + 2)
        guided = ClassifierFree(model, w, null=self.null)  # latents have no bounds to keep to
        times = log_snr_times(SCHEDULE, steps, 1e-3, 0.9946)
        made = []
        for rows in tokens.split(1000):
            z = torch.randn(
                (len(rows), shape.in_channels, shape.side, shape.side),
                generator=generator,
                device=self.config.device,
            )
            z = final(dpm_solver_pp_2m(guided, z, times, Condition(text=rows)))
            made.append(self.space.leave(z).clamp(-1, 1))
        return torch.cat(made)

    @torch.no_grad()
    def distance(self, model: Denoiser) -> float:
        """Return the Frechet distance, in CLIP's embeddings, of what is drawn to scenes told.

        Captions of any number of objects, as in training, without guidance.
        """
        device = self.config.device
        rows = 2 * self.config.captions
        parts = scene_pool(rows, seed=self.config.seed + 3, device=device, held_out=HELD_OUT)
        pixels, tokens = (torch.cat(column) for column in list(zip(*parts, strict=True))[1:])
        made = self.draw(model, tokens, 0.0, SAMPLER_STEPS)
        return clip_distance(made, to_floats(pixels), device)

    @torch.no_grad()
    def times(self, model: Denoiser) -> Metrics:
        """Return how many pictures a second are drawn, in SAMPLER_STEPS steps and decoded."""
        _, tokens = self._captions(self.config.batch_timed, (2,), (), False)
        seconds = []
        for _ in range(1 + TIMED):
            began = time.perf_counter()
            self.paint(model, tokens, 2.0, SAMPLER_STEPS).sum().item()
            seconds.append(time.perf_counter() - began)
        return {"drawn_per_second": round(len(tokens) * TIMED / sum(seconds[1:]), 1)}


def headline(found: Metrics) -> str:
    """Say in a few words how often captions are drawn right, and how fast."""
    first, best = found["table"][0], max(found["table"], key=lambda row: row["mix"])
    return (
        f"{100 * first['mix']:.0f} % of captions drawn right at w = 0, {100 * best['mix']:.0f} % "
        f"at w = {best['w']:g}; {found['drawn_per_second']:,.0f} pictures a second"
    )
