"""Train a cascade of the shape world, 16 x 16 and then 32 x 32, and spoil what joins it."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from tutorial_lib import lora, pretrained
from tutorial_lib.captions import all_claims, holds
from tutorial_lib.cascade import SuperResolver, augmented, enlarged, reduced
from tutorial_lib.cifar10 import to_floats, to_pixels
from tutorial_lib.denoiser import Denoiser
from tutorial_lib.dpm_solver import dpm_solver_pp_2m
from tutorial_lib.guidance import StaticThreshold
from tutorial_lib.losses import v_error
from tutorial_lib.networks.fast import accelerate
from tutorial_lib.networks.unet import UNet, UNetConfig
from tutorial_lib.oracle import read
from tutorial_lib.pretrained import SCHEDULE, SMALL_NETWORK, SUPER_NETWORK
from tutorial_lib.recipes import text_to_image
from tutorial_lib.recipes.record import (
    Metrics,
    Recipe,
    TrainingRun,
    origin,
    save_sheet,
    save_weights,
    write_metrics,
    written_by,
)
from tutorial_lib.recipes.shapes import WORLD, captioned_pictures
from tutorial_lib.recipes.text_to_image import (
    SAMPLER_STEPS,
    CaptionJudge,
    TextToImageRun,
    denoiser,
)
from tutorial_lib.samplers import final
from tutorial_lib.schedule import log_snr_times
from tutorial_lib.shape_world import HELD_OUT, draw_scenes, render
from tutorial_lib.text import Captioned
from tutorial_lib.train import Data, Objective, TrainResult, train

SMALL_SIDE, SIDE = 16, 32
ROWS = 1000  # pictures that are drawn at a time
Enlarge = Callable[[Tensor], Tensor]  # (N, 3, 16, 16) to (N, 3, 32, 32)


@dataclass(frozen=True, kw_only=True)
class SmallBaseRun(TextToImageRun):
    """Fix how the base is tuned to draw 16 x 16: adapters and both ends learn."""

    network: UNetConfig = field(default=SMALL_NETWORK)
    scales: tuple[float, ...] = (0.0, 2.0)
    sample_steps: int = SAMPLER_STEPS


@dataclass(frozen=True, kw_only=True)
class SuperResolutionRun(TrainingRun):
    """Fix a network that doubles pictures' sides, how long it trains, and how it is tested.

    In training small pictures are noised to times s = `augmentation` u^2, u uniform in [0, 1):
    Imagen's are uniform up to 1 (Saharia et al. 2022, section 2.4), of which a network as small as
    this would spend most on what nobody can enlarge. It is tested at each of the `levels`, in
    `sample_steps` steps, on `tested` pictures of every kind, and on what the small base draws as
    the run `base` would be tested.
    """

    network: UNetConfig = field(default=SUPER_NETWORK)
    base: SmallBaseRun
    images: int = 1_000_000
    augmentation: float = 0.3
    ema_decay: float = 0.9995
    levels: tuple[float, ...] = (0.0, 0.05, 0.1, 0.2)
    tested: int = 2000
    sample_steps: int = SAMPLER_STEPS
    graph: bool = False


def run_small_base(name: str, config: SmallBaseRun, out: Path) -> Metrics:
    """Tune the base to draw 16 x 16, keep what has changed of it, and count what it draws right.

    The oracle sees its pictures enlarged, bilinear.
    """
    pixels, tokens = captioned_pictures(config.images, seed=config.seed, device=config.device)
    small = [to_pixels(reduced(to_floats(part), SMALL_SIDE)) for part in pixels.split(20_000)]
    net, cost = small_network(config), text_to_image.objective(config)
    result = _trained(name, config, out, net, (torch.cat(small), tokens), cost)
    kept = lora.trained(net, result.ema)
    save_weights(kept, out / "weights.safetensors", origin(name, config.device))
    judge, model = CascadeJudge(config, bilinear), _model(small_network(config), result.ema)
    table = [
        {"w": w} | judge.shares(model, w, config.captions, config.sample_steps)
        for w in config.scales
    ]
    save_sheet(torch.cat([judge.row(model, w) for w in config.scales]), 16, out / "samples.jpg")
    found = {"data": WORLD, "table": table, "parameters": sum(x.numel() for x in kept.values())}
    return write_metrics(out, name, config, found | {"seconds": round(result.seconds, 1)})


def run_super_resolution(name: str, config: SuperResolutionRun, out: Path) -> Metrics:
    """Train a super-resolver, and count what can be read in what it and bilinear ways enlarge.

    That is true small pictures, whole or spoilt, and what the small base draws of captions.
    """
    small = denoiser(accelerate(pretrained.small(config.device).net))
    pixels, _ = captioned_pictures(config.images, seed=config.seed, device=config.device)
    net = super_network(config)
    result = _trained(name, config, out, net, pixels, objective(config))
    save_weights(result.ema, out / "weights.safetensors", origin(name, config.device))
    model, trial = _model(super_network(config), result.ema), Trial(config)
    ways = {None: bilinear} | {s: upscaler(model, s, config) for s in config.levels}
    table = [{"level": s} | row for s, way in ways.items() for row in trial.rows(way)]
    base = replace(config.base, device=config.device)
    judges = {s: CascadeJudge(base, way) for s, way in ways.items()}
    drawn = [
        {"level": s, "w": w} | judge.shares(small, w, config.tested, base.sample_steps)
        for s, judge in judges.items()
        for w in base.scales
    ]
    rows = [trial.row(way) for way in ways.values()]
    rows += [
        trial.truth[:8],
        trial.truth[:8],
        *(judge.row(small, base.scales[-1]) for judge in judges.values()),
    ]
    save_sheet(torch.cat(rows), 16, out / "samples.jpg")
    found = {"data": WORLD, "table": table, "cascade": drawn}
    found |= {"parameters": sum(p.numel() for p in net.parameters())}
    return write_metrics(out, name, config, found | {"seconds": round(result.seconds, 1)})


def small_network(config: SmallBaseRun) -> Captioned:
    """Return the base with ends for small pictures and adapters, before they learn."""
    net = accelerate(pretrained.from_base(config.network))
    return net.to(config.device, memory_format=torch.channels_last)


def super_network(config: SuperResolutionRun) -> SuperResolver:
    """Return the run's network as it is before training."""
    drawn = Generator().manual_seed(config.seed)
    net = accelerate(SuperResolver(UNet(config.network, generator=drawn)))
    return net.to(config.device, memory_format=torch.channels_last)


