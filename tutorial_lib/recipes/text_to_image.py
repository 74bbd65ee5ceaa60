"""Train a network to draw what a caption says, and count how often it does: notebooks 11 to 13."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from tutorial_lib import pretrained
from tutorial_lib.captions import Claims, all_claims, caption_tokens, draw_claims, holds
from tutorial_lib.cifar10 import to_floats
from tutorial_lib.denoiser import Condition, Denoiser, NetworkDenoiser
from tutorial_lib.dpm_solver import dpm_solver_pp_2m
from tutorial_lib.guidance import ClassifierFree, StaticThreshold
from tutorial_lib.losses import v_error
from tutorial_lib.networks.fast import accelerate
from tutorial_lib.networks.unet import UNetConfig
from tutorial_lib.oracle import read
from tutorial_lib.pretrained import BASE_TEXT, SCHEDULE, captioned, empty_caption
from tutorial_lib.recipes.diffusion_run import HalfPrecision
from tutorial_lib.recipes.record import (
    Metrics,
    TrainingRun,
    origin,
    save_sheet,
    save_weights,
    write_metrics,
    written_by,
)
from tutorial_lib.recipes.shapes import WORLD, captioned_pictures
from tutorial_lib.samplers import final
from tutorial_lib.schedule import log_snr_times
from tutorial_lib.shape_world import HELD_OUT, SEEN, draw_scenes
from tutorial_lib.text import Captioned, TextConfig
from tutorial_lib.train import Progress, train

SAMPLER_STEPS = 25
Told = Callable[..., dict[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class TextToImageRun(TrainingRun):
    """Fix a network that draws captions, how long it trains on how many scenes, and its tests.

    Captions are emptied with probability `unlabelled`, but not in `steps_before` others that come
    first: GLIDE learned the empty caption last (Nichol et al. 2021, section 4.2). Times are
    u^time_power, u uniform: below 1, more of them are in much noise, where it is decided what is
    where. Each of the `scales` of guidance, w, is tested on `captions` of every kind; `looks`
    times on the way w = 0 and 2 are, on a quarter.
    """

    network: UNetConfig
    text: TextConfig = field(default=BASE_TEXT)
    images: int = 1_000_000
    unlabelled: float = 0.1
    steps_before: int = 0
    time_power: float = 0.4
    ema_decay: float = 0.9995
    scales: tuple[float, ...] = (-1.0, 0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
    captions: int = 2000
    looks: int = 10
    graph: bool = False


def fresh_network(config: TextToImageRun) -> Captioned:
    """Return the run's network, with its encoder of text, as it is before training."""
    drawn = Generator().manual_seed(config.seed)
    net = accelerate(captioned(config.network, config.text, generator=drawn))
    return net.to(config.device, memory_format=torch.channels_last)


def denoiser(net: nn.Module) -> NetworkDenoiser:
    """Return the network as a denoiser of the continuous cosine schedule, which predicts v."""
    return NetworkDenoiser(HalfPrecision(net), SCHEDULE, "v")


def run_text_to_image(name: str, config: TextToImageRun, out: Path) -> Metrics:
    """Train the network, count what it draws right, and leave the record with the weights."""
    data = captioned_pictures(config.images, seed=config.seed, device=config.device)
    net = fresh_network(config)
    if config.compiled:
        net.compile(dynamic=False, fullgraph=True)
    schedule = config.schedule(ema_decay=config.ema_decay, graph=config.graph)
    judge, found = CaptionJudge(config), {"data": WORLD}
    watch = Watch(config, out, judge.look)
    if config.steps_before:
        never = objective(replace(config, unlabelled=0.0))
        begun = train(net, data, never, replace(schedule, steps=config.steps_before))
        found["before"] = judge.table(judge.model(begun.ema))
    about = {"checkpoint": config.checkpoint_in(out), "about": written_by(name)}
    result = train(net, data, objective(config), schedule, **about, watch=watch)
    save_weights(result.ema, out / "weights.safetensors", origin(name, config.device))
    model = judge.model(result.ema)
    found |= {"table": judge.table(model), "curve": watch.curve}
    judge.picture(model, out / "samples.jpg")
    found |= {"parameters": {part: _size(x) for part, x in net.named_children()}}
    return write_metrics(out, name, config, found | {"seconds": round(result.seconds, 1)})


