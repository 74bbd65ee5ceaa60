"""Train a ControlNet of the course's text-to-image network, and see what it obeys: notebook 18."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from tutorial_lib import lora, pretrained
from tutorial_lib.captions import all_claims, caption_tokens, holds
from tutorial_lib.controlnet import Controlled, ControlNet, depth_weights, resolution_weights
from tutorial_lib.denoiser import Condition, Denoiser
from tutorial_lib.dpm_solver import dpm_solver_pp_2m
from tutorial_lib.guidance import ClassifierFree, StaticThreshold
from tutorial_lib.networks.fast import accelerate
from tutorial_lib.networks.unet import UNet, initialise_unet
from tutorial_lib.oracle import NEAR, Reading, read
from tutorial_lib.pretrained import BASE_NETWORK, SCHEDULE, empty_caption
from tutorial_lib.recipes import text_to_image
from tutorial_lib.recipes.record import (
    Metrics,
    TrainingRun,
    origin,
    save_sheet,
    save_weights,
    write_metrics,
    written_by,
)
from tutorial_lib.recipes.shapes import WORLD, scene_pool
from tutorial_lib.recipes.text_to_image import SAMPLER_STEPS, Watch, denoiser
from tutorial_lib.samplers import final
from tutorial_lib.schedule import log_snr_times
from tutorial_lib.shape_world import (
    HELD_OUT,
    SHAPES,
    Scenes,
    draw_scenes,
    layout,
    masks,
    outlines,
)
from tutorial_lib.text import Captioned
from tutorial_lib.train import train

MAPS: dict[str, tuple[int, Callable[[Scenes], Tensor]]] = {
    "outlines": (1, outlines),
    "layout": (len(SHAPES), layout),
}
WAYS = ("both", "conditional", "resolution", "depth")
GROUND = 0.3  # how far from a picture's ground, its median, a pixel of an object is at least


@dataclass(frozen=True, kw_only=True)
class ControlRun(TrainingRun):
    """Fix which map a ControlNet is told, how long it learns on `images` scenes, and its tests.

    Captions are emptied with probability `unlabelled` (Zhang et al. 2023, section 3.3). Its
    encoder is a copy of the base's, or, if not `copied`, drawn anew; its last convolutions begin
    at zero, or, if not `zero`, as any other. `looks` times on the way it is tested at w = 0.
    """

    map: str = "outlines"
    images: int = 400_000
    unlabelled: float = 0.5
    time_power: float = 0.4
    copied: bool = True
    zero: bool = True
    ema_decay: float = 0.99
    scales: tuple[float, ...] = (0.0, 2.0)
    tested: int = 1000
    looks: int = 25
    graph: bool = False


def controlled(config: ControlRun) -> Captioned:
    """Return the base with the run's ControlNet beside it, as it is before training."""
    net, drawn = pretrained.text_to_image().net, Generator().manual_seed(config.seed)
    control = ControlNet(net.net, MAPS[config.map][0], generator=drawn)
    if not config.copied:
        control.encoder.load_state_dict(UNet(BASE_NETWORK, generator=drawn).encoder.state_dict())
    if not config.zero:
        initialise_unet(control.leave, drawn)
    net.net = Controlled(net.net, [control])
    return accelerate(net).to(config.device, memory_format=torch.channels_last)


def mapped_pictures(config: ControlRun) -> tuple[Tensor, Tensor, Tensor]:
    """Return pixels (n, 3, 32, 32), tokens (n, L), and maps in 8 bits (n, C, 32, 32)."""
    parts = []
    pool = scene_pool(config.images, seed=config.seed, device=config.device, held_out=HELD_OUT)
    for scenes, pixels, tokens in pool:
        with torch.device(config.device):
            maps = (255 * MAPS[config.map][1](scenes)).round().to(torch.uint8)
        parts.append((pixels, tokens, maps))
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def objective(config: ControlRun) -> object:
    """Return the base's loss of a batch of pixels, tokens and maps, (B,), told the maps."""

    def beside(x0: Tensor, generator: Generator, maps: Tensor) -> dict[str, Tensor]:
        return {"hint": maps.float() / 255}

    return text_to_image.objective(config, beside)


def run_control(name: str, config: ControlRun, out: Path) -> Metrics:
    """Train the ControlNet, leave what learned, and count what of maps and captions it obeys."""
    data, net, trial = mapped_pictures(config), controlled(config), Trial(config)
    if config.compiled:
        net.compile(dynamic=False, fullgraph=True)
    about = {"checkpoint": config.checkpoint_in(out), "about": written_by(name)}
    schedule = config.schedule(ema_decay=config.ema_decay, graph=config.graph)
    watch = Watch(config, out, trial.look)
    result = train(net, data, objective(config), schedule, **about, watch=watch)
    kept = lora.trained(net, result.ema)
    save_weights(kept, out / "weights.safetensors", origin(name, config.device))
    plain = trial.plain(result.ema)
    found = {"data": WORLD, "base": trial.obeyed(plain, "none", 0.0, said=True)}
    found |= {"table": trial.table(plain), "curve": watch.curve}
    trial.picture(plain, out / "samples.jpg")
    found |= {"parameters": sum(x.numel() for x in kept.values())}
    return write_metrics(out, name, config, found | {"seconds": round(result.seconds, 1)})