def _trained(
    name: str, config: TrainingRun, out: Path, net: nn.Module, data: Data, cost: Objective
) -> TrainResult:
    if config.compiled:
        net.compile(dynamic=False, fullgraph=True)
    schedule = config.schedule(ema_decay=config.ema_decay, graph=config.graph)
    about = {"checkpoint": config.checkpoint_in(out), "about": written_by(name)}
    return train(net, data, cost, schedule, **about, watch=config.journal(out))


def _model(net: nn.Module, ema: nn.Module) -> Denoiser:
    """Return a denoiser of averaged weights, not compiled: batches vary in size."""
    net.load_state_dict(ema.state_dict())
    return denoiser(net.eval().requires_grad_(False))


def objective(config: SuperResolutionRun) -> Objective:
    """Return the loss of a batch of pixels, (B,): the error in v, a mean of pixels."""

    def cost(net: SuperResolver, pixels: Tensor, generator: Generator) -> Tensor:
        x0 = to_floats(pixels).contiguous(memory_format=torch.channels_last)
        t, u = torch.rand(2, len(x0), generator=generator, device=x0.device).double()
        level = config.augmentation * u.square()
        cond = augmented(reduced(x0, SMALL_SIDE), SCHEDULE, level, generator=generator)
        return v_error(denoiser(net), x0, t, cond, generator=generator) / x0[0].numel()

    return cost


def bilinear(small: Tensor) -> Tensor:
    """Enlarge small pictures without a network: what a super-resolver must do better than."""
    return enlarged(small, SIDE)


def upscaler(model: Denoiser, level: float, config: SuperResolutionRun) -> Enlarge:
    """Return how a super-resolver enlarges small pictures that are noised to a level before."""
    times = log_snr_times(SCHEDULE, config.sample_steps, 1e-3, 0.9946)

    def enlarge(small: Tensor) -> Tensor:
        generator, made = Generator(small.device).manual_seed(config.seed + 3), []
        for rows in small.split(ROWS):
            told = augmented(rows, SCHEDULE, level, generator=generator)
            x = torch.randn((len(rows), 3, SIDE, SIDE), generator=generator, device=rows.device)
            made.append(final(dpm_solver_pp_2m(StaticThreshold(model), x, times, told)))
        return torch.cat(made).clamp(-1, 1)

    return enlarge


def spoilt(small: Tensor, generator: Generator) -> dict[str, Tensor]:
    """Return small pictures (N, 3, 16, 16) as they are, and with faults, by the faults' names."""
    noise = torch.randn(small.shape, generator=generator, device=small.device)
    found = {"none": small} | {f"noise {k:g}": small + k * noise for k in (0.05, 0.1, 0.2, 0.4)}
    weights = torch.tensor([1.0, 2, 1], device=small.device) / 4  # .7 pixels, standard deviation
    kernel = torch.outer(weights, weights).expand(3, 1, 3, 3)
    found["blur"] = F.conv2d(F.pad(small, (1,) * 4, mode="replicate"), kernel, groups=3)
    return found | {f"JPEG {quality}": jpeg(small, quality) for quality in (75, 25)}