def _size(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def headline(found: Metrics) -> str:
    """Say in a few words how often the network draws what it is told."""
    plain = next(row for row in found["table"] if row["w"] == 0)
    best = max(found["table"], key=lambda row: row["mix"])
    return (
        f"{100 * plain['mix']:.0f} % of captions drawn right, "
        f"{100 * best['mix']:.0f} % at w = {best['w']:g}"
    )


def objective(
    config: Any, beside: Told = lambda x0, generator, *more: {}, nothing: Tensor | None = None
) -> object:
    """Return the loss of a batch of pixels and tokens, (B,): the error in v, a mean of pixels.

    `beside` says, of pictures x0 and what more a batch has, what the network is told beside the
    caption; `nothing` (1, L) is how its tokens spell the empty one.
    """
    nothing = empty_caption(config.device).text if nothing is None else nothing

    def cost(net: nn.Module, batch: tuple[Tensor, ...], generator: Generator) -> Tensor:
        x0, tokens, *more = batch  # pixels, or latents as they are
        x0 = to_floats(x0) if x0.dtype == torch.uint8 else x0.float()
        x0 = x0.contiguous(memory_format=torch.channels_last)
        t, u = torch.rand(2, len(x0), generator=generator, device=x0.device)
        tokens = torch.where((u < config.unlabelled)[:, None], nothing, tokens)
        t, told = t.double() ** config.time_power, beside(x0, generator, *more)
        cond = Condition(text=tokens, **told)
        return v_error(denoiser(net), x0, t, cond, generator=generator) / x0[0].numel()

    return cost


class Watch:
    """Write the log and, `looks` times in a run, what a `look` at the averaged weights finds."""

    def __init__(self, config: Any, out: Path, look: Callable[[nn.Module], list[Metrics]]) -> None:
        self.config, self.look = config, look
        self.journal, self.curve = config.journal(out), []

    def __call__(self, told: Progress) -> None:
        """Be told how things stand, a hundred times in a run."""
        self.journal(told)
        tick, between = divmod(told.step, self.config.schedule().log_every)
        if between or not self.config.looks or tick % (100 // self.config.looks):
            return
        stands = {"step": told.step, "seconds": round(told.seconds)}
        self.curve += [stands | found for found in self.look(told.ema)]


class CaptionJudge:
    """Ask a network for what captions of several kinds say, and the oracle whether it is there."""

    def __init__(self, config: TextToImageRun) -> None:
        self.config, self.null = config, empty_caption(config.device)
        self.oracle = pretrained.oracle(config.device)

    def model(self, ema: nn.Module) -> Denoiser:
        """Return a denoiser of a run's averaged weights, not compiled: batches vary in size."""
        net = self.network().eval().requires_grad_(False)
        net.load_state_dict(ema.state_dict())
        return denoiser(net)

    def network(self) -> nn.Module:
        """Return the run's network as it is before training."""
        return fresh_network(self.config)

    def look(self, ema: nn.Module) -> list[Metrics]:
        """Return the shares of a quarter of the captions that are drawn right, at w = 0 and 2."""
        model, n = self.model(ema), max(1, self.config.captions // 4)
        return [{"w": w, **self.shares(model, w, n)} for w in (0.0, 2.0)]

    def table(self, model: Denoiser) -> list[Metrics]:
        """Return the shares of captions drawn right at each of the run's scales."""
        return [
            {"w": w, **self.shares(model, w, self.config.captions, steps)}
            for w in self.config.scales
            for steps in ((SAMPLER_STEPS, 10) if w == 2.0 else (SAMPLER_STEPS,))
        ]

    def shares(self, model: Denoiser, w: float, n: int, steps: int = SAMPLER_STEPS) -> Metrics:
        """Return the shares of `n` captions of each kind that are drawn right.

        Captions of one, two and three objects as in training and their mean; whole captions of
        one object, of pairs seen and held out.
        """
        began, found = time.perf_counter(), {}
        for kind, (objects, out, whole) in {
            "one": ((1,), HELD_OUT, False),
            "two": ((2,), HELD_OUT, False),
            "three": ((3,), HELD_OUT, False),
            "seen": ((1,), HELD_OUT, True),
            "unseen": ((1,), SEEN, True),
        }.items():
            claims, tokens = self._captions(n, objects, out, whole)
            reading = read(self.oracle, self.draw(model, tokens, w, steps))
            with torch.device(self.config.device):
                right = holds(claims, reading)
            found[kind] = round(float(right.double().mean()), 4)
        found["mix"] = round(sum(found[kind] for kind in ("one", "two", "three")) / 3, 4)
        return found | {"steps": steps, "took": round(time.perf_counter() - began, 1)}

    def _captions(
        self, n: int, objects: tuple[int, ...], out: tuple, whole: bool
    ) -> tuple[Claims, Tensor]:
        generator = Generator(self.config.device).manual_seed(self.config.seed + 1)
        with torch.device(self.config.device):
            scenes = draw_scenes(n, generator=generator, objects=objects, held_out=out)
            claims = all_claims(scenes) if whole else draw_claims(scenes, generator=generator)
            return claims, caption_tokens(claims, generator=generator)

    def draw(self, model: Denoiser, tokens: Tensor, w: float, steps: int) -> Tensor:
        """Return pictures (N, 3, 32, 32) in [-1, 1] of captions, for the oracle to read."""
        return self.paint(model, tokens, w, steps)

    def paint(self, model: Denoiser, tokens: Tensor, w: float, steps: int) -> Tensor:
        """Return pictures in [-1, 1] of captions, guided by w, as large as they are drawn."""
        device = self.config.device
        generator = Generator(device).manual_seed(self.config.seed + 2)
        guided = StaticThreshold(ClassifierFree(model, w, null=self.null))
        times = log_snr_times(SCHEDULE, steps, 1e-3, 0.9946)
        made = []
        for rows in tokens.split(1000):
            shape = (len(rows), 3, self.config.network.side, self.config.network.side)
            x = torch.randn(shape, generator=generator, device=device)
            cond = Condition(text=rows)
            made.append(final(dpm_solver_pp_2m(guided, x, times, cond)))
        return torch.cat(made).clamp(-1, 1)

    def picture(self, model: Denoiser, path: Path) -> None:
        """Leave a sheet: of each number of objects two rows, at w = 0 and at w = 2."""
        rows = []
        for objects in ((1,), (2,), (3,)):
            _, tokens = self._captions(16, objects, HELD_OUT, False)
            rows += [self.paint(model, tokens, w, SAMPLER_STEPS) for w in (0.0, 2.0)]
        save_sheet(torch.cat(rows), 16, path)