class Trial:
    """Hold scenes that were not taught, their maps and captions, and who judges what is drawn."""

    def __init__(self, config: ControlRun) -> None:
        self.config, self.oracle = config, pretrained.oracle(config.device)
        generator = Generator(config.device).manual_seed(config.seed + 1)
        with torch.device(config.device):
            self.scenes = draw_scenes(config.tested, generator=generator, held_out=HELD_OUT)
            self.claims = all_claims(self.scenes)
            self.tokens = caption_tokens(self.claims, generator=generator)
            self.maps = MAPS[config.map][1](self.scenes).float()

    def plain(self, ema: nn.Module) -> Captioned:
        """Return the network with a run's averaged weights, not compiled: batches vary in size."""
        net = controlled(self.config).eval().requires_grad_(False)
        net.load_state_dict(ema.state_dict())
        return net

    def look(self, ema: nn.Module) -> list[Metrics]:
        """Return what is obeyed at w = 0: the jump comes between two looks."""
        return [self.obeyed(self.plain(ema), "both", 0.0, said=True)]

    def draw(self, net: Captioned, way: str, w: float, *, said: bool) -> Tensor:
        """Return pictures of all scenes, told their maps in one of the WAYS, or "none"."""
        device, null = self.config.device, empty_caption(self.config.device)
        weigh = {"resolution": resolution_weights, "depth": depth_weights}.get(way)
        net.net.weights = tuple(weigh(BASE_NETWORK)) if weigh else (1.0,) * len(net.net.weights)
        text = self.tokens if said else null.text.expand(len(self.tokens), -1)
        bare = null if way == "both" else Condition(text=null.text, hint=0 * self.maps[:1])
        model: Denoiser = StaticThreshold(ClassifierFree(denoiser(net), w, null=bare))
        times = log_snr_times(SCHEDULE, SAMPLER_STEPS, 1e-3, 0.9946)
        generator, made = Generator(device).manual_seed(self.config.seed + 2), []
        for rows, maps in zip(text.split(1000), self.maps.split(1000), strict=True):
            x = torch.randn((len(rows), 3, 32, 32), generator=generator, device=device)
            cond = Condition(text=rows, hint=None if way == "none" else maps)
            made.append(final(dpm_solver_pp_2m(model, x, times, cond)))
        return torch.cat(made).clamp(-1, 1)

    @torch.no_grad()
    def obeyed(self, net: Captioned, way: str, w: float, *, said: bool) -> Metrics:
        """Return how often all objects are where the map says, and as the caption says.

        `iou` is the overlap of what is no ground with where objects should be, over their union.
        """
        drawn = self.draw(net, way, w, said=said)
        reading = read(self.oracle, drawn)
        with torch.device(self.config.device):
            right = holds(self.claims, reading)
            there = (masks(self.scenes) * self.scenes.present[..., None, None]).amax(1) > 0.5
        ground = drawn.flatten(2).median(2).values[..., None, None]
        shown = (drawn - ground).abs().amax(1) > GROUND
        overlap = (there & shown).flatten(1).sum(1) / (there | shown).flatten(1).sum(1)
        return {
            "followed": round(float(followed(self.scenes, reading).double().mean()), 4),
            "caption": round(float(right.double().mean()), 4),
            "iou": round(float(overlap.double().mean()), 4),
        }

    def table(self, net: Captioned) -> list[Metrics]:
        """Return what is obeyed at each of the run's scales, in every way, said and unsaid."""
        return [
            {"w": w, "way": way, "said": said, **self.obeyed(net, way, w, said=said)}
            for w in self.config.scales
            for way in (WAYS if w else WAYS[:1])
            for said in (True, False)
        ]

    def picture(self, net: Captioned, path: Path) -> None:
        """Leave a sheet: maps, then pictures with and without captions, at w = 2."""
        n = min(16, len(self.maps))
        rows = [2 * self.maps[:n].amax(1, keepdim=True).expand(-1, 3, -1, -1) - 1]
        rows += [self.draw(net, "conditional", 2.0, said=said)[:n] for said in (True, False)]
        save_sheet(torch.cat(rows), n, path)


def followed(scenes: Scenes, found: Reading) -> Tensor:
    """Say of each picture whether its objects are as many, of those shapes, and where they are."""
    apart = torch.cdist(scenes.centre, found.centre)
    near, nearest = apart.masked_fill(~found.present[:, None], torch.inf).min(2)
    same = (found.shape.gather(1, nearest) == scenes.shape) & (near < NEAR)
    as_many = scenes.present.sum(1) == found.present.sum(1)
    return as_many & (same | ~scenes.present).all(1)


def headline(found: Metrics) -> str:
    """Say in a few words how often a map is followed, and when that began."""
    said = next(row for row in found["table"] if row["said"])
    without = found["base"]["followed"]
    return f"{100 * said['followed']:.0f} % of maps followed (by chance {100 * without:.0f} %)"