def jpeg(x: Tensor, quality: int) -> Tensor:
    """Return pictures (N, 3, H, W) in [-1, 1] as they are read from JPEG files."""
    rows = []
    for picture in to_pixels(x).cpu().permute(0, 2, 3, 1):
        file = io.BytesIO()
        Image.fromarray(picture.numpy()).save(file, "JPEG", quality=quality, subsampling=0)
        rows.append(torch.from_numpy(np.array(Image.open(file))))
    return to_floats(torch.stack(rows).permute(0, 3, 1, 2).to(x.device))


class Trial:
    """Ask the oracle what it reads in small pictures of known scenes, spoilt and enlarged."""

    def __init__(self, config: SuperResolutionRun) -> None:
        self.device, self.oracle = config.device, pretrained.oracle(config.device)
        generator = Generator(config.device).manual_seed(config.seed + 1)
        with torch.device(config.device):
            scenes = draw_scenes(config.tested, generator=generator)
            self.truth, self.claims = render(scenes), all_claims(scenes)
        self.small = spoilt(reduced(self.truth, SMALL_SIDE), generator)

    def rows(self, enlarge: Enlarge) -> list[Metrics]:
        """Return, for each fault, the share read wholly right and the mean PSNR in dB."""
        found = []
        for fault, small in self.small.items():
            large = enlarge(small)
            reading = read(self.oracle, large)
            with torch.device(self.device):
                right = round(float(holds(self.claims, reading).double().mean()), 4)
            error = (large - self.truth).square().mean((1, 2, 3))
            psnr = round(float(10 * (4 / error).log10().mean()), 2)
            found.append({"fault": fault, "right": right, "psnr": psnr})
        return found

    def row(self, enlarge: Enlarge) -> Tensor:
        """Return 8 clean and 8 noisy pictures, enlarged."""
        return torch.cat([enlarge(self.small[fault][:8]) for fault in ("none", "noise 0.2")])


class CascadeJudge(CaptionJudge):
    """Enlarge what a small base draws of captions before the oracle looks at it."""

    def __init__(self, config: SmallBaseRun, enlarge: Enlarge) -> None:
        super().__init__(config)
        self.enlarge = enlarge

    def draw(self, model: Denoiser, tokens: Tensor, w: float, steps: int) -> Tensor:
        """Return pictures (N, 3, 32, 32) in [-1, 1] of captions, guided by w."""
        return self.enlarge(super().draw(model, tokens, w, steps))

    def row(self, model: Denoiser, w: float) -> Tensor:
        """Return pictures of 16 captions."""
        _, tokens = self._captions(16, (1, 2, 3), HELD_OUT, False)
        return self.draw(model, tokens, w, self.config.sample_steps)


def headline(found: Metrics) -> str:
    """Say in a few words what can be read after enlargement, at the best level."""
    rows, said = found["table"], []
    for fault in ("none", "noise 0.2"):
        of = [row for row in rows if row["fault"] == fault]
        best = max(row["right"] for row in of if row["level"] is not None)
        said.append(f"{100 * best:.0f} % (bilinear {100 * of[0]['right']:.0f} %)")
    return f"enlarged and read right: {said[0]}, with noise of .2 {said[1]}"


BASE = SmallBaseRun(steps=5000, batch_size=512, learning_rate=2e-3, graph=True)
TINY_BASE = SmallBaseRun(
    **{"images": 200, "steps": 4, "batch_size": 8, "learning_rate": 2e-3},
    **{"captions": 4, "scales": (0.0,), "sample_steps": 2, "device": "cpu"},
)


def _super(about: str, expected: str, **how: Any) -> Recipe:
    """Return a recipe that trains a super-resolver of one kind."""
    full = {"steps": 24_000, "batch_size": 512, "learning_rate": 2e-3, "graph": True}
    full |= {"base": BASE}
    tiny = {"steps": 8, "batch_size": 8, "learning_rate": 2e-3, "base": TINY_BASE}
    tiny |= {"images": 100, "tested": 8, "sample_steps": 2, "device": "cpu"}
    return Recipe(
        f"A network that doubles the sides of the shape world's pictures, trained on {about}",
        "Imagen, Saharia et al. 2022, section 2.4; Ho et al. 2022",
        "9 minutes on an H200, most of it tests",
        expected,
        run_super_resolution,
        headline,
        SuperResolutionRun(**full | how),
        None,
        SuperResolutionRun(**tiny | how),
    )


CASCADE = {
    "shapes_small": Recipe(
        "The text-to-image base tuned to draw 16 x 16, the first stage of a cascade",
        "Imagen, Saharia et al. 2022, section 2.4; Hu et al. 2022",
        "3 minutes on an H200",
        "what the base draws, as far as 16 x 16 show it: enlarged, 84 % of true ones are read",
        run_small_base,
        text_to_image.headline,
        BASE,
        None,
        TINY_BASE,
    ),
    "shapes_super_resolution": _super(
        "noisy ones", "clean small pictures read as large ones are, and noisy ones nearly"
    ),
    "shapes_super_resolution_plain": _super(
        *("clean ones", "clean small pictures read as large ones are, and noisy ones not"),
        **{"augmentation": 0.0, "levels": (0.0,)},
    ),
}
